//! The floor for bursts: coalesced receives, and sends that the kernel segments.
//!
//! As the batched forwarder, and every packet to one destination within a batch goes out as a train: one message
//! with UDP_SEGMENT, its pieces gathered from where they were received. A socket that proves bursty is switched to
//! UDP_GRO and to large buffers, and back when its bursts end, so that a thin flow pays for neither.

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use crate::forward::LISTENER;
use crate::plan::Places;
use crate::stream::Poll;
use crate::udp::{BATCH, Control, from_raw_address, raw_address, set_option};

const SMALL: usize = 2_048;
const LARGE: usize = 65_536;
/// Large buffers; a message in each may hold a whole burst.
const LARGE_BATCH: usize = 16;
/// What one send may carry: UDP_MAX_SEGMENTS of older kernels, and an IPv4 datagram.
const SEGMENTS_MAX: usize = 64;
const TRAIN_MAX: usize = 65_000;
/// Signs of a burst in a row that switch a socket over, and thin receives in a row that switch it back.
const BURSTS: u32 = 3;
const THIN: u32 = 64;

/// One socket, and whether it is read in bursts.
struct Source {
    fd: RawFd,
    bursty: bool,
    signs: u32,
    last_turn: u64,
}

impl Source {
    fn new(socket: &UdpSocket) -> Self {
        Self { fd: socket.as_raw_fd(), bursty: false, signs: 0, last_turn: 0 }
    }

    /// Counts receives that speak against the present mode; enough of them in a row change it.
    fn judge(&mut self, burst: bool) -> Result<(), String> {
        self.signs = if burst == self.bursty { 0 } else { self.signs + 1 };
        if self.signs == if self.bursty { THIN } else { BURSTS } {
            self.signs = 0;
            self.bursty = burst;
            set_option(self.fd, libc::SOL_UDP, libc::UDP_GRO, i32::from(burst)).map_err(|e| format!("UDP_GRO: {e}"))?;
        }
        Ok(())
    }
}

pub fn over_udp(poll: &mut Poll, places: &Places, relays: &[UdpSocket]) -> Result<(), String> {
    let socket = crate::udp::bind(places.server)?;
    poll.add(socket.as_raw_fd(), LISTENER)?;
    let mut listener = Source::new(&socket);
    let mut sources: Vec<_> = relays.iter().map(Source::new).collect();
    let (mut from_clients, mut from_peers) = (Buffers::new(), Buffers::new());
    let (mut to_peers, mut to_clients) = (Trains::new(relays.len()), Trains::new(relays.len()));
    let mut ready = Vec::new();
    let mut turn = 0;
    loop {
        ready.clear();
        poll.wait(-1, |token| ready.push(token));
        turn += 1;
        for token in &ready {
            if *token == LISTENER {
                from_clients.clear();
                let got = from_clients.receive(listener.fd, listener.bursty, BATCH);
                let (mut last, mut segments, mut repeated) = (usize::MAX, 0, 0);
                for k in got.clone() {
                    let message = &from_clients.messages[k];
                    let n = places.session_of_client(*from_raw_address(&message.from).ip());
                    if n < relays.len() {
                        to_peers.add(n, message);
                    }
                    segments += message.segments();
                    repeated += usize::from(n == last);
                    last = n;
                }
                to_peers.each(
                    |n, head| {
                        // SAFETY: the header was built by `each` and outlives the call.
                        unsafe { libc::sendmsg(sources[n].fd, head, 0) };
                    },
                    |n| places.peer(n),
                );
                listener.judge(2 * repeated >= got.len().max(2) || segments > got.len())?;
            } else {
                let n = *token as usize;
                if from_peers.free(sources[n].bursty) == 0 {
                    to_clients.send(listener.fd, |n| places.client(n));
                    from_peers.clear();
                }
                let source = &mut sources[n];
                let got = from_peers.receive(source.fd, source.bursty, if source.bursty { BATCH } else { 1 });
                let mut segments = 0;
                for k in got.clone() {
                    segments += from_peers.messages[k].segments();
                    to_clients.add(n, &from_peers.messages[k]);
                }
                // ready in two loops in a row, or more than one packet at once
                let burst = if source.bursty { segments > 1 } else { source.last_turn + 1 == turn };
                source.last_turn = turn;
                source.judge(burst)?;
            }
        }
        to_clients.send(listener.fd, |n| places.client(n));
        from_peers.clear();
    }
}

/// One received message: a datagram, or several of `segment` bytes (the last may be shorter).
struct Received {
    at: *const u8,
    length: usize,
    segment: usize,
    from: libc::sockaddr_in,
}

impl Received {
    fn segments(&self) -> usize {
        self.length.div_ceil(self.segment.max(1)).max(1)
    }
}

/// Receive buffers of both sizes, handed out in order until `clear`.
struct Buffers {
    small: Vec<u8>,
    large: Vec<u8>,
    used: [usize; 2],
    messages: Vec<Received>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    pieces: Vec<libc::iovec>,
    heads: Vec<libc::mmsghdr>,
}

impl Buffers {
    fn new() -> Self {
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (name, piece, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            small: vec![0; SMALL * BATCH],
            large: vec![0; LARGE * LARGE_BATCH],
            used: [0; 2],
            messages: Vec::with_capacity(BATCH + LARGE_BATCH),
            names: vec![name; BATCH],
            controls: vec![Control([0; 64]); BATCH],
            pieces: vec![piece; BATCH],
            heads: vec![head; BATCH],
        }
    }

    fn clear(&mut self) {
        self.used = [0; 2];
        self.messages.clear();
    }

    fn free(&self, large: bool) -> usize {
        let all = if large { LARGE_BATCH } else { BATCH };
        all - self.used[usize::from(large)]
    }

    /// Receives what is there, `most` messages at the most; returns their places in `messages`.
    fn receive(&mut self, fd: RawFd, large: bool, most: usize) -> std::ops::Range<usize> {
        let size = if large { LARGE } else { SMALL };
        let first = self.used[usize::from(large)];
        let most = most.min(self.free(large));
        let store = if large { &mut self.large } else { &mut self.small };
        for k in 0..most {
            let slot = &mut store[(first + k) * size..(first + k + 1) * size];
            self.pieces[k] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: size };
            let head = &mut self.heads[k].msg_hdr;
            head.msg_name = ptr::from_mut(&mut self.names[k]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            head.msg_iov = &mut self.pieces[k];
            head.msg_iovlen = 1;
            head.msg_control = if large { ptr::from_mut(&mut self.controls[k]).cast() } else { ptr::null_mut() };
            head.msg_controllen = if large { size_of::<Control>() as _ } else { 0 };
        }
        // SAFETY: every pointer set above leads into vectors of `self` that outlive the calls, with their true lengths.
        let got = unsafe {
            if most == 1 {
                let length = libc::recvmsg(fd, &mut self.heads[0].msg_hdr, libc::MSG_DONTWAIT);
                self.heads[0].msg_len = u32::try_from(length).unwrap_or(0);
                usize::from(length >= 0)
            } else {
                let got = libc::recvmmsg(fd, self.heads.as_mut_ptr(), most as u32, libc::MSG_DONTWAIT, ptr::null_mut());
                usize::try_from(got).unwrap_or(0)
            }
        };
        let begin = self.messages.len();
        for k in 0..got {
            let head = &self.heads[k];
            let length = (head.msg_len as usize).min(size);
            let segment = if large { segment_size(&head.msg_hdr) } else { None };
            self.messages.push(Received {
                at: self.pieces[k].iov_base.cast(),
                length,
                segment: segment.unwrap_or(length),
                from: self.names[k],
            });
        }
        self.used[usize::from(large)] += got;
        begin..self.messages.len()
    }
}

fn segment_size(head: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel filled msg_control and msg_controllen of this header; the CMSG functions stay within
    // them, and the integer is read unaligned only where level and type say that it is one.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(head);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let size = ptr::read_unaligned(libc::CMSG_DATA(control).cast::<libc::c_int>());
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            control = libc::CMSG_NXTHDR(head, control);
        }
    }
    None
}

/// Datagrams of one size to one destination, the last of which may be shorter.
struct Train {
    session: usize,
    segment: usize,
    segments: usize,
    bytes: usize,
    ended: bool,
    pieces: Vec<libc::iovec>,
}

/// The trains of one batch. The buffers they lead to must live until they are sent.
struct Trains {
    trains: Vec<Train>,
    used: usize,
    /// By session, the train that may still grow; a stale place is told by its session.
    open: Vec<usize>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    heads: Vec<libc::mmsghdr>,
}

impl Trains {
    fn new(sessions: usize) -> Self {
        let most = BATCH + LARGE_BATCH;
        let train = || Train { session: 0, segment: 0, segments: 0, bytes: 0, ended: true, pieces: Vec::new() };
        // SAFETY: all-zero bytes are a valid value of these plain C structures.
        let (name, head) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            trains: (0..most).map(|_| train()).collect(),
            used: 0,
            open: vec![0; sessions],
            names: vec![name; most],
            controls: vec![Control([0; 64]); most],
            heads: vec![head; most],
        }
    }

    fn add(&mut self, session: usize, message: &Received) {
        let piece = libc::iovec { iov_base: message.at.cast_mut().cast(), iov_len: message.length };
        let (place, segments) = (self.open[session], message.segments());
        if place < self.used {
            let train = &mut self.trains[place];
            let fits = message.segment == train.segment || (segments == 1 && message.length < train.segment);
            if train.session == session
                && message.length > 0
                && !train.ended
                && fits
                && train.segments + segments <= SEGMENTS_MAX
                && train.bytes + message.length <= TRAIN_MAX
            {
                train.segments += segments;
                train.bytes += message.length;
                train.ended = message.length != segments * train.segment;
                train.pieces.push(piece);
                return;
            }
        }
        self.open[session] = self.used;
        let train = &mut self.trains[self.used];
        self.used += 1;
        train.session = session;
        train.segment = message.segment;
        train.segments = segments;
        train.bytes = message.length;
        train.ended = message.length != segments * message.segment || message.length == 0;
        train.pieces.clear();
        train.pieces.push(piece);
    }

    /// Builds the header of every train; the message may then be sent.
    fn build(&mut self, to: impl Fn(usize) -> SocketAddrV4) -> usize {
        let used = std::mem::take(&mut self.used);
        for k in 0..used {
            let train = &mut self.trains[k];
            self.names[k] = raw_address(to(train.session));
            let head = &mut self.heads[k].msg_hdr;
            head.msg_name = ptr::from_mut(&mut self.names[k]).cast();
            head.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            head.msg_iov = train.pieces.as_mut_ptr();
            head.msg_iovlen = train.pieces.len() as _;
            head.msg_control = ptr::null_mut();
            head.msg_controllen = 0;
            if train.segments > 1 {
                head.msg_control = ptr::from_mut(&mut self.controls[k]).cast();
                // SAFETY: Control is aligned for cmsghdr and larger than CMSG_SPACE of two bytes; the length set
                // first makes CMSG_FIRSTHDR return its start.
                unsafe {
                    head.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
                    let control = libc::CMSG_FIRSTHDR(head);
                    (*control).cmsg_level = libc::SOL_UDP;
                    (*control).cmsg_type = libc::UDP_SEGMENT;
                    (*control).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
                    ptr::write_unaligned(libc::CMSG_DATA(control).cast(), train.segment as u16);
                }
            }
        }
        used
    }

    fn each(&mut self, send: impl Fn(usize, *const libc::msghdr), to: impl Fn(usize) -> SocketAddrV4) {
        for k in 0..self.build(to) {
            send(self.trains[k].session, &raw const self.heads[k].msg_hdr);
        }
    }

    /// All trains through one socket.
    fn send(&mut self, fd: RawFd, to: impl Fn(usize) -> SocketAddrV4) {
        let used = self.build(to);
        let mut done = 0;
        while done < used {
            // SAFETY: headers `done..used` were built above and lead into vectors of `self` and into receive
            // buffers that are not reused before.
            let sent = unsafe { libc::sendmmsg(fd, self.heads[done..].as_mut_ptr(), (used - done) as u32, 0) };
            // a refused message is skipped; the generator reports what it held as lost
            done += usize::try_from(sent).unwrap_or(1).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8], segment: usize) -> Received {
        // SAFETY: all-zero bytes are a valid value of this plain C structure.
        let from = unsafe { std::mem::zeroed() };
        Received { at: bytes.as_ptr(), length: bytes.len(), segment, from }
    }

    fn shape(trains: &Trains) -> Vec<(usize, usize, usize, usize)> {
        trains.trains[..trains.used].iter().map(|t| (t.session, t.segment, t.segments, t.pieces.len())).collect()
    }

    #[test]
    fn a_train_takes_equal_datagrams_and_one_shorter_tail() {
        let mut trains = Trains::new(2);
        let bytes = [0; 1_000];
        for (session, length, segment) in [(0, 100, 100), (1, 100, 100), (0, 300, 100), (0, 40, 40), (0, 100, 100)] {
            trains.add(session, &message(&bytes[..length], segment));
        }
        assert_eq!(shape(&trains), [(0, 100, 5, 3), (1, 100, 1, 1), (0, 100, 1, 1)]);
    }

    #[test]
    fn a_longer_datagram_and_a_broken_tail_begin_a_train() {
        let mut trains = Trains::new(1);
        let bytes = [0; 1_000];
        for (length, segment) in [(100, 100), (120, 120), (250, 100), (100, 100), (0, 0), (0, 0)] {
            trains.add(0, &message(&bytes[..length], segment));
        }
        assert_eq!(
            shape(&trains),
            [(0, 100, 1, 1), (0, 120, 1, 1), (0, 100, 3, 1), (0, 100, 1, 1), (0, 0, 1, 1), (0, 0, 1, 1)]
        );
    }

    #[test]
    fn a_train_ends_at_the_kernels_limits() {
        let mut trains = Trains::new(1);
        let bytes = [0; 1_200];
        (0..65).for_each(|_| trains.add(0, &message(&bytes[..100], 100)));
        assert_eq!(shape(&trains), [(0, 100, 64, 64), (0, 100, 1, 1)]);
        trains.used = 0;
        (0..55).for_each(|_| trains.add(0, &message(&bytes, 1_200)));
        assert_eq!(shape(&trains), [(0, 1_200, 54, 54), (0, 1_200, 1, 1)]);
    }
}
