//! Sole owner of a worker's allocations and of every index into them.

use hashbrown::HashMap;

use super::allocation::Allocation;
use super::early_marks::{EarlyMark, EarlyMarks};
use super::hash_index::HashIndex;
use super::ids::{AllocationId, SessionId};
use super::mobility::PendingPath;
use super::request_bucket::{RequestBucket, RequestRate};
use super::slots::{Numbers, Slots};
use super::touched::TouchedSlots;
use crate::address::{FiveTuple, StreamId, Via};
use crate::time::Ticks;

/// Allocations by slot, and by the way their client comes.
pub(super) struct AllocationTable {
    /// Empty while the relayed address is being opened.
    slots: Slots<Allocation>,
    numbers: Numbers,
    by_client: HashIndex,
    /// Second relayed addresses by the slot that their socket is known by: its whole id, and the slot of the allocation.
    additional: HashMap<u32, (AllocationId, u32), foldhash::fast::FixedState>,
    /// Beside the allocations, which are as large as they may be; those of owners that asked for something.
    requests: Slots<RequestBucket>,
    /// Mobile allocations by the name that stands in their tickets, and by the way that their client will come.
    mobile: HashMap<SessionId, u32, foldhash::fast::FixedState>,
    pending: HashMap<Via, u32, foldhash::fast::FixedState>,
    generation: u32,
    /// What another process was told of them already.
    pub(super) early: EarlyMarks,
    /// What a ledger must be told of.
    pub(super) touched: TouchedSlots,
}

/// What a client is looked up by: a stream by its own number, a datagram by its five-tuple.
#[derive(Hash)]
enum ClientKey<'a> {
    Datagram(&'a FiveTuple),
    Stream(StreamId),
}

impl<'a> From<&'a Via> for ClientKey<'a> {
    #[inline]
    fn from(via: &'a Via) -> Self {
        match via {
            Via::Datagram(five_tuple) => Self::Datagram(five_tuple),
            Via::Stream(stream, _) => Self::Stream(*stream),
        }
    }
}

impl AllocationTable {
    /// `seed` keys the index, whose keys come from the network.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            slots: Slots::default(),
            numbers: Numbers::default(),
            by_client: HashIndex::new(seed),
            additional: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
            requests: Slots::default(),
            mobile: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
            pending: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
            generation: 0,
            early: EarlyMarks::default(),
            touched: TouchedSlots::default(),
        }
    }

    /// Takes a slot; [`AllocationTable::insert`] fills it, [`AllocationTable::unreserve`] gives it back.
    pub(super) fn reserve(&mut self) -> AllocationId {
        self.generation = self.generation.wrapping_add(1);
        AllocationId { index: self.numbers.take(), generation: self.generation }
    }

    /// Takes this very slot, for something that another process had there; `false` if it is taken already.
    pub(super) fn reserve_exactly(&mut self, id: AllocationId) -> bool {
        self.numbers.take_exactly(id.index)
    }

    /// Counts up with each allocation.
    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Goes on counting where another process was.
    pub(super) const fn set_generation(&mut self, generation: u32) {
        self.generation = generation;
    }

    /// Gives a reserved slot back.
    pub(super) fn unreserve(&mut self, id: AllocationId) {
        let is_reserved = self.numbers.is_taken(id.index) && self.slots.get(id.index).is_none();
        debug_assert!(is_reserved, "only a reserved slot is given back unused");
        if is_reserved {
            self.numbers.give_back(id.index);
        }
    }

    /// Fills the slot that was reserved for this allocation.
    pub(super) fn insert(&mut self, allocation: Allocation) {
        let index = allocation.id.index;
        debug_assert!(self.numbers.is_taken(index), "a slot was reserved for this allocation");
        if let Some((socket, _)) = allocation.sockets().nth(1) {
            debug_assert!(self.numbers.is_taken(socket.index), "a slot was reserved for its second address");
            self.additional.insert(socket.index, (socket, index));
        }
        self.by_client.insert(&ClientKey::from(&allocation.via()), index);
        if let Some(mobility) = allocation.mobility() {
            self.mobile.insert(allocation.session, index);
            if let Some(path) = mobility.pending {
                self.pending.insert(path.via, index);
            }
        }
        self.touched.note(index);
        let before = self.slots.insert(index, allocation);
        debug_assert!(before.is_none(), "a reserved slot is empty");
    }

    pub(super) fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        self.get(id)?;
        let allocation = self.slots.remove(id.index)?;
        self.touched.note(id.index);
        self.requests.remove(id.index);
        self.by_client.remove(&ClientKey::from(&allocation.via()), id.index);
        self.numbers.give_back(id.index);
        if let Some(mobility) = allocation.mobility() {
            self.mobile.remove(&allocation.session);
            if let Some(path) = mobility.pending {
                self.pending.remove(&path.via);
            }
        }
        if let Some((socket, _)) = allocation.sockets().nth(1) {
            self.forget_additional(socket);
        }
        Some(allocation)
    }

    /// The mobile allocation of a session.
    pub(super) fn of_session(&self, session: SessionId) -> Option<&Allocation> {
        self.slots.get(*self.mobile.get(&session)?)
    }

    /// The allocation whose client will come this way.
    pub(super) fn by_pending(&self, via: &Via) -> Option<&Allocation> {
        self.slots.get(*self.pending.get(via)?)
    }

    /// The allocation of a five-tuple or stream, or the one whose client will come that way.
    pub(super) fn by_path(&self, via: &Via) -> Option<&Allocation> {
        self.by_via(via).or_else(|| self.by_pending(via))
    }

    /// The client of a mobile allocation will come this way, or no other way than it does now; tells the one before.
    pub(super) fn set_pending(&mut self, id: AllocationId, path: Option<PendingPath>) -> Option<PendingPath> {
        let mobility = self.get_mut(id)?.mobility_mut()?;
        let before = std::mem::replace(&mut mobility.pending, path);
        if let Some(path) = before {
            self.pending.remove(&path.via);
        }
        if let Some(path) = path {
            self.pending.insert(path.via, id.index);
        }
        before
    }

    /// The client comes another way from now on; tells the one before.
    pub(super) fn set_via(&mut self, id: AllocationId, via: Via) -> Option<Via> {
        let allocation = self.get_mut(id)?;
        let before = allocation.set_via(via);
        self.by_client.remove(&ClientKey::from(&before), id.index);
        self.by_client.insert(&ClientKey::from(&via), id.index);
        Some(before)
    }

    /// Whether an allocation has room for one more request of its owner.
    pub(super) fn takes_request(&mut self, slot: u32, now: Ticks, rate: RequestRate) -> bool {
        if self.requests.get(slot).is_none() {
            self.requests.insert(slot, RequestBucket::new(now));
        }
        self.requests.get_mut(slot).is_none_or(|bucket| bucket.take(now, rate))
    }

    /// A second relayed address has been given back: its slot is free.
    pub(super) fn forget_additional(&mut self, socket: AllocationId) {
        if self.additional.remove(&socket.index).is_some() {
            self.numbers.give_back(socket.index);
        }
    }

    /// The allocation whose second socket is known by this slot.
    pub(super) fn of_additional_slot(&self, slot: u32) -> Option<&Allocation> {
        let (_, of) = self.additional.get(&slot)?;
        self.slots.get(*of)
    }

    /// How many sockets the allocations have.
    pub(super) fn sockets(&self) -> usize {
        self.slots.len() + self.additional.len()
    }

    #[inline]
    pub(super) fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.slots.get(id.index).filter(|allocation| allocation.id == id)
    }

    /// To change anything of it. Data lanes have [`AllocationTable::lane_mut`].
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.at_mut(id.index).filter(|allocation| allocation.id == id)
    }

    /// The allocation in a slot.
    pub(super) fn at(&self, slot: u32) -> Option<&Allocation> {
        self.slots.get(slot)
    }

    /// The allocation in a slot, to change anything of it.
    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Allocation> {
        self.early.note_change(slot);
        self.touched.note(slot);
        self.slots.get_mut(slot)
    }

    /// For packets, which change its counts, its buckets and what its meters have counted, and nothing else: that is
    /// not noted as a change.
    #[inline]
    pub(super) fn lane_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.slots.get_mut(id.index).filter(|allocation| allocation.id == id)
    }

    /// The allocation behind one of its sockets, for packets, as [`AllocationTable::lane_mut`].
    #[inline]
    pub(super) fn lane_of_socket_mut(&mut self, socket: AllocationId) -> Option<&mut Allocation> {
        let is_own = self.slots.get(socket.index).is_some_and(|allocation| allocation.id == socket);
        let slot = if is_own { socket.index } else { self.slot_of_additional(socket)? };
        self.slots.get_mut(slot)
    }

    /// The allocation behind one of its sockets.
    pub(super) fn by_socket(&self, socket: AllocationId) -> Option<&Allocation> {
        self.get(socket).or_else(|| self.slots.get(self.slot_of_additional(socket)?))
    }

    #[cold]
    fn slot_of_additional(&self, socket: AllocationId) -> Option<u32> {
        self.additional.get(&socket.index).filter(|(id, _)| *id == socket).map(|(_, of)| *of)
    }

    #[inline]
    fn slot_of(&self, via: &Via) -> Option<u32> {
        let is_theirs = |slot| self.slots.get(slot).is_some_and(|allocation| allocation.comes(via));
        self.by_client.find(&ClientKey::from(via), is_theirs)
    }

    /// The allocation of a five-tuple or stream.
    #[inline]
    pub(super) fn by_via(&self, via: &Via) -> Option<&Allocation> {
        self.slots.get(self.slot_of(via)?)
    }

    /// The allocation of a five-tuple or stream, for packets, as [`AllocationTable::lane_mut`].
    #[inline]
    pub(super) fn lane_by_via_mut(&mut self, via: &Via) -> Option<&mut Allocation> {
        let slot = self.slot_of(via)?;
        self.slots.get_mut(slot)
    }

    pub(super) const fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slots.iter()
    }

    /// How a live allocation stands to its early export.
    pub(super) fn early_mark(&self, allocation: &Allocation) -> EarlyMark {
        self.early.of(allocation.id, allocation.packets_received())
    }

    /// Those that were exported early and have ended since.
    pub(super) fn ended_since(&self) -> impl Iterator<Item = AllocationId> {
        self.early.sent().filter(|id| self.get(*id).is_none())
    }

    /// Those in so many slots from one on, and the slot to go on with if there are more.
    pub(super) fn slots(&self, from: usize, count: usize) -> (impl Iterator<Item = &Allocation>, Option<usize>) {
        let end = self.slots.end().min(from.saturating_add(count));
        let allocations = (from..end).filter_map(|slot| self.slots.get(slot as u32));
        (allocations, (end < self.slots.end()).then_some(end))
    }

    /// One more than the highest slot that may hold an allocation.
    pub(super) const fn end(&self) -> u32 {
        self.slots.end() as u32
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.len(), self.by_client.len(), "one index entry per allocation");
        assert_eq!(self.len(), self.iter().count(), "live allocations are counted");
        for allocation in self.iter() {
            let slot = allocation.id.index;
            assert_eq!(self.slots.get(slot).map(|own| own.id), Some(allocation.id), "an allocation knows its slot");
            assert!(self.numbers.is_taken(slot), "a slot that is filled is taken");
            assert_eq!(self.slot_of(&allocation.via()), Some(slot), "an allocation is found by its client");
            allocation.check_invariants();
            if let Some((socket, _)) = allocation.sockets().nth(1) {
                assert_eq!(self.additional.get(&socket.index), Some(&(socket, slot)), "a second address is found");
                assert!(self.numbers.is_taken(socket.index) && self.slots.get(socket.index).is_none());
            }
        }
        let mobile = || self.iter().filter_map(|allocation| Some((allocation, allocation.mobility()?)));
        for (allocation, mobility) in mobile() {
            assert_eq!(self.mobile.get(&allocation.session), Some(&allocation.id.index), "a session is found");
            if let Some(path) = mobility.pending {
                assert_eq!(self.pending.get(&path.via), Some(&allocation.id.index), "a way to come is found");
                assert!(self.by_via(&path.via).is_none(), "it belongs to no other allocation");
            }
        }
        assert_eq!(self.mobile.len(), mobile().count(), "one entry per mobile allocation");
        let pending = mobile().filter(|(_, mobility)| mobility.pending.is_some()).count();
        assert_eq!(self.pending.len(), pending, "one entry per way to come");
        let second = self.iter().filter(|allocation| allocation.sockets().count() > 1).count();
        assert_eq!(self.additional.len(), second, "one entry per second address");
    }
}
