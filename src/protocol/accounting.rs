//! Who used what: counters of one allocation, and the record when it ends.
//!
//! All counts are payload, without STUN, ChannelData or IP headers. For each way what came in is what went
//! out plus what was dropped, exactly: [`Flow::offered`] counts both, [`Flow::not_sent`] moves over.

use serde::{Deserialize, Serialize};

use super::address::{RelayedTransportAddress, Via};
use super::border::{AllocationId, EndReason};
use super::time::Ticks;

/// Packets and payload bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Datagrams.
    pub packets: u64,
    /// Payload bytes.
    pub bytes: u64,
}

impl Amount {
    #[inline]
    fn add(&mut self, packets: u64, bytes: u64) {
        self.packets += packets;
        self.bytes += bytes;
    }
}

impl std::ops::Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl std::ops::Sub for Amount {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { packets: self.packets - other.packets, bytes: self.bytes - other.bytes }
    }
}

/// One way through an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Flow {
    /// What came in.
    pub received: Amount,
    /// What went nowhere, for whatever reason.
    pub dropped: Amount,
}

impl Flow {
    #[inline]
    pub(super) fn offered(&mut self, bytes: usize) {
        self.received.add(1, bytes as u64);
    }

    #[inline]
    pub(super) fn not_sent(&mut self, packets: u64, bytes: u64) {
        self.dropped.add(packets, bytes);
    }

    /// What went out.
    #[must_use]
    pub fn sent(&self) -> Amount {
        self.received - self.dropped
    }
}

/// Both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Received from the client, sent to peers.
    pub to_peers: Flow,
    /// Received from peers, sent to the client.
    pub to_client: Flow,
}

/// One session, alive or ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The allocation within its worker.
    pub allocation: AllocationId,
    /// The full USERNAME.
    pub username: Box<str>,
    /// Whom quotas count for: the user id.
    pub identity: Box<str>,
    /// The secret that the credential was made with; `None` for a static user.
    pub secret: Option<Box<str>>,
    /// How the client came.
    pub via: Via,
    /// What it got.
    pub relayed: RelayedTransportAddress,
    /// When the allocation was made.
    pub created_at: Ticks,
    /// When it ended, or the time of asking.
    pub ended_at: Ticks,
    /// Why it ended; `None` while it lives.
    pub reason: Option<EndReason>,
    /// What it relayed.
    pub traffic: Traffic,
}
