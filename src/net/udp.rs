//! Batches out: what goes to clients by listener, what goes to peers by relayed socket.
//!
//! An entry remembers where its payload lies in the worker's arena, so a batch must be flushed before the
//! slots are filled again; `worker` does so.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::sys::{Arena, Outgoing, Part, SendBatch};
use crate::protocol::border::{AllocationId, DropReason, Head};

/// Why a send that the kernel refused counts as lost. It never ends an allocation.
pub(super) fn drop_reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN) => DropReason::Unreachable,
        Some(libc::ECONNREFUSED) => DropReason::Refused,
        Some(libc::EPERM | libc::EACCES) => DropReason::Forbidden,
        Some(libc::EMSGSIZE) => DropReason::MessageSize,
        Some(libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => DropReason::NoBuffers,
        _ => DropReason::SendFailed,
    }
}

/// Datagrams that wait for one socket's `sendmmsg`.
#[derive(Default)]
pub(super) struct Queue {
    outgoing: Vec<Outgoing>,
    /// Whose payload each is; `None` for replies.
    owners: Vec<Option<(AllocationId, u32)>>,
    scratch: Vec<u8>,
    payloads: usize,
}

impl Queue {
    pub(super) const fn len(&self) -> usize {
        self.outgoing.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Whether payload of allocations waits, so that a change of state must wait for it.
    pub(super) const fn has_payload(&self) -> bool {
        self.payloads > 0
    }

    fn remember(&mut self, bytes: &[u8]) -> Part {
        let part = Part { start: self.scratch.len(), len: bytes.len() };
        self.scratch.extend_from_slice(bytes);
        part
    }

    /// A reply of ours.
    pub(super) fn push_reply(&mut self, to: SocketAddr, from: Option<IpAddr>, bytes: &[u8]) {
        let head = self.remember(bytes);
        self.outgoing.push(Outgoing { to, from, head, payload: Part::default(), padding: 0 });
        self.owners.push(None);
    }

    /// A peer's payload behind its head.
    pub(super) fn push_to_client(
        &mut self,
        to: SocketAddr,
        from: Option<IpAddr>,
        head: &Head,
        payload: Part,
        allocation: AllocationId,
    ) {
        let padding = head.padding();
        let head = self.remember(head.bytes());
        self.outgoing.push(Outgoing { to, from, head, payload, padding });
        self.owners.push(Some((allocation, payload.len as u32)));
        self.payloads += 1;
    }

    /// A client's payload, bare.
    pub(super) fn push_to_peer(&mut self, to: SocketAddr, payload: Part, allocation: AllocationId) {
        self.outgoing.push(Outgoing { to, from: None, head: Part::default(), payload, padding: 0 });
        self.owners.push(Some((allocation, payload.len as u32)));
        self.payloads += 1;
    }

    /// The one bare payload that waits, if it is alone: a plain send costs less than a batch of one.
    pub(super) fn take_single(&mut self) -> Option<(SocketAddr, Part)> {
        let [only] = self.outgoing[..] else { return None };
        self.clear();
        Some((only.to, only.payload))
    }

    /// Sends everything; tells of payloads that the kernel refused.
    pub(super) fn flush(
        &mut self,
        fd: BorrowedFd<'_>,
        batch: &mut SendBatch,
        arena: &Arena,
        mut not_sent: impl FnMut(AllocationId, u32, DropReason),
    ) {
        for (outgoing, owners) in self.outgoing.chunks(batch.capacity()).zip(self.owners.chunks(batch.capacity())) {
            batch.send(fd, outgoing, &self.scratch, arena, |index, error| {
                if let Some((allocation, bytes)) = owners[index] {
                    not_sent(allocation, bytes, drop_reason(&error));
                }
            });
        }
        self.clear();
    }

    /// Forgets everything, telling whose payload it was.
    pub(super) fn discard(&mut self, mut not_sent: impl FnMut(AllocationId, u32)) {
        for (allocation, bytes) in self.owners.iter().flatten() {
            not_sent(*allocation, *bytes);
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.outgoing.clear();
        self.owners.clear();
        self.scratch.clear();
        self.payloads = 0;
    }
}
