//! What became of upgrades, for metrics, and how the next one is to be done.
//!
//! The upgrade itself is done in `run`, which tells this part of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::UpgradeResult;
use super::metrics::Text;
use crate::config::upgrade::UpgradeConfig;
use crate::net::handoff::PROTOCOL;
use crate::net::upgrade_messages::UpgradeTimes;
use crate::state::{FEATURES, FORMAT, FORMAT_MIN};

/// What a program says of itself before it takes over: `throughway version --handover` prints it as a line of JSON.
///
/// A later version may say more.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct Release {
    /// Its version.
    pub version: String,
    /// The protocol in which it takes over: [`PROTOCOL`].
    pub protocol: u32,
    /// The oldest format of states that it reads and writes.
    pub format_min: u32,
    /// The newest one.
    pub format_max: u32,
    /// The features of states that it knows.
    pub features: Vec<String>,
}

impl Release {
    /// This program.
    #[must_use]
    pub fn own() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            format_min: FORMAT_MIN,
            format_max: FORMAT,
            features: FEATURES.iter().map(|(name, _)| (*name).to_owned()).collect(),
        }
    }

    /// As a line of JSON, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What another program printed; `None` if that is not such a line.
    #[must_use]
    pub fn of_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }

    /// The newest format that both programs have.
    ///
    /// # Errors
    /// Why one can't take over from the other.
    pub fn common_format(&self, other: &Self) -> Result<u32, String> {
        let (from, to) = (&self.version, &other.version);
        if self.protocol != other.protocol {
            return Err(format!("{to} takes over by protocol {}, {from} by {}", other.protocol, self.protocol));
        }
        let format = self.format_max.min(other.format_max);
        if format < self.format_min.max(other.format_min) {
            return Err(format!(
                "{to} reads states of format {} to {}, {from} writes {} to {}: use versions that follow each other",
                other.format_min, other.format_max, self.format_min, self.format_max
            ));
        }
        Ok(format)
    }
}

/// Counts of upgrades. A process that has taken over goes on with those of the one before: see [`Upgrades::take_over`].
#[derive(Debug)]
pub struct Upgrades {
    settings: Mutex<UpgradeConfig>,
    results: [AtomicU64; UpgradeResult::ALL.len()],
    /// Which process of this server it is, from 1; each that takes over is the next.
    generation: AtomicU64,
    times: Mutex<UpgradeTimes>,
    /// Client streams of upgrades that were rolled back.
    rolled_back: AtomicU64,
    /// Whether this process went on for one that was killed.
    recoveries: AtomicU64,
}

/// What a process that takes over needs to go on counting.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UpgradeCounts {
    /// How many upgrades had each result, in the order of [`UpgradeResult::ALL`].
    pub results: [u64; UpgradeResult::ALL.len()],
    /// Which process of this server it is, from 1.
    pub generation: u64,
    /// Client streams that were closed because an upgrade was rolled back.
    pub rolled_back: u64,
    /// How long the last one took.
    pub times: UpgradeTimes,
}

impl Upgrades {
    /// Of a process that was started and has taken nothing over.
    #[must_use]
    pub fn new(settings: UpgradeConfig) -> Self {
        Self {
            settings: Mutex::new(settings),
            results: Default::default(),
            generation: AtomicU64::new(1),
            times: Mutex::default(),
            rolled_back: AtomicU64::default(),
            recoveries: AtomicU64::default(),
        }
    }

    fn settings(&self) -> MutexGuard<'_, UpgradeConfig> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new configuration over.
    pub fn reconfigure(&self, settings: &UpgradeConfig) {
        self.settings().clone_from(settings);
    }

    /// Whether SIGHUP upgrades if the file of the program has changed: `upgrade.on_reload`.
    #[must_use]
    pub fn is_wanted_on_reload(&self) -> bool {
        self.settings().on_reload
    }

    /// How long a new process must serve before the old one exits: `upgrade.probation`.
    #[must_use]
    pub fn probation(&self) -> Duration {
        self.settings().probation
    }

    /// Where a process that this one did not start can ask for the clients: `upgrade.socket`.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        self.settings().socket.clone()
    }

    /// Goes on where the process before, which these counts are from, has stopped. `generation` becomes the next one.
    pub fn take_over(&self, counts: &UpgradeCounts) {
        for (own, count) in self.results.iter().zip(counts.results) {
            own.store(count, Ordering::Relaxed);
        }
        self.generation.store(counts.generation.saturating_add(1), Ordering::Relaxed);
        self.rolled_back.store(counts.rolled_back, Ordering::Relaxed);
        self.set_times(counts.times);
    }

    fn set_times(&self, times: UpgradeTimes) {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner) = times;
    }

    /// How long the last upgrade and the last recovery took.
    #[must_use]
    pub fn times(&self) -> UpgradeTimes {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the process that takes over.
    #[must_use]
    pub fn counts(&self) -> UpgradeCounts {
        UpgradeCounts {
            results: std::array::from_fn(|at| self.results[at].load(Ordering::Relaxed)),
            generation: self.generation(),
            rolled_back: self.rolled_back.load(Ordering::Relaxed),
            times: self.times(),
        }
    }

    /// Which process of this server it is, from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// An upgrade has ended.
    pub fn ended(&self, result: UpgradeResult) {
        self.results[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// This process went on for one that was killed, under the same generation.
    pub fn recovered(&self, generation: u64, times: UpgradeTimes) {
        self.generation.store(generation, Ordering::Relaxed);
        self.recoveries.fetch_add(1, Ordering::Relaxed);
        self.set_times(times);
    }

    /// Client streams that can't go on because an upgrade was rolled back.
    pub fn streams_rolled_back(&self, count: u64) {
        self.rolled_back.fetch_add(count, Ordering::Relaxed);
    }

    /// Writes the metrics; `not_passed` are the client streams that were established during an upgrade and could not be passed on.
    pub fn publish(&self, text: &mut Text, not_passed: u64) {
        let counts = self.counts();
        let results = UpgradeResult::ALL.iter().map(|result| result.name()).zip(counts.results);
        text.counter("throughway_upgrades_total", "Upgrades that were asked for, by result").each("result", results);
        text.gauge("throughway_generation", "Which process of this server this is: 1, and one more after each upgrade")
            .value(counts.generation);
        let UpgradeTimes { gap_us, prepare_us, recovery_gap_us } = counts.times;
        let seconds = |micros: u64| micros as f64 / 1e6;
        text.gauge("throughway_upgrade_gap_seconds", "Time in which no process read the sockets at the last upgrade")
            .value(seconds(gap_us));
        text.counter(
            "throughway_recoveries_total",
            "Times that the server was killed and its supervisor started the next one",
        )
        .value(self.recoveries.load(Ordering::Relaxed));
        text.gauge("throughway_recovery_gap_seconds", "Time in which no process read the sockets at the last recovery")
            .value(seconds(recovery_gap_us));
        text.gauge("throughway_upgrade_prepare_seconds", "Time that the preparation of the last upgrade took")
            .value(seconds(prepare_us));
        text.counter("throughway_upgrade_streams_closed_total", "Client streams that an upgrade closed, by reason")
            .each("reason", [("rolled_back", counts.rolled_back), ("not_passed", not_passed)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrades() -> Upgrades {
        Upgrades::new(UpgradeConfig { on_reload: true, probation: Duration::from_secs(5), socket: None })
    }

    #[test]
    fn what_happened_is_published_and_goes_on_in_the_next_process() {
        let old = upgrades();
        let published = |of: &Upgrades| {
            let mut text = Text::default();
            of.publish(&mut text, 2);
            text.into_string()
        };
        assert!(published(&old).contains("\nthroughway_upgrades_total{result=\"rolled_back\"} 0\n"));
        let times = UpgradeTimes { gap_us: 2_500, prepare_us: 1_500_000, recovery_gap_us: 4_000 };
        old.set_times(times);
        old.ended(UpgradeResult::RolledBack);
        old.streams_rolled_back(3);
        let text = published(&old);
        for line in [
            "throughway_upgrades_total{result=\"confirmed\"} 0",
            "throughway_upgrades_total{result=\"rolled_back\"} 1",
            "throughway_generation 1",
            "throughway_upgrade_gap_seconds 0.0025",
            "throughway_upgrade_prepare_seconds 1.5",
            "throughway_recovery_gap_seconds 0.004",
            "throughway_upgrade_streams_closed_total{reason=\"rolled_back\"} 3",
            "throughway_upgrade_streams_closed_total{reason=\"not_passed\"} 2",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in {text}");
        }
        let new = upgrades();
        new.take_over(&old.counts());
        assert_eq!(new.counts(), UpgradeCounts { generation: 2, ..old.counts() });
        assert_eq!(new.counts().results.iter().sum::<u64>(), 1);
        new.recovered(2, UpgradeTimes { recovery_gap_us: 5_000, ..times });
        assert_eq!((new.generation(), new.times().gap_us, new.times().recovery_gap_us), (2, 2_500, 5_000));
    }

    #[test]
    fn two_programs_find_the_format_that_both_have() {
        let own = Release::own();
        assert_eq!(Release::of_line(&format!("{}\n", own.to_line())), Some(own.clone()));
        let later = own.to_line().replace('{', "{\"new\":[1],");
        assert_eq!(Release::of_line(&later), Some(own.clone()), "a later version says more");
        assert_eq!((Release::of_line("throughway 0.1.0"), Release::of_line("{}")), (None, None));
        let of = |format_min, format_max| Release { version: "9.9.9".into(), format_min, format_max, ..own.clone() };
        assert_eq!(own.common_format(&own), Ok(FORMAT));
        assert_eq!(own.common_format(&of(FORMAT, FORMAT + 5)), Ok(FORMAT));
        assert_eq!(of(FORMAT, FORMAT + 5).common_format(&own), Ok(FORMAT));
        assert_eq!(own.common_format(&of(0, FORMAT_MIN)), Ok(FORMAT_MIN));
        let why = own.common_format(&of(FORMAT + 1, FORMAT + 5)).unwrap_err();
        assert!(why.starts_with("9.9.9 reads states of format 3 to 7"), "{why}");
        let why = own.common_format(&Release { protocol: 2, ..own.clone() }).unwrap_err();
        assert!(why.contains("by protocol 2"), "{why}");
    }

    #[test]
    fn a_reload_changes_how_the_next_one_is_done() {
        let upgrades = upgrades();
        assert!(upgrades.is_wanted_on_reload());
        let socket = Some(PathBuf::from("/run/u.sock"));
        upgrades.reconfigure(&UpgradeConfig {
            on_reload: false,
            probation: Duration::from_secs(9),
            socket: socket.clone(),
        });
        let told = (upgrades.is_wanted_on_reload(), upgrades.probation(), upgrades.socket());
        assert_eq!(told, (false, Duration::from_secs(9), socket));
    }
}
