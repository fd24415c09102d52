//! RFC 6062: TCP allocations, and connections to their peers.

use std::net::SocketAddr;

use test_support::harness::stun::{
    ALLOCATE, CHANNEL_BIND, CONNECT, CONNECTION_ATTEMPT, CONNECTION_BIND, CONNECTION_ID, INDICATION, Outgoing,
    RESERVATION_TOKEN, XOR_PEER_ADDRESS, request,
};
use test_support::harness::{Client, Harness, Spec, Went, addr, alice, carol, policy, user};
use throughway::protocol::border::{Carry, ConnectRefused, RelayRefused, RelayRequest, Selector};
use throughway::protocol::connection::ConnectionResult;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::settings::{Settings, TcpRelaySettings};
use throughway::wire::attribute::ConnectionId;

const PEER: &str = "81.2.69.142:8000";
const OTHER: &str = "81.2.69.142:8001";

fn on(settings: &mut Settings) {
    settings.tcp.is_on = true;
    settings.limits.requests_per_allocation = None;
}

fn tcp() -> Outgoing {
    request(ALLOCATE).transport(6)
}

fn with_allocation() -> (Harness, Client, SocketAddr) {
    let mut h = Harness::with(on);
    let client = h.add(alice().tcp());
    let relayed = h.allocate_tcp(client);
    (h, client, relayed)
}

/// A stream of the same user, for data.
fn data_stream(h: &mut Harness) -> Client {
    h.add(alice().tcp())
}

fn count(h: &Harness, client: Client, result: ConnectionResult) -> u64 {
    h.counters_of(client).connections[result as usize].get()
}

/// A connection to a peer that is bound: its id, and the stream that carries it.
fn bound(h: &mut Harness, client: Client, peer: &str) -> (ConnectionId, Client) {
    let connecting = h.connect(client, addr(peer));
    h.connected(connecting, Ok(()));
    assert_eq!(h.inbox(client).len(), 1);
    let data = data_stream(h);
    assert_eq!(h.ask(data, request(CONNECTION_BIND).connection(connecting.id.0)).code(), 0);
    (connecting.id, data)
}

// [6062-5.1-1]
#[test]
fn a_tcp_allocation_is_had_only_where_it_is_relayed() {
    let mut h = Harness::with(|_| {});
    let client = h.add(alice().tcp());
    h.refuses(client, tcp(), 442, RejectReason::UnsupportedTransport);
    h.reconfigure(on);
    h.refuses(client, request(ALLOCATE).transport(132), 442, RejectReason::UnsupportedTransport);
    h.allocate_tcp(client);
    assert!(matches!(h.opens.last(), Some(RelayRequest::Tcp { .. })));
}

// [6062-5.1-2]
#[test]
fn an_allocation_of_udp_is_as_ever() {
    let mut h = Harness::with(on);
    let client = h.add(alice().tcp());
    h.allocate(client);
    assert!(matches!(h.opens.last(), Some(RelayRequest::Fresh { .. })));
    h.refuses(client, request(CONNECT).peer(addr(PEER)), 437, RejectReason::NotTcpAllocation);
}

// [6062-5.1-4]
#[test]
fn a_tcp_allocation_over_udp_is_refused() {
    let mut h = Harness::with(on);
    let client = h.client();
    h.refuses(client, tcp(), 400, RejectReason::NotStream);
    assert!(h.opens.is_empty());
}

// [6062-5.1-5]
#[test]
fn a_tcp_allocation_has_one_port_and_no_datagrams() {
    let mut h = Harness::with(on);
    let client = h.add(alice().tcp());
    for message in [
        tcp().dont_fragment(),
        tcp().even_port(false),
        tcp().even_port(true),
        tcp().token(&[1; 8]),
        tcp().with(0x8000, &[2, 0, 0, 0]),
    ] {
        h.refuses(client, message, 400, RejectReason::Combination);
    }
    h.refuses(client, tcp().with(0x0018, &[]), 400, RejectReason::BadAttribute);
    h.refuses(client, tcp().family(9), 440, RejectReason::FamilyUnsupported);
    assert!(h.opens.is_empty());
}

// [6062-5.1-6, -7, -8]
#[test]
fn a_tcp_allocation_has_a_relayed_address_of_tcp_of_the_family_asked_for() {
    let mut h = Harness::with(on);
    for (family, is_ipv6) in [(None, false), (Some(1), false), (Some(2), true)] {
        let client = h.add(alice().tcp());
        let message = family.map_or_else(tcp, |family| tcp().family(family));
        let reply = h.ask(client, message.lifetime(700));
        assert_eq!((reply.code(), reply.lifetime()), (0, 700));
        assert_eq!(reply.relayed().is_ipv6(), is_ipv6);
        assert!(!reply.has(RESERVATION_TOKEN));
        assert!(matches!(h.opens.last(), Some(RelayRequest::Tcp { .. })));
        assert!(h.peer_connects(client, addr(PEER)).is_none(), "it is there, but has no permission");
    }
    h.ports.refuse = Some(RelayRefused::NoPort);
    let client = h.add(alice().tcp());
    h.refuses(client, tcp(), 508, RejectReason::NoPort);
}

#[test]
fn a_tcp_allocation_knows_no_datagrams() {
    let (mut h, client, _) = with_allocation();
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    let channel = request(CHANNEL_BIND).channel(0x4001).peer(addr(PEER));
    h.refuses(client, channel, 400, RejectReason::TcpAllocation);
    assert_eq!(h.send(client, addr(PEER), b"x"), Went::Dropped(DropReason::TcpAllocation));
    assert_eq!(h.channel_data(client, 0x4001, b"x"), Went::Dropped(DropReason::UnboundChannel));
}

// [6062-5.2-1]
#[test]
fn connect_needs_a_tcp_allocation_and_its_owner() {
    let mut h = Harness::with(on);
    let client = h.add(alice().tcp());
    h.refuses(client, request(CONNECT).peer(addr(PEER)), 437, RejectReason::NoAllocation);
    h.allocate_tcp(client);
    h.rename(client, carol());
    h.refuses(client, request(CONNECT).peer(addr(PEER)), 441, RejectReason::WrongUser);
    assert!(h.connects.is_empty());
}

// [6062-5.2-2, -3]
#[test]
fn a_peer_has_one_connection_until_that_is_over() {
    let (mut h, client, _) = with_allocation();
    let twice = |h: &mut Harness| {
        h.refuses(client, request(CONNECT).peer(addr(PEER)), 446, RejectReason::ConnectionExists);
    };
    let connecting = h.connect(client, addr(PEER));
    twice(&mut h);
    h.connected(connecting, Ok(()));
    h.inbox(client);
    twice(&mut h);
    let data = data_stream(&mut h);
    h.ask(data, request(CONNECTION_BIND).connection(connecting.id.0));
    twice(&mut h);
    // Another port of it is another peer.
    h.connect(client, addr(OTHER));
    h.connection_ended(client, connecting.id);
    h.connect(client, addr(PEER));
}

// [6062-5.2-4]
#[test]
fn connect_names_one_peer() {
    let (mut h, client, _) = with_allocation();
    h.refuses(client, request(CONNECT), 400, RejectReason::MissingAttribute);
    for value in [&[][..], &[0, 1, 0, 1], &[0, 9, 0, 1, 1, 1, 1, 1], &[0, 1, 0, 1, 1, 1, 1, 1, 1]] {
        h.refuses(client, request(CONNECT).with(XOR_PEER_ADDRESS, value), 400, RejectReason::BadAttribute);
    }
    // The first one counts.
    let bytes = h.signed(client, &request(CONNECT).peer(addr(PEER)).peer(addr(OTHER)));
    h.tell(client, &bytes);
    assert_eq!(h.connects[0].peer, addr(PEER));
    // What follows MESSAGE-INTEGRITY does not.
    h.refuses(client, request(CONNECT).peer_after_integrity(addr(OTHER)), 400, RejectReason::MissingAttribute);
}

// [6062-5.2-5]
#[test]
fn connect_reaches_no_forbidden_peer() {
    let mut h = Harness::with(|settings| {
        on(settings);
        settings.peers = policy(&["10.1.0.0/16"], &["81.2.69.200/32"]);
    });
    let client = h.add(alice().tcp());
    let relayed = h.allocate_tcp(client);
    let v6 = h.add(alice().tcp());
    assert_eq!(h.ask(v6, tcp().family(2)).code(), 0);
    let udp = h.add(alice().tcp());
    let of_udp = h.allocate(udp);
    for (peer, reason) in [
        ("81.2.69.142:0", RejectReason::PeerPort),
        ("81.2.69.142:80", RejectReason::PeerLowPort),
        ("81.2.69.142:1023", RejectReason::PeerLowPort),
        ("81.2.69.200:8000", RejectReason::PeerDenied),
        ("10.2.0.1:8000", RejectReason::PeerDenied),
        ("127.0.0.1:8000", RejectReason::PeerDenied),
        ("169.254.169.254:8000", RejectReason::PeerDenied),
        ("0.0.0.0:8000", RejectReason::PeerDenied),
        ("255.255.255.255:8000", RejectReason::PeerDenied),
        ("9.9.9.1:3478", RejectReason::PeerDenied),
        // Own addresses: no port but relayed ones of TCP, and not one's own.
        ("9.9.9.9:8000", RejectReason::PeerNotRelayed),
        (&of_udp.to_string(), RejectReason::PeerNotRelayed),
        (&relayed.to_string(), RejectReason::PeerNotRelayed),
    ] {
        h.refuses(client, request(CONNECT).peer(addr(peer)), 403, reason);
    }
    for peer in
        ["[::ffff:10.2.0.1]:8000", "[::1]:8000", "[fd00::1]:8000", "[64:ff9b::7f00:1]:8000", "[2002:a02:1::]:8000"]
    {
        h.refuses(v6, request(CONNECT).peer(addr(peer)), 403, RejectReason::PeerDenied);
    }
    h.refuses(client, request(CONNECT).peer(addr("[2a00:1450::5]:8000")), 443, RejectReason::PeerFamily);
    assert!(h.connects.is_empty(), "nothing was begun");
    h.connect(client, addr("10.1.0.1:8000"));
    h.connect(v6, addr("[2a00:1450::5]:1024"));
    h.reconfigure(|settings| settings.tcp.low_ports = true);
    h.connect(client, addr("81.2.69.142:80"));
}

/// Two clients of this server reach each other, as they do by UDP.
#[test]
fn the_relayed_address_of_another_tcp_allocation_is_a_peer() {
    let (mut h, client, from) = with_allocation();
    let other = h.add(user("bob").tcp());
    let relayed = h.allocate_tcp(other);
    h.connect(client, relayed);
    assert!(h.peer_connects(other, from).is_none(), "without a permission it is closed");
    assert_eq!(h.permit(other, &[from]), 0);
    assert!(h.peer_connects(other, addr("9.9.9.9:7")).is_none(), "no relayed port");
    assert!(h.peer_connects(other, from).is_some());
}

// [6062-5.2-6, -9, -10]
#[test]
fn the_answer_to_connect_comes_when_the_peer_has_accepted_and_names_the_connection() {
    let (mut h, client, relayed) = with_allocation();
    let mut ids = Vec::new();
    for port in 2_000..2_040 {
        let peer = SocketAddr::new([81, 2, 69, 142].into(), port);
        let connecting = h.connect(client, peer);
        assert_eq!((connecting.relayed, connecting.peer), (relayed, peer));
        h.connected(connecting, Ok(()));
        let replies = h.inbox(client);
        let [reply] = &replies[..] else { panic!("one answer") };
        assert_eq!((reply.method, reply.code(), reply.connection()), (CONNECT, 0, connecting.id.0));
        assert!(reply.is_signed_with(&h.key_of(client)));
        ids.push(reply.connection());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 40, "each has a name of its own");
    assert_eq!(count(&h, client, ConnectionResult::Connected), 40);
}

// [6062-5.2-7]
#[test]
fn a_peer_that_does_not_accept_is_447() {
    let (mut h, client, _) = with_allocation();
    for (refused, code) in [(ConnectRefused::Failed, 447), (ConnectRefused::NoFiles, 508)] {
        let connecting = h.connect(client, addr(PEER));
        h.connected(connecting, Err(refused));
        let replies = h.inbox(client);
        assert_eq!(replies.iter().map(|reply| reply.code()).collect::<Vec<_>>(), [code]);
        assert!(replies[0].is_signed_with(&h.key_of(client)));
    }
    assert!(h.closed_connections.is_empty(), "there is nothing to close");
    h.connect(client, addr(PEER));
}

// [6062-5.2-7, -8]
#[test]
fn a_peer_has_30_seconds_to_accept() {
    let (mut h, client, _) = with_allocation();
    let connecting = h.connect(client, addr(PEER));
    h.advance_ms(29_999);
    assert_eq!(h.inbox(client), []);
    h.advance_ms(1);
    assert_eq!(h.inbox(client).iter().map(|reply| reply.code()).collect::<Vec<_>>(), [447]);
    assert_eq!(h.closed_connections, [connecting.id]);
    // What the kernel says after that is too late.
    h.connected(connecting, Ok(()));
    assert_eq!(h.inbox(client), []);
}

// [6062-5.2-11, 6062-5.3-5]
#[test]
fn a_connection_has_30_seconds_to_be_bound() {
    let (mut h, client, _) = with_allocation();
    let connecting = h.connect(client, addr(PEER));
    h.advance(20);
    h.connected(connecting, Ok(()));
    h.inbox(client);
    h.permit(client, &[addr(OTHER)]);
    let incoming = h.peer_connects(client, addr(OTHER)).unwrap();
    h.inbox(client);
    h.advance_ms(29_999);
    assert!(h.closed_connections.is_empty());
    let (late, data) = (data_stream(&mut h), data_stream(&mut h));
    h.nonce_of(late);
    assert_eq!(h.ask(data, request(CONNECTION_BIND).connection(incoming.0)).code(), 0);
    h.advance_ms(1);
    assert_eq!(h.closed_connections, [connecting.id]);
    let bind = request(CONNECTION_BIND).connection(connecting.id.0);
    h.refuses(late, bind, 400, RejectReason::BadConnection);
    h.advance(100);
    assert_eq!(h.closed_connections.len(), 1, "what is bound stays");
    assert_eq!(count(&h, client, ConnectionResult::Unbound), 1);
}

// [6062-5.3-1, -3, -4]
#[test]
fn a_peer_with_a_permission_is_announced_and_any_other_is_closed() {
    let (mut h, client, _) = with_allocation();
    assert_eq!(h.peer_connects(client, addr(PEER)), None);
    assert_eq!(h.inbox(client), []);
    assert_eq!(count(&h, client, ConnectionResult::NotPermitted), 1);
    h.permit(client, &[addr("81.2.69.142:1")]);
    let id = h.peer_connects(client, addr(PEER)).unwrap();
    let told = h.inbox(client);
    let [attempt] = &told[..] else { panic!("one indication") };
    assert_eq!((attempt.method, attempt.class), (CONNECTION_ATTEMPT, INDICATION));
    assert_eq!(attempt.types(), [CONNECTION_ID, XOR_PEER_ADDRESS]);
    assert_eq!((attempt.connection(), attempt.address(XOR_PEER_ADDRESS)), (id.0, addr(PEER)));
    h.refuses(client, request(CONNECT).peer(addr(PEER)), 446, RejectReason::ConnectionExists);
    h.advance(300);
    assert_eq!(h.peer_connects(client, addr(OTHER)), None, "its permission is over");
}

// [6062-5.4-1]
#[test]
fn connection_bind_comes_over_a_stream_of_its_own() {
    let (mut h, client, _) = with_allocation();
    let connecting = h.connect(client, addr(PEER));
    h.connected(connecting, Ok(()));
    h.inbox(client);
    let bind = || request(CONNECTION_BIND).connection(connecting.id.0);
    let worker = connecting.worker;
    let datagram = h.add(alice().on_worker(worker));
    h.refuses(datagram, bind(), 400, RejectReason::NotStream);
    h.refuses(client, bind(), 437, RejectReason::AllocationExists);
    assert!(h.bound.is_empty());
}

// [6062-5.4-2]
#[test]
fn connection_bind_names_a_connection_of_its_user_that_waits() {
    let (mut h, client, _) = with_allocation();
    let connecting = h.connect(client, addr(PEER));
    let data = data_stream(&mut h);
    let bind = |id: u32| request(CONNECTION_BIND).connection(id);
    // Not there yet.
    h.refuses(data, bind(connecting.id.0), 400, RejectReason::BadConnection);
    h.connected(connecting, Ok(()));
    h.inbox(client);
    h.refuses(data, request(CONNECTION_BIND), 400, RejectReason::MissingAttribute);
    h.refuses(data, request(CONNECTION_BIND).with(CONNECTION_ID, &[1, 2, 3]), 400, RejectReason::BadAttribute);
    h.refuses(data, bind(connecting.id.0 ^ 1), 400, RejectReason::BadConnection);
    for other in [carol(), user("bob")] {
        let stranger = h.add(other.tcp());
        h.refuses(stranger, bind(connecting.id.0), 400, RejectReason::BadConnection);
    }
    assert_eq!(h.ask(data, bind(connecting.id.0)).code(), 0);
    assert_eq!(h.bound, [(connecting.id, h.via(data))]);
    let again = data_stream(&mut h);
    h.refuses(again, bind(connecting.id.0), 400, RejectReason::BadConnection);
}

/// The client has a nonce already, and many use it again: the connection that it names proves who it was given to.
#[test]
fn connection_bind_may_use_the_nonce_of_the_control_connection() {
    let (mut h, client, _) = with_allocation();
    let connecting = h.connect(client, addr(PEER));
    h.connected(connecting, Ok(()));
    h.inbox(client);
    let signature = h.signature(client);
    let data = h.add(alice().tcp());
    // For anything else it is another client's nonce.
    assert_eq!(h.ask_with(data, &signature, tcp()).code(), 438);
    let other = h.add(carol().tcp());
    let mut of_other = h.signature(other);
    of_other.nonce.clone_from(&signature.nonce);
    let bind = || request(CONNECTION_BIND).connection(connecting.id.0);
    assert_eq!(
        h.ask_with(other, &of_other, bind()).code(),
        400,
        "who proves to be another is told as little as before"
    );
    let mut made_up = signature.clone();
    made_up.nonce = Some(b"made up".to_vec());
    assert_eq!(h.ask_with(data, &made_up, bind()).code(), 438);
    assert_eq!(h.ask_with(data, &signature, bind()).code(), 0);
}

// [6062-5.4-3, -4]
#[test]
fn what_is_carried_is_counted_to_the_byte() {
    let (mut h, client, _) = with_allocation();
    let (id, _) = bound(&mut h, client, PEER);
    assert_eq!(h.carry(client, id, Direction::ToPeer, &[1; 1000]), Carry::Send);
    assert_eq!(h.carry(client, id, Direction::ToPeer, &[1; 7]), Carry::Send);
    assert_eq!(h.carry(client, id, Direction::ToClient, &[1; 50_000]), Carry::Send);
    h.not_sent(client, Direction::ToPeer, 0, 3, DropReason::StreamClosed);
    let record = h.session(client).unwrap();
    assert_eq!(record.traffic.to_peers.sent().bytes, 1004);
    assert_eq!(record.traffic.to_client.sent().bytes, 50_000);
    assert_eq!(h.carry(client, ConnectionId(5), Direction::ToPeer, b"x"), Carry::Stop);
}

#[test]
fn limits_hold_bytes_back_and_a_spent_budget_ends_the_allocation() {
    let mut h = Harness::with(|settings| {
        on(settings);
        settings.limits.user.bits_per_second = Some(80_000);
        settings.limits.bytes_per_credential = Some(30_000);
    });
    let client = h.add(user("bob").tcp());
    h.allocate_tcp(client);
    let connecting = h.connect(client, addr(PEER));
    h.connected(connecting, Ok(()));
    h.inbox(client);
    let data = h.add(user("bob").tcp());
    assert_eq!(h.ask(data, request(CONNECTION_BIND).connection(connecting.id.0)).code(), 0);
    let carry = |h: &mut Harness, bytes: usize| h.carry(client, connecting.id, Direction::ToPeer, &vec![0; bytes]);
    // A second's worth at once, then 10,000 bytes a second.
    assert_eq!(carry(&mut h, 9_000), Carry::Send);
    assert_eq!(carry(&mut h, 9_000), Carry::Wait);
    assert_eq!(h.session(client).unwrap().traffic.to_peers.received.bytes, 9_000, "what waits is not counted");
    h.advance(1);
    assert_eq!(carry(&mut h, 9_000), Carry::Send);
    h.advance(1);
    assert_eq!(carry(&mut h, 9_000), Carry::Send);
    h.advance(1);
    assert_eq!(carry(&mut h, 9_000), Carry::Stop);
    h.advance(0);
    assert!(!h.is_alive(client));
    assert_eq!(h.closed_connections, [connecting.id]);
    assert_eq!(h.ended[0].reason, Some(EndReason::Budget));
}

// [6062-5.5-1]
#[test]
fn the_end_of_the_allocation_closes_its_connections_and_no_others() {
    type Ends = fn(&mut Harness, Client);
    // Whether the other allocation ends as well.
    let ends: [(Ends, bool); 4] = [
        (|h, client| assert_eq!(h.refresh(client, 0).code(), 0), false),
        (|h, _| h.advance(601), true),
        (|h, client| h.disconnect(client), false),
        (|h, _| h.close(&Selector::TcpAllocations, EndReason::Kicked), true),
    ];
    for (at, (end, of_both)) in ends.into_iter().enumerate() {
        let (mut h, client, _) = with_allocation();
        let other = h.add(user("bob").tcp());
        h.allocate_tcp(other);
        h.permit(client, &[addr(PEER)]);
        let (one, _) = bound(&mut h, client, "81.2.69.1:9000");
        let two = h.connect(client, addr(OTHER)).id;
        let three = h.peer_connects(client, addr(PEER)).unwrap();
        let foreign = h.connect(other, addr(PEER)).id;
        h.inbox(client);
        let sorted = |mut ids: Vec<ConnectionId>| {
            ids.sort_unstable();
            ids
        };
        let closed = |h: &Harness| sorted(h.closed_connections.clone());
        let (own, all) = (sorted(vec![one, two, three]), sorted(vec![one, two, three, foreign]));
        end(&mut h, client);
        assert!(!h.is_alive(client));
        assert_eq!(h.is_alive(other), !of_both);
        assert_eq!(&closed(&h), if of_both { &all } else { &own }, "ending {at}");
        h.disconnect(other);
        h.disconnect(client);
        h.advance(1_000);
        assert_eq!(closed(&h), all, "each once, ending {at}");
        assert_eq!(h.leftovers(), 0, "nothing stays behind");
    }
}

// [6062-5.5-2, -3]
#[test]
fn a_connection_that_has_ended_frees_its_peer_and_its_place() {
    let mut h = Harness::with(|settings| {
        on(settings);
        settings.limits.connections_per_allocation = 2;
    });
    let client = h.add(alice().tcp());
    h.allocate_tcp(client);
    let (one, _) = bound(&mut h, client, PEER);
    let two = h.connect(client, addr(OTHER));
    let three = "81.2.69.9:8000";
    h.refuses(client, request(CONNECT).peer(addr(three)), 508, RejectReason::ConnectionLimit);
    h.permit(client, &[addr(three)]);
    assert_eq!(h.peer_connects(client, addr(three)), None, "for peers that come as well");
    assert_eq!(count(&h, client, ConnectionResult::Limit), 1);
    h.connection_ended(client, one);
    assert!(h.peer_connects(client, addr(three)).is_some());
    h.connected(two, Err(ConnectRefused::Failed));
    h.inbox(client);
    h.connect(client, addr(PEER));
    assert_eq!(count(&h, client, ConnectionResult::Ended), 1);
}

#[test]
fn a_new_policy_closes_what_it_forbids() {
    let (mut h, client, _) = with_allocation();
    let (kept, _) = bound(&mut h, client, "81.2.70.1:8000");
    let (denied, _) = bound(&mut h, client, PEER);
    h.reconfigure(|settings| settings.peers = policy(&[], &["81.2.69.0/24"]));
    assert_eq!(h.closed_connections, [denied]);
    assert_eq!(h.carry(client, kept, Direction::ToPeer, b"x"), Carry::Send);
    // Without relay.tcp what lives goes on, as with every other key.
    h.reconfigure(|settings| settings.tcp = TcpRelaySettings::default());
    assert_eq!(h.carry(client, kept, Direction::ToPeer, b"x"), Carry::Send);
    let new = h.add(alice().tcp());
    h.refuses(new, tcp(), 442, RejectReason::UnsupportedTransport);
}

// From which port a peer comes is its own affair, also when policies are judged again.
#[test]
fn a_peer_from_a_low_port_stays_through_a_reload() {
    let (mut h, client, _) = with_allocation();
    h.permit(client, &[addr(PEER)]);
    let from = SocketAddr::new(addr(PEER).ip(), 1023);
    let id = h.peer_connects(client, from).unwrap();
    h.inbox(client);
    h.reconfigure(|settings| settings.peers = policy(&[], &["81.2.70.0/24"]));
    assert_eq!(h.closed_connections, []);
    h.reconfigure(|settings| settings.peers = policy(&[], &["81.2.69.0/24"]));
    assert_eq!(h.closed_connections, [id]);
}

#[test]
fn an_expired_credential_begins_no_connection_where_that_is_asked_for() {
    use throughway::protocol::settings::OnExpiry;
    let mut h = Harness::with(|settings| {
        on(settings);
        settings.auth.on_expiry = OnExpiry::DenyNew;
        settings.default_lifetime = 3600;
        settings.auth.nonce_lifetime = 10_000;
    });
    let client = h.add(user("bob").tcp());
    h.allocate_tcp(client);
    h.permit(client, &[addr(PEER)]);
    h.advance(3_500);
    h.refresh(client, 3600);
    assert_eq!(h.permit(client, &[addr(PEER)]), 0);
    h.advance(150);
    h.refuses(client, request(CONNECT).peer(addr("81.2.70.1:8000")), 403, RejectReason::CredentialExpired);
    h.connect(client, addr(PEER));
}

#[test]
fn another_process_takes_connections_over_at_every_stage() {
    for early in [false, true] {
        let (mut h, client, _) = with_allocation();
        h.permit(client, &[addr(PEER)]);
        let (bound, data) = bound(&mut h, client, "81.2.70.1:8000");
        let connecting = h.connect(client, addr(OTHER));
        let waiting = h.peer_connects(client, addr(PEER)).unwrap();
        h.inbox(client);
        if early {
            h.hand_over_early(1, |_| {})
        } else {
            h.hand_over()
        }
        assert_eq!(h.carry(client, bound, Direction::ToClient, b"x"), Carry::Send);
        h.connected(connecting, Ok(()));
        let replies = h.inbox(client);
        assert_eq!((replies.len(), replies[0].code(), replies[0].connection()), (1, 0, connecting.id.0));
        assert!(replies[0].is_signed_with(&h.key_of(client)));
        let data_2 = data_stream(&mut h);
        assert_eq!(h.ask(data_2, request(CONNECTION_BIND).connection(waiting.0)).code(), 0);
        h.advance(31);
        assert_eq!(h.closed_connections, [connecting.id], "its time goes on");
        h.disconnect(client);
        h.connection_ended(client, bound);
        let _ = data;
        assert_eq!(h.leftovers(), 0);
    }
}

#[test]
fn chance_and_strangers_fill_no_table() {
    let mut h = Harness::with(on);
    let stranger: Spec = alice().named("mallory", "guess").tcp();
    let client = h.add(stranger);
    for id in 0..500_u32 {
        let bytes = request(CONNECTION_BIND).connection(id << 20).bytes([3; 12], None);
        h.tell(client, &bytes);
        let bytes = request(CONNECT).peer(addr(PEER)).bytes([4; 12], None);
        h.tell(client, &bytes);
    }
    assert_eq!(h.leftovers(), 0);
    assert!(h.connects.is_empty());
}

/// Two rivals forgot a spelling of a forbidden address here alone: the whole table, in every spelling, and CreatePermission
/// says the same.
// [6062-5.2-5]
#[test]
fn connect_judges_every_address_as_a_permission_does() {
    let mut h = Harness::with(|settings| {
        on(settings);
        settings.limits.connections_per_allocation = 10_000;
        settings.limits.permissions_per_allocation = 10_000;
    });
    let [v4, v6] = [None, Some(2)].map(|family| {
        let client = h.add(alice().tcp());
        let message = family.map_or_else(tcp, |family| tcp().family(family));
        assert_eq!(h.ask(client, message).code(), 0);
        client
    });
    let table = include_str!("vectors/peer_policy.tsv");
    let mut rows = 0;
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('\t');
        let ip: std::net::IpAddr = fields.next().unwrap().parse().unwrap();
        let is_granted = fields.next().unwrap() == "G";
        let mut spellings = vec![ip];
        if let std::net::IpAddr::V4(inner) = ip {
            let [a, b, c, d] = inner.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            spellings.push(inner.to_ipv6_mapped().into());
            spellings.push([0, 0, 0, 0, 0, 0, high, low].into());
            spellings.push([0x2002, high, low, 0, 0, 0, 0, 1].into());
            spellings.push([0x64, 0xff9b, 1, 0, 0, 0, high, low].into());
        }
        for spelling in spellings {
            let peer = SocketAddr::new(spelling, 9_000);
            let client = if peer.is_ipv4() { v4 } else { v6 };
            let permitted = h.permit(client, &[peer]);
            let bytes = h.signed(client, &request(CONNECT).peer(peer));
            let before = h.connects.len();
            let replies = h.tell(client, &bytes);
            let is_begun = h.connects.len() > before;
            assert_eq!(is_begun, permitted == 0, "{spelling} of {line}");
            assert_eq!(is_begun, is_granted && spelling == ip, "{spelling} of {line}");
            if !is_begun {
                assert_eq!((replies[0].code(), permitted), (403, 403), "{spelling} of {line}");
            }
        }
        rows += 1;
    }
    assert!(rows >= 55, "{rows} rows");
}
