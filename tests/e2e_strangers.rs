//! What strangers can take: connections that say nothing, or little, from one address, while others come from another.
//!
//! All of 127.0.0.0/8 is this machine, so an attacker and a client have addresses of their own here too.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};
use test_support::api;
use test_support::api::{Answer, BEARER, KEY, key_table, request};
use test_support::e2e::tls::{Authority, NAME, VERSIONS, connect};
use test_support::e2e::{Client, PATIENCE, Server, Settings, client, wait_for};
use throughway::wire::message::METHOD_ALLOCATE;

const STRANGER: [u8; 4] = [127, 0, 0, 2];

/// A connection from this address.
fn connect_from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// So many that send `first` and nothing more.
fn idle_crowd(count: usize, to: SocketAddr, first: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = connect_from(STRANGER, to);
        // The server may have closed it already for one that came later.
        let _ = stream.write_all(first);
        stream
    };
    (0..count).map(open).collect()
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    match read {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn try_ask(mut stream: TcpStream, target: &str, headers: &[(&str, &str)]) -> Option<Answer> {
    stream.write_all(request("GET", target, headers, "").as_bytes()).ok()?;
    let answer = api::read_all(&mut stream);
    (!answer.is_empty()).then(|| Answer::parse(&answer))
}

fn public_address(server: &Server) -> SocketAddr {
    let event = server.log.event("serving the credential API");
    event["address"].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap()
}

fn with_public(mut settings: Settings, public: &str) -> Settings {
    settings.http = format!("public = [{public:?}]");
    settings.tables = key_table("web", KEY, "");
    settings
}

// F-A7
#[test]
fn idle_connections_of_one_address_shut_nobody_out_of_http() {
    let server = with_public(Settings::new(1), "127.0.0.1:0").start();
    let public = public_address(&server);
    for (to, half_header) in [(public, "GET /healthz HTTP/1.1\r\nHost: a"), (server.http(), "")] {
        let before = server.scrape().sum("throughway_http_connections_refused_total");
        // A call that was there first, and says something now and then, keeps its place.
        let mut early = connect_from([127, 0, 0, 1], to);
        let mut crowd = idle_crowd(300, to, half_header.as_bytes());
        for source in [[127, 0, 0, 1], [127, 0, 0, 3], STRANGER] {
            let host = ("Host", "localhost");
            let answer = try_ask(connect_from(source, to), "/healthz", &[host]);
            assert_eq!(answer.map(|answer| answer.status), Some(200), "/healthz of {to} from {source:?}");
            let answer = try_ask(connect_from(source, to), "/v1/credentials?username=alice", &[host, BEARER]);
            assert_eq!(answer.map(|answer| answer.status), Some(200), "a credential of {to} for {source:?}");
        }
        early.write_all(request("GET", "/healthz", &[("Host", "localhost")], "").as_bytes()).unwrap();
        assert_eq!(Answer::parse(&api::read_all(&mut early)).status, 200, "the longest idle, but not of the crowd");
        wait_for("the first of the crowd to give way", || is_closed(&mut crowd[0]).then_some(()));
        assert!(!is_closed(&mut crowd[299]), "the last of the crowd has a place");
        let given_way = server.scrape().sum("throughway_http_connections_refused_total") - before;
        assert!((44..=60).contains(&given_way), "of 301 and a few connections 256 have a place: {given_way} gave way");
    }
}

// F-A7, F-A8
#[test]
fn half_a_handshake_shuts_nobody_out_of_https() {
    let authority = Authority::new();
    let mut settings = with_public(Settings::new(1), "https://127.0.0.1:0");
    settings.certificates = vec![authority.write("first", &[NAME])];
    let server = settings.start();
    let public = public_address(&server);
    let crowd = idle_crowd(2000, public, &[0x16]);
    let mut stream = connect(&authority.connector(VERSIONS[1], &[]), public, NAME).unwrap();
    stream.write_all(request("GET", "/healthz", &[], "").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(Answer::parse(&answer).status, 200);
    drop(crowd);
}

// F-A8
#[test]
fn silent_and_half_open_connections_delay_no_handshake_and_no_plain_stream() {
    let authority = Authority::new();
    let mut settings = authority.settings(1).limit("tls_half_open", "16").limit("tls_handshake", "\"60s\"");
    settings.auto = vec!["127.0.0.1:0".to_owned()];
    settings = settings.limit("tcp_unauthenticated", "\"60s\"");
    let server = settings.start();
    let auto = server.log.events("listening");
    // Of listen.auto the address stands there twice, as TCP and as TLS.
    let address_of = |event: &serde_json::Value| event["address"].as_str().unwrap().to_owned();
    let tls: Vec<String> = auto.iter().filter(|event| event["transport"] == "tls").map(address_of).collect();
    let plain: Vec<String> = auto.iter().filter(|event| event["transport"] == "tcp").map(address_of).collect();
    let both: SocketAddr = tls.iter().find(|address| plain.contains(address)).unwrap().parse().unwrap();
    for (to, first) in [(server.tls4(), &[0x16][..]), (both, &[0x16]), (both, &[])] {
        // With two seconds for each sixteen of them the last would wait for half a minute.
        let crowd = idle_crowd(300, to, first);
        if !first.is_empty() {
            wait_for("the crowd to have all places", || {
                (server.scrape().value("throughway_tls_handshakes_under_way", &[]) == 16).then_some(())
            });
        }
        let mut secure = authority.client(to);
        secure.allocate();
        if to == both {
            Client::tcp(to).allocate();
        }
        drop(crowd);
    }
    // The crowd waits for itself; one of it gave way to each client from elsewhere.
    let refused = || server.scrape().value("throughway_tls_handshakes_total", &[("result", "refused")]);
    wait_for("one to give way to each", || (refused() >= 2).then_some(()));
    assert!(refused() <= 16, "{} gave way", refused());
}

// F-A9
#[test]
fn plain_streams_without_an_allocation_are_counted_and_give_way_by_address() {
    for workers in [1, 3] {
        let settings = Settings::new(workers).limit("tcp_half_open", "20").limit("tcp_unauthenticated", "\"60s\"");
        let server = settings.start();
        let mut early = Client::tcp(server.tcp4());
        assert_eq!(early.binding(), early.local());
        // Streams with an allocation are no longer counted, wherever they come from.
        let mut relaying: Vec<_> = (0..3)
            .map(|_| {
                let mut client = Client::tcp(server.tcp4());
                client.allocate();
                client
            })
            .collect();
        let half_open = || server.scrape().sum("throughway_streams_half_open");
        wait_for("their places to be free", || (half_open() == 1).then_some(()));
        let mut crowd = idle_crowd(100, server.tcp4(), &[]);
        wait_for("81 of 101 to give way", || (given_way(&server) == 81).then_some(()));
        wait_for("the last to reach its worker", || (half_open() == 20).then_some(()));
        wait_for("the first of the crowd to end", || is_closed(&mut crowd[0]).then_some(()));
        assert!(!is_closed(&mut crowd[99]), "the last of the crowd has a place");
        assert_eq!(early.binding(), early.local(), "the longest waiting of all, but alone with its address");
        early.allocate();
        wait_for("its place to be free", || (half_open() == 19).then_some(()));
        // What has lost its allocation counts again.
        assert_eq!(early.refresh(0).code(), 0);
        wait_for("its place to be taken", || (half_open() == 20).then_some(()));
        for client in &mut relaying {
            assert_eq!(client.refresh(600).code(), 0);
        }
        drop(crowd);
        wait_for("all places of the crowd to be free", || (half_open() <= 1).then_some(()));
    }
}

fn given_way(server: &Server) -> u64 {
    server.scrape().value("throughway_streams_closed_total", &[("reason", "gave_way")])
}

// F-A9
#[test]
fn strangers_over_tcp_take_no_file_that_an_allocation_or_http_needs() {
    let server = Server::start_with_open_files(Settings::new(1), 256);
    let crowd = idle_crowd(400, server.tcp4(), &[0, 1]);
    let mut callers = Vec::new();
    for number in 0..60_u8 {
        let mut caller = Client::udp(server.udp4());
        let family = client::Wanted::family(number.is_multiple_of(2));
        let wanted = [client::Wanted::udp(), family];
        let code = caller.request(METHOD_ALLOCATE, &wanted).code();
        assert_eq!(code, 0, "allocation {number}");
        callers.push(caller);
    }
    assert_eq!(server.health("/healthz"), 200);
    drop(crowd);
}

// F-A9
#[test]
fn without_files_http_and_new_streams_are_answered_and_only_allocations_are_refused() {
    let server = Server::start_with_open_files(Settings::new(1), 96);
    let mut callers = Vec::new();
    let code = loop {
        assert!(callers.len() < 96, "96 files made {} allocations", callers.len());
        let mut caller = Client::udp(server.udp4());
        let wanted = [client::Wanted::udp(), client::Wanted::family(callers.len().is_multiple_of(2))];
        let code = caller.request(METHOD_ALLOCATE, &wanted).code();
        if code != 0 {
            break code;
        }
        callers.push(caller);
    };
    assert_eq!(code, 508);
    assert_eq!(server.health("/healthz"), 200);
    // Strangers can't take what is kept back either.
    let mut crowd = idle_crowd(100, server.tcp4(), &[]);
    // At their own ends: the server's count is as low before it has accepted them, and one that it accepts later takes
    // the place of a client that is there.
    wait_for("one to be left of them", || {
        (crowd.iter_mut().filter_map(|one| (!is_closed(one)).then_some(())).count() <= 1).then_some(())
    });
    let mut stream = Client::tcp(server.tcp4());
    assert_eq!(stream.binding(), stream.local());
    assert_eq!(stream.request(METHOD_ALLOCATE, &[client::Wanted::udp()]).code(), 508, "it hears why it gets nothing");
    assert_eq!(server.health("/healthz"), 200);
    drop((crowd, callers));
}

// The wish "HTTP/1.0 without Host on loopback is answered".
#[test]
fn http_1_0_without_host_is_answered_on_loopback_and_http_1_1_is_not() {
    let server = Server::ordinary(1);
    let ask = |text: &str| Answer::parse(&api::send(server.http(), text.as_bytes())).status;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(&format!("GET {path} HTTP/1.0\r\n\r\n")), 200, "{path}");
        assert_eq!(ask(&format!("GET {path} HTTP/1.0\r\nHost: evil.example\r\n\r\n")), 403, "{path}");
        assert_eq!(ask(&format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n")), 403, "{path}");
    }
}

// F-B9
#[test]
fn an_unknown_path_is_told_what_there_is() {
    let server = with_public(Settings::new(1), "127.0.0.1:0").start();
    let public = public_address(&server);
    let ask = |to, path: &str| api::ask(to, "GET", path, &[("Host", "localhost"), BEARER], "");
    for (to, path, near) in [
        (public, "/v1/credential", "/v1/credentials"),
        (public, "/heathz", "/healthz"),
        (server.http(), "/metric", "/metrics"),
        (server.http(), "/v1/session", "/v1/sessions"),
    ] {
        let answer = ask(to, path);
        assert_eq!((answer.status, answer.header("content-type")), (404, Some("application/json")), "{path}");
        let body = answer.json();
        assert_eq!(body["reason"], "not_found");
        assert!(body["error"].as_str().unwrap().contains(&format!("did you mean {near}?")), "{body}");
        let paths: Vec<&str> = body["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
        assert!(paths.contains(&near) && paths.contains(&"/ice"), "{paths:?}");
        assert_eq!(paths.contains(&"/metrics"), to == server.http(), "http.public names nothing that it has not");
        // What is named is there.
        for path in paths {
            assert_ne!(ask(to, &path.replace("{id}", "x").replace("{session}", "x")).status, 404, "{path} of {to}");
        }
    }
}
