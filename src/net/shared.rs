//! What spans the workers: quota counts, and which ports are relayed ports right now.
//!
//! Admission takes a lock, once per allocation. The data lanes read one bit of a bitmap, without.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::protocol::address::{PeerAddress, RelayedTransportAddress};
use crate::protocol::border::{QuotaClaim, Shared};
use crate::protocol::reject::RejectReason;
use crate::protocol::revocation::{Party, Revocations};
use crate::protocol::settings::Limits;
use crate::protocol::time::UnixSeconds;

/// A local address to relay from, and what clients are told instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelayAddress {
    /// What sockets bind to.
    pub local: IpAddr,
    /// What clients are told; the same without NAT.
    pub advertised: IpAddr,
}

/// One bit per port of a relay address.
struct Ports([AtomicU64; 1024]);

impl Ports {
    fn new() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(0) }; 1024]))
    }

    const fn place(port: u16) -> (usize, u64) {
        (port as usize / 64, 1 << (port % 64))
    }

    fn set(&self, port: u16, open: bool) {
        let (word, bit) = Self::place(port);
        if open {
            self.0[word].fetch_or(bit, Ordering::Relaxed);
        } else {
            self.0[word].fetch_and(!bit, Ordering::Relaxed);
        }
    }

    fn get(&self, port: u16) -> bool {
        let (word, bit) = Self::place(port);
        self.0[word].load(Ordering::Relaxed) & bit != 0
    }
}

#[derive(Default)]
struct Counts {
    total: u32,
    users: HashMap<String, u32>,
    clients: HashMap<IpAddr, u32>,
}

/// The one instance that all workers of a process share.
pub struct Process {
    addresses: Vec<(RelayAddress, Box<Ports>)>,
    counts: Mutex<Counts>,
    revocations: Mutex<Revocations>,
}

impl Process {
    /// For these relay addresses.
    #[must_use]
    pub fn new(addresses: &[RelayAddress]) -> Self {
        Self {
            addresses: addresses.iter().map(|address| (*address, Ports::new())).collect(),
            counts: Mutex::default(),
            revocations: Mutex::default(),
        }
    }

    /// The addresses that are relayed from.
    pub fn addresses(&self) -> impl Iterator<Item = RelayAddress> {
        self.addresses.iter().map(|(address, _)| *address)
    }

    /// Notes that a relayed address was opened or closed.
    pub(super) fn set_relayed(&self, relayed: RelayedTransportAddress, open: bool) {
        if let Some((_, ports)) = self.addresses.iter().find(|(address, _)| address.advertised == relayed.ip()) {
            ports.set(relayed.port(), open);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // The counts are whole after each statement, so a panic elsewhere leaves nothing half done.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is shut out.
    pub(super) fn revocations(&self) -> MutexGuard<'_, Revocations> {
        // The set is whole after each statement, as the counts are.
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many allocations are counted: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        let counts = self.counts();
        (counts.total, counts.users.len(), counts.clients.len())
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        reason = "the largest is the same in any order, but for equals, where any will do"
    )]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        let counts = self.counts();
        let (client, count) = counts.clients.iter().max_by_key(|(_, count)| **count)?;
        Some((*client, *count, counts.total))
    }
}

/// A client's /32 or /56; loopback is exempt.
fn prefix(client: IpAddr) -> Option<IpAddr> {
    if client.is_loopback() {
        return None;
    }
    Some(match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 72 << 72).into()),
    })
}

fn take<K, Q>(counts: &mut HashMap<K, u32>, key: &Q)
where
    K: std::hash::Hash + Eq,
    Q: std::hash::Hash + hashbrown::Equivalent<K> + ?Sized,
{
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Shared for Process {
    fn admit(&self, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<(), RejectReason> {
        let mut counts = self.counts();
        let full = |count: u32, limit: Option<u32>| limit.is_some_and(|limit| count >= limit);
        if full(counts.total, limits.allocations) {
            return Err(RejectReason::QuotaServer);
        }
        let user = claim.identity.map(|identity| counts.users.get(identity).copied().unwrap_or(0));
        if user.is_some_and(|count| full(count, limits.allocations_per_user)) {
            return Err(RejectReason::QuotaUser);
        }
        let client = prefix(claim.client);
        let of_client = client.map_or(0, |prefix| counts.clients.get(&prefix).copied().unwrap_or(0));
        if full(of_client, limits.allocations_per_client) {
            return Err(RejectReason::QuotaClient);
        }
        counts.total += 1;
        if let Some(identity) = claim.identity {
            *counts.users.entry_ref(identity).or_insert(0) += 1;
        }
        if let Some(prefix) = client {
            *counts.clients.entry(prefix).or_insert(0) += 1;
        }
        Ok(())
    }

    fn release(&self, claim: &QuotaClaim<'_>) {
        let mut counts = self.counts();
        counts.total = counts.total.saturating_sub(1);
        if let Some(identity) = claim.identity {
            take(&mut counts.users, identity);
        }
        if let Some(prefix) = prefix(claim.client) {
            take(&mut counts.clients, &prefix);
        }
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.addresses.iter().any(|(relay, ports)| {
            (relay.advertised == address.ip() || relay.local == address.ip()) && ports.get(address.port())
        })
    }

    fn is_revoked(&self, party: &Party<'_>, now: UnixSeconds) -> bool {
        self.revocations().includes(party, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_count_users_and_prefixes_and_are_given_back_exactly() {
        let process = Process::new(&[]);
        let limits = Limits {
            allocations: Some(4),
            allocations_per_user: Some(2),
            allocations_per_client: Some(3),
            ..Limits::default()
        };
        let claim = |identity, client: &str| QuotaClaim { identity, client: client.parse().unwrap() };
        let alice = claim(Some("alice"), "2001:db8:0:ff::1");
        assert_eq!(process.admit(&alice, &limits), Ok(()));
        assert_eq!(process.admit(&alice, &limits), Ok(()));
        assert_eq!(process.admit(&alice, &limits), Err(RejectReason::QuotaUser));
        let neighbour = claim(None, "2001:db8:0:01::2");
        assert_eq!(process.admit(&neighbour, &limits), Ok(()), "a static user has no limit of his own");
        assert_eq!(process.admit(&neighbour, &limits), Err(RejectReason::QuotaClient), "same /56");
        let local = claim(Some("bob"), "127.0.0.1");
        assert_eq!(process.admit(&local, &limits), Ok(()));
        assert_eq!(process.admit(&local, &limits), Err(RejectReason::QuotaServer));
        for claim in [alice, alice, neighbour, local] {
            process.release(&claim);
        }
        assert_eq!(process.usage(), (0, 0, 0));
    }

    #[test]
    fn a_relayed_port_is_known_under_both_its_addresses() {
        let (local, advertised): (IpAddr, IpAddr) = ([10, 0, 0, 5].into(), [9, 9, 9, 9].into());
        let process = Process::new(&[RelayAddress { local, advertised }]);
        let relayed = RelayedTransportAddress::new(advertised, 50_000);
        let known = |ip, port| process.is_relayed(PeerAddress::new(ip, port));
        assert!(!known(advertised, 50_000));
        process.set_relayed(relayed, true);
        assert!(known(advertised, 50_000) && known(local, 50_000) && !known(local, 50_001));
        process.set_relayed(relayed, false);
        assert!(!known(advertised, 50_000));
    }
}
