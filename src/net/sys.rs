//! The system calls that the standard library does not offer, each behind a safe face.
//!
//! epoll, eventfd, batched receive and send with the address that was asked, a few socket options.
//! Everything unsafe of the data path is in this file, in those below it and in `interfaces`.

#![allow(unsafe_code)]

mod address;
mod arena;
mod receive;
mod send;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};

use crate::protocol::time::Ticks;

pub(super) use self::arena::{Arena, Part};
pub(super) use self::receive::{ReceiveBatch, Received};
pub(super) use self::send::{Letters, Outgoing, Segmentation, SendBatch, SendReport};

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

    /// Sleeps until something is ready.
    pub(super) fn wait(&self, ready: &mut Ready) -> io::Result<()> {
        ready.count = 0;
        let capacity = ready.events.len() as c_int;
        // SAFETY: the kernel writes at most `capacity` events into the array.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), ready.events.as_mut_ptr(), capacity, -1) };
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

/// Wakes a worker at a point in time. A timeout of [`Epoll::wait`] would do the same, but the kernel would set it up and
/// take it down for each packet that comes before.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: OwnedFd,
    at: Option<Ticks>,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor that comes back belongs to nobody else.
        let timer =
            check(unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })?;
        // SAFETY: as above.
        Ok(Self { timer: unsafe { OwnedFd::from_raw_fd(timer) }, at: None })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.timer.as_fd()
    }

    /// Rings at `next` or before: a deadline that moved away is found out when it rings.
    pub(super) fn set(&mut self, next: Option<Ticks>) {
        let Some(next) = next else { return };
        if self.at.is_some_and(|at| at <= next) {
            return;
        }
        self.at = Some(next);
        // All zero would switch it off.
        let milliseconds = next.0.max(1);
        let value = libc::timespec {
            tv_sec: (milliseconds / 1000) as libc::time_t,
            tv_nsec: (milliseconds % 1000 * 1_000_000) as libc::c_long,
        };
        let timer = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the kernel reads `timer` during the call; nothing is asked back.
        unsafe {
            libc::timerfd_settime(
                self.timer.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &raw const timer,
                std::ptr::null_mut(),
            );
        }
    }

    /// It rang.
    pub(super) fn clear(&mut self) {
        self.at = None;
        let mut count = 0_u64;
        // SAFETY: eight bytes are written to `count`. EAGAIN means that it was set anew in the meantime.
        unsafe { libc::read(self.timer.as_raw_fd(), (&raw mut count).cast(), 8) };
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

/// Lets the kernel hand over several datagrams of one sender as one piece.
pub(super) fn coalesce(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_UDP, libc::UDP_GRO, &1_i32)
}

/// How often this thread went to sleep by itself.
pub(super) fn voluntary_switches() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills `usage`; all-zero bytes are a valid value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    u64::try_from(usage.ru_nvcsw).unwrap_or(0)
}

/// How many bytes may wait at a socket; the system's limit may hold it lower.
pub(super) fn set_receive_buffer(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &(bytes.min(c_int::MAX as usize) as c_int))
}

/// Sleeps for some microseconds, or a little more.
pub(super) fn sleep(microseconds: u32) {
    std::thread::sleep(std::time::Duration::from_micros(u64::from(microseconds)));
}

/// Sleeps that short are not made longer by the kernel, on this thread.
pub(super) fn sleep_exactly() {
    // SAFETY: no pointers; concerns this thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
}

/// Makes the kernel choose among the sockets of a reuse-port group: by the client's address and port,
/// `(address + port) % workers`, so that a five-tuple's worker is known and stays; and, where each worker has two, by
/// what the datagram is. The first sockets, one for each worker, get ChannelData and Send indications, the others all
/// else.
pub(super) fn steer(fd: BorrowedFd<'_>, ipv6: bool, workers: u32, by_kind: bool) -> io::Result<()> {
    // The packet is seen from its payload on; SKF_NET_OFF reaches back to the IP header. An empty one ends the program
    // at its first load, with socket 0.
    const NET: u32 = 0xFFF0_0000;
    // IPv4: source address at 12, source port behind a header without options. IPv6: the low word of the source
    // address at 20, the port at 40. A packet with options is steered by other bytes, but always by the same.
    let (address, port) = if ipv6 { (20, 40) } else { (12, 20) };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let step = |code: u32, k: u32| jump(code, k, 0, 0);
    let [byte, half, word] = [libc::BPF_B, libc::BPF_H, libc::BPF_W].map(|size| libc::BPF_LD | size | libc::BPF_ABS);
    let [at_least, equal, always] =
        [libc::BPF_JGE, libc::BPF_JEQ, libc::BPF_JA].map(|test| libc::BPF_JMP | test | libc::BPF_K);
    let others = if by_kind { workers } else { 0 };
    let mut program = [
        step(byte, 0),
        jump(at_least, 0x50, 3, 0),
        jump(at_least, 0x40, 4, 0),
        step(half, 0),
        jump(equal, 0x0016, 2, 0),
        // All else.
        step(libc::BPF_LD | libc::BPF_IMM, others),
        jump(always, 1, 0, 0),
        // ChannelData (0x40 to 0x4F) and Send indications.
        step(libc::BPF_LD | libc::BPF_IMM, 0),
        step(libc::BPF_ST, 0),
        step(word, NET + address),
        step(libc::BPF_MISC | libc::BPF_TAX, 0),
        step(half, NET + port),
        step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, workers),
        step(libc::BPF_MISC | libc::BPF_TAX, 0),
        step(libc::BPF_LD | libc::BPF_MEM, 0),
        step(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        step(libc::BPF_RET | libc::BPF_A, 0),
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
