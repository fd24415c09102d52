//! More traffic than the server can carry: what it still forwards, whether control messages get through, and how
//! soon all is well again when the load is gone.
//!
//! A closed loop finds the maximum, an open loop at a part of it the normal latency; then comes the overload, and
//! after it the normal load again. Clients of their own send Refreshes all the while, as RFC 8489 says: again after
//! 500 ms, then after twice as long each time.

use crate::account::Outcome;
use crate::flags::Flags;
use crate::fleet::Ended;
use crate::histogram::Histogram;
use crate::holders::Holders;
use crate::json::Object;
use crate::meter::{Meter, Window, write_latency};
use crate::plan::{Load, Plan};
use crate::run::{Pace, Run};
use crate::sys;
use crate::traffic::Slots;

const SECOND: f64 = 1e9;
/// How long a Refresh may take in all.
const PATIENCE_NS: u64 = 8_000_000_000;
/// A delivered request should be answered within that.
const PROMPT_NS: u64 = 10_000_000;
/// The load before and after the overload, as a part of the maximum.
const NORMAL: f64 = 0.3;
const LIFETIME: u32 = 600;

pub fn main(mut flags: Flags) -> Result<(), String> {
    let orders = Orders::parse(&mut flags)?;
    let plan = Plan::parse_with(flags, Load::InFlight(256), 12.0)?;
    if plan.flood.is_some() {
        return Err("--flood goes with `run`".to_owned());
    }
    plan.basics.settle((orders.calibrate + orders.recover) as u32 + 120)?;
    let mut meter = Meter::new(&plan.basics.pids)?;
    let mut run = Run::open(&plan)?;
    let account = plan.basics.account();
    let holders = plan.namespaces.at_clients(|| Holders::new(plan.places, orders.port, orders.clients, &account))?;
    let mut control = Control::open(holders, &orders)?;
    if plan.basics.fifo {
        sys::real_time()?;
    }
    let closed_loop = Phase::warmed_up(&plan, orders.calibrate);
    let calibration = drive(&mut run, &mut meter, &plan, plan.load, &closed_loop, None);
    let maximum = orders.maximum.unwrap_or(calibration.pps());
    let normal = rate(&plan, maximum * NORMAL);
    let offered = orders.rate.unwrap_or(maximum * orders.factor);

    run.drain();
    let baseline = drive(&mut run, &mut meter, &plan, normal, &Phase::warmed_up(&plan, 1.0), None);
    let baseline_latency = std::mem::replace(&mut run.ledger.latency, Histogram::new());
    run.drain();

    let overload = Phase::warmed_up(&plan, plan.basics.measure);
    let result = drive(&mut run, &mut meter, &plan, rate(&plan, offered), &overload, Some(&mut control));
    let ended_at = sys::now();
    let overloaded_ways = run.received();

    let recovering = (orders.recover * SECOND) as u64;
    run.ledger.measured = false;
    run.ledger.slots = Some(Slots::new(ended_at, recovering));
    control.stop();
    let mut pace = Pace::new(&plan, normal, ended_at);
    while sys::now() < ended_at + recovering {
        let now = sys::now();
        run.step(&mut pace, now);
        control.turn(now);
    }
    run.drain();
    let slots = run.ledger.slots.take();
    let counted = run.ledger.window_counts();
    let ports = [plan.places.client_port, plan.places.peer_port, orders.port];
    let drops = sys::socket_drops(&ports, plan.places.server.port());
    let verdict = control.verdict(ended_at);
    control.holders.release_all();
    let refused = run.close();

    let mut o = Object::new();
    o.text("mode", "overload")
        .count("sessions", plan.sessions as u64)
        .count("payload_bytes", plan.payload as u64)
        .count("burst", plan.burst as u64)
        .count("segmented", u64::from(plan.segment))
        .real("maximum_pps", maximum)
        .real("maximum_cpu_share", calibration.window.usage.cpu_ns as f64 / calibration.window.nanoseconds as f64)
        .real("offered_pps", offered)
        .real("sent_of_maximum", counted.sent_measured as f64 / result.window.seconds() / maximum)
        .real("sent_pps", counted.sent_measured as f64 / result.window.seconds());
    result.window.write(&mut o, "packet", result.received);
    let recovered_ways = run.received();
    o.real("forwarded_of_maximum", result.pps() / maximum)
        .real("pps_to_peer", result.by_way[0] as f64 / result.window.seconds())
        .real("pps_to_client", result.by_way[1] as f64 / result.window.seconds())
        .count("recovery_to_peer", recovered_ways[0] - overloaded_ways[0])
        .count("recovery_to_client", recovered_ways[1] - overloaded_ways[1])
        .count("sent", counted.sent_measured)
        .count("received", counted.received_measured)
        .count("lost", counted.sent_measured - counted.received_measured)
        .real("lost_share", 1.0 - counted.received_measured as f64 / counted.sent_measured as f64);
    write_latency(&mut o, "", &run.ledger.latency);
    write_latency(&mut o, "baseline_", &baseline_latency);
    o.real("baseline_pps", baseline.pps());
    control.write(&mut o, &verdict);
    o.count("control_clients", orders.clients as u64)
        .count("control_failures", control.holders.failures.total())
        .text("control_failure_reasons", &control.holders.failures.text())
        .count("control_retransmissions", control.holders.fleet.counts.retransmissions)
        .count("control_unmatched", control.holders.fleet.counts.unmatched);
    let (recovery_sent, recovery_lost) = slots.as_ref().map_or((0, 0), Slots::totals);
    let median_max = 2 * baseline_latency.quantile(0.5) + 200_000;
    let recovered = slots.and_then(|mut slots| slots.recovered(median_max));
    o.real("recovery_ms", recovered.unwrap_or(f64::NAN))
        .count("recovery_sent", recovery_sent)
        .count("recovery_lost", recovery_lost);
    let faults = &run.ledger.faults;
    o.count("duplicates", faults.duplicates)
        .count("reordered", faults.reordered)
        .count("corrupt", faults.corrupt)
        .count("misdelivered", faults.misdelivered)
        .count("unexpected", faults.unexpected)
        .count("not_sent", counted.not_sent)
        .count("generator_socket_drops", drops.generator)
        .count("listener_socket_drops", drops.listener)
        .count("relayed_socket_drops", drops.relayed)
        .count("refused_deletes", refused as u64);
    println!("{}", o.finish());
    Ok(())
}

struct Orders {
    rate: Option<f64>,
    factor: f64,
    maximum: Option<f64>,
    calibrate: f64,
    recover: f64,
    clients: usize,
    interval: f64,
    port: u16,
}

impl Orders {
    fn parse(flags: &mut Flags) -> Result<Self, String> {
        let orders = Self {
            rate: flags.optional("total-rate")?,
            factor: flags.or("factor", 2.0)?,
            maximum: flags.optional("maximum")?,
            calibrate: flags.or("calibrate", 2.0)?,
            recover: flags.or("recover", 3.0)?,
            clients: flags.or("control-clients", 100)?,
            interval: flags.or("control-interval", 0.25)?,
            port: flags.or("control-port", 44_000)?,
        };
        let positive = |value: Option<f64>| value.is_none_or(|value| (1.0..=1e8).contains(&value));
        if !positive(orders.rate) || !positive(orders.maximum) || !(0.1..=20.0).contains(&orders.factor) {
            return Err("--total-rate and --maximum are packets per second, --factor is 0.1 to 20".to_owned());
        }
        if !(0.1..=20.0).contains(&orders.calibrate) || !(0.5..=20.0).contains(&orders.recover) {
            return Err("--calibrate is 0.1 to 20 s, --recover 0.5 to 20 s".to_owned());
        }
        if !(1..=10_000).contains(&orders.clients) || !(0.01..=60.0).contains(&orders.interval) {
            return Err("--control-clients is 1 to 10000, --control-interval 0.01 to 60 s".to_owned());
        }
        Ok(orders)
    }
}

fn rate(plan: &Plan, total: f64) -> Load {
    Load::Rate(total / (2.0 * plan.flows() as f64))
}

/// How long a load lasts, in nanoseconds.
struct Phase {
    warm_up: u64,
    measure: u64,
}

impl Phase {
    fn warmed_up(plan: &Plan, seconds: f64) -> Self {
        Self { warm_up: (plan.basics.warm_up * SECOND) as u64, measure: (seconds * SECOND) as u64 }
    }
}

/// What a phase brought after its warm-up.
struct Brought {
    window: Window,
    received: u64,
    by_way: [u64; 2],
}

impl Brought {
    fn pps(&self) -> f64 {
        self.received as f64 / self.window.seconds()
    }
}

fn drive(
    run: &mut Run<'_>,
    meter: &mut Meter,
    plan: &Plan,
    load: Load,
    phase: &Phase,
    mut control: Option<&mut Control>,
) -> Brought {
    let start = sys::now();
    let (measure_at, stop_at) = (start + phase.warm_up, start + phase.warm_up + phase.measure);
    let mut pace = Pace::new(plan, load, start);
    run.ledger.measured = false;
    let mut before = None;
    loop {
        let now = sys::now();
        if before.is_none() && now >= measure_at {
            run.ledger.begin_window();
            before = Some(run.received());
            meter.begin();
        }
        if now >= stop_at {
            let window = meter.end();
            let (before, now) = (before.unwrap_or_default(), run.received());
            let by_way = [0, 1].map(|way| now[way] - before[way]);
            return Brought { window, received: by_way[0] + by_way[1], by_way };
        }
        run.step(&mut pace, now);
        if let Some(control) = &mut control {
            control.turn(now);
        }
    }
}

/// Clients that refresh allocations of their own.
struct Control {
    holders: Holders,
    /// When each may ask for the next time; never again once the overload is over.
    next: Vec<u64>,
    interval: u64,
    /// When the Refresh under way was first sent: a stale nonce begins no new one.
    since: Vec<u64>,
    looked_at: u64,
    stopped: bool,
    ended: Vec<Ended>,
    /// First sent, and how long after that it was answered; None for one that failed.
    refreshes: Vec<(u64, Option<u64>)>,
    /// From the transmission that was answered to its answer.
    answer: Histogram,
    answers: u64,
    prompt: u64,
}

impl Control {
    fn open(mut holders: Holders, orders: &Orders) -> Result<Self, String> {
        holders.open_first(orders.clients);
        if holders.open() < orders.clients {
            return Err(format!("control clients: {}", holders.failures.text()));
        }
        Ok(Self::of(holders, orders.clients, (orders.interval * SECOND) as u64))
    }

    fn of(holders: Holders, clients: usize, interval: u64) -> Self {
        Self {
            holders,
            next: vec![0; clients],
            interval,
            since: vec![0; clients],
            looked_at: 0,
            stopped: false,
            ended: Vec::new(),
            refreshes: Vec::new(),
            answer: Histogram::new(),
            answers: 0,
            prompt: 0,
        }
    }

    fn stop(&mut self) {
        self.stopped = true;
    }

    fn turn(&mut self, now: u64) {
        if self.looked_at == 0 {
            // not all at once
            let clients = self.next.len() as u64;
            self.next.iter_mut().zip(0..).for_each(|(next, n)| *next = now + self.interval * n / clients);
        }
        let mut ended = std::mem::take(&mut self.ended);
        self.holders.fleet.receive(&mut ended);
        self.holders.fleet.look(now, &mut ended);
        for end in ended.drain(..) {
            self.on_end(end);
        }
        self.ended = ended;
        if now > self.looked_at + 1_000_000 {
            self.looked_at = now;
            for client in 0..self.next.len() {
                if !self.stopped && now >= self.next[client] && !self.holders.fleet.is_busy(client) {
                    self.since[client] = now;
                    self.holders.refresh(client, LIFETIME, now);
                }
            }
        }
        self.holders.fleet.flush();
    }

    fn on_end(&mut self, end: Ended) {
        let client = end.client;
        match &end.outcome {
            Outcome::Challenged(438) => {
                self.holders.refresh(client, LIFETIME, end.at);
                return;
            }
            Outcome::Success { .. } => {
                let took = end.at.saturating_sub(end.last_sent);
                if !self.stopped {
                    self.answer.record(took);
                    self.answers += 1;
                    self.prompt += u64::from(took <= PROMPT_NS);
                }
                self.refreshes.push((self.since[client], Some(end.at - self.since[client])));
            }
            outcome => {
                self.holders.failures.note(end.asked, outcome);
                self.refreshes.push((self.since[client], None));
            }
        }
        self.next[client] = end.at + self.interval;
    }

    fn verdict(&self, overload_ended_at: u64) -> Verdict {
        let judged = |since: u64| since + PATIENCE_NS <= overload_ended_at;
        let mut verdict = Verdict { judged: 0, within: 0 };
        for (since, took) in &self.refreshes {
            if judged(*since) {
                verdict.judged += 1;
                verdict.within += u64::from(took.is_some_and(|took| took <= PATIENCE_NS));
            }
        }
        let waits = |client: &usize| self.holders.fleet.is_busy(*client) && judged(self.since[*client]);
        verdict.judged += (0..self.since.len()).filter(waits).count() as u64;
        verdict
    }

    fn write(&self, o: &mut Object, verdict: &Verdict) {
        o.count("refreshes_judged", verdict.judged)
            .count("refreshes_within_8s", verdict.within)
            .real("refreshes_within_8s_share", verdict.within as f64 / verdict.judged as f64)
            .count("refresh_answers", self.answers)
            .real("refresh_answers_within_10ms_share", self.prompt as f64 / self.answers as f64);
        write_latency(o, "refresh_", &self.answer);
    }
}

/// Refreshes whose whole patience lay within the overload, and those of them that were answered in time.
struct Verdict {
    judged: u64,
    within: u64,
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

    use super::*;
    use crate::account::{Account, Asked};
    use crate::stun;

    const SECOND: u64 = 1_000_000_000;
    const REFRESH: Asked = Asked { method: stun::REFRESH, signed: true, lifetime: Some(LIFETIME) };

    /// Control clients of a server that never answers.
    fn control(port: u16) -> (Control, UdpSocket) {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, server.local_addr().expect("bound").port());
        let places = crate::plan::Places::on_loopback(address, port);
        let holders = Holders::new(places, port, 4, &Account::new("user", "pass")).expect("a fleet");
        (Control::of(holders, 4, SECOND / 4), server)
    }

    fn end(client: usize, last_sent: u64, at: u64, outcome: Outcome) -> Ended {
        Ended { client, asked: REFRESH, outcome, first_sent: 0, last_sent, at }
    }

    #[test]
    fn late_failed_and_unanswered_refreshes_are_no_success_and_young_ones_are_not_judged() {
        let (mut control, _server) = control(45_104);
        let success = || Outcome::Success { relayed: None };
        control.on_end(end(0, 7 * SECOND, 7 * SECOND + 1_000, success()));
        control.on_end(end(1, 8 * SECOND, 8 * SECOND + 1_000, success()));
        control.on_end(end(2, 31 * SECOND, 39 * SECOND, Outcome::TimedOut));
        control.since[3] = SECOND;
        control.holders.refresh(3, LIFETIME, SECOND);
        let verdict = control.verdict(10 * SECOND);
        assert_eq!((verdict.judged, verdict.within), (4, 1));
        let verdict = control.verdict(8 * SECOND + 1);
        assert_eq!((verdict.judged, verdict.within), (3, 1));
        assert_eq!(control.verdict(7 * SECOND).judged, 0);
        assert_eq!(control.holders.failures.total(), 1);
    }

    #[test]
    fn the_answer_is_timed_from_the_last_transmission_and_a_stale_nonce_begins_no_new_refresh() {
        let (mut control, _server) = control(45_105);
        control.since[0] = SECOND;
        control.on_end(end(0, 2 * SECOND, 2 * SECOND + 5, Outcome::Challenged(438)));
        assert!(control.holders.fleet.is_busy(0));
        assert!(control.refreshes.is_empty());
        control.on_end(end(0, 3 * SECOND, 3 * SECOND + 9_000_000, Outcome::Success { relayed: None }));
        control.on_end(end(1, 3 * SECOND, 3 * SECOND + 11_000_000, Outcome::Success { relayed: None }));
        assert_eq!(control.refreshes[0], (SECOND, Some(2 * SECOND + 9_000_000)));
        assert_eq!((control.answers, control.prompt, control.answer.max()), (2, 1, 11_000_000));
        assert_eq!(control.next[0], 3 * SECOND + 9_000_000 + SECOND / 4);
    }
}
