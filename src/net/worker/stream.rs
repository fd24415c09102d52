//! A worker's clients over TCP and TLS: adopting, reading, cutting into frames, closing.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd as _;

use super::{STREAM, STREAM_SLOT, STREAM_SLOTS, Worker, token};
use crate::net::sys::{Arena, Part};
use crate::net::tcp::Sent;
use crate::net::tls_session::TlsSession;
use crate::protocol::accounting::Amount;
use crate::protocol::address::{FiveTuple, StreamId, Via};
use crate::protocol::border::{AllocationId, DropReason, Head, Input, Way};
use crate::protocol::time::Now;
use crate::wire::{Class, classify};

impl Worker {
    pub(super) fn adopt(&mut self, now: Now, socket: TcpStream, five_tuple: FiveTuple, tls: Option<TlsSession>) {
        let (at, stream) = self.streams.insert(socket, tls, five_tuple, now.ticks);
        self.net.streams_open.add(1);
        self.net.streams_adopted.add(1);
        if self.epoll.add(stream.socket.as_fd(), token(STREAM, at)).is_err() {
            return self.close_stream(now, at);
        }
        if stream.is_tls() {
            self.make_stream_room();
            let Some(stream) = self.streams.get_mut(at) else { return };
            // Epoll knows nothing of what came with the handshake's last bytes.
            match stream.read_early(self.arena.region_mut(STREAM_SLOT, STREAM_SLOTS)) {
                Ok(len) => self.on_tls_bytes(now, at, len),
                Err(_) => self.break_tls(now, at),
            }
        }
    }

    pub(super) fn on_tls_bytes(&mut self, now: Now, at: usize, len: usize) {
        let Some(id) = self.streams.get(at).map(|stream| stream.id) else { return };
        self.on_stream_bytes(now, at, len);
        if self.streams.find(id) == Some(at)
            && let Some(stream) = self.streams.get_mut(at)
        {
            let is_over = stream.send_tls() == Sent::Failed || stream.has_ended();
            self.after_send(now, at, is_over);
        }
    }

    /// The client broke the rules of TLS; it hears which by an alert.
    pub(super) fn break_tls(&mut self, now: Now, at: usize) {
        self.net.streams_tls_broken.add(1);
        self.close_stream(now, at);
    }

    /// Payloads of the stream before may still lie where this one is read to.
    fn make_stream_room(&mut self) {
        if self.pinned { self.flush() } else { self.flush_to_peer() }
    }

    pub(super) fn on_stream(&mut self, now: Now, at: usize, readable: bool, writable: bool) {
        if writable {
            let failed = self.streams.get_mut(at).is_some_and(|stream| {
                let before = stream.waiting();
                let failed = stream.flush().is_err();
                self.net.waits(before, stream.waiting());
                failed
            });
            self.tell_decided(at);
            self.after_send(now, at, failed);
        }
        if readable {
            self.make_stream_room();
            let Some(stream) = self.streams.get_mut(at) else { return };
            let is_tls = stream.is_tls();
            match stream.read(self.arena.region_mut(STREAM_SLOT, STREAM_SLOTS), &mut self.cipher) {
                Ok(Some(len)) if is_tls => self.on_tls_bytes(now, at, len),
                Ok(Some(len)) => self.on_stream_bytes(now, at, len),
                Err(error) if is_tls && error.kind() == io::ErrorKind::InvalidData => self.break_tls(now, at),
                Ok(None) => self.close_stream(now, at),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => self.close_stream(now, at),
            }
        }
    }

    pub(super) fn on_stream_bytes(&mut self, now: Now, at: usize, len: usize) {
        use crate::wire::framing::{Cut, cut};
        let start = Arena::part_of(STREAM_SLOT, 0, len).start;
        let mut done = 0;
        while let Some((id, via)) = self.streams.get(at).map(|stream| (stream.id, stream.via)) {
            let bytes = &self.arena.region(STREAM_SLOT, STREAM_SLOTS)[done..len];
            match cut(bytes) {
                Cut::Frame { message, consumed } => {
                    self.on_frame(now, via, start + done, message);
                    done += consumed;
                    if self.streams.find(id) != Some(at) {
                        return;
                    }
                }
                Cut::NeedMore => {
                    // Only an allocation has channels; from anyone else this is no TURN at all.
                    if classify(bytes) == Class::ChannelData && !self.server.has_allocation(&via) {
                        return self.break_stream(now, at, bytes.len());
                    }
                    if let Some(stream) = self.streams.get_mut(at) {
                        stream.keep(&self.arena.region(STREAM_SLOT, STREAM_SLOTS)[done..len]);
                    }
                    return;
                }
                Cut::Broken => return self.break_stream(now, at, bytes.len()),
            }
        }
    }

    pub(super) fn break_stream(&mut self, now: Now, at: usize, bytes: usize) {
        self.counters.dropped(DropReason::NotStun, 1, bytes as u64);
        self.net.streams_broken.add(1);
        self.close_stream(now, at);
    }

    pub(super) fn on_frame(&mut self, now: Now, via: Via, start: usize, len: usize) {
        self.since_listeners += 1;
        match classify(self.arena.part(Part { start, len })) {
            Class::ChannelData | Class::SendIndication => self.on_data(now, &via, Part { start, len }),
            Class::Stun | Class::Neither => {
                self.flush_payload();
                let bytes = self.arena.part(Part { start, len });
                self.server.handle_input(now, Input::Message { via, bytes });
                self.drain(now);
            }
        }
    }

    /// Asks for EPOLLOUT while something waits, and closes what can't be written to.
    pub(super) fn after_send(&mut self, now: Now, at: usize, failed: bool) {
        if failed {
            return self.close_stream(now, at);
        }
        let Some(stream) = self.streams.get_mut(at) else { return };
        let awaits = stream.has_backlog();
        if awaits != stream.awaits_room {
            stream.awaits_room = awaits;
            if self.epoll.modify(stream.socket.as_fd(), token(STREAM, at), true, awaits).is_err() {
                self.close_stream(now, at);
            }
        }
    }

    pub(super) fn close_stream(&mut self, now: Now, at: usize) {
        self.flush_payload();
        self.give_up_unsent(at);
        let Some(stream) = self.streams.remove(at) else { return };
        self.net.streams_open.sub(1);
        self.server.handle_input(now, Input::ClientClosed { via: stream.via });
        self.drain(now);
    }

    pub(super) fn send_to_stream(
        &mut self,
        now: Now,
        stream: StreamId,
        allocation: AllocationId,
        head: &Head,
        part: Part,
    ) {
        let len = part.len;
        let at = self.streams.find(stream);
        let sent = match at.and_then(|at| self.streams.get_mut(at)) {
            None => Sent::Failed,
            Some(stream) => {
                let padding = &[0; 3][..head.padding()];
                let before = stream.waiting();
                let payload = Some((allocation, len as u32));
                let sent = stream.send([head.bytes(), self.arena.part(part), padding], payload);
                self.net.waits(before, stream.waiting());
                sent
            }
        };
        let why = match sent {
            Sent::Taken => None,
            Sent::Full => Some(DropReason::SlowClient),
            Sent::Failed => Some(DropReason::StreamClosed),
        };
        if let Some(why) = why {
            self.server.not_sent(allocation, Way::ToClient, 1, len as u64, why);
        }
        if let Some(at) = at {
            self.after_send(now, at, sent == Sent::Failed);
        }
    }

    /// What waits in a stream's queue will never leave: it is counted as not sent before any record says otherwise.
    pub(super) fn give_up_unsent(&mut self, at: usize) {
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.say_goodbye();
        self.net.waits(stream.waiting(), Amount::default());
        let unsent: Vec<_> = stream.unsent().collect();
        for (allocation, bytes) in unsent {
            let (bytes, why) = (u64::from(bytes), DropReason::StreamClosed);
            self.server.not_sent(allocation, Way::ToClient, 1, bytes, why);
            if let Some(record) = self.streams.get_mut(at).and_then(|stream| stream.held_back(allocation)) {
                record.not_sent(Way::ToClient, 1, bytes, why);
            }
        }
        self.tell_decided(at);
    }
}
