//! A hash index of numbers: what they number holds the key, so the key is not kept twice.
//!
//! Each entry keeps 32 bits of its hash: growing looks at nothing else, and hardly any look-up goes to the wrong place.

use std::hash::{BuildHasher as _, Hash};

use hashbrown::HashTable;

/// Buckets that are never given back.
const KEPT: usize = 64;

/// Where things stand, by the hash of a key.
#[derive(Clone, Debug)]
pub(super) struct HashIndex {
    table: HashTable<(u32, u32)>,
    hasher: foldhash::fast::FixedState,
}

/// The table wants 64 bits, and looks at both ends of them.
#[inline]
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl HashIndex {
    /// `seed` keys the hash, since keys come from the network.
    pub(super) fn new(seed: u64) -> Self {
        Self { table: HashTable::new(), hasher: foldhash::fast::FixedState::with_seed(seed) }
    }

    #[inline]
    fn tag<K: Hash>(&self, key: &K) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    /// The place of a key, for which `is` says whether it is there.
    #[inline]
    pub(super) fn find<K: Hash>(&self, key: &K, is: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = self.tag(key);
        self.table.find(spread(tag), |&(other, place)| other == tag && is(place)).map(|&(_, place)| place)
    }

    /// Notes the place of a key that is nowhere else.
    pub(super) fn insert<K: Hash>(&mut self, key: &K, place: u32) {
        let tag = self.tag(key);
        self.table.insert_unique(spread(tag), (tag, place), |&(tag, _)| spread(tag));
    }

    /// Forgets that a key is there.
    pub(super) fn remove<K: Hash>(&mut self, key: &K, place: u32) {
        let tag = self.tag(key);
        if let Ok(entry) = self.table.find_entry(spread(tag), |&entry| entry == (tag, place)) {
            entry.remove();
        }
        if self.table.capacity() > KEPT && self.table.len() < self.table.capacity() / 8 {
            self.table.shrink_to(self.table.len() * 2, |&(tag, _)| spread(tag));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_found_until_it_is_forgotten_and_room_is_given_back() {
        let keys: Vec<String> = (0..5000).map(|number| format!("key {number}")).collect();
        let mut places = HashIndex::new(5);
        let find = |places: &HashIndex, key: &String| places.find(key, |place| keys[place as usize] == *key);
        for (place, key) in (0..).zip(&keys) {
            assert_eq!(find(&places, key), None);
            places.insert(key, place);
        }
        assert_eq!(places.len(), 5000);
        let full = places.table.capacity();
        for (place, key) in (0..).zip(&keys) {
            assert_eq!(find(&places, key), Some(place));
            if place >= 10 {
                places.remove(key, place);
                assert_eq!(find(&places, key), None);
            }
        }
        assert_eq!(places.len(), 10);
        assert!(places.table.capacity() < full / 20, "{} of {full}", places.table.capacity());
        assert_eq!(find(&places, &keys[9]), Some(9));
    }
}
