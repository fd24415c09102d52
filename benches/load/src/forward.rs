//! The bare forwarder: what relaying costs when nothing but the system calls is done.
//!
//! Session n is the n-th client address and the n-th peer address by convention, so nothing is looked up, checked or
//! counted. One thread, level-triggered epoll, one `recvmsg` and one send per packet; with `--batch` the
//! listener is read with `recvmmsg` and written with one `sendmmsg` per loop. `--gso` is `forward_gso`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use crate::flags::Flags;
use crate::forward_uring;
use crate::plan::{Places, Transport, channel_of, parse_transport};
use crate::stream::{Connection, Poll};
use crate::sys;
use crate::udp::{self, BATCH, from_raw_address, raw_address};

pub const LISTENER: u64 = u64::MAX;
const STREAM: u64 = 1 << 32;
const SLOT: usize = 65_536;
const SMALL_SLOT: usize = 2_048;

pub fn main(mut flags: Flags) -> Result<(), String> {
    let transport = parse_transport(&mut flags)?;
    let places = Places::parse(&mut flags, "listen")?;
    let sessions: usize = flags.or("sessions", 200)?;
    let seconds: u32 = flags.or("seconds", 60)?;
    let (batch, gso) = (flags.switch("batch"), flags.switch("gso"));
    let to_partner = match flags.or("to-partner", "no".to_owned())?.as_str() {
        "yes" => true,
        "no" => false,
        other => return Err(format!("--to-partner: `{other}` is neither yes nor no")),
    };
    let uring = flags.optional("uring")?;
    let min_wait = flags.or("min-wait", 0)?;
    flags.finish()?;
    sys::end_after(seconds.clamp(1, 600));
    sys::raise_open_files();
    let relays = (0..sessions).map(|n| udp::bind(places.bare_relay(n))).collect::<Result<Vec<_>, _>>()?;
    if let Some(design) = uring {
        return forward_uring::over_udp(&places, &relays, design, min_wait);
    }
    let mut poll = Poll::new()?;
    for (n, relay) in relays.iter().enumerate() {
        poll.add(relay.as_raw_fd(), n as u64)?;
    }
    match transport {
        Transport::Udp if to_partner => between_clients(&mut poll, &places, batch),
        Transport::Udp if gso => crate::forward_gso::over_udp(&mut poll, &places, &relays),
        Transport::Udp => over_udp(&mut poll, &places, &relays, batch),
        Transport::Tcp => over_tcp(&mut poll, &places, &relays),
    }
}

fn over_udp(poll: &mut Poll, places: &Places, relays: &[UdpSocket], batch: bool) -> Result<(), String> {
    let listener = udp::bind(places.server)?;
    poll.add(listener.as_raw_fd(), LISTENER)?;
    let fd = listener.as_raw_fd();
    let mut slots = Slots::new();
    let mut outgoing = Slots::new();
    let mut ready = Vec::new();
    let relay_of = |from: &libc::sockaddr_in| relays.get(places.session_of_client(*from_raw_address(from).ip()));
    loop {
        ready.clear();
        poll.wait(-1, |token| ready.push(token));
        for token in &ready {
            if *token != LISTENER {
                let n = *token as usize;
                if batch {
                    if let Some(length) = outgoing.receive_into(relays[n].as_raw_fd()) {
                        outgoing.queue(length, places.client(n));
                        if outgoing.used == BATCH {
                            outgoing.send_all(fd);
                        }
                    }
                } else if let Some((bytes, _)) = slots.receive_one(relays[n].as_raw_fd()) {
                    send_to(fd, bytes, places.client(n));
                }
            } else if batch {
                for k in 0..slots.receive_many(fd) {
                    if let Some(relay) = relay_of(&slots.names[k]) {
                        let peer = places.peer(places.session_of_client(*from_raw_address(&slots.names[k]).ip()));
                        send_to(relay.as_raw_fd(), slots.received(k), peer);
                    }
                }
            } else {
                for _ in 0..BATCH {
                    let Some((bytes, from)) = slots.receive_one(fd) else {
                        break;
                    };
                    if let Some(relay) = relay_of(&from) {
                        let peer = places.peer(places.session_of_client(*from_raw_address(&from).ip()));
                        send_to(relay.as_raw_fd(), bytes, peer);
                    }
                }
            }
        }
        outgoing.send_all(fd);
    }
}

/// The floor of two clients who are each other's peers: one receive and one send for what goes from one to the other.
fn between_clients(poll: &mut Poll, places: &Places, batch: bool) -> Result<(), String> {
    let listener = udp::bind(places.server)?;
    poll.add(listener.as_raw_fd(), LISTENER)?;
    let fd = listener.as_raw_fd();
    let mut slots = Slots::new();
    let partner = |from: &libc::sockaddr_in| places.client(places.session_of_client(*from_raw_address(from).ip()) ^ 1);
    loop {
        poll.wait(-1, |_| ());
        if batch {
            for k in 0..slots.receive_many(fd) {
                send_to(fd, slots.received(k), partner(&slots.names[k]));
            }
        } else if let Some((bytes, from)) = slots.receive_one(fd) {
            send_to(fd, bytes, partner(&from));
        }
    }
}

fn over_tcp(poll: &mut Poll, places: &Places, relays: &[UdpSocket]) -> Result<(), String> {
    let listener = TcpListener::bind(places.server).map_err(|e| format!("bind TCP {}: {e}", places.server))?;
    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    poll.add(listener.as_raw_fd(), LISTENER)?;
    let mut connections: Vec<Option<Connection>> = relays.iter().map(|_| None).collect();
    let mut slots = Slots::new();
    let mut ready = Vec::new();
    loop {
        ready.clear();
        poll.wait(-1, |token| ready.push(token));
        for token in ready.iter().copied() {
            if token == LISTENER {
                while let Ok((stream, std::net::SocketAddr::V4(from))) = listener.accept() {
                    let n = places.session_of_client(*from.ip());
                    stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(|e| e.to_string())?;
                    if n < connections.len() {
                        let connection = Connection::adopt(stream);
                        poll.add(connection.fd(), STREAM | n as u64)?;
                        connections[n] = Some(connection);
                    }
                }
                continue;
            }
            let n = (token & (STREAM - 1)) as usize;
            let Some(connection) = &mut connections[n] else {
                continue;
            };
            if token & STREAM != 0 {
                let (relay, peer) = (relays[n].as_raw_fd(), places.peer(n));
                connection.receive(|frame| send_to(relay, &frame[4..], peer));
                if connection.closed {
                    connections[n] = None;
                }
            } else if let Some((bytes, _)) = slots.receive_one(relays[n].as_raw_fd()) {
                let mut head = [0; 4];
                head[..2].copy_from_slice(&channel_of(n).to_be_bytes());
                head[2..].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
                let padding = [0; 3];
                let padding = &padding[..bytes.len().wrapping_neg() & 3];
                write_gathered(connection.fd(), [&head, bytes, padding]);
            }
        }
    }
}

/// A frame the buffer does not take whole is cut off: the generator reports it, and it does not happen at
/// the rates this is run at.
fn write_gathered(fd: RawFd, parts: [&[u8]; 3]) {
    let pieces = parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    // SAFETY: the pieces point at slices that outlive the call.
    unsafe { libc::writev(fd, pieces.as_ptr(), 3) };
}

pub fn send_to(fd: RawFd, bytes: &[u8], to: SocketAddrV4) {
    let name = raw_address(to);
    // SAFETY: the slice and the address outlive the call.
    unsafe {
        libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, (&raw const name).cast(), size_of_val(&name) as u32)
    };
}

struct Slots {
    used: usize,
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_in>,
    pieces: Vec<libc::iovec>,
    heads: Vec<libc::mmsghdr>,
}

impl Slots {
    fn new() -> Self {
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (piece, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let nowhere = raw_address(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        Self {
            used: 0,
            bytes: vec![0; SLOT.max(SMALL_SLOT * BATCH)],
            names: vec![nowhere; BATCH],
            pieces: vec![piece; BATCH],
            heads: vec![head; BATCH],
        }
    }

    /// One `recvmsg`: the datagram and its source.
    fn receive_one(&mut self, fd: RawFd) -> Option<(&[u8], libc::sockaddr_in)> {
        self.pieces[0] = libc::iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: SLOT };
        let head = &mut self.heads[0].msg_hdr;
        head.msg_name = ptr::from_mut(&mut self.names[0]).cast();
        head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        head.msg_iov = &mut self.pieces[0];
        head.msg_iovlen = 1;
        // SAFETY: the header's pointers lead into vectors of `self` with their true lengths.
        let got = unsafe { libc::recvmsg(fd, head, libc::MSG_DONTWAIT) };
        let got = usize::try_from(got).ok()?;
        Some((&self.bytes[..got], self.names[0]))
    }

    fn receive_many(&mut self, fd: RawFd) -> usize {
        for k in 0..BATCH {
            self.prepare(k, SMALL_SLOT);
        }
        // SAFETY: as in `receive_one`, for every header.
        let got =
            unsafe { libc::recvmmsg(fd, self.heads.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, ptr::null_mut()) };
        usize::try_from(got).unwrap_or(0)
    }

    fn received(&self, k: usize) -> &[u8] {
        &self.bytes[k * SMALL_SLOT..k * SMALL_SLOT + (self.heads[k].msg_len as usize).min(SMALL_SLOT)]
    }

    /// One `recv` into the next free slot, for `queue`.
    fn receive_into(&mut self, fd: RawFd) -> Option<usize> {
        let slot = &mut self.bytes[self.used * SMALL_SLOT..(self.used + 1) * SMALL_SLOT];
        // SAFETY: the slice outlives the call.
        let got = unsafe { libc::recv(fd, slot.as_mut_ptr().cast(), slot.len(), libc::MSG_DONTWAIT) };
        usize::try_from(got).ok()
    }

    fn queue(&mut self, length: usize, to: SocketAddrV4) {
        self.prepare(self.used, length);
        self.names[self.used] = raw_address(to);
        self.used += 1;
    }

    fn prepare(&mut self, k: usize, length: usize) {
        self.pieces[k] = libc::iovec { iov_base: self.bytes[k * SMALL_SLOT..].as_mut_ptr().cast(), iov_len: length };
        let head = &mut self.heads[k].msg_hdr;
        head.msg_name = ptr::from_mut(&mut self.names[k]).cast();
        head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        head.msg_iov = &mut self.pieces[k];
        head.msg_iovlen = 1;
    }

    fn send_all(&mut self, fd: RawFd) {
        let used = std::mem::take(&mut self.used);
        let mut done = 0;
        while done < used {
            // SAFETY: headers `done..used` were set by `queue` and point into vectors of `self`.
            let sent = unsafe { libc::sendmmsg(fd, self.heads[done..].as_mut_ptr(), (used - done) as u32, 0) };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => done += 1,
            }
        }
    }
}
