//! Clients over TCP: segments of any shape, clients that stop talking, stop reading, or speak something else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use test_support::e2e::client::{channel_data, request, send_indication};
use test_support::e2e::peer::expect_silence;
use test_support::e2e::{
    Client, Origin, PATIENCE, Server, Settings, Wanted, Witness, payload, peer, receive, wait_for,
};
use test_support::with_one_and_three_workers;
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_BINDING, METHOD_REFRESH};

const CHANNEL: u16 = 0x4001;

/// A frame as it stands on a stream.
fn framed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn closed_streams(server: &Server, reason: &str) -> u64 {
    server.scrape().value("throughway_streams_closed_total", &[("reason", reason)])
}

/// Reads until the server closes; gives what came before.
#[track_caller]
fn read_to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    // A reset is an end as well: the server need not have read everything.
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    bytes
}

with_one_and_three_workers! {
    /// A segment boundary says nothing: every byte may come alone.
    fn one_byte_segments_are_put_together(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::tcp(server.tcp4());
        client.challenge();
        let drip = |client: &mut Client, bytes: &[u8]| {
            for byte in bytes {
                client.stream().write_all(&[*byte]).unwrap();
            }
        };
        let allocate = request(METHOD_ALLOCATE, &[Wanted::udp()], client.login.as_ref());
        drip(&mut client, &allocate);
        let relayed = client.answer_to(&allocate).relayed();
        let peer = peer(relayed);
        client.bind(CHANNEL, peer.local_addr().unwrap());
        for size in 0..9 {
            let bytes = payload(size, size as usize);
            drip(&mut client, &framed(channel_data(CHANNEL, &bytes)));
            assert_eq!(receive(&peer), (bytes.clone(), relayed));
            drip(&mut client, &send_indication(peer.local_addr().unwrap(), &bytes));
            assert_eq!(receive(&peer), (bytes, relayed));
        }
        let large = payload(7, 65_507);
        let mut frame = framed(channel_data(CHANNEL, &large));
        let rest = frame.split_off(300);
        drip(&mut client, &frame);
        for part in rest.chunks(1001) {
            client.stream().write_all(part).unwrap();
        }
        assert!(receive(&peer) == (large, relayed));
    }

    /// Requests, indications and channels, all in one segment: each is answered or relayed, in order.
    // [8489-6.3.1.2-2]
    fn many_messages_in_one_segment_are_all_taken(workers: u8) {
        let server = Server::ordinary(workers);
        let mut client = Client::tcp(server.tcp6());
        let relayed = client.allocate();
        let peer = peer(relayed);
        let at = peer.local_addr().unwrap();
        client.bind(CHANNEL, at);
        let binding = request(METHOD_BINDING, &[], None);
        let refresh = request(METHOD_REFRESH, &[Wanted::lifetime(700)], client.login.as_ref());
        let mut segment = Vec::new();
        for round in 0..40_u32 {
            segment.extend(framed(channel_data(CHANNEL, &payload(round, round as usize))));
            segment.extend(send_indication(at, &payload(round + 100, round as usize)));
            if round == 20 {
                segment.extend(&binding);
                segment.extend(&refresh);
            }
        }
        client.send_raw(&segment);
        for round in 0..40_u32 {
            assert_eq!(receive(&peer).0, payload(round, round as usize));
            assert_eq!(receive(&peer).0, payload(round + 100, round as usize));
        }
        assert_eq!(client.answer_to(&binding).code(), 0);
        assert_eq!(client.answer_to(&refresh).lifetime(), 700);
        // The same cut in two at every byte.
        let two = [framed(channel_data(CHANNEL, b"first")), send_indication(at, b"second")].concat();
        for cut in 1..two.len() {
            client.send_raw(&two[..cut]);
            std::thread::sleep(Duration::from_micros(200));
            client.send_raw(&two[cut..]);
            assert_eq!(receive(&peer).0, b"first", "cut at {cut}");
            assert_eq!(receive(&peer).0, b"second", "cut at {cut}");
        }
        expect_silence(&peer);
    }

    /// The allocation lives as long as its stream: closed, half closed, reset, or broken in the middle of a frame.
    fn a_stream_that_ends_takes_its_allocation_along(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.users = vec![("closed", "1"), ("half", "2"), ("reset", "3"), ("middle", "4"), ("garbage", "5")];
        let server = settings.start();
        for (user, password) in server.settings.users.clone() {
            let mut client = Client::tcp(server.tcp4()).user(user, password);
            let relayed = client.allocate();
            let peer = peer(relayed);
            client.bind(CHANNEL, peer.local_addr().unwrap());
            client.send_channel(CHANNEL, b"twelve bytes");
            receive(&peer);
            let broken = closed_streams(&server, "not_stun");
            match user {
                "closed" => client.close(),
                "half" => client.stream().shutdown(std::net::Shutdown::Write).unwrap(),
                "reset" => {
                    socket2::SockRef::from(&*client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(client);
                }
                "middle" => {
                    let frame = framed(channel_data(CHANNEL, &[7; 500]));
                    client.send_raw(&frame[..400]);
                    client.close();
                }
                _ => {
                    client.send_raw(b"\xFFthis is no TURN");
                    client.expect_closed();
                    assert_eq!(closed_streams(&server, "not_stun"), broken + 1);
                }
            }
            let session = server.log.wait_for_session(user);
            assert_eq!(session["reason"], "client_closed", "{user}");
            assert_eq!(session["transport"], "tcp");
            assert_eq!(session["bytes_from_client"], 12, "half a frame is no payload");
            assert_eq!(session["packets_to_peers"], 1);
            assert_eq!(server.live(), 0);
            expect_silence(&peer);
        }
        wait_for("all streams closed", || (server.scrape().value("throughway_streams", &[]) == 0).then_some(()));
    }

    /// limits.tcp_unauthenticated: silence, a slow drip and endless Bindings all end; an allocation does not.
    // [8489-6.2.2-1]
    fn a_stream_without_allocation_has_its_time(workers: u8) {
        let server = Settings::new(workers).limit("tcp_unauthenticated", "\"1s\"").start();
        let mut with_allocation = Client::tcp(server.tcp4());
        with_allocation.allocate();
        let started = Instant::now();
        let mut silent = TcpStream::connect(server.tcp4()).unwrap();
        let mut dripping = TcpStream::connect(server.tcp6()).unwrap();
        let mut binding = Client::tcp(server.tcp4());
        let allocate = request(METHOD_ALLOCATE, &[Wanted::udp()], None);
        let mut sent = 0;
        // A byte each 50 ms never makes a request in time; a Binding proves nothing about anyone.
        let closed = wait_for("the end of the slow drip", || {
            if sent % 10 == 0 && started.elapsed() < Duration::from_millis(700) {
                assert_eq!(binding.binding(), binding.local());
            }
            let end = dripping.write_all(&allocate[sent % allocate.len()..][..1]).is_err();
            sent += 1;
            std::thread::sleep(Duration::from_millis(45));
            end.then(|| started.elapsed())
        });
        assert!(closed >= Duration::from_millis(900), "closed after {closed:?}");
        assert_eq!(read_to_the_end(&mut silent), b"");
        binding.expect_closed();
        assert_eq!(closed_streams(&server, "no_allocation"), 3);
        assert_eq!(with_allocation.refresh(600).code(), 0);
        // Without an allocation, its time runs again.
        assert_eq!(with_allocation.refresh(0).code(), 0);
        let ended = Instant::now();
        with_allocation.expect_closed();
        assert!(ended.elapsed() >= Duration::from_millis(900), "closed after {:?}", ended.elapsed());
        assert_eq!(closed_streams(&server, "no_allocation"), 4);
    }

    /// limits.tcp_queue: who does not read loses packets of his own, whole ones; no other client notices.
    fn a_client_that_does_not_read_harms_only_itself(workers: u8) {
        let settings = Settings::new(workers).limit("tcp_queue", "\"128KiB\"").limit("packet_rate_per_allocation", "0");
        let server = settings.start();
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let mut slow = Client::tcp(server.tcp4()).user("bob", "builder");
        let relayed = slow.allocate();
        let peer = peer(relayed);
        slow.bind(CHANNEL, peer.local_addr().unwrap());
        let before = server.resident_bytes();
        let (mut sent, mut flooded) = (0_u32, false);
        let size = 1000;
        while !flooded {
            assert!(sent < 100_000, "after {sent} packets nothing was dropped");
            for _ in 0..200 {
                peer.send_to(&[&sent.to_be_bytes()[..], &vec![7; size - 4]].concat(), relayed).unwrap();
                sent += 1;
            }
            flooded = server.dropped("slow_client") >= 500;
        }
        witness.see_progress();
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 8 << 20, "memory grew by {grown} bytes");
        // The client wakes up: whole packets in order, then all that comes from now on.
        let mut last = None;
        let mut received = 0;
        while let Some(data) = slow.data_within(Duration::from_millis(300)) {
            assert_eq!((data.from, data.payload.len()), (Origin::Channel(CHANNEL), size));
            let number = u32::from_be_bytes(data.payload[..4].try_into().unwrap());
            assert!(last.is_none_or(|last| number > last), "{number} after {last:?}");
            (last, received) = (Some(number), received + 1);
        }
        for round in 0..20 {
            let bytes = payload(round, 900);
            peer.send_to(&bytes, relayed).unwrap();
            slow.expect_data(Origin::Channel(CHANNEL), &bytes);
            received += 1;
        }
        assert_eq!(slow.refresh(0).code(), 0);
        let session = server.log.wait_for_session("bob");
        assert_eq!(session["packets_to_client"], received, "what is counted as sent has arrived");
        let lost = session["packets_from_peers"].as_u64().unwrap() - received;
        assert_eq!(server.dropped("slow_client"), lost);
        let (_, rounds) = witness.finish();
        assert!(rounds > 10);
    }

    /// What waits for a client that is cut off is not sent: its line says so to the packet.
    fn what_a_lost_client_did_not_get_is_not_counted_as_sent(workers: u8) {
        let settings = Settings::new(workers).limit("tcp_queue", "\"1MiB\"").limit("packet_rate_per_allocation", "0");
        let server = settings.start();
        let mut slow = Client::tcp(server.tcp4()).user("bob", "builder");
        let relayed = slow.allocate();
        let peer = peer(relayed);
        slow.bind(CHANNEL, peer.local_addr().unwrap());
        let mut sent = 0_u64;
        while server.dropped("slow_client") == 0 {
            assert!(sent < 100_000, "after {sent} packets nothing was dropped");
            for _ in 0..200 {
                peer.send_to(&[9; 1000], relayed).unwrap();
                sent += 1;
            }
        }
        let sent_to_clients = [("way", "sent"), ("side", "clients")];
        let sent_before = server.scrape().value("throughway_payload_packets_total", &sent_to_clients);
        socket2::SockRef::from(&*slow.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(slow);
        let session = server.log.wait_for_session("bob");
        assert_eq!(session["reason"], "client_closed");
        let of = |key: &str| session[key].as_u64().unwrap();
        let (full, closed) = (server.dropped("slow_client"), server.dropped("stream_closed"));
        assert!(closed >= 900, "a mebibyte waited, and {closed} packets were given up");
        assert_eq!(of("packets_from_peers"), of("packets_to_client") + full + closed);
        assert_eq!(of("bytes_from_peers"), of("bytes_to_client") + (full + closed) * 1000);
        let sent_after = server.scrape().value("throughway_payload_packets_total", &sent_to_clients);
        assert_eq!(sent_after, of("packets_to_client"));
        assert!(sent_before <= sent_after, "a counter fell from {sent_before} to {sent_after}");
    }

    /// A stop does not wait for a slow client, and does not count as sent what was waiting for it.
    fn a_stop_does_not_wait_for_a_slow_client(workers: u8) {
        let settings = Settings::new(workers).limit("tcp_queue", "\"1MiB\"").limit("packet_rate_per_allocation", "0");
        let mut server = settings.start();
        let mut slow = Client::tcp(server.tcp4()).user("bob", "builder");
        let relayed = slow.allocate();
        let peer = peer(relayed);
        slow.bind(CHANNEL, peer.local_addr().unwrap());
        while server.dropped("slow_client") == 0 {
            for _ in 0..200 {
                peer.send_to(&[9; 1000], relayed).unwrap();
            }
        }
        let full = server.dropped("slow_client");
        server.signal("TERM");
        let asked = Instant::now();
        assert_eq!(server.wait().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
        let session = server.log.wait_for_session("bob");
        assert_eq!(session["reason"], "shutdown");
        let of = |key: &str| session[key].as_u64().unwrap();
        let lost = of("packets_from_peers") - of("packets_to_client");
        assert!(lost >= full + 900, "{lost} of {session} were not sent, {full} before the end");
    }

    /// Whatever comes and goes leaves no descriptor behind.
    fn clients_that_come_and_go_leave_no_descriptor_behind(workers: u8) {
        let server = Server::ordinary(workers);
        let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
        let come_and_go = || {
            let mut client = Client::tcp(server.tcp4());
            client.allocate();
            client.close();
            let mut client = Client::udp(server.udp4());
            client.allocate();
            assert_eq!(client.refresh(0).code(), 0);
            drop(TcpStream::connect(server.tcp6()).unwrap());
            let mut refused = Client::tcp(server.tcp4()).user("mallory", "x");
            assert_eq!(refused.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 401);
        };
        come_and_go();
        let settled = || {
            wait_for("everybody gone", || {
                let scrape = server.scrape();
                let here = scrape.value("throughway_streams", &[]) + scrape.sum("throughway_allocations");
                (here == 0).then_some(())
            });
            // The scrape's own connection closes in its own time.
            std::thread::sleep(Duration::from_millis(50));
            descriptors()
        };
        let before = settled();
        for _ in 0..100 {
            come_and_go();
        }
        assert_eq!(settled(), before);
    }

    /// A client that asks and asks and never reads an answer is cut off: nothing else would bound the answers.
    fn a_client_that_never_reads_its_answers_is_cut_off(workers: u8) {
        let server = Settings::new(workers).limit("tcp_queue", "\"65556B\"").start();
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let before = server.resident_bytes();
        let mut deaf = Client::tcp(server.tcp4()).user("bob", "builder");
        deaf.allocate();
        let questions: Vec<u8> = (0..500).flat_map(|_| request(METHOD_BINDING, &[], None)).collect();
        deaf.stream().set_write_timeout(Some(PATIENCE)).unwrap();
        let mut asked = 0;
        while deaf.stream().write_all(&questions).is_ok() {
            asked += 500;
            assert!(asked < 3_000_000, "{asked} answers wait somewhere");
        }
        assert_eq!(server.log.wait_for_session("bob")["reason"], "client_closed");
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 8 << 20, "memory grew by {grown} bytes");
        witness.finish();
    }

    /// TLS, HTTP and noise on the TURN port: closed at once, counted, nothing said.
    fn other_protocols_are_closed_and_counted(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let hello = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &payload(3, 500)].concat();
        let others: [&[u8]; 7] = [
            &hello,
            b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"\x00\x01\x00\x04GARBAGE",
            b"\x05\x01\x00\x00\x00\x00\x00\x00",
        ];
        for (address, other) in others.iter().flat_map(|other| [(server.tcp4(), other), (server.tcp6(), other)]) {
            let broken = closed_streams(&server, "not_stun");
            server.expect_dropped("not_stun", 1, || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(other).unwrap();
                assert_eq!(read_to_the_end(&mut stream), b"", "{other:?}");
            });
            assert_eq!(closed_streams(&server, "not_stun"), broken + 1);
        }
        witness.finish();
    }

    /// Many connections that say half a message cost little and disturb no client.
    // [8489-6.2.2-4]
    fn half_open_connections_disturb_nobody(workers: u8) {
        let server = Settings::new(workers).limit("tcp_unauthenticated", "\"2s\"").start();
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let before = server.resident_bytes();
        let half = |address: SocketAddr| {
            let mut stream = TcpStream::connect(address).unwrap();
            // It claims to be 1,000 bytes long and says 24.
            stream.write_all(&[&[0x00, 0x03, 0x03, 0xE8, 0x21, 0x12, 0xA4, 0x42][..], &[1; 16]].concat()).unwrap();
            stream
        };
        let streams: Vec<TcpStream> = (0..300).map(|_| half(server.tcp4())).collect();
        wait_for("all of them adopted", || {
            (server.scrape().value("throughway_streams", &[]) == 301).then_some(())
        });
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 8 << 20, "memory grew by {grown} bytes");
        for mut stream in streams {
            assert_eq!(read_to_the_end(&mut stream), b"");
        }
        assert_eq!(closed_streams(&server, "no_allocation"), 300);
        witness.finish();
    }

    /// F-A9: without an allocation nothing is kept of a message that no request for one needs.
    fn a_long_message_without_an_allocation_ends_its_stream(workers: u8) {
        let server = Server::ordinary(workers);
        for length in [2_032_u16, 4_096, 65_000] {
            let before = closed_streams(&server, "not_stun");
            let mut stream = TcpStream::connect(server.tcp4()).unwrap();
            let head = [&[0x00, 0x03][..], &length.to_be_bytes(), &[0x21, 0x12, 0xA4, 0x42], &[1; 12]].concat();
            stream.write_all(&head).unwrap();
            assert_eq!(read_to_the_end(&mut stream), b"", "{length}");
            assert_eq!(closed_streams(&server, "not_stun"), before + 1);
        }
    }

    /// F-A1: requests without an allocation have a rate, and a client that passes it is closed and counted; the others notice nothing.
    fn a_stream_that_only_asks_is_closed(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let binding = [&[0x00, 0x01, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 12]].concat();
        let mut stream = TcpStream::connect(server.tcp4()).unwrap();
        // It may be closed before all of it is written.
        let _ = stream.write_all(&binding.repeat(6_000));
        let answers = read_to_the_end(&mut stream).len() / 32;
        assert!((1..400).contains(&answers), "{answers} of 6,000 requests were answered");
        assert_eq!(closed_streams(&server, "asked_too_much"), 1);
        witness.finish();
    }

    /// F-A1: a client with an allocation may send as many requests as it likes in one piece; all are answered, in order.
    fn pipelined_requests_of_an_allocation_are_all_answered(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let mut client = Client::tcp(server.tcp4());
        client.allocate();
        let binding = |number: u32| {
            [&[0x00, 0x01, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 8], &number.to_be_bytes()].concat()
        };
        let bindings: Vec<_> = (0..3_000).map(binding).collect();
        client.send_raw(&bindings.concat());
        for request in &bindings {
            assert_eq!(client.answer_to(request).code(), 0);
        }
        witness.finish();
    }
}
