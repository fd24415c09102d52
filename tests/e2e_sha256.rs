//! A foreign client that knows RFC 8489 (the crate `turn-client-proto`), over real sockets: SHA-256, hidden names, and
//! both kinds of integrity on one server, also through an upgrade.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use stun_proto::Instant;
use stun_proto::agent::Transmit;
use stun_proto::auth::Feature;
use stun_proto::types::TransportType;
use stun_proto::types::message::IntegrityAlgorithm;
use test_support::e2e::peer::Echo;
use test_support::e2e::server::deadline;
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Server, Settings};
use turn_client_proto::api::{TransmitBuild, TurnClientApi, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::udp::TurnClientUdp;
use turn_types::TurnCredentials;

const UDP: TransportType = TransportType::Udp;

/// How the client reaches the server.
enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Link {
    fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Udp(socket) => assert_eq!(socket.send(bytes).unwrap(), bytes.len()),
            Self::Tcp(stream) => stream.write_all(bytes).unwrap(),
        }
    }

    /// What came within a while, if anything.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 4096];
        let result = match self {
            Self::Udp(socket) => socket.recv(&mut buffer),
            Self::Tcp(stream) => stream.read(&mut buffer),
        };
        match result {
            Ok(len) => {
                buffer.truncate(len);
                Some(buffer)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The foreign client, its socket, and what it heard.
struct Foreign<C> {
    client: C,
    link: Link,
    started: std::time::Instant,
    events: Vec<TurnEvent>,
    is_closed: bool,
    /// First bytes of what went to the server and came from it.
    sent: Vec<Vec<u8>>,
    heard: Vec<Vec<u8>>,
}

const WAIT: Duration = Duration::from_millis(20);

fn over_udp(server: SocketAddr, config: TurnConfig) -> Foreign<TurnClientUdp> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    let client = TurnClientUdp::allocate(socket.local_addr().unwrap(), server, config);
    Foreign::new(client, Link::Udp(socket))
}

fn over_tcp(server: SocketAddr, config: TurnConfig) -> Foreign<TurnClientTcp> {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let client = TurnClientTcp::allocate(stream.local_addr().unwrap(), server, config);
    Foreign::new(client, Link::Tcp(stream))
}

impl<C: TurnClientApi> Foreign<C> {
    fn new(client: C, link: Link) -> Self {
        let started = std::time::Instant::now();
        Self { client, link, started, events: Vec::new(), is_closed: false, sent: Vec::new(), heard: Vec::new() }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(i64::try_from(self.started.elapsed().as_nanos()).unwrap())
    }

    fn send(&mut self, bytes: &[u8]) {
        self.sent.push(bytes.to_vec());
        self.link.send(bytes);
    }

    /// Goes on for a while; gives what a peer sent.
    fn step(&mut self) -> Option<Vec<u8>> {
        self.is_closed |= matches!(self.client.poll(self.now()), TurnPollRet::Closed);
        while let Some(transmit) = self.client.poll_transmit(self.now()) {
            self.send(transmit.data.as_ref());
        }
        if let Some(bytes) = self.link.receive() {
            self.heard.push(bytes.clone());
            let (from, to, now) = (self.client.remote_addr(), self.client.local_addr(), self.now());
            let received = self.client.recv(Transmit::new(bytes, self.client.transport(), from, to), now);
            if let TurnRecvRet::PeerData(data) = received {
                return Some(data.data().to_vec());
            }
        }
        while let Some(event) = self.client.poll_event() {
            self.events.push(event);
        }
        self.client.poll_recv(self.now()).map(|data| data.data().to_vec())
    }

    #[track_caller]
    fn wait_for(&mut self, what: impl Fn(&TurnEvent) -> bool) {
        let end = deadline();
        while !self.events.iter().any(&what) {
            assert!(std::time::Instant::now() < end && !self.is_closed, "{:?}", self.events);
            assert!(self.step().is_none());
        }
    }

    /// A relayed address.
    #[track_caller]
    fn allocate(&mut self) -> SocketAddr {
        self.wait_for(|event| matches!(event, TurnEvent::AllocationCreated(..)));
        self.client.relayed_addresses().next().unwrap().1
    }

    /// There and back again, by whatever the client has for this peer.
    #[track_caller]
    fn echo(&mut self, peer: SocketAddr, payload: &[u8]) {
        let now = self.now();
        let out: Option<TransmitBuild<_>> = self.client.send_to(UDP, peer, payload, now).unwrap();
        let bytes = out.expect("something goes out").build().data;
        self.send(&bytes);
        let end = deadline();
        let back = loop {
            if let Some(back) = self.step() {
                break back;
            }
            assert!(std::time::Instant::now() < end, "nothing came back: {:x?}", self.heard.last());
        };
        assert_eq!(back, payload);
    }

    /// Permission, a Send indication, a channel, ChannelData.
    #[track_caller]
    fn call(&mut self, peer: SocketAddr) {
        let now = self.now();
        self.client.create_permission(UDP, peer.ip(), now).unwrap();
        self.wait_for(|event| matches!(event, TurnEvent::PermissionCreated(..)));
        self.echo(peer, b"by Send indication");
        let now = self.now();
        self.client.bind_channel(UDP, peer, now).unwrap();
        self.wait_for(|event| matches!(event, TurnEvent::ChannelCreated(..)));
        // Of a length that needs no padding, which this client leaves out over TCP (RFC 8656 section 12.5 wants it).
        self.echo(peer, b"by a channel");
    }

    fn delete(&mut self, server: &Server) {
        let now = self.now();
        self.client.delete(now).unwrap();
        let end = deadline();
        while server.live() > 0 {
            assert!(std::time::Instant::now() < end, "not deleted: {:x?}", self.heard.last());
            self.step();
        }
    }

    /// Whether an attribute is in any message that went out.
    fn has_sent(&self, attribute: u16) -> bool {
        self.sent.iter().any(|bytes| has(bytes, attribute))
    }
}

/// Whether a STUN message has an attribute.
fn has(bytes: &[u8], attribute: u16) -> bool {
    let mut at = 20;
    while bytes.first().is_some_and(|first| *first < 4) && at + 4 <= bytes.len() {
        if bytes[at..at + 2] == attribute.to_be_bytes() {
            return true;
        }
        at += 4 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]])).next_multiple_of(4);
    }
    false
}

const MESSAGE_INTEGRITY: u16 = 0x0008;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
const USERNAME: u16 = 0x0006;
const USERHASH: u16 = 0x001E;

fn config(integrity: &[IntegrityAlgorithm], anonymous: Feature) -> TurnConfig {
    let mut config = TurnConfig::new(TurnCredentials::new("alice", "wonderland"));
    config.set_supported_integrity(integrity[0]);
    integrity[1..].iter().for_each(|integrity| config.add_supported_integrity(*integrity));
    config.set_anonymous_username(anonymous);
    config
}

const SHA1: IntegrityAlgorithm = IntegrityAlgorithm::Sha1;
const SHA256: IntegrityAlgorithm = IntegrityAlgorithm::Sha256;

fn settings(offer: &'static str, with_secrets: bool) -> Settings {
    let mut settings = Settings { auth: vec![("sha256", offer)], ..Settings::new(1) };
    if !with_secrets {
        settings.secrets.clear();
    }
    settings
}

/// Whether it proves itself by SHA-256, hides its name, and finds both kinds of integrity in the answers: this one chooses MD5
/// from the offer if it knows nothing else, and proves it by MESSAGE-INTEGRITY.
#[track_caller]
fn whole_life<C: TurnClientApi>(
    mut foreign: Foreign<C>,
    server: &Server,
    (by_sha256, by_hash, both): (bool, bool, bool),
) {
    let relayed = foreign.allocate();
    let echo = Echo::start(relayed);
    foreign.call(echo.address);
    foreign.delete(server);
    assert_eq!(
        (foreign.has_sent(MESSAGE_INTEGRITY_SHA256), foreign.has_sent(MESSAGE_INTEGRITY)),
        (by_sha256, !by_sha256)
    );
    assert_eq!((foreign.has_sent(USERHASH), foreign.has_sent(USERNAME)), (by_hash, !by_hash));
    let signed = |attribute| foreign.heard.iter().any(|bytes| has(bytes, attribute));
    assert_eq!((signed(MESSAGE_INTEGRITY_SHA256), signed(MESSAGE_INTEGRITY)), (by_sha256 || both, !by_sha256));
}

/// Both kinds of integrity, hidden names, both transports: one server, one client after the other.
#[test]
fn a_foreign_client_lives_by_either_algorithm_and_with_a_hidden_name() {
    let server = settings("\"always\"", false).start();
    for (integrity, anonymous, by_sha256, by_hash) in [
        (&[SHA1][..], Feature::Disabled, false, false),
        (&[SHA256], Feature::Disabled, true, false),
        (&[SHA1, SHA256], Feature::Auto, true, true),
        (&[SHA256], Feature::Required, true, true),
    ] {
        whole_life(over_udp(server.udp4(), config(integrity, anonymous)), &server, (by_sha256, by_hash, !by_sha256));
        whole_life(over_tcp(server.tcp4(), config(integrity, anonymous)), &server, (by_sha256, by_hash, !by_sha256));
    }
    assert_eq!(server.refused("bad_integrity") + server.refused("password_algorithms"), 0);
}

/// By default a client over TCP gets SHA-256, one over UDP does not, and a name is hidden only where all are known.
#[test]
fn the_default_offers_sha256_to_streams() {
    let server = settings("\"streams\"", true).start();
    let both = config(&[SHA1, SHA256], Feature::Auto);
    whole_life(over_udp(server.udp4(), both.clone()), &server, (false, false, false));
    whole_life(over_tcp(server.tcp4(), both.clone()), &server, (true, false, false));
    let server = settings("\"never\"", true).start();
    whole_life(over_tcp(server.tcp4(), both), &server, (false, false, false));
}

/// A wrong password is refused by SHA-256 too, and the client hears why.
#[test]
fn a_wrong_password_is_refused_by_sha256() {
    let server = settings("\"always\"", false).start();
    let mut wrong = TurnConfig::new(TurnCredentials::new("alice", "wonderwall"));
    wrong.set_supported_integrity(SHA256);
    let mut foreign = over_udp(server.udp4(), wrong);
    let refused = || server.refused("bad_integrity");
    let end = deadline();
    while refused() == 0 {
        assert!(std::time::Instant::now() < end);
        foreign.step();
    }
    assert_eq!(server.live(), 0);
}

/// Calls by SHA-256 go through upgrades: the key moves, and requests go on being verified by it.
#[test]
fn calls_by_sha256_go_through_upgrades() {
    let mut own = Upgradable::start(settings("\"always\"", false));
    let mut foreign = over_udp(own.server.udp4(), config(&[SHA256], Feature::Required));
    let relayed = foreign.allocate();
    let echo = Echo::start(relayed);
    foreign.call(echo.address);
    for round in 0..3 {
        own.upgrade();
        foreign.echo(echo.address, format!("after upgrade {round}").as_bytes());
        let other = Echo::start(relayed);
        let now = foreign.now();
        foreign.events.clear();
        foreign.client.bind_channel(UDP, other.address, now).unwrap();
        foreign.wait_for(|event| matches!(event, TurnEvent::ChannelCreated(..)));
        foreign.echo(other.address, b"a new channel by the old key");
    }
    foreign.delete(&own.server);
}
