//! Why an admin call did nothing: in one word for programs, in one sentence for people.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

/// A call that was not done, or not wholly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminRefused {
    /// A Host that is not answered.
    Host,
    /// No token is configured, and this is no unix socket.
    NotSetUp,
    /// Nothing says who asks.
    NoToken,
    /// The token is another one.
    WrongToken,
    /// Wrong tokens come too often from there; seconds until the next is an ordinary failure.
    RateFailures(u64),
    /// A user of this machine who may not.
    WrongUser,
    /// The path has another method; which.
    Method(&'static str),
    /// What changes something must say that it is JSON.
    ContentType,
    /// What was asked makes no sense.
    BadRequest(Cow<'static, str>),
    /// The body is too long.
    TooLarge,
    /// The body came too slowly.
    Slow,
    /// Nothing has that name.
    NotFound(Cow<'static, str>),
    /// There is no room for another revocation, or for the limits of one more subject.
    Full(String),
    /// It holds, but is not on disk.
    NotSaved(String),
    /// The configuration is wrong, and the old one stays.
    BadConfig(String),
    /// No credential for a test can be made.
    NoCredential(&'static str),
    /// A worker does not answer, or the server is about to stop.
    Busy(Cow<'static, str>),
}

impl AdminRefused {
    /// The reasons in the order of their numbers.
    pub const NAMES: [&'static str; 17] = [
        "host",
        "not_set_up",
        "no_token",
        "wrong_token",
        "wrong_user",
        "method",
        "content_type",
        "bad_request",
        "too_large",
        "slow",
        "not_found",
        "full",
        "not_saved",
        "bad_config",
        "busy",
        "rate_failures",
        "no_credential",
    ];

    const fn number(&self) -> usize {
        match self {
            Self::Host => 0,
            Self::NotSetUp => 1,
            Self::NoToken => 2,
            Self::WrongToken => 3,
            Self::WrongUser => 4,
            Self::Method(_) => 5,
            Self::ContentType => 6,
            Self::BadRequest(_) => 7,
            Self::TooLarge => 8,
            Self::Slow => 9,
            Self::NotFound(_) => 10,
            Self::Full(_) => 11,
            Self::NotSaved(_) => 12,
            Self::BadConfig(_) => 13,
            Self::Busy(_) => 14,
            Self::RateFailures(_) => 15,
            Self::NoCredential(_) => 16,
        }
    }

    /// The machine-readable reason.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        Self::NAMES[self.number()]
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Host | Self::NotSetUp | Self::WrongUser => StatusCode::FORBIDDEN,
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::RateFailures(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadConfig(_) | Self::NoCredential(_) => StatusCode::CONFLICT,
            Self::NotSaved(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Full(_) | Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What is wrong and what to do about it.
    #[must_use]
    pub fn sentence(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Host => "this Host is not allowed; use 127.0.0.1 or localhost, or list the name in http.hosts",
            Self::NotSetUp => {
                "the admin API is closed over TCP without a token: set http.admin_token_file, or serve http.listen on a unix socket"
            }
            Self::NoToken => {
                "a token is needed: send Authorization: Bearer TOKEN, with the token in http.admin_token_file"
            }
            Self::WrongToken => "this is not the token in http.admin_token_file",
            Self::RateFailures(_) => "too many wrong tokens from this address; the right one still works",
            Self::WrongUser => {
                "this user needs a token: ask as root or as the server's user, or list the user's id in http.admin_uids"
            }
            Self::Method(allowed) => return Cow::Owned(format!("this path is for {allowed}")),
            Self::ContentType => "a request that changes something needs Content-Type: application/json",
            Self::NoCredential(sentence) => sentence,
            Self::TooLarge => "the body is too long",
            Self::Slow => "the request took too long",
            Self::BadRequest(sentence) | Self::NotFound(sentence) | Self::Busy(sentence) => return sentence.clone(),
            Self::Full(sentence) | Self::NotSaved(sentence) | Self::BadConfig(sentence) => {
                return Cow::Owned(sentence.clone());
            }
        })
    }

    pub(super) fn into_response(self) -> Response {
        REFUSED[self.number()].fetch_add(1, Ordering::Relaxed);
        let body = json!({ "error": self.sentence(), "reason": self.name() });
        let mut answer = super::respond(self.status(), &body);
        if let Self::Method(allowed) = self {
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        if let Self::Busy(_) = self {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if let Self::RateFailures(seconds) = self {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer.into_response()
    }
}

static REFUSED: [AtomicU64; AdminRefused::NAMES.len()] = [const { AtomicU64::new(0) }; AdminRefused::NAMES.len()];

/// Every reason with how often it was one.
pub fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    AdminRefused::NAMES.into_iter().zip(REFUSED.iter().map(|count| count.load(Ordering::Relaxed)))
}
