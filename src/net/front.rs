//! The front of every TCP listener, of the relay and of HTTP alike: accept, PROXY header, first byte, ClientHello, TLS
//! handshake; then the connection is its destination's, with the bytes that were read.
//!
//! Each stage has a time limit, a place (`net::fair_limit`) and counters. It runs on the control runtime, so that neither
//! a signature nor a client that says nothing costs a worker anything. The loop that accepts never waits for a place.
//! Where a connection goes and how many there may be is left to the [`Destination`].

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::client_hello::{self, ClientHello, Look};
use super::fair_limit::{FairLimit, Permit, Source};
use super::files;
use super::gate::Gate;
use super::handshake::{Handshake, handshake};
use super::pass_on::SharedCounts;
use super::proxy_header::{self, Announced};
use super::tls_resumption::ResumableSessions;
use super::tls_session::TlsSession;
use crate::address::{ClientAddress, FiveTuple, Transport};
use crate::config::checked::SharedPort;
use crate::tls::{HANDSHAKE, HANDSHAKE_PROTECTED, Handshakes};

/// How long accepting rests when the system is out of files: the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long a proxy may take to say whose connection it is.
const PROXY_HEADER_WITHIN: Duration = Duration::from_secs(3);

/// Bytes that are read at once while it is not known whose a connection to a shared port is.
const HELLO_READ_BYTES: usize = 2 * 1024;

/// What a listener takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum StreamKind {
    Plain,
    Tls,
    /// Either, told by the first byte.
    Both,
    /// TLS, or what a web server takes: told by the first message.
    Shared(Arc<SharedPort>),
}

/// A place among the connections of a destination.
pub(crate) struct Place {
    /// Free again when this is dropped.
    pub(crate) permit: Permit,
    /// Tells that the place is another's from now on.
    pub(crate) give_way: oneshot::Receiver<()>,
}

/// A connection behind all stages.
pub(crate) struct Arrived {
    pub(crate) stream: TcpStream,
    /// The client's address is the announced one where a proxy announced it.
    pub(crate) five_tuple: FiveTuple,
    pub(crate) carries: Carries,
}

/// What an arrived connection carries.
pub(crate) enum Carries {
    /// No TLS, and nothing was read.
    Plain,
    /// TLS whose handshake is over, with what was read behind it.
    Tls(Box<TlsSession>),
    /// What is for the web server behind a shared port, and the bytes that told so.
    Foreign(Arc<SharedPort>, Vec<u8>),
}

/// Where the connections of a listener go.
pub(crate) trait Destination: Send + Sync + 'static {
    /// Waits until one more connection may be accepted.
    fn ready(&self) -> impl Future<Output = ()> + Send;

    /// A place for a connection that was accepted in this moment; nothing where the last files are for others.
    fn place(&self, stream: &TcpStream, client: ClientAddress) -> Option<Place>;

    /// Settings of TLS handshakes; nothing where there are no certificates.
    fn tls(&self) -> Option<Arc<ServerConfig>>;

    /// Whether a client that begins so on a port for TLS hears what is wrong: it comes as [`Carries::Plain`] then.
    fn explains(&self, first: u8) -> bool;

    /// Takes a connection over. Must not block.
    fn take(self: &Arc<Self>, arrived: Arrived, place: Place);

    /// A connection on its way here gave its place to another one.
    fn gave_way(&self);
}

/// The limits of connections that no destination has yet.
#[derive(Debug, Default)]
struct Limits {
    handshake_ms: AtomicU64,
    silent_ms: AtomicU64,
    handshakes: AtomicU64,
}

impl Limits {
    /// 0 is no limit; nothing waits for a century.
    fn time(of: &AtomicU64) -> Duration {
        match of.load(Ordering::Relaxed) {
            0 => Duration::from_secs(3_000_000_000),
            ms => Duration::from_millis(ms),
        }
    }
}

/// Connections that were closed before they were anybody's.
#[derive(Debug, Default)]
pub(crate) struct Proxied {
    /// Of a source that is no proxy.
    pub(crate) source: AtomicU64,
    /// Without a valid PROXY header in time.
    pub(crate) header: AtomicU64,
}

/// What became of connections at each stage.
#[derive(Debug, Default)]
pub(crate) struct FrontCounts {
    pub(crate) handshakes: Handshakes,
    /// Connections on a port for both that said nothing in time.
    pub(crate) silent: AtomicU64,
    /// Connections to listeners for proxies that were closed.
    pub(crate) proxied: Proxied,
    /// Those that could not be accepted.
    pub(crate) refused: AtomicU64,
    /// Of shared ports.
    pub(super) shared: Arc<SharedCounts>,
}

/// The stages, for all listeners of one kind.
#[derive(Default)]
pub(crate) struct Front {
    limits: Limits,
    pub(crate) counts: FrontCounts,
    /// Closed while the sockets are another process's.
    pub(crate) gate: Gate,
    under_way: Arc<FairLimit>,
    /// Not of one configuration of TLS: they survive a change of certificates.
    sessions: ResumableSessions,
}

/// Gives the next connection while the gate is open. A failure is counted; one that is not of one connection is followed
/// by a rest, because the next try would fail as well.
pub(crate) async fn accept_next<T, F: Future<Output = io::Result<T>>>(
    gate: &Gate,
    mut accept: impl FnMut() -> F,
    mut failed: impl FnMut(),
) -> T {
    loop {
        match gate.accept(&mut accept).await {
            Ok(accepted) => return accepted,
            Err(error) => {
                failed();
                if !files::is_of_one_connection(&error) {
                    // Out of files or memory: don't spin.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The five-tuple of a stream, which sends at once from now on.
fn five_tuple(stream: &TcpStream, from: SocketAddr) -> io::Result<FiveTuple> {
    stream.set_nodelay(true)?;
    Ok(FiveTuple { client: from.into(), server: stream.local_addr()?.into(), transport: Transport::Tcp })
}

/// Reads what a connection begins with, until it is a whole ClientHello, or certain to be none.
async fn first_message(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<ClientHello>> {
    let mut wanted = 1;
    loop {
        bytes.reserve(HELLO_READ_BYTES);
        if stream.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() < wanted {
            continue;
        }
        match client_hello::look(bytes) {
            Look::Incomplete(next) => wanted = next,
            Look::Hello(hello) => return Ok(Some(hello)),
            Look::Other => return Ok(None),
        }
    }
}

impl Front {
    /// One that counts what comes to shared ports here.
    pub(super) fn counting(shared: Arc<SharedCounts>) -> Self {
        Self { counts: FrontCounts { shared, ..FrontCounts::default() }, ..Self::default() }
    }

    /// For each handshake and for a first byte that may be one of TLS, and how many handshakes may be under way; `None` is
    /// no limit.
    pub(crate) fn set_limits(&self, handshake: Option<Duration>, silent: Option<Duration>, handshakes: Option<u64>) {
        let ms = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u64);
        self.limits.handshake_ms.store(ms(handshake), Ordering::Relaxed);
        self.limits.silent_ms.store(ms(silent), Ordering::Relaxed);
        self.limits.handshakes.store(handshakes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// TLS handshakes whose first byte has come.
    pub(crate) fn handshakes_under_way(&self) -> u64 {
        self.under_way.count()
    }

    /// Runs until `stop` is; clients that it has accepted by then are served. With `proxies` only these connect, with a
    /// PROXY header first.
    pub(crate) async fn accept<D: Destination>(
        self: Arc<Self>,
        listener: impl Deref<Target = TcpListener> + Send,
        to: Arc<D>,
        takes: StreamKind,
        proxies: Arc<[IpNet]>,
        stop: impl Future<Output = ()> + Send,
    ) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let next = async {
                to.ready().await;
                let refused = || Handshakes::count(&self.counts.refused);
                accept_next(&self.gate, || listener.accept(), refused).await
            };
            let (stream, from) = tokio::select! {
                biased;
                () = &mut stop => return,
                accepted = next => accepted,
            };
            match five_tuple(&stream, from) {
                Ok(five_tuple) if proxies.is_empty() => self.receive(&to, stream, five_tuple, takes.clone()),
                Ok(five_tuple) => self.receive_of_proxy(&to, stream, five_tuple, takes.clone(), &proxies),
                // Gone already.
                Err(_) => Handshakes::count(&self.counts.refused),
            }
        }
    }

    /// Counts a stream of a proxy in, which says whose it is; nothing else connects to such a listener.
    fn receive_of_proxy<D: Destination>(
        self: &Arc<Self>,
        to: &Arc<D>,
        mut stream: TcpStream,
        five_tuple: FiveTuple,
        takes: StreamKind,
        proxies: &[IpNet],
    ) {
        let source = five_tuple.client.ip().to_canonical();
        if !proxies.iter().any(|trusted| trusted.contains(&source)) {
            tracing::debug!(%source, "a connection from none of the proxies in proxy_from");
            return Handshakes::count(&self.counts.proxied.source);
        }
        let Some(mut place) = to.place(&stream, five_tuple.client) else {
            return Handshakes::count(&self.counts.refused);
        };
        let (front, to) = (Arc::clone(self), Arc::clone(to));
        tokio::spawn(async move {
            let announced = tokio::select! {
                announced = timeout(PROXY_HEADER_WITHIN, proxy_header::read(&mut stream)) => announced,
                Ok(()) = &mut place.give_way => return to.gave_way(),
            };
            // From now on it is the client's, and counts for it.
            drop(place);
            match announced {
                Ok(Ok(Announced::Client(client))) => {
                    front.receive(&to, stream, FiveTuple { client: client.into(), ..five_tuple }, takes);
                }
                Ok(Ok(Announced::Itself)) => front.receive(&to, stream, five_tuple, takes),
                Ok(Err(error)) => {
                    tracing::debug!(%source, %error, "a connection of a proxy is closed");
                    Handshakes::count(&front.counts.proxied.header);
                }
                Err(_) => Handshakes::count(&front.counts.proxied.header),
            }
        });
    }

    /// Counts a stream in, and goes on with it elsewhere if something must be waited for.
    fn receive<D: Destination>(
        self: &Arc<Self>,
        to: &Arc<D>,
        stream: TcpStream,
        five_tuple: FiveTuple,
        takes: StreamKind,
    ) {
        let Some(mut place) = to.place(&stream, five_tuple.client) else {
            return Handshakes::count(&self.counts.refused);
        };
        if takes == StreamKind::Plain {
            return to.take(Arrived { stream, five_tuple, carries: Carries::Plain }, place);
        }
        let (front, to) = (Arc::clone(self), Arc::clone(to));
        tokio::spawn(async move {
            let arrived = tokio::select! {
                arrived = front.establish(&*to, stream, five_tuple, &takes) => arrived,
                Ok(()) = &mut place.give_way => return to.gave_way(),
            };
            if let Some(arrived) = arrived {
                to.take(arrived, place);
            }
        });
    }

    /// Waits for the first byte, which a client without anything to say never sends, then does what it asks for. Nothing
    /// comes back of a connection that is closed and counted.
    async fn establish<D: Destination>(
        &self,
        to: &D,
        stream: TcpStream,
        five_tuple: FiveTuple,
        takes: &StreamKind,
    ) -> Option<Arrived> {
        if let StreamKind::Shared(port) = takes {
            return self.establish_shared(to, stream, five_tuple, port).await;
        }
        let (handshake, silent) = (Limits::time(&self.limits.handshake_ms), Limits::time(&self.limits.silent_ms));
        let mut until = Instant::now() + handshake;
        let is_tls_only = *takes == StreamKind::Tls;
        let counts = &self.counts;
        let mut first = [0];
        match timeout(if is_tls_only { handshake } else { silent }, stream.peek(&mut first)).await {
            Ok(Ok(1..)) if is_tls_only && to.explains(first[0]) => {
                Handshakes::count(&counts.handshakes.failed);
                return Some(Arrived { stream, five_tuple, carries: Carries::Plain });
            }
            Ok(Ok(1..)) if is_tls_only => {}
            Ok(Ok(1..)) if first[0] == HANDSHAKE => until = Instant::now() + handshake,
            // STUN, ChannelData, or noise, which the worker knows how to count.
            Ok(Ok(1..)) => return Some(Arrived { stream, five_tuple, carries: Carries::Plain }),
            Ok(Ok(0) | Err(_)) => {
                if is_tls_only {
                    Handshakes::count(&counts.handshakes.failed);
                }
                return None;
            }
            Err(_) => {
                Handshakes::count(if is_tls_only { &counts.handshakes.timeout } else { &counts.silent });
                return None;
            }
        }
        self.shake_hands(to, stream, five_tuple, Vec::new(), until).await
    }

    /// Waits for the first message, which tells whether this is a client of ours or of the web server that shares the port.
    async fn establish_shared<D: Destination>(
        &self,
        to: &D,
        mut stream: TcpStream,
        five_tuple: FiveTuple,
        port: &Arc<SharedPort>,
    ) -> Option<Arrived> {
        let until = Instant::now() + Limits::time(&self.limits.handshake_ms);
        let mut bytes = Vec::new();
        let counts = &self.counts.shared;
        let is_ours = match timeout_at(until, first_message(&mut stream, &mut bytes)).await {
            Ok(Ok(Some(hello))) => port.is_ours(hello.server_name.as_deref(), &hello.protocols),
            Ok(Ok(None)) => false,
            undecided => {
                Handshakes::count(match undecided {
                    Ok(_) => &counts.closed,
                    Err(_) if bytes.is_empty() => &counts.silent,
                    Err(_) => &counts.unfinished,
                });
                return None;
            }
        };
        if is_ours {
            Handshakes::count(&counts.own);
            return self.shake_hands(to, stream, five_tuple, bytes, until).await;
        }
        Some(Arrived { stream, five_tuple, carries: Carries::Foreign(Arc::clone(port), bytes) })
    }

    /// The handshake within its time.
    async fn shake_hands<D: Destination>(
        &self,
        to: &D,
        stream: TcpStream,
        five_tuple: FiveTuple,
        bytes: Vec<u8>,
        until: Instant,
    ) -> Option<Arrived> {
        let Ok(established) = timeout_at(until, self.handshake(to, stream, bytes, five_tuple)).await else {
            Handshakes::count(&self.counts.handshakes.timeout);
            return None;
        };
        let (stream, session) = established?;
        let five_tuple = FiveTuple { transport: Transport::Tls, ..five_tuple };
        Some(Arrived { stream, five_tuple, carries: Carries::Tls(session) })
    }

    /// The handshake, once there is a place for it; nothing if it failed or had to give way.
    async fn handshake<D: Destination>(
        &self,
        to: &D,
        mut stream: TcpStream,
        bytes: Vec<u8>,
        five_tuple: FiveTuple,
    ) -> Option<(TcpStream, Box<TlsSession>)> {
        let max = || self.limits.handshakes.load(Ordering::Relaxed);
        let source = Source::from(five_tuple.client.ip());
        let counts = &self.counts.handshakes;
        let (_place, mut give_way) = self.under_way.admit_patiently(max, source, HANDSHAKE_PROTECTED).await;
        let config = self.sessions.config_for(&*to.tls()?, source);
        let established = tokio::select! {
            established = handshake(&mut stream, bytes, &config) => established,
            Ok(()) = &mut give_way => {
                Handshakes::count(&counts.refused);
                return None;
            }
        };
        match established {
            Ok(Handshake { established, rest, is_resumed }) => {
                Handshakes::count(&counts.ok);
                if is_resumed {
                    Handshakes::count(&counts.resumed);
                }
                Some((stream, Box::new(TlsSession::new(established, rest))))
            }
            Err(error) => {
                tracing::debug!(client = %five_tuple.client, %error, "TLS handshake failed");
                Handshakes::count(&counts.failed);
                None
            }
        }
    }
}
