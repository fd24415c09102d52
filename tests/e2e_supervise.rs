//! A supervised server that is killed: calls over UDP go on, streams end, nothing is charged twice, and what kills it does not do so
//! for ever.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use test_support::e2e;
use test_support::e2e::client::channel_data;
use test_support::e2e::peer::Echo;
use test_support::e2e::server::{Directory, binary, child_of, run_to_end};
use test_support::e2e::upgrade::{CONFIRMED, ROLLED_BACK, Upgradable};
use test_support::e2e::{Client, Server, Settings, Wanted, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_CREATE_PERMISSION, METHOD_REFRESH};

const GOES_ON: &str = "the server was killed: this process goes on with its calls over UDP";
const ANEW: &str = "the server was killed, and its calls can't be gone on with: it starts anew";

fn supervised(workers: u8) -> Settings {
    Settings { supervise: true, ..Settings::new(workers) }
}

fn armed(config: &Path) -> Command {
    let mut command = binary(config);
    command.env("TEST_FAULTS", "1");
    command
}

fn is_gone(pid: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    state.map_or(true, |state| state.contains(") Z "))
}

#[track_caller]
fn wait_for_ready(server: &Server, times: usize) {
    wait_for("the next process to serve", || (server.log.events("ready").len() == times).then_some(()));
}

fn recoveries(server: &Server) -> u64 {
    server.scrape().value("throughway_recoveries_total", &[])
}

/// What the gauges of the last upgrade and the last recovery show, in seconds.
fn gaps(server: &Server) -> [String; 3] {
    let (_, text) = e2e::http::get(server.http(), "/metrics", "localhost");
    ["throughway_upgrade_gap_seconds", "throughway_upgrade_prepare_seconds", "throughway_recovery_gap_seconds"].map(
        |name| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
        },
    )
}

/// A call whose packets are numbered, and what became of each.
struct Flow {
    client: Client,
    _echo: Echo,
    sent: Vec<Instant>,
    came_back: HashMap<u32, u32>,
}

impl Flow {
    const CHANNEL: u16 = 0x4A11;

    fn start(mut client: Client) -> Self {
        let echo = Echo::start(client.allocate());
        client.bind(Self::CHANNEL, echo.address);
        Self { client, _echo: echo, sent: Vec::new(), came_back: HashMap::new() }
    }

    fn note(&mut self, within: Duration) -> bool {
        let Some(data) = self.client.data_within(within) else { return false };
        let number = u32::from_be_bytes(data.payload[..4].try_into().unwrap());
        *self.came_back.entry(number).or_default() += 1;
        true
    }

    fn round(&mut self) {
        let payload = [&(self.sent.len() as u32).to_be_bytes()[..], &[0x5A; 96]].concat();
        self.client.send_raw(&channel_data(Self::CHANNEL, &payload));
        self.sent.push(Instant::now());
        self.note(Duration::from_millis(2));
    }

    /// What is still under way comes in; gives how many were lost. None came twice.
    #[track_caller]
    fn settle(&mut self) -> usize {
        while self.note(Duration::from_millis(300)) {}
        assert!(self.came_back.values().all(|times| *times == 1), "a packet came twice");
        self.sent.len() - self.came_back.len()
    }

    /// How many were sent in the time before one of these moments for which counts may be lost, and while no process read.
    fn uncounted_at_most(&self, kills: &[Instant]) -> u64 {
        let before = Duration::from_millis(1_300);
        let near = |at: &&Instant| kills.iter().any(|kill| **at + before > *kill && **at < *kill + before);
        self.sent.iter().filter(near).count() as u64
    }
}

with_one_and_three_workers! {
    fn calls_over_udp_go_on_and_nothing_is_charged_twice(workers: u8) {
        const EVERY: usize = 300;
        let mut server = supervised(workers).start();
        let mut flows: Vec<Flow> = (0..workers)
            .map(|worker| Flow::start(Client::udp_on_worker(server.udp4(), worker, workers)))
            .collect();
        flows.push(Flow::start(Client::udp(server.udp6())));
        let mut idle = Client::udp(server.udp4()).user("bob", "builder");
        idle.allocate();
        let mut kills = Vec::new();
        for round in 0..20 * EVERY {
            flows.iter_mut().for_each(Flow::round);
            if round % EVERY == EVERY / 2 {
                wait_for_ready(&server, kills.len() + 1);
                kills.push(Instant::now());
                kill_process(server.serving(), Signal::KILL).unwrap();
            }
        }
        wait_for_ready(&server, kills.len() + 1);
        // From a second after the last one on everything counts.
        for _ in 0..1_500 {
            flows.iter_mut().for_each(Flow::round);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((kills.len(), recoveries(&server)), (20, 20), "{}", server.log.text());
        assert_eq!(server.log.events(GOES_ON).len(), 20);
        for flow in &mut flows {
            let lost = flow.settle();
            // Each has one packet under way at most: one that was read and not sent on is lost with the process.
            assert!(lost <= kills.len(), "{lost} lost");
        }
        // Nonces, keys and permissions are known as before, and the ports are the same.
        idle.permit(flows[0].client.local());
        assert_eq!((idle.refresh(600).code(), idle.refresh(0).code()), (0, 0));
        let scrape = server.scrape();
        assert_eq!((server.live(), scrape.value("throughway_allocations_created_total", &[])), (flows.len() as u64, flows.len() as u64 + 1));
        for flow in &mut flows {
            let sent = flow.sent.len() as u64;
            let (local, least) = (flow.client.local().to_string(), sent - flow.uncounted_at_most(&kills));
            assert_eq!(flow.client.refresh(0).code(), 0);
            let of_client = |record: &serde_json::Value| record["client"] == local.as_str();
            let record = wait_for("its record", || server.log.sessions().into_iter().find(of_client));
            let counted = record["packets_from_client"].as_u64().unwrap();
            assert!((least..=sent).contains(&counted), "{counted} of {sent} counted, at least {least} must be");
        }
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(server.log.sessions().len(), flows.len() + 1, "each session ended once");
    }

    /// A stream ends with the process that had it; its session is told of, and its place is free.
    fn streams_end_and_come_back(workers: u8) {
        let server = supervised(workers).limit("allocations_per_user", "2").start();
        let of_carol = |client: Client| client.minted("north-of-everything", "carol");
        let mut over_udp = of_carol(Client::udp(server.udp4()));
        over_udp.allocate();
        let mut over_tcp = of_carol(Client::tcp(server.tcp4()));
        over_tcp.allocate();
        let mut third = of_carol(Client::udp(server.udp4()));
        assert_eq!(third.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 486);
        server.crash();
        over_tcp.expect_closed();
        let of_tcp = |record: &serde_json::Value| record["transport"] == "tcp";
        let record = wait_for("the stream's session", || server.log.sessions().into_iter().find(of_tcp));
        assert_eq!(record["reason"], "crash");
        let mut again = of_carol(Client::tcp(server.tcp4()));
        again.allocate();
        assert_eq!(third.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 486, "two are counted");
        assert_eq!(over_udp.refresh(0).code(), 0);
        third.allocate();
        assert_eq!(server.live(), 2);
    }

    /// What was asked for a moment before is there: the ledger is written before an answer leaves.
    fn what_a_client_was_told_holds(workers: u8) {
        let server = supervised(workers).start();
        for round in 0..5 {
            let mut client = Client::udp(server.udp4());
            let relayed = client.allocate();
            let echo = Echo::start(relayed);
            client.bind(Flow::CHANNEL, echo.address);
            server.crash();
            client.send_channel(Flow::CHANNEL, b"after");
            assert_eq!(client.data().expect("the channel is bound").payload, b"after", "round {round}");
            assert_eq!(client.refresh(0).code(), 0);
            let mut gone = client;
            server.crash();
            assert_eq!(gone.refresh(600).code(), 437, "an end holds too");
        }
        assert_eq!(recoveries(&server), 10);
    }
}

/// No counter falls between two scrapes, whatever happens in between.
#[test]
fn what_was_shown_is_not_taken_back() {
    let server = supervised(1).start();
    let mut flow = Flow::start(Client::udp(server.udp4()));
    for _ in 0..3 {
        (0..50).for_each(|_| flow.round());
        let before = server.scrape();
        server.crash();
        let after = server.scrape();
        for name in [
            "throughway_payload_packets_total",
            "throughway_requests_granted_total",
            "throughway_allocations_created_total",
        ] {
            assert!(after.sum(name) >= before.sum(name), "{name}: {} after {}", after.sum(name), before.sum(name));
        }
    }
}

/// A stop that is asked for while no process serves is done by the next one.
#[test]
fn a_stop_is_not_lost_between_two_lives() {
    for _ in 0..10 {
        let mut server = supervised(1).start();
        let mut client = Client::udp(server.udp4());
        client.allocate();
        kill_process(server.serving(), Signal::KILL).unwrap();
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
        assert_eq!(server.log.sessions().len(), 1, "the session ended in order");
    }
}

/// A stream that is opened after a crash is new: it never has the session of one that ended with the process.
#[test]
fn a_dead_streams_session_is_nobody_elses() {
    let server = supervised(1).start();
    for _ in 0..3 {
        let mut dead: Vec<Client> = (0..6).map(|_| Client::tcp(server.tcp4())).collect();
        let relayed = dead.iter_mut().map(Client::allocate).last().unwrap();
        let peer = e2e::peer(relayed);
        dead.iter_mut().for_each(|client| client.permit(peer.local_addr().unwrap()));
        // While the supervisor stands still strangers wait at the listener.
        let supervisor = Pid::from_raw(server.pid() as i32).unwrap();
        let (child, before) = (server.serving(), server.log.events("ready").len());
        kill_process(supervisor, Signal::STOP).unwrap();
        kill_process(child, Signal::KILL).unwrap();
        let mut strangers: Vec<Client> = (0..12).map(|_| Client::tcp(server.tcp4())).collect();
        strangers.iter_mut().for_each(|client| client.send_to(peer.local_addr().unwrap(), b"of a stranger"));
        kill_process(supervisor, Signal::CONT).unwrap();
        wait_for_ready(&server, before + 1);
        wait_for("the end of what is dead", || (server.live() == 0).then_some(()));
        e2e::peer::expect_silence(&peer);
    }
    assert!(server.log.sessions().iter().all(|record| record["reason"] == "crash"));
}

/// Clients that begin and end sessions all the time send again what was not answered: what they were told holds, and what is
/// over leaves nothing behind.
#[test]
fn sessions_that_begin_and_end_meanwhile_leave_nothing_behind() {
    const KILLS: usize = 10;
    let mut settings = supervised(3);
    for key in ["allocations_per_user_per_minute", "allocations_per_client_per_minute"] {
        settings = settings.limit(key, "0");
    }
    let server = settings.start();
    let udp = server.udp4();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let cycle = || {
        let mut client = Client::udp(udp);
        let (challenge, _) = client.request_until_answered(METHOD_ALLOCATE, &[Wanted::udp()]);
        client.take_challenge(&challenge);
        let (created, _) = client.request_until_answered(METHOD_ALLOCATE, &[Wanted::udp()]);
        assert_eq!(created.code(), 0);
        let (ended, times) = client.request_until_answered(METHOD_REFRESH, &[Wanted::lifetime(0)]);
        // The answer of the dead process may be lost: then there is no session any more when it is asked for again.
        assert!(ended.code() == 0 || times > 1 && ended.code() == 437, "{} after {times}", ended.code());
    };
    let before = server.descriptors();
    let sessions: usize = std::thread::scope(|scope| {
        let run = || {
            let mut sessions = 0;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                cycle();
                sessions += 1;
            }
            sessions
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
        (0..KILLS).for_each(|_| server.crash());
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(sessions > KILLS, "{sessions}");
    assert_eq!(recoveries(&server), KILLS as u64);
    wait_for("the end of all sessions", || (server.live() == 0).then_some(()));
    // Sockets of a request to the server itself come and go.
    wait_for("all descriptors to be closed", || (server.descriptors() <= before + 4).then_some(()));
}

/// One session of a client: from its first request to its last answer, and how many packets it sent.
struct Session {
    user: String,
    began: Instant,
    ended: Instant,
    sent: u64,
}

impl Session {
    const PAYLOAD: [u8; 100] = [0x5A; 100];

    /// Begins one, sends some packets, and ends it, whatever happens to the server meanwhile.
    fn run(server: std::net::SocketAddr, user: String) -> Self {
        let began = Instant::now();
        let mut client = Client::udp(server).minted("north-of-everything", &user);
        let (challenge, _) = client.request_until_answered(METHOD_ALLOCATE, &[Wanted::udp()]);
        client.take_challenge(&challenge);
        let (created, _) = client.request_until_answered(METHOD_ALLOCATE, &[Wanted::udp()]);
        assert_eq!(created.code(), 0, "{user}");
        let peer = e2e::peer(created.relayed());
        peer.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
        let address = peer.local_addr().unwrap();
        let (permitted, _) = client.request_until_answered(METHOD_CREATE_PERMISSION, &[Wanted::peer(address)]);
        assert_eq!(permitted.code(), 0, "{user}");
        let mut sent = 0;
        for _ in 0..5 {
            client.send_to(address, &Self::PAYLOAD);
            sent += 1;
            // One that was read and not sent on is lost with the process.
            let _ = peer.recv(&mut [0; 256]);
        }
        let (ended, times) = client.request_until_answered(METHOD_REFRESH, &[Wanted::lifetime(0)]);
        assert!(ended.code() == 0 || times > 1 && ended.code() == 437, "{user}: {} after {times}", ended.code());
        Self { user, began, ended: Instant::now(), sent }
    }
}

/// What is promised of records: under kills none comes twice and no byte is charged twice; what is missing is of a session that
/// lived within the last second before a kill, or while no process served.
#[test]
fn no_record_comes_twice_and_only_those_of_the_last_moment_may_be_missing() {
    const KILLS: usize = 3;
    // The writer of the file has a thread of its own, which waits for a processor like others.
    const BEFORE: Duration = Duration::from_secs(3);
    let mut settings = supervised(3).account("file", "usage.jsonl");
    for key in ["allocations_per_user_per_minute", "allocations_per_client_per_minute"] {
        settings = settings.limit(key, "0");
    }
    let mut server = settings.start();
    let udp = server.udp4();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let mut lifeless: Vec<(Instant, Instant)> = Vec::new();
    let sessions: Vec<Session> = std::thread::scope(|scope| {
        let run = |thread: usize| {
            let is_over = &is_over;
            move || {
                let mut sessions = Vec::new();
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    sessions.push(Session::run(udp, format!("{thread}-{}", sessions.len())));
                }
                sessions
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(run(thread))).collect();
        for _ in 0..KILLS {
            std::thread::sleep(2 * BEFORE);
            let killed = Instant::now();
            server.crash();
            lifeless.push((killed, Instant::now()));
        }
        std::thread::sleep(BEFORE);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(recoveries(&server), KILLS as u64);
    wait_for("the end of all sessions", || (server.live() == 0).then_some(()));
    let sent: u64 = sessions.iter().map(|session| session.sent).sum();
    let counted =
        server.scrape().value("throughway_payload_packets_total", &[("way", "received"), ("side", "clients")]);
    assert!(counted <= sent, "{counted} of {sent}");
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));

    // With the files that have become too large.
    let files = std::fs::read_dir(server.directory()).unwrap().map(|entry| entry.unwrap().path());
    let is_usage = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("usage.jsonl"))
    };
    let text: String = files.filter(is_usage).map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut records: HashMap<String, Vec<serde_json::Value>> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(seen.insert((record["session"].to_string(), record["seq"].to_string())), "twice: {line}");
        assert!(seen.insert((record["session"].to_string(), record["type"].to_string())), "twice: {line}");
        records.entry(record["user"].as_str().unwrap().to_owned()).or_default().push(record);
    }
    let (mut missing, mut far) = (0, 0);
    for Session { user, began, ended, sent } in &sessions {
        let mut of_user = records.remove(user).unwrap_or_default();
        of_user.sort_by_key(|record| record["seq"].as_u64());
        let number = |field: &str| of_user.iter().filter_map(|record| record[field].as_u64()).sum::<u64>();
        let (packets, bytes) = (number("packets_from_client"), number("bytes_from_client"));
        assert!(packets <= *sent && bytes <= sent * Session::PAYLOAD.len() as u64, "{packets} of {sent}: {of_user:?}");
        let types: Vec<&str> = of_user.iter().filter_map(|record| record["type"].as_str()).collect();
        let is_near = lifeless.iter().any(|(killed, ready)| *ended + BEFORE > *killed && began < ready);
        if is_near {
            missing += usize::from(types != ["start", "stop"]);
        } else {
            assert_eq!((&*types, packets), (&["start", "stop"][..], *sent), "{user}: {of_user:?}");
            far += 1;
        }
    }
    assert!(records.is_empty(), "of no session: {records:?}");
    println!("{} sessions, {far} of them far from a kill; of {missing} others a record is missing", sessions.len());
    assert!(far > KILLS && sessions.len() > far, "{far} of {}", sessions.len());
}

/// Who started the server may have said that ended children are not waited for; that is inherited.
#[test]
fn a_parent_that_ignores_the_end_of_children_changes_nothing() {
    let ignoring = |config: &Path| {
        let whole = binary(config);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' CHLD; exec \"$0\" \"$@\""]).arg(whole.get_program()).args(whole.get_args());
        command.env_clear().stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command
    };
    let mut server = Server::start_as(Directory::new(), supervised(1), ignoring);
    let ignored = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    server.crash();
    assert_eq!(client.refresh(0).code(), 0, "{ignored}");
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

/// What is new in the file is there after a crash, and what can't be is told and ends no call.
#[test]
fn the_file_is_read_again() {
    let directory = Directory::new();
    let socket = directory.path().join("run/upgrade.sock");
    std::fs::create_dir(directory.path().join("run")).unwrap();
    let mut settings = supervised(1);
    settings.tables = format!("[upgrade]\nsocket = \"{}\"\n", socket.display());
    let server = Server::start_in(directory, settings);
    let mut client = Client::udp(server.udp4());
    client.allocate();
    let new = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = server.directory().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("udp = [", &format!("udp = [\"{new}\", "))).unwrap();
    std::fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    server.crash();
    assert_eq!(client.refresh(600).code(), 0);
    let mut at_new = Client::udp(new);
    assert_eq!(at_new.binding(), at_new.local(), "the new listener answers");
    let line = server.log.event("no other process can take over for now; it listens as soon as the path is free");
    assert!(line["failure"].as_str().unwrap().contains("upgrade.socket"), "{line}");
}

/// What the file says after a crash is used, and a broken one is not.
#[test]
fn a_broken_file_does_not_end_what_runs() {
    let server = supervised(1).start();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    std::fs::write(server.directory().join("config.toml"), "workers = \"many\"\n").unwrap();
    server.crash();
    assert_eq!(client.refresh(600).code(), 0);
    assert_eq!(server.log.events(GOES_ON).len(), 1);
}

/// A file that can be read but not carried out leaves the configuration that the killed server had, also what a reload brought.
#[test]
fn a_file_that_can_not_be_carried_out_does_not_end_what_runs() {
    let server = supervised(1).start();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    let config = server.directory().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let new = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(&config, text.replace("udp = [", &format!("udp = [\"{new}\", "))).unwrap();
    kill_process(server.serving(), Signal::HUP).unwrap();
    wait_for("the new listener", || server.log.text().contains(&new.to_string()).then_some(()));
    let mut at_new = Client::udp(new);
    at_new.allocate();
    // What the supervisor has is older, and writes of the ledger may be a second old.
    std::thread::sleep(Duration::from_millis(1_500));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = text.replace("tcp = [", &format!("tcp = [\"{}\", ", taken.local_addr().unwrap()));
    assert_ne!(wrong, text);
    std::fs::write(&config, wrong).unwrap();
    server.crash();
    assert_eq!((client.refresh(600).code(), at_new.refresh(600).code()), (0, 0));
    assert_eq!(server.log.events(GOES_ON).len(), 1);
    let line = server.log.event("the configuration can't be carried out: the one that the killed server had holds");
    assert!(line["failure"].as_str().unwrap().contains(&taken.local_addr().unwrap().to_string()), "{line}");
}

/// What would hang when it is read is not read, and ends no call.
#[test]
fn what_is_no_file_does_not_end_what_runs() {
    let mut server = supervised(1).start();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    let config = server.directory().join("config.toml");
    std::fs::remove_file(&config).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    server.crash();
    assert_eq!(client.refresh(600).code(), 0);
    let warned = server.log.text().contains("is no ordinary file");
    assert!(warned, "{}", server.log.text());
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
}

/// A drain is known to the next process, however soon the one before was killed.
/// Certificates may be renewed at the moment of a kill: calls over UDP need none, and streams get them as soon as they are there.
#[test]
fn a_certificate_that_can_not_be_read_ends_no_call() {
    let authority = e2e::tls::Authority::new();
    let mut settings = authority.settings(1);
    settings.supervise = true;
    let server = settings.start();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    let (certificate, key) = authority.paths("first");
    let other = authority.write("other", &[e2e::tls::NAME]);
    let kept = [&certificate, &key].map(|path| std::fs::read(path).unwrap());
    for spoil in [
        &(|| std::fs::remove_file(&certificate).unwrap()) as &dyn Fn(),
        // One of two files is there already.
        &|| assert!(std::fs::copy(&other.1, &key).unwrap() > 0),
        &|| [&certificate, &key].into_iter().for_each(|path| std::fs::remove_file(path).unwrap()),
    ] {
        spoil();
        server.crash();
        assert_eq!(client.refresh(600).code(), 0, "{}", server.log.text());
        server.log.wait_for_line("can't be used now; until they can, clients over TLS");
        assert!(authority.connect(server.tls4()).is_err(), "no client trusts what is presented instead");
        [&certificate, &key].into_iter().zip(&kept).for_each(|(path, text)| std::fs::write(path, text).unwrap());
        wait_for("the certificate to be presented", || authority.connect(server.tls4()).ok());
    }
    authority.client(server.tls4()).allocate();
    assert_eq!((server.log.events(GOES_ON).len(), server.log.events(ANEW).len()), (3, 0));
}

/// What waits for a restart waits on: this is none.
#[test]
fn what_waits_for_a_restart_is_not_taken_from_the_file() {
    let server = supervised(3).start();
    let mut clients: Vec<Client> = (0..3).map(|worker| Client::udp_on_worker(server.udp4(), worker, 3)).collect();
    for client in &mut clients {
        client.allocate();
    }
    let config = server.directory().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let journal = server.directory().join("no-journal").display().to_string();
    let changed = text.replace("workers = 3", "workers = 1").replace("format = \"json\"", "format = \"journal\"");
    let changed = changed.replace("[log]\n", &format!("[log]\njournal = {journal:?}\n"));
    std::fs::write(&config, changed).unwrap();
    server.crash();
    for client in &mut clients {
        assert_eq!(client.refresh(600).code(), 0, "{}", server.log.text());
    }
    assert_eq!(server.log.events("ready").pop().unwrap()["workers"], 3);
}

/// After an upgrade to another local address behind the same public one there are sessions at both.
#[test]
fn sessions_at_two_local_addresses_of_one_public_address_go_on() {
    let mut settings = supervised(1);
    settings.relay = vec![("addresses", "[\"127.0.0.1\"]"), ("external", "\"192.0.2.7\"")];
    let mut upgradable = Upgradable::start(settings.clone());
    let mut before = Client::udp(upgradable.server.udp4());
    before.allocate_family(true);
    settings.relay = vec![("addresses", "[\"127.0.0.2\"]"), ("external", "\"192.0.2.7\"")];
    settings.udp.clone_from(&upgradable.server.settings.udp);
    upgradable.write(Settings {
        tables: upgradable.server.settings.tables.clone(),
        http: upgradable.server.settings.http.clone(),
        ..settings
    });
    upgradable.upgrade();
    let mut after = Client::udp(upgradable.server.udp4()).user("bob", "builder");
    after.allocate_family(true);
    let ready = upgradable.server.log.events("ready").len();
    kill_process(upgradable.server.serving(), Signal::KILL).unwrap();
    wait_for_ready(&upgradable.server, ready + 1);
    assert_eq!((before.refresh(600).code(), after.refresh(600).code()), (0, 0), "{}", upgradable.server.log.text());
    assert_eq!(upgradable.server.live(), 2);
}

#[test]
fn a_drain_is_gone_on_with() {
    let (directory, mut settings) = (Directory::new(), supervised(1));
    let socket = directory.path().join("admin.sock");
    settings.http = format!("admin_socket = {socket:?}\n{}", settings.http);
    let server = Server::start_in(directory, settings);
    let mut client = Client::udp(server.udp4());
    client.allocate();
    let (config, url) = (server.directory().join("config.toml"), format!("unix:{}", socket.display()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    command.args(["drain", "--url", &url, "--config", config.to_str().unwrap()]).env_clear();
    assert!(command.stdout(std::process::Stdio::null()).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(100));
    server.crash();
    assert_eq!(client.refresh(600).code(), 0);
    let begun = Client::udp(server.udp4()).request(METHOD_ALLOCATE, &[Wanted::udp()]);
    assert_eq!(begun.code(), 486, "a session began while it drains");
}

/// What can't be written for a while is written again: a crash then ends no call.
#[test]
fn a_ledger_that_could_not_be_written_is_written_again() {
    let server = supervised(1).start();
    let mut client = Client::udp(server.udp4());
    client.allocate();
    let child = server.serving();
    let files = |soft: u32| {
        let limit = [format!("--pid={}", child.as_raw_nonzero()), format!("--nofile={soft}:")];
        assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    };
    files(3);
    server.log.event("the ledger can't be written: until it can, a crash ends every call");
    files(1_024);
    server.log.event("the ledger is written again");
    server.crash();
    assert_eq!(client.refresh(600).code(), 0);
    assert_eq!(server.log.events("the ledger can't be written: until it can, a crash ends every call").len(), 1);
}

/// Nothing but the sockets of live sessions and of the server itself is open, however often it is killed.
#[test]
fn no_descriptor_is_left_behind() {
    let server = supervised(1).start();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::udp(server.udp4())).collect();
    for client in &mut clients {
        client.allocate();
    }
    let mut streams: Vec<Client> = (0..20).map(|_| Client::tcp(server.tcp4())).collect();
    for client in &mut streams {
        client.allocate();
    }
    server.crash();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    wait_for("the streams' end", || (server.live() == 20).then_some(()));
    let before = open();
    for _ in 0..5 {
        let mut short = Client::tcp(server.tcp4());
        short.allocate();
        server.crash();
        wait_for("the stream's end", || (server.live() == 20).then_some(()));
    }
    // A connection of this test's own over HTTP may be open in one look and not in the other.
    assert!(open().abs_diff(before) <= 4, "{before} before, {} after", open());
    assert!(clients.iter_mut().all(|client| client.refresh(600).code() == 0));
}

#[test]
fn how_a_server_ends_by_itself_is_how_its_supervisor_ends() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let directory = Directory::new();
    let config = directory.path().join("config.toml");
    let settings = Settings { udp: vec![taken.local_addr().unwrap().to_string()], ..supervised(1) };
    std::fs::write(&config, settings.text(&(50_000..=50_010))).unwrap();
    let (code, text) = run_to_end(&config);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("can't listen on udp"), "{text}");
}

/// The server never outlives its supervisor: two must not serve the same sessions.
#[test]
fn a_server_ends_with_its_supervisor() {
    let mut server = supervised(1).start();
    let child = server.serving();
    server.signal("KILL");
    server.wait();
    wait_for("the server's end", || is_gone(child).then_some(()));
}

#[cfg(debug_assertions)]
mod faults {
    use std::net::SocketAddr;
    use throughway::wire::attribute::ATTR_SOFTWARE;

    use throughway::wire::message::{METHOD_BINDING, METHOD_REFRESH};

    use super::*;
    use test_support::e2e::client::request;

    fn mark(place: &str) -> Wanted {
        Wanted::Bytes(ATTR_SOFTWARE, format!("xx throughway-fault:{place}; xx").into_bytes())
    }

    fn binding_request() -> Vec<u8> {
        request(METHOD_BINDING, &[], None)
    }

    fn send_mark(client: &mut Client, place: &str) {
        client.send_raw(&request(METHOD_REFRESH, &[mark(place)], None));
    }

    /// A message that kills the server, sent again and again by one client, then by others.
    #[test]
    fn what_kills_the_server_does_not_do_so_for_ever() {
        let mut server = Server::start_as(Directory::new(), supervised(1), armed);
        let mut other = Client::udp(server.udp4()).user("bob", "builder");
        other.allocate();
        let mut culprit = Client::udp(server.udp4());
        culprit.allocate();
        send_mark(&mut culprit, "kill");
        wait_for_ready(&server, 2);
        assert_eq!(server.live(), 2, "once is no pattern");
        send_mark(&mut culprit, "kill");
        wait_for_ready(&server, 3);
        wait_for("the end of the session", || (server.live() == 1).then_some(()));
        assert_eq!(server.log.wait_for_session("alice")["reason"], "fault");
        server.expect_dropped("suspect", 1, || send_mark(&mut culprit, "kill"));
        assert_eq!(other.refresh(600).code(), 0);
        // A third death within a minute: whatever it is, it may lie in what is kept.
        send_mark(&mut Client::udp(server.udp4()), "kill");
        wait_for_ready(&server, 4);
        assert_eq!(server.log.event(ANEW)["why"], "it was the third time within a minute over a client's message");
        // Port 0 is another port now, and no client is known there.
        let is_udp4 = |event: &serde_json::Value| {
            event["transport"] == "udp" && event["address"].as_str().unwrap().starts_with("127.")
        };
        let listening = server.log.events("listening").into_iter().rfind(is_udp4).unwrap();
        let address: SocketAddr = listening["address"].as_str().unwrap().parse().unwrap();
        assert_ne!(address, server.udp4());
        assert_eq!(
            other.answer_within(&binding_request(), Duration::from_millis(300)).map(|answer| answer.code()),
            None
        );
        assert_eq!(Client::udp(address).user("bob", "builder").request(METHOD_REFRESH, &[]).code(), 437);
        // And a fourth is left to the service manager.
        send_mark(&mut Client::udp(address), "kill");
        assert_eq!(server.wait().code(), Some(1));
        server.log.wait_for_line("the 4th time within a minute over a client's message");
    }

    #[test]
    fn a_stuck_worker_is_noticed_and_calls_go_on() {
        let server = Server::start_as(Directory::new(), supervised(1), armed);
        let mut other = Client::udp(server.udp4()).user("bob", "builder");
        other.allocate();
        send_mark(&mut Client::udp(server.udp4()), "stuck");
        let until = Instant::now() + Duration::from_secs(40);
        while server.log.events(GOES_ON).is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(server.log.event(GOES_ON)["signal"], 6, "{}", server.log.text());
        assert_eq!(other.refresh(600).code(), 0);
    }

    /// A successor that dies while it proves itself takes its supervisor along, and the old pair goes on, supervised as before.
    #[test]
    fn a_supervised_server_is_upgraded_and_the_new_one_is_supervised_too() {
        let mut upgradable = Upgradable::start(supervised(1));
        let mut flow = Flow::start(Client::udp(upgradable.server.udp4()));
        let first = upgradable.server.pid();
        (0..50).for_each(|_| flow.round());
        upgradable.upgrade();
        (0..50).for_each(|_| flow.round());
        assert_eq!(flow.settle(), 0);
        assert_ne!(upgradable.server.pid(), first);
        wait_for("the old pair's end", || {
            upgradable.server.first_ended().map(|status| assert_eq!(status.code(), Some(0)))
        });
        let upgraded = gaps(&upgradable.server);
        assert!(upgraded[..2].iter().all(|seconds| seconds != "0") && upgraded[2] == "0", "{upgraded:?}");
        let before = upgradable.server.log.events("ready").len();
        kill_process(upgradable.server.serving(), Signal::KILL).unwrap();
        wait_for_ready(&upgradable.server, before + 1);
        (0..50).for_each(|_| flow.round());
        assert!(flow.settle() <= 1);
        let recovered = gaps(&upgradable.server);
        assert_eq!(recovered[..2], upgraded[..2], "the killed process knew them");
        assert_ne!(recovered[2], "0");
        assert_eq!(upgradable.server.scrape().value("throughway_generation", &[]), 2);
        assert_eq!(recoveries(&upgradable.server), 1);
        let recovered = recovered[2].clone();
        // The file is replaced, the server is killed, and only then is an upgrade asked for.
        e2e::upgrade::replace_program(upgradable.server.directory());
        upgradable.server.crash();
        upgradable.begin();
        let log = upgradable.server.log.clone();
        let confirmed = wait_for("the second upgrade", || log.events(CONFIRMED).into_iter().nth(1));
        upgradable.server.take_over_by(confirmed["pid"].as_u64().unwrap() as u32);
        (0..50).for_each(|_| flow.round());
        assert!(flow.settle() <= 2, "one under way at each death");
        wait_for_ready(&upgradable.server, 5);
        let last = gaps(&upgradable.server);
        assert!(last[2] != "0" && last[2] != recovered, "{last:?}: of the second recovery");
    }

    #[test]
    fn a_successor_that_is_killed_leaves_the_old_pair() {
        let mut upgradable = Upgradable::start_with(supervised(1), &[("TEST_FAULTS_UPGRADE", "probation=hang")]);
        let mut flow = Flow::start(Client::udp(upgradable.server.udp4()));
        e2e::upgrade::replace_program(upgradable.server.directory());
        upgradable.begin();
        upgradable.wait_for_probation();
        let supervisor = upgradable.server.log.event("upgrading")["pid"].as_u64().unwrap() as u32;
        kill_process(child_of(supervisor), Signal::KILL).unwrap();
        assert_eq!(upgradable.end()["message"], ROLLED_BACK);
        let supervisor = Pid::from_raw(supervisor as i32).unwrap();
        wait_for("the new supervisor's end", || is_gone(supervisor).then_some(()));
        (0..50).for_each(|_| flow.round());
        assert_eq!(flow.settle(), 0);
        upgradable.server.crash();
        (0..50).for_each(|_| flow.round());
        assert!(flow.settle() <= 1);
    }
    /// From the word by which the old process may go on, the new supervisor answers for the calls, though its server has not
    /// told that it is ready.
    #[test]
    fn a_successor_that_is_killed_right_after_it_confirmed_is_gone_on_with() {
        let mut upgradable = Upgradable::start_with(supervised(1), &[("TEST_FAULTS_UPGRADE", "confirmed=kill")]);
        let mut flow = Flow::start(Client::udp(upgradable.server.udp4()));
        (0..50).for_each(|_| flow.round());
        let before = upgradable
            .server
            .scrape()
            .value("throughway_payload_packets_total", &[("way", "received"), ("side", "peers")]);
        e2e::upgrade::replace_program(upgradable.server.directory());
        upgradable.begin();
        let confirmed = upgradable.server.log.event(CONFIRMED);
        upgradable.server.take_over_by(confirmed["pid"].as_u64().unwrap() as u32);
        wait_for_ready(&upgradable.server, 2);
        assert_eq!(upgradable.server.log.events(GOES_ON).len(), 1);
        (0..50).for_each(|_| flow.round());
        assert!(flow.settle() <= 1, "one may be under way");
        let scrape = upgradable.server.scrape();
        assert_eq!((scrape.value("throughway_generation", &[]), recoveries(&upgradable.server)), (2, 1));
        assert!(scrape.value("throughway_payload_packets_total", &[("way", "received"), ("side", "peers")]) >= before);
        assert_eq!(upgradable.server.live(), 1);
    }
}
