//! Limits per user, credential, tenant, client prefix and server: who may have one more allocation, and the
//! meters that it passes.
//!
//! A plain table without lock or clock. The process holds one behind a lock that is taken once per allocation;
//! packets know the meters only, which need none. A scope is remembered as long as it has allocations, and after
//! that while its meter still matters: else ending a session would fill its buckets and budgets again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::meter::{Allowance, Meter, Meters, Rates};
use super::reject::RejectReason;
use super::revocation::Party;
use super::settings::Limits;
use super::time::{Now, UnixSeconds};
use crate::credentials::EXPIRY_SKEW_SECONDS;
use crate::credentials::claims::{Grant, least};

/// Scopes remembered at most: about 200 MB. Every one of them was opened by a verified credential.
const SCOPES_MAX: usize = 1 << 20;

/// Room for so many scopes is never given back.
const ROOM_KEPT: usize = 256;

/// Scopes whose time may be over that one admission looks at.
const SWEEP: usize = 8;

/// Whom one allocation counts for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct QuotaClaim<'a> {
    /// Who it is.
    pub party: Party<'a>,
    /// When the credential ends; `None` for a static user, who has no limit of allocations but his own.
    pub expires_at: Option<UnixSeconds>,
    /// What the credential, or the static user's entry, allows.
    pub grant: Option<&'a Grant>,
    /// The client's address.
    pub client: IpAddr,
}

/// What was counted for an allocation and must be counted out; the scope of the credential is kept only where
/// something limits it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Counted {
    /// The credential has a scope.
    pub credential: bool,
}

/// An allocation that was let in.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    /// To be given back at its end.
    pub counted: Counted,
    /// What its packets pass.
    pub meters: Meters,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Key {
    Server,
    Tenant(Box<str>),
    /// Tenant and user; the users of `auth.users` are others than those of credentials.
    User(Box<str>),
    Credential(Box<str>),
    Client(IpAddr),
}

#[derive(Debug, Default)]
struct Scope {
    count: u32,
    meter: Option<Arc<Meter>>,
    /// The end of the last credential seen.
    expires_at: UnixSeconds,
}

/// All scopes of a process.
#[derive(Debug, Default)]
pub struct Quotas {
    scopes: HashMap<Key, Scope>,
    /// Scopes without allocations, by the time when they may be forgotten.
    lingering: BTreeSet<(UnixSeconds, Key)>,
    users: usize,
    clients: usize,
    /// The most allocations at once since somebody asked.
    peak: u32,
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

fn user_key(claim: &QuotaClaim<'_>) -> Key {
    let kind = if claim.expires_at.is_some() { "t" } else { "s" };
    let Party { tenant, user, .. } = claim.party;
    // No tenant's name holds a zero byte, whatever a user id may hold.
    Key::User(format!("{kind}{}\0{user}", tenant.unwrap_or_default()).into())
}

/// One scope that an allocation would count in.
struct Asked {
    key: Key,
    max: Option<u32>,
    full: RejectReason,
    allowance: Allowance,
    spent: RejectReason,
}

impl Asked {
    /// The five shared scopes that there may be, the narrowest first.
    fn of(claim: &QuotaClaim<'_>, limits: &Limits, counted: Option<Counted>) -> [Option<Self>; 5] {
        let is_static = claim.expires_at.is_none();
        let none = Grant::default();
        let grant = claim.grant.unwrap_or(&none);
        let allowance = |rates: Rates| Allowance { rates, burst_ms: limits.burst_ms, ..Allowance::default() };
        // A static user has one credential that never ends: his name.
        let config_bytes = if is_static { None } else { limits.bytes_per_credential };
        let config_max = if is_static { None } else { limits.allocations_per_credential };
        let credential = Self {
            key: Key::Credential(claim.party.username.into()),
            max: least(config_max, grant.allocations),
            full: RejectReason::QuotaCredential,
            allowance: Allowance {
                bytes: least(config_bytes, grant.bytes),
                ..allowance(Rates {
                    bits_per_second: least(limits.credential.bits_per_second, grant.bits_per_second),
                    packets_per_second: least(limits.credential.packets_per_second, grant.packets_per_second),
                })
            },
            spent: RejectReason::QuotaBytes,
        };
        let is_limited = credential.max.is_some() || !credential.allowance.is_unlimited();
        let keeps = counted.map_or(is_limited, |counted| counted.credential);
        let user = Self {
            key: user_key(claim),
            max: if is_static { None } else { limits.allocations_per_user },
            full: RejectReason::QuotaUser,
            allowance: Allowance {
                bytes_per_day: least(limits.bytes_per_user_per_day, grant.bytes_per_day),
                ..allowance(limits.user)
            },
            spent: RejectReason::QuotaDay,
        };
        let client = prefix(claim.client).map(|prefix| Self {
            key: Key::Client(prefix),
            max: limits.allocations_per_client,
            full: RejectReason::QuotaClient,
            allowance: allowance(limits.client),
            spent: RejectReason::QuotaBytes,
        });
        let tenant = claim.party.tenant.map(|tenant| Self {
            key: Key::Tenant(tenant.into()),
            max: limits.allocations_per_tenant,
            full: RejectReason::QuotaTenant,
            allowance: allowance(limits.tenant),
            spent: RejectReason::QuotaBytes,
        });
        let server = Self {
            key: Key::Server,
            max: limits.allocations,
            full: RejectReason::QuotaServer,
            allowance: allowance(limits.server),
            spent: RejectReason::QuotaBytes,
        };
        [keeps.then_some(credential), Some(user), client, tenant, Some(server)]
    }
}

impl Quotas {
    /// Counts one allocation in, everywhere or nowhere, and tells which meters it passes.
    ///
    /// # Errors
    /// The quota that is full or used up, the widest first.
    pub fn admit(&mut self, now: Now, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason> {
        self.sweep(now);
        let asked = Asked::of(claim, limits, None);
        for scope in asked.iter().rev().flatten() {
            let known = self.scopes.get(&scope.key);
            if scope.max.is_some_and(|max| known.map_or(0, |known| known.count) >= max) {
                return Err(scope.full);
            }
            let meter = known.and_then(|known| known.meter.as_ref());
            if let Some(meter) = meter.filter(|_| !scope.allowance.is_unlimited()) {
                meter.allow(&scope.allowance);
                if meter.is_spent(now.unix) {
                    return Err(scope.spent);
                }
            }
        }
        if self.scopes.len() + asked.len() > SCOPES_MAX {
            return Err(RejectReason::QuotaServer);
        }
        let counted = Counted { credential: asked[0].is_some() };
        for scope in asked.iter().flatten() {
            let known = self.scopes.entry(scope.key.clone()).or_default();
            known.count += 1;
            if scope.key == Key::Server {
                self.peak = self.peak.max(known.count);
            }
            known.expires_at = known.expires_at.max(claim.expires_at.unwrap_or_default());
            if known.count == 1 {
                self.note_population(&scope.key, true);
            }
        }
        Ok(Admitted { counted, meters: self.meters_of(&asked, limits) })
    }

    /// The meters that an allocation which was let in passes under these limits.
    pub fn meters(&mut self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits) -> Meters {
        self.meters_of(&Asked::of(claim, limits, Some(counted)), limits)
    }

    fn meters_of(&mut self, asked: &[Option<Asked>; 5], limits: &Limits) -> Meters {
        let mut meters = Vec::new();
        let own = Allowance { rates: limits.allocation, burst_ms: limits.burst_ms, ..Allowance::default() };
        if !own.is_unlimited() {
            let meter = Meter::default();
            meter.allow(&own);
            meters.push(Arc::new(meter));
        }
        for scope in asked.iter().flatten() {
            let Some(known) = self.scopes.get_mut(&scope.key) else { continue };
            if scope.allowance.is_unlimited() {
                if let Some(meter) = &known.meter {
                    meter.allow(&scope.allowance);
                }
                continue;
            }
            let meter = known.meter.get_or_insert_default();
            meter.allow(&scope.allowance);
            meters.push(Arc::clone(meter));
        }
        Meters::new(meters)
    }

    /// A scope got its first allocation, or lost its last.
    const fn note_population(&mut self, key: &Key, is_first: bool) {
        let population = match key {
            Key::User(_) => &mut self.users,
            Key::Client(_) => &mut self.clients,
            Key::Server | Key::Tenant(_) | Key::Credential(_) => return,
        };
        *population = if is_first { *population + 1 } else { *population - 1 };
    }

    /// Counts one allocation out.
    pub fn release(&mut self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        for scope in Asked::of(claim, &Limits::default(), Some(counted)).into_iter().flatten() {
            let Some(known) = self.scopes.get_mut(&scope.key) else { continue };
            known.count = known.count.saturating_sub(1);
            if known.count == 0 {
                self.note_population(&scope.key, false);
                self.forget_or_keep(now, scope.key);
            }
        }
    }

    /// Forgets a scope without allocations if its meter does not matter any more, else comes back to it.
    fn forget_or_keep(&mut self, now: Now, key: Key) {
        let Some(known) = self.scopes.get(&key).filter(|known| known.count == 0) else { return };
        // As long as the credential is let in, clocks that differ included.
        let end = UnixSeconds(known.expires_at.0.saturating_add(EXPIRY_SKEW_SECONDS + 1));
        let until = known.meter.as_ref().map_or(UnixSeconds(0), |meter| meter.matters_until(now, end));
        if until <= now.unix {
            self.scopes.remove(&key);
            let (len, room) = (self.scopes.len(), self.scopes.capacity());
            if room > ROOM_KEPT && len < room / 8 {
                self.scopes.shrink_to(len * 2);
            }
        } else {
            self.lingering.insert((until, key));
        }
    }

    fn sweep(&mut self, now: Now) {
        for _ in 0..SWEEP {
            match self.lingering.first() {
                Some((until, _)) if *until <= now.unix => {}
                Some(_) | None => return,
            }
            if let Some((_, key)) = self.lingering.pop_first() {
                self.forget_or_keep(now, key);
            }
        }
    }

    /// How many allocations are counted: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        (self.scopes.get(&Key::Server).map_or(0, |scope| scope.count), self.users, self.clients)
    }

    /// How many allocations are counted now, and the most that were since the last call.
    pub fn take_peak(&mut self) -> (u32, u32) {
        let now = self.usage().0;
        (now, std::mem::replace(&mut self.peak, now).max(now))
    }

    /// How many scopes are remembered, those without allocations included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.scopes.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        reason = "the largest is the same in any order, but for equals, where any will do"
    )]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        let clients = self.scopes.iter().filter_map(|(key, scope)| match key {
            Key::Client(ip) if scope.count > 0 => Some((*ip, scope.count)),
            Key::Client(_) | Key::Server | Key::Tenant(_) | Key::User(_) | Key::Credential(_) => None,
        });
        let (client, count) = clients.max_by_key(|(_, count)| *count)?;
        Some((client, count, self.usage().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::border::{DropReason, Way};
    use crate::protocol::time::Ticks;

    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> Now {
        Now { ticks: Ticks(1_000_000 + seconds * 1000), unix: UnixSeconds(START + seconds) }
    }

    fn claim<'a>(username: &'a str, tenant: Option<&'a str>, client: &str) -> QuotaClaim<'a> {
        let (expires_at, user) = match username.split_once(':') {
            Some((seconds, user)) => (Some(UnixSeconds(START + seconds.parse::<u64>().unwrap())), user),
            None => (None, username),
        };
        let party = Party { username, user, tenant };
        QuotaClaim { party, expires_at, grant: None, client: client.parse().unwrap() }
    }

    fn limits(edit: impl FnOnce(&mut Limits)) -> Limits {
        let mut limits = Limits { burst_ms: 1000, ..Limits::default() };
        edit(&mut limits);
        limits
    }

    #[test]
    fn each_scope_counts_for_itself_and_is_given_back_exactly() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| {
            limits.allocations = Some(6);
            limits.allocations_per_user = Some(3);
            limits.allocations_per_credential = Some(2);
            limits.allocations_per_tenant = Some(4);
            limits.allocations_per_client = Some(5);
        });
        let mut held = Vec::new();
        let mut steps = vec![
            (claim("10:alice", Some("acme"), "2001:db8:0:ff::1"), Ok(())),
            (claim("10:alice", Some("acme"), "2001:db8:0:ff::1"), Ok(())),
            (claim("10:alice", Some("acme"), "2001:db8:0:ff::1"), Err(RejectReason::QuotaCredential)),
            (claim("11:alice", Some("acme"), "2001:db8:0:01::1"), Ok(())),
            (claim("12:alice", Some("acme"), "9.9.9.9"), Err(RejectReason::QuotaUser)),
            (claim("12:alice", None, "9.9.9.9"), Ok(())), // nobody's alice is another alice
            (claim("10:bob", Some("acme"), "2001:db8:0:22::1"), Ok(())),
            (claim("10:eve", Some("acme"), "8.8.8.8"), Err(RejectReason::QuotaTenant)),
            (claim("bob", None, "2001:db8:0:33::1"), Ok(())), // a static user; same /56 as the others
            (claim("bob", None, "127.0.0.1"), Err(RejectReason::QuotaServer)),
        ];
        for (claim, expected) in steps.drain(..) {
            let admitted = quotas.admit(at(0), &claim, &limits);
            assert_eq!(admitted.as_ref().map(|_| ()).map_err(|refused| *refused), expected, "{claim:?}");
            held.extend(admitted.ok().map(|admitted| (claim, admitted.counted)));
        }
        assert_eq!(quotas.usage(), (6, 4, 2));
        assert_eq!((quotas.take_peak(), quotas.take_peak()), ((6, 6), (6, 6)));
        assert_eq!(quotas.busiest_client().map(|(_, of_client, total)| (of_client, total)), Some((5, 6)));
        let neighbour = claim("10:zoe", None, "2001:db8:0:44::1");
        let (first, counted) = held.remove(0);
        quotas.release(at(0), &first, counted);
        assert!(quotas.admit(at(0), &neighbour, &limits).is_ok());
        quotas.release(at(0), &neighbour, Counted { credential: true });
        for (claim, counted) in held {
            quotas.release(at(0), &claim, counted);
        }
        assert_eq!((quotas.usage(), quotas.len()), ((0, 0, 0), 0));
        assert_eq!((quotas.take_peak(), quotas.take_peak()), ((0, 6), (0, 0)));
    }

    #[test]
    fn what_the_credential_grants_narrows_what_the_configuration_allows() {
        let mut quotas = Quotas::default();
        let grant = Grant { allocations: Some(1), bytes: Some(100), ..Grant::default() };
        let narrow = QuotaClaim { grant: Some(&grant), ..claim("10:bob", None, "9.9.9.9") };
        let limits = limits(|limits| limits.bytes_per_credential = Some(1000));
        let admitted = quotas.admit(at(0), &narrow, &limits).unwrap();
        assert_eq!(quotas.admit(at(0), &narrow, &limits).unwrap_err(), RejectReason::QuotaCredential);
        assert_eq!(admitted.meters.charge(at(0), Way::ToPeer, 100), Ok(()));
        assert_eq!(admitted.meters.charge(at(0), Way::ToPeer, 1), Err(DropReason::OverBudget));
        let wide = quotas.admit(at(0), &claim("10:eve", None, "9.9.9.9"), &limits).unwrap();
        assert_eq!(wide.meters.charge(at(0), Way::ToPeer, 1000), Ok(()));
    }

    #[test]
    fn a_budget_outlives_the_session_and_not_the_credential() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.bytes_per_credential = Some(1000));
        let bob = claim("50:bob", None, "9.9.9.9");
        let admitted = quotas.admit(at(0), &bob, &limits).unwrap();
        assert_eq!(admitted.meters.charge(at(0), Way::ToPeer, 1000), Ok(()));
        quotas.release(at(0), &bob, admitted.counted);
        assert_eq!(quotas.admit(at(1), &bob, &limits).unwrap_err(), RejectReason::QuotaBytes);
        assert_eq!(quotas.usage(), (0, 0, 0));
        assert_eq!(quotas.len(), 1, "the budget is remembered");
        // Authentication lets it in for 30 s more: clocks differ.
        assert_eq!(quotas.admit(at(80), &bob, &limits).unwrap_err(), RejectReason::QuotaBytes);
        let other = claim("200:eve", None, "9.9.9.9");
        let admitted = quotas.admit(at(81), &other, &limits).unwrap();
        quotas.release(at(81), &other, admitted.counted);
        assert_eq!(quotas.len(), 0, "nothing was spent of the other, and the first is over");
    }

    #[test]
    fn a_user_has_his_bytes_of_the_day_whatever_credentials_he_gets() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.bytes_per_user_per_day = Some(1000));
        let one = claim("50:bob", None, "9.9.9.9");
        let admitted = quotas.admit(at(0), &one, &limits).unwrap();
        assert_eq!(admitted.meters.charge(at(0), Way::ToClient, 1000), Ok(()));
        quotas.release(at(0), &one, admitted.counted);
        let next = claim("60:bob", None, "9.9.9.9");
        assert_eq!(quotas.admit(at(1), &next, &limits).unwrap_err(), RejectReason::QuotaDay);
        assert!(quotas.admit(at(86_400), &next, &limits).is_ok());
    }

    #[test]
    fn a_new_session_does_not_fill_the_bucket_again() {
        let mut quotas = Quotas::default();
        let rates = Rates { bits_per_second: Some(8000), ..Rates::default() };
        let limits = limits(|limits| limits.user = rates);
        let bob = claim("50:bob", None, "9.9.9.9");
        for (second, expected) in [(0, Ok(())), (0, Err(DropReason::OverBandwidth)), (1, Ok(()))] {
            let admitted = quotas.admit(at(second), &bob, &limits).unwrap();
            assert_eq!(admitted.meters.charge(at(second), Way::ToPeer, 1000), expected, "at {second}");
            quotas.release(at(second), &bob, admitted.counted);
        }
    }

    #[test]
    fn limits_of_a_reload_reach_the_sessions_that_live() {
        let mut quotas = Quotas::default();
        let bob = claim("50:bob", Some("acme"), "9.9.9.9");
        let admitted = quotas.admit(at(0), &bob, &Limits::default()).unwrap();
        assert!(admitted.meters.is_empty());
        let rates = Rates { packets_per_second: Some(1), ..Rates::default() };
        for narrowed in [
            limits(|limits| limits.allocation = rates),
            limits(|limits| limits.user = rates),
            limits(|limits| limits.client = rates),
            limits(|limits| limits.tenant = rates),
            limits(|limits| limits.server = rates),
        ] {
            let meters = quotas.meters(&bob, admitted.counted, &narrowed);
            assert_eq!(meters.charge(at(0), Way::ToPeer, 1), Ok(()));
            assert_eq!(meters.charge(at(0), Way::ToPeer, 1), Err(DropReason::OverPackets));
            assert!(quotas.meters(&bob, admitted.counted, &Limits::default()).is_empty());
            assert_eq!(meters.charge(at(0), Way::ToClient, 1), Ok(()));
        }
        quotas.release(at(9), &bob, admitted.counted);
        assert_eq!(quotas.len(), 0);
    }
}
