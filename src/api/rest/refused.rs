//! Why a credential was refused: one word for logs and metrics, one sentence for the caller.

use std::borrow::Cow;

use axum::http::StatusCode;

/// A request that got no credential.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IssueRefused {
    /// The configuration has no way to authenticate callers.
    NoMethod,
    /// Nothing says who asks.
    NoKey,
    /// No key is this one.
    WrongKey,
    /// The token is not good; the sentence says why.
    BadToken(&'static str),
    /// The key is right, but not from there.
    Address,
    /// A Host that is not answered.
    Host,
    /// A web page of an origin that is not listed.
    Origin,
    /// Neither GET nor POST, or not the one that this shape has.
    Method,
    /// What was asked makes no sense; the sentence says what.
    BadRequest(&'static str),
    /// The request has a member that means nothing; the sentence names it, and those that mean something.
    UnknownMember(Cow<'static, str>),
    /// The user id can't be part of a username, or is not the caller's to name.
    BadUser(&'static str),
    /// The body is too long.
    TooLarge,
    /// The body came too slowly.
    Slow,
    /// No listener has an address that clients could reach.
    NoServers,
    /// The caller's rate is used up; seconds until the next.
    RateKey(u64),
    /// The user's rate is used up; seconds until the next.
    RateUser(u64),
    /// Wrong keys or tokens come too often from there; seconds until the next is an ordinary failure.
    RateFailures(u64),
    /// The system gave no random numbers.
    NoRandom,
    /// The keys that check tokens have not come yet.
    NoTokenKeys,
    /// The user, or the user's tenant, is revoked.
    Revoked,
    /// A credential could not be revoked, or not for long; the sentence says why.
    NotRevoked(&'static str),
}

impl IssueRefused {
    /// One of each, in the order of their numbers.
    pub const ALL: [Self; 21] = [
        Self::NoMethod,
        Self::NoKey,
        Self::WrongKey,
        Self::BadToken(""),
        Self::Address,
        Self::Host,
        Self::Origin,
        Self::Method,
        Self::BadRequest(""),
        Self::BadUser(""),
        Self::TooLarge,
        Self::Slow,
        Self::NoServers,
        Self::RateKey(0),
        Self::RateUser(0),
        Self::NoRandom,
        Self::NoTokenKeys,
        Self::Revoked,
        Self::UnknownMember(Cow::Borrowed("")),
        Self::RateFailures(0),
        Self::NotRevoked(""),
    ];

    /// Its place among [`Self::ALL`].
    #[must_use]
    pub const fn number(&self) -> usize {
        match self {
            Self::NoMethod => 0,
            Self::NoKey => 1,
            Self::WrongKey => 2,
            Self::BadToken(_) => 3,
            Self::Address => 4,
            Self::Host => 5,
            Self::Origin => 6,
            Self::Method => 7,
            Self::BadRequest(_) => 8,
            Self::BadUser(_) => 9,
            Self::TooLarge => 10,
            Self::Slow => 11,
            Self::NoServers => 12,
            Self::RateKey(_) => 13,
            Self::RateUser(_) => 14,
            Self::NoRandom => 15,
            Self::NoTokenKeys => 16,
            Self::Revoked => 17,
            Self::UnknownMember(_) => 18,
            Self::RateFailures(_) => 19,
            Self::NotRevoked(_) => 20,
        }
    }

    /// The machine-readable reason.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoMethod => "no_method",
            Self::NoKey => "no_key",
            Self::WrongKey => "wrong_key",
            Self::BadToken(_) => "bad_token",
            Self::Address => "address",
            Self::Host => "host",
            Self::Origin => "origin",
            Self::Method => "method",
            Self::BadRequest(_) => "bad_request",
            Self::BadUser(_) => "bad_user",
            Self::TooLarge => "too_large",
            Self::Slow => "slow",
            Self::NoServers => "no_servers",
            Self::RateKey(_) => "rate_key",
            Self::RateUser(_) => "rate_user",
            Self::NoRandom => "no_random",
            Self::NoTokenKeys => "no_token_keys",
            Self::Revoked => "revoked",
            Self::UnknownMember(_) => "unknown_member",
            Self::RateFailures(_) => "rate_failures",
            Self::NotRevoked(_) => "not_revoked",
        }
    }

    /// The status; a shape may have its own for some.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::NoKey | Self::WrongKey | Self::BadToken(_) => StatusCode::UNAUTHORIZED,
            Self::NoMethod | Self::Address | Self::Host | Self::Origin | Self::Revoked => StatusCode::FORBIDDEN,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest(_) | Self::UnknownMember(_) | Self::BadUser(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::NoServers => StatusCode::NOT_FOUND,
            Self::RateKey(_) | Self::RateUser(_) | Self::RateFailures(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoRandom | Self::NoTokenKeys | Self::NotRevoked(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What is wrong and what to do about it.
    #[must_use]
    pub fn sentence(&self) -> &str {
        match self {
            Self::NoMethod => {
                "this server gives no credentials yet: add [[http.keys]] to its configuration, or http.jwt_keys, http.unix_uids or http.identity_header"
            }
            Self::NoKey => "an API key is needed: send Authorization: Bearer KEY",
            Self::WrongKey => "this API key is not known",
            Self::Address => "this API key is not allowed from this address",
            Self::Host => "this Host is not allowed; use 127.0.0.1 or localhost, or list the name in http.hosts",
            Self::Origin => "this origin is not allowed; list it in http.cors",
            Self::Method => "this path does not support this method",
            Self::BadToken(sentence)
            | Self::BadRequest(sentence)
            | Self::BadUser(sentence)
            | Self::NotRevoked(sentence) => sentence,
            Self::UnknownMember(sentence) => sentence,
            Self::TooLarge => "the body is too long",
            Self::Slow => "the request took too long",
            Self::NoServers => {
                "no listener has an address that clients could reach; set http.public_name or relay.external"
            }
            Self::RateKey(_) => "too many credentials in a minute for this API key",
            Self::RateUser(_) => "too many credentials in a minute for this user",
            Self::RateFailures(_) => "too many wrong API keys or tokens from this address; a right one still works",
            Self::NoRandom => "the system gives no random numbers for a user id; give a user id",
            Self::NoTokenKeys => "the keys that check tokens can't be fetched at the moment; ask again",
            Self::Revoked => "the user, or the user's tenant, was revoked by an operator",
        }
    }

    /// Whether the caller gave a key or a token, and a wrong one.
    pub(super) const fn is_failed_login(&self) -> bool {
        matches!(self, Self::WrongKey | Self::BadToken(_))
    }

    /// After how many seconds it is worth asking again.
    #[must_use]
    pub const fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateKey(seconds) | Self::RateUser(seconds) | Self::RateFailures(seconds) => Some(*seconds),
            Self::NoTokenKeys => Some(30),
            Self::NoMethod
            | Self::NoKey
            | Self::WrongKey
            | Self::BadToken(_)
            | Self::Address
            | Self::Host
            | Self::Origin
            | Self::Method
            | Self::BadRequest(_)
            | Self::UnknownMember(_)
            | Self::BadUser(_)
            | Self::TooLarge
            | Self::Slow
            | Self::NoServers
            | Self::NoRandom
            | Self::Revoked
            | Self::NotRevoked(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_list() {
        for (at, refused) in IssueRefused::ALL.iter().enumerate() {
            assert_eq!(refused.number(), at, "{refused:?}");
        }
    }
}
