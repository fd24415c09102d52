//! CreatePermission and permissions (RFC 8656 sections 9, 10).

use std::net::SocketAddr;

use test_support::harness;
use test_support::harness::stun::{CREATE_PERMISSION, Outgoing, XOR_PEER_ADDRESS, allocate, request};
use test_support::harness::{Client, Harness, Went, addr, policy};
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason as Why;

const PEER: &str = "8.8.8.8:1000";

fn create(peers: &[SocketAddr]) -> Outgoing {
    request(CREATE_PERMISSION).peers(peers)
}

/// A client with an IPv4 allocation.
fn ready(h: &mut Harness) -> Client {
    let client = h.client();
    h.allocate(client);
    client
}

/// Whether packets of this peer pass, both ways.
fn is_open(h: &mut Harness, client: Client, peer: SocketAddr) -> bool {
    let out = h.send(client, peer, b"out");
    let back = h.from_peer(client, peer, b"back");
    match (&out, &back) {
        (Went::ToPeer { .. }, Went::ToClient { .. }) => true,
        (Went::Dropped(DropReason::NoPermission), Went::Dropped(DropReason::PeerNotPermitted)) => false,
        other => panic!("one way only: {other:?}"),
    }
}

// RFC 8656 §9: no peer may send before a permission is installed [8656-7.2-21]
#[test]
fn a_new_allocation_permits_nobody() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8656 §10.2 [8656-9-3, 8656-10.2-5]
#[test]
fn create_permission_opens_for_its_peer_and_answers_with_nothing_more() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    let reply = h.ask(client, create(&[addr(PEER)]));
    assert_eq!((reply.code(), reply.types()), (0, vec![harness::stun::MESSAGE_INTEGRITY]));
    assert!(is_open(&mut h, client, addr(PEER)));
    assert!(!is_open(&mut h, client, addr("8.8.4.4:1000")));
}

// RFC 8656 §9: the permission is for the IP address; the port does not matter [8656-9-2, 8656-10.2-5]
#[test]
fn a_permission_is_for_the_ip_address_only() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr("8.8.8.8:0")]), 0);
    for port in [1, 53, 1000, 65_535] {
        assert!(is_open(&mut h, client, SocketAddr::new(addr(PEER).ip(), port)));
    }
}

// RFC 8656 §9: permissions of one allocation mean nothing to another [8656-9-5]
#[test]
fn a_permission_belongs_to_its_allocation() {
    let mut h = Harness::new();
    let (one, other) = (ready(&mut h), ready(&mut h));
    assert_eq!(h.permit(one, &[addr(PEER)]), 0);
    assert!(!is_open(&mut h, other, addr(PEER)));
}

// RFC 8656 §10.1: one request may carry many peers [8656-10.2-5]
#[test]
fn one_request_installs_permissions_for_many_peers() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    let peers: Vec<SocketAddr> = (1..=20).map(|n| addr(&format!("8.8.8.{n}:9"))).collect();
    assert_eq!(h.permit(client, &peers), 0);
    for peer in peers {
        assert!(is_open(&mut h, client, peer));
    }
}

// RFC 8656 §10.2: all or nothing
#[test]
fn one_refused_peer_refuses_all() {
    let good = addr(PEER);
    for (bad, code, why) in [
        (addr("10.0.0.1:1"), 403, Why::PeerDenied),
        (addr("127.0.0.1:1"), 403, Why::PeerDenied),
        (addr("[2a00::1]:1"), 443, Why::PeerFamily),
    ] {
        for peers in [[good, bad], [bad, good]] {
            let mut h = Harness::new();
            let client = ready(&mut h);
            h.refuses(client, create(&peers), code, why);
            assert!(!is_open(&mut h, client, good), "{bad}");
        }
    }
}

// RFC 8656 §10.2: a refused request does not refresh either
#[test]
fn a_refused_request_refreshes_no_permission() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.advance(200);
    h.refuses(client, create(&[addr(PEER), addr("10.0.0.1:1")]), 403, Why::PeerDenied);
    h.advance(100);
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8656 §10.2: at least one XOR-PEER-ADDRESS [8656-10.2-1]
#[test]
fn create_permission_without_a_peer_is_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    h.refuses(client, request(CREATE_PERMISSION), 400, Why::MissingAttribute);
    h.refuses(client, request(CREATE_PERMISSION).peer_after_integrity(addr(PEER)), 400, Why::MissingAttribute);
}

// RFC 8656 §10.2: "if any of these attributes are invalid" it is 400, before any 443 or 403
// [8656-10.2-1, 8489-14.1-1]
#[test]
fn a_malformed_peer_anywhere_is_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    let values: [&[u8]; 7] = [
        &[],
        &[0, 1],
        &[0, 1, 0, 1, 1, 2, 3],
        &[0, 1, 0, 1, 1, 2, 3, 4, 5],
        &[0, 2, 0, 1, 1, 2, 3, 4],
        &[0, 0, 0, 1, 1, 2, 3, 4],
        &[0, 3, 0, 1, 1, 2, 3, 4],
    ];
    for value in values {
        let with = |peer: &str| create(&[addr(peer)]).with(XOR_PEER_ADDRESS, value);
        h.refuses(
            client,
            request(CREATE_PERMISSION).with(XOR_PEER_ADDRESS, value).peer(addr(PEER)),
            400,
            Why::BadAttribute,
        );
        h.refuses(client, with(PEER), 400, Why::BadAttribute);
        h.refuses(client, with("10.0.0.1:1"), 400, Why::BadAttribute);
        h.refuses(client, with("[2a00::1]:1"), 400, Why::BadAttribute);
    }
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8489 §14.1: the first byte of an address says nothing [8489-14.1-2]
#[test]
fn the_first_byte_of_a_peer_is_ignored() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    let value = [0xFF, 1, 0x21, 0x12 ^ 9, 0x21 ^ 8, 0x12 ^ 8, 0xA4 ^ 8, 0x42 ^ 8];
    assert_eq!(h.ask(client, request(CREATE_PERMISSION).with(XOR_PEER_ADDRESS, &value)).code(), 0);
    assert!(is_open(&mut h, client, addr("8.8.8.8:9")));
}

// RFC 8656 §10.2: the family is checked before policy restricts [8656-10.2-3]
#[test]
fn a_peer_of_the_other_family_is_443_before_403() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    h.refuses(client, create(&[addr("10.0.0.1:1"), addr("[2a00::1]:1")]), 443, Why::PeerFamily);
    h.refuses(client, create(&[addr("[fe80::1]:1")]), 443, Why::PeerFamily);
    let six = h.client();
    assert_eq!(h.ask(six, allocate().family(2)).code(), 0);
    h.refuses(six, create(&[addr(PEER)]), 443, Why::PeerFamily);
    assert_eq!(h.permit(six, &[addr("[2a00::1]:1")]), 0);
    assert!(is_open(&mut h, six, addr("[2a00::1]:5")));
}

// RFC 8656 §10.2, §21.2.2: the operator's policy [8656-10.2-4]
#[test]
fn a_denied_peer_is_403() {
    let mut h = Harness::with(|settings| settings.peers = policy(&["10.1.0.0/16"], &["8.8.4.0/24"]));
    let client = ready(&mut h);
    for peer in [
        "10.0.0.1:1",
        "8.8.4.4:1",
        "192.168.1.1:1",
        "169.254.169.254:80",
        "0.0.0.0:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
    ] {
        h.refuses(client, create(&[addr(peer)]), 403, Why::PeerDenied);
    }
    assert_eq!(h.permit(client, &[addr("10.1.2.3:1")]), 0);
}

// RFC 8656 §9: 300 seconds, exactly [8656-9-1]
#[test]
fn a_permission_lives_three_hundred_seconds_and_not_a_millisecond_longer() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.advance_ms(299_999);
    assert!(is_open(&mut h, client, addr(PEER)));
    h.advance_ms(1);
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8656 §10.2: the time is set anew [8656-9-3]
#[test]
fn create_permission_refreshes_the_permission() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.advance(200);
    assert_eq!(h.permit(client, &[addr("8.8.8.8:77")]), 0, "any port");
    h.advance_ms(299_999);
    assert!(is_open(&mut h, client, addr(PEER)));
    h.advance_ms(1);
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8656 §9: data refreshes nothing, neither way [8656-11.2-4]
#[test]
fn traffic_does_not_refresh_a_permission() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    for _ in 0..10 {
        h.advance_ms(29_999);
        assert!(is_open(&mut h, client, addr(PEER)));
    }
    h.advance_ms(10);
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8656 §8: a Refresh of the allocation refreshes no permission
#[test]
fn refresh_does_not_refresh_permissions() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.advance(200);
    h.refresh(client, 3600);
    h.advance(100);
    assert!(!is_open(&mut h, client, addr(PEER)));
}

// RFC 8656 §10.2: 508 for a limit of capacity; all or nothing [8656-10.2-2]
#[test]
fn more_permissions_than_the_limit_are_508_and_none_is_installed() {
    let mut h = Harness::with(|settings| settings.limits.permissions_per_allocation = 3);
    let client = ready(&mut h);
    let peers: Vec<SocketAddr> = (1..=5).map(|n| addr(&format!("8.8.8.{n}:9"))).collect();
    assert_eq!(h.permit(client, &peers[..2]), 0);
    h.refuses(client, create(&peers[2..4]), 508, Why::PermissionLimit);
    assert!(!is_open(&mut h, client, peers[2]));
    assert_eq!(h.permit(client, &peers[2..3]), 0);
    assert_eq!(h.permit(client, &peers[..3]), 0, "a refresh needs no room");
    assert_eq!(h.permit(client, &[peers[0], peers[0], peers[0]]), 0, "nor does the same twice");
    h.refuses(client, create(&peers[4..]), 508, Why::PermissionLimit);
    h.advance(300);
    assert_eq!(h.permit(client, &peers[2..]), 0, "what is over leaves room");
}

// Product limit: raised to 4,096 without slowing down
#[test]
fn four_thousand_permissions_work_when_the_operator_allows_them() {
    let mut h = Harness::with(|settings| settings.limits.permissions_per_allocation = 4096);
    let client = ready(&mut h);
    for high in 0..16_u8 {
        let peers: Vec<SocketAddr> = (0..=255_u8).map(|low| SocketAddr::from(([8, 8, high, low], 1))).collect();
        assert_eq!(h.permit(client, &peers), 0);
    }
    assert!(is_open(&mut h, client, addr("8.8.0.0:5")) && is_open(&mut h, client, addr("8.8.15.255:5")));
    h.refuses(client, create(&[addr("8.8.16.0:1")]), 508, Why::PermissionLimit);
}

// product.md: an own address gets its permission, also when it lies in a denied range
#[test]
fn an_own_address_gets_a_permission_and_another_local_one_does_not() {
    let mut h = Harness::new();
    let (one, two) = (ready(&mut h), h.client());
    let relayed = h.allocate(two);
    assert_eq!(h.permit(one, &[relayed]), 0);
    h.refuses(one, create(&[addr("9.9.9.1:5")]), 403, Why::PeerDenied);
    let six = h.client();
    assert_eq!(h.ask(six, allocate().family(2)).code(), 0);
    h.refuses(six, create(&[addr("[2a00:9::1]:5")]), 403, Why::PeerDenied);
    assert_eq!(h.permit(six, &[addr("[2a00:9::9]:5")]), 0);
}
