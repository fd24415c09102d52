//! Clients over TLS: versions, names, records of any shape, certificates that change, and clients that mean harm.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use rustls::{AlertDescription, Error, HandshakeKind};
use test_support::e2e;
use test_support::e2e::client::{channel_data, request, send_indication};
use test_support::e2e::peer::expect_silence;
use test_support::e2e::server::{binary, run_to_end};
use test_support::e2e::tls::{Authority, NAME, TlsStream, VERSIONS, connect, presented, replace};
use test_support::e2e::{Client, Origin, PATIENCE, Server, Witness, payload, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_BINDING;

const CHANNEL: u16 = 0x4001;

fn handshakes(server: &Server, result: &str) -> u64 {
    server.scrape().value("throughway_tls_handshakes_total", &[("result", result)])
}

fn closed_streams(server: &Server, reason: &str) -> u64 {
    server.scrape().value("throughway_streams_closed_total", &[("reason", reason)])
}

fn framed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What rustls says of a failed read or handshake.
fn tls_error(error: &std::io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Reads to the end, which must be said by close_notify.
#[track_caller]
fn expect_goodbye(stream: &mut TlsStream) {
    stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("close_notify before the end");
}

/// Reads a plain socket until the server closes it.
#[track_caller]
fn expect_end(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

with_one_and_three_workers! {
    /// Both versions, both families, every size: what goes in comes out, both ways.
    // [8656-5-11]
    fn calls_pass_over_tls_1_2_and_1_3(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        for version in VERSIONS {
            for at in [server.tls4(), server.tls6()] {
                let stream = connect(&authority.connector(version, &["stun.turn"]), at, NAME).unwrap();
                assert_eq!(stream.conn.protocol_version(), Some(version.version));
                assert_eq!(stream.conn.alpn_protocol(), Some(&b"stun.turn"[..]));
                let mut client = Client::tls(stream);
                assert_eq!(client.binding(), client.local());
                let relayed = client.allocate();
                let peer = peer(relayed);
                let peer_at = peer.local_addr().unwrap();
                client.bind(CHANNEL, peer_at);
                let largest = if relayed.is_ipv4() { 65_507 } else { 65_527 };
                for (seed, size) in [0, 1, 3, 1200, 16_384, 40_001, largest].into_iter().enumerate() {
                    let bytes = payload(seed as u32, size);
                    client.send_channel(CHANNEL, &bytes);
                    assert!(receive(&peer) == (bytes.clone(), relayed), "{size} bytes to the peer");
                    peer.send_to(&bytes, relayed).unwrap();
                    client.expect_data(Origin::Channel(CHANNEL), &bytes);
                }
                let bytes = payload(99, 60_000);
                client.send_to(peer_at, &bytes);
                assert!(receive(&peer).0 == bytes);
                assert_eq!(client.refresh(0).code(), 0);
            }
        }
        assert_eq!(handshakes(&server, "ok"), 4);
        let sessions = wait_for("four sessions", || Some(server.log.sessions()).filter(|all| all.len() == 4));
        assert!(sessions.iter().all(|session| session["transport"] == "tls"));
    }

    /// A record boundary says nothing: every byte may come in a record of its own, or many frames in one.
    fn records_of_any_shape_are_put_together(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        for version in VERSIONS {
            let connector = authority.connector(version, &[]);
            let mut client = Client::tls(connect(&connector, server.tls4(), NAME).unwrap());
            let relayed = client.allocate();
            let peer = peer(relayed);
            let peer_at = peer.local_addr().unwrap();
            client.bind(CHANNEL, peer_at);
            for size in 0..6 {
                let bytes = payload(size, size as usize);
                let both = [framed(channel_data(CHANNEL, &bytes)), send_indication(peer_at, &bytes)].concat();
                for byte in both {
                    client.send_raw(&[byte]);
                }
                assert_eq!(receive(&peer), (bytes.clone(), relayed));
                assert_eq!(receive(&peer), (bytes, relayed));
            }
            let mut many = Vec::new();
            for round in 0..60_u32 {
                many.extend(framed(channel_data(CHANNEL, &payload(round, 150 + round as usize))));
            }
            client.send_raw(&many);
            for round in 0..60_u32 {
                assert_eq!(receive(&peer).0, payload(round, 150 + round as usize));
            }
            // One record in many segments.
            let stream = client.tls_stream();
            stream.conn.writer().write_all(&framed(channel_data(CHANNEL, &payload(7, 900)))).unwrap();
            let mut cipher = Vec::new();
            stream.conn.write_tls(&mut cipher).unwrap();
            for part in cipher.chunks(13) {
                stream.sock.write_all(part).unwrap();
            }
            assert_eq!(receive(&peer).0, payload(7, 900));
            // TLS 1.3: the client asks for new keys, and our answer comes between two frames.
            if version.version == rustls::ProtocolVersion::TLSv1_3 {
                client.tls_stream().conn.refresh_traffic_keys().unwrap();
            }
            for round in 0..3 {
                client.send_channel(CHANNEL, &payload(round, 99));
                assert_eq!(receive(&peer).0, payload(round, 99));
                peer.send_to(&payload(round, 101), relayed).unwrap();
                client.expect_data(Origin::Channel(CHANNEL), &payload(round, 101));
            }
            expect_silence(&peer);
        }
    }

    /// What follows the handshake in the same segments is not lost on the way to the worker.
    fn a_request_right_behind_the_handshake_is_answered(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        for version in VERSIONS {
            for _ in 0..8 {
                let config = authority.connector(version, &[]);
                // rustls keeps what is written before the end of the handshake and sends it with its last flight.
                let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
                let mut connection = rustls::ClientConnection::new(config, name).unwrap();
                let binding = request(METHOD_BINDING, &[], None);
                connection.writer().write_all(&binding).unwrap();
                let socket = TcpStream::connect(server.tls4()).unwrap();
                let mut client = Client::tls(rustls::StreamOwned::new(connection, socket));
                assert_eq!(client.answer_to(&binding).code(), 0);
            }
        }
    }

    /// RFC 7443: either name, or none at all; a client that offers only others is told so. [7443-1-1, -2]
    fn alpn_is_one_of_ours_or_none(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        let cases: [(&[&str], Option<&str>); 5] = [
            (&[], None),
            (&["stun.turn"], Some("stun.turn")),
            (&["stun.nat-discovery"], Some("stun.nat-discovery")),
            (&["stun.nat-discovery", "stun.turn"], Some("stun.turn")),
            (&["h2", "stun.nat-discovery"], Some("stun.nat-discovery")),
        ];
        for version in VERSIONS {
            for (offers, expected) in cases {
                let stream = connect(&authority.connector(version, offers), server.tls4(), NAME).unwrap();
                assert_eq!(stream.conn.alpn_protocol(), expected.map(str::as_bytes), "{offers:?}");
            }
            let failed = handshakes(&server, "failed");
            let error = connect(&authority.connector(version, &["h2", "http/1.1"]), server.tls4(), NAME).unwrap_err();
            assert_eq!(tls_error(&error), Some(&Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
            wait_for("the failure counted", || (handshakes(&server, "failed") == failed + 1).then_some(()));
        }
    }

    /// Each name has its certificate; an unknown name gets the first.
    fn the_server_name_chooses_the_certificate(workers: u8) {
        let authority = Authority::new();
        let mut settings = authority.settings(workers);
        let second = authority.write("second", &["relay.example.net", "*.calls.example.net"]);
        settings.certificates.push(second);
        let server = settings.start();
        for version in VERSIONS {
            let connector = authority.connector(version, &[]);
            let get = |name| connect(&connector, server.tls4(), name);
            let (first, second) = (presented(&get(NAME).unwrap()), presented(&get("relay.example.net").unwrap()));
            assert_ne!(first, second);
            assert_eq!(presented(&get("a.calls.example.net").unwrap()), second);
            // A wildcard is one label, and no other name is certified.
            for unknown in ["a.b.calls.example.net", "calls.example.net", "other.example.org"] {
                let error = get(unknown).unwrap_err();
                assert!(matches!(tls_error(&error), Some(Error::InvalidCertificate(_))), "{unknown}: {error}");
            }
        }
        let days = |at: &str| server.scrape().value("throughway_tls_certificate_days", &[("certificate", at)]);
        assert!((20_000..30_000).contains(&days("0")) && days("0") == days("1"));
    }

    /// New files are presented to new clients; those who are connected notice nothing.
    fn certificates_change_during_a_call(workers: u8) {
        let authority = Authority::new();
        let mut settings = authority.settings(workers);
        // As orchestrators mount secrets: the path leads over a link to a directory that is swapped whole.
        let root = authority.directory.path().to_owned();
        for (name, ends) in [("one", 2090), ("two", 2091)] {
            fs::create_dir(root.join(name)).unwrap();
            let (certificate, key) = authority.issue(&["linked.example.org"], ends);
            fs::write(root.join(name).join("chain.pem"), certificate).unwrap();
            fs::write(root.join(name).join("key.pem"), key).unwrap();
        }
        symlink("one", root.join("current")).unwrap();
        settings.certificates.push((root.join("current/chain.pem"), root.join("current/key.pem")));
        let server = settings.start();
        let witness = Witness::start(authority.client(server.tls4()));
        let see = |name| presented(&connect(&authority.connector(VERSIONS[1], &[]), server.tls4(), name).unwrap());
        let (first, linked) = (see(NAME), see("linked.example.org"));

        authority.write("first", &[NAME]);
        symlink("two", root.join("next")).unwrap();
        fs::rename(root.join("next"), root.join("current")).unwrap();
        wait_for("the new certificate", || (see(NAME) != first).then_some(()));
        wait_for("the certificate behind the link", || (see("linked.example.org") != linked).then_some(()));

        // A bad file keeps the old one, and the log names the file and the reason.
        let second = see(NAME);
        let (_, key) = authority.paths("first");
        replace(&key, &authority.issue(&[NAME], 2100).1);
        let line = server.log.wait_for_line("is not the key of");
        assert!(line.contains("the certificate in use stays") && line.contains(key.to_str().unwrap()), "{line}");
        assert_eq!(see(NAME), second);

        // SIGHUP takes over at once, other paths included.
        let mut server = server;
        let mut settings = server.settings.clone();
        settings.certificates = vec![authority.write("third", &[NAME])];
        server.reload(settings);
        let see = || presented(&connect(&authority.connector(VERSIONS[1], &[]), server.tls4(), NAME).unwrap());
        wait_for("the certificate of the reload", || (see() != second).then_some(()));
        let (mut client, rounds) = witness.finish();
        assert!(rounds > 10);
        assert_eq!(client.refresh(0).code(), 0);
    }

    /// A second visit costs no signature.
    fn sessions_are_resumed(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        for (visits, version) in VERSIONS.into_iter().enumerate() {
            let connector = authority.connector(version, &[]);
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let mut client = Client::tls(connect(&connector, server.tls4(), NAME).unwrap());
                assert_eq!(client.tls_stream().conn.handshake_kind(), Some(expected));
                // The tickets of TLS 1.3 come with the first answer.
                client.binding();
            }
            assert_eq!(server.scrape().value("throughway_tls_resumptions_total", &[]), visits as u64 + 1);
        }
    }

    /// A client that changes its key, and asks us to change ours, again and again; too often is too much.
    fn keys_change_during_a_call(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        let mut client = authority.client(server.tls4());
        let relayed = client.allocate();
        let peer = peer(relayed);
        client.bind(CHANNEL, peer.local_addr().unwrap());
        for round in 0..32_u8 {
            client.tls_stream().conn.refresh_traffic_keys().unwrap();
            client.send_channel(CHANNEL, &[round; 700]);
            let (payload, from) = receive(&peer);
            assert_eq!(payload, [round; 700]);
            peer.send_to(&payload, from).unwrap();
            client.expect_data(Origin::Channel(CHANNEL), &[round; 700]);
        }
        assert_eq!(closed_streams(&server, "tls_broken"), 0);
        client.tls_stream().conn.refresh_traffic_keys().unwrap();
        client.send_channel(CHANNEL, b"once too often");
        client.expect_closed();
        wait_for("the stream to be counted", || (closed_streams(&server, "tls_broken") == 1).then_some(()));
    }

    /// Connections that never shake hands cost time and memory within limits, and keep no client out.
    fn half_open_connections_disturb_nobody(workers: u8) {
        let authority = Authority::new();
        let settings = authority.settings(workers).limit("tls_half_open", "9").limit("tls_handshake", "\"3s\"");
        let server = settings.start();
        let witness = Witness::start(authority.client(server.tls4()));
        // The first says nothing at all and has no place among them.
        let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        let flood: Vec<TcpStream> = (0..10)
            .map(|number| {
                let mut stream = TcpStream::connect(server.tls4()).unwrap();
                stream.write_all(&hello[..number % hello.len()]).unwrap();
                stream
            })
            .collect();
        let under_way = || server.scrape().value("throughway_tls_handshakes_under_way", &[]);
        wait_for("all places to be taken", || (under_way() == 9).then_some(()));
        let started = Instant::now();
        let mut late = authority.client(server.tls4()).user("bob", "builder");
        late.allocate();
        assert!(started.elapsed() < PATIENCE, "let in after {:?}", started.elapsed());
        assert!(under_way() <= 9);
        for stream in flood {
            expect_end(stream);
        }
        wait_for("all counted", || {
            let (refused, timeout) = (handshakes(&server, "refused"), handshakes(&server, "timeout"));
            ((refused, timeout) == (1, 9)).then_some(())
        });
        assert_eq!(late.refresh(0).code(), 0);
        witness.finish();
    }

    /// All clients come back at once: none is turned away, and the calls that live on lose nothing.
    fn a_crowd_that_reconnects_gets_in(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).limit("tls_half_open", "16").start();
        let witness = Witness::start(authority.client(server.tls4()));
        let crowd: Vec<_> = (0..40)
            .map(|number| {
                let connector = authority.connector(VERSIONS[number % 2], &[]);
                let at = server.tls4();
                std::thread::spawn(move || {
                    for _ in 0..5 {
                        let mut client = Client::tls(connect(&connector, at, NAME).unwrap());
                        assert_eq!(client.binding(), client.local());
                    }
                })
            })
            .collect();
        crowd.into_iter().for_each(|client| client.join().unwrap());
        assert_eq!((handshakes(&server, "ok"), handshakes(&server, "refused")), (201, 0));
        witness.finish();
    }

    /// limits.tcp_queue holds for TLS as well: who does not read loses whole packets of his own.
    fn a_client_that_does_not_read_harms_only_itself(workers: u8) {
        let authority = Authority::new();
        let settings = authority.settings(workers).limit("tcp_queue", "\"128KiB\"");
        let server = settings.limit("packet_rate_per_allocation", "0").start();
        let witness = Witness::start(authority.client(server.tls4()));
        for (user, version) in [("alice", VERSIONS[0]), ("bob", VERSIONS[1])] {
            let connector = authority.connector(version, &[]);
            let stream = connect(&connector, server.tls4(), NAME).unwrap();
            let password = if user == "bob" { "builder" } else { "wonderland" };
            let mut slow = Client::tls(stream).user(user, password);
            let relayed = slow.allocate();
            let peer = peer(relayed);
            slow.bind(CHANNEL, peer.local_addr().unwrap());
            let (before, dropped) = (server.resident_bytes(), server.dropped("slow_client"));
            let (mut sent, mut flooded) = (0_u32, false);
            let size = 1000;
            while !flooded {
                assert!(sent < 100_000, "after {sent} packets nothing was dropped");
                for _ in 0..200 {
                    peer.send_to(&[&sent.to_be_bytes()[..], &vec![7; size - 4]].concat(), relayed).unwrap();
                    sent += 1;
                }
                flooded = server.dropped("slow_client") >= dropped + 500;
            }
            witness.see_progress();
            let grown = server.resident_bytes().saturating_sub(before);
            assert!(grown < 8 << 20, "memory grew by {grown} bytes");
            let (mut last, mut received) = (None, 0);
            while let Some(data) = slow.data_within(Duration::from_millis(300)) {
                assert_eq!((data.from, data.payload.len()), (Origin::Channel(CHANNEL), size));
                let number = u32::from_be_bytes(data.payload[..4].try_into().unwrap());
                assert!(last.is_none_or(|last| number > last), "{number} after {last:?}");
                (last, received) = (Some(number), received + 1);
            }
            peer.send_to(b"again", relayed).unwrap();
            slow.expect_data(Origin::Channel(CHANNEL), b"again");
            assert_eq!(slow.refresh(0).code(), 0);
            let session = wait_for("its session line", || {
                server.log.sessions().into_iter().find(|line| line["relayed"] == relayed.to_string())
            });
            assert_eq!(session["packets_to_client"], received + 1, "what is counted as sent has arrived");
        }
        let (_, rounds) = witness.finish();
        assert!(rounds > 10);
    }

    /// What is no TLS is counted and closed; the end of a connection is said on both sides.
    fn broken_tls_and_the_end_of_a_connection(workers: u8) {
        let authority = Authority::new();
        let mut server = authority.settings(workers).start();
        let failed = handshakes(&server, "failed");
        for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42], &[0x16, 3, 1, 0, 4, 9, 9, 9, 9]] {
            let mut stream = TcpStream::connect(server.tls4()).unwrap();
            stream.write_all(noise).unwrap();
            expect_end(stream);
        }
        wait_for("the failures counted", || (handshakes(&server, "failed") == failed + 3).then_some(()));

        // A record that was not encrypted ends the call, and the client hears why.
        let mut client = authority.client(server.tls4());
        client.allocate();
        client.stream().write_all(b"\x17\x03\x03\x00\x20nobody encrypted these 32 bytes.").unwrap();
        client.tls_stream().sock.set_read_timeout(Some(PATIENCE)).unwrap();
        let error = client.tls_stream().read(&mut [0; 64]).unwrap_err();
        assert_eq!(tls_error(&error), Some(&Error::AlertReceived(AlertDescription::BadRecordMac)));
        assert_eq!(server.log.wait_for_session("alice")["reason"], "client_closed");
        assert_eq!(closed_streams(&server, "tls_broken"), 1);

        // Frames that are no TURN end it as they do on TCP, with close_notify.
        let mut client = authority.client(server.tls4());
        client.send_raw(b"\xFFthis is no TURN");
        expect_goodbye(client.tls_stream());
        assert_eq!(closed_streams(&server, "not_stun"), 1);

        // The client's close_notify, with its socket still open, ends the session.
        let mut client = authority.client(server.tls6()).user("bob", "builder");
        client.allocate();
        client.tls_stream().conn.send_close_notify();
        client.tls_stream().flush().unwrap();
        expect_goodbye(client.tls_stream());
        assert_eq!(server.log.wait_for_session("bob")["reason"], "client_closed");

        // And the server says goodbye when it stops.
        let mut client = authority.client(server.tls4());
        client.allocate();
        server.signal("TERM");
        expect_goodbye(client.tls_stream());
        assert!(server.wait().success());
    }

    /// listen.auto: the first byte tells what comes.
    fn one_port_takes_tls_and_plain_streams(workers: u8) {
        let authority = Authority::new();
        let mut settings = authority.settings(workers).limit("tcp_unauthenticated", "\"1s\"");
        settings.auto = std::mem::take(&mut settings.tls);
        settings.tcp = Vec::new();
        let server = settings.start();
        for (tls, tcp) in [(server.tls4(), server.tcp4()), (server.tls6(), server.tcp6())] {
            assert_eq!(tls, tcp, "one port for both");
            let witness = Witness::start(authority.client(tls));
            for plain in [true, false] {
                let mut client = if plain { Client::tcp(tcp) } else { authority.client(tls) };
                assert_eq!(client.binding(), client.local());
                let relayed = client.allocate();
                let peer = peer(relayed);
                client.bind(CHANNEL, peer.local_addr().unwrap());
                client.send_channel(CHANNEL, b"there");
                assert_eq!(receive(&peer).0, b"there");
                peer.send_to(b"and back", relayed).unwrap();
                client.expect_data(Origin::Channel(CHANNEL), b"and back");
            }
            let live = server.scrape();
            let of = |transport: &str| {
                let family = if tls.is_ipv4() { "ipv4" } else { "ipv6" };
                live.value("throughway_allocations", &[("transport", transport), ("family", family)])
            };
            assert!(of("tls") >= 1);
            // A first byte alone, then the rest; noise; ChannelData without an allocation; silence.
            let mut client = Client::tcp(tcp);
            let binding = request(METHOD_BINDING, &[], None);
            client.send_raw(&binding[..1]);
            client.send_raw(&binding[1..]);
            assert_eq!(client.answer_to(&binding).code(), 0);
            let (broken, silent) = (closed_streams(&server, "not_stun"), closed_streams(&server, "silent"));
            for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x40, 0, 0, 9, 1], &[0xFF]] {
                let mut stream = TcpStream::connect(tcp).unwrap();
                stream.write_all(noise).unwrap();
                expect_end(stream);
            }
            assert_eq!(closed_streams(&server, "not_stun"), broken + 3);
            if tls.is_ipv4() {
                expect_end(TcpStream::connect(tcp).unwrap());
                assert_eq!(closed_streams(&server, "silent"), silent + 1);
            }
            witness.finish();
        }
    }
}

#[test]
fn a_wrong_certificate_is_named_before_any_port_is_bound() {
    let authority = Authority::new();
    let good = authority.settings(1);
    let config = authority.directory.path().join("config.toml");
    let start = |settings: &e2e::Settings| {
        fs::write(&config, settings.text(&(27_000..=27_010))).unwrap();
        run_to_end(&config)
    };
    let mut missing = good.clone();
    missing.certificates[0].0 = authority.directory.path().join("nowhere.pem");
    let mut swapped = good.clone();
    let (certificate, key) = swapped.certificates[0].clone();
    swapped.certificates[0] = (key, certificate);
    let mut none = good.clone();
    none.certificates.clear();
    let mut other = good.clone();
    other.certificates[0].1 = authority.write("other", &[NAME]).1;
    for (settings, parts) in [
        (&missing, &["tls.certificate = ", "nowhere.pem: can't be read"][..]),
        (&swapped, &["tls.certificate = ", "holds no certificate"]),
        (&none, &["listen.tls = \"127.0.0.1:0\"", "needs a certificate: set tls.certificate and tls.private_key"]),
        (&other, &["tls.private_key = ", "is not the key of"]),
    ] {
        let (code, said) = start(settings);
        assert_eq!(code, 2, "{said}");
        for part in parts {
            assert!(said.contains(part), "{said}\nlacks {part}");
        }
    }
    // Minted credentials name the listener under the certificate's name.
    let mut named = good;
    named.tls = vec!["127.0.0.1:27005".to_owned()];
    fs::write(&config, named.text(&(27_006..=27_010))).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary(&config).get_program());
        let output = command.args(arguments).arg(&config).env_clear().output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&["credentials", "mint", "--user", "bob", "--config"]);
    assert!(said.contains(&format!("\"turns:{NAME}:27005?transport=tcp\"")), "{said}");
    let said = run(&["check-config"]);
    let certificate = named.certificates[0].0.display().to_string();
    for part in ["tls 127.0.0.1:27005", &certificate, "TLS handshakes: 1000 at once, 10s each"] {
        assert!(said.contains(part), "{said}\nlacks {part}");
    }
}
