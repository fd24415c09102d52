//! A client stream as plain values, so that another process can take it over together with its socket.
//!
//! As bytes they are a [`State`]. What follows from the rest is not in here: whether a whole message waits, what the queue
//! costs, what payload is in it.

use std::fmt;

use minicbor::{Decode, Encode};

use super::record::{RecordLayerError, RecordState};
use crate::address::{FiveTuple, StreamId, Transport};
use crate::protocol::accounting::SessionRecord;
use crate::protocol::ids::AllocationId;
use crate::state::{Features, Kind, LINK_LOCAL_CLIENTS, State, TCP_ALLOCATIONS};
use crate::time::Ticks;
use crate::wire::attribute::ConnectionId;
use crate::wire::framing::FRAME_BYTES_MAX;

/// Queued bytes of one worker's streams that another process takes over; what is more is given up before.
pub const QUEUED_BYTES_MAX: usize = 64 << 20;

/// Bytes that were read and not handled: a message that has not come whole, and what is read at once behind it, with the
/// records that a read completes.
const INPUT_BYTES_MAX: usize = 160 * 1024;

/// Bytes of TLS that were read and not opened, or opened and not read: what comes right behind a handshake at most.
const TLS_INPUT_BYTES_MAX: usize = 48 * 1024;

/// Bytes of a bound connection that wait at most: what is read of a stream at once, with a TLS record that it completes.
pub(super) const HELD_BYTES_MAX: usize = 160 * 1024;

/// Records of ended sessions that are held back.
pub(super) const ENDED_MAX: usize = 8;

/// No stream has a higher number: there are never so many.
const STREAM_ID_MAX: u64 = u64::MAX / 2;

/// The streams of one worker, without their sockets.
#[derive(Clone, PartialEq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct StreamsState {
    /// The highest number of a stream so far: none gets the number of an earlier one.
    #[n(0)]
    pub next_id: u64,
    /// Each stream, in the order in which its socket is passed.
    #[n(1)]
    pub streams: Vec<StreamState>,
    /// Connections to peers, in the order in which their sockets are passed, if there are any.
    #[n(2)]
    pub peers: Option<Vec<PeerState>>,
}

impl State for StreamsState {
    const KIND: Kind = Kind::Streams;

    fn add_features(&self, features: &mut Features) {
        let link_local = self.streams.iter().filter(|stream| stream.five_tuple.is_link_local()).count();
        features.add(LINK_LOCAL_CLIENTS, link_local as u64);
        features.add(TCP_ALLOCATIONS, self.peers.as_ref().map_or(0, Vec::len) as u64);
    }

    // Nothing of it came after the first format.
    fn keep_for(&mut self, _: u32) {}
}

/// One established stream, without its socket.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct StreamState {
    /// Its number, which allocations know it by.
    #[n(0)]
    pub id: StreamId,
    /// The addresses, and whether TLS lies between the socket and the messages.
    #[n(1)]
    pub five_tuple: FiveTuple,
    /// With [`Transport::Tls`] only.
    #[n(2)]
    pub tls: Option<TlsState>,
    /// Bytes that were read and not handled, without TLS.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub input: Vec<u8>,
    /// Requests that it may send at once without an allocation.
    #[n(4)]
    pub requests_left: u16,
    /// Since when it earns more.
    #[n(5)]
    pub requests_at: Ticks,
    /// When it is closed unless it has an allocation by then.
    #[n(6)]
    pub deadline: Option<Ticks>,
    /// What waits to be sent.
    #[n(7)]
    pub queue: Option<QueueState>,
    /// Sessions that ended while their payload waited in the queue.
    #[n(8)]
    pub ended: Vec<SessionRecord>,
}

/// A connection's socket and what waits for it, as plain values; its stage is the core's to say.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PeerState {
    /// Which connection.
    #[n(0)]
    pub id: ConnectionId,
    /// The stream that it is bound to.
    #[n(1)]
    pub stream: Option<StreamId>,
    /// Bytes from the client that have not left.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub to_peer: Vec<u8>,
    /// How many of those are counted as sent.
    #[n(3)]
    pub to_peer_passed: usize,
    /// Bytes from the peer that are not in the stream's queue.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub to_client: Vec<u8>,
    /// The client sends no more, and the peer was told so.
    #[n(5)]
    pub client_ended: [bool; 2],
    /// The peer sends no more, and the client was told so.
    #[n(6)]
    pub peer_ended: [bool; 2],
    /// Whether the peer has not accepted yet.
    #[n(7)]
    pub is_connecting: bool,
}

/// The TLS of an established stream.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct TlsState {
    /// Keys and numbers of the records.
    #[n(0)]
    pub records: RecordState,
    /// Ciphertext that was read and not opened: the start of a record, and after a handshake all that came behind it.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub held: Vec<u8>,
    /// Data that came with the last bytes of the handshake.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub early: Vec<u8>,
    /// Ciphertext of the handshake that is to be sent before all else.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub unsent: Vec<u8>,
    /// The number of the alert that tells the client what it did wrong.
    #[n(4)]
    pub alert: Option<u8>,
    /// The client has said by close_notify that it sends no more.
    #[n(5)]
    pub has_ended: bool,
}

/// What waits to be sent to one client.
#[derive(Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct QueueState {
    /// The bytes of `frames` that are not encrypted and have not left.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// Frames that have not left whole, in order.
    #[n(1)]
    pub frames: Vec<FrameState>,
    /// How many of them, from the first on, are encrypted; 0 without TLS.
    #[n(2)]
    pub encrypted: usize,
    /// Bytes of the first frame that have left.
    #[n(3)]
    pub front_sent: usize,
    /// Ciphertext that has not left.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub cipher: Vec<u8>,
    /// What `cipher` stands for, in order.
    #[n(5)]
    pub records: Vec<CipherState>,
    /// Bytes of the first of `records` that have left.
    #[n(6)]
    pub record_sent: usize,
}

/// A frame that has not left whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct FrameState {
    /// Its bytes, head and padding included, without TLS.
    #[n(0)]
    pub bytes: u32,
    /// Whose payload it carries, and how many bytes; `None` for replies.
    #[n(1)]
    pub payload: Option<(AllocationId, u32)>,
}

/// Ciphertext that stands for so much of the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CipherState {
    /// Bytes of ciphertext.
    #[n(0)]
    pub cipher: u32,
    /// Bytes of the frames; 0 for what the handshake left.
    #[n(1)]
    pub plain: u32,
}

/// Why a stream can't be taken over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamStateError {
    /// Another stream has its number, or the number is beyond the highest one.
    #[error("its number is that of another stream, or of none")]
    Id,
    /// UDP, TLS without keys, or keys without TLS.
    #[error("its transport and its TLS contradict each other")]
    Transport,
    /// More input than a stream keeps.
    #[error("it has {bytes} bytes of input, more than a stream keeps")]
    Input {
        /// How many.
        bytes: usize,
    },
    /// The keys.
    #[error(transparent)]
    Tls(#[from] RecordLayerError),
    /// The frames of the queue and its bytes don't agree.
    #[error("the frames of its queue do not agree with the bytes in it")]
    Frames,
    /// The records of the queue don't agree with the ciphertext or with the frames.
    #[error("the TLS records of its queue do not agree with the bytes in it")]
    Records,
    /// More records of ended sessions than a stream holds back.
    #[error("it holds back the records of {0} sessions, more than a stream does")]
    Ended(usize),
}

impl StreamsState {
    /// Whether each stream can be taken over, and no two have one number.
    ///
    /// # Errors
    /// The number of the first that can't be, and why.
    pub fn check(&self) -> Result<(), (StreamId, StreamStateError)> {
        let mut seen = hashbrown::HashSet::new();
        for stream in &self.streams {
            let checked = stream.check_id(self.next_id).and_then(|()| stream.check());
            let checked = checked.and_then(|()| seen.insert(stream.id).then_some(()).ok_or(StreamStateError::Id));
            checked.map_err(|why| (stream.id, why))?;
        }
        Ok(())
    }
}

impl StreamState {
    /// Whether the number is one that a stream can have when `next_id` is the highest.
    pub(super) fn check_id(&self, next_id: u64) -> Result<(), StreamStateError> {
        let is_one = next_id <= STREAM_ID_MAX && (1..=next_id).contains(&self.id.0);
        is_one.then_some(()).ok_or(StreamStateError::Id)
    }

    /// Whether the parts agree with each other and with what a stream may hold. The keys are checked when they are used.
    ///
    /// # Errors
    /// The first of them that does not.
    pub fn check(&self) -> Result<(), StreamStateError> {
        let is_right = match self.five_tuple.transport {
            Transport::Udp => false,
            Transport::Tcp => self.tls.is_none(),
            Transport::Tls => self.tls.is_some(),
        };
        if !is_right {
            return Err(StreamStateError::Transport);
        }
        let of_tls = self.tls.as_ref().map_or(0, |tls| tls.held.len().max(tls.early.len()));
        if self.input.len() > INPUT_BYTES_MAX || of_tls > TLS_INPUT_BYTES_MAX {
            return Err(StreamStateError::Input { bytes: self.input.len() + of_tls });
        }
        if self.ended.len() > ENDED_MAX {
            return Err(StreamStateError::Ended(self.ended.len()));
        }
        self.queue.as_ref().map_or(Ok(()), |queue| queue.check(self.tls.is_some()))
    }
}

impl QueueState {
    fn check(&self, is_tls: bool) -> Result<(), StreamStateError> {
        let is_possible = |frame: &FrameState| {
            (1..=FRAME_BYTES_MAX).contains(&(frame.bytes as usize))
                && frame.payload.is_none_or(|(_, payload)| payload <= frame.bytes)
        };
        let first = self.frames.first().map_or(1, |frame| frame.bytes as usize);
        if !self.frames.iter().all(is_possible) || self.encrypted > self.frames.len() || self.front_sent >= first {
            return Err(StreamStateError::Frames);
        }
        let (encrypted, plain) = self.frames.split_at(self.encrypted);
        if plain.iter().map(|frame| frame.bytes as usize).sum::<usize>() != self.bytes.len() + self.front_sent {
            return Err(StreamStateError::Frames);
        }
        // With TLS a frame leaves whole, as a record of its own.
        let is_as_the_transport =
            if is_tls { self.front_sent == 0 } else { encrypted.is_empty() && self.records.is_empty() };
        let of_frames = self.records.iter().map(|record| record.plain).filter(|plain| *plain > 0);
        let first = self.records.first().map_or(1, |record| record.cipher as usize);
        let cipher: u64 = self.records.iter().map(|record| u64::from(record.cipher)).sum();
        let is_right = is_as_the_transport
            && of_frames.eq(encrypted.iter().map(|frame| frame.bytes))
            && self.records.iter().all(|record| record.cipher > 0)
            && self.record_sent < first
            && cipher == (self.cipher.len() + self.record_sent) as u64;
        is_right.then_some(()).ok_or(StreamStateError::Records)
    }
}

impl fmt::Debug for StreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamState")
            .field("id", &self.id)
            .field("five_tuple", &self.five_tuple)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsState").field("records", &self.records).finish_non_exhaustive()
    }
}

impl fmt::Debug for QueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueState").field("frames", &self.frames.len()).finish_non_exhaustive()
    }
}
