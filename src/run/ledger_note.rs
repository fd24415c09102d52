//! What belongs to no worker, as it is written for the process that goes on if this one is killed. Decision 0213.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use super::http_listeners::BoundHttpListeners;
use crate::net::Running;
use crate::net::hand_over::Unchanging;
use crate::net::ledger::{Cell, Ledger, ShellNote};
use crate::net::upgrade_messages::{PassedSocket, UpgradeTimes};
use crate::state;

/// What the process is, and sockets that stay open as long as the ledger names them.
pub(super) struct LedgerNote {
    note: ShellNote,
    descriptors: Vec<OwnedFd>,
}

/// What came before, which the next process can't find out by itself.
#[derive(Clone, Copy)]
pub(super) struct History {
    /// Which process of this server this one is, from 1.
    pub(super) generation: u64,
    pub(super) times: UpgradeTimes,
    /// How long it has been draining.
    pub(super) draining: Option<Duration>,
}

impl LedgerNote {
    /// `http` are the sockets of HTTP listeners.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub(super) fn of(
        running: &Running,
        unchanging: &Unchanging,
        http: Vec<(PassedSocket, OwnedFd)>,
        History { generation, times, draining }: History,
    ) -> io::Result<Self> {
        let mut offer = running.offer(unchanging, state::FORMAT);
        offer.generation = generation;
        offer.draining_ms = draining.map(|since| since.as_millis() as u64);
        let mut sockets = running.sockets()?;
        sockets.extend(http);
        let numbers = sockets.iter().map(|(what, socket)| (what.clone(), socket.as_raw_fd())).collect();
        let descriptors = sockets.into_iter().map(|(_, socket)| socket).collect();
        let text = unchanging.config().source.text.as_ref();
        let config = text.map(|text| text.expose().to_vec().into());
        Ok(Self { note: ShellNote { offer, sockets: numbers, config, times }, descriptors })
    }

    /// Writes it with what the workers share, and the metrics.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn write(self, ledger: &Ledger, running: &Running, metrics: String) -> io::Result<()> {
        let note = minicbor::to_vec(&self.note).map_err(|error| io::Error::other(error.to_string()))?;
        running.publish_shared(ledger)?;
        ledger.publish(Cell::Metrics, metrics.into_bytes(), Vec::new())?;
        ledger.publish(Cell::Shell, note, self.descriptors)
    }
}

/// Writes it for a process that has just taken calls over, whose workers have had a turn: the rest of its start takes a while.
/// Gives whether the next process could go on. Blocks.
pub(super) fn write_first(
    ledger: &Ledger,
    running: &Running,
    http: &BoundHttpListeners,
    metrics: String,
    history: History,
) -> bool {
    let unchanging = tokio::runtime::Handle::current().block_on(running.keep_unchanged());
    let note = LedgerNote::of(running, &unchanging, http.sockets(), history);
    let written = note.and_then(|note| note.write(ledger, running, metrics));
    if let Err(error) = &written {
        // Once a second that is tried again, as soon as the server is ready.
        tracing::error!(%error, "the ledger can't be written: after a crash calls may be lost");
    }
    written.is_ok()
}
