//! The few permissions and channels of one allocation: a scan while few, an index above.
//!
//! Nearly every allocation has one or two; they cost what they hold and no more, and 4,096 are found as fast as four.

use std::hash::Hash;

use super::places::Places;

/// Up to this many entries are scanned.
const SCANNED_MAX: usize = 8;

/// Something that is found by one or several keys of its own.
pub(super) trait Entry: Copy {
    /// What it is looked up by.
    type Key: Copy + Hash;

    /// All its keys.
    fn keys(&self) -> impl Iterator<Item = Self::Key>;

    /// Whether this is one of them.
    fn has(&self, key: &Self::Key) -> bool;
}

/// Entries in the order in which they came.
#[derive(Clone, Debug)]
pub(super) enum Few<E> {
    Scanned(Box<[E]>),
    Indexed(Box<Indexed<E>>),
}

/// Many entries, and where those with each key stand.
#[derive(Clone, Debug)]
pub(super) struct Indexed<E> {
    entries: Vec<E>,
    places: Places,
}

impl<E: Entry> Indexed<E> {
    fn new(entries: Vec<E>, seed: u64) -> Self {
        let mut indexed = Self { entries: Vec::with_capacity(entries.len() * 2), places: Places::new(seed) };
        for entry in entries {
            indexed.push(entry);
        }
        indexed
    }

    fn find(&self, key: &E::Key) -> Option<usize> {
        self.places.find(key, |at| self.entries[at as usize].has(key)).map(|at| at as usize)
    }

    fn push(&mut self, entry: E) {
        for key in entry.keys() {
            self.places.insert(&key, self.entries.len() as u32);
        }
        self.entries.push(entry);
    }
}

impl<E> Default for Few<E> {
    fn default() -> Self {
        Self::Scanned(Box::default())
    }
}

impl<E: Entry> Few<E> {
    pub(super) fn of(entries: Vec<E>, seed: u64) -> Self {
        if entries.len() <= SCANNED_MAX {
            Self::Scanned(entries.into())
        } else {
            Self::Indexed(Box::new(Indexed::new(entries, seed)))
        }
    }

    #[inline]
    pub(super) fn get(&self, key: &E::Key) -> Option<&E> {
        match self {
            Self::Scanned(entries) => entries.iter().find(|entry| entry.has(key)),
            Self::Indexed(indexed) => indexed.find(key).map(|at| &indexed.entries[at]),
        }
    }

    pub(super) fn as_slice(&self) -> &[E] {
        match self {
            Self::Scanned(entries) => entries,
            Self::Indexed(indexed) => &indexed.entries,
        }
    }

    fn take(&mut self) -> Vec<E> {
        match std::mem::take(self) {
            Self::Scanned(entries) => entries.into_vec(),
            Self::Indexed(indexed) => indexed.entries,
        }
    }

    /// Inserts, or replaces the entry that has this key; the other keys stay the same then. `seed` keys the index.
    pub(super) fn insert(&mut self, key: &E::Key, entry: E, seed: u64) {
        match self {
            Self::Scanned(entries) => match entries.iter_mut().find(|old| old.has(key)) {
                Some(old) => *old = entry,
                None => {
                    let mut entries = self.take();
                    entries.reserve_exact(1);
                    entries.push(entry);
                    *self = Self::of(entries, seed);
                }
            },
            Self::Indexed(indexed) => match indexed.find(key) {
                Some(at) => indexed.entries[at] = entry,
                None => indexed.push(entry),
            },
        }
    }

    /// Keeps what `keep` says, which must leave the keys as they are; all is laid out anew, so this is for rare calls.
    pub(super) fn retain(&mut self, seed: u64, keep: impl FnMut(&mut E) -> bool) {
        let mut entries = self.take();
        entries.retain_mut(keep);
        *self = Self::of(entries, seed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by a number, and by it times 1,000.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Pair {
        number: u32,
        value: u32,
    }

    impl Entry for Pair {
        type Key = u32;
        fn keys(&self) -> impl Iterator<Item = u32> {
            [self.number, self.number * 1000].into_iter()
        }
        fn has(&self, key: &u32) -> bool {
            [self.number, self.number * 1000].contains(key)
        }
    }

    #[test]
    fn few_and_many_behave_alike() {
        let mut few = Few::default();
        let value = |few: &Few<Pair>, key| few.get(&key).map(|pair| pair.value);
        for number in 1..=100 {
            few.insert(&number, Pair { number, value: number * 2 }, 7);
            few.insert(&number, Pair { number, value: number * 3 }, 7);
            assert_eq!(few.as_slice().len(), number as usize);
            for known in 1..=number {
                assert_eq!([value(&few, known), value(&few, known * 1000)], [Some(known * 3); 2], "{number}");
            }
            assert_eq!([value(&few, number + 1), value(&few, (number + 1) * 1000)], [None; 2]);
            assert_eq!(matches!(few, Few::Indexed(_)), number > SCANNED_MAX as u32);
        }
        few.retain(7, |pair| pair.number % 10 == 0);
        assert_eq!((few.as_slice().len(), matches!(few, Few::Indexed(_))), (10, true));
        assert_eq!((value(&few, 50_000), value(&few, 51)), (Some(150), None));
        few.retain(7, |pair| {
            pair.value += 1;
            pair.number % 50 == 0
        });
        assert_eq!(few.as_slice(), [Pair { number: 50, value: 151 }, Pair { number: 100, value: 301 }]);
        assert!(matches!(few, Few::Scanned(_)), "few again");
        assert_eq!(value(&few, 100_000), Some(301));
    }

    #[test]
    fn no_room_is_kept_for_more() {
        assert_eq!(size_of::<Few<Pair>>(), 16);
    }
}
