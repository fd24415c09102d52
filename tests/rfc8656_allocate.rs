//! Allocate (RFC 8656 section 7): each check in its order, lifetimes, retransmissions, quotas, ports.

use test_support::harness;
use test_support::harness::stun::{
    ALLOCATE, DONT_FRAGMENT, ERROR_CODE, EVEN_PORT, LIFETIME, MESSAGE_INTEGRITY, REFRESH, REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT, RESERVATION_TOKEN, XOR_MAPPED_ADDRESS, XOR_RELAYED_ADDRESS, allocate, request,
};
use test_support::harness::{Harness, Went, alice, carol, holder_of, user};
use throughway::address::{Family, RelayedTransportAddress};
use throughway::protocol::border::Selector;
use throughway::protocol::border::{Parity, RelayRefused, RelayRequest};
use throughway::protocol::reason::{DropReason, EndReason};
use throughway::protocol::reject::RejectReason as Why;
use throughway::protocol::revocation::Subject;

// RFC 8656 §7.2: what a success carries [8656-7.2-12, -31, 8489-9.2.4-25, -27]
#[test]
fn allocate_answers_with_relayed_address_lifetime_and_mapped_address() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask(client, allocate());
    assert_eq!(reply.types(), [XOR_RELAYED_ADDRESS, LIFETIME, XOR_MAPPED_ADDRESS, MESSAGE_INTEGRITY]);
    assert_eq!(reply.relayed().ip(), harness::addr("9.9.9.9:1").ip());
    assert_eq!(reply.mapped(), h.address_of(client));
    assert_eq!(reply.lifetime(), 600);
    let client_ip = h.address_of(client).ip();
    assert_eq!(
        h.opens,
        [RelayRequest::Fresh { family: Family::V4, parity: Parity::Any, part: None, client: client_ip }]
    );
    assert_eq!(h.counters_of(client).created.get(), 1);
}

// RFC 8656 §7.2: no success before the relayed transport address is really there
#[test]
fn no_answer_leaves_before_the_relayed_socket_is_open() {
    let mut h = Harness::new();
    let client = h.client();
    h.hold_back_opens = true;
    let bytes = h.signed(client, &allocate());
    assert_eq!(h.tell(client, &bytes), []);
    assert_eq!((h.allocations(), h.opens.len()), (0, 1));
    let replies = h.let_opens_go(client);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].code(), 0);
    assert_eq!(h.allocations(), 1);
}

// RFC 8656 §7.2: a quota may be asked for wherever it is kept
#[test]
fn no_answer_leaves_before_the_quotas_have_answered() {
    let mut h = Harness::new();
    let client = h.client();
    h.hold_back_admissions = true;
    let bytes = h.signed(client, &allocate());
    for _ in 0..3 {
        assert_eq!(h.tell(client, &bytes), [], "a retransmission waits for the answer to the first");
    }
    h.refuses(client, allocate(), 437, Why::AllocationExists);
    assert_eq!((h.allocations(), h.opens.len(), h.books.admitted()), (0, 0, 0));
    let replies = h.let_admissions_go(client);
    assert_eq!(replies.iter().map(|reply| reply.code()).collect::<Vec<_>>(), [0]);
    assert_eq!((h.allocations(), h.opens.len(), h.books.admitted()), (1, 1, 1));
}

#[test]
fn a_refusal_of_the_quotas_that_comes_late_is_a_signed_486() {
    let mut h = Harness::with(|settings| settings.limits.allocations = Some(0));
    let client = h.client();
    h.nonce_of(client);
    h.hold_back_admissions = true;
    let bytes = h.signed(client, &allocate());
    assert_eq!(h.tell(client, &bytes), []);
    let replies = h.let_admissions_go(client);
    assert_eq!(replies.len(), 1);
    assert_eq!((replies[0].code(), h.rejects(Why::QuotaServer)), (486, 1));
    assert_eq!((h.leftovers(), h.books.admitted(), h.opens.len()), (0, 0, 0));
    // And the five-tuple is free.
    h.reconfigure(|settings| settings.limits.allocations = None);
    h.allocate(client);
}

// What the quotas count for a client that has gone is given back as soon as they answer.
#[test]
fn a_client_that_goes_while_the_quotas_are_asked_leaves_nothing_behind() {
    for is_admitted in [true, false] {
        for message in [allocate(), allocate().even_port(true)] {
            let mut h = Harness::with(|settings| settings.limits.allocations = Some(if is_admitted { 5 } else { 0 }));
            let client = h.add(alice().tcp());
            h.nonce_of(client);
            h.hold_back_admissions = true;
            let bytes = h.signed(client, &message);
            assert_eq!(h.tell(client, &bytes), []);
            h.disconnect(client);
            let via = h.via(client);
            assert!(!h.server_of(client).has_allocation(&via), "nothing is under way for it any more");
            assert_eq!(h.let_admissions_go(client), []);
            assert_eq!((h.leftovers(), h.books.admitted(), h.opens.len()), (0, 0, 0), "admitted: {is_admitted}");
        }
    }
}

// The quotas may not answer: the client hears so in time, may ask again, and a late answer leaves nothing.
#[test]
fn a_client_does_not_wait_for_ever_for_the_quotas() {
    for is_admitted in [true, false] {
        let mut h = Harness::with(|settings| settings.limits.allocations = Some(if is_admitted { 5 } else { 0 }));
        let client = h.client();
        h.nonce_of(client);
        h.hold_back_admissions = true;
        let bytes = h.signed(client, &allocate());
        assert_eq!(h.tell(client, &bytes), []);
        h.advance(1);
        assert_eq!(h.inbox(client), [], "they may take two seconds");
        h.hand_over();
        h.advance(1);
        assert_eq!(h.inbox(client).iter().map(|reply| reply.code()).collect::<Vec<_>>(), [508]);
        assert_eq!(h.rejects(Why::AdmissionOverdue), 1);
        assert_eq!(h.let_admissions_go(client), [], "it was answered");
        assert_eq!((h.leftovers(), h.books.admitted(), h.opens.len()), (0, 0, 0), "admitted: {is_admitted}");
        h.reconfigure(|settings| settings.limits.allocations = None);
        h.allocate(client);
    }
}

// An operator and a shutdown do not wait for the quotas either.
#[test]
fn what_is_ended_while_the_quotas_are_asked_is_refused_once() {
    type End = fn(&mut Harness);
    let ends: [(End, u16); 2] = [
        (
            |h| h.close(&Selector::Subject(Subject::User { user: "alice".into(), tenant: None }), EndReason::Revoked),
            403,
        ),
        (|h| h.close_all(EndReason::Shutdown), 486),
    ];
    for (end, code) in ends {
        let mut h = Harness::new();
        let client = h.client();
        h.nonce_of(client);
        h.hold_back_admissions = true;
        let bytes = h.signed(client, &allocate());
        assert_eq!(h.tell(client, &bytes), []);
        end(&mut h);
        assert_eq!(h.inbox(client).iter().map(|reply| reply.code()).collect::<Vec<_>>(), [code]);
        assert_eq!(h.let_admissions_go(client), []);
        assert_eq!((h.leftovers(), h.books.admitted(), h.opens.len()), (0, 0, 0));
    }
}

// RFC 8656 §7.2 (2) [8656-7.2-3]
#[test]
fn a_second_allocate_on_a_five_tuple_is_437() {
    let mut h = Harness::new();
    let client = h.client();
    let relayed = h.allocate(client);
    h.refuses(client, allocate(), 437, Why::AllocationExists);
    h.rename(client, carol());
    h.refuses(client, allocate(), 437, Why::AllocationExists);
    assert_eq!(h.session(client).expect("alive").relayed, RelayedTransportAddress::from(relayed));
}

// RFC 8656 §7.2 (2) comes before (3) to (9) [8656-7.2-3]
#[test]
fn an_existing_allocation_is_437_whatever_else_is_wrong() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    for message in
        [request(ALLOCATE), request(ALLOCATE).transport(6), allocate().family(9), allocate().with(LIFETIME, b"x")]
    {
        h.refuses(client, message, 437, Why::AllocationExists);
    }
}

// RFC 8656 §7.2 (3) [8656-7.2-4]
#[test]
fn a_missing_requested_transport_is_400() {
    let mut h = Harness::new();
    let client = h.client();
    h.refuses(client, request(ALLOCATE), 400, Why::MissingAttribute);
}

// RFC 8656 §7.2 (3) [8656-7.2-4]
#[test]
fn a_malformed_requested_transport_is_400() {
    let mut h = Harness::new();
    let client = h.client();
    for value in [&[][..], &[17], &[17, 0, 0], &[17, 0, 0, 0, 0]] {
        h.refuses(client, request(ALLOCATE).with(REQUESTED_TRANSPORT, value), 400, Why::BadAttribute);
    }
}

// RFC 8656 §7.2 (3); TCP relaying is RFC 6062, not spoken here [8656-7.2-5, 6062-5.1-1]
#[test]
fn a_transport_other_than_udp_is_442() {
    let mut h = Harness::new();
    let client = h.client();
    for protocol in [0, 1, 6, 16, 18, 132, 255] {
        h.refuses(client, request(ALLOCATE).transport(protocol), 442, Why::UnsupportedTransport);
    }
}

// RFC 8656 §18.8: the three bytes after the protocol are reserved and ignored [8656-18.8-1]
#[test]
fn reserved_bytes_of_requested_transport_are_ignored() {
    let mut h = Harness::new();
    let client = h.client();
    assert_eq!(h.ask(client, request(ALLOCATE).with(REQUESTED_TRANSPORT, &[17, 1, 2, 3])).code(), 0);
}

// RFC 8656 §7.2 (3) comes before (5) and (7)
#[test]
fn a_wrong_transport_is_told_before_a_wrong_family_or_combination() {
    let mut h = Harness::new();
    let client = h.client();
    let wrong = request(ALLOCATE).transport(6);
    h.refuses(client, wrong.clone().family(9), 442, Why::UnsupportedTransport);
    h.refuses(client, wrong.token(&[0; 8]).even_port(false), 442, Why::UnsupportedTransport);
}

// RFC 8656 §7.2 (4), §18.9: DONT-FRAGMENT is understood and has no value [8656-7.2-6, 8656-18.9-1]
#[test]
fn dont_fragment_is_accepted_and_400_with_a_value() {
    let mut h = Harness::new();
    let client = h.client();
    h.refuses(client, allocate().with(DONT_FRAGMENT, &[0]), 400, Why::BadAttribute);
    assert_eq!(h.ask(client, allocate().dont_fragment()).code(), 0);
}

// RFC 8656 §7.2 (5) [8656-7.2-7]
#[test]
fn a_reservation_token_excludes_even_port_and_requested_address_family() {
    let mut h = Harness::new();
    let client = h.client();
    h.refuses(client, allocate().token(&[0; 8]).even_port(false), 400, Why::Combination);
    h.refuses(client, allocate().token(&[0; 8]).even_port(true), 400, Why::Combination);
    h.refuses(client, allocate().token(&[0; 8]).family(1), 400, Why::Combination);
    h.refuses(client, allocate().family(2).token(&[0; 8]), 400, Why::Combination);
    assert_eq!(h.opens, []);
}

// RFC 8656 §7.2 (5), (6), (8), (9): two families are asked for in one way only
// [8656-7.2-7, -9, -13, -15, 8656-18.11-1]
#[test]
fn additional_address_family_excludes_what_it_contradicts() {
    const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
    let mut h = Harness::new();
    let client = h.client();
    let additional = |family: u8| allocate().with(ADDITIONAL_ADDRESS_FAMILY, &[family, 0, 0, 0]);
    h.refuses(client, additional(2).family(1), 400, Why::Combination);
    h.refuses(client, additional(2).token(&[0; 8]), 400, Why::Combination);
    h.refuses(client, additional(2).even_port(true), 400, Why::Combination);
    h.refuses(client, additional(1), 400, Why::Combination);
    h.refuses(client, additional(9), 400, Why::Combination);
    h.refuses(client, allocate().with(ADDITIONAL_ADDRESS_FAMILY, &[2]), 400, Why::BadAttribute);
    assert_eq!(h.opens, []);
}

// RFC 8656 §18: values of the wrong length are 400, never as if absent
#[test]
fn malformed_attributes_are_400() {
    let mut h = Harness::new();
    let client = h.client();
    for message in [
        allocate().token(&[]),
        allocate().token(&[0; 7]),
        allocate().token(&[0; 9]),
        allocate().with(EVEN_PORT, &[]),
        allocate().with(EVEN_PORT, &[0x80, 0]),
        allocate().with(REQUESTED_ADDRESS_FAMILY, &[1]),
        allocate().with(REQUESTED_ADDRESS_FAMILY, &[]),
        allocate().with(LIFETIME, &[]),
        allocate().with(LIFETIME, &[0, 0, 2]),
        allocate().with(LIFETIME, &[0, 0, 0, 2, 0]),
    ] {
        h.refuses(client, message, 400, Why::BadAttribute);
    }
    assert_eq!((h.opens.len(), h.allocations()), (0, 0));
}

// RFC 8656 §7.2 (7) [8656-7.2-10]
#[test]
fn an_unknown_address_family_is_440() {
    let mut h = Harness::new();
    let client = h.client();
    for family in [0, 3, 255] {
        h.refuses(client, allocate().family(family), 440, Why::FamilyUnsupported);
    }
}

// RFC 8656 §7.2 (7) [8656-7.2-10, -11]
#[test]
fn a_family_without_an_address_to_relay_from_is_440() {
    let mut h = Harness::with(|settings| settings.relay_ipv6 = false);
    let client = h.client();
    h.refuses(client, allocate().family(2), 440, Why::FamilyUnsupported);
    h.allocate(client);
    // Without REQUESTED-ADDRESS-FAMILY it is IPv4, also for an IPv6 client.
    let mut h = Harness::with(|settings| settings.relay_ipv4 = false);
    let client = h.add(alice().ipv6());
    h.refuses(client, allocate(), 440, Why::FamilyUnsupported);
    h.refuses(client, allocate().family(1), 440, Why::FamilyUnsupported);
    assert!(h.ask(client, allocate().family(2)).relayed().is_ipv6());
}

// RFC 8656 §7.2 (7): either client family with either relay family [8656-7.2-31]
#[test]
fn either_client_family_gets_either_relay_family() {
    let mut h = Harness::new();
    for (spec, family) in
        [(alice(), 1), (alice(), 2), (alice().ipv6(), 1), (alice().ipv6(), 2), (alice().ipv6().tcp(), 2)]
    {
        let client = h.add(spec);
        let reply = h.ask(client, allocate().family(family));
        assert_eq!(reply.code(), 0);
        assert_eq!(reply.relayed().is_ipv4(), family == 1);
        assert_eq!(reply.mapped(), h.address_of(client), "the mapped address is the client's own");
    }
}

// RFC 8656 §21.4: packets for such an address leave by a tunnel, which may bring them back here [8656-21.4-2]
#[test]
fn a_client_with_an_address_of_teredo_or_6to4_is_403() {
    let mut h = Harness::new();
    for from in ["[2002:808:808::1]:5", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]:5"] {
        for spec in [alice().from(from), alice().from(from).tcp()] {
            let client = h.add(spec);
            for message in [allocate(), allocate().family(2)] {
                h.refuses(client, message, 403, Why::TunnelledClient);
            }
        }
    }
    assert_eq!((h.opens.len(), h.leftovers()), (0, 0));
    for from in ["[2001:1::1]:5", "[2003::1]:5"] {
        let client = h.add(alice().from(from));
        h.allocate(client);
    }
}

// RFC 8656 §18.6 [8656-18.6-1]
#[test]
fn reserved_bytes_of_both_families_are_ignored() {
    let mut h = Harness::new();
    for attribute in [REQUESTED_ADDRESS_FAMILY, 0x8000] {
        let client = h.client();
        let reply = h.ask(client, allocate().with(attribute, &[2, 0xAB, 0xCD, 0xEF]));
        assert_eq!(reply.code(), 0);
        assert!(reply.all_relayed().iter().any(|relayed| relayed.is_ipv6()));
    }
}

// RFC 8489 §6.3: known attributes that an Allocate has no use for [8489-6.3-5]
#[test]
fn attributes_of_other_messages_are_ignored() {
    let mut h = Harness::new();
    let client = h.client();
    let message =
        allocate().peer(harness::addr("8.8.8.8:1")).data(b"x").channel(0x4000).with(ERROR_CODE, &[0, 0, 4, 1]);
    let reply = h.ask(client, message);
    assert_eq!((reply.code(), reply.has(ERROR_CODE)), (0, false));
    let peer = harness::addr("8.8.8.8:1");
    assert_eq!(h.send(client, peer, b"x"), Went::Dropped(DropReason::NoPermission), "nothing was installed");
}

// RFC 8656 §7.2: lifetime granted; below the default it is the default (our decision where the RFC leaves room)
// [8656-6-4, 8656-7.2-29]
#[test]
fn lifetime_is_clamped_between_default_and_maximum() {
    let mut h = Harness::new();
    for (asked, granted) in
        [(Some(0), 600), (Some(1), 600), (Some(599), 600), (Some(600), 600), (Some(601), 601), (Some(3599), 3599)]
            .into_iter()
            .chain([(Some(3600), 3600), (Some(3601), 3600), (Some(u32::MAX), 3600), (None, 600)])
    {
        let client = h.client();
        let message = asked.map_or_else(allocate, |seconds| allocate().lifetime(seconds));
        let reply = h.ask(client, message);
        assert_eq!(reply.lifetime(), granted, "{asked:?}");
        h.advance_ms(u64::from(granted) * 1000 - 1);
        assert!(h.is_alive(client), "{asked:?}");
        h.advance_ms(1);
        assert!(!h.is_alive(client), "{asked:?}");
    }
    assert_eq!(h.leftovers(), 0);
}

// RFC 8656 §7.2: a retransmitted request must get the same answer [8656-5-13, 8656-7.2-32, 8489-6.3.1-2]
#[test]
fn a_retransmitted_allocate_gets_the_same_answer_byte_for_byte() {
    for message in
        [allocate(), allocate().lifetime(1800).fingerprint(), allocate().even_port(true), allocate().family(2)]
    {
        let mut h = Harness::new();
        let client = h.client();
        let bytes = h.signed(client, &message);
        let first = h.tell(client, &bytes);
        assert_eq!((first.len(), first[0].code()), (1, 0));
        h.advance(5);
        assert_eq!(h.tell(client, &bytes), first);
        assert_eq!((h.opens.len(), h.allocations()), (1, 1), "and nothing else happens");
        let lifetime = u64::from(first[0].lifetime());
        h.advance(lifetime - 5);
        assert!(!h.is_alive(client), "nor is the lifetime extended");
    }
}

// RFC 8656 §7.2: also while the socket is being opened [8656-7.2-32]
#[test]
fn a_retransmission_while_the_socket_is_being_opened_opens_no_second_one() {
    let mut h = Harness::new();
    let client = h.client();
    h.hold_back_opens = true;
    let bytes = h.signed(client, &allocate());
    for _ in 0..3 {
        assert_eq!(h.tell(client, &bytes), []);
    }
    assert_eq!(h.opens.len(), 1);
    let replies = h.let_opens_go(client);
    assert_eq!(replies.len(), 1, "one answer for all of them");
    assert_eq!(h.tell(client, &bytes), replies);
    assert_eq!(h.books.admitted(), 1);
}

// RFC 8656 §7.2 (2): another transaction is not a retransmission; over TCP no client would ask again
#[test]
fn another_allocate_while_the_socket_is_being_opened_is_437() {
    for spec in [alice(), alice().tcp()] {
        let mut h = Harness::new();
        let client = h.add(spec);
        h.nonce_of(client);
        h.hold_back_opens = true;
        let first = h.signed(client, &allocate());
        assert_eq!(h.tell(client, &first), []);
        h.refuses(client, allocate(), 437, Why::AllocationExists);
        assert_eq!(h.opens.len(), 1);
        assert_eq!(h.let_opens_go(client)[0].code(), 0);
    }
}

// RFC 8656 §5: until the answer there is no allocation [8656-5-6]
#[test]
fn requests_on_an_allocation_that_is_being_opened_are_437() {
    let mut h = Harness::new();
    let client = h.client();
    h.nonce_of(client);
    h.hold_back_opens = true;
    let first = h.signed(client, &allocate());
    h.tell(client, &first);
    h.refuses(client, request(REFRESH), 437, Why::NoAllocation);
    h.let_opens_go(client);
    assert_eq!(h.refresh(client, 600).code(), 0);
}

// RFC 8656 §7.2 (8): 508 when no port can be had [8656-7.2-14]
#[test]
fn no_port_is_508_and_leaves_nothing_behind() {
    // F-E4: each has a reason of its own; all were no_port.
    for (refused, why) in [
        (RelayRefused::NoPort, Why::NoPort),
        (RelayRefused::NoAddress, Why::NoRelayAddress),
        (RelayRefused::NoFiles, Why::NoFiles),
        (RelayRefused::System, Why::SystemRefused),
    ] {
        let mut h = Harness::new();
        let client = h.client();
        h.ports.refuse = Some(refused);
        h.refuses(client, allocate(), 508, why);
        assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
        h.ports.refuse = None;
        h.allocate(client);
    }
}

// The allocation ends with its stream, also one that is just being opened
#[test]
fn a_stream_that_closes_while_opening_closes_the_relay_when_it_comes() {
    for message in [allocate(), allocate().even_port(true)] {
        let mut h = Harness::new();
        let client = h.add(alice().tcp());
        h.nonce_of(client);
        h.hold_back_opens = true;
        let bytes = h.signed(client, &message);
        h.tell(client, &bytes);
        h.disconnect(client);
        assert_eq!(h.books.admitted(), 0, "quota is given back at once");
        assert_eq!(h.let_opens_go(client), [], "there is no client to answer");
        assert_eq!((h.closed.len(), h.ports.count(), h.leftovers()), (1, 0, 0));
    }
}

// A slot that is reused meanwhile must not be confused with the one that was given up.
#[test]
fn a_late_relay_is_not_given_to_the_next_client() {
    let mut h = Harness::new();
    let gone = h.add(alice().tcp());
    let next = h.client();
    h.nonce_of(gone);
    h.nonce_of(next);
    h.hold_back_opens = true;
    let bytes = h.signed(gone, &allocate());
    h.tell(gone, &bytes);
    h.disconnect(gone);
    let bytes = h.signed(next, &allocate());
    h.tell(next, &bytes);
    let replies = h.let_opens_go(next);
    assert_eq!(replies.len(), 1);
    assert_eq!((h.closed.len(), h.ports.count(), h.allocations()), (1, 1, 1));
    assert_ne!(h.closed[0], replies[0].relayed());
}

// ---- RFC 8656 §7.2 (10): 486 on quota ----

// [8656-5-14, 8656-7.2-19]
#[test]
fn the_quota_of_a_user_counts_by_user_id_not_by_username() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_user = Some(2));
    let credential = |n: u64, id: &str| holder_of(&format!("{}:{id}", harness::START_UNIX + n));
    let (one, two, three) = (h.add(credential(1, "bob")), h.add(credential(2, "bob")), h.add(credential(3, "bob")));
    h.allocate(one);
    h.allocate(two);
    h.refuses(three, allocate(), 486, Why::QuotaUser);
    let other = h.add(credential(3, "bobby"));
    h.allocate(other);
    h.refresh(one, 0);
    h.allocate(three);
    let four = h.add(credential(4, "bob"));
    h.refuses(four, allocate(), 486, Why::QuotaUser);
}

#[test]
fn a_credential_without_user_id_counts_by_its_whole_username() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_user = Some(1));
    let (one, same, other) = (
        h.add(holder_of(&format!("{}", harness::START_UNIX + 1))),
        h.add(holder_of(&format!("{}", harness::START_UNIX + 1))),
        h.add(holder_of(&format!("{}", harness::START_UNIX + 2))),
    );
    h.allocate(one);
    h.refuses(same, allocate(), 486, Why::QuotaUser);
    h.allocate(other);
}

#[test]
fn static_users_have_no_quota_of_their_own() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_user = Some(1));
    for _ in 0..5 {
        let client = h.client();
        h.allocate(client);
    }
}

#[test]
fn the_quota_of_a_client_counts_by_prefix_and_exempts_loopback() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_client = Some(2));
    for from in [
        "11.5.5.5:1",
        "11.5.5.5:2",
        "11.5.5.6:1",
        "[2a00:7:7:aa00::1]:1",
        "[2a00:7:7:aaff::1]:1",
        "[2a00:7:7:ab00::1]:1",
    ] {
        let client = h.add(alice().from(from));
        h.allocate(client);
    }
    for from in ["11.5.5.5:3", "[2a00:7:7:aa77::1]:9"] {
        let client = h.add(alice().from(from));
        h.refuses(client, allocate(), 486, Why::QuotaClient);
    }
    for port in 1..6 {
        for ip in ["127.0.0.1", "[::1]"] {
            let client = h.add(alice().from(&format!("{ip}:{port}")));
            h.allocate(client);
        }
    }
}

#[test]
fn the_quota_of_the_server_counts_everybody_and_is_given_back_exactly() {
    let mut h = Harness::workers(3, |settings| settings.limits.allocations = Some(3));
    let clients: Vec<_> = (0..4).map(|n| h.add(alice().on_worker(n % 3))).collect();
    for client in &clients[..3] {
        h.allocate(*client);
    }
    h.refuses(clients[3], allocate(), 486, Why::QuotaServer);
    // By Refresh 0, by expiry, by a failed opening: each gives one place back.
    h.refresh(clients[0], 0);
    h.ports.refuse = Some(RelayRefused::NoPort);
    h.refuses(clients[3], allocate(), 508, Why::NoPort);
    h.ports.refuse = None;
    h.allocate(clients[3]);
    h.refuses(clients[0], allocate(), 486, Why::QuotaServer);
    h.advance(600);
    assert_eq!((h.books.admitted(), h.leftovers()), (0, 0));
    for client in &clients[..3] {
        h.allocate(*client);
    }
    h.refuses(clients[3], allocate(), 486, Why::QuotaServer);
}

#[test]
fn a_stream_that_closes_gives_its_quota_back() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_user = Some(1));
    let (stream, other) = (h.add(user("bob").tcp()), h.add(user("bob")));
    h.allocate(stream);
    h.refuses(other, allocate(), 486, Why::QuotaUser);
    h.disconnect(stream);
    assert_eq!(h.closed.len(), 1);
    h.allocate(other);
}

#[test]
fn an_allocation_that_is_being_opened_counts_already() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_user = Some(1));
    let (one, other) = (h.add(user("bob")), h.add(user("bob")));
    h.nonce_of(one);
    h.nonce_of(other);
    h.hold_back_opens = true;
    let bytes = h.signed(one, &allocate());
    h.tell(one, &bytes);
    h.refuses(other, allocate(), 486, Why::QuotaUser);
    h.let_opens_go(one);
}

// RFC 8656 §7.2: the checks of the request come before those of the quota
#[test]
fn a_bad_request_is_told_so_although_the_quota_is_full() {
    let mut h = Harness::with(|settings| settings.limits.allocations = Some(0));
    let client = h.client();
    h.refuses(client, request(ALLOCATE), 400, Why::MissingAttribute);
    h.refuses(client, allocate().family(9), 440, Why::FamilyUnsupported);
    h.refuses(client, allocate().with(LIFETIME, &[1]), 400, Why::BadAttribute);
    h.refuses(client, allocate(), 486, Why::QuotaServer);
}

// Draining refuses the new and leaves the old alone.
#[test]
fn a_draining_server_is_486_and_keeps_what_lives() {
    let mut h = Harness::new();
    let (old, new) = (h.client(), h.client());
    let bytes = h.signed(old, &allocate());
    let first = h.tell(old, &bytes);
    h.drain_all();
    h.refuses(new, allocate(), 486, Why::Draining);
    assert_eq!(h.tell(old, &bytes), first, "a retransmission is nothing new");
    assert_eq!(h.refresh(old, 900).code(), 0);
    assert_eq!(h.permit(old, &[harness::addr("8.8.8.8:1")]), 0);
    assert_eq!(h.refresh(old, 0).code(), 0);
    assert_eq!(h.leftovers(), 0);
}

// RFC 8656 §7.2 (2): streams with the same addresses are different clients
#[test]
fn two_streams_behind_one_address_have_an_allocation_each() {
    let mut h = Harness::new();
    let (one, other) = (h.add(alice().from("11.3.3.3:77").tcp()), h.add(alice().from("11.3.3.3:77").tcp()));
    let udp = h.add(alice().from("11.3.3.3:77"));
    let relayed = [h.allocate(one), h.allocate(other), h.allocate(udp)];
    assert!(relayed[0] != relayed[1] && relayed[1] != relayed[2]);
    h.disconnect(one);
    assert!(!h.is_alive(one) && h.is_alive(other) && h.is_alive(udp));
}

// RFC 8656 §18.10: RESERVATION-TOKEN is for requests and successes; none without R
#[test]
fn no_token_is_given_unless_the_next_port_was_asked_for() {
    let mut h = Harness::new();
    let client = h.client();
    let reply = h.ask(client, allocate().even_port(false));
    assert!(!reply.has(RESERVATION_TOKEN));
    assert_eq!(reply.relayed().port() % 2, 0);
}
