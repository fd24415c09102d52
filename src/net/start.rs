//! Starts a relay: inboxes, listeners, one thread for each worker. A process that takes over from another one
//! (`net::take_over`) is built of the same parts.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Barrier, Mutex};

use super::accept::Acceptor;
use super::addresses;
use super::ask::shell_settings;
use super::counters::NetCounters;
use super::events::{EventReceivers, Events};
use super::half_open::HalfOpenStreams;
use super::ledger::Ledger;
use super::listen::BindError;
use super::listener_plan::OpenSockets;
use super::listening::{self, Listening, Plan};
use super::overflow::Overflow;
use super::passed::Passed;
use super::payload_rings;
use super::peers::Peers;
use super::relay_addresses::RelayAddresses;
use super::relay_socket::Relays;
use super::running::{Current, Handle, Running};
use super::shared::Process;
use super::sys::Waker;
use super::worker::{AdoptedStreams, ListenerChange, Mailbox, Message, Setup, TakingOver, Worker};
use crate::config::checked::{Config, Workers};
use crate::failure;
use crate::protocol::counters::Counters;
use crate::protocol::ids::WorkerId;
use crate::protocol::overrides::Overrides;
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

/// What operators changed at run time, kept from an earlier life.
#[derive(Clone, Debug, Default)]
pub struct KeptSets {
    /// Who is shut out.
    pub revocations: Revocations,
    /// Limits that were set at run time.
    pub overrides: Overrides,
}

/// Binds every listener, then starts the workers. Nothing is left behind on an error. Relay addresses that this machine
/// does not have yet are used as soon as it has them: see [`Running::look_at_addresses`].
///
/// `http` are our own HTTP listeners, which are never peers; `passed` are sockets that were open before us;
/// `kept` is what operators did in an earlier life; into `ledger` goes what the next process needs if this one is killed. Must be called inside a tokio runtime, which
/// accepts TCP connections from then on.
///
/// # Errors
/// [`StartError`], naming the key, the value and the remedy.
pub fn start(
    config: &Config,
    http: &[SocketAddr],
    passed: Passed,
    kept: KeptSets,
    ledger: Option<Arc<Ledger>>,
) -> Result<(Running, EventReceivers), StartError> {
    let count = worker_count(config);
    let listening = Listening::default();
    let plan = listening.plan(config, count, &mut OpenSockets::passed(&passed))?;
    let base = Foundation::new(config, count, Secrets::draw(config)?)?;
    let (_, missing) = addresses::serve(config, &base.addresses);
    addresses::report(&[], config, &base.addresses, &missing);
    *base.process.revocations() = kept.revocations;
    base.process.with_overrides(|set| *set = kept.overrides);
    let (relay, changes) = base.with_listeners(config, http, passed, listening, plan)?;
    let Launched { running, receivers, begun } = relay.launch(changes, Vec::new(), ledger)?;
    // A server that is ready has workers that listen, and whose processor time can be read. One that can't begin ends
    // the process.
    begun.wait();
    if let Some(tls) = running.tls() {
        watch::report(&tls.certificates);
        running.watch(&tls);
    }
    Ok((running, receivers))
}

/// What a relay is built on, before it has a listener.
pub(super) struct Foundation {
    inboxes: Vec<Inbox>,
    mailboxes: Arc<Vec<Mailbox>>,
    pub(super) acceptor: Arc<Acceptor>,
    pub(super) addresses: Arc<RelayAddresses>,
    pub(super) process: Arc<Process>,
    pub(super) overflow: Arc<Overflow>,
    secrets: Secrets,
}

impl Foundation {
    pub(super) fn new(config: &Config, workers: usize, mut secrets: Secrets) -> Result<Self, StartError> {
        let tls = if listening::needs_tls(config) { Some(Arc::new(Tls::new(&config.tls.files)?)) } else { None };
        let inboxes = (0..workers).map(|_| Inbox::new()).collect::<io::Result<Vec<_>>>()?;
        let mailboxes: Arc<Vec<Mailbox>> = Arc::new(inboxes.iter().map(|inbox| inbox.mailbox.clone()).collect());
        let of_workers = inboxes.iter().map(|inbox| (inbox.mailbox.clone(), Arc::clone(&inbox.net)));
        let acceptor = Arc::new(Acceptor::new(tls, of_workers));
        acceptor.set_limits(config);
        let addresses = Arc::new(RelayAddresses::new(&config.relay.ports, secrets.seed()));
        addresses.set_ports(&config.relay.ports, &config.relay.port_parts);
        let process = Arc::new(Process::new(Arc::clone(&addresses)));
        Ok(Self { inboxes, mailboxes, acceptor, addresses, process, overflow: Arc::default(), secrets })
    }

    /// With its listeners, and what each worker must open of them.
    pub(super) fn with_listeners(
        self,
        config: &Config,
        http: &[SocketAddr],
        passed: Passed,
        mut listening: Listening,
        plan: Plan,
    ) -> Result<(Built, Vec<Vec<ListenerChange>>), StartError> {
        let own = listening.addresses(&plan).with(http);
        let settings = Arc::new(addresses::settings(&self.addresses, config, own).map_err(StartError::Settings)?);
        // Streams wait in the inboxes until there are workers.
        let changes = listening.carry_out(plan, self.inboxes.len(), &self.acceptor, &self.overflow).changes;
        let current = Current { config: Arc::new(config.clone()), http: http.to_vec() };
        Ok((Built { base: self, settings, current, passed, listening }, changes))
    }
}

/// A relay whose workers have not begun.
pub(super) struct Built {
    pub(super) base: Foundation,
    settings: Arc<Settings>,
    current: Current,
    passed: Passed,
    listening: Listening,
}

/// A relay whose workers have begun, or take over first.
pub(super) struct Launched {
    pub(super) running: Running,
    pub(super) receivers: EventReceivers,
    /// Where all workers wait before their loops begin.
    pub(super) begun: Arc<Barrier>,
}

impl Built {
    /// Starts the workers; each takes over from another process first if there is something for it.
    pub(super) fn launch(
        self,
        changes: Vec<Vec<ListenerChange>>,
        taking_over: Vec<TakingOver>,
        ledger: Option<Arc<Ledger>>,
    ) -> Result<Launched, StartError> {
        let Self { base, settings, current, passed, listening } = self;
        let Foundation { inboxes, mailboxes, acceptor, addresses, process, overflow, mut secrets } = base;
        let (events, receivers) = Events::new();
        let begun = Arc::new(Barrier::new(inboxes.len() + 1));
        let common = Common {
            config: &current.config,
            settings: &settings,
            process: &process,
            addresses: &addresses,
            overflow: &overflow,
            half_open: &acceptor.half_open,
            mailboxes: &mailboxes,
            events: &events,
            begun: &begun,
            ledger: ledger.as_ref(),
        };
        let workers = common.start_workers(inboxes, changes, taking_over, &mut secrets)?;
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
            http_front: Arc::default(),
            overflow,
            nonce_key: secrets.nonce_key,
            is_handed_over: AtomicBool::new(false),
            ledger,
        };
        Ok(Launched { running, receivers, begun })
    }
}

/// One worker's queues before it runs, and where it counts.
pub(super) struct Inbox {
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
pub(super) struct Secrets {
    random: Random,
    /// The key of nonces: the configured one, or one of this process.
    pub(super) nonce_key: Box<[u8]>,
}

impl Secrets {
    pub(super) fn draw(config: &Config) -> io::Result<Self> {
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
    begun: &'a Arc<Barrier>,
    ledger: Option<&'a Arc<Ledger>>,
}

impl Common<'_> {
    fn start_workers(
        &self,
        inboxes: Vec<Inbox>,
        changes: Vec<Vec<ListenerChange>>,
        taking_over: Vec<TakingOver>,
        secrets: &mut Secrets,
    ) -> io::Result<Vec<Handle>> {
        let wakers: Vec<_> = inboxes.iter().map(|inbox| Arc::clone(&inbox.waker)).collect();
        let rings = payload_rings::rings(&wakers);
        let mut taking_over = taking_over.into_iter();
        let each = inboxes.into_iter().zip(changes).zip(rings).enumerate();
        each.map(|(number, ((inbox, listeners), (producers, consumers)))| {
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
                peers: Peers::new(Arc::clone(self.addresses)),
                half_open: Arc::clone(self.half_open),
                inbox: inbox.messages,
                adopted: inbox.adopted,
                waker: inbox.waker,
                mailboxes: Arc::clone(self.mailboxes),
                events: self.events.clone(),
                shell: shell_settings(self.config),
                producers,
                consumers,
                begun: Arc::clone(self.begun),
                taking_over: taking_over.next(),
                ledger: self.ledger.map(Arc::clone),
            };
            let thread =
                std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || run_worker(setup))?;
            Ok(Handle { mailbox: inbox.mailbox, counters, net: inbox.net, thread: Mutex::new(Some(thread)) })
        })
        .collect()
    }
}

fn run_worker(mut setup: Setup) {
    let id = setup.id.0;
    let taking_over = setup.taking_over.take();
    // A worker shares nothing that could be left half done with the others but locks, which they recover from.
    let begun = Arc::clone(&setup.begun);
    let run = std::panic::AssertUnwindSafe(|| {
        let mut worker = match (Worker::new(setup), &taking_over) {
            (Ok(worker), _) => worker,
            // Its director tells the process before, which goes on.
            (Err(error), Some(from)) => {
                from.common.report(Err(format!("a worker can't start: {error}")));
                return Ok(());
            }
            (Err(error), None) => return Err(error),
        };
        let is_ours = taking_over.is_none_or(|from| worker.take_over_from_process(from));
        // Else its director has been told why.
        if is_ours { worker.run(&begun) } else { Ok(()) }
    });
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
