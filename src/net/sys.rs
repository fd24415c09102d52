//! The system calls that the standard library does not offer, each behind a safe face.
//!
//! epoll, eventfd and timerfd (through rustix), batched receive and send with the address that was asked, a few socket
//! options. Everything unsafe of the data path is in this file, in those below it and in `interfaces`.

#![allow(unsafe_code)]

mod address;
mod arena;
mod errors;
#[cfg(target_env = "gnu")]
mod names;
mod netlink;
pub(crate) mod process;
mod receive;
mod segmentation;
mod send;
pub(super) mod user;

use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{c_int, c_void};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::time::Ticks;

pub(super) use self::arena::{Arena, Part};
pub(super) use self::errors::{SocketError, socket_error};
pub(super) use self::netlink::{netlink, strict};
pub(super) use self::receive::{ReceiveBatch, Received};
pub(super) use self::segmentation::{ListenerSegmentation, RelaySegmentation, Segmentation, Unsegmented};
pub(super) use self::send::{PENDING_ERRORS_MAX, PreparedBatch, SendBatch, SendReport, Transmit, may_be_pending};

/// Keeps a statically linked program from loading libraries of the machine that it runs on. Call it before anything else.
pub(crate) fn keep_to_linked_libraries() {
    // Others have no libraries of services, or are meant to load them.
    #[cfg(target_env = "gnu")]
    if cfg!(target_feature = "crt-static") {
        names::use_linked_services();
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// A set that another process made.
    pub(super) const fn adopted(set: OwnedFd) -> Self {
        Self(set)
    }

    /// The number of its descriptor.
    pub(super) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Waits for `fd` to be readable, level-triggered. Closing the descriptor ends it.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }

    /// Waits for `fd` no more; needed where closing it does not close what it stands for, because there is a duplicate.
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        // One that was never added is not there either.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for `fd` to be readable if `read`, and writable if `write`.
    pub(super) fn modify(&self, fd: BorrowedFd<'_>, token: u64, read: bool, write: bool) -> io::Result<()> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, read);
        flags.set(epoll::EventFlags::OUT, write);
        Ok(epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Finds what is ready; if that is nothing and it `may_sleep`, sleeps until something is.
    pub(super) fn wait(&self, ready: &mut Ready, may_sleep: bool) -> io::Result<()> {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        ready.count = 0;
        match epoll::wait(&self.0, &mut *ready.events, if may_sleep { None } else { Some(&AT_ONCE) }) {
            Ok(count) => ready.count = count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What [`Epoll::wait`] found.
pub(super) struct Ready {
    events: Box<[epoll::Event]>,
    count: usize,
}

/// One ready descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readiness {
    pub(super) token: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// An error waits, or the connection is over.
    pub(super) failed: bool,
}

impl Ready {
    pub(super) fn new(capacity: usize) -> Self {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Self { events: vec![none; capacity].into(), count: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, index: usize) -> Option<Readiness> {
        use epoll::EventFlags as Flags;
        let epoll::Event { flags, data } = *self.events[..self.count].get(index)?;
        let readable = flags.intersects(Flags::IN | Flags::HUP | Flags::ERR | Flags::RDHUP);
        Some(Readiness {
            token: data.u64(),
            readable,
            writable: flags.contains(Flags::OUT),
            failed: flags.contains(Flags::ERR),
        })
    }
}

/// Wakes a worker that sleeps in [`Epoll::wait`].
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn wake(&self) {
        // A full counter means that a wake-up is under way already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        // EAGAIN means that there was no wake-up.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// Milliseconds of a tick: alarms within one ring together, so that thousands of deadlines, none of which must be met
/// to the millisecond, don't wake an idle worker one by one.
const ALARM_TICK: u64 = 256;

/// Wakes a worker at a point in time, or up to a tick later. A timeout of [`Epoll::wait`] would do the same, but the kernel
/// would set it up and take it down for each packet that comes before.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: OwnedFd,
    at: Option<Ticks>,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self { timer: timerfd_create(TimerfdClockId::Boottime, flags)?, at: None })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Rings in the tick after `next` or before: a deadline that moved away is found out when it rings.
    pub(super) fn set(&mut self, next: Option<Ticks>) {
        let Some(next) = next.map(|next| Ticks(next.0.next_multiple_of(ALARM_TICK))) else { return };
        if self.at.is_some_and(|at| at <= next) {
            return;
        }
        self.at = Some(next);
        // All zero would switch it off.
        let milliseconds = next.0.max(1);
        let it_value =
            Timespec { tv_sec: (milliseconds / 1000) as i64, tv_nsec: (milliseconds % 1000 * 1_000_000) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        // A timer of ours takes any time.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once);
    }

    /// It rang.
    pub(super) fn clear(&mut self) {
        self.at = None;
        // EAGAIN means that it was set anew in the meantime.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
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

/// How a socket sends datagrams that are too large for their path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LargeDatagrams {
    /// In fragments that fit the path, as far as it is known.
    InFragments,
    /// Over IPv4 in fragments that fit the first link, further ones without DF: the kernel heeds no ICMP error about their
    /// size, which anybody can forge, and tells of it. Over IPv6, where routers don't cut, as [`Self::InFragments`].
    InFragmentsOfLink,
    /// With DF: whole or not at all.
    Whole,
}

/// What becomes of large datagrams (ip(7) and ipv6(7): IP_MTU_DISCOVER).
pub(super) fn set_large_datagrams(fd: BorrowedFd<'_>, ipv6: bool, how: LargeDatagrams) -> io::Result<()> {
    if ipv6 {
        let mode = match how {
            LargeDatagrams::InFragments | LargeDatagrams::InFragmentsOfLink => libc::IPV6_PMTUDISC_DONT,
            LargeDatagrams::Whole => libc::IPV6_PMTUDISC_PROBE,
        };
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &mode)
    } else {
        let mode = match how {
            LargeDatagrams::InFragments => libc::IP_PMTUDISC_DONT,
            LargeDatagrams::InFragmentsOfLink => libc::IP_PMTUDISC_OMIT,
            LargeDatagrams::Whole => libc::IP_PMTUDISC_PROBE,
        };
        set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &mode)
    }
}

/// Asks the kernel to tell DSCP and ECN of each datagram, or not to tell them any more.
pub(super) fn tell_class(fd: BorrowedFd<'_>, yes: bool) -> io::Result<()> {
    let is_ipv6 = socket2::SockRef::from(&fd).domain()? == socket2::Domain::IPV6;
    let (level, name) =
        if is_ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS) } else { (libc::IPPROTO_IP, libc::IP_RECVTOS) };
    set_option(fd, level, name, &i32::from(yes))
}

/// Asks the kernel to keep what ICMP says of a socket's datagrams, for [`socket_error`]. From then on each such error also
/// fails one call that has nothing to do with it, see [`may_be_pending`].
pub(super) fn tell_icmp_errors(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let (level, name) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    set_option(fd, level, name, &1_i32)
}

/// Lets the kernel hand over several datagrams of one sender as one piece.
pub(super) fn coalesce(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option(fd, libc::SOL_UDP, libc::UDP_GRO, &1_i32)
}

/// Whether a socket does so already.
pub(super) fn coalesces(fd: BorrowedFd<'_>) -> bool {
    let (mut value, mut len) = (0_i32, size_of::<i32>() as u32);
    let into = (&raw mut value).cast::<c_void>();
    // SAFETY: `into` points to `len` writable bytes across the call, and `len` is ours.
    let asked = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, into, &raw mut len) };
    asked == 0 && value != 0
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
    // A kernel that refuses makes sleeps longer, no more.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
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
        jump(at_least, 0x80, 3, 0),
        jump(at_least, 0x40, 4, 0),
        step(half, 0),
        jump(equal, 0x0016, 2, 0),
        // All else.
        step(libc::BPF_LD | libc::BPF_IMM, others),
        jump(always, 1, 0, 0),
        // ChannelData (0x40 to 0x7F) and Send indications.
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
pub(super) fn raise_file_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < most) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    }
    Ok(most)
}
