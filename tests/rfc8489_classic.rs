//! Clients of RFC 3489, which send no magic cookie (RFC 8489 section 11), with `stun.classic`.

use test_support::harness::stun::{BINDING, INDICATION, SUCCESS, request};
use test_support::harness::{Client, Harness, alice};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::border::{Input, Output};
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason;

const ID: [u8; 16] = *b"one hundred and ";
const MAPPED_ADDRESS: [u8; 2] = [0x00, 0x01];
const CHANGE_REQUEST: u8 = 0x03;

fn classic() -> (Harness, Client) {
    let mut h = Harness::with(|settings| settings.stun.classic = true);
    let client = h.add(alice().from("192.0.2.1:32853"));
    (h, client)
}

/// A Binding request as RFC 3489 section 11.1 has it.
fn binding(attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, attributes.len() as u8];
    bytes.extend(ID);
    bytes.extend(attributes);
    bytes
}

fn head(class: u8, len: u8) -> Vec<u8> {
    [&[0x01, class, 0, len], &ID[..]].concat()
}

/// The answer to a client, empty for none: the short way and the long one give the same, but that both count against a budget.
fn answers(h: &mut Harness, client: Client, bytes: &[u8], both: bool) -> Vec<u8> {
    let (now, via) = (h.now, h.via(client));
    let server = h.server_of(client);
    let mut out = [0xEE; ANSWER_BYTES_MAX];
    let len = server.answer_binding(now, &via, bytes, &mut out).expect("it is Binding");
    if both {
        server.handle_input(now, Input::Message { via, bytes });
        let Some(Output::Reply { via: to, bytes }) = server.poll_output() else { panic!("one answer") };
        assert_eq!((to, &bytes[..]), (via, &out[..len]));
        assert!(server.poll_output().is_none());
    }
    out[..len].to_vec()
}

fn answer(h: &mut Harness, client: Client, bytes: &[u8]) -> Vec<u8> {
    answers(h, client, bytes, true)
}

// RFC 8489 §11; RFC 3489 §8.1: the whole transaction id comes back, and the address is not XORed [8489-12-6]
#[test]
fn a_request_without_cookie_is_answered_with_mapped_address() {
    let (mut h, client) = classic();
    let value = [&MAPPED_ADDRESS[..], &[0, 8, 0, 1, 0x80, 0x55, 192, 0, 2, 1]].concat();
    let expected = [head(0x01, 12), value].concat();
    assert_eq!(answer(&mut h, client, &binding(&[])), expected);
    assert_eq!(expected.len(), 32, "as long as an answer with the cookie");
    let ipv6 = h.add(alice().from("[2001:db8::7]:1024"));
    let bytes = answer(&mut h, ipv6, &binding(&[]));
    assert_eq!((bytes.len(), &bytes[20..28]), (44, &[0, 1, 0, 20, 0, 2, 4, 0][..]));
}

// RFC 3489 §11.2.4: with neither flag, and with a name that nothing checks
#[test]
fn a_change_request_for_no_change_and_credentials_are_taken() {
    let (mut h, client) = classic();
    let attributes = [&[0, CHANGE_REQUEST, 0, 4, 0, 0, 0, 0][..], &[0, 6, 0, 4], b"user", &[0, 8, 0, 20], &[7; 20]];
    assert_eq!(answer(&mut h, client, &binding(&attributes.concat())).len(), 32);
}

// RFC 8489 §11, RFC 3489 §8.1, §11.2.10: RESPONSE-ADDRESS and a real change are unknown; an odd list has the last one twice
#[test]
fn what_would_send_the_answer_elsewhere_is_420() {
    let (mut h, client) = classic();
    let change = [0, CHANGE_REQUEST, 0, 4, 0, 0, 0, 6];
    let response_address = [0, 2, 0, 8, 0, 1, 0, 53, 198, 51, 100, 1];
    let error = [0, 9, 0, 4, 0, 0, 4, 20];
    let one = [head(0x11, 16), error.to_vec(), vec![0, 10, 0, 4, 0, 3, 0, 3]].concat();
    assert_eq!(answer(&mut h, client, &binding(&change)), one);
    let both = [head(0x11, 16), error.to_vec(), vec![0, 10, 0, 4, 0, 2, 0, 3]].concat();
    assert_eq!(answer(&mut h, client, &binding(&[&response_address[..], &change].concat())), both);
    assert_eq!(h.rejects(RejectReason::UnknownAttributes), 4);
    assert!(both.len() <= binding(&[&response_address[..], &change].concat()).len(), "no longer than the request");
}

// RFC 8489 §5: by default such a message is none of ours [8489-5-2]
#[test]
fn without_the_key_they_get_no_answer() {
    let mut h = Harness::new();
    let client = h.client();
    h.silent(client, &binding(&[]), DropReason::Malformed);
}

#[test]
fn nothing_but_binding_requests_over_udp_may_lack_the_cookie() {
    let (mut h, client) = classic();
    let mut malformed = vec![binding(&[0, 3]), binding(&[0, 3, 0, 4]), binding(&[0, 3, 0, 2, 0, 0, 0, 0])];
    for class in [INDICATION, SUCCESS] {
        let mut bytes = request(BINDING).class(class).bytes([1; 12], None);
        bytes[4] ^= 1;
        malformed.push(bytes);
    }
    let mut allocate = test_support::harness::stun::allocate().bytes([1; 12], None);
    allocate[7] ^= 1;
    malformed.push(allocate);
    for bytes in malformed {
        h.silent(client, &bytes, DropReason::Malformed);
    }
    let stream = h.add(alice().tcp());
    h.silent(stream, &binding(&[]), DropReason::Malformed);
    let reply = h.ask_unsigned(client, request(BINDING));
    assert_eq!(reply.mapped(), h.address_of(client), "with the cookie all is as ever");
}

// They prove nothing, so they have the budget of all that proves nothing.
#[test]
fn their_answers_count_against_the_budget_of_a_network() {
    let (mut h, client) = classic();
    h.reconfigure(|settings| {
        settings.stun.classic = true;
        settings.limits.replies_per_network = Some(1);
    });
    let mut answered = 0;
    for number in 0..100_u8 {
        let mut bytes = binding(&[]);
        bytes[19] = number;
        answered += u64::from(!answers(&mut h, client, &bytes, false).is_empty());
    }
    assert!((2..=10).contains(&answered), "{answered}: two, and one in sixteen");
    assert_eq!(h.drops(DropReason::OverReplies).packets, 100 - answered);
}
