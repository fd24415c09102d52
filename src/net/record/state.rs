//! A record layer as plain values and back, so that another process can take a connection over.

use minicbor::{Decode, Encode};
use zeroize::{Zeroize, Zeroizing};

use super::direction::Direction;
use super::suite::{NONCE_BYTES, SECRET_BYTES, Suite, Version};
use super::{RecordLayer, RecordLayerError};
use crate::time::Ticks;

/// Everything that a record layer knows; wiped when it is dropped.
///
/// Two layers of one state would use a nonce twice: of two processes that have it at most one may ever seal again.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RecordState {
    /// The cipher suite's number in IANA's registry, which names the version too.
    #[n(0)]
    pub suite: u16,
    /// From the client.
    #[n(1)]
    pub reading: DirectionState,
    /// To the client.
    #[n(2)]
    pub writing: DirectionState,
    /// Nothing more is read: the client has said so by close_notify, or broke the rules.
    #[n(3)]
    pub has_ended_reading: bool,
    /// We have sent close_notify or another alert.
    #[n(4)]
    pub has_ended_writing: bool,
    /// The client asked for a key update that was not sent yet.
    #[n(5)]
    pub owes_key_update: bool,
    /// Records without content, in a row.
    #[n(6)]
    pub empty_records: u8,
    /// The client's key updates since `key_updates_since`.
    #[n(7)]
    pub key_updates: u8,
    /// When the minute began in which they are counted.
    #[n(8)]
    pub key_updates_since: Ticks,
}

/// One direction of a [`RecordState`].
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DirectionState {
    /// TLS 1.3: the traffic secret of this generation, which key and IV follow from. TLS 1.2: the key.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub secret: Vec<u8>,
    /// What nonces are made of. TLS 1.3: zeros, it follows from the secret.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub iv: [u8; NONCE_BYTES],
    /// The number of the next record.
    #[n(2)]
    pub number: u64,
}

impl Drop for DirectionState {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.iv.zeroize();
    }
}

impl std::fmt::Debug for DirectionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectionState").field("number", &self.number).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RecordState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordState").field("suite", &self.suite).finish_non_exhaustive()
    }
}

impl RecordState {
    /// Of a connection that has just been established.
    #[must_use]
    pub const fn new(suite: u16, reading: DirectionState, writing: DirectionState) -> Self {
        Self {
            suite,
            reading,
            writing,
            has_ended_reading: false,
            has_ended_writing: false,
            owes_key_update: false,
            empty_records: 0,
            key_updates: 0,
            key_updates_since: Ticks(0),
        }
    }
}

impl DirectionState {
    fn of(suite: Suite, direction: &Direction) -> Self {
        let iv = match suite.version {
            Version::Tls12 => *direction.iv,
            Version::Tls13 => [0; NONCE_BYTES],
        };
        Self { secret: direction.secret[..suite.secret_bytes()].to_vec(), iv, number: direction.number }
    }

    fn direction(&self, suite: Suite) -> Result<Direction, RecordLayerError> {
        if self.secret.len() != suite.secret_bytes() {
            return Err(RecordLayerError::SecretLength { suite: suite.number, bytes: self.secret.len() });
        }
        match suite.version {
            Version::Tls12 => {
                let direction = Direction::of_key(suite, &self.secret, self.iv, self.number);
                Ok(direction.expect("the key has the suite's length"))
            }
            Version::Tls13 => {
                let mut secret = Zeroizing::new([0; SECRET_BYTES]);
                secret[..self.secret.len()].copy_from_slice(&self.secret);
                Ok(Direction::of_traffic_secret(suite, secret, self.number))
            }
        }
    }
}

impl RecordLayer {
    /// Everything, as plain values. The layer is gone: a number that is sealed twice would break the key.
    #[must_use]
    pub fn to_state(self) -> RecordState {
        self.copy_state()
    }

    /// As [`RecordLayer::to_state`], of a layer that is kept for the case that the other process never begins. It may seal
    /// again only if that is certain.
    pub(in crate::net) fn copy_state(&self) -> RecordState {
        RecordState {
            suite: self.suite.number,
            reading: DirectionState::of(self.suite, &self.reading),
            writing: DirectionState::of(self.suite, &self.writing),
            has_ended_reading: self.has_ended_reading,
            has_ended_writing: self.has_ended_writing,
            owes_key_update: self.owes_key_update,
            empty_records: self.empty_records,
            key_updates: self.key_updates,
            key_updates_since: self.key_updates_since,
        }
    }

    /// The layer that [`RecordLayer::to_state`] described.
    ///
    /// # Errors
    /// An unknown suite; a secret that is not as long as the suite's.
    pub fn from_state(state: &RecordState) -> Result<Self, RecordLayerError> {
        let suite = Suite::of(state.suite).ok_or(RecordLayerError::Suite { suite: state.suite })?;
        Ok(Self {
            suite,
            reading: state.reading.direction(suite)?,
            writing: state.writing.direction(suite)?,
            has_ended_reading: state.has_ended_reading,
            has_ended_writing: state.has_ended_writing,
            owes_key_update: state.owes_key_update,
            empty_records: state.empty_records,
            key_updates: state.key_updates,
            key_updates_since: state.key_updates_since,
        })
    }
}
