//! Batches out: what goes to clients by listener, what goes to peers by relayed socket.
//!
//! An entry remembers where its payload lies in the worker's arena, so a batch must be flushed before the
//! slots are filled again; `worker` does so.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use super::sys::{
    Arena, PENDING_ERRORS_MAX, Part, PreparedBatch, Segmentation, SendBatch, SendReport, Transmit, may_be_pending,
};
use crate::protocol::border::Head;
use crate::protocol::ids::AllocationId;
use crate::protocol::reason::DropReason;

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

/// A payload in the arena.
#[derive(Clone, Copy, Debug)]
pub(super) enum PayloadPart {
    /// Its head stands right before it and is part of this.
    WithHead(Part),
    /// Its head is to be sent before it.
    Bare(Part),
}

/// Where the datagrams of one allocation stand in a [`DatagramQueue`]; kept beside its relayed socket.
///
/// A stale one does no harm: it is believed only if that chain is this allocation's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChainPlace(u32);

/// Datagrams that leave one behind the other.
#[derive(Clone, Copy, Debug)]
struct Chain {
    /// Whose they are; `None` for replies.
    of: Option<AllocationId>,
    first: u32,
    last: u32,
}

const END: u32 = u32::MAX;

/// Datagrams that may wait; what a few coalesced buffers hold.
const LONG: usize = 1_024;

/// What stands beside each [`Transmit`].
#[derive(Clone, Copy, Debug)]
struct QueueLink {
    of: Option<AllocationId>,
    /// Of the payload alone.
    bytes: u32,
    next: u32,
}

/// Datagrams that wait to be sent, those of one allocation chained in their order, so that each of its destinations
/// gets them together.
#[derive(Default)]
pub(super) struct DatagramQueue {
    packets: Vec<Transmit>,
    links: Vec<QueueLink>,
    chains: Vec<Chain>,
    /// The packets of the chains that are being sent.
    order: Vec<u32>,
    scratch: Vec<u8>,
    payloads: usize,
}

impl DatagramQueue {
    /// Whether so much waits that it should be sent before more is added: a stream can bring thousands of tiny frames.
    pub(super) const fn is_long(&self) -> bool {
        self.packets.len() >= LONG
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether payload of allocations waits, so that a change of state must wait for it.
    pub(super) const fn has_payload(&self) -> bool {
        self.payloads > 0
    }

    fn remember(&mut self, bytes: &[u8]) -> Part {
        let part = Part::of_scratch(self.scratch.len(), bytes.len());
        self.scratch.extend_from_slice(bytes);
        part
    }

    #[inline]
    fn push(&mut self, packet: Transmit, of: Option<AllocationId>, bytes: usize, place: &mut ChainPlace) {
        let at = self.packets.len() as u32;
        self.packets.push(packet);
        self.links.push(QueueLink { of, bytes: bytes as u32, next: END });
        match self.chains.get_mut(place.0 as usize) {
            Some(chain) if chain.of == of => {
                if let Some(last) = self.links.get_mut(chain.last as usize) {
                    last.next = at;
                }
                chain.last = at;
            }
            _ => {
                *place = ChainPlace(self.chains.len() as u32);
                self.chains.push(Chain { of, first: at, last: at });
            }
        }
    }

    /// A reply of ours.
    pub(super) fn push_reply(&mut self, to: SocketAddr, from: Option<IpAddr>, bytes: &[u8]) {
        let head = self.remember(bytes);
        let packet = Transmit { to, from, head, payload: Part::default(), padding: 0, class: 0 };
        // Behind the last one, if that is a reply too.
        let mut place = ChainPlace((self.chains.len() as u32).wrapping_sub(1));
        self.push(packet, None, 0, &mut place);
    }

    /// A peer's payload behind its head, which lies somewhere else if there was no room before the payload.
    #[inline]
    pub(super) fn push_to_client(
        &mut self,
        (to, from, class): (SocketAddr, Option<IpAddr>, u8),
        head: &Head,
        payload: PayloadPart,
        allocation: AllocationId,
        place: &mut ChainPlace,
    ) {
        let padding = head.padding();
        let (bytes, head, payload) = match payload {
            PayloadPart::WithHead(part) => (part.len - head.bytes().len(), Part::default(), part),
            PayloadPart::Bare(part) => (part.len, self.remember(head.bytes()), part),
        };
        self.push(Transmit { to, from, head, payload, padding, class }, Some(allocation), bytes, place);
        self.payloads += 1;
    }

    /// A client's payload, bare.
    #[inline]
    pub(super) fn push_to_peer(
        &mut self,
        (to, class): (SocketAddr, u8),
        payload: Part,
        allocation: AllocationId,
        place: &mut ChainPlace,
    ) {
        let packet = Transmit { to, from: None, head: Part::default(), payload, padding: 0, class };
        self.push(packet, Some(allocation), payload.len, place);
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

    /// The one datagram that is selected, if it lies in one piece and may leave from any address: a plain send costs less
    /// than a batch of one.
    fn single<'a>(&'a self, arena: &'a Arena) -> Option<(SocketAddr, &'a [u8])> {
        let [only] = self.order[..] else { return None };
        let only = self.packets.get(only as usize)?;
        let bytes = match (only.head.len, only.payload.len) {
            (0, _) => arena.part(only.payload),
            (_, 0) => &self.scratch[only.head.start..][..only.head.len],
            _ => return None,
        };
        (only.from.is_none() && only.padding == 0 && only.class == 0).then_some((only.to, bytes))
    }

    /// Sends what is selected; tells of payloads that the kernel refused.
    pub(super) fn send(
        &self,
        socket: &UdpSocket,
        batch: &mut SendBatch,
        arena: &Arena,
        segmentation: &mut impl Segmentation,
        mut not_sent: impl FnMut(AllocationId, u64, DropReason),
    ) -> SendReport {
        let mut replies_lost = 0;
        let mut refused = |at: u32, error: &io::Error| match self.links[at as usize] {
            QueueLink { of: Some(allocation), bytes, .. } => not_sent(allocation, u64::from(bytes), drop_reason(error)),
            QueueLink { of: None, .. } => replies_lost += 1,
        };
        if let Some((to, bytes)) = self.single(arena) {
            let mut sent = socket.send_to(bytes, to);
            for _ in 0..PENDING_ERRORS_MAX {
                match &sent {
                    Err(error) if may_be_pending(error) => sent = socket.send_to(bytes, to),
                    Ok(_) | Err(_) => break,
                }
            }
            if let Err(error) = sent {
                refused(self.order[0], &error);
            }
            return SendReport { replies_lost, ..SendReport::default() };
        }
        let prepared = PreparedBatch { packets: &self.packets, order: &self.order, scratch: &self.scratch, arena };
        let report = batch.send(socket.as_fd(), prepared, segmentation, refused);
        SendReport { replies_lost, ..report }
    }

    /// Whose payload the selected are, and its bytes.
    pub(super) fn selected(&self) -> impl Iterator<Item = (AllocationId, u64)> {
        let packet = |at: &u32| {
            let link = self.links.get(*at as usize)?;
            Some((link.of?, u64::from(link.bytes)))
        };
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::UdpSocket;

    use proptest::prelude::*;

    use super::*;
    use crate::net::sys::{ListenerSegmentation, Unsegmented};

    #[derive(Clone, Copy, Debug)]
    enum Push {
        Payload { of: u32, to: usize, len: usize },
        Reply { to: usize, len: usize },
    }

    const PUSHES_MAX: usize = 80;
    const LEN_MAX: usize = 1_200;

    fn pushes() -> impl Strategy<Value = Vec<Push>> {
        let len = || prop_oneof![Just(0), 1..200_usize, Just(160), Just(160), Just(LEN_MAX)];
        let payload = (0..4_u32, 0..2_usize, len()).prop_map(|(of, to, len)| Push::Payload { of, to, len });
        let reply = (0..2_usize, len()).prop_map(|(to, len)| Push::Reply { to, len });
        prop::collection::vec(prop_oneof![4 => payload, 1 => reply], 0..PUSHES_MAX)
    }

    /// Slots whose bytes differ from datagram to datagram.
    fn arena() -> Arena {
        let mut arena = Arena::new(2);
        for slot in 0..2 {
            for (at, byte) in arena.slot_mut(slot).iter_mut().enumerate() {
                *byte = ((at / LEN_MAX) * 3 + at + slot * 7) as u8;
            }
        }
        arena
    }

    fn payload_of(arena: &Arena, number: usize, len: usize) -> Part {
        arena.part_of(number % 2, number / 2 * LEN_MAX, len)
    }

    fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
    }

    fn id(of: u32) -> AllocationId {
        AllocationId { index: of, generation: 1 }
    }

    /// Pushes all of it, looks at the order in which it would leave, sends it and looks at what comes.
    fn check(
        queue: &mut DatagramQueue,
        places: &mut [ChainPlace; 4],
        is_on: bool,
        pushes: &[Push],
    ) -> Result<(), TestCaseError> {
        let arena = arena();
        let sockets = [(); 3].map(|()| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let to = [0, 1].map(|at: usize| sockets[at].local_addr().unwrap());
        let mut bytes = Vec::new();
        for (number, push) in pushes.iter().enumerate() {
            match *push {
                Push::Payload { of, to: at, len } => {
                    let part = payload_of(&arena, number, len);
                    bytes.push((at, Some(id(of)), arena.part(part).to_vec()));
                    queue.push_to_peer((to[at], 0), part, id(of), &mut places[of as usize]);
                }
                Push::Reply { to: at, len } => {
                    let reply = vec![number as u8; len];
                    queue.push_reply(to[at], None, &reply);
                    bytes.push((at, None, reply));
                }
            }
        }
        let payloads = bytes.iter().filter(|(_, of, _)| of.is_some()).count();
        prop_assert_eq!((queue.is_empty(), queue.has_payload()), (pushes.is_empty(), payloads > 0));

        // One chain for each allocation; what they hold is what is sent when all of them are.
        let (mut by_chain, mut chains) = (Vec::new(), HashMap::new());
        for chain in 0..queue.chains() {
            let of = queue.select(chain);
            prop_assert!(queue.order.iter().all(|at| bytes[*at as usize].1 == of));
            prop_assert_eq!(queue.single(&arena).is_some(), queue.order.len() == 1);
            let expected: Vec<_> =
                queue.order.iter().filter_map(|at| Some((of?, bytes[*at as usize].2.len() as u64))).collect();
            prop_assert_eq!(queue.selected().collect::<Vec<_>>(), expected);
            *chains.entry(of).or_insert(0) += 1;
            by_chain.extend_from_slice(&queue.order);
        }
        prop_assert!(chains.iter().all(|(of, count)| of.is_none() || *count == 1), "{chains:?}");
        queue.select_all();
        prop_assert_eq!(&queue.order, &by_chain);
        // Everything once; each allocation's in its order, and the replies in theirs.
        let mut sorted = by_chain.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..pushes.len() as u32).collect::<Vec<_>>());
        for of in (0..4).map(|of| Some(id(of))).chain([None]) {
            prop_assert!(by_chain.iter().filter(|at| bytes[**at as usize].1 == of).is_sorted(), "{of:?}: {by_chain:?}");
        }

        let mut batch = SendBatch::new(16);
        let refused = |_, _, why| panic!("{why:?}");
        if is_on {
            queue.send(&sockets[2], &mut batch, &arena, &mut ListenerSegmentation::default(), refused);
        } else {
            queue.send(&sockets[2], &mut batch, &arena, &mut Unsegmented, refused);
        }
        for (at, socket) in sockets[..2].iter().enumerate() {
            let due: Vec<_> =
                by_chain.iter().map(|number| &bytes[*number as usize]).filter(|due| due.0 == at).collect();
            let came = received(socket);
            prop_assert_eq!(came.len(), due.len());
            for (came, due) in came.iter().zip(due) {
                prop_assert!(*came == due.2, "{} bytes, due {}", came.len(), due.2.len());
            }
        }
        queue.clear();
        prop_assert!(queue.is_empty() && !queue.has_payload() && queue.chains() == 0);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        /// Places are as old as the last time, which is another one for each allocation.
        #[test]
        fn any_interleaving_comes_out_whole_and_in_order(
            rounds in prop::collection::vec(pushes(), 1..4),
            is_on in any::<bool>(),
        ) {
            let (mut queue, mut places) = (DatagramQueue::default(), [ChainPlace::default(); 4]);
            for pushes in rounds {
                check(&mut queue, &mut places, is_on, &pushes)?;
            }
        }
    }
}
