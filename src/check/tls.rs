//! TLS towards a server: the handshake, and what its certificate is worth.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::check::report::Step;
use crate::files;

/// From here on an expiry is worth a warning.
const DAYS_TO_EXPIRY_WARN: u64 = 14;

/// Far enough ahead that any certificate has expired.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The system's whole list of authorities has a fifth of that.
const CA_BYTES_MAX: u64 = 1 << 20;

/// Which authorities to trust.
#[derive(Clone, Debug)]
pub(super) struct Trust(Arc<WebPkiServerVerifier>);

impl Trust {
    /// What browsers trust, and the certificates of a PEM file.
    pub(super) fn new(extra: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = extra {
            let wrong = |why: String| format!("--ca {}: {why}", path.display());
            let pem = files::read(path, CA_BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
            let mut count = 0;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
                count += 1;
            }
            if count == 0 {
                return Err(wrong("no certificate in it; a PEM file is expected".to_owned()));
            }
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()));
        verifier.build().map(Self).map_err(|error| format!("the list of trusted certificates: {error}"))
    }
}

/// Whether a bad certificate ends the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadCertificate {
    /// For connections that carry secrets.
    Ends,
    /// It is noted and the rest is looked at too: TURN never sends its password.
    IsNoted,
}

/// What was seen of the certificate.
#[derive(Clone, Debug, Default)]
struct Seen {
    chain: usize,
    problem: Option<rustls::Error>,
    expires_at: Option<u64>,
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    on_bad: BadCertificate,
    seen: Mutex<Seen>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let at = |time| self.trust.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time);
        let result = at(now);
        // No parser of certificates is needed to learn the end: ask the verifier about a distant day.
        let later = at(UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + CENTURY));
        let expires_at = match later {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Some(not_after.as_secs())
            }
            _ => None,
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            Seen { chain: 1 + intermediates.len(), problem: result.as_ref().err().cloned(), expires_at };
        match (result, self.on_bad) {
            (Err(error), BadCertificate::Ends) => Err(error),
            (Err(_), BadCertificate::IsNoted) => Ok(ServerCertVerified::assertion()),
            (Ok(verified), _) => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.0.supported_verify_schemes()
    }
}

/// A handshake's result: the stream unless it failed, and the steps to report.
pub(super) async fn handshake(
    stream: TcpStream,
    host: &str,
    trust: &Trust,
    on_bad: BadCertificate,
    alpn: &[&str],
    within: Duration,
    now: u64,
) -> (Option<TlsStream<TcpStream>>, Vec<Step>) {
    let Ok(name) = ServerName::try_from(host.to_owned()) else {
        return (None, vec![Step::fail("handshake", format!("{host} can't be in a certificate"), "use a DNS name")]);
    };
    let verifier = Arc::new(Verifier { trust: trust.clone(), on_bad, seen: Mutex::default() });
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let config = match ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions() {
        Ok(builder) => builder.dangerous().with_custom_certificate_verifier(Arc::clone(&verifier) as _),
        Err(error) => {
            return (None, vec![Step::fail("handshake", error.to_string(), "this is a mistake of this program")]);
        }
    };
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let connected = tokio::time::timeout(within, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    let seen = verifier.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut steps = Vec::new();
    let stream = match connected {
        Ok(Ok(stream)) => {
            let version = stream.get_ref().1.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS");
            let alpn = stream.get_ref().1.alpn_protocol().map(String::from_utf8_lossy);
            let alpn = alpn.map(|alpn| format!(", ALPN {alpn}")).unwrap_or_default();
            steps.push(Step::ok("handshake", format!("{version}{alpn}")).with("version", version));
            Some(stream)
        }
        Ok(Err(error)) => {
            if seen.problem.is_none() {
                steps.push(Step::fail(
                    "handshake",
                    format!("no TLS: {error}"),
                    "check that TLS is spoken on this port (throughway: listen.tls; coturn: tls-listening-port), and by which program: a proxy before it must pass TCP on unchanged",
                ));
            }
            None
        }
        Err(_) => {
            steps.push(Step::fail(
                "handshake",
                "TCP connects, but the TLS handshake is not answered",
                "check that TLS is spoken on this port, and that no firewall inspects it",
            ));
            None
        }
    };
    if seen.chain > 0 {
        steps.push(certificate(host, &seen, now));
    }
    (stream, steps)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "both kinds of errors are open")]
fn certificate(host: &str, seen: &Seen, now: u64) -> Step {
    let days = seen.expires_at.map(|end| end.saturating_sub(now) / 86_400);
    let Some(problem) = &seen.problem else {
        let step = match days {
            Some(days) if days < DAYS_TO_EXPIRY_WARN => {
                Step::warn("certificate", format!("valid for {host}, but only {days} days more"), "renew it now")
            }
            Some(days) => {
                Step::ok("certificate", format!("valid for {host}, {days} days more, chain of {}", seen.chain))
            }
            None => Step::ok("certificate", format!("valid for {host}, chain of {}", seen.chain)),
        };
        return match days {
            Some(days) => step.with("days", days),
            None => step,
        };
    };
    let (detail, remedy) = match problem {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::Expired => ("it has expired".to_owned(), "renew it, and see that the server reads the new file".to_owned()),
            CertificateError::ExpiredContext { time, not_after } => (
                format!("it expired {} days ago", time.as_secs().saturating_sub(not_after.as_secs()) / 86_400),
                "renew it, and see that the server reads the new file".to_owned(),
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("it is not valid yet".to_owned(), "compare this machine's clock; else wait, or take the older certificate".to_owned())
            }
            CertificateError::NotValidForName => (
                format!("it is not for {host}"),
                format!("get a certificate that names {host}, or give clients a URI with the certificate's name"),
            ),
            CertificateError::NotValidForNameContext { presented, .. } => (
                format!("it is not for {host} but for {}", names(presented)),
                format!("get a certificate that names {host}, or give clients a URI with the certificate's name"),
            ),
            CertificateError::UnknownIssuer if seen.chain == 1 => (
                "its issuer is unknown, and no intermediate certificate came with it".to_owned(),
                "give the server the full chain (fullchain.pem, not cert.pem); for an authority of your own, --ca FILE here and the same trust on every client".to_owned(),
            ),
            CertificateError::UnknownIssuer => (
                "its issuer is unknown to browsers".to_owned(),
                "take a certificate of a public authority; for one of your own, --ca FILE here and the same trust on every client".to_owned(),
            ),
            CertificateError::Revoked => ("it was revoked".to_owned(), "get a new one".to_owned()),
            other => (format!("it is refused: {other:?}"), "get a new one from a public authority".to_owned()),
        },
        other => (format!("it is refused: {other}"), "get a new one from a public authority".to_owned()),
    };
    Step::fail("certificate", detail, remedy)
}

/// The names in a certificate; rustls writes each as its kind with the name in brackets.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        crate::check::remedy::printable(inner.trim_matches('"'))
    };
    if presented.is_empty() {
        return "no name".to_owned();
    }
    presented.iter().take(10).map(bare).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;

    fn seen(problem: Option<CertificateError>, expires_at: u64) -> Seen {
        Seen { chain: 1, problem: problem.map(rustls::Error::InvalidCertificate), expires_at: Some(expires_at) }
    }

    #[test]
    fn an_end_in_less_than_two_weeks_is_a_warning() {
        let rows = [(86_400 * 13, Outcome::Warn), (86_400 * 15, Outcome::Ok)];
        for (seconds, outcome) in rows {
            assert_eq!(certificate("t.example", &seen(None, 1000 + seconds), 1000).outcome, outcome);
        }
        assert_eq!(certificate("t.example", &seen(None, 1000 + 86_400 * 15), 1000).values["days"], 15);
    }

    #[test]
    fn names_of_a_certificate_are_shown_bare() {
        let name = |text: &str| text.to_owned();
        assert_eq!(names(&[]), "no name");
        assert_eq!(names(&[name("DnsName(\"t.example\")"), name("IpAddress(192.0.2.7)")]), "t.example, 192.0.2.7");
        assert_eq!(names(&[name("t.example")]), "t.example");
    }

    #[test]
    fn each_certificate_problem_has_its_remedy() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(86_400 * 12));
        let not_after = UnixTime::since_unix_epoch(Duration::from_secs(86_400 * 2));
        for (problem, detail, remedy) in [
            (CertificateError::ExpiredContext { time, not_after }, "10 days ago", "renew"),
            (CertificateError::NotValidForName, "not for t.example", "names t.example"),
            (CertificateError::UnknownIssuer, "no intermediate", "fullchain.pem"),
            (CertificateError::NotValidYet, "not valid yet", "clock"),
            (CertificateError::BadSignature, "BadSignature", "new one"),
        ] {
            let step = certificate("t.example", &seen(Some(problem), 0), 0);
            assert_eq!(step.outcome, Outcome::Fail);
            assert!(step.detail.contains(detail), "{step:?}");
            assert!(step.remedy.as_ref().is_some_and(|text| text.contains(remedy)), "{step:?}");
        }
    }
}
