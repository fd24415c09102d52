//! What a packet costs between the sockets: ChannelData of a client and a datagram of its peer, through an
//! allocation without limits and through one that passes all six meters and both budgets.

use divan::{AllocProfiler, Bencher, black_box};
use test_support::harness::{Client, Harness, addr, channel_data, user};
use throughway::address::PeerAddress;
use throughway::protocol::border::{PacketMeta, Relay};
use throughway::protocol::meter::Rates;
use throughway::protocol::settings::Settings;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const PEER: &str = "8.8.8.8:1000";
const CHANNEL: u16 = 0x4000;
const PAYLOAD: [u8; 160] = [0x5A; 160];

fn calling(edit: impl FnOnce(&mut Settings)) -> (Harness, Client) {
    let mut h = Harness::workers(1, edit);
    let client = h.add(user("bob"));
    h.allocate(client);
    assert_eq!(h.bind(client, CHANNEL, addr(PEER)), 0);
    (h, client)
}

fn unlimited() -> (Harness, Client) {
    // Every allocation has a packet rate; this one is not reached.
    calling(|settings| {
        settings.limits.allocation = Rates { bits_per_second: None, packets_per_second: Some(1_000_000) };
        settings.limits.burst_ms = 60_000;
    })
}

/// Limits that no loop reaches: what is measured is a packet that passes.
fn with_six_meters() -> (Harness, Client) {
    let wide = Rates { bits_per_second: Some(u64::MAX - 1), packets_per_second: Some(u64::MAX - 1) };
    calling(|settings| {
        settings.auth.secrets[0].tenant = Some("acme".into());
        let limits = &mut settings.limits;
        (limits.server, limits.tenant, limits.client) = (wide, wide, wide);
        (limits.user, limits.credential, limits.allocation) = (wide, wide, wide);
        (limits.bytes_per_credential, limits.bytes_per_user_per_day) = (Some(u64::MAX - 1), Some(u64::MAX - 1));
    })
}

fn from_client(bencher: Bencher<'_, '_>, (mut h, client): (Harness, Client)) {
    let (via, now) = (h.via(client), h.now);
    let bytes = channel_data(CHANNEL, &PAYLOAD);
    let server = h.first_server();
    bencher.bench_local(|| {
        let verdict = server.relay_from_client(now, &via, PacketMeta::default(), black_box(&bytes));
        assert!(matches!(black_box(verdict), Relay::ToPeer { .. }));
    });
}

fn from_peer(bencher: Bencher<'_, '_>, (mut h, client): (Harness, Client)) {
    let (id, now) = (h.session(client).expect("it is alive").allocation, h.now);
    let from = PeerAddress::from(addr(PEER));
    let server = h.first_server();
    bencher.bench_local(|| {
        let verdict = server.relay_from_peer(now, id, from, PacketMeta::default(), black_box(&PAYLOAD));
        assert!(matches!(black_box(verdict), Relay::ToClient { .. }));
    });
}

#[divan::bench]
fn from_client_without_limits(bencher: Bencher<'_, '_>) {
    from_client(bencher, unlimited());
}

#[divan::bench]
fn from_client_through_six_meters(bencher: Bencher<'_, '_>) {
    from_client(bencher, with_six_meters());
}

#[divan::bench]
fn from_peer_without_limits(bencher: Bencher<'_, '_>) {
    from_peer(bencher, unlimited());
}

#[divan::bench]
fn from_peer_through_six_meters(bencher: Bencher<'_, '_>) {
    from_peer(bencher, with_six_meters());
}
