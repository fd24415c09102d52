//! Refresh and the end of an allocation (RFC 8656 sections 5, 8).

use test_support::harness;
use test_support::harness::stun::{
    CREATE_PERMISSION, LIFETIME, MESSAGE_INTEGRITY, REFRESH, REQUESTED_ADDRESS_FAMILY, allocate, request,
};
use test_support::harness::{Harness, Went, addr, alice, bind, carol, user};
use throughway::address::{RelayedTransportAddress, Transport};
use throughway::protocol::DEADLINES_PER_CALL;
use throughway::protocol::accounting::Amount;
use throughway::protocol::reason::{DropReason, EndReason};
use throughway::protocol::reject::RejectReason as Why;

// RFC 8656 §7.2, §8: exactly its lifetime [8656-6-4]
#[test]
fn an_allocation_lives_until_its_lifetime_is_over_and_not_a_millisecond_longer() {
    let mut h = Harness::new();
    let client = h.client();
    let relayed = h.allocate(client);
    h.advance_ms(599_999);
    assert!(h.is_alive(client));
    h.advance_ms(1);
    assert!(!h.is_alive(client));
    assert_eq!(h.closed, [relayed]);
    assert_eq!(h.ended[0].reason, Some(EndReason::Expired));
    assert_eq!(h.leftovers(), 0);
}

// RFC 8656 §8: judged by the time of the packet, not by when a timer gets its turn [8656-6-5, 8656-5-7]
#[test]
fn what_comes_at_the_end_of_the_lifetime_finds_no_allocation_even_before_the_timer() {
    let mut h = Harness::new();
    let client = h.client();
    let peer = addr("8.8.8.8:1");
    h.allocate(client);
    h.advance(301);
    assert_eq!(h.bind(client, 0x4000, peer), 0);
    h.jump_ms(298_999);
    assert_eq!(h.channel_data(client, 0x4000, b"x").to_peer().0, peer);
    h.jump_ms(1);
    assert_eq!(h.channel_data(client, 0x4000, b"x"), Went::Dropped(DropReason::NoAllocation));
    assert_eq!(h.send(client, peer, b"x"), Went::Dropped(DropReason::NoAllocation));
    assert_eq!(h.from_peer(client, peer, b"x"), Went::Dropped(DropReason::RelayClosed));
    h.refuses(client, request(REFRESH), 437, Why::NoAllocation);
    assert_eq!(h.leftovers(), 0);
}

// F-A1: clients that vanish together end together, and no other client waits for all of them
#[test]
fn the_end_of_many_is_worked_off_in_parts_and_none_is_served_after_its_lifetime() {
    let mut h = Harness::new();
    let spec = |number| user(&format!("user-{number}")).from(&format!("9.9.{number}.9:1000"));
    let clients: Vec<_> = (0..200).map(|number| h.add(spec(number))).collect();
    for client in &clients {
        h.allocate(*client);
    }
    h.jump_ms(600_000);
    let last = clients[199];
    let before = h.allocations();
    let now = h.now;
    h.first_server().handle_timeout(now);
    assert_eq!(before - h.allocations(), DEADLINES_PER_CALL);
    h.refuses(last, request(REFRESH), 437, Why::NoAllocation);
    assert!(h.allocations() > 0, "some of the others are still to be ended");
    h.advance_ms(0);
    assert_eq!((h.allocations(), h.leftovers()), (0, 0));
}

// RFC 8656 §8.2 [8656-8.2-2, -4]
#[test]
fn refresh_sets_the_time_to_expiry_anew() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    h.advance(500);
    let reply = h.refresh(client, 600);
    assert_eq!(reply.types(), [LIFETIME, MESSAGE_INTEGRITY]);
    assert_eq!(reply.lifetime(), 600);
    h.advance_ms(599_999);
    assert!(h.is_alive(client));
    h.advance_ms(1);
    assert!(!h.is_alive(client));
}

// RFC 8656 §8.2: the lifetime is computed as for Allocate [8656-8.2-2]
#[test]
fn refresh_clamps_the_lifetime_as_allocate_does() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    for (asked, granted) in [(1, 600), (600, 600), (601, 601), (3600, 3600), (3601, 3600), (u32::MAX, 3600)] {
        assert_eq!(h.refresh(client, asked).lifetime(), granted);
    }
    assert_eq!(h.ask(client, request(REFRESH)).lifetime(), 600, "absent means the default");
}

// RFC 8656 §8.2: a shorter lifetime than the one that runs moves the end nearer
#[test]
fn refresh_may_shorten_the_lifetime() {
    let mut h = Harness::new();
    let client = h.client();
    h.ask(client, allocate().lifetime(3600));
    h.advance(10);
    h.refresh(client, 600);
    h.advance_ms(599_999);
    assert!(h.is_alive(client));
    h.advance_ms(1);
    assert!(!h.is_alive(client));
    assert_eq!(h.leftovers(), 0);
}

// RFC 8656 §8.2: many refreshes keep it alive for as long as they come
#[test]
fn an_allocation_that_is_refreshed_lives_on() {
    let mut h = Harness::with(|settings| settings.auth.nonce_lifetime = 86_400);
    let client = h.client();
    h.allocate(client);
    for _ in 0..100 {
        h.advance_ms(599_999);
        assert_eq!(h.refresh(client, 600).code(), 0);
    }
    h.advance(600);
    assert_eq!((h.allocations(), h.leftovers()), (0, 0));
}

// RFC 8656 §8.2: lifetime 0 [8656-8.2-3, -4]
#[test]
fn refresh_with_lifetime_zero_deletes_the_allocation() {
    let mut h = Harness::new();
    let client = h.client();
    let relayed = h.allocate(client);
    let reply = h.refresh(client, 0);
    assert_eq!((reply.code(), reply.lifetime()), (0, 0));
    assert!(reply.is_signed_with(&h.key_of(client)));
    assert_eq!((h.allocations(), h.leftovers(), h.books.admitted()), (0, 0, 0));
    assert_eq!(h.closed, [relayed]);
    assert_eq!(h.from_peer(client, addr("8.8.8.8:1"), b"x"), Went::Dropped(DropReason::RelayClosed));
    assert_eq!(h.channel_data(client, 0x4000, b"x"), Went::Dropped(DropReason::NoAllocation));
}

// RFC 8656 §8.2: the five-tuple is free at once [8656-7.2-21, 8656-9-6, 8656-12-2]
#[test]
fn the_five_tuple_is_free_when_the_answer_to_refresh_zero_has_left() {
    for spec in [alice(), alice().tcp()] {
        let mut h = Harness::new();
        let client = h.add(spec);
        let old = h.allocate(client);
        assert_eq!(h.permit(client, &[addr("8.8.8.8:1")]), 0);
        assert_eq!(h.bind(client, 0x4000, addr("8.8.8.8:1")), 0);
        h.refresh(client, 0);
        let new = h.allocate(client);
        assert_ne!(old, new);
        assert_eq!(
            h.channel_data(client, 0x4000, b"x"),
            Went::Dropped(DropReason::UnboundChannel),
            "nothing is inherited"
        );
        assert_eq!(h.send(client, addr("8.8.8.8:1"), b"x"), Went::Dropped(DropReason::NoPermission));
    }
}

// RFC 8656 §8.2: the retransmission of a Refresh with lifetime 0 [8656-5-13]
#[test]
fn a_retransmitted_refresh_zero_is_437() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    let bytes = h.signed(client, &request(REFRESH).lifetime(0));
    assert_eq!(h.tell(client, &bytes)[0].code(), 0);
    let again = h.tell(client, &bytes);
    assert_eq!(again[0].code(), 437);
    assert!(again[0].is_signed_with(&h.key_of(client)));
}

// RFC 8656 §8.2: the retransmission of an ordinary Refresh is harmless [8656-5-13, 8489-6.3.1-2, -3]
#[test]
fn a_retransmitted_refresh_gets_the_same_answer() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    let bytes = h.signed(client, &request(REFRESH).lifetime(900));
    let first = h.tell(client, &bytes);
    assert_eq!(h.tell(client, &bytes), first);
}

// A late retransmission of the Allocate must not raise the dead.
#[test]
fn an_allocate_retransmitted_after_the_end_makes_a_new_allocation() {
    let mut h = Harness::new();
    let client = h.client();
    let bytes = h.signed(client, &allocate());
    let first = h.tell(client, &bytes)[0].relayed();
    h.refresh(client, 0);
    let second = h.tell(client, &bytes)[0].relayed();
    assert_ne!(first, second);
    assert_eq!(h.ports.count(), 1);
}

// RFC 8656 §5: 437 without an allocation, for every method that needs one [8656-5-6]
#[test]
fn every_method_that_needs_an_allocation_is_437_without_one() {
    let mut h = Harness::new();
    let client = h.client();
    let peer = addr("8.8.8.8:1");
    for message in [
        request(REFRESH),
        request(REFRESH).lifetime(0),
        request(REFRESH).with(LIFETIME, &[1]),
        request(CREATE_PERMISSION).peer(peer),
        request(CREATE_PERMISSION),
        bind(0x4000, peer),
        bind(0x7000, peer),
        request(harness::stun::CHANNEL_BIND),
    ] {
        h.refuses(client, message, 437, Why::NoAllocation);
    }
}

// RFC 8656 §5: 437 for another five-tuple, be it the same user [8656-5-6]
#[test]
fn an_allocation_belongs_to_its_five_tuple() {
    let mut h = Harness::new();
    let owner = h.add(alice().from("11.1.1.1:5000"));
    h.allocate(owner);
    for spec in [alice().from("11.1.1.1:5001"), alice().from("11.1.1.1:5000").tcp(), alice().from("11.1.1.2:5000")] {
        let other = h.add(spec);
        h.refuses(other, request(REFRESH).lifetime(0), 437, Why::NoAllocation);
    }
    assert!(h.is_alive(owner));
}

// RFC 8656 §5: 441 for another user [8656-5-5]
#[test]
fn another_user_on_the_same_five_tuple_is_441() {
    let mut h = Harness::new();
    let client = h.client();
    let peer = addr("8.8.8.8:1");
    h.allocate(client);
    h.rename(client, carol());
    for message in [
        request(REFRESH),
        request(REFRESH).lifetime(0),
        request(CREATE_PERMISSION).peer(peer),
        request(CREATE_PERMISSION),
        bind(0x4000, peer),
        bind(0x7000, peer),
    ] {
        h.refuses(client, message, 441, Why::WrongUser);
    }
    h.rename(client, alice());
    assert_eq!(h.refresh(client, 600).code(), 0);
    assert_eq!(h.send(client, peer, b"x"), Went::Dropped(DropReason::NoPermission), "nothing was installed");
}

// RFC 8656 §5: the username must be the same; another credential of the same user id is another username [8656-5-5]
#[test]
fn another_credential_of_the_same_user_id_is_441() {
    let mut h = Harness::new();
    let client = h.add(user("bob"));
    h.allocate(client);
    h.rename(client, harness::holder_of(&format!("{}:bob", harness::START_UNIX + 99)));
    h.refuses(client, request(REFRESH), 441, Why::WrongUser);
}

// RFC 8489 §9.2.4 before RFC 8656 §5: who can't prove anything learns nothing of the allocation
#[test]
fn an_unproven_user_on_the_same_five_tuple_is_401() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    h.rename(client, alice().named("mallory", "x"));
    assert_eq!(h.refresh(client, 0).code(), 401);
    h.rename(client, alice().named("alice", "x"));
    assert_eq!(h.refresh(client, 0).code(), 401);
    assert!(h.is_alive(client));
}

// RFC 8656 §8.2: a family that the allocation does not have [8656-8.2-1]
#[test]
fn refresh_of_the_other_family_is_443() {
    let mut h = Harness::new();
    let (four, six) = (h.client(), h.client());
    h.allocate(four);
    assert_eq!(h.ask(six, allocate().family(2)).code(), 0);
    for (client, right, wrong) in [(four, 1, 2), (six, 2, 1)] {
        h.refuses(client, request(REFRESH).family(wrong), 443, Why::PeerFamily);
        h.refuses(client, request(REFRESH).family(wrong).lifetime(0), 443, Why::PeerFamily);
        h.refuses(client, request(REFRESH).family(7), 443, Why::PeerFamily);
        assert_eq!(h.ask(client, request(REFRESH).family(right)).code(), 0);
        assert!(h.is_alive(client));
    }
}

// RFC 8656 §18: malformed values
#[test]
fn refresh_with_malformed_attributes_is_400_and_changes_nothing() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    h.advance(100);
    for message in [
        request(REFRESH).with(LIFETIME, &[]),
        request(REFRESH).with(LIFETIME, &[0, 0, 0]),
        request(REFRESH).with(LIFETIME, &[0; 8]),
        request(REFRESH).with(REQUESTED_ADDRESS_FAMILY, &[1]),
    ] {
        h.refuses(client, message, 400, Why::BadAttribute);
    }
    h.advance_ms(499_999);
    assert!(h.is_alive(client));
    h.advance_ms(1);
    assert!(!h.is_alive(client), "a refused Refresh extends nothing");
}

// RFC 8656 §8.2: unknown attributes keep a Refresh 0 from deleting
#[test]
fn refresh_with_unknown_required_attributes_is_420_and_changes_nothing() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    h.refuses(client, request(REFRESH).lifetime(0).with(0x7777, b""), 420, Why::UnknownAttributes);
    assert!(h.is_alive(client));
}

// The allocation of a stream ends with it
#[test]
fn a_closed_stream_ends_its_allocation_at_once() {
    let mut h = Harness::new();
    let (stream, udp) = (h.add(alice().tcp()), h.client());
    let relayed = h.allocate(stream);
    h.allocate(udp);
    h.disconnect(stream);
    assert_eq!(h.closed, [relayed]);
    assert_eq!(h.ended[0].reason, Some(EndReason::ClientClosed));
    assert!(h.is_alive(udp));
    h.disconnect(stream);
    assert_eq!(h.ended.len(), 1, "once");
}

#[test]
fn closing_all_ends_every_allocation_and_refuses_new_ones() {
    let mut h = Harness::new();
    let clients = [h.client(), h.add(alice().tcp()), h.add(user("bob"))];
    for client in clients {
        h.allocate(client);
    }
    h.close_all(EndReason::Shutdown);
    assert_eq!((h.leftovers(), h.books.admitted(), h.ports.count()), (0, 0, 0));
    assert!(h.ended.iter().all(|record| record.reason == Some(EndReason::Shutdown)));
    h.refuses(clients[0], allocate(), 486, Why::Draining);
}

// The end of all includes what was about to begin.
#[test]
fn closing_all_leaves_no_opening_and_no_held_port_behind() {
    let mut h = Harness::new();
    let (held, opening) = (h.client(), h.client());
    h.nonce_of(opening);
    assert_eq!(h.ask(held, allocate().even_port(true)).code(), 0);
    h.hold_back_opens = true;
    let bytes = h.signed(opening, &allocate());
    h.tell(opening, &bytes);
    h.close_all(EndReason::Shutdown);
    h.let_opens_go(opening);
    assert_eq!((h.allocations(), h.ports.count(), h.books.admitted(), h.leftovers()), (0, 0, 0, 0));
}

#[test]
fn the_record_of_an_ended_session_tells_who_when_why_and_how_much() {
    let mut h = Harness::new();
    let client = h.add(user("bob").tcp());
    let peer = addr("8.8.8.8:53");
    let relayed = h.allocate(client);
    let start = h.now.ticks;
    assert_eq!(h.permit(client, &[peer]), 0);
    h.send(client, peer, b"12345").to_peer();
    h.send(client, addr("8.8.4.4:53"), b"123");
    h.from_peer(client, peer, b"1234567").to_client();
    h.from_peer(client, addr("8.8.4.4:53"), b"12");
    assert_eq!(h.counters_of(client).live[Transport::Tcp as usize][0].get(), 1);
    h.advance(77);
    h.refresh(client, 0);
    let record = h.ended.pop().expect("a record");
    assert_eq!(&*record.username, format!("{}:bob", harness::START_UNIX + 3600));
    assert_eq!((&*record.identity, record.secret.as_deref()), ("bob", Some("main")));
    assert_eq!((record.via, record.relayed), (h.via(client), RelayedTransportAddress::from(relayed)));
    assert_eq!((record.created_at, record.ended_at.since(start)), (start, 77_000));
    assert_eq!(record.reason, Some(EndReason::Refreshed));
    let amount = |packets, bytes| Amount { packets, bytes };
    assert_eq!(record.traffic.to_peers.received, amount(2, 8));
    assert_eq!(record.traffic.to_peers.dropped, amount(1, 3));
    assert_eq!(record.traffic.to_peers.sent(), amount(1, 5));
    assert_eq!(record.traffic.to_client.received, amount(2, 9));
    assert_eq!(record.traffic.to_client.sent(), amount(1, 7));
    let counters = h.counters_of(client);
    assert_eq!(counters.ended[EndReason::Refreshed as usize].get(), 1);
    assert_eq!((counters.created.get(), counters.live[Transport::Tcp as usize][0].get()), (1, 0));
}

// Nothing is left in any table when all lifetimes are over.
#[test]
fn all_tables_are_empty_when_all_lifetimes_are_over() {
    let mut h = Harness::workers(3, |_| {});
    for n in 0..60_u16 {
        let spec = [alice(), user("bob"), carol(), alice().ipv6()][usize::from(n) % 4].clone();
        let spec = if n % 5 == 0 { spec.tcp() } else { spec };
        let client = h.add(spec.on_worker(usize::from(n) % 3));
        let message = allocate().lifetime(u32::from(n) * 70).even_port(n % 7 == 0);
        assert_eq!(h.ask(client, message).code(), 0);
        let peer = addr(&format!("8.8.{n}.8:{}", 1000 + n));
        assert_eq!(h.permit(client, &[peer]), 0);
        assert_eq!(h.bind(client, 0x4000 + n, peer), 0);
        h.advance(7);
    }
    assert!(h.allocations() > 50);
    h.advance(3600);
    assert_eq!((h.leftovers(), h.ports.count(), h.books.admitted()), (0, 0, 0));
    assert_eq!(h.ended.len(), 60);
}
