//! The part of `[http]` about credentials: which callers get them, and for which users. No message here shows a key.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::config::auth::hex;
use crate::config::check::{Check, Table, problem};
use crate::config::diff::digest_of;
use crate::config::document::{Node, Value};
use crate::config::initial_secret::is_world_readable;
use crate::config::units::DURATION;
use crate::credentials::SharedSecret;
use crate::credentials::claims::{Claim, Claims, Grant};
use crate::credentials::published::published;
use crate::fetch::{Authorities, Url, masked};
use crate::files;
use crate::jwt;
use crate::protocol::settings::AuthSettings;

/// Each is compared with what a stranger presents, in constant time.
const KEYS_MAX: usize = 256;

/// Names that logs and metrics give to callers without a key.
const RESERVED: [&str; 3] = ["jwt", "proxy", "unix"];

/// Which callers may ask for credentials. A reload takes it over.
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
    /// `http.chatmail_ttl`, in seconds.
    pub chatmail_ttl: u64,
    /// `http.public_name`: a host name or an address.
    pub public_name: Option<Box<str>>,
    /// `limits.credentials_per_key`, a minute.
    pub per_key: Option<u32>,
    /// `limits.credentials_per_user`, a minute.
    pub per_user: Option<u32>,
}

/// Which tokens the server accepts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwtConfig {
    /// Where the keys come from that check them.
    pub source: KeySource,
    /// What a token must say.
    pub expected: jwt::ExpectedClaims,
}

/// `http.jwt_keys`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// What is in a file: at least one.
    File(Vec<jwt::TokenKey>),
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
    /// `http.jwt_ca_file`: the authorities that must certify it, in place of those that the system trusts.
    pub authorities: Option<Authorities>,
}

/// Sixteen keys of 8192 bits have less.
pub const JWKS_BYTES_MAX: u64 = 64 * 1024;

/// One of `http.keys`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiKey {
    /// Its name in logs and metrics.
    pub name: Box<str>,
    /// The SHA-256 of the key: a reader of the configuration can't ask with it.
    pub sha256: [u8; 32],
    /// The longest lifetime it may ask for, in seconds; `auth.max_ttl` holds besides.
    pub max_ttl: Option<u64>,
    /// Where it may be used from; empty: anywhere.
    pub from: Vec<IpNet>,
    /// The tenant of its credentials' users.
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
    /// Whether a caller may ask over a listener that other machines reach.
    #[must_use]
    pub fn can_identify_callers(&self) -> bool {
        !self.keys.is_empty() || self.identity_header.is_some() || self.jwt.is_some()
    }

    /// Whether any caller may ask.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.can_identify_callers() || !self.unix_uids.is_empty()
    }
}

impl Check {
    pub(crate) fn issuing(&mut self) -> IssuingConfig {
        let proxies = self.proxies();
        IssuingConfig {
            keys: self.keys(),
            unix_uids: self.uids("http.unix_uids"),
            identity_header: self.identity_header(&proxies),
            proxies,
            jwt: self.jwt(),
            cors: self.cors(),
            ttl: self.number("http.ttl"),
            chatmail_ttl: self.number("http.chatmail_ttl"),
            public_name: self.public_name(),
            per_key: self.limit("limits.credentials_per_key"),
            per_user: self.limit("limits.credentials_per_user"),
        }
    }

    /// Called when `[auth]` has been read.
    pub(crate) fn issuing_needs_a_secret(&mut self, issuing: &IssuingConfig, auth: &AuthSettings) {
        if issuing.is_on() && auth.secrets.is_empty() && !self.has_problem_with("auth") {
            let node = self.get("http.keys");
            self.wrong(&node, "credentials are made with a secret, and there is none: add [[auth.secrets]]");
        }
    }

    /// A lifetime that is written down is meant: the relay would refuse credentials that it cuts off in silence.
    pub(crate) fn chatmail_ttl_fits(&mut self, issuing: &IssuingConfig, auth: &AuthSettings) {
        let node = self.get("http.chatmail_ttl");
        if node.is_default() || issuing.chatmail_ttl <= auth.max_ttl || self.has_problem_with("auth.max_ttl") {
            return;
        }
        let message = format!(
            "the server accepts credentials for {} at most: lower it, or raise auth.max_ttl. Chatmail's own TURN server gives \
             5d; Delta Chat asks again 12 hours before the end, so 48h is enough",
            DURATION.show(auth.max_ttl)
        );
        self.wrong(&node, message);
    }

    /// What keys and tokens say of tenant and limits goes into the credential, so a secret that mints must read it.
    pub(crate) fn claims_need_a_secret(&mut self, issuing: &IssuingConfig, auth: &AuthSettings) {
        let minting = || auth.secrets.iter().filter(|secret| !secret.verify_only);
        for (index, key) in issuing.keys.iter().enumerate() {
            let node = |field: &str| Node { key: format!("http.keys[{index}].{field}"), ..self.get("http.keys") };
            let claims = Claims { grant: key.grant.clone(), ..Claims::default() };
            let mistake = minting().find_map(|secret| {
                let id = &secret.id;
                if let Some(claim) = claims.named().find(|claim| !secret.claims.has(*claim)) {
                    let message = format!(
                        "{} can't be put into credentials: the secret \"{id}\" does not read it; give its table claims = true",
                        claim.name()
                    );
                    return Some(problem(&node("limits"), message));
                }
                None
            });
            // As `credentials::minting` chooses.
            let can = |secret: &SharedSecret| secret.tenant == key.tenant || secret.claims.has(Claim::Tenant);
            let foreign = minting().next().zip(key.tenant.as_deref()).filter(|_| !minting().any(can));
            let foreign = foreign.map(|(SharedSecret { id, .. }, tenant)| {
                let message = format!(
                    "no secret is of this tenant or reads it from credentials (\"{id}\" mints): give it tenant = \"{tenant}\", or name \"tenant\" in its list claims"
                );
                problem(&node("tenant"), message)
            });
            self.problems.extend(mistake.into_iter().chain(foreign));
        }
        let Some(jwt) = &issuing.jwt else { return };
        let lacks = |claims: &[Claim]| minting().find(|secret| claims.iter().any(|claim| !secret.claims.has(*claim)));
        let limits: Vec<Claim> = Claim::ALL.into_iter().filter(|claim| *claim != Claim::Tenant).collect();
        let of_tenant = jwt.expected.tenant_claim.as_ref().and_then(|_| lacks(&[Claim::Tenant]));
        let of_limits = jwt.expected.limits_claim.as_ref().and_then(|_| lacks(&limits));
        for (secret, path, remedy) in [
            (of_tenant, "http.jwt_tenant_claim", "name \"tenant\" in its list claims"),
            (of_limits, "http.jwt_limits_claim", "give its table claims = true"),
        ] {
            let Some(secret) = secret else { continue };
            let node = self.get(path);
            let id = &secret.id;
            self.wrong(&node, format!("can't be put into credentials: the secret \"{id}\" does not read it; {remedy}"));
        }
    }

    fn keys(&mut self) -> Vec<ApiKey> {
        let mut keys: Vec<ApiKey> = Vec::new();
        for item in self.list("http.keys") {
            if keys.len() == KEYS_MAX {
                self.wrong(&item, format!("is more than {KEYS_MAX} keys"));
                break;
            }
            let Some(key) = self.key(&item) else { continue };
            if keys.iter().any(|other| other.name == key.name) {
                self.wrong(&item, format!("the name \"{}\" is used twice", key.name));
            } else if let Some(other) = keys.iter().find(|other| other.sha256 == key.sha256) {
                let message = format!("is the same key as \"{}\", so the log could not tell them apart", other.name);
                self.wrong(&item, message);
            } else {
                keys.push(key);
            }
        }
        keys
    }

    fn key(&mut self, node: &Node) -> Option<ApiKey> {
        let of = self.table(node, "http.keys")?;
        let (Some(name), Some(sha256)) = (of.text("name"), of.text("sha256")) else {
            return self.lacks(&of, "needs name and sha256");
        };
        Some(ApiKey {
            name: self.key_name(name)?,
            sha256: self.key_digest(sha256)?,
            max_ttl: of.number("max_ttl"),
            from: of.get("from").map_or(Some(Vec::new()), |list| self.key_from(list))?,
            tenant: self.tenant(&of),
            grant: self.key_limits(&of),
        })
    }

    fn key_name(&mut self, (node, name): (&Node, &str)) -> Option<Box<str>> {
        let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let mistake = if name.is_empty() || name.len() > 64 || !is_word {
            "a name is 1 to 64 letters, digits, '-', '.' and '_', such as \"web\""
        } else if RESERVED.contains(&name) {
            "\"jwt\", \"proxy\" and \"unix\" are the log's names for callers without a key; choose another"
        } else {
            return Some(name.into());
        };
        self.wrong(node, mistake);
        None
    }

    fn key_digest(&mut self, (node, digest): (&Node, &str)) -> Option<[u8; 32]> {
        let digest = hex(digest).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).ok_or(
            "expected 64 hexadecimal digits: the SHA-256 of the key, not the key itself; printf %s KEY | sha256sum",
        );
        let sha256 = self.ok(node, digest)?;
        if published().any(|word| sha256 == <[u8; 32]>::from(Sha256::digest(word))) {
            let message =
                "is the digest of a key that guides print as an example; make one with `openssl rand -hex 32`";
            self.wrong(node, message);
            return None;
        }
        Some(sha256)
    }

    fn key_from(&mut self, node: &Node) -> Option<Vec<IpNet>> {
        let Value::List(items) = &node.value else { return None };
        if items.is_empty() {
            self.wrong(node, "an empty list allows no address; leave it out to allow all of them");
        }
        let nets: Vec<IpNet> = items.iter().filter_map(|item| self.net(item)).collect();
        (!nets.is_empty()).then_some(nets)
    }

    fn key_limits(&mut self, of: &Table<'_>) -> Grant {
        let grant = self.grant(of);
        if let Some(node) = of.get("limits")
            && (grant.bytes_per_day.is_some() || grant.packets_per_second.is_some())
        {
            let message =
                "bytes_per_day and packet_rate can't be inside a credential; put them into the limits of the secret";
            self.wrong(node, message);
        }
        grant
    }

    /// Numbers of users of this machine.
    pub(crate) fn uids(&mut self, path: &str) -> Vec<u32> {
        self.each(path, |check, node| {
            let number = match &node.value {
                Value::Text(text) => text.parse().ok(),
                Value::Integer(number, _) => number.and_then(|number| u32::try_from(number).ok()),
                Value::Other(_) | Value::List(_) | Value::Table(_) => None,
            };
            check.ok(node, number.ok_or("expected the number of a user, as `id -u NAME` prints it"))
        })
    }

    fn proxies(&mut self) -> Vec<IpNet> {
        self.each("http.proxies", |check, node| {
            let net = check.net(node)?;
            let is_any = net.prefix_len() == 0;
            check.ok(
                node,
                if is_any { Err("any caller would be believed; name the proxy's own address") } else { Ok(net) },
            )
        })
    }

    fn identity_header(&mut self, proxies: &[IpNet]) -> Option<Box<str>> {
        let (text, node) = self.text_of("http.identity_header")?;
        let name = text.to_ascii_lowercase();
        let taken = ["authorization", "host", "origin", "x-forwarded-for", "content-type", "content-length", "cookie"];
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') || taken.contains(&name.as_str())
        {
            self.wrong(&node, "expected the name of a header of its own, such as \"X-Authenticated-User\"");
            return None;
        }
        if proxies.is_empty() {
            if !self.has_problem_with("http.proxies") {
                self.wrong(&node, "has no effect: name the proxy's address in http.proxies");
            }
            return None;
        }
        Some(name.into())
    }

    fn jwt(&mut self) -> Option<JwtConfig> {
        let text = |path| self.text_of(path).map(|(text, _)| Box::<str>::from(text));
        let (audience, issuer, user_claim) =
            (text("http.jwt_audience"), text("http.jwt_issuer"), text("http.jwt_user_claim"));
        let (tenant_claim, limits_claim) = (text("http.jwt_tenant_claim"), text("http.jwt_limits_claim"));
        let (keys, node) = self.text_of("http.jwt_keys")?;
        if self.has_problem_with("http.jwt_") {
            return None;
        }
        let audience_node = self.get("http.jwt_audience");
        let message = "must name the audience of this service: without it a token for another service of the same login is enough";
        let audience = self.ok(&audience_node, audience.ok_or(message))?;
        let claim_node = self.get("http.jwt_user_claim");
        let user_claim = self.ok(&claim_node, user_claim.ok_or("must not be empty; \"sub\" is usual"))?;
        let source = if keys.contains("://") {
            KeySource::Url(self.key_url(&node, &keys)?)
        } else {
            KeySource::File(self.key_file(&node, &keys)?)
        };
        Some(JwtConfig {
            source,
            expected: jwt::ExpectedClaims { audience, issuer, user_claim, tenant_claim, limits_claim },
        })
    }

    fn key_url(&mut self, node: &Node, text: &str) -> Option<KeyUrl> {
        let url = self.ok(node, Url::parse(text))?;
        if !url.is_https() && !url.is_loopback() {
            let message = "an attacker on the way could put keys of their own there; write https://, or a file";
            self.wrong(node, message);
            return None;
        }
        let authorities = self.authorities("http.jwt_ca_file", &url, &node.key);
        Some(KeyUrl { url, authorities })
    }

    fn key_file(&mut self, node: &Node, path: &str) -> Option<Vec<jwt::TokenKey>> {
        let path = self.file(node, path)?;
        // A URL whose scheme was forgotten looks like a file.
        let shown = masked(&path.display().to_string());
        let read = files::read(&path, JWKS_BYTES_MAX).map_err(|error| format!("can't read {shown}: {error}"));
        let text = self.ok(node, read)?;
        let keys = self.ok(node, jwt::parse_jwks(&text).map_err(|what| format!("{shown} {what}")))?;
        if keys.iter().any(jwt::TokenKey::is_secret) && is_world_readable(&path) {
            let message = format!("holds a secret and every user of this machine can read {shown}; chmod 0640 it");
            self.note_of_secret(node, message);
        }
        self.contents.insert(node.key.clone(), digest_of(&text));
        Some(keys)
    }

    fn cors(&mut self) -> Vec<Box<str>> {
        self.each("http.cors", |check, node| {
            let text = check.text(node)?;
            let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let fits = host.is_some_and(|host| {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b))
            });
            let message = if text == "*" {
                "any page on the web could then ask in its visitors' names; list the origins"
            } else {
                "expected an origin as browsers send it: \"https://app.example.org\", in lower case, without path and \
                 without a default port"
            };
            check.ok(node, fits.then(|| text.into()).ok_or(message))
        })
    }

    fn public_name(&mut self) -> Option<Box<str>> {
        let (text, node) = self.text_of("http.public_name")?;
        self.ok(&node, host(&text).map(Into::into))
    }
}

/// A host name or an address, alone.
///
/// # Errors
/// What is expected.
pub(crate) fn host(text: &str) -> Result<&str, &'static str> {
    let is_address = text.parse::<IpAddr>().is_ok();
    let is_name = text.len() <= 253
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    let message = "expected a host name or an address, without scheme, port or brackets, such as \"turn.example.org\"";
    (is_address || is_name).then_some(text).ok_or(message)
}
