//! What a cipher suite means for records: AEAD, nonces, lengths, limits, and the key schedule that TLS 1.3 goes on with.

use ring::aead;
use ring::hkdf;
use zeroize::Zeroizing;

/// Bytes of the longest secret or key: a traffic secret under SHA-384.
pub(super) const SECRET_BYTES: usize = 48;

/// Bytes of the longest key.
pub(super) const KEY_BYTES: usize = 32;

/// Bytes of a nonce, with every AEAD in use.
pub(super) const NONCE_BYTES: usize = 12;

/// Bytes of a tag, with every AEAD in use.
pub(super) const TAG_BYTES: usize = 16;

/// The part of a nonce that a record of TLS 1.2 with AES-GCM carries (RFC 5288 section 3).
pub(super) const EXPLICIT_NONCE_BYTES: usize = 8;

/// Records sealed with one key of AES-GCM. RFC 8446 section 5.5 has 2^24.5 full-size ones.
pub(super) const AES_GCM_RECORDS: u64 = 1 << 24;

/// Bytes that wipe themselves, of a length that the suite knows.
pub(super) type SecretArray = Zeroizing<[u8; SECRET_BYTES]>;

/// A version of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aead {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

/// A cipher suite that we offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Suite {
    /// Its number in IANA's registry.
    pub(super) number: u16,
    pub(super) version: Version,
    aead: Aead,
}

impl Suite {
    /// By its number; `None` for one that we don't offer.
    pub(super) const fn of(number: u16) -> Option<Self> {
        let (version, aead) = match number {
            0x1301 => (Version::Tls13, Aead::Aes128Gcm),
            0x1302 => (Version::Tls13, Aead::Aes256Gcm),
            0x1303 => (Version::Tls13, Aead::Chacha20Poly1305),
            // ECDHE with ECDSA or RSA: records are the same.
            0xC02B | 0xC02F => (Version::Tls12, Aead::Aes128Gcm),
            0xC02C | 0xC030 => (Version::Tls12, Aead::Aes256Gcm),
            0xCCA9 | 0xCCA8 => (Version::Tls12, Aead::Chacha20Poly1305),
            _ => return None,
        };
        Some(Self { number, version, aead })
    }

    fn algorithm(self) -> &'static aead::Algorithm {
        match self.aead {
            Aead::Aes128Gcm => &aead::AES_128_GCM,
            Aead::Aes256Gcm => &aead::AES_256_GCM,
            Aead::Chacha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    /// Bytes of a key.
    pub(super) fn key_bytes(self) -> usize {
        self.algorithm().key_len()
    }

    /// Bytes of what a direction's keys come from: with TLS 1.3 its traffic secret, with TLS 1.2 the key itself.
    pub(super) fn secret_bytes(self) -> usize {
        match (self.version, self.aead) {
            (Version::Tls12, _) => self.key_bytes(),
            (Version::Tls13, Aead::Aes128Gcm | Aead::Chacha20Poly1305) => 32,
            (Version::Tls13, Aead::Aes256Gcm) => 48,
        }
    }

    /// Bytes of each record's own nonce, between header and content.
    pub(super) const fn explicit_nonce_bytes(self) -> usize {
        match (self.version, self.aead) {
            (Version::Tls12, Aead::Aes128Gcm | Aead::Aes256Gcm) => EXPLICIT_NONCE_BYTES,
            (Version::Tls12, Aead::Chacha20Poly1305) | (Version::Tls13, _) => 0,
        }
    }

    /// Bytes of the type that stands behind the content (RFC 8446 section 5.2).
    pub(super) const fn inner_type_bytes(self) -> usize {
        match self.version {
            Version::Tls12 => 0,
            Version::Tls13 => 1,
        }
    }

    /// Records that one key may seal. An AEAD without a limit of its own ends before the numbers do.
    pub(super) const fn records_per_key(self) -> u64 {
        match self.aead {
            Aead::Aes128Gcm | Aead::Aes256Gcm => AES_GCM_RECORDS,
            // Room for a key update and an alert.
            Aead::Chacha20Poly1305 => u64::MAX - 2,
        }
    }

    /// A key in ring's form.
    pub(super) fn key(self, bytes: &[u8]) -> Option<aead::LessSafeKey> {
        aead::UnboundKey::new(self.algorithm(), bytes).ok().map(aead::LessSafeKey::new)
    }

    fn expand_label(self, secret: &SecretArray, label: &[u8], out: &mut [u8]) {
        let hash = match self.aead {
            Aead::Aes128Gcm | Aead::Chacha20Poly1305 => hkdf::HKDF_SHA256,
            Aead::Aes256Gcm => hkdf::HKDF_SHA384,
        };
        const PREFIX: &[u8] = b"tls13 ";
        let length = (out.len() as u16).to_be_bytes();
        let label_length = [(PREFIX.len() + label.len()) as u8];
        let info: [&[u8]; 5] = [&length, &label_length, PREFIX, label, &[0]];
        hkdf::Prk::new_less_safe(hash, &secret[..self.secret_bytes()])
            .expand(&info, OutputBytes(out.len()))
            .and_then(|okm| okm.fill(out))
            .expect("HKDF gives up to 255 times the length of a hash");
    }

    /// Key and IV of a traffic secret (RFC 8446 section 7.3).
    pub(super) fn traffic_key(
        self,
        secret: &SecretArray,
    ) -> (Zeroizing<[u8; KEY_BYTES]>, Zeroizing<[u8; NONCE_BYTES]>) {
        let (mut key, mut iv) = (Zeroizing::new([0; KEY_BYTES]), Zeroizing::new([0; NONCE_BYTES]));
        self.expand_label(secret, b"key", &mut key[..self.key_bytes()]);
        self.expand_label(secret, b"iv", &mut *iv);
        (key, iv)
    }

    /// The traffic secret of the next generation (RFC 8446 section 7.2).
    pub(super) fn next_secret(self, secret: &SecretArray) -> SecretArray {
        let mut next = Zeroizing::new([0; SECRET_BYTES]);
        self.expand_label(secret, b"traffic upd", &mut next[..self.secret_bytes()]);
        next
    }
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}
