//! Environment variables as a layer over the file: `THROUGHWAY_SECTION__KEY`.

use std::sync::Arc;

use crate::config::document::{self, Node, Value};
use crate::config::error::{Place, Problem};
use crate::config::{KEYS, Kind, LATER};

const PREFIX: &str = "THROUGHWAY_";

/// The first secret, as a variable.
pub(crate) const SECRET: &str = "THROUGHWAY_AUTH__SECRET";
/// The file of the first secret, as a variable.
pub(crate) const SECRET_FILE: &str = "THROUGHWAY_AUTH__SECRET_FILE";

/// Where systemd puts what LoadCredential= names.
pub(crate) const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The variables that concern us.
#[derive(Clone, Default)]
pub struct Environment {
    variables: Vec<(String, String)>,
    credentials_directory: Option<String>,
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
            } else if name.starts_with(PREFIX) {
                environment.variables.push((name, value));
            }
        }
        environment.variables.sort();
        environment
    }
}

impl Environment {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect()
    }

    /// The names of all variables that concern us.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a variable gives a secret.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        self.names().any(|name| name == SECRET || name == SECRET_FILE)
    }

    /// Where systemd put our credentials.
    pub(crate) fn credentials_directory(&self) -> Option<&str> {
        self.credentials_directory.as_deref()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Each known variable as (path, value); unknown ones are reported.
    pub(crate) fn nodes(&self, problems: &mut Vec<Problem>) -> Vec<(&'static str, Node)> {
        let mut nodes = Vec::new();
        for (name, value) in self.variables.iter().filter(|(name, _)| name != SECRET && name != SECRET_FILE) {
            let place = Place::Variable(Arc::from(name.as_str()));
            if let Some((path, off)) = LATER.iter().find(|(path, _)| variable_name(path) == *name) {
                // "[]" is how a file says off; a variable says it with nothing.
                let shown = if *off == Some("[]") && value.is_empty() { "[]" } else { value.as_str() };
                let off_text = off.map(|off| off.trim_matches('"'));
                if off_text != Some(shown) {
                    problems.push(Problem::new(place, *path, "not in this version; unset the variable"));
                }
                continue;
            }
            match KEYS.iter().find(|key| variable_name(key.path) == *name) {
                Some(key) if key.kind == Kind::Tables => problems.push(Problem::new(
                    place,
                    key.path,
                    format!("tables don't fit into a variable; use the file, or {SECRET} or {SECRET_FILE} for the first secret"),
                )),
                Some(key) => nodes.push((key.path, Node { value: value_of(key.kind, value, &place), place })),
                None => {
                    let names: Vec<String> = KEYS
                        .iter()
                        .filter(|key| key.kind != Kind::Tables)
                        .map(|key| variable_name(key.path))
                        .chain([SECRET.to_owned(), SECRET_FILE.to_owned()])
                        .collect();
                    let suggestion = document::nearest(name, names.iter().map(String::as_str));
                    let message = "unknown variable; all that start with THROUGHWAY_ are THROUGHWAY_SECTION__KEY";
                    problems.push(Problem::new(place, "", message).with_suggestion(suggestion));
                }
            }
        }
        nodes
    }
}

/// `listen.udp` as `THROUGHWAY_LISTEN__UDP`.
pub(crate) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}

fn value_of(kind: Kind, text: &str, place: &Place) -> Value {
    let item = |text: &str| Node { place: place.clone(), value: Value::Text(text.trim().to_owned()) };
    let list = || Value::List(text.split(',').filter(|part| !part.trim().is_empty()).map(item).collect());
    match kind {
        Kind::List => list(),
        Kind::TextOrList if text.contains(',') => list(),
        Kind::Number if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Value::Integer(text.parse().ok(), text.to_owned())
        }
        Kind::Flag if text == "true" || text == "false" => Value::Other(text.to_owned()),
        Kind::Text | Kind::Flag | Kind::Number | Kind::TextOrList | Kind::Tables => Value::Text(text.to_owned()),
    }
}
