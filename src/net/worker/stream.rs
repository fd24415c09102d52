//! A worker's clients over TCP and TLS: adopting, reading, cutting into frames, closing.

use std::io;
use std::os::fd::AsFd as _;

use super::budget::Work;
use super::{Adopted, BATCH, STREAM, STREAM_SLOT, STREAM_SLOTS, Worker, token};
use crate::address::{StreamId, Via};
use crate::net::sys::Part;
use crate::net::tcp::{Sent, Stopped, Stream, UNAUTHENTICATED_BYTES};
use crate::protocol::accounting::Amount;
use crate::protocol::border::{Head, Input};
use crate::protocol::connect::bound_at;
use crate::protocol::ids::{AllocationId, WorkerId};
use crate::protocol::reason::{Direction, DropReason};
use crate::time::Now;
use crate::wire::framing::{Cut, cut, frame_bytes};
use crate::wire::{Class, classify};

impl Worker {
    pub(super) fn adopt(&mut self, now: Now, stream: Adopted) {
        let Adopted { socket, five_tuple, tls, permit, moved } = stream;
        self.net.streams_adopted.add(1);
        if self.drops_suspect(&five_tuple, 0) {
            return;
        }
        let (at, stream) = self.streams.insert(socket, tls, five_tuple, permit, now.ticks);
        self.net.streams_open.add(1);
        if self.epoll.add(stream.socket.as_fd(), token(STREAM, at)).is_err() {
            return self.close_stream(now, at);
        }
        match moved {
            None => self.read_early(now, at),
            Some(moved) => {
                stream.go_on(moved.input, moved.requests);
                self.streams.hasten(at, moved.deadline);
                self.put_off(now, at);
                self.waker.wake();
            }
        }
    }

    /// Another worker has the connection that this message is about to bind: the stream goes there, with what was read of it
    /// from this message on.
    fn move_stream(&mut self, now: Now, at: usize, bytes: std::ops::Range<usize>, to: WorkerId) {
        let std::ops::Range { start: done, end: len } = bytes;
        self.visited = None;
        self.flush_payload();
        self.streams.flush(at);
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.handled(&self.datagrams.arena.region(STREAM_SLOT, STREAM_SLOTS)[..len], done, Stopped::OutOfBudget);
        // One whose answers still wait would get them out of order.
        let is_written = !stream.has_backlog();
        let taken = is_written.then(|| self.streams.take(at)).flatten();
        let (Some(mailbox), Some((stream, permit))) = (self.mailboxes.get(usize::from(to.0)), taken) else {
            return self.close_stream(now, at);
        };
        self.net.stream_input_bytes.sub(stream.input_counted as u64);
        self.net.streams_open.sub(1);
        self.epoll.remove(stream.socket.as_fd());
        let five_tuple = *stream.via.five_tuple();
        let (socket, tls, moved) = stream.into_moved();
        mailbox.adopt(Adopted { socket, five_tuple, tls, permit, moved: Some(moved) });
    }

    /// The other worker that has the connection which a message is about to bind.
    fn binds_elsewhere(&self, message: &[u8], via: &Via) -> Option<WorkerId> {
        let to = bound_at(message).filter(|to| *to != self.id && usize::from(to.0) < self.mailboxes.len())?;
        (!self.server.has_allocation(via)).then_some(to)
    }

    /// Handles what came with a TLS handshake's last bytes, or what another process had read: epoll knows nothing of it.
    pub(super) fn read_early(&mut self, now: Now, at: usize) {
        if !self.streams.get(at).is_some_and(Stream::is_tls) {
            return;
        }
        self.make_stream_room();
        let Some(stream) = self.streams.get_mut(at) else { return };
        match stream.read_early(self.datagrams.arena.region_mut(STREAM_SLOT, STREAM_SLOTS), now.ticks) {
            Ok(len) => self.on_stream_bytes(now, at, len),
            Err(_) => self.break_tls(now, at),
        }
    }

    /// The client broke the rules of TLS; it hears which by an alert.
    pub(super) fn break_tls(&mut self, now: Now, at: usize) {
        self.net.streams_tls_broken.add(1);
        self.close_stream(now, at);
    }

    /// Payloads of the stream before may still lie where this one is read to.
    pub(super) fn make_stream_room(&mut self) {
        if self.datagrams.pinned { self.flush() } else { self.flush_to_peer() }
    }

    pub(super) fn on_stream(&mut self, now: Now, at: usize, readable: bool, writable: bool) {
        if writable {
            self.flush_stream(now, at);
        }
        if readable && self.streams.get(at).is_some_and(|stream| !stream.is_ready) {
            if self.budget.is_spent() {
                self.put_off(now, at);
            } else {
                self.visit_stream(now, at);
            }
        }
    }

    /// Streams that an earlier turn put off have theirs first, each once.
    pub(super) fn visit_ready_streams(&mut self, now: Now) {
        for _ in 0..self.streams.ready() {
            if self.budget.is_spent() {
                return;
            }
            if let Some(at) = self.streams.pop_ready() {
                self.visit_stream(now, at);
                self.update_interest(now, at);
            }
            if self.datagrams.since_listeners >= BATCH {
                self.visit_listeners(now);
            }
        }
    }

    /// The stream has its turn again when all others that wait have had theirs. Until then epoll, which shows 64 at a
    /// time, need not tell of it.
    fn put_off(&mut self, now: Now, at: usize) {
        if self.streams.make_ready(at) {
            self.update_interest(now, at);
        }
    }

    /// Handles what was left over of a stream, or else reads once and handles that, as far as the budget goes.
    fn visit_stream(&mut self, now: Now, at: usize) {
        if self.streams.get(at).is_some_and(|stream| stream.connection.is_some()) {
            return self.visit_data_connection(now, at);
        }
        self.make_stream_room();
        let Some(stream) = self.streams.get_mut(at) else { return };
        let (is_tls, has_allocation) = (stream.is_tls(), self.server.has_allocation(&stream.via));
        let read = stream.read(self.datagrams.arena.region_mut(STREAM_SLOT, STREAM_SLOTS), has_allocation, now.ticks);
        self.budget.charge_records(stream.take_records());
        match read {
            Ok(Some(len)) => self.on_stream_bytes(now, at, len),
            Err(error) if is_tls && error.kind() == io::ErrorKind::InvalidData => self.break_tls(now, at),
            Ok(None) => self.close_stream(now, at),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.close_stream(now, at),
        }
    }

    /// Handles the first `len` bytes of the streams' region, message by message.
    pub(super) fn on_stream_bytes(&mut self, now: Now, at: usize, len: usize) {
        let Some((id, via)) = self.streams.get(at).map(|stream| (stream.id, stream.via)) else { return };
        if self.streams.get(at).is_some_and(|stream| stream.connection.is_some()) {
            return self.on_client_bytes(now, at, len);
        }
        let start = self.datagrams.arena.part_of(STREAM_SLOT, 0, len).start;
        let mut done = 0;
        self.visited = Some(id);
        self.budget.begin_visit();
        let stopped = loop {
            let bytes = &self.datagrams.arena.region(STREAM_SLOT, STREAM_SLOTS)[done..len];
            match cut(bytes) {
                Cut::Frame { message, consumed } => {
                    let work = match classify(bytes) {
                        Class::ChannelData | Class::SendIndication => Work::Data,
                        Class::Stun | Class::Neither => Work::Request,
                    };
                    if !self.budget.take(work) {
                        break Stopped::OutOfBudget;
                    }
                    if work == Work::Request {
                        if !self.may_ask(now, at, &via) {
                            return self.cut_off(now, at);
                        }
                        let bytes = &self.datagrams.arena.region(STREAM_SLOT, STREAM_SLOTS)[done..len];
                        if let Some(to) = bytes.get(..message).and_then(|message| self.binds_elsewhere(message, &via)) {
                            return self.move_stream(now, at, done..len, to);
                        }
                    }
                    self.on_frame(now, via, start + done, message);
                    done += consumed;
                    let Some(stream) = self.streams.get(at).filter(|stream| stream.id == id) else { return };
                    if stream.connection.is_some() {
                        self.visited = None;
                        return self.begin_to_carry(now, at, len, done);
                    }
                }
                Cut::NeedMore => {
                    if !self.may_keep(bytes, &via) {
                        return self.break_stream(now, at, bytes.len());
                    }
                    break Stopped::NeedsMore;
                }
                Cut::Broken => return self.break_stream(now, at, bytes.len()),
            }
        };
        self.visited = None;
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.handled(&self.datagrams.arena.region(STREAM_SLOT, STREAM_SLOTS)[..len], done, stopped);
        let counted = stream.input_counted;
        stream.input_counted = stream.input_bytes();
        self.net.stream_input_bytes.add((stream.input_counted as u64).wrapping_sub(counted as u64));
        if stream.has_messages() {
            self.put_off(now, at);
        } else if stream.has_ended() {
            self.close_stream(now, at);
        } else if stream.wants_write() {
            self.streams.make_dirty(at);
        }
    }

    /// Whether a stream may send one more request: with an allocation always, else so many per second.
    fn may_ask(&mut self, now: Now, at: usize, via: &Via) -> bool {
        self.server.has_allocation(via) || self.streams.get_mut(at).is_some_and(|stream| stream.take_request(now.ticks))
    }

    /// Whether the start of a message is worth keeping: only an allocation has channels and long messages; from others
    /// this is no TURN at all, or nothing that they need.
    fn may_keep(&self, bytes: &[u8], via: &Via) -> bool {
        let is_short = frame_bytes(bytes).is_none_or(|bytes| bytes <= UNAUTHENTICATED_BYTES);
        (is_short && classify(bytes) != Class::ChannelData) || self.server.has_allocation(via)
    }

    /// Closes a stream that asks too much.
    fn cut_off(&mut self, now: Now, at: usize) {
        self.net.streams_cut_off.add(1);
        self.close_stream(now, at);
    }

    pub(super) fn break_stream(&mut self, now: Now, at: usize, bytes: usize) {
        self.counters.dropped(DropReason::NotStun, 1, bytes as u64);
        self.net.streams_broken.add(1);
        self.close_stream(now, at);
    }

    pub(super) fn on_frame(&mut self, now: Now, via: Via, start: usize, len: usize) {
        self.datagrams.since_listeners += 1;
        self.frames += 1;
        let part = self.datagrams.arena.part_at(start, len);
        match classify(self.datagrams.arena.part(part)) {
            Class::ChannelData | Class::SendIndication => {
                self.on_data(now, &via, part, 0);
            }
            Class::Stun | Class::Neither => {
                self.flush_payload();
                self.take_in_hand(&via);
                let bytes = self.datagrams.arena.part(part);
                self.server.handle_input(now, Input::Message { via, bytes });
                self.drain(now);
            }
        }
    }

    /// Asks epoll for room while something waits to be written, and for bytes unless the stream waits for its turn.
    pub(super) fn update_interest(&mut self, now: Now, at: usize) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        if stream.connection.is_some() {
            return self.update_data_interest(now, at);
        }
        let (bytes, room) = (!stream.is_ready, stream.has_backlog() && !stream.is_dirty);
        if (bytes, room) != (stream.awaits_bytes, stream.awaits_room) {
            (stream.awaits_bytes, stream.awaits_room) = (bytes, room);
            if self.epoll.modify(stream.socket.as_fd(), token(STREAM, at), bytes, room).is_err() {
                self.close_stream(now, at);
            }
        }
    }

    /// Writes what waits for a stream, and closes it if that fails.
    pub(super) fn flush_stream(&mut self, now: Now, at: usize) {
        let Some(before) = self.streams.get(at).map(Stream::waiting) else { return };
        self.streams.flush(at);
        let Some(stream) = self.streams.get(at) else { return };
        self.net.waits(before, stream.waiting());
        let must_close = stream.must_close();
        let is_written = stream.connection.is_some() && !stream.has_backlog();
        self.tell_decided(at);
        if must_close {
            self.close_stream(now, at);
        } else {
            if is_written {
                self.on_data_stream_written(now, at);
            }
            self.update_interest(now, at);
        }
    }

    /// Writes what this turn brought for streams, one write for each.
    pub(super) fn flush_streams(&mut self, now: Now) {
        while let Some(at) = self.streams.pop_dirty() {
            if let Some(at) = at {
                self.flush_stream(now, at);
            }
        }
    }

    pub(super) fn close_stream(&mut self, now: Now, at: usize) {
        self.flush_payload();
        self.give_up_unsent(at);
        let Some(stream) = self.streams.remove(at) else { return };
        self.net.stream_input_bytes.sub(stream.input_counted as u64);
        self.net.streams_open.sub(1);
        if stream.is_data {
            // It had no allocation. Nothing is drained for one that the core has closed: it may close thousands at once.
            return stream.connection.into_iter().for_each(|connection| self.on_data_stream_closed(now, connection));
        }
        self.server.handle_input(now, Input::ClientClosed { via: stream.via });
        self.drain(now);
    }

    pub(super) fn send_to_stream(&mut self, stream: StreamId, allocation: AllocationId, head: &Head, part: Part) {
        let len = part.len;
        let why = match self.streams.find(stream) {
            None => Some(DropReason::StreamClosed),
            Some(at) => {
                let before = self.streams.get(at).map(Stream::waiting).unwrap_or_default();
                let pieces = [head.bytes(), self.datagrams.arena.part(part), &[0; 3][..head.padding()]];
                let sent = self.streams.send(at, pieces, Some((allocation, len as u32)));
                let after = self.streams.get(at).map(Stream::waiting).unwrap_or_default();
                self.net.waits(before, after);
                (sent != Some(Sent::Taken)).then_some(DropReason::SlowClient)
            }
        };
        if let Some(why) = why {
            self.server.not_sent(allocation, Direction::ToClient, 1, len as u64, why);
        }
    }

    /// What waits in a stream's queue will never leave: it is counted as not sent before any record says otherwise.
    pub(super) fn give_up_unsent(&mut self, at: usize) {
        let Some(before) = self.streams.get(at).map(Stream::waiting) else { return };
        // What this turn brought still leaves, if the kernel has room: a refusal, the last of the data.
        if self.streams.get(at).is_some_and(|stream| !stream.is_blocked()) {
            self.streams.flush(at);
        }
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.say_goodbye();
        self.net.waits(before, Amount::default());
        let unsent: Vec<_> = stream.give_up().collect();
        for (allocation, bytes) in unsent {
            self.not_sent_to_stream(at, allocation, u64::from(bytes), DropReason::StreamClosed);
        }
        self.tell_decided(at);
    }

    /// Payload that waited in a stream's queue will never leave: the allocation counts it, or the record that is held back.
    pub(super) fn not_sent_to_stream(&mut self, at: usize, allocation: AllocationId, bytes: u64, why: DropReason) {
        if self.streams.get(at).is_some_and(|stream| stream.is_data) {
            return self.lose(allocation, Direction::ToClient, 1, bytes);
        }
        self.server.not_sent(allocation, Direction::ToClient, 1, bytes, why);
        if let Some(record) = self.streams.get_mut(at).and_then(|stream| stream.held_back(allocation)) {
            record.not_sent(Direction::ToClient, 1, bytes, why);
        }
    }
}
