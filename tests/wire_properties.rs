//! Properties of the wire format: two independent codecs and the published vectors as oracles.
//!
//! What we write, `stun` + `turn::proto` and `stun-types` + `turn-types` read, and the other way round; no
//! input whatsoever panics. proptest keeps seeds of failures beside this file.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs)]

#[allow(dead_code)]
#[path = "../fuzz/targets.rs"]
mod targets;

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use proptest::collection::vec;
use proptest::prelude::*;
use sha1::Sha1;
use throughway::address::{Address, PeerAddress};
use throughway::wire::attribute::{EvenPort, xor_address};
use throughway::wire::channel_data::{self, ChannelData};
use throughway::wire::framing::{Cut, cut};
use throughway::wire::integrity::{Fingerprint, IntegrityKey, check_fingerprint};
use throughway::wire::message::{AttrType, ErrorCode, Known, Message, MessageType, TransactionId};
use throughway::wire::writer::{DATA_INDICATION_HEAD_MAX, Writer, data_indication_head};
use turn::proto::channum::ChannelNumber;

/// The first oracle.
mod one {
    pub(crate) use stun::agent::TransactionId;
    pub(crate) use stun::attributes::*;
    pub(crate) use stun::error_code::ErrorCodeAttribute;
    pub(crate) use stun::fingerprint::FINGERPRINT;
    pub(crate) use stun::integrity::MessageIntegrity;
    pub(crate) use stun::message::{Getter, Message, Setter};
    pub(crate) use stun::textattrs::TextAttribute;
    pub(crate) use stun::uattrs::UnknownAttributes;
    pub(crate) use stun::xoraddr::XorMappedAddress;
    pub(crate) use turn::proto::chandata::ChannelData;
    pub(crate) use turn::proto::channum::ChannelNumber;
    pub(crate) use turn::proto::data::Data;
    pub(crate) use turn::proto::dontfrag::DontFragmentAttr;
    pub(crate) use turn::proto::evenport::EvenPort;
    pub(crate) use turn::proto::lifetime::Lifetime;
    pub(crate) use turn::proto::peeraddr::PeerAddress;
    pub(crate) use turn::proto::relayaddr::RelayedAddress;
    pub(crate) use turn::proto::reqfamily::RequestedAddressFamily;
    pub(crate) use turn::proto::reqtrans::RequestedTransport;
    pub(crate) use turn::proto::rsrvtoken::ReservationToken;
}

/// The second oracle.
mod two {
    pub(crate) use stun_types::attribute::{
        AttributeType, ErrorCode, Nonce, Realm, UnknownAttributes, Username, XorMappedAddress,
    };
    pub(crate) use stun_types::message::{
        IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials, MessageType, MessageWrite,
        MessageWriteExt, MessageWriteVec, TransactionId,
    };
    pub(crate) use turn_types::AddressFamily;
    pub(crate) use turn_types::attribute::{
        ChannelNumber, Data, DontFragment, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
        ReservationToken, XorPeerAddress, XorRelayedAddress,
    };
    pub(crate) use turn_types::channel::ChannelData;
}

/// All that a TURN message may carry here.
#[derive(Clone, Debug)]
struct Spec {
    method: u16,
    class: u8,
    transaction: [u8; 12],
    username: Option<String>,
    realm: Option<String>,
    nonce: Option<String>,
    lifetime: Option<u32>,
    transport: Option<u8>,
    ipv6: Option<bool>,
    even_port: Option<bool>,
    token: Option<[u8; 8]>,
    dont_fragment: bool,
    channel: Option<u16>,
    peers: Vec<SocketAddr>,
    mapped: Option<SocketAddr>,
    relayed: Option<SocketAddr>,
    data: Option<Vec<u8>>,
    error: Option<(u16, String)>,
    unknown: Option<Vec<u16>>,
    password: Option<String>,
    fingerprint: bool,
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn spec() -> impl Strategy<Value = Spec> {
    use proptest::option::of;
    let text = || of("[a-zA-Z0-9:é._-]{1,40}");
    let head = (0_u16..0x1000, 0_u8..4, any::<[u8; 12]>());
    let texts = (text(), text(), text());
    let allocate = (
        of(any::<u32>()),
        of(any::<u8>()),
        of(any::<bool>()),
        of(any::<bool>()),
        of(any::<[u8; 8]>()),
        any::<bool>(),
        of(0x4000_u16..0x7FFF),
    );
    let addresses = (vec(address(), 0..4), of(address()), of(address()));
    let rest = (of(vec(any::<u8>(), 0..300)), of((300_u16..700, "[a-zA-Z ]{0,40}")), of(vec(0x7000_u16..0x7FFF, 1..9)));
    let ends = (of("[a-z]{1,20}"), any::<bool>());
    (head, texts, allocate, addresses, rest, ends).prop_map(|(head, texts, allocate, addresses, rest, ends)| Spec {
        method: head.0,
        class: head.1,
        transaction: head.2,
        username: texts.0,
        realm: texts.1,
        nonce: texts.2,
        lifetime: allocate.0,
        transport: allocate.1,
        ipv6: allocate.2,
        even_port: allocate.3,
        token: allocate.4,
        dont_fragment: allocate.5,
        channel: allocate.6,
        peers: addresses.0,
        mapped: addresses.1,
        relayed: addresses.2,
        data: rest.0,
        error: rest.1,
        unknown: rest.2,
        password: ends.0,
        fingerprint: ends.1,
    })
}

/// Method and class in the 14 bits of the type field (RFC 8489 section 5, figure 3).
fn type_bits(spec: &Spec) -> u16 {
    let (m, c) = (spec.method, u16::from(spec.class));
    m & 0x00F | (m & 0x070) << 1 | (m & 0xF80) << 2 | (c & 1) << 4 | (c & 2) << 7
}

fn message_type(spec: &Spec) -> MessageType {
    let mut message_type = MessageType::default();
    message_type.read_value(type_bits(spec));
    message_type
}

/// The user and realm that sign: what the message says, or nothing.
fn signer(spec: &Spec) -> Option<(String, String, String)> {
    let password = spec.password.clone()?;
    Some((spec.username.clone().unwrap_or_default(), spec.realm.clone().unwrap_or_default(), password))
}

fn key(spec: &Spec) -> Option<IntegrityKey> {
    signer(spec)
        .map(|(user, realm, password)| IntegrityKey::long_term(user.as_bytes(), realm.as_bytes(), password.as_bytes()))
}

fn write_ours(spec: &Spec) -> Vec<u8> {
    // Old bytes in the slice must never shine through.
    let mut out = vec![0xEE; 4096];
    let mut writer = Writer::new(&mut out, message_type(spec), TransactionId(spec.transaction));
    let texts = [(one::ATTR_USERNAME, &spec.username), (one::ATTR_REALM, &spec.realm), (one::ATTR_NONCE, &spec.nonce)];
    for (attribute, text) in texts {
        if let Some(text) = text {
            writer.attribute(attribute, text.as_bytes());
        }
    }
    if let Some(lifetime) = spec.lifetime {
        writer.attribute(one::ATTR_LIFETIME, &lifetime.to_be_bytes());
    }
    if let Some(transport) = spec.transport {
        writer.attribute(one::ATTR_REQUESTED_TRANSPORT, &[transport, 0, 0, 0]);
    }
    if let Some(ipv6) = spec.ipv6 {
        writer.attribute(one::ATTR_REQUESTED_ADDRESS_FAMILY, &[1 + u8::from(ipv6), 0, 0, 0]);
    }
    if let Some(next) = spec.even_port {
        writer.attribute(one::ATTR_EVEN_PORT, &[u8::from(next) << 7]);
    }
    if let Some(token) = &spec.token {
        writer.attribute(one::ATTR_RESERVATION_TOKEN, token);
    }
    if spec.dont_fragment {
        writer.attribute(one::ATTR_DONT_FRAGMENT, &[]);
    }
    if let Some(channel) = spec.channel {
        writer.attribute(one::ATTR_CHANNEL_NUMBER, &[channel.to_be_bytes(), [0, 0]].concat());
    }
    for peer in &spec.peers {
        writer.xor_address(one::ATTR_XOR_PEER_ADDRESS, (*peer).into());
    }
    if let Some(mapped) = spec.mapped {
        writer.xor_address(one::ATTR_XORMAPPED_ADDRESS, mapped.into());
    }
    if let Some(relayed) = spec.relayed {
        writer.xor_address(one::ATTR_XOR_RELAYED_ADDRESS, relayed.into());
    }
    if let Some(data) = &spec.data {
        writer.attribute(one::ATTR_DATA, data);
    }
    if let Some((code, reason)) = &spec.error {
        writer.error_code(ErrorCode(*code), reason);
    }
    if let Some(unknown) = &spec.unknown {
        writer.unknown_attributes(unknown);
    }
    if let Some(key) = key(spec) {
        writer.integrity(&key);
    }
    if spec.fingerprint {
        writer.fingerprint();
    }
    let len = writer.finish().unwrap();
    out.truncate(len);
    out
}

fn write_one(spec: &Spec) -> Vec<u8> {
    use one::Setter;
    let mut message = one::Message::new();
    message.set_type(message_type(spec));
    message.transaction_id = one::TransactionId(spec.transaction);
    message.write_header();
    let mut add = |setter: &dyn Setter| setter.add_to(&mut message).unwrap();
    let texts = [(one::ATTR_USERNAME, &spec.username), (one::ATTR_REALM, &spec.realm), (one::ATTR_NONCE, &spec.nonce)];
    for (attribute, text) in texts {
        if let Some(text) = text {
            add(&one::TextAttribute::new(attribute, text.clone()));
        }
    }
    if let Some(lifetime) = spec.lifetime {
        add(&one::Lifetime(std::time::Duration::from_secs(lifetime.into())));
    }
    if let Some(transport) = spec.transport {
        add(&one::RequestedTransport { protocol: turn::proto::Protocol(transport) });
    }
    if let Some(ipv6) = spec.ipv6 {
        add(&one::RequestedAddressFamily(1 + u8::from(ipv6)));
    }
    if let Some(token) = &spec.token {
        add(&one::ReservationToken(token.to_vec()));
    }
    if spec.dont_fragment {
        add(&one::DontFragmentAttr);
    }
    if let Some(channel) = spec.channel {
        add(&one::ChannelNumber(channel));
    }
    for peer in &spec.peers {
        add(&one::PeerAddress { ip: peer.ip(), port: peer.port() });
    }
    if let Some(mapped) = spec.mapped {
        add(&one::XorMappedAddress { ip: mapped.ip(), port: mapped.port() });
    }
    if let Some(relayed) = spec.relayed {
        add(&one::RelayedAddress { ip: relayed.ip(), port: relayed.port() });
    }
    if let Some(data) = &spec.data {
        add(&one::Data(data.clone()));
    }
    if let Some((code, reason)) = &spec.error {
        add(&one::ErrorCodeAttribute { code: ErrorCode(*code), reason: reason.clone().into_bytes() });
    }
    if let Some(unknown) = &spec.unknown {
        add(&one::UnknownAttributes(unknown.iter().map(|kind| AttrType(*kind)).collect()));
    }
    if let Some((user, realm, password)) = signer(spec) {
        add(&one::MessageIntegrity::new_long_term_integrity(user, realm, password));
    }
    if spec.fingerprint {
        add(&one::FINGERPRINT);
    }
    // EVEN-PORT has no public constructor with R there: `turn` can say it only by default.
    message.raw
}

fn two_transaction(transaction: &[u8; 12]) -> two::TransactionId {
    let mut bits = [0; 16];
    bits[4..].copy_from_slice(transaction);
    u128::from_be_bytes(bits).into()
}

fn two_credentials(spec: &Spec) -> Option<two::MessageIntegrityCredentials> {
    signer(spec).map(|(user, realm, password)| two::LongTermKeyCredentials::new(user, password, realm).into())
}

fn write_two(spec: &Spec) -> Vec<u8> {
    use two::{MessageWrite, MessageWriteExt};
    let transaction = two_transaction(&spec.transaction);
    let message_type = two::MessageType::from_bytes(&type_bits(spec).to_be_bytes()).unwrap();
    let mut message = two::Message::builder(message_type, transaction, two::MessageWriteVec::new());
    if let Some(text) = &spec.username {
        message.add_attribute(&two::Username::new(text).unwrap()).unwrap();
    }
    if let Some(text) = &spec.realm {
        message.add_attribute(&two::Realm::new(text).unwrap()).unwrap();
    }
    if let Some(text) = &spec.nonce {
        message.add_attribute(&two::Nonce::new(text).unwrap()).unwrap();
    }
    if let Some(lifetime) = spec.lifetime {
        message.add_attribute(&two::Lifetime::new(lifetime)).unwrap();
    }
    if let Some(transport) = spec.transport {
        message.add_attribute(&two::RequestedTransport::new(transport)).unwrap();
    }
    if let Some(ipv6) = spec.ipv6 {
        let family = if ipv6 { two::AddressFamily::IPV6 } else { two::AddressFamily::IPV4 };
        message.add_attribute(&two::RequestedAddressFamily::new(family)).unwrap();
    }
    if let Some(next) = spec.even_port {
        message.add_attribute(&two::EvenPort::new(next)).unwrap();
    }
    if let Some(token) = spec.token {
        message.add_attribute(&two::ReservationToken::new(u64::from_be_bytes(token))).unwrap();
    }
    if spec.dont_fragment {
        message.add_attribute(&two::DontFragment::new()).unwrap();
    }
    if let Some(channel) = spec.channel {
        message.add_attribute(&two::ChannelNumber::new(channel)).unwrap();
    }
    for peer in &spec.peers {
        message.add_attribute(&two::XorPeerAddress::new(*peer, transaction)).unwrap();
    }
    if let Some(mapped) = spec.mapped {
        message.add_attribute(&two::XorMappedAddress::new(mapped, transaction)).unwrap();
    }
    if let Some(relayed) = spec.relayed {
        message.add_attribute(&two::XorRelayedAddress::new(relayed, transaction)).unwrap();
    }
    if let Some(data) = &spec.data {
        message.add_attribute(&two::Data::new(data)).unwrap();
    }
    if let Some((code, reason)) = &spec.error {
        message.add_attribute(&two::ErrorCode::new(*code, reason).unwrap()).unwrap();
    }
    if let Some(unknown) = &spec.unknown {
        let kinds: Vec<_> = unknown.iter().map(|kind| two::AttributeType::new(*kind)).collect();
        message.add_attribute(&two::UnknownAttributes::new(&kinds)).unwrap();
    }
    if let Some(credentials) = two_credentials(spec) {
        message.add_message_integrity(&credentials, two::IntegrityAlgorithm::Sha1).unwrap();
    }
    if spec.fingerprint {
        message.add_fingerprint().unwrap();
    }
    message.finish()
}

fn text<'a>(message: &Message<'a>, which: Known) -> Option<&'a str> {
    message.get(which).map(|value| std::str::from_utf8(value).unwrap())
}

/// Whether our view finds in a message what the spec says.
fn read_ours(spec: &Spec, bytes: &[u8]) {
    let message = Message::parse(bytes).unwrap();
    assert_eq!(message.message_type().value(), type_bits(spec));
    assert_eq!(message.transaction_id().0, spec.transaction);
    assert_eq!(text(&message, Known::Username), spec.username.as_deref());
    assert_eq!(text(&message, Known::Realm), spec.realm.as_deref());
    assert_eq!(text(&message, Known::Nonce), spec.nonce.as_deref());
    assert_eq!(message.lifetime(), Ok(spec.lifetime));
    assert_eq!(message.requested_transport().unwrap().map(|protocol| protocol.0), spec.transport);
    assert_eq!(
        message.requested_address_family().unwrap().map(|family| family.0),
        spec.ipv6.map(|six| 1 + u8::from(six))
    );
    let even = |next| if next { EvenPort::EvenAndReserveNext } else { EvenPort::Even };
    assert_eq!(message.even_port(), Ok(spec.even_port.map(even)));
    assert_eq!(message.reservation_token().unwrap().map(|token| token.0), spec.token);
    assert_eq!(message.dont_fragment(), Ok(spec.dont_fragment));
    assert_eq!(message.channel_number().unwrap().map(|number| number.0), spec.channel);
    let peers: Vec<PeerAddress> =
        spec.peers.iter().map(|peer| PeerAddress(Address::new(peer.ip(), peer.port()))).collect();
    assert_eq!(message.peer(), Ok(peers.first().copied()));
    assert_eq!(message.peers().map(Result::unwrap).collect::<Vec<_>>(), peers);
    let found = |which| message.get(which).map(|value| xor_address(value, message.transaction_id()).unwrap());
    assert_eq!(found(Known::XorMappedAddress), spec.mapped.map(Address::from));
    assert_eq!(found(Known::XorRelayedAddress), spec.relayed.map(Address::from));
    assert_eq!(message.get(Known::Data), spec.data.as_deref());
    let code = spec.error.as_ref().map(|(code, reason)| {
        let mut value = vec![0, 0, (code / 100) as u8, (code % 100) as u8];
        value.extend(reason.as_bytes());
        value
    });
    assert_eq!(message.get(Known::ErrorCode), code.as_deref());
    let unknown =
        spec.unknown.as_ref().map(|unknown| unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect::<Vec<_>>());
    assert_eq!(message.get(Known::UnknownAttributes), unknown.as_deref());
    assert_eq!(message.unknown(), &[] as &[u16]);
    assert_eq!(message.has(Known::MessageIntegrity), spec.password.is_some());
    if let Some(key) = key(spec) {
        assert!(key.verifies(&message));
        assert!(!IntegrityKey::long_term(b"someone", b"else", b"entirely").verifies(&message));
    }
    let due = if spec.fingerprint { Fingerprint::Right } else { Fingerprint::Absent };
    assert_eq!(check_fingerprint(&message), due);
}

/// Whether the first oracle finds it in ours.
fn read_by_one(spec: &Spec, bytes: &[u8]) {
    use one::Getter;
    let mut message = one::Message::new();
    message.unmarshal_binary(bytes).unwrap();
    assert_eq!(message.typ.value(), type_bits(spec));
    assert_eq!(message.transaction_id.0, spec.transaction);
    let text = |kind| one::TextAttribute::get_from_as(&message, kind).ok().map(|found| found.text);
    assert_eq!(text(one::ATTR_USERNAME), spec.username);
    assert_eq!(text(one::ATTR_REALM), spec.realm);
    assert_eq!(text(one::ATTR_NONCE), spec.nonce);
    let get = |getter: &mut dyn Getter| getter.get_from(&message).is_ok();
    let mut lifetime = one::Lifetime::default();
    assert_eq!(get(&mut lifetime).then_some(lifetime.0.as_secs()), spec.lifetime.map(u64::from));
    let mut transport = one::RequestedTransport::default();
    assert_eq!(get(&mut transport).then_some(transport.protocol.0), spec.transport);
    let mut family = one::RequestedAddressFamily::default();
    assert_eq!(get(&mut family).then_some(family.0 == 2), spec.ipv6);
    let mut even = one::EvenPort::default();
    assert_eq!(get(&mut even).then(|| even.to_string() == "reserve: true"), spec.even_port);
    let mut token = one::ReservationToken::default();
    assert_eq!(get(&mut token).then_some(token.0), spec.token.map(|token| token.to_vec()));
    assert_eq!(get(&mut one::DontFragmentAttr), spec.dont_fragment);
    let mut channel = one::ChannelNumber::default();
    assert_eq!(get(&mut channel).then_some(channel.0), spec.channel);
    let mut peer = one::PeerAddress::default();
    assert_eq!(get(&mut peer).then(|| SocketAddr::new(peer.ip, peer.port)), spec.peers.first().copied());
    let mut mapped = one::XorMappedAddress::default();
    assert_eq!(get(&mut mapped).then(|| SocketAddr::new(mapped.ip, mapped.port)), spec.mapped);
    let mut relayed = one::RelayedAddress::default();
    assert_eq!(get(&mut relayed).then(|| SocketAddr::new(relayed.ip, relayed.port)), spec.relayed);
    let mut data = one::Data::default();
    assert_eq!(get(&mut data).then_some(data.0), spec.data);
    let mut error = one::ErrorCodeAttribute::default();
    let found = get(&mut error).then(|| (error.code.0, String::from_utf8(error.reason).unwrap()));
    assert_eq!(found, spec.error);
    let mut unknown = one::UnknownAttributes(Vec::new());
    assert_eq!(get(&mut unknown).then(|| unknown.0.iter().map(|kind| kind.0).collect::<Vec<_>>()), spec.unknown);
    if spec.fingerprint {
        one::FINGERPRINT.check(&message).unwrap();
    }
    if let Some((user, realm, password)) = signer(spec) {
        one::MessageIntegrity::new_long_term_integrity(user, realm, password).check(&mut message).unwrap();
    }
}

/// Whether the second oracle finds it in ours; it checks FINGERPRINT when it parses.
fn read_by_two(spec: &Spec, bytes: &[u8]) {
    let message = two::Message::from_bytes(bytes).unwrap();
    let transaction = two_transaction(&spec.transaction);
    assert_eq!(message.transaction_id(), transaction);
    assert_eq!(message.method().value(), spec.method);
    assert_eq!(message.attribute::<two::Username>().ok().map(|found| found.username().to_owned()), spec.username);
    assert_eq!(message.attribute::<two::Realm>().ok().map(|found| found.realm().to_owned()), spec.realm);
    assert_eq!(message.attribute::<two::Nonce>().ok().map(|found| found.nonce().to_owned()), spec.nonce);
    assert_eq!(message.attribute::<two::Lifetime>().ok().map(|found| found.seconds()), spec.lifetime);
    assert_eq!(message.attribute::<two::RequestedTransport>().ok().map(|found| found.protocol()), spec.transport);
    let family = message.attribute::<two::RequestedAddressFamily>().ok();
    assert_eq!(family.map(|found| found.family() == two::AddressFamily::IPV6), spec.ipv6);
    assert_eq!(message.attribute::<two::EvenPort>().ok().map(|found| found.requested()), spec.even_port);
    let token = message.attribute::<two::ReservationToken>().ok();
    assert_eq!(token.map(|found| found.token().to_be_bytes()), spec.token);
    assert_eq!(message.attribute::<two::DontFragment>().is_ok(), spec.dont_fragment);
    assert_eq!(message.attribute::<two::ChannelNumber>().ok().map(|found| found.channel()), spec.channel);
    for (n, peer) in spec.peers.iter().enumerate() {
        assert_eq!(message.nth_attribute::<two::XorPeerAddress>(n).unwrap().addr(transaction), *peer);
    }
    let mapped = message.attribute::<two::XorMappedAddress>().ok();
    assert_eq!(mapped.map(|found| found.addr(transaction)), spec.mapped);
    let relayed = message.attribute::<two::XorRelayedAddress>().ok();
    assert_eq!(relayed.map(|found| found.addr(transaction)), spec.relayed);
    assert_eq!(message.attribute::<two::Data>().ok().map(|found| found.data().to_vec()), spec.data);
    let error = message.attribute::<two::ErrorCode>().ok();
    assert_eq!(error.map(|found| (found.code(), found.reason().to_owned())), spec.error);
    let unknown = message.attribute::<two::UnknownAttributes>().ok();
    assert_eq!(unknown.is_some(), spec.unknown.is_some());
    if let (Some(found), Some(due)) = (unknown, &spec.unknown) {
        assert!(due.iter().all(|kind| found.has_attribute(two::AttributeType::new(*kind))));
    }
    if let Some(credentials) = two_credentials(spec) {
        message.validate_integrity(&credentials).unwrap();
    }
}

/// The kinds of damage that a packet may suffer.
fn damage(bytes: &mut Vec<u8>, edits: &[(u8, u16, u8)]) {
    for &(kind, at, value) in edits {
        if bytes.is_empty() {
            return;
        }
        let at = usize::from(at) % bytes.len();
        match kind % 6 {
            0 => bytes[at] ^= 1 << (value % 8),
            1 => bytes.truncate(at),
            2 => bytes.push(value),
            3 => bytes[at] = value,
            4 => {
                // The length field lies.
                if let Some(low) = bytes.get_mut(3) {
                    *low = value;
                }
            }
            _ => {
                bytes.remove(at);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    // [8489-5-1, -2, -4, 8489-14-1, -2, -3, 8489-14.2-1, 8489-14.7-2, 8656-18-1]
    #[test]
    fn what_we_write_the_oracles_and_we_read(spec in spec()) {
        let bytes = write_ours(&spec);
        read_ours(&spec, &bytes);
        read_by_one(&spec, &bytes);
        read_by_two(&spec, &bytes);
    }

    // [8489-14-4, 8489-14.8-2]
    #[test]
    fn what_the_oracles_write_we_read(mut spec in spec()) {
        read_ours(&spec, &write_two(&spec));
        // Padding and order are the same, so that the bytes are.
        prop_assert_eq!(write_ours(&spec), write_two(&spec));
        spec.even_port = None;
        read_ours(&spec, &write_one(&spec));
    }

    #[test]
    fn data_indication_head_payload_and_padding_make_a_message(
        peer in address(), transaction in any::<[u8; 12]>(), payload in vec(any::<u8>(), 0..2000),
    ) {
        let mut head = [0xEE; DATA_INDICATION_HEAD_MAX];
        let len = data_indication_head(&mut head, TransactionId(transaction), peer.into(), payload.len()).unwrap();
        let mut whole = head[..len].to_vec();
        whole.extend(&payload);
        whole.resize(whole.len().next_multiple_of(4), 0);
        let transaction = two_transaction(&transaction);
        let message = two::Message::from_bytes(&whole).unwrap();
        prop_assert_eq!(message.get_type().to_bytes(), vec![0, 0x17]);
        prop_assert_eq!(message.transaction_id(), transaction);
        prop_assert_eq!(message.attribute::<two::XorPeerAddress>().unwrap().addr(transaction), peer);
        let found = message.attribute::<two::Data>().unwrap();
        prop_assert_eq!(found.data(), &payload[..]);
        let mut other = one::Message::new();
        other.unmarshal_binary(&whole).unwrap();
        prop_assert_eq!(other.get(one::ATTR_DATA).unwrap(), payload);
    }

    // [8656-12.5-2]
    #[test]
    fn channel_data_agrees_with_both(number in 0x4000_u16..0x7FFF, payload in vec(any::<u8>(), 0..2000)) {
        let mut ours = channel_data::head(ChannelNumber(number), payload.len() as u16).to_vec();
        ours.extend(&payload);
        let mut theirs = vec![0; payload.len() + 4];
        two::ChannelData::new(number, &payload).write_into_unchecked(&mut theirs);
        prop_assert_eq!(&ours, &theirs);
        ours.extend(&[0; 3][..channel_data::padding(ours.len())]);
        let mut padded = one::ChannelData { data: payload.clone(), number: ChannelNumber(number), raw: Vec::new() };
        padded.encode();
        prop_assert_eq!(&ours, &padded.raw);
        padded.decode().unwrap();
        prop_assert_eq!(&padded.data, &payload);
        let due = ChannelData { number: ChannelNumber(number), payload: &payload };
        prop_assert_eq!(ChannelData::parse(&theirs), Some(due));
        prop_assert_eq!(ChannelData::parse(&ours), Some(due));
        prop_assert_eq!(cut(&ours), Cut::Frame { message: theirs.len(), consumed: ours.len() });
        // What is legal there beyond 0x7FFE is not here; below it, both say the same of any bytes.
        let read = two::ChannelData::parse(&theirs[..theirs.len().min(7)]).ok().map(|read| read.data().to_vec());
        let found = ChannelData::parse(&theirs[..theirs.len().min(7)]).map(|found| found.payload.to_vec());
        prop_assert_eq!(found, read);
    }

    #[test]
    fn a_writer_never_writes_past_its_slice(spec in spec(), room in 0_usize..400) {
        let whole = write_ours(&spec);
        let mut out = vec![0xEE; room + 8];
        let message_type = MessageType::default();
        let mut writer = Writer::new(&mut out[..room], message_type, TransactionId(spec.transaction));
        for which in 0..4_u16 {
            writer.attribute(AttrType(which), spec.data.as_deref().unwrap_or_default());
        }
        writer.error_code(ErrorCode(400), "x").unknown_attributes(&[1, 2, 3]).integrity(&IntegrityKey::from_md5([1; 16])).fingerprint();
        if let Some(len) = writer.finish() {
            prop_assert!(len <= room && Message::parse(&out[..len]).is_ok());
        }
        prop_assert_eq!(&out[room..], &[0xEE; 8]);
        prop_assert!(Message::parse(&whole).is_ok());
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..600)) {
        targets::datagram(&bytes);
        targets::message(&bytes);
        targets::server(&bytes);
    }

    #[test]
    fn no_damaged_message_panics(spec in spec(), edits in vec((any::<u8>(), any::<u16>(), any::<u8>()), 1..6)) {
        let mut bytes = write_ours(&spec);
        let before = bytes.clone();
        damage(&mut bytes, &edits);
        targets::datagram(&bytes);
        targets::message(&bytes);
        targets::server(&bytes);
        // Nothing before MESSAGE-INTEGRITY can change without the key noticing.
        if let (Some(key), Ok(message)) = (key(&spec), Message::parse(&bytes))
            && key.verifies(&message) {
                let end = message.head_of(Known::MessageIntegrity).unwrap();
                prop_assert_eq!(&bytes[..2], &before[..2]);
                prop_assert_eq!(&bytes[4..end], &before[4..end]);
            }
    }

    // [8656-12.6-3]
    #[test]
    fn frames_do_not_depend_on_segment_borders(
        parts in vec((spec(), any::<bool>(), vec(any::<u8>(), 0..40)), 1..8), cuts in vec(1_usize..90, 1..60),
    ) {
        let mut stream = Vec::new();
        let mut due = Vec::new();
        for (spec, channel, payload) in parts {
            let frame = if channel {
                [&channel_data::head(ChannelNumber(0x4000), payload.len() as u16)[..], &payload].concat()
            } else {
                write_ours(&spec)
            };
            stream.extend(&frame);
            stream.resize(stream.len().next_multiple_of(4), 0);
            due.push(frame);
        }
        let (mut received, mut frames, mut rest) = (Vec::new(), Vec::new(), &stream[..]);
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (segment, later) = rest.split_at(rest.len().min(*size));
            received.extend(segment);
            rest = later;
            while let Cut::Frame { message, consumed } = cut(&received) {
                frames.push(received[..message].to_vec());
                received.drain(..consumed);
            }
            prop_assert_ne!(cut(&received), Cut::Broken);
        }
        prop_assert_eq!(frames, due);
        prop_assert!(received.is_empty());
    }
}

/// A vector of RFC 5769.
fn vector(name: &str) -> Vec<u8> {
    let file = include_str!("vectors/rfc5769.txt");
    let lines = file.lines().skip_while(|line| *line != name).skip(1).take_while(|line| line.starts_with("  "));
    let digits: String = lines.map(str::trim).collect();
    assert!(!digits.is_empty(), "no vector {name}");
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).unwrap()).collect()
}

/// A short-term MESSAGE-INTEGRITY, computed from the offsets of our view (RFC 8489 section 14.5).
fn short_term_verifies(message: &Message<'_>, password: &str) -> bool {
    let head = message.head_of(Known::MessageIntegrity).unwrap();
    let mut covered = message.bytes()[..head].to_vec();
    covered[2..4].copy_from_slice(&((head + 24 - 20) as u16).to_be_bytes());
    let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(password.as_bytes()).unwrap();
    mac.update(&covered);
    mac.finalize().into_bytes()[..] == *message.get(Known::MessageIntegrity).unwrap()
}

const RFC5769_PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";

const RFC5769_TRANSACTION: [u8; 12] = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

#[test]
fn rfc5769_2_1_request() {
    let bytes = vector("request-2.1");
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.message_type().value(), 0x0001);
    assert_eq!(message.transaction_id().0, RFC5769_TRANSACTION);
    assert_eq!(text(&message, Known::Username), Some("evtj:h6vY"), "padding of 0x20 is not part of the value");
    // PRIORITY is unknown to us and must be understood; ICE-CONTROLLED and SOFTWARE need not be.
    assert_eq!(message.unknown(), [0x0024]);
    assert!(short_term_verifies(&message, RFC5769_PASSWORD));
    assert!(!short_term_verifies(&message, "another"));
    assert_eq!(check_fingerprint(&message), Fingerprint::Right);
    assert!(!IntegrityKey::from_md5([0; 16]).verifies(&message));
}

// [8489-14.2-1, 8489-14.5-1, 8489-14.7-2]
#[test]
fn rfc5769_2_2_response_ipv4() {
    let bytes = vector("response-ipv4-2.2");
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.message_type().value(), 0x0101);
    let mapped = xor_address(message.get(Known::XorMappedAddress).unwrap(), message.transaction_id());
    assert_eq!(mapped, Ok("192.0.2.1:32853".parse::<SocketAddr>().unwrap().into()));
    assert!(short_term_verifies(&message, RFC5769_PASSWORD) && message.unknown().is_empty());
    assert_eq!(check_fingerprint(&message), Fingerprint::Right);
}

// [8489-14.2-1]
#[test]
fn rfc5769_2_3_response_ipv6() {
    let bytes = vector("response-ipv6-2.3");
    let message = Message::parse(&bytes).unwrap();
    let mapped = xor_address(message.get(Known::XorMappedAddress).unwrap(), message.transaction_id());
    let due = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse::<SocketAddr>().unwrap();
    assert_eq!(mapped, Ok(due.into()));
    assert!(short_term_verifies(&message, RFC5769_PASSWORD));
    assert_eq!(check_fingerprint(&message), Fingerprint::Right);
}

// [8489-9.2.2-1]
#[test]
fn rfc5769_2_4_request_with_long_term_authentication() {
    let bytes = vector("request-long-term-2.4");
    let message = Message::parse(&bytes).unwrap();
    let username = text(&message, Known::Username).unwrap();
    assert_eq!(username, "マトリックス");
    assert_eq!(text(&message, Known::Nonce), Some("f//499k954d6OL34oL9FSTvy64sA"));
    let realm = text(&message, Known::Realm).unwrap();
    assert_eq!(realm, "example.org");
    assert!(IntegrityKey::long_term(username.as_bytes(), realm.as_bytes(), "TheMatrIX".as_bytes()).verifies(&message));
    assert!(!IntegrityKey::long_term(username.as_bytes(), realm.as_bytes(), "TheMatrix".as_bytes()).verifies(&message));
    assert_eq!(check_fingerprint(&message), Fingerprint::Absent);
}

#[test]
fn every_single_bit_of_the_vectors_counts() {
    for name in ["request-2.1", "response-ipv4-2.2", "response-ipv6-2.3"] {
        let bytes = vector(name);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // FINGERPRINT covers all before itself; one of its own type field makes another attribute of it.
            let noticed =
                Message::parse(&flipped).map_or(true, |message| check_fingerprint(&message) != Fingerprint::Right);
            assert!(noticed, "{name}: bit {bit}");
        }
    }
}
