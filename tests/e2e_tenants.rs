//! Several products on one server, with real sockets: realms, tenants and ports of each, over a reload and an upgrade.

use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Value, json};
use test_support::e2e::operator;
use test_support::e2e::server::Slice;
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, Server, Settings, Wanted, http, peer, receive, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::{Known, METHOD_ALLOCATE, METHOD_REFRESH};

const REALMS: [&str; 3] = ["throughway", "a.example", "b.example"];
const PASSWORDS: [&str; 3] = ["wonderland-of-all", "wonderland-of-a", "wonderland-of-b"];
const SECRET_OF_B: &str = "the-secret-of-tenant-b";

/// Listeners of no tenant, of a and of b, in this order; `alice` in each realm, and `carol` in that of a.
fn settings(workers: u8, ports: &RangeInclusive<u16>, parts: &[(&str, RangeInclusive<u16>)]) -> Settings {
    let listener = |realm: &str, tenant: &str| {
        format!("{{ address = \"127.0.0.1:0\", realm = \"{realm}\", tenant = \"{tenant}\" }}")
    };
    let listeners = vec!["127.0.0.1:0".to_owned(), listener(REALMS[1], "a"), listener(REALMS[2], "b")];
    let parts: Vec<String> =
        parts.iter().map(|(tenant, part)| format!("{tenant} = \"{}-{}\"", part.start(), part.end())).collect();
    // Settings hold text of the program.
    let parts: &'static str = Box::leak(format!("{{ {} }}", parts.join(", ")).into_boxed_str());
    Settings {
        udp: listeners.clone(),
        tcp: listeners,
        users: vec![
            (
                "alice",
                "[{ password = \"wonderland-of-all\" }, { password = \"wonderland-of-a\", realm = \"a.example\" }, \
                 { password = \"wonderland-of-b\", realm = \"b.example\" }]",
            ),
            ("carol", "{ password = \"christmas-of-a\", realm = \"a.example\" }"),
        ],
        ports: Some(ports.clone()),
        relay: vec![("ports_by_tenant", parts)],
        tables: format!("[[auth.secrets]]\nid = \"b\"\nvalue = \"{SECRET_OF_B}\"\ntenant = \"b\"\n"),
        ..Settings::new(workers)
    }
    .account("file", "usage.jsonl")
}

/// Eight ports for a, four for b, and the rest for all others.
fn parts(ports: &RangeInclusive<u16>) -> [(&'static str, RangeInclusive<u16>); 2] {
    let first = *ports.start();
    [("a", first + 8..=first + 15), ("b", first + 16..=first + 19)]
}

fn alice(server: SocketAddr, of: usize) -> Client {
    Client::udp(server).user("alice", PASSWORDS[of])
}

#[track_caller]
fn refused(mut client: Client, code: u16, realm: &str) {
    client.challenge();
    let response = client.request(METHOD_ALLOCATE, &[Wanted::udp()]);
    assert_eq!(response.code(), code);
    if code == 401 {
        assert_eq!(response.bytes(Known::Realm), realm.as_bytes());
    }
}

/// Data passes both ways, by this channel to a new peer.
#[track_caller]
fn relays(client: &mut Client, relayed: SocketAddr, channel: u16) {
    let far = peer(relayed);
    client.bind(channel, far.local_addr().unwrap());
    client.send_channel(channel, b"there");
    assert_eq!(receive(&far), (b"there".to_vec(), relayed));
    far.send_to(b"back", relayed).unwrap();
    client.expect_data(test_support::e2e::Origin::Channel(channel), b"back");
}

fn records(path: &Path, kind: &str, count: usize) -> Vec<Value> {
    let read = || -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|record| record["type"] == kind).collect()
    };
    wait_for(&format!("{count} records"), || (read().len() >= count).then(read))
}

/// A server with listeners of no tenant, of a and of b, and nothing on it yet.
struct Tenants {
    server: Server,
    udp: Vec<SocketAddr>,
    slice: Slice,
    parts: [(&'static str, RangeInclusive<u16>); 2],
}

impl Tenants {
    fn start(workers: u8) -> Self {
        let slice = Slice::take();
        let parts = parts(&slice.range);
        let server = operator::start(settings(workers, &slice.range, &parts));
        let udp = server.all("udp");
        assert_eq!(udp.len(), 3);
        Self { server, udp, slice, parts }
    }

    fn alice(&self, of: usize) -> Client {
        alice(self.udp[of], of)
    }

    fn minted(&self, at: usize, secret: &str, user_id: &str) -> Client {
        Client::udp(self.udp[at]).minted(secret, user_id)
    }

    /// Allocates; the port must be one of this tenant, or one that is of none.
    #[track_caller]
    fn allocate(&self, client: &mut Client, of: usize) -> SocketAddr {
        let relayed = client.allocate();
        let port = relayed.port();
        let is_its_own = match of {
            0 => self.slice.range.contains(&port) && !self.parts.iter().any(|(_, part)| part.contains(&port)),
            of => self.parts[of - 1].1.contains(&port),
        };
        assert!(is_its_own, "{relayed} is none of {}", REALMS[of]);
        relayed
    }

    /// User, tenant and realm of the sessions that began, so many; each once, in order.
    #[track_caller]
    fn started(&self, count: usize) -> Vec<[String; 3]> {
        let starts = records(&self.server.directory().join("usage.jsonl"), "start", count);
        assert_eq!(starts.len(), count, "{starts:?}");
        let fields = ["user", "tenant", "realm"];
        let of = |record: &Value| fields.map(|name| record[name].as_str().unwrap_or("none").to_owned());
        let mut seen: Vec<_> = starts.iter().map(of).collect();
        seen.sort();
        seen.dedup();
        seen
    }
}

with_one_and_three_workers! {
    /// One name, three users, three passwords, over both transports.
    fn a_user_of_one_realm_is_unknown_in_the_others(workers: u8) {
        let tenants = Tenants::start(workers);
        let server = &tenants.server;
        // Open to the end: a stream that closes ends its session.
        let mut calls = Vec::new();
        for (of, password) in PASSWORDS.into_iter().enumerate() {
            for mut client in [tenants.alice(of), Client::tcp(server.all("tcp")[of]).user("alice", password)] {
                let relayed = tenants.allocate(&mut client, of);
                relays(&mut client, relayed, 0x4000);
                calls.push(client);
            }
        }
        for (at, realm) in REALMS.iter().enumerate() {
            for of in (0..3).filter(|of| *of != at) {
                server.expect_refused("bad_integrity", 1, || refused(alice(tenants.udp[at], of), 401, realm));
            }
        }
        let carol = |at: usize| Client::udp(tenants.udp[at]).user("carol", "christmas-of-a");
        tenants.allocate(&mut carol(1), 1);
        for at in [0, 2] {
            server.expect_refused("unknown_user", 1, || refused(carol(at), 401, REALMS[at]));
        }
        let listed = operator::get(server, "/v1/sessions?user=alice&tenant=a");
        let listed = listed["sessions"].as_array().unwrap();
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(listed.iter().all(|of| of["tenant"] == "a" && of["realm"] == "a.example"), "{listed:?}");
        let expected = [
            ["alice", "a", "a.example"],
            ["alice", "b", "b.example"],
            ["alice", "none", "throughway"],
            ["carol", "a", "a.example"],
        ];
        assert_eq!(tenants.started(7), expected);
    }

    /// Its ports are those of its tenant at either. One of no tenant is good anywhere, for the tenant of the listener.
    fn a_secret_of_a_tenant_is_good_at_its_listener_and_where_there_is_no_tenant(workers: u8) {
        let tenants = Tenants::start(workers);
        for at in [0, 2] {
            tenants.allocate(&mut tenants.minted(at, SECRET_OF_B, "bob"), 2);
        }
        let at_a = || refused(tenants.minted(1, SECRET_OF_B, "bob"), 403, "");
        tenants.server.expect_refused("other_tenant", 1, at_a);
        for at in [0, 1] {
            tenants.allocate(&mut tenants.minted(at, "north-of-everything", "dave"), at);
        }
        let expected = [
            ["bob", "b", "b.example"],
            ["bob", "b", "throughway"],
            ["dave", "a", "a.example"],
            ["dave", "none", "throughway"],
        ];
        assert_eq!(tenants.started(4), expected);
    }

    fn a_tenant_without_a_free_port_gets_none_of_the_others(workers: u8) {
        let tenants = Tenants::start(workers);
        let server = &tenants.server;
        let mut first = tenants.alice(2);
        tenants.allocate(&mut first, 2);
        tenants.allocate(&mut tenants.alice(2), 2);
        for at in [0, 2] {
            tenants.allocate(&mut tenants.minted(at, SECRET_OF_B, "bob"), 2);
        }
        for of in [0, 0, 1] {
            tenants.allocate(&mut tenants.alice(of), of);
        }
        let ports = |tenant, address, state| {
            server.scrape().value("throughway_tenant_ports", &[("tenant", tenant), ("address", address), ("state", state)])
        };
        let states = ["used", "free", "resting"];
        assert_eq!(states.map(|state| ports("b", "127.0.0.1", state)), [4, 0, 0]);
        assert_eq!(states.map(|state| ports("b", "::1", state)), [0, 4, 0]);
        assert_eq!(["a", ""].map(|tenant| ports(tenant, "127.0.0.1", "used")), [1, 2]);
        let told = server.log.wait_for_line("over 90 % of this tenant's relay ports");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["tenant"], &told["address"]), (&json!("b"), &json!("127.0.0.1")), "{told}");
        assert_eq!((&told["used"], &told["of"]), (&json!(4), &json!(4)), "{told}");
        let whole = "over 90 % of the relay ports of this address are in use";
        assert!(!server.log.text().contains(whole), "the whole range is not short");
        server.expect_refused("no_port", 1, || refused(tenants.alice(2), 508, ""));
        // That is its own affair.
        for at in [0, 1] {
            tenants.allocate(&mut tenants.minted(at, "north-of-everything", "dave"), at);
        }
        // Rather than none it gets one that rests.
        assert_eq!(first.refresh(0).code(), 0);
        tenants.allocate(&mut tenants.alice(2), 2);
    }

    fn an_upgrade_and_a_reload_leave_sessions_what_they_are(workers: u8) {
        let slice = Slice::take();
        let both = parts(&slice.range);
        let mut tested = Upgradable::start(settings(workers, &slice.range, &both));
        let udp = tested.server.all("udp");
        let mut calls: Vec<(Client, SocketAddr)> = (1..3)
            .map(|of| {
                let mut client = alice(udp[of], of);
                let relayed = client.allocate();
                (client, relayed)
            })
            .collect();
        tested.upgrade();
        let check = |calls: &mut [(Client, SocketAddr)], channel: u16| {
            for (at, (client, relayed)) in calls.iter_mut().enumerate() {
                assert_eq!(client.refresh(600).code(), 0);
                relays(client, *relayed, channel);
                let unsigned = test_support::e2e::client::request(METHOD_REFRESH, &[], None);
                assert_eq!(client.ask(&unsigned).bytes(Known::Realm), REALMS[at + 1].as_bytes());
            }
        };
        check(&mut calls, 0x4000);
        let fresh = |of: usize, part: &RangeInclusive<u16>| {
            let mut client = alice(udp[of], of);
            let relayed = client.allocate();
            assert!(part.contains(&relayed.port()), "{relayed}");
            refused(alice(udp[of], 0), 401, REALMS[of]);
            assert_eq!(client.refresh(0).code(), 0);
        };
        fresh(1, &both[0].1);
        fresh(2, &both[1].1);
        // The parts change hands, and the listener of b comes to another tenant and realm.
        let [(_, of_a), (_, of_b)] = both;
        let mut next = settings(workers, &slice.range, &[("a", of_b.clone()), ("c", of_a.clone())]);
        next.http = format!("admin_token_file = \"token\"\n{}", next.http);
        next.tables += "[upgrade]\nprobation = \"1s\"\n";
        let of_c = |listeners: &mut Vec<String>| listeners[2] = listeners[2].replace("\"b\"", "\"c\"");
        of_c(&mut next.udp);
        of_c(&mut next.tcp);
        let said = tested.server.reload_text(&next.text(&slice.range));
        assert!(said.contains("relay.ports_by_tenant"), "{said}");
        check(&mut calls, 0x4001);
        fresh(1, &of_b);
        fresh(2, &of_a);
        tested.upgrade();
        check(&mut calls, 0x4002);
        fresh(2, &of_a);
        for (mut client, _) in calls {
            assert_eq!(client.refresh(0).code(), 0);
        }
        let stops = records(&tested.server.directory().join("usage.jsonl"), "stop", 7);
        let of = |tenant: &str| stops.iter().filter(|record| record["tenant"] == tenant).count();
        assert_eq!((of("a"), of("b"), of("c")), (3, 2, 2), "{stops:?}");
    }
}

#[test]
fn a_key_of_a_tenant_gets_the_listeners_and_the_realm_of_its_tenant() {
    let slice = Slice::take();
    let mut settings = settings(1, &slice.range, &parts(&slice.range));
    // The one secret reads the tenant that a key gives.
    settings.secrets.clear();
    settings.tables =
        "[[auth.secrets]]\nid = \"main\"\nvalue = \"north-of-everything\"\nclaims = [\"tenant\"]\n".to_owned();
    // The SHA-256 of "key-of-b" and of "key-of-none".
    for (name, tenant, key) in [("b", "tenant = \"b\"\n", "key-of-b"), ("none", "", "key-of-none")] {
        use sha2::Digest as _;
        let digest: String = sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        settings.tables += &format!("[[http.keys]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n{tenant}");
    }
    let server = Server::start(settings);
    let udp = server.all("udp");
    for (key, at, realm) in [("key-of-b", 2, REALMS[2]), ("key-of-none", 0, REALMS[0])] {
        let (status, body) =
            http::get(server.http(), &format!("/v1/credentials?service=turn&user=bob&key={key}"), "127.0.0.1");
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["realm"], realm, "{body}");
        let uris: Vec<&str> = answer["uris"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let port = format!(":{}?transport=udp", udp[at].port());
        assert!(uris.len() == 2 && uris.iter().any(|uri| uri.ends_with(&port)), "{uris:?}");
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let client = |at: usize| Client::udp(udp[at]).user(&text("username"), &text("password"));
        client(at).allocate();
        if at == 2 {
            refused(client(1), 403, "");
        }
    }
}
