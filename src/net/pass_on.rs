//! Connections to a shared port that are not for this server: passed on to the web server behind it, both ways, on the
//! control runtime.
//!
//! Nothing that they do reaches a worker. Each has a place with a share for its source (`net::fair_limit`), a limit on
//! the time in which nothing moves, and holds at most [`CHUNK`] bytes each way beside what the kernel holds; an idle one
//! holds none. A way that has ended is ended on the other side too, and the other way goes on.

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::fair_limit::{FairLimit, Permit};
use super::files;
use super::handoff::Channel;
use super::proxy_header;
use super::upgrade_messages::{FromOld, PassedOnNote, WayNote};
use crate::address::{ClientAddress, FiveTuple};
use crate::clock;
use crate::config::checked::{Config, SharedPort};
use crate::time::Ticks;

/// Bytes that are carried at once.
const CHUNK: usize = 16 * 1024;

/// How long a web server may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How often a connection that carries something says so to the limit.
const TOUCH_EVERY: Duration = Duration::from_secs(1);

/// How often the log tells that a web server can't be reached, and that it can again.
const TELL_EVERY: u64 = 60;

/// How long connections may take to move to another process, and how often it is looked whether all have.
const MOVE_TIME: Duration = Duration::from_secs(2);
const MOVE_LOOK: Duration = Duration::from_millis(5);

/// How long one of them may wait for room on its way.
const SEND_TIME: Duration = Duration::from_millis(50);

/// What a time that has no limit is: nothing waits for a century.
const NO_LIMIT: Duration = Duration::from_secs(3_000_000_000);

/// What became of connections to shared ports before they were anybody's.
#[derive(Debug, Default)]
pub(super) struct SharedCounts {
    /// For this server.
    pub own: AtomicU64,
    /// Passed on to the web server.
    pub passed_on: AtomicU64,
    /// The web server could not be reached.
    pub backend_down: AtomicU64,
    /// Nothing came in time.
    pub silent: AtomicU64,
    /// The start of a ClientHello came, and not the rest in time.
    pub unfinished: AtomicU64,
    /// The client ended before it could be told whose it is.
    pub closed: AtomicU64,
    /// There was no file for it.
    pub refused: AtomicU64,
}

impl SharedCounts {
    /// Each with its name for metrics.
    pub(super) fn results(&self) -> [(&'static str, u64); 7] {
        [
            ("own", &self.own),
            ("passed_on", &self.passed_on),
            ("backend_down", &self.backend_down),
            ("silent", &self.silent),
            ("unfinished", &self.unfinished),
            ("closed", &self.closed),
            ("refused", &self.refused),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

/// What has been carried, and why it ended.
#[derive(Debug, Default)]
struct Carried {
    to_backend: AtomicU64,
    to_client: AtomicU64,
    /// Both ends had said all.
    done: AtomicU64,
    /// One end broke off.
    broken: AtomicU64,
    /// Nothing moved for `limits.shared_idle`.
    idle: AtomicU64,
    /// Could not be given to the next process at an upgrade.
    not_moved: AtomicU64,
}

/// Whether a web server can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackendState {
    /// What the last attempt to connect met; `None` if it succeeded, or if there was none.
    pub error: Option<String>,
    /// How many attempts failed.
    pub failures: u64,
    /// When the log last told that it can't be reached.
    told: Option<Ticks>,
    /// Whether that holds for the log.
    is_told_down: bool,
}

/// What of a shared port's traffic is for others.
pub(super) struct PassOn {
    max: AtomicU64,
    idle_ms: AtomicU64,
    places: Arc<FairLimit>,
    pub(super) counts: Arc<SharedCounts>,
    carried: Carried,
    backends: Mutex<BTreeMap<SocketAddr, BackendState>>,
    /// The process that goes on with them, once there is one.
    successor: watch::Sender<Option<Arc<Channel>>>,
}

impl Default for PassOn {
    fn default() -> Self {
        Self {
            max: AtomicU64::new(u64::MAX),
            idle_ms: AtomicU64::new(0),
            places: Arc::default(),
            counts: Arc::default(),
            carried: Carried::default(),
            backends: Mutex::default(),
            successor: watch::Sender::new(None),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl PassOn {
    /// Follows a configuration.
    pub(super) fn set_limits(&self, config: &Config) {
        let idle = config.limits.shared_idle.map_or(0, |time| time.as_millis() as u64);
        self.idle_ms.store(idle, Ordering::Relaxed);
        self.max.store(config.limits.shared_connections.map_or(u64::MAX, u64::from), Ordering::Relaxed);
        let wanted: Vec<_> = config.listen.iter().filter_map(|of| Some(of.shared.as_ref()?.backend)).collect();
        let mut backends = self.backends();
        backends.retain(|address, _| wanted.contains(address));
        for address in wanted {
            backends.entry(address).or_default();
        }
    }

    fn backends(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, BackendState>> {
        // Whole after each statement.
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The web servers of the configuration.
    pub(super) fn backend_states(&self) -> Vec<(SocketAddr, BackendState)> {
        self.backends().iter().map(|(address, state)| (*address, state.clone())).collect()
    }

    /// How many are open.
    pub(super) fn open(&self) -> u64 {
        self.places.count()
    }

    /// Bytes to web servers, and to their clients.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [&self.carried.to_backend, &self.carried.to_client].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Ended ones by reason.
    pub(super) fn ended(&self) -> [(&'static str, u64); 5] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let carried = &self.carried;
        [
            ("done", of(&carried.done)),
            ("broken", of(&carried.broken)),
            ("idle", of(&carried.idle)),
            ("gave_way", self.places.evicted()),
            ("not_moved", of(&carried.not_moved)),
        ]
    }

    /// The limit, which leaves most files to others: each connection has two.
    fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed).min((files::unproven_max() / 2).max(1))
    }

    fn admit(&self, client: &TcpStream, of: ClientAddress) -> Option<(Permit, oneshot::Receiver<()>)> {
        let mut max = self.max();
        if files::is_reserved(client) {
            if files::is_nearly_last(client) {
                return None;
            }
            max = max.min(self.places.count());
        }
        Some(self.places.admit_task(max, of.ip().into()))
    }

    fn idle(&self) -> Duration {
        match self.idle_ms.load(Ordering::Relaxed) {
            0 => NO_LIMIT,
            ms => Duration::from_millis(ms),
        }
    }

    /// Passes a connection on, of which these bytes were read; runs until it has ended.
    pub(super) async fn run(
        self: Arc<Self>,
        client: TcpStream,
        five_tuple: FiveTuple,
        port: Arc<SharedPort>,
        first: Vec<u8>,
    ) {
        let Some((permit, mut give_way)) = self.admit(&client, five_tuple.client) else {
            return count(&self.counts.refused);
        };
        let mut successor = self.successor.subscribe();
        let connecting = timeout(CONNECT_WITHIN, TcpStream::connect(port.backend));
        let connected = tokio::select! {
            connected = connecting => connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            Ok(()) = &mut give_way => return,
            _ = has_come(&mut successor) => return count(&self.carried.not_moved),
        };
        let backend = match connected.and_then(|backend| backend.set_nodelay(true).map(|()| backend)) {
            Ok(backend) => backend,
            Err(error) => {
                self.note_failure(port.backend, &error);
                return count(&self.counts.backend_down);
            }
        };
        self.note_success(port.backend);
        count(&self.counts.passed_on);
        let mut unsent = proxy_header::written(port.send_proxy, five_tuple.client.into(), five_tuple.server.into());
        unsent.extend(first);
        let passing = Passing { client, backend, to_backend: Way::with(unsent), to_client: Way::default() };
        self.carry(passing, five_tuple.client, &permit, give_way).await;
    }

    /// Carries until both ways have ended, or something else ends it.
    async fn carry(
        &self,
        mut passing: Passing,
        of: ClientAddress,
        permit: &Permit,
        mut give_way: oneshot::Receiver<()>,
    ) {
        let (mut moved, mut touched) = (Instant::now(), Instant::now());
        let mut look = std::pin::pin!(sleep_until(moved + self.idle()));
        // Made once: each has to be told of a successor.
        let mut successor = self.successor.subscribe();
        let why = loop {
            // A fast pair of ends must not keep the runtime from everything else.
            tokio::task::consume_budget().await;
            let Passing { client, backend, to_backend, to_client } = &mut passing;
            if to_backend.is_over() && to_client.is_over() {
                break &self.carried.done;
            }
            let (bytes, count) = tokio::select! {
                bytes = to_backend.go_on(client, backend) => (bytes, &self.carried.to_backend),
                bytes = to_client.go_on(backend, client) => (bytes, &self.carried.to_client),
                () = &mut look => {
                    let until = moved + self.idle();
                    if until <= Instant::now() {
                        break &self.carried.idle;
                    }
                    look.as_mut().reset(until);
                    continue;
                }
                // Counted where the places are.
                Ok(()) = &mut give_way => return,
                successor = has_come(&mut successor) => return self.give(&passing, of, &successor),
            };
            let Ok(bytes) = bytes else { break &self.carried.broken };
            count.fetch_add(bytes as u64, Ordering::Relaxed);
            moved = Instant::now();
            if moved - touched > TOUCH_EVERY {
                permit.touch();
                touched = moved;
            }
        };
        count(why);
    }

    /// Gives every connection to another process, and waits until that is done, but no longer than [`MOVE_TIME`]. Blocks.
    pub(super) fn give_all(&self, successor: Channel) {
        self.successor.send_replace(Some(Arc::new(successor)));
        let looks = MOVE_TIME.as_millis() / MOVE_LOOK.as_millis();
        for _ in 0..looks {
            if self.open() == 0 {
                return;
            }
            std::thread::sleep(MOVE_LOOK);
        }
        self.abandon_all();
    }

    /// Counts those that end with this process.
    pub(super) fn abandon_all(&self) {
        self.carried.not_moved.fetch_add(self.open(), Ordering::Relaxed);
    }

    fn give(&self, passing: &Passing, client: ClientAddress, successor: &Channel) {
        let Passing { client: socket, backend, to_backend, to_client } = passing;
        let note = PassedOnNote { client, to_backend: to_backend.note(), to_client: to_client.note() };
        let sockets = [socket.as_fd(), backend.as_fd()];
        if successor.send(&FromOld::PassedOn(note), &sockets, SEND_TIME).is_err() {
            count(&self.carried.not_moved);
        }
    }

    /// Goes on with a connection of another process; its sockets come with it, the client's first.
    pub(super) fn adopt(self: &Arc<Self>, note: PassedOnNote, sockets: Vec<OwnedFd>) {
        let stream = |socket: OwnedFd| TcpStream::from_std(std::net::TcpStream::from(socket)).ok();
        let mut streams = sockets.into_iter().map_while(stream);
        let (Some(client), Some(backend)) = (streams.next(), streams.next()) else {
            return count(&self.carried.not_moved);
        };
        let PassedOnNote { client: of, to_backend, to_client } = note;
        let Some((permit, give_way)) = self.admit(&client, of) else { return count(&self.carried.not_moved) };
        let passing = Passing { client, backend, to_backend: to_backend.into(), to_client: to_client.into() };
        let own = Arc::clone(self);
        tokio::spawn(async move { own.carry(passing, of, &permit, give_way).await });
    }

    fn note_failure(&self, address: SocketAddr, error: &io::Error) {
        tracing::debug!(%address, %error, "a connection of a shared port is closed: its web server can't be reached");
        let now = clock::now().ticks;
        let mut backends = self.backends();
        // One that the configuration has no more is not told of.
        let Some(state) = backends.get_mut(&address) else { return };
        state.failures += 1;
        state.error = Some(error.to_string());
        let is_due = state.told.is_none_or(|told| now >= told.plus_seconds(TELL_EVERY));
        if !state.is_told_down && is_due {
            (state.is_told_down, state.told) = (true, Some(now));
            drop(backends);
            tracing::warn!(
                %address,
                %error,
                "listen.shared: the web server can't be reached, so its clients are closed; start it, or correct backend"
            );
        }
    }

    fn note_success(&self, address: SocketAddr) {
        let mut backends = self.backends();
        let Some(state) = backends.get_mut(&address) else { return };
        state.error = None;
        if std::mem::take(&mut state.is_told_down) {
            drop(backends);
            tracing::info!(%address, "listen.shared: the web server can be reached again");
        }
    }
}

/// Waits until another process goes on with all of them.
async fn has_come(successor: &mut watch::Receiver<Option<Arc<Channel>>>) -> Arc<Channel> {
    loop {
        if let Some(channel) = &*successor.borrow_and_update() {
            return Arc::clone(channel);
        }
        if successor.changed().await.is_err() {
            // There is none to come.
            std::future::pending::<()>().await;
        }
    }
}

/// A connection that is passed on.
struct Passing {
    client: TcpStream,
    backend: TcpStream,
    to_backend: Way,
    to_client: Way,
}

/// One way of it.
#[derive(Default)]
struct Way {
    /// Was read, and is not written yet.
    unsent: Vec<u8>,
    /// Nothing more will come.
    has_ended: bool,
    /// The other side has been told.
    is_shut: bool,
}

impl From<WayNote> for Way {
    fn from(note: WayNote) -> Self {
        Self { unsent: note.unsent, has_ended: note.has_ended, is_shut: note.is_shut }
    }
}

impl Way {
    fn note(&self) -> WayNote {
        WayNote { unsent: self.unsent.clone(), has_ended: self.has_ended, is_shut: self.is_shut }
    }

    const fn with(unsent: Vec<u8>) -> Self {
        Self { unsent, has_ended: false, is_shut: false }
    }

    const fn is_over(&self) -> bool {
        self.is_shut
    }

    /// Waits for what is next and does it; gives how many bytes moved. May be dropped at any moment and begun anew.
    async fn go_on(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        loop {
            if !self.unsent.is_empty() {
                to.writable().await?;
                match to.try_write(&self.unsent) {
                    Ok(bytes) => {
                        self.unsent.drain(..bytes);
                        if self.unsent.is_empty() {
                            // An idle connection holds no memory.
                            self.unsent = Vec::new();
                        }
                        return Ok(bytes);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            } else if self.is_shut {
                std::future::pending::<()>().await;
            } else if self.has_ended {
                SockRef::from(to).shutdown(Shutdown::Write)?;
                self.is_shut = true;
                return Ok(0);
            } else {
                from.readable().await?;
                if let Some(bytes) = self.take(from, to)? {
                    return Ok(bytes);
                }
            }
        }
    }

    /// Reads once, and writes as much of it as the other side takes; nothing if there was nothing.
    fn take(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<Option<usize>> {
        let mut chunk = [0; CHUNK];
        let read = match from.try_read(&mut chunk) {
            Ok(0) => {
                self.has_ended = true;
                return Ok(Some(0));
            }
            Ok(read) => chunk.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let written = match to.try_write(read) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.unsent.extend_from_slice(read.get(written..).unwrap_or_default());
        Ok(Some(written))
    }
}
