//! Where a worker receives.

/// One slot holds the largest datagram there is, or what the kernel coalesced of several.
pub(in crate::net) const SLOT_BYTES: usize = 65_536;

/// From one slot to the next. A power of two would put the starts of all slots, which is all of small packets, into
/// the same few sets of the processor's cache.
const STRIDE: usize = SLOT_BYTES + 21 * 64;

/// Receive slots for a batch, owned by a worker, never by a session.
pub(in crate::net) struct Arena {
    bytes: Box<[u8]>,
    slots: usize,
}

impl Arena {
    pub(in crate::net) fn new(slots: usize) -> Self {
        // Zeroed by the kernel, page by page as slots are used: small packets touch one page each.
        Self { bytes: vec![0; slots * STRIDE].into(), slots }
    }

    pub(super) const fn slots(&self) -> usize {
        self.slots
    }

    pub(in crate::net) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.bytes[slot * STRIDE..][..SLOT_BYTES]
    }

    /// Several slots as one piece, where streams are read.
    pub(in crate::net) fn region(&self, first: usize, slots: usize) -> &[u8] {
        &self.bytes[first * STRIDE..(first + slots) * STRIDE]
    }

    /// See [`Arena::region`].
    pub(in crate::net) fn region_mut(&mut self, first: usize, slots: usize) -> &mut [u8] {
        &mut self.bytes[first * STRIDE..(first + slots) * STRIDE]
    }

    /// So many bytes of a slot, from the given one on.
    pub(in crate::net) const fn part_of(slot: usize, from: usize, len: usize) -> Part {
        Part { start: slot * STRIDE + from, len }
    }

    /// Where a part of a slot lies, so that it can be sent later without holding a borrow.
    pub(in crate::net) fn locate(&self, part: &[u8]) -> Part {
        let start = (part.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        assert!(start <= self.bytes.len() && part.len() <= self.bytes.len() - start, "a part lies inside the arena");
        Part { start, len: part.len() }
    }

    pub(in crate::net) fn part(&self, part: Part) -> &[u8] {
        &self.bytes[part.start..][..part.len]
    }
}

/// Bytes inside an [`Arena`] or a scratch buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct Part {
    pub(in crate::net) start: usize,
    pub(in crate::net) len: usize,
}
