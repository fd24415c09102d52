//! A value as it stands in each language that a recipe is written in.

/// As JSON, YAML, JavaScript and the configuration of Janus have a string.
pub(super) fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// As Lua has a string (Prosody).
pub(super) fn lua(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_ascii_control() => quoted.push_str(&format!("\\{:03}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// As an attribute of XML.
pub(super) fn xml(text: &str) -> String {
    crate::api::rest::shape::escaped(text)
}

/// As a value in a `.env` file: bare where that is enough.
pub(super) fn env(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._+/=:@*,".contains(&b)) {
        return text.to_owned();
    }
    if text.contains('\'') {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$"));
    }
    format!("'{text}'")
}

/// As a value of Asterisk, where a semicolon begins a comment.
pub(super) fn asterisk(text: &str) -> String {
    text.replace(';', "\\;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_can_not_leave_its_place() {
        let text = "a\"b'c\\d;e<f>&g\nh";
        assert_eq!(json(text), r#""a\"b'c\\d;e<f>&g\nh""#);
        assert_eq!(lua(text), r#""a\"b'c\\d;e<f>&g\010h""#);
        assert_eq!(xml(text), "a&quot;b&apos;c\\d;e&lt;f&gt;&amp;g\nh");
        assert_eq!(asterisk("a;b"), "a\\;b");
        for (text, quoted) in [("abc+/=", "abc+/="), ("a b", "'a b'"), ("a'$b", "\"a'\\$b\""), ("", "''")] {
            assert_eq!(env(text), quoted);
        }
    }
}
