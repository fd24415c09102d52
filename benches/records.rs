//! What a TLS record costs, ours and rustls' in one run: without sockets, as a worker drives each. Target: ours takes at
//! most three quarters of rustls' time with AES-GCM, for a frame of audio (176 bytes) and for one of video (1,204
//! bytes), either way; and less with ChaCha20, whose own time is most of it.
//!
//! Both run behind a real handshake, whose client is rustls. The records to be opened are sealed by that client outside
//! of the measured time. rustls' side is driven as a stream would: what is read goes in, plaintext comes out, each frame is a record of its own.

use std::cell::RefCell;
use std::io::{IoSlice, Read as _, Write as _};
use std::sync::Arc;

use divan::{Bencher, black_box};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::{CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use throughway::net::record::{Established, Opened, RecordLayer, TrafficSecrets, config_of_connection};
use throughway::time::Ticks;
use throughway::tls::provider;

fn main() {
    divan::main();
}

const NAME: &str = "turn.example.org";

const SUITES: [CipherSuite; 6] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Bytes of a frame.
const FRAMES: [usize; 2] = [176, 1_204];

/// A suite, and bytes of a frame.
#[derive(Clone, Copy)]
struct Case(CipherSuite, usize);

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = format!("{:?}", self.0).replace("_ECDHE_ECDSA_WITH", "12");
        write!(f, "{} {}", name.trim_end_matches("_SHA256").trim_end_matches("_SHA384"), self.1)
    }
}

fn all() -> Vec<Case> {
    SUITES.into_iter().flat_map(|suite| FRAMES.map(|frame| Case(suite, frame))).collect()
}

fn handshake(suite: CipherSuite) -> (ClientConnection, ServerConnection, Arc<TrafficSecrets>) {
    let mut only = CryptoProvider::clone(&provider());
    only.cipher_suites.retain(|offered| offered.suite() == suite);
    let only = Arc::new(only);
    let key = rcgen::KeyPair::generate().expect("a key");
    let parameters = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
    let certificate = parameters.self_signed(&key).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let server = ServerConfig::builder_with_provider(Arc::clone(&only))
        .with_safe_default_protocol_versions()
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], key)
        .expect("the key is the certificate's");
    let client = ClientConfig::builder_with_provider(only)
        .with_safe_default_protocol_versions()
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (server, secrets) = config_of_connection(&server);
    let mut client = ClientConnection::new(Arc::new(client), NAME.try_into().expect("a name")).expect("a client");
    let mut server = ServerConnection::new(server).expect("a server");
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        while client.wants_write() {
            client.write_tls(&mut to_server).expect("room");
        }
        let mut to_server = &to_server[..];
        while !to_server.is_empty() {
            server.read_tls(&mut to_server).expect("bytes");
            server.process_new_packets().expect("a handshake");
        }
        while server.wants_write() {
            server.write_tls(&mut to_client).expect("room");
        }
        let mut to_client = &to_client[..];
        while !to_client.is_empty() {
            client.read_tls(&mut to_client).expect("bytes");
            client.process_new_packets().expect("a handshake");
        }
    }
    (client, server, secrets)
}

fn own(server: ServerConnection, secrets: &TrafficSecrets) -> RecordLayer {
    Established::take(server, secrets).expect("the handshake is over").records
}

/// A record of the client's, each time the next one.
fn sealed_by(client: &RefCell<ClientConnection>, frame: usize) -> Vec<u8> {
    let mut client = client.borrow_mut();
    client.writer().write_all(&vec![0x5A; frame]).expect("room");
    let mut record = Vec::with_capacity(frame + 64);
    client.write_tls(&mut record).expect("room");
    record
}

#[divan::bench(args = all())]
fn open_own(bencher: Bencher<'_, '_>, case: Case) {
    let (client, server, secrets) = handshake(case.0);
    let (client, mut server) = (RefCell::new(client), own(server, &secrets));
    bencher.with_inputs(|| sealed_by(&client, case.1)).bench_local_refs(|record| {
        let len = match server.open(black_box(record), Ticks(0)) {
            Ok(Opened::Data(data)) => data.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(len, case.1);
    });
}

#[divan::bench(args = all())]
fn open_own_to_front(bencher: Bencher<'_, '_>, case: Case) {
    let (client, server, secrets) = handshake(case.0);
    let (client, mut server) = (RefCell::new(client), own(server, &secrets));
    bencher.with_inputs(|| sealed_by(&client, case.1)).bench_local_refs(|record| {
        let len = match server.open_to_front(black_box(record), 0, Ticks(0)) {
            Ok(Opened::Data(data)) => data.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(len, case.1);
    });
}

#[divan::bench(args = all())]
fn open_rustls(bencher: Bencher<'_, '_>, case: Case) {
    let (client, mut server, _) = handshake(case.0);
    let client = RefCell::new(client);
    let mut plain = vec![0; 4_096];
    bencher.with_inputs(|| sealed_by(&client, case.1)).bench_local_refs(|record| {
        let mut cipher = black_box(&record[..]);
        server.read_tls(&mut cipher).expect("bytes");
        server.process_new_packets().expect("a record");
        let len = server.reader().read(&mut plain).expect("plaintext");
        assert_eq!(len, case.1);
        black_box(&plain);
    });
}

#[divan::bench(args = all())]
fn seal_own(bencher: Bencher<'_, '_>, case: Case) {
    let (_, server, secrets) = handshake(case.0);
    let mut server = own(server, &secrets);
    let (head, payload) = ([0x40, 0, 0, 0], vec![0x5A; case.1 - 4]);
    let mut out = vec![0; 4_096];
    bencher.bench_local(|| {
        let len = server.seal(black_box(&[&head, &payload]), &mut out).expect("room");
        assert!(len > case.1);
        black_box(&out);
    });
}

#[divan::bench(args = all())]
fn seal_rustls(bencher: Bencher<'_, '_>, case: Case) {
    let (_, mut server, _) = handshake(case.0);
    server.set_buffer_limit(None);
    let (head, payload) = ([0x40, 0, 0, 0], vec![0x5A; case.1 - 4]);
    let mut out = Vec::with_capacity(4_096);
    bencher.bench_local(|| {
        out.clear();
        let pieces = black_box([IoSlice::new(&head), IoSlice::new(&payload)]);
        assert_eq!(server.writer().write_vectored(&pieces).expect("room"), case.1);
        server.write_tls(&mut out).expect("room");
        assert!(out.len() > case.1);
        black_box(&out);
    });
}
