//! One measurement: open the sessions, warm up, measure, drain, close, report.

use crate::flags::Flags;
use crate::flood::Flood;
use crate::json::Object;
use crate::meter::{Meter, Window, write_latency};
use crate::plan::{Framing, Load, Plan, SESSIONS_MAX, channel_of};
use crate::session::{self, Clients, Session};
use crate::stun::{self, Message};
use crate::sys::{self, Drops};
use crate::traffic::{Direction, HEADER, Ledger, WAYS};
use crate::udp::{BATCH, ManyAddresses};

const SECOND: f64 = 1e9;
/// How long packets may still arrive after the last was sent.
const DRAIN_NS: u64 = 300_000_000;
/// A closed loop in which nothing arrives for so long has lost its packets: start the window again.
const STALL_NS: u64 = 50_000_000;
/// Packets sent before the generator looks at what has arrived.
const SENDS_PER_TURN: usize = BATCH;

pub fn main(flags: Flags) -> Result<(), String> {
    let plan = Plan::parse(flags)?;
    plan.basics.settle(60)?;
    let mut meter = Meter::new(&plan.basics.pids)?.and_softirq(&plan.softirq)?;
    let opening = sys::now();
    let mut run = Run::open(&plan)?;
    let opened_ns = sys::now() - opening;
    step(plan.steps, "open");
    if plan.basics.fifo {
        sys::real_time()?;
    }
    let measured = run.drive(&mut meter);
    step(plan.steps, "drained");
    let mut ports = vec![plan.places.client_port, plan.places.peer_port];
    ports.extend(run.flood.as_ref().map(Flood::port));
    let drops = sys::drops_in(&plan.namespaces.udp_tables(), &ports, plan.places.server.port());
    let broken = run.clients.closed();
    let refused = run.close();
    println!("{}", run.report(&measured, opened_ns, drops, broken, refused));
    Ok(())
}

/// Lets whoever started the generator count something of the server around the traffic alone.
fn step(wanted: bool, word: &str) {
    if wanted {
        eprintln!("{word}");
        let _ = std::io::stdin().read_line(&mut String::new());
    }
}

/// What the measured window brought.
struct Measured {
    window: Window,
    received: [u64; 2],
}

/// Open sessions and the traffic between their clients and peers.
pub struct Run<'a> {
    plan: &'a Plan,
    clients: Clients,
    peers: ManyAddresses,
    sessions: Vec<Session>,
    pub ledger: Ledger,
    flood: Option<Flood<'a>>,
    frame: Vec<u8>,
    /// Packets queued since the last flush, by way.
    pushed: [u64; 2],
    lag_max: u64,
    stalls: u64,
}

/// Whose turn it is to send: sessions in order, and for the open loop when.
struct Turn {
    start: f64,
    sent_bursts: u64,
    interval: f64,
    next_session: [usize; 2],
}

/// A load and how far it has come.
pub struct Pace {
    load: Load,
    turn: Turn,
    /// Packets of the closed loop that will not come any more.
    lost: [u64; 2],
    last_arrival: u64,
}

impl Pace {
    pub fn new(plan: &Plan, load: Load, now: u64) -> Self {
        let interval = match load {
            Load::Rate(rate) => SECOND * plan.burst as f64 / (rate * 2.0 * plan.flows() as f64),
            Load::InFlight(_) => 0.0,
        };
        let turn = Turn { start: now as f64, sent_bursts: 0, interval, next_session: [0; 2] };
        Self { load, turn, lost: [0; 2], last_arrival: now }
    }
}

impl<'a> Run<'a> {
    pub fn open(plan: &'a Plan) -> Result<Self, String> {
        let mut clients = plan.namespaces.at_clients(|| Clients::open(plan))?;
        let mut peers = plan.namespaces.at_peers(|| ManyAddresses::open(plan.places.peer_port, plan.payload))?;
        let sessions = session::open_all(plan, &mut clients)?;
        if plan.segment {
            peers.segment();
            clients.segment();
        }
        let flood = match &plan.flood {
            Some(orders) => {
                let open = || Flood::open(orders, &plan.basics, plan.places, plan.sessions);
                Some(plan.namespaces.at_clients(open)?)
            }
            None => None,
        };
        let ledger = Ledger::new(plan.flows(), plan.payload);
        Ok(Self {
            plan,
            clients,
            peers,
            sessions,
            ledger,
            flood,
            frame: Vec::new(),
            pushed: [0; 2],
            lag_max: 0,
            stalls: 0,
        })
    }

    /// Releases the sessions; how many the server refused to end.
    pub fn close(&mut self) -> usize {
        session::close_all(self.plan, &mut self.clients, &mut self.sessions)
    }

    fn drive(&mut self, meter: &mut Meter) -> Measured {
        let start = sys::now();
        let measure_at = start + (self.plan.basics.warm_up * SECOND) as u64;
        let stop_at = measure_at + (self.plan.basics.measure * SECOND) as u64;
        let mut pace = Pace::new(self.plan, self.plan.load, start);
        let mut received_before = [0; 2];
        let measured = loop {
            let now = sys::now();
            if !self.ledger.measured && now >= measure_at {
                self.ledger.begin_window();
                received_before = self.received();
                if let Some(flood) = &mut self.flood {
                    flood.begin_window();
                }
                meter.begin();
            }
            if now >= stop_at {
                let window = meter.end();
                let received = self.received();
                break Measured { window, received: [0, 1].map(|way| received[way] - received_before[way]) };
            }
            self.step(&mut pace, now);
            if let Some(flood) = &mut self.flood {
                flood.turn(now);
            }
        };
        self.drain();
        measured
    }

    /// Sends what is due, or what there is room for, and takes a batch of what has arrived.
    pub fn step(&mut self, pace: &mut Pace, now: u64) {
        match pace.load {
            Load::Rate(_) => self.send_due(&mut pace.turn, now),
            Load::InFlight(limit) => self.send_room(&mut pace.turn, limit / 2, &pace.lost, now),
        }
        if self.receive() > 0 {
            pace.last_arrival = now;
        } else if matches!(pace.load, Load::InFlight(_)) && now.saturating_sub(pace.last_arrival) > STALL_NS {
            pace.lost = WAYS.map(|way| {
                let counts = &self.ledger.counts[way as usize];
                counts.sent - counts.received
            });
            self.stalls += 1;
            pace.last_arrival = now;
        }
    }

    /// Arrived so far, by way.
    pub fn received(&self) -> [u64; 2] {
        WAYS.map(|way| self.ledger.counts[way as usize].received)
    }

    /// Open loop: every burst whose time has come, directions in turn, sessions in order.
    fn send_due(&mut self, turn: &mut Turn, now: u64) {
        let mut packets = 0;
        while packets < SENDS_PER_TURN {
            let due = turn.start + turn.interval * turn.sent_bursts as f64;
            if due > now as f64 {
                break;
            }
            if self.ledger.measured {
                self.lag_max = self.lag_max.max(now - due as u64);
            }
            let way = WAYS[(turn.sent_bursts % 2) as usize];
            let session = (turn.sent_bursts / 2) as usize % self.plan.flows();
            turn.sent_bursts += 1;
            packets += self.send_burst(session, way, now);
        }
        self.flush(packets > 0);
    }

    /// Closed loop: bursts for as long as a direction has room. What was lost before the last stall takes none.
    /// Neither direction gets ahead of the other, so that all servers are measured on the same mixture.
    fn send_room(&mut self, turn: &mut Turn, limit: usize, lost: &[u64; 2], now: u64) {
        let mut any = false;
        for way in WAYS {
            let mut packets = 0;
            loop {
                let counts = &self.ledger.counts[way as usize];
                let under_way = (counts.sent - counts.received).saturating_sub(lost[way as usize]);
                let ahead = counts.sent.saturating_sub(self.ledger.counts[1 - way as usize].sent);
                let no_room = under_way as usize + self.plan.burst > limit || ahead as usize > limit;
                if no_room || packets >= SENDS_PER_TURN {
                    break;
                }
                let session = turn.next_session[way as usize];
                turn.next_session[way as usize] = (session + 1) % self.plan.flows();
                packets += self.send_burst(session, way, now);
            }
            any |= packets > 0;
        }
        self.flush(any);
    }

    fn send_burst(&mut self, session: usize, way: Direction, now: u64) -> usize {
        for _ in 0..self.plan.burst {
            self.send(session, way, now);
        }
        self.plan.burst
    }

    /// One payload of a flow. In pairs flow n is between the sessions 2n and 2n + 1, and both ends are clients.
    fn send(&mut self, flow: usize, way: Direction, now: u64) {
        let (stamp, tail) = self.ledger.next(flow, way, now);
        let n = sender(self.plan.pairs, flow, way);
        let session = &self.sessions[n];
        let places = &self.plan.places;
        if way == Direction::ToClient && !self.plan.pairs {
            self.pushed[way as usize] += 1;
            if self.peers.push(*places.peer(n).ip(), session.relayed, &[&stamp], tail, 0) {
                self.flush_peers();
            }
            return;
        }
        let payload = (HEADER + tail.len()) as u16;
        let mut head = [0; 56];
        let (head, padding) = match self.plan.framing {
            Framing::Raw => (&head[..0], 0),
            Framing::Channel => {
                head[..2].copy_from_slice(&session.channel.to_be_bytes());
                head[2..4].copy_from_slice(&payload.to_be_bytes());
                // RFC 8656 section 12.5: padded on a stream only
                let streams = matches!(self.clients, Clients::Tcp { .. });
                (&head[..4], if streams { pad(payload) } else { 0 })
            }
            Framing::Indication => {
                let end = session.indication.len();
                head[..end].copy_from_slice(&session.indication);
                let length = (end - stun::HEAD + 4 + usize::from(payload) + pad(payload)) as u16;
                head[2..4].copy_from_slice(&length.to_be_bytes());
                head[end..end + 2].copy_from_slice(&stun::DATA.to_be_bytes());
                head[end + 2..end + 4].copy_from_slice(&payload.to_be_bytes());
                (&head[..end + 4], pad(payload))
            }
        };
        match &mut self.clients {
            Clients::Udp(socket) => {
                self.pushed[way as usize] += 1;
                if socket.push(*places.client(n).ip(), places.server, &[head, &stamp], tail, padding) {
                    self.flush_clients();
                }
            }
            Clients::Tcp { connections, .. } => {
                self.frame.clear();
                self.frame.extend(head);
                self.frame.extend(stamp);
                self.frame.extend(tail);
                self.frame.resize(self.frame.len() + padding, 0);
                if !connections[n].send(&self.frame) {
                    self.ledger.not_sent(way, 1);
                }
            }
        }
    }

    fn flush_clients(&mut self) {
        let Clients::Udp(socket) = &mut self.clients else {
            return;
        };
        let refused = socket.flush();
        // in pairs both ways leave from here; which of them was refused is not known
        let to_peer = refused.min(self.pushed[Direction::ToPeer as usize]);
        self.pushed[Direction::ToPeer as usize] = 0;
        self.ledger.not_sent(Direction::ToPeer, to_peer);
        self.ledger.not_sent(Direction::ToClient, refused - to_peer);
        if self.plan.pairs {
            self.pushed[Direction::ToClient as usize] = 0;
        }
    }

    fn flush_peers(&mut self) {
        let refused = self.peers.flush();
        self.pushed[Direction::ToClient as usize] = 0;
        self.ledger.not_sent(Direction::ToClient, refused);
    }

    fn flush(&mut self, any: bool) {
        if !any {
            return;
        }
        if self.pushed[Direction::ToClient as usize] > 0 && !self.plan.pairs {
            self.flush_peers();
        }
        if self.pushed.iter().any(|pushed| *pushed > 0) {
            self.flush_clients();
        }
    }

    /// One batch from each side; the clock is read once a side.
    fn receive(&mut self) -> usize {
        let Self { plan, clients, peers, sessions, ledger, .. } = self;
        let places = &plan.places;
        let mut now = 0;
        let mut clock = move || {
            if now == 0 {
                now = sys::now();
            }
            now
        };
        let at_clients = clients.receive(places, |n, from_server, bytes| {
            if n >= sessions.len() || n >= SESSIONS_MAX {
                ledger.faults.unexpected += 1;
                return;
            }
            match unframe(plan.framing, n, sessions[n].peer, bytes) {
                Some((payload, right_head)) => {
                    let (flow, way) = flow_to_client(plan.pairs, n);
                    ledger.arrived(flow, way, payload, from_server && right_head, clock());
                }
                None => ledger.faults.unexpected += 1,
            }
        });
        let mut now = 0;
        let at_peers = peers.receive(|from, to, bytes| {
            let n = places.session_of_peer(to);
            if n >= sessions.len() || plan.pairs {
                ledger.faults.unexpected += 1;
                return;
            }
            if now == 0 {
                now = sys::now();
            }
            ledger.arrived(n, Direction::ToPeer, bytes, from == sessions[n].relayed, now);
        });
        if let Clients::Tcp { connections, .. } = clients {
            for connection in connections {
                connection.drain();
            }
        }
        at_clients + at_peers
    }

    /// Takes what still arrives, for a while.
    pub fn drain(&mut self) {
        let until = sys::now() + DRAIN_NS;
        while self.ledger.received() < self.ledger.sent() && sys::now() < until {
            self.receive();
        }
    }

    fn report(&self, measured: &Measured, opened_ns: u64, drops: Drops, broken: usize, refused: usize) -> String {
        let plan = self.plan;
        let Measured { window, received: [to_peer, to_client] } = measured;
        let seconds = window.seconds();
        let received = to_peer + to_client;
        let counts = &self.ledger.counts;
        let sum = |of: fn(&crate::traffic::Counts) -> u64| counts.iter().map(of).sum::<u64>();
        let (sent, arrived) = (sum(|c| c.sent_measured), sum(|c| c.received_measured));
        let faults = &self.ledger.faults;
        let per_packet = |total: u64| total as f64 / received as f64;
        let mut o = Object::new();
        o.text(
            "mode",
            match (plan.pairs, &self.flood) {
                (true, _) => "pairs",
                (false, Some(_)) => "flood",
                (false, None) => "run",
            },
        )
        .text("tls", &self.clients.tls_suite().unwrap_or_default())
        .count("sessions", plan.sessions as u64)
        .count("payload_bytes", plan.payload as u64)
        .count("burst", plan.burst as u64)
        .count("segmented", u64::from(plan.segment));
        match plan.load {
            Load::Rate(rate) => {
                let offered = rate * 2.0 * plan.flows() as f64;
                o.text("load", "open")
                    .real("offered_pps", offered)
                    .real("sent_of_offered", sent as f64 / (offered * plan.basics.measure));
            }
            Load::InFlight(packets) => {
                o.text("load", "closed").count("in_flight", packets as u64).count("stalls", self.stalls);
            }
        }
        window.write(&mut o, "packet", received);
        o.real("opened_ms", opened_ns as f64 / 1e6)
            .real("pps", received as f64 / seconds)
            .real("pps_to_peer", *to_peer as f64 / seconds)
            .real("pps_to_client", *to_client as f64 / seconds)
            .count("sent", sent)
            .count("received", arrived)
            .count("relayed_in_all", self.ledger.received())
            .count("lost", sent - arrived)
            .count("not_sent", sum(|c| c.not_sent))
            .count("duplicates", faults.duplicates)
            .count("reordered", faults.reordered)
            .count("corrupt", faults.corrupt)
            .count("misdelivered", faults.misdelivered)
            .count("unexpected", faults.unexpected)
            .count("generator_socket_drops", drops.generator)
            .count("listener_socket_drops", drops.listener)
            .count("relayed_socket_drops", drops.relayed)
            .count("broken_connections", broken as u64)
            .count("refused_deletes", refused as u64)
            .real("generator_lag_max_us", self.lag_max as f64 / 1e3);
        write_latency(&mut o, "", &self.ledger.latency);
        if !plan.basics.pids.is_empty() {
            let usage = &window.usage;
            o.real("cpu_ns_per_packet", per_packet(usage.cpu_ns + usage.softirq_ns))
                .real("process_ns_per_packet", per_packet(usage.cpu_ns))
                .real("softirq_ns_per_packet", per_packet(usage.softirq_ns))
                .real("switches_per_packet", per_packet(usage.context_switches))
                .real("softirq_switches_per_packet", per_packet(usage.softirq_switches));
        }
        if let Some(flood) = &self.flood {
            flood.write(&mut o, seconds);
        }
        o.finish()
    }
}

/// The session whose client, or whose peer, sends this way. In pairs flow n has the sessions 2n and 2n + 1.
fn sender(pairs: bool, flow: usize, way: Direction) -> usize {
    if pairs { 2 * flow + way as usize } else { flow }
}

/// Which flow, and which way of it, ends at this session's client.
fn flow_to_client(pairs: bool, session: usize) -> (usize, Direction) {
    if pairs { (session / 2, WAYS[1 - session % 2]) } else { (session, Direction::ToClient) }
}

fn pad(length: u16) -> usize {
    usize::from(length.wrapping_neg() & 3)
}

/// The payload inside what a client got, and whether its head names the session's channel or peer.
fn unframe(framing: Framing, n: usize, peer: std::net::SocketAddrV4, bytes: &[u8]) -> Option<(&[u8], bool)> {
    match framing {
        Framing::Raw => Some((bytes, true)),
        Framing::Channel => {
            let (head, rest) = bytes.split_at_checked(4)?;
            let number = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            if !(0x4000..0x5000).contains(&number) {
                return None;
            }
            Some((rest.get(..length)?, number == channel_of(n)))
        }
        Framing::Indication => {
            let message = Message::parse(bytes).filter(|m| m.kind() == stun::DATA_INDICATION)?;
            let right = message.xor_address(stun::XOR_PEER_ADDRESS) == Some(peer);
            Some((message.attribute(stun::DATA)?, right))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_reaches_the_next_multiple_of_four() {
        assert_eq!([0, 1, 2, 3, 4, 160].map(pad), [0, 3, 2, 1, 0, 0]);
    }

    /// So a payload that comes back to its own sender is misdelivered, as is one of another pair.
    #[test]
    fn in_pairs_each_way_ends_at_the_other_client() {
        for flow in 0..5 {
            for way in WAYS {
                let from = sender(true, flow, way);
                assert_eq!(flow_to_client(true, from ^ 1), (flow, way));
                assert_ne!(flow_to_client(true, from), (flow, way));
            }
        }
        assert_eq!((sender(false, 3, Direction::ToPeer), flow_to_client(false, 3)), (3, (3, Direction::ToClient)));
    }

    #[test]
    fn channel_data_of_another_channel_is_told_apart() {
        let bytes = [0x40, 3, 0, 2, 9, 8, 0, 0];
        let peer = "127.2.0.4:1".parse().expect("an address");
        assert_eq!(unframe(Framing::Channel, 3, peer, &bytes), Some((&[9, 8][..], true)));
        assert_eq!(unframe(Framing::Channel, 4, peer, &bytes), Some((&[9, 8][..], false)));
        assert_eq!(unframe(Framing::Channel, 3, peer, &[0, 1, 0, 2, 9, 8]), None);
        assert_eq!(unframe(Framing::Channel, 3, peer, &[0x40, 3, 0, 3, 9, 8]), None);
    }
}
