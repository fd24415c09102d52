//! Streams that move as bytes to other workers, on the same sockets: at any moment ([`moves`]), and with states that can't be
//! or that carry more than bytes ([`states`]).

mod moves;
mod states;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::OnceLock;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::*;
use crate::address::{ClientAddress, ServerAddress, Transport};
use crate::net::record::{Established, config_of_connection, record_bytes};
use crate::net::sys::Waker;
use crate::state::{self, FORMAT};

const NAME: &str = "turn.example.org";
const ID: AllocationId = AllocationId { index: 2, generation: 3 };
const REGION: usize = 130_000;
const LIMITS: TcpLimits = TcpLimits { queue_bytes: 256 * 1024, unauthenticated_ms: 10_000 };

fn certificate() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static CERTIFICATE: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        (parameters.self_signed(&key).unwrap().into(), key.serialize_der())
    })
}

fn ends(version: &'static SupportedProtocolVersion) -> (ClientConnection, ServerConfig) {
    let (certificate, key) = certificate();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::try_from(key.clone()).unwrap())
        .unwrap();
    let mut client = ClientConnection::new(Arc::new(client), NAME.try_into().unwrap()).unwrap();
    client.set_buffer_limit(None);
    (client, server)
}

/// A handshake after which the client has heard nothing of the server's last flight, and has sent `early` behind its own;
/// `received` is as if rustls had decrypted it.
fn shake_hands(
    version: &'static SupportedProtocolVersion,
    received: &[u8],
    early: &[u8],
) -> (ClientConnection, TlsSession) {
    let (mut client, config) = ends(version);
    let (config, secrets) = config_of_connection(&config);
    let mut server = ServerConnection::new(config).unwrap();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    client.writer().write_all(early).unwrap();
    while server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        while server.is_handshaking()
            && let Some(len) = record_bytes(&to_server).filter(|len| *len <= to_server.len())
        {
            let record: Vec<u8> = to_server.drain(..len).collect();
            server.read_tls(&mut &record[..]).unwrap();
            server.process_new_packets().unwrap();
        }
        if server.is_handshaking() {
            while server.wants_write() {
                server.write_tls(&mut to_client).unwrap();
            }
            let wire = std::mem::take(&mut to_client);
            let mut wire = &wire[..];
            while !wire.is_empty() {
                client.read_tls(&mut wire).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }
    let mut established = Established::take(server, &secrets).unwrap();
    established.received.extend(received);
    (client, TlsSession::new(established, to_server))
}

fn new_streams(limits: TcpLimits) -> Streams {
    Streams::new(limits, Arc::default(), EvictedStreams::new(Arc::new(Waker::new().unwrap())))
}

/// Both ends of a connection whose buffers hold little.
fn sockets() -> (TcpStream, TcpStream, FiveTuple) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, from) = listener.accept().unwrap();
    for socket in [&server, &client] {
        rustix::net::sockopt::set_socket_send_buffer_size(socket, 16 * 1024).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    let five_tuple = FiveTuple {
        client: ClientAddress::from(from),
        server: ServerAddress::from(listener.local_addr().unwrap()),
        transport: Transport::Tcp,
    };
    (server, client, five_tuple)
}

fn insert(streams: &mut Streams, tls: Option<TlsSession>) -> (usize, TcpStream) {
    let (server, client, mut five_tuple) = sockets();
    if tls.is_some() {
        five_tuple.transport = Transport::Tls;
    }
    let permit = streams.half_open.return_to(five_tuple.client, Box::new(|| {}));
    let (at, _) = streams.insert(server, tls.map(Box::new), five_tuple, permit, Ticks(0));
    (at, client)
}

/// As bytes to another worker, on duplicates of the sockets.
fn moved(old: &Streams) -> Streams {
    let (mut state, sockets) = old.export();
    let bytes = state::write(&state, FORMAT).unwrap();
    let read: StreamsState = state::read(&bytes).unwrap();
    assert!(read == state && read.check() == Ok(()), "{read:?}");
    let mut new = new_streams(old.limits);
    for (stream, socket) in read.streams.into_iter().zip(sockets) {
        let socket = TcpStream::from(socket.try_clone_to_owned().unwrap());
        new.import(read.next_id, stream, socket, true, Ticks(1_000)).unwrap();
    }
    state.streams.iter_mut().for_each(|stream| stream.deadline = None);
    assert!(new.export().0 == state, "it is exported as it was imported");
    new
}

/// A message of ChannelData whose every byte tells where it stands.
fn frame(number: usize, len: usize) -> Vec<u8> {
    let mut frame = vec![0x40, number as u8];
    frame.extend((len as u16).to_be_bytes());
    frame.extend((0..len).map(|at| (at + number * 7) as u8));
    frame.resize(frame.len().next_multiple_of(4), 0);
    frame
}
