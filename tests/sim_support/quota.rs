//! What spans the simulated workers: quota tables and the set of relayed ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;

use throughway::protocol::address::PeerAddress;
use throughway::protocol::border::{Genuine, Shared};
use throughway::protocol::meter::{Meters, Rates};
use throughway::protocol::quota::{Admitted, Counted, QuotaClaim, Quotas};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::revocation::{Party, Revocations};
use throughway::protocol::settings::Limits;
use throughway::protocol::time::{Now, UnixSeconds};

use super::config::Config;
use super::terms::{Who, least};

#[derive(Default, Debug, PartialEq, Eq, Clone)]
pub struct Tables {
    pub total: u32,
    pub by_identity: BTreeMap<String, u32>,
    pub by_client: BTreeMap<IpAddr, u32>,
    pub by_tenant: BTreeMap<String, u32>,
    pub by_credential: BTreeMap<String, u32>,
}

/// One allocation, as the tables count it.
pub struct Counting<'a> {
    pub username: &'a str,
    /// Tenant and user; a static user is not counted.
    pub user: Option<String>,
    pub tenant: Option<&'a str>,
    pub client: IpAddr,
    /// Whether its credential is counted, and up to what.
    pub credential: Option<Option<u32>>,
}

#[derive(Default)]
pub struct SharedTables {
    pub quota: Mutex<Tables>,
    /// The process's own table, which must agree with the shadow above.
    pub real: Mutex<Quotas>,
    pub relayed: Mutex<BTreeSet<PeerAddress>>,
    pub revoked: Mutex<Revocations>,
}

/// /32 or /56, as quotas see a client.
pub fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 72 << 72).into()),
    }
}

impl<'a> Counting<'a> {
    fn of_claim(claim: &QuotaClaim<'a>, limits: &Limits) -> Self {
        let limited = claim.expires_at.is_some();
        let grant = claim.grant.cloned().unwrap_or_default();
        let max = least(limits.allocations_per_credential.filter(|_| limited), grant.allocations);
        let is_limited = max.is_some()
            || limits.credential != Rates::default()
            || limited && limits.bytes_per_credential.is_some()
            || grant.bytes.is_some()
            || grant.bits_per_second.is_some()
            || grant.packets_per_second.is_some();
        let Party { username, user, tenant } = claim.party;
        Self {
            username,
            user: limited.then(|| format!("{}\0{user}", tenant.unwrap_or_default())),
            tenant,
            client: claim.client,
            credential: is_limited.then_some(max),
        }
    }

    pub fn of_who(who: &'a Who, config: &Config, client: IpAddr) -> Self {
        Self {
            username: &who.username,
            user: who.limited().then(|| who.user()),
            tenant: who.tenant.as_deref(),
            client,
            credential: who.is_counted(config).then(|| who.limits_of_credential(config).0),
        }
    }
}

/// Counts one up or down, and forgets who has none.
fn step<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, up: bool) {
    let count = counts.entry(key).or_default();
    *count = if up { *count + 1 } else { count.checked_sub(1).expect("released more than was admitted") };
    counts.retain(|_, count| *count > 0);
}

impl Tables {
    pub fn refusal(&self, who: &Counting<'_>, limits: &Limits) -> Option<RejectReason> {
        let full = |max: Option<u32>, count: Option<&u32>| max.is_some_and(|max| count.copied().unwrap_or(0) >= max);
        if full(limits.allocations, Some(&self.total)) {
            return Some(RejectReason::QuotaServer);
        }
        if who.tenant.is_some_and(|tenant| full(limits.allocations_per_tenant, self.by_tenant.get(tenant))) {
            return Some(RejectReason::QuotaTenant);
        }
        if full(limits.allocations_per_client, self.by_client.get(&prefix(who.client))) {
            return Some(RejectReason::QuotaClient);
        }
        if who.user.as_ref().is_some_and(|user| full(limits.allocations_per_user, self.by_identity.get(user))) {
            return Some(RejectReason::QuotaUser);
        }
        let credential = who.credential.is_some_and(|max| full(max, self.by_credential.get(who.username)));
        credential.then_some(RejectReason::QuotaCredential)
    }

    pub fn count(&mut self, who: &Counting<'_>, up: bool) {
        self.total =
            if up { self.total + 1 } else { self.total.checked_sub(1).expect("released more than was admitted") };
        if let Some(user) = &who.user {
            step(&mut self.by_identity, user.clone(), up);
        }
        step(&mut self.by_client, prefix(who.client), up);
        if let Some(tenant) = who.tenant {
            step(&mut self.by_tenant, tenant.to_owned(), up);
        }
        if who.credential.is_some() {
            step(&mut self.by_credential, who.username.to_owned(), up);
        }
    }
}

impl SharedTables {
    /// When all is over and all budgets with it, the real table must forget everybody.
    pub fn forgets_everybody(&self, now: Now) {
        let mut quotas = self.real.lock().unwrap();
        assert_eq!(quotas.usage(), (0, 0, 0));
        let party = Party { username: "nobody", user: "nobody", tenant: None };
        let claim = QuotaClaim { party, expires_at: None, grant: None, client: IpAddr::from([127, 0, 0, 1]) };
        for _ in 0..=quotas.len() {
            let admitted = quotas.admit(now, &claim, &Limits::default()).expect("nobody is there");
            quotas.release(now, &claim, admitted.counted);
        }
        assert_eq!(quotas.len(), 0, "scopes that are never forgotten");
    }
}

impl Shared for SharedTables {
    fn admit(&self, now: Now, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason> {
        let (mut tables, mut quotas) = (self.quota.lock().unwrap(), self.real.lock().unwrap());
        let who = Counting::of_claim(claim, limits);
        let expected = tables.refusal(&who, limits);
        match quotas.admit(now, claim, limits) {
            // What was used up is the ledger's to know; the widest scope refuses first.
            Err(RejectReason::QuotaDay) => {
                assert!(matches!(expected, None | Some(RejectReason::QuotaCredential)), "{expected:?}");
                Err(RejectReason::QuotaDay)
            }
            Err(RejectReason::QuotaBytes) => {
                assert_eq!(expected, None);
                Err(RejectReason::QuotaBytes)
            }
            Err(reason) => {
                assert_eq!(expected, Some(reason), "the table refuses what the shadow refuses");
                Err(reason)
            }
            Ok(admitted) => {
                assert_eq!(expected, None, "the table lets in what the shadow lets in");
                assert_eq!(admitted.counted.credential, who.credential.is_some());
                tables.count(&who, true);
                Ok(admitted)
            }
        }
    }

    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits) -> Meters {
        self.real.lock().unwrap().meters(claim, counted, limits)
    }

    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        self.real.lock().unwrap().release(now, claim, counted);
        let mut who = Counting::of_claim(claim, &Limits::default());
        who.credential = counted.credential.then_some(None);
        self.quota.lock().unwrap().count(&who, false);
    }

    fn authenticated(&self, _: Now, _: &Genuine<'_>) {}

    fn is_revoked(&self, party: &Party<'_>, now: UnixSeconds) -> bool {
        self.revoked.lock().unwrap().includes(party, now)
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.relayed.lock().unwrap().contains(&address)
    }
}
