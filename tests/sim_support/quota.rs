//! What spans the simulated workers: quota tables and the set of relayed ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;

use throughway::address::{FiveTuple, PeerAddress, Via};
use throughway::protocol::authenticated::{AuthenticatedClient, AuthenticatedCounts};
use throughway::protocol::border::Shared;
use throughway::protocol::failures::FailureRate;
use throughway::protocol::meter::{Meters, Rates};
use throughway::protocol::quota::{Admitted, Counted, Purpose, QuotaClaim, Quotas};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::reply_budget::ReplyRate;
use throughway::protocol::revocation::{Revocations, SessionSubject};
use throughway::protocol::settings::Limits;
use throughway::time::{Now, Ticks, UnixSeconds};
use throughway::wire::attribute::ReservationToken;
use throughway::wire::message::TransactionId;

use super::config::{Config, REALM};
use super::terms::{Who, in_realm, least};

#[derive(Default, Debug, PartialEq, Eq, Clone)]
pub struct Tables {
    pub total: u32,
    pub by_identity: BTreeMap<String, u32>,
    pub by_client: BTreeMap<IpAddr, u32>,
    pub by_tenant: BTreeMap<String, u32>,
    pub by_credential: BTreeMap<String, u32>,
}

/// One allocation or reservation, as the tables count it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counting {
    pub username: String,
    /// Static users are no credentials' users of the same name.
    pub kind_and_user: String,
    /// Tenant and user; a static user is not counted.
    pub user: Option<String>,
    pub tenant: Option<String>,
    pub client: IpAddr,
    /// Whether its credential is counted, and up to what.
    pub credential: Option<Option<u32>>,
}

/// What an Allocate wants counted.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The next port too.
    pub holds: bool,
    /// In the place of this reservation.
    pub fetches: Option<&'a Counting>,
}

#[derive(Default)]
pub struct SharedTables {
    pub quota: Mutex<Tables>,
    /// The process's own table, which must agree with the shadow above.
    pub real: Mutex<Quotas>,
    /// Who is counted for each port that is held or about to be.
    pub held: Mutex<BTreeMap<[u8; 8], Counting>>,
    pub relayed: Mutex<BTreeSet<PeerAddress>>,
    pub relayed_tcp: Mutex<BTreeSet<PeerAddress>>,
    pub authenticated: Mutex<AuthenticatedCounts>,
    pub revoked: Mutex<Revocations>,
}

/// /32 or /56, as quotas see a client.
pub fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 72 << 72).into()),
    }
}

impl Counting {
    fn of_claim(claim: &QuotaClaim<'_>, limits: &Limits) -> Self {
        let limited = claim.expires_at.is_some();
        let grant = claim.grant.cloned().unwrap_or_default();
        let max = least(limits.allocations_per_credential.filter(|_| limited), grant.allocations);
        let is_limited = max.is_some()
            || limits.credential != Rates::default()
            || limited && limits.bytes_per_credential.is_some()
            || grant.bytes.is_some()
            || grant.bits_per_second.is_some()
            || grant.packets_per_second.is_some();
        let SessionSubject { username, user, tenant } = claim.subject;
        let user = format!("{}\0{user}", tenant.unwrap_or_default());
        let own = |name| in_realm(name, limited, claim.realm.unwrap_or(REALM));
        Self {
            username: own(username.to_owned()),
            kind_and_user: format!("{}{}", if limited { "t" } else { "s" }, own(user.clone())),
            user: limited.then_some(user),
            tenant: tenant.map(ToOwned::to_owned),
            client: claim.client,
            credential: is_limited.then_some(max),
        }
    }

    pub fn of_who(who: &Who, config: &Config, client: IpAddr) -> Self {
        Self {
            username: who.counted_name(),
            kind_and_user: who.full_identity(),
            user: who.limited().then(|| who.user()),
            tenant: who.tenant.clone(),
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
    pub fn refusal(
        &self,
        who: &Counting,
        limits: &Limits,
        wanted: Wanted<'_>,
        reserved: usize,
    ) -> Option<RejectReason> {
        // A place is free only where the reservation, of the same user, counts as well.
        let place = wanted.fetches.filter(|held| held.kind_and_user == who.kind_and_user);
        let full = |max: Option<u32>, count: Option<&u32>, is_same: &dyn Fn(&Counting) -> bool| {
            let freed = u32::from(place.is_some_and(is_same));
            let after = count.copied().unwrap_or(0) + 1 + u32::from(wanted.holds) - freed;
            max.is_some_and(|max| after > max)
        };
        if full(limits.allocations, Some(&self.total), &|_| true) {
            return Some(RejectReason::QuotaServer);
        }
        if let Some(tenant) = &who.tenant
            && full(limits.allocations_per_tenant, self.by_tenant.get(tenant), &|held| held.tenant == who.tenant)
        {
            return Some(RejectReason::QuotaTenant);
        }
        let client = prefix(who.client);
        if full(limits.allocations_per_client, self.by_client.get(&client), &|held| prefix(held.client) == client) {
            return Some(RejectReason::QuotaClient);
        }
        if let Some(user) = &who.user
            && full(limits.allocations_per_user, self.by_identity.get(user), &|held| held.user == who.user)
        {
            return Some(RejectReason::QuotaUser);
        }
        if let Some(max) = who.credential
            && full(max, self.by_credential.get(&who.username), &|held| {
                held.credential.is_some() && held.username == who.username
            })
        {
            return Some(RejectReason::QuotaCredential);
        }
        let is_over = limits.reservations_per_user.is_some_and(|max| reserved >= max as usize);
        (wanted.holds && is_over).then_some(RejectReason::QuotaReservations)
    }

    pub fn count(&mut self, who: &Counting, up: bool) {
        self.total =
            if up { self.total + 1 } else { self.total.checked_sub(1).expect("released more than was admitted") };
        if let Some(user) = &who.user {
            step(&mut self.by_identity, user.clone(), up);
        }
        step(&mut self.by_client, prefix(who.client), up);
        if let Some(tenant) = &who.tenant {
            step(&mut self.by_tenant, tenant.clone(), up);
        }
        if who.credential.is_some() {
            step(&mut self.by_credential, who.username.clone(), up);
        }
    }
}

impl SharedTables {
    /// When all is over and all budgets with it, the real table must forget everybody.
    pub fn forgets_everybody(&self, now: Now) {
        let mut quotas = self.real.lock().unwrap();
        assert_eq!((quotas.usage(), quotas.reserved()), ((0, 0, 0), 0));
        assert!(self.held.lock().unwrap().is_empty());
        let subject = SessionSubject { username: "nobody", user: "nobody", tenant: None };
        let claim =
            QuotaClaim { subject, realm: None, expires_at: None, grant: None, client: IpAddr::from([127, 0, 0, 1]) };
        for _ in 0..=quotas.len() {
            let admitted = quotas.admit(now, &claim, &Limits::default(), Purpose::Allocation);
            let admitted = admitted.expect("nobody is there");
            quotas.release(now, &claim, admitted.counted);
        }
        assert_eq!(quotas.len(), 0, "scopes that are never forgotten");
    }
}

impl SharedTables {
    /// The answer to `Output::Admit`.
    pub fn admit(
        &self,
        now: Now,
        claim: &QuotaClaim<'_>,
        limits: &Limits,
        purpose: Purpose,
    ) -> Result<Admitted, RejectReason> {
        let (mut tables, mut quotas) = (self.quota.lock().unwrap(), self.real.lock().unwrap());
        let mut held = self.held.lock().unwrap();
        let who = Counting::of_claim(claim, limits);
        let wanted = match purpose {
            Purpose::Allocation => Wanted::default(),
            Purpose::WithReservation(_) => Wanted { holds: true, fetches: None },
            Purpose::InPlaceOf(token) => Wanted { holds: false, fetches: held.get(&token.0) },
        };
        let reserved = held.values().filter(|other| other.kind_and_user == who.kind_and_user).count();
        let expected = tables.refusal(&who, limits, wanted, reserved);
        match quotas.admit(now, claim, limits, purpose) {
            // What was used up is the ledger's to know; the widest scope refuses first.
            Err(RejectReason::QuotaDay) => {
                let later = [RejectReason::QuotaCredential, RejectReason::QuotaReservations];
                assert!(expected.is_none_or(|expected| later.contains(&expected)), "{expected:?}");
                Err(RejectReason::QuotaDay)
            }
            Err(RejectReason::QuotaBytes) => {
                assert!(matches!(expected, None | Some(RejectReason::QuotaReservations)), "{expected:?}");
                Err(RejectReason::QuotaBytes)
            }
            Err(reason @ (RejectReason::QuotaRate | RejectReason::QuotaClientRate)) => {
                assert_eq!(expected, None);
                Err(reason)
            }
            Err(reason) => {
                assert_eq!(expected, Some(reason), "the table refuses what the shadow refuses");
                Err(reason)
            }
            Ok(admitted) => {
                assert_eq!(expected, None, "the table lets in what the shadow lets in");
                assert_eq!(admitted.counted.credential, who.credential.is_some());
                tables.count(&who, true);
                if let Purpose::WithReservation(token) = purpose {
                    tables.count(&who, true);
                    assert!(held.insert(token.0, who).is_none(), "tokens differ");
                }
                Ok(admitted)
            }
        }
    }
}

impl Shared for SharedTables {
    fn meters(&self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits, old: &Meters) -> Meters {
        self.real.lock().unwrap().meters(claim, counted, limits, old)
    }

    fn release(&self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        self.real.lock().unwrap().release(now, claim, counted);
        let mut who = Counting::of_claim(claim, &Limits::default());
        who.credential = counted.credential.then_some(None);
        self.quota.lock().unwrap().count(&who, false);
    }

    fn release_reservation(&self, now: Now, token: ReservationToken) {
        let mut tables = self.quota.lock().unwrap();
        self.real.lock().unwrap().release_reservation(now, token);
        let who = self.held.lock().unwrap().remove(&token.0).expect("each reservation is released once");
        tables.count(&who, false);
    }

    fn authenticated(&self, now: Now, note: &AuthenticatedClient<'_>) {
        self.authenticated.lock().unwrap().note(now, note);
    }

    fn is_revoked(&self, subject: &SessionSubject<'_>, now: UnixSeconds) -> bool {
        self.revoked.lock().unwrap().includes(subject, now)
    }

    // How many answers a network may have is no part of the model: nothing else depends on it.
    fn takes_reply(&self, _: Ticks, _: ReplyRate, _: &FiveTuple, _: &TransactionId) -> bool {
        true
    }

    // Nor is how often a network may fail.
    fn answers_failure(&self, _: Ticks, _: FailureRate, _: &Via, _: &TransactionId) -> bool {
        true
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        self.relayed.lock().unwrap().contains(&address)
    }

    fn is_relayed_tcp(&self, address: PeerAddress) -> bool {
        self.relayed_tcp.lock().unwrap().contains(&address)
    }
}
