//! The long-term credential mechanism (RFC 8489 section 9.2.4): a request, or why not.
//!
//! [`Authenticated`] can be had from [`authenticate`] alone, so a handler that takes one can't be
//! reached without a verified MESSAGE-INTEGRITY. No state is made for anybody here.

use super::allocation::Allocation;
use super::authenticated::AuthenticatedClient;
use super::nonce::{Nonces, Verdict};
use super::owner::{Owner, Terms, TimeLimit};
use super::reject::RejectReason;
use super::settings::{Settings, StaticKey};
use crate::address::Via;
use crate::credentials;
use crate::credentials::SecretId;
use crate::credentials::claims::Grant;
use crate::time::{Now, UnixSeconds};
use crate::wire::integrity::IntegrityKey;
use crate::wire::message::{Known, Message};

/// A request whose MESSAGE-INTEGRITY and NONCE were verified.
#[derive(Debug)]
pub(super) struct Authenticated<'m> {
    message: &'m Message<'m>,
    key: IntegrityKey,
    username: &'m str,
    proof: Proof<'m>,
}

/// What the key was found in.
#[derive(Debug, Clone, PartialEq)]
enum Proof<'m> {
    /// The allocation of this five-tuple, whose owner this is.
    Owner,
    /// `auth.users`.
    Static(Option<Box<Terms>>),
    /// One of `auth.secrets`.
    TimeLimited { secret: SecretId, expires_at: u64, user_id: &'m str, terms: Option<Box<Terms>> },
}

/// A refusal on the way to [`Authenticated`], with the key if the request was verified.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: RejectReason,
    pub(super) key: Option<IntegrityKey>,
    /// Whether it had a nonce that this five-tuple was given, so that its source is no forged one.
    pub(super) has_own_nonce: bool,
    /// The secret that the request was genuine under, by its place in the list, and the credential's expiry.
    pub(super) of: Option<(usize, u64)>,
}

impl From<RejectReason> for Refused {
    fn from(reason: RejectReason) -> Self {
        Self { reason, key: None, has_own_nonce: false, of: None }
    }
}

/// What is kept of a tenant and a grant; nothing if they say nothing.
fn terms(tenant: Option<&str>, grant: &Grant) -> Option<Box<Terms>> {
    (tenant.is_some() || !grant.is_unlimited())
        .then(|| Box::new(Terms { tenant: tenant.map(Into::into), grant: grant.clone(), ..Terms::default() }))
}

/// Checks a request in the RFC's order. [8656-5-1, 8656-7.2-2]
pub(super) fn authenticate<'m>(
    message: &'m Message<'m>,
    via: &Via,
    allocation: Option<&Allocation>,
    settings: &Settings,
    nonces: &Nonces,
    now: Now,
) -> Result<Authenticated<'m>, Refused> {
    // RFC 8489 §9.2.4 (1): no MESSAGE-INTEGRITY, so the client learns realm and nonce. [8489-9.2.4-2]
    if !message.has(Known::MessageIntegrity) {
        return Err(RejectReason::Challenge.into());
    }
    // (2): integrity without the attributes that it needs. [8489-9.2.4-9]
    let (Some(username), Some(realm), Some(nonce)) =
        (message.get(Known::Username), message.get(Known::Realm), message.get(Known::Nonce))
    else {
        return Err(RejectReason::IncompleteCredentials.into());
    };
    // (3): a USERNAME that can't be anybody's. [8489-9.2.4-12, 8489-14.3-1, -2]
    let username = std::str::from_utf8(username)
        .ok()
        .filter(|username| username.len() <= credentials::USERNAME_BYTES_MAX)
        .ok_or(RejectReason::UnknownUser)?;
    // A nonce that we never gave to this address costs a guess nothing, so nothing is spent on it: no key, and no
    // MAC over the message. Its 438 is not signed (RFC 8489 §9.2.4); see decision 0160.
    let nonce = nonces.check(now.unix, settings.auth.nonce_lifetime, via.five_tuple(), nonce);
    if nonce == Verdict::Foreign {
        return Err(RejectReason::StaleNonce.into());
    }
    // (4): MESSAGE-INTEGRITY, with the owner's key as long as the allocation lives: rotation, reload and
    // expiry never drop a call. The same user with another key, after a change of password, is as genuine as
    // anybody; what follows is RFC 8656's to say (sections 5 and 7.2).
    let of_owner = allocation.filter(|allocation| allocation.owner.username() == username);
    let (key, proof) = match of_owner.map(|allocation| &allocation.owner.key).filter(|key| key.verifies(message)) {
        Some(key) => (key.clone(), Proof::Owner),
        None => find_key(message, username, realm, settings, now)
            .map_err(|refused| Refused { has_own_nonce: true, ..refused })?,
    };
    // (5): whether it is too old comes last, so that a stranger without the key learns nothing from it.
    // [8489-9.2.4-20]
    if nonce == Verdict::Old {
        let key = Some(key);
        return Err(Refused { key, has_own_nonce: true, ..RejectReason::StaleNonce.into() });
    }
    Ok(Authenticated { message, key, username, proof })
}

/// Static users first, by exact name; then `digits[:id]` under each secret.
// [8489-9.2.4-12, -17]
fn find_key<'m>(
    message: &Message<'_>,
    username: &'m str,
    realm: &[u8],
    settings: &Settings,
    now: Now,
) -> Result<(IntegrityKey, Proof<'m>), Refused> {
    if realm != settings.realm.as_bytes() {
        return Err(RejectReason::WrongRealm.into());
    }
    let key_of = |password: &[u8]| IntegrityKey::long_term(username.as_bytes(), realm, password);
    if let Some(user) = settings.auth.users.get(username) {
        let key = match &user.key {
            StaticKey::Password(password) => key_of(password.expose()),
            StaticKey::KeyMd5(key) => {
                IntegrityKey::from_md5(key.expose().try_into().map_err(|_| RejectReason::UnknownUser)?)
            }
        };
        if !key.verifies(message) {
            return Err(RejectReason::BadIntegrity.into());
        }
        return Ok((key, Proof::Static(terms(user.tenant.as_deref(), &user.grant))));
    }
    let mut found = None;
    let secrets = &settings.auth.secrets;
    let verified = credentials::verify_by(secrets, now.unix.0, settings.auth.max_ttl, username, |secret| {
        let key = key_of(credentials::password(secret, username.as_bytes()).as_bytes());
        let fits = key.verifies(message);
        found = fits.then_some(key);
        fits
    });
    let good = verified.map_err(|(refused, secret)| {
        let at = secret.and_then(|secret| secrets.iter().position(|other| std::ptr::eq(other, secret)));
        let end = credentials::parse_username(username).map(|parts| parts.expires_at);
        // A client with the right key may learn that its password is not the reason: any other answer than 401 is signed.
        let reason = RejectReason::from(refused);
        let key = found.clone().filter(|_| reason.code() != RejectReason::BadIntegrity.code());
        Refused { key, of: at.zip(end), ..reason.into() }
    })?;
    let terms = terms(good.holder.tenant.as_deref(), &good.holder.grant);
    let secret = good.secret.id.clone();
    let proof = Proof::TimeLimited { secret, expires_at: good.expires_at, user_id: good.holder.user_id, terms };
    Ok((found.ok_or(RejectReason::BadIntegrity)?, proof))
}

impl<'m> Authenticated<'m> {
    pub(super) const fn message(&self) -> &'m Message<'m> {
        self.message
    }

    pub(super) const fn key(&self) -> &IntegrityKey {
        &self.key
    }

    /// Whether the key was the one of this five-tuple's allocation.
    pub(super) fn is_owner(&self) -> bool {
        self.proof == Proof::Owner
    }

    /// The user that quotas count for: the user id; if empty, the whole USERNAME; static users by name.
    const fn identity(&self) -> &'m str {
        match self.proof {
            Proof::TimeLimited { user_id, .. } if !user_id.is_empty() => user_id,
            Proof::TimeLimited { .. } | Proof::Owner | Proof::Static(_) => self.username,
        }
    }

    /// What is noted of somebody who is let in.
    pub(super) fn note(&self) -> AuthenticatedClient<'_> {
        match &self.proof {
            Proof::TimeLimited { secret, expires_at, .. } => {
                AuthenticatedClient { secret: Some(secret), expires_at: Some(UnixSeconds(*expires_at)), refused: None }
            }
            Proof::Owner | Proof::Static(_) => AuthenticatedClient { secret: None, expires_at: None, refused: None },
        }
    }

    /// What a new allocation keeps of its owner.
    pub(super) fn owner(&self) -> Owner {
        let (time_limited, terms) = match &self.proof {
            Proof::TimeLimited { secret, expires_at, terms, .. } => {
                (Some(TimeLimit { secret: secret.clone(), expires_at: *expires_at }), terms.clone())
            }
            Proof::Static(terms) => (None, terms.clone()),
            Proof::Owner => (None, None),
        };
        Owner::new(self.username, self.identity(), self.key.clone(), time_limited, terms)
    }
}
