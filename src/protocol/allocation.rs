//! One allocation: its owner, its permissions and channels, its counters.
//!
//! Laid out for many: what packets read and write stands in the first two cache lines, the rest behind it, and what
//! nearly no allocation has stands elsewhere.

use std::mem::offset_of;
use std::net::IpAddr;

use minicbor::{Decode, Encode};

use super::accounting::{Amount, ColdState, ColdStatePool, Flow, SessionRecord, Traffic};
use super::additional_address::AdditionalAddress;
use super::channel::{CHANNEL_LIFETIME, ChannelBinding, Channels};
use super::endpoint_addresses::EndpointAddresses;
use super::ids::AllocationId;
use super::ids::SessionId;
use super::mobility::Mobility;
use super::owner::{NEVER, Owner, OwnerState, Terms};
use super::packet_bucket::PacketBucket;
use super::peer_policy::PeerClass;
use super::permission::{PERMISSION_LIFETIME, Permission, Permissions};
use super::reason::{Direction, DropReason, EndReason};
use super::settings::AuthSettings;
use crate::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use crate::time::{Now, Ticks};
use crate::wire::attribute::ReservationToken;
use crate::wire::message::TransactionId;

/// Which request made the allocation, so that its retransmission gets the same answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Origin {
    /// Of the Allocate request.
    #[n(0)]
    pub transaction_id: TransactionId,
    /// The LIFETIME that was granted, in seconds.
    #[n(1)]
    pub lifetime: u32,
    /// The token that was given out, if one was.
    #[n(2)]
    pub token: Option<ReservationToken>,
    /// The family of two that was asked for and could not be had, and the ADDRESS-ERROR-CODE that said why.
    #[n(3)]
    pub refused: Option<(Family, u16)>,
}

/// The request that made an allocation, without the token, which few have.
#[derive(Clone, Copy, Debug)]
struct Request {
    transaction_id: TransactionId,
    lifetime: u32,
}

/// An allocation (RFC 8656 section 2).
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Allocation {
    pub(super) endpoints: EndpointAddresses,
    /// What came in, each way.
    pub(super) received: [Amount; 2],
    pub(super) expires_at: Ticks,
    pub(super) permissions: Permissions,
    pub(super) channels: Channels,
    pub(super) id: AllocationId,
    /// How many packets may still pass.
    pub(super) packets: PacketBucket,
    /// Its first field is the last one that packets look at.
    pub(super) owner: Owner,
    pub(super) session: SessionId,
    /// Records written so far.
    pub(super) records: u32,
    /// When the next interim record is due, in seconds since its creation; 0 without them.
    interim_after: u32,
    /// When its timer wakes: never later than `expires_at` and `interim_at`, and checked again then.
    pub(super) armed_at: Ticks,
    pub(super) created_at: Ticks,
    request: Request,
    /// What was dropped, what was answered beyond the usual, the second relayed address, the ticket.
    pub(super) cold: Option<Box<ColdState>>,
}

/// What a cache reads at once.
const LINE: usize = 64;

const _: () = {
    assert!(size_of::<Allocation>() == 4 * LINE && size_of::<Option<Allocation>>() == 4 * LINE);
    let terms = offset_of!(Allocation, owner) + offset_of!(Owner, terms);
    assert!(terms + size_of::<Option<Box<Terms>>>() == 2 * LINE, "the data lanes need two cache lines");
};

impl Allocation {
    pub(super) fn new(
        id: AllocationId,
        session: SessionId,
        via: Via,
        relayed: RelayedTransportAddress,
        owner: Owner,
        origin: Origin,
        now: Ticks,
    ) -> Self {
        let expires_at = now.plus_seconds(u64::from(origin.lifetime));
        Self {
            endpoints: EndpointAddresses::new(via, relayed),
            received: [Amount::default(); 2],
            expires_at,
            permissions: Permissions::default(),
            channels: Channels::default(),
            id,
            packets: PacketBucket::new(now),
            owner,
            session,
            records: 0,
            interim_after: 0,
            armed_at: expires_at,
            created_at: now,
            request: Request { transaction_id: origin.transaction_id, lifetime: origin.lifetime },
            cold: (origin.token.is_some() || origin.refused.is_some())
                .then(|| Box::new(ColdState::answered_with(origin.token, origin.refused))),
        }
    }

    /// How the client comes.
    #[inline]
    pub(super) fn via(&self) -> Via {
        self.endpoints.via()
    }

    /// Whether the client comes this way.
    #[inline]
    pub(super) fn comes(&self, via: &Via) -> bool {
        self.endpoints.comes(via)
    }

    /// Whether the client comes over a byte stream.
    #[inline]
    pub(super) fn is_stream(&self) -> bool {
        self.endpoints.is_stream()
    }

    /// Whether it is a TCP allocation (RFC 6062): it has connections to peers, and no datagrams.
    #[inline]
    pub(super) fn is_tcp(&self) -> bool {
        self.endpoints.is_tcp()
    }

    /// Makes it a TCP allocation.
    pub(super) fn make_tcp(&mut self) {
        self.endpoints = EndpointAddresses::tcp(self.via(), self.relayed());
    }

    /// The relayed address, advertised form.
    #[inline]
    pub(super) fn relayed(&self) -> RelayedTransportAddress {
        self.endpoints.relayed()
    }

    /// The family of its own relayed address, and of all its peers if it has no other one.
    #[inline]
    pub(super) fn family(&self) -> Family {
        self.endpoints.family()
    }

    /// The family of the client's address.
    #[inline]
    pub(super) fn client_family(&self) -> Family {
        self.endpoints.client_family()
    }

    /// Which request made it, and what was answered.
    pub(super) fn origin(&self) -> Origin {
        let Request { transaction_id, lifetime } = self.request;
        let (token, refused) = self.cold.as_ref().map_or((None, None), |cold| (cold.token, cold.refused));
        Origin { transaction_id, lifetime, token, refused }
    }

    /// A packet came in.
    #[inline]
    pub(super) fn offered(&mut self, direction: Direction, bytes: usize) {
        self.received[direction as usize].add(1, bytes as u64);
    }

    /// Packets that came in, both ways.
    pub(super) fn packets_received(&self) -> u64 {
        self.received.iter().map(|of| of.packets).sum()
    }

    /// Packets that came in go nowhere.
    pub(super) fn not_sent(
        &mut self,
        cold_pool: &mut ColdStatePool,
        direction: Direction,
        why: DropReason,
        packets: u64,
        bytes: u64,
    ) {
        self.cold.get_or_insert_with(|| cold_pool.take()).not_sent(direction, why, packets, bytes);
    }

    /// What it relayed.
    pub(super) fn traffic(&self) -> Traffic {
        let dropped = self.cold.as_ref().map(|cold| cold.dropped).unwrap_or_default();
        let flow = |direction: Direction| Flow {
            received: self.received[direction as usize],
            dropped: dropped[direction as usize],
        };
        Traffic { to_peers: flow(Direction::ToPeer), to_client: flow(Direction::ToClient) }
    }

    fn drops(&self) -> Box<[(DropReason, Amount)]> {
        self.cold.as_ref().map(|cold| cold.list()).unwrap_or_default()
    }

    /// What it leaves behind for another to use.
    pub(super) fn into_aside(self) -> Option<Box<ColdState>> {
        self.cold
    }

    /// The live permission for a peer's address.
    #[inline]
    pub(super) fn permission(&self, ip: IpAddr, now: Ticks) -> Option<Permission> {
        self.permissions.get(ip).filter(|permission| now < permission.expires_at)
    }

    /// The live binding of a channel.
    #[inline]
    pub(super) fn binding(&self, number: u16, now: Ticks) -> Option<ChannelBinding> {
        self.channels.get(number).filter(|binding| now < binding.expires_at)
    }

    /// The channel that is bound to a peer.
    #[inline]
    pub(super) fn channel_to(&self, peer: PeerAddress, now: Ticks) -> Option<u16> {
        let (number, binding) = self.channels.to(peer)?;
        (now < binding.expires_at).then_some(number)
    }

    /// Whether these addresses, each listed once, fit beside the live permissions.
    pub(super) fn has_room_for_permissions(&mut self, ips: &[IpAddr], max: u32, now: Ticks, secret: u64) -> bool {
        let new = ips.iter().filter(|ip| self.permissions.get(**ip).is_none()).count();
        let max = max as usize;
        if self.permissions.len() + new <= max {
            return true;
        }
        // Over: those whose time is over give their places up. Looked for first, because all is laid out anew then.
        if self.permissions.iter().any(|(_, permission)| permission.expires_at <= now) {
            self.permissions.retain(self.seed(secret), |_, permission| now < permission.expires_at);
        }
        let new = ips.iter().filter(|ip| self.permissions.get(**ip).is_none()).count();
        self.permissions.len() + new <= max
    }

    /// Installs or refreshes a permission for 300 seconds.
    // [8656-9-3]
    pub(super) fn permit(&mut self, ip: IpAddr, class: PeerClass, now: Ticks, secret: u64) {
        let permission = Permission { expires_at: now.plus_seconds(PERMISSION_LIFETIME), class };
        self.permissions.insert(ip, permission, now, self.seed(secret));
        self.packets.settle(now);
    }

    /// Whether one more channel fits beside the live ones.
    pub(super) fn has_room_for_channel(&mut self, number: u16, max: u32, now: Ticks, secret: u64) -> bool {
        let max = max as usize;
        if self.channels.get(number).is_some() || self.channels.len() < max {
            return true;
        }
        if self.channels.iter().any(|(_, binding)| binding.expires_at <= now) {
            self.channels.retain(self.seed(secret), |binding| now < binding.expires_at);
        }
        self.channels.len() < max
    }

    /// Binds or refreshes a channel for 600 seconds, and its peer's permission.
    // [8656-12-3, -4, 8656-12.2-8]
    pub(super) fn bind(&mut self, number: u16, peer: PeerAddress, class: PeerClass, now: Ticks, secret: u64) {
        let binding = ChannelBinding { peer, class, expires_at: now.plus_seconds(CHANNEL_LIFETIME) };
        // Left over from bindings whose time is over: the conflict rules let nothing else pass.
        self.channels.insert(number, binding, now, self.seed(secret));
        self.permit(peer.ip(), class, now, secret);
    }

    /// Keys the indexes of this allocation: clients know the keys that are looked up, and must not know where.
    pub(super) fn seed(&self, secret: u64) -> u64 {
        seed(self.id, secret)
    }

    /// How many permissions and channels it has, dead ones included.
    pub(super) fn reaches(&self) -> usize {
        self.permissions.len() + self.channels.len()
    }

    /// Judges every permission and channel again: `None` closes it.
    pub(super) fn rejudge(&mut self, secret: u64, judge: impl Fn(IpAddr) -> Option<PeerClass>) {
        let seed = self.seed(secret);
        let owner = &self.owner;
        let judge = |ip| owner.narrow(ip, judge(ip)?);
        self.permissions.retain(seed, |ip, permission| match judge(ip) {
            Some(class) => {
                permission.class = class;
                true
            }
            None => false,
        });
        self.channels.retain(seed, |binding| match judge(binding.peer.ip()) {
            Some(class) => {
                binding.class = class;
                true
            }
            None => false,
        });
    }

    /// The next interim record is due on the next multiple of the interval since the start; 0 means never.
    pub(super) fn plan_interim(&mut self, seconds: u32, now: Ticks) {
        let interval = u64::from(seconds) * 1000;
        self.set_interim_at(match now.since(self.created_at).checked_div(interval) {
            Some(past) => Ticks(self.created_at.0 + (past + 1) * interval),
            None => NEVER,
        });
    }

    /// When the next interim record is due; [`NEVER`] without them.
    pub(super) fn interim_at(&self) -> Ticks {
        match self.interim_after {
            0 => NEVER,
            seconds => self.created_at.plus_seconds(u64::from(seconds)),
        }
    }

    /// In whole seconds since the creation, as every interval is; what lies beyond 136 years is never.
    fn set_interim_at(&mut self, at: Ticks) {
        self.interim_after = u32::try_from(at.since(self.created_at).div_ceil(1000)).unwrap_or(0);
    }

    /// When its timer should wake.
    pub(super) fn wakes_at(&self) -> Ticks {
        let of_two = self.additional().and_then(|additional| additional.wakes_at()).unwrap_or(NEVER);
        // What a packet did is told as soon as the loop comes to its deadlines.
        let told = self.mobility().and_then(|mobility| mobility.left).map_or(NEVER, |left| left.at);
        let closing = self.owner.closing().map_or(NEVER, |(at, _)| at).min(told);
        self.expires_at.min(self.interim_at()).min(closing).min(of_two)
    }

    /// Finds out when it ends in any case.
    pub(super) fn plan_close(&mut self, auth: &AuthSettings, now: Now) {
        self.owner.plan_close(auth, self.created_at, now);
    }

    /// What is known of the session, under the next sequence number.
    #[must_use]
    pub(super) fn record(&self, seq: u32, now: Now, reason: Option<EndReason>) -> SessionRecord {
        SessionRecord {
            session: self.session,
            seq,
            unix: now.unix,
            allocation: self.id,
            username: self.owner.username().into(),
            identity: self.owner.identity().into(),
            tenant: self.owner.tenant().map(Into::into),
            realm: self.owner.realm().map(Into::into),
            secret: self.owner.time_limited.as_ref().map(|limit| limit.secret.clone()),
            via: self.via(),
            relayed: self.relayed(),
            created_at: self.created_at,
            ended_at: now.ticks,
            reason,
            traffic: self.traffic(),
            dropped: self.drops(),
            additional: self.additional(),
            is_tcp: self.is_tcp().then_some(true),
        }
    }

    /// The same for good: the next record has the next number.
    pub(super) fn write_record(&mut self, now: Now, reason: Option<EndReason>) -> Box<SessionRecord> {
        self.records += 1;
        Box::new(self.record(self.records - 1, now, reason))
    }

    /// Everything, as plain values that another process can take over.
    #[must_use]
    pub fn to_state(&self) -> AllocationState {
        AllocationState {
            id: self.id,
            via: self.via(),
            relayed: self.relayed(),
            expires_at: self.expires_at,
            traffic: self.traffic(),
            dropped: self.drops(),
            session: self.session,
            records: self.records,
            interim_at: self.interim_at(),
            permissions: self.permissions.iter().collect(),
            channels: self.channels.iter().collect(),
            owner: self.owner.to_state(),
            packets: self.packets.to_state(),
            origin: self.origin(),
            created_at: self.created_at,
            additional: self.additional(),
            mobility: self.mobility().cloned(),
            is_tcp: self.is_tcp().then_some(true),
        }
    }

    /// The allocation that [`Allocation::to_state`] described; `secret` keys its indexes.
    #[must_use]
    pub fn from_state(state: AllocationState, secret: u64) -> Self {
        let seed = seed(state.id, secret);
        let owner = Owner::from_state(state.owner);
        let mut allocation =
            Self::new(state.id, state.session, state.via, state.relayed, owner, state.origin, state.created_at);
        if state.is_tcp == Some(true) {
            allocation.make_tcp();
        }
        allocation.expires_at = state.expires_at;
        allocation.packets = PacketBucket::from_state(state.packets);
        allocation.set_interim_at(state.interim_at);
        allocation.records = state.records;
        if state.additional.is_some() {
            allocation.cold.get_or_insert_default().additional = state.additional;
        }
        if let Some(mobility) = state.mobility {
            allocation.cold.get_or_insert_default().mobility = Some(Box::new(mobility));
        }
        allocation.armed_at = allocation.wakes_at();
        let Traffic { to_peers, to_client } = state.traffic;
        allocation.received = [to_peers.received, to_client.received];
        let dropped = [to_peers.dropped, to_client.dropped];
        if dropped != <[Amount; 2]>::default() || !state.dropped.is_empty() {
            allocation.cold.get_or_insert_default().set(dropped, &state.dropped);
        }
        for (ip, permission) in state.permissions {
            allocation.permissions.insert(ip, permission, Ticks(0), seed);
        }
        for (number, binding) in state.channels {
            allocation.channels.insert(number, binding, Ticks(0), seed);
        }
        allocation
    }

    pub(super) fn check_invariants(&self) {
        for (number, binding) in self.channels.iter() {
            assert_eq!(self.channels.get(number), Some(binding), "a channel is found by its number");
            assert_eq!(self.channels.to(binding.peer), Some((number, binding)), "one channel per peer, found by it");
        }
        for (ip, permission) in self.permissions.iter() {
            assert_eq!(self.permissions.get(ip), Some(permission), "a permission is found by its address");
        }
    }
}

/// Keys the indexes of one allocation: `secret` is the worker's own, and differs between allocations.
const fn seed(id: AllocationId, secret: u64) -> u64 {
    secret ^ ((id.generation as u64) << 32 | id.index as u64)
}

/// An [`Allocation`] as plain values.
#[derive(Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct AllocationState {
    /// Slot and generation.
    #[n(0)]
    pub id: AllocationId,
    /// How the client comes.
    #[n(1)]
    pub via: Via,
    /// The relayed address, advertised form.
    #[n(2)]
    pub relayed: RelayedTransportAddress,
    /// End of its lifetime.
    #[n(3)]
    pub expires_at: Ticks,
    /// Counters.
    #[n(4)]
    pub traffic: Traffic,
    /// What was dropped, by reason.
    #[n(5)]
    pub dropped: Box<[(DropReason, Amount)]>,
    /// The session's name.
    #[n(6)]
    pub session: SessionId,
    /// Records written so far.
    #[n(7)]
    pub records: u32,
    /// When the next interim record is due.
    #[n(8)]
    pub interim_at: Ticks,
    /// Permissions by address.
    #[n(9)]
    pub permissions: Vec<(IpAddr, Permission)>,
    /// Channels by number.
    #[n(10)]
    pub channels: Vec<(u16, ChannelBinding)>,
    /// Whose it is.
    #[n(11)]
    pub owner: OwnerState,
    /// Its buckets of packets, each way.
    #[n(12)]
    pub packets: [u32; 2],
    /// The request that made it.
    #[n(13)]
    pub origin: Origin,
    /// When it was made.
    #[n(14)]
    pub created_at: Ticks,
    /// The second relayed address, if there is or was one.
    #[n(15)]
    pub additional: Option<AdditionalAddress>,
    /// Its client may change its network.
    #[n(16)]
    pub mobility: Option<Mobility>,
    /// Whether it is a TCP allocation, if it is.
    #[n(17)]
    pub is_tcp: Option<bool>,
}

impl AllocationState {
    /// Its sockets and what they are bound to: its own, and the second one if it has one.
    pub fn sockets(&self) -> impl Iterator<Item = (AllocationId, RelayedTransportAddress)> + use<> {
        let second = self.additional.and_then(|additional| additional.open_socket());
        std::iter::once((self.id, self.relayed)).chain(second)
    }

    /// Whether it needs a release that knows second relayed addresses.
    #[must_use]
    pub const fn is_dual(&self) -> bool {
        self.additional.is_some()
    }

    /// Whether it needs a release that knows TCP allocations.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.is_tcp == Some(true)
    }

    /// Its second socket is not there: the allocation goes on with its own one.
    pub fn lose_second_socket(&mut self) {
        if let Some(additional) = &mut self.additional
            && additional.socket.take().is_some()
        {
            self.expires_at = additional.own_expires_at;
            let family = additional.relayed.family();
            self.permissions.retain(|(ip, _)| Family::of(*ip) != family);
            self.channels.retain(|(_, binding)| binding.peer.family() != family);
        }
    }
}

impl std::fmt::Debug for AllocationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllocationState").field("id", &self.id).field("relayed", &self.relayed).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::address::{ClientAddress, FiveTuple, ServerAddress, Transport};
    use crate::protocol::owner::TimeLimit;
    use crate::wire::integrity::IntegrityKey;

    fn peer(port: u16) -> PeerAddress {
        PeerAddress::new([8, 8, 8, 8].into(), port)
    }

    pub(in crate::protocol) fn allocation() -> Allocation {
        let five_tuple = FiveTuple {
            client: ClientAddress::new([9, 9, 9, 9].into(), 1),
            server: ServerAddress::new([9, 9, 9, 8].into(), 3478),
            transport: Transport::Udp,
        };
        Allocation::new(
            AllocationId { index: 3, generation: 4 },
            SessionId { instance: 5, number: 6 },
            Via::Datagram(five_tuple),
            RelayedTransportAddress::new([7, 7, 7, 7].into(), 50_000),
            Owner::new(
                "99:bob",
                "bob",
                IntegrityKey::from_md5([5; 16]),
                Some(TimeLimit { secret: "s".into(), expires_at: 99 }),
                Some(Box::new(Terms { tenant: Some("acme".into()), ..Terms::default() })),
            ),
            Origin { transaction_id: TransactionId([1; 12]), lifetime: 600, token: None, refused: None },
            Ticks(1000),
        )
    }

    #[test]
    fn state_round_trips_through_plain_values() {
        let mut allocation = allocation();
        for port in 1..20 {
            allocation.bind(0x4000 + port, peer(port), PeerClass::Remote, Ticks(2000), 5);
        }
        allocation.permit([1, 1, 1, 1].into(), PeerClass::Own, Ticks(5), 5);
        allocation.offered(Direction::ToPeer, 77);
        allocation.not_sent(&mut ColdStatePool::default(), Direction::ToPeer, DropReason::NoPermission, 1, 9);
        allocation.plan_interim(60, Ticks(1000));
        allocation.write_record(Now { ticks: Ticks(1), unix: crate::time::UnixSeconds(1) }, None);
        let state = allocation.to_state();
        let bytes = minicbor::to_vec(&state).unwrap();
        let read: AllocationState = minicbor::decode(&bytes).unwrap();
        let back = Allocation::from_state(read, 9);
        assert_eq!(back.to_state(), state);
        assert_eq!(back.channel_to(peer(7), Ticks(3000)), Some(0x4007));
        back.check_invariants();
    }

    #[test]
    fn permissions_and_channels_end_at_their_time_and_not_before() {
        let mut allocation = allocation();
        allocation.bind(0x4001, peer(1), PeerClass::Remote, Ticks(0), 5);
        assert!(allocation.permission(peer(9).ip(), Ticks(299_999)).is_some());
        assert!(allocation.permission(peer(9).ip(), Ticks(300_000)).is_none());
        assert!(allocation.binding(0x4001, Ticks(599_999)).is_some());
        assert!(allocation.binding(0x4001, Ticks(600_000)).is_none());
        assert_eq!(allocation.channel_to(peer(1), Ticks(600_000)), None);
    }

    #[test]
    fn an_expired_channel_may_be_bound_anew() {
        let mut allocation = allocation();
        allocation.bind(0x4001, peer(1), PeerClass::Remote, Ticks(0), 5);
        let later = Ticks(700_000);
        allocation.bind(0x4001, peer(2), PeerClass::Remote, later, 5);
        allocation.check_invariants();
        assert_eq!(allocation.channel_to(peer(2), later), Some(0x4001));
        assert_eq!(allocation.channel_to(peer(1), later), None);
        allocation.bind(0x4002, peer(1), PeerClass::Remote, later, 5);
        allocation.check_invariants();
        assert_eq!(allocation.channel_to(peer(1), later), Some(0x4002));
    }

    #[test]
    fn limits_count_live_entries_only() {
        let mut allocation = allocation();
        let ips: Vec<IpAddr> = (1..=4).map(|n| [10, 0, 0, n].into()).collect();
        assert!(allocation.has_room_for_permissions(&ips, 4, Ticks(0), 5));
        assert!(!allocation.has_room_for_permissions(&ips, 3, Ticks(0), 5));
        for ip in &ips {
            allocation.permit(*ip, PeerClass::Remote, Ticks(0), 5);
        }
        let other: [IpAddr; 1] = [[10, 0, 0, 9].into()];
        assert!(allocation.has_room_for_permissions(&ips, 4, Ticks(1), 5), "a refresh needs no room");
        assert!(!allocation.has_room_for_permissions(&other, 4, Ticks(1), 5));
        assert!(allocation.has_room_for_permissions(&other, 4, Ticks(300_000), 5), "the old ones are over");
    }

    // Without a limit of permissions those that are over must leave by themselves.
    #[test]
    fn what_is_over_leaves_where_nothing_limits_how_many_there_are() {
        let mut allocation = allocation();
        let mut most = 0;
        for number in 0..100_000_u32 {
            // 3,000 live at a time.
            let now = Ticks(u64::from(number) * 100);
            allocation.permit(std::net::Ipv4Addr::from(0x0900_0000 + number).into(), PeerClass::Remote, now, 5);
            most = most.max(allocation.permissions.len());
        }
        assert!(most < 6_500, "{most}");
        allocation.check_invariants();
        let now = Ticks(9_999_900);
        let live = (0..100_000_u32)
            .filter(|number| {
                let ip = std::net::Ipv4Addr::from(0x0900_0000 + number).into();
                allocation.permission(ip, now).is_some()
            })
            .count();
        assert_eq!(live, 3_000);
    }

    // Two workers, or two runs, lay out the same addresses differently: who knows one knows nothing of the other.
    #[test]
    fn indexes_are_keyed_by_a_secret() {
        let id = AllocationId { index: 3, generation: 4 };
        assert_ne!(seed(id, 1), seed(id, 2));
        assert_ne!(seed(id, 1), seed(AllocationId { index: 4, generation: 4 }, 1));
    }
}
