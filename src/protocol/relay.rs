//! The two data lanes: a verdict on each packet, borrowing it.
//!
//! Nothing here allocates, locks or reads a clock. An allocation's counters and the worker's move together,
//! so that the sums of the one are the totals of the other.

use super::Server;
use super::accounting::{ColdStatePool, wire_bytes};
use super::allocation::Allocation;
use super::border::{Head, InHand, PacketMeta, Relay, Shared};
use super::counters::Counters;
use super::ids::AllocationId;
use super::packet_bucket::PacketRate;
use super::peer_policy::{PeerClass, PeerPolicy};
use super::random::TransactionIds;
use super::reason::{Direction, DropReason};
use super::reject::RejectReason;
use crate::address::{Family, PeerAddress, Via};
use crate::fault;
use crate::time::{Now, Ticks};
use crate::wire::attribute::ChannelNumber;
use crate::wire::channel_data::{self, ChannelData};
use crate::wire::integrity::{Fingerprint, check_fingerprint};
use crate::wire::message::{Known, Message};
use crate::wire::writer::{DATA_INDICATION_HEAD_MAX, data_indication_head};
use crate::wire::{Class, classify};

/// The largest payload of a UDP datagram over IPv4, in bytes.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

impl Server {
    /// Judges a datagram or a frame of a client that carries data: ChannelData or a Send indication.
    ///
    /// Any other bytes are [`DropReason::NotStun`]: the caller sorts with [`classify`] first.
    #[inline]
    pub fn relay_from_client<'a>(&mut self, now: Now, via: &Via, meta: PacketMeta, bytes: &'a [u8]) -> Relay<'a> {
        self.in_hand = InHand::DataFromClient(*via);
        fault::at("data_from_client", bytes);
        let verdict = self.judge_from_client(now, via, meta, bytes);
        if matches!(verdict, Relay::Drop(DropReason::OverBudget))
            && let Some(id) = self.table.by_via(via).map(|allocation| allocation.id)
        {
            self.end_for_budget(now, id);
        }
        verdict
    }

    #[inline]
    pub(super) fn judge_from_client<'a>(
        &mut self,
        now: Now,
        via: &Via,
        meta: PacketMeta,
        bytes: &'a [u8],
    ) -> Relay<'a> {
        match classify(bytes) {
            Class::ChannelData => self.channel_data(now, via, meta, bytes),
            Class::SendIndication => self.send_indication(now, via, meta, bytes),
            Class::Stun | Class::Neither => self.drop_unknown(DropReason::NotStun, bytes.len()),
        }
    }

    /// RFC 8656 §12.6: ChannelData from a client. [8656-12.6-4, -5, -6, 8656-5-7, 8656-6-5]
    #[inline]
    fn channel_data<'a>(&mut self, now: Now, via: &Via, meta: PacketMeta, bytes: &'a [u8]) -> Relay<'a> {
        let Some(data) = ChannelData::parse(bytes) else {
            return self.drop_unknown(DropReason::BadChannelData, bytes.len());
        };
        let Some(allocation) = self.table.lane_by_via_mut(via).filter(|allocation| now.ticks < allocation.expires_at)
        else {
            return self.data_on_other_path(now, via, meta, bytes);
        };
        let lane = Lane::new(allocation, Direction::ToPeer, &self.counters, &mut self.cold_pool, self.packet_rate);
        let Some(binding) = lane.allocation.binding(data.number.0, now.ticks) else {
            return lane.drop(DropReason::UnboundChannel, data.payload.len());
        };
        if let Err(why) = check_peer(binding.peer, binding.class, &self.settings.peers, &*self.shared) {
            return lane.drop(why.into(), data.payload.len());
        }
        if is_relayed(binding.peer, binding.class, &*self.shared) {
            return lane.pass_to_relayed(now, binding.peer, meta, data.payload);
        }
        lane.pass_to_peer(now, binding.peer, PacketMeta { dont_fragment: false, ..meta }, data.payload)
    }

    /// RFC 8656 §11.2: a Send indication. [8656-11.2-1, -2, -3, -4, -6, 8656-5-7, 8656-6-5]
    fn send_indication<'a>(&mut self, now: Now, via: &Via, meta: PacketMeta, bytes: &'a [u8]) -> Relay<'a> {
        let Ok(message) = Message::parse(bytes) else {
            return self.drop_unknown(DropReason::Malformed, bytes.len());
        };
        let Some(allocation) = self.table.lane_by_via_mut(via).filter(|allocation| now.ticks < allocation.expires_at)
        else {
            return self.data_on_other_path(now, via, meta, bytes);
        };
        // RFC 8489 §6.3: where it is there it must be right; few clients send it, so it costs the others nothing.
        // [8489-6.3-3]
        if check_fingerprint(&message) == Fingerprint::Wrong {
            return self.drop_unknown(DropReason::BadFingerprint, bytes.len());
        }
        let (Ok(Some(peer)), Some(payload), Ok(dont_fragment), []) =
            (message.peer(), message.get(Known::Data), message.dont_fragment(), message.unknown())
        else {
            return self.drop_unknown(DropReason::BadSend, bytes.len());
        };
        let lane = Lane::new(allocation, Direction::ToPeer, &self.counters, &mut self.cold_pool, self.packet_rate);
        if lane.allocation.is_tcp() {
            return lane.drop(DropReason::TcpAllocation, payload.len());
        }
        if !lane.allocation.has_family(peer.family()) {
            return lane.drop(DropReason::PeerFamily, payload.len());
        }
        let Some(permission) = lane.allocation.permission(peer.ip(), now.ticks) else {
            return lane.drop(DropReason::NoPermission, payload.len());
        };
        if let Err(why) = check_peer(peer, permission.class, &self.settings.peers, &*self.shared) {
            return lane.drop(why.into(), payload.len());
        }
        if is_relayed(peer, permission.class, &*self.shared) {
            return lane.pass_to_relayed(now, peer, meta, payload);
        }
        let dont_fragment = dont_fragment && heeds_dont_fragment(via, peer);
        lane.pass_to_peer(now, peer, PacketMeta { dont_fragment, ..meta }, payload)
    }

    /// Judges a datagram that arrived on a relayed address (RFC 8656 §11.3, §12.7).
    #[inline]
    pub fn relay_from_peer<'a>(
        &mut self,
        now: Now,
        on: AllocationId,
        from: PeerAddress,
        meta: PacketMeta,
        payload: &'a [u8],
    ) -> Relay<'a> {
        self.in_hand = InHand::DataFromPeer(on);
        fault::at("data_from_peer", payload);
        let verdict = self.judge_from_peer(now, on, from, meta, payload);
        if matches!(verdict, Relay::Drop(DropReason::OverBudget))
            && let Some(id) = self.table.by_socket(on).map(|allocation| allocation.id)
        {
            self.end_for_budget(now, id);
        }
        verdict
    }

    // [8656-9-4, 8656-11.3-1]
    #[inline]
    fn judge_from_peer<'a>(
        &mut self,
        now: Now,
        on: AllocationId,
        from: PeerAddress,
        meta: PacketMeta,
        payload: &'a [u8],
    ) -> Relay<'a> {
        let ticks = now.ticks;
        let Some(allocation) = self.table.lane_of_socket_mut(on).filter(|allocation| ticks < allocation.expires_at)
        else {
            return self.drop_unknown(DropReason::RelayClosed, payload.len());
        };
        let lane = Lane::new(allocation, Direction::ToClient, &self.counters, &mut self.cold_pool, self.packet_rate);
        let Some(permission) = lane.allocation.permission(from.ip(), ticks) else {
            return lane.drop(DropReason::PeerNotPermitted, payload.len());
        };
        if let Err(why) = check_peer(from, permission.class, &self.settings.peers, &*self.shared) {
            return lane.drop(why.into(), payload.len());
        }
        let Some(head) = head_to_client(lane.allocation, from, payload.len(), ticks, &mut self.transaction_ids) else {
            return lane.drop(DropReason::TooBig, payload.len());
        };
        lane.pass_to_client(now, head, meta, payload)
    }

    /// Takes back packets of a verdict that the kernel or a queue did not take. `allocation` is what the verdict named.
    ///
    /// `bytes` is payload. For an allocation that ended meanwhile only the worker's totals move: a queue that
    /// still held its payload holds its record as well, and takes it back there
    /// ([`SessionRecord::not_sent`](super::accounting::SessionRecord::not_sent)).
    pub fn not_sent(
        &mut self,
        allocation: AllocationId,
        direction: Direction,
        packets: u32,
        bytes: u64,
        why: DropReason,
    ) {
        let packets = u64::from(packets);
        self.counters.take_back(direction, packets, bytes);
        self.counters.dropped(why, packets, bytes);
        let socket = allocation;
        if let Some(allocation) = self.table.lane_of_socket_mut(socket) {
            allocation.not_sent(&mut self.cold_pool, direction, why, packets, bytes);
            let family = match direction {
                Direction::ToPeer => allocation.take_back_from(socket, packets),
                Direction::ToClient => allocation.client_family(),
            };
            if let Some(terms) = &allocation.owner.terms {
                terms.meters.refund(wire_bytes(family, packets, bytes));
            }
        }
    }

    /// Drops bytes that belong to no allocation: they are counted as received, not as payload.
    #[inline]
    pub(super) fn drop_unknown<'a>(&self, why: DropReason, bytes: usize) -> Relay<'a> {
        self.counters.dropped(why, 1, bytes as u64);
        Relay::Drop(why)
    }
}

/// An allocation, one way: every payload that enters is counted once in and once out or dropped.
struct Lane<'s> {
    allocation: &'s mut Allocation,
    counters: &'s Counters,
    cold_pool: &'s mut ColdStatePool,
    direction: Direction,
    rate: PacketRate,
}

impl<'s> Lane<'s> {
    #[inline]
    fn new(
        allocation: &'s mut Allocation,
        direction: Direction,
        counters: &'s Counters,
        cold_pool: &'s mut ColdStatePool,
        rate: PacketRate,
    ) -> Self {
        Self { allocation, counters, cold_pool, direction, rate }
    }

    #[inline]
    fn enter(&mut self, bytes: usize) {
        self.allocation.offered(self.direction, bytes);
        self.counters.received(self.direction, bytes);
    }

    /// What the limits say of a packet that leaves by a network of this family: packets by the allocation's own bucket, all else by the meters of its terms, if there are any.
    // [8656-5-16]
    #[inline]
    fn charge(&mut self, now: Now, leaves_by: Family, bytes: usize) -> Result<(), DropReason> {
        if !self.allocation.packets.take(now.ticks, self.direction, self.rate) {
            return Err(DropReason::OverPackets);
        }
        let Some(terms) = &self.allocation.owner.terms else { return Ok(()) };
        if terms.meters.is_empty() {
            return Ok(());
        }
        let charged = terms.meters.charge(now, self.direction, wire_bytes(leaves_by, 1, bytes as u64));
        if charged.is_err() {
            self.allocation.packets.give_back(self.direction, self.rate);
        }
        charged
    }

    fn drop<'a>(mut self, why: DropReason, bytes: usize) -> Relay<'a> {
        self.enter(bytes);
        self.allocation.not_sent(self.cold_pool, self.direction, why, 1, bytes as u64);
        self.counters.dropped(why, 1, bytes as u64);
        Relay::Drop(why)
    }

    #[inline]
    fn pass_to_peer(mut self, now: Now, to: PeerAddress, meta: PacketMeta, payload: &[u8]) -> Relay<'_> {
        if let Err(why) = self.charge(now, to.family(), payload.len()) {
            return self.drop(why, payload.len());
        }
        self.enter(payload.len());
        self.counters.sent(Direction::ToPeer, payload.len());
        self.allocation.count_to_peer(to.family());
        let (socket, _) = self.allocation.socket_to(to.family());
        Relay::ToPeer { allocation: socket, to, meta, payload }
    }

    /// No network in between: what it would have refused for its size is refused here.
    #[inline]
    fn pass_to_relayed(mut self, now: Now, to: PeerAddress, meta: PacketMeta, payload: &[u8]) -> Relay<'_> {
        if payload.len() > DATAGRAM_BYTES_MAX {
            return self.drop(DropReason::MessageSize, payload.len());
        }
        if let Err(why) = self.charge(now, to.family(), payload.len()) {
            return self.drop(why, payload.len());
        }
        self.enter(payload.len());
        self.counters.sent(Direction::ToPeer, payload.len());
        self.allocation.count_to_peer(to.family());
        let (socket, from) = self.allocation.socket_to(to.family());
        Relay::ToRelayed { allocation: socket, from: PeerAddress(from.0), to, meta, payload }
    }

    #[inline]
    fn pass_to_client(mut self, now: Now, head: Head, meta: PacketMeta, payload: &[u8]) -> Relay<'_> {
        if let Err(why) = self.charge(now, self.allocation.client_family(), payload.len()) {
            return self.drop(why, payload.len());
        }
        self.enter(payload.len());
        self.counters.sent(Direction::ToClient, payload.len());
        Relay::ToClient { allocation: self.allocation.id, via: self.allocation.via(), head, meta, payload }
    }
}

/// Why a port of one of this machine's addresses is no peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PortRefused {
    /// One of our listeners.
    Listener,
    /// Not a relayed port at this moment.
    NotRelayed,
}

impl From<PortRefused> for DropReason {
    fn from(refused: PortRefused) -> Self {
        match refused {
            PortRefused::Listener => Self::PeerIsListener,
            PortRefused::NotRelayed => Self::NotRelayedPort,
        }
    }
}

impl From<PortRefused> for RejectReason {
    fn from(refused: PortRefused) -> Self {
        match refused {
            PortRefused::Listener => Self::PeerIsListener,
            PortRefused::NotRelayed => Self::PeerNotRelayed,
        }
    }
}

/// What a permission's class leaves to the port: nothing for a remote peer, so nothing is looked up.
// [8656-11.2-5]
#[inline]
pub(super) fn check_peer(
    peer: PeerAddress,
    class: PeerClass,
    policy: &PeerPolicy,
    shared: &dyn Shared,
) -> Result<(), PortRefused> {
    match class {
        PeerClass::Remote => Ok(()),
        PeerClass::Own if shared.is_relayed(peer) => Ok(()),
        PeerClass::Own => Err(PortRefused::NotRelayed),
        PeerClass::Local if policy.is_listener(peer) => Err(PortRefused::Listener),
        PeerClass::Local => Ok(()),
    }
}

/// Whether DONT-FRAGMENT counts: between two datagrams over IPv4, and for all that comes over a stream. Where one of two
/// datagrams is of IPv6, RFC 8656 sections 13.1 to 13.3 have it ignored.
// [8656-13.1-1, 8656-13.2-4, 8656-13.3-2, 8656-15-3]
fn heeds_dont_fragment(via: &Via, peer: PeerAddress) -> bool {
    via.is_stream() || (via.five_tuple().client.ip().is_ipv4() && peer.ip().is_ipv4())
}

/// Whether a peer that passed [`check_peer`] is a relayed address of this server; nothing is looked up for a remote one.
#[inline]
fn is_relayed(peer: PeerAddress, class: PeerClass, shared: &dyn Shared) -> bool {
    match class {
        PeerClass::Remote => false,
        PeerClass::Own => true,
        PeerClass::Local => shared.is_relayed(peer),
    }
}

/// ChannelData's head if the peer has a channel, else a Data indication's; `None` if the client's framing
/// can't carry that much.
// [8656-12.5-1]
#[inline]
fn head_to_client(
    allocation: &Allocation,
    from: PeerAddress,
    bytes: usize,
    now: Ticks,
    transaction_ids: &mut TransactionIds,
) -> Option<Head> {
    let mut head = [0; DATA_INDICATION_HEAD_MAX];
    let is_stream = allocation.is_stream();
    let (len, padding) = match allocation.channel_to(from, now) {
        Some(number) => {
            let length = u16::try_from(bytes).ok()?;
            head[..channel_data::HEAD_BYTES].copy_from_slice(&channel_data::head(ChannelNumber(number), length));
            // RFC 8656 §12.5: padding on streams only. [8656-12.5-2]
            (channel_data::HEAD_BYTES, if is_stream { channel_data::padding(bytes) } else { 0 })
        }
        None => {
            let len = data_indication_head(&mut head, transaction_ids.next(), from, bytes)?;
            (len, channel_data::padding(bytes))
        }
    };
    let fits = is_stream || len + bytes + padding <= DATAGRAM_BYTES_MAX;
    fits.then(|| Head::new(head, len, padding))
}
