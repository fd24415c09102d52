//! What is added up: the counts of a record, small, and their sums, which never overflow.

use serde::Serialize;

use crate::ops::usage::record::Record;

/// What is added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Totals {
    /// Received from clients.
    pub bytes_from_client: i128,
    /// Sent to clients.
    pub bytes_to_client: i128,
    /// Received from peers.
    pub bytes_from_peers: i128,
    /// Sent to peers.
    pub bytes_to_peers: i128,
    /// Sent to clients as bytes of the network, with the heads of IP and UDP.
    pub wire_bytes_to_client: i128,
    /// Sent to peers, likewise.
    pub wire_bytes_to_peers: i128,
    /// Received from clients and peers.
    pub packets_received: i128,
    /// Sent to clients and peers.
    pub packets_sent: i128,
}

impl Totals {
    /// Adds what was counted between two records of a session.
    pub(super) fn add(&mut self, now: &Counts, before: &Counts) {
        let difference = |at: usize| i128::from(now.0[at]) - i128::from(before.0[at]);
        self.bytes_from_client += difference(0);
        self.bytes_to_client += difference(1);
        self.bytes_from_peers += difference(2);
        self.bytes_to_peers += difference(3);
        self.wire_bytes_to_client += difference(4);
        self.wire_bytes_to_peers += difference(5);
        self.packets_received += difference(6);
        self.packets_sent += difference(7);
    }

    /// The same as bytes of the network.
    #[must_use]
    pub const fn wire_bytes_sent(&self) -> i128 {
        self.wire_bytes_to_client + self.wire_bytes_to_peers
    }

    /// What the relay sent, to clients and peers: what a price per GB is asked for.
    #[must_use]
    pub const fn bytes_sent(&self) -> i128 {
        self.bytes_to_client + self.bytes_to_peers
    }
}

/// The counts of one record, in the order of [`Totals`]: half the size, because millions of them are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts([u64; 8]);

impl Counts {
    /// `None` if the packets of both sides are more than a `u64` holds.
    pub(super) fn of(record: &Record) -> Option<Self> {
        Some(Self([
            record.bytes_from_client,
            record.bytes_to_client,
            record.bytes_from_peers,
            record.bytes_to_peers,
            record.wire_bytes_to_client,
            record.wire_bytes_to_peers,
            record.packets_from_client.checked_add(record.packets_from_peers)?,
            record.packets_to_client.checked_add(record.packets_to_peers)?,
        ]))
    }

    /// Tells other counts from these, for a session that is added up and gone.
    pub(super) fn check(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.0.iter().for_each(|count| hasher.update(&count.to_be_bytes()));
        hasher.finalize()
    }
}
