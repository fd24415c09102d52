//! What spans the simulated workers: quota tables and the set of relayed ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;

use throughway::protocol::address::PeerAddress;
use throughway::protocol::border::{Genuine, Shared};
use throughway::protocol::meter::Meters;
use throughway::protocol::quota::{Admitted, Counted, QuotaClaim, Quotas};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::revocation::Party;
use throughway::protocol::settings::Limits;
use throughway::protocol::time::{Now, UnixSeconds};

#[derive(Default, Debug, PartialEq, Eq, Clone)]
pub struct Tables {
    pub total: u32,
    pub by_identity: BTreeMap<String, u32>,
    pub by_client: BTreeMap<IpAddr, u32>,
}

#[derive(Default)]
pub struct SharedTables {
    pub quota: Mutex<Tables>,
    /// The process's own table, which must agree with the shadow above.
    pub real: Mutex<Quotas>,
    pub relayed: Mutex<BTreeSet<PeerAddress>>,
}

/// /32 or /56, as quotas see a client.
pub fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 72 << 72).into()),
    }
}

impl Tables {
    pub fn refusal(&self, identity: Option<&str>, client: IpAddr, limits: &Limits) -> Option<RejectReason> {
        let full = |max: Option<u32>, count: u32| max.is_some_and(|max| count >= max);
        if full(limits.allocations, self.total) {
            return Some(RejectReason::QuotaServer);
        }
        let clients = self.by_client.get(&prefix(client)).copied().unwrap_or(0);
        if full(limits.allocations_per_client, clients) {
            return Some(RejectReason::QuotaClient);
        }
        identity
            .is_some_and(|id| full(limits.allocations_per_user, self.by_identity.get(id).copied().unwrap_or(0)))
            .then_some(RejectReason::QuotaUser)
    }

    pub fn add(&mut self, identity: Option<&str>, client: IpAddr) {
        self.total += 1;
        if let Some(identity) = identity {
            *self.by_identity.entry(identity.to_owned()).or_default() += 1;
        }
        *self.by_client.entry(prefix(client)).or_default() += 1;
    }
}

impl Shared for SharedTables {
    fn admit(&self, now: Now, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason> {
        let (mut tables, mut quotas) = (self.quota.lock().unwrap(), self.real.lock().unwrap());
        let identity = claim.expires_at.map(|_| claim.party.user);
        let expected = tables.refusal(identity, claim.client, limits);
        match quotas.admit(now, claim, limits) {
            Err(reason) => {
                assert_eq!(expected, Some(reason), "the table refuses what the shadow refuses");
                Err(reason)
            }
            Ok(admitted) => {
                assert_eq!(expected, None, "the table lets in what the shadow lets in");
                tables.add(identity, claim.client);
                Ok(admitted)
            }
        }
    }

    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits) -> Meters {
        self.real.lock().unwrap().meters(claim, counted, limits)
    }

    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        self.real.lock().unwrap().release(now, claim, counted);
        let mut tables = self.quota.lock().unwrap();
        tables.total = tables.total.checked_sub(1).expect("released more than was admitted");
        if claim.expires_at.is_some() {
            let identity = claim.party.user;
            let count = tables.by_identity.get_mut(identity).expect("the identity was admitted");
            *count -= 1;
            if *count == 0 {
                tables.by_identity.remove(identity);
            }
        }
        let client = prefix(claim.client);
        let count = tables.by_client.get_mut(&client).expect("the client was admitted");
        *count -= 1;
        if *count == 0 {
            tables.by_client.remove(&client);
        }
    }

    fn authenticated(&self, _: Now, _: &Genuine<'_>) {}

    fn is_revoked(&self, _: &Party<'_>, _: UnixSeconds) -> bool {
        false
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.relayed.lock().unwrap().contains(&address)
    }
}
