//! A map for the few permissions and channels of one allocation: a scan while small, an index above.
//!
//! Nearly every allocation has one or two; a hash map of its own would cost each of them memory, and a
//! plain list would make 4,096 slow.

use std::hash::Hash;

use hashbrown::HashMap;

/// Up to this many entries are scanned.
const SCANNED_MAX: usize = 8;

/// Keys, values and, above [`SCANNED_MAX`], where each key stands.
#[derive(Clone, Debug)]
pub(super) struct SmallMap<K, V> {
    entries: Vec<(K, V)>,
    index: Option<Box<HashMap<K, u32, foldhash::fast::FixedState>>>,
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new(), index: None }
    }
}

impl<K: Copy + Eq + Hash, V> SmallMap<K, V> {
    #[inline]
    fn position(&self, key: &K) -> Option<usize> {
        match &self.index {
            None => self.entries.iter().position(|(k, _)| k == key),
            Some(index) => index.get(key).map(|&at| at as usize),
        }
    }

    #[inline]
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.position(key).and_then(|at| self.entries.get(at)).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.position(key)?;
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    /// Inserts, or replaces the value of a key that is there. `seed` keys the index.
    pub(super) fn insert(&mut self, key: K, value: V, seed: u64) {
        if let Some(old) = self.get_mut(&key) {
            *old = value;
            return;
        }
        self.entries.push((key, value));
        if self.entries.len() > SCANNED_MAX {
            let at = self.entries.len() as u32 - 1;
            match &mut self.index {
                Some(index) => {
                    index.insert(key, at);
                }
                None => self.index = Some(Box::new(build_index(&self.entries, seed))),
            }
        }
    }

    /// Keeps what `keep` says; the index is rebuilt, so this is for rare calls.
    pub(super) fn retain(&mut self, seed: u64, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.entries.retain_mut(|(key, value)| keep(key, value));
        self.index = (self.entries.len() > SCANNED_MAX).then(|| Box::new(build_index(&self.entries, seed)));
    }
}

fn build_index<K: Copy + Eq + Hash, V>(entries: &[(K, V)], seed: u64) -> HashMap<K, u32, foldhash::fast::FixedState> {
    let mut index = HashMap::with_capacity_and_hasher(entries.len(), foldhash::fast::FixedState::with_seed(seed));
    index.extend(entries.iter().zip(0..).map(|((key, _), at)| (*key, at)));
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_behave_alike() {
        let mut map = SmallMap::default();
        for key in 0..100_u16 {
            map.insert(key, u32::from(key) * 2, 7);
            map.insert(key, u32::from(key) * 3, 7);
            assert_eq!(map.len(), usize::from(key) + 1);
            assert!((0..=key).all(|k| map.get(&k) == Some(&(u32::from(k) * 3))), "{key}");
            assert_eq!(map.get(&(key + 1)), None);
        }
        map.retain(7, |key, _| key % 10 == 0);
        assert_eq!(map.len(), 10);
        assert_eq!((map.get(&50), map.get(&51)), (Some(&150), None));
        map.retain(7, |key, _| key % 50 == 0);
        assert_eq!(map.iter().map(|(k, _)| *k).collect::<Vec<_>>(), [0, 50]);
        assert_eq!(map.get(&50), Some(&150));
    }
}
