//! What a state says and what follows from it: contradictions, deadlines, limits, records, damage.

use std::io;
use std::net::SocketAddr;

use super::*;
use crate::address::RelayedTransportAddress;
use crate::net::record::{DirectionState, RecordState};
use crate::net::send_queue::FRAME_COST;
use crate::net::stream_state::{CipherState, FrameState, QueueState, TlsState};
use crate::net::tcp::Stopped;
use crate::protocol::accounting::{Amount, SessionRecord, Traffic};
use crate::protocol::ids::SessionId;
use crate::protocol::reason::EndReason;
use crate::time::UnixSeconds;

/// Of a session that has ended.
fn record(number: u64) -> SessionRecord {
    let (_, _, five_tuple) = sockets();
    SessionRecord {
        session: SessionId { instance: 1, number },
        seq: 1,
        unix: UnixSeconds(1_700_000_000),
        allocation: AllocationId { index: number as u32, generation: 1 },
        username: "alice".into(),
        identity: "alice".into(),
        tenant: None,
        realm: None,
        secret: None,
        via: Via::Stream(StreamId(1), five_tuple),
        relayed: RelayedTransportAddress::from("192.0.2.1:50000".parse::<SocketAddr>().unwrap()),
        created_at: Ticks(0),
        ended_at: Ticks(5),
        reason: Some(EndReason::Expired),
        traffic: Traffic::default(),
        dropped: Box::default(),
        additional: None,
        is_tcp: None,
    }
}

/// A state of one plain stream, and its socket.
fn one() -> (StreamsState, TcpStream) {
    let mut streams = new_streams(LIMITS);
    let (at, _client) = insert(&mut streams, None);
    streams.send(at, [b"head", b"payload", b""], Some((ID, 7)));
    let (state, sockets) = streams.export();
    let socket = TcpStream::from(sockets[0].try_clone_to_owned().unwrap());
    (state, socket)
}

fn refused(change: impl FnOnce(&mut StreamsState)) -> Option<StreamStateError> {
    let (mut state, socket) = one();
    change(&mut state);
    let mut streams = new_streams(LIMITS);
    let checked = state.check();
    let refused = streams.import(state.next_id, state.streams.remove(0), socket, true, Ticks(0)).err();
    assert_eq!(checked.err().map(|(_, why)| why), refused);
    assert_eq!(streams.all().len(), usize::from(refused.is_none()), "what is refused leaves nothing");
    refused
}

fn queue(state: &mut StreamsState) -> &mut QueueState {
    state.streams[0].queue.as_mut().unwrap()
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    use StreamStateError::{Ended, Frames, Id, Input, Records, Transport as WrongTransport};
    assert_eq!(refused(|_| ()), None);
    assert_eq!(refused(|state| state.streams[0].id = StreamId(2)), Some(Id));
    assert_eq!(refused(|state| state.streams[0].id = StreamId(0)), Some(Id));
    assert_eq!(refused(|state| state.next_id = u64::MAX), Some(Id));
    assert_eq!(refused(|state| state.streams[0].five_tuple.transport = Transport::Udp), Some(WrongTransport));
    assert_eq!(refused(|state| state.streams[0].five_tuple.transport = Transport::Tls), Some(WrongTransport));
    assert_eq!(refused(|state| state.streams[0].input = vec![0x40; 200_000]), Some(Input { bytes: 200_000 }));
    assert_eq!(refused(|state| state.streams[0].ended = vec![record(1); 9]), Some(Ended(9)));
    assert_eq!(refused(|state| queue(state).bytes.push(0)), Some(Frames));
    assert_eq!(refused(|state| queue(state).encrypted = 2), Some(Frames));
    assert_eq!(refused(|state| queue(state).front_sent = 11), Some(Frames));
    assert_eq!(refused(|state| queue(state).frames.push(FrameState { bytes: 0, payload: None })), Some(Frames));
    assert_eq!(refused(|state| queue(state).frames[0].payload = Some((ID, 12))), Some(Frames));
    assert_eq!(refused(|state| queue(state).frames[0].bytes = u32::MAX), Some(Frames));
    assert_eq!(refused(|state| queue(state).cipher.push(0)), Some(Records));
    assert_eq!(refused(|state| queue(state).record_sent = 1), Some(Records));
    let encrypted = |state: &mut StreamsState| {
        queue(state).encrypted = 1;
        queue(state).bytes.clear();
    };
    assert_eq!(refused(encrypted), Some(Records), "ciphertext without TLS");
    // The sums agree, but the first one has left whole already.
    let front_has_left = |state: &mut StreamsState| {
        queue(state).frames.push(FrameState { bytes: 11, payload: None });
        queue(state).front_sent = 11;
    };
    assert_eq!(refused(front_has_left), Some(Frames));
    let with_tls = |sent: usize, front_sent: usize| {
        move |state: &mut StreamsState| {
            let direction = || DirectionState { secret: vec![1; 32], iv: [0; 12], number: 0 };
            let stream = &mut state.streams[0];
            stream.five_tuple.transport = Transport::Tls;
            stream.tls = Some(TlsState {
                records: RecordState::new(0x1303, direction(), direction()),
                held: Vec::new(),
                early: Vec::new(),
                unsent: Vec::new(),
                alert: None,
                has_ended: false,
            });
            stream.queue = Some(QueueState {
                frames: vec![FrameState { bytes: 8, payload: None }],
                encrypted: 1 - front_sent.min(1),
                front_sent,
                bytes: vec![0; if front_sent > 0 { 8 - front_sent } else { 0 }],
                cipher: vec![0; 60 - sent],
                records: [20, 40]
                    .map(|cipher| CipherState { cipher, plain: if cipher == 40 && front_sent == 0 { 8 } else { 0 } })
                    .into(),
                record_sent: sent,
            });
        }
    };
    assert_eq!(refused(with_tls(19, 0)), None);
    assert_eq!(refused(with_tls(20, 0)), Some(Records), "the first record has left whole already");
    assert_eq!(refused(with_tls(0, 1)), Some(Records), "a frame leaves whole with TLS");
    let held = |state: &mut StreamsState| {
        with_tls(0, 0)(state);
        state.streams[0].tls.as_mut().unwrap().held = vec![0; 50_000];
    };
    assert_eq!(refused(held), Some(Input { bytes: 50_000 }));
}

#[test]
fn no_number_comes_twice() {
    let (state, socket) = one();
    let mut streams = new_streams(LIMITS);
    let stream = state.streams[0].clone();
    streams.import(7, stream.clone(), socket.try_clone().unwrap(), true, Ticks(0)).unwrap();
    assert_eq!(streams.import(7, stream, socket, true, Ticks(0)), Err(StreamStateError::Id));
    let (at, _client) = insert(&mut streams, None);
    assert_eq!(streams.get(at).unwrap().id, StreamId(8), "nor that of a stream that was closed before");
}

#[test]
fn a_half_open_stream_keeps_its_deadline_and_has_a_place_again() {
    let mut old = new_streams(LIMITS);
    let (_, _client) = insert(&mut old, None);
    let import = |limits, has_allocation, now| {
        let (mut state, sockets) = old.export();
        assert_eq!(state.streams[0].deadline, Some(Ticks(10_000)));
        let socket = TcpStream::from(sockets[0].try_clone_to_owned().unwrap());
        let mut new = new_streams(limits);
        new.import(state.next_id, state.streams.remove(0), socket, has_allocation, now).unwrap();
        (new.next_deadline(), new.half_open.count(), new)
    };
    let (deadline, places, mut new) = import(LIMITS, false, Ticks(7_000));
    assert_eq!((deadline, places), (Some(Ticks(10_000)), 1));
    assert_eq!((new.pop_overdue(Ticks(9_999)), new.pop_overdue(Ticks(10_000))), (None, Some(0)));
    new.keep_alive(StreamId(1));
    assert_eq!(new.half_open.count(), 0);
    let (deadline, places, _) = import(LIMITS, true, Ticks(7_000));
    assert_eq!((deadline, places), (None, 0), "with an allocation there is none");
    let shorter = TcpLimits { unauthenticated_ms: 1_000, ..LIMITS };
    assert_eq!(import(shorter, false, Ticks(7_000)).0, Some(Ticks(8_000)), "a limit that is shorter now");
    let none = TcpLimits { unauthenticated_ms: 0, ..LIMITS };
    assert_eq!(import(none, false, Ticks(7_000)).0, None);
}

#[test]
fn a_move_gives_no_new_requests() {
    let mut old = new_streams(LIMITS);
    let (at, _client) = insert(&mut old, None);
    let all = |streams: &mut Streams| {
        let stream = streams.get_mut(0).unwrap();
        (0..1_000).filter(|_| stream.take_request(Ticks(10))).count()
    };
    assert!(old.get_mut(at).unwrap().take_request(Ticks(10)));
    let mut new = moved(&old);
    let left = all(&mut old);
    assert_eq!((all(&mut new), all(&mut moved(&new))), (left, 0));
    assert!(moved(&new).get_mut(0).unwrap().take_request(Ticks(200)), "more are earned as before");
}

#[test]
fn a_queue_that_is_longer_than_the_new_limit_is_not_cut_off() {
    let mut old = new_streams(TcpLimits { queue_bytes: 1 << 20, ..LIMITS });
    let (at, _client) = insert(&mut old, None);
    while old.send(at, [&[0; 4], &[0; 60_000], &[]], Some((ID, 60_000))) == Some(Sent::Taken) {}
    let mut new = moved(&old);
    new.limits = LIMITS;
    let mut new = moved(&new);
    let at = new.pop_dirty().unwrap().unwrap();
    new.flush(at);
    let stream = new.get(at).unwrap();
    assert!(stream.has_backlog() && stream.is_blocked() && !stream.must_close());
    assert_eq!(new.send(at, [&[0; 4], &[0; 60_000], &[0; 60_000]], Some((ID, 60_000))), Some(Sent::Full));
}

#[test]
fn an_abandoned_stream_says_nothing_more_and_tells_what_it_gives_up() {
    for version in [None, Some(&rustls::version::TLS13)] {
        let mut streams = new_streams(LIMITS);
        let (at, mut client) = insert(&mut streams, version.map(|version| shake_hands(version, b"", b"").1));
        streams.send(at, [&[0; 4], &[0; 96], &[]], Some((ID, 96)));
        let stream = streams.get_mut(at).unwrap();
        stream.abandon();
        assert!(stream.must_close());
        streams.send(at, [&[0; 4], &[0; 60], &[]], Some((ID, 60)));
        streams.flush(at);
        let stream = streams.get_mut(at).unwrap();
        assert_eq!(stream.give_up().collect::<Vec<_>>(), [(ID, 96), (ID, 60)]);
        stream.say_goodbye();
        drop(streams);
        client.set_nonblocking(false).unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"", "{version:?}");
    }
}

#[test]
fn what_waits_for_all_streams_is_given_up_in_equal_shares() {
    let mut streams = new_streams(LIMITS);
    let mut clients = Vec::new();
    for frames in [1, 10, 40] {
        let (at, client) = insert(&mut streams, None);
        clients.push(client);
        (0..frames).for_each(|_| {
            streams.send(at, [&[0; 4], &[0; 996], &[]], Some((ID, 996)));
        });
        streams.send(at, [b"a reply", b"", b""], None);
    }
    let one = 1_000 + FRAME_COST;
    let reply = 7 + FRAME_COST;
    assert_eq!(streams.give_up_beyond(51 * one + 3 * reply), []);
    let given_up = streams.give_up_beyond(21 * one + 3 * reply);
    assert_eq!(given_up, [(2, vec![(ID, 996); 30])], "the others have less than their share");
    let given_up = streams.give_up_beyond(11 * one + 3 * reply);
    assert_eq!(given_up, [(1, vec![(ID, 996); 5]), (2, vec![(ID, 996); 5])]);
    assert_eq!(streams.give_up_beyond(0).iter().map(|(_, payloads)| payloads.len()).collect::<Vec<_>>(), [1, 5, 5]);
    let waiting = streams.all().into_iter().map(|at| streams.get(at).unwrap());
    for stream in waiting {
        assert_eq!((stream.waiting(), stream.ready_bytes()), (Amount::default(), 7), "a reply is kept");
    }
    assert_eq!(
        (equal_share(vec![], 5), equal_share(vec![3, 3], 6), equal_share(vec![9, 1], 6)),
        (usize::MAX, usize::MAX, 5)
    );
}

#[test]
fn records_that_are_held_back_move_with_the_payload_that_they_wait_for() {
    let mut old = new_streams(LIMITS);
    let (at, _client) = insert(&mut old, None);
    let [first, second] = [record(1), record(2)];
    for record in [&first, &second] {
        old.send(at, [&[0; 4], &[0; 96], &[]], Some((record.allocation, 96)));
        assert!(old.get_mut(at).unwrap().hold_back(Box::new(record.clone())).is_none());
    }
    let mut new = moved(&old);
    let stream = new.get_mut(0).unwrap();
    assert_eq!(stream.decided(), None);
    assert!(stream.held_back(second.allocation).is_some());
    assert_eq!(new.give_up_beyond(100 + FRAME_COST), [(0, vec![(second.allocation, 96)])]);
    assert_eq!(new.get_mut(0).unwrap().decided().as_deref(), Some(&second));
    new.flush(0);
    assert_eq!(new.get_mut(0).unwrap().decided().as_deref(), Some(&first));
}

/// Of a worker to which the client has sent `wire`, after it was read once, as it is at the next worker.
fn after_reading(streams: &mut Streams, client: &mut TcpStream, wire: &[u8]) -> (io::Result<usize>, Streams) {
    client.write_all(wire).unwrap();
    let mut region = vec![0; REGION];
    let read = loop {
        match streams.get_mut(0).unwrap().read(&mut region, true, Ticks(0)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            read => break read.map(Option::unwrap),
        }
    };
    if let Ok(len) = read {
        streams.get_mut(0).unwrap().handled(&region[..len], 0, Stopped::OutOfBudget);
    }
    (read, moved(streams))
}

#[test]
fn what_the_client_did_last_is_known_after_a_move() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let begin = || {
            let (mut tls, session) = shake_hands(version, b"", b"");
            let mut streams = new_streams(LIMITS);
            let (at, mut client) = insert(&mut streams, Some(session));
            streams.make_dirty(at);
            streams.flush(at);
            client.set_nonblocking(false).unwrap();
            while tls.is_handshaking() {
                tls.read_tls(&mut client).unwrap();
                tls.process_new_packets().unwrap();
            }
            (tls, client, streams)
        };
        let (mut tls, mut client, mut streams) = begin();
        tls.writer().write_all(&frame(0, 40)).unwrap();
        tls.send_close_notify();
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
        let (read, mut new) = after_reading(&mut streams, &mut client, &wire);
        assert_eq!((read.unwrap(), new.ready()), (44, 1));
        let stream = new.get_mut(0).unwrap();
        assert!(!stream.has_ended(), "a message waits");
        let mut region = vec![0; REGION];
        assert_eq!(stream.read(&mut region, true, Ticks(0)).unwrap(), Some(44));
        stream.handled(&region[..44], 44, Stopped::NeedsMore);
        assert!(stream.has_ended());

        let (mut tls, mut client, mut streams) = begin();
        let (read, mut new) = after_reading(&mut streams, &mut client, &[99; 40]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
        new.get_mut(0).unwrap().say_goodbye();
        drop((streams, new));
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap_or_default();
        let mut heard = &heard[..];
        let said = loop {
            assert!(tls.read_tls(&mut heard).unwrap() > 0, "an alert is there");
            if let Err(error) = tls.process_new_packets() {
                break error;
            }
        };
        assert_eq!(said, rustls::Error::AlertReceived(rustls::AlertDescription::UnexpectedMessage));
    }
}

/// Whatever the bytes are: taken over or refused, and what is taken over can be used.
#[test]
fn a_damaged_state_never_panics() {
    let mut streams = new_streams(LIMITS);
    let (tls, session) = shake_hands(&rustls::version::TLS13, &frame(0, 40), &frame(1, 40));
    let (at, mut client) = insert(&mut streams, Some(session));
    let (plain_at, mut plain_client) = insert(&mut streams, None);
    for at in [at, plain_at] {
        for _ in 0..3 {
            streams.send(at, [&[0; 4], &[0; 20], &[]], Some((ID, 20)));
        }
    }
    let mut queue = streams.slots[at].to_state().queue.unwrap();
    queue.bytes.drain(..24);
    queue.encrypted = 1;
    queue.cipher = vec![7; 40];
    queue.records = vec![CipherState { cipher: 46, plain: 24 }];
    queue.record_sent = 6;
    let (mut state, sockets) = streams.export();
    state.streams[0].queue = Some(queue);
    assert_eq!(state.check(), Ok(()));
    let mut body = Vec::new();
    minicbor::encode(&state, &mut body).unwrap();
    let mut taken = 0;
    for place in 0..body.len() {
        for flipped in [0x01, 0x08, 0x80, 0xFF] {
            let mut damaged = body.clone();
            damaged[place] ^= flipped;
            let Ok(state) = minicbor::decode::<StreamsState>(&damaged) else { continue };
            let mut new = new_streams(LIMITS);
            for (stream, socket) in state.streams.into_iter().zip(&sockets) {
                let socket = TcpStream::from(socket.try_clone_to_owned().unwrap());
                let Ok(at) = new.import(state.next_id, stream, socket, place % 2 == 0, Ticks(5)) else { continue };
                taken += 1;
                use_it(&mut new, at);
            }
        }
        // No other reader.
        let mut room = [0; 60_000];
        drop((client.read(&mut room), plain_client.read(&mut room)));
    }
    assert!(taken > 1_000, "{taken}");
    drop(tls);
}

fn use_it(streams: &mut Streams, at: usize) {
    let mut region = vec![0; REGION];
    let stream = streams.get_mut(at).unwrap();
    let len = stream.read_early(&mut region, Ticks(9)).unwrap_or(0);
    stream.handled(&region[..len], 0, Stopped::NeedsMore);
    let _ = stream
        .read(&mut region, true, Ticks(9))
        .map(|len| stream.handled(&region[..len.unwrap_or(0)], 0, Stopped::NeedsMore));
    let _ = (stream.take_request(Ticks(9)), stream.decided());
    drop(streams.export());
    streams.give_up_beyond(30);
    streams.send(at, [b"more", b"", b""], None);
    streams.flush(at);
    assert!(streams.export().0.streams.len() <= 2);
    streams.get_mut(at).unwrap().give_up().for_each(drop);
}
