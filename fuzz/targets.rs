// What is fuzzed: bytes in, no panic out. Included by the fuzz targets and by ordinary tests, which
// replay the committed corpus through the same functions.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use throughway::credentials::Secret;
use throughway::protocol::address::{
    ClientAddress, Family, FiveTuple, PeerAddress, RelayedTransportAddress, ServerAddress, StreamId, Transport, Via,
};
use throughway::protocol::binding::ANSWER_BYTES_MAX;
use throughway::protocol::border::{
    AllocationId, Answer, AskId, DropReason, EndReason, Genuine, Input, OpenedRelay, Output, PacketMeta, Parity,
    Question, Relay, RelayRefused, RelayRequest, Shared, Way, WorkerId,
};
use throughway::protocol::counters::Counters;
use throughway::protocol::drain::Alternates;
use throughway::protocol::meter::Meters;
use throughway::protocol::peer_policy::PeerPolicy;
use throughway::protocol::quota::{Admitted, Counted, QuotaClaim};
use throughway::protocol::reject::RejectReason;
use throughway::protocol::revocation::Party;
use throughway::protocol::settings::{AuthSettings, Limits, LocalAddresses, OnExpiry, Settings, StaticUser};
use throughway::protocol::time::{Now, Ticks, UnixSeconds};
use throughway::protocol::{Parts, Server};
use throughway::wire::attribute::{ReservationToken, xor_address};
use throughway::wire::channel_data::ChannelData;
use throughway::wire::framing::{Cut, FRAME_BYTES_MAX, cut};
use throughway::wire::integrity::{Fingerprint, Key, check_fingerprint};
use throughway::wire::message::{AttrType, CLASS_REQUEST, Known, Message, MessageType, TransactionId};
use throughway::wire::writer::Writer;
use throughway::wire::{Class, classify};

/// First bytes, ChannelData and the framing of streams.
pub(crate) fn datagram(bytes: &[u8]) {
    let class = classify(bytes);
    let data = ChannelData::parse(bytes);
    assert!(data.is_none() || class == Class::ChannelData, "ChannelData starts with 0x40 to 0x4F");
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
    assert!(!Key::from_md5([0xA5; 16]).verifies(&message), "a key that nobody has fits nothing");
    let _ = format!("{message:?}");
}

struct Everybody;

impl Shared for Everybody {
    fn admit(&self, _: Now, _: &QuotaClaim<'_>, _: &Limits) -> Result<Admitted, RejectReason> {
        Ok(Admitted::default())
    }
    fn meters(&self, _: &QuotaClaim<'_>, _: Counted, _: &Limits) -> Meters {
        Meters::default()
    }
    fn release(&self, _: Now, _: &QuotaClaim<'_>, _: Counted) {}
    fn authenticated(&self, _: Now, _: &Genuine<'_>) {}
    fn is_revoked(&self, _: &Party<'_>, _: UnixSeconds) -> bool {
        false
    }

    fn is_relayed(&self, address: PeerAddress) -> bool {
        address.port().is_multiple_of(2)
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
                },
                peers: PeerPolicy::new(&[], deny, local).expect("no allow entry"),
                limits: Limits { permissions_per_allocation: 12, channels_per_allocation: 12, ..Limits::default() },
                alternates: Alternates::default(),
                interim_seconds: 60,
                relay_ipv4: true,
                relay_ipv6: true,
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
    opening: Vec<(AllocationId, RelayRequest)>,
    asked: Vec<AskId>,
    live: Vec<(AllocationId, RelayedTransportAddress)>,
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
        opening: Vec::new(),
        asked: Vec::new(),
        live: Vec::new(),
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
        match op % 12 {
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
                let way = if op & 16 == 0 { Way::ToPeer } else { Way::ToClient };
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
                let ticket = AskId { worker: WorkerId(1), number: u64::from(byte(1)) };
                let question = Question::Reservation { token: ReservationToken(token), identity: USER.into() };
                self.server.handle_input(now, Input::Asked { ticket, question });
            }
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
                match self.server.answer_binding(&via, bytes, &mut out) {
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
        head.read_value([3, 4, 8, 9, method as u16 & 0x0F][method % 5]);
        head.class = CLASS_REQUEST;
        let mut out = vec![0; 1024];
        let mut writer = Writer::new(&mut out, head, TransactionId([client; 12]));
        while let Some((&[kind, len], more)) = rest.split_first_chunk() {
            let (value, more) = more.split_at(more.len().min(usize::from(len & 31)));
            rest = more;
            match kind {
                // A peer in plain.
                0xFF => writer.xor_address(AttrType(0x0012), peer(value.first().copied().unwrap_or_default()).0),
                kind => writer.attribute(AttrType(u16::from(kind)), value),
            };
        }
        writer.attribute(AttrType(0x0006), USER.as_bytes());
        writer.attribute(AttrType(0x0014), REALM.as_bytes());
        writer.attribute(AttrType(0x0015), self.nonces.get(&(client & 7)).map_or(b"", Vec::as_slice));
        writer.integrity(&Key::long_term(USER.as_bytes(), REALM.as_bytes(), PASSWORD.as_bytes()));
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
                Output::Reply { via, bytes } => {
                    let reply = Message::parse(&bytes).expect("a reply is well-formed");
                    if let Some(nonce) = reply.get(Known::Nonce) {
                        let number = (via.five_tuple().client.port() - 1000) as u8;
                        self.nonces.insert(number, nonce.to_vec());
                    }
                }
                Output::OpenRelay { allocation, request } => self.opening.push((allocation, request)),
                Output::Ask { ticket, .. } => self.asked.push(ticket),
                Output::Happened(throughway::protocol::border::Event::AllocationCreated(record)) => {
                    self.live.push((record.allocation, record.relayed));
                }
                Output::CloseRelay { allocation, .. } => self.live.retain(|(id, _)| *id != allocation),
                Output::CloseReserved { .. } | Output::Answer { .. } | Output::Happened(_) => {}
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
