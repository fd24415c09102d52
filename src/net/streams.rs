//! The streams of one worker: by slot, by id, by deadline.

use std::collections::{BTreeSet, VecDeque};
use std::net::TcpStream;
use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use super::fair_limit::Permit;
use super::half_open::{EvictedStreams, HalfOpenStreams};
use super::send_queue::SpareQueues;
use super::tcp::{Sent, Stream};
use super::tls_session::TlsSession;
use super::worker::TcpLimits;
use crate::address::{FiveTuple, StreamId, Via};
use crate::protocol::ids::AllocationId;
use crate::time::Ticks;

/// Bytes that wait for a stream and are written before the turn ends.
const WRITE_BYTES: usize = 64 * 1024;

/// Empty queues that are kept.
const SPARE_MAX: usize = 32;

/// Every adopted stream, found in no more than one step each way.
pub(super) struct Streams {
    slots: Slab<Stream>,
    by_id: HashMap<StreamId, usize>,
    deadlines: BTreeSet<(Ticks, StreamId)>,
    next_id: u64,
    limits: TcpLimits,
    /// Streams with whole messages that the budget of a turn did not reach, in the order in which they have their turn.
    ready: VecDeque<StreamId>,
    /// Streams with frames that wait for the end of the turn.
    dirty: Vec<StreamId>,
    /// Empty queues, for streams that have something to send.
    spare: SpareQueues,
    half_open: Arc<HalfOpenStreams>,
    /// The places of those that have no allocation.
    permits: HashMap<StreamId, Permit>,
    evicted: Arc<EvictedStreams>,
}

impl Streams {
    pub(super) fn new(limits: TcpLimits, half_open: Arc<HalfOpenStreams>, evicted: Arc<EvictedStreams>) -> Self {
        Self {
            slots: Slab::new(),
            by_id: HashMap::new(),
            deadlines: BTreeSet::new(),
            next_id: 0,
            limits,
            ready: VecDeque::new(),
            dirty: Vec::new(),
            spare: Vec::new(),
            half_open,
            permits: HashMap::new(),
            evicted,
        }
    }

    pub(super) const fn set_limits(&mut self, limits: TcpLimits) {
        self.limits = limits;
    }

    pub(super) fn insert(
        &mut self,
        socket: TcpStream,
        tls: Option<Box<TlsSession>>,
        five_tuple: FiveTuple,
        permit: Permit,
        now: Ticks,
    ) -> (usize, &mut Stream) {
        self.next_id += 1;
        let id = StreamId(self.next_id);
        let via = Via::Stream(id, five_tuple);
        let stream = Stream::new(socket, tls, id, via, self.limits.queue_bytes, now);
        let at = self.slots.insert(stream);
        self.by_id.insert(id, at);
        if !permit.on_eviction(self.evicted.evict(id)) {
            // Its place was taken on the way here.
            self.evicted.push(id);
        }
        self.permits.insert(id, permit);
        self.set_deadline(id, now);
        (at, &mut self.slots[at])
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<Stream> {
        let stream = self.slots.try_remove(at)?;
        self.by_id.remove(&stream.id);
        self.permits.remove(&stream.id);
        if let Some(deadline) = stream.deadline {
            self.deadlines.remove(&(deadline, stream.id));
        }
        Some(stream)
    }

    pub(super) fn get(&self, at: usize) -> Option<&Stream> {
        self.slots.get(at)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Stream> {
        self.slots.get_mut(at)
    }

    pub(super) fn find(&self, id: StreamId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Gives a stream a place behind all others that are ready; `false` if it has one.
    pub(super) fn make_ready(&mut self, at: usize) -> bool {
        let Some(stream) = self.slots.get_mut(at).filter(|stream| !stream.is_ready) else { return false };
        stream.is_ready = true;
        self.ready.push_back(stream.id);
        true
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Takes the stream that has waited longest, if it still lives.
    pub(super) fn pop_ready(&mut self) -> Option<usize> {
        let id = self.ready.pop_front()?;
        let at = self.find(id)?;
        self.slots[at].is_ready = false;
        Some(at)
    }

    /// Queues a frame, in pieces, that leaves at the end of the turn; at once what is much or would find no room.
    pub(super) fn send(&mut self, at: usize, pieces: [&[u8]; 3], payload: Option<(AllocationId, u32)>) -> Option<Sent> {
        let stream = self.slots.get_mut(at)?;
        if !stream.is_blocked() && stream.ready_bytes() >= WRITE_BYTES {
            stream.flush(&mut self.spare);
        }
        let mut sent = stream.send(pieces, payload, &mut self.spare);
        if sent == Sent::Full && !stream.is_blocked() {
            stream.flush(&mut self.spare);
            sent = stream.send(pieces, payload, &mut self.spare);
        }
        // One that is blocked is written to when epoll tells of room.
        if !stream.awaits_room {
            self.make_dirty(at);
        }
        Some(sent)
    }

    /// The stream has something to write at the end of the turn.
    pub(super) fn make_dirty(&mut self, at: usize) {
        if let Some(stream) = self.slots.get_mut(at)
            && !stream.is_dirty
        {
            stream.is_dirty = true;
            self.dirty.push(stream.id);
        }
    }

    /// A stream with something to write, if it still lives.
    pub(super) fn pop_dirty(&mut self) -> Option<Option<usize>> {
        let id = self.dirty.pop()?;
        let at = self.find(id);
        if let Some(stream) = at.and_then(|at| self.slots.get_mut(at)) {
            stream.is_dirty = false;
        }
        Some(at)
    }

    /// Writes what waits for a stream.
    pub(super) fn flush(&mut self, at: usize) {
        if let Some(stream) = self.slots.get_mut(at) {
            stream.flush(&mut self.spare);
        }
        self.spare.truncate(SPARE_MAX);
    }

    /// The stream got its allocation: no deadline any more, and it is no longer half open.
    pub(super) fn keep_alive(&mut self, id: StreamId) {
        self.permits.remove(&id);
        self.lift_deadline(id);
    }

    fn lift_deadline(&mut self, id: StreamId) {
        if let Some(stream) = self.find(id).and_then(|at| self.slots.get_mut(at))
            && let Some(deadline) = stream.deadline.take()
        {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// The stream has no allocation any more: it is half open again.
    pub(super) fn expect_allocation(&mut self, id: StreamId, now: Ticks) {
        if let Some(stream) = self.find(id).and_then(|at| self.slots.get(at))
            && !self.permits.contains_key(&id)
        {
            let permit = self.half_open.return_to(stream.via.five_tuple().client, self.evicted.evict(id));
            self.permits.insert(id, permit);
        }
        self.set_deadline(id, now);
    }

    /// It has so long to get an allocation.
    fn set_deadline(&mut self, id: StreamId, now: Ticks) {
        self.lift_deadline(id);
        if self.limits.unauthenticated_ms == 0 {
            return;
        }
        if let Some(stream) = self.find(id).and_then(|at| self.slots.get_mut(at)) {
            let deadline = Ticks(now.0 + self.limits.unauthenticated_ms);
            stream.deadline = Some(deadline);
            self.deadlines.insert((deadline, id));
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Ticks> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A stream whose time is over.
    pub(super) fn pop_overdue(&mut self, now: Ticks) -> Option<usize> {
        let first = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.deadlines.remove(&first);
        self.find(first.1)
    }

    /// A stream that must give way to another, unless it has got its allocation in the meantime.
    pub(super) fn pop_evicted(&mut self) -> Option<usize> {
        while let Some(id) = self.evicted.pop() {
            if self.permits.contains_key(&id)
                && let Some(at) = self.find(id)
            {
                return Some(at);
            }
        }
        None
    }

    /// Every stream's slot, for the end of the process.
    pub(super) fn all(&self) -> Vec<usize> {
        self.slots.iter().map(|(at, _)| at).collect()
    }
}
