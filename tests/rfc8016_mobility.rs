//! Mobility (RFC 8016): a client changes its network and keeps its relayed address. Faults that other servers had come first.

use std::net::SocketAddr;

use test_support::harness::mobility::{
    CHANNEL, MOBILITY_TICKET, PEER, come, elsewhere, for_ticket, goes_to, settle, ticket_of,
};
use test_support::harness::stun::{
    ALLOCATE, CREATE_PERMISSION, Incoming, LIFETIME, MESSAGE_INTEGRITY, REFRESH, Signature, allocate, request,
};
use test_support::harness::{Client, Harness, Spec, Went, addr, alice, bind, carol, user};
use throughway::protocol::border::Selector;
use throughway::protocol::reason::{DropReason, EndReason};
use throughway::protocol::reject::RejectReason as Why;
use throughway::protocol::settings::Settings;
use throughway::protocol::tenancy::{Tenancies, Tenancy};

fn mobile(settings: &mut Settings) {
    settings.mobility = true;
}

fn with_mobility() -> Harness {
    Harness::with(mobile)
}

/// A client with a ticket and a channel to the peer, and its relayed address.
fn mobile_client(h: &mut Harness, spec: Spec) -> (Client, Vec<u8>, SocketAddr) {
    let client = h.add(spec);
    let reply = h.ask(client, for_ticket());
    let ticket = ticket_of(&reply);
    assert_eq!(h.bind(client, CHANNEL, addr(PEER)), 0);
    (client, ticket, reply.relayed())
}

/// Data of a client pass to the peer.
#[track_caller]
fn passes(h: &mut Harness, client: Client) {
    let went = h.channel_data(client, CHANNEL, b"up");
    assert_eq!(went.to_peer(), (addr(PEER), b"up".to_vec()));
}

fn one_session(h: &Harness) {
    assert_eq!((h.allocations(), h.books.admitted(), h.ports.count()), (1, 1, 1), "it counts once");
}

/// All pairs of transports, on one worker and from one to another.
fn ways() -> impl Iterator<Item = (u8, Spec, Spec)> {
    let transports =
        [(alice(), alice()), (alice(), alice().tcp()), (alice().tcp(), alice()), (alice().tcp(), alice().tcp())];
    transports.into_iter().flat_map(|(from, to)| {
        let ipv6 = (1, from.clone(), to.clone().ipv6());
        let two = (2, from.clone().on_worker(0), to.clone().on_worker(1));
        [(1, from, to), ipv6, two]
    })
}

// ---- what others paid for

// CVE-2026-65981: a ticket of another user. [8016-3.2.2-5, 8016-5-3]
#[test]
fn a_ticket_of_another_user_is_refused_and_moves_nothing() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (client, ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
        let thief = elsewhere(&mut h, carol().on_worker(usize::from(workers) - 1));
        let reply = h.ask(thief, come(&ticket));
        assert_eq!((reply.code(), h.rejects(Why::WrongUser)), (441, 1));
        assert!(matches!(h.channel_data(thief, CHANNEL, b"x"), Went::Dropped(DropReason::NoAllocation)));
        settle(&mut h);
        goes_to(&mut h, relayed, client, client);
        // A stranger who saw it pass has no key at all.
        let mut signature: Signature = h.signature(thief);
        signature.username = Some("alice".into());
        assert_eq!(h.ask_with(thief, &signature, come(&ticket)).code(), 401);
        // Nor is the right key of any use without the ticket.
        let other = elsewhere(&mut h, alice().on_worker(0));
        h.refuses(other, request(REFRESH), 437, Why::NoAllocation);
        one_session(&h);
        h.refresh(client, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// CVE-2026-68555: moves one after the other left memory behind. [8016-3.2.2-6]
#[test]
fn chained_moves_leave_nothing_behind() {
    for workers in [1, 3] {
        let mut h = Harness::workers(workers, mobile);
        let (first, mut ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
        let mut known = vec![ticket.clone()];
        let mut owner = first;
        for number in 1..60_usize {
            let spec = if number % 3 == 0 { alice().tcp() } else { alice() };
            let next = elsewhere(&mut h, spec.on_worker(number % usize::from(workers)));
            ticket = ticket_of(&h.ask(next, come(&ticket)));
            assert!(!known.contains(&ticket), "a new ticket each time");
            known.push(ticket.clone());
            // Every second one is left before data came.
            if number % 2 == 0 {
                let _ = h.channel_data(next, CHANNEL, b"up");
                settle(&mut h);
                passes(&mut h, next);
                goes_to(&mut h, relayed, next, next);
                owner = next;
            }
            one_session(&h);
        }
        h.refresh(owner, 0);
        assert_eq!((h.leftovers(), h.books.admitted(), h.books.mobile()), (0, 0, 0));
    }
}

// CVE-2026-73216: a move evaded the quota. [8016-3.2.2-5]
#[test]
fn a_move_changes_nothing_that_is_counted() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, |settings| {
            settings.mobility = true;
            settings.limits.allocations_per_user = Some(1);
            settings.limits.allocations_per_client = Some(1);
        });
        let (old, ticket, _) = mobile_client(&mut h, user("al").from("11.1.0.1:1").on_worker(0));
        let new = elsewhere(&mut h, user("al").from("12.2.0.2:2").on_worker(usize::from(workers) - 1));
        ticket_of(&h.ask(new, come(&ticket)));
        let _ = h.channel_data(new, CHANNEL, b"up");
        settle(&mut h);
        passes(&mut h, new);
        // Neither at the old five-tuple, which is free, nor at a new one of either network.
        h.refuses(old, allocate(), 486, Why::QuotaClient);
        let third = h.add(user("al").from("13.3.0.3:3"));
        h.refuses(third, allocate(), 486, Why::QuotaUser);
        let of_old_network = h.add(carol().from("11.1.0.1:7"));
        h.refuses(of_old_network, allocate(), 486, Why::QuotaClient);
        h.refresh(new, 0);
        assert_eq!(h.leftovers(), 0);
        h.allocate(of_old_network);
        h.refresh(of_old_network, 0);
    }
}

// ---- Allocate

// RFC 8016 §3.1.2 [8016-3.1.2-1, -2, -3, -4]
#[test]
fn an_allocate_with_an_empty_ticket_gets_one_and_gets_it_again() {
    let mut h = with_mobility();
    let client = h.client();
    for length in [1, 3, 4, 49, 98, 1000] {
        h.refuses(client, allocate().with(MOBILITY_TICKET, &vec![0; length]), 400, Why::BadTicket);
    }
    let asked = for_ticket().id(*b"same request");
    let reply = h.ask(client, asked.clone());
    let types = [0x16, LIFETIME, 0x20, MOBILITY_TICKET, MESSAGE_INTEGRITY];
    assert_eq!((reply.types(), ticket_of(&reply).len()), (types.to_vec(), 32));
    let again = h.ask(client, asked);
    assert_eq!((again.relayed(), ticket_of(&again)), (reply.relayed(), ticket_of(&reply)), "the same answer");
    let other = h.client();
    let plain = h.ask(other, allocate());
    assert!(!plain.has(MOBILITY_TICKET), "only who asks for it gets one");
    for client in [client, other] {
        h.refresh(client, 0);
    }
    assert_eq!(h.leftovers(), 0);
}

// RFC 8016 §3.1.2, §3.2.2 [8016-3.1.2-1, 8016-3.2.2-1]
#[test]
fn without_mobility_every_ticket_is_405() {
    let mut h = Harness::new();
    let client = h.client();
    for value in [&b""[..], b"x", &[0; 49]] {
        h.refuses(client, allocate().with(MOBILITY_TICKET, value), 405, Why::MobilityForbidden);
    }
    h.allocate(client);
    h.refuses(client, come(&[0; 49]), 405, Why::MobilityForbidden);
    h.reconfigure(mobile);
    let (old, ticket, _) = mobile_client(&mut h, alice());
    let new = elsewhere(&mut h, alice());
    h.reconfigure(|settings| settings.mobility = false);
    h.refuses(new, come(&ticket), 405, Why::MobilityForbidden);
    passes(&mut h, old);
    assert_eq!(h.refresh(old, 600).code(), 0, "what there is goes on");
    h.reconfigure(mobile);
    ticket_of(&h.ask(new, come(&ticket)));
}

// ---- the move

// RFC 8016 §3.2.2 [8016-3.2.2-6, -7]
#[test]
fn data_go_the_old_way_until_data_come_the_new_one() {
    for (workers, from, to) in ways() {
        let mut h = Harness::workers(workers, mobile);
        let (old, ticket, relayed) = mobile_client(&mut h, from);
        let new = elsewhere(&mut h, to);
        let reply = h.ask(new, come(&ticket));
        assert_ne!(ticket_of(&reply), ticket);
        assert_eq!(reply.lifetime(), 600);
        for _ in 0..2 {
            passes(&mut h, old);
            goes_to(&mut h, relayed, old, old);
        }
        // Requests come both ways, and move nothing.
        for client in [old, new] {
            assert_eq!(h.permit(client, &[addr("8.8.4.4:1")]), 0);
            assert_eq!(h.refresh(client, 700).lifetime(), 700);
            assert_eq!(h.bind(client, 0x4002, addr("8.8.4.4:1")), 0);
            h.refuses_anywhere(client, allocate(), 437, Why::AllocationExists);
        }
        goes_to(&mut h, relayed, old, old);
        one_session(&h);
        let first = h.channel_data(new, CHANNEL, b"up");
        if workers == 1 {
            assert_eq!(first.to_peer(), (addr(PEER), b"up".to_vec()), "not even the first packet is lost");
        } else {
            assert_eq!(first, Went::Dropped(DropReason::Moving), "it is counted as what it is");
        }
        settle(&mut h);
        passes(&mut h, new);
        goes_to(&mut h, relayed, new, new);
        // The old way is free.
        assert_eq!(h.channel_data(old, CHANNEL, b"x"), Went::Dropped(DropReason::NoAllocation));
        h.refuses(old, request(CREATE_PERMISSION).peer(addr(PEER)), 437, Why::NoAllocation);
        assert_eq!(h.bind(new, 0x4002, addr("8.8.4.4:1")), 0, "its channels came along");
        let record = h.session(new).expect("it lives");
        assert_eq!(
            SocketAddr::from(record.via.five_tuple().client),
            h.address_of(new),
            "it is known by its new address"
        );
        let moved: Vec<_> =
            h.records.iter().filter(|(kind, _)| *kind == "moved").map(|(_, record)| record.via).collect();
        assert_eq!(moved, [h.via(new)], "it is told once");
        one_session(&h);
        h.allocate(old);
        h.refresh(old, 0);
        h.refresh(new, 0);
        assert_eq!((h.leftovers(), h.records.iter().filter(|(kind, _)| *kind == "stop").count()), (0, 2));
    }
}

// A Send indication is data as well. [8016-3.2.2-7]
#[test]
fn a_send_indication_makes_the_move_too() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (_, ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        ticket_of(&h.ask(new, come(&ticket)));
        let _ = h.send(new, addr(PEER), b"up");
        settle(&mut h);
        assert_eq!(h.send(new, addr(PEER), b"up").to_peer().1, b"up");
        goes_to(&mut h, relayed, new, new);
    }
}

// What is no data moves nothing. [8016-3.2.2-7]
#[test]
fn bytes_that_are_no_data_move_nothing() {
    let mut h = with_mobility();
    let (old, ticket, relayed) = mobile_client(&mut h, alice());
    let new = elsewhere(&mut h, alice());
    ticket_of(&h.ask(new, come(&ticket)));
    assert!(matches!(h.from_client(new, &[0x40, 1, 0, 9, 1]), Went::Dropped(DropReason::BadChannelData)));
    assert!(matches!(h.from_client(new, &[0xFF; 20]), Went::Dropped(DropReason::NotStun)));
    settle(&mut h);
    goes_to(&mut h, relayed, old, old);
}

// RFC 8016 §3.2.2 [8016-3.2.2-8]
#[test]
fn a_retransmission_gets_the_same_answer_for_thirty_seconds() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        let asked = come(&ticket).lifetime(900).id(*b"same request");
        let reply = h.ask(new, asked.clone());
        let (second, lifetime) = (ticket_of(&reply), reply.lifetime());
        assert_eq!(lifetime, 900);
        h.advance(29);
        let again = h.ask(new, asked.clone());
        assert_eq!((ticket_of(&again), again.lifetime()), (second.clone(), lifetime));
        // After the move as well.
        let _ = h.channel_data(new, CHANNEL, b"up");
        settle(&mut h);
        passes(&mut h, new);
        assert_eq!(ticket_of(&h.ask(new, asked.clone())), second);
        // It is known for retransmissions alone.
        let third = elsewhere(&mut h, alice().on_worker(0));
        assert_eq!(h.ask(third, asked.clone()).code(), 400);
        assert_eq!(h.ask(third, come(&ticket)).code(), 400);
        assert_eq!(h.ask(new, come(&ticket)).code(), 400, "another request");
        assert_eq!(h.rejects(Why::OldTicket), 3);
        h.advance(1);
        assert_eq!(h.ask(new, asked).code(), 400, "its time is over");
        ticket_of(&h.ask(third, come(&second)));
    }
}

// RFC 8016 §3.2.2 [8016-3.2.2-4]
#[test]
fn a_ticket_from_where_it_was_given_out_is_400() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (old, first, relayed) = mobile_client(&mut h, alice().on_worker(0));
        h.refuses(old, come(&first), 400, Why::SameFiveTuple);
        let new = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        let second = ticket_of(&h.ask(new, come(&first)));
        assert_eq!(h.ask(new, come(&second)).code(), 400);
        assert_eq!(h.rejects(Why::SameFiveTuple), 2);
        // Back to the old address, as a phone does that finds its wifi again: no data came the new way.
        let third = ticket_of(&h.ask(old, come(&second)));
        assert_ne!(third, second);
        settle(&mut h);
        assert!(matches!(h.channel_data(new, CHANNEL, b"x"), Went::Dropped(DropReason::NoAllocation)));
        passes(&mut h, old);
        goes_to(&mut h, relayed, old, old);
        // And away once more.
        ticket_of(&h.ask(new, come(&third)));
        let _ = h.channel_data(new, CHANNEL, b"up");
        settle(&mut h);
        passes(&mut h, new);
        one_session(&h);
    }
}

// RFC 8016 §3.2.2 [8016-3.2.2-2, -3, 8016-5-1, -2]
#[test]
fn what_is_no_ticket_of_a_live_allocation_is_refused() {
    let mut h = with_mobility();
    let (old, ticket, _) = mobile_client(&mut h, alice());
    let new = elsewhere(&mut h, alice());
    for at in 0..ticket.len() {
        let mut forged = ticket.clone();
        forged[at] ^= 0x40;
        h.refuses(new, come(&forged), 400, Why::BadTicket);
        h.refuses(new, come(&ticket[..at]), 400, Why::BadTicket);
    }
    for forged in [[&ticket[..], &ticket].concat(), [&ticket[..], b"x"].concat(), vec![7; 1200], vec![0; 3000]] {
        h.refuses(new, come(&forged), 400, Why::BadTicket);
    }
    // The first of two counts, as for any attribute.
    h.refuses(new, come(b"none").with(MOBILITY_TICKET, &ticket), 400, Why::BadTicket);
    // One of another server of the fleet: the same key, another session.
    let mut other = Harness::with(mobile);
    let (stranger, _, _) = mobile_client(&mut other, alice());
    other.refresh(stranger, 0);
    let (_, foreign, _) = mobile_client(&mut other, alice());
    h.refuses(new, come(&foreign), 437, Why::NoAllocation);
    // One of before a restart with another key.
    h.refresh(old, 0);
    h.refuses(new, come(&ticket), 437, Why::NoAllocation);
    let (_, ticket, _) = mobile_client(&mut h, alice());
    h.restart();
    let late = elsewhere(&mut h, alice());
    h.refuses(late, come(&ticket), 400, Why::BadTicket);
}

// [8016-3.2.2-2]
#[test]
fn a_ticket_whose_allocation_expired_is_437() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        let newer = ticket_of(&h.ask(new, come(&ticket)));
        h.advance(601);
        assert_eq!((h.allocations(), h.leftovers()), (0, 0));
        h.refuses(new, come(&newer), 437, Why::NoAllocation);
        assert_eq!(h.channel_data(new, CHANNEL, b"x"), Went::Dropped(DropReason::NoAllocation));
        h.allocate(new);
    }
}

// An address that has an allocation of its own can't have another one.
#[test]
fn an_address_with_an_allocation_gets_no_second_one() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let taken = h.add(alice().on_worker(usize::from(workers) - 1));
        h.allocate(taken);
        let code = h.ask(taken, come(&ticket)).code();
        assert_eq!(code, 437);
        h.refresh(taken, 0);
        // While one is about to begin there: over a stream, where nothing is sent twice.
        let busy = elsewhere(&mut h, alice().tcp().on_worker(usize::from(workers) - 1));
        h.hold_back_opens = true;
        let asked = h.signed(busy, &allocate());
        assert_eq!(h.tell(busy, &asked), []);
        assert_eq!(h.ask(busy, come(&ticket)).code(), 437);
        assert_eq!(h.let_opens_go(busy).len(), 1);
    }
}

// The credential's own limits hold for the new way too.
#[test]
fn what_the_client_may_not_come_by_it_may_not_move_to() {
    let mut h = with_mobility();
    let (_, ticket, _) = mobile_client(&mut h, alice());
    let tunnelled = elsewhere(&mut h, alice().from("[2002:808:808::1]:5"));
    h.refuses_anywhere(tunnelled, come(&ticket), 403, Why::TunnelledClient);
}

// LIFETIME 0 with a ticket ends the allocation from the new address.
#[test]
fn a_ticket_can_end_the_allocation_from_elsewhere() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        let reply = h.ask(new, come(&ticket).lifetime(0));
        assert_eq!((reply.code(), reply.lifetime(), reply.has(MOBILITY_TICKET)), (0, 0, false));
        assert_eq!((h.allocations(), h.leftovers()), (0, 0));
    }
}

// ---- streams

// RFC 8016 §3.2.2: a closed connection is as good as data on the new one. [8016-3.2.2-7]
#[test]
fn a_stream_that_closes_leaves_its_allocation_to_the_new_way() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (old, ticket, relayed) = mobile_client(&mut h, alice().tcp().on_worker(0));
        let new = elsewhere(&mut h, alice().tcp().on_worker(usize::from(workers) - 1));
        assert_eq!(h.ask(new, come(&ticket).lifetime(3600)).lifetime(), 3600);
        h.disconnect(old);
        settle(&mut h);
        goes_to(&mut h, relayed, new, new);
        passes(&mut h, new);
        h.advance(3599);
        one_session(&h);
        h.refresh(new, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// [8016-3.2.2-7]
#[test]
fn a_stream_that_breaks_before_there_is_a_new_way_is_waited_for() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (old, ticket, relayed) = mobile_client(&mut h, alice().tcp().on_worker(0));
        assert_eq!(h.refresh(old, 3600).lifetime(), 3600);
        h.disconnect(old);
        one_session(&h);
        h.advance(200);
        let new = elsewhere(&mut h, alice().tcp().on_worker(usize::from(workers) - 1));
        ticket_of(&h.ask(new, come(&ticket).lifetime(3600)));
        settle(&mut h);
        // There is no old way, so that data need not come first.
        goes_to(&mut h, relayed, new, new);
        assert_eq!(h.bind(new, CHANNEL, addr(PEER)), 0);
        h.disconnect(new);
        // No client comes again: no longer than a new one would live.
        h.advance(599);
        one_session(&h);
        h.advance(1);
        assert_eq!((h.leftovers(), h.ended.last().and_then(|record| record.reason)), (0, Some(EndReason::Expired)));
    }
}

#[test]
fn a_stream_without_a_ticket_ends_with_its_allocation_as_ever() {
    let mut h = with_mobility();
    let plain = h.add(alice().tcp());
    h.allocate(plain);
    h.disconnect(plain);
    assert_eq!(h.leftovers(), 0);
    let (old, _, _) = mobile_client(&mut h, alice().tcp());
    h.reconfigure(|settings| settings.mobility = false);
    h.disconnect(old);
    assert_eq!(h.leftovers(), 0, "no ticket is of any use");
}

#[test]
fn a_new_stream_that_closes_before_data_came_is_forgotten() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (old, ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, alice().tcp().on_worker(usize::from(workers) - 1));
        let newer = ticket_of(&h.ask(new, come(&ticket)));
        h.disconnect(new);
        settle(&mut h);
        passes(&mut h, old);
        goes_to(&mut h, relayed, old, old);
        let third = elsewhere(&mut h, alice().tcp().on_worker(usize::from(workers) - 1));
        ticket_of(&h.ask(third, come(&newer)));
        h.refresh(old, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// ---- both families

#[test]
fn both_relayed_addresses_move() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let old = h.add(alice().on_worker(0));
        let reply = h.ask(old, for_ticket().with(0x8000, &[2, 0, 0, 0]));
        let all = reply.all_relayed();
        assert_eq!(all.len(), 2);
        let peers = [addr(PEER), addr("[2a00::8]:1")];
        assert_eq!(h.permit(old, &peers), 0);
        let new = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        ticket_of(&h.ask(new, come(&ticket_of(&reply))));
        let _ = h.send(new, peers[0], b"up");
        settle(&mut h);
        for (peer, relayed) in peers.into_iter().zip(&all) {
            assert_eq!(h.send(new, peer, b"up").to_peer().0, peer);
            let down = h.from_peer_on(new, *relayed, peer, b"down");
            assert!(matches!(down, Went::ToClient { via, .. } if via == h.via(new)));
        }
        assert_eq!((h.allocations(), h.ports.count()), (1, 2));
        // One of the two is given back there.
        assert_eq!(h.ask(new, request(REFRESH).lifetime(0).family(1)).code(), 0);
        assert_eq!(h.ports.count(), 1);
        h.refresh(new, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// ---- between workers

// While the allocation is on its way, what comes waits for it or is counted.
#[test]
fn requests_follow_an_allocation_on_its_way() {
    let mut h = Harness::workers(3, mobile);
    let (_, ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
    let new = elsewhere(&mut h, alice().tcp().on_worker(1));
    let newer = ticket_of(&h.ask(new, come(&ticket)));
    let third = elsewhere(&mut h, alice().tcp().on_worker(2));
    h.hold_back_asks = true;
    assert_eq!(h.channel_data(new, CHANNEL, b"one"), Went::Dropped(DropReason::Moving));
    h.advance_ms(0);
    h.let_one_ask_go();
    // It has left the first worker, and is not at the second one yet.
    assert_eq!(h.allocations(), 0);
    assert_eq!(h.channel_data(new, CHANNEL, b"two"), Went::Dropped(DropReason::Moving));
    let asked = h.signed(new, &bind(0x4005, addr("8.8.4.4:5")));
    assert_eq!(h.tell(new, &asked), []);
    let asked = h.signed(third, &come(&newer));
    assert_eq!(h.tell(third, &asked), []);
    let answers = h.let_asks_go(new);
    assert_eq!(answers.iter().map(Incoming::code).collect::<Vec<_>>(), [0], "no request over a stream is lost");
    passes(&mut h, new);
    goes_to(&mut h, relayed, new, new);
    assert_eq!(h.inbox(third).iter().map(Incoming::code).collect::<Vec<_>>(), [0]);
    let _ = h.channel_data(third, CHANNEL, b"up");
    settle(&mut h);
    passes(&mut h, third);
    one_session(&h);
    assert_eq!(h.drops(DropReason::Moving).packets, 3);
    h.refresh(third, 0);
    assert_eq!(h.leftovers(), 0);
}

// The worker to which an allocation is on its way is named already: it must not look for it at itself in vain.
#[test]
fn what_comes_while_an_allocation_is_on_its_way_waits_for_it() {
    for to in [alice(), alice().tcp()] {
        let mut h = Harness::workers(3, mobile);
        let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, to.on_worker(1));
        let newer = ticket_of(&h.ask(new, come(&ticket)));
        let third = elsewhere(&mut h, alice().on_worker(2));
        h.hold_back_asks = true;
        assert_eq!(h.channel_data(new, CHANNEL, b"one"), Went::Dropped(DropReason::Moving));
        h.advance_ms(0);
        h.let_one_ask_go();
        assert_eq!(h.allocations(), 0, "it has left the first worker, and is not at the second one yet");
        let here = h.signed(new, &bind(0x4005, addr("8.8.4.4:5")));
        assert_eq!(h.tell(new, &here), []);
        let elsewhere = h.signed(third, &come(&newer));
        assert_eq!(h.tell(third, &elsewhere), []);
        h.let_later_asks_go();
        let answers = h.let_asks_go(new);
        assert_eq!(answers.iter().map(Incoming::code).collect::<Vec<_>>(), [0]);
        assert_eq!(h.inbox(third).iter().map(Incoming::code).collect::<Vec<_>>(), [0]);
        passes(&mut h, new);
        h.refresh(new, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// A listener of another tenant is closed to a session, also when that comes with a ticket.
#[test]
fn a_session_moves_to_no_other_tenants_listener() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let new = h.add(user("al").on_worker(usize::from(workers) - 1));
        let five_tuple = *h.via(new).five_tuple();
        let of = |tenant: &str| {
            let tenancy = Tenancy { realm: None, tenant: Some(tenant.into()) };
            Tenancies::new([(five_tuple.transport, five_tuple.server.ip(), five_tuple.server.port(), tenancy)])
        };
        h.reconfigure(|settings| settings.tenancies = of("a"));
        let (old, ticket, _) = mobile_client(&mut h, user("al").on_worker(0));
        h.nonce_of(new);
        h.reconfigure(|settings| settings.tenancies = of("b"));
        h.refuses(new, come(&ticket), 403, Why::OtherTenant);
        h.reconfigure(|settings| settings.tenancies = of("a"));
        ticket_of(&h.ask(new, come(&ticket)));
        passes(&mut h, old);
    }
}

// A full inbox delays a move, and loses nothing.
#[test]
fn a_full_inbox_delays_a_move() {
    let mut h = Harness::workers(2, mobile);
    let (old, ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
    let new = elsewhere(&mut h, alice().on_worker(1));
    ticket_of(&h.ask(new, come(&ticket)));
    for full in [0, 1] {
        h.full_inbox = Some(full);
        assert_eq!(h.channel_data(new, CHANNEL, b"up"), Went::Dropped(DropReason::Moving));
        settle(&mut h);
        h.advance(3);
        goes_to(&mut h, relayed, old, old);
        passes(&mut h, old);
        one_session(&h);
    }
    h.full_inbox = None;
    assert_eq!(h.channel_data(new, CHANNEL, b"up"), Went::Dropped(DropReason::Moving));
    settle(&mut h);
    passes(&mut h, new);
    h.refresh(new, 0);
    assert_eq!(h.leftovers(), 0);
}

// An allocation would be made at the worker to which its client does not come.
#[test]
fn what_follows_the_end_of_an_allocation_by_a_way_to_it_makes_no_other_one_there() {
    for to in [alice(), alice().tcp()] {
        let mut h = Harness::workers(2, mobile);
        let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let new = elsewhere(&mut h, to.on_worker(1));
        ticket_of(&h.ask(new, come(&ticket)));
        h.hold_back_asks = true;
        for asked in [request(REFRESH).lifetime(0), allocate()] {
            let asked = h.signed(new, &asked);
            assert_eq!(h.tell(new, &asked), []);
        }
        let answers = h.let_asks_go(new);
        assert_eq!(answers.iter().map(Incoming::code).collect::<Vec<_>>(), [0, 437]);
        h.hold_back_asks = false;
        assert_eq!(h.leftovers(), 0);
        h.allocate(new);
        h.refresh(new, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// What all share is not for one client to fill.
#[test]
fn moves_to_and_fro_are_recorded_at_most_every_ten_seconds() {
    for workers in [1, 2] {
        let mut h = Harness::workers(workers, mobile);
        let (mut here, mut ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let mut there = elsewhere(&mut h, alice().on_worker(usize::from(workers) - 1));
        let moved = |h: &Harness| h.records.iter().filter(|(what, _)| *what == "moved").count();
        for (moves, records) in [(20, 1), (3, 2)] {
            for _ in 0..moves {
                ticket = ticket_of(&h.ask(there, come(&ticket)));
                let _ = h.channel_data(there, CHANNEL, b"up");
                settle(&mut h);
                passes(&mut h, there);
                std::mem::swap(&mut here, &mut there);
            }
            assert_eq!(moved(&h), records);
            h.advance(11);
        }
    }
}

// No client fills the inbox of another worker.
#[test]
fn questions_about_ways_have_a_limit_and_go_on_after_it() {
    let mut h = Harness::workers(2, mobile);
    let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
    let new = elsewhere(&mut h, alice().on_worker(1));
    let (_, of_other, _) = mobile_client(&mut h, carol().on_worker(0));
    let other = elsewhere(&mut h, carol().on_worker(1));
    h.hold_back_asks = true;
    for _ in 0..100 {
        let asked = h.signed(new, &come(&ticket));
        assert_eq!(h.tell(new, &asked), []);
    }
    // It takes no other session's place.
    assert_eq!(h.drops(DropReason::Moving).packets, 100 - 4);
    let asked = h.signed(other, &come(&of_other));
    assert_eq!(h.tell(other, &asked), []);
    assert_eq!(h.drops(DropReason::Moving).packets, 100 - 4);
    assert_eq!(h.let_asks_go(new).len(), 4);
    assert_eq!(h.inbox(other).len(), 1);
    let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
    let other = elsewhere(&mut h, alice().on_worker(1));
    ticket_of(&h.ask(other, come(&ticket)));
}

// Without a nonce for its address and without a signature nothing goes to another worker. [8016-5-4]
#[test]
fn strangers_ask_no_other_worker() {
    let mut h = Harness::workers(2, mobile);
    let (_, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
    let (stranger, other) = (h.add(alice().on_worker(1)), h.add(alice().on_worker(1)));
    h.hold_back_asks = true;
    assert_eq!(h.ask_unsigned(stranger, come(&ticket)).code(), 401);
    let mut signature = h.signature(other);
    signature.nonce = Some(b"made up".to_vec());
    assert_eq!(h.ask_with(stranger, &signature, come(&ticket)).code(), 438);
}

// ---- operators, upgrades

#[test]
fn operators_end_a_mobile_session_wherever_it_is() {
    for which in 0..2 {
        let mut h = Harness::workers(2, mobile);
        let (old, ticket, _) = mobile_client(&mut h, alice().on_worker(0));
        let session = h.session(old).expect("it lives").session;
        let new = elsewhere(&mut h, alice().tcp().on_worker(1));
        ticket_of(&h.ask(new, come(&ticket)));
        if which == 1 {
            let _ = h.channel_data(new, CHANNEL, b"up");
            settle(&mut h);
        }
        h.close(&Selector::Session(session), EndReason::Kicked);
        assert_eq!(h.leftovers(), 0);
        let (_, _, _) = mobile_client(&mut h, alice());
        let plain = h.client();
        h.allocate(plain);
        h.close(&Selector::MobileAllocations, EndReason::Kicked);
        assert_eq!(h.allocations(), 1);
    }
}

// A server that takes over knows the tickets, the ways, and what was asked twice.
#[test]
fn an_upgrade_takes_tickets_and_ways_along() {
    for early in [false, true] {
        let mut h = Harness::workers(2, mobile);
        let hand_over = |h: &mut Harness| if early { h.hand_over_early(1, |_| ()) } else { h.hand_over() };
        let (_, ticket, relayed) = mobile_client(&mut h, alice().on_worker(0));
        hand_over(&mut h);
        let new = elsewhere(&mut h, alice().tcp().on_worker(1));
        let asked = come(&ticket).id(*b"same request");
        let newer = ticket_of(&h.ask(new, asked.clone()));
        hand_over(&mut h);
        assert_eq!(ticket_of(&h.ask(new, asked)), newer, "a retransmission is known as one");
        let _ = h.channel_data(new, CHANNEL, b"up");
        hand_over(&mut h);
        settle(&mut h);
        let _ = h.channel_data(new, CHANNEL, b"up");
        settle(&mut h);
        passes(&mut h, new);
        goes_to(&mut h, relayed, new, new);
        let third = elsewhere(&mut h, alice().on_worker(1));
        ticket_of(&h.ask(third, come(&newer)));
        passes(&mut h, third);
        hand_over(&mut h);
        settle(&mut h);
        passes(&mut h, third);
        h.disconnect(new);
        h.refresh(third, 0);
        assert_eq!(h.leftovers(), 0);
    }
}

// [8016-3.1.2-2]
#[test]
fn a_ticket_in_an_allocate_is_400() {
    let mut h = with_mobility();
    let (_, ticket, _) = mobile_client(&mut h, alice());
    let client = h.client();
    h.refuses(client, request(ALLOCATE).udp().with(MOBILITY_TICKET, &ticket), 400, Why::BadTicket);
}
