//! Our record layer against rustls as the client: all suites, in any order of data, cuts, key updates and moves.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read as _, Write as _};
use std::sync::{Arc, OnceLock};

use proptest::collection::vec;
use proptest::prelude::*;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SupportedCipherSuite};
use throughway::net::record::{
    ALERT_BYTES_MAX, Alert, Cut, DirectionState, Established, Opened, RecordLayer, RecordState, SealError,
    TrafficSecrets, Version, config_of_connection, record_bytes,
};
use throughway::time::Ticks;
use throughway::tls::provider;

const NAME: &str = "turn.example.org";

/// Whose certificate signs decides between suites of TLS 1.2 that differ in nothing else; ours is of ECDSA.
fn suites() -> Vec<SupportedCipherSuite> {
    let is_ours = |suite: &SupportedCipherSuite| !format!("{:?}", suite.suite()).contains("ECDHE_RSA");
    provider().cipher_suites.iter().copied().filter(is_ours).collect()
}

fn certificate() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static CERTIFICATE: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        (parameters.self_signed(&key).unwrap().into(), key.serialize_der())
    })
}

fn only(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..CryptoProvider::clone(&provider()) })
}

fn server_config(suite: SupportedCipherSuite) -> ServerConfig {
    let (certificate, key) = certificate();
    ServerConfig::builder_with_provider(only(suite))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::try_from(key.clone()).unwrap())
        .unwrap()
}

fn client(suite: SupportedCipherSuite) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(certificate().0.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(only(suite))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), NAME.try_into().unwrap()).unwrap()
}

/// Takes everything that the client has to send.
fn sent_by(client: &mut ClientConnection, wire: &mut Vec<u8>) {
    while client.wants_write() {
        client.write_tls(wire).unwrap();
    }
}

/// Gives the client everything; what it read goes behind `read`.
fn give(client: &mut ClientConnection, mut wire: &[u8], read: &mut Vec<u8>) {
    while !wire.is_empty() {
        client.read_tls(&mut wire).unwrap();
        client.process_new_packets().unwrap();
        take_plain(client, read);
    }
}

fn take_plain(client: &mut ClientConnection, read: &mut Vec<u8>) {
    let mut room = [0; 4096];
    while let Ok(count @ 1..) = client.reader().read(&mut room) {
        read.extend(&room[..count]);
    }
}

/// A handshake whose server is given whole records, each by itself.
fn shake_hands(
    suite: SupportedCipherSuite,
    config: &ServerConfig,
) -> (ClientConnection, ServerConnection, Arc<TrafficSecrets>, Vec<u8>) {
    let (config, secrets) = config_of_connection(config);
    let (mut client, mut server) = (client(suite), ServerConnection::new(config).unwrap());
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    while server.is_handshaking() {
        sent_by(&mut client, &mut to_server);
        feed(&mut server, &mut to_server);
        if server.is_handshaking() {
            while server.wants_write() {
                server.write_tls(&mut to_client).unwrap();
            }
            give(&mut client, &std::mem::take(&mut to_client), &mut Vec::new());
        }
    }
    (client, server, secrets, to_server)
}

/// Whole records, as long as the handshake lasts.
fn feed(server: &mut ServerConnection, wire: &mut Vec<u8>) {
    while server.is_handshaking()
        && let Some(len) = record_bytes(wire).filter(|len| *len <= wire.len())
    {
        let record: Vec<u8> = wire.drain(..len).collect();
        server.read_tls(&mut &record[..]).unwrap();
        server.process_new_packets().unwrap();
    }
}

/// Both ends, and what each said and heard.
struct World {
    client: ClientConnection,
    server: RecordLayer,
    now: Ticks,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    client_said: Vec<u8>,
    server_heard: Vec<u8>,
    server_said: Vec<u8>,
    client_heard: Vec<u8>,
    key_updates: usize,
}

impl World {
    fn new(suite: SupportedCipherSuite) -> Self {
        let (mut client, server, secrets, to_server) = shake_hands(suite, &server_config(suite));
        let Established { records, unsent, received } = Established::take(server, &secrets).unwrap();
        assert_eq!(received, b"");
        // A client of TLS 1.2 keeps what it says until it has heard the server's Finished.
        client.set_buffer_limit(None);
        Self {
            client,
            server: records,
            now: Ticks(1_000),
            to_server,
            to_client: unsent,
            client_said: Vec::new(),
            server_heard: Vec::new(),
            server_said: Vec::new(),
            client_heard: Vec::new(),
            key_updates: 0,
        }
    }

    fn client_says(&mut self, data: &[u8]) {
        self.client.writer().write_all(data).unwrap();
        self.client_said.extend(data);
        sent_by(&mut self.client, &mut self.to_server);
    }

    fn server_says(&mut self, data: &[u8]) {
        let cut = data.len() / 3;
        let mut out = vec![0; self.server.sealed_bytes(data.len())];
        let len = self.server.seal(&[&data[..cut], &data[cut..], &[]], &mut out).unwrap();
        assert_eq!(len, out.len());
        self.to_client.extend(out);
        self.server_said.extend(data);
    }

    /// The server gets so many bytes more, and opens what is whole.
    fn server_reads(&mut self, count: usize, received: &mut Vec<u8>) {
        let count = count.min(self.to_server.len());
        received.extend(self.to_server.drain(..count));
        let (mut start, mut front) = (0, 0);
        while let Cut::Record(len) = self.server.cut(&received[start..]).unwrap() {
            let end = start + len;
            match self.server.open_to_front(&mut received[front..end], start - front, self.now).unwrap() {
                Opened::Data(data) => front += data.len(),
                Opened::KeyUpdate { .. } => self.key_updates += 1,
                Opened::Ignored | Opened::CloseNotify => {}
                Opened::Failed(alert) => panic!("alert {alert}"),
            }
            start = end;
        }
        self.server_heard.extend(&received[..front]);
        received.drain(..start);
    }

    fn client_reads(&mut self, count: usize) {
        let count = count.min(self.to_client.len());
        let bytes: Vec<u8> = self.to_client.drain(..count).collect();
        give(&mut self.client, &bytes, &mut self.client_heard);
        sent_by(&mut self.client, &mut self.to_server);
    }

    /// To another process, as bytes; `update` makes the server change its key with the next record.
    fn moves(&mut self, update: bool) {
        let placeholder = RecordLayer::from_state(&any_state()).unwrap();
        let mut state = std::mem::replace(&mut self.server, placeholder).to_state();
        state.owes_key_update |= update;
        let bytes = minicbor::to_vec(&state).unwrap();
        let state: RecordState = minicbor::decode(&bytes).unwrap();
        self.server = RecordLayer::from_state(&state).unwrap();
    }

    fn has_key_updates(&self) -> bool {
        self.server.version() == Version::Tls13
    }
}

fn any_state() -> RecordState {
    let direction = || DirectionState { secret: vec![1; 16], iv: [0; 12], number: 0 };
    RecordState::new(0xC02B, direction(), direction())
}

#[derive(Clone, Debug)]
enum Step {
    ClientSays(usize),
    ServerSays(usize),
    ServerReads(usize),
    ClientReads(usize),
    ClientUpdatesKeys,
    ServerUpdatesKeys,
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![Just(0_usize), 1..40_usize, 100..2_000_usize, 16_000..40_000_usize];
    let cut = || prop_oneof![1..30_usize, 30..3_000_usize, Just(usize::MAX)];
    prop_oneof![
        4 => len().prop_map(Step::ClientSays),
        4 => len().prop_map(Step::ServerSays),
        6 => cut().prop_map(Step::ServerReads),
        6 => cut().prop_map(Step::ClientReads),
        1 => Just(Step::ClientUpdatesKeys),
        1 => Just(Step::ServerUpdatesKeys),
        2 => Just(Step::Move),
    ]
}

fn data(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + seed * 7) as u8).collect()
}

fn run(suite: SupportedCipherSuite, steps: &[Step]) {
    let mut world = World::new(suite);
    let mut received = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        // Two seconds a step: at most thirty key updates a minute.
        world.now = Ticks(world.now.0 + 2_000);
        match step {
            Step::ClientSays(len) => world.client_says(&data(*len, number)),
            Step::ServerSays(len) => world.server_says(&data(*len, number)),
            Step::ServerReads(count) => world.server_reads(*count, &mut received),
            Step::ClientReads(count) => world.client_reads(*count),
            Step::ClientUpdatesKeys if world.has_key_updates() => {
                world.client.refresh_traffic_keys().unwrap();
                sent_by(&mut world.client, &mut world.to_server);
            }
            Step::ServerUpdatesKeys => world.moves(world.has_key_updates()),
            Step::ClientUpdatesKeys | Step::Move => world.moves(false),
        }
    }
    world.server_reads(usize::MAX, &mut received);
    world.server_says(b"the last");
    world.client_reads(usize::MAX);
    // Both close, each for itself.
    world.client_says(b"the client's last");
    world.client.send_close_notify();
    sent_by(&mut world.client, &mut world.to_server);
    world.server_reads(usize::MAX, &mut received);
    assert!(world.server.has_ended_reading() && received.is_empty());
    let mut out = [0; ALERT_BYTES_MAX];
    let len = world.server.seal_alert(Alert::CloseNotify, &mut out).unwrap();
    world.client.read_tls(&mut &out[..len]).unwrap();
    assert!(world.client.process_new_packets().unwrap().peer_has_closed());
    assert_eq!(world.server.seal(&[b"late"], &mut [0; 100]), Err(SealError::Closed));
    assert!(world.server_heard == world.client_said, "{suite:?}");
    assert!(world.client_heard == world.server_said, "{suite:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn data_arrive_whole_and_in_order_through_cuts_key_updates_and_moves(steps in vec(step(), 0..60)) {
        for suite in suites() {
            run(suite, &steps);
        }
    }
}

// [8489-6.2.3-3]
#[test]
fn suites_of_both_versions_are_tried() {
    let is_new = |suite: &SupportedCipherSuite| suite.tls13().is_some();
    assert_eq!(suites().iter().map(is_new).collect::<Vec<_>>(), [true, true, true, false, false, false]);
}

/// What the client sends at once behind its handshake is decrypted by rustls as far as it was given to it: data, and key
/// updates. The keys that it hands out then are of a later generation than the secrets in the log, and its own answer
/// waits for data that it never sends.
#[test]
fn key_updates_before_the_secrets_are_taken_are_found() {
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        for updates in 0..8 {
            let (mut client, mut server, secrets, mut to_server) = shake_hands(suite, &server_config(suite));
            // rustls asks once more only after its question was answered, so each is.
            let mut to_client = Vec::new();
            for _ in 0..updates {
                client.refresh_traffic_keys().unwrap();
                client.writer().write_all(b"early").unwrap();
                sent_by(&mut client, &mut to_server);
                server.read_tls(&mut &std::mem::take(&mut to_server)[..]).unwrap();
                server.process_new_packets().unwrap();
            }
            let Established { mut records, unsent, received } = Established::take(server, &secrets).unwrap();
            assert_eq!(received, b"early".repeat(updates));
            to_client.extend(unsent);
            let mut out = vec![0; records.sealed_bytes(5)];
            records.seal(&[b"reply"], &mut out).unwrap();
            to_client.extend(out);
            let mut heard = Vec::new();
            give(&mut client, &to_client, &mut heard);
            assert_eq!(heard, b"reply");
            client.writer().write_all(b"later").unwrap();
            to_server.clear();
            sent_by(&mut client, &mut to_server);
            assert_eq!(records.open(&mut to_server, Ticks(0)), Ok(Opened::Data(&mut b"later".to_vec())));
        }
    }
}

#[test]
fn a_handshake_that_is_not_over_and_foreign_secrets_give_no_records() {
    for suite in suites() {
        let config = server_config(suite);
        let (own, secrets) = config_of_connection(&config);
        let fresh = ServerConnection::new(own).unwrap();
        assert!(Established::take(fresh, &secrets).is_err());
        let (_, server, own, _) = shake_hands(suite, &config);
        let (_, _, foreign, _) = shake_hands(suite, &config);
        let taken = Established::take(server, if suite.tls13().is_some() { &foreign } else { &own });
        assert_eq!(taken.is_err(), suite.tls13().is_some(), "{suite:?}");
    }
}

#[test]
fn a_close_notify_within_the_handshakes_last_bytes_is_not_lost() {
    for suite in suites() {
        let (mut client, mut server, secrets, mut to_server) = shake_hands(suite, &server_config(suite));
        // A client of TLS 1.2 has to hear the server's Finished first.
        let mut finished = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut finished).unwrap();
        }
        give(&mut client, &finished, &mut Vec::new());
        client.writer().write_all(b"all").unwrap();
        client.send_close_notify();
        sent_by(&mut client, &mut to_server);
        server.read_tls(&mut &to_server[..]).unwrap();
        server.process_new_packets().unwrap();
        let Established { records, received, .. } = Established::take(server, &secrets).unwrap();
        assert_eq!((received, records.has_ended_reading()), (b"all".to_vec(), true));
    }
}

/// One handshake's secrets are not mixed with another's, and resumption goes on as before.
#[test]
fn sessions_are_resumed_with_settings_of_their_own() {
    for suite in suites() {
        let config = server_config(suite);
        let mut roots = RootCertStore::empty();
        roots.add(certificate().0.clone()).unwrap();
        let of_client = ClientConfig::builder_with_provider(only(suite))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let of_client = Arc::new(of_client);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (own, secrets) = config_of_connection(&config);
            let mut client = ClientConnection::new(Arc::clone(&of_client), NAME.try_into().unwrap()).unwrap();
            let mut server = ServerConnection::new(own).unwrap();
            let mut to_server = Vec::new();
            while server.is_handshaking() {
                sent_by(&mut client, &mut to_server);
                feed(&mut server, &mut to_server);
                let mut to_client = Vec::new();
                while server.is_handshaking() && server.wants_write() {
                    server.write_tls(&mut to_client).unwrap();
                }
                give(&mut client, &to_client, &mut Vec::new());
            }
            kinds.push(server.handshake_kind());
            let Established { mut records, unsent, .. } = Established::take(server, &secrets).unwrap();
            let mut bytes = vec![0; records.sealed_bytes(2)];
            records.seal(&[b"ok"], &mut bytes).unwrap();
            let mut heard = Vec::new();
            give(&mut client, &[unsent, bytes].concat(), &mut heard);
            assert_eq!(heard, b"ok");
        }
        assert_eq!(kinds, [Some(rustls::HandshakeKind::Full), Some(rustls::HandshakeKind::Resumed)], "{suite:?}");
    }
}
