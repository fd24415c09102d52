//! Limits that an operator set at run time for a named user or tenant.
//!
//! A plain table without clock or file. [`Quotas`](super::quota::Quotas) hold one and ask it for each scope that an
//! allocation counts in: a limit that is set here takes the place of the configured one. `ops` keeps the table on disk.

use hashbrown::HashMap;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::meter::Rates;
use super::revocation::{SessionSubject, Subject};
use crate::time::UnixSeconds;

/// The most entries at a time: each costs memory and a line in a file that is written whole. Callers hold to it.
pub const ENTRIES_MAX: usize = 100_000;

/// A limit of this name can be set at run time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LimitName {
    /// Allocations at the same time.
    Allocations,
    /// Bits per second, each way.
    Bandwidth,
    /// Packets per second, each way.
    PacketRate,
    /// Bytes of a day (UTC), both ways together; of users only.
    BytesPerDay,
}

impl LimitName {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Allocations, Self::Bandwidth, Self::PacketRate, Self::BytesPerDay];

    /// Its name in calls, in the file and in `[limits]` before `_per_user`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocations => "allocations",
            Self::Bandwidth => "bandwidth",
            Self::PacketRate => "packet_rate",
            Self::BytesPerDay => "bytes_per_day",
        }
    }

    /// The highest number that it can be set to.
    #[must_use]
    pub const fn max(self) -> u64 {
        match self {
            Self::Allocations => u32::MAX as u64,
            // One less than what a meter reads as "no limit".
            Self::Bandwidth | Self::PacketRate | Self::BytesPerDay => u64::MAX - 1,
        }
    }

    /// Whether this subject can have it: a credential has its limits inside, and a tenant no bytes of a day.
    #[must_use]
    pub const fn is_of(self, subject: &Subject) -> bool {
        match subject {
            Subject::User { .. } => true,
            Subject::Tenant(_) => !matches!(self, Self::BytesPerDay),
            Subject::Credential(_) => false,
        }
    }
}

/// What one limit was set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum RunTimeLimit {
    /// No limit, whatever the configuration says.
    #[n(0)]
    None,
    /// This number, from 1 to [`LimitName::max`].
    #[n(1)]
    #[serde(untagged)]
    At(#[n(0)] u64),
}

impl RunTimeLimit {
    /// The limit as the quotas take it; `None` is no limit.
    const fn limit(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::At(limit) => Some(limit),
        }
    }
}

/// What holds in place of the configured limit.
fn over(set: Option<RunTimeLimit>, configured: Option<u64>) -> Option<u64> {
    set.map_or(configured, RunTimeLimit::limit)
}

/// The limits that are set for one subject. A field that is `None` leaves the configured limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(deny_unknown_fields)]
#[cbor(map)]
pub struct RunTimeLimits {
    /// Allocations at the same time.
    #[n(0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocations: Option<RunTimeLimit>,
    /// Bits per second, heads of IP and UDP included, each way.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<RunTimeLimit>,
    /// Packets per second, each way.
    #[n(2)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_rate: Option<RunTimeLimit>,
    /// Bytes of a day (UTC), heads of IP and UDP included, both ways together.
    #[n(3)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<RunTimeLimit>,
}

impl RunTimeLimits {
    /// The limit of this name.
    #[must_use]
    pub const fn get(&self, name: LimitName) -> Option<RunTimeLimit> {
        match name {
            LimitName::Allocations => self.allocations,
            LimitName::Bandwidth => self.bandwidth,
            LimitName::PacketRate => self.packet_rate,
            LimitName::BytesPerDay => self.bytes_per_day,
        }
    }

    /// Sets the limit of this name, or takes it out.
    pub const fn put(&mut self, name: LimitName, limit: Option<RunTimeLimit>) {
        let field = match name {
            LimitName::Allocations => &mut self.allocations,
            LimitName::Bandwidth => &mut self.bandwidth,
            LimitName::PacketRate => &mut self.packet_rate,
            LimitName::BytesPerDay => &mut self.bytes_per_day,
        };
        *field = limit;
    }

    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, and where one is not set that of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let mut both = other;
        for name in LimitName::ALL {
            both.put(name, self.get(name).or(other.get(name)));
        }
        both
    }

    /// What is wrong with them for this subject: the limit that it can't have, or whose number is out of range.
    #[must_use]
    pub fn unfit(&self, subject: &Subject) -> Option<LimitName> {
        LimitName::ALL.into_iter().find(|name| match self.get(*name) {
            None => false,
            Some(RunTimeLimit::None) => !name.is_of(subject),
            Some(RunTimeLimit::At(limit)) => !name.is_of(subject) || limit == 0 || limit > name.max(),
        })
    }

    /// How many allocations the subject may have, where the configuration allows `configured`.
    pub(super) fn allocations_over(&self, configured: Option<u32>) -> Option<u32> {
        over(self.allocations, configured.map(u64::from)).map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }

    /// The subject's rates, where the configuration has `configured`.
    pub(super) fn rates_over(&self, configured: Rates) -> Rates {
        Rates {
            bits_per_second: over(self.bandwidth, configured.bits_per_second),
            packets_per_second: over(self.packet_rate, configured.packets_per_second),
        }
    }

    /// The user's bytes of a day, where the configuration allows `configured`.
    pub(super) fn bytes_per_day_over(&self, configured: Option<u64>) -> Option<u64> {
        over(self.bytes_per_day, configured)
    }
}

/// What is set for one subject, and since when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// The limits; never empty.
    pub limits: RunTimeLimits,
    /// When they were last changed.
    pub issued_at: UnixSeconds,
    /// The number of that change: see [`Overrides::changes`].
    pub change: u64,
}

/// One entry of [`Overrides`] as plain values.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct OverrideState {
    /// Whose limits.
    #[n(0)]
    pub subject: Subject,
    /// The limits.
    #[n(1)]
    pub limits: RunTimeLimits,
    /// When they were last changed.
    #[n(2)]
    pub issued_at: UnixSeconds,
}

/// All limits that were set at run time.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    entries: HashMap<Subject, Override>,
    changes: u64,
    /// The number of the last change that another process has.
    exported: Option<u64>,
}

impl Overrides {
    /// Sets all limits of a subject in place of those that it had; with none it has no entry any more.
    pub fn put(&mut self, subject: Subject, limits: RunTimeLimits, issued_at: UnixSeconds) {
        self.changes += 1;
        if limits.is_empty() {
            self.entries.remove(&subject);
        } else {
            self.entries.insert(subject, Override { limits, issued_at, change: self.changes });
        }
    }

    /// What is set for exactly this subject.
    #[must_use]
    pub fn get(&self, subject: &Subject) -> Option<&Override> {
        self.entries.get(subject)
    }

    /// What holds for this user: what is set for the user of its tenant, and besides that what is set for the user id of any
    /// tenant.
    pub(super) fn of_user(&self, subject: &SessionSubject<'_>) -> RunTimeLimits {
        if self.entries.is_empty() {
            return RunTimeLimits::default();
        }
        let of = |tenant: Option<&str>| {
            let subject = Subject::User { user: subject.user.into(), tenant: tenant.map(Into::into) };
            self.entries.get(&subject).map(|entry| entry.limits).unwrap_or_default()
        };
        match subject.tenant {
            Some(tenant) => of(Some(tenant)).or(of(None)),
            None => of(None),
        }
    }

    /// What holds for this tenant, all its users together.
    pub(super) fn of_tenant(&self, tenant: &str) -> RunTimeLimits {
        if self.entries.is_empty() {
            return RunTimeLimits::default();
        }
        self.entries.get(&Subject::Tenant(tenant.into())).map(|entry| entry.limits).unwrap_or_default()
    }

    /// How many changes there were. Who watches the table compares: each entry knows the number of its last change, and one
    /// that is gone was unset.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// How many subjects have limits of their own.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no limit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them in a fixed order.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "sorted at once")]
    pub fn list(&self) -> Vec<(Subject, Override)> {
        let mut all: Vec<_> = self.entries.iter().map(|(subject, entry)| (subject.clone(), *entry)).collect();
        all.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Every entry as plain values, sorted.
    #[must_use]
    pub fn to_state(&self) -> Vec<OverrideState> {
        let state = |(subject, Override { limits, issued_at, .. })| OverrideState { subject, limits, issued_at };
        self.list().into_iter().map(state).collect()
    }

    /// The table that [`Overrides::to_state`] described.
    #[must_use]
    pub fn from_state(state: Vec<OverrideState>) -> Self {
        let mut all = Self::default();
        for OverrideState { subject, limits, issued_at } in state {
            all.put(subject, limits, issued_at);
        }
        all
    }

    /// As [`Overrides::to_state`], for another process that takes them over later: whether they change until then is noted.
    /// Nothing if none is set.
    pub fn early_export(&mut self) -> Option<Vec<OverrideState>> {
        self.exported = Some(self.changes);
        self.whole()
    }

    /// All of them if they have changed since [`Overrides::early_export`], else nothing.
    #[must_use]
    pub fn export_changes(&self) -> Option<Vec<OverrideState>> {
        match self.exported {
            Some(exported) => (exported != self.changes).then(|| self.to_state()),
            None => self.whole(),
        }
    }

    /// Every entry as plain values; nothing if there is none.
    #[must_use]
    pub fn whole(&self) -> Option<Vec<OverrideState>> {
        (!self.is_empty()).then(|| self.to_state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOB: SessionSubject<'static> = SessionSubject { username: "99:bob", user: "bob", tenant: Some("acme") };
    const OTHER_BOB: SessionSubject<'static> = SessionSubject { username: "98:bob", user: "bob", tenant: None };

    fn user(tenant: Option<&str>) -> Subject {
        Subject::User { user: "bob".into(), tenant: tenant.map(Into::into) }
    }

    fn allocations(limit: u64) -> RunTimeLimits {
        RunTimeLimits { allocations: Some(RunTimeLimit::At(limit)), ..RunTimeLimits::default() }
    }

    #[test]
    fn what_names_the_tenant_goes_first_and_the_rest_is_filled_up() {
        let mut all = Overrides::default();
        let wide = RunTimeLimits { bandwidth: Some(RunTimeLimit::At(8000)), ..allocations(9) };
        all.put(user(None), wide, UnixSeconds(1));
        all.put(user(Some("acme")), allocations(4), UnixSeconds(2));
        all.put(Subject::Tenant("acme".into()), allocations(50), UnixSeconds(3));
        let bob = all.of_user(&BOB);
        assert_eq!((bob.allocations, bob.bandwidth), (Some(RunTimeLimit::At(4)), Some(RunTimeLimit::At(8000))));
        assert_eq!(all.of_user(&OTHER_BOB), wide);
        assert_eq!((all.of_tenant("acme"), all.of_tenant("bob")), (allocations(50), RunTimeLimits::default()));
        assert!(all.of_user(&SessionSubject { user: "eve", ..BOB }).is_empty());
    }

    #[test]
    fn a_set_limit_takes_the_place_of_the_configured_one_none_included() {
        let configured = Rates { bits_per_second: Some(10), packets_per_second: Some(20) };
        let mut set = RunTimeLimits::default();
        assert_eq!((set.rates_over(configured), set.allocations_over(Some(5))), (configured, Some(5)));
        set.bandwidth = Some(RunTimeLimit::None);
        set.allocations = Some(RunTimeLimit::At(u64::from(u32::MAX)));
        set.bytes_per_day = Some(RunTimeLimit::At(7));
        assert_eq!(set.rates_over(configured), Rates { bits_per_second: None, ..configured });
        assert_eq!(set.allocations_over(Some(5)), Some(u32::MAX));
        assert_eq!((set.bytes_per_day_over(None), set.bytes_per_day_over(Some(9))), (Some(7), Some(7)));
    }

    #[test]
    fn each_subject_has_the_limits_that_its_scope_counts() {
        let tenant = Subject::Tenant("t".into());
        let bytes = RunTimeLimits { bytes_per_day: Some(RunTimeLimit::None), ..RunTimeLimits::default() };
        assert_eq!((bytes.unfit(&user(None)), bytes.unfit(&tenant)), (None, Some(LimitName::BytesPerDay)));
        let of_credential = allocations(1).unfit(&Subject::Credential("9:a".into()));
        assert_eq!(of_credential, Some(LimitName::Allocations));
        for (limit, fits) in [(0, false), (1, true), (u64::from(u32::MAX), true), (1 << 32, false)] {
            assert_eq!(allocations(limit).unfit(&tenant).is_none(), fits, "{limit}");
        }
        let rate = |limit| RunTimeLimits { packet_rate: Some(RunTimeLimit::At(limit)), ..RunTimeLimits::default() };
        assert_eq!((rate(u64::MAX - 1).unfit(&tenant), rate(u64::MAX).unfit(&tenant).is_some()), (None, true));
    }

    #[test]
    fn limits_are_numbers_or_the_word_none() {
        let set = RunTimeLimits { bandwidth: Some(RunTimeLimit::None), ..allocations(4) };
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, r#"{"allocations":4,"bandwidth":"none"}"#);
        assert_eq!(serde_json::from_str::<RunTimeLimits>(&text).unwrap(), set);
        for wrong in [r#"{"allocations":-1}"#, r#"{"allocations":"4"}"#, r#"{"bytes":4}"#, r#"{"bandwidth":1.5}"#] {
            assert!(serde_json::from_str::<RunTimeLimits>(wrong).is_err(), "{wrong}");
        }
    }

    /// What the quotas make of it: who is let in, and what passes.
    mod quotas {
        use super::*;
        use crate::credentials::claims::Grant;
        use crate::protocol::meter::Meters;
        use crate::protocol::quota::{Admitted, Purpose, QuotaClaim, Quotas};
        use crate::protocol::reason::{Direction, DropReason};
        use crate::protocol::reject::RejectReason;
        use crate::protocol::settings::Limits;
        use crate::time::{Now, Ticks};

        const NOW: Now = Now { ticks: Ticks(1_000_000), unix: UnixSeconds(1_700_000_000) };

        fn claim<'a>(subject: SessionSubject<'a>, grant: Option<&'a Grant>) -> QuotaClaim<'a> {
            let expires_at = Some(UnixSeconds(NOW.unix.0 + 600));
            QuotaClaim { subject, realm: None, expires_at, grant, client: "192.0.2.1".parse().unwrap() }
        }

        fn admit(quotas: &mut Quotas, claim: &QuotaClaim<'_>, limits: &Limits) -> Result<Admitted, RejectReason> {
            quotas.admit(NOW, claim, limits, Purpose::Allocation)
        }

        #[test]
        fn a_lower_count_ends_nobody_and_refuses_newcomers() {
            let mut quotas = Quotas::default();
            let limits = Limits { allocations_per_user: Some(10), ..Limits::default() };
            let bob = claim(BOB, None);
            let counted: Vec<_> = (0..3).map(|_| admit(&mut quotas, &bob, &limits).unwrap().counted).collect();
            quotas.overrides.put(user(None), allocations(2), UnixSeconds(1));
            assert_eq!(admit(&mut quotas, &bob, &limits).unwrap_err(), RejectReason::QuotaUser);
            assert_eq!(quotas.usage().0, 3, "nobody was ended");
            quotas.release(NOW, &bob, counted[0]);
            assert!(admit(&mut quotas, &bob, &limits).is_err(), "two is as many as there may be");
            quotas.release(NOW, &bob, counted[1]);
            assert!(admit(&mut quotas, &bob, &limits).is_ok());
            // Above the configured limit, too.
            quotas.overrides.put(user(None), allocations(12), UnixSeconds(2));
            assert!((0..10).all(|_| admit(&mut quotas, &bob, &limits).is_ok()));
            assert_eq!(admit(&mut quotas, &bob, &limits).unwrap_err(), RejectReason::QuotaUser);
            quotas.overrides.put(user(None), RunTimeLimits::default(), UnixSeconds(3));
            assert_eq!(admit(&mut quotas, &bob, &limits).unwrap_err(), RejectReason::QuotaUser);
        }

        #[test]
        fn a_static_user_and_a_tenant_have_limits_where_the_configuration_has_none() {
            let mut quotas = Quotas::default();
            let limits = Limits { allocations_per_user: Some(1), ..Limits::default() };
            let of_file =
                QuotaClaim { expires_at: None, ..claim(SessionSubject { username: "bob", ..OTHER_BOB }, None) };
            assert!((0..3).all(|_| admit(&mut quotas, &of_file, &limits).is_ok()), "the key is not for static users");
            quotas.overrides.put(user(None), allocations(3), UnixSeconds(1));
            assert_eq!(admit(&mut quotas, &of_file, &limits).unwrap_err(), RejectReason::QuotaUser);
            quotas.overrides.put(Subject::Tenant("acme".into()), allocations(2), UnixSeconds(1));
            let eve = claim(SessionSubject { username: "9:eve", user: "eve", ..BOB }, None);
            assert!(
                admit(&mut quotas, &claim(BOB, None), &limits).is_ok() && admit(&mut quotas, &eve, &limits).is_ok()
            );
            assert_eq!(admit(&mut quotas, &claim(BOB, None), &limits).unwrap_err(), RejectReason::QuotaTenant);
        }

        #[test]
        fn rates_and_bytes_reach_sessions_that_live_and_a_credential_still_narrows() {
            let mut quotas = Quotas::default();
            let limits = Limits { burst_ms: 1_000, ..Limits::default() };
            let grant = Grant { bytes_per_day: Some(300), ..Grant::default() };
            let (bob, narrow) = (claim(BOB, None), claim(BOB, Some(&grant)));
            let admitted = admit(&mut quotas, &bob, &limits).unwrap();
            assert!(admitted.meters.is_empty());
            let set = RunTimeLimits {
                bandwidth: Some(RunTimeLimit::At(8_000)),
                bytes_per_day: Some(RunTimeLimit::At(900)),
                ..RunTimeLimits::default()
            };
            quotas.overrides.put(user(Some("acme")), set, UnixSeconds(1));
            let meters = quotas.meters(&bob, admitted.counted, &limits, &Meters::default());
            let charge = |meters: &Meters, bytes| meters.charge(NOW, Direction::ToPeer, bytes);
            let later = |meters: &Meters, bytes| {
                let now = Now { ticks: NOW.ticks.plus_seconds(5), ..NOW };
                meters.charge(now, Direction::ToPeer, bytes)
            };
            assert_eq!((charge(&meters, 800), charge(&meters, 201)), (Ok(()), Err(DropReason::OverBandwidth)));
            let second = admit(&mut quotas, &bob, &limits).unwrap();
            assert_eq!(charge(&second.meters, 201), Err(DropReason::OverBandwidth), "they share it");
            let refused = admit(&mut quotas, &narrow, &limits).unwrap_err();
            assert_eq!(refused, RejectReason::QuotaDay, "its credential allows less");
            assert_eq!((later(&meters, 100), later(&meters, 1)), (Ok(()), Err(DropReason::OverBudget)));
            assert_eq!(admit(&mut quotas, &bob, &limits).unwrap_err(), RejectReason::QuotaDay);
            quotas.overrides.put(user(Some("acme")), RunTimeLimits::default(), UnixSeconds(2));
            let meters = quotas.meters(&bob, admitted.counted, &limits, &meters);
            assert_eq!((meters.is_empty(), charge(&meters, 1 << 20)), (true, Ok(())));
        }
    }

    #[test]
    fn every_change_has_a_number_and_the_entry_knows_its_last() {
        let mut all = Overrides::default();
        all.put(user(None), allocations(1), UnixSeconds(5));
        all.put(Subject::Tenant("t".into()), allocations(2), UnixSeconds(6));
        all.put(user(None), allocations(3), UnixSeconds(7));
        let entry = *all.get(&user(None)).unwrap();
        assert_eq!(entry, Override { limits: allocations(3), issued_at: UnixSeconds(7), change: 3 });
        all.put(user(None), RunTimeLimits::default(), UnixSeconds(8));
        assert_eq!((all.get(&user(None)), all.changes(), all.len()), (None, 4, 1));
    }

    #[test]
    fn what_changes_after_an_early_export_is_told_whole() {
        let mut all = Overrides::default();
        assert_eq!((all.export_changes(), all.early_export()), (None, None), "there is nothing");
        all.put(user(None), allocations(1), UnixSeconds(5));
        assert_eq!(all.export_changes(), Some(all.to_state()));
        assert_eq!(all.early_export(), Some(all.to_state()));
        assert_eq!(all.export_changes(), None);
        all.put(user(None), RunTimeLimits::default(), UnixSeconds(6));
        assert_eq!(all.export_changes(), Some(Vec::new()), "the last one is gone, and the other must hear of it");
        all.put(user(Some("acme")), allocations(2), UnixSeconds(9));
        assert_eq!(Overrides::from_state(all.to_state()).to_state(), all.to_state());
    }
}
