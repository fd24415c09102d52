//! An authority that issues certificates, and clients that trust no other.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::server::{Directory, Settings};
use super::{Client, PATIENCE};

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// The name in the ordinary certificate.
pub const NAME: &str = "turn.example.org";

/// Issues certificates into a directory of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    pub directory: Directory,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (root, directory) = (params.self_signed(&key).unwrap(), Directory::new());
        replace(&directory.path().join("ca.pem"), &root.pem());
        Self { issuer: Issuer::new(params, key), root: root.der().clone(), directory }
    }

    /// The file that clients are told to trust.
    pub fn file(&self) -> String {
        self.directory.path().join("ca.pem").to_str().unwrap().to_owned()
    }

    /// PEM of a certificate and its key.
    pub fn issue(&self, names: &[&str], ends: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(ends, 1, 1);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// PEM of its own certificate.
    pub fn pem(&self) -> String {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &self.root);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    /// Issues into two files and gives their paths.
    pub fn write(&self, file: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.issue(names, 2100);
        let paths = self.paths(file);
        replace(&paths.0, &certificate);
        replace(&paths.1, &key);
        paths
    }

    pub fn paths(&self, file: &str) -> (PathBuf, PathBuf) {
        let path = |end: &str| self.directory.path().join(format!("{file}.{end}.pem"));
        (path("chain"), path("key"))
    }

    /// The ordinary settings with a TLS listener besides.
    pub fn settings(&self, workers: u8) -> Settings {
        let mut settings = Settings::new(workers);
        settings.tls = settings.tcp.clone();
        settings.certificates = vec![self.write("first", &[NAME])];
        settings
    }

    /// A client's settings.
    pub fn connector(&self, version: &'static SupportedProtocolVersion, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(throughway::tls::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A client with the newest TLS and nothing special.
    pub fn client(&self, server: SocketAddr) -> Client {
        Client::tls(self.connect(server).unwrap())
    }

    /// A stream as such a client has it.
    ///
    /// # Errors
    /// When the handshake fails.
    pub fn connect(&self, server: SocketAddr) -> std::io::Result<TlsStream> {
        connect(&self.connector(VERSIONS[1], &[]), server, NAME)
    }
}

/// As a careful renewal does it: the file is there at every moment.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

/// Connects and shakes hands.
pub fn connect(config: &Arc<ClientConfig>, server: SocketAddr, name: &'static str) -> std::io::Result<TlsStream> {
    let socket = TcpStream::connect(server)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    stream.flush()?;
    Ok(stream)
}

/// The certificate that the server presented.
pub fn presented(stream: &TlsStream) -> Vec<u8> {
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}
