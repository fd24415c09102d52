//! TLS of the clients: which certificates they take, and the handshake.

use std::fmt;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ALL_VERSIONS, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// With a file of certificates the server's must lead to one of them and bear `name`; without, any will do.
    /// `version` is "1.2", "1.3" or "any".
    pub fn new(ca: Option<&str>, name: &str, version: &str) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let text = |e: Error| format!("TLS: {e}");
        let versions = match version {
            "1.2" => &[&TLS12][..],
            "1.3" => &[&TLS13][..],
            "any" => ALL_VERSIONS,
            other => return Err(format!("--tls-version: `{other}` is none of 1.2, 1.3 and any")),
        };
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).map_err(text)?;
        let mut config = match ca {
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let found = CertificateDer::pem_file_iter(path).map_err(|e| format!("--ca {path}: {e}"))?;
                for certificate in found {
                    let certificate = certificate.map_err(|e| format!("--ca {path}: {e}"))?;
                    roots.add(certificate).map_err(|e| format!("--ca {path}: {e}"))?;
                }
                if roots.is_empty() {
                    return Err(format!("--ca {path}: no certificate in it"));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(name.to_owned()).map_err(|e| format!("--tls-name {name}: {e}"))?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// The handshake on a connected, blocking stream.
    pub fn shake_hands(&self, stream: &mut TcpStream) -> Result<ClientConnection, String> {
        let mut tls = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(|e| format!("TLS: {e}"))?;
        while tls.is_handshaking() {
            tls.complete_io(stream).map_err(|e| format!("TLS handshake: {e}"))?;
        }
        Ok(tls)
    }
}

/// The certificate of a server under test proves nothing and need not: only its signature is checked.
struct AnyCertificate(Arc<CryptoProvider>);

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCertificate")
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
