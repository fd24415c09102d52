//! A client's TLS handshake, on the control runtime: rustls is fed record by record, so that it holds nothing when it is
//! over, and what comes after goes to `net::record`.

use std::io;

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::record::{Established, RECORD_BYTES_MAX, config_of_connection, record_bytes};
use crate::tls::ALPN_ACME;

/// Bytes read at once.
const READ_BYTES: usize = 4 * 1024;

/// A handshake that is over.
pub(super) struct Handshake {
    /// What it left.
    pub(super) established: Established,
    /// Bytes that came behind it.
    pub(super) rest: Vec<u8>,
    /// Whether it resumed an earlier session.
    pub(super) is_resumed: bool,
}

/// Does the handshake of an accepted stream, of which these bytes were read before; without a limit of time, which is the caller's.
///
/// # Errors
/// Of the socket, or what the client did wrong; then it has been told by an alert.
pub(super) async fn handshake(
    stream: &mut TcpStream,
    mut bytes: Vec<u8>,
    config: &ServerConfig,
) -> io::Result<Handshake> {
    let (config, secrets) = config_of_connection(config);
    let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
    loop {
        let fed = feed(&mut connection, &mut bytes);
        if fed.is_err() || connection.is_handshaking() {
            send(stream, &mut connection).await?;
            fed?;
        } else if connection.alpn_protocol() == Some(ALPN_ACME) {
            send(stream, &mut connection).await?;
            return Err(io::Error::other("an authority has seen its proof, and that was all"));
        } else {
            let is_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
            let established = Established::take(connection, &secrets).map_err(io::Error::other)?;
            return Ok(Handshake { established, rest: bytes, is_resumed });
        }
        bytes.reserve(READ_BYTES);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Gives rustls the whole records at the front, until the handshake is over.
fn feed(connection: &mut ServerConnection, bytes: &mut Vec<u8>) -> io::Result<()> {
    while connection.is_handshaking() {
        let Some(len) = record_bytes(bytes) else { return Ok(()) };
        // What can't become a record is rustls' to refuse, at once.
        let len = if may_be_record(bytes, len) { len } else { bytes.len() };
        if bytes.len() < len {
            return Ok(());
        }
        let mut record = &bytes[..len];
        while !record.is_empty() {
            if connection.read_tls(&mut record)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            connection.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        bytes.drain(..len);
    }
    Ok(())
}

/// Whether type and version are those of TLS (RFC 8446 section 5.1), and the length is one that a record may have.
fn may_be_record(bytes: &[u8], len: usize) -> bool {
    matches!(bytes, [20..=23, 3, ..]) && len <= RECORD_BYTES_MAX
}

/// Sends what rustls wants to say.
async fn send(stream: &mut TcpStream, connection: &mut ServerConnection) -> io::Result<()> {
    let mut out = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut out)?;
    }
    stream.write_all(&out).await
}
