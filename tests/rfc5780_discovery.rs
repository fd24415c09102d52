//! NAT behaviour discovery (RFC 5780): four addresses of one server, and what only proved sources may ask for.

use std::net::SocketAddr;

use test_support::harness::stun::{
    BINDING, ERROR_CODE, FINGERPRINT, Id, Incoming, NONCE, Outgoing, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS, request,
};
use test_support::harness::{Client, Harness, addr, alice};
use throughway::address::{FiveTuple, ServerAddress, Transport, Via};
use throughway::protocol::border::{Input, Output};
use throughway::protocol::discovery::Discovery;
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason;
use throughway::wire::attribute::plain_address;

const MAPPED_ADDRESS: u16 = 0x0001;
const CHANGE_REQUEST: u16 = 0x0003;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const ALTERNATE_SERVER: u16 = 0x8023;
const RESPONSE_ORIGIN: u16 = 0x802B;
const OTHER_ADDRESS: u16 = 0x802C;

const ASKED: &str = "9.9.9.1:3478";
const ID: Id = *b"twelve bytes";

fn discovery(over_tcp: bool) -> Discovery {
    Discovery::new([[9, 9, 9, 1].into(), [9, 9, 9, 2].into()], [3478, 3479], over_tcp).expect("all differ")
}

fn harness() -> (Harness, Client) {
    let mut h = Harness::with(|settings| settings.stun.discovery = Some(discovery(false)));
    let client = h.add(alice().from("192.0.2.1:32853"));
    (h, client)
}

/// What leaves the server for bytes that came this way: from where, to where, and what.
fn told(h: &mut Harness, client: Client, via: Via, bytes: &[u8]) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    let now = h.now;
    let server = h.server_of(client);
    server.handle_input(now, Input::Message { via, bytes });
    let mut answers = Vec::new();
    while let Some(output) = server.poll_output() {
        let Output::Reply { via, bytes } = output else { panic!("answers only") };
        let FiveTuple { client, server, .. } = *via.five_tuple();
        answers.push((SocketAddr::new(server.ip(), server.port()), client.into(), bytes));
    }
    answers
}

/// The only answer: from where, to where, and what.
fn ask(h: &mut Harness, client: Client, message: &Outgoing) -> (SocketAddr, SocketAddr, Incoming) {
    let via = h.via(client);
    let [(from, to, bytes)] = &told(h, client, via, &message.bytes(ID, None))[..] else { panic!("one answer") };
    (*from, *to, Incoming::decode(bytes))
}

fn plain(answer: &Incoming, attribute: u16) -> SocketAddr {
    plain_address(answer.get(attribute).expect("it is there")).expect("an address").into()
}

fn change(flags: u8) -> Outgoing {
    request(BINDING).with(CHANGE_REQUEST, &[0, 0, 0, flags])
}

fn with_port(port: u16) -> Outgoing {
    request(BINDING).with(RESPONSE_PORT, &[&port.to_be_bytes()[..], &[0, 0]].concat())
}

// RFC 5780 §6.1, §7.3, §7.4 [5780-6.1-1, -3, -4, -9]
#[test]
fn every_response_tells_of_both_addresses() {
    let (mut h, client) = harness();
    let answer = h.ask_unsigned(client, request(BINDING).fingerprint());
    let types = [MAPPED_ADDRESS, XOR_MAPPED_ADDRESS, RESPONSE_ORIGIN, OTHER_ADDRESS, FINGERPRINT];
    assert_eq!(answer.types(), types, "no {ALTERNATE_SERVER:#x}");
    assert_eq!((answer.mapped(), plain(&answer, MAPPED_ADDRESS)), (h.address_of(client), h.address_of(client)));
    assert_eq!(plain(&answer, RESPONSE_ORIGIN), addr(ASKED));
    assert_eq!(plain(&answer, OTHER_ADDRESS), addr("9.9.9.2:3479"));
    assert_eq!(answer.bytes.len(), 76, "no longer than the challenge of TURN, but for FINGERPRINT");
}

// RFC 5780 §6.1, §7.2 [5780-6-1, -2, 5780-6.1-2, -3, -4]
#[test]
fn a_change_request_chooses_where_the_response_comes_from() {
    let (mut h, client) = harness();
    for (flags, expected) in [(0, ASKED), (2, "9.9.9.1:3479"), (4, "9.9.9.2:3478"), (6, "9.9.9.2:3479"), (0xF9, ASKED)]
    {
        let (from, to, answer) = ask(&mut h, client, &change(flags));
        assert_eq!((from, to), (addr(expected), h.address_of(client)), "flags {flags}");
        assert_eq!(plain(&answer, RESPONSE_ORIGIN), addr(expected));
        assert_eq!(plain(&answer, OTHER_ADDRESS), addr("9.9.9.2:3479"), "the other of the address that was asked");
        assert_eq!(answer.mapped(), h.address_of(client));
    }
}

#[test]
fn the_other_address_depends_on_the_one_that_was_asked() {
    let (mut h, client) = harness();
    let asked = addr("9.9.9.2:3478");
    let five_tuple = *h.via(client).five_tuple();
    let via = Via::Datagram(FiveTuple { server: ServerAddress::from(asked), ..five_tuple });
    let [(from, _, bytes)] = &told(&mut h, client, via, &change(6).bytes(ID, None))[..] else { panic!("one answer") };
    assert_eq!((*from, plain(&Incoming::decode(bytes), OTHER_ADDRESS)), (addr("9.9.9.1:3479"), addr("9.9.9.1:3479")));
}

// RFC 5780 §7.5, §7.6: for sources that prove nothing neither attribute exists, and the answer goes where the request came from
// [5780-6.1-5, -7, 5780-7.5-1, -2]
#[test]
fn nothing_goes_elsewhere_and_nothing_is_padded_without_a_proof() {
    let (mut h, client) = harness();
    let foreign = h.add(alice().from("192.0.2.2:9"));
    let nonce = h.nonce_of(foreign);
    for (message, unknown) in [
        (with_port(53), vec![RESPONSE_PORT]),
        (change(6).with(PADDING, &[0; 64]), vec![PADDING]),
        (with_port(53).with(PADDING, &[0; 64]), vec![RESPONSE_PORT, PADDING]),
        (with_port(53).with(NONCE, &nonce), vec![RESPONSE_PORT]),
        (with_port(53).with(NONCE, b"made up"), vec![RESPONSE_PORT]),
        (change(2).with(0x7001, b""), vec![0x7001]),
    ] {
        let (from, to, answer) = ask(&mut h, client, &message);
        assert_eq!((from, to), (addr(ASKED), h.address_of(client)));
        assert_eq!((answer.code(), answer.unknown()), (420, unknown));
        assert_eq!(answer.types(), [ERROR_CODE, UNKNOWN_ATTRIBUTES]);
    }
    assert_eq!(h.rejects(RejectReason::UnknownAttributes), 6);
}

// RFC 5780 §7.5 [5780-7.5-1]
#[test]
fn a_nonce_an_allocation_and_loopback_are_proofs() {
    let (mut h, client) = harness();
    let nonce = h.nonce_of(client);
    let message = with_port(4_000).with(CHANGE_REQUEST, &[0, 0, 0, 2]).with(NONCE, &nonce);
    let (from, to, answer) = ask(&mut h, client, &message);
    assert_eq!((from, to), (addr("9.9.9.1:3479"), addr("192.0.2.1:4000")));
    assert_eq!(answer.mapped(), h.address_of(client), "the address that the request came from");
    assert_eq!(answer.types(), [MAPPED_ADDRESS, XOR_MAPPED_ADDRESS, RESPONSE_ORIGIN, OTHER_ADDRESS]);
    // The port alone, without the two bytes after it, as coturn's client sends it.
    let short = request(BINDING).with(RESPONSE_PORT, &4_001_u16.to_be_bytes()).with(NONCE, &nonce);
    assert_eq!(ask(&mut h, client, &short).1, addr("192.0.2.1:4001"));
    h.advance(3_601);
    assert_eq!(ask(&mut h, client, &message).2.code(), 420, "the nonce is too old");

    let owner = h.client();
    h.allocate(owner);
    assert_eq!(ask(&mut h, owner, &with_port(4_000)).1.port(), 4_000);
    let local = h.add(alice().from("127.0.0.1:5000"));
    assert_eq!(ask(&mut h, local, &with_port(4_000)).1, addr("127.0.0.1:4000"));
}

// RFC 5780 §6.1, §7.6 [5780-6.1-5, 5780-7.6-1]
#[test]
fn padding_is_answered_with_as_much() {
    let (mut h, client) = harness();
    let nonce = h.nonce_of(client);
    for bytes in [0, 1, 1_500, 3_900] {
        let message = request(BINDING).with(NONCE, &nonce).with(PADDING, &vec![7; bytes]).fingerprint();
        let sent = message.bytes(ID, None).len();
        let (_, to, answer) = ask(&mut h, client, &message);
        assert_eq!((to, answer.get(PADDING)), (h.address_of(client), Some(&vec![0; bytes][..])));
        assert_eq!(*answer.types().last().expect("some"), FINGERPRINT);
        assert!(answer.bytes.len() <= sent + 48, "{sent} bytes were asked, {} answered", answer.bytes.len());
    }
}

// RFC 5780 §6.1, §7.5 [5780-6.1-7, 5780-7.5-2]
#[test]
fn wrong_values_and_padding_for_another_port_are_400() {
    let (mut h, client) = harness();
    let nonce = h.nonce_of(client);
    for (message, reason) in [
        (with_port(4_000).with(PADDING, &[0; 4]), RejectReason::Combination),
        (with_port(0), RejectReason::BadAttribute),
        (request(BINDING).with(RESPONSE_PORT, &[1]), RejectReason::BadAttribute),
        (request(BINDING).with(CHANGE_REQUEST, &[6]), RejectReason::BadAttribute),
    ] {
        let before = h.rejects(reason);
        let (from, to, answer) = ask(&mut h, client, &message.with(NONCE, &nonce));
        assert_eq!((answer.code(), from, to), (400, addr(ASKED), h.address_of(client)), "{}", reason.name());
        assert_eq!(h.rejects(reason), before + 1);
    }
    let mut bytes = change(6).fingerprint().bytes(ID, None);
    *bytes.last_mut().expect("bytes") ^= 1;
    h.silent(client, &bytes, DropReason::BadFingerprint);
}

// What goes to another port has the budget, whatever was proved.
#[test]
fn a_proof_does_not_lift_the_budget() {
    let (mut h, client) = harness();
    let nonce = h.nonce_of(client);
    h.allocate(client);
    h.reconfigure(|settings| {
        settings.stun.discovery = Some(discovery(false));
        settings.limits.replies_per_network = Some(1);
    });
    let via = h.via(client);
    let mut answered = 0;
    for number in 0..100_u8 {
        let mut id = ID;
        id[11] = number;
        answered += told(&mut h, client, via, &with_port(4_000).with(NONCE, &nonce).bytes(id, None)).len() as u64;
    }
    assert!((2..=10).contains(&answered), "{answered}: two, and one in sixteen");
    assert_eq!(h.drops(DropReason::OverReplies).packets, 100 - answered);
}

// RFC 5780 §6, §7.4: over TCP nothing leaves from elsewhere, and the other address is told only if there is one
// [5780-6-2, -4, -5, 5780-7.4-1]
#[test]
fn over_tcp_the_other_address_is_told_if_it_is_there() {
    for over_tcp in [false, true] {
        let mut h = Harness::with(|settings| settings.stun.discovery = Some(discovery(over_tcp)));
        let client = h.add(alice().tcp());
        let answer = h.ask_unsigned(client, request(BINDING));
        assert_eq!((answer.has(OTHER_ADDRESS), plain(&answer, RESPONSE_ORIGIN)), (over_tcp, addr(ASKED)));
        let refused = h.ask_unsigned(client, change(6));
        assert_eq!((refused.code(), refused.unknown()), (420, vec![CHANGE_REQUEST]));
        let five_tuple = FiveTuple { transport: Transport::Tls, ..*h.via(client).five_tuple() };
        assert_eq!(discovery(over_tcp).origins_at(&five_tuple), None, "over TLS nothing is told");
    }
}

// RFC 5780 §6: at any other listener all is as without discovery [5780-6-4, -5]
#[test]
fn other_listeners_have_no_second_address() {
    let (mut h, _) = harness();
    let ipv6 = h.add(alice().ipv6());
    assert_eq!(h.ask_unsigned(ipv6, request(BINDING)).types(), [XOR_MAPPED_ADDRESS]);
    let refused = h.ask_unsigned(ipv6, change(6));
    assert_eq!((refused.code(), refused.unknown()), (420, vec![CHANGE_REQUEST]));
}

// Behind a NAT of one to one clients are told the public addresses; without two of them there is no discovery.
#[test]
fn clients_are_told_public_addresses() {
    let public = |second: u8| {
        discovery(false).advertised_as(move |ip| {
            let is_first = ip == addr(ASKED).ip();
            Some(addr(if is_first || second == 1 { "203.0.113.1:0" } else { "203.0.113.2:0" }).ip())
        })
    };
    let mut h = Harness::with(|settings| settings.stun.discovery = public(2));
    let client = h.client();
    let (from, _, answer) = ask(&mut h, client, &change(4));
    assert_eq!((from, plain(&answer, RESPONSE_ORIGIN)), (addr("9.9.9.2:3478"), addr("203.0.113.2:3478")));
    assert_eq!(plain(&answer, OTHER_ADDRESS), addr("203.0.113.2:3479"));
    assert_eq!(public(1), None, "one address for both");
    assert_eq!(discovery(false).advertised_as(|_| None), None, "not known yet");
}

// RFC 3489 §8.1: SOURCE-ADDRESS and CHANGED-ADDRESS, and CHANGE-REQUEST, are what its clients need for the same.
#[test]
fn clients_of_rfc_3489_find_out_too() {
    let (mut h, client) = harness();
    h.reconfigure(|settings| {
        settings.stun.discovery = Some(discovery(false));
        settings.stun.classic = true;
    });
    let via = h.via(client);
    let address = |attribute: u8, ip: u8, port: u16| {
        let [p1, p2] = port.to_be_bytes();
        vec![0, attribute, 0, 8, 0, 1, p1, p2, 9, 9, 9, ip]
    };
    for (flags, from) in [(0, "9.9.9.1:3478"), (2, "9.9.9.1:3479"), (6, "9.9.9.2:3479")] {
        let bytes = [&[0, 1, 0, 8], &[5; 16][..], &[0, 3, 0, 4, 0, 0, 0, flags]].concat();
        let [(source, to, answer)] = &told(&mut h, client, via, &bytes)[..] else { panic!("one answer") };
        assert_eq!((*source, *to), (addr(from), h.address_of(client)));
        let from = addr(from);
        let ip = if from.ip() == addr(ASKED).ip() { 1 } else { 2 };
        assert_eq!(answer[32..], [address(4, ip, from.port()), address(5, 2, 3479)].concat());
    }
    let elsewhere = [&[0, 1, 0, 12], &[5; 16][..], &[0, 2, 0, 8, 0, 1, 0, 53, 198, 51, 100, 1]].concat();
    let [(_, to, answer)] = &told(&mut h, client, via, &elsewhere)[..] else { panic!("one answer") };
    assert_eq!((*to, &answer[..2]), (h.address_of(client), &[0x01, 0x11][..]), "RESPONSE-ADDRESS stays unknown");
}
