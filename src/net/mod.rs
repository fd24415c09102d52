//! Sockets, threads and clocks around the pure core.
//!
//! A shell may read and send bytes, open and close sockets, tell the time and pass messages; it decides
//! nothing that a client could notice. [`start`] binds everything, then starts one thread per worker;
//! accepting TCP is left to the control runtime, which hands established streams over.

mod accept;
pub mod clock;
pub mod counters;
mod handover;
pub mod interfaces;
mod kernel;
mod listen;
mod listening;
pub(crate) mod memory;
mod overflow;
pub mod passed;
mod ports;
mod relay_socket;
mod sessions;
pub mod shared;
mod streams;
mod sys;
mod tcp;
mod tls_session;
mod udp;
mod worker;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

pub use self::listen::BindError;
pub use self::listen::granted_receive_buffer;
pub use self::overflow::SocketKind;
pub use self::ports::Census;
pub use self::sessions::Cursor;
pub use self::sys::raise_file_limit;
pub use self::worker::{DatagramSettings, ShellSettings, TcpLimits};

use self::accept::Reception;
use self::counters::NetCounters;
use self::listening::{Current, Listening};
use self::overflow::Overflow;
use self::passed::Passed;
use self::relay_socket::{Pools, Relays};
use self::shared::{Process, RelayAddress};
use self::sys::Waker;
use self::worker::{Events, Mailbox, Message, Setup, Worker};
use crate::config::checked::{Config, Workers};
use crate::protocol::accounting::SessionRecord;
use crate::protocol::address::Transport;
use crate::protocol::border::{EndReason, Event, Selector, WorkerId};
use crate::protocol::counters::Counters;
use crate::protocol::genuine::GenuineCounts;
use crate::protocol::random::Random;
use crate::protocol::revocation::Revocations;
use crate::protocol::settings::{LocalAddresses, Settings};
use crate::protocol::{Parts, Server};
use crate::tls::certificates::LoadError;
use crate::tls::{Handshakes, Tls, watch};

/// Messages that may wait for one worker.
const INBOX: usize = 4096;

/// Session events, and refusals, that may wait for the log.
const SESSION_EVENTS: usize = 65_536;
const REFUSAL_EVENTS: usize = 1024;

/// Why the server can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A relay address that is not this machine's.
    #[error(
        "relay.addresses: can't relay from {address}: {cause}; name an address of this machine (see `ip address`), and the public one in relay.external"
    )]
    RelayAddress {
        /// The address.
        address: IpAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// No address was configured and none was found.
    #[error("relay.addresses: this machine has no route, so no address to relay from was found; name one")]
    NoRelayAddress,
    /// A certificate or its key.
    #[error("tls: {0}")]
    Tls(#[from] LoadError),
    /// The settings contradict each other.
    #[error("{0}")]
    Settings(String),
    /// The system has no more threads, files or entropy.
    #[error("can't start a worker: {0}")]
    System(#[from] io::Error),
}

struct Handle {
    mailbox: Mailbox,
    counters: Arc<Counters>,
    net: Arc<NetCounters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    fn take_thread(&self) -> Option<JoinHandle<()>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_finished(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// The running relay.
pub struct Running {
    workers: Vec<Handle>,
    process: Arc<Process>,
    pools: Arc<Pools>,
    passed: Passed,
    listening: Mutex<Listening>,
    /// Held while something changes.
    current: tokio::sync::Mutex<Current>,
    watching: Mutex<Vec<AbortHandle>>,
    reception: Arc<Reception>,
    overflow: Arc<Overflow>,
}

/// What the workers tell: sessions' beginnings and ends, and refusals.
pub struct EventReceivers {
    /// Never lost while the log keeps up with 65,536 behind.
    pub sessions: mpsc::Receiver<Event>,
    /// Lost first in a flood; the counters have them all.
    pub refusals: mpsc::Receiver<Event>,
    is_kept: Arc<AtomicBool>,
}

impl EventReceivers {
    /// Nobody but the log hears of sessions: what its level leaves out need not be told.
    pub fn for_the_log_alone(&self) {
        self.is_kept.store(false, Ordering::Relaxed);
    }
}

/// Binds every listener, checks every relay address, then starts the workers. Nothing is left behind on an error.
///
/// `http` are our own HTTP listeners, which are never peers; `passed` are sockets that were open before us;
/// `revocations` are those of an earlier life. Must be called inside a tokio runtime, which
/// accepts TCP connections from then on.
///
/// # Errors
/// [`StartError`], naming the key, the value and the remedy.
pub fn start(
    config: &Config,
    http: &[SocketAddr],
    passed: Passed,
    revocations: Revocations,
) -> Result<(Running, EventReceivers), StartError> {
    let count = worker_count(config);
    let addresses = relay_addresses(config)?;
    let mut listening = Listening::default();
    let plan = listening.plan(config, count, &passed)?;
    let tls = if listening::needs_tls(config) { Some(Arc::new(Tls::new(&config.tls.files)?)) } else { None };
    let process = Arc::new(Process::new(&addresses));
    *process.revocations() = revocations;
    let mut inboxes = Vec::with_capacity(count);
    let mut mailboxes = Vec::with_capacity(count);
    let mut nets = Vec::with_capacity(count);
    for _ in 0..count {
        let (sender, inbox) = sync_channel(INBOX);
        let waker = Arc::new(Waker::new()?);
        mailboxes.push(Mailbox::new(sender, Arc::clone(&waker)));
        inboxes.push((inbox, waker));
        nets.push(Arc::new(NetCounters::default()));
    }
    let mailboxes = Arc::new(mailboxes);
    let reception = Arc::new(Reception::new(tls, mailboxes.iter().cloned().zip(nets.iter().cloned())));
    reception.limits.set(config);
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    let mut random = Random::new(seed);
    let mut bytes = || {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        bytes
    };
    let nonce_key: Box<[u8]> = config.auth.nonce_key.as_ref().map_or_else(|| bytes().into(), |key| key.expose().into());
    let overflow = Arc::new(Overflow::default());
    let pools = Pools::new(&addresses, &config.relay.ports, &mut Random::new(bytes()), Arc::clone(&overflow));
    let pools = Arc::new(pools);
    let own: Vec<SocketAddr> = listening.addresses(&plan).into_iter().chain(http.iter().copied()).collect();
    let settings = Arc::new(settings(&process, config, &own).map_err(StartError::Settings)?);
    // Streams wait in the inboxes until there are workers.
    let changes = listening.carry_out(plan, count, &reception, &overflow)?.changes;
    let (sessions, sessions_out) = mpsc::channel(SESSION_EVENTS);
    let (refusals, refusals_out) = mpsc::channel(REFUSAL_EVENTS);
    let is_kept = Arc::new(AtomicBool::new(true));
    let events = Events { sessions, refusals, is_kept: Arc::clone(&is_kept) };
    let mut workers = Vec::with_capacity(count);

    let wakers: Vec<_> = inboxes.iter().map(|(_, waker)| Arc::clone(waker)).collect();
    let rings = handover::rings(&wakers);
    for (((number, (inbox, waker)), changes), (givers, takers)) in
        inboxes.into_iter().enumerate().zip(changes).zip(rings)
    {
        let id = WorkerId(number as u8);
        let counters = Arc::new(Counters::default());
        let net = Arc::clone(&nets[number]);
        let parts = Parts {
            worker: id,
            workers: count,
            shared: Arc::clone(&process) as _,
            counters: Arc::clone(&counters),
            nonce_key: nonce_key.clone(),
            seed: bytes(),
        };
        let server = Server::new(parts, Arc::clone(&settings));
        let setup = Setup {
            id,
            server,
            counters: Arc::clone(&counters),
            net: Arc::clone(&net),
            listeners: changes,
            relays: Relays::new(id, Arc::clone(&process), Arc::clone(&pools)),
            inbox,
            waker,
            mailboxes: Arc::clone(&mailboxes),
            events: events.clone(),
            shell: shell_settings(config),
            givers,
            takers,
        };
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || run_worker(setup))?;
        let mailbox = mailboxes[number].clone();
        workers.push(Handle { mailbox, counters, net, thread: Mutex::new(Some(thread)) });
    }
    let running = Running {
        workers,
        process,
        pools,
        passed,
        listening: Mutex::new(listening),
        current: tokio::sync::Mutex::new(Current { config: config.clone(), http: http.to_vec() }),
        watching: Mutex::default(),
        reception,
        overflow,
    };
    if let Some(tls) = running.tls() {
        watch::report(&tls.certificates);
        running.watch(&tls);
    }
    Ok((running, EventReceivers { sessions: sessions_out, refusals: refusals_out, is_kept }))
}

fn run_worker(setup: Setup) {
    let id = setup.id.0;
    // A worker shares nothing that could be left half done with the others but locks, which they recover from.
    let run = std::panic::AssertUnwindSafe(|| Worker::new(setup).and_then(Worker::run));
    let error = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        // The panic's own message is on standard error already.
        Err(_) => "a broken assumption".to_owned(),
    };
    tracing::error!(worker = id, %error, "a worker stopped; its clients are lost");
    // A server that silently serves a part of its clients is worse than one that is restarted.
    std::process::exit(1);
}

/// How many threads relay.
pub(crate) fn worker_count(config: &Config) -> usize {
    match config.workers {
        Workers::Count(count) => usize::from(count),
        Workers::Auto => match std::thread::available_parallelism().map_or(1, usize::from) {
            0..=2 => 1,
            cores => cores.min(256),
        },
    }
}

fn shell_settings(config: &Config) -> ShellSettings {
    ShellSettings {
        tcp: TcpLimits {
            queue_bytes: config.limits.tcp_queue.unwrap_or(usize::MAX),
            unauthenticated_ms: config.limits.tcp_unauthenticated.map_or(0, |time| time.as_millis() as u64),
        },
        datagrams: DatagramSettings {
            segmentation_offload: config.relay.segmentation_offload,
            coalesce_microseconds: config.relay.coalesce_microseconds,
        },
    }
}

/// The configured addresses, or the one of each family that the routes give; each proven to be ours.
fn relay_addresses(config: &Config) -> Result<Vec<RelayAddress>, StartError> {
    let locals = if config.relay.addresses.is_empty() { routed_addresses() } else { config.relay.addresses.clone() };
    if locals.is_empty() {
        return Err(StartError::NoRelayAddress);
    }
    for address in &locals {
        UdpSocket::bind((*address, 0)).map_err(|cause| StartError::RelayAddress { address: *address, cause })?;
    }
    Ok(locals
        .into_iter()
        .map(|local| RelayAddress { local, advertised: config.relay.external.advertised(local) })
        .collect())
}

/// The source addresses that the routing table chooses towards the world; no packet is sent.
#[must_use]
pub fn routed_addresses() -> Vec<IpAddr> {
    let source = |bind: &str, towards: &str| {
        let socket = UdpSocket::bind((bind, 0)).ok()?;
        socket.connect((towards, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
    };
    // Any global address will do: connecting a UDP socket only looks the route up.
    [source("0.0.0.0", "8.8.8.8"), source("::", "2001:4860:4860::8888")].into_iter().flatten().collect()
}

/// What the core needs of a configuration, with this machine's addresses as they are now.
fn settings(process: &Process, config: &Config, listeners: &[SocketAddr]) -> Result<Settings, String> {
    let interfaces: Vec<IpAddr> = interfaces::addresses()
        .map_err(|error| format!("can't read this machine's addresses: {error}"))?
        .into_iter()
        .map(|interface| interface.address)
        .collect();
    let own = process
        .addresses()
        .flat_map(|address| [address.local, address.advertised])
        .filter(|ip| !ip.is_loopback())
        .collect();
    let listeners = listeners.iter().map(|address| (address.ip(), address.port())).collect();
    let local = LocalAddresses { own, interfaces, listeners };
    let has = |ipv4: bool| process.addresses().any(|address| address.advertised.is_ipv4() == ipv4);
    config.settings(local, has(true), has(false)).map_err(|error| error.to_string())
}

impl Running {
    fn settings(&self, config: &Config, listeners: &[SocketAddr]) -> Result<Settings, String> {
        settings(&self.process, config, listeners)
    }

    /// Listeners for new clients as they are bound: port 0 has become a number.
    #[must_use]
    pub fn listeners(&self) -> Vec<(Transport, SocketAddr)> {
        listening::lock(&self.listening).listeners()
    }

    /// Sockets that were open before us.
    #[must_use]
    pub const fn passed(&self) -> &Passed {
        &self.passed
    }

    /// The addresses relayed from.
    pub fn relay_addresses(&self) -> impl Iterator<Item = RelayAddress> {
        self.process.addresses()
    }

    /// The counters of every worker.
    pub fn counters(&self) -> impl Iterator<Item = (&Counters, &NetCounters)> {
        self.workers.iter().map(|worker| (&*worker.counters, &*worker.net))
    }

    /// What each worker's thread took of a processor, in nanoseconds, and its inbox: messages that wait, and those
    /// that found it full.
    pub fn workers(&self) -> impl Iterator<Item = (Option<u64>, u64, u64)> {
        self.workers.iter().map(|worker| {
            let taken = worker.net.messages.get();
            let (left, refused) = worker.mailbox.counts();
            // A message may be taken before it is counted.
            (worker.net.processor.nanoseconds(), left.saturating_sub(taken), refused)
        })
    }

    /// What the ports of each relay address do now.
    pub fn relay_ports(&self) -> impl Iterator<Item = (RelayAddress, Census)> {
        self.pools.census(clock::now().ticks)
    }

    /// Packets that the kernel dropped at all sockets of a kind that ever were.
    #[must_use]
    pub fn kernel_drops(&self, kind: SocketKind) -> u64 {
        self.overflow.dropped(kind)
    }

    /// TCP connections that could not be accepted or handed to a worker.
    #[must_use]
    pub fn streams_refused(&self) -> u64 {
        self.reception.refused.load(Ordering::Relaxed)
    }

    /// How many allocations are counted: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        self.process.usage()
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        self.process.busiest_client()
    }

    /// What handshakes use; nothing if no listener takes TLS.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.reception.tls.load_full()
    }

    /// Handshakes under way on the listeners of clients.
    #[must_use]
    pub fn handshakes_under_way(&self) -> u64 {
        self.reception.half_open()
    }

    /// Follows the certificate files.
    fn watch(&self, tls: &Tls) {
        let watching = tokio::spawn(watch::watch(Arc::clone(&tls.certificates)));
        self.watching.lock().unwrap_or_else(PoisonError::into_inner).push(watching.abort_handle());
    }

    /// What became of handshakes.
    #[must_use]
    pub fn handshakes(&self) -> &Handshakes {
        &self.reception.handshakes
    }

    /// Connections on a port for TLS and plain streams that said nothing in time.
    #[must_use]
    pub fn streams_silent(&self) -> u64 {
        self.reception.silent.load(Ordering::Relaxed)
    }

    /// Reads the certificates that a configuration names; established streams keep what they have.
    pub async fn renew_certificates(&self, config: &Config) {
        // Without certificates the check has found that no listener needs any.
        if let Some(tls) = self.tls().filter(|_| !config.tls.files.is_empty()) {
            watch::renew(&tls.certificates, &config.tls.files).await;
        }
    }

    /// Every live session; asked of the workers one message each.
    pub async fn sessions(&self) -> Vec<SessionRecord> {
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (sender, answer) = oneshot::channel();
            if worker.mailbox.send(Message::Inspect(sender)).is_ok() {
                answers.push(answer);
            }
        }
        let mut sessions = Vec::new();
        for answer in answers {
            if let Ok(Ok(of_worker)) = tokio::time::timeout(Duration::from_secs(2), answer).await {
                sessions.extend(of_worker);
            }
        }
        sessions
    }

    /// The numbers of the workers that don't answer in time: their loops are stuck.
    pub async fn silent_workers(&self, within: Duration) -> Vec<usize> {
        let deadline = tokio::time::Instant::now() + within;
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (sender, answer) = oneshot::channel();
            // A full inbox is not emptied by anybody either.
            answers.push(worker.mailbox.send(Message::Ping(sender)).is_ok().then_some(answer));
        }
        let mut silent = Vec::new();
        for (number, answer) in answers.into_iter().enumerate() {
            let answered = match answer {
                Some(answer) => matches!(tokio::time::timeout_at(deadline, answer).await, Ok(Ok(()))),
                None => false,
            };
            if !answered {
                silent.push(number);
            }
        }
        silent
    }

    /// Ends the sessions that an operator means and tells how many there were.
    pub async fn close(&self, which: &Selector, reason: EndReason) -> usize {
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            let mut message = Message::Close { which: which.clone(), reason, done };
            // Nobody may be forgotten because an inbox was full for a moment; a worker that is gone has no session.
            while let Err(back) = worker.mailbox.send(message) {
                if worker.is_finished() {
                    break;
                }
                message = back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            answers.push(answer);
        }
        let mut closed = 0;
        for answer in answers {
            closed += answer.await.unwrap_or(0);
        }
        closed
    }

    /// Who proved to hold a credential, and what came of it.
    #[must_use]
    pub fn genuine(&self) -> GenuineCounts {
        self.process.genuine()
    }

    /// Who is shut out; whoever changes it must end the live sessions too, with [`Running::close`].
    pub fn revocations(&self) -> MutexGuard<'_, Revocations> {
        self.process.revocations()
    }

    /// No new allocations once this returns.
    pub async fn drain(&self) {
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            let mut message = Message::Drain(done);
            while let Err(back) = worker.mailbox.send(message) {
                if worker.is_finished() {
                    break;
                }
                message = back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            answers.push(answer);
        }
        for answer in answers {
            // A worker that is gone admits nobody either.
            let _ = answer.await;
        }
    }

    /// Ends every allocation, writes every record and waits for the threads.
    pub fn stop(&self) {
        listening::lock(&self.listening).stop();
        for task in &*self.watching.lock().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
        for worker in &self.workers {
            // Another caller has stopped it, or is about to.
            let Some(thread) = worker.take_thread() else { continue };
            let mut message = Message::Stop;
            while !thread.is_finished() {
                match worker.mailbox.send(message) {
                    Ok(()) => break,
                    Err(back) => message = back,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
