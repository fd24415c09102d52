//! MESSAGE-INTEGRITY, FINGERPRINT and the long-term key (RFC 8489 sections 9.2.2, 14.5, 14.7).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::message::{HEADER_BYTES, Known, Message};

/// Length of an HMAC-SHA1.
pub const INTEGRITY_BYTES: usize = 20;

/// What the CRC-32 is XORed with (RFC 8489 section 14.7: "STUN" in ASCII).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// The long-term key: MD5(username ":" realm ":" password).
#[derive(Clone, PartialEq, Eq)]
pub struct IntegrityKey([u8; 16]);

impl IntegrityKey {
    /// A key made elsewhere, as `key_md5` of the configuration holds it.
    #[must_use]
    pub const fn from_md5(key: [u8; 16]) -> Self {
        Self(key)
    }

    /// RFC 8489 section 9.2.2; the texts must already be OpaqueString-stable, as ASCII is. [8489-9.2.2-1]
    #[must_use]
    pub fn long_term(username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        let mut md5 = Md5::new();
        for part in [username, b":", realm, b":", password] {
            md5.update(part);
        }
        Self(md5.finalize().into())
    }

    /// The bytes, for a state that is handed over.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 16] {
        &self.0
    }

    /// The HMAC over a message up to, not including, the MESSAGE-INTEGRITY at `head`; the length field
    /// counts as if the message ended with it (RFC 8489 section 14.5). [8489-14.5-1]
    pub(super) fn hmac(&self, bytes: &[u8], head: usize) -> [u8; INTEGRITY_BYTES] {
        // An HMAC takes a key of any length (RFC 2104 section 3).
        let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(&self.0).expect("16 bytes are a key");
        let length = (head + 4 + INTEGRITY_BYTES - HEADER_BYTES) as u16;
        mac.update(&bytes[..2]);
        mac.update(&length.to_be_bytes());
        mac.update(&bytes[4..head]);
        mac.finalize().into_bytes().into()
    }

    /// Whether a message's MESSAGE-INTEGRITY was made with this key; in constant time.
    #[must_use]
    pub fn verifies(&self, message: &Message<'_>) -> bool {
        let (Some(head), Some(given)) =
            (message.head_of(Known::MessageIntegrity), message.get(Known::MessageIntegrity))
        else {
            return false;
        };
        given.len() == INTEGRITY_BYTES && bool::from(self.hmac(message.bytes(), head).as_slice().ct_eq(given))
    }
}

impl Drop for IntegrityKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for IntegrityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The FINGERPRINT of all bytes before its attribute.
// [8489-14.7-2]
#[must_use]
pub(super) fn fingerprint(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes) ^ FINGERPRINT_XOR
}

/// Whether a message carries a FINGERPRINT, and the right one.
#[must_use]
pub fn check_fingerprint(message: &Message<'_>) -> Fingerprint {
    let (Some(head), Some(given)) = (message.head_of(Known::Fingerprint), message.get(Known::Fingerprint)) else {
        return Fingerprint::Absent;
    };
    if given == fingerprint(&message.bytes()[..head]).to_be_bytes() { Fingerprint::Right } else { Fingerprint::Wrong }
}

/// What a message's FINGERPRINT says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fingerprint {
    /// There is none.
    Absent,
    /// It fits the bytes.
    Right,
    /// It does not: not STUN, or damaged.
    Wrong,
}
