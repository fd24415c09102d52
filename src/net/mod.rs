//! Sockets, threads and clocks around the pure core.
//!
//! A shell may read and send bytes, open and close sockets, tell the time and pass messages; it decides
//! nothing that a client could notice. [`start`] binds everything, then starts one thread per worker;
//! accepting TCP is left to the control runtime, which hands established streams over.
//!
//! The list below is in order from the ground up: a file uses only files that stand before it, but for the three of the
//! worker (`tests/architecture.rs` holds them to it).

// The kernel, and what it tells.
mod sys;
mod kernel;
pub(crate) mod files;
pub mod interfaces;
mod rtnetlink;
pub mod passed;

// Containers and counts.
pub(crate) mod fair_limit;
pub(crate) mod fair_map;
pub(crate) mod tls_resumption;
mod half_open;
mod overflow;
pub mod counters;
mod events;
pub mod handoff;
mod payload_rings;
mod ports;
mod relay_addresses;
mod suspects;
pub mod shared;

// What carries bytes.
mod listen;
mod udp;
pub mod record;
pub mod stream_state;
mod handshake;
mod tls_session;
mod send_queue;
mod tcp;

// The worker, its streams and its relayed sockets, which name each other.
mod relay_socket;
mod streams;
mod worker;

// What hands streams and listeners to workers.
mod accept;
mod listening;

// The whole, and what is asked of it and changes it.
mod running;
mod ask;
mod addresses;
mod reconfigure;
mod sessions;
pub(crate) mod memory;

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Barrier, Mutex};

pub(crate) use self::addresses::follow as follow_addresses;
pub use self::addresses::{NO_RELAY_ADDRESS, relay_candidates, routed_addresses};
pub use self::events::EventReceivers;
pub use self::files::raise_file_limit;
pub use self::listen::BindError;
pub(crate) use self::listen::bind_early;
pub use self::listen::granted_receive_buffer;
pub use self::overflow::SocketKind;
pub use self::ports::{PortCounts, RestingPort};
pub use self::reconfigure::Prepared;
pub use self::relay_addresses::RelayAddress;
pub use self::running::Running;
pub use self::sessions::Cursor;
pub use self::sys::user::{User, effective_uid, give_back};
pub use self::worker::{DatagramSettings, ShellSettings, TcpLimits};

use self::accept::Acceptor;
use self::ask::shell_settings;
use self::counters::NetCounters;
use self::events::Events;
use self::half_open::HalfOpenStreams;
use self::listening::Listening;
use self::overflow::Overflow;
use self::passed::Passed;
use self::relay_addresses::RelayAddresses;
use self::relay_socket::Relays;
use self::running::{Current, Handle};
use self::shared::Process;
use self::sys::Waker;
use self::worker::{AdoptedStreams, ListenerChange, Mailbox, Message, Setup, Worker};
use crate::config::checked::{Config, Workers};
use crate::failure;
use crate::protocol::counters::Counters;
use crate::protocol::ids::WorkerId;
use crate::protocol::random::Random;
use crate::protocol::revocation::Revocations;
use crate::protocol::settings::Settings;
use crate::protocol::{Parts, Server};
use crate::tls::certificates::LoadError;
use crate::tls::{Tls, watch};

/// Messages that may wait for one worker.
const INBOX: usize = 4096;

/// Accepted streams that may wait for one worker: a queue of their own, so that no flood of connections keeps a message
/// out, with a share for each network, so that none keeps another's connections out.
const ADOPTED: usize = 1024;

/// Why the server can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
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

/// Binds every listener, then starts the workers. Nothing is left behind on an error. Relay addresses that this machine
/// does not have yet are used as soon as it has them: see [`Running::look_at_addresses`].
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
    let mut listening = Listening::default();
    let plan = listening.plan(config, count, &passed)?;
    let tls = if listening::needs_tls(config) { Some(Arc::new(Tls::new(&config.tls.files)?)) } else { None };
    let inboxes = (0..count).map(|_| Inbox::new()).collect::<io::Result<Vec<_>>>()?;
    let mailboxes: Arc<Vec<Mailbox>> = Arc::new(inboxes.iter().map(|inbox| inbox.mailbox.clone()).collect());
    let acceptor =
        Arc::new(Acceptor::new(tls, inboxes.iter().map(|inbox| (inbox.mailbox.clone(), Arc::clone(&inbox.net)))));
    acceptor.set_limits(config);
    let mut secrets = Secrets::draw(config)?;
    let addresses = Arc::new(RelayAddresses::new(&config.relay.ports, secrets.seed()));
    let (_, missing) = addresses::serve(config, &addresses);
    addresses::report(&[], config, &addresses, &missing);
    let process = Arc::new(Process::new(Arc::clone(&addresses)));
    *process.revocations() = revocations;
    let own: Vec<SocketAddr> = listening.addresses(&plan).into_iter().chain(http.iter().copied()).collect();
    let settings = Arc::new(addresses::settings(&addresses, config, &own).map_err(StartError::Settings)?);
    let overflow = Arc::new(Overflow::default());
    // Streams wait in the inboxes until there are workers.
    let changes = listening.carry_out(plan, count, &acceptor, &overflow).changes;
    let (events, receivers) = Events::new();
    let common = Common {
        config,
        settings: &settings,
        process: &process,
        addresses: &addresses,
        overflow: &overflow,
        half_open: &acceptor.half_open,
        mailboxes: &mailboxes,
        events: &events,
    };
    let workers = common.start_workers(inboxes, changes, &mut secrets)?;
    let current = Current { config: Arc::new(config.clone()), http: http.to_vec() };
    let running = Running {
        workers,
        process,
        addresses,
        delivered: Mutex::new(Some(settings)),
        passed,
        listening: Mutex::new(listening),
        current: Arc::new(tokio::sync::Mutex::new(current)),
        watching: Mutex::default(),
        acceptor,
        overflow,
    };
    if let Some(tls) = running.tls() {
        watch::report(&tls.certificates);
        running.watch(&tls);
    }
    Ok((running, receivers))
}

/// One worker's queues before it runs, and where it counts.
struct Inbox {
    mailbox: Mailbox,
    messages: Receiver<Message>,
    adopted: Arc<AdoptedStreams>,
    waker: Arc<Waker>,
    net: Arc<NetCounters>,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        let (sender, messages) = sync_channel(INBOX);
        let adopted = Arc::new(AdoptedStreams::new(ADOPTED));
        let waker = Arc::new(Waker::new()?);
        Ok(Self {
            mailbox: Mailbox::new(sender, Arc::clone(&adopted), Arc::clone(&waker)),
            messages,
            adopted,
            waker,
            net: Arc::default(),
        })
    }
}

/// What is drawn at random when the process starts.
struct Secrets {
    random: Random,
    /// The key of nonces: the configured one, or one of this process.
    nonce_key: Box<[u8]>,
}

impl Secrets {
    fn draw(config: &Config) -> io::Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        let mut secrets = Self { random: Random::new(seed), nonce_key: Box::default() };
        secrets.nonce_key = match &config.nonce_key {
            Some(key) => key.expose().into(),
            None => secrets.seed().into(),
        };
        Ok(secrets)
    }

    fn seed(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes);
        bytes
    }
}

/// What all workers are made with.
struct Common<'a> {
    config: &'a Config,
    settings: &'a Arc<Settings>,
    process: &'a Arc<Process>,
    addresses: &'a Arc<RelayAddresses>,
    overflow: &'a Arc<Overflow>,
    half_open: &'a Arc<HalfOpenStreams>,
    mailboxes: &'a Arc<Vec<Mailbox>>,
    events: &'a Events,
}

impl Common<'_> {
    fn start_workers(
        &self,
        inboxes: Vec<Inbox>,
        changes: Vec<Vec<ListenerChange>>,
        secrets: &mut Secrets,
    ) -> io::Result<Vec<Handle>> {
        let wakers: Vec<_> = inboxes.iter().map(|inbox| Arc::clone(&inbox.waker)).collect();
        let rings = payload_rings::rings(&wakers);
        let begun = Arc::new(Barrier::new(inboxes.len() + 1));
        let each = inboxes.into_iter().zip(changes).zip(rings).enumerate();
        let handles: Vec<Handle> = each
            .map(|(number, ((inbox, listeners), (producers, consumers)))| {
                let id = WorkerId(number as u8);
                let counters = Arc::new(Counters::default());
                let parts = Parts {
                    worker: id,
                    workers: self.mailboxes.len(),
                    shared: Arc::clone(self.process) as _,
                    counters: Arc::clone(&counters),
                    nonce_key: secrets.nonce_key.clone(),
                    seed: secrets.seed(),
                };
                let setup = Setup {
                    id,
                    server: Server::new(parts, Arc::clone(self.settings)),
                    process: Arc::clone(self.process),
                    counters: Arc::clone(&counters),
                    net: Arc::clone(&inbox.net),
                    listeners,
                    relays: Relays::new(id, Arc::clone(self.addresses), Arc::clone(self.overflow)),
                    half_open: Arc::clone(self.half_open),
                    inbox: inbox.messages,
                    adopted: inbox.adopted,
                    waker: inbox.waker,
                    mailboxes: Arc::clone(self.mailboxes),
                    events: self.events.clone(),
                    shell: shell_settings(self.config),
                    producers,
                    consumers,
                    begun: Arc::clone(&begun),
                };
                let thread =
                    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || run_worker(setup))?;
                Ok(Handle { mailbox: inbox.mailbox, counters, net: inbox.net, thread: Mutex::new(Some(thread)) })
            })
            .collect::<io::Result<_>>()?;
        // A server that is ready has workers that listen, and whose processor time can be read. One that can't begin ends
        // the process.
        begun.wait();
        Ok(handles)
    }
}

fn run_worker(setup: Setup) {
    let id = setup.id.0;
    // A worker shares nothing that could be left half done with the others but locks, which they recover from.
    let begun = Arc::clone(&setup.begun);
    let run = std::panic::AssertUnwindSafe(|| Worker::new(setup)?.run(&begun));
    let error = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        // The panic's own message is in the log already.
        Err(_) => "a panic, which the lines before tell of".to_owned(),
    };
    tracing::error!(worker = id, %error, "a worker stopped; its clients are lost");
    // A server that silently serves a part of its clients is worse than one that is restarted.
    failure::exit(1);
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
