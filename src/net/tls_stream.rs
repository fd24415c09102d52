//! An established TLS connection as a stream of bytes for tasks of the control runtime: HTTP reads and writes it.
//!
//! The records are those of [`TlsSession`], as at a worker. An idle stream holds no buffer of its own.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::record::CONTENT_BYTES_MAX;
use super::tls_session::TlsSession;
use crate::clock;

/// Bytes of ciphertext that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// A socket and its TLS.
pub(crate) struct TlsStream {
    socket: TcpStream,
    session: Box<TlsSession>,
    /// Whether what came with the handshake was looked at.
    has_begun: bool,
    /// Plaintext, of which the first bytes were taken.
    plain: Vec<u8>,
    taken: usize,
    /// Ciphertext of one record at the most, of which the first bytes were sent.
    cipher: Vec<u8>,
    sent: usize,
    has_said_end: bool,
}

/// The socket as [`TlsSession::read`] wants it.
struct Tried<'s>(&'s TcpStream);

impl Read for Tried<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl TlsStream {
    /// After the handshake.
    pub(crate) fn new(socket: TcpStream, mut session: Box<TlsSession>) -> Self {
        let mut cipher = Vec::new();
        session.take_unsent(&mut cipher);
        let (plain, taken, sent) = (Vec::new(), 0, 0);
        Self { socket, session, has_begun: false, plain, taken, cipher, sent, has_said_end: false }
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.cipher.len() {
            let rest = self.cipher.get(self.sent..).unwrap_or_default();
            match ready!(Pin::new(&mut self.socket).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.cipher = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Opens what comes next; gives whether it was the end of the stream.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.taken = 0;
        if !self.has_begun {
            self.has_begun = true;
            self.plain.resize(self.session.early_bytes(), 0);
            let opened = self.session.read_early(&mut self.plain, clock::now().ticks);
            self.plain.truncate(*opened.as_ref().unwrap_or(&0));
            return Poll::Ready(opened.map(|_| false));
        }
        ready!(self.socket.poll_read_ready(cx))?;
        self.plain.resize(self.session.held_bytes() + READ_BYTES, 0);
        let read = self.session.read(&mut Tried(&self.socket), &mut self.plain, READ_BYTES, clock::now().ticks);
        self.plain.truncate(read.as_ref().map_or(0, |(_, plain)| *plain));
        match read {
            Ok((read, _)) => Poll::Ready(Ok(read == 0)),
            // The next look waits until there is something.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Ready(Ok(false)),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Says what the client did wrong, or that this was all, once.
    fn say_end(&mut self) {
        if !std::mem::replace(&mut self.has_said_end, true) {
            self.session.close(&mut self.cipher);
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // The client may wait for the last word of the handshake. That the socket takes no more is no reason not to read.
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            let plain = self.plain.get(self.taken..).unwrap_or_default();
            if !plain.is_empty() {
                let taken = plain.len().min(buffer.remaining());
                buffer.put_slice(plain.get(..taken).unwrap_or_default());
                self.taken += taken;
                return Poll::Ready(Ok(()));
            }
            self.plain = Vec::new();
            if self.session.has_ended() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_open(cx) {
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(Err(error)) => {
                    self.say_end();
                    // The connection is over; whether the alert arrives makes no difference to us.
                    let _ = self.poll_send(cx);
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let data = data.get(..CONTENT_BYTES_MAX).unwrap_or(data);
        let Self { session, cipher, .. } = &mut *self;
        session.seal([data, &[]], cipher)?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(data.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.say_end();
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
