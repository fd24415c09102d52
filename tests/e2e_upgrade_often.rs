//! Upgrades of the real binary one right after the other under numbered packets, and many in a row that fail: no packet is lost
//! or comes twice, every count is exact, and failures leave nothing behind.
//!
//! `UPGRADES` says how many follow each other; `scripts/test` asks for a minute of them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use test_support::e2e::tls::Authority;
use test_support::e2e::upgrade::{REFUSED, ROLLED_BACK, Upgradable};
use test_support::e2e::{Client, Directory, Echo, Origin, SILENCE, Server, Settings, Witness, payload, peer, wait_for};
use test_support::with_one_and_three_workers;

const SECRET: &str = "north-of-everything";
const CHANNEL: u16 = 0x4001;

/// How many upgrades follow each other unless `UPGRADES` says so.
const UPGRADES: u64 = 5;

fn upgrades() -> u64 {
    std::env::var("UPGRADES").map_or(UPGRADES, |text| text.parse().expect("UPGRADES is a number"))
}

// ---- numbered packets ----

/// Packets that an end sends in a row, and how long it rests then.
const ROW: u32 = 3;
const REST: Duration = Duration::from_millis(5);

/// How long one look for a packet lasts.
const LOOK: Duration = Duration::from_millis(1);

/// After so many packets a client extends its channel and its allocation.
const EXTENDED_EVERY: u32 = 900;

/// One end of a flow.
enum End {
    Client { user: String, client: Box<Client>, other: SocketAddr },
    Peer { socket: UdpSocket, relayed: SocketAddr },
}

fn numbered(number: u32, way: usize) -> Vec<u8> {
    let rest = payload(number * 2 + way as u32, (number * 37 % 600) as usize);
    [&number.to_be_bytes()[..], &rest].concat()
}

impl End {
    fn send(&mut self, payload: &[u8]) {
        match self {
            Self::Client { client, .. } => client.send_channel(CHANNEL, payload),
            Self::Peer { socket, relayed } => {
                socket.send_to(payload, *relayed).unwrap();
            }
        }
    }

    /// The next packet for this end, if there is one now or soon.
    fn receive(&mut self, within: Duration) -> Option<Vec<u8>> {
        match self {
            Self::Client { client, .. } => {
                let data = client.data_within(within)?;
                assert_eq!(data.from, Origin::Channel(CHANNEL));
                Some(data.payload)
            }
            Self::Peer { socket, .. } => {
                socket.set_read_timeout(Some(within)).unwrap();
                let mut buffer = [0; 2048];
                socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())
            }
        }
    }

    fn extend(&mut self) {
        if let Self::Client { client, other, .. } = self {
            client.bind(CHANNEL, *other);
            assert_eq!(client.refresh(600).code(), 0);
        }
    }
}

/// What one end has sent.
#[derive(Clone, Copy, Default)]
struct Sent {
    packets: u32,
    bytes: u64,
}

/// Two ends that send each other numbered packets, whether or not those before have arrived. Each must come once, in order.
struct Flow {
    stop: Arc<AtomicBool>,
    rows: Arc<AtomicU64>,
    thread: Option<JoinHandle<([End; 2], [Sent; 2])>>,
}

impl Flow {
    /// Between a client and a plain peer.
    fn to_peer(name: &str, client: Client) -> Self {
        let mut client = client.minted(SECRET, name);
        let relayed = client.allocate();
        let socket = peer(relayed);
        let other = socket.local_addr().unwrap();
        client.bind(CHANNEL, other);
        let client = End::Client { user: name.to_owned(), client: Box::new(client), other };
        Self::start(name, [client, End::Peer { socket, relayed }])
    }

    /// Between two clients, from relayed address to relayed address.
    fn relayed(name: &str, clients: [Client; 2]) -> Self {
        let users = ["one", "other"].map(|which| format!("{name}-{which}"));
        let [mut one, mut other] = clients;
        (one, other) = (one.minted(SECRET, &users[0]), other.minted(SECRET, &users[1]));
        let (at_one, at_other) = (one.allocate(), other.allocate());
        one.bind(CHANNEL, at_other);
        other.bind(CHANNEL, at_one);
        let [user_one, user_other] = users;
        let one = End::Client { user: user_one, client: Box::new(one), other: at_other };
        Self::start(name, [one, End::Client { user: user_other, client: Box::new(other), other: at_one }])
    }

    fn start(name: &str, mut ends: [End; 2]) -> Self {
        let (stop, rows) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, name) = (Arc::clone(&stop), Arc::clone(&rows), name.to_owned());
        let thread = std::thread::spawn(move || {
            let (mut sent, mut received) = ([Sent::default(); 2], [0; 2]);
            let mut take = |ends: &mut [End; 2], within| {
                for (at, end) in ends.iter_mut().enumerate() {
                    while let Some(found) = end.receive(within) {
                        let (due, way) = (received[at], 1 - at);
                        let number = u32::from_be_bytes(found[..4].try_into().unwrap());
                        assert_eq!(number, due, "{name}, way {way}: a packet is lost, comes twice, or not in order");
                        assert!(found == numbered(due, way), "{name}: packet {due} of way {way} was changed");
                        received[at] += 1;
                    }
                }
                received
            };
            while !stopped.load(Ordering::Relaxed) {
                for (way, end) in ends.iter_mut().enumerate() {
                    for _ in 0..ROW {
                        let packet = numbered(sent[way].packets, way);
                        end.send(&packet);
                        sent[way] =
                            Sent { packets: sent[way].packets + 1, bytes: sent[way].bytes + packet.len() as u64 };
                    }
                    if sent[way].packets % EXTENDED_EVERY == 0 {
                        end.extend();
                    }
                }
                take(&mut ends, LOOK);
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(REST);
            }
            let due = [sent[1].packets, sent[0].packets];
            wait_for("the last packets", || (take(&mut ends, LOOK) == due).then_some(()));
            assert_eq!(take(&mut ends, SILENCE), due, "and no packet came that was not sent");
            (ends, sent)
        });
        Self { stop, rows, thread: Some(thread) }
    }

    /// Waits until packets were sent and looked for from now on.
    #[track_caller]
    fn see_progress(&self) {
        let before = self.rows.load(Ordering::Relaxed);
        wait_for("progress of numbered packets", || {
            assert!(!self.thread.as_ref().unwrap().is_finished(), "a flow has failed");
            (self.rows.load(Ordering::Relaxed) > before + 2).then_some(())
        });
    }

    /// Waits until each packet has arrived, and ends the sessions; adds what each user sent and was sent.
    #[track_caller]
    fn finish(mut self, due: &mut BTreeMap<String, [Sent; 2]>) {
        self.stop.store(true, Ordering::Relaxed);
        let (ends, sent) = self.thread.take().unwrap().join().expect("no packet is lost");
        for (at, end) in ends.into_iter().enumerate() {
            if let End::Client { user, mut client, .. } = end {
                assert_eq!(client.refresh(0).code(), 0);
                due.insert(user, [sent[at], sent[1 - at]]);
            }
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The last record of each user's session; the records of one have numbers without a gap.
fn stops(text: &str) -> BTreeMap<String, Value> {
    let (mut stops, mut next) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let next = next.entry(record["session"].as_str().unwrap().to_owned()).or_insert(0);
        assert_eq!(record["seq"], *next, "{line}");
        *next += 1;
        if record["type"] == "stop" {
            let before = stops.insert(record["user"].as_str().unwrap().to_owned(), record);
            assert!(before.is_none(), "{before:?}");
        }
    }
    stops
}

/// What records and metrics call the two ways.
const FROM_CLIENT: [&str; 2] = ["from_client", "to_peers"];
const FROM_PEERS: [&str; 2] = ["from_peers", "to_client"];
const SERIES: [(&str, &str, usize); 4] =
    [("received", "clients", 0), ("sent", "peers", 0), ("received", "peers", 1), ("sent", "clients", 1)];

with_one_and_three_workers! {
    fn upgrades_one_after_the_other_lose_nothing_and_count_everything(workers: u8) {
        let certificates = Authority::new();
        let mut settings = certificates.settings(workers).account("file", "usage.jsonl").account("interval", "1s");
        for key in ["packet_rate_per_allocation", "packet_rate_per_user"] {
            settings = settings.limit(key, "0");
        }
        let mut own = Upgradable::start_in(Directory::new(), settings, &[]);
        let (udp, tcp, tls) = (own.server.udp4(), own.server.tcp4(), own.server.tls4());
        let on = |worker: u8| Client::udp_on_worker(udp, worker % workers, workers);
        let flows = [
            Flow::to_peer("udp-0", on(0)),
            Flow::to_peer("udp-1", on(1)),
            Flow::to_peer("tcp", Client::tcp(tcp)),
            Flow::to_peer("tls", certificates.client(tls)),
            Flow::relayed("relayed-udp", [on(0), on(2)]),
            Flow::relayed("relayed-tcp-udp", [Client::tcp(tcp), on(1)]),
            Flow::relayed("relayed-tls-tcp", [certificates.client(tls), Client::tcp(tcp)]),
        ];
        let upgrades = upgrades();
        for round in 1..=upgrades {
            let cut = own.upgrade();
            assert_eq!((&cut["generation"], &cut["allocations"]), (&Value::from(round + 1), &Value::from(10)), "{cut}");
            flows.iter().for_each(Flow::see_progress);
        }
        let mut due = BTreeMap::new();
        flows.into_iter().for_each(|flow| flow.finish(&mut due));
        assert_eq!(due.len(), 10);
        assert!(due.values().flatten().all(|sent| u64::from(sent.packets) >= upgrades * u64::from(ROW)));

        let scrape = own.server.scrape();
        let value = |name: &str, labels: &[(&str, &str)]| scrape.value(name, labels);
        for (way, side, at) in SERIES {
            let labels = [("way", way), ("side", side)];
            let packets = due.values().map(|sent| u64::from(sent[at].packets)).sum::<u64>();
            let bytes = due.values().map(|sent| sent[at].bytes).sum::<u64>();
            assert_eq!(value("throughway_payload_packets_total", &labels), packets, "{way} {side}");
            assert_eq!(value("throughway_payload_bytes_total", &labels), bytes, "{way} {side}");
        }
        assert_eq!(scrape.sum("throughway_dropped_packets_total"), 0);
        assert_eq!(scrape.sum("throughway_kernel_drops_total"), 0);
        assert_eq!(scrape.sum("throughway_allocations_created_total"), 10);
        assert_eq!(scrape.sum("throughway_allocations_ended_total"), 10);
        assert_eq!(value("throughway_upgrades_total", &[("result", "confirmed")]), upgrades);

        own.server.signal("TERM");
        assert_eq!(own.server.wait().code(), Some(0), "{}", own.server.log.text());
        let text = fs::read_to_string(own.server.directory().join("usage.jsonl")).unwrap();
        let stops = stops(&text);
        assert!(stops.keys().eq(due.keys()), "{:?}", stops.keys());
        for (user, sent) in &due {
            for (names, sent) in [(FROM_CLIENT, sent[0]), (FROM_PEERS, sent[1])] {
                for name in names {
                    let found = ["packets", "bytes"].map(|unit| stops[user][format!("{unit}_{name}")].as_u64().unwrap());
                    assert_eq!(found, [sent.packets.into(), sent.bytes], "{name} of {user}");
                }
            }
        }
        assert_eq!(own.server.log.sessions().len(), 10, "each session has one line");
    }
}

/// Sessions that begin and end all the time, each with a packet in both ways; gives how many there were.
struct Churn {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Churn {
    fn start(connect: impl Iterator<Item = Box<dyn Fn() -> Client + Send>>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let start = |connect: Box<dyn Fn() -> Client + Send>| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                let mut sessions = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = connect();
                    let echo = Echo::start(client.allocate());
                    client.bind(CHANNEL, echo.address);
                    client.send_channel(CHANNEL, b"once");
                    client.expect_data(Origin::Channel(CHANNEL), b"once");
                    assert_eq!(client.refresh(0).code(), 0);
                    sessions += 1;
                }
                sessions
            })
        };
        Self { threads: connect.map(start).collect(), is_over }
    }

    fn finish(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    }
}

with_one_and_three_workers! {
    /// Requests for sessions and their ends come at every moment of an upgrade: each is carried out once, and counted once.
    fn sessions_that_begin_and_end_meanwhile_are_counted_once(workers: u8) {
        let certificates = Authority::new();
        let mut settings = certificates.settings(workers);
        for key in ["allocations_per_user_per_minute", "allocations_per_client_per_minute"] {
            settings = settings.limit(key, "0");
        }
        let mut own = Upgradable::start(settings);
        let (udp, tcp) = (own.server.udp4(), own.server.tcp4());
        let over_udp = (0..3).map(|_| Box::new(move || Client::udp(udp)) as Box<dyn Fn() -> Client + Send>);
        let over_tcp = (0..2).map(|_| Box::new(move || Client::tcp(tcp)) as Box<dyn Fn() -> Client + Send>);
        let churn = Churn::start(over_udp.chain(over_tcp));
        for _ in 0..upgrades() {
            own.upgrade();
        }
        let sessions = churn.finish();
        assert!(sessions > 50, "{sessions}");
        wait_for("the last end", || (own.server.live() == 0).then_some(()));
        let scrape = own.server.scrape();
        assert_eq!(scrape.sum("throughway_allocations_created_total"), sessions);
        assert_eq!(scrape.sum("throughway_allocations_ended_total"), sessions);
        for (way, side, _) in SERIES {
            let labels = [("way", way), ("side", side)];
            assert_eq!(scrape.value("throughway_payload_packets_total", &labels), sessions, "{way} {side}");
        }
        own.server.signal("TERM");
        assert_eq!(own.server.wait().code(), Some(0));
        let all = own.server.log.sessions();
        assert_eq!(all.len() as u64, sessions);
        let is_whole = |line: &&Value| line["packets_from_client"] == 1 && line["packets_to_client"] == 1;
        assert_eq!(all.iter().find(|line| !is_whole(line)), None);
    }
}

// ---- many that fail ----

/// Failures until the process has all that it needs for one, and those after which it must not have more.
const WARM_UP: usize = 5;
const FAILURES: usize = 20;

/// What it may have more then: 25 kB for each failure (about 30 kB were measured after all of them), and some threads that the
/// runtime keeps for a while. Of descriptors none.
const GROWN_BYTES_MAX: u64 = FAILURES as u64 * 25_000;
const GROWN_THREADS_MAX: usize = 4;

fn threads(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count()
}

/// Fails so many times in this way, and has as many descriptors as before each time.
#[track_caller]
fn fail(own: &mut Upgradable, times: usize, message: &str, descriptors: usize) {
    for _ in 0..times {
        let end = own.try_upgrade();
        assert_eq!(end["message"], message, "{end}");
        wait_for("as many descriptors as before", || (own.server.descriptors() == descriptors).then_some(()));
    }
}

fn failures_leave_nothing_behind(fault: &str, message: &str) {
    let mut own = Upgradable::start_with(Settings::new(3), &[("TEST_FAULTS_UPGRADE", fault)]);
    let pid = own.server.pid();
    let mut clients: Vec<Client> = (0..42).map(|at| Client::udp_on_worker(own.server.udp4(), at % 3, 3)).collect();
    for client in &mut clients {
        client.allocate();
        for at in 1..=8 {
            client.bind(CHANNEL + u16::from(at), SocketAddr::from(([127, 0, 1, at], 9)));
        }
    }
    let descriptors = own.server.descriptors();
    fail(&mut own, WARM_UP, message, descriptors);
    let (bytes, tasks) = (own.server.resident_bytes(), threads(&own.server));
    fail(&mut own, FAILURES, message, descriptors);
    let (bytes_after, tasks_after) = (own.server.resident_bytes(), threads(&own.server));
    println!("{fault}: {bytes} bytes and {tasks} threads, then {bytes_after} and {tasks_after}");
    assert!(bytes_after <= bytes + GROWN_BYTES_MAX, "{fault}: {bytes} bytes before, {bytes_after} after");
    assert!(tasks_after <= tasks + GROWN_THREADS_MAX, "{fault}: {tasks} threads before, {tasks_after} after");
    assert_eq!(own.server.pid(), pid);
    for client in &mut clients {
        assert_eq!(client.refresh(600).code(), 0);
    }
    Witness::start(Client::tcp(own.server.tcp4())).finish();
}

#[test]
fn refused_upgrades_leave_no_memory_descriptors_and_threads_behind() {
    failures_leave_nothing_behind("cut=exit", REFUSED);
}

#[test]
fn upgrades_that_are_rolled_back_leave_no_memory_descriptors_and_threads_behind() {
    failures_leave_nothing_behind("probation=exit", ROLLED_BACK);
}
