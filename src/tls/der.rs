//! What a certificate says of itself, as far as an operator asks: who it is, who made it, when it ends.
//!
//! Of its own, because the verifier's parser takes no certificate of version 1, and old roots are of that version.

use crate::calendar;

/// The parts that are read of a certificate of any version (RFC 5280 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Facts<'a> {
    /// The content of the issuer's Name.
    pub(crate) issuer: &'a [u8],
    /// The content of the subject's Name.
    pub(crate) subject: &'a [u8],
    /// When it begins, in seconds since 1970.
    pub(crate) not_before: u64,
    /// When it ends, in seconds since 1970.
    pub(crate) not_after: u64,
}

/// Reads a certificate in DER; `None` if it is none.
pub(crate) fn facts(certificate: &[u8]) -> Option<Facts<'_>> {
    let (SEQUENCE, outer, _) = der(certificate)? else { return None };
    let (SEQUENCE, mut rest, _) = der(outer)? else { return None };
    let (tag, _, after) = der(rest)?;
    // [0] version, DEFAULT v1
    if tag == 0xA0 {
        rest = after;
    }
    // serialNumber, signature
    for _ in 0..2 {
        rest = der(rest)?.2;
    }
    let (SEQUENCE, issuer, rest) = der(rest)? else { return None };
    let (SEQUENCE, validity, rest) = der(rest)? else { return None };
    let (SEQUENCE, subject, _) = der(rest)? else { return None };
    let (tag_before, time_before, rest) = der(validity)?;
    let (tag, time, _) = der(rest)?;
    Some(Facts { issuer, subject, not_before: seconds(tag_before, time_before)?, not_after: seconds(tag, time)? })
}

/// A Time (RFC 5280 section 4.1.2.5) in seconds since 1970.
fn seconds(tag: u8, time: &[u8]) -> Option<u64> {
    let digits = |range: std::ops::Range<usize>| -> Option<u64> {
        let text = std::str::from_utf8(time.get(range)?).ok()?;
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    let (year, at) = match tag {
        UTC_TIME => (digits(0..2).map(|year| if year < 50 { 2000 + year } else { 1900 + year })?, 2),
        GENERALIZED_TIME => (digits(0..4)?, 4),
        _ => return None,
    };
    let part = |number: usize| digits(at + 2 * number..at + 2 * number + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if time.get(at + 10..) != Some(b"Z") {
        return None;
    }
    Some(calendar::days(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// What a person calls the holder of a Name: its common name, else its organization, else its last part.
pub(crate) fn name_text(name: &[u8]) -> String {
    let mut parts: Vec<(&[u8], String)> = Vec::new();
    let mut rest = name;
    // RDNSequence ::= SEQUENCE OF SET OF SEQUENCE { type, value }
    while let Some((_, set, after)) = der(rest) {
        rest = after;
        let Some((_, attribute, _)) = der(set) else { continue };
        let Some((_, kind, value)) = der(attribute) else { continue };
        let Some((_, text, _)) = der(value) else { continue };
        parts.push((kind, String::from_utf8_lossy(text).replace(char::is_control, "?")));
    }
    let of = |wanted: &[u8]| parts.iter().rev().find(|(kind, _)| *kind == wanted).map(|(_, text)| text.clone());
    of(COMMON_NAME)
        .or_else(|| of(ORGANIZATION))
        .or_else(|| parts.last().map(|(_, text)| text.clone()))
        .unwrap_or_else(|| "without a name".to_owned())
}

/// 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first DER element: its tag, its content, and what follows it.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x83 => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn der_that_ends_early_or_lies_about_its_length_is_no_certificate() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.example.org".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, "a.example.org\u{7}");
        let certificate = params.self_signed(&key).unwrap();
        let whole = certificate.der().to_vec();
        let found = facts(&whole).unwrap();
        assert_eq!((name_text(found.subject), found.issuer), ("a.example.org?".to_owned(), found.subject));
        for len in 0..whole.len() {
            assert_eq!(facts(&whole[..len]), None, "{len} bytes");
        }
        for wrong in [&[0x30, 0x80][..], &[0x30, 0x84, 1, 1, 1, 1], &[0x30, 0x83, 0xFF, 0xFF, 0xFF], &[0x31, 0]] {
            assert_eq!(facts(wrong), None);
        }
        assert_eq!(name_text(&[]), "without a name");
    }
}
