//! `/metrics` of the real binary: what the kernel counts, load, batches, ports, the process; and that scraping costs no packet.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use test_support::e2e;
use test_support::e2e::{Client, Origin, Server, Settings, Wanted, Witness, http, payload, peer, wait_for};
use test_support::with_one_and_three_workers;
use throughway::wire::message::METHOD_ALLOCATE;

const CHANNEL: u16 = 0x4001;

/// So many bytes fill any receive buffer that this machine may grant, with so many datagrams.
const FLOOD: u64 = 400;
const FLOOD_BYTES: usize = 60_000;

fn flood(from: &UdpSocket, to: SocketAddr) {
    let bytes = vec![0xFF; FLOOD_BYTES];
    for _ in 0..FLOOD {
        from.send_to(&bytes, to).unwrap();
    }
}

with_one_and_three_workers! {
    /// What a listener's buffer could not hold is counted, to the datagram.
    fn an_overflow_of_a_listener_is_counted_exactly(workers: u8) {
        let server = Server::ordinary(workers);
        assert_eq!(server.kernel_drops("listener"), 0);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut lost = 0;
        for round in 1..=2 {
            server.while_it_stands_still(|| flood(&client, server.udp4()));
            wait_for("every datagram to be read or dropped", || {
                (server.dropped("not_stun") + server.kernel_drops("listener") == round * FLOOD).then_some(())
            });
            let now = server.kernel_drops("listener");
            assert!(now > lost, "a buffer of less than {} bytes holds all", FLOOD * FLOOD_BYTES as u64);
            lost = now;
        }
        assert_eq!(server.kernel_drops("relayed"), 0);
        assert_eq!(server.dropped("not_stun") + lost, 2 * FLOOD);
    }

    /// So is what relayed sockets could not hold, and the count outlives the sockets.
    fn an_overflow_of_relayed_sockets_is_counted_exactly(workers: u8) {
        let server = Server::ordinary(workers);
        let calls = (0..2 * workers).map(|number| {
            let mut client = Client::udp_on_worker(server.udp4(), number % workers, workers);
            let relayed = client.allocate();
            let peer = peer(relayed);
            client.permit(peer.local_addr().unwrap());
            (client, relayed, peer)
        });
        let mut calls: Vec<_> = calls.collect();
        let (_, relayed, peer) = &calls[calls.len() - 1];
        server.while_it_stands_still(|| flood(peer, *relayed));
        let received = || {
            server.scrape().value("throughway_payload_packets_total", &[("way", "received"), ("side", "peers")])
        };
        wait_for("every datagram to be read or dropped", || {
            (received() + server.kernel_drops("relayed") == FLOOD).then_some(())
        });
        let lost = server.kernel_drops("relayed");
        assert!(lost > 0);
        for (client, ..) in &mut calls {
            assert_eq!(client.refresh(0).code(), 0);
        }
        assert_eq!(server.kernel_drops("relayed"), lost);
        assert_eq!(server.kernel_drops("listener"), 0);
    }

    /// Ten scrapes a second beside live calls: not a packet is lost, neither by us nor by the kernel.
    fn scraping_loses_nothing(workers: u8) {
        let server = Server::ordinary(workers);
        let witnesses: Vec<_> =
            (0..workers).map(|number| Witness::start(Client::udp_on_worker(server.udp4(), number, workers))).collect();
        let mut idle: Vec<_> =
            (0..30).map(|number| Client::udp_on_worker(server.udp4(), number % workers, workers)).collect();
        for client in &mut idle {
            client.allocate();
        }
        let began = Instant::now();
        for scrape in 1..=20 {
            let (status, _) = http::get(server.http(), "/metrics", "localhost");
            assert_eq!(status, 200);
            std::thread::sleep((began + Duration::from_millis(100) * scrape).saturating_duration_since(Instant::now()));
        }
        for witness in witnesses {
            let (_, rounds) = witness.finish();
            assert!(rounds > 100, "{rounds}");
        }
        for socket in ["listener", "relayed", "stream"] {
            assert_eq!(server.kernel_drops(socket), 0, "{socket}");
        }
        assert_eq!(server.scrape().sum("throughway_dropped_packets_total"), 0);
    }

    /// A port is in use, held, free or at rest, and never lost.
    fn every_relay_port_is_accounted_for(workers: u8) {
        let server = Server::ordinary(workers);
        let range = server.ports.range.len() as u64;
        let ports = |address: &str| {
            let scrape = server.scrape();
            ["used", "reserved", "free", "resting"]
                .map(|state| scrape.value("throughway_relay_ports", &[("address", address), ("state", state)]))
        };
        assert_eq!(ports("127.0.0.1"), [0, 0, range, 0]);
        let mut plain = Client::udp(server.udp4());
        plain.allocate();
        let mut pair = Client::tcp(server.tcp4());
        assert_eq!(pair.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::even_port(true)]).code(), 0);
        // F-A6: the port that is held is none of an allocation.
        assert_eq!(ports("127.0.0.1"), [2, 1, range - 3, 0]);
        assert_eq!(plain.refresh(0).code(), 0);
        assert_eq!(ports("127.0.0.1"), [1, 1, range - 3, 1]);
        assert_eq!(ports("::1"), [0, 0, range, 0]);
        let mut six = Client::udp_on_worker(server.udp4(), workers - 1, workers);
        six.allocate_family(false);
        assert_eq!(ports("::1"), [1, 0, range - 1, 0]);
    }

    /// The thread that relays is the one whose processor time rises, and batches tell how much came at once.
    fn load_and_batches_are_those_of_the_worker_that_relays(workers: u8) {
        // The kernel counts time by the tick, so a fast machine must go back and forth more often than a call may.
        let server = Settings::new(workers).limit("packet_rate_per_allocation", "0").start();
        let busy = workers - 1;
        let mut client = Client::udp_on_worker(server.udp4(), busy, workers);
        let relayed = client.allocate();
        let peer = peer(relayed);
        client.bind(CHANNEL, peer.local_addr().unwrap());
        let seconds = |worker: u8| {
            let (_, text) = http::get(server.http(), "/metrics", "localhost");
            let line = format!("throughway_worker_cpu_seconds_total{{worker=\"{worker}\"}} ");
            let line = text.lines().find_map(|text| text.strip_prefix(&line)).expect("a line for each worker");
            line.parse::<f64>().unwrap()
        };
        let batches = |socket: &str, le: &str| {
            server.scrape().value("throughway_batch_datagrams_bucket", &[("socket", socket), ("le", le)])
        };
        let sum = |socket: &str| server.scrape().value("throughway_batch_datagrams_sum", &[("socket", socket)]);
        let before: Vec<f64> = (0..workers).map(seconds).collect();
        let (below, all, datagrams) = (batches("listener", "16"), batches("listener", "64"), sum("listener"));
        server.while_it_stands_still(|| {
            for number in 0..64 {
                client.send_channel(CHANNEL, &payload(number, 1000));
            }
        });
        wait_for("64 datagrams at the peer", || (sum("listener") == datagrams + 64).then_some(()));
        // Twice as many with each call: 1, 2, 4, 8, 16, 32 and the last one.
        assert_eq!(batches("listener", "64") - all, 7);
        assert_eq!(batches("listener", "16") - below, 6);
        assert_eq!(batches("listener", "+Inf"), all + 7);
        // Back and forth, one at a time, until the thread has worked for some clock ticks.
        let began = Instant::now();
        let (mut ping, singles, relayed_sum) = (0, batches("relayed", "1"), sum("relayed"));
        while seconds(busy) < before[usize::from(busy)] + 0.02 {
            assert!(began.elapsed() < e2e::PATIENCE, "no processor time was counted in {ping} packets");
            for _ in 0..200 {
                peer.send_to(b"ping", relayed).unwrap();
                client.expect_data(Origin::Channel(CHANNEL), b"ping");
                ping += 1;
            }
        }
        assert_eq!(sum("relayed"), relayed_sum + ping);
        assert!(batches("relayed", "1") > singles);
        for worker in (0..workers).filter(|worker| *worker != busy) {
            let rose = seconds(worker) - before[usize::from(worker)];
            assert!(rose < 0.01, "worker {worker} had nothing to do and took {rose} s");
        }
    }

    /// Messages that reached a worker are no longer in its inbox, and none was refused.
    fn inboxes_are_emptied(workers: u8) {
        let server = Server::ordinary(workers);
        let streams: Vec<_> = (0..6).map(|_| Client::tcp(server.tcp4())).collect();
        wait_for("the streams to be adopted", || {
            (server.scrape().value("throughway_streams_accepted_total", &[]) == 6).then_some(())
        });
        let scrape = server.scrape();
        assert_eq!(scrape.sum("throughway_worker_inbox_messages"), 0);
        assert_eq!(scrape.sum("throughway_worker_inbox_refused_total"), 0);
        drop(streams);
    }

    /// The process is described under the names that dashboards for any program use.
    fn the_process_is_described(workers: u8) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let server = Server::ordinary(workers);
        let value = |name: &str| server.scrape().value(name, &[]);
        assert!((now..=now + 10).contains(&value("process_start_time_seconds")));
        let open = value("process_open_fds");
        let mut clients: Vec<_> = (0..10).map(|_| Client::udp(server.udp4())).collect();
        for client in &mut clients {
            client.allocate();
        }
        // The scrape's own connection may still be closing, or not.
        assert!((9..=11).contains(&(value("process_open_fds") - open)));
        assert!(value("process_max_fds") >= value("process_open_fds"));
        let resident = server.resident_bytes();
        assert!((resident / 2..resident * 2).contains(&value("process_resident_memory_bytes")));
        assert!(value("process_threads") >= u64::from(workers) + 2);
    }
}

/// Each family once, described, in one piece, with series that differ; and nothing in it that a user chose.
#[test]
fn the_text_is_well_formed_and_names_nobody() {
    let mut server = Server::ordinary(2);
    let mut known = Client::udp(server.udp4()).minted("north-of-everything", "carol");
    known.allocate();
    let mut unknown = Client::udp(server.udp4()).user("mallory", "guessed");
    assert_eq!(unknown.request(METHOD_ALLOCATE, &[Wanted::udp()]).code(), 401);
    let (_, text) = http::get(server.http(), "/metrics", "localhost");
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut current = ("", "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(families.insert(name), "{name} is there twice");
            assert!(help.len() > 10, "{line}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            current = (name, kind);
            continue;
        }
        let (of, value) = line.rsplit_once(' ').unwrap();
        let name = of.split('{').next().unwrap();
        let suffix = name.strip_prefix(current.0).unwrap_or_else(|| panic!("{line} in {}", current.0));
        let of_histogram = current.1 == "histogram" && ["_bucket", "_sum", "_count"].contains(&suffix);
        assert!(suffix.is_empty() || of_histogram, "{line}");
        assert!(series.insert(of), "{of} is there twice");
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    }
    assert!(families.len() > 35, "{families:?}");
    for private in ["carol", "mallory", "alice", &known.local().to_string(), &unknown.local().to_string()] {
        assert!(!text.contains(private), "{private} is in /metrics");
    }
    assert!(text.contains("throughway_ready 1\n"));
    server.signal("TERM");
    assert!(server.wait().success());
}
