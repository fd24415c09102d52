//! What a reload changes: two configurations compared key by key, and which keys wait for a restart.
//!
//! It compares what was written (and what the named files hold), so a new key is part of it without a line here.
//! No secret is ever part of a difference: users, secrets and keys appear by name, files by path.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher};
use std::sync::OnceLock;

use serde::Serialize;

use crate::config::accounting::AccountingConfig;
use crate::config::admin::AdminConfig;
use crate::config::check::Check;
use crate::config::checked::{Config, LogConfig, RelayConfig};
use crate::config::document::{self, Node, Value};
use crate::config::{KEYS, Kind};

/// Names that one difference tells; more are counted.
const NAMES_MAX: usize = 20;

/// Keys that a running server can't take over, and why. A name that ends with a dot is a section.
const RESTART: [(&str, &str); 9] = [
    ("realm", "it is in the key of every client"),
    ("workers", "each client belongs to one of them"),
    ("relay.addresses", "sessions relay from them"),
    ("relay.external", "sessions were told the old one"),
    ("auth.nonce_key_file", "every client has a nonce of the old key"),
    ("auth.revocations_file", "those of now are in the old one"),
    ("accounting.", "records that wait belong to the places of the start"),
    ("log.format", "the log was opened at the start"),
    ("log.journal", "the log was opened at the start"),
];

/// Why a key needs a restart; `None` if a reload is enough.
#[must_use]
pub fn restart_reason(key: &str) -> Option<&'static str> {
    // How often a live session is accounted for is the core's affair, which follows.
    if key == "accounting.interval" {
        return None;
    }
    let found = RESTART.iter().find(|(path, _)| *path == key || (path.ends_with('.') && key.starts_with(path)));
    found.map(|(_, reason)| *reason)
}

/// What every key said.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Written(Vec<Said>);

// It knows digests of secrets.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").finish_non_exhaustive()
    }
}

/// What one key said.
#[derive(Clone, PartialEq, Eq)]
struct Said {
    key: &'static str,
    what: What,
}

#[derive(Clone, PartialEq, Eq)]
enum What {
    /// One value: how it is shown, the whole of it, and what is in the file that it names.
    Value { shown: String, digest: u64, content: u64 },
    /// Names, each with everything that belongs to it.
    Entries(Vec<(String, u64)>),
}

/// One key that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// Section and name.
    pub key: &'static str,
    /// From what to what.
    pub change: String,
    /// Why it takes effect at the next start only; `None` if it took effect at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs_restart: Option<&'static str>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.change)?;
        self.needs_restart.map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

/// Hashes with a key of this process: a digest tells nothing about a secret to anybody else.
fn digest(feed: impl FnOnce(&mut dyn Hasher)) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let mut hasher = KEY.get_or_init(RandomState::new).build_hasher();
    feed(&mut hasher);
    hasher.finish()
}

/// The digest of what is in a file.
pub(crate) fn digest_of(bytes: &[u8]) -> u64 {
    digest(|mut hasher| bytes.hash(&mut hasher))
}

fn feed_node(node: &Node, mut hasher: &mut dyn Hasher) {
    match &node.value {
        Value::Text(text) => (0_u8, text).hash(&mut hasher),
        Value::Integer(_, text) | Value::Other(text) => (1_u8, text).hash(&mut hasher),
        Value::List(items) => {
            (2_u8, items.len()).hash(&mut hasher);
            items.iter().for_each(|item| feed_node(item, hasher));
        }
        Value::Table(entries) => {
            (3_u8, entries.len()).hash(&mut hasher);
            for entry in entries {
                entry.key.hash(&mut hasher);
                feed_node(&entry.node, hasher);
            }
        }
    }
}

/// What stands in a key that names no file is shown, unless its name says that it is a secret.
fn is_secret(key: &str) -> bool {
    let is_path_or_limit = key == "tls.private_key" || key.starts_with("limits.");
    !is_path_or_limit && ["secret", "token", "password", "key"].iter().any(|end| key.ends_with(end))
}

impl Written {
    /// What a document says, and the files that it names.
    pub(crate) fn of(check: &Check) -> Self {
        Self(KEYS.iter().map(|key| Said { key: key.path, what: What::of(check, key.path, key.kind) }).collect())
    }

    /// Takes the keys that wait for a restart from what the server was started with.
    fn keep_until_restart(&mut self, old: &Self) {
        for said in &mut self.0 {
            if restart_reason(said.key).is_some()
                && let Some(before) = old.0.iter().find(|before| before.key == said.key)
            {
                said.what = before.what.clone();
            }
        }
    }
}

impl What {
    fn of(check: &Check, path: &'static str, kind: Kind) -> Self {
        let node = check.get(path);
        let content = |name: &str| {
            let inside = format!("{name}.");
            let of_name = check.contents.iter().filter(|(key, _)| key == name || key.starts_with(&inside));
            of_name.fold(0, |sum: u64, (_, content)| sum.rotate_left(1) ^ content)
        };
        let entry = |name: String, node: &Node, key: &str| {
            let whole = digest(|mut hasher| {
                feed_node(node, hasher);
                content(key).hash(&mut hasher);
            });
            (name, whole)
        };
        match (kind, &node.value) {
            (Kind::Tables, Value::Table(entries)) => Self::Entries(
                entries
                    .iter()
                    .map(|of| {
                        let key = format!("{path}.{}", document::bare_or_quoted(&of.key));
                        entry(document::quote(&of.key), &of.node, &key)
                    })
                    .collect(),
            ),
            (Kind::Tables | Kind::List, Value::List(items)) => {
                let named =
                    items.iter().enumerate().map(|(at, item)| entry(name_of(item, at), item, &format!("{path}[{at}]")));
                let mut entries: Vec<_> = named.collect();
                // The first secret may stand in a file that a variable names.
                if path == "auth.secrets"
                    && let Some((_, content)) = check.contents.iter().find(|(key, _)| key == "auth.secret_file")
                {
                    entries.insert(0, ("\"environment\"".to_owned(), *content));
                }
                Self::Entries(entries)
            }
            _ => Self::Value {
                shown: if is_secret(path) { "not shown".to_owned() } else { node.render() },
                digest: digest(|hasher| feed_node(&node, hasher)),
                content: content(path),
            },
        }
    }

    /// From what to what; `None` if they are the same.
    fn change(&self, new: &Self) -> Option<String> {
        match (self, new) {
            _ if self == new => None,
            (Self::Entries(old), Self::Entries(new)) => Some(entries_change(old, new)),
            (Self::Value { shown: old, digest: before, .. }, Self::Value { shown: new, digest: after, .. }) => {
                Some(match () {
                    () if before == after => format!("what is in {new} changed"),
                    () if old == new => "changed".to_owned(),
                    () => format!("{old} -> {new}"),
                })
            }
            // A list that was a table, say.
            (Self::Value { .. }, Self::Entries(_)) | (Self::Entries(_), Self::Value { .. }) => {
                Some("changed".to_owned())
            }
        }
    }
}

/// How a person calls an entry of a list.
fn name_of(item: &Node, at: usize) -> String {
    match &item.value {
        Value::Table(fields) => ["id", "name", "address", "certificate"]
            .iter()
            .find_map(|name| fields.iter().find(|field| field.key == *name))
            .map_or_else(|| format!("number {}", at + 1), |field| field.node.render()),
        Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) => item.render(),
    }
}

fn entries_change(old: &[(String, u64)], new: &[(String, u64)]) -> String {
    let missing_in = |others: &[(String, u64)], own: &[(String, u64)]| -> Vec<String> {
        own.iter()
            .filter(|(name, _)| !others.iter().any(|(other, _)| other == name))
            .map(|(name, _)| name.clone())
            .collect()
    };
    let changed = new.iter().filter(|(name, whole)| old.iter().any(|(other, before)| other == name && before != whole));
    let parts: Vec<String> = [
        ("added", missing_in(old, new)),
        ("removed", missing_in(new, old)),
        ("changed", changed.map(|(name, _)| name.clone()).collect()),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| {
        let more = names.len().saturating_sub(NAMES_MAX);
        let shown = names.into_iter().take(NAMES_MAX).collect::<Vec<_>>().join(" ");
        if more == 0 { format!("{what} {shown}") } else { format!("{what} {shown} and {more} more") }
    })
    .collect();
    if parts.is_empty() { "another order".to_owned() } else { parts.join(", ") }
}

impl Config {
    /// Every key in which `new` differs, in the order of the list of keys.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let pairs = self.written.0.iter().zip(&new.written.0);
        pairs
            .filter_map(|(old, new)| {
                let change = old.what.change(&new.what)?;
                Some(Change { key: old.key, change, needs_restart: restart_reason(old.key) })
            })
            .collect()
    }

    /// Keys in which `new` differs that a running server cannot take over.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changes = self.changes(new);
        changes.into_iter().filter(|change| change.needs_restart.is_some()).map(|change| change.key).collect()
    }

    /// This configuration as far as a server that runs with `old` can take it over. What waits for a restart stays as
    /// it is, so the next comparison finds it again.
    #[must_use]
    pub fn until_restart(mut self, old: &Self) -> Self {
        self.written.keep_until_restart(&old.written);
        self.auth.nonce_key.clone_from(&old.auth.nonce_key);
        Self {
            realm: old.realm.clone(),
            workers: old.workers,
            relay: RelayConfig {
                addresses: old.relay.addresses.clone(),
                external: old.relay.external.clone(),
                ..self.relay
            },
            admin: AdminConfig { revocations_file: old.admin.revocations_file.clone(), ..self.admin },
            accounting: AccountingConfig { interval: self.accounting.interval, ..old.accounting.clone() },
            log: LogConfig { level: self.log.level, ..old.log.clone() },
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\n";

    fn config(text: &str) -> Config {
        Config::from_toml("c.toml", text).unwrap()
    }

    fn said(old: &str, new: &str) -> Vec<String> {
        config(old).changes(&config(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_value_is_told_from_what_to_what_and_a_default_counts() {
        let new = format!("limits.allocations = 5\nlog.level = \"debug\"\n{LEAST}");
        assert_eq!(said(LEAST, &new), ["limits.allocations: 100000 -> 5", "log.level: \"info\" -> \"debug\""]);
        assert_eq!(said(&new, &new), [""; 0]);
        assert_eq!(
            said(LEAST, &format!("limits.credentials_per_key = 7\n{LEAST}")),
            ["limits.credentials_per_key: 600 -> 7"]
        );
        assert!(is_secret("admin.token") && !is_secret("auth.nonce_key_file"));
        assert_eq!(said(LEAST, &format!("limits.allocations = 100000\n{LEAST}")), [""; 0], "the default written out");
    }

    #[test]
    fn users_secrets_and_keys_are_told_by_name_and_never_by_value() {
        let old = format!("auth.users = {{ alice = \"wonderland\", bob = \"builder\" }}\n{LEAST}");
        let new = "auth.users = { bob = \"destroyer\", carol = \"caroll\" }\n\
                   [[auth.secrets]]\nid = \"2027\"\nvalue = \"south\"\n\
                   [[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\nalgorithm = \"sha256\"\n\
                   [[http.keys]]\nname = \"web\"\nsha256 = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"\n";
        let told = said(&old, new);
        assert_eq!(
            told,
            [
                "auth.users: added \"carol\", removed \"alice\", changed \"bob\"",
                "auth.secrets: added \"2027\", changed \"main\"",
                "http.keys: added \"web\"",
            ]
        );
        for secret in ["wonderland", "builder", "destroyer", "caroll", "north", "south", "0011"] {
            assert!(!told.concat().contains(secret));
        }
        let debug = format!("{:?}", config(&old));
        assert!(!debug.contains("wonderland"), "{debug}");
    }

    #[test]
    fn lists_are_told_by_what_came_and_went() {
        let old = format!("peers.deny = [\"8.8.8.0/24\", \"9.9.9.9\"]\n{LEAST}");
        assert_eq!(
            said(&old, &format!("peers.deny = [\"9.9.9.9\", \"1.1.1.1\"]\n{LEAST}")),
            ["peers.deny: added \"1.1.1.1\", removed \"8.8.8.0/24\""]
        );
        assert_eq!(
            said(&old, &format!("peers.deny = [\"9.9.9.9\", \"8.8.8.0/24\"]\n{LEAST}")),
            ["peers.deny: another order"]
        );
        let many: Vec<String> = (0..30).map(|n| format!("\"10.0.{n}.0/24\"")).collect();
        let told = said(LEAST, &format!("peers.deny = [{}]\n{LEAST}", many.join(", ")));
        assert!(told[0].ends_with("\"10.0.19.0/24\" and 10 more"), "{told:?}");
    }

    #[test]
    fn a_file_with_another_content_is_a_change() {
        let directory = std::env::temp_dir().join(format!("throughway-diff-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        let at = directory.join("c.toml");
        let load = || {
            let text = "auth.nonce_key_file = \"nonce\"\nauth.users.alice.file = \"alice\"\n[[auth.secrets]]\nid = \"main\"\nfile = \"main\"\n";
            Config::from_toml(at.to_str().unwrap(), text).unwrap()
        };
        write("nonce", "0123456789abcdef");
        write("alice", "wonderland");
        write("main", "north");
        let old = load();
        assert!(old.changes(&load()).is_empty());
        write("nonce", "fedcba9876543210");
        write("main", "south");
        let told: Vec<_> = old.changes(&load()).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "auth.secrets: changed \"main\"",
                "auth.nonce_key_file: what is in \"nonce\" changed (every client has a nonce of the old key)"
            ]
        );
        write("alice", "looking-glass");
        assert_eq!(old.changes(&load())[0].change, "changed \"alice\"");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_needs_a_restart_is_told_again_at_every_reload() {
        let old = config(LEAST);
        let new = format!(
            "realm = \"r\"\nworkers = 2\nrelay.external = \"192.0.2.1\"\nrelay.ports = \"50000-50100\"\naccounting.file = \"u\"\naccounting.interval = \"5s\"\n{LEAST}"
        );
        let waits = ["realm", "workers", "relay.external", "accounting.file"];
        assert_eq!(old.needs_restart(&config(&new)), waits);
        let now = config(&new).until_restart(&old);
        assert_eq!((&*now.realm, now.workers, &now.relay.external), (&*old.realm, old.workers, &old.relay.external));
        assert_eq!((now.accounting.file.as_ref(), now.accounting.interval), (None, 5));
        assert_eq!(now.relay.ports, 50000..=50100);
        assert_eq!(now.needs_restart(&config(&new)), waits, "the second reload says so too");
        assert_eq!(now.changes(&config(&new)).len(), waits.len(), "and nothing else");
        assert!(now.needs_restart(&old).is_empty(), "taking it back needs none");
    }

    #[test]
    fn every_reason_belongs_to_a_key() {
        for (path, _) in RESTART {
            assert!(
                KEYS.iter().any(|key| key.path == path || (path.ends_with('.') && key.path.starts_with(path))),
                "{path}"
            );
        }
        assert_eq!(restart_reason("accounting.interval"), None);
        assert!(restart_reason("accounting.spool").is_some() && restart_reason("listen.udp").is_none());
    }
}
