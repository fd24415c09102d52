//! YAML with the line of each value, within bounds: no aliases, and nothing deep.
//!
//! Events come from the parser one by one, so neither depth nor references can use up stack or memory.

use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// No file is longer; eturnal's own example has 3 kB.
const FILE_BYTES_MAX: usize = 1 << 20;

const DEPTH_MAX: usize = 16;

/// A value with the line that it begins in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Line 1 is the first.
    pub line: usize,
    /// The value.
    pub value: Value,
}

/// What a value may be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Text, a number, true or false; null is empty.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// Names with values, in their order.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// A scalar's text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) => Some(text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The items of a list; a scalar is a list of one.
    #[must_use]
    pub fn items(&self) -> Vec<&Self> {
        match &self.value {
            Value::List(items) => items.iter().collect(),
            Value::Scalar(text) if text.is_empty() => Vec::new(),
            Value::Scalar(_) | Value::Map(_) => vec![self],
        }
    }

    /// The entries of a map.
    #[must_use]
    pub fn entries(&self) -> &[(String, Self)] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Scalar(_) | Value::List(_) => &[],
        }
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Self> {
        self.entries().iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }
}

/// A list or map that is not complete yet.
struct Open {
    node: Node,
    /// The name whose value comes next.
    name: Option<String>,
}

/// Reads the first document of a text.
///
/// # Errors
/// What is wrong with it, with the line.
pub fn parse(text: &str) -> Result<Node, String> {
    if text.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} MiB, so it is no configuration file", FILE_BYTES_MAX >> 20));
    }
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let (event, mark) = parser
            .next_token()
            .map_err(|error| format!("line {}: is no YAML: {}", error.marker().line(), error.info()))?;
        let done = match event {
            Event::Scalar(text, style, ..) => {
                let is_null = style == TScalarStyle::Plain && ["~", "null"].contains(&text.as_str());
                let text = if is_null { String::new() } else { text };
                close(&mut open, Node { line: mark.line(), value: Value::Scalar(text) })?
            }
            Event::SequenceStart(..) => begin(&mut open, &mark, Value::List(Vec::new()))?,
            Event::MappingStart(..) => begin(&mut open, &mark, Value::Map(Vec::new()))?,
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open { node, .. }) => close(&mut open, node)?,
                None => None,
            },
            Event::Alias(_) => {
                return Err(format!("line {}: an alias (*) is not read here; write the value again", mark.line()));
            }
            Event::StreamEnd | Event::DocumentEnd => return Err("is empty".to_owned()),
            Event::Nothing | Event::StreamStart | Event::DocumentStart => None,
        };
        if let Some(node) = done {
            return Ok(node);
        }
    }
}

fn begin(open: &mut Vec<Open>, mark: &Marker, value: Value) -> Result<Option<Node>, String> {
    if open.len() >= DEPTH_MAX {
        return Err(format!("line {}: lies deeper than {DEPTH_MAX} levels", mark.line()));
    }
    open.push(Open { node: Node { line: mark.line(), value }, name: None });
    Ok(None)
}

/// Puts a complete value where it belongs; gives it back if it is the whole.
fn close(open: &mut [Open], node: Node) -> Result<Option<Node>, String> {
    let Some(Open { node: parent, name }) = open.last_mut() else { return Ok(Some(node)) };
    match &mut parent.value {
        Value::List(items) => items.push(node),
        Value::Map(entries) => match (name.take(), node.value) {
            (None, Value::Scalar(key)) => {
                if entries.iter().any(|(other, _)| *other == key) {
                    return Err(format!("line {}: {key} is there twice", node.line));
                }
                *name = Some(key);
            }
            (None, Value::List(_) | Value::Map(_)) => {
                return Err(format!("line {}: a name is text", node.line));
            }
            (Some(key), value) => entries.push((key, Node { line: node.line, value })),
        },
        Value::Scalar(_) => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_lines() {
        let node = parse("a:\n  - 1\n  - \"x: y\"\nb: {c: ~, d: 'null'}\n").unwrap();
        let items: Vec<_> = node.get("a").unwrap().items().iter().map(|item| (item.line, item.text())).collect();
        assert_eq!(items, [(2, Some("1")), (3, Some("x: y"))]);
        let inner = node.get("b").unwrap();
        assert_eq!((inner.get("c").unwrap().text(), inner.get("d").unwrap().text()), (Some(""), Some("null")));
    }

    #[test]
    fn hostile_yaml_is_an_error() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\n";
        assert!(parse(bomb).unwrap_err().contains("line 2: an alias"));
        for text in ["", "a: [", "a: b: c", "a: 1\na: 2", "? [x]\n: y", &"- ".repeat(5000), &"[".repeat(5000)] {
            assert!(parse(text).is_err(), "{:.20}", text);
        }
        assert!(parse(&"x".repeat(FILE_BYTES_MAX + 1)).is_err());
    }
}
