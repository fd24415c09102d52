//! The state of a server as bytes: every field is written and read, older and newer releases understand each other, and
//! what earlier releases wrote is read for ever.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test --test state` writes the samples of the newest format anew; those of a format that was
//! released stay as they are.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Debug;
use std::path::PathBuf;

use ciborium::Value;
use test_support::harness;
use test_support::harness::stun::allocate;
use test_support::harness::{Client, Harness, SECRET, START_UNIX, Spec, addr, alice, secret, user};
use throughway::address::{FiveTuple, StreamId, Transport};
use throughway::credentials::claims::{ClaimSet, Claims, Grant, PeerScope, Transports};
use throughway::credentials::{Algorithm, SharedSecret, mint};
use throughway::net::record::{DirectionState, RecordState};
use throughway::net::shared::{SharedChanges, SharedState};
use throughway::net::stream_state::{CipherState, FrameState, QueueState, StreamState, StreamsState, TlsState};
use throughway::protocol::changes::{EarlyAllocations, ServerChanges};
use throughway::protocol::export::ServerState;
use throughway::protocol::ids::WorkerId;
use throughway::protocol::meter::Rates;
use throughway::protocol::overrides::{RunTimeLimit, RunTimeLimits};
use throughway::protocol::quota_state::QuotasChanges;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::revocation::Subject;
use throughway::state::{self, FORMAT, FORMAT_MIN, HEAD, LINK_LOCAL_CLIENTS, State, StateError};
use throughway::time::{Now, Ticks, UnixSeconds};

const PEER: &str = "8.8.8.8:99";

fn claims_secret() -> SharedSecret {
    SharedSecret {
        claims: ClaimSet::LIMITS,
        tenant: Some("acme".into()),
        ..secret("claims", SECRET, Algorithm::Sha256)
    }
}

fn with_grant(grant: Grant) -> Spec {
    let claims = Claims { grant, ..Claims::default() };
    let minted = mint(&claims_secret(), START_UNIX, "dora", 1800, &claims).unwrap();
    alice().named(&minted.username, &minted.password)
}

fn full_grant() -> Grant {
    Grant {
        bytes: Some(1 << 30),
        bytes_per_day: None,
        bits_per_second: Some(4_000_000),
        packets_per_second: None,
        allocations: Some(3),
        peers: vec![PeerScope::Prefixes(["8.8.8.0/24".parse().unwrap()].into())],
        transports: Some(Transports::of(&[Transport::Udp, Transport::Tcp])),
        closes_at: Some(START_UNIX + 900),
    }
}

/// Every limit that can be set at run time.
fn all_limits() -> RunTimeLimits {
    RunTimeLimits {
        allocations: Some(RunTimeLimit::At(7)),
        bandwidth: Some(RunTimeLimit::At(64_000)),
        packet_rate: Some(RunTimeLimit::None),
        bytes_per_day: Some(RunTimeLimit::At(1 << 33)),
    }
}

/// Two workers on which there is one of everything that a state can hold; and three clients, whose requests wait for an
/// admission, for another worker, and for a socket.
fn one_of_everything() -> (Harness, [Client; 3]) {
    let mut h = Harness::workers(2, |settings| {
        settings.auth.secrets = vec![claims_secret(), secret("main", SECRET, Algorithm::Sha1)];
        settings.limits.allocations_per_user = Some(20);
        settings.limits.allocations_per_user_per_minute = Some(60);
        settings.limits.allocation = Rates { packets_per_second: Some(50), bits_per_second: Some(1_000_000) };
        settings.limits.user = Rates { bits_per_second: Some(8_000_000), packets_per_second: Some(500) };
        settings.limits.bytes_per_user_per_day = Some(1 << 40);
        settings.limits.burst_ms = 1_000;
        settings.interim_seconds = 60;
    });
    let busy = h.add(alice().from("7.7.7.1:1").on_worker(0));
    h.allocate(busy);
    assert_eq!((h.permit(busy, &[addr(PEER)]), h.bind(busy, 0x4001, addr(PEER))), (0, 0));
    h.channel_data(busy, 0x4001, b"hello").to_peer();
    h.from_peer(busy, addr(PEER), b"hello back").to_client();
    h.channel_data(busy, 0x4002, b"unbound");
    h.not_sent(busy, Direction::ToPeer, 1, 5, DropReason::SlowClient);
    for spec in [
        with_grant(full_grant()).from("7.7.7.2:2").on_worker(0),
        with_grant(Grant { peers: vec![PeerScope::Relay], ..Grant::default() }).from("7.7.7.3:3").tcp().on_worker(1),
        user("emil").ipv6().on_worker(1),
    ] {
        let client = h.add(spec);
        h.allocate(client);
    }
    let holder = h.add(user("fred").from("7.7.7.5:5").on_worker(1));
    let token = h.ask(holder, allocate().even_port(true)).token();
    h.books.revoke(Subject::User { user: "gerd".into(), tenant: Some("acme".into()) }, UnixSeconds(START_UNIX + 60));
    h.books.revoke(Subject::Tenant("else".into()), UnixSeconds(START_UNIX + 60));
    h.books.revoke(Subject::Credential("1:x".into()), UnixSeconds(START_UNIX + 60));
    h.books.set_limits(
        Subject::User { user: "gerd".into(), tenant: Some("acme".into()) },
        all_limits(),
        UnixSeconds(START_UNIX),
    );
    h.books.set_limits(Subject::Tenant("else".into()), all_limits(), UnixSeconds(START_UNIX));
    // One request waits for each answer that a request can wait for.
    let waits = |h: &mut Harness, spec: Spec, message: &harness::stun::Outgoing| -> Client {
        let client = h.add(spec);
        h.nonce_of(client);
        let bytes = h.signed(client, message);
        assert_eq!(h.tell(client, &bytes), []);
        client
    };
    h.hold_back_admissions = true;
    let for_admission = waits(&mut h, user("hans").from("7.7.7.6:6").on_worker(0), &allocate());
    h.hold_back_admissions = false;
    h.hold_back_asks = true;
    let for_worker = waits(&mut h, user("fred").from("7.7.7.7:7").on_worker(0), &allocate().token(&token));
    h.hold_back_opens = true;
    let for_socket = waits(&mut h, user("ines").from("7.7.7.8:8").on_worker(0), &allocate().even_port(true));
    (h, [for_admission, for_worker, for_socket])
}

fn states(h: &mut Harness) -> (ServerState, SharedState) {
    (h.first_server().export(), h.books.export())
}

/// The first worker in two parts, between which one allocation ended, one changed, and one relayed.
fn in_two_parts(h: &mut Harness) -> (EarlyAllocations, ServerChanges) {
    let (busy, changed) = (h.client_at(0), h.client_at(1));
    h.hold_back_opens = false;
    let ends = h.add(user("gwen").from("7.7.7.9:9").on_worker(0));
    h.allocate(ends);
    let server = h.first_server();
    server.begin_early_export();
    let (allocations, next) = server.early_export(0, 1_000);
    assert_eq!(next, None);
    let early = EarlyAllocations { worker: WorkerId(0), allocations };
    h.channel_data(busy, 0x4001, b"more").to_peer();
    h.channel_data(busy, 0x4003, b"unbound");
    assert_eq!(h.permit(changed, &[addr("8.8.8.9:9")]), 0);
    assert_eq!(h.refresh(ends, 0).code(), 0);
    (early, h.first_server().export_changes())
}

/// Two streams with one of everything: one plain, one of TLS whose queue is half encrypted.
fn streams(h: &mut Harness) -> StreamsState {
    let server = h.first_server().export();
    let five_tuple = |transport| FiveTuple { transport, ..*server.allocations[0].via.five_tuple() };
    let now = Now { ticks: Ticks(7_000), unix: UnixSeconds(START_UNIX) };
    let ended = h.first_server().sessions(now).next().unwrap();
    let direction =
        |first: u8| DirectionState { secret: (first..first + 32).collect(), iv: [first; 12], number: first.into() };
    let mut records = RecordState::new(0x1303, direction(1), direction(101));
    (records.has_ended_reading, records.has_ended_writing, records.owes_key_update) = (true, true, true);
    (records.empty_records, records.key_updates, records.key_updates_since) = (3, 2, Ticks(61_000));
    let payload = Some((ended.allocation, 8));
    let plain = StreamState {
        id: StreamId(3),
        five_tuple: five_tuple(Transport::Tcp),
        tls: None,
        input: vec![0x40, 1, 0, 9, 1],
        requests_left: 97,
        requests_at: Ticks(6_000),
        deadline: Some(Ticks(17_000)),
        queue: Some(QueueState {
            bytes: vec![7; 15],
            frames: vec![FrameState { bytes: 12, payload }, FrameState { bytes: 8, payload: None }],
            front_sent: 5,
            ..QueueState::default()
        }),
        ended: vec![ended],
    };
    let tls = TlsState {
        records,
        held: vec![23, 3, 3, 0, 60, 1],
        early: b"early".to_vec(),
        unsent: b"unsent".to_vec(),
        alert: Some(20),
        has_ended: true,
    };
    let queue = QueueState {
        bytes: vec![9; 8],
        frames: vec![FrameState { bytes: 12, payload }, FrameState { bytes: 8, payload }],
        encrypted: 1,
        cipher: vec![1; 40],
        records: vec![CipherState { cipher: 20, plain: 0 }, CipherState { cipher: 34, plain: 12 }],
        record_sent: 14,
        ..QueueState::default()
    };
    let encrypted = StreamState {
        id: StreamId(9),
        five_tuple: five_tuple(Transport::Tls),
        tls: Some(tls),
        queue: Some(queue),
        deadline: None,
        ended: Vec::new(),
        ..plain.clone()
    };
    StreamsState { next_id: 11, streams: vec![plain, encrypted], peers: None }
}

/// The rest of what the workers share, after an early part: one user came, and one went, who is remembered for his bytes;
/// another is forgotten.
fn shared_changes(h: &mut Harness) -> SharedChanges {
    h.hold_back_opens = false;
    let [stays, leaves] = [user("gwen"), user("hugo")].map(|spec| {
        let client = h.add(spec);
        h.allocate(client);
        client
    });
    let tax = h.add(with_grant(full_grant()).from("7.7.7.12:12"));
    h.allocate(tax);
    assert_eq!(h.permit(leaves, &[addr(PEER)]), 0);
    assert_eq!(h.refresh(stays, 0).code(), 0);
    drop(h.books.export_early());
    h.send(leaves, addr(PEER), b"some bytes").to_peer();
    h.advance(70);
    assert_eq!((h.refresh(leaves, 0).code(), h.refresh(tax, 0).code()), (0, 0));
    let reserves = h.add(user("ida").from("7.7.7.11:11").on_worker(1));
    assert_eq!(h.ask(reserves, allocate().even_port(true)).code(), 0);
    h.books.revoke(Subject::Tenant("third".into()), UnixSeconds(START_UNIX + 60));
    h.books.set_limits(Subject::Tenant("third".into()), all_limits(), UnixSeconds(START_UNIX));
    h.books.export_changes()
}

/// Every place of a CBOR tree, as the keys and positions on the way to it.
fn places(value: &Value, at: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
    let children: Vec<&Value> = match value {
        Value::Array(values) => values.iter().collect(),
        Value::Map(entries) => entries.iter().map(|(_, value)| value).collect(),
        _ => Vec::new(),
    };
    for (number, child) in children.into_iter().enumerate() {
        at.push(number);
        found.push(at.clone());
        places(child, at, found);
        at.pop();
    }
}

fn part<'a>(value: &'a Value, at: &[usize]) -> &'a Value {
    at.iter().fold(value, |here, step| match here {
        Value::Array(values) => &values[*step],
        Value::Map(entries) => &entries[*step].1,
        other => panic!("{other:?} has no parts"),
    })
}

fn without(value: &Value, at: &[usize]) -> Value {
    let mut value = value.clone();
    let (last, way) = at.split_last().unwrap();
    let mut here = &mut value;
    for step in way {
        here = match here {
            Value::Array(values) => &mut values[*step],
            Value::Map(entries) => &mut entries[*step].1,
            other => panic!("{other:?} has no parts"),
        };
    }
    match here {
        Value::Array(values) => drop(values.remove(*last)),
        Value::Map(entries) => drop(entries.remove(*last)),
        other => panic!("{other:?} has no parts"),
    }
    value
}

fn framed<T: State>(body: &Value) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    ciborium::into_writer(body, &mut bytes).unwrap();
    state::fill_head(&mut bytes, FORMAT, T::KIND as u32);
    bytes
}

/// Leaves out every part of it, one after the other: each must be missed.
fn every_part_is_read<T: State + PartialEq>(state: &T, at_least: usize) {
    let bytes = state::write(state, FORMAT).unwrap();
    let body: Value = ciborium::from_reader(&bytes[HEAD..]).unwrap();
    assert!(state::read::<T>(&framed::<T>(&body)).unwrap() == *state, "it comes back whole");
    let mut found = Vec::new();
    // Beside the state stand the features, which are empty here.
    places(&body, &mut Vec::new(), &mut found);
    let mut tried = 0;
    for place in found.iter().filter(|place| place[0] == 1 && place.len() > 1) {
        tried += 1;
        // What is nothing may be left out: that is what a field is in a state that is older than it.
        let is_nothing = matches!(part(&body, place), Value::Null) || *part(&body, place) == Value::Integer(0.into());
        if let Ok(read) = state::read::<T>(&framed::<T>(&without(&body, place)))
            && !is_nothing
        {
            assert!(read != *state, "the part at {place:?} is not read");
        }
    }
    assert!(tried >= at_least, "{tried} parts are few: is there one of everything?");
}

#[test]
fn every_field_is_written_and_read() {
    let (mut h, _) = one_of_everything();
    let (server, shared) = states(&mut h);
    every_part_is_read(&server, 400);
    every_part_is_read(&shared, 200);
    let streams = streams(&mut h);
    assert_eq!(streams.check(), Ok(()));
    every_part_is_read(&streams, 60);
    assert!(server.openings.len() == 3 && server.allocations.len() == 2 && server.questions == 1);
    assert!(server.allocations.iter().any(|allocation| !allocation.dropped.is_empty()));
    assert!(!shared.quotas.reservations.is_empty() && shared.revocations.len() == 3);
    assert_eq!(shared.overrides.as_ref().map(Vec::len), Some(2));
    let quotas = shared_changes(&mut one_of_everything().0);
    every_part_is_read(&quotas, 200);
    let QuotasChanges { scopes, removed, meters, lingering_new, lingering_gone, .. } = &quotas.quotas;
    let found = [scopes.len(), removed.len(), meters.0.len(), lingering_new.len(), lingering_gone.len()];
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
    let (early, changes) = in_two_parts(&mut h);
    every_part_is_read(&early, 200);
    every_part_is_read(&changes, 300);
    assert_eq!((early.allocations.len(), changes.allocations.len(), changes.ended.len()), (4, 1, 1));
    assert_eq!((changes.counts.0.len(), changes.drops.len(), changes.own_meters.0.len()), (1, 1, 1));
}

// What a later release adds is skipped wherever it stands, or it could not be taken back.
#[test]
fn fields_that_nobody_knows_are_skipped_everywhere() {
    fn with_more(value: &Value) -> Value {
        match value {
            Value::Array(values) => Value::Array(values.iter().map(with_more).collect()),
            Value::Map(entries) => {
                let mut entries: Vec<_> = entries.iter().map(|(key, value)| (key.clone(), with_more(value))).collect();
                if entries.iter().all(|(key, _)| key.is_integer()) && !entries.is_empty() {
                    let more = Value::Array(vec![Value::Text("new".into()), Value::Map(vec![]), Value::Float(1.5)]);
                    entries.push((Value::Integer(4_000.into()), more));
                }
                Value::Map(entries)
            }
            other => other.clone(),
        }
    }
    fn are_skipped<T: State + PartialEq>(state: &T) {
        let bytes = state::write(state, FORMAT).unwrap();
        let body: Value = ciborium::from_reader(&bytes[HEAD..]).unwrap();
        let more = with_more(&body);
        assert!(more != body);
        assert!(state::read::<T>(&framed::<T>(&more)).unwrap() == *state);
    }
    let (mut h, _) = one_of_everything();
    are_skipped(&states(&mut h).0);
    are_skipped(&shared_changes(&mut one_of_everything().0));
    let (early, changes) = in_two_parts(&mut h);
    are_skipped(&early);
    are_skipped(&changes);
}

#[test]
fn the_format_before_carries_all_but_what_is_new() {
    let (mut h, _) = one_of_everything();
    let (server, _) = states(&mut h);
    let read: ServerState = state::read(&state::write(&server, FORMAT - 1).unwrap()).unwrap();
    assert!(read != server, "the deadline of an admission came with format 2");
    let mut expected = server;
    expected.keep_for(FORMAT - 1);
    assert!(read == expected);
    assert!(h.import(0, read).is_ok());
}

// A link-local client without its interface would be another client.
#[test]
fn an_older_format_is_refused_where_it_would_lose_a_client() {
    let mut h = Harness::workers(1, |_| {});
    let client = h.add(alice().from("[fe80::7%3]:7"));
    h.allocate(client);
    let server = h.first_server().export();
    let refused = state::write(&server, 1).unwrap_err();
    assert_eq!(refused, StateError::Feature { name: LINK_LOCAL_CLIENTS.into(), uses: 1 });
    let read: ServerState = state::read(&state::write(&server, 2).unwrap()).unwrap();
    assert!(read == server);
    let (mut one, _) = one_of_everything();
    let mut streams = streams(&mut one);
    assert!(state::write(&streams, 1).is_ok());
    for stream in &mut streams.streams {
        stream.five_tuple.client = server.allocations[0].via.five_tuple().client;
    }
    let refused = state::write(&streams, 1).unwrap_err();
    assert_eq!(refused, StateError::Feature { name: LINK_LOCAL_CLIENTS.into(), uses: 2 });
}

fn sample(format: u32, kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/state/format-{format}-{kind}.state"))
}

/// The kept bytes of each format are read as what they meant.
fn samples_are_read<T: State + PartialEq + Debug>(now: &T, kind: &str) {
    for format in FORMAT_MIN..=FORMAT {
        let path = sample(format, kind);
        let written = state::write(now, format).unwrap();
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() && (format == FORMAT || !path.exists()) {
            std::fs::write(&path, &written).unwrap();
        }
        let kept = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let read: T = state::read(&kept).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut expected = now.clone();
        expected.keep_for(format);
        assert!(read == expected, "{}: it means something else than it did", path.display());
        assert!(written == kept, "{}: a release that reads this no longer gets these bytes", path.display());
    }
}

#[test]
fn what_earlier_releases_wrote_is_read_for_ever() {
    let (mut h, _) = one_of_everything();
    let (server, shared) = states(&mut h);
    samples_are_read(&server, "worker");
    samples_are_read(&shared, "process");
    samples_are_read(&streams(&mut h), "streams");
    samples_are_read(&shared_changes(&mut one_of_everything().0), "process-changes");
    let (early, changes) = in_two_parts(&mut h);
    samples_are_read(&early, "early-allocations");
    samples_are_read(&changes, "worker-changes");
}

// A client that waited for an answer gets it from the process that took over.
#[test]
fn one_of_everything_goes_on() {
    let (mut h, waiting) = one_of_everything();
    h.hand_over();
    let codes = |replies: Vec<harness::stun::Incoming>| replies.iter().map(|reply| reply.code()).collect::<Vec<_>>();
    h.hold_back_opens = false;
    assert_eq!(codes(h.let_admissions_go(waiting[0])), [0]);
    assert_eq!(codes(h.let_asks_go(waiting[1])), [0]);
    assert_eq!(codes(h.let_opens_go(waiting[2])), [0]);
    assert_eq!(h.allocations(), 8);
    h.close_all(EndReason::Shutdown);
    // The question to the other worker, which was answered, is forgotten when its time is over.
    h.advance(2);
    assert_eq!((h.leftovers(), h.books.admitted()), (0, 0));
}
