//! TCP allocations on real sockets (RFC 6062): connecting, being connected to, and carrying every byte both ways.

use std::fs::read_to_string;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use test_support::e2e::operator;
use test_support::e2e::tls::Authority;
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, PATIENCE, Server, Settings, Wanted, payload, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::attribute::ATTR_XOR_PEER_ADDRESS;
use throughway::wire::message::{
    Known, METHOD_ALLOCATE, METHOD_CONNECT, METHOD_CONNECTION_ATTEMPT, METHOD_CONNECTION_BIND, Message,
};

fn settings(workers: u8) -> Settings {
    let mut settings = Settings::new(workers);
    settings.relay.push(("tcp", "true"));
    settings
}

fn allocate(client: &mut Client) -> SocketAddr {
    client.request(METHOD_ALLOCATE, &[Wanted::tcp()]).relayed()
}

/// A peer that listens.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

/// A port at which no socket listens, and which no other socket gets: bound, so that connections to it are refused.
fn closed_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let at = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, at)
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, from) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, from)
}

/// Connects to a peer; gives the connection's id.
fn connect(client: &mut Client, peer: SocketAddr) -> Vec<u8> {
    let response = client.request(METHOD_CONNECT, &[Wanted::peer(peer)]);
    assert_eq!(response.code(), 0);
    response.bytes(Known::ConnectionId)
}

/// Hears of a peer that connected; gives the connection's id.
fn attempt(client: &mut Client, from: SocketAddr) -> Vec<u8> {
    let told = client.hear();
    assert_eq!(Message::parse(&told.0).unwrap().message_type().method, METHOD_CONNECTION_ATTEMPT);
    assert_eq!(told.address(ATTR_XOR_PEER_ADDRESS), from);
    told.bytes(Known::ConnectionId)
}

/// Makes a client's stream the data connection with this id.
fn bind(mut data: Client, id: &[u8]) -> Client {
    let response = data.request(METHOD_CONNECTION_BIND, &[Wanted::connection(id)]);
    assert_eq!(response.code(), 0);
    assert_eq!(response.bytes(Known::ConnectionId), id);
    data.stream().set_read_timeout(Some(PATIENCE)).unwrap();
    data
}

/// Reads so many bytes of a data connection.
#[track_caller]
fn read(data: &mut Client, count: usize) -> Vec<u8> {
    let mut bytes = data.take_pending();
    let mut buffer = vec![0; 65_536];
    while bytes.len() < count {
        let len = data.read_raw(&mut buffer).expect("bytes in time");
        assert!(len > 0, "the stream ended after {} of {count} bytes", bytes.len());
        bytes.extend_from_slice(&buffer[..len]);
    }
    bytes
}

/// Reads a data connection to its end.
#[track_caller]
fn read_to_end(data: &mut Client) -> Vec<u8> {
    let mut bytes = data.take_pending();
    let mut buffer = vec![0; 65_536];
    loop {
        match data.read_raw(&mut buffer) {
            Ok(0) => return bytes,
            Ok(len) => bytes.extend_from_slice(&buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                return bytes;
            }
            Err(error) => panic!("after {} bytes: {error}", bytes.len()),
        }
    }
}

#[track_caller]
fn read_peer(peer: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    peer.read_exact(&mut bytes).expect("bytes in time");
    bytes
}

/// The end of a stream: said, or by a reset.
#[track_caller]
fn expect_end(peer: &mut TcpStream) {
    let mut rest = Vec::new();
    match peer.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn results(server: &Server, result: &str) -> u64 {
    server.scrape().value("throughway_tcp_connections_total", &[("result", result)])
}

/// No buffers on the way to an end that reads nothing are full with less than this.
const FULL_MIN: usize = 1 << 20;
const FULL_MAX: usize = 64 << 20;

/// Sends this piece again and again until an end that reads nothing holds the sender up: then all buffers in between are
/// full. Gives how many bytes were taken.
#[track_caller]
fn fill(sender: &mut TcpStream, piece: &[u8]) -> usize {
    sender.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut sent = 0;
    while sent < FULL_MAX {
        match sender.write(&piece[sent % piece.len()..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                let is_held_up = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                assert!(is_held_up, "{error} after {sent} bytes");
                if sent >= FULL_MIN {
                    return sent;
                }
                // A slow machine.
                assert!(Instant::now() < deadline, "no more than {sent} bytes were taken");
            }
        }
    }
    panic!("{sent} bytes were taken, and nothing held the sender up");
}

/// Both ends send and read at once, more than any buffer holds; every byte arrives, in order.
fn exchange(mut data: Client, mut peer: TcpStream, seed: u32, len: usize) -> (Client, TcpStream) {
    let (there, back) = (payload(seed, len), payload(seed + 1, len));
    thread::scope(|scope| {
        let mut writer = peer.try_clone().unwrap();
        let (expected, sent) = (&there, &back);
        scope.spawn(move || writer.write_all(sent).unwrap());
        let reader = scope.spawn(move || {
            assert!(read_peer(&mut peer, len) == *expected, "from the client");
            peer
        });
        // A client that reads nothing while it sends so much would be held up for ever, as between any two.
        let mut got = data.take_pending();
        for piece in there.chunks(40_000) {
            data.send_raw(piece);
            if got.len() < len {
                got.extend(read(&mut data, 1));
            }
        }
        if got.len() < len {
            let rest = len - got.len();
            got.extend(read(&mut data, rest));
        }
        assert!(got == back, "from the peer");
        (data, reader.join().unwrap())
    })
}

with_one_and_three_workers! {
    // [6062-5.2-6, -9, 6062-5.4-3, -4]
    fn what_a_client_sends_comes_to_the_peer_and_back_byte_by_byte(workers: u8) {
        let server = operator::start(settings(workers).account("file", "usage.jsonl"));
        let mut client = Client::tcp(server.tcp4());
        let relayed = allocate(&mut client);
        let listed = operator::get(&server, "/v1/sessions");
        let listed = &listed["sessions"][0];
        let told = ["relay_transport", "realm", "transport", "tenant"].map(|field| listed[field].as_str());
        assert_eq!(told, [Some("tcp"), Some("throughway"), Some("tcp"), None], "{listed}");
        // Each data connection may come to another worker.
        for seed in 0..8 {
            let (listener, at) = listener();
            let id = connect(&mut client, at);
            let (mut peer, from) = accept(&listener);
            assert_eq!(from, relayed, "it leaves from the relayed address");
            // Kept until the client asks for it.
            peer.write_all(b"early").unwrap();
            let mut data = bind(Client::tcp(server.tcp4()), &id);
            assert_eq!(read(&mut data, 5), b"early");
            let (data, peer) = exchange(data, peer, seed, 600_000);
            drop((data, peer));
        }
        wait_for("the ends", || (results(&server, "ended") == 8).then_some(()));
        assert_eq!((results(&server, "connected"), results(&server, "bound")), (8, 8));
        assert_eq!(client.refresh(0).code(), 0);
        let record = server.log.wait_for_session("alice");
        let [sent, received] = ["bytes_to_peers", "bytes_to_client"].map(|field| record[field].as_u64().unwrap());
        assert_eq!((sent, received), (8 * 600_000, 8 * 600_005), "counted to the byte: {record}");
        assert_eq!(record["relay_transport"], "tcp", "{record}");
        // One of datagrams beside it.
        let mut client = Client::tcp(server.tcp4());
        client.allocate();
        assert_eq!(client.refresh(0).code(), 0);
        let of_udp = wait_for("its line", || server.log.sessions().get(1).cloned());
        let file = server.directory().join("usage.jsonl");
        let stops = wait_for("the records", || {
            let all = read_to_string(&file).unwrap_or_default();
            let all: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let of = |kind: &str| -> Vec<String> {
                let all = all.iter().filter(|record| record["type"] == kind);
                all.map(|record| record["relay_transport"].as_str().unwrap().to_owned()).collect()
            };
            (of("stop").len() == 2).then(|| [of("start"), of("stop")])
        });
        assert_eq!(stops, [["tcp", "udp"], ["tcp", "udp"]]);
        assert!(of_udp["relay_transport"].is_null(), "{of_udp}");
    }

    fn bytes_behind_the_request_belong_to_the_peer_already(workers: u8) {
        let server = settings(workers).start();
        let mut client = Client::tcp(server.tcp4());
        allocate(&mut client);
        let (listener, at) = listener();
        for size in [1, 2_000, 50_000] {
            let id = connect(&mut client, at);
            let (mut peer, _) = accept(&listener);
            let mut data = Client::tcp(server.tcp4());
            data.challenge();
            let wanted = [Wanted::connection(&id)];
            let request = test_support::e2e::client::request(METHOD_CONNECTION_BIND, &wanted, data.login.as_ref());
            let bytes = payload(size, size as usize);
            data.send_raw(&[request.clone(), bytes.clone()].concat());
            assert_eq!(data.answer_to(&request).code(), 0);
            assert!(read_peer(&mut peer, bytes.len()) == bytes);
            data.close();
            expect_end(&mut peer);
        }
    }

    // [6062-5.3-1, -2, -3, -4]
    fn a_peer_with_permission_is_announced_and_what_it_sends_is_kept(workers: u8) {
        let server = settings(workers).start();
        let mut client = Client::tcp(server.tcp4());
        let relayed = allocate(&mut client);
        let mut stranger = TcpStream::connect(relayed).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        expect_end(&mut stranger);
        client.permit(relayed);
        for seed in 0..4 {
            let mut peer = TcpStream::connect(relayed).unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            peer.write_all(b"hello").unwrap();
            let id = attempt(&mut client, peer.local_addr().unwrap());
            let mut data = bind(Client::tcp(server.tcp4()), &id);
            assert_eq!(read(&mut data, 5), b"hello");
            exchange(data, peer, seed, 300_000);
        }
        assert_eq!((results(&server, "not_permitted"), results(&server, "accepted")), (1, 4));
    }

    /// The end of one way is no end of the other.
    // [6062-5.5-2, -3]
    fn each_side_ends_for_itself(workers: u8) {
        let authority = Authority::new();
        let mut of_tls = authority.settings(workers);
        of_tls.relay.push(("tcp", "true"));
        let server = of_tls.start();
        for is_tls in [false, true] {
            let data_client = || if is_tls { authority.client(server.tls4()) } else { Client::tcp(server.tcp4()) };
            let mut client = data_client();
            allocate(&mut client);
            let (listener, at) = listener();
            // The client first.
            let id = connect(&mut client, at);
            let (mut peer, _) = accept(&listener);
            let mut data = bind(data_client(), &id);
            data.send_raw(&payload(1, 100_000));
            if is_tls {
                data.tls_stream().conn.send_close_notify();
                data.send_raw(&[]);
            } else {
                data.stream().shutdown(Shutdown::Write).unwrap();
            }
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            assert!(all == payload(1, 100_000));
            peer.write_all(b"still here").unwrap();
            assert_eq!(read(&mut data, 10), b"still here");
            drop(peer);
            assert_eq!(read_to_end(&mut data), b"");
            // The peer first.
            let id = connect(&mut client, at);
            let (mut peer, _) = accept(&listener);
            let mut data = bind(data_client(), &id);
            peer.write_all(&payload(2, 100_000)).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert!(read_to_end(&mut data) == payload(2, 100_000));
            data.send_raw(b"and me");
            assert_eq!(read_peer(&mut peer, 6), b"and me");
            data.close();
            expect_end(&mut peer);
            client.close();
        }
        wait_for("the ends", || (results(&server, "ended") == 4).then_some(()));
    }

    fn tls_carries_it_as_well(workers: u8) {
        let authority = Authority::new();
        let mut settings = authority.settings(workers);
        settings.relay.push(("tcp", "true"));
        let server = settings.start();
        let mut client = authority.client(server.tls4());
        let relayed = allocate(&mut client);
        client.permit(relayed);
        for seed in 0..4 {
            let peer = TcpStream::connect(relayed).unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            let id = attempt(&mut client, peer.local_addr().unwrap());
            let data = bind(authority.client(server.tls4()), &id);
            exchange(data, peer, seed, 400_000);
        }
    }
}

// [6062-5.2-7]
#[test]
fn a_closed_port_is_447_at_once() {
    let server = settings(1).start();
    let mut client = Client::tcp(server.tcp4());
    allocate(&mut client);
    let (closed, at) = closed_port();
    assert_eq!(client.request(METHOD_CONNECT, &[Wanted::peer(at)]).code(), 447);
    // The same peer may be tried again.
    closed.listen(8).unwrap();
    let again = TcpListener::from(closed);
    connect(&mut client, at);
    let _accepted = accept(&again);
    assert_eq!(client.request(METHOD_CONNECT, &[Wanted::peer(at)]).code(), 446);
}

/// Neither end can make the server keep more than a read of it, and nothing else waits for such a pair.
#[test]
fn an_end_that_reads_nothing_stops_the_other_one_and_nobody_else() {
    let server = settings(1).start();
    let mut client = Client::tcp(server.tcp4());
    allocate(&mut client);
    let before = server.resident_bytes();
    let mut stuck = Vec::new();
    for client_sends in [true, false] {
        let (listener, at) = listener();
        let id = connect(&mut client, at);
        let (mut peer, _) = accept(&listener);
        let mut data = bind(Client::tcp(server.tcp4()), &id);
        let sender = if client_sends { data.stream() } else { &mut peer };
        fill(sender, &payload(1, 1 << 20));
        stuck.push((data, peer));
    }
    assert!(server.resident_bytes() < before + (16 << 20), "{} bytes more", server.resident_bytes() - before);
    let (listener, at) = listener();
    let id = connect(&mut client, at);
    let (peer, _) = accept(&listener);
    let data = bind(Client::tcp(server.tcp4()), &id);
    exchange(data, peer, 3, 200_000);
    // What is stuck ends with its allocation, and its record has what left and what did not.
    assert_eq!(client.refresh(0).code(), 0);
    for (mut data, mut peer) in stuck {
        expect_end(&mut peer);
        read_to_end(&mut data);
    }
    let record = server.log.wait_for_session("alice");
    let count = |field: &str| record[field].as_u64().unwrap();
    assert!(count("bytes_to_peers") >= 200_000 && count("bytes_to_client") >= 200_000, "{record}");
}

// [6062-5.5-1]
#[test]
fn the_end_of_the_allocation_ends_its_data_connections_and_frees_its_port() {
    let server = settings(3).start();
    for ends_by_closing in [false, true] {
        let mut client = Client::tcp(server.tcp4());
        let relayed = allocate(&mut client);
        client.permit(relayed);
        let (listener, at) = listener();
        let id = connect(&mut client, at);
        let (mut peer, _) = accept(&listener);
        let mut data = bind(Client::tcp(server.tcp4()), &id);
        let mut waiting = TcpStream::connect(relayed).unwrap();
        waiting.set_read_timeout(Some(PATIENCE)).unwrap();
        attempt(&mut client, waiting.local_addr().unwrap());
        if ends_by_closing {
            client.close();
        } else {
            assert_eq!(client.refresh(0).code(), 0);
        }
        expect_end(&mut peer);
        expect_end(&mut waiting);
        assert_eq!(read_to_end(&mut data), b"");
        wait_for("the port", || TcpStream::connect(relayed).is_err().then_some(()));
    }
    wait_for("the last allocation", || (server.live() == 0).then_some(()));
}

/// Each end is no input of its own: hundreds at once cost neither stack nor time.
#[test]
fn hundreds_of_connections_end_together() {
    let server = settings(1).limit("connections_per_allocation", "0").limit("requests_per_allocation", "0").start();
    let mut client = Client::tcp(server.tcp4());
    let relayed = allocate(&mut client);
    client.permit(relayed);
    let pairs: Vec<_> = (0..300)
        .map(|_| {
            let peer = TcpStream::connect(relayed).unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            let id = attempt(&mut client, peer.local_addr().unwrap());
            (bind(Client::tcp(server.tcp4()), &id), peer)
        })
        .collect();
    assert_eq!(client.refresh(0).code(), 0);
    for (mut data, mut peer) in pairs {
        expect_end(&mut peer);
        assert_eq!(read_to_end(&mut data), b"");
    }
    assert_eq!(results(&server, "ended"), 300);
}

#[test]
fn a_byte_budget_holds_for_connections_too() {
    let server = settings(1).limit("bytes_per_credential", "\"300000B\"").start();
    let mut client = Client::tcp(server.tcp4()).minted("north-of-everything", "walter");
    allocate(&mut client);
    let (listener, at) = listener();
    let id = connect(&mut client, at);
    let (mut peer, _) = accept(&listener);
    let (username, password) = (client.username.clone(), client.password.clone());
    let mut data = bind(Client::tcp(server.tcp4()).user(&username, &password), &id);
    let sender = thread::spawn(move || while data.try_send(&payload(1, 10_000)).is_some() {});
    let mut all = Vec::new();
    let _ = peer.read_to_end(&mut all);
    sender.join().unwrap();
    let record = server.log.wait_for_session("walter");
    assert_eq!(record["reason"], "budget");
    let sent = record["bytes_to_peers"].as_u64().unwrap();
    assert!((250_000..=300_000).contains(&sent), "{sent}");
    assert!(all.len() as u64 <= sent);
}

/// Ends that come one after the other over a limit of bandwidth lose nothing.
#[test]
fn a_limit_of_bandwidth_slows_down_and_drops_nothing() {
    let server = settings(1).limit("bandwidth_per_allocation", "\"8Mbit/s\"").start();
    let mut client = Client::tcp(server.tcp4());
    allocate(&mut client);
    let (listener, at) = listener();
    let id = connect(&mut client, at);
    let (peer, _) = accept(&listener);
    let data = bind(Client::tcp(server.tcp4()), &id);
    let start = Instant::now();
    exchange(data, peer, 5, 2_500_000);
    // Each way a second's worth at once, 1,000,000 bytes, then as much a second: 1.5 s, less what clocks round.
    assert!(start.elapsed() >= Duration::from_millis(1_400), "{:?}", start.elapsed());
    assert_eq!(server.dropped("over_bandwidth"), 0);
}

/// Another program takes over in the middle of it: not a byte is lost, whatever stage a connection is at.
#[test]
fn connections_survive_an_upgrade() {
    let authority = Authority::new();
    let mut settings = authority.settings(3);
    settings.relay.push(("tcp", "true"));
    let mut upgradable = Upgradable::start(settings);
    let (tcp, tls) = (upgradable.server.tcp4(), upgradable.server.tls4());
    let mut client = Client::tcp(tcp);
    let relayed = allocate(&mut client);
    client.permit(relayed);
    let mut pairs = Vec::new();
    for is_tls in [false, true, false, true] {
        let (listener, at) = listener();
        let id = connect(&mut client, at);
        let (peer, _) = accept(&listener);
        let data = if is_tls { authority.client(tls) } else { Client::tcp(tcp) };
        pairs.push((bind(data, &id), peer));
    }
    let (listener, at) = listener();
    let id = connect(&mut client, at);
    let waiting = accept(&listener).0;
    // One whose peer reads nothing has its bytes in every place where bytes can be.
    let (mut stuck, mut slow) = pairs.remove(0);
    let piece = payload(9, 1 << 16);
    let sent = fill(stuck.stream(), &piece);
    let carried: Vec<_> = pairs
        .into_iter()
        .enumerate()
        .map(|(seed, (data, peer))| thread::spawn(move || exchange(data, peer, seed as u32, 8_000_000)))
        .collect();
    upgradable.upgrade();
    let pairs: Vec<_> = carried.into_iter().map(|pair| pair.join().unwrap()).collect();
    let bytes = read_peer(&mut slow, sent);
    assert!((0..sent).all(|at| bytes[at] == piece[at % piece.len()]), "in order, and all of it");
    // Established before, bound after.
    let data = bind(Client::tcp(tcp), &id);
    exchange(data, waiting, 20, 100_000);
    // The relayed address still accepts.
    let peer = TcpStream::connect(relayed).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let id = attempt(&mut client, peer.local_addr().unwrap());
    let data = bind(Client::tcp(tcp), &id);
    exchange(data, peer, 30, 100_000);
    drop((pairs, stuck, slow));
    assert_eq!(client.refresh(0).code(), 0);
    let record: Value = upgradable.server.log.wait_for_session("alice");
    let count = |field: &str| record[field].as_u64().unwrap();
    assert_eq!(count("bytes_to_peers"), 3 * 8_000_000 + 200_000 + sent as u64, "{record}");
    assert_eq!(count("bytes_to_client"), 3 * 8_000_000 + 200_000, "{record}");
}
