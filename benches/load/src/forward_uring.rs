//! The bare forwarder on io_uring: how much of the floor is system calls and wake-ups.
//!
//! The same fixed mapping as `forward`, UDP only. Two designs:
//!
//! * `multishot`: every socket has one receive armed for good, the kernel picks the buffers from a ring, each
//!   datagram is sent straight from where it arrived. One system call per loop sends everything and waits.
//! * `epoll`: readiness comes from epoll; the loop's receives are one system call, its sends another. A loop with
//!   hardly any packets makes plain calls, which cost less than a ring does for so few.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};

use crate::forward::send_to;
use crate::plan::Places;
use crate::stream::Poll;
use crate::udp::{self, BATCH, from_raw_address, raw_address};

/// Requests that one system call submits.
const ENTRIES: u32 = 1_024;
/// Completions that may wait; more would cost an allocation each.
const COMPLETIONS: u32 = 4_096;
/// Receive buffers, a power of two, each with room for what the kernel tells in front of the payload.
const BUFFERS: u16 = 2_048;
const BUFFER_BYTES: usize = 2_048;
const GROUP: u16 = 0;
/// Tells a send's completion from a receive's, which carries the index of its socket.
const SEND: u64 = u64::MAX;
/// So many packets are not worth a ring in the `epoll` design.
const FEW: usize = 2;
const NO_WAIT: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
const NAME_BYTES: u32 = size_of::<libc::sockaddr_in>() as u32;

#[derive(Clone, Copy)]
pub enum Design {
    Multishot,
    Epoll,
}

impl std::str::FromStr for Design {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "multishot" => Ok(Self::Multishot),
            "epoll" => Ok(Self::Epoll),
            _ => Err(()),
        }
    }
}

/// Runs until the process is ended. `min_wait` microseconds pass at least before a loop that has fewer than a
/// batch of completions goes on; 0 goes on with the first.
pub fn over_udp(places: &Places, relays: &[UdpSocket], design: Design, min_wait: u32) -> Result<(), String> {
    let listener = udp::bind(places.server)?;
    let mut files: Vec<RawFd> = relays.iter().map(AsRawFd::as_raw_fd).collect();
    files.push(listener.as_raw_fd());
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .build(ENTRIES)
        .map_err(|e| format!("io_uring: {e}; see kernel.io_uring_disabled and the container's seccomp profile"))?;
    ring.submitter().register_files(&files).map_err(|e| format!("io_uring, register {} sockets: {e}", files.len()))?;
    let map = Map { places, relays: relays.len() };
    match design {
        Design::Multishot => multishot(ring, &map, min_wait),
        Design::Epoll => with_epoll(ring, &map, &files),
    }
}

/// Sockets by their place among the registered files: the relays first, the listener last.
struct Map<'a> {
    places: &'a Places,
    relays: usize,
}

impl Map<'_> {
    /// From which socket, and to whom, what came in at `at` goes on.
    fn way_on(&self, at: usize, from: &libc::sockaddr_in) -> Option<(usize, SocketAddrV4)> {
        if at < self.relays {
            return Some((self.relays, self.places.client(at)));
        }
        let session = self.places.session_of_client(*from_raw_address(from).ip());
        (session < self.relays).then(|| (session, self.places.peer(session)))
    }
}

/// The two queues of a ring, and the addresses of the sends that wait in one of them.
struct Queues<'a> {
    submitter: Submitter<'a>,
    requests: SubmissionQueue<'a>,
    completions: CompletionQueue<'a>,
    names: Box<[libc::sockaddr_in]>,
    named: usize,
    wait: Option<(u32, Timespec)>,
}

impl<'a> Queues<'a> {
    fn new(ring: &'a mut IoUring, min_wait: u32) -> Self {
        let (submitter, requests, completions) = ring.split();
        let nowhere = raw_address(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        let wait = (min_wait > 0).then(|| (min_wait, Timespec::new().sec(1)));
        Self { submitter, requests, completions, names: vec![nowhere; ENTRIES as usize].into(), named: 0, wait }
    }

    fn is_full(&self) -> bool {
        self.requests.is_full()
    }

    /// # Safety
    ///
    /// What the entry points to must stay until `enter`, and what it is received into until it completes.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), String> {
        // SAFETY: the caller's promise.
        unsafe { self.requests.push(entry) }.map_err(|_| "io_uring: the submission queue is full".to_owned())
    }

    /// # Safety
    ///
    /// `bytes` must stay until `enter`: a send that must not wait has completed when the call that submits it returns.
    unsafe fn push_send(&mut self, file: usize, bytes: &[u8], to: SocketAddrV4) -> Result<(), String> {
        let name = &mut self.names[self.named];
        *name = raw_address(to);
        self.named += 1;
        let send = opcode::Send::new(Fixed(file as u32), bytes.as_ptr(), bytes.len() as u32)
            .flags(NO_WAIT)
            .dest_addr(ptr::from_ref(name).cast())
            .dest_addr_len(NAME_BYTES)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(SEND);
        // SAFETY: the name lies in a box of ours until the next `enter`, the bytes by the caller's promise.
        unsafe { self.push(&send) }
    }

    /// Submits what there is, if there is anything.
    fn enter_if_needed(&mut self) -> Result<(), String> {
        if self.requests.is_empty() { Ok(()) } else { self.enter(0) }
    }

    /// Submits everything and waits for `want` completions.
    fn enter(&mut self, want: usize) -> Result<(), String> {
        self.requests.sync();
        let done = match &self.wait {
            Some((least, longest)) if want > 0 => {
                let arguments = SubmitArgs::new().min_wait_usec(*least).timespec(longest);
                self.submitter.submit_with_args(BATCH, &arguments)
            }
            _ => self.submitter.submit_and_wait(want),
        };
        self.requests.sync();
        self.completions.sync();
        self.named = 0;
        match done.map_err(|e| e.raw_os_error()) {
            Ok(_) | Err(Some(libc::EINTR | libc::ETIME | libc::EBUSY)) => Ok(()),
            Err(code) => Err(format!("io_uring: {}", io::Error::from_raw_os_error(code.unwrap_or(0)))),
        }
    }
}

fn multishot(mut ring: IoUring, map: &Map<'_>, min_wait: u32) -> Result<(), String> {
    let mut buffers = Buffers::new(&ring)?;
    let mut queues = Queues::new(&mut ring, min_wait);
    // SAFETY: all-zero bytes are a valid value of this plain C structure.
    let mut shape: libc::msghdr = unsafe { std::mem::zeroed() };
    shape.msg_namelen = NAME_BYTES;
    let arm =
        |at: usize| opcode::RecvMsgMulti::new(Fixed(at as u32), &raw const shape, GROUP).build().user_data(at as u64);
    for at in 0..=map.relays {
        if queues.is_full() {
            queues.enter(0)?;
        }
        // SAFETY: the header outlives the loop, and so do the buffers.
        unsafe { queues.push(&arm(at)) }?;
    }
    let mut spent = Vec::with_capacity(usize::from(BUFFERS));
    loop {
        queues.enter(1)?;
        buffers.give_back(&mut spent);
        while let Some(completion) = queues.completions.next() {
            if completion.user_data() == SEND {
                continue;
            }
            if queues.is_full() {
                queues.enter(0)?;
                buffers.give_back(&mut spent);
            }
            let at = completion.user_data() as usize;
            let buffer = cqueue::buffer_select(completion.flags());
            if let (Some(id), Ok(length)) = (buffer, usize::try_from(completion.result())) {
                spent.push(id);
                let parsed = RecvMsgOut::parse(buffers.get(id, length), &shape);
                if let Ok(datagram) = parsed
                    && let Some(from) = read_name(datagram.name_data())
                    && let Some((file, to)) = map.way_on(at, &from)
                {
                    // SAFETY: the buffer is given back after the next `enter` only.
                    unsafe { queues.push_send(file, datagram.payload_data(), to) }?;
                }
            }
            if !cqueue::more(completion.flags()) {
                if queues.is_full() {
                    queues.enter(0)?;
                }
                // SAFETY: as above.
                unsafe { queues.push(&arm(at)) }?;
            }
        }
        queues.completions.sync();
    }
}

fn read_name(bytes: &[u8]) -> Option<libc::sockaddr_in> {
    // SAFETY: the length is the structure's, and any bytes are a valid value of it.
    (bytes.len() == size_of::<libc::sockaddr_in>())
        .then(|| unsafe { bytes.as_ptr().cast::<libc::sockaddr_in>().read_unaligned() })
}

/// Receive buffers that the kernel takes from a ring.
struct Buffers {
    ring: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
    tail: u16,
}

impl Buffers {
    /// Never freed: the kernel writes to them as long as the ring is there, which is as long as the process.
    fn new(ring: &IoUring) -> Result<Self, String> {
        let zeroed = |bytes: usize| -> Result<NonNull<u8>, String> {
            let layout = Layout::from_size_align(bytes, 4_096).map_err(|e| e.to_string())?;
            // SAFETY: the layout is not empty.
            Ok(NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout)))
        };
        let mut buffers = Self {
            ring: zeroed(usize::from(BUFFERS) * size_of::<BufRingEntry>())?.cast(),
            bytes: zeroed(usize::from(BUFFERS) * BUFFER_BYTES)?,
            tail: 0,
        };
        // SAFETY: page-aligned memory of BUFFERS entries that is never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.ring.as_ptr() as u64, BUFFERS, GROUP, 0) }
            .map_err(|e| format!("io_uring, ring of buffers: {e}"))?;
        buffers.give_back(&mut (0..BUFFERS).collect());
        Ok(buffers)
    }

    fn get(&self, id: u16, length: usize) -> &[u8] {
        let start = usize::from(id % BUFFERS) * BUFFER_BYTES;
        // SAFETY: inside the allocation; the kernel does not write to a buffer that it has handed out.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().add(start), length.min(BUFFER_BYTES)) }
    }

    fn give_back(&mut self, spent: &mut Vec<u16>) {
        if spent.is_empty() {
            return;
        }
        for id in spent.drain(..) {
            // SAFETY: inside the ring and inside the bytes; entries at the tail are ours until it is published.
            unsafe {
                let entry = &mut *self.ring.as_ptr().add(usize::from(self.tail % BUFFERS));
                entry.set_addr(self.bytes.as_ptr().add(usize::from(id) * BUFFER_BYTES) as u64);
                entry.set_len(BUFFER_BYTES as u32);
                entry.set_bid(id);
            }
            self.tail = self.tail.wrapping_add(1);
        }
        // SAFETY: the tail is two aligned bytes within the ring that the kernel only reads.
        unsafe { &*BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>() }.store(self.tail, Ordering::Release);
    }
}

fn with_epoll(mut ring: IoUring, map: &Map<'_>, files: &[RawFd]) -> Result<(), String> {
    const SLOTS: usize = 256 + BATCH;
    let mut poll = Poll::new()?;
    for (at, fd) in files.iter().enumerate() {
        poll.add(*fd, at as u64)?;
    }
    let mut queues = Queues::new(&mut ring, 0);
    let mut slots = Slots::new(SLOTS);
    let mut ready = Vec::new();
    // Where from, in which slot, how many bytes.
    let mut came: Vec<(usize, usize, usize)> = Vec::with_capacity(SLOTS);
    loop {
        ready.clear();
        came.clear();
        poll.wait(-1, |token| ready.push(token as usize));
        let (few, mut used) = (ready.len() <= FEW, 0);
        for at in ready.iter().copied() {
            let slot = used;
            if at == map.relays {
                used += BATCH;
                came.extend((0..slots.receive_many(files[at], slot)).map(|k| (at, slot + k, slots.length(slot + k))));
            } else if few {
                used += 1;
                came.extend(slots.receive_one(files[at], slot).map(|length| (at, slot, length)));
            } else {
                used += 1;
                let receive = opcode::RecvMsg::new(Fixed(at as u32), slots.prepare(slot))
                    .flags(libc::MSG_DONTWAIT as u32)
                    .build()
                    .user_data((at << 32 | slot) as u64);
                // SAFETY: the slot stays, and is used once per loop; a receive that must not wait has completed
                // when the call that submits it returns.
                unsafe { queues.push(&receive) }?;
            }
        }
        queues.enter_if_needed()?;
        for completion in &mut queues.completions {
            if let (true, Ok(length)) = (completion.user_data() != SEND, usize::try_from(completion.result())) {
                let at = (completion.user_data() >> 32) as usize;
                came.push((at, completion.user_data() as u32 as usize, length));
            }
        }
        let few = came.len() <= FEW;
        for (at, slot, length) in came.iter().copied() {
            let Some((file, to)) = map.way_on(at, &slots.names[slot]) else {
                continue;
            };
            if few {
                send_to(files[file], slots.get(slot, length), to);
            } else {
                // SAFETY: the slot stays as it is until the next loop.
                unsafe { queues.push_send(file, slots.get(slot, length), to) }?;
            }
        }
        queues.enter_if_needed()?;
    }
}

struct Slots {
    bytes: Vec<u8>,
    names: Vec<libc::sockaddr_in>,
    pieces: Vec<libc::iovec>,
    heads: Vec<libc::mmsghdr>,
}

impl Slots {
    fn new(slots: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (name, piece, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            bytes: vec![0; slots * BUFFER_BYTES],
            names: vec![name; slots],
            pieces: vec![piece; slots],
            heads: vec![head; slots],
        }
    }

    fn get(&self, slot: usize, length: usize) -> &[u8] {
        &self.bytes[slot * BUFFER_BYTES..][..length.min(BUFFER_BYTES)]
    }

    fn prepare(&mut self, slot: usize) -> *mut libc::msghdr {
        let bytes = &mut self.bytes[slot * BUFFER_BYTES..][..BUFFER_BYTES];
        self.pieces[slot] = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let head = &mut self.heads[slot].msg_hdr;
        head.msg_name = ptr::from_mut(&mut self.names[slot]).cast();
        head.msg_namelen = NAME_BYTES;
        head.msg_iov = &raw mut self.pieces[slot];
        head.msg_iovlen = 1;
        head
    }

    fn length(&self, slot: usize) -> usize {
        self.heads[slot].msg_len as usize
    }

    fn receive_one(&mut self, fd: RawFd, slot: usize) -> Option<usize> {
        let head = self.prepare(slot);
        // SAFETY: the header points into vectors of `self` with their true lengths.
        usize::try_from(unsafe { libc::recvmsg(fd, head, libc::MSG_DONTWAIT) }).ok()
    }

    fn receive_many(&mut self, fd: RawFd, first: usize) -> usize {
        for slot in first..first + BATCH {
            self.prepare(slot);
        }
        let heads = &mut self.heads[first..first + BATCH];
        // SAFETY: every header points into vectors of `self` with their true lengths.
        let got = unsafe { libc::recvmmsg(fd, heads.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, ptr::null_mut()) };
        usize::try_from(got).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_goes_on_to_the_other_side_of_its_session_and_no_other() {
        let places = Places {
            server: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3478),
            first_client: Ipv4Addr::new(127, 1, 0, 1),
            first_peer: Ipv4Addr::new(127, 2, 0, 1),
            bare_relay: Ipv4Addr::LOCALHOST,
            client_port: 40_000,
            peer_port: 41_000,
            relay_base: 42_000,
        };
        let map = Map { places: &places, relays: 3 };
        let nobody = raw_address(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        for n in 0..3 {
            assert_eq!(map.way_on(n, &nobody), Some((3, places.client(n))));
            assert_eq!(map.way_on(3, &raw_address(places.client(n))), Some((n, places.peer(n))));
        }
        assert_eq!(map.way_on(3, &raw_address(places.client(3))), None, "there is no fourth session");
        assert_eq!(map.way_on(3, &nobody), None, "an address below the first client's");
    }

    #[test]
    fn a_design_is_known_by_its_name() {
        assert!(matches!("multishot".parse(), Ok(Design::Multishot)));
        assert!(matches!("epoll".parse(), Ok(Design::Epoll)));
        assert!("Multishot".parse::<Design>().is_err());
    }
}
