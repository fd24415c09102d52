//! Many datagrams in one call, and many of one size to one place in one message.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::address::{CONTROL_BYTES, Control, ControlWriter, write_socket_address};
use super::arena::{Arena, Part};
use super::check;

/// Pieces of one datagram: head, payload, padding.
const PIECES: usize = 3;

/// Datagrams of one message; the least that a kernel with segmentation takes.
const SEGMENTS_MAX: usize = 64;

/// Bytes of one message: an IPv4 datagram's, which the kernel holds it to before it is cut.
const SEGMENTED_BYTES_MAX: usize = 65_000;

/// The largest datagram that every path carries (RFC 8200 section 5: 1,280 bytes), without its headers.
const SURE_BYTES: u16 = 1_232;

/// One datagram to be sent: head from the scratch buffer, payload from the arena, zero padding.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Outgoing {
    pub(in crate::net) to: SocketAddr,
    /// The address it must leave from, on wildcard listeners.
    pub(in crate::net) from: Option<IpAddr>,
    pub(in crate::net) head: Part,
    pub(in crate::net) payload: Part,
    pub(in crate::net) padding: usize,
}

impl Outgoing {
    const fn len(&self) -> usize {
        self.head.len + self.payload.len + self.padding
    }
}

/// How large datagrams may be that are handed to the kernel together, on one socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) struct Segmentation {
    largest: u16,
}

impl Segmentation {
    /// Nothing is known against it.
    pub(in crate::net) const ON: Self = Self { largest: u16::MAX };

    /// Each datagram for itself.
    pub(in crate::net) const OFF: Self = Self { largest: 0 };

    /// The kernel refused a message of several datagrams of this size: whether they may still go one by one.
    ///
    /// EIO: the device can't (no checksums of its own). EINVAL: the socket can't, or in older kernels the size does not
    /// fit the path. EMSGSIZE: the size does not fit the path.
    fn refused(&mut self, error: &io::Error, segment: usize) -> bool {
        match error.raw_os_error() {
            Some(libc::EIO) => *self = Self::OFF,
            Some(libc::EINVAL) if segment <= usize::from(SURE_BYTES) => *self = Self::OFF,
            // A listener's other clients may well have wider paths, but no narrower ones can go wrong any more.
            Some(libc::EINVAL | libc::EMSGSIZE) => self.largest = (segment - 1) as u16,
            _ => return false,
        }
        true
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
    fn takes(&self, last: &Outgoing, next: &Outgoing, segmentation: Segmentation) -> bool {
        let len = next.len();
        !self.is_full
            && len <= self.segment
            && len > 0
            && self.segment <= usize::from(segmentation.largest)
            && self.count < SEGMENTS_MAX
            && self.bytes + len <= SEGMENTED_BYTES_MAX
            && last.to == next.to
            && last.from == next.from
    }
}

/// What one [`SendBatch::send`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::net) struct SendReport {
    /// Messages of more than one datagram that the kernel took.
    pub(in crate::net) segmented: usize,
    /// Messages of more than one datagram that it refused, so that they were sent one by one.
    pub(in crate::net) refused: usize,
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

    /// Sends those of `packets` that `order` names, neighbours of one size and destination in one message as far as
    /// `segmentation` allows; tells of each that the kernel did not take.
    pub(in crate::net) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        packets: &[Outgoing],
        order: &[u32],
        scratch: &[u8],
        arena: &Arena,
        segmentation: &mut Segmentation,
        mut failed: impl FnMut(u32, &io::Error),
    ) -> SendReport {
        let mut report = SendReport::default();
        for order in order.chunks(self.headers.len()) {
            self.send_some(fd, packets, order, scratch, arena, segmentation, &mut report, &mut failed);
        }
        report
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one call site, and a structure for it would only be taken apart again"
    )]
    fn send_some(
        &mut self,
        fd: BorrowedFd<'_>,
        packets: &[Outgoing],
        order: &[u32],
        scratch: &[u8],
        arena: &Arena,
        segmentation: &mut Segmentation,
        report: &mut SendReport,
        failed: &mut impl FnMut(u32, &io::Error),
    ) {
        let count = self.fill(packets, order, scratch, arena, *segmentation);
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
                Ok(sent) => {
                    let sent = (sent as usize).max(1);
                    let messages = &self.messages[done..(done + sent).min(count)];
                    report.segmented += messages.iter().filter(|message| message.count > 1).count();
                    done += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The first of the rest was refused; the others are none the worse for it.
                    let message = self.messages[done];
                    if message.count > 1 && segmentation.refused(&error, message.segment) {
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
    fn fill(
        &mut self,
        packets: &[Outgoing],
        order: &[u32],
        scratch: &[u8],
        arena: &Arena,
        segmentation: Segmentation,
    ) -> usize {
        static ZEROS: [u8; 4] = [0; 4];
        let (mut count, mut used) = (0, 0);
        let mut last: Option<&Outgoing> = None;
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
    fn write_header(&mut self, at: usize, range: std::ops::Range<usize>, packet: &Outgoing, segment: Option<u16>) {
        let (first, end) = (self.starts[range.start] as usize, self.starts[range.end] as usize);
        let name_len = write_socket_address(&mut self.names[at], packet.to);
        let mut control = ControlWriter::new(&mut self.controls[at]);
        if let Some(from) = packet.from {
            control.source(from);
        }
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
        // The source stays, the segment size behind it goes.
        // SAFETY: plain arithmetic on a constant.
        let segment_space = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as usize;
        header.msg_controllen -= segment_space;
        if header.msg_controllen == 0 {
            header.msg_control = std::ptr::null_mut();
        }
        for index in first..first + count {
            let (start, end) = (self.starts[index] as usize, self.starts[index + 1] as usize);
            header.msg_iov = self.iovecs[start..end].as_mut_ptr();
            header.msg_iovlen = end - start;
            // SAFETY: the header points to a name, iovecs and control buffer of its own and to bytes that `send` borrows.
            let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if sent < 0 {
                failed(order[index], &io::Error::last_os_error());
            }
        }
    }
}
