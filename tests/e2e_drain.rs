//! Draining the real binary: calls go on to their end, no new client comes in, and then it is gone.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use test_support::e2e;
use test_support::e2e::client::request;
use test_support::e2e::server::{Directory, binary};
use test_support::e2e::{Client, Server, Settings, Wanted, Witness, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::attribute::ATTR_ALTERNATE_SERVER;
use throughway::wire::message::{Known, METHOD_ALLOCATE, Message};

fn draining(workers: u8, drain: &str) -> Settings {
    let mut settings = Settings::new(workers);
    settings.tables = format!("[drain]\non_term = true\n{drain}\n");
    settings
}

/// Waits until the drain has begun.
#[track_caller]
fn term(server: &Server) {
    server.signal("TERM");
    wait_for("a log line about the drain", || (!server.log.events("draining").is_empty()).then_some(()));
}

with_one_and_three_workers! {
    /// Calls on every worker and transport go on without loss while no new client comes in; the last one's end is the server's.
    fn calls_go_on_to_their_end_and_then_the_server_is_gone(workers: u8) {
        let mut server = draining(workers, "").start();
        let mut witnesses: Vec<Witness> = (0..workers)
            .map(|worker| Witness::start(Client::udp_on_worker(server.udp4(), worker, workers)))
            .collect();
        witnesses.push(Witness::start(Client::tcp(server.tcp4())));
        witnesses.push(Witness::start(Client::tcp(server.tcp6())));
        let calls = witnesses.len();
        assert_eq!((server.health("/readyz"), server.health("/healthz")), (200, 200));
        term(&server);
        assert_eq!((server.health("/readyz"), server.health("/healthz")), (503, 200));
        let began = server.log.event("draining");
        assert_eq!((&began["allocations"], &began["deadline_s"]), (&calls.into(), &3600.into()));
        for worker in 0..workers {
            let mut late = Client::udp_on_worker(server.udp4(), worker, workers).user("bob", "builder");
            late.binding();
            server.expect_refused("draining", 1, || {
                assert_eq!(late.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 486);
            });
        }
        assert_eq!(Client::tcp(server.tcp4()).request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 486);
        for witness in &witnesses {
            witness.see_progress();
        }
        assert!(server.is_running());
        let mut last: Option<Client> = None;
        for witness in witnesses {
            let (mut client, rounds) = witness.finish();
            assert!(rounds > 3);
            assert_eq!(client.refresh(600).code(), 0, "what lives may live on");
            if let Some(mut before) = last.replace(client) {
                assert_eq!(before.refresh(0).code(), 0);
            }
            assert!(server.is_running());
        }
        let mut last = last.unwrap();
        // Longer than it takes to look once: one call is enough to stay.
        std::thread::sleep(Duration::from_millis(500));
        assert!(server.is_running() && server.log.events("drained: the last allocation has ended").is_empty());
        assert_eq!(last.refresh(0).code(), 0);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
        let sessions = server.log.sessions();
        assert_eq!(sessions.len(), calls);
        assert!(sessions.iter().all(|session| session["reason"] == "refreshed"), "{}", server.log.text());
        assert_eq!(server.log.events("drained: the last allocation has ended").len(), 1);
    }

    /// Who still talks at the deadline is ended, and the records say so.
    fn the_deadline_ends_the_remaining_calls_with_their_records(workers: u8) {
        let settings = draining(workers, "deadline = \"1s\"").account("file", "usage.jsonl");
        let mut server = settings.start();
        let mut clients: Vec<Client> = (0..3_u8)
            .map(|number| Client::udp_on_worker(server.udp4(), number % workers, workers))
            .collect();
        for client in &mut clients {
            client.allocate();
        }
        server.signal("TERM");
        let began_at = Instant::now();
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
        assert!(began_at.elapsed() >= Duration::from_millis(900), "{:?}", began_at.elapsed());
        let said = server.log.events("drain.deadline reached: ending the remaining allocations");
        assert_eq!((said.len(), &said[0]["allocations"]), (1, &3.into()));
        let sessions = server.log.sessions();
        assert_eq!(sessions.len(), 3);
        assert!(sessions.iter().all(|session| session["reason"] == "shutdown"), "{}", server.log.text());
        let records = std::fs::read_to_string(server.directory().join("usage.jsonl")).unwrap();
        let stops = records.lines().filter(|line| line.contains("\"shutdown\"") && line.contains("\"stop\"")).count();
        assert_eq!(stops, 3, "{records}");
    }

    /// A second SIGTERM, or a SIGINT, is from somebody who does not want to wait.
    fn a_second_signal_ends_the_calls_at_once(workers: u8) {
        for signal in ["TERM", "INT"] {
            let mut server = draining(workers, "").start();
            let mut client = Client::udp(server.udp4());
            client.allocate();
            term(&server);
            assert_eq!(client.refresh(600).code(), 0);
            server.signal(signal);
            assert_eq!(server.wait().code(), Some(0));
            assert_eq!(server.log.event("session ended")["reason"], "shutdown");
            assert_eq!(server.log.event("stopping")["signal"], format!("SIG{signal}"));
        }
    }
}

#[test]
fn clients_are_sent_to_the_sibling_and_a_reload_can_change_it() {
    let sibling = Server::ordinary(1);
    let mut server = draining(3, &format!("alternate = [\"{}\", \"{}\"]", sibling.udp4(), sibling.udp6())).start();
    let mut kept = Client::udp(server.udp4());
    kept.allocate();
    let mut clients = [(Client::udp(server.udp4()), sibling.udp4()), (Client::udp(server.udp6()), sibling.udp6())];
    for (client, _) in &mut clients {
        client.challenge();
    }
    term(&server);
    // F-E2: a newcomer's first Allocate over either transport, before any challenge.
    let first = request(METHOD_ALLOCATE, &[Wanted::udp()], None);
    for (mut newcomer, expected) in [
        (Client::udp(server.udp4()), sibling.udp4()),
        (Client::udp(server.udp6()), sibling.udp6()),
        (Client::tcp(server.tcp4()), sibling.udp4()),
    ] {
        let response = newcomer.ask(&first);
        let message = Message::parse(&response.0).unwrap();
        assert_eq!(
            (response.code(), message.has(Known::MessageIntegrity), message.has(Known::Nonce)),
            (300, false, false)
        );
        let value = message.all(ATTR_ALTERNATE_SERVER).next().unwrap();
        assert_eq!(u16::from_be_bytes([value[2], value[3]]), expected.port());
    }
    for (mut client, expected) in clients {
        let response = client.request(METHOD_ALLOCATE, &[Wanted::udp()]);
        assert_eq!(response.code(), 300);
        let message = Message::parse(&response.0).unwrap();
        assert!(message.has(Known::MessageIntegrity), "a client that signs can check who sends it away");
        let value = message.all(ATTR_ALTERNATE_SERVER).next().unwrap();
        assert_eq!(u16::from_be_bytes([value[2], value[3]]), expected.port());
        // What the client then does: the same login there.
        let mut there = Client::udp(expected);
        there.allocate();
        assert_eq!(there.refresh(0).code(), 0);
    }
    assert_eq!((server.refused("redirected"), server.refused("draining")), (5, 0));
    // `check` tells what it is, instead of a quota.
    let uri = format!("turn:{}?transport=udp", server.udp4());
    let check = ["check", &uri, "--username", "alice", "--password", "wonderland"];
    let said = Command::new(env!("CARGO_BIN_EXE_throughway")).args(check).env_clear().output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("300 Try Alternate; it sends clients to {}", sibling.udp4())), "{text}");
    // Taken over in the middle of the drain: the deadline counts from its beginning.
    let said = server.reload(draining(3, "deadline = \"1s\""));
    assert!(said.contains("changes applied"), "{said}");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
    assert_eq!(server.log.sessions().len(), 1);
    assert_eq!(server.log.event("session ended")["reason"], "shutdown");
}

/// Another implementation hears the refusal at once, and works as before at the sibling.
#[test]
fn a_foreign_client_survives_being_sent_away() {
    let sibling = Server::ordinary(1);
    let server = draining(1, &format!("alternate = [\"{}\"]", sibling.udp4())).start();
    let mut kept = Client::udp(server.udp4());
    kept.allocate();
    term(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (address, is_granted) in [(server.udp4(), false), (sibling.udp4(), true)] {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let config = turn::client::ClientConfig {
                stun_serv_addr: address.to_string(),
                turn_serv_addr: address.to_string(),
                username: "alice".to_owned(),
                password: "wonderland".to_owned(),
                realm: String::new(),
                software: String::new(),
                rto_in_ms: 0,
                conn: Arc::new(socket),
                vnet: None,
            };
            let client = turn::client::Client::new(config).await.unwrap();
            client.listen().await.unwrap();
            let allocated = tokio::time::timeout(e2e::PATIENCE, client.allocate()).await;
            match allocated.expect("an answer, not a timeout") {
                Ok(relay) => {
                    assert!(is_granted);
                    webrtc_util::Conn::close(&relay).await.unwrap();
                }
                // It reads realm and nonce of whatever answers its first Allocate, and finds none.
                Err(error) => assert!(!is_granted, "{error}"),
            }
            client.close().await.unwrap();
        }
    });
    assert_eq!(server.refused("redirected"), 1);
}

#[test]
fn an_idle_server_drains_at_once_and_without_the_key_nothing_is_waited_for() {
    let mut idle = draining(3, "deadline = \"0s\"").start();
    idle.signal("TERM");
    assert_eq!(idle.wait().code(), Some(0));
    assert_eq!(idle.log.events("drained: the last allocation has ended").len(), 1);
    let mut server = Server::ordinary(1);
    let mut client = Client::udp(server.udp4());
    client.allocate();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log.events("draining").is_empty());
    assert_eq!(server.log.event("session ended")["reason"], "shutdown");
}

#[test]
fn the_service_manager_hears_how_many_are_left_and_that_it_shall_wait() {
    let directory = Directory::new();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(e2e::PATIENCE)).unwrap();
    let mut server = Server::start_as(Directory::new(), draining(1, "deadline = \"1h\""), |config| {
        let mut command = binary(config);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
        command
    });
    let mut client = Client::udp(server.udp4());
    client.allocate();
    term(&server);
    let hear = || {
        let mut buffer = [0; 500];
        let len = socket.recv(&mut buffer).expect("a message in time");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let mut heard = hear();
    while !heard.contains("draining") {
        heard = hear();
    }
    let start = "EXTEND_TIMEOUT_USEC=30000000\nSTATUS=draining: 1 allocation left, at most 3";
    assert!(heard.starts_with(start), "{heard}");
    // The watchdog is fed all the while, and nothing speaks of serving.
    let until = Instant::now() + Duration::from_millis(1300);
    let (mut fed, mut told) = (0, 0);
    while Instant::now() < until {
        match hear().as_str() {
            "WATCHDOG=1" => fed += 1,
            text if text.starts_with(start) => told += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(fed >= 3 && told >= 1, "{fed} {told}");
    assert_eq!(client.refresh(0).code(), 0);
    let mut heard = hear();
    while !heard.starts_with("STOPPING=1") {
        assert!(heard.contains("draining") || heard == "WATCHDOG=1", "{heard:?}");
        heard = hear();
    }
    assert_eq!(server.wait().code(), Some(0));
}
