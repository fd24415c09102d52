//! A seeded simulation of clients that change their network (RFC 8016): one to four workers, messages between them that are
//! late, other processes that take over at any step. A small model foretells every answer and where every packet goes; after
//! each input the harness checks invariants, quotas, ports and accounts.
//!
//! `MOBILITY_SEED=n cargo test --test simulation_mobility` replays one seed with a trace.

use std::net::SocketAddr;

use test_support::harness::mobility::{CHANNEL, PEER, come, elsewhere, for_ticket, goes_to, settle, ticket_of};
use test_support::harness::stun::{Incoming, Outgoing};
use test_support::harness::{Client, Harness, Spec, Went, addr, user};
use throughway::protocol::reason::DropReason;

const SEEDS: u64 = 96;
const ACTIONS: usize = 250;
/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A way of a phone.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Path {
    client: Client,
    worker: usize,
    is_stream: bool,
    is_open: bool,
}

/// What the model knows of one session.
struct Phone {
    user: String,
    relayed: SocketAddr,
    ticket: Vec<u8>,
    old_tickets: Vec<Vec<u8>>,
    active: Path,
    pending: Option<Path>,
    left: Vec<Path>,
    /// The worker that has the allocation.
    home: usize,
    /// The last Refresh with a ticket that succeeded: where, what, when, and the ticket that it got.
    last: Option<(Path, Outgoing, u64, Vec<u8>)>,
}

/// What happened in all runs: a simulation in which nothing happens proves nothing.
#[derive(Default, Debug)]
struct Sum {
    moves: u64,
    between_workers: u64,
    announced: u64,
    replaced: u64,
    back: u64,
    again: u64,
    refused: u64,
    closed: u64,
    waited: u64,
    restarts: u64,
}

struct World {
    h: Harness,
    rng: Rng,
    workers: usize,
    phones: Vec<Phone>,
    users: usize,
    trace: bool,
    sum: Sum,
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng(seed);
        let workers = 1 + rng.below(4);
        let h = Harness::workers(workers as u8, |settings| settings.mobility = true);
        Self { h, rng, workers, phones: Vec::new(), users: 0, trace, sum: Sum::default() }
    }

    fn say(&self, what: impl std::fmt::Display) {
        if self.trace {
            eprintln!("{} ms: {what}", self.h.now.ticks.0);
        }
    }

    /// A new way for this user.
    fn path(&mut self, name: &str) -> Path {
        let (worker, is_stream) = (self.rng.below(self.workers), self.rng.one_in(2));
        let mut spec: Spec = user(name).on_worker(worker);
        if is_stream {
            spec = spec.tcp();
        }
        if self.rng.one_in(4) {
            spec = spec.ipv6();
        }
        let client = elsewhere(&mut self.h, spec);
        Path { client, worker, is_stream, is_open: true }
    }

    fn begin(&mut self) {
        self.users += 1;
        let name = format!("u{}", self.users);
        let active = self.path(&name);
        let reply = self.h.ask(active.client, for_ticket().lifetime(3600));
        self.say(format_args!("{name} allocates by {active:?}"));
        let ticket = ticket_of(&reply);
        self.phones.push(Phone {
            user: name,
            relayed: reply.relayed(),
            ticket,
            old_tickets: Vec::new(),
            active,
            pending: None,
            left: Vec::new(),
            home: active.worker,
            last: None,
        });
        let at = self.phones.len() - 1;
        self.bind(at);
    }

    /// Permissions last for five minutes.
    fn bind(&mut self, at: usize) {
        let phone = &self.phones[at];
        let ways: Vec<Path> =
            [Some(phone.active), phone.pending].into_iter().flatten().filter(|of| of.is_open).collect();
        let Some(way) = ways.get(self.rng.below(ways.len().max(1))).copied() else { return };
        assert_eq!(self.h.bind(way.client, CHANNEL, addr(PEER)), 0, "a request comes by either way: {way:?}");
    }

    /// The client comes this way from now on, as far as it said.
    fn announce(&mut self, at: usize, path: Path, message: Outgoing, reply: &Incoming) {
        let now = self.h.now.ticks.0;
        let phone = &mut self.phones[at];
        let ticket = ticket_of(reply);
        assert!(ticket != phone.ticket && !phone.old_tickets.contains(&ticket), "another one each time");
        phone.old_tickets.push(std::mem::replace(&mut phone.ticket, ticket.clone()));
        phone.last = Some((path, message, now, ticket));
        self.sum.announced += 1;
        if let Some(before) = phone.pending.take() {
            self.sum.replaced += 1;
            phone.left.push(before);
        }
        if path.client == phone.active.client {
            self.sum.back += 1;
            phone.left.retain(|left| left.client != path.client);
            return;
        }
        phone.left.retain(|left| left.client != path.client);
        phone.pending = Some(path);
        if !phone.active.is_open {
            self.sum.waited += 1;
            settle(&mut self.h);
            self.arrive(at);
        }
    }

    /// The model's side of a move.
    fn arrive(&mut self, at: usize) {
        let phone = &mut self.phones[at];
        let Some(new) = phone.pending.take() else { return };
        self.sum.moves += 1;
        self.sum.between_workers += u64::from(phone.home != new.worker);
        let old = std::mem::replace(&mut phone.active, new);
        if old.is_open {
            phone.left.push(old);
        }
        phone.home = new.worker;
        if phone.last.as_ref().is_some_and(|(path, ..)| path.client != new.client) {
            phone.last = None;
        }
    }

    fn announce_new(&mut self, at: usize) {
        let name = self.phones[at].user.clone();
        let path = self.path(&name);
        let id = self.h.fresh_id();
        let message = come(&self.phones[at].ticket).lifetime(3600).id(id);
        self.say(format_args!("{name} announces {path:?}"));
        let reply = self.h.ask(path.client, message.clone());
        self.announce(at, path, message, &reply);
    }

    /// Back to where its data go, with the ticket of the way that it never used.
    fn go_back(&mut self, at: usize) {
        let phone = &self.phones[at];
        let (Some(_), true) = (phone.pending, phone.active.is_open) else { return };
        let path = phone.active;
        let id = self.h.fresh_id();
        let message = come(&phone.ticket).lifetime(3600).id(id);
        self.say(format_args!("{} goes back", self.phones[at].user));
        let reply = self.h.ask(path.client, message.clone());
        self.announce(at, path, message, &reply);
    }

    fn retransmit(&mut self, at: usize) {
        let Some((path, message, when, ticket)) = self.phones[at].last.clone() else { return };
        let phone = &self.phones[at];
        let is_way = [Some(phone.active), phone.pending].into_iter().flatten().any(|of| of.client == path.client);
        if !is_way || !path.is_open {
            return;
        }
        let reply = self.h.ask(path.client, message);
        if self.h.now.ticks.0 - when < 30_000 {
            assert_eq!(ticket_of(&reply), ticket, "the same answer");
            self.sum.again += 1;
        } else {
            assert_eq!(reply.code(), 400, "its time is over");
        }
    }

    fn misuse(&mut self, at: usize) {
        self.sum.refused += 1;
        let name = self.phones[at].user.clone();
        match self.rng.below(4) {
            0 => {
                let path = self.path("stranger");
                assert_eq!(self.h.ask(path.client, come(&self.phones[at].ticket)).code(), 441);
            }
            1 => {
                let path = self.path(&name);
                if let Some(old) = self.phones[at].old_tickets.last().cloned() {
                    assert_eq!(self.h.ask(path.client, come(&old)).code(), 400);
                }
            }
            2 => {
                let phone = &self.phones[at];
                let way = phone.pending.unwrap_or(phone.active);
                if way.is_open {
                    let ticket = phone.ticket.clone();
                    assert_eq!(self.h.ask(way.client, come(&ticket)).code(), 400, "from where it was given out");
                }
            }
            _ => {
                let path = self.path(&name);
                let mut forged = self.phones[at].ticket.clone();
                let byte = self.rng.below(forged.len());
                forged[byte] ^= 1 << self.rng.below(8);
                assert_eq!(self.h.ask(path.client, come(&forged)).code(), 400);
            }
        }
    }

    /// Data by the way that was announced.
    fn use_pending(&mut self, at: usize) {
        let phone = &self.phones[at];
        let Some(path) = phone.pending.filter(|path| path.is_open) else { return };
        self.say(format_args!("{} comes by {path:?}", phone.user));
        if path.worker == phone.home {
            let went = self.h.channel_data(path.client, CHANNEL, b"up");
            assert_eq!(went.to_peer().1, b"up", "nothing is lost on one worker");
        } else {
            self.h.hold_back_asks = self.rng.one_in(2);
            for _ in 0..1 + self.rng.below(3) {
                let went = self.h.channel_data(path.client, CHANNEL, b"up");
                assert_eq!(went, Went::Dropped(DropReason::Moving));
            }
            self.h.advance_ms(0);
            if self.h.hold_back_asks {
                if self.rng.one_in(2) {
                    self.h.let_one_ask_go();
                    let went = self.h.channel_data(path.client, CHANNEL, b"up");
                    assert_eq!(went, Went::Dropped(DropReason::Moving));
                }
                self.h.let_asks_go(path.client);
            }
        }
        settle(&mut self.h);
        self.arrive(at);
    }

    fn check_data(&mut self, at: usize) {
        let phone = &self.phones[at];
        let (active, relayed) = (phone.active, phone.relayed);
        let home = [Some(active), phone.pending]
            .into_iter()
            .flatten()
            .chain(phone.left.iter().copied())
            .find(|path| path.worker == phone.home)
            .expect("it was there once");
        let left = phone.left.last().copied().filter(|path| path.is_open);
        goes_to(&mut self.h, relayed, home.client, active.client);
        if active.is_open {
            assert_eq!(self.h.channel_data(active.client, CHANNEL, b"up").to_peer().1, b"up");
        }
        if let Some(left) = left {
            let went = self.h.channel_data(left.client, CHANNEL, b"up");
            assert_eq!(went, Went::Dropped(DropReason::NoAllocation), "a way that was left is nobody's");
        }
    }

    fn close(&mut self, at: usize) {
        let phone = &mut self.phones[at];
        let which = self.rng.below(2);
        if which == 0 && phone.active.is_stream && phone.active.is_open {
            phone.active.is_open = false;
            let client = phone.active.client;
            self.say(format_args!("the stream of {client:?} closes"));
            self.h.disconnect(client);
            settle(&mut self.h);
            self.sum.closed += 1;
            self.arrive(at);
        } else if let Some(path) = phone.pending.filter(|path| which == 1 && path.is_stream) {
            phone.pending = None;
            phone.last = None;
            self.h.disconnect(path.client);
            settle(&mut self.h);
            self.sum.closed += 1;
        }
    }

    fn end(&mut self, at: usize) {
        let phone = self.phones.swap_remove(at);
        let ways: Vec<Path> =
            [Some(phone.active), phone.pending].into_iter().flatten().filter(|of| of.is_open).collect();
        self.say(format_args!("{} ends", phone.user));
        if ways.is_empty() {
            // Nobody comes: it waits for as long as a new one would live.
            let before = self.h.allocations();
            assert!(before > 0);
            let name = phone.user.clone();
            let path = self.path(&name);
            assert_eq!(self.h.ask(path.client, come(&phone.ticket).lifetime(0)).code(), 0);
            assert_eq!(self.h.allocations(), before - 1);
            return;
        }
        let way = ways[self.rng.below(ways.len())];
        assert_eq!(self.h.refresh(way.client, 0).code(), 0, "it can be ended by either way");
    }

    fn restart(&mut self) {
        self.sum.restarts += 1;
        self.say("another process takes over");
        if self.rng.one_in(2) {
            self.h.hand_over();
        } else {
            let slots = 1 + self.rng.below(3);
            self.h.hand_over_early(slots, |_| ());
        }
        settle(&mut self.h);
    }

    fn step(&mut self) {
        if self.phones.is_empty() || (self.phones.len() < 4 && self.rng.one_in(8)) {
            return self.begin();
        }
        let at = self.rng.below(self.phones.len());
        match self.rng.below(16) {
            0..=3 => self.announce_new(at),
            4..=6 => self.use_pending(at),
            7 => self.go_back(at),
            8 => self.retransmit(at),
            9 => self.misuse(at),
            10 => self.close(at),
            11 => self.restart(),
            12 if self.rng.one_in(3) => return self.end(at),
            13 => {
                let seconds = 1 + self.rng.below(20) as u64;
                self.h.advance(seconds);
                for at in 0..self.phones.len() {
                    self.bind(at);
                }
            }
            _ => self.bind(at),
        }
        self.check_data(at);
        assert_eq!((self.h.allocations(), self.h.books.admitted()), (self.phones.len(), self.phones.len()));
        assert_eq!(self.h.books.mobile(), self.phones.len());
    }

    fn run(&mut self) {
        for _ in 0..ACTIONS {
            self.step();
        }
        while !self.phones.is_empty() {
            self.end(0);
        }
        assert_eq!((self.h.leftovers(), self.h.ports.count()), (0, 0), "nothing is left behind");
    }
}

#[test]
fn a_phone_keeps_its_address_wherever_it_goes() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("MOBILITY_SEED") {
        return World::new(seed, true).run();
    }
    let mut all = Sum::default();
    for seed in 0..SEEDS {
        let mut world = World::new(seed, false);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
        if let Err(panic) = run {
            eprintln!("MOBILITY_SEED={seed} shows it");
            std::panic::resume_unwind(panic);
        }
        let sum = world.sum;
        all.moves += sum.moves;
        all.between_workers += sum.between_workers;
        all.announced += sum.announced;
        all.replaced += sum.replaced;
        all.back += sum.back;
        all.again += sum.again;
        all.refused += sum.refused;
        all.closed += sum.closed;
        all.waited += sum.waited;
        all.restarts += sum.restarts;
    }
    eprintln!("{SEEDS} seeds: {all:?}");
    let Sum { moves, between_workers, announced, replaced, back, again, refused, closed, waited, restarts } = all;
    let least = [moves, between_workers, announced, replaced, back, again, refused, closed, waited, restarts];
    assert!(least.into_iter().all(|count| count > 50), "hardly anything of a kind happened: {least:?}");
}
