//! The addresses that are relayed from, each with its ports and with whose each relayed port is right now.
//!
//! Shared by all workers. The list is swapped whole when addresses come or go; readers take no lock. An address that goes
//! is *retired*: its sockets live on with their allocations, and it is served again if it comes back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::port_plan::PortPlan;
use super::ports::{PortCounts, RestingPort};
use crate::address::{Family, PeerAddress, RelayedTransportAddress};
use crate::protocol::ids::WorkerId;
use crate::protocol::random::Random;
use crate::protocol::tenancy::PortParts;
use crate::time::Ticks;

/// Retired addresses that are remembered; the oldest one is forgotten, which costs its relayed ports the short way from
/// relayed address to relayed address.
const RETIRED_MAX: usize = 64;

/// A local address to relay from, and what clients are told instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelayAddress {
    /// What sockets bind to.
    pub local: IpAddr,
    /// What clients are told; the same without NAT.
    pub advertised: IpAddr,
}

/// Where the allocation of a relayed address lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RelayOwner {
    /// Whose it is.
    pub(super) worker: WorkerId,
    /// Its slot there; the reader checks that the address is still the same.
    pub(super) index: u32,
}

/// The owner of each port of a relay address, 0 for those that are no relayed ports now.
///
/// Zeroed by the kernel, page by page as ports are used.
struct Owners {
    of: Box<[AtomicU32]>,
    /// How many ports have one.
    open: AtomicU32,
}

impl Owners {
    fn new() -> Self {
        Self { of: std::iter::repeat_with(AtomicU32::default).take(1 << 16).collect(), open: AtomicU32::default() }
    }

    fn value(owner: RelayOwner) -> u32 {
        // A slot that does not fit is reported as unknown: the packet then takes the way through the kernel.
        u32::from(owner.worker.0) << SLOT_BITS | owner.index.saturating_add(1).min(SLOT_MAX)
    }

    fn set(&self, port: u16, owner: RelayOwner) {
        if self.of[usize::from(port)].swap(Self::value(owner), Ordering::Relaxed) == 0 {
            self.open.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes the port from this owner; `false` if it is another's by now.
    fn unset(&self, port: u16, owner: RelayOwner) -> bool {
        let of = &self.of[usize::from(port)];
        let was_its = of.compare_exchange(Self::value(owner), 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if was_its {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        was_its
    }

    #[inline]
    fn get(&self, port: u16) -> Option<RelayOwner> {
        let value = self.of[usize::from(port)].load(Ordering::Relaxed);
        let index = (value & SLOT_MAX).checked_sub(1)?;
        Some(RelayOwner { worker: WorkerId((value >> SLOT_BITS) as u8), index })
    }
}

/// Which ports of a relay address are relayed ones of TCP now.
struct TcpPorts {
    of: Box<[AtomicU64]>,
    /// How many are.
    open: AtomicU32,
}

impl TcpPorts {
    fn new() -> Self {
        Self {
            of: std::iter::repeat_with(AtomicU64::default).take((1 << 16) / 64).collect(),
            open: AtomicU32::default(),
        }
    }

    fn set(&self, port: u16, is_open: bool) {
        let (word, bit) = (&self.of[usize::from(port / 64)], 1 << (port % 64));
        let before =
            if is_open { word.fetch_or(bit, Ordering::Relaxed) } else { word.fetch_and(!bit, Ordering::Relaxed) };
        match (before & bit != 0, is_open) {
            (false, true) => self.open.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.open.fetch_sub(1, Ordering::Relaxed),
            (false, false) | (true, true) => 0,
        };
    }

    fn has(&self, port: u16) -> bool {
        self.of[usize::from(port / 64)].load(Ordering::Relaxed) & 1 << (port % 64) != 0
    }
}

const SLOT_BITS: u32 = 24;
const SLOT_MAX: u32 = (1 << SLOT_BITS) - 1;

/// One address, serving or retired.
#[derive(Clone)]
pub(super) struct RelayAddressEntry {
    pub(super) address: RelayAddress,
    /// Its name in a relayed socket; free again when the entry is forgotten.
    pub(super) number: u16,
    /// Whether new allocations get its ports.
    pub(super) is_serving: bool,
    owners: Arc<Owners>,
    tcp: Arc<TcpPorts>,
    ports: Arc<Mutex<PortPlan>>,
}

impl RelayAddressEntry {
    /// Whether it goes by this IP address: its own, or its local one.
    #[inline]
    pub(super) fn is(&self, ip: IpAddr) -> bool {
        self.address.advertised == ip || self.address.local == ip
    }

    pub(super) fn ports(&self) -> MutexGuard<'_, PortPlan> {
        // A list of ports is whole between calls whatever became of the caller.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn owner(&self, port: u16) -> Option<RelayOwner> {
        self.owners.get(port)
    }

    /// How many relayed ports are open, of UDP and of TCP.
    fn open(&self) -> u32 {
        self.owners.open.load(Ordering::Relaxed) + self.tcp.open.load(Ordering::Relaxed)
    }
}

/// What new addresses are made with.
struct Fresh {
    range: RangeInclusive<u16>,
    parts: PortParts,
    random: Random,
}

/// Every address that is or was relayed from.
pub(super) struct RelayAddresses {
    entries: ArcSwap<Vec<RelayAddressEntry>>,
    translates: AtomicBool,
    /// Held while the list changes.
    fresh: Mutex<Fresh>,
}

impl RelayAddresses {
    /// None yet.
    pub(super) fn new(range: &RangeInclusive<u16>, seed: [u8; 32]) -> Self {
        Self {
            entries: ArcSwap::default(),
            translates: AtomicBool::new(false),
            fresh: Mutex::new(Fresh { range: range.clone(), parts: PortParts::default(), random: Random::new(seed) }),
        }
    }

    fn fresh(&self) -> MutexGuard<'_, Fresh> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Relays from exactly these from now on; whether that changed anything.
    ///
    /// An address that clients are told keeps its ports when another local one takes its place.
    pub(super) fn serve(&self, wanted: &[RelayAddress]) -> bool {
        let mut fresh = self.fresh();
        let old = self.entries.load_full();
        let serving: Vec<RelayAddress> = old.iter().filter(|of| of.is_serving).map(|of| of.address).collect();
        if serving == wanted {
            return false;
        }
        let mut left: Vec<RelayAddressEntry> = old.to_vec();
        let mut entries: Vec<RelayAddressEntry> = Vec::with_capacity(old.len() + wanted.len());
        let mut missing = Vec::new();
        for address in wanted {
            match left.iter().position(|of| of.address.advertised == address.advertised) {
                Some(at) => entries.push(RelayAddressEntry { address: *address, is_serving: true, ..left.remove(at) }),
                None => missing.push(*address),
            }
        }
        let is_used = |of: &RelayAddressEntry| of.open() > 0 || of.ports().port_counts(Ticks(0)).used > 0;
        let mut retired: Vec<RelayAddressEntry> =
            left.into_iter().filter(is_used).map(|of| RelayAddressEntry { is_serving: false, ..of }).collect();
        // The latest stand at the end.
        retired.drain(..retired.len().saturating_sub(RETIRED_MAX));
        for address in missing {
            let is_free = |number: &u16| !entries.iter().chain(&retired).any(|of| of.number == *number);
            let number = (0..=u16::MAX).find(is_free).unwrap_or_default();
            let mut seed = [0; 32];
            fresh.random.fill(&mut seed);
            let ports = PortPlan::new(&fresh.range, &fresh.parts.ranges(), Random::new(seed));
            let (owners, tcp, ports) =
                (Arc::new(Owners::new()), Arc::new(TcpPorts::new()), Arc::new(Mutex::new(ports)));
            entries.push(RelayAddressEntry { address, number, is_serving: true, owners, tcp, ports });
        }
        // In the order asked for, which is that of the configuration.
        entries.sort_by_key(|of| wanted.iter().position(|address| *address == of.address));
        entries.append(&mut retired);
        let translates = entries.iter().any(|of| of.address.local != of.address.advertised);
        self.translates.store(translates, Ordering::Relaxed);
        self.entries.store(Arc::new(entries));
        true
    }

    /// The range of every address, and the parts of it that are a tenant's each, from now on.
    pub(super) fn set_ports(&self, range: &RangeInclusive<u16>, parts: &PortParts) {
        let mut fresh = self.fresh();
        (fresh.range, fresh.parts) = (range.clone(), parts.clone());
        let parts = parts.ranges();
        for entry in self.entries.load().iter() {
            entry.ports().set(range, &parts);
        }
    }

    /// A port is in use from now on, because another process handed its socket over.
    pub(super) fn take_exactly(&self, relayed: RelayedTransportAddress) {
        self.with(relayed.ip(), |entry| entry.ports().take_exactly(relayed.port()));
    }

    /// The ports at rest, by advertised address.
    pub(super) fn resting(&self) -> Vec<(IpAddr, Vec<RestingPort>)> {
        self.entries.load().iter().map(|of| (of.address.advertised, of.ports().resting())).collect()
    }

    /// Lets ports rest that rested in another process, where an address is still relayed from.
    pub(super) fn restore(&self, resting: &[(IpAddr, Vec<RestingPort>)]) {
        for (advertised, ports) in resting {
            let entries = self.entries.load();
            let of = entries.iter().find(|of| of.address.advertised == *advertised);
            of.into_iter().for_each(|of| of.ports().restore(ports));
        }
    }

    /// All of them, serving ones first.
    pub(super) fn all(&self) -> Arc<Vec<RelayAddressEntry>> {
        self.entries.load_full()
    }

    /// Those that new allocations get.
    pub(super) fn serving(&self) -> Vec<RelayAddress> {
        self.entries.load().iter().filter(|of| of.is_serving).map(|of| of.address).collect()
    }

    /// Whether new allocations get an address of this family.
    pub(super) fn serves(&self, family: Family) -> bool {
        self.entries.load().iter().any(|of| of.is_serving && Family::of(of.address.advertised) == family)
    }

    /// What the ports of each address do, and how many of those in use are held for a RESERVATION-TOKEN. Those of a retired
    /// address are not to be had.
    pub(super) fn port_counts(&self, now: Ticks) -> Vec<(RelayAddress, PortCounts, usize)> {
        let port_counts = |of: &RelayAddressEntry| {
            let port_counts = of.ports().port_counts(now);
            let reserved = port_counts.used.saturating_sub(of.open() as usize);
            let port_counts =
                if of.is_serving { port_counts } else { PortCounts { free: 0, resting: 0, ..port_counts } };
            (of.address, port_counts, reserved)
        };
        self.entries.load().iter().map(port_counts).collect()
    }

    /// What the ports of each tenant that has a part do at each serving address, and, without a tenant, those in no part;
    /// nothing if no tenant has one.
    pub(super) fn tenant_counts(&self, now: Ticks) -> Vec<(Option<Box<str>>, RelayAddress, PortCounts)> {
        let parts = self.fresh().parts.clone();
        let mut all: Vec<_> = parts.iter().map(|(tenant, part)| (Some(Box::from(tenant)), Some(part))).collect();
        if !all.is_empty() {
            all.push((None, None));
        }
        let entries = self.entries.load();
        let serving = || entries.iter().filter(|of| of.is_serving);
        let counts = |(tenant, part): (Option<Box<str>>, _)| {
            serving().map(move |of| (tenant.clone(), of.address, of.ports().part_counts(part, now)))
        };
        all.into_iter().flat_map(counts).collect()
    }

    /// Reads or changes the entry that clients are told by this address.
    pub(super) fn with<T>(&self, advertised: IpAddr, act: impl FnOnce(&RelayAddressEntry) -> T) -> Option<T> {
        self.entries.load().iter().find(|of| of.address.advertised == advertised).map(act)
    }

    /// Whether a socket of another process is bound to a relayed address; `bound` is what it is bound to.
    ///
    /// # Errors
    /// When it is not, or is no socket.
    pub(super) fn check_bound(
        &self,
        relayed: RelayedTransportAddress,
        bound: io::Result<SocketAddr>,
    ) -> Result<(), String> {
        let local = self.with(relayed.ip(), |entry| SocketAddr::new(entry.address.local, relayed.port()));
        let bound = bound.map_err(|error| format!("the socket of {relayed} is none: {error}"))?;
        if local != Some(bound) {
            return Err(format!("the socket of {relayed} is bound to {bound}"));
        }
        Ok(())
    }

    /// Whether the entry with this number goes by this IP address.
    #[inline]
    pub(super) fn is(&self, number: u16, ip: IpAddr) -> bool {
        self.entries.load().iter().any(|of| of.number == number && of.is(ip))
    }

    /// Notes that a relayed address was opened or closed.
    pub(super) fn set_relayed(&self, relayed: RelayedTransportAddress, owner: RelayOwner) {
        self.with(relayed.ip(), |entry| entry.owners.set(relayed.port(), owner));
    }

    /// Notes that a relayed address is closed; `false` if it is another owner's by now.
    pub(super) fn unset_relayed(&self, relayed: RelayedTransportAddress, owner: RelayOwner) -> bool {
        self.with(relayed.ip(), |entry| entry.owners.unset(relayed.port(), owner)).unwrap_or(true)
    }

    /// Who has a relayed address at this moment, in either of its forms.
    #[inline]
    pub(super) fn relay_owner(&self, address: PeerAddress) -> Option<RelayOwner> {
        let entries = self.entries.load();
        entries.iter().filter(|of| of.is(address.ip())).find_map(|of| of.owner(address.port()))
    }

    /// Notes that a relayed address of TCP was opened or closed.
    pub(super) fn set_relayed_tcp(&self, relayed: RelayedTransportAddress, is_open: bool) {
        self.with(relayed.ip(), |entry| entry.tcp.set(relayed.port(), is_open));
    }

    /// Whether an address is a relayed one of TCP at this moment, in either of its forms.
    pub(super) fn is_relayed_tcp(&self, address: PeerAddress) -> bool {
        self.entries.load().iter().any(|of| of.is(address.ip()) && of.tcp.has(address.port()))
    }

    /// A relayed address of TCP of ours in its local form, where connections are made to; any other address as it is.
    pub(super) fn tcp_to_local(&self, peer: PeerAddress) -> PeerAddress {
        let entries = self.entries.load();
        let it = entries.iter().find(|of| of.address.advertised == peer.ip() && of.tcp.has(peer.port()));
        it.map_or(peer, |of| PeerAddress::new(of.address.local, peer.port()))
    }

    /// The same in its advertised form, which is the one that clients know.
    pub(super) fn tcp_to_advertised(&self, from: PeerAddress) -> PeerAddress {
        let entries = self.entries.load();
        let it = entries.iter().find(|of| of.address.local == from.ip() && of.tcp.has(from.port()));
        it.map_or(from, |of| PeerAddress::new(of.address.advertised, from.port()))
    }

    /// A relayed address of ours in its local form, because clouds rarely hairpin. Everything else stays as it is: behind
    /// one public address there may be other machines.
    #[inline]
    pub(super) fn to_local(&self, peer: PeerAddress) -> Option<PeerAddress> {
        self.translated(peer, |of| (of.advertised, of.local))
    }

    /// A relayed address of ours in its advertised form, which is the one that clients know.
    #[inline]
    pub(super) fn to_advertised(&self, from: PeerAddress) -> Option<PeerAddress> {
        self.translated(from, |of| (of.local, of.advertised))
    }

    #[inline]
    fn translated(
        &self,
        address: PeerAddress,
        forms: impl Fn(RelayAddress) -> (IpAddr, IpAddr),
    ) -> Option<PeerAddress> {
        if !self.translates.load(Ordering::Relaxed) {
            return None;
        }
        let entries = self.entries.load();
        let is_it = |of: &&RelayAddressEntry| forms(of.address).0 == address.ip() && of.owner(address.port()).is_some();
        entries.iter().find(is_it).map(|of| PeerAddress::new(forms(of.address).1, address.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::border::Parity;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(1, 2, 3, 4));

    fn addresses(wanted: &[RelayAddress]) -> RelayAddresses {
        let addresses = RelayAddresses::new(&(50_000..=50_009), [1; 32]);
        addresses.serve(wanted);
        addresses
    }

    fn address(local: [u8; 4], advertised: [u8; 4]) -> RelayAddress {
        RelayAddress { local: local.into(), advertised: advertised.into() }
    }

    fn peer(ip: [u8; 4], port: u16) -> PeerAddress {
        PeerAddress::new(ip.into(), port)
    }

    const OWNER: RelayOwner = RelayOwner { worker: WorkerId(255), index: 70_000 };

    #[test]
    fn a_relayed_port_is_known_under_both_its_addresses() {
        let addresses = addresses(&[address([10, 0, 0, 5], [9, 9, 9, 9])]);
        let relayed = RelayedTransportAddress::new([9, 9, 9, 9].into(), 50_000);
        let owner = |ip, port| addresses.relay_owner(peer(ip, port));
        assert_eq!(owner([9, 9, 9, 9], 50_000), None);
        addresses.set_relayed(relayed, OWNER);
        addresses.set_relayed(relayed, OWNER);
        assert_eq!(addresses.with(relayed.ip(), |of| of.owners.open.load(Ordering::Relaxed)), Some(1));
        for ip in [[9, 9, 9, 9], [10, 0, 0, 5]] {
            assert_eq!((owner(ip, 50_000), owner(ip, 50_001)), (Some(OWNER), None));
        }
        addresses.unset_relayed(relayed, OWNER);
        assert_eq!(addresses.with(relayed.ip(), |of| of.owners.open.load(Ordering::Relaxed)), Some(0));
        assert_eq!(owner([9, 9, 9, 9], 50_000), None);
    }

    // F-E9: every port of the advertised address went to this machine, the SFU's behind the same address too.
    #[test]
    fn only_relayed_ports_have_a_local_form() {
        let addresses = addresses(&[address([10, 0, 0, 5], [9, 9, 9, 9])]);
        addresses.set_relayed(RelayedTransportAddress::new([9, 9, 9, 9].into(), 50_000), OWNER);
        assert_eq!(addresses.to_local(peer([9, 9, 9, 9], 50_000)), Some(peer([10, 0, 0, 5], 50_000)));
        assert_eq!(addresses.to_local(peer([9, 9, 9, 9], 7_000)), None);
        assert_eq!(addresses.to_advertised(peer([10, 0, 0, 5], 50_000)), Some(peer([9, 9, 9, 9], 50_000)));
        assert_eq!(addresses.to_advertised(peer([10, 0, 0, 5], 7_000)), None);
    }

    // F-E4
    #[test]
    fn an_address_that_goes_keeps_its_ports_until_they_are_closed_and_may_come_back() {
        let (old, new) = (address([10, 0, 0, 5], [10, 0, 0, 5]), address([10, 0, 0, 6], [10, 0, 0, 6]));
        let addresses = addresses(&[old]);
        let take = |of: &RelayAddress| {
            addresses.with(of.advertised, |of| of.ports().take(None, Parity::Any, CLIENT, Ticks(0)))
        };
        let port = take(&old).flatten().unwrap();
        let relayed = RelayedTransportAddress::new(old.advertised, port);
        addresses.set_relayed(relayed, OWNER);
        assert!(!addresses.serve(&[old]), "nothing changed");
        assert!(addresses.serve(&[new]));
        assert_eq!(addresses.serving(), [new]);
        assert_eq!(addresses.relay_owner(peer([10, 0, 0, 5], port)), Some(OWNER), "its calls go on");
        let [first, second] = &addresses.all()[..] else { panic!("a serving and a retired one") };
        assert!(first.is_serving && !second.is_serving && first.number != second.number);
        assert!(addresses.serve(&[old, new]));
        assert_eq!(addresses.serving(), [old, new]);
        assert_eq!(
            addresses.with(old.advertised, |of| of.ports().port_counts(Ticks(0)).used),
            Some(1),
            "the same ports"
        );
        addresses.with(old.advertised, |of| of.ports().rest(port, None, Ticks(0)));
        addresses.unset_relayed(relayed, OWNER);
        assert!(addresses.serve(&[new]));
        assert_eq!(addresses.all().len(), 1, "nothing of it is left");
    }

    // F-E4: two sockets must never stand for one advertised address.
    #[test]
    fn another_local_address_behind_the_same_public_one_takes_over_its_ports() {
        let (old, new) = (address([10, 0, 0, 5], [9, 9, 9, 9]), address([10, 0, 0, 6], [9, 9, 9, 9]));
        let addresses = addresses(&[old]);
        let take =
            || addresses.with(old.advertised, |of| of.ports().take(None, Parity::Any, CLIENT, Ticks(0))).flatten();
        let mut given: Vec<u16> = (0..5).filter_map(|_| take()).collect();
        assert!(addresses.serve(&[new]));
        given.extend((0..5).filter_map(|_| take()));
        given.sort_unstable();
        assert_eq!(given, (50_000..=50_009).collect::<Vec<_>>(), "each port once");
        assert_eq!(addresses.all().len(), 1);
    }

    // In a process that takes over, two workers may have had an allocation that moved between them meanwhile.
    #[test]
    fn closing_a_port_that_has_another_owner_by_now_changes_nothing() {
        let addresses = addresses(&[address([10, 0, 0, 5], [9, 9, 9, 9])]);
        let relayed = RelayedTransportAddress::new([9, 9, 9, 9].into(), 50_001);
        let other = RelayOwner { worker: WorkerId(1), index: 7 };
        addresses.set_relayed(relayed, OWNER);
        addresses.set_relayed(relayed, other);
        assert!(!addresses.unset_relayed(relayed, OWNER));
        assert_eq!(addresses.relay_owner(PeerAddress(relayed.0)), Some(other));
        assert!(addresses.unset_relayed(relayed, other));
        assert_eq!(addresses.relay_owner(PeerAddress(relayed.0)), None);
        assert!(!addresses.unset_relayed(relayed, other), "once");
    }
}
