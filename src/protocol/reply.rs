//! Answers to clients: success, error, and what goes into each (RFC 8489 section 6.3).

use std::sync::Arc;

use super::Server;
use super::allocation::Origin;
use super::auth::{self, Authenticated};
use super::border::{Event, Output};
use super::mobility_ticket::TICKET_BYTES;
use super::nonce::Offer;
use super::reject::RejectReason;
use crate::address::{PeerAddress, RelayedTransportAddress, Via};
use crate::credentials::USERNAME_BYTES_MAX;
use crate::time::Now;
use crate::wire::attribute::{
    ATTR_CONNECTION_ID, ATTR_LIFETIME, ATTR_NONCE, ATTR_PASSWORD_ALGORITHMS, ATTR_REALM, ATTR_RESERVATION_TOKEN,
    ATTR_XOR_PEER_ADDRESS, ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS, ConnectionId,
};
use crate::wire::integrity::{PASSWORD_ALGORITHMS, ReplyKey};
use crate::wire::message::{
    ATTR_MOBILITY_TICKET, AttrType, CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_SUCCESS_RESPONSE, ErrorCode, Known,
    METHOD_ALLOCATE, METHOD_CONNECTION_ATTEMPT, Message, MessageType, Method, TransactionId,
};
use crate::wire::writer::Writer;

/// Room for the longest control reply: a 420 with the longest realm.
const REPLY_BYTES_MAX: usize = 1280;

/// What the answer to an Allocate request says beside the relayed addresses.
pub(super) struct AllocateAnswer {
    pub(super) origin: Origin,
    pub(super) ticket: Option<[u8; TICKET_BYTES]>,
    pub(super) fingerprint: bool,
}

impl Server {
    pub(super) fn mirrors_fingerprint(&self, message: &Message<'_>) -> bool {
        message.has(Known::Fingerprint)
    }

    /// 401 and 438 carry realm and nonce, and what else is offered; everything before verification is unsigned.
    // [8489-9.2.4-3, -4, -6, -8, -10, -13, -14, -22]
    pub(super) fn reject_unauthenticated(
        &mut self,
        now: Now,
        via: Via,
        message: &Message<'_>,
        refused: &auth::Refused,
    ) {
        let settings = Arc::clone(&self.settings);
        let challenges = [RejectReason::Challenge, RejectReason::StaleNonce].map(RejectReason::code);
        let offer = settings.auth.offer(&via);
        let nonce = self.nonces.mint(now.unix, via.five_tuple(), offer);
        // As the key is looked for, so that a client hears the realm that its key must be made with.
        let allocation = self.client_of(now, &via, message).allocation;
        let of_owner: Option<Box<str>> = allocation.and_then(|of| of.owner.realm()).map(Into::into);
        let realm = match allocation {
            Some(_) => settings.realm(of_owner.as_deref()),
            None => auth::realm_of(&settings, &via, None),
        };
        let all: [(AttrType, &[u8]); 3] = [
            (ATTR_REALM, realm.name.as_bytes()),
            (ATTR_NONCE, &nonce),
            (ATTR_PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS),
        ];
        let attributes = match (challenges.contains(&refused.reason.code()), offer) {
            (false, _) => &[],
            (true, Offer::Plain) => &all[..2],
            (true, Offer::Algorithms | Offer::AlgorithmsAndAnonymity) => all.as_slice(),
        };
        self.reject_with(via, message, refused.reason, attributes, refused.key.as_ref());
    }

    pub(super) fn reject(&mut self, via: Via, message: &Message<'_>, reason: RejectReason, key: Option<&ReplyKey>) {
        self.reject_with(via, message, reason, &[], key);
    }

    pub(super) fn reject_with(
        &mut self,
        via: Via,
        message: &Message<'_>,
        reason: RejectReason,
        attributes: &[(AttrType, &[u8])],
        key: Option<&ReplyKey>,
    ) {
        self.counters.rejected(reason);
        let head = (message.message_type().method, message.transaction_id());
        let fingerprint = self.mirrors_fingerprint(message);
        if reason == RejectReason::UnknownAttributes {
            self.reply_unknown(via, head, fingerprint, message.unknown(), key);
        } else {
            self.reply_error(via, head, fingerprint, reason, attributes, key);
        }
        // The first answer to a client that has not said who it is: counted, but no news.
        let is_first_answer = reason == RejectReason::Challenge
            || (matches!(reason, RejectReason::Redirected | RejectReason::Busy | RejectReason::Full) && key.is_none());
        if !is_first_answer {
            self.tell_refused(via, message, reason);
        }
    }

    /// That a request was refused, for the log and for operators.
    pub(super) fn tell_refused(&mut self, via: Via, message: &Message<'_>, reason: RejectReason) {
        // A longer name belongs to no client, and events wait in a queue.
        let username = message.get(Known::Username).filter(|name| name.len() <= USERNAME_BYTES_MAX);
        let username = username.and_then(|name| std::str::from_utf8(name).ok());
        let refused = Event::Refused { via, reason, username: username.map(Into::into) };
        self.outputs.push_back(Output::Happened(refused));
    }

    // [8489-5-3, 8489-6.3.1.1-1, -2]
    pub(super) fn reply_error(
        &mut self,
        via: Via,
        (method, transaction_id): (Method, TransactionId),
        fingerprint: bool,
        reason: RejectReason,
        attributes: &[(AttrType, &[u8])],
        key: Option<&ReplyKey>,
    ) {
        let message_type = MessageType { method, class: CLASS_ERROR_RESPONSE };
        self.reply(via, message_type, transaction_id, fingerprint, key, |writer| {
            // An unsigned answer stays as small as can be: it may go to a forged source.
            writer.error_code(reason.code(), if key.is_some() { reason.phrase() } else { "" });
            for (attribute, value) in attributes {
                writer.attribute(*attribute, value);
            }
        });
    }

    // [8489-6.3.1.1-3, 8489-14.8-6]
    fn reply_unknown(
        &mut self,
        via: Via,
        (method, transaction_id): (Method, TransactionId),
        fingerprint: bool,
        unknown: &[u16],
        key: Option<&ReplyKey>,
    ) {
        let reason = RejectReason::UnknownAttributes;
        let message_type = MessageType { method, class: CLASS_ERROR_RESPONSE };
        self.reply(via, message_type, transaction_id, fingerprint, key, |writer| {
            writer.error_code(reason.code(), reason.phrase()).unknown_attributes(unknown);
        });
    }

    // [8489-5-3, 8489-9.2.4-27]
    pub(super) fn reply_success(&mut self, via: Via, request: &Authenticated<'_>, attributes: &[(AttrType, &[u8])]) {
        let message = request.message();
        let method = message.message_type().method;
        self.counters.succeeded(method);
        let message_type = MessageType { method, class: CLASS_SUCCESS_RESPONSE };
        let fingerprint = self.mirrors_fingerprint(message);
        self.reply(via, message_type, message.transaction_id(), fingerprint, Some(request.key()), |writer| {
            for (attribute, value) in attributes {
                writer.attribute(*attribute, value);
            }
        });
    }

    /// The success of a request that was answered by something else first.
    pub(super) fn reply_success_to(
        &mut self,
        via: Via,
        (method, transaction_id): (Method, TransactionId),
        fingerprint: bool,
        key: &ReplyKey,
        attributes: &[(AttrType, &[u8])],
    ) {
        let message_type = MessageType { method, class: CLASS_SUCCESS_RESPONSE };
        self.reply(via, message_type, transaction_id, fingerprint, Some(key), |writer| {
            for (attribute, value) in attributes {
                writer.attribute(*attribute, value);
            }
        });
    }

    /// Tells a client of a peer that has connected (RFC 6062 section 5.3). [6062-5.3-4]
    pub(super) fn tell_attempt(&mut self, via: Via, connection: ConnectionId, peer: PeerAddress) {
        let message_type = MessageType { method: METHOD_CONNECTION_ATTEMPT, class: CLASS_INDICATION };
        let transaction_id = self.transaction_ids.next();
        self.reply(via, message_type, transaction_id, false, None, |writer| {
            writer.attribute(ATTR_CONNECTION_ID, &connection.0.to_be_bytes());
            writer.xor_address(ATTR_XOR_PEER_ADDRESS, peer.0);
        });
    }

    /// `relayed` is one address, or one of each family.
    // [8656-7.2-17, -18, -31]
    pub(super) fn answer_allocate(
        &mut self,
        via: Via,
        relayed: impl Iterator<Item = RelayedTransportAddress>,
        answer: &AllocateAnswer,
        key: &ReplyKey,
    ) {
        let AllocateAnswer { origin, ticket, fingerprint } = *answer;
        self.counters.succeeded(METHOD_ALLOCATE);
        let message_type = MessageType { method: METHOD_ALLOCATE, class: CLASS_SUCCESS_RESPONSE };
        self.reply(via, message_type, origin.transaction_id, fingerprint, Some(key), |writer| {
            for relayed in relayed {
                writer.xor_address(ATTR_XOR_RELAYED_ADDRESS, relayed.0);
            }
            if let Some((family, code)) = origin.refused {
                writer.address_error_code(family, ErrorCode(code));
            }
            writer.attribute(ATTR_LIFETIME, &origin.lifetime.to_be_bytes());
            if let Some(token) = origin.token {
                writer.attribute(ATTR_RESERVATION_TOKEN, &token.0);
            }
            writer.xor_address(ATTR_XORMAPPED_ADDRESS, via.five_tuple().client.address());
            // [8016-3.1.2-3]
            if let Some(ticket) = ticket {
                writer.attribute(ATTR_MOBILITY_TICKET, &ticket);
            }
        });
    }

    fn reply(
        &mut self,
        via: Via,
        message_type: MessageType,
        transaction_id: TransactionId,
        fingerprint: bool,
        key: Option<&ReplyKey>,
        write: impl FnOnce(&mut Writer<'_>),
    ) {
        let mut buffer = [0; REPLY_BYTES_MAX];
        let mut writer = Writer::new(&mut buffer, message_type, transaction_id);
        write(&mut writer);
        // [8489-6.3.1.1-4, 8489-9.2.4-25, -26]
        if let Some(key) = key {
            writer.sign(key);
        }
        if fingerprint {
            writer.fingerprint();
        }
        let len = writer.finish();
        debug_assert!(len.is_some(), "the longest realm leaves room in a reply");
        // One client without its answer is better than a worker without all of its clients.
        if let Some(bytes) = len.and_then(|len| buffer.get(..len)) {
            self.outputs.push_back(Output::Reply { via, bytes: bytes.to_vec() });
        }
    }
}
