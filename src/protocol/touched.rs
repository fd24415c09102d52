//! Which slots of a table may have changed since somebody looked, for a ledger outside of the server.

/// By slot; without a ledger noting a change is one comparison.
#[derive(Debug, Default)]
pub(super) struct TouchedSlots {
    is_on: bool,
    is_noted: Vec<bool>,
    slots: Vec<u32>,
}

impl TouchedSlots {
    /// From now on changes are noted.
    pub(super) const fn begin(&mut self) {
        self.is_on = true;
    }

    /// What is in this slot begins, changes or ends.
    #[inline]
    pub(super) fn note(&mut self, slot: u32) {
        if self.is_on {
            self.note_in_list(slot);
        }
    }

    fn note_in_list(&mut self, slot: u32) {
        let at = slot as usize;
        if self.is_noted.len() <= at {
            self.is_noted.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.is_noted[at], true) {
            self.slots.push(slot);
        }
    }

    /// One of those noted, which is not any more.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let slot = self.slots.pop()?;
        self.is_noted[slot as usize] = false;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_noted_once_until_it_is_taken_out() {
        let mut touched = TouchedSlots::default();
        touched.note(7);
        assert_eq!(touched.pop(), None, "nothing was begun");
        touched.begin();
        [7, 3, 7].into_iter().for_each(|slot| touched.note(slot));
        assert_eq!((touched.pop(), touched.pop(), touched.pop()), (Some(3), Some(7), None));
        touched.note(7);
        assert_eq!((touched.pop(), touched.pop()), (Some(7), None));
    }
}
