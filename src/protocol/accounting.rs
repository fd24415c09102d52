//! Who used what: counters of one allocation, and the records of its life.
//!
//! All counts are payload, without STUN, ChannelData or IP headers; what limits charge is [`SessionRecord::wire_sent`]. For each way what came in is what went
//! out plus what was dropped, exactly: [`Flow::offered`] counts both, [`Flow::not_sent`] moves over, and
//! [`Drops`] tells why.

use minicbor::{Decode, Encode};

use super::additional_address::AdditionalAddress;
use super::ids::{AllocationId, SessionId};
use super::mobility::Mobility;
use super::reason::{Direction, DropReason, EndReason};
use crate::address::{Family, RelayedTransportAddress, Via};
use crate::credentials::SecretId;
use crate::time::{Ticks, UnixSeconds};
use crate::wire::attribute::ReservationToken;

/// Packets and payload bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Amount {
    /// Datagrams.
    #[n(0)]
    pub packets: u64,
    /// Payload bytes.
    #[n(1)]
    pub bytes: u64,
}

impl Amount {
    #[inline]
    pub(super) fn add(&mut self, packets: u64, bytes: u64) {
        self.packets = self.packets.wrapping_add(packets);
        self.bytes = self.bytes.wrapping_add(bytes);
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
        Self { packets: self.packets.wrapping_sub(other.packets), bytes: self.bytes.wrapping_sub(other.bytes) }
    }
}

/// What a payload takes of the network that it leaves by, in bytes: itself and the heads of UDP (RFC 768) and of IPv4
/// (RFC 791) or IPv6 (RFC 8200).
///
/// TURN's own heads towards a client are not in it, nor are those of TCP and TLS, so that packets and payload bytes
/// alone tell the sum.
#[must_use]
#[inline]
pub const fn wire_bytes(family: Family, packets: u64, payload: u64) -> u64 {
    let heads = match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    };
    payload.saturating_add(packets.saturating_mul(heads))
}

/// One way through an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Flow {
    /// What came in.
    #[n(0)]
    pub received: Amount,
    /// What went nowhere, for whatever reason.
    #[n(1)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Traffic {
    /// Received from the client, sent to peers.
    #[n(0)]
    pub to_peers: Flow,
    /// Received from peers, sent to the client.
    #[n(1)]
    pub to_client: Flow,
}

impl Traffic {
    /// One way of it.
    #[inline]
    pub const fn flow_mut(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::ToPeer => &mut self.to_peers,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// What few allocations have: drops, a token that was given out, a second relayed address, a ticket.
///
/// Nearly no allocation drops anything, so this is taken from [`ColdStatePool`] at the first drop.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct ColdState {
    /// Something was dropped since the allocation was last exported early.
    pub(super) is_untold: bool,
    pub(super) token: Option<ReservationToken>,
    pub(super) additional: Option<AdditionalAddress>,
    /// Its client may change its network.
    pub(super) mobility: Option<Box<Mobility>>,
    /// The family of two that was asked for and can't be had, and the code that says why.
    pub(super) refused: Option<(Family, u16)>,
    /// What went nowhere, each way.
    pub(super) dropped: [Amount; 2],
    /// The same by reason.
    by_reason: [Amount; DropReason::ALL.len()],
}

impl Default for ColdState {
    fn default() -> Self {
        Self {
            is_untold: false,
            token: None,
            additional: None,
            mobility: None,
            refused: None,
            dropped: Default::default(),
            by_reason: [Amount::default(); DropReason::ALL.len()],
        }
    }
}

impl ColdState {
    pub(super) fn answered_with(token: Option<ReservationToken>, refused: Option<(Family, u16)>) -> Self {
        Self { token, refused, ..Self::default() }
    }

    pub(super) fn not_sent(&mut self, direction: Direction, why: DropReason, packets: u64, bytes: u64) {
        self.is_untold = true;
        self.dropped[direction as usize].add(packets, bytes);
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
pub(super) struct ColdStatePool(Vec<Box<ColdState>>);

impl ColdStatePool {
    const MAX: usize = 32;

    pub(super) fn take(&mut self) -> Box<ColdState> {
        self.0.pop().unwrap_or_default()
    }

    /// One more allocation may come to drop.
    pub(super) fn prepare(&mut self) {
        if self.0.len() < Self::MAX {
            self.0.push(Box::default());
        }
    }

    /// An allocation is over.
    pub(super) fn take_back(&mut self, cold: Option<Box<ColdState>>) {
        if let Some(mut cold) = cold
            && self.0.len() < Self::MAX
        {
            *cold = ColdState::default();
            self.0.push(cold);
        }
    }
}

/// One session, alive or ended.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct SessionRecord {
    /// Its name, the same in each of its records.
    #[n(0)]
    pub session: SessionId,
    /// Counts the records of this session from 0, its start; the next one to come for a session that was asked for.
    #[n(1)]
    pub seq: u32,
    /// The wall clock when this was written down.
    #[n(2)]
    pub unix: UnixSeconds,
    /// The allocation within its worker.
    #[n(3)]
    pub allocation: AllocationId,
    /// The full USERNAME.
    #[n(4)]
    pub username: Box<str>,
    /// The user id that quotas count for.
    #[n(5)]
    pub identity: Box<str>,
    /// Whose user it is, if the users of this server belong to tenants.
    #[n(6)]
    pub tenant: Option<Box<str>>,
    /// The secret that the credential was made with; `None` for a static user.
    #[n(7)]
    pub secret: Option<SecretId>,
    /// How the client came.
    #[n(8)]
    pub via: Via,
    /// What it got.
    #[n(9)]
    pub relayed: RelayedTransportAddress,
    /// When the allocation was made.
    #[n(10)]
    pub created_at: Ticks,
    /// When it ended, or the time of asking.
    #[n(11)]
    pub ended_at: Ticks,
    /// Why it ended; `None` while it lives.
    #[n(12)]
    pub reason: Option<EndReason>,
    /// What it relayed.
    #[n(13)]
    pub traffic: Traffic,
    /// What of it was dropped, by reason; the reasons that occurred only.
    #[n(14)]
    pub dropped: Box<[(DropReason, Amount)]>,
    /// The other relayed address, of the other family, if there is or was one.
    #[n(15)]
    pub additional: Option<AdditionalAddress>,
    /// The realm that the client belongs to, if it is not the server's own.
    #[n(16)]
    pub realm: Option<Box<str>>,
    /// `Some(true)` if it relays TCP connections (RFC 6062); ask [`SessionRecord::relay_transport`].
    #[n(17)]
    pub is_tcp: Option<bool>,
}

impl SessionRecord {
    /// What is relayed between it and its peers, REQUESTED-TRANSPORT of its Allocate: `udp` (RFC 8656) or `tcp` (RFC 6062).
    #[must_use]
    pub fn relay_transport(&self) -> &'static str {
        if self.is_tcp == Some(true) { "tcp" } else { "udp" }
    }

    /// What was sent one way as bytes of the network, which is what limits and budgets charge: payload, and the heads
    /// of IP and UDP of each packet, [`wire_bytes`].
    #[must_use]
    pub fn wire_sent(&self, direction: Direction) -> u64 {
        let (flow, family, other) = match direction {
            Direction::ToPeer => (&self.traffic.to_peers, self.relayed.family(), self.additional),
            Direction::ToClient => (&self.traffic.to_client, self.via.five_tuple().client.family(), None),
        };
        let Amount { packets, bytes } = flow.sent();
        let (by_other, other_family) = other.map_or((0, family), |other| (other.packets, other.relayed.family()));
        wire_bytes(family, packets.saturating_sub(by_other), bytes).saturating_add(wire_bytes(
            other_family,
            by_other,
            0,
        ))
    }

    /// Takes back what a queue still held when the allocation ended and that will never leave.
    pub fn not_sent(&mut self, direction: Direction, packets: u64, bytes: u64, why: DropReason) {
        self.traffic.flow_mut(direction).not_sent(packets, bytes);
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
        let mut spare = ColdStatePool::default();
        spare.prepare();
        let mut cold = spare.take();
        assert!(spare.0.is_empty(), "the room that was prepared is used");
        assert_eq!(cold.list().len(), 0);
        cold.not_sent(Direction::ToClient, DropReason::SlowClient, 1, 10);
        assert_eq!(cold.dropped, [Amount::default(), Amount { packets: 1, bytes: 10 }]);
        let list = cold.list();
        assert!(std::mem::take(&mut cold.is_untold));
        let mut copy = ColdState::default();
        copy.set(cold.dropped, &list);
        assert_eq!(copy, *cold);
        spare.take_back(Some(cold));
        assert!(spare.0.iter().all(|cold| **cold == ColdState::default()));
        let mut record = crate::protocol::allocation::tests::allocation().record(
            0,
            crate::time::Now { ticks: Ticks(0), unix: UnixSeconds(0) },
            None,
        );
        record.dropped = list;
        record.traffic.to_client.offered(10);
        record.traffic.to_client.offered(7);
        record.traffic.to_client.not_sent(1, 10);
        record.not_sent(Direction::ToClient, 1, 7, DropReason::StreamClosed);
        assert_eq!(record.traffic.to_client.sent(), Amount::default());
        let due = |bytes| Amount { packets: 1, bytes };
        assert_eq!(*record.dropped, [(DropReason::SlowClient, due(10)), (DropReason::StreamClosed, due(7))]);
    }

    #[test]
    fn an_empty_payload_takes_its_heads_of_the_network() {
        assert_eq!([Family::V4, Family::V6].map(|family| wire_bytes(family, 1, 0)), [28, 48]);
        assert_eq!(wire_bytes(Family::V4, 3, 100), 184);
        assert_eq!(wire_bytes(Family::V6, u64::MAX, u64::MAX), u64::MAX);
    }
}
