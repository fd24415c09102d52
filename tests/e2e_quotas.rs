//! Quotas, rates, budgets, claims and closing times on real sockets: exact over all workers, and counted.

use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;
use test_support::e2e;
use test_support::e2e::tls::Authority;
use test_support::e2e::{Client, Origin, Server, Settings, Wanted, Witness, client, payload, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::address::Transport;
use throughway::credentials::claims::{ClaimSet, Claims, Grant, PeerScope, Transports};
use throughway::credentials::{Algorithm, Secret, SharedSecret, mint, password};
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_REFRESH, Method};

const SECRET: &str = "north-of-everything";
const CHANNEL: u16 = 0x4001;

fn unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Username and password of a credential with claims, as an issuer makes them with the library.
fn minted(user: &str, ttl: u64, grant: Grant) -> (String, String) {
    let mut secret = SharedSecret::new("main", Secret::new(SECRET.as_bytes()), Algorithm::Sha1);
    secret.claims = ClaimSet::LIMITS;
    let minted = mint(&secret, unix(), user, ttl, &Claims { grant, ..Claims::default() }).unwrap();
    (minted.username, minted.password)
}

/// Lines for the table of the last secret, which is the main one, and for tables behind it.
fn with_tables(workers: u8, tables: &str) -> Settings {
    let mut settings = Settings::new(workers).account("file", "usage.jsonl");
    settings.tables = tables.to_owned();
    settings
}

/// The stop records of a user.
fn stops(server: &Server, user: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(server.directory().join("usage.jsonl")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let records = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["type"] == "stop" && record["user"] == user).collect()
}

fn wait_for_stops(server: &Server, user: &str, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} usage records of {user}"), || {
        let stops = stops(server, user);
        (stops.len() >= count).then_some(stops)
    })
}

/// What a record says was dropped for a reason: packets and bytes.
fn dropped(record: &Value, reason: &str) -> (u64, u64) {
    let amount = &record["dropped"][reason];
    (amount["packets"].as_u64().unwrap_or(0), amount["bytes"].as_u64().unwrap_or(0))
}

fn try_allocate(client: &mut Client) -> u16 {
    client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code()
}

// ---- a thousand at once ----

const CROWD: usize = 1000;
const FIT: usize = 100;

/// More ports than a slice has, for as long as the guard lives.
fn many_ports() -> (RangeInclusive<u16>, UdpSocket) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        for start in [27_100, 27_400, 27_700] {
            if let Ok(guard) = UdpSocket::bind(("127.0.0.1", start)) {
                return (start + 2..=start + 299, guard);
            }
        }
        assert!(Instant::now() < deadline, "no 300 free ports within 27100 to 27999");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Eight threads, each of which sends all its requests before it reads the first answer; 0 stands for success.
fn ask_at_once(clients: &mut [Client], method: Method, wanted: &[Wanted]) -> Vec<u16> {
    let share = clients.len().div_ceil(8);
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .chunks_mut(share)
            .map(|clients| {
                scope.spawn(move || {
                    let ask = |client: &Client| client::request(method, wanted, client.login.as_ref());
                    let requests: Vec<Vec<u8>> = clients.iter().map(ask).collect();
                    for (client, request) in clients.iter_mut().zip(&requests) {
                        client.send_raw(request);
                    }
                    let answers = clients.iter_mut().zip(&requests);
                    answers.map(|(client, request)| client.answer_to(request).code()).collect::<Vec<u16>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// A thousand sockets, every fourth of them a TCP connection, ask for allocations at the same time, twice.
fn exactly_a_hundred_fit(workers: u8, key: &'static str, reason: &str, who: impl Fn(usize) -> (String, String)) {
    let (ports, _guard) = many_ports();
    let mut settings = with_tables(workers, "tenant = \"acme\"\n").limit("allocations_per_user", "0").limit(key, "100");
    settings = settings.limit("allocations_per_user_per_minute", "0");
    settings.ports = Some(ports);
    let server = settings.start();
    let mut clients: Vec<Client> = (0..CROWD)
        .map(|number| {
            let (username, password) = who(number);
            let client = match number % 4 {
                3 => Client::tcp(server.tcp4()),
                _ => Client::udp_on_worker(server.udp4(), number as u8 % workers, workers),
            };
            let mut client = client.user(&username, &password);
            client.challenge();
            client
        })
        .collect();
    for round in 1..=2 {
        let codes = server.expect_refused(reason, (CROWD - FIT) as u64, || {
            ask_at_once(&mut clients, METHOD_ALLOCATE, &[Wanted::udp()])
        });
        let count = |code| codes.iter().filter(|found| **found == code).count();
        assert_eq!((count(0), count(486)), (FIT, CROWD - FIT), "{key} in round {round}");
        assert_eq!(server.live(), FIT as u64);
        // One more of them is one too many, and the others are let in.
        let (username, password) = who(0);
        assert_eq!(try_allocate(&mut Client::udp(server.udp4()).user(&username, &password)), 486);
        let mut other = Client::udp(server.udp4());
        other.allocate();
        assert_eq!(other.refresh(0).code(), 0);
        let released = ask_at_once(&mut clients, METHOD_REFRESH, &[Wanted::lifetime(0)]);
        let due: Vec<u16> = codes.iter().map(|code| if *code == 0 { 0 } else { 437 }).collect();
        assert_eq!(released, due, "who had one gives it back");
        assert_eq!(server.live(), 0);
    }
}

with_one_and_three_workers! {
    fn of_a_thousand_allocations_of_one_user_a_hundred_fit(workers: u8) {
        exactly_a_hundred_fit(workers, "allocations_per_user", "quota_user", |number| {
            minted("carol", 3600 + number as u64 % 9, Grant::default())
        });
    }

    fn of_a_thousand_allocations_of_one_tenant_a_hundred_fit(workers: u8) {
        exactly_a_hundred_fit(workers, "allocations_per_tenant", "quota_tenant", |number| {
            minted(&format!("user-{number}"), 3600, Grant::default())
        });
    }

    fn of_a_thousand_allocations_with_one_credential_a_hundred_fit(workers: u8) {
        let credential = minted("carol", 3600, Grant::default());
        exactly_a_hundred_fit(workers, "allocations_per_credential", "quota_credential", |_| credential.clone());
    }
}

// ---- rates ----

/// What a flood came to.
struct Flood {
    sent: u64,
    arrived: u64,
    elapsed: Duration,
    /// How long the sender was at work; what it paused beyond a second, no bucket saves up.
    at_work: Duration,
}

/// A peer that can hold all that a second brings, so that nothing is lost but in the server.
fn patient_peer(like: std::net::SocketAddr) -> UdpSocket {
    let socket = peer(like);
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Sends twice as many packets per second as may pass, over all these clients by turns, until so many have arrived
/// and everything else was counted as dropped.
fn flood(server: &Server, clients: &mut [Client], far: &UdpSocket, size: usize, per_second: u64, wanted: u64) -> Flood {
    let reasons = ["over_bandwidth", "over_packets"];
    let dropped = || reasons.map(|reason| server.dropped(reason)).iter().sum::<u64>();
    let before = dropped();
    let packet = payload(3, size);
    let (mut sent, mut arrived, mut at_work) = (0, 0, Duration::ZERO);
    let drain = |arrived: &mut u64| {
        let mut buffer = [0; 2048];
        while let Ok(len) = far.recv(&mut buffer) {
            assert_eq!(len, size);
            *arrived += 1;
        }
    };
    let start = Instant::now();
    let mut last = start;
    while arrived < wanted {
        std::thread::sleep(Duration::from_millis(4));
        let gap = last.elapsed().min(Duration::from_secs(1));
        last = Instant::now();
        at_work += gap;
        for number in 0..10 + (gap.as_secs_f64() * 2.0 * per_second as f64) as u64 {
            clients[number as usize % clients.len()].send_channel(CHANNEL, &packet);
            sent += 1;
        }
        drain(&mut arrived);
        assert!(start.elapsed() < Duration::from_secs(60), "{arrived} of {wanted} arrived in a minute");
    }
    wait_for("everything to have arrived or been dropped", || {
        drain(&mut arrived);
        (arrived + dropped() - before >= sent).then_some(())
    });
    let elapsed = start.elapsed();
    drain(&mut arrived);
    assert_eq!(arrived + dropped() - before, sent, "what did not arrive was counted as dropped");
    Flood { sent, arrived, elapsed, at_work }
}

impl Flood {
    /// Never more than rate times time and one burst of a second; not much less either.
    #[track_caller]
    fn check(&self, per_second: u64) {
        // The server's clock counts milliseconds.
        let most = per_second as f64 * (1.0 + self.elapsed.as_secs_f64() + 0.002);
        let least = per_second as f64 * 0.7 * (1.0 + self.at_work.as_secs_f64());
        let arrived = self.arrived as f64;
        assert!(arrived <= most, "{arrived} arrived, at most {most} may in {:?}", self.elapsed);
        assert!(arrived >= least, "{arrived} arrived, {least} at least should in {:?}", self.at_work);
    }
}

/// With an allocation and a channel to a peer.
fn calling(mut client: Client, far: &UdpSocket) -> Client {
    client.allocate();
    client.bind(CHANNEL, far.local_addr().unwrap());
    client
}

with_one_and_three_workers! {
    /// Two allocations of a user on different workers share his bandwidth; another user on the same worker loses
    /// nothing meanwhile.
    fn a_users_bandwidth_holds_over_all_workers_and_takes_nothing_from_others(workers: u8) {
        let settings = with_tables(workers, "").limit("bandwidth_per_user", "\"4Mbit/s\"");
        let server = settings.start();
        let far = patient_peer(server.udp4());
        let mut clients = [0, workers - 1].map(|worker| {
            calling(Client::udp_on_worker(server.udp4(), worker, workers).minted(SECRET, "carol"), &far)
        });
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers).minted(SECRET, "dave"));
        // With the heads of IPv4 and UDP.
        let per_second = 4_000_000 / 8 / 1028;
        let flood = flood(&server, &mut clients, &far, 1000, per_second, 3 * per_second);
        flood.check(per_second);
        witness.see_progress();
        witness.finish();
        for client in &mut clients {
            assert_eq!(client.refresh(0).code(), 0);
        }
        let stops = wait_for_stops(&server, "carol", 2);
        let sum = |field: &str| stops.iter().map(|stop| stop[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("bytes_from_client"), sum("bytes_to_peers")), (flood.sent * 1000, flood.arrived * 1000));
        let packets: u64 = stops.iter().map(|stop| super::dropped(stop, "over_bandwidth").0).sum();
        assert_eq!(packets, flood.sent - flood.arrived);
        let line = server.log.wait_for_session("carol");
        let of_line = |field: &str| line[field].as_u64().unwrap();
        assert!(of_line("bytes_from_client") > of_line("bytes_to_peers"), "{line}");
    }

    /// Packets count whatever their size, and each allocation has its own.
    fn a_packet_rate_holds_for_each_allocation(workers: u8) {
        let server = with_tables(workers, "").limit("packet_rate_per_allocation", "300").start();
        let far = patient_peer(server.udp4());
        let mut clients = [calling(Client::udp_on_worker(server.udp4(), 0, workers), &far)];
        for size in [0, 700] {
            let flood = flood(&server, &mut clients, &far, size, 300, 600);
            // The second flood begins with what the first left of the bucket, which is little.
            if size == 0 {
                flood.check(300);
            } else {
                assert!(flood.arrived as f64 <= 300.0 * (1.0 + flood.elapsed.as_secs_f64() + 0.002));
            }
        }
        assert_eq!(clients[0].refresh(0).code(), 0);
        let stop = wait_for_stops(&server, "alice", 1).remove(0);
        let count = |field: &str| stop[field].as_u64().unwrap();
        assert_eq!(super::dropped(&stop, "over_packets").0, count("packets_from_client") - count("packets_to_peers"));
        assert!(super::dropped(&stop, "over_packets").0 > 0);
    }

    /// A rate that SIGHUP brings bites the session that lives, and lets go when it is taken back.
    fn a_reload_narrows_and_widens_the_session_that_lives(workers: u8) {
        let mut server = with_tables(workers, "").start();
        let mut sockets = Vec::new();
        let mut clients: Vec<Client> = ["carol", "dave"].iter().zip([0, workers - 1]).map(|(user, worker)| {
            let far = peer(server.udp4());
            let client = calling(Client::udp_on_worker(server.udp4(), worker, workers).minted(SECRET, user), &far);
            sockets.push(far);
            client
        }).collect();
        let all_pass = |clients: &mut [Client]| for (client, far) in clients.iter_mut().zip(&sockets) {
            for number in 0..50 {
                client.send_channel(CHANNEL, &payload(number, 100));
                assert_eq!(receive(far).0, payload(number, 100));
            }
        };
        all_pass(&mut clients);
        let wide = server.settings.clone();
        for (key, value, size, fits, reason) in [
            ("bandwidth_per_user", "\"8kbit/s\"", 72, 10, "over_bandwidth"),
            ("bandwidth_per_allocation", "\"8kbit/s\"", 222, 4, "over_bandwidth"),
            ("packet_rate_per_user", "5", 9, 5, "over_packets"),
            ("packet_rate_per_allocation", "7", 0, 7, "over_packets"),
        ] {
            server.reload(wide.clone().limit(key, value));
            for (client, far) in clients.iter_mut().zip(&sockets) {
                // No more than a burst fits; a slow machine may give time for a few more.
                let before = (Instant::now(), server.dropped(reason));
                let dropped = wait_for("a packet beyond the limit", || {
                    for _ in 0..fits {
                        client.send_channel(CHANNEL, &payload(1, size));
                    }
                    Some(server.dropped(reason) - before.1).filter(|dropped| *dropped > 0)
                });
                assert!(dropped > 0);
                far.set_read_timeout(Some(e2e::SILENCE)).unwrap();
                let mut arrived = 0;
                while far.recv(&mut [0; 2048]).is_ok() {
                    arrived += 1;
                }
                far.set_read_timeout(Some(e2e::PATIENCE)).unwrap();
                let most = fits as f64 * (1.0 + before.0.elapsed().as_secs_f64());
                // The packets before may still be in the bucket: fifty are a hundredth of its second.
                assert!(arrived + 1 >= fits && f64::from(arrived) <= most, "{key}: {arrived} of {fits} in {:?}", before.0.elapsed());
            }
            server.reload(wide.clone());
            all_pass(&mut clients);
        }
        // No client was sent away for it.
        for client in &mut clients {
            assert_eq!(client.refresh(600).code(), 0);
        }
    }
}

// ---- budgets ----

with_one_and_three_workers! {
    /// A credential's bytes are spent to the byte, by its sessions on all workers together; then they end, and no
    /// other of it begins.
    fn a_budget_is_spent_to_the_byte_and_ends_the_sessions(workers: u8) {
        let server = with_tables(workers, "").limit("bytes_per_credential", "\"100112B\"").start();
        let far = peer(server.udp4());
        let (username, password) = minted("carol", 3600, Grant::default());
        let mut clients = [0, workers - 1].map(|worker| {
            calling(Client::udp_on_worker(server.udp4(), worker, workers).user(&username, &password), &far)
        });
        let pass = |client: &mut Client, size: usize| {
            client.send_channel(CHANNEL, &payload(1, size));
            let (bytes, relayed) = receive(&far);
            assert_eq!(bytes.len(), size);
            relayed
        };
        let relayed = pass(&mut clients[0], 50_000);
        pass(&mut clients[1], 20_000);
        // Both ways count together, with 28 bytes for the heads of each of these four packets.
        far.send_to(&payload(2, 29_999), relayed).unwrap();
        clients[0].expect_data(Origin::Channel(CHANNEL), &payload(2, 29_999));
        pass(&mut clients[0], 1);
        server.expect_dropped("over_budget", 1, || clients[0].send_channel(CHANNEL, b"x"));
        wait_for("the end of the first session", || (server.live() == 1).then_some(()));
        // The other has nothing left either, and ends with its next packet.
        server.expect_dropped("over_budget", 1, || clients[1].send_channel(CHANNEL, b"yz"));
        wait_for("the end of the second session", || (server.live() == 0).then_some(()));
        for client in &mut clients {
            assert_eq!(server.expect_refused("quota_bytes", 1, || try_allocate(client)), 486);
        }
        let stops = wait_for_stops(&server, "carol", 2);
        let count = |at: usize, field: &str| stops[at][field].as_u64().unwrap();
        let fields = ["bytes_from_client", "bytes_to_peers", "bytes_from_peers", "bytes_to_client"];
        assert_eq!(fields.map(|field| count(0, field)), [50_002, 50_001, 29_999, 29_999]);
        assert_eq!(fields.map(|field| count(1, field)), [20_002, 20_000, 0, 0]);
        assert_eq!([0, 1].map(|at| super::dropped(&stops[at], "over_budget")), [(1, 1), (1, 2)]);
        assert!(stops.iter().all(|stop| stop["reason"] == "budget"), "{stops:?}");
        let charged = ["wire_bytes_to_peers", "wire_bytes_to_client"].map(|field| count(0, field) + count(1, field));
        assert_eq!(charged.iter().sum::<u64>(), 100_112, "F-A3: records have what was charged");
        let ended = server.scrape().value("throughway_allocations_ended_total", &[("reason", "budget")]);
        assert_eq!(ended, 2);
        // Another credential of the same user has its own.
        let (username, password) = minted("carol", 1800, Grant::default());
        calling(Client::udp(server.udp4()).user(&username, &password), &far);
    }
}

// ---- claims ----

with_one_and_three_workers! {
    /// The transports claim over each of them; what is not allowed hears a signed 403.
    fn claims_are_honoured_over_udp_tcp_and_tls(workers: u8) {
        let authority = Authority::new();
        let mut settings = authority.settings(workers);
        settings = settings.account("file", "usage.jsonl");
        settings.tables = "claims = true\n".to_owned();
        let server = settings.start();
        let open = |transport| match transport {
            Transport::Udp => Client::udp(server.udp4()),
            Transport::Tcp => Client::tcp(server.tcp4()),
            Transport::Tls => authority.client(server.tls4()),
        };
        for allowed in Transport::ALL {
            for transport in Transport::ALL {
                let grant = Grant { transports: Some(Transports::of(&[allowed])), ..Grant::default() };
                let (username, password) = minted("carol", 600, grant);
                let mut client = open(transport).user(&username, &password);
                if transport == allowed {
                    client.allocate();
                } else {
                    assert_eq!(server.expect_refused("transport_denied", 1, || try_allocate(&mut client)), 403);
                }
            }
        }
        for transport in Transport::ALL {
            let far = peer(server.udp4());
            let near = "127.0.0.1/32".parse().unwrap();
            let scope = Grant { peers: vec![PeerScope::Prefixes([near].into())], ..Grant::default() };
            let user = transport.name();
            let (username, password) = minted(user, 600, Grant { bytes: Some(1028), ..scope });
            let mut client = calling(open(transport).user(&username, &password), &far);
            let elsewhere = "127.0.0.2:9".parse().unwrap();
            assert_eq!(server.expect_refused("peer_out_of_scope", 1, || client.try_permit(elsewhere)), 403);
            assert_eq!(server.expect_refused("peer_out_of_scope", 1, || client.try_bind(CHANNEL + 1, elsewhere)), 403);
            // Of 1,000 bytes behind the heads of a packet 999 pass; of two more none.
            client.send_channel(CHANNEL, &payload(1, 999));
            assert_eq!(receive(&far).0, payload(1, 999));
            let live = server.live();
            server.expect_dropped("over_budget", 1, || client.send_channel(CHANNEL, b"xy"));
            wait_for("the end of the session", || (server.live() == live - 1).then_some(()));
            // Where the budget is used up no client comes in by another way either.
            let mut again = open(transport).user(&username, &password);
            assert_eq!(server.expect_refused("quota_bytes", 1, || try_allocate(&mut again)), 486);
            // A different claim makes it a different credential, while the user stays the same.
            let (username, password) = minted(user, 600, Grant { bytes: Some(2000), ..Grant::default() });
            open(transport).user(&username, &password).allocate();
            let stop = wait_for_stops(&server, user, 1).remove(0);
            assert_eq!((&stop["bytes_to_peers"], &stop["reason"]), (&Value::from(999), &Value::from("budget")));
        }
    }

    /// The closing time in a credential ends its sessions, and nothing begins after it.
    fn a_closing_time_closes_and_keeps_closed(workers: u8) {
        let mut server = with_tables(workers, "claims = true\n").start();
        let closes_at = unix() + 3;
        let (username, password) = minted("carol", 600, Grant { closes_at: Some(closes_at), ..Grant::default() });
        let mut client = Client::udp_on_worker(server.udp4(), workers - 1, workers).user(&username, &password);
        client.allocate();
        assert_eq!(client.refresh(600).code(), 0);
        assert_eq!(server.live(), 1);
        let stop = wait_for_stops(&server, "carol", 1).remove(0);
        assert!(unix() >= closes_at, "not before its time");
        assert_eq!(stop["reason"], "closing_time");
        assert_eq!(server.expect_refused("closing_time", 1, || try_allocate(&mut client)), 403);
        // Claims that the secret does not read any more are part of a user id.
        let settings = Settings { tables: String::new(), ..server.settings.clone() };
        server.reload(settings);
        client.allocate();
    }
}

#[test]
fn claims_that_nobody_knows_are_refused() {
    let server = with_tables(1, "claims = [\"bytes\"]\n").start();
    let secret = SharedSecret::new("main", Secret::new(SECRET.as_bytes()), Algorithm::Sha1);
    for (json, code) in [
        (r#"{"q":5000}"#, 0),
        (r#"{"q":5000,"z":1}"#, 403),
        (r#"{"q":5000,"q":9}"#, 403),
        (r#"{"q":0}"#, 403),
        (r#"{"b":5000}"#, 403),
        ("", 403),
    ] {
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json);
        let username = format!("{}:carol~{text}", unix() + 600);
        let password = password(&secret, username.as_bytes());
        let mut client = Client::udp(server.udp4()).user(&username, password.as_str());
        assert_eq!(
            server.expect_refused("bad_claims", u64::from(code == 403), || try_allocate(&mut client)),
            code,
            "{json}"
        );
    }
}

// ---- expiry and age ----

with_one_and_three_workers! {
    /// What its credential's end, and its own age, do to a session that is refreshed all the time.
    fn sessions_end_with_their_credential_or_of_age(workers: u8) {
        let auth = "[auth]\non_expiry = \"close\"\nexpiry_grace = \"1s\"\nmax_session = \"6s\"\n";
        let server = with_tables(workers, auth).start();
        let begin = unix();
        let (username, password) = minted("carol", 2, Grant::default());
        let mut short = Client::udp_on_worker(server.udp4(), 0, workers).user(&username, &password);
        let mut long = Client::udp_on_worker(server.udp4(), workers - 1, workers).minted(SECRET, "dave");
        for client in [&mut short, &mut long] {
            client.allocate();
            assert_eq!(client.refresh(600).lifetime(), 600);
        }
        let stop = wait_for_stops(&server, "carol", 1).remove(0);
        assert_eq!(stop["reason"], "credential_expired");
        assert!(unix() >= begin + 3, "a second after its end, and not before");
        assert_eq!(server.expect_refused("expired", 1, || try_allocate(&mut short)), 401);
        let stop = wait_for_stops(&server, "dave", 1).remove(0);
        assert_eq!(stop["reason"], "max_session");
        assert!(unix() >= begin + 5, "six seconds after its begin, and not before");
        // Only its session was too old.
        long.allocate();
        for reason in ["credential_expired", "max_session"] {
            assert_eq!(server.scrape().value("throughway_allocations_ended_total", &[("reason", reason)]), 1, "{reason}");
        }
    }
}

// ---- secrets ----

#[test]
fn a_secret_for_verifying_lets_in_and_one_past_its_end_does_not() {
    let tables = "verify_only = true\n[[auth.secrets]]\nid = \"old\"\nvalue = \"south-of-everything\"\nnot_after = \"2020-12-31\"\n\
        [[auth.secrets]]\nid = \"new\"\nvalue = \"west-of-everything\"\n";
    let mut server = with_tables(3, tables).start();
    Client::udp(server.udp4()).minted(SECRET, "carol").allocate();
    let mut new = Client::udp(server.udp4()).minted("west-of-everything", "dave");
    new.allocate();
    let mut old = Client::udp(server.udp4()).minted("south-of-everything", "erin");
    assert_eq!(server.expect_refused("secret_retired", 1, || try_allocate(&mut old)), 401);
    // The end of a secret that comes with a reload drops no call.
    let tables = tables.replace("\"west-of-everything\"\n", "\"west-of-everything\"\nnot_after = \"2020-12-31\"\n");
    let settings = Settings { tables: tables.replace("verify_only = true", ""), ..server.settings.clone() };
    server.reload(settings);
    assert_eq!(new.refresh(600).code(), 0);
    let mut late = Client::udp(server.udp4()).minted("west-of-everything", "dave");
    assert_eq!(server.expect_refused("secret_retired", 1, || try_allocate(&mut late)), 401);
    assert_eq!(server.live(), 2);
}
