//! Carries packets, hands the servers their inputs and compares all that comes out with the model.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use throughway::address::{Family, PeerAddress, RelayedTransportAddress, Via};
use throughway::protocol::accounting::{Amount, SessionRecord};
use throughway::protocol::border::{Answer, PacketMeta, Question, Relay, RelayRequest};
use throughway::protocol::counters::Counters;
use throughway::protocol::ids::SessionId;
use throughway::protocol::ids::{AllocationId, QuestionId, WorkerId};
use throughway::protocol::ledger::LedgerSum;
use throughway::protocol::meter::Rates;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::revocation::Subject;
use throughway::protocol::settings::Limits;
use throughway::protocol::settings::Sha256Offer;
use throughway::protocol::{Parts, Server};
use throughway::state;
use throughway::time::{Now, Ticks, UnixSeconds};
use throughway::wire::attribute::ConnectionId;

use super::accounts::Written;
use super::actions::Client;
use super::config::{BITS, Config, PACKETS};
use super::hand_over::HandOver;
use super::model::{Key, Model, Totals, unix};
use super::packet::Request;
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
    Asked(usize, QuestionId, Question),
    Answered(usize, QuestionId, Answer),
    NotSent(Key, Direction, Family, usize, DropReason),
    Connected(usize, ConnectionId),
}

pub struct Worker {
    pub server: Server,
    pub counters: Arc<Counters>,
    /// What another process would know of it.
    pub ledger: LedgerSum<()>,
}

pub struct Socket {
    pub worker: usize,
    /// `None` while it is held for a token.
    pub owner: Option<AllocationId>,
}

pub struct World {
    pub seed: u64,
    pub step: u64,
    /// Counts the actions, skipped ones included.
    pub action: u64,
    /// The actions that are carried out; `None` means all.
    pub only: Option<BTreeSet<u64>>,
    /// What must not be, checked after each step; for tests of the simulation itself.
    pub forbidden: Option<fn(&World) -> bool>,
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
    /// Which sessions somebody is ending, and why; a shutdown means all.
    pub ending: Option<(Vec<Key>, EndReason)>,
    /// Which of two relayed addresses somebody gives back.
    pub giving_back: Option<(Key, Family)>,
    pub revoking: Option<Subject>,
    /// Packets in a shell's queue that will not be sent, by allocation.
    pub queued: BTreeMap<Key, u32>,
    /// Stops that wait for them.
    pub held_back: BTreeMap<Key, SessionRecord>,
    pub written: Vec<Written>,
    /// The name of each live session, the number of its next record, and when the next interim is due.
    pub plans: BTreeMap<Key, (SessionId, u32, u64)>,
    pub names: HashSet<SessionId>,
    pub interims: u64,
    /// In per cent of the steps.
    pub restarts_per_cent: u64,
    pub restarts: u64,
    /// The upgrade that is under way.
    pub hand_over: Option<HandOver>,
    pub hand_overs: u64,
    /// Of two relayed addresses: the second one, and the first one.
    pub given_back: [u64; 2],
    pub expired_addresses: u64,
    /// Successes of clients by SHA-256; those by the other algorithm than their allocation began with; those that hid their name.
    pub modern: [u64; 3],
    pub rollbacks: u64,
    /// Streams that went to the worker of the connection that they were about to bind.
    pub moved: HashMap<Via, usize>,
    /// Connections that were begun, accepted, bound, closed because of their time or their allocation's end, and chunks carried.
    pub connections: [u64; 5],
    /// Sessions of the other realm.
    pub others: u64,
    /// The policy is being changed.
    pub is_reconfiguring: bool,
}

macro_rules! trace {
    ($world:expr, $($text:tt)+) => {
        if $world.trace {
            eprintln!("[step {} at {} ms] {}", $world.step, $world.now, format_args!($($text)+));
        }
    };
}
pub(super) use trace;

/// What the servers put out besides what the model takes note of by itself.
#[derive(Default)]
pub struct Out {
    pub replies: Vec<(Via, Vec<u8>)>,
    pub opens: Vec<(AllocationId, RelayRequest)>,
    pub closed: Vec<RelayedTransportAddress>,
    pub asks: Vec<(usize, QuestionId, Question)>,
    pub answers: Vec<(QuestionId, Answer)>,
    pub created: usize,
    pub connects: Vec<(ConnectionId, AllocationId, RelayedTransportAddress, PeerAddress)>,
    pub bound: Vec<(ConnectionId, Via)>,
    /// Peers that were announced.
    pub attempts: Vec<(Via, ConnectionId, PeerAddress)>,
}

/// All limits that a strict operator thinks of.
fn some_rates(rng: &mut Rng) -> Limits {
    let mut rates = || Rates {
        bits_per_second: rng.percent(15).then(|| *rng.pick(&BITS)),
        packets_per_second: rng.percent(15).then(|| *rng.pick(&PACKETS)),
    };
    let (server, tenant, client) = (rates(), rates(), rates());
    let (user, credential, allocation) = (rates(), rates(), rates());
    Limits {
        server,
        tenant,
        client,
        user,
        credential,
        allocation,
        bytes_per_credential: rng.percent(20).then(|| rng.range(2_000, 100_000)),
        bytes_per_user_per_day: rng.percent(25).then(|| rng.range(10_000, 300_000)),
        ..Limits::default()
    }
}

impl World {
    pub fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let drawn = rng.range(1, 4) as usize;
        let wanted = std::env::var("SIM_WORKERS").ok();
        let count = wanted.map_or(drawn, |text| text.parse().expect("SIM_WORKERS is a number"));
        let is_strict = rng.percent(50);
        let rates = if is_strict { some_rates(&mut rng) } else { Limits::default() };
        let limits = Limits {
            allocations: if rng.percent(25) { Some(rng.range(3, 30) as u32) } else { None },
            allocations_per_user: Some(rng.range(1, 12) as u32),
            allocations_per_client: if rng.percent(50) { Some(rng.range(2, 40) as u32) } else { None },
            permissions_per_allocation: rng.range(2, 12) as u32,
            channels_per_allocation: rng.range(2, 12) as u32,
            connections_per_allocation: 4,
            allocations_per_user_per_minute: Some(*rng.pick(&[2, 6, 30, 300])),
            allocations_per_client_per_minute: Some(*rng.pick(&[6, 30, 300, 6_000])),
            reservations_per_user: Some(*rng.pick(&[1, 2, 4])),
            allocations_per_tenant: if rng.percent(20) { Some(rng.range(2, 12) as u32) } else { None },
            allocations_per_credential: if rng.percent(20) { Some(rng.range(1, 3) as u32) } else { None },
            ..rates
        };
        let mut config = Config::first(limits, rates, &mut rng, is_strict);
        config.has_tcp = seed.is_multiple_of(3);
        config.has_realms = seed % 5 < 2;
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
                Worker::new(Server::new(parts, settings.clone()), counters)
            })
            .collect();
        let mut noise = vec![0; 140_000];
        rng.fill(&mut noise);
        let mut world = Self {
            seed,
            step: 0,
            action: 0,
            only: None,
            forbidden: None,
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
            giving_back: None,
            revoking: None,
            queued: BTreeMap::new(),
            held_back: BTreeMap::new(),
            written: vec![Written::default(); count],
            plans: BTreeMap::new(),
            names: HashSet::new(),
            interims: 0,
            restarts_per_cent: if rng.percent(75) { 2 } else { 0 },
            restarts: 0,
            hand_over: None,
            hand_overs: 0,
            given_back: [0; 2],
            modern: [0; 3],
            expired_addresses: 0,
            rollbacks: 0,
            moved: HashMap::new(),
            connections: [0; 5],
            others: 0,
            is_reconfiguring: false,
            rng,
            workers,
        };
        world.make_clients();
        world
    }

    /// Whether clients of this world ask for two relayed addresses, which the older format can't carry.
    pub const fn is_dual(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    /// The format of what goes to another process.
    pub fn format(&mut self) -> u32 {
        let needs_newest =
            self.is_dual() || self.config.has_tcp || self.config.has_realms || self.config.sha256 != Sha256Offer::Never;
        if self.rng.percent(50) || needs_newest { state::FORMAT } else { state::FORMAT - 1 }
    }

    pub fn clock(&self) -> Now {
        Now { ticks: Ticks(self.now), unix: UnixSeconds(unix(self.now)) }
    }

    /// The worker whose sockets a client's packets arrive on.
    pub fn worker_of(&self, via: &Via) -> usize {
        if let Some(worker) = self.moved.get(via) {
            return *worker;
        }
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
            if self.restarts_per_cent > 0 && self.rng.percent(self.restarts_per_cent) {
                // Now and then while an upgrade is under way too: as after a panic.
                match (&self.hand_over, self.rng.percent(50)) {
                    (None, true) => self.begin_hand_over(),
                    (None, false) => self.restart(),
                    (Some(_), is_core_restart) if is_core_restart && self.rng.percent(20) => self.restart(),
                    (Some(_), _) => {}
                }
            }
            self.go_on_with_hand_over();
            if let Due::Act = due {
                if self.action < steps {
                    self.action += 1;
                    // Dice of its own for each action: those that are left out change nothing in the dice of others.
                    self.rng = Rng::new(self.seed ^ self.action << 32);
                    if self.only.as_ref().is_none_or(|only| only.contains(&self.action)) {
                        self.act();
                    }
                    let gap = if self.rng.percent(96) { (0, 200) } else { (1_000, 40_000) };
                    self.after(gap.0, gap.1, Due::Act);
                }
            } else {
                self.happen(due);
            }
            if let Some(forbidden) = self.forbidden {
                assert!(!forbidden(self), "what the test forbids has come");
            }
            if self.trace || self.step.is_multiple_of(16) {
                self.workers.iter().for_each(|worker| worker.server.check_invariants());
                self.workers.iter_mut().for_each(Worker::check_ledger);
            }
            if self.step.is_multiple_of(128) {
                self.compare();
            }
        }
        self.finish();
    }

    /// Lets time pass, stopping at each deadline of a worker.
    pub fn advance(&mut self, when: u64) {
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

    pub fn nothing(&self, out: &Out) {
        assert!(out.replies.is_empty(), "no client asked, yet a reply: {:02x?}", out.replies);
        assert!(out.connects.is_empty() && out.bound.is_empty() && out.attempts.is_empty());
        assert!(out.opens.is_empty() && out.asks.is_empty() && out.answers.is_empty() && out.created == 0);
    }

    pub fn happen(&mut self, due: Due) {
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
            Due::Connected(worker, id) => self.connected(worker, id),
            Due::NotSent(key, way, peer, len, why) => {
                self.not_sent(key, way, peer, len, why);
                self.decided(key);
            }
        }
    }

    /// Sorts a packet as a shell does and hands it over.
    pub fn deliver(&mut self, packet: &Packet) {
        if packet.via.is_stream() && !self.client_of.contains_key(&packet.via) {
            return; // the stream closed while the bytes were on their way
        }
        self.move_to_connection(packet);
        let worker = self.worker_of(&packet.via);
        match &*packet.bytes {
            [] => {}
            [0x40..=0x7F, ..] | [0, 0x16, ..] => self.deliver_data(worker, packet),
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

    pub fn drop_counted(&mut self, worker: usize, why: DropReason, bytes: usize) {
        add(&mut self.model.totals[worker].drops[why as usize], bytes);
    }

    /// Everything that can be counted is what the model counted.
    pub fn compare(&mut self) {
        let nobody = usize::MAX;
        assert_eq!(
            *self.shared.quota.lock().unwrap(),
            self.model.tables(&self.config, nobody, self.now),
            "quota tables"
        );
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

    pub fn finish(&mut self) {
        self.compare();
        // All lifetimes pass, deadline by deadline; what is late by now is done before that begins (F-F2).
        for worker in 0..self.workers.len() {
            self.timeout(worker);
        }
        self.lazy_timers = false;
        self.advance(self.now + 4_000_000);
        self.compare();
        self.compare_accounts();
        for (index, worker) in self.workers.iter().enumerate() {
            worker.server.check_invariants();
            assert_eq!(worker.server.leftovers(), 0, "worker {index} keeps something for ever");
        }
        assert_eq!(*self.shared.quota.lock().unwrap(), Default::default(), "quota that was never given back");
        assert!(self.model.sessions.is_empty() && self.model.openings.is_empty() && self.model.held.is_empty());
        // Buckets, budgets of a day and of credentials: all of them are over in ten days.
        let later = Now { ticks: Ticks(self.now + 864_000_000), unix: UnixSeconds(unix(self.now) + 864_000) };
        self.shared.forgets_everybody(later);
        assert!(self.sockets.is_empty(), "relayed addresses that were never closed");
        assert!(self.shared.relayed.lock().unwrap().is_empty());
        assert!(self.shared.relayed_tcp.lock().unwrap().is_empty());
        let rejects: u64 = self.model.totals.iter().map(|totals| totals.rejects).sum();
        let challenges: u64 = self
            .workers
            .iter()
            .map(|worker| worker.counters.rejects_of(throughway::protocol::reject::RejectReason::Challenge))
            .sum();
        assert!(rejects - challenges >= self.refused_events, "one event per refusal");
    }
}

pub fn add(amount: &mut Amount, bytes: usize) {
    amount.packets += 1;
    amount.bytes += bytes as u64;
}
