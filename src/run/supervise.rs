//! Two processes: a supervisor that only waits, and the server, which it starts again when that is killed. Both have one table
//! of descriptors and a ledger, so the next server goes on with the calls over UDP. Decision 0213.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use rustix::process::Signal;

use super::out_of_memory::OutOfMemoryKills;
use super::revive::Recovery;
use super::take_over::TakeOver;
use super::upgrade::{Program, Upgrader};
use super::{Origin, Started, Supervised, serve_from};
use crate::clock;
use crate::config::error::{Problem, SourceLocation};
use crate::config::{Config, Environment};
use crate::failure::{self, Failure};
use crate::net::ledger::{Cell, Incident, Ledger, LedgerPhase};
use crate::net::passed::Passed;
use crate::net::processes::{self, Cloned, Ended, HeldSignals};
use crate::net::{self, Running};
use crate::ops::metrics::Metrics;
use crate::ops::service_manager;
use crate::tls::certificates::Files;

/// Signals that the supervisor passes on.
const PASSED_ON: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::HUP];

/// Deaths within a minute, with a message in hand that may be the reason, after which nothing is taken over, and after which the server ends.
const INCIDENTS_MAX: usize = 3;

/// Deaths within [`DEATHS_WITHIN`] after which the server ends whatever the reason is.
const DEATHS_MAX: usize = 60;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// How often what belongs to no worker is written, and workers are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// How long a worker may be stuck before the process ends itself, to be started again; below the manager's 30 s.
const STUCK_MAX: Duration = Duration::from_secs(10);

/// How the process before ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    /// The signal that ended it.
    pub(crate) signal: i32,
    /// Microseconds of the monotonic clock when the supervisor heard of it.
    pub(crate) at: u64,
    /// It had not yet taken over from the one before.
    was_recovering: bool,
    /// What it was doing may have been the reason: it was not killed from outside.
    was_its_own_doing: bool,
}

/// Runs the server as a child of this process, again and again if it is killed. Must be called while there is one thread.
///
/// # Errors
/// As of [`serve`](super::serve); [`Failure::Run`] when the server can't be gone on with.
pub(super) fn supervise(config: Config, from: Option<&TakeOver>) -> Result<(), Failure> {
    let passed = Passed::take().map_err(Failure::Run)?;
    // What is open is open in both processes, and counts in both.
    let _ = net::raise_file_limit();
    // The file may have been replaced when the next child begins.
    let program = Program::of_process(config.source.file.as_deref()).ok();
    let failed = |error: io::Error| Failure::Run(format!("supervise: {error}"));
    let ledger = Arc::new(Ledger::new().map_err(failed)?);
    let child = Signal::CHILD.as_raw();
    let held: Vec<i32> = PASSED_ON.iter().map(|signal| signal.as_raw()).chain([child]).collect();
    let signals = HeldSignals::hold(&held).map_err(failed)?;
    let own = std::process::id();
    let mut deaths: Vec<Death> = Vec::new();
    let mut out_of_memory = OutOfMemoryKills::of_process();
    let mut end_asked = None;
    loop {
        let pid = match processes::clone_with_descriptors().map_err(failed)? {
            Cloned::Child => {
                processes::end_with_parent(own).map_err(failed)?;
                let supervised = Supervised { ledger, supervisor: own };
                return serve_in_child(config, from, passed, program, supervised, deaths.last().copied());
            }
            Cloned::Parent(pid) => pid,
        };
        if let Some(signal) = end_asked {
            // The one before may not have heard it.
            processes::signal(pid, signal);
        }
        let signal = match wait(pid, &signals, &mut end_asked).map_err(failed)? {
            Ended::Exited(code) => failure::exit(code),
            Ended::Killed(signal) => signal,
        };
        let phase = ledger.phase();
        if let LedgerPhase::Starting | LedgerPhase::Leaving = phase {
            let when = if phase == LedgerPhase::Starting { "before it served" } else { "when its sessions were over" };
            return Err(Failure::Run(format!("the server was ended by signal {signal} {when}")));
        }
        let at = clock::monotonic_microseconds();
        deaths.retain(|death| at - death.at < DEATHS_WITHIN.as_micros() as u64);
        let was_recovering = phase == LedgerPhase::Recovering;
        // Each is asked, so that a later one is not told of the one before.
        let was_its_own_doing = out_of_memory.rose() || signal != Signal::KILL.as_raw();
        deaths.push(Death { signal, at, was_recovering, was_its_own_doing });
        if deaths.len() > DEATHS_MAX {
            return Err(Failure::Run(format!("the server was ended {} times within a minute", deaths.len())));
        }
    }
}

/// Waits for the end of the child, and passes signals on to it; notes the one by which an end is asked for.
fn wait(pid: i32, signals: &HeldSignals, end_asked: &mut Option<i32>) -> io::Result<Ended> {
    loop {
        if let Some(ended) = processes::ended(pid)? {
            return Ok(ended);
        }
        let signal = signals.next()?;
        if PASSED_ON.iter().any(|passed_on| passed_on.as_raw() == signal) {
            processes::signal(pid, signal);
            if signal != Signal::HUP.as_raw() {
                *end_asked = Some(signal);
            }
        }
    }
}

/// A server's life: the first, or one after a death.
fn serve_in_child(
    config: Config,
    from: Option<&TakeOver>,
    passed: Passed,
    program: Option<Program>,
    supervised: Supervised,
    death: Option<Death>,
) -> Result<(), Failure> {
    let ledger = Arc::clone(&supervised.ledger);
    let Some(death) = death else {
        ledger.set_phase(LedgerPhase::Starting);
        return serve_from(config, from.map_or(Origin::Fresh, Origin::TakeOver), passed, program, Some(supervised));
    };
    let (left, incidents) = ledger.take_left(&passed.numbers(), death.was_its_own_doing);
    let times = incidents.all.iter().map(|incident| incident.at).collect::<HashSet<_>>().len();
    if times > INCIDENTS_MAX && incidents.is_new {
        return Err(Failure::Run(format!(
            "the server was ended by signal {}, the {times}th time within a minute over a client's message",
            death.signal
        )));
    }
    let config = config_of_next(config, death, left.as_ref().ok().and_then(|left| left.config.as_deref()));
    let why_not = match &left {
        _ if times == INCIDENTS_MAX && incidents.is_new => {
            Some("it was the third time within a minute over a client's message".to_owned())
        }
        _ if death.was_recovering => Some("the process before this one could not go on either".to_owned()),
        Err(why) => Some(why.clone()),
        Ok(_) => None,
    };
    remember(&ledger, &incidents.all);
    let origin = match (left, why_not) {
        (Ok(left), None) => {
            ledger.set_phase(LedgerPhase::Recovering);
            Origin::Recovery(Box::new(Recovery { left, incidents, death }))
        }
        (left, why) => {
            drop(left);
            ledger.set_phase(LedgerPhase::Starting);
            Origin::Anew { death, why: why.unwrap_or_default() }
        }
    };
    serve_from(config, origin, passed, program, Some(supervised))
}

/// The configuration as the file has it now; if that is wrong, the one that the process before had; and the one of the start
/// if the process before ended over it. What waits for a restart is as at the start: this is none.
fn config_of_next(mut start: Config, death: Death, had: Option<&str>) -> Config {
    start.tls.files.iter_mut().for_each(|files| files.stand_in = Some(Files::stand_in_for_lost()));
    if death.was_recovering {
        return start;
    }
    let error = match read_in_time(&start, None) {
        Ok(config) => return config.until_restart(&start),
        Err(error) => error,
    };
    let (mut config, which) = match had.map(|had| read_in_time(&start, Some(had))) {
        Some(Ok(had)) => (had.until_restart(&start), "the one that the killed server had"),
        Some(Err(_)) | None => (start, "the one of the start"),
    };
    let text = format!("the configuration can't be used, so {which} holds: {error}");
    config.warnings.push(Problem::new(SourceLocation::Nowhere, "after a crash", text));
    config
}

/// How long a configuration and the files that it names may take to be read after a crash: calls wait for it.
const READ_TIME: Duration = Duration::from_secs(2);

/// The configuration as its file has it now, or as this text has it.
///
/// # Errors
/// What is wrong, or that a file could not be read in time: a disk may hang, and a named pipe may have no writer.
pub(super) fn read_in_time(config: &Config, text: Option<&str>) -> Result<Config, String> {
    let (config, text) = (config.clone(), text.map(ToOwned::to_owned));
    let (sender, read) = std::sync::mpsc::sync_channel(1);
    let read_it = move || {
        let environment = Environment::of_process().after_crash();
        let result = text.map_or_else(|| config.reload(&environment), |text| config.with_text(&text, &environment));
        // If that took too long, there is no reader any more.
        let _ = sender.send(result.map_err(|error| error.to_string()));
    };
    std::thread::Builder::new().name("config".to_owned()).spawn(read_it).map_err(|error| error.to_string())?;
    let too_long = |_| format!("it, or a file that it names, could not be read within {} s", READ_TIME.as_secs());
    read.recv_timeout(READ_TIME).map_err(too_long)?
}

fn remember(ledger: &Ledger, incidents: &[Incident]) {
    if let Ok(bytes) = minicbor::to_vec(incidents) {
        // Without them the next process knows fewer suspects.
        let _ = ledger.publish(Cell::Incidents, bytes, Vec::new());
    }
}

/// Warns of a unit under which the start would end after a while.
pub(super) fn warn_if_unheard() {
    if let Err(why) = service_manager::of_process(|started| started.hears_children(Path::new("/"))) {
        tracing::warn!("supervise: {why}");
    }
}

/// Writes what belongs to no worker, from now on once a second, and ends the process if a worker is stuck. When this comes back
/// another process could go on.
pub(super) async fn keep(ledger: Arc<Ledger>, started: &Started, upgrader: Arc<Upgrader>) {
    let running = Arc::clone(&started.running);
    let looked_at = Arc::clone(&running);
    tokio::spawn(async move {
        loop {
            let mut stuck = looked_at.silent_workers(STUCK_MAX).await;
            if !stuck.is_empty() {
                // The whole process may have stood still.
                stuck = looked_at.silent_workers(EVERY).await;
            }
            if !stuck.is_empty() {
                tracing::error!(workers = ?stuck, "workers are stuck: this process ends itself, and its supervisor goes on");
                failure::abort();
            }
            tokio::time::sleep(EVERY).await;
        }
    });
    // Each worker writes in its turns.
    running.silent_workers(STUCK_MAX).await;
    let keeper = Keeper { ledger, running, metrics: Arc::clone(&started.metrics), upgrader };
    keeper.write().await;
    tokio::spawn(async move {
        let mut knows_drain = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = keeper.upgrader.drain_began(), if !knows_drain => knows_drain = true,
            }
            keeper.write().await;
        }
    });
}

/// Writes what belongs to no worker.
struct Keeper {
    ledger: Arc<Ledger>,
    running: Arc<Running>,
    metrics: Arc<Metrics>,
    upgrader: Arc<Upgrader>,
}

impl Keeper {
    async fn write(&self) {
        let Some(note) = self.upgrader.note_for_ledger().await else { return };
        let written = note.and_then(|note| note.write(&self.ledger, &self.running, self.metrics.render()));
        if let Err(error) = written {
            tracing::error!(%error, "the ledger can't be written: after a crash calls may be lost");
            return;
        }
        if let LedgerPhase::Starting | LedgerPhase::Recovering = self.ledger.phase() {
            self.running.set_recoverable(true);
        }
    }
}
