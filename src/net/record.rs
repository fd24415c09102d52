//! The record layer of established TLS connections (RFC 8446 section 5, RFC 5246 section 6.2): ciphertext in, plaintext
//! out, and back.
//!
//! The handshake is rustls' ([`config_of_connection`], [`Established::take`]); what comes after it is done here,
//! because a connection must be able to go to another process, and rustls does not give its state away. All that there
//! is to know is in [`RecordState`].
//!
//! Nothing is kept back between two calls: a record is cut before it is opened ([`RecordLayer::cut`]), and sealed whole
//! into the caller's buffer. Nothing is allocated, no clock is read. Reading sockets, queues, and when to close is left
//! to the stream. After the alert that [`RecordLayer::open`] asks for, the caller must close the connection.

mod alert;
mod direction;
mod established;
mod state;
mod suite;

#[cfg(test)]
mod tests;

pub use self::alert::Alert;
pub use self::established::{Established, TrafficSecrets, config_of_connection};
pub use self::state::{DirectionState, RecordState};
pub use self::suite::Version;

use self::direction::Direction;
use self::suite::{EXPLICIT_NONCE_BYTES, Suite, TAG_BYTES};
use crate::time::Ticks;

/// Bytes before a record's content: type, version, length.
pub const HEADER_BYTES: usize = 5;

/// Content of one record (RFC 8446 section 5.1), in bytes.
pub const CONTENT_BYTES_MAX: usize = 1 << 14;

/// What a record of TLS 1.3 may be longer than its content, padding included (RFC 8446 section 5.2).
const EXPANSION_BYTES_MAX: usize = 256;

/// The longest record of either version, header included, in bytes.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + CONTENT_BYTES_MAX + EXPANSION_BYTES_MAX;

/// What header, nonce, type and tag add to the content of a record that we seal, in bytes, at the most.
pub const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + EXPLICIT_NONCE_BYTES + TAG_BYTES;

/// Room for a sealed alert, in bytes.
pub const ALERT_BYTES_MAX: usize = OVERHEAD_BYTES_MAX + 2;

/// Records without content in a row. They are allowed, to hide how much is sent, and cost us as much as others.
pub const EMPTY_RECORDS_MAX: u8 = 32;

/// Key updates of a client within a minute: each costs us two derivations, and an answer if it is asked for.
pub const KEY_UPDATES_PER_MINUTE: u8 = 32;

/// In milliseconds.
const MINUTE: u64 = 60_000;

/// legacy_record_version; TLS 1.2 has the same.
const VERSION: [u8; 2] = [3, 3];

/// ContentType (RFC 8446 appendix B.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// AlertDescription user_canceled (RFC 8446 section 6.1): close_notify follows.
const USER_CANCELED: u8 = 90;

/// A KeyUpdate (RFC 8446 section 4.6.3) without its last byte, and that byte.
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;

/// Bytes of a KeyUpdate.
const KEY_UPDATE_BYTES: usize = KEY_UPDATE.len() + 1;

/// Type, version and length of a record.
type Header = [u8; HEADER_BYTES];

/// What stands at the front of received bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// A whole record of so many bytes, header included.
    Record(usize),
    /// The start of one, or nothing.
    NeedMore,
}

/// Bytes of the record that begins here, header included, as its header tells; `None` before that has come.
///
/// For the handshake, whose records rustls must be given whole; nothing is checked.
#[must_use]
pub fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let &[_, _, _, high, low] = bytes.first_chunk::<HEADER_BYTES>()?;
    Some(HEADER_BYTES + usize::from(u16::from_be_bytes([high, low])))
}

/// What a record says.
#[derive(PartialEq, Eq, Debug)]
pub enum Opened<'b> {
    /// Application data, at least one byte.
    Data(&'b mut [u8]),
    /// The client goes on with a new key; so do we from our next record on, if it asks for that. Nothing is to be done.
    KeyUpdate {
        /// Whether it asks.
        answer_requested: bool,
    },
    /// The client sends no more; [`Alert::CloseNotify`] is the answer once all is sent.
    CloseNotify,
    /// The client ended the connection by this alert (RFC 8446 section 6): close it, nothing is to be sent.
    Failed(u8),
    /// Nothing: no content, or it came after the end.
    Ignored,
}

/// Why nothing was sealed. Nothing has been written then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SealError {
    /// The buffer is too small.
    #[error("{needed} bytes are needed")]
    NoRoom {
        /// [`RecordLayer::sealed_bytes`].
        needed: usize,
    },
    /// The key has sealed as many records as it may, and TLS 1.2 has no other: close the connection. Alerts are still sealed.
    #[error("the key has been used for as many records as it may be")]
    Exhausted,
    /// An alert was sealed: it was the last record.
    #[error("an alert has ended this direction")]
    Closed,
}

/// Why there is no record layer for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordLayerError {
    /// Not one of those that we offer.
    #[error("cipher suite {suite:#06x} is unknown")]
    Suite {
        /// Its number in IANA's registry.
        suite: u16,
    },
    /// rustls has not finished, or has failed.
    #[error("the handshake is not over")]
    Unfinished,
    /// No secret is known that the keys follow from.
    #[error("the traffic secrets are not those of the keys")]
    Secret,
    /// A secret of a state has the wrong length.
    #[error("a secret of {bytes} bytes is none of cipher suite {suite:#06x}")]
    SecretLength {
        /// The suite of the state.
        suite: u16,
        /// How long it is.
        bytes: usize,
    },
}

/// The records of one established connection, on the server's side.
///
/// 1,280 bytes, of which 1,088 are ring's two keys: each has room for the tables of AES and GCM (a test keeps to that).
///
/// Secrets and IVs are wiped when it is dropped. ring's keys can't be: their bytes stay in the memory that the layer had
/// until it is used again. Key bytes are not kept beside them: those of TLS 1.3 follow from the secrets, which a key update
/// needs anyway, and only those of TLS 1.2 are there twice.
pub struct RecordLayer {
    suite: Suite,
    reading: Direction,
    writing: Direction,
    has_ended_reading: bool,
    has_ended_writing: bool,
    owes_key_update: bool,
    empty_records: u8,
    key_updates: u8,
    key_updates_since: Ticks,
}

impl std::fmt::Debug for RecordLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordLayer").field("suite", &self.suite).finish_non_exhaustive()
    }
}

impl RecordLayer {
    /// The version of the protocol.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.suite.version
    }

    /// Whether nothing more can come: the client has closed its direction, or broke the rules.
    #[must_use]
    pub const fn has_ended_reading(&self) -> bool {
        self.has_ended_reading
    }

    /// Whether an alert was sealed: nothing more can be sent.
    #[must_use]
    pub const fn has_ended_writing(&self) -> bool {
        self.has_ended_writing
    }

    // ---- in

    /// Looks at the front of received bytes, which may be as few as none.
    ///
    /// # Errors
    /// The alert to send, then the connection ends: what comes is no record of this connection, whatever follows.
    pub fn cut(&self, bytes: &[u8]) -> Result<Cut, Alert> {
        let Some(&header) = bytes.first_chunk() else { return Ok(Cut::NeedMore) };
        let len = HEADER_BYTES + self.check_header(header)?;
        Ok(if bytes.len() < len { Cut::NeedMore } else { Cut::Record(len) })
    }

    /// Gives the length that a header tells.
    fn check_header(&self, header: Header) -> Result<usize, Alert> {
        let [kind, major, minor, high, low] = header;
        let (is_expected, expansion) = match self.suite.version {
            // Everything is encrypted, so everything has this type outside (RFC 8446 section 5.2); change_cipher_spec
            // is allowed until the client's Finished and no longer (section 5).
            Version::Tls13 => (kind == APPLICATION_DATA, EXPANSION_BYTES_MAX),
            Version::Tls12 => {
                let is_known = (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind);
                (is_known, self.suite.explicit_nonce_bytes() + TAG_BYTES)
            }
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if !is_expected {
            return Err(Alert::UnexpectedMessage);
        }
        if len > CONTENT_BYTES_MAX + expansion {
            return Err(Alert::RecordOverflow);
        }
        // The version is authenticated with the record: under no other can it be deprotected.
        if [major, minor] != VERSION || len < self.suite.explicit_nonce_bytes() + TAG_BYTES {
            return Err(Alert::BadRecordMac);
        }
        Ok(len)
    }

    /// Opens a record as [`RecordLayer::cut`] cut it, where it lies.
    ///
    /// # Errors
    /// The alert to send, then the connection ends; nothing is opened any more.
    pub fn open<'b>(&mut self, record: &'b mut [u8], now: Ticks) -> Result<Opened<'b>, Alert> {
        self.open_at(record, 0, None, now)
    }

    /// Opens the record from `record` on to the end of `bytes`, and puts its plaintext to the front of `bytes`: so the
    /// data of several records come to lie side by side, without a copy.
    ///
    /// # Errors
    /// As [`RecordLayer::open`].
    pub fn open_to_front<'b>(&mut self, bytes: &'b mut [u8], record: usize, now: Ticks) -> Result<Opened<'b>, Alert> {
        self.open_at(bytes, record, Some(0), now)
    }

    fn open_at<'b>(
        &mut self,
        bytes: &'b mut [u8],
        record: usize,
        to: Option<usize>,
        now: Ticks,
    ) -> Result<Opened<'b>, Alert> {
        if self.has_ended_reading {
            // RFC 8446 section 6.1: what comes after a closure alert is ignored.
            return Ok(Opened::Ignored);
        }
        let opened = self.decrypt(bytes, record, to).and_then(|(kind, plain)| self.on_content(kind, plain, now));
        if !matches!(opened, Ok(Opened::Data(_) | Opened::KeyUpdate { .. } | Opened::Ignored)) {
            self.has_ended_reading = true;
        }
        opened
    }

    /// Gives the type and the content.
    fn decrypt<'b>(
        &mut self,
        bytes: &'b mut [u8],
        record: usize,
        to: Option<usize>,
    ) -> Result<(u8, &'b mut [u8]), Alert> {
        let &header = bytes.get(record..).and_then(<[u8]>::first_chunk).ok_or(Alert::DecodeError)?;
        let len = self.check_header(header)?;
        let start = record + HEADER_BYTES;
        if bytes.len() - start != len {
            return Err(Alert::DecodeError);
        }
        let is_explicit = self.suite.explicit_nonce_bytes() > 0;
        let explicit = if is_explicit { bytes[start..].first_chunk().copied() } else { None };
        let cipher = start + self.suite.explicit_nonce_bytes();
        let to = to.unwrap_or(cipher);
        let bytes = &mut bytes[to..];
        let plain = self.reading.open(self.suite, header, explicit, bytes, cipher - to)?;
        let plain = &mut bytes[..plain];
        match self.suite.version {
            Version::Tls12 if plain.len() > CONTENT_BYTES_MAX => Err(Alert::RecordOverflow),
            Version::Tls12 => Ok((header[0], plain)),
            Version::Tls13 => inner(plain),
        }
    }

    fn on_content<'b>(&mut self, kind: u8, content: &'b mut [u8], now: Ticks) -> Result<Opened<'b>, Alert> {
        match kind {
            APPLICATION_DATA if content.is_empty() => self.on_nothing(),
            APPLICATION_DATA => {
                self.empty_records = 0;
                Ok(Opened::Data(content))
            }
            ALERT => self.on_alert(content),
            HANDSHAKE => self.on_handshake(content, now),
            // change_cipher_spec, which is never encrypted and comes during the handshake alone, and types that are none.
            _ => Err(Alert::UnexpectedMessage),
        }
    }

    /// A record that brings us nothing.
    fn on_nothing<'b>(&mut self) -> Result<Opened<'b>, Alert> {
        if self.empty_records >= EMPTY_RECORDS_MAX {
            return Err(Alert::UnexpectedMessage);
        }
        self.empty_records += 1;
        Ok(Opened::Ignored)
    }

    fn on_alert<'b>(&mut self, content: &[u8]) -> Result<Opened<'b>, Alert> {
        const CLOSE_NOTIFY: u8 = Alert::CloseNotify as u8;
        match *content {
            // RFC 8446 section 5.4.
            [] => Err(Alert::UnexpectedMessage),
            [_, CLOSE_NOTIFY] => Ok(Opened::CloseNotify),
            [_, USER_CANCELED] => self.on_nothing(),
            [_, description] => Ok(Opened::Failed(description)),
            _ => Err(Alert::DecodeError),
        }
    }

    /// KeyUpdate, alone in its record as RFC 8446 section 5.1 demands. There is nothing else: we ask for no certificate after the handshake, and
    /// renegotiation of TLS 1.2 is not offered.
    fn on_handshake<'b>(&mut self, content: &[u8], now: Ticks) -> Result<Opened<'b>, Alert> {
        let request = match content {
            [message @ .., request] if *message == KEY_UPDATE && self.suite.version == Version::Tls13 => *request,
            _ => return Err(Alert::UnexpectedMessage),
        };
        let answer_requested = match request {
            UPDATE_NOT_REQUESTED => false,
            UPDATE_REQUESTED => true,
            _ => return Err(Alert::IllegalParameter),
        };
        self.take_key_update(now)?;
        self.reading.update_key(self.suite);
        // Several that are asked for before we send again have one answer (section 4.6.3).
        self.owes_key_update |= answer_requested;
        Ok(Opened::KeyUpdate { answer_requested })
    }

    fn take_key_update(&mut self, now: Ticks) -> Result<(), Alert> {
        if now.since(self.key_updates_since) >= MINUTE {
            (self.key_updates_since, self.key_updates) = (now, 0);
        }
        if self.key_updates >= KEY_UPDATES_PER_MINUTE {
            return Err(Alert::UnexpectedMessage);
        }
        self.key_updates += 1;
        Ok(())
    }

    // ---- out

    /// Bytes that so much data will be sealed to: one record up to [`CONTENT_BYTES_MAX`], else several; with a key
    /// update if one is due.
    #[must_use]
    pub fn sealed_bytes(&self, data: usize) -> usize {
        let update = if self.key_update_is_due(data) { self.overhead() + KEY_UPDATE_BYTES } else { 0 };
        update + records(data) * self.overhead() + data
    }

    /// What a record adds to its content.
    const fn overhead(&self) -> usize {
        HEADER_BYTES + self.suite.explicit_nonce_bytes() + self.suite.inner_type_bytes() + TAG_BYTES
    }

    /// Whether a KeyUpdate stands before or among the records of so much data.
    fn key_update_is_due(&self, data: usize) -> bool {
        self.suite.version == Version::Tls13 && (self.owes_key_update || !self.key_lasts_for(records(data)))
    }

    fn key_lasts_for(&self, records: usize) -> bool {
        let left = self.suite.records_per_key().saturating_sub(self.writing.number);
        records as u64 <= left
    }

    /// Seals data that lies in pieces, to the front of `out`; gives the number of bytes, which are all to be sent in this
    /// order. One record, unless the data are longer than [`CONTENT_BYTES_MAX`]; a KeyUpdate may stand before.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(&mut self, pieces: &[&[u8]], out: &mut [u8]) -> Result<usize, SealError> {
        let data: usize = pieces.iter().map(|piece| piece.len()).sum();
        let needed = self.sealed_bytes(data);
        if self.has_ended_writing {
            return Err(SealError::Closed);
        }
        let has_another_key = self.suite.version == Version::Tls13;
        if self.writing.number == u64::MAX || !(has_another_key || self.key_lasts_for(records(data))) {
            return Err(SealError::Exhausted);
        }
        if out.len() < needed {
            return Err(SealError::NoRoom { needed });
        }
        let (mut pieces, mut left, mut at) = (Pieces { pieces, offset: 0 }, data, 0);
        loop {
            if self.key_update_is_due(0) {
                at += self.seal_key_update(&mut out[at..]);
            }
            let count = left.min(CONTENT_BYTES_MAX);
            at += self.seal_record(APPLICATION_DATA, count, &mut out[at..], |content| pieces.copy_to(content));
            left -= count;
            if left == 0 {
                return Ok(at);
            }
        }
    }

    /// Seals an alert, the last record; gives the number of bytes, at most [`ALERT_BYTES_MAX`].
    ///
    /// # Errors
    /// [`SealError::Closed`] if there was one already, [`SealError::NoRoom`].
    pub fn seal_alert(&mut self, alert: Alert, out: &mut [u8]) -> Result<usize, SealError> {
        let message = alert.message();
        let needed = self.overhead() + message.len();
        if self.has_ended_writing {
            return Err(SealError::Closed);
        }
        if self.writing.number == u64::MAX {
            return Err(SealError::Exhausted);
        }
        if out.len() < needed {
            return Err(SealError::NoRoom { needed });
        }
        self.has_ended_writing = true;
        Ok(self.seal_record(ALERT, message.len(), out, |content| content.copy_from_slice(&message)))
    }

    /// Says that all that follows has the next key, and takes it.
    fn seal_key_update(&mut self, out: &mut [u8]) -> usize {
        let len = self.seal_record(HANDSHAKE, KEY_UPDATE_BYTES, out, |content| {
            content[..KEY_UPDATE.len()].copy_from_slice(&KEY_UPDATE);
            content[KEY_UPDATE.len()] = UPDATE_NOT_REQUESTED;
        });
        self.writing.update_key(self.suite);
        self.owes_key_update = false;
        len
    }

    /// One record around content that `fill` writes in its place; gives its length.
    fn seal_record(&mut self, kind: u8, content: usize, out: &mut [u8], fill: impl FnOnce(&mut [u8])) -> usize {
        let total = content + self.overhead();
        let (header, body) = out[..total].split_at_mut(HEADER_BYTES);
        let [high, low] = (body.len() as u16).to_be_bytes();
        let outer = match self.suite.version {
            Version::Tls12 => kind,
            Version::Tls13 => APPLICATION_DATA,
        };
        let told = [outer, VERSION[0], VERSION[1], high, low];
        header.copy_from_slice(&told);
        let (explicit, body) = body.split_at_mut(self.suite.explicit_nonce_bytes());
        explicit.copy_from_slice(&self.writing.explicit_nonce()[..explicit.len()]);
        let (plain, tag) = body.split_at_mut(content + self.suite.inner_type_bytes());
        fill(&mut plain[..content]);
        if let [inner_type] = &mut plain[content..] {
            *inner_type = kind;
        }
        tag.copy_from_slice(self.writing.seal(self.suite, told, plain).as_ref());
        total
    }
}

/// Type and content of a TLSInnerPlaintext (RFC 8446 section 5.4): zeros at its end are padding, the type stands before
/// them.
fn inner(plain: &mut [u8]) -> Result<(u8, &mut [u8]), Alert> {
    if plain.len() > CONTENT_BYTES_MAX + 1 {
        return Err(Alert::RecordOverflow);
    }
    let end = plain.iter().rposition(|byte| *byte != 0).ok_or(Alert::UnexpectedMessage)?;
    Ok((plain[end], &mut plain[..end]))
}

/// Records that so much data takes.
const fn records(data: usize) -> usize {
    if data == 0 { 1 } else { data.div_ceil(CONTENT_BYTES_MAX) }
}

/// What is left of data in pieces.
struct Pieces<'p> {
    pieces: &'p [&'p [u8]],
    /// Bytes of the first one that are done with.
    offset: usize,
}

impl Pieces<'_> {
    /// Fills `out`; there must be as much.
    fn copy_to(&mut self, mut out: &mut [u8]) {
        while let Some((first, rest)) = self.pieces.split_first() {
            let piece = &first[self.offset..];
            let count = piece.len().min(out.len());
            let (filled, left) = out.split_at_mut(count);
            filled.copy_from_slice(&piece[..count]);
            out = left;
            if count < piece.len() {
                self.offset += count;
                return;
            }
            (self.pieces, self.offset) = (rest, 0);
        }
    }
}
