//! The ports of one relay address, split by tenant: each part is a list of its own, and one has all that is in no part.
//!
//! A port belongs to the list whose part it lies in, whichever session has it: what a reload gives to a tenant comes to it
//! when the session that has it now ends.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::ports::{PortCounts, Ports, RestingPort};
use crate::protocol::border::Parity;
use crate::protocol::random::Random;
use crate::protocol::tenancy::PortPart;
use crate::time::Ticks;

/// The ports of one relay address.
#[derive(Debug)]
pub(super) struct PortPlan {
    /// What is in no part.
    common: Ports,
    parts: Vec<(PortPart, Ports)>,
}

impl PortPlan {
    /// Of a range and of parts of it, which don't overlap.
    pub(super) fn new(range: &RangeInclusive<u16>, parts: &[PortPart], random: Random) -> Self {
        let mut common = Ports::new(range, parts, random);
        let parts =
            parts.iter().map(|part| (*part, Ports::new(&(part.first..=part.last), &[], common.fork()))).collect();
        Self { common, parts }
    }

    /// The list that a port belongs to.
    fn of(&mut self, port: u16) -> &mut Ports {
        let part = self.parts.iter_mut().find(|(part, _)| part.contains(port));
        part.map_or(&mut self.common, |(_, ports)| ports)
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut Ports> {
        std::iter::once(&mut self.common).chain(self.parts.iter_mut().map(|(_, ports)| ports))
    }

    /// Gives out ports of another range, split in another way, from now on. Ports that are in use stay in use; those of them
    /// that lie outside are not given out again.
    pub(super) fn set(&mut self, range: &RangeInclusive<u16>, parts: &[PortPart]) {
        let mut new = Self::new(range, parts, self.common.random());
        for port in range.clone() {
            let old = self.of(port);
            if let Some(state) = old.state(port).filter(|_| !old.is_free(port)) {
                new.of(port).set_busy(port, state);
            }
        }
        let resting = self.resting();
        let of_part = |part: PortPart| resting.iter().copied().filter(move |of| part.contains(of.port));
        for (part, ports) in &mut new.parts {
            ports.set_resting(of_part(*part));
        }
        let is_common = |port| range.contains(&port) && !parts.iter().any(|part| part.contains(port));
        new.common.set_resting(resting.iter().copied().filter(|of| is_common(of.port)));
        *self = new;
    }

    /// The ports at rest, the one that wakes first at the start.
    pub(super) fn resting(&self) -> Vec<RestingPort> {
        let mut resting = self.common.resting();
        for (_, ports) in &self.parts {
            resting.extend(ports.resting());
        }
        if !self.parts.is_empty() {
            resting.sort_by_key(|of| of.until);
        }
        resting
    }

    /// Lets free ports rest that rested in another process; those outside the range or in use are left alone.
    pub(super) fn restore(&mut self, resting: &[RestingPort]) {
        for of in resting {
            self.of(of.port).restore(std::slice::from_ref(of));
        }
    }

    /// How many are in use, free and at rest, those of all parts together.
    pub(super) fn port_counts(&mut self, now: Ticks) -> PortCounts {
        self.lists().map(|ports| ports.port_counts(now)).sum()
    }

    /// The same of one part alone, or of what is in none; nothing if there is no such part.
    pub(super) fn part_counts(&mut self, part: Option<PortPart>, now: Ticks) -> PortCounts {
        self.list(part).map(|ports| ports.port_counts(now)).unwrap_or_default()
    }

    /// The list of a part, or of what is in none.
    fn list(&mut self, part: Option<PortPart>) -> Option<&mut Ports> {
        let Some(part) = part else { return Some(&mut self.common) };
        self.parts.iter_mut().find(|(of, _)| *of == part).map(|(_, ports)| ports)
    }

    /// As [`Ports::take`], of this part, or of what is in none. A part that a reload has taken away meanwhile has no ports.
    pub(super) fn take(&mut self, part: Option<PortPart>, parity: Parity, client: IpAddr, now: Ticks) -> Option<u16> {
        self.list(part)?.take(parity, client, now)
    }

    /// Takes this very port, which another process had in use; one outside the range is not ours to count.
    pub(super) fn take_exactly(&mut self, port: u16) {
        self.of(port).take_exactly(port);
    }

    /// Gives a port back after use: it rests before another client gets it.
    pub(super) fn rest(&mut self, port: u16, client: Option<IpAddr>, now: Ticks) {
        self.of(port).rest(port, client, now);
    }

    /// Gives a port back that was never used.
    pub(super) fn give_back(&mut self, port: u16) {
        self.of(port).give_back(port);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ports::REST_SECONDS;
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 5));

    const A: PortPart = PortPart { first: 50_003, last: 50_005 };
    const B: PortPart = PortPart { first: 50_006, last: 50_007 };

    fn plan(range: RangeInclusive<u16>, parts: &[PortPart]) -> PortPlan {
        PortPlan::new(&range, parts, Random::new([1; 32]))
    }

    fn all_of(plan: &mut PortPlan, part: Option<PortPart>) -> Vec<u16> {
        let mut given: Vec<u16> = std::iter::from_fn(|| plan.take(part, Parity::Any, CLIENT, Ticks(0))).collect();
        given.sort_unstable();
        given
    }

    #[test]
    fn each_tenant_gets_ports_of_its_part_and_the_others_get_the_rest() {
        let mut ports = plan(50_000..=50_009, &[A, B]);
        assert_eq!(ports.port_counts(Ticks(0)), PortCounts { used: 0, free: 10, resting: 0 });
        assert_eq!(ports.take(Some(A), Parity::EvenAndHoldNext, CLIENT, Ticks(0)), Some(50_004));
        assert_eq!(all_of(&mut ports, Some(A)), [50_003]);
        assert_eq!(
            all_of(&mut ports, None),
            [50_000, 50_001, 50_002, 50_008, 50_009],
            "a full part takes no other port"
        );
        assert_eq!(all_of(&mut ports, Some(B)), [50_006, 50_007]);
        assert_eq!(ports.port_counts(Ticks(0)), PortCounts { used: 10, free: 0, resting: 0 });
        assert_eq!(ports.part_counts(Some(A), Ticks(0)), PortCounts { used: 3, free: 0, resting: 0 });
        assert_eq!(ports.part_counts(None, Ticks(0)), PortCounts { used: 5, free: 0, resting: 0 });
        assert_eq!(ports.part_counts(Some(PortPart { last: 50_004, ..A }), Ticks(0)), PortCounts::default());
        for port in 50_000..=50_009 {
            ports.rest(port, Some(OTHER), Ticks(u64::from(port)));
        }
        let resting: Vec<u16> = ports.resting().iter().map(|of| of.port).collect();
        assert_eq!(resting, (50_000..=50_009).collect::<Vec<_>>(), "in the order in which they wake");
        let mut next = plan(50_000..=50_009, &[A, B]);
        next.restore(&ports.resting());
        assert_eq!(next.resting(), ports.resting());
        assert_eq!(all_of(&mut next, Some(B)), [50_006, 50_007], "before their rest is over, but of its part");
    }

    #[test]
    fn another_split_gives_a_tenant_a_port_when_the_session_that_has_it_ends() {
        let mut ports = plan(50_000..=50_009, &[]);
        let used = all_of(&mut ports, None);
        assert_eq!(used.len(), 10);
        ports.rest(50_004, Some(OTHER), Ticks(0));
        ports.set(&(50_000..=50_009), &[A]);
        assert_eq!(all_of(&mut ports, Some(A)), [50_004], "which rests; the others are in use");
        ports.rest(50_003, Some(OTHER), Ticks(0));
        ports.rest(50_008, Some(OTHER), Ticks(0));
        assert_eq!(all_of(&mut ports, None), [50_008]);
        assert_eq!(all_of(&mut ports, Some(A)), [50_003]);
        assert_eq!(all_of(&mut ports, Some(B)), [0; 0], "a part that there is not");
        ports.set(&(50_000..=50_009), &[B]);
        ports.rest(50_003, None, Ticks(0));
        assert_eq!(ports.port_counts(Ticks(0)), PortCounts { used: 9, free: 0, resting: 1 });
        assert_eq!(all_of(&mut ports, None), [50_003], "no part's any more");
    }

    #[test]
    fn another_range_takes_nothing_from_those_in_use_and_gives_out_its_own_only() {
        let mut ports = plan(50_000..=50_009, &[]);
        let used: Vec<u16> = std::iter::from_fn(|| ports.take(None, Parity::Any, CLIENT, Ticks(0))).take(6).collect();
        ports.rest(used[0], Some(OTHER), Ticks(0));
        ports.set(&(50_005..=50_019), &[]);
        let mut given: Vec<u16> = std::iter::from_fn(|| ports.take(None, Parity::Any, CLIENT, Ticks(0))).collect();
        assert!(
            given.iter().all(|port| (50_005..=50_019).contains(port) && !used.contains(port)),
            "{given:?} {used:?}"
        );
        // Everything comes back, old ports too; what lies outside stays out.
        for port in used[1..].iter().chain(&given) {
            ports.rest(*port, None, Ticks(0));
        }
        given = std::iter::from_fn(|| ports.take(None, Parity::Any, CLIENT, Ticks(REST_SECONDS * 1000))).collect();
        given.sort_unstable();
        assert_eq!(given, (50_005..=50_019).collect::<Vec<_>>());
        // A port that comes back into the range while somebody still has it is found taken, and rests once.
        ports.set(&(50_000..=50_000), &[]);
        ports.set(&(50_000..=50_007), &[]);
        assert!(ports.of(50_006).is_free(50_006), "forgotten while it was outside");
        while ports.take(None, Parity::Any, OTHER, Ticks(0)).is_some() {}
        for port in [50_006, 50_006, 50_000, 50_000] {
            ports.rest(port, None, Ticks(0));
        }
        assert_eq!(ports.resting().len(), 2, "each rests once");
        ports.set(&(40_000..=40_001), &[]);
        assert!(ports.take(None, Parity::EvenAndHoldNext, CLIENT, Ticks(0)).is_some_and(|port| port == 40_000));
        assert_eq!(ports.take(None, Parity::Any, CLIENT, Ticks(0)), None);
    }
}
