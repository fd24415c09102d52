//! What became of each line: a verdict with its place.

use std::fmt;
use std::sync::Arc;

use serde_json::json;

/// Where a setting stood; in the order in which verdicts are told.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// In a line of a file; line 1 is the first.
    Line(Arc<str>, usize),
    /// An argument of the command line; 1 is the first.
    Argument(usize),
    /// In a file as a whole, or nowhere in it.
    File(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => f.write_str(name),
            Self::Line(name, line) => write!(f, "{name}:{line}"),
            Self::Argument(number) => write!(f, "argument {number}"),
        }
    }
}

/// What became of a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Keys of the new configuration say the same.
    Carried,
    /// It is so in any case.
    Implied,
    /// It is left out, for the reason given.
    Dropped,
    /// On purpose it is different from now on.
    Changed,
    /// A person must look.
    NeedsYou,
}

impl Outcome {
    /// The word that begins a verdict.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Implied => "implied",
            Self::Dropped => "dropped",
            Self::Changed => "changed",
            Self::NeedsYou => "needs you",
        }
    }
}

/// What became of one setting, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Where it stood.
    pub place: Place,
    /// Its name; empty for the configuration as a whole.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the setting is a danger, whatever became of it.
    pub is_unsafe: bool,
    /// What became of it in words, without any secret.
    pub message: String,
}

impl Verdict {
    /// Whether a person must look before the result is used.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        match self.outcome {
            Outcome::NeedsYou => true,
            Outcome::Carried => self.is_unsafe,
            Outcome::Implied | Outcome::Dropped | Outcome::Changed => false,
        }
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let (file, line, argument) = match &self.place {
            Place::File(name) => (Some(name), None, None),
            Place::Line(name, line) => (Some(name), Some(*line), None),
            Place::Argument(number) => (None, None, Some(*number)),
        };
        json!({
            "file": file.map(|name| name.to_string()),
            "line": line,
            "argument": argument,
            "option": self.name,
            "verdict": self.outcome.word(),
            "unsafe": self.is_unsafe,
            "message": self.message,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.place, self.outcome.word())?;
        if self.is_unsafe {
            f.write_str("unsafe: ")?;
        }
        if !self.name.is_empty() {
            write!(f, "{}: ", self.name)?;
        }
        f.write_str(&self.message)
    }
}
