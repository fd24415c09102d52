//! ChannelBind (RFC 8656 section 12).

use std::net::SocketAddr;

use test_support::harness;
use test_support::harness::stun::{
    CHANNEL_BIND, CHANNEL_NUMBER, MESSAGE_INTEGRITY, XOR_PEER_ADDRESS, allocate, request,
};
use test_support::harness::{Client, Harness, Went, addr, bind, channel_data, policy};
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason as Why;

const PEER: &str = "8.8.8.8:1000";
const OTHER: &str = "8.8.8.8:1001";

fn ready(h: &mut Harness) -> Client {
    let client = h.client();
    h.allocate(client);
    client
}

/// The peer that a channel leads to, if any.
fn leads_to(h: &mut Harness, client: Client, number: u16) -> Option<SocketAddr> {
    match h.channel_data(client, number, b"x") {
        Went::ToPeer { to, .. } => Some(to),
        Went::Dropped(DropReason::UnboundChannel) => None,
        other @ (Went::ToClient { .. } | Went::Dropped(_)) => panic!("{other:?}"),
    }
}

// RFC 8656 §12.2 [8656-12.2-8, 8656-12.5-1]
#[test]
fn channel_bind_binds_both_ways() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    let reply = h.ask(client, bind(0x4000, addr(PEER)));
    assert_eq!((reply.code(), reply.types()), (0, vec![MESSAGE_INTEGRITY]));
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
    assert_eq!(h.from_peer(client, addr(PEER), b"back").to_client(), channel_data(0x4000, b"back"));
}

// `turn.channels = "rfc8656"`; what is bound stays bound.
// [8656-12.2-2]
#[test]
fn the_range_of_rfc_8656_alone_can_be_chosen() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    let (old, new) = (addr("8.8.8.8:1"), addr("8.8.8.8:2"));
    assert_eq!(h.bind(client, 0x5000, old), 0);
    h.reconfigure(|settings| settings.channel_number_max = 0x4FFF);
    assert_eq!(h.bind(client, 0x4FFF, new), 0);
    h.refuses(client, bind(0x5001, addr("8.8.8.8:3")), 400, Why::ChannelRange);
    assert!(matches!(h.channel_data(client, 0x5000, b"still"), Went::ToPeer { .. }));
}

// RFC 8656 §12 and RFC 5766 §11: 0x4000 to 0x7FFE, decision 0163 [8656-12.2-2]
#[test]
fn channel_numbers_outside_their_range_are_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    for number in [0, 1, 0x3FFF, 0x7FFF, 0x8000, 0xFFFF] {
        h.refuses(client, bind(number, addr(PEER)), 400, Why::ChannelRange);
    }
    for (number, peer) in [(0x4000, PEER), (0x4FFF, OTHER)] {
        assert_eq!(h.bind(client, number, addr(peer)), 0);
        assert_eq!(leads_to(&mut h, client, number), Some(addr(peer)));
    }
}

// RFC 8656 §12.2: both attributes [8656-12.2-1]
#[test]
fn channel_bind_without_number_or_peer_is_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    h.refuses(client, request(CHANNEL_BIND).peer(addr(PEER)), 400, Why::MissingAttribute);
    h.refuses(client, request(CHANNEL_BIND).channel(0x4000), 400, Why::MissingAttribute);
    h.refuses(client, request(CHANNEL_BIND), 400, Why::MissingAttribute);
    assert_eq!(leads_to(&mut h, client, 0x4000), None);
}

// RFC 8656 §18.1, §18.3
#[test]
fn malformed_numbers_and_peers_are_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    for value in [&[][..], &[0x40, 0], &[0x40, 0, 0], &[0x40, 0, 0, 0, 0]] {
        h.refuses(client, request(CHANNEL_BIND).with(CHANNEL_NUMBER, value).peer(addr(PEER)), 400, Why::BadAttribute);
    }
    for value in [&[][..], &[0, 1, 0, 1], &[0, 1, 0, 1, 1, 2, 3], &[0, 5, 0, 1, 1, 2, 3, 4]] {
        h.refuses(client, request(CHANNEL_BIND).channel(0x4000).with(XOR_PEER_ADDRESS, value), 400, Why::BadAttribute);
    }
}

// RFC 8656 §18.1: the two bytes after the number are reserved and ignored [8656-18.1-1]
#[test]
fn reserved_bytes_of_channel_number_are_ignored() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    let message = request(CHANNEL_BIND).with(CHANNEL_NUMBER, &[0x40, 0, 0xAB, 0xCD]).peer(addr(PEER));
    assert_eq!(h.ask(client, message).code(), 0);
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
}

// RFC 8656 §12.2: the channel is bound to another transport address [8656-12-3, 8656-12.2-3]
#[test]
fn a_channel_that_is_bound_to_another_peer_is_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.refuses(client, bind(0x4000, addr(OTHER)), 400, Why::ChannelConflict);
    h.refuses(client, bind(0x4000, addr("8.8.4.4:1000")), 400, Why::ChannelConflict);
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
}

// RFC 8656 §12.2: the transport address is bound to another channel [8656-12-3, 8656-12.2-4]
#[test]
fn a_peer_that_is_bound_to_another_channel_is_400() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.refuses(client, bind(0x4001, addr(PEER)), 400, Why::ChannelConflict);
    assert_eq!(leads_to(&mut h, client, 0x4001), None);
    assert_eq!(h.bind(client, 0x4001, addr(OTHER)), 0, "another port is another peer");
}

// RFC 8656 §12.2: 400 for a conflict comes before 443 and 403
#[test]
fn a_conflict_is_told_before_family_and_policy() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.refuses(client, bind(0x4000, addr("[2a00::1]:1")), 400, Why::ChannelConflict);
    h.refuses(client, bind(0x4000, addr("10.0.0.1:1")), 400, Why::ChannelConflict);
    h.refuses(client, bind(0x7FFF, addr("10.0.0.1:1")), 400, Why::ChannelRange);
}

// RFC 8656 §12.2 [8656-12.2-5]
#[test]
fn a_peer_of_the_other_family_is_443() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    h.refuses(client, bind(0x4000, addr("[2a00::1]:1")), 443, Why::PeerFamily);
    h.refuses(client, bind(0x4000, addr("[::1]:1")), 443, Why::PeerFamily);
    let six = h.client();
    assert_eq!(h.ask(six, allocate().family(2)).code(), 0);
    h.refuses(six, bind(0x4000, addr(PEER)), 443, Why::PeerFamily);
    assert_eq!(h.bind(six, 0x4000, addr("[2a00::1]:1")), 0);
}

// RFC 8656 §12.2 [8656-12.2-6]
#[test]
fn a_denied_peer_is_403_and_gets_neither_channel_nor_permission() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    h.refuses(client, bind(0x4000, addr("192.168.0.1:1")), 403, Why::PeerDenied);
    assert_eq!(leads_to(&mut h, client, 0x4000), None);
    assert_eq!(h.send(client, addr("192.168.0.1:1"), b"x"), Went::Dropped(DropReason::NoPermission));
}

// RFC 8656 §12.2: the server may restrict IP addresses and ports: 403. Nothing can be sent to port 0. [8656-12.2-6]
#[test]
fn a_channel_to_port_0_is_403_and_a_permission_needs_no_port() {
    for tcp in [false, true] {
        let mut h = Harness::new();
        let client = h.add(if tcp { harness::alice().tcp() } else { harness::alice() });
        h.allocate(client);
        h.refuses(client, bind(0x4000, addr("8.8.8.8:0")), 403, Why::PeerPort);
        assert_eq!(leads_to(&mut h, client, 0x4000), None);
        assert_eq!(h.send(client, addr("8.8.8.8:1"), b"x"), Went::Dropped(DropReason::NoPermission));
        assert_eq!(h.permit(client, &[addr("8.8.8.8:0")]), 0);
        assert!(matches!(h.send(client, addr("8.8.8.8:1"), b"x"), Went::ToPeer { .. }));
    }
}

// RFC 8656 §12: 600 seconds, exactly [8656-12-4]
#[test]
fn a_channel_lives_six_hundred_seconds_and_not_a_millisecond_longer() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask(client, allocate().lifetime(3600)).code(), 0);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.advance_ms(599_999);
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
    h.advance_ms(1);
    assert_eq!(leads_to(&mut h, client, 0x4000), None);
}

// RFC 8656 §12.2: "same transport address is OK", and refreshes [8656-12-4, 8656-9-3]
#[test]
fn binding_the_same_pair_again_refreshes_it() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask(client, allocate().lifetime(3600)).code(), 0);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.advance(400);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.advance_ms(299_999);
    assert!(matches!(h.from_peer(client, addr(PEER), b"x"), Went::ToClient { .. }), "the permission too");
    h.advance_ms(300_000);
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
    h.advance_ms(1);
    assert_eq!(leads_to(&mut h, client, 0x4000), None);
}

// RFC 8656 §12.2: the permission is installed, for its own 300 seconds and any port [8656-12.2-8, 8656-9-3]
#[test]
fn channel_bind_installs_the_permission_for_three_hundred_seconds() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.advance_ms(299_999);
    assert_eq!(h.from_peer(client, addr(PEER), b"x").to_client()[..2], [0x40, 0x00]);
    assert_eq!(h.from_peer(client, addr(OTHER), b"x").data_indication().0, addr(OTHER));
    h.advance_ms(1);
    assert_eq!(h.from_peer(client, addr(PEER), b"x"), Went::Dropped(DropReason::PeerNotPermitted));
    assert_eq!(h.send(client, addr(PEER), b"x"), Went::Dropped(DropReason::NoPermission));
    // RFC 8656 §12.6 asks for a bound channel only.
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    assert_eq!(h.from_peer(client, addr(PEER), b"x").to_client()[..2], [0x40, 0x00], "the channel was still bound");
}

// RFC 8656 §12.6: traffic refreshes neither channel nor permission [8656-12.6-5]
#[test]
fn traffic_does_not_refresh_a_channel() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask(client, allocate().lifetime(3600)).code(), 0);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    for _ in 0..20 {
        h.advance_ms(29_999);
        assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(PEER)));
    }
    h.advance_ms(20);
    assert_eq!(leads_to(&mut h, client, 0x4000), None);
}

// RFC 8656 §12: once the binding is over, number and peer are free for others [8656-12-5]
#[test]
fn number_and_peer_are_free_when_the_binding_is_over() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask(client, allocate().lifetime(3600)).code(), 0);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    h.advance_ms(599_999);
    h.refuses(client, bind(0x4000, addr(OTHER)), 400, Why::ChannelConflict);
    h.refuses(client, bind(0x4001, addr(PEER)), 400, Why::ChannelConflict);
    h.advance_ms(1);
    assert_eq!(h.bind(client, 0x4000, addr(OTHER)), 0);
    assert_eq!(h.bind(client, 0x4001, addr(PEER)), 0);
    assert_eq!(leads_to(&mut h, client, 0x4000), Some(addr(OTHER)));
    assert_eq!(leads_to(&mut h, client, 0x4001), Some(addr(PEER)));
    assert_eq!(h.from_peer(client, addr(PEER), b"x").to_client(), channel_data(0x4001, b"x"));
}

// RFC 8656 §12: numbers and peers of one allocation mean nothing to another [8656-12-2]
#[test]
fn channels_belong_to_their_allocation() {
    let mut h = Harness::new();
    let (one, other) = (ready(&mut h), ready(&mut h));
    assert_eq!(h.bind(one, 0x4000, addr(PEER)), 0);
    assert_eq!(leads_to(&mut h, other, 0x4000), None);
    assert_eq!(h.bind(other, 0x4000, addr(OTHER)), 0);
    assert_eq!(h.bind(other, 0x4001, addr(PEER)), 0);
    assert_eq!(leads_to(&mut h, one, 0x4000), Some(addr(PEER)));
}

// RFC 8656 §12.2: 508 for a limit of capacity [8656-12.2-7]
#[test]
fn more_channels_than_the_limit_are_508() {
    let mut h = Harness::with(|settings| settings.limits.channels_per_allocation = 2);
    let client = h.client();
    assert_eq!(h.ask(client, allocate().lifetime(3600)).code(), 0);
    let peer = |n: u16| addr(&format!("8.8.8.8:{n}"));
    assert_eq!(h.bind(client, 0x4001, peer(1)), 0);
    assert_eq!(h.bind(client, 0x4002, peer(2)), 0);
    h.refuses(client, bind(0x4003, peer(3)), 508, Why::ChannelLimit);
    assert_eq!(h.bind(client, 0x4001, peer(1)), 0, "a refresh needs no room");
    h.advance(600);
    assert_eq!(h.bind(client, 0x4003, peer(3)), 0, "what is over leaves room");
}

// RFC 8656 §12.2: no room for the permission that comes with it [8656-12.2-7]
#[test]
fn a_channel_whose_permission_has_no_room_is_508() {
    let mut h = Harness::with(|settings| settings.limits.permissions_per_allocation = 1);
    let client = ready(&mut h);
    assert_eq!(h.permit(client, &[addr("8.8.4.4:1")]), 0);
    h.refuses(client, bind(0x4000, addr(PEER)), 508, Why::PermissionLimit);
    assert_eq!(leads_to(&mut h, client, 0x4000), None);
    assert_eq!(h.bind(client, 0x4000, addr("8.8.4.4:9")), 0);
}

#[test]
fn every_channel_number_can_be_bound_when_the_operator_allows_them() {
    let mut h = Harness::with(|settings| {
        settings.limits.channels_per_allocation = 4096;
        settings.limits.requests_per_allocation = None;
    });
    let client = ready(&mut h);
    for number in (0x4000..=0x4FFF).step_by(16) {
        assert_eq!(h.bind(client, number, addr(&format!("8.8.8.8:{number}"))), 0);
    }
    for number in (0x4000..=0x4FFF).step_by(16) {
        assert_eq!(leads_to(&mut h, client, number), Some(addr(&format!("8.8.8.8:{number}"))));
        assert_eq!(leads_to(&mut h, client, number + 1), None);
    }
}

// product.md, own addresses: only to a port that is a relayed port at that moment
#[test]
fn a_channel_to_a_relayed_port_of_ours_passes_and_to_another_own_port_is_403() {
    let mut h = Harness::new();
    let (one, two) = (ready(&mut h), h.client());
    let relayed = h.allocate(two);
    assert_eq!(h.bind(one, 0x4000, relayed), 0);
    assert_eq!(leads_to(&mut h, one, 0x4000), Some(relayed));
    for port in [22, 80, 3478, relayed.port() + 1] {
        h.refuses(one, bind(0x4001, SocketAddr::new(relayed.ip(), port)), 403, Why::PeerNotRelayed);
    }
    // At that moment: when the other allocation ends, its port is no peer any more.
    h.refresh(two, 0);
    assert_eq!(h.channel_data(one, 0x4000, b"x"), Went::Dropped(DropReason::NotRelayedPort));
    h.refuses(one, bind(0x4000, relayed), 403, Why::PeerNotRelayed);
}

// product.md: our listener and HTTP ports are never peers, whatever `allow` says
#[test]
fn a_listener_of_ours_is_403_even_where_the_operator_opened_its_address() {
    let mut h = Harness::with(|settings| settings.peers = policy(&["127.0.0.0/8", "9.9.9.1/32", "9.9.9.9/32"], &[]));
    let client = ready(&mut h);
    for peer in ["127.0.0.1:3478", "127.0.0.1:8080", "127.9.9.9:3478", "9.9.9.1:3478", "9.9.9.9:3478"] {
        h.refuses(client, bind(0x4000, addr(peer)), 403, Why::PeerIsListener);
    }
    for (number, peer) in [(0x4001, "127.0.0.1:9000"), (0x4002, "9.9.9.1:9000"), (0x4003, "9.9.9.9:9000")] {
        assert_eq!(h.bind(client, number, addr(peer)), 0);
        assert_eq!(leads_to(&mut h, client, number), Some(addr(peer)));
    }
    // Somebody else's port 3478 is no listener here.
    assert_eq!(h.bind(client, 0x4004, addr("8.8.8.8:3478")), 0);
}
