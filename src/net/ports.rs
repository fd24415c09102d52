//! Which ports of one relay address are free: random order, parity, rest after use.
//!
//! Shared by all workers under a lock that is taken once per allocation. No look-up scans: free ports lie in
//! two lists by parity, even ones whose next is free too in a third, and each port knows its place in its lists.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use minicbor::{Decode, Encode};

use crate::protocol::border::Parity;
use crate::protocol::random::Random;
use crate::protocol::tenancy::PortPart;
use crate::time::Ticks;

/// How long a port rests before another client gets it, in seconds: two minutes, one maximum segment
/// lifetime, so that stray packets of the old session reach no new client. Less if there is no other.
pub(super) const REST_SECONDS: u64 = 120;

/// Among how many of those that have rested longest one is chosen when nothing is free.
const LOOK_BACK: usize = 32;

const NOT_FREE: u32 = u32::MAX;
const RESTS: u32 = u32::MAX - 1;

/// A port after its use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RestingPort {
    /// When another client may get it.
    #[n(0)]
    pub until: Ticks,
    /// Its number.
    #[n(1)]
    pub port: u16,
    /// The client that used it, which may get it before.
    #[n(2)]
    pub client: Option<IpAddr>,
}

/// What the ports of one relay address do; together they are its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortCounts {
    /// Held for an allocation or a reservation.
    pub used: usize,
    /// To be had at once.
    pub free: usize,
    /// Resting after use, or held by another process.
    pub resting: usize,
}

impl std::iter::Sum for PortCounts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, of| Self {
            used: sum.used + of.used,
            free: sum.free + of.free,
            resting: sum.resting + of.resting,
        })
    }
}

/// The ports of one relay address.
#[derive(Debug)]
pub(super) struct Ports {
    first: u16,
    free: [Vec<u16>; 2],
    place: Vec<u32>,
    /// Even ports that are free together with the next, and where each stands, by half the distance from the first.
    pairs: Vec<u16>,
    place_of_pair: Vec<u32>,
    resting: VecDeque<RestingPort>,
    random: Random,
    /// How many of the range are others' to give out.
    holes: usize,
}

impl Ports {
    /// The ports of a range but for those in these parts, which lie in it and don't overlap.
    pub(super) fn new(range: &RangeInclusive<u16>, holes: &[PortPart], random: Random) -> Self {
        let count = usize::from(range.end() - range.start()) + 1;
        let mut ports = Self {
            first: *range.start(),
            free: [Vec::with_capacity(count.div_ceil(2)), Vec::with_capacity(count.div_ceil(2))],
            place: vec![NOT_FREE; count],
            pairs: Vec::with_capacity(count / 2),
            place_of_pair: vec![NOT_FREE; count / 2 + 1],
            resting: VecDeque::new(),
            random,
            holes: holes.iter().map(|hole| usize::from(hole.last - hole.first) + 1).sum(),
        };
        for port in range.clone().filter(|port| !holes.iter().any(|hole| hole.contains(*port))) {
            ports.put(port);
        }
        ports
    }

    /// Its place among the free ones, or what it does else; nothing outside the range.
    pub(super) fn state(&self, port: u16) -> Option<u32> {
        self.place.get(usize::from(port.checked_sub(self.first)?)).copied()
    }

    /// Draws on where another list of ports drew.
    pub(super) fn random(&self) -> Random {
        self.random.clone()
    }

    /// A source of its own for another list.
    pub(super) fn fork(&mut self) -> Random {
        let mut seed = [0; 32];
        self.random.fill(&mut seed);
        Random::new(seed)
    }

    /// Takes a free port over as it was in another list: in use, or at rest.
    pub(super) fn set_busy(&mut self, port: u16, state: u32) {
        if self.is_free(port) {
            self.remove(port);
            self.place[usize::from(port - self.first)] = state;
        }
    }

    /// Those at rest, in the order in which they wake.
    pub(super) fn set_resting(&mut self, resting: impl Iterator<Item = RestingPort>) {
        self.resting = resting.collect();
    }

    fn put(&mut self, port: u16) {
        let list = &mut self.free[usize::from(port % 2)];
        self.place[usize::from(port - self.first)] = list.len() as u32;
        list.push(port);
        if self.is_free(port ^ 1) {
            let at = self.index_of_pair(port);
            self.place_of_pair[at] = self.pairs.len() as u32;
            self.pairs.push(port & !1);
        }
    }

    /// Where the place of the pair with this port is noted.
    fn index_of_pair(&self, port: u16) -> usize {
        usize::from(port / 2 - self.first / 2)
    }

    pub(super) fn is_free(&self, port: u16) -> bool {
        self.state(port).is_some_and(|at| at < RESTS)
    }

    fn remove(&mut self, port: u16) {
        let at = std::mem::replace(&mut self.place[usize::from(port - self.first)], NOT_FREE) as usize;
        let list = &mut self.free[usize::from(port % 2)];
        list.swap_remove(at);
        if let Some(moved) = list.get(at) {
            self.place[usize::from(*moved - self.first)] = at as u32;
        }
        let index = self.index_of_pair(port);
        let at = std::mem::replace(&mut self.place_of_pair[index], NOT_FREE);
        if at != NOT_FREE {
            self.pairs.swap_remove(at as usize);
            if let Some(moved) = self.pairs.get(at as usize) {
                let index = self.index_of_pair(*moved);
                self.place_of_pair[index] = at;
            }
        }
    }

    /// Those whose rest is over are free again.
    fn wake(&mut self, now: Ticks) {
        while self.resting.front().is_some_and(|resting| resting.until <= now) {
            if let Some(resting) = self.resting.pop_front() {
                self.put(resting.port);
            }
        }
    }

    /// The ports at rest, the one that has rested longest first.
    pub(super) fn resting(&self) -> Vec<RestingPort> {
        self.resting.iter().copied().collect()
    }

    /// Lets free ports rest that rested in another process; those outside the range or in use are left alone.
    pub(super) fn restore(&mut self, resting: &[RestingPort]) {
        for resting in resting {
            if self.is_free(resting.port) {
                self.remove(resting.port);
                self.place[usize::from(resting.port - self.first)] = RESTS;
                self.resting.push_back(*resting);
            }
        }
    }

    /// How many are in use, free and at rest.
    pub(super) fn port_counts(&mut self, now: Ticks) -> PortCounts {
        self.wake(now);
        let (free, resting) = (self.free.iter().map(Vec::len).sum(), self.resting.len());
        PortCounts { used: self.place.len() - self.holes - free - resting, free, resting }
    }

    /// Takes a free port of the parity wanted, at random; with [`Parity::EvenAndHoldNext`] the next one is
    /// taken too.
    // [8656-6-1, 8656-7.2-23, -24, -28]
    pub(super) fn take(&mut self, parity: Parity, client: IpAddr, now: Ticks) -> Option<u16> {
        self.wake(now);
        let port = match parity {
            Parity::Any => self.any().or_else(|| self.awaken(client, |_| true)),
            Parity::Even => self.one_of(0).or_else(|| self.awaken(client, |port| port % 2 == 0)),
            Parity::EvenAndHoldNext => self.even_with_next(),
        }?;
        self.remove(port);
        if parity == Parity::EvenAndHoldNext {
            self.remove(port + 1);
        }
        Some(port)
    }

    fn any(&mut self) -> Option<u16> {
        let [even, odd] = self.free.each_ref().map(Vec::len);
        let at = if even + odd == 0 { return None } else { self.random.below((even + odd) as u32) as usize };
        if at < even { self.free[0].get(at).copied() } else { self.free[1].get(at - even).copied() }
    }

    /// Nothing is free: a port goes before its rest is over. One that this very client had, if it is among those that
    /// have rested longest, else any of those.
    fn awaken(&mut self, client: IpAddr, suits: impl Fn(u16) -> bool) -> Option<u16> {
        let first = self.random.below(LOOK_BACK as u32) as usize;
        let oldest = || self.resting.iter().enumerate().take(LOOK_BACK).filter(|(_, resting)| suits(resting.port));
        let at = oldest()
            .find(|(_, resting)| resting.client == Some(client))
            .or_else(|| oldest().find(|(at, _)| *at >= first))
            .or_else(|| oldest().next())
            .map(|(at, _)| at)?;
        let port = self.resting.remove(at)?.port;
        self.put(port);
        Some(port)
    }

    fn one_of(&mut self, parity: usize) -> Option<u16> {
        let count = self.free[parity].len() as u32;
        let at = if count == 0 { return None } else { self.random.below(count) };
        self.free[parity].get(at as usize).copied()
    }

    fn even_with_next(&mut self) -> Option<u16> {
        let count = self.pairs.len() as u32;
        let at = if count == 0 { return None } else { self.random.below(count) };
        self.pairs.get(at as usize).copied()
    }

    /// Takes this very port, which another process had in use; one outside the range is not ours to count.
    pub(super) fn take_exactly(&mut self, port: u16) {
        if self.state(port) == Some(RESTS) {
            self.resting.retain(|resting| resting.port != port);
            self.place[usize::from(port - self.first)] = NOT_FREE;
        } else if self.is_free(port) {
            self.remove(port);
        }
    }

    /// Gives a port back after use: it rests before another client gets it.
    pub(super) fn rest(&mut self, port: u16, client: Option<IpAddr>, now: Ticks) {
        // One that left the range while it was in use stays out; it may have come back and been found taken since.
        if self.state(port) != Some(NOT_FREE) {
            return;
        }
        self.place[usize::from(port - self.first)] = RESTS;
        self.resting.push_back(RestingPort { until: now.plus_seconds(REST_SECONDS), port, client });
    }

    /// Gives a port back that was never used.
    pub(super) fn give_back(&mut self, port: u16) {
        if self.state(port) == Some(NOT_FREE) {
            self.put(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 5));

    fn ports(range: RangeInclusive<u16>) -> Ports {
        Ports::new(&range, &[], Random::new([1; 32]))
    }

    // [8656-6-1, 8656-7.2-28]
    #[test]
    fn every_port_is_given_once_and_in_no_order() {
        let mut ports = ports(50_000..=50_099);
        let given: Vec<u16> = std::iter::from_fn(|| ports.take(Parity::Any, CLIENT, Ticks(0))).collect();
        let mut sorted = given.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (50_000..=50_099).collect::<Vec<_>>());
        assert_ne!(given, sorted);
    }

    // [8656-7.2-23, -24]
    #[test]
    fn even_ports_come_alone_or_with_the_next() {
        let mut ports = ports(65_530..=65_535);
        let pair = ports.take(Parity::EvenAndHoldNext, CLIENT, Ticks(0)).unwrap();
        assert_eq!(pair % 2, 0);
        assert!(!ports.is_free(pair) && !ports.is_free(pair + 1));
        let even = ports.take(Parity::Even, CLIENT, Ticks(0)).unwrap();
        assert_eq!(even % 2, 0);
        assert!(ports.take(Parity::EvenAndHoldNext, CLIENT, Ticks(0)).is_some());
        assert_eq!(ports.take(Parity::Even, CLIENT, Ticks(0)), None);
        assert!(ports.take(Parity::Any, CLIENT, Ticks(0)).is_some_and(|port| port % 2 == 1));
    }

    #[test]
    fn a_pair_is_found_as_long_as_there_is_one() {
        for range in [50_001..=50_100, 50_000..=50_099, 65_530..=65_535, 0..=9] {
            let mut ports = ports(range.clone());
            let mut random = Random::new([2; 32]);
            let mut used: Vec<u16> = Vec::new();
            for _ in 0..2000 {
                if random.below(2) == 0 {
                    let mut free = range.clone().filter(|port| ports.is_free(*port));
                    let is_there = free.any(|port| port % 2 == 0 && port < u16::MAX && ports.is_free(port + 1));
                    let pair = ports.take(Parity::EvenAndHoldNext, CLIENT, Ticks(0));
                    assert_eq!(pair.is_some(), is_there, "{range:?} {used:?}");
                    used.extend(pair.into_iter().flat_map(|port| [port, port + 1]));
                    used.extend(ports.take(Parity::Any, CLIENT, Ticks(0)));
                } else if !used.is_empty() {
                    let port = used.swap_remove(random.below(used.len() as u32) as usize);
                    ports.give_back(port);
                }
                let expected =
                    range.clone().filter(|p| p % 2 == 0 && ports.is_free(*p) && ports.is_free(p ^ 1)).count();
                assert_eq!(ports.pairs.len(), expected, "each pair once");
            }
        }
    }

    #[test]
    fn every_port_is_in_use_free_or_at_rest() {
        let mut ports = ports(50_000..=50_009);
        let port_counts = |used, free, resting| PortCounts { used, free, resting };
        assert_eq!(ports.port_counts(Ticks(0)), port_counts(0, 10, 0));
        let pair = ports.take(Parity::EvenAndHoldNext, CLIENT, Ticks(0)).unwrap();
        assert_eq!(ports.port_counts(Ticks(0)), port_counts(2, 8, 0));
        ports.rest(pair, Some(CLIENT), Ticks(1000));
        ports.give_back(pair + 1);
        assert_eq!(ports.port_counts(Ticks(120_999)), port_counts(0, 9, 1));
        assert_eq!(ports.port_counts(Ticks(121_000)), port_counts(0, 10, 0));
    }

    #[test]
    fn what_rests_in_one_process_rests_in_the_next() {
        let mut old = ports(50_000..=50_009);
        for at in [1000, 2000] {
            let port = old.take(Parity::Any, CLIENT, Ticks(at)).unwrap();
            old.rest(port, Some(CLIENT), Ticks(at));
        }
        let mut new = ports(50_000..=50_009);
        let mut state = old.resting();
        // Neither a port of another range nor one that is listed twice does any harm.
        state.extend([RestingPort { port: 40_000, ..state[0] }, state[0]]);
        new.restore(&state);
        assert_eq!(new.resting(), old.resting());
        for now in [Ticks(3000), Ticks(121_500), Ticks(122_000)] {
            assert_eq!(new.port_counts(now), old.port_counts(now));
        }
    }

    #[test]
    fn a_port_that_another_process_had_in_use_is_in_use() {
        let mut ports = ports(50_000..=50_009);
        let port = ports.take(Parity::Any, CLIENT, Ticks(0)).unwrap();
        ports.rest(port, Some(CLIENT), Ticks(0));
        for port in [port, port ^ 1, 40_000, port] {
            ports.take_exactly(port);
        }
        assert_eq!(ports.port_counts(Ticks(0)), PortCounts { used: 2, free: 8, resting: 0 });
        ports.rest(port, None, Ticks(0));
        assert_eq!(ports.port_counts(Ticks(0)), PortCounts { used: 1, free: 8, resting: 1 });
    }

    #[test]
    fn a_port_rests_two_minutes_unless_there_is_no_other() {
        let mut ports = ports(50_000..=50_003);
        let used: Vec<u16> = std::iter::from_fn(|| ports.take(Parity::Any, CLIENT, Ticks(0))).take(3).collect();
        ports.rest(used[0], Some(CLIENT), Ticks(1000));
        ports.rest(used[1], Some(OTHER), Ticks(1000));
        let last = ports.take(Parity::Any, OTHER, Ticks(2000)).unwrap();
        assert!(!used.contains(&last), "the free one first");
        assert_eq!(ports.take(Parity::Any, OTHER, Ticks(2000)), Some(used[1]), "then one's own");
        assert_eq!(ports.take(Parity::Any, OTHER, Ticks(2000)), Some(used[0]), "then another's, rather than none");
        assert_eq!(ports.take(Parity::Any, CLIENT, Ticks(2000)), None);
        ports.rest(used[2], None, Ticks(3000));
        assert_eq!(ports.take(Parity::Even, CLIENT, Ticks(3000)), used[2].is_multiple_of(2).then_some(used[2]));
    }

    #[test]
    fn with_nothing_free_any_of_those_that_rested_longest_is_next() {
        let mut ports = ports(50_000..=50_099);
        let used: Vec<u16> = std::iter::from_fn(|| ports.take(Parity::Any, CLIENT, Ticks(0))).collect();
        used.iter().for_each(|port| ports.rest(*port, Some(OTHER), Ticks(0)));
        let first = ports.take(Parity::Any, CLIENT, Ticks(1)).unwrap();
        assert!(used[..LOOK_BACK].contains(&first));
        assert_ne!(first, used[0], "with this seed");
        let rest: Vec<u16> = std::iter::from_fn(|| ports.take(Parity::Any, CLIENT, Ticks(1))).collect();
        assert_eq!(rest.len(), 99, "all of them come");
    }
}
