//! STUN Binding, FINGERPRINT and the ignoring of what does not count (RFC 8489).

use test_support::harness;
use test_support::harness::stun::{
    BINDING, FINGERPRINT, INDICATION, MESSAGE_INTEGRITY, REQUEST, SOFTWARE, SUCCESS, UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS, append_fingerprint, indication, request,
};
use test_support::harness::{Harness, alice};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::reason::DropReason;
use throughway::protocol::reject::RejectReason;

// RFC 8489 §3, §14.2 [8489-5-3, 8489-6.3.1.1-6, 8489-12-1, -2]
#[test]
fn binding_is_answered_with_the_address_it_came_from() {
    let mut h = Harness::new();
    let client = h.add(alice().from("192.0.2.1:32853"));
    let reply = h.ask_unsigned(client, request(BINDING));
    assert_eq!(reply.code(), 0);
    assert_eq!(reply.mapped(), h.address_of(client));
    assert_eq!(reply.types(), [XOR_MAPPED_ADDRESS], "as small as can be");
    assert_eq!(reply.bytes.len(), 32, "20 bytes of request, 32 of answer");
}

// RFC 8489 §14.2: the IPv6 form is XORed with the transaction id too
#[test]
fn binding_over_ipv6_reports_an_ipv6_address() {
    let mut h = Harness::new();
    let client = h.add(alice().from("[2001:db8:1234:5678:11:2233:4455:6677]:32853"));
    let reply = h.ask_unsigned(client, request(BINDING));
    assert_eq!(reply.mapped(), h.address_of(client));
    assert_eq!(reply.bytes.len(), 44);
}

// RFC 8489 §3: over a stream as over UDP [8489-6.3.1.1-6, 8489-12-4]
#[test]
fn binding_over_tcp_is_answered() {
    let mut h = Harness::new();
    let client = h.add(alice().tcp());
    assert_eq!(h.ask_unsigned(client, request(BINDING)).mapped(), h.address_of(client));
}

// RFC 8489 §6.3.2 [8489-6.3.2-2]
#[test]
fn binding_indication_is_ignored_without_a_count_of_drops() {
    let mut h = Harness::new();
    let client = h.client();
    let bytes = indication(BINDING).bytes([1; 12], None);
    assert_eq!(h.tell(client, &bytes), []);
    assert!(DropReason::ALL.iter().all(|why| h.drops(*why).packets == 0));
}

// RFC 8489 §6.3.1: unknown comprehension-required attributes [8489-6.3.1-1, 8489-6.3.1.1-1, -3]
#[test]
fn binding_with_unknown_required_attributes_is_420_and_lists_them() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask_unsigned(client, request(BINDING).with(0x7001, b"x").with(0x7002, b"").with(0x7003, b"abc"));
    assert_eq!(reply.code(), 420);
    assert_eq!(reply.unknown(), [0x7001, 0x7002, 0x7003]);
    assert_eq!(h.rejects(RejectReason::UnknownAttributes), 1);
}

// RFC 8489 §14.13; eight are enough for any client to see its mistake [8489-14.8-6]
#[test]
fn a_420_lists_each_type_once_and_fits_the_smallest_answer() {
    let mut h = Harness::new();
    let client = h.client();
    let mut message = request(BINDING).with(0x7001, b"").with(0x7001, b"again").fingerprint();
    for attribute in 0x7002..0x7010 {
        message = message.with(attribute, b"");
    }
    let reply = h.ask_unsigned(client, message);
    assert_eq!(reply.unknown(), (0x7001..0x7009).collect::<Vec<u16>>());
    assert!(reply.bytes.len() <= ANSWER_BYTES_MAX);
}

// RFC 8489 §14: comprehension-optional attributes [8489-6.3-4]
#[test]
fn unknown_optional_attributes_are_ignored() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask_unsigned(client, request(BINDING).with(0x8777, b"?").with(SOFTWARE, b"tester"));
    assert_eq!(reply.code(), 0);
    assert!(!reply.has(UNKNOWN_ATTRIBUTES) && !reply.has(SOFTWARE));
}

// RFC 8489 §14.7 [8489-12-5, 8489-14.7-1]
#[test]
fn fingerprint_is_mirrored() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask_unsigned(client, request(BINDING).fingerprint());
    assert_eq!(reply.types(), [XOR_MAPPED_ADDRESS, FINGERPRINT]);
    assert!(!h.ask_unsigned(client, request(BINDING)).has(FINGERPRINT));
    let challenge = h.ask_unsigned(client, harness::stun::allocate().fingerprint());
    assert!(challenge.has(FINGERPRINT));
    let allocated = h.ask(client, harness::stun::allocate().fingerprint());
    assert_eq!(allocated.types()[allocated.types().len() - 2..], [MESSAGE_INTEGRITY, FINGERPRINT]);
}

// RFC 8489 §6.3, §14.7: a wrong FINGERPRINT is silently discarded [8489-6.3-3]
#[test]
fn a_wrong_fingerprint_is_met_with_silence() {
    let mut h = Harness::new();
    let client = h.client();
    let mut bytes = request(BINDING).fingerprint().bytes([1; 12], None);
    *bytes.last_mut().expect("bytes") ^= 1;
    h.silent(client, &bytes, DropReason::BadFingerprint);
    let mut bytes = h.signed(client, &harness::stun::allocate().fingerprint());
    *bytes.last_mut().expect("bytes") ^= 1;
    h.silent(client, &bytes, DropReason::BadFingerprint);
    assert_eq!(h.allocations(), 0);
}

// RFC 8489 §14.7: FINGERPRINT is the last attribute [8489-14.7-1]
#[test]
fn anything_after_fingerprint_is_malformed() {
    let mut h = Harness::new();
    let client = h.client();
    let mut bytes = request(BINDING).fingerprint().bytes([1; 12], None);
    append_fingerprint(&mut bytes);
    h.silent(client, &bytes, DropReason::Malformed);
}

// RFC 8489 §14: padding may hold any value and is ignored [8489-14-5]
#[test]
fn padding_of_any_value_is_accepted() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask_unsigned(client, request(BINDING).padding(0xFF).with(SOFTWARE, b"x")).code(), 0);
    assert_eq!(h.ask(client, harness::stun::allocate().padding(0xAA)).code(), 0);
}

// RFC 8489 §12: Binding needs no credentials, and none are looked at [8489-12-2]
#[test]
fn binding_ignores_credentials() {
    let mut h = Harness::new();
    let client = h.client();
    let mut signature = h.signature(client);
    signature.key = [0; 16];
    signature.realm = None;
    let reply = h.ask_with(client, &signature, request(BINDING));
    assert_eq!(reply.code(), 0);
    assert!(!reply.is_signed());
}

// RFC 8489 §6.3: responses and unknown methods are discarded [8489-6.3-2, 8489-6.3.2-2]
#[test]
fn unexpected_classes_and_methods_are_met_with_silence() {
    let mut h = Harness::new();
    let client = h.client();
    h.silent(client, &request(BINDING).class(SUCCESS).bytes([1; 12], None), DropReason::UnexpectedClass);
    h.silent(client, &request(3).class(INDICATION).bytes([1; 12], None), DropReason::UnexpectedClass);
    h.silent(client, &request(3).class(SUCCESS).bytes([1; 12], None), DropReason::UnexpectedClass);
    h.silent(client, &request(0x00D).class(REQUEST).bytes([1; 12], None), DropReason::UnknownMethod);
    h.silent(client, &request(0x0FFF).bytes([1; 12], None), DropReason::UnknownMethod);
}

// RFC 8489 §5, §6.3 [8489-5-2, -4, 8489-6.3-1]
#[test]
fn malformed_messages_are_met_with_silence() {
    let mut h = Harness::new();
    let client = h.client();
    let good = request(BINDING).with(SOFTWARE, b"tester..").bytes([1; 12], None);
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let broken = [
        edit(&|b| b.truncate(19)),
        edit(&|b| b.truncate(20)),
        edit(&|b| b.push(0)),
        edit(&|b| b[4] ^= 1),
        edit(&|b| b[3] += 1),
        edit(&|b| b[3] += 4),
        edit(&|b| b[23] = 0xFF),
        edit(&|b| b[22] = 0xFF),
        vec![0, 1],
        vec![0],
    ];
    for bytes in broken {
        h.silent(client, &bytes, DropReason::Malformed);
    }
    assert_eq!(h.ask_unsigned(client, request(BINDING)).code(), 0, "others are unaffected");
}

// RFC 5780 §6, §7.4, §7.5: a server with one address knows none of these attributes, and tells of no other address
// [5780-6-4, -5, 5780-7.4-1, 5780-7.5-2]
#[test]
fn attributes_of_behavior_discovery_are_420() {
    const CHANGE_REQUEST: u16 = 0x0003;
    const PADDING: u16 = 0x0026;
    const RESPONSE_PORT: u16 = 0x0027;
    const OTHER_ADDRESS: u16 = 0x802C;
    let mut h = Harness::new();
    let client = h.client();
    for attributes in [&[CHANGE_REQUEST][..], &[PADDING], &[RESPONSE_PORT], &[PADDING, RESPONSE_PORT]] {
        let message = attributes.iter().fold(request(BINDING), |message, kind| message.with(*kind, &[0, 0, 0, 6]));
        let reply = h.ask_unsigned(client, message);
        assert_eq!((reply.code(), &reply.unknown()[..]), (420, attributes));
        assert!(!reply.has(OTHER_ADDRESS));
    }
    assert!(!h.ask_unsigned(client, request(BINDING)).has(OTHER_ADDRESS));
}

// The shell's short way answers exactly as the long one.
#[test]
fn answer_binding_without_heap_equals_the_answer_of_the_control_lane() {
    let mut h = Harness::new();
    let client = h.client();
    let via = h.via(client);
    for message in [
        request(BINDING),
        request(BINDING).fingerprint(),
        request(BINDING).with(0x7001, b""),
        request(BINDING).with(0x7001, b"").fingerprint(),
    ] {
        let bytes = message.bytes([9; 12], None);
        let mut out = [0xEE; ANSWER_BYTES_MAX];
        let now = h.now;
        let len = h.server_of(client).answer_binding(now, &via, &bytes, &mut out).expect("it is Binding");
        assert_eq!(h.tell(client, &bytes)[0].bytes, out[..len]);
    }
    let mut out = [0; ANSWER_BYTES_MAX];
    let allocate = harness::stun::allocate().bytes([9; 12], None);
    let now = h.now;
    assert_eq!(h.server_of(client).answer_binding(now, &via, &allocate, &mut out), None, "left to the control lane");
    let keep_alive = indication(BINDING).bytes([9; 12], None);
    assert_eq!(h.server_of(client).answer_binding(now, &via, &keep_alive, &mut out), Some(0));
}
