//! `throughway check`, the real binary, against the real server and against set-ups that are broken on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use test_support::e2e::server::Directory;
use test_support::e2e::tls::Authority;
use test_support::e2e::{Server, Settings};

/// SHA-256 of the word `key`, which is the API key.
const KEY_SHA256: &str = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";

/// No case may take longer; a monitor waits for it.
const LONGEST: Duration = Duration::from_secs(5);

/// What one run said.
struct Said {
    code: i32,
    json: Value,
    text: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughway"));
    command.arg("check").args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// Runs `check --json` with short times.
fn check(arguments: &[&str]) -> Said {
    let started = Instant::now();
    let output = command(arguments).args(["--json", "--timeout", "1s"]).output().unwrap();
    assert!(started.elapsed() < LONGEST, "{arguments:?} took {:?}", started.elapsed());
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Said { code: output.status.code().expect("an exit code"), json, text }
}

fn check_alice(uri: &str) -> Said {
    check(&[uri, "--username", "alice", "--password", "wonderland", "--burst-time", "0s"])
}

impl Said {
    fn subjects(&self) -> &[Value] {
        self.json["subjects"].as_array().unwrap_or_else(|| panic!("no report: {}", self.text))
    }

    /// Outcome by step of one subject.
    fn outcomes(&self, subject: usize) -> BTreeMap<&str, &str> {
        let steps = self.subjects()[subject]["steps"].as_array().unwrap();
        steps.iter().map(|step| (step["step"].as_str().unwrap(), step["outcome"].as_str().unwrap())).collect()
    }

    /// Asserts that a step ended so, and gives what it said and its remedy.
    #[track_caller]
    fn step(&self, name: &str, outcome: &str) -> String {
        let steps = self.subjects().iter().flat_map(|subject| subject["steps"].as_array().unwrap());
        let mut of_name = steps.filter(|step| step["step"] == name);
        let step = of_name.find(|step| step["outcome"] == outcome);
        let step = step.unwrap_or_else(|| panic!("no {name} that is {outcome} in {:#}", self.json));
        format!("{} | {}", step["detail"].as_str().unwrap(), step["remedy"].as_str().unwrap_or_default())
    }
}

fn udp(address: SocketAddr) -> String {
    format!("turn:{address}?transport=udp")
}

fn tcp(address: SocketAddr) -> String {
    format!("turn:{address}?transport=tcp")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A credential endpoint that gives this answer to each who asks, until the test ends.
fn endpoint(status: &'static str, header: &'static str, body: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /turn?service=turn HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
            let has_key = request.contains("\r\nAuthorization: Bearer key\r\n");
            let status = if has_key { status } else { "401 Unauthorized" };
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\n\r\n{body}");
        }
    });
    format!("http://{address}/turn?service=turn")
}

/// As `credentials mint` makes it, under the secret of the ordinary settings.
fn minted(expires_at: u64) -> (String, String) {
    use throughway::credentials::{Algorithm, Secret, SharedSecret, password};
    let secret = SharedSecret::new("x", Secret::new(&b"north-of-everything"[..]), Algorithm::Sha1);
    let username = format!("{expires_at}:carol");
    let password = password(&secret, username.as_bytes()).as_str().to_owned();
    (username, password)
}

#[test]
fn every_transport_and_family_of_an_endpoints_answer_is_fine() {
    let mut server = Server::ordinary(1);
    let (username, password) = minted(now() + 3600);
    let uris = [udp(server.udp4()), tcp(server.tcp4()), udp(server.udp6()), tcp(server.tcp6())];
    let body = serde_json::json!({ "username": username, "password": password, "ttl": 3600, "uris": uris });
    let url = endpoint("200 OK", "", body.to_string());
    let said = check(&[
        &url,
        "--header",
        "Authorization: Bearer key",
        "--burst-time",
        "1s",
        "--burst-rate",
        "200kbit/s",
        "-4",
    ]);
    // The family option leaves the endpoint and the two IPv4 servers, each named.
    assert_eq!(said.code, 0, "{:#}", said.json);
    assert_eq!((&said.json["ok"], &said.json["failed"], &said.json["warned"]), (&true.into(), &0.into(), &0.into()));
    assert!(said.step("clock", "ok").contains("within 1 s"));
    let all: Vec<&str> = said.subjects().iter().map(|subject| subject["transport"].as_str().unwrap()).collect();
    assert_eq!(all, ["http", "udp", "tcp", "udp", "tcp"]);
    let fine = [
        "reach",
        "binding",
        "round-trip",
        "challenge",
        "allocate",
        "relayed-address",
        "refresh",
        "hairpin",
        "peer",
        "channels",
        "sizes",
        "burst",
        "release",
        "other-family",
    ];
    for subject in [1, 2] {
        let outcomes = said.outcomes(subject);
        for step in fine {
            assert_eq!(outcomes.get(step), Some(&"ok"), "{step}: {:#}", said.json);
        }
    }
    assert_eq!(said.outcomes(1).get("foreign-client"), Some(&"ok"));
    // 200 kbit/s for one second is 25 packets of 1000 bytes, never more.
    let burst = said.subjects()[1]["steps"].as_array().unwrap().iter().find(|step| step["step"] == "burst").unwrap();
    assert_eq!(burst["values"]["received"], burst["values"]["sent"]);
    assert!((1..=25).contains(&burst["values"]["sent"].as_u64().unwrap()), "{burst}");
    let sizes = said.subjects()[1]["steps"].as_array().unwrap().iter().find(|step| step["step"] == "sizes").unwrap();
    assert_eq!(sizes["values"], serde_json::json!({ "to_peer": 8000, "to_client": 8000 }));
    // Nothing stays behind, and the user is who the credential says.
    assert_eq!(server.live(), 0);
    assert_eq!(server.log.wait_for_session("carol")["reason"], "refreshed");
    server.signal("TERM");
    assert!(server.wait().success());
}

#[test]
fn ipv6_listeners_are_checked_over_udp_and_tcp() {
    let server = Server::ordinary(3);
    let said = check(&[
        &udp(server.udp6()),
        &tcp(server.tcp6()),
        "--username",
        "alice",
        "--password",
        "wonderland",
        "--burst-time",
        "0s",
    ]);
    assert_eq!(said.code, 0, "{:#}", said.json);
    for subject in [0, 1] {
        let outcomes = said.outcomes(subject);
        for step in ["allocate", "hairpin", "channels", "sizes", "other-family"] {
            assert_eq!(outcomes.get(step), Some(&"ok"), "{step}: {:#}", said.json);
        }
        assert_eq!(outcomes.get("burst"), None, "none was asked for");
    }
    assert!(said.step("other-family", "ok").contains("[::1]:"));
    assert_eq!(server.live(), 0);
}

#[test]
fn text_ends_with_the_count_and_has_no_control_characters_off_a_terminal() {
    let server = Server::ordinary(1);
    let stun = format!("stun:{}", server.udp4());
    let output = command(&[&stun]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(output.stderr.is_empty(), "no progress without a terminal");
    assert!(text.starts_with(&format!("{stun} at {}\n  ok    reach", server.udp4())), "{text}");
    assert!(text.ends_with("0 failed, 0 to look at, 0 skipped, 3 fine\n"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains("allocate"), "{text}");
}

#[test]
fn a_configuration_is_enough() {
    // Ports must be known beforehand: the configuration is what names them.
    let held = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    drop(held);
    let mut settings = Settings::new(1);
    settings.udp = vec![address.to_string()];
    settings.tcp = Vec::new();
    let server = settings.start();
    let directory = Directory::new();
    let file = directory.path().join("c.toml");
    fs::write(&file, server.settings.text(&server.ports.range)).unwrap();
    let said = check(&["--config", file.to_str().unwrap(), "--burst-time", "0s"]);
    assert_eq!(said.code, 0, "{:#}", said.json);
    assert_eq!(said.subjects()[0]["uri"], udp(address));
    assert_eq!(said.outcomes(0).get("channels"), Some(&"ok"));
    assert!(said.step("clock", "ok").contains("within 120 s"), "who can mint can tell the relay's clock");
    assert_eq!(server.live(), 0);
    // Another secret than the relay's: told apart from a clock, because one can mint for later too.
    let text = fs::read_to_string(&file).unwrap().replace("north-of-everything", "south-of-everything");
    fs::write(&file, text).unwrap();
    let said = check(&["--config", file.to_str().unwrap()]);
    assert_eq!(said.code, 1);
    let allocate = said.step("allocate", "fail");
    assert!(allocate.contains("good for 172740 s") && allocate.contains("is not the relay's"), "{allocate}");
    assert!(!allocate.contains("clock"), "{allocate}");
}

/// Our own TLS, its certificate of a private authority, the URIs as the server or its configuration gives them.
#[test]
fn turns_of_our_own_server_is_checked_by_endpoint_and_by_configuration() {
    let authority = Authority::new();
    let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [plain, secure] = held.each_ref().map(|listener| listener.local_addr().unwrap());
    drop(held);
    let mut settings = Settings::new(1);
    settings.udp = vec![plain.to_string()];
    settings.tcp = vec![plain.to_string()];
    settings.tls = vec![secure.to_string()];
    settings.certificates = vec![authority.write("first", &["localhost"])];
    settings.tables = format!("[[http.keys]]\nname = \"web\"\nsha256 = \"{KEY_SHA256}\"\n");
    let server = settings.start();
    let url = format!("http://{}/v1/credentials?username=carol", server.http());
    let config = server.directory().join("config.toml");
    let expected = [udp(plain), tcp(plain), format!("turns:localhost:{}?transport=tcp", secure.port())];
    let ca = authority.file();
    let (by_endpoint, by_config) =
        (vec![url.as_str(), "--header", "Authorization: Bearer key"], vec!["--config", config.to_str().unwrap()]);
    for (mut arguments, first) in [(by_endpoint, 1), (by_config, 0)] {
        arguments.extend(["-4", "--ca", &ca, "--burst-time", "0s"]);
        let said = check(&arguments);
        assert_eq!(said.code, 0, "{:#}", said.json);
        assert_eq!((&said.json["failed"], &said.json["warned"]), (&0.into(), &0.into()), "{:#}", said.json);
        // A name has a subject of its own, for what DNS says of it.
        let mut uris: Vec<&str> = said.subjects()[first..].iter().map(|of| of["uri"].as_str().unwrap()).collect();
        uris.dedup();
        assert_eq!(uris, expected);
        let tls = said.outcomes(first + 3);
        for step in ["handshake", "certificate", "allocate", "hairpin", "peer", "channels", "sizes", "release"] {
            assert_eq!(tls.get(step), Some(&"ok"), "{step}: {:#}", said.json);
        }
        assert!(said.step("certificate", "ok").contains("valid for localhost"));
    }
    // The same server under a name that its certificate does not have, and to somebody who does not trust its authority.
    let login = ["--username", "alice", "--password", "wonderland", "--burst-time", "0s"];
    for (host, ca, text) in
        [("127.0.0.1", true, "not for 127.0.0.1 but for localhost"), ("localhost", false, "fullchain.pem")]
    {
        let uri = format!("turns:{host}:{}", secure.port());
        let mut arguments = vec![uri.as_str(), "-4"];
        arguments.extend(login);
        let file = authority.file();
        if ca {
            arguments.extend(["--ca", &file]);
        }
        let said = check(&arguments);
        assert_eq!(said.code, 1);
        let certificate = said.step("certificate", "fail");
        assert!(certificate.contains(text), "{certificate}");
    }
    assert_eq!(server.live(), 0);
}

#[test]
fn a_wrong_password_and_a_wrong_secret_are_told_apart() {
    let server = Server::ordinary(1);
    let uri = udp(server.udp4());
    let said = check(&[&uri, "--username", "alice", "--password", "wrong"]);
    assert_eq!(said.code, 1);
    assert!(said.step("allocate", "fail").contains("unknown user or wrong password"));
    assert_eq!(said.outcomes(0).get("hairpin"), None, "nothing comes after it");
    let soon = format!("{}:carol", now() + 60);
    let said = check(&[&uri, "--username", &soon, "--password", "wrong"]);
    assert_eq!(said.code, 1);
    assert!(said.step("allocate", "fail").contains("the secret of the issuer is not the relay's"));
}

#[test]
fn expired_and_too_far_ahead_credentials_are_named() {
    let server = Server::ordinary(1);
    let uri = udp(server.udp4());
    for (expires_at, detail, remedy) in
        [(now() - 100, "ended 10", "clock is behind"), (now() + 500_000, "is good for", "shorter lifetime")]
    {
        let (username, password) = minted(expires_at);
        let said = check(&[&uri, "--username", &username, "--password", &password]);
        assert_eq!(said.code, 1);
        let step = said.step("allocate", "fail");
        assert!(step.contains("401 Unauthorized") && step.contains(detail) && step.contains(remedy), "{step}");
    }
}

#[test]
fn an_issuer_whose_clock_is_an_hour_off_is_named() {
    let server = Server::ordinary(1);
    // Ahead: the relay lets it in, but the day comes when it is too far ahead.
    let (username, password) = minted(now() + 3600 + 600);
    let body =
        serde_json::json!({ "username": username, "password": password, "ttl": 600, "uris": [udp(server.udp4())] });
    let said = check(&[&endpoint("200 OK", "", body.to_string()), "--header", "Authorization: Bearer key"]);
    assert_eq!(said.code, 1);
    let clock = said.step("clock", "fail");
    assert!(clock.contains("ahead of this machine's") && clock.contains("NTP"), "{clock}");
    // Behind: what it gives out has ended already.
    let (username, password) = minted(now() - 3600 + 600);
    let body = serde_json::json!({ "iceServers": [{ "urls": udp(server.udp4()), "username": username, "credential": password }], "ttl": 600 });
    let url = endpoint("200 OK", "", body.to_string());
    let said = check(&[&url, "--header", "Authorization: Bearer key"]);
    assert_eq!(said.code, 1);
    let clock = said.step("clock", "fail");
    assert!(clock.contains("behind this machine's") && clock.contains("NTP"), "{clock}");
    assert!(said.step("allocate", "fail").contains("clock is behind"));
}

#[test]
fn endpoints_that_say_no_or_nonsense_are_named() {
    for (status, header, body, key, step, text) in [
        ("200 OK", "", "{}", false, "http", "--header"),
        ("200 OK", "", "<html>", true, "answer", "not JSON"),
        ("302 Found", "Location: http://x.example/\r\n", "", true, "http", "http://x.example/"),
        ("429 Too Many", "Retry-After: 7\r\n", "", true, "http", "Retry-After: 7"),
        ("200 OK", "", r#"[{"urls":"turn://x"}]"#, true, "uri", "browsers refuse"),
    ] {
        let url = endpoint(status, header, body.to_owned());
        let arguments = [url.as_str(), "--header", "Authorization: Bearer key"];
        let said = check(if key { &arguments } else { &arguments[..1] });
        assert_eq!(said.code, 1, "{body}");
        assert!(said.step(step, "fail").contains(text), "{:#}", said.json);
    }
}

#[test]
fn a_closed_port_is_refused_and_a_silent_one_is_a_firewall() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = check(&[&udp(closed), &tcp(closed)]);
    assert_eq!(said.code, 1);
    for subject in said.subjects() {
        let step = &subject["steps"][0];
        assert!(step["detail"].as_str().unwrap().contains("no program listens"), "{step}");
        assert!(step["remedy"].as_str().unwrap().contains("start the server"), "{step}");
    }
    // UDP is swallowed while TCP answers on the same address.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = Server::ordinary(1);
    let said = check(&[&udp(silent.local_addr().unwrap())]);
    assert!(said.step("reach", "fail").contains("open UDP port"));
    let stun_tcp = tcp(server.tcp4());
    let said = check(&[&udp(silent.local_addr().unwrap()), &stun_tcp]);
    assert_eq!(said.code, 1);
    assert!(said.step("reach", "fail").contains("a firewall drops UDP"));
    assert!(said.step("allocate", "warn").contains("--username"), "without credentials it goes as far as it can");
}

#[test]
fn a_port_that_accepts_and_is_silent_is_no_turn_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = check(&[&tcp(listener.local_addr().unwrap())]);
    assert_eq!(said.code, 1);
    assert!(said.step("binding", "fail").contains("something else than a TURN server"));
}

#[test]
fn relay_ports_that_nobody_reaches_are_named_with_the_wrong_external_address() {
    let mut settings = Settings::new(1);
    settings.relay = vec![("external", "\"127.0.0.99\"")];
    let server = settings.start();
    let said = check_alice(&udp(server.udp4()));
    assert_eq!(said.code, 1);
    let peer = said.step("peer", "fail");
    assert!(
        peer.contains("to 127.0.0.99:") && peer.contains("relay.ports") && peer.contains("relay.external"),
        "{peer}"
    );
    assert!(said.step("relayed-address", "warn").contains("relay.external = \"127.0.0.1\""));
    assert_eq!(said.outcomes(0).get("hairpin"), Some(&"ok"), "inside the server it works");
    assert_eq!(server.live(), 0);
}

#[test]
fn a_quota_and_a_denied_peer_are_explained() {
    let server = Settings::new(1).limit("allocations_per_user", "1").start();
    let (username, password) = minted(now() + 600);
    let said = check(&[&udp(server.udp4()), "--username", &username, "--password", &password, "--burst-time", "0s"]);
    assert_eq!(said.code, 1);
    let hairpin = said.step("hairpin", "fail");
    assert!(hairpin.contains("a second Allocate: 486") && hairpin.contains("allocations_per_user"), "{hairpin}");
    assert_eq!(said.outcomes(0).get("channels"), Some(&"ok"), "the plain peer carries the rest");
    drop(server);
    let mut settings = Settings::new(1);
    settings.allow = Vec::new();
    let server = settings.start();
    let said = check_alice(&udp(server.udp4()));
    assert!(said.step("hairpin", "warn").contains("(403)"));
    assert!(said.step("peer", "warn").contains("denies 127.0.0.1 as a peer"));
    assert_eq!(said.code, 0, "nothing is known to be broken: {:#}", said.json);
    assert_eq!(server.live(), 0);
}

/// An address of this machine that is not loopback.
fn outward_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the route to anywhere tells the address.
    socket.connect("198.41.0.4:9").expect("a route: this test needs an address besides loopback");
    socket.local_addr().unwrap().ip()
}

#[test]
fn a_server_on_this_very_machine_is_fine_and_the_peer_is_left_to_another_machine() {
    let here = outward_address();
    let addresses = format!("[\"{here}\"]").leak();
    let mut settings = Settings::new(1);
    settings.udp = vec![format!("{here}:0")];
    settings.tcp = vec![format!("{here}:0")];
    settings.relay = vec![("addresses", addresses)];
    settings.allow = Vec::new();
    let server = settings.clone().start();
    for uri in [udp(server.udp4()), tcp(server.tcp4())] {
        let said = check_alice(&uri);
        assert_eq!(said.code, 0, "{:#}", said.json);
        assert_eq!((&said.json["failed"], &said.json["warned"]), (&0.into(), &0.into()), "{:#}", said.json);
        let peer = said.step("peer", "skip");
        assert!(peer.contains(&format!("this machine is {here}, an address of the server itself")), "{peer}");
        assert!(peer.contains("from another machine") && peer.contains("peers.allow"), "{peer}");
        assert_eq!(said.outcomes(0).get("channels"), Some(&"ok"), "the second allocation carries the rest");
    }
    drop(server);
    // As the text says: allowed, it is a peer like any other.
    settings.allow = vec![format!("{here}/32").leak()];
    let server = settings.start();
    let said = check_alice(&udp(server.udp4()));
    assert!(said.step("peer", "ok").contains("reached both ways"), "{:#}", said.json);
}

/// A TLS port before a server's TCP port, with a certificate made for the case; gives the port and the CA's file.
fn tls_before(server: SocketAddr, name: &str, is_expired: bool, directory: &Directory) -> (u16, String) {
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    if is_expired {
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    let file = directory.path().join("ca.pem");
    fs::write(&file, authority.pem()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust us ends the handshake; that is its right.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut onward = tokio::net::TcpStream::connect(server).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
                });
            }
        });
    });
    (port, file.to_str().unwrap().to_owned())
}

#[test]
fn turns_is_checked_and_each_fault_of_a_certificate_is_named() {
    let server = Server::ordinary(1);
    let login = ["--username", "alice", "--password", "wonderland", "--burst-time", "0s"];
    for (name, is_expired, is_trusted, outcome, text) in [
        ("localhost", false, true, "ok", "valid for localhost"),
        ("localhost", false, false, "fail", "fullchain.pem"),
        ("localhost", true, true, "fail", "expired"),
        ("turn.example", false, true, "fail", "not for localhost but for"),
    ] {
        let directory = Directory::new();
        let (port, ca) = tls_before(server.tcp4(), name, is_expired, &directory);
        let uri = format!("turns:localhost:{port}?transport=tcp");
        let mut arguments = vec![uri.as_str(), "-4"];
        arguments.extend(login);
        if is_trusted {
            arguments.extend(["--ca", &ca]);
        }
        let said = check(&arguments);
        let certificate = said.step("certificate", outcome);
        assert!(certificate.contains(text), "{name}: {certificate}");
        assert_eq!(said.code, i32::from(outcome == "fail"), "{:#}", said.json);
        // The rest is looked at all the same: no password goes over the wire.
        assert!(said.step("handshake", "ok").contains("TLSv1_3"));
        assert!(said.step("channels", "ok").contains("both ways"));
    }
    // TLS asked of a port that speaks none.
    let said = check(&[&format!("turns:{}", server.tcp4())]);
    assert_eq!(said.code, 1);
    assert!(said.step("handshake", "fail").contains("TLS"));
}

#[test]
fn bad_usage_ends_with_two_and_names_the_thing() {
    for (arguments, text) in [
        (vec![], "URL"),
        (vec!["sip:x"], "must be turn, turns, stun or stuns"),
        (vec!["turn:x", "--timeout", "0s"], "--timeout"),
        (vec!["turn:x", "--burst-rate", "1GB/s"], "--burst-rate"),
        (vec!["turn:x", "--username", "alice"], "--password"),
        (vec!["turn:x", "--password", "x"], "--username"),
        (vec!["turn:x", "--ca", "/nowhere.pem"], "/nowhere.pem"),
        (vec!["turn:x", "--header", "nonsense"], "--header"),
        (vec!["--config", "/nowhere.toml"], "/nowhere.toml"),
        (vec!["turn:x", "-4", "-6"], "--ipv"),
    ] {
        let output = command(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
}
