//! The clients' side of the server: control messages while sessions are opened, frames while traffic runs.

use std::net::SocketAddrV4;

use crate::account::{Account, describe};
use crate::exchange::{FIRST_WAIT_NS, SENDS};
use crate::plan::{Framing, Places, Plan, Protocol, Transport, channel_of};
use crate::stream::{Connection, Poll};
use crate::stun::{self, Builder, Message, TransactionId};
use crate::sys;
use crate::udp::ManyAddresses;

pub enum Clients {
    Udp(Box<ManyAddresses>),
    Tcp { connections: Vec<Connection>, poll: Poll, ready: Vec<usize> },
}

impl Clients {
    pub fn open(plan: &Plan) -> Result<Self, String> {
        match plan.transport {
            Transport::Udp => Ok(Self::Udp(Box::new(ManyAddresses::open(plan.places.client_port, plan.payload)?))),
            Transport::Tcp => Ok(Self::Tcp { connections: Vec::new(), poll: Poll::new()?, ready: Vec::new() }),
        }
    }

    /// The next session's connection. Each allocates before the next connects: servers close those that wait.
    fn connect(&mut self, plan: &Plan) -> Result<(), String> {
        if let Self::Tcp { connections, poll, .. } = self {
            let n = connections.len();
            let connection = Connection::open(plan.places.client(n), plan.places.server, plan.tls.as_ref())?;
            poll.add(connection.fd(), n as u64)?;
            connections.push(connection);
        }
        Ok(())
    }

    pub fn closed(&self) -> usize {
        match self {
            Self::Udp(_) => 0,
            Self::Tcp { connections, .. } => connections.iter().filter(|c| c.closed).count(),
        }
    }

    /// See `ManyAddresses::segment`; a stream needs none.
    pub fn segment(&mut self) {
        if let Self::Udp(socket) = self {
            socket.segment();
        }
    }

    /// Version and cipher suite of the first connection; none without TLS.
    pub fn tls_suite(&self) -> Option<String> {
        match self {
            Self::Udp(_) => None,
            Self::Tcp { connections, .. } => connections.first()?.tls_suite(),
        }
    }

    fn send(&mut self, places: &Places, session: usize, bytes: &[u8]) -> bool {
        match self {
            Self::Udp(socket) => socket.send_one(*places.client(session).ip(), places.server, bytes),
            Self::Tcp { connections, .. } => connections[session].send(bytes),
        }
    }

    /// What has arrived: (session, whether it came from the server, frame). Returns the number of frames.
    pub fn receive(&mut self, places: &Places, mut each: impl FnMut(usize, bool, &[u8])) -> usize {
        match self {
            Self::Udp(socket) => {
                socket.receive(|from, to, bytes| each(places.session_of_client(to), from == places.server, bytes))
            }
            Self::Tcp { connections, poll, ready } => {
                ready.clear();
                poll.wait(0, |token| ready.push(token as usize));
                let mut frames = 0;
                for session in ready.iter().copied() {
                    let connection = &mut connections[session];
                    if !connection.closed {
                        frames += connection.receive(|frame| each(session, true, frame));
                    }
                }
                frames
            }
        }
    }
}

/// What traffic needs to know about an open session.
pub struct Session {
    pub relayed: SocketAddrV4,
    pub peer: SocketAddrV4,
    pub channel: u16,
    /// STUN head and XOR-PEER-ADDRESS of a Send indication; empty in the other framings.
    pub indication: Vec<u8>,
    account: Account,
}

/// Opens all sessions, one exchange after the other.
pub fn open_all(plan: &Plan, clients: &mut Clients) -> Result<Vec<Session>, String> {
    if plan.protocol == Protocol::Bare {
        return (0..plan.sessions).map(|n| connect(plan, clients).map(|()| Session::bare(plan, n))).collect();
    }
    let mut opener = Opener { plan, clients, transaction: sys::now() };
    let text = |n: usize, e: String| format!("session {n} of {}: {e}", plan.sessions);
    let mut sessions: Vec<Session> = Vec::with_capacity(plan.sessions);
    for n in 0..plan.sessions {
        connect(plan, opener.clients).map_err(|e| text(n, e))?;
        let mut session = opener.allocate(n).map_err(|e| text(n, e))?;
        if !plan.pairs {
            opener.reach(n, &mut session).map_err(|e| text(n, e))?;
        }
        sessions.push(session);
    }
    if plan.pairs {
        for n in 0..plan.sessions {
            sessions[n].peer = sessions[n ^ 1].relayed;
            opener.reach(n, &mut sessions[n]).map_err(|e| text(n, e))?;
        }
    }
    Ok(sessions)
}

fn connect(plan: &Plan, clients: &mut Clients) -> Result<(), String> {
    plan.namespaces.at_clients(|| clients.connect(plan))
}

/// Deletes what `open_all` made; a server that refuses is reported, not fatal.
pub fn close_all(plan: &Plan, clients: &mut Clients, sessions: &mut [Session]) -> usize {
    if plan.protocol == Protocol::Bare {
        return 0;
    }
    let mut opener = Opener { plan, clients, transaction: sys::now() };
    let mut refused = 0;
    for (n, session) in sessions.iter_mut().enumerate() {
        let request = |builder: Builder| builder.attribute(stun::LIFETIME, &0_u32.to_be_bytes());
        refused += usize::from(opener.signed(n, session, stun::REFRESH, &request).is_err());
        if refused > 3 {
            break; // a dead server would cost 63 s a session
        }
    }
    refused
}

struct Opener<'a> {
    plan: &'a Plan,
    clients: &'a mut Clients,
    transaction: u64,
}

impl Opener<'_> {
    fn allocate(&mut self, n: usize) -> Result<Session, String> {
        let mut session = Session::bare(self.plan, n);
        let request = |builder: Builder| builder.attribute(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        let first = self.transaction();
        let answer = self.exchange(n, &request(Builder::new(stun::ALLOCATE, first)).unsigned(), first)?;
        let challenge = Message::parse(&answer).ok_or("the first Allocate's answer is not STUN")?;
        if challenge.error_code() != Some(401) {
            return Err(format!("the first Allocate's answer is not 401 but {}", describe(&challenge)));
        }
        session.account.learn(&challenge)?;
        let answer = self.signed(n, &mut session, stun::ALLOCATE, &request)?;
        session.relayed = Message::parse(&answer)
            .and_then(|m| m.xor_address(stun::XOR_RELAYED_ADDRESS))
            .ok_or("Allocate: no IPv4 XOR-RELAYED-ADDRESS")?;
        Ok(session)
    }

    /// A channel to the session's peer, or a permission where indications are sent.
    fn reach(&mut self, n: usize, session: &mut Session) -> Result<(), String> {
        let peer = session.peer;
        let channel = session.channel.to_be_bytes();
        let with_peer = |builder: Builder| builder.xor_address(stun::XOR_PEER_ADDRESS, peer);
        if self.plan.framing == Framing::Indication {
            self.signed(n, session, stun::CREATE_PERMISSION, &with_peer)?;
            session.indication = with_peer(Builder::new(stun::SEND_INDICATION, self.transaction())).unsigned();
        } else {
            let request =
                |builder: Builder| with_peer(builder.attribute(stun::CHANNEL_NUMBER, &[channel[0], channel[1], 0, 0]));
            self.signed(n, session, stun::CHANNEL_BIND, &request)?;
        }
        Ok(())
    }

    /// A request with credentials; a 438 brings a new nonce and one more try. The answer is a signed success.
    fn signed(
        &mut self,
        n: usize,
        session: &mut Session,
        method: u16,
        fill: &dyn Fn(Builder) -> Builder,
    ) -> Result<Vec<u8>, String> {
        for _ in 0..2 {
            let id = self.transaction();
            let request = session.account.sign(fill(Builder::new(method, id)));
            let answer = self.exchange(n, &request, id)?;
            let message = Message::parse(&answer).ok_or("the answer is not STUN")?;
            if message.error_code() == Some(438) {
                session.account.learn(&message)?;
                continue;
            }
            if message.kind() != method | stun::SUCCESS {
                return Err(format!("method {method:#x}: {}", describe(&message)));
            }
            if !session.account.has_signed(&message) {
                return Err(format!("method {method:#x}: the success response has no valid MESSAGE-INTEGRITY"));
            }
            return Ok(answer);
        }
        Err("438 twice in a row".to_owned())
    }

    fn transaction(&mut self) -> TransactionId {
        self.transaction = self.transaction.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let mut id = [0x4C; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        id
    }

    /// Sends until the answer with this transaction id is there.
    fn exchange(&mut self, n: usize, request: &[u8], id: TransactionId) -> Result<Vec<u8>, String> {
        let places = self.plan.places;
        let sends = if self.plan.transport == Transport::Udp { SENDS } else { 1 };
        for send in 0..sends {
            if !self.clients.send(&places, n, request) {
                return Err("the request could not be sent".to_owned());
            }
            let wait = if sends == 1 { 10 * FIRST_WAIT_NS } else { FIRST_WAIT_NS << send.min(3) };
            let until = sys::now() + wait;
            let mut answer = None;
            while answer.is_none() && sys::now() < until {
                let got = self.clients.receive(&places, |session, from_server, bytes| {
                    let fits = Message::parse(bytes).is_some_and(|m| m.id() == id && m.kind() & 0x0100 != 0);
                    if session == n && from_server && fits {
                        answer = Some(bytes.to_vec());
                    }
                });
                if got == 0 {
                    if self.clients.closed() > 0 {
                        return Err("the server closed the connection".to_owned());
                    }
                    std::thread::yield_now();
                }
            }
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
        Err(format!("no answer from {} after {sends} tries", places.server))
    }
}

impl Session {
    fn bare(plan: &Plan, n: usize) -> Self {
        Self {
            relayed: plan.places.bare_relay(n),
            peer: plan.places.peer(n),
            channel: channel_of(n),
            indication: Vec::new(),
            account: plan.basics.account(),
        }
    }
}
