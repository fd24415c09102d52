//! STUN Binding (RFC 8489 sections 3, 12): never authenticated, stateless, as small as can be.

use super::reason::DropReason;
use super::reject::RejectReason;
use crate::address::ClientAddress;
use crate::wire::attribute::{ATTR_MAPPED_ADDRESS, ATTR_XORMAPPED_ADDRESS};
use crate::wire::classic::{ATTR_CHANGE_REQUEST, ClassicRequest};
use crate::wire::integrity::{Fingerprint, check_fingerprint};
use crate::wire::message::{
    CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, METHOD_BINDING, Message, MessageType,
};
use crate::wire::writer::Writer;

/// The longest answer: IPv6 address and FINGERPRINT, or a 420 that lists eight types.
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

/// Answers a Binding request into `out`.
// [8489-6.3.1.1-6, 8489-12-1, -2, -3, -5, 5780-6-4, -5, 5780-7.4-1, 5780-7.5-2]
#[must_use]
#[inline]
pub fn answer(message: &Message<'_>, client: ClientAddress, out: &mut [u8; ANSWER_BYTES_MAX]) -> BindingAnswer {
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
    let fingerprint = check_fingerprint(message);
    if fingerprint == Fingerprint::Wrong {
        return BindingAnswer::Silence(Some(DropReason::BadFingerprint));
    }
    let reject = (!message.unknown().is_empty()).then_some(RejectReason::UnknownAttributes);
    let class = if reject.is_some() { CLASS_ERROR_RESPONSE } else { CLASS_SUCCESS_RESPONSE };
    let mut writer = Writer::new(out, MessageType { method: METHOD_BINDING, class }, message.transaction_id());
    match reject {
        None => writer.xor_address(ATTR_XORMAPPED_ADDRESS, client.address()),
        Some(reason) => writer.error_code(reason.code(), "").unknown_attributes(message.unknown()),
    };
    if fingerprint == Fingerprint::Right {
        writer.fingerprint();
    }
    let Some(len) = writer.finish() else { return BindingAnswer::Silence(Some(DropReason::TooBig)) };
    match reject {
        None => BindingAnswer::Success(len),
        Some(reason) => BindingAnswer::Error(len, reason),
    }
}

/// Answers a Binding request of RFC 3489 into `out`: MAPPED-ADDRESS, which that RFC's clients read (RFC 8489 section 11).
///
/// CHANGE-REQUEST that asks for no change is how some of them ask for nothing, so it is taken; any other one is refused.
// [8489-12-6]
#[must_use]
pub fn answer_classic(
    mut request: ClassicRequest,
    client: ClientAddress,
    out: &mut [u8; ANSWER_BYTES_MAX],
) -> BindingAnswer {
    if request.change().is_some_and(|change| change != [0; 4]) {
        request.note_unknown(ATTR_CHANGE_REQUEST.0);
    }
    let (unknown, count) = request.unknown();
    let reject = (count > 0).then_some(RejectReason::UnknownAttributes);
    let class = if reject.is_some() { CLASS_ERROR_RESPONSE } else { CLASS_SUCCESS_RESPONSE };
    let mut writer = Writer::classic(out, MessageType { method: METHOD_BINDING, class }, request.transaction_id());
    match reject {
        None => writer.plain_address(ATTR_MAPPED_ADDRESS, client.address()),
        Some(reason) => {
            writer.error_code(reason.code(), "").unknown_attributes(unknown.get(..count).unwrap_or_default())
        }
    };
    let Some(len) = writer.finish() else { return BindingAnswer::Silence(Some(DropReason::TooBig)) };
    reject.map_or(BindingAnswer::Success(len), |reason| BindingAnswer::Error(len, reason))
}
