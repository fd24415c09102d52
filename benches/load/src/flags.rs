//! `--name value` pairs; unknown names are errors.

use std::collections::HashMap;
use std::str::FromStr;

/// Names that stand alone.
const SWITCHES: &[&str] =
    &["fifo", "batch", "gso", "steps", "no-permission", "reuse-nonce", "pairs", "flood-ignore", "segment"];

pub struct Flags(HashMap<String, String>);

impl Flags {
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut found = HashMap::new();
        let mut words = words;
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else {
                return Err(format!("`{word}` is not a flag; flags look like --name value"));
            };
            let value = if SWITCHES.contains(&name) {
                "true".to_owned()
            } else {
                words.next().ok_or_else(|| format!("--{name} needs a value"))?
            };
            found.insert(name.to_owned(), value);
        }
        Ok(Self(found))
    }

    /// The value of `--name`, or `None` when it was not given.
    pub fn optional<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, String> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("--{name}: `{text}` is not a valid value")),
            },
        }
    }

    /// Takes `--name` when its value is this one.
    pub fn take_if(&mut self, name: &str, value: &str) -> bool {
        self.0.get(name).is_some_and(|given| given == value) && self.0.remove(name).is_some()
    }

    pub fn or<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    pub fn switch(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Refuses what nobody asked for, so that a typing error never changes a measurement in silence.
    pub fn finish(self) -> Result<(), String> {
        let mut left: Vec<_> = self.0.into_keys().collect();
        left.sort();
        match left.first() {
            None => Ok(()),
            Some(name) => Err(format!("unknown flag --{name}; see --help")),
        }
    }
}
