//! The system calls that the standard library does not offer, each behind a safe face.
//!
//! epoll, eventfd, batched receive and send with the address that was asked, a few socket options.
//! Everything unsafe of the data path is in this file and in `interfaces`.

#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};

/// Room for one IP_PKTINFO or IPV6_PKTINFO message.
const CONTROL_BYTES: usize = 64;

/// One slot holds the largest datagram there is.
pub(super) const SLOT_BYTES: usize = 65_536;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor that comes back belongs to nobody else.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn control(&self, operation: c_int, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives across the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }

    /// Waits for `fd` to be readable, level-triggered. Closing the descriptor ends it.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), libc::EPOLLIN as u32, token)
    }

    /// Waits for `fd` to be readable, and writable if `write`.
    pub(super) fn modify(&self, fd: BorrowedFd<'_>, token: u64, read: bool, write: bool) -> io::Result<()> {
        let read = if read { libc::EPOLLIN as u32 } else { 0 };
        let write = if write { libc::EPOLLOUT as u32 } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), read | write, token)
    }

    /// Sleeps until something is ready or `timeout` milliseconds are over (-1: for ever).
    pub(super) fn wait(&self, ready: &mut Ready, timeout: i32) -> io::Result<()> {
        ready.count = 0;
        let capacity = ready.events.len() as c_int;
        // SAFETY: the kernel writes at most `capacity` events into the array.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), ready.events.as_mut_ptr(), capacity, timeout) };
        match check(count) {
            Ok(count) => {
                ready.count = count as usize;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What [`Epoll::wait`] found.
pub(super) struct Ready {
    events: Box<[libc::epoll_event]>,
    count: usize,
}

/// One ready descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readiness {
    pub(super) token: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Ready {
    pub(super) fn new(capacity: usize) -> Self {
        Self { events: vec![libc::epoll_event { events: 0, u64: 0 }; capacity].into(), count: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, index: usize) -> Option<Readiness> {
        let event = *self.events[..self.count].get(index)?;
        let (events, token) = (event.events, event.u64);
        let hangup = (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLRDHUP) as u32;
        Some(Readiness { token, readable: events & hangup != 0, writable: events & libc::EPOLLOUT as u32 != 0 })
    }
}

/// Wakes a worker that sleeps in [`Epoll::wait`].
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor that comes back belongs to nobody else.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.0.as_fd()
    }

    pub(super) fn wake(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes are read from `one`. A full counter means that a wake-up is under way already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub(super) fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes are written to `count`. EAGAIN means that nobody woke us.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// Receive slots for a batch, owned by a worker, never by a session.
pub(super) struct Arena {
    bytes: Box<[u8]>,
    slots: usize,
}

impl Arena {
    pub(super) fn new(slots: usize) -> Self {
        // Zeroed by the kernel, page by page as slots are used: small packets touch one page each.
        Self { bytes: vec![0; slots * SLOT_BYTES].into(), slots }
    }

    pub(super) const fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.bytes[slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES]
    }

    /// Several slots as one piece, where streams are read.
    pub(super) fn region(&self, first: usize, slots: usize) -> &[u8] {
        &self.bytes[first * SLOT_BYTES..(first + slots) * SLOT_BYTES]
    }

    /// See [`Arena::region`].
    pub(super) fn region_mut(&mut self, first: usize, slots: usize) -> &mut [u8] {
        &mut self.bytes[first * SLOT_BYTES..(first + slots) * SLOT_BYTES]
    }

    pub(super) fn get(&self, slot: usize, len: usize) -> &[u8] {
        &self.bytes[slot * SLOT_BYTES..][..len]
    }

    /// Where a part of a slot lies, so that it can be sent later without holding a borrow.
    pub(super) fn locate(&self, part: &[u8]) -> Part {
        let start = (part.as_ptr() as usize).wrapping_sub(self.bytes.as_ptr() as usize);
        assert!(start <= self.bytes.len() && part.len() <= self.bytes.len() - start, "a part lies inside the arena");
        Part { start, len: part.len() }
    }

    pub(super) fn part(&self, part: Part) -> &[u8] {
        &self.bytes[part.start..][..part.len]
    }
}

/// Bytes inside an [`Arena`] or a scratch buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    pub(super) start: usize,
    pub(super) len: usize,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// The arrays that `recvmmsg` fills.
pub(super) struct ReceiveBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) slot: usize,
    pub(super) len: usize,
    pub(super) from: SocketAddr,
    /// The local address it was sent to, where the socket was asked to tell.
    pub(super) to: Option<IpAddr>,
}

impl ReceiveBatch {
    pub(super) fn new(capacity: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of each of these plain C structures.
        let (header, iovec, name) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            headers: vec![header; capacity].into(),
            iovecs: vec![iovec; capacity].into(),
            names: vec![name; capacity].into(),
            controls: vec![Control([0; CONTROL_BYTES]); capacity].into(),
        }
    }

    /// Receives up to `count` datagrams into the slots from `first` on; gives how many came.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        arena: &mut Arena,
        first: usize,
        count: usize,
    ) -> io::Result<usize> {
        let count = count.min(self.headers.len()).min(arena.slots() - first);
        for index in 0..count {
            let slot = arena.slot_mut(first + index);
            self.iovecs[index] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
            header.msg_iov = &raw mut self.iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = CONTROL_BYTES;
            header.msg_flags = 0;
        }
        // SAFETY: each header points to its own name, iovec, control buffer and slot, all of which live and stay
        // in place across the call; the kernel writes no more than the lengths given.
        let received = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        check(received).map(|received| received as usize)
    }

    /// The datagram at `index` of the last [`ReceiveBatch::receive`]; `None` if it was cut or has no address.
    pub(super) fn get(&self, index: usize, first: usize) -> Option<Received> {
        let header = self.headers.get(index)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let from = socket_address(self.names.get(index)?)?;
        let to = packet_info(&header.msg_hdr);
        Some(Received { slot: first + index, len: header.msg_len as usize, from, to })
    }
}

/// Reads IP_PKTINFO or IPV6_PKTINFO.
fn packet_info(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel filled `msg_control` and set `msg_controllen` to what it wrote; the CMSG functions stay
    // inside it, and each payload is read unaligned and only for its own type.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(head) = message.as_ref() {
            match (head.cmsg_level, head.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(IpAddr::V4(u32::from_be(info.ipi_addr.s_addr).into()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
        None
    }
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is, and the storage is larger and aligned for all.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(address.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id)))
        }
        _ => None,
    }
}

fn write_socket_address(storage: &mut libc::sockaddr_storage, address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(address) => {
            // SAFETY: the storage is larger than and aligned for every socket address.
            let place = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in>() };
            place.sin_family = libc::AF_INET as u16;
            place.sin_port = address.port().to_be();
            place.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            size_of::<libc::sockaddr_in>() as u32
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let place = unsafe { &mut *(&raw mut *storage).cast::<libc::sockaddr_in6>() };
            place.sin6_family = libc::AF_INET6 as u16;
            place.sin6_port = address.port().to_be();
            place.sin6_flowinfo = 0;
            place.sin6_addr.s6_addr = address.ip().octets();
            place.sin6_scope_id = address.scope_id();
            size_of::<libc::sockaddr_in6>() as u32
        }
    }
}

/// One datagram to be sent: head from the scratch buffer, payload from the arena, zero padding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    pub(super) to: SocketAddr,
    /// The address it must leave from, on wildcard listeners.
    pub(super) from: Option<IpAddr>,
    pub(super) head: Part,
    pub(super) payload: Part,
    pub(super) padding: usize,
}

const IOVECS: usize = 3;

/// The arrays that `sendmmsg` reads.
pub(super) struct SendBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[[libc::iovec; IOVECS]]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

impl SendBatch {
    pub(super) fn new(capacity: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of each of these plain C structures.
        let (header, iovec, name) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            headers: vec![header; capacity].into(),
            iovecs: vec![[iovec; IOVECS]; capacity].into(),
            names: vec![name; capacity].into(),
            controls: vec![Control([0; CONTROL_BYTES]); capacity].into(),
        }
    }

    pub(super) const fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Sends all of `outgoing`, at most [`SendBatch::capacity`]; tells of each that the kernel did not take.
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        outgoing: &[Outgoing],
        scratch: &[u8],
        arena: &Arena,
        mut failed: impl FnMut(usize, io::Error),
    ) {
        static ZEROS: [u8; 4] = [0; 4];
        let count = outgoing.len().min(self.capacity());
        for (index, packet) in outgoing[..count].iter().enumerate() {
            let pieces: [&[u8]; IOVECS] = [
                &scratch[packet.head.start..][..packet.head.len],
                arena.part(packet.payload),
                &ZEROS[..packet.padding],
            ];
            let mut used = 0;
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                self.iovecs[index][used] =
                    libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
                used += 1;
            }
            let name_len = write_socket_address(&mut self.names[index], packet.to);
            let control_len = packet.from.map_or(0, |from| write_packet_info(&mut self.controls[index], from));
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = name_len;
            header.msg_iov = self.iovecs[index].as_mut_ptr();
            header.msg_iovlen = used;
            header.msg_control =
                if control_len == 0 { std::ptr::null_mut() } else { (&raw mut self.controls[index]).cast() };
            header.msg_controllen = control_len;
            header.msg_flags = 0;
        }
        let mut done = 0;
        while done < count {
            // SAFETY: every header from `done` on points to a name, iovecs and control buffer of its own and to bytes
            // of `scratch`, `arena` and `ZEROS`, all borrowed across the call; the kernel only reads them.
            let sent = unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    self.headers[done..].as_mut_ptr(),
                    (count - done) as u32,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            match check(sent) {
                Ok(sent) => done += (sent as usize).max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The first of the rest was refused; the others are none the worse for it.
                    failed(done, error);
                    done += 1;
                }
            }
        }
    }
}

fn write_packet_info(control: &mut Control, from: IpAddr) -> usize {
    fn put<T>(control: &mut Control, level: c_int, kind: c_int, payload: T) -> usize {
        *control = Control([0; CONTROL_BYTES]);
        // SAFETY: the control buffer is aligned for `cmsghdr` and larger than the space that either message
        // needs; the payload is written unaligned.
        unsafe {
            let head = control.0.as_mut_ptr().cast::<libc::cmsghdr>();
            (*head).cmsg_level = level;
            (*head).cmsg_type = kind;
            (*head).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as usize;
            libc::CMSG_DATA(head).cast::<T>().write_unaligned(payload);
            libc::CMSG_SPACE(size_of::<T>() as u32) as usize
        }
    }
    match from {
        IpAddr::V4(ip) => put(
            control,
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            },
        ),
        IpAddr::V6(ip) => put(
            control,
            libc::IPPROTO_IPV6,
            libc::IPV6_PKTINFO,
            libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 },
        ),
    }
}

fn set_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let value = (&raw const *value).cast::<c_void>();
    // SAFETY: `value` points to `size_of::<T>()` readable bytes across the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, size_of::<T>() as u32) }).map(drop)
}

/// Asks the kernel to tell which local address each datagram was sent to.
pub(super) fn tell_destination(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let (level, name) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
    set_option(fd, level, name, &1_i32)
}

/// Sets or clears DF on what a socket sends. Without it a large datagram is cut on the way instead of lost.
pub(super) fn set_dont_fragment(fd: BorrowedFd<'_>, ipv6: bool, on: bool) -> io::Result<()> {
    if ipv6 {
        let mode = if on { libc::IPV6_PMTUDISC_PROBE } else { libc::IPV6_PMTUDISC_DONT };
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &mode)
    } else {
        let mode = if on { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
        set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &mode)
    }
}

/// Makes the kernel choose among the sockets of a reuse-port group by the client's address and port:
/// `(address + port) % sockets`, so that a five-tuple's worker is known and stays.
pub(super) fn steer(fd: BorrowedFd<'_>, ipv6: bool, sockets: u32) -> io::Result<()> {
    // The packet is seen from its payload on; SKF_NET_OFF reaches back to the IP header.
    const NET: u32 = 0xFFF0_0000;
    // IPv4: source address at 12, source port behind a header without options. IPv6: the low word of the source
    // address at 20, the port at 40. A packet with options is steered by other bytes, but always by the same.
    let (address, port) = if ipv6 { (20, 40) } else { (12, 20) };
    let instruction = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NET + address),
        instruction(libc::BPF_MISC | libc::BPF_TAX, 0),
        instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, NET + port),
        instruction(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Raises the limit of open files to its hard maximum; gives the limit that holds now.
pub fn raise_file_limit() -> io::Result<u64> {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the kernel fills `limit`, which is read only after success, and reads it back in `setrlimit`.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()))?;
        let mut limit = limit.assume_init();
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
        }
        Ok(limit.rlim_cur)
    }
}

/// Milliseconds since the machine started, sleep included: the same clock in every process.
pub(super) fn boot_milliseconds() -> u64 {
    let time = read_clock(libc::CLOCK_BOOTTIME);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Microseconds since the machine started, sleep excluded.
pub(super) fn monotonic_microseconds() -> u64 {
    let time = read_clock(libc::CLOCK_MONOTONIC);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

fn read_clock(clock: libc::clockid_t) -> libc::timespec {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel fills `time`; both clocks exist on every Linux that we run on, and zero is a valid value.
    unsafe {
        libc::clock_gettime(clock, time.as_mut_ptr());
        time.assume_init()
    }
}
