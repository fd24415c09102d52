//! Sole owner of a worker's allocations and of every index into them.

use super::address::{FiveTuple, StreamId, Via};
use super::allocation::Allocation;
use super::border::AllocationId;
use super::places::Places;
use super::slots::{Numbers, Slots};

/// Allocations by slot, and by the way their client comes.
pub(super) struct AllocationTable {
    /// Empty while the relayed address is being opened.
    slots: Slots<Allocation>,
    numbers: Numbers,
    by_client: Places,
    generation: u32,
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
        Self { slots: Slots::default(), numbers: Numbers::default(), by_client: Places::new(seed), generation: 0 }
    }

    /// Takes a slot; [`AllocationTable::insert`] fills it, [`AllocationTable::unreserve`] gives it back.
    pub(super) fn reserve(&mut self) -> AllocationId {
        self.generation = self.generation.wrapping_add(1);
        AllocationId { index: self.numbers.take(), generation: self.generation }
    }

    /// Gives a reserved slot back.
    pub(super) fn unreserve(&mut self, id: AllocationId) {
        let is_reserved = self.numbers.is_taken(id.index) && self.slots.get(id.index).is_none();
        assert!(is_reserved, "only a reserved slot is given back unused");
        self.numbers.give_back(id.index);
    }

    /// Fills the slot that was reserved for this allocation.
    pub(super) fn insert(&mut self, allocation: Allocation) {
        let index = allocation.id.index;
        assert!(self.numbers.is_taken(index), "a slot was reserved for this allocation");
        self.by_client.insert(&ClientKey::from(&allocation.via()), index);
        assert!(self.slots.insert(index, allocation).is_none(), "a reserved slot is empty");
    }

    pub(super) fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        self.get(id)?;
        let allocation = self.slots.remove(id.index)?;
        self.by_client.remove(&ClientKey::from(&allocation.via()), id.index);
        self.numbers.give_back(id.index);
        Some(allocation)
    }

    #[inline]
    pub(super) fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.slots.get(id.index).filter(|allocation| allocation.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.slots.get_mut(id.index).filter(|allocation| allocation.id == id)
    }

    /// The allocation in a slot.
    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Allocation> {
        self.slots.get_mut(slot)
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

    /// The allocation of a five-tuple or stream.
    #[inline]
    pub(super) fn by_via_mut(&mut self, via: &Via) -> Option<&mut Allocation> {
        let slot = self.slot_of(via)?;
        self.slots.get_mut(slot)
    }

    pub(super) const fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slots.iter()
    }

    /// Those in so many slots from one on, and the slot to go on with if there are more.
    pub(super) fn slots(&self, from: usize, count: usize) -> (impl Iterator<Item = &Allocation>, Option<usize>) {
        let end = self.slots.end().min(from.saturating_add(count));
        let allocations = (from..end).filter_map(|slot| self.slots.get(slot as u32));
        (allocations, (end < self.slots.end()).then_some(end))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Allocation> {
        self.slots.iter_mut()
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
        }
    }
}
