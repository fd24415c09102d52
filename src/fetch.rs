//! One request to somebody else's HTTP server: with or without TLS, bounded in time and size, never redirected.
//!
//! For things that are asked for now and then: the keys of a login, the webhook of accounting. So each request has a
//! connection of its own, and a hanging server costs one task until its time is over. Runs on the control runtime.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use futures_util::StreamExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::provider;

/// All headers of an answer together.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Where to ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// Over TLS.
    pub is_https: bool,
    /// A name or an address, without brackets.
    host: Box<str>,
    port: u16,
    /// From the slash on, with the query.
    path: Box<str>,
}

impl Url {
    /// Takes an `http` or `https` URL apart.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (is_https, rest) = match text.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) | None => return Err("expected a URL that begins with https:// or http://".to_owned()),
        };
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a URL has neither blanks nor characters outside of ASCII; write them as %20".to_owned());
        }
        if text.contains('#') {
            return Err("what follows a # is for browsers; leave it out".to_owned());
        }
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if authority.contains('@') {
            return Err("a login can't stand in the URL".to_owned());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let number = port.parse().ok().filter(|port| *port != 0);
                (host, number.ok_or_else(|| format!("{port:?} is no port"))?)
            }
            Some(_) | None => (authority, if is_https { 443 } else { 80 }),
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            None if !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) => host,
            Some(_) | None => return Err(format!("{host:?} is no host; an IPv6 address stands in brackets")),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { is_https, host: host.to_ascii_lowercase().into(), port, path: path.into() })
    }

    /// Whether it can only be this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        &*self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// What the Host header says: the port only where it is not the scheme's own.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        let usual = if self.is_https { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }
}

/// Without the query, which may hold a key.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.is_https { "https" } else { "http" }, self.authority())
    }
}

/// Certificates that are trusted in place of the system's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authorities(Vec<CertificateDer<'static>>);

impl Authorities {
    /// Reads PEM.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("is not whole PEM: {error}"))?;
        if certificates.is_empty() {
            return Err("holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned());
        }
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|error| format!("holds something that is no authority's certificate: {error}"))?;
        }
        Ok(Self(certificates))
    }
}

/// The authorities that this system trusts; where it has no list, as in a bare container, the one that browsers use.
fn system_roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        store.roots = webpki_roots::TLS_SERVER_ROOTS.to_vec();
    }
    store
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It took too long.
    #[error("no whole answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The name is not known, nobody listens, or the way is closed.
    #[error("can't connect: {0}")]
    Connect(std::io::Error),
    /// The certificate is not trusted, or it is not TLS at all.
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    /// What came back is no HTTP, or broke off.
    #[error("the answer is not whole HTTP: {0}")]
    Http(String),
    /// More than was asked for.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; empty if it was not asked for.
    pub body: Vec<u8>,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// Headers besides Host and User-Agent.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Vec<u8>,
    /// As much of the answer's body as is taken; 0 does not wait for it.
    pub answer_bytes_max: usize,
}

/// Asks, with the same trust and the same patience each time.
#[derive(Clone)]
pub struct Client {
    tls: TlsConnector,
    within: Duration,
}

impl Client {
    /// Trusts these authorities, or else the system's. A whole exchange takes no longer than `within`.
    ///
    /// # Errors
    /// When the system's cryptography can't be used.
    pub fn new(authorities: Option<&Authorities>, within: Duration) -> Result<Self, String> {
        let roots = match authorities {
            None => system_roots(),
            Some(Authorities(certificates)) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(certificates.iter().cloned());
                store
            }
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), within })
    }

    /// One request and its answer, whatever its status.
    ///
    /// # Errors
    /// [`FetchError`] when there is none.
    pub async fn ask(&self, url: &Url, asked: Asked) -> Result<Answer, FetchError> {
        let answer = tokio::time::timeout(self.within, self.ask_patiently(url, asked)).await;
        answer.unwrap_or(Err(FetchError::Timeout(self.within)))
    }

    async fn ask_patiently(&self, url: &Url, asked: Asked) -> Result<Answer, FetchError> {
        let stream = TcpStream::connect((&*url.host, url.port)).await.map_err(FetchError::Connect)?;
        if !url.is_https {
            return exchange(stream, url, asked).await;
        }
        let name = ServerName::try_from(url.host.to_string())
            .map_err(|error| FetchError::Tls(std::io::Error::other(error.to_string())))?;
        let stream = self.tls.connect(name, stream).await.map_err(FetchError::Tls)?;
        exchange(stream, url, asked).await
    }
}

async fn exchange<S>(stream: S, url: &Url, asked: Asked) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| FetchError::Http(error.to_string());
    let mut builder = http1::Builder::new();
    // Names as most write them: some receivers look for that by hand.
    builder.max_buf_size(HEADER_BYTES_MAX).title_case_headers(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut request = Request::builder()
        .method(asked.method)
        .uri(&*url.path)
        .header(header::HOST, url.authority())
        .header(header::USER_AGENT, concat!("throughway/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    for (name, value) in asked.headers {
        request = request.header(name, value);
    }
    let request = request.body(Body::from(asked.body)).map_err(|error| FetchError::Http(error.to_string()))?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        read(response, asked.answer_bytes_max).await
    };
    let (mut talk, mut connection) = (std::pin::pin!(talk), std::pin::pin!(connection));
    tokio::select! {
        answer = talk.as_mut() => answer,
        // It may have ended behind the last byte of the answer.
        _ = connection.as_mut() => talk.await,
    }
}

async fn read(response: axum::http::Response<Incoming>, bytes_max: usize) -> Result<Answer, FetchError> {
    let (head, incoming) = response.into_parts();
    let mut body = Vec::new();
    if bytes_max > 0 {
        let mut chunks = Body::new(incoming).into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| FetchError::Http(error.to_string()))?;
            if body.len() + chunk.len() > bytes_max {
                return Err(FetchError::TooLong(bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, body })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Answers each request with what is set at that moment, and keeps what it was asked.
    pub(crate) struct Scripted {
        pub(crate) address: SocketAddr,
        answer: Arc<Mutex<Vec<u8>>>,
        asked: Arc<Mutex<Vec<String>>>,
        /// PEM of its certificate, with TLS.
        pub(crate) pem: String,
    }

    impl Scripted {
        pub(crate) async fn start(name: Option<&str>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (answer, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
            let mut pem = String::new();
            let acceptor = name.map(|name| {
                let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
                pem = issued.cert.pem();
                let key = rustls::pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
                let config = rustls::ServerConfig::builder_with_provider(provider())
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_no_client_auth()
                    .with_single_cert(vec![issued.cert.der().clone()], key)
                    .unwrap();
                TlsAcceptor::from(Arc::new(config))
            });
            let (to, heard) = (Arc::clone(&answer), Arc::clone(&asked));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (to, heard, acceptor) = (Arc::clone(&to), Arc::clone(&heard), acceptor.clone());
                    tokio::spawn(async move {
                        match acceptor {
                            None => serve(stream, &to, &heard).await,
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    serve(stream, &to, &heard).await;
                                }
                            }
                        }
                    });
                }
            });
            Self { address, answer, asked, pem }
        }

        /// What is sent from now on; nothing means that the connection hangs.
        pub(crate) fn answers(&self, bytes: impl Into<Vec<u8>>) {
            *self.answer.lock().unwrap() = bytes.into();
        }

        pub(crate) fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap().clone()
        }

        pub(crate) fn url(&self, scheme: &str, path: &str) -> Url {
            Url::parse(&format!("{scheme}://localhost:{}{path}", self.address.port())).unwrap()
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        mut stream: S,
        answer: &Mutex<Vec<u8>>,
        asked: &Mutex<Vec<String>>,
    ) {
        let mut request = vec![0; 64 * 1024];
        let len = stream.read(&mut request).await.unwrap_or(0);
        asked.lock().unwrap().push(String::from_utf8_lossy(&request[..len]).into_owned());
        let answer = answer.lock().unwrap().clone();
        if answer.is_empty() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
    }

    fn get() -> Asked {
        Asked { method: Method::GET, headers: Vec::new(), body: Vec::new(), answer_bytes_max: 1000 }
    }

    fn client(pem: Option<&str>) -> Client {
        let authorities = pem.map(|pem| Authorities::parse(pem.as_bytes()).unwrap());
        Client::new(authorities.as_ref(), Duration::from_millis(500)).unwrap()
    }

    #[test]
    fn urls_are_taken_apart_and_shown_without_their_query() {
        for (text, shown) in [
            ("https://login.example/keys?secret=1", "https://login.example/keys"),
            ("http://[::1]:8080", "http://[::1]:8080/"),
            ("https://LOGIN.example:443?x", "https://login.example/"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), shown);
        }
        for wrong in [
            "login.example/keys",
            "ftp://a/",
            "https://",
            "https://a b/",
            "https://user:pass@a/",
            "https://a:0/",
            "https://a:99999/",
            "https://::1/",
            "https://a/#x",
            "https://a\u{e9}/",
        ] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Url::parse("http://127.1.2.3/").unwrap().is_loopback());
        assert!(Url::parse("http://localhost/").unwrap().is_loopback());
        assert!(!Url::parse("http://localhost.example/").unwrap().is_loopback());
    }

    #[tokio::test]
    async fn over_tls_only_who_is_trusted_and_has_the_name_is_asked() {
        let server = Scripted::start(Some("localhost")).await;
        server.answers("HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 2\r\n\r\nhi");
        let url = server.url("https", "/keys?x=1");
        let answer = client(Some(&server.pem)).ask(&url, get()).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, &b"hi"[..]));
        assert_eq!(answer.headers["x-a"], "b");
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /keys?x=1 HTTP/1.1\r\nHost: localhost:"), "{asked:?}");
        let stranger = client(None).ask(&url, get()).await.unwrap_err();
        assert!(matches!(stranger, FetchError::Tls(_)) && stranger.to_string().contains("UnknownIssuer"), "{stranger}");
        let other = Scripted::start(Some("other.example")).await;
        let misnamed = client(Some(&other.pem)).ask(&other.url("https", "/"), get()).await.unwrap_err();
        assert!(matches!(misnamed, FetchError::Tls(_)), "{misnamed}");
        assert_eq!((server.asked().len(), other.asked().len()), (1, 0), "a request goes to nobody else");
    }

    #[tokio::test]
    async fn what_hangs_drips_lies_or_is_too_long_ends_within_its_bounds() {
        let server = Scripted::start(None).await;
        let url = server.url("http", "/");
        let client = client(None);
        let ask = || client.ask(&url, get());
        assert!(matches!(ask().await, Err(FetchError::Timeout(_))), "no answer at all");
        for (answer, bad) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(), "not whole"),
            ("SSH-2.0-x\r\n".to_owned(), "not whole"),
            (format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(40_000)), "not whole"),
            (format!("HTTP/1.1 200 OK\r\n\r\n{}", "y".repeat(1001)), "longer than 1000"),
            (format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n{}", "y".repeat(0xfff)), "longer"),
        ] {
            server.answers(answer);
            let error = ask().await.unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
        server.answers("HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(ask().await.unwrap().status, StatusCode::FOUND, "nobody is followed");
        // A status is enough where no body is wanted, even if that hangs.
        server.answers("HTTP/1.1 204 No Content\r\n\r\n");
        let status_only = Asked { answer_bytes_max: 0, ..get() };
        assert_eq!(client.ask(&url, status_only).await.unwrap().status, StatusCode::NO_CONTENT);
        let nobody = Url::parse("http://127.0.0.1:1/").unwrap();
        assert!(matches!(client.ask(&nobody, get()).await, Err(FetchError::Connect(_))));
    }

    #[test]
    fn authorities_are_pem_of_certificates() {
        for (text, says) in [
            ("", "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\n", "not whole PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no authority's certificate"),
        ] {
            let error = Authorities::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
