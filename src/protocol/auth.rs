//! The long-term credential mechanism (RFC 8489 section 9.2.4): a request, or why not.
//!
//! [`Authenticated`] can be had from [`authenticate`] alone, so a handler that takes one can't be
//! reached without a verified MESSAGE-INTEGRITY. No state is made for anybody here.

use super::address::Via;
use super::allocation::{Allocation, Owner, TimeLimit};
use super::nonce::Nonces;
use super::reject::RejectReason;
use super::settings::{Settings, StaticUser};
use super::time::Now;
use crate::credentials;
use crate::wire::integrity::Key;
use crate::wire::message::{Known, Message};

/// A request whose MESSAGE-INTEGRITY and NONCE were verified.
#[derive(Debug)]
pub(super) struct Authenticated<'m> {
    message: &'m Message<'m>,
    key: Key,
    username: &'m str,
    proof: Proof<'m>,
}

/// What the key was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof<'m> {
    /// The allocation of this five-tuple, whose owner this is.
    Owner,
    /// `auth.users`.
    Static,
    /// One of `auth.secrets`.
    TimeLimited { secret: usize, expires_at: u64, user_id: &'m str },
}

/// A refusal on the way to [`Authenticated`], with the key if the request was verified.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: RejectReason,
    pub(super) key: Option<Key>,
}

impl From<RejectReason> for Refused {
    fn from(reason: RejectReason) -> Self {
        Self { reason, key: None }
    }
}

/// Checks a request in the RFC's order.
pub(super) fn authenticate<'m>(
    message: &'m Message<'m>,
    via: &Via,
    allocation: Option<&Allocation>,
    settings: &Settings,
    nonces: &Nonces,
    now: Now,
) -> Result<Authenticated<'m>, Refused> {
    // RFC 8489 §9.2.4 (1): no MESSAGE-INTEGRITY, so the client learns realm and nonce.
    if !message.has(Known::MessageIntegrity) {
        return Err(RejectReason::Challenge.into());
    }
    // (2): integrity without the attributes that it needs.
    let (Some(username), Some(realm), Some(nonce)) =
        (message.get(Known::Username), message.get(Known::Realm), message.get(Known::Nonce))
    else {
        return Err(RejectReason::IncompleteCredentials.into());
    };
    // (3): a USERNAME that can't be anybody's.
    let username = std::str::from_utf8(username)
        .ok()
        .filter(|username| username.len() <= credentials::USERNAME_BYTES_MAX)
        .ok_or(RejectReason::UnknownUser)?;
    // (4): MESSAGE-INTEGRITY, with the owner's key as long as the allocation lives: rotation, reload and
    // expiry never drop a call.
    let (key, proof) = match allocation.filter(|allocation| *allocation.owner.username == *username) {
        Some(allocation) if allocation.owner.key.verifies(message) => (allocation.owner.key.clone(), Proof::Owner),
        Some(_) => return Err(RejectReason::BadIntegrity.into()),
        None => find_key(message, username, realm, settings, now)?,
    };
    // (5): the nonce, last, so that whoever holds no key learns nothing from it.
    if !nonces.is_fresh(now.unix, settings.auth.nonce_lifetime, via.five_tuple(), nonce) {
        return Err(Refused { reason: RejectReason::StaleNonce, key: Some(key) });
    }
    Ok(Authenticated { message, key, username, proof })
}

/// Static users first, by exact name; then `digits[:id]` under each secret.
fn find_key<'m>(
    message: &Message<'_>,
    username: &'m str,
    realm: &[u8],
    settings: &Settings,
    now: Now,
) -> Result<(Key, Proof<'m>), RejectReason> {
    if realm != settings.realm.as_bytes() {
        return Err(RejectReason::WrongRealm);
    }
    let key_of = |password: &[u8]| Key::long_term(username.as_bytes(), realm, password);
    if let Some(user) = settings.auth.users.get(username) {
        let key = match user {
            StaticUser::Password(password) => key_of(password.expose()),
            StaticUser::KeyMd5(key) => Key::from_md5(key.expose().try_into().map_err(|_| RejectReason::UnknownUser)?),
        };
        return if key.verifies(message) { Ok((key, Proof::Static)) } else { Err(RejectReason::BadIntegrity) };
    }
    let parts = credentials::parse_username(username).ok_or(RejectReason::UnknownUser)?;
    if settings.auth.secrets.is_empty() {
        return Err(RejectReason::UnknownUser);
    }
    credentials::check_expiry(parts.expires_at, now.unix.0, settings.auth.max_ttl)?;
    for (index, secret) in settings.auth.secrets.iter().enumerate() {
        let key = key_of(credentials::password(secret, username.as_bytes()).as_bytes());
        if key.verifies(message) {
            let proof = Proof::TimeLimited { secret: index, expires_at: parts.expires_at, user_id: parts.user_id };
            return Ok((key, proof));
        }
    }
    Err(RejectReason::BadIntegrity)
}

impl<'m> Authenticated<'m> {
    pub(super) const fn message(&self) -> &'m Message<'m> {
        self.message
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    /// Whether the key was the one of this five-tuple's allocation.
    pub(super) fn is_owner(&self) -> bool {
        self.proof == Proof::Owner
    }

    /// Whom quotas count for: the user id; if empty, the whole USERNAME; static users by name.
    pub(super) const fn identity(&self) -> &'m str {
        match self.proof {
            Proof::TimeLimited { user_id, .. } if !user_id.is_empty() => user_id,
            Proof::TimeLimited { .. } | Proof::Owner | Proof::Static => self.username,
        }
    }

    /// Whether the user's own allocations are limited.
    pub(super) const fn is_time_limited(&self) -> bool {
        matches!(self.proof, Proof::TimeLimited { .. })
    }

    /// What a new allocation keeps of its owner.
    pub(super) fn owner(&self, settings: &Settings) -> Owner {
        Owner {
            username: self.username.into(),
            identity: self.identity().into(),
            key: self.key.clone(),
            time_limited: match self.proof {
                Proof::TimeLimited { secret, expires_at, .. } => {
                    settings.auth.secrets.get(secret).map(|secret| TimeLimit { secret: secret.id.clone(), expires_at })
                }
                Proof::Owner | Proof::Static => None,
            },
        }
    }
}
