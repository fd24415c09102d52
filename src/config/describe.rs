//! What a server will do, in lines for people and in JSON; never with a secret in it.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::config::checked::{Config, External, HttpListen, Workers};
use crate::config::error::{ConfigError, Place, Problem};
use crate::config::units::{show_bytes, show_rate, show_seconds};
use crate::protocol::address::Transport;
use crate::protocol::meter::Rates;
use crate::protocol::settings::Limits;

impl Config {
    /// What `check-config` says about a right configuration.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{name:<11} {value}");
        };
        let size = self.challenge_bytes();
        line("realm", format!("{}: a 401 answer has {size} bytes", self.realm));
        line(
            "workers",
            match self.workers {
                Workers::Auto => "one up to two cores, else one per core".to_owned(),
                Workers::Count(count) => count.to_string(),
            },
        );
        for listen in &self.listen {
            match (listen.is_auto, listen.transport) {
                (true, Transport::Tls) => line("listen", format!("tls and tcp {}", listen.address)),
                (true, Transport::Tcp | Transport::Udp) => {}
                (false, _) => line("listen", format!("{} {}", listen.transport.name(), listen.address)),
            }
        }
        if self.listen.is_empty() {
            line("listen", "nowhere: every list of [listen] is empty".to_owned());
        }
        for files in &self.tls.files {
            line("certificate", format!("{} with {}", files.certificate.display(), files.private_key.display()));
        }
        let ports = format!("ports {}-{}", self.relay.ports.start(), self.relay.ports.end());
        if self.relay.addresses.is_empty() {
            line("relay", format!("from one address per family, found from the routes; {ports}"));
        }
        for address in &self.relay.addresses {
            let public = self.relay.external.advertised(*address);
            let told = if public == *address { String::new() } else { format!(", told to clients as {public}") };
            line("relay", format!("from {address}{told}; {ports}"));
        }
        if self.relay.addresses.is_empty() {
            match &self.relay.external {
                External::Same => {}
                External::PerFamily { .. } => {
                    line("external", format!("clients are told {}", join(self.relay.external.public())));
                }
                External::PerAddress(pairs) => {
                    for (local, public) in pairs {
                        line("external", format!("{local} is told to clients as {public}"));
                    }
                }
            }
        }
        line(
            "lifetimes",
            format!(
                "{} by default, at most {}",
                show_seconds(self.lifetimes.default.into()),
                show_seconds(self.lifetimes.max.into())
            ),
        );
        line("users", self.auth.users.len().to_string());
        for (index, secret) in self.auth.secrets.iter().enumerate() {
            let mints = if index == 0 { ", mints" } else { "" };
            line("secret", format!("{} ({}{mints})", secret.id, secret.algorithm.name()));
        }
        line(
            "credentials",
            format!(
                "end at most {} ahead; a nonce is good for {}{}",
                show_seconds(self.auth.max_ttl),
                show_seconds(self.auth.nonce_lifetime),
                if self.auth.nonce_key.is_some() { ", keyed by auth.nonce_key_file" } else { "" }
            ),
        );
        line("peers", "every special-purpose range is denied".to_owned());
        for net in &self.peers.allow {
            line("", format!("allowed: {net}"));
        }
        for net in &self.peers.deny {
            line("", format!("denied: {net}"));
        }
        let tables = &self.limits.tables;
        let count = |limit: Option<u32>| limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
        line(
            "limits",
            format!(
                "allocations: {} in all, {} per user id, {} per client address",
                count(tables.allocations),
                count(tables.allocations_per_user),
                count(tables.allocations_per_client)
            ),
        );
        for (scope, max) in
            [("credential", tables.allocations_per_credential), ("tenant", tables.allocations_per_tenant)]
        {
            if let Some(max) = max {
                line("", format!("allocations: {max} per {scope}"));
            }
        }
        for (scope, rates) in scopes(tables) {
            if let Some(text) = rates_text(rates) {
                line("", format!("{scope}: {text}, each way, {} ms ahead at most", tables.burst_ms));
            }
        }
        for (scope, bytes) in
            [("credential", tables.bytes_per_credential), ("user and day (UTC)", tables.bytes_per_user_per_day)]
        {
            if let Some(bytes) = bytes {
                line("", format!("payload: {} per {scope}, both ways together", show_bytes(bytes)));
            }
        }
        line(
            "",
            format!(
                "per allocation: {} permissions, {} channels",
                count(Some(tables.permissions_per_allocation).filter(|count| *count != u32::MAX)),
                tables.channels_per_allocation
            ),
        );
        line(
            "",
            format!(
                "per TCP client: {} queued, {} without authentication",
                self.limits.tcp_queue.map_or_else(|| "no limit".to_owned(), |bytes| show_bytes(bytes as u64)),
                self.limits
                    .tcp_unauthenticated
                    .map_or_else(|| "no limit".to_owned(), |time| show_seconds(time.as_secs()))
            ),
        );
        if !self.tls.files.is_empty() {
            let half_open = count(self.limits.tls_half_open);
            let time =
                self.limits.tls_handshake.map_or_else(|| "no limit".to_owned(), |time| show_seconds(time.as_secs()));
            line("", format!("TLS handshakes: {half_open} at once, {time} each"));
        }
        let hosts =
            if self.http.hosts.is_empty() { String::new() } else { format!("; hosts {}", self.http.hosts.join(", ")) };
        line("http", format!("{}{hosts}", self.http_text().unwrap_or_else(|| "none".to_owned())));
        for listen in &self.http.public {
            line("", format!("{listen}, for everybody who has a key: credentials and /healthz"));
        }
        for text in self.issuing_text() {
            line("issues", text);
        }
        line("admin", self.admin_text());
        line("accounting", self.accounting.describe());
        line("drain", self.drain.describe());
        line("log", format!("{}, from {} on", format!("{:?}", self.log.format).to_lowercase(), self.log.level.name()));
        if !self.source.variables.is_empty() {
            line("environment", self.source.variables.join(", "));
        }
        for warning in &self.warnings {
            line("warning", warning.to_string());
        }
        text
    }

    /// The same for machines.
    #[must_use]
    pub fn describe_json(&self) -> Value {
        let tables = &self.limits.tables;
        json!({
            "ok": true,
            "realm": &*self.realm,
            "challenge_bytes": self.challenge_bytes(),
            "workers": match self.workers { Workers::Auto => json!("auto"), Workers::Count(count) => json!(count) },
            "listen": self.listen.iter().map(|listen| json!({
                "transport": listen.transport.name(), "address": listen.address, "auto": listen.is_auto,
            })).collect::<Vec<_>>(),
            "tls": {
                "certificates": self.tls.files.iter().map(|files| json!({
                    "certificate": files.certificate, "private_key": files.private_key,
                })).collect::<Vec<_>>(),
                "name": self.tls.name.as_deref(),
            },
            "relay": {
                "addresses": self.relay.addresses.iter().map(|local| json!({
                    "local": local, "advertised": self.relay.external.advertised(*local),
                })).collect::<Vec<_>>(),
                "external": self.relay.external.public(),
                "ports": [self.relay.ports.start(), self.relay.ports.end()],
            },
            "turn": { "default_lifetime": self.lifetimes.default, "max_lifetime": self.lifetimes.max },
            "auth": {
                "users": self.auth.users.len(),
                "secrets": self.auth.secrets.iter().map(|secret| json!({
                    "id": &*secret.id, "algorithm": secret.algorithm.name(),
                })).collect::<Vec<_>>(),
                "max_ttl": self.auth.max_ttl,
                "nonce_lifetime": self.auth.nonce_lifetime,
                "nonce_key_file": self.auth.nonce_key.is_some(),
            },
            "peers": {
                "allow": self.peers.allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "deny": self.peers.deny.iter().map(ToString::to_string).collect::<Vec<_>>(),
            },
            "limits": {
                "allocations": tables.allocations,
                "allocations_per_user": tables.allocations_per_user,
                "allocations_per_credential": tables.allocations_per_credential,
                "allocations_per_tenant": tables.allocations_per_tenant,
                "allocations_per_client": tables.allocations_per_client,
                "rates": scopes(tables).map(|(scope, rates)| json!({
                    "scope": scope,
                    "bits_per_second": rates.bits_per_second,
                    "packets_per_second": rates.packets_per_second,
                })),
                "burst_ms": tables.burst_ms,
                "bytes_per_credential": tables.bytes_per_credential,
                "bytes_per_user_per_day": tables.bytes_per_user_per_day,
                "permissions_per_allocation": Some(tables.permissions_per_allocation).filter(|count| *count != u32::MAX),
                "channels_per_allocation": tables.channels_per_allocation,
                "tcp_queue": self.limits.tcp_queue,
                "tcp_unauthenticated": self.limits.tcp_unauthenticated.map(|time| time.as_secs()),
                "tls_handshake": self.limits.tls_handshake.map(|time| time.as_secs()),
                "tls_half_open": self.limits.tls_half_open,
            },
            "http": {
                "listen": self.http_text(),
                "hosts": self.http.hosts.iter().map(|host| &**host).collect::<Vec<_>>(),
                "public": self.http.public.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "public_name": self.http.issuing.public_name,
                "ttl": self.http.issuing.ttl,
                "keys": self.http.issuing.keys.iter().map(|key| json!({
                    "name": &*key.name, "max_ttl": key.max_ttl,
                    "from": key.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
                "unix_uids": self.http.issuing.unix_uids,
                "proxies": self.http.issuing.proxies.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "identity_header": self.http.issuing.identity_header,
                "jwt": self.http.issuing.jwt.as_ref().map(|jwt| json!({
                    "keys": jwt.source.describe(), "audience": jwt.expected.audience, "issuer": jwt.expected.issuer,
                    "user_claim": jwt.expected.user_claim,
                })),
                "cors": self.http.issuing.cors,
                "admin_token": self.admin.token.is_some(),
                "admin_uids": self.admin.uids,
            },
            "drain": self.drain.describe_json(),
            "accounting": {
                "interval": self.accounting.interval,
                "file": self.accounting.file.as_ref().map(|file| file.path.display().to_string()),
                "journal": self.accounting.journal.as_ref().map(|path| path.display().to_string()),
                "webhook": self.accounting.webhook.as_ref().map(|hook| hook.url.to_string()),
                "signed": self.accounting.sign_key.is_some(),
            },
            "log": { "format": format!("{:?}", self.log.format).to_lowercase(), "level": self.log.level.name() },
            "environment": self.source.variables,
            "warnings": self.warnings.iter().map(problem_json).collect::<Vec<_>>(),
        })
    }

    /// Who gets credentials over HTTP.
    fn issuing_text(&self) -> Vec<String> {
        let issuing = &self.http.issuing;
        let mut lines = Vec::new();
        for key in &issuing.keys {
            let mut text = format!("credentials to key {}", key.name);
            if let Some(ttl) = key.max_ttl {
                text += &format!(", for up to {}", show_seconds(ttl));
            }
            if !key.from.is_empty() {
                text += &format!(", from {}", key.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
            }
            lines.push(text);
        }
        if !issuing.unix_uids.is_empty() {
            let uids = issuing.unix_uids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            lines.push(format!("credentials over a unix socket to the users with the ids {uids}"));
        }
        if let Some(jwt) = &issuing.jwt {
            lines.push(format!(
                "credentials to the {} of tokens for {}, checked with {}",
                jwt.expected.user_claim,
                jwt.expected.audience,
                jwt.source.describe()
            ));
            for (claim, what) in [(&jwt.expected.tenant_claim, "tenant"), (&jwt.expected.limits_claim, "limits")] {
                lines.extend(claim.as_ref().map(|claim| format!("their {what}: the claim {claim}")));
            }
        }
        if let Some(header) = &issuing.identity_header {
            let proxies = issuing.proxies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            lines.push(format!("credentials to whom the header {header} of the proxies {proxies} names"));
        }
        if lines.is_empty() {
            lines.push("no credentials over HTTP: there are no http.keys".to_owned());
        }
        lines
    }

    fn admin_text(&self) -> String {
        let mut who = Vec::new();
        if self.admin.token.is_some() {
            who.push("whoever has the token".to_owned());
        }
        if let Some(HttpListen::Unix(_)) = self.http.listen {
            let uids: Vec<_> = self.admin.uids.iter().map(ToString::to_string).collect();
            let more = if uids.is_empty() { String::new() } else { format!(", user ids {}", uids.join(", ")) };
            who.push(format!("root and the server's own user{more} over the unix socket"));
        }
        let who = if who.is_empty() { "nobody: http.admin_token_file is not set".to_owned() } else { who.join("; ") };
        let file = match &self.admin.revocations_file {
            Some(path) => path.display().to_string(),
            None => "the state directory of the unit, if there is one".to_owned(),
        };
        format!("{who}; revocations are kept in {file}")
    }

    fn http_text(&self) -> Option<String> {
        self.http.listen.as_ref().map(|listen| match listen {
            HttpListen::Tcp(address) => address.to_string(),
            HttpListen::Unix(path) => format!("unix:{}", path.display()),
        })
    }
}

impl ConfigError {
    /// Every mistake for machines.
    #[must_use]
    pub fn describe_json(&self) -> Value {
        json!({ "ok": false, "errors": self.problems.iter().map(problem_json).collect::<Vec<_>>() })
    }
}

fn problem_json(problem: &Problem) -> Value {
    let (file, line, variable) = match &problem.place {
        Place::File(path, line) => (Some(path.display().to_string()), Some(*line), None),
        Place::WholeFile(path) => (Some(path.display().to_string()), None, None),
        Place::Variable(name) => (None, None, Some(&**name)),
        Place::Nowhere => (None, None, None),
    };
    json!({
        "file": file, "line": line, "variable": variable, "key": problem.key, "value": problem.value,
        "message": problem.message, "suggestion": problem.suggestion,
    })
}

fn join(addresses: Vec<IpAddr>) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
/// The scopes that have rates, the widest first.
const fn scopes(limits: &Limits) -> [(&'static str, Rates); 6] {
    [
        ("server", limits.server),
        ("tenant", limits.tenant),
        ("client address", limits.client),
        ("user", limits.user),
        ("credential", limits.credential),
        ("allocation", limits.allocation),
    ]
}

fn rates_text(rates: Rates) -> Option<String> {
    let bits = rates.bits_per_second.map(show_rate);
    let packets = rates.packets_per_second.map(|rate| format!("{rate} packets/s"));
    let both: Vec<String> = bits.into_iter().chain(packets).collect();
    (!both.is_empty()).then(|| both.join(" and "))
}
