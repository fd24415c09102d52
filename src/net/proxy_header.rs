//! The PROXY protocol, version 1 and 2: what a proxy says of its client before the client's own first byte
//! (haproxy.org, "The PROXY protocol", sections 2.1 and 2.2).
//!
//! Written for web servers behind a shared port (`net::pass_on`), and read from sources that the configuration trusts, byte by byte up to the end of the header and no further: what comes
//! after it stays in the socket, for TLS or for a worker.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ppp::{v1, v2};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::config::checked::SendProxy;

/// The longest header of version 1, its line feed included.
const LINE_BYTES_MAX: usize = 107;

/// What stands before the addresses of version 2.
const HEAD_BYTES: usize = 16;

/// What a header of version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 2 that is read: addresses take 36 bytes at most, and few TLVs are long.
const HEADER_BYTES_MAX: usize = 4_096;

/// The client that a proxy speaks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Announced {
    /// For a client with this address.
    Client(SocketAddr),
    /// For itself, as when it looks whether we are there, or for a client that it says nothing of (LOCAL, UNKNOWN, UNSPEC, UNIX).
    Itself,
}

/// A header that is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no valid PROXY header: {0}")]
pub struct BadHeader(String);

impl BadHeader {
    fn of(error: &impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// What a whole header says; its length is part of it.
///
/// # Errors
/// [`BadHeader`]
pub fn parse(header: &[u8]) -> Result<Announced, BadHeader> {
    let client = if header.starts_with(b"PROXY") {
        let has_sign = header.contains(&b'+');
        let header = v1::Header::try_from(header).map_err(|error| BadHeader::of(&error))?;
        match header.addresses {
            v1::Addresses::Unknown => return Ok(Announced::Itself),
            _ if has_sign => return Err(BadHeader("a port is written with a sign".to_owned())),
            v1::Addresses::Tcp4(of) => SocketAddr::from((of.source_address, of.source_port)),
            v1::Addresses::Tcp6(of) => SocketAddr::from((of.source_address, of.source_port)),
        }
    } else {
        let header = v2::Header::try_from(header).map_err(|error| BadHeader::of(&error))?;
        if header.command == v2::Command::Local {
            return Ok(Announced::Itself);
        }
        let client = match header.addresses {
            v2::Addresses::Unspecified | v2::Addresses::Unix(_) => return Ok(Announced::Itself),
            v2::Addresses::IPv4(of) => SocketAddr::from((of.source_address, of.source_port)),
            v2::Addresses::IPv6(of) => SocketAddr::from((of.source_address, of.source_port)),
        };
        if header.protocol != v2::Protocol::Stream {
            return Err(BadHeader("it announces no stream".to_owned()));
        }
        client
    };
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    if client.ip() == IpAddr::V4(Ipv4Addr::BROADCAST)
        || client.ip().is_unspecified()
        || client.ip().is_multicast()
        || client.port() == 0
    {
        return Err(BadHeader(format!("{client} is no client")));
    }
    Ok(Announced::Client(client))
}

/// The header that announces a client which connected to `server`; empty for none.
#[must_use]
pub fn written(version: SendProxy, client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (client_ip, server_ip) = of_one_family(client.ip(), server.ip());
    let (client_port, server_port) = (client.port(), server.port());
    match version {
        SendProxy::Off => Vec::new(),
        SendProxy::V1 => {
            let family = if client_ip.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {client_ip} {server_ip} {client_port} {server_port}\r\n").into_bytes()
        }
        SendProxy::V2 => {
            let mut addresses = Vec::new();
            for ip in [client_ip, server_ip] {
                match ip {
                    IpAddr::V4(ip) => addresses.extend(ip.octets()),
                    IpAddr::V6(ip) => addresses.extend(ip.octets()),
                }
            }
            addresses.extend([client_port, server_port].map(u16::to_be_bytes).as_flattened());
            // Version 2 and PROXY; the family over a stream.
            let head = [0x21, if client_ip.is_ipv4() { 0x11 } else { 0x21 }];
            [SIGNATURE, &head, &(addresses.len() as u16).to_be_bytes(), &addresses].concat()
        }
    }
}

/// A header has one family. An announced client may have another one than we: then both are written as IPv6.
fn of_one_family(client: IpAddr, server: IpAddr) -> (IpAddr, IpAddr) {
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let (client, server) = (client.to_canonical(), server.to_canonical());
    if client.is_ipv4() == server.is_ipv4() { (client, server) } else { (wide(client).into(), wide(server).into()) }
}

/// How many bytes a header has, once its first ones are known; `None` while they do not tell.
fn length(begun: &[u8]) -> Result<Option<usize>, BadHeader> {
    if begun.first() == Some(&b'P') {
        let is_whole = begun.ends_with(b"\n");
        if !is_whole && begun.len() >= LINE_BYTES_MAX {
            return Err(BadHeader(format!("its line has more than {LINE_BYTES_MAX} bytes")));
        }
        return Ok(is_whole.then_some(begun.len()));
    }
    let Some(&[high, low]) = begun.get(HEAD_BYTES - 2..HEAD_BYTES) else { return Ok(None) };
    let length = HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_BYTES_MAX {
        return Err(BadHeader(format!("it has {length} bytes, and {HEADER_BYTES_MAX} are read")));
    }
    Ok(Some(length))
}

/// Reads the header of a new stream, and not a byte more.
pub(super) async fn read(stream: &mut TcpStream) -> Result<Announced, BadHeader> {
    let failed = |error: std::io::Error| BadHeader::of(&error);
    let mut header = vec![0];
    stream.read_exact(&mut header).await.map_err(failed)?;
    loop {
        // Noise is known by its first bytes.
        if !is_begun(&header) {
            return Err(BadHeader("its first bytes are those of no version".to_owned()));
        }
        let known = header.len();
        let missing = match length(&header)? {
            Some(length) if known >= length => return parse(&header),
            Some(length) => length - known,
            // A line ends where it ends; a binary head has its length at its end.
            None if header[0] == b'P' => 1,
            None => HEAD_BYTES - known,
        };
        header.resize(known + missing, 0);
        let part = header.get_mut(known..).unwrap_or_default();
        stream.read_exact(part).await.map_err(failed)?;
    }
}

/// Whether bytes may become a header.
fn is_begun(bytes: &[u8]) -> bool {
    let begins = |with: &[u8]| with.iter().zip(bytes).all(|(of, byte)| of == byte);
    begins(b"PROXY ") || begins(SIGNATURE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family], &length, body].concat()
    }

    fn ipv4(tlvs: &[u8]) -> Vec<u8> {
        binary(0x21, 0x11, &[&[192, 0, 2, 7, 198, 51, 100, 1, 0x15, 0xB3, 0x0D, 0x96][..], tlvs].concat())
    }

    /// Good ones, and what each says.
    fn good() -> Vec<(Vec<u8>, Announced)> {
        let client = |text: &str| Announced::Client(text.parse().unwrap());
        let mut ipv6 = vec![0x20, 0x01, 0x0D, 0xB8];
        ipv6.extend([0; 11]);
        ipv6.push(7);
        ipv6.extend([0; 16]);
        ipv6.extend([0x15, 0xB3, 0x0D, 0x96]);
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[0xFF, 0xFF, 192, 0, 2, 7]);
        mapped[32..34].copy_from_slice(&[0x15, 0xB3]);
        vec![
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 3478\r\n".to_vec(), client("192.0.2.7:5555")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 3478\r\n".to_vec(), client("[2001:db8::7]:5555")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Announced::Itself),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), Announced::Itself),
            (ipv4(&[]), client("192.0.2.7:5555")),
            (ipv4(&[0x04, 0, 3, 1, 2, 3]), client("192.0.2.7:5555")),
            (ipv4(&[0x04; 4_000]), client("192.0.2.7:5555")),
            (binary(0x21, 0x21, &ipv6), client("[2001:db8::7]:5555")),
            (binary(0x21, 0x21, &mapped), client("192.0.2.7:5555")),
            (binary(0x20, 0x00, &[]), Announced::Itself),
            (binary(0x20, 0x11, &[0; 12]), Announced::Itself),
            (binary(0x21, 0x00, &[]), Announced::Itself),
            (binary(0x21, 0x31, &[0x41; 216]), Announced::Itself),
        ]
    }

    fn bad() -> Vec<Vec<u8>> {
        let datagram = binary(0x21, 0x12, &[192, 0, 2, 7, 198, 51, 100, 1, 0x15, 0xB3, 0x0D, 0x96]);
        vec![
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5555\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 3478\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 0 3478\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 3478\r\n".to_vec(),
            b"PROXY TCP4 255.255.255.255 198.51.100.1 5555 3478\r\n".to_vec(),
            b"PROXY TCP4 0.0.0.0 198.51.100.1 5555 3478\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 198.51.100.1 5555 3478\r\n".to_vec(),
            b"PROXY TCP5 192.0.2.7 198.51.100.1 5555 3478\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 3478\n".to_vec(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; 120], b"\r\n"].concat(),
            b"PROXX TCP4 192.0.2.7 198.51.100.1 5555 3478\r\n".to_vec(),
            datagram,
            binary(0x11, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x41, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x11, &[0; 12]),
            ipv4(&[0; 4_069]),
            // A STUN request and a ClientHello are none.
            b"\0\x01\0\0\x21\x12\xA4\x42aaaabbbbccccaaaabbbbcccc".to_vec(),
            b"\x16\x03\x01\x02\0\x01\0\x01\xFC\x03\x03aaaabbbbccccaaaabbbb".to_vec(),
        ]
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_header_is_read_to_its_end_and_no_further_however_it_comes() {
        for (header, due) in good() {
            for cut in [0, 1, header.len() / 2, header.len() - 1, header.len()] {
                let (mut client, mut server) = pair().await;
                client.set_nodelay(true).unwrap();
                let whole = [&header[..], b"what follows"].concat();
                let (first, rest) = whole.split_at(cut);
                client.write_all(first).await.unwrap();
                let (read, sent) = tokio::join!(read(&mut server), async {
                    tokio::task::yield_now().await;
                    client.write_all(rest).await
                });
                sent.unwrap();
                assert_eq!(read, Ok(due), "{header:02x?}");
                let mut rest = [0; 12];
                server.read_exact(&mut rest).await.unwrap();
                assert_eq!(&rest, b"what follows");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (client, server) in [
            ("192.0.2.7:5555", "198.51.100.1:443"),
            ("[2001:db8::7]:5555", "[2001:db8::1]:443"),
            ("[2001:db8::7]:5555", "198.51.100.1:443"),
            ("192.0.2.7:5555", "[2001:db8::1]:443"),
        ] {
            let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
            assert!(written(SendProxy::Off, client, server).is_empty());
            for version in [SendProxy::V1, SendProxy::V2] {
                assert_eq!(
                    parse(&written(version, client, server)),
                    Ok(Announced::Client(client)),
                    "{version:?} {server}"
                );
            }
        }
        let line = written(SendProxy::V1, "192.0.2.7:5555".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
        assert_eq!(line, b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n");
    }

    #[tokio::test]
    async fn what_is_no_header_or_is_cut_short_at_any_byte_is_an_error() {
        for header in bad() {
            let (mut client, mut server) = pair().await;
            client.write_all(&header).await.unwrap();
            drop(client);
            assert!(read(&mut server).await.is_err(), "{header:02x?}");
        }
        for (header, _) in good().into_iter().take(6) {
            for cut in 0..header.len() {
                let (mut client, mut server) = pair().await;
                client.write_all(&header[..cut]).await.unwrap();
                drop(client);
                assert!(read(&mut server).await.is_err(), "{header:02x?} cut to {cut}");
                assert!(parse(&header[..cut]).is_err(), "{header:02x?} cut to {cut}");
            }
        }
    }
}
