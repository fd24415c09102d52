//! Both MESSAGE-INTEGRITY attributes, FINGERPRINT, USERHASH and the long-term key (RFC 8489 sections 9.2.2, 14.4 to 14.7).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use minicbor::{Decode, Encode};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::message::{HEADER_BYTES, Known, Message};

/// Length of an HMAC-SHA1.
pub const INTEGRITY_BYTES: usize = 20;

/// Length of an HMAC-SHA256. RFC 8489 section 14.6 lets a usage cut it short; TURN does not.
pub const INTEGRITY_SHA256_BYTES: usize = 32;

/// Length of USERHASH (RFC 8489 section 14.4).
pub const USERHASH_BYTES: usize = 32;

/// What the CRC-32 is XORed with (RFC 8489 section 14.7: "STUN" in ASCII).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// How a long-term key is made (RFC 8489 section 18.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PasswordAlgorithm {
    /// 16 bytes: what RFC 5389 knew.
    Md5,
    /// 32 bytes.
    Sha256,
}

impl PasswordAlgorithm {
    /// The value of PASSWORD-ALGORITHM (RFC 8489 section 14.12): number, and no parameters.
    #[must_use]
    // [8489-14.12-1]
    pub const fn value(self) -> [u8; 4] {
        match self {
            Self::Md5 => [0, 1, 0, 0],
            Self::Sha256 => [0, 2, 0, 0],
        }
    }

    /// The one behind a value of PASSWORD-ALGORITHM. Neither takes parameters, so other bytes are another algorithm.
    #[must_use]
    pub fn from_value(value: &[u8]) -> Option<Self> {
        [Self::Md5, Self::Sha256].into_iter().find(|of| of.value() == value)
    }
}

/// The value of PASSWORD-ALGORITHMS in every offer of this server, the preferred one first (RFC 8489 section 14.11).
// [8489-18.5.1-1]
pub const PASSWORD_ALGORITHMS: [u8; 8] = {
    let ([a, b, c, d], [e, f, g, h]) = (PasswordAlgorithm::Sha256.value(), PasswordAlgorithm::Md5.value());
    [a, b, c, d, e, f, g, h]
};

/// Which attribute proves a message (RFC 8489 sections 14.5 and 14.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Integrity {
    /// MESSAGE-INTEGRITY, by HMAC-SHA1.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256.
    Sha256,
}

impl Integrity {
    /// The one that counts in a message: the stronger one if there are both (RFC 8489 section 9.2.4).
    #[must_use]
    pub const fn of(message: &Message<'_>) -> Option<Self> {
        if message.has(Known::MessageIntegritySha256) {
            Some(Self::Sha256)
        } else if message.has(Known::MessageIntegrity) {
            Some(Self::Sha1)
        } else {
            None
        }
    }

    const fn attribute(self) -> Known {
        match self {
            Self::Sha1 => Known::MessageIntegrity,
            Self::Sha256 => Known::MessageIntegritySha256,
        }
    }
}

/// Bytes of a key: they never print and are wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBytes<const N: usize>([u8; N]);

impl<const N: usize> KeyBytes<N> {
    /// The bytes, for a state that is handed over.
    #[must_use]
    pub const fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> From<[u8; N]> for KeyBytes<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> Drop for KeyBytes<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<C, const N: usize> minicbor::Encode<C> for KeyBytes<N> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C, const N: usize> minicbor::Decode<'b, C> for KeyBytes<N> {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let bytes = d.bytes()?.try_into().map_err(|_| minicbor::decode::Error::message("a key of another length"))?;
        Ok(Self(bytes))
    }
}

impl<const N: usize> fmt::Debug for KeyBytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The long-term key: a digest of username ":" realm ":" password (RFC 8489 sections 9.2.2 and 18.5.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IntegrityKey {
    /// By [`PasswordAlgorithm::Md5`].
    Md5(KeyBytes<16>),
    /// By [`PasswordAlgorithm::Sha256`].
    Sha256(KeyBytes<32>),
}

impl IntegrityKey {
    /// A key made elsewhere, as `key_md5` of the configuration holds it.
    #[must_use]
    pub const fn from_md5(key: [u8; 16]) -> Self {
        Self::Md5(KeyBytes(key))
    }

    /// A key made elsewhere, as `key_sha256` of the configuration holds it.
    #[must_use]
    pub const fn from_sha256(key: [u8; 32]) -> Self {
        Self::Sha256(KeyBytes(key))
    }

    /// The key of clients that know no other algorithm; the texts must already be as both sides compare them (RFC 8489
    /// section 9.2.2: OpaqueString), as ASCII is. [8489-9.2.2-1]
    #[must_use]
    pub fn long_term(username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        Self::by(PasswordAlgorithm::Md5, username, realm, password)
    }

    /// The key by either algorithm. [8489-9.2.2-1, 8489-18.5.1-2]
    #[must_use]
    pub fn by(algorithm: PasswordAlgorithm, username: &[u8], realm: &[u8], password: &[u8]) -> Self {
        let parts = [username, b":", realm, b":", password];
        match algorithm {
            PasswordAlgorithm::Md5 => Self::Md5(KeyBytes(digest::<Md5>(parts).into())),
            PasswordAlgorithm::Sha256 => Self::Sha256(KeyBytes(digest::<Sha256>(parts).into())),
        }
    }

    /// How it was made.
    #[must_use]
    pub const fn algorithm(&self) -> PasswordAlgorithm {
        match self {
            Self::Md5(_) => PasswordAlgorithm::Md5,
            Self::Sha256(_) => PasswordAlgorithm::Sha256,
        }
    }

    /// The bytes, for those who compute with them.
    #[must_use]
    pub const fn expose(&self) -> &[u8] {
        match self {
            Self::Md5(key) => &key.0,
            Self::Sha256(key) => &key.0,
        }
    }

    /// The HMAC-SHA1 over a message up to, not including, the MESSAGE-INTEGRITY at `head`; the length field
    /// counts as if the message ended with it (RFC 8489 section 14.5). [8489-14.5-1]
    pub(super) fn hmac(&self, bytes: &[u8], head: usize) -> [u8; INTEGRITY_BYTES] {
        mac::<Hmac<Sha1>>(self.expose(), bytes, head, INTEGRITY_BYTES).into()
    }

    /// As [`IntegrityKey::hmac`], for MESSAGE-INTEGRITY-SHA256 (RFC 8489 section 14.6).
    pub(super) fn hmac_sha256(&self, bytes: &[u8], head: usize) -> [u8; INTEGRITY_SHA256_BYTES] {
        mac::<Hmac<Sha256>>(self.expose(), bytes, head, INTEGRITY_SHA256_BYTES).into()
    }

    /// Whether the proof that counts in a message was made with this key; in constant time.
    #[must_use]
    pub fn verifies(&self, message: &Message<'_>) -> bool {
        // [8489-9.2.4-16]
        let Some(integrity) = Integrity::of(message) else { return false };
        let attribute = integrity.attribute();
        let (Some(head), Some(given)) = (message.head_of(attribute), message.get(attribute)) else { return false };
        let bytes = message.bytes();
        match integrity {
            Integrity::Sha1 => bool::from(self.hmac(bytes, head).as_slice().ct_eq(given)),
            Integrity::Sha256 => bool::from(self.hmac_sha256(bytes, head).as_slice().ct_eq(given)),
        }
    }
}

fn digest<D: Digest>(parts: [&[u8]; 5]) -> md5::digest::Output<D> {
    let mut digest = D::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// The MAC of a message whose integrity attribute, with so many bytes of value, begins at `head`.
fn mac<M: Mac + KeyInit>(key: &[u8], bytes: &[u8], head: usize, value_bytes: usize) -> hmac::digest::Output<M> {
    // An HMAC takes a key of any length (RFC 2104 section 3).
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("an HMAC takes any key");
    let length = (head + 4 + value_bytes - HEADER_BYTES) as u16;
    mac.update(&bytes[..2]);
    mac.update(&length.to_be_bytes());
    mac.update(&bytes[4..head]);
    mac.finalize().into_bytes()
}

/// The USERHASH of a name and a realm, both as both sides compare them (RFC 8489 section 14.4).
#[must_use]
pub fn userhash(username: &[u8], realm: &[u8]) -> [u8; USERHASH_BYTES] {
    let mut sha256 = Sha256::new();
    for part in [username, b":", realm] {
        sha256.update(part);
    }
    sha256.finalize().into()
}

/// The attributes that prove an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum ReplyIntegrity {
    /// MESSAGE-INTEGRITY.
    #[default]
    #[n(0)]
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256.
    #[n(1)]
    Sha256,
    /// MESSAGE-INTEGRITY, and MESSAGE-INTEGRITY-SHA256 after it.
    #[n(2)]
    Both,
}

/// How an answer is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyKey {
    /// The key of the request.
    pub key: IntegrityKey,
    /// What the request's attributes call for.
    pub integrity: ReplyIntegrity,
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
