//! What spans the workers: quota counts, and which ports are relayed ports right now.
//!
//! Admission takes a lock, once per allocation. The data lanes read one bit of a bitmap, without.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::address::{PeerAddress, RelayedTransportAddress};
use crate::protocol::border::{Genuine, Shared};
use crate::protocol::genuine::GenuineCounts;
use crate::protocol::meter::Meters;
use crate::protocol::quota::{Admitted, Counted, QuotaClaim, Quotas};
use crate::protocol::reject::RejectReason;
use crate::protocol::revocation::{Party, Revocations};
use crate::protocol::settings::Limits;
use crate::protocol::time::{Now, UnixSeconds};

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

/// The one instance that all workers of a process share.
pub struct Process {
    addresses: Vec<(RelayAddress, Box<Ports>)>,
    quotas: Mutex<Quotas>,
    genuine: Mutex<GenuineCounts>,
    revocations: Mutex<Revocations>,
}

impl Process {
    /// For these relay addresses.
    #[must_use]
    pub fn new(addresses: &[RelayAddress]) -> Self {
        Self {
            addresses: addresses.iter().map(|address| (*address, Ports::new())).collect(),
            quotas: Mutex::default(),
            genuine: Mutex::default(),
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

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        // A panic in there would be a broken assumption of the table's own; counts that are off by one are better
        // than none.
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who proved to hold a credential, by secret and result.
    #[must_use]
    pub fn genuine(&self) -> GenuineCounts {
        self.genuine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who is shut out.
    pub(super) fn revocations(&self) -> MutexGuard<'_, Revocations> {
        // The set is whole after each statement, as the counts are.
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many allocations are counted: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        self.quotas().usage()
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        self.quotas().busiest_client()
    }
}

impl Shared for Process {
    fn admit(&self, now: Now, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason> {
        self.quotas().admit(now, claim, limits)
    }

    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits) -> Meters {
        self.quotas().meters(claim, counted, limits)
    }

    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        self.quotas().release(now, claim, counted);
    }

    fn authenticated(&self, now: Now, note: &Genuine<'_>) {
        self.genuine.lock().unwrap_or_else(PoisonError::into_inner).note(now, note);
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
