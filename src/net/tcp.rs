//! One established client stream: what was read and not handled yet, and a bounded queue of what is to be written.

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpStream};

use super::send_queue::{FRAME_COST, SendQueue, SpareQueues};
use super::stream_state::{ENDED_MAX, StreamState, StreamStateError};
use super::tls_session::TlsSession;
use crate::address::{StreamId, Via};
use crate::protocol::accounting::Amount;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::ids::AllocationId;
use crate::time::Ticks;
use crate::wire::attribute::ConnectionId;
use crate::wire::framing::{Cut, cut, frame_bytes};

/// Replies may pass the data's limit by so much: a slow client must still hear that it is refused.
const REPLY_RESERVE: usize = 64 * 1024;

/// Bytes that a stream without an allocation may have us keep, and that are read of it at once: any request that
/// asks for an allocation is shorter.
pub(super) const UNAUTHENTICATED_BYTES: usize = 2 * 1024;

/// Bytes read at once of a stream with an allocation: the least, for one whose frames are so small that a visit can't
/// handle more of them, and the most.
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 64 * 1024;

/// The start of a message that is copied again in front of what is read next; a longer one is added to.
const MOVED_BYTES_MAX: usize = 4 * 1024;

/// Bytes of what is left over that one visit looks at, if its first message is not longer.
const LEFT_OVER_BYTES: usize = 16 * 1024;

/// Requests of a stream without an allocation: so many at once, and one more each so many milliseconds. A client
/// needs two or three, and a Binding now and then to keep the connection open.
const REQUESTS_BURST: u16 = 100;
const REQUEST_INTERVAL: u64 = 50;

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It waits for the end of the turn, or behind others.
    Taken,
    /// The queue is full: dropped.
    Full,
}

/// Why no more messages of a stream were handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// There is no whole message any more.
    NeedsMore,
    /// The budget of this turn is spent.
    OutOfBudget,
}

/// What goes with a stream from one worker to another.
pub(super) struct Moved {
    /// Bytes that were read and not handled.
    pub(super) input: Vec<u8>,
    /// Requests that it may send at once without an allocation, and since when it earns more.
    pub(super) requests: (u16, Ticks),
    /// When it is closed unless it has an allocation by then.
    pub(super) deadline: Option<Ticks>,
}

/// A client's TCP connection, with or without TLS.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    pub(super) id: StreamId,
    pub(super) via: Via,
    /// The connection to a peer that it carries, once it is bound: then its bytes are no messages.
    pub(super) connection: Option<ConnectionId>,
    /// Whether it ever carried one: what waits in its queue are the peer's bytes.
    pub(super) is_data: bool,
    /// When it is closed unless it has an allocation by then.
    pub(super) deadline: Option<Ticks>,
    /// EPOLLIN is asked for.
    pub(super) awaits_bytes: bool,
    /// EPOLLOUT is asked for.
    pub(super) awaits_room: bool,
    /// It waits in the list of streams with more to handle.
    pub(super) is_ready: bool,
    /// It waits in the list of streams with something to write.
    pub(super) is_dirty: bool,
    /// The kernel had no room for all that waits.
    is_blocked: bool,
    /// It is to be closed at the end of the turn: dead, or the client does not read what it asks for.
    must_close: bool,
    /// Another process may have written to it: nothing is written any more.
    is_abandoned: bool,
    tls: Option<Box<TlsSession>>,
    /// Bytes that were read and not handled; those before `input_start` are done with.
    input: Vec<u8>,
    input_start: usize,
    /// Bytes of it that the worker's counter has.
    pub(super) input_counted: usize,
    /// There are whole messages in `input`.
    has_messages: bool,
    /// Bytes to read at once.
    read_bytes: u32,
    requests_left: u16,
    requests_at: Ticks,
    /// Sessions that ended while their payload waited here: their records are held back until all of it is decided.
    ended: Vec<SessionRecord>,
    queue: Option<Box<SendQueue>>,
    queue_bytes_max: usize,
}

impl Stream {
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<Box<TlsSession>>,
        id: StreamId,
        via: Via,
        queue_bytes_max: usize,
        now: Ticks,
    ) -> Self {
        Self {
            socket,
            id,
            via,
            connection: None,
            is_data: false,
            deadline: None,
            awaits_bytes: true,
            awaits_room: false,
            is_ready: false,
            is_dirty: false,
            is_blocked: false,
            must_close: false,
            is_abandoned: false,
            tls,
            input: Vec::new(),
            input_start: 0,
            input_counted: 0,
            has_messages: false,
            read_bytes: READ_BYTES_MIN as u32,
            requests_left: REQUESTS_BURST,
            requests_at: now,
            ended: Vec::new(),
            queue: None,
            queue_bytes_max,
        }
    }

    // ---- to another process

    /// Everything but the socket, as plain values, between two turns: what an event or the end of a turn asked for is done.
    ///
    /// Of two streams with this state only one may ever write: see [`Stream::abandon`].
    pub(super) fn to_state(&self) -> StreamState {
        StreamState {
            id: self.id,
            five_tuple: *self.via.five_tuple(),
            tls: self.tls.as_ref().map(|tls| tls.to_state()),
            input: self.input[self.input_start..].to_vec(),
            requests_left: self.requests_left,
            requests_at: self.requests_at,
            deadline: self.deadline,
            queue: self.queue.as_ref().map(|queue| queue.to_state()),
            ended: self.ended.clone(),
        }
    }

    /// The stream that [`Stream::to_state`] described, on the same socket. With TLS [`Stream::read_early`] must follow.
    ///
    /// What waits already is not too much for it, whatever `queue_bytes_max` has become.
    ///
    /// # Errors
    /// [`StreamStateError`]: the state contradicts itself, or holds more than a stream may.
    pub(super) fn from_state(
        state: StreamState,
        socket: TcpStream,
        queue_bytes_max: usize,
        now: Ticks,
    ) -> Result<Self, StreamStateError> {
        state.check()?;
        let tls = state.tls.map(TlsSession::from_state).transpose()?.map(Box::new);
        let queue = state.queue.map(SendQueue::from_state).filter(|queue| !queue.is_empty()).map(Box::new);
        let queue_bytes_max = queue_bytes_max.max(queue.as_ref().map_or(0, |queue| queue.state_bytes()));
        let via = Via::Stream(state.id, state.five_tuple);
        Ok(Self {
            deadline: state.deadline,
            has_messages: !matches!(cut(&state.input), Cut::NeedMore),
            input: state.input,
            requests_left: state.requests_left.min(REQUESTS_BURST),
            requests_at: state.requests_at.min(now),
            ended: state.ended,
            queue,
            ..Self::new(socket, tls, state.id, via, queue_bytes_max, now)
        })
    }

    /// Nothing is written to this stream any more, not even that it ends: another process has begun to use it and has
    /// ended. It may have used the record numbers that would come next, and what waits here may have left already. The
    /// stream must be closed.
    pub(super) fn abandon(&mut self) {
        self.tls = None;
        (self.is_abandoned, self.must_close) = (true, true);
    }

    /// What its queue takes of a [`StreamState`], in bytes.
    pub(super) fn queue_state_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.state_bytes())
    }

    /// Gives up payload as [`SendQueue::give_up_beyond`] does.
    ///
    /// Nothing of a data connection: it must not lose bytes, and has one read of them at most.
    pub(super) fn give_up_beyond(&mut self, bytes: usize) -> Vec<(AllocationId, u32)> {
        if self.is_data {
            return Vec::new();
        }
        let given_up = self.queue.as_mut().map(|queue| queue.give_up_beyond(bytes)).unwrap_or_default();
        self.queue.take_if(|queue| queue.is_empty());
        given_up
    }

    // ---- in

    /// Puts what can be handled next at the start of `region`: what was left over, or else what can be read, behind the
    /// start of its first message. Gives the number of bytes, `None` at the end of the stream.
    ///
    /// [`Stream::handled`] must follow.
    ///
    /// # Errors
    /// Of the socket; [`io::ErrorKind::InvalidData`] where the client broke the rules of TLS.
    pub(super) fn read(&mut self, region: &mut [u8], has_allocation: bool, now: Ticks) -> io::Result<Option<usize>> {
        if self.has_messages {
            return Ok(Some(self.left_over(region)));
        }
        let kept = self.input.len() - self.input_start;
        let moved = if kept <= MOVED_BYTES_MAX { kept } else { 0 };
        region[..moved].copy_from_slice(&self.input[self.input_start..][..moved]);
        let most = if has_allocation { self.read_bytes as usize } else { UNAUTHENTICATED_BYTES };
        let room = &mut region[moved..];
        let (read, count) = match &mut self.tls {
            None => self.socket.read(&mut room[..most]).map(|read| (read, read))?,
            Some(tls) => tls.read(&mut self.socket, room, most, now)?,
        };
        if read == 0 {
            return Ok(None);
        }
        if read == most {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX as u32);
        }
        Ok(Some(self.take(region, moved, count)))
    }

    /// Takes in bytes that stand behind the first `moved`, those of `input`, in `region`.
    fn take(&mut self, region: &mut [u8], moved: usize, count: usize) -> usize {
        if moved == self.input.len() - self.input_start {
            self.forget_input();
            return moved + count;
        }
        self.input.extend_from_slice(&region[..count]);
        match cut(&self.input[self.input_start..]) {
            Cut::NeedMore => 0,
            Cut::Frame { .. } | Cut::Broken => {
                self.has_messages = true;
                self.left_over(region)
            }
        }
    }

    /// What a visit shall handle of the bytes that are left over.
    fn left_over(&self, region: &mut [u8]) -> usize {
        let left = &self.input[self.input_start..];
        let count = frame_bytes(left).unwrap_or(0).max(LEFT_OVER_BYTES).min(left.len());
        region[..count].copy_from_slice(&left[..count]);
        count
    }

    /// What the client sent right behind its handshake, as [`Stream::read`] gives it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where the client broke the rules of TLS.
    pub(super) fn read_early(&mut self, region: &mut [u8], now: Ticks) -> io::Result<usize> {
        let count = self.tls.as_mut().map_or(Ok(0), |tls| tls.read_early(region, now))?;
        Ok(self.take(region, 0, count))
    }

    /// Keeps what was not handled: of the bytes that [`Stream::read`] gave, the first `done` were.
    pub(super) fn handled(&mut self, region: &[u8], done: usize, stopped: Stopped) {
        if self.has_messages {
            self.input_start += done;
            let left = &self.input[self.input_start..];
            self.has_messages = stopped == Stopped::OutOfBudget || !matches!(cut(left), Cut::NeedMore);
            if left.is_empty() {
                self.forget_input();
            } else if self.input_start > self.input.len() / 2 {
                self.input.drain(..self.input_start);
                self.input_start = 0;
            }
        } else if done < region.len() {
            // Nothing is read behind a long message that has not come whole: that is in `input` already.
            self.input.extend_from_slice(&region[done..]);
            self.has_messages = stopped == Stopped::OutOfBudget;
        }
        if stopped == Stopped::OutOfBudget {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN as u32);
        }
    }

    fn forget_input(&mut self) {
        // A finished large message gives its memory back.
        self.input = Vec::new();
        self.input_start = 0;
        self.has_messages = false;
    }

    /// It carries the bytes of a peer from now on.
    pub(super) const fn carry(&mut self, connection: ConnectionId) {
        (self.connection, self.is_data) = (Some(connection), true);
    }

    /// Goes on where another worker was: with bytes that it read, and so many requests left since then.
    pub(super) fn go_on(&mut self, input: Vec<u8>, (requests_left, requests_at): (u16, Ticks)) {
        self.has_messages = !matches!(cut(&input), Cut::NeedMore);
        self.input = input;
        (self.requests_left, self.requests_at) = (requests_left, requests_at);
    }

    /// What another worker needs to go on; nothing waits to be sent.
    pub(super) fn into_moved(mut self) -> (TcpStream, Option<Box<TlsSession>>, Moved) {
        let input = self.take_input();
        let moved = Moved { input, requests: (self.requests_left, self.requests_at), deadline: self.deadline };
        (self.socket, self.tls, moved)
    }

    /// All that was read and not handled.
    pub(super) fn take_input(&mut self) -> Vec<u8> {
        let rest = self.input.split_off(self.input_start);
        self.forget_input();
        rest
    }

    /// Tells the client that nothing follows, while it may go on sending; all that waited has been written.
    pub(super) fn end_writing(&mut self) {
        if !self.is_abandoned {
            self.say_goodbye();
            // One that is gone is found out by reading.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// Whether whole messages wait that no event of the socket will tell of.
    pub(super) const fn has_messages(&self) -> bool {
        self.has_messages
    }

    /// Bytes that were read and not handled.
    pub(super) fn input_bytes(&self) -> usize {
        let held = self.tls.as_ref().map_or(0, |tls| tls.held_bytes());
        held + self.input.len() - self.input_start
    }

    /// One request of a stream without an allocation; `false` if there were too many.
    pub(super) fn take_request(&mut self, now: Ticks) -> bool {
        let earned = now.since(self.requests_at) / REQUEST_INTERVAL;
        if earned > 0 {
            self.requests_left = REQUESTS_BURST.min(self.requests_left.saturating_add(earned.min(1_000) as u16));
            self.requests_at = now;
        }
        let is_left = self.requests_left > 0;
        self.requests_left = self.requests_left.saturating_sub(1);
        is_left
    }

    /// TLS records opened since the last call.
    pub(super) fn take_records(&mut self) -> u32 {
        self.tls.as_mut().map_or(0, |tls| tls.take_opened())
    }

    /// Whether TLS lies between the socket and the frames.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the client ended its side by close_notify, and all before it is handled.
    pub(super) fn has_ended(&self) -> bool {
        !self.has_messages && self.tls.as_ref().is_some_and(|tls| tls.has_ended())
    }

    // ---- out

    /// Whether something of the handshake is to be sent.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Says by close_notify that nothing follows, or by another alert why, if nothing waits before it; the socket is closed next.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = self.tls.as_mut().filter(|_| self.queue.is_none()) {
            tls.close(&mut self.socket);
        }
    }

    /// The payload in the queue.
    pub(super) fn waiting(&self) -> Amount {
        self.queue.as_ref().map(|queue| queue.waiting()).unwrap_or_default()
    }

    /// Whether something waits for the kernel to have room.
    pub(super) const fn has_backlog(&self) -> bool {
        self.queue.is_some()
    }

    /// Bytes that wait to be written.
    pub(super) fn ready_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.ready_bytes())
    }

    /// Queues a frame, in pieces; [`Stream::flush`] must follow. `spare` are queues to begin one with.
    pub(super) fn send(
        &mut self,
        pieces: [&[u8]; 3],
        payload: Option<(AllocationId, u32)>,
        spare: &mut SpareQueues,
    ) -> Sent {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let reserve = if payload.is_some() { 0 } else { REPLY_RESERVE };
        let cost = self.queue.as_ref().map_or(0, |queue| queue.cost());
        if cost > 0 && cost + len + FRAME_COST > self.queue_bytes_max.saturating_add(reserve) {
            return Sent::Full;
        }
        let queue = self.queue.get_or_insert_with(|| spare.pop().unwrap_or_default());
        queue.push(pieces, payload);
        Sent::Taken
    }

    /// Writes what waits, as far as the kernel takes it.
    pub(super) fn flush(&mut self, spare: &mut SpareQueues) {
        if self.is_abandoned {
            return;
        }
        let mut queue = match self.queue.take() {
            Some(queue) => queue,
            None if self.wants_write() => spare.pop().unwrap_or_default(),
            None => return,
        };
        let written = queue.write(&mut self.socket, self.tls.as_deref_mut());
        self.is_blocked = matches!(written, Ok(false));
        self.must_close |= written.is_err();
        if queue.is_empty() {
            queue.recycle();
            spare.push(queue);
        } else {
            // A client that has us answer without reading the answers.
            self.must_close |= queue.ready_bytes() > self.queue_bytes_max.saturating_add(2 * REPLY_RESERVE);
            self.queue = Some(queue);
        }
    }

    /// Whether the kernel had no room at the last write.
    pub(super) const fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Whether the stream must be closed at the end of the turn.
    pub(super) const fn must_close(&self) -> bool {
        self.must_close
    }

    /// The client is cut off at the end of the turn.
    pub(super) const fn cut_off(&mut self) {
        self.must_close = true;
    }

    // ---- records of sessions that have ended

    /// Holds a record back if payload of its session still waits; else gives it back.
    pub(super) fn hold_back(&mut self, record: Box<SessionRecord>) -> Option<Box<SessionRecord>> {
        if !self.holds_payload_of(record.allocation) {
            return Some(record);
        }
        self.must_close |= self.ended.len() >= ENDED_MAX;
        self.ended.push(*record);
        None
    }

    fn holds_payload_of(&self, allocation: AllocationId) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.holds_payload_of(allocation))
    }

    /// The record of an ended session whose payload has all left, or been given up.
    pub(super) fn decided(&mut self) -> Option<Box<SessionRecord>> {
        let at = self.ended.iter().position(|record| !self.holds_payload_of(record.allocation))?;
        Some(Box::new(self.ended.remove(at)))
    }

    /// The record that is held back for an allocation.
    pub(super) fn held_back(&mut self, allocation: AllocationId) -> Option<&mut SessionRecord> {
        self.ended.iter_mut().find(|record| record.allocation == allocation)
    }

    /// Gives up what waits; tells whose payload it was, in bytes: it is to be reported.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = (AllocationId, u32)> {
        self.queue.take().into_iter().flat_map(|mut queue| queue.give_up().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;
    use crate::address::{ClientAddress, FiveTuple, ServerAddress, Transport};

    const ID: AllocationId = AllocationId { index: 2, generation: 3 };

    fn pair(limit: usize) -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, from) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let five_tuple = FiveTuple {
            client: ClientAddress::from(from),
            server: ServerAddress::from(listener.local_addr().unwrap()),
            transport: Transport::Tcp,
        };
        (Stream::new(server, None, StreamId(1), Via::Stream(StreamId(1), five_tuple), limit, Ticks(0)), client)
    }

    fn cost(stream: &Stream) -> usize {
        stream.queue.as_ref().map_or(0, |queue| queue.cost())
    }

    #[test]
    fn a_slow_reader_gets_whole_frames_in_order_and_the_rest_is_refused() {
        let (mut stream, mut client) = pair(64 * 1024);
        let mut spare = Vec::new();
        let (mut taken, mut refused) = (0_u32, 0);
        for number in 0..20_000_u32 {
            let payload = [number.to_be_bytes().as_slice(), &[7; 996]].concat();
            match stream.send([&payload[..4], &payload[4..], &[]], Some((ID, 1000)), &mut spare) {
                Sent::Taken if refused == 0 => taken += 1,
                Sent::Taken => panic!("a full queue took a frame without being read"),
                Sent::Full => refused += 1,
            }
            if refused == 0 && number % 7 == 0 {
                stream.flush(&mut spare);
            }
        }
        assert!(stream.has_backlog() && refused > 0 && taken > 64);
        assert!(cost(&stream) <= 64 * 1024, "{} queued", cost(&stream));
        let reply = stream.send([b"reply", b"", b""], None, &mut spare);
        assert_eq!(reply, Sent::Taken, "a reply passes the data's limit");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all
        });
        assert_eq!(stream.waiting().bytes, stream.waiting().packets * 1000);
        while stream.has_backlog() {
            stream.flush(&mut spare);
            std::thread::yield_now();
        }
        assert_eq!((stream.waiting(), spare.len()), (Amount::default(), 1));
        drop(stream);
        let all = reader.join().unwrap();
        assert_eq!(all.len(), taken as usize * 1000 + 5);
        for (frame, number) in all.chunks(1000).zip(0..taken) {
            assert_eq!(frame[..4], number.to_be_bytes());
        }
    }

    /// F-A11: what a queue takes of the memory is bounded, not the bytes of its frames alone.
    #[test]
    fn a_queue_of_empty_payloads_is_as_bounded_as_one_of_long_ones() {
        let (mut stream, _client) = pair(64 * 1024);
        let mut spare = Vec::new();
        let mut taken = 0;
        while stream.send([&[0x40, 0, 0, 0], &[], &[]], Some((ID, 0)), &mut spare) == Sent::Taken {
            taken += 1;
            assert!(taken <= 64 * 1024 / (4 + FRAME_COST) + 1, "{taken} frames");
        }
        assert!(taken > 1_000);
    }

    #[test]
    fn what_waits_at_the_end_is_reported() {
        let (mut stream, _client) = pair(1 << 30);
        let mut spare = Vec::new();
        let mut frames = 0;
        while stream.waiting().packets < 10 {
            stream.send([&[0; 4], &[0; 60_000], &[]], Some((ID, 60_000)), &mut spare);
            frames += 1;
            stream.flush(&mut spare);
        }
        assert!(frames > 10, "the kernel took some");
        assert_eq!(stream.waiting(), Amount { packets: 10, bytes: 600_000 });
        assert_eq!(stream.give_up().filter(|(of, bytes)| *of == ID && *bytes == 60_000).count(), 10);
        assert_eq!(stream.waiting(), Amount::default());
    }

    /// Handles so many messages at each visit; gives all of them.
    fn read_all(stream: &mut Stream, expected: usize, per_visit: usize) -> Vec<Vec<u8>> {
        let (mut region, mut messages) = (vec![0; 160 * 1024], Vec::new());
        while messages.len() < expected {
            let len = match stream.read(&mut region, true, Ticks(0)) {
                Ok(len) => len.expect("the client has not ended"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::yield_now();
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let (mut done, mut stopped) = (0, Stopped::NeedsMore);
            for count in 0.. {
                let Cut::Frame { message, consumed } = cut(&region[done..len]) else { break };
                if count == per_visit {
                    stopped = Stopped::OutOfBudget;
                    break;
                }
                messages.push(region[done..done + message].to_vec());
                done += consumed;
            }
            stream.handled(&region[..len], done, stopped);
            assert!(stream.input_bytes() <= READ_BYTES_MAX + MOVED_BYTES_MAX + 65_536);
        }
        messages
    }

    #[test]
    fn messages_come_whole_and_in_order_whatever_a_visit_handles_and_however_they_are_cut() {
        let frame = |number: usize, len: usize| {
            let mut frame = vec![0x40, number as u8];
            frame.extend((len as u16).to_be_bytes());
            frame.extend((0..len).map(|at| (at + number) as u8));
            frame
        };
        let lengths = [0, 4, 1_200, 65_532, 0, 8, 30_000, 4, 4, 4, 65_532, 5_000, 0, 0];
        let frames: Vec<_> = (0..70).map(|number| frame(number, lengths[number % lengths.len()])).collect();
        for (piece, per_visit) in [(1_000_000, 100), (1_000_000, 1), (3_333, 2), (70_000, 3)] {
            let (mut stream, mut client) = pair(1 << 20);
            let bytes = frames.concat();
            let writer = std::thread::spawn(move || {
                bytes.chunks(piece).for_each(|piece| client.write_all(piece).unwrap());
                client
            });
            assert_eq!(read_all(&mut stream, frames.len(), per_visit), frames, "{piece} {per_visit}");
            assert_eq!(stream.input_bytes(), 0);
            writer.join().unwrap();
        }
    }

    #[test]
    fn a_stream_without_an_allocation_is_read_in_small_pieces_and_has_few_requests() {
        let (mut stream, mut client) = pair(1 << 20);
        client.write_all(&[0; 100_000]).unwrap();
        let mut region = vec![0; 160 * 1024];
        assert_eq!(stream.read(&mut region, false, Ticks(0)).unwrap(), Some(UNAUTHENTICATED_BYTES));
        let taken = (0..1_000).filter(|_| stream.take_request(Ticks(10))).count();
        assert_eq!(taken, usize::from(REQUESTS_BURST));
        assert!(
            stream.take_request(Ticks(10 + REQUEST_INTERVAL)) && !stream.take_request(Ticks(10 + REQUEST_INTERVAL))
        );
    }
}
