//! Innocent calls beside an attack: numbered, paced packets both ways, each with the time that it took.
//!
//! The kernel says when a datagram arrived, so a reader that the machine lets wait does not look like a slow server.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use test_support::e2e::client::channel_data;
use test_support::e2e::{Client, Server, peer};

/// One packet of one call and way leaves at each tick, in turn.
const TICK: Duration = Duration::from_millis(1);

/// How long the last packets may take to arrive before they count as lost.
const GRACE: Duration = Duration::from_secs(3);

const UDP_CALLS: u8 = 3;
const CHANNEL: u16 = 0x4A11;
const PAYLOAD_BYTES: usize = 160;

/// Nanoseconds of the clock that the kernel stamps datagrams with.
pub(crate) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// One packet: when it left, and how many nanoseconds later it arrived.
struct Packet {
    sent_at: u64,
    delay: Option<u64>,
}

/// Both ends of a call.
struct Call {
    /// Owns the session.
    _client: Client,
    end: ClientEnd,
    peer: UdpSocket,
    relayed: SocketAddr,
}

enum ClientEnd {
    Udp(UdpSocket),
    Tcp(TcpStream, Vec<u8>),
}

impl Call {
    fn new(mut client: Client) -> Self {
        let relayed = client.allocate();
        let peer = peer(relayed);
        client.bind(CHANNEL, peer.local_addr().unwrap());
        let end = if client.is_stream() {
            ClientEnd::Tcp(client.stream().try_clone().unwrap(), Vec::new())
        } else {
            ClientEnd::Udp(client.socket().try_clone().unwrap())
        };
        stamp(&peer);
        match &end {
            ClientEnd::Udp(socket) => stamp(socket),
            ClientEnd::Tcp(stream, _) => stream.set_nonblocking(true).unwrap(),
        }
        Self { _client: client, end, peer, relayed }
    }

    fn send_up(&mut self, payload: &[u8]) {
        let bytes = channel_data(CHANNEL, payload);
        match &mut self.end {
            ClientEnd::Udp(socket) => assert_eq!(socket.send(&bytes).unwrap(), bytes.len()),
            ClientEnd::Tcp(stream, _) => stream.write_all(&bytes).expect("the server reads the stream of a call"),
        }
    }

    fn send_down(&self, payload: &[u8]) {
        assert_eq!(self.peer.send_to(payload, self.relayed).unwrap(), payload.len());
    }

    /// Everything that has arrived at either end: payload, and when.
    fn receive(&mut self, mut take: impl FnMut(&[u8], u64)) {
        let mut buffer = [0; 2048];
        while let Some((len, at)) = receive_stamped(&self.peer, &mut buffer) {
            take(&buffer[..len], at);
        }
        match &mut self.end {
            ClientEnd::Udp(socket) => {
                while let Some((len, at)) = receive_stamped(socket, &mut buffer) {
                    take(&buffer[4..len], at);
                }
            }
            ClientEnd::Tcp(stream, pending) => {
                match stream.read(&mut buffer) {
                    Ok(0) => panic!("the server closed the stream of a call"),
                    Ok(len) => pending.extend_from_slice(&buffer[..len]),
                    Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)),
                }
                let frame = 4 + PAYLOAD_BYTES;
                let whole = pending.len() / frame * frame;
                for bytes in pending.drain(..whole).as_slice().chunks(frame) {
                    take(&bytes[4..], wall_clock());
                }
            }
        }
    }

    fn ends(&self) -> [BorrowedFd<'_>; 2] {
        let client = match &self.end {
            ClientEnd::Udp(socket) => socket.as_fd(),
            ClientEnd::Tcp(stream, _) => stream.as_fd(),
        };
        [self.peer.as_fd(), client]
    }
}

/// Has the kernel note when each datagram arrives.
#[allow(unsafe_code)]
fn stamp(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    socket.set_nonblocking(true).unwrap();
}

/// One datagram and when it arrived; nothing when none waits.
#[allow(unsafe_code)]
fn receive_stamped(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, u64)> {
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: the message names memory of this function and of the caller, with its true lengths.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(len).ok()?;
    // SAFETY: the kernel has filled the control buffer as the header says; a timespec may lie unaligned in it.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_TIMESTAMPNS {
                let time = libc::CMSG_DATA(head).cast::<libc::timespec>().read_unaligned();
                return Some((len, time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64));
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
    }
    Some((len, wall_clock()))
}

/// Waits until one of them is readable or the time is over.
#[allow(unsafe_code)]
fn wait(ends: &[BorrowedFd<'_>], time: Duration) {
    let mut polled: Vec<libc::pollfd> =
        ends.iter().map(|end| libc::pollfd { fd: end.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let time = libc::timespec { tv_sec: time.as_secs() as _, tv_nsec: time.subsec_nanos().into() };
    // SAFETY: the array and the time live through the call, and the length is the array's.
    unsafe { libc::ppoll(polled.as_mut_ptr(), polled.len() as _, &raw const time, std::ptr::null()) };
}

/// Calls that go on until this is dropped.
pub(crate) struct Calls {
    stop: Arc<AtomicBool>,
    packets: Arc<Mutex<Vec<Packet>>>,
    thread: Option<JoinHandle<()>>,
}

impl Calls {
    /// Three over UDP, one on each of three workers, and one over TCP.
    pub(crate) fn start(server: &Server) -> Self {
        let workers = server.settings.workers;
        let mut calls: Vec<Call> = (0..UDP_CALLS)
            .map(|number| Call::new(Client::udp_on_worker(server.udp4(), number % workers, workers)))
            .collect();
        calls.push(Call::new(Client::tcp(server.tcp4())));
        let (stop, packets) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&packets));
        let thread = std::thread::spawn(move || carry(&mut calls, &stopped, &noted));
        Self { stop, packets, thread: Some(thread) }
    }

    /// The packets that were sent within a span of the wall clock; waits for those that are under way.
    #[track_caller]
    pub(crate) fn between(&self, from: u64, to: u64) -> Figures {
        let deadline = Instant::now() + GRACE;
        loop {
            let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!has_ended, "a call ended under the attack");
            let packets = self.packets.lock().unwrap();
            let within = packets.iter().filter(|packet| (from..to).contains(&packet.sent_at));
            let mut delays: Vec<u64> = within.map(|packet| packet.delay.unwrap_or(u64::MAX)).collect();
            drop(packets);
            delays.sort_unstable();
            let lost = delays.iter().filter(|delay| **delay == u64::MAX).count();
            if lost == 0 || Instant::now() > deadline {
                return Figures { lost, delays };
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Calls {
    /// Ends them before the server does.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.stop();
    }
}

fn carry(calls: &mut [Call], stop: &AtomicBool, packets: &Mutex<Vec<Packet>>) {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            // One that the machine let wait does not send what it has missed in one go.
            next = (next + TICK).max(now);
            let mut packets = packets.lock().unwrap();
            let (number, ways) = (packets.len(), 2 * calls.len());
            packets.push(Packet { sent_at: wall_clock(), delay: None });
            drop(packets);
            let mut payload = [0x5A; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let call = &mut calls[number % ways / 2];
            if number.is_multiple_of(2) { call.send_up(&payload) } else { call.send_down(&payload) }
        }
        for call in &mut *calls {
            call.receive(|payload, at| {
                assert_eq!(payload.len(), PAYLOAD_BYTES, "a packet of a call was cut");
                let number = u64::from_be_bytes(payload[..8].try_into().unwrap()) as usize;
                let packet = &mut packets.lock().unwrap()[number];
                assert!(packet.delay.is_none(), "packet {number} of a call came twice");
                packet.delay = Some(at.saturating_sub(packet.sent_at));
            });
        }
        let ends: Vec<BorrowedFd<'_>> = calls.iter().flat_map(Call::ends).collect();
        wait(&ends, next.saturating_duration_since(Instant::now()).min(TICK));
    }
}

/// The packets of a span of time.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) lost: usize,
    /// Nanoseconds, sorted; those of the lost are the greatest.
    delays: Vec<u64>,
}

impl Figures {
    pub(crate) fn count(&self) -> usize {
        self.delays.len()
    }

    /// Nanoseconds that this share of the packets did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let last = self.delays.len().saturating_sub(1);
        self.delays.get((last as f64 * share).round() as usize).copied().unwrap_or(u64::MAX)
    }

    pub(crate) fn slower_than(&self, nanoseconds: u64) -> usize {
        self.delays.len() - self.delays.partition_point(|delay| *delay <= nanoseconds)
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |share| match self.quantile(share) {
            u64::MAX => "lost".to_owned(),
            delay => format!("{:.2} ms", delay as f64 / 1e6),
        };
        let (p50, p99, longest) = (ms(0.5), ms(0.99), ms(1.0));
        write!(out, "{:6} packets, {} lost, p50 {p50}, p99 {p99}, longest {longest}", self.count(), self.lost)
    }
}
