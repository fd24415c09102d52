//! Whom an operator has shut out before their time: credentials, users, tenants.
//!
//! A plain set without clock or file. The process holds one behind a lock that is taken once per Allocate;
//! `ops` keeps it on disk. An entry lives until the longest credential that it concerns has expired.

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::time::UnixSeconds;

/// Whose sessions or credentials are meant.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// One credential, by its full USERNAME.
    Credential(Box<str>),
    /// A user id, of one tenant or of whichever.
    User {
        /// The user id; a static user's name.
        user: Box<str>,
        /// The tenant; `None` means the user of that name of any tenant and of none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant: Option<Box<str>>,
    },
    /// A tenant with all its users.
    Tenant(Box<str>),
}

/// Who a session or a credential belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party<'a> {
    /// The full USERNAME.
    pub username: &'a str,
    /// The user id.
    pub user: &'a str,
    /// The tenant, if there is one.
    pub tenant: Option<&'a str>,
}

impl Whose {
    /// Whether this one is meant.
    #[must_use]
    pub fn includes(&self, party: &Party<'_>) -> bool {
        match self {
            Self::Credential(username) => **username == *party.username,
            Self::User { user, tenant } => {
                **user == *party.user && tenant.as_deref().is_none_or(|tenant| Some(tenant) == party.tenant)
            }
            Self::Tenant(tenant) => Some(&**tenant) == party.tenant,
        }
    }
}

/// Everybody who is shut out, each until his time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Revocations {
    until: HashMap<Whose, UnixSeconds>,
}

impl Revocations {
    /// Shuts somebody out; an entry that is there already is never made shorter.
    pub fn insert(&mut self, whose: Whose, until: UnixSeconds) {
        let entry = self.until.entry(whose).or_insert(until);
        *entry = until.max(*entry);
    }

    /// Lets somebody in again; tells whether he was shut out.
    pub fn remove(&mut self, whose: &Whose) -> bool {
        self.until.remove(whose).is_some()
    }

    /// Whether one of them stands against this party now.
    #[must_use]
    pub fn includes(&self, party: &Party<'_>, now: UnixSeconds) -> bool {
        if self.until.is_empty() {
            return false;
        }
        let holds = |whose: Whose| self.until.get(&whose).is_some_and(|until| now < *until);
        let user = |tenant: Option<&str>| Whose::User { user: party.user.into(), tenant: tenant.map(Into::into) };
        holds(Whose::Credential(party.username.into()))
            || holds(user(None))
            || party.tenant.is_some_and(|tenant| holds(Whose::Tenant(tenant.into())) || holds(user(Some(tenant))))
    }

    /// Forgets those whose time is over; tells how many.
    pub fn sweep(&mut self, now: UnixSeconds) -> usize {
        let before = self.until.len();
        self.until.retain(|_, until| now < *until);
        before - self.until.len()
    }

    /// How many there are, those whose time is over included until [`Revocations::sweep`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Whether nobody is shut out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// All of them in a fixed order, with their end.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "sorted at once")]
    pub fn list(&self) -> Vec<(Whose, UnixSeconds)> {
        let mut all: Vec<_> = self.until.iter().map(|(whose, until)| (whose.clone(), *until)).collect();
        all.sort_unstable();
        all
    }
}

impl FromIterator<(Whose, UnixSeconds)> for Revocations {
    fn from_iter<I: IntoIterator<Item = (Whose, UnixSeconds)>>(all: I) -> Self {
        let mut revocations = Self::default();
        for (whose, until) in all {
            revocations.insert(whose, until);
        }
        revocations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOB: Party<'static> = Party { username: "99:bob", user: "bob", tenant: Some("acme") };
    const OTHER_BOB: Party<'static> = Party { username: "98:bob", user: "bob", tenant: None };

    fn user(tenant: Option<&str>) -> Whose {
        Whose::User { user: "bob".into(), tenant: tenant.map(Into::into) }
    }

    #[test]
    fn each_kind_shuts_out_whom_it_names_and_nobody_else() {
        for (whose, bob, other) in [
            (Whose::Credential("99:bob".into()), true, false),
            (user(None), true, true),
            (user(Some("acme")), true, false),
            (user(Some("umbrella")), false, false),
            (Whose::Tenant("acme".into()), true, false),
        ] {
            assert_eq!((whose.includes(&BOB), whose.includes(&OTHER_BOB)), (bob, other), "{whose:?}");
            let all: Revocations = [(whose.clone(), UnixSeconds(10))].into_iter().collect();
            let now = UnixSeconds(9);
            assert_eq!((all.includes(&BOB, now), all.includes(&OTHER_BOB, now)), (bob, other), "{whose:?}");
        }
    }

    #[test]
    fn an_entry_ends_at_its_time_and_is_never_made_shorter() {
        let mut all = Revocations::default();
        all.insert(user(None), UnixSeconds(10));
        all.insert(user(None), UnixSeconds(5));
        assert!(all.includes(&BOB, UnixSeconds(9)));
        assert!(!all.includes(&BOB, UnixSeconds(10)));
        assert_eq!((all.sweep(UnixSeconds(9)), all.len()), (0, 1));
        assert_eq!((all.sweep(UnixSeconds(10)), all.len()), (1, 0));
        all.insert(user(None), UnixSeconds(20));
        assert!(all.remove(&user(None)) && !all.remove(&user(None)) && all.is_empty());
    }

    #[test]
    fn entries_can_be_written_down() {
        let all = [Whose::Credential("9:b".into()), user(None), user(Some("acme")), Whose::Tenant("t".into())];
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(
            text,
            r#"[{"credential":"9:b"},{"user":{"user":"bob"}},{"user":{"user":"bob","tenant":"acme"}},{"tenant":"t"}]"#
        );
        assert_eq!(serde_json::from_str::<Vec<Whose>>(&text).unwrap(), all);
    }
}
