//! A zero-copy view of one STUN message (RFC 8489 section 5).
//!
//! One pass checks the header and the exact length and records where each attribute that we know
//! lies; the first occurrence wins (section 14). The `stun` crate's types name methods, classes,
//! attributes and error codes; all bytes are read here.

pub use stun::attributes::AttrType;
pub use stun::error_code::ErrorCode;
pub use stun::message::{
    CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, METHOD_ALLOCATE, METHOD_BINDING,
    METHOD_CHANNEL_BIND, METHOD_CONNECT, METHOD_CONNECTION_ATTEMPT, METHOD_CONNECTION_BIND, METHOD_CREATE_PERMISSION,
    METHOD_DATA, METHOD_REFRESH, METHOD_SEND, MessageClass, MessageType, Method,
};

use minicbor::{Decode, Encode};
use stun::attributes::{
    ATTR_CHANNEL_NUMBER, ATTR_CONNECTION_ID, ATTR_DATA, ATTR_DONT_FRAGMENT, ATTR_ERROR_CODE, ATTR_EVEN_PORT,
    ATTR_FINGERPRINT, ATTR_LIFETIME, ATTR_MESSAGE_INTEGRITY, ATTR_MESSAGE_INTEGRITY_SHA256, ATTR_NONCE,
    ATTR_PASSWORD_ALGORITHM, ATTR_PASSWORD_ALGORITHMS, ATTR_REALM, ATTR_REQUESTED_ADDRESS_FAMILY,
    ATTR_REQUESTED_TRANSPORT, ATTR_RESERVATION_TOKEN, ATTR_UNKNOWN_ATTRIBUTES, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS,
    ATTR_XOR_RELAYED_ADDRESS, ATTR_XORMAPPED_ADDRESS,
};
use stun::message::{MAGIC_COOKIE, MESSAGE_HEADER_SIZE, TRANSACTION_ID_SIZE};

/// Header: type, length, magic cookie, transaction id.
pub const HEADER_BYTES: usize = MESSAGE_HEADER_SIZE;

/// RFC 8656 section 18.11; the `stun` crate does not name it.
pub const ATTR_ADDITIONAL_ADDRESS_FAMILY: AttrType = AttrType(0x8000);

/// RFC 8016 section 3.6.
pub const ATTR_MOBILITY_TICKET: AttrType = AttrType(0x8030);

/// RFC 8656 section 18.12; the `stun` crate does not name it.
pub const ATTR_ADDRESS_ERROR_CODE: AttrType = AttrType(0x8001);

/// RFC 8656 section 18.13; the `stun` crate does not name it.
pub const ATTR_ICMP: AttrType = AttrType(0x8004);

/// RFC 8489 section 14.4; the `stun` crate does not name it.
pub const ATTR_USERHASH: AttrType = AttrType(0x001E);

/// How many attributes a message may have: as many as fit into the longest that is not Send.
const ATTRIBUTES_MAX: usize = 1024;

/// How many unknown comprehension-required types a 420 lists at most.
pub const UNKNOWN_MAX: usize = 8;

/// The 96 bits that match a response to its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct TransactionId(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub [u8; TRANSACTION_ID_SIZE],
);

/// Why bytes are not a STUN message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Malformed {
    /// Shorter than its header, or the length field disagrees with the number of bytes.
    Length,
    /// The two top bits, the cookie or the alignment are wrong.
    Header,
    /// An attribute reaches past the end.
    Attribute,
    /// FINGERPRINT is not last, or its length is not 4.
    Fingerprint,
}

/// Which attributes have a place of their own in [`Message`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Known {
    /// USERNAME
    Username,
    /// REALM
    Realm,
    /// NONCE
    Nonce,
    /// MESSAGE-INTEGRITY
    MessageIntegrity,
    /// MESSAGE-INTEGRITY-SHA256
    MessageIntegritySha256,
    /// USERHASH
    Userhash,
    /// PASSWORD-ALGORITHM: the one that the client chose
    PasswordAlgorithm,
    /// PASSWORD-ALGORITHMS: those that the server offered
    PasswordAlgorithms,
    /// FINGERPRINT
    Fingerprint,
    /// LIFETIME
    Lifetime,
    /// XOR-PEER-ADDRESS: the first one; `peers()` gives all
    XorPeerAddress,
    /// DATA
    Data,
    /// CHANNEL-NUMBER
    ChannelNumber,
    /// EVEN-PORT
    EvenPort,
    /// REQUESTED-TRANSPORT
    RequestedTransport,
    /// DONT-FRAGMENT
    DontFragment,
    /// RESERVATION-TOKEN
    ReservationToken,
    /// REQUESTED-ADDRESS-FAMILY
    RequestedAddressFamily,
    /// ADDITIONAL-ADDRESS-FAMILY
    AdditionalAddressFamily,
    /// MOBILITY-TICKET (RFC 8016)
    MobilityTicket,
    /// CONNECTION-ID (RFC 6062)
    ConnectionId,
    /// XOR-MAPPED-ADDRESS
    XorMappedAddress,
    /// XOR-RELAYED-ADDRESS
    XorRelayedAddress,
    /// ERROR-CODE
    ErrorCode,
    /// UNKNOWN-ATTRIBUTES
    UnknownAttributes,
}

const KNOWN_COUNT: usize = Known::UnknownAttributes as usize + 1;

#[inline]
const fn known(attribute: AttrType) -> Option<Known> {
    Some(match attribute {
        ATTR_USERNAME => Known::Username,
        ATTR_REALM => Known::Realm,
        ATTR_NONCE => Known::Nonce,
        ATTR_MESSAGE_INTEGRITY => Known::MessageIntegrity,
        ATTR_MESSAGE_INTEGRITY_SHA256 => Known::MessageIntegritySha256,
        ATTR_USERHASH => Known::Userhash,
        ATTR_PASSWORD_ALGORITHM => Known::PasswordAlgorithm,
        ATTR_PASSWORD_ALGORITHMS => Known::PasswordAlgorithms,
        ATTR_FINGERPRINT => Known::Fingerprint,
        ATTR_LIFETIME => Known::Lifetime,
        ATTR_XOR_PEER_ADDRESS => Known::XorPeerAddress,
        ATTR_DATA => Known::Data,
        ATTR_CHANNEL_NUMBER => Known::ChannelNumber,
        ATTR_EVEN_PORT => Known::EvenPort,
        ATTR_REQUESTED_TRANSPORT => Known::RequestedTransport,
        ATTR_DONT_FRAGMENT => Known::DontFragment,
        ATTR_RESERVATION_TOKEN => Known::ReservationToken,
        ATTR_REQUESTED_ADDRESS_FAMILY => Known::RequestedAddressFamily,
        ATTR_ADDITIONAL_ADDRESS_FAMILY => Known::AdditionalAddressFamily,
        ATTR_MOBILITY_TICKET => Known::MobilityTicket,
        ATTR_CONNECTION_ID => Known::ConnectionId,
        ATTR_XORMAPPED_ADDRESS => Known::XorMappedAddress,
        ATTR_XOR_RELAYED_ADDRESS => Known::XorRelayedAddress,
        ATTR_ERROR_CODE => Known::ErrorCode,
        ATTR_UNKNOWN_ATTRIBUTES => Known::UnknownAttributes,
        _ => return None,
    })
}

/// Where an attribute's value lies: its start in words of four bytes (a value is always aligned), its
/// length in bytes. Start 0 is the header, so it stands for "absent".
#[derive(Clone, Copy, Default)]
struct Slot {
    word: u16,
    len: u16,
}

/// A parsed STUN message that borrows the received bytes.
#[derive(Clone)]
pub struct Message<'a> {
    bytes: &'a [u8],
    message_type: MessageType,
    slots: [Slot; KNOWN_COUNT],
    unknown: [u16; UNKNOWN_MAX],
    unknown_count: u8,
    /// Where attributes stop to count for anything but integrity: the first MESSAGE-INTEGRITY of either kind, or the end.
    counted: u32,
}

impl<'a> Message<'a> {
    /// Parses one whole message; `bytes` must hold exactly it.
    ///
    /// # Errors
    /// [`Malformed`], which a server answers with silence.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let message_type = check_header(bytes)?;
        let mut message = Self {
            bytes,
            message_type,
            slots: [Slot::default(); KNOWN_COUNT],
            unknown: [0; UNKNOWN_MAX],
            unknown_count: 0,
            counted: bytes.len() as u32,
        };
        if bytes.len() > HEADER_BYTES {
            message.record_attributes()?;
        }
        Ok(message)
    }

    // [8489-14-1, -5, 8489-14.7-1]
    fn record_attributes(&mut self) -> Result<(), Malformed> {
        let mut at = HEADER_BYTES;
        // RFC 8489 sections 14.5 to 14.7: what follows MESSAGE-INTEGRITY is ignored except
        // MESSAGE-INTEGRITY-SHA256 and FINGERPRINT; what follows the SHA256 one except FINGERPRINT. [8489-9-1, -2]
        let mut stage = 0_u8;
        let mut count = 0;
        while let Some(&[t1, t2, l1, l2]) = self.bytes.get(at..).and_then(<[u8]>::first_chunk) {
            if stage == 3 {
                return Err(Malformed::Fingerprint);
            }
            count += 1;
            if count > ATTRIBUTES_MAX {
                return Err(Malformed::Attribute);
            }
            let attribute = AttrType(u16::from_be_bytes([t1, t2]));
            let len = u16::from_be_bytes([l1, l2]);
            let value = at + 4;
            let end = value + usize::from(len).next_multiple_of(4);
            if end > self.bytes.len() {
                return Err(Malformed::Attribute);
            }
            match known(attribute) {
                Some(Known::Fingerprint) => {
                    if len != 4 {
                        return Err(Malformed::Fingerprint);
                    }
                    stage = 3;
                    self.record(Known::Fingerprint, value, len);
                }
                Some(Known::MessageIntegritySha256) => {
                    if stage < 2 {
                        self.counted = self.counted.min(at as u32);
                        stage = 2;
                        self.record(Known::MessageIntegritySha256, value, len);
                    }
                }
                Some(Known::MessageIntegrity) => {
                    if stage == 0 {
                        self.counted = at as u32;
                        stage = 1;
                        self.record(Known::MessageIntegrity, value, len);
                    }
                }
                Some(which) => {
                    if stage == 0 {
                        self.record(which, value, len);
                    }
                }
                None => {
                    // Types below 0x8000 must be understood (RFC 8489 section 14). [8489-6.3-4]
                    if stage == 0 && attribute.0 < 0x8000 {
                        self.record_unknown(attribute);
                    }
                }
            }
            at = end;
        }
        // Lengths are multiples of four, so nothing can be left over.
        if at == self.bytes.len() { Ok(()) } else { Err(Malformed::Attribute) }
    }

    // [8489-14-6]
    #[inline]
    fn record(&mut self, which: Known, value: usize, len: u16) {
        let slot = &mut self.slots[which as usize];
        if slot.word == 0 {
            *slot = Slot { word: (value / 4) as u16, len };
        }
    }

    fn record_unknown(&mut self, attribute: AttrType) {
        let count = usize::from(self.unknown_count);
        if count < UNKNOWN_MAX && !self.unknown[..count].contains(&attribute.0) {
            self.unknown[count] = attribute.0;
            self.unknown_count += 1;
        }
    }

    /// The message as received.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Method and class.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// The 96 bits that a response repeats.
    #[must_use]
    pub fn transaction_id(&self) -> TransactionId {
        transaction_id(self.bytes)
    }

    /// The value of an attribute; the first occurrence that counts.
    #[must_use]
    #[inline]
    pub fn get(&self, which: Known) -> Option<&'a [u8]> {
        let slot = self.slots[which as usize];
        let start = usize::from(slot.word) * 4;
        if start == 0 { None } else { self.bytes.get(start..start + usize::from(slot.len)) }
    }

    /// Whether an attribute is there.
    #[must_use]
    #[inline]
    pub const fn has(&self, which: Known) -> bool {
        self.slots[which as usize].word != 0
    }

    /// Whether the message claims to be genuine: it has MESSAGE-INTEGRITY, MESSAGE-INTEGRITY-SHA256 or both.
    #[must_use]
    #[inline]
    pub const fn has_integrity(&self) -> bool {
        self.has(Known::MessageIntegrity) || self.has(Known::MessageIntegritySha256)
    }

    /// Where an attribute's four bytes of head start, counted from the message's first byte.
    #[must_use]
    pub fn head_of(&self, which: Known) -> Option<usize> {
        self.has(which).then(|| usize::from(self.slots[which as usize].word) * 4 - 4)
    }

    /// Comprehension-required types that we don't know, at most [`UNKNOWN_MAX`], each once.
    #[must_use]
    pub fn unknown(&self) -> &[u16] {
        self.unknown.get(..usize::from(self.unknown_count)).unwrap_or_default()
    }

    /// Every value of an attribute that may stand several times, such as XOR-PEER-ADDRESS, in order.
    pub fn all(&self, attribute: AttrType) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let counted = self.bytes.get(..self.counted as usize).unwrap_or_default();
        let mut at = HEADER_BYTES;
        std::iter::from_fn(move || {
            while let Some(&[t1, t2, l1, l2]) = counted.get(at..).and_then(<[u8]>::first_chunk) {
                let len = usize::from(u16::from_be_bytes([l1, l2]));
                let value = at + 4;
                at = value + len.next_multiple_of(4);
                if u16::from_be_bytes([t1, t2]) == attribute.0 {
                    return counted.get(value..value + len);
                }
            }
            None
        })
    }
}

impl std::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("type", &format_args!("{}", self.message_type))
            .field("transaction_id", &self.transaction_id())
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// Checks the header (RFC 8489 section 5) and that the length field tells the exact size. [8489-5-1, -2, -4]
// [8489-5-1, -2, -4]
#[inline]
fn check_header(bytes: &[u8]) -> Result<MessageType, Malformed> {
    let Some((&[t1, t2, l1, l2, c1, c2, c3, c4], _)) = bytes.split_first_chunk() else {
        return Err(Malformed::Length);
    };
    if t1 & 0xC0 != 0 || l2 & 3 != 0 || u32::from_be_bytes([c1, c2, c3, c4]) != MAGIC_COOKIE {
        return Err(Malformed::Header);
    }
    if HEADER_BYTES + usize::from(u16::from_be_bytes([l1, l2])) != bytes.len() {
        return Err(Malformed::Length);
    }
    let mut message_type = MessageType::default();
    message_type.read_value(u16::from_be_bytes([t1, t2]));
    Ok(message_type)
}

/// The transaction id of bytes whose header was checked.
#[inline]
fn transaction_id(bytes: &[u8]) -> TransactionId {
    let mut id = [0; TRANSACTION_ID_SIZE];
    id.copy_from_slice(&bytes[HEADER_BYTES - TRANSACTION_ID_SIZE..HEADER_BYTES]);
    TransactionId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (attribute, value) in attributes {
            body.extend(attribute.to_be_bytes());
            body.extend((value.len() as u16).to_be_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = vec![0x00, 0x03];
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(MAGIC_COOKIE.to_be_bytes());
        bytes.extend([9; 12]);
        bytes.extend(body);
        bytes
    }

    // [8489-14-6]
    #[test]
    fn first_occurrence_wins() {
        let bytes = message(&[(0x0006, b"first"), (0x0006, b"second")]);
        assert_eq!(Message::parse(&bytes).unwrap().get(Known::Username), Some(&b"first"[..]));
    }

    // [8489-9-1]
    #[test]
    fn after_message_integrity_only_sha256_and_fingerprint_count() {
        let bytes = message(&[
            (0x0008, &[0; 20]),
            (0x0006, b"late"),
            (0x0012, &[0; 8]),
            (0x7777, b""),
            (0x001C, &[0; 32]),
            (0x0008, &[1; 20]),
            (0x8028, &[0; 4]),
        ]);
        let message = Message::parse(&bytes).unwrap();
        assert!(!message.has(Known::Username) && message.unknown().is_empty());
        assert!(message.has(Known::MessageIntegritySha256) && message.has(Known::Fingerprint));
        assert_eq!(message.get(Known::MessageIntegrity), Some(&[0; 20][..]));
        assert_eq!(message.all(ATTR_XOR_PEER_ADDRESS).count(), 0);
    }

    // [8489-9-2]
    #[test]
    fn after_sha256_only_fingerprint_counts() {
        let bytes = message(&[(0x001C, &[0; 32]), (0x0008, &[0; 20]), (0x0006, b"late")]);
        let message = Message::parse(&bytes).unwrap();
        assert!(!message.has(Known::MessageIntegrity) && !message.has(Known::Username));
    }

    #[test]
    fn unknown_required_types_are_listed_once_and_eight_at_most() {
        let mut attributes: Vec<(u16, &[u8])> = vec![(0x7001, b""), (0x7001, b"x"), (0x8999, b"")];
        attributes.extend((0x7002..0x7010).map(|attribute| (attribute, &b""[..])));
        let bytes = message(&attributes);
        let parsed = Message::parse(&bytes).unwrap();
        assert_eq!(parsed.unknown(), (0x7001..0x7009).collect::<Vec<u16>>());
    }

    #[test]
    fn a_message_of_nothing_but_heads_is_read_so_far_and_no_further() {
        let of = |count: usize| message(&vec![(0x8999, &b""[..]); count]);
        assert!(Message::parse(&of(ATTRIBUTES_MAX)).is_ok());
        assert_eq!(Message::parse(&of(ATTRIBUTES_MAX + 1)).map(|_| ()).unwrap_err(), Malformed::Attribute);
    }

    // [8489-5-1, -2, -4]
    #[test]
    fn malformed_messages_are_told_apart() {
        let good = message(&[(0x0006, b"user")]);
        let mutate = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            edit(&mut bytes);
            Message::parse(&bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(mutate(&|b| b.truncate(19)), Malformed::Length);
        assert_eq!(mutate(&|b| b.push(0)), Malformed::Length);
        assert_eq!(mutate(&|b| b[0] |= 0x80), Malformed::Header);
        assert_eq!(mutate(&|b| b[4] = 0), Malformed::Header);
        assert_eq!(mutate(&|b| b[3] = 7), Malformed::Header);
        assert_eq!(mutate(&|b| b[23] = 5), Malformed::Attribute);
        let early = message(&[(0x8028, &[0; 4]), (0x0006, b"user")]);
        assert_eq!(Message::parse(&early).map(|_| ()).unwrap_err(), Malformed::Fingerprint);
    }
}
