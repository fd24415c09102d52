//! Whom an allocation reaches: its permissions by address, its channels by number and by peer, packed.

use std::net::{IpAddr, Ipv6Addr};

use super::address::PeerAddress;
use super::allocation::{ChannelBinding, Permission};
use super::few::{Entry, Few};
use super::peer_policy::PeerClass;
use super::time::Ticks;

/// An IP address in 16 bytes; which family it is of is noted beside it.
type Bits = [u64; 2];

fn bits(ip: IpAddr) -> (Bits, bool) {
    match ip {
        IpAddr::V4(ip) => ([0, u64::from(u32::from(ip))], false),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            ([(bits >> 64) as u64, bits as u64], true)
        }
    }
}

fn ip([high, low]: Bits, is_ipv6: bool) -> IpAddr {
    if is_ipv6 {
        IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)))
    } else {
        IpAddr::V4((low as u32).into())
    }
}

/// A point in time in 48 bits: milliseconds of 8,900 years.
#[derive(Clone, Copy, Debug)]
struct Until([u16; 3]);

impl Until {
    fn new(at: Ticks) -> Self {
        let at = at.0.min((1 << 48) - 1);
        Self([(at >> 32) as u16, (at >> 16) as u16, at as u16])
    }

    fn ticks(self) -> Ticks {
        let Self([high, middle, low]) = self;
        Ticks(u64::from(high) << 32 | u64::from(middle) << 16 | u64::from(low))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PermissionEntry {
    ip: Bits,
    until: Until,
    is_ipv6: bool,
    class: PeerClass,
}

impl PermissionEntry {
    fn permission(&self) -> Permission {
        Permission { expires_at: self.until.ticks(), class: self.class }
    }
}

impl Entry for PermissionEntry {
    type Key = (Bits, bool);

    fn keys(&self) -> impl Iterator<Item = Self::Key> {
        std::iter::once((self.ip, self.is_ipv6))
    }

    #[inline]
    fn has(&self, (ip, is_ipv6): &Self::Key) -> bool {
        self.ip == *ip && self.is_ipv6 == *is_ipv6
    }
}

/// Which addresses may be sent to; the first one needs no heap.
#[derive(Clone, Debug)]
pub(super) enum Permissions {
    One(PermissionEntry),
    Several(Few<PermissionEntry>),
}

const _: () = assert!(size_of::<Permissions>() == 24);

impl Default for Permissions {
    fn default() -> Self {
        Self::Several(Few::default())
    }
}

impl Permissions {
    fn entries(&self) -> &[PermissionEntry] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Several(entries) => entries.as_slice(),
        }
    }

    #[inline]
    pub(super) fn get(&self, ip: IpAddr) -> Option<Permission> {
        let key = bits(ip);
        match self {
            Self::One(entry) => entry.has(&key).then_some(entry),
            Self::Several(entries) => entries.get(&key),
        }
        .map(PermissionEntry::permission)
    }

    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, Permission)> {
        self.entries().iter().map(|entry| (ip(entry.ip, entry.is_ipv6), entry.permission()))
    }

    pub(super) fn insert(&mut self, ip: IpAddr, permission: Permission, seed: u64) {
        let key = bits(ip);
        let Permission { expires_at, class } = permission;
        let entry = PermissionEntry { ip: key.0, until: Until::new(expires_at), is_ipv6: key.1, class };
        match self {
            Self::One(old) if old.has(&key) => *old = entry,
            Self::One(old) => *self = Self::Several(Few::of(vec![*old, entry], seed)),
            Self::Several(entries) if entries.as_slice().is_empty() => *self = Self::One(entry),
            Self::Several(entries) => entries.insert(&key, entry, seed),
        }
    }

    pub(super) fn retain(&mut self, seed: u64, mut keep: impl FnMut(IpAddr, &mut Permission) -> bool) {
        let mut keep = |entry: &mut PermissionEntry| {
            let mut permission = entry.permission();
            let keeps = keep(ip(entry.ip, entry.is_ipv6), &mut permission);
            entry.class = permission.class;
            keeps
        };
        match self {
            Self::One(entry) => {
                if !keep(entry) {
                    *self = Self::default();
                }
            }
            Self::Several(entries) => entries.retain(seed, keep),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ChannelEntry {
    ip: Bits,
    until: Until,
    port: u16,
    number: u16,
    is_ipv6: bool,
    class: PeerClass,
}

/// What a channel is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum ChannelKey {
    Number(u16),
    Peer(Bits, bool, u16),
}

impl ChannelKey {
    fn of_peer(peer: PeerAddress) -> Self {
        let (bits, is_ipv6) = bits(peer.ip());
        Self::Peer(bits, is_ipv6, peer.port())
    }
}

impl ChannelEntry {
    fn binding(&self) -> ChannelBinding {
        let peer = PeerAddress::new(ip(self.ip, self.is_ipv6), self.port);
        ChannelBinding { peer, class: self.class, expires_at: self.until.ticks() }
    }
}

impl Entry for ChannelEntry {
    type Key = ChannelKey;

    fn keys(&self) -> impl Iterator<Item = ChannelKey> {
        [ChannelKey::Number(self.number), ChannelKey::Peer(self.ip, self.is_ipv6, self.port)].into_iter()
    }

    #[inline]
    fn has(&self, key: &ChannelKey) -> bool {
        match *key {
            ChannelKey::Number(number) => self.number == number,
            ChannelKey::Peer(ip, is_ipv6, port) => self.port == port && self.ip == ip && self.is_ipv6 == is_ipv6,
        }
    }
}

/// Channels; no two have the same number or the same peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Channels(Few<ChannelEntry>);

const _: () = assert!(size_of::<Channels>() == 16 && size_of::<ChannelEntry>() == 32);

impl Channels {
    #[inline]
    pub(super) fn get(&self, number: u16) -> Option<ChannelBinding> {
        self.0.get(&ChannelKey::Number(number)).map(ChannelEntry::binding)
    }

    /// The channel of a peer.
    #[inline]
    pub(super) fn to(&self, peer: PeerAddress) -> Option<(u16, ChannelBinding)> {
        self.0.get(&ChannelKey::of_peer(peer)).map(|entry| (entry.number, entry.binding()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_slice().len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, ChannelBinding)> {
        self.0.as_slice().iter().map(|entry| (entry.number, entry.binding()))
    }

    /// Binds a channel, or renews one that has this very peer.
    pub(super) fn insert(&mut self, number: u16, binding: ChannelBinding, seed: u64) {
        let ChannelBinding { peer, class, expires_at } = binding;
        let (ip, is_ipv6) = bits(peer.ip());
        let entry = ChannelEntry { ip, until: Until::new(expires_at), port: peer.port(), number, is_ipv6, class };
        let key = ChannelKey::Number(number);
        if self.get(number).is_some_and(|old| old.peer != peer) || self.to(peer).is_some_and(|(old, _)| old != number) {
            // Whoever let this pass meant that the new one takes the place of both.
            self.0.retain(seed, |old| old.number != number && !old.has(&ChannelKey::of_peer(peer)));
        }
        self.0.insert(&key, entry, seed);
    }

    pub(super) fn retain(&mut self, seed: u64, mut keep: impl FnMut(&mut ChannelBinding) -> bool) {
        self.0.retain(seed, |entry| {
            let mut binding = entry.binding();
            let keeps = keep(&mut binding);
            entry.class = binding.class;
            keeps
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u16) -> Vec<IpAddr> {
        (0..count)
            .map(|n| {
                let [high, low] = n.to_be_bytes();
                if n % 2 == 0 { [10, 0, high, low].into() } else { [0x2a00, 0, 0, 0, 0, 0, 0, n].into() }
            })
            .collect()
    }

    #[test]
    fn addresses_and_times_come_back_as_they_went_in() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let plain: IpAddr = "10.0.0.1".parse().unwrap();
        let mut permissions = Permissions::default();
        let until = |at| Permission { expires_at: Ticks(at), class: PeerClass::Own };
        for address in [plain, "::".parse().unwrap(), "2a00:1::ffff:1".parse().unwrap()] {
            permissions.insert(address, until((1 << 48) - 1), 1);
            assert_eq!(permissions.get(address), Some(until((1 << 48) - 1)));
        }
        assert_eq!(permissions.get(mapped), None, "another address than the one inside it");
        assert_eq!(permissions.get("0.0.0.0".parse().unwrap()), None);
        permissions.insert(plain, until(u64::MAX), 1);
        assert_eq!(permissions.get(plain), Some(until((1 << 48) - 1)), "late enough");
        assert_eq!(permissions.len(), 3);
    }

    #[test]
    fn from_one_to_thousands_and_back_each_is_found() {
        let mut permissions = Permissions::default();
        let mut channels = Channels::default();
        let all = addresses(4096);
        for (n, address) in (0_u16..).zip(&all) {
            let expires_at = Ticks(u64::from(n) + 7);
            permissions.insert(*address, Permission { expires_at, class: PeerClass::Remote }, 3);
            let peer = PeerAddress::new(*address, n);
            channels.insert(0x4000 + n, ChannelBinding { peer, class: PeerClass::Local, expires_at }, 3);
            assert_eq!((permissions.len(), channels.len()), (usize::from(n) + 1, usize::from(n) + 1));
        }
        for (n, address) in (0_u16..).zip(&all) {
            let expires_at = Ticks(u64::from(n) + 7);
            assert_eq!(permissions.get(*address), Some(Permission { expires_at, class: PeerClass::Remote }));
            let peer = PeerAddress::new(*address, n);
            let binding = ChannelBinding { peer, class: PeerClass::Local, expires_at };
            assert_eq!(channels.get(0x4000 + n), Some(binding));
            assert_eq!(channels.to(peer), Some((0x4000 + n, binding)));
            assert_eq!(channels.to(PeerAddress::new(*address, n + 1)), None);
        }
        permissions.retain(3, |_, permission| permission.expires_at < Ticks(8));
        channels.retain(3, |binding| binding.expires_at < Ticks(8));
        assert_eq!(permissions.iter().map(|(address, _)| address).collect::<Vec<_>>(), all[..1]);
        assert_eq!(channels.iter().map(|(number, _)| number).collect::<Vec<_>>(), [0x4000]);
        permissions.retain(3, |_, _| false);
        assert_eq!((permissions.len(), permissions.get(all[0])), (0, None));
    }
}
