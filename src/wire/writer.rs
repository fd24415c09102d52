//! Writes one STUN message into a slice of the caller's.
//!
//! Padding is always zero: a reply must never carry bytes that were in the buffer before.

use std::net::IpAddr;

use stun::attributes::{
    ATTR_DATA, ATTR_ERROR_CODE, ATTR_FINGERPRINT, ATTR_MESSAGE_INTEGRITY, ATTR_MESSAGE_INTEGRITY_SHA256,
    ATTR_UNKNOWN_ATTRIBUTES, ATTR_XOR_PEER_ADDRESS,
};
use stun::message::MAGIC_COOKIE;
use turn::proto::reqfamily::{REQUESTED_FAMILY_IPV4, REQUESTED_FAMILY_IPV6};

use super::attribute::mapped_address;
use super::integrity::{IntegrityKey, ReplyIntegrity, ReplyKey, fingerprint};
use super::message::{
    ATTR_ADDRESS_ERROR_CODE, AttrType, CLASS_INDICATION, ErrorCode, HEADER_BYTES, METHOD_DATA, MessageType,
    TransactionId,
};
use crate::address::{Address, Family, PeerAddress};

/// The longest head of a Data indication: STUN header, XOR-PEER-ADDRESS of IPv6, head of DATA.
pub const DATA_INDICATION_HEAD_MAX: usize = HEADER_BYTES + 24 + 4;

/// A message under construction. What does not fit is noticed by [`Writer::finish`].
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
    overflow: bool,
}

impl<'a> Writer<'a> {
    /// Starts a message in `out`.
    // [8489-5-2]
    #[must_use]
    #[inline]
    pub fn new(out: &'a mut [u8], message_type: MessageType, transaction_id: TransactionId) -> Self {
        let mut writer = Self { out, len: 0, overflow: false };
        writer.put(&message_type.value().to_be_bytes());
        writer.put(&[0, 0]);
        writer.put(&MAGIC_COOKIE.to_be_bytes());
        writer.put(&transaction_id.0);
        writer
    }

    /// Starts a message of RFC 3489, which has no cookie.
    #[must_use]
    pub fn classic(out: &'a mut [u8], message_type: MessageType, transaction_id: &[u8; 16]) -> Self {
        let mut writer = Self { out, len: 0, overflow: false };
        writer.put(&message_type.value().to_be_bytes());
        writer.put(&[0, 0]);
        writer.put(transaction_id);
        writer
    }

    /// Appends an attribute and its zero padding.
    // [8489-14-1, -2, -3, -4, 8656-18-1]
    pub fn attribute(&mut self, attribute: AttrType, value: &[u8]) -> &mut Self {
        self.head(attribute, value.len());
        self.put(value);
        self.put(&[0; 3][..value.len().wrapping_neg() & 3]);
        self
    }

    /// Appends an XOR-…-ADDRESS (RFC 8489 section 14.2). [8489-14.1-1, -2, 8489-14.2-1]
    #[inline]
    pub fn xor_address(&mut self, attribute: AttrType, address: Address) -> &mut Self {
        let mut value = [0; 20];
        let transaction_id = self.transaction_id();
        let len = xor_address(&mut value, address, transaction_id);
        self.head(attribute, len);
        self.put(&value[..len]);
        self
    }

    /// Appends an address that is not XORed, as MAPPED-ADDRESS (RFC 8489 section 14.1). [8489-14.1-1, -2]
    pub fn plain_address(&mut self, attribute: AttrType, address: Address) -> &mut Self {
        self.attribute(attribute, mapped_address(address, &mut [0; 20]))
    }

    /// Appends an attribute of so many zeros.
    pub fn zeros(&mut self, attribute: AttrType, bytes: usize) -> &mut Self {
        self.head(attribute, bytes);
        for _ in 0..bytes.div_ceil(4) {
            self.put(&[0; 4]);
        }
        self
    }

    /// Appends ERROR-CODE (RFC 8489 section 14.8); an empty reason makes it eight bytes. [8489-14.8-2, -3]
    pub fn error_code(&mut self, code: ErrorCode, reason: &str) -> &mut Self {
        self.head(ATTR_ERROR_CODE, 4 + reason.len());
        self.put(&[0, 0, (code.0 / 100) as u8, (code.0 % 100) as u8]);
        self.put(reason.as_bytes());
        self.put(&[0; 3][..reason.len().wrapping_neg() & 3]);
        self
    }

    /// Appends ADDRESS-ERROR-CODE without a reason phrase (RFC 8656 section 18.12): the family that could not be had, and why.
    // [8656-18.12-1, -2]
    pub fn address_error_code(&mut self, family: Family, code: ErrorCode) -> &mut Self {
        let number = match family {
            Family::V4 => REQUESTED_FAMILY_IPV4,
            Family::V6 => REQUESTED_FAMILY_IPV6,
        };
        self.attribute(ATTR_ADDRESS_ERROR_CODE, &[number.0, 0, (code.0 / 100) as u8, (code.0 % 100) as u8])
    }

    /// Appends UNKNOWN-ATTRIBUTES (RFC 8489 section 14.13). [8489-6.3.1.1-3]
    pub fn unknown_attributes(&mut self, unknown: &[u16]) -> &mut Self {
        self.head(ATTR_UNKNOWN_ATTRIBUTES, unknown.len() * 2);
        for attribute in unknown {
            self.put(&attribute.to_be_bytes());
        }
        self.put(&[0; 2][..(unknown.len() % 2) * 2]);
        self
    }

    /// Appends MESSAGE-INTEGRITY over all that was written so far.
    pub fn integrity(&mut self, key: &IntegrityKey) -> &mut Self {
        self.proof(ATTR_MESSAGE_INTEGRITY, |bytes, head| key.hmac(bytes, head))
    }

    /// Appends MESSAGE-INTEGRITY-SHA256, at its full length, over all that was written so far.
    pub fn integrity_sha256(&mut self, key: &IntegrityKey) -> &mut Self {
        self.proof(ATTR_MESSAGE_INTEGRITY_SHA256, |bytes, head| key.hmac_sha256(bytes, head))
    }

    fn proof<const N: usize>(&mut self, attribute: AttrType, mac: impl Fn(&[u8], usize) -> [u8; N]) -> &mut Self {
        let head = self.len;
        if self.overflow || head < HEADER_BYTES {
            self.overflow = true;
            return self;
        }
        let mac = mac(&self.out[..head], head);
        self.attribute(attribute, &mac)
    }

    /// Appends the proof that an answer has.
    pub fn sign(&mut self, with: &ReplyKey) -> &mut Self {
        match with.integrity {
            ReplyIntegrity::Sha1 => self.integrity(&with.key),
            ReplyIntegrity::Sha256 => self.integrity_sha256(&with.key),
            ReplyIntegrity::Both => self.integrity(&with.key).integrity_sha256(&with.key),
        }
    }

    /// Appends FINGERPRINT; nothing may follow.
    // [8489-14.7-1, -2]
    #[inline]
    pub fn fingerprint(&mut self) -> &mut Self {
        if self.overflow {
            return self;
        }
        // The CRC covers the final length (RFC 8489 section 14.7).
        self.set_length(self.len + 8);
        let crc = fingerprint(&self.out[..self.len.min(self.out.len())]);
        self.head(ATTR_FINGERPRINT, 4);
        self.put(&crc.to_be_bytes());
        self
    }

    /// Ends the message; its length in bytes, or `None` when the slice was too short.
    // [8489-5-4]
    #[must_use]
    #[inline]
    pub fn finish(&mut self) -> Option<usize> {
        if self.overflow || self.len - HEADER_BYTES > usize::from(u16::MAX) {
            return None;
        }
        self.set_length(self.len);
        Some(self.len)
    }

    #[inline]
    fn head(&mut self, attribute: AttrType, len: usize) {
        let Ok(len) = u16::try_from(len) else {
            self.overflow = true;
            return;
        };
        let (a, l) = (attribute.0.to_be_bytes(), len.to_be_bytes());
        self.put(&[a[0], a[1], l[0], l[1]]);
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        match self.out.get_mut(self.len..self.len + bytes.len()) {
            Some(place) if !self.overflow => {
                place.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            Some(_) | None => self.overflow = true,
        }
    }

    #[inline]
    fn set_length(&mut self, len: usize) {
        if let (Some(place), Ok(len)) = (self.out.get_mut(2..4), u16::try_from(len - HEADER_BYTES)) {
            place.copy_from_slice(&len.to_be_bytes());
        }
    }

    fn transaction_id(&self) -> TransactionId {
        let mut id = [0; 12];
        if let Some(bytes) = self.out.get(8..HEADER_BYTES) {
            id.copy_from_slice(bytes);
        }
        TransactionId(id)
    }
}

/// Encodes an address XORed with cookie and transaction id; gives the value's length, 8 or 20.
#[inline]
fn xor_address(value: &mut [u8; 20], address: Address, transaction_id: TransactionId) -> usize {
    let port = address.port ^ (MAGIC_COOKIE >> 16) as u16;
    value[2..4].copy_from_slice(&port.to_be_bytes());
    match address.ip {
        IpAddr::V4(ip) => {
            value[1] = 1;
            value[4..8].copy_from_slice(&(u32::from(ip) ^ MAGIC_COOKIE).to_be_bytes());
            8
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            value[4..20].copy_from_slice(&(u128::from(ip) ^ xor_mask(transaction_id)).to_be_bytes());
            20
        }
    }
}

/// Magic cookie and transaction id, as an IPv6 address is XORed with (RFC 8489 section 14.2).
#[inline]
pub(super) fn xor_mask(transaction_id: TransactionId) -> u128 {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(&transaction_id.0);
    u128::from_be_bytes(mask)
}

/// Writes all of a Data indication but the payload: header, XOR-PEER-ADDRESS, head of DATA.
///
/// Gives the number of bytes (36 for IPv4, 48 for IPv6). The payload and its padding to a multiple of
/// four follow it on the wire; `None` when a payload of that size fits no STUN message.
#[must_use]
#[inline]
pub fn data_indication_head(
    out: &mut [u8; DATA_INDICATION_HEAD_MAX],
    transaction_id: TransactionId,
    peer: PeerAddress,
    payload_bytes: usize,
) -> Option<usize> {
    let mut writer = Writer::new(out, MessageType { method: METHOD_DATA, class: CLASS_INDICATION }, transaction_id);
    writer.xor_address(ATTR_XOR_PEER_ADDRESS, peer.0);
    writer.head(ATTR_DATA, payload_bytes);
    let head = writer.len;
    let body = head - HEADER_BYTES + payload_bytes.next_multiple_of(4);
    if writer.overflow {
        return None;
    }
    let length = u16::try_from(body).ok()?;
    out[2..4].copy_from_slice(&length.to_be_bytes());
    Some(head)
}
