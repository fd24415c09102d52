//! The TLS of one established stream, fed by hand: ciphertext in, plaintext out, and back.
//!
//! rustls holds back no more than one record that has not come whole, and no ciphertext at all between two
//! calls: what the kernel does not take is moved to the stream's own bounded queue.

use std::io::{self, IoSlice, Read as _, Write};

use rustls::ServerConnection;

/// Ciphertext read at once. With what rustls may hold back and the longest unfinished message, its plaintext
/// fits into the region that streams are read to.
pub(super) const CIPHER_BYTES: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct TlsSession {
    connection: Box<ServerConnection>,
    has_ended: bool,
}

impl TlsSession {
    /// Of a finished handshake.
    pub(super) fn new(mut connection: Box<ServerConnection>) -> Self {
        // A frame is encrypted whole or not at all; how much may wait is the stream's affair.
        connection.set_buffer_limit(None);
        Self { connection, has_ended: false }
    }

    /// Whether the client has said that it sends no more.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Decrypts to the start of `plain`, what was read during the handshake first; gives the number of bytes.
    pub(super) fn decrypt(&mut self, mut cipher: &[u8], plain: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            if !cipher.is_empty() {
                self.connection.read_tls(&mut cipher)?;
            }
            self.connection.process_new_packets().map_err(io::Error::other)?;
            loop {
                let room = &mut plain[filled..];
                if room.is_empty() {
                    return Err(io::Error::other("more plaintext than ciphertext"));
                }
                match self.connection.reader().read(room) {
                    Ok(0) => {
                        self.has_ended = true;
                        return Ok(filled);
                    }
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if cipher.is_empty() {
                return Ok(filled);
            }
        }
    }

    /// Encrypts a frame, whole; [`TlsSession::write_to`] or [`TlsSession::take`] must follow.
    pub(super) fn encrypt(&mut self, pieces: [&[u8]; 3]) -> io::Result<()> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let taken = self.connection.writer().write_vectored(&pieces.map(IoSlice::new))?;
        if taken == len && self.wants_write() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Whether there is ciphertext to send.
    pub(super) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Writes ciphertext, once.
    pub(super) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// The ciphertext that is left.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        while self.connection.wants_write() {
            if !self.connection.write_tls(&mut rest).is_ok_and(|count| count > 0) {
                break;
            }
        }
        rest
    }

    /// Queues close_notify (RFC 8446 section 6.1), after an alert that is waiting already.
    pub(super) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
