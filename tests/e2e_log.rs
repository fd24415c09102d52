//! The log of the real binary: bounded in a flood, whole at a session's end, in fields for the journal.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Child;

use test_support::e2e;
use test_support::e2e::server::{Directory, Slice, binary};
use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, PATIENCE, Server, Settings, Wanted, http, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_ALLOCATE;

/// A server whose standard error is a file, whatever it writes there.
struct Bare {
    child: Child,
    directory: Directory,
    _ports: Slice,
}

impl Bare {
    fn start(directory: Directory, log: &str, variables: impl Fn(&File) -> Vec<(&'static str, String)>) -> Self {
        let ports = Slice::take();
        let text = Settings::new(1).text(&ports.range);
        let own = "[log]\nformat = \"json\"\nlevel = \"info\"";
        assert!(text.contains(own));
        let config = directory.path().join("config.toml");
        fs::write(&config, text.replace(own, &format!("[log]\nlevel = \"info\"\n{log}"))).unwrap();
        let stderr = File::create(directory.path().join("stderr")).unwrap();
        let mut command = binary(&config);
        command.envs(variables(&stderr)).stderr(stderr);
        Self { child: command.spawn().unwrap(), directory, _ports: ports }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap()
    }

    /// Ends it the ordinary way.
    fn stop(&mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        wait_for("the server's end", || self.child.try_wait().unwrap()).code().unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The journal's end of the protocol, on a socket of the test.
struct Journal {
    socket: UnixDatagram,
    seen: Vec<BTreeMap<String, String>>,
}

impl Journal {
    fn new(directory: &Directory) -> Self {
        let socket = UnixDatagram::bind(directory.path().join("journal")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, seen: Vec::new() }
    }

    fn next(&mut self) {
        let mut buffer = [0; 65_536];
        let len = self.socket.recv(&mut buffer).expect("an entry in time");
        let (mut rest, mut fields) = (&buffer[..len], BTreeMap::new());
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').expect("an end of the line");
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            rest = &rest[end + 1..];
            let (name, value) = if let Some((name, value)) = line.split_once('=') {
                (name, value.to_owned())
            } else {
                let (len, behind) = rest.split_at(8);
                let (value, behind) = behind.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
                rest = behind.strip_prefix(b"\n").expect("an end of the value");
                (line, String::from_utf8(value.to_vec()).unwrap())
            };
            let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            assert!(is_name && !name.starts_with('_'), "the journal drops {name}");
            fields.insert(name.to_owned(), value);
        }
        if !fields.is_empty() {
            self.seen.push(fields);
        }
    }

    /// The first entry whose message begins so; all that come before are kept.
    fn entry(&mut self, message: &str) -> BTreeMap<String, String> {
        loop {
            if let Some(found) = self.seen.iter().find(|fields| fields["MESSAGE"].starts_with(message)) {
                return found.clone();
            }
            self.next();
        }
    }
}

fn use_it(address: &str, user: &str) -> String {
    let server: SocketAddr = address.parse().unwrap();
    let mut client = Client::udp(server).minted("north-of-everything", user);
    client.allocate();
    let peer = peer(server);
    client.permit(peer.local_addr().unwrap());
    client.send_to(peer.local_addr().unwrap(), b"twelve bytes");
    assert_eq!(receive(&peer).0, b"twelve bytes");
    assert_eq!(client.refresh(0).code(), 0);
    client.local().to_string()
}

#[test]
fn the_journal_gets_every_line_with_its_fields() {
    let directory = Directory::new();
    let mut journal = Journal::new(&directory);
    let mut server = Bare::start(directory, "format = \"journal\"\njournal = \"journal\"", |_| Vec::new());
    let listening = journal.entry("listening");
    assert_eq!(listening["THROUGHWAY_TRANSPORT"], "udp");
    journal.entry("ready");
    // The issuer of a name chooses what stands in the log about it, but not what kind of field it is.
    let name = "carol\nPRIORITY=0\nTHROUGHWAY_REASON=forged";
    let client = use_it(&listening["THROUGHWAY_ADDRESS"], name);
    let session = journal.entry("session ended");
    for (field, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "throughway"),
        ("THROUGHWAY_USER", name),
        ("THROUGHWAY_SECRET", "main"),
        ("THROUGHWAY_CLIENT", &client),
        ("THROUGHWAY_TRANSPORT", "udp"),
        ("THROUGHWAY_BYTES_TO_PEERS", "12"),
        ("THROUGHWAY_REASON", "refreshed"),
    ] {
        assert_eq!(session[field], value, "{field}");
    }
    assert!(session["MESSAGE"].contains(&format!(" client={client} ")), "{}", session["MESSAGE"]);
    assert!(session["MESSAGE"].contains(" reason=refreshed"), "{}", session["MESSAGE"]);
    assert!(!session["MESSAGE"].contains('\n'));
    assert!(!session.contains_key("THROUGHWAY_DROPPED"), "nothing was");
    assert_eq!(server.stop(), 0);
    assert_eq!(journal.entry("stopping")["THROUGHWAY_SIGNAL"], "SIGTERM");
    assert_eq!(server.said(), "", "nothing stands in two places");
}

/// What a unit of systemd sees: the variable names the stream that is standard error.
#[test]
fn auto_is_the_journal_only_if_standard_error_is() {
    let stream = |file: &File| {
        let of = file.metadata().unwrap();
        format!("{}:{}", of.dev(), of.ino())
    };
    let directory = Directory::new();
    let mut journal = Journal::new(&directory);
    let mut server = Bare::start(directory, "journal = \"journal\"", |file| vec![("JOURNAL_STREAM", stream(file))]);
    journal.entry("ready");
    assert_eq!((server.stop(), server.said()), (0, String::new()));
    // Inherited, but standard error leads elsewhere.
    let directory = Directory::new();
    let journal = Journal::new(&directory);
    let other = |file: &File| vec![("JOURNAL_STREAM", format!("{}0", stream(file)))];
    let mut server = Bare::start(directory, "journal = \"journal\"", other);
    wait_for("JSON", || server.said().contains("\"message\":\"ready\"").then_some(()));
    assert_eq!(server.stop(), 0);
    journal.socket.set_nonblocking(true).unwrap();
    assert!(journal.socket.recv(&mut [0; 16]).is_err(), "the journal was not concerned");
    // It is the journal's, but there is none, or it is not wanted: JSON, as before.
    for log in ["journal = \"nowhere\"", "journal = \"\""] {
        let mut server = Bare::start(Directory::new(), log, |file| vec![("JOURNAL_STREAM", stream(file))]);
        wait_for("JSON", || server.said().contains("\"message\":\"ready\"").then_some(()));
        assert_eq!(server.stop(), 0);
    }
}

#[test]
fn a_journal_that_is_wanted_and_not_there_is_an_error() {
    let mut server = Bare::start(Directory::new(), "format = \"journal\"\njournal = \"nowhere\"", |_| Vec::new());
    let status = wait_for("the server to give up", || server.child.try_wait().unwrap());
    let said = server.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("log.journal: can't reach a journal at ") && said.contains("/nowhere: "), "{said}");
}

/// A journal that goes away takes no line with it: they come on standard error.
#[test]
fn lines_that_the_journal_does_not_take_come_on_standard_error() {
    let directory = Directory::new();
    let mut journal = Journal::new(&directory);
    let mut server = Bare::start(directory, "format = \"journal\"\njournal = \"journal\"", |_| Vec::new());
    journal.entry("ready");
    drop(journal);
    fs::remove_file(server.directory.path().join("journal")).unwrap();
    assert_eq!(server.stop(), 0);
    assert_eq!(server.said(), "INFO stopping signal=SIGTERM\n");
}

/// A name can't add lines to the log with line feeds or colours.
#[test]
fn a_name_makes_no_line_in_a_text_log() {
    let mut server = Bare::start(Directory::new(), "format = \"text\"", |_| Vec::new());
    let address = wait_for("the listener", || {
        let said = server.said();
        let at = said.contains(" ready ").then(|| said.find("address=").unwrap() + "address=".len())?;
        Some(said[at..].split_whitespace().next().unwrap().to_owned())
    });
    use_it(&address, "carol\n2026-11-21T00:00:00Z  INFO \u{1b}[31mforged");
    assert_eq!(server.stop(), 0);
    let said = server.said();
    assert!(said.contains("user=\"carol\\n2026-11-21T00:00:00Z  INFO \\u{1b}[31mforged\""), "{said}");
    assert!(said.lines().all(|line| line.starts_with("20") && !line.contains('\u{1b}')), "{said}");
}

with_one_and_three_workers! {
    /// Whatever comes in from the network, at info the log stays as short as it was: one line sums refusals up.
    fn a_flood_of_everything_is_one_line(workers: u8) {
        let authority = Authority::new();
        let mut server = authority.settings(workers).start();
        let before = server.log.text().lines().count();
        for number in 0..40 {
            // Wrong password, unknown user, expired, no credentials at all.
            let mut wrong = Client::udp_on_worker(server.udp4(), number % workers, workers).user("alice", "guessed");
            assert_eq!(wrong.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 401);
            let again = e2e::client::request(METHOD_ALLOCATE, &[Wanted::udp()], wrong.login.as_ref());
            let unknown = e2e::client::request(METHOD_ALLOCATE, &[Wanted::udp()], None);
            for _ in 0..25 {
                wrong.send_raw(&again);
                wrong.send_raw(&unknown);
            }
        }
        let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..200_u8 {
            noise.send_to(&[number; 40], server.udp4()).unwrap();
            noise.send_to(&[0, 1, 0, number, 0x21, 0x12, 0xA4, 0x42], server.udp4()).unwrap();
        }
        for to in [server.tcp4(), server.tls4(), server.http()] {
            for number in 0..20_u8 {
                let mut stream = TcpStream::connect(to).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let _ = stream.write_all(&[number | 0xC0; 300]);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        for _ in 0..20 {
            assert_eq!(http::get(server.http(), "/metrics", "evil.example").0, 403);
            assert_eq!(http::get(server.http(), "/v1/credentials", "localhost").0, 403);
        }
        wait_for("all requests to be refused", || {
            let scrape = server.scrape();
            let refused = scrape.value("throughway_requests_refused_total", &[("reason", "bad_integrity")]);
            (refused == 40 * 26).then_some(())
        });
        assert_eq!(server.log.text().lines().count(), before, "{}", server.log.text());
        server.signal("TERM");
        assert!(server.wait().success());
        let refused = server.log.events("requests refused in the last minute; set the level to debug for a line each");
        assert_eq!(refused.len(), 1, "one line, however many there were");
        assert!(refused[0]["reasons"].as_str().unwrap().contains("bad_integrity="), "{}", refused[0]);
        // It, and that the server was stopped.
        assert_eq!(server.log.text().lines().count(), before + 2, "{}", server.log.text());
    }

    /// A session's line tells what did not get through, and why.
    fn a_sessions_line_tells_what_was_dropped(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::udp_on_worker(server.udp4(), workers - 1, workers);
        let relayed = client.allocate();
        let peer = peer(relayed);
        for _ in 0..3 {
            server.expect_dropped("no_permission", 1, || client.send_to(peer.local_addr().unwrap(), b"seven b"));
        }
        server.expect_dropped("peer_not_permitted", 1, || peer.send_to(b"eleven byte", relayed).unwrap());
        assert_eq!(client.refresh(0).code(), 0);
        let session = server.log.wait_for_session("alice");
        assert_eq!(session["dropped"], "no_permission=3/21 peer_not_permitted=1/11");
        let mut quiet = Client::udp(server.udp4()).user("bob", "builder");
        quiet.allocate();
        assert_eq!(quiet.refresh(0).code(), 0);
        let session = server.log.wait_for_session("bob");
        assert!(session.get("dropped").is_none() && session.get("tenant").is_none(), "{session}");
    }
}
