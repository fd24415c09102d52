//! What goes along at an upgrade of the real binary besides calls: usage records, limits, promises, what waits for slow
//! readers; and what another configuration changes then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use test_support::e2e;
use test_support::e2e::client::{channel_data, request};
use test_support::e2e::hook::Hook;
use test_support::e2e::server::Slice;
use test_support::e2e::tls::Authority;
use test_support::e2e::upgrade::{REFUSED, Upgradable, replace_program, said};
use test_support::e2e::{
    Client, Directory, Origin, Server, Settings, Wanted, Witness, payload, peer, receive, wait_for,
};
use test_support::with_one_and_three_workers;
use throughway::wire::message::{Known, METHOD_ALLOCATE};

const SECRET: &str = "north-of-everything";
const CHANNEL: u16 = 0x4001;

fn allocate_code(client: &mut Client) -> u16 {
    client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code()
}

// ---- usage records ----

/// A session whose bytes are counted here too.
struct Call {
    user: String,
    client: Client,
    far: UdpSocket,
    relayed: SocketAddr,
    up: u64,
    down: u64,
}

impl Call {
    fn start(client: Client, user: &str) -> Self {
        let mut client = client.minted(SECRET, user);
        let relayed = client.allocate();
        let far = peer(relayed);
        client.bind(CHANNEL, far.local_addr().unwrap());
        Self { user: user.to_owned(), client, far, relayed, up: 0, down: 0 }
    }

    #[track_caller]
    fn talk(&mut self, up: usize, down: usize) {
        self.client.send_channel(CHANNEL, &payload(1, up));
        assert_eq!(receive(&self.far).0, payload(1, up), "{}", self.user);
        self.far.send_to(&payload(2, down), self.relayed).unwrap();
        self.client.expect_data(Origin::Channel(CHANNEL), &payload(2, down));
        (self.up, self.down) = (self.up + up as u64, self.down + down as u64);
    }

    fn end(mut self, due: &mut BTreeMap<String, [u64; 2]>) {
        assert_eq!(self.client.refresh(0).code(), 0, "{}", self.user);
        due.insert(self.user, [self.up, self.down]);
    }
}

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// One start, one stop, numbers without a gap, and the bytes that were sent.
#[track_caller]
fn check_records(all: &[Value], due: &BTreeMap<String, [u64; 2]>) {
    let mut of_session: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for record in all {
        of_session.entry(record["session"].as_str().unwrap()).or_default().push(record);
    }
    assert_eq!(of_session.len(), due.len(), "a session has one name in all processes");
    for records in of_session.values() {
        let seqs: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (0..records.len() as u64).collect::<Vec<_>>(), "{records:?}");
        let count = |kind: &str| records.iter().filter(|record| record["type"] == kind).count();
        assert_eq!((count("start"), count("stop")), (1, 1), "{records:?}");
        let last = records[records.len() - 1];
        assert_eq!((&records[0]["type"], &last["type"]), (&Value::from("start"), &Value::from("stop")));
        let fields = ["bytes_from_client", "bytes_to_peers", "bytes_from_peers", "bytes_to_client"];
        let [up, down] = due[last["user"].as_str().unwrap()];
        assert_eq!(fields.map(|field| last[field].as_u64().unwrap()), [up, up, down, down], "{last}");
    }
}

with_one_and_three_workers! {
    /// Sessions before, across and after two upgrades, and those that begin or end on probation: the file, its signatures and
    /// the webhook have each record once, whichever process wrote it.
    fn every_session_has_its_records_once(workers: u8) {
        let hook = Hook::start(&[]);
        let directory = Directory::new();
        fs::write(directory.path().join("key"), "signing-key-of-everything\n").unwrap();
        let settings = Settings::new(workers).account("file", "usage.jsonl").account("sign_key_file", "key");
        let settings = settings.account("interval", "1s").account("webhook", &*hook.url).account("spool", "spool");
        let mut own = Upgradable::start_in(directory, settings, &[]);
        let (udp, tcp) = (own.server.udp4(), own.server.tcp4());
        let mut due = BTreeMap::new();
        let mut before = Call::start(Client::udp(udp), "before");
        before.talk(100, 50);
        before.end(&mut due);
        let mut across: Vec<Call> = (0..workers)
            .map(|worker| Call::start(Client::udp_on_worker(udp, worker, workers), &format!("across-{worker}")))
            .collect();
        across.push(Call::start(Client::tcp(tcp), "across-tcp"));
        let mut short = Call::start(Client::tcp(tcp), "short");
        across.iter_mut().for_each(|call| call.talk(1000, 10));
        short.talk(7, 7);
        replace_program(own.server.directory());
        own.begin();
        own.wait_for_probation();
        across.iter_mut().for_each(|call| call.talk(500, 5));
        short.talk(8, 8);
        short.end(&mut due);
        let mut within = Call::start(Client::udp(udp), "within");
        within.talk(9, 9);
        within.end(&mut due);
        let mut late = Call::start(Client::udp(udp), "late");
        late.talk(11, 12);
        own.follow();
        across.iter_mut().for_each(|call| call.talk(250, 2));
        assert_eq!(own.upgrade()["allocations"], across.len() as u64 + 1);
        across.iter_mut().for_each(|call| call.talk(125, 1));
        late.talk(1, 1);
        late.end(&mut due);
        let mut after = Call::start(Client::udp(udp), "after");
        after.talk(3, 4);
        after.end(&mut due);
        across.into_iter().for_each(|call| call.end(&mut due));

        let path = own.server.directory().join("usage.jsonl");
        let stops = || fs::read_to_string(&path).unwrap().lines().filter(|line| line.contains("\"stop\"")).count();
        wait_for("the last record", || (stops() == due.len()).then_some(()));
        let text = fs::read_to_string(&path).unwrap();
        let all = records(&text);
        check_records(&all, &due);
        let series: BTreeSet<_> = all.iter().map(|record| record["series"].to_string()).collect();
        let lines: Vec<u64> = all.iter().map(|record| record["line"].as_u64().unwrap()).collect();
        assert_eq!((series.len(), lines), (1, (0..all.len() as u64).collect()), "three processes number one series");
        let name = |record: &Value| (record["session"].to_string(), record["seq"].to_string());
        let written: BTreeSet<_> = all.iter().map(name).collect();
        wait_for("the webhook to have all of them", || {
            let heard: BTreeSet<_> = records(&hook.lines().join("\n")).iter().map(name).collect();
            (heard == written).then_some(())
        });
        own.server.signal("TERM");
        assert_eq!(own.server.wait().code(), Some(0), "{}", own.server.log.text());
        let report = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
            let command = command.args(["usage", "report"]).args(arguments).arg("usage.jsonl");
            said(command.current_dir(own.server.directory()).output().unwrap())
        };
        let (code, out, err) = report(&["--key-file", "key"]);
        assert_eq!((code, &*err), (0, ""), "the chain is unbroken: {out}");
        let (_, out, _) = report(&["--json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&report["unfinished"], &report["gaps"]), (&Value::from(0), &Value::Array(vec![])), "{report}");
        assert_eq!(report["total"]["sessions"], due.len());
        let sum = |at: usize| due.values().map(|bytes| bytes[at]).sum::<u64>();
        assert_eq!((&report["total"]["bytes_to_peers"], &report["total"]["bytes_to_client"]), (&sum(0).into(), &sum(1).into()));
        assert_eq!(own.server.log.sessions().len(), due.len(), "each session has one line");
    }

    /// Who was at a limit is there after an upgrade, who was shut out is out, and what was promised is kept.
    fn limits_revocations_and_promises_hold(workers: u8) {
        let settings = Settings::new(workers).limit("allocations_per_user", "2").limit("bytes_per_credential", "\"100112B\"");
        let mut own = Upgradable::start(settings);
        let (udp, tcp) = (own.server.udp4(), own.server.tcp4());
        let on = |worker: u8| Client::udp_on_worker(udp, worker % workers, workers);
        // At the limit of allocations.
        let mut gina = [on(0), on(1), on(2)].map(|client| client.minted(SECRET, "gina"));
        gina[0].allocate();
        gina[1].allocate();
        assert_eq!(allocate_code(&mut gina[2]), 486);
        // Within a budget: both ways, and 28 bytes for the heads of each packet.
        let template = on(0).minted(SECRET, "carol");
        let (username, password) = (template.username.clone(), template.password.clone());
        let mut carol = [on(0), on(1)].map(|client| client.user(&username, &password));
        let far = peer(udp);
        let relayed = carol.each_mut().map(|client| {
            let relayed = client.allocate();
            client.bind(CHANNEL, far.local_addr().unwrap());
            relayed
        });
        let pass = |client: &mut Client, size| {
            client.send_channel(CHANNEL, &payload(1, size));
            assert_eq!(receive(&far).0.len(), size);
        };
        pass(&mut carol[0], 50_000);
        pass(&mut carol[1], 20_000);
        // Shut out.
        let mut erin = on(2).minted(SECRET, "erin");
        erin.allocate();
        let (code, out, err) = own.run(&["revoke", "--user", "erin"]);
        assert!(code == 0 && out.contains("ended 1 session"), "{out}{err}");
        let shut_out = allocate_code(&mut on(1).minted(SECRET, "erin"));
        assert_ne!(shut_out, 0);
        // Promised: ports, an answer, a nonce.
        let mut tokens = Vec::new();
        for number in 0..=workers {
            let mut first = on(0).minted(SECRET, &format!("dave-{number}"));
            let response = first.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::even_port(true)]);
            tokens.push((response.relayed(), response.bytes(Known::ReservationToken), first));
        }
        let mut again = on(1).user("bob", "builder");
        again.challenge();
        let allocate = request(METHOD_ALLOCATE, &[Wanted::udp()], again.login.as_ref());
        let answer = again.ask(&allocate);
        let mut challenged = [on(0), on(2), Client::tcp(tcp)].map(|client| client.minted(SECRET, "frank"));
        challenged.iter_mut().for_each(Client::challenge);

        replace_program(own.server.directory());
        own.begin();
        own.wait_for_probation();
        assert_eq!(allocate_code(&mut gina[2]), 486);
        assert_eq!(allocate_code(&mut on(0).minted(SECRET, "erin")), shut_out);
        own.follow();
        let repeated = again.ask(&allocate);
        assert_eq!((repeated.relayed(), repeated.lifetime()), (answer.relayed(), answer.lifetime()));
        for client in &mut challenged[..2] {
            let asked = request(METHOD_ALLOCATE, &[Wanted::udp()], client.login.as_ref());
            assert_eq!(client.ask(&asked).code(), 0, "the nonce of before is good");
        }
        let asked = request(METHOD_ALLOCATE, &[Wanted::udp()], challenged[2].login.as_ref());
        assert_eq!(challenged[2].ask(&asked).code(), 486, "and the third is one too many");
        for (number, (even, token, _first)) in tokens.iter().enumerate() {
            let client = if number < usize::from(workers) { on(number as u8) } else { Client::tcp(tcp) };
            let mut second = client.minted(SECRET, &format!("dave-{number}"));
            let odd = second.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::token(token)]).relayed();
            assert_eq!(odd, SocketAddr::new(even.ip(), even.port() + 1));
            let far = peer(odd);
            second.permit(far.local_addr().unwrap());
            far.send_to(b"to the port of the token", odd).unwrap();
            second.expect_data(Origin::Peer(far.local_addr().unwrap()), b"to the port of the token");
            let mut third = on(number as u8).user("bob", "builder");
            let code = third.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::token(token)]).code();
            assert_eq!(code, 508, "a token is good for one allocation");
        }
        assert_eq!(allocate_code(&mut gina[2]), 486);
        assert_eq!(gina[0].refresh(0).code(), 0);
        assert_eq!(allocate_code(&mut gina[2]), 0, "a place that is given back is free");
        assert_eq!(allocate_code(&mut on(0).minted(SECRET, "gina")), 486);
        far.send_to(&payload(2, 29_999), relayed[0]).unwrap();
        carol[0].expect_data(Origin::Channel(CHANNEL), &payload(2, 29_999));
        pass(&mut carol[1], 1);
        own.server.expect_dropped("over_budget", 1, || carol[0].send_channel(CHANNEL, b"x"));
        assert_eq!(allocate_code(&mut on(1).minted(SECRET, "erin")), shut_out);
        let (code, out, err) = own.run(&["revoke", "--user", "bob"]);
        assert!(code == 0 && out.contains("ended 1 session"), "{out}{err}");
        assert_eq!(again.refresh(600).code(), 437);
        let (_, out, _) = own.run(&["revoke", "--list"]);
        assert!(out.contains("erin") && out.contains("bob"), "{out}");
    }

    /// A new process serves its own configuration, but for what clients hold.
    fn another_configuration_is_taken_over(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let leaving = own.server.udp6();
        let calls = [Witness::start(Client::udp(own.server.udp4())), Witness::start(Client::tcp(own.server.tcp4()))];
        let last = Witness::start(Client::udp(leaving));
        let old_range = own.server.ports.range.clone();
        let ports = Slice::take();
        let mut next = own.server.settings.clone();
        next.users.push(("carol", "cat"));
        next.udp = vec!["127.0.0.1:0".to_owned(), "127.0.0.2:0".to_owned()];
        next.workers = workers + 1;
        next.ports = Some(ports.range.clone());
        own.write(next.clone());
        let text = next.text(&ports.range);
        own.write_text(&format!("realm = \"elsewhere\"\n{text}"));
        own.upgrade();
        for key in ["workers: ", "realm: "] {
            let line = own.server.log.wait_for_line(key);
            assert!(line.contains("takes effect at the next restart only") && line.contains("WARN"), "{line}");
        }
        let ready = own.server.log.events("ready").pop().unwrap();
        assert_eq!((&ready["workers"], &ready["realm"]), (&Value::from(workers), &Value::from("throughway")));
        calls.iter().chain([&last]).for_each(Witness::see_progress);
        let listening = own.server.log.events("listening");
        let added = listening.iter().rev().find(|event| event["address"].as_str().unwrap().starts_with("127.0.0.2"));
        let added: SocketAddr = added.expect("the new listener in the log")["address"].as_str().unwrap().parse().unwrap();
        for worker in 0..workers {
            let mut carol = Client::udp_on_worker(added, worker, workers).user("carol", "cat");
            let relayed = carol.allocate();
            assert!(ports.range.contains(&relayed.port()) && !old_range.contains(&relayed.port()), "{relayed}");
            assert_eq!(carol.try_bind(CHANNEL, added), 403, "it is our own");
        }
        // What is gone is open for its last session and for no other.
        let mut stranger = Client::udp(leaving);
        let asked = request(METHOD_ALLOCATE, &[Wanted::udp()], None);
        stranger.send_raw(&asked);
        assert!(stranger.answer_within(&asked, Duration::from_millis(200)).is_none());
        let (mut client, _) = last.finish();
        assert_eq!(client.refresh(0).code(), 0);
        let closed = own.server.log.event("listener closed: its last session has ended");
        assert_eq!(closed["address"], leaving.to_string());
        UdpSocket::bind(leaving).expect("the port is free");
        // A wrong one: the server that runs serves on.
        own.write_text(&text.replace("[limits]", "[limits]\nallocations = -1"));
        let (code, out, err) = own.run(&["upgrade"]);
        assert!(code == 2 && out.is_empty() && err.contains("limits.allocations"), "{code} {out} {err}");
        assert!(err.contains("the installed version rejects the configuration") && err.contains("continues to serve"), "{err}");
        let end = own.try_upgrade();
        assert_eq!(end["message"], REFUSED, "{end}");
        calls.iter().for_each(Witness::see_progress);
        // And the right one again.
        own.write(next);
        own.upgrade();
        for call in calls {
            assert_eq!(call.finish().0.refresh(0).code(), 0);
        }
        Witness::start(Client::udp(added).user("carol", "cat")).finish();
    }
}

#[test]
fn resting_ports_rest_on() {
    let ports = Slice::take();
    let first = ports.range.start() + ports.range.start() % 2;
    let settings = Settings { ports: Some(first..=first + 5), ..Settings::new(1) };
    let mut own = Upgradable::start(settings);
    let mut used = BTreeSet::new();
    for _ in 0..3 {
        let mut client = Client::udp(own.server.udp4());
        used.insert(client.allocate().port());
        assert_eq!(client.refresh(0).code(), 0);
    }
    assert_eq!(used.len(), 3, "they rest");
    own.upgrade();
    for _ in 0..3 {
        let port = Client::udp(own.server.udp4()).allocate().port();
        assert!(used.insert(port), "port {port} is at rest");
    }
}

// ---- bursts ----

/// Two clients that are each other's peers, relayed to relayed: bursts of frames, cut where no frame ends, one after the other
/// in both directions.
struct Bursts {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

const FRAMES: u32 = 16;

/// What was dropped, by reason.
fn dropped(server: &Server) -> String {
    let (_, text) = e2e::http::get(server.http(), "/metrics", "localhost");
    let is_drop = |line: &&str| line.starts_with("throughway_") && line.contains("drop") && !line.ends_with(" 0");
    text.lines().filter(is_drop).collect::<Vec<_>>().join("; ")
}

fn send_burst(client: &mut Client, round: u32) {
    let frames = (0..FRAMES).map(|frame| payload(round * FRAMES + frame, 1000 + frame as usize));
    if !client.is_stream() {
        return frames.for_each(|frame| client.send_channel(CHANNEL, &frame));
    }
    let padded = frames.flat_map(|frame| {
        let mut bytes = channel_data(CHANNEL, &frame);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    });
    for part in padded.collect::<Vec<u8>>().chunks(1777) {
        client.send_raw(part);
    }
}

#[track_caller]
fn expect_burst(client: &mut Client, round: u32) {
    for frame in 0..FRAMES {
        client.expect_data(Origin::Channel(CHANNEL), &payload(round * FRAMES + frame, 1000 + frame as usize));
    }
}

impl Bursts {
    fn start(mut one: Client, mut other: Client) -> Self {
        let (at_one, at_other) = (one.allocate(), other.allocate());
        one.bind(CHANNEL, at_other);
        other.bind(CHANNEL, at_one);
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let mut round = 0;
            while !stopped.load(Ordering::Relaxed) {
                send_burst(&mut one, round);
                expect_burst(&mut other, round);
                send_burst(&mut other, round);
                expect_burst(&mut one, round);
                round += 1;
                counted.store(round.into(), Ordering::Relaxed);
            }
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    #[track_caller]
    fn see_progress(&self, server: &Server) {
        let before = self.rounds.load(Ordering::Relaxed);
        wait_for("progress of bursts", || {
            let has_failed = self.thread.as_ref().unwrap().is_finished();
            assert!(!has_failed, "bursts failed in round {before}: {}", dropped(server));
            (self.rounds.load(Ordering::Relaxed) > before + 1).then_some(())
        });
    }

    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("no frame was lost");
    }
}

impl Drop for Bursts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

with_one_and_three_workers! {
    fn bursts_between_relayed_addresses_lose_nothing(workers: u8) {
        let certificates = Authority::new();
        let mut settings = certificates.settings(workers);
        for key in ["packet_rate_per_allocation", "packet_rate_per_user", "bandwidth_per_allocation", "bandwidth_per_user"] {
            settings = settings.limit(key, "0");
        }
        let mut own = Upgradable::start(settings);
        let (udp, tcp, tls) = (own.server.udp4(), own.server.tcp4(), own.server.tls4());
        let open = |kind: u8, worker: u8| match kind {
            0 => Client::udp_on_worker(udp, worker % workers, workers),
            1 => Client::tcp(tcp),
            _ => certificates.client(tls),
        };
        let pairs = [(0, 1), (1, 2), (2, 0)];
        let calls: Vec<Bursts> = pairs.map(|(one, other)| Bursts::start(open(one, 0), open(other, 1))).into();
        for _ in 0..3 {
            own.upgrade();
            calls.iter().for_each(|call| call.see_progress(&own.server));
        }
        calls.into_iter().for_each(Bursts::finish);
        assert_eq!(dropped(&own.server), "");
    }

    /// What waits for a client that does not read goes along, and comes in order when it does.
    fn the_queue_of_a_slow_reader_goes_along(workers: u8) {
        let certificates = Authority::new();
        let mut own = Upgradable::start(certificates.settings(workers));
        let mut slow = [Client::tcp(own.server.tcp4()), certificates.client(own.server.tls4())];
        let mut sent = Vec::new();
        for client in &mut slow {
            let relayed = client.allocate();
            let far = peer(relayed);
            client.bind(CHANNEL, far.local_addr().unwrap());
            let before = own.server.dropped("slow_client");
            let mut number = 0;
            wait_for("a full queue", || {
                for _ in 0..20 {
                    far.send_to(&payload(number, 8000), relayed).unwrap();
                    number += 1;
                }
                std::thread::sleep(Duration::from_millis(5));
                (own.server.dropped("slow_client") > before).then_some(())
            });
            sent.push(number);
        }
        let judged = || {
            let scrape = own.server.scrape();
            scrape.value("throughway_payload_packets_total", &[("way", "received"), ("side", "peers")])
        };
        let received = wait_for("all to be judged", || {
            let before = judged();
            std::thread::sleep(Duration::from_millis(60));
            (judged() == before).then_some(before)
        });
        let dropped = own.server.dropped("slow_client");
        own.upgrade();
        let mut read = 0;
        for (client, sent) in slow.iter_mut().zip(&sent) {
            let mut numbers = 0..*sent;
            while let Some(data) = client.data_within(Duration::from_millis(500)) {
                read += 1;
                let found = numbers.any(|number| data.payload == payload(number, 8000));
                assert!(found, "each comes whole, once, and in order");
            }
            assert_eq!(client.refresh(600).code(), 0);
        }
        assert_eq!(own.server.dropped("slow_client"), dropped, "an upgrade drops nothing of it");
        assert_eq!(read + dropped, received);
    }
}
