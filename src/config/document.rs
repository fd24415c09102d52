//! TOML with the place of every value, and the check that every key is a known one.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::coturn;
use crate::config::error::{Problem, SourceLocation};
use crate::config::explain;
use crate::config::keys::{KEYS, LATER, find};
use crate::fetch::masked;

/// Keys whose value is a URL, also when it does not look like one.
const URL_KEYS: [&str; 2] = ["accounting.webhook", "http.jwt_keys"];

/// A value, the path of its key, and where it stands.
#[derive(Clone)]
pub(crate) struct Node {
    /// The path, such as `auth.secrets[0].id`; items of a plain list have that of the list.
    pub(crate) key: String,
    pub(crate) location: SourceLocation,
    pub(crate) value: Value,
}

/// What TOML can say, as far as a configuration needs it.
#[derive(Clone)]
pub(crate) enum Value {
    Text(String),
    /// `None` if it does not fit.
    Integer(Option<i64>, String),
    /// Floats, booleans and dates.
    Other(String),
    List(Vec<Node>),
    Table(Vec<TableEntry>),
}

/// A name in a table with its value.
#[derive(Clone)]
pub(crate) struct TableEntry {
    pub(crate) name: String,
    /// Where the name stands.
    pub(crate) location: SourceLocation,
    pub(crate) node: Node,
}

/// The field of a table.
pub(crate) fn field<'t>(fields: &'t [TableEntry], name: &str) -> Option<&'t Node> {
    fields.iter().find(|field| field.name == name).map(|field| &field.node)
}

impl Node {
    /// The value as TOML text, cut when long; of a URL neither login nor query.
    pub(crate) fn render(&self) -> String {
        let join = |parts: Vec<String>| parts.join(", ");
        let text = match &self.value {
            Value::Text(text) if self.is_url(text) => quote(&masked(text)),
            Value::Text(text) => quote(text),
            Value::Integer(_, text) | Value::Other(text) => text.clone(),
            Value::List(items) => format!("[{}]", join(items.iter().map(Self::render).collect())),
            Value::Table(fields) if fields.is_empty() => "{}".to_owned(),
            Value::Table(fields) => {
                let of = |field: &TableEntry| format!("{} = {}", bare_or_quoted(&field.name), field.node.render());
                format!("{{ {} }}", join(fields.iter().map(of).collect()))
            }
        };
        if text.chars().count() > 100 { text.chars().take(97).chain("...".chars()).collect() } else { text }
    }

    /// Whether a text is meant as a URL, whose login and query may hold a key.
    fn is_url(&self, text: &str) -> bool {
        text.contains("://") || URL_KEYS.contains(&self.key.as_str())
    }

    /// The type of the value, for "expected x, found y".
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text(_) => "a string",
            Value::Integer(..) => "a number",
            Value::Other(word) if word == "true" => "true",
            Value::Other(word) if word == "false" => "false",
            Value::Other(_) => "something else",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// A text; `None` if it is none.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Integer(..) | Value::Other(_) | Value::List(_) | Value::Table(_) => None,
        }
    }

    /// true or false; `None` if it is neither.
    pub(crate) fn flag(&self) -> Option<bool> {
        match &self.value {
            Value::Other(word) => word.parse().ok(),
            Value::Text(_) | Value::Integer(..) | Value::List(_) | Value::Table(_) => None,
        }
    }

    /// Whether no line of the file and no variable holds it.
    pub(crate) fn is_default(&self) -> bool {
        self.location == SourceLocation::Nowhere
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
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<TableEntry>, Vec<Problem>> {
    let reader = Reader::new(path, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(reader.table("", root.get_ref()));
    }
    if let Some((line, message)) = explain::coturn_file(text) {
        return Err(vec![Problem::new(SourceLocation::File(path.into(), line), "", message)]);
    }
    // Recovery after the first error tells little that is new: one per line, and not many.
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let message = match error.message() {
                "duplicate key" => explain::twice(text, error.span().unwrap_or_default()),
                other => explain::plainly(text, at).unwrap_or_else(|| format!("not TOML: {other}")),
            };
            Problem::new(reader.location(at), "", message)
        })
        .collect();
    problems.dedup_by(|next, kept| next.location == kept.location);
    problems.truncate(10);
    Err(problems)
}

/// Reads the default of a key.
pub(crate) fn parse_default(key: &str, text: &str) -> Node {
    let value = DeValue::parse(text).expect("the defaults are TOML, as a test shows");
    Reader { path: None, line_ends: Vec::new() }.node(key.to_owned(), &value)
}

struct Reader {
    /// `None` for a default.
    path: Option<Arc<Path>>,
    /// Where each line ends. Counting from the top for each value made 40,000 users take half a minute.
    line_ends: Vec<usize>,
}

impl Reader {
    fn new(path: &Path, text: &str) -> Self {
        let line_ends = text.match_indices('\n').map(|(at, _)| at).collect();
        Self { path: Some(Arc::from(path)), line_ends }
    }

    fn location(&self, offset: usize) -> SourceLocation {
        let line = 1 + self.line_ends.partition_point(|end| *end < offset);
        self.path.clone().map_or(SourceLocation::Nowhere, |path| SourceLocation::File(path, line))
    }

    fn node(&self, key: String, value: &Spanned<DeValue<'_>>) -> Node {
        let location = self.location(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => {
                Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok(), number.to_string())
            }
            DeValue::Float(number) => Value::Other(number.to_string()),
            DeValue::Boolean(yes) => Value::Other(yes.to_string()),
            DeValue::Datetime(date) => Value::Other(date.to_string()),
            DeValue::Array(items) => {
                let has_tables = find(&key).is_some_and(|row| row.value_type.is_tables());
                let node = |(at, item): (usize, &Spanned<DeValue<'_>>)| {
                    let is_table = has_tables || matches!(item.get_ref(), DeValue::Table(_));
                    self.node(if is_table { format!("{key}[{at}]") } else { key.clone() }, item)
                };
                Value::List(items.iter().enumerate().map(node).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(&format!("{key}."), table)),
        };
        Node { key, location, value }
    }

    fn table(&self, prefix: &str, table: &DeTable<'_>) -> Vec<TableEntry> {
        let mut entries: Vec<(usize, TableEntry)> = table
            .iter()
            .map(|(name, value)| {
                let start = name.span().start;
                let node = self.node(format!("{prefix}{}", bare_or_quoted(name.get_ref())), value);
                (start, TableEntry { name: name.get_ref().to_string(), location: self.location(start), node })
            })
            .collect();
        entries.sort_by_key(|(start, _)| *start);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// Reports every key that no version knows, and every one that a later version will.
pub(crate) fn check_keys(root: &[TableEntry], problems: &mut Vec<Problem>) {
    for entry in root {
        let section = format!("{}.", entry.name);
        match &entry.node.value {
            _ if !all_paths().any(|path| path.starts_with(&section)) => problems.extend(check_key(entry)),
            Value::Table(fields) => problems.extend(fields.iter().filter_map(check_key)),
            Value::Text(_) | Value::Integer(..) | Value::Other(_) | Value::List(_) => {
                let message = format!("expected a table [{}], found {}", entry.name, entry.node.kind());
                problems.push(Problem::new(entry.location.clone(), &entry.name, message));
            }
        }
    }
}

fn check_key(entry: &TableEntry) -> Option<Problem> {
    let path = entry.node.key.as_str();
    match LATER.iter().find(|(known, _)| *known == path) {
        _ if find(path).is_some() => None,
        Some((_, off)) if entry.node.render() == *off => None,
        Some((_, off)) => {
            let message = format!("not in this version; leave it out or write {off}");
            let problem = Problem::new(entry.location.clone(), path, message);
            Some(if matches!(entry.node.value, Value::Table(_)) {
                problem
            } else {
                problem.with_value(entry.node.render())
            })
        }
        None => Some(unknown(entry)),
    }
}

fn all_paths() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.path).chain(LATER.iter().map(|(path, _)| *path))
}

/// The error for a key that no version knows.
fn unknown(entry: &TableEntry) -> Problem {
    let (location, path, node) = (entry.location.clone(), entry.node.key.as_str(), &entry.node);
    if let Some(problem) = of_coturn(&location, path) {
        return problem;
    }
    let nearest = nearest_key(path, matches!(node.value, Value::Table(_)));
    let message = match (&nearest, path.rsplit_once('.')) {
        // The commonest: a line added at the end of the file, where the last section goes on.
        (Some(key), Some(_)) if !key.contains('.') => {
            format!("unknown key; `{key}` belongs above the first [section] of the file")
        }
        (Some(_), _) => "unknown key".to_owned(),
        (None, Some((section, _))) => {
            let prefix = format!("{section}.");
            let names: Vec<_> = KEYS.iter().filter_map(|key| key.path.strip_prefix(&prefix)).collect();
            format!("unknown key; [{section}] knows {}", names.join(", "))
        }
        (None, None) => {
            let above: Vec<_> = KEYS.iter().map(|key| key.path).filter(|path| !path.contains('.')).collect();
            format!(
                "unknown key; the sections are {}, and above them stand {}",
                sections().join(", "),
                above.join(", ")
            )
        }
    };
    Problem::new(location, path, message).with_suggestion(nearest.map(|key| format!("`{key}`")))
}

/// The error for a key or field that has the name of an option of coturn's, wherever it stands.
pub(crate) fn of_coturn(location: &SourceLocation, path: &str) -> Option<Problem> {
    let name = path.rsplit('.').next().unwrap_or(path);
    if KEYS.iter().any(|key| key.path.rsplit('.').next() == Some(name)) {
        // One of ours too, which has a place of its own.
        return None;
    }
    let option = coturn::find(name)?;
    let message = format!("is a key of coturn's turnserver.conf; here {}", option.instead());
    Some(Problem::new(location.clone(), path, message))
}

fn sections() -> Vec<&'static str> {
    let mut sections = Vec::new();
    for (section, _) in KEYS.iter().filter_map(|key| key.path.split_once('.')) {
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
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
