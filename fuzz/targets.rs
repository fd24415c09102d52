// What is fuzzed: bytes in, no panic out. Included by the fuzz targets and by ordinary tests, which
// replay the committed corpus through the same functions.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use throughway::address::{
    ClientAddress, Family, FiveTuple, PeerAddress, RelayedTransportAddress, ServerAddress, StreamId, Transport, Via,
};
use throughway::credentials::Secret;
use throughway::net::client_hello::{CLIENT_HELLO_BYTES_MAX, Look, look};
use throughway::net::proxy_header::{self, Announced};
use throughway::net::shared::{SharedChanges, SharedState};
use throughway::net::stream_state::StreamsState;
use throughway::protocol::alternates::Alternates;
use throughway::protocol::authenticated::{AuthenticatedClient, AuthenticatedCounts};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::border::{
    Answer, ConnectRefused, Input, OpenedRelay, Output, PacketMeta, Parity, Question, Relay, RelayRefused,
    RelayRequest, Shared,
};
use throughway::protocol::changes::{EarlyAllocations, ServerChanges};
use throughway::protocol::counters::Counters;
use throughway::protocol::export::{ServerState, counters_of};
use throughway::protocol::failures::FailureRate;
use throughway::protocol::icmp::{ICMP_INDICATION_BYTES_MAX, IcmpError};
use throughway::protocol::ids::{AllocationId, QuestionId, SessionId, WorkerId};
use throughway::protocol::meter::Meters;
use throughway::protocol::paths::PathQuestion;
use throughway::protocol::peer_policy::LocalAddresses;
use throughway::protocol::peer_policy::PeerPolicy;
use throughway::protocol::pool::Pool;
use throughway::protocol::quota::{Admitted, Counted, QuotaClaim, Quotas};
use throughway::protocol::quota_state::QuotasState;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::reply_budget::ReplyRate;
use throughway::protocol::revocation::{Revocations, SessionSubject};
use throughway::protocol::settings::{
    AuthSettings, Limits, NameForms, OnExpiry, Settings, Sha256Offer, StaticUser, StunSettings, TcpRelaySettings,
};
use throughway::protocol::tenancy::{PortParts, Tenancies};
use throughway::protocol::{Parts, Server};
use throughway::state::Kind;
use throughway::time::{Now, Ticks, UnixSeconds};
use throughway::wire::attribute::{ConnectionId, ReservationToken, xor_address};
use throughway::wire::channel_data::ChannelData;
use throughway::wire::framing::{Cut, FRAME_BYTES_MAX, cut};
use throughway::wire::integrity::{
    Fingerprint, IntegrityKey, PASSWORD_ALGORITHMS, PasswordAlgorithm, check_fingerprint, userhash,
};
use throughway::wire::message::{AttrType, CLASS_REQUEST, Known, Message, MessageType, TransactionId};
use throughway::wire::writer::Writer;
use throughway::wire::{Class, classify};

/// First bytes, ChannelData and the framing of streams.
pub(crate) fn datagram(bytes: &[u8]) {
    let class = classify(bytes);
    let data = ChannelData::parse(bytes);
    assert!(data.is_none() || class == Class::ChannelData, "ChannelData starts with 0x40 to 0x7F");
    if let Some(data) = data {
        assert!(data.payload.len() + 4 <= bytes.len());
    }
    // A stream: what is cut must not depend on how much of the rest is there already.
    let mut rest = bytes;
    loop {
        match cut(rest) {
            Cut::Frame { message, consumed } => {
                assert!(message <= consumed && consumed <= rest.len() && consumed - message < 4);
                assert!((4..=FRAME_BYTES_MAX).contains(&consumed));
                assert_eq!(cut(&rest[..consumed]), Cut::Frame { message, consumed });
                assert_eq!(cut(&rest[..consumed - 1]), Cut::NeedMore);
                assert_ne!(classify(&rest[..message]), Class::Neither);
                rest = &rest[consumed..];
            }
            Cut::NeedMore => {
                for end in 0..rest.len().min(12) {
                    assert_eq!(cut(&rest[..end]), Cut::NeedMore);
                }
                break;
            }
            Cut::Broken => break,
        }
    }
}

/// One STUN message, and everything that is read from it.
pub(crate) fn message(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else { return };
    assert_eq!(message.bytes(), bytes);
    assert!(message.unknown().len() <= 8 && message.unknown().iter().all(|kind| *kind < 0x8000));
    let known = [
        Known::Username,
        Known::Realm,
        Known::Nonce,
        Known::MessageIntegrity,
        Known::MessageIntegritySha256,
        Known::Fingerprint,
        Known::Data,
        Known::ErrorCode,
        Known::UnknownAttributes,
        Known::XorMappedAddress,
        Known::XorRelayedAddress,
    ];
    for which in known {
        assert_eq!(message.has(which), message.get(which).is_some());
        if let (Some(head), Some(value)) = (message.head_of(which), message.get(which)) {
            assert_eq!(&bytes[head + 4..head + 4 + value.len()], value);
        }
    }
    let first = message.peer();
    assert_eq!(message.peers().next(), first.transpose(), "the first peer is the first of all");
    for which in [Known::XorMappedAddress, Known::XorRelayedAddress] {
        if let Some(value) = message.get(which) {
            let _ = xor_address(value, message.transaction_id());
        }
    }
    let _ = (message.lifetime(), message.requested_transport(), message.requested_address_family());
    let _ = (message.even_port(), message.reservation_token(), message.dont_fragment(), message.channel_number());
    let fingerprint = check_fingerprint(&message);
    assert_eq!(fingerprint == Fingerprint::Absent, !message.has(Known::Fingerprint));
    assert!(!IntegrityKey::from_md5([0xA5; 16]).verifies(&message), "a key of no client fits nothing");
    let _ = format!("{message:?}");
}

struct Everybody;

impl Shared for Everybody {
    fn meters(&self, _: &QuotaClaim<'_>, _: Counted, _: &Limits, _: &Meters) -> Meters {
        Meters::default()
    }
    fn release_reservation(&self, _: Now, _: ReservationToken) {}
    fn release(&self, _: Now, _: &QuotaClaim<'_>, _: Counted) {}
    fn authenticated(&self, _: Now, _: &AuthenticatedClient<'_>) {}
    fn is_revoked(&self, _: &SessionSubject<'_>, _: UnixSeconds) -> bool {
        false
    }

    fn takes_reply(&self, _: Ticks, _: ReplyRate, five_tuple: &FiveTuple, _: &TransactionId) -> bool {
        !five_tuple.client.port().is_multiple_of(3)
    }

    fn answers_failure(&self, _: Ticks, _: FailureRate, via: &Via, _: &TransactionId) -> bool {
        !via.five_tuple().client.port().is_multiple_of(5)
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        address.port().is_multiple_of(2)
    }

    fn is_relayed_tcp(&self, address: PeerAddress) -> bool {
        address.port().is_multiple_of(3)
    }
}

const REALM: &str = "fuzz";
const USER: &str = "fuzzer";
const PASSWORD: &str = "pass";

fn settings(deny: bool) -> Arc<Settings> {
    static BOTH: OnceLock<[Arc<Settings>; 2]> = OnceLock::new();
    let both = BOTH.get_or_init(|| {
        [false, true].map(|deny| {
            let deny: &[ipnet::IpNet] = if deny { &["0.0.0.0/1".parse().expect("a prefix")] } else { &[] };
            let local = LocalAddresses { own: vec![[203, 0, 113, 7].into()], ..LocalAddresses::default() };
            let user = StaticUser::password(Secret::new(PASSWORD.as_bytes()));
            Arc::new(Settings {
                realm: REALM.into(),
                default_lifetime: 600,
                max_lifetime: 3600,
                auth: AuthSettings {
                    users: [(USER.into(), user)].into_iter().collect(),
                    secrets: Vec::new(),
                    max_ttl: 3600,
                    nonce_lifetime: 3600,
                    on_expiry: OnExpiry::Keep,
                    max_session: None,
                    sha256: Sha256Offer::Always,
                    forms: NameForms::new(REALM, std::iter::once(USER), |_| None),
                    realms: Vec::new(),
                },
                tenancies: Tenancies::default(),
                port_parts: PortParts::default(),
                peers: PeerPolicy::new(&[], deny, local).expect("no allow entry"),
                limits: Limits { permissions_per_allocation: 12, channels_per_allocation: 12, ..Limits::default() },
                alternates: Alternates::default(),
                pool: Pool::default(),
                proxies: Vec::new(),
                interim_seconds: 60,
                channel_number_max: 0x7FFE,
                relay_ipv4: true,
                relay_ipv6: true,
                mobility: true,
                stun: StunSettings::default(),
                tcp: TcpRelaySettings { is_on: true, low_ports: false },
            })
        })
    });
    both[usize::from(deny)].clone()
}

/// A server and a script: each step is an opcode, a length and so many bytes.
struct Script<'a> {
    server: Server,
    counters: Arc<Counters>,
    now: u64,
    nonces: BTreeMap<u8, Vec<u8>>,
    /// Of mobile allocations, as they were given out.
    tickets: Vec<Vec<u8>>,
    opening: Vec<(AllocationId, RelayRequest)>,
    asked: Vec<QuestionId>,
    live: Vec<(AllocationId, RelayedTransportAddress)>,
    /// Connections to peers: those that are being begun, and all that there are.
    connecting: Vec<ConnectionId>,
    connections: Vec<ConnectionId>,
    port: u16,
    rest: &'a [u8],
}

/// The whole server, unsigned and signed messages, data both ways, time and all that a shell tells it.
pub(crate) fn server(bytes: &[u8]) {
    let counters = Arc::new(Counters::default());
    let parts = Parts {
        worker: WorkerId(0),
        workers: 2,
        shared: Arc::new(Everybody),
        counters: counters.clone(),
        nonce_key: Box::new([1; 32]),
        seed: [2; 32],
    };
    let mut script = Script {
        server: Server::new(parts, settings(false)),
        counters,
        now: 1000,
        nonces: BTreeMap::new(),
        tickets: Vec::new(),
        opening: Vec::new(),
        asked: Vec::new(),
        live: Vec::new(),
        connecting: Vec::new(),
        connections: Vec::new(),
        port: 50_000,
        rest: bytes,
    };
    while let Some((&[op, len], rest)) = script.rest.split_first_chunk() {
        let (step, rest) = rest.split_at(rest.len().min(usize::from(len)));
        script.rest = rest;
        script.step(op, step);
        script.drain();
        script.server.check_invariants();
    }
    script.finish();
}

fn via(number: u8) -> Via {
    let client = ClientAddress::new([81, 2, 69, number & 7].into(), 1000 + u16::from(number & 7));
    let server = ServerAddress::new([203, 0, 113, 7].into(), 3478);
    if number & 1 == 0 {
        Via::Datagram(FiveTuple { client, server, transport: Transport::Udp })
    } else {
        Via::Stream(StreamId(u64::from(number & 7)), FiveTuple { client, server, transport: Transport::Tcp })
    }
}

fn peer(number: u8) -> PeerAddress {
    let ip: std::net::IpAddr = match number & 7 {
        6 => [203, 0, 113, 7].into(),
        7 => [0x2a00, 0x1450, 0, 0, 0, 0, 0, u16::from(number)].into(),
        low => [93, 184, 216, low].into(),
    };
    PeerAddress::new(ip, 4000 + u16::from(number >> 3))
}

impl Script<'_> {
    fn clock(&self) -> Now {
        Now { ticks: Ticks(self.now), unix: UnixSeconds(1_800_000_000 + self.now / 1000) }
    }

    fn step(&mut self, op: u8, step: &[u8]) {
        let now = self.clock();
        let byte = |at: usize| step.get(at).copied().unwrap_or_default();
        let id = |at: usize| -> AllocationId {
            let live = self.live.get(usize::from(byte(at)) % self.live.len().max(1));
            live.map_or(AllocationId { index: u32::from(byte(at)), generation: 1 }, |(id, _)| *id)
        };
        let connection = |at: usize| -> ConnectionId {
            let known = self.connections.get(usize::from(byte(at)) % self.connections.len().max(1));
            known.copied().unwrap_or(ConnectionId(u32::from(byte(at))))
        };
        match if op < 192 { op % 12 } else { 12 + op % 4 } {
            0 | 1 => self.packet(via(op >> 4), step),
            2 | 3 => {
                let bytes = self.signed(op >> 4, step);
                self.packet(via(op >> 4), &bytes);
            }
            4 => {
                if let Some((allocation, request)) = self.opening.pop() {
                    let result = self.open(request, byte(0));
                    self.server.handle_input(now, Input::RelayOpened { allocation, result });
                }
            }
            5 if op >= 128 => {
                let error = IcmpError { icmp_type: byte(2), code: byte(3), mtu: u32::from(byte(4)) };
                let mut out = [0; ICMP_INDICATION_BYTES_MAX];
                if let Some((_, len)) = self.server.icmp_from_network(now, id(0), peer(byte(1)), error, &mut out) {
                    assert!(Message::parse(&out[..len]).is_ok());
                }
            }
            5 => {
                let on = id(0);
                let verdict = self.server.relay_from_peer(now, on, peer(byte(1)), PacketMeta::default(), step);
                if let Relay::ToClient { head, payload, .. } = verdict {
                    let whole = [head.bytes(), payload, &[0; 3][..head.padding()]].concat();
                    assert!(ChannelData::parse(&whole).is_some() || Message::parse(&whole).is_ok());
                }
            }
            6 => self.now += 1 << (byte(0) % 23),
            7 => {
                let why = DropReason::ALL[usize::from(byte(1)) % DropReason::ALL.len()];
                // Only what was offered can come back.
                let offered = if op & 16 == 0 { &self.counters.to_peers } else { &self.counters.to_clients };
                let way = if op & 16 == 0 { Direction::ToPeer } else { Direction::ToClient };
                if offered.packets.get() > 0 {
                    let stranger = AllocationId { index: u32::from(byte(0)), generation: u32::MAX };
                    self.server.not_sent(stranger, way, 1, 0, why);
                }
            }
            8 => self.server.handle_input(now, Input::ClientClosed { via: via(byte(0)) }),
            9 => self.server.handle_input(now, Input::Reconfigure(settings(byte(0) & 1 == 1))),
            10 => {
                let mut token = [0; 8];
                token.iter_mut().zip(step).for_each(|(to, from)| *to = *from);
                let ticket = QuestionId { worker: WorkerId(1), number: u64::from(byte(1)) };
                let question = if op >= 128 {
                    // What came to another worker, as if it knew of an allocation here.
                    let bytes = self.signed(op >> 4, step).into();
                    let session = SessionId { instance: 0, number: 0 };
                    Question::Path(PathQuestion::Request { session, via: via(op >> 4), bytes, hops: 0 })
                } else {
                    Question::Reservation { token: ReservationToken(token), identity: USER.into() }
                };
                self.server.handle_input(now, Input::Asked { ticket, question });
            }
            12 => {
                if let Some(connection) = self.connecting.pop() {
                    let refused = [ConnectRefused::Failed, ConnectRefused::NoFiles];
                    let result = if byte(0) & 3 == 3 { Err(refused[usize::from(byte(0) >> 7)]) } else { Ok(()) };
                    self.server.handle_input(now, Input::Connected { connection, result });
                }
            }
            13 => {
                if let Some(accepted) = self.server.accept_peer(now, id(0), peer(byte(1))) {
                    self.connections.push(accepted);
                }
            }
            14 => {
                let way = if byte(1) & 1 == 0 { Direction::ToPeer } else { Direction::ToClient };
                self.server.carry(now, connection(0), way, step);
            }
            15 => self.server.handle_input(now, Input::ConnectionEnded { connection: connection(0) }),
            _ => {
                if let Some(ticket) = self.asked.pop() {
                    self.port += 1;
                    let relayed = RelayedTransportAddress::new([203, 0, 113, 7].into(), self.port);
                    let answer = Answer::Reservation((byte(0) & 1 == 0).then_some(relayed));
                    self.server.handle_input(now, Input::Answered { ticket, answer });
                }
            }
        }
    }

    /// Sorted as a shell does it.
    fn packet(&mut self, via: Via, bytes: &[u8]) {
        let now = self.clock();
        match classify(bytes) {
            Class::ChannelData | Class::SendIndication | Class::Neither => {
                let verdict = self.server.relay_from_client(now, &via, PacketMeta::default(), bytes);
                assert!(!matches!(verdict, Relay::ToClient { .. }));
            }
            Class::Stun => {
                let mut out = [0; ANSWER_BYTES_MAX];
                match self.server.answer_binding(now, &via, bytes, &mut out) {
                    Some(0) => {}
                    Some(len) => assert!(Message::parse(&out[..len]).is_ok()),
                    None => self.server.handle_input(now, Input::Message { via, bytes }),
                }
            }
        }
    }

    /// A message whose attributes are the fuzzer's, signed with a good key and a fresh nonce.
    fn signed(&mut self, client: u8, step: &[u8]) -> Vec<u8> {
        let (method, mut rest) = step.split_first().map_or((3, step), |(first, rest)| (*first, rest));
        let mut head = MessageType::default();
        let method = usize::from(method);
        head.read_value([3, 4, 8, 9, method as u16 & 0x0F, 10, 11][method % 7]);
        head.class = CLASS_REQUEST;
        let mut out = vec![0; 1024];
        let mut writer = Writer::new(&mut out, head, TransactionId([client; 12]));
        while let Some((&[kind, len], more)) = rest.split_first_chunk() {
            let (value, more) = more.split_at(more.len().min(usize::from(len & 31)));
            rest = more;
            match kind {
                // A connection that there may be, and a peer, in plain.
                0xFE => {
                    let at = usize::from(value.first().copied().unwrap_or_default());
                    let id = self.connections.get(at % self.connections.len().max(1)).map_or(7, |id| id.0);
                    writer.attribute(AttrType(0x002A), &id.to_be_bytes())
                }
                0xFF => writer.xor_address(AttrType(0x0012), peer(value.first().copied().unwrap_or_default()).0),
                // A ticket: none, one that was given out, or the fuzzer's.
                0xFD => {
                    let at = value.first().map(|at| usize::from(*at));
                    let known = at.and_then(|at| self.tickets.get(at % 16)).map_or(value, Vec::as_slice);
                    writer.attribute(AttrType(0x8030), known)
                }
                kind => writer.attribute(AttrType(u16::from(kind)), value),
            };
        }
        // Half of the clients know RFC 8489, and hide their name.
        let is_modern = client & 1 != 0;
        if is_modern {
            writer.attribute(AttrType(0x001E), &userhash(USER.as_bytes(), REALM.as_bytes()));
            writer.attribute(AttrType(0x001D), &PasswordAlgorithm::Sha256.value());
            writer.attribute(AttrType(0x8002), &PASSWORD_ALGORITHMS);
        } else {
            writer.attribute(AttrType(0x0006), USER.as_bytes());
        }
        writer.attribute(AttrType(0x0014), REALM.as_bytes());
        writer.attribute(AttrType(0x0015), self.nonces.get(&(client & 7)).map_or(b"", Vec::as_slice));
        let [user, realm, password] = [USER, REALM, PASSWORD].map(str::as_bytes);
        if is_modern {
            writer.integrity_sha256(&IntegrityKey::by(PasswordAlgorithm::Sha256, user, realm, password));
        } else {
            writer.integrity(&IntegrityKey::long_term(user, realm, password));
        }
        let len = writer.finish().unwrap_or_default();
        out.truncate(len);
        out
    }

    fn open(&mut self, request: RelayRequest, how: u8) -> Result<OpenedRelay, RelayRefused> {
        let all = [RelayRefused::NoPort, RelayRefused::NoFiles, RelayRefused::System, RelayRefused::NotHeld];
        if how & 7 == 7 {
            return Err(all[usize::from(how >> 3) % all.len()]);
        }
        self.port += 2;
        Ok(match request {
            RelayRequest::Reserved { relayed, .. } => OpenedRelay { relayed, held: None },
            RelayRequest::Tcp { family, .. } => {
                let ip: std::net::IpAddr = match family {
                    Family::V4 => [203, 0, 113, 7].into(),
                    Family::V6 => [0x2a02, 0, 0, 0, 0, 0, 0, 7].into(),
                };
                OpenedRelay { relayed: RelayedTransportAddress::new(ip, self.port), held: None }
            }
            RelayRequest::Fresh { family, parity, .. } => {
                let ip: std::net::IpAddr = match family {
                    Family::V4 => [203, 0, 113, 7].into(),
                    Family::V6 => [0x2a02, 0, 0, 0, 0, 0, 0, 7].into(),
                };
                let next = RelayedTransportAddress::new(ip, self.port | 1);
                let held = (parity == Parity::EvenAndHoldNext).then_some(next);
                OpenedRelay { relayed: RelayedTransportAddress::new(ip, self.port & !1), held }
            }
        })
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Admit { allocation, .. } => {
                    let result = Ok(Admitted::default());
                    self.server.handle_input(self.clock(), Input::Admission { allocation, result });
                }
                Output::Reply { via, bytes } => {
                    let reply = Message::parse(&bytes).expect("a reply is well-formed");
                    if let Some(nonce) = reply.get(Known::Nonce) {
                        let number = (via.five_tuple().client.port() - 1000) as u8;
                        self.nonces.insert(number, nonce.to_vec());
                    }
                    self.tickets.extend(reply.get(Known::MobilityTicket).map(<[u8]>::to_vec));
                }
                Output::OpenRelay { allocation, request } => self.opening.push((allocation, request)),
                Output::Ask { ticket, question: Question::Reservation { .. }, .. } => self.asked.push(ticket),
                // One that is told, and does not answer.
                Output::Ask { .. } => {}
                Output::Happened(throughway::protocol::border::Event::AllocationCreated(record)) => {
                    self.live.push((record.allocation, record.relayed));
                }
                Output::CloseRelay { allocation, .. } => self.live.retain(|(id, _)| *id != allocation),
                Output::Connect { connection, .. } => {
                    self.connecting.push(connection);
                    self.connections.push(connection);
                }
                Output::CloseConnection { connection } => self.connections.retain(|id| *id != connection),
                Output::BindConnection { .. } => {}
                Output::MoveRelay { to, relayed, .. } => self.live.push((to, relayed)),
                Output::KeepRelay { allocation, relayed, .. } => self.live.push((allocation, relayed)),
                Output::CloseReserved { .. } | Output::Answer { .. } | Output::Path { .. } | Output::Happened(_) => {}
                other => panic!("an output that this shell does not know: {other:?}"),
            }
        }
    }

    /// All ends, and nothing may stay behind.
    fn finish(mut self) {
        let now = self.clock();
        self.server.handle_input(now, Input::CloseAll(EndReason::Shutdown));
        self.drain();
        assert!(self.live.is_empty(), "a shutdown ends every allocation");
        self.now += 5_000_000;
        let now = self.clock();
        self.server.handle_timeout(now);
        self.drain();
        assert_eq!(self.server.leftovers(), 0, "something stayed behind");
        let ended: u64 = self.counters.ended.iter().map(|cell| cell.get()).sum();
        assert_eq!(self.counters.created.get(), ended);
    }
}

/// The first line is a JWKS, the second a token; without a second line both are the same bytes.
pub(crate) fn token(bytes: &[u8]) {
    use throughway::jwt;
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let jwks = lines.next().unwrap_or_default();
    let token = lines.next().unwrap_or(jwks);
    let expected = jwt::ExpectedClaims {
        audience: "turn".into(),
        issuer: Some("login".into()),
        user_claim: "sub".into(),
        tenant_claim: Some("tenant".into()),
        limits_claim: Some("limits".into()),
    };
    // One key that is known, so that tokens of the corpus get as far as their claims.
    const KNOWN: &[u8] = br#"{"keys":[{"kty":"oct","kid":"k","k":"dGhlLWtleS1vZi10aGUtZnV6emVyLW9mLTMyLWJ5dGVzIQ"}]}"#;
    let known = jwt::parse_jwks(KNOWN).expect("a key of 32 bytes and more");
    let own = jwt::parse_jwks(jwks);
    if let Ok(published) = jwt::parse_published(jwks) {
        assert!(published.iter().all(|key| !key.is_secret()), "a published secret is no secret");
    }
    let _ = jwt::looks_like_one(token);
    let Ok(token) = std::str::from_utf8(token) else { return };
    for keys in [Some(&known), own.as_ref().ok()].into_iter().flatten() {
        let _ = jwt::names_another_key(keys, token);
        let _ = jwt::verify(keys, &expected, 1_800_000_000, token);
    }
    assert!(jwt::verify(&[], &expected, 1_800_000_000, token).is_err(), "no key checks nothing");
}

/// What stands after the "~" of a user id. What is understood is written again and means the same.
pub(crate) fn claims(bytes: &[u8]) {
    use throughway::credentials::claims::{Claim, ClaimSet, Claims};
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let all = ClaimSet::of(&Claim::ALL);
    if let Ok(claims) = Claims::decode(text, all) {
        assert_eq!(Claims::decode(&claims.encode(), all).as_ref(), Ok(&claims));
        let _ = claims.grant.narrowed_by(&claims.grant);
    }
    if let Ok(claims) = Claims::decode(text, ClaimSet::of(&[])) {
        assert_eq!(claims.named().count(), 0, "what is not read is not granted");
    }
}

/// A file of usage records: whatever stands in it, a report comes of it.
pub(crate) fn usage_lines(bytes: &[u8]) {
    use throughway::ops::usage::report::{By, Question, Reader};
    let by = By { day: true, tenant: true, user: true, server: true };
    for keys in [vec![], vec![Secret::new(&b"signing-key-of-the-fuzzer"[..])]] {
        let mut reader = Reader::new(Question { by, keys, ..Question::default() });
        // Read twice: a record that comes twice counts once.
        for name in ["a", "b"] {
            // Only a compressed file is an error.
            let _ = reader.read(name, bytes);
        }
        let _ = reader.finish();
    }
}

/// The PROXY protocol: whatever is announced is the address of a client.
pub(crate) fn proxy_header(bytes: &[u8]) {
    if let Ok(Announced::Client(client)) = proxy_header::parse(bytes) {
        assert!(!client.ip().is_unspecified() && !client.ip().is_multicast() && client.port() != 0);
        assert_eq!(client.ip(), client.ip().to_canonical());
    }
}

/// The first message of a TLS client: a verdict comes with its last byte and does not change, and none waits for ever.
pub(crate) fn client_hello(bytes: &[u8]) {
    let verdict = look(bytes);
    let mut have = 0;
    loop {
        match look(&bytes[..have]) {
            Look::Incomplete(next) => {
                assert!(next > have && next <= CLIENT_HELLO_BYTES_MAX, "{next} after {have}");
                if next > bytes.len() {
                    assert!(matches!(verdict, Look::Incomplete(_)));
                    return;
                }
                have = next;
            }
            // Of a whole message more bytes may show that something follows it.
            early => {
                assert!(early == verdict || have < bytes.len() && matches!(early, Look::Hello(_)));
                return;
            }
        }
    }
}

/// Headers of X-Forwarded-For, one a line, as a trusted proxy sends them: never the proxy's own address.
pub(crate) fn forwarded(bytes: &[u8]) {
    use axum::http::{HeaderMap, HeaderValue};
    use throughway::api::Peer;
    static CONFIG: OnceLock<throughway::config::issuing::IssuingConfig> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let text = "http.proxies = [\"10.0.0.0/8\", \"fd00::/8\"]\n[[auth.secrets]]\nid = \"s\"\nvalue = \"secret-of-the-fuzzer\"\n";
        throughway::config::Config::from_toml("c.toml", text).expect("a right configuration").http.issuing
    });
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append("x-forwarded-for", value);
        }
    }
    let proxy = "10.0.0.1:9".parse().expect("an address");
    let _ = throughway::api::rest::client_address(config, Peer::Tcp(proxy), &headers);
    let stranger: std::net::SocketAddr = "192.0.2.9:9".parse().expect("an address");
    let of_stranger = throughway::api::rest::client_address(config, Peer::Tcp(stranger), &headers);
    assert_eq!(of_stranger, Some(stranger.ip()), "a stranger is not believed");
}

/// A body for the admin API: understood or refused.
pub(crate) fn admin_body(bytes: &[u8]) {
    let refused = throughway::api::admin::check_body(bytes).is_err();
    assert!(!refused || !bytes.is_empty(), "no body is an empty one");
}

/// The state of a worker, of a process and of streams, as they came and under a head that fits: what can be read is taken over whole or
/// refused, and is written as it was read.
pub(crate) fn state(bytes: &[u8]) {
    let _ = throughway::state::read::<ServerState>(bytes);
    let _ = throughway::state::read::<SharedState>(bytes);
    let _ = throughway::state::read::<StreamsState>(bytes);
    let _ = throughway::state::read::<EarlyAllocations>(bytes);
    let _ = throughway::state::read::<ServerChanges>(bytes);
    let _ = throughway::state::read::<SharedChanges>(bytes);
    let Some((format, body)) = bytes.split_first() else { return };
    let mut framed = vec![0; throughway::state::HEAD];
    framed.extend_from_slice(body);
    throughway::state::fill_head(&mut framed, u32::from(*format), Kind::Worker as u32);
    if let Ok(state) = throughway::state::read::<ServerState>(&framed) {
        let again = throughway::state::write(&state, throughway::state::FORMAT).expect("what was read can be written");
        assert!(throughway::state::read::<ServerState>(&again).expect("what was written can be read") == state);
        take_over(state);
    }
    throughway::state::fill_head(&mut framed, u32::from(*format), Kind::EarlyAllocations as u32);
    if let Ok(slice) = throughway::state::read::<EarlyAllocations>(&framed) {
        take_over_early(slice, None);
    }
    throughway::state::fill_head(&mut framed, u32::from(*format), Kind::WorkerChanges as u32);
    if let Ok(changes) = throughway::state::read::<ServerChanges>(&framed) {
        let again =
            throughway::state::write(&changes, throughway::state::FORMAT).expect("what was read can be written");
        assert!(throughway::state::read::<ServerChanges>(&again).expect("what was written can be read") == changes);
        let slice = throughway::state::read(EARLY).expect("a kept state");
        take_over_early(slice, Some(changes));
    }
    throughway::state::fill_head(&mut framed, u32::from(*format), Kind::ProcessChanges as u32);
    if let Ok(changes) = throughway::state::read::<SharedChanges>(&framed) {
        let early = QuotasState { scopes: changes.quotas.scopes.clone(), ..QuotasState::default() };
        let _ = Quotas::from_early_state(early).import_changes(changes.quotas.clone());
        let _ = Quotas::default().import_changes(changes.quotas);
    }
    throughway::state::fill_head(&mut framed, u32::from(*format), Kind::Process as u32);
    if let Ok(state) = throughway::state::read::<SharedState>(&framed) {
        drop((Quotas::from_state(state.quotas), Revocations::from_state(state.revocations)));
        drop(AuthenticatedCounts::from_state(&state.authenticated));
    }
    throughway::state::fill_head(&mut framed, u32::from(*format), Kind::Streams as u32);
    if let Ok(state) = throughway::state::read::<StreamsState>(&framed) {
        let again = throughway::state::write(&state, throughway::state::FORMAT).expect("what was read can be written");
        assert!(throughway::state::read::<StreamsState>(&again).expect("what was written can be read") == state);
        if state.check().is_ok() {
            for tls in state.streams.iter().filter_map(|stream| stream.tls.as_ref()) {
                let _ = throughway::net::record::RecordLayer::from_state(&tls.records);
            }
        }
    }
}

/// What came early before the kept changes.
const EARLY: &[u8] = include_bytes!("../tests/vectors/state/format-2-early-allocations.state");

fn parts_of_one_that_takes_over(counters: Arc<Counters>) -> Parts {
    Parts {
        worker: WorkerId(0),
        workers: 2,
        shared: Arc::new(Everybody),
        counters,
        nonce_key: Box::new([1; 32]),
        seed: [2; 32],
    }
}

fn take_over(state: ServerState) {
    let parts = parts_of_one_that_takes_over(counters_of(&state));
    if let Ok(server) = Server::import(parts, settings(false), state) {
        let_time_pass(server);
    }
}

/// The same in two parts.
fn take_over_early(slice: EarlyAllocations, changes: Option<ServerChanges>) {
    let mut server = Server::new(parts_of_one_that_takes_over(Arc::default()), settings(false));
    let is_taken = server.import_early(slice.allocations).is_ok();
    if is_taken && changes.is_none_or(|changes| server.import_changes(changes).is_ok()) {
        let_time_pass(server);
    }
}

fn let_time_pass(mut server: Server) {
    server.check_invariants();
    let at = |ticks| Now { ticks: Ticks(ticks), unix: UnixSeconds(1_700_000_000) };
    for ticks in [1_000, 700_000, 1 << 42] {
        server.handle_timeout(at(ticks));
        while server.poll_output().is_some() {}
    }
    server.check_invariants();
    drop(server.export());
}

/// The keys of both directions, as a state; what the client writes is what we read.
fn record_state(suite: u16) -> throughway::net::record::RecordState {
    use throughway::net::record::{DirectionState, RecordState};
    let secret_bytes = match suite {
        0x1302 => 48,
        0xC02F => 16,
        _ => 32,
    };
    let direction = |byte| DirectionState { secret: vec![byte; secret_bytes], iv: [byte; 12], number: 0 };
    RecordState::new(suite, direction(1), direction(2))
}

/// A client's records, sealed by nothing but ring: any type, any content, whether it is right or not.
struct RecordOracle {
    suite: u16,
    key: ring::aead::LessSafeKey,
    iv: [u8; 12],
    number: u64,
    secret: Vec<u8>,
}

impl RecordOracle {
    fn new(suite: u16, secret: Vec<u8>) -> Self {
        let (algorithm, hash) = match suite {
            0x1301 | 0xC02F => (&ring::aead::AES_128_GCM, ring::hkdf::HKDF_SHA256),
            0x1302 | 0xC030 => (&ring::aead::AES_256_GCM, ring::hkdf::HKDF_SHA384),
            _ => (&ring::aead::CHACHA20_POLY1305, ring::hkdf::HKDF_SHA256),
        };
        let (mut key, mut iv) = (secret.clone(), [1; 12]);
        if suite < 0x2000 {
            key = Self::expand(hash, &secret, b"\x09tls13 key\0", algorithm.key_len());
            iv.copy_from_slice(&Self::expand(hash, &secret, b"\x08tls13 iv\0", 12));
        }
        let key = ring::aead::UnboundKey::new(algorithm, &key).expect("a key of the right length");
        Self { suite, key: ring::aead::LessSafeKey::new(key), iv, number: 0, secret }
    }

    fn expand(hash: ring::hkdf::Algorithm, secret: &[u8], label: &[u8], len: usize) -> Vec<u8> {
        struct Len(usize);
        impl ring::hkdf::KeyType for Len {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut out = vec![0; len];
        let prk = ring::hkdf::Prk::new_less_safe(hash, secret);
        let info = [&[0, len as u8], label];
        prk.expand(&info, Len(len)).and_then(|okm| okm.fill(&mut out)).expect("a length that HKDF has");
        out
    }

    fn update_key(&mut self) {
        let hash = if self.suite == 0x1302 { ring::hkdf::HKDF_SHA384 } else { ring::hkdf::HKDF_SHA256 };
        let next = Self::expand(hash, &self.secret, b"\x11tls13 traffic upd\0", self.secret.len());
        *self = Self::new(self.suite, next);
    }

    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, of_number)| *byte ^= of_number);
        let is_new = self.suite < 0x2000;
        let explicit = if [0xC02F, 0xC030].contains(&self.suite) { &nonce[4..] } else { &[] };
        let mut plain = content.to_vec();
        plain.extend(is_new.then_some(kind));
        let [high, low] = ((explicit.len() + plain.len() + 16) as u16).to_be_bytes();
        let header = [if is_new { 23 } else { kind }, 3, 3, high, low];
        let additional = if is_new {
            header.to_vec()
        } else {
            [&self.number.to_be_bytes()[..], &header[..3], &(plain.len() as u16).to_be_bytes()].concat()
        };
        let tag = self
            .key
            .seal_in_place_separate_tag(
                ring::aead::Nonce::assume_unique_for_key(nonce),
                ring::aead::Aad::from(additional),
                &mut plain,
            )
            .expect("a short content");
        self.number += 1;
        [&header[..], explicit, &plain, tag.as_ref()].concat()
    }
}

/// The sections that an import may write.
const IMPORTED: [&str; 11] =
    ["realm", "workers", "listen", "tls", "relay", "turn", "auth", "peers", "limits", "http", "log"];

/// Configurations of other relays. The first byte tells what the rest is: `c` a turnserver.conf, `a` a command line with
/// an argument in each line, `s` a SQLite database, `v` a table as CSV, `e` an eturnal.yml.
pub(crate) fn import(bytes: &[u8]) {
    use throughway::import::coturn::{self, Input};
    use throughway::import::{database, eturnal};
    let Some((kind, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut input = Input { name: "t.conf", keep_verbose: true, ..Input::default() };
    let arguments: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    let unreadable = |_: &str| Err("can't be read".to_owned());
    let draft = match kind {
        b'c' => coturn::import(Input { file: rest, ..input }, &unreadable),
        b'a' => coturn::import(Input { arguments: &arguments, ..input }, &unreadable),
        b's' => {
            // Once as `--database`, and once as the configuration names it.
            let Ok(tables) = database::of_sqlite("turndb", rest) else { return };
            let read = |_: &str| database::of_sqlite("turndb", rest);
            let named = Input { file: b"realm=r\nuserdb=turndb\n", keep_verbose: true, ..Input::default() };
            check_draft(&coturn::import(named, &read));
            input.tables = tables;
            coturn::import(Input { file: b"realm=r\nuse-auth-secret\n", ..input }, &unreadable)
        }
        b'v' => {
            for table in ["turnusers_lt", "turn_secret", "allowed_peer_ip", "denied_peer_ip"] {
                input.tables.extend(database::of_csv("t.csv", table, &text));
            }
            coturn::import(Input { file: b"realm=r\n", ..input }, &unreadable)
        }
        b'e' => {
            let Ok(draft) = eturnal::import("e.yml", &text) else { return };
            draft
        }
        _ => return,
    };
    check_draft(&draft);
}

/// Whatever the old file holds, the result is TOML with sections that an import writes, and each verdict has a place.
fn check_draft(draft: &throughway::import::draft::Draft) {
    let text = draft.text("old");
    let table: toml::Table = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for section in table.keys() {
        assert!(IMPORTED.contains(&section.as_str()), "{section} in\n{text}");
    }
    for verdict in draft.sorted() {
        let shown = verdict.to_string();
        assert!(!verdict.message.is_empty() && shown.contains(verdict.outcome.word()), "{shown}");
        assert_eq!(verdict.to_json()["verdict"], verdict.outcome.word());
    }
}

/// Records of TLS: a script of what a client sends, rightly sealed or not, and then the rest as it is.
///
/// The first byte chooses the suite. Each step is a byte that says what, a byte for a type or a place, a length, and
/// so many bytes.
pub(crate) fn record(bytes: &[u8]) {
    use throughway::net::record::{Alert, Cut, Opened, RECORD_BYTES_MAX, RecordLayer};
    let Some((first, mut script)) = bytes.split_first() else { return };
    let suite = [0x1301, 0x1302, 0x1303, 0xC02F, 0xC030, 0xCCA8][usize::from(first % 6)];
    let state = record_state(suite);
    let mut oracle = RecordOracle::new(suite, state.reading.secret.clone());
    let mut server = RecordLayer::from_state(&state).expect("a right state");
    let mut now = Ticks(1_000_000);
    while let [what, parameter, len, rest @ ..] = script {
        let (content, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        script = rest;
        now = Ticks(now.0 + u64::from(what >> 3));
        let mut wire = oracle.seal(*parameter, content);
        match what % 8 {
            // Changed on the way.
            0 => {
                let at = usize::from(*parameter) % wire.len();
                wire[at] ^= content.first().copied().unwrap_or(1).max(1);
            }
            // Bytes as they are.
            1 => wire = content.to_vec(),
            // To another process.
            2 => {
                let state = server.to_state();
                server = RecordLayer::from_state(&state).expect("its own state");
                assert_eq!(RecordLayer::from_state(&state).expect("its own state").to_state(), state);
            }
            _ => {}
        }
        let is_right = what % 8 >= 2;
        let Ok(Cut::Record(len)) = server.cut(&wire) else {
            assert!(!is_right || suite > 0x2000, "what the client sealed is a record");
            return;
        };
        assert!(len <= wire.len() && len <= RECORD_BYTES_MAX);
        assert_eq!(server.cut(&wire[..len - 1]), Ok(Cut::NeedMore));
        let had_ended = server.has_ended_reading();
        let front = usize::from(*parameter) % 3;
        let mut moved = vec![0xEE; front];
        moved.extend_from_slice(&wire[..len]);
        let opened = server.open_to_front(&mut moved, front, now);
        match opened {
            _ if had_ended => assert_eq!(opened, Ok(Opened::Ignored)),
            Ok(Opened::Data(data)) => {
                assert!(is_right, "only the key's holder can seal");
                assert!(!data.is_empty() && content.starts_with(data));
            }
            Ok(Opened::KeyUpdate { .. }) => {
                assert!(is_right && suite < 0x2000);
                oracle.update_key();
            }
            Ok(Opened::CloseNotify | Opened::Failed(_) | Opened::Ignored) => assert!(is_right),
            Err(alert) => assert!(is_right || alert == Alert::BadRecordMac, "{alert}"),
        }
        let mut out = vec![0; server.sealed_bytes(content.len())];
        assert_eq!(server.seal(&[content], &mut out), Ok(out.len()));
    }
    // What nobody sealed is never opened.
    let mut rest = script.to_vec();
    assert!(server.has_ended_reading() || server.open(&mut rest, now).is_err());
}
