//! Accepts streams on the control runtime, until each belongs to a worker.
//!
//! A plain stream is handed over at once. TLS handshakes and the first byte on a port for both take place
//! here, so that neither a signature nor a client that says nothing costs a worker anything: each with a time
//! limit, and so many at once (`net::half_open`, `net::fair_limit`). The loop that accepts never waits for a place.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::client_hello::{self, ClientHello, Look};
use super::counters::NetCounters;
use super::fair_limit::{FairLimit, Permit, Source};
use super::files;
use super::gate::Gate;
use super::half_open::HalfOpenStreams;
use super::handoff::Channel;
use super::handshake::{Handshake, handshake};
use super::overflow::Watched;
use super::pass_on::PassOn;
use super::proxy_header::{self, Announced};
use super::tls_resumption::ResumableSessions;
use super::tls_session::TlsSession;
use super::upgrade_messages::FromOld;
use super::worker::{Adopted, Mailbox};
use crate::address::{FiveTuple, Transport};
use crate::config::checked::{Config, SharedPort};
use crate::tls::{HANDSHAKE, HANDSHAKE_PROTECTED, Handshakes, Tls};

/// How long accepting rests when the system is out of files: the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Streams that must give way and are not closed yet while more are accepted.
const LEAVING_MAX: u64 = 16;
const LEAVING_PAUSE: Duration = Duration::from_millis(1);

/// How long a proxy may take to say whose connection it is.
const PROXY_HEADER_WITHIN: Duration = Duration::from_secs(3);

/// Bytes that are read at once while it is not known whose a connection to a shared port is.
const HELLO_READ_BYTES: usize = 2 * 1024;

/// How long a stream may wait for room on its way to another process.
const LATE_TIME: Duration = Duration::from_millis(50);

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

/// What a listener takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum StreamKind {
    Plain,
    Tls,
    /// Either, told by the first byte.
    Both,
    /// TLS, or what a web server takes: told by the first message.
    Shared(Arc<SharedPort>),
}

/// The limits of connections that no worker has yet; they follow a reload.
#[derive(Debug, Default)]
pub(super) struct Limits {
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
pub(super) struct Proxied {
    /// Of a source that is no proxy.
    pub(super) source: AtomicU64,
    /// Without a valid PROXY header in time.
    pub(super) header: AtomicU64,
}

/// Where established streams go.
enum Route {
    Workers,
    /// No worker reads: they wait. No more than were under way, because none is accepted meanwhile.
    Held(Vec<Adopted>),
    /// Another process's workers read.
    Successor(Channel),
}

/// Everything that the listeners share.
pub(super) struct Acceptor {
    limits: Limits,
    pub(super) handshakes: Handshakes,
    /// Connections on a port for both that said nothing in time.
    pub(super) silent: AtomicU64,
    /// Connections to listeners for proxies that were closed.
    pub(super) proxied: Proxied,
    /// Streams that could not be accepted.
    refused: AtomicU64,
    pub(super) tls: ArcSwapOption<Tls>,
    /// Streams without an allocation, here and at the workers.
    pub(super) half_open: Arc<HalfOpenStreams>,
    workers: Vec<(Mailbox, Arc<NetCounters>)>,
    under_way: Arc<FairLimit>,
    /// Of shared ports.
    pub(super) pass_on: Arc<PassOn>,
    /// Closed while the sockets are another process's.
    pub(super) gate: Gate,
    route: Mutex<Route>,
    /// Streams that were established here during this upgrade and passed to another process.
    late: AtomicU64,
    /// Those that could not be passed, and those of another process for which there was no place here.
    not_passed: AtomicU64,
    /// Not of one [`Tls`]: they survive a change of certificates.
    sessions: ResumableSessions,
}

impl Acceptor {
    pub(super) fn new(tls: Option<Arc<Tls>>, workers: impl Iterator<Item = (Mailbox, Arc<NetCounters>)>) -> Self {
        Self {
            limits: Limits::default(),
            handshakes: Handshakes::default(),
            silent: AtomicU64::new(0),
            proxied: Proxied::default(),
            refused: AtomicU64::new(0),
            tls: ArcSwapOption::new(tls),
            half_open: Arc::default(),
            workers: workers.collect(),
            under_way: Arc::default(),
            pass_on: Arc::default(),
            gate: Gate::default(),
            route: Mutex::new(Route::Workers),
            late: AtomicU64::new(0),
            not_passed: AtomicU64::new(0),
            sessions: ResumableSessions::default(),
        }
    }

    /// Follows a configuration.
    pub(super) fn set_limits(&self, config: &Config) {
        let ms = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u64);
        let limits = &config.limits;
        self.limits.handshake_ms.store(ms(limits.tls_handshake), Ordering::Relaxed);
        self.limits.silent_ms.store(ms(limits.tcp_unauthenticated), Ordering::Relaxed);
        self.limits.handshakes.store(limits.tls_half_open.map_or(u64::MAX, u64::from), Ordering::Relaxed);
        self.half_open.set_max(limits.tcp_half_open);
        self.pass_on.set_limits(config);
    }

    /// Streams that could not be accepted, or that gave way to others before their worker took them.
    pub(super) fn refused(&self) -> u64 {
        let gave_way: u64 = self.workers.iter().map(|(mailbox, _)| mailbox.stream_counts().1).sum();
        self.refused.load(Ordering::Relaxed) + gave_way
    }

    /// TLS handshakes whose first byte has come.
    pub(super) fn handshakes_under_way(&self) -> u64 {
        self.under_way.count()
    }

    /// Runs until it is told to stop; clients that it has accepted by then are served.
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: Arc<Watched<TcpListener>>,
        takes: StreamKind,
        proxies: Arc<[IpNet]>,
        mut stop: oneshot::Receiver<()>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stop => return,
                accepted = self.accept_next(&listener) => accepted,
            };
            match accepted {
                Ok((stream, from)) => match five_tuple(&stream, from) {
                    Ok(five_tuple) if proxies.is_empty() => self.receive(stream, five_tuple, takes.clone()),
                    Ok(five_tuple) => self.receive_of_proxy(stream, five_tuple, takes.clone(), &proxies),
                    // Gone already.
                    Err(_) => Handshakes::count(&self.refused),
                },
                Err(error) => {
                    Handshakes::count(&self.refused);
                    if !files::is_of_one_connection(&error) {
                        // Out of files or memory: don't spin.
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// The next stream. While others have yet to give way it waits in the kernel: each of them has a file that an allocation may
    /// need.
    async fn accept_next(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
        while self.half_open.leaving() > LEAVING_MAX {
            tokio::time::sleep(LEAVING_PAUSE).await;
        }
        self.gate.accept(|| listener.accept()).await
    }

    /// Counts a stream of a proxy in, which says whose it is; nothing else connects to such a listener.
    fn receive_of_proxy(
        self: &Arc<Self>,
        mut stream: TcpStream,
        five_tuple: FiveTuple,
        takes: StreamKind,
        proxies: &[IpNet],
    ) {
        let source = five_tuple.client.ip().to_canonical();
        if !proxies.iter().any(|trusted| trusted.contains(&source)) {
            tracing::debug!(%source, "a connection from none of the proxies in proxy_from");
            return Handshakes::count(&self.proxied.source);
        }
        let Some((permit, mut give_way)) = self.half_open.accept(&stream.as_fd(), five_tuple.client) else {
            return Handshakes::count(&self.refused);
        };
        let acceptor = Arc::clone(self);
        tokio::spawn(async move {
            let announced = tokio::select! {
                announced = timeout(PROXY_HEADER_WITHIN, proxy_header::read(&mut stream)) => announced,
                // Counted where the places are.
                Ok(()) = &mut give_way => return,
            };
            // From now on it is the client's, and counts for it.
            drop(permit);
            match announced {
                Ok(Ok(Announced::Client(client))) => {
                    acceptor.receive(stream, FiveTuple { client: client.into(), ..five_tuple }, takes);
                }
                Ok(Ok(Announced::Itself)) => acceptor.receive(stream, five_tuple, takes),
                Ok(Err(error)) => {
                    tracing::debug!(%source, %error, "a connection of a proxy is closed");
                    Handshakes::count(&acceptor.proxied.header);
                }
                Err(_) => Handshakes::count(&acceptor.proxied.header),
            }
        });
    }

    /// Counts a stream in, and goes on with it elsewhere if something must be waited for.
    fn receive(self: &Arc<Self>, stream: TcpStream, five_tuple: FiveTuple, takes: StreamKind) {
        let Some((permit, mut give_way)) = self.half_open.accept(&stream.as_fd(), five_tuple.client) else {
            // The last files are for HTTP.
            return Handshakes::count(&self.refused);
        };
        if takes == StreamKind::Plain {
            return self.hand_over(stream, five_tuple, None, permit);
        }
        let acceptor = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = acceptor.establish(stream, five_tuple, &takes, permit) => {}
                // Counted where the places are.
                Ok(()) = &mut give_way => {}
            }
        });
    }

    /// Waits for the first byte, which a client without anything to say never sends, then does what it asks for.
    async fn establish(&self, stream: TcpStream, five_tuple: FiveTuple, takes: &StreamKind, permit: Permit) {
        if let StreamKind::Shared(port) = takes {
            return self.establish_shared(stream, five_tuple, port, permit).await;
        }
        let (handshake, silent) = (Limits::time(&self.limits.handshake_ms), Limits::time(&self.limits.silent_ms));
        let mut until = Instant::now() + handshake;
        let is_tls_only = *takes == StreamKind::Tls;
        let mut first = [0];
        match timeout(if is_tls_only { handshake } else { silent }, stream.peek(&mut first)).await {
            Ok(Ok(1..)) if is_tls_only => {}
            Ok(Ok(1..)) if first[0] == HANDSHAKE => until = Instant::now() + handshake,
            // STUN, ChannelData, or noise, which the worker knows how to count.
            Ok(Ok(1..)) => return self.hand_over(stream, five_tuple, None, permit),
            Ok(Ok(0) | Err(_)) if is_tls_only => return Handshakes::count(&self.handshakes.failed),
            Ok(Ok(0) | Err(_)) => return,
            Err(_) => return Handshakes::count(if is_tls_only { &self.handshakes.timeout } else { &self.silent }),
        }
        self.shake_hands(stream, five_tuple, Vec::new(), until, permit).await;
    }

    /// Waits for the first message, which tells whether this is a client of ours or of the web server that shares the port.
    async fn establish_shared(
        &self,
        mut stream: TcpStream,
        five_tuple: FiveTuple,
        port: &Arc<SharedPort>,
        permit: Permit,
    ) {
        let until = Instant::now() + Limits::time(&self.limits.handshake_ms);
        let mut bytes = Vec::new();
        let counts = &self.pass_on.counts;
        let is_ours = match timeout_at(until, first_message(&mut stream, &mut bytes)).await {
            Ok(Ok(Some(hello))) => port.is_ours(hello.server_name.as_deref(), &hello.protocols),
            Ok(Ok(None)) => false,
            Ok(Err(_)) => return Handshakes::count(&counts.closed),
            Err(_) if bytes.is_empty() => return Handshakes::count(&counts.silent),
            Err(_) => return Handshakes::count(&counts.unfinished),
        };
        if is_ours {
            Handshakes::count(&counts.own);
            return self.shake_hands(stream, five_tuple, bytes, until, permit).await;
        }
        // From now on it takes a place of another kind.
        drop(permit);
        tokio::spawn(Arc::clone(&self.pass_on).run(stream, five_tuple, Arc::clone(port), bytes));
    }

    /// The handshake within its time, and the way to a worker.
    async fn shake_hands(
        &self,
        stream: TcpStream,
        five_tuple: FiveTuple,
        bytes: Vec<u8>,
        until: Instant,
        permit: Permit,
    ) {
        match timeout_at(until, self.handshake(stream, bytes, five_tuple)).await {
            Ok(Some((stream, tls))) => {
                let five_tuple = FiveTuple { transport: Transport::Tls, ..five_tuple };
                self.hand_over(stream, five_tuple, Some(tls), permit);
            }
            Ok(None) => {}
            Err(_) => Handshakes::count(&self.handshakes.timeout),
        }
    }

    /// The handshake, once there is a place for it; nothing if it failed or had to give way.
    async fn handshake(
        &self,
        mut stream: TcpStream,
        bytes: Vec<u8>,
        five_tuple: FiveTuple,
    ) -> Option<(TcpStream, Box<TlsSession>)> {
        let max = || self.limits.handshakes.load(Ordering::Relaxed);
        let source = Source::from(five_tuple.client.ip());
        let (_place, mut give_way) = self.under_way.admit_patiently(max, source, HANDSHAKE_PROTECTED).await;
        let config = self.sessions.config_for(&self.tls.load_full()?.server(), source);
        let established = tokio::select! {
            established = handshake(&mut stream, bytes, &config) => established,
            Ok(()) = &mut give_way => {
                Handshakes::count(&self.handshakes.refused);
                return None;
            }
        };
        match established {
            Ok(Handshake { established, rest, is_resumed }) => {
                Handshakes::count(&self.handshakes.ok);
                if is_resumed {
                    Handshakes::count(&self.handshakes.resumed);
                }
                Some((stream, Box::new(TlsSession::new(established, rest))))
            }
            Err(error) => {
                tracing::debug!(client = %five_tuple.client, %error, "TLS handshake failed");
                Handshakes::count(&self.handshakes.failed);
                None
            }
        }
    }

    /// To a worker, or where its sessions are by now.
    fn hand_over(&self, stream: TcpStream, five_tuple: FiveTuple, tls: Option<Box<TlsSession>>, permit: Permit) {
        let Ok(socket) = stream.into_std() else { return Handshakes::count(&self.refused) };
        let adopted = Adopted { socket, five_tuple, tls, permit, moved: None };
        match &mut *self.route() {
            Route::Workers => self.to_worker(adopted),
            Route::Held(streams) => streams.push(adopted),
            Route::Successor(channel) => self.to_successor(channel, &adopted),
        }
    }

    fn route(&self) -> MutexGuard<'_, Route> {
        // Whole after each statement.
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To the worker with the fewest streams.
    fn to_worker(&self, adopted: Adopted) {
        let fewest = self.workers.iter().min_by_key(|(mailbox, net)| {
            // Those on their way count too, or a crowd would all go to one worker.
            let (left, gave_way) = mailbox.stream_counts();
            let closed = net.streams_adopted.get().saturating_sub(net.streams_open.get());
            left.saturating_sub(gave_way).saturating_sub(closed)
        });
        if let Some((mailbox, _)) = fewest {
            mailbox.adopt(adopted);
        }
    }

    fn to_successor(&self, channel: &Channel, adopted: &Adopted) {
        let tls = adopted.tls.as_ref().map(|tls| minicbor::to_vec(tls.to_state()));
        let Ok(tls) = tls.transpose() else { return self.count_not_passed() };
        let message = FromOld::Late { five_tuple: adopted.five_tuple, tls: tls.map(Into::into) };
        match channel.send(&message, &[adopted.socket.as_fd()], LATE_TIME) {
            Ok(()) => Handshakes::count(&self.late),
            Err(_) => self.count_not_passed(),
        }
    }

    fn count_not_passed(&self) {
        Handshakes::count(&self.refused);
        Handshakes::count(&self.not_passed);
    }

    /// The workers stop reading: what is established from now on waits for what becomes of them.
    pub(super) fn hold_streams(&self) {
        self.late.store(0, Ordering::Relaxed);
        *self.route() = Route::Held(Vec::new());
    }

    /// Streams that are established here from now on, and those that wait, are another process's.
    pub(super) fn give_streams(&self, channel: Channel) {
        let before = std::mem::replace(&mut *self.route(), Route::Successor(channel));
        if let (Route::Held(streams), Route::Successor(channel)) = (before, &*self.route()) {
            streams.iter().for_each(|stream| self.to_successor(channel, stream));
        }
    }

    /// The workers read again.
    pub(super) fn take_streams_back(&self) {
        if let Route::Held(streams) = std::mem::replace(&mut *self.route(), Route::Workers) {
            streams.into_iter().for_each(|stream| self.to_worker(stream));
        }
    }

    /// How many streams were established here during the last upgrade and passed to another process.
    pub(super) fn passed_late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// How many streams that were established during an upgrade could not move.
    pub(super) fn not_passed(&self) -> u64 {
        self.not_passed.load(Ordering::Relaxed)
    }

    /// A stream that another process established; nothing if there is no place for it, or its keys make no sense.
    pub(super) fn adopt_late(&self, five_tuple: FiveTuple, tls: Option<&[u8]>, socket: OwnedFd) {
        let tls = tls.map(|bytes| TlsSession::from_state(minicbor::decode(bytes).ok()?).ok());
        let socket = std::net::TcpStream::from(socket);
        let place = self.half_open.accept(&socket, five_tuple.client);
        match (tls, place) {
            (None, Some((permit, _))) => {
                self.to_worker(Adopted { socket, five_tuple, tls: None, permit, moved: None });
            }
            (Some(Some(tls)), Some((permit, _))) => {
                self.to_worker(Adopted { socket, five_tuple, tls: Some(Box::new(tls)), permit, moved: None });
            }
            _ => self.count_not_passed(),
        }
    }
}
