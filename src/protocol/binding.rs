//! STUN Binding (RFC 8489 sections 3, 12): never authenticated, stateless, as small as can be.

use super::discovery::Origins;
use super::reason::DropReason;
use super::reject::RejectReason;
use crate::address::ClientAddress;
use crate::wire::attribute::{ATTR_MAPPED_ADDRESS, ATTR_XORMAPPED_ADDRESS};
use crate::wire::behavior::{
    ATTR_CHANGE_REQUEST, ATTR_CHANGED_ADDRESS, ATTR_OTHER_ADDRESS, ATTR_PADDING, ATTR_RESPONSE_ORIGIN,
    ATTR_SOURCE_ADDRESS,
};
use crate::wire::classic::ClassicRequest;
use crate::wire::integrity::{Fingerprint, check_fingerprint};
use crate::wire::message::{
    CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, Known, METHOD_BINDING, Message,
    MessageType,
};
use crate::wire::writer::Writer;

/// The longest answer: four IPv4 addresses or one of IPv6, and FINGERPRINT; or a 420 that lists eight types.
pub const ANSWER_BYTES_MAX: usize = 96;

/// What became of a message that looked like Binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindingAnswer {
    /// So many bytes of answer.
    Success(usize),
    /// So many bytes of 420.
    Error(usize, RejectReason),
    /// No answer.
    Silence(Option<DropReason>),
    /// Not a Binding message.
    NotBinding,
}

/// What the answer to a Binding request says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says<'a> {
    /// The client's address.
    Address {
        /// With `stun.discovery`: addresses of this server.
        origins: Option<Origins>,
        /// So many bytes of PADDING.
        padding: Option<usize>,
    },
    /// An error, and the attributes that it is about.
    Error(RejectReason, &'a [u16]),
}

/// Answers a Binding request into `out`; what it says of this server's addresses stands in `origins`.
// [8489-6.3.1.1-6, 8489-12-1, -2, -3, -5, 5780-6-4, -5, 5780-7.4-1, 5780-7.5-2]
#[must_use]
#[inline]
pub fn answer(
    message: &Message<'_>,
    client: ClientAddress,
    origins: Option<Origins>,
    out: &mut [u8; ANSWER_BYTES_MAX],
) -> BindingAnswer {
    let MessageType { method, class } = message.message_type();
    if method != METHOD_BINDING {
        return BindingAnswer::NotBinding;
    }
    match class {
        CLASS_REQUEST => {}
        // A keep-alive (RFC 8489 section 6.3.2): nothing to do and nothing wrong. [8489-6.3.2-2]
        CLASS_INDICATION => return BindingAnswer::Silence(None),
        _ => return BindingAnswer::Silence(Some(DropReason::UnexpectedClass)),
    }
    if check_fingerprint(message) == Fingerprint::Wrong {
        return BindingAnswer::Silence(Some(DropReason::BadFingerprint));
    }
    let says = match message.unknown() {
        [] => Says::Address { origins, padding: None },
        unknown => Says::Error(RejectReason::UnknownAttributes, unknown),
    };
    let Some(len) = write(message, client, &says, out) else {
        return BindingAnswer::Silence(Some(DropReason::TooBig));
    };
    match says {
        Says::Address { .. } => BindingAnswer::Success(len),
        Says::Error(reason, _) => BindingAnswer::Error(len, reason),
    }
}

/// Writes the answer to a request whose FINGERPRINT, if there is one, is right; its length, or `None` if `out` is too short.
// [5780-6.1-1, -3, -4, -5, -9]
#[inline]
pub(super) fn write(message: &Message<'_>, client: ClientAddress, says: &Says<'_>, out: &mut [u8]) -> Option<usize> {
    let class = match says {
        Says::Address { .. } => CLASS_SUCCESS_RESPONSE,
        Says::Error(..) => CLASS_ERROR_RESPONSE,
    };
    let mut writer = Writer::new(out, MessageType { method: METHOD_BINDING, class }, message.transaction_id());
    match says {
        Says::Address { origins, padding } => {
            if origins.is_some() {
                writer.plain_address(ATTR_MAPPED_ADDRESS, client.address());
            }
            writer.xor_address(ATTR_XORMAPPED_ADDRESS, client.address());
            if let Some(Origins { origin, other }) = origins {
                writer.plain_address(ATTR_RESPONSE_ORIGIN, *origin);
                other.map(|other| writer.plain_address(ATTR_OTHER_ADDRESS, other));
            }
            padding.map(|bytes| writer.zeros(ATTR_PADDING, bytes));
        }
        Says::Error(reason, unknown) => {
            writer.error_code(reason.code(), "");
            if !unknown.is_empty() {
                writer.unknown_attributes(unknown);
            }
        }
    }
    if message.has(Known::Fingerprint) {
        writer.fingerprint();
    }
    writer.finish()
}

/// Answers a Binding request of RFC 3489 into `out`: MAPPED-ADDRESS, which that RFC's clients read (RFC 8489 section 11).
///
/// CHANGE-REQUEST that asks for no change is how some of them ask for nothing, so it is taken; any other one is refused,
/// unless `origins` says where the answer leaves.
// [8489-12-6]
#[must_use]
pub fn answer_classic(
    mut request: ClassicRequest,
    client: ClientAddress,
    origins: Option<Origins>,
    out: &mut [u8; ANSWER_BYTES_MAX],
) -> BindingAnswer {
    if origins.is_none() && request.change().is_some_and(|change| change != [0; 4]) {
        request.note_unknown(ATTR_CHANGE_REQUEST.0);
    }
    let (unknown, count) = request.unknown();
    let reject = (count > 0).then_some(RejectReason::UnknownAttributes);
    let class = if reject.is_some() { CLASS_ERROR_RESPONSE } else { CLASS_SUCCESS_RESPONSE };
    let mut writer = Writer::classic(out, MessageType { method: METHOD_BINDING, class }, request.transaction_id());
    match reject {
        None => {
            writer.plain_address(ATTR_MAPPED_ADDRESS, client.address());
            if let Some(Origins { origin, other }) = origins {
                writer.plain_address(ATTR_SOURCE_ADDRESS, origin);
                other.map(|other| writer.plain_address(ATTR_CHANGED_ADDRESS, other));
            }
        }
        Some(reason) => {
            writer.error_code(reason.code(), "").unknown_attributes(unknown.get(..count).unwrap_or_default());
        }
    }
    let Some(len) = writer.finish() else { return BindingAnswer::Silence(Some(DropReason::TooBig)) };
    reject.map_or(BindingAnswer::Success(len), |reason| BindingAnswer::Error(len, reason))
}
