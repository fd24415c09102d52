//! What the simulated clients put on the wire, with what they meant by it.

use throughway::address::PeerAddress;
use throughway::wire::attribute::{
    ATTR_CHANNEL_NUMBER, ATTR_CONNECTION_ID, ATTR_DATA, ATTR_LIFETIME, ATTR_NONCE, ATTR_PASSWORD_ALGORITHM,
    ATTR_PASSWORD_ALGORITHMS, ATTR_REALM, ATTR_RESERVATION_TOKEN, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS,
};
use throughway::wire::integrity::{
    IntegrityKey, PASSWORD_ALGORITHMS, PasswordAlgorithm, ReplyIntegrity, ReplyKey, userhash,
};
use throughway::wire::message::{
    ATTR_USERHASH, AttrType, CLASS_INDICATION, CLASS_REQUEST, METHOD_ALLOCATE, METHOD_BINDING, METHOD_CHANNEL_BIND,
    METHOD_CONNECT, METHOD_CONNECTION_BIND, METHOD_CREATE_PERMISSION, METHOD_REFRESH, METHOD_SEND, MessageType, Method,
    TransactionId,
};
use throughway::wire::writer::Writer;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Binding,
    Allocate,
    Refresh,
    CreatePermission,
    ChannelBind,
    Connect,
    ConnectionBind,
}

impl What {
    pub fn method(self) -> Method {
        match self {
            Self::Binding => METHOD_BINDING,
            Self::Allocate => METHOD_ALLOCATE,
            Self::Refresh => METHOD_REFRESH,
            Self::CreatePermission => METHOD_CREATE_PERMISSION,
            Self::ChannelBind => METHOD_CHANNEL_BIND,
            Self::Connect => METHOD_CONNECT,
            Self::ConnectionBind => METHOD_CONNECTION_BIND,
        }
    }
}

/// What a client does with the PASSWORD-ALGORITHMS that it was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chosen {
    /// It knows RFC 5389 only.
    Nothing,
    Md5,
    Sha256,
    /// PASSWORD-ALGORITHM alone, which is an error.
    Lone,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    pub username: String,
    pub password: String,
    pub realm: &'static str,
    pub nonce: Vec<u8>,
    pub chosen: Chosen,
    /// USERHASH in place of USERNAME.
    pub hidden: bool,
}

impl Signed {
    pub fn algorithm(&self) -> PasswordAlgorithm {
        match self.chosen {
            Chosen::Nothing | Chosen::Md5 => PasswordAlgorithm::Md5,
            Chosen::Sha256 | Chosen::Lone => PasswordAlgorithm::Sha256,
        }
    }

    /// Some that chose MD5 prove it by MESSAGE-INTEGRITY all the same.
    pub fn integrity(&self) -> ReplyIntegrity {
        match self.chosen {
            Chosen::Nothing => ReplyIntegrity::Sha1,
            Chosen::Md5 if self.nonce.last().is_some_and(|last| last % 2 == 0) => ReplyIntegrity::Sha1,
            Chosen::Md5 | Chosen::Sha256 | Chosen::Lone => ReplyIntegrity::Sha256,
        }
    }

    pub fn key(&self) -> IntegrityKey {
        let [username, realm, password] = [&self.username, self.realm, &self.password].map(str::as_bytes);
        IntegrityKey::by(self.algorithm(), username, realm, password)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        if self.hidden {
            writer.attribute(ATTR_USERHASH, &userhash(self.username.as_bytes(), self.realm.as_bytes()));
        } else {
            writer.attribute(ATTR_USERNAME, self.username.as_bytes());
        }
        writer.attribute(ATTR_REALM, self.realm.as_bytes());
        writer.attribute(ATTR_NONCE, &self.nonce);
        if self.chosen != Chosen::Nothing {
            writer.attribute(ATTR_PASSWORD_ALGORITHM, &self.algorithm().value());
        }
        if matches!(self.chosen, Chosen::Md5 | Chosen::Sha256) {
            writer.attribute(ATTR_PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS);
        }
        writer.sign(&ReplyKey { key: self.key(), integrity: self.integrity() });
    }
}

/// A request as it was meant.
#[derive(Clone, Debug)]
pub struct Request {
    pub what: What,
    pub transaction: [u8; 12],
    pub signed: Option<Signed>,
    pub transport: Option<u8>,
    pub lifetime: Option<u32>,
    pub family: Option<u8>,
    /// ADDITIONAL-ADDRESS-FAMILY.
    pub additional: Option<u8>,
    /// EVEN-PORT, and whether the next port is wanted too.
    pub even_port: Option<bool>,
    pub token: Option<[u8; 8]>,
    pub peers: Vec<PeerAddress>,
    pub channel: Option<u16>,
    /// CONNECTION-ID.
    pub connection: Option<u32>,
    pub unknown_attribute: bool,
    pub fingerprint: bool,
}

impl Request {
    pub fn new(what: What, transaction: [u8; 12]) -> Self {
        Self {
            what,
            transaction,
            signed: None,
            transport: (what == What::Allocate).then_some(17),
            lifetime: None,
            family: None,
            additional: None,
            even_port: None,
            token: None,
            peers: Vec::new(),
            channel: None,
            connection: None,
            unknown_attribute: false,
            fingerprint: false,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = [0; 1024];
        let message_type = MessageType { method: self.what.method(), class: CLASS_REQUEST };
        let mut writer = Writer::new(&mut out, message_type, TransactionId(self.transaction));
        if let Some(protocol) = self.transport {
            writer.attribute(AttrType(0x0019), &[protocol, 0, 0, 0]);
        }
        if let Some(lifetime) = self.lifetime {
            writer.attribute(ATTR_LIFETIME, &lifetime.to_be_bytes());
        }
        if let Some(family) = self.family {
            writer.attribute(AttrType(0x0017), &[family, 0, 0, 0]);
        }
        if let Some(family) = self.additional {
            writer.attribute(AttrType(0x8000), &[family, 0, 0, 0]);
        }
        if let Some(next) = self.even_port {
            writer.attribute(AttrType(0x0018), &[if next { 0x80 } else { 0 }]);
        }
        if let Some(token) = &self.token {
            writer.attribute(ATTR_RESERVATION_TOKEN, token);
        }
        if let Some(channel) = self.channel {
            let [high, low] = channel.to_be_bytes();
            writer.attribute(ATTR_CHANNEL_NUMBER, &[high, low, 0, 0]);
        }
        if let Some(connection) = self.connection {
            writer.attribute(ATTR_CONNECTION_ID, &connection.to_be_bytes());
        }
        for peer in &self.peers {
            writer.xor_address(ATTR_XOR_PEER_ADDRESS, peer.0);
        }
        if self.unknown_attribute {
            writer.attribute(AttrType(0x7ABC), b"?");
        }
        if let Some(signed) = &self.signed {
            signed.write(&mut writer);
        }
        if self.fingerprint {
            writer.fingerprint();
        }
        let len = writer.finish().unwrap();
        out[..len].to_vec()
    }
}

pub fn send_indication(transaction: [u8; 12], peer: PeerAddress, payload: &[u8], dont_fragment: bool) -> Vec<u8> {
    let mut out = vec![0; payload.len() + 96];
    let message_type = MessageType { method: METHOD_SEND, class: CLASS_INDICATION };
    let mut writer = Writer::new(&mut out, message_type, TransactionId(transaction));
    writer.xor_address(ATTR_XOR_PEER_ADDRESS, peer.0);
    if dont_fragment {
        writer.attribute(AttrType(0x001A), &[]);
    }
    writer.attribute(ATTR_DATA, payload);
    if transaction[0] < 64 {
        writer.fingerprint();
    }
    let len = writer.finish().unwrap();
    out.truncate(len);
    out
}

pub fn channel_data(number: u16, payload: &[u8], is_stream: bool) -> Vec<u8> {
    let mut out = number.to_be_bytes().to_vec();
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend(payload);
    if is_stream {
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// A Send indication read by a second, plain parser.
#[derive(Debug, PartialEq, Eq)]
pub enum SendRead {
    Malformed,
    WrongFingerprint,
    Bad,
    Good { peer: PeerAddress, start: usize, len: usize, dont_fragment: bool },
}

/// Reads one attribute after the other, as the RFC's text goes.
pub fn read_send(bytes: &[u8]) -> SendRead {
    const KNOWN: [u16; 19] = [
        0x0006, 0x0014, 0x0015, 0x0008, 0x001C, 0x8028, 0x000D, 0x0012, 0x0013, 0x000C, 0x0018, 0x0019, 0x001A, 0x0022,
        0x0017, 0x0020, 0x0016, 0x0009, 0x000A,
    ];
    let word = |at: usize| usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1]);
    if bytes.len() < 20 || bytes[4..8] != [0x21, 0x12, 0xA4, 0x42] || word(2) % 4 != 0 || word(2) + 20 != bytes.len() {
        return SendRead::Malformed;
    }
    let (mut at, mut counts, mut ended, mut wrong) = (20, true, false, false);
    let (mut peer, mut data, mut dont_fragment, mut unknown) = (None, None, None, false);
    while at < bytes.len() {
        if ended || at + 4 > bytes.len() {
            return SendRead::Malformed;
        }
        let (kind, len, value) = (word(at) as u16, word(at + 2), at + 4);
        at = value + len.div_ceil(4) * 4;
        if at > bytes.len() {
            return SendRead::Malformed;
        }
        match kind {
            0x8028 if len != 4 => return SendRead::Malformed,
            0x8028 => {
                ended = true;
                wrong = (crc32(&bytes[..value - 4]) ^ 0x5354_554E).to_be_bytes() != bytes[value..value + 4];
            }
            0x0008 | 0x001C => counts = false,
            _ if !counts => {}
            0x0012 => peer = peer.or(Some((value, len))),
            0x0013 => data = data.or(Some((value, len))),
            0x001A => dont_fragment = dont_fragment.or(Some(len)),
            kind => unknown |= kind < 0x8000 && !KNOWN.contains(&kind),
        }
    }
    if wrong {
        return SendRead::WrongFingerprint;
    }
    let (Some((peer, peer_len)), Some((start, len))) = (peer, data) else { return SendRead::Bad };
    if unknown || dont_fragment.is_some_and(|len| len != 0) || peer_len < 4 {
        return SendRead::Bad;
    }
    let port = (word(peer + 2) as u16) ^ 0x2112;
    let ip: std::net::IpAddr = match (bytes[peer + 1], peer_len) {
        (1, 8) => {
            let mut ip = [0; 4];
            (0..4).for_each(|i| ip[i] = bytes[peer + 4 + i] ^ bytes[4 + i]);
            ip.into()
        }
        (2, 20) => {
            let mut ip = [0; 16];
            (0..16).for_each(|i| ip[i] = bytes[peer + 4 + i] ^ bytes[4 + i]);
            ip.into()
        }
        _ => return SendRead::Bad,
    };
    SendRead::Good { peer: PeerAddress::new(ip, port), start, len, dont_fragment: dont_fragment.is_some() }
}

/// CRC-32 bit by bit, as ITU V.42 defines it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
