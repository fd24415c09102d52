//! What the server must do, told a second time from the RFC: exact to the millisecond and the byte.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use throughway::address::{ClientAddress, Family, PeerAddress, RelayedTransportAddress, Transport, Via};
use throughway::protocol::accounting::{Amount, Traffic};
use throughway::protocol::border::Parity;
use throughway::protocol::ids::AllocationId;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::revocation::Subject;
use throughway::protocol::settings::OnExpiry;
use throughway::wire::attribute::ConnectionId;

use super::config::{Class, Config, DEFAULT_LIFETIME, LISTEN_PORT, MAX_LIFETIME, listener_of};
use super::connections::Connection;
use super::packet::{Chosen, Request, SendRead, What, read_send};
use super::quota::{Counting, Tables, Wanted};
use super::terms::{Ledger, Who, on_the_wire};

/// How much later than its end a credential is still accepted, in seconds.
const SKEW: u64 = 30;

/// An allocation of one worker.
pub type Key = (usize, AllocationId);

/// The second of two relayed addresses.
#[derive(Clone, Copy)]
pub struct Other {
    pub relayed: RelayedTransportAddress,
    /// What its socket is known by.
    pub socket: AllocationId,
    pub until: u64,
}

pub struct Session {
    pub via: Via,
    pub relayed: RelayedTransportAddress,
    /// When `relayed` ends, where there are two; the session ends with the later one.
    pub own_until: u64,
    pub other: Option<Other>,
    /// The second address that records name, be it open or not.
    pub named: Option<RelayedTransportAddress>,
    /// The family that could not be had.
    pub refused: Option<u8>,
    /// Sent to peers as bytes of the network.
    pub wire_to_peers: u64,
    /// The request that made it.
    pub request: Rc<Request>,
    pub who: Who,
    pub token: Option<[u8; 8]>,
    pub created_at: u64,
    pub expires_at: u64,
    /// When it ends in any case, and why.
    pub ends_by: Option<(u64, EndReason)>,
    pub permissions: BTreeMap<IpAddr, u64>,
    pub channels: BTreeMap<u16, (PeerAddress, u64)>,
    /// Whether it is a TCP allocation, and its connections to peers.
    pub is_tcp: bool,
    pub connections: BTreeMap<ConnectionId, Connection>,
    pub traffic: Traffic,
    /// By the reason's number.
    pub drops: BTreeMap<usize, (DropReason, Amount)>,
}

impl Session {
    /// Why it is over now, if it is.
    pub fn over(&self, now: u64) -> Option<EndReason> {
        if self.expires_at <= now {
            return Some(EndReason::Expired);
        }
        self.ends_by.filter(|(at, _)| *at <= now).map(|(_, why)| why)
    }

    pub fn client(&self) -> IpAddr {
        self.via.five_tuple().client.ip()
    }

    /// What a payload takes of the network that it leaves by; `peer` is the family of the peer that it goes to.
    pub fn on_the_wire(&self, way: Direction, peer: Family, payload: usize) -> u64 {
        let family = if way == Direction::ToPeer { peer } else { self.via.five_tuple().client.family() };
        on_the_wire(family == Family::V6, payload)
    }

    /// Whether it has a relayed address of a family, as packets find it: until the loop comes to its deadline.
    pub fn carries(&self, family: Family) -> bool {
        self.relayed.family() == family || self.other.is_some_and(|other| other.relayed.family() == family)
    }

    /// Whether it has a relayed address of a family, as requests find it.
    pub fn has(&self, family: Family, now: u64) -> bool {
        match self.other {
            None => self.relayed.family() == family,
            Some(_) if self.relayed.family() == family => now < self.own_until,
            Some(other) => now < other.until,
        }
    }

    /// Whether it has two at this moment, as requests find it.
    pub fn is_dual(&self, now: u64) -> bool {
        self.has(Family::V4, now) && self.has(Family::V6, now)
    }

    /// The socket of a family, and its address.
    pub fn socket(&self, own: AllocationId, family: Family) -> (AllocationId, RelayedTransportAddress) {
        match self.other {
            Some(other) if self.relayed.family() != family => (other.socket, other.relayed),
            Some(_) | None => (own, self.relayed),
        }
    }

    /// Sets the end of one of two addresses, or of all there is.
    pub fn extend(&mut self, until: u64, family: Option<Family>) {
        let own = self.relayed.family();
        if family.is_none_or(|family| family == own) {
            self.own_until = until;
        }
        if let Some(other) = &mut self.other
            && family.is_none_or(|family| family != own)
        {
            other.until = until;
        }
        self.expires_at = self.other.map_or(self.own_until, |other| other.until.max(self.own_until));
    }

    /// One of two addresses is gone.
    pub fn lose(&mut self, family: Family) {
        let other = self.other.take().expect("there are two");
        self.named = Some(other.relayed);
        if self.relayed.family() == family {
            self.named = Some(self.relayed);
            (self.relayed, self.own_until) = (other.relayed, other.until);
        }
        self.expires_at = self.own_until;
        self.permissions.retain(|ip, _| Family::of(*ip) != family);
        self.channels.retain(|_, (peer, _)| peer.family() != family);
    }
}

pub struct Opening {
    pub via: Via,
    pub request: Rc<Request>,
    pub who: Who,
    /// The question to another worker, and when it is given up.
    pub asking: Option<(u64, u64)>,
    /// The first of two addresses, once it is open.
    pub first: Option<RelayedTransportAddress>,
    /// The family of two that could not be had.
    pub refused: Option<u8>,
}

pub struct Held {
    pub worker: usize,
    pub relayed: RelayedTransportAddress,
    pub identity: String,
    pub expires_at: u64,
    /// Who made it.
    pub via: Via,
    pub who: Who,
}

impl Held {
    fn counting(&self, config: &Config) -> Counting {
        Counting::of_who(&self.who, config, self.via.five_tuple().client.ip())
    }
}

/// What one worker's counters must show.
#[derive(Clone)]
pub struct Totals {
    pub from_clients: Amount,
    pub to_peers: Amount,
    pub from_peers: Amount,
    pub to_clients: Amount,
    pub drops: Vec<Amount>,
    pub created: u64,
    pub ended: [u64; EndReason::ALL.len()],
    pub successes: u64,
    pub rejects: u64,
}

impl Default for Totals {
    fn default() -> Self {
        let none = Amount::default();
        Self {
            from_clients: none,
            to_peers: none,
            from_peers: none,
            to_clients: none,
            drops: vec![none; DropReason::ALL.len()],
            created: 0,
            ended: [0; EndReason::ALL.len()],
            successes: 0,
            rejects: 0,
        }
    }
}

#[derive(Default)]
pub struct Model {
    pub sessions: BTreeMap<Key, Session>,
    pub session_of: HashMap<Via, Key>,
    pub openings: BTreeMap<Key, Opening>,
    pub opening_of: HashMap<Via, Key>,
    /// Second sockets that are being opened, and for what.
    pub second_of: BTreeMap<Key, Key>,
    pub held: BTreeMap<[u8; 8], Held>,
    /// Nonces that were seen to be given out: for which client, and when.
    pub nonces: HashMap<Vec<u8>, (ClientAddress, Transport, u64)>,
    pub totals: Vec<Totals>,
    pub draining: bool,
    pub ledger: Ledger,
    /// Who was shut out, and until which second.
    pub revoked: Vec<(Subject, u64)>,
}

/// What must come of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Silent,
    Success,
    Error {
        code: u16,
        signed: bool,
    },
    OpenFresh(Family, Parity),
    OpenReserved(RelayedTransportAddress),
    OpenTcp(Family),
    Ask(usize),
    /// A connection to this peer is begun.
    Connect(PeerAddress),
}

/// What must come of data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Belongs to no allocation: so many bytes as received.
    Stranger(DropReason, usize),
    /// Counted in and dropped: so many bytes of payload.
    Drop(Key, DropReason, usize),
    ToPeer {
        key: Key,
        to: PeerAddress,
        start: usize,
        len: usize,
        dont_fragment: bool,
    },
    ToClient {
        key: Key,
        len: usize,
        channel: Option<u16>,
        padding: usize,
    },
}

/// Seconds since 1970: midnight comes when the clock of the simulation shows 4,000 seconds.
pub fn unix(now: u64) -> u64 {
    1_800_057_600 - 4_000 + now / 1000
}

fn distinct(peers: &[PeerAddress]) -> usize {
    peers.iter().map(PeerAddress::ip).collect::<std::collections::BTreeSet<IpAddr>>().len()
}

const fn error(code: u16, signed: bool) -> Outcome {
    Outcome::Error { code, signed }
}

pub fn granted(asked: Option<u32>) -> u32 {
    asked.unwrap_or(0).clamp(DEFAULT_LIFETIME, MAX_LIFETIME)
}

impl Model {
    /// The session behind one of its sockets.
    pub fn session_behind(&self, (worker, socket): Key) -> Key {
        let is_it = |session: &Session| session.other.is_some_and(|other| other.socket == socket);
        let of_second = self.sessions.iter().find(|((at, _), session)| *at == worker && is_it(session));
        of_second.map_or((worker, socket), |(key, _)| *key)
    }

    /// The session that a request finds.
    pub fn alive(&self, via: &Via, now: u64) -> Option<(Key, &Session)> {
        self.carrying(via, now).filter(|(_, session)| session.over(now).is_none())
    }

    /// The session that data finds: a packet looks at the lifetime only, whatever else ends the session ends it
    /// when the loop comes to its deadlines.
    fn carrying(&self, via: &Via, now: u64) -> Option<(Key, &Session)> {
        let key = *self.session_of.get(via)?;
        let session = &self.sessions[&key];
        (now < session.expires_at).then_some((key, session))
    }

    pub fn opening(&self, via: &Via, now: u64) -> Option<Key> {
        let key = *self.opening_of.get(via)?;
        (self.openings[&key].asking.is_none_or(|(_, until)| now < until)).then_some(key)
    }

    /// What the quota tables must hold once a worker has done what is due.
    pub fn tables(&self, config: &Config, worker: usize, now: u64) -> Tables {
        let mut tables = Tables::default();
        for ((at, _), session) in &self.sessions {
            if *at != worker || session.over(now).is_none() {
                tables.count(&Counting::of_who(&session.who, config, session.client()), true);
            }
        }
        for ((at, _), opening) in &self.openings {
            if *at != worker || opening.asking.is_none_or(|(_, until)| now < until) {
                let client = opening.via.five_tuple().client.ip();
                let counting = Counting::of_who(&opening.who, config, client);
                tables.count(&counting, true);
                if opening.request.even_port == Some(true) {
                    tables.count(&counting, true);
                }
            }
        }
        for held in self.held.values().filter(|held| held.worker != worker || now < held.expires_at) {
            tables.count(&held.counting(config), true);
        }
        tables
    }

    /// RFC 8489 section 9.2.4, then the method's own section of RFC 8656.
    pub fn predict(
        &self,
        config: &Config,
        now: u64,
        (worker, workers): (usize, usize),
        via: &Via,
        request: &Request,
    ) -> Outcome {
        if request.what == What::Binding {
            return if request.unknown_attribute { error(420, false) } else { Outcome::Success };
        }
        let to_bind = self.connection_to_bind(now, via, request);
        let session = to_bind.map(|key| (key, &self.sessions[&key])).or_else(|| self.alive(via, now));
        let Some(signed) = &request.signed else { return error(401, false) };
        let five_tuple = via.five_tuple();
        let ours = self.nonces.get(&signed.nonce).filter(|(client, transport, _)| {
            let of_control = to_bind.map(|key| *self.sessions[&key].via.five_tuple());
            let mut known = std::iter::once(*five_tuple).chain(of_control);
            known.any(|of| *client == of.client && *transport == of.transport)
        });
        let Some((_, _, minted)) = ours else { return error(438, false) };
        let is_offered = signed.nonce.starts_with(b"obMatJos2");
        match signed.chosen {
            Chosen::Nothing => {}
            Chosen::Md5 | Chosen::Sha256 if is_offered => {}
            Chosen::Md5 | Chosen::Sha256 | Chosen::Lone => return error(400, false),
        }
        // A session keeps its realm; where none stands, it is that of the listener.
        let (of_listener, tenant) = listener_of(via);
        let realm = session.map_or(of_listener, |(_, session)| session.who.realm);
        let user = || config.user(realm, &signed.username, &signed.password, unix(now));
        if signed.hidden {
            let of_owner = session
                .is_some_and(|(_, session)| session.request.signed.as_ref().unwrap().username == signed.username);
            if !(of_owner || config.is_static(realm, &signed.username) && signed.realm == realm) {
                return error(401, false);
            }
        }
        let is_owner = |session: &Session| {
            let own = session.request.signed.as_ref().unwrap();
            let same = (&own.username, &own.password, own.realm) == (&signed.username, &signed.password, signed.realm);
            // By the other algorithm only while the password is known.
            same && (own.algorithm() == signed.algorithm() || user().is_some())
        };
        let (owner, who) = match session {
            Some((_, session)) if is_owner(session) => (true, session.who.clone()),
            Some(_) | None => {
                if signed.realm != realm {
                    return error(401, false);
                }
                match user() {
                    None => return error(401, false),
                    Some(who) if tenant.is_some() && who.tenant.is_some() && who.tenant.as_deref() != tenant => {
                        return error(403, true);
                    }
                    Some(who) => (false, who.at(tenant)),
                }
            }
        };
        if unix(now) - minted > config.nonce_lifetime {
            return error(438, true);
        }
        if request.unknown_attribute {
            return error(420, true);
        }
        if request.what == What::Allocate {
            return self.predict_allocate(config, now, (worker, workers), via, request, (owner, &who));
        }
        if request.what == What::ConnectionBind {
            let is_busy = self.alive(via, now).is_some() || self.opening(via, now).is_some();
            return match to_bind {
                _ if !via.is_stream() => error(400, true),
                _ if is_busy => error(437, true),
                Some(_) if owner => Outcome::Success,
                Some(_) | None => error(400, true),
            };
        }
        let Some((_, session)) = session else { return error(437, true) };
        if !owner {
            return error(441, true);
        }
        let judge = |peer: &PeerAddress| match config.class(peer.ip()) {
            _ if !session.has(peer.family(), now) => Err(443),
            None => Err(403),
            Some(class) => Ok(class),
        };
        let denies_new = config.on_expiry == OnExpiry::DenyNew
            && session.who.expires.is_some_and(|expires| expires + SKEW < unix(now));
        let is_new = |peer: &PeerAddress| session.permissions.get(&peer.ip()).is_none_or(|until| now >= *until);
        let judge = |peer: &PeerAddress| match judge(peer) {
            Ok(_) if denies_new && is_new(peer) => Err(403),
            judged => judged,
        };
        let has = |ip: &IpAddr| session.has(Family::of(*ip), now);
        let live = session.permissions.iter().filter(|(ip, until)| now < **until && has(ip)).map(|(ip, _)| *ip);
        let permissions_with = |new: &[PeerAddress]| {
            let mut ips: Vec<IpAddr> = live.clone().chain(new.iter().map(PeerAddress::ip)).collect();
            ips.sort_unstable();
            ips.dedup();
            ips.len() <= config.limits.permissions_per_allocation as usize
        };
        let verdict = match request.what {
            What::Refresh => match request.family {
                Some(1) if session.has(Family::V4, now) => Ok(()),
                Some(2) if session.has(Family::V6, now) => Ok(()),
                Some(_) => Err(443),
                None => Ok(()),
            },
            What::CreatePermission => {
                if request.peers.is_empty() {
                    Err(400)
                } else if request.peers.iter().any(|peer| judge(peer) == Err(443)) {
                    // Every peer's family before any peer's policy.
                    Err(443)
                } else if distinct(&request.peers) > config.limits.permissions_per_allocation as usize {
                    Err(508)
                } else if request.peers.iter().any(|peer| judge(peer).is_err()) {
                    Err(403)
                } else if permissions_with(&request.peers) {
                    Ok(())
                } else {
                    Err(508)
                }
            }
            What::ChannelBind => self.predict_bind(config, now, session, request, &judge, &permissions_with),
            What::Connect => match self.predict_connect(config, now, session, request, &judge) {
                Ok(peer) => return Outcome::Connect(peer),
                Err(code) => Err(code),
            },
            What::Binding | What::Allocate | What::ConnectionBind => unreachable!("handled above"),
        };
        verdict.map_or_else(|code| error(code, true), |()| Outcome::Success)
    }

    fn predict_bind(
        &self,
        config: &Config,
        now: u64,
        session: &Session,
        request: &Request,
        judge: &dyn Fn(&PeerAddress) -> Result<Class, u16>,
        permissions_with: &dyn Fn(&[PeerAddress]) -> bool,
    ) -> Result<(), u16> {
        let (Some(number), Some(peer)) = (request.channel, request.peers.first()) else { return Err(400) };
        if !(0x4000..=0x7FFE).contains(&number) {
            return Err(400);
        }
        if session.is_tcp {
            return Err(400);
        }
        let has = |peer: &PeerAddress| session.has(peer.family(), now);
        let live = || session.channels.iter().filter(|(_, (peer, until))| now < *until && has(peer));
        if live().any(|(n, (p, _))| (*n == number) != (p == peer)) {
            return Err(400);
        }
        let class = judge(peer)?;
        if !self.port_is_open(peer, class) {
            return Err(403);
        }
        let known = live().any(|(n, _)| *n == number);
        if !known && live().count() >= config.limits.channels_per_allocation as usize {
            return Err(508);
        }
        if permissions_with(&[*peer]) { Ok(()) } else { Err(508) }
    }

    fn predict_allocate(
        &self,
        config: &Config,
        now: u64,
        (worker, workers): (usize, usize),
        via: &Via,
        request: &Request,
        (owner, who): (bool, &Who),
    ) -> Outcome {
        if let Some(key) = self.opening(via, now) {
            let again = self.openings[&key].request.transaction == request.transaction;
            return if again { Outcome::Silent } else { error(437, true) };
        }
        if let Some((_, session)) = self.alive(via, now) {
            let again = owner && session.request.transaction == request.transaction;
            return if again { Outcome::Success } else { error(437, true) };
        }
        match request.transport {
            None => return error(400, true),
            Some(17) => {}
            Some(6) if config.has_tcp && via.is_stream() => {}
            Some(6) if config.has_tcp => return error(400, true),
            Some(_) => return error(442, true),
        }
        let is_tcp = request.transport == Some(6);
        if is_tcp && (request.token.is_some() || request.even_port.is_some() || request.additional.is_some()) {
            return error(400, true);
        }
        let both = request.additional.is_some();
        if request.token.is_some() && (request.even_port.is_some() || request.family.is_some() || both) {
            return error(400, true);
        }
        if both && (request.family.is_some() || request.additional != Some(2) || request.even_port == Some(true)) {
            return error(400, true);
        }
        let family = match request.family {
            None | Some(1) => Family::V4,
            Some(2) => Family::V6,
            Some(_) => return error(440, true),
        };
        let client = via.five_tuple().client.ip();
        if let (OnExpiry::Close { grace }, Some(expires)) = (config.on_expiry, who.expires)
            && expires + grace <= unix(now)
        {
            return error(401, false);
        }
        if self.revoked.iter().any(|(whose, until)| unix(now) < *until && who.is_meant(whose)) {
            return error(403, true);
        }
        if who.may.closes_at.is_some_and(|at| at <= unix(now)) {
            return error(403, true);
        }
        if self.draining
            || self.is_full(config, worker, now, via, request, who)
            || self.ledger.is_spent(config, who, client, now)
            || self.ledger.is_too_often(config, who, client, now)
        {
            return error(486, true);
        }
        if is_tcp {
            return Outcome::OpenTcp(family);
        }
        let Some(token) = request.token else {
            let parity = match request.even_port {
                None => Parity::Any,
                Some(false) => Parity::Even,
                Some(true) => Parity::EvenAndHoldNext,
            };
            return Outcome::OpenFresh(family, parity);
        };
        let owner = usize::from(token[0]);
        if owner != worker && owner < workers {
            return Outcome::Ask(owner);
        }
        self.reserved(worker, &token, &who.full_identity(), now).map_or(error(508, true), Outcome::OpenReserved)
    }

    /// Whether a quota stands against one allocation more, and the port that it holds.
    fn is_full(&self, config: &Config, worker: usize, now: u64, via: &Via, request: &Request, who: &Who) -> bool {
        let live = || self.held.values().filter(|held| held.worker != worker || now < held.expires_at);
        let holds = request.even_port == Some(true);
        if holds && live().any(|held| held.via == *via) {
            return true;
        }
        let fetched = request.token.and_then(|token| self.held.get(&token));
        let fetched = fetched.filter(|held| held.worker != worker || now < held.expires_at);
        let fetched = fetched.map(|held| held.counting(config));
        let identity = who.full_identity();
        let opening = self
            .openings
            .values()
            .filter(|opening| opening.request.even_port == Some(true) && opening.who.full_identity() == identity);
        let reserved = live().filter(|held| held.identity == identity).count() + opening.count();
        let wanted = Wanted { holds, fetches: fetched.as_ref() };
        let counting = Counting::of_who(who, config, via.five_tuple().client.ip());
        self.tables(config, worker, now).refusal(&counting, &config.limits, wanted, reserved).is_some()
    }

    /// The port that a token stands for, if this user may have it.
    pub fn reserved(
        &self,
        worker: usize,
        token: &[u8; 8],
        identity: &str,
        now: u64,
    ) -> Option<RelayedTransportAddress> {
        let held = self.held.get(token)?;
        (held.worker == worker && held.identity == identity && now < held.expires_at).then_some(held.relayed)
    }

    /// Whether an address is that of a live allocation.
    pub fn is_relayed(&self, address: PeerAddress) -> bool {
        self.open_ports().any(|open| open == RelayedTransportAddress(address.0))
    }

    fn port_is_open(&self, peer: &PeerAddress, class: Class) -> bool {
        match class {
            Class::Remote => true,
            Class::Own => self.is_relayed(*peer),
            Class::Local => peer.port() != LISTEN_PORT,
        }
    }

    /// Ports of live allocations; ports on hold are no peers yet.
    fn open_ports(&self) -> impl Iterator<Item = RelayedTransportAddress> {
        let of = |session: &Session| [Some(session.relayed), session.other.map(|other| other.relayed)];
        self.sessions.values().filter(|session| !session.is_tcp).flat_map(of).flatten()
    }

    fn check_port(&self, config: &Config, peer: &PeerAddress) -> Result<(), DropReason> {
        let class = config.class(peer.ip()).expect("a denied peer has neither permission nor channel");
        match class {
            class if self.port_is_open(peer, class) => Ok(()),
            Class::Own => Err(DropReason::NotRelayedPort),
            Class::Local | Class::Remote => Err(DropReason::PeerIsListener),
        }
    }

    /// ChannelData or a Send indication of a client.
    pub fn predict_from_client(&self, config: &Config, now: u64, via: &Via, bytes: &[u8]) -> Lane {
        if (0x40..=0x7F).contains(&bytes[0]) {
            let len = bytes.get(2..4).map(|l| usize::from(l[0]) << 8 | usize::from(l[1]));
            let is_channel = bytes.get(..2) != Some(&[0x7F, 0xFF]);
            let Some(len) = len.filter(|len| is_channel && 4 + len <= bytes.len()) else {
                return Lane::Stranger(DropReason::BadChannelData, bytes.len());
            };
            let Some((key, session)) = self.carrying(via, now) else {
                return Lane::Stranger(DropReason::NoAllocation, bytes.len());
            };
            let number = u16::from_be_bytes([bytes[0], bytes[1]]);
            let Some(&(to, _)) = session.channels.get(&number).filter(|(_, until)| now < *until) else {
                return Lane::Drop(key, DropReason::UnboundChannel, len);
            };
            return match self.check_port(config, &to) {
                Ok(()) => Lane::ToPeer { key, to, start: 4, len, dont_fragment: false },
                Err(why) => Lane::Drop(key, why, len),
            };
        }
        let read = read_send(bytes);
        if read == SendRead::Malformed {
            return Lane::Stranger(DropReason::Malformed, bytes.len());
        }
        let Some((key, session)) = self.carrying(via, now) else {
            return Lane::Stranger(DropReason::NoAllocation, bytes.len());
        };
        if read == SendRead::WrongFingerprint {
            return Lane::Stranger(DropReason::BadFingerprint, bytes.len());
        }
        let SendRead::Good { peer, start, len, dont_fragment } = read else {
            return Lane::Stranger(DropReason::BadSend, bytes.len());
        };
        if session.is_tcp {
            return Lane::Drop(key, DropReason::TcpAllocation, len);
        }
        if !session.carries(peer.family()) {
            return Lane::Drop(key, DropReason::PeerFamily, len);
        }
        if session.permissions.get(&peer.ip()).is_none_or(|until| now >= *until) {
            return Lane::Drop(key, DropReason::NoPermission, len);
        }
        match self.check_port(config, &peer) {
            Ok(()) => {
                // RFC 8656 section 13: of datagrams only those from IPv4 to IPv4 have the wish heeded.
                let is_heeded = via.is_stream() || (via.five_tuple().client.ip().is_ipv4() && peer.ip().is_ipv4());
                Lane::ToPeer { key, to: peer, start, len, dont_fragment: dont_fragment && is_heeded }
            }
            Err(why) => Lane::Drop(key, why, len),
        }
    }

    /// A datagram on a relayed address.
    pub fn predict_from_peer(&self, config: &Config, now: u64, key: Key, from: &PeerAddress, len: usize) -> Lane {
        let Some(session) = self.sessions.get(&key).filter(|session| now < session.expires_at) else {
            return Lane::Stranger(DropReason::RelayClosed, len);
        };
        if session.permissions.get(&from.ip()).is_none_or(|until| now >= *until) {
            return Lane::Drop(key, DropReason::PeerNotPermitted, len);
        }
        if let Err(why) = self.check_port(config, from) {
            return Lane::Drop(key, why, len);
        }
        let channel = session.channels.iter().find(|(_, (peer, until))| peer == from && now < *until).map(|(n, _)| *n);
        let is_stream = session.via.is_stream();
        let word = (4 - len % 4) % 4;
        let padding = if channel.is_some() && !is_stream { 0 } else { word };
        let head = match (channel, from.family()) {
            (Some(_), _) => 4,
            (None, Family::V4) => 36,
            (None, Family::V6) => 48,
        };
        // 65,507 bytes of UDP; the length field of STUN counts 16 bits behind a header of 20.
        let too_big = !is_stream && head + len + padding > 65_507 || head > 4 && head - 20 + len + padding > 65_535;
        if too_big {
            return Lane::Drop(key, DropReason::TooBig, len);
        }
        Lane::ToClient { key, len, channel, padding }
    }
}
