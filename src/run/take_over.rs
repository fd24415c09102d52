//! The new process's side of an upgrade: say who this is, plan as a reload does, take everything in, read from the moment that it
//! is told to, and confirm after some seconds in which all went well. The old process's side: `run::upgrade`.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use minicbor::bytes::ByteVec;

use super::http_listeners::BoundHttpListeners;
use super::ledger_note::{History, write_first};
use super::supervise::Death;
use crate::address::FiveTuple;
use crate::clock;
use crate::config::Config;
use crate::failure::Failure;
use crate::fault;
use crate::net::handoff::{Channel, HandoffError, STATE_BYTES_MAX, from_memory};
use crate::net::ledger::Ledger;
use crate::net::passed::Passed;
use crate::net::shared::{SharedChanges, SharedState};
use crate::net::take_over::{Before, Planned, TakingOverServer};
use crate::net::upgrade_messages::{FromNew, FromOld, Hello, Offer, PassedSocket, UpgradeTimes};
use crate::net::{EventReceivers, Running};
use crate::ops::metrics::Metrics;
use crate::ops::upgrades::Release;
use crate::ops::usage::{self, chain::Code};
use crate::state;

/// Where a new process takes over from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TakeOver {
    /// The channel that the old process left as this one's standard input.
    StandardInput,
    /// The old process's `upgrade.socket`.
    Path(PathBuf),
    /// The same; where no process listens, this one starts by itself.
    PathOrStart(PathBuf),
}

/// How long the old process may be silent before the cut.
const SILENCE_MAX: Duration = Duration::from_secs(70);

/// How long it may take for its last records.
const LAST_RECORDS: Duration = Duration::from_secs(30);

/// How long a message of ours may wait for it.
const SEND_TIME: Duration = Duration::from_secs(5);

/// How long the old process may take to hear that it is off; mostly it ends this one then.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// How often the old process is looked at during the probation.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often it is told meanwhile that this one lives, in milliseconds.
const TELL_LIFE_EVERY: u64 = 500;

/// How long the workers' loops may take for a turn.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Bytes of the old metrics that are read.
const METRICS_BYTES_MAX: u64 = 64 << 20;

/// A relay that has taken over and proved itself.
pub(crate) struct TakenOver {
    pub(crate) config: Config,
    pub(crate) running: Arc<Running>,
    pub(crate) events: EventReceivers,
    pub(crate) http: BoundHttpListeners,
    /// The last metrics of the old process.
    pub(crate) metrics: String,
    /// Those of this one when it took over: what came with the calls is counted in both.
    pub(crate) own_metrics: String,
    /// The code of its last signed record.
    pub(crate) chain: Option<Code>,
    pub(crate) passage: Passage,
    pub(crate) draining: Option<Duration>,
}

/// How this process came to its calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passage {
    /// Which process of this server the old one was, from 1.
    pub(crate) generation: u64,
    pub(crate) times: UpgradeTimes,
    /// The old process was killed.
    pub(crate) recovered: Option<Death>,
}

/// The way to the old process.
struct OldProcess {
    channel: Channel,
    /// It listens for signs of life.
    hears_life: bool,
}

/// What the old process offered.
struct Offered {
    offer: Offer,
    sockets: Vec<(PassedSocket, OwnedFd)>,
}

impl FromStr for TakeOver {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, Path::new(text)) {
            ("0", _) => Ok(Self::StandardInput),
            (_, path) if path.is_absolute() => Ok(Self::Path(path.to_owned())),
            _ => Err("expected the absolute path of the other server's upgrade.socket"),
        }
    }
}

impl TakeOver {
    /// Starts without a process to take over from, if none listens.
    ///
    /// # Errors
    /// If it is not the path of a socket.
    pub fn or_start(self) -> Result<Self, &'static str> {
        match self {
            Self::Path(path) | Self::PathOrStart(path) => Ok(Self::PathOrStart(path)),
            Self::StandardInput => Err("needs --take-over with the path of the other server's upgrade.socket"),
        }
    }

    /// Tells the old process that this one's configuration is wrong, before anything else is done.
    pub(crate) fn refuse(&self, failure: &Failure) {
        if let Ok(Some(channel)) = self.connect() {
            let _ = OldProcess { channel, hears_life: false }.refuse::<()>(Err(Failure::Config(failure.to_string())));
        }
    }

    /// The way to the old process; nothing if there is none and this one may start by itself.
    pub(crate) fn connect(&self) -> Result<Option<Channel>, String> {
        let (Self::Path(path) | Self::PathOrStart(path)) = self else {
            return Channel::of_standard_input().map(Some).map_err(|error| {
                format!("--take-over 0: standard input: {error}; an old process starts its successor with this: use `throughway upgrade`")
            });
        };
        match Channel::connect(path) {
            Err(error) if error.is_of_absent_listener() && matches!(self, Self::PathOrStart(_)) => {
                tracing::info!(socket = %path.display(), "no server to take over from: starting");
                Ok(None)
            }
            connected => connected.map(Some).map_err(|error| {
                let remedy = if error.is_of_absent_listener() {
                    "; no server listens there: name upgrade.socket of the one that runs, or give --or-start to start without one"
                } else {
                    ""
                };
                format!("--take-over {}: {error}{remedy}", path.display())
            }),
        }
    }
}

impl OldProcess {
    fn tell(&self, message: &FromNew) -> Result<(), String> {
        self.channel.send(message, &[], SEND_TIME).map_err(|error| error.to_string())
    }

    fn hear(&mut self, within: Duration) -> Result<(FromOld, Vec<OwnedFd>), String> {
        self.channel.receive(within).map_err(|error| {
            let is_closed = matches!(error, HandoffError::Closed);
            let gone = || "the old process has given the upgrade up, or has ended".to_owned();
            if is_closed { gone() } else { error.to_string() }
        })
    }

    /// Tells it why this process can't take over, and waits until it has heard: of a process that ends with messages
    /// unread the other one hears nothing any more.
    fn refuse<T>(&mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(failure) = &result {
            let is_configuration = matches!(failure, Failure::Config(_) | Failure::Usage(_));
            let refused = FromNew::Refused { reason: failure.to_string(), is_configuration };
            if self.tell(&refused).is_ok() {
                let until = clock::now().ticks.0 + HEARD_WITHIN.as_millis() as u64;
                while clock::now().ticks.0 < until {
                    let heard = self.channel.receive::<FromOld>(HEARD_WITHIN);
                    if let Err(HandoffError::Closed | HandoffError::Timeout(_) | HandoffError::System(_)) = heard {
                        break;
                    }
                }
            }
        }
        result
    }

    fn hear_offer(&mut self) -> Result<Offered, String> {
        let offer = match self.hear(SEND_TIME)? {
            (FromOld::Offer(offer), _) => {
                self.hears_life = offer.hears_life == Some(true);
                offer
            }
            (FromOld::Stop, _) => {
                return Err("an upgrade of that server is already under way: try again when it is over".to_owned());
            }
            _ => return Err(unexpected()),
        };
        let mut sockets = Vec::new();
        loop {
            match self.hear(SEND_TIME)? {
                (FromOld::Socket(what), descriptors) => {
                    let socket = descriptors.into_iter().next().ok_or("a socket is missing from a message")?;
                    sockets.push((what, socket));
                }
                (FromOld::Listeners, _) => return Ok(Offered { offer, sockets }),
                _ => return Err(unexpected()),
            }
        }
    }

    /// What comes before the cut; nothing if it was a check only.
    fn hear_early(&mut self) -> Result<Option<(SharedState, Vec<Channel>)>, String> {
        let shared = match self.hear(SILENCE_MAX)? {
            (FromOld::Stop, _) => return Ok(None),
            (FromOld::Early, memory) => read_state(memory)?,
            _ => return Err(unexpected()),
        };
        let mut channels = Vec::new();
        loop {
            let (FromOld::Workers { more }, sockets) = self.hear(SEND_TIME)? else { return Err(unexpected()) };
            for socket in sockets {
                channels.push(Channel::of(socket).map_err(|error| error.to_string())?);
            }
            if !more {
                return Ok(Some((shared, channels)));
            }
        }
    }

    fn hear_cut(&mut self) -> Result<(SharedChanges, u64, u64), String> {
        let (FromOld::Cut { allocations, streams }, memory) = self.hear(SILENCE_MAX)? else { return Err(unexpected()) };
        Ok((read_state(memory)?, allocations, streams))
    }

    /// Waits so long, and takes in streams that the old process establishes meanwhile; `false` if it ended.
    fn is_there_for(&mut self, time: Duration, running: &Running) -> bool {
        let until = clock::now().ticks.0 + time.as_millis() as u64;
        let mut told_at = 0;
        while clock::now().ticks.0 < until {
            let now = clock::now().ticks.0;
            if self.hears_life && now >= told_at + TELL_LIFE_EVERY {
                told_at = now;
                if self.tell(&FromNew::Alive).is_err() {
                    return false;
                }
            }
            match self.channel.receive::<FromOld>(LOOK_EVERY) {
                Ok((FromOld::Late { five_tuple, tls }, socket)) => adopt_late(running, five_tuple, tls, socket),
                Ok((FromOld::Stop, _)) => end_for_old_process(),
                Err(HandoffError::Timeout(_)) => {}
                _ => return false,
            }
        }
        true
    }
}

/// The old process has given the upgrade up, and waits for the end of this one before it reads again.
fn end_for_old_process() -> ! {
    tracing::error!("the old process has given the upgrade up and goes on: this one ends");
    crate::failure::exit(1)
}

fn adopt_late(running: &Running, five_tuple: FiveTuple, tls: Option<ByteVec>, socket: Vec<OwnedFd>) {
    if let Some(socket) = socket.into_iter().next() {
        running.adopt_late(five_tuple, tls.as_deref().map(Vec::as_slice), socket);
    }
}

fn unexpected() -> String {
    "the old process said something that does not belong here".to_owned()
}

fn read_state<T: state::State>(memory: Vec<OwnedFd>) -> Result<T, String> {
    let memory = memory.into_iter().next().ok_or("memory is missing from a message")?;
    let bytes = from_memory(memory, STATE_BYTES_MAX).map_err(|error| error.to_string())?;
    state::read(&bytes).map_err(|error| error.to_string())
}

fn hello() -> Hello {
    let Release { version, protocol, format_min, format_max, features } = Release::own();
    Hello {
        protocol,
        version,
        format_min,
        format_max,
        features,
        clock: clock::now().ticks,
        pid: std::process::id(),
        tells_life: Some(true),
        takes_passed_on: Some(true),
    }
}

/// Takes over, from the first word to the confirmation; nothing if it was a check only. Blocks; must be called inside a tokio runtime.
///
/// # Errors
/// Why it is off: the old process goes on, or has ended.
pub(crate) fn take_over(
    config: Config,
    from: Channel,
    ledger: Option<Arc<Ledger>>,
) -> Result<Option<TakenOver>, Failure> {
    let mut old = OldProcess { channel: from, hears_life: false };
    let mut hello = hello();
    if fault::at_step("hello") {
        hello.format_min = hello.format_max + 1;
        hello.format_max = hello.format_min;
    }
    if fault::at_step("features") {
        hello.format_max = hello.format_min;
        hello.features.clear();
    }
    old.tell(&FromNew::Hello(hello)).map_err(Failure::Run)?;
    let offered = old.hear_offer().map_err(Failure::Run);
    let Offered { offer, sockets } = old.refuse(offered)?;
    let offered_at = clock::now().ticks;
    let planned = check_places(&config).and_then(|()| plan(config, &offer, sockets, false));
    let (planned, http) = old.refuse(planned)?;
    if fault::at_step("plan") {
        let _ = old.tell(&FromNew::Confirm);
    }
    let probation = planned.config.upgrade.probation;
    old.tell(&FromNew::Planned { warnings: planned.warnings.clone() }).map_err(Failure::Run)?;
    let early = old.hear_early().map_err(Failure::Run);
    let Some((shared, channels)) = old.refuse(early)? else { return Ok(None) };
    let config = planned.config.clone();
    let before = channels.into_iter().map(Before::Process).collect();
    let launched =
        planned.launch(Some(shared), before, ledger.clone()).map_err(|error| Failure::Run(error.to_string()));
    let workers = old.refuse(launched)?;
    let (running, events) = take(&mut old, workers)?;
    let running = Arc::new(running);
    running.accept_streams();
    let own_metrics = Metrics::new(Arc::clone(&running), Arc::default(), None).render();
    let is_old_there = prove(&mut old, &running, probation);
    let draining = offer.draining_ms.map(|ms| Duration::from_millis(ms + clock::now().ticks.since(offered_at)));
    let generation = offer.generation;
    let write = |metrics: &str, times| {
        let history = History { generation: generation.saturating_add(1), times, draining };
        ledger.as_ref().is_some_and(|ledger| write_first(ledger, &running, &http, metrics.to_owned(), history))
    };
    let is_written = write(&own_metrics, UpgradeTimes::default());
    if is_old_there && let Err(reason) = old.tell(&FromNew::Confirm) {
        tracing::warn!(reason, "the old process ended before the upgrade was confirmed; the calls are here");
    }
    if is_written {
        // The old process does not go on for this one any more, so the supervisor may.
        running.set_recoverable(true);
    }
    let _ = fault::at_step("confirmed");
    let (chain, metrics, passage) = last_words(&mut old, &running);
    if !metrics.is_empty() {
        write(&metrics, passage.times);
    }
    running.follow_as_started();
    Ok(Some(TakenOver {
        config,
        running,
        events,
        http,
        metrics,
        own_metrics,
        chain,
        passage: Passage { generation, ..passage },
        draining,
    }))
}

/// Files and sockets that are only opened when this process has taken over: what can't be opened then is lost, and only the log says so.
///
/// # Errors
/// The key, the place and the remedy.
fn check_places(config: &Config) -> Result<(), Failure> {
    usage::check(&config.accounting).map_err(Failure::Run)?;
    let directory = config.upgrade.socket.as_deref().and_then(Path::parent);
    if let Some(directory) = directory
        && let Err(error) = rustix::fs::access(directory, rustix::fs::Access::WRITE_OK)
    {
        let shown = directory.display();
        return Err(Failure::Run(format!(
            "upgrade.socket: can't write in {shown}: {error}; make this directory, and give it to the server's user"
        )));
    }
    Ok(())
}

/// Does all that can fail: binds what is new, reads what the configuration names. `is_recovery` if the old process was killed.
///
/// # Errors
/// What can't be bound, read or gone on with; nothing is left behind then.
pub(super) fn plan(
    config: Config,
    offer: &Offer,
    sockets: Vec<(PassedSocket, OwnedFd)>,
    is_recovery: bool,
) -> Result<(Planned, BoundHttpListeners), Failure> {
    let is_http = |what: &PassedSocket| match what {
        PassedSocket::Http(_) | PassedSocket::HttpPath { .. } => true,
        PassedSocket::Stream(_) | PassedSocket::Manager(_) => false,
    };
    let (http, own) = sockets.into_iter().partition(|(what, _)| is_http(what));
    let http = BoundHttpListeners::adopt(&config.http, &Passed::default(), http);
    let http = http.map_err(|error| Failure::Run(error.to_string()))?;
    let addresses: Vec<SocketAddr> = http.addresses();
    let planned = crate::net::take_over::plan(config, &addresses, offer, own, is_recovery);
    Ok((planned.map_err(|error| Failure::Run(error.to_string()))?, http))
}

/// The cut, as this side sees it.
fn take(old: &mut OldProcess, workers: TakingOverServer) -> Result<(Running, EventReceivers), Failure> {
    let mut take = || -> Result<(), String> {
        let mut allocations = workers.wait_until_told()?;
        if fault::at_step("prepare") {
            allocations += 1;
        }
        old.tell(&FromNew::Prepared { allocations })?;
        let (shared, allocations, streams) = old.hear_cut()?;
        workers.take(shared, allocations, streams)
    };
    let taken = take().map_err(Failure::Run);
    old.refuse(taken)?;
    if fault::at_step("cut") {
        let _ = old.tell(&FromNew::Confirm);
    }
    old.tell(&FromNew::Ready).map_err(Failure::Run)?;
    let _ = fault::at_step("ready");
    match old.hear(SEND_TIME).map_err(Failure::Run)? {
        (FromOld::Go, _) => {}
        _ => return Err(Failure::Run(unexpected())),
    }
    let running = workers.go().map_err(Failure::Run)?;
    let at = clock::monotonic_microseconds();
    // If it is gone, the calls are here all the same.
    if let Err(reason) = old.tell(&FromNew::TakenOver { at }) {
        tracing::warn!(reason, "the old process does not listen any more");
    }
    Ok(running)
}

/// Lives for a while before the old process may go; gives whether that is still there to be told.
fn prove(old: &mut OldProcess, running: &Arc<Running>, probation: Duration) -> bool {
    if !probation.is_zero() && fault::at_step("probation") {
        let _ = old.tell(&FromNew::Ready);
    }
    let is_there = old.is_there_for(probation, running);
    let silent = tokio::runtime::Handle::current().block_on(running.silent_workers(SIGN_OF_LIFE));
    if !is_there {
        tracing::warn!("the old process ended before the upgrade was confirmed; the calls are here");
    } else if !silent.is_empty() {
        tracing::error!(workers = ?silent, "workers are stuck right after they took over: the old process goes on");
        let reason = "a worker is stuck".to_owned();
        let _ = old.tell(&FromNew::Refused { reason, is_configuration: false });
        // It kills this process before it goes on.
        crate::failure::exit(1);
    }
    is_there
}

/// What the old process wrote and counted last.
fn last_words(old: &mut OldProcess, running: &Running) -> (Option<Code>, String, Passage) {
    let words = loop {
        match old.hear(LAST_RECORDS) {
            Ok((FromOld::Late { five_tuple, tls }, socket)) => adopt_late(running, five_tuple, tls, socket),
            Ok((FromOld::PassedOn(note), sockets)) => running.adopt_passed_on(note, sockets),
            Ok((FromOld::Stop, _)) => end_for_old_process(),
            words => break words,
        }
    };
    let words = words.and_then(|(words, memory)| {
        let FromOld::Written { chain, gap_us, prepare_us, recovery_gap_us } = words else { return Err(unexpected()) };
        let memory = memory.into_iter().next().ok_or("memory is missing from a message")?;
        let metrics = from_memory(memory, METRICS_BYTES_MAX).map_err(|error| error.to_string())?;
        let times = UpgradeTimes { gap_us, prepare_us, recovery_gap_us };
        let passage = Passage { times, ..Passage::default() };
        Ok((chain.as_deref().and_then(Code::parse), String::from_utf8_lossy(&metrics).into_owned(), passage))
    });
    words.unwrap_or_else(|reason| {
        tracing::warn!(
            reason,
            "the old process did not tell of its last record: some may be missing, and counters begin at 0"
        );
        (None, String::new(), Passage::default())
    })
}
