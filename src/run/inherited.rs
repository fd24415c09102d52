//! What a server has from the process before it, besides its calls.

use std::time::Duration;

use super::Started;
use super::take_over::Passage;
use crate::ops::upgrades::UpgradeCounts;

/// What another process leaves besides calls.
pub(super) struct Inherited {
    pub(super) metrics: String,
    pub(super) own_metrics: String,
    pub(super) passage: Passage,
    pub(super) draining: Option<Duration>,
}

impl Inherited {
    /// Shows metrics that go on where those of the process before stopped, and tells how this one came to its calls.
    pub(super) fn go_on_counting(&self, started: &Started) {
        started.metrics.go_on_after(&self.metrics, &self.own_metrics);
        let Passage { generation, times, recovered } = self.passage;
        let Some(death) = recovered else {
            // Its other counts are in those metrics.
            return started.upgrades.take_over(&UpgradeCounts { generation, times, ..UpgradeCounts::default() });
        };
        started.upgrades.recovered(generation, times);
        let (allocations, ..) = started.running.usage();
        let gap_ms = times.recovery_gap_us as f64 / 1_000.0;
        tracing::warn!(
            signal = death.signal,
            allocations,
            gap_ms,
            "the server was killed: this process goes on with its calls over UDP"
        );
    }
}
