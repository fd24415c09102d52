//! EVEN-PORT and RESERVATION-TOKEN (RFC 8656 sections 7.2, 18.7, 18.10), on one worker and between workers.

use std::net::SocketAddr;

use test_support::harness;
use test_support::harness::stun::allocate;
use test_support::harness::{Client, Harness, addr, alice, carol, user};
use throughway::protocol::border::RelayRequest;
use throughway::protocol::reject::RejectReason as Why;

/// An Allocate with EVEN-PORT and R: the relayed address and the token of the next port.
fn reserve(h: &mut Harness, client: Client) -> (SocketAddr, Vec<u8>) {
    let reply = h.ask(client, allocate().even_port(true));
    assert_eq!(reply.code(), 0);
    (reply.relayed(), reply.token())
}

fn next(relayed: SocketAddr) -> SocketAddr {
    SocketAddr::new(relayed.ip(), relayed.port() + 1)
}

// RFC 8656 §18.7: an even port, and nothing held without R [8656-7.2-23]
#[test]
fn even_port_without_r_gives_an_even_port_and_holds_nothing() {
    let mut h = Harness::new();
    for _ in 0..3 {
        let client = h.client();
        let reply = h.ask(client, allocate().even_port(false));
        assert_eq!(reply.relayed().port() % 2, 0);
        assert!(!h.ports.is_held(next(reply.relayed())));
    }
}

// RFC 8656 §18.7: the seven low bits are reserved [8656-18.7-1]
#[test]
fn reserved_bits_of_even_port_are_ignored() {
    let mut h = Harness::new();
    let (one, other) = (h.client(), h.client());
    let reply = h.ask(one, allocate().with(harness::stun::EVEN_PORT, &[0x7F]));
    assert!(!reply.has(harness::stun::RESERVATION_TOKEN));
    let reply = h.ask(other, allocate().with(harness::stun::EVEN_PORT, &[0xFF]));
    assert!(reply.has(harness::stun::RESERVATION_TOKEN));
}

// RFC 8656 §7.2: with R the next higher port is held, and a token given [8656-7.2-22, -24, -31]
#[test]
fn even_port_with_r_holds_the_next_port_which_the_token_gets() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    let (relayed, token) = reserve(&mut h, one);
    assert_eq!(relayed.port() % 2, 0);
    assert!(h.ports.is_held(next(relayed)));
    let reply = h.ask(two, allocate().token(&token));
    assert_eq!((reply.code(), reply.relayed()), (0, next(relayed)));
    let opened = h.opens.last().expect("opened");
    assert!(
        matches!(opened, RelayRequest::Reserved { relayed: held, .. } if *held == next(relayed).into()),
        "{opened:?}"
    );
    assert!(!reply.has(harness::stun::RESERVATION_TOKEN));
    h.advance(600);
    assert_eq!((h.leftovers(), h.ports.count()), (0, 0));
    assert_eq!(h.closed_reserved, [], "a port that was fetched is not closed as held");
}

// RFC 8656 §7.2 (7): with a token the family is the reserved address's
#[test]
fn a_reserved_ipv6_port_comes_without_requested_address_family() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    let reply = h.ask(one, allocate().family(2).even_port(true));
    let token = reply.token();
    assert_eq!(h.ask(two, allocate().token(&token)).relayed(), next(reply.relayed()));
}

// RFC 8656 §7.2 (5): a token is good once [8656-7.2-8]
#[test]
fn a_token_is_good_once() {
    let mut h = Harness::new();
    let (one, two, three) = (h.client(), h.client(), h.client());
    let (_, token) = reserve(&mut h, one);
    assert_eq!(h.ask(two, allocate().token(&token)).code(), 0);
    h.refuses(three, allocate().token(&token), 508, Why::BadReservation);
    assert!(h.is_alive(two));
}

// RFC 8656 §7.2 (5): the token is not valid [8656-7.2-8]
#[test]
fn an_unknown_token_is_508() {
    for workers in [1, 3] {
        let mut h = Harness::workers(workers, |_| {});
        let client = h.client();
        for first in 0..5 {
            h.refuses(client, allocate().token(&[first, 1, 2, 3, 4, 5, 6, 7]), 508, Why::BadReservation);
        }
        h.refuses(client, allocate().token(&[0xFF; 8]), 508, Why::BadReservation);
        h.advance(3);
        assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
        h.allocate(client);
    }
}

// RFC 8656 §7.2: the port is held for 30 seconds [8656-7.2-8]
#[test]
fn a_token_ends_after_thirty_seconds_and_its_port_is_closed() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    h.nonce_of(two);
    let (relayed, token) = reserve(&mut h, one);
    h.advance_ms(29_999);
    assert!(h.ports.is_held(next(relayed)));
    h.advance_ms(1);
    assert_eq!(h.closed_reserved, [next(relayed)]);
    h.refuses(two, allocate().token(&token), 508, Why::BadReservation);
    assert!(h.is_alive(one), "the allocation that reserved goes on");
}

// RFC 8656 §7.2: and is still good in its last millisecond [8656-7.2-25]
#[test]
fn a_token_is_good_until_its_thirty_seconds_are_over() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    let (_, token) = reserve(&mut h, one);
    h.advance_ms(29_999);
    assert_eq!(h.ask(two, allocate().token(&token)).code(), 0);
}

// RFC 8656 §7.2: the reservation outlives the allocation that made it
#[test]
fn a_token_survives_the_end_of_the_allocation_that_reserved() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    let (relayed, token) = reserve(&mut h, one);
    h.refresh(one, 0);
    assert_eq!(h.ask(two, allocate().token(&token)).relayed(), next(relayed));
}

// RFC 8656 §7.2: a client that did not reserve neither gets the port nor takes it away [8656-7.2-22]
#[test]
fn a_token_of_another_user_is_508_and_stays_good_for_its_owner() {
    for workers in [1, 3] {
        let mut h = Harness::workers(workers, |_| {});
        let (one, thief, two) =
            (h.add(user("bob")), h.add(carol().on_worker(workers as usize - 1)), h.add(user("bob")));
        let (relayed, token) = reserve(&mut h, one);
        h.refuses(thief, allocate().token(&token), 508, Why::BadReservation);
        assert_eq!(h.ask(two, allocate().token(&token)).relayed(), next(relayed));
    }
}

// A user is known by user id: another credential of the same user fetches the port.
#[test]
fn a_newer_credential_of_the_same_user_may_fetch_the_port() {
    let mut h = Harness::new();
    let one = h.add(user("bob"));
    let two = h.add(harness::holder_of(&format!("{}:bob", harness::START_UNIX + 99)));
    let (relayed, token) = reserve(&mut h, one);
    assert_eq!(h.ask(two, allocate().token(&token)).relayed(), next(relayed));
}

// RFC 8656 §7.2 (10): a refusal for quota does not use the token up
#[test]
fn a_quota_refusal_leaves_the_token_good() {
    let mut h = Harness::with(|settings| settings.limits.allocations_per_client = Some(2));
    let one = h.add(user("bob"));
    let [two, three, four] = [1, 2, 3].map(|port| h.add(user("bob").from(&format!("12.0.0.1:{port}"))));
    let (relayed, token) = reserve(&mut h, one);
    h.allocate(three);
    h.allocate(four);
    // The reservation holds no place at this address.
    h.refuses(two, allocate().token(&token), 486, Why::QuotaClient);
    h.refresh(four, 0);
    assert_eq!(h.ask(two, allocate().token(&token)).relayed(), next(relayed));
}

// RFC 8656 §7.2: works when the second Allocate lands on another worker [8656-7.2-22]
#[test]
fn a_token_is_good_on_another_worker() {
    let mut h = Harness::workers(3, |_| {});
    let (one, two) = (h.add(alice().on_worker(0)), h.add(alice().on_worker(2)));
    let (relayed, token) = reserve(&mut h, one);
    assert_eq!(token[0], 0, "the first byte names the owner");
    let reply = h.ask(two, allocate().token(&token));
    assert_eq!((reply.code(), reply.relayed()), (0, next(relayed)));
    assert_eq!(h.permit(two, &[addr("8.8.8.8:1")]), 0);
    assert_eq!(h.from_peer(two, addr("8.8.8.8:1"), b"x").data_indication().1, b"x");
    h.advance(600);
    assert_eq!((h.leftovers(), h.ports.count()), (0, 0));
}

// A retransmission while another worker is asked makes no second question.
#[test]
fn a_retransmission_while_another_worker_is_asked_stays_one_request() {
    let mut h = Harness::workers(2, |_| {});
    let (one, two) = (h.add(alice().on_worker(0)), h.add(alice().on_worker(1)));
    let (relayed, token) = reserve(&mut h, one);
    h.hold_back_asks = true;
    let bytes = h.signed(two, &allocate().token(&token));
    assert_eq!(h.tell(two, &bytes), []);
    assert_eq!(h.tell(two, &bytes), []);
    let replies = h.let_asks_go(two);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].relayed(), next(relayed));
    assert_eq!(h.tell(two, &bytes), replies);
}

// The owner does not answer: 508 instead of silence; its late answer brings a port that is not wanted any more.
#[test]
fn an_answer_that_comes_too_late_is_508_and_the_port_is_closed() {
    let mut h = Harness::workers(2, |_| {});
    let (one, two) = (h.add(alice().on_worker(0)), h.add(alice().on_worker(1)));
    let (relayed, token) = reserve(&mut h, one);
    h.hold_back_asks = true;
    let bytes = h.signed(two, &allocate().token(&token));
    assert_eq!(h.tell(two, &bytes), []);
    h.let_one_ask_go();
    h.advance(2);
    let replies = h.inbox(two);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].code(), 508);
    assert!(replies[0].is_signed_with(&h.key_of(two)));
    assert_eq!(h.let_asks_go(two), []);
    assert_eq!(h.closed_reserved, [next(relayed)]);
    h.refresh(one, 0);
    h.advance(30);
    assert_eq!((h.leftovers(), h.ports.count(), h.books.admitted()), (0, 0, 0));
}

// The stream closes while another worker is asked
#[test]
fn a_stream_that_closes_while_another_worker_is_asked_leaves_nothing() {
    let mut h = Harness::workers(2, |_| {});
    let (one, two) = (h.add(alice().on_worker(0)), h.add(alice().tcp().on_worker(1)));
    let (relayed, token) = reserve(&mut h, one);
    h.hold_back_asks = true;
    let bytes = h.signed(two, &allocate().token(&token));
    h.tell(two, &bytes);
    h.disconnect(two);
    assert_eq!(h.let_asks_go(two), []);
    assert_eq!(h.closed_reserved, [next(relayed)]);
    h.refresh(one, 0);
    h.advance(30);
    assert_eq!((h.leftovers(), h.ports.count(), h.books.admitted()), (0, 0, 0));
}

// RFC 8656 §7.2 (5): "the corresponding relayed transport address is still available" [8656-7.2-8]
#[test]
fn a_held_socket_that_is_gone_is_508() {
    let mut h = Harness::new();
    let (one, two) = (h.client(), h.client());
    let (_, token) = reserve(&mut h, one);
    h.ports.refuse = Some(throughway::protocol::border::RelayRefused::NotHeld);
    h.refuses(two, allocate().token(&token), 508, Why::BadReservation);
    assert_eq!(h.books.admitted(), 1);
}

// RFC 8656 §18.10: tokens can't be guessed from one another
#[test]
fn tokens_differ() {
    let mut h = Harness::with(|settings| settings.limits.reservations_per_user = None);
    let mut tokens: Vec<Vec<u8>> = (0..20)
        .map(|_| {
            let client = h.client();
            reserve(&mut h, client).1
        })
        .collect();
    tokens.sort();
    tokens.dedup_by_key(|token| token[1..4].to_vec());
    assert_eq!(tokens.len(), 20);
}
