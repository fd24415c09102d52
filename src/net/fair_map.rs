//! A map of limited size with a share for each source: when it is full, the oldest entry of the source that has the
//! most gives way.
//!
//! For what waits or is kept on behalf of clients that have proven nothing: accepted streams on their way to a worker,
//! TLS sessions that can be resumed. Who has how many, and who is first to go, is decided by `net::fair_limit`.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fair_limit::{Evict, FairLimit, Permit, Source};

/// The entries, each with its place.
type Entries<K, V> = BTreeMap<K, (V, Permit)>;

/// The map, for any number of threads.
pub(crate) struct FairMap<K, V> {
    entries: Arc<Mutex<Entries<K, V>>>,
    limit: Arc<FairLimit>,
    max: u64,
}

/// Nothing can panic while the lock is held but an allocation.
fn lock<K, V>(entries: &Mutex<Entries<K, V>>) -> MutexGuard<'_, Entries<K, V>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Ord + Clone + Send + 'static, V: Send + 'static> FairMap<K, V> {
    pub(crate) fn new(max: usize) -> Self {
        Self { entries: Arc::default(), limit: Arc::default(), max: max as u64 }
    }

    /// Keeps a value, in place of another if there is no room.
    pub(crate) fn insert(&self, source: Source, key: K, value: V) {
        // The lock is not held here: what gives way takes it.
        let permit = self.limit.admit(self.max, source, Box::new(|| {}));
        let mut entries = lock(&self.entries);
        // False where a crowd pushed it out in between: then nothing is kept, and the count is right.
        let replaced =
            if permit.on_eviction(self.evict(key.clone())) { entries.insert(key, (value, permit)) } else { None };
        drop(entries);
        drop(replaced);
    }

    fn evict(&self, key: K) -> Evict {
        let entries = Arc::downgrade(&self.entries);
        Box::new(move || {
            let Some(entries) = entries.upgrade() else { return };
            let gone = lock(&entries).remove(&key);
            // Its place is given back without the lock.
            drop(gone);
        })
    }

    /// Takes the entry with the smallest key.
    pub(crate) fn pop_first(&self) -> Option<V> {
        let first = lock(&self.entries).pop_first();
        first.map(|(_, (value, _))| value)
    }

    /// Takes an entry.
    pub(crate) fn remove<Q: Ord + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let removed = lock(&self.entries).remove(key);
        removed.map(|(value, _)| value)
    }

    /// A copy of a value, which is the youngest of its source from now on.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        V: Clone,
    {
        let entries = lock(&self.entries);
        let (value, permit) = entries.get(key)?;
        permit.touch();
        Some(value.clone())
    }

    /// How many had to give way, ever.
    pub(crate) fn evicted(&self) -> u64 {
        self.limit.evicted()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn source(number: u8) -> Source {
        IpAddr::from(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    fn len<K, V>(map: &FairMap<K, V>) -> (usize, u64) {
        (lock(&map.entries).len(), map.limit.count())
    }

    #[test]
    fn a_crowd_pushes_out_its_own_oldest_and_nobody_elses() {
        let map = FairMap::new(8);
        map.insert(source(1), 0, "early");
        for key in 1..100 {
            map.insert(source(2), key, "crowd");
        }
        map.insert(source(3), 100, "late");
        assert_eq!(len(&map), (8, 8));
        assert_eq!(map.evicted(), 101 - 8);
        assert_eq!((map.get(&0), map.get(&1), map.get(&99)), (Some("early"), None, Some("crowd")));
        assert_eq!(map.pop_first(), Some("early"));
        assert_eq!(map.remove(&100), Some("late"));
        assert_eq!(map.remove(&100), None);
        assert_eq!(len(&map), (6, 6));
        while map.pop_first().is_some() {}
        assert_eq!(len(&map), (0, 0), "each place is given back");
    }

    #[test]
    fn a_key_that_comes_again_has_one_place() {
        let map = FairMap::new(8);
        map.insert(source(1), "key", 1);
        map.insert(source(2), "key", 2);
        assert_eq!((map.get(&"key"), len(&map)), (Some(2), (1, 1)));
    }

    #[test]
    fn many_threads_leave_the_counts_right() {
        let map = Arc::new(FairMap::new(16));
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let map = Arc::clone(&map);
                scope.spawn(move || {
                    for key in 0..2_000 {
                        map.insert(source((key % 7) as u8), thread << 32 | key, key);
                        if key % 3 == 0 {
                            map.pop_first();
                        }
                    }
                });
            }
        });
        let (entries, places) = len(&map);
        assert_eq!(entries as u64, places);
        assert!(entries <= 16);
        while map.pop_first().is_some() {}
        assert_eq!(len(&map), (0, 0));
    }
}
