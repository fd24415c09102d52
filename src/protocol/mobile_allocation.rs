//! The parts of an allocation that have to do with a client which changes its network (RFC 8016).

use super::allocation::Allocation;
use super::endpoint_addresses::EndpointAddresses;
use super::mobility::{Mobility, PendingPath};
use super::quota::QuotaClaim;
use crate::address::Via;

impl Allocation {
    /// What makes it mobile, if it is.
    pub(super) fn mobility(&self) -> Option<&Mobility> {
        self.cold.as_ref()?.mobility.as_deref()
    }

    pub(super) fn mobility_mut(&mut self) -> Option<&mut Mobility> {
        self.cold.as_mut()?.mobility.as_deref_mut()
    }

    /// Its client may change its network.
    pub(super) fn make_mobile(&mut self) {
        self.cold.get_or_insert_default().mobility = Some(Box::default());
    }

    /// Where its client will come from.
    pub(super) fn pending(&self) -> Option<PendingPath> {
        self.mobility()?.pending
    }

    /// The user that it counts for, at the address where it was admitted: a move changes nothing that is counted.
    pub(super) fn claim(&self) -> QuotaClaim<'_> {
        let client = self.mobility().and_then(|mobility| mobility.counted_at);
        self.owner.claim_from(client.unwrap_or_else(|| self.via().five_tuple().client.ip()))
    }

    /// The client comes another way from now on; tells the one before.
    pub(super) fn set_via(&mut self, via: Via) -> Via {
        let before = self.via();
        self.endpoints = EndpointAddresses::new(via, self.relayed());
        if let Some(mobility) = self.mobility_mut() {
            mobility.counted_at.get_or_insert(before.five_tuple().client.ip());
            mobility.is_waiting = None;
        }
        before
    }
}
