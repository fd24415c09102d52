//! What a worker's shell counts beside the core: loops, batches, streams, lost events.

use crate::net::kernel::ThreadClock;
use crate::net::sys::SendReport;
use crate::protocol::accounting::Amount;
use crate::protocol::counters::{AmountCell, Cell};

/// Batches of up to 1, 2, 4, 8, 16, 32 and 64 datagrams.
const BATCH_BUCKETS: usize = 7;

/// How many datagrams came at once.
#[derive(Debug, Default)]
pub struct Batches {
    buckets: [Cell; BATCH_BUCKETS],
    datagrams: Cell,
}

impl Batches {
    /// One batch of so many datagrams.
    #[inline]
    pub(super) fn add(&self, datagrams: usize) {
        if datagrams > 0 {
            let bucket = (usize::BITS - (datagrams - 1).leading_zeros()) as usize;
            self.buckets[bucket.min(BATCH_BUCKETS - 1)].add(1);
            self.datagrams.add(datagrams as u64);
        }
    }

    /// For each bucket the largest batch in it, and how many batches were so large.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.iter().enumerate().map(|(at, batches)| (1 << at, batches.get()))
    }

    /// Datagrams in all batches.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.datagrams.get()
    }
}

/// One writer, any reader.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Turns of the loop.
    pub loops: Cell,
    /// What the thread took of a processor.
    pub processor: ThreadClock,
    /// Batches received on listeners.
    pub listener_batches: Batches,
    /// Batches received on relayed sockets.
    pub relayed_batches: Batches,
    /// Datagrams that came behind another one of the same sender in one piece.
    pub coalesced: Cell,
    /// Messages of several datagrams that the kernel took.
    pub segmented: Cell,
    /// Messages of several datagrams that it refused; they were sent one by one.
    pub segmented_refused: Cell,
    /// Replies to clients that the kernel refused to send.
    pub replies_lost: Cell,
    /// Payloads that went from one relayed address to another without the kernel.
    pub handed_over: Cell,
    /// Messages taken from the inbox.
    pub messages: Cell,
    /// Panics after which the worker's server was made anew of its state.
    pub core_restarts: Cell,
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
    /// Streams closed because they asked too much without an allocation.
    pub streams_cut_off: Cell,
    /// Bytes of streams that were read and wait to be handled, or for the rest of their message.
    pub stream_input_bytes: Cell,
    /// Payload in the queues of streams: judged, but not taken by the kernel yet.
    pub waiting: AmountCell,
    /// Session events that the log could not take.
    pub events_lost: Cell,
    /// Events for usage records that could not be taken: records that no sink got.
    pub records_lost: Cell,
    /// Events of refused requests that the log and the memory of refusals could not take.
    pub refusal_events_lost: Cell,
}

impl NetCounters {
    pub(super) fn note_sent(&self, report: SendReport) {
        self.segmented.add(report.segmented as u64);
        self.segmented_refused.add(report.refused as u64);
        self.replies_lost.add(report.replies_lost as u64);
    }

    /// A stream's queue holds another amount now than before.
    pub(super) fn waits(&self, before: Amount, after: Amount) {
        self.waiting.packets.add(after.packets.wrapping_sub(before.packets));
        self.waiting.bytes.add(after.bytes.wrapping_sub(before.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_batch_is_in_the_bucket_that_just_holds_it() {
        for (datagrams, largest) in [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (16, 16), (17, 32), (33, 64), (64, 64)] {
            let batches = Batches::default();
            batches.add(datagrams);
            let filled: Vec<_> = batches.buckets().filter(|(_, count)| *count > 0).collect();
            assert_eq!(filled, [(largest, 1)], "{datagrams}");
            assert_eq!(batches.datagrams(), datagrams as u64);
        }
        assert_eq!(Batches::default().buckets().last(), Some((super::super::worker::BATCH as u64, 0)));
    }
}
