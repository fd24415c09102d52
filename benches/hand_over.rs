//! What handing 10,000 allocations over costs in the moment in which nothing is read, when most went early and 200 have
//! changed since: each of the four steps, of a worker's server and of the quotas. Target: 100 ns an allocation and step.
//!
//! `whole` is the same without an early part.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use test_support::harness::{Client, Harness, addr, user};
use throughway::net::shared::{SharedChanges, SharedState};
use throughway::protocol::Server;
use throughway::protocol::allocation::AllocationState;
use throughway::protocol::changes::ServerChanges;
use throughway::protocol::meter::Rates;
use throughway::protocol::quota::Quotas;
use throughway::state::{self, FORMAT};

fn main() {
    divan::main();
}

const ALLOCATIONS: usize = 10_000;
const PEER: &str = "8.8.8.8:1000";

/// What the allocations are like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// As most are.
    Plain,
    /// Each has a meter of its own, its user and its client have one, and it dropped something before the early part.
    Metered,
}

const KINDS: [Kind; 2] = [Kind::Plain, Kind::Metered];

struct Scene {
    h: Harness,
    early: Vec<AllocationState>,
    early_shared: SharedState,
}

fn relay(h: &mut Harness, client: Client) {
    h.channel_data(client, 0x4001, b"hello").to_peer();
    h.from_peer(client, addr(PEER), b"hello back").to_client();
}

/// After the early part, and 200 changes.
fn scene(kind: Kind) -> Scene {
    let mut h = Harness::workers(1, |settings| {
        let limits = &mut settings.limits;
        limits.allocations = None;
        limits.burst_ms = 1_000;
        if kind == Kind::Metered {
            let rates = Rates { bits_per_second: Some(8_000_000), packets_per_second: None };
            (limits.allocation, limits.user, limits.client) = (rates, rates, rates);
        }
    });
    h.is_unchecked = true;
    let clients: Vec<Client> = (0..ALLOCATIONS)
        .map(|number| {
            let client = h.add(user(&format!("user{number}")));
            h.allocate(client);
            assert_eq!(h.bind(client, 0x4001, addr(PEER)), 0);
            relay(&mut h, client);
            if kind == Kind::Metered {
                h.channel_data(client, 0x4002, b"unbound");
            }
            client
        })
        .collect();
    let early_shared = h.books.export_early();
    let server = h.first_server();
    server.begin_early_export();
    let (early, _) = server.early_export(0, usize::MAX);
    for client in &clients {
        relay(&mut h, *client);
    }
    for client in clients.iter().step_by(100) {
        assert_eq!(h.permit(*client, &[addr("8.8.4.4:9")]), 0);
    }
    for client in clients.iter().skip(1).step_by(200) {
        assert_eq!(h.refresh(*client, 0).code(), 0);
        let client = h.add(user("late"));
        h.allocate(client);
    }
    Scene { h, early, early_shared }
}

fn items() -> ItemsCount {
    ItemsCount::new(ALLOCATIONS)
}

fn successor(scene: &Scene) -> Server {
    let (mut server, _) = scene.h.successor(0);
    server.import_early(scene.early.clone()).expect("its own allocations");
    server
}

#[divan::bench(args = KINDS, sample_count = 50)]
fn server_1_export(bencher: Bencher<'_, '_>, kind: Kind) {
    let mut scene = scene(kind);
    let server = scene.h.first_server();
    let changes = server.export_changes();
    assert!(changes.counts.0.len() > 9_700 && (150..250).contains(&changes.allocations.len()), "{changes:?}");
    bencher.counter(items()).bench_local(|| black_box(server.export_changes()));
}

#[divan::bench(args = KINDS, sample_count = 50)]
fn server_2_write(bencher: Bencher<'_, '_>, kind: Kind) {
    let changes = scene(kind).h.first_server().export_changes();
    bencher.counter(items()).bench_local(|| state::write(black_box(&changes), FORMAT).expect("plain values"));
}

#[divan::bench(args = KINDS, sample_count = 50)]
fn server_3_read(bencher: Bencher<'_, '_>, kind: Kind) {
    let changes = scene(kind).h.first_server().export_changes();
    let bytes = state::write(&changes, FORMAT).expect("plain values");
    bencher.counter(items()).bench_local(|| state::read::<ServerChanges>(black_box(&bytes)).expect("what was written"));
}

#[divan::bench(args = KINDS, sample_count = 20, sample_size = 1)]
fn server_4_import(bencher: Bencher<'_, '_>, kind: Kind) {
    let mut scene = scene(kind);
    let changes = scene.h.first_server().export_changes();
    bencher.counter(items()).with_inputs(|| (successor(&scene), changes.clone())).bench_local_values(
        |(mut server, changes)| {
            server.import_changes(changes).expect("its own changes");
            server
        },
    );
}

#[divan::bench(args = KINDS, sample_count = 20)]
fn server_whole_export(bencher: Bencher<'_, '_>, kind: Kind) {
    let mut scene = scene(kind);
    let server = scene.h.first_server();
    bencher.counter(items()).bench_local(|| black_box(server.export()));
}

#[divan::bench(args = KINDS, sample_count = 50)]
fn shared_1_export(bencher: Bencher<'_, '_>, kind: Kind) {
    let scene = scene(kind);
    bencher.counter(items()).bench_local(|| black_box(scene.h.books.export_changes()));
}

#[divan::bench(args = KINDS, sample_count = 50)]
fn shared_2_write(bencher: Bencher<'_, '_>, kind: Kind) {
    let changes = scene(kind).h.books.export_changes();
    bencher.counter(items()).bench_local(|| state::write(black_box(&changes), FORMAT).expect("plain values"));
}

#[divan::bench(args = KINDS, sample_count = 50)]
fn shared_3_read(bencher: Bencher<'_, '_>, kind: Kind) {
    let bytes = state::write(&scene(kind).h.books.export_changes(), FORMAT).expect("plain values");
    bencher.counter(items()).bench_local(|| state::read::<SharedChanges>(black_box(&bytes)).expect("what was written"));
}

#[divan::bench(args = KINDS, sample_count = 20, sample_size = 1)]
fn shared_4_import(bencher: Bencher<'_, '_>, kind: Kind) {
    let scene = scene(kind);
    let changes = scene.h.books.export_changes();
    let quotas = || Quotas::from_early_state(scene.early_shared.quotas.clone());
    bencher.counter(items()).with_inputs(|| (quotas(), changes.clone())).bench_local_values(
        |(mut quotas, changes): (Quotas, SharedChanges)| {
            quotas.import_changes(changes.quotas).expect("its own changes");
            quotas
        },
    );
}

#[divan::bench(args = KINDS, sample_count = 20)]
fn shared_whole_export(bencher: Bencher<'_, '_>, kind: Kind) {
    let scene = scene(kind);
    bencher.counter(items()).bench_local(|| black_box(scene.h.books.export()));
}
