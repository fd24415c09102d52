//! The data path of the real binary: bursts that travel as one piece, payload from one relayed address to another, and
//! who is heard when more comes than anybody can read. Not a packet may be lost, doubled, cut or counted twice.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;

use serde_json::Value;
use test_support::e2e;
use test_support::e2e::client::{channel_data, request, send_indication};
use test_support::e2e::tls::Authority;
use test_support::e2e::{
    Client, Origin, PATIENCE, Server, Settings, Wanted, Witness, payload, peer, receive, wait_for,
};
use test_support::with_one_and_three_workers;
use throughway::wire::message::{AttrType, METHOD_BINDING, METHOD_REFRESH};

const CHANNEL: u16 = 0x4001;
const SECRET: &str = "north-of-everything";

fn segmented(server: &Server) -> u64 {
    server.scrape().value("throughway_segmented_messages_total", &[("result", "sent")])
}

fn coalesced(server: &Server) -> u64 {
    server.scrape().value("throughway_coalesced_datagrams_total", &[])
}

fn inside(server: &Server) -> u64 {
    server.scrape().value("throughway_inside_packets_total", &[])
}

/// So many packets went from relayed address to relayed address since the server began, not one more.
#[track_caller]
fn expect_inside(server: &Server, packets: u64) {
    wait_for(&format!("{packets} packets inside"), || (inside(server) >= packets).then_some(()));
    assert_eq!(inside(server), packets);
}

/// Neither we nor the kernel dropped anything.
#[track_caller]
fn expect_no_drop(server: &Server) {
    let scrape = server.scrape();
    assert_eq!(scrape.sum("throughway_dropped_packets_total"), 0, "dropped by us");
    assert_eq!(scrape.sum("throughway_kernel_drops_total"), 0, "dropped by the kernel");
}

/// Four numbers of a session's line: packets or bytes from the client, to peers, from peers, to the client.
fn amounts(line: &Value, unit: &str) -> [u64; 4] {
    ["from_client", "to_peers", "from_peers", "to_client"].map(|way| line[format!("{unit}_{way}")].as_u64().unwrap())
}

/// Ends a session and gives its line.
#[track_caller]
fn end(server: &Server, client: &mut Client, user: &str) -> Value {
    assert_eq!(client.refresh(0).code(), 0);
    server.log.wait_for_session(user)
}

fn named(client: Client, user: &str) -> Client {
    client.minted(SECRET, user)
}

/// What must arrive: flow and payload.
type Due = Vec<(usize, Vec<u8>)>;

/// A client with three peers: two behind channels, one without.
struct Call {
    client: Client,
    relayed: SocketAddr,
    peers: Vec<UdpSocket>,
    origins: Vec<Origin>,
}

const FLOWS: usize = 3;

impl Call {
    fn of(mut client: Client) -> Self {
        let relayed = client.allocate();
        let peers: Vec<UdpSocket> = (0..FLOWS).map(|_| peer(relayed)).collect();
        let origins = peers.iter().enumerate().map(|(flow, peer)| {
            let (at, number) = (peer.local_addr().unwrap(), CHANNEL + flow as u16);
            if flow < 2 {
                client.bind(number, at);
                Origin::Channel(number)
            } else {
                client.permit(at);
                Origin::Peer(at)
            }
        });
        let origins = origins.collect();
        Self { client, relayed, peers, origins }
    }

    /// What the client sends to have this payload sent on by this flow.
    fn framed(&self, flow: usize, payload: &[u8]) -> Vec<u8> {
        match self.origins[flow] {
            Origin::Channel(number) => channel_data(number, payload),
            Origin::Peer(at) => send_indication(at, payload),
        }
    }

    /// Each of these must come to the peer of its flow, in the order of that flow.
    #[track_caller]
    fn expect_at_peers(&self, due: &[(usize, Vec<u8>)]) {
        for (at, (flow, bytes)) in due.iter().enumerate() {
            let (came, from) = receive(&self.peers[*flow]);
            assert_eq!((came.len(), from), (bytes.len(), self.relayed), "packet {at}, flow {flow}");
            assert!(came == *bytes, "packet {at} of {} bytes, flow {flow}, was changed", bytes.len());
        }
    }

    /// Each of these must come to the client from the peer of its flow, in the order of that flow.
    #[track_caller]
    fn expect_at_client(&mut self, due: &[(usize, Vec<u8>)]) {
        let mut flows = [const { VecDeque::new() }; FLOWS];
        for (flow, bytes) in due {
            flows[*flow].push_back(bytes);
        }
        for at in 0..due.len() {
            let data = self.client.data().unwrap_or_else(|| panic!("packet {at} of {} never came", due.len()));
            let flow = self.origins.iter().position(|origin| *origin == data.from).expect("one of its peers");
            let bytes = flows[flow].pop_front().unwrap_or_else(|| panic!("one more than was sent on flow {flow}"));
            assert_eq!(data.payload.len(), bytes.len(), "packet {at}, flow {flow}");
            assert!(data.payload == *bytes, "packet {at} of {} bytes, flow {flow}, was changed", bytes.len());
        }
    }
}

// ---- bursts ----

/// Sizes of what each flow carries, how many of a flow follow one another, and how many flows of a call take part.
///
/// Together no more than the receive buffers of an untuned machine hold.
const BURSTS: [(&[usize], usize, usize); 5] = [
    (&[160, 160, 160, 160, 160, 160, 90, 100, 100, 100, 100, 20, 160, 160], 7, FLOWS),
    (&[1, 2, 3, 4, 5, 6, 7, 7, 7, 6, 40, 0, 0, 60, 60, 0], 4, FLOWS),
    (&[1200, 1200, 1200, 700, 1200, 1201, 1199, 0, 5], 1, FLOWS),
    (&[9000, 9000, 400], 3, FLOWS),
    (&[30_000, 29_999], 2, 1),
];

/// All calls of a burst at once, packet by packet in turn, either way; nothing is missing, changed or out of order.
#[track_caller]
fn burst(server: &Server, calls: &mut [Call], to_peers: bool) {
    for (round, (sizes, run, flows)) in BURSTS.into_iter().enumerate() {
        let due: Vec<Due> = (0..calls.len())
            .map(|call| {
                let runs = (0..sizes.len()).step_by(run).flat_map(|start| (0..flows).map(move |flow| (start, flow)));
                let packets =
                    runs.flat_map(|(start, flow)| (start..sizes.len().min(start + run)).map(move |at| (flow, at)));
                packets
                    .map(|(flow, at)| {
                        let flow = if flows == 1 { call % FLOWS } else { flow };
                        let seed = (round * 1000 + call * 100 + flow * 30 + at) * 2 + usize::from(to_peers);
                        (flow, payload(seed as u32, sizes[at]))
                    })
                    .collect()
            })
            .collect();
        server.while_it_stands_still(|| {
            for at in 0..due[0].len() {
                for (call, due) in calls.iter_mut().zip(&due) {
                    let (flow, bytes) = &due[at];
                    if to_peers {
                        let framed = call.framed(*flow, bytes);
                        call.client.send_raw(&framed);
                    } else {
                        call.peers[*flow].send_to(bytes, call.relayed).unwrap();
                    }
                }
            }
        });
        for (call, due) in calls.iter_mut().zip(&due) {
            if to_peers { call.expect_at_peers(due) } else { call.expect_at_client(due) }
        }
    }
}

fn calls(server: &Server, workers: u8) -> Vec<Call> {
    let clients = [
        Client::udp_on_worker(server.udp4(), 0, workers),
        Client::udp_on_worker(server.udp6(), workers / 2, workers),
        Client::udp_on_worker(server.udp4(), workers - 1, workers),
    ];
    clients.into_iter().map(Call::of).collect()
}

with_one_and_three_workers! {
    /// Several clients and peers at once, both ways: what left as one piece arrives as what it was.
    fn bursts_arrive_whole_once_and_in_order(workers: u8) {
        let server = Server::ordinary(workers);
        let mut calls = calls(&server, workers);
        for to_peers in [true, false] {
            let before = segmented(&server);
            burst(&server, &mut calls, to_peers);
            wait_for("messages of several datagrams", || (segmented(&server) > before + 10).then_some(()));
        }
        expect_no_drop(&server);
        let refused = server.scrape().value("throughway_segmented_messages_total", &[("result", "refused")]);
        assert_eq!(refused, 0, "loopback takes all of them");
    }

    /// The key says no, yes, and no again, while a call goes on.
    fn the_key_switches_segmentation_under_traffic(workers: u8) {
        let on = Settings::new(workers);
        let mut off = on.clone();
        off.relay.push(("segmentation_offload", "false"));
        let mut server = off.clone().start();
        let witness = Witness::start(Client::udp_on_worker(server.udp4(), 0, workers));
        let mut calls = calls(&server, workers);
        let pass = |server: &Server, calls: &mut [Call]| {
            burst(server, calls, true);
            burst(server, calls, false);
        };
        pass(&server, &mut calls);
        assert_eq!(segmented(&server), 0);
        server.reload(on);
        pass(&server, &mut calls);
        let sent = wait_for("messages of several datagrams", || Some(segmented(&server)).filter(|sent| *sent > 10));
        server.reload(off);
        let sent = sent.max(segmented(&server));
        pass(&server, &mut calls);
        assert_eq!(segmented(&server), sent);
        witness.finish();
        expect_no_drop(&server);
        assert_eq!(coalesced(&server), 0);
    }
}

// ---- coalesced receives ----

/// Has the kernel cut what this socket sends into datagrams of this size; with 0 each send is a datagram again.
#[allow(unsafe_code, reason = "nothing safe sets this option")]
fn cut_into(socket: &UdpSocket, bytes: usize) {
    let value = bytes as libc::c_int;
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option takes an int, which lives across the call.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const value).cast(), len)
    };
    assert_eq!(done, 0, "UDP_SEGMENT of {bytes}: {}", std::io::Error::last_os_error());
}

/// Size of each datagram, how many, and the size of a last one that is smaller, if there is one.
const PIECES: [(usize, usize, usize); 8] = [
    (164, 60, 0),
    (1204, 45, 36),
    (48, 60, 4),
    (48, 60, 47),
    (1204, 45, 1203),
    (500, 60, 4),
    (8004, 7, 1000),
    (20_000, 2, 5),
];

/// Bursts that one client or peer sends, and what they come to.
#[derive(Default)]
struct Bursts {
    count: usize,
    packets: u64,
    bytes: u64,
}

impl Bursts {
    /// The next one: its datagrams as one piece, their size, and what each carries on which flow.
    fn next(&mut self, frame: impl Fn(usize, &[u8]) -> Vec<u8>, heads: [usize; FLOWS]) -> (Vec<u8>, usize, Due) {
        let (size, count, tail) = PIECES[self.count % PIECES.len()];
        let mut due = Vec::new();
        let mut piece = Vec::new();
        for number in 0..count + usize::from(tail > 0) {
            let len = if number < count { size } else { tail };
            // Flows take turns, as far as this one's framing makes datagrams of that size.
            let flow = number / 5 % FLOWS;
            let fits = len >= heads[flow] && (heads[flow] <= 4 || (len - heads[flow]).is_multiple_of(4));
            let flow = if fits { flow } else { 0 };
            let bytes = payload((self.count * 100 + number) as u32, len - heads[flow]);
            let framed = frame(flow, &bytes);
            assert_eq!(framed.len(), len);
            piece.extend(framed);
            due.push((flow, bytes));
        }
        self.count += 1;
        self.note(&due);
        (piece, size, due)
    }

    fn note(&mut self, due: &[(usize, Vec<u8>)]) {
        self.packets += due.len() as u64;
        self.bytes += due.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    }

    /// Whether to go on until the socket is surely read coalesced: every size at least twice.
    #[track_caller]
    fn are_enough(&self, server: &Server) -> bool {
        assert!(self.count < 200, "{} bursts, and none was ever read in one piece", self.count);
        self.count >= 2 * PIECES.len() && coalesced(server) > 500
    }
}

/// More than it takes to forget any row of bursts.
const SINGLES: u32 = 80;

/// Bursts of a client in one piece, requests in between and even inside them, then packets one by one.
#[track_caller]
fn bursts_of_a_client(server: &Server, to: SocketAddr, user: &str) {
    let mut call = Call::of(named(Client::udp(to), user));
    let before = coalesced(server);
    let mut bursts = Bursts::default();
    // A Send indication to an IPv4 peer has 36 bytes of head, to an IPv6 peer 48.
    let heads = [4, 4, if to.is_ipv4() { 36 } else { 48 }];
    while coalesced(server) - before < 500 || !bursts.are_enough(server) {
        let (piece, size, due) = bursts.next(|flow, bytes| call.framed(flow, bytes), heads);
        cut_into(call.client.socket(), size);
        call.client.send_raw(&piece);
        call.expect_at_peers(&due);
        cut_into(call.client.socket(), 0);
        match bursts.count % 4 {
            0 => assert_eq!(call.client.refresh(600).code(), 0),
            1 => call.client.permit(call.peers[2].local_addr().unwrap()),
            _ => {}
        }
        if bursts.count % 5 == 2 {
            // A request among data, as large as the data is.
            let refresh = request(METHOD_REFRESH, &[Wanted::lifetime(600)], call.client.login.as_ref());
            let data = |seed| payload(seed, refresh.len() - 4);
            let due: Vec<_> = (0..8).map(|seed| (seed as usize % 2, data(seed))).collect();
            let mut piece: Vec<_> = due.iter().map(|(flow, bytes)| call.framed(*flow, bytes)).collect();
            piece.insert(5, refresh.clone());
            cut_into(call.client.socket(), refresh.len());
            call.client.send_raw(&piece.concat());
            assert_eq!(call.client.answer_to(&refresh).code(), 0);
            call.expect_at_peers(&due);
            cut_into(call.client.socket(), 0);
            bursts.note(&due);
        }
    }
    for seed in 0..SINGLES {
        let due = [(0, payload(seed, 160))];
        call.client.send_channel(CHANNEL, &due[0].1);
        call.expect_at_peers(&due);
        bursts.note(&due);
    }
    let before = coalesced(server);
    bursts.count = 0;
    let (piece, size, due) = bursts.next(|flow, bytes| call.framed(flow, bytes), heads);
    cut_into(call.client.socket(), size);
    call.client.send_raw(&piece);
    call.expect_at_peers(&due);
    cut_into(call.client.socket(), 0);
    assert!(coalesced(server) > before, "a socket that coalesced goes on: taking it back would lose the sizes");
    let line = end(server, &mut call.client, user);
    assert_eq!(amounts(&line, "packets"), [bursts.packets, bursts.packets, 0, 0]);
    assert_eq!(amounts(&line, "bytes"), [bursts.bytes, bursts.bytes, 0, 0]);
}

/// The same from a peer, with empty datagrams in between.
#[track_caller]
fn bursts_of_a_peer(server: &Server, client: Client, user: &str) {
    let mut call = Call::of(named(client, user));
    let before = coalesced(server);
    let mut bursts = Bursts::default();
    let send = |call: &mut Call, bursts: &mut Bursts| {
        let (piece, size, mut due) = bursts.next(|_, bytes| bytes.to_vec(), [0; FLOWS]);
        // One sender is one flow here.
        let flow = bursts.count % FLOWS;
        due.iter_mut().for_each(|due| due.0 = flow);
        let peer = &call.peers[flow];
        cut_into(peer, size);
        assert_eq!(peer.send_to(&piece, call.relayed).unwrap(), piece.len());
        cut_into(peer, 0);
        let last = [(flow, Vec::new()), (flow, b"last".to_vec())];
        for (_, bytes) in &last {
            peer.send_to(bytes, call.relayed).unwrap();
        }
        bursts.note(&last);
        due.extend(last);
        call.expect_at_client(&due);
    };
    while coalesced(server) - before < 500 || !bursts.are_enough(server) {
        send(&mut call, &mut bursts);
        if bursts.count.is_multiple_of(4) {
            assert_eq!(call.client.refresh(600).code(), 0);
        }
    }
    for seed in 0..SINGLES {
        let due = [(1, payload(seed, 160))];
        call.peers[1].send_to(&due[0].1, call.relayed).unwrap();
        call.expect_at_client(&due);
        bursts.note(&due);
    }
    let before = coalesced(server);
    bursts.count = 0;
    send(&mut call, &mut bursts);
    assert!(coalesced(server) > before, "a socket that coalesced goes on: taking it back would lose the sizes");
    let line = end(server, &mut call.client, user);
    assert_eq!(amounts(&line, "packets"), [0, 0, bursts.packets, bursts.packets]);
    assert_eq!(amounts(&line, "bytes"), [0, 0, bursts.bytes, bursts.bytes]);
}

with_one_and_three_workers! {
    /// What the kernel hands over in one piece is judged, counted and relayed datagram by datagram.
    fn what_clients_send_in_one_piece_is_taken_apart(workers: u8) {
        let server = Server::ordinary(workers);
        bursts_of_a_client(&server, server.udp4(), "four");
        bursts_of_a_client(&server, server.udp6(), "six");
        expect_no_drop(&server);
        let scrape = server.scrape();
        let metric = |way, side, unit| {
            scrape.value(&format!("throughway_payload_{unit}_total"), &[("way", way), ("side", side)])
        };
        for unit in ["packets", "bytes"] {
            let lines = ["four", "six"].map(|user| amounts(&server.log.wait_for_session(user), unit));
            assert_eq!(metric("received", "clients", unit), lines[0][0] + lines[1][0]);
            assert_eq!(metric("sent", "peers", unit), lines[0][1] + lines[1][1]);
        }
    }

    /// The same on relayed sockets, for clients over UDP and over TCP.
    fn what_peers_send_in_one_piece_is_taken_apart(workers: u8) {
        let server = Server::ordinary(workers);
        bursts_of_a_peer(&server, Client::udp(server.udp4()), "four");
        bursts_of_a_peer(&server, Client::udp(server.udp6()), "six");
        bursts_of_a_peer(&server, Client::tcp(server.tcp4()), "stream");
        expect_no_drop(&server);
        let scrape = server.scrape();
        let metric = |way, side, unit| {
            scrape.value(&format!("throughway_payload_{unit}_total"), &[("way", way), ("side", side)])
        };
        for unit in ["packets", "bytes"] {
            let lines = ["four", "six", "stream"].map(|user| amounts(&server.log.wait_for_session(user), unit));
            assert_eq!(metric("received", "peers", unit), lines.iter().map(|line| line[2]).sum::<u64>());
            assert_eq!(metric("sent", "clients", unit), lines.iter().map(|line| line[3]).sum::<u64>());
        }
    }

    /// Three senders at the same time, on one listener that is read coalesced: none gets what is another's.
    fn senders_of_pieces_stay_apart(workers: u8) {
        let server = Server::ordinary(workers);
        let call = |_| Call::of(Client::udp_on_worker(server.udp4(), 0, workers));
        let mut calls: Vec<Call> = (0..3).map(call).collect();
        let mut bursts = Bursts::default();
        while !bursts.are_enough(&server) {
            let pieces: Vec<_> = calls
                .iter()
                .map(|call| bursts.next(|flow, bytes| call.framed(flow, bytes), [4, 4, 36]))
                .collect();
            server.while_it_stands_still(|| {
                for (call, (piece, size, _)) in calls.iter_mut().zip(&pieces) {
                    cut_into(call.client.socket(), *size);
                    call.client.send_raw(piece);
                }
            });
            for (call, (.., due)) in calls.iter().zip(&pieces) {
                call.expect_at_peers(due);
            }
        }
        expect_no_drop(&server);
        wait_for("every byte to be counted", || {
            let sent = server.scrape().value("throughway_payload_bytes_total", &[("way", "sent"), ("side", "peers")]);
            (sent == bursts.bytes).then_some(())
        });
    }
}

// ---- relayed address to relayed address ----

/// A client with an allocation.
struct End {
    client: Client,
    user: String,
    at: SocketAddr,
}

impl End {
    fn new(client: Client, user: &str, ipv4: bool) -> Self {
        let mut client = named(client, user);
        let at = client.allocate_family(ipv4);
        Self { client, user: user.to_owned(), at }
    }

    fn send(&mut self, by_channel: bool, to: SocketAddr, payload: &[u8]) {
        if by_channel { self.client.send_channel(CHANNEL, payload) } else { self.client.send_to(to, payload) }
    }
}

const INSIDE: [usize; 9] = [0, 1, 160, 160, 159, 1200, 1200, 9000, 30_000];

/// Both ways between two ends, each by channel or by indication; gives how many packets that were.
#[track_caller]
fn exchange(server: &Server, one: &mut End, two: &mut End, bound: [bool; 2]) -> u64 {
    let (at_one, at_two) = (one.at, two.at);
    let origin = |bound: bool, at| if bound { Origin::Channel(CHANNEL) } else { Origin::Peer(at) };
    // All at once, and one at a time.
    server.while_it_stands_still(|| {
        for (seed, size) in INSIDE.into_iter().enumerate() {
            one.send(bound[0], at_two, &payload(seed as u32, size));
            two.send(bound[1], at_one, &payload(100 + seed as u32, size));
        }
    });
    for (seed, size) in INSIDE.into_iter().enumerate() {
        two.client.expect_data(origin(bound[1], at_one), &payload(seed as u32, size));
        one.client.expect_data(origin(bound[0], at_two), &payload(100 + seed as u32, size));
    }
    // So much in three exchanges that the ring between two workers comes around.
    const ALONE: [usize; 5] = [0, 700, 60_000, 59_999, 58_001];
    for size in ALONE {
        one.send(bound[0], at_two, &payload(7, size));
        two.client.expect_data(origin(bound[1], at_one), &payload(7, size));
        two.send(bound[1], at_one, &payload(8, size));
        one.client.expect_data(origin(bound[0], at_two), &payload(8, size));
    }
    2 * (INSIDE.len() + ALONE.len()) as u64
}

with_one_and_three_workers! {
    /// Each client, on each worker, by channel or indication: from the right address, counted on both sides.
    fn two_relayed_addresses_reach_each_other(workers: u8) {
        let authority = Authority::new();
        let server = authority.settings(workers).start();
        let udp = |worker| Client::udp_on_worker(server.udp4(), worker, workers);
        let pairs = [
            ("same-worker", udp(0), udp(0), true),
            ("other-worker", udp(0), udp(workers - 1), true),
            ("six", Client::udp_on_worker(server.udp6(), 0, workers), udp(workers - 1), false),
            ("to-tcp", udp(workers - 1), Client::tcp(server.tcp4()), true),
            ("tcp-tcp", Client::tcp(server.tcp6()), Client::tcp(server.tcp4()), false),
            ("tls", authority.client(server.tls4()), udp(0), true),
        ];
        let mut total = 0;
        for (name, one, two, ipv4) in pairs {
            let mut one = End::new(one, &format!("{name}-one"), ipv4);
            let mut two = End::new(two, &format!("{name}-two"), ipv4);
            one.client.permit(two.at);
            two.client.permit(one.at);
            let mut count = exchange(&server, &mut one, &mut two, [false, false]);
            one.client.bind(CHANNEL, two.at);
            count += exchange(&server, &mut one, &mut two, [true, false]);
            two.client.bind(CHANNEL, one.at);
            count += exchange(&server, &mut one, &mut two, [true, true]);
            total += count;
            expect_inside(&server, total);
            // A plain peer reaches the same ports by the kernel, as ever.
            let plain = peer(one.at);
            let plain_at = plain.local_addr().unwrap();
            for end in [&mut one, &mut two] {
                end.client.send_to(plain_at, b"out");
                assert_eq!(receive(&plain), (b"out".to_vec(), end.at), "{name}");
                plain.send_to(b"and back", end.at).unwrap();
                end.client.expect_data(Origin::Peer(plain_at), b"and back");
            }
            expect_inside(&server, total);
            let lines = [end(&server, &mut one.client, &one.user), end(&server, &mut two.client, &two.user)];
            let half = count / 2 + 1;
            for line in &lines {
                assert_eq!(amounts(line, "packets"), [half; 4], "{name}: {line}");
                assert_eq!(line["dropped"], Value::Null, "{name}");
            }
            let [one, two] = lines.map(|line| amounts(&line, "bytes"));
            // Both sent the plain peer 3 bytes and got 8.
            assert_eq!((one[1] - 3, one[2] - 8), (two[2] - 8, two[1] - 3), "{name}");
            assert_eq!((one[0], one[3], two[0], two[3]), (one[1], one[2], two[1], two[2]), "{name}");
        }
        expect_no_drop(&server);
    }

    /// Behind 1:1 NAT both go by the address that clients are told, and are found by the local one too.
    fn behind_nat_they_are_known_by_the_address_that_clients_are_told(workers: u8) {
        let mut settings = Settings::new(workers);
        settings.relay.push(("external", "\"203.0.113.7\""));
        let server = settings.start();
        let mut total = 0;
        let udp = |worker| Client::udp_on_worker(server.udp4(), worker, workers);
        for (name, one, two) in [
            ("same", udp(0), udp(0)),
            ("other", udp(0), udp(workers - 1)),
            ("stream", Client::tcp(server.tcp4()), udp(workers - 1)),
        ] {
            let mut one = End::new(one, &format!("{name}-one"), true);
            let mut two = End::new(two, &format!("{name}-two"), true);
            assert_eq!(one.at.ip().to_string(), "203.0.113.7");
            one.client.permit(two.at);
            two.client.permit(one.at);
            total += exchange(&server, &mut one, &mut two, [false, false]);
            two.client.bind(CHANNEL, one.at);
            total += exchange(&server, &mut one, &mut two, [false, true]);
            // By its local address: it is the same allocation, and hears from the address that clients are told.
            let local = SocketAddr::new("127.0.0.1".parse().unwrap(), two.at.port());
            one.client.permit(local);
            one.client.send_to(local, b"by the back door");
            two.client.expect_data(Origin::Channel(CHANNEL), b"by the back door");
            total += 1;
            expect_inside(&server, total);
            // Ports that were relayed a moment ago are free now.
            let line = end(&server, &mut two.client, &two.user);
            assert_eq!(amounts(&line, "packets")[2], amounts(&line, "packets")[3]);
            server.expect_dropped("not_relayed_port", 3, || {
                for _ in 0..3 {
                    one.client.send_to(two.at, b"gone");
                }
            });
            let line = end(&server, &mut one.client, &one.user);
            assert_eq!(line["dropped"], "not_relayed_port=3/12", "{line}");
            let packets = amounts(&line, "packets");
            assert_eq!(packets[0] - packets[1], 3);
        }
        expect_inside(&server, total);
        assert_eq!(server.scrape().sum("throughway_dropped_packets_total"), 9);
    }

    /// The receiving allocation has the same rights and limits as if a network lay in between.
    fn the_other_ends_permissions_and_limits_hold(workers: u8) {
        let mut settings = Settings::new(workers);
        // Of the secret, so that users of the configuration have none.
        // A hundred packets of 1,000 bytes, with 28 bytes each for their heads.
        settings.tables = "limits = { bytes = \"102800B\" }\n".to_owned();
        let server = settings.start();
        for (round, to) in [0, workers - 1].into_iter().enumerate() {
            let (closed, poor) = (format!("closed-{round}"), format!("poor-{round}"));
            let mut one = Client::udp_on_worker(server.udp4(), 0, workers);
            let at_one = one.allocate();
            let mut two = End::new(Client::udp_on_worker(server.udp4(), to, workers), &closed, true);
            one.bind(CHANNEL, two.at);
            let before = inside(&server);
            server.expect_dropped("peer_not_permitted", 5, || {
                for size in 0..5 {
                    one.send_channel(CHANNEL, &payload(1, size));
                }
            });
            assert_eq!(inside(&server), before + 5, "the sender can't tell");
            // A permission for another address is none for this one; without it nothing comes, with it all.
            two.client.permit("127.0.0.9:9".parse().unwrap());
            server.expect_dropped("peer_not_permitted", 1, || one.send_channel(CHANNEL, b"ten bytes."));
            two.client.permit(at_one);
            one.send_channel(CHANNEL, b"hello");
            two.client.expect_data(Origin::Peer(at_one), b"hello");
            let line = end(&server, &mut two.client, &two.user);
            assert_eq!((amounts(&line, "packets"), amounts(&line, "bytes")), ([0, 0, 7, 1], [0, 0, 25, 5]));
            assert_eq!(line["dropped"], "peer_not_permitted=6/20", "{line}");

            // A stream, so that nothing can be lost on the way to the test.
            let mut rich = Client::udp_on_worker(server.udp4(), to, workers);
            let at_rich = rich.allocate();
            let mut two = End::new(Client::tcp(server.tcp4()), &poor, true);
            two.client.permit(at_rich);
            rich.bind(CHANNEL, two.at);
            for seed in 0..100 {
                rich.send_channel(CHANNEL, &payload(seed, 1000));
                two.client.expect_data(Origin::Peer(at_rich), &payload(seed, 1000));
            }
            server.expect_dropped("over_budget", 1, || rich.send_channel(CHANNEL, b"x"));
            let line = server.log.wait_for_session(&poor);
            assert_eq!(amounts(&line, "bytes"), [0, 0, 100_001, 100_000], "{line}");
            assert_eq!((&line["reason"], &line["dropped"]), (&"budget".into(), &"over_budget=1/1".into()));
            for client in [&mut one, &mut rich] {
                assert_eq!(client.refresh(0).code(), 0);
            }
        }
        let lines = wait_for("the lines of those who only sent", || {
            let of_alice = server.log.sessions().into_iter().filter(|line| line["user"] == "alice");
            Some(of_alice.collect::<Vec<Value>>()).filter(|lines| lines.len() == 4)
        });
        assert!(lines.iter().all(|line| line["dropped"] == Value::Null), "what the other did not want was sent all the same");
        let mut sent: Vec<_> = lines.iter().map(|line| (amounts(line, "packets")[1], amounts(line, "bytes")[1])).collect();
        sent.sort_unstable();
        assert_eq!(sent, [(7, 25), (7, 25), (101, 100_001), (101, 100_001)]);
    }

    /// What no datagram can carry is not carried, although nothing would be in the way of it.
    fn more_than_a_datagram_is_refused_inside_too(workers: u8) {
        let server = Server::ordinary(workers);
        for (ipv4, at) in [(true, server.tcp4()), (false, server.tcp6())] {
            let end = |number| End::new(Client::tcp(at), &format!("{ipv4}-{number}"), ipv4);
            let mut ends: Vec<End> = (0..workers + 1).map(end).collect();
            let mut first = ends.remove(0);
            for end in &mut ends {
                first.client.bind(CHANNEL, end.at);
                end.client.bind(CHANNEL, first.at);
                for size in [65_507, 65_506] {
                    first.client.send_channel(CHANNEL, &payload(size as u32, size));
                    end.client.expect_data(Origin::Channel(CHANNEL), &payload(size as u32, size));
                }
                server.expect_dropped("message_size", 2, || {
                    first.client.send_channel(CHANNEL, &payload(1, 65_508));
                    first.client.send_channel(CHANNEL, &payload(2, 65_535));
                });
                first.client.send_channel(CHANNEL, b"still here");
                end.client.expect_data(Origin::Channel(CHANNEL), b"still here");
                assert_eq!(first.client.refresh(0).code(), 0);
                first.at = first.client.allocate_family(ipv4);
            }
            let line = self::end(&server, &mut first.client, &first.user);
            assert_eq!(line["dropped"], "message_size=2/131043", "{line}");
        }
        expect_inside(&server, 2 * 3 * u64::from(workers));
    }

    /// Its own relayed address is a peer like any other.
    fn a_client_may_talk_to_its_own_relayed_address(workers: u8) {
        let server = Server::ordinary(workers);
        let udp = Client::udp_on_worker(server.udp4(), workers - 1, workers);
        for (round, (client, ipv4)) in [(udp, true), (Client::tcp(server.tcp6()), false)].into_iter().enumerate() {
            let user = format!("self-{round}");
            let mut own = End::new(client, &user, ipv4);
            server.expect_dropped("no_permission", 1, || own.client.send_to(own.at, b"not yet"));
            own.client.permit(own.at);
            let sizes = [0, 160, 160, 3, 1200, 1200, 30_000];
            for bound in [false, true] {
                server.while_it_stands_still(|| {
                    for size in sizes {
                        own.send(bound, own.at, &payload(9, size));
                    }
                });
                let origin = if bound { Origin::Channel(CHANNEL) } else { Origin::Peer(own.at) };
                for size in sizes {
                    own.client.expect_data(origin, &payload(9, size));
                }
                own.client.bind(CHANNEL, own.at);
            }
            let line = end(&server, &mut own.client, &user);
            assert_eq!(amounts(&line, "packets"), [15, 14, 14, 14]);
            expect_inside(&server, 14 * (round as u64 + 1));
        }
    }
}

// ---- more than anybody can take ----

/// Dropped for these reasons, or by the kernel.
fn dropped_by_all(server: &Server, reasons: &[&str]) -> u64 {
    let scrape = server.scrape();
    let of = |reason: &&str| scrape.value("throughway_dropped_packets_total", &[("reason", reason)]);
    reasons.iter().map(of).sum::<u64>() + scrape.sum("throughway_kernel_drops_total")
}

with_one_and_three_workers! {
    /// Faster than the other end reads, from several workers at once: what comes is whole and in order, and what does
    /// not is counted, to the packet.
    fn what_the_other_worker_can_not_take_is_counted(workers: u8) {
        // Number and size of a round's packets: many small ones, fewer large ones.
        const ROUNDS: [(u32, usize); 2] = [(700, 1300), (150, 28_000)];
        let server = Settings::new(workers).limit("tcp_queue", "\"128KiB\"").start();
        let mut sink = End::new(Client::tcp(server.tcp4()), "sink", true);
        // It reads nothing for a while; what the kernel takes in its place is little then.
        socket2::SockRef::from(&*sink.client.stream()).set_recv_buffer_size(32 * 1024).unwrap();
        let mut senders: Vec<End> = (0..workers)
            .map(|worker| {
                let client = Client::udp_on_worker(server.udp4(), worker, workers);
                let mut sender = End::new(client, &format!("sender-{worker}"), true);
                sender.client.bind(CHANNEL, sink.at);
                sink.client.bind(CHANNEL + u16::from(worker), sender.at);
                sender
            })
            .collect();
        let bytes = |worker: usize, number: u32| {
            let (_, size) = ROUNDS[number as usize / 1000 % 2];
            let head = [worker as u32, number].map(u32::to_be_bytes).concat();
            [head, payload(number * 8 + worker as u32, size - (number % 7) as usize)].concat()
        };
        let (mut sent, mut rounds) = (0, 0);
        // How fast the workers are among each other is their affair, so a full ring is hoped for and not asked for.
        while rounds < 4
            || server.dropped("slow_client") == 0
            || (workers > 1 && rounds < 12 && server.dropped("inbox_full") == 0)
        {
            assert!(rounds < 50, "a client that does not read is never too slow");
            let (packets, _) = ROUNDS[rounds as usize % 2];
            server.while_it_stands_still(|| {
                for number in rounds * 1000..rounds * 1000 + packets {
                    for (worker, sender) in senders.iter_mut().enumerate() {
                        sender.client.send_channel(CHANNEL, &bytes(worker, number));
                    }
                }
            });
            for sender in &mut senders {
                assert_eq!(sender.client.refresh(600).code(), 0);
            }
            sent += u64::from(packets) * senders.len() as u64;
            rounds += 1;
        }
        // Nothing was read so far; now all that there is.
        socket2::SockRef::from(&*sink.client.stream()).set_recv_buffer_size(1 << 20).unwrap();
        let (mut arrived, mut next) = (0, vec![0; senders.len()]);
        let reasons = ["inbox_full", "slow_client"];
        wait_for("every packet to arrive or to be counted", || {
            while let Some(data) = sink.client.data_within(e2e::SILENCE) {
                let [worker, number] = [0, 4].map(|at| u32::from_be_bytes(data.payload[at..at + 4].try_into().unwrap()));
                assert_eq!(data.from, Origin::Channel(CHANNEL + worker as u16));
                assert!(number >= next[worker as usize], "packet {number} of worker {worker} came late or again");
                next[worker as usize] = number + 1;
                assert!(data.payload == bytes(worker as usize, number), "packet {number} was changed");
                arrived += 1;
            }
            (arrived + dropped_by_all(&server, &reasons) == sent).then_some(())
        });
        assert!(arrived > 0);
        let for_other_reasons = server.scrape().sum("throughway_dropped_packets_total")
            - reasons.iter().map(|reason| server.dropped(reason)).sum::<u64>();
        assert_eq!(for_other_reasons, 0);
        // The records say the same.
        let line = end(&server, &mut sink.client, "sink");
        assert_eq!(amounts(&line, "packets")[3], arrived);
        let mut handed = 0;
        for sender in &mut senders {
            let line = end(&server, &mut sender.client, &sender.user);
            handed += amounts(&line, "packets")[1];
        }
        assert_eq!(handed, amounts(&line, "packets")[2], "what senders sent is what the sink was sent");
        expect_inside(&server, handed);
    }
}

/// So many bytes fill any receive buffer that this machine may grant, with so many datagrams.
const FLOOD: u64 = 400;
const FLOOD_BYTES: usize = 60_000;

with_one_and_three_workers! {
    /// A flood of data overflows the buffer that data has, and takes no request away.
    fn a_flood_of_data_loses_no_request(workers: u8) {
        let server = Server::ordinary(workers);
        let mut callers: Vec<Client> =
            (0..4).map(|_| Client::udp_on_worker(server.udp4(), workers - 1, workers)).collect();
        for client in &mut callers {
            client.allocate();
        }
        let mut flooder = Client::udp_on_worker(server.udp4(), workers - 1, workers);
        flooder.allocate();
        let mut requests = Vec::new();
        for round in 1..=2 {
            server.while_it_stands_still(|| {
                // The large ones leave a gap into which a request would fit; the small ones fill it.
                for size in [FLOOD_BYTES, 0] {
                    let bytes = channel_data(CHANNEL, &[0x5A; FLOOD_BYTES][..size]);
                    (0..FLOOD).for_each(|_| flooder.send_raw(&bytes));
                }
                requests.clear();
                for client in &mut callers {
                    requests.push(request(METHOD_REFRESH, &[Wanted::lifetime(600)], client.login.as_ref()));
                    client.send_raw(requests.last().unwrap());
                }
            });
            for (client, request) in callers.iter_mut().zip(&requests) {
                let answer = client.answer_within(request, PATIENCE).expect("the only copy of the request is answered");
                assert_eq!(answer.code(), 0);
            }
            let kernel = || server.kernel_drops("listener");
            wait_for("every datagram to be read or dropped", || {
                (server.dropped("unbound_channel") + kernel() == round * 2 * FLOOD).then_some(())
            });
            assert!(kernel() > 0, "a buffer of less than {} bytes holds all", FLOOD * FLOOD_BYTES as u64);
        }
    }

    /// A flood of requests overflows the buffer that requests have, and takes no data away.
    fn a_flood_of_requests_loses_no_data(workers: u8) {
        const SOFTWARE: AttrType = AttrType(0x8022);
        let server = Server::ordinary(workers);
        let mut call = Call::of(Client::udp_on_worker(server.udp4(), 0, workers));
        let mut flooder = Client::udp_on_worker(server.udp4(), 0, workers);
        let binding = request(METHOD_BINDING, &[Wanted::Bytes(SOFTWARE, vec![b'x'; FLOOD_BYTES])], None);
        for round in 0..2 {
            let due: Vec<_> = (0..60).map(|at| (at % FLOWS, payload((round * 60 + at) as u32, 20 * at))).collect();
            let before = server.kernel_drops("listener");
            server.while_it_stands_still(|| {
                for (flow, bytes) in &due {
                    for _ in 0..FLOOD / 60 + 1 {
                        flooder.send_raw(&binding);
                    }
                    let framed = call.framed(*flow, bytes);
                    call.client.send_raw(&framed);
                }
            });
            call.expect_at_peers(&due);
            wait_for("the flood to overflow", || (server.kernel_drops("listener") > before).then_some(()));
        }
        assert_eq!(call.client.refresh(600).code(), 0);
        expect_only_bindings_lost(&server);
    }

    /// Requests and data of a client go to the worker that its address names, and to no other.
    fn a_clients_requests_and_data_go_to_one_worker(workers: u8) {
        let server = Server::ordinary(workers);
        let count = |worker: u8| {
            let worker = worker.to_string();
            server.scrape().value("throughway_listener_datagrams_total", &[("worker", &worker)])
        };
        for at in [server.udp4(), server.udp6()] {
            for worker in 0..workers {
                let before: Vec<u64> = (0..workers).map(count).collect();
                // A challenge, an allocation, two channels, a permission: five requests.
                let mut call = Call::of(Client::udp_on_worker(at, worker, workers));
                for number in 0..30 {
                    let due = [(number % FLOWS, payload(number as u32, 100))];
                    let framed = call.framed(due[0].0, &due[0].1);
                    call.client.send_raw(&framed);
                    call.expect_at_peers(&due);
                }
                assert_eq!(call.client.binding(), call.client.local());
                assert_eq!(call.client.refresh(0).code(), 0);
                for (other, before) in (0..workers).zip(before) {
                    let due = if other == worker { 5 + 30 + 2 } else { 0 };
                    assert_eq!(count(other) - before, due, "worker {other}, a client of worker {worker}");
                }
            }
        }
    }
}

/// The kernel dropped some, we none but those that are longer than a request may be.
#[track_caller]
fn expect_only_bindings_lost(server: &Server) {
    let scrape = server.scrape();
    let too_long = scrape.value("throughway_dropped_packets_total", &[("reason", "control_too_long")]);
    assert_eq!(scrape.sum("throughway_dropped_packets_total"), too_long);
    assert!(scrape.value("throughway_kernel_drops_total", &[("socket", "listener")]) > 0);
}
