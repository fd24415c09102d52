//! What is wrong with a configuration, where, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::failure::Failure;

/// Where a value stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceLocation {
    /// In a file; line 1 is the first.
    File(Arc<Path>, usize),
    /// In a file as a whole.
    WholeFile(PathBuf),
    /// In an environment variable.
    Variable(Arc<str>),
    /// On the command line, or nowhere: a default.
    Nowhere,
}

impl fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::WholeFile(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where it stands.
    pub location: SourceLocation,
    /// The key as a dotted path, such as `listen.udp`; empty where there is none.
    pub key: String,
    /// The value as TOML text; never one that is a secret.
    pub value: Option<String>,
    /// What is wrong and what is allowed.
    pub message: String,
    /// The nearest known key or value.
    pub suggestion: Option<String>,
}

impl Problem {
    /// A mistake that shows no value.
    #[must_use]
    pub fn new(location: SourceLocation, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { location, key: key.into(), value: None, message: message.into(), suggestion: None }
    }

    /// The same with the offending value.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// The same with what was probably meant.
    #[must_use]
    pub fn with_suggestion(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        match (self.key.is_empty(), &self.value) {
            (true, _) => {}
            (false, Some(value)) => write!(f, "{} = {value}: ", self.key)?,
            (false, None) => write!(f, "{}: ", self.key)?,
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion}?"),
            None => Ok(()),
        }
    }
}

/// Something to look at that does not stop the server.
pub type Note = Problem;

/// Everything that is wrong, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}
