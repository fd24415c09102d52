//! The two families of an allocation: which of its relayed addresses a packet uses, and how long each is there.
//!
//! Of the second address there is nothing in the way of packets of the own family: they compare the family and go on.

use super::additional_address::AdditionalAddress;
use super::allocation::Allocation;
use super::endpoint_addresses::EndpointAddresses;
use super::ids::AllocationId;
use crate::address::{Family, RelayedTransportAddress};
use crate::time::Ticks;

impl Allocation {
    /// The second relayed address, if there is or was one.
    pub(super) fn additional(&self) -> Option<AdditionalAddress> {
        self.cold.as_ref().and_then(|cold| cold.additional)
    }

    fn additional_mut(&mut self) -> Option<&mut AdditionalAddress> {
        self.cold.as_mut().and_then(|cold| cold.additional.as_mut())
    }

    /// Gives it a second relayed address, whose socket is known by this id.
    pub(super) fn add_address(&mut self, socket: AllocationId, relayed: RelayedTransportAddress) {
        let expires_at = self.expires_at;
        self.cold.get_or_insert_default().additional = Some(AdditionalAddress {
            relayed,
            socket: Some(socket),
            expires_at,
            own_expires_at: expires_at,
            packets: 0,
        });
    }

    /// Whether it has a relayed address of this family, so that it may have peers of it.
    #[inline]
    pub(super) fn has_family(&self, family: Family) -> bool {
        family == self.family() || self.second_socket().is_some()
    }

    /// Its sockets and what they are bound to: its own, and the second one if it has one.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (AllocationId, RelayedTransportAddress)> + use<> {
        std::iter::once((self.id, self.relayed())).chain(self.second_socket())
    }

    /// The socket that a packet to a peer of this family leaves by, and its address.
    #[inline]
    pub(super) fn socket_to(&self, family: Family) -> (AllocationId, RelayedTransportAddress) {
        if family == self.family() {
            return (self.id, self.relayed());
        }
        self.second_socket().unwrap_or((self.id, self.relayed()))
    }

    #[cold]
    fn second_socket(&self) -> Option<(AllocationId, RelayedTransportAddress)> {
        self.additional()?.open_socket()
    }

    /// A packet leaves for a peer.
    #[inline]
    pub(super) fn count_to_peer(&mut self, family: Family) {
        if family != self.family() {
            self.count_to_other(1);
        }
    }

    /// Packets that were counted as sent from the socket with this id go nowhere; the family that they are taken from.
    pub(super) fn take_back_from(&mut self, socket: AllocationId, packets: u64) -> Family {
        if socket == self.id {
            return self.family();
        }
        self.count_to_other(packets.wrapping_neg());
        self.additional().map_or(self.family(), |of| of.relayed.family())
    }

    #[cold]
    fn count_to_other(&mut self, packets: u64) {
        if let Some(additional) = self.additional_mut() {
            additional.packets = additional.packets.wrapping_add(packets);
        }
    }

    /// Sets the end of one of two families, or of all there is.
    pub(super) fn extend(&mut self, expires_at: Ticks, family: Option<Family>) {
        let own = self.family();
        let Some(additional) = self.additional_mut().filter(|of| of.socket.is_some()) else {
            self.expires_at = expires_at;
            return;
        };
        if family.is_none_or(|family| family == own) {
            additional.own_expires_at = expires_at;
        }
        if family.is_none_or(|family| family != own) {
            additional.expires_at = expires_at;
        }
        let later = additional.own_expires_at.max(additional.expires_at);
        self.expires_at = later;
    }

    /// Gives up one of two addresses. The id that the second socket had, and the address which is the second one until
    /// now; it is the allocation's own afterwards if that was given up. `None` where there are no two.
    pub(super) fn close_family(
        &mut self,
        family: Family,
        secret: u64,
    ) -> Option<(AllocationId, RelayedTransportAddress)> {
        let (own, via, seed) = (self.relayed(), self.via(), self.seed(secret));
        let sent = self.traffic().to_peers.sent().packets;
        let additional = self.additional_mut()?;
        let (socket, other) = (additional.socket.take()?, additional.relayed);
        let mut expires_at = additional.own_expires_at;
        if own.family() == family {
            expires_at = additional.expires_at;
            additional.relayed = own;
            additional.packets = sent.saturating_sub(additional.packets);
            self.endpoints = EndpointAddresses::new(via, other);
        }
        self.expires_at = expires_at;
        self.permissions.retain(seed, |ip, _| Family::of(ip) != family);
        self.channels.retain(seed, |binding| binding.peer.family() != family);
        Some((socket, other))
    }
}
