//! Connect, ConnectionBind and ConnectionAttempt, and what bound connections carry (RFC 6062).
//!
//! All of an allocation's connections live at its worker; a client's stream that brings ConnectionBind elsewhere moves there
//! first (`net::worker`), so nothing here spans workers. The shell has the sockets. Decision 0209.

use super::Server;
use super::allocation::Allocation;
use super::auth::{Authenticated, Client};
use super::border::{Carry, ConnectRefused, InHand, Output};
use super::connection::{
    BIND_SECONDS, CONNECT_SECONDS, ConnectKey, ConnectionResult, ConnectionStage, PeerConnection, worker_of,
};
use super::ids::{AllocationId, WorkerId};
use super::peer_policy::PeerClass;
use super::reason::{Direction, DropReason};
use super::reject::RejectReason;
use super::timer::Due;
use crate::address::{Family, PeerAddress, Via};
use crate::fault;
use crate::time::Now;
use crate::wire::attribute::{ATTR_CONNECTION_ID, ConnectionId};
use crate::wire::integrity::ReplyKey;
use crate::wire::message::{CLASS_REQUEST, METHOD_CONNECT, METHOD_CONNECTION_BIND, Message, TransactionId};

use super::accounting::wire_bytes;

/// The first port that any program may serve.
const LOW_PORTS_END: u16 = 1024;

/// The worker whose connection a ConnectionBind names; `None` for any other message. Nothing of it is proven.
#[must_use]
pub fn bound_at(bytes: &[u8]) -> Option<WorkerId> {
    let message = Message::parse(bytes).ok()?;
    let message_type = message.message_type();
    let is_bind = message_type.method == METHOD_CONNECTION_BIND && message_type.class == CLASS_REQUEST;
    message.connection_id().ok().flatten().filter(|_| is_bind).map(worker_of)
}

impl Server {
    /// RFC 6062 section 5.2. [6062-5.2-6]
    pub(super) fn on_connect(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        match self.check_connect(now, &via, request) {
            Ok(connection) => {
                let PeerConnection { id, allocation, peer, stage, .. } = connection;
                let Some(relayed) = self.table.get(allocation).map(|allocation| allocation.relayed()) else { return };
                self.keep(connection);
                stage.overdue_at().into_iter().for_each(|at| self.timers.arm(at, Due::Connection(id)));
                self.outputs.push_back(Output::Connect { connection: id, allocation, relayed, peer });
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    fn keep(&mut self, connection: PeerConnection) {
        let is_new = self.connections.insert(connection);
        debug_assert!(is_new, "it was looked whether there is one");
    }

    // [6062-5.2-1, -2, -3, -4, -5]
    fn check_connect(
        &mut self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
    ) -> Result<PeerConnection, RejectReason> {
        let allocation = self.check_owner(now, via, request)?;
        let message = request.message();
        if !self.table.get(allocation).is_some_and(|allocation| allocation.is_tcp()) {
            return Err(RejectReason::NotTcpAllocation);
        }
        let peer = message.peer().map_err(|_| RejectReason::BadAttribute)?.ok_or(RejectReason::MissingAttribute)?;
        if self.connections.has(allocation, peer) {
            return Err(RejectReason::ConnectionExists);
        }
        self.check_peer_family(allocation, peer)?;
        self.check_connection_peer(allocation, peer)?;
        self.check_expiry(now, allocation, peer.ip())?;
        if self.connections.is_full(allocation, self.settings.limits.connections_per_allocation) {
            return Err(RejectReason::ConnectionLimit);
        }
        let id = self.connections.fresh_id(self.worker, &mut self.random).ok_or(RejectReason::ConnectionLimit)?;
        let stage = ConnectionStage::Connecting {
            transaction_id: message.transaction_id(),
            fingerprint: self.mirrors_fingerprint(message),
            integrity: request.key().integrity,
            overdue_at: now.ticks.plus_seconds(CONNECT_SECONDS),
            key: ConnectKey::from(&request.key().key),
        };
        Ok(PeerConnection { id, allocation, peer, stage, is_from_peer: None })
    }

    /// 403 for a peer that no connection is made to: what the policy denies or the credential leaves out, a port that may not
    /// be reached, and of this machine's own addresses all but relayed ones of TCP.
    fn check_connection_peer(&self, allocation: AllocationId, peer: PeerAddress) -> Result<(), RejectReason> {
        let class = self.check_peer_policy(allocation, peer)?;
        let is_own_relayed = self.shared.is_relayed_tcp(peer);
        if peer.port() == 0 {
            return Err(RejectReason::PeerPort);
        }
        if self.is_low_port(peer) && !is_own_relayed {
            return Err(RejectReason::PeerLowPort);
        }
        let is_itself = self.table.get(allocation).is_some_and(|allocation| allocation.relayed().0 == peer.0);
        match class {
            _ if is_itself => Err(RejectReason::PeerNotRelayed),
            PeerClass::Remote => Ok(()),
            PeerClass::Own if is_own_relayed => Ok(()),
            PeerClass::Own => Err(RejectReason::PeerNotRelayed),
            PeerClass::Local if self.settings.peers.is_listener(peer) => Err(RejectReason::PeerIsListener),
            PeerClass::Local => Ok(()),
        }
    }

    /// Whether no client may have a connection made to this port, because services are there.
    fn is_low_port(&self, peer: PeerAddress) -> bool {
        peer.port() < LOW_PORTS_END && !self.settings.tcp.low_ports
    }

    /// The shell has tried. [6062-5.2-7, -9]
    pub(super) fn on_connected(&mut self, now: Now, id: ConnectionId, result: Result<(), ConnectRefused>) {
        let Some(connection) = self.connections.get(id).copied() else { return };
        match result {
            Ok(()) => {
                let overdue_at = now.ticks.plus_seconds(BIND_SECONDS);
                self.disarm(&connection);
                self.connections.set_stage(id, ConnectionStage::Waiting { overdue_at });
                self.timers.arm(overdue_at, Due::Connection(id));
                self.counters.connection(ConnectionResult::Connected);
                self.answer_connect(&connection, None);
            }
            Err(refused) => {
                self.forget_connection(id);
                self.counters.connection(ConnectionResult::Failed);
                self.answer_connect(
                    &connection,
                    Some(match refused {
                        ConnectRefused::Failed => RejectReason::ConnectionFailed,
                        ConnectRefused::NoFiles => RejectReason::NoFiles,
                    }),
                );
            }
        }
    }

    /// Tells the client what became of its Connect: its CONNECTION-ID, or why there is none.
    fn answer_connect(&mut self, connection: &PeerConnection, refused: Option<RejectReason>) {
        let ConnectionStage::Connecting { transaction_id, fingerprint, integrity, key, .. } = connection.stage else {
            return;
        };
        let Some(via) = self.table.get(connection.allocation).map(Allocation::via) else { return };
        let key = ReplyKey { key: key.into(), integrity };
        let head: (_, TransactionId) = (METHOD_CONNECT, transaction_id);
        match refused {
            None => {
                self.counters.succeeded(METHOD_CONNECT);
                let id = connection.id.0.to_be_bytes();
                self.reply_success_to(via, head, fingerprint, &key, &[(ATTR_CONNECTION_ID, &id)]);
            }
            Some(reason) => {
                self.counters.rejected(reason);
                self.reply_error(via, head, fingerprint, reason, &[], Some(&key));
            }
        }
    }

    /// A peer has connected to a relayed address of TCP (RFC 6062 section 5.3): what the connection is known by, or `None` if it
    /// is to be closed. Drain [`Server::poll_output`] afterwards.
    // [6062-5.3-1, -3, -4]
    pub fn accept_peer(&mut self, now: Now, on: AllocationId, peer: PeerAddress) -> Option<ConnectionId> {
        // As with every input: what is over has no place any more.
        self.end_what_is_due(now);
        self.in_hand = InHand::DataFromPeer(on);
        let accepted = self.judge_peer(now, on, peer);
        match accepted {
            Ok(id) => {
                let overdue_at = now.ticks.plus_seconds(BIND_SECONDS);
                let stage = ConnectionStage::Waiting { overdue_at };
                self.keep(PeerConnection { id, allocation: on, peer, stage, is_from_peer: Some(true) });
                self.timers.arm(overdue_at, Due::Connection(id));
                self.counters.connection(ConnectionResult::Accepted);
                if let Some(via) = self.table.get(on).map(|allocation| allocation.via()) {
                    self.tell_attempt(via, id, peer);
                }
            }
            Err(why) => self.counters.connection(why),
        }
        self.in_hand = InHand::Nothing;
        accepted.ok()
    }

    fn judge_peer(&mut self, now: Now, on: AllocationId, peer: PeerAddress) -> Result<ConnectionId, ConnectionResult> {
        let allocation =
            self.table.get(on).filter(|allocation| now.ticks < allocation.expires_at && allocation.is_tcp());
        let permission = allocation.and_then(|allocation| allocation.permission(peer.ip(), now.ticks));
        let may = match permission.map(|permission| permission.class) {
            None => false,
            Some(PeerClass::Own) => self.shared.is_relayed_tcp(peer),
            Some(PeerClass::Remote | PeerClass::Local) => true,
        };
        // To this very address and port there can't be two, but one that is just being begun.
        if !may || self.connections.has(on, peer) {
            return Err(ConnectionResult::NotPermitted);
        }
        if self.connections.is_full(on, self.settings.limits.connections_per_allocation) {
            return Err(ConnectionResult::Limit);
        }
        self.connections.fresh_id(self.worker, &mut self.random).ok_or(ConnectionResult::Limit)
    }

    /// RFC 6062 section 5.4. [6062-5.4-1, -2]
    pub(super) fn on_connection_bind(&mut self, now: Now, via: Via, request: &Authenticated<'_>) {
        match self.check_connection_bind(now, &via, request) {
            Ok(connection) => {
                self.disarm(&connection);
                self.connections.set_stage(connection.id, ConnectionStage::Bound);
                self.counters.connection(ConnectionResult::Bound);
                let id = connection.id.0.to_be_bytes();
                self.reply_success(via, request, &[(ATTR_CONNECTION_ID, &id)]);
                self.outputs.push_back(Output::BindConnection { connection: connection.id, via });
            }
            Err(reason) => self.reject(via, request.message(), reason, Some(request.key())),
        }
    }

    fn check_connection_bind(
        &self,
        now: Now,
        via: &Via,
        request: &Authenticated<'_>,
    ) -> Result<PeerConnection, RejectReason> {
        if !via.is_stream() {
            return Err(RejectReason::NotStream);
        }
        // Or it had one, at the worker to which its stream came.
        if self.has_allocation(via) || self.asker.is_some() {
            return Err(RejectReason::AllocationExists);
        }
        let id = request.message().connection_id().map_err(|_| RejectReason::BadAttribute)?;
        let connection = self.waiting_connection(now, id.ok_or(RejectReason::MissingAttribute)?);
        // Of another user it is as if it were not there.
        connection.filter(|_| request.is_owner()).ok_or(RejectReason::BadConnection)
    }

    fn waiting_connection(&self, now: Now, id: ConnectionId) -> Option<PeerConnection> {
        let is_waiting = |connection: &&PeerConnection| match connection.stage {
            ConnectionStage::Waiting { overdue_at } => now.ticks < overdue_at,
            ConnectionStage::Connecting { .. } | ConnectionStage::Bound => false,
        };
        self.connections.get(id).filter(is_waiting).copied()
    }

    /// Who sends a request, and the allocation that it is about: of the connection that it binds, of its way, or of its ticket.
    pub(super) fn client_of<'a>(&'a self, now: Now, via: &'a Via, message: &Message<'_>) -> Client<'a> {
        let to_bind = self.allocation_to_bind(now, via, message).and_then(|id| self.table.get(id));
        let allocation = to_bind.or_else(|| self.table.by_path(via)).or_else(|| self.of_ticket(message));
        Client { via, allocation, nonce_of: to_bind.map(Allocation::via) }
    }

    /// The allocation of the connection that a ConnectionBind over a stream of its own names: its owner is who may bind it, and
    /// the nonce of its client is as good as one of this stream.
    fn allocation_to_bind(&self, now: Now, via: &Via, message: &Message<'_>) -> Option<AllocationId> {
        if message.message_type().method != METHOD_CONNECTION_BIND || !via.is_stream() || self.has_allocation(via) {
            return None;
        }
        let id = message.connection_id().ok().flatten()?;
        self.waiting_connection(now, id).map(|connection| connection.allocation)
    }

    /// Judges bytes that came over a bound connection; the sockets are full of more. What may be sent counts as sent, and
    /// [`Server::not_sent`] takes back what was not, under the id of the allocation that this gives. Where there is no such
    /// connection, that is an id that no allocation has.
    // [6062-5.4-3, -4]
    pub fn carry(
        &mut self,
        now: Now,
        connection: ConnectionId,
        direction: Direction,
        payload: &[u8],
    ) -> (Carry, AllocationId) {
        const NONE: AllocationId = AllocationId { index: u32::MAX, generation: 0 };
        let bytes = payload.len();
        let Some(PeerConnection { allocation: id, peer, .. }) = self.connections.get(connection).copied() else {
            return (Carry::Stop, NONE);
        };
        self.in_hand = InHand::DataFromPeer(id);
        fault::at("connection", payload);
        let Some(allocation) = self.table.lane_mut(id).filter(|allocation| now.ticks < allocation.expires_at) else {
            return (Carry::Stop, id);
        };
        let family: Family = match direction {
            Direction::ToPeer => peer.family(),
            Direction::ToClient => allocation.client_family(),
        };
        let meters = allocation.owner.terms.as_ref().map(|terms| &terms.meters).filter(|meters| !meters.is_empty());
        let charged =
            meters.map_or(Ok(()), |meters| meters.charge(now, direction, wire_bytes(family, 1, bytes as u64)));
        match charged {
            Ok(()) => {
                allocation.offered(direction, bytes);
                self.counters.received(direction, bytes);
                self.counters.sent(direction, bytes);
                (Carry::Send, id)
            }
            Err(DropReason::OverBudget) => {
                allocation.offered(direction, bytes);
                allocation.not_sent(&mut self.cold_pool, direction, DropReason::OverBudget, 1, bytes as u64);
                self.counters.received(direction, bytes);
                self.counters.dropped(DropReason::OverBudget, 1, bytes as u64);
                self.end_for_budget(now, id);
                (Carry::Stop, id)
            }
            Err(_) => (Carry::Wait, id),
        }
    }

    /// A connection's time is over.
    pub(super) fn on_connection_overdue(&mut self, id: ConnectionId) {
        let Some(connection) = self.forget_connection(id) else { return };
        match connection.stage {
            ConnectionStage::Connecting { .. } => {
                self.counters.connection(ConnectionResult::Failed);
                self.answer_connect(&connection, Some(RejectReason::ConnectionFailed));
            }
            ConnectionStage::Waiting { .. } | ConnectionStage::Bound => {
                self.counters.connection(ConnectionResult::Unbound);
            }
        }
        self.outputs.push_back(Output::CloseConnection { connection: id });
    }

    /// The shell has closed both ends.
    pub(super) fn on_connection_ended(&mut self, id: ConnectionId) {
        if self.forget_connection(id).is_some() {
            self.counters.connection(ConnectionResult::Ended);
        }
    }

    /// Closes all connections of an allocation. [6062-5.5-1]
    pub(super) fn close_connections(&mut self, allocation: AllocationId) {
        let ids: Vec<ConnectionId> = self.connections.of(allocation).map(|(_, id)| id).collect();
        for id in ids {
            self.close_connection(id);
        }
    }

    fn close_connection(&mut self, id: ConnectionId) {
        if self.forget_connection(id).is_some() {
            self.counters.connection(ConnectionResult::Ended);
            self.outputs.push_back(Output::CloseConnection { connection: id });
        }
    }

    /// Judges the connections of an allocation again, and closes those that may not be any more; how many there were.
    pub(super) fn rejudge_connections(&mut self, allocation: AllocationId) -> usize {
        let of: Vec<(PeerAddress, ConnectionId)> = self.connections.of(allocation).collect();
        for (peer, id) in &of {
            // Whether the other end is a relayed address is its own affair once it is there.
            let class = self.check_peer_policy(allocation, *peer);
            // No client may reach services so; from which port a peer came is its own affair.
            let is_from_peer = |of: &PeerConnection| of.is_from_peer == Some(true);
            let is_low = self.is_low_port(*peer) && !self.connections.get(*id).is_some_and(is_from_peer);
            if class.is_err() || (is_low && class != Ok(PeerClass::Own)) {
                self.close_connection(*id);
            }
        }
        of.len()
    }

    /// Takes a connection out, and its deadline.
    pub(super) fn forget_connection(&mut self, id: ConnectionId) -> Option<PeerConnection> {
        let connection = self.connections.remove(id)?;
        self.disarm(&connection);
        Some(connection)
    }

    fn disarm(&mut self, connection: &PeerConnection) {
        let due = Due::Connection(connection.id);
        connection.stage.overdue_at().into_iter().for_each(|at| self.timers.disarm(at, due));
    }

    /// Every connection to a peer, and whose it is.
    pub fn connections(&self) -> impl Iterator<Item = &PeerConnection> {
        self.connections.iter()
    }
}
