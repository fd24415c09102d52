//! The per-packet path takes nothing from the heap: counted, not believed.

// A counting allocator can't be had without it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::net::SocketAddr;

use test_support::harness;
use test_support::harness::stun::{BINDING, SEND, allocate, indication, request};
use test_support::harness::{Client, Harness, addr, alice, bind, channel_data, user};
use throughway::address::PeerAddress;
use throughway::net::record::{Cut, Opened};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::border::{PacketMeta, Relay};
use throughway::protocol::ids::AllocationId;
use throughway::protocol::meter::Rates;
use throughway::protocol::reason::{Direction, DropReason};
use throughway::time::{Now, Ticks};
use throughway::wire::framing::cut;
use throughway::wire::integrity::IntegrityKey;
use throughway::wire::message::Message;

struct Counting;

thread_local! {
    // Per thread: the tests of this file run side by side.
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and nothing to measure.
    let _ = TAKEN.try_with(|taken| taken.set(taken.get() + 1));
}

// SAFETY: every call is handed on to the system's allocator unchanged; counting touches a plain cell only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the rules of GlobalAlloc, which are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PACKETS: usize = 1000;
const PEER: &str = "8.8.8.8:1000";

/// How often the heap was asked while `work` ran many times.
fn taken_by(mut work: impl FnMut()) -> u64 {
    let before = TAKEN.with(Cell::get);
    for _ in 0..PACKETS {
        work();
    }
    TAKEN.with(Cell::get) - before
}

/// A thousand packets at once, again and again: more than any allocation may by default.
fn harness() -> Harness {
    Harness::workers(1, |settings| settings.limits.allocation = Rates::default())
}

fn ready(h: &mut Harness) -> (Client, AllocationId) {
    let client = h.client();
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER), addr("8.8.4.4:1")]), 0);
    assert_eq!(h.ask(client, bind(0x4000, addr(PEER))).code(), 0);
    (client, h.session(client).expect("alive").allocation)
}

/// Feeds packets of a client; each must come out as `expected` and cost nothing.
fn client_packets_cost_nothing(h: &mut Harness, client: Client, bytes: &[u8], expected: Result<(), DropReason>) {
    let (via, now) = (h.via(client), h.now);
    let server = h.first_server();
    let taken =
        taken_by(|| match (server.relay_from_client(now, &via, PacketMeta::default(), black_box(bytes)), expected) {
            (Relay::ToPeer { payload, .. } | Relay::ToRelayed { payload, .. }, Ok(())) => {
                black_box(payload);
            }
            (Relay::Drop(why), Err(wanted)) if why == wanted => {}
            (other, _) => panic!("{other:?}"),
        });
    assert_eq!(taken, 0, "{expected:?}");
}

fn peer_packets_cost_nothing(
    h: &mut Harness,
    (now, id): (Now, AllocationId),
    from: SocketAddr,
    payload: &[u8],
    expected: Result<(), DropReason>,
) {
    let server = h.first_server();
    let from = PeerAddress::from(from);
    let taken = taken_by(|| {
        match (server.relay_from_peer(now, id, from, PacketMeta::default(), black_box(payload)), expected) {
            (Relay::ToClient { head, .. }, Ok(())) => {
                black_box(head.bytes());
            }
            (Relay::Drop(why), Err(wanted)) if why == wanted => {}
            (other, _) => panic!("{other:?}"),
        }
    });
    assert_eq!(taken, 0, "{expected:?}");
}

#[test]
fn the_counter_counts() {
    assert!(taken_by(|| drop(black_box(vec![1_u8; 100]))) >= PACKETS as u64);
}

#[test]
fn packets_of_a_client_take_nothing_from_the_heap() {
    let mut h = harness();
    let (client, _) = ready(&mut h);
    let stranger = h.add(alice().tcp());
    let send = |peer: &str| indication(SEND).peer(addr(peer)).data(&[7; 1200]);
    let data = channel_data(0x4000, &[7; 1200]);
    client_packets_cost_nothing(&mut h, client, &data, Ok(()));
    client_packets_cost_nothing(&mut h, client, &send(PEER).bytes([1; 12], None), Ok(()));
    client_packets_cost_nothing(&mut h, client, &send(PEER).fingerprint().bytes([1; 12], None), Ok(()));
    for (bytes, why) in [
        (channel_data(0x4001, b"x"), DropReason::UnboundChannel),
        (data[..100].to_vec(), DropReason::BadChannelData),
        (vec![0xFF; 50], DropReason::NotStun),
        (send("8.8.1.1:1").bytes([1; 12], None), DropReason::NoPermission),
        (send("[2a00::1]:1").bytes([1; 12], None), DropReason::PeerFamily),
        (send(PEER).with(0x7777, b"").bytes([1; 12], None), DropReason::BadSend),
        (send(PEER).bytes([1; 12], None)[..40].to_vec(), DropReason::Malformed),
    ] {
        client_packets_cost_nothing(&mut h, client, &bytes, Err(why));
    }
    client_packets_cost_nothing(&mut h, stranger, &data, Err(DropReason::NoAllocation));
    h.check();
}

#[test]
fn packets_between_own_relayed_addresses_take_nothing_from_the_heap() {
    let mut h = harness();
    let (client, _) = ready(&mut h);
    let (_, other) = ready(&mut h);
    let relayed =
        h.first_server().sessions(Now::default()).find(|record| record.allocation == other).expect("alive").relayed;
    assert_eq!(h.bind(client, 0x4001, relayed.into()), 0);
    client_packets_cost_nothing(&mut h, client, &channel_data(0x4001, &[7; 1200]), Ok(()));
}

#[test]
fn packets_of_a_peer_take_nothing_from_the_heap() {
    let mut h = harness();
    let (client, id) = ready(&mut h);
    let at = (h.now, id);
    for length in [0, 1, 160, 1200, 65_000] {
        let payload = vec![7; length];
        peer_packets_cost_nothing(&mut h, at, addr(PEER), &payload, Ok(()));
        peer_packets_cost_nothing(&mut h, at, addr("8.8.4.4:1"), &payload, Ok(()));
        peer_packets_cost_nothing(&mut h, at, addr("8.8.1.1:1"), &payload, Err(DropReason::PeerNotPermitted));
    }
    peer_packets_cost_nothing(&mut h, at, addr(PEER), &[7; 65_507], Err(DropReason::TooBig));
    h.refresh(client, 0);
    let server = h.first_server();
    let taken = taken_by(|| {
        let verdict = server.relay_from_peer(at.0, id, addr(PEER).into(), PacketMeta::default(), b"late");
        assert!(matches!(verdict, Relay::Drop(DropReason::RelayClosed)));
    });
    assert_eq!(taken, 0);
}

#[test]
fn an_allocation_with_many_peers_takes_nothing_from_the_heap_either() {
    let mut h = harness();
    let client = h.client();
    h.allocate(client);
    let peers: Vec<SocketAddr> = (1..=60).map(|n| addr(&format!("8.8.8.{n}:9"))).collect();
    for (number, peer) in (0x4000..).zip(&peers) {
        assert_eq!(h.bind(client, number, *peer), 0);
    }
    let at = (h.now, h.session(client).expect("alive").allocation);
    client_packets_cost_nothing(&mut h, client, &channel_data(0x4030, b"x"), Ok(()));
    peer_packets_cost_nothing(&mut h, at, peers[40], b"x", Ok(()));
}

/// Every scope limits rates, and the credential and the user their bytes too.
fn with_all_meters(rates: Rates, bytes: u64) -> Harness {
    Harness::workers(1, |settings| {
        settings.auth.secrets[0].tenant = Some("acme".into());
        let limits = &mut settings.limits;
        (limits.server, limits.tenant, limits.client) = (rates, rates, rates);
        (limits.user, limits.credential, limits.allocation) = (rates, rates, rates);
        (limits.bytes_per_credential, limits.bytes_per_user_per_day) = (Some(bytes), Some(bytes));
    })
}

#[test]
fn metered_packets_take_nothing_from_the_heap() {
    let data = channel_data(0x4000, &[7; 1200]);
    let wide = Rates { bits_per_second: Some(80_000_000_000), packets_per_second: Some(1_000_000) };
    let narrow_bits = Rates { bits_per_second: Some(1), ..wide };
    let narrow_packets = Rates { packets_per_second: Some(1), ..wide };
    for (rates, bytes, expected) in [
        (wide, 1 << 40, Ok(())),
        (narrow_bits, 1 << 40, Err(DropReason::OverBandwidth)),
        (narrow_packets, 1 << 40, Err(DropReason::OverPackets)),
    ] {
        let mut h = with_all_meters(rates, bytes);
        let client = h.add(user("bob"));
        h.allocate(client);
        assert_eq!(h.bind(client, 0x4000, addr(PEER)), 0);
        let at = (h.now, h.session(client).expect("alive").allocation);
        // The first packet finds a full bucket, whatever the rate.
        h.channel_data(client, 0x4000, &[7; 1200]);
        h.from_peer(client, addr(PEER), &[7; 1200]);
        client_packets_cost_nothing(&mut h, client, &data, expected);
        peer_packets_cost_nothing(&mut h, at, addr(PEER), &[7; 1200], expected);
        let server = h.first_server();
        assert_eq!(taken_by(|| server.not_sent(at.1, Direction::ToPeer, 0, 0, DropReason::NoBuffers)), 0);
    }
}

#[test]
fn what_was_not_sent_takes_nothing_from_the_heap() {
    let mut h = harness();
    let (_, id) = ready(&mut h);
    let server = h.first_server();
    assert_eq!(taken_by(|| server.not_sent(id, Direction::ToPeer, 0, 0, DropReason::NoBuffers)), 0);
}

#[test]
fn binding_takes_nothing_from_the_heap() {
    let mut h = harness();
    let clients = [h.client(), h.add(alice().ipv6())];
    for client in clients {
        let via = h.via(client);
        for message in
            [request(BINDING), request(BINDING).fingerprint(), request(BINDING).with(0x7001, b"?"), indication(BINDING)]
        {
            let bytes = message.bytes([1; 12], None);
            let now = h.now;
            let server = h.first_server();
            let taken = taken_by(|| {
                let mut out = [0; ANSWER_BYTES_MAX];
                assert!(black_box(server.answer_binding(now, &via, black_box(&bytes), &mut out)).is_some());
            });
            assert_eq!(taken, 0);
        }
    }
}

#[test]
fn reading_and_verifying_an_authenticated_allocate_takes_nothing_from_the_heap() {
    let mut h = harness();
    let client = h.add(user("bob"));
    let bytes = h.signed(client, &allocate().lifetime(600).fingerprint());
    let key = IntegrityKey::from_md5(h.key_of(client));
    let taken = taken_by(|| {
        let message = Message::parse(black_box(&bytes)).expect("a message");
        assert!(black_box(key.verifies(&message)));
    });
    assert_eq!(taken, 0);
    // With the time-limited password derived.
    let secret = harness::secret("main", harness::SECRET, throughway::credentials::Algorithm::Sha1);
    let username = format!("{}:bob", harness::START_UNIX + 3600);
    let taken = taken_by(|| {
        let message = Message::parse(black_box(&bytes)).expect("a message");
        let password = throughway::credentials::password(&secret, username.as_bytes());
        let key = IntegrityKey::long_term(username.as_bytes(), harness::REALM.as_bytes(), password.as_bytes());
        assert!(black_box(key.verifies(&message)));
    });
    assert_eq!(taken, 0);
}

#[test]
fn cutting_a_stream_takes_nothing_from_the_heap() {
    let mut bytes = channel_data(0x4000, b"12345");
    bytes.extend([0; 3]);
    bytes.extend(request(BINDING).bytes([1; 12], None));
    let taken = taken_by(|| {
        black_box(cut(black_box(&bytes)));
    });
    assert_eq!(taken, 0);
}

/// Of every suite, each way: a frame of a call, and a long one.
#[test]
fn records_of_tls_take_nothing_from_the_heap() {
    for suite in [0x1301, 0x1302, 0x1303, 0xC02F, 0xC030, 0xCCA8] {
        let (mut server, mut client) = harness::records::pair(suite);
        for len in [1, 176, 1204, 40_000] {
            let (data, mut bytes) = (vec![7; len], vec![0; len + 1000]);
            let (mut opened, mut sealed) = (0, 0);
            let taken = taken_by(|| {
                let end = client.seal(&[&data[..len / 3], &data[len / 3..]], &mut bytes).expect("room");
                let mut start = 0;
                while let Ok(Cut::Record(len)) = server.cut(&bytes[start..end]) {
                    let record = &mut bytes[start..start + len];
                    if let Opened::Data(data) = server.open(record, Ticks(0)).expect("a right record") {
                        opened += data.len();
                    }
                    start += len;
                }
                sealed += len;
            });
            assert_eq!((taken, opened), (0, sealed), "{suite:#x} {len}");
        }
    }
}
