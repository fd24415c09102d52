//! One UDP socket that stands for many addresses: the source of each datagram is chosen with IP_PKTINFO,
//! the destination of each received one is read from it. Batches of 64 both ways.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

pub const BATCH: usize = 64;
/// Enough for a payload's frame and stamp; a socket for control messages asks for `MESSAGE_MAX`.
const HEAD_MAX: usize = 96;
/// The longest control message of ours: two names, a realm and a nonce of the longest kind do not come near it.
pub const MESSAGE_MAX: usize = 2_048;
const SLOT: usize = 65_536;
const SMALL_SLOT: usize = 2_048;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Control(pub [u8; 64]);

pub fn bind(address: SocketAddrV4) -> Result<UdpSocket, String> {
    let socket = UdpSocket::bind(address).map_err(|e| format!("bind UDP {address}: {e}"))?;
    socket.set_nonblocking(true).map_err(|e| format!("UDP {address}: {e}"))?;
    let size: libc::c_int = 16 << 20;
    for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        // without CAP_NET_ADMIN the forced form fails and the system's maximum must do
        if set_option(socket.as_raw_fd(), libc::SOL_SOCKET, forced, size).is_err() {
            set_option(socket.as_raw_fd(), libc::SOL_SOCKET, plain, size).map_err(|e| format!("UDP {address}: {e}"))?;
        }
    }
    Ok(socket)
}

pub fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option value is a c_int that outlives the call.
    let result =
        unsafe { libc::setsockopt(fd, level, name, ptr::from_ref(&value).cast(), size_of::<libc::c_int>() as u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn raw_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

pub fn from_raw_address(raw: &libc::sockaddr_in) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr)), u16::from_be(raw.sin_port))
}

/// A socket on every local address, with its receive and send batches.
pub struct ManyAddresses {
    socket: UdpSocket,
    receive: ReceiveBatch,
    send: SendBatch,
}

impl ManyAddresses {
    pub fn open(port: u16, payload: usize) -> Result<Self, String> {
        Self::with_heads(port, payload, HEAD_MAX)
    }

    /// For whole messages without a tail: `push` takes a head of up to `MESSAGE_MAX` bytes.
    pub fn open_for_messages(port: u16) -> Result<Self, String> {
        Self::with_heads(port, 0, MESSAGE_MAX)
    }

    fn with_heads(port: u16, payload: usize, head_max: usize) -> Result<Self, String> {
        let socket = bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
            .map_err(|e| format!("IP_PKTINFO: {e}"))?;
        Ok(Self { socket, receive: ReceiveBatch::new(payload), send: SendBatch::new(BATCH, head_max) })
    }

    /// Queues one datagram: `head` is copied, `tail` is sent from where it lies, then `padding` zeros.
    /// Call `flush` when this returns true: the batch is full.
    pub fn push(
        &mut self,
        from: Ipv4Addr,
        to: SocketAddrV4,
        head: &[&[u8]],
        tail: &'static [u8],
        padding: usize,
    ) -> bool {
        self.send.push(from, to, head, tail, padding);
        self.send.used == BATCH
    }

    /// From now on neighbours in a batch with the same addresses and length leave as one piece that the kernel
    /// cuts (UDP_SEGMENT): a burst costs the sender little more than a packet.
    pub fn segment(&mut self) {
        self.send.segment = true;
    }

    /// Sends what is queued; returns how many the system did not take.
    pub fn flush(&mut self) -> u64 {
        self.send.flush(self.socket.as_raw_fd())
    }

    pub fn send_one(&mut self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) -> bool {
        // control messages can be longer than a queued head
        let mut one = SendBatch::new(1, 0);
        one.push_borrowed(from, to, bytes);
        one.flush(self.socket.as_raw_fd()) == 0
    }

    /// One batch of what has arrived: (source, destination address, bytes) each.
    pub fn receive(&mut self, mut each: impl FnMut(SocketAddrV4, Ipv4Addr, &[u8])) -> usize {
        self.receive.run(self.socket.as_raw_fd(), &mut each)
    }
}

struct ReceiveBatch {
    slot: usize,
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    pieces: Vec<libc::iovec>,
    heads: Vec<libc::mmsghdr>,
}

impl ReceiveBatch {
    fn new(payload: usize) -> Self {
        let slot = if payload + HEAD_MAX <= SMALL_SLOT { SMALL_SLOT } else { SLOT };
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (name, piece, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            slot,
            bytes: vec![0; slot * BATCH],
            names: vec![name; BATCH],
            controls: vec![Control([0; 64]); BATCH],
            pieces: vec![piece; BATCH],
            heads: vec![head; BATCH],
        }
    }

    fn run(&mut self, fd: RawFd, each: &mut impl FnMut(SocketAddrV4, Ipv4Addr, &[u8])) -> usize {
        for n in 0..BATCH {
            self.pieces[n] =
                libc::iovec { iov_base: self.bytes[n * self.slot..].as_mut_ptr().cast(), iov_len: self.slot };
            let head = &mut self.heads[n].msg_hdr;
            head.msg_name = ptr::from_mut(&mut self.names[n]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            head.msg_iov = &mut self.pieces[n];
            head.msg_iovlen = 1;
            head.msg_control = ptr::from_mut(&mut self.controls[n]).cast();
            head.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: every pointer set above leads into vectors of `self` that outlive the call, with their true lengths.
        let got =
            unsafe { libc::recvmmsg(fd, self.heads.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, ptr::null_mut()) };
        let got = usize::try_from(got).unwrap_or(0);
        for n in 0..got {
            let head = &self.heads[n];
            let length = (head.msg_len as usize).min(self.slot);
            let bytes = &self.bytes[n * self.slot..n * self.slot + length];
            let to = destination(&head.msg_hdr).unwrap_or(Ipv4Addr::UNSPECIFIED);
            each(from_raw_address(&self.names[n]), to, bytes);
        }
        got
    }
}

fn destination(head: &libc::msghdr) -> Option<Ipv4Addr> {
    // SAFETY: the kernel filled msg_control and msg_controllen of this header; the CMSG functions stay within
    // them, and in_pktinfo is read unaligned only where level and type say that it is one.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(head);
        while !control.is_null() {
            if (*control).cmsg_level == libc::IPPROTO_IP && (*control).cmsg_type == libc::IP_PKTINFO {
                let info = ptr::read_unaligned(libc::CMSG_DATA(control).cast::<libc::in_pktinfo>());
                return Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)));
            }
            control = libc::CMSG_NXTHDR(head, control);
        }
    }
    None
}

struct SendBatch {
    used: usize,
    segment: bool,
    head_max: usize,
    bytes: Vec<u8>,
    /// head, tail, padding
    pieces: Vec<[libc::iovec; 3]>,
    names: Vec<libc::sockaddr_in>,
    sources: Vec<Ipv4Addr>,
    controls: Vec<Control>,
    heads: Vec<libc::mmsghdr>,
    /// Datagrams of each message: more than one where the kernel cuts.
    counts: Vec<usize>,
}

static PADDING: [u8; 4] = [0; 4];

impl SendBatch {
    fn new(places: usize, head_max: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (name, pieces, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            used: 0,
            segment: false,
            head_max,
            bytes: vec![0; places * head_max],
            pieces: vec![pieces; places],
            names: vec![name; places],
            sources: vec![Ipv4Addr::UNSPECIFIED; places],
            controls: vec![Control([0; 64]); places],
            heads: vec![head; places],
            counts: vec![0; places],
        }
    }

    fn push(&mut self, from: Ipv4Addr, to: SocketAddrV4, head: &[&[u8]], tail: &'static [u8], padding: usize) {
        let mut length = 0;
        let bytes = &mut self.bytes[self.used * self.head_max..][..self.head_max];
        for part in head {
            bytes[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        let head = libc::iovec { iov_base: ptr::null_mut(), iov_len: length }; // its place is set by flush
        self.place(from, to, [head, borrowed(tail), borrowed(&PADDING[..padding])]);
    }

    /// For one message that `flush` sends before `bytes` goes away.
    fn push_borrowed(&mut self, from: Ipv4Addr, to: SocketAddrV4, bytes: &[u8]) {
        let none = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        self.place(from, to, [none, borrowed(bytes), none]);
    }

    fn place(&mut self, from: Ipv4Addr, to: SocketAddrV4, pieces: [libc::iovec; 3]) {
        let n = self.used;
        self.pieces[n] = pieces;
        self.names[n] = raw_address(to);
        self.sources[n] = from;
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        // SAFETY: Control is aligned for cmsghdr and larger than both messages together.
        unsafe { write_control(&mut self.controls[n], 0, libc::IPPROTO_IP, libc::IP_PKTINFO, info) };
        self.used += 1;
    }

    /// How many datagrams from this one on have the same addresses and the same length.
    fn run_from(&self, first: usize, used: usize) -> usize {
        let length = |n: usize| self.pieces[n].iter().map(|piece| piece.iov_len).sum::<usize>();
        let same = |n: &usize| {
            let (one, other) = (&self.names[first], &self.names[*n]);
            one.sin_addr.s_addr == other.sin_addr.s_addr
                && one.sin_port == other.sin_port
                && self.sources[first] == self.sources[*n]
                && length(first) == length(*n)
        };
        let room = (SEGMENTED_MAX / length(first).max(1)).max(1);
        (first..used).take_while(same).count().min(room)
    }

    fn flush(&mut self, fd: RawFd) -> u64 {
        let used = std::mem::take(&mut self.used);
        let (mut first, mut messages) = (0, 0);
        while first < used {
            let run = if self.segment { self.run_from(first, used) } else { 1 };
            for n in first..first + run {
                self.pieces[n][0].iov_base = self.bytes[n * self.head_max..].as_mut_ptr().cast();
            }
            let mut controls = INFO_SPACE;
            if run > 1 {
                let length = self.pieces[first].iter().map(|piece| piece.iov_len).sum::<usize>() as u16;
                // SAFETY: as in `place`; this one lies behind the first.
                unsafe {
                    write_control(&mut self.controls[first], INFO_SPACE, libc::SOL_UDP, libc::UDP_SEGMENT, length)
                };
                controls += SEGMENT_SPACE;
            }
            let head = &mut self.heads[messages].msg_hdr;
            head.msg_control = ptr::from_mut(&mut self.controls[first]).cast();
            head.msg_controllen = controls as _;
            head.msg_name = ptr::from_mut(&mut self.names[first]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            // the pieces of neighbours are neighbours: one gather list
            head.msg_iov = self.pieces[first..].as_mut_ptr().cast();
            head.msg_iovlen = 3 * run;
            self.counts[messages] = run;
            messages += 1;
            first += run;
        }
        let (mut done, mut failed) = (0, 0);
        while done < messages {
            // SAFETY: headers `done..messages` point into vectors of `self`, at 'static tails, or at the bytes that
            // `push_borrowed`'s caller keeps alive over this call.
            let sent = unsafe { libc::sendmmsg(fd, self.heads[done..].as_mut_ptr(), (messages - done) as u32, 0) };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                // the first of the rest was refused: skip it and go on
                Err(_) => {
                    failed += self.counts[done] as u64;
                    done += 1;
                }
            }
        }
        failed
    }
}

/// Bytes of one piece that the kernel cuts, below what an IPv4 datagram holds.
const SEGMENTED_MAX: usize = 60_000;
// SAFETY: arithmetic only.
const INFO_SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as u32) } as usize;
// SAFETY: arithmetic only.
const SEGMENT_SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;
const _: () = assert!(INFO_SPACE + SEGMENT_SPACE <= size_of::<Control>());

/// Writes one control message.
///
/// # Safety
///
/// `at` is a multiple of eight, and the message fits behind it.
unsafe fn write_control<T>(control: &mut Control, at: usize, level: libc::c_int, kind: libc::c_int, value: T) {
    // SAFETY: the caller's promise; Control is aligned for cmsghdr, and the value is written unaligned.
    unsafe {
        let head: *mut libc::cmsghdr = control.0.as_mut_ptr().add(at).cast();
        (*head).cmsg_level = level;
        (*head).cmsg_type = kind;
        (*head).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
        ptr::write_unaligned(libc::CMSG_DATA(head).cast(), value);
    }
}

fn borrowed(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whole or cut by the kernel: what arrives is the same, each datagram from its own source.
    #[test]
    fn bursts_arrive_as_the_datagrams_they_were() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, receiver.local_addr().expect("bound").port());
        let mut sender = ManyAddresses::open(45_106, 160).expect("a socket");
        for segmented in [false, true] {
            if segmented {
                sender.segment();
            }
            // source, head, tail: a run of three, another length, another source
            let sources = [1, 1, 1, 1, 2, 2].map(|last| Ipv4Addr::new(127, 1, 0, last));
            let tails: [&'static [u8]; 6] = [b"abc", b"def", b"ghi", b"jk", b"lm", b"no"];
            for (n, (source, tail)) in sources.iter().zip(tails).enumerate() {
                assert!(!sender.push(*source, to, &[&[n as u8], b"head"], tail, 0));
            }
            assert_eq!(sender.send.run_from(0, 6), 3);
            assert_eq!(sender.flush(), 0);
            for (n, (source, tail)) in sources.iter().zip(tails).enumerate() {
                let mut bytes = [0; 100];
                let (length, from) = receiver.recv_from(&mut bytes).expect("a datagram");
                assert_eq!(bytes[..length], [&[n as u8][..], b"head", tail].concat());
                assert_eq!(from, (*source, 45_106).into());
            }
        }
    }
}
