//! The new process's side of an upgrade: listeners and workers that take over what an old process has, and do not read before
//! they are told to. The order of the whole stands in `run::take_over`; what one worker does in `net::worker`.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::events::EventReceivers;
use super::ledger::{Incident, Ledger};
use super::listener_plan::OpenSockets;
use super::listening::{self, Listening};
use super::passed::Passed;
use super::relay_addresses::RelayAddress;
use super::running::Running;
use super::shared::{SharedChanges, SharedState};
use super::start::{Built, Foundation, Launched, Secrets, StartError, worker_count};
use super::upgrade_messages::{Offer, PassedOnNote, PassedSocket, RelayAddressNote};
pub(crate) use super::worker::Before;
use super::worker::{AdoptedListener, ListenerChange, Reached, TakeOver, TakenOver, TakingOver};
use crate::address::FiveTuple;
use crate::clock;
use crate::config::checked::{Config, Workers};
use crate::tls::watch;

/// How long the workers may take to hear of everything while calls go on elsewhere.
const EARLY_TIME: Duration = Duration::from_secs(60);

/// How long they may take at the cut.
const CUT_TIME: Duration = Duration::from_secs(2);

/// A relay whose new listeners are bound, and whose workers have not begun.
pub struct Planned {
    built: Built,
    changes: Vec<Vec<ListenerChange>>,
    listeners: Vec<AdoptedListener>,
    /// What new allocations are relayed from, as the old process had it.
    serving: Vec<RelayAddress>,
    /// The old process was killed.
    is_recovery: bool,
    /// Keys whose old values hold.
    pub warnings: Vec<String>,
    /// The configuration that holds.
    pub config: Config,
}

/// A relay whose workers take over. Dropped before [`TakingOverServer::go`], it ends without a word.
pub struct TakingOverServer {
    running: Option<Running>,
    receivers: Option<EventReceivers>,
    common: Arc<TakeOver>,
    begun: Arc<Barrier>,
    serving: Vec<RelayAddress>,
    is_recovery: bool,
}

/// This configuration as far as a process that takes over can follow it, and what an operator should know of the rest.
fn held(mut config: Config, offer: &Offer) -> (Config, Vec<String>) {
    let mut warnings = Vec::new();
    let workers = worker_count(&config);
    if workers != offer.workers as usize {
        warnings.push(format!(
            "workers: {workers} takes effect at the next restart only, because each client belongs to one of the {} there are",
            offer.workers
        ));
    }
    config.workers = Workers::Count(u16::try_from(offer.workers).unwrap_or(u16::MAX));
    if *config.realm != *offer.realm {
        warnings.push(format!(
            "realm: \"{}\" takes effect at the next restart only, because \"{}\" is in the key of every client",
            config.realm, offer.realm
        ));
        config.realm = offer.realm.as_str().into();
    }
    if config.nonce_key.as_ref().is_some_and(|key| *key.expose() != offer.nonce_key[..]) {
        warnings.push(
            "auth.nonce_key_file: the new key takes effect at the next restart only, because every client has a nonce of the old one"
                .to_owned(),
        );
    }
    (config, warnings)
}

/// Does everything that can fail before the old process is asked for its calls: binds what is new, reads certificates.
/// `http` are our own HTTP listeners; `sockets` came with the offer; `is_recovery` if the old process was killed, and what its
/// ledger says may be a moment older than its allocations. Must be called inside a tokio runtime.
///
/// # Errors
/// [`StartError`]; nothing is left behind then.
pub fn plan(
    config: Config,
    http: &[SocketAddr],
    offer: &Offer,
    sockets: Vec<(PassedSocket, OwnedFd)>,
    is_recovery: bool,
) -> Result<Planned, StartError> {
    let (mut config, warnings) = held(config, offer);
    // What the old process found holds until it is looked at anew.
    let found = offer.relay_addresses.iter().filter(|of| of.is_serving && of.local != of.advertised);
    let found: Vec<_> = found.map(|of| (of.local, of.advertised)).collect();
    config.relay.external.set_found(&found);
    let (mut streams, mut of_manager) = (Vec::new(), Vec::new());
    for (what, socket) in sockets {
        match what {
            PassedSocket::Stream(id) => streams.push((id, socket)),
            PassedSocket::Manager(name) => of_manager.push((name, socket)),
            // Not ours.
            PassedSocket::Http(_) | PassedSocket::HttpPath { .. } => {}
        }
    }
    let passed = Passed::adopted(of_manager);
    let mut secrets = Secrets::draw(&config)?;
    secrets.nonce_key = offer.nonce_key.as_slice().into();
    let base = Foundation::new(&config, offer.workers as usize, secrets)?;
    base.acceptor.front.gate.close();
    let address = |of: &RelayAddressNote| RelayAddress { local: of.local, advertised: of.advertised };
    let relayed: Vec<RelayAddress> = offer.relay_addresses.iter().map(address).collect();
    // Those that the old one has retired too, until their sockets are here.
    base.addresses.serve(&relayed);
    let serving: Vec<RelayAddress> = offer.relay_addresses.iter().filter(|of| of.is_serving).map(address).collect();
    let adopted = Listening::adopted(&offer.listeners, streams, &base.acceptor, &base.overflow);
    let (listening, mut listeners) = adopted.map_err(StartError::Settings)?;
    let plan = listening.plan(&config, offer.workers as usize, &mut OpenSockets::passed(&passed))?;
    let (built, mut changes) = base.with_listeners(&config, http, passed, listening, plan)?;
    // The workers have not opened them yet: they open them as what they are now.
    for change in changes.first().into_iter().flatten() {
        let (id, is_leaving) = match change {
            ListenerChange::Leave(id) => (id, true),
            ListenerChange::Return(id) => (id, false),
            ListenerChange::Open(_) | ListenerChange::Close(_) => continue,
        };
        listeners.iter_mut().filter(|of| of.id == *id).for_each(|of| of.is_leaving = is_leaving);
    }
    changes.iter_mut().for_each(|of| of.retain(|change| matches!(change, ListenerChange::Open(_))));
    Ok(Planned { built, changes, listeners, serving, is_recovery, warnings, config })
}

impl Planned {
    /// Starts the workers, which take in what those before them tell, or left. `shared` is nothing if the old process was killed.
    ///
    /// # Errors
    /// When the system has no more threads, or a worker is missing.
    pub(crate) fn launch(
        self,
        shared: Option<SharedState>,
        before: Vec<Before>,
        ledger: Option<Arc<Ledger>>,
    ) -> Result<TakingOverServer, StartError> {
        let Self { built, changes, listeners, serving, is_recovery, config, .. } = self;
        if before.len() != changes.len() {
            return Err(StartError::Settings(format!("{} workers of before for {}", before.len(), changes.len())));
        }
        if let Some(shared) = shared {
            built.base.process.import_early(shared);
        }
        let common = Arc::new(TakeOver::new(before.len()));
        let overflow = Arc::clone(&built.base.overflow);
        let taking_over = before.into_iter().map(|before| TakingOver {
            before,
            listeners: listeners.clone(),
            overflow: Arc::clone(&overflow),
            common: Arc::clone(&common),
        });
        let taking_over = taking_over.collect();
        let Launched { running, receivers, begun } = built.launch(changes, taking_over, ledger)?;
        if config.accounting.is_on() {
            // They are written when this process is confirmed, with what happened until then.
            receivers.keep_records();
        }
        Ok(TakingOverServer { running: Some(running), receivers: Some(receivers), common, begun, serving, is_recovery })
    }
}

impl TakingOverServer {
    fn reports(&self, within: Duration) -> Result<Vec<TakenOver>, String> {
        let reports = self.common.reports(within);
        reports.ok_or_else(|| format!("a worker was not done within {} ms", within.as_millis()))?.into_iter().collect()
    }

    /// Clients whose messages were in hand when processes died.
    pub(crate) fn suspect(&self, incidents: &[Incident]) {
        if let Some(running) = &self.running {
            running.suspect(incidents, clock::now().ticks);
        }
    }

    /// Waits until everything is here that was told while calls went on; gives how many allocations.
    ///
    /// # Errors
    /// What does not fit, or that it took too long.
    pub fn wait_until_told(&self) -> Result<u64, String> {
        Ok(self.reports(EARLY_TIME)?.iter().map(|told| told.allocations).sum())
    }

    /// Takes in what changed up to the cut, and checks that all of it is here.
    ///
    /// # Errors
    /// What does not fit.
    pub fn take(&self, shared: SharedChanges, allocations: u64, streams: u64) -> Result<(), String> {
        let running = self.running.as_ref().ok_or("there are no workers")?;
        if self.is_recovery {
            running.process.import_from_ledger(shared);
        } else {
            running.process.import_changes(shared).map_err(|error| error.to_string())?;
        }
        self.common.decide(Reached::Shared);
        let taken = self.reports(CUT_TIME)?;
        let sum = |of: fn(&TakenOver) -> u64| taken.iter().map(of).sum::<u64>();
        for (name, here, there) in
            [("allocations", sum(|of| of.allocations), allocations), ("streams", sum(|of| of.streams), streams)]
        {
            if here != there {
                return Err(format!("{here} {name} arrived of {there}"));
            }
        }
        if self.is_recovery {
            running.process.end_recount(clock::now());
        }
        running.addresses.serve(&self.serving);
        Ok(())
    }

    /// Lets the workers read. What comes back does not accept streams yet.
    ///
    /// # Errors
    /// If there are no workers.
    pub fn go(mut self) -> Result<(Running, EventReceivers), String> {
        let running = self.running.take().zip(self.receivers.take()).ok_or("there are no workers")?;
        self.common.decide(Reached::Go);
        self.begun.wait();
        Ok(running)
    }
}

impl Drop for TakingOverServer {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.common.decide(Reached::Off);
            self.common.decide(Reached::Off);
        }
    }
}

impl Running {
    /// Accepts streams from now on.
    pub fn accept_streams(&self) {
        self.acceptor.front.gate.open();
    }

    /// Takes a stream in that the old process established after the cut.
    pub fn adopt_late(&self, five_tuple: FiveTuple, tls: Option<&[u8]>, socket: OwnedFd) {
        self.acceptor.adopt_late(five_tuple, tls, socket);
    }

    /// Goes on with a connection that the old process passed on to a web server.
    pub fn adopt_passed_on(&self, note: PassedOnNote, sockets: Vec<OwnedFd>) {
        self.acceptor.pass_on.adopt(note, sockets);
    }

    /// Follows what a start would have followed from its beginning, once the workers have had a turn.
    pub fn follow_as_started(self: &Arc<Self>) {
        if let Some(tls) = self.tls() {
            watch::report(&tls.certificates);
            self.watch(&tls);
        }
        let leaving = listening::lock(&self.listening).leaving();
        for (id, users) in leaving {
            self.close_when_empty(id, users);
        }
    }
}
