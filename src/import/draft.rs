//! The configuration that an import makes, and the verdicts on what it was made of.

use std::fmt::Write as _;

use crate::config::Config;
use crate::import::lines::Setting;
use crate::import::verdict::{Outcome, Place, Verdict};
use crate::printable::printable;

/// The sections in the order of the example; a table of `auth.users` and the secrets stand behind the keys of `[auth]`.
const SECTIONS: [&str; 13] = [
    "",
    "listen",
    "tls",
    "relay",
    "turn",
    "stun",
    "auth",
    "auth.users",
    "auth.secrets",
    "peers",
    "limits",
    "http",
    "log",
];

/// Longer lists have a line for each item.
const LINE_CHARS: usize = 100;

enum Item {
    /// A key with its value as TOML.
    Key { name: String, value: String, from: Vec<Place> },
    /// A block of lines as they are.
    Block(String),
}

/// What an import has come to.
#[derive(Default)]
pub struct Draft {
    items: Vec<(&'static str, Item)>,
    /// In the order in which they were found.
    pub verdicts: Vec<Verdict>,
}

impl Draft {
    /// Sets a key of a section to a value, which is TOML.
    pub fn key(&mut self, path: &str, value: impl Into<String>, from: &[Place]) {
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        let item = Item::Key { name: name.to_owned(), value: value.into(), from: from.to_vec() };
        self.items.push((section_of(section), item));
    }

    /// Adds lines to a section, such as one more `[[auth.secrets]]`.
    pub fn block(&mut self, section: &str, lines: impl Into<String>) {
        self.items.push((section_of(section), Item::Block(lines.into())));
    }

    /// Adds a question with an example of the answer, both as comments.
    pub fn question(&mut self, section: &str, place: &Place, question: &str, example: &str) {
        // A value of YAML may hold ends of lines, which would end the comment too.
        let mut lines = printable(&format!("# FILL IN ({place}): {question}")).into_owned() + "\n";
        for line in example.lines() {
            let _ = writeln!(lines, "#{line}");
        }
        self.block(section, lines);
    }

    /// Whether a key is set.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        let (wanted, key) = path.rsplit_once('.').unwrap_or(("", path));
        self.items.iter().any(|(section, item)| match item {
            Item::Key { name, .. } => *section == wanted && name == key,
            Item::Block(_) => false,
        })
    }

    /// Says what became of a setting.
    pub fn say(&mut self, setting: &Setting, outcome: Outcome, message: impl Into<String>) {
        self.push(setting, outcome, false, message.into());
    }

    /// The same of a setting that is a danger.
    pub fn say_unsafe(&mut self, setting: &Setting, outcome: Outcome, message: impl Into<String>) {
        self.push(setting, outcome, true, message.into());
    }

    fn push(&mut self, setting: &Setting, outcome: Outcome, is_unsafe: bool, mut message: String) {
        let mut outcome = outcome;
        if !setting.note.is_empty() {
            let _ = write!(message, " ({})", setting.note);
            if outcome == Outcome::Carried {
                outcome = Outcome::NeedsYou;
            }
        }
        self.verdicts.push(Verdict {
            place: setting.place.clone(),
            name: setting.name.clone(),
            outcome,
            is_unsafe,
            message,
        });
    }

    /// Says something of a place, or of the whole.
    pub fn say_of(&mut self, place: Place, name: &str, outcome: Outcome, message: impl Into<String>) {
        let message = message.into();
        self.verdicts.push(Verdict { place, name: name.to_owned(), outcome, is_unsafe: false, message });
    }

    /// The text of the configuration.
    #[must_use]
    pub fn text(&self, source: &str) -> String {
        let mut text = format!("# Made from {source} by throughway {}.\n", env!("CARGO_PKG_VERSION"));
        text += "# Every key and its default: `throughway config example`. It holds secrets: keep it unreadable for others.\n";
        for section in SECTIONS {
            let items: Vec<&Item> = self.items.iter().filter(|(of, _)| *of == section).map(|(_, item)| item).collect();
            if items.is_empty() {
                continue;
            }
            text.push('\n');
            // The head of each secret is in its block.
            let is_headed = !section.is_empty() && section != "auth.secrets";
            if is_headed {
                let _ = writeln!(text, "[{section}]");
            }
            for (at, item) in items.into_iter().enumerate() {
                if at > 0 && !is_headed && !section.is_empty() {
                    text.push('\n');
                }
                match item {
                    Item::Key { name, value, from } => write_key(&mut text, name, value, from),
                    Item::Block(lines) => text += lines,
                }
            }
        }
        text
    }

    /// The verdicts in the order of the places.
    #[must_use]
    pub fn sorted(&self) -> Vec<Verdict> {
        let mut verdicts = self.verdicts.clone();
        verdicts.sort_by(|a, b| a.place.cmp(&b.place));
        verdicts
    }

    /// Lets the check of configurations look at the result; what it refuses needs a person.
    ///
    /// `path` is where it will be, as relative paths in it begin there.
    ///
    /// # Errors
    /// Every mistake in it, in words.
    pub fn check(&mut self, source: &str, path: &str) -> Result<Config, String> {
        let checked = Config::from_toml(path, &self.text(source));
        if let Err(error) = &checked {
            for problem in &error.problems {
                let place = Place::File(path.into());
                self.say_of(place, &problem.key, Outcome::NeedsYou, format!("refused: {}", problem.message));
            }
        }
        checked.map_err(|error| error.to_string())
    }
}

fn section_of(name: &str) -> &'static str {
    SECTIONS.into_iter().find(|section| *section == name).unwrap_or_else(|| panic!("no section {name}"))
}

fn write_key(text: &mut String, name: &str, value: &str, from: &[Place]) {
    let is_long = value.starts_with('[') && name.len() + value.len() > LINE_CHARS;
    let value = if is_long {
        format!("[\n    {},\n]", value.trim_matches(['[', ']']).replace(", ", ",\n    "))
    } else {
        value.to_owned()
    };
    let from: Vec<String> = from.iter().map(ToString::to_string).collect();
    let from = if from.is_empty() || from.len() > 4 { String::new() } else { format!("  # {}", from.join(", ")) };
    let _ = writeln!(text, "{name} = {value}{from}");
}

/// A string as TOML.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A list of strings as TOML.
#[must_use]
pub fn quote_all<T: ToString>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(|item| quote(&item.to_string())).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_from_toml_as_they_were() {
        for text in ["plain", "a\"b\\c", "tab\tand\u{1}", "\u{301}\u{202e}ü", ""] {
            let read: toml::Table = toml::from_str(&format!("a = {}", quote(text))).unwrap();
            assert_eq!(read["a"].as_str(), Some(text));
        }
    }

    #[test]
    fn a_draft_is_written_in_the_order_of_the_sections() {
        let mut draft = Draft::default();
        let place = Place::Line("t.conf".into(), 3);
        draft.key("limits.allocations", "5", std::slice::from_ref(&place));
        draft.key("realm", quote("a.example"), &[]);
        draft.question("relay", &place, "which address?", "external = \"203.0.113.7\"");
        let text = draft.text("t.conf");
        let body: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            body,
            [
                "",
                "realm = \"a.example\"",
                "",
                "[relay]",
                "# FILL IN (t.conf:3): which address?",
                "#external = \"203.0.113.7\"",
                "",
                "[limits]",
                "allocations = 5  # t.conf:3"
            ]
        );
        assert!(draft.has("limits.allocations") && !draft.has("relay.external"));
    }
}
