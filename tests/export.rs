//! A server taken over by another process: what goes on, and which states are refused. The simulation does it at random.

use test_support::harness;
use test_support::harness::stun::allocate;
use test_support::harness::{Client, Harness, addr, alice, user};
use throughway::protocol::export::{ImportError, ServerState};
use throughway::protocol::meter::Rates;
use throughway::protocol::reason::{Direction, DropReason};
use throughway::protocol::reject::RejectReason as Why;

const PEER: &str = "8.8.8.8:99";

#[test]
fn a_call_goes_on_and_its_client_learns_nothing_of_it() {
    let mut h = Harness::new();
    let client = h.client();
    let relayed = h.allocate(client);
    assert_eq!((h.permit(client, &[addr(PEER)]), h.bind(client, 0x4001, addr(PEER))), (0, 0));
    h.channel_data(client, 0x4001, b"before").to_peer();
    let nonce = h.nonce_of(client);
    h.hand_over();
    h.channel_data(client, 0x4001, b"after").to_peer();
    assert_eq!(h.from_peer(client, addr(PEER), b"answer").to_client(), harness::channel_data(0x4001, b"answer"));
    assert_eq!(h.nonce_of(client), nonce, "the nonce that it holds stays good");
    assert_eq!(h.refresh(client, 600).code(), 0);
    let session = h.session(client).expect("alive");
    assert_eq!(session.relayed, relayed.into());
    assert_eq!(session.traffic.to_peers.received.packets, 2);
    assert_eq!(h.counters_of(client).from_clients.get().packets, 2, "counters never go back");
}

#[test]
fn deadlines_come_when_they_were_due() {
    let mut h = Harness::new();
    let client = h.client();
    h.allocate(client);
    h.permit(client, &[addr(PEER)]);
    h.advance(299);
    h.hand_over();
    h.send(client, addr(PEER), b"still").to_peer();
    h.advance(1);
    h.send(client, addr(PEER), b"over");
    assert_eq!(h.drops(DropReason::NoPermission).packets, 1, "the permission ends after 300 s");
    h.advance(299);
    assert!(h.is_alive(client));
    h.advance(1);
    assert!(!h.is_alive(client), "the allocation ends after 600 s");
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}

#[test]
fn a_held_port_is_there_for_who_reserved_it() {
    let mut h = Harness::new();
    let (first, second) = (h.client(), h.client());
    let reply = h.ask(first, allocate().even_port(true));
    let token = reply.token();
    h.hand_over();
    let reply = h.ask(second, allocate().token(&token));
    assert_eq!(reply.code(), 0);
    h.close_all(throughway::protocol::reason::EndReason::Shutdown);
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}

#[test]
fn a_request_that_waits_is_answered_by_the_process_that_took_over() {
    let mut h = Harness::new();
    let client = h.client();
    h.nonce_of(client);
    h.hold_back_opens = true;
    let bytes = h.signed(client, &allocate());
    assert_eq!(h.tell(client, &bytes), []);
    h.hand_over();
    assert_eq!(h.tell(client, &bytes), [], "a retransmission still waits");
    assert_eq!(h.let_opens_go(client).iter().map(|reply| reply.code()).collect::<Vec<_>>(), [0]);
    assert!(h.is_alive(client));
}

#[test]
fn what_was_used_of_a_limit_stays_used() {
    let mut h = Harness::with(|settings| {
        settings.limits.allocations_per_user = Some(1);
        settings.limits.allocation = Rates { packets_per_second: Some(10), ..Rates::default() };
        settings.limits.user = Rates { bits_per_second: Some(8_000), ..Rates::default() };
        settings.limits.burst_ms = 1_000;
    });
    let client = h.add(user("bob"));
    h.allocate(client);
    h.permit(client, &[addr(PEER)]);
    for _ in 0..5 {
        h.send(client, addr(PEER), &[0; 72]).to_peer();
    }
    h.hand_over();
    let other = h.add(user("bob"));
    h.refuses(other, allocate(), 486, Why::QuotaUser);
    // 100 bytes of the network each, of 1,000 a second.
    for _ in 0..5 {
        h.send(client, addr(PEER), &[0; 72]).to_peer();
    }
    h.hand_over();
    h.send(client, addr(PEER), &[0; 72]);
    assert_eq!(h.drops(DropReason::OverPackets).packets, 1, "ten packets in this second, and no more");
}

#[test]
fn a_draining_server_stays_one() {
    let mut h = Harness::new();
    let (live, late) = (h.client(), h.add(alice().from("7.7.7.7:7")));
    h.allocate(live);
    h.nonce_of(late);
    h.drain_all();
    h.hand_over();
    h.refuses(late, allocate(), 486, Why::Draining);
    assert!(h.is_alive(live));
}

/// Clients that have done this and that, with limits of their own.
fn busy_server() -> (Harness, Vec<Client>) {
    let mut h = Harness::with(|settings| {
        let rates = Rates { packets_per_second: Some(50), bits_per_second: Some(1_000_000) };
        settings.limits.allocation = rates;
        settings.limits.burst_ms = 1_000;
        settings.interim_seconds = 60;
    });
    let clients: Vec<Client> = (0..9).map(|_| h.client()).collect();
    for client in &clients {
        h.allocate(*client);
        assert_eq!((h.permit(*client, &[addr(PEER)]), h.bind(*client, 0x4001, addr(PEER))), (0, 0));
        h.channel_data(*client, 0x4001, b"before").to_peer();
    }
    (h, clients)
}

#[test]
fn what_is_done_between_the_early_part_and_the_cut_is_there() {
    let (mut h, clients) = busy_server();
    let after = clients.clone();
    h.hand_over_early(2, |h| {
        let [relays, drops, permits, refreshes, ends, ..] = clients[..] else { panic!("nine clients") };
        for _ in 0..5 {
            h.channel_data(relays, 0x4001, b"meanwhile").to_peer();
            h.from_peer(relays, addr(PEER), b"meanwhile").to_client();
        }
        h.channel_data(drops, 0x4009, b"unbound");
        h.not_sent(drops, Direction::ToPeer, 1, 6, DropReason::SlowClient);
        assert_eq!(h.permit(permits, &[addr("8.8.4.4:9")]), 0);
        h.advance(20);
        assert_eq!((h.refresh(refreshes, 900).code(), h.refresh(ends, 0).code()), (0, 0));
        let (new, again) = (h.client(), ends);
        h.allocate(new);
        h.allocate(again);
        h.advance(41);
    });
    h.send(after[2], addr("8.8.4.4:9"), b"after").to_peer();
    h.advance(600 - 61 - 1);
    assert!(h.is_alive(after[0]));
    h.advance(1);
    assert!(!h.is_alive(after[0]) && h.is_alive(after[3]));
    h.advance(10_000);
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}

// A client that comes back meanwhile is in two slices, and what the later one says holds.
#[test]
fn slots_and_clients_may_come_early_more_than_once() {
    let (mut h, clients) = busy_server();
    let (mut successor, _) = h.successor(0);
    let server = h.first_server();
    server.begin_early_export();
    successor.import_early(server.early_export(0, 9).0).unwrap();
    for back in [clients[0], clients[5]] {
        assert_eq!(h.refresh(back, 0).code(), 0);
    }
    h.allocate(clients[5]);
    h.allocate(clients[0]);
    let server = h.first_server();
    successor.import_early(server.early_export(3, 100).0).unwrap();
    successor.import_early(server.early_export(0, 3).0).unwrap();
    let changes = server.export_changes();
    assert_eq!((changes.allocations.len(), changes.counts.0.len(), changes.ended.len()), (0, 0, 0), "no packet came");
    successor.import_changes(changes).unwrap();
    assert!(successor.export() == server.export());
    assert_eq!(successor.leftovers(), server.leftovers(), "nor is a deadline left of those before");
    successor.check_invariants();
}

// The other process failed: nothing happened, and the next one is told everything.
#[test]
fn an_attempt_that_failed_leaves_nothing_behind() {
    let (mut h, clients) = busy_server();
    let before = h.first_server().export();
    let server = h.first_server();
    server.begin_early_export();
    let (early, None) = server.early_export(0, 100) else { panic!("a hundred slots are enough") };
    assert_eq!(early.len(), 9);
    assert_eq!(server.export_changes().counts.0.len(), 0, "no packet came");
    assert!(server.export() == before);
    server.begin_early_export();
    let changes = server.export_changes();
    assert_eq!((changes.allocations.len(), changes.counts.0.len(), changes.is_whole), (9, 0, false));
    drop(server.early_export(0, 100));
    server.end_early_export();
    let changes = server.export_changes();
    assert_eq!((changes.allocations.len(), changes.counts.0.len(), changes.is_whole), (9, 0, true));
    h.channel_data(clients[0], 0x4001, b"still here").to_peer();
    h.hand_over_early(1, |_| ());
    h.channel_data(clients[0], 0x4001, b"and there").to_peer();
}

// A server that was made anew after a panic has no marks: then all is told, whatever came early.
#[test]
fn without_marks_the_rest_is_everything() {
    let (mut h, clients) = busy_server();
    let (mut successor, _) = h.successor(0);
    let server = h.first_server();
    server.begin_early_export();
    successor.import_early(server.early_export(0, 100).0).unwrap();
    assert_eq!(h.refresh(clients[3], 0).code(), 0);
    h.hand_over();
    let server = h.first_server();
    successor.import_changes(server.export_changes()).unwrap();
    assert!(successor.export() == server.export());
    successor.check_invariants();
}

#[test]
fn a_slice_that_was_lost_is_noticed() {
    let (mut h, clients) = busy_server();
    let server = h.first_server();
    server.begin_early_export();
    let (early, _) = server.early_export(0, 100);
    for client in &clients {
        h.channel_data(*client, 0x4001, b"meanwhile").to_peer();
    }
    let changes = h.first_server().export_changes();
    let missing = ImportError::Missing { id: early[4].id };
    let (mut successor, _) = h.successor(0);
    successor.import_early(early[..4].to_vec()).unwrap();
    successor.import_early(early[5..].to_vec()).unwrap();
    assert_eq!(successor.import_changes(changes.clone()), Err(missing));
    let (mut successor, _) = h.successor(0);
    successor.import_early(early.clone()).unwrap();
    let mut fewer = changes.clone();
    fewer.live = 8;
    assert_eq!(successor.import_changes(fewer), Err(ImportError::Live { found: 9, expected: 8 }));
    let (mut successor, _) = h.successor(0);
    successor.import_early(early).unwrap();
    let mut other = changes;
    other.workers = 2;
    assert!(matches!(successor.import_changes(other), Err(ImportError::Worker { workers: 2, .. })));
    assert!(h.is_alive(clients[4]));
}

// What contradicts itself is refused whole.
#[test]
fn a_state_that_can_not_be_is_refused() {
    let mut h = Harness::workers(2, |_| {});
    let client = h.add(alice().on_worker(0));
    h.allocate(client);
    let state = h.first_server().export();
    let refused = |h: &mut Harness, edit: fn(&mut ServerState)| {
        let mut state = state.clone();
        edit(&mut state);
        h.import(0, state).expect_err("refused")
    };
    let id = state.allocations[0].id;
    assert_eq!(refused(&mut h, |state| state.workers = 3), ImportError::Worker { worker: state.worker, workers: 3 });
    assert!(matches!(h.import(1, state.clone()), Err(ImportError::Worker { .. })));
    let twice = refused(&mut h, |state| state.allocations.push(state.allocations[0].clone()));
    assert_eq!(twice, ImportError::Slot { id });
    let same_client = refused(&mut h, |state| {
        let mut other = state.allocations[0].clone();
        other.id.index += 1;
        state.allocations.push(other);
    });
    assert!(matches!(same_client, ImportError::Client { .. }), "{same_client}");
    let beyond = refused(&mut h, |state| state.allocations[0].id.index = u32::MAX);
    assert!(beyond.to_string().contains("slot 4294967295"), "{beyond}");
    assert!(h.is_alive(client), "the server that was exported goes on");
}

// The settings were read again shortly before, and more allocations are to be looked at again than one piece holds.
#[test]
fn a_review_that_is_under_way_goes_on() {
    let (mut h, _) = busy_server();
    h.is_unchecked = true;
    for number in 0..1_200 {
        let client = h.add(user(&format!("user{number}")));
        h.allocate(client);
    }
    let mut is_under_way = false;
    h.hand_over_early(500, |h| {
        h.reconfigure(|_| ());
        is_under_way = h.first_server().export().review.is_some();
    });
    assert!(is_under_way && h.first_server().export().review.is_some());
}
