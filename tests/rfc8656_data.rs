//! The data lanes: Send and Data indications, ChannelData (RFC 8656 sections 11, 12), and exact accounts.

use std::net::SocketAddr;

use test_support::harness::stun::{DATA, DONT_FRAGMENT, REQUEST, SEND, XOR_PEER_ADDRESS, allocate, indication};
use test_support::harness::{Client, Harness, Spec, Went, addr, alice, channel_data, policy};
use throughway::protocol::accounting::{Amount, Flow};
use throughway::protocol::border::PacketMeta;
use throughway::protocol::reason::{Direction, DropReason};
use throughway::protocol::relay::DATAGRAM_BYTES_MAX;

const PEER: &str = "8.8.8.8:1000";
const PEER_IPV6: &str = "[2a00::8]:1000";
const CHANNEL: u16 = 0x4ABC;

fn amount(packets: u64, bytes: u64) -> Amount {
    Amount { packets, bytes }
}

/// A client with an allocation, a permission for PEER and a channel if asked.
fn ready(h: &mut Harness, spec: Spec, channel: bool) -> Client {
    let client = h.add(spec);
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    if channel {
        assert_eq!(h.bind(client, CHANNEL, addr(PEER)), 0);
    }
    client
}

fn ready_ipv6(h: &mut Harness, spec: Spec) -> Client {
    let client = h.add(spec);
    assert_eq!(h.ask(client, allocate().family(2)).code(), 0);
    assert_eq!(h.permit(client, &[addr(PEER_IPV6)]), 0);
    client
}

/// These bytes go nowhere, belong to no allocation, and are counted whole.
#[track_caller]
fn lost(h: &mut Harness, client: Client, bytes: &[u8], why: DropReason) {
    let before = h.drops(why);
    assert_eq!(h.from_client(client, bytes), Went::Dropped(why));
    assert_eq!(h.drops(why) - before, amount(1, bytes.len() as u64));
}

// RFC 8656 §11.2 [8656-11.2-6]
#[test]
fn a_send_indication_takes_its_data_to_the_peer_and_the_port_it_names() {
    let mut h = Harness::new();
    for spec in [alice(), alice().tcp(), alice().ipv6()] {
        let client = ready(&mut h, spec, false);
        for peer in [PEER, "8.8.8.8:7"] {
            assert_eq!(h.send(client, addr(peer), b"hello").to_peer(), (addr(peer), b"hello".to_vec()));
        }
    }
    let client = ready_ipv6(&mut h, alice());
    assert_eq!(h.send(client, addr(PEER_IPV6), b"six").to_peer(), (addr(PEER_IPV6), b"six".to_vec()));
}

// RFC 8656 §11.3, §11.4 [8656-11.3-1, 8489-14-2]
#[test]
fn data_of_a_peer_without_channel_becomes_a_data_indication() {
    let mut h = Harness::new();
    for spec in [alice(), alice().tcp()] {
        let client = ready(&mut h, spec.clone(), false);
        for length in 0..9 {
            let data = vec![0xD5; length];
            let from = addr("8.8.8.8:4242");
            let went = h.from_peer(client, from, &data);
            assert_eq!(went.clone().to_client().len(), 36 + length.next_multiple_of(4), "padded, UDP as stream");
            assert_eq!(went.data_indication(), (from, data), "{length}");
        }
        let client = ready_ipv6(&mut h, spec);
        let went = h.from_peer(client, addr(PEER_IPV6), b"six");
        assert_eq!(went.clone().to_client().len(), 48 + 4);
        assert_eq!(went.data_indication(), (addr(PEER_IPV6), b"six".to_vec()));
    }
}

// RFC 8489 §6.1, RFC 8656 §11.3: each indication has a transaction id of its own
#[test]
fn data_indications_have_different_transaction_ids() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    let mut ids: Vec<Vec<u8>> =
        (0..100).map(|_| h.from_peer(client, addr(PEER), b"x").to_client()[8..20].to_vec()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}

// RFC 8656 §12.5, §12.7: ChannelData is padded on streams and not on UDP [8656-12.5-1, -2]
#[test]
fn channel_data_to_the_client_is_padded_on_streams_only() {
    let mut h = Harness::new();
    let (udp, tcp) = (ready(&mut h, alice(), true), ready(&mut h, alice().tcp(), true));
    for length in 0..9 {
        let data = vec![0x77; length];
        let bare = channel_data(CHANNEL, &data);
        let mut padded = bare.clone();
        padded.resize(bare.len().next_multiple_of(4), 0);
        assert_eq!(h.from_peer(udp, addr(PEER), &data).to_client(), bare, "{length}");
        assert_eq!(h.from_peer(tcp, addr(PEER), &data).to_client(), padded, "{length}");
    }
}

// RFC 8656 §12.6 [8656-12.6-6]
#[test]
fn channel_data_from_the_client_goes_to_the_peer_of_its_channel() {
    let mut h = Harness::new();
    for spec in [alice(), alice().tcp()] {
        let client = ready(&mut h, spec, true);
        assert_eq!(h.channel_data(client, CHANNEL, b"hello").to_peer(), (addr(PEER), b"hello".to_vec()));
        let mut padded = channel_data(CHANNEL, b"hello");
        padded.extend([1, 2, 3]);
        assert_eq!(h.from_client(client, &padded).to_peer().1, b"hello", "padding is no data, whatever it holds");
    }
}

// RFC 8656 §12.7: the channel is for one transport address; the permission for any port [8656-12.5-1]
#[test]
fn only_the_peer_of_a_channel_is_reported_on_it() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), true);
    assert_eq!(h.from_peer(client, addr("8.8.8.8:1001"), b"x").data_indication().0, addr("8.8.8.8:1001"));
    assert_eq!(h.send(client, addr(PEER), b"x").to_peer().0, addr(PEER), "Send still works beside a channel");
}

// RFC 8656 §11.2, §12.6: zero-length data passes, RFC 6263 §4.1 [8656-11.2-2, 8656-12.6-6]
#[test]
fn zero_length_data_passes_both_ways() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    assert_eq!(h.send(client, addr(PEER), b"").to_peer(), (addr(PEER), vec![]));
    assert_eq!(h.from_peer(client, addr(PEER), b"").data_indication(), (addr(PEER), vec![]));
    assert_eq!(h.bind(client, CHANNEL, addr(PEER)), 0);
    assert_eq!(h.channel_data(client, CHANNEL, b"").to_peer(), (addr(PEER), vec![]));
    assert_eq!(h.from_peer(client, addr(PEER), b"").to_client(), channel_data(CHANNEL, b""));
    let traffic = h.session(client).expect("alive").traffic;
    assert_eq!((traffic.to_peers.sent(), traffic.to_client.sent()), (amount(2, 0), amount(2, 0)));
}

// Datagrams up to 65,507 bytes pass whole; what the client's framing can't carry is dropped, never cut
#[test]
fn the_largest_datagrams_pass_whole_and_larger_ones_are_too_big() {
    // Client, channel, IPv6 peer; the largest payload towards the client.
    let cases = [
        (alice(), true, false, DATAGRAM_BYTES_MAX - 4),
        (alice(), false, false, 65_468),
        (alice(), false, true, 65_456),
        (alice().tcp(), true, false, DATAGRAM_BYTES_MAX),
        (alice().tcp(), false, false, DATAGRAM_BYTES_MAX),
        (alice().tcp(), false, true, 65_504),
    ];
    for (spec, channel, ipv6, largest) in cases {
        let mut h = Harness::new();
        let peer = addr(if ipv6 { PEER_IPV6 } else { PEER });
        let client = if ipv6 { ready_ipv6(&mut h, spec.clone()) } else { ready(&mut h, spec.clone(), channel) };
        let data: Vec<u8> = (0..DATAGRAM_BYTES_MAX).map(|n| n as u8).collect();
        let went = h.from_peer(client, peer, &data[..largest]);
        if channel {
            let bytes = went.to_client();
            assert_eq!(bytes[..4 + largest], channel_data(CHANNEL, &data[..largest]));
        } else {
            assert_eq!(went.data_indication(), (peer, data[..largest].to_vec()));
        }
        assert_eq!(h.drops(DropReason::TooBig), amount(0, 0));
        if largest < data.len() {
            assert_eq!(h.from_peer(client, peer, &data[..=largest]), Went::Dropped(DropReason::TooBig), "{spec:?}");
            assert_eq!(h.from_peer(client, peer, &data), Went::Dropped(DropReason::TooBig));
            assert_eq!(h.drops(DropReason::TooBig), amount(2, (largest + 1 + data.len()) as u64));
        }
    }
}

// From the client too: over a stream a whole 65,507-byte datagram goes out
#[test]
fn the_largest_datagrams_of_a_client_pass_whole() {
    let mut h = Harness::new();
    let data: Vec<u8> = (0..DATAGRAM_BYTES_MAX).map(|n| n as u8).collect();
    let tcp = ready(&mut h, alice().tcp(), true);
    assert_eq!(h.channel_data(tcp, CHANNEL, &data).to_peer().1, data);
    assert_eq!(h.send(tcp, addr(PEER), &data).to_peer().1, data);
    let udp = ready(&mut h, alice(), true);
    assert_eq!(h.channel_data(udp, CHANNEL, &data[4..]).to_peer().1, data[4..]);
    assert_eq!(h.send(udp, addr(PEER), &data[39..]).to_peer().1, data[39..]);
}

// RFC 8656 §11.2, §11.3, §9 [8656-9-4, 8656-11.2-3]
#[test]
fn data_without_permission_is_dropped_both_ways() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    let stranger = addr("8.8.4.4:1000");
    assert_eq!(h.send(client, stranger, b"123"), Went::Dropped(DropReason::NoPermission));
    assert_eq!(h.from_peer(client, stranger, b"12345"), Went::Dropped(DropReason::PeerNotPermitted));
    assert_eq!(h.drops(DropReason::NoPermission), amount(1, 3));
    assert_eq!(h.drops(DropReason::PeerNotPermitted), amount(1, 5));
}

// RFC 8656 §12.6 [8656-12.6-4]
#[test]
fn channel_data_on_an_unbound_channel_is_dropped() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), true);
    for number in [0x4000, 0x4ABB, 0x4ABD, 0x7FFE] {
        assert_eq!(h.channel_data(client, number, b"123"), Went::Dropped(DropReason::UnboundChannel));
    }
    assert_eq!(h.drops(DropReason::UnboundChannel), amount(4, 12));
}

// RFC 8656 §5: data without an allocation [8656-5-7]
#[test]
fn data_of_a_stranger_is_dropped() {
    let mut h = Harness::new();
    let stranger = h.client();
    lost(&mut h, stranger, &channel_data(CHANNEL, b"123"), DropReason::NoAllocation);
    let send = indication(SEND).peer(addr(PEER)).data(b"123").bytes([1; 12], None);
    lost(&mut h, stranger, &send, DropReason::NoAllocation);
}

// RFC 8656 §12.4: the length must not claim more than there is, nor the number another range
// [8656-12-1, 8656-12.6-1, -2]
#[test]
fn channel_data_that_lies_is_dropped() {
    let mut h = Harness::new();
    for spec in [alice(), alice().tcp()] {
        let client = ready(&mut h, spec, true);
        let mut lying = channel_data(CHANNEL, b"12345");
        lying[3] = 6;
        lost(&mut h, client, &lying, DropReason::BadChannelData);
        lying[2] = 0xFF;
        lost(&mut h, client, &lying, DropReason::BadChannelData);
        lost(&mut h, client, &[0x7F, 0xFF, 0, 0], DropReason::BadChannelData);
        for short in [&[0x40][..], &[0x4A, 0xBC], &[0x4A, 0xBC, 0]] {
            lost(&mut h, client, short, DropReason::BadChannelData);
        }
        for other in [&[0x80, 0, 0, 0][..], &[0x80; 20], &[0xFF], &[]] {
            lost(&mut h, client, other, DropReason::NotStun);
        }
    }
}

// RFC 8656 §11.2: both attributes, well-formed [8656-11.2-1]
#[test]
fn a_send_indication_without_peer_or_data_is_dropped() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    for message in [
        indication(SEND),
        indication(SEND).peer(addr(PEER)),
        indication(SEND).data(b"x"),
        indication(SEND).with(XOR_PEER_ADDRESS, &[0, 1, 0]).data(b"x"),
        indication(SEND).with(XOR_PEER_ADDRESS, &[0, 9, 0, 1, 1, 2, 3, 4]).data(b"x"),
        indication(SEND).peer(addr(PEER)).data(b"x").with(DONT_FRAGMENT, &[1]),
    ] {
        lost(&mut h, client, &message.bytes([1; 12], None), DropReason::BadSend);
    }
    let mut torn = indication(SEND).peer(addr(PEER)).data(b"12345678").bytes([1; 12], None);
    torn.truncate(torn.len() - 4);
    lost(&mut h, client, &torn, DropReason::Malformed);
}

// RFC 8489 §6.3.2: an indication with unknown comprehension-required attributes is discarded [8489-6.3.2-1]
#[test]
fn a_send_indication_with_an_unknown_required_attribute_is_dropped() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    let message = indication(SEND).peer(addr(PEER)).data(b"x");
    lost(&mut h, client, &message.clone().with(0x7777, b"").bytes([1; 12], None), DropReason::BadSend);
    assert_eq!(h.send_message(client, message.with(0x8777, b"")).to_peer().1, b"x");
}

// RFC 8489 §6.3, §14.7: where FINGERPRINT is there it must be right [8489-6.3-3]
#[test]
fn a_send_indication_with_a_wrong_fingerprint_is_dropped() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    let message = indication(SEND).peer(addr(PEER)).data(b"data").fingerprint();
    assert_eq!(h.send_message(client, message.clone()).to_peer().1, b"data");
    let mut bytes = message.bytes([1; 12], None);
    *bytes.last_mut().expect("bytes") ^= 1;
    lost(&mut h, client, &bytes, DropReason::BadFingerprint);
}

// RFC 8656 §11.2: a peer of another family can't be reached
#[test]
fn a_send_indication_to_the_other_family_is_dropped() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    assert_eq!(h.send(client, addr(PEER_IPV6), b"x"), Went::Dropped(DropReason::PeerFamily));
    let six = ready_ipv6(&mut h, alice());
    assert_eq!(h.send(six, addr(PEER), b"x"), Went::Dropped(DropReason::PeerFamily));
}

// Only indications take the data lane: a Send request is no method that we speak
#[test]
fn a_send_request_relays_nothing() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    let bytes = indication(SEND).class(REQUEST).peer(addr(PEER)).data(b"x").bytes([1; 12], None);
    lost(&mut h, client, &bytes, DropReason::NotStun);
    h.silent(client, &bytes, DropReason::UnknownMethod);
}

// RFC 8656 §11.2, §14: DONT-FRAGMENT sets DF, and nothing else does; DSCP and ECN go along [8656-14-1, -3]
#[test]
fn dont_fragment_of_a_send_indication_goes_into_the_meta() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), true);
    let message = indication(SEND).peer(addr(PEER)).data(b"x");
    assert!(h.send_message(client, message.clone().dont_fragment()).meta().dont_fragment);
    assert!(!h.send_message(client, message).meta().dont_fragment);
    let df = PacketMeta { traffic_class: 0xBA, dont_fragment: true };
    let went = h.from_client_with(client, df, &channel_data(CHANNEL, b"x"));
    assert_eq!(went.meta(), PacketMeta { dont_fragment: false, ..df }, "the client's own DF is no wish");
    let went = h.from_peer_with(client, addr(PEER), df, b"x");
    assert_eq!(went.meta().traffic_class, 0xBA, "DSCP and ECN go along");
}

// RFC 8656 §13.1 to §13.3, §15: where a datagram is translated the attribute is ignored; what comes by TCP is not
// [8656-13.1-1, 8656-13.2-4, 8656-13.3-2, 8656-15-3]
#[test]
fn dont_fragment_is_ignored_where_datagrams_change_family_or_are_of_ipv6() {
    let mut h = Harness::new();
    let ipv4 = |h: &mut Harness, spec| (ready(h, spec, false), addr(PEER));
    let ipv6 = |h: &mut Harness, spec| (ready_ipv6(h, spec), addr(PEER_IPV6));
    for ((client, peer), is_set) in [
        (ipv4(&mut h, alice()), true),
        (ipv6(&mut h, alice()), false),
        (ipv4(&mut h, alice().ipv6()), false),
        (ipv6(&mut h, alice().ipv6()), false),
        (ipv4(&mut h, alice().tcp()), true),
        (ipv6(&mut h, alice().tcp()), true),
        (ipv4(&mut h, alice().ipv6().tcp()), true),
        (ipv6(&mut h, alice().ipv6().tcp()), true),
    ] {
        let went = h.send_message(client, indication(SEND).peer(peer).data(b"x").dont_fragment());
        assert_eq!((went.clone().to_peer().1, went.meta().dont_fragment), (b"x".to_vec(), is_set), "{peer}");
    }
}

// product.md, own addresses: data passes only to and from a port that is a relayed port at that moment
// [8656-11.2-5]
#[test]
fn own_addresses_are_reached_on_relayed_ports_only() {
    let mut h = Harness::new();
    let (one, two) = (ready(&mut h, alice(), false), ready(&mut h, alice(), false));
    let [first, second]: [SocketAddr; 2] = [one, two].map(|client| h.session(client).expect("alive").relayed.into());
    assert_eq!(h.permit(one, &[second]), 0);
    assert_eq!(h.permit(two, &[first]), 0);
    assert_eq!(h.send(one, second, b"hi").to_peer(), (second, b"hi".to_vec()));
    assert_eq!(h.from_peer(two, first, b"hi").data_indication(), (first, b"hi".to_vec()));
    for port in [22, 3478, 8080, 60_000] {
        let other = SocketAddr::new(second.ip(), port);
        assert_eq!(h.send(one, other, b"hi"), Went::Dropped(DropReason::NotRelayedPort));
        assert_eq!(h.from_peer(one, other, b"hi"), Went::Dropped(DropReason::NotRelayedPort));
    }
    h.refresh(two, 0);
    assert_eq!(h.send(one, second, b"hi"), Went::Dropped(DropReason::NotRelayedPort), "at that moment");
}

// product.md: our listeners are never peers
#[test]
fn listeners_are_no_peers_even_on_opened_addresses() {
    let mut h = Harness::with(|settings| settings.peers = policy(&["127.0.0.0/8"], &[]));
    let client = h.client();
    h.allocate(client);
    assert_eq!(h.permit(client, &[addr("127.0.0.1:1")]), 0);
    assert_eq!(h.send(client, addr("127.0.0.1:9000"), b"x").to_peer().0, addr("127.0.0.1:9000"));
    for listener in ["127.0.0.1:3478", "127.0.0.1:8080"] {
        assert_eq!(h.send(client, addr(listener), b"x"), Went::Dropped(DropReason::PeerIsListener));
        assert_eq!(h.from_peer(client, addr(listener), b"x"), Went::Dropped(DropReason::PeerIsListener));
    }
}

// ---- accounts: what came in is what went out plus what was dropped ----

const SEND_FAILURES: [DropReason; 10] = [
    DropReason::Unreachable,
    DropReason::Refused,
    DropReason::Forbidden,
    DropReason::MessageSize,
    DropReason::NoBuffers,
    DropReason::SendFailed,
    DropReason::SlowClient,
    DropReason::StreamClosed,
    DropReason::InboxFull,
    DropReason::TooBig,
];

// A failed send is a lost datagram and a counter, never the end of an allocation
#[test]
fn what_was_not_sent_is_taken_back_and_counted_by_its_reason() {
    for why in SEND_FAILURES {
        let mut h = Harness::new();
        let client = ready(&mut h, alice(), true);
        for _ in 0..5 {
            h.channel_data(client, CHANNEL, b"1234567890").to_peer();
            h.from_peer(client, addr(PEER), b"1234").to_client();
        }
        h.not_sent(client, Direction::ToPeer, 2, 20, why);
        h.not_sent(client, Direction::ToClient, 1, 4, why);
        assert_eq!(h.drops(why), amount(3, 24));
        let traffic = h.session(client).expect("the allocation lives on").traffic;
        assert_eq!(traffic.to_peers, Flow { received: amount(5, 50), dropped: amount(2, 20) });
        assert_eq!(traffic.to_client, Flow { received: amount(5, 20), dropped: amount(1, 4) });
        assert_eq!((traffic.to_peers.sent(), traffic.to_client.sent()), (amount(3, 30), amount(4, 16)));
        assert_eq!(h.counters_of(client).to_peers.get(), amount(3, 30));
        assert_eq!(h.counters_of(client).to_clients.get(), amount(4, 16));
        assert_eq!(h.counters_of(client).from_clients.get(), amount(5, 50));
        assert_eq!(h.channel_data(client, CHANNEL, b"on").to_peer().1, b"on");
    }
}

// The totals stay exact when the news comes after the end, and no other user is charged
#[test]
fn what_was_not_sent_is_counted_after_the_allocation_ended_too() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice().tcp(), true);
    h.from_peer(client, addr(PEER), b"1234").to_client();
    h.channel_data(client, CHANNEL, b"12").to_peer();
    h.disconnect(client);
    let next = ready(&mut h, alice(), true);
    h.not_sent(client, Direction::ToClient, 1, 4, DropReason::StreamClosed);
    h.not_sent(client, Direction::ToPeer, 1, 2, DropReason::SendFailed);
    let counters = h.counters_of(client);
    assert_eq!((counters.to_clients.get(), counters.to_peers.get()), (amount(0, 0), amount(0, 0)));
    assert_eq!(h.drops(DropReason::StreamClosed), amount(1, 4));
    let session = h.session(next).expect("alive");
    assert_eq!(session.traffic, Default::default(), "the slot is reused, its account is not");
}

// Every payload that enters an allocation is counted once
#[test]
fn received_equals_sent_plus_dropped_for_each_way_and_in_total() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), true);
    let stranger = addr("8.8.4.4:1");
    h.channel_data(client, CHANNEL, &[0; 100]);
    h.channel_data(client, 0x4001, &[0; 10]);
    h.send(client, addr(PEER), &[0; 50]);
    h.send(client, stranger, &[0; 5]);
    h.send(client, addr(PEER_IPV6), &[0; 3]);
    h.from_peer(client, addr(PEER), &[0; 200]);
    h.from_peer(client, stranger, &[0; 20]);
    h.from_peer(client, addr(PEER), &vec![0; 65_507]);
    let traffic = h.session(client).expect("alive").traffic;
    assert_eq!(traffic.to_peers, Flow { received: amount(5, 168), dropped: amount(3, 18) });
    assert_eq!(traffic.to_client, Flow { received: amount(3, 65_727), dropped: amount(2, 65_527) });
    let counters = h.counters_of(client);
    assert_eq!((counters.from_clients.get(), counters.to_peers.get()), (amount(5, 168), amount(2, 150)));
    assert_eq!((counters.from_peers.get(), counters.to_clients.get()), (amount(3, 65_727), amount(1, 200)));
}

// Attributes after MESSAGE-INTEGRITY do not count in indications either
// [8489-9-1]
#[test]
fn a_peer_or_data_after_message_integrity_does_not_count() {
    let mut h = Harness::new();
    let client = ready(&mut h, alice(), false);
    let signature = h.signature(client);
    let late = indication(SEND).peer(addr(PEER)).after_integrity(DATA, b"x");
    lost(&mut h, client, &late.bytes([1; 12], Some(&signature)), DropReason::BadSend);
    let both = indication(SEND).peer(addr(PEER)).data(b"first").after_integrity(DATA, b"second");
    assert_eq!(h.from_client(client, &both.bytes([1; 12], Some(&signature))).to_peer().1, b"first");
}
