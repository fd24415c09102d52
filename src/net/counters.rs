//! What a worker's shell counts beside the core: loops, batches, streams, lost events.

use crate::protocol::accounting::Amount;
use crate::protocol::counters::{AmountCell, Cell};

/// One writer, any reader.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Turns of the loop.
    pub loops: Cell,
    /// Batches received on listeners.
    pub batches: Cell,
    /// Datagrams received on listeners.
    pub datagrams: Cell,
    /// Streams that are open now.
    pub streams_open: Cell,
    /// Streams ever adopted.
    pub streams_adopted: Cell,
    /// Streams closed because they carried no STUN.
    pub streams_broken: Cell,
    /// Streams closed because they broke the rules of TLS.
    pub streams_tls_broken: Cell,
    /// Streams closed because they got no allocation in time.
    pub streams_overdue: Cell,
    /// Payload in the queues of streams: judged, but not taken by the kernel yet.
    pub waiting: AmountCell,
    /// Session events that the log could not take.
    pub events_lost: Cell,
}

impl NetCounters {
    pub(super) fn received(&self, datagrams: usize) {
        self.batches.add(1);
        self.datagrams.add(datagrams as u64);
    }

    /// A stream's queue holds another amount now than before.
    pub(super) fn waits(&self, before: Amount, after: Amount) {
        self.waiting.packets.add(after.packets.wrapping_sub(before.packets));
        self.waiting.bytes.add(after.bytes.wrapping_sub(before.bytes));
    }
}
