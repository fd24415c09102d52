//! What spans the workers: quota counts, and whose relayed ports there are right now.
//!
//! Admission takes a lock, once per allocation. The data lanes read one word of a table, without.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::address::{PeerAddress, RelayedTransportAddress};
use crate::protocol::border::{Genuine, Shared, WorkerId};
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

/// Where the allocation of a relayed address lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RelayOwner {
    /// Whose it is.
    pub(super) worker: WorkerId,
    /// Its slot there; whoever looks there checks that the address is still the same.
    pub(super) index: u32,
}

/// The owner of each port of a relay address, 0 for those that are no relayed ports now.
///
/// Zeroed by the kernel, page by page as ports are used.
struct Ports(Box<[AtomicU32]>);

impl Ports {
    fn new() -> Self {
        Self(std::iter::repeat_with(AtomicU32::default).take(1 << 16).collect())
    }

    fn set(&self, port: u16, owner: Option<RelayOwner>) {
        // A slot that does not fit is told as one that nobody has: the packet then takes the way through the kernel.
        let slot = |index: u32| index.saturating_add(1).min(SLOT_MAX);
        let value = owner.map_or(0, |owner| u32::from(owner.worker.0) << SLOT_BITS | slot(owner.index));
        self.0[usize::from(port)].store(value, Ordering::Relaxed);
    }

    #[inline]
    fn get(&self, port: u16) -> Option<RelayOwner> {
        let value = self.0[usize::from(port)].load(Ordering::Relaxed);
        let index = (value & SLOT_MAX).checked_sub(1)?;
        Some(RelayOwner { worker: WorkerId((value >> SLOT_BITS) as u8), index })
    }
}

const SLOT_BITS: u32 = 24;
const SLOT_MAX: u32 = (1 << SLOT_BITS) - 1;

/// The one instance that all workers of a process share.
pub struct Process {
    addresses: Vec<(RelayAddress, Ports)>,
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
    pub(super) fn set_relayed(&self, relayed: RelayedTransportAddress, owner: Option<RelayOwner>) {
        if let Some((_, ports)) = self.addresses.iter().find(|(address, _)| address.advertised == relayed.ip()) {
            ports.set(relayed.port(), owner);
        }
    }

    /// Who has a relayed address at this moment, in either of its forms.
    #[inline]
    pub(super) fn relay_owner(&self, address: PeerAddress) -> Option<RelayOwner> {
        let of = |(relay, ports): &(RelayAddress, Ports)| {
            (relay.advertised == address.ip() || relay.local == address.ip()).then(|| ports.get(address.port()))?
        };
        self.addresses.iter().find_map(of)
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

    /// How many allocations are counted now, and the most that were since the last call.
    pub(super) fn take_peak(&self) -> (u32, u32) {
        self.quotas().take_peak()
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
        self.relay_owner(address).is_some()
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
        let owner = RelayOwner { worker: WorkerId(255), index: 70_000 };
        process.set_relayed(relayed, Some(owner));
        assert_eq!(process.relay_owner(PeerAddress::new(local, 50_000)), Some(owner));
        assert!(known(advertised, 50_000) && known(local, 50_000) && !known(local, 50_001));
        process.set_relayed(relayed, None);
        assert!(!known(advertised, 50_000));
    }
}
