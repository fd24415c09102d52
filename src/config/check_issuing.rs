//! The part of `[http]` that says who gets credentials. No message here shows a key.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::check::Check;
use crate::config::check_auth::{hex, read_at_most};
use crate::config::checked::{AuthConfig, PublicListen, TlsConfig};
use crate::config::diff::digest_of;
use crate::config::document::{Node, Value};
use crate::config::error::Problem;
use crate::config::initial_secret::is_world_readable;
use crate::config::issuing::{ApiKey, IssuingConfig, JWKS_BYTES_MAX, JwtConfig, KeySource, KeyUrl};
use crate::config::units;
use crate::credentials::claims::{Claim, Claims, Grant};
use crate::fetch::Url;
use crate::jwt;

/// Each is compared with what a stranger presents, in constant time.
const KEYS_MAX: usize = 256;

const KEY_FIELDS: [&str; 6] = ["name", "sha256", "max_ttl", "from", "tenant", "limits"];

/// Names that logs and metrics give to those who come without a key.
const RESERVED: [&str; 3] = ["jwt", "proxy", "unix"];

impl Check {
    pub(crate) fn issuing(&mut self) -> IssuingConfig {
        let keys = self.keys();
        let unix_uids = self.uids("http.unix_uids");
        let proxies = self.proxies();
        let identity_header = self.identity_header(&proxies);
        let none = |count: u32| (count != 0).then_some(count);
        IssuingConfig {
            keys,
            unix_uids,
            proxies,
            identity_header,
            jwt: self.jwt(),
            cors: self.cors(),
            ttl: self.seconds("http.ttl", 1..=315_360_000),
            public_name: self.public_name(),
            per_key: none(self.count("limits.credentials_per_key", u32::MAX)),
            per_user: none(self.count("limits.credentials_per_user", u32::MAX)),
        }
    }

    /// An endpoint that asks nobody who he is would be an open relay with one more step.
    pub(crate) fn public_needs_a_method(&mut self, public: &[PublicListen], issuing: &IssuingConfig) {
        if !public.is_empty() && !issuing.serves_strangers() && !self.has_problem_with("http.") {
            let node = self.get("http.public");
            let message = "would give credentials to nobody or to everybody: add [[http.keys]] with name and sha256 \
                 (printf %s KEY | sha256sum), or http.jwt_keys, or http.identity_header and http.proxies";
            self.wrong(&node, "http.public", message);
        }
    }

    /// Certificates for `https://`, and a word about keys that pass in the clear.
    pub(crate) fn public_needs_tls(&mut self, public: &[PublicListen], tls: &TlsConfig, issuing: &IssuingConfig) {
        let path = "http.public";
        let node = self.get(path);
        if public.iter().any(|listen| listen.is_https) && tls.files.is_empty() && !self.has_problem_with("tls") {
            let message = "https:// needs a certificate: set tls.certificate and tls.private_key to PEM files";
            self.wrong(&node, path, message);
        }
        let is_open = |listen: &&PublicListen| !listen.is_https && !listen.address.ip().is_loopback();
        // With http.proxies somebody else does TLS.
        if let Some(listen) = public.iter().find(is_open).filter(|_| issuing.proxies.is_empty()) {
            let message = format!(
                "API keys and passwords pass over {listen} in the clear; write \"https://{}\", or bind loopback behind a proxy",
                listen.address
            );
            self.note(&node, path, message);
        }
    }

    /// Called when `[auth]` has been read.
    pub(crate) fn issuing_needs_a_secret(&mut self, issuing: &IssuingConfig, auth: &AuthConfig) {
        if issuing.serves_anybody() && auth.secrets.is_empty() && !self.has_problem_with("auth") {
            let node = self.get("http.keys");
            self.wrong(
                &node,
                "http.keys",
                "credentials are made with a secret, and there is none: add [[auth.secrets]]",
            );
        }
    }

    /// What keys and tokens say of tenant and limits goes into the credential, so a secret that mints must read it.
    pub(crate) fn claims_need_a_secret(&mut self, issuing: &IssuingConfig, auth: &AuthConfig) {
        let minting = || auth.secrets.iter().filter(|secret| !secret.verify_only);
        let node = self.get("http.keys");
        for (index, key) in issuing.keys.iter().enumerate() {
            let claims = Claims { grant: key.grant.clone(), ..Claims::default() };
            for secret in minting() {
                if let Some(claim) = claims.named().find(|claim| !secret.claims.has(*claim)) {
                    let message = format!(
                        "{} can't be put into credentials: the secret \"{}\" does not read it; give its table claims = true",
                        claim.name(),
                        secret.id
                    );
                    self.wrong(&node, &format!("http.keys[{index}].limits"), message);
                    break;
                }
                if key.tenant.is_some() && key.tenant != secret.tenant && !secret.claims.has(Claim::Tenant) {
                    let message = format!(
                        "the secret \"{}\" has another tenant and does not read this one: give it tenant = \"{}\", or name \"tenant\" in its list claims",
                        secret.id,
                        key.tenant.as_deref().unwrap_or_default()
                    );
                    self.wrong(&node, &format!("http.keys[{index}].tenant"), message);
                    break;
                }
            }
        }
        let Some(jwt) = &issuing.jwt else { return };
        let lacks = |claims: &[Claim]| minting().find(|secret| claims.iter().any(|claim| !secret.claims.has(*claim)));
        let limits = Claim::ALL.into_iter().filter(|claim| *claim != Claim::Tenant).collect::<Vec<_>>();
        for (is_set, path, needed, write) in [
            (
                jwt.expected.tenant_claim.is_some(),
                "http.jwt_tenant_claim",
                &[Claim::Tenant][..],
                "name \"tenant\" in its list claims",
            ),
            (jwt.expected.limits_claim.is_some(), "http.jwt_limits_claim", &limits, "give its table claims = true"),
        ] {
            if let Some(secret) = lacks(needed).filter(|_| is_set) {
                let message =
                    format!("can't be put into credentials: the secret \"{}\" does not read it; {write}", secret.id);
                self.wrong(&self.get(path), path, message);
            }
        }
    }

    fn keys(&mut self) -> Vec<ApiKey> {
        let path = "http.keys";
        let node = self.get(path);
        let Value::List(items) = &node.value else {
            self.wrong(
                &node,
                path,
                "expected tables: write [[http.keys]] and below it name = \"...\" and sha256 = \"...\"",
            );
            return Vec::new();
        };
        let mut keys: Vec<ApiKey> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if keys.len() == KEYS_MAX {
                self.wrong(item, &path, format!("is more than {KEYS_MAX} keys"));
                break;
            }
            let Some(key) = self.key(item, &path) else { continue };
            if keys.iter().any(|other| other.name == key.name) {
                self.wrong(item, &path, format!("the name \"{}\" stands there twice", key.name));
            } else if let Some(other) = keys.iter().find(|other| other.sha256 == key.sha256) {
                let message = format!("is the same key as \"{}\", so the log could not tell them apart", other.name);
                self.wrong(item, &path, message);
            } else {
                keys.push(key);
            }
        }
        keys
    }

    fn key(&mut self, node: &Node, path: &str) -> Option<ApiKey> {
        let Value::Table(fields) = &node.value else {
            self.wrong(node, path, "expected a table of name and sha256");
            return None;
        };
        let all_known = self.fields(fields, path, &KEY_FIELDS, &[]);
        let field = |name: &str| fields.iter().find(|field| field.key == name).map(|field| &field.node);
        let (Some(name_node), Some(digest_node)) = (field("name"), field("sha256")) else {
            if all_known {
                self.wrong(node, path, "needs name and sha256");
            }
            return None;
        };
        let name = self.text(name_node, &format!("{path}.name"))?;
        let digest = self.text(digest_node, &format!("{path}.sha256"))?;
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        {
            let message = "a name is 1 to 64 letters, digits, '-', '.' and '_', such as \"web\"";
            self.wrong(name_node, &format!("{path}.name"), message);
            return None;
        }
        if RESERVED.contains(&name.as_str()) {
            let message =
                "\"jwt\", \"proxy\" and \"unix\" are what the log calls those who come without a key; choose another";
            self.wrong(name_node, &format!("{path}.name"), message);
            return None;
        }
        let Some(sha256) = hex(&digest).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) else {
            let message =
                "expected 64 hexadecimal digits: the SHA-256 of the key, not the key itself; printf %s KEY | sha256sum";
            self.wrong(digest_node, &format!("{path}.sha256"), message);
            return None;
        };
        let max_ttl = match field("max_ttl") {
            None => None,
            Some(ttl) => {
                let path = format!("{path}.max_ttl");
                let text = self.text(ttl, &path)?;
                match units::duration(&text) {
                    Ok(seconds) if seconds > 0 => Some(seconds),
                    Ok(_) => {
                        self.wrong(ttl, &path, "must be longer than nothing");
                        return None;
                    }
                    Err(message) => {
                        self.wrong(ttl, &path, message);
                        return None;
                    }
                }
            }
        };
        let from = match field("from") {
            None => Vec::new(),
            Some(list) => {
                let path = format!("{path}.from");
                let Value::List(items) = &list.value else {
                    self.wrong(list, &path, "expected a list of prefixes, such as [\"192.0.2.0/24\"]");
                    return None;
                };
                let nets: Vec<IpNet> = items.iter().filter_map(|item| self.net(item, &path)).collect();
                if nets.is_empty() {
                    if items.is_empty() {
                        self.wrong(list, &path, "an empty list would let nobody use it; leave it out for everywhere");
                    }
                    return None;
                }
                nets
            }
        };
        let tenant = field("tenant").and_then(|node| self.tenant(node, &format!("{path}.tenant")));
        let grant = match field("limits") {
            None => Grant::default(),
            Some(node) => {
                let path = format!("{path}.limits");
                let grant = self.grant(node, &path);
                if grant.bytes_per_day.is_some() || grant.packets_per_second.is_some() {
                    let message = "bytes_per_day and packet_rate can't be inside a credential; put them into the limits of the secret";
                    self.wrong(node, &path, message);
                }
                grant
            }
        };
        Some(ApiKey { name: name.into(), sha256, max_ttl, from, tenant, grant })
    }

    /// Numbers of users of this machine.
    pub(crate) fn uids(&mut self, path: &'static str) -> Vec<u32> {
        let mut uids = Vec::new();
        for node in self.list(path) {
            let number = match &node.value {
                Value::Text(text) => text.parse().ok(),
                Value::Integer(number, _) => number.and_then(|number| u32::try_from(number).ok()),
                Value::Other(_) | Value::List(_) | Value::Table(_) => None,
            };
            match number {
                Some(uid) => uids.push(uid),
                None => self.wrong(&node, path, "expected the number of a user, as `id -u NAME` prints it"),
            }
        }
        uids
    }

    fn proxies(&mut self) -> Vec<IpNet> {
        let path = "http.proxies";
        let mut nets = Vec::new();
        for node in self.list(path) {
            match self.net(&node, path) {
                Some(net) if net.prefix_len() == 0 => {
                    self.wrong(&node, path, "everybody would be believed; name the proxy's own address");
                }
                other => nets.extend(other),
            }
        }
        nets
    }

    fn identity_header(&mut self, proxies: &[IpNet]) -> Option<Box<str>> {
        let path = "http.identity_header";
        let node = self.get(path);
        let text = self.text(&node, path).filter(|text| !text.is_empty())?;
        let name = text.to_ascii_lowercase();
        let taken = ["authorization", "host", "origin", "x-forwarded-for", "content-type", "content-length", "cookie"];
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') || taken.contains(&name.as_str())
        {
            self.wrong(&node, path, "expected the name of a header of its own, such as \"X-Authenticated-User\"");
            return None;
        }
        if proxies.is_empty() {
            if !self.has_problem_with("http.proxies") {
                let message = "is believed from nobody: name the proxy's address in http.proxies";
                self.wrong(&node, path, message);
            }
            return None;
        }
        Some(name.into())
    }

    fn jwt(&mut self) -> Option<JwtConfig> {
        let node = self.get("http.jwt_keys");
        let path = self.text(&node, "http.jwt_keys").filter(|path| !path.is_empty());
        let audience_node = self.get("http.jwt_audience");
        let audience = self.text(&audience_node, "http.jwt_audience")?;
        let issuer_node = self.get("http.jwt_issuer");
        let issuer = self.text(&issuer_node, "http.jwt_issuer")?;
        let claim_node = self.get("http.jwt_user_claim");
        let claim = self.text(&claim_node, "http.jwt_user_claim")?;
        let mut claim_of = |path: &'static str| {
            let node = self.get(path);
            self.text(&node, path).filter(|name| !name.is_empty()).map(Box::from)
        };
        let tenant_claim = claim_of("http.jwt_tenant_claim");
        let limits_claim = claim_of("http.jwt_limits_claim");
        let path = path?;
        if audience.is_empty() {
            let message =
                "a token for another service of the same login would open this one: say which audience is ours";
            self.wrong(&audience_node, "http.jwt_audience", message);
            return None;
        }
        if claim.is_empty() {
            self.wrong(&claim_node, "http.jwt_user_claim", "must not be empty; \"sub\" is usual");
            return None;
        }
        let source = if path.contains("://") {
            KeySource::Url(self.key_url(&node, &path)?)
        } else {
            KeySource::File(self.key_file(&node, &path)?)
        };
        let issuer = (!issuer.is_empty()).then(|| issuer.into());
        Some(JwtConfig {
            source,
            expected: jwt::Expected {
                audience: audience.into(),
                issuer,
                user_claim: claim.into(),
                tenant_claim,
                limits_claim,
            },
        })
    }

    fn key_url(&mut self, node: &Node, text: &str) -> Option<KeyUrl> {
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(what) => {
                self.wrong(node, "http.jwt_keys", what);
                return None;
            }
        };
        if !url.is_https && !url.is_loopback() {
            let message = "whoever is on the way could put keys of their own there; write https://, or a file";
            self.wrong(node, "http.jwt_keys", message);
            return None;
        }
        let authorities = self.authorities("http.jwt_ca_file", &url, "http.jwt_keys");
        Some(KeyUrl { url, authorities })
    }

    fn key_file(&mut self, node: &Node, path: &str) -> Option<Vec<jwt::Key>> {
        let path = self.file(node, "http.jwt_keys", path)?;
        let text = match read_at_most(&path, JWKS_BYTES_MAX) {
            Ok(text) => text,
            Err(error) => {
                self.wrong(node, "http.jwt_keys", format!("can't read {}: {error}", path.display()));
                return None;
            }
        };
        let keys = match jwt::parse_jwks(&text) {
            Ok(keys) => keys,
            Err(what) => {
                self.wrong(node, "http.jwt_keys", format!("{} {what}", path.display()));
                return None;
            }
        };
        if keys.iter().any(jwt::Key::is_secret) && is_world_readable(&path) {
            let message =
                format!("holds a secret and every user of this machine can read {}; chmod 0640 it", path.display());
            self.notes.push(Problem::new(node.place.clone(), "http.jwt_keys", message));
        }
        self.contents.push(("http.jwt_keys".to_owned(), digest_of(&text)));
        Some(keys)
    }

    fn cors(&mut self) -> Vec<Box<str>> {
        let path = "http.cors";
        let mut origins = Vec::new();
        for node in self.list(path) {
            let Some(text) = self.text(&node, path) else { continue };
            let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let fits = host.is_some_and(|host| {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b))
            });
            if fits {
                origins.push(text.into());
            } else if text == "*" {
                self.wrong(&node, path, "any page on the web could then ask in its visitors' names; list the origins");
            } else {
                let message = "expected an origin as browsers send it: \"https://app.example.org\", in lower case, \
                     without path and without a default port";
                self.wrong(&node, path, message);
            }
        }
        origins
    }

    fn public_name(&mut self) -> Option<Box<str>> {
        let path = "http.public_name";
        let node = self.get(path);
        let text = self.text(&node, path).filter(|text| !text.is_empty())?;
        let is_address = text.parse::<IpAddr>().is_ok();
        let is_name = text.len() <= 253
            && !text.starts_with(['-', '.'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
        if !is_address && !is_name {
            let message =
                "expected a host name or an address, without scheme, port or brackets, such as \"turn.example.org\"";
            self.wrong(&node, path, message);
            return None;
        }
        Some(text.into())
    }
}
