//! A small STUN encoder and decoder of the tests' own, written against RFC 8489 and RFC 8656 alone, so that
//! a fault of `throughway::wire` can't hide behind itself.

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

pub const BINDING: u16 = 0x001;
pub const ALLOCATE: u16 = 0x003;
pub const REFRESH: u16 = 0x004;
pub const SEND: u16 = 0x006;
pub const DATA_METHOD: u16 = 0x007;
pub const CREATE_PERMISSION: u16 = 0x008;
pub const CHANNEL_BIND: u16 = 0x009;
pub const CONNECT: u16 = 0x00A;
pub const CONNECTION_BIND: u16 = 0x00B;
pub const CONNECTION_ATTEMPT: u16 = 0x00C;

pub const REQUEST: u16 = 0;
pub const INDICATION: u16 = 1;
pub const SUCCESS: u16 = 2;
pub const ERROR: u16 = 3;

pub const USERNAME: u16 = 0x0006;
pub const MESSAGE_INTEGRITY: u16 = 0x0008;
pub const ERROR_CODE: u16 = 0x0009;
pub const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
pub const CHANNEL_NUMBER: u16 = 0x000C;
pub const LIFETIME: u16 = 0x000D;
pub const XOR_PEER_ADDRESS: u16 = 0x0012;
pub const DATA: u16 = 0x0013;
pub const REALM: u16 = 0x0014;
pub const NONCE: u16 = 0x0015;
pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
pub const PASSWORD_ALGORITHM: u16 = 0x001D;
pub const USERHASH: u16 = 0x001E;
pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
pub const EVEN_PORT: u16 = 0x0018;
pub const REQUESTED_TRANSPORT: u16 = 0x0019;
pub const DONT_FRAGMENT: u16 = 0x001A;
pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub const CONNECTION_ID: u16 = 0x002A;
pub const RESERVATION_TOKEN: u16 = 0x0022;
pub const SOFTWARE: u16 = 0x8022;
pub const FINGERPRINT: u16 = 0x8028;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];

pub type Id = [u8; 12];

/// RFC 8489 section 9.2.2.
pub fn long_term_key(username: &str, realm: &str, password: &str) -> [u8; 16] {
    Md5::digest(format!("{username}:{realm}:{password}")).into()
}

/// Method and class woven into the type field (RFC 8489 figure 3).
pub fn message_type(method: u16, class: u16) -> u16 {
    (method & 0xF80) << 2 | (class & 2) << 7 | (method & 0x70) << 1 | (class & 1) << 4 | method & 0xF
}

/// What a signed message carries; a test leaves out what it wants to be missed.
#[derive(Clone, Default, Debug)]
pub struct Signature {
    pub username: Option<String>,
    pub realm: Option<String>,
    pub nonce: Option<Vec<u8>>,
    pub key: [u8; 16],
    /// What only RFC 8489 knows; `key` is of no use then.
    pub modern: Option<Modern>,
}

/// How a message is signed by RFC 8489.
#[derive(Clone, Debug, Default)]
pub struct Modern {
    pub userhash: Option<Vec<u8>>,
    pub algorithm: Option<Vec<u8>>,
    pub algorithms: Option<Vec<u8>>,
    pub key: Vec<u8>,
    /// The attributes that sign it, in this order.
    pub by: Vec<By>,
}

/// One attribute that signs, or pretends to.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Sha1,
    Sha256,
    /// The first bytes of the MAC only.
    Sha256Cut(usize),
    Sha1Wrong,
    Sha256Wrong,
}

/// RFC 8489 section 18.5.1.2.
pub fn sha256_key(username: &str, realm: &str, password: &str) -> [u8; 32] {
    Sha256::digest(format!("{username}:{realm}:{password}")).into()
}

/// RFC 8489 section 14.4.
pub fn userhash(username: &str, realm: &str) -> [u8; 32] {
    Sha256::digest(format!("{username}:{realm}")).into()
}

#[derive(Clone, Debug)]
enum Value {
    Bytes(Vec<u8>),
    /// XORed with the transaction id when that is known.
    Address(SocketAddr),
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub method: u16,
    class: u16,
    id: Option<Id>,
    attributes: Vec<(u16, Value)>,
    after_integrity: Vec<(u16, Value)>,
    fingerprint: bool,
    padding: u8,
}

pub fn request(method: u16) -> Outgoing {
    Outgoing {
        method,
        class: REQUEST,
        id: None,
        attributes: Vec::new(),
        after_integrity: Vec::new(),
        fingerprint: false,
        padding: 0,
    }
}

pub fn indication(method: u16) -> Outgoing {
    Outgoing { class: INDICATION, ..request(method) }
}

/// An Allocate for UDP.
pub fn allocate() -> Outgoing {
    request(ALLOCATE).udp()
}

impl Outgoing {
    pub fn class(mut self, class: u16) -> Self {
        self.class = class;
        self
    }
    pub fn id(mut self, id: Id) -> Self {
        self.id = Some(id);
        self
    }
    pub fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        self.attributes.push((attribute, Value::Bytes(value.to_vec())));
        self
    }
    pub fn after_integrity(mut self, attribute: u16, value: &[u8]) -> Self {
        self.after_integrity.push((attribute, Value::Bytes(value.to_vec())));
        self
    }
    pub fn peer_after_integrity(mut self, peer: SocketAddr) -> Self {
        self.after_integrity.push((XOR_PEER_ADDRESS, Value::Address(peer)));
        self
    }
    pub fn fingerprint(mut self) -> Self {
        self.fingerprint = true;
        self
    }
    /// What padding bytes are filled with; the receiver must ignore them (RFC 8489 section 14).
    pub fn padding(mut self, padding: u8) -> Self {
        self.padding = padding;
        self
    }
    pub fn transport(self, protocol: u8) -> Self {
        self.with(REQUESTED_TRANSPORT, &[protocol, 0, 0, 0])
    }
    pub fn udp(self) -> Self {
        self.transport(17)
    }
    pub fn connection(self, id: u32) -> Self {
        self.with(CONNECTION_ID, &id.to_be_bytes())
    }
    pub fn lifetime(self, seconds: u32) -> Self {
        self.with(LIFETIME, &seconds.to_be_bytes())
    }
    pub fn family(self, family: u8) -> Self {
        self.with(REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0])
    }
    pub fn even_port(self, reserve_next: bool) -> Self {
        self.with(EVEN_PORT, &[if reserve_next { 0x80 } else { 0 }])
    }
    pub fn token(self, token: &[u8]) -> Self {
        self.with(RESERVATION_TOKEN, token)
    }
    pub fn dont_fragment(self) -> Self {
        self.with(DONT_FRAGMENT, &[])
    }
    pub fn channel(self, number: u16) -> Self {
        let [a, b] = number.to_be_bytes();
        self.with(CHANNEL_NUMBER, &[a, b, 0, 0])
    }
    pub fn data(self, data: &[u8]) -> Self {
        self.with(DATA, data)
    }
    pub fn peer(mut self, peer: SocketAddr) -> Self {
        self.attributes.push((XOR_PEER_ADDRESS, Value::Address(peer)));
        self
    }
    pub fn peers(self, peers: &[SocketAddr]) -> Self {
        peers.iter().fold(self, |message, peer| message.peer(*peer))
    }

    /// The bytes: attributes, credentials, MESSAGE-INTEGRITY, what follows it, FINGERPRINT.
    pub fn bytes(&self, fallback: Id, signature: Option<&Signature>) -> Vec<u8> {
        let id = self.id.unwrap_or(fallback);
        let mut bytes = message_type(self.method, self.class).to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(COOKIE);
        bytes.extend(id);
        let put = |bytes: &mut Vec<u8>, attributes: &[(u16, Value)]| {
            for (attribute, value) in attributes {
                match value {
                    Value::Bytes(value) => push(bytes, *attribute, value, self.padding),
                    Value::Address(address) => push(bytes, *attribute, &xor(*address, &id), self.padding),
                }
            }
        };
        put(&mut bytes, &self.attributes);
        if let Some(signature) = signature {
            let texts = [
                (USERNAME, signature.username.as_ref().map(String::as_bytes)),
                (REALM, signature.realm.as_ref().map(String::as_bytes)),
                (NONCE, signature.nonce.as_deref()),
            ];
            for (attribute, value) in texts {
                if let Some(value) = value {
                    push(&mut bytes, attribute, value, self.padding);
                }
            }
            match &signature.modern {
                None => sign(&mut bytes, &signature.key),
                Some(modern) => {
                    let more = [
                        (USERHASH, &modern.userhash),
                        (PASSWORD_ALGORITHM, &modern.algorithm),
                        (PASSWORD_ALGORITHMS, &modern.algorithms),
                    ];
                    for (attribute, value) in more {
                        value.iter().for_each(|value| push(&mut bytes, attribute, value, self.padding));
                    }
                    modern.by.iter().for_each(|by| sign_by(&mut bytes, &modern.key, *by));
                }
            }
        }
        put(&mut bytes, &self.after_integrity);
        let length = bytes.len();
        set_length(&mut bytes, length);
        if self.fingerprint {
            append_fingerprint(&mut bytes);
        }
        bytes
    }
}

fn push(bytes: &mut Vec<u8>, attribute: u16, value: &[u8], padding: u8) {
    bytes.extend(attribute.to_be_bytes());
    bytes.extend(u16::try_from(value.len()).expect("an attribute's length has 16 bits").to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), padding);
}

fn set_length(bytes: &mut [u8], total: usize) {
    let length = u16::try_from(total - 20).expect("a message's length has 16 bits");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
}

fn hmac(bytes: &[u8], key: &[u8]) -> [u8; 20] {
    let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(key).expect("any key will do");
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

fn hmac_sha256(bytes: &[u8], key: &[u8]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any key will do");
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

/// Each attribute covers all before it, and the length field ends with it (RFC 8489 sections 14.5 and 14.6).
fn sign_by(bytes: &mut Vec<u8>, key: &[u8], by: By) {
    let (attribute, len) = match by {
        By::Sha1 | By::Sha1Wrong => (MESSAGE_INTEGRITY, 20),
        By::Sha256 | By::Sha256Wrong => (MESSAGE_INTEGRITY_SHA256, 32),
        By::Sha256Cut(len) => (MESSAGE_INTEGRITY_SHA256, len),
    };
    let total = bytes.len() + 4 + len.next_multiple_of(4);
    set_length(bytes, total);
    let mut mac =
        if attribute == MESSAGE_INTEGRITY { hmac(bytes, key).to_vec() } else { hmac_sha256(bytes, key).to_vec() };
    mac.resize(len, 0);
    if matches!(by, By::Sha1Wrong | By::Sha256Wrong) {
        mac[len - 1] ^= 1;
    }
    push(bytes, attribute, &mac, 0);
}

fn sign(bytes: &mut Vec<u8>, key: &[u8; 16]) {
    let total = bytes.len() + 24;
    set_length(bytes, total);
    let mac = hmac(bytes, key);
    push(bytes, MESSAGE_INTEGRITY, &mac, 0);
}

pub fn append_fingerprint(bytes: &mut Vec<u8>) {
    let total = bytes.len() + 8;
    set_length(bytes, total);
    let crc = crc32(bytes) ^ 0x5354_554E;
    push(bytes, FINGERPRINT, &crc.to_be_bytes(), 0);
}

/// CRC-32 of ITU V.42, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn mask(id: &Id) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(id);
    mask
}

/// XOR-MAPPED-ADDRESS and its kin (RFC 8489 section 14.2).
pub fn xor(address: SocketAddr, id: &Id) -> Vec<u8> {
    let port = address.port() ^ 0x2112;
    let (family, ip) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(port.to_be_bytes());
    value.extend(ip.iter().zip(mask(id)).map(|(a, b)| a ^ b));
    value
}

fn unxor(value: &[u8], id: &Id) -> SocketAddr {
    let port = u16::from_be_bytes([value[2], value[3]]) ^ 0x2112;
    let ip: Vec<u8> = value[4..].iter().zip(mask(id)).map(|(a, b)| a ^ b).collect();
    assert_eq!(value[0], 0, "the first byte of an address is zero");
    match value[1] {
        1 => (<[u8; 4]>::try_from(ip).expect("IPv4 has 4 bytes"), port).into(),
        2 => (<[u8; 16]>::try_from(ip).expect("IPv6 has 16 bytes"), port).into(),
        other => panic!("address family {other}"),
    }
}

/// A received message, taken apart. Decoding panics on anything that RFC 8489 forbids a server to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incoming {
    pub bytes: Vec<u8>,
    pub method: u16,
    pub class: u16,
    pub id: Id,
    /// Type, offset of the attribute's head, value.
    pub attributes: Vec<(u16, usize, Vec<u8>)>,
}

impl Incoming {
    pub fn decode(bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 20, "shorter than a header: {bytes:02x?}");
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        assert_eq!(length + 20, bytes.len(), "the length field tells the size");
        assert_eq!(bytes[4..8], COOKIE, "magic cookie");
        let kind = u16::from_be_bytes([bytes[0], bytes[1]]);
        assert_eq!(kind & 0xC000, 0, "the two top bits are zero");
        let mut incoming = Self {
            bytes: bytes.to_vec(),
            method: (kind >> 2) & 0xF80 | (kind >> 1) & 0x70 | kind & 0xF,
            class: (kind >> 7) & 2 | (kind >> 4) & 1,
            id: bytes[8..20].try_into().expect("twelve bytes"),
            attributes: Vec::new(),
        };
        let mut at = 20;
        while at < bytes.len() {
            let attribute = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let len = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
            let end = at + 4 + len;
            incoming.attributes.push((attribute, at, bytes[at + 4..end].to_vec()));
            let padded = end.next_multiple_of(4);
            assert!(bytes[end..padded].iter().all(|byte| *byte == 0), "padding is zero: {bytes:02x?}");
            at = padded;
        }
        assert_eq!(at, bytes.len(), "attributes fill the message");
        if let Some((_, head, value)) = incoming.entry(FINGERPRINT) {
            assert_eq!(head + 8, bytes.len(), "FINGERPRINT is last");
            let crc = crc32(&bytes[..*head]) ^ 0x5354_554E;
            assert_eq!(*value, crc.to_be_bytes(), "FINGERPRINT fits");
        }
        incoming
    }

    fn entry(&self, attribute: u16) -> Option<&(u16, usize, Vec<u8>)> {
        self.attributes.iter().find(|(kind, ..)| *kind == attribute)
    }
    pub fn get(&self, attribute: u16) -> Option<&[u8]> {
        self.entry(attribute).map(|(_, _, value)| value.as_slice())
    }
    pub fn has(&self, attribute: u16) -> bool {
        self.entry(attribute).is_some()
    }
    /// The types in their order.
    pub fn types(&self) -> Vec<u16> {
        self.attributes.iter().map(|(kind, ..)| *kind).collect()
    }
    /// 0 for a success.
    pub fn code(&self) -> u16 {
        match self.class {
            SUCCESS => {
                assert!(!self.has(ERROR_CODE), "no ERROR-CODE in a success");
                0
            }
            ERROR => {
                let value = self.get(ERROR_CODE).expect("an error carries ERROR-CODE");
                assert_eq!(value[..2], [0, 0], "reserved bytes are zero");
                u16::from(value[2]) * 100 + u16::from(value[3])
            }
            class => panic!("class {class} is no response"),
        }
    }
    pub fn lifetime(&self) -> u32 {
        u32::from_be_bytes(self.get(LIFETIME).expect("LIFETIME").try_into().expect("4 bytes"))
    }
    pub fn address(&self, attribute: u16) -> SocketAddr {
        unxor(self.get(attribute).expect("an address attribute"), &self.id)
    }
    pub fn relayed(&self) -> SocketAddr {
        self.address(XOR_RELAYED_ADDRESS)
    }
    /// Every XOR-RELAYED-ADDRESS, in order.
    pub fn all_relayed(&self) -> Vec<SocketAddr> {
        let relayed = self.attributes.iter().filter(|(kind, ..)| *kind == XOR_RELAYED_ADDRESS);
        relayed.map(|(_, _, value)| unxor(value, &self.id)).collect()
    }
    /// CONNECTION-ID.
    pub fn connection(&self) -> u32 {
        u32::from_be_bytes(self.get(CONNECTION_ID).expect("CONNECTION-ID").try_into().expect("four bytes"))
    }
    pub fn mapped(&self) -> SocketAddr {
        self.address(XOR_MAPPED_ADDRESS)
    }
    pub fn token(&self) -> Vec<u8> {
        let token = self.get(RESERVATION_TOKEN).expect("RESERVATION-TOKEN").to_vec();
        assert_eq!(token.len(), 8, "a token has 8 bytes");
        token
    }
    pub fn unknown(&self) -> Vec<u16> {
        let value = self.get(UNKNOWN_ATTRIBUTES).expect("UNKNOWN-ATTRIBUTES");
        value.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }
    pub fn is_signed(&self) -> bool {
        self.has(MESSAGE_INTEGRITY) || self.has(MESSAGE_INTEGRITY_SHA256)
    }
    /// Whether MESSAGE-INTEGRITY was made with this key.
    pub fn is_signed_with(&self, key: &[u8; 16]) -> bool {
        let Some((_, head, value)) = self.entry(MESSAGE_INTEGRITY) else { return false };
        let mut covered = self.bytes[..*head].to_vec();
        set_length(&mut covered, head + 24);
        hmac(&covered, key).as_slice() == value
    }
    /// Whether MESSAGE-INTEGRITY-SHA256, of full length, was made with this key.
    pub fn is_signed_by_sha256_with(&self, key: &[u8]) -> bool {
        let Some((_, head, value)) = self.entry(MESSAGE_INTEGRITY_SHA256) else { return false };
        let mut covered = self.bytes[..*head].to_vec();
        set_length(&mut covered, head + 36);
        hmac_sha256(&covered, key).as_slice() == value
    }
}
