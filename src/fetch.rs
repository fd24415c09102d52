//! One request to another HTTP server: over TCP, TLS or a unix socket, bounded in time and size, never redirected.
//!
//! For requests that are rare: the keys of a login, the webhook of accounting, commands to a running server, a credential
//! endpoint that `check` looks at. So each request has a connection of its own, and a server that hangs costs one task
//! until the time is over.

mod url;

use std::io;
use std::path::Path;
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
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

pub use self::url::{Url, UrlError, masked};

use crate::tls::provider;

/// All headers of an answer together.
const HEADER_BYTES_MAX: usize = 16 * 1024;

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
            .map_err(|error| format!("is not complete PEM: {error}"))?;
        if certificates.is_empty() {
            return Err("holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned());
        }
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|error| format!("contains a certificate that is not an authority's: {error}"))?;
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
    #[error("no complete answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The name is unknown, no program listens, or the way is closed.
    #[error("can't connect: {0}")]
    Connect(io::Error),
    /// The certificate is not trusted, or it is not TLS at all.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// The connection ended first.
    #[error("the connection ended before an answer came")]
    Incomplete,
    /// What came back is no HTTP.
    #[error("the answer is not complete HTTP: {0}")]
    Http(String),
    /// More than was asked for.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// The answer of a server.
#[derive(Debug)]
pub struct HttpResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; empty if it was not asked for.
    pub body: Vec<u8>,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// The method.
    pub method: Method,
    /// Headers besides User-Agent and Host; one that is named here replaces the usual one.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Vec<u8>,
    /// The longest body of the answer that is read; 0 does not wait for it.
    pub response_bytes_max: usize,
}

/// Sends requests, with the same trust and the same time limits each time.
#[derive(Clone)]
pub struct Client {
    /// Without it only plain HTTP is spoken.
    tls: Option<TlsConnector>,
    /// For each address of a name.
    connect_within: Duration,
    /// For the whole exchange.
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
        Ok(Self { tls: Some(TlsConnector::from(Arc::new(config))), connect_within: within, within })
    }

    /// For plain HTTP and unix sockets only.
    #[must_use]
    pub const fn without_tls(connect_within: Duration, within: Duration) -> Self {
        Self { tls: None, connect_within, within }
    }

    /// One request and its answer, whatever its status.
    ///
    /// # Errors
    /// [`FetchError`] when there is none.
    pub async fn ask(&self, url: &Url, request: HttpRequest) -> Result<HttpResponse, FetchError> {
        bounded(self.within, async {
            let stream = self.connect(url.host(), url.port()).await.map_err(FetchError::Connect)?;
            if !url.is_https() {
                return exchange(stream, url.authority(), url.target(), request).await;
            }
            let tls = self.tls.as_ref().ok_or_else(|| FetchError::Tls(io::Error::other("not spoken here")))?;
            let name = ServerName::try_from(url.host().to_owned())
                .map_err(|error| FetchError::Tls(io::Error::other(error.to_string())))?;
            let stream = tls.connect(name, stream).await.map_err(FetchError::Tls)?;
            exchange(stream, url.authority(), url.target(), request).await
        })
        .await
    }

    /// The same over a unix socket; `target` is path and query.
    ///
    /// # Errors
    /// [`FetchError`] when there is no answer.
    pub async fn ask_unix(
        &self,
        socket: &Path,
        target: &str,
        request: HttpRequest,
    ) -> Result<HttpResponse, FetchError> {
        bounded(self.within, async {
            let stream = UnixStream::connect(socket).await.map_err(FetchError::Connect)?;
            exchange(stream, "localhost", target, request).await
        })
        .await
    }

    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::other("the name has no address");
        for address in tokio::net::lookup_host((host, port)).await? {
            match tokio::time::timeout(self.connect_within, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

/// The same over a connection that its caller made and looked at.
///
/// # Errors
/// [`FetchError`] when there is no answer.
pub async fn ask_over<S>(
    stream: S,
    url: &Url,
    request: HttpRequest,
    within: Duration,
) -> Result<HttpResponse, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    bounded(within, exchange(stream, url.authority(), url.target(), request)).await
}

async fn bounded<T>(within: Duration, work: impl Future<Output = Result<T, FetchError>>) -> Result<T, FetchError> {
    tokio::time::timeout(within, work).await.unwrap_or(Err(FetchError::Timeout(within)))
}

async fn exchange<S>(stream: S, host: &str, target: &str, request: HttpRequest) -> Result<HttpResponse, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| {
        if error.is_incomplete_message() { FetchError::Incomplete } else { FetchError::Http(error.to_string()) }
    };
    let mut builder = http1::Builder::new();
    // Names as most write them: some receivers look for that by hand.
    builder.max_buf_size(HEADER_BYTES_MAX).title_case_headers(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut sent = Request::builder()
        .method(request.method)
        .uri(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("throughway/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Body::from(request.body))
        .map_err(|error| FetchError::Http(error.to_string()))?;
    for own in [header::HOST, header::USER_AGENT] {
        if request.headers.iter().any(|(name, _)| *name == own) {
            sent.headers_mut().remove(own);
        }
    }
    for (name, value) in request.headers {
        sent.headers_mut().append(name, value);
    }
    let talk = async {
        let response = sender.send_request(sent).await.map_err(broken)?;
        read(response, request.response_bytes_max).await
    };
    let (mut talk, mut connection) = (std::pin::pin!(talk), std::pin::pin!(connection));
    tokio::select! {
        answer = talk.as_mut() => answer,
        // It may have ended behind the last byte of the answer.
        _ = connection.as_mut() => talk.await,
    }
}

async fn read(response: axum::http::Response<Incoming>, bytes_max: usize) -> Result<HttpResponse, FetchError> {
    let (head, incoming) = response.into_parts();
    // Without a length the end of the connection ends the body, and many servers end TLS without saying so.
    let ends_with_connection =
        !head.headers.contains_key(header::CONTENT_LENGTH) && !head.headers.contains_key(header::TRANSFER_ENCODING);
    let mut body = Vec::new();
    if bytes_max > 0 {
        let mut chunks = Body::new(incoming).into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) if ends_with_connection && is_unexpected_end(&error) => break,
                Err(error) => return Err(FetchError::Http(error.to_string())),
            };
            if body.len() + chunk.len() > bytes_max {
                return Err(FetchError::TooLong(bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
    }
    Ok(HttpResponse { status: head.status, headers: head.headers, body })
}

/// Whether the connection ended where the stream below it says that more should have come.
fn is_unexpected_end(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    std::iter::from_fn(|| {
        let this = cause?;
        cause = this.source();
        Some(this)
    })
    .filter_map(|error| error.downcast_ref::<io::Error>())
    .any(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::task::{Context, Poll, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
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

    /// Once it was asked it gives its bytes, and then the error of a TLS connection that ends without a word.
    struct Abrupt {
        bytes: Vec<u8>,
        is_asked: bool,
        waiting: Option<Waker>,
    }

    impl AsyncRead for Abrupt {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.is_asked {
                self.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if self.bytes.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            to.put_slice(&std::mem::take(&mut self.bytes));
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Abrupt {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.is_asked = true;
            self.waiting.take().into_iter().for_each(Waker::wake);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn get() -> HttpRequest {
        HttpRequest { method: Method::GET, headers: Vec::new(), body: Vec::new(), response_bytes_max: 1000 }
    }

    fn client(pem: Option<&str>) -> Client {
        let authorities = pem.map(|pem| Authorities::parse(pem.as_bytes()).unwrap());
        Client::new(authorities.as_ref(), Duration::from_millis(500)).unwrap()
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
        assert_eq!((server.asked().len(), other.asked().len()), (1, 0), "a request goes to no other server");
    }

    #[tokio::test]
    async fn what_hangs_drips_lies_or_is_too_long_ends_within_its_bounds() {
        let server = Scripted::start(None).await;
        let url = server.url("http", "/");
        let client = client(None);
        let ask = || client.ask(&url, get());
        assert!(matches!(ask().await, Err(FetchError::Timeout(_))), "no answer at all");
        for (answer, bad) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(), "not complete"),
            ("SSH-2.0-x\r\n".to_owned(), "not complete"),
            (format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(40_000)), "not complete"),
            (format!("HTTP/1.1 200 OK\r\n\r\n{}", "y".repeat(1001)), "longer than 1000"),
            (format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n{}", "y".repeat(0xfff)), "longer"),
        ] {
            server.answers(answer);
            let error = ask().await.unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
        server.answers("HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(ask().await.unwrap().status, StatusCode::FOUND, "no redirect is followed");
        server.answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2;x=y\r\n2]\r\n0\r\n\r\n");
        assert_eq!(ask().await.unwrap().body, b"[1,2]", "pieces are put together");
        // A status is enough where no body is wanted, even if that hangs.
        server.answers("HTTP/1.1 204 No Content\r\n\r\n");
        let status_only = HttpRequest { response_bytes_max: 0, ..get() };
        assert_eq!(client.ask(&url, status_only).await.unwrap().status, StatusCode::NO_CONTENT);
        let nobody = Url::parse("http://127.0.0.1:1/").unwrap();
        assert!(matches!(client.ask(&nobody, get()).await, Err(FetchError::Connect(_))));
    }

    #[tokio::test]
    async fn over_a_unix_socket_and_with_a_host_of_its_own() {
        let path = std::env::temp_dir().join(format!("throughway-fetch-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let answer = Mutex::new(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec());
        let asked = Mutex::new(Vec::new());
        let client = Client::without_tls(Duration::from_secs(1), Duration::from_secs(5));
        let host = HttpRequest { headers: vec![(header::HOST, HeaderValue::from_static("own"))], ..get() };
        let (response, ()) = tokio::join!(client.ask_unix(&path, "/status?x=1", host), async {
            serve(listener.accept().await.unwrap().0, &answer, &asked).await;
        });
        std::fs::remove_file(&path).unwrap();
        assert_eq!(response.unwrap().body, b"hi");
        let asked = asked.lock().unwrap().concat();
        assert!(asked.starts_with("GET /status?x=1 HTTP/1.1\r\n") && asked.contains("Host: own\r\n"), "{asked}");
        assert_eq!(asked.matches("Host:").count(), 1, "{asked}");
        assert!(matches!(client.ask_unix(&path, "/", get()).await, Err(FetchError::Connect(_))));
        let https = Url::parse("https://localhost:1/").unwrap();
        assert!(client.ask(&https, get()).await.is_err());
    }

    #[tokio::test]
    async fn only_a_body_without_a_length_may_end_with_its_connection() {
        for (head, is_whole) in [("", true), ("Content-Length: 9\r\n", false)] {
            let text = format!("HTTP/1.1 200 OK\r\n{head}\r\nhalf");
            let stream = Abrupt { bytes: text.into_bytes(), is_asked: false, waiting: None };
            let url = Url::parse("http://localhost/").unwrap();
            let response = ask_over(stream, &url, get(), Duration::from_secs(5)).await;
            assert_eq!(response.is_ok_and(|response| response.body == b"half"), is_whole, "{head}");
        }
    }

    #[test]
    fn authorities_are_pem_of_certificates() {
        for (text, says) in [
            ("", "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\n", "not complete PEM"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "a certificate that is not an authority's",
            ),
        ] {
            let error = Authorities::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
