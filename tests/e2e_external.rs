//! `relay.external` that leaves the public address to others: imitations of STUN servers and of clouds' metadata services.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, Directory, Origin, Server, Settings, Wanted, http, peer, wait_for};
use throughway::wire::attribute::ATTR_XORMAPPED_ADDRESS;
use throughway::wire::message::{CLASS_SUCCESS_RESPONSE, METHOD_ALLOCATE, METHOD_BINDING, MessageType, TransactionId};
use throughway::wire::writer::Writer;

const ONE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const TWO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
const CHANGED: &str = "the public address has changed: new allocations get the new one";

const OUT_OF_REACH: &str = "relay.external: what was found is not an address of the internet, so peers there can't reach what \
     clients are given: write the public address, or see who answers (relay.external_servers, relay.external_metadata)";

/// A STUN server that sees every client at one address, with the client's own port.
struct Stun {
    at: SocketAddr,
    told: Arc<Mutex<Ipv4Addr>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stun {
    fn start(told: Ipv4Addr) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), told)
    }

    fn start_at(at: SocketAddr, told: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind(at).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let at = socket.local_addr().unwrap();
        let (told, is_over) = (Arc::new(Mutex::new(told)), Arc::new(AtomicBool::new(false)));
        let (says, ends) = (Arc::clone(&told), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let mut request = [0; 1500];
            while !ends.load(Ordering::Relaxed) {
                let Ok((len, client)) = socket.recv_from(&mut request) else { continue };
                assert_eq!(request[..2], [0, 1], "a Binding request of {len} bytes");
                let id = TransactionId(request[8..20].try_into().unwrap());
                let mut answer = [0; 100];
                let kind = MessageType { method: METHOD_BINDING, class: CLASS_SUCCESS_RESPONSE };
                let mapped = SocketAddr::new(IpAddr::V4(*says.lock().unwrap()), client.port());
                let mut writer = Writer::new(&mut answer, kind, id);
                let len = writer.xor_address(ATTR_XORMAPPED_ADDRESS, mapped.into()).fingerprint().finish().unwrap();
                socket.send_to(&answer[..len], client).unwrap();
            }
        });
        Self { at, told, is_over, thread: Some(thread) }
    }

    fn tells(&self, told: Ipv4Addr) {
        *self.told.lock().unwrap() = told;
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// What a metadata service answers to the head of a request.
type Answers = fn(&str) -> Vec<u8>;

/// A metadata service: what it answers to the head of a request. It is never stopped, as a cloud's is not.
fn cloud(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let head = head(&mut stream);
                let _ = stream.write_all(&answer(&head));
            });
        }
    });
    url
}

fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn ok(body: &str) -> Vec<u8> {
    response("200 OK", "", body)
}

fn missing() -> Vec<u8> {
    response("404 Not Found", "", "none")
}

fn settings(external: &str, keys: &[(&'static str, String)]) -> Settings {
    let mut settings = Settings::new(1);
    let mut relay = vec![
        ("addresses", "[\"127.0.0.1\"]".to_owned()),
        ("external", format!("{external:?}")),
        ("external_interval", "\"1s\"".to_owned()),
    ];
    relay.extend(keys.iter().cloned());
    settings.relay = relay.into_iter().map(|(key, value)| (key, &*value.leak())).collect();
    settings
}

fn by_servers(external: &str, servers: &[SocketAddr]) -> Settings {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    settings(external, &[("external_servers", format!("{servers:?}"))])
}

fn relayed_by(server: &Server) -> Ipv4Addr {
    match Client::udp(server.udp4()).allocate().ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip}"),
    }
}

fn is_ready(server: &Server) -> bool {
    http::get(server.http(), "/readyz", "localhost").0 == 200
}

/// Amazon's service as its documentation has it: nothing without the token.
fn aws(request: &str) -> Vec<u8> {
    if request.starts_with("put /latest/api/token ") && request.contains("x-aws-ec2-metadata-token-ttl-seconds: 60") {
        return ok("TOKEN-of-this-minute==");
    }
    if !request.contains("x-aws-ec2-metadata-token: token-of-this-minute==") {
        return response("401 Unauthorized", "", "");
    }
    let macs = "/latest/meta-data/network/interfaces/macs/";
    let target = request.split(' ').nth(1).unwrap().strip_prefix(macs).unwrap();
    match target {
        "" => ok("02:00:00:00:00:01/\n02:00:00:00:00:02/\n../../../user-data/"),
        "02:00:00:00:00:02/ipv4-associations/" => ok("198.51.100.9\n198.51.100.7"),
        "02:00:00:00:00:02/ipv4-associations/198.51.100.9" => ok("10.0.0.9"),
        "02:00:00:00:00:02/ipv4-associations/198.51.100.7" => ok("10.0.0.8\n127.0.0.1"),
        _ => missing(),
    }
}

fn gcp(request: &str) -> Vec<u8> {
    let target = "get /computemetadata/v1/instance/network-interfaces/?recursive=true ";
    if !request.starts_with(target) || !request.contains("metadata-flavor: google") {
        return response("403 Forbidden", "", "");
    }
    let body = r#"[{"accessConfigs":[{"externalIp":"","type":"X"}],"ip":"10.0.0.9"},
        {"accessConfigs":[{"externalIp":"198.51.100.7","type":"ONE_TO_ONE_NAT"}],"ip":"127.0.0.1"}]"#;
    response("200 OK", "Metadata-Flavor: Google\r\n", body)
}

/// With an address of the standard SKU, which the first part does not tell.
fn azure(request: &str) -> Vec<u8> {
    if !request.contains("metadata: true") {
        return response("400 Bad Request", "", "");
    }
    if request.starts_with("get /metadata/instance/network/interface?api-version=") {
        return ok(
            r#"[{"ipv4":{"ipAddress":[{"privateIpAddress":"127.0.0.1","publicIpAddress":""}]},"ipv6":{"ipAddress":[]}}]"#,
        );
    }
    ok(
        r#"{"loadbalancer":{"publicIpAddresses":[{"frontendIpAddress":"198.51.100.7","privateIpAddress":"127.0.0.1"}]}}"#,
    )
}

fn azure_basic(request: &str) -> Vec<u8> {
    if request.starts_with("get /metadata/instance/network/interface?api-version=") {
        return ok(r#"[{"ipv4":{"ipAddress":[{"privateIpAddress":"127.0.0.1","publicIpAddress":"198.51.100.7"}]}}]"#);
    }
    missing()
}

fn hetzner(request: &str) -> Vec<u8> {
    if request.starts_with("get /hetzner/v1/metadata/public-ipv4 ") { ok("198.51.100.7") } else { missing() }
}

/// With a reserved address, which comes in at the anchor.
fn digitalocean(request: &str) -> Vec<u8> {
    if !request.starts_with("get /metadata/v1.json ") {
        return missing();
    }
    ok(r#"{"droplet_id":1,"interfaces":{"public":[{"ipv4":{"ip_address":"198.51.100.1"},
        "anchor_ipv4":{"ip_address":"127.0.0.1"}}]},"reserved_ip":{"ipv4":{"active":true,"ip_address":"198.51.100.7"}}}"#)
}

#[test]
fn each_provider_is_asked_in_its_own_way() {
    let clouds: [(&str, Answers); 6] = [
        ("aws", aws),
        ("gcp", gcp),
        ("azure", azure),
        ("azure", azure_basic),
        ("hetzner", hetzner),
        ("digitalocean", digitalocean),
    ];
    for (name, answers) in clouds {
        let url = format!("{:?}", cloud(answers));
        let server = settings(name, &[("external_metadata", url)]).start();
        assert_eq!(relayed_by(&server), ONE, "{name}: {}", server.log.text());
        let event = server.log.event("relaying from");
        assert_eq!((&event["local"], &event["advertised"]), (&"127.0.0.1".into(), &"198.51.100.7".into()));
    }
}

#[test]
fn a_change_is_for_new_allocations_and_one_line_of_the_log() {
    let stun = Stun::start(ONE);
    let server = by_servers("auto", &[stun.at]).start();
    let mut old = Client::udp(server.udp4());
    let relayed = old.allocate();
    assert_eq!(relayed.ip(), IpAddr::V4(ONE));
    stun.tells(TWO);
    wait_for("the change", || (!server.log.events(CHANGED).is_empty()).then_some(()));
    let mut new = Client::udp(server.udp4()).user("bob", "builder");
    assert_eq!(new.allocate().ip(), IpAddr::V4(TWO));
    // The old one lives on, both ways.
    let other = peer(SocketAddr::new([127, 0, 0, 1].into(), relayed.port()));
    old.permit(other.local_addr().unwrap());
    other.send_to(b"still", ("127.0.0.1", relayed.port())).unwrap();
    old.expect_data(Origin::Peer(other.local_addr().unwrap()), b"still");
    assert_eq!(old.refresh(600).code(), 0);
    let changes = server.log.events(CHANGED);
    assert_eq!(changes.len(), 1);
    assert_eq!((&changes[0]["old"], &changes[0]["new"]), (&"198.51.100.7".into(), &"198.51.100.8".into()));
    assert!(!server.log.text().contains("this address is gone"), "{}", server.log.text());
    // Both are for documentation: that is said of what was found later too.
    let found = wait_for("the warning", || {
        let lines = server.log.events(OUT_OF_REACH);
        (!lines.is_empty()).then_some(lines)
    });
    assert_eq!((found.len(), &found[0]["advertised"]), (1, &"198.51.100.8".into()));
    // A reload keeps what was found.
    server.signal("HUP");
    wait_for("the reload", || server.log.text().contains("reload: ").then_some(()));
    assert_eq!(relayed_by(&server), TWO);
}

#[test]
fn what_was_found_stays_when_no_answer_comes_any_more() {
    let stun = Stun::start(ONE);
    let server = by_servers("auto", &[stun.at]).start();
    assert_eq!(relayed_by(&server), ONE);
    let at = stun.at.to_string();
    drop(stun);
    let line = server.log.wait_for_line("was asked");
    assert!(line.contains("WARN") && line.contains(&at), "{line}");
    assert!(is_ready(&server));
    assert_eq!(relayed_by(&server), ONE);
}

#[test]
fn a_server_starts_without_an_answer_and_relays_as_soon_as_there_is_one() {
    let at = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = by_servers("auto", &[at]).start();
    assert!(!is_ready(&server), "{}", server.log.text());
    let mut client = Client::udp(server.udp4());
    client.challenge();
    assert_eq!(client.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 508);
    let text = server.log.text();
    assert!(text.contains("the public address of 127.0.0.1 is not known"), "{text}");
    assert_eq!(client.binding(), client.local(), "STUN needs no address");
    let _stun = Stun::start_at(at, ONE);
    wait_for("the server to be ready", || is_ready(&server).then_some(()));
    assert_eq!(client.allocate().ip(), IpAddr::V4(ONE));
}

#[test]
fn an_upgrade_keeps_what_was_found_until_it_is_looked_at_anew() {
    let stun = Stun::start(ONE);
    let at = stun.at;
    let mut own = Upgradable::start(by_servers("auto", &[stun.at]));
    let mut client = Client::udp(own.server.udp4());
    client.allocate();
    drop(stun);
    own.upgrade();
    assert_eq!(client.refresh(600).code(), 0);
    assert_eq!(relayed_by(&own.server), ONE);
    assert!(is_ready(&own.server));
    let _stun = Stun::start_at(at, TWO);
    wait_for("the change", || (!own.server.log.events(CHANGED).is_empty()).then_some(()));
    assert_eq!(relayed_by(&own.server), TWO);
}

#[test]
fn servers_that_differ_are_named() {
    let (one, two) = (Stun::start(ONE), Stun::start(TWO));
    let server = by_servers("auto", &[one.at, two.at]).start();
    assert_eq!(relayed_by(&server), ONE, "the first one's");
    let line = server.log.wait_for_line("one of them is wrong");
    for part in [one.at.to_string(), two.at.to_string(), ONE.to_string(), TWO.to_string()] {
        assert!(line.contains(&part), "{line}");
    }
    // Looked at several times, said once; and the first one may go.
    drop(one);
    server.log.wait_for_line("was asked");
    wait_for("the second one's", || (relayed_by(&server) == TWO).then_some(()));
    assert_eq!(server.log.text().matches("one of them is wrong").count(), 1);
}

#[test]
fn answers_that_are_garbage_slow_or_huge_leave_a_server_that_says_so() {
    let answers: [(&str, Answers, &str); 7] = [
        ("hetzner", |_| b"\x16\x03\x01 not HTTP at all".to_vec(), "HTTP"),
        ("hetzner", |_| ok("198.51.100.777"), "public-ipv4 is not an address"),
        ("azure", |_| ok("<html>"), "not JSON"),
        ("gcp", |_| ok("[]"), "Metadata-Flavor"),
        ("aws", |_| response("403 Forbidden", "", "IMDS is off"), "no token: 403"),
        ("digitalocean", |_| ok(&" ".repeat(300 << 10)), "longer than"),
        ("hetzner", |_| response("302 Found", "Location: http://127.0.0.1:1/\r\n", ""), "302"),
    ];
    let check = |name: &str, url: String, says: &str| {
        let started = Instant::now();
        let server = settings(name, &[("external_metadata", format!("{url:?}"))]).start();
        assert!(started.elapsed() < Duration::from_secs(8));
        let line = server.log.wait_for_line("was asked");
        assert!(line.contains("relay.external") && line.contains(says), "{says}: {line}");
        assert!(!is_ready(&server));
        assert!(!server.log.text().contains("panic"), "{}", server.log.text());
    };
    for (name, answer, says) in answers {
        check(name, cloud(answer), says);
    }
    let slow = cloud(|_| {
        thread::sleep(Duration::from_secs(60));
        Vec::new()
    });
    check("hetzner", slow, "no complete answer");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check("hetzner", format!("http://{gone}"), "can't connect");
}

fn check_config(text: &str, json: bool) -> String {
    let directory = Directory::new();
    let file = directory.path().join("c.toml");
    fs::write(&file, format!("{text}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north-of-everything\"\n")).unwrap();
    let mut command = Command::new(test_support::program());
    command.arg("check-config").arg(&file).args(json.then_some("--json"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn check_config_asks_too_and_warns_of_an_address_that_is_not_ours() {
    let stun = Stun::start(ONE);
    let relay = |external: &str| {
        let servers = stun.at;
        format!(
            "relay.addresses = [\"127.0.0.1\"]\nrelay.external = {external:?}\nrelay.external_servers = [\"{servers}\"]"
        )
    };
    let told = check_config(&relay("auto"), false);
    assert!(told.contains("from 127.0.0.1, told to clients as 198.51.100.7"), "{told}");
    let told = check_config(&relay("45.0.0.9"), false);
    let warning =
        "clients are told 45.0.0.9 for 127.0.0.1, but the servers of relay.external_servers see it as 198.51.100.7";
    assert!(told.contains(warning), "{told}");
    let told: serde_json::Value = serde_json::from_str(&check_config(&relay("auto"), true)).unwrap();
    assert_eq!(told["relay"]["external_source"], "auto");
    assert_eq!(told["relay"]["addresses"][0]["advertised"], "198.51.100.7");
    let told = check_config(&relay("198.51.100.7"), false);
    assert!(!told.contains("but the servers of"), "{told}");
    drop(stun);
}

#[test]
fn a_public_address_that_is_written_is_compared_with_what_servers_see() {
    let stun = Stun::start(TWO);
    let server = by_servers("198.51.100.8", &[stun.at]).start();
    assert_eq!(relayed_by(&server), TWO);
    stun.tells(ONE);
    let line = server.log.wait_for_line("see it as 198.51.100.7");
    assert!(line.contains("relay.external") && line.contains("\\\"auto\\\""), "{line}");
    assert_eq!(relayed_by(&server), TWO, "what is written holds");
}
