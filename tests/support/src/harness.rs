//! The harness of the rule tests: workers, scripted clients and peers, and a virtual clock.
//!
//! Every input is followed by the whole of the driving rule (drain, answer what was asked for, drain again)
//! and by [`Harness::check`]: invariants, quota books and accounts must agree after each of them.

// `from_client` and `to_peer` are the ways of a packet, not conversions.
#![allow(clippy::wrong_self_convention)]

pub mod mobility;
pub mod records;
pub mod stun;
pub mod world;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use throughway::address::{ClientAddress, FiveTuple, RelayedTransportAddress, ServerAddress, StreamId, Transport, Via};
use throughway::credentials::{Algorithm, Secret, SharedSecret};
use throughway::protocol::accounting::{Amount, SessionRecord};
use throughway::protocol::allocation::AllocationState;
use throughway::protocol::alternates::Alternates;
use throughway::protocol::border::{
    Answer, Carry, ConnectRefused, Event, Input, OpenedRelay, Output, PacketMeta, Question, Relay, RelayRefused,
    RelayRequest, Selector,
};
use throughway::protocol::changes::EarlyAllocations;
use throughway::protocol::connect::bound_at;
use throughway::protocol::counters::Counters;
use throughway::protocol::export::{ImportError, ServerState, counters_of};
use throughway::protocol::ids::{AllocationId, QuestionId, WorkerId};
use throughway::protocol::paths::PathAnswer;
use throughway::protocol::peer_policy::LocalAddresses;
use throughway::protocol::peer_policy::PeerPolicy;
use throughway::protocol::pool::Pool;
use throughway::protocol::quota::{Admitted, Purpose};
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::settings::{
    AuthSettings, Limits, NameForms, OnExpiry, Settings, Sha256Offer, StaticUser, StunSettings, TcpRelaySettings,
};
use throughway::protocol::tenancy::{PortParts, Tenancies};
use throughway::protocol::{Parts, Server};
use throughway::state;
use throughway::time::{Now, Ticks, UnixSeconds};
use throughway::wire::attribute::ConnectionId;

use self::stun::{Incoming, Outgoing, Signature, long_term_key};
use self::world::{Books, Ports, RELAY_IPV4, RELAY_IPV6};

pub const REALM: &str = "throughway";
pub const SERVER_IPV4: &str = "9.9.9.1:3478";
pub const SERVER_IPV6: &str = "[2a00:9::1]:3478";
/// What the wall clock shows when a test starts.
pub const START_UNIX: u64 = 1_700_000_000;
pub const SECRET: &str = "north";

pub fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// A policy with the harness's own addresses and listeners.
pub fn policy(allow: &[&str], deny: &[&str]) -> PeerPolicy {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().expect("a prefix")).collect::<Vec<ipnet::IpNet>>();
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let local = LocalAddresses {
        own: vec![ip(RELAY_IPV4), ip(RELAY_IPV6)],
        interfaces: vec![ip(RELAY_IPV4), ip(RELAY_IPV6), ip("9.9.9.1"), ip("2a00:9::1")],
        routes: vec![],
        listeners: vec![(ip("0.0.0.0"), 3478), (ip("::"), 3478), (ip("127.0.0.1"), 8080)],
    };
    PeerPolicy::new(&nets(allow), &nets(deny), local).expect("a legal policy")
}

pub fn secret(id: &str, value: &str, algorithm: Algorithm) -> SharedSecret {
    SharedSecret::new(id, Secret::new(value.as_bytes()), algorithm)
}

fn default_settings() -> Settings {
    let users = [
        ("alice", StaticUser::password(Secret::new(*b"wonderland"))),
        ("carol", StaticUser::keys(Secret::new(long_term_key("carol", REALM, "christmas")), None)),
    ];
    Settings {
        realm: REALM.into(),
        default_lifetime: 600,
        max_lifetime: 3600,
        auth: AuthSettings {
            users: users.into_iter().map(|(name, user)| (name.into(), user)).collect(),
            secrets: vec![secret("main", SECRET, Algorithm::Sha1)],
            max_ttl: 48 * 3600,
            nonce_lifetime: 3600,
            on_expiry: OnExpiry::Keep,
            max_session: None,
            sha256: Sha256Offer::default(),
            forms: NameForms::new(REALM, ["alice", "carol"].into_iter(), |_| None),
            realms: Vec::new(),
        },
        tenancies: Tenancies::default(),
        port_parts: PortParts::default(),
        peers: policy(&[], &[]),
        limits: Limits::default(),
        alternates: Alternates::default(),
        pool: Pool::default(),
        proxies: Vec::new(),
        interim_seconds: 0,
        channel_number_max: 0x7FFE,
        relay_ipv4: true,
        relay_ipv6: true,
        mobility: false,
        stun: StunSettings::default(),
        tcp: TcpRelaySettings::default(),
    }
}

/// base64(HMAC-SHA1(secret, username)), computed here once more.
pub fn time_limited_password(username: &str) -> String {
    let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(SECRET.as_bytes()).expect("any key will do");
    mac.update(username.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes())
}

/// A client before it is added: who it is and how it comes.
#[derive(Clone, Debug)]
pub struct Spec {
    pub username: String,
    pub password: String,
    pub from: Option<SocketAddr>,
    pub tcp: bool,
    pub ipv6: bool,
    /// The listener; `None` means the usual one of the family.
    pub server: Option<SocketAddr>,
    /// `None` leaves it to the harness, as the kernel would place a five-tuple.
    pub worker: Option<usize>,
}

/// The static user `alice`, over UDP and IPv4, from an address of her own, on any worker.
pub fn alice() -> Spec {
    Spec {
        username: "alice".into(),
        password: "wonderland".into(),
        from: None,
        tcp: false,
        ipv6: false,
        server: None,
        worker: None,
    }
}

pub fn carol() -> Spec {
    alice().named("carol", "christmas")
}

/// A holder of the time-limited credential `username`.
pub fn holder_of(username: &str) -> Spec {
    alice().named(username, &time_limited_password(username))
}

/// A user id whose credential ends an hour after the test's start.
pub fn user(id: &str) -> Spec {
    holder_of(&format!("{}:{id}", START_UNIX + 3600))
}

impl Spec {
    pub fn named(mut self, username: &str, password: &str) -> Self {
        self.username = username.into();
        self.password = password.into();
        self
    }
    pub fn from(mut self, from: &str) -> Self {
        self.from = Some(addr(from));
        self.ipv6 = addr(from).is_ipv6();
        self
    }
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }
    /// By another listener than the usual one.
    pub fn at(mut self, server: &str) -> Self {
        self.server = Some(addr(server));
        self
    }
    pub fn on_worker(mut self, worker: usize) -> Self {
        self.worker = Some(worker);
        self
    }
}

/// A client of the harness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client(usize);

struct ClientState {
    spec: Spec,
    worker: usize,
    via: Via,
    nonce: Option<Vec<u8>>,
    /// As the server says.
    realm: String,
    inbox: Vec<Incoming>,
    allocation: Option<(AllocationId, RelayedTransportAddress)>,
}

struct Worker {
    server: Server,
    counters: Arc<Counters>,
    ended: Vec<SessionRecord>,
    /// Taken back after the record was written.
    late: [Amount; 2],
}

/// An input that the world owes a worker.
enum Owed {
    Admission(AllocationId, Result<Admitted, RejectReason>),
    Opened(AllocationId, RelayRequest, Result<OpenedRelay, RelayRefused>),
    Asked(QuestionId, Question),
    Answered(QuestionId, Answer),
}

/// A verdict that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Went {
    ToPeer {
        /// What the socket is known by that it leaves from.
        allocation: AllocationId,
        to: SocketAddr,
        payload: Vec<u8>,
        meta: PacketMeta,
    },
    /// All that the client receives: head, payload, padding.
    ToClient {
        via: Via,
        bytes: Vec<u8>,
        meta: PacketMeta,
    },
    Dropped(DropReason),
}

impl Went {
    /// The payload that a peer receives, with its address.
    pub fn to_peer(self) -> (SocketAddr, Vec<u8>) {
        match self {
            Self::ToPeer { to, payload, .. } => (to, payload),
            other @ (Self::ToClient { .. } | Self::Dropped(_)) => panic!("should have gone to a peer: {other:?}"),
        }
    }
    /// The bytes that the client receives.
    pub fn to_client(self) -> Vec<u8> {
        match self {
            Self::ToClient { bytes, .. } => bytes,
            other @ (Self::ToPeer { .. } | Self::Dropped(_)) => panic!("should have gone to the client: {other:?}"),
        }
    }
    /// A Data indication, taken apart: the peer and its data.
    pub fn data_indication(self) -> (SocketAddr, Vec<u8>) {
        let message = Incoming::decode(&self.to_client());
        assert_eq!((message.method, message.class), (stun::DATA_METHOD, stun::INDICATION));
        assert_eq!(message.types(), [stun::XOR_PEER_ADDRESS, stun::DATA]);
        (message.address(stun::XOR_PEER_ADDRESS), message.get(stun::DATA).expect("DATA").to_vec())
    }
    pub fn meta(&self) -> PacketMeta {
        match self {
            Self::ToPeer { meta, .. } | Self::ToClient { meta, .. } => *meta,
            Self::Dropped(why) => panic!("dropped: {why:?}"),
        }
    }
}

/// Workers, clients, peers, and the clock between them.
pub struct Harness {
    pub now: Now,
    pub ports: Ports,
    pub books: Arc<Books>,
    pub settings: Arc<Settings>,
    workers: Vec<Worker>,
    clients: Vec<ClientState>,
    owed: VecDeque<(usize, Owed)>,
    ids: u64,
    /// Hold back the answers to OpenRelay, or questions between workers, until they are let go.
    pub hold_back_admissions: bool,
    pub hold_back_opens: bool,
    pub hold_back_asks: bool,
    held_admissions: VecDeque<(usize, AllocationId, Purpose)>,
    held_opens: VecDeque<(usize, AllocationId, RelayRequest)>,
    held_asks: VecDeque<(usize, Owed)>,
    /// Ways of clients that belong to an allocation, as each worker's shell counts them.
    paths: BTreeMap<(usize, String), i64>,
    seeds: Cell<u64>,
    /// The inbox of this worker takes nothing.
    pub full_inbox: Option<usize>,
    /// Look at nothing after each step: for thousands of clients that takes too long.
    pub is_unchecked: bool,
    /// Every OpenRelay, CloseRelay and CloseReserved in order.
    pub opens: Vec<RelayRequest>,
    pub closed: Vec<SocketAddr>,
    pub closed_reserved: Vec<SocketAddr>,
    pub refused: Vec<(RejectReason, Option<Box<str>>)>,
    pub ended: Vec<SessionRecord>,
    /// Every record, in order, with its kind.
    pub records: Vec<(&'static str, SessionRecord)>,
    /// Every Connect, BindConnection and CloseConnection in order.
    pub connects: Vec<Connecting>,
    pub bound: Vec<(ConnectionId, Via)>,
    pub closed_connections: Vec<ConnectionId>,
}

/// A connection to a peer that the core wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connecting {
    pub worker: usize,
    pub id: ConnectionId,
    pub relayed: SocketAddr,
    pub peer: SocketAddr,
}

/// One worker, or as many as `RULES_WORKERS` says: then every second client lands on another one, and the
/// rules must hold all the same.
fn default_workers() -> u8 {
    std::env::var("RULES_WORKERS").map_or(1, |text| match text.parse() {
        Ok(count) if count > 0 => count,
        Ok(_) | Err(_) => panic!("RULES_WORKERS={text}: a number from 1 to 255 is wanted"),
    })
}

impl Harness {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(edit: impl FnOnce(&mut Settings)) -> Self {
        Self::workers(default_workers(), edit)
    }

    pub fn workers(count: u8, edit: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = default_settings();
        edit(&mut settings);
        let mut harness = Self {
            now: Now { ticks: Ticks(5_000), unix: UnixSeconds(START_UNIX) },
            ports: Ports::default(),
            books: Arc::default(),
            settings: Arc::new(settings),
            workers: Vec::new(),
            clients: Vec::new(),
            owed: VecDeque::new(),
            ids: 0,
            hold_back_admissions: false,
            hold_back_opens: false,
            hold_back_asks: false,
            is_unchecked: false,
            held_admissions: VecDeque::new(),
            held_opens: VecDeque::new(),
            held_asks: VecDeque::new(),
            paths: BTreeMap::new(),
            seeds: Cell::new(0),
            full_inbox: None,
            opens: Vec::new(),
            closed: Vec::new(),
            closed_reserved: Vec::new(),
            refused: Vec::new(),
            ended: Vec::new(),
            records: Vec::new(),
            connects: Vec::new(),
            bound: Vec::new(),
            closed_connections: Vec::new(),
        };
        harness.start(count, [7; 32]);
        harness
    }

    fn start(&mut self, count: u8, nonce_key: [u8; 32]) {
        self.workers = (0..count)
            .map(|number| {
                let counters = Arc::<Counters>::default();
                let parts = Parts {
                    worker: WorkerId(number),
                    workers: usize::from(count),
                    shared: self.books.clone(),
                    counters: counters.clone(),
                    nonce_key: nonce_key.into(),
                    seed: [number; 32],
                };
                let server = Server::new(parts, self.settings.clone());
                Worker { server, counters, ended: Vec::new(), late: [Amount::default(); 2] }
            })
            .collect();
    }

    /// Another process takes over, without state and with another nonce key; clients keep what they know.
    pub fn restart(&mut self) {
        self.books = Arc::default();
        self.ports = Ports::default();
        self.paths.clear();
        self.start(u8::try_from(self.workers.len()).expect("few workers"), [8; 32]);
    }

    /// Another process takes over all that this one knows, as text and back.
    pub fn hand_over(&mut self) {
        let shared = state::write(&self.books.export(), state::FORMAT).expect("plain values");
        self.books.import(state::read(&shared).expect("what was written"));
        for index in 0..self.workers.len() {
            let state = self.workers[index].server.export();
            let bytes = state::write(&state, state::FORMAT).expect("plain values");
            let server = self.import(index, state::read(&bytes).expect("what was written"));
            self.workers[index].server = server.expect("its own state");
            assert!(self.workers[index].server.export() == state, "a server exports what it imported");
            self.check_paths(index);
        }
        self.check();
    }

    /// No two servers name their sessions alike.
    fn fresh_seed(&self) -> [u8; 32] {
        self.seeds.set(self.seeds.get() + 1);
        let mut seed = [12; 32];
        seed[..8].copy_from_slice(&self.seeds.get().to_be_bytes());
        seed
    }

    /// A server made of this state, in the place of a worker.
    pub fn import(&mut self, index: usize, state: ServerState) -> Result<Server, ImportError> {
        let counters = counters_of(&state);
        let parts = Parts {
            worker: WorkerId(u8::try_from(index).expect("few workers")),
            workers: self.workers.len(),
            shared: self.books.clone(),
            counters: counters.clone(),
            nonce_key: Box::new([11; 32]),
            seed: self.fresh_seed(),
        };
        let server = Server::import(parts, self.settings.clone(), state)?;
        self.workers[index].counters = counters;
        Ok(server)
    }

    /// A server without allocations that takes a worker's over.
    pub fn successor(&self, index: usize) -> (Server, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let parts = Parts {
            worker: WorkerId(u8::try_from(index).expect("few workers")),
            workers: self.workers.len(),
            shared: self.books.clone(),
            counters: counters.clone(),
            nonce_key: Box::new([11; 32]),
            seed: self.fresh_seed(),
        };
        (Server::new(parts, self.settings.clone()), counters)
    }

    /// As [`Harness::hand_over`], in two parts: so many slots at a time early, then `meanwhile`, then the rest.
    pub fn hand_over_early(&mut self, slots: usize, meanwhile: impl FnOnce(&mut Self)) {
        let mut successors: Vec<_> = (0..self.workers.len()).map(|index| self.successor(index)).collect();
        for (index, (successor, _)) in successors.iter_mut().enumerate() {
            let server = &mut self.workers[index].server;
            server.begin_early_export();
            let mut from = Some(0);
            while let Some(slot) = from {
                let (allocations, next) = server.early_export(slot, slots);
                let slice = EarlyAllocations { worker: WorkerId(index as u8), allocations };
                let bytes = state::write(&slice, state::FORMAT).expect("plain values");
                let slice: EarlyAllocations = state::read(&bytes).expect("what was written");
                successor.import_early(slice.allocations).expect("its own allocations");
                from = next;
            }
        }
        meanwhile(self);
        for (index, (mut server, counters)) in successors.into_iter().enumerate() {
            let changes = self.workers[index].server.export_changes();
            let bytes = state::write(&changes, state::FORMAT).expect("plain values");
            server.import_changes(state::read(&bytes).expect("what was written")).expect("its own changes");
            let (new, old) = (server.export(), self.workers[index].server.export());
            assert!(new == old, "it is the same server: {new:?}, {old:?}");
            (self.workers[index].server, self.workers[index].counters) = (server, counters);
            self.check_paths(index);
        }
        self.check();
    }

    // ---- clients ----

    pub fn add(&mut self, spec: Spec) -> Client {
        let number = self.clients.len();
        let from = spec.from.unwrap_or_else(|| {
            let port = 40_000 + u16::try_from(number).expect("few clients");
            let ip: IpAddr = if spec.ipv6 {
                [0x2a00, 0x77, number as u16, 0, 0, 0, 0, 1].into()
            } else {
                [11, 0, (number >> 8) as u8, number as u8].into()
            };
            SocketAddr::new(ip, port)
        });
        let five_tuple = FiveTuple {
            client: ClientAddress::from(from),
            server: ServerAddress::from(
                spec.server.unwrap_or_else(|| addr(if from.is_ipv6() { SERVER_IPV6 } else { SERVER_IPV4 })),
            ),
            transport: if spec.tcp { Transport::Tcp } else { Transport::Udp },
        };
        let via =
            if spec.tcp { Via::Stream(StreamId(1000 + number as u64), five_tuple) } else { Via::Datagram(five_tuple) };
        let worker = spec.worker.unwrap_or(number % self.workers.len());
        self.clients.push(ClientState {
            spec,
            worker,
            via,
            nonce: None,
            realm: REALM.into(),
            inbox: Vec::new(),
            allocation: None,
        });
        Client(number)
    }

    /// The one that was added as this number.
    pub fn client_at(&self, number: usize) -> Client {
        assert!(number < self.clients.len(), "there is one");
        Client(number)
    }

    /// `alice` over UDP and IPv4.
    pub fn client(&mut self) -> Client {
        self.add(alice())
    }

    pub fn via(&self, client: Client) -> Via {
        self.clients[client.0].via
    }
    pub fn address_of(&self, client: Client) -> SocketAddr {
        self.via(client).five_tuple().client.into()
    }
    pub fn key_of(&self, client: Client) -> [u8; 16] {
        let ClientState { spec, realm, .. } = &self.clients[client.0];
        long_term_key(&spec.username, realm, &spec.password)
    }
    /// The client takes another name on the same five-tuple.
    pub fn rename(&mut self, client: Client, spec: Spec) {
        let state = &mut self.clients[client.0];
        state.spec.username = spec.username;
        state.spec.password = spec.password;
    }
    pub fn nonce_of(&mut self, client: Client) -> Vec<u8> {
        if self.clients[client.0].nonce.is_none() {
            let mut challenge = self.ask_unsigned(client, allocate_for_challenge());
            if challenge.code() == 300 {
                // A draining server sends a first Allocate elsewhere; every other request is challenged as ever.
                challenge = self.ask_unsigned(client, stun::request(stun::REFRESH));
            }
            assert_eq!(challenge.code(), 401, "the first answer is the challenge");
            self.learn(client, &challenge);
        }
        self.clients[client.0].nonce.clone().expect("a nonce")
    }
    /// Takes over the realm and the nonce of a 401 or 438.
    pub fn learn(&mut self, client: Client, challenge: &Incoming) {
        let realm = challenge.get(stun::REALM).expect("REALM").to_vec();
        self.clients[client.0].realm = String::from_utf8(realm).expect("text");
        self.clients[client.0].nonce = Some(challenge.get(stun::NONCE).expect("NONCE").to_vec());
    }
    pub fn signature(&mut self, client: Client) -> Signature {
        let nonce = self.nonce_of(client);
        let key = self.key_of(client);
        let ClientState { spec, realm, .. } = &self.clients[client.0];
        let (username, realm) = (spec.username.clone(), Some(realm.clone()));
        Signature { username: Some(username), realm, nonce: Some(nonce), key, modern: None }
    }
    pub fn fresh_id(&mut self) -> stun::Id {
        self.ids += 1;
        let mut id = *b"test........";
        id[4..].copy_from_slice(&self.ids.to_be_bytes());
        id
    }

    // ---- the control lane ----

    /// Raw bytes in, every reply to this client out.
    pub fn tell(&mut self, client: Client, bytes: &[u8]) -> Vec<Incoming> {
        self.move_to_connection(client, bytes);
        let ClientState { via, worker, .. } = self.clients[client.0];
        self.input(worker, Input::Message { via, bytes });
        std::mem::take(&mut self.clients[client.0].inbox)
    }

    /// A stream goes to the worker of the connection that it is about to bind.
    fn move_to_connection(&mut self, client: Client, bytes: &[u8]) {
        let ClientState { via, worker, .. } = self.clients[client.0];
        let to = bound_at(bytes).map(|to| usize::from(to.0)).filter(|to| *to < self.workers.len());
        if let Some(to) = to.filter(|_| via.is_stream() && !self.workers[worker].server.has_allocation(&via)) {
            self.clients[client.0].worker = to;
        }
    }

    fn one_reply(&mut self, client: Client, bytes: &[u8]) -> Incoming {
        let mut replies = self.tell(client, bytes);
        let reply = replies.pop().expect("there is an answer");
        assert!(replies.is_empty(), "one request, one answer");
        let sent = Incoming::decode_lenient(bytes);
        assert_eq!((reply.method, reply.id), (sent.0, sent.1), "an answer repeats method and transaction id");
        reply
    }

    pub fn ask_unsigned(&mut self, client: Client, message: Outgoing) -> Incoming {
        let id = self.fresh_id();
        let reply = self.one_reply(client, &message.bytes(id, None));
        assert!(!reply.is_signed(), "there is no key to sign with");
        reply
    }

    /// Signed with whatever the test made up; the answer's own signature is the test's to judge.
    pub fn ask_with(&mut self, client: Client, signature: &Signature, message: Outgoing) -> Incoming {
        let id = self.fresh_id();
        self.one_reply(client, &message.bytes(id, Some(signature)))
    }

    /// Bytes of a request as this client signs it.
    pub fn signed(&mut self, client: Client, message: &Outgoing) -> Vec<u8> {
        let signature = self.signature(client);
        let id = self.fresh_id();
        message.bytes(id, Some(&signature))
    }

    /// The client's ordinary way: signed with its credential, answered with a signed response.
    pub fn ask(&mut self, client: Client, message: Outgoing) -> Incoming {
        let bytes = self.signed(client, &message);
        let reply = self.one_reply(client, &bytes);
        let key = self.key_of(client);
        // A nonce that was never given to this address is refused before anything is verified.
        if ![400, 401, 438].contains(&reply.code()) || reply.is_signed() {
            assert!(reply.is_signed_with(&key), "a verified request gets a signed answer");
        }
        reply
    }

    /// A signed request that must fail with this code, signed, for this reason and no other.
    #[track_caller]
    pub fn refuses(&mut self, client: Client, message: Outgoing, code: u16, reason: RejectReason) -> Incoming {
        self.nonce_of(client);
        let before = self.rejects(reason);
        let events = self.refused.len();
        let reply = self.ask(client, message);
        assert_eq!(reply.code(), code, "the error code");
        if ![401, 438].contains(&code) {
            assert!(reply.is_signed(), "error responses to a verified request are signed");
        }
        assert_eq!(self.rejects(reason), before + 1, "{} is counted", reason.name());
        let told: Vec<RejectReason> = self.refused[events..].iter().map(|(reason, _)| *reason).collect();
        assert_eq!(told, [reason], "the operator hears the reason");
        reply
    }

    /// As [`Harness::refuses`], wherever the allocation is.
    #[track_caller]
    pub fn refuses_anywhere(&mut self, client: Client, message: Outgoing, code: u16, reason: RejectReason) {
        self.nonce_of(client);
        let before = self.rejects(reason);
        let reply = self.ask(client, message);
        assert_eq!((reply.code(), self.rejects(reason)), (code, before + 1), "{}", reason.name());
    }

    /// Bytes that must be met with silence and one count of this reason.
    #[track_caller]
    pub fn silent(&mut self, client: Client, bytes: &[u8], why: DropReason) {
        let worker = self.clients[client.0].worker;
        let before = self.workers[worker].counters.drops_of(why);
        assert_eq!(self.tell(client, bytes), [], "no answer");
        let after = self.workers[worker].counters.drops_of(why);
        assert_eq!(after - before, Amount { packets: 1, bytes: bytes.len() as u64 }, "{} is counted", why.name());
    }

    pub fn allocate(&mut self, client: Client) -> SocketAddr {
        let reply = self.ask(client, stun::allocate());
        assert_eq!(reply.code(), 0, "Allocate succeeds");
        reply.relayed()
    }
    pub fn refresh(&mut self, client: Client, lifetime: u32) -> Incoming {
        self.ask(client, stun::request(stun::REFRESH).lifetime(lifetime))
    }
    pub fn permit(&mut self, client: Client, peers: &[SocketAddr]) -> u16 {
        self.ask(client, stun::request(stun::CREATE_PERMISSION).peers(peers)).code()
    }
    pub fn bind(&mut self, client: Client, number: u16, peer: SocketAddr) -> u16 {
        self.ask(client, bind(number, peer)).code()
    }

    pub fn disconnect(&mut self, client: Client) {
        let ClientState { via, worker, .. } = self.clients[client.0];
        self.input(worker, Input::ClientClosed { via });
    }

    pub fn reconfigure(&mut self, edit: impl FnOnce(&mut Settings)) {
        let mut settings = (*self.settings).clone();
        edit(&mut settings);
        self.settings = Arc::new(settings);
        for worker in 0..self.workers.len() {
            self.input(worker, Input::Reconfigure(self.settings.clone()));
        }
    }

    // ---- the data lanes ----

    pub fn from_client_with(&mut self, client: Client, meta: PacketMeta, bytes: &[u8]) -> Went {
        let ClientState { via, worker, .. } = self.clients[client.0];
        let verdict = self.workers[worker].server.relay_from_client(self.now, &via, meta, bytes);
        let went = own(verdict);
        self.check();
        went
    }
    pub fn from_client(&mut self, client: Client, bytes: &[u8]) -> Went {
        self.from_client_with(client, PacketMeta::default(), bytes)
    }
    pub fn channel_data(&mut self, client: Client, number: u16, payload: &[u8]) -> Went {
        self.from_client(client, &channel_data(number, payload))
    }
    pub fn send(&mut self, client: Client, peer: SocketAddr, payload: &[u8]) -> Went {
        self.send_message(client, stun::indication(stun::SEND).peer(peer).data(payload))
    }
    pub fn send_message(&mut self, client: Client, message: Outgoing) -> Went {
        let id = self.fresh_id();
        self.from_client(client, &message.bytes(id, None))
    }
    pub fn from_peer_with(&mut self, client: Client, peer: SocketAddr, meta: PacketMeta, payload: &[u8]) -> Went {
        let (id, _) = self.clients[client.0].allocation.expect("this client had an allocation");
        let worker = self.clients[client.0].worker;
        let verdict = self.workers[worker].server.relay_from_peer(self.now, id, peer.into(), meta, payload);
        let went = own(verdict);
        self.check();
        went
    }
    /// A datagram of a peer arrives on one of the client's relayed addresses.
    pub fn from_peer_on(&mut self, client: Client, relayed: SocketAddr, peer: SocketAddr, payload: &[u8]) -> Went {
        let id = self.ports.id_at(relayed).expect("an open relayed address");
        let worker = self.clients[client.0].worker;
        let meta = PacketMeta::default();
        let verdict = self.workers[worker].server.relay_from_peer(self.now, id, peer.into(), meta, payload);
        let went = own(verdict);
        self.check();
        went
    }
    /// A datagram of a peer arrives on the client's relayed address.
    pub fn from_peer(&mut self, client: Client, peer: SocketAddr, payload: &[u8]) -> Went {
        self.from_peer_with(client, peer, PacketMeta::default(), payload)
    }
    /// The kernel or a queue did not take packets of this client's allocation.
    pub fn not_sent(&mut self, client: Client, way: Direction, packets: u32, bytes: u64, why: DropReason) {
        let (id, _) = self.clients[client.0].allocation.expect("this client had an allocation");
        let worker = &mut self.workers[self.clients[client.0].worker];
        if worker.ended.iter().any(|record| record.allocation == id) {
            let late = &mut worker.late[way as usize];
            *late = *late + Amount { packets: u64::from(packets), bytes };
        }
        worker.server.not_sent(id, way, packets, bytes, why);
        self.check();
    }

    // ---- connections to peers (RFC 6062) ----

    /// A TCP allocation; its relayed address.
    pub fn allocate_tcp(&mut self, client: Client) -> SocketAddr {
        let reply = self.ask(client, stun::request(stun::ALLOCATE).transport(6));
        assert_eq!(reply.code(), 0, "Allocate succeeds");
        reply.relayed()
    }
    /// A Connect, whose answer comes later.
    pub fn connect(&mut self, client: Client, peer: SocketAddr) -> Connecting {
        let bytes = self.signed(client, &stun::request(stun::CONNECT).peer(peer));
        let before = self.connects.len();
        assert_eq!(self.tell(client, &bytes), [], "the answer waits for the peer");
        assert_eq!(self.connects.len(), before + 1, "one connection is begun");
        self.connects[before]
    }
    /// The peer accepts, or not; what the clients of that worker heard lies in their inboxes.
    pub fn connected(&mut self, of: Connecting, result: Result<(), ConnectRefused>) {
        self.input(of.worker, Input::Connected { connection: of.id, result });
    }
    /// A peer connects to this client's relayed address.
    pub fn peer_connects(&mut self, client: Client, peer: SocketAddr) -> Option<ConnectionId> {
        let (id, _) = self.clients[client.0].allocation.expect("this client had an allocation");
        let worker = self.clients[client.0].worker;
        let accepted = self.workers[worker].server.accept_peer(self.now, id, peer.into());
        self.drain(worker);
        self.settle();
        accepted
    }
    /// Bytes come over a bound connection of this client's worker.
    pub fn carry(&mut self, client: Client, connection: ConnectionId, way: Direction, payload: &[u8]) -> Carry {
        let worker = self.clients[client.0].worker;
        let (carry, _) = self.workers[worker].server.carry(self.now, connection, way, payload);
        self.drain(worker);
        self.settle();
        carry
    }
    /// Both sides of a connection have ended.
    pub fn connection_ended(&mut self, client: Client, connection: ConnectionId) {
        self.input(self.clients[client.0].worker, Input::ConnectionEnded { connection });
    }

    // ---- the world ----

    /// The counters of a client's worker.
    pub fn counters_of(&self, client: Client) -> &Counters {
        &self.workers[self.clients[client.0].worker].counters
    }
    /// An operator forgives what networks failed; how many had failures.
    pub fn forgive(&mut self, prefix: &str) -> usize {
        self.books.forgive(self.now, prefix)
    }
    /// How often requests were refused for this reason, on all workers.
    pub fn rejects(&self, why: RejectReason) -> u64 {
        self.workers.iter().map(|worker| worker.counters.rejects_of(why)).sum()
    }
    pub fn drops(&self, why: DropReason) -> Amount {
        self.workers.iter().map(|worker| worker.counters.drops_of(why)).fold(Amount::default(), |a, b| a + b)
    }
    pub fn allocations(&self) -> usize {
        self.workers.iter().map(|worker| worker.server.allocations()).sum()
    }
    pub fn leftovers(&self) -> usize {
        self.workers.iter().map(|worker| worker.server.leftovers()).sum()
    }
    /// What the relayed socket of a client is known by.
    pub fn id_of(&self, client: Client) -> AllocationId {
        self.clients[client.0].allocation.expect("this client had an allocation").0
    }
    /// The live session of a client.
    pub fn session(&self, client: Client) -> Option<SessionRecord> {
        let (id, _) = self.clients[client.0].allocation?;
        self.workers[self.clients[client.0].worker].server.sessions(self.now).find(|record| record.allocation == id)
    }
    pub fn is_alive(&self, client: Client) -> bool {
        self.session(client).is_some()
    }
    pub fn server_of(&mut self, client: Client) -> &mut Server {
        &mut self.workers[self.clients[client.0].worker].server
    }
    pub fn first_server(&mut self) -> &mut Server {
        &mut self.workers[0].server
    }
    /// No new allocations on any worker.
    pub fn drain_all(&mut self) {
        for worker in 0..self.workers.len() {
            self.input(worker, Input::Drain);
        }
    }
    /// An operator ends sessions, on whichever worker they are.
    pub fn close(&mut self, which: &Selector, reason: EndReason) {
        for worker in 0..self.workers.len() {
            self.input(worker, Input::Close { which: which.clone(), reason });
        }
    }
    pub fn close_all(&mut self, reason: EndReason) {
        for worker in 0..self.workers.len() {
            self.input(worker, Input::CloseAll(reason));
        }
    }

    /// One input, then all that follows from it.
    fn input(&mut self, worker: usize, input: Input<'_>) {
        self.workers[worker].server.handle_input(self.now, input);
        self.drain(worker);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some((worker, owed)) = self.owed.pop_front() {
            let input = match &owed {
                Owed::Admission(allocation, result) => {
                    Input::Admission { allocation: *allocation, result: result.clone() }
                }
                Owed::Opened(allocation, _, result) => Input::RelayOpened { allocation: *allocation, result: *result },
                Owed::Asked(ticket, question) => Input::Asked { ticket: *ticket, question: question.clone() },
                Owed::Answered(ticket, answer) => Input::Answered { ticket: *ticket, answer: answer.clone() },
            };
            if let Owed::Opened(_, request, Ok(opened)) = &owed {
                self.books.opened(opened.relayed);
                if matches!(request, RelayRequest::Tcp { .. }) {
                    self.books.is_tcp(opened.relayed);
                }
            }
            self.workers[worker].server.handle_input(self.now, input);
            self.drain(worker);
        }
        self.check();
    }

    fn drain(&mut self, worker: usize) {
        while let Some(output) = self.workers[worker].server.poll_output() {
            self.carry_out(worker, output);
        }
    }

    fn carry_out(&mut self, worker: usize, output: Output) {
        let me = WorkerId(u8::try_from(worker).expect("few workers"));
        match output {
            Output::Reply { via, bytes } => {
                let client = self.clients.iter_mut().find(|client| client.via == via).expect("a reply to a client");
                client.inbox.push(Incoming::decode(&bytes));
            }
            Output::Admit { allocation, purpose } => {
                if self.hold_back_admissions {
                    self.held_admissions.push_back((worker, allocation, purpose));
                } else {
                    self.admit(worker, allocation, purpose);
                }
            }
            Output::OpenRelay { allocation, request } => {
                self.opens.push(request);
                self.held_opens.push_back((worker, allocation, request));
                if !self.hold_back_opens {
                    self.answer_opens();
                }
            }
            Output::CloseRelay { allocation, relayed, .. } => {
                self.ports.close(me, allocation, relayed);
                self.books.closed(relayed);
                self.closed.push(relayed.into());
            }
            Output::MoveRelay { from, to, relayed } => self.ports.rename(me, from, to, relayed),
            Output::CloseReserved { relayed } => {
                self.ports.close_reserved(relayed);
                self.closed_reserved.push(relayed.into());
            }
            Output::Ask { worker: owner, ticket, question } => {
                let is_on_its_way = matches!(question, Question::Path(_));
                assert!(owner != me || is_on_its_way, "a worker asks another one");
                self.ask_worker(worker, owner, ticket, question);
            }
            Output::Answer {
                ticket,
                answer: Answer::Path(PathAnswer::Moved { via, allocation: Some((from, state)) }),
            } => {
                self.give_away(me, ticket, via, from, *state);
            }
            Output::KeepRelay { allocation, relayed, .. } => {
                let opened = self.ports.open(me, allocation, RelayRequest::Reserved { relayed, client: [0; 4].into() });
                assert!(opened.is_ok(), "the socket came along");
                self.books.opened(relayed);
            }
            Output::Path { via, is_in_use } => self.use_path(worker, &via, is_in_use),
            Output::Answer { ticket, answer } => {
                self.between_workers(usize::from(ticket.worker.0), Owed::Answered(ticket, answer));
            }
            Output::Connect { connection, relayed, peer, .. } => {
                self.connects.push(Connecting { worker, id: connection, relayed: relayed.into(), peer: peer.into() });
            }
            Output::BindConnection { connection, via } => self.bound.push((connection, via)),
            Output::CloseConnection { connection } => self.closed_connections.push(connection),
            Output::Happened(event) => self.note(worker, event),
            other => panic!("an output that this shell does not know: {other:?}"),
        }
    }

    fn note(&mut self, worker: usize, event: Event) {
        match event {
            Event::AllocationCreated(record) => {
                let via = record.via;
                let client = self.clients.iter_mut().find(|client| client.via == via).expect("a client's allocation");
                client.allocation = Some((record.allocation, record.relayed));
                self.use_path(worker, &via, true);
                self.records.push(("start", *record));
            }
            Event::AllocationInterim(record) => self.records.push(("interim", *record)),
            Event::AllocationMoved { record, from } => {
                for client in &mut self.clients {
                    if client.via == record.via {
                        client.allocation = Some((record.allocation, record.relayed));
                    } else if client.via == from {
                        client.allocation = None;
                    }
                }
                self.records.push(("moved", *record));
            }
            Event::AllocationEnded(record) => {
                self.use_path(worker, &record.via, false);
                self.workers[worker].ended.push((*record).clone());
                self.records.push(("stop", (*record).clone()));
                self.ended.push(*record);
            }
            Event::Refused { reason, username, .. } => self.refused.push((reason, username)),
        }
    }

    /// A way of a client belongs to an allocation, or no longer: each is told once.
    fn use_path(&mut self, worker: usize, via: &Via, is_in_use: bool) {
        let count = self.paths.entry((worker, format!("{via:?}"))).or_default();
        *count += if is_in_use { 1 } else { -1 };
    }

    /// A shell that takes over counts the ways that the one before was told of.
    fn check_paths(&self, worker: usize) {
        let mut counted: Vec<String> = self.workers[worker].server.clients().map(|via| format!("{via:?}")).collect();
        let told = self.paths.iter().filter(|((of, _), count)| *of == worker && **count > 0);
        let mut told: Vec<String> = told.map(|((_, via), _)| via.clone()).collect();
        counted.sort_unstable();
        told.sort_unstable();
        assert_eq!(counted, told, "ways in use");
    }

    fn ask_worker(&mut self, from: usize, to: WorkerId, ticket: QuestionId, question: Question) {
        let to = usize::from(to.0);
        if self.full_inbox != Some(to) {
            return self.between_workers(to, Owed::Asked(ticket, question));
        }
        if let Question::Path(question) = question
            && question.has_answer()
        {
            let answer = Answer::Path(PathAnswer::NoRoom { via: question.via() });
            assert_eq!(usize::from(ticket.worker.0), from, "no question goes on in such a test");
            self.owed.push_back((from, Owed::Answered(ticket, answer)));
        }
    }

    /// An allocation goes to another worker with its sockets, or comes back at once.
    fn give_away(&mut self, me: WorkerId, ticket: QuestionId, via: Via, from: Via, state: AllocationState) {
        let to = usize::from(ticket.worker.0);
        if self.full_inbox == Some(to) {
            return self.workers[usize::from(me.0)].server.come_back(ticket.worker, from, state);
        }
        for (socket, relayed) in state.sockets() {
            self.ports.hold(me, socket, relayed);
            self.books.closed(relayed);
        }
        let answer = Answer::Path(PathAnswer::Moved { via, allocation: Some((from, Box::new(state))) });
        self.between_workers(to, Owed::Answered(ticket, answer));
    }

    /// Whether an allocation is on its way between two workers.
    fn is_moving(&self) -> bool {
        self.held_asks.iter().chain(&self.owed).any(|(_, owed)| {
            matches!(owed, Owed::Answered(_, Answer::Path(PathAnswer::Moved { allocation: Some(_), .. })))
        })
    }

    fn between_workers(&mut self, to: usize, owed: Owed) {
        if self.hold_back_asks {
            self.held_asks.push_back((to, owed));
        } else {
            self.owed.push_back((to, owed));
        }
    }

    fn admit(&mut self, worker: usize, allocation: AllocationId, purpose: Purpose) {
        let server = &self.workers[worker].server;
        let (claim, limits) = server.quota_claim(allocation).expect("it waits for its admission");
        let result = self.books.admit(self.now, &claim, limits, purpose);
        self.owed.push_back((worker, Owed::Admission(allocation, result)));
    }

    /// Answers every admission that was held back; the replies to this client come out.
    pub fn let_admissions_go(&mut self, client: Client) -> Vec<Incoming> {
        self.hold_back_admissions = false;
        while let Some((worker, allocation, purpose)) = self.held_admissions.pop_front() {
            self.admit(worker, allocation, purpose);
        }
        self.settle();
        std::mem::take(&mut self.clients[client.0].inbox)
    }

    fn answer_opens(&mut self) {
        while let Some((worker, id, request)) = self.held_opens.pop_front() {
            let me = WorkerId(u8::try_from(worker).expect("few workers"));
            let result = self.ports.open(me, id, request);
            self.owed.push_back((worker, Owed::Opened(id, request, result)));
        }
    }

    /// Answers one OpenRelay that was held back, and holds back what follows from it.
    pub fn let_one_open_go(&mut self) {
        if let Some((worker, id, request)) = self.held_opens.pop_front() {
            let result = self.ports.open(WorkerId(u8::try_from(worker).expect("few workers")), id, request);
            self.owed.push_back((worker, Owed::Opened(id, request, result)));
            self.settle();
        }
    }

    /// Answers every OpenRelay that was held back; the replies to this client come out.
    pub fn let_opens_go(&mut self, client: Client) -> Vec<Incoming> {
        self.hold_back_opens = false;
        self.answer_opens();
        self.settle();
        std::mem::take(&mut self.clients[client.0].inbox)
    }

    /// Delivers the questions and answers that were held back, and those that follow.
    pub fn let_asks_go(&mut self, client: Client) -> Vec<Incoming> {
        self.hold_back_asks = false;
        self.owed.append(&mut self.held_asks);
        self.settle();
        self.inbox(client)
    }

    /// Delivers one message between workers and holds back what follows from it.
    pub fn let_one_ask_go(&mut self) {
        let first = self.held_asks.pop_front().expect("a message between workers was held back");
        self.owed.push_back(first);
        self.settle();
    }

    /// Delivers messages between workers that were held back, but for the first: the last first, and what follows from them.
    pub fn let_later_asks_go(&mut self) {
        for _ in 0..100 {
            if self.held_asks.len() > 1 {
                self.owed.extend(self.held_asks.pop_back());
                self.settle();
            }
        }
        assert_eq!(self.held_asks.len(), 1, "workers ask each other without an end");
    }

    /// What came for this client meanwhile.
    pub fn inbox(&mut self, client: Client) -> Vec<Incoming> {
        std::mem::take(&mut self.clients[client.0].inbox)
    }

    /// Lets so many seconds pass, from deadline to deadline.
    pub fn advance(&mut self, seconds: u64) {
        self.advance_ms(seconds * 1000);
    }

    pub fn advance_ms(&mut self, milliseconds: u64) {
        let end = Ticks(self.now.ticks.0 + milliseconds);
        loop {
            let due = self.workers.iter().filter_map(|worker| worker.server.poll_timeout()).min();
            match due.filter(|due| *due <= end) {
                Some(due) => self.set_time(due),
                None => break,
            }
            for worker in 0..self.workers.len() {
                // A call does a part of what is due.
                while self.workers[worker].server.poll_timeout().is_some_and(|due| due <= self.now.ticks) {
                    self.workers[worker].server.handle_timeout(self.now);
                    self.drain(worker);
                }
            }
            self.settle();
        }
        self.set_time(end);
    }

    /// Jumps without calling handle_timeout, as between two batches of one busy worker.
    pub fn jump_ms(&mut self, milliseconds: u64) {
        self.set_time(Ticks(self.now.ticks.0 + milliseconds));
    }

    fn set_time(&mut self, ticks: Ticks) {
        assert!(ticks >= self.now.ticks, "time does not go back");
        self.now = Now { ticks, unix: UnixSeconds(START_UNIX + (ticks.0 - 5_000) / 1000) };
    }

    /// Invariants of each worker, the quota books, and the accounts: sums of the sessions are the totals.
    #[track_caller]
    pub fn check(&self) {
        if self.is_unchecked {
            return;
        }
        for worker in &self.workers {
            worker.server.check_invariants();
        }
        self.check_accounts();
        assert!(self.paths.values().all(|count| (0..=1).contains(count)), "{:?}", self.paths);
        if self.held_admissions.is_empty()
            && self.held_opens.is_empty()
            && self.held_asks.is_empty()
            && self.owed.is_empty()
        {
            let open: usize = self.allocations();
            // An opening that waits for an answer which never comes counts until its time is over.
            assert!(self.books.admitted() >= open, "every live allocation is counted");
            if self.workers.iter().all(|worker| worker.server.leftovers() == 0) {
                assert_eq!(self.books.admitted(), 0, "quota is given back");
                assert_eq!(self.ports.count(), 0, "every port is closed");
                assert!(self.paths.values().all(|count| *count == 0), "no way is in use: {:?}", self.paths);
                assert_eq!(self.books.mobile(), 0, "no session is thought to be anywhere");
            }
        }
    }

    #[track_caller]
    fn check_accounts(&self) {
        if self.is_moving() {
            // What it has counted is on its way with it.
            return;
        }
        let all =
            |pick: &dyn Fn(&Worker) -> Amount| self.workers.iter().map(pick).fold(Amount::default(), |a, b| a + b);
        let live: Vec<SessionRecord> =
            self.workers.iter().flat_map(|worker| worker.server.sessions(self.now).collect::<Vec<_>>()).collect();
        let known: Vec<&SessionRecord> = live.iter().chain(self.workers.iter().flat_map(|of| &of.ended)).collect();
        let sum = |pick: &dyn Fn(&SessionRecord) -> Amount| {
            known.iter().map(|record| pick(record)).fold(Amount::default(), |a, b| a + b)
        };
        for record in &known {
            let flows = [record.traffic.to_peers, record.traffic.to_client];
            let dropped = flows.iter().fold(Amount::default(), |sum, flow| sum + flow.dropped);
            let by_reason = record.dropped.iter().fold(Amount::default(), |sum, (_, amount)| sum + *amount);
            assert_eq!(dropped, by_reason, "each record tells why, to the byte: {record:?}");
        }
        // An allocation may go from one worker to another, so the sums of all workers count.
        let [late_to_peer, late_to_client] = [0, 1].map(|way| all(&|worker| worker.late[way]));
        let received = [all(&|of| of.counters.from_clients.get()), all(&|of| of.counters.from_peers.get())];
        let sent = [all(&|of| of.counters.to_peers.get()), all(&|of| of.counters.to_clients.get())];
        assert_eq!(sum(&|r| r.traffic.to_peers.received), received[0], "from clients");
        assert_eq!(sum(&|r| r.traffic.to_client.received), received[1], "from peers");
        assert_eq!(sum(&|r| r.traffic.to_peers.sent()) - late_to_peer, sent[0], "to peers");
        assert_eq!(sum(&|r| r.traffic.to_client.sent()) - late_to_client, sent[1], "to clients");
        for worker in &self.workers {
            let counters = &worker.counters;
            let dropped = counters.from_clients.get() - counters.to_peers.get() + counters.from_peers.get()
                - counters.to_clients.get();
            let by_reason = DropReason::ALL
                .iter()
                .filter(|why| !belongs_to_nobody(**why))
                .map(|why| counters.drops_of(*why))
                .fold(Amount::default(), |a, b| a + b);
            assert_eq!(dropped, by_reason, "what came in went out or was dropped for a reason");
        }
    }
}

/// Drops that count bytes as received, because they belong to no allocation's payload.
fn belongs_to_nobody(why: DropReason) -> bool {
    use DropReason as D;
    [
        D::NotStun,
        D::Malformed,
        D::ControlTooLong,
        D::BadFingerprint,
        D::UnknownMethod,
        D::OverReplies,
        D::OverRequests,
        D::OverFailures,
        D::UnexpectedClass,
        D::BadChannelData,
        D::NoAllocation,
        D::Moving,
        D::BadSend,
        D::RelayClosed,
    ]
    .contains(&why)
}

fn own(verdict: Relay<'_>) -> Went {
    match verdict {
        Relay::ToPeer { allocation, to, meta, payload } | Relay::ToRelayed { allocation, to, meta, payload, .. } => {
            Went::ToPeer { allocation, to: to.into(), payload: payload.to_vec(), meta }
        }
        Relay::ToClient { via, head, meta, payload, .. } => {
            let mut bytes = head.bytes().to_vec();
            bytes.extend(payload);
            bytes.resize(bytes.len() + head.padding(), 0);
            Went::ToClient { via, bytes, meta }
        }
        Relay::Drop(why) => Went::Dropped(why),
    }
}

pub fn bind(number: u16, peer: SocketAddr) -> Outgoing {
    stun::request(stun::CHANNEL_BIND).channel(number).peer(peer)
}

pub fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend(u16::try_from(payload.len()).expect("a length has 16 bits").to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn allocate_for_challenge() -> Outgoing {
    stun::allocate()
}

impl Incoming {
    /// Method and transaction id of any message, even one that a server may not send.
    fn decode_lenient(bytes: &[u8]) -> (u16, stun::Id) {
        let kind = u16::from_be_bytes([bytes[0], bytes[1]]);
        ((kind >> 2) & 0xF80 | (kind >> 1) & 0x70 | kind & 0xF, bytes[8..20].try_into().expect("twelve bytes"))
    }
}
