//! The few permissions and channels of one allocation: a scan while few, an index above.
//!
//! Nearly every allocation has one or two; they cost what they hold and no more, and 4,096 are found as fast as four.

use std::hash::Hash;

use super::hash_index::HashIndex;

/// Up to this many entries are scanned.
const SCANNED_MAX: usize = 8;

/// Something that is found by one or several keys of its own.
pub(super) trait SetEntry: Copy {
    /// What it is looked up by.
    type Key: Copy + Hash;

    /// All its keys.
    fn keys(&self) -> impl Iterator<Item = Self::Key>;

    /// Whether this is one of them.
    fn has(&self, key: &Self::Key) -> bool;
}

/// Entries, in no order.
#[derive(Clone, Debug)]
pub(super) enum SmallSet<E> {
    Scanned(Box<[E]>),
    Indexed(Box<Indexed<E>>),
}

/// Many entries, and where those with each key stand.
#[derive(Clone, Debug)]
pub(super) struct Indexed<E> {
    entries: Vec<E>,
    index: HashIndex,
    /// Where [`SmallSet::drop_some`] goes on.
    cursor: usize,
}

impl<E: SetEntry> Indexed<E> {
    fn new(entries: Vec<E>, seed: u64) -> Self {
        let mut indexed =
            Self { entries: Vec::with_capacity(entries.len() * 2), index: HashIndex::new(seed), cursor: 0 };
        for entry in entries {
            indexed.push(entry);
        }
        indexed
    }

    fn find(&self, key: &E::Key) -> Option<usize> {
        let is = |at: u32| self.entries.get(at as usize).is_some_and(|entry| entry.has(key));
        self.index.find(key, is).map(|at| at as usize)
    }

    /// The last one takes its place.
    fn remove_at(&mut self, at: usize) {
        let last = self.entries.len().saturating_sub(1);
        if let Some(entry) = self.entries.get(at).copied() {
            entry.keys().for_each(|key| self.index.remove(&key, at as u32));
        }
        if let Some(entry) = self.entries.get(last).copied().filter(|_| at < last) {
            for key in entry.keys() {
                self.index.remove(&key, last as u32);
                self.index.insert(&key, at as u32);
            }
        }
        if at <= last && !self.entries.is_empty() {
            self.entries.swap_remove(at);
        }
        if self.entries.capacity() > 64 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    fn push(&mut self, entry: E) {
        for key in entry.keys() {
            self.index.insert(&key, self.entries.len() as u32);
        }
        self.entries.push(entry);
    }
}

impl<E> Default for SmallSet<E> {
    fn default() -> Self {
        Self::Scanned(Box::default())
    }
}

impl<E: SetEntry> SmallSet<E> {
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
            Self::Indexed(indexed) => indexed.find(key).and_then(|at| indexed.entries.get(at)),
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
                Some(at) => {
                    if let Some(old) = indexed.entries.get_mut(at) {
                        *old = entry;
                    }
                }
                None => indexed.push(entry),
            },
        }
    }

    /// Takes out the entry that has this key.
    pub(super) fn remove(&mut self, key: &E::Key, seed: u64) {
        match self {
            Self::Scanned(_) => self.retain(seed, |entry| !entry.has(key)),
            Self::Indexed(indexed) => {
                if let Some(at) = indexed.find(key) {
                    indexed.remove_at(at);
                }
            }
        }
    }

    /// Looks at the next two of many and drops those that are over. Called with each entry that is put in, it keeps
    /// their number within twice that of the live ones, at the same small cost each time.
    pub(super) fn drop_some(&mut self, is_over: impl Fn(&E) -> bool) {
        let Self::Indexed(indexed) = self else { return };
        for _ in 0..2 {
            if indexed.cursor >= indexed.entries.len() {
                indexed.cursor = 0;
            }
            if indexed.entries.get(indexed.cursor).is_some_and(&is_over) {
                indexed.remove_at(indexed.cursor);
            } else {
                indexed.cursor += 1;
            }
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

    impl SetEntry for Pair {
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
        let mut small_set = SmallSet::default();
        let value = |small_set: &SmallSet<Pair>, key| small_set.get(&key).map(|pair| pair.value);
        for number in 1..=100 {
            small_set.insert(&number, Pair { number, value: number * 2 }, 7);
            small_set.insert(&number, Pair { number, value: number * 3 }, 7);
            assert_eq!(small_set.as_slice().len(), number as usize);
            for known in 1..=number {
                assert_eq!(
                    [value(&small_set, known), value(&small_set, known * 1000)],
                    [Some(known * 3); 2],
                    "{number}"
                );
            }
            assert_eq!([value(&small_set, number + 1), value(&small_set, (number + 1) * 1000)], [None; 2]);
            assert_eq!(matches!(small_set, SmallSet::Indexed(_)), number > SCANNED_MAX as u32);
        }
        small_set.retain(7, |pair| pair.number % 10 == 0);
        assert_eq!((small_set.as_slice().len(), matches!(small_set, SmallSet::Indexed(_))), (10, true));
        assert_eq!((value(&small_set, 50_000), value(&small_set, 51)), (Some(150), None));
        small_set.retain(7, |pair| {
            pair.value += 1;
            pair.number % 50 == 0
        });
        assert_eq!(small_set.as_slice(), [Pair { number: 50, value: 151 }, Pair { number: 100, value: 301 }]);
        assert!(matches!(small_set, SmallSet::Scanned(_)), "few again");
        assert_eq!(value(&small_set, 100_000), Some(301));
    }

    #[test]
    fn what_is_removed_or_over_is_gone_and_the_rest_is_found() {
        let mut small_set = SmallSet::default();
        let pairs = |small_set: &SmallSet<Pair>| {
            let mut all: Vec<u32> = small_set.as_slice().iter().map(|pair| pair.number).collect();
            all.sort_unstable();
            let found = |key| small_set.get(&key).map(|pair| pair.number);
            assert!(all.iter().all(|number| [found(*number), found(number * 1000)] == [Some(*number); 2]));
            all
        };
        for number in 1..=50 {
            small_set.insert(&number, Pair { number, value: 0 }, 7);
        }
        for number in (1..=50).rev().filter(|number| number % 5 == 0) {
            small_set.remove(&(number * 1000), 7);
            small_set.remove(&number, 7);
        }
        assert_eq!(pairs(&small_set), (1..=50).filter(|number| number % 5 > 0).collect::<Vec<_>>());
        for _ in 0..50 {
            small_set.drop_some(|pair| pair.number < 40);
        }
        assert_eq!(pairs(&small_set), (40..=50).filter(|number| number % 5 > 0).collect::<Vec<_>>());
        for number in 1..=50 {
            small_set.remove(&number, 7);
        }
        assert_eq!((pairs(&small_set).len(), small_set.get(&1)), (0, None));
        small_set.insert(&1, Pair { number: 1, value: 1 }, 7);
        assert_eq!(pairs(&small_set), [1]);
    }

    #[test]
    fn no_room_is_kept_for_more() {
        assert_eq!(size_of::<SmallSet<Pair>>(), 16);
    }
}
