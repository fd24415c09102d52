//! Who used what: counters of one allocation, and the records of its life.
//!
//! All counts are payload, without STUN, ChannelData or IP headers. For each way what came in is what went
//! out plus what was dropped, exactly: [`Flow::offered`] counts both, [`Flow::not_sent`] moves over, and
//! [`Drops`] tells why.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::{RelayedTransportAddress, Via};
use super::border::{AllocationId, DropReason, EndReason, Way};
use super::time::{Ticks, UnixSeconds};
use crate::wire::attribute::ReservationToken;

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
    pub(super) fn add(&mut self, packets: u64, bytes: u64) {
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
    #[cfg(test)]
    pub(super) fn offered(&mut self, bytes: usize) {
        self.received.add(1, bytes as u64);
    }

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

impl Traffic {
    /// One way of it.
    #[inline]
    pub const fn flow_mut(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::ToPeer => &mut self.to_peers,
            Way::ToClient => &mut self.to_client,
        }
    }
}

/// Names a session for good: no other worker, process or machine gives the same name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SessionId {
    /// Drawn by each worker when it starts.
    pub instance: u64,
    /// Counts that worker's sessions from 1.
    pub number: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.instance, self.number)
    }
}

/// What few allocations have: drops, and a token that was given out.
///
/// Nearly no allocation drops anything, so this is taken from [`SpareAsides`] at the first drop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Aside {
    pub(super) token: Option<ReservationToken>,
    /// What went nowhere, each way.
    pub(super) dropped: [Amount; 2],
    /// The same by reason.
    by_reason: [Amount; DropReason::ALL.len()],
}

impl Default for Aside {
    fn default() -> Self {
        Self { token: None, dropped: Default::default(), by_reason: [Amount::default(); DropReason::ALL.len()] }
    }
}

impl Aside {
    pub(super) fn with_token(token: ReservationToken) -> Self {
        Self { token: Some(token), ..Self::default() }
    }

    pub(super) fn not_sent(&mut self, way: Way, why: DropReason, packets: u64, bytes: u64) {
        self.dropped[way as usize].add(packets, bytes);
        self.by_reason[why as usize].add(packets, bytes);
    }

    /// The reasons that occurred, in the order of their numbers.
    pub(super) fn list(&self) -> Box<[(DropReason, Amount)]> {
        let all = DropReason::ALL.iter().copied().zip(self.by_reason);
        all.filter(|(_, amount)| *amount != Amount::default()).collect()
    }

    pub(super) fn set(&mut self, dropped: [Amount; 2], list: &[(DropReason, Amount)]) {
        self.dropped = dropped;
        for (why, amount) in list {
            self.by_reason[*why as usize] = *amount;
        }
    }
}

/// Room for first drops, made where allocations are made, so that dropping a packet asks for no memory.
///
/// Only when more allocations than this drop their first packet between two Allocate requests is one made
/// on the spot; that happens at most once in the life of an allocation.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "it is handed over where no memory may be asked for")]
pub(super) struct SpareAsides(Vec<Box<Aside>>);

impl SpareAsides {
    const MAX: usize = 32;

    pub(super) fn take(&mut self) -> Box<Aside> {
        self.0.pop().unwrap_or_default()
    }

    /// One more allocation may come to drop.
    pub(super) fn prepare(&mut self) {
        if self.0.len() < Self::MAX {
            self.0.push(Box::default());
        }
    }

    /// An allocation is over.
    pub(super) fn take_back(&mut self, aside: Option<Box<Aside>>) {
        if let Some(mut aside) = aside
            && self.0.len() < Self::MAX
        {
            *aside = Aside::default();
            self.0.push(aside);
        }
    }
}

/// One session, alive or ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Its name, the same in each of its records.
    pub session: SessionId,
    /// Counts the records of this session from 0, its start; the next one to come for a session that was asked for.
    pub seq: u32,
    /// The wall clock when this was written down.
    pub unix: UnixSeconds,
    /// The allocation within its worker.
    pub allocation: AllocationId,
    /// The full USERNAME.
    pub username: Box<str>,
    /// Whom quotas count for: the user id.
    pub identity: Box<str>,
    /// Whose user it is, if the users of this server belong to tenants.
    pub tenant: Option<Box<str>>,
    /// The secret that the credential was made with; `None` for a static user.
    #[serde(with = "super::owner::shared_text")]
    pub secret: Option<Arc<str>>,
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
    /// What of it was dropped, by reason; the reasons that occurred only.
    pub dropped: Box<[(DropReason, Amount)]>,
}

impl SessionRecord {
    /// Takes back what a queue still held when the allocation ended and that will never leave.
    pub fn not_sent(&mut self, way: Way, packets: u64, bytes: u64, why: DropReason) {
        self.traffic.flow_mut(way).not_sent(packets, bytes);
        if let Some((_, amount)) = self.dropped.iter_mut().find(|(reason, _)| *reason == why) {
            amount.add(packets, bytes);
            return;
        }
        let mut dropped = std::mem::take(&mut self.dropped).into_vec();
        dropped.push((why, Amount { packets, bytes }));
        dropped.sort_unstable_by_key(|(reason, _)| *reason as usize);
        self.dropped = dropped.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_queue_held_at_the_end_is_taken_back_under_its_reason() {
        let mut spare = SpareAsides::default();
        spare.prepare();
        let mut aside = spare.take();
        assert!(spare.0.is_empty(), "the room that was prepared is used");
        assert_eq!(aside.list().len(), 0);
        aside.not_sent(Way::ToClient, DropReason::SlowClient, 1, 10);
        assert_eq!(aside.dropped, [Amount::default(), Amount { packets: 1, bytes: 10 }]);
        let list = aside.list();
        let mut copy = Aside::default();
        copy.set(aside.dropped, &list);
        assert_eq!(copy, *aside);
        spare.take_back(Some(aside));
        assert!(spare.0.iter().all(|aside| **aside == Aside::default()));
        let mut record = crate::protocol::allocation::tests::allocation().record(
            0,
            crate::protocol::time::Now { ticks: Ticks(0), unix: UnixSeconds(0) },
            None,
        );
        record.dropped = list;
        record.traffic.to_client.offered(10);
        record.traffic.to_client.offered(7);
        record.traffic.to_client.not_sent(1, 10);
        record.not_sent(Way::ToClient, 1, 7, DropReason::StreamClosed);
        assert_eq!(record.traffic.to_client.sent(), Amount::default());
        let due = |bytes| Amount { packets: 1, bytes };
        assert_eq!(*record.dropped, [(DropReason::SlowClient, due(10)), (DropReason::StreamClosed, due(7))]);
    }

    #[test]
    fn a_session_has_a_short_name() {
        assert_eq!(SessionId { instance: 0x1f, number: 17 }.to_string(), "000000000000001f-11");
    }
}
