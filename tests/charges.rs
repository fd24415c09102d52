//! What each thing that a client can cause is charged to: reservations, empty payloads, long requests, guesses.

use std::net::SocketAddr;

use test_support::harness;
use test_support::harness::stun::{BINDING, CREATE_PERMISSION, Outgoing, REFRESH, Signature, allocate, request};
use test_support::harness::{Client, Harness, START_UNIX, Spec, Went, addr, alice, bind, holder_of, secret, user};
use throughway::credentials::claims::Grant;
use throughway::credentials::{Algorithm, password};
use throughway::protocol::meter::Rates;
use throughway::protocol::reason::{Direction, DropReason};

const PEER: &str = "8.8.8.8:1000";

/// Sends a request that must fail with this code, for the reason of this name.
#[track_caller]
fn refused(h: &mut Harness, client: Client, message: Outgoing, code: u16, reason: &str) {
    assert_eq!(h.ask(client, message).code(), code, "{reason} is due");
    assert_eq!(h.refused.last().map(|(why, _)| why.name()), Some(reason));
}

fn reserve(h: &mut Harness, client: Client) -> Vec<u8> {
    let reply = h.ask(client, allocate().even_port(true));
    assert_eq!(reply.code(), 0);
    reply.token()
}

/// With an allocation and a channel 0x4000 to PEER.
fn calling(h: &mut Harness, spec: Spec) -> Client {
    let client = h.add(spec);
    h.allocate(client);
    assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
    client
}

/// How many packets of this size go out of so many, and why the first that does not stays.
fn sent(h: &mut Harness, client: Client, size: usize, count: usize) -> (usize, Option<DropReason>) {
    let mut why = None;
    let passes = |went: Went| match went {
        Went::Dropped(reason) => {
            why.get_or_insert(reason);
            false
        }
        Went::ToPeer { .. } | Went::ToClient { .. } => true,
    };
    let count = (0..count).map(|_| h.channel_data(client, 0x4000, &vec![7; size])).map(passes).filter(|sent| *sent);
    (count.count(), why)
}

fn bandwidth(bits_per_second: u64) -> Rates {
    Rates { bits_per_second: Some(bits_per_second), packets_per_second: None }
}

// F-A6: RFC 8656 §7.2 lets a server hold a port; it is a port of the user's until it is fetched or over.
#[test]
fn a_reservation_is_an_allocation_until_it_is_over() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_user = Some(2));
    let (one, two, three) = (h.add(user("bob")), h.add(user("bob")), h.add(user("bob")));
    reserve(&mut h, one);
    refused(&mut h, two, allocate(), 486, "quota_user");
    h.refresh(one, 0);
    h.allocate(two);
    refused(&mut h, three, allocate(), 486, "quota_user");
    h.advance(30);
    h.allocate(three);
}

// F-A6: with room for one allocation nothing can be reserved.
#[test]
fn a_reservation_needs_room_in_every_scope() {
    type Narrow = fn(&mut throughway::protocol::settings::Limits);
    let narrow: [(Narrow, &str); 4] = [
        (|limits| limits.allocations = Some(1), "quota_server"),
        (|limits| limits.allocations_per_client = Some(1), "quota_client"),
        (|limits| limits.allocations_per_user = Some(1), "quota_user"),
        (|limits| limits.allocations_per_credential = Some(1), "quota_credential"),
    ];
    for (narrow, reason) in narrow {
        let mut h = Harness::with(|settings| narrow(&mut settings.limits));
        let client = h.add(user("bob"));
        refused(&mut h, client, allocate().even_port(true), 486, reason);
        h.allocate(client);
        h.refresh(client, 0);
        assert_eq!(h.books.admitted(), 0);
    }
}

// F-A6: a client that reserves, ends the session and reserves again collects ports.
#[test]
fn a_user_has_two_reservations_and_a_five_tuple_one() {
    for name in ["bob", "alice"] {
        let who = || if name == "alice" { alice() } else { user(name) };
        let mut h = Harness::new();
        let (one, two, three) = (h.add(who()), h.add(who()), h.add(who()));
        let eve = h.add(user("eve"));
        reserve(&mut h, one);
        h.refresh(one, 0);
        refused(&mut h, one, allocate().even_port(true), 486, "quota_reservations");
        h.allocate(one);
        reserve(&mut h, two);
        refused(&mut h, three, allocate().even_port(true), 486, "quota_reservations");
        reserve(&mut h, eve);
        h.advance(30);
        reserve(&mut h, three);
        h.refresh(one, 0);
        reserve(&mut h, one);
        h.advance(7200);
        assert_eq!((h.leftovers(), h.books.admitted(), h.ports.count()), (0, 0, 0));
    }
}

// F-A6: what is fetched was counted already, on whichever worker it is held.
#[test]
fn a_token_is_fetched_within_the_quota_that_its_reservation_took() {
    for workers in [1, 3] {
        let mut h = Harness::workers(workers, |settings| settings.limits.allocations_per_user = Some(2));
        let (one, two, three) = (h.add(user("bob")), h.add(user("bob")), h.add(user("bob")));
        let token = reserve(&mut h, one);
        refused(&mut h, three, allocate(), 486, "quota_user");
        refused(&mut h, three, allocate().token(&[0xFF; 8]), 486, "quota_user");
        assert_eq!(h.ask(two, allocate().token(&token)).code(), 0);
        refused(&mut h, three, allocate(), 486, "quota_user");
        refused(&mut h, three, allocate().token(&token), 486, "quota_user");
        h.refresh(two, 0);
        h.allocate(three);
        h.advance(7200);
        assert_eq!((h.leftovers(), h.books.admitted(), h.ports.count()), (0, 0, 0));
    }
}

// F-A3: an empty payload is a packet of 28 bytes over IPv4 all the same.
#[test]
fn an_empty_payload_costs_its_ip_and_udp_heads() {
    let mut h = Harness::with(|settings| settings.limits.allocation = bandwidth(28 * 8 * 10));
    let client = calling(&mut h, user("bob"));
    assert_eq!(sent(&mut h, client, 0, 50), (10, Some(DropReason::OverBandwidth)));
    let back = (0..50).filter(|_| matches!(h.from_peer(client, addr(PEER), b""), Went::ToClient { .. })).count();
    assert_eq!(back, 10, "towards the client too");
    let mut h = Harness::with(|settings| settings.limits.bytes_per_credential = Some(28 * 10));
    let client = calling(&mut h, user("bob"));
    h.channel_data(client, 0x4000, b"");
    h.not_sent(client, Direction::ToPeer, 1, 0, DropReason::NoBuffers);
    assert_eq!(sent(&mut h, client, 0, 50), (10, Some(DropReason::OverBudget)), "what did not leave is given back");
}

// F-A3: 5,000 packets a second, each way, unless the operator says otherwise.
#[test]
fn an_allocation_has_a_packet_rate_by_default() {
    let mut h = Harness::new();
    let client = calling(&mut h, user("bob"));
    assert_eq!(sent(&mut h, client, 20, 6_000), (5_000, Some(DropReason::OverPackets)));
    let back = (0..6_000).filter(|_| matches!(h.from_peer(client, addr(PEER), b"x"), Went::ToClient { .. })).count();
    assert_eq!(back, 5_000, "the other way has its own");
    h.advance_ms(10);
    assert_eq!(sent(&mut h, client, 20, 6_000).0, 50);
    // A reload does not fill it again (F-F4).
    h.reconfigure(|settings| settings.limits.allocations = Some(77));
    assert_eq!(sent(&mut h, client, 20, 6_000).0, 0);
    h.reconfigure(|settings| settings.limits.allocation = Rates::default());
    assert_eq!(sent(&mut h, client, 20, 6_000).0, 6_000);
}

// F-A2: nothing that a client may ask for needs 4 KiB.
#[test]
fn a_request_of_more_than_four_kibibytes_is_dropped_unread() {
    for tcp in [false, true] {
        let mut h = Harness::new();
        let client = h.add(if tcp { user("bob").tcp() } else { user("bob") });
        h.allocate(client);
        let peers: Vec<SocketAddr> =
            (0..5_440_u16).map(|n| SocketAddr::from(([8, 9, (n >> 8) as u8, n as u8], 1))).collect();
        let bytes = h.signed(client, &request(CREATE_PERMISSION).peers(&peers));
        assert_eq!(h.tell(client, &bytes), [], "no answer");
        let long = |h: &Harness| {
            DropReason::ALL.iter().find(|why| why.name() == "control_too_long").map(|why| h.drops(*why).packets)
        };
        assert_eq!(long(&h), Some(1));
        // A long one that fits is read.
        assert_eq!(h.permit(client, &peers[..60]), 0);
        assert_eq!(h.permit(client, &peers[60..120]), 508);
    }
}

// F-A2: the limit is looked at before the peers are.
#[test]
fn too_many_peers_are_refused_before_any_is_judged() {
    let mut h = Harness::new();
    let client = h.add(user("bob"));
    h.allocate(client);
    let mut peers: Vec<SocketAddr> = (0..65).map(|n| SocketAddr::from(([8, 9, 9, n], 1))).collect();
    peers[7] = addr("10.0.0.1:1");
    refused(&mut h, client, request(CREATE_PERMISSION).peers(&peers), 508, "permission_limit");
    // The same peer a hundred times is one.
    assert_eq!(h.permit(client, &[addr(PEER); 100]), 0);
}

// F-A13: RFC 8489 §9.2.4: a guess that no challenge was answered for costs no key and no HMAC over the message.
#[test]
fn a_nonce_of_somebody_else_is_stale_before_the_password_is_looked_at() {
    let mut h = Harness::new();
    let (one, other) = (h.add(user("bob")), h.add(user("eve")));
    let theirs = h.nonce_of(other);
    for allocated in [false, true] {
        if allocated {
            h.allocate(one);
        }
        for nonce in [theirs.clone(), vec![b'x'; 24], b"short".to_vec()] {
            let mut guess = h.signature(one);
            (guess.nonce, guess.key) = (Some(nonce), [7; 16]);
            let reply = h.ask_with(one, &guess, request(REFRESH));
            assert_eq!((reply.code(), reply.is_signed()), (438, false));
        }
    }
    // Ours, for this address: the password decides, and a nonce that was good once is told to its owner only.
    let mut guess = h.signature(one);
    guess.key = [7; 16];
    assert_eq!(h.ask_with(one, &guess, request(REFRESH)).code(), 401);
    h.reconfigure(|settings| settings.auth.nonce_lifetime = 1);
    h.advance(2);
    assert_eq!(h.ask_with(one, &guess, request(REFRESH)).code(), 401);
    let own = h.signature(one);
    let reply = h.ask_with(one, &own, request(REFRESH));
    assert_eq!((reply.code(), reply.is_signed()), (438, true));
}

// F-E13: RFC 8656 §7.2 (1), (2): the request is genuine, and the five-tuple is taken.
#[test]
fn after_a_change_of_password_the_five_tuple_is_taken_and_not_unauthorized() {
    let mut h = Harness::new();
    let client = h.add(alice());
    h.allocate(client);
    h.reconfigure(|settings| {
        let new = throughway::protocol::settings::StaticUser::password(throughway::credentials::Secret::new(*b"new"));
        settings.auth.users.insert("alice".into(), new);
    });
    assert_eq!(h.refresh(client, 600).code(), 0, "the old password stays good for its allocation");
    h.rename(client, alice().named("alice", "new"));
    refused(&mut h, client, allocate(), 437, "allocation_exists");
    refused(&mut h, client, request(REFRESH).lifetime(0), 441, "wrong_user");
    refused(&mut h, client, bind(0x4000, addr(PEER)), 441, "wrong_user");
    h.rename(client, alice().named("alice", "guess"));
    assert_eq!(h.ask(client, allocate()).code(), 401);
    h.advance(700);
    h.rename(client, alice().named("alice", "new"));
    h.allocate(client);
}

// F-F3: what one credential is granted limits that credential, though the same user asks with another after it.
#[test]
fn each_of_two_credentials_of_a_user_keeps_its_own_allowance() {
    for narrow_is_last in [false, true] {
        let mut south = secret("south", "south", Algorithm::Sha1);
        south.grant = Grant { bytes_per_day: Some(5_000), ..Grant::default() };
        let name = format!("{}:bob", START_UNIX + 1800);
        let narrow = alice().named(&name, password(&south, name.as_bytes()).as_str());
        let mut h = Harness::with(|settings| {
            settings.auth.secrets.push(south);
            settings.limits.bytes_per_user_per_day = Some(100_000);
        });
        let (narrow, wide) = if narrow_is_last {
            let wide = calling(&mut h, user("bob"));
            (calling(&mut h, narrow), wide)
        } else {
            let narrow = calling(&mut h, narrow);
            (narrow, calling(&mut h, user("bob")))
        };
        // 1,000 bytes each, with their heads: four of them are what the narrow one may.
        assert_eq!(sent(&mut h, narrow, 972, 50), (5, Some(DropReason::OverBudget)));
        assert_eq!(sent(&mut h, wide, 972, 50), (50, None), "the user has 100,000");
    }
}

// F-F4: what an allocation used stays used when the operator changes a limit.
#[test]
fn a_reload_does_not_fill_the_bucket_of_an_allocation() {
    let mut h = Harness::with(|settings| settings.limits.allocation = bandwidth(80_000));
    let client = calling(&mut h, user("bob"));
    assert_eq!(sent(&mut h, client, 972, 50).0, 10);
    h.reconfigure(|settings| settings.limits.allocations = Some(77));
    assert_eq!(sent(&mut h, client, 972, 50).0, 0);
    h.reconfigure(|settings| settings.limits.user = bandwidth(1_000_000));
    assert_eq!(sent(&mut h, client, 972, 50).0, 0);
    h.advance_ms(500);
    assert_eq!(sent(&mut h, client, 972, 50).0, 5);
}

// F-A12: sessions of a user: a hundred at once, then so many a minute.
#[test]
fn how_often_a_user_may_allocate_is_limited() {
    let mut h = Harness::new();
    let client = h.add(user("bob"));
    for _ in 0..100 {
        h.allocate(client);
        h.refresh(client, 0);
    }
    refused(&mut h, client, allocate(), 486, "quota_rate");
    let eve = h.add(user("eve"));
    h.allocate(eve);
    h.advance_ms(1_000);
    let again = (0..50).take_while(|_| h.ask(client, allocate()).code() == 0 && h.refresh(client, 0).code() == 0);
    let again = again.count();
    assert_eq!(again, 5, "300 a minute");
}

// F-A12: for every user; one static user often stands for all clients, so only the address tells a loop.
#[test]
fn how_often_a_client_address_may_allocate_is_limited_for_static_users_too() {
    let rate = |h: &mut Harness, client: Client| {
        (0..500).take_while(|_| h.ask(client, allocate()).code() == 0 && h.refresh(client, 0).code() == 0).count()
    };
    let mut h = Harness::with(|settings| settings.limits.allocations_per_client_per_minute = Some(120));
    let client = h.add(alice().from("11.9.9.9:1000"));
    assert_eq!(rate(&mut h, client), 120);
    refused(&mut h, client, allocate(), 486, "quota_client_rate");
    let neighbour = h.add(user("bob").from("11.9.9.9:1001"));
    refused(&mut h, neighbour, allocate(), 486, "quota_client_rate");
    let elsewhere = h.add(alice().from("11.9.9.8:1000"));
    h.allocate(elsewhere);
    h.advance_ms(2_000);
    assert_eq!(rate(&mut h, client), 4, "120 a minute");
    let mut h = Harness::with(|settings| settings.limits.allocations_per_client_per_minute = Some(120));
    let (one, same, other) = (
        h.add(alice().from("[2a00:1:2:3400::1]:1")),
        h.add(alice().from("[2a00:1:2:34ff::1]:1")),
        h.add(alice().from("[2a00:1:2:3500::1]:1")),
    );
    assert_eq!(rate(&mut h, one), 120);
    refused(&mut h, same, allocate(), 486, "quota_client_rate");
    h.allocate(other);
    let mut h = Harness::with(|settings| settings.limits.allocations_per_client_per_minute = Some(120));
    let loopback = h.add(alice().from("127.0.0.1:1000"));
    assert_eq!(rate(&mut h, loopback), 500, "as with limits.allocations_per_client");
}

/// Of so many requests without proof from as many ports, how many are answered.
fn answered(h: &mut Harness, network: &str, count: usize, message: &Outgoing) -> usize {
    let is_answered = |number: &usize| {
        let client = h.add(alice().from(&format!("{network}.{}:{}", 1 + number % 250, 1_000 + number)));
        let mut id = [0; 12];
        id[..8].copy_from_slice(&number.to_be_bytes());
        !h.tell(client, &message.bytes(id, None)).is_empty()
    };
    (0..count).filter(is_answered).count()
}

// RFC 8489 §15.1.2 and §15.2.1: the source of a datagram may be forged, and its answer goes to a victim then.
#[test]
fn a_network_gets_so_many_answers_without_proof_and_not_more() {
    for message in [request(BINDING), allocate(), request(REFRESH).with(0x0006, b"alice")] {
        let mut h = Harness::with(|settings| settings.limits.replies_per_network = Some(20));
        assert_eq!(
            answered(&mut h, "11.9.9", 200, &message),
            40 + 160 / 16,
            "two seconds at once, then one in sixteen"
        );
        assert_eq!(answered(&mut h, "11.9.8", 40, &message), 40, "another network");
        h.advance_ms(1_000);
        let client = h.add(alice().from("11.9.9.7:7"));
        h.allocate(client);
        for _ in 0..100 {
            assert_eq!(h.ask_unsigned(client, request(BINDING)).code(), 0, "a client with an allocation");
            assert_eq!(h.refresh(client, 600).code(), 0);
        }
    }
}

// A nonce of ours came back, so its source is no forged one; a wrong password is answered without a budget.
#[test]
fn who_has_a_nonce_of_ours_is_answered() {
    let mut h = Harness::with(|settings| settings.limits.replies_per_network = Some(1));
    let wrong = h.add(alice().named("alice", "wrong").from("11.9.9.9:1000"));
    for _ in 0..50 {
        assert_eq!(h.ask(wrong, allocate()).code(), 401);
    }
    let stream = h.add(alice().from("11.9.9.9:1001").tcp());
    for _ in 0..50 {
        assert_eq!(h.ask_unsigned(stream, request(BINDING)).code(), 0, "a stream proves its source");
    }
}

// RFC 8656 §21.1.6: what a request costs is the server's; those of a stranger who forges the address are not the owner's.
#[test]
fn an_owner_makes_so_many_requests_on_its_allocation_and_not_more() {
    for tcp in [false, true] {
        let mut h = Harness::with(|settings| settings.limits.requests_per_allocation = Some(5));
        let owner = if tcp { alice().tcp() } else { alice() };
        let client = h.add(owner.from("11.9.9.9:1000"));
        let other = h.add(user("bob").from("11.9.9.9:1001"));
        h.allocate(client);
        h.allocate(other);
        let is_answered = |h: &mut Harness| {
            let bytes = h.signed(client, &request(REFRESH));
            !h.tell(client, &bytes).is_empty()
        };
        let answered = |h: &mut Harness| (0..30).filter(|_| is_answered(h)).count();
        assert_eq!(answered(&mut h), 10, "two seconds at once");
        assert_eq!(h.refresh(other, 600).code(), 0, "another client of that address");
        h.advance_ms(1_000);
        assert_eq!(answered(&mut h), 5);
        // With another key they are refused, and use up nothing.
        h.advance_ms(2_000);
        let own = h.signature(client);
        let forged = Signature { key: h.signature(other).key, ..own };
        for _ in 0..30 {
            let reply = h.ask_with(client, &forged, request(REFRESH));
            assert_eq!(reply.code(), 401);
        }
        assert_eq!(answered(&mut h), 10);
    }
}

// Events of sessions wait in queues of 65,536 (docs/reference/maxima.md); one address brings less than half of that
// within a minute, in which its readers may do nothing.
#[test]
fn in_a_minute_one_address_brings_at_most_24_000_events() {
    let mut h = Harness::new();
    let client = h.add(alice());
    let mut begun = 0;
    for _ in 0..60 {
        begun += (0..7_000)
            .take_while(|_| h.ask(client, allocate()).code() == 0 && h.refresh(client, 0).code() == 0)
            .count();
        h.advance_ms(1_000);
    }
    assert!((11_500..=12_000).contains(&begun), "a minute's worth at once, and as many more: {begun}");
}

// F-D4: clients of RFC 5766 draw their channels from 0x4000 to 0x7FFE.
#[test]
fn channels_of_rfc_5766_are_bound_and_carry_data() {
    for tcp in [false, true] {
        let mut h = Harness::new();
        let client = h.add(if tcp { user("bob").tcp() } else { user("bob") });
        h.allocate(client);
        for number in [0x4000, 0x4FFF, 0x5000, 0x6ABC, 0x7FFE] {
            let peer = SocketAddr::from(([8, 8, 8, 8], number));
            assert_eq!(h.bind(client, number, peer), 0, "{number:x}");
            assert_eq!(h.channel_data(client, number, b"there").to_peer(), (peer, b"there".to_vec()));
            let back = h.from_peer(client, peer, b"back").to_client();
            assert_eq!(back, harness::channel_data(number, b"back"));
        }
        for number in [0, 0x3FFF, 0x7FFF, 0x8000, 0xFFFF] {
            refused(&mut h, client, bind(number, addr(PEER)), 400, "channel_range");
        }
    }
}

/// Requests for an allocation with this client's password, right or wrong: the code of each answer, 0 for success, `None`
/// for silence.
fn codes(h: &mut Harness, client: Client, count: usize) -> Vec<Option<u16>> {
    let ask = |_| {
        let bytes = h.signed(client, &allocate());
        h.tell(client, &bytes).first().map(|reply| reply.code())
    };
    (0..count).map(ask).collect()
}

fn guesser(h: &mut Harness, from: &str) -> Client {
    h.add(alice().named("alice", "wrong").from(from))
}

fn of_ten_failures() -> Harness {
    Harness::with(|settings| settings.limits.failures = Some(10))
}

// Decision 0230; RFC 8489 §9.2.4 and §19.1.1: online guessing of passwords.
#[test]
fn who_fails_too_often_is_answered_late_and_then_not_and_neighbours_are_always() {
    let mut h = of_ten_failures();
    let one = guesser(&mut h, "11.9.9.9:1000");
    assert_eq!(codes(&mut h, one, 5), [Some(401); 5], "half of them at once");
    let other = guesser(&mut h, "11.9.9.10:1000");
    let late: Vec<Vec<u8>> = (0..5).map(|_| h.signed(other, &allocate())).collect();
    let answered = |h: &mut Harness| late.iter().filter(|bytes| !h.tell(other, bytes).is_empty()).count();
    assert_eq!(answered(&mut h), 0, "the other half");
    h.advance_ms(250);
    assert_eq!(answered(&mut h), 5, "as soon as they are sent again");
    assert_eq!(codes(&mut h, one, 20), [None; 20]);
    assert_eq!(h.drops(DropReason::OverFailures).packets, 25);
    assert_eq!(h.refused.len(), 35, "each is told to the operator");
    for (from, tcp) in [("11.9.9.9:1001", false), ("11.9.9.11:1000", true), ("11.9.9.11:1001", false)] {
        let mut neighbour = alice().from(from);
        neighbour.tcp = tcp;
        let neighbour = h.add(neighbour);
        assert_eq!(codes(&mut h, neighbour, 1), [Some(0)], "a right password from the same network");
        let elsewhere = guesser(&mut h, &from.replace("11.9.9.", "11.9.8."));
        assert_eq!(codes(&mut h, elsewhere, 1), [Some(401)], "another network");
    }
    h.advance(59);
    assert_eq!(codes(&mut h, one, 2), [None; 2]);
    h.advance(1);
    assert_eq!(codes(&mut h, one, 2), [Some(401); 2], "a minute is over");
}

#[test]
fn streams_are_silenced_without_delay_and_with_their_network() {
    let mut h = of_ten_failures();
    let stream = h.add(alice().named("alice", "wrong").from("[2a00:5:0:100::1]:1000").tcp());
    assert_eq!(codes(&mut h, stream, 10), [Some(401); 10]);
    assert_eq!(codes(&mut h, stream, 10), [None; 10]);
    let same = guesser(&mut h, "[2a00:5:0:1ff::1]:1000");
    assert_eq!(codes(&mut h, same, 1), [None], "a /56 is one network");
    let next = guesser(&mut h, "[2a00:5:0:200::1]:1000");
    assert_eq!(codes(&mut h, next, 1), [Some(401)]);
}

// Only the last two may be guesses: they prove their source, and no key.
#[test]
fn what_proves_a_key_or_no_source_is_no_failure() {
    let mut h = Harness::with(|settings| settings.limits.failures = Some(1));
    let expired = h.add(holder_of(&format!("{}:bob", START_UNIX - 60)).from("11.9.9.9:1000"));
    assert_eq!(codes(&mut h, expired, 20), [Some(401); 20], "signed with a right key");
    let realm = guesser(&mut h, "11.9.9.9:1001");
    for _ in 0..20 {
        let mut signature = h.signature(realm);
        signature.realm = Some("elsewhere".into());
        assert_eq!(h.ask_with(realm, &signature, allocate()).code(), 401, "no key is tried");
    }
    let forged = guesser(&mut h, "11.9.9.9:1002");
    for _ in 0..20 {
        let mut signature = h.signature(forged);
        signature.nonce = Some(h.nonce_of(realm));
        assert_eq!(h.ask_with(forged, &signature, allocate()).code(), 438, "a nonce of another client");
    }
    assert_eq!(h.drops(DropReason::OverFailures).packets, 0);
    for (from, name) in [("11.9.3.9:1000", "unknown"), ("11.9.4.9:1000", "1900000000:bob")] {
        let wrong = h.add(alice().named(name, "wrong").from(from));
        assert_eq!(codes(&mut h, wrong, 2), [None; 2], "{name}");
    }
}

#[test]
fn a_client_with_an_allocation_is_never_silenced() {
    let mut h = of_ten_failures();
    let client = h.add(alice().from("11.9.9.9:1000"));
    h.allocate(client);
    let guesser = guesser(&mut h, "11.9.9.9:1001");
    assert_eq!(codes(&mut h, guesser, 12)[10..], [None; 2]);
    for _ in 0..30 {
        let mut signature = h.signature(client);
        signature.key = [7; 16];
        assert_eq!(h.ask_with(client, &signature, request(REFRESH)).code(), 401);
    }
    assert_eq!(h.refresh(client, 600).code(), 0);
    assert_eq!(h.refresh(client, 0).code(), 0);
    assert_eq!(codes(&mut h, client, 1), [Some(0)]);
}

#[test]
fn loopback_and_proxies_themselves_are_exempt_and_an_operator_or_a_reload_ends_the_silence() {
    let mut h = Harness::with(|settings| {
        settings.limits.failures = Some(10);
        settings.proxies = vec!["11.9.7.0/28".parse().unwrap()];
    });
    let loopback = guesser(&mut h, "127.0.0.1:1000");
    assert_eq!(codes(&mut h, loopback, 50), [Some(401); 50]);
    let health_check = h.add(alice().named("alice", "wrong").from("11.9.7.1:1000").tcp());
    assert_eq!(codes(&mut h, health_check, 50), [Some(401); 50], "a proxy that announces no client");
    let announced = h.add(alice().named("alice", "wrong").from("11.9.7.99:1000").tcp());
    assert_eq!(codes(&mut h, announced, 11)[10..], [None]);
    assert_eq!(h.forgive("11.9.0.0/24"), 0);
    assert_eq!(h.forgive("11.9.7.5/32"), 1);
    assert_eq!(codes(&mut h, announced, 11)[9..], [Some(401), None]);
    h.reconfigure(|settings| settings.limits.failures = None);
    assert_eq!(codes(&mut h, announced, 50), [Some(401); 50]);
    h.reconfigure(|settings| settings.limits.failures = Some(1_000));
    assert_eq!(codes(&mut h, announced, 1), [None], "a limit that comes back finds what was");
    h.advance(60);
    assert_eq!(codes(&mut h, announced, 500), [Some(401); 500]);
}

// The workers share the count.
#[test]
fn a_guess_counts_on_whichever_worker_it_arrives() {
    let mut h = Harness::workers(3, |settings| settings.limits.failures = Some(10));
    let guessers: Vec<Client> = (0..3)
        .map(|worker| h.add(alice().named("alice", "wrong").from("11.9.9.9:1000").tcp().on_worker(worker)))
        .collect();
    let codes: Vec<Option<u16>> = (0..12).flat_map(|number| codes(&mut h, guessers[number % 3], 1)).collect();
    assert_eq!((&codes[..10], &codes[10..]), ([Some(401); 10].as_slice(), [None; 2].as_slice()));
}
