//! Upgrades of the real binary: a new process takes the calls over, and if it can't, the old one goes on.

use std::fs;
use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};

use rustls::{ClientConnection, StreamOwned};
use test_support::e2e;
use test_support::e2e::tls::{self, Authority};
use test_support::e2e::upgrade::{REFUSED, ROLLED_BACK, Upgradable};
use test_support::e2e::{Client, Origin, Settings, Witness, wait_for};
use test_support::with_one_and_three_workers;

with_one_and_three_workers! {
    fn calls_over_datagrams_go_on_through_upgrades(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let server = &own.server;
        let mut calls: Vec<Witness> =
            (0..workers).map(|worker| Witness::start(Client::udp_on_worker(server.udp4(), worker, workers))).collect();
        calls.push(Witness::start(Client::udp(server.udp6())));
        let mut idle = Client::udp(server.udp4());
        let relayed = idle.allocate();
        for round in 1..=3 {
            let cut = own.upgrade();
            assert_eq!(cut["allocations"], calls.len() as u64 + 1, "{cut}");
            assert_eq!(cut["generation"], round + 1);
            calls.iter().for_each(Witness::see_progress);
        }
        // What one had before goes on as before, and all that one may ask for is there.
        assert_eq!(idle.refresh(600).code(), 0);
        let peer = e2e::peer(relayed);
        idle.permit(peer.local_addr().unwrap());
        peer.send_to(b"still there", relayed).unwrap();
        idle.expect_data(Origin::Peer(peer.local_addr().unwrap()), b"still there");
        let mut late = Client::udp(own.server.udp4()).user("bob", "builder");
        late.allocate();
        let mut packets = 0;
        for call in calls {
            let (mut client, rounds) = call.finish();
            packets += rounds;
            assert_eq!(client.refresh(0).code(), 0);
        }
        assert_eq!((idle.refresh(0).code(), late.refresh(0).code()), (0, 0));
        let scrape = own.server.scrape();
        let relayed = |way, side| scrape.value("throughway_payload_packets_total", &[("way", way), ("side", side)]);
        assert_eq!(relayed("received", "clients"), packets);
        assert_eq!(relayed("received", "peers"), packets + 1);
        assert_eq!(relayed("sent", "clients"), packets + 1);
        let sessions = usize::from(workers) + 3;
        assert_eq!(scrape.sum("throughway_allocations_created_total"), sessions as u64);
        assert_eq!(scrape.sum("throughway_allocations_ended_total"), sessions as u64);
        own.server.signal("TERM");
        assert_eq!(own.server.wait().code(), Some(0), "{}", own.server.log.text());
        assert_eq!(own.server.log.sessions().len(), sessions, "each session has one record");
    }

    fn calls_over_streams_go_on_through_upgrades(workers: u8) {
        let certificates = Authority::new();
        let mut own = Upgradable::start(certificates.settings(workers));
        let mut calls = Vec::new();
        for _ in 0..3 {
            calls.push(Witness::start(Client::tcp(own.server.tcp4())));
            calls.push(Witness::start(certificates.client(own.server.tls4())));
        }
        for _ in 0..3 {
            assert_eq!(own.upgrade()["streams"], calls.len());
            calls.iter().for_each(Witness::see_progress);
        }
        // A client that comes during the probation is served at once by the new process.
        let upgrades = own.server.log.events("taken over").len();
        let (log, tcp4) = (own.server.log.clone(), own.server.tcp4());
        let newcomer = std::thread::spawn(move || {
            wait_for("the cut", || (log.events("taken over").len() > upgrades).then_some(()));
            let mut client = Client::tcp(tcp4).user("bob", "builder");
            client.allocate();
            assert!(log.events("confirmed").len() < upgrades + 1, "it was served while the new process was on probation");
            client
        });
        own.upgrade();
        assert_eq!(newcomer.join().unwrap().refresh(0).code(), 0);
        for call in calls {
            assert_eq!(call.finish().0.refresh(0).code(), 0);
        }
    }

    /// Faults of the new process, before it has read a packet: the old one goes on, and lost nothing.
    fn a_new_process_that_fails_before_it_reads_costs_nothing(workers: u8) {
        for fault in ["hello=exit", "hello=lie", "plan=exit", "plan=lie", "prepare=exit", "prepare=lie", "cut=exit", "cut=hang", "cut=lie"] {
            let mut own = Upgradable::start_with(Settings::new(workers), &[("TEST_FAULTS_UPGRADE", fault)]);
            let calls = [Witness::start(Client::udp(own.server.udp4())), Witness::start(Client::tcp(own.server.tcp4()))];
            let end = own.try_upgrade();
            assert_eq!(end["message"], REFUSED, "{fault}: {end}");
            for call in calls {
                call.finish();
            }
            Witness::start(Client::tcp(own.server.tcp4())).finish();
            assert_eq!(own.server.health("/readyz"), 200, "{fault}");
        }
    }

    /// The same when it has read: datagrams go on, streams can't.
    fn a_new_process_that_fails_on_probation_gives_the_calls_back(workers: u8) {
        for fault in ["ready=exit", "ready=hang", "probation=exit", "probation=lie", "probation=hang"] {
            let mut own = Upgradable::start_with(Settings::new(workers), &[("TEST_FAULTS_UPGRADE", fault)]);
            let mut call = Client::udp(own.server.udp4());
            let relayed = call.allocate();
            let mut over_tcp = Client::tcp(own.server.tcp4());
            over_tcp.allocate();
            let end = own.try_upgrade();
            assert_eq!(end["message"], ROLLED_BACK, "{fault}: {end}");
            if fault == "probation=hang" {
                // Long before the time in which it should have confirmed.
                assert!(end["reason"].as_str().unwrap().contains("within 3s"), "{end}");
            }
            over_tcp.expect_closed();
            let peer = e2e::peer(relayed);
            call.permit(peer.local_addr().unwrap());
            peer.send_to(b"back again", relayed).unwrap();
            call.expect_data(Origin::Peer(peer.local_addr().unwrap()), b"back again");
            assert_eq!(call.refresh(0).code(), 0, "{fault}");
            Witness::start(Client::tcp(own.server.tcp4())).finish();
        }
    }

    /// A handshake that began before the change is finished by the old process, and the client is the new one's.
    fn a_handshake_under_way_is_finished(workers: u8) {
        let authority = Authority::new();
        let mut own = Upgradable::start(authority.settings(workers));
        let (log, tls4) = (own.server.log.clone(), own.server.tls4());
        let config = authority.connector(tls::VERSIONS[1], &[]);
        let mut connection = ClientConnection::new(config, tls::NAME.try_into().unwrap()).unwrap();
        let mut stream = TcpStream::connect(tls4).unwrap();
        let mut hello = Vec::new();
        connection.write_tls(&mut hello).unwrap();
        stream.write_all(&hello[..10]).unwrap();
        wait_for("the handshake to begin", || {
            (own.server.scrape().sum("throughway_tls_handshakes_under_way") == 1).then_some(())
        });
        let late = std::thread::spawn(move || {
            wait_for("the cut", || (!log.events("taken over").is_empty()).then_some(()));
            stream.write_all(&hello[10..]).unwrap();
            let mut client = Client::tls(StreamOwned::new(connection, stream));
            client.allocate();
            assert!(log.events("confirmed").is_empty(), "it was served while the new process was on probation");
            client
        });
        own.upgrade();
        assert_eq!(late.join().unwrap().refresh(0).code(), 0);
        assert_eq!(own.server.scrape().value("throughway_tls_handshakes_total", &[("result", "ok")]), 1);
    }

    /// The new process's configuration holds for calls that came from the old one.
    fn calls_are_judged_by_the_new_configuration(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let mut call = Client::udp(own.server.udp4());
        let relayed = call.allocate();
        let (kept, denied) = (e2e::peer(relayed), UdpSocket::bind("127.0.0.9:0").unwrap());
        call.permit(kept.local_addr().unwrap());
        call.permit(denied.local_addr().unwrap());
        let mut settings = own.server.settings.clone();
        settings.deny.push("127.0.0.9/32");
        let text = settings.text(&own.server.ports.range);
        fs::write(own.server.directory().join("config.toml"), text).unwrap();
        own.upgrade();
        own.server.expect_dropped("peer_not_permitted", 1, || denied.send_to(b"not any more", relayed).unwrap());
        kept.send_to(b"as before", relayed).unwrap();
        call.expect_data(Origin::Peer(kept.local_addr().unwrap()), b"as before");
    }
}
