//! ICMP errors about relayed datagrams (RFC 8656 sections 11.5, 16, 18.13).

use std::net::SocketAddr;

use test_support::harness::stun::{DATA_METHOD, INDICATION, Incoming, XOR_PEER_ADDRESS, allocate};
use test_support::harness::{Client, Harness, addr, alice, bind};
use throughway::protocol::icmp::{ICMP_INDICATION_BYTES_MAX, IcmpError};
use throughway::protocol::meter::Rates;

const ICMP: u16 = 0x8004;
const PEER: &str = "77.7.7.7:7777";
const OTHER_PORT: &str = "77.7.7.7:9";
const STRANGER: &str = "66.6.6.6:6666";
const PEER_IPV6: &str = "[2a00:7::7]:7777";

const fn error(icmp_type: u8, code: u8, mtu: u32) -> IcmpError {
    IcmpError { icmp_type, code, mtu }
}

/// What the client hears of an ICMP error: the peer, and the attribute's value.
fn told(h: &mut Harness, client: Client, peer: &str, error: IcmpError) -> Option<(SocketAddr, Vec<u8>)> {
    let id = h.id_of(client);
    let (now, via, mut out) = (h.now, h.via(client), [0; ICMP_INDICATION_BYTES_MAX]);
    let (way, len) = h.server_of(client).icmp_from_network(now, id, addr(peer).into(), error, &mut out)?;
    assert_eq!(way, via, "to the client of the allocation");
    h.check();
    let message = Incoming::decode(&out[..len]);
    assert_eq!((message.method, message.class), (DATA_METHOD, INDICATION));
    assert_eq!(message.types(), [XOR_PEER_ADDRESS, ICMP], "no DATA");
    Some((message.address(XOR_PEER_ADDRESS), message.get(ICMP).unwrap().to_vec()))
}

fn ready(h: &mut Harness) -> Client {
    let client = h.client();
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    client
}

// [8656-11.5-1, 8656-11.5-3, 8656-16-2, 8656-18.13-1, 8656-18.13-2]
#[test]
fn an_error_about_a_permitted_peer_is_told_in_a_data_indication() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    // Type in 7 bits, code in 9; no error data but for a packet that was too big.
    let unreachable = (addr(PEER), vec![0, 0, 3 << 1, 3, 0, 0, 0, 0]);
    assert_eq!(told(&mut h, client, PEER, error(3, 3, 77)), Some(unreachable));
    let too_big = (addr(PEER), vec![0, 0, 3 << 1, 4, 0, 0, 0x05, 0x14]);
    assert_eq!(told(&mut h, client, PEER, error(3, 4, 1_300)), Some(too_big));
    let exceeded = (addr(OTHER_PORT), vec![0, 0, 11 << 1, 0, 0, 0, 0, 0]);
    assert_eq!(told(&mut h, client, OTHER_PORT, error(11, 0, 0)), Some(exceeded), "permissions are of IP addresses");
    assert_eq!(h.bind(client, 0x4001, addr(PEER)), 0);
    assert!(told(&mut h, client, PEER, error(3, 1, 0)).is_some(), "a channel can't carry it");
    assert_eq!(h.counters_of(client).icmp_errors.get(), 4);
}

// [8656-11.5-1, 8656-11.5-3, 8656-18.13-2]
#[test]
fn errors_of_ipv6_have_types_of_their_own() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask(client, allocate().family(2)).code(), 0);
    assert_eq!(h.permit(client, &[addr(PEER_IPV6)]), 0);
    let too_big = (addr(PEER_IPV6), vec![0, 0, 2 << 1, 0, 0, 0, 0x05, 0]);
    assert_eq!(told(&mut h, client, PEER_IPV6, error(2, 0, 1_280)), Some(too_big));
    let unreachable = (addr(PEER_IPV6), vec![0, 0, 1 << 1, 4, 0, 0, 0, 0]);
    assert_eq!(told(&mut h, client, PEER_IPV6, error(1, 4, 1_280)), Some(unreachable));
    for icmp_type in [0, 4, 11, 128, 129, 255] {
        assert_eq!(told(&mut h, client, PEER_IPV6, error(icmp_type, 0, 0)), None, "{icmp_type}");
    }
}

// [8656-11.5-1]
#[test]
fn other_messages_and_errors_about_strangers_are_not_told() {
    let mut h = Harness::new();
    let client = ready(&mut h);
    for icmp_type in (0..=255).filter(|icmp_type| ![3, 11].contains(icmp_type)) {
        assert_eq!(told(&mut h, client, PEER, error(icmp_type, 0, 0)), None, "{icmp_type}");
    }
    assert_eq!(told(&mut h, client, STRANGER, error(3, 3, 0)), None);
    h.advance(301);
    assert_eq!(told(&mut h, client, PEER, error(3, 3, 0)), None, "the permission is over");
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    assert!(told(&mut h, client, PEER, error(3, 3, 0)).is_some());
    let id = h.id_of(client);
    h.refresh(client, 0);
    let (now, mut out) = (h.now, [0; ICMP_INDICATION_BYTES_MAX]);
    let peer = addr(PEER).into();
    assert_eq!(h.server_of(client).icmp_from_network(now, id, peer, error(3, 3, 0), &mut out), None);
}

// [8656-11.5-1, 8656-11.5-2]
#[test]
fn a_storm_of_forged_errors_is_held_to_the_rate_of_packets_and_charges_no_bytes() {
    let mut h = Harness::with(|settings| {
        settings.limits.allocation = Rates { packets_per_second: Some(10), bits_per_second: None };
    });
    let client = h.add(alice());
    h.allocate(client);
    h.ask(client, bind(0x4001, addr(PEER)));
    let before = h.session(client).unwrap();
    let heard = (0..1_000).filter(|_| told(&mut h, client, PEER, error(3, 3, 0)).is_some()).count();
    assert!((1..=20).contains(&heard), "{heard}");
    assert_eq!(h.session(client).unwrap().traffic, before.traffic, "an error is no payload");
    h.advance(60);
    assert!(told(&mut h, client, PEER, error(3, 3, 0)).is_some());
}
