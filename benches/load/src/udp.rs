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
    head_max: usize,
    bytes: Vec<u8>,
    /// head, tail, padding
    pieces: Vec<[libc::iovec; 3]>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    heads: Vec<libc::mmsghdr>,
}

static PADDING: [u8; 4] = [0; 4];

impl SendBatch {
    fn new(places: usize, head_max: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (name, pieces, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            used: 0,
            head_max,
            bytes: vec![0; places * head_max],
            pieces: vec![pieces; places],
            names: vec![name; places],
            controls: vec![Control([0; 64]); places],
            heads: vec![head; places],
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
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let head = &mut self.heads[n].msg_hdr;
        head.msg_control = ptr::from_mut(&mut self.controls[n]).cast();
        // SAFETY: Control is aligned for cmsghdr and larger than CMSG_SPACE of in_pktinfo; the length set
        // first makes CMSG_FIRSTHDR return its start.
        unsafe {
            head.msg_controllen = libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as u32) as _;
            let control = libc::CMSG_FIRSTHDR(head);
            (*control).cmsg_level = libc::IPPROTO_IP;
            (*control).cmsg_type = libc::IP_PKTINFO;
            (*control).cmsg_len = libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as u32) as _;
            ptr::write_unaligned(libc::CMSG_DATA(control).cast(), info);
        }
        self.used += 1;
    }

    fn flush(&mut self, fd: RawFd) -> u64 {
        let used = std::mem::take(&mut self.used);
        for n in 0..used {
            self.pieces[n][0].iov_base = self.bytes[n * self.head_max..].as_mut_ptr().cast();
            let head = &mut self.heads[n].msg_hdr;
            head.msg_name = ptr::from_mut(&mut self.names[n]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            head.msg_iov = self.pieces[n].as_mut_ptr();
            head.msg_iovlen = 3;
        }
        let (mut done, mut failed) = (0, 0);
        while done < used {
            // SAFETY: headers `done..used` point into vectors of `self`, at 'static tails, or at the bytes that
            // `push_borrowed`'s caller keeps alive over this call.
            let sent = unsafe { libc::sendmmsg(fd, self.heads[done..].as_mut_ptr(), (used - done) as u32, 0) };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                // the first of the rest was refused: skip it and go on
                Err(_) => {
                    done += 1;
                    failed += 1;
                }
            }
        }
        failed
    }
}

fn borrowed(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}
