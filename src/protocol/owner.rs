//! Whose allocation it is, and on which terms it is held.

use std::net::IpAddr;

use compact_str::CompactString;
use minicbor::{Decode, Encode};

use super::meter::{Meter, MeterState, Meters};
use super::peer_policy::PeerClass;
use super::quota::{Admitted, Counted, QuotaClaim};
use super::reason::EndReason;
use super::revocation::SessionSubject;
use super::settings::{AuthSettings, OnExpiry};
use crate::address::Via;
use crate::credentials::claims::{Grant, PeerScope};
use crate::credentials::{EXPIRY_SKEW_SECONDS, SecretId};
use crate::time::{Now, Ticks, UnixSeconds};
use crate::wire::integrity::{IntegrityKey, KeyBytes};

/// Later than any deadline.
pub(super) const NEVER: Ticks = Ticks(u64::MAX);

/// Whose allocation it is: kept as verified, so that rotation and expiry never drop a call.
#[derive(Clone, Debug, PartialEq)]
#[repr(C)]
pub struct Owner {
    /// What goes beyond the ordinary; most allocations have none. First, because packets look at it.
    pub terms: Option<Box<Terms>>,
    /// The secret and the expiry of a time-limited credential.
    pub time_limited: Option<TimeLimit>,
    names: Names,
    /// The key that every request on the allocation is checked with, if it is an MD5 one; most are, so it takes no more room.
    md5: KeyBytes<16>,
}

/// The USERNAME, and the user id as a part of it where it is one.
#[derive(Clone, Debug, PartialEq)]
struct Names {
    /// Up to 24 bytes of it take no memory of their own.
    text: CompactString,
    username_len: u16,
    identity_at: u16,
    identity_len: u16,
}

impl Names {
    fn new(username: &str, identity: &str) -> Self {
        // Names from STUN attributes are short enough; longer ones belong to no client.
        let fits = username.len() + identity.len() <= usize::from(u16::MAX);
        let (username, identity) = if fits { (username, identity) } else { ("", "") };
        let (text, at) = match username.rfind(identity) {
            Some(at) => (CompactString::from(username), at),
            None => (CompactString::from([username, identity].concat()), username.len()),
        };
        let (username_len, identity_len) = (username.len() as u16, identity.len() as u16);
        Self { text, username_len, identity_at: at as u16, identity_len }
    }

    fn part(&self, from: u16, len: u16) -> &str {
        let from = usize::from(from);
        self.text.get(from..from + usize::from(len)).unwrap_or_default()
    }
}

/// Where a time-limited credential came from and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TimeLimit {
    /// The secret's id, the same text for all its allocations.
    #[n(0)]
    pub secret: SecretId,
    /// Seconds since 1970.
    #[n(1)]
    pub expires_at: u64,
}

/// What limits one allocation beyond the server's tables.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Terms {
    /// Whose user it is.
    #[n(0)]
    pub tenant: Option<Box<str>>,
    /// What the credential allows.
    #[n(1)]
    pub grant: Grant,
    /// What the quotas counted.
    #[n(2)]
    pub counted: Counted,
    /// When it ends in any case.
    #[n(3)]
    pub closes_at: Ticks,
    /// Why it ends then.
    #[n(4)]
    pub closes_for: EndReason,
    /// What its packets pass.
    #[cbor(skip)]
    pub meters: Meters,
    /// The key that every request on the allocation is checked with, if it is a SHA-256 one.
    #[n(5)]
    pub sha256: Option<KeyBytes<32>>,
    /// The realm that the key was made with, if it is not the server's own.
    #[n(6)]
    pub realm: Option<Box<str>>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            tenant: None,
            grant: Grant::default(),
            counted: Counted::default(),
            closes_at: NEVER,
            closes_for: EndReason::MaxSession,
            meters: Meters::default(),
            sha256: None,
            realm: None,
        }
    }
}

/// An [`Owner`] as plain values.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct OwnerState {
    /// Full USERNAME.
    #[n(0)]
    pub username: Box<str>,
    /// Quota identity.
    #[n(1)]
    pub identity: Box<str>,
    /// The verified long-term key; all zero if it is a SHA-256 one, which is among the terms.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub key: [u8; 16],
    /// Secret and expiry of a time-limited credential.
    #[n(3)]
    pub time_limited: Option<TimeLimit>,
    /// What limits it, without its meters.
    #[n(4)]
    pub terms: Option<Terms>,
    /// What it used of a limit of its own; the meters of its scopes are the quotas'.
    #[n(5)]
    pub own_meter: Option<MeterState>,
}

impl OwnerState {
    /// Whether the key is one that releases before RFC 8489 don't know.
    pub(super) fn has_sha256_key(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.sha256.is_some())
    }

    /// Whether the key is of a realm that is not the server's own.
    pub(super) fn has_other_realm(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.realm.is_some())
    }
}

impl Owner {
    /// Everything, as plain values that another process can take over.
    pub(super) fn to_state(&self) -> OwnerState {
        OwnerState {
            username: self.username().into(),
            identity: self.identity().into(),
            key: *self.md5.expose(),
            time_limited: self.time_limited.clone(),
            terms: self.terms.as_ref().map(|terms| Terms { meters: Meters::default(), ..(**terms).clone() }),
            own_meter: self.own_meter().map(Meter::to_state),
        }
    }

    /// The owner that [`Owner::to_state`] described, with its own meter; [`Owner::set_meters`] gives it those of its
    /// scopes.
    pub(super) fn from_state(state: OwnerState) -> Self {
        let OwnerState { username, identity, key, time_limited, terms, own_meter } = state;
        let (names, terms) = (Names::new(&username, &identity), terms.map(Box::new));
        let mut owner = Self { terms, time_limited, names, md5: key.into() };
        owner.set_meters(Meters::of_own(own_meter.as_ref()));
        owner
    }

    pub(super) fn new(
        username: &str,
        identity: &str,
        key: IntegrityKey,
        time_limited: Option<TimeLimit>,
        mut terms: Option<Box<Terms>>,
    ) -> Self {
        let md5 = match &key {
            IntegrityKey::Md5(key) => key.clone(),
            IntegrityKey::Sha256(key) => {
                terms.get_or_insert_default().sha256 = Some(key.clone());
                [0; 16].into()
            }
        };
        Self { terms, time_limited, names: Names::new(username, identity), md5 }
    }

    /// The key that every request on the allocation is checked with. [8656-6-2, -3]
    #[must_use]
    pub fn key(&self) -> IntegrityKey {
        match self.sha256_key() {
            Some(key) => IntegrityKey::Sha256(key.clone()),
            None => IntegrityKey::Md5(self.md5.clone()),
        }
    }

    /// That key if it is a SHA-256 one.
    pub(super) fn sha256_key(&self) -> Option<&KeyBytes<32>> {
        self.terms.as_ref()?.sha256.as_ref()
    }

    /// The full USERNAME; another one is answered with 441.
    #[must_use]
    pub fn username(&self) -> &str {
        self.names.part(0, self.names.username_len)
    }

    /// The user that quotas count for.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.names.part(self.names.identity_at, self.names.identity_len)
    }

    fn terms_mut(&mut self) -> &mut Terms {
        self.terms.get_or_insert_default()
    }

    pub(super) fn tenant(&self) -> Option<&str> {
        self.terms.as_ref()?.tenant.as_deref()
    }

    /// The realm that the key was made with, if it is not the server's own.
    pub(super) fn realm(&self) -> Option<&str> {
        self.terms.as_ref()?.realm.as_deref()
    }

    pub(super) fn grant(&self) -> Option<&Grant> {
        Some(&self.terms.as_ref()?.grant)
    }

    /// The user that the allocation counts for.
    pub(super) fn claim<'a>(&'a self, via: &Via) -> QuotaClaim<'a> {
        self.claim_from(via.five_tuple().client.ip())
    }

    /// The same, counted where the client was when it was admitted.
    pub(super) fn claim_from(&self, client: IpAddr) -> QuotaClaim<'_> {
        QuotaClaim {
            subject: self.subject(),
            realm: self.realm(),
            expires_at: self.time_limited.as_ref().map(|limit| UnixSeconds(limit.expires_at)),
            grant: self.grant(),
            client,
        }
    }

    /// Who that is, to those who shut people out.
    pub(super) fn subject(&self) -> SessionSubject<'_> {
        SessionSubject { username: self.username(), user: self.identity(), tenant: self.tenant() }
    }

    /// Who may bring a RESERVATION-TOKEN of his: a static user is another than a credential's of the same name.
    pub(super) fn full_identity(&self) -> Box<str> {
        let (kind, realm) = match &self.time_limited {
            Some(_) => ("t", None),
            None => ("s", self.realm()),
        };
        let (between, realm) = realm.map_or(("", ""), |realm| ("\0", realm));
        format!("{kind}{}\0{}{between}{realm}", self.tenant().unwrap_or_default(), self.identity()).into()
    }

    pub(super) fn counted(&self) -> Counted {
        self.terms.as_ref().map(|terms| terms.counted).unwrap_or_default()
    }

    /// The quotas let it in.
    pub(super) fn admitted(&mut self, admitted: Admitted) {
        if admitted.counted != Counted::default() || !admitted.meters.is_empty() {
            let terms = self.terms_mut();
            terms.counted = admitted.counted;
            terms.meters = admitted.meters;
        }
    }

    /// What its packets pass.
    pub(super) fn meters(&self) -> Meters {
        self.terms.as_ref().map(|terms| terms.meters.clone()).unwrap_or_default()
    }

    /// The meter that is its own.
    pub(super) fn own_meter(&self) -> Option<&Meter> {
        Some(self.terms.as_ref()?.meters.own()?)
    }

    /// What its packets pass from now on.
    pub(super) fn set_meters(&mut self, meters: Meters) {
        if self.terms.is_some() || !meters.is_empty() {
            self.terms_mut().meters = meters;
        }
    }

    /// When it ends in any case, and why.
    #[inline]
    pub(super) fn closing(&self) -> Option<(Ticks, EndReason)> {
        self.terms.as_ref().map(|terms| (terms.closes_at, terms.closes_for))
    }

    /// It ends then at the latest.
    pub(super) fn close_at(&mut self, at: Ticks, why: EndReason) {
        let terms = self.terms_mut();
        (terms.closes_at, terms.closes_for) = (at, why);
    }

    /// Finds out when it ends in any case.
    pub(super) fn plan_close(&mut self, auth: &AuthSettings, created_at: Ticks, now: Now) {
        let ticks_of =
            |unix: u64| Ticks(now.ticks.0.saturating_add(unix.saturating_sub(now.unix.0).saturating_mul(1000)));
        let of_credential = match (auth.on_expiry, &self.time_limited) {
            (OnExpiry::Close { grace }, Some(limit)) => Some(ticks_of(limit.expires_at.saturating_add(grace))),
            (OnExpiry::Keep | OnExpiry::DenyNew, _) | (OnExpiry::Close { .. }, None) => None,
        };
        let of_claim = self.grant().and_then(|grant| grant.closes_at).map(ticks_of);
        let of_age = auth.max_session.map(|seconds| created_at.plus_seconds(seconds));
        let ends = [
            (of_claim, EndReason::ClosingTime),
            (of_credential, EndReason::CredentialExpired),
            (of_age, EndReason::MaxSession),
        ];
        let first = ends.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|(at, _)| *at);
        // A spent budget stays spent.
        let is_spent = self.closing().is_some_and(|(_, why)| why == EndReason::Budget);
        match first {
            _ if is_spent => {}
            Some((at, why)) => self.close_at(at, why),
            None if self.terms.is_some() => self.close_at(NEVER, EndReason::MaxSession),
            None => {}
        }
    }

    /// Whether a session would be closed for its credential's expiry at once.
    pub(super) fn is_over(&self, auth: &AuthSettings, now: Now) -> bool {
        let OnExpiry::Close { grace } = auth.on_expiry else { return false };
        self.time_limited.as_ref().is_some_and(|limit| limit.expires_at.saturating_add(grace) <= now.unix.0)
    }

    /// Whether the credential's time is over, with the tolerance for clocks that differ.
    pub(super) fn has_expired(&self, now: UnixSeconds) -> bool {
        self.time_limited.as_ref().is_some_and(|limit| limit.expires_at.saturating_add(EXPIRY_SKEW_SECONDS) < now.0)
    }

    /// What the credential leaves of the class that the policy found an address to be; `None` if nothing.
    pub(super) fn narrow(&self, ip: IpAddr, class: PeerClass) -> Option<PeerClass> {
        let Some(grant) = self.grant() else { return Some(class) };
        grant.peers.iter().try_fold(class, |class, scope| match (scope, class) {
            (PeerScope::Prefixes(prefixes), _) => prefixes.iter().any(|prefix| prefix.contains(&ip)).then_some(class),
            (PeerScope::Relay, PeerClass::Remote) => None,
            // As an own address it passes to ports only that are relayed ports at that moment.
            (PeerScope::Relay, PeerClass::Own | PeerClass::Local) => Some(PeerClass::Own),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_inside_the_username_is_not_kept_twice() {
        for (username, identity, kept) in [
            ("1800000000:bob", "bob", 14),
            ("1800000000:bob~a=5", "bob", 18),
            ("bob", "bob", 3),
            ("1800000000", "1800000000", 10),
            ("bob", "", 3),
            ("", "bob", 3),
            ("1800000000:bob", "eve", 17),
            ("1800000000:žluť", "žluť", 17),
        ] {
            let names = Owner::new(username, identity, IntegrityKey::from_md5([1; 16]), None, None);
            assert_eq!((names.username(), names.identity(), names.names.text.len()), (username, identity, kept));
        }
        let names = Owner::new(&"x".repeat(70_000), "bob", IntegrityKey::from_md5([1; 16]), None, None);
        assert_eq!((names.username(), names.identity()), ("", ""), "without an owner");
    }
}
