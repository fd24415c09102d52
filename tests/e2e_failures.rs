//! Wrong passwords on real sockets: their network is silenced, neighbours and calls are not, and an operator lifts it.
//!
//! Loopback is exempt, so the clients are those that a proxy on loopback announces.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use test_support::e2e::client::request;
use test_support::e2e::server::Directory;
use test_support::e2e::{Client, PATIENCE, Server, Settings, Wanted, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::integrity::IntegrityKey;
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_REFRESH};

/// Wrong passwords a minute.
const FAILURES: usize = 6;

/// An answer that is due has come by then, or the next one has.
const SILENCE: Duration = Duration::from_millis(300);

fn start(workers: u8) -> Server {
    let directory = Directory::new();
    fs::write(directory.path().join("token"), "0123456789abcdef-of-the-operator\n").unwrap();
    let mut settings = Settings { proxy_from: vec!["127.0.0.1"], ..Settings::new(workers) };
    settings.http = "admin_token_file = \"token\"\n".to_owned();
    Server::start_in(directory, settings.limit("failures", "6"))
}

/// A client that the proxy announces.
fn client(server: &Server, from: &str) -> Client {
    let from: SocketAddr = from.parse().unwrap();
    let mut stream = TcpStream::connect(server.tcp4()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let own = if from.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    write!(stream, "PROXY {family} {} {own} {} 3478\r\n", from.ip(), from.port()).unwrap();
    Client::tcp_by(stream)
}

/// The code of the answer to an Allocate with a wrong password, if there is one.
fn guess(server: &Server, from: &str) -> Option<u16> {
    let mut client = client(server, from).user("alice", "wrong");
    client.challenge();
    let bytes = request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::family(true)], client.login.as_ref());
    client.send_raw(&bytes);
    client.answer_within(&bytes, SILENCE).map(|response| response.code())
}

fn silenced(server: &Server, from: &str) {
    for port in 1..=FAILURES {
        assert_eq!(guess(server, &format!("{from}:{port}")), Some(401), "{port}");
    }
    assert_eq!(guess(server, &format!("{from}:99")), None);
}

fn command(server: &Server, arguments: &[&str]) -> (i32, String) {
    let config = server.directory().join("config.toml");
    let url = format!("http://{}", server.http());
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    let output =
        command.args(arguments).args(["--url", &url, "--config", config.to_str().unwrap()]).env_clear().output();
    let output = output.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

with_one_and_three_workers! {
    fn a_guesser_is_silenced_its_neighbours_and_its_call_are_not_and_an_operator_forgives(workers: u8) {
        let server = start(workers);
        let mut call = client(&server, "198.51.100.7:1000");
        call.check_call();
        silenced(&server, "198.51.100.7");
        assert_eq!(guess(&server, "198.51.100.8:1"), None, "another address of the network");
        client(&server, "198.51.100.7:2000").check_call();
        client(&server, "198.51.100.9:2000").check_call();
        assert_eq!(guess(&server, "198.51.101.7:1"), Some(401), "another network");
        assert_eq!(call.refresh(600).code(), 0, "what is there goes on");
        // A wrong password on the five-tuple of a call is answered, and does no harm.
        let mut login = call.login.clone().unwrap();
        login.key = IntegrityKey::long_term(b"alice", &login.realm, b"wrong");
        assert_eq!(call.ask(&request(METHOD_REFRESH, &[Wanted::lifetime(600)], Some(&login))).code(), 401);
        assert_eq!(call.refresh(600).code(), 0);
        let scrape = server.scrape();
        assert_eq!(scrape.value("throughway_silenced_networks", &[]), 1);
        assert_eq!(scrape.value("throughway_dropped_packets_total", &[("reason", "over_failures")]), 2);

        let (code, text) = command(&server, &["forgive", "--list"]);
        assert!(code == 0 && text.starts_with("198.51.100.0/24  ") && text.contains(", 2 up to now"), "{text}");
        let text = wait_for("the refusals", || {
            let (_, text) = command(&server, &["sessions", "--refused", "198.51.100.8"]);
            text.contains("bad_integrity").then_some(text)
        });
        assert!(text.contains("throughway forgive 198.51.100.0/24") && text.contains("198.51.100.8:1"), "{text}");
        let (_, text) = command(&server, &["sessions", "--refused", "203.0.113.1"]);
        assert!(!text.contains("forgive"), "{text}");

        assert_eq!(command(&server, &["forgive", "203.0.113.1"]).0, 1, "none there has failed");
        let (code, text) = command(&server, &["forgive", "198.51.100.200", "--json"]);
        assert_eq!((code, serde_json::from_str::<Value>(&text).unwrap()["forgiven"][0].as_str()), (0, Some("198.51.100.0/24")));
        assert_eq!(command(&server, &["forgive", "--list"]), (0, "no network is silenced\n".to_owned()));
        assert_eq!(guess(&server, "198.51.100.8:1"), Some(401));
        let lines = wait_for("a line for each call", || {
            Some(server.log.events("failed credentials forgiven by an operator")).filter(|lines| lines.len() == 2)
        });
        assert_eq!((&lines[0]["networks"], &lines[1]["networks"]), (&json!(0), &json!(1)));
    }

    fn a_reload_changes_the_limit_and_loopback_is_exempt(workers: u8) {
        let mut server = start(workers);
        silenced(&server, "[2001:db8:0:1ff::7]");
        let mut own = Client::udp(server.udp4()).user("alice", "wrong");
        for _ in 0..3 * FAILURES {
            own.challenge();
            let bytes = request(METHOD_ALLOCATE, &[Wanted::udp()], own.login.as_ref());
            assert_eq!(own.ask(&bytes).code(), 401);
        }
        server.reload(server.settings.clone().limit("failures", "0"));
        assert_eq!(guess(&server, "[2001:db8:0:100::1]:1"), Some(401), "no limit");
    }
}
