//! The sources of the crate as text: code without its comments and string literals, cut into words.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file without its comments and without the text of its string literals.
pub struct Source {
    pub path: PathBuf,
    pub code: String,
}

impl Source {
    /// The code without the unit tests at its end.
    pub fn without_tests(&self) -> &str {
        let heads = ["mod ", "pub(super) mod ", "pub mod "].map(|head| format!("#[cfg(test)]\n{head}"));
        let end = heads.iter().filter_map(|head| self.code.find(head)).min();
        &self.code[..end.unwrap_or(self.code.len())]
    }
}

pub fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut found = Vec::new();
    let mut open = vec![root.join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a readable source");
                let path = path.strip_prefix(root).expect("inside the crate").to_owned();
                found.push(Source { path, code: code_of(&text) });
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has sources");
    found
}

/// Blanks out comments and string literals, so that talk of a thing is not taken for its use.
pub fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\''") {
            if rest.starts_with("'\\''") { 4 } else { 3 }
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c: char| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// The identifiers and the punctuation between them, without white space.
pub fn words(code: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for (at, c) in code.char_indices() {
        if !is_word(c) {
            if start < at {
                words.push(&code[start..at]);
            }
            if !c.is_whitespace() {
                words.push(&code[at..at + c.len_utf8()]);
            }
            start = at + c.len_utf8();
        }
    }
    words.push(&code[start..]);
    words
}
