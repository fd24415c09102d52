//! Which allocations another process has already, and which of them have changed since.

use super::ids::AllocationId;

/// What the other process has in one slot.
#[derive(Clone, Copy, Debug)]
struct Sent {
    generation: u32,
    has_changed: bool,
    /// Packets that had come in, both ways.
    packets: u64,
}

/// How an allocation stands to its early export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EarlyMark {
    /// It was not exported yet.
    Unsent,
    /// It was, and something of it that packets don't change has changed.
    Changed,
    /// It was, and packets alone may have changed it.
    Counting,
    /// It was, and not even a packet came in since.
    Unchanged,
}

/// By slot; empty as long as nothing is exported early, so that noting a change is one comparison then.
#[derive(Debug, Default)]
pub(super) struct EarlyMarks {
    sent: Vec<Option<Sent>>,
    is_on: bool,
}

impl EarlyMarks {
    /// From now on changes are noted; what was noted before is forgotten.
    pub(super) fn begin(&mut self) {
        self.sent.clear();
        self.is_on = true;
    }

    /// Nothing is noted any more.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Whether changes are noted.
    pub(super) const fn is_on(&self) -> bool {
        self.is_on
    }

    /// An allocation is exported as it is now, after so many packets both ways.
    pub(super) fn note_sent(&mut self, id: AllocationId, packets: u64) {
        if !self.is_on {
            return;
        }
        let slot = id.index as usize;
        if self.sent.len() <= slot {
            self.sent.resize(slot + 1, None);
        }
        self.sent[slot] = Some(Sent { generation: id.generation, has_changed: false, packets });
    }

    /// The allocation in a slot may be changed by the code that gets it now.
    #[inline]
    pub(super) fn note_change(&mut self, slot: u32) {
        if let Some(Some(sent)) = self.sent.get_mut(slot as usize) {
            sent.has_changed = true;
        }
    }

    /// How a live allocation stands to its early export, after so many packets both ways.
    pub(super) fn of(&self, id: AllocationId, packets: u64) -> EarlyMark {
        match self.sent.get(id.index as usize) {
            Some(Some(sent)) if sent.generation == id.generation => {
                if sent.has_changed {
                    EarlyMark::Changed
                } else if sent.packets == packets {
                    EarlyMark::Unchanged
                } else {
                    EarlyMark::Counting
                }
            }
            Some(_) | None => EarlyMark::Unsent,
        }
    }

    /// Every allocation that was exported early, in the order of the slots; some may have ended.
    pub(super) fn sent(&self) -> impl Iterator<Item = AllocationId> {
        let id = |(slot, sent): (usize, &Option<Sent>)| {
            sent.map(|sent| AllocationId { index: slot as u32, generation: sent.generation })
        };
        self.sent.iter().enumerate().filter_map(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(index: u32, generation: u32) -> AllocationId {
        AllocationId { index, generation }
    }

    #[test]
    fn a_change_is_noted_from_the_early_export_on() {
        let mut marks = EarlyMarks::default();
        marks.note_sent(id(3, 7), 5);
        marks.note_change(3);
        assert_eq!((marks.of(id(3, 7), 5), marks.sent().count()), (EarlyMark::Unsent, 0), "nothing was begun");
        marks.begin();
        marks.note_change(3);
        marks.note_sent(id(3, 7), 5);
        assert_eq!(marks.of(id(3, 7), 5), EarlyMark::Unchanged);
        assert_eq!(marks.of(id(3, 7), 6), EarlyMark::Counting, "a packet came in");
        assert_eq!(marks.of(id(3, 8), 5), EarlyMark::Unsent, "another allocation in the same slot");
        marks.note_change(3);
        marks.note_change(4_000);
        assert_eq!(marks.of(id(3, 7), 6), EarlyMark::Changed);
        marks.note_sent(id(3, 7), 5);
        marks.note_sent(id(1, 9), 0);
        assert_eq!(marks.of(id(3, 7), 5), EarlyMark::Unchanged, "exported once more");
        assert_eq!(marks.sent().collect::<Vec<_>>(), [id(1, 9), id(3, 7)]);
        marks.begin();
        assert_eq!((marks.of(id(3, 7), 5), marks.is_on()), (EarlyMark::Unsent, true));
        marks.end();
        assert!(!marks.is_on());
    }
}
