//! The TLS of one established stream: ciphertext is read to where its plaintext shall lie, and opened there; what is to be
//! sent is sealed into the stream's own bounded queue.
//!
//! Nothing is kept of it but the start of a record that has not come whole. The records themselves: `net::record`.

use std::io::{self, Read, Write};

use super::record::{ALERT_BYTES_MAX, Alert, Cut, Established, Opened, RecordLayer, RecordLayerError};
use super::stream_state::TlsState;
use crate::time::Ticks;

/// Memory that is kept for the start of a record, in bytes: an idle client has no more than this.
const HELD_BYTES_KEPT: usize = 512;

#[derive(Debug)]
pub(crate) struct TlsSession {
    records: RecordLayer,
    /// The start of a record that has not come whole.
    held: Vec<u8>,
    /// Data that came with the handshake's last bytes.
    early: Vec<u8>,
    /// What the handshake left to be sent, before all else.
    unsent: Vec<u8>,
    /// What the client did wrong.
    alert: Option<Alert>,
    has_ended: bool,
    /// Records opened since somebody asked.
    opened: u32,
}

impl TlsSession {
    /// Of a finished handshake, and what was read behind it.
    pub(super) fn new(established: Established, rest: Vec<u8>) -> Self {
        let Established { records, unsent, received } = established;
        let has_ended = records.has_ended_reading();
        Self { records, held: rest, early: received, unsent, alert: None, has_ended, opened: 0 }
    }

    /// Everything but [`TlsSession::take_opened`], as plain values. Of two sessions with this state only one may ever send.
    pub(super) fn to_state(&self) -> TlsState {
        TlsState {
            records: self.records.copy_state(),
            held: self.held.clone(),
            early: self.early.clone(),
            unsent: self.unsent.clone(),
            alert: self.alert.map(|alert| alert as u8),
            has_ended: self.has_ended,
        }
    }

    /// The session that [`TlsSession::to_state`] described; [`TlsSession::read_early`] must follow.
    ///
    /// # Errors
    /// Of the keys.
    pub(super) fn from_state(state: TlsState) -> Result<Self, RecordLayerError> {
        let TlsState { records, held, early, unsent, alert, has_ended } = state;
        let records = RecordLayer::from_state(&records)?;
        Ok(Self { records, held, early, unsent, alert: alert.map(Alert::of), has_ended, opened: 0 })
    }

    /// Whether the client has said that it sends no more.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Bytes of the start of a record that has not come whole.
    pub(super) const fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Bytes of plaintext and ciphertext that came with the handshake: what [`TlsSession::read_early`] has place for.
    pub(super) const fn early_bytes(&self) -> usize {
        self.early.len() + self.held.len()
    }

    /// Reads once, at most so many bytes, and puts their plaintext to the start of `room`, which must have place for what
    /// [`TlsSession::held_bytes`] tells as well. Gives the bytes read, 0 at the end of the stream, and those of plaintext.
    ///
    /// # Errors
    /// Of the socket; [`io::ErrorKind::InvalidData`] where the client broke the rules of TLS.
    pub(super) fn read(
        &mut self,
        socket: &mut impl Read,
        room: &mut [u8],
        most: usize,
        now: Ticks,
    ) -> io::Result<(usize, usize)> {
        let held = self.held.len();
        let read = socket.read(&mut room[held..][..most])?;
        room[..held].copy_from_slice(&self.held);
        Ok((read, self.open(room, held + read, now)?))
    }

    /// What came with the handshake and right behind it, at the start of `room`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`].
    pub(super) fn read_early(&mut self, room: &mut [u8], now: Ticks) -> io::Result<usize> {
        let early = std::mem::take(&mut self.early);
        let (first, room) = room.split_at_mut(early.len());
        first.copy_from_slice(&early);
        let held = self.held.len();
        room[..held].copy_from_slice(&self.held);
        Ok(early.len() + self.open(room, held, now)?)
    }

    /// Opens the records in the first `end` bytes, where they lie; their data come to stand side by side at the start.
    fn open(&mut self, bytes: &mut [u8], end: usize, now: Ticks) -> io::Result<usize> {
        let (mut plain, mut at) = (0, 0);
        self.held.clear();
        while !self.has_ended {
            let len = match self.records.cut(&bytes[at..end]) {
                Ok(Cut::Record(len)) => len,
                Ok(Cut::NeedMore) => {
                    self.hold(&bytes[at..end]);
                    break;
                }
                Err(alert) => return Err(self.fail(alert)),
            };
            match self.records.open_to_front(&mut bytes[plain..at + len], at - plain, now) {
                Ok(Opened::Data(data)) => plain += data.len(),
                Ok(Opened::KeyUpdate { .. } | Opened::Ignored) => {}
                Ok(Opened::CloseNotify) => self.has_ended = true,
                Ok(Opened::Failed(description)) => {
                    return Err(invalid(format!("the client ended TLS with alert {description}")));
                }
                Err(alert) => return Err(self.fail(alert)),
            }
            at += len;
            self.opened = self.opened.saturating_add(1);
        }
        Ok(plain)
    }

    fn hold(&mut self, start: &[u8]) {
        if start.len() <= HELD_BYTES_KEPT && self.held.capacity() > HELD_BYTES_KEPT {
            self.held = Vec::new();
        }
        self.held.extend_from_slice(start);
    }

    fn fail(&mut self, alert: Alert) -> io::Error {
        self.alert = Some(alert);
        invalid(alert.to_string())
    }

    /// How many records were opened since the last call.
    pub(super) const fn take_opened(&mut self) -> u32 {
        std::mem::replace(&mut self.opened, 0)
    }

    /// Seals a frame behind `cipher`, as one record if it fits into one.
    ///
    /// # Errors
    /// No more can be sealed: the stream must be closed.
    pub(super) fn seal(&mut self, pieces: [&[u8]; 2], cipher: &mut Vec<u8>) -> io::Result<()> {
        let at = cipher.len();
        let data = pieces.iter().map(|piece| piece.len()).sum();
        cipher.resize(at + self.records.sealed_bytes(data), 0);
        let sealed = self.records.seal(&pieces, &mut cipher[at..]);
        cipher.truncate(at + sealed.as_ref().copied().unwrap_or(0));
        sealed.map(drop).map_err(io::Error::other)
    }

    /// Whether something of the handshake is to be sent.
    pub(super) const fn wants_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Moves what the handshake left behind `cipher`.
    pub(super) fn take_unsent(&mut self, cipher: &mut Vec<u8>) {
        cipher.extend(std::mem::take(&mut self.unsent));
    }

    /// Says what the client did wrong, or close_notify (RFC 8446 section 6.1), once. Whether it arrives makes no
    /// difference to us.
    pub(super) fn close(&mut self, socket: &mut impl Write) {
        let mut record = [0; ALERT_BYTES_MAX];
        let alert = self.alert.unwrap_or(Alert::CloseNotify);
        if let Ok(len) = self.records.seal_alert(alert, &mut record) {
            let _ = socket.write(&record[..len]);
        }
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
