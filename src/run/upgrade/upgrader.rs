//! Who asks for an upgrade, and what they are answered: one at a time, and the loop of the server hears when one is confirmed.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, Semaphore, oneshot};

use super::new_process::{NewProcess, Program};
use super::{Confirmed, Done, Greeted, NotUpgraded, Upgrade, Upgraded};
use crate::net::Running;
use crate::net::handoff::Channel;
use crate::ops::command::{UpgradeReport, UpgradeRequest, UpgradeResult};
use crate::ops::drain::Drain;
use crate::ops::notify::Notifier;
use crate::ops::service_manager;
use crate::ops::upgrades::Upgrades;
use crate::run::Started;
use crate::run::ledger_note::{History, LedgerNote};
use crate::run::reload::Reloader;

/// Processes that may have connected to `upgrade.socket` and say nothing; each costs a thread for some seconds.
const SILENT_MAX: usize = 8;

/// Begins upgrades, one at a time, and says when one is confirmed.
pub(crate) struct Upgrader {
    program: Option<Program>,
    running: Arc<Running>,
    drain: Arc<Drain>,
    reloader: Arc<Reloader>,
    upgrades: Arc<Upgrades>,
    notifier: Arc<Notifier>,
    /// From the beginning of one on; for good from one on that is confirmed.
    is_under_way: AtomicBool,
    /// Places for processes that have connected and said nothing.
    silent: Arc<Semaphore>,
    /// Told at the end of each.
    ended: Notify,
    confirmed: Mutex<Option<Box<Confirmed>>>,
}

impl Upgrader {
    pub(crate) fn new(
        program: Option<Program>,
        started: &Started,
        drain: Arc<Drain>,
        reloader: Arc<Reloader>,
        notifier: Arc<Notifier>,
    ) -> Arc<Self> {
        let running = Arc::clone(&started.running);
        Arc::new(Self {
            program,
            running,
            drain,
            reloader,
            upgrades: Arc::clone(&started.upgrades),
            notifier,
            is_under_way: AtomicBool::new(false),
            silent: Arc::new(Semaphore::new(SILENT_MAX)),
            ended: Notify::new(),
            confirmed: Mutex::default(),
        })
    }

    /// Whether SIGHUP means an upgrade: the file at the own path is another one. During an upgrade, which leaves that so, it means a
    /// reload by the process that serves in the end.
    pub(crate) fn is_wanted_on_reload(&self) -> bool {
        let is_on = self.upgrades.is_wanted_on_reload() && !self.is_under_way.load(Ordering::Acquire);
        is_on && self.program.as_ref().is_some_and(Program::has_changed)
    }

    /// Whether the service manager would learn of the new process. Under a supervisor, which stays, it need not; and what started a
    /// process that asks for the sessions by itself knows of it.
    fn is_followed_by_manager(&self) -> Result<(), String> {
        if !self.notifier.is_main() {
            return Ok(());
        }
        service_manager::of_process(|started| started.is_followed(Path::new("/")))
    }

    /// Begins one with the program at the own path, if none is under way; the answer comes when it has ended.
    pub(crate) fn begin(self: &Arc<Self>, request: UpgradeRequest, answer: Option<oneshot::Sender<UpgradeReport>>) {
        let is_followed = self.is_followed_by_manager();
        let (upgrader, program) = (Arc::clone(self), self.program.clone());
        tokio::spawn(async move {
            let start = move || {
                let program = program.ok_or_else(|| "the path of this program is not known".to_owned());
                let started = is_followed.and(program).and_then(|program| program.start());
                Greeted::hear(started.map_err(NotUpgraded::at("start"))?)
            };
            let report = if upgrader.claim() {
                upgrader.run(request, start).await
            } else {
                tracing::warn!("an upgrade is already under way: another one was asked for and is refused");
                if answer.is_none() {
                    upgrader.notifier.reload_refused("an upgrade is already under way");
                }
                refused(&NotUpgraded::at("start")("an upgrade is already under way".to_owned()))
            };
            if let Some(answer) = answer {
                // The asker may have gone.
                let _ = answer.send(report);
            }
        });
    }

    /// Hands over to a process that asked for it by itself, over `upgrade.socket`. Until it has said that it is a server nothing
    /// waits for it.
    pub(crate) fn hand_over_to(self: &Arc<Self>, channel: Channel) {
        let new = NewProcess::connected(channel);
        if self.is_under_way.load(Ordering::Acquire) {
            return refuse_second(new);
        }
        let Ok(place) = Arc::clone(&self.silent).try_acquire_owned() else {
            tracing::warn!("too many processes at upgrade.socket say nothing: one more is refused");
            return new.send_away();
        };
        let upgrader = Arc::clone(self);
        tokio::spawn(async move {
            let greeted = tokio::task::spawn_blocking(move || {
                let _place = place;
                Greeted::hear(new)
            });
            match greeted.await {
                Ok(Ok(greeted)) if upgrader.claim() => {
                    upgrader.run(UpgradeRequest::default(), || Ok(greeted)).await;
                }
                Ok(Ok(greeted)) => refuse_second(greeted.new),
                Ok(Err(not)) => upgrader.upgrades.ended(upgrader.tell(&not).result),
                // The process ends.
                Err(_) => {}
            }
        });
    }

    /// Whether an upgrade may begin; then it has begun.
    fn claim(&self) -> bool {
        !self.is_under_way.swap(true, Ordering::AcqRel)
    }

    /// What this process is, and its sockets, for a ledger; nothing during an upgrade.
    pub(crate) async fn note_for_ledger(&self) -> Option<io::Result<LedgerNote>> {
        if self.is_under_way.load(Ordering::Acquire) {
            return None;
        }
        let listeners = self.reloader.hold_listeners().await;
        let unchanging = self.running.keep_unchanged().await;
        let history = History {
            generation: self.upgrades.generation(),
            times: self.upgrades.times(),
            draining: self.drain.since(),
        };
        Some(LedgerNote::of(&self.running, &unchanging, listeners.sockets(), history))
    }

    /// Waits until the server drains.
    pub(crate) async fn drain_began(&self) {
        self.drain.began().await;
    }

    /// Goes through one that was claimed. After one that is confirmed there is no other.
    async fn run(
        &self,
        request: UpgradeRequest,
        start: impl FnOnce() -> Result<Greeted, NotUpgraded> + Send + 'static,
    ) -> UpgradeReport {
        if !request.check {
            self.notifier.upgrading();
        }
        // In the order in which a reload takes them.
        let listeners = self.reloader.hold_listeners().await;
        let unchanging = self.running.keep_unchanged().await;
        let upgrade = Upgrade {
            running: Arc::clone(&self.running),
            listeners,
            probation: self.upgrades.probation(),
            generation: self.upgrades.generation(),
            draining_ms: self.drain.since().map(|since| since.as_millis() as u64),
            drops_unknown: request.drop_unknown,
        };
        let failed = NotUpgraded::at("start");
        let ended = tokio::task::spawn_blocking(move || upgrade.run(start()?, unchanging, request.check));
        let (report, confirmed) = match ended.await.unwrap_or_else(|error| Err(failed(error.to_string()))) {
            Ok(Upgraded::Checked(done)) => (report_of(UpgradeResult::Checked, &done), None),
            Ok(Upgraded::Confirmed(confirmed)) => {
                tracing::info!(to = confirmed.done.to, pid = confirmed.done.pid, "confirmed");
                (report_of(UpgradeResult::Confirmed, &confirmed.done), Some(confirmed))
            }
            Err(not) => (self.tell(&not), None),
        };
        if !request.check && confirmed.is_none() {
            self.notifier.not_upgraded(&why(&report));
        }
        // Before this process leaves: the new one goes on counting from here.
        self.upgrades.ended(report.result);
        if confirmed.is_some() {
            *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = confirmed;
        } else {
            self.is_under_way.store(false, Ordering::Release);
        }
        self.ended.notify_waiters();
        report
    }

    fn tell(&self, not: &NotUpgraded) -> UpgradeReport {
        let NotUpgraded { step, reason, is_rolled_back, streams_closed, .. } = not;
        self.upgrades.streams_rolled_back(*streams_closed);
        if *is_rolled_back {
            tracing::error!(
                step,
                reason,
                streams_closed,
                "upgrade rolled back: this process goes on; client streams are closed"
            );
        } else {
            tracing::warn!(step, reason, "upgrade refused: this process goes on");
        }
        refused(not)
    }

    fn take_confirmed(&self) -> Option<Box<Confirmed>> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits for an upgrade that is confirmed.
    pub(crate) async fn confirmed(&self) -> Box<Confirmed> {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if let Some(confirmed) = self.take_confirmed() {
                return confirmed;
            }
            ended.await;
        }
    }

    /// Waits for the end of an upgrade that is under way; gives what it became if it was confirmed.
    pub(crate) async fn wait_for_end(&self) -> Option<Box<Confirmed>> {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let confirmed = self.take_confirmed();
            if confirmed.is_some() || !self.is_under_way.load(Ordering::Acquire) {
                return confirmed;
            }
            ended.await;
        }
    }
}

/// A process that came while an upgrade was under way. Its end would be the only other answer.
fn refuse_second(new: NewProcess) {
    tracing::warn!("an upgrade is already under way: a process that wants to take over is refused");
    new.send_away();
}

fn report_of(result: UpgradeResult, done: &Done) -> UpgradeReport {
    let of_calls = |count| (result == UpgradeResult::Confirmed).then_some(count);
    UpgradeReport {
        to: Some(done.to.clone()),
        allocations: of_calls(done.allocations),
        streams: of_calls(done.streams),
        gap_us: of_calls(done.gap_us),
        late: of_calls(done.late),
        ..UpgradeReport::new(result)
    }
}

/// Why there was no upgrade, for the manager's line of status.
fn why(report: &UpgradeReport) -> String {
    let what = if report.result == UpgradeResult::RolledBack { "rolled back" } else { "refused" };
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("upgrade {what} in step {}: {}", of(&report.step), of(&report.reason))
}

fn refused(not: &NotUpgraded) -> UpgradeReport {
    let result = if not.is_rolled_back { UpgradeResult::RolledBack } else { UpgradeResult::Refused };
    UpgradeReport {
        step: Some(not.step.to_owned()),
        reason: Some(not.reason.clone()),
        is_configuration: not.is_configuration,
        ..UpgradeReport::new(result)
    }
}
