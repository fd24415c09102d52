//! Sole owner of a worker's allocations and of every index into them.

use hashbrown::HashMap;
use slab::Slab;

use super::address::{FiveTuple, StreamId, Via};
use super::allocation::Allocation;
use super::border::AllocationId;

/// Allocations by slot, and by the way their client comes.
#[derive(Debug)]
pub(super) struct AllocationTable {
    /// `None` while the relayed address is being opened.
    slots: Slab<Option<Allocation>>,
    by_datagram: HashMap<FiveTuple, u32, foldhash::fast::FixedState>,
    by_stream: HashMap<StreamId, u32, foldhash::fast::FixedState>,
    generation: u32,
    live: usize,
}

impl AllocationTable {
    /// `seed` keys the indexes, whose keys come from the network.
    pub(super) fn new(seed: u64) -> Self {
        let hasher = foldhash::fast::FixedState::with_seed(seed);
        Self {
            slots: Slab::new(),
            by_datagram: HashMap::with_hasher(hasher.clone()),
            by_stream: HashMap::with_hasher(hasher),
            generation: 0,
            live: 0,
        }
    }

    /// Takes a slot; [`AllocationTable::insert`] fills it, [`AllocationTable::unreserve`] gives it back.
    pub(super) fn reserve(&mut self) -> AllocationId {
        self.generation = self.generation.wrapping_add(1);
        AllocationId { index: self.slots.insert(None) as u32, generation: self.generation }
    }

    /// Gives a reserved slot back.
    pub(super) fn unreserve(&mut self, id: AllocationId) {
        let slot = self.slots.try_remove(id.index as usize);
        assert!(matches!(slot, Some(None)), "only a reserved slot is given back unused");
    }

    /// Fills the slot that was reserved for this allocation.
    pub(super) fn insert(&mut self, allocation: Allocation) {
        match allocation.via {
            Via::Datagram(five_tuple) => self.by_datagram.insert(five_tuple, allocation.id.index),
            Via::Stream(stream, _) => self.by_stream.insert(stream, allocation.id.index),
        };
        let slot = self.slots.get_mut(allocation.id.index as usize).expect("a slot was reserved for this allocation");
        assert!(slot.replace(allocation).is_none(), "a reserved slot is empty");
        self.live += 1;
    }

    pub(super) fn remove(&mut self, id: AllocationId) -> Option<Allocation> {
        self.get(id)?;
        let allocation = self.slots.try_remove(id.index as usize)??;
        match allocation.via {
            Via::Datagram(five_tuple) => self.by_datagram.remove(&five_tuple),
            Via::Stream(stream, _) => self.by_stream.remove(&stream),
        };
        self.live -= 1;
        Some(allocation)
    }

    #[inline]
    pub(super) fn get(&self, id: AllocationId) -> Option<&Allocation> {
        self.slots.get(id.index as usize)?.as_ref().filter(|allocation| allocation.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: AllocationId) -> Option<&mut Allocation> {
        self.slots.get_mut(id.index as usize)?.as_mut().filter(|allocation| allocation.id == id)
    }

    #[inline]
    fn index_of(&self, via: &Via) -> Option<usize> {
        match via {
            Via::Datagram(five_tuple) => self.by_datagram.get(five_tuple),
            Via::Stream(stream, _) => self.by_stream.get(stream),
        }
        .map(|&index| index as usize)
    }

    /// The allocation of a five-tuple or stream.
    #[inline]
    pub(super) fn by_via(&self, via: &Via) -> Option<&Allocation> {
        self.slots.get(self.index_of(via)?)?.as_ref()
    }

    /// The allocation of a five-tuple or stream.
    #[inline]
    pub(super) fn by_via_mut(&mut self, via: &Via) -> Option<&mut Allocation> {
        let index = self.index_of(via)?;
        self.slots.get_mut(index)?.as_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.slots.iter().filter_map(|(_, slot)| slot.as_ref())
    }

    /// Those in so many slots from one on, and the slot to go on with if there are more.
    pub(super) fn slots(&self, from: usize, count: usize) -> (impl Iterator<Item = &Allocation>, Option<usize>) {
        let end = self.slots.capacity().min(from.saturating_add(count));
        let allocations = (from..end).filter_map(|slot| self.slots.get(slot)?.as_ref());
        (allocations, (end < self.slots.capacity()).then_some(end))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Allocation> {
        self.slots.iter_mut().filter_map(|(_, slot)| slot.as_mut())
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.live, self.by_datagram.len() + self.by_stream.len(), "one index entry per allocation");
        assert_eq!(self.live, self.iter().count(), "live allocations are counted");
        for (index, allocation) in self.slots.iter().filter_map(|(index, slot)| Some((index, slot.as_ref()?))) {
            assert_eq!(allocation.id.index as usize, index, "an allocation knows its slot");
            assert_eq!(self.index_of(&allocation.via), Some(index), "an allocation is found by its client");
            allocation.check_invariants();
        }
    }
}
