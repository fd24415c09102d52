//! Credentials, users and tenants that an operator has revoked.
//!
//! A plain set without clock or file. The process holds one behind a lock that is taken once per Allocate;
//! `ops` keeps it on disk. An entry lives until the longest credential that it concerns has expired.

use hashbrown::HashMap;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::time::{Now, Ticks, UnixSeconds};

/// Whose sessions or credentials are meant.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// One credential, by its full USERNAME.
    #[n(0)]
    Credential(#[n(0)] Box<str>),
    /// A user id, of one tenant or of whichever.
    #[n(1)]
    User {
        /// The user id; a static user's name.
        #[n(0)]
        user: Box<str>,
        /// The tenant; `None` means the user of that name of any tenant and of none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[n(1)]
        tenant: Option<Box<str>>,
    },
    /// A tenant with all its users.
    #[n(2)]
    Tenant(#[n(0)] Box<str>),
}

/// Who a session or a credential belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionSubject<'a> {
    /// The full USERNAME.
    pub username: &'a str,
    /// The user id.
    pub user: &'a str,
    /// The tenant, if there is one.
    pub tenant: Option<&'a str>,
}

impl Subject {
    /// Whether this one is meant.
    #[must_use]
    pub fn includes(&self, subject: &SessionSubject<'_>) -> bool {
        match self {
            Self::Credential(username) => **username == *subject.username,
            Self::User { user, tenant } => {
                **user == *subject.user && tenant.as_deref().is_none_or(|tenant| Some(tenant) == subject.tenant)
            }
            Self::Tenant(tenant) => Some(&**tenant) == subject.tenant,
        }
    }
}

/// How long an entry is kept after its end, in seconds of both clocks: a wall clock that is days ahead for a moment must not
/// make a revocation be forgotten for good.
pub const KEPT_AFTER_END: u64 = 86_400;

/// One revocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RevocationEntry {
    until: UnixSeconds,
    /// Since when [`Revocations::sweep`] has found it over, without a break.
    over_since: Option<Ticks>,
}

impl RevocationEntry {
    const fn new(until: UnixSeconds) -> Self {
        Self { until, over_since: None }
    }

    /// Notes whether it is over now; tells whether it is kept.
    fn look(&mut self, now: Now) -> bool {
        if now.unix < self.until {
            // The clock was ahead when it was found over.
            self.over_since = None;
            return true;
        }
        let since = *self.over_since.get_or_insert(now.ticks);
        let is_over_by_both = now.unix.0 >= self.until.0.saturating_add(KEPT_AFTER_END)
            && now.ticks.since(since) >= KEPT_AFTER_END * 1000;
        !is_over_by_both
    }
}

/// What is revoked, each entry until its time.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    until: HashMap<Subject, RevocationEntry>,
    /// Another process has them as they are.
    is_exported: bool,
}

impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Revocations {}

/// One entry of [`Revocations`] as plain values.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RevocationState {
    /// What is revoked.
    #[n(0)]
    pub subject: Subject,
    /// Until when.
    #[n(1)]
    pub until: UnixSeconds,
    /// Since when it has been found over, without a break.
    #[n(2)]
    pub over_since: Option<Ticks>,
}

impl Revocations {
    /// Every entry as plain values, sorted.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
    pub fn to_state(&self) -> Vec<RevocationState> {
        let state = |(subject, entry): (&Subject, &RevocationEntry)| RevocationState {
            subject: subject.clone(),
            until: entry.until,
            over_since: entry.over_since,
        };
        let mut entries: Vec<RevocationState> = self.until.iter().map(state).collect();
        entries.sort_unstable_by(|one, other| one.subject.cmp(&other.subject));
        entries
    }

    /// The set that [`Revocations::to_state`] described.
    #[must_use]
    pub fn from_state(state: Vec<RevocationState>) -> Self {
        let entry = |RevocationState { subject, until, over_since }| (subject, RevocationEntry { until, over_since });
        Self { until: state.into_iter().map(entry).collect(), is_exported: false }
    }

    /// As [`Revocations::to_state`], for another process that takes them over later: whether they change until then is
    /// noted.
    pub fn early_export(&mut self) -> Vec<RevocationState> {
        self.is_exported = true;
        self.to_state()
    }

    /// All of them if they have changed since [`Revocations::early_export`], else nothing.
    #[must_use]
    pub fn export_changes(&self) -> Option<Vec<RevocationState>> {
        (!self.is_exported).then(|| self.to_state())
    }

    /// Revokes a subject; an entry that exists is never made shorter.
    pub fn insert(&mut self, subject: Subject, until: UnixSeconds) {
        self.is_exported = false;
        let entry = self.until.entry(subject).or_insert(RevocationEntry::new(until));
        *entry = RevocationEntry::new(until.max(entry.until));
    }

    /// Removes a revocation; tells whether there was one.
    pub fn remove(&mut self, subject: &Subject) -> bool {
        self.is_exported = false;
        self.until.remove(subject).is_some()
    }

    /// Whether one of them stands against this party now.
    #[must_use]
    pub fn includes(&self, subject: &SessionSubject<'_>, now: UnixSeconds) -> bool {
        if self.until.is_empty() {
            return false;
        }
        let holds = |subject: Subject| self.until.get(&subject).is_some_and(|entry| now < entry.until);
        let user = |tenant: Option<&str>| Subject::User { user: subject.user.into(), tenant: tenant.map(Into::into) };
        holds(Subject::Credential(subject.username.into()))
            || holds(user(None))
            || subject.tenant.is_some_and(|tenant| holds(Subject::Tenant(tenant.into())) || holds(user(Some(tenant))))
    }

    /// Forgets those that have been over for [`KEPT_AFTER_END`] by both clocks, and tells which; to be called now and then.
    pub fn sweep(&mut self, now: Now) -> Vec<Subject> {
        let mut forgotten = Vec::new();
        let mut is_changed = false;
        self.until.retain(|subject, entry| {
            let before = *entry;
            let is_kept = entry.look(now);
            is_changed |= !is_kept || *entry != before;
            if !is_kept {
                forgotten.push(subject.clone());
            }
            is_kept
        });
        self.is_exported &= !is_changed;
        forgotten
    }

    /// How many there are, those whose time is over included until [`Revocations::sweep`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// All of them in a fixed order, with their end.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "sorted at once")]
    pub fn list(&self) -> Vec<(Subject, UnixSeconds)> {
        let mut all: Vec<_> = self.until.iter().map(|(subject, entry)| (subject.clone(), entry.until)).collect();
        all.sort_unstable();
        all
    }
}

impl FromIterator<(Subject, UnixSeconds)> for Revocations {
    fn from_iter<I: IntoIterator<Item = (Subject, UnixSeconds)>>(all: I) -> Self {
        let mut revocations = Self::default();
        for (subject, until) in all {
            revocations.insert(subject, until);
        }
        revocations
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

    #[test]
    fn each_kind_shuts_out_whom_it_names_and_nobody_else() {
        for (subject, bob, other) in [
            (Subject::Credential("99:bob".into()), true, false),
            (user(None), true, true),
            (user(Some("acme")), true, false),
            (user(Some("umbrella")), false, false),
            (Subject::Tenant("acme".into()), true, false),
        ] {
            assert_eq!((subject.includes(&BOB), subject.includes(&OTHER_BOB)), (bob, other), "{subject:?}");
            let all: Revocations = [(subject.clone(), UnixSeconds(10))].into_iter().collect();
            let now = UnixSeconds(9);
            assert_eq!((all.includes(&BOB, now), all.includes(&OTHER_BOB, now)), (bob, other), "{subject:?}");
        }
    }

    #[test]
    fn an_entry_ends_at_its_time_and_is_never_made_shorter() {
        let mut all = Revocations::default();
        all.insert(user(None), UnixSeconds(10));
        all.insert(user(None), UnixSeconds(5));
        assert!(all.includes(&BOB, UnixSeconds(9)));
        assert!(!all.includes(&BOB, UnixSeconds(10)));
        let at = |unix: u64| Now { ticks: Ticks(unix * 1000), unix: UnixSeconds(unix) };
        assert_eq!((all.sweep(at(10)).len(), all.len()), (0, 1));
        assert_eq!((all.sweep(at(9 + KEPT_AFTER_END)).len(), all.len()), (0, 1));
        assert_eq!((all.sweep(at(10 + KEPT_AFTER_END)), all.len()), (vec![user(None)], 0));
        all.insert(user(None), UnixSeconds(20));
        assert!(all.remove(&user(None)) && !all.remove(&user(None)) && all.is_empty());
    }

    // F-A15: a clock that is days ahead for a moment forgets revocations for good.
    #[test]
    fn a_clock_that_is_ahead_for_a_while_forgets_nothing() {
        let mut all = Revocations::default();
        all.insert(user(None), UnixSeconds(1_000));
        let at = |seconds: u64, ahead: u64| Now { ticks: Ticks(seconds * 1000), unix: UnixSeconds(seconds + ahead) };
        for seconds in 0..10 {
            assert!(all.sweep(at(seconds, 30 * KEPT_AFTER_END)).is_empty());
        }
        assert!(all.sweep(at(10, 0)).is_empty() && all.includes(&BOB, UnixSeconds(10)), "it stands as before");
        // Over for a day by the wall clock, but for that day the clock was seen to be ahead.
        assert!(all.sweep(at(900 + KEPT_AFTER_END, 30 * KEPT_AFTER_END)).is_empty());
        assert_eq!(all.len(), 1);
        assert_eq!(all.sweep(at(900 + 2 * KEPT_AFTER_END, 0)).len(), 1);
    }

    #[test]
    fn entries_can_be_written_down() {
        let all = [Subject::Credential("9:b".into()), user(None), user(Some("acme")), Subject::Tenant("t".into())];
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(
            text,
            r#"[{"credential":"9:b"},{"user":{"user":"bob"}},{"user":{"user":"bob","tenant":"acme"}},{"tenant":"t"}]"#
        );
        assert_eq!(serde_json::from_str::<Vec<Subject>>(&text).unwrap(), all);
    }

    #[test]
    fn what_changes_after_an_early_export_is_told_whole() {
        let now = |seconds: u64| Now { ticks: Ticks(seconds * 1000), unix: UnixSeconds(seconds) };
        let subject = || Subject::Tenant("acme".into());
        let mut revocations = Revocations::default();
        assert_eq!(revocations.export_changes(), Some(Vec::new()), "nothing went early");
        let changes: [fn(&mut Revocations, Subject); 4] = [
            |revocations, subject| revocations.insert(subject, UnixSeconds(50)),
            |revocations, _| drop(revocations.sweep(Now { ticks: Ticks(60_000), unix: UnixSeconds(60) })),
            |revocations, _| drop(revocations.sweep(Now { ticks: Ticks(61_000), unix: UnixSeconds(40) })),
            |revocations, subject| assert!(revocations.remove(&subject)),
        ];
        for change in changes {
            let early = revocations.early_export();
            assert_eq!((revocations.export_changes(), revocations.sweep(now(40)).len()), (None, 0));
            change(&mut revocations, subject());
            let state = revocations.to_state();
            assert!(state != early && revocations.export_changes() == Some(state));
        }
        revocations.insert(subject(), UnixSeconds(50));
        revocations.sweep(now(60));
        revocations.early_export();
        assert_eq!(revocations.sweep(now(60 + 2 * KEPT_AFTER_END)), [subject()]);
        assert_eq!(revocations.export_changes(), Some(Vec::new()));
    }
}
