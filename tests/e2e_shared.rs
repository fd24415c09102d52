//! Ports that a web server has too: whose a connection is, and how the others are passed on to the web server.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use test_support::e2e::tls::{self, Authority};
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, PATIENCE, Server, Settings, http, payload, wait_for};
use test_support::with_one_and_three_workers;

const WEB: &str = "www.example.org";
const ALICE: &str = "198.51.100.7:4711";

/// The web server's place.
struct Web(TcpListener);

impl Web {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

struct Stage {
    authority: Authority,
    web: Web,
}

impl Stage {
    fn new() -> Self {
        Self { authority: Authority::new(), web: Web::new() }
    }

    /// A server whose one port for TLS is shared with the web server; `more` are fields of that table.
    fn settings(&self, workers: u8, more: &str) -> Settings {
        self.settings_for(workers, self.web.address(), more)
    }

    fn settings_for(&self, workers: u8, backend: SocketAddr, more: &str) -> Settings {
        let mut settings = Settings::new(workers);
        settings.certificates = vec![self.authority.write("first", &[tls::NAME, WEB, "127.0.0.1"])];
        settings.tables = table(backend, &format!("names = [\"{}\"]\n{more}", tls::NAME));
        settings
    }

    fn start(&self, more: &str) -> Server {
        self.settings(1, more).start()
    }

    /// What a client says first.
    fn hello(&self, name: &str, alpn: &[&str]) -> (ClientConnection, Vec<u8>) {
        let config = self.authority.connector(tls::VERSIONS[1], alpn);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(config, name).unwrap();
        let mut hello = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut hello).unwrap();
        }
        (client, hello)
    }

    /// A visitor of the web server, whose connection there is already accepted and has read its first message.
    fn visitor(&self, server: SocketAddr) -> (TcpStream, TcpStream) {
        let (_, hello) = self.hello(WEB, &["h2"]);
        let visitor = connect(server, &hello);
        let mut there = self.web.accept();
        assert_eq!(read(&mut there, hello.len()), hello, "untouched");
        (visitor, there)
    }
}

fn table(backend: SocketAddr, more: &str) -> String {
    format!("[[listen.shared]]\naddress = \"127.0.0.1:0\"\nbackend = \"{backend}\"\n{more}\n")
}

fn connect(server: SocketAddr, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(first).unwrap();
    stream
}

fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Both ways still carry.
#[track_caller]
fn check_carries(visitor: &mut TcpStream, there: &mut TcpStream) {
    visitor.write_all(b"a request").unwrap();
    assert_eq!(read(there, 9), b"a request");
    there.write_all(b"its answer").unwrap();
    assert_eq!(read(visitor, 10), b"its answer");
}

fn results(server: &Server, result: &str) -> u64 {
    server.scrape().value("throughway_shared_connections_total", &[("result", result)])
}

fn ended(server: &Server, reason: &str) -> u64 {
    server.scrape().value("throughway_shared_ended_total", &[("reason", reason)])
}

#[track_caller]
fn wait_for_result(server: &Server, result: &str, count: u64) {
    wait_for(result, || (results(server, result) == count).then_some(()));
}

#[track_caller]
fn wait_for_end(server: &Server, reason: &str, count: u64) {
    wait_for(reason, || (ended(server, reason) == count).then_some(()));
}

/// The rest of a handshake whose first message has been sent.
fn go_on(connection: ClientConnection, socket: TcpStream) -> Client {
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.flush().unwrap();
    Client::tls(stream)
}

/// The same message in records of so many bytes.
fn in_records(hello: &[u8], bytes: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&hello[..3], &(part.len() as u16).to_be_bytes(), part].concat();
    hello[5..].chunks(bytes).flat_map(record).collect()
}

with_one_and_three_workers! {
    fn clients_of_turn_are_served(workers: u8) {
        let stage = Stage::new();
        let server = stage.settings(workers, "").start();
        // By name, by application protocol, and because nothing is said.
        let ours: [(&str, &[&str]); 4] =
            [(tls::NAME, &[]), (tls::NAME, &["stun.turn"]), (WEB, &["stun.turn"]), ("127.0.0.1", &[])];
        for (count, (name, alpn)) in (1..).zip(ours) {
            let (connection, hello) = stage.hello(name, alpn);
            let socket = connect(server.tls4(), &hello);
            let own = socket.local_addr().unwrap();
            let mut client = go_on(connection, socket);
            assert_eq!(client.binding(), own, "{name} {alpn:?}");
            client.check_call();
            assert_eq!(results(&server, "own"), count);
        }
        assert_eq!(results(&server, "passed_on"), 0);
    }

    fn a_hello_may_come_in_pieces(workers: u8) {
        let stage = Stage::new();
        let server = stage.settings(workers, "").start();
        for (bytes_of_records, bytes_of_segments) in [(usize::MAX, 1), (1, usize::MAX), (50, 7)] {
            let (connection, hello) = stage.hello(tls::NAME, &[]);
            let whole = in_records(&hello, bytes_of_records.min(hello.len()));
            let mut socket = connect(server.tls4(), &[]);
            for segment in whole.chunks(bytes_of_segments.min(whole.len())) {
                socket.write_all(segment).unwrap();
            }
            go_on(connection, socket).check_call();
            // The same of a visitor: not a byte is changed.
            let (_, hello) = stage.hello(WEB, &[]);
            let whole = in_records(&hello, bytes_of_records.min(hello.len()));
            let mut visitor = connect(server.tls4(), &[]);
            for segment in whole.chunks(bytes_of_segments.min(whole.len())) {
                visitor.write_all(segment).unwrap();
            }
            let mut there = stage.web.accept();
            assert_eq!(read(&mut there, whole.len()), whole);
            check_carries(&mut visitor, &mut there);
        }
    }

    fn it_goes_through_upgrades(workers: u8) {
        let stage = Stage::new();
        let mut own = Upgradable::start(stage.settings(workers, "send_proxy = \"v1\""));
        let port = own.server.tls4();
        let mut call = go_on_with(&stage, port);
        call.check_call();
        let (_, hello) = stage.hello(WEB, &["h2"]);
        let mut visitors: Vec<_> = (0..3)
            .map(|_| {
                let visitor = connect(port, &hello);
                let mut there = stage.web.accept();
                let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", visitor.local_addr().unwrap().port(), port.port());
                assert_eq!(read(&mut there, line.len()), line.as_bytes());
                assert_eq!(read(&mut there, hello.len()), hello);
                (visitor, there)
            })
            .collect();
        // One has said all, and one does not read: what is on its way must not be lost.
        visitors[1].0.shutdown(Shutdown::Write).unwrap();
        assert!(is_closed(&mut visitors[1].1));
        let much = payload(5, 48 << 20);
        visitors[2].1.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut sent = 0;
        while let Ok(bytes) = visitors[2].1.write(&much[sent..]) {
            sent += bytes;
            assert!(sent < much.len(), "full buffers");
        }
        visitors[2].1.set_write_timeout(None).unwrap();
        for _ in 0..2 {
            own.upgrade();
        }
        assert_eq!(call.refresh(600).code(), 0);
        let (visitor, there) = &mut visitors[0];
        check_carries(visitor, there);
        let (visitor, there) = &mut visitors[1];
        there.write_all(b"the last answer").unwrap();
        there.shutdown(Shutdown::Write).unwrap();
        assert_eq!(to_end(visitor), b"the last answer");
        let (visitor, there) = &mut visitors[2];
        let rest = &much[sent..];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                there.write_all(rest).unwrap();
                there.shutdown(Shutdown::Write).unwrap();
            });
            assert!(to_end(visitor) == much, "every byte in its order");
        });
        let mut later = connect(port, &hello);
        let mut there = stage.web.accept();
        assert!(read(&mut there, 6).starts_with(b"PROXY "));
        drop(there);
        assert!(is_closed(&mut later));
        go_on_with(&stage, port).check_call();
        assert_eq!(ended(&own.server, "not_moved"), 0);
        assert_eq!(results(&own.server, "passed_on"), 4);
    }
}

fn go_on_with(stage: &Stage, server: SocketAddr) -> Client {
    let (connection, hello) = stage.hello(tls::NAME, &[]);
    go_on(connection, connect(server, &hello))
}

#[test]
fn everything_else_is_the_web_servers() {
    let stage = Stage::new();
    let server = stage.start("");
    let others: [(&str, &[&str]); 4] =
        [(WEB, &[]), (WEB, &["h2", "http/1.1"]), ("127.0.0.1", &["h2"]), ("a.turn.example.org", &[])];
    let hellos = others.map(|(name, alpn)| stage.hello(name, alpn).1);
    let noise: [&[u8]; 4] =
        [b"GET / HTTP/1.0\r\n\r\n", b"\x80\x2E\x01\x03\x01", b"\0\x01\0\0\x21\x12\xA4\x42", b"\x16\x03\x01\0\0"];
    let all: Vec<Vec<u8>> = hellos.into_iter().chain(noise.map(<[u8]>::to_vec)).collect();
    for (count, first) in (1..).zip(all) {
        let mut visitor = connect(server.tls4(), &first);
        let mut there = stage.web.accept();
        assert_eq!(read(&mut there, first.len()), first);
        check_carries(&mut visitor, &mut there);
        assert_eq!(results(&server, "passed_on"), count);
    }
    assert_eq!(results(&server, "own"), 0);
}

#[test]
fn much_is_carried_byte_for_byte_and_each_way_ends_by_itself() {
    let stage = Stage::new();
    let server = stage.start("");
    let (mut visitor, mut there) = stage.visitor(server.tls4());
    let (out, back) = (Arc::new(payload(1, 6 << 20)), Arc::new(payload(2, 9 << 20)));
    std::thread::scope(|scope| {
        let (mut reads, mut reads_there) = (visitor.try_clone().unwrap(), there.try_clone().unwrap());
        let (sent, sent_back) = (Arc::clone(&out), Arc::clone(&back));
        scope.spawn(move || {
            visitor.write_all(&sent).unwrap();
            visitor.shutdown(Shutdown::Write).unwrap();
        });
        let whole = scope.spawn(move || to_end(&mut reads_there));
        // It has heard all before it says a word.
        let received = whole.join().unwrap();
        assert!(received == *out, "{} bytes came there", received.len());
        scope.spawn(move || {
            there.write_all(&sent_back).unwrap();
            there.shutdown(Shutdown::Write).unwrap();
        });
        let received = to_end(&mut reads);
        assert!(received == *back, "{} bytes came back", received.len());
    });
    wait_for_end(&server, "done", 1);
    let bytes = |direction| server.scrape().value("throughway_shared_bytes_total", &[("direction", direction)]);
    assert!(bytes("to_backend") > 6 << 20 && bytes("to_client") == 9 << 20);
    assert_eq!(server.scrape().value("throughway_shared_passed_on", &[]), 0);
}

#[test]
fn a_web_server_that_never_reads_holds_a_bounded_number_of_bytes_and_is_left() {
    let stage = Stage::new();
    let server = stage.settings(1, "").limit("shared_idle", "\"2s\"").start();
    let (visitor, there) = stage.visitor(server.tls4());
    let before = server.resident_bytes();
    visitor.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut taken = 0;
    while let Ok(bytes) = (&visitor).write(&[7; 65_536]) {
        taken += bytes;
        assert!(taken < 64 << 20, "what waits is bounded");
    }
    assert!(server.resident_bytes() < before + (4 << 20), "by the kernel's buffers");
    go_on_with(&stage, server.tls4()).check_call();
    wait_for_end(&server, "idle", 1);
    drop((visitor, there));
    // One that carries something is left alone.
    let (mut visitor, mut there) = stage.visitor(server.tls4());
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(800));
        check_carries(&mut visitor, &mut there);
    }
    assert!(is_closed(&mut visitor), "until it carries nothing");
    wait_for_end(&server, "idle", 2);
}

#[test]
fn a_web_server_that_is_down_ends_its_visitors_and_nothing_else() {
    let stage = Stage::new();
    // Bound and not listening: no other test gets the port meanwhile.
    let holder = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    holder.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let backend = holder.local_addr().unwrap().as_socket().unwrap();
    let server = stage.settings_for(1, backend, "").start();
    let name = backend.to_string();
    let is_up = || server.scrape().value("throughway_shared_backend_up", &[("backend", &name)]);
    assert_eq!(is_up(), 1, "there was no attempt");
    let mut call = go_on_with(&stage, server.tls4());
    let (_, hello) = stage.hello(WEB, &["h2"]);
    for count in 1..=3 {
        assert!(is_closed(&mut connect(server.tls4(), &hello)));
        wait_for_result(&server, "backend_down", count);
    }
    assert_eq!(is_up(), 0);
    call.check_call();
    let status = || -> serde_json::Value {
        let (_, answer) = http::get(server.http(), "/v1/status", "localhost");
        serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap()
    };
    let shown = status()["shared"]["backends"][0].clone();
    assert_eq!(
        (&shown["address"], &shown["up"], &shown["failures"]),
        (&name.as_str().into(), &false.into(), &3.into())
    );
    assert!(shown["error"].as_str().unwrap().contains("refused"), "{shown}");
    holder.listen(8).unwrap();
    let mut visitor = connect(server.tls4(), &hello);
    let (there, _) = holder.accept().unwrap();
    check_carries(&mut visitor, &mut { read_hello(there.into(), &hello) });
    assert_eq!(is_up(), 1);
    assert_eq!(status()["shared"]["backends"][0]["up"], true);
    let lines = server.log.text();
    assert_eq!(lines.matches("the web server can't be reached").count(), 1, "{lines}");
    assert_eq!(lines.matches("the web server can be reached again").count(), 1, "{lines}");
}

fn read_hello(mut there: TcpStream, hello: &[u8]) -> TcpStream {
    assert_eq!(read(&mut there, hello.len()), hello);
    there
}

#[test]
fn those_who_say_nothing_or_half_a_hello_are_closed_in_time() {
    let stage = Stage::new();
    let server = stage.settings(1, "").limit("tls_handshake", "\"1s\"").start();
    let (_, hello) = stage.hello(tls::NAME, &[]);
    let began = Instant::now();
    let mut all: Vec<TcpStream> = [&[][..], &hello[..1], &hello[..hello.len() - 1]]
        .into_iter()
        .map(|first| connect(server.tls4(), first))
        .collect();
    go_on_with(&stage, server.tls4()).check_call();
    for stream in &mut all {
        assert!(is_closed(stream));
    }
    assert!(began.elapsed() < PATIENCE / 2);
    wait_for_result(&server, "silent", 1);
    wait_for_result(&server, "unfinished", 2);
    // A whole one without the rest of the handshake is a client of TURN like any other.
    assert!(to_end_of_any(&mut connect(server.tls4(), &hello)));
    assert_eq!(server.scrape().value("throughway_tls_handshakes_total", &[("result", "timeout")]), 1);
    drop(connect(server.tls4(), &hello[..7]));
    wait_for_result(&server, "closed", 1);
}

/// Reads whatever comes, up to the end.
fn to_end_of_any(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).is_ok_and(|count| count > 0)
}

#[test]
fn the_web_server_hears_whose_a_connection_is() {
    let stage = Stage::new();
    let alice: SocketAddr = ALICE.parse().unwrap();
    let announced = format!("PROXY TCP4 {} 192.0.2.1 {} 443\r\n", alice.ip(), alice.port());
    for (word, from_proxy) in [("v1", false), ("v2", false), ("v1", true), ("v2", true)] {
        let proxies = if from_proxy { "proxy_from = [\"127.0.0.1\"]" } else { "" };
        let server = stage.start(&format!("send_proxy = \"{word}\"\n{proxies}"));
        let (_, hello) = stage.hello(WEB, &["h2"]);
        let first = if from_proxy { [announced.as_bytes(), &hello].concat() } else { hello.clone() };
        let mut visitor = connect(server.tls4(), &first);
        let mut there = stage.web.accept();
        let client = if from_proxy { alice } else { visitor.local_addr().unwrap() };
        let port = server.tls4().port();
        let due = if word == "v1" {
            format!("PROXY TCP4 {} 127.0.0.1 {} {port}\r\n", client.ip(), client.port()).into_bytes()
        } else {
            let SocketAddr::V4(v4) = client else { panic!("an IPv4 client") };
            let (from, to) = (v4.ip().octets(), [127, 0, 0, 1]);
            let ports = [client.port().to_be_bytes(), port.to_be_bytes()].concat();
            [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C"[..], &from, &to, &ports].concat()
        };
        assert_eq!(read(&mut there, due.len()), due);
        check_carries(&mut visitor, &mut read_hello(there, &hello));
        // A client of TURN beside it is the announced one too.
        let (connection, hello) = stage.hello(tls::NAME, &[]);
        let first = if from_proxy { [announced.as_bytes(), &hello].concat() } else { hello };
        let socket = connect(server.tls4(), &first);
        let own = socket.local_addr().unwrap();
        assert_eq!(go_on(connection, socket).binding(), if from_proxy { alice } else { own });
    }
}

#[test]
fn when_all_places_are_taken_the_longest_idle_visitor_gives_way() {
    let stage = Stage::new();
    let server = stage.settings(1, "").limit("shared_connections", "2").start();
    let mut visitors: Vec<_> = (0..2)
        .map(|_| {
            // Their order is told by milliseconds.
            std::thread::sleep(Duration::from_millis(20));
            stage.visitor(server.tls4())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(1_200));
    let (visitor, there) = &mut visitors[0];
    check_carries(visitor, there);
    let mut third = stage.visitor(server.tls4());
    assert!(is_closed(&mut visitors[1].0), "it said nothing for longer");
    assert!(is_closed(&mut visitors[1].1));
    let (visitor, there) = &mut visitors[0];
    check_carries(visitor, there);
    check_carries(&mut third.0, &mut third.1);
    wait_for_end(&server, "gave_way", 1);
    assert_eq!(server.scrape().value("throughway_shared_passed_on", &[]), 2);
}

#[test]
fn visitors_and_half_a_hello_take_no_place_of_clients() {
    let stage = Stage::new();
    let server = stage.settings(1, "").limit("tcp_half_open", "4").start();
    let mut visitors: Vec<_> = (0..6).map(|_| stage.visitor(server.tls4())).collect();
    let (_, hello) = stage.hello(tls::NAME, &[]);
    let _crowd: Vec<TcpStream> = (0..20).map(|_| connect(server.tls4(), &hello[..40])).collect();
    let mut client = go_on_with(&stage, server.tls4());
    client.check_call();
    for (visitor, there) in &mut visitors {
        check_carries(visitor, there);
    }
    let gave_way = server.scrape().value("throughway_streams_closed_total", &[("reason", "gave_way")]);
    assert!(gave_way >= 16, "{gave_way} of the crowd gave way");
    assert_eq!(ended(&server, "gave_way"), 0);
}

#[test]
fn an_end_that_breaks_off_is_told_to_the_other() {
    let stage = Stage::new();
    let server = stage.start("");
    let (mut visitor, there) = stage.visitor(server.tls4());
    socket2::SockRef::from(&there).set_linger(Some(Duration::ZERO)).unwrap();
    drop(there);
    assert!(is_closed(&mut visitor));
    wait_for_end(&server, "broken", 1);
    let (visitor, mut there) = stage.visitor(server.tls4());
    socket2::SockRef::from(&visitor).set_linger(Some(Duration::ZERO)).unwrap();
    drop(visitor);
    assert!(is_closed(&mut there));
    wait_for_end(&server, "broken", 2);
}

#[test]
fn a_reload_changes_names_and_web_server_and_closes_nothing() {
    let stage = Stage::new();
    let mut server = stage.start("");
    let port = server.tls4();
    let mut call = go_on_with(&stage, port);
    call.check_call();
    let (mut visitor, mut there) = stage.visitor(port);
    let other = Web::new();
    let mut settings = server.settings.clone();
    settings.tables = table(other.address(), &format!("names = [\"{WEB}\"]\nsend_proxy = \"v1\""));
    server.reload(settings);
    check_carries(&mut visitor, &mut there);
    assert_eq!(call.refresh(600).code(), 0);
    // The names have changed their sides.
    let (connection, hello) = stage.hello(WEB, &[]);
    go_on(connection, connect(port, &hello)).check_call();
    let (_, hello) = stage.hello(tls::NAME, &[]);
    let _visitor = connect(port, &hello);
    assert!(read(&mut other.accept(), 6).starts_with(b"PROXY "));
    // And back to a port of its own.
    let mut settings = server.settings.clone();
    (settings.tables, settings.tls) = (String::new(), vec!["127.0.0.1:0".to_owned()]);
    server.reload(settings);
    check_carries(&mut visitor, &mut there);
    go_on_with(&stage, port).check_call();
}
