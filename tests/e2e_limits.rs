//! Quotas, ports and addresses that can be had only once.

use std::net::UdpSocket;

use test_support::e2e;
use test_support::e2e::server::{Directory, Slice, run_to_end};
use test_support::e2e::{Client, Settings, Wanted, Witness, client, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_ALLOCATE;

const SECRET: &str = "north-of-everything";

/// Clients that have heard their challenge, spread over all workers and both transports.
fn crowd(server: &e2e::Server, workers: u8, count: u8, user: &str) -> Vec<Client> {
    let clients = (0..count).map(|number| {
        let mut client = match number % 4 {
            3 => Client::tcp(server.tcp4()),
            _ => Client::udp_on_worker(server.udp4(), number % workers, workers),
        };
        client = client.minted(SECRET, user);
        client.challenge();
        client
    });
    clients.collect()
}

/// All of them ask before anybody listens; gives the error codes, 0 for success.
fn allocate_at_once(clients: &mut [Client]) -> Vec<u16> {
    let requests: Vec<Vec<u8>> = clients
        .iter()
        .map(|client| client::request(METHOD_ALLOCATE, &[Wanted::udp()], client.login.as_ref()))
        .collect();
    for (client, request) in clients.iter_mut().zip(&requests) {
        client.send_raw(request);
    }
    clients.iter_mut().zip(&requests).map(|(client, request)| client.answer_to(request).code()).collect()
}

with_one_and_three_workers! {
    /// The quota of a user holds exactly, however many workers are asked at the same time, and is given back.
    fn a_users_quota_is_exact_over_all_workers(workers: u8) {
        let server = Settings::new(workers).limit("allocations_per_user", "7").start();
        let mut clients = crowd(&server, workers, 12, "carol");
        for round in 1..=2 {
            let codes = server.expect_refused("quota_user", 5, || allocate_at_once(&mut clients));
            assert_eq!(codes.iter().filter(|code| **code == 0).count(), 7, "round {round}: {codes:?}");
            assert_eq!(codes.iter().filter(|code| **code == 486).count(), 5, "round {round}: {codes:?}");
            assert_eq!(server.live(), 7);
            // Another user and a static one are not concerned.
            let mut others = crowd(&server, workers, 2, "dave");
            assert_eq!(allocate_at_once(&mut others), [0, 0]);
            let mut fixed = Client::udp(server.udp4());
            fixed.allocate();
            for client in others.iter_mut().chain([&mut fixed]) {
                assert_eq!(client.refresh(0).code(), 0);
            }
            for (client, code) in clients.iter_mut().zip(codes) {
                assert_eq!(client.refresh(0).code(), if code == 0 { 0 } else { 437 });
            }
            assert_eq!(server.live(), 0);
        }
    }

    /// So does the quota of the whole server.
    fn the_servers_quota_is_exact_over_all_workers(workers: u8) {
        let server = Settings::new(workers).limit("allocations", "5").start();
        let mut clients = crowd(&server, workers, 9, "carol");
        let codes = server.expect_refused("quota_server", 4, || allocate_at_once(&mut clients));
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 5, "{codes:?}");
        // A stream that closes gives its place back as well.
        let at = clients.iter().zip(&codes).position(|(client, code)| client.is_stream() && *code == 0);
        let freed = match at {
            Some(at) => clients.remove(at),
            None => {
                let at = codes.iter().position(|code| *code == 0).unwrap();
                let mut client = clients.remove(at);
                assert_eq!(client.refresh(0).code(), 0);
                client
            }
        };
        freed.close();
        wait_for("the place of the one that left", || (server.live() == 4).then_some(()));
        Client::udp(server.udp4()).allocate();
        let mut one_too_many = Client::udp(server.udp4());
        assert_eq!(one_too_many.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 486);
    }

    /// RFC 8656 section 7.2: 508 when no port can be had; a port that was given back may return to its client.
    fn a_range_of_four_ports_serves_four(workers: u8) {
        let slice = Slice::take();
        let first = *slice.range.start();
        let mut settings = Settings::new(workers);
        settings.ports = Some(first..=first + 3);
        let server = settings.start();
        for ipv4 in [true, false] {
            let mut clients: Vec<_> =
                (0..4).map(|n| Client::udp_on_worker(server.udp4(), n % workers, workers)).collect();
            let mut ports: Vec<u16> = clients.iter_mut().map(|client| client.allocate_family(ipv4).port()).collect();
            let mut fifth = Client::udp(server.udp4());
            let wanted = [Wanted::udp(), Wanted::family(ipv4)];
            let code = server.expect_refused("no_port", 1, || fifth.request(METHOD_ALLOCATE, &wanted).code());
            assert_eq!(code, 508);
            assert_eq!(clients[2].refresh(0).code(), 0);
            assert_eq!(fifth.allocate_family(ipv4).port(), ports[2]);
            ports.sort_unstable();
            assert_eq!(ports, [first, first + 1, first + 2, first + 3]);
            for client in [&mut clients[0], &mut fifth] {
                assert_eq!(client.refresh(0).code(), 0);
            }
        }
    }

    /// What another process holds is stepped over, and is no reason to refuse anyone before the range is empty.
    fn a_port_that_another_process_holds_is_stepped_over(workers: u8) {
        let slice = Slice::take();
        let first = *slice.range.start();
        let held = UdpSocket::bind(("127.0.0.1", first + 1)).unwrap();
        let mut settings = Settings::new(workers);
        settings.ports = Some(first..=first + 3);
        let server = settings.start();
        let mut clients: Vec<_> = (0..3).map(|n| Client::udp_on_worker(server.udp4(), n % workers, workers)).collect();
        let mut ports: Vec<u16> = clients.iter_mut().map(|client| client.allocate().port()).collect();
        ports.sort_unstable();
        assert_eq!(ports, [first, first + 2, first + 3]);
        let mut fourth = Client::udp(server.udp4());
        assert_eq!(fourth.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 508);
        drop(held);
        // It was free on ::1.
        let mut ports: Vec<u16> = clients.iter_mut().map(|client| {
            assert_eq!(client.refresh(0).code(), 0);
            client.allocate_family(false).port()
        }).collect();
        ports.push(fourth.allocate_family(false).port());
        ports.sort_unstable();
        assert_eq!(ports, [first, first + 1, first + 2, first + 3]);
    }

    /// Two processes never share a listener: half of the packets would vanish.
    fn a_second_server_on_the_same_port_fails_and_says_why(workers: u8) {
        let server = e2e::Server::ordinary(workers);
        let slice = Slice::take();
        for second_workers in [1, 3] {
            for (transport, address) in [("udp", server.udp4()), ("tcp", server.tcp4()), ("udp", server.udp6())] {
                let mut settings = Settings::new(second_workers);
                (settings.udp, settings.tcp) = (Vec::new(), Vec::new());
                if transport == "udp" { &mut settings.udp } else { &mut settings.tcp }.push(address.to_string());
                let directory = Directory::new();
                let file = directory.path().join("config.toml");
                std::fs::write(&file, settings.text(&slice.range)).unwrap();
                let (code, said) = run_to_end(&file);
                assert_eq!(code, 1, "{said}");
                assert!(said.contains(&format!("can't listen on {transport} {address}")), "{said}");
                assert!(said.contains("another process has it"), "{said}");
            }
        }
        let mut client = Client::udp(server.udp4());
        client.allocate();
        assert_eq!(client.refresh(0).code(), 0);
    }

    /// No file descriptor left: Allocate is refused, live calls go on, and what is given back can be used again.
    fn without_file_descriptors_allocations_are_refused_and_calls_go_on(workers: u8) {
        let server = e2e::Server::start_with_open_files(Settings::new(workers), 80);
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        // Allocations of both families, so that ports are not what runs out first.
        let mut clients = Vec::new();
        let refused = loop {
            assert!(clients.len() < 80, "80 descriptors made {} allocations", clients.len());
            let number = clients.len() as u8;
            let mut client = Client::udp_on_worker(server.udp4(), number % workers, workers);
            let wanted = [Wanted::udp(), Wanted::family(number.is_multiple_of(2))];
            let code = client.request(METHOD_ALLOCATE, &wanted).code();
            if code != 0 {
                break (client, code);
            }
            clients.push(client);
        };
        let (mut late, code) = refused;
        assert_eq!(code, 508);
        assert!(clients.len() > 20, "{} allocations", clients.len());
        // A connection can't be accepted now; it must neither end nor stop the server.
        let mut waiting = Client::tcp(server.tcp4());
        witness.see_progress();
        for client in clients.iter_mut().skip(1) {
            assert_eq!(client.refresh(0).code(), 0);
        }
        assert_eq!(waiting.binding(), waiting.local());
        late.allocate();
        waiting.allocate();
        assert_eq!(server.live(), 4);
        witness.finish();
    }
}
