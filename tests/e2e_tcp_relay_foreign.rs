//! A foreign client of TCP allocations (the crate `turn-client-proto`, RFC 6062), over real sockets: it connects to peers
//! and carries bytes both ways. It takes a ConnectionAttempt for a request where RFC 6062 section 4.4 has an indication, so
//! that peers that connect are not heard by it, and cost it nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use stun_proto::Instant;
use stun_proto::agent::Transmit;
use stun_proto::types::TransportType;
use test_support::e2e::server::deadline;
use test_support::e2e::{PATIENCE, Server, Settings, payload};
use test_support::with_one_and_three_workers;
use turn_client_proto::api::{TurnClientApi, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
use turn_client_proto::tcp::TurnClientTcp;
use turn_types::TurnCredentials;

const TCP: TransportType = TransportType::Tcp;
const WAIT: Duration = Duration::from_millis(5);
/// The first two bytes of a ConnectionAttempt indication.
const CONNECTION_ATTEMPT: [u8; 2] = [0x00, 0x1C];

fn settings(workers: u8) -> Settings {
    let mut settings = Settings::new(workers);
    settings.relay.push(("tcp", "true"));
    settings
}

fn stream_to(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// The client, its control and data connections, and what it heard.
struct Foreign {
    client: TurnClientTcp,
    streams: Vec<(SocketAddr, TcpStream)>,
    started: std::time::Instant,
    events: Vec<TurnEvent>,
    /// What each peer sent, in order.
    received: Vec<(SocketAddr, Vec<u8>)>,
    attempts: usize,
}

impl Foreign {
    fn start(server: &Server) -> Self {
        let control = stream_to(server.tcp4());
        let local = control.local_addr().unwrap();
        let mut config = TurnConfig::new(TurnCredentials::new("alice", "wonderland"));
        config.set_allocation_transport(TCP);
        Self {
            client: TurnClientTcp::allocate(local, server.tcp4(), config),
            streams: vec![(local, control)],
            started: std::time::Instant::now(),
            events: Vec::new(),
            received: Vec::new(),
            attempts: 0,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(i64::try_from(self.started.elapsed().as_nanos()).unwrap())
    }

    fn write(&mut self, from: SocketAddr, bytes: &[u8]) {
        let (_, stream) = self.streams.iter_mut().find(|(local, _)| *local == from).expect("one of its connections");
        stream.write_all(bytes).unwrap();
    }

    /// Goes on for a while.
    fn step(&mut self) {
        let now = self.now();
        match self.client.poll(now) {
            TurnPollRet::AllocateTcpSocket { id, socket, peer_addr } => {
                let data = stream_to(socket.to);
                let local = data.local_addr().unwrap();
                self.streams.push((local, data));
                self.client.allocated_tcp_socket(id, socket, peer_addr, Some(local), now).unwrap();
            }
            TurnPollRet::TcpClose { local_addr, .. } => self.streams.retain(|(local, _)| *local != local_addr),
            TurnPollRet::WaitUntil(_) | TurnPollRet::Closed => {}
        }
        while let Some(transmit) = self.client.poll_transmit(now) {
            self.write(transmit.from, transmit.data.as_ref());
        }
        for at in 0..self.streams.len() {
            self.read(at);
        }
        while let Some(data) = self.client.poll_recv(self.now()) {
            self.keep(data.peer, data.data());
        }
        while let Some(event) = self.client.poll_event() {
            self.events.push(event);
        }
    }

    fn read(&mut self, at: usize) {
        let mut buffer = vec![0; 65_536];
        let (local, stream) = &mut self.streams[at];
        let local = *local;
        match stream.read(&mut buffer) {
            Ok(len) => buffer.truncate(len),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(error) => panic!("{error}"),
        }
        self.attempts += usize::from(at == 0 && buffer.starts_with(&CONNECTION_ATTEMPT));
        let (server, now) = (self.client.remote_addr(), self.now());
        if let TurnRecvRet::PeerData(data) = self.client.recv(Transmit::new(buffer, TCP, server, local), now) {
            let (peer, bytes) = (data.peer, data.data().to_vec());
            self.keep(peer, &bytes);
        }
    }

    fn keep(&mut self, peer: SocketAddr, bytes: &[u8]) {
        match self.received.iter_mut().find(|(from, _)| *from == peer) {
            Some((_, known)) => known.extend_from_slice(bytes),
            None => self.received.push((peer, bytes.to_vec())),
        }
    }

    fn count_from(&self, peer: SocketAddr) -> usize {
        self.received.iter().find(|(from, _)| *from == peer).map_or(0, |(_, bytes)| bytes.len())
    }

    #[track_caller]
    fn until(&mut self, what: impl Fn(&Self) -> bool) {
        let end = deadline();
        while !what(self) {
            assert!(std::time::Instant::now() < end, "{:?}", self.events);
            self.step();
        }
    }

    fn has(&self, what: impl Fn(&TurnEvent) -> bool) -> bool {
        self.events.iter().any(what)
    }

    /// The relayed address, with a permission for peers on this machine.
    #[track_caller]
    fn allocate(&mut self) -> SocketAddr {
        self.until(|own| own.has(|event| matches!(event, TurnEvent::AllocationCreated(TCP, _))));
        let (_, relayed) = self.client.relayed_addresses().next().unwrap();
        let now = self.now();
        self.client.create_permission(TCP, relayed.ip(), now).unwrap();
        self.until(|own| own.has(|event| matches!(event, TurnEvent::PermissionCreated(TCP, _))));
        relayed
    }

    /// Connects to a peer, who speaks first, mostly before the data connection is there.
    #[track_caller]
    fn connect(&mut self, listener: &TcpListener, relayed: SocketAddr, greeting: &[u8]) -> (SocketAddr, TcpStream) {
        let peer = listener.local_addr().unwrap();
        let now = self.now();
        self.client.tcp_connect(peer, now).unwrap();
        listener.set_nonblocking(true).unwrap();
        let end = deadline();
        let (mut stream, from) = loop {
            match listener.accept() {
                Ok(accepted) => break accepted,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(std::time::Instant::now() < end, "the server does not connect: {:?}", self.events);
            self.step();
        };
        stream.set_nonblocking(false).unwrap();
        assert_eq!(from, relayed);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(greeting).unwrap();
        self.until(|own| own.has(|event| matches!(event, TurnEvent::TcpConnected(to) if *to == peer)));
        (peer, stream)
    }

    #[track_caller]
    fn send(&mut self, peer: SocketAddr, bytes: &[u8]) {
        let now = self.now();
        let out = self.client.send_to(TCP, peer, bytes, now).unwrap().expect("something goes out").build();
        self.write(out.from, &out.data);
    }
}

/// Blocks of so many bytes each way: less than any buffer holds, so that one thread can write and then read.
const BLOCK: usize = 10_000;
const BLOCKS: u32 = 20;

with_one_and_three_workers! {
    /// Two peers at once; each byte arrives at its peer and from its peer, in order, also what was sent early.
    fn a_foreign_client_connects_and_carries_bytes_both_ways(workers: u8) {
        let server = settings(workers).start();
        let mut foreign = Foreign::start(&server);
        let relayed = foreign.allocate();
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let mut peers: Vec<_> =
            listeners.iter().map(|listener| foreign.connect(listener, relayed, b"I speak first")).collect();
        let mut expected = vec![b"I speak first".to_vec(); 2];
        for number in 0..BLOCKS {
            for (at, (peer, stream)) in peers.iter_mut().enumerate() {
                let seed = 2 * number + u32::try_from(at).unwrap();
                let (there, back) = (payload(seed, BLOCK), payload(seed + 1_000, BLOCK));
                foreign.send(*peer, &there);
                let mut arrived = vec![0; BLOCK];
                stream.read_exact(&mut arrived).expect("bytes in time");
                assert!(arrived == there, "block {number} to peer {at}");
                stream.write_all(&back).unwrap();
                expected[at].extend_from_slice(&back);
                let count = expected[at].len();
                foreign.until(|own| own.count_from(*peer) >= count);
            }
        }
        for ((peer, _), expected) in peers.iter().zip(&expected) {
            let (_, bytes) = foreign.received.iter().find(|(from, _)| from == peer).unwrap();
            assert!(bytes == expected, "of the bytes from {peer} some are wrong");
        }
        let now = foreign.now();
        foreign.client.delete(now).unwrap();
        foreign.until(|_| server.live() == 0);
        for (_, mut stream) in peers {
            assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "the data connections end with their allocation");
        }
    }

    /// A peer that connects is told to it by an indication, of which it makes nothing; what it has goes on.
    fn an_attempt_that_a_foreign_client_does_not_take_costs_it_nothing(workers: u8) {
        let server = settings(workers).start();
        let mut foreign = Foreign::start(&server);
        let relayed = foreign.allocate();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (peer, mut stream) = foreign.connect(&listener, relayed, b"hello");
        let _unheard = TcpStream::connect(relayed).unwrap();
        foreign.until(|own| own.attempts == 1);
        foreign.send(peer, b"still here");
        let mut arrived = [0; 10];
        stream.read_exact(&mut arrived).expect("bytes in time");
        assert_eq!(&arrived, b"still here");
        stream.write_all(b" and there").unwrap();
        foreign.until(|own| own.count_from(peer) == 15);
        assert_eq!(foreign.streams.len(), 2, "no connection for the attempt: it has learnt it, carry bytes over it");
    }
}
