//! TCP clients: one connection per session, frames cut out of the stream, a bounded backlog of unsent bytes.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use rustls::ClientConnection;

use crate::tls::Tls;
use crate::udp::{raw_address, set_option};

const RECEIVE: usize = 128 << 10;
const BACKLOG_MAX: usize = 256 << 10;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    input: Vec<u8>,
    filled: usize,
    unsent: Vec<u8>,
    pub closed: bool,
}

impl Connection {
    pub fn open(from: SocketAddrV4, to: SocketAddrV4, tls: Option<&Tls>) -> Result<Self, String> {
        let text = |e: io::Error| format!("TCP {from} to {to}: {e}");
        // SAFETY: plain socket calls; the descriptor is owned by `stream` at once, and the address outlives bind.
        let stream = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(text(io::Error::last_os_error()));
            }
            let stream = TcpStream::from_raw_fd(fd);
            // the last run's connection may still be in TIME-WAIT
            set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(text)?;
            let raw = raw_address(from);
            if libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) != 0 {
                return Err(text(io::Error::last_os_error()));
            }
            let raw = raw_address(to);
            if libc::connect(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) != 0 {
                return Err(text(io::Error::last_os_error()));
            }
            stream
        };
        stream.set_nodelay(true).map_err(text)?;
        let mut stream = stream;
        let tls = match tls {
            Some(tls) => {
                stream.set_read_timeout(Some(HANDSHAKE_MAX)).map_err(text)?;
                Some(Box::new(tls.shake_hands(&mut stream).map_err(|e| format!("TCP {from} to {to}: {e}"))?))
            }
            None => None,
        };
        stream.set_nonblocking(true).map_err(text)?;
        Ok(Self { tls, ..Self::adopt(stream) })
    }

    /// Version and cipher suite of the handshake.
    pub fn tls_suite(&self) -> Option<String> {
        let tls = self.tls.as_ref()?;
        Some(format!("{:?} {:?}", tls.protocol_version()?, tls.negotiated_cipher_suite()?.suite()))
    }

    /// Takes a connected, non-blocking stream.
    pub fn adopt(stream: TcpStream) -> Self {
        Self { stream, tls: None, input: vec![0; RECEIVE], filled: 0, unsent: Vec::new(), closed: false }
    }

    pub fn fd(&self) -> i32 {
        self.stream.as_raw_fd()
    }

    /// Sends one frame whole, now or from the backlog; false when the backlog is full or the stream is gone.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let clear = self.drain();
        if self.closed || (!clear && self.unsent.len() + frame.len() > BACKLOG_MAX) {
            return false;
        }
        if self.tls.is_some() {
            self.encrypt(frame);
            self.drain();
            return !self.closed;
        }
        if !clear {
            self.unsent.extend(frame);
            return true;
        }
        let sent = self.write(frame);
        self.unsent.extend(&frame[sent..]);
        !self.closed
    }

    /// Puts the frame behind the unsent bytes, as a record of its own.
    fn encrypt(&mut self, frame: &[u8]) {
        let Some(tls) = &mut self.tls else {
            return;
        };
        self.closed |= tls.writer().write_all(frame).is_err();
        while tls.wants_write() && !self.closed {
            self.closed |= tls.write_tls(&mut self.unsent).is_err();
        }
    }

    /// Sends what is left over; true when nothing is.
    pub fn drain(&mut self) -> bool {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let sent = self.write(&unsent);
            self.unsent.extend(&unsent[sent..]);
        }
        self.unsent.is_empty() && !self.closed
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match self.stream.write(bytes) {
            Ok(sent) => sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.closed = true;
                0
            }
        }
    }

    /// One read, then every whole frame (STUN message, or ChannelData without its padding).
    pub fn receive(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        match self.fill() {
            Ok(0) => self.closed = true,
            Ok(got) => self.filled += got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(_) => self.closed = true,
        }
        let (mut at, mut frames) = (0, 0);
        while let Some((length, with_padding)) = frame_length(&self.input[at..self.filled]) {
            if self.filled - at < with_padding {
                break;
            }
            each(&self.input[at..at + length]);
            at += with_padding;
            frames += 1;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        frames
    }
}

impl Connection {
    /// Reads once; with TLS everything that is decrypted by that, and a record's half is `WouldBlock`.
    fn fill(&mut self) -> io::Result<usize> {
        let Self { stream, tls: Some(tls), input, filled, unsent, .. } = self else {
            return self.stream.read(&mut self.input[self.filled..]);
        };
        let end = tls.read_tls(stream)? == 0;
        tls.process_new_packets().map_err(io::Error::other)?;
        while tls.wants_write() {
            tls.write_tls(unsent)?; // a key update is answered
        }
        let mut got = 0;
        loop {
            match tls.reader().read(&mut input[*filled + got..]) {
                Ok(0) => return Ok(got),
                Ok(more) => got += more,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && (got > 0 || end) => return Ok(got),
                Err(e) => return Err(e),
            }
        }
    }
}

/// Length of the frame that starts here, without and with padding; None while its head is incomplete.
pub fn frame_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let head: &[u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if head[0] & 0xC0 == 0x40 {
        Some((4 + length, 4 + length.next_multiple_of(4)))
    } else {
        Some((20 + length, 20 + length))
    }
}

/// A level-triggered epoll set.
pub struct Poll {
    fd: std::os::fd::OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> Result<Self, String> {
        // SAFETY: a fresh descriptor, owned from here on.
        let fd = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(format!("epoll: {}", io::Error::last_os_error()));
            }
            std::os::fd::OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    pub fn add(&self, fd: i32, token: u64) -> Result<(), String> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: both descriptors are open and the event is valid for the read.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) };
        if result == 0 { Ok(()) } else { Err(format!("epoll: {}", io::Error::last_os_error())) }
    }

    /// Tokens that are readable within the time, in milliseconds; -1 waits, 0 only looks.
    pub fn wait(&mut self, milliseconds: i32, mut each: impl FnMut(u64)) -> usize {
        // SAFETY: the vector's length is the capacity given.
        let got = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), self.events.len() as i32, milliseconds)
        };
        let got = usize::try_from(got).unwrap_or(0);
        for event in &self.events[..got] {
            each(event.u64);
        }
        got
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_padded_only_when_they_are_channel_data() {
        assert_eq!(frame_length(&[0x40, 0, 0, 5, 1]), Some((9, 12)));
        assert_eq!(frame_length(&[0x01, 1, 0, 8]), Some((28, 28)));
        assert_eq!(frame_length(&[0x40, 0, 0]), None);
    }
}
