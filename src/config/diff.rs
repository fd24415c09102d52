//! What a reload changes: two configurations compared key by key, and which keys wait for a restart.
//!
//! It compares what was written (and what the named files hold), so a new key is part of it without a line here.
//! No secret is ever part of a difference: users, secrets and keys appear by name, files by path.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher};
use std::sync::OnceLock;

use hashbrown::HashMap;
use serde::Serialize;

use crate::config::accounting::AccountingConfig;
use crate::config::admin::AdminConfig;
use crate::config::check::Check;
use crate::config::checked::{Config, LogConfig, RelayConfig};
use crate::config::document::{self, Node, Value};
use crate::config::keys::{ConfigKey, KEYS, ValueType};
use crate::config::upgrade::UpgradeConfig;

/// Names that one difference tells; more are counted.
const NAMES_MAX: usize = 20;

/// What every key said, in the order of the rows.
#[derive(Clone, Default)]
pub struct Snapshot(Vec<KeyState>);

// It knows digests of secrets.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

/// What one key said.
#[derive(Clone)]
pub(crate) struct KeyState {
    pub(crate) key: &'static ConfigKey,
    value: ComparedValue,
    /// Whether it says what it would say if it were left out.
    pub(crate) is_default: bool,
    /// A number, word or flag for machines.
    pub(crate) json: Option<serde_json::Value>,
}

/// As much of a value as a comparison needs; no secret.
#[derive(Clone, PartialEq, Eq)]
enum ComparedValue {
    /// One value: how it is shown, a digest of it, and one of what is in the file that it names.
    Single { shown: String, digest: u64, content: u64 },
    /// Names, each with a digest of everything that belongs to it.
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

/// Hashes with a key of this process: outside of it a digest tells nothing about a secret.
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

fn digest_of_node(node: &Node) -> u64 {
    digest(|hasher| feed_node(node, hasher))
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
                entry.name.hash(&mut hasher);
                feed_node(&entry.node, hasher);
            }
        }
    }
}

/// Whether the name of a key says that its value is a secret; the path of a file is none.
fn is_secret(path: &str) -> bool {
    let is_path_or_limit = path == "tls.private_key" || path.starts_with("limits.");
    !is_path_or_limit && ["secret", "token", "password", "key"].iter().any(|end| path.ends_with(end))
}

impl Snapshot {
    /// What a document says, and what is in the files that it names.
    pub(crate) fn of(check: &Check) -> Self {
        Self(KEYS.iter().map(|key| KeyState::of(check, key)).collect())
    }

    /// Every key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &KeyState> {
        self.0.iter()
    }

    /// Takes the keys that wait for a restart from what the server was started with.
    fn keep_until_restart(&mut self, old: &Self) {
        for (state, before) in self.0.iter_mut().zip(&old.0) {
            if state.key.restart_reason().is_some() {
                state.clone_from(before);
            }
        }
    }
}

impl KeyState {
    fn of(check: &Check, key: &'static ConfigKey) -> Self {
        let node = check.get(key.path);
        let value = ComparedValue::of(check, key, &node);
        // A variable may add a secret to none in the file.
        let has_entries = matches!(&value, ComparedValue::Entries(entries) if !entries.is_empty());
        let is_default = digest_of_node(&node) == digest_of_node(&key.default_node())
            && !(key.value_type.is_tables() && has_entries);
        Self { key, value, is_default, json: key.json(&node) }
    }

    /// As TOML where it is a value, else the names of its entries; never a secret.
    pub(crate) fn shown(&self) -> String {
        match &self.value {
            ComparedValue::Single { shown, .. } => shown.clone(),
            ComparedValue::Entries(entries) => {
                let names = shorten(entries.iter().map(|(name, _)| name.clone()).collect(), ", ");
                if self.key.value_type.is_tables() { names } else { format!("[{names}]") }
            }
        }
    }
}

impl ComparedValue {
    fn of(check: &Check, key: &ConfigKey, node: &Node) -> Self {
        let content = |name: &str| {
            // Of a table, or of several in a list.
            let below = |inside: String| {
                let from = check.contents.range(inside.clone()..);
                from.take_while(move |(key, _)| key.starts_with(&inside)).map(|(_, content)| content)
            };
            let below = [format!("{name}."), format!("{name}[")].into_iter().flat_map(below);
            let of_name = check.contents.get(name).into_iter().chain(below);
            of_name.fold(0, |sum: u64, content| sum.rotate_left(1) ^ content)
        };
        let entry = |name: String, node: &Node| {
            let whole = digest(|mut hasher| {
                feed_node(node, hasher);
                content(&node.key).hash(&mut hasher);
            });
            (name, whole)
        };
        match &node.value {
            Value::Table(entries) if key.value_type.is_tables() => {
                Self::Entries(entries.iter().map(|of| entry(document::quote(&of.name), &of.node)).collect())
            }
            Value::List(items) if !matches!(key.value_type, ValueType::Addresses) => {
                let mut entries: Vec<_> =
                    items.iter().enumerate().map(|(at, item)| entry(name_of(item, at), item)).collect();
                // The first secret may stand in a file that a variable names.
                if key.path == "auth.secrets"
                    && let Some(content) = check.contents.get("auth.secret_file")
                {
                    entries.insert(0, ("\"environment\"".to_owned(), *content));
                }
                Self::Entries(entries)
            }
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => Self::Single {
                shown: if is_secret(key.path) { "not shown".to_owned() } else { node.render() },
                digest: digest_of_node(node),
                content: content(key.path),
            },
        }
    }

    /// From what to what; `None` if they are the same.
    fn change(&self, new: &Self) -> Option<String> {
        match (self, new) {
            _ if self == new => None,
            (Self::Entries(old), Self::Entries(new)) => Some(entries_change(old, new)),
            (Self::Single { digest: before, .. }, Self::Single { shown, digest: after, .. }) if before == after => {
                Some(format!("the contents of {shown} changed"))
            }
            (Self::Single { shown: old, .. }, Self::Single { shown: new, .. }) if old != new => {
                Some(format!("{old} -> {new}"))
            }
            // A list that was a table, say.
            (Self::Single { .. } | Self::Entries(_), Self::Single { .. } | Self::Entries(_)) => {
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
            .find_map(|name| document::field(fields, name))
            .map_or_else(|| format!("number {}", at + 1), Node::render),
        Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) => item.render(),
    }
}

/// The first names, and how many more there are.
fn shorten(names: Vec<String>, between: &str) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let shown = names.into_iter().take(NAMES_MAX).collect::<Vec<_>>().join(between);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn entries_change(old: &[(String, u64)], new: &[(String, u64)]) -> String {
    // By name, since there may be tens of thousands of users.
    let by_name = |entries: &[(String, u64)]| -> HashMap<String, Vec<u64>> {
        let mut map: HashMap<String, Vec<u64>> = HashMap::new();
        for (name, whole) in entries {
            map.entry(name.clone()).or_default().push(*whole);
        }
        map
    };
    let (old_by_name, new_by_name) = (by_name(old), by_name(new));
    let missing_in = |others: &HashMap<String, Vec<u64>>, own: &[(String, u64)]| -> Vec<String> {
        own.iter().filter(|(name, _)| !others.contains_key(name)).map(|(name, _)| name.clone()).collect()
    };
    let changed = new.iter().filter(|(name, whole)| {
        old_by_name.get(name).is_some_and(|before| before.iter().any(|before| before != whole))
    });
    let parts: Vec<String> = [
        ("added", missing_in(&old_by_name, new)),
        ("removed", missing_in(&new_by_name, old)),
        ("changed", changed.map(|(name, _)| name.clone()).collect()),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("{what} {}", shorten(names, " ")))
    .collect();
    if parts.is_empty() { "another order".to_owned() } else { parts.join(", ") }
}

impl Config {
    /// Every key in which `new` differs, in the order of the list of keys.
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        self.snapshot
            .keys()
            .zip(new.snapshot.keys())
            .filter_map(|(old, new)| {
                let change = old.value.change(&new.value)?;
                Some(Change { key: old.key.path, change, needs_restart: old.key.restart_reason() })
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
        self.snapshot.keep_until_restart(&old.snapshot);
        Self {
            realm: old.realm.clone(),
            workers: old.workers,
            supervise: old.supervise,
            nonce_key: old.nonce_key.clone(),
            relay: RelayConfig {
                addresses: old.relay.addresses.clone(),
                external: old.relay.external.clone(),
                ..self.relay
            },
            admin: AdminConfig {
                revocations_file: old.admin.revocations_file.clone(),
                limits_file: old.admin.limits_file.clone(),
                ..self.admin
            },
            accounting: AccountingConfig { interval: self.accounting.interval, ..old.accounting.clone() },
            upgrade: UpgradeConfig { socket: old.upgrade.socket.clone(), ..self.upgrade },
            log: LogConfig {
                level: self.log.level,
                session_lines_per_user: self.log.session_lines_per_user,
                ..old.log.clone()
            },
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

    fn told(old: &str, new: &str) -> Vec<String> {
        config(old).changes(&config(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_value_is_told_from_what_to_what_and_a_default_counts() {
        let new = format!("limits.allocations = 5\nlog.level = \"debug\"\n{LEAST}");
        assert_eq!(told(LEAST, &new), ["limits.allocations: 100000 -> 5", "log.level: \"info\" -> \"debug\""]);
        assert_eq!(told(&new, &new), [""; 0]);
        assert_eq!(
            told(LEAST, &format!("limits.credentials_per_key = 7\n{LEAST}")),
            ["limits.credentials_per_key: 600 -> 7"]
        );
        assert!(is_secret("admin.token") && !is_secret("auth.nonce_key_file"));
        assert_eq!(told(LEAST, &format!("limits.allocations = 100000\n{LEAST}")), [""; 0], "the default written out");
    }

    #[test]
    fn users_secrets_and_keys_are_told_by_name_and_never_by_value() {
        let old = format!("auth.users = {{ alice = \"wonderland\", bob = \"builder\" }}\n{LEAST}");
        let new = "auth.users = { bob = \"destroyer\", carol = \"caroll\" }\n\
                   [[auth.secrets]]\nid = \"2027\"\nvalue = \"south-of-everything\"\n\
                   [[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\nalgorithm = \"sha256\"\n\
                   [[http.keys]]\nname = \"web\"\nsha256 = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"\n";
        let told = told(&old, new);
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
            told(&old, &format!("peers.deny = [\"9.9.9.9\", \"1.1.1.1\"]\n{LEAST}")),
            ["peers.deny: added \"1.1.1.1\", removed \"8.8.8.0/24\""]
        );
        assert_eq!(
            told(&old, &format!("peers.deny = [\"9.9.9.9\", \"8.8.8.0/24\"]\n{LEAST}")),
            ["peers.deny: another order"]
        );
        let many: Vec<String> = (0..30).map(|n| format!("\"10.0.{n}.0/24\"")).collect();
        let told = told(LEAST, &format!("peers.deny = [{}]\n{LEAST}", many.join(", ")));
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
        write("nonce", "nonce-key-of-a-fleet");
        write("alice", "wonderland");
        write("main", "north-of-everything");
        let old = load();
        assert!(old.changes(&load()).is_empty());
        write("nonce", "fedcba9876543210");
        write("main", "south-of-everything");
        let told: Vec<_> = old.changes(&load()).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "auth.nonce_key_file: the contents of \"nonce\" changed (every client has a nonce of the old key)",
                "auth.secrets: changed \"main\"",
            ]
        );
        write("alice", "looking-glass");
        assert_eq!(old.changes(&load())[1].change, "changed \"alice\"");
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
}
