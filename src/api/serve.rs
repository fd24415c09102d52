//! HTTP/1.1 on a listener, with a bound on everything that a client chooses: connections, headers, time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// A process of this machine, and whose it is if the system says so.
    Unix(Option<u32>),
}

/// What one listener takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// At a time; more are closed at once.
    pub(super) connections: usize,
    /// TLS handshakes under way at a time, which have no place among the connections yet.
    pub(super) half_open: u64,
    /// For one of them.
    pub(super) handshake: Duration,
    /// For the headers of a request, and between two requests.
    pub(super) headers: Duration,
    /// For the rest: body and answer.
    pub(super) request: Duration,
    /// For a connection on the whole, so that nobody keeps one by not reading.
    pub(super) connection: Duration,
}

pub(super) const BOUNDS: Bounds = Bounds {
    connections: 256,
    half_open: 64,
    handshake: Duration::from_secs(10),
    headers: Duration::from_secs(10),
    request: Duration::from_secs(10),
    connection: Duration::from_secs(300),
};

/// Headers of a request, by number and together with its first line by bytes; more is answered with 431.
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// Connections closed for want of a place, on all listeners together.
static TURNED_AWAY: AtomicU64 = AtomicU64::new(0);

/// How many connections were closed at once because too many were open.
pub fn turned_away() -> u64 {
    TURNED_AWAY.load(Ordering::Relaxed)
}

/// How long accepting rests when the system has no more files.
pub(super) const REST: Duration = Duration::from_millis(100);

pub(super) async fn tcp(listener: TcpListener, router: Router) -> io::Result<()> {
    tcp_within(listener, router, BOUNDS).await
}

async fn tcp_within(listener: TcpListener, router: Router, bounds: Bounds) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(bounds.connections));
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Answers are small and whole; waiting for more of them would only make them late.
                let _ = stream.set_nodelay(true);
                admit(stream, Peer::Tcp(address), &router, &places, bounds);
            }
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

pub(super) async fn unix(listener: UnixListener, router: Router) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(BOUNDS.connections));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = Peer::Unix(stream.peer_cred().ok().map(|process| process.uid()));
                admit(stream, peer, &router, &places, BOUNDS);
            }
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

/// Serves a connection if there is a place for it, else closes it.
pub(super) fn admit<S>(stream: S, peer: Peer, router: &Router, places: &Arc<Semaphore>, bounds: Bounds)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        tokio::spawn(connection(stream, peer, router.clone(), place, bounds));
    } else {
        TURNED_AWAY.fetch_add(1, Ordering::Relaxed);
    }
}

async fn connection<S>(stream: S, peer: Peer, router: Router, place: OwnedSemaphorePermit, bounds: Bounds)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let answer = router.call(request);
        async move {
            let answer: Response = match tokio::time::timeout(bounds.request, answer).await {
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
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    // What goes wrong on a client's connection is the client's affair: it is closed, and that is all.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = tokio::time::sleep(bounds.connection) => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(bounds.request, serving).await;
        }
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use axum::routing::{get, post};

    const SHORT: Bounds = Bounds {
        connections: 3,
        half_open: 3,
        handshake: Duration::from_millis(300),
        headers: Duration::from_millis(150),
        request: Duration::from_millis(150),
        connection: Duration::from_millis(600),
    };

    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "here\n" }))
            .route("/body", post(|body: axum::body::Bytes| async move { format!("{}\n", body.len()) }))
            .route("/never", get(std::future::pending::<&'static str>));
        tokio::spawn(tcp_within(listener, router, SHORT));
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

    #[tokio::test]
    async fn more_connections_than_places_are_closed_and_the_places_come_back() {
        let address = server().await;
        let mut held = Vec::new();
        for _ in 0..SHORT.connections {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let before = turned_away();
        assert_eq!(answer_to(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await, "");
        assert!(turned_away() > before);
        for stream in &mut held {
            rest_of(stream).await;
        }
        let mut answer = String::new();
        for _ in 0..100 {
            answer = answer_to(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            if !answer.is_empty() {
                break;
            }
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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
