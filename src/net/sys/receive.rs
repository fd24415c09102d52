//! Many datagrams in one call.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::address::{CONTROL_BYTES, Control, read_control, socket_address};
use super::arena::Arena;
use super::check;

/// The arrays that `recvmmsg` fills.
pub(in crate::net) struct ReceiveBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

/// What fills one slot: a datagram, or several of one sender that the kernel coalesced.
#[derive(Clone, Copy, Debug)]
pub(in crate::net) struct Received {
    pub(in crate::net) slot: usize,
    pub(in crate::net) len: usize,
    /// The size of each datagram in it but the last, which may be smaller.
    pub(in crate::net) segment: usize,
    pub(in crate::net) from: SocketAddr,
    /// The local address it was sent to, where the socket was told to say so.
    pub(in crate::net) to: Option<IpAddr>,
    /// DSCP and ECN, where they were asked for.
    pub(in crate::net) class: u8,
}

impl Received {
    /// Where each of its datagrams lies in the slot: start and length.
    pub(in crate::net) fn datagrams(self) -> impl Iterator<Item = (usize, usize)> {
        // An empty datagram is one, too.
        let count = self.len.div_ceil(self.segment).max(1);
        (0..count).map(move |at| (at * self.segment, self.segment.min(self.len - at * self.segment)))
    }
}

impl ReceiveBatch {
    pub(in crate::net) fn new(capacity: usize) -> Self {
        // SAFETY: all-zero bytes are a valid value of each of these plain C structures.
        let (header, iovec, name) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            headers: vec![header; capacity].into(),
            iovecs: vec![iovec; capacity].into(),
            names: vec![name; capacity].into(),
            controls: vec![Control([0; CONTROL_BYTES]); capacity].into(),
        }
    }

    /// Receives into up to `count` slots from `first` on; gives how many were filled. What the socket was told to tell
    /// beside the datagrams comes only where it `asks`.
    pub(in crate::net) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        arena: &mut Arena,
        first: usize,
        count: usize,
        asks: bool,
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
            header.msg_controllen = if asks { CONTROL_BYTES } else { 0 };
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

    /// What the last [`ReceiveBatch::receive`] put at `index`; `None` if it was cut or has no address.
    #[inline]
    pub(in crate::net) fn get(&self, index: usize, first: usize) -> Option<Received> {
        let header = self.headers.get(index)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let from = socket_address(self.names.get(index)?)?;
        let len = header.msg_len as usize;
        let told = read_control(&header.msg_hdr);
        let segment = if told.segment == 0 { len.max(1) } else { told.segment };
        Some(Received { slot: first + index, len, segment, from, to: told.to, class: told.class })
    }
}
