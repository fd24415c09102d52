//! Credentials over `https://` listeners of the real binary: TLS clients, wrong ones, certificates that change.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use test_support::api;
use test_support::api::{Answer, BEARER, KEY, key_table, request};
use test_support::e2e::tls::{Authority, NAME, TlsStream, VERSIONS, connect, presented, replace};
use test_support::e2e::{Client, PATIENCE, Server, Settings, wait_for};
use throughway::config::Config;

/// A server whose clients come by UDP and TCP, so that only HTTP needs the certificate.
fn start(authority: &Authority, public: &str) -> Server {
    let mut settings = Settings::new(1);
    settings.certificates = vec![authority.write("first", &[NAME])];
    settings.http = format!("public = {public}");
    settings.tables = key_table("web", KEY, "");
    settings.start()
}

fn public_of(server: &Server) -> Vec<(String, SocketAddr)> {
    let events = server.log.events("serving the credential API");
    let split = |event: &serde_json::Value| {
        let (scheme, address) = event["address"].as_str().unwrap().split_once("://").unwrap();
        (scheme.to_owned(), address.parse().unwrap())
    };
    events.iter().map(split).collect()
}

fn ask(stream: &mut TlsStream, target: &str) -> Answer {
    stream.write_all(request("GET", target, &[BEARER], "").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the answer, and close_notify behind it");
    Answer::parse(&answer)
}

#[test]
fn a_credential_over_https_relays_and_plain_http_lives_beside_it() {
    let authority = Authority::new();
    let server = start(&authority, r#"["https://127.0.0.1:0", "https://[::1]:0", "127.0.0.1:0"]"#);
    let public = public_of(&server);
    let schemes: Vec<&str> = public.iter().map(|(scheme, _)| scheme.as_str()).collect();
    assert_eq!(schemes, ["https", "https", "http"]);
    for (version, (_, address)) in VERSIONS.into_iter().zip(&public) {
        let mut stream = connect(&authority.connector(version, &["http/1.1"]), *address, NAME).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        let answer = ask(&mut stream, "/v1/credentials?username=erin").json();
        let (username, password) = (answer["username"].as_str().unwrap(), answer["password"].as_str().unwrap());
        let mut client = Client::udp(server.udp4()).user(username, password);
        client.allocate();
        assert_eq!(client.refresh(0).code(), 0);
    }
    let client = authority.connector(VERSIONS[1], &[]);
    assert_eq!(ask(&mut connect(&client, public[0].1, NAME).unwrap(), "/healthz").status, 200);
    assert_eq!(ask(&mut connect(&client, public[0].1, NAME).unwrap(), "/metrics").status, 404);
    assert_eq!(api::ask(public[2].1, "GET", "/healthz", &[], "").status, 200);
    // A client that trusts another authority, and one that forgets TLS.
    connect(&Authority::new().connector(VERSIONS[1], &[]), public[0].1, NAME).expect_err("an unknown issuer");
    let told = api::ask(public[0].1, "GET", "/v1/credentials", &[BEARER], "");
    assert_eq!((told.status, told.body.as_str()), (400, "this port speaks TLS: ask with https://\n"));
    let scrape = server.scrape();
    let count = |result| scrape.value("throughway_http_tls_handshakes_total", &[("result", result)]);
    assert_eq!((count("ok"), count("failed")), (4, 2));
    assert_eq!(scrape.value("throughway_tls_handshakes_total", &[("result", "ok")]), 0, "no TURN client came by TLS");
}

#[test]
fn a_new_certificate_is_presented_without_a_restart_and_open_connections_stay() {
    let authority = Authority::new();
    let server = start(&authority, r#"["https://127.0.0.1:0"]"#);
    let address = public_of(&server)[0].1;
    let client = authority.connector(VERSIONS[1], &[]);
    let mut open = connect(&client, address, NAME).unwrap();
    let before = presented(&open);
    let (chain, key) = authority.paths("first");
    let (new_chain, new_key) = authority.issue(&[NAME], 2101);
    replace(&chain, &new_chain);
    replace(&key, &new_key);
    wait_for("the new certificate", || (presented(&connect(&client, address, NAME).unwrap()) != before).then_some(()));
    assert_eq!(ask(&mut open, "/healthz").status, 200, "a connection from before the change");
    // What can't be used changes nothing.
    replace(&key, "nonsense");
    server.log.wait_for_line("the certificate in use stays");
    assert_eq!(ask(&mut connect(&client, address, NAME).unwrap(), "/healthz").status, 200);
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let authority = Authority::new();
    let server = start(&authority, r#"["https://127.0.0.1:0"]"#);
    let address = public_of(&server)[0].1;
    let begun = |_| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[0x16]).unwrap();
        stream
    };
    let silent: Vec<TcpStream> = (0..100).map(begun).collect();
    let client = authority.connector(VERSIONS[1], &[]);
    let asked = std::time::Instant::now();
    assert_eq!(ask(&mut connect(&client, address, NAME).unwrap(), "/healthz").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(8), "before the silent ones run out of time");
    wait_for("those to give way that had no place: 64 of 101 had one", || {
        let refused = server.scrape().value("throughway_http_tls_handshakes_total", &[("result", "refused")]);
        (refused >= 20).then_some(())
    });
    // And a call is not disturbed by them.
    let mut call = Client::udp(server.udp4()).minted("north-of-everything", "zoe");
    call.allocate();
    let mut first = &silent[0];
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(first.read(&mut [0]), Ok(0) | Err(_)), "the oldest was closed");
}

#[test]
fn an_https_listener_without_certificate_or_with_a_wrong_address_is_named() {
    let rest = format!("{}[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n", key_table("web", KEY, ""));
    for (public, says) in [
        ("https://127.0.0.1:28001", "https:// needs a certificate: set tls.certificate"),
        ("https://127.0.0.1", "the port is missing"),
        ("https://turn.example.org:443", "expected an IP address and a port"),
        ("ftp://127.0.0.1:21", "expected \"https://address:port\""),
        ("https://0.0.0.0:3478", "is taken by listen.tcp"),
        ("https://127.0.0.1:8080", "is taken by http.listen"),
    ] {
        let error =
            Config::from_toml("c.toml", &format!("http.public = [{public:?}]\n{rest}")).unwrap_err().to_string();
        assert!(error.contains(says), "{error}\nlacks {says}");
    }
    let warnings = |http: &str| {
        let config = Config::from_toml("c.toml", &format!("{http}\n{rest}")).unwrap();
        config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(warnings("http.public = [\"0.0.0.0:8081\"]").contains("in the clear; write \"https://0.0.0.0:8081\""));
    assert_eq!(warnings("http.public = [\"0.0.0.0:8081\"]\nhttp.proxies = [\"192.0.2.1\"]"), "");
    assert_eq!(warnings("http.public = [\"127.0.0.1:8081\"]"), "");
}
