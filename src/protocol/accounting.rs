//! Who used what: counters of one allocation, and the records of its life.
//!
//! All counts are payload, without STUN, ChannelData or IP headers. For each way what came in is what went
//! out plus what was dropped, exactly: [`Flow::offered`] counts both, [`Flow::not_sent`] moves over, and
//! [`Drops`] tells why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::address::{RelayedTransportAddress, Via};
use super::border::{AllocationId, DropReason, EndReason, Way};
use super::time::{Ticks, UnixSeconds};

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

/// One counter per reason.
type ByReason = [Amount; DropReason::ALL.len()];

/// What one allocation dropped, by reason.
///
/// Nearly no allocation drops anything, so the table is taken from [`SpareDrops`] at the first drop.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Drops(Option<Box<ByReason>>);

impl Drops {
    pub(super) fn add(&mut self, spare: &mut SpareDrops, why: DropReason, packets: u64, bytes: u64) {
        self.0.get_or_insert_with(|| spare.take())[why as usize].add(packets, bytes);
    }

    /// The reasons that occurred, in the order of their numbers.
    pub(super) fn list(&self) -> Box<[(DropReason, Amount)]> {
        let Some(table) = &self.0 else { return Box::default() };
        DropReason::ALL.iter().copied().zip(**table).filter(|(_, amount)| *amount != Amount::default()).collect()
    }

    pub(super) fn from_list(list: &[(DropReason, Amount)]) -> Self {
        if list.is_empty() {
            return Self::default();
        }
        let mut table = Box::new([Amount::default(); DropReason::ALL.len()]);
        for (why, amount) in list {
            table[*why as usize] = *amount;
        }
        Self(Some(table))
    }
}

/// Tables for first drops, made where allocations are made, so that dropping a packet asks for no memory.
///
/// Only when more allocations than this drop their first packet between two Allocate requests is one made
/// on the spot; that happens at most once in the life of an allocation.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "a table is handed over where no memory may be asked for")]
pub(super) struct SpareDrops(Vec<Box<ByReason>>);

impl SpareDrops {
    const MAX: usize = 32;

    fn take(&mut self) -> Box<ByReason> {
        self.0.pop().unwrap_or_else(|| Box::new([Amount::default(); DropReason::ALL.len()]))
    }

    /// One more allocation may come to drop.
    pub(super) fn prepare(&mut self) {
        if self.0.len() < Self::MAX {
            self.0.push(Box::new([Amount::default(); DropReason::ALL.len()]));
        }
    }

    /// An allocation is over.
    pub(super) fn take_back(&mut self, drops: Drops) {
        if let Some(mut table) = drops.0
            && self.0.len() < Self::MAX
        {
            table.fill(Amount::default());
            self.0.push(table);
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
        let mut drops = Drops::default();
        assert_eq!(drops.list().len(), 0);
        let mut spare = SpareDrops::default();
        spare.prepare();
        drops.add(&mut spare, DropReason::SlowClient, 1, 10);
        assert!(spare.0.is_empty(), "the table that was prepared is used");
        assert_eq!(Drops::from_list(&drops.list()), drops);
        let list = drops.list();
        spare.take_back(drops);
        assert!(spare.0.iter().all(|table| table.iter().all(|amount| *amount == Amount::default())));
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
