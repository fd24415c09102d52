//! Permissions of one allocation (RFC 8656 section 9): which peer addresses may be sent to and heard.
//!
//! A permission is for an IP address; the port does not matter. The first one needs no heap.

use std::net::IpAddr;

use minicbor::{Decode, Encode};

use super::packed::{Bits, ExpiresAt, bits, ip};
use super::peer_policy::PeerClass;
use super::small_set::{SetEntry, SmallSet};
use crate::time::Ticks;

/// How long a permission lives, in seconds (RFC 8656 section 9). [8656-9-1]
pub const PERMISSION_LIFETIME: u64 = 300;

/// Which peer address may send, and be sent to; the port does not matter (RFC 8656 section 9). [8656-9-2]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Permission {
    /// From then on it is void.
    #[n(0)]
    pub expires_at: Ticks,
    /// What the policy found the address to be.
    #[n(1)]
    pub class: PeerClass,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PermissionEntry {
    ip: Bits,
    expires_at: ExpiresAt,
    is_ipv6: bool,
    class: PeerClass,
}

impl PermissionEntry {
    fn permission(&self) -> Permission {
        Permission { expires_at: self.expires_at.ticks(), class: self.class }
    }
}

impl SetEntry for PermissionEntry {
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
    Several(SmallSet<PermissionEntry>),
}

const _: () = assert!(size_of::<Permissions>() == 24);

impl Default for Permissions {
    fn default() -> Self {
        Self::Several(SmallSet::default())
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

    /// Installs a permission, or replaces the one of this address; where there are many, some that are over at `now`
    /// leave.
    pub(super) fn insert(&mut self, ip: IpAddr, permission: Permission, now: Ticks, seed: u64) {
        let key = bits(ip);
        let Permission { expires_at, class } = permission;
        let entry = PermissionEntry { ip: key.0, expires_at: ExpiresAt::new(expires_at), is_ipv6: key.1, class };
        match self {
            Self::One(old) if old.has(&key) => *old = entry,
            Self::One(old) => *self = Self::Several(SmallSet::of(vec![*old, entry], seed)),
            Self::Several(entries) if entries.as_slice().is_empty() => *self = Self::One(entry),
            Self::Several(entries) => {
                entries.insert(&key, entry, seed);
                entries.drop_some(|entry| entry.expires_at.ticks() <= now);
            }
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
