//! Listeners behind proxies that speak the PROXY protocol: whose a connection is, and who may say so.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use test_support::api::{Answer, BEARER, KEY, key_table, request};
use test_support::e2e::tls::{self, Authority};
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, PATIENCE, Server, Settings, http, wait_for};
use test_support::with_one_and_three_workers;

const ALICE: &str = "198.51.100.7:4711";

fn line(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, own) = if client.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "2001:db8::1") };
    format!("PROXY {family} {} {own} {} 3478\r\n", client.ip(), client.port()).into_bytes()
}

fn binary(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let SocketAddr::V4(client) = client else { panic!("an IPv4 client is wanted") };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0F".to_vec();
    header.extend(client.ip().octets());
    header.extend([192, 0, 2, 1]);
    header.extend(client.port().to_be_bytes());
    header.extend(3478_u16.to_be_bytes());
    // A TLV that says nothing.
    header.extend([0x04, 0, 0]);
    header
}

/// A connection that begins with these bytes.
fn connect(server: SocketAddr, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(header).unwrap();
    stream
}

fn plain(server: SocketAddr, header: &[u8]) -> Client {
    Client::tcp_by(connect(server, header))
}

fn over_tls(authority: &Authority, server: SocketAddr, header: &[u8]) -> Client {
    let config = authority.connector(tls::VERSIONS[1], &[]);
    let connection = ClientConnection::new(config, ServerName::try_from(tls::NAME).unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, connect(server, header));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.flush().unwrap();
    Client::tls(stream)
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_))
}

fn closed(server: &Server, reason: &str) -> u64 {
    server.scrape().value("throughway_streams_closed_total", &[("reason", reason)])
}

fn behind_loopback(workers: u8, authority: &Authority) -> Settings {
    let mut settings = authority.settings(workers);
    settings.auto = settings.tcp.clone();
    settings.proxy_from = vec!["127.0.0.1", "::1"];
    settings
}

with_one_and_three_workers! {
    fn a_connection_is_the_announced_clients(workers: u8) {
        let authority = Authority::new();
        let mut server = Server::start(behind_loopback(workers, &authority));
        let (tcp, tls) = (server.tcp4(), server.tls4());
        let bob = "[2001:db8::7]:815";
        let mut clients = vec![
            (plain(tcp, &line(ALICE)), ALICE),
            (plain(tcp, &binary(ALICE)), ALICE),
            (plain(tcp, &line(bob)), bob),
            (over_tls(&authority, tls, &binary(ALICE)), ALICE),
            (over_tls(&authority, tls, &line(bob)), bob),
        ];
        for (client, announced) in &mut clients {
            assert_eq!(client.binding().to_string(), *announced, "XOR-MAPPED-ADDRESS");
            client.check_call();
        }
        drop(clients);
        wait_for("the records", || (server.log.sessions().len() == 5).then_some(()));
        let mut told: Vec<String> =
            server.log.sessions().iter().map(|session| session["client"].as_str().unwrap().to_owned()).collect();
        told.sort_unstable();
        assert_eq!(told, [ALICE, ALICE, ALICE, bob, bob], "records name the clients");
        server.signal("TERM");
        server.wait();
    }

    fn what_proxies_say_of_themselves_leaves_their_own_address(workers: u8) {
        let server = Server::start(Settings { proxy_from: vec!["127.0.0.0/8"], ..Settings::new(workers) });
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
            let mut client = plain(server.tcp4(), header);
            assert_eq!(client.binding(), client.local());
            client.check_call();
        }
    }

    fn who_is_no_proxy_or_says_nothing_valid_is_closed(workers: u8) {
        let strangers = Server::start(Settings { proxy_from: vec!["127.0.0.2"], ..Settings::new(workers) });
        assert!(is_closed(&mut connect(strangers.tcp4(), &line(ALICE))));
        wait_for("the count", || (closed(&strangers, "proxy_source") == 1).then_some(()));
        let server = Server::start(Settings { proxy_from: vec!["127.0.0.1"], ..Settings::new(workers) });
        let binding = b"\0\x01\0\0\x21\x12\xA4\x42aaaabbbbcccc";
        for (number, header) in [&b"PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n"[..], binding, b"\x16\x03\x01"].into_iter().enumerate() {
            let mut stream = connect(server.tcp4(), header);
            assert!(is_closed(&mut stream), "{header:02x?}");
            wait_for("the count", || (closed(&server, "proxy_header") == number as u64 + 1).then_some(()));
        }
        // One that says nothing at all, and others that are served meanwhile.
        let mut silent = connect(server.tcp4(), b"");
        plain(server.tcp4(), &binary(ALICE)).check_call();
        assert!(is_closed(&mut silent));
        wait_for("the count", || (closed(&server, "proxy_header") == 4).then_some(()));
        assert_eq!(server.log.text().matches("ERROR").count(), 0);
    }

    fn limits_count_for_the_announced_client(workers: u8) {
        let settings = Settings { proxy_from: vec!["127.0.0.1"], ..Settings::new(workers) };
        let server = Server::start(settings.limit("allocations_per_client", "2"));
        let mut kept: Vec<Client> = Vec::new();
        for client in ["198.51.100.7:1", "198.51.100.7:2", "198.51.100.8:1"] {
            let mut client = plain(server.tcp4(), &line(client));
            client.check_call();
            kept.push(client);
        }
        let mut third = plain(server.tcp4(), &line("198.51.100.7:3"));
        let answer = third.request(
            throughway::wire::message::METHOD_ALLOCATE,
            &[test_support::e2e::Wanted::udp(), test_support::e2e::Wanted::family(true)],
        );
        assert_eq!(answer.code(), 486, "two are its limit");
    }

    fn a_reload_changes_it_for_new_connections(workers: u8) {
        let mut server = Server::start(Settings::new(workers));
        let tcp = server.tcp4();
        let mut before = Client::tcp(tcp);
        before.check_call();
        server.reload(Settings { proxy_from: vec!["127.0.0.1", "::1"], ..server.settings.clone() });
        assert!(is_closed(&mut connect(tcp, b"\0\x01\0\0\x21\x12\xA4\x42aaaabbbbcccc")));
        assert_eq!(plain(tcp, &line(ALICE)).binding().to_string(), ALICE);
        assert_eq!(before.refresh(600).code(), 0, "what is there stays");
        server.reload(Settings { proxy_from: Vec::new(), ..server.settings.clone() });
        assert_eq!(Client::tcp(tcp).binding().ip(), tcp.ip());
    }

    fn it_goes_through_upgrades(workers: u8) {
        let mut own = Upgradable::start(Settings { proxy_from: vec!["127.0.0.1", "::1"], ..Settings::new(workers) });
        let mut call = plain(own.server.tcp4(), &binary(ALICE));
        call.check_call();
        own.upgrade();
        assert_eq!(call.refresh(600).code(), 0);
        assert_eq!(call.binding().to_string(), ALICE);
        assert_eq!(plain(own.server.tcp4(), &line(ALICE)).binding().to_string(), ALICE);
        assert!(is_closed(&mut connect(own.server.tcp4(), b"\0\x01\0\0\x21\x12\xA4\x42aaaabbbbcccc")));
    }
}

/// The addresses of `http.public`, in their order.
fn public_of(server: &Server) -> Vec<SocketAddr> {
    let events = server.log.events("serving the credential API");
    let address =
        |event: &serde_json::Value| event["address"].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap();
    events.iter().map(address).collect()
}

fn ask(mut stream: impl std::io::Read + std::io::Write) -> Answer {
    stream.write_all(request("GET", "/v1/credentials?username=erin", &[BEARER], "").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    Answer::parse(&answer)
}

/// With `http.public` as it stands there.
fn with_public(authority: &Authority, public: &str) -> Settings {
    let mut settings = authority.settings(1);
    settings.http = format!("public = {public}");
    settings.tables = key_table("web", KEY, "");
    settings
}

#[test]
fn http_has_the_announced_clients_and_a_reload_changes_it_at_the_same_socket() {
    let authority = Authority::new();
    let proxied = r#"[{ address = "https://127.0.0.1:0", proxy_from = ["127.0.0.1"] }, { address = "[::1]:0", proxy_from = ["::1"] }]"#;
    let mut server = Server::start(with_public(&authority, proxied));
    let public = public_of(&server);
    let over_tls = |header: &[u8]| {
        let config = authority.connector(tls::VERSIONS[1], &[]);
        let connection = ClientConnection::new(config, ServerName::try_from(tls::NAME).unwrap()).unwrap();
        ask(StreamOwned::new(connection, connect(public[0], header)))
    };
    assert_eq!(over_tls(&binary(ALICE)).status, 200);
    assert_eq!(ask(connect(public[1], &line("[2001:db8::7]:815"))).status, 200);
    assert_eq!(ask(connect(public[1], b"PROXY UNKNOWN\r\n")).status, 200);
    let issued = wait_for("the log lines", || {
        let issued = server.log.events("credential issued");
        (issued.len() == 3).then_some(issued)
    });
    let clients: Vec<&str> = issued.iter().map(|event| event["client"].as_str().unwrap()).collect();
    assert_eq!(clients, ["198.51.100.7", "2001:db8::7", "::1"]);
    assert!(is_closed(&mut connect(public[1], b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")));
    let closed = |reason| server.scrape().value("throughway_http_connections_closed_total", &[("reason", reason)]);
    wait_for("the count", || (closed("proxy_header") == 1).then_some(()));
    let strangers = proxied.replace("[\"127.0.0.1\"]", "[\"127.0.0.2\"]").replace("\"[::1]:0\"", "\"https://[::1]:0\"");
    let said = server.reload(with_public(&authority, &strangers));
    assert!(said.contains("changes applied"), "{said}");
    let now = wait_for("the log lines", || {
        let now = public_of(&server);
        (now.len() == 4).then_some(now)
    });
    assert_eq!(now[2..], public[..], "the sockets stay");
    assert!(is_closed(&mut connect(public[0], &line(ALICE))));
    let closed = |reason| server.scrape().value("throughway_http_connections_closed_total", &[("reason", reason)]);
    wait_for("the count", || (closed("proxy_source") == 1).then_some(()));
    let told = ask(connect(public[1], &line("[2001:db8::7]:815")));
    assert_eq!((told.status, told.body.as_str()), (400, "this port speaks TLS: ask with https://\n"));
}

/// Clients are not told of listeners that they can't connect to.
#[test]
fn the_credential_endpoint_does_not_name_them() {
    let mut settings = Settings::new(1);
    settings.proxy_from = vec!["127.0.0.1"];
    let server = Server::start(settings);
    let (_, answer) = http::get(server.http(), "/v1/credentials?username=carol&ttl=300", "localhost");
    assert!(!answer.contains("transport=tcp"), "{answer}");
}
