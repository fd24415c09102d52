//! Environment variables as a layer over the file: `THROUGHWAY_SECTION__KEY`.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::document::{self, Node, Value};
use crate::config::error::{Problem, SourceLocation};
use crate::config::keys::{KEYS, LATER, ValueType};

const PREFIX: &str = "THROUGHWAY_";

/// The first secret, as a variable.
pub(crate) const SECRET: &str = "THROUGHWAY_AUTH__SECRET";
/// The file of the first secret, as a variable.
pub(crate) const SECRET_FILE: &str = "THROUGHWAY_AUTH__SECRET_FILE";

/// Where systemd puts what LoadCredential= names.
pub(crate) const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Where systemd makes a directory for what RuntimeDirectory= names.
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// Where systemd makes a directory for what StateDirectory= names.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";

/// The variables that concern us.
#[derive(Clone, Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
    /// Names of variables of ours whose value is not UTF-8 text.
    not_text: Vec<String>,
    credentials_directory: Option<String>,
    runtime_directory: Option<String>,
    state_directory: Option<String>,
    is_after_crash: bool,
}

// A value may be a secret.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let mut environment = Self::default();
        for (name, value) in variables {
            let (name, value) = (name.into(), value.into());
            if name == CREDENTIALS_DIRECTORY {
                environment.credentials_directory = Some(value).filter(|directory| !directory.is_empty());
            } else if name == RUNTIME_DIRECTORY {
                environment.runtime_directory = first_of(&value);
            } else if name == STATE_DIRECTORY {
                environment.state_directory = first_of(&value);
            } else if name.starts_with(PREFIX) && !is_service_link(&name, &value) {
                environment.variables.push((name, value));
            }
        }
        environment.variables.sort();
        environment
    }
}

/// systemd may name several directories; the first counts.
fn first_of(directories: &str) -> Option<String> {
    directories.split(':').next().filter(|first| !first.is_empty()).map(ToOwned::to_owned)
}

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let (mut text, mut not_text) = (Vec::new(), Vec::new());
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            match value.into_string() {
                Ok(value) => text.push((name, value)),
                // A changed character would be another secret.
                Err(_) if name.starts_with(PREFIX) => not_text.push(name),
                Err(_) => {}
            }
        }
        not_text.sort();
        Self { not_text, ..text.into_iter().collect() }
    }

    /// The same, for a server that goes on for one that was killed: calls are worth more than a certificate that can't be read
    /// at this moment.
    #[must_use]
    pub(crate) fn after_crash(self) -> Self {
        Self { is_after_crash: true, ..self }
    }

    pub(crate) const fn is_after_crash(&self) -> bool {
        self.is_after_crash
    }

    /// The names of all variables that concern us.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a variable gives a secret.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        self.names().chain(self.not_text.iter().map(String::as_str)).any(|name| name == SECRET || name == SECRET_FILE)
    }

    /// Where systemd put our credentials.
    pub(crate) fn credentials_directory(&self) -> Option<&str> {
        self.credentials_directory.as_deref()
    }

    /// Where systemd lets us put sockets.
    pub(crate) fn runtime_directory(&self) -> Option<&str> {
        self.runtime_directory.as_deref()
    }

    /// Where the server keeps what must outlive it.
    pub(crate) fn state_directory(&self) -> Option<&str> {
        self.state_directory.as_deref()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of each known variable; unknown ones are reported.
    pub(crate) fn nodes(&self, problems: &mut Vec<Problem>) -> Vec<Node> {
        let mut nodes = Vec::new();
        for name in &self.not_text {
            let location = SourceLocation::Variable(Arc::from(name.as_str()));
            problems.push(Problem::new(location, "", "is not UTF-8 text; set it to text, or use the file"));
        }
        for (name, value) in self.variables.iter().filter(|(name, _)| name != SECRET && name != SECRET_FILE) {
            let location = SourceLocation::Variable(Arc::from(name.as_str()));
            if let Some((path, off)) = LATER.iter().find(|(path, _)| variable_name(path) == *name) {
                // "[]" is how a file says off; a variable says it with nothing.
                let is_off = value == off || (*off == "[]" && value.is_empty());
                problems.extend(
                    (!is_off).then(|| Problem::new(location, *path, "not in this version; unset the variable")),
                );
                continue;
            }
            match KEYS.iter().find(|key| variable_name(key.path) == *name) {
                Some(key) if key.value_type.is_tables() => {
                    let message = format!(
                        "tables don't fit into a variable; use the file, or {SECRET} or {SECRET_FILE} for the first secret"
                    );
                    problems.push(Problem::new(location, key.path, message));
                }
                Some(key) => nodes.push(node_of(key.path, key.value_type, value, &location)),
                None => {
                    let keys = KEYS.iter().filter(|key| !key.value_type.is_tables());
                    let mut names: Vec<String> = keys.map(|key| variable_name(key.path)).collect();
                    names.extend([SECRET.to_owned(), SECRET_FILE.to_owned()]);
                    let suggestion = document::nearest(name, names.iter().map(String::as_str));
                    let message = "unknown variable; the name of a variable is THROUGHWAY_SECTION__KEY";
                    problems.push(Problem::new(location, "", message).with_suggestion(suggestion));
                }
            }
        }
        nodes
    }
}

/// Whether Kubernetes put a variable into the pod because a Service is called throughway, or throughway-SOMETHING.
///
/// For a Service it sets `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_SERVICE_PORT_PORTNAME`, and, as Docker's links
/// did, `NAME_PORT`, `NAME_PORT_3478_UDP` and the same with `_PROTO`, `_PORT` and `_ADDR`. Name and value must both be
/// of these forms: everything else that begins with THROUGHWAY_ is a mistake to be told.
fn is_service_link(name: &str, value: &str) -> bool {
    // The name of a port may have two dashes in a row, and so two underscores; else only our own keys of sections have them.
    let of_port = name.strip_prefix("THROUGHWAY_SERVICE_PORT_").unwrap_or_default();
    if (name.contains("__") && (of_port.is_empty() || of_port.starts_with('_')))
        || !name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    {
        return false;
    }
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let is_protocol = |text: &str| ["tcp", "udp", "sctp"].contains(&text);
    let is_url = |text: &str| {
        text.split_once("://").is_some_and(|(scheme, rest)| {
            let host_and_port = rest.rsplit_once(':');
            is_protocol(scheme)
                && host_and_port.is_some_and(|(host, port)| is_address(host.trim_matches(['[', ']'])) && is_port(port))
        })
    };
    if name.ends_with("_SERVICE_HOST") {
        return is_address(value);
    }
    if name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return is_port(value);
    }
    if name.ends_with("_PORT") && is_url(value) {
        return true;
    }
    // NAME_PORT_3478_UDP[_PROTO|_PORT|_ADDR]
    let Some((_, rest)) = name.rsplit_once("_PORT_") else { return false };
    let mut parts = rest.split('_');
    let (Some(port), Some(protocol), what, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    is_port(port)
        && is_protocol(&protocol.to_ascii_lowercase())
        && match what {
            None => is_url(value),
            Some("PROTO") => is_protocol(value),
            Some("PORT") => is_port(value),
            Some("ADDR") => is_address(value),
            Some(_) => false,
        }
}

/// `listen.udp` as `THROUGHWAY_LISTEN__UDP`.
pub(crate) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}

fn node_of(path: &str, value_type: ValueType, text: &str, location: &SourceLocation) -> Node {
    let node = |value| Node { key: path.to_owned(), location: location.clone(), value };
    let item = |text: &str| node(Value::Text(text.trim().to_owned()));
    let list = || Value::List(text.split(',').filter(|part| !part.trim().is_empty()).map(item).collect());
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    node(match (value_type, text) {
        (ValueType::List, _) => list(),
        (ValueType::Addresses, _) if text.contains(',') => list(),
        (ValueType::Flag, "true" | "false") => Value::Other(text.to_owned()),
        (ValueType::Text | ValueType::Word(_) | ValueType::Addresses, _) => Value::Text(text.to_owned()),
        _ if is_number => Value::Integer(text.parse().ok(), text.to_owned()),
        _ => Value::Text(text.to_owned()),
    })
}
