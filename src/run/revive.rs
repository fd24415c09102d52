//! Goes on for a process that was killed, out of its ledger: as an upgrade takes over, but without anybody who could go on instead.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::ledger_note::{History, write_first};
use super::supervise::{Death, read_in_time};
use super::take_over::{Passage, SIGN_OF_LIFE, TakenOver, plan};
use crate::clock;
use crate::config::Config;
use crate::failure::Failure;
use crate::net::ledger::{Incidents, Ledger, Left};
use crate::net::take_over::Before;
use crate::net::upgrade_messages::{PassedSocket, UpgradeTimes};
use crate::ops::metrics::Metrics;

/// What a process that was killed left, and how that came.
pub(crate) struct Recovery {
    pub(super) left: Left,
    pub(super) incidents: Incidents,
    pub(super) death: Death,
}

impl Recovery {
    /// Goes on. Blocks; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Why that can't be.
    pub(super) fn go_on(self, config: Config, ledger: Option<Arc<Ledger>>) -> Result<TakenOver, Failure> {
        let Self { left, incidents, death } = self;
        let Left { offer, sockets, shared, metrics, workers, config: had, times } = left;
        let begun_at = clock::now().ticks;
        // Those that are planned with may be needed once more.
        let copies = copies_of(&sockets)?;
        let planned = plan(config.clone(), &offer, copies, true).or_else(|failure| {
            let had = had.and_then(|had| read_in_time(&config, Some(&had)).ok());
            let Some(had) = had.map(|had| had.until_restart(&config)) else { return Err(failure) };
            tracing::error!(%failure, "the configuration can't be carried out: the one that the killed server had holds");
            plan(had, &offer, copies_of(&sockets)?, true)
        });
        let (planned, http) = planned?;
        drop(sockets);
        planned.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let config = planned.config.clone();
        let before = |left| Before::Killed { left: Box::new(left), silenced: incidents.silenced.clone() };
        let launched = planned.launch(None, workers.into_iter().map(before).collect(), ledger.clone());
        let taking_over = launched.map_err(|error| Failure::Run(error.to_string()))?;
        taking_over.suspect(&incidents.all);
        let allocations = taking_over.wait_until_told().map_err(Failure::Run)?;
        taking_over.take(shared, allocations, 0).map_err(Failure::Run)?;
        let (running, events) = taking_over.go().map_err(Failure::Run)?;
        let times = UpgradeTimes { recovery_gap_us: clock::monotonic_microseconds().saturating_sub(death.at), ..times };
        let running = Arc::new(running);
        running.accept_streams();
        let own_metrics = Metrics::new(Arc::clone(&running), Arc::default(), None).render();
        let silent = tokio::runtime::Handle::current().block_on(running.silent_workers(SIGN_OF_LIFE));
        if !silent.is_empty() {
            return Err(Failure::Run(format!("workers are stuck right after they took over: {silent:?}")));
        }
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let draining = offer.draining_ms.map(|ms| Duration::from_millis(ms + clock::now().ticks.since(begun_at)));
        let generation = offer.generation;
        let history = History { generation, times, draining };
        let write = |ledger: Arc<Ledger>| write_first(&ledger, &running, &http, metrics.clone(), history);
        if ledger.is_some_and(write) {
            running.set_recoverable(true);
        }
        running.follow_as_started();
        let passage = Passage { generation, times, recovered: Some(death) };
        Ok(TakenOver { config, running, events, http, metrics, own_metrics, chain: None, passage, draining })
    }
}

type Sockets = Vec<(PassedSocket, OwnedFd)>;

fn copies_of(sockets: &Sockets) -> Result<Sockets, Failure> {
    let copy = |(what, socket): &(PassedSocket, OwnedFd)| Ok((what.clone(), socket.try_clone()?));
    sockets.iter().map(copy).collect()
}
