//! What an allocation of a client that may change its network knows besides (RFC 8016).
//!
//! Nearly no allocation has it, so it stands aside. Decision 0208.

use std::net::IpAddr;

use minicbor::{Decode, Encode};

use super::ids::WorkerId;
use crate::address::{StreamId, Via};
use crate::time::Ticks;
use crate::wire::message::TransactionId;

/// How long a ticket that was used is known for retransmissions, in seconds (RFC 8016 section 3.2.2).
// [8016-3.2.2-8]
pub const OLD_TICKET_LIFETIME: u64 = 30;

/// A way by which the client said that it will come, and by which no data came yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PendingPath {
    /// As the worker of the allocation knows it: see [`seen_from`].
    #[n(0)]
    pub via: Via,
    /// The worker where its packets arrive.
    #[n(1)]
    pub worker: WorkerId,
}

/// The last Refresh with a ticket that succeeded, so that its retransmission gets the same answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct LastMove {
    /// Of the request.
    #[n(0)]
    pub transaction_id: TransactionId,
    /// Where it came from, as in [`PendingPath`].
    #[n(1)]
    pub via: Via,
    /// The LIFETIME that was granted, in seconds.
    #[n(2)]
    pub lifetime: u32,
    /// When the ticket that it had is forgotten.
    #[n(3)]
    pub known_until: Ticks,
}

/// A way that a client came before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct LeftPath {
    /// Which.
    #[n(0)]
    pub via: Via,
    /// Since when it comes another way.
    #[n(1)]
    pub at: Ticks,
}

/// What makes an allocation mobile.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Mobility {
    /// That of the ticket which is good now.
    #[n(0)]
    pub rotation: u32,
    /// Where the quotas count it, since it has moved.
    #[n(1)]
    pub counted_at: Option<IpAddr>,
    /// Where the client will come from.
    #[n(2)]
    pub pending: Option<PendingPath>,
    /// For retransmissions.
    #[n(3)]
    pub last: Option<LastMove>,
    /// The way that it left by its last move, as long as that has not been told.
    #[n(4)]
    pub left: Option<LeftPath>,
    /// Its stream is closed: it waits for the client to come another way.
    #[n(5)]
    pub is_waiting: Option<bool>,
    /// When a record of a move was written last.
    #[n(6)]
    pub recorded_at: Option<Ticks>,
}

/// The highest byte of a stream's number says which worker's it is, for all workers but its own.
const WORKER_SHIFT: u32 = 55;

/// How a worker knows a way that ends at another worker: a stream by a number that is none of its own.
#[must_use]
pub fn seen_from(me: WorkerId, worker: WorkerId, via: Via) -> Via {
    match via {
        Via::Stream(StreamId(number), five_tuple) if worker != me => {
            Via::Stream(StreamId(number | (u64::from(worker.0) + 1) << WORKER_SHIFT), five_tuple)
        }
        Via::Datagram(_) | Via::Stream(..) => via,
    }
}

/// The same as its own worker knows it.
#[must_use]
pub fn at_home(via: Via) -> Via {
    match via {
        Via::Stream(StreamId(number), five_tuple) => {
            Via::Stream(StreamId(number & ((1 << WORKER_SHIFT) - 1)), five_tuple)
        }
        Via::Datagram(_) => via,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, FiveTuple, ServerAddress, Transport};

    #[test]
    fn a_stream_of_another_worker_is_none_of_our_own_and_finds_home() {
        let five_tuple = FiveTuple {
            client: ClientAddress::new([192, 0, 2, 1].into(), 5),
            server: ServerAddress::new([192, 0, 2, 2].into(), 3478),
            transport: Transport::Tcp,
        };
        let (me, own) = (WorkerId(0), Via::Stream(StreamId(7), five_tuple));
        assert_eq!(seen_from(me, me, own), own);
        let of_others: Vec<Via> = [1, 2, 255].map(|other| seen_from(me, WorkerId(other), own)).to_vec();
        for (at, via) in of_others.iter().enumerate() {
            assert!(*via != own && !of_others[..at].contains(via));
            assert_eq!(at_home(*via), own);
        }
        let datagram = Via::Datagram(five_tuple);
        assert_eq!((seen_from(me, WorkerId(1), datagram), at_home(datagram)), (datagram, datagram));
    }
}
