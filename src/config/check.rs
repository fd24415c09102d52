//! From a document to a [`Config`]: the values by path, the words of the errors, and the order of it all.
//!
//! Type and range of every key are checked first, by its row in `keys`. The sections then read values that have the right
//! type, or a harmless one in place of a wrong value, so that one run shows all errors; [`check`] returns a `Config` only
//! if there was none.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::Transport;
use crate::config::admin::Reach;
use crate::config::checked::{Config, Source};
use crate::config::diff::Snapshot;
use crate::config::document::{self, Node, TableEntry, Value};
use crate::config::environment::{self, Environment};
use crate::config::error::{ConfigError, Note, Problem, SourceLocation};
use crate::config::keys::{ConfigKey, KEYS, LATER_FIELDS, ValueType, fields, find};
use crate::credentials::{Secret, SharedSecret};

/// What stands before the name of a credential where a file could be named.
pub(crate) const CREDENTIAL: &str = "credential:";

/// Checks everything.
pub(crate) fn check(
    file: Option<(&Path, &str)>,
    environment: &Environment,
    initial_secret: Option<SharedSecret>,
) -> Result<Config, ConfigError> {
    let mut check = Check::new(file, environment)?;
    document::check_keys(&check.root, &mut check.problems);
    KEYS.iter().for_each(|key| check.check_key(key));

    let realm = check.realm();
    let workers = check.workers();
    let supervise = check.flag_of("supervise");
    let mut listen = check.listen(Transport::Udp, "listen.udp");
    listen.extend(check.listen(Transport::Tcp, "listen.tcp"));
    check.listen_tls(&mut listen);
    check.note_no_listener(&listen);
    let mut tls = check.tls(&listen);
    let relay = check.relay(&listen);
    let http = check.http(&listen, &tls);
    if let Some(acme) = &mut tls.acme {
        acme.know_http(&http);
        check.acme_can_work(acme, &listen, &http);
    }
    check.public_name_needs_a_certificate(&listen, &http, &tls);
    check.shared_backends_are_others(&listen, &http);
    check.shared_names_lead_here(&listen, &http, &tls);
    let admin = check.admin();
    let (lifetimes, channel_numbers) = (check.lifetimes(), check.channel_numbers());
    let (pool, stun) = (check.pool(&listen), check.stun(&listen, &relay));
    let (auth, nonce_key) = (check.auth(environment, initial_secret.as_ref()), check.secret_of("auth.nonce_key_file"));
    check.realms_need_a_listener(&auth, &realm, &listen);
    check.issuing_needs_a_secret(&http.issuing, &auth);
    check.chatmail_ttl_fits(&http.issuing, &auth);
    check.claims_need_a_secret(&http.issuing, &auth);
    let (peers, limits) = (check.peers(), check.limits());
    let (accounting, drain) = (check.accounting(), check.drain(&listen));
    let upgrade = check.upgrade(&http);
    let log = check.log();

    let snapshot = Snapshot::of(&check);
    let Check { path, mut problems, notes, holds_secrets, .. } = check;
    if !problems.is_empty() {
        problems.sort_by_key(|problem| match &problem.location {
            SourceLocation::File(_, line) => *line,
            SourceLocation::WholeFile(_) | SourceLocation::Variable(_) | SourceLocation::Nowhere => usize::MAX,
        });
        return Err(ConfigError { problems });
    }
    Ok(Config {
        realm,
        workers,
        supervise,
        listen: listen.into_iter().map(|(listen, _)| listen).collect(),
        tls,
        relay,
        lifetimes,
        channel_numbers,
        pool,
        stun,
        auth,
        nonce_key,
        peers,
        limits,
        http,
        admin,
        accounting,
        drain,
        upgrade,
        log,
        source: Source {
            file: path,
            text: file.map(|(_, text)| Arc::new(Secret::new(text.as_bytes()))),
            variables: environment.names().map(str::to_owned).collect(),
            holds_secrets,
            initial_secret,
        },
        snapshot,
        warnings: notes,
    })
}

/// The few keys that tell how a server is reached; all others may be wrong, variables too.
pub(crate) fn reach(file: Option<(&Path, &str)>, environment: &Environment) -> Result<Reach, ConfigError> {
    let source = file.map_or_else(|| "the built-in defaults".to_owned(), |(path, _)| path.display().to_string());
    let mut check = Check::new(file, environment)?;
    check.problems.clear();
    check.reach(environment, source)
}

/// The document under check, and what was found.
pub(crate) struct Check {
    root: Vec<TableEntry>,
    overlay: Vec<Node>,
    path: Option<PathBuf>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) notes: Vec<Note>,
    /// Digests of what is in the files that hold secrets, each under its key.
    pub(crate) contents: BTreeMap<String, u64>,
    /// Whether the file itself holds a password or a secret.
    pub(crate) holds_secrets: bool,
    /// Where the service manager put what LoadCredential= names.
    credentials_directory: Option<PathBuf>,
    /// Where the service manager lets us put sockets.
    pub(crate) runtime_directory: Option<PathBuf>,
    /// Where the server keeps what must outlive it.
    pub(crate) state_directory: Option<PathBuf>,
    /// Certificates may be missing, or not fit their keys.
    pub(crate) is_after_crash: bool,
}

/// An error about a value, which it shows unless that is a user's or a secret's.
pub(crate) fn problem(node: &Node, message: impl Into<String>) -> Problem {
    let problem = Problem::new(node.location.clone(), &node.key, message);
    let is_secret = ["auth.users", "auth.secret", "http.keys"].iter().any(|start| node.key.starts_with(start));
    let is_name =
        node.key.starts_with("auth.secrets[") && [".id", ".algorithm"].iter().any(|end| node.key.ends_with(end));
    if is_secret && !is_name { problem } else { problem.with_value(node.render()) }
}

/// The error for a word that is none of these.
pub(crate) fn or_nearest(node: &Node, word: &str, words: &[&str]) -> Option<Problem> {
    if words.contains(&word) {
        return None;
    }
    let nearest = document::nearest(&word.to_lowercase(), words.iter().copied());
    let problem = problem(node, format!("allowed are {}", quoted(words)));
    Some(problem.with_suggestion(nearest.map(|word| document::quote(&word))))
}

/// Words as a sentence lists them.
pub(crate) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| document::quote(word)).collect::<Vec<_>>().join(", ")
}

/// A table whose fields are known and have the types of their rows: what is not so was reported and left out.
pub(crate) struct Table<'n> {
    pub(crate) node: &'n Node,
    fields: Vec<(&'n Node, &'static ConfigKey)>,
    /// Nothing was left out: a field that is missing was never written.
    is_whole: bool,
}

impl<'n> Table<'n> {
    fn field(&self, name: &str) -> Option<(&'n Node, &'static ConfigKey)> {
        let is_it = |row: &ConfigKey| row.path.rsplit('.').next() == Some(name);
        self.fields.iter().copied().find(|(_, row)| is_it(row))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'n Node> {
        self.field(name).map(|(node, _)| node)
    }

    /// A text, with its node.
    pub(crate) fn text(&self, name: &str) -> Option<(&'n Node, &'n str)> {
        let node = self.get(name)?;
        Some((node, node.text()?))
    }

    /// A number in the unit of the row's type.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let (node, row) = self.field(name)?;
        row.value_type.number(node, None).ok()
    }

    /// true; what is left out is false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).and_then(Node::flag).unwrap_or(false)
    }
}

impl Check {
    fn new(file: Option<(&Path, &str)>, environment: &Environment) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let root = file.map_or(Ok(Vec::new()), |(path, text)| document::parse(path, text));
        Ok(Self {
            root: root.map_err(|problems| ConfigError { problems })?,
            overlay: environment.nodes(&mut problems),
            path: file.map(|(path, _)| path.to_owned()),
            problems,
            notes: Vec::new(),
            contents: BTreeMap::new(),
            holds_secrets: false,
            credentials_directory: environment.credentials_directory().map(PathBuf::from),
            runtime_directory: environment.runtime_directory().map(PathBuf::from),
            state_directory: environment.state_directory().map(PathBuf::from),
            is_after_crash: environment.is_after_crash(),
        })
    }

    /// Type and range of one key, and the warning if 0 is a dangerous value for it.
    pub(crate) fn check_key(&mut self, key: &ConfigKey) {
        let node = self.get(key.path);
        self.problems.extend(key.check(&node));
        if let (Some(zero), Some(warning)) = (key.zero, key.zero_warning)
            && key.value_type.number(&node, key.zero) == Ok(0)
        {
            self.note(&node, format!("{zero}: {warning}"));
        }
    }

    /// The value of a key: the environment's, else the file's, else the default.
    pub(crate) fn get(&self, path: &str) -> Node {
        if let Some(node) = self.overlay.iter().find(|node| node.key == path) {
            return node.clone();
        }
        let (section, name) = path.split_once('.').unwrap_or(("", path));
        let fields: &[TableEntry] = match document::field(&self.root, section).map(|node| &node.value) {
            Some(Value::Table(fields)) => fields,
            Some(Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_)) => &[],
            None if section.is_empty() => &self.root,
            None => &[],
        };
        document::field(fields, name).cloned().unwrap_or_else(|| row(path).default_node())
    }

    /// A number in the unit of the key's type; 0 if it is wrong, which is reported already.
    pub(crate) fn number<N: TryFrom<u64> + Default>(&self, path: &str) -> N {
        let key = row(path);
        let number = key.value_type.number(&self.get(path), key.zero).unwrap_or(0);
        N::try_from(number).unwrap_or_default()
    }

    /// The same where 0 has a meaning: `None`.
    pub(crate) fn limit<N: TryFrom<u64> + Default + PartialEq>(&self, path: &str) -> Option<N> {
        Some(self.number(path)).filter(|number| *number != N::default())
    }

    /// true or false.
    pub(crate) fn flag_of(&self, path: &str) -> bool {
        self.get(path).flag().unwrap_or(false)
    }

    /// One of the key's words.
    pub(crate) fn word_of(&self, path: &str) -> &'static str {
        let ValueType::Word(words) = row(path).value_type else { panic!("{path} is no word") };
        let node = self.get(path);
        words.iter().find(|word| node.text() == Some(word)).unwrap_or(&words[0])
    }

    /// A text, unless it is empty.
    pub(crate) fn text_of(&self, path: &str) -> Option<(String, Node)> {
        let node = self.get(path);
        Some((node.text().filter(|text| !text.is_empty())?.to_owned(), node))
    }

    /// A path, beside the configuration file, unless it is empty.
    pub(crate) fn path_of(&self, path: &str) -> Option<PathBuf> {
        self.text_of(path).map(|(text, node)| self.beside(&node, &text))
    }

    /// The items of a list.
    pub(crate) fn list(&self, path: &str) -> Vec<Node> {
        match self.get(path).value {
            Value::List(items) => items,
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::Table(_) => Vec::new(),
        }
    }

    /// What is read of each item of a list; those that are wrong are left out after a report.
    pub(crate) fn each<T>(&mut self, path: &str, read: impl Fn(&mut Self, &Node) -> Option<T>) -> Vec<T> {
        self.list(path).iter().filter_map(|item| read(self, item)).collect()
    }

    /// Reports a mistake in a value.
    pub(crate) fn wrong(&mut self, node: &Node, message: impl Into<String>) {
        self.problems.push(problem(node, message));
    }

    /// What was read of a value, or `None` after a report.
    pub(crate) fn ok<T>(&mut self, node: &Node, result: Result<T, impl Display>) -> Option<T> {
        result.map_err(|message| self.wrong(node, message.to_string())).ok()
    }

    /// Something to look at that stops nothing.
    pub(crate) fn note(&mut self, node: &Node, message: impl Into<String>) {
        self.notes.push(Problem::new(node.location.clone(), &node.key, message).with_value(node.render()));
    }

    /// The same about a value that must not be shown.
    pub(crate) fn note_of_secret(&mut self, node: &Node, message: impl Into<String>) {
        self.notes.push(Problem::new(node.location.clone(), &node.key, message));
    }

    pub(crate) fn has_problem_with(&self, prefix: &str) -> bool {
        self.problems.iter().any(|problem| problem.key.starts_with(prefix))
    }

    /// The file as a place, for what is missing from it.
    pub(crate) fn whole(&self) -> SourceLocation {
        self.path.clone().map_or(SourceLocation::Nowhere, SourceLocation::WholeFile)
    }

    /// A path beside the configuration file, so that both can move together.
    pub(crate) fn beside(&self, node: &Node, path: &str) -> PathBuf {
        match (&node.location, self.path.as_deref().and_then(Path::parent)) {
            (SourceLocation::File(..), Some(directory)) => directory.join(path),
            _ => PathBuf::from(path),
        }
    }

    /// The file that a value names, to be read: beside the configuration, or `credential:NAME` for what the service
    /// manager gave us under a name. Nothing else in the configuration names a file to be read.
    pub(crate) fn file(&mut self, node: &Node, path: &str) -> Option<PathBuf> {
        let Some(name) = path.strip_prefix(CREDENTIAL) else { return Some(self.beside(node, path)) };
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            self.wrong(node, "expected the name of a credential, as it stands before the colon of LoadCredential=");
            return None;
        }
        let Some(directory) = &self.credentials_directory else {
            let message = format!(
                "{} is not set: start the server by systemd, with LoadCredential={name}:/path/of/the/file in its unit",
                environment::CREDENTIALS_DIRECTORY
            );
            self.wrong(node, message);
            return None;
        };
        Some(directory.join(name))
    }

    /// The text of a field or of an item.
    pub(crate) fn text(&mut self, node: &Node) -> Option<String> {
        let missing = || format!("expected a string in quotes, found {}", node.kind());
        self.ok(node, node.text().map(ToOwned::to_owned).ok_or_else(missing))
    }

    /// One of a few words in a field or an item; the first one if it is wrong.
    pub(crate) fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> T {
        let Some(text) = self.text(node) else { return words[0].1 };
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        self.problems.extend(or_nearest(node, &text, &names));
        words.iter().find(|(word, _)| *word == text).unwrap_or(&words[0]).1
    }

    /// A prefix; a single address is its own.
    pub(crate) fn net(&mut self, node: &Node) -> Option<IpNet> {
        let text = self.text(node)?;
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| IpNet::from(ip)));
        let net = match net {
            Some(net) if net.trunc() != net => {
                Err(format!("has bits set after its prefix; write \"{}\" or a /{}", net.trunc(), net.max_prefix_len()))
            }
            Some(net) => Ok(net),
            None => Err("expected a prefix such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address".to_owned()),
        };
        self.ok(node, net)
    }

    /// The table that a value is, with the rows below `path`.
    pub(crate) fn table<'n>(&mut self, node: &'n Node, path: &str) -> Option<Table<'n>> {
        let names: Vec<_> = fields(path).map(|(name, _)| name).collect();
        let Value::Table(entries) = &node.value else {
            self.wrong(node, format!("expected a table of {}, found {}", names.join(", "), node.kind()));
            return None;
        };
        let mut table = Table { node, fields: Vec::new(), is_whole: self.fields(entries, node, &names) };
        for (name, row) in fields(path) {
            let Some(node) = document::field(entries, name) else { continue };
            match row.check(node) {
                Some(problem) => {
                    table.is_whole = false;
                    self.problems.push(problem);
                }
                None => table.fields.push((node, row)),
            }
        }
        Some(table)
    }

    /// Reports that a table lacks something, unless the reason is reported already.
    pub(crate) fn lacks<T>(&mut self, table: &Table<'_>, message: &str) -> Option<T> {
        if table.is_whole {
            self.wrong(table.node, message);
        }
        None
    }

    /// Reports fields that a table does not have.
    ///
    /// Returns whether all are known; if not, a field that seems missing was probably misspelt.
    pub(crate) fn fields(&mut self, fields: &[TableEntry], table: &Node, known: &[&str]) -> bool {
        let mut all_known = true;
        for field in fields.iter().filter(|field| !known.contains(&field.name.as_str())) {
            let problem = |message| Problem::new(field.location.clone(), &field.node.key, message);
            self.problems.push(if table.key.starts_with("listen.") && LATER_FIELDS.contains(&field.name.as_str()) {
                problem("not in this version; leave it out".to_owned()).with_value(field.node.render())
            } else if let Some(of_coturn) = document::of_coturn(&field.location, &field.node.key) {
                all_known = false;
                of_coturn
            } else {
                all_known = false;
                let message = match elsewhere(&table.key, &field.name) {
                    Some(belongs) => format!("unknown field; {belongs}"),
                    None => format!("unknown field; known are {}", known.join(", ")),
                };
                let nearest = document::nearest(&field.name, known.iter().copied());
                problem(message).with_suggestion(nearest.map(|name| format!("`{name}`")))
            });
        }
        all_known
    }
}

fn row(path: &str) -> &'static ConfigKey {
    find(path).unwrap_or_else(|| panic!("{path} has no row in config::keys"))
}

/// Where a key belongs that stands below the head of a table, such as `[[auth.secrets]]`, by mistake.
fn elsewhere(table: &str, field: &str) -> Option<String> {
    if find(field).is_some() {
        return Some(format!("`{field}` belongs above the first [section] of the file"));
    }
    let (section, _) = table.split_once('.')?;
    let path = format!("{section}.{field}");
    find(&path).map(|_| format!("`{path}` belongs to [{section}], above the tables of it"))
}
