//! Where the streams of the relay's listeners go once they are established (`net::front`): to a worker, to the web server
//! behind a shared port, or to another process during an upgrade.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::counters::NetCounters;
use super::fair_limit::Permit;
use super::front::{Arrived, Carries, Destination, Front, Place, StreamKind};
use super::half_open::HalfOpenStreams;
use super::handoff::Channel;
use super::overflow::Watched;
use super::pass_on::PassOn;
use super::tls_session::TlsSession;
use super::upgrade_messages::FromOld;
use super::worker::{Adopted, Mailbox};
use crate::address::{ClientAddress, FiveTuple};
use crate::config::checked::Config;
use crate::tls::{Handshakes, Tls};

/// Streams that must give way and are not closed yet while more are accepted.
const LEAVING_MAX: u64 = 16;
const LEAVING_PAUSE: Duration = Duration::from_millis(1);

/// How long a stream may wait for room on its way to another process.
const LATE_TIME: Duration = Duration::from_millis(50);

/// Where established streams go.
enum Route {
    Workers,
    /// No worker reads: they wait. No more than were under way, because none is accepted meanwhile.
    Held(Vec<Adopted>),
    /// Another process's workers read.
    Successor(Channel),
}

/// Everything that the relay's listeners share.
pub(super) struct Acceptor {
    pub(super) front: Arc<Front>,
    pub(super) tls: ArcSwapOption<Tls>,
    /// Streams without an allocation, here and at the workers.
    pub(super) half_open: Arc<HalfOpenStreams>,
    workers: Vec<(Mailbox, Arc<NetCounters>)>,
    /// Of shared ports.
    pub(super) pass_on: Arc<PassOn>,
    route: Mutex<Route>,
    /// Streams that were established here during this upgrade and passed to another process.
    late: AtomicU64,
    /// Those that could not be passed, and those of another process for which there was no place here.
    not_passed: AtomicU64,
}

impl Destination for Acceptor {
    /// While others have yet to give way it waits in the kernel: each of them has a file that an allocation may need.
    async fn ready(&self) {
        while self.half_open.leaving() > LEAVING_MAX {
            tokio::time::sleep(LEAVING_PAUSE).await;
        }
    }

    /// The last files are for HTTP.
    fn place(&self, stream: &TcpStream, client: ClientAddress) -> Option<Place> {
        let (permit, give_way) = self.half_open.accept(&stream.as_fd(), client)?;
        Some(Place { permit, give_way })
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        Some(self.tls.load_full()?.server())
    }

    fn explains(&self, _first: u8) -> bool {
        false
    }

    fn take(self: &Arc<Self>, Arrived { stream, five_tuple, carries }: Arrived, place: Place) {
        match carries {
            Carries::Plain => self.hand_over(stream, five_tuple, None, place.permit),
            Carries::Tls(session) => self.hand_over(stream, five_tuple, Some(session), place.permit),
            Carries::Foreign(port, bytes) => {
                // From now on it takes a place of another kind.
                drop(place);
                tokio::spawn(Arc::clone(&self.pass_on).run(stream, five_tuple, port, bytes));
            }
        }
    }

    /// Counted where the places are.
    fn gave_way(&self) {}
}

impl Acceptor {
    pub(super) fn new(tls: Option<Arc<Tls>>, workers: impl Iterator<Item = (Mailbox, Arc<NetCounters>)>) -> Self {
        let pass_on = Arc::<PassOn>::default();
        Self {
            front: Arc::new(Front::counting(Arc::clone(&pass_on.counts))),
            tls: ArcSwapOption::new(tls),
            half_open: Arc::default(),
            workers: workers.collect(),
            pass_on,
            route: Mutex::new(Route::Workers),
            late: AtomicU64::new(0),
            not_passed: AtomicU64::new(0),
        }
    }

    /// Follows a configuration.
    pub(super) fn set_limits(&self, config: &Config) {
        let limits = &config.limits;
        let half_open = limits.tls_half_open.map(u64::from);
        self.front.set_limits(limits.tls_handshake, limits.tcp_unauthenticated, half_open);
        self.half_open.set_max(limits.tcp_half_open);
        self.pass_on.set_limits(config);
    }

    /// Streams that could not be accepted, or that gave way to others before their worker took them.
    pub(super) fn refused(&self) -> u64 {
        let gave_way: u64 = self.workers.iter().map(|(mailbox, _)| mailbox.stream_counts().1).sum();
        self.front.counts.refused.load(Ordering::Relaxed) + gave_way
    }

    /// Runs until it is told to stop; clients that it has accepted by then are served.
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: Arc<Watched<TcpListener>>,
        takes: StreamKind,
        proxies: Arc<[IpNet]>,
        stop: oneshot::Receiver<()>,
    ) {
        let stop = async {
            // Its sender is dropped.
            let _ = stop.await;
        };
        Arc::clone(&self.front).accept(WatchedListener(listener), self, takes, proxies, stop).await;
    }

    /// To a worker, or where its sessions are by now.
    fn hand_over(&self, stream: TcpStream, five_tuple: FiveTuple, tls: Option<Box<TlsSession>>, permit: Permit) {
        let Ok(socket) = stream.into_std() else { return Handshakes::count(&self.front.counts.refused) };
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
        Handshakes::count(&self.front.counts.refused);
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

/// A listener as the front wants it: two steps in one.
struct WatchedListener(Arc<Watched<TcpListener>>);

impl std::ops::Deref for WatchedListener {
    type Target = TcpListener;

    fn deref(&self) -> &TcpListener {
        &self.0
    }
}
