//! One direction of a connection: its key, and the number of its next record.

use ring::aead::{Aad, LessSafeKey, Nonce, Tag};
use zeroize::Zeroizing;

use super::alert::Alert;
use super::suite::{EXPLICIT_NONCE_BYTES, NONCE_BYTES, SECRET_BYTES, SecretArray, Suite, TAG_BYTES, Version};
use super::{HEADER_BYTES, Header};

/// The longest additional data: those of TLS 1.2.
const ADDITIONAL_BYTES: usize = 13;

/// Key, nonces and record number of one direction.
pub(super) struct Direction {
    key: LessSafeKey,
    /// What the key comes from, for an export and for the next generation: see [`Suite::secret_bytes`].
    pub(super) secret: SecretArray,
    pub(super) iv: Zeroizing<[u8; NONCE_BYTES]>,
    /// Of the next record.
    pub(super) number: u64,
}

impl Direction {
    /// Of TLS 1.3, from a traffic secret of [`Suite::secret_bytes`].
    pub(super) fn of_traffic_secret(suite: Suite, secret: SecretArray, number: u64) -> Self {
        let (key, iv) = suite.traffic_key(&secret);
        let key = suite.key(&key[..suite.key_bytes()]).expect("the key has the suite's length");
        Self { key, secret, iv, number }
    }

    /// Of TLS 1.2; `None` if the key has not the suite's length.
    pub(super) fn of_key(suite: Suite, key: &[u8], iv: [u8; NONCE_BYTES], number: u64) -> Option<Self> {
        let iv = Zeroizing::new(iv);
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        secret.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self { key: suite.key(key)?, secret, iv, number })
    }

    /// Goes on with the next generation's key (RFC 8446 section 7.2).
    pub(super) fn update_key(&mut self, suite: Suite) {
        *self = Self::of_traffic_secret(suite, suite.next_secret(&self.secret), 0);
    }

    /// IV and record number (RFC 8446 section 5.3). TLS 1.2 leaves the explicit part to the sender; ours are made in the
    /// same way, as those of rustls before us were: the numbers go on, so none comes twice.
    fn nonce(&self) -> [u8; NONCE_BYTES] {
        let mut nonce = *self.iv;
        let number = self.number.to_be_bytes();
        nonce[4..].iter_mut().zip(number).for_each(|(byte, of_number)| *byte ^= of_number);
        nonce
    }

    /// The additional data of the next record, `content` bytes long in TLS 1.2, where the number is part of them.
    fn additional(&self, suite: Suite, header: Header, content: usize) -> ([u8; ADDITIONAL_BYTES], usize) {
        let mut data = [0; ADDITIONAL_BYTES];
        match suite.version {
            Version::Tls13 => {
                data[..HEADER_BYTES].copy_from_slice(&header);
                (data, HEADER_BYTES)
            }
            Version::Tls12 => {
                data[..8].copy_from_slice(&self.number.to_be_bytes());
                data[8..11].copy_from_slice(&header[..3]);
                data[11..].copy_from_slice(&(content as u16).to_be_bytes());
                (data, ADDITIONAL_BYTES)
            }
        }
    }

    /// Decrypts what stands from `cipher` on to the end of `bytes`, tag included, to the start of `bytes`; gives the number of bytes.
    ///
    /// # Errors
    /// [`Alert::BadRecordMac`]; or the numbers are at their end.
    pub(super) fn open(
        &mut self,
        suite: Suite,
        header: Header,
        explicit: Option<[u8; EXPLICIT_NONCE_BYTES]>,
        bytes: &mut [u8],
        cipher: usize,
    ) -> Result<usize, Alert> {
        if self.number == u64::MAX {
            // RFC 8446 section 5.3: a number never wraps.
            return Err(Alert::UnexpectedMessage);
        }
        let content = (bytes.len() - cipher).checked_sub(TAG_BYTES).ok_or(Alert::BadRecordMac)?;
        let mut nonce = self.nonce();
        if let Some(explicit) = explicit {
            nonce = *self.iv;
            nonce[4..].copy_from_slice(&explicit);
        }
        let (additional, len) = self.additional(suite, header, content);
        let (nonce, additional) = (Nonce::assume_unique_for_key(nonce), Aad::from(&additional[..len]));
        self.key.open_within(nonce, additional, bytes, cipher..).map_err(|_| Alert::BadRecordMac)?;
        self.number += 1;
        Ok(content)
    }

    /// Encrypts in place; gives the tag.
    pub(super) fn seal(&mut self, suite: Suite, header: Header, content: &mut [u8]) -> Tag {
        let (additional, len) = self.additional(suite, header, content.len());
        let (nonce, additional) = (Nonce::assume_unique_for_key(self.nonce()), Aad::from(&additional[..len]));
        let tag = self.key.seal_in_place_separate_tag(nonce, additional, content);
        self.number += 1;
        tag.expect("no AEAD refuses 16 KiB")
    }

    /// The part of the next record's nonce that it carries itself.
    pub(super) fn explicit_nonce(&self) -> [u8; EXPLICIT_NONCE_BYTES] {
        let [_, _, _, _, explicit @ ..] = self.nonce();
        explicit
    }
}
