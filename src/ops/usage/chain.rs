//! Signed lines: each carries the code of the line before (`prev`) and its own (`mac`).
//!
//! `mac` is HMAC-SHA256, cut to 128 bits (RFC 2104 section 5), over all that stands before `,"mac":` in the line,
//! `prev` included. So a changed line is found by itself, and one that is missing, added or moved by its neighbours.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::credentials::Secret;

const MAC_FIELD: &str = ",\"mac\":\"";
const PREV_FIELD: &str = ",\"prev\":\"";

/// The code of a line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Code([u8; 16]);

impl Code {
    /// `prev` of the very first line.
    pub const NONE: Self = Self([0; 16]);

    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(())?;
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

fn hmac(key: &Secret, bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac
}

/// Signs one line after the other.
pub struct Chain {
    key: Secret,
    last: Code,
}

impl Chain {
    /// Goes on after a line; [`Code::NONE`] is a new beginning.
    #[must_use]
    pub const fn new(key: Secret, last: Code) -> Self {
        Self { key, last }
    }

    /// The code of the last line.
    #[must_use]
    pub const fn last(&self) -> Code {
        self.last
    }

    /// Goes on after another line.
    pub const fn go_on_after(&mut self, last: Code) {
        self.last = last;
    }

    /// Adds `prev` and `mac` to a line, which is a JSON object that is not empty.
    pub fn sign(&mut self, line: &mut String) {
        let end = line.pop();
        debug_assert_eq!(end, Some('}'), "a line is one JSON object");
        line.push_str(&format!("{PREV_FIELD}{}\"", self.last));
        let mut code = [0; 16];
        code.copy_from_slice(&hmac(&self.key, line.as_bytes()).finalize().into_bytes()[..16]);
        self.last = Code(code);
        line.push_str(&format!("{MAC_FIELD}{}\"}}", self.last));
    }
}

/// A signed line's place in its chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordLink {
    /// The line before.
    pub prev: Code,
    /// This line.
    pub mac: Code,
}

/// What is signed, and the codes in it; `None` for a line without signature.
fn split(line: &str) -> Option<(&str, RecordLink)> {
    // Quotes inside of strings are escaped, so these fields can't be part of a value.
    let (signed, mac) = line.rsplit_once(MAC_FIELD)?;
    let (_, prev) = signed.rsplit_once(PREV_FIELD)?;
    let link = RecordLink { prev: Code::parse(prev.strip_suffix('"')?)?, mac: Code::parse(mac.strip_suffix("\"}")?)? };
    Some((signed, link))
}

/// The codes of a line, whether they are right or not; `None` without a signature.
#[must_use]
pub fn link(line: &str) -> Option<RecordLink> {
    split(line).map(|(_, link)| link)
}

/// The codes of a line whose signature is right; `Err` says what is wrong.
///
/// # Errors
/// A missing or a wrong signature, in words.
pub fn verify(key: &Secret, line: &str) -> Result<RecordLink, &'static str> {
    let (signed, link) = split(line).ok_or("is not signed")?;
    match hmac(key, signed.as_bytes()).verify_truncated_left(&link.mac.0) {
        Ok(()) => Ok(link),
        Err(_) => Err("its signature is wrong: it was changed, or signed with another key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Secret {
        Secret::new(text.as_bytes())
    }

    #[test]
    fn each_line_names_the_one_before_and_any_change_is_seen() {
        let mut chain = Chain::new(key("north north north"), Code::NONE);
        let lines: Vec<String> = (0..3)
            .map(|number| {
                let mut line = format!("{{\"seq\":{number},\"user\":\"a\\\",\\\"mac\\\":\\\"b\"}}");
                chain.sign(&mut line);
                serde_json::from_str::<serde_json::Value>(&line).unwrap();
                line
            })
            .collect();
        let links: Vec<RecordLink> =
            lines.iter().map(|line| verify(&key("north north north"), line).unwrap()).collect();
        assert_eq!(links[0].prev, Code::NONE);
        assert_eq!((links[1].prev, links[2].prev), (links[0].mac, links[1].mac));
        assert!(verify(&key("south south south"), &lines[0]).is_err());
        for at in 0..lines[1].len() {
            let mut bytes = lines[1].clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&key("north north north"), &changed).is_err(), "byte {at}: {changed}");
        }
        assert_eq!(verify(&key("k"), "{\"seq\":1}"), Err("is not signed"));
        assert_eq!(link(&lines[2]), Some(links[2]));
    }

    #[test]
    fn a_chain_goes_on_where_it_stopped() {
        let mut chain = Chain::new(key("k"), Code::NONE);
        let mut first = "{\"a\":1}".to_owned();
        chain.sign(&mut first);
        let mut again = Chain::new(key("k"), link(&first).unwrap().mac);
        let (mut one, mut two) = ("{\"a\":2}".to_owned(), "{\"a\":2}".to_owned());
        chain.sign(&mut one);
        again.sign(&mut two);
        assert_eq!(one, two);
    }
}
