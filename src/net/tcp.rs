//! One established client stream: what was read and is no whole message yet, and a bounded write queue.
//!
//! With TLS the queue holds ciphertext: a frame that does not fit is dropped before it is encrypted.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::TcpStream;

use super::tls_session::TlsSession;
use crate::protocol::accounting::Amount;
use crate::protocol::accounting::SessionRecord;
use crate::protocol::address::{StreamId, Via};
use crate::protocol::border::AllocationId;
use crate::protocol::time::Ticks;

/// Replies may pass the data's limit by so much: a slow client must still hear that it is refused.
const REPLY_RESERVE: usize = 64 * 1024;

/// A frame that the kernel has not taken whole.
#[derive(Debug)]
struct Queued {
    bytes: Box<[u8]>,
    payload: Option<(AllocationId, u32)>,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The kernel has it, or it waits in the queue.
    Taken,
    /// The queue is full: dropped.
    Full,
    /// The stream is dead.
    Failed,
}

/// A client's TCP connection, with or without TLS.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    pub(super) id: StreamId,
    pub(super) via: Via,
    /// The start of a message whose end has not come.
    pub(super) remainder: Vec<u8>,
    /// When it is closed unless it has an allocation by then.
    pub(super) deadline: Option<Ticks>,
    /// EPOLLOUT is asked for.
    pub(super) awaits_room: bool,
    tls: Option<TlsSession>,
    /// Sessions that ended while their payload waited here: their records are held back until all of it is decided.
    ended: Vec<SessionRecord>,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    waiting: Amount,
    front_sent: usize,
    queue_bytes_max: usize,
}

impl Stream {
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<TlsSession>,
        id: StreamId,
        via: Via,
        queue_bytes_max: usize,
    ) -> Self {
        Self {
            socket,
            id,
            via,
            remainder: Vec::new(),
            deadline: None,
            awaits_room: false,
            tls,
            ended: Vec::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            waiting: Amount::default(),
            front_sent: 0,
            queue_bytes_max,
        }
    }

    /// Reads what is there behind what was left over; gives the number of bytes in `region`, nothing at the end.
    ///
    /// `cipher` is room for what TLS decrypts.
    pub(super) fn read(&mut self, region: &mut [u8], cipher: &mut [u8]) -> io::Result<Option<usize>> {
        let kept = self.remainder.len();
        region[..kept].copy_from_slice(&self.remainder);
        let room = &mut region[kept..];
        let read = match &mut self.tls {
            None => self.socket.read(room)?,
            Some(_) => self.socket.read(cipher)?,
        };
        if read == 0 {
            return Ok(None);
        }
        let count = match &mut self.tls {
            None => read,
            Some(tls) => tls.decrypt(&cipher[..read], room).map_err(broken)?,
        };
        self.remainder.clear();
        Ok(Some(kept + count))
    }

    /// Whether TLS lies between the socket and the frames.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What the client sent right behind its handshake, as [`Stream::read`] gives it.
    pub(super) fn read_early(&mut self, region: &mut [u8]) -> io::Result<usize> {
        self.tls.as_mut().map_or(Ok(0), |tls| tls.decrypt(&[], region).map_err(broken))
    }

    /// Whether the client ended its side by close_notify.
    pub(super) fn has_ended(&self) -> bool {
        self.tls.as_ref().is_some_and(TlsSession::has_ended)
    }

    /// Sends what TLS itself has to say: an answer to a change of keys, an alert.
    pub(super) fn send_tls(&mut self) -> Sent {
        let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) else { return Sent::Taken };
        if self.queue.is_empty() && !is_alive(tls.write_to(&mut self.socket)) {
            return Sent::Failed;
        }
        self.queue_cipher(None);
        // A client that has us answer without reading the answers.
        if self.queued_bytes > self.queue_bytes_max.saturating_add(REPLY_RESERVE) { Sent::Failed } else { Sent::Taken }
    }

    /// Says by close_notify that nothing follows, if nothing waits before it; the socket is closed next.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = self.tls.as_mut().filter(|_| self.queue.is_empty()) {
            tls.close();
            // Whether it arrives makes no difference to us.
            let _ = tls.write_to(&mut self.socket);
        }
    }

    /// Moves the ciphertext that the kernel has not taken into the queue.
    fn queue_cipher(&mut self, payload: Option<(AllocationId, u32)>) {
        let rest = self.tls.as_mut().map(TlsSession::take).unwrap_or_default();
        if rest.is_empty() {
            return;
        }
        self.push(rest, 0, payload);
    }

    /// Queues a frame of which so much is sent already, if it is the first.
    fn push(&mut self, bytes: Vec<u8>, written: usize, payload: Option<(AllocationId, u32)>) {
        if self.queue.is_empty() {
            self.front_sent = written;
        }
        if let Some((_, bytes)) = payload {
            self.waiting = self.waiting + Amount { packets: 1, bytes: u64::from(bytes) };
        }
        self.queued_bytes += bytes.len();
        self.queue.push_back(Queued { bytes: bytes.into(), payload });
    }

    /// Keeps the start of a message for the next read.
    pub(super) fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            // A finished large message gives its memory back.
            self.remainder = Vec::new();
        } else {
            self.remainder.extend_from_slice(rest);
        }
    }

    /// The payload in the queue.
    pub(super) const fn waiting(&self) -> Amount {
        self.waiting
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends a frame in pieces: at once if nothing waits before it, else behind that.
    pub(super) fn send(&mut self, pieces: [&[u8]; 3], payload: Option<(AllocationId, u32)>) -> Sent {
        if self.tls.is_some() {
            return self.send_encrypted(pieces, payload);
        }
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut written = 0;
        if self.queue.is_empty() {
            match self.socket.write_vectored(&pieces.map(IoSlice::new)) {
                Ok(count) if count == len => return Sent::Taken,
                Ok(count) => written = count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return Sent::Failed,
            }
        }
        // The rest of a frame that was begun must follow, whatever it costs.
        if written == 0 && !self.has_room(len, payload.is_some()) {
            return Sent::Full;
        }
        self.push(pieces.concat(), written, payload);
        Sent::Taken
    }

    fn send_encrypted(&mut self, pieces: [&[u8]; 3], payload: Option<(AllocationId, u32)>) -> Sent {
        let is_first = self.queue.is_empty();
        // What is encrypted must follow, or the client could decrypt nothing after it.
        if !is_first && !self.has_room(pieces.iter().map(|piece| piece.len()).sum(), payload.is_some()) {
            return Sent::Full;
        }
        let Some(tls) = &mut self.tls else { return Sent::Failed };
        if tls.encrypt(pieces).is_err() || (is_first && !is_alive(tls.write_to(&mut self.socket))) {
            return Sent::Failed;
        }
        self.queue_cipher(payload);
        Sent::Taken
    }

    fn has_room(&self, len: usize, is_data: bool) -> bool {
        let reserve = if is_data { 0 } else { REPLY_RESERVE };
        self.queued_bytes + len <= self.queue_bytes_max.saturating_add(reserve)
    }

    /// Writes what waits, as far as the kernel takes it; an error means that the stream is dead.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); 16];
            let mut used = 0;
            for (queued, slice) in self.queue.iter().zip(&mut slices) {
                let skip = if used == 0 { self.front_sent } else { 0 };
                *slice = IoSlice::new(&queued.bytes[skip..]);
                used += 1;
            }
            match self.socket.write_vectored(&slices[..used]) {
                Ok(count) => self.forget(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn forget(&mut self, mut written: usize) {
        while let Some(front) = self.queue.front() {
            let left = front.bytes.len() - self.front_sent;
            if written < left {
                self.front_sent += written;
                return;
            }
            written -= left;
            self.queued_bytes -= front.bytes.len();
            if let Some((_, bytes)) = front.payload {
                self.waiting = self.waiting - Amount { packets: 1, bytes: u64::from(bytes) };
            }
            self.front_sent = 0;
            self.queue.pop_front();
        }
    }

    /// Holds a record back if payload of its session still waits; else gives it back.
    pub(super) fn hold_back(&mut self, record: Box<SessionRecord>) -> Option<Box<SessionRecord>> {
        if !self.holds_payload_of(record.allocation) {
            return Some(record);
        }
        self.ended.push(*record);
        None
    }

    fn holds_payload_of(&self, allocation: AllocationId) -> bool {
        self.queue.iter().any(|queued| queued.payload.is_some_and(|(of, _)| of == allocation))
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

    /// The payloads that will never leave: whoever closes the stream reports them.
    pub(super) fn unsent(&mut self) -> impl Iterator<Item = (AllocationId, u32)> {
        self.queued_bytes = 0;
        self.waiting = Amount::default();
        self.queue.drain(..).filter_map(|queued| queued.payload)
    }
}

/// Marks what is wrong with the TLS itself, apart from what the socket says.
fn broken(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Whether a write leaves the socket usable.
fn is_alive(written: io::Result<usize>) -> bool {
    match written {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::address::{ClientAddress, FiveTuple, ServerAddress, Transport};
    use std::net::TcpListener;

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
        (Stream::new(server, None, StreamId(1), Via::Stream(StreamId(1), five_tuple), limit), client)
    }

    #[test]
    fn a_slow_reader_gets_whole_frames_in_order_and_the_rest_is_refused() {
        let (mut stream, mut client) = pair(64 * 1024);
        let id = AllocationId { index: 0, generation: 1 };
        let mut taken = 0_u32;
        let mut refused = 0;
        for number in 0..20_000_u32 {
            let payload = [number.to_be_bytes().as_slice(), &[7; 996]].concat();
            match stream.send([&payload[..4], &payload[4..], &[]], Some((id, 1000))) {
                Sent::Taken if refused == 0 => taken += 1,
                Sent::Taken => panic!("a full queue took a frame without being read"),
                Sent::Full => refused += 1,
                Sent::Failed => panic!("the stream is alive"),
            }
        }
        assert!(stream.has_backlog() && refused > 0 && taken > 64);
        assert!(stream.queued_bytes <= 64 * 1024 + 1000, "{} queued", stream.queued_bytes);
        assert_eq!(stream.send([b"reply", b"", b""], None), Sent::Taken, "a reply passes the data's limit");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all
        });
        assert_eq!(stream.waiting().bytes, stream.waiting().packets * 1000);
        while stream.has_backlog() {
            stream.flush().unwrap();
            std::thread::yield_now();
        }
        assert_eq!(stream.waiting(), Amount::default());
        drop(stream);
        let all = reader.join().unwrap();
        assert_eq!(all.len(), taken as usize * 1000 + 5);
        for (frame, number) in all.chunks(1000).zip(0..taken) {
            assert_eq!(frame[..4], number.to_be_bytes());
        }
    }

    #[test]
    fn what_waits_at_the_end_is_reported() {
        let (mut stream, _client) = pair(1 << 20);
        let id = AllocationId { index: 2, generation: 3 };
        let mut frames = 0_u32;
        while frames < 200 || !stream.has_backlog() {
            assert_eq!(
                stream.send([&[0; 4], &[0; 60_000], &[]], Some((id, 60_000))),
                if stream.queued_bytes > 980_000 { Sent::Full } else { Sent::Taken }
            );
            frames += 1;
            if stream.queued_bytes > 900_000 {
                break;
            }
        }
        let waiting = stream.queue.len();
        assert_eq!(stream.waiting(), Amount { packets: waiting as u64, bytes: waiting as u64 * 60_000 });
        assert_eq!(stream.unsent().filter(|(of, bytes)| *of == id && *bytes == 60_000).count(), waiting);
        assert!(waiting > 0);
    }
}
