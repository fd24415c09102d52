//! From a document to a [`Config`]: the plain values and the order of it all.
//!
//! Every check goes on after an error with a harmless value, so that one run shows all of them;
//! [`check`] returns a `Config` only if there was none.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::config::admin::Reach;
use crate::config::checked::{Config, Lifetimes, LogConfig, LogFormat, LogLevel, PeersConfig, Source, Workers};
use crate::config::diff::Written;
use crate::config::document::{self, Entry, Node, Value};
use crate::config::environment::{self, Environment};
use crate::config::error::{ConfigError, Note, Place, Problem};
use crate::config::{KEYS, units};
use crate::credentials::SharedSecret;
use crate::protocol::address::Transport;
use crate::protocol::peer_policy::PeerPolicy;
use crate::protocol::settings::LocalAddresses;

/// RFC 8489 section 14.9: a realm has fewer than 128 characters.
const REALM_CHARACTERS_MAX: usize = 127;

/// What stands before the name of a credential where a file could be named.
pub(crate) const CREDENTIAL: &str = "credential:";

/// Checks everything.
pub(crate) fn check(
    file: Option<(&Path, &str)>,
    environment: &Environment,
    initial_secret: Option<SharedSecret>,
) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let root = match file.map(|(path, text)| document::parse(path, text)) {
        None => Vec::new(),
        Some(Ok(root)) => root,
        Some(Err(problems)) => return Err(ConfigError { problems }),
    };
    document::check_keys(&root, &mut problems);
    let overlay = environment.nodes(&mut problems);
    let path = file.map(|(path, _)| path.to_owned());
    let mut check = Check {
        root,
        overlay,
        path,
        problems,
        notes: Vec::new(),
        contents: Vec::new(),
        holds_secrets: false,
        credentials_directory: environment.credentials_directory().map(PathBuf::from),
    };

    let realm = check.realm();
    let workers = check.workers();
    let mut listen = check.listen(Transport::Udp, "listen.udp");
    listen.extend(check.listen(Transport::Tcp, "listen.tcp"));
    check.listen_tls(&mut listen);
    let tls = check.tls(&listen);
    let relay = check.relay(&listen);
    let http = check.http(&listen, &tls);
    let admin = check.admin();
    let lifetimes = check.lifetimes();
    let auth = check.auth(environment, initial_secret.as_ref());
    check.issuing_needs_a_secret(&http.issuing, &auth);
    check.claims_need_a_secret(&http.issuing, &auth);
    let peers = check.peers();
    let limits = check.limits();
    let accounting = check.accounting();
    let drain = check.drain(&listen);
    let log = check.log();

    let written = Written::of(&check);
    let Check { path, mut problems, notes, holds_secrets, .. } = check;
    if !problems.is_empty() {
        problems.sort_by_key(|problem| match &problem.place {
            Place::File(_, line) => *line,
            Place::WholeFile(_) | Place::Variable(_) | Place::Nowhere => usize::MAX,
        });
        return Err(ConfigError { problems });
    }
    let mut config = Config {
        realm,
        workers,
        listen: listen.into_iter().map(|(listen, _)| listen).collect(),
        tls,
        relay,
        lifetimes,
        auth,
        peers,
        limits,
        http,
        admin,
        accounting,
        drain,
        log,
        source: Source {
            file: path,
            variables: environment.names().map(str::to_owned).collect(),
            holds_secrets,
            initial_secret,
        },
        written,
        warnings: notes,
    };
    if config.challenge_bytes() > 72 {
        let message = format!(
            "makes the 401 answer {} bytes long; up to 12 bytes of realm keep it at 72, of little use to those who forge addresses",
            config.challenge_bytes()
        );
        config.warnings.push(Problem::new(Place::Nowhere, "realm", message));
    }
    Ok(config)
}

/// The few keys that tell how a server is reached; all others may be wrong.
pub(crate) fn reach(file: Option<(&Path, &str)>, environment: &Environment) -> Result<Reach, ConfigError> {
    let root = match file.map(|(path, text)| document::parse(path, text)) {
        None => Vec::new(),
        Some(Ok(root)) => root,
        Some(Err(problems)) => return Err(ConfigError { problems }),
    };
    // A variable that is wrong is the server's affair, unless it is one of these.
    let overlay = environment.nodes(&mut Vec::new());
    let path = file.map(|(path, _)| path.to_owned());
    let source = path.as_ref().map_or_else(|| "the built-in defaults".to_owned(), |path| path.display().to_string());
    let check = Check {
        root,
        overlay,
        path,
        problems: Vec::new(),
        notes: Vec::new(),
        contents: Vec::new(),
        holds_secrets: false,
        credentials_directory: environment.credentials_directory().map(PathBuf::from),
    };
    check.reach(environment, source)
}

/// The document under check, and what was found.
pub(crate) struct Check {
    root: Vec<Entry>,
    overlay: Vec<(&'static str, Node)>,
    path: Option<PathBuf>,
    problems: Vec<Problem>,
    pub(crate) notes: Vec<Note>,
    /// Digests of what is in the files that hold secrets, each under its key.
    pub(crate) contents: Vec<(String, u64)>,
    /// Whether the file itself holds a password or a secret.
    pub(crate) holds_secrets: bool,
    /// Where the service manager put what LoadCredential= names.
    credentials_directory: Option<PathBuf>,
}

impl Check {
    /// The value of a key: the environment's, else the file's, else the default.
    pub(crate) fn get(&self, path: &'static str) -> Node {
        if let Some((_, node)) = self.overlay.iter().find(|(key, _)| *key == path) {
            return node.clone();
        }
        let mut entries = self.root.as_slice();
        let mut found = None;
        for part in path.split('.') {
            found = entries.iter().find(|entry| entry.key == part);
            entries = match found.map(|entry| &entry.node.value) {
                Some(Value::Table(fields)) => fields,
                Some(Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_)) | None => &[],
            };
        }
        match found {
            Some(entry) => entry.node.clone(),
            None => {
                let key = KEYS.iter().find(|key| key.path == path).expect("only keys of the list are read");
                document::parse_default(key.default)
            }
        }
    }

    /// Reports a value; those of users and secrets are never shown.
    pub(crate) fn wrong(&mut self, node: &Node, key: &str, message: impl Into<String>) {
        let problem = Problem::new(node.place.clone(), key, message);
        let secret = ["auth.users", "auth.secret", "http.keys"].iter().any(|start| key.starts_with(start));
        let shown =
            !secret || (key.starts_with("auth.secrets[") && [".id", ".algorithm"].iter().any(|end| key.ends_with(end)));
        self.problems.push(if shown { problem.with_value(node.render()) } else { problem });
    }

    pub(crate) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// What was found, if anything.
    pub(crate) fn into_problems(self) -> Option<ConfigError> {
        (!self.problems.is_empty()).then_some(ConfigError { problems: self.problems })
    }

    pub(crate) fn has_problem_with(&self, prefix: &str) -> bool {
        self.problems.iter().any(|problem| problem.key.starts_with(prefix))
    }

    /// The file as a place, for what is missing from it.
    pub(crate) fn whole(&self) -> Place {
        self.path.clone().map_or(Place::Nowhere, Place::WholeFile)
    }

    /// A path beside the configuration file, so that both can move together.
    pub(crate) fn beside(&self, place: &Place, path: &str) -> PathBuf {
        match (place, self.path.as_deref().and_then(Path::parent)) {
            (Place::File(..), Some(directory)) => directory.join(path),
            _ => PathBuf::from(path),
        }
    }

    /// The file that a value names, to be read: beside the configuration, or `credential:NAME` for what the service
    /// manager gave us under a name. Nothing else in the configuration names a file to be read.
    pub(crate) fn file(&mut self, node: &Node, key: &str, path: &str) -> Option<PathBuf> {
        let Some(name) = path.strip_prefix(CREDENTIAL) else { return Some(self.beside(&node.place, path)) };
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            let message = "expected the name of a credential, as it stands before the colon of LoadCredential=";
            self.wrong(node, key, message);
            return None;
        }
        let Some(directory) = &self.credentials_directory else {
            let message = format!(
                "{} is not set: start the server by systemd, with LoadCredential={name}:/path/of/the/file in its unit",
                environment::CREDENTIALS_DIRECTORY
            );
            self.wrong(node, key, message);
            return None;
        };
        Some(directory.join(name))
    }

    pub(crate) fn text(&mut self, node: &Node, key: &str) -> Option<String> {
        if let Value::Text(text) = &node.value {
            return Some(text.clone());
        }
        self.wrong(node, key, format!("expected a string in quotes, found {}", node.kind()));
        None
    }

    /// Items of a list of strings with their places.
    pub(crate) fn list(&mut self, path: &'static str) -> Vec<Node> {
        let node = self.get(path);
        match node.value {
            Value::List(items) => items,
            Value::Text(_) => {
                let message = format!("expected a list of strings; write [{}]", node.render());
                self.wrong(&node, path, message);
                Vec::new()
            }
            Value::Integer(..) | Value::Other(_) | Value::Table(_) => {
                self.wrong(&node, path, format!("expected a list of strings, found {}", node.kind()));
                Vec::new()
            }
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, node: &Node, key: &str, words: &[(&str, T)]) -> T {
        let fallback = words[0].1;
        let Some(text) = self.text(node, key) else { return fallback };
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == text) {
            return *found;
        }
        let allowed: Vec<_> = words.iter().map(|(word, _)| document::quote(word)).collect();
        let nearest = document::nearest(&text.to_lowercase(), words.iter().map(|(word, _)| *word));
        self.wrong(node, key, format!("allowed are {}", allowed.join(", ")));
        if let Some(problem) = self.problems.last_mut() {
            problem.suggestion = nearest.map(|word| document::quote(&word));
        }
        fallback
    }

    pub(crate) fn seconds(&mut self, path: &'static str, allowed: std::ops::RangeInclusive<u64>) -> u64 {
        let node = self.get(path);
        let message = match &node.value {
            Value::Text(text) => match units::duration(text) {
                Ok(seconds) if allowed.contains(&seconds) => return seconds,
                Ok(_) => format!(
                    "allowed are {} to {}",
                    units::show_seconds(*allowed.start()),
                    units::show_seconds(*allowed.end())
                ),
                Err(message) => message,
            },
            Value::Integer(_, text) => units::duration(text).err().unwrap_or_default(),
            Value::Other(_) | Value::List(_) | Value::Table(_) => {
                format!("expected a duration such as \"30s\", found {}", node.kind())
            }
        };
        self.wrong(&node, path, message);
        *allowed.start()
    }

    fn realm(&mut self) -> Box<str> {
        let node = self.get("realm");
        let Some(realm) = self.text(&node, "realm") else { return Box::default() };
        let characters = realm.chars().count();
        if realm.is_empty() {
            self.wrong(&node, "realm", "must not be empty; the host name of this server is a good realm");
        } else if characters > REALM_CHARACTERS_MAX {
            let message = format!(
                "has {characters} characters; at most {REALM_CHARACTERS_MAX} are allowed (RFC 8489 section 14.9)"
            );
            self.wrong(&node, "realm", message);
        } else if realm.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
            self.wrong(
                &node,
                "realm",
                "must not contain control characters, quotes or backslashes (RFC 8489 section 14.9)",
            );
        }
        realm.into()
    }

    fn workers(&mut self) -> Workers {
        let node = self.get("workers");
        match &node.value {
            Value::Text(text) if text == "auto" => return Workers::Auto,
            Value::Integer(Some(count @ 1..=256), _) => return Workers::Count(u16::try_from(*count).unwrap_or(1)),
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => {}
        }
        self.wrong(&node, "workers", "allowed are \"auto\" and a number from 1 to 256");
        Workers::Auto
    }

    fn lifetimes(&mut self) -> Lifetimes {
        let allowed = 1..=u64::from(u32::MAX);
        let default = self.seconds("turn.default_lifetime", allowed.clone());
        let max = self.seconds("turn.max_lifetime", allowed);
        if default > max && !self.has_problem_with("turn.") {
            // The line to blame is the one that was written.
            let (default_node, max_node) = (self.get("turn.default_lifetime"), self.get("turn.max_lifetime"));
            if default_node.place == Place::Nowhere {
                self.wrong(
                    &max_node,
                    "turn.max_lifetime",
                    format!("is below turn.default_lifetime = {}", default_node.render()),
                );
            } else {
                self.wrong(
                    &default_node,
                    "turn.default_lifetime",
                    format!("is above turn.max_lifetime = {}", max_node.render()),
                );
            }
        }
        let narrow = |seconds| u32::try_from(seconds).unwrap_or(u32::MAX);
        Lifetimes { default: narrow(default), max: narrow(max) }
    }

    fn peers(&mut self) -> PeersConfig {
        let allow = self.nets("peers.allow");
        let deny = self.nets("peers.deny");
        for (net, node) in &allow {
            if let Err(error) = PeerPolicy::new(&[*net], &[], LocalAddresses::default()) {
                self.wrong(node, "peers.allow", error.to_string());
            }
        }
        let bare = |nets: Vec<(IpNet, Node)>| nets.into_iter().map(|(net, _)| net).collect();
        PeersConfig { allow: bare(allow), deny: bare(deny) }
    }

    fn nets(&mut self, path: &'static str) -> Vec<(IpNet, Node)> {
        let mut nets = Vec::new();
        for node in self.list(path) {
            nets.extend(self.net(&node, path).map(|net| (net, node)));
        }
        nets
    }

    /// A prefix; a single address is its own.
    pub(crate) fn net(&mut self, node: &Node, path: &str) -> Option<IpNet> {
        let text = self.text(node, path)?;
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| IpNet::from(ip)));
        match net {
            Some(net) if net.trunc() != net => {
                let message =
                    format!("has bits set after its prefix; write \"{}\" or a /{}", net.trunc(), net.max_prefix_len());
                self.wrong(node, path, message);
                None
            }
            Some(net) => Some(net),
            None => {
                let message = "expected a prefix such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address";
                self.wrong(node, path, message);
                None
            }
        }
    }

    fn log(&mut self) -> LogConfig {
        let format = self.get("log.format");
        let level = self.get("log.level");
        let formats = [
            ("auto", LogFormat::Auto),
            ("text", LogFormat::Text),
            ("json", LogFormat::Json),
            ("journal", LogFormat::Journal),
        ];
        let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
        let node = format;
        let (format, journal) = (self.word(&node, "log.format", &formats), self.place("log.journal"));
        if format == LogFormat::Journal && journal.is_none() {
            self.wrong(&node, "log.format", "needs the journal's socket in log.journal, which is empty");
        }
        LogConfig {
            format,
            journal: journal.map(|(_, path)| path),
            level: self.word(&level, "log.level", &levels.map(|level| (level.name(), level))),
        }
    }
}

pub(crate) fn is_zero(node: &Node) -> bool {
    match &node.value {
        Value::Integer(number, _) => *number == Some(0),
        Value::Text(text) => text == "0" || units::duration(text) == Ok(0) || units::size(text) == Ok(0),
        Value::Other(_) | Value::List(_) | Value::Table(_) => false,
    }
}
