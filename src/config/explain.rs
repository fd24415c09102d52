//! Explains a file that is not TOML: the mistakes of an operator's first file.
//!
//! No sentence here shows a value: it may be a secret.

use std::ops::Range;

use crate::config::coturn::{self, CoturnOption, Fate};

/// The line of the first key of coturn's, and a sentence, if two or more of them stand in a file.
pub(super) fn coturn_file(text: &str) -> Option<(usize, String)> {
    let mut found: Vec<(usize, &CoturnOption)> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let key = line.split('=').next().unwrap_or_default().trim();
        let is_key = key.bytes().next().is_some_and(|first| first.is_ascii_alphabetic());
        if is_key
            && let Some(option) = coturn::find(key)
            && !found.iter().any(|(_, other)| other.name == option.name)
        {
            found.push((at + 1, option));
        }
    }
    let (line, _) = *found.first().filter(|_| found.len() >= 2)?;
    let pair = |option: &CoturnOption| match option.fate {
        Fate::Becomes(keys, _) => Some(format!("{} is {keys}", option.name)),
        Fate::Implied(_) | Fate::Dropped(_) | Fate::Asks(_) => None,
    };
    let pairs: Vec<String> = found.iter().filter_map(|(_, option)| pair(option)).collect();
    let pairs = if pairs.is_empty() { String::new() } else { format!(": {}", pairs.join(", ")) };
    Some((
        line,
        format!(
            "looks like the turnserver.conf of coturn; `throughway import-coturn FILE` makes a configuration of it. This file \
             is TOML and has other keys, see config.example.toml{pairs}"
        ),
    ))
}

/// What stands twice, the second time at this place of the text, and where it stood first as far as lines tell.
pub(super) fn twice(text: &str, second: Range<usize>) -> String {
    let name = text.get(second.clone()).unwrap_or_default().trim();
    let start = text[..second.start.min(text.len())].rfind('\n').map_or(0, |end| end + 1);
    let (before, line) = (&text[..start], text[start..].lines().next().unwrap_or_default());
    let lines = before.lines().enumerate().map(|(at, line)| (at + 1, line));
    if let Some(section) = header(line) {
        let first = lines.into_iter().find(|(_, line)| header(line) == Some(section)).map(|(at, _)| at);
        return match first {
            Some(first) => {
                format!("the section [{section}] is there twice, first in line {first}; put its keys under one of them")
            }
            None => format!("not TOML: [{section}] is set above in another way; write its keys in one place"),
        };
    }
    let Some((key, _)) = line.split_once('=').filter(|(key, _)| key.trim().ends_with(name)) else {
        return format!("not TOML: {name} is set twice within one value; remove one of them");
    };
    let key = key.trim();
    let mut of_section = lines.collect::<Vec<_>>().into_iter().rev().take_while(|(_, line)| header(line).is_none());
    match of_section.find(|(_, line)| line.split_once('=').is_some_and(|(other, _)| other.trim() == key)) {
        Some((first, _)) => format!("{key} is set twice, first in line {first}; remove one of the two"),
        None => format!("{key} is set twice; remove one of the two"),
    }
}

/// The name in a line such as `[limits]`.
fn header(line: &str) -> Option<&str> {
    let inner = line.trim().strip_prefix('[')?;
    (!inner.starts_with('[') && !line.contains('=')).then(|| inner.split(']').next().map(str::trim))?
}

/// A plainer sentence than the parser's, for a mistake at this byte of the text.
pub(super) fn plainly(text: &str, at: usize) -> Option<String> {
    let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at))?;
    let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let line_end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    let line = &text[line_start..line_end];
    if line.trim_start().starts_with('#') {
        return None;
    }
    let Some((key, rest)) = line.split_once('=') else {
        let is_item = line.trim_end().ends_with(',') || unclosed_list(&text[..line_start]);
        return match (is_item, unquoted(line.trim())) {
            (true, Some(what)) => Some(what.sentence("", true)),
            _ if line.trim().is_empty() || line.trim_start().starts_with(['[', ']', '"', '\'', '}']) => None,
            _ => Some("not TOML: every line is KEY = VALUE, a [section], or a comment that begins with #".to_owned()),
        };
    };
    let key = key.trim();
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.\"'".contains(&b));
    let key = if is_bare { key } else { "" };
    let value = rest.trim_start();
    if let Some(items) = value.strip_prefix('[') {
        let wrong = items.trim_end_matches([']', ' ']).split(',').find_map(|item| unquoted(item.trim()));
        return wrong.map(|what| what.sentence(key, true));
    }
    if value.starts_with('{') {
        return None;
    }
    unquoted(value.trim_end()).map(|what| what.sentence(key, false))
}

/// Whether a list is open at the end of a text, as far as brackets tell.
fn unclosed_list(before: &str) -> bool {
    let tail = before.rfind('=').map_or("", |at| &before[at..]);
    tail.matches('[').count() > tail.matches(']').count()
}

/// What is wrong with a value without quotes.
enum Unquoted {
    Text,
    Flag,
    Typographic,
    Missing,
}

fn unquoted(value: &str) -> Option<Unquoted> {
    let value = value.split(" #").next().unwrap_or(value).trim_end().trim_end_matches(',');
    let small = value.to_lowercase();
    match value.chars().next() {
        None | Some('#') => Some(Unquoted::Missing),
        Some('"' | '\'' | '[' | '{' | ']' | '}') => None,
        Some('“' | '”' | '„' | '‘' | '’' | '«' | '»' | '`') => Some(Unquoted::Typographic),
        Some(_) if small == value && ["true", "false", "inf", "nan"].contains(&value) => None,
        Some(_) if ["true", "false", "yes", "no", "on", "off"].contains(&small.as_str()) => Some(Unquoted::Flag),
        Some(_) if is_number(value) => None,
        Some(_) => Some(Unquoted::Text),
    }
}

/// As far as a configuration needs numbers.
fn is_number(value: &str) -> bool {
    let digits = value.trim_start_matches(['+', '-']).replace('_', "");
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

impl Unquoted {
    fn sentence(&self, key: &str, is_list: bool) -> String {
        let shape = match (key.is_empty(), is_list) {
            (true, true) => "[\"...\", \"...\"]".to_owned(),
            (true, false) => "KEY = \"...\"".to_owned(),
            (false, true) => format!("{key} = [\"...\"]"),
            (false, false) => format!("{key} = \"...\""),
        };
        match self {
            Self::Text => format!("not TOML: a string needs quotes; write {shape}"),
            Self::Flag => "not TOML: write true or false, in small letters and without quotes".to_owned(),
            Self::Typographic => format!("not TOML: these quotes are not the plain ones; write {shape}"),
            Self::Missing => format!("not TOML: the value is missing; write {shape}, or remove the line"),
        }
    }
}
