//! The attacks. Each is bounded in count and time, ends by itself, and gives how many units of it were done.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use throughway::wire::message::{METHOD_ALLOCATE, METHOD_BINDING, METHOD_CREATE_PERMISSION, METHOD_REFRESH};

use super::attacker::{Order, SOURCE};
use test_support::e2e::client::{channel_data, request};
use test_support::e2e::{Client, Wanted};

const CHANNEL: u16 = 0x4001;

/// As much as a server reads at once.
const BLOCK_BYTES: usize = 130_000;

/// The peers that fit into one message.
const PEERS: u32 = 5_440;

/// Between two rounds of what comes in bursts.
const BURST_EVERY: Duration = Duration::from_millis(500);

/// An attacker who can write and read nothing rests so long.
const REST: Duration = Duration::from_micros(300);

pub(crate) fn run(order: &Order) -> u64 {
    match order.attack.as_str() {
        "burn" => burn(order),
        "bindings" => flood(order, &bindings(), false),
        "binding bursts" => flood(order, &bindings(), true),
        "bursts and silence" => bursts_and_silence(order),
        "empty ChannelData" => empty_channel_data(order),
        "giant CreatePermission" => giant_create_permission(order),
        "silence" => silence(order),
        "unfinished" => unfinished(order),
        "churn" => churn(order),
        "sessions of many" => sessions_of_many(order),
        "reservations" => reservations(order),
        "datagrams" => datagrams(order),
        "empty datagrams" => empty_datagrams(order),
        "unread" => unread(order),
        other => panic!("no attack {other}"),
    }
}

/// Takes processor time and nothing else: what the others are compared with.
fn burn(order: &Order) -> u64 {
    let until = order.until();
    let spin = move || {
        let mut units = 0_u64;
        while Instant::now() < until {
            units += 1;
        }
        units
    };
    let second = std::thread::spawn(spin);
    spin() + second.join().unwrap()
}

/// A stream from the attackers' address.
fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    connect_with(server, None)
}

/// The same; its kernel takes no more than so many bytes that are not read.
fn connect_with(server: SocketAddr, receive_buffer: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    // The port is chosen by connect: bind would have to find one that no closed connection of the last minute had.
    bind_without_port(&socket)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::new(SOURCE, 0).into())?;
    socket.connect_timeout(&server.into(), Duration::from_secs(2))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

#[allow(unsafe_code)]
fn bind_without_port(socket: &Socket) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        let length = size_of_val(&on) as libc::socklen_t;
        let fd = socket.as_raw_fd();
        libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, (&raw const on).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn client(order: &Order) -> Client {
    let stream = connect(order.target).expect("the attacker can connect");
    Client::tcp_by(stream).user(&order.username, &order.password)
}

fn udp_client(order: &Order) -> Client {
    let socket = UdpSocket::bind((SOURCE, 0)).unwrap();
    Client::udp_by(socket, order.target).user(&order.username, &order.password)
}

fn bindings() -> Vec<u8> {
    let mut block = Vec::new();
    while block.len() < BLOCK_BYTES {
        block.extend_from_slice(&request(METHOD_BINDING, &[], None));
    }
    block
}

/// Writes one block again and again, as fast as it is taken.
struct Writer {
    stream: TcpStream,
    /// Where in the block it is; the block begins anew at its end.
    at: usize,
}

impl Writer {
    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, at: 0 }
    }

    /// Reads what has come, and forgets it; gives how many bytes.
    fn read(&mut self) -> std::io::Result<usize> {
        match self.stream.read(&mut [0; 65_536]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(len),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, block: &[u8]) -> std::io::Result<usize> {
        match self.stream.write(&block[self.at..]) {
            Ok(len) => {
                self.at = (self.at + len) % block.len();
                Ok(len)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Writes a block on many streams without end, or once in a while; those that the server closes come again.
fn flood(order: &Order, block: &[u8], in_bursts: bool) -> u64 {
    let until = order.until();
    let streams = (0..order.count).filter_map(|_| connect(order.target).ok()).map(Writer::new).collect();
    write_blocks(order, streams, block, in_bursts, until) / 20
}

fn write_blocks(order: &Order, mut streams: Vec<Writer>, block: &[u8], in_bursts: bool, until: Instant) -> u64 {
    let (mut written, mut burst_at) = (0_u64, Instant::now());
    let mut left = vec![if in_bursts { 0 } else { u64::MAX }; streams.len()];
    while Instant::now() < until && !streams.is_empty() {
        if in_bursts && Instant::now() >= burst_at {
            left.fill(block.len() as u64);
            burst_at += BURST_EVERY;
        }
        let mut has_progress = false;
        for (stream, left) in streams.iter_mut().zip(&mut left) {
            let count = if *left > 0 { stream.write(&block[..block.len()]) } else { Ok(0) };
            match count.and_then(|count| Ok((count, stream.read()?))) {
                Ok((count, read)) => {
                    *left = left.saturating_sub(count as u64);
                    written += count as u64;
                    has_progress |= count + read > 0;
                }
                Err(_) => {
                    // The server had enough of this one.
                    std::thread::sleep(REST);
                    if let Ok(next) = connect(order.target) {
                        *stream = Writer::new(next);
                    }
                }
            }
        }
        if !has_progress {
            std::thread::sleep(REST);
        }
    }
    written
}

/// Bursts on some streams, while ever more come that say nothing.
fn bursts_and_silence(order: &Order) -> u64 {
    let silent = Order { count: 20_000, target: order.other, ..order.clone() };
    let silent = std::thread::spawn(move || silence(&silent));
    flood(order, &bindings(), true) + silent.join().unwrap()
}

/// Connections that say nothing, so many a second, each held until the end or until the server has enough of it.
fn silence(order: &Order) -> u64 {
    let (begun, until) = (Instant::now(), order.until());
    let mut held = Vec::new();
    let mut tried = 0;
    while Instant::now() < until {
        let due = if order.rate == 0 { f64::MAX } else { begun.elapsed().as_secs_f64() * f64::from(order.rate) };
        if tried < order.count && (tried as f64) < due {
            held.extend(connect(order.target));
            tried += 1;
        } else {
            std::thread::sleep(REST);
        }
    }
    tried as u64
}

/// Connections that each send 64,000 bytes of a message that never ends.
fn unfinished(order: &Order) -> u64 {
    let until = order.until();
    let mut start = vec![0; 64_000];
    start[..8].copy_from_slice(&[0x00, 0x01, 0xFF, 0xFC, 0x21, 0x12, 0xA4, 0x42]);
    let mut held = Vec::new();
    while held.len() < order.count && Instant::now() < until {
        let Ok(mut stream) = connect(order.target) else { continue };
        let _ = stream.set_nonblocking(true).and_then(|()| stream.write(&start).map(|_| ()));
        held.push(stream);
    }
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    held.len() as u64
}

/// Frames of four bytes that carry nothing.
fn empty_channel_data(order: &Order) -> u64 {
    let until = order.until();
    let sink = sink();
    let mut clients: Vec<Client> = (0..order.count).map(|_| client(order)).collect();
    let streams = clients.iter_mut().map(|client| {
        client.allocate_family(true);
        client.bind(CHANNEL, sink.local_addr().unwrap());
        Writer::new(client.stream().try_clone().unwrap())
    });
    let streams = streams.collect();
    write_blocks(order, streams, &channel_data(CHANNEL, &[]).repeat(BLOCK_BYTES / 4), false, until) / 4
}

/// A peer that reads nothing: what comes beyond its buffer is lost in the kernel.
fn sink() -> UdpSocket {
    UdpSocket::bind((SOURCE, 0)).unwrap()
}

/// Requests that name as many peers as a message has room for, on many allocations at once.
fn giant_create_permission(order: &Order) -> u64 {
    let mut clients: Vec<Client> = (0..order.count).map(|_| client(order)).collect();
    let peers = |first: u32| -> Vec<Wanted> {
        let address = |number: u32| std::net::Ipv4Addr::from(0x0800_0000 + first + number);
        (0..PEERS).map(|number| Wanted::peer((address(number), 9).into())).collect()
    };
    let requests: Vec<[Vec<u8>; 2]> = clients
        .iter_mut()
        .map(|client| {
            client.allocate_family(true);
            [0, PEERS].map(|first| request(METHOD_CREATE_PERMISSION, &peers(first), client.login.as_ref()))
        })
        .collect();
    let until = order.until();
    let mut units = 0;
    let mut streams: Vec<Writer> =
        clients.iter_mut().map(|client| Writer::new(client.stream().try_clone().unwrap())).collect();
    while Instant::now() < until {
        for pair in 0..2 {
            for (stream, requests) in streams.iter_mut().zip(&requests) {
                // A server that closes such a stream is within its rights.
                let _ = stream.read();
                units += u64::from(stream.write(&requests[pair]).is_ok_and(|count| count > 0));
            }
        }
        std::thread::sleep(BURST_EVERY);
    }
    units
}

/// Sessions of one user that begin and end without rest; gives how many were granted.
fn churn(order: &Order) -> u64 {
    let until = order.until();
    let granted = || {
        let (mut client, mut granted) = (udp_client(order), 0);
        while Instant::now() < until {
            granted += u64::from(comes_and_goes(&mut client));
        }
        granted
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(granted)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

/// Whether an allocation was granted; it is gone again.
fn comes_and_goes(client: &mut Client) -> bool {
    let is_granted = client.request(METHOD_ALLOCATE, &[Wanted::udp(), Wanted::family(true)]).code() == 0;
    if is_granted {
        client.request(METHOD_REFRESH, &[Wanted::lifetime(0)]);
    }
    is_granted
}

/// One session of each of many users, and then nothing for the rest of the time.
fn sessions_of_many(order: &Order) -> u64 {
    let secret = order.password.as_str();
    let granted = |number| {
        let client = Client::udp_by(UdpSocket::bind((SOURCE, 0)).unwrap(), order.target);
        u64::from(comes_and_goes(&mut client.minted(secret, &format!("visitor-{number}"))))
    };
    let until = order.until();
    let sum = (0..order.count).map(granted).sum();
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    sum
}

/// Ports that are held under RESERVATION-TOKENs that are not redeemed; gives how many were held at once.
fn reservations(order: &Order) -> u64 {
    let until = order.until();
    let mut held = 0;
    let mut client = udp_client(order);
    while Instant::now() < until && held < order.count as u64 {
        let asked = [Wanted::udp(), Wanted::family(true), Wanted::even_port(true)];
        if client.request(METHOD_ALLOCATE, &asked).code() == 0 {
            held += 1;
            client.request(METHOD_REFRESH, &[Wanted::lifetime(0)]);
        } else {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    held
}

/// Datagrams of somebody who has no credential: Binding, Allocate, and what is neither STUN nor ChannelData.
fn datagrams(order: &Order) -> u64 {
    let socket = UdpSocket::bind((SOURCE, 0)).unwrap();
    socket.connect(order.target).unwrap();
    socket.set_nonblocking(true).unwrap();
    let allocate = request(METHOD_ALLOCATE, &[Wanted::udp()], None);
    let kinds = [request(METHOD_BINDING, &[], None), allocate, vec![0xFF; 500], channel_data(CHANNEL, &[1; 40])];
    let (begun, until, mut sent) = (Instant::now(), order.until(), 0_u32);
    while Instant::now() < until {
        if f64::from(sent) < begun.elapsed().as_secs_f64() * f64::from(order.rate) {
            let _ = socket.send(&kinds[sent as usize % kinds.len()]);
            let _ = socket.recv(&mut [0; 500]);
            sent += 1;
        } else {
            std::thread::sleep(REST);
        }
    }
    u64::from(sent)
}

/// Datagrams of a session that carry nothing; gives how many the peer got.
fn empty_datagrams(order: &Order) -> u64 {
    let peer = sink();
    peer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut client = udp_client(order);
    client.allocate_family(true);
    client.bind(CHANNEL, peer.local_addr().unwrap());
    let count = std::thread::spawn(move || {
        let mut units = 0;
        while peer.recv(&mut [0; 16]).is_ok() {
            units += 1;
        }
        units
    });
    let frame = channel_data(CHANNEL, &[]);
    let (begun, until, mut sent) = (Instant::now(), order.until(), 0);
    while Instant::now() < until {
        if f64::from(sent) < begun.elapsed().as_secs_f64() * f64::from(order.rate) {
            // A full buffer of the server is the attacker's loss.
            let _ = client.socket().send(&frame);
            sent += 1;
        } else {
            std::thread::sleep(REST);
        }
    }
    count.join().unwrap()
}

/// Clients over TCP that never read, and get from a peer what carries nothing.
fn unread(order: &Order) -> u64 {
    let peer = sink();
    let stream = || connect_with(order.target, Some(4096)).expect("the attacker can connect");
    let client = |_| Client::tcp_by(stream()).user(&order.username, &order.password);
    let mut clients: Vec<Client> = (0..order.count).map(client).collect();
    let relayed: Vec<SocketAddr> = clients
        .iter_mut()
        .map(|client| {
            let relayed = client.allocate_family(true);
            client.bind(CHANNEL, peer.local_addr().unwrap());
            relayed
        })
        .collect();
    let (until, mut units) = (order.until(), 0);
    while Instant::now() < until {
        for relayed in &relayed {
            for _ in 0..16 {
                units += u64::from(peer.send_to(&[], *relayed).is_ok());
            }
        }
    }
    units
}
