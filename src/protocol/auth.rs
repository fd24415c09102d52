//! The long-term credential mechanism (RFC 8489 section 9.2.4): a request, or why not.
//!
//! [`Authenticated`] can be had from [`authenticate`] alone, so a handler that takes one can't be
//! reached without a verified MESSAGE-INTEGRITY. No state is made for anybody here.

use std::borrow::Cow;

use super::allocation::Allocation;
use super::authenticated::AuthenticatedClient;
use super::nonce::{Nonces, Offer, Verdict};
use super::owner::{Owner, Terms, TimeLimit};
use super::reject::RejectReason;
use super::settings::{Realm, Settings, StaticKey};
use crate::address::Via;
use crate::credentials;
use crate::credentials::SecretId;
use crate::credentials::claims::Grant;
use crate::time::{Now, UnixSeconds};
use crate::wire::integrity::{
    INTEGRITY_SHA256_BYTES, IntegrityKey, PASSWORD_ALGORITHMS, PasswordAlgorithm, ReplyIntegrity, ReplyKey,
    USERHASH_BYTES, userhash,
};
use crate::wire::message::{Known, Message};

/// A request whose integrity and NONCE were verified.
#[derive(Debug)]
pub(super) struct Authenticated<'m> {
    message: &'m Message<'m>,
    key: ReplyKey,
    username: Cow<'m, str>,
    proof: Proof,
}

/// What the key was found in.
#[derive(Debug, Clone, PartialEq)]
enum Proof {
    /// The allocation of this five-tuple, whose owner this is.
    Owner,
    /// `auth.users`; the name there, if the client has another form of it.
    Static(Option<Box<str>>, Option<Box<Terms>>),
    /// One of `auth.secrets`.
    TimeLimited { secret: SecretId, expires_at: u64, user_id: Box<str>, terms: Option<Box<Terms>> },
}

/// A refusal on the way to [`Authenticated`], with the key if the request was verified.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: RejectReason,
    pub(super) key: Option<ReplyKey>,
    /// Whether it had a nonce that this five-tuple was given, so that its source is no forged one.
    pub(super) has_own_nonce: bool,
    /// The secret that the request was genuine under, by its place in the list, and the credential's expiry.
    pub(super) of: Option<(usize, u64)>,
}

impl Refused {
    /// Whether it proves no key, while a nonce proves its source: it may be a guess.
    ///
    /// What is signed with a right key is none, whatever is wrong with it besides; nor is a wrong realm, for which no key is
    /// tried.
    pub(super) const fn is_failure(&self) -> bool {
        self.has_own_nonce && matches!(self.reason, RejectReason::UnknownUser | RejectReason::BadIntegrity)
    }
}

impl From<RejectReason> for Refused {
    fn from(reason: RejectReason) -> Self {
        Self { reason, key: None, has_own_nonce: false, of: None }
    }
}

/// What is kept of a realm that is not the server's own, a tenant and a grant; nothing if they say nothing.
fn terms(realm: Realm<'_>, tenant: Option<&str>, grant: &Grant) -> Option<Box<Terms>> {
    let (realm, tenant) = (realm.other.map(Into::into), tenant.map(Into::into));
    (realm.is_some() || tenant.is_some() || !grant.is_unlimited())
        .then(|| Box::new(Terms { realm, tenant, grant: grant.clone(), ..Terms::default() }))
}

/// The realm that a client belongs to: that of its allocation, which it keeps, else that of the listener that it came by.
pub(super) fn realm_of<'a>(settings: &'a Settings, via: &Via, owner: Option<&'a Owner>) -> Realm<'a> {
    settings.realm(match owner {
        Some(owner) => owner.realm(),
        None => settings.tenancies.of(via.five_tuple()).and_then(|of| of.realm.as_deref()),
    })
}

/// Who sends a request.
pub(super) struct Client<'a> {
    /// How it came.
    pub(super) via: &'a Via,
    /// The allocation that it is about: of this five-tuple, or of the connection that it wants to bind.
    pub(super) allocation: Option<&'a Allocation>,
    /// The client of the connection that it wants to bind, whose nonce is as good as its own.
    pub(super) nonce_of: Option<Via>,
}

impl Client<'_> {
    /// Whether a nonce was minted for this client. Who binds a connection may use the nonce of the allocation's client, which
    /// it is (RFC 6062 section 4.4).
    fn check_nonce(&self, nonces: &Nonces, now: UnixSeconds, lifetime: u64, nonce: &[u8]) -> (Verdict, Offer) {
        let checked = nonces.check(now, lifetime, self.via.five_tuple(), nonce);
        match self.nonce_of {
            Some(via) if checked.0 == Verdict::Foreign => nonces.check(now, lifetime, via.five_tuple(), nonce),
            Some(_) | None => checked,
        }
    }
}

/// Checks a request in the RFC's order. [8656-5-1, 8656-7.2-2]
pub(super) fn authenticate<'m>(
    message: &'m Message<'m>,
    client: &Client<'_>,
    settings: &Settings,
    nonces: &Nonces,
    now: Now,
) -> Result<Authenticated<'m>, Refused> {
    // RFC 8489 §9.2.4 (1): no integrity, so the client learns realm and nonce. [8489-9.2.4-2]
    if !message.has_integrity() {
        return Err(RejectReason::Challenge.into());
    }
    // (2): integrity without the attributes that it needs. [8489-9.2.4-9]
    let (Some(realm), Some(nonce)) = (message.get(Known::Realm), message.get(Known::Nonce)) else {
        return Err(RejectReason::IncompleteCredentials.into());
    };
    // RFC 8489 §14.6 leaves it to the usage to let the MAC be cut short, and TURN does not. [8489-14.6-1]
    if message.get(Known::MessageIntegritySha256).is_some_and(|mac| mac.len() != INTEGRITY_SHA256_BYTES) {
        return Err(RejectReason::BadAttribute.into());
    }
    let owner = client.allocation.map(|allocation| &allocation.owner);
    let own_realm = realm_of(settings, client.via, owner);
    let username = claimed_name(message, realm, owner, own_realm)?;
    // A nonce that we never gave to this address costs a guess nothing, so nothing is spent on it: no key, and no
    // MAC over the message. Its 438 is not signed (RFC 8489 §9.2.4); see decision 0160.
    let (nonce, offer) = client.check_nonce(nonces, now.unix, settings.auth.nonce_lifetime, nonce);
    if nonce == Verdict::Foreign {
        return Err(RejectReason::StaleNonce.into());
    }
    let own_nonce = |refused: Refused| Refused { has_own_nonce: true, ..refused };
    // (3): the algorithms, by the offer that came with this very nonce. [8489-9.2.4-11]
    let (algorithm, integrity) = chosen(message, offer).map_err(|reason| own_nonce(reason.into()))?;
    // (4): a name that no user has. [8489-9.2.4-12]
    let username = username.ok_or_else(|| own_nonce(RejectReason::UnknownUser.into()))?;
    // (5): the integrity, with the owner's key as long as the allocation lives: rotation, reload and
    // expiry never drop a call. The same user with another key, after a change of password, is as genuine as
    // anybody; what follows is RFC 8656's to say (sections 5 and 7.2).
    let of_owner = owner.filter(|owner| owner.username() == username).map(Owner::key);
    let tenant = settings.tenancies.of(client.via.five_tuple()).and_then(|of| of.tenant.as_deref());
    let claim = Claim { message, username: &username, realm, algorithm, of_owner, own_realm, tenant };
    let (key, proof) = match claim.of_owner.as_ref().filter(|key| claim.is_made_with(key)) {
        Some(key) => (key.clone(), Proof::Owner),
        None => find_key(&claim, settings, now).map_err(|refused| {
            let sign = |key| ReplyKey { key, integrity };
            own_nonce(Refused { key: refused.key.map(sign), ..refused.why })
        })?,
    };
    let key = ReplyKey { key, integrity };
    // (6): whether it is too old comes last, so that a stranger without the key learns nothing from it.
    // [8489-9.2.4-20]
    if nonce == Verdict::Old {
        return Err(own_nonce(Refused { key: Some(key), ..RejectReason::StaleNonce.into() }));
    }
    Ok(Authenticated { message, key, username, proof })
}

/// The name that a request claims, by USERNAME or by USERHASH; `None` if it can't be anybody's.
// [8489-14.3-1, -2, 8489-14.4-1]
fn claimed_name<'m>(
    message: &'m Message<'m>,
    realm: &[u8],
    owner: Option<&Owner>,
    own_realm: Realm<'_>,
) -> Result<Option<Cow<'m, str>>, RejectReason> {
    match (message.get(Known::Username), message.get(Known::Userhash)) {
        (None, None) => Err(RejectReason::IncompleteCredentials),
        (Some(_), Some(_)) => Err(RejectReason::Combination),
        (Some(username), None) => {
            let username = std::str::from_utf8(username).ok();
            Ok(username.filter(|username| username.len() <= credentials::USERNAME_BYTES_MAX).map(Cow::Borrowed))
        }
        (None, Some(hash)) => {
            let hash: &[u8; USERHASH_BYTES] = hash.try_into().map_err(|_| RejectReason::BadAttribute)?;
            // The owner's too, so that a user who is no longer known can go on.
            let of_owner = owner.map(Owner::username).filter(|name| userhash(name.as_bytes(), realm) == *hash);
            Ok(of_owner.or_else(|| own_realm.name_behind(hash)).map(|name| Cow::Owned(name.to_owned())))
        }
    }
}

/// The algorithm of the key, and what the answer is signed with (RFC 8489 section 9.2.4).
///
/// A client that chose an algorithm should not prove itself by MESSAGE-INTEGRITY (section 9.2.5). Some do, and look for the
/// same in the answer: they get both.
// [8489-9.2.4-11, -25, -26]
fn chosen(message: &Message<'_>, offer: Offer) -> Result<(PasswordAlgorithm, ReplyIntegrity), RejectReason> {
    let one = message.get(Known::PasswordAlgorithm);
    match (one.map(PasswordAlgorithm::from_value), message.get(Known::PasswordAlgorithms)) {
        (None, None) => Ok((PasswordAlgorithm::Md5, ReplyIntegrity::Sha1)),
        (Some(Some(algorithm)), Some(all)) if offer != Offer::Plain && all == PASSWORD_ALGORITHMS => {
            let is_sha256 = message.has(Known::MessageIntegritySha256);
            Ok((algorithm, if is_sha256 { ReplyIntegrity::Sha256 } else { ReplyIntegrity::Both }))
        }
        _ => Err(RejectReason::PasswordAlgorithms),
    }
}

/// Who a request says that it is from, and how it is proven.
struct Claim<'a> {
    message: &'a Message<'a>,
    username: &'a str,
    realm: &'a [u8],
    algorithm: PasswordAlgorithm,
    /// The key of the allocation whose owner has this name.
    of_owner: Option<IntegrityKey>,
    /// The one that the client belongs to, whatever REALM says.
    own_realm: Realm<'a>,
    /// That of the listener that the client came by.
    tenant: Option<&'a str>,
}

/// The key that a request was made with.
struct FoundKey {
    key: IntegrityKey,
    /// It is made of the owner's password, by the other algorithm.
    is_owners: bool,
}

impl Claim<'_> {
    fn is_made_with(&self, key: &IntegrityKey) -> bool {
        key.algorithm() == self.algorithm && key.verifies(self.message)
    }

    /// The key of a password if it is the right one: as both were given first, then as clients compare them.
    fn by_password(&self, password: &[u8], opaque: Option<&[u8]>) -> Option<FoundKey> {
        let given = (self.realm, password);
        let compared = (self.own_realm.opaque_name().map_or(self.realm, str::as_bytes), opaque.unwrap_or(password));
        [Some(given), (compared != given).then_some(compared)].into_iter().flatten().find_map(|(realm, password)| {
            let by = |algorithm| IntegrityKey::by(algorithm, self.username.as_bytes(), realm, password);
            let key = Some(by(self.algorithm)).filter(|key| key.verifies(self.message))?;
            let is_owners = self.of_owner.as_ref().is_some_and(|owner| *owner == by(owner.algorithm()));
            Some(FoundKey { key, is_owners })
        })
    }

    /// What is kept of who has this key. A session belongs to the tenant of its listener, and a credential of another one is
    /// no good there.
    fn settle(
        &self,
        key: IntegrityKey,
        tenant: Option<&str>,
        grant: &Grant,
    ) -> Result<(IntegrityKey, Option<Box<Terms>>), NotFound> {
        match (self.tenant, tenant) {
            (Some(listener), Some(own)) if listener != own => {
                Err(NotFound { why: RejectReason::OtherTenant.into(), key: Some(key) })
            }
            (listener, own) => Ok((key, terms(self.own_realm, own.or(listener), grant))),
        }
    }

    /// As [`Claim::by_password`], by keys that were made elsewhere.
    fn by_keys(&self, md5: &[u8], sha256: Option<&[u8]>) -> Option<FoundKey> {
        let md5 = md5.try_into().ok().map(IntegrityKey::from_md5);
        let sha256 = sha256.and_then(|key| key.try_into().ok()).map(IntegrityKey::from_sha256);
        let (key, other) = match self.algorithm {
            PasswordAlgorithm::Md5 => (md5, sha256),
            PasswordAlgorithm::Sha256 => (sha256, md5),
        };
        let key = key.filter(|key| key.verifies(self.message))?;
        Some(FoundKey { key, is_owners: other.is_some() && other == self.of_owner })
    }
}

/// Why no key was found; with one if the request was genuine all the same.
struct NotFound {
    why: Refused,
    key: Option<IntegrityKey>,
}

impl From<RejectReason> for NotFound {
    fn from(reason: RejectReason) -> Self {
        Self { why: reason.into(), key: None }
    }
}

/// Static users first, by name; then `digits[:id]` under each secret.
// [8489-9.2.4-12, -17]
fn find_key(claim: &Claim<'_>, settings: &Settings, now: Now) -> Result<(IntegrityKey, Proof), NotFound> {
    let auth = &settings.auth;
    if !claim.own_realm.is(claim.realm) {
        return Err(RejectReason::WrongRealm.into());
    }
    if let Some((name, user)) = claim.own_realm.static_user(claim.username) {
        let found = match &user.key {
            StaticKey::Password { given, opaque } => {
                claim.by_password(given.expose(), opaque.as_ref().map(credentials::Secret::expose))
            }
            StaticKey::Keys { md5, sha256 } => {
                claim.by_keys(md5.expose(), sha256.as_ref().map(credentials::Secret::expose))
            }
        };
        let FoundKey { key, is_owners } = found.ok_or(RejectReason::BadIntegrity)?;
        if is_owners {
            return Ok((key, Proof::Owner));
        }
        let other_name = (name != claim.username).then(|| name.into());
        let (key, terms) = claim.settle(key, user.tenant.as_deref(), &user.grant)?;
        return Ok((key, Proof::Static(other_name, terms)));
    }
    let mut found = None;
    let verified = credentials::verify_by(&auth.secrets, now.unix.0, auth.max_ttl, claim.username, |secret| {
        let password = credentials::password(secret, claim.username.as_bytes());
        found = claim.by_password(password.as_bytes(), None);
        found.is_some()
    });
    let good = verified.map_err(|(refused, secret)| {
        let at = secret.and_then(|secret| auth.secrets.iter().position(|other| std::ptr::eq(other, secret)));
        let end = credentials::parse_username(claim.username).map(|parts| parts.expires_at);
        // A client with the right key may learn that its password is not the reason: any other answer than 401 is signed.
        let reason = RejectReason::from(refused);
        let key = found.take().map(|found| found.key).filter(|_| reason.code() != RejectReason::BadIntegrity.code());
        NotFound { why: Refused { of: at.zip(end), ..reason.into() }, key }
    })?;
    let FoundKey { key, is_owners } = found.ok_or(RejectReason::BadIntegrity)?;
    if is_owners {
        return Ok((key, Proof::Owner));
    }
    let (key, terms) = claim.settle(key, good.holder.tenant.as_deref(), &good.holder.grant).map_err(|refused| {
        let at = auth.secrets.iter().position(|other| std::ptr::eq(other, good.secret));
        let of = at.map(|at| (at, good.expires_at));
        NotFound { why: Refused { of, ..refused.why }, ..refused }
    })?;
    let secret = good.secret.id.clone();
    let user_id = good.holder.user_id.into();
    Ok((key, Proof::TimeLimited { secret, expires_at: good.expires_at, user_id, terms }))
}

impl<'m> Authenticated<'m> {
    pub(super) const fn message(&self) -> &'m Message<'m> {
        self.message
    }

    /// What the answer is signed with.
    pub(super) const fn key(&self) -> &ReplyKey {
        &self.key
    }

    /// Whether the key was the one of this five-tuple's allocation.
    pub(super) fn is_owner(&self) -> bool {
        self.proof == Proof::Owner
    }

    /// The user that quotas count for: the user id; if empty, the whole USERNAME; static users by name.
    fn identity(&self) -> &str {
        match &self.proof {
            Proof::TimeLimited { user_id, .. } if !user_id.is_empty() => user_id,
            Proof::Static(Some(name), _) => name,
            Proof::TimeLimited { .. } | Proof::Owner | Proof::Static(None, _) => &self.username,
        }
    }

    /// What is noted of somebody who is let in.
    pub(super) fn note(&self) -> AuthenticatedClient<'_> {
        match &self.proof {
            Proof::TimeLimited { secret, expires_at, .. } => {
                AuthenticatedClient { secret: Some(secret), expires_at: Some(UnixSeconds(*expires_at)), refused: None }
            }
            Proof::Owner | Proof::Static(..) => AuthenticatedClient { secret: None, expires_at: None, refused: None },
        }
    }

    /// What a new allocation keeps of its owner.
    pub(super) fn owner(&self) -> Owner {
        let (time_limited, terms) = match &self.proof {
            Proof::TimeLimited { secret, expires_at, terms, .. } => {
                (Some(TimeLimit { secret: secret.clone(), expires_at: *expires_at }), terms.clone())
            }
            Proof::Static(_, terms) => (None, terms.clone()),
            Proof::Owner => (None, None),
        };
        Owner::new(&self.username, self.identity(), self.key.key.clone(), time_limited, terms)
    }
}
