//! Operating the real binary: reload, stop, metrics, health, log, and a configuration that is wrong.

use std::net::{TcpListener, UdpSocket};

use test_support::e2e;
use test_support::e2e::client::request;
use test_support::e2e::server::{Directory, Slice, run_to_end};
use test_support::e2e::{
    Client, Origin, SILENCE, Server, Settings, Wanted, Witness, http, payload, peer, receive, wait_for,
};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_ALLOCATE;

const CHANNEL: u16 = 0x4001;

/// Code of a complete Allocate.
fn allocate_code(mut client: Client) -> u16 {
    let code = client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code();
    if code == 0 {
        assert_eq!(client.refresh(0).code(), 0);
    }
    code
}

with_one_and_three_workers! {
    /// SIGHUP: users, secrets and limits change, and not one packet of a live call is lost.
    fn a_reload_changes_users_secrets_and_limits_under_a_live_call(workers: u8) {
        let mut settings = Settings::new(workers).limit("allocations_per_user", "1");
        settings.users = vec![("alice", "wonderland")];
        let mut server = settings.clone().start();
        // Time-limited, of a secret that goes; and of a user that goes.
        let by_secret = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers).minted("north-of-everything", "carol"));
        let by_name = Witness::start(Client::tcp(server.tcp4()));
        assert_eq!(allocate_code(Client::udp(server.udp4()).user("bob", "builder")), 401);
        assert_eq!(allocate_code(Client::udp(server.udp4()).minted("south-of-everything", "dave")), 401);
        assert_eq!(allocate_code(Client::udp(server.udp4()).minted("north-of-everything", "carol")), 486);
        by_secret.see_progress();
        settings.users = vec![("bob", "builder")];
        settings.secrets = vec![("new", "south-of-everything")];
        settings = settings.limit("allocations_per_user", "2");
        let said = server.reload(settings);
        assert!(said.contains("changes applied"), "{said}");
        by_secret.see_progress();
        by_name.see_progress();
        // The workers take it over one message later; each of them is asked.
        for worker in 0..workers {
            let on_worker = || Client::udp_on_worker(server.udp4(), worker, workers);
            wait_for("the new user on every worker", || {
                (allocate_code(on_worker().user("bob", "builder")) == 0).then_some(())
            });
            assert_eq!(allocate_code(on_worker()), 401, "alice is gone");
            assert_eq!(allocate_code(on_worker().minted("north-of-everything", "erin")), 401, "the secret is gone");
            assert_eq!(allocate_code(on_worker().minted("south-of-everything", "dave")), 0);
            assert_eq!(allocate_code(on_worker().minted("south-of-everything", "carol")), 0, "the second of carol's two");
        }
        // The live ones of a removed user and of a removed secret go on, and may be refreshed.
        for witness in [by_secret, by_name] {
            let (mut client, rounds) = witness.finish();
            assert!(rounds > 10);
            assert_eq!(client.refresh(600).code(), 0);
            let peer = peer(client.local());
            client.permit(peer.local_addr().unwrap());
            client.send_to(peer.local_addr().unwrap(), b"still mine");
            assert_eq!(receive(&peer).0, b"still mine");
            assert_eq!(client.refresh(0).code(), 0);
        }
    }

    /// A peer that is denied now is denied to those who talk to it already; others are not concerned.
    fn a_reload_closes_what_it_denies(workers: u8) {
        let settings = Settings::new(workers);
        let mut server = settings.clone().start();
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), workers - 1, workers));
        let mut client = Client::udp_on_worker(server.udp4(), 0, workers);
        let relayed = client.allocate();
        let denied = UdpSocket::bind("127.0.0.44:0").unwrap();
        let at = denied.local_addr().unwrap();
        denied.set_read_timeout(Some(e2e::PATIENCE)).unwrap();
        client.bind(CHANNEL, at);
        client.send_channel(CHANNEL, b"before");
        assert_eq!(receive(&denied), (b"before".to_vec(), relayed));
        denied.send_to(b"back", relayed).unwrap();
        client.expect_data(Origin::Channel(CHANNEL), b"back");
        server.reload(Settings { deny: vec!["127.0.0.44/32"], ..settings.clone() });
        wait_for("403 for the denied peer", || (client.try_permit(at) == 403).then_some(()));
        let unbound = server.dropped("unbound_channel");
        client.send_channel(CHANNEL, b"after");
        client.send_to(at, b"after");
        denied.send_to(b"after", relayed).unwrap();
        wait_for("three drops", || {
            let all = ["no_permission", "peer_not_permitted"].map(|reason| server.dropped(reason));
            (all == [1, 1] && server.dropped("unbound_channel") == unbound + 1).then_some(())
        });
        e2e::peer::expect_silence(&denied);
        assert_eq!(client.data_within(SILENCE), None);
        assert_eq!(client.refresh(600).code(), 0, "the allocation itself goes on");
        let other = peer(relayed);
        client.permit(other.local_addr().unwrap());
        client.send_to(other.local_addr().unwrap(), b"others");
        assert_eq!(receive(&other).0, b"others");
        server.reload(settings);
        wait_for("the peer allowed again", || (client.try_permit(at) == 0).then_some(()));
        client.send_to(at, b"again");
        assert_eq!(receive(&denied).0, b"again");
        witness.finish();
    }

    /// A wrong file changes nothing, and the log names the place.
    fn a_reload_of_a_wrong_file_keeps_the_old_settings(workers: u8) {
        let mut server = Server::ordinary(workers);
        let witness = Witness::start(Client::udp(server.udp4()));
        let good = server.settings.text(&server.ports.range);
        for (bad, place) in [
            (good.replace("[limits]", "[limits]\nallocations = \"many\""), "limits.allocations"),
            (good.replace("[limits]", "[lmits]"), "lmits"),
            (good.replace("[log]", "[log"), "config.toml"),
            (good.replace("[peers]", "[tls]\ncertificate = \"x\"\n[peers]"), "tls"),
        ] {
            assert_ne!(bad, good);
            let said = server.reload_text(&bad);
            assert!(said.contains("the old one stays"), "{said}");
            assert!(said.contains(place) && said.contains("config.toml"), "{place}: {said}");
            assert_eq!(allocate_code(Client::udp(server.udp4())), 0);
        }
        let line = good.lines().position(|line| line == "[limits]").unwrap() + 2;
        let said = server.reload_text(&good.replace("[limits]", "[limits]\nalocations = 5"));
        assert!(said.contains(&format!("config.toml:{line}")), "line {line}: {said}");
        assert!(server.is_running());
        let said = server.reload_text(&good.replace("workers = ", "realm = \"other\"\nworkers = "));
        assert!(said.contains("realm") && said.contains("next start"), "{said}");
        assert_eq!(allocate_code(Client::udp(server.udp4())), 0);
        witness.finish();
    }

    /// However often it comes, a reload costs no call a packet.
    fn many_reloads_in_a_row_lose_nothing(workers: u8) {
        let mut server = Server::ordinary(workers);
        let witnesses = [Witness::start(Client::udp(server.udp4())), Witness::start(Client::tcp(server.tcp4()))];
        for round in 0..20 {
            let deny = if round % 2 == 0 { vec!["127.0.0.44/32"] } else { Vec::new() };
            let settings = Settings { deny, ..server.settings.clone() };
            let said = server.reload(settings);
            assert!(said.contains("changes applied"), "{said}");
        }
        for witness in witnesses {
            witness.finish();
        }
    }

    /// SIGHUP changes the log level: the quiet server starts to tell.
    fn a_reload_changes_the_log_level(workers: u8) {
        let mut server = Server::ordinary(workers);
        assert_eq!(allocate_code(Client::udp(server.udp4())), 0);
        assert_eq!(server.log.events("allocation created").len(), 0);
        let settings = Settings { level: "debug", ..server.settings.clone() };
        server.reload(settings);
        assert_eq!(allocate_code(Client::udp(server.udp4()).user("mallory", "x")), 401);
        assert_eq!(allocate_code(Client::udp(server.udp4())), 0);
        server.log.wait_for_line("unknown_user");
        server.log.wait_for_line("allocation created");
    }

    /// SIGTERM and SIGINT: exit code 0, and a line for each live session.
    fn a_stop_writes_a_line_for_each_live_session(workers: u8) {
        for signal in ["TERM", "INT"] {
            let mut server = Server::ordinary(workers);
            let mut clients = Vec::new();
            for number in 0..6_u8 {
                let mut client = match number % 2 {
                    0 => Client::udp_on_worker(server.udp4(), number / 2 % workers, workers),
                    _ => Client::tcp(server.tcp6()),
                };
                let relayed = client.allocate();
                let peer = peer(relayed);
                client.bind(CHANNEL, peer.local_addr().unwrap());
                client.send_channel(CHANNEL, &[1; 100]);
                receive(&peer);
                clients.push((client, relayed));
            }
            server.signal(signal);
            let status = server.wait();
            assert_eq!(status.code(), Some(0), "{signal}: {}", server.log.text());
            let sessions = server.log.sessions();
            assert_eq!(sessions.len(), 6, "{signal}: {}", server.log.text());
            for (client, relayed) in &clients {
                let relayed = relayed.to_string();
                let session = sessions.iter().find(|session| session["relayed"] == relayed.as_str()).unwrap();
                assert_eq!(session["reason"], "shutdown");
                assert_eq!(session["client"], client.local().to_string());
                assert_eq!(session["bytes_to_peers"], 100);
            }
            drop(clients);
        }
    }

    /// The sums of `/metrics` are the sums of the sessions' lines, byte for byte, drops included.
    fn metrics_are_the_sums_of_the_session_lines(workers: u8) {
        let mut server = Settings::new(workers).limit("tcp_queue", "\"65556B\"").start();
        let mut clients = Vec::new();
        for number in 0..9_u32 {
            let mut client = match number % 3 {
                0 => Client::tcp(server.tcp4()),
                _ => Client::udp_on_worker(server.udp4(), (number % u32::from(workers)) as u8, workers),
            };
            let relayed = client.allocate();
            let (bound, permitted, stranger) = (peer(relayed), peer(relayed), UdpSocket::bind("127.0.0.99:0").unwrap());
            client.bind(CHANNEL, bound.local_addr().unwrap());
            for round in 0..20_u32 {
                let bytes = payload(round, (round * 71 % 1400 + number) as usize);
                client.send_channel(CHANNEL, &bytes);
                assert_eq!(receive(&bound).0, bytes);
                client.send_to(permitted.local_addr().unwrap(), &bytes);
                assert_eq!(receive(&permitted).0, bytes);
                bound.send_to(&bytes, relayed).unwrap();
                client.expect_data(Origin::Channel(CHANNEL), &bytes);
                permitted.send_to(&bytes, relayed).unwrap();
                client.expect_data(Origin::Peer(permitted.local_addr().unwrap()), &bytes);
                // Comes in and goes nowhere.
                stranger.send_to(&bytes, relayed).unwrap();
                client.send_channel(CHANNEL + 1, &bytes);
                client.send_to("127.0.0.98:9".parse().unwrap(), &bytes);
            }
            if number % 3 != 0 {
                bound.send_to(&payload(1, 65_507), relayed).unwrap();
            }
            // The relay takes datagrams of one socket in order, so this one's echo closes the account.
            bound.send_to(b"end", relayed).unwrap();
            client.expect_data(Origin::Channel(CHANNEL), b"end");
            client.binding();
            clients.push(client);
        }
        let (ended, live) = clients.split_at_mut(4);
        for client in ended {
            assert_eq!(client.refresh(0).code(), 0);
        }
        let scrape = server.scrape();
        assert_eq!(scrape.sum("throughway_allocations"), live.len() as u64);
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
        let sessions = server.log.sessions();
        assert_eq!(sessions.len(), 9);
        for (way, side, key) in [
            ("received", "clients", "from_client"),
            ("sent", "peers", "to_peers"),
            ("received", "peers", "from_peers"),
            ("sent", "clients", "to_client"),
        ] {
            for unit in ["packets", "bytes"] {
                let name = format!("throughway_payload_{unit}_total");
                let counted = scrape.value(&name, &[("way", way), ("side", side)]);
                let told: u64 = sessions.iter().map(|line| line[format!("{unit}_{key}")].as_u64().unwrap()).sum();
                assert_eq!(counted, told, "{unit} {way} {side}");
                assert!(counted > 0);
            }
        }
        // What came in went out or was dropped under a name.
        let total = |way, side| scrape.value("throughway_payload_packets_total", &[("way", way), ("side", side)]);
        let dropped = |reason| scrape.value("throughway_dropped_packets_total", &[("reason", reason)]);
        assert_eq!((dropped("unbound_channel"), dropped("no_permission")), (180, 180));
        assert_eq!((dropped("peer_not_permitted"), dropped("too_big")), (180, 6));
        assert_eq!(total("received", "clients"), total("sent", "peers") + 360);
        assert_eq!(total("received", "peers"), total("sent", "clients") + 186);
    }

    /// One info line tells all of a session.
    fn the_session_line_tells_everything(workers: u8) {
        let server = Server::ordinary(workers);
        let started = std::time::Instant::now();
        let mut client = Client::udp(server.udp6()).minted("north-of-everything", "carol");
        let relayed = client.allocate();
        let peer = peer(relayed);
        client.bind(CHANNEL, peer.local_addr().unwrap());
        for size in [10, 0, 200] {
            client.send_channel(CHANNEL, &vec![1; size]);
            receive(&peer);
        }
        peer.send_to(&[2; 33], relayed).unwrap();
        client.expect_data(Origin::Channel(CHANNEL), &[2; 33]);
        client.send_channel(CHANNEL + 1, &[3; 7]);
        assert_eq!(client.refresh(0).code(), 0);
        let session = server.log.wait_for_session("carol");
        let took = started.elapsed().as_secs_f64();
        assert_eq!(session["level"], "INFO");
        assert_eq!(session["username"], client.username);
        assert_eq!(session["secret"], "main");
        assert_eq!(session["client"], client.local().to_string());
        assert_eq!(session["relayed"], relayed.to_string());
        assert_eq!(session["transport"], "udp");
        assert_eq!(session["reason"], "refreshed");
        let duration = session["duration_s"].as_f64().unwrap();
        assert!((0.0..=took + 0.1).contains(&duration), "{duration} of {took}");
        for (key, value) in [
            ("bytes_from_client", 217),
            ("packets_from_client", 4),
            ("bytes_to_peers", 210),
            ("packets_to_peers", 3),
            ("bytes_from_peers", 33),
            ("packets_from_peers", 1),
            ("bytes_to_client", 33),
            ("packets_to_client", 1),
        ] {
            assert_eq!(session[key], value, "{key} in {session}");
        }
    }

    /// RFC 8656 section 3.3: an allocation that is not refreshed ends when its time is over.
    fn an_allocation_expires_by_itself(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.turn = vec![("default_lifetime", "\"1s\""), ("max_lifetime", "\"2s\"")];
        let server = settings.start();
        let mut client = Client::udp(server.udp4());
        let response = client.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::lifetime(3600)]);
        assert_eq!(response.lifetime(), 2);
        let mut other = Client::tcp(server.tcp4()).user("bob", "builder");
        other.allocate();
        assert_eq!(server.live(), 2);
        assert_eq!(server.log.wait_for_session("bob")["reason"], "expired");
        let session = server.log.wait_for_session("alice");
        assert_eq!(session["reason"], "expired");
        let duration = session["duration_s"].as_f64().unwrap();
        assert!((2.0..3.0).contains(&duration), "{duration}");
        assert_eq!(client.refresh(600).code(), 437);
        assert_eq!(server.live(), 0);
    }

    /// At level trace the log has no password and no secret, whatever is asked of the server.
    fn no_secret_reaches_the_log_at_level_trace(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.level = "trace";
        settings.users = vec![("alice", "wonderland-of-passwords"), ("bob", "builder-of-passwords")];
        settings.secrets = vec![("main", "north-of-everything"), ("second", "south-of-everything")];
        let mut server = settings.clone().start();
        let mut minted = Client::udp(server.udp4()).minted("north-of-everything", "carol");
        minted.allocate();
        let mut alice = Client::tcp(server.tcp4()).user("alice", "wonderland-of-passwords");
        let relayed = alice.allocate();
        let peer = peer(relayed);
        alice.bind(CHANNEL, peer.local_addr().unwrap());
        alice.send_channel(CHANNEL, b"the payload is nobody's business");
        receive(&peer);
        let mut wrong = Client::udp(server.udp4()).user("bob", "mistyped-password");
        assert_eq!(wrong.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 401);
        settings.users.push(("dave", "later-password"));
        server.reload(settings.clone());
        let text = settings.text(&server.ports.range).replace("[limits]", "[limits]\nnonsense = 1");
        server.reload_text(&text);
        // A mistake in the very line of a password.
        server.reload_text(&settings.text(&server.ports.range).replace("alice = \"wonder", "alice = 5 \"wonder"));
        server.reload_text(&settings.text(&server.ports.range).replace("value = \"north", "valu = \"north"));
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
        let text = server.log.text();
        assert!(text.contains("TRACE") && text.contains("DEBUG"), "the level is trace");
        let key_of_alice: String =
            alice.login.as_ref().unwrap().key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        let secrets = [
            "wonderland-of-passwords", "builder-of-passwords", "north-of-everything", "south-of-everything",
            "mistyped-password", "later-password", minted.password.as_str(), &key_of_alice, "nobody's business",
        ];
        for secret in secrets {
            assert!(!text.contains(secret), "{secret:?} is in the log:\n{text}");
        }
    }

    /// The HTTP listener answers loopback names and listed ones; a foreign Host is a rebound name.
    fn health_and_metrics_answer_only_known_hosts(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.hosts = vec!["metrics.example.org"];
        let server = settings.start();
        for (path, body) in [("/healthz", "alive\n"), ("/readyz", "ready\n")] {
            for host in ["localhost", "127.0.0.1", "[::1]:80", "metrics.example.org:443", &server.http().to_string()] {
                assert_eq!(http::get(server.http(), path, host), (200, body.to_owned()), "{host}");
            }
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "a b"] {
                let (status, body) = http::get(server.http(), path, host);
                assert!(status == 403 || (status == 400 && host.contains(' ')), "{path} {host:?}: {status} {body}");
                assert!(!body.contains("throughway_"), "{body}");
            }
        }
        let (status, body) = http::get(server.http(), "/metrics", "localhost");
        assert_eq!(status, 200);
        for line in body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let value = line.rsplit(' ').next().unwrap();
            let is_known = ["throughway_", "process_"].iter().any(|start| line.starts_with(start));
            assert!(value.parse::<f64>().is_ok() && is_known, "{line}");
        }
        for unknown in ["/metrics/", "/v1/session", "/../etc/passwd"] {
            assert_eq!(http::get(server.http(), unknown, "localhost").0, 404, "{unknown}");
        }
    }

    /// A wrong configuration never binds a port: exit code 2 while somebody else holds them all.
    fn a_wrong_configuration_binds_nothing(workers: u8) {
        let slice = Slice::take();
        // If it tried to bind, it would fail with 1: these are taken.
        let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let mut settings = Settings::new(workers);
        settings.udp = vec![udp.local_addr().unwrap().to_string()];
        settings.tcp = vec![tcp.local_addr().unwrap().to_string()];
        let good = settings.text(&slice.range);
        let directory = Directory::new();
        let file = directory.path().join("config.toml");
        for (from, to, place) in [
            ("[limits]", "[limits]\nallocations = -1", "limits.allocations"),
            ("[limits]", "[limits]\nnonsense = 1", "limits.nonsense"),
            ("[peers]\nallow = [", "[peers]\nallow = [\"0.0.0.0/0\", ", "peers.allow"),
            ("addresses = [", "addresses = [\"nowhere\", ", "relay.addresses"),
            ("level = \"info\"", "level = \"loud\"", "log.level"),
            ("[limits]", "[limits", "config.toml"),
        ] {
            std::fs::write(&file, good.replace(from, to)).unwrap();
            let (code, said) = run_to_end(&file);
            assert_eq!(code, 2, "{to}: {said}");
            assert!(said.contains(place) && said.contains("config.toml"), "{to}: {said}");
        }
        let missing = directory.path().join("missing.toml");
        let (code, said) = run_to_end(&missing);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("missing.toml"), "{said}");
        // The good one gets as far as binding, and then says who is in the way.
        std::fs::write(&file, &good).unwrap();
        let (code, said) = run_to_end(&file);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("another process has it"), "{said}");
        let unused = request(METHOD_ALLOCATE, &[], None);
        assert!(udp.send_to(&unused, udp.local_addr().unwrap()).is_ok());
    }
}
