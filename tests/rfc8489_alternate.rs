//! ALTERNATE-SERVER (RFC 8489 section 10) and what a draining server does and does not do.

mod support;

use std::net::{IpAddr, SocketAddr};

use support::stun::{ALLOCATE, Incoming, REFRESH, allocate, request};
use support::{Harness, Went, addr, alice};
use throughway::protocol::drain::{Alternates, Siblings};
use throughway::protocol::reject::RejectReason as Why;
use throughway::protocol::settings::Settings;

const ALTERNATE_SERVER: u16 = 0x8023;
const ALTERNATE_DOMAIN: u16 = 0x8003;

fn sibling(settings: &mut Settings, addresses: &[&str]) {
    let mut plain = Siblings::default();
    for address in addresses {
        assert_eq!(plain.add(addr(address)), None, "one per family");
    }
    settings.alternates = Alternates { plain, ..Alternates::default() };
}

/// As MAPPED-ADDRESS: a zero, the family, the port, the address, nothing XORed.
fn alternate(reply: &Incoming) -> SocketAddr {
    let value = reply.get(ALTERNATE_SERVER).expect("ALTERNATE-SERVER");
    let ip: IpAddr = match (value[0], value[1], value.len()) {
        (0, 1, 8) => <[u8; 4]>::try_from(&value[4..]).unwrap().into(),
        (0, 2, 20) => <[u8; 16]>::try_from(&value[4..]).unwrap().into(),
        other => panic!("no address: {other:?}"),
    };
    SocketAddr::new(ip, u16::from_be_bytes([value[2], value[3]]))
}

// RFC 8489 §10: the response carries ALTERNATE-SERVER; §14.15: of the family of the request's source
#[test]
fn a_draining_server_sends_each_client_to_the_sibling_of_its_own_family() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479", "[2001:db8::8]:3480"]));
    h.drain_all();
    for (spec, expected) in [
        (alice(), "198.51.100.8:3479"),
        (alice().tcp(), "198.51.100.8:3479"),
        (alice().ipv6(), "[2001:db8::8]:3480"),
        (alice().ipv6().tcp(), "[2001:db8::8]:3480"),
    ] {
        let client = h.add(spec);
        // What is wanted of the relay is another matter than how the client comes.
        for message in [allocate(), allocate().family(1), allocate().family(2).fingerprint()] {
            let reply = h.refuses(client, message, 300, Why::Redirected);
            assert_eq!(alternate(&reply), addr(expected));
            assert!(!reply.has(ALTERNATE_DOMAIN), "only a certificate needs a name");
        }
    }
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}

// RFC 8489 §10: without a server of that family there is nothing to name
#[test]
fn a_family_without_a_sibling_is_486() {
    let mut h = Harness::with(|settings| sibling(settings, &["[2001:db8::8]:3480"]));
    h.drain_all();
    let (by_ipv4, by_ipv6) = (h.client(), h.add(alice().ipv6()));
    let reply = h.refuses(by_ipv4, allocate(), 486, Why::Draining);
    assert!(!reply.has(ALTERNATE_SERVER));
    h.refuses(by_ipv6, allocate(), 300, Why::Redirected);
}

// RFC 8489 §10: nobody is sent anywhere by an answer that anybody could have forged
#[test]
fn only_who_is_known_is_sent_elsewhere() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    h.drain_all();
    let client = h.client();
    let challenge = h.ask_unsigned(client, allocate());
    assert_eq!((challenge.code(), challenge.has(ALTERNATE_SERVER)), (401, false));
    let mallory = h.add(alice().named("alice", "looking-glass"));
    let refused = h.ask(mallory, allocate());
    assert_eq!((refused.code(), refused.has(ALTERNATE_SERVER)), (401, false));
    // RFC 8656 §7.2: a request that is wrong in itself is told so.
    h.refuses(client, request(ALLOCATE), 400, Why::MissingAttribute);
    h.refuses(client, request(REFRESH), 437, Why::NoAllocation);
    // Asked again, answered again: a refusal leaves no trace.
    let bytes = h.signed(client, &allocate());
    let first = h.tell(client, &bytes);
    assert_eq!((first[0].code(), first.len()), (300, 1));
    assert_eq!(h.tell(client, &bytes), first);
}

// What lives goes on: the answer to its Allocate, Refresh, permissions, channels, data both ways, and its end.
#[test]
fn what_lives_goes_on_while_the_server_drains() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    let client = h.client();
    let bytes = h.signed(client, &allocate());
    let first = h.tell(client, &bytes);
    h.drain_all();
    assert_eq!(h.tell(client, &bytes), first, "a retransmission is nothing new");
    let peer = addr("8.8.8.8:4000");
    for _ in 0..5 {
        assert_eq!(h.refresh(client, 600).lifetime(), 600);
        assert_eq!(h.permit(client, &[peer]), 0);
        assert_eq!(h.bind(client, 0x4001, peer), 0);
        assert_eq!(h.channel_data(client, 0x4001, b"there").to_peer(), (peer, b"there".to_vec()));
        assert!(matches!(h.from_peer(client, peer, b"back"), Went::ToClient { .. }));
        h.advance(500);
    }
    assert_eq!(h.refresh(client, 0).code(), 0);
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
    h.refuses(client, allocate(), 300, Why::Redirected);
}

// An opening that is under way when the drain begins comes to its end.
#[test]
fn an_allocate_that_came_before_the_drain_is_granted() {
    let mut h = Harness::with(|settings| sibling(settings, &["198.51.100.8:3479"]));
    let client = h.client();
    let bytes = h.signed(client, &allocate());
    h.hold_back_opens = true;
    assert_eq!(h.tell(client, &bytes), []);
    h.drain_all();
    assert_eq!(h.tell(client, &bytes), [], "a retransmission meanwhile is neither granted nor refused");
    let replies = h.let_opens_go(client);
    assert_eq!((replies.len(), replies[0].code()), (1, 0));
    assert!(h.is_alive(client));
}

// Where to is decided anew by each reload, also while the server drains.
#[test]
fn a_sibling_can_come_and_go_while_the_server_drains() {
    let mut h = Harness::new();
    let client = h.client();
    h.drain_all();
    h.refuses(client, allocate(), 486, Why::Draining);
    h.reconfigure(|settings| sibling(settings, &["198.51.100.8:3479"]));
    h.refuses(client, allocate(), 300, Why::Redirected);
    h.reconfigure(|settings| sibling(settings, &[]));
    h.refuses(client, allocate(), 486, Why::Draining);
}
