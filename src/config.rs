//! What the operator says: the file, the environment, the defaults.
//!
//! This file is the list of every key with its meaning and its default; nothing else knows a
//! default. `document` reads TOML and remembers where each value stands, `environment` lays
//! variables over it, `check` turns the whole into a [`Config`] or into every error at once.

pub mod accounting;
pub mod admin;
pub mod checked;
pub mod describe;
pub mod diff;
pub mod drain;
pub mod environment;
pub mod error;
pub mod initial_secret;
pub mod issuing;

mod check;
mod check_admin;
mod check_auth;
mod check_drain;
mod check_issuing;
mod check_limits;
mod check_network;
mod check_tls;
mod document;
mod units;

use std::path::Path;

pub use checked::Config;
pub use environment::Environment;
pub use error::ConfigError;
pub(crate) use units::{
    duration as parse_duration, instant as parse_instant, rate as parse_rate, show_bytes, show_rate, size as parse_size,
};

use crate::config::error::{Place, Problem};
use crate::credentials::SharedSecret;

/// Where `serve` looks when it is not told.
pub const DEFAULT_PATH: &str = "/etc/throughway/config.toml";

/// What a value may look like; decides how a variable's text becomes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole number, or a string where one has a name.
    Number,
    /// A list of strings.
    List,
    /// A string or a list of strings.
    TextOrList,
    /// true or false.
    Flag,
    /// Tables, which no variable can hold.
    Tables,
}

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and name.
    pub path: &'static str,
    /// What it may look like.
    pub kind: Kind,
    /// The default as TOML.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Key {
    Key { path, kind, default, meaning }
}

/// Every key of this version.
pub const KEYS: &[Key] = &[
    key("realm", Kind::Text, "\"throughway\"", "named in the 401 challenge; up to 12 bytes keep that answer small"),
    key("workers", Kind::Number, "\"auto\"", "threads that relay: \"auto\" or 1 to 256"),
    key("listen.udp", Kind::List, "[\"0.0.0.0:3478\", \"[::]:3478\"]", "where clients come by UDP; [::] is IPv6 only"),
    key("listen.tcp", Kind::List, "[\"0.0.0.0:3478\", \"[::]:3478\"]", "where clients come by TCP; [::] is IPv6 only"),
    key("listen.tls", Kind::List, "[]", "where clients come by TLS, often \"0.0.0.0:5349\" or \"0.0.0.0:443\""),
    key("listen.auto", Kind::List, "[]", "ports that take TLS and plain TCP, told apart by the first byte"),
    key("tls.certificate", Kind::Text, "\"\"", "PEM file of the certificate's chain; reread when it changes"),
    key("tls.private_key", Kind::Text, "\"\"", "PEM file of its private key; reread when it changes"),
    key("tls.certificates", Kind::Tables, "[]", "further pairs of certificate and private_key, chosen by server name"),
    key(
        "relay.addresses",
        Kind::List,
        "[]",
        "local addresses to relay from; empty: one per family, found from the routes",
    ),
    key(
        "relay.external",
        Kind::TextOrList,
        "\"\"",
        "what clients are told for its own family; a list of one per family, or a table from local to public",
    ),
    key("relay.ports", Kind::Text, "\"49152-65535\"", "ports of relayed sockets"),
    key(
        "relay.segmentation_offload",
        Kind::Flag,
        "true",
        "let the kernel coalesce and segment bursts (UDP_GRO, UDP_SEGMENT)",
    ),
    key(
        "relay.coalesce_microseconds",
        Kind::Number,
        "0",
        "how long a worker lets packets gather above 50,000 per second; 0 = not at all, 200 at the most",
    ),
    key("turn.default_lifetime", Kind::Text, "\"600s\"", "granted to a client that asks for less or for nothing"),
    key("turn.max_lifetime", Kind::Text, "\"3600s\"", "the longest lifetime granted"),
    key("auth.users", Kind::Tables, "{}", "static users: a password, or a table of password, file or key_md5"),
    key("auth.secrets", Kind::Tables, "[]", "secrets of time-limited credentials; the first one mints"),
    key("auth.max_ttl", Kind::Text, "\"48h\"", "how far ahead a time-limited credential may end"),
    key("auth.nonce_lifetime", Kind::Text, "\"1h\"", "how long a nonce is good for"),
    key(
        "auth.on_expiry",
        Kind::Text,
        "\"keep\"",
        "what an expired credential does to its live sessions: keep, deny_new (no new peers) or close",
    ),
    key("auth.expiry_grace", Kind::Text, "\"60s\"", "how long after its expiry \"close\" closes; 0 = at once"),
    key(
        "auth.max_session",
        Kind::Number,
        "0",
        "how long an allocation may live at most, such as \"24h\"; 0 = no limit",
    ),
    key("auth.nonce_key_file", Kind::Text, "\"\"", "key of the nonces, the same on every server of a fleet"),
    key(
        "auth.revocations_file",
        Kind::Text,
        "\"\"",
        "where revocations survive a restart; \"\" = revocations in the state directory of the unit, else nowhere",
    ),
    key("peers.allow", Kind::List, "[]", "prefixes opened in spite of the built-in table"),
    key("peers.deny", Kind::List, "[]", "prefixes closed"),
    key("limits.allocations", Kind::Number, "100000", "allocations on the whole server; 0 = no limit"),
    key(
        "limits.allocations_per_user",
        Kind::Number,
        "100",
        "allocations per user id of time-limited credentials; 0 = no limit",
    ),
    key(
        "limits.allocations_per_credential",
        Kind::Number,
        "0",
        "allocations per time-limited credential; 0 = no limit",
    ),
    key("limits.allocations_per_tenant", Kind::Number, "0", "allocations per tenant; 0 = no limit"),
    key("limits.allocations_per_client", Kind::Number, "2000", "allocations per client /32 or /56; 0 = no limit"),
    key(
        "limits.bandwidth",
        Kind::Number,
        "0",
        "payload of the whole server, each way, such as \"3Mbit/s\"; 0 = no limit",
    ),
    key(
        "limits.bandwidth_per_tenant",
        Kind::Number,
        "0",
        "payload of a tenant, each way, such as \"3Mbit/s\"; 0 = no limit",
    ),
    key(
        "limits.bandwidth_per_client",
        Kind::Number,
        "0",
        "payload of a client /32 or /56, each way, such as \"3Mbit/s\"; 0 = no limit",
    ),
    key(
        "limits.bandwidth_per_user",
        Kind::Number,
        "0",
        "payload of a user, each way, such as \"3Mbit/s\"; 0 = no limit",
    ),
    key(
        "limits.bandwidth_per_credential",
        Kind::Number,
        "0",
        "payload of a credential, each way, such as \"3Mbit/s\"; 0 = no limit",
    ),
    key(
        "limits.bandwidth_per_allocation",
        Kind::Number,
        "0",
        "payload of an allocation, each way, such as \"3Mbit/s\"; 0 = no limit",
    ),
    key("limits.packet_rate", Kind::Number, "0", "packets per second of the whole server, each way; 0 = no limit"),
    key("limits.packet_rate_per_tenant", Kind::Number, "0", "packets per second of a tenant, each way; 0 = no limit"),
    key(
        "limits.packet_rate_per_client",
        Kind::Number,
        "0",
        "packets per second of a client /32 or /56, each way; 0 = no limit",
    ),
    key("limits.packet_rate_per_user", Kind::Number, "0", "packets per second of a user, each way; 0 = no limit"),
    key(
        "limits.packet_rate_per_credential",
        Kind::Number,
        "0",
        "packets per second of a credential, each way; 0 = no limit",
    ),
    key(
        "limits.packet_rate_per_allocation",
        Kind::Number,
        "0",
        "packets per second of an allocation, each way; 0 = no limit",
    ),
    key("limits.burst", Kind::Text, "\"1s\"", "how long a flow may run ahead of its bandwidth or packet rate"),
    key(
        "limits.bytes_per_credential",
        Kind::Number,
        "0",
        "payload of a time-limited credential, both ways together, such as \"10GiB\"; 0 = no limit",
    ),
    key(
        "limits.bytes_per_user_per_day",
        Kind::Number,
        "0",
        "payload of a user and a day (UTC), both ways together; 0 = no limit",
    ),
    key("limits.permissions_per_allocation", Kind::Number, "64", "live permissions of one allocation; 0 = no limit"),
    key("limits.channels_per_allocation", Kind::Number, "64", "live channels of one allocation; 0 = no limit"),
    key("limits.tcp_queue", Kind::Text, "\"256KiB\"", "what may wait for one TCP client; 0 = no limit"),
    key(
        "limits.tcp_unauthenticated",
        Kind::Text,
        "\"10s\"",
        "how long a TCP connection may stay unauthenticated; 0 = no limit",
    ),
    key("limits.tls_handshake", Kind::Text, "\"10s\"", "how long a TLS handshake may take; 0 = no limit"),
    key("limits.tls_half_open", Kind::Number, "1000", "TLS handshakes under way at once; 0 = no limit"),
    key(
        "limits.credentials_per_key",
        Kind::Number,
        "600",
        "credentials a minute for each of http.keys, all proxies or all unix peers; 0 = no limit",
    ),
    key(
        "limits.credentials_per_user",
        Kind::Number,
        "30",
        "credentials a minute for each user id that a caller names; 0 = no limit",
    ),
    key(
        "http.listen",
        Kind::Text,
        "\"127.0.0.1:8080\"",
        "metrics, health, credentials, admin API: loopback or unix:/path; \"\" = none",
    ),
    key("http.hosts", Kind::List, "[]", "further Host names for http.listen; loopback names are always allowed"),
    key(
        "http.public",
        Kind::List,
        "[]",
        "where credentials and /healthz, and nothing else, are served to everybody: https://address:port, or without TLS",
    ),
    key("http.public_name", Kind::Text, "\"\"", "the host that turn: URIs name; empty: the addresses clients are told"),
    key("http.ttl", Kind::Text, "\"1h\"", "lifetime of a credential whose caller asks for none"),
    key(
        "http.keys",
        Kind::Tables,
        "[]",
        "who may ask for credentials: tables of name, sha256, max_ttl, from, tenant and limits",
    ),
    key("http.unix_uids", Kind::List, "[]", "user ids of this machine that may ask over a unix socket without a key"),
    key("http.proxies", Kind::List, "[]", "prefixes of reverse proxies whose X-Forwarded-For is believed"),
    key("http.identity_header", Kind::Text, "\"\"", "in which header these proxies name the user who has logged in"),
    key(
        "http.jwt_keys",
        Kind::Text,
        "\"\"",
        "a JWKS, file or https:// URL: who shows a JSON Web Token signed with one of its keys may ask",
    ),
    key(
        "http.jwt_ca_file",
        Kind::Text,
        "\"\"",
        "PEM file of the authorities that certify that URL; \"\" = those that the system trusts",
    ),
    key("http.jwt_audience", Kind::Text, "\"\"", "the audience that such a token must name"),
    key("http.jwt_issuer", Kind::Text, "\"\"", "the issuer that it must come from; empty: any that has a key there"),
    key("http.jwt_user_claim", Kind::Text, "\"sub\"", "the claim of it that names the user"),
    key("http.jwt_tenant_claim", Kind::Text, "\"\"", "the claim that names the user's tenant; \"\" = none"),
    key("http.jwt_limits_claim", Kind::Text, "\"\"", "the claim that holds the user's limits; \"\" = none"),
    key("http.cors", Kind::List, "[]", "origins of web pages that may ask, such as https://app.example.org"),
    key("http.admin_token_file", Kind::Text, "\"\"", "holds the bearer token of the admin API; \"\" = none"),
    key(
        "http.admin_token_credential",
        Kind::Text,
        "\"\"",
        "the same, as a name that LoadCredential= of the unit gives it",
    ),
    key(
        "http.admin_uids",
        Kind::List,
        "[]",
        "user ids that may use the admin API over a unix socket, besides root and the server's own",
    ),
    key("accounting.interval", Kind::Text, "\"60s\"", "between two records of a live session; 0 = none"),
    key("accounting.file", Kind::Text, "\"\"", "usage records as JSON lines; \"\" = none"),
    key("accounting.rotate_size", Kind::Text, "\"64MiB\"", "a new file beyond this size; 0 = never"),
    key("accounting.rotate_count", Kind::Number, "0", "how many renamed files stay; 0 = all"),
    key("accounting.journal", Kind::Text, "\"\"", "the journal's socket, /run/systemd/journal/socket; \"\" = none"),
    key("accounting.webhook", Kind::Text, "\"\"", "https:// or http:// URL that records are posted to; \"\" = none"),
    key(
        "accounting.webhook_ca_file",
        Kind::Text,
        "\"\"",
        "PEM file of the authorities that certify the webhook; \"\" = those that the system trusts",
    ),
    key("accounting.webhook_token_file", Kind::Text, "\"\"", "holds the bearer token for the webhook"),
    key("accounting.spool", Kind::Text, "\"\"", "directory in which records wait for the webhook"),
    key("accounting.spool_max", Kind::Text, "\"64MiB\"", "how much may wait there"),
    key("accounting.sign_key_file", Kind::Text, "\"\"", "key that signs each line, at least 16 bytes; \"\" = unsigned"),
    key(
        "log.format",
        Kind::Text,
        "\"auto\"",
        "text, json, journal, or auto: whichever fits where standard error leads",
    ),
    key("log.journal", Kind::Text, "\"/run/systemd/journal/socket\"", "the journal's socket; \"\" = never write there"),
    key("drain.on_term", Kind::Flag, "false", "SIGTERM drains instead of ending every call at once"),
    key("drain.deadline", Kind::Text, "\"1h\"", "how long calls may go on while draining; 0 = as long as they last"),
    key("drain.alternate", Kind::List, "[]", "another server that clients are sent to; one address per family"),
    key("drain.alternate_tls", Kind::List, "[]", "the same for clients over TLS, which is another port there"),
    key("drain.alternate_domain", Kind::Text, "\"\"", "the name in its certificate, if clients don't know it already"),
    key("log.level", Kind::Text, "\"info\"", "error, warn, info, debug or trace"),
];

/// Keys of later versions, each with the value that says "off" and is therefore accepted.
pub const LATER: &[(&str, Option<&str>)] =
    &[("listen.shared", Some("[]")), ("relay.tcp", Some("false")), ("relay.mobility", Some("false"))];

impl Config {
    /// Checks a text, without any environment; `name` stands for the file in errors.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, ConfigError> {
        check::check(Some((Path::new(name), text)), &Environment::default(), None)
    }

    /// Reads and checks a file with the environment laid over it.
    ///
    /// # Errors
    /// Every mistake in either.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let text = Self::read(path)?;
        let mut config = check::check(Some((path, &text)), environment, None)?;
        if config.source.holds_secrets && initial_secret::is_world_readable(path) {
            config.warnings.push(Problem::new(
                Place::WholeFile(path.to_owned()),
                "",
                "holds secrets and every user of this machine can read it; chmod 0640 it and give it the server's group",
            ));
        }
        Ok(config)
    }

    fn read(path: &Path) -> Result<String, ConfigError> {
        std::fs::read_to_string(path).map_err(|error| {
            Problem::new(Place::WholeFile(path.to_owned()), "", format!("can't read the configuration: {error}")).into()
        })
    }

    /// The defaults with the environment laid over them, for a server without a file.
    ///
    /// `initial` makes or finds a secret; it is asked only if the environment has none.
    ///
    /// # Errors
    /// Every mistake in the environment, or what `initial` says.
    pub fn without_file(
        environment: &Environment,
        initial: impl FnOnce() -> Result<SharedSecret, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let secret = if environment.has_secret() { None } else { Some(initial()?) };
        check::check(None, environment, secret)
    }

    /// Reads everything again: the same file, or the defaults with the initial secret.
    ///
    /// # Errors
    /// Every mistake; the running configuration then stays as it is.
    pub fn reload(&self, environment: &Environment) -> Result<Self, ConfigError> {
        match &self.source.file {
            Some(path) => Self::load(path, environment),
            None => check::check(None, environment, self.source.initial_secret.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::settings::Limits;

    const LEAST: &str = "[[auth.secrets]]\nid = \"a\"\nvalue = \"north\"\n";

    #[test]
    fn defaults_are_those_that_the_core_states_too() {
        let config = Config::from_toml("c.toml", LEAST).unwrap();
        assert_eq!(config.limits.tables, Limits::default());
        assert_eq!(config.limits.tcp_queue, Some(256 * 1024));
        assert_eq!((config.lifetimes.default, config.lifetimes.max), (600, 3600));
        assert_eq!(config.challenge_bytes(), 72);
        assert_eq!(config.listen.len(), 4);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn writing_every_default_out_changes_nothing() {
        let mut text = String::new();
        for key in KEYS.iter().filter(|key| key.kind != Kind::Tables) {
            text += &format!("{} = {}\n", key.path, key.default);
        }
        let written = Config::from_toml("c.toml", &(text + LEAST)).unwrap();
        let absent = Config::from_toml("c.toml", LEAST).unwrap();
        assert_eq!(format!("{written:?}"), format!("{absent:?}"));
    }

    #[test]
    fn keys_of_later_versions_are_accepted_when_off_and_refused_otherwise() {
        for (path, off) in LATER {
            let wrong = Config::from_toml("c.toml", &format!("{path} = \"x\"\n{LEAST}")).unwrap_err();
            assert!(wrong.to_string().contains("not in this version"), "{path}: {wrong}");
            assert_eq!(wrong.problems.len(), 1, "{wrong}");
            if let Some(off) = off {
                Config::from_toml("c.toml", &format!("{path} = {off}\n{LEAST}")).unwrap();
            }
        }
    }

    #[test]
    fn reload_keeps_the_initial_secret() {
        let secret = || Ok(SharedSecret::new("initial", crate::credentials::Secret::new(*b"s"), Default::default()));
        let config = Config::without_file(&Environment::default(), secret).unwrap();
        let again = config.reload(&Environment::default()).unwrap();
        assert_eq!(again.auth.secrets, config.auth.secrets);
        assert!(config.needs_restart(&again).is_empty());
    }
}
