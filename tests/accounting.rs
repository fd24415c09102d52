//! Accounting records: when they come, how they are numbered, and what is in them.

use std::collections::HashSet;

use test_support::harness::{Harness, addr, alice, user};
use throughway::protocol::accounting::{Amount, SessionRecord};
use throughway::protocol::reason::{Direction, DropReason, EndReason};

/// Kind, sequence number and seconds since the first record.
fn told(h: &Harness) -> Vec<(&'static str, u32, u64)> {
    let first = h.records[0].1.unix.0;
    h.records.iter().map(|(kind, record)| (*kind, record.seq, record.unix.0 - first)).collect()
}

fn every(seconds: u32) -> Harness {
    Harness::workers(1, |settings| settings.interim_seconds = seconds)
}

#[test]
fn a_session_has_a_start_an_interim_each_interval_and_a_stop() {
    let mut h = every(60);
    let client = h.client();
    h.allocate(client);
    h.advance(150);
    h.refresh(client, 0);
    h.advance(600);
    assert_eq!(told(&h), [("start", 0, 0), ("interim", 1, 60), ("interim", 2, 120), ("stop", 3, 150)]);
    let names: HashSet<_> = h.records.iter().map(|(_, record)| record.session).collect();
    assert_eq!(names.len(), 1);
    assert_eq!(h.records[3].1.reason, Some(EndReason::Refreshed));
    assert_eq!(h.leftovers(), 0);
}

#[test]
fn neither_traffic_nor_refreshes_move_the_interims() {
    let mut h = every(60);
    let (client, peer) = (h.client(), addr("8.8.8.8:1"));
    h.allocate(client);
    h.permit(client, &[peer]);
    for _ in 0..20 {
        h.advance(10);
        h.send(client, peer, b"12345");
        h.refresh(client, 3600);
    }
    assert_eq!(told(&h), [("start", 0, 0), ("interim", 1, 60), ("interim", 2, 120), ("interim", 3, 180)]);
    let sent: Vec<u64> = h.records.iter().map(|(_, record)| record.traffic.to_peers.sent().bytes).collect();
    // What comes in the same millisecond as an interim comes after it.
    assert_eq!(sent, [0, 25, 55, 85]);
}

#[test]
fn an_interim_at_the_very_end_gives_way_to_the_stop() {
    let mut h = every(300);
    let client = h.client();
    h.allocate(client);
    h.advance(600);
    assert_eq!(told(&h), [("start", 0, 0), ("interim", 1, 300), ("stop", 2, 600)]);
    assert_eq!(h.records[2].1.reason, Some(EndReason::Expired));
}

#[test]
fn without_an_interval_there_are_no_interims_and_a_late_timer_makes_one_not_many() {
    let mut h = every(0);
    let client = h.client();
    h.allocate(client);
    h.advance(599);
    assert_eq!(told(&h), [("start", 0, 0)]);

    let mut h = every(60);
    let client = h.client();
    h.allocate(client);
    h.jump_ms(200_000);
    // Whatever comes first does what is due.
    h.refresh(client, 600);
    assert_eq!(told(&h), [("start", 0, 0), ("interim", 1, 200)]);
    h.advance(40);
    assert_eq!(told(&h).last(), Some(&("interim", 2, 240)));
}

#[test]
fn a_reload_changes_the_interval_of_live_sessions() {
    let mut h = every(0);
    let client = h.client();
    h.allocate(client);
    h.advance(90);
    h.reconfigure(|settings| settings.interim_seconds = 60);
    h.advance(30);
    assert_eq!(told(&h), [("start", 0, 0), ("interim", 1, 120)]);
    h.reconfigure(|settings| settings.interim_seconds = 10);
    h.advance(10);
    assert_eq!(told(&h).last(), Some(&("interim", 2, 130)));
    h.reconfigure(|settings| settings.interim_seconds = 0);
    h.advance(300);
    assert_eq!(told(&h).len(), 3);
    h.close_all(EndReason::Shutdown);
    assert_eq!(told(&h).last(), Some(&("stop", 3, 430)));
    assert_eq!(h.leftovers(), 0);
}

#[test]
fn no_two_sessions_share_a_name_whatever_their_worker() {
    let mut h = Harness::workers(3, |_| {});
    for number in 0..9 {
        let client = h.add(alice().on_worker(number % 3));
        for _ in 0..3 {
            h.allocate(client);
            h.refresh(client, 0);
        }
    }
    let names: HashSet<String> = h.ended.iter().map(|record| record.session.to_string()).collect();
    assert_eq!((h.ended.len(), names.len()), (27, 27));
    assert!(names.iter().all(|name| name.len() < 24), "{names:?}");
}

fn dropped(record: &SessionRecord) -> Vec<(DropReason, u64, u64)> {
    record.dropped.iter().map(|(why, amount)| (*why, amount.packets, amount.bytes)).collect()
}

#[test]
fn every_drop_of_a_session_is_in_its_record_under_its_reason() {
    let mut h = every(60);
    let (client, peer) = (h.add(user("bob")), addr("8.8.8.8:1"));
    h.allocate(client);
    h.permit(client, &[peer]);
    h.send(client, peer, b"1234567");
    h.send(client, addr("9.9.9.9:9"), b"12345");
    h.send(client, addr("9.9.9.9:9"), b"1");
    h.channel_data(client, 0x4001, b"123");
    h.from_peer(client, addr("7.7.7.7:7"), b"1234");
    h.from_peer(client, peer, b"12");
    h.not_sent(client, Direction::ToPeer, 1, 7, DropReason::NoBuffers);
    let due = [
        (DropReason::UnboundChannel, 1, 3),
        (DropReason::NoPermission, 2, 6),
        (DropReason::PeerNotPermitted, 1, 4),
        (DropReason::NoBuffers, 1, 7),
    ];
    assert_eq!(dropped(&h.session(client).unwrap()), due);
    h.refresh(client, 0);
    let record = &h.ended[0];
    assert_eq!(dropped(record), due);
    assert_eq!(record.traffic.to_peers.received, Amount { packets: 4, bytes: 16 });
    assert_eq!(record.traffic.to_peers.sent(), Amount::default());
    assert_eq!(record.traffic.to_client.sent(), Amount { packets: 1, bytes: 2 });
    assert_eq!((&*record.identity, record.username.ends_with(":bob")), ("bob", true));
}
