//! Relaying by the real binary: every client transport, every family, every size, one worker and three.

use std::net::{SocketAddr, UdpSocket};

use test_support::e2e;
use test_support::e2e::client::{ATTR_DONT_FRAGMENT, channel_data, message, request};
use test_support::e2e::server::worker_of;
use test_support::e2e::{Client, Echo, Origin, SILENCE, Server, Settings, Wanted, Witness, payload, peer, receive};
use test_support::with_one_and_three_workers;
use throughway::wire::attribute::ATTR_DATA;
use throughway::wire::message::{CLASS_INDICATION, Known, METHOD_ALLOCATE, METHOD_SEND, MessageType};

const CHANNEL: u16 = 0x4001;

fn clients(server: &Server) -> Vec<(&'static str, Client)> {
    vec![
        ("UDP over IPv4", Client::udp(server.udp4())),
        ("UDP over IPv6", Client::udp(server.udp6())),
        ("TCP over IPv4", Client::tcp(server.tcp4())),
        ("TCP over IPv6", Client::tcp(server.tcp6())),
    ]
}

/// Both ways by indications, then both ways by a channel.
#[track_caller]
fn relay_both_ways(client: &mut Client, relayed: SocketAddr) {
    let peer = peer(relayed);
    let at = peer.local_addr().unwrap();
    client.permit(at);
    client.send_to(at, b"by indication");
    assert_eq!(receive(&peer), (b"by indication".to_vec(), relayed));
    peer.send_to(b"back by indication", relayed).unwrap();
    client.expect_data(Origin::Peer(at), b"back by indication");
    client.bind(CHANNEL, at);
    client.send_channel(CHANNEL, b"by channel");
    assert_eq!(receive(&peer), (b"by channel".to_vec(), relayed));
    peer.send_to(b"back by channel", relayed).unwrap();
    client.expect_data(Origin::Channel(CHANNEL), b"back by channel");
}

with_one_and_three_workers! {
    /// RFC 8489 section 6: the answer names the address that the request came from.
    fn binding_answers_with_the_clients_address(workers: u8) {
        let server = Server::ordinary(workers);
        for (name, mut client) in clients(&server) {
            assert_eq!(client.binding(), client.local(), "{name}");
        }
        assert_eq!(server.scrape().value("throughway_requests_granted_total", &[("method", "binding")]), 4);
    }

    /// RFC 8656 section 7: either client family with either relay family, over UDP and TCP.
    // [8656-5-9, -10, 8489-12-4, 6062-5.1-2]
    fn every_client_relays_to_every_family(workers: u8) {
        let server = Server::ordinary(workers);
        for ipv4 in [true, false] {
            for (_, mut client) in clients(&server) {
                let relayed = client.allocate_family(ipv4);
                assert_eq!(relayed.is_ipv4(), ipv4);
                assert!(server.ports.range.contains(&relayed.port()), "{relayed}");
                relay_both_ways(&mut client, relayed);
            }
        }
        let mut other = Client::udp(server.udp4());
        let unknown = [Wanted::udp(), Wanted::Bytes(e2e::client::ATTR_REQUESTED_ADDRESS_FAMILY, vec![3, 0, 0, 0])];
        assert_eq!(other.request(METHOD_ALLOCATE, &unknown).code(), 440);
    }

    /// A datagram passes whole or not at all, up to what UDP can carry.
    fn sizes_up_to_the_largest_datagram_pass_whole_over_tcp(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::tcp(server.tcp4());
        let relayed = client.allocate();
        let (one, two) = (peer(relayed), peer(relayed));
        let (by_channel, by_indication) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        client.bind(CHANNEL, by_channel);
        for size in [0, 1, 2, 3, 1200, 65_507] {
            let (up, down) = (payload(size as u32, size), payload(size as u32 + 1, size));
            client.send_channel(CHANNEL, &up);
            assert!(receive(&one) == (up.clone(), relayed), "{size} up by channel");
            one.send_to(&down, relayed).unwrap();
            client.expect_data(Origin::Channel(CHANNEL), &down);
            client.send_to(by_indication, &up);
            assert!(receive(&two) == (up, relayed), "{size} up by indication");
            two.send_to(&down, relayed).unwrap();
            client.expect_data(Origin::Peer(by_indication), &down);
        }
        // ChannelData can tell of more than UDP over IPv4 can carry.
        server.expect_dropped("message_size", 1, || client.send_channel(CHANNEL, &payload(9, 65_508)));
        client.send_channel(CHANNEL, b"still here");
        assert_eq!(receive(&one).0, b"still here");
    }

    /// What the client's framing can't carry is dropped and counted, never cut.
    fn sizes_up_to_the_framing_pass_whole_over_udp(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::udp(server.udp4());
        let relayed = client.allocate();
        let (one, two) = (peer(relayed), peer(relayed));
        let (by_channel, by_indication) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        client.bind(CHANNEL, by_channel);
        for size in [0, 1, 1200, 65_503] {
            let (up, down) = (payload(size as u32, size), payload(size as u32 + 1, size));
            client.send_channel(CHANNEL, &up);
            assert!(receive(&one) == (up, relayed), "{size} up by channel");
            one.send_to(&down, relayed).unwrap();
            client.expect_data(Origin::Channel(CHANNEL), &down);
        }
        // 36 bytes of head, and a multiple of four.
        for size in [0, 1, 1200, 65_468] {
            let (up, down) = (payload(size as u32, size), payload(size as u32 + 1, size));
            client.send_to(by_indication, &up);
            assert!(receive(&two) == (up, relayed), "{size} up by indication");
            two.send_to(&down, relayed).unwrap();
            client.expect_data(Origin::Peer(by_indication), &down);
        }
        server.expect_dropped("too_big", 3, || {
            one.send_to(&payload(1, 65_504), relayed).unwrap();
            one.send_to(&payload(2, 65_507), relayed).unwrap();
            two.send_to(&payload(3, 65_469), relayed).unwrap();
        });
        one.send_to(b"still here", relayed).unwrap();
        client.expect_data(Origin::Channel(CHANNEL), b"still here");
    }

    /// A client hears only the address that it asked; its socket is connected, so any other would be lost.
    // [8489-6.3.1.2-1]
    fn wildcard_listeners_answer_from_the_address_asked(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.udp = vec!["0.0.0.0:0".to_owned(), "[::]:0".to_owned()];
        settings.tcp = settings.udp.clone();
        let server = settings.start();
        let (udp4, udp6) = (server.udp4().port(), server.udp6().port());
        let (tcp4, tcp6) = (server.tcp4().port(), server.tcp6().port());
        let mut clients = Vec::new();
        for ip in ["127.0.0.1", "127.0.0.2", "127.9.8.7"] {
            clients.push(Client::udp(SocketAddr::new(ip.parse().unwrap(), udp4)));
            clients.push(Client::tcp(SocketAddr::new(ip.parse().unwrap(), tcp4)));
        }
        clients.push(Client::udp(SocketAddr::new("::1".parse().unwrap(), udp6)));
        clients.push(Client::tcp(SocketAddr::new("::1".parse().unwrap(), tcp6)));
        for client in &mut clients {
            assert_eq!(client.binding(), client.local());
            let relayed = client.allocate();
            relay_both_ways(client, relayed);
        }
    }

    /// One source port, two addresses of the server: two five-tuples, two allocations (RFC 8656 section 3.2).
    fn a_wildcard_listener_tells_its_addresses_apart(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.udp = vec!["0.0.0.0:0".to_owned()];
        let server = settings.start();
        let port = server.udp4().port();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut first = Client::udp_by(socket.try_clone().unwrap(), SocketAddr::from(([127, 0, 0, 2], port)));
        let one = first.allocate();
        // The same socket, connected anew.
        let mut second = Client::udp_by(socket, SocketAddr::from(([127, 0, 0, 3], port)));
        let two = second.allocate();
        assert_ne!(one, two);
        relay_both_ways(&mut second, two);
        assert_eq!(server.live(), 2);
    }

    /// RFC 8656 section 7.2: a reserved port waits for the client that brings its token, on whichever worker that lands.
    fn a_reservation_token_works_on_every_worker(workers: u8) {
        let server = Server::ordinary(workers);
        for second_worker in 0..workers {
            let mut first = Client::udp_on_worker(server.udp4(), 0, workers);
            let response = first.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::even_port(true)]);
            let even = response.relayed();
            assert_eq!(even.port() % 2, 0);
            let token = response.bytes(Known::ReservationToken);
            let mut second = Client::udp_on_worker(server.udp4(), second_worker, workers);
            assert_eq!(worker_of(second.local(), workers), second_worker);
            let odd = second.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::token(&token)]).relayed();
            assert_eq!(odd, SocketAddr::new(even.ip(), even.port() + 1), "worker {second_worker}");
            relay_both_ways(&mut first, even);
            relay_both_ways(&mut second, odd);
            let mut third = Client::udp_on_worker(server.udp4(), second_worker, workers);
            let again = third.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::token(&token)]);
            assert_eq!(again.code(), 508, "a token is good for one allocation");
        }
        // Streams go to the worker with the fewest: so many at once reach all of them.
        let mut streams = Vec::new();
        for _ in 0..workers {
            let mut first = Client::udp_on_worker(server.udp4(), 0, workers);
            let response = first.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::even_port(true)]);
            let (even, token) = (response.relayed(), response.bytes(Known::ReservationToken));
            let mut stream = Client::tcp(server.tcp4());
            let odd = stream.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::token(&token)]).relayed();
            assert_eq!(odd, SocketAddr::new(even.ip(), even.port() + 1));
            relay_both_ways(&mut stream, odd);
            streams.push((first, stream));
        }
        let mut stream = Client::tcp(server.tcp4());
        let response = stream.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::even_port(true)]);
        let (even, token) = (response.relayed(), response.bytes(Known::ReservationToken));
        let mut second = Client::udp_on_worker(server.udp4(), workers - 1, workers);
        let odd = second.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::token(&token)]).relayed();
        assert_eq!(odd.port(), even.port() + 1, "reserved over a stream, taken over UDP");
    }

    /// RFC 8656 section 7.2: EVEN-PORT without the R bit gives an even port and holds nothing.
    fn even_port_is_even(workers: u8) {
        let server = Server::ordinary(workers);
        let mut clients = Vec::new();
        for number in 0..8 {
            let mut client = if number % 2 == 0 { Client::udp(server.udp4()) } else { Client::tcp(server.tcp6()) };
            let response = client.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::even_port(false)]);
            assert_eq!(response.relayed().port() % 2, 0);
            clients.push(client);
        }
    }

    /// Each other's peers: what leaves one relayed address arrives at the other.
    fn two_clients_reach_each_other_through_their_relayed_addresses(workers: u8) {
        let server = Server::ordinary(workers);
        let pairs = [
            (Client::udp_on_worker(server.udp4(), 0, workers), Client::udp_on_worker(server.udp4(), workers - 1, workers)),
            (Client::udp(server.udp4()), Client::tcp(server.tcp4())),
            (Client::tcp(server.tcp6()), Client::tcp(server.tcp4())),
        ];
        for (mut one, mut two) in pairs {
            let (at_one, at_two) = (one.allocate_family(true), two.user_bob_allocates());
            one.bind(CHANNEL, at_two);
            two.permit(at_one);
            for size in [0, 1, 1200, 60_000] {
                let bytes = payload(size as u32, size);
                one.send_channel(CHANNEL, &bytes);
                two.expect_data(Origin::Peer(at_one), &bytes);
                two.send_to(at_one, &bytes);
                one.expect_data(Origin::Channel(CHANNEL), &bytes);
            }
        }
    }

    /// RFC 8656 section 9: a peer without permission is not heard, and not told.
    fn a_peer_without_permission_is_not_heard(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::udp(server.udp4());
        let relayed = client.allocate();
        let peer = peer(relayed);
        server.expect_dropped("peer_not_permitted", 1, || peer.send_to(b"knock", relayed).unwrap());
        server.expect_dropped("no_permission", 1, || client.send_to(peer.local_addr().unwrap(), b"who?"));
        assert_eq!(client.data_within(SILENCE), None);
        e2e::peer::expect_silence(&peer);
        relay_both_ways(&mut client, relayed);
    }

    /// Clients on every worker, all of them talking at the same time.
    fn clients_on_all_workers_relay_at_the_same_time(workers: u8) {
        let server = Server::ordinary(workers);
        let echo = Echo::start(server.udp4());
        let echo_at = echo.address;
        let threads: Vec<_> = (0..9_u8)
            .map(|number| {
                let (udp, tcp) = (server.udp4(), server.tcp4());
                std::thread::spawn(move || {
                    let mut client =
                        if number < 6 { Client::udp_on_worker(udp, number % workers, workers) } else { Client::tcp(tcp) };
                    client.allocate();
                    client.bind(CHANNEL, echo_at);
                    for round in 0..100 {
                        let bytes = payload(u32::from(number) * 1000 + round, 160 + round as usize);
                        client.send_channel(CHANNEL, &bytes);
                        client.expect_data(Origin::Channel(CHANNEL), &bytes);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let scrape = server.scrape();
        assert_eq!(scrape.value("throughway_payload_packets_total", &[("way", "sent"), ("side", "peers")]), 900);
        assert_eq!(scrape.value("throughway_payload_packets_total", &[("way", "sent"), ("side", "clients")]), 900);
        for worker in 0..workers {
            let labels = [("worker", worker.to_string())];
            let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert!(scrape.value("throughway_listener_datagrams_total", &labels) >= 200, "worker {worker} was idle");
        }
    }

    /// Bursts are read and sent in batches: the same bytes, in the same order, none missing.
    fn bursts_keep_their_order_and_lose_nothing(workers: u8) {
        let server = Server::ordinary(workers);
        for ipv4 in [true, false] {
            for mut client in [Client::udp(server.udp4()), Client::tcp(server.tcp6())] {
                let relayed = client.allocate_family(ipv4);
                let (bound, permitted) = (peer(relayed), peer(relayed));
                let at = permitted.local_addr().unwrap();
                client.bind(CHANNEL, bound.local_addr().unwrap());
                for burst in 0..30_u32 {
                    let sizes = |number: u32| ((burst * 131 + number * 977) % 1400) as usize;
                    let bytes: Vec<Vec<u8>> = (0..40).map(|number| payload(burst * 40 + number, sizes(number))).collect();
                    for bytes in &bytes {
                        bound.send_to(bytes, relayed).unwrap();
                        permitted.send_to(bytes, relayed).unwrap();
                    }
                    for bytes in &bytes {
                        client.expect_data(Origin::Channel(CHANNEL), bytes);
                        client.expect_data(Origin::Peer(at), bytes);
                    }
                    for bytes in &bytes {
                        client.send_channel(CHANNEL, bytes);
                        client.send_to(at, bytes);
                    }
                    for bytes in &bytes {
                        assert!(receive(&bound) == (bytes.clone(), relayed), "burst {burst}");
                        assert!(receive(&permitted) == (bytes.clone(), relayed), "burst {burst}");
                    }
                }
            }
        }
        assert_eq!(server.scrape().sum("throughway_dropped_packets_total"), 0);
    }

    /// IPv6 carries 20 bytes more than IPv4; a channel over TCP carries them as well.
    fn the_largest_datagram_of_ipv6_passes_whole(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::tcp(server.tcp6());
        let relayed = client.allocate();
        let peer = peer(relayed);
        client.bind(CHANNEL, peer.local_addr().unwrap());
        let bytes = payload(6, 65_527);
        peer.send_to(&bytes, relayed).unwrap();
        client.expect_data(Origin::Channel(CHANNEL), &bytes);
        client.send_channel(CHANNEL, &bytes);
        assert!(receive(&peer) == (bytes, relayed));
    }

    /// RFC 8656 section 14: DONT-FRAGMENT concerns its own datagram, not those before and after it.
    fn dont_fragment_keeps_the_order(workers: u8) {
        let server = Server::ordinary(workers);
        for ipv4 in [true, false] {
            let mut client = Client::tcp(server.tcp4());
            let relayed = client.allocate_family(ipv4);
            let peer = peer(relayed);
            let at = peer.local_addr().unwrap();
            client.bind(CHANNEL, at);
            let unfragmented = message(
                MessageType { method: METHOD_SEND, class: CLASS_INDICATION },
                &[Wanted::peer(at), Wanted::Bytes(ATTR_DATA, b"whole".to_vec()), Wanted::Bytes(ATTR_DONT_FRAGMENT, vec![])],
                None,
            );
            let mut frame = channel_data(CHANNEL, b"1234");
            frame.extend(&unfragmented);
            frame.extend(channel_data(CHANNEL, b"5678"));
            client.send_raw(&frame.repeat(10));
            for _ in 0..10 {
                assert_eq!(receive(&peer).0, b"1234");
                assert_eq!(receive(&peer).0, b"whole");
                assert_eq!(receive(&peer).0, b"5678");
            }
        }
    }

    /// RFC 8656 section 7.2: the same request again is the same allocation, not a second one and not an error.
    fn a_retransmitted_allocate_is_answered_the_same(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::udp(server.udp4());
        client.challenge();
        let allocate = request(METHOD_ALLOCATE, &[Wanted::udp()], client.login.as_ref());
        for _ in 0..5 {
            client.send_raw(&allocate);
        }
        let relayed = client.answer_to(&allocate).relayed();
        // Those that came before the socket was open have no answer of their own.
        for _ in 0..3 {
            assert_eq!(client.ask(&allocate).relayed(), relayed);
        }
        assert_eq!(server.live(), 1);
        assert_eq!(server.refused("allocation_exists"), 0);
        relay_both_ways(&mut client, relayed);
    }

    /// A UDP client that is gone makes the kernel complain to the listener, which others share.
    fn a_client_that_vanished_disturbs_nobody(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        for _ in 0..3 {
            let mut client = Client::udp_on_worker(server.udp4(), 0, workers);
            let relayed = client.allocate();
            let peer = peer(relayed);
            client.bind(CHANNEL, peer.local_addr().unwrap());
            drop(client);
            for _ in 0..50 {
                peer.send_to(b"is anyone there?", relayed).unwrap();
            }
            witness.see_progress();
        }
        assert_eq!(server.live(), 4);
        witness.finish();
    }

    /// A send that the kernel refuses, or that ICMP complains about, is a lost datagram and nothing more.
    fn a_failed_send_never_ends_an_allocation(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.allow.push("192.0.2.0/24");
        let server = settings.start();
        // From 127.0.0.1 there is no way to there, and the kernel says so at once.
        let nowhere: SocketAddr = "192.0.2.1:9".parse().unwrap();
        for ipv4 in [true, false] {
            for mut client in [Client::udp(server.udp4()), Client::tcp(server.tcp4())] {
                let relayed = client.allocate_family(ipv4);
                let closed = peer(relayed).local_addr().unwrap();
                let lost = if ipv4 { nowhere } else { closed };
                client.permit(closed);
                client.bind(0x4002, lost);
                let send_in_vain = |client: &mut Client| {
                    for _ in 0..5 {
                        client.send_to(closed, b"anyone?");
                        client.send_channel(0x4002, b"anyone?");
                    }
                };
                let dropped = server.scrape().sum("throughway_dropped_packets_total");
                send_in_vain(&mut client);
                relay_both_ways(&mut client, relayed);
                let dropped = server.scrape().sum("throughway_dropped_packets_total") - dropped;
                assert_eq!(dropped, if ipv4 { 5 } else { 0 }, "what the kernel refused is counted");
                assert_eq!(client.refresh(600).code(), 0);
                send_in_vain(&mut client);
                let peer = peer(relayed);
                client.permit(peer.local_addr().unwrap());
                client.send_to(peer.local_addr().unwrap(), b"last");
                assert_eq!(receive(&peer), (b"last".to_vec(), relayed));
                assert_eq!(client.refresh(0).code(), 0);
            }
        }
    }
}

trait Bob {
    fn user_bob_allocates(&mut self) -> SocketAddr;
}

impl Bob for Client {
    /// As somebody else than the other client of a pair.
    fn user_bob_allocates(&mut self) -> SocketAddr {
        (self.username, self.password) = ("bob".to_owned(), "builder".to_owned());
        self.allocate_family(true)
    }
}
