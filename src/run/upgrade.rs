//! The old process's side of an upgrade, in its order: start the new one, tell it everything while calls go on, stop reading at
//! one moment, watch it for some seconds, and end; or go on, whatever happens to the new one before that.
//!
//! Decision: docs/decisions/0212-an-upgrade-hands-over.md. The new process's side: `run::take_over`.

mod new_process;
mod upgrader;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use self::new_process::NewProcess;
pub(crate) use self::new_process::Program;
pub(crate) use self::upgrader::Upgrader;
use crate::clock;
use crate::net::Running;
use crate::net::hand_over::{HandingOver, Unchanging};
use crate::net::handoff::{Channel, DESCRIPTORS_MAX, to_memory};
use crate::net::upgrade_messages::{FromNew, FromOld, Hello};
use crate::ops::upgrades::Release;
use crate::protocol::border::Selector;
use crate::protocol::reason::EndReason;
use crate::run::reload::HeldListeners;
use crate::state::{
    self, DUAL_ALLOCATIONS, FEATURES, LINK_LOCAL_CLIENTS, MOBILE_ALLOCATIONS, OTHER_REALMS, SHA256_KEYS, State,
    TCP_ALLOCATIONS,
};

/// How long the new process may take for each of its first answers.
const FIRST_ANSWERS: Duration = Duration::from_secs(10);

/// How long it may take to have all that was told while calls go on.
const EARLY_TIME: Duration = Duration::from_secs(60);

/// How long it may take at the cut, when no packet is read.
const CUT_TIME: Duration = Duration::from_secs(1);

/// How long it may say nothing on probation, if it is one that says that it lives.
const LIFE_SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long it may take beyond its probation to confirm.
const CONFIRM_TIME: Duration = Duration::from_secs(10);

/// How far both clocks may differ, in milliseconds.
const CLOCKS_DIFFER_MAX: u64 = 1_000;

/// Why an upgrade did not take place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NotUpgraded {
    /// In which step.
    pub(crate) step: &'static str,
    pub(crate) reason: String,
    /// The new process's configuration is at fault.
    pub(crate) is_configuration: bool,
    /// The new process had begun to read.
    pub(crate) is_rolled_back: bool,
    /// Client streams that can't go on for that.
    pub(crate) streams_closed: u64,
}

impl NotUpgraded {
    fn at(step: &'static str) -> impl Fn(String) -> Self {
        move |reason| Self { step, reason, is_configuration: false, is_rolled_back: false, streams_closed: 0 }
    }

    fn unexpected(step: &'static str) -> Self {
        Self::at(step)(
            "the new process said something that does not belong here: is it a throughway server?".to_owned(),
        )
    }
}

/// How an upgrade went, for the log and for who asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Done {
    /// The new release.
    pub(crate) to: String,
    /// The new process, if it has a number here.
    pub(crate) pid: Option<u32>,
    pub(crate) allocations: u64,
    pub(crate) streams: u64,
    /// Streams that were established here after the cut.
    pub(crate) late: u64,
    /// How long no packet was read, in microseconds.
    pub(crate) gap_us: u64,
    /// How long all that came before the cut took, in microseconds.
    pub(crate) prepare_us: u64,
}

/// What became of an upgrade.
pub(crate) enum Upgraded {
    /// The new process could take over.
    Checked(Done),
    Confirmed(Box<Confirmed>),
}

/// An upgrade that the new process has confirmed: it waits for our last record.
pub(crate) struct Confirmed {
    pub(crate) done: Done,
    new: NewProcess,
    handing: HandingOver,
    listeners: HeldListeners,
    is_stopped: bool,
}

/// An upgrade that is about to begin.
pub(crate) struct Upgrade {
    pub(crate) running: Arc<Running>,
    pub(crate) listeners: HeldListeners,
    /// How long the new process has to prove itself.
    pub(crate) probation: Duration,
    /// Of this process.
    pub(crate) generation: u64,
    pub(crate) draining_ms: Option<u64>,
    /// Sessions that use what the new release does not know are ended, rather than that it is refused for them.
    pub(crate) drops_unknown: bool,
}

/// A new process that has said that it is a server, and which.
struct Greeted {
    new: NewProcess,
    /// Its version.
    version: String,
    /// The format of states that it will get.
    format: u32,
    /// Features of states that it does not know.
    unknown: Vec<&'static str>,
}

impl Greeted {
    /// Waits for the first word of a new process. Blocks.
    ///
    /// # Errors
    /// [`NotUpgraded`] if that does not come, or if it can't take over from this one.
    fn hear(mut new: NewProcess) -> Result<Self, NotUpgraded> {
        let FromNew::Hello(hello) = new.hear("start", FIRST_ANSWERS)? else {
            return Err(NotUpgraded::unexpected("start"));
        };
        let format = common_format(&hello).map_err(NotUpgraded::at("hello"))?;
        let unknown = unknown_features(&hello.features, format);
        Ok(Self { new, version: hello.version, format, unknown })
    }
}

impl Upgrade {
    /// Goes through all steps up to the new process's confirmation, or to the end of a check. Blocks.
    ///
    /// # Errors
    /// [`NotUpgraded`]; this process goes on then.
    fn run(self, new: Greeted, unchanging: Unchanging, is_check: bool) -> Result<Upgraded, NotUpgraded> {
        let Greeted { mut new, version, format, unknown } = new;
        let pid = new.pid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
        let mut done = Done { to: version.clone(), pid, ..Done::default() };
        self.offer(&mut new, &unchanging, format)?;
        if is_check {
            new.tell(&FromOld::Stop, &[]).map_err(NotUpgraded::at("plan"))?;
            return Ok(Upgraded::Checked(done));
        }
        tracing::info!(
            from = env!("CARGO_PKG_VERSION"),
            to = version,
            pid,
            generation = self.generation + 1,
            "upgrading"
        );
        if self.drops_unknown {
            self.drop_unknown(&unknown);
        }
        let began = clock::monotonic_microseconds();
        let mut handing = self.prepare(&mut new, unchanging, format)?;
        done.prepare_us = clock::monotonic_microseconds().saturating_sub(began);
        let watched = self
            .cut(&mut new, &mut handing, format, &mut done)
            .and_then(|stopped_at| self.watch(&mut new, &handing, &mut done, stopped_at));
        match watched {
            Ok(()) => {
                let listeners = self.listeners;
                Ok(Upgraded::Confirmed(Box::new(Confirmed { done, new, handing, listeners, is_stopped: false })))
            }
            Err(not) => {
                // In this order: it is gone before the workers go on.
                drop(new);
                drop(handing);
                Err(not)
            }
        }
    }

    /// Tells what there is to take over, and hears whether the new process can.
    fn offer(&self, new: &mut NewProcess, unchanging: &Unchanging, format: u32) -> Result<(), NotUpgraded> {
        let failed = NotUpgraded::at("plan");
        let told = self.tell_offer(new, unchanging, format);
        // What it says is more than that it does not listen any more.
        let FromNew::Planned { warnings } = new.hear("plan", FIRST_ANSWERS)? else {
            return Err(NotUpgraded::unexpected("plan"));
        };
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        told.map_err(failed)
    }

    fn tell_offer(&self, new: &NewProcess, unchanging: &Unchanging, format: u32) -> Result<(), String> {
        let mut offer = self.running.offer(unchanging, format);
        (offer.generation, offer.draining_ms) = (self.generation, self.draining_ms);
        new.tell(&FromOld::Offer(offer), &[])?;
        let sockets = self.running.sockets().map_err(|error| error.to_string())?;
        for (what, socket) in sockets.iter().chain(&self.listeners.sockets()) {
            new.tell(&FromOld::Socket(what.clone()), &[socket.as_fd()])?;
        }
        new.tell(&FromOld::Listeners, &[])
    }

    /// Ends the sessions that use these features, for good: also if nothing comes of the upgrade.
    fn drop_unknown(&self, unknown: &[&'static str]) {
        for feature in unknown {
            let Some(which) = users_of(feature) else { continue };
            let ended = tokio::runtime::Handle::current().block_on(self.running.close(&which, EndReason::Kicked));
            tracing::warn!(feature, ended, "sessions ended that use what the new version does not know");
        }
    }

    /// Everything that goes while calls go on.
    fn prepare(&self, new: &mut NewProcess, unchanging: Unchanging, format: u32) -> Result<HandingOver, NotUpgraded> {
        let failed = NotUpgraded::at("prepare");
        let shared = memory_of(&self.running.export_shared_early(), format).map_err(&failed)?;
        new.tell(&FromOld::Early, &[shared.as_fd()]).map_err(&failed)?;
        let channels = self.tell_channels(new).map_err(|reason| new.why("prepare", reason))?;
        let handing = self.running.begin_hand_over(unchanging, channels, format);
        let told = handing.wait_until_told().map_err(|reason| new.why("prepare", reason))?;
        let FromNew::Prepared { allocations } = new.hear("prepare", EARLY_TIME)? else {
            return Err(NotUpgraded::unexpected("prepare"));
        };
        // Some may have ended meanwhile, and others have come in their place.
        if allocations > told {
            return Err(failed(format!("the new process has {allocations} allocations of {told}")));
        }
        tracing::info!(allocations, generation = self.generation + 1, "prepared");
        Ok(handing)
    }

    /// A channel for each worker; gives this side's ends.
    fn tell_channels(&self, new: &NewProcess) -> Result<Vec<Channel>, String> {
        let workers = self.running.counters().count();
        let pairs = (0..workers).map(|_| Channel::pair()).collect::<Result<Vec<_>, _>>();
        let (own, its): (Vec<Channel>, Vec<Channel>) = pairs.map_err(|error| error.to_string())?.into_iter().unzip();
        let mut left = its.len();
        for channels in its.chunks(DESCRIPTORS_MAX) {
            left -= channels.len();
            let descriptors: Vec<BorrowedFd<'_>> = channels.iter().map(|channel| channel.as_fd()).collect();
            new.tell(&FromOld::Workers { more: left > 0 }, &descriptors)?;
        }
        Ok(own)
    }

    /// From the last packet that this process reads to the moment in which the new one may read; gives when the first
    /// worker stopped, in microseconds of the monotonic clock.
    fn cut(
        &self,
        new: &mut NewProcess,
        handing: &mut HandingOver,
        format: u32,
        done: &mut Done,
    ) -> Result<u64, NotUpgraded> {
        let failed = NotUpgraded::at("cut");
        handing.stop_accepting();
        let cut = handing.cut().map_err(&failed)?;
        let shared = memory_of(&cut.shared, format).map_err(&failed)?;
        (done.allocations, done.streams) = (cut.allocations, cut.streams);
        let told = FromOld::Cut { allocations: cut.allocations, streams: cut.streams };
        new.tell(&told, &[shared.as_fd()]).map_err(&failed)?;
        let FromNew::Ready = new.hear("cut", CUT_TIME)? else { return Err(NotUpgraded::unexpected("cut")) };
        // From here on it may read at any moment.
        handing.let_go();
        Ok(cut.stopped_at)
    }

    /// Lets it read, and watches it until it confirms.
    fn watch(
        &self,
        new: &mut NewProcess,
        handing: &HandingOver,
        done: &mut Done,
        stopped_at: u64,
    ) -> Result<(), NotUpgraded> {
        let mut watch = || {
            new.let_read().map_err(NotUpgraded::at("go"))?;
            let FromNew::TakenOver { at } = new.hear("go", CUT_TIME)? else {
                return Err(NotUpgraded::unexpected("go"));
            };
            done.gap_us = at.saturating_sub(stopped_at);
            handing.give_streams(new.channel().map_err(NotUpgraded::at("go"))?);
            let Done { allocations, streams, gap_us, .. } = *done;
            let gap_ms = gap_us as f64 / 1_000.0;
            tracing::info!(allocations, streams, gap_ms, generation = self.generation + 1, "taken over");
            self.hear_confirmation(new)?;
            done.late = handing.passed_late();
            Ok(())
        };
        let watched = watch();
        let streams_closed = done.streams + handing.passed_late();
        watched.map_err(|not| NotUpgraded { is_rolled_back: true, streams_closed, ..not })
    }
}

impl Upgrade {
    /// Waits for the end of the probation. A new process that says nothing meanwhile may be stuck, and calls with it.
    fn hear_confirmation(&self, new: &mut NewProcess) -> Result<(), NotUpgraded> {
        let until = clock::now().ticks.0 + (self.probation + CONFIRM_TIME).as_millis() as u64;
        loop {
            let left = Duration::from_millis(until.saturating_sub(clock::now().ticks.0));
            let within = if new.tells_life() { left.min(LIFE_SILENCE_MAX) } else { left };
            let said = new.hear("probation", within)?;
            if said == FromNew::Confirm {
                return Ok(());
            }
            if said != FromNew::Alive || left.is_zero() {
                return Err(NotUpgraded::unexpected("probation"));
            }
        }
    }
}

impl Confirmed {
    /// No connection over HTTP is accepted here any more.
    pub(crate) fn leave_listeners(&self) {
        self.listeners.leave();
    }

    /// The workers end without a word.
    pub(crate) fn end_workers(self) -> Leaving {
        let Self { done, new, handing, listeners, is_stopped } = self;
        match new.channel() {
            Ok(channel) if new.takes_passed_on() => handing.give_passed_on(channel),
            // It is of an earlier release, or the system has no more files.
            Ok(_) | Err(_) => handing.abandon_passed_on(),
        }
        handing.end();
        Leaving { done, new, listeners, is_stopped }
    }

    /// The new process gets a signal that came to this one. One that came by itself is stopped by what started it: a stop of this
    /// process is meant for nothing but this process.
    pub(crate) fn pass_on(&mut self, signal: &str) {
        if signal != "SIGHUP" && !self.new.is_child() {
            self.is_stopped = true;
            return;
        }
        let signal = match signal {
            "SIGINT" => Signal::INT,
            "SIGHUP" => Signal::HUP,
            _ => Signal::TERM,
        };
        if let Some(pid) = self.new.pid() {
            // It may have ended.
            let _ = kill_process(pid, signal);
        }
    }
}

/// What the new process is told last.
pub(crate) struct LastWords {
    /// The code of the last signed record.
    pub(crate) chain: Option<String>,
    pub(crate) metrics: String,
    /// How long the last recovery took.
    pub(crate) recovery_gap_us: u64,
}

/// A process whose sessions are another one's.
pub(crate) struct Leaving {
    pub(crate) done: Done,
    new: NewProcess,
    listeners: HeldListeners,
    is_stopped: bool,
}

impl Leaving {
    /// Whether this process started the new one; else something else decides when this one ends.
    pub(crate) const fn is_of_child(&self) -> bool {
        self.new.is_child()
    }

    /// Whether it was asked to stop already.
    pub(crate) const fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// The last message: the new process writes records from now on, and shows metrics that go on where these stop. What
    /// comes back is to be kept to the end: there is nothing here that could be reloaded.
    pub(crate) fn say_goodbye(self, last: LastWords) -> HeldListeners {
        let Done { gap_us, prepare_us, .. } = self.done;
        let LastWords { chain, metrics, recovery_gap_us } = last;
        let written = FromOld::Written { chain, gap_us, prepare_us, recovery_gap_us };
        let memory = to_memory(metrics.as_bytes()).map_err(|error| error.to_string());
        let told = memory.and_then(|memory| self.new.tell(&written, &[memory.as_fd()]));
        if let Err(reason) = told {
            tracing::warn!(reason, "the new process was not told of the last record");
        }
        self.new.let_live();
        self.listeners
    }
}

fn memory_of(state: &impl State, format: u32) -> Result<OwnedFd, String> {
    let bytes = state::write(state, format).map_err(|error| error.to_string())?;
    to_memory(&bytes).map_err(|error| error.to_string())
}

/// The newest format that both know.
fn common_format(hello: &Hello) -> Result<u32, String> {
    if clock::now().ticks.0.abs_diff(hello.clock.0) > CLOCKS_DIFFER_MAX {
        return Err("the clocks of both processes differ: they must run in the same time namespace".to_owned());
    }
    let Hello { protocol, version, format_min, format_max, features, .. } = hello.clone();
    Release::own().common_format(&Release { version, protocol, format_min, format_max, features })
}

/// The features of states that a program can't read: it does not name them, or the format that both have is too old for them.
fn unknown_features(known: &[String], format: u32) -> Vec<&'static str> {
    let is_known = |name: &str, since| since <= format && known.iter().any(|known| known == name);
    FEATURES.iter().filter(|(name, since)| !is_known(name, *since)).map(|(name, _)| *name).collect()
}

/// The sessions that use a feature.
fn users_of(feature: &str) -> Option<Selector> {
    match feature {
        LINK_LOCAL_CLIENTS => Some(Selector::LinkLocalClients),
        DUAL_ALLOCATIONS => Some(Selector::DualAllocations),
        SHA256_KEYS => Some(Selector::Sha256Keys),
        OTHER_REALMS => Some(Selector::OtherRealms),
        MOBILE_ALLOCATIONS => Some(Selector::MobileAllocations),
        TCP_ALLOCATIONS => Some(Selector::TcpAllocations),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::handoff::PROTOCOL;
    use crate::time::Ticks;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: "9.9.9".into(),
            format_min: state::FORMAT_MIN,
            format_max: state::FORMAT,
            features: Vec::new(),
            clock: clock::now().ticks,
            pid: 1,
            tells_life: None,
            takes_passed_on: None,
        }
    }

    #[test]
    fn what_a_program_does_not_name_or_the_format_can_not_carry_is_unknown() {
        let all: Vec<String> = FEATURES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(unknown_features(&all, state::FORMAT), [""; 0]);
        assert_eq!(unknown_features(&[], state::FORMAT), FEATURES.map(|(name, _)| name));
        let of_format_2 =
            [LINK_LOCAL_CLIENTS, DUAL_ALLOCATIONS, SHA256_KEYS, MOBILE_ALLOCATIONS, OTHER_REALMS, TCP_ALLOCATIONS];
        assert_eq!(unknown_features(&all, 1), of_format_2);
        assert!(FEATURES.iter().all(|(name, _)| users_of(name).is_some()), "--drop-unknown can end its sessions");
    }

    #[test]
    fn the_newest_format_that_both_know_is_used_and_strangers_are_told_why() {
        assert_eq!(common_format(&hello()), Ok(state::FORMAT));
        assert_eq!(common_format(&Hello { format_max: state::FORMAT + 7, ..hello() }), Ok(state::FORMAT));
        assert_eq!(common_format(&Hello { format_max: state::FORMAT - 1, ..hello() }), Ok(state::FORMAT - 1));
        let refused = |hello: Hello| common_format(&hello).unwrap_err();
        let newer = state::FORMAT + 1;
        let newer = refused(Hello { format_min: newer, format_max: newer, ..hello() });
        assert!(newer.contains("versions that follow each other"), "{newer}");
        assert!(refused(Hello { protocol: 7, ..hello() }).contains("protocol 7"));
        let later = Ticks(clock::now().ticks.0 + 60_000);
        assert!(refused(Hello { clock: later, ..hello() }).contains("time namespace"));
    }
}
