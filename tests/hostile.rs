//! Hostile load on the real binary: attacks by a process of its own, and innocent calls and newcomers beside them that
//! must not notice.
//!
//! No case knows how fast the machine is. A packet of a call counts as slow by what the same calls met just before the
//! attack, alone and beside an attacker at the same lowest priority who takes processor time and nothing else.
//! `cargo test --test hostile -- --nocapture` shows the figures; `MEASURED_BINARY` measures another build.

#[path = "hostile/attacker.rs"]
mod attacker;
#[path = "hostile/attacks.rs"]
mod attacks;
#[path = "hostile/calls.rs"]
mod calls;
#[path = "hostile/newcomers.rs"]
mod newcomers;
#[path = "hostile/stand.rs"]
mod stand;

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use attacker::Order;
use newcomers::Question;
use stand::{Stand, settings};
use test_support::api::{KEY, key_table};
use test_support::e2e::tls::{Authority, NAME, VERSIONS};
use test_support::e2e::{Server, wait_for};
use test_support::with_one_and_three_workers;
use throughway::clock;
use throughway::credentials::claims::Claims;
use throughway::credentials::{Algorithm, Secret, SharedSecret, mint};

/// Attacks of this process are carried out one after the other: each measures time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one listener of `http.public`.
fn public(server: &Server) -> SocketAddr {
    let text = server.log.text();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let addresses = lines.filter_map(|line| line["address"].as_str()?.strip_prefix("http://")?.parse().ok());
    let mut others = addresses.filter(|address| *address != server.http());
    others.next().expect("a log line with the address of http.public")
}

/// A time-limited credential of the server's secret.
fn minted(user: &str) -> (String, String) {
    let secret = SharedSecret::new("main", Secret::new(*b"north-of-everything"), Algorithm::Sha1);
    let minted = mint(&secret, clock::unix_seconds().0, user, 3600, &Claims::default()).unwrap();
    (minted.username, minted.password)
}

/// The attacker's process enters here; without an order it is no test.
#[test]
fn attacker() {
    attacker::main();
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a server of this kind may take beyond what it took before the attack: pages of the allocator, buffers that are
/// filled for the first time.
const SLACK: u64 = 8 * MIB;

with_one_and_three_workers! {
    /// What anybody can send by UDP: requests, noise and ChannelData without an allocation.
    fn datagrams_of_strangers(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers), Question::usual());
        let round = stand.withstand(&Order::new("datagrams", stand.server.udp4(), 2.0).rate(10_000));
        assert!(round.units > 1_000, "{} datagrams were sent", round.units);
        assert!(round.resident < round.resident_before + SLACK);
    }

    /// F-A1. 20-byte requests as fast as they are taken, on streams without an allocation.
    fn pipelined_bindings(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers), Question::usual());
        let round = stand.withstand(&Order::new("bindings", stand.server.tcp4(), 2.0).count(16));
        assert!(round.units > 1_000, "{} requests were sent", round.units);
        assert!(round.resident < round.resident_before + SLACK);
    }

    /// F-A1. Little traffic, but as much at a time as a server reads at once.
    fn bursts_of_bindings(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers), Question::usual());
        let round = stand.withstand(&Order::new("binding bursts", stand.server.tcp4(), 2.0).count(20));
        assert!(round.units > 10_000, "{} requests were sent", round.units);
    }

    /// F-A1. The same, and connections that fill what wait for a worker: the watchdog must still be fed.
    fn bursts_and_silent_connections(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers), Question::usual());
        let order = Order::new("bursts and silence", stand.server.tcp4(), 5.0).count(60).rate(1_500);
        stand.withstand(&order.other(stand.server.tcp4()));
    }

    /// F-A1. One client with a credential, four bytes a frame.
    fn empty_channel_data_over_tcp(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers), Question::usual());
        let round = stand.withstand(&Order::new("empty ChannelData", stand.server.tcp4(), 2.0).count(4));
        assert!(round.units > 10_000, "{} frames were sent", round.units);
    }

    /// F-A2. More peers than any allocation may have, on many allocations of one credential.
    fn giant_create_permissions(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers), Question::usual());
        let order = Order::new("giant CreatePermission", stand.server.tcp4(), 2.0).count(60);
        stand.withstand(&order);
    }

    /// F-A9. Plain connections that say nothing, from one address.
    fn silent_connections(workers: u8) {
        let _alone = alone();
        const FILES: u32 = 1_024;
        let stand = Stand::start_with(settings(workers), Some(FILES), |_| Question::usual());
        let order = Order::new("silence", stand.server.tcp4(), 2.5).count(2_000).rate(800);
        let round = stand.withstand(&order);
        assert!(round.units > 300, "{} connections were tried", round.units);
        assert!(round.files < u64::from(FILES), "{} files are open", round.files);
    }

    /// F-A9. Many connections that each have sent most of a message.
    fn unfinished_messages(workers: u8) {
        let _alone = alone();
        const CONNECTIONS: u64 = 2_000;
        let stand = Stand::start(settings(workers), Question::usual());
        let round = stand.withstand(&Order::new("unfinished", stand.server.tcp4(), 2.5).count(CONNECTIONS as usize));
        let more = round.resident.saturating_sub(round.resident_before);
        assert!(more < CONNECTIONS * 4 * KIB + SLACK, "{} MiB more", more / MIB);
    }

    /// F-A8. TLS handshakes that are never begun, from one address: those of others are not late.
    fn half_open_handshakes(workers: u8) {
        let _alone = alone();
        let authority = Authority::new();
        let mut settings = settings(workers).limit("tls_half_open", "300");
        settings.tls = settings.tcp.clone();
        settings.certificates = vec![authority.write("first", &[NAME])];
        let handshake = Question::Handshake(authority.connector(VERSIONS[1], &[]));
        let stand = Stand::start(settings, vec![handshake, Question::Stream, Question::OwnHealth]);
        let round = stand.withstand(&Order::new("silence", stand.server.tls4(), 2.5).count(2_000).rate(700));
        assert!(round.units > 300, "{} connections were tried", round.units);
    }

    /// F-A7. Connections of one address that ask for nothing, on the listener of the credential endpoint.
    fn silent_http_connections(workers: u8) {
        let _alone = alone();
        let mut settings = settings(workers);
        settings.http = "public = [\"127.0.0.1:0\"]".to_owned();
        settings.tables = key_table("web", KEY, "");
        let stand = Stand::start_with(settings, None, |server| vec![Question::Health(public(server)), Question::OwnHealth]);
        let round = stand.withstand(&Order::new("silence", public(&stand.server), 2.0).count(600));
        assert!(round.units > 300, "{} connections were tried", round.units);
    }

    /// F-A12. Sessions of one user that begin and end without rest: the records of the others are complete.
    fn churn_of_one_user(workers: u8) {
        let _alone = alone();
        let stand = Stand::start(settings(workers).account("file", "usage.jsonl"), Question::usual());
        let (username, password) = minted("churner");
        let order = Order::new("churn", stand.server.udp4(), 2.0).user(&username, &password);
        let round = stand.withstand(&order);
        assert!(round.units > 50, "{} sessions were granted", round.units);
        // A burst of 100, and the rate for as long as the attack took.
        assert!(round.units as f64 <= 100.0 + 20.0 * round.seconds, "{} sessions in {:.1} s", round.units, round.seconds);
        let scrape = stand.server.scrape();
        assert_eq!(scrape.sum("throughway_accounting_lost_total"), 0);
        // Lines of refusals are lost first, by intent: a burst of them may fill their short queue on a slow machine.
        assert_eq!(scrape.value("throughway_events_lost_total", &[("event", "session")]), 0);
    }

    /// F-A6. Ports held under RESERVATION-TOKENs by one user: others find some.
    fn reservations_held(workers: u8) {
        let _alone = alone();
        let mut settings = settings(workers);
        settings.ports = Some(20_000..=20_999);
        let stand = Stand::start(settings, Question::usual());
        let (username, password) = minted("holder");
        let order = Order::new("reservations", stand.server.udp4(), 1.5).count(400).user(&username, &password);
        let round = stand.withstand(&order);
        assert!((1..=2).contains(&round.units), "{} reservations of one user", round.units);
    }

    /// F-A3. Packets without payload pay for what they take of the network.
    fn empty_datagrams(workers: u8) {
        let _alone = alone();
        const RATE: u32 = 50_000;
        let settings = settings(workers).limit("bandwidth_per_user", "\"1Mbit/s\"");
        let stand = Stand::start(settings, Question::usual());
        let (username, password) = minted("flooder");
        let order = Order::new("empty datagrams", stand.server.udp4(), 2.0).rate(RATE).user(&username, &password);
        let round = stand.withstand(&order);
        // 20 bytes of IPv4 and 8 of UDP each; the burst is a second's worth.
        let most = (1.0 + round.seconds) * 1e6 / 8.0 / 28.0;
        assert!(round.units as f64 <= most, "{} packets were relayed, {most:.0} fit", round.units);
        assert!(round.units > 100);
    }

    /// Packets without payload for clients over TCP that never read.
    fn unread_streams(workers: u8) {
        let _alone = alone();
        const CLIENTS: u64 = 3;
        let stand = Stand::start(settings(workers), Question::usual());
        let round = stand.withstand(&Order::new("unread", stand.server.tcp4(), 4.0).count(CLIENTS as usize));
        let more = round.resident.saturating_sub(round.resident_before);
        // limits.tcp_queue, and as much again for what keeps it in order.
        assert!(more < CLIENTS * 2 * 256 * KIB + SLACK, "{} MiB more", more / MIB);
    }

    /// F-A4. The log's reader hangs while sessions come and go.
    fn log_that_is_not_read(workers: u8) {
        let _alone = alone();
        let settings = settings(workers).limit("allocations_per_user", "10").account("file", "usage.jsonl");
        let mut stand = Stand::start(settings, Question::usual());
        stand.server.log.rest(true);
        let order = Order::new("sessions of many", stand.server.udp4(), 2.0).count(400);
        let order = order.user("", "north-of-everything");
        let round = stand.withstand(&order);
        assert_eq!(round.units, 400, "sessions were granted");
        let written = || std::fs::read_to_string(stand.server.directory().join("usage.jsonl")).unwrap_or_default();
        let ended = || written().lines().filter(|line| line.contains("\"visitor-")).filter(|line| line.contains("\"stop\"")).count();
        wait_for("a record of each session", || (ended() >= 400).then_some(()));
        stand.end();
    }
}
