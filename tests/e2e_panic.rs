//! A panic over one client's packet ends that client's session and no other. The panics are asked for with marked bytes,
//! which builds for debugging answer with one.
#![cfg(debug_assertions)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use test_support::e2e;
use test_support::e2e::client::request;
use test_support::e2e::peer::peer;
use test_support::e2e::server::{Directory, binary};
use test_support::e2e::{Client, Origin, Server, Settings, Wanted, Witness, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::attribute::ATTR_SOFTWARE;
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_BINDING};

fn armed(config: &Path) -> Command {
    let mut command = binary(config);
    command.env("TEST_FAULTS", "1");
    command
}

fn start(settings: Settings) -> Server {
    Server::start_as(Directory::new(), settings, armed)
}

fn mark(place: &str) -> Vec<u8> {
    format!("xx throughway-fault:{place}; xx").into_bytes()
}

fn restarts(server: &Server) -> u64 {
    server.scrape().value("throughway_core_restarts_total", &[])
}

#[track_caller]
fn wait_for_restarts(server: &Server, count: u64) {
    wait_for("the server of the worker to be made anew", || (restarts(server) == count).then_some(()));
}

fn ended_by_fault(server: &Server) -> u64 {
    server.scrape().value("throughway_allocations_ended_total", &[("reason", "fault")])
}

/// Calls on every worker and transport.
fn witnesses(server: &Server, workers: u8) -> Vec<Witness> {
    let mut witnesses: Vec<Witness> = (0..workers)
        .flat_map(|worker| [Client::udp_on_worker(server.udp4(), worker, workers), Client::tcp(server.tcp4())])
        .map(Witness::start)
        .collect();
    witnesses.push(Witness::start(Client::tcp(server.tcp6())));
    witnesses
}

/// What the records say is what the counters say, and all that was begun has ended.
#[track_caller]
fn books_are_right(mut server: Server, calls: usize) {
    wait_for("the last end", || (server.live() == 0).then_some(()));
    let scrape = server.scrape();
    let ended = scrape.sum("throughway_allocations_ended_total");
    assert_eq!(scrape.sum("throughway_allocations_created_total"), ended);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
    assert_eq!((server.log.sessions().len(), ended), (calls, calls as u64));
}

with_one_and_three_workers! {
    /// Data of a client, over UDP and TCP, and data of a peer: the session in hand ends, no other packet is lost.
    fn a_panic_over_data_ends_one_session(workers: u8) {
        for (place, is_tcp) in [("data_from_client", false), ("data_from_client", true), ("data_from_peer", false)] {
            let server = start(Settings::new(workers));
            let others = witnesses(&server, workers);
            let mut culprit = if is_tcp { Client::tcp(server.tcp4()) } else { Client::udp(server.udp4()) };
            culprit = culprit.user("bob", "builder");
            let relayed = culprit.allocate();
            let peer = peer(relayed);
            culprit.permit(peer.local_addr().unwrap());
            if place == "data_from_client" {
                culprit.send_to(peer.local_addr().unwrap(), &mark(place));
            } else {
                peer.send_to(&mark(place), relayed).unwrap();
            }
            wait_for_restarts(&server, 1);
            assert_eq!(ended_by_fault(&server), 1, "{}", server.log.text());
            assert_eq!(server.log.wait_for_session("bob")["reason"], "fault");
            let line = server.log.event("a panic was caught: the worker's server was made anew of its state, the session in hand has ended");
            assert_eq!((&line["in_hand"], &line["is_ignored"]), (&place.into(), &false.into()));
            if is_tcp {
                culprit.expect_closed();
            } else {
                // Once is no pattern: the client may begin anew.
                culprit.allocate();
                assert_eq!(culprit.refresh(0).code(), 0);
            }
            let calls = others.len() + if is_tcp { 1 } else { 2 };
            for witness in others {
                let (mut client, _) = witness.finish();
                assert_eq!(client.refresh(600).code(), 0, "its nonce and its key are known as before");
                assert_eq!(client.refresh(0).code(), 0);
            }
            books_are_right(server, calls);
        }
    }

    /// What a stranger sends panics: there is no session, so none ends.
    fn a_panic_over_a_strangers_message_ends_nobodys_session(workers: u8) {
        let server = start(Settings::new(workers));
        let others = witnesses(&server, workers);
        let software = Wanted::Bytes(ATTR_SOFTWARE, mark("message"));
        let mut stranger = Client::udp(server.udp4());
        stranger.send_raw(&request(METHOD_ALLOCATE, &[Wanted::udp(), software], None));
        wait_for_restarts(&server, 1);
        assert_eq!(ended_by_fault(&server), 0);
        stranger.binding();
        let calls = others.len();
        for witness in others {
            assert_eq!(witness.finish().0.refresh(0).code(), 0);
        }
        books_are_right(server, calls);
    }

    /// A deadline that panics would come again at once: its allocation goes instead.
    fn a_panic_over_a_deadline_is_not_repeated(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.users.push(("\"throughway-fault:deadline;\"", "pw"));
        let server = start(settings.account("file", "usage.jsonl").account("interval", "5s"));
        let others = witnesses(&server, workers);
        let mut culprit = Client::udp(server.udp4()).user("throughway-fault:deadline;", "pw");
        culprit.allocate();
        wait_for_restarts(&server, 1);
        wait_for("the end of the allocation", || (ended_by_fault(&server) == 1).then_some(()));
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(restarts(&server), 1);
        let calls = others.len() + 1;
        for witness in others {
            assert_eq!(witness.finish().0.refresh(0).code(), 0);
        }
        books_are_right(server, calls);
    }

    /// The second time its packets are not read for a minute; the third panic, over any client's packets, ends the process.
    fn the_second_panic_silences_a_client_and_the_third_ends_the_process(workers: u8) {
        let mut server = start(Settings::new(workers));
        let software = || Wanted::Bytes(ATTR_SOFTWARE, mark("message"));
        let mut culprit = Client::udp(server.udp4());
        for count in 1..=2 {
            culprit.send_raw(&request(METHOD_ALLOCATE, &[Wanted::udp(), software()], None));
            wait_for_restarts(&server, count);
        }
        let binding = request(METHOD_BINDING, &[], None);
        server.expect_dropped("suspect", 1, || culprit.send_raw(&binding));
        assert_eq!(culprit.data_within(e2e::SILENCE), None);
        let mut other = Client::udp(server.udp4());
        other.binding();
        other.send_raw(&request(METHOD_ALLOCATE, &[Wanted::udp(), software()], None));
        assert_eq!(server.wait().code(), Some(1), "{}", server.log.text());
        server.log.wait_for_line("it was the third panic within a minute");
    }
}

/// Its connections come to any worker, and none of them is counted as one that stays.
#[test]
fn a_silenced_stream_is_refused_by_every_worker() {
    let server = start(Settings::new(3));
    // An address of its own: at the common one some other test may get the port meanwhile.
    let own = std::net::UdpSocket::bind("127.77.0.1:0").unwrap();
    let from = own.local_addr().unwrap();
    let again = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect(&server.tcp4().into()).unwrap();
        Client::tcp_by(socket.into())
    };
    for count in 1..=2 {
        let software = Wanted::Bytes(ATTR_SOFTWARE, mark("message"));
        let mut culprit = again();
        culprit.send_raw(&request(METHOD_ALLOCATE, &[Wanted::udp(), software], None));
        wait_for_restarts(&server, count);
        culprit.expect_closed();
    }
    for count in 1..=6 {
        let _others: Vec<Client> = (0..count).map(|_| Client::tcp(server.tcp4())).collect();
        server.expect_dropped("suspect", 1, || {
            again().expect_closed();
        });
    }
    let scrape = server.scrape();
    let adopted = scrape.value("throughway_streams_accepted_total", &[]);
    assert!(adopted >= 2 + 6 + 21, "{adopted}: those that were refused came as well");
    Client::tcp(server.tcp4()).binding();
}

/// What lies behind the packet in the same batch is others' and is not lost.
#[test]
fn packets_behind_the_one_that_panics_are_relayed() {
    let server = start(Settings::new(1));
    let mut call = Client::udp(server.udp4());
    let relayed = call.allocate();
    let far = peer(relayed);
    let to = far.local_addr().unwrap();
    call.bind(0x4001, to);
    let mut culprit = Client::udp(server.udp4()).user("bob", "builder");
    let of_culprit = culprit.allocate();
    culprit.permit(to);
    server.while_it_stands_still(|| {
        for round in 0..10_u8 {
            call.send_channel(0x4001, &[round; 100]);
            far.send_to(&[round; 100], relayed).unwrap();
            if round == 4 {
                culprit.send_to(to, &mark("data_from_client"));
                far.send_to(b"to the culprit", of_culprit).unwrap();
            }
        }
    });
    for round in 0..10_u8 {
        assert_eq!(e2e::peer::receive(&far).0, [round; 100], "to the peer");
        call.expect_data(Origin::Channel(0x4001), &[round; 100]);
    }
    assert_eq!((restarts(&server), ended_by_fault(&server)), (1, 1));
}
