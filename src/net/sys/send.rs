//! Many datagrams in one call, and many of one size to one place in one message.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::address::{CONTROL_BYTES, Control, ControlWriter, write_socket_address};
use super::arena::{Arena, Part};
use super::check;
use super::segmentation::Segmentation;

/// Pieces of one datagram: head, payload, padding.
const PIECES: usize = 3;

/// Datagrams of one message; the least that a kernel with segmentation takes.
const SEGMENTS_MAX: usize = 64;

/// Bytes of one message: an IPv4 datagram's, which the kernel holds it to before it is cut.
const SEGMENTED_BYTES_MAX: usize = 65_000;

/// One datagram to be sent: head from the scratch buffer, payload from the arena, zero padding.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Transmit {
    pub(in crate::net) to: SocketAddr,
    /// The address it must leave from, on wildcard listeners.
    pub(in crate::net) from: Option<IpAddr>,
    pub(in crate::net) head: Part,
    pub(in crate::net) payload: Part,
    pub(in crate::net) padding: usize,
    /// DSCP and ECN.
    pub(in crate::net) class: u8,
}

impl Transmit {
    const fn len(&self) -> usize {
        self.head.len + self.payload.len + self.padding
    }
}

/// One message of a batch: the datagrams from `first` on.
#[derive(Clone, Copy, Debug)]
struct Message {
    first: usize,
    count: usize,
    bytes: usize,
    segment: usize,
    /// A datagram smaller than the others must be the last.
    is_full: bool,
}

impl Message {
    fn takes(&self, last: &Transmit, next: &Transmit, segmentation: &impl Segmentation) -> bool {
        let len = next.len();
        !self.is_full
            && len <= self.segment
            && len > 0
            && self.count < SEGMENTS_MAX
            && self.bytes + len <= SEGMENTED_BYTES_MAX
            && last.to == next.to
            && last.from == next.from
            && last.class == next.class
            && self.segment <= segmentation.largest(&next.to)
    }
}

/// What one [`SendBatch::send`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::net) struct SendReport {
    /// Messages of more than one datagram that the kernel took.
    pub(in crate::net) segmented: usize,
    /// Messages of more than one datagram that it refused, so that they were sent one by one.
    pub(in crate::net) refused: usize,
    /// Replies that the kernel refused for good.
    pub(in crate::net) replies_lost: usize,
}

/// What is to be sent: those of `packets` that `order` names.
#[derive(Clone, Copy)]
pub(in crate::net) struct PreparedBatch<'a> {
    pub(in crate::net) packets: &'a [Transmit],
    pub(in crate::net) order: &'a [u32],
    /// Where the heads lie.
    pub(in crate::net) scratch: &'a [u8],
    /// Where the payloads lie.
    pub(in crate::net) arena: &'a Arena,
}

/// The arrays that `sendmmsg` reads.
pub(in crate::net) struct SendBatch {
    headers: Box<[libc::mmsghdr]>,
    messages: Box<[Message]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    /// Where the pieces of each datagram begin, and behind the last one, where they end.
    starts: Box<[u32]>,
}

impl SendBatch {
    /// For so many datagrams in one call.
    pub(in crate::net) fn new(capacity: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of each of these plain C structures.
        let (header, iovec, name) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        let message = Message { first: 0, count: 0, bytes: 0, segment: 0, is_full: false };
        Self {
            headers: vec![header; capacity].into(),
            messages: vec![message; capacity].into(),
            names: vec![name; capacity].into(),
            controls: vec![Control([0; CONTROL_BYTES]); capacity].into(),
            iovecs: vec![iovec; capacity * PIECES].into(),
            starts: vec![0; capacity + 1].into(),
        }
    }

    /// Sends them, neighbours of one size and destination in one message as far as
    /// `segmentation` allows; tells of each that the kernel did not take.
    pub(in crate::net) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        batch: PreparedBatch<'_>,
        segmentation: &mut impl Segmentation,
        mut failed: impl FnMut(u32, &io::Error),
    ) -> SendReport {
        let mut report = SendReport::default();
        for order in batch.order.chunks(self.headers.len()) {
            self.send_some(fd, PreparedBatch { order, ..batch }, segmentation, &mut report, &mut failed);
        }
        report
    }

    fn send_some(
        &mut self,
        fd: BorrowedFd<'_>,
        batch: PreparedBatch<'_>,
        segmentation: &mut impl Segmentation,
        report: &mut SendReport,
        failed: &mut impl FnMut(u32, &io::Error),
    ) {
        let order = batch.order;
        let count = self.fill(batch, segmentation);
        let (mut done, mut pending) = (0, PENDING_ERRORS_MAX);
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
                Ok(sent) => {
                    let sent = (sent as usize).max(1);
                    let messages = &self.messages[done..(done + sent).min(count)];
                    let segmented = messages.iter().filter(|message| message.count > 1).count();
                    if segmented > 0 {
                        report.segmented += segmented;
                        segmentation.on_taken();
                    }
                    done += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if pending > 0 && may_be_pending(&error) => pending -= 1,
                Err(error) => {
                    // The first of the rest was refused; the others are none the worse for it.
                    let message = self.messages[done];
                    let to = batch.packets[order[message.first] as usize].to;
                    if message.count > 1 && segmentation.on_refused(&to, &error, message.segment) {
                        report.refused += 1;
                        self.send_one_by_one(fd, done, order, failed);
                    } else {
                        order[message.first..][..message.count].iter().for_each(|at| failed(*at, &error));
                    }
                    done += 1;
                }
            }
        }
    }

    /// Writes the messages; gives how many there are.
    fn fill(&mut self, batch: PreparedBatch<'_>, segmentation: &impl Segmentation) -> usize {
        let PreparedBatch { packets, order, scratch, arena } = batch;
        static ZEROS: [u8; 4] = [0; 4];
        let (mut count, mut used) = (0, 0);
        let mut last: Option<&Transmit> = None;
        for (index, at) in order.iter().enumerate() {
            let packet = &packets[*at as usize];
            self.starts[index] = used as u32;
            let pieces: [&[u8]; PIECES] = [
                &scratch[packet.head.start..][..packet.head.len],
                arena.part(packet.payload),
                &ZEROS[..packet.padding],
            ];
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                self.iovecs[used] = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
                used += 1;
            }
            let len = packet.len();
            match last.and_then(|last| Some((last, self.messages[..count].last_mut()?))) {
                Some((last, message)) if message.takes(last, packet, segmentation) => {
                    message.count += 1;
                    message.bytes += len;
                    message.is_full = len < message.segment;
                }
                _ => {
                    self.messages[count] = Message { first: index, count: 1, bytes: len, segment: len, is_full: false };
                    count += 1;
                }
            }
            last = Some(packet);
        }
        self.starts[order.len()] = used as u32;
        for at in 0..count {
            let message = self.messages[at];
            let packet = &packets[order[message.first] as usize];
            let segment = if message.count > 1 { Some(message.segment as u16) } else { None };
            self.write_header(at, message.first..message.first + message.count, packet, segment);
        }
        count
    }

    /// The header at `at` for the datagrams in `range`, all like `packet`.
    fn write_header(&mut self, at: usize, range: std::ops::Range<usize>, packet: &Transmit, segment: Option<u16>) {
        let (first, end) = (self.starts[range.start] as usize, self.starts[range.end] as usize);
        let name_len = write_socket_address(&mut self.names[at], packet.to);
        let mut control = ControlWriter::new(&mut self.controls[at]);
        if let Some(from) = packet.from {
            control.source(from);
        }
        if packet.class != 0 {
            control.traffic_class(&packet.to, packet.class);
        }
        // Last, as `send_one_by_one` takes it off.
        if let Some(segment) = segment {
            control.segment(segment);
        }
        let control_len = control.len();
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.names[at]).cast();
        header.msg_namelen = name_len;
        header.msg_iov = self.iovecs[first..end].as_mut_ptr();
        header.msg_iovlen = end - first;
        header.msg_control = if control_len == 0 { std::ptr::null_mut() } else { (&raw mut self.controls[at]).cast() };
        header.msg_controllen = control_len;
        header.msg_flags = 0;
    }

    /// The datagrams of a message that was refused as a whole.
    fn send_one_by_one(
        &mut self,
        fd: BorrowedFd<'_>,
        at: usize,
        order: &[u32],
        failed: &mut impl FnMut(u32, &io::Error),
    ) {
        let Message { first, count, .. } = self.messages[at];
        let header = &mut self.headers[at].msg_hdr;
        // All else stays, the segment size behind it goes.
        // SAFETY: plain arithmetic on a constant.
        let segment_space = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;
        header.msg_controllen -= segment_space;
        if header.msg_controllen == 0 {
            header.msg_control = std::ptr::null_mut();
        }
        for (index, at) in order.iter().enumerate().skip(first).take(count) {
            let (start, end) = (self.starts[index] as usize, self.starts[index + 1] as usize);
            header.msg_iov = self.iovecs[start..end].as_mut_ptr();
            header.msg_iovlen = end - start;
            for pending in (0..=PENDING_ERRORS_MAX).rev() {
                // SAFETY: the header points to a name, iovecs and control buffer of its own and to bytes that `send` borrows.
                let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
                if sent >= 0 {
                    break;
                }
                let error = io::Error::last_os_error();
                if pending == 0 || !may_be_pending(&error) {
                    failed(*at, &error);
                    break;
                }
            }
        }
    }
}

/// How often one batch is tried again because of errors that are not its own.
pub(in crate::net) const PENDING_ERRORS_MAX: usize = 4;

/// Whether an error may be one that waited at the socket: what ICMP said of an earlier datagram, which the kernel gives to
/// the next call, whose own datagram it then does not send. Only of sockets with [`tell_icmp_errors`](super::tell_icmp_errors).
pub(in crate::net) fn may_be_pending(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EPROTO
                | libc::EACCES
                | libc::EMSGSIZE
        )
    )
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::net::sys::segmentation::{ListenerSegmentation, Unsegmented};
    use crate::net::sys::{ReceiveBatch, coalesce};

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// Datagrams of these lengths, each for one of two peers, with a head before every payload and some padding.
    struct TestBatch {
        arena: Arena,
        scratch: Vec<u8>,
        packets: Vec<Transmit>,
        order: Vec<u32>,
        due: [Vec<Vec<u8>>; 2],
    }

    fn prepared(peers: [SocketAddr; 2], lengths: &[(usize, usize)]) -> TestBatch {
        let mut arena = Arena::new(2);
        for (at, byte) in arena.slot_mut(0).iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        let (mut scratch, mut packets, mut due) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        for (number, &(to, len)) in lengths.iter().enumerate() {
            let head = Part::of_scratch(scratch.len(), 4);
            scratch.extend_from_slice(&(number as u32).to_be_bytes());
            let (payload, padding) = (arena.part_of(0, number, len), number % 2);
            let bytes = [&scratch[head.start..], arena.part(payload), &[0; 4][..padding]].concat();
            due[to].push(bytes);
            packets.push(Transmit { to: peers[to], from: None, head, payload, padding, class: 0 });
        }
        let order = (0..packets.len() as u32).collect();
        TestBatch { arena, scratch, packets, order, due }
    }

    fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
    }

    fn send(
        prepared: &TestBatch,
        from: &UdpSocket,
        capacity: usize,
        segmentation: &mut impl Segmentation,
    ) -> (SendReport, Vec<u32>) {
        let mut failed = Vec::new();
        let mut batch = SendBatch::new(capacity);
        let TestBatch { arena, scratch, packets, order, .. } = prepared;
        let prepared = PreparedBatch { packets, order, scratch, arena };
        let report = batch.send(from.as_fd(), prepared, segmentation, |at, _| failed.push(at));
        (report, failed)
    }

    /// Runs of one size, tails, a size that grows, another peer in between, an empty payload, a large one.
    const MIXED: [(usize, usize); 20] = [
        (0, 100),
        (0, 101),
        (0, 99),
        (0, 100),
        (0, 1_200),
        (0, 1_199),
        (0, 1_200),
        (0, 30),
        (0, 30),
        (1, 30),
        (1, 29),
        (0, 29),
        (0, 0),
        (0, 0),
        (1, 40_000),
        (1, 39_999),
        (1, 40_000),
        (0, 7),
        (1, 7),
        (1, 6),
    ];

    /// As on a path that is too narrow for more than 500 bytes.
    fn narrow(peers: &[UdpSocket]) -> ListenerSegmentation {
        let mut narrow = ListenerSegmentation::default();
        let refusal = io::Error::from_raw_os_error(libc::EMSGSIZE);
        peers.iter().for_each(|peer| assert!(narrow.on_refused(&peer.local_addr().unwrap(), &refusal, 501)));
        narrow
    }

    #[test]
    fn every_datagram_arrives_as_it_is_however_they_are_put_together() {
        for kind in ["on", "narrow", "off"] {
            for capacity in [1, 3, 64] {
                let (from, peers) = (socket(), [socket(), socket()]);
                let prepared = prepared(peers.each_ref().map(|peer| peer.local_addr().unwrap()), &MIXED);
                let (report, failed) = match kind {
                    "on" => send(&prepared, &from, capacity, &mut ListenerSegmentation::default()),
                    "narrow" => send(&prepared, &from, capacity, &mut narrow(&peers)),
                    _ => send(&prepared, &from, capacity, &mut Unsegmented),
                };
                assert_eq!(failed, [0; 0]);
                assert_eq!(report.refused, 0);
                assert_eq!(report.segmented > 0, kind != "off" && capacity > 1, "{report:?}");
                for (peer, due) in peers.iter().zip(&prepared.due) {
                    assert_eq!(received(peer), *due, "{kind} {capacity}");
                }
            }
        }
    }

    #[test]
    fn a_long_run_is_cut_into_messages_that_the_kernel_takes() {
        let (from, peer) = (socket(), socket());
        socket2::SockRef::from(&peer).set_recv_buffer_size(8 << 20).unwrap();
        let to = peer.local_addr().unwrap();
        let prepared = prepared([to, to], &[(0, 1_197), (0, 1_196)].repeat(35));
        let (report, failed) = send(&prepared, &from, 256, &mut ListenerSegmentation::default());
        let two = SendReport { segmented: 2, ..SendReport::default() };
        assert_eq!((report, failed), (two, vec![]), "65,000 bytes each");
        assert_eq!(received(&peer).len(), 70);
    }

    #[test]
    fn a_socket_that_cannot_segment_sends_one_by_one_and_is_not_asked_again() {
        let (from, peers) = (socket(), [socket(), socket()]);
        let to = peers.each_ref().map(|peer| peer.local_addr().unwrap());
        // The kernel does not segment without checksums: EINVAL.
        let no: libc::c_int = 1;
        crate::net::sys::set_option(from.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, &no).unwrap();
        let prepared = prepared(to, &[(0, 200), (0, 199), (0, 200), (1, 50), (1, 50), (0, 10)]);
        let mut segmentation = ListenerSegmentation::default();
        let (report, failed) = send(&prepared, &from, 64, &mut segmentation);
        assert_eq!((report.segmented, failed), (0, vec![]));
        assert!(report.refused >= 1);
        assert_eq!(to.map(|to| segmentation.largest(&to)), [0; 2]);
        for (peer, due) in peers.iter().zip(&prepared.due) {
            assert_eq!(received(peer), *due);
        }
        let (report, _) = send(&prepared, &from, 64, &mut segmentation);
        assert_eq!(report, SendReport::default());
    }

    #[test]
    fn what_the_kernel_refuses_is_told_packet_by_packet() {
        let (from, peer) = (socket(), socket());
        let nobody = "255.255.255.255:9".parse().unwrap();
        let prepared = prepared([peer.local_addr().unwrap(), nobody], &[(0, 9), (1, 9), (1, 8), (0, 9), (1, 70)]);
        let (_, failed) = send(&prepared, &from, 64, &mut ListenerSegmentation::default());
        assert_eq!(failed, [1, 2, 4], "broadcast is not allowed on this socket");
        assert_eq!(received(&peer), prepared.due[0]);
    }

    #[test]
    fn a_socket_that_coalesces_is_taken_apart_again() {
        let (from, peer) = (socket(), socket());
        coalesce(peer.as_fd()).unwrap();
        let to = peer.local_addr().unwrap();
        let lengths: Vec<_> = [100, 99, 100, 99, 7].map(|len| (0, len)).into();
        let prepared = prepared([to, to], &lengths);
        assert_eq!(send(&prepared, &from, 64, &mut ListenerSegmentation::default()).0.segmented, 1);
        let (mut arena, mut batch) = (Arena::new(4), ReceiveBatch::new(4));
        let count = batch.receive(peer.as_fd(), &mut arena, 1, 3, true).unwrap();
        let mut found = Vec::new();
        for index in 0..count {
            let piece = batch.get(index, 1).unwrap();
            assert_eq!(piece.from, from.local_addr().unwrap());
            found.extend(
                piece.datagrams().map(|(start, len)| arena.part(arena.part_of(piece.slot, start, len)).to_vec()),
            );
        }
        assert_eq!(found, prepared.due[0]);
        assert_eq!(count, 1, "all in one piece");
    }
}
