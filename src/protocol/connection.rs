//! Connections to the peers of TCP allocations (RFC 6062): which there are, and how far each has come.
//!
//! They stand beside the allocations, which are as large as they may be, and of which few have any. Decision 0209.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};

use super::ids::{AllocationId, WorkerId};
use super::random::Random;
use crate::address::PeerAddress;
use crate::time::Ticks;
use crate::wire::attribute::ConnectionId;
use crate::wire::integrity::{IntegrityKey, ReplyIntegrity};
use crate::wire::message::TransactionId;

/// How long a peer may take to accept, in seconds (RFC 6062 section 5.2: at least 30).
// [6062-5.2-8]
pub(super) const CONNECT_SECONDS: u64 = 30;

/// How long a connection waits for its ConnectionBind, in seconds (RFC 6062 sections 5.2 and 5.3).
// [6062-5.2-11, 6062-5.3-5]
pub(super) const BIND_SECONDS: u64 = 30;

/// How often an id that is free is looked for.
const DRAWS: usize = 64;

/// The key of a Connect request, which its answer is signed with: the owner may have another one, by the other algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ConnectKey {
    /// An MD5 one.
    #[n(0)]
    Md5(#[n(0)] ByteArray<16>),
    /// A SHA-256 one.
    #[n(1)]
    Sha256(#[n(0)] ByteArray<32>),
}

impl From<&IntegrityKey> for ConnectKey {
    fn from(key: &IntegrityKey) -> Self {
        match key {
            IntegrityKey::Md5(key) => Self::Md5((*key.expose()).into()),
            IntegrityKey::Sha256(key) => Self::Sha256((*key.expose()).into()),
        }
    }
}

impl From<ConnectKey> for IntegrityKey {
    fn from(key: ConnectKey) -> Self {
        match key {
            ConnectKey::Md5(key) => Self::from_md5(key.into()),
            ConnectKey::Sha256(key) => Self::from_sha256(key.into()),
        }
    }
}

impl std::fmt::Debug for ConnectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConnectKey(..)")
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum ConnectionStage {
    /// The peer has not accepted yet; the client waits for the answer to its Connect.
    #[n(0)]
    Connecting {
        /// Of the Connect request.
        #[n(0)]
        transaction_id: TransactionId,
        /// Whether the answer ends with FINGERPRINT.
        #[n(1)]
        fingerprint: bool,
        /// How the answer is signed.
        #[n(2)]
        integrity: ReplyIntegrity,
        /// When the client hears that it took too long.
        #[n(3)]
        overdue_at: Ticks,
        /// What the answer is signed with.
        #[n(4)]
        key: ConnectKey,
    },
    /// It is there, and waits for the client's ConnectionBind.
    #[n(1)]
    Waiting {
        /// When it is closed.
        #[n(0)]
        overdue_at: Ticks,
    },
    /// It carries what the client and the peer send.
    #[n(2)]
    Bound,
}

impl ConnectionStage {
    /// When its time is over, unless it is bound.
    #[must_use]
    pub const fn overdue_at(self) -> Option<Ticks> {
        match self {
            Self::Connecting { overdue_at, .. } | Self::Waiting { overdue_at } => Some(overdue_at),
            Self::Bound => None,
        }
    }
}

/// A connection between a relayed address and a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PeerConnection {
    /// Its name.
    #[n(0)]
    pub id: ConnectionId,
    /// Whose relayed address it leaves from or came to.
    #[n(1)]
    pub allocation: AllocationId,
    /// The peer, in advertised form.
    #[n(2)]
    pub peer: PeerAddress,
    /// How far it has come.
    #[n(3)]
    pub stage: ConnectionStage,
    /// The peer made it; else the client had it made.
    #[n(4)]
    pub is_from_peer: Option<bool>,
}

/// What became of connections, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum ConnectionResult {
    /// A peer accepted.
    Connected,
    /// A peer did not accept, or not in time.
    Failed,
    /// A peer came.
    Accepted,
    /// A peer came that has no permission, or whose address and port has a connection already: one that a Connect has begun.
    NotPermitted,
    /// A peer came, and the allocation has as many connections as it may.
    Limit,
    /// A client bound its connection.
    Bound,
    /// No client did in time.
    Unbound,
    /// It ended: a side closed it, or its allocation ended.
    Ended,
}

impl ConnectionResult {
    /// Every result, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Connected,
        Self::Failed,
        Self::Accepted,
        Self::NotPermitted,
        Self::Limit,
        Self::Bound,
        Self::Unbound,
        Self::Ended,
    ];

    /// The label of the counter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Failed => "failed",
            Self::Accepted => "accepted",
            Self::NotPermitted => "not_permitted",
            Self::Limit => "limit",
            Self::Bound => "bound",
            Self::Unbound => "unbound",
            Self::Ended => "ended",
        }
    }
}

/// The worker that a connection lives at.
#[must_use]
pub const fn worker_of(id: ConnectionId) -> WorkerId {
    WorkerId((id.0 >> 24) as u8)
}

/// All of one worker's, by id and by peer. Ordered, so that no client chooses where an entry lies.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_id: BTreeMap<ConnectionId, PeerConnection>,
    by_peer: BTreeMap<(AllocationId, PeerAddress), ConnectionId>,
}

impl Connections {
    /// An id whose first byte names the worker, and that no live connection has; the rest can't be guessed. `None` if chance
    /// gave none, as it does where millions are taken.
    // [6062-5.2-10]
    pub(super) fn fresh_id(&self, worker: WorkerId, random: &mut Random) -> Option<ConnectionId> {
        let mut draw = || ConnectionId(u32::from(worker.0) << 24 | random.next_u64() as u32 >> 8);
        (0..DRAWS).map(|_| draw()).find(|id| !self.by_id.contains_key(id))
    }

    /// `false` if its id or its peer has one already: nothing changed then.
    pub(super) fn insert(&mut self, connection: PeerConnection) -> bool {
        let of = (connection.allocation, connection.peer);
        if self.by_id.contains_key(&connection.id) || self.by_peer.contains_key(&of) {
            return false;
        }
        self.by_id.insert(connection.id, connection);
        self.by_peer.insert(of, connection.id);
        true
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&PeerConnection> {
        self.by_id.get(&id)
    }

    pub(super) fn set_stage(&mut self, id: ConnectionId, stage: ConnectionStage) {
        if let Some(connection) = self.by_id.get_mut(&id) {
            connection.stage = stage;
        }
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<PeerConnection> {
        let connection = self.by_id.remove(&id)?;
        self.by_peer.remove(&(connection.allocation, connection.peer));
        Some(connection)
    }

    /// Whether an allocation has one to this peer, bound or not.
    pub(super) fn has(&self, allocation: AllocationId, peer: PeerAddress) -> bool {
        self.by_peer.contains_key(&(allocation, peer))
    }

    /// Those of one allocation, in the order of their peers.
    pub(super) fn of(&self, allocation: AllocationId) -> impl Iterator<Item = (PeerAddress, ConnectionId)> {
        let first = PeerAddress::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let from = self.by_peer.range((allocation, first)..);
        from.take_while(move |((of, _), _)| *of == allocation).map(|((_, peer), id)| (*peer, *id))
    }

    /// Whether an allocation has as many as it may; nothing is counted beyond that.
    pub(super) fn is_full(&self, allocation: AllocationId, max: u32) -> bool {
        self.of(allocation).take(max as usize).count() >= max as usize
    }

    /// Every one, in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = &PeerConnection> {
        self.by_id.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Those that wait for something, each of which has a deadline.
    pub(super) fn waiting(&self) -> usize {
        self.by_id.values().filter(|connection| connection.stage != ConnectionStage::Bound).count()
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.by_id.len(), self.by_peer.len(), "one entry by peer for each connection");
        for (id, connection) in &self.by_id {
            assert_eq!(*id, connection.id, "a connection is found by its id");
            assert_eq!(self.by_peer.get(&(connection.allocation, connection.peer)), Some(id), "and by its peer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: AllocationId = AllocationId { index: 3, generation: 1 };

    fn connection(id: u32, allocation: AllocationId, peer: &str) -> PeerConnection {
        let peer: std::net::SocketAddr = peer.parse().unwrap();
        let stage = ConnectionStage::Waiting { overdue_at: Ticks(5) };
        PeerConnection { id: ConnectionId(id), allocation, peer: peer.into(), stage, is_from_peer: None }
    }

    #[test]
    fn one_connection_to_a_peer_and_each_allocation_finds_its_own() {
        let mut connections = Connections::default();
        let other = AllocationId { index: 3, generation: 2 };
        assert!(connections.insert(connection(1, OF, "9.9.9.9:80")));
        assert!(connections.insert(connection(2, OF, "[2a00::1]:80")));
        assert!(connections.insert(connection(3, OF, "0.0.0.0:1")));
        assert!(connections.insert(connection(4, other, "9.9.9.9:80")));
        assert!(!connections.insert(connection(5, OF, "9.9.9.9:80")), "the peer has one");
        assert!(!connections.insert(connection(1, OF, "9.9.9.9:81")), "the id is taken");
        assert_eq!(connections.of(OF).map(|(_, id)| id.0).collect::<Vec<_>>(), [3, 1, 2]);
        assert_eq!(connections.of(other).map(|(_, id)| id.0).collect::<Vec<_>>(), [4]);
        assert!(connections.is_full(OF, 3) && !connections.is_full(OF, 4) && connections.is_full(other, 0));
        connections.check_invariants();
        assert!(connections.remove(ConnectionId(1)).is_some() && connections.remove(ConnectionId(1)).is_none());
        assert!(!connections.has(OF, connection(1, OF, "9.9.9.9:80").peer));
        connections.check_invariants();
    }

    // [6062-5.2-10]
    #[test]
    fn an_id_names_its_worker_and_is_no_other_ones() {
        let (mut connections, mut random) = (Connections::default(), Random::new([1; 32]));
        for port in 1..2_000 {
            let id = connections.fresh_id(WorkerId(7), &mut random).unwrap();
            assert_eq!(worker_of(id), WorkerId(7));
            assert!(connections.insert(connection(id.0, OF, &format!("9.9.9.9:{port}"))));
        }
        assert_eq!(worker_of(ConnectionId(0xFE12_3456)), WorkerId(0xFE));
    }
}
