//! What a server will do, in lines for people and in JSON; never with a secret in it.

use std::fmt::{Display, Write as _};
use std::path::Path;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::address::Transport;
use crate::config::acme::Proof;
use crate::config::checked::{Config, External, HttpListen, Listen, SendProxy, SharedPort, Workers};
use crate::config::error::{ConfigError, Problem, SourceLocation};
use crate::config::units::{DURATION, RATE, SIZE};
use crate::protocol::meter::Rates;
use crate::protocol::settings::{Limits, Sha256Offer};
use crate::tls::certificates::{Summary, days_until};

/// Lines of a name and a text.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, text: impl Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{name:<11} {text}");
    }
}

impl Config {
    /// What `check-config` says about a right configuration.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut lines = Lines::default();
        lines.add("realm", format!("{}: a 401 answer has {} bytes", self.realm, self.challenge_bytes()));
        match self.workers {
            Workers::Auto => lines.add("workers", "one up to two cores, else one per core"),
            Workers::Count(count) => lines.add("workers", count),
        }
        if self.supervise {
            lines.add(
                "supervise",
                "a second process holds every socket; calls over UDP go on when the server is killed",
            );
        }
        self.describe_listeners(&mut lines);
        self.describe_relay(&mut lines);
        self.describe_auth(&mut lines);
        lines.add("peers", "every special-purpose range is denied");
        self.peers.allow.iter().for_each(|net| lines.add("", format!("allowed: {net}")));
        self.peers.deny.iter().for_each(|net| lines.add("", format!("denied: {net}")));
        self.describe_limits(&mut lines);
        self.describe_http(&mut lines);
        lines.add("admin", self.admin_text());
        lines.add("accounting", self.accounting.describe());
        self.pool.describe().into_iter().for_each(|text| lines.add("alternates", text));
        lines.add("drain", self.drain.describe());
        lines.add("upgrade", self.upgrade.describe());
        let per_user = self.log.session_lines_per_user;
        let per_user =
            per_user.map_or_else(String::new, |max| format!("; {max} lines of sessions a minute for each user"));
        let format = format!("{:?}", self.log.format).to_lowercase();
        lines.add("log", format!("{format}, from {} on{per_user}", self.log.level.name()));
        if !self.source.variables.is_empty() {
            lines.add("environment", self.source.variables.join(", "));
        }
        // Each key that differs from its default as it was understood, also those that no line above is about.
        for (at, state) in self.snapshot.keys().filter(|state| !state.is_default).enumerate() {
            let between = if state.key.value_type.is_tables() { ":" } else { " =" };
            lines.add(if at == 0 { "set" } else { "" }, format!("{}{between} {}", state.key.path, state.shown()));
        }
        self.warnings.iter().for_each(|warning| lines.add("warning", warning));
        lines.0
    }

    fn describe_listeners(&self, lines: &mut Lines) {
        for listen in &self.listen {
            match (listen.is_auto, listen.transport) {
                (true, Transport::Tls) => {
                    lines.add("listen", format!("tls and tcp {}{}", listen.address, behind(listen)))
                }
                (true, Transport::Tcp | Transport::Udp) => {}
                (false, transport) => {
                    lines.add("listen", format!("{} {}{}", transport.name(), listen.address, behind(listen)));
                    if let Some(shared) = &listen.shared {
                        lines.add("", shared_text(shared));
                    }
                }
            }
        }
        if self.listen.is_empty() {
            lines.add("listen", "nowhere: every list of [listen] is empty");
        }
        for (files, certificate) in self.tls.files.iter().zip(&self.tls.certificates) {
            lines.add("certificate", format!("{} with {}", files.certificate.display(), files.private_key.display()));
            lines.add("", certificate_text(certificate));
        }
        if let Some(acme) = &self.tls.acme {
            let (domains, proof) = (acme.domains.join(", "), acme.proof);
            lines.add("acme", format!("for {domains} from {}, by {}", acme.directory, proof.name()));
            let answered = match proof {
                Proof::TlsAlpn01 => "in the handshake of a listener for TLS".to_owned(),
                Proof::Http01(address) => format!("on {address}"),
            };
            lines.add("", format!("TCP port {} must be open to the internet; answered {answered}", proof.port()));
            lines.add("", format!("account and certificate in {}", acme.state.display()));
        }
    }

    fn describe_relay(&self, lines: &mut Lines) {
        let over = if self.relay.tcp.is_on { "UDP and TCP ports" } else { "UDP ports" };
        let ports = format!("{over} {}-{}", self.relay.ports.start(), self.relay.ports.end());
        for address in &self.relay.addresses {
            let told = match self.relay.external.advertised(*address) {
                Some(public) if public == *address => String::new(),
                Some(public) => format!(", told to clients as {public}"),
                None => ", not before its public address is known".to_owned(),
            };
            lines.add("relay", format!("from {address}{told}; {ports}"));
        }
        if self.relay.addresses.is_empty() {
            lines.add("relay", format!("from one address per family, found from the routes; {ports}"));
            match &self.relay.external {
                External::Same => {}
                External::PerFamily { .. } => {
                    lines.add("external", format!("clients are told {}", join(self.relay.external.public(), " and ")));
                }
                External::PerAddress(pairs) | External::Found { pairs, .. } => {
                    for (local, public) in pairs {
                        lines.add("external", format!("{local} is told to clients as {public}"));
                    }
                }
            }
        }
        for (tenant, part) in self.relay.port_parts.iter() {
            lines.add("", format!("ports {}-{} for \"{tenant}\" alone", part.first, part.last));
        }
        if let Some(source) = self.relay.external.source() {
            let every = DURATION.show(self.relay.external_look.interval.as_secs());
            lines.add("", format!("public addresses from \"{}\", looked at every {every}", source.name()));
        }
        if !self.relay.external_look.servers.is_empty() {
            lines.add(
                "",
                format!("public addresses as seen by {}", join(self.relay.external_look.servers.iter(), ", ")),
            );
        }
        let (default, max) = (DURATION.show(self.lifetimes.default.into()), DURATION.show(self.lifetimes.max.into()));
        lines.add("lifetimes", format!("{default} by default, at most {max}"));
        lines.add("channels", format!("0x4000 to {:#06X}", self.channel_numbers.max()).replace("0X", "0x"));
    }

    fn describe_auth(&self, lines: &mut Lines) {
        lines.add("users", self.auth.user_count());
        for of in self.auth.realms.iter().filter(|of| of.realm != self.realm) {
            lines.add("", format!("of the realm \"{}\": {}", of.realm, of.users.len()));
        }
        for (index, secret) in self.auth.secrets.iter().enumerate() {
            let mints = if index == 0 { ", mints" } else { "" };
            lines.add("secret", format!("{} ({}{mints})", secret.id, secret.algorithm.name()));
        }
        let (ttl, nonce) = (DURATION.show(self.auth.max_ttl), DURATION.show(self.auth.nonce_lifetime));
        let keyed = if self.nonce_key.is_some() { ", keyed by auth.nonce_key_file" } else { "" };
        lines.add("credentials", format!("end at most {ttl} ahead; a nonce is good for {nonce}{keyed}"));
        let offered = match self.auth.sha256 {
            Sha256Offer::Streams => "offered over TCP and TLS",
            Sha256Offer::Always => "offered over every transport",
            Sha256Offer::Never => "not offered",
        };
        lines.add("sha256", offered);
    }

    fn describe_limits(&self, lines: &mut Lines) {
        let tables = &self.limits.tables;
        let per_user = count(tables.allocations_per_user);
        let per_client = count(tables.allocations_per_client);
        let text = format!(
            "allocations: {} in all, {per_user} per user id, {per_client} per client address",
            count(tables.allocations)
        );
        lines.add("limits", text);
        let per_minute = count(tables.allocations_per_user_per_minute);
        let reserved = count(tables.reservations_per_user);
        lines.add("", format!("per user id: {per_minute} allocations a minute, {reserved} reserved ports"));
        let per_minute = count(tables.allocations_per_client_per_minute);
        lines.add("", format!("per client address: {per_minute} allocations a minute"));
        for (scope, max) in
            [("credential", tables.allocations_per_credential), ("tenant", tables.allocations_per_tenant)]
        {
            max.into_iter().for_each(|max| lines.add("", format!("allocations: {max} per {scope}")));
        }
        for (scope, rates) in scopes(tables) {
            if let Some(text) = rates_text(rates) {
                lines.add("", format!("{scope}: {text}, each way, {} ms ahead at most", tables.burst_ms));
            }
        }
        for (scope, bytes) in
            [("credential", tables.bytes_per_credential), ("user and day (UTC)", tables.bytes_per_user_per_day)]
        {
            let Some(bytes) = bytes.map(|bytes| SIZE.show(bytes)) else { continue };
            lines.add("", format!("bytes: {bytes} per {scope}, both ways together, IP and UDP heads included"));
        }
        let permissions = count(Some(tables.permissions_per_allocation).filter(|count| *count != u32::MAX));
        let channels = tables.channels_per_allocation;
        lines.add("", format!("per allocation: {permissions} permissions, {channels} channels"));
        let queued = self.limits.tcp_queue.map_or_else(no_limit, |bytes| SIZE.show(bytes as u64));
        let waits = self.limits.tcp_unauthenticated.map_or_else(no_limit, |time| DURATION.show(time.as_secs()));
        lines.add("", format!("per TCP client: {queued} queued, {waits} without authentication"));
        let half_open = count(self.limits.tcp_half_open);
        lines.add("", format!("TCP connections without an allocation: {half_open} at once"));
        if !self.tls.files.is_empty() {
            let half_open = count(self.limits.tls_half_open);
            let time = self.limits.tls_handshake.map_or_else(no_limit, |time| DURATION.show(time.as_secs()));
            lines.add("", format!("TLS handshakes: {half_open} at once, {time} each"));
        }
        if self.listen.iter().any(|listen| listen.shared.is_some()) {
            let idle = self.limits.shared_idle.map_or_else(no_limit, |time| DURATION.show(time.as_secs()));
            let most = count(self.limits.shared_connections);
            lines.add("", format!("passed on to web servers: {most} at once, {idle} without a byte"));
        }
    }

    fn describe_http(&self, lines: &mut Lines) {
        let hosts =
            if self.http.hosts.is_empty() { String::new() } else { format!("; hosts {}", self.http.hosts.join(", ")) };
        lines.add("http", format!("{}{hosts}", self.http_text().unwrap_or_else(|| "none".to_owned())));
        for listen in &self.http.public {
            let proxies = proxies_text(&listen.proxy_from);
            lines.add("", format!("{listen}, for other machines{proxies}: credentials and /healthz"));
        }
        self.issuing_text().iter().for_each(|text| lines.add("issues", text));
    }

    /// The same for machines: every number, word and flag by its row, and what has a form of its own.
    #[must_use]
    pub fn describe_json(&self) -> Value {
        let mut all = json!({
            "ok": true,
            "realm": &*self.realm,
            "challenge_bytes": self.challenge_bytes(),
            "workers": match self.workers { Workers::Auto => json!("auto"), Workers::Count(count) => json!(count) },
            "supervise": self.supervise,
            "listen": self.listen.iter().map(|listen| json!({
                "transport": listen.transport.name(), "address": listen.address, "auto": listen.is_auto,
                "realm": listen.tenancy.realm.as_ref().unwrap_or(&self.realm), "tenant": listen.tenancy.tenant,
                "proxy_from": listen.proxy_from.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "shared": listen.shared.as_ref().map(|shared| json!({
                    "backend": shared.backend, "names": &shared.names, "send_proxy": shared.send_proxy.name(),
                })),
            })).collect::<Vec<_>>(),
            "tls": self.tls_json(),
            "relay": {
                "addresses": self.relay.addresses.iter().map(|local| json!({
                    "local": local, "advertised": self.relay.external.advertised(*local),
                })).collect::<Vec<_>>(),
                "external": self.relay.external.public(),
                "external_source": self.relay.external.source().map(|source| source.name()),
                "external_servers": self.relay.external_look.servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "ports": [self.relay.ports.start(), self.relay.ports.end()],
                "tcp": self.relay.tcp.is_on,
                "ports_by_tenant": self.relay.port_parts.iter().map(|(tenant, part)| {
                    (tenant.to_owned(), json!([part.first, part.last]))
                }).collect::<serde_json::Map<_, _>>(),
            },
            "auth": {
                "users": self.auth.user_count(),
                "secrets": self.auth.secrets.iter().map(|secret| json!({
                    "id": &*secret.id, "algorithm": secret.algorithm.name(),
                })).collect::<Vec<_>>(),
                "nonce_key_file": self.nonce_key.is_some(),
            },
            "peers": { "allow": strings(&self.peers.allow), "deny": strings(&self.peers.deny) },
            "limits": {
                "rates": scopes(&self.limits.tables).map(|(scope, rates)| json!({
                    "scope": scope,
                    "bits_per_second": rates.bits_per_second,
                    "packets_per_second": rates.packets_per_second,
                })),
                "burst_ms": self.limits.tables.burst_ms,
                "channels_per_allocation": self.limits.tables.channels_per_allocation,
            },
            "http": self.http_json(),
            "turn": { "alternates": self.pool.describe_json() },
            "drain": self.drain.describe_json(),
            "accounting": {
                "interval": self.accounting.interval,
                "file": self.accounting.file.as_ref().map(|file| file.path.display().to_string()),
                "journal": self.accounting.journal.as_ref().map(|path| path.display().to_string()),
                "webhook": self.accounting.webhook.as_ref().map(|hook| hook.url.to_string()),
                "signed": self.accounting.sign_key.is_some(),
            },
            "environment": self.source.variables,
            "settings": self.snapshot.keys().map(|state| {
                (state.key.path.to_owned(), json!({ "value": state.shown(), "default": state.is_default }))
            }).collect::<serde_json::Map<_, _>>(),
            "warnings": self.warnings.iter().map(problem_json).collect::<Vec<_>>(),
        });
        for state in self.snapshot.keys() {
            if let (Some(value), Some((section, name))) = (&state.json, state.key.path.split_once('.'))
                && all[section].get(name).is_none()
            {
                all[section][name] = value.clone();
            }
        }
        all
    }

    fn tls_json(&self) -> Value {
        json!({
            "certificates": self.tls.files.iter().zip(&self.tls.certificates).map(|(files, of)| json!({
                "certificate": files.certificate, "private_key": files.private_key,
                "names": of.names, "days": days_until(of.not_after), "stand_in": of.is_stand_in,
                "chain": of.chain.iter().map(|link| json!({
                    "subject": link.subject, "issuer": link.issuer, "days": days_until(link.not_after),
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "name": self.tls.name.as_deref(),
            "acme": self.tls.acme.as_ref().map(|acme| json!({
                "domains": strings(&acme.domains), "directory": acme.directory.to_string(),
                "challenge": acme.proof.name(), "port": acme.proof.port(), "state": acme.state,
                "http_listen": match acme.proof { Proof::TlsAlpn01 => None, Proof::Http01(address) => Some(address) },
            })),
        })
    }

    fn http_json(&self) -> Value {
        let issuing = &self.http.issuing;
        json!({
            "listen": self.http_text(),
            "hosts": strings(&self.http.hosts),
            "public": strings(&self.http.public),
            "public_proxy_from": self.http.public.iter().filter(|of| !of.proxy_from.is_empty()).map(|of| {
                (of.address.to_string(), json!(strings(of.proxy_from.iter())))
            }).collect::<serde_json::Map<_, _>>(),
            "public_name": issuing.public_name,
            "keys": issuing.keys.iter().map(|key| json!({
                "name": &*key.name, "max_ttl": key.max_ttl, "from": strings(&key.from),
            })).collect::<Vec<_>>(),
            "unix_uids": issuing.unix_uids,
            "chatmail_socket": self.http.chatmail_socket,
            "proxies": strings(&issuing.proxies),
            "identity_header": issuing.identity_header,
            "jwt": issuing.jwt.as_ref().map(|jwt| json!({
                "keys": jwt.source.describe(), "audience": jwt.expected.audience, "issuer": jwt.expected.issuer,
                "user_claim": jwt.expected.user_claim,
            })),
            "cors": issuing.cors,
            "admin_socket": self.http.admin_socket,
            "admin_token": self.admin.token.is_some(),
            "admin_uids": self.admin.uids,
        })
    }

    /// Which callers get credentials over HTTP.
    fn issuing_text(&self) -> Vec<String> {
        let issuing = &self.http.issuing;
        let mut lines = Vec::new();
        for key in &issuing.keys {
            let mut text = format!("credentials to key {}", key.name);
            if let Some(ttl) = key.max_ttl {
                text += &format!(", for up to {}", DURATION.show(ttl));
            }
            if !key.from.is_empty() {
                text += &format!(", from {}", join(&key.from, ", "));
            }
            lines.push(text);
        }
        if !issuing.unix_uids.is_empty() {
            let uids = join(&issuing.unix_uids, ", ");
            lines.push(format!("credentials over a unix socket to the users with the ids {uids}"));
        }
        if let Some(path) = &self.http.chatmail_socket {
            let ttl = DURATION.show(issuing.chatmail_ttl.min(self.auth.max_ttl));
            lines.push(format!("credentials as lines to the same users on {}, for {ttl}", path.display()));
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
            let proxies = join(&issuing.proxies, ", ");
            lines.push(format!("credentials to the user that the header {header} of the proxies {proxies} names"));
        }
        if lines.is_empty() {
            lines.push("credentials over HTTP: off (no http.keys)".to_owned());
        }
        lines
    }

    fn admin_text(&self) -> String {
        let mut who = Vec::new();
        if self.admin.token.is_some() {
            who.push("callers with the token".to_owned());
        }
        let uids = &self.admin.uids;
        let more = if uids.is_empty() { String::new() } else { format!(", user ids {}", join(uids, ", ")) };
        let over = |path: &std::path::Path| format!("root and the server's own user{more} over {}", path.display());
        if let Some(HttpListen::Unix(path)) = &self.http.listen {
            who.push(over(path));
        }
        if let Some(path) = &self.http.admin_socket {
            who.push(over(path));
        }
        // Which keys say so is here; the unit's runtime directory is known to the server alone.
        let is_by_default = self.snapshot.keys().any(|state| state.key.path == "http.admin_socket" && state.is_default);
        if self.http.admin_socket.is_none() && is_by_default {
            who.push(format!(
                "under systemd root and the server's own user{more} over admin.sock in the runtime directory"
            ));
        }
        let who = if who.is_empty() {
            "off: neither http.admin_socket nor http.admin_token_file is set".to_owned()
        } else {
            who.join("; ")
        };
        let file = |path: Option<&Path>| match path {
            Some(path) => path.display().to_string(),
            None => "the state directory of the unit, if there is one".to_owned(),
        };
        let revocations = file(self.admin.revocations_file.as_deref());
        let limits = match file(self.admin.limits_file.as_deref()) {
            same if same == revocations => "as well".to_owned(),
            other => format!("in {other}"),
        };
        format!("{who}; revocations are kept in {revocations}, limits set at run time {limits}")
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
    let (file, line, variable) = match &problem.location {
        SourceLocation::File(path, line) => (Some(path.display().to_string()), Some(*line), None),
        SourceLocation::WholeFile(path) => (Some(path.display().to_string()), None, None),
        SourceLocation::Variable(name) => (None, None, Some(&**name)),
        SourceLocation::Nowhere => (None, None, None),
    };
    json!({
        "file": file, "line": line, "variable": variable, "key": problem.key, "value": problem.value,
        "message": problem.message, "suggestion": problem.suggestion,
    })
}

/// Names, days and chain of a certificate.
fn certificate_text(of: &Summary) -> String {
    let ends = |seconds: u64| match days_until(seconds) {
        days if days < 0 => format!("ended {} days ago", -days),
        days => format!("ends in {days} days"),
    };
    if of.is_stand_in {
        return format!("a stand-in, which clients refuse, until there is one for {}", of.names.join(", "));
    }
    let names = if of.names.is_empty() { "no host name".to_owned() } else { of.names.join(", ") };
    let mut text = format!("for {names}; {}", ends(of.not_after));
    let chain: Vec<String> =
        of.chain.iter().skip(1).map(|link| format!("{} ({})", link.subject, ends(link.not_after))).collect();
    match (of.chain.first(), chain.as_slice()) {
        (Some(own), []) => text += &format!("; issued by {}, and nothing else in the file", own.issuer),
        (_, chain) => text += &format!("; chain: {}", chain.join(", ")),
    }
    text
}

fn strings<T: Display>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

fn join<T: Display>(items: impl IntoIterator<Item = T>, between: &str) -> String {
    strings(items).join(between)
}

fn no_limit() -> String {
    "no limit".to_owned()
}

fn count(limit: Option<u32>) -> String {
    limit.map_or_else(no_limit, |limit| limit.to_string())
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
    let bits = rates.bits_per_second.map(|rate| RATE.show(rate));
    let packets = rates.packets_per_second.map(|rate| format!("{rate} packets/s"));
    let both: Vec<String> = bits.into_iter().chain(packets).collect();
    (!both.is_empty()).then(|| both.join(" and "))
}

/// What becomes of the connections to a port that a web server has too.
fn shared_text(shared: &SharedPort) -> String {
    let names = if shared.names.is_empty() { String::new() } else { format!("{}, ", join(&shared.names, ", ")) };
    let header = match shared.send_proxy {
        SendProxy::Off => "",
        SendProxy::V1 => ", with a PROXY header of version 1",
        SendProxy::V2 => ", with a PROXY header of version 2",
    };
    format!("for {names}stun.turn, or neither name nor protocol; all else is passed on to {}{header}", shared.backend)
}

/// Whose a listener is, and who connects to it, if it is not everybody.
fn behind(listen: &Listen) -> String {
    let mut text = String::new();
    if let Some(realm) = &listen.tenancy.realm {
        let _ = write!(text, ", realm \"{realm}\"");
    }
    if let Some(tenant) = &listen.tenancy.tenant {
        let _ = write!(text, ", tenant \"{tenant}\"");
    }
    text + &proxies_text(&listen.proxy_from)
}

/// What connects, where only proxies do.
fn proxies_text(proxy_from: &[IpNet]) -> String {
    if proxy_from.is_empty() {
        return String::new();
    }
    let proxies: Vec<String> = proxy_from.iter().map(ToString::to_string).collect();
    format!(", for proxies at {}, each with a PROXY header", proxies.join(", "))
}
