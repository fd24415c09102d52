//! A stream that moves at any moment: nothing is lost, nothing comes twice.

use std::io;

use super::*;
use crate::net::tcp::Stopped;
use crate::protocol::accounting::Amount;
use crate::protocol::random::Random;
use crate::wire::framing::{Cut, cut};

/// One client and the worker that has its stream, with what each said and heard.
struct World {
    random: Random,
    streams: Streams,
    at: usize,
    client: TcpStream,
    tls: Option<ClientConnection>,
    /// What of the client waits to be written to its socket.
    wire: Vec<u8>,
    /// Messages that the client said, and those that the worker handled.
    said: Vec<Vec<u8>>,
    handled: Vec<Vec<u8>>,
    /// Frames that the queue took, with their payload; and all that the client read.
    taken: Vec<(Vec<u8>, Option<u32>)>,
    heard: Vec<u8>,
    given_up: Amount,
    key_updates: usize,
    moves: [usize; 6],
}

impl World {
    fn new(seed: u64, version: Option<&'static SupportedProtocolVersion>) -> Self {
        let mut streams = new_streams(LIMITS);
        let said = vec![frame(0, 900), frame(1, 50)];
        let (at, client, tls) = match version {
            None => {
                let (at, client) = insert(&mut streams, None);
                (at, client, None)
            }
            Some(version) => {
                let (tls, session) = shake_hands(version, &said[0], &said[1]);
                let (at, client) = insert(&mut streams, Some(session));
                (at, client, Some(tls))
            }
        };
        let wire = if tls.is_some() { Vec::new() } else { said.concat() };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            random: Random::new(key),
            streams,
            at,
            client,
            tls,
            wire,
            said,
            handled: Vec::new(),
            taken: Vec::new(),
            heard: Vec::new(),
            given_up: Amount::default(),
            key_updates: 0,
            moves: [0; 6],
        }
    }

    fn below(&mut self, end: usize) -> usize {
        (self.random.next_u64() % end as u64) as usize
    }

    fn length(&mut self) -> usize {
        match self.below(20) {
            0 => self.below(60_000),
            1..=4 => 0,
            _ => self.below(1_300),
        }
    }

    fn stream(&mut self) -> &mut Stream {
        self.streams.get_mut(self.at).unwrap()
    }

    fn step(&mut self) {
        match self.below(16) {
            0..=3 => self.say(),
            4 | 5 => self.visit(),
            6..=9 => self.send(),
            10 | 11 => self.end_turn(),
            12 => self.hear(),
            13 => self.give_up_some(),
            14 => self.update_keys(),
            _ => self.move_it(),
        }
        assert_eq!(self.waiting_in_model(), self.stream().waiting().bytes, "payload in the queue");
    }

    fn say(&mut self) {
        if self.wire.len() < 100_000 {
            let message = frame(self.said.len(), self.length());
            match &mut self.tls {
                Some(tls) => {
                    tls.writer().write_all(&message).unwrap();
                    while tls.wants_write() {
                        tls.write_tls(&mut self.wire).unwrap();
                    }
                }
                None => self.wire.extend(&message),
            }
            self.said.push(message);
        }
        let count = self.below(self.wire.len() + 1);
        self.write(count);
    }

    fn write(&mut self, count: usize) {
        match self.client.write(&self.wire[..count]) {
            Ok(count) => drop(self.wire.drain(..count)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    /// Handles a few messages, as the worker does.
    fn visit(&mut self) {
        let mut region = vec![0; REGION];
        let stream = self.streams.get_mut(self.at).unwrap();
        match stream.read(&mut region, true, Ticks(0)) {
            Ok(len) => self.handle(&mut region, len.expect("the client has not ended")),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
    }

    fn handle(&mut self, region: &mut [u8], len: usize) {
        let most = self.below(6);
        let (mut done, mut stopped) = (0, Stopped::NeedsMore);
        for count in 0.. {
            let Cut::Frame { consumed, .. } = cut(&region[done..len]) else { break };
            if count == most {
                stopped = Stopped::OutOfBudget;
                break;
            }
            self.handled.push(region[done..done + consumed].to_vec());
            done += consumed;
        }
        self.stream().handled(&region[..len], done, stopped);
    }

    fn send(&mut self) {
        let is_reply = self.below(6) == 0;
        let len = self.length();
        let bytes = frame(self.taken.len(), len);
        let payload = (!is_reply).then_some(len as u32);
        let pieces = [&bytes[..4], &bytes[4..4 + len], &bytes[4 + len..]];
        if self.streams.send(self.at, pieces, payload.map(|len| (ID, len))) == Some(Sent::Taken) {
            self.taken.push((bytes, payload));
        }
    }

    fn end_turn(&mut self) {
        while let Some(at) = self.streams.pop_dirty() {
            self.streams.flush(at.unwrap());
        }
        self.streams.flush(self.at);
        assert!(!self.stream().must_close());
    }

    fn hear(&mut self) {
        let mut bytes = vec![0; self.below(2_000) + 1];
        let count = match self.client.read(&mut bytes) {
            Ok(count) => count,
            Err(error) => return assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        };
        let Some(tls) = &mut self.tls else { return self.heard.extend(&bytes[..count]) };
        let mut wire = &bytes[..count];
        while !wire.is_empty() {
            tls.read_tls(&mut wire).unwrap();
            tls.process_new_packets().unwrap();
            let mut room = [0; 20_000];
            while let Ok(count @ 1..) = tls.reader().read(&mut room) {
                self.heard.extend(&room[..count]);
            }
        }
    }

    /// Payload of frames whose last byte has not left, as far as the model can tell: those that were taken, without those that
    /// the queue says have left.
    fn waiting_in_model(&mut self) -> u64 {
        let (state, _) = self.streams.export();
        let frames = state.streams[0].queue.as_ref().map_or(0, |queue| queue.frames.len());
        let from = self.taken.len() - frames;
        self.taken[from..].iter().filter_map(|(_, payload)| *payload).map(u64::from).sum()
    }

    fn give_up_some(&mut self) {
        let most = self.below(400_000);
        let before = self.stream().waiting();
        for (at, payloads) in self.streams.give_up_beyond(most) {
            assert_eq!(at, self.at);
            for (of, bytes) in payloads.into_iter().rev() {
                assert_eq!(of, ID);
                let last = self.taken.iter().rposition(|(_, payload)| payload.is_some()).unwrap();
                assert_eq!(self.taken.remove(last).1, Some(bytes), "the last are given up first");
                self.given_up = self.given_up + Amount { packets: 1, bytes: u64::from(bytes) };
            }
        }
        let after = self.stream().waiting();
        assert!(after.bytes <= before.bytes && after.packets <= before.packets);
    }

    fn update_keys(&mut self) {
        if let Some(tls) = self.tls.as_mut().filter(|tls| !tls.is_handshaking())
            && self.key_updates < 20
        {
            self.key_updates += 1;
            // Refused with TLS 1.2.
            let _ = tls.refresh_traffic_keys();
        }
    }

    fn move_it(&mut self) {
        let before = self.stream();
        let told = (before.waiting(), before.input_bytes(), before.ready_bytes(), before.has_backlog());
        let (state, _) = self.streams.export();
        let stream = &state.streams[0];
        let queue = stream.queue.clone().unwrap_or_default();
        let seen = [
            true,
            !stream.input.is_empty(),
            queue.front_sent > 0 || queue.record_sent > 0,
            queue.encrypted > 0,
            !queue.bytes.is_empty(),
            stream.tls.as_ref().is_some_and(|tls| !tls.held.is_empty()),
        ];
        self.moves.iter_mut().zip(seen).for_each(|(count, seen)| *count += usize::from(seen));
        self.streams = moved(&self.streams);
        self.at = self.streams.find(stream.id).unwrap();
        let after = self.stream();
        assert_eq!((after.waiting(), after.input_bytes(), after.ready_bytes(), after.has_backlog()), told);
        if stream.tls.is_some() {
            self.read_early();
        }
        if let Some(at) = self.streams.pop_ready() {
            assert_eq!(at, self.at);
            self.visit();
        }
    }

    fn read_early(&mut self) {
        let mut region = vec![0; REGION];
        let stream = self.streams.get_mut(self.at).unwrap();
        let len = stream.read_early(&mut region, Ticks(0)).unwrap();
        self.handle(&mut region, len);
    }

    /// Until nothing is under way any more.
    fn finish(&mut self) {
        let expected: usize = self.taken.iter().map(|(bytes, _)| bytes.len()).sum();
        let mut rounds = 0;
        while self.handled.len() < self.said.len() || self.heard.len() < expected {
            self.write(self.wire.len());
            self.visit();
            self.end_turn();
            (0..20).for_each(|_| self.hear());
            rounds += 1;
            assert!(
                rounds < 1_000_000,
                "{} of {}, {} of {expected}",
                self.handled.len(),
                self.said.len(),
                self.heard.len()
            );
            std::thread::yield_now();
        }
        assert!(self.handled == self.said, "each message comes once and in order");
        assert!(
            self.heard == self.taken.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<_>>(),
            "so does each frame"
        );
        self.hear();
        assert_eq!(
            (self.stream().waiting(), self.heard.len(), self.stream().input_bytes()),
            (Amount::default(), expected, 0)
        );
    }
}

fn all_arrives(version: Option<&'static SupportedProtocolVersion>, seeds: u64) {
    let mut moves = [0; 6];
    let mut given_up = Amount::default();
    for seed in 0..seeds {
        let mut world = World::new(seed, version);
        if version.is_some() {
            // What came behind the handshake may move before it was looked at.
            if seed % 2 == 0 { world.move_it() } else { world.read_early() }
        }
        for _ in 0..1_500 {
            world.step();
        }
        world.finish();
        moves.iter_mut().zip(world.moves).for_each(|(sum, count)| *sum += count);
        given_up = given_up + world.given_up;
    }
    // With the start of a message, of a frame sent, with ciphertext, with plaintext, with the start of a record.
    let is_tls = version.is_some();
    for (what, count) in moves.into_iter().enumerate() {
        let is_seen = match what {
            3 | 5 => is_tls,
            _ => true,
        };
        assert!(if is_seen { count > 30 } else { count == 0 }, "moves of kind {what}: {moves:?}");
    }
    assert!(given_up.packets > 100, "{given_up:?}");
}

#[test]
fn a_plain_stream_that_moves_at_any_moment_loses_and_repeats_nothing() {
    all_arrives(None, 12);
}

#[test]
fn a_stream_of_tls_1_3_that_moves_at_any_moment_loses_and_repeats_nothing() {
    all_arrives(Some(&rustls::version::TLS13), 12);
}

#[test]
fn a_stream_of_tls_1_2_that_moves_at_any_moment_loses_and_repeats_nothing() {
    all_arrives(Some(&rustls::version::TLS12), 12);
}
