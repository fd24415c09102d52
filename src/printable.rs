//! Text that a client chose, on its way to a terminal or a log.
//!
//! A name may hold anything: control characters, an order of reading turned round (U+202E), an end of line that only
//! some programs take for one (U+2028, U+0085). What a person reads must not be changed by what it is about.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character shows as itself: no control character of C0 or C1, no format character, no separator but space.
#[must_use]
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    // The standard library knows the categories; behind a letter it lets marks that combine pass, as they should.
    let mut bytes = *b"a\0\0\0\0";
    let len = 1 + c.encode_utf8(&mut bytes[1..]).len();
    std::str::from_utf8(&bytes[..len]).is_ok_and(|pair| pair.escape_debug().count() == 2)
}

/// For a terminal: whatever does not show as itself becomes `\u{...}`, line feeds and tabs included.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false, |out, c| write!(out, "{}", c.escape_unicode()))
}

/// For several lines on a terminal: the same, but line feeds and tabs stay.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'), |out, c| write!(out, "{}", c.escape_unicode()))
}

/// A finished line of the text log: its colours stay, and all beyond ASCII that does not show as itself is escaped.
pub(crate) fn text_line(line: &str) -> Cow<'_, str> {
    escape(line, |c| c.is_ascii(), |out, c| write!(out, "{}", c.escape_unicode()))
}

/// A finished line of JSON: what does not show as itself can only stand in a string, where `\uXXXX` means the same.
pub(crate) fn json_line(line: &str) -> Cow<'_, str> {
    escape(
        line,
        |c| c.is_ascii() && c != '\u{7f}',
        |out, c| c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
    )
}

fn escape(
    text: &str,
    stays: impl Fn(char) -> bool,
    write: impl Fn(&mut String, char) -> std::fmt::Result,
) -> Cow<'_, str> {
    let is_fine = |c: char| stays(c) || is_printable(c);
    let Some(first) = text.find(|c| !is_fine(c)) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_fine(c) {
            out.push(c);
        } else {
            // Writing to a string can't fail.
            let _ = write(&mut out, c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    // F-A15: U+202E, U+2028 and C1 in what a terminal or a log shows.
    #[test]
    fn what_does_not_show_as_itself_is_escaped_and_names_of_people_are_not() {
        for name in
            ["alice", "a b", "Zoë", "Владимир", "हिन्दी", "สมชาย", "محمد", "山田 太郎", "e\u{301}", "🙂", "\"'\\"]
        {
            assert_eq!(printable(name), name);
        }
        for c in ['\0', '\n', '\t', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}', '\u{a0}', '\u{ad}', '\u{200b}', '\u{200f}']
        {
            assert!(!is_printable(c), "{c:?}");
        }
        for c in ['\u{2028}', '\u{2029}', '\u{202e}', '\u{2066}', '\u{feff}', '\u{e0041}', '\u{e000}', '\u{3000}'] {
            assert!(!is_printable(c), "{c:?}");
        }
        assert_eq!(printable("a\u{202e}b\n"), "a\\u{202e}b\\u{a}");
        assert_eq!(printable_lines("a\u{9b}1m\nb"), "a\\u{9b}1m\nb");
    }

    #[test]
    fn a_line_of_json_says_the_same_and_a_line_of_text_keeps_its_colours() {
        let name = "a\u{9b}\u{2028}\u{202e}\u{e0041}\u{7f}é";
        let line = serde_json::to_string(name).unwrap();
        let escaped = json_line(&line);
        assert!(escaped.chars().all(is_printable), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), name);
        assert_eq!(text_line("\u{1b}[32mINFO\u{1b}[0m a\u{202e}b\n"), "\u{1b}[32mINFO\u{1b}[0m a\\u{202e}b\n");
    }
}
