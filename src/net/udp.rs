//! Batches out: what goes to clients by listener, what goes to peers by relayed socket.
//!
//! An entry remembers where its payload lies in the worker's arena, so a batch must be flushed before the
//! slots are filled again; `worker` does so.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::sys::{Arena, Letters, Outgoing, Part, Segmentation, SendBatch, SendReport};
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

/// Where the datagrams of one allocation stand in a [`Queue`]; kept beside its relayed socket.
///
/// A stale one does no harm: it is believed only if that chain is this allocation's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place(u32);

/// Datagrams that leave one behind the other.
#[derive(Clone, Copy, Debug)]
struct Chain {
    /// Whose they are; `None` for replies.
    of: Option<AllocationId>,
    first: u32,
    last: u32,
}

const END: u32 = u32::MAX;

/// What stands beside each [`Outgoing`].
#[derive(Clone, Copy, Debug)]
struct Link {
    of: Option<AllocationId>,
    next: u32,
}

/// Datagrams that wait to be sent, those of one allocation chained in their order, so that each of its destinations
/// gets them together.
#[derive(Default)]
pub(super) struct Queue {
    packets: Vec<Outgoing>,
    links: Vec<Link>,
    chains: Vec<Chain>,
    /// The packets of the chains that are being sent.
    order: Vec<u32>,
    scratch: Vec<u8>,
    payloads: usize,
}

impl Queue {
    pub(super) const fn is_empty(&self) -> bool {
        self.packets.is_empty()
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

    #[inline]
    fn push(&mut self, packet: Outgoing, of: Option<AllocationId>, place: &mut Place) {
        let at = self.packets.len() as u32;
        self.packets.push(packet);
        self.links.push(Link { of, next: END });
        match self.chains.get_mut(place.0 as usize) {
            Some(chain) if chain.of == of => {
                if let Some(last) = self.links.get_mut(chain.last as usize) {
                    last.next = at;
                }
                chain.last = at;
            }
            _ => {
                *place = Place(self.chains.len() as u32);
                self.chains.push(Chain { of, first: at, last: at });
            }
        }
    }

    /// A reply of ours.
    pub(super) fn push_reply(&mut self, to: SocketAddr, from: Option<IpAddr>, bytes: &[u8]) {
        let head = self.remember(bytes);
        let packet = Outgoing { to, from, head, payload: Part::default(), padding: 0 };
        // Behind the last one, if that is a reply too.
        let mut place = Place((self.chains.len() as u32).wrapping_sub(1));
        self.push(packet, None, &mut place);
    }

    /// A peer's payload behind its head.
    #[inline]
    pub(super) fn push_to_client(
        &mut self,
        to: SocketAddr,
        from: Option<IpAddr>,
        head: &Head,
        payload: Part,
        allocation: AllocationId,
        place: &mut Place,
    ) {
        let padding = head.padding();
        let head = self.remember(head.bytes());
        self.push(Outgoing { to, from, head, payload, padding }, Some(allocation), place);
        self.payloads += 1;
    }

    /// A client's payload, bare.
    #[inline]
    pub(super) fn push_to_peer(&mut self, to: SocketAddr, payload: Part, allocation: AllocationId, place: &mut Place) {
        let packet = Outgoing { to, from: None, head: Part::default(), payload, padding: 0 };
        self.push(packet, Some(allocation), place);
        self.payloads += 1;
    }

    /// How many chains there are.
    pub(super) const fn chains(&self) -> usize {
        self.chains.len()
    }

    fn follow(&mut self, chain: Chain) {
        let mut at = chain.first;
        while let Some(link) = self.links.get(at as usize) {
            self.order.push(at);
            at = link.next;
        }
    }

    /// Takes one chain to be sent next; tells whose it is.
    pub(super) fn select(&mut self, at: usize) -> Option<AllocationId> {
        self.order.clear();
        let chain = *self.chains.get(at)?;
        self.follow(chain);
        chain.of
    }

    /// Takes every chain to be sent next.
    pub(super) fn select_all(&mut self) {
        self.order.clear();
        for at in 0..self.chains.len() {
            self.follow(self.chains[at]);
        }
    }

    /// The one bare payload among the selected, if it is alone: a plain send costs less than a batch of one.
    pub(super) fn single(&self) -> Option<(SocketAddr, Part)> {
        let [only] = self.order[..] else { return None };
        let only = self.packets.get(only as usize)?;
        Some((only.to, only.payload))
    }

    /// Sends what is selected; tells of payloads that the kernel refused.
    pub(super) fn send(
        &self,
        fd: BorrowedFd<'_>,
        batch: &mut SendBatch,
        arena: &Arena,
        segmentation: &mut Segmentation,
        mut not_sent: impl FnMut(AllocationId, u64, DropReason),
    ) -> SendReport {
        let letters = Letters { packets: &self.packets, order: &self.order, scratch: &self.scratch, arena };
        batch.send(fd, letters, segmentation, |at, error| {
            if let Some(allocation) = self.links[at as usize].of {
                not_sent(allocation, self.packets[at as usize].payload.len as u64, drop_reason(error));
            }
        })
    }

    /// Whose payload the selected are, and its bytes.
    pub(super) fn selected(&self) -> impl Iterator<Item = (AllocationId, u64)> {
        let packet = |at: &u32| Some((self.links[*at as usize].of?, self.packets[*at as usize].payload.len as u64));
        self.order.iter().filter_map(packet)
    }

    /// Everything is sent, or given up.
    pub(super) fn clear(&mut self) {
        self.packets.clear();
        self.links.clear();
        self.chains.clear();
        self.order.clear();
        self.scratch.clear();
        self.payloads = 0;
    }
}
