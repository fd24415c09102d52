//! Time-limited credentials: mint them, take them apart, say why one is refused.
//!
//! The scheme is the one of draft-uberti-behave-turn-rest-00: `username = expiry ":" userid`,
//! `password = base64(HMAC(secret, username))`. Pure: no clock, no I/O, and nothing here
//! allocates on the way that `protocol::auth` takes. Called by `protocol::auth`, the command
//! line and the demo.

pub mod claims;
pub mod limits;
pub mod published;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use self::claims::{CLAIMS_BYTES_MAX, Claim, ClaimSet, Claims, ClaimsRefused, Grant, SEPARATOR};

/// How far a credential may be past its expiry, in seconds: clocks of two machines differ.
pub const EXPIRY_SKEW_SECONDS: u64 = 30;

/// The longest USERNAME that STUN carries, in bytes (RFC 8489 section 14.3: fewer than 509).
pub const USERNAME_BYTES_MAX: usize = 508;

/// The longest password text: base64 of an HMAC-SHA512.
pub const PASSWORD_BYTES_MAX: usize = 88;

/// Bytes that must not be seen: they never print and are wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for those who compute with them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The hash under a secret's HMAC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Algorithm {
    /// What every TURN server and issuer speaks.
    #[default]
    Sha1,
    /// HMAC-SHA256.
    Sha256,
    /// HMAC-SHA512.
    Sha512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha512];

    /// The name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// A secret's name: one text for all that was let in with it, and one pointer in each of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretId(Arc<Box<str>>);

impl std::ops::Deref for SecretId {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Box<str>>> From<T> for SecretId {
    fn from(text: T) -> Self {
        Self(Arc::new(text.into()))
    }
}

impl fmt::Debug for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl<C> minicbor::Encode<C> for SecretId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(self)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for SecretId {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.str().map(Self::from)
    }
}

/// A secret shared with those who issue credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSecret {
    /// Its name in logs and metrics; whatever was let in with it shares the text.
    pub id: SecretId,
    /// The key of the HMAC.
    pub value: Secret,
    /// The hash of the HMAC.
    pub algorithm: Algorithm,
    /// Whose users its credentials are for.
    pub tenant: Option<Box<str>>,
    /// What is read of claims inside its credentials.
    pub claims: ClaimSet,
    /// What each of its credentials may at most.
    pub grant: Grant,
    /// From then on nothing new is let in with it, in seconds since 1970.
    pub not_after: Option<u64>,
    /// It is being retired, or another issuer's: nothing is minted with it here.
    pub verify_only: bool,
}

impl SharedSecret {
    /// A secret without further rules.
    #[must_use]
    pub fn new(id: impl Into<SecretId>, value: Secret, algorithm: Algorithm) -> Self {
        Self {
            id: id.into(),
            value,
            algorithm,
            tenant: None,
            claims: ClaimSet::default(),
            grant: Grant::default(),
            not_after: None,
            verify_only: false,
        }
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_retired(&self, now: u64) -> bool {
        self.not_after.is_some_and(|end| now >= end)
    }

    /// Takes the user id of a username of this secret's apart, and says whose it is and what it may.
    ///
    /// # Errors
    /// [`CredentialRefused::BadClaims`] if it carries claims that are not understood to the last.
    pub fn read<'a>(&self, user_id: &'a str) -> Result<Holder<'a>, CredentialRefused> {
        let (user_id, claims) = match user_id.split_once(SEPARATOR).filter(|_| self.claims.is_read()) {
            Some((id, text)) => (id, Claims::decode(text, self.claims).map_err(CredentialRefused::BadClaims)?),
            None => (user_id, Claims::default()),
        };
        let tenant = claims.tenant.or_else(|| self.tenant.clone());
        Ok(Holder { user_id, tenant, grant: self.grant.narrowed_by(&claims.grant) })
    }
}

/// The secret that mints at this time, of those that are neither for verifying only nor over: the first; for a tenant the
/// first of that tenant, else the first that reads the tenant from the credential.
#[must_use]
pub fn minting<'a>(secrets: &'a [SharedSecret], now: u64, tenant: Option<&str>) -> Option<&'a SharedSecret> {
    let able = || secrets.iter().filter(|secret| !secret.verify_only && !secret.is_retired(now));
    let of_tenant = tenant.and_then(|tenant| {
        let own = able().find(|secret| secret.tenant.as_deref() == Some(tenant));
        own.or_else(|| able().find(|secret| secret.claims.has(Claim::Tenant)))
    });
    of_tenant.or_else(|| able().next())
}

/// The holder of a credential and their rights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder<'a> {
    /// The user id, without claims.
    pub user_id: &'a str,
    /// Whose user it is.
    pub tenant: Option<Box<str>>,
    /// What the secret allows, narrowed by the claims.
    pub grant: Grant,
}

/// A password's text on the stack: derived for each request, so it must not cost an allocation.
#[derive(Clone)]
pub struct Password {
    bytes: [u8; PASSWORD_BYTES_MAX],
    len: usize,
}

impl Password {
    /// The base64 text, which is itself the password.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The base64 text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // base64 is ASCII; an empty text could only come from a broken encoder
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl Drop for Password {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The password that belongs to a username under a secret: the MAC covers the raw bytes received.
// [8489-9.2-3]
#[must_use]
pub fn password(secret: &SharedSecret, username: &[u8]) -> Password {
    fn mac<M: Mac + KeyInit>(key: &[u8], username: &[u8]) -> Password {
        // HMAC takes keys of any length (RFC 2104 section 3), so this cannot fail.
        let mut mac = <M as KeyInit>::new_from_slice(key).expect("an HMAC takes a key of any length");
        mac.update(username);
        let digest = mac.finalize().into_bytes();
        let mut bytes = [0; PASSWORD_BYTES_MAX];
        let len = BASE64.encode_slice(digest.as_slice(), &mut bytes).expect("88 bytes hold the longest digest");
        Password { bytes, len }
    }
    let key = secret.value.expose();
    match secret.algorithm {
        Algorithm::Sha1 => mac::<Hmac<Sha1>>(key, username),
        Algorithm::Sha256 => mac::<Hmac<Sha256>>(key, username),
        Algorithm::Sha512 => mac::<Hmac<Sha512>>(key, username),
    }
}

/// A username of the time-limited form, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeLimited<'a> {
    /// Expiry, seconds since 1970.
    pub expires_at: u64,
    /// The user id, with claims if there are any; empty when the username is the expiry alone.
    pub user_id: &'a str,
}

/// Takes `expiry[:userid]` apart: split at the first colon, only if all before it are digits.
///
/// The id is everything after that colon, further colons included.
#[must_use]
pub fn parse_username(username: &str) -> Option<TimeLimited<'_>> {
    let (digits, user_id) = username.split_once(':').unwrap_or((username, ""));
    // Eleven digits last until the year 5138; more could only be a mistake or an attack on arithmetic.
    if digits.is_empty() || digits.len() > 11 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(TimeLimited { expires_at: digits.parse().ok()?, user_id })
}

/// Why a credential is refused, in the words that logs, metrics and `credentials verify` share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CredentialRefused {
    /// Its time is over.
    Expired {
        /// By so many seconds.
        seconds: u64,
    },
    /// It would be valid for longer than `auth.max_ttl` allows.
    TooFarAhead {
        /// By so many seconds more than allowed.
        seconds: u64,
    },
    /// No static user has this name and it is not of the time-limited form, or no secret is configured.
    UnknownUser,
    /// The password, or the MESSAGE-INTEGRITY made with it, fits no secret.
    BadIntegrity,
    /// It fits a secret whose `not_after` is over.
    SecretRetired,
    /// It carries claims that are not understood to the last.
    BadClaims(ClaimsRefused),
}

impl CredentialRefused {
    /// The machine-readable reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired",
            Self::TooFarAhead { .. } => "too_far_ahead",
            Self::UnknownUser => "unknown_user",
            Self::BadIntegrity => "bad_integrity",
            Self::SecretRetired => "secret_retired",
            Self::BadClaims(_) => "bad_claims",
        }
    }
}

impl fmt::Display for CredentialRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { seconds } => write!(
                f,
                "expired: the credential ended {seconds} s ago; mint a new one, and compare the clocks of issuer and relay if it is fresh"
            ),
            Self::TooFarAhead { seconds } => write!(
                f,
                "too_far_ahead: the credential ends {seconds} s later than auth.max_ttl allows; mint it with a shorter lifetime or raise auth.max_ttl"
            ),
            Self::UnknownUser => f.write_str(
                "unknown_user: no entry of auth.users has this name, and it is not EXPIRY or EXPIRY:USERID under a configured secret",
            ),
            Self::BadIntegrity => {
                f.write_str("bad_integrity: no configured secret makes this password; compare the secret and the algorithm, and look for a trailing newline")
            }
            Self::SecretRetired => f.write_str(
                "secret_retired: the secret that it was minted with is past its not_after; mint it with a newer one",
            ),
            Self::BadClaims(why) => write!(f, "bad_claims: {why}"),
        }
    }
}

/// Checks an expiry time against the clock.
///
/// # Errors
/// [`CredentialRefused::Expired`] past the expiry and [`EXPIRY_SKEW_SECONDS`];
/// [`CredentialRefused::TooFarAhead`] when it lies more than `max_ttl` and the skew ahead.
pub fn check_expiry(expires_at: u64, now: u64, max_ttl: u64) -> Result<(), CredentialRefused> {
    if expires_at.saturating_add(EXPIRY_SKEW_SECONDS) < now {
        return Err(CredentialRefused::Expired { seconds: now - expires_at });
    }
    let latest = now.saturating_add(max_ttl).saturating_add(EXPIRY_SKEW_SECONDS);
    if expires_at > latest {
        return Err(CredentialRefused::TooFarAhead { seconds: expires_at - latest });
    }
    Ok(())
}

/// A freshly minted credential.
#[derive(Clone, PartialEq, Eq)]
pub struct Minted {
    /// `expiry:userid`, or the expiry alone for an empty user id.
    pub username: String,
    /// base64 of the HMAC.
    pub password: String,
    /// Seconds since 1970.
    pub expires_at: u64,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minted").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Why nothing was minted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MintRefused {
    /// `~` would begin claims under a secret that reads them, now or later.
    #[error("a user id must not contain \"{SEPARATOR}\": limits inside credentials begin with it")]
    Separator,
    /// The username would not fit into a STUN attribute.
    #[error("the username, expiry and claims included, has at most {USERNAME_BYTES_MAX} bytes")]
    TooLong,
    /// The claims take the room of the user id.
    #[error("the limits take more than {CLAIMS_BYTES_MAX} bytes of the username; name fewer prefixes")]
    ClaimsTooLong,
    /// The secret would not read the claim.
    #[error("the secret does not read the claim \"{name}\"; add \"{name}\" to the list `claims` in its table of auth.secrets (`claims = true` reads all but \"tenant\")", name = .0.name())]
    NotRead(Claim),
}

/// Mints a credential that ends `ttl` seconds after `now`, with these claims.
///
/// # Errors
/// [`MintRefused`] if this server would not take it, or not as it is meant.
pub fn mint(secret: &SharedSecret, now: u64, user_id: &str, ttl: u64, claims: &Claims) -> Result<Minted, MintRefused> {
    if user_id.contains(SEPARATOR) {
        return Err(MintRefused::Separator);
    }
    if let Some(claim) = claims.named().find(|claim| !secret.claims.has(*claim)) {
        return Err(MintRefused::NotRead(claim));
    }
    let expires_at = now.saturating_add(ttl);
    let mut username = expires_at.to_string();
    if !user_id.is_empty() || !claims.is_empty() {
        username.push(':');
        username.push_str(user_id);
    }
    if !claims.is_empty() && secret.claims.is_read() {
        let text = claims.encode();
        if text.len() > CLAIMS_BYTES_MAX {
            return Err(MintRefused::ClaimsTooLong);
        }
        username.push(SEPARATOR);
        username.push_str(&text);
    }
    if username.len() > USERNAME_BYTES_MAX {
        return Err(MintRefused::TooLong);
    }
    let password = password(secret, username.as_bytes()).as_str().to_owned();
    Ok(Minted { username, password, expires_at })
}

/// A credential that was found to be good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified<'s, 'u> {
    /// Which secret it was minted with.
    pub secret: &'s SharedSecret,
    /// The holder and their rights.
    pub holder: Holder<'u>,
    /// Seconds since 1970.
    pub expires_at: u64,
}

/// Finds the secret under which a username and a password belong together.
///
/// # Errors
/// The first reason that stands against it: form, then integrity, then time, then claims.
pub fn verify<'s, 'u>(
    secrets: &'s [SharedSecret],
    now: u64,
    max_ttl: u64,
    username: &'u str,
    given: &[u8],
) -> Result<Verified<'s, 'u>, CredentialRefused> {
    verify_by(secrets, now, max_ttl, username, |secret| {
        password(secret, username.as_bytes()).as_bytes().ct_eq(given).into()
    })
    .map_err(|(refused, _)| refused)
}

/// The same, for callers that compare something else than the password; an error names the secret if one fits.
///
/// # Errors
/// As [`verify`].
pub fn verify_by<'s, 'u>(
    secrets: &'s [SharedSecret],
    now: u64,
    max_ttl: u64,
    username: &'u str,
    mut fits: impl FnMut(&SharedSecret) -> bool,
) -> Result<Verified<'s, 'u>, (CredentialRefused, Option<&'s SharedSecret>)> {
    let parts = parse_username(username).filter(|_| !secrets.is_empty());
    let parts = parts.ok_or((CredentialRefused::UnknownUser, None))?;
    let secret = secrets.iter().find(|secret| fits(secret)).ok_or((CredentialRefused::BadIntegrity, None))?;
    let of_secret = |refused| (refused, Some(secret));
    if secret.is_retired(now) {
        return Err(of_secret(CredentialRefused::SecretRetired));
    }
    check_expiry(parts.expires_at, now, max_ttl).map_err(of_secret)?;
    let holder = secret.read(parts.user_id).map_err(of_secret)?;
    Ok(Verified { secret, holder, expires_at: parts.expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: &str, algorithm: Algorithm) -> SharedSecret {
        SharedSecret::new("test", Secret::new(value.as_bytes()), algorithm)
    }

    #[test]
    fn password_agrees_with_vectors_computed_elsewhere() {
        let rows = [
            (
                "north",
                "1700000000:alice",
                "Cd/49soE35ICqcJF/bCTn8Z4OyE=",
                "EuME0Xh0HllnbpbObfs8aBsd78Vr1EMwxArqbyCrGl8=",
            ),
            ("north", "1700000000", "CWyHi3zCeWqXBir9thl4m+iZPRY=", "bPm3umkFB1D/6To/diuRJFJIGuru3Y0PaHdhRgDLads="),
            (
                "north",
                "1700000000:a:b:c",
                "nFNiVS0A+K+NHbcg7S42/AS3o54=",
                "0pTk1Ef1XoNetmWwoL9C6KLIu4TCxIKQBq7Hof0WBsM=",
            ),
            ("nörth", "1700000000:zoë", "bWWabYnK60WqTg4N5eGv0XbBqqg=", "PUomgQH8ZiCB2nMJgpKGuJz6+LzcTDan6acDh5A9aWA="),
            (
                "north",
                "alice:1700000000",
                "fEiXa12G7lWCrwAwGzZRSDXRJfQ=",
                "hFDgHEA96xZWuJqzhqfx52QPd9cy5u31bYcDJ7VIofo=",
            ),
        ];
        for (value, username, sha1, sha256) in rows {
            assert_eq!(password(&secret(value, Algorithm::Sha1), username.as_bytes()).as_str(), sha1);
            assert_eq!(password(&secret(value, Algorithm::Sha256), username.as_bytes()).as_str(), sha256);
        }
    }

    #[test]
    fn username_splits_at_the_first_colon_and_only_after_digits() {
        let parts = |expires_at, user_id| Some(TimeLimited { expires_at, user_id });
        assert_eq!(parse_username("1700000000:alice"), parts(1_700_000_000, "alice"));
        assert_eq!(parse_username("1700000000:a:b:c"), parts(1_700_000_000, "a:b:c"));
        assert_eq!(parse_username("1700000000"), parts(1_700_000_000, ""));
        assert_eq!(parse_username("1700000000:"), parts(1_700_000_000, ""));
        for other in [
            "alice",
            "alice:1700000000",
            "futurex:alice",
            "",
            ":alice",
            "+17:alice",
            "-1:a",
            "123456789012:a",
            "１７:a",
        ] {
            assert_eq!(parse_username(other), None, "{other:?}");
        }
    }

    #[test]
    fn expiry_is_judged_with_thirty_seconds_of_skew_on_both_sides() {
        assert_eq!(check_expiry(970, 1000, 100), Ok(()));
        assert_eq!(check_expiry(969, 1000, 100), Err(CredentialRefused::Expired { seconds: 31 }));
        assert_eq!(check_expiry(1130, 1000, 100), Ok(()));
        assert_eq!(check_expiry(1131, 1000, 100), Err(CredentialRefused::TooFarAhead { seconds: 1 }));
    }

    #[test]
    fn minted_credentials_verify_under_the_secret_that_minted_them() {
        let secrets = [secret("old", Algorithm::Sha512), secret("north", Algorithm::Sha256)];
        let minted = mint(&secrets[1], 1000, "bob", 60, &Claims::default()).unwrap();
        assert_eq!(minted.username, "1060:bob");
        let check = |now, password: &str| {
            verify(&secrets, now, 3600, &minted.username, password.as_bytes()).map(|good| good.secret.algorithm)
        };
        assert_eq!(check(1000, &minted.password), Ok(Algorithm::Sha256));
        assert_eq!(check(1000, "wrong"), Err(CredentialRefused::BadIntegrity));
        assert_eq!(check(2000, &minted.password), Err(CredentialRefused::Expired { seconds: 940 }));
        assert_eq!(mint(&secrets[0], 5, "", 5, &Claims::default()).unwrap().username, "10");
    }

    #[test]
    fn claims_are_read_under_a_secret_that_says_so_and_only_narrow() {
        let claims = Claims { grant: Grant { bytes: Some(700), ..Grant::default() }, ..Claims::default() };
        let mut reading = secret("north", Algorithm::Sha1);
        reading.claims = ClaimSet::LIMITS;
        reading.tenant = Some("acme".into());
        reading.grant = Grant { bytes: Some(500), allocations: Some(2), ..Grant::default() };
        let minted = mint(&reading, 1000, "bob", 60, &claims).unwrap();
        let text = format!("1060:bob~{}", claims.encode());
        assert_eq!(minted.username, text);
        let secrets = [reading.clone()];
        let good = verify(&secrets, 1000, 3600, &text, minted.password.as_bytes()).unwrap();
        assert_eq!((good.holder.user_id, good.holder.tenant.as_deref()), ("bob", Some("acme")));
        assert_eq!((good.holder.grant.bytes, good.holder.grant.allocations), (Some(500), Some(2)));
        let deaf = [secret("north", Algorithm::Sha1)];
        let good = verify(&deaf, 1000, 3600, &text, minted.password.as_bytes()).unwrap();
        assert_eq!((good.holder.user_id, &good.holder.grant), (&text[5..], &Grant::default()), "~ is a character");
        assert_eq!(mint(&deaf[0], 1000, "bob", 60, &claims), Err(MintRefused::NotRead(Claim::Bytes)));
        let unknown = "1060:bob~e30x";
        let given = password(&reading, unknown.as_bytes());
        let refused = verify(&secrets, 1000, 3600, unknown, given.as_bytes()).unwrap_err();
        assert_eq!(refused, CredentialRefused::BadClaims(ClaimsRefused::Unknown));
        assert_eq!(refused.reason(), "bad_claims");
    }

    #[test]
    fn nothing_is_minted_that_would_be_read_otherwise_or_not_at_all() {
        let plain = secret("north", Algorithm::Sha1);
        let none = Claims::default();
        assert_eq!(mint(&plain, 0, "bob~e30", 1, &none), Err(MintRefused::Separator));
        assert!(mint(&plain, 0, &"x".repeat(506), 1, &none).is_ok());
        assert_eq!(mint(&plain, 0, &"x".repeat(507), 1, &none), Err(MintRefused::TooLong));
        let mut reading = secret("north", Algorithm::Sha1);
        reading.claims = ClaimSet::LIMITS;
        let prefixes = (0..40_u8).map(|n| ipnet::IpNet::from(std::net::IpAddr::from([10, 0, 0, n]))).collect();
        let grant = Grant { peers: vec![claims::PeerScope::Prefixes(prefixes)], ..Grant::default() };
        let long = Claims { grant, ..none };
        assert_eq!(mint(&reading, 0, "bob", 1, &long), Err(MintRefused::ClaimsTooLong));
    }

    #[test]
    fn a_retired_secret_lets_nobody_in_and_one_for_verifying_mints_nothing() {
        let mut old = secret("old", Algorithm::Sha1);
        old.not_after = Some(1000);
        let mut new = secret("new", Algorithm::Sha1);
        new.verify_only = true;
        let minted = mint(&old, 990, "bob", 60, &Claims::default()).unwrap();
        let secrets = [new, old];
        let check = |now| verify(&secrets, now, 3600, &minted.username, minted.password.as_bytes()).map(|_| ());
        assert_eq!((check(999), check(1000)), (Ok(()), Err(CredentialRefused::SecretRetired)));
        assert_eq!(minting(&secrets, 999, None).map(|secret| secret.value.expose()), Some(&b"old"[..]));
        assert_eq!(minting(&secrets, 1000, None), None);
    }

    #[test]
    fn a_tenants_own_secret_mints_before_one_that_reads_tenants_before_the_first() {
        let of = |id: &str, tenant: Option<&str>| SharedSecret {
            tenant: tenant.map(Into::into),
            ..secret(id, Algorithm::Sha1)
        };
        let mut reading = of("reads", None);
        reading.claims = ClaimSet::of(&[Claim::Tenant]);
        let mut secrets = vec![of("a", Some("a")), reading, of("b", Some("b"))];
        let minter = |secrets: &[SharedSecret], tenant| minting(secrets, 0, tenant).unwrap().value.expose().to_vec();
        assert_eq!(minter(&secrets, None), b"a");
        assert_eq!(minter(&secrets, Some("a")), b"a");
        assert_eq!(minter(&secrets, Some("b")), b"b");
        assert_eq!(minter(&secrets, Some("c")), b"reads");
        secrets.remove(1);
        assert_eq!(minter(&secrets, Some("c")), b"a", "which then is refused, with the secret's name");
    }

    #[test]
    fn secrets_do_not_print() {
        let minted = mint(&secret("north", Algorithm::Sha1), 0, "bob", 1, &Claims::default()).unwrap();
        let text = format!("{:?} {:?}", secret("north", Algorithm::Sha1), minted);
        assert!(!text.contains("north") && !text.contains(&minted.password), "{text}");
    }
}
