//! Channels of one allocation (RFC 8656 section 12): by number and by peer.

use minicbor::{Decode, Encode};

use super::packed::{Bits, ExpiresAt, bits, ip};
use super::peer_policy::PeerClass;
use super::small_set::{SetEntry, SmallSet};
use crate::address::PeerAddress;
use crate::time::Ticks;

/// How long a channel stays bound, in seconds (RFC 8656 section 12). [8656-12-4]
pub const CHANNEL_LIFETIME: u64 = 600;

/// A channel number and the peer behind it (RFC 8656 section 12).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ChannelBinding {
    /// The peer.
    #[n(0)]
    pub peer: PeerAddress,
    /// What the policy found its address to be.
    #[n(1)]
    pub class: PeerClass,
    /// From then on it is void.
    #[n(2)]
    pub expires_at: Ticks,
}

#[derive(Clone, Copy, Debug)]
struct ChannelEntry {
    ip: Bits,
    expires_at: ExpiresAt,
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
        ChannelBinding { peer, class: self.class, expires_at: self.expires_at.ticks() }
    }
}

impl SetEntry for ChannelEntry {
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
pub(super) struct Channels(SmallSet<ChannelEntry>);

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

    /// Binds a channel, or renews one that has this very peer; where there are many, some that are over at `now` leave.
    pub(super) fn insert(&mut self, number: u16, binding: ChannelBinding, now: Ticks, seed: u64) {
        let ChannelBinding { peer, class, expires_at } = binding;
        let (ip, is_ipv6) = bits(peer.ip());
        let entry =
            ChannelEntry { ip, expires_at: ExpiresAt::new(expires_at), port: peer.port(), number, is_ipv6, class };
        let key = ChannelKey::Number(number);
        if self.get(number).is_some_and(|old| old.peer != peer) || self.to(peer).is_some_and(|(old, _)| old != number) {
            // The checks let this pass only if both are over: the new one takes the place of both.
            self.0.remove(&key, seed);
            self.0.remove(&ChannelKey::of_peer(peer), seed);
        }
        self.0.insert(&key, entry, seed);
        self.0.drop_some(|entry| entry.expires_at.ticks() <= now);
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
    use crate::protocol::permission::{Permission, Permissions};
    use std::net::IpAddr;

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
            permissions.insert(address, until((1 << 48) - 1), Ticks(0), 1);
            assert_eq!(permissions.get(address), Some(until((1 << 48) - 1)));
        }
        assert_eq!(permissions.get(mapped), None, "another address than the one inside it");
        assert_eq!(permissions.get("0.0.0.0".parse().unwrap()), None);
        permissions.insert(plain, until(u64::MAX), Ticks(0), 1);
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
            permissions.insert(*address, Permission { expires_at, class: PeerClass::Remote }, Ticks(0), 3);
            let peer = PeerAddress::new(*address, n);
            channels.insert(0x4000 + n, ChannelBinding { peer, class: PeerClass::Local, expires_at }, Ticks(0), 3);
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
