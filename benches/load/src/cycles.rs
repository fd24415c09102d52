//! Lives of allocations in a closed loop: challenge, Allocate, CreatePermission, Refresh with lifetime 0.

use crate::account::{Asked, Outcome};
use crate::flags::Flags;
use crate::fleet::{Ended, Failures, Fleet};
use crate::histogram::Histogram;
use crate::json::Object;
use crate::meter::{Meter, write_latency};
use crate::plan::{Basics, Places};
use crate::stun;
use crate::sys;

/// How long the lives under way at the end may take to be over.
const DRAIN_NS: u64 = 3_000_000_000;
/// Challenges in a row before a life counts as failed: one without credentials, one for a stale nonce.
const CHALLENGES_MAX: u32 = 2;

pub fn main(mut flags: Flags) -> Result<(), String> {
    let basics = Basics::parse(&mut flags, 2.0)?;
    let places = Places::parse(&mut flags, "server")?;
    let clients: usize = flags.or("clients", 32)?;
    let permission = !flags.switch("no-permission");
    let reuse_nonce = flags.switch("reuse-nonce");
    let addresses: usize = flags.or("addresses", 0)?;
    flags.finish()?;
    if !(1..=4_096).contains(&clients) {
        return Err(format!("--clients {clients}: allowed are 1 to 4096"));
    }
    basics.settle(30)?;
    let mut meter = Meter::new(&basics.pids)?;
    let mut fleet = Fleet::open(places, places.client_port, clients, &basics.account())?;
    fleet.limit_addresses(addresses);
    let mut cycles = Cycles {
        fleet,
        places,
        permission,
        reuse_nonce,
        lives: (0..clients).map(|_| Life { begun: 0, challenges: 0 }).collect(),
        done: 0,
        failures: Failures::default(),
        latency: Histogram::new(),
        allocate: Histogram::new(),
    };
    if basics.fifo {
        sys::real_time()?;
    }
    let start = sys::now();
    let measure_at = start + (basics.warm_up * 1e9) as u64;
    let stop_at = measure_at + (basics.measure * 1e9) as u64;
    let (mut measured, mut done_before, mut requests_before) = (false, 0, 0);
    (0..clients).for_each(|client| cycles.begin(client, start));
    let mut ended = Vec::new();
    let window = loop {
        let now = sys::now();
        if !measured && now >= measure_at {
            measured = true;
            (done_before, requests_before) = (cycles.done, cycles.fleet.counts.requests);
            (cycles.latency, cycles.allocate) = (Histogram::new(), Histogram::new());
            meter.begin();
        }
        if now >= stop_at {
            break meter.end();
        }
        cycles.turn(&mut ended, now, true);
    };
    let done = cycles.done - done_before;
    let requests = cycles.fleet.counts.requests - requests_before;
    while cycles.fleet.busy() > 0 && sys::now() < stop_at + DRAIN_NS {
        cycles.turn(&mut ended, sys::now(), false);
    }
    let drops = sys::socket_drops(&[places.client_port], places.server.port());
    let counts = &cycles.fleet.counts;
    let mut o = Object::new();
    o.text("mode", "cycles")
        .count("clients", clients as u64)
        .count("permission", u64::from(permission))
        .count("reuse_nonce", u64::from(reuse_nonce))
        .count("addresses", addresses as u64);
    window.write(&mut o, "cycle", done);
    write_latency(&mut o, "", &cycles.latency);
    write_latency(&mut o, "allocate_", &cycles.allocate);
    o.real("requests_per_unit", requests as f64 / done as f64)
        .count("failures", cycles.failures.total())
        .text("failure_reasons", &cycles.failures.text())
        .count("unfinished", cycles.fleet.busy() as u64)
        .count("stale_nonces", counts.stale_nonces)
        .count("retransmissions", counts.retransmissions)
        .count("late_answers", counts.late_answers)
        .count("unmatched", counts.unmatched)
        .count("not_sent", counts.not_sent)
        .count("generator_socket_drops", drops.generator)
        .count("listener_socket_drops", drops.listener);
    println!("{}", o.finish());
    Ok(())
}

struct Life {
    begun: u64,
    challenges: u32,
}

struct Cycles {
    fleet: Fleet,
    places: Places,
    permission: bool,
    reuse_nonce: bool,
    lives: Vec<Life>,
    done: u64,
    failures: Failures,
    /// From the first request to the last answer.
    latency: Histogram,
    /// Of the Allocate that succeeds.
    allocate: Histogram,
}

impl Cycles {
    fn turn(&mut self, ended: &mut Vec<Ended>, now: u64, go_on: bool) {
        self.fleet.receive(ended);
        self.fleet.look(now, ended);
        for end in ended.drain(..) {
            self.next(end, go_on);
        }
        self.fleet.flush();
    }

    /// A new life, from an address that the server has not seen.
    fn begin(&mut self, client: usize, now: u64) {
        self.lives[client] = Life { begun: now, challenges: 0 };
        self.fleet.renew(client);
        let signed = self.reuse_nonce && self.fleet.account(client).is_challenged();
        self.allocate(client, signed, now);
    }

    fn allocate(&mut self, client: usize, signed: bool, now: u64) {
        let asked = Asked { method: stun::ALLOCATE, signed, lifetime: None };
        self.fleet.ask(client, asked, now, |request| request.attribute(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
    }

    fn release(&mut self, client: usize, now: u64) {
        let asked = Asked { method: stun::REFRESH, signed: true, lifetime: Some(0) };
        self.fleet.ask(client, asked, now, |request| request);
    }

    fn permit(&mut self, client: usize, now: u64) {
        let asked = Asked { method: stun::CREATE_PERMISSION, signed: true, lifetime: None };
        let peer = self.places.peer(client);
        self.fleet.ask(client, asked, now, |request| request.xor_address(stun::XOR_PEER_ADDRESS, peer));
    }

    fn next(&mut self, end: Ended, go_on: bool) {
        let Ended { client, asked, at, .. } = end;
        match (&end.outcome, asked.method) {
            (Outcome::Challenged(_), method) if self.lives[client].challenges < CHALLENGES_MAX => {
                self.lives[client].challenges += 1;
                match method {
                    stun::ALLOCATE => self.allocate(client, true, at),
                    stun::CREATE_PERMISSION => self.permit(client, at),
                    _ => self.release(client, at),
                }
            }
            (Outcome::Success { .. }, stun::ALLOCATE) => {
                self.allocate.record(at - end.first_sent);
                if self.permission { self.permit(client, at) } else { self.release(client, at) }
            }
            (Outcome::Success { .. }, stun::CREATE_PERMISSION) => self.release(client, at),
            (Outcome::Success { .. }, _) => {
                self.done += 1;
                self.latency.record(at - self.lives[client].begun);
                if go_on {
                    self.begin(client, at);
                }
            }
            (outcome, _) => {
                self.failures.note(asked, outcome);
                if go_on {
                    self.begin(client, at);
                }
            }
        }
    }
}
