//! One allocation with relayed addresses of both families (RFC 8656 sections 7.2, 8.2, 18.11, 18.12).

use std::net::SocketAddr;

use test_support::harness::stun::{
    CREATE_PERMISSION, Incoming, LIFETIME, MESSAGE_INTEGRITY, Outgoing, REFRESH, XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS, allocate, request,
};
use test_support::harness::{Client, Harness, Went, addr, alice};
use throughway::address::Family;
use throughway::protocol::border::{RelayRefused, Selector};
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::reject::RejectReason as Why;

const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
const ADDRESS_ERROR_CODE: u16 = 0x8001;

const V4: u8 = 1;
const V6: u8 = 2;

fn for_both() -> Outgoing {
    allocate().with(ADDITIONAL_ADDRESS_FAMILY, &[V6, 0, 0, 0])
}

/// A client with both, and their relayed addresses.
fn with_both(h: &mut Harness) -> (Client, SocketAddr, SocketAddr) {
    let client = h.client();
    let reply = h.ask(client, for_both());
    assert_eq!(reply.code(), 0);
    let [ipv4, ipv6] = reply.all_relayed()[..] else { panic!("one of each family: {reply:?}") };
    assert!(ipv4.is_ipv4() && ipv6.is_ipv6());
    (client, ipv4, ipv6)
}

fn refresh_of(family: u8, lifetime: u32) -> Outgoing {
    request(REFRESH).lifetime(lifetime).family(family)
}

fn address_error(reply: &Incoming) -> Option<&[u8]> {
    reply.get(ADDRESS_ERROR_CODE)
}

// RFC 8656 §7.2 [8656-7.2-18]
#[test]
fn both_relayed_addresses_are_told_and_told_again() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask(client, for_both());
    let types = [XOR_RELAYED_ADDRESS, XOR_RELAYED_ADDRESS, LIFETIME, XOR_MAPPED_ADDRESS, MESSAGE_INTEGRITY];
    assert_eq!((reply.code(), reply.types()), (0, types.to_vec()));
    assert_eq!((h.allocations(), h.books.admitted(), h.ports.count()), (1, 1, 2), "one allocation, two ports");
    let record = h.session(client).expect("it lives");
    let told = [Some(record.relayed), record.additional.map(|of| of.relayed)].map(|of| of.map(SocketAddr::from));
    assert_eq!(told.to_vec(), reply.all_relayed().into_iter().map(Some).collect::<Vec<_>>(), "records name both");
    h.refuses(client, for_both(), 437, Why::AllocationExists);
    h.refresh(client, 0);
    assert_eq!((h.closed.len(), h.ports.count(), h.leftovers()), (2, 0, 0));
}

// RFC 8656 §9, §11, §12
#[test]
fn packets_take_the_address_of_their_peers_family() {
    let mut h = Harness::new();
    let (client, ipv4, ipv6) = with_both(&mut h);
    let (near, far) = (addr("8.8.8.8:1"), addr("[2600::8]:2"));
    assert_eq!(h.permit(client, &[near, far]), 0);
    for (own, peer, number) in [(ipv4, near, 0x4000), (ipv6, far, 0x4001)] {
        let id = h.ports.id_at(own);
        let Went::ToPeer { allocation, to, .. } = h.send(client, peer, b"x") else { panic!("to {peer}") };
        assert_eq!((Some(allocation), to), (id, peer));
        assert_eq!(h.from_peer_on(client, own, peer, b"xy").data_indication(), (peer, b"xy".to_vec()));
        assert_eq!(h.bind(client, number, peer), 0);
        let Went::ToPeer { allocation, to, .. } = h.channel_data(client, number, b"xyz") else { panic!("to {peer}") };
        assert_eq!((Some(allocation), to), (id, peer));
        assert_eq!(h.from_peer_on(client, own, peer, b"xyzz").to_client()[..4], [0x40, number as u8, 0, 4]);
    }
    assert_eq!(h.from_peer_on(client, ipv6, addr("[2600::9]:2"), b"x"), Went::Dropped(DropReason::PeerNotPermitted));
    let record = h.session(client).expect("it lives");
    // A packet of 1 and one of 3 bytes each: 20 and 8 bytes of heads over IPv4, 40 and 8 over IPv6.
    assert_eq!(record.wire_sent(Direction::ToPeer), 8 + 2 * 28 + 2 * 48);
    let socket = h.ports.id_at(ipv6).expect("open");
    h.server_of(client).not_sent(socket, Direction::ToPeer, 1, 3, DropReason::Unreachable);
    let record = h.session(client).expect("it lives");
    assert_eq!(record.wire_sent(Direction::ToPeer), 5 + 2 * 28 + 48);
    h.is_unchecked = true;
}

// RFC 8656 §8.1: without REQUESTED-ADDRESS-FAMILY all are meant [8656-8.1-1]
#[test]
fn refresh_without_a_family_is_for_both() {
    let mut h = Harness::new();
    let (client, ..) = with_both(&mut h);
    h.advance(500);
    assert_eq!(h.refresh(client, 600).lifetime(), 600);
    h.advance_ms(599_999);
    assert_eq!(h.ports.count(), 2);
    h.advance_ms(1);
    assert_eq!((h.ports.count(), h.leftovers()), (0, 0));
}

// RFC 8656 §8.1: only the one that is named
#[test]
fn each_family_has_a_lifetime_of_its_own() {
    for (kept, lost) in [(V4, V6), (V6, V4)] {
        let mut h = Harness::new();
        let (client, ipv4, ipv6) = with_both(&mut h);
        let (near, far) = (addr("8.8.8.8:1"), addr("[2600::8]:2"));
        let (kept_peer, lost_peer) = if kept == V4 { (near, far) } else { (far, near) };
        let (kept_address, lost_address) = if kept == V4 { (ipv4, ipv6) } else { (ipv6, ipv4) };
        h.advance(500);
        let reply = h.ask(client, refresh_of(kept, 1200));
        assert_eq!((reply.code(), reply.lifetime()), (0, 1200));
        assert_eq!(h.permit(client, &[near, far]), 0);
        h.advance_ms(99_999);
        assert_eq!(h.send(client, lost_peer, b"x").to_peer().0, lost_peer);
        h.advance_ms(1);
        assert_eq!(h.closed, [lost_address]);
        assert!(h.is_alive(client));
        assert_eq!(h.send(client, lost_peer, b"x"), Went::Dropped(DropReason::PeerFamily));
        assert_eq!(h.send(client, kept_peer, b"x").to_peer().0, kept_peer);
        assert_eq!(h.from_peer_on(client, kept_address, kept_peer, b"y").data_indication().0, kept_peer);
        h.refuses(client, refresh_of(lost, 600), 443, Why::PeerFamily);
        h.refuses(client, request(CREATE_PERMISSION).peers(&[lost_peer]), 443, Why::PeerFamily);
        h.advance(1100);
        assert_eq!((h.ended[0].reason, h.leftovers()), (Some(EndReason::Expired), 0));
    }
}

// RFC 8656 §8.1: what belongs to the other family stays
// [8656-8.1-2]
#[test]
fn one_family_is_given_back_and_the_other_one_goes_on() {
    for (kept, lost) in [(V4, V6), (V6, V4)] {
        let mut h = Harness::new();
        let (client, ipv4, ipv6) = with_both(&mut h);
        let (near, far) = (addr("8.8.8.8:1"), addr("[2600::8]:2"));
        assert_eq!((h.bind(client, 0x4000, near), h.bind(client, 0x4001, far)), (0, 0));
        let sent = [h.channel_data(client, 0x4000, b"12"), h.channel_data(client, 0x4001, b"345")];
        assert_eq!(sent.map(|went| went.to_peer().0), [near, far]);
        let reply = h.ask(client, refresh_of(lost, 0));
        assert_eq!((reply.code(), reply.lifetime()), (0, 0));
        let (kept_address, lost_address) = if kept == V4 { (ipv4, ipv6) } else { (ipv6, ipv4) };
        let (kept_peer, kept_channel, lost_channel) =
            if kept == V4 { (near, 0x4000, 0x4001) } else { (far, 0x4001, 0x4000) };
        assert_eq!((&h.closed[..], h.ports.count(), h.books.admitted()), (&[lost_address][..], 1, 1));
        assert_eq!(h.channel_data(client, kept_channel, b"x").to_peer().0, kept_peer);
        assert_eq!(h.from_peer_on(client, kept_address, kept_peer, b"y").to_client()[0], 0x40);
        assert_eq!(h.channel_data(client, lost_channel, b"x"), Went::Dropped(DropReason::UnboundChannel));
        h.refuses(client, refresh_of(lost, 0), 443, Why::PeerFamily);
        let record = h.session(client).expect("it lives");
        assert_eq!(SocketAddr::from(record.relayed), kept_address);
        assert_eq!(record.additional.map(|of| SocketAddr::from(of.relayed)), Some(lost_address), "it had both");
        let heads = if kept == V4 { 2 * 28 + 48 } else { 28 + 2 * 48 };
        assert_eq!(record.wire_sent(Direction::ToPeer), 6 + heads);
        // The last one ends the allocation.
        assert_eq!(h.ask(client, refresh_of(kept, 0)).code(), 0);
        assert_eq!((h.ended[0].reason, h.leftovers()), (Some(EndReason::Refreshed), 0));
    }
}

// RFC 8656 §7.2, §18.12: 508 for the one that could not be had [8656-7.2-16, -17, 8656-18.12-1, -2]
#[test]
fn the_other_family_is_given_where_one_has_no_port() {
    for (family, number, given) in [(Family::V6, V6, V4), (Family::V4, V4, V6)] {
        let mut h = Harness::new();
        h.ports.refuse_family = Some((family, RelayRefused::NoPort));
        let client = h.client();
        let reply = h.ask(client, for_both());
        assert_eq!((reply.code(), reply.all_relayed().len()), (0, 1));
        assert_eq!(reply.relayed().is_ipv4(), given == V4);
        assert_eq!(address_error(&reply), Some(&[number, 0, 5, 8][..]));
        assert_eq!((h.ports.count(), h.books.admitted()), (1, 1));
        h.refuses(client, refresh_of(number, 0), 443, Why::PeerFamily);
        h.refresh(client, 0);
        assert_eq!(h.leftovers(), 0);
    }
    let mut h = Harness::new();
    h.ports.refuse = Some(RelayRefused::NoPort);
    let client = h.client();
    h.refuses(client, for_both(), 508, Why::NoPort);
    assert_eq!(h.leftovers(), 0);
}

// RFC 8656 §7.2, §18.12: 440 for a family that this server does not relay from [8656-7.2-16, -17]
#[test]
fn the_other_family_is_given_where_the_server_has_one_only() {
    for (ipv4, ipv6, number) in [(true, false, V6), (false, true, V4)] {
        let mut h = Harness::with(|settings| (settings.relay_ipv4, settings.relay_ipv6) = (ipv4, ipv6));
        let client = h.client();
        let reply = h.ask(client, for_both());
        assert_eq!((reply.code(), reply.relayed().is_ipv4()), (0, ipv4));
        assert_eq!(address_error(&reply), Some(&[number, 0, 4, 40][..]));
        h.refresh(client, 0);
    }
    let mut h = Harness::with(|settings| (settings.relay_ipv4, settings.relay_ipv6) = (false, false));
    let client = h.client();
    h.refuses(client, for_both(), 440, Why::FamilyUnsupported);
}

// A client that goes while its second address is opened leaves nothing behind
#[test]
fn a_client_that_goes_in_between_leaves_nothing() {
    for gone_after in 0..2 {
        let mut h = Harness::new();
        let client = h.add(alice().tcp());
        let bytes = h.signed(client, &for_both());
        h.hold_back_opens = true;
        assert_eq!(h.tell(client, &bytes), []);
        for _ in 0..gone_after {
            h.let_one_open_go();
        }
        h.disconnect(client);
        h.let_opens_go(client);
        assert_eq!((h.ports.count(), h.books.admitted(), h.leftovers()), (0, 0, 0), "after {gone_after}");
    }
}

// A version that does not know of second addresses can't take these sessions over: `upgrade --drop-unknown` ends them
#[test]
fn those_with_two_addresses_can_be_ended_alone() {
    let mut h = Harness::new();
    let (dual, ..) = with_both(&mut h);
    let (halved, ..) = with_both(&mut h);
    assert_eq!(h.ask(halved, refresh_of(V4, 0)).code(), 0);
    let other = h.client();
    h.allocate(other);
    let waiting = h.client();
    h.hold_back_opens = true;
    let bytes = h.signed(waiting, &for_both());
    assert_eq!(h.tell(waiting, &bytes), []);
    h.let_one_open_go();
    h.close(&Selector::DualAllocations, EndReason::Kicked);
    assert_eq!((h.is_alive(dual), h.is_alive(halved), h.is_alive(other)), (false, false, true));
    assert_eq!(h.inbox(waiting)[0].code(), 486, "what is just being opened counts too");
    h.let_opens_go(waiting);
    assert_eq!((h.allocations(), h.ports.count()), (1, 1));
}
