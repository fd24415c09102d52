//! What waits to be written to one client stream: the frames of a turn, and what the kernel did not take before.
//!
//! One piece of memory per stream rather than one per frame, so that thousands of tiny frames cost what their bytes and
//! records cost and no more; and one write for all that a turn brings. With TLS frames wait as plaintext and are
//! encrypted as they leave, each as a record of its own: some clients, coturn's among them, take a record for a message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::net::TcpStream;

use super::stream_state::{CipherState, FrameState, QueueState};
use super::tls_session::TlsSession;
use crate::protocol::accounting::Amount;
use crate::protocol::ids::AllocationId;

/// Ciphertext made for one write.
const CIPHER_BYTES_MAX: usize = 64 * 1024;

/// Bytes of capacity that an empty queue may keep for its next user.
const KEPT_BYTES_MAX: usize = 128 * 1024;

/// A frame that has not left whole.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Bytes of the frame, head and padding included, without TLS.
    bytes: u32,
    /// Whose payload it carries, and how much; `None` for replies.
    payload: Option<(AllocationId, u32)>,
}

/// What a waiting frame costs beside its bytes: a queue of empty payloads is bounded as well.
pub(super) const FRAME_COST: usize = size_of::<Frame>();

/// Ciphertext that stands for so much plaintext.
#[derive(Clone, Copy, Debug)]
struct Record {
    cipher: u32,
    plain: u32,
}

/// Empty queues, for streams that have something to send.
#[allow(
    clippy::vec_box,
    reason = "the boxes go to streams and come back: an idle stream holds a pointer, and nothing is copied"
)]
pub(super) type SpareQueues = Vec<Box<SendQueue>>;

/// Frames that wait for one stream, in order.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    /// Bytes of the frames, without TLS or not encrypted yet.
    bytes: VecDeque<u8>,
    frames: VecDeque<Frame>,
    /// How many of them, from the first on, are encrypted already.
    encrypted: usize,
    /// Bytes of the first frame that have left.
    front_sent: usize,
    /// What all frames cost: their bytes and [`FRAME_COST`] each.
    cost: usize,
    waiting: Amount,
    /// Encrypted, not taken by the kernel.
    cipher: Vec<u8>,
    cipher_start: usize,
    records: VecDeque<Record>,
    /// Ciphertext of the first record that has left.
    record_sent: usize,
}

impl SendQueue {
    /// What waits here, as far as `limits.tcp_queue` counts it, in bytes.
    pub(super) const fn cost(&self) -> usize {
        self.cost
    }

    /// The payload that waits.
    pub(super) const fn waiting(&self) -> Amount {
        self.waiting
    }

    /// Bytes that could be written now.
    pub(super) fn ready_bytes(&self) -> usize {
        self.bytes.len() + self.cipher.len() - self.cipher_start
    }

    /// Whether all has left.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.ready_bytes() == 0
    }

    /// Everything, as plain values.
    pub(super) fn to_state(&self) -> QueueState {
        let (first, second) = self.bytes.as_slices();
        let frame = |&Frame { bytes, payload }: &Frame| FrameState { bytes, payload };
        let record = |&Record { cipher, plain }: &Record| CipherState { cipher, plain };
        QueueState {
            bytes: [first, second].concat(),
            frames: self.frames.iter().map(frame).collect(),
            encrypted: self.encrypted,
            front_sent: self.front_sent,
            cipher: self.cipher[self.cipher_start..].to_vec(),
            records: self.records.iter().map(record).collect(),
            record_sent: self.record_sent,
        }
    }

    /// The queue that [`SendQueue::to_state`] described, of a state that was checked.
    pub(super) fn from_state(state: QueueState) -> Self {
        let QueueState { bytes, frames, encrypted, front_sent, cipher, records, record_sent } = state;
        let payloads = frames.iter().filter_map(|frame| frame.payload);
        let waiting = payloads.fold(Amount::default(), |sum, (_, bytes)| sum + of_one(bytes));
        Self {
            bytes: bytes.into(),
            encrypted,
            front_sent,
            cost: frames.iter().map(|frame| frame.bytes as usize + FRAME_COST).sum(),
            waiting,
            frames: frames.into_iter().map(|FrameState { bytes, payload }| Frame { bytes, payload }).collect(),
            cipher,
            cipher_start: 0,
            records: records.into_iter().map(|CipherState { cipher, plain }| Record { cipher, plain }).collect(),
            record_sent,
        }
    }

    /// What [`SendQueue::to_state`] would hold, in bytes.
    pub(super) fn state_bytes(&self) -> usize {
        self.ready_bytes() + self.frames.len() * FRAME_COST
    }

    /// Gives up payload, the last first, until no more than so many [`SendQueue::state_bytes`] are left; tells whose payload
    /// it was, in bytes. What has begun to leave stays, what is encrypted, and replies: a client over TCP does not ask again.
    pub(super) fn give_up_beyond(&mut self, bytes: usize) -> Vec<(AllocationId, u32)> {
        let excess = self.state_bytes().saturating_sub(bytes);
        let kept = self.encrypted.max(usize::from(self.front_sent > 0));
        let (mut at, mut start, mut freed) = (self.frames.len(), self.bytes.len(), 0);
        while freed < excess && at > kept {
            at -= 1;
            let Frame { bytes, payload } = self.frames[at];
            start -= bytes as usize;
            freed += if payload.is_some() { bytes as usize + FRAME_COST } else { 0 };
        }
        let mut bytes_left = self.bytes.split_off(start);
        let mut given_up = Vec::new();
        for frame in self.frames.split_off(at) {
            let bytes = bytes_left.drain(..frame.bytes as usize);
            if let Some(payload) = frame.payload {
                drop(bytes);
                given_up.push(payload);
                self.forget(frame.payload, frame.bytes);
            } else {
                self.bytes.extend(bytes);
                self.frames.push_back(frame);
            }
        }
        given_up
    }

    /// Whether payload of this allocation waits.
    pub(super) fn holds_payload_of(&self, allocation: AllocationId) -> bool {
        self.frames.iter().any(|frame| frame.payload.is_some_and(|(of, _)| of == allocation))
    }

    /// One more frame.
    pub(super) fn push(&mut self, pieces: [&[u8]; 3], payload: Option<(AllocationId, u32)>) {
        let before = self.bytes.len();
        pieces.into_iter().for_each(|piece| self.bytes.extend(piece));
        let bytes = self.bytes.len() - before;
        if let Some((_, bytes)) = payload {
            self.waiting = self.waiting + of_one(bytes);
        }
        self.cost += bytes + FRAME_COST;
        self.frames.push_back(Frame { bytes: bytes as u32, payload });
    }

    /// Writes once what waits; `true` if the kernel took all of it. An error means that the stream is dead.
    pub(super) fn write(&mut self, socket: &mut TcpStream, tls: Option<&mut TlsSession>) -> io::Result<bool> {
        if let Some(tls) = tls {
            return self.write_encrypted(socket, tls);
        }
        while !self.bytes.is_empty() {
            let (first, second) = self.bytes.as_slices();
            let Some(count) = write_once(socket, [first, second])? else { return Ok(false) };
            self.bytes.drain(..count);
            self.on_sent(count);
        }
        Ok(true)
    }

    fn write_encrypted(&mut self, socket: &mut TcpStream, tls: &mut TlsSession) -> io::Result<bool> {
        loop {
            self.encrypt(tls)?;
            if self.cipher_start == self.cipher.len() {
                return Ok(true);
            }
            let Some(count) = write_once(socket, [&self.cipher[self.cipher_start..], &[]])? else { return Ok(false) };
            self.on_cipher_sent(count);
        }
    }

    /// Encrypts what waits, frame by frame, until one write has enough. What the handshake left comes first.
    fn encrypt(&mut self, tls: &mut TlsSession) -> io::Result<()> {
        if self.cipher_start == self.cipher.len() {
            self.cipher.clear();
            self.cipher_start = 0;
        }
        if tls.wants_write() {
            let before = self.cipher.len();
            tls.take_unsent(&mut self.cipher);
            self.note_record(before, 0);
        }
        while self.cipher.len() - self.cipher_start < CIPHER_BYTES_MAX {
            let Some(&Frame { bytes, .. }) = self.frames.get(self.encrypted) else { break };
            let len = bytes as usize;
            let (first, second) = self.bytes.as_slices();
            let split = len.min(first.len());
            let before = self.cipher.len();
            tls.seal([&first[..split], &second[..len - split]], &mut self.cipher)?;
            self.bytes.drain(..len);
            self.encrypted += 1;
            self.note_record(before, len);
        }
        Ok(())
    }

    /// What of `cipher` came after so many bytes stands for so much of the frames.
    fn note_record(&mut self, before: usize, plain: usize) {
        let cipher = self.cipher.len() - before;
        self.records.push_back(Record { cipher: cipher as u32, plain: plain as u32 });
    }

    fn on_cipher_sent(&mut self, count: usize) {
        self.cipher_start += count;
        self.record_sent += count;
        while let Some(&Record { cipher, plain }) = self.records.front() {
            if self.record_sent < cipher as usize {
                return;
            }
            self.record_sent -= cipher as usize;
            self.records.pop_front();
            self.on_sent(plain as usize);
        }
    }

    /// So many bytes of the frames have left.
    fn on_sent(&mut self, count: usize) {
        self.front_sent += count;
        while let Some(&Frame { bytes, payload }) = self.frames.front() {
            if self.front_sent < bytes as usize {
                return;
            }
            self.front_sent -= bytes as usize;
            self.forget(payload, bytes);
            self.frames.pop_front();
            self.encrypted = self.encrypted.saturating_sub(1);
        }
    }

    fn forget(&mut self, payload: Option<(AllocationId, u32)>, bytes: u32) {
        self.cost -= bytes as usize + FRAME_COST;
        if let Some((_, bytes)) = payload {
            self.waiting = self.waiting - of_one(bytes);
        }
    }

    /// Gives up all that waits; tells whose payload it was, in bytes.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = (AllocationId, u32)> {
        let frames = std::mem::take(self).frames;
        frames.into_iter().filter_map(|frame| frame.payload)
    }

    /// For the next stream that has something to send; memory of an exceptionally long queue goes back to the system.
    pub(super) fn recycle(&mut self) {
        self.bytes.clear();
        self.cipher.clear();
        (self.cipher_start, self.front_sent, self.record_sent) = (0, 0, 0);
        if self.bytes.capacity() > KEPT_BYTES_MAX || self.frames.capacity() * FRAME_COST > KEPT_BYTES_MAX {
            *self = Self::default();
        }
    }
}

/// One payload of so many bytes.
fn of_one(bytes: u32) -> Amount {
    Amount { packets: 1, bytes: u64::from(bytes) }
}

/// One write; `None` if the kernel has no room.
fn write_once(socket: &mut TcpStream, bytes: [&[u8]; 2]) -> io::Result<Option<usize>> {
    loop {
        let written = match bytes {
            [bytes, []] => socket.write(bytes),
            pieces => socket.write_vectored(&pieces.map(IoSlice::new)),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
