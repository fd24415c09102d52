//! What the wire costs per message. Targets, on one core: an authenticated Allocate parsed and verified 500 ns
//! with the key at hand and 1.1 us with the time-limited password derived, a bare Binding answered 60 ns,
//! ChannelData parsed 5 ns; and nothing allocated by any of them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use divan::{AllocProfiler, Bencher, black_box};
use stun::attributes::ATTR_REQUESTED_TRANSPORT;
use throughway::address::{Address, ClientAddress, PeerAddress};
use throughway::credentials::{Algorithm, Secret, SharedSecret, parse_username, password};
use throughway::protocol::binding::{ANSWER_BYTES_MAX, BindingAnswer, answer};
use throughway::wire::attribute::{ATTR_DATA, ATTR_NONCE, ATTR_REALM, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS};
use throughway::wire::channel_data::ChannelData;
use throughway::wire::integrity::IntegrityKey;
use throughway::wire::message::{
    CLASS_INDICATION, CLASS_REQUEST, Known, METHOD_ALLOCATE, METHOD_BINDING, METHOD_SEND, Message, MessageType, Method,
    TransactionId,
};
use throughway::wire::writer::{DATA_INDICATION_HEAD_MAX, Writer, data_indication_head};
use throughway::wire::{Class, classify};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const REALM: &[u8] = b"throughway";
const USERNAME: &str = "1900000000:alice@example.org";
const PAYLOAD: usize = 160;

fn secret() -> SharedSecret {
    SharedSecret::new("bench", Secret::new(*b"a secret of thirty-two bytes len"), Algorithm::Sha1)
}

fn key() -> IntegrityKey {
    IntegrityKey::long_term(USERNAME.as_bytes(), REALM, password(&secret(), USERNAME.as_bytes()).as_bytes())
}

fn address() -> Address {
    Address::from(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 33), 49_152)))
}

fn request(method: Method, fill: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let class = if method == METHOD_SEND { CLASS_INDICATION } else { CLASS_REQUEST };
    let mut bytes = vec![0; 1_500];
    let mut writer = Writer::new(&mut bytes, MessageType { method, class }, TransactionId([7; 12]));
    fill(&mut writer);
    let length = writer.finish().expect("the message fits");
    bytes.truncate(length);
    bytes
}

fn allocate() -> Vec<u8> {
    request(METHOD_ALLOCATE, |writer| {
        writer
            .attribute(ATTR_REQUESTED_TRANSPORT, &[17, 0, 0, 0])
            .attribute(ATTR_USERNAME, USERNAME.as_bytes())
            .attribute(ATTR_REALM, REALM)
            .attribute(ATTR_NONCE, b"0123456789abcdef01234567")
            .integrity(&key());
    })
}

#[divan::bench]
fn allocate_verified_with_the_key_at_hand(bencher: Bencher<'_, '_>) {
    let (bytes, key) = (allocate(), key());
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&bytes)).expect("well formed");
        assert!(key.verifies(&message));
    });
}

#[divan::bench]
fn allocate_verified_with_the_password_derived(bencher: Bencher<'_, '_>) {
    let (bytes, secret) = (allocate(), secret());
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&bytes)).expect("well formed");
        let username = message.get(Known::Username).expect("it has one");
        let text = std::str::from_utf8(username).expect("it is text");
        assert!(parse_username(text).is_some());
        let key = IntegrityKey::long_term(username, REALM, password(&secret, username).as_bytes());
        assert!(key.verifies(&message));
    });
}

#[divan::bench]
fn binding_answered(bencher: Bencher<'_, '_>) {
    let bytes = request(METHOD_BINDING, |_| {});
    let client = ClientAddress::new(address().ip, address().port);
    bencher.bench_local(|| {
        let mut out = [0; ANSWER_BYTES_MAX];
        let message = Message::parse(black_box(&bytes)).expect("well formed");
        assert_eq!(answer(&message, client, None, &mut out), BindingAnswer::Success(32));
        black_box(out);
    });
}

/// What the harness itself costs per iteration; part of every figure.
#[divan::bench]
fn nothing(bencher: Bencher<'_, '_>) {
    let bytes = vec![0x40; 4 + PAYLOAD];
    bencher.bench_local(|| {
        black_box(Some(black_box(&bytes[..])));
    });
}

#[divan::bench]
fn channel_data_parsed(bencher: Bencher<'_, '_>) {
    let mut bytes = vec![0x40, 1, 0, PAYLOAD as u8];
    bytes.resize(4 + PAYLOAD, 0x5A);
    bencher.bench_local(|| {
        let bytes = black_box(&bytes[..]);
        assert_eq!(classify(bytes), Class::ChannelData);
        black_box(ChannelData::parse(bytes));
    });
}

#[divan::bench]
fn data_indication_head_written(bencher: Bencher<'_, '_>) {
    let peer = PeerAddress(address());
    bencher.bench_local(|| {
        let mut out = [0; DATA_INDICATION_HEAD_MAX];
        assert_eq!(data_indication_head(&mut out, TransactionId([7; 12]), black_box(peer), PAYLOAD), Some(36));
        black_box(out);
    });
}

#[divan::bench]
fn send_indication_parsed(bencher: Bencher<'_, '_>) {
    let bytes = request(METHOD_SEND, |writer| {
        writer.xor_address(ATTR_XOR_PEER_ADDRESS, address()).attribute(ATTR_DATA, &[0x5A; PAYLOAD]);
    });
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&bytes)).expect("well formed");
        let peer = message.peer().expect("an IPv4 address").expect("it has one");
        black_box((peer, message.get(Known::Data)));
    });
}
