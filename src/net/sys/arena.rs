//! Where a worker receives.

/// One slot holds the largest datagram there is, or what the kernel coalesced of several.
pub(in crate::net) const SLOT_BYTES: usize = 65_536;

/// Before each slot there is room for the longest head, so that it can be written where its payload lies.
const HEAD_ROOM: usize = 64;

/// From one slot to the next. A power of two would put the starts of all slots, which is all of small packets, into
/// the same few sets of the processor's cache.
const STRIDE: usize = SLOT_BYTES + 21 * 64;

const _: () = assert!(STRIDE - SLOT_BYTES >= HEAD_ROOM, "a head reaches into no other slot");

/// Receive slots for a batch, owned by a worker, never by a session.
///
/// Filling a slot again while something still refers to its bytes would send wrong bytes. So debug builds count how
/// often each slot was given out to be filled, and a [`Part`] knows the count that it belongs to: reading an old one
/// panics there.
pub(in crate::net) struct Arena {
    bytes: Box<[u8]>,
    slots: usize,
    #[cfg(debug_assertions)]
    generations: Box<[u32]>,
}

impl Arena {
    pub(in crate::net) fn new(slots: usize) -> Self {
        // Zeroed by the kernel, page by page as slots are used: small packets touch one page each.
        Self {
            bytes: vec![0; HEAD_ROOM + slots * STRIDE].into(),
            slots,
            #[cfg(debug_assertions)]
            generations: vec![0; slots].into(),
        }
    }

    pub(super) const fn slots(&self) -> usize {
        self.slots
    }

    /// A slot, to be filled anew.
    pub(in crate::net) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        self.fills(slot, 1);
        &mut self.bytes[HEAD_ROOM + slot * STRIDE..][..SLOT_BYTES]
    }

    /// Several slots as one piece, where streams are read.
    pub(in crate::net) fn region(&self, first: usize, slots: usize) -> &[u8] {
        &self.bytes[HEAD_ROOM + first * STRIDE..][..slots * STRIDE]
    }

    /// See [`Arena::region`]; to be filled anew.
    pub(in crate::net) fn region_mut(&mut self, first: usize, slots: usize) -> &mut [u8] {
        self.fills(first, slots);
        &mut self.bytes[HEAD_ROOM + first * STRIDE..][..slots * STRIDE]
    }

    /// Nothing may refer to what these slots held.
    #[inline]
    fn fills(&mut self, first: usize, slots: usize) {
        #[cfg(debug_assertions)]
        for generation in &mut self.generations[first..first + slots] {
            *generation = generation.wrapping_add(1);
        }
        #[cfg(not(debug_assertions))]
        let _ = (first, slots);
    }

    /// Bytes from a place in the arena on, as they are now.
    #[inline]
    pub(in crate::net) const fn part_at(&self, start: usize, len: usize) -> Part {
        Part {
            start,
            len,
            #[cfg(debug_assertions)]
            filled: ((start - HEAD_ROOM) / STRIDE, self.generations[(start - HEAD_ROOM) / STRIDE]),
        }
    }

    /// So many bytes of a slot, from the given one on.
    #[inline]
    pub(in crate::net) const fn part_of(&self, slot: usize, from: usize, len: usize) -> Part {
        self.part_at(HEAD_ROOM + slot * STRIDE + from, len)
    }

    /// Where a part of a slot lies, so that it can be sent later without holding a borrow.
    pub(in crate::net) fn locate(&self, part: &[u8]) -> Part {
        let start = (part.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        assert!(start <= self.bytes.len() && part.len() <= self.bytes.len() - start, "a part lies inside the arena");
        self.part_at(start, part.len())
    }

    /// Writes a head right before a payload, over `room` bytes that are not needed any more and over what lies between
    /// slots; gives both as one part, or `None` where there is not so much room.
    #[inline]
    pub(in crate::net) fn write_head(&mut self, head: &[u8], payload: Part, room: usize) -> Option<Part> {
        let begins_slot = (payload.start - room) % STRIDE == HEAD_ROOM % STRIDE;
        if head.len() > room + if begins_slot { HEAD_ROOM } else { 0 } {
            return None;
        }
        let start = payload.start - head.len();
        self.bytes[start..payload.start].copy_from_slice(head);
        Some(Part { start, len: head.len() + payload.len, ..payload })
    }

    /// The bytes of a part.
    #[inline]
    pub(in crate::net) fn part(&self, part: Part) -> &[u8] {
        #[cfg(debug_assertions)]
        if part.len > 0 {
            let (slot, generation) = part.filled;
            assert_eq!(self.generations[slot], generation, "slot {slot} was filled again before it was flushed");
        }
        &self.bytes[part.start..][..part.len]
    }
}

/// Bytes inside an [`Arena`] or a scratch buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct Part {
    pub(in crate::net) start: usize,
    pub(in crate::net) len: usize,
    /// Its slot, and how often that was filled.
    #[cfg(debug_assertions)]
    filled: (usize, u32),
}

impl Part {
    /// Bytes inside a scratch buffer.
    pub(in crate::net) const fn of_scratch(start: usize, len: usize) -> Self {
        Self {
            start,
            len,
            #[cfg(debug_assertions)]
            filled: (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_written_where_nobody_needs_the_bytes() {
        let mut arena = Arena::new(3);
        for slot in 0..3 {
            arena.slot_mut(slot).fill(slot as u8 + 1);
        }
        let head = [9; HEAD_ROOM];
        for slot in 0..3 {
            let first = arena.write_head(&head[..48], arena.part_of(slot, 0, 100), 0).unwrap();
            assert_eq!(arena.part(first), [&[9; 48][..], &[slot as u8 + 1; 100]].concat());
        }
        assert_eq!(arena.region(0, 1)[..SLOT_BYTES], [1; SLOT_BYTES], "no slot is touched");
        assert_eq!(arena.region(1, 1)[..SLOT_BYTES], [2; SLOT_BYTES]);
        // The second of two coalesced datagrams: the first one ends right before it.
        let second = arena.part_of(1, 100, 50);
        assert_eq!(arena.write_head(&head[..4], second, 0).map(|part| part.len), None);
        // A client's ChannelData: its own head may go, wherever it lies.
        let payload = arena.part_of(1, 104, 46);
        let whole = arena.write_head(&head[..4], payload, 4).unwrap();
        assert_eq!((whole.start, whole.len), (payload.start - 4, 50));
        assert!(arena.write_head(&head[..36], payload, 4).is_none());
        assert_eq!(arena.region(1, 1)[..100], [2; 100]);
        // The first one of a slot has both.
        let payload = arena.part_of(2, 4, 46);
        assert_eq!(arena.write_head(&head, payload, 4).map(|part| part.len), Some(46 + HEAD_ROOM));
        assert!(arena.write_head(&[9; HEAD_ROOM + 5], payload, 4).is_none());
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "slot 1 was filled again")]
    fn what_was_overwritten_is_not_read() {
        let mut arena = Arena::new(2);
        let part = arena.part_of(1, 0, 10);
        assert_eq!(arena.part(part).len(), 10);
        arena.slot_mut(0).fill(1);
        assert_eq!(arena.part(part).len(), 10, "another slot is no matter");
        arena.slot_mut(1).fill(1);
        arena.part(part);
    }
}
