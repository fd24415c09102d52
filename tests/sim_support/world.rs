//! Carries packets, hands the servers their inputs and compares all that comes out with the model.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use throughway::protocol::accounting::{Amount, Flow};
use throughway::protocol::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::border::{
    AllocationId, Answer, AskId, DropReason, EndReason, Event, Input, OpenedRelay, Output, PacketMeta, Parity,
    Question, Relay, RelayRefused, RelayRequest, Way, WorkerId,
};
use throughway::protocol::counters::Counters;
use throughway::protocol::time::{Now, Ticks, UnixSeconds};
use throughway::protocol::{Parts, Server};
use throughway::wire::attribute::xor_address;
use throughway::wire::integrity::{Fingerprint, check_fingerprint};
use throughway::wire::message::{CLASS_SUCCESS_RESPONSE, Known, METHOD_BINDING, Message};

use super::actions::Client;
use super::config::{Config, RELAY_IPV4, RELAY_IPV6};
use super::model::{Held, Key, Lane, Model, Opening, Outcome, Session, Totals, granted, unix};
use super::packet::{Request, What};
use super::quota::SharedTables;
use super::rng::Rng;

/// A packet of a client or of somebody who pretends to be one.
#[derive(Clone)]
pub struct Packet {
    pub via: Via,
    pub bytes: Rc<[u8]>,
    /// What was meant; `None` for data and noise.
    pub request: Option<Rc<Request>>,
    /// The bytes are no longer what was meant.
    pub damaged: bool,
}

pub enum Due {
    Act,
    ToServer(Packet),
    ToClient(Via, Vec<u8>),
    FromPeer { to: RelayedTransportAddress, from: PeerAddress, at: usize, len: usize },
    Open(Key, RelayRequest),
    Asked(usize, AskId, Question),
    Answered(usize, AskId, Answer),
    NotSent(Key, Way, usize, DropReason),
}

pub struct Worker {
    pub server: Server,
    pub counters: Arc<Counters>,
}

pub struct Socket {
    pub worker: usize,
    /// `None` while it is held for a token.
    pub owner: Option<AllocationId>,
}

pub struct World {
    pub step: u64,
    pub trace: bool,
    pub rng: Rng,
    pub now: u64,
    pub workers: Vec<Worker>,
    pub shared: Arc<SharedTables>,
    pub config: Config,
    pub model: Model,
    pub clients: Vec<Client>,
    pub client_of: HashMap<Via, usize>,
    pub streams: u64,
    pub sockets: BTreeMap<RelayedTransportAddress, Socket>,
    pub wiretap: VecDeque<Packet>,
    pub ended: Vec<Key>,
    pub noise: Rc<[u8]>,
    pub lazy_timers: bool,
    pub events: BTreeMap<(u64, u64), Due>,
    pub event_number: u64,
    pub refused_events: u64,
    pub delivered: u64,
    /// How often each error code was due; 200 stands for success.
    pub codes: BTreeMap<u16, u64>,
    ending: Option<(Key, EndReason)>,
}

macro_rules! trace {
    ($world:expr, $($text:tt)+) => {
        if $world.trace {
            eprintln!("[step {} at {} ms] {}", $world.step, $world.now, format_args!($($text)+));
        }
    };
}
pub(super) use trace;

/// All that a shell may report of a send.
const SEND_FAILURES: [DropReason; 11] = [
    DropReason::Unreachable,
    DropReason::Refused,
    DropReason::Forbidden,
    DropReason::MessageSize,
    DropReason::NoBuffers,
    DropReason::SendFailed,
    DropReason::SlowClient,
    DropReason::StreamClosed,
    DropReason::RelayClosed,
    DropReason::InboxFull,
    DropReason::TooBig,
];

const CONTROL_DROPS: [DropReason; 4] =
    [DropReason::Malformed, DropReason::BadFingerprint, DropReason::UnknownMethod, DropReason::UnexpectedClass];

/// What the servers put out besides what the model takes note of by itself.
#[derive(Default)]
struct Out {
    replies: Vec<(Via, Vec<u8>)>,
    opens: Vec<(AllocationId, RelayRequest)>,
    asks: Vec<(usize, AskId, Question)>,
    answers: Vec<(AskId, Answer)>,
    created: usize,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.range(1, 4) as usize;
        let limits = throughway::protocol::settings::Limits {
            allocations: if rng.percent(25) { Some(rng.range(3, 30) as u32) } else { None },
            allocations_per_user: Some(rng.range(1, 12) as u32),
            allocations_per_client: if rng.percent(50) { Some(rng.range(2, 40) as u32) } else { None },
            permissions_per_allocation: rng.range(2, 12) as u32,
            channels_per_allocation: rng.range(2, 12) as u32,
        };
        let config = Config::first(limits);
        let shared = Arc::new(SharedTables::default());
        let settings = config.settings();
        let workers: Vec<Worker> = (0..count)
            .map(|index| {
                let counters = Arc::new(Counters::default());
                let parts = Parts {
                    worker: WorkerId(index as u8),
                    workers: count,
                    shared: shared.clone(),
                    counters: counters.clone(),
                    nonce_key: Box::new([7; 32]),
                    seed: rng.bytes(),
                };
                Worker { server: Server::new(parts, settings.clone()), counters }
            })
            .collect();
        let mut noise = vec![0; 140_000];
        rng.fill(&mut noise);
        let mut world = Self {
            step: 0,
            trace,
            now: 1_000_000 + rng.below(1_000_000),
            shared,
            config,
            model: Model { totals: vec![Totals::default(); count], ..Model::default() },
            clients: Vec::new(),
            client_of: HashMap::new(),
            streams: 0,
            sockets: BTreeMap::new(),
            wiretap: VecDeque::new(),
            ended: Vec::new(),
            noise: noise.into(),
            lazy_timers: rng.percent(25),
            events: BTreeMap::new(),
            event_number: 0,
            refused_events: 0,
            delivered: 0,
            codes: BTreeMap::new(),
            ending: None,
            rng,
            workers,
        };
        world.make_clients();
        world
    }

    pub fn clock(&self) -> Now {
        Now { ticks: Ticks(self.now), unix: UnixSeconds(unix(self.now)) }
    }

    /// The worker whose sockets a client's packets arrive on.
    pub fn worker_of(&self, via: &Via) -> usize {
        let number = match via {
            Via::Datagram(five_tuple) => u64::from(five_tuple.client.port()),
            Via::Stream(stream, _) => stream.0,
        };
        (number % self.workers.len() as u64) as usize
    }

    pub fn at(&mut self, when: u64, due: Due) {
        self.event_number += 1;
        self.events.insert((when.max(self.now), self.event_number), due);
    }

    pub fn after(&mut self, low: u64, high: u64, due: Due) {
        let when = self.now + self.rng.range(low, high);
        self.at(when, due);
    }

    /// Runs to the end of all events, then to the end of all lifetimes.
    pub fn run(&mut self, steps: u64) {
        self.after(0, 10, Due::Act);
        while let Some(((when, _), due)) = self.events.pop_first() {
            self.advance(when);
            self.step += 1;
            if let Due::Act = due {
                if self.step < steps {
                    self.act();
                    let gap = if self.rng.percent(96) { (0, 200) } else { (1_000, 40_000) };
                    self.after(gap.0, gap.1, Due::Act);
                }
            } else {
                self.happen(due);
            }
            if self.trace || self.step.is_multiple_of(16) {
                self.workers.iter().for_each(|worker| worker.server.check_invariants());
            }
            if self.step.is_multiple_of(128) {
                self.compare();
            }
        }
        self.finish();
    }

    /// Lets time pass, stopping at each deadline of a worker.
    fn advance(&mut self, when: u64) {
        loop {
            let due = (0..self.workers.len())
                .filter_map(|w| Some((self.workers[w].server.poll_timeout()?.0, w)))
                .min()
                .filter(|(at, _)| *at <= when);
            let Some((at, worker)) = due else { break };
            let late = if self.lazy_timers { self.rng.below(60) } else { 0 };
            if at + late > when {
                // The loop sleeps on: whatever comes next must be judged by its own time.
                break;
            }
            self.now = self.now.max(at + late);
            self.timeout(worker);
        }
        self.now = when.max(self.now);
    }

    pub fn timeout(&mut self, worker: usize) {
        let now = self.clock();
        self.workers[worker].server.handle_timeout(now);
        let out = self.drain(worker);
        self.nothing(&out);
    }

    fn nothing(&self, out: &Out) {
        assert!(out.replies.is_empty(), "nobody asked, yet a reply: {:02x?}", out.replies);
        assert!(out.opens.is_empty() && out.asks.is_empty() && out.answers.is_empty() && out.created == 0);
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Act => unreachable!("handled by run"),
            Due::ToServer(packet) => self.deliver(&packet),
            Due::ToClient(via, bytes) => self.client_hears(&via, &bytes),
            Due::FromPeer { to, from, at, len } => {
                if let Some(Socket { worker, owner: Some(id) }) = self.sockets.get(&to) {
                    self.deliver_from_peer((*worker, *id), from, at, len);
                }
            }
            Due::Open(key, request) => self.open(key, request),
            Due::Asked(worker, ticket, question) => self.asked(worker, ticket, question),
            Due::Answered(worker, ticket, answer) => self.answered(worker, ticket, answer),
            Due::NotSent(key, way, len, why) => self.not_sent(key, way, len, why),
        }
    }

    /// Sorts a packet as a shell does and hands it over.
    pub fn deliver(&mut self, packet: &Packet) {
        if packet.via.is_stream() && !self.client_of.contains_key(&packet.via) {
            return; // the stream closed while the bytes were on their way
        }
        let worker = self.worker_of(&packet.via);
        match &*packet.bytes {
            [] => {}
            [0x40..=0x4F, ..] | [0, 0x16, ..] => self.deliver_data(worker, packet),
            [0x00..=0x3F, ..] => self.deliver_control(worker, packet),
            bytes => {
                let now = self.clock();
                let verdict =
                    self.workers[worker].server.relay_from_client(now, &packet.via, PacketMeta::default(), bytes);
                assert!(matches!(verdict, Relay::Drop(DropReason::NotStun)), "{verdict:?}");
                self.drop_counted(worker, DropReason::NotStun, bytes.len());
            }
        }
    }

    fn drop_counted(&mut self, worker: usize, why: DropReason, bytes: usize) {
        add(&mut self.model.totals[worker].drops[why as usize], bytes);
    }

    fn deliver_control(&mut self, worker: usize, packet: &Packet) {
        let now = self.now;
        let place = (worker, self.workers.len());
        let predicted =
            packet.request.as_ref().map(|request| self.model.predict(&self.config, now, place, &packet.via, request));
        trace!(
            self,
            "worker {worker} <- {:?} {:?}{}",
            packet.via.five_tuple().client,
            packet.request,
            if packet.damaged { " (damaged)" } else { "" }
        );
        trace!(self, "  must give {predicted:?}");
        if let (Some(request), Some(Outcome::Success)) = (&packet.request, &predicted) {
            if request.what == What::Refresh && request.lifetime == Some(0) {
                self.ending = self.model.alive(&packet.via, now).map(|(key, _)| (key, EndReason::Refreshed));
            }
        }
        let before = CONTROL_DROPS.map(|why| self.workers[worker].counters.drops_of(why));
        let clock = self.clock();
        let mut answer = [0; ANSWER_BYTES_MAX];
        let fast = self.rng.percent(50);
        let server = &mut self.workers[worker].server;
        let quick = if fast { server.answer_binding(&packet.via, &packet.bytes, &mut answer) } else { None };
        if quick.is_none() {
            server.handle_input(clock, Input::Message { via: packet.via, bytes: &packet.bytes });
        }
        let mut out = self.drain(worker);
        if let Some(Outcome::Error { code, .. }) = predicted {
            *self.codes.entry(code).or_default() += 1;
        }
        if let Some(len @ 1..) = quick {
            out.replies.push((packet.via, answer[..len].to_vec()));
        }
        self.ending = None;
        let mut dropped = 0;
        for (why, before) in CONTROL_DROPS.iter().zip(before) {
            let more = self.workers[worker].counters.drops_of(*why) - before;
            if more.packets > 0 {
                dropped += more.packets;
                assert_eq!(more.bytes, packet.bytes.len() as u64, "a dropped message counts with all its bytes");
                self.drop_counted(worker, *why, packet.bytes.len());
            }
        }
        assert!(dropped + out.replies.len() as u64 <= 1, "one message, at most one reply or one drop");
        let effect = !out.opens.is_empty()
            || !out.asks.is_empty()
            || out.replies.iter().any(|(_, bytes)| {
                let found = Message::parse(bytes).expect("a reply is well-formed").message_type();
                found.class == CLASS_SUCCESS_RESPONSE && found.method != METHOD_BINDING
            });
        match (packet.request.clone(), predicted) {
            (Some(request), Some(outcome)) if !packet.damaged || effect => {
                assert!(dropped == 0, "a well-formed request was dropped instead of {outcome:?}");
                self.verify(worker, packet, &request, outcome, out);
            }
            _ => {
                assert!(!effect, "noise had an effect: {:02x?}", packet.bytes);
                for (via, bytes) in out.replies {
                    self.note_reply(worker, &via, &bytes);
                    self.send_reply(via, bytes);
                }
            }
        }
    }

    /// Compares with the prediction and takes over what the request changed.
    fn verify(&mut self, worker: usize, packet: &Packet, request: &Rc<Request>, outcome: Outcome, mut out: Out) {
        let now = self.now;
        let opened = |outcome: &Outcome| match outcome {
            Outcome::OpenFresh(family, parity) => Some(RelayRequest::Fresh {
                family: *family,
                parity: *parity,
                client: packet.via.five_tuple().client.ip(),
            }),
            Outcome::OpenReserved(relayed) => {
                Some(RelayRequest::Reserved { relayed: *relayed, client: packet.via.five_tuple().client.ip() })
            }
            Outcome::Silent | Outcome::Success | Outcome::Error { .. } | Outcome::Ask(_) => None,
        };
        match outcome {
            Outcome::Silent => self.nothing(&out),
            Outcome::OpenFresh(..) | Outcome::OpenReserved(_) | Outcome::Ask(_) => {
                assert!(out.replies.is_empty(), "no reply before the relayed address is open");
                let signed = request.signed.as_ref().unwrap();
                let known = self.config.user(&signed.username, &signed.password, unix(now));
                let (limited, identity) = known.expect("predicted as genuine");
                let mut opening =
                    Opening { via: packet.via, request: request.clone(), identity, limited, asking: None };
                let id = if let Outcome::Ask(owner) = outcome {
                    let (to, ticket, question) = out.asks.pop().expect("the owner of the token is asked");
                    assert_eq!((to, out.opens.len()), (owner, 0));
                    assert_eq!(ticket.worker, WorkerId(worker as u8));
                    opening.asking = Some((ticket.number, now + 2_000));
                    if !self.rng.percent(10) {
                        let late = if self.rng.percent(20) { 3_000 } else { 20 };
                        self.after(0, late, Due::Asked(to, ticket, question));
                    }
                    // The id is told when the relayed address is opened.
                    AllocationId { index: u32::MAX, generation: ticket.number as u32 }
                } else {
                    let (id, wish) = out.opens.pop().expect("a relayed address is asked for");
                    assert_eq!(Some(wish), opened(&outcome), "what is asked for");
                    if let Outcome::OpenReserved(_) = outcome {
                        self.model.held.remove(&request.token.unwrap());
                    }
                    self.schedule_open((worker, id), wish);
                    id
                };
                assert!(out.opens.is_empty() && out.asks.is_empty());
                self.model.openings.insert((worker, id), opening);
                self.model.opening_of.insert(packet.via, (worker, id));
            }
            Outcome::Success | Outcome::Error { .. } => {
                let (via, bytes) = out.replies.pop().unwrap_or_else(|| panic!("no reply, but {outcome:?} is due"));
                self.nothing(&out);
                assert_eq!(via, packet.via, "the answer goes back the way the request came");
                self.check_reply(&bytes, &via, request, &outcome, packet.damaged);
                self.note_reply(worker, &via, &bytes);
                self.send_reply(via, bytes);
                if outcome == Outcome::Success {
                    self.apply(&via, request);
                }
            }
        }
    }

    fn check_reply(&self, bytes: &[u8], via: &Via, request: &Request, outcome: &Outcome, damaged: bool) {
        let reply = Message::parse(bytes).expect("a reply is well-formed");
        assert_eq!(reply.transaction_id().0, request.transaction);
        assert_eq!(reply.message_type().method, request.what.method());
        let code = reply.get(Known::ErrorCode).map(|value| u16::from(value[2]) * 100 + u16::from(value[3]));
        let success = reply.message_type().class == CLASS_SUCCESS_RESPONSE;
        let signed = reply.has(Known::MessageIntegrity);
        match outcome {
            Outcome::Error { code: due, signed: due_signed } => {
                assert_eq!((success, code), (false, Some(*due)), "{request:?}");
                assert_eq!(signed, *due_signed, "exactly errors of verified requests are signed");
                assert_eq!(reply.has(Known::Nonce), matches!(due, 401 | 438), "a challenge names a nonce");
                assert_eq!(*due == 420, reply.get(Known::UnknownAttributes) == Some(&[0x7A, 0xBC]));
            }
            _ => assert_eq!((success, code, signed), (true, None, request.what != What::Binding), "{request:?}"),
        }
        if signed {
            let key = request.signed.as_ref().expect("only a signed request has a signed answer").key();
            assert!(key.verifies(&reply), "the answer is signed with the request's key");
        }
        let due = if request.fingerprint { Fingerprint::Right } else { Fingerprint::Absent };
        // Damage can turn FINGERPRINT into an attribute that nobody needs to know.
        assert!(damaged || check_fingerprint(&reply) == due, "FINGERPRINT is mirrored: {request:?}");
        if success && matches!(request.what, What::Binding | What::Allocate) {
            let mapped = xor_address(reply.get(Known::XorMappedAddress).unwrap(), reply.transaction_id());
            assert_eq!(mapped, Ok(via.five_tuple().client.0));
        }
        if success && request.what == What::Allocate {
            let (_, session) = self.model.alive(via, self.now).expect("a session stands behind the answer");
            let relayed = xor_address(reply.get(Known::XorRelayedAddress).unwrap(), reply.transaction_id());
            assert_eq!(relayed, Ok(session.relayed.0));
            assert_eq!(reply.lifetime(), Ok(Some(granted(session.request.lifetime))));
            assert_eq!(reply.reservation_token().unwrap().map(|token| token.0), session.token);
        }
        if success && request.what == What::Refresh {
            let due = if request.lifetime == Some(0) { 0 } else { granted(request.lifetime) };
            assert_eq!(reply.lifetime(), Ok(Some(due)));
        }
    }

    /// What a success changed.
    fn apply(&mut self, via: &Via, request: &Request) {
        let now = self.now;
        let Some(key) = self.model.session_of.get(via) else { return };
        let session = self.model.sessions.get_mut(key).expect("indexed");
        match request.what {
            What::Binding | What::Allocate => {}
            What::Refresh => {
                assert_ne!(request.lifetime, Some(0), "a deleted allocation is gone when its answer leaves");
                session.expires_at = now + u64::from(granted(request.lifetime)) * 1000;
            }
            What::CreatePermission => {
                session.permissions.extend(request.peers.iter().map(|peer| (peer.ip(), now + 300_000)));
            }
            What::ChannelBind => {
                let peer = request.peers[0];
                session.channels.retain(|_, (p, _)| *p != peer);
                session.channels.insert(request.channel.unwrap(), (peer, now + 600_000));
                session.permissions.insert(peer.ip(), now + 300_000);
            }
        }
    }

    /// Counts a reply and remembers the nonce it gives out.
    fn note_reply(&mut self, worker: usize, via: &Via, bytes: &[u8]) {
        let reply = Message::parse(bytes).expect("a reply is well-formed");
        if reply.message_type().class == CLASS_SUCCESS_RESPONSE {
            self.model.totals[worker].successes += 1;
        } else {
            self.model.totals[worker].rejects += 1;
        }
        if let Some(nonce) = reply.get(Known::Nonce) {
            let five_tuple = via.five_tuple();
            let given = (five_tuple.client, five_tuple.transport, unix(self.now));
            self.model.nonces.insert(nonce.to_vec(), given);
        }
    }

    fn send_reply(&mut self, via: Via, bytes: Vec<u8>) {
        if via.is_stream() || !self.rng.percent(3) {
            let slow = if self.rng.percent(5) { 1_500 } else { 60 };
            self.after(0, slow, Due::ToClient(via, bytes));
        }
    }

    /// Takes note of all outputs; what answers an input is left to the caller.
    fn drain(&mut self, worker: usize) -> Out {
        let mut out = Out::default();
        while let Some(output) = self.workers[worker].server.poll_output() {
            match output {
                Output::Reply { via, bytes } => {
                    if !self.gave_up(worker, &via, &bytes) {
                        out.replies.push((via, bytes));
                    }
                }
                Output::OpenRelay { allocation, request } => out.opens.push((allocation, request)),
                Output::CloseRelay { allocation, relayed } => {
                    let socket = self.sockets.remove(&relayed).expect("only an open relayed address is closed");
                    assert_eq!((socket.worker, socket.owner), (worker, Some(allocation)));
                    self.shared.relayed.lock().unwrap().remove(&PeerAddress(relayed.0));
                }
                Output::CloseReserved { relayed } => {
                    let socket = self.sockets.remove(&relayed).expect("only a held port is closed");
                    assert_eq!((socket.worker, socket.owner), (worker, None));
                    let now = self.now;
                    self.model.held.retain(|_, held| {
                        assert!(held.relayed != relayed || held.expires_at <= now, "closed before its 30 seconds");
                        held.relayed != relayed
                    });
                }
                Output::Ask { worker, ticket, question } => out.asks.push((usize::from(worker.0), ticket, question)),
                Output::Answer { ticket, answer } => out.answers.push((ticket, answer)),
                Output::Happened(Event::AllocationCreated { .. }) => out.created += 1,
                Output::Happened(Event::AllocationEnded(record)) => {
                    let key = (worker, record.allocation);
                    let session = self.model.sessions.remove(&key).expect("only a session ends");
                    trace!(self, "  {key:?} ended: {:?}", record.reason);
                    let reason = match self.ending {
                        _ if session.expires_at <= self.now => EndReason::Expired,
                        Some((ending, reason)) if ending == key => reason,
                        Some((_, EndReason::Shutdown)) => EndReason::Shutdown,
                        other => panic!("{key:?} ended for {:?}, but {other:?} was due", record.reason),
                    };
                    assert_eq!(record.reason, Some(reason));
                    assert_eq!((record.created_at.0, record.ended_at.0), (session.created_at, self.now));
                    assert_eq!((record.via, record.relayed), (session.via, session.relayed));
                    assert_eq!(*record.username, session.request.signed.as_ref().unwrap().username);
                    assert_eq!((&*record.identity, record.secret.is_some()), (&*session.identity, session.limited));
                    assert_eq!(record.traffic, session.traffic, "the record is exact to the byte");
                    self.model.session_of.remove(&session.via);
                    self.model.totals[worker].ended[reason as usize] += 1;
                    self.ended.push(key);
                }
                Output::Happened(Event::Refused { .. }) => self.refused_events += 1,
            }
        }
        out
    }

    /// An Allocate whose question nobody answered in time, or which a shutdown cut off.
    fn gave_up(&mut self, worker: usize, via: &Via, bytes: &[u8]) -> bool {
        let Some(&key) = self.model.opening_of.get(via) else { return false };
        let opening = &self.model.openings[&key];
        let overdue = opening.asking.is_some_and(|(_, until)| until <= self.now);
        let code = match self.ending {
            _ if overdue => 508,
            Some((_, EndReason::Shutdown)) => 486,
            _ => return false,
        };
        let request = opening.request.clone();
        self.check_reply(bytes, via, &request, &Outcome::Error { code, signed: true }, false);
        self.note_reply(worker, via, bytes);
        self.model.openings.remove(&key);
        self.model.opening_of.remove(via);
        true
    }

    fn schedule_open(&mut self, key: Key, wish: RelayRequest) {
        let late = if self.rng.percent(5) { 8_000 } else { 5 };
        self.after(0, late, Due::Open(key, wish));
    }

    /// The shell opens a relayed address, or fails to.
    fn open(&mut self, key: Key, wish: RelayRequest) {
        let (worker, id) = key;
        let fails = self.rng.percent(6);
        let result = match wish {
            _ if fails => {
                if let RelayRequest::Reserved { relayed, .. } = wish {
                    self.sockets.remove(&relayed);
                }
                let all = [RelayRefused::NoPort, RelayRefused::NoFiles, RelayRefused::System, RelayRefused::NotHeld];
                Err(*self.rng.pick(&all))
            }
            RelayRequest::Fresh { family, parity, .. } => {
                let ip = if family == Family::V4 { RELAY_IPV4 } else { RELAY_IPV6 };
                let relayed = loop {
                    let port = 49_152 + self.rng.below(16_000) as u16;
                    let port = if parity == Parity::Any { port } else { port & !1 };
                    let next = RelayedTransportAddress::new(ip, port + 1);
                    let relayed = RelayedTransportAddress::new(ip, port);
                    let taken = |address| self.sockets.contains_key(address);
                    if !taken(&relayed) && (parity != Parity::EvenAndHoldNext || !taken(&next)) {
                        break relayed;
                    }
                };
                self.sockets.insert(relayed, Socket { worker, owner: Some(id) });
                let held = (parity == Parity::EvenAndHoldNext).then(|| {
                    let held = RelayedTransportAddress::new(ip, relayed.port() + 1);
                    self.sockets.insert(held, Socket { worker, owner: None });
                    held
                });
                Ok(OpenedRelay { relayed, held })
            }
            RelayRequest::Reserved { relayed, .. } => {
                let socket = self.sockets.get_mut(&relayed).expect("a held port is there");
                assert_eq!((socket.worker, socket.owner), (worker, None), "a held port is taken once, where it is");
                socket.owner = Some(id);
                Ok(OpenedRelay { relayed, held: None })
            }
        };
        trace!(self, "worker {worker} <- {id:?} opened: {result:?}");
        if let Ok(opened) = result {
            self.shared.relayed.lock().unwrap().insert(PeerAddress(opened.relayed.0));
        }
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::RelayOpened { allocation: id, result });
        let mut out = self.drain(worker);
        let Some(opening) = self.model.openings.remove(&key) else {
            // Whoever wanted it is gone; drain saw it closed.
            if let Ok(opened) = result {
                assert!(!self.sockets.contains_key(&opened.relayed));
                assert!(opened.held.is_none_or(|held| !self.sockets.contains_key(&held)));
            }
            return self.nothing(&out);
        };
        let via = opening.via;
        self.model.opening_of.remove(&via);
        let (_, bytes) = out.replies.pop().expect("the client hears what became of it");
        assert_eq!(out.created, usize::from(result.is_ok()));
        out.created = 0;
        self.nothing(&out);
        let request = opening.request.clone();
        let outcome = match result {
            Ok(opened) => {
                let token = Message::parse(&bytes).unwrap().reservation_token().unwrap().map(|token| token.0);
                assert_eq!(token.is_some(), opened.held.is_some());
                if let (Some(token), Some(relayed)) = (token, opened.held) {
                    assert_eq!(usize::from(token[0]), worker, "a token names its owner");
                    let held =
                        Held { worker, relayed, identity: opening.identity.clone(), expires_at: self.now + 30_000 };
                    assert!(self.model.held.insert(token, held).is_none(), "tokens differ");
                }
                let session = Session {
                    via,
                    relayed: opened.relayed,
                    request: request.clone(),
                    identity: opening.identity,
                    limited: opening.limited,
                    token,
                    created_at: self.now,
                    expires_at: self.now + u64::from(granted(request.lifetime)) * 1000,
                    permissions: BTreeMap::new(),
                    channels: BTreeMap::new(),
                    traffic: Default::default(),
                };
                self.model.sessions.insert(key, session);
                assert!(self.model.session_of.insert(via, key).is_none(), "one allocation per five-tuple");
                self.model.totals[worker].created += 1;
                Outcome::Success
            }
            Err(_) => Outcome::Error { code: 508, signed: true },
        };
        self.check_reply(&bytes, &via, &request, &outcome, true);
        self.note_reply(worker, &via, &bytes);
        self.send_reply(via, bytes);
    }

    fn asked(&mut self, worker: usize, ticket: AskId, question: Question) {
        let Question::Reservation { token, identity } = &question;
        let due = self.model.reserved(worker, &token.0, identity, self.now);
        let token = token.0;
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::Asked { ticket, question });
        let mut out = self.drain(worker);
        let (back, answer) = out.answers.pop().expect("a question is answered");
        self.nothing(&out);
        assert_eq!((back, answer), (ticket, Answer::Reservation(due)));
        let asker = usize::from(ticket.worker.0);
        if let Some(relayed) = due {
            self.model.held.remove(&token);
            self.sockets.get_mut(&relayed).expect("a held port is there").worker = asker;
        }
        if self.rng.percent(10) {
            // The inbox is full: the shell closes the socket that would have come along.
            if let Some(relayed) = due {
                self.sockets.remove(&relayed);
            }
        } else {
            let late = if self.rng.percent(20) { 3_000 } else { 20 };
            self.after(0, late, Due::Answered(asker, ticket, answer));
        }
    }

    fn answered(&mut self, worker: usize, ticket: AskId, answer: Answer) {
        let Answer::Reservation(relayed) = answer;
        let waiting = self
            .model
            .openings
            .iter()
            .find(|((at, _), opening)| {
                *at == worker && opening.asking.is_some_and(|(n, until)| n == ticket.number && self.now < until)
            })
            .map(|(key, _)| *key);
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::Answered { ticket, answer });
        let mut out = self.drain(worker);
        match (waiting, relayed) {
            (Some(key), Some(relayed)) => {
                let (id, wish) = out.opens.pop().expect("the handed over port is opened");
                assert!(matches!(wish, RelayRequest::Reserved { relayed: held, .. } if held == relayed), "{wish:?}");
                let mut opening = self.model.openings.remove(&key).unwrap();
                opening.asking = None;
                self.model.opening_of.insert(opening.via, (worker, id));
                self.model.openings.insert((worker, id), opening);
                self.schedule_open((worker, id), wish);
            }
            (Some(key), None) => {
                let opening = self.model.openings.remove(&key).unwrap();
                self.model.opening_of.remove(&opening.via);
                let (via, bytes) = out.replies.pop().expect("508");
                self.check_reply(&bytes, &via, &opening.request, &Outcome::Error { code: 508, signed: true }, false);
                self.note_reply(worker, &via, &bytes);
                self.send_reply(via, bytes);
            }
            (None, Some(relayed)) => {
                assert!(!self.sockets.contains_key(&relayed), "a port that nobody wants is closed")
            }
            (None, None) => {}
        }
        self.nothing(&out);
    }

    fn deliver_data(&mut self, worker: usize, packet: &Packet) {
        let lane = self.model.predict_from_client(&self.config, self.now, &packet.via, &packet.bytes);
        trace!(self, "worker {worker} <- {:?} data: {lane:?}", packet.via.five_tuple().client);
        let clock = self.clock();
        let meta = PacketMeta { dscp: 46, hop_limit: 0, dont_fragment: false };
        let verdict = self.workers[worker].server.relay_from_client(clock, &packet.via, meta, &packet.bytes);
        match (&lane, verdict) {
            (Lane::Stranger(due, _) | Lane::Drop(_, due, _), Relay::Drop(why)) => assert_eq!(why, *due),
            (
                Lane::ToPeer { key, to, start, len, dont_fragment },
                Relay::ToPeer { allocation, to: found, meta, payload },
            ) => {
                assert_eq!((key.1, *to, *dont_fragment, 46), (allocation, found, meta.dont_fragment, meta.dscp));
                assert!(std::ptr::eq(payload, &packet.bytes[*start..start + len]), "the payload that was sent");
            }
            (due, verdict) => panic!("{due:?} was due, but it was {verdict:?}"),
        }
        if let Lane::ToPeer { key, to, len, .. } = lane {
            let relayed = self.model.sessions[&key].relayed;
            if self.sent(key, Way::ToPeer, len) {
                let hairpin = to.ip() == RELAY_IPV4 || to.ip() == RELAY_IPV6;
                let (at, len) = (self.rng.below(1000) as usize, len.min(1200));
                if hairpin {
                    let (to, from) = (RelayedTransportAddress(to.0), PeerAddress(relayed.0));
                    self.after(0, 5, Due::FromPeer { to, from, at, len });
                } else if self.rng.percent(40) {
                    self.after(1, 200, Due::FromPeer { to: relayed, from: to, at, len });
                }
            }
        } else {
            self.count_lane(worker, &lane, Way::ToPeer);
        }
    }

    pub fn deliver_from_peer(&mut self, key: Key, from: PeerAddress, at: usize, len: usize) {
        let worker = key.0;
        let lane = self.model.predict_from_peer(&self.config, self.now, key, &from, len);
        trace!(self, "worker {worker} <- {from:?} to {key:?} {len} bytes: {lane:?}");
        let clock = self.clock();
        let noise = self.noise.clone();
        let datagram = &noise[at..at + len];
        let verdict = self.workers[worker].server.relay_from_peer(clock, key.1, from, PacketMeta::default(), datagram);
        match (&lane, verdict) {
            (Lane::Stranger(due, _) | Lane::Drop(_, due, _), Relay::Drop(why)) => assert_eq!(why, *due),
            (Lane::ToClient { channel, padding, .. }, Relay::ToClient { allocation, via, head, payload, .. }) => {
                assert_eq!((allocation, via), (key.1, self.model.sessions[&key].via), "to the right client");
                assert!(std::ptr::eq(payload, datagram), "the payload that was sent");
                assert_eq!(head.padding(), *padding);
                if let Some(number) = channel {
                    let [n1, n2] = number.to_be_bytes();
                    let [l1, l2] = (len as u16).to_be_bytes();
                    assert_eq!(head.bytes(), [n1, n2, l1, l2]);
                } else {
                    let whole = [head.bytes(), payload, &[0; 3][..head.padding()]].concat();
                    let indication = Message::parse(&whole).expect("a Data indication is well-formed");
                    assert_eq!(indication.message_type().value(), 0x0017);
                    assert_eq!(indication.peer(), Ok(Some(from)));
                    assert_eq!(indication.get(Known::Data), Some(datagram));
                }
            }
            (due, verdict) => panic!("{due:?} was due, but it was {verdict:?}"),
        }
        match lane {
            Lane::ToClient { key, .. } => {
                self.sent(key, Way::ToClient, len);
            }
            lane => self.count_lane(worker, &lane, Way::ToClient),
        }
    }

    fn count_lane(&mut self, worker: usize, lane: &Lane, way: Way) {
        match *lane {
            Lane::Stranger(why, bytes) => self.drop_counted(worker, why, bytes),
            Lane::Drop(key, why, len) => {
                self.drop_counted(worker, why, len);
                self.received(key, way, len);
                add(&mut self.flow(key, way).expect("it is alive").dropped, len);
            }
            Lane::ToPeer { .. } | Lane::ToClient { .. } => unreachable!("counted by sent"),
        }
    }

    fn flow(&mut self, key: Key, way: Way) -> Option<&mut Flow> {
        let traffic = &mut self.model.sessions.get_mut(&key)?.traffic;
        Some(match way {
            Way::ToPeer => &mut traffic.to_peers,
            Way::ToClient => &mut traffic.to_client,
        })
    }

    fn received(&mut self, key: Key, way: Way, len: usize) {
        let totals = &mut self.model.totals[key.0];
        add(if way == Way::ToPeer { &mut totals.from_clients } else { &mut totals.from_peers }, len);
        add(&mut self.flow(key, way).expect("it is alive").received, len);
    }

    /// Counts a packet out; `false` when the send failed, or will have.
    fn sent(&mut self, key: Key, way: Way, len: usize) -> bool {
        self.received(key, way, len);
        let totals = &mut self.model.totals[key.0];
        add(if way == Way::ToPeer { &mut totals.to_peers } else { &mut totals.to_clients }, len);
        self.delivered += 1;
        if !self.rng.percent(12) {
            return true;
        }
        let why = *self.rng.pick(&SEND_FAILURES);
        match self.rng.below(4) {
            // A queue is flushed later, sometimes after the allocation's end.
            0 => self.after(0, 100, Due::NotSent(key, way, len, why)),
            1 if self.rng.percent(20) => self.after(0, 2_000_000, Due::NotSent(key, way, len, why)),
            _ => self.not_sent(key, way, len, why),
        }
        false
    }

    fn not_sent(&mut self, key: Key, way: Way, len: usize, why: DropReason) {
        trace!(self, "worker {} could not send {len} bytes of {key:?}: {why:?}", key.0);
        self.workers[key.0].server.not_sent(key.1, way, 1, len as u64, why);
        let totals = &mut self.model.totals[key.0];
        let out = if way == Way::ToPeer { &mut totals.to_peers } else { &mut totals.to_clients };
        *out = *out - Amount { packets: 1, bytes: len as u64 };
        self.drop_counted(key.0, why, len);
        if let Some(flow) = self.flow(key, way) {
            add(&mut flow.dropped, len);
        }
    }

    pub fn close_stream(&mut self, via: Via) {
        let worker = self.worker_of(&via);
        self.client_of.remove(&via);
        self.ending = self.model.alive(&via, self.now).map(|(key, _)| (key, EndReason::ClientClosed));
        let opening = self.model.opening(&via, self.now);
        let clock = self.clock();
        self.workers[worker].server.handle_input(clock, Input::ClientClosed { via });
        let out = self.drain(worker);
        self.nothing(&out);
        self.ending = None;
        if let Some(key) = opening {
            self.model.openings.remove(&key);
            self.model.opening_of.remove(&via);
        }
        assert!(!self.workers[worker].server.has_allocation(&via), "an allocation ends with its stream");
    }

    pub fn reconfigure(&mut self) {
        trace!(self, "reconfigured: {:?}", self.config);
        let settings = self.config.settings();
        for worker in 0..self.workers.len() {
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::Reconfigure(settings.clone()));
            let out = self.drain(worker);
            self.nothing(&out);
        }
        let config = &self.config;
        for session in self.model.sessions.values_mut() {
            session.permissions.retain(|ip, _| config.class(*ip).is_some());
            session.channels.retain(|_, (peer, _)| config.class(peer.ip()).is_some());
        }
    }

    pub fn drain_servers(&mut self) {
        trace!(self, "drain");
        self.model.draining = true;
        for worker in 0..self.workers.len() {
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::Drain);
            let out = self.drain(worker);
            self.nothing(&out);
        }
    }

    pub fn close_all(&mut self) {
        trace!(self, "close all");
        self.model.draining = true;
        for worker in 0..self.workers.len() {
            let nobody = (worker, AllocationId { index: u32::MAX, generation: 0 });
            self.ending = Some((nobody, EndReason::Shutdown));
            let clock = self.clock();
            self.workers[worker].server.handle_input(clock, Input::CloseAll(EndReason::Shutdown));
            let out = self.drain(worker);
            self.nothing(&out);
            self.ending = None;
            assert_eq!(self.workers[worker].server.allocations(), 0);
        }
        assert!(self.model.sessions.is_empty() && self.model.openings.is_empty(), "a shutdown leaves nothing behind");
    }

    /// Everything that can be counted is what the model counted.
    pub fn compare(&mut self) {
        let nobody = usize::MAX;
        assert_eq!(*self.shared.quota.lock().unwrap(), self.model.tables(nobody, self.now), "quota tables");
        for (index, worker) in self.workers.iter().enumerate() {
            let (counters, totals) = (&worker.counters, &self.model.totals[index]);
            let found = [&counters.from_clients, &counters.to_peers, &counters.from_peers, &counters.to_clients];
            let due = [totals.from_clients, totals.to_peers, totals.from_peers, totals.to_clients];
            assert_eq!(found.map(|cell| cell.get()), due, "totals of worker {index}");
            for why in DropReason::ALL {
                assert_eq!(counters.drops_of(*why), totals.drops[*why as usize], "{why:?} of worker {index}");
            }
            let sum = |cells: &[throughway::protocol::counters::Cell]| cells.iter().map(|cell| cell.get()).sum::<u64>();
            assert_eq!(counters.created.get(), totals.created);
            let ended: Vec<u64> = counters.ended.iter().map(|cell| cell.get()).collect();
            assert_eq!(ended, totals.ended);
            let live: u64 = counters.live.iter().map(|cells| sum(cells)).sum();
            assert_eq!(totals.created, sum(&counters.ended) + live, "created = ended + live");
            assert_eq!(live, worker.server.allocations() as u64);
            assert_eq!(sum(&counters.successes), totals.successes);
            assert_eq!(sum(&counters.rejects), totals.rejects);
            let mut sessions = 0;
            for record in worker.server.sessions(Now { ticks: Ticks(self.now), unix: UnixSeconds(0) }) {
                let session = &self.model.sessions[&(index, record.allocation)];
                assert_eq!(record.traffic, session.traffic, "a live record is exact to the byte");
                sessions += 1;
            }
            assert_eq!(sessions, self.model.sessions.keys().filter(|(at, _)| *at == index).count());
        }
    }

    fn finish(&mut self) {
        self.compare();
        // All lifetimes pass, deadline by deadline.
        self.lazy_timers = false;
        self.advance(self.now + 4_000_000);
        self.compare();
        for (index, worker) in self.workers.iter().enumerate() {
            worker.server.check_invariants();
            assert_eq!(worker.server.leftovers(), 0, "worker {index} keeps something for ever");
        }
        assert_eq!(*self.shared.quota.lock().unwrap(), Default::default(), "quota that was never given back");
        assert!(self.model.sessions.is_empty() && self.model.openings.is_empty() && self.model.held.is_empty());
        assert!(self.sockets.is_empty(), "relayed addresses that were never closed");
        assert!(self.shared.relayed.lock().unwrap().is_empty());
        let rejects: u64 = self.model.totals.iter().map(|totals| totals.rejects).sum();
        let challenges: u64 = self
            .workers
            .iter()
            .map(|worker| worker.counters.rejects_of(throughway::protocol::reject::RejectReason::Challenge))
            .sum();
        assert!(rejects - challenges >= self.refused_events, "one event per refusal");
    }
}

fn add(amount: &mut Amount, bytes: usize) {
    amount.packets += 1;
    amount.bytes += bytes as u64;
}
