//! The credential endpoint in the test's own process, with a clock of the test's choice, and a client that says what it is told.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use throughway::address::Transport;
use throughway::api::Bound;
use throughway::api::rest::counts::IssueCounts;
use throughway::api::rest::refused::IssueRefused;
use throughway::api::rest::{self, Exposure, Rest};
use throughway::api::uris;
use throughway::config::Config;
use throughway::config::checked::PublicListen;
use throughway::time::{Now, Ticks, UnixSeconds};
use throughway::turn_uri::TurnUri;

/// How long anything may take; generous, because machines are shared.
const PATIENCE: Duration = Duration::from_secs(10);

pub const KEY: &str = "open-sesame";

/// 2026-11-21 05:30:00 UTC.
pub const START: u64 = 1_795_239_000;

pub fn digest(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn key_table(name: &str, key: &str, more: &str) -> String {
    format!("[[http.keys]]\nname = {name:?}\nsha256 = \"{}\"\n{more}\n", digest(key))
}

/// The endpoint in this process.
pub struct Endpoint {
    pub address: SocketAddr,
    pub rest: Arc<Rest>,
    pub counts: Arc<IssueCounts>,
    runtime: tokio::runtime::Runtime,
}

pub fn config(http: &str, tables: &str) -> Config {
    let text = format!("{http}\n{tables}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n");
    Config::from_toml("c.toml", &text).unwrap_or_else(|error| panic!("{error}"))
}

pub fn some_uris() -> Vec<TurnUri> {
    let listeners =
        [(Transport::Tcp, "192.0.2.7:443"), (Transport::Udp, "[2001:db8::7]:3478"), (Transport::Udp, "192.0.2.7:3478")];
    uris::of_listeners(
        listeners.map(|(transport, address)| (transport, address.parse().unwrap(), Arc::default())),
        &uris::UriNames::default(),
        Some,
    )
    .for_tenant(None)
    .0
}

pub const fn start() -> Now {
    Now { ticks: Ticks(1_000_000), unix: UnixSeconds(START) }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

impl Endpoint {
    pub fn new(http: &str, tables: &str) -> Self {
        Self::with(&config(http, tables), some_uris(), &Exposure::Public, start)
    }

    pub fn ordinary() -> Self {
        Self::new("", &key_table("web", KEY, ""))
    }

    pub fn with(config: &Config, uris: Vec<TurnUri>, exposure: &Exposure, clock: fn() -> Now) -> Self {
        let counts = Arc::new(IssueCounts::default());
        let runtime = runtime();
        // Keys of a login are fetched by a task of its own.
        let entered = runtime.enter();
        let rest = Arc::new(Rest::new(config, uris, Arc::clone(&counts), clock));
        drop(entered);
        let listen =
            PublicListen { address: "127.0.0.1:0".parse().unwrap(), is_https: false, proxy_from: Arc::default() };
        let bound = Bound::bind_public(&listen).unwrap();
        let address = bound.address().unwrap();
        runtime.spawn(bound.serve(rest::router(&rest, exposure), None));
        Self { address, rest, counts, runtime }
    }

    pub fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        ask(self.address, method, target, headers, body)
    }

    /// As a reload does it.
    pub fn reconfigure(&self, config: &Config) {
        let _entered = self.runtime.enter();
        self.rest.reconfigure(config, some_uris());
    }

    pub fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[("Authorization", &format!("Bearer {KEY}"))], "")
    }

    /// How often this was the reason since the last look.
    pub fn refused(&self, refused: &IssueRefused) -> u64 {
        self.counts.refused(refused)
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let head = lines.map(|line| line.split_once(": ").unwrap());
        let head = head.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, head, body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status, head and body as a golden file shows them; the date is the only thing that moves.
    pub fn golden(&self) -> String {
        let mut head: Vec<String> = self
            .head
            .iter()
            .filter(|(name, _)| !["date", "connection"].contains(&name.as_str()))
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect();
        head.sort();
        format!("{}\n{}\n{}\n", self.status, head.concat(), self.body)
    }
}

pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        text += "Host: turn.example.org\r\n";
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

pub fn ask(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    Answer::parse(&send(address, request(method, target, headers, body).as_bytes()))
}

/// Sends bytes and reads until the server closes; a reset after an early answer is fine.
pub fn send(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    read_all(&mut stream)
}

pub fn read_all(stream: &mut impl std::io::Read) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..read]);
    }
    answer
}

pub const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
pub const JSON: (&str, &str) = ("Content-Type", "application/json");
pub const BEARER: (&str, &str) = ("Authorization", "Bearer open-sesame");
pub const WRONG: (&str, &str) = ("Authorization", "Bearer nonsense");
/// AC0123:open-sesame
pub const BASIC: (&str, &str) = ("Authorization", "Basic QUMwMTIzOm9wZW4tc2VzYW1l");
