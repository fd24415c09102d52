//! What spans the simulated workers: quota tables and the set of relayed ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;

use throughway::protocol::address::PeerAddress;
use throughway::protocol::border::{QuotaClaim, Shared};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::revocation::Party;
use throughway::protocol::settings::Limits;
use throughway::protocol::time::UnixSeconds;

#[derive(Default, Debug, PartialEq, Eq, Clone)]
pub struct Tables {
    pub total: u32,
    pub by_identity: BTreeMap<String, u32>,
    pub by_client: BTreeMap<IpAddr, u32>,
}

#[derive(Default)]
pub struct SharedTables {
    pub quota: Mutex<Tables>,
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
        if identity.is_some_and(|id| full(limits.allocations_per_user, self.by_identity.get(id).copied().unwrap_or(0)))
        {
            return Some(RejectReason::QuotaUser);
        }
        let clients = self.by_client.get(&prefix(client)).copied().unwrap_or(0);
        full(limits.allocations_per_client, clients).then_some(RejectReason::QuotaClient)
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
    fn admit(&self, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<(), RejectReason> {
        let mut tables = self.quota.lock().unwrap();
        if let Some(reason) = tables.refusal(claim.identity, claim.client, limits) {
            return Err(reason);
        }
        tables.add(claim.identity, claim.client);
        Ok(())
    }

    fn release(&self, claim: &QuotaClaim<'_>) {
        let mut tables = self.quota.lock().unwrap();
        tables.total = tables.total.checked_sub(1).expect("released more than was admitted");
        if let Some(identity) = claim.identity {
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

    fn is_revoked(&self, _: &Party<'_>, _: UnixSeconds) -> bool {
        false
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.relayed.lock().unwrap().contains(&address)
    }
}
