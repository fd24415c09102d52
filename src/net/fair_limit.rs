//! A limit on connections with a share for each source: when all places are taken, the longest idle connection of the
//! source that has the most gives way.
//!
//! So one source can fill the places only while no other wants them, however many connections it opens. Used for
//! connections of HTTP, for TLS handshakes and for client streams without an allocation; and, as `net::fair_map`, for what
//! is kept for a while. What a place is for, and what
//! giving way means, is left to the caller.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::clock;
use crate::time::Ticks;

/// How many give way for one newcomer at most: more than one only after a reload lowered the limit.
const EVICTIONS_PER_ADMISSION: usize = 64;

/// Who shares: a client network, or a user of this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Source {
    /// An IPv4 address (/32).
    V4(u32),
    /// The first 56 bits of an IPv6 address: what a provider gives to one customer.
    V6(u64),
    /// A process on a unix socket, by its user if the system tells it.
    User(Option<u32>),
}

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.into()),
            IpAddr::V6(ip) => Self::V6((u128::from(ip) >> 72) as u64),
        }
    }
}

/// What tells a connection that it must give way; called once at most, and must not block.
pub(crate) type Evict = Box<dyn FnOnce() + Send>;

/// Since when a connection is idle, and its number, so that no two are equal.
type IdleSince = (Ticks, u64);

/// How many a source has, and its longest idle one: the last in this order is the first to give way.
type Rank = (usize, Reverse<IdleSince>, Source);

#[derive(Default)]
struct Table {
    next: u64,
    connections: BTreeMap<u64, (Source, Ticks)>,
    sources: BTreeMap<Source, BTreeMap<IdleSince, Evict>>,
    ranks: BTreeSet<Rank>,
}

impl Table {
    /// Changes what a source has, and its rank with it.
    fn change<R>(&mut self, source: Source, change: impl FnOnce(&mut BTreeMap<IdleSince, Evict>) -> R) -> R {
        let rank = |entries: &BTreeMap<IdleSince, Evict>| {
            entries.first_key_value().map(|(idle_since, _)| (entries.len(), Reverse(*idle_since), source))
        };
        let entries = self.sources.entry(source).or_default();
        if let Some(rank) = rank(entries) {
            self.ranks.remove(&rank);
        }
        let result = change(entries);
        match rank(entries) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.sources.remove(&source)),
        }
        result
    }

    fn insert(&mut self, source: Source, now: Ticks, evict: Evict) -> u64 {
        let id = self.next;
        self.next += 1;
        self.connections.insert(id, (source, now));
        self.change(source, |entries| entries.insert((now, id), evict));
        id
    }

    fn remove(&mut self, id: u64) -> Option<Evict> {
        let (source, since) = self.connections.remove(&id)?;
        self.change(source, |entries| entries.remove(&(since, id)))
    }

    fn evict_first(&mut self) -> Option<Evict> {
        let (_, Reverse((_, id)), _) = self.ranks.last()?;
        self.remove(*id)
    }

    /// How long a newcomer must wait if nothing else changes: all places are taken, and the first to give way is so
    /// young that it is protected.
    fn wait_for(&self, max: u64, newcomer: Source, now: Ticks, protected: Duration) -> Option<Duration> {
        if (self.connections.len() as u64) < max.max(1) {
            return None;
        }
        let with_newcomer = self.sources.get(&newcomer).map_or(0, BTreeMap::len) + 1;
        let (count, Reverse((since, _)), _) = self.ranks.last()?;
        let age = Duration::from_millis(now.since(*since));
        // A source that has more than the newcomer's would have is not protected.
        (*count <= with_newcomer && age < protected).then(|| protected - age)
    }

    /// Lets the first ones go until there are no more than `max`; gives what they must hear.
    fn shrink(&mut self, max: u64) -> Vec<Evict> {
        let mut giving_way = Vec::new();
        while self.connections.len() as u64 > max.max(1) && giving_way.len() < EVICTIONS_PER_ADMISSION {
            giving_way.extend(self.evict_first());
        }
        giving_way
    }
}

/// The limit and those who count.
#[derive(Default)]
pub(crate) struct FairLimit {
    table: Mutex<Table>,
    freed: Notify,
    evicted: AtomicU64,
    /// Had to give way, and are not gone yet.
    leaving: AtomicU64,
}

/// A place, free again when this is dropped.
pub(crate) struct Permit {
    of: Arc<FairLimit>,
    id: u64,
}

impl FairLimit {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The tables agree after each call, and nothing in them can panic in between.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many have a place.
    pub(crate) fn count(&self) -> u64 {
        self.table().connections.len() as u64
    }

    /// How many had to give way, ever.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// How many had to give way and are not gone yet.
    pub(crate) fn leaving(&self) -> u64 {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Takes a place now. If there are more than `max` then, the longest idle of the fullest source gives way.
    pub(crate) fn admit(self: &Arc<Self>, max: u64, source: Source, evict: Evict) -> Permit {
        self.admit_locked(self.table(), max, source, evict)
    }

    fn admit_locked(
        self: &Arc<Self>,
        mut table: MutexGuard<'_, Table>,
        max: u64,
        source: Source,
        evict: Evict,
    ) -> Permit {
        let id = table.insert(source, clock::now().ticks, evict);
        let giving_way = table.shrink(max);
        drop(table);
        self.evicted.fetch_add(giving_way.len() as u64, Ordering::Relaxed);
        self.leaving.fetch_add(giving_way.len() as u64, Ordering::Relaxed);
        for evict in giving_way {
            evict();
        }
        Permit { of: Arc::clone(self), id }
    }

    /// The same for a task, which hears through the receiver that it must give way.
    pub(crate) fn admit_task(self: &Arc<Self>, max: u64, source: Source) -> (Permit, oneshot::Receiver<()>) {
        let (evict, give_way) = eviction();
        (self.admit(max, source, evict), give_way)
    }

    /// The same, but what came within the last `protected` gives way only to a source that has less: the newcomer waits
    /// here instead. `max` is asked anew at each try.
    pub(crate) async fn admit_patiently(
        self: &Arc<Self>,
        max: impl Fn() -> u64,
        source: Source,
        protected: Duration,
    ) -> (Permit, oneshot::Receiver<()>) {
        loop {
            let wait = {
                let (table, max) = (self.table(), max());
                match table.wait_for(max, source, clock::now().ticks, protected) {
                    Some(wait) => wait,
                    None => {
                        let (evict, give_way) = eviction();
                        return (self.admit_locked(table, max, source, evict), give_way);
                    }
                }
            };
            tokio::select! {
                () = self.freed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

fn eviction() -> (Evict, oneshot::Receiver<()>) {
    let (sender, give_way) = oneshot::channel();
    // It may have ended in this moment.
    let evict = move || {
        let _ = sender.send(());
    };
    (Box::new(evict), give_way)
}

impl Permit {
    /// The connection did something: it is the last of its source to give way from now on.
    pub(crate) fn touch(&self) {
        let now = clock::now().ticks;
        let mut table = self.of.table();
        let Some((source, since)) = table.connections.get_mut(&self.id) else { return };
        let (source, before) = (*source, std::mem::replace(since, now));
        table.change(source, |entries| {
            if let Some(evict) = entries.remove(&(before, self.id)) {
                entries.insert((now, self.id), evict);
            }
        });
    }

    /// The connection belongs to somebody else now, who hears of it in another way. False if it had to give way before.
    pub(crate) fn on_eviction(&self, evict: Evict) -> bool {
        let mut table = self.of.table();
        let Some((source, since)) = table.connections.get(&self.id).copied() else { return false };
        table.change(source, |entries| entries.insert((since, self.id), evict).is_some())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let evict = self.of.table().remove(self.id);
        if evict.is_none() {
            self.of.leaving.fetch_sub(1, Ordering::Relaxed);
        }
        drop(evict);
        self.of.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    type Held = (Permit, oneshot::Receiver<()>);

    fn source(number: u8) -> Source {
        IpAddr::from(Ipv4Addr::new(192, 0, 2, number)).into()
    }

    fn admit(limit: &Arc<FairLimit>, max: u64, of: u8) -> Held {
        limit.admit_task(max, source(of))
    }

    fn gave_way(held: &mut Held) -> bool {
        held.1.try_recv().is_ok()
    }

    /// The tables tell the same story.
    fn check(limit: &FairLimit) {
        let table = limit.table();
        let entries: usize = table.sources.values().map(BTreeMap::len).sum();
        assert_eq!(entries, table.connections.len());
        assert_eq!(table.ranks.len(), table.sources.len());
        for (count, Reverse(idle_since), source) in &table.ranks {
            let entries = &table.sources[source];
            assert_eq!((*count, idle_since), (entries.len(), entries.keys().next().unwrap()));
        }
    }

    #[test]
    fn sources_are_addresses_of_ipv4_and_56_bits_of_ipv6() {
        let of = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:0:aa00::1"), of("2001:db8:0:aaff:ffff::9"));
        assert_ne!(of("2001:db8:0:aa00::1"), of("2001:db8:0:ab00::1"));
        assert_ne!(Source::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), Source::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    }

    #[test]
    fn the_fullest_source_gives_way_and_there_the_longest_idle() {
        let limit = Arc::new(FairLimit::default());
        let mut early = admit(&limit, 4, 1);
        let mut crowd: Vec<_> = (0..3).map(|_| admit(&limit, 4, 2)).collect();
        let mut late = admit(&limit, 4, 3);
        assert!(gave_way(&mut crowd[0]), "the longest idle of the three");
        assert!(!gave_way(&mut early) && !gave_way(&mut late));
        // A source that has the most takes from itself.
        let another = admit(&limit, 4, 2);
        assert!(gave_way(&mut crowd[1]) && !gave_way(&mut early) && !gave_way(&mut late));
        assert_eq!((limit.count(), limit.evicted(), limit.leaving()), (4, 2, 2));
        check(&limit);
        drop(crowd.remove(0));
        assert_eq!(limit.leaving(), 1);
        drop((early, crowd, late, another));
        assert_eq!((limit.count(), limit.leaving()), (0, 0));
        check(&limit);
    }

    #[test]
    fn what_does_something_is_not_the_longest_idle_any_more() {
        let limit = Arc::new(FairLimit::default());
        let mut all: Vec<_> = (1..=3).map(|of| admit(&limit, 3, of)).collect();
        // Within one millisecond the first number counts as the longest idle.
        while clock::now().ticks == limit.table().connections[&2].1 {
            std::thread::yield_now();
        }
        all[0].0.touch();
        check(&limit);
        let _late = admit(&limit, 3, 4);
        assert!(gave_way(&mut all[1]) && !gave_way(&mut all[0]) && !gave_way(&mut all[2]));
    }

    #[test]
    fn many_sources_with_one_each_keep_nobody_out() {
        let limit = Arc::new(FairLimit::default());
        let mut crowd: Vec<_> = (0..=250).map(|of| admit(&limit, 100, of)).collect();
        let mut late = admit(&limit, 100, 251);
        assert!(!gave_way(&mut late));
        assert_eq!(crowd.iter_mut().map(gave_way).filter(|gone| *gone).count(), 152);
        assert_eq!(limit.count(), 100);
        check(&limit);
    }

    #[test]
    fn a_lower_limit_is_reached_in_bounded_steps_and_a_place_of_one_is_the_newcomers() {
        let limit = Arc::new(FairLimit::default());
        let crowd: Vec<_> = (0..200).map(|_| admit(&limit, 200, 1)).collect();
        let mut late = admit(&limit, 10, 2);
        assert_eq!(limit.count(), 201 - EVICTIONS_PER_ADMISSION as u64);
        let later: Vec<_> = (0..3).map(|of| admit(&limit, 10, 3 + of)).collect();
        assert_eq!(limit.count(), 10);
        assert!(!gave_way(&mut late));
        let mut last = admit(&limit, 0, 9);
        assert!(!gave_way(&mut last));
        check(&limit);
        drop((crowd, later));
    }

    #[test]
    fn who_takes_a_connection_over_hears_of_it_and_of_nothing_twice() {
        let limit = Arc::new(FairLimit::default());
        let (permit, mut first) = admit(&limit, 1, 1);
        let (sender, mut second) = oneshot::channel();
        assert!(permit.on_eviction(Box::new(move || sender.send(()).unwrap())));
        let other = admit(&limit, 1, 2);
        second.try_recv().expect("the new owner was told");
        assert!(first.try_recv().is_err(), "the old one was not");
        assert!(!permit.on_eviction(Box::new(|| panic!("it gave way already"))));
        permit.touch();
        drop(permit);
        assert_eq!(limit.count(), 1, "a place is given back once");
        drop(other);
        check(&limit);
    }

    #[tokio::test]
    async fn the_young_are_protected_from_their_equals_only() {
        const LONG: Duration = Duration::from_secs(3600);
        let limit = Arc::new(FairLimit::default());
        let wait = |of, protected| {
            let limit = Arc::clone(&limit);
            async move {
                tokio::time::timeout(Duration::from_millis(50), limit.admit_patiently(|| 2, source(of), protected))
                    .await
            }
        };
        let mut first = wait(1, LONG).await.expect("there is room");
        let mut second = wait(1, LONG).await.expect("there is room");
        assert!(wait(1, LONG).await.is_err(), "its own are young");
        let mut other = wait(2, LONG).await.expect("a source that has less need not wait");
        assert!(gave_way(&mut first) && !gave_way(&mut second));
        assert!(wait(3, LONG).await.is_err(), "each has one");
        let third = wait(3, Duration::ZERO).await.expect("none is young");
        assert!(gave_way(&mut second) && !gave_way(&mut other));
        drop(third);
        wait(4, LONG).await.expect("a place was given back");
        check(&limit);
    }
}
