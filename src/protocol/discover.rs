//! Binding requests of NAT behaviour discovery (RFC 5780) whose response leaves from another address, goes to another port, or
//! is padded.
//!
//! What proves nothing gets an answer from any of the four addresses, to where it came from and nowhere else. Another port, and
//! padding, are for sources that are proved (decision 0232).

use super::Server;
use super::binding::{ANSWER_BYTES_MAX, BindingAnswer, Says, answer_classic, write};
use super::border::Output;
use super::discovery::{Corner, Discovery};
use super::nonce::Verdict;
use super::reason::DropReason;
use super::reject::RejectReason;
use crate::address::{ClientAddress, FiveTuple, Via};
use crate::time::Now;
use crate::wire::behavior::{ATTR_CHANGE_REQUEST, Change, Wishes, is_wish};
use crate::wire::classic::ClassicRequest;
use crate::wire::integrity::{Fingerprint, check_fingerprint};
use crate::wire::message::{CLASS_REQUEST, Known, METHOD_BINDING, Message, UNKNOWN_MAX};

/// Where the response goes and leaves, and what it says.
struct Response<'a> {
    from: Corner,
    port: Option<u16>,
    says: Says<'a>,
}

impl Server {
    /// Answers a Binding request that [`Server::answer_binding`] left to the control lane; whether it was one.
    pub(super) fn discover(&mut self, now: Now, via: Via, bytes: &[u8]) -> bool {
        let Some((discovery, asked)) = self.discovery_at(via.five_tuple()) else { return false };
        if self.is_classic(&via, bytes) {
            let Ok(request) = ClassicRequest::parse(bytes) else { return false };
            if self.is_within_budget(now, &via, &request.short_id(), bytes.len()) {
                self.discover_classic(via, &discovery, asked, request);
            }
            return true;
        }
        let Ok(message) = Message::parse(bytes) else { return false };
        let kind = message.message_type();
        if (kind.method, kind.class) != (METHOD_BINDING, CLASS_REQUEST) {
            return false;
        }
        if check_fingerprint(&message) == Fingerprint::Wrong {
            self.counters.dropped(DropReason::BadFingerprint, 1, bytes.len() as u64);
        } else if self.is_within_budget(now, &via, &message.transaction_id(), bytes.len()) {
            let is_proved = self.is_proved(now, &via, &message);
            self.respond(via, &discovery, asked, &message, is_proved);
        }
        true
    }

    /// `stun.discovery`, if this is a request to one of its four addresses over UDP.
    pub(super) fn discovery_at(&self, five_tuple: &FiveTuple) -> Option<(Discovery, Corner)> {
        let discovery = self.settings.stun.discovery?;
        Some((discovery, discovery.corner(five_tuple)?))
    }

    /// Whether whatever is sent to that address was asked for there: an allocation, or a nonce that this five-tuple was given.
    /// No packet from outside comes from loopback.
    fn is_proved(&self, now: Now, via: &Via, message: &Message<'_>) -> bool {
        let five_tuple = via.five_tuple();
        let has_nonce = || {
            let lifetime = self.settings.auth.nonce_lifetime;
            let check = |nonce| self.nonces.check(now.unix, lifetime, five_tuple, nonce).0 == Verdict::Fresh;
            message.get(Known::Nonce).is_some_and(check)
        };
        five_tuple.client.ip().is_loopback() || self.has_allocation(via) || has_nonce()
    }

    fn respond(&mut self, via: Via, discovery: &Discovery, asked: Corner, message: &Message<'_>, is_proved: bool) {
        let mut unknown = [0; UNKNOWN_MAX];
        let refused = refused(message, is_proved, &mut unknown);
        let wishes = message.wishes();
        let response = match wishes {
            _ if !refused.is_empty() => reject(asked, RejectReason::UnknownAttributes, refused),
            Err(_) => reject(asked, RejectReason::BadAttribute, &[]),
            // [5780-6.1-7, 5780-7.5-2]
            Ok(Wishes { port: Some(_), padding: Some(_), .. }) => reject(asked, RejectReason::Combination, &[]),
            Ok(wishes) => accept(discovery, asked, wishes),
        };
        let five_tuple = via.five_tuple();
        let mut bytes = vec![0; ANSWER_BYTES_MAX + message.bytes().len()];
        let Some(len) = write(message, five_tuple.client, &response.says, &mut bytes) else {
            self.counters.dropped(DropReason::TooBig, 1, message.bytes().len() as u64);
            return;
        };
        bytes.truncate(len);
        match response.says {
            Says::Address { .. } => self.counters.succeeded(METHOD_BINDING),
            Says::Error(reason, _) => self.counters.rejected(reason),
        }
        // [5780-6.1-2, 5780-7.5-1]
        let client = response.port.map_or(five_tuple.client, |port| ClientAddress::new(five_tuple.client.ip(), port));
        self.send_from(discovery, response.from, FiveTuple { client, ..*five_tuple }, bytes);
    }

    /// RFC 3489 has no more than CHANGE-REQUEST of this that is safe.
    fn discover_classic(&mut self, via: Via, discovery: &Discovery, asked: Corner, request: ClassicRequest) {
        let from = asked.changed(request.change().map(Change::of).unwrap_or_default());
        let mut out = [0; ANSWER_BYTES_MAX];
        let five_tuple = *via.five_tuple();
        let answer = answer_classic(request, five_tuple.client, Some(discovery.origins(asked, from)), &mut out);
        let (len, from) = match answer {
            BindingAnswer::Success(len) => (len, from),
            BindingAnswer::Error(len, _) => (len, asked),
            BindingAnswer::Silence(_) | BindingAnswer::NotBinding => return,
        };
        match answer {
            BindingAnswer::Error(_, reason) => self.counters.rejected(reason),
            BindingAnswer::Success(_) | BindingAnswer::Silence(_) | BindingAnswer::NotBinding => {
                self.counters.succeeded(METHOD_BINDING);
            }
        }
        self.send_from(discovery, from, five_tuple, out.get(..len).unwrap_or_default().to_vec());
    }

    fn send_from(&mut self, discovery: &Discovery, from: Corner, to: FiveTuple, bytes: Vec<u8>) {
        let via = Via::Datagram(FiveTuple { server: discovery.server(from), ..to });
        self.outputs.push_back(Output::Reply { via, bytes });
    }
}

/// Attributes that count as unknown: RESPONSE-PORT and PADDING too where nothing is proved.
fn refused<'u>(message: &Message<'_>, is_proved: bool, unknown: &'u mut [u16; UNKNOWN_MAX]) -> &'u [u16] {
    let is_taken = |attribute: u16| is_wish(attribute) && (is_proved || attribute == ATTR_CHANGE_REQUEST.0);
    let mut count = 0;
    for (place, attribute) in unknown.iter_mut().zip(message.unknown().iter().filter(|of| !is_taken(**of))) {
        *place = *attribute;
        count += 1;
    }
    unknown.get(..count).unwrap_or_default()
}

const fn reject(asked: Corner, reason: RejectReason, unknown: &[u16]) -> Response<'_> {
    Response { from: asked, port: None, says: Says::Error(reason, unknown) }
}

/// PADDING is as long as that of the request, so the response is hardly longer.
// [5780-6.1-5, 5780-7.6-1]
fn accept(discovery: &Discovery, asked: Corner, wishes: Wishes) -> Response<'static> {
    let from = asked.changed(wishes.change.unwrap_or_default());
    let says = Says::Address { origins: Some(discovery.origins(asked, from)), padding: wishes.padding };
    Response { from, port: wishes.port, says }
}
