//! The streams of one worker: by slot, by id, by deadline.

use std::collections::{BTreeSet, VecDeque};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use super::fair_limit::Permit;
use super::half_open::{EvictedStreams, HalfOpenStreams};
use super::send_queue::SpareQueues;
use super::stream_state::{StreamState, StreamStateError, StreamsState};
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

    /// Takes a stream out with its place among the half open ones, for another worker; `None` if it has none, which leaves it
    /// here.
    pub(super) fn take(&mut self, at: usize) -> Option<(Stream, Permit)> {
        let permit = self.permits.remove(&self.slots.get(at)?.id)?;
        Some((self.remove(at)?, permit))
    }

    /// The stream is closed at this time if that is before its deadline.
    pub(super) fn hasten(&mut self, at: usize, to: Option<Ticks>) {
        if let Some(id) = self.slots.get(at).map(|stream| stream.id) {
            self.hasten_deadline(id, to);
        }
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

    /// It has so long to get an allocation. [8489-6.2.2-1]
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

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Every stream's slot, for the end of the process.
    pub(super) fn all(&self) -> Vec<usize> {
        self.slots.iter().map(|(at, _)| at).collect()
    }

    // ---- to another process

    /// The last number that a stream got.
    pub(super) const fn last_id(&self) -> u64 {
        self.next_id
    }

    /// Goes on counting streams where another process was.
    pub(super) const fn go_on_after(&mut self, last_id: u64) {
        if self.next_id < last_id {
            self.next_id = last_id;
        }
    }

    /// Everything but the limits, as plain values, and the sockets in the same order. Between two turns, and after
    /// [`Streams::give_up_beyond`].
    ///
    /// Of two workers with this state only one may ever write: see [`Stream::abandon`].
    pub(super) fn export(&self) -> (StreamsState, Vec<BorrowedFd<'_>>) {
        let streams = self.slots.iter().map(|(_, stream)| (stream.to_state(), stream.socket.as_fd()));
        let (streams, sockets) = streams.unzip();
        (StreamsState { next_id: self.next_id, streams, peers: None }, sockets)
    }

    /// Takes a stream over that [`Streams::export`] described, together with its socket, under the number that it had; gives
    /// its slot. `next_id` is that of the whole state.
    ///
    /// It has its turn at the end of this one, or among those that are ready: what waits is written, and what was read is
    /// handled, without an event of the socket. With TLS [`Stream::read_early`] must follow. Its input is not counted yet.
    ///
    /// # Errors
    /// [`StreamStateError`]; the socket is closed then.
    pub(super) fn import(
        &mut self,
        next_id: u64,
        state: StreamState,
        socket: TcpStream,
        has_allocation: bool,
        now: Ticks,
    ) -> Result<usize, StreamStateError> {
        state.check_id(next_id)?;
        let (id, client) = (state.id, state.five_tuple.client);
        if self.by_id.contains_key(&id) {
            return Err(StreamStateError::Id);
        }
        let mut stream = Stream::from_state(state, socket, self.limits.queue_bytes, now)?;
        self.next_id = self.next_id.max(next_id);
        let deadline = stream.deadline.take();
        let at = self.slots.insert(stream);
        self.by_id.insert(id, at);
        if !has_allocation {
            self.permits.insert(id, self.half_open.return_to(client, self.evicted.evict(id)));
            self.set_deadline(id, now);
            self.hasten_deadline(id, deadline);
        }
        if self.slots[at].has_messages() {
            self.make_ready(at);
        }
        if self.slots[at].has_backlog() || self.slots[at].wants_write() {
            self.make_dirty(at);
        }
        Ok(at)
    }

    /// The stream is closed at this time if that is before its deadline; without a limit it has none.
    fn hasten_deadline(&mut self, id: StreamId, to: Option<Ticks>) {
        if let Some(stream) = self.find(id).and_then(|at| self.slots.get_mut(at))
            && let (Some(deadline), Some(to)) = (stream.deadline, to)
            && to < deadline
        {
            stream.deadline = Some(to);
            self.deadlines.remove(&(deadline, id));
            self.deadlines.insert((to, id));
        }
    }

    /// Gives payload up so that no more than so many bytes wait for all streams together, each with an equal share. What is
    /// encrypted already, has begun to leave, or is no payload stays, so it can be more.
    ///
    /// Gives slots, and whose payload it was, in bytes: it is to be counted as not sent. Records that were held back for it
    /// may be decided now.
    pub(super) fn give_up_beyond(&mut self, bytes: usize) -> Vec<(usize, Vec<(AllocationId, u32)>)> {
        let share = equal_share(self.slots.iter().map(|(_, stream)| stream.queue_state_bytes()).collect(), bytes);
        let given_up = self.slots.iter_mut().map(|(at, stream)| (at, stream.give_up_beyond(share)));
        given_up.filter(|(_, payloads)| !payloads.is_empty()).collect()
    }
}

/// The most that each may have of so many bytes if those that need less leave the rest to others; no limit if it is enough for
/// all.
fn equal_share(mut needs: Vec<usize>, mut bytes: usize) -> usize {
    needs.sort_unstable();
    for (at, need) in needs.iter().enumerate() {
        let share = bytes / (needs.len() - at);
        if *need > share {
            return share;
        }
        bytes -= need;
    }
    usize::MAX
}

#[cfg(test)]
mod tests;
