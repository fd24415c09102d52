//! The second relayed address of an allocation with addresses of both families (RFC 8656 section 7.2).
//!
//! The one address is the allocation's own, as if it were the only one. What there is of the other one stands aside, since
//! few allocations have it: packets of the own family find nothing of it in their way. Decision 0223.

use minicbor::{Decode, Encode};

use super::ids::AllocationId;
use crate::address::RelayedTransportAddress;
use crate::time::Ticks;

/// The second relayed address of an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct AdditionalAddress {
    /// Advertised form.
    #[n(0)]
    pub relayed: RelayedTransportAddress,
    /// What its socket is known by; `None` once it has been given back or has expired.
    #[n(1)]
    pub socket: Option<AllocationId>,
    /// When it expires.
    #[n(2)]
    pub expires_at: Ticks,
    /// When the allocation's own address expires; the allocation itself ends with the later one.
    #[n(3)]
    pub own_expires_at: Ticks,
    /// Packets sent to peers of its family.
    #[n(4)]
    pub packets: u64,
}

impl AdditionalAddress {
    /// Its socket and what that is bound to, while it is there.
    pub(super) fn open_socket(&self) -> Option<(AllocationId, RelayedTransportAddress)> {
        self.socket.map(|socket| (socket, self.relayed))
    }

    /// The earlier of the two ends, while there are two.
    pub(super) fn wakes_at(&self) -> Option<Ticks> {
        self.socket.map(|_| self.expires_at.min(self.own_expires_at))
    }
}
