//! Bad input on real sockets: each is a drop with its own counter or the RFC's error, and a call beside it goes on
//! without losing a packet.

use std::net::{SocketAddr, UdpSocket};

use test_support::e2e;
use test_support::e2e::client::{
    ATTR_DONT_FRAGMENT, ATTR_EVEN_PORT, ATTR_REQUESTED_TRANSPORT, Login, channel_data, message, request,
    send_indication, transaction_id,
};
use test_support::e2e::{Client, PATIENCE, SILENCE, Server, Settings, Wanted, Witness, payload, peer, receive};
use test_support::with_one_and_three_workers;
use throughway::credentials::{Algorithm, Secret, SharedSecret, password};
use throughway::wire::attribute::{
    ATTR_CHANNEL_NUMBER, ATTR_DATA, ATTR_LIFETIME, ATTR_RESERVATION_TOKEN, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS,
};
use throughway::wire::integrity::IntegrityKey;
use throughway::wire::message::{
    AttrType, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, METHOD_ALLOCATE, METHOD_BINDING,
    METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION, METHOD_DATA, METHOD_REFRESH, METHOD_SEND, MessageType, Method,
};
use throughway::wire::writer::Writer;

/// The one secret of the servers here.
const SECRET: &str = "north-of-everything";

const CHANNEL: u16 = 0x4001;

fn indication(method: Method, wanted: &[Wanted]) -> Vec<u8> {
    message(MessageType { method, class: CLASS_INDICATION }, wanted, None)
}

fn with_length(mut bytes: Vec<u8>, length: u16) -> Vec<u8> {
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn with_wrong_fingerprint(method: Method) -> Vec<u8> {
    let mut bytes = [0; 64];
    let mut writer = Writer::new(&mut bytes, MessageType { method, class: CLASS_REQUEST }, transaction_id());
    let len = writer.fingerprint().finish().unwrap();
    bytes[len - 1] ^= 1;
    bytes[..len].to_vec()
}

/// Method 0x0AA, which is not assigned.
fn of_unknown_method() -> Vec<u8> {
    let mut bytes = request(METHOD_ALLOCATE, &[], None);
    bytes[..2].copy_from_slice(&[0x02, 0x4A]);
    bytes
}

fn unused(name: u16) -> AttrType {
    AttrType(name)
}

/// Datagrams of somebody without an allocation, each with the reason that it is counted under.
fn from_strangers() -> Vec<(&'static str, Vec<u8>)> {
    let binding = request(METHOD_BINDING, &[], None);
    let allocate = request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::lifetime(600)], None);
    let mut wrong_cookie = binding.clone();
    wrong_cookie[4] ^= 1;
    let mut long_attribute = allocate.clone();
    long_attribute[22..24].copy_from_slice(&[0xFF, 0xFF]);
    let peer: SocketAddr = "127.0.0.1:9".parse().unwrap();
    vec![
        ("not_stun", Vec::new()),
        ("not_stun", vec![0x80]),
        ("bad_channel_data", vec![0x7F, 0xFF, 0, 0]),
        ("not_stun", vec![0xFF; 1200]),
        ("not_stun", [&[0x80, 0x60][..], &payload(1, 170)].concat()),
        ("not_stun", [&[0x16, 0x03, 0x01][..], &[0xFF; 200]].concat().into_iter().map(|byte| byte | 0x80).collect()),
        ("not_stun", vec![0x99; 65_507]),
        ("malformed", vec![0x00]),
        ("malformed", binding[..10].to_vec()),
        ("malformed", binding[..19].to_vec()),
        ("malformed", allocate[..allocate.len() - 4].to_vec()),
        ("malformed", [&allocate[..], &[0; 4]].concat()),
        ("malformed", with_length(allocate.clone(), 0)),
        ("malformed", with_length(allocate.clone(), 0xFFFC)),
        ("malformed", with_length(allocate.clone(), 17)),
        ("malformed", wrong_cookie),
        ("malformed", long_attribute),
        ("malformed", [&[0x00, 0x03][..], &[0; 4_000]].concat()),
        ("control_too_long", [&[0x00, 0x03][..], &[0; 65_505]].concat()),
        ("malformed", with_length(send_indication(peer, b"data"), 8)),
        ("bad_fingerprint", with_wrong_fingerprint(METHOD_BINDING)),
        ("bad_fingerprint", with_wrong_fingerprint(METHOD_ALLOCATE)),
        ("unknown_method", of_unknown_method()),
        ("unexpected_class", message(MessageType { method: METHOD_BINDING, class: CLASS_SUCCESS_RESPONSE }, &[], None)),
        (
            "unexpected_class",
            message(MessageType { method: METHOD_ALLOCATE, class: CLASS_SUCCESS_RESPONSE }, &[], None),
        ),
        ("unexpected_class", indication(METHOD_ALLOCATE, &[])),
        ("unexpected_class", indication(METHOD_DATA, &[])),
        ("no_allocation", channel_data(CHANNEL, b"knock")),
        ("no_allocation", channel_data(0x4FFF, &[0; 65_503])),
        ("no_allocation", send_indication(peer, b"knock")),
        ("bad_channel_data", vec![0x40]),
        ("bad_channel_data", vec![0x40, 0x01, 0xFF, 0xFF, 1, 2, 3]),
    ]
}

with_one_and_three_workers! {
    /// Strangers' datagrams: never an answer, always the one counter.
    fn malformed_datagrams_are_dropped_by_reason(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        for address in [server.udp4(), server.udp6()] {
            let stranger = peer(address);
            stranger.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
            for (number, (reason, bytes)) in from_strangers().into_iter().enumerate() {
                let before = server.scrape().sum("throughway_dropped_packets_total");
                server.expect_dropped(reason, 1, || {
                    assert_eq!(stranger.send_to(&bytes, address).unwrap(), bytes.len(), "{number}");
                });
                let all = server.scrape().sum("throughway_dropped_packets_total") - before;
                assert_eq!(all, 1, "{number}: {reason} is counted once, under one name");
            }
            assert!(stranger.recv_from(&mut [0; 100]).is_err(), "something was answered");
        }
        witness.finish();
    }

    /// Data of a client that has an allocation, but not for that.
    fn bad_data_of_a_client_is_dropped_by_reason(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        for mut client in [Client::udp_on_worker(server.udp4(), 0, workers), Client::tcp(server.tcp4())] {
            let relayed = client.allocate();
            let peer = peer(relayed);
            let at = peer.local_addr().unwrap();
            client.bind(CHANNEL, at);
            let data = Wanted::Bytes(ATTR_DATA, b"data".to_vec());
            let cases = [
                ("unbound_channel", channel_data(CHANNEL + 1, b"data")),
                ("bad_send", indication(METHOD_SEND, &[Wanted::peer(at)])),
                ("bad_send", indication(METHOD_SEND, std::slice::from_ref(&data))),
                ("bad_send", indication(METHOD_SEND, &[Wanted::Bytes(ATTR_XOR_PEER_ADDRESS, vec![0, 7, 1, 2]), data.clone()])),
                ("bad_send", indication(METHOD_SEND, &[Wanted::peer(at), data.clone(), Wanted::Bytes(unused(0x7777), vec![])])),
                ("bad_send", indication(METHOD_SEND, &[Wanted::peer(at), data.clone(), Wanted::Bytes(ATTR_DONT_FRAGMENT, vec![1])])),
                ("peer_family", send_indication("[::1]:9".parse().unwrap(), b"data")),
                ("no_permission", send_indication("127.0.0.77:9".parse().unwrap(), b"data")),
            ];
            for (reason, mut bytes) in cases {
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                server.expect_dropped(reason, 1, || client.send_raw(&bytes));
            }
            e2e::peer::expect_silence(&peer);
            client.send_channel(CHANNEL, b"after all that");
            assert_eq!(receive(&peer), (b"after all that".to_vec(), relayed));
        }
        witness.finish();
    }

    /// Requests that the RFC answers with an error: its code, its counter, and no other effect.
    fn bad_requests_are_refused_by_reason(workers: u8) {
        let mut settings = Settings::new(workers)
            .limit("permissions_per_allocation", "3")
            .limit("channels_per_allocation", "2");
        settings.deny = vec!["127.0.0.66/32"];
        let server = settings.start();
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        for stream in [false, true] {
            let connect = || if stream { Client::tcp(server.tcp4()) } else { Client::udp(server.udp4()) };
            before_an_allocation(&server, connect);
            let mut client = connect();
            client.allocate();
            let refuse = |client: &mut Client, reason: &str, code: u16, method: Method, wanted: &[Wanted]| {
                let given = server.expect_refused(reason, 1, || client.request(method, wanted).code());
                assert_eq!(given, code, "{reason}");
            };
            let number = |number: u16| {
                let [high, low] = number.to_be_bytes();
                Wanted::Bytes(ATTR_CHANNEL_NUMBER, vec![high, low, 0, 0])
            };
            let at = |text: &str| Wanted::peer(text.parse().unwrap());
            let peer = "127.0.0.5:9";
            refuse(&mut client, "allocation_exists", 437, METHOD_ALLOCATE, &[Wanted::udp()]);
            refuse(&mut client, "peer_family", 443, METHOD_REFRESH, &[Wanted::family(false)]);
            refuse(&mut client, "bad_attribute", 400, METHOD_REFRESH, &[Wanted::Bytes(ATTR_LIFETIME, vec![1, 2])]);
            refuse(&mut client, "unknown_attributes", 420, METHOD_REFRESH, &[Wanted::Bytes(unused(0x7777), vec![])]);
            refuse(&mut client, "missing_attribute", 400, METHOD_CREATE_PERMISSION, &[]);
            refuse(&mut client, "peer_denied", 403, METHOD_CREATE_PERMISSION, &[at("127.0.0.66:9")]);
            refuse(&mut client, "peer_denied", 403, METHOD_CREATE_PERMISSION, &[at("10.1.2.3:9")]);
            refuse(&mut client, "peer_denied", 403, METHOD_CHANNEL_BIND, &[number(0x4001), at("169.254.169.254:80")]);
            refuse(&mut client, "peer_family", 443, METHOD_CREATE_PERMISSION, &[at("[::1]:9")]);
            let listener = Wanted::peer(server.tcp4());
            refuse(&mut client, "peer_is_listener", 403, METHOD_CHANNEL_BIND, &[number(0x4001), listener]);
            let http = Wanted::peer(server.http());
            refuse(&mut client, "peer_is_listener", 403, METHOD_CHANNEL_BIND, &[number(0x4001), http]);
            for wrong in [0, 0x3FFF, 0x7FFF, 0xFFFF] {
                refuse(&mut client, "channel_range", 400, METHOD_CHANNEL_BIND, &[number(wrong), at(peer)]);
            }
            refuse(&mut client, "missing_attribute", 400, METHOD_CHANNEL_BIND, &[at(peer)]);
            client.bind(0x4001, peer.parse().unwrap());
            refuse(&mut client, "channel_conflict", 400, METHOD_CHANNEL_BIND, &[number(0x4002), at(peer)]);
            refuse(&mut client, "channel_conflict", 400, METHOD_CHANNEL_BIND, &[number(0x4001), at("127.0.0.5:10")]);
            client.bind(0x4002, "127.0.0.5:10".parse().unwrap());
            refuse(&mut client, "channel_limit", 508, METHOD_CHANNEL_BIND, &[number(0x4003), at("127.0.0.5:11")]);
            client.permit("127.0.0.6:1".parse().unwrap());
            client.permit("127.0.0.7:1".parse().unwrap());
            refuse(&mut client, "permission_limit", 508, METHOD_CREATE_PERMISSION, &[at("127.0.0.8:1")]);
            // Another user of the same five-tuple, who is somebody.
            let owner = client.login.clone().unwrap();
            let key = IntegrityKey::long_term(b"bob", &owner.realm, b"builder");
            let bob = Login { username: "bob".to_owned(), key, ..owner.clone() };
            client.login = Some(bob);
            refuse(&mut client, "wrong_user", 441, METHOD_REFRESH, &[Wanted::lifetime(0)]);
            client.login = Some(owner);
            assert_eq!(client.refresh(0).code(), 0, "nothing of all that ended the allocation");
            refuse(&mut client, "no_allocation", 437, METHOD_REFRESH, &[]);
            refuse(&mut client, "no_allocation", 437, METHOD_CREATE_PERMISSION, &[at(peer)]);
            refuse(&mut client, "no_allocation", 437, METHOD_CHANNEL_BIND, &[number(0x4001), at(peer)]);
        }
        witness.finish();
    }

    /// Noise: nothing is answered, every datagram is counted, no other client notices.
    fn random_datagrams_are_all_counted(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let mut client = Client::udp(server.udp4());
        client.allocate();
        let counted = || {
            let scrape = server.scrape();
            scrape.sum("throughway_dropped_packets_total") + scrape.sum("throughway_requests_refused_total")
        };
        let before = counted();
        for round in 0..8_000_u32 {
            let mut noise = payload(round, (round * 37 % 1500) as usize);
            // Half of it pretends to be STUN or ChannelData as well as it can; a Binding would be answered.
            if noise.len() >= 20 && round % 4 == 0 {
                noise[..8].copy_from_slice(&[0x00, 0x03, 0, 0, 0x21, 0x12, 0xA4, 0x42]);
                let length = noise.len() / 4 * 4;
                noise.truncate(length);
                noise[2..4].copy_from_slice(&((length - 20) as u16).to_be_bytes());
            } else if let (1, Some(first)) = (round % 4, noise.first_mut()) {
                *first = 0x40 | *first & 0x0F;
            }
            client.send_raw(&noise);
            if round % 32 == 31 {
                // Keeps the pace that the server takes, so that the kernel drops nothing.
                client.binding();
            }
        }
        e2e::wait_for("all noise counted", || (counted() >= before + 8_000).then_some(()));
        assert_eq!(counted() - before, 8_000);
        assert_eq!(client.refresh(0).code(), 0, "the allocation behind the noise is alive");
        witness.finish();
    }

    /// Any single byte of a signed request may be wrong: nothing breaks, no other client notices, nothing is granted.
    fn a_changed_byte_is_never_granted(workers: u8) {
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::tcp(server.tcp4()));
        let mut client = Client::udp(server.udp4());
        client.challenge();
        let good = request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::lifetime(600)], client.login.as_ref());
        for at in 0..good.len() {
            for change in [0x01, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] ^= change;
                client.send_raw(&bad);
            }
            if at % 8 == 7 {
                client.binding();
            }
        }
        client.binding();
        assert_eq!(server.scrape().value("throughway_requests_granted_total", &[("method", "allocate")]), 1, "the witness");
        assert_eq!(client.ask(&good).code(), 0, "the unchanged one is granted");
        witness.finish();
    }

    /// No state before MESSAGE-INTEGRITY has verified: a flood of first requests leaves nothing behind.
    fn a_flood_of_unauthenticated_allocates_takes_no_memory(workers: u8) {
        const SOURCES: usize = 50;
        const ROUNDS: u64 = 4_000;
        let server = Server::ordinary(workers);
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        let sources: Vec<UdpSocket> = (0..SOURCES).map(|_| {
            let socket = peer(server.udp4());
            socket.connect(server.udp4()).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        }).collect();
        let mut allocate = request(METHOD_ALLOCATE, &[Wanted::udp()], None);
        let mut answer = [0; 1500];
        let mut flood = |rounds: std::ops::Range<u64>| {
            for round in rounds {
                allocate[8..16].copy_from_slice(&round.to_be_bytes());
                for source in &sources {
                    source.send(&allocate).unwrap();
                }
                for source in &sources {
                    let len = source.recv(&mut answer).expect("each is answered: no faster than the server can");
                    assert_eq!((len, &answer[..2]), (72, &[0x01, 0x13][..]), "a challenge of 72 bytes");
                }
            }
        };
        // The first thousand warms everything up that is made once.
        flood(0..20);
        let before = server.resident_bytes();
        server.expect_refused("challenge", SOURCES as u64 * ROUNDS, || flood(20..20 + ROUNDS));
        let grown = server.resident_bytes().saturating_sub(before);
        assert!(grown < 8 << 20, "memory grew by {grown} bytes");
        assert_eq!(server.live(), 1, "the witness");
        let (_, rounds) = witness.finish();
        assert!(rounds > 20, "only {rounds} rounds of the witness");
    }
}

/// What is wrong with a first request, in the order in which the RFCs look at it.
fn before_an_allocation(server: &Server, connect: impl Fn() -> Client) {
    let refuse = |client: &mut Client, reason: &str, code: u16, bytes: &[u8]| {
        let response = server.expect_refused(reason, 1, || client.ask(bytes));
        assert_eq!(response.code(), code, "{reason}");
    };
    let mut client = connect();
    client.challenge();
    let good = client.login.clone().unwrap();
    let allocate = |wanted: &[Wanted], login: &Login| request(METHOD_ALLOCATE, wanted, Some(login));
    let login = |username: &str, password: &str| Login {
        username: username.to_owned(),
        key: IntegrityKey::long_term(username.as_bytes(), &good.realm, password.as_bytes()),
        ..good.clone()
    };
    let udp = [Wanted::udp()];
    refuse(&mut client, "challenge", 401, &request(METHOD_ALLOCATE, &udp, None));
    refuse(&mut client, "bad_integrity", 401, &allocate(&udp, &login("alice", "looking-glass")));
    refuse(&mut client, "unknown_user", 401, &allocate(&udp, &login("mallory", "wonderland")));
    let wrong_realm = Login { realm: b"elsewhere".to_vec(), ..good.clone() };
    refuse(&mut client, "wrong_realm", 401, &allocate(&udp, &wrong_realm));
    let stale = Login { nonce: b"0123456789abcdefghijklmn".to_vec(), ..good.clone() };
    refuse(&mut client, "stale_nonce", 438, &allocate(&udp, &stale));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // Time is told to those only who hold a password that was good once.
    let minted = |expires_at: u64| {
        let username = format!("{expires_at}:carol");
        let secret = SharedSecret::new("test", Secret::new(SECRET.as_bytes()), Algorithm::Sha1);
        login(&username, password(&secret, username.as_bytes()).as_str())
    };
    refuse(&mut client, "expired", 401, &allocate(&udp, &minted(now - 100)));
    refuse(&mut client, "too_far_ahead", 401, &allocate(&udp, &minted(now + 1_000_000)));
    let forged = login(&format!("{}:carol", now - 100), "x");
    refuse(&mut client, "bad_integrity", 401, &allocate(&udp, &forged));
    let mut bytes = [0; 200];
    let of_allocate = MessageType { method: METHOD_ALLOCATE, class: CLASS_REQUEST };
    let mut writer = Writer::new(&mut bytes, of_allocate, transaction_id());
    let len = writer.attribute(ATTR_USERNAME, b"alice").integrity(&good.key).finish().unwrap();
    refuse(&mut client, "incomplete_credentials", 400, &bytes[..len]);
    let with =
        |attribute: AttrType, value: &[u8]| allocate(&[Wanted::udp(), Wanted::Bytes(attribute, value.to_vec())], &good);
    refuse(&mut client, "unknown_attributes", 420, &with(unused(0x7777), b"what"));
    refuse(&mut client, "missing_attribute", 400, &allocate(&[], &good));
    refuse(&mut client, "bad_attribute", 400, &allocate(&[Wanted::Bytes(ATTR_REQUESTED_TRANSPORT, vec![17])], &good));
    let tcp = Wanted::Bytes(ATTR_REQUESTED_TRANSPORT, vec![6, 0, 0, 0]);
    refuse(&mut client, "unsupported_transport", 442, &allocate(&[tcp], &good));
    refuse(&mut client, "bad_attribute", 400, &with(ATTR_EVEN_PORT, &[]));
    refuse(&mut client, "bad_attribute", 400, &with(ATTR_RESERVATION_TOKEN, &[1; 7]));
    refuse(&mut client, "bad_reservation", 508, &with(ATTR_RESERVATION_TOKEN, &[1; 8]));
    let both = [Wanted::udp(), Wanted::even_port(true), Wanted::token(&[1; 8])];
    refuse(&mut client, "combination", 400, &allocate(&both, &good));
    assert_eq!(client.data_within(SILENCE / 10), None);
    // The very same five-tuple may still do it right.
    client.allocate();
    assert_eq!(client.refresh(0).code(), 0);
}
