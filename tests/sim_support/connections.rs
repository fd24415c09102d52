//! Connections to the peers of TCP allocations (RFC 6062): what becomes of each, and what it carries.

use std::rc::Rc;

use throughway::address::{Family, PeerAddress, Via};
use throughway::protocol::border::{Carry, ConnectRefused, Input};
use throughway::protocol::connect::bound_at;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::wire::attribute::ConnectionId;
use throughway::wire::message::{CLASS_INDICATION, Known, METHOD_CONNECT, METHOD_CONNECTION_ATTEMPT, Message};

use super::config::{Class, Config, LISTEN_PORT};
use super::model::{Key, Lane, Model, Outcome, Session};
use super::packet::{Request, What};
use super::world::{Due, Out, Packet, World, trace};

/// How far a connection has come.
pub enum Stage {
    /// The answer to this request is due.
    Connecting(Rc<Request>),
    Waiting,
    Bound,
}

pub struct Connection {
    pub peer: PeerAddress,
    pub stage: Stage,
    /// When its time is over, unless it is bound.
    pub until: u64,
}

impl Connection {
    /// What is overdue is gone when the next input is handled.
    fn is_live(&self, now: u64) -> bool {
        matches!(self.stage, Stage::Bound) || now < self.until
    }

    fn is_waiting(&self, now: u64) -> bool {
        matches!(self.stage, Stage::Waiting) && now < self.until
    }
}

impl Model {
    /// The session of the connection that a ConnectionBind over a stream of its own names.
    pub fn connection_to_bind(&self, now: u64, via: &Via, request: &Request) -> Option<Key> {
        let is_busy = || self.alive(via, now).is_some() || self.opening(via, now).is_some();
        if request.what != What::ConnectionBind || !via.is_stream() || is_busy() {
            return None;
        }
        self.waiting(now, ConnectionId(request.connection?))
    }

    fn waiting(&self, now: u64, id: ConnectionId) -> Option<Key> {
        let is_it = |session: &Session| {
            let waits = session.connections.get(&id).is_some_and(|connection| connection.is_waiting(now));
            waits && session.over(now).is_none()
        };
        self.sessions.iter().find(|(_, session)| is_it(session)).map(|(key, _)| *key)
    }

    fn of_connection(&mut self, worker: usize, id: ConnectionId) -> Option<(Key, &mut Session)> {
        let mut of_worker = self.sessions.iter_mut().filter(|((at, _), _)| *at == worker);
        of_worker.find(|(_, session)| session.connections.contains_key(&id)).map(|(key, session)| (*key, session))
    }

    fn is_relayed_tcp(&self, peer: PeerAddress) -> bool {
        self.sessions.values().any(|session| session.is_tcp && session.relayed.0 == peer.0)
    }

    /// RFC 6062 section 5.2.
    pub fn predict_connect(
        &self,
        config: &Config,
        now: u64,
        session: &Session,
        request: &Request,
        judge: &dyn Fn(&PeerAddress) -> Result<Class, u16>,
    ) -> Result<PeerAddress, u16> {
        if !session.is_tcp {
            return Err(437);
        }
        let peer = *request.peers.first().ok_or(400_u16)?;
        let live = || session.connections.values().filter(|connection| connection.is_live(now));
        if live().any(|connection| connection.peer == peer) {
            return Err(446);
        }
        let class = judge(&peer)?;
        let is_own = self.is_relayed_tcp(peer);
        let may = match class {
            _ if peer.0 == session.relayed.0 || peer.port() == 0 => false,
            _ if peer.port() < 1024 && !is_own => false,
            Class::Remote => true,
            Class::Own => is_own,
            Class::Local => peer.port() != LISTEN_PORT,
        };
        if !may {
            return Err(403);
        }
        let is_full = live().count() >= config.limits.connections_per_allocation as usize;
        if is_full { Err(508) } else { Ok(peer) }
    }
}

impl World {
    /// Something about connections: mostly of a client that has a TCP allocation.
    pub fn act_connection(&mut self, client: usize) {
        let of_tcp = self.model.sessions.iter().filter(|(_, session)| session.is_tcp).map(|(key, _)| *key);
        let of_tcp: Vec<Key> = of_tcp.collect();
        if of_tcp.is_empty() || self.rng.percent(10) {
            // To whoever it is.
            let what = *self.rng.pick(&[What::Connect, What::ConnectionBind]);
            return self.act_ask(client, what, None);
        }
        let key = *self.rng.pick(&of_tcp);
        let owner = self.client_of.get(&self.model.sessions[&key].via).copied();
        match self.rng.below(12) {
            0..4 => owner.into_iter().for_each(|owner| self.act_ask(owner, What::Connect, Some(key))),
            4 | 5 => self.act_peer_connects(key),
            6..9 => self.act_bind_one(key, owner, client),
            9 | 10 => self.act_carry(key),
            _ => self.act_end(key),
        }
    }

    fn act_ask(&mut self, client: usize, what: What, key: Option<Key>) {
        let family = self.family_of(client);
        self.request(client, what, |world, request| match what {
            What::Connect if !world.rng.percent(3) => request.peers = vec![world.some_connection_peer(family)],
            What::ConnectionBind => {
                let known = key.and_then(|key| world.model.sessions[&key].connections.keys().next().copied());
                request.connection = known.map(|id| id.0).or(Some(world.rng.next() as u32 >> 6));
            }
            _ => {}
        });
    }

    fn some_connection_peer(&mut self, family: Family) -> PeerAddress {
        let peer = self.some_peer(family);
        // Mostly a port that may be reached, and few of them, so that some are asked for twice.
        if self.rng.percent(80) && peer.port() < 50_000 {
            return PeerAddress::new(peer.ip(), 2_000 + self.rng.below(3) as u16);
        }
        peer
    }

    /// A client with the same name, or another one, binds a connection over a stream of its own.
    fn act_bind_one(&mut self, key: Key, owner: Option<usize>, other: usize) {
        let ids: Vec<ConnectionId> = self.model.sessions[&key].connections.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = *self.rng.pick(&ids);
        if let Some(owner) = owner.filter(|_| self.rng.percent(85)) {
            let (username, password) = (self.clients[owner].username.clone(), self.clients[owner].password.clone());
            let (nonce, of_control) = (self.clients[owner].nonce.clone(), self.rng.percent(60));
            (self.clients[other].username, self.clients[other].password) = (username, password);
            if of_control {
                self.clients[other].nonce = nonce;
            }
        }
        self.request(other, What::ConnectionBind, |world, request| {
            request.connection = Some(if world.rng.percent(3) { id.0 ^ 1 } else { id.0 });
        });
    }

    /// A stream goes to the worker of the connection that it is about to bind.
    pub fn move_to_connection(&mut self, packet: &Packet) {
        let Some(to) = bound_at(&packet.bytes).map(|to| usize::from(to.0)) else { return };
        let worker = self.worker_of(&packet.via);
        if to < self.workers.len() && packet.via.is_stream() && !self.workers[worker].server.has_allocation(&packet.via)
        {
            self.moved.insert(packet.via, to);
        }
    }

    /// A Connect was let through: the shell tries.
    pub fn connecting(
        &mut self,
        worker: usize,
        packet: &Packet,
        request: &Rc<Request>,
        peer: PeerAddress,
        mut out: Out,
    ) {
        let (id, allocation, relayed, to) = out.connects.pop().expect("a connection is begun");
        self.nothing(&out);
        let key = (worker, allocation);
        let session = self.model.sessions.get_mut(&key).expect("of a live allocation");
        assert_eq!((session.via, session.relayed, to), (packet.via, relayed, peer));
        assert_eq!(usize::from(throughway::protocol::connection::worker_of(id).0), worker);
        let stage = Stage::Connecting(Rc::clone(request));
        let connection = Connection { peer, stage, until: self.now + 30_000 };
        assert!(session.connections.insert(id, connection).is_none(), "no two have one name");
        self.connections[0] += 1;
        let late = if self.rng.percent(15) { 40_000 } else { 500 };
        self.after(1, late, Due::Connected(worker, id));
    }

    /// The shell is done with trying.
    pub fn connected(&mut self, worker: usize, id: ConnectionId) {
        let result = match self.rng.below(10) {
            0 => Err(ConnectRefused::NoFiles),
            1 => Err(ConnectRefused::Failed),
            _ => Ok(()),
        };
        trace!(self, "worker {worker} <- {id:?} connected: {result:?}");
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::Connected { connection: id, result });
        let mut out = self.drain(worker);
        let now = self.now;
        let Some((_, session)) = self.model.of_connection(worker, id) else { return self.nothing(&out) };
        let via = session.via;
        let connection = session.connections.get_mut(&id).expect("found by it");
        let Stage::Connecting(request) = std::mem::replace(&mut connection.stage, Stage::Waiting) else {
            panic!("it is told once")
        };
        connection.until = now + 30_000;
        let outcome = match result {
            Ok(()) => Outcome::Success,
            Err(refused) => {
                session.connections.remove(&id);
                let code = if refused == ConnectRefused::NoFiles { 508 } else { 447 };
                *self.codes.entry(code).or_default() += 1;
                Outcome::Error { code, signed: true }
            }
        };
        let (to, bytes) = out.replies.pop().expect("the client hears what became of it");
        self.nothing(&out);
        assert_eq!(to, via);
        self.check_reply(&bytes, &via, &request, &outcome, true);
        if outcome == Outcome::Success {
            let reply = Message::parse(&bytes).expect("a reply is well-formed");
            assert_eq!(reply.connection_id(), Ok(Some(id)));
        }
        self.note_reply(worker, &via, &bytes);
        self.send_reply(via, bytes);
    }

    /// A peer connects to a relayed address.
    pub fn act_peer_connects(&mut self, key: Key) {
        let session = &self.model.sessions[&key];
        let (family, permitted) = (session.relayed.family(), session.permissions.keys().next().copied());
        let from = match permitted.filter(|_| self.rng.percent(80)) {
            Some(ip) => PeerAddress::new(ip, 2_000 + self.rng.below(3) as u16),
            None => self.some_peer(family),
        };
        let (now, (worker, id)) = (self.now, key);
        let session = &self.model.sessions[&key];
        let is_permitted = session.permissions.get(&from.ip()).is_some_and(|until| now < *until);
        let is_peer = match self.config.class(from.ip()) {
            Some(Class::Own) => self.model.is_relayed_tcp(from),
            Some(Class::Remote | Class::Local) => true,
            None => false,
        };
        let live = || session.connections.values().filter(|connection| connection.is_live(now));
        let is_new = !live().any(|connection| connection.peer == from);
        let has_room = live().count() < self.config.limits.connections_per_allocation as usize;
        let due = session.over(now).is_none() && is_permitted && is_peer && is_new && has_room;
        let via = session.via;
        let clock = self.clock();
        let accepted = self.workers[worker].server.accept_peer(clock, id, from);
        trace!(self, "worker {worker} <- {from:?} connects to {key:?}: {accepted:?}");
        let mut out = self.drain(worker);
        assert_eq!(accepted.is_some(), due, "{from:?} connects to {key:?}");
        if let Some(connection) = accepted {
            assert_eq!(out.attempts.pop(), Some((via, connection, from)));
            let stage = Connection { peer: from, stage: Stage::Waiting, until: now + 30_000 };
            self.model.sessions.get_mut(&key).expect("it lives").connections.insert(connection, stage);
            self.connections[1] += 1;
        }
        self.nothing(&out);
    }

    /// A stream carries a connection from now on: it is no client's any more.
    pub fn is_bound(&mut self, worker: usize, id: ConnectionId, via: Via) {
        let (_, session) = self.model.of_connection(worker, id).expect("a connection that waits");
        session.connections.get_mut(&id).expect("found by it").stage = Stage::Bound;
        self.connections[2] += 1;
        if let Some(client) = self.client_of.remove(&via) {
            let new = self.fresh_via(via.five_tuple().client.ip());
            self.client_of.insert(new, client);
            self.clients[client].via = new;
        }
    }

    fn bound_of(&self, key: Key) -> Option<(ConnectionId, PeerAddress)> {
        let connections = self.model.sessions[&key].connections.iter();
        let mut bound = connections.filter(|(_, of)| matches!(of.stage, Stage::Bound));
        bound.next().map(|(id, of)| (*id, of.peer))
    }

    /// A bound connection carries something.
    fn act_carry(&mut self, key: Key) {
        let Some((id, peer)) = self.bound_of(key) else { return };
        let way = *self.rng.pick(&[Direction::ToPeer, Direction::ToClient]);
        let payload = self.payload();
        let len = payload.len().min(16 * 1024);
        let session = &self.model.sessions[&key];
        let clock = self.clock();
        let noise = self.noise.clone();
        let bytes = &noise[payload.start..payload.start + len];
        let (due, lane) = if self.now < session.expires_at {
            let lane = match way {
                Direction::ToPeer => Lane::ToPeer { key, to: peer, start: 0, len, dont_fragment: false },
                Direction::ToClient => Lane::ToClient { key, len, channel: None, padding: 0 },
            };
            let lane = self.meter(lane);
            let due = match &lane {
                Lane::Drop(_, DropReason::OverBudget, _) => Carry::Stop,
                Lane::Drop(..) => Carry::Wait,
                Lane::ToPeer { .. } | Lane::ToClient { .. } | Lane::Stranger(..) => Carry::Send,
            };
            (due, Some(lane))
        } else {
            (Carry::Stop, None)
        };
        let (found, of) = self.workers[key.0].server.carry(clock, id, way, bytes);
        trace!(self, "worker {} carries {len} bytes of {id:?}: {found:?}", key.0);
        assert_eq!((found, of), (due, key.1));
        match due {
            Carry::Send => {
                self.connections[4] += 1;
                self.sent(key, way, peer.family(), len);
            }
            Carry::Stop => {
                if let Some(lane) = lane {
                    self.count_lane(key.0, &lane, way);
                }
            }
            Carry::Wait => {}
        }
        let out = self.drain(key.0);
        self.nothing(&out);
    }

    /// Both ends of a connection are over.
    fn act_end(&mut self, key: Key) {
        let Some((id, _)) = self.bound_of(key) else { return };
        let clock = self.clock();
        self.workers[key.0].server.handle_input(clock, Input::ConnectionEnded { connection: id });
        let out = self.drain(key.0);
        self.nothing(&out);
        // Its allocation may have been due.
        if let Some(session) = self.model.sessions.get_mut(&key) {
            session.connections.remove(&id);
        }
    }

    /// The core closes a connection: its time is over, or its allocation's, or the policy forbids it.
    pub fn closed_connection(&mut self, worker: usize, id: ConnectionId) {
        let now = self.now;
        let is_ending = match &self.ending {
            Some((keys, reason)) => !keys.is_empty() || *reason == EndReason::Shutdown,
            None => false,
        };
        let is_reconfiguring = self.is_reconfiguring;
        let (_, session) = self.model.of_connection(worker, id).expect("a connection that there is");
        let connection = session.connections.remove(&id).expect("found by it");
        let is_overdue = !matches!(connection.stage, Stage::Bound) && connection.until <= now;
        assert!(
            is_overdue || is_ending || is_reconfiguring || session.over(now).is_some(),
            "{id:?} was closed for no reason"
        );
        self.connections[3] += 1;
    }

    /// Replies that no message of this moment asked for: a Connect that took too long, and the announcement of a peer.
    pub fn of_connection(&mut self, worker: usize, via: &Via, bytes: &[u8], out: &mut Out) -> bool {
        let reply = Message::parse(bytes).expect("a reply is well-formed");
        let message_type = reply.message_type();
        if message_type.class == CLASS_INDICATION {
            assert_eq!(message_type.method, METHOD_CONNECTION_ATTEMPT);
            let id = reply.connection_id().unwrap().expect("CONNECTION-ID");
            out.attempts.push((*via, id, reply.peer().unwrap().expect("XOR-PEER-ADDRESS")));
            return true;
        }
        if message_type.method != METHOD_CONNECT || reply.get(Known::ErrorCode).is_none_or(|code| code[2..4] != [4, 47])
        {
            return false;
        }
        let now = self.now;
        let sessions = self.model.sessions.iter().filter(|((at, _), session)| *at == worker && session.via == *via);
        let request = sessions.flat_map(|(_, session)| session.connections.values()).find_map(|of| match &of.stage {
            Stage::Connecting(request) if of.until <= now && request.transaction == reply.transaction_id().0 => {
                Some(Rc::clone(request))
            }
            _ => None,
        });
        let Some(request) = request else { return false };
        self.check_reply(bytes, via, &request, &Outcome::Error { code: 447, signed: true }, true);
        self.note_reply(worker, via, bytes);
        *self.codes.entry(447).or_default() += 1;
        true
    }
}
