//! The little of STUN and TURN a client needs: requests out, responses in (RFC 8489, RFC 8656).

use std::net::{Ipv4Addr, SocketAddrV4};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;

pub const BINDING: u16 = 0x0001;
pub const ALLOCATE: u16 = 0x0003;
pub const REFRESH: u16 = 0x0004;
pub const CREATE_PERMISSION: u16 = 0x0008;
pub const CHANNEL_BIND: u16 = 0x0009;
pub const SEND_INDICATION: u16 = 0x0016;
pub const DATA_INDICATION: u16 = 0x0017;
pub const SUCCESS: u16 = 0x0100;
pub const ERROR: u16 = 0x0110;

pub const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
pub const ERROR_CODE: u16 = 0x0009;
pub const CHANNEL_NUMBER: u16 = 0x000C;
pub const LIFETIME: u16 = 0x000D;
pub const XOR_PEER_ADDRESS: u16 = 0x0012;
pub const DATA: u16 = 0x0013;
pub const REALM: u16 = 0x0014;
pub const NONCE: u16 = 0x0015;
pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub const REQUESTED_TRANSPORT: u16 = 0x0019;
pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;

const COOKIE: u32 = 0x2112_A442;
pub const HEAD: usize = 20;
pub type TransactionId = [u8; 12];

/// The key of long-term credentials: MD5 of `username:realm:password`.
pub fn long_term_key(username: &str, realm: &[u8], password: &str) -> [u8; 16] {
    let mut md5 = Md5::new();
    md5.update(username.as_bytes());
    md5.update(b":");
    md5.update(realm);
    md5.update(b":");
    md5.update(password.as_bytes());
    md5.finalize().into()
}

fn hmac_sha1(key: &[u8], parts: [&[u8]; 3]) -> [u8; 20] {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// The head of a message with `length` bytes of attributes.
pub fn head(kind: u16, length: u16, id: TransactionId) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..2].copy_from_slice(&kind.to_be_bytes());
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[4..8].copy_from_slice(&COOKIE.to_be_bytes());
    bytes[8..].copy_from_slice(&id);
    bytes
}

/// A message under construction.
pub struct Builder(Vec<u8>);

impl Builder {
    pub fn new(kind: u16, id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(COOKIE.to_be_bytes());
        bytes.extend(id);
        Self(bytes)
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(kind.to_be_bytes());
        self.0.extend((value.len() as u16).to_be_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.set_length(0);
        self
    }

    pub fn xor_address(self, kind: u16, address: SocketAddrV4) -> Self {
        let port = address.port() ^ (COOKIE >> 16) as u16;
        let ip = u32::from(*address.ip()) ^ COOKIE;
        let mut value = [0, 1, 0, 0, 0, 0, 0, 0];
        value[2..4].copy_from_slice(&port.to_be_bytes());
        value[4..8].copy_from_slice(&ip.to_be_bytes());
        self.attribute(kind, &value)
    }

    fn set_length(&mut self, more: usize) {
        let length = (self.0.len() - HEAD + more) as u16;
        self.0[2..4].copy_from_slice(&length.to_be_bytes());
    }

    /// Appends MESSAGE-INTEGRITY; its own length counts before the HMAC is taken.
    pub fn sign(mut self, key: &[u8]) -> Vec<u8> {
        self.set_length(24);
        let mac = hmac_sha1(key, [&self.0, &[], &[]]);
        self.attribute(MESSAGE_INTEGRITY, &mac).0
    }

    pub fn unsigned(self) -> Vec<u8> {
        self.0
    }
}

/// A received message whose attributes lie within its bytes.
pub struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < HEAD || bytes[0] & 0xC0 != 0 || bytes[4..8] != COOKIE.to_be_bytes() {
            return None;
        }
        let message = Self(bytes);
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if HEAD + length != bytes.len() {
            return None;
        }
        let mut at = HEAD;
        while at < bytes.len() {
            at = message.attribute_at(at)?.2;
        }
        Some(message)
    }

    fn attribute_at(&self, at: usize) -> Option<(u16, &'a [u8], usize)> {
        let head = self.0.get(at..at + 4)?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = self.0.get(at + 4..at + 4 + length)?;
        let next = at + 4 + length.next_multiple_of(4);
        (next <= self.0.len()).then_some((u16::from_be_bytes([head[0], head[1]]), value, next))
    }

    pub fn kind(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    pub fn id(&self) -> TransactionId {
        self.0[8..20].try_into().expect("twelve bytes")
    }

    fn find(&self, kind: u16) -> Option<(usize, &'a [u8])> {
        let mut at = HEAD;
        while at < self.0.len() {
            let (found, value, next) = self.attribute_at(at)?;
            if found == kind {
                return Some((at, value));
            }
            at = next;
        }
        None
    }

    pub fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        self.find(kind).map(|(_, value)| value)
    }

    pub fn xor_address(&self, kind: u16) -> Option<SocketAddrV4> {
        let value: &[u8; 8] = self.attribute(kind)?.try_into().ok()?;
        let port = u16::from_be_bytes([value[2], value[3]]) ^ (COOKIE >> 16) as u16;
        let ip = u32::from_be_bytes([value[4], value[5], value[6], value[7]]) ^ COOKIE;
        (value[1] == 1).then(|| SocketAddrV4::new(Ipv4Addr::from(ip), port))
    }

    /// The class is error response: its code, or 0 when the response does not carry one.
    pub fn error_code(&self) -> Option<u16> {
        if self.kind() & 0x0110 != 0x0110 {
            return None;
        }
        let code = self.attribute(ERROR_CODE).filter(|value| value.len() >= 4);
        Some(code.map_or(0, |value| u16::from(value[2] & 7) * 100 + u16::from(value[3])))
    }

    pub fn is_signed_with(&self, key: &[u8]) -> bool {
        let Some((at, mac)) = self.find(MESSAGE_INTEGRITY) else {
            return false;
        };
        let length = ((at + 24 - HEAD) as u16).to_be_bytes();
        hmac_sha1(key, [&self.0[..2], &length, &self.0[4..at]]) == mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_request_reads_back_and_any_changed_byte_is_noticed() {
        let key = long_term_key("user", b"realm", "pass");
        let peer = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 32_853);
        let bytes = Builder::new(CREATE_PERMISSION, [7; 12])
            .xor_address(XOR_PEER_ADDRESS, peer)
            .attribute(REALM, b"realm")
            .sign(&key);
        let message = Message::parse(&bytes).expect("well formed");
        assert_eq!(message.xor_address(XOR_PEER_ADDRESS), Some(peer));
        assert_eq!(message.attribute(REALM), Some(&b"realm"[..]));
        assert!(message.is_signed_with(&key));
        for at in (0..2).chain(8..bytes.len()) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let noticed = Message::parse(&changed).is_none_or(|m| !m.is_signed_with(&key));
            // padding behind "realm" is covered too: it lies in front of MESSAGE-INTEGRITY
            assert!(noticed, "byte {at}");
        }
    }

    /// The example of RFC 8489 section 9.2.2.
    #[test]
    fn key_of_the_rfc_example() {
        let key = long_term_key("user", b"realm", "pass");
        assert_eq!(u128::from_be_bytes(key), 0x8493_fbc5_3ba5_82fb_4c04_4c45_6bdc_40eb);
    }
}
