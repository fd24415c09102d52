//! HTTP/1.1 on a listener, with a bound on everything that a client chooses: connections, headers, time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;

use super::https;
use super::slow_reader::SlowReaderLimit;
use crate::address::ClientAddress;
use crate::net::fair_limit::{FairLimit, Permit, Source};
use crate::net::files;
use crate::net::front::{Arrived, Carries, Destination, Front, Place, StreamKind, accept_next};
use crate::net::gate::Gate;
use crate::net::tls_stream::TlsStream;
use crate::tls::Tls;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// A process of this machine, and whose it is if the system says so.
    Unix(Option<u32>),
}

/// What listeners of HTTP take. `half_open` and `handshake` are limits of the front, which all of them share (decision 0234);
/// the others hold for each listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// At a time; then the longest idle one of the fullest source gives way.
    pub(super) connections: u64,
    /// TLS handshakes under way at a time, of all listeners together; more connections wait for one.
    pub(super) half_open: u64,
    /// For one of them.
    pub(super) handshake: Duration,
    /// For the headers of a request, and between two requests.
    pub(super) headers: Duration,
    /// For the rest: body and answer.
    pub(super) request: Duration,
    /// For the reader of an answer to take it.
    pub(super) reader: Duration,
    /// For a connection on the whole, so that a client that does not read can't keep one.
    pub(super) connection: Duration,
}

pub(super) const BOUNDS: Bounds = Bounds {
    connections: 256,
    half_open: 64,
    handshake: Duration::from_secs(10),
    headers: Duration::from_secs(10),
    request: Duration::from_secs(10),
    reader: Duration::from_secs(20),
    connection: Duration::from_secs(300),
};

/// The one call that is answered when it is done and takes long: an upgrade prepares, moves the clients, and waits until the
/// new process has proved itself. Only an operator gets beyond its first moments.
pub(super) const LONG_PATH: &str = "/v1/upgrade";
const LONG_REQUEST: Duration = Duration::from_secs(240);

/// Headers of a request, by number and together with its first line by bytes; more is answered with 431.
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// How many connections a listener may have while files are scarce; then each new one takes the place of another.
const CONNECTIONS_WITHOUT_FILES: u64 = 16;

/// Connections closed for want of a place, on all listeners together.
static GAVE_WAY: AtomicU64 = AtomicU64::new(0);

/// How many connections were closed for others because too many were open.
pub(super) fn gave_way() -> u64 {
    GAVE_WAY.load(Ordering::Relaxed)
}

/// Requests that are being answered, on all listeners together.
static UNDER_WAY: AtomicU64 = AtomicU64::new(0);

/// While it lives a request is being answered.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long an answer that is made may take to leave, and how often it is looked whether all are made.
const LAST_WRITE: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until the requests that are under way are answered, but so long and no longer.
pub(crate) async fn requests_answered(within: Duration) {
    let until = tokio::time::Instant::now() + within;
    while UNDER_WAY.load(Ordering::Relaxed) > 0 && tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(LAST_WRITE).await;
}

/// The stages before HTTP, with the limits of HTTP (`net::front`).
pub(super) fn front(bounds: Bounds) -> Arc<Front> {
    let front = Front::default();
    limit(&front, bounds);
    Arc::new(front)
}

/// Gives a front the limits of HTTP.
pub(crate) fn set_limits(front: &Front) {
    limit(front, BOUNDS);
}

fn limit(front: &Front, bounds: Bounds) {
    front.set_limits(Some(bounds.handshake), Some(bounds.handshake), Some(bounds.half_open));
}

/// Where the connections of one TCP listener go when they come from the front.
pub(super) struct Routes {
    router: Router,
    /// For a listener that speaks TLS.
    tls: Option<Arc<Tls>>,
    places: Arc<FairLimit>,
    bounds: Bounds,
}

impl Destination for Routes {
    /// A new connection takes the place of another one at once.
    async fn ready(&self) {}

    fn place(&self, stream: &TcpStream, client: ClientAddress) -> Option<Place> {
        Some(ConnectionSlot::place(&self.places, stream, Peer::Tcp(client.into()), self.bounds))
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(|tls| tls.http())
    }

    /// No record of TLS begins with a letter; every request of HTTP does.
    fn explains(&self, first: u8) -> bool {
        first.is_ascii_alphabetic()
    }

    fn take(self: &Arc<Self>, Arrived { stream, five_tuple, carries }: Arrived, place: Place) {
        let slot = ConnectionSlot::from(place);
        let (peer, router, permit) = (Peer::Tcp(five_tuple.client.into()), self.router.clone(), slot.permit());
        match carries {
            Carries::Plain if self.tls.is_some() => {
                let within = self.bounds.handshake;
                tokio::spawn(slot.hold(async move {
                    // A client that does not listen needs no answer.
                    let _ = tokio::time::timeout(within, https::explain(stream)).await;
                }));
            }
            Carries::Plain => drop(tokio::spawn(slot.hold(connection(stream, peer, router, permit, self.bounds)))),
            Carries::Tls(session) => {
                let stream = TlsStream::new(stream, session);
                tokio::spawn(slot.hold(connection(stream, peer, router, permit, self.bounds)));
            }
            // No port of HTTP is shared.
            Carries::Foreign(..) => {}
        }
    }

    fn gave_way(&self) {
        GAVE_WAY.fetch_add(1, Ordering::Relaxed);
    }
}

/// Serves a TCP listener, over TLS if there are certificates.
pub(super) async fn tcp(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Tls>>,
    front: Arc<Front>,
    proxies: Arc<[IpNet]>,
) -> io::Result<()> {
    tcp_within(listener, router, (tls, front), proxies, BOUNDS).await
}

pub(super) async fn tcp_within(
    listener: TcpListener,
    router: Router,
    (tls, front): (Option<Arc<Tls>>, Arc<Front>),
    proxies: Arc<[IpNet]>,
    bounds: Bounds,
) -> io::Result<()> {
    let takes = if tls.is_some() { StreamKind::Tls } else { StreamKind::Plain };
    let routes = Arc::new(Routes { router, tls, places: Arc::default(), bounds });
    front.accept(Box::new(listener), routes, takes, proxies, std::future::pending()).await;
    Ok(())
}

pub(super) async fn unix(listener: UnixListener, router: Router, gate: Gate) -> io::Result<()> {
    let places = Arc::default();
    loop {
        let (stream, _) = accept_next(&gate, || listener.accept(), || {}).await;
        let peer = Peer::Unix(stream.peer_cred().ok().map(|process| process.uid()));
        let place = ConnectionSlot::take(&places, &stream, peer, BOUNDS);
        let (permit, router) = (place.permit(), router.clone());
        tokio::spawn(place.hold(connection(stream, peer, router, permit, BOUNDS)));
    }
}

/// A connection's place on a listener, from the accept on.
pub(super) struct ConnectionSlot {
    permit: Arc<Permit>,
    give_way: oneshot::Receiver<()>,
}

impl From<Place> for ConnectionSlot {
    fn from(Place { permit, give_way }: Place) -> Self {
        Self { permit: Arc::new(permit), give_way }
    }
}

impl ConnectionSlot {
    pub(super) fn take(places: &Arc<FairLimit>, stream: &impl AsFd, peer: Peer, bounds: Bounds) -> Self {
        Self::place(places, stream, peer, bounds).into()
    }

    fn place(places: &Arc<FairLimit>, stream: &impl AsFd, peer: Peer, bounds: Bounds) -> Place {
        let source = match peer {
            Peer::Tcp(address) => address.ip().into(),
            Peer::Unix(user) => Source::User(user),
        };
        let max = if files::is_reserved(stream) {
            places.count().clamp(CONNECTIONS_WITHOUT_FILES.min(bounds.connections), bounds.connections)
        } else {
            bounds.connections
        };
        let (permit, give_way) = places.admit_task(max, source);
        Place { permit, give_way }
    }

    /// For those who tell when the connection did something.
    pub(super) fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }

    /// Serves until that is over, or until the place is another's.
    pub(super) async fn hold(mut self, serving: impl Future<Output = ()>) {
        tokio::select! {
            () = serving => {}
            Ok(()) = &mut self.give_way => drop(GAVE_WAY.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

pub(super) async fn connection<S>(stream: S, peer: Peer, router: Router, permit: Arc<Permit>, bounds: Bounds)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        permit.touch();
        name_host(&mut request, peer);
        request.extensions_mut().insert(peer);
        let within = if request.uri().path() == LONG_PATH { bounds.request.max(LONG_REQUEST) } else { bounds.request };
        let answer = router.call(request);
        let under_way = UnderWay::begin();
        async move {
            let _under_way = under_way;
            let answer: Response = match tokio::time::timeout(within, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(never)) => match never {},
                Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.headers)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(SlowReaderLimit::new(stream, bounds.reader)), service);
    let mut serving = std::pin::pin!(serving);
    // What goes wrong on a client's connection is the client's affair: it is closed, and that is all.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = tokio::time::sleep(bounds.connection) => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(bounds.request, serving).await;
        }
    }
}

/// HTTP/1.0 has no Host. A client of this machine that speaks it means this machine; a browser, which a page of another
/// site could use, always sends one.
fn name_host<B>(request: &mut Request<B>, peer: Peer) {
    let is_local = match peer {
        Peer::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Peer::Unix(_) => true,
    };
    if is_local && request.version() == Version::HTTP_10 && !request.headers().contains_key(header::HOST) {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use axum::routing::{get, post};

    const SHORT: Bounds = Bounds {
        connections: 3,
        half_open: 3,
        handshake: Duration::from_millis(300),
        headers: Duration::from_millis(150),
        request: Duration::from_millis(150),
        reader: Duration::from_millis(300),
        connection: Duration::from_millis(600),
    };

    /// More than the buffers of both sides take.
    const LARGE: usize = 64 << 20;

    async fn server() -> SocketAddr {
        server_within(SHORT).await
    }

    async fn server_within(bounds: Bounds) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "here\n" }))
            .route("/body", post(|body: axum::body::Bytes| async move { format!("{}\n", body.len()) }))
            .route("/large", get(|| async { vec![b'x'; LARGE] }))
            .route("/never", get(std::future::pending::<&'static str>))
            .route(
                LONG_PATH,
                post(|| async {
                    tokio::time::sleep(SHORT.request * 2).await;
                    "upgraded\n"
                }),
            );
        tokio::spawn(tcp_within(listener, router, (None, front(bounds)), Arc::default(), bounds));
        address
    }

    /// What comes back until the server closes; a test that waits for ever is stopped.
    async fn answer_to(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        rest_of(&mut stream).await
    }

    async fn rest_of(stream: &mut TcpStream) -> String {
        let mut answer = Vec::new();
        // A connection that is closed over unread bytes ends with a reset.
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("the server closes the connection");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_or_half_a_header_or_no_more_is_closed() {
        let address = server().await;
        assert_eq!(answer_to(address, b"").await, "");
        let half = answer_to(address, b"GET / HTTP/1.1\r\nHost: a").await;
        assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
        let idle = answer_to(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(idle.starts_with("HTTP/1.1 200") && idle.ends_with("here\n"), "{idle}");
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_and_an_answer_that_takes_too_long_are_a_408() {
        let address = server().await;
        let slow = answer_to(address, b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").await;
        assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
        let never = answer_to(address, b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(never.starts_with("HTTP/1.1 408"), "{never}");
        let long = format!("POST {LONG_PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let long = answer_to(address, long.as_bytes()).await;
        assert!(long.starts_with("HTTP/1.1 200") && long.ends_with("upgraded\n"), "{long}");
    }

    #[tokio::test]
    async fn too_many_or_too_long_headers_are_refused() {
        let address = server().await;
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX));
        assert!(answer_to(address, many.as_bytes()).await.starts_with("HTTP/1.1 431"));
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(2 * HEADER_BYTES_MAX));
        let refused = answer_to(address, long.as_bytes()).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
        let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(2 * HEADER_BYTES_MAX));
        let refused = answer_to(address, target.as_bytes()).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 4"), "{refused}");
    }

    // F-A7
    #[tokio::test]
    async fn when_all_places_are_taken_the_longest_idle_connection_gives_way() {
        let address = server_within(Bounds { headers: Duration::from_secs(60), ..SHORT }).await;
        let mut held = Vec::new();
        for _ in 0..SHORT.connections {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let before = gave_way();
        let answer = answer_to(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(rest_of(&mut held[0]).await, "");
        assert!(gave_way() > before);
    }

    // F-A7
    #[tokio::test]
    async fn a_reader_that_does_not_take_its_answer_is_closed_long_before_its_connection_would_end() {
        let bounds = Bounds { connection: Duration::from_secs(600), headers: Duration::from_secs(600), ..SHORT };
        let address = server_within(bounds).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        tokio::time::sleep(4 * bounds.reader).await;
        let taken = rest_of(&mut slow).await.len();
        assert!(taken < LARGE, "{taken} bytes: the rest was given up");
    }

    // F-A7
    #[tokio::test]
    async fn each_answer_has_its_own_time_and_a_slow_reader_that_takes_all_of_it_is_served_on() {
        let bounds = Bounds { reader: Duration::from_secs(60), connection: Duration::from_secs(600), ..SHORT };
        let address = server_within(Bounds { headers: Duration::from_secs(60), ..bounds }).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..2 {
            stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut left = LARGE;
            while left > 0 {
                left = left.saturating_sub(stream.read(&mut buffer).await.unwrap());
            }
        }
    }

    // The wish "HTTP/1.0 without Host on loopback is answered".
    #[test]
    fn a_missing_host_of_http_1_0_is_this_machine_for_clients_of_this_machine() {
        let host = |version, peer: &str, host: Option<&'static str>| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            if let Some(host) = host {
                request.headers_mut().insert(header::HOST, HeaderValue::from_static(host));
            }
            name_host(&mut request, Peer::Tcp(peer.parse().unwrap()));
            request.headers().get(header::HOST).map(|host| host.to_str().unwrap().to_owned())
        };
        assert_eq!(host(Version::HTTP_10, "127.0.0.1:9", None).as_deref(), Some("localhost"));
        assert_eq!(host(Version::HTTP_10, "[::ffff:127.0.0.1]:9", None).as_deref(), Some("localhost"));
        assert_eq!(host(Version::HTTP_10, "192.0.2.1:9", None), None);
        assert_eq!(host(Version::HTTP_11, "127.0.0.1:9", None), None);
        assert_eq!(host(Version::HTTP_10, "127.0.0.1:9", Some("evil.example")).as_deref(), Some("evil.example"));
    }

    #[tokio::test]
    async fn a_connection_that_never_rests_ends_all_the_same() {
        let address = server().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut requests = 0;
        let mut buffer = [0; 4096];
        let ended = tokio::time::timeout(Duration::from_secs(10), async {
            while stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.is_ok() {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => requests += 1,
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        ended.await.expect("the server ends it");
        assert!(requests > 3, "{requests}");
    }
}
