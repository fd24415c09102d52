//! The third kind of the house: no output that we do not control pushes back. For each output of the real binary its
//! reader stops, calls, records and signals go on, and what is lost is counted where an operator looks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use test_support::api::{BEARER, KEY, ask, key_table};
use test_support::e2e;
use test_support::e2e::http::{self, Scrape};
use test_support::e2e::server::{Slice, binary};
use test_support::e2e::{Client, Directory, PATIENCE, Settings, Witness, wait_for};
use test_support::with_one_and_three_workers;

const SECRET: &str = "north-of-everything";

/// A server whose standard error is read by a `cat`, which can be stopped: then it is a pipe without a reader.
struct Watched {
    child: Child,
    reader: Child,
    directory: Directory,
    _ports: Slice,
}

impl Drop for Watched {
    fn drop(&mut self) {
        for child in [&mut self.child, &mut self.reader] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
}

impl Watched {
    fn start(settings: &Settings, edit: impl Fn(String, &Path) -> String, variables: &[(&str, String)]) -> Self {
        Self::start_in(Directory::new(), settings, edit, variables)
    }

    fn start_in(
        directory: Directory,
        settings: &Settings,
        edit: impl Fn(String, &Path) -> String,
        variables: &[(&str, String)],
    ) -> Self {
        let ports = Slice::take();
        let config = directory.path().join("config.toml");
        fs::write(&config, edit(settings.text(&ports.range), directory.path())).unwrap();
        let mut command = binary(&config);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().unwrap();
        let into = File::create(directory.path().join("stderr")).unwrap();
        let stderr: Stdio = child.stderr.take().unwrap().into();
        let reader = Command::new("cat").stdin(stderr).stdout(into).spawn().unwrap();
        Self { child, reader, directory, _ports: ports }
    }

    /// One that has said "ready" on standard error.
    fn ready(settings: &Settings) -> Self {
        let server = Self::start(settings, |text, _| text, &[]);
        server.wait_for("ready");
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lines that came through the pipe, as far as they are JSON.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("stderr")).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn said(&self, message: &str) -> Vec<Value> {
        self.lines()
            .into_iter()
            .filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(message)))
            .collect()
    }

    #[track_caller]
    fn wait_for(&self, message: &str) -> Value {
        wait_for(&format!("the line {message:?}"), || self.said(message).pop())
    }

    fn listener(&self, transport: &str) -> SocketAddr {
        let all = self.said("listening");
        let of =
            |line: &&Value| line["transport"] == transport && line["address"].as_str().unwrap().starts_with("127.");
        all.iter().find(of).unwrap()["address"].as_str().unwrap().parse().unwrap()
    }

    fn http(&self) -> SocketAddr {
        self.said("metrics and health")[0]["address"].as_str().unwrap().replace("http://", "").parse().unwrap()
    }

    fn scrape(&self) -> Scrape {
        Scrape::of(self.http())
    }

    fn lost_lines(&self) -> u64 {
        self.scrape().sum("throughway_log_lines_lost_total")
    }

    /// A signal, and the end that it must lead to in spite of everything.
    #[track_caller]
    fn end_by(&mut self, name: &str) {
        signal(&self.child, name);
        let status = wait_for("the server's end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }

    /// Lets the reader go on until it has read everything; the server must have ended.
    fn read_rest(&mut self) {
        signal(&self.reader, "CONT");
        wait_for("the reader's end", || self.reader.try_wait().unwrap());
    }

    fn records(&self) -> Vec<Value> {
        records(&self.path("usage.jsonl"))
    }
}

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Sessions by type and user of their records.
fn by_type(records: &[Value]) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for record in records {
        *all.entry(record["type"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    all
}

fn both(sessions: usize) -> BTreeMap<String, usize> {
    [("start".to_owned(), sessions), ("stop".to_owned(), sessions)].into()
}

/// A whole session of a user.
fn session(udp: SocketAddr, user: &str) {
    let mut client = Client::udp(udp).minted(SECRET, user);
    client.allocate();
    assert_eq!(client.refresh(0).code(), 0);
}

/// Sessions of users with long names, so that few of them are much to write.
fn sessions(udp: SocketAddr, numbers: std::ops::Range<usize>) {
    for number in numbers {
        session(udp, &format!("{number:04}{}", "x".repeat(440)));
    }
}

/// Everything that people want of a server while one of its outputs stands still.
#[track_caller]
fn expect_service(udp: SocketAddr, tcp: SocketAddr, http: SocketAddr) {
    assert_eq!(http::get(http, "/healthz", "localhost"), (200, "alive\n".to_owned()));
    Client::tcp(tcp).binding();
    let issued = ask(http, "GET", "/v1/credentials?username=carol&ttl=300", &[("Host", "localhost"), BEARER], "");
    assert_eq!(issued.status, 200, "{issued:?}");
    let issued = issued.json();
    let mut client = Client::udp(udp).user(issued["username"].as_str().unwrap(), issued["password"].as_str().unwrap());
    client.allocate();
    assert_eq!(client.refresh(0).code(), 0);
}

fn with_key(mut settings: Settings) -> Settings {
    settings.tables = key_table("web", KEY, "");
    settings
}

/// At this level a session makes three lines.
fn talkative(workers: u8) -> Settings {
    let mut settings = with_key(Settings::new(workers)).account("file", "usage.jsonl");
    settings.level = "debug";
    settings
}

with_one_and_three_workers! {
    // F-A4: stderr is a pipe without a reader.
    /// Health, accepting, credentials, records, both counters and the way back, while the log has no reader.
    fn a_log_that_nobody_reads_stops_nothing_and_what_it_loses_is_counted(workers: u8) {
        let mut server = Watched::ready(&talkative(workers));
        let (udp, tcp, http) = (server.listener("udp"), server.listener("tcp"), server.http());
        let witness = Witness::start(Client::udp(udp));
        signal(&server.reader, "STOP");
        let mut count = 0;
        while server.lost_lines() == 0 {
            sessions(udp, count..count + 100);
            count += 100;
            assert!(count <= 5_000, "nothing is lost of {count} sessions: is the queue bounded?");
        }
        expect_service(udp, tcp, http);
        witness.see_progress();
        // Beside these two more: the witness, which lives, and what expect_service did.
        let started = count + 2;
        wait_for("every record", || {
            let all = by_type(&server.records());
            (all["start"] == started && all["stop"] == started - 1).then_some(())
        });
        let scrape = server.scrape();
        assert_eq!(scrape.sum("throughway_accounting_lost_total"), 0);
        assert_eq!(scrape.value("throughway_events_lost_total", &[("event", "session")]), 0);
        let status = ask(http, "GET", "/v1/status", &[("Host", "localhost")], "").json();
        assert!(status["lost"]["log lines"].as_u64() > Some(0) && status["lost"].get("usage records").is_none(), "{status}");
        // The reader comes back: one line says how much is missing.
        signal(&server.reader, "CONT");
        let line = server.wait_for("log lines were lost");
        assert_eq!(line["lines"].as_u64().unwrap(), server.lost_lines(), "{line}");
        let ended = server.said("session ended").len();
        assert!(ended < count, "{ended} of {count}");
        witness.finish();
        server.end_by("TERM");
        server.read_rest();
        assert_eq!(server.said("stopping").len(), 1);
    }
}

// F-A4: SIGTERM and SIGINT do nothing while stderr is a pipe without a reader.
#[test]
fn signals_end_a_server_whose_log_nobody_reads() {
    for name in ["TERM", "INT"] {
        let mut server = Watched::ready(&talkative(1));
        let udp = server.listener("udp");
        signal(&server.reader, "STOP");
        sessions(udp, 0..100);
        server.end_by(name);
        assert_eq!(by_type(&server.records()), both(100));
    }
}

// F-A12, F-A4: one user who churns neither fills the log nor pushes out records of others.
#[test]
fn one_user_who_churns_has_few_lines_and_all_records() {
    let settings = Settings::new(1).account("file", "usage.jsonl");
    let edit = |text: String, _: &Path| text.replace("session_lines_per_user = 0", "session_lines_per_user = 20");
    let mut server = Watched::start(&settings, edit, &[]);
    server.wait_for("ready");
    let udp = server.listener("udp");
    for _ in 0..80 {
        session(udp, "churn");
    }
    for user in ["anna", "bert", "carl"] {
        session(udp, user);
    }
    let of =
        |server: &Watched, user: &str| server.said("session ended").iter().filter(|line| line["user"] == *user).count();
    wait_for("the others' lines", || {
        (["anna", "bert", "carl"].iter().all(|user| of(&server, user) == 1)).then_some(())
    });
    // A new minute may have begun meanwhile.
    let (lines, left_out) = (of(&server, "churn"), server.scrape().sum("throughway_log_session_lines_left_out_total"));
    assert!(lines <= 40 && lines as u64 + left_out == 80, "{lines} lines, {left_out} left out");
    server.end_by("TERM");
    server.read_rest();
    let summary = server.said("sessions left out of the log");
    let told: u64 = summary.iter().map(|line| line["sessions"].as_u64().unwrap()).sum();
    assert!(told == left_out && summary[0]["user"] == "churn", "{summary:?}");
    assert_eq!(by_type(&server.records()), both(83));
}

// F-A4: the journal's socket is there, and its reader stands still.
#[test]
fn a_journal_that_stands_still_stops_neither_calls_nor_other_sinks() {
    let directory = Directory::new();
    let journal = UnixDatagram::bind(directory.path().join("journal")).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    // systemd's own socket, without a reader too.
    let manager = UnixDatagram::bind(directory.path().join("manager")).unwrap();
    let notify = directory.path().join("manager").display().to_string();
    let settings = with_key(Settings::new(1)).account("file", "usage.jsonl").account("journal", "journal");
    let edit =
        |text: String, _: &Path| text.replace("format = \"json\"", "format = \"journal\"\njournal = \"journal\"");
    let mut server = Watched::start_in(directory, &settings, edit, &[("NOTIFY_SOCKET", notify)]);
    let (mut listeners, mut http) = (BTreeMap::new(), None);
    loop {
        let mut buffer = [0; 65_536];
        let len = journal.recv(&mut buffer).expect("an entry in time");
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(ToOwned::to_owned);
        let address = field("THROUGHWAY_ADDRESS=").map(|address| address.replace("http://", ""));
        match text.lines().next().unwrap_or_default() {
            line if line.starts_with("MESSAGE=listening") => {
                listeners.entry(field("THROUGHWAY_TRANSPORT=").unwrap()).or_insert(address.unwrap());
            }
            line if line.starts_with("MESSAGE=metrics") => http = address,
            line if line.starts_with("MESSAGE=ready") => break,
            _ => {}
        }
    }
    let address = |of: &str| of.parse::<SocketAddr>().unwrap();
    let (udp, tcp, http) = (address(&listeners["udp"]), address(&listeners["tcp"]), address(&http.unwrap()));
    let queue: usize = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap().trim().parse().unwrap();
    let count = queue + 50;
    (0..count).for_each(|number| session(udp, &format!("user-{number}")));
    expect_service(udp, tcp, http);
    wait_for("every record in the file", || (by_type(&server.records()) == both(count + 1)).then_some(()));
    // Neither is lost yet: what the journal does not take waits for it.
    assert_eq!(Scrape::of(http).sum("throughway_accounting_lost_total"), 0);
    server.end_by("TERM");
    server.read_rest();
    // The lines came on standard error, and so does what is lost with the process.
    let said = fs::read_to_string(server.path("stderr")).unwrap();
    let lost = said.lines().find(|line| line.contains("usage records are lost")).unwrap_or_else(|| panic!("{said}"));
    assert!(lost.contains("sink=journal") && said.contains("session ended"), "{said}");
    drop(manager);
}

// F-A4: a disk that hangs, here a pipe without a reader, holds up its own records alone.
#[test]
fn a_file_that_hangs_holds_up_no_other_sink_and_not_the_end() {
    let directory = Directory::new();
    let journal = UnixDatagram::bind(directory.path().join("journal")).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let settings = with_key(Settings::new(1)).account("file", "usage.jsonl").account("journal", "journal");
    let mut server = Watched::start_in(directory, &settings, |text, _| text, &[]);
    server.wait_for("ready");
    fs::remove_file(server.path("usage.jsonl")).unwrap();
    assert!(Command::new("mkfifo").arg(server.path("usage.jsonl")).status().unwrap().success());
    signal(&server.child, "HUP");
    server.wait_for("reload: ");
    let (udp, tcp, http) = (server.listener("udp"), server.listener("tcp"), server.http());
    let count = 150;
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        (0..2 * (count + 1)).for_each(|_| _ = journal.recv(&mut buffer).expect("a record in time"));
        journal
    });
    sessions(udp, 0..count);
    expect_service(udp, tcp, http);
    let journal = reading.join().expect("the journal gets every record");
    server.end_by("TERM");
    server.read_rest();
    let lost = server.said("usage records are lost");
    assert!(lost.len() == 1 && lost[0]["sink"] == "file" && lost[0]["records"].as_u64() > Some(0), "{lost:?}");
    drop(journal);
}

// F-A4: a disk that is full for a while loses nothing, and what it loses at the end is said.
#[test]
fn a_full_disk_that_has_room_again_gets_every_record() {
    let directory = Directory::new();
    let path = directory.path().join("usage.jsonl");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let settings = talkative(1);
    let mut server = Watched::start_in(directory, &settings, |text, _| text, &[]);
    server.wait_for("ready");
    let (udp, tcp, http) = (server.listener("udp"), server.listener("tcp"), server.http());
    sessions(udp, 0..100);
    expect_service(udp, tcp, http);
    server.wait_for("can't write usage records");
    assert_eq!(server.scrape().sum("throughway_accounting_records_total"), 0);
    fs::remove_file(&path).unwrap();
    signal(&server.child, "HUP");
    wait_for("every record", || (by_type(&server.records()) == both(101)).then_some(()));
    assert_eq!(server.scrape().sum("throughway_accounting_lost_total"), 0);
    server.wait_for("usage records are written again");
    server.end_by("TERM");
}

// F-B4: the rename succeeds, the open fails: records go to the old file, and nothing is renamed twice.
#[test]
fn a_rotation_that_stops_halfway_loses_nothing() {
    let mut settings = Settings::new(1).account("file", "usage.jsonl").account("rotate_size", "8KiB");
    settings.limits = vec![("allocations_per_user", "0")];
    let mut server = Watched::ready(&settings);
    let udp = server.listener("udp");
    let count = 30;
    let mut clients: Vec<Client> = (0..count)
        .map(|number| {
            let mut client = Client::udp(udp).minted(SECRET, &format!("user-{number}"));
            client.allocate();
            client
        })
        .collect();
    let rotated = |server: &Watched| -> Vec<PathBuf> {
        let all = fs::read_dir(server.directory.path()).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("usage.jsonl")).collect()
    };
    let all = |server: &Watched| rotated(server).iter().map(|path| records(path).len()).sum::<usize>();
    wait_for("every start", || (all(&server) == count).then_some(()));
    let before = rotated(&server).len();
    // From now on no file can be opened, but those that are open go on.
    let limit = |files: &str| {
        let pid = server.child.id().to_string();
        assert!(
            Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={files}:")]).status().unwrap().success()
        );
    };
    let soft = fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let soft = soft
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .to_owned();
    limit("3");
    for client in &mut clients {
        assert_eq!(client.refresh(0).code(), 0);
    }
    wait_for("every record", || (all(&server) == 2 * count).then_some(()));
    server.wait_for("can't rotate the usage file");
    assert_eq!(rotated(&server).len(), before, "renamed once, and nothing new could be opened");
    assert!(!server.path("usage.jsonl").exists());
    limit(&soft);
    for number in 0..10 {
        session(udp, &format!("later-{number}"));
        std::thread::sleep(std::time::Duration::from_millis(150));
    }
    wait_for("a new file", || server.path("usage.jsonl").exists().then_some(()));
    wait_for("every record", || (all(&server) == 2 * count + 20).then_some(()));
    assert_eq!(server.scrape().sum("throughway_accounting_lost_total"), 0);
    server.end_by("TERM");
}

// F-A4: a webhook that takes connections and never answers, until its spool is full.
#[test]
fn a_webhook_that_hangs_and_a_spool_that_is_full_stop_nothing() {
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/usage", hanging.local_addr().unwrap());
    let mut settings = talkative(1).account("webhook", url).account("spool", "spool");
    settings.accounting.push(("spool_max", "1MiB".to_owned()));
    let mut server = Watched::ready(&settings);
    let (udp, tcp, http) = (server.listener("udp"), server.listener("tcp"), server.http());
    let mut count = 0;
    while server.said("can't write usage records").is_empty() {
        sessions(udp, count..count + 50);
        count += 50;
        assert!(count <= 5_000, "the spool takes whatever comes");
    }
    expect_service(udp, tcp, http);
    count += 1;
    wait_for("every record in the file", || (by_type(&server.records()) == both(count)).then_some(()));
    let line = server.wait_for("can't write usage records");
    assert!(line["sink"] == "webhook" && line["error"].as_str().unwrap().contains("spool is full"), "{line}");
    server.end_by("TERM");
    server.read_rest();
    // What is neither delivered nor in the spool was lost, and was said to be.
    let lost: u64 = server.said("usage records are lost").iter().map(|line| line["records"].as_u64().unwrap()).sum();
    let spooled: usize =
        fs::read_dir(server.path("spool")).unwrap().map(|file| records(&file.unwrap().path()).len()).sum();
    assert_eq!(spooled as u64 + lost, 2 * count as u64);
    // F-A15: records name users and addresses.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = fs::read_dir(server.path("spool")).unwrap().next().unwrap().unwrap().path();
    assert_eq!((mode(&server.path("spool")), mode(&file)), (0o700, 0o600));
}

// F-A4: clients that ask and never read, over HTTP and over TURN.
#[test]
fn clients_that_do_not_read_hold_up_nobody_else() {
    let mut server = Watched::ready(&talkative(1));
    let (udp, tcp, http) = (server.listener("udp"), server.listener("tcp"), server.http());
    let witness = Witness::start(Client::udp(udp));
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(300);
    let mut deaf = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(http).unwrap();
        stream.set_nonblocking(true).unwrap();
        // As much as fits; the answers stay unread.
        let _ = stream.write(request.as_bytes());
        deaf.push(stream);
    }
    // One that reads nothing of its call either.
    let mut slow = Client::tcp(tcp).minted(SECRET, "slow");
    let relayed = slow.allocate();
    let far = e2e::peer(relayed);
    slow.bind(0x4001, far.local_addr().unwrap());
    let dropped = || server.scrape().value("throughway_dropped_packets_total", &[("reason", "slow_client")]);
    wait_for("what the slow client loses to be counted", || {
        for _ in 0..50 {
            far.send_to(&e2e::payload(7, 8000), relayed).unwrap();
        }
        (dropped() > 0).then_some(())
    });
    expect_service(udp, tcp, http);
    witness.see_progress();
    witness.finish();
    server.end_by("TERM");
}

// F-A4: the same over the unix socket that operators use.
#[test]
fn an_operator_who_does_not_read_holds_up_no_other_one() {
    let settings = Settings::new(1);
    let edit = |text: String, directory: &Path| {
        let socket = format!("listen = \"unix:{}\"", directory.join("http.sock").display());
        text.replace("listen = \"127.0.0.1:0\"", &socket)
    };
    let mut server = Watched::start(&settings, edit, &[]);
    server.wait_for("ready");
    let connect = || std::os::unix::net::UnixStream::connect(server.path("http.sock")).unwrap();
    let deaf: Vec<_> = (0..30)
        .map(|_| {
            let mut stream = connect();
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(300).as_bytes());
            stream
        })
        .collect();
    let mut client = Client::udp(server.listener("udp")).minted(SECRET, "carol");
    client.allocate();
    let mut stream = connect();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("carol"), "{answer}");
    drop(deaf);
    server.end_by("TERM");
}

// F-A15: U+202E, U+2028, C1 in the log, and in what `sessions` and `usage report` show.
#[test]
fn no_name_steers_a_terminal_or_a_log() {
    let name = "eve\u{202e}\u{2028}\u{9b}31m=cmd";
    let mut server = Watched::ready(&talkative(1));
    let mut client = Client::udp(server.listener("udp")).minted(SECRET, name);
    client.allocate();
    assert_eq!(client.refresh(0).code(), 0);
    session(server.listener("udp"), "=cmd|' /C calc'!A0");
    let line =
        wait_for("the session's line", || server.said("session ended").into_iter().find(|line| line["user"] == name));
    assert_eq!(line["user"], name, "to a program it says the same");
    wait_for("the records", || (server.records().len() == 4).then_some(()));
    server.end_by("TERM");
    server.read_rest();
    let is_plain = |text: &str| text.chars().all(|c| throughway::printable::is_printable(c) || c == '\n' || c == '\r');
    let said = fs::read_to_string(server.path("stderr")).unwrap();
    assert!(is_plain(&said), "{said:?}");
    for format in ["--csv", "--json", "--by=user"] {
        let mut report = Command::new(env!("CARGO_BIN_EXE_throughway"));
        let output =
            report.args(["usage", "report", format, "usage.jsonl"]).current_dir(server.directory.path()).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(is_plain(&text), "{format}: {text:?}");
        // And none that a spreadsheet would carry out.
        assert!(format != "--csv" || text.contains(",\"'=cmd|' /C calc'!A0\","), "{text}");
    }
}
