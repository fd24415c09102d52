//! Binding requests in a closed loop: what answering costs without any state.

use std::net::SocketAddrV4;

use crate::account::{Account, Asked, Outcome, judge};
use crate::flags::Flags;
use crate::histogram::Histogram;
use crate::json::Object;
use crate::meter::{Meter, write_latency};
use crate::plan::{Basics, Places, SESSIONS_MAX};
use crate::stun::{self, Message, TransactionId};
use crate::sys;
use crate::udp::ManyAddresses;

/// A loop in which nothing arrives for so long has lost what was under way.
const STALL_NS: u64 = 50_000_000;
const DRAIN_NS: u64 = 300_000_000;
const ASKED: Asked = Asked { method: stun::BINDING, signed: false, lifetime: None };

pub fn main(mut flags: Flags) -> Result<(), String> {
    let basics = Basics::parse(&mut flags, 2.0)?;
    let places = Places::parse(&mut flags, "server")?;
    let in_flight: usize = flags.or("in-flight", 64)?;
    flags.finish()?;
    if !(1..=SESSIONS_MAX).contains(&in_flight) {
        return Err(format!("--in-flight {in_flight}: allowed are 1 to {SESSIONS_MAX}"));
    }
    basics.settle(30)?;
    let mut meter = Meter::new(&basics.pids)?;
    let mut flood = Flood {
        socket: ManyAddresses::open(places.client_port, 64)?,
        slots: (0..in_flight).map(|_| Slot { id: [0; 12], sent_at: 0, waiting: false }).collect(),
        account: basics.account(),
        places,
        counter: sys::now(),
        counts: Counts::default(),
        latency: Histogram::new(),
    };
    if basics.fifo {
        sys::real_time()?;
    }
    let start = sys::now();
    let measure_at = start + (basics.warm_up * 1e9) as u64;
    let stop_at = measure_at + (basics.measure * 1e9) as u64;
    let (mut measured, mut answers_before, mut last_arrival) = (false, 0, start);
    let window = loop {
        let now = sys::now();
        if !measured && now >= measure_at {
            measured = true;
            flood.latency = Histogram::new();
            answers_before = flood.counts.answers;
            meter.begin();
        }
        if now >= stop_at {
            break meter.end();
        }
        if now.saturating_sub(last_arrival) > STALL_NS {
            flood.give_up();
            last_arrival = now;
        }
        flood.fill(now);
        if flood.receive() > 0 {
            last_arrival = now;
        }
    };
    let answers = flood.counts.answers - answers_before;
    let until = sys::now() + DRAIN_NS;
    while flood.slots.iter().any(|slot| slot.waiting) && sys::now() < until {
        flood.receive();
    }
    flood.give_up();
    let drops = sys::socket_drops(&[places.client_port], places.server.port());
    let counts = &flood.counts;
    let mut o = Object::new();
    o.text("mode", "bindings").count("in_flight", in_flight as u64);
    window.write(&mut o, "answer", answers);
    write_latency(&mut o, "", &flood.latency);
    o.count("sent", counts.sent)
        .count("answered", counts.answers)
        .count("lost", counts.lost)
        .count("not_sent", counts.not_sent)
        .count("wrong", counts.wrong)
        .count("unmatched", counts.unmatched)
        .text("first_wrong", counts.first_wrong.as_deref().unwrap_or_default())
        .count("generator_socket_drops", drops.generator)
        .count("listener_socket_drops", drops.listener);
    println!("{}", o.finish());
    Ok(())
}

struct Slot {
    id: TransactionId,
    sent_at: u64,
    waiting: bool,
}

#[derive(Default)]
struct Counts {
    sent: u64,
    answers: u64,
    lost: u64,
    not_sent: u64,
    wrong: u64,
    unmatched: u64,
    first_wrong: Option<String>,
}

struct Flood {
    socket: ManyAddresses,
    slots: Vec<Slot>,
    account: Account,
    places: Places,
    counter: u64,
    counts: Counts,
    latency: Histogram,
}

impl Flood {
    /// A request from every address that waits for nothing.
    fn fill(&mut self, now: u64) {
        let mut queued = false;
        for index in 0..self.slots.len() {
            if self.slots[index].waiting {
                continue;
            }
            self.counter = self.counter.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            let slot = &mut self.slots[index];
            slot.id[..8].copy_from_slice(&self.counter.to_be_bytes());
            (slot.sent_at, slot.waiting) = (now, true);
            self.counts.sent += 1;
            queued = true;
            let request = stun::head(stun::BINDING, 0, slot.id);
            if self.socket.push(*self.places.client(index).ip(), self.places.server, &[&request], &[], 0) {
                self.counts.not_sent += self.socket.flush();
                queued = false;
            }
        }
        if queued {
            self.counts.not_sent += self.socket.flush();
        }
    }

    fn receive(&mut self) -> usize {
        let Self { socket, slots, account, places, counts, latency, .. } = self;
        let mut now = 0;
        socket.receive(|from, to, bytes| {
            if now == 0 {
                now = sys::now();
            }
            let message = Message::parse(bytes).filter(|_| from == places.server);
            let slot = slots.get_mut(places.session_of_client(to));
            let (Some(slot), Some(message)) = (slot, message) else {
                counts.unmatched += 1;
                return;
            };
            if !slot.waiting || message.id() != slot.id {
                counts.unmatched += 1;
                return;
            }
            slot.waiting = false;
            match judge(ASKED, &message, SocketAddrV4::new(to, places.client_port), account) {
                Outcome::Success { .. } => {
                    counts.answers += 1;
                    latency.record(now.saturating_sub(slot.sent_at));
                }
                other => {
                    counts.wrong += 1;
                    counts.first_wrong.get_or_insert_with(|| format!("{other:?}"));
                }
            }
        })
    }

    fn give_up(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.waiting) {
            slot.waiting = false;
            self.counts.lost += 1;
        }
    }
}
