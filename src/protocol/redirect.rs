//! Drain: no new allocations, while those that live go on; who asks for one is sent to a sibling server, if there is
//! one (RFC 8489 section 10), and is else told to come another time.

use std::sync::Arc;

use super::Server;
use super::auth::Authenticated;
use super::reject::RejectReason;
use crate::address::Via;
use crate::wire::attribute::{ATTR_ALTERNATE_DOMAIN, ATTR_ALTERNATE_SERVER, mapped_address};
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
        if !self.draining || !is_first || self.has_allocation(via) {
            return false;
        }
        self.redirect(*via, message, None)
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
        let Some((address, domain)) = settings.alternates.for_client(&via) else {
            return false;
        };
        let mut value = [0; 20];
        let value = mapped_address(address.into(), &mut value);
        let mut attributes: Vec<(AttrType, &[u8])> = vec![(ATTR_ALTERNATE_SERVER, value)];
        attributes.extend(domain.map(|domain| (ATTR_ALTERNATE_DOMAIN, domain.as_bytes())));
        self.reject_with(via, message, RejectReason::Redirected, &attributes, key);
        true
    }
}
