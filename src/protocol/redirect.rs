//! Clients that are sent to other servers (RFC 8489 section 10): all new ones while this server drains, and as many as
//! `turn.redirect` says else. What lives goes on here.
//!
//! Who of the others takes clients, and how full this server is, is told (`Shared::pool`). Decision 0227.

use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Server;
use super::auth::Authenticated;
use super::pool::{LOAD_MAX, Openness, PROBE_SOFTWARE};
use super::reject::RejectReason;
use crate::address::Via;
use crate::wire::attribute::{ATTR_ALTERNATE_DOMAIN, ATTR_ALTERNATE_SERVER, ATTR_SOFTWARE, mapped_address};
use crate::wire::integrity::ReplyKey;
use crate::wire::message::{AttrType, METHOD_ALLOCATE, Message};

impl Server {
    /// Answers the first Allocate of a new client, which is never signed, with an unsigned 300; true if it did.
    ///
    /// Browsers follow this one (RFC 8489 section 10 lets it be unauthenticated). A 300 after the challenge reaches
    /// them too late: libwebrtc takes realm and nonce of this server along, gets 438 from the sibling and gives up.
    /// So this answer carries neither. It is smaller than the 401 that it stands for, and a client with an allocation
    /// never gets one: its call stays here.
    pub(super) fn redirect_first_allocate(&mut self, via: &Via, message: &Message<'_>) -> bool {
        let is_first = message.message_type().method == METHOD_ALLOCATE && !message.has_integrity();
        if !is_first || self.has_allocation(via) {
            return false;
        }
        let state = self.shared.pool();
        if message.all(ATTR_SOFTWARE).next() == Some(PROBE_SOFTWARE) {
            return self.answer_probe(via, message, state.load);
        }
        if !self.draining && self.settings.pool.members.is_empty() {
            return false;
        }
        // A token is good for a port of this server.
        let is_bound_to_this = matches!(message.reservation_token(), Ok(Some(_)));
        let number = self.number_of(via).rotate_right(32);
        let goes = self.draining || (!is_bound_to_this && self.settings.pool.sends_away(state.load, number));
        goes && self.redirect(*via, message, None)
    }

    /// Tells another server that this one does not take clients, or not all; one that does answers as it would a client.
    fn answer_probe(&mut self, via: &Via, message: &Message<'_>, load: u16) -> bool {
        let reason = match self.settings.pool.openness(load) {
            _ if self.draining => RejectReason::Full,
            Openness::Open => return false,
            Openness::Spare => RejectReason::Busy,
            Openness::Closed => RejectReason::Full,
        };
        self.reject(*via, message, reason, None);
        true
    }

    /// Where a client goes that this server has no room for; nothing unless it may be sent away for that.
    pub(super) fn elsewhere_if_full(&self, via: &Via, reason: RejectReason) -> Option<(SocketAddr, Option<Box<str>>)> {
        let has_no_room = matches!(
            reason,
            RejectReason::QuotaServer | RejectReason::NoPort | RejectReason::NoFiles | RejectReason::NoRelayAddress
        );
        let may_go = has_no_room && self.settings.pool.sends_away(LOAD_MAX, 0);
        let (address, domain) =
            self.settings.pool.for_client(via, self.shared.pool(), self.number_of(via), true).filter(|_| may_go)?;
        Some((address, domain.map(Into::into)))
    }

    /// A number that a client has as long as it asks from one address and port.
    fn number_of(&self, via: &Via) -> u64 {
        foldhash::quality::FixedState::with_seed(self.secret).hash_one(via.five_tuple())
    }

    /// Refuses what would begin now, for a client that has proven to hold a credential.
    pub(super) fn send_elsewhere(&mut self, via: Via, request: &Authenticated<'_>) {
        let (message, key) = (request.message(), Some(request.key()));
        if !self.redirect(via, message, key) {
            self.reject(via, message, RejectReason::Draining, key);
        }
    }

    /// Sends the client to the sibling of its family; false if there is none. [8489-10-1, 8656-7.2-20]
    fn redirect(&mut self, via: Via, message: &Message<'_>, key: Option<&ReplyKey>) -> bool {
        let settings = Arc::clone(&self.settings);
        let sibling = || settings.alternates.for_client(&via).filter(|_| self.draining);
        let state = self.shared.pool();
        let has_no_place = self.draining || state.load >= LOAD_MAX;
        let member = || settings.pool.for_client(&via, state, self.number_of(&via), has_no_place);
        let Some((address, domain)) = sibling().or_else(member) else {
            return false;
        };
        let mut value = [0; 20];
        let attributes = alternate(address, domain, &mut value);
        self.reject_with(via, message, RejectReason::Redirected, &attributes, key);
        true
    }
}

/// The attributes of a 300.
pub(super) fn alternate<'a>(
    address: SocketAddr,
    domain: Option<&'a str>,
    value: &'a mut [u8; 20],
) -> Vec<(AttrType, &'a [u8])> {
    let value = mapped_address(address.into(), value);
    let mut attributes: Vec<(AttrType, &[u8])> = vec![(ATTR_ALTERNATE_SERVER, value)];
    attributes.extend(domain.map(|domain| (ATTR_ALTERNATE_DOMAIN, domain.as_bytes())));
    attributes
}
