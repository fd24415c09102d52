//! The streams of one worker: by slot, by id, by deadline.

use std::collections::BTreeSet;
use std::net::TcpStream;

use hashbrown::HashMap;
use slab::Slab;

use super::tcp::Stream;
use super::tls_session::TlsSession;
use super::worker::TcpLimits;
use crate::protocol::address::{FiveTuple, StreamId, Via};
use crate::protocol::border::{AllocationId, OpenedRelay, RelayRefused};
use crate::protocol::time::Ticks;

/// Every adopted stream, found in no more than one step each way.
pub(super) struct Streams {
    slots: Slab<Stream>,
    by_id: HashMap<StreamId, usize>,
    deadlines: BTreeSet<(Ticks, StreamId)>,
    next_id: u64,
    limits: TcpLimits,
    /// Sockets opened for the core that it has not been told of yet.
    pub(super) opened: Vec<(AllocationId, Result<OpenedRelay, RelayRefused>)>,
}

impl Streams {
    pub(super) fn new(limits: TcpLimits) -> Self {
        Self {
            slots: Slab::new(),
            by_id: HashMap::new(),
            deadlines: BTreeSet::new(),
            next_id: 0,
            limits,
            opened: Vec::new(),
        }
    }

    pub(super) const fn set_limits(&mut self, limits: TcpLimits) {
        self.limits = limits;
    }

    pub(super) fn insert(
        &mut self,
        socket: TcpStream,
        tls: Option<TlsSession>,
        five_tuple: FiveTuple,
        now: Ticks,
    ) -> (usize, &mut Stream) {
        self.next_id += 1;
        let id = StreamId(self.next_id);
        let stream = Stream::new(socket, tls, id, Via::Stream(id, five_tuple), self.limits.queue_bytes);
        let at = self.slots.insert(stream);
        self.by_id.insert(id, at);
        self.expect_allocation(id, now);
        (at, &mut self.slots[at])
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<Stream> {
        let stream = self.slots.try_remove(at)?;
        self.by_id.remove(&stream.id);
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

    /// The stream got its allocation: no deadline any more.
    pub(super) fn keep_alive(&mut self, id: StreamId) {
        if let Some(stream) = self.find(id).and_then(|at| self.slots.get_mut(at))
            && let Some(deadline) = stream.deadline.take()
        {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// The stream has no allocation: it has so long to get one.
    pub(super) fn expect_allocation(&mut self, id: StreamId, now: Ticks) {
        self.keep_alive(id);
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

    /// Every stream's slot, for the end of the process.
    pub(super) fn all(&self) -> Vec<usize> {
        self.slots.iter().map(|(at, _)| at).collect()
    }
}
