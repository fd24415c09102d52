//! TOML with the place of every value, and the check that every key is a known one.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::error::{Place, Problem};
use crate::config::{KEYS, LATER};

/// A value and where it stands.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What TOML can say, as far as a configuration needs it.
#[derive(Clone)]
pub(crate) enum Value {
    Text(String),
    /// `None` if it does not fit.
    Integer(Option<i64>, String),
    /// Floats, booleans and dates: never right, kept for the error.
    Other(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) node: Node,
}

impl Node {
    /// The value as TOML text, cut when long.
    pub(crate) fn render(&self) -> String {
        let text = match &self.value {
            Value::Text(text) => quote(text),
            Value::Integer(_, text) | Value::Other(text) => text.clone(),
            Value::List(items) => format!("[{}]", items.iter().map(Self::render).collect::<Vec<_>>().join(", ")),
            Value::Table(entries) => format!(
                "{{ {} }}",
                entries
                    .iter()
                    .map(|e| format!("{} = {}", bare_or_quoted(&e.key), e.node.render()))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
            .replace("{  }", "{}"),
        };
        if text.chars().count() > 100 { text.chars().take(97).chain("...".chars()).collect() } else { text }
    }

    /// What kind of value it is, for "expected x, found y".
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "a string",
            Value::Integer(..) => "a number",
            Value::Other(_) => "something else",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// A string as TOML writes it, control characters made visible.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.escape_debug().to_string().replace("\\'", "'"))
}

/// A key as TOML writes it.
pub(crate) fn bare_or_quoted(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if bare { key.to_owned() } else { quote(key) }
}

/// Reads a text.
///
/// A parser's own message shows no source line on purpose: that line may hold a secret.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, Vec<Problem>> {
    let reader = Reader { path: Arc::from(path), text };
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(reader.table(root.get_ref()));
    }
    // Recovery after the first error tells little that is new: one per line, and not many.
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let place = reader.place(error.span().map_or(0, |span| span.start));
            Problem::new(place, "", format!("not TOML: {}", error.message()))
        })
        .collect();
    problems.dedup_by(|next, kept| next.place == kept.place);
    problems.truncate(10);
    Err(problems)
}

/// Reads a default.
pub(crate) fn parse_default(text: &str) -> Node {
    let reader = Reader { path: Arc::from(Path::new("")), text };
    let value = DeValue::parse(text).expect("the defaults are TOML, as a test shows");
    let mut node = reader.node(&value);
    node.forget_place();
    node
}

impl Node {
    fn forget_place(&mut self) {
        self.place = Place::Nowhere;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(Self::forget_place),
            Value::Table(entries) => entries.iter_mut().for_each(|entry| entry.node.forget_place()),
            Value::Text(_) | Value::Integer(..) | Value::Other(_) => {}
        }
    }
}

struct Reader<'a> {
    path: Arc<Path>,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        Place::File(self.path.clone(), 1 + before.iter().filter(|byte| **byte == b'\n').count())
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let place = self.place(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => {
                Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok(), number.to_string())
            }
            DeValue::Float(number) => Value::Other(number.to_string()),
            DeValue::Boolean(yes) => Value::Other(yes.to_string()),
            DeValue::Datetime(date) => Value::Other(date.to_string()),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { place, value }
    }

    fn table(&self, table: &DeTable<'_>) -> Vec<Entry> {
        let mut entries: Vec<(usize, Entry)> = table
            .iter()
            .map(|(key, value)| {
                let place = self.place(key.span().start);
                (key.span().start, Entry { key: key.get_ref().to_string(), place, node: self.node(value) })
            })
            .collect();
        entries.sort_by_key(|(start, _)| *start);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// Reports every key that no version knows, and every one that a later version will.
pub(crate) fn check_keys(root: &[Entry], problems: &mut Vec<Problem>) {
    for entry in root {
        if is_key(&entry.key) {
            continue;
        }
        if let Some(off) = later(&entry.key) {
            problems.extend(not_yet(&entry.key, &entry.node, &entry.place, off));
            continue;
        }
        let section = format!("{}.", entry.key);
        if !all_paths().any(|path| path.starts_with(&section)) {
            problems.push(unknown(entry.place.clone(), &entry.key, &entry.node));
            continue;
        }
        let Value::Table(fields) = &entry.node.value else {
            let message = format!("expected a table [{}], found {}", entry.key, entry.node.kind());
            problems.push(Problem::new(entry.place.clone(), &entry.key, message));
            continue;
        };
        for field in fields {
            let path = format!("{}.{}", entry.key, bare_or_quoted(&field.key));
            if is_key(&path) {
                continue;
            }
            match later(&path) {
                Some(off) => problems.extend(not_yet(&path, &field.node, &field.place, off)),
                None => problems.push(unknown(field.place.clone(), &path, &field.node)),
            }
        }
    }
}

fn is_key(path: &str) -> bool {
    KEYS.iter().any(|key| key.path == path)
}

fn later(path: &str) -> Option<Option<&'static str>> {
    LATER.iter().find(|(known, _)| *known == path).map(|(_, off)| *off)
}

/// The error for a key of a later version, unless its value means "off".
pub(crate) fn not_yet(path: &str, node: &Node, place: &Place, off: Option<&str>) -> Option<Problem> {
    let message = match off {
        Some(off) if node.render() == off => return None,
        Some(off) => format!("not in this version; leave it out or write {off}"),
        None => "not in this version; leave it out".to_owned(),
    };
    let problem = Problem::new(place.clone(), path, message);
    Some(if matches!(node.value, Value::Table(_)) { problem } else { problem.with_value(node.render()) })
}

fn all_paths() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.path).chain(LATER.iter().map(|(path, _)| *path))
}

/// The error for a key that no version knows.
fn unknown(place: Place, path: &str, node: &Node) -> Problem {
    let nearest = nearest_key(path, matches!(node.value, Value::Table(_)));
    let message = match (&nearest, path.rsplit_once('.')) {
        (Some(_), _) => "unknown key".to_owned(),
        (None, Some((section, _))) => {
            let prefix = format!("{section}.");
            let names: Vec<_> = KEYS.iter().filter_map(|key| key.path.strip_prefix(&prefix)).collect();
            format!("unknown key; [{section}] knows {}", names.join(", "))
        }
        (None, None) => {
            format!("unknown key; the sections are {}", sections().join(", "))
        }
    };
    Problem::new(place, path, message).with_suggestion(nearest.map(|key| format!("`{key}`")))
}

fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> =
        KEYS.iter().filter_map(|key| key.path.split_once('.')).map(|(section, _)| section).collect();
    sections.dedup();
    sections
}

/// The key that was probably meant: the same name elsewhere, else the least typing mistake away.
fn nearest_key(path: &str, is_table: bool) -> Option<String> {
    let name = path.rsplit('.').next().unwrap_or(path);
    if let Some(moved) = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(name)) {
        return Some(moved.path.to_owned());
    }
    match path.rsplit_once('.') {
        Some((section, name)) => {
            let prefix = format!("{section}.");
            let here = KEYS.iter().filter_map(|key| key.path.strip_prefix(&prefix));
            nearest(name, here)
                .map(|name| format!("{section}.{name}"))
                .or_else(|| nearest(path, KEYS.iter().map(|key| key.path)))
        }
        // A table was meant as a section, anything else as a key outside of them.
        None if is_table => nearest(path, sections().into_iter()),
        None => nearest(path, KEYS.iter().map(|key| key.path)),
    }
}

/// The candidate within two typing mistakes, or one in three characters of a long word.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            let length = word.chars().count().min(candidate.chars().count());
            *distance <= (length / 3).max(2).min(length.saturating_sub(1))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate.to_owned())
}
