//! Limits per user, credential, tenant, client prefix and server: who may have one more allocation, and the
//! meters that it passes.
//!
//! A plain table without lock or clock. The process holds one behind a lock that is taken once per allocation;
//! packets know the meters only, which need none. A scope is remembered as long as it has allocations, and after
//! that while its meter still matters: else ending a session would fill its buckets and budgets again.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::meter::{Allowance, Meter, Meters, Passage, Rates};
use super::overrides::Overrides;
use super::reject::RejectReason;
use super::scope::{AllocationRate, AskedScope, CLIENT, USER, let_in_until, user_scope};
pub use super::scope::{Counted, QuotaClaim, ScopeKey, ScopeState};
use super::scope_table::ScopeTable;
use super::settings::Limits;
use super::token_bucket::TokenBucket;
use crate::time::{Now, UnixSeconds};
use crate::wire::attribute::ReservationToken;

/// Scopes remembered at most: about 200 MB. Every one of them was opened by a verified credential; above this those
/// without allocations are forgotten before their time, and no client is refused for it.
const SCOPES_MAX: usize = 1 << 20;

/// How many scopes one admission forgets at most to make room for its own.
const FORGOTTEN_AT_ONCE: usize = 16;

/// Scopes whose time may be over that one admission looks at.
const SWEEP: usize = 8;

/// What is to be counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// An allocation.
    Allocation,
    /// An allocation, and a port beside it that is held under this token: it counts as one more until
    /// [`Quotas::release_reservation`].
    WithReservation(ReservationToken),
    /// An allocation that fetches the port of this token: where the token is good, it may take the place of the
    /// reservation, which is counted out when the port is handed over.
    InPlaceOf(ReservationToken),
}

/// An allocation that was let in.
#[derive(Clone, Debug, Default)]
pub struct Admitted {
    /// To be given back at its end.
    pub counted: Counted,
    /// What its packets pass.
    pub meters: Meters,
}

/// All scopes of a process.
#[derive(Debug, Default)]
pub struct Quotas {
    /// With those that wait to be forgotten.
    pub(super) scopes: ScopeTable,
    /// The scopes in which each reservation counts, the user's second.
    pub(super) reservations: HashMap<ReservationToken, [Option<ScopeKey>; 5]>,
    users: usize,
    clients: usize,
    /// Limits that were set at run time.
    pub overrides: Overrides,
    /// The most allocations at once since somebody asked.
    pub(super) peak: u32,
    /// Scopes that were forgotten before their time.
    pub(super) forgotten: u64,
}

impl Quotas {
    /// Counts an allocation in, everywhere or nowhere, and tells which meters it passes.
    ///
    /// # Errors
    /// The quota that is full or used up, the widest first; then [`RejectReason::QuotaReservations`],
    /// [`RejectReason::QuotaRate`] and [`RejectReason::QuotaClientRate`].
    // [8656-5-14, 8656-7.2-19]
    pub fn admit(
        &mut self,
        now: Now,
        claim: &QuotaClaim<'_>,
        limits: &Limits,
        purpose: Purpose,
    ) -> Result<Admitted, RejectReason> {
        self.sweep(now);
        let asked = AskedScope::of(claim, limits, &self.overrides, None);
        let reserves = match purpose {
            Purpose::WithReservation(token) => Some(token),
            Purpose::Allocation | Purpose::InPlaceOf(_) => None,
        };
        let more = 1 + u32::from(reserves.is_some());
        for scope in asked.iter().rev().flatten() {
            let known = self.scopes.get(&scope.key);
            let after = known.map_or(0, |known| known.count).saturating_add(more);
            let after = after.saturating_sub(u32::from(self.is_freed(purpose, &asked, &scope.key)));
            if scope.max.is_some_and(|max| after > max) {
                return Err(scope.full);
            }
            let meter = known.and_then(|known| known.meter.as_ref());
            if meter.is_some_and(|meter| meter.is_spent(now.unix, scope.allowed())) {
                return Err(scope.spent);
            }
        }
        let user = user_scope(claim);
        let known = self.scopes.get(&user);
        let max = limits.reservations_per_user;
        if reserves.is_some() && max.is_some_and(|max| known.map_or(0, |known| known.pace.reserved()) >= max) {
            return Err(RejectReason::QuotaReservations);
        }
        let buckets = self.after_allocation(now, claim, limits, &asked)?;
        self.make_room(asked.len());
        let counted = Counted { credential: asked[0].is_some() };
        for (scope, bucket) in asked.iter().zip(buckets).filter_map(|(scope, bucket)| Some((scope.as_ref()?, bucket))) {
            let known = self.scopes.get_or_insert(&scope.key);
            let is_first = known.count == 0;
            known.count += more;
            let reserved = known.pace.reserved() + if scope.key == user { more - 1 } else { 0 };
            known.pace.set(reserved, bucket.unwrap_or_else(|| known.pace.bucket()));
            let expires_at = claim.expires_at.map_or(0, |at| u32::try_from(at.0).unwrap_or(u32::MAX));
            known.expires_at = known.expires_at.max(expires_at);
            if is_first {
                self.note_population(&scope.key, true);
            }
        }
        let meters = self.meters_of(&asked, limits, &Meters::default());
        if let Some(token) = reserves {
            self.reservations.insert(token, asked.map(|scope| scope.map(|scope| scope.key)));
        }
        self.peak = self.peak.max(self.usage().0);
        Ok(Admitted { counted, meters })
    }

    /// The buckets of allocations a minute after one more; none for scopes without one.
    fn after_allocation(
        &self,
        now: Now,
        claim: &QuotaClaim<'_>,
        limits: &Limits,
        asked: &[Option<AskedScope>; 5],
    ) -> Result<[Option<TokenBucket>; 5], RejectReason> {
        // One static user often stands for all clients: those count by their addresses alone.
        let of_user = limits.allocations_per_user_per_minute.filter(|_| claim.expires_at.is_some());
        let rates = [
            (USER, of_user.map(AllocationRate::of_user)),
            (CLIENT, limits.allocations_per_client_per_minute.map(AllocationRate::of_client)),
        ];
        let mut buckets = [None; 5];
        for (at, rate) in rates {
            if let (Some(rate), Some(scope)) = (rate, &asked[at]) {
                buckets[at] = Some(rate.after_allocation(now, self.scopes.get(&scope.key))?);
            }
        }
        Ok(buckets)
    }

    /// Whether an allocation that fetches a reserved port of the same user takes a place in this scope that the
    /// reservation holds.
    fn is_freed(&self, purpose: Purpose, asked: &[Option<AskedScope>; 5], key: &ScopeKey) -> bool {
        let Purpose::InPlaceOf(token) = purpose else { return false };
        let Some(held) = self.reservations.get(&token) else { return false };
        let user = asked[USER].as_ref().map(|scope| &scope.key);
        held[USER].as_ref() == user && held.iter().flatten().any(|held| held == key)
    }

    /// Counts a reservation out: its port was handed over or closed.
    pub fn release_reservation(&mut self, now: Now, token: ReservationToken) {
        for key in self.reservations.remove(&token).into_iter().flatten().flatten() {
            if let Some(known) = self.scopes.get_mut(&key).filter(|_| matches!(key, ScopeKey::User(_))) {
                known.pace.set(known.pace.reserved().saturating_sub(1), known.pace.bucket());
            }
            self.count_out(now, key);
        }
    }

    /// Forgets some of those without allocations, the first whose time would come, if there are too many.
    fn make_room(&mut self, wanted: usize) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            // In a test of this file a few must be enough.
            let max = if cfg!(test) { 64 } else { SCOPES_MAX };
            if self.scopes.len() + wanted <= max {
                return;
            }
            let Some(key) = self.scopes.pop_lingering() else { return };
            if self.scopes.get(&key).is_some_and(|known| known.count == 0) {
                self.scopes.remove(&key);
                self.forgotten += 1;
            }
        }
    }

    /// The meters that an allocation which was let in passes under these limits; what its own has counted in `old`
    /// stays counted.
    pub fn meters(&mut self, claim: &QuotaClaim<'_>, counted: Counted, limits: &Limits, old: &Meters) -> Meters {
        self.meters_of(&AskedScope::of(claim, limits, &self.overrides, Some(counted)), limits, old)
    }

    fn meters_of(&mut self, asked: &[Option<AskedScope>; 5], limits: &Limits, old: &Meters) -> Meters {
        let mut meters = Vec::new();
        // Packets are metered in the allocation itself.
        let rates = Rates { packets_per_second: None, ..limits.allocation };
        let own = Allowance { rates, burst_ms: limits.burst_ms, ..Allowance::default() };
        let known = old.own().map(Arc::clone);
        if known.is_some() || !own.is_unlimited() {
            let meter = known.unwrap_or_else(|| Arc::new(Meter::of_one_allocation()));
            meter.allow(&own);
            meters.push(Passage { meter, narrow: None });
        }
        for scope in asked.iter().flatten() {
            if let Some(meter) = self.scopes.allow(scope) {
                meters.push(Passage { meter, narrow: scope.narrow.map(Box::new) });
            }
        }
        Meters::new(meters)
    }

    /// A scope got its first allocation, or lost its last.
    pub(super) const fn note_population(&mut self, key: &ScopeKey, is_first: bool) {
        let population = match key {
            ScopeKey::User(_) => &mut self.users,
            ScopeKey::Client(_) => &mut self.clients,
            ScopeKey::Server | ScopeKey::Tenant(_) | ScopeKey::Credential(_) => return,
        };
        *population = if is_first { population.saturating_add(1) } else { population.saturating_sub(1) };
    }

    /// Counts in an allocation that was let in before, whatever the limits say.
    pub fn count_in(&mut self, claim: &QuotaClaim<'_>, counted: Counted) {
        for scope in AskedScope::counted(claim, counted).into_iter().flatten() {
            let known = self.scopes.get_or_insert(&scope.key);
            known.count += 1;
            if known.count == 1 {
                self.note_population(&scope.key, true);
            }
        }
    }

    /// Scopes in which nothing was counted are forgotten at their time.
    pub fn end_recount(&mut self, now: Now) {
        let unused = self.scopes.iter().filter(|(_, scope)| scope.count == 0).map(|(key, _)| key.clone());
        for key in unused.collect::<Vec<_>>() {
            self.forget_or_keep(now, key);
        }
        self.peak = self.peak.max(self.usage().0);
    }

    /// Counts one allocation out.
    pub fn release(&mut self, now: Now, claim: &QuotaClaim<'_>, counted: Counted) {
        for scope in AskedScope::counted(claim, counted).into_iter().flatten() {
            self.count_out(now, scope.key);
        }
        self.sweep(now);
    }

    fn count_out(&mut self, now: Now, key: ScopeKey) {
        let Some(known) = self.scopes.get_mut(&key).filter(|known| known.count > 0) else { return };
        known.count -= 1;
        if known.count == 0 {
            if let Some(meter) = &known.meter {
                meter.keep(now, let_in_until(known.expires_at));
            }
            self.note_population(&key, false);
            self.forget_or_keep(now, key);
        }
    }

    /// Forgets a scope without allocations if its meter does not matter any more, else comes back to it.
    fn forget_or_keep(&mut self, now: Now, key: ScopeKey) {
        let Some(known) = self.scopes.get(&key).filter(|known| known.count == 0) else { return };
        let end = let_in_until(known.expires_at);
        let until = known.meter.as_ref().map_or(UnixSeconds(0), |meter| meter.matters_until(now, end));
        let ahead = known.pace.bucket().time().saturating_sub(now.ticks.0);
        let until = if ahead > 0 { until.max(UnixSeconds(now.unix.0 + ahead / 1_000 + 1)) } else { until };
        // By both clocks: a wall clock that is days ahead for a moment must not fill budgets again.
        let is_kept = known.meter.as_ref().is_some_and(|meter| meter.is_kept(now));
        let until = if is_kept { until.max(UnixSeconds(now.unix.0 + 1)) } else { until };
        if until <= now.unix {
            self.scopes.remove(&key);
            self.scopes.shrink();
        } else {
            self.scopes.linger(until, key);
        }
    }

    /// Looks at a few scopes that wait to be forgotten; with each allocation that begins or ends.
    fn sweep(&mut self, now: Now) {
        for _ in 0..SWEEP {
            match self.scopes.first_lingering() {
                Some(until) if until <= now.unix => {}
                Some(_) | None => return,
            }
            if let Some(key) = self.scopes.pop_lingering() {
                self.forget_or_keep(now, key);
            }
        }
    }

    /// How many allocations are counted, reservations aside: on the whole, distinct users, distinct clients.
    #[must_use]
    pub fn usage(&self) -> (u32, usize, usize) {
        let all = self.scopes.get(&ScopeKey::Server).map_or(0, |scope| scope.count);
        (all.saturating_sub(self.reservations.len() as u32), self.users, self.clients)
    }

    /// How many ports are held for a RESERVATION-TOKEN, or about to be.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.reservations.len()
    }

    /// How many scopes without allocations were forgotten before their time, because there were too many.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
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
        self.scopes.len() == 0
    }

    /// The client prefix with the most allocations, how many, and how many there are on the whole.
    #[must_use]
    pub fn busiest_client(&self) -> Option<(IpAddr, u32, u32)> {
        // The largest is the same in any order, but for equals, where any will do.
        let clients = self.scopes.iter().filter_map(|(key, scope)| match key {
            ScopeKey::Client(ip) if scope.count > 0 => Some((*ip, scope.count)),
            ScopeKey::Client(_)
            | ScopeKey::Server
            | ScopeKey::Tenant(_)
            | ScopeKey::User(_)
            | ScopeKey::Credential(_) => None,
        });
        let (client, count) = clients.max_by_key(|(_, count)| *count)?;
        Some((client, count, self.usage().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::claims::Grant;
    use crate::protocol::reason::{Direction, DropReason};
    use crate::protocol::revocation::SessionSubject;
    use crate::time::Ticks;

    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> Now {
        Now { ticks: Ticks(1_000_000 + seconds * 1000), unix: UnixSeconds(START + seconds) }
    }

    fn claim<'a>(username: &'a str, tenant: Option<&'a str>, client: &str) -> QuotaClaim<'a> {
        let (expires_at, user) = match username.split_once(':') {
            Some((seconds, user)) => (Some(UnixSeconds(START + seconds.parse::<u64>().unwrap())), user),
            None => (None, username),
        };
        let subject = SessionSubject { username, user, tenant };
        QuotaClaim { subject, realm: None, expires_at, grant: None, client: client.parse().unwrap() }
    }

    fn limits(edit: impl FnOnce(&mut Limits)) -> Limits {
        let none = Rates::default();
        let mut limits = Limits {
            burst_ms: 1000,
            allocations_per_user_per_minute: None,
            allocations_per_client_per_minute: None,
            allocation: none,
            ..Limits::default()
        };
        edit(&mut limits);
        limits
    }

    fn admit(quotas: &mut Quotas, now: Now, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason> {
        quotas.admit(now, claim, limits, Purpose::Allocation)
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
            (claim("12:alice", None, "9.9.9.9"), Ok(())), // alice without a tenant is another alice
            (claim("10:bob", Some("acme"), "2001:db8:0:22::1"), Ok(())),
            (claim("10:eve", Some("acme"), "8.8.8.8"), Err(RejectReason::QuotaTenant)),
            (claim("bob", None, "2001:db8:0:33::1"), Ok(())), // a static user; same /56 as the others
            (claim("bob", None, "127.0.0.1"), Err(RejectReason::QuotaServer)),
        ];
        for (claim, expected) in steps.drain(..) {
            let admitted = admit(&mut quotas, at(0), &claim, &limits);
            assert_eq!(admitted.as_ref().map(|_| ()).map_err(|refused| *refused), expected, "{claim:?}");
            held.extend(admitted.ok().map(|admitted| (claim, admitted.counted)));
        }
        assert_eq!(quotas.usage(), (6, 4, 2));
        assert_eq!((quotas.take_peak(), quotas.take_peak()), ((6, 6), (6, 6)));
        assert_eq!(quotas.busiest_client().map(|(_, of_client, total)| (of_client, total)), Some((5, 6)));
        let neighbour = claim("10:zoe", None, "2001:db8:0:44::1");
        let (first, counted) = held.remove(0);
        quotas.release(at(0), &first, counted);
        assert!(admit(&mut quotas, at(0), &neighbour, &limits).is_ok());
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
        let admitted = admit(&mut quotas, at(0), &narrow, &limits).unwrap();
        assert_eq!(admit(&mut quotas, at(0), &narrow, &limits).unwrap_err(), RejectReason::QuotaCredential);
        assert_eq!(admitted.meters.charge(at(0), Direction::ToPeer, 100), Ok(()));
        assert_eq!(admitted.meters.charge(at(0), Direction::ToPeer, 1), Err(DropReason::OverBudget));
        let wide = admit(&mut quotas, at(0), &claim("10:eve", None, "9.9.9.9"), &limits).unwrap();
        assert_eq!(wide.meters.charge(at(0), Direction::ToPeer, 1000), Ok(()));
    }

    #[test]
    fn a_budget_outlives_the_session_and_not_the_credential() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.bytes_per_credential = Some(1000));
        let bob = claim("50:bob", None, "9.9.9.9");
        let admitted = admit(&mut quotas, at(0), &bob, &limits).unwrap();
        assert_eq!(admitted.meters.charge(at(0), Direction::ToPeer, 1000), Ok(()));
        quotas.release(at(0), &bob, admitted.counted);
        assert_eq!(admit(&mut quotas, at(1), &bob, &limits).unwrap_err(), RejectReason::QuotaBytes);
        assert_eq!(quotas.usage(), (0, 0, 0));
        assert_eq!(quotas.len(), 1, "the budget is remembered");
        // Authentication lets it in for 30 s more: clocks differ.
        assert_eq!(admit(&mut quotas, at(80), &bob, &limits).unwrap_err(), RejectReason::QuotaBytes);
        let other = claim("200:eve", None, "9.9.9.9");
        let admitted = admit(&mut quotas, at(81), &other, &limits).unwrap();
        quotas.release(at(81), &other, admitted.counted);
        assert_eq!(quotas.len(), 0, "nothing was spent of the other, and the first is over");
    }

    #[test]
    fn a_user_has_his_bytes_of_the_day_whatever_credentials_he_gets() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.bytes_per_user_per_day = Some(1000));
        let one = claim("50:bob", None, "9.9.9.9");
        let admitted = admit(&mut quotas, at(0), &one, &limits).unwrap();
        assert_eq!(admitted.meters.charge(at(0), Direction::ToClient, 1000), Ok(()));
        quotas.release(at(0), &one, admitted.counted);
        let next = claim("60:bob", None, "9.9.9.9");
        assert_eq!(admit(&mut quotas, at(1), &next, &limits).unwrap_err(), RejectReason::QuotaDay);
        assert!(admit(&mut quotas, at(86_400), &next, &limits).is_ok());
    }

    // F-A15: a clock that is days ahead for a moment fills budgets again.
    #[test]
    fn a_clock_that_is_ahead_for_a_moment_fills_no_budget_again() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| {
            limits.bytes_per_user_per_day = Some(1000);
            limits.bytes_per_credential = Some(1000);
        });
        let (bob, carol) = (claim("50000:bob", None, "9.9.9.9"), claim("60000:carol", None, "9.9.9.9"));
        for who in [&bob, &carol] {
            let admitted = admit(&mut quotas, at(0), who, &limits).unwrap();
            assert_eq!(admitted.meters.charge(at(0), Direction::ToClient, 1000), Ok(()));
            quotas.release(at(0), who, admitted.counted);
        }
        let ahead = Now { ticks: at(1).ticks, unix: UnixSeconds(START + 5 * 86_400) };
        for number in 0..50 {
            let name = format!("900000:other-{number}");
            let other = claim(&name, None, "9.9.9.9");
            let admitted = admit(&mut quotas, ahead, &other, &limits).unwrap();
            quotas.release(ahead, &other, admitted.counted);
        }
        for who in [&bob, &carol] {
            assert_eq!(admit(&mut quotas, at(2), who, &limits).unwrap_err(), RejectReason::QuotaDay);
        }
        let next = claim("90000:bob", None, "9.9.9.9");
        assert!(admit(&mut quotas, at(86_400), &next, &limits).is_ok(), "a real day later");
    }

    #[test]
    fn a_new_session_does_not_fill_the_bucket_again() {
        let mut quotas = Quotas::default();
        let rates = Rates { bits_per_second: Some(8000), ..Rates::default() };
        let limits = limits(|limits| limits.user = rates);
        let bob = claim("50:bob", None, "9.9.9.9");
        for (second, expected) in [(0, Ok(())), (0, Err(DropReason::OverBandwidth)), (1, Ok(()))] {
            let admitted = admit(&mut quotas, at(second), &bob, &limits).unwrap();
            assert_eq!(admitted.meters.charge(at(second), Direction::ToPeer, 1000), expected, "at {second}");
            quotas.release(at(second), &bob, admitted.counted);
        }
    }

    #[test]
    fn limits_of_a_reload_reach_the_sessions_that_live() {
        let mut quotas = Quotas::default();
        let bob = claim("50:bob", Some("acme"), "9.9.9.9");
        let admitted = admit(&mut quotas, at(0), &bob, &Limits::default()).unwrap();
        assert!(admitted.meters.is_empty());
        let rates = Rates { packets_per_second: Some(1), ..Rates::default() };
        for narrowed in [
            limits(|limits| limits.user = rates),
            limits(|limits| limits.client = rates),
            limits(|limits| limits.tenant = rates),
            limits(|limits| limits.server = rates),
        ] {
            let meters = quotas.meters(&bob, admitted.counted, &narrowed, &Meters::default());
            assert_eq!(meters.charge(at(0), Direction::ToPeer, 1), Ok(()));
            assert_eq!(meters.charge(at(0), Direction::ToPeer, 1), Err(DropReason::OverPackets));
            assert!(quotas.meters(&bob, admitted.counted, &Limits::default(), &Meters::default()).is_empty());
            assert_eq!(meters.charge(at(0), Direction::ToClient, 1), Ok(()));
        }
        quotas.release(at(9), &bob, admitted.counted);
        assert_eq!(quotas.len(), 0);
    }

    // F-F4: a reload asks for meters anew; what the allocation's own has counted stays counted.
    #[test]
    fn the_meter_of_an_allocation_survives_a_reload() {
        let mut quotas = Quotas::default();
        let rates = Rates { bits_per_second: Some(8000), ..Rates::default() };
        let one = limits(|limits| limits.allocation = rates);
        let bob = claim("50:bob", None, "9.9.9.9");
        let admitted = admit(&mut quotas, at(0), &bob, &one).unwrap();
        assert_eq!(admitted.meters.charge(at(0), Direction::ToPeer, 1000), Ok(()));
        let other = limits(|limits| (limits.allocation, limits.allocations) = (rates, Some(9)));
        let meters = quotas.meters(&bob, admitted.counted, &other, &admitted.meters);
        assert_eq!(meters.charge(at(0), Direction::ToPeer, 1), Err(DropReason::OverBandwidth));
        assert_eq!(meters.charge(at(1), Direction::ToPeer, 1000), Ok(()));
    }

    // F-F3: the scope's limit holds for all, the narrower one for the credential that it was granted to.
    #[test]
    fn what_one_is_granted_is_not_what_the_next_is_allowed() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.bytes_per_user_per_day = Some(1000));
        let grant = Grant { bytes_per_day: Some(300), ..Grant::default() };
        let narrow = QuotaClaim { grant: Some(&grant), ..claim("50:bob", None, "9.9.9.9") };
        let wide = claim("60:bob", None, "9.9.9.9");
        let first = admit(&mut quotas, at(0), &narrow, &limits).unwrap();
        let second = admit(&mut quotas, at(0), &wide, &limits).unwrap();
        assert_eq!(first.meters.charge(at(0), Direction::ToPeer, 301), Err(DropReason::OverBudget));
        assert_eq!(
            second.meters.charge(at(0), Direction::ToPeer, 700),
            Ok(()),
            "300 were forfeited by asking for more"
        );
        assert_eq!(second.meters.charge(at(0), Direction::ToPeer, 1), Err(DropReason::OverBudget));
        let refused = admit(&mut quotas, at(0), &narrow, &limits).unwrap_err();
        assert_eq!(refused, RejectReason::QuotaDay);
    }

    // F-A12
    #[test]
    fn allocations_a_minute_are_limited_whatever_credential_and_worker() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.allocations_per_user_per_minute = Some(30));
        let (one, two) = (claim("50:bob", None, "9.9.9.9"), claim("60:bob", None, "9.9.9.8"));
        let let_in = |quotas: &mut Quotas, at: Now| {
            [one, two]
                .iter()
                .cycle()
                .take(200)
                .filter(|claim| {
                    let admitted = admit(quotas, at, claim, &limits);
                    let counted = admitted.as_ref().map(|admitted| admitted.counted);
                    assert!(!matches!(counted, Err(why) if *why != RejectReason::QuotaRate));
                    counted.map(|counted| quotas.release(at, claim, counted)).is_ok()
                })
                .count()
        };
        assert_eq!(let_in(&mut quotas, at(0)), 30, "those of a minute at once");
        assert_eq!(let_in(&mut quotas, at(7)), 3);
        assert_eq!(quotas.len(), 1, "the user is remembered");
        assert_eq!(let_in(&mut quotas, at(1000)), 30);
        let other = claim("50:eve", None, "9.9.9.9");
        let admitted = admit(&mut quotas, at(2000), &other, &limits).unwrap();
        quotas.release(at(2000), &other, admitted.counted);
        assert_eq!(quotas.len(), 1, "the first is forgotten");
        for _ in 0..500 {
            let fixed = claim("fixed", None, "9.9.9.9");
            let admitted = admit(&mut quotas, at(2000), &fixed, &limits).expect("static users have no such limit");
            quotas.release(at(2000), &fixed, admitted.counted);
        }
    }

    // The table never refuses for its own size: what is remembered without need gives way.
    #[test]
    fn no_one_is_refused_because_too_many_are_remembered() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.bytes_per_user_per_day = Some(1000));
        let names: Vec<String> = (0..300).map(|number| format!("50:user{number}")).collect();
        for name in &names {
            let claim = claim(name, None, "127.0.0.1");
            let admitted = admit(&mut quotas, at(0), &claim, &limits).expect("it is let in");
            assert_eq!(admitted.meters.charge(at(0), Direction::ToPeer, 1), Ok(()));
            quotas.release(at(0), &claim, admitted.counted);
            assert!(quotas.len() <= 64, "{}", quotas.len());
        }
        assert!(quotas.forgotten() > 200, "{}", quotas.forgotten());
        // Those with allocations are never forgotten, however many.
        let live: Vec<Admitted> = names
            .iter()
            .map(|name| admit(&mut quotas, at(1), &claim(name, None, "127.0.0.1"), &limits).expect("it is let in"))
            .collect();
        assert_eq!(quotas.usage().0, 300);
        for (name, admitted) in names.iter().zip(live) {
            quotas.release(at(1), &claim(name, None, "127.0.0.1"), admitted.counted);
        }
        assert_eq!(quotas.usage(), (0, 0, 0));
    }

    // F-A6
    #[test]
    fn a_reservation_counts_in_every_scope_until_it_is_released() {
        let mut quotas = Quotas::default();
        let limits = limits(|limits| limits.allocations_per_user = Some(3));
        let bob = claim("50:bob", None, "9.9.9.9");
        let (one, two) = (ReservationToken([1; 8]), ReservationToken([2; 8]));
        let reserving = quotas.admit(at(0), &bob, &limits, Purpose::WithReservation(one)).unwrap();
        assert_eq!((quotas.usage(), quotas.reserved()), ((1, 1, 1), 1));
        let refused = quotas.admit(at(0), &bob, &limits, Purpose::WithReservation(two)).unwrap_err();
        assert_eq!(refused, RejectReason::QuotaUser, "two more are too many");
        let second = admit(&mut quotas, at(0), &bob, &limits).unwrap();
        // Another user's token frees no place, nor does an unknown one.
        let eve = claim("50:eve", None, "9.9.9.9");
        let narrow = Limits { allocations_per_client: Some(3), ..limits };
        for (who, token) in [(&eve, one), (&bob, two)] {
            assert!(quotas.admit(at(0), who, &narrow, Purpose::InPlaceOf(token)).is_err());
        }
        let third = quotas.admit(at(0), &bob, &narrow, Purpose::InPlaceOf(one)).unwrap();
        assert!(quotas.admit(at(0), &bob, &limits, Purpose::InPlaceOf(one)).is_err(), "one place, once");
        quotas.release_reservation(at(0), one);
        quotas.release_reservation(at(0), one);
        assert_eq!((quotas.usage(), quotas.reserved()), ((3, 1, 1), 0));
        for admitted in [reserving, second, third] {
            quotas.release(at(0), &bob, admitted.counted);
        }
        assert_eq!((quotas.usage(), quotas.len()), ((0, 0, 0), 0));
    }
}
