//! Who gets credentials over HTTP, and which: the checked form.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::credentials::claims::Grant;
use crate::fetch::{Authorities, Url};
use crate::jwt;

/// The part of `[http]` that says who may ask for credentials. A reload takes it over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IssuingConfig {
    /// `http.keys`.
    pub keys: Vec<ApiKey>,
    /// `http.unix_uids`.
    pub unix_uids: Vec<u32>,
    /// `http.proxies`.
    pub proxies: Vec<IpNet>,
    /// `http.identity_header`, in lower case; never without proxies.
    pub identity_header: Option<Box<str>>,
    /// `http.jwt_keys` and what a token must say.
    pub jwt: Option<JwtConfig>,
    /// `http.cors`: origins as browsers write them.
    pub cors: Vec<Box<str>>,
    /// `http.ttl`, in seconds.
    pub ttl: u64,
    /// `http.public_name`: a host name or an address.
    pub public_name: Option<Box<str>>,
    /// `limits.credentials_per_key`, a minute.
    pub per_key: Option<u32>,
    /// `limits.credentials_per_user`, a minute.
    pub per_user: Option<u32>,
}

/// Whose tokens are believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwtConfig {
    /// Where the keys come from that check them.
    pub source: KeySource,
    /// What a token must say.
    pub expected: jwt::Expected,
}

/// `http.jwt_keys`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// What is in a file: at least one.
    File(Vec<jwt::Key>),
    /// What is fetched.
    Url(KeyUrl),
}

impl KeySource {
    /// For `check-config`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::File(keys) => format!("{} keys of a file", keys.len()),
            Self::Url(from) => format!("the keys of {}", from.url),
        }
    }
}

/// Where keys are fetched from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyUrl {
    /// `https`, or this machine.
    pub url: Url,
    /// `http.jwt_ca_file`: whom it must be certified by, in place of those that the system trusts.
    pub authorities: Option<Authorities>,
}

/// Sixteen keys of 8192 bits have less.
pub const JWKS_BYTES_MAX: u64 = 64 * 1024;

/// One of `http.keys`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiKey {
    /// Its name in logs and metrics.
    pub name: Box<str>,
    /// The SHA-256 of the key: whoever reads the configuration can't ask with it.
    pub sha256: [u8; 32],
    /// The longest lifetime it may ask for, in seconds; `auth.max_ttl` holds besides.
    pub max_ttl: Option<u64>,
    /// Where it may be used from; empty: anywhere.
    pub from: Vec<IpNet>,
    /// Whose users its credentials are for.
    pub tenant: Option<Box<str>>,
    /// What its credentials carry at least; only what a credential can carry.
    pub grant: Grant,
}

impl ApiKey {
    /// Whether it may be used from this address; a unix socket is this machine.
    #[must_use]
    pub fn is_good_from(&self, address: Option<IpAddr>) -> bool {
        self.from.is_empty() || address.is_some_and(|address| self.from.iter().any(|net| net.contains(&address)))
    }
}

impl IssuingConfig {
    /// Whether anybody may ask over a listener that everybody reaches.
    #[must_use]
    pub fn serves_strangers(&self) -> bool {
        !self.keys.is_empty() || self.identity_header.is_some() || self.jwt.is_some()
    }

    /// Whether anybody may ask at all.
    #[must_use]
    pub fn serves_anybody(&self) -> bool {
        self.serves_strangers() || !self.unix_uids.is_empty()
    }
}
