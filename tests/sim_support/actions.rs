//! What happens in the simulated world: honest clients, peers, operators, and those who mean harm.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use throughway::address::{ClientAddress, Family, FiveTuple, PeerAddress, ServerAddress, StreamId, Transport, Via};
use throughway::credentials;
use throughway::credentials::claims::Claims;
use throughway::protocol::meter::Rates;
use throughway::protocol::revocation::Subject;
use throughway::wire::message::{Known, Message};

use super::config::{
    BITS, EXPIRIES, LISTEN_PORT, OTHER_PORT, OTHER_REALM, OTHER_USERS, Policy, REALM, RELAY_IPV4, RELAY_IPV6, SECRETS,
    grant, listener_of, peers,
};
use super::model::{Key, unix};
use super::packet::{Chosen, Request, Signed, What, channel_data, send_indication};
use super::terms::May;
use super::world::{Due, Packet, World, trace};

/// Somebody with a credential.
pub struct Client {
    pub via: Via,
    pub username: String,
    pub password: String,
    pub nonce: Option<Vec<u8>>,
    pub token: Option<[u8; 8]>,
    pub last: Option<Packet>,
    /// A stream keeps its order.
    pub busy_until: u64,
}

/// Packets that somebody overheard.
const WIRETAP_MAX: usize = 64;

impl World {
    pub fn make_clients(&mut self) {
        let count = match self.rng.below(4) {
            0 => self.rng.range(1, 8),
            1 | 2 => self.rng.range(10, 60),
            _ => self.rng.range(150, 400),
        };
        for index in 0..count {
            let ip = if self.rng.percent(25) {
                IpAddr::V6(Ipv6Addr::new(0x2a03, 1, 0, self.rng.below(1024) as u16, 0, 0, 0, index as u16))
            } else {
                IpAddr::V4(Ipv4Addr::new(81, 2, self.rng.below(2) as u8, self.rng.below(20) as u8))
            };
            let via = self.fresh_via(ip);
            let (username, password) = self.fresh_credential();
            self.client_of.insert(via, self.clients.len());
            self.clients.push(Client { via, username, password, nonce: None, token: None, last: None, busy_until: 0 });
        }
    }

    pub fn fresh_via(&mut self, ip: IpAddr) -> Via {
        let port = if self.config.has_realms && self.rng.percent(50) { OTHER_PORT } else { LISTEN_PORT };
        let server = match ip {
            IpAddr::V4(_) => ServerAddress::new(RELAY_IPV4, port),
            IpAddr::V6(_) => ServerAddress::new(RELAY_IPV6, port),
        };
        loop {
            let client = ClientAddress::new(ip, self.rng.range(1024, 65_535) as u16);
            let via = if self.rng.percent(30) {
                self.streams += 1;
                Via::Stream(StreamId(self.streams), FiveTuple { client, server, transport: Transport::Tcp })
            } else {
                Via::Datagram(FiveTuple { client, server, transport: Transport::Udp })
            };
            // A five-tuple is new: it was not used before.
            if !self.client_of.contains_key(&via) && !self.model.session_of.contains_key(&via) {
                return via;
            }
        }
    }

    fn fresh_credential(&mut self) -> (String, String) {
        if self.config.has_realms && self.rng.percent(20) {
            let (name, password) = *self.rng.pick(&OTHER_USERS);
            return (name.into(), password.into());
        }
        match self.rng.below(10) {
            0 => ("alice".into(), "wonderland".into()),
            1 => ("bob".into(), "builder".into()),
            2 => ("nobody".into(), "nothing".into()),
            3 => ("alice".into(), "wrong".into()),
            _ => {
                let secret = self.rng.pick(&self.config.secrets).clone();
                let id = format!("u{}", self.rng.below(6));
                let ttl = *self.rng.pick(&[60, 600, 3600, 7000, 9000]);
                let may =
                    if secret.claims.is_read() && self.rng.percent(50) { self.some_claims() } else { May::default() };
                let claims = Claims { grant: grant(&may), ..Claims::default() };
                let minted = credentials::mint(&secret, unix(self.now), &id, ttl, &claims).unwrap();
                self.config.minted.insert(minted.username.clone(), (id, may));
                (minted.username, minted.password)
            }
        }
    }

    fn some_claims(&mut self) -> May {
        let rng = &mut self.rng;
        May {
            bytes: rng.percent(40).then(|| rng.range(1_000, 60_000)),
            bits: rng.percent(20).then(|| *rng.pick(&BITS)),
            packets: None,
            allocations: rng.percent(20).then(|| rng.range(1, 3) as u32),
            closes_at: rng.percent(30).then(|| unix(self.now) + rng.range(1, 2_000)),
            day: None,
        }
    }

    /// A client: mostly one of a few busy ones.
    fn some_client(&mut self) -> usize {
        let all = self.clients.len() as u64;
        let among = if self.rng.percent(60) { all.min(6) } else { all };
        self.rng.below(among) as usize
    }

    fn some_session(&mut self) -> Option<Key> {
        let count = self.model.sessions.len() as u64;
        if count == 0 {
            return None;
        }
        let at = self.rng.below(count) as usize;
        self.model.sessions.keys().nth(at).copied()
    }

    /// A peer: mostly one that the relayed address could reach.
    pub fn some_peer(&mut self, family: Family) -> PeerAddress {
        if self.rng.percent(15) {
            if let Some(key) = self.some_session() {
                return PeerAddress(self.model.sessions[&key].relayed.0);
            }
            return PeerAddress::new(RELAY_IPV4, 50_001);
        }
        let peers = peers();
        let wanted = self.rng.percent(92);
        loop {
            let peer = *self.rng.pick(&peers);
            if !wanted || (peer.family() == family && self.config.class(peer.ip()).is_some()) {
                return peer;
            }
        }
    }

    pub fn payload(&mut self) -> std::ops::Range<usize> {
        let len = match self.rng.below(60) {
            0 => 0,
            1 => self.rng.range(65_400, 65_507) as usize,
            2 => self.rng.range(1, 9) as usize,
            _ => self.rng.range(20, 1300) as usize,
        };
        let at = self.rng.below(60_000) as usize;
        at..at + len
    }

    /// Puts a client's packet on its way: streams keep order and lose nothing.
    fn send(&mut self, client: usize, packet: Packet) {
        self.wiretap.push_back(packet.clone());
        if self.wiretap.len() > WIRETAP_MAX {
            self.wiretap.pop_front();
        }
        self.clients[client].last = Some(packet.clone());
        if packet.via.is_stream() {
            let when = self.clients[client].busy_until.max(self.now + self.rng.range(1, 80));
            self.clients[client].busy_until = when;
            return self.at(when, Due::ToServer(packet));
        }
        self.cast(packet);
    }

    /// A datagram: lost, late, doubled or overtaken.
    fn cast(&mut self, packet: Packet) {
        if self.rng.percent(3) {
            return;
        }
        if self.rng.percent(4) {
            self.after(1, 2_500, Due::ToServer(packet.clone()));
        }
        let slow = if self.rng.percent(4) { 5_000 } else { 80 };
        self.after(1, slow, Due::ToServer(packet));
    }

    fn sign(&mut self, client_number: usize, request: &mut Request) {
        let client = &self.clients[client_number];
        if let Some(nonce) = client.nonce.clone() {
            let (username, password) = (client.username.clone(), client.password.clone());
            // A nonce that came with an offer begins with the cookie. Most clients keep to what they took; some don't.
            let offered = nonce.starts_with(b"obMatJos2");
            let takes = if self.rng.percent(10) { self.rng.below(2) == 0 } else { client_number.is_multiple_of(2) };
            let chosen = match self.rng.below(100) {
                0 => Chosen::Lone,
                1..5 if offered => Chosen::Md5,
                _ if offered && takes => Chosen::Sha256,
                _ => Chosen::Nothing,
            };
            let mut realm = listener_of(&client.via).0;
            if self.config.has_realms && self.rng.percent(4) {
                realm = if realm == REALM { OTHER_REALM } else { REALM };
            }
            let hidden = self.rng.percent(10);
            request.signed = Some(Signed { username, password, realm, nonce, chosen, hidden });
        }
    }

    pub fn request(&mut self, client: usize, what: What, fill: impl FnOnce(&mut Self, &mut Request)) {
        let mut request = Request::new(what, self.rng.bytes());
        fill(self, &mut request);
        request.fingerprint = self.rng.percent(30);
        request.unknown_attribute = self.rng.percent(2);
        if what != What::Binding && !self.rng.percent(2) {
            self.sign(client, &mut request);
        }
        if let Some(signed) = &mut request.signed {
            match self.rng.below(100) {
                0 => signed.realm = "elsewhere",
                1 => signed.nonce = self.rng.bytes::<24>().to_vec(),
                2 => signed.password.push('x'),
                3 => signed.username = "mallory".into(),
                _ => {}
            }
        }
        let via = self.clients[client].via;
        let bytes = request.encode().into();
        self.send(client, Packet { via, bytes, request: Some(Rc::new(request)), damaged: false });
    }

    /// A reply arrives: the client learns nonce and token.
    pub fn client_hears(&mut self, via: &Via, bytes: &[u8]) {
        let Some(&client) = self.client_of.get(via) else { return };
        let reply = Message::parse(bytes).expect("a reply is well-formed");
        if let Some(nonce) = reply.get(Known::Nonce) {
            let again = self.clients[client].nonce.replace(nonce.to_vec()).is_some();
            let idle = self.model.alive(via, self.now).is_none();
            if again
                && idle
                && reply.get(Known::ErrorCode).is_some_and(|code| code[2..4] == [4, 1])
                && self.rng.percent(50)
            {
                // The credential is over or was never good: the application fetches another.
                (self.clients[client].username, self.clients[client].password) = self.fresh_credential();
            }
        }
        if let Ok(Some(token)) = reply.reservation_token() {
            // Shared with another client, which may use it: mostly of the same user.
            let username = self.clients[client].username.clone();
            self.clients[client].token = Some(token.0);
            if let Some(friend) = (0..self.clients.len()).find(|&c| c != client && self.clients[c].username == username)
            {
                self.clients[friend].token = Some(token.0);
            }
        }
    }

    pub fn act(&mut self) {
        let client = self.some_client();
        let via = self.clients[client].via;
        let session = self.model.alive(&via, self.now).map(|(key, _)| key);
        if self.config.has_tcp && self.rng.percent(30) {
            return self.act_connection(client);
        }
        let what = self.rng.below(1000);
        if session.is_none() && (180..690).contains(&what) && self.rng.percent(70) {
            // Without an allocation there is not much else to do.
            return self.act_allocate(client);
        }
        match what {
            0..180 => self.act_allocate(client),
            180..260 => self.act_refresh(client),
            260..380 => self.act_permission(client),
            380..480 => self.act_bind(client),
            480..590 => self.act_send(client, session),
            590..690 => self.act_channel_data(client, session),
            690..780 => self.act_peer(),
            780..800 => self.request(client, What::Binding, |_, _| {}),
            800..820 => self.act_repeat(client),
            820..850 => self.act_replay(),
            850..890 => self.act_damage(),
            890..905 => self.act_noise(client),
            905..920 => self.act_move(client),
            920..930 => self.act_other_user(client, session),
            930..985 => self.act_probe(),
            985..990 => self.act_stale_id(),
            990..995 => self.act_reconfigure(),
            995..997 => self.act_operator(),
            _ => self.act_shut_down(),
        }
    }

    fn act_allocate(&mut self, client: usize) {
        self.request(client, What::Allocate, |world, request| {
            let rng = &mut world.rng;
            request.lifetime = *rng.pick(&[None, None, Some(0), Some(60), Some(777), Some(1200), Some(u32::MAX)]);
            request.family = *rng.pick(&[None, None, Some(1), Some(2), Some(2), Some(9)]);
            request.even_port = *rng.pick(&[None, None, Some(false), Some(true)]);
            request.transport = *rng.pick(&[Some(17), Some(17), Some(17), Some(17), Some(17), Some(17), Some(6), None]);
            if world.config.has_tcp && world.rng.percent(40) {
                (request.transport, request.even_port) = (Some(6), None);
                return;
            }
            if world.is_dual() && world.rng.percent(50) {
                request.additional = Some(*world.rng.pick(&[2, 2, 2, 2, 2, 1, 9]));
                if !world.rng.percent(10) {
                    (request.even_port, request.family) = (None, None);
                }
            }
            if world.rng.percent(50) {
                request.token = world.clients[client].token;
                if world.rng.percent(10) {
                    request.token = Some(world.rng.bytes());
                }
                if request.token.is_some() && !world.rng.percent(5) {
                    (request.even_port, request.family, request.transport) = (None, None, Some(17));
                    request.additional = None;
                }
            }
        });
    }

    fn act_refresh(&mut self, client: usize) {
        self.request(client, What::Refresh, |world, request| {
            let rng = &mut world.rng;
            request.lifetime = *rng.pick(&[None, Some(0), Some(1), Some(700), Some(1500), Some(9000)]);
            request.family = *rng.pick(&[None, None, None, None, Some(1), Some(2), Some(7)]);
        });
    }

    pub fn family_of(&mut self, client: usize) -> Family {
        let via = &self.clients[client].via;
        let session = self.model.alive(via, self.now).map(|(_, session)| session);
        let (own, is_dual) =
            session.map_or((Family::V4, false), |session| (session.relayed.family(), session.other.is_some()));
        if is_dual { *self.rng.pick(&[Family::V4, Family::V6]) } else { own }
    }

    fn act_permission(&mut self, client: usize) {
        let family = self.family_of(client);
        self.request(client, What::CreatePermission, |world, request| {
            let count = *world.rng.pick(&[0, 1, 1, 1, 2, 3, 5]);
            request.peers = (0..count).map(|_| world.some_peer(family)).collect();
        });
    }

    fn act_bind(&mut self, client: usize) {
        let family = self.family_of(client);
        self.request(client, What::ChannelBind, |world, request| {
            let number = 0x4000 + world.rng.below(6) as u16;
            request.channel = *world.rng.pick(&[Some(number); 20]);
            match world.rng.below(30) {
                0 => request.channel = None,
                1 => request.channel = Some(*world.rng.pick(&[0x3FFF, 0x4FFF, 0x5000, 0x7FFE, 0x7FFF, 0])),
                _ => {}
            }
            if !world.rng.percent(3) {
                request.peers = vec![world.some_peer(family)];
            }
        });
    }

    fn data(&mut self, client: usize, bytes: Vec<u8>) {
        let via = self.clients[client].via;
        self.send(client, Packet { via, bytes: bytes.into(), request: None, damaged: false });
    }

    fn act_send(&mut self, client: usize, session: Option<Key>) {
        let family = self.family_of(client);
        let known = session.and_then(|key| {
            let ips: Vec<IpAddr> = self.model.sessions[&key].permissions.keys().copied().collect();
            (!ips.is_empty() && self.rng.percent(80)).then(|| PeerAddress::new(*self.rng.pick(&ips), 5000))
        });
        let peer = match known {
            // The port does not matter to a permission, but it does on an own address.
            Some(peer) if peer.ip() != RELAY_IPV4 && peer.ip() != RELAY_IPV6 => peer,
            Some(_) | None => self.some_peer(family),
        };
        let (payload, transaction) = (self.payload(), self.rng.bytes());
        let dont_fragment = self.rng.percent(20);
        let payload = payload.start..payload.end.min(payload.start + 65_450);
        let bytes = send_indication(transaction, peer, &self.noise[payload], dont_fragment);
        self.data(client, bytes);
    }

    fn act_channel_data(&mut self, client: usize, session: Option<Key>) {
        let numbers: Vec<u16> =
            session.map(|key| self.model.sessions[&key].channels.keys().copied().collect()).unwrap_or_default();
        let number = if numbers.is_empty() || self.rng.percent(8) {
            0x4000 + self.rng.below(8) as u16
        } else {
            *self.rng.pick(&numbers)
        };
        let payload = self.payload();
        let bytes = channel_data(number, &self.noise[payload], self.clients[client].via.is_stream());
        self.data(client, bytes);
    }

    fn act_peer(&mut self) {
        let Some(key) = self.some_session() else { return };
        if self.model.sessions[&key].is_tcp {
            return self.act_peer_connects(key);
        }
        let session = &self.model.sessions[&key];
        let ips = session.permissions.keys().copied().collect::<Vec<_>>();
        let other = session.other.map(|other| other.relayed).filter(|_| key.1.generation.is_multiple_of(2));
        let relayed = other.unwrap_or(session.relayed);
        let family = relayed.family();
        let from = if ips.is_empty() || self.rng.percent(20) {
            let from = self.some_peer(family);
            if from.family() == family { from } else { return }
        } else {
            let ip = *self.rng.pick(&ips);
            let peers: Vec<PeerAddress> = peers().into_iter().filter(|peer| peer.ip() == ip).collect();
            if peers.is_empty() { PeerAddress::new(ip, 50_000) } else { *self.rng.pick(&peers) }
        };
        let payload = self.payload();
        self.after(1, 100, Due::FromPeer { to: relayed, from, at: payload.start, len: payload.len() });
    }

    /// The client did not hear in time and sends the same bytes again.
    fn act_repeat(&mut self, client: usize) {
        if let Some(packet) = self.clients[client].last.clone()
            && packet.via == self.clients[client].via
        {
            self.send(client, packet);
        }
    }

    /// Somebody overheard a packet and sends it again, as the victim or as himself.
    fn act_replay(&mut self) {
        let Some(mut packet) = self.overheard() else { return };
        if self.rng.percent(50) {
            let client = self.some_client();
            packet.via = self.clients[client].via;
        }
        self.forge(packet);
    }

    fn overheard(&mut self) -> Option<Packet> {
        let count = self.wiretap.len() as u64;
        (count > 0).then(|| self.rng.below(count) as usize).map(|at| self.wiretap[at].clone())
    }

    /// No client can write into a foreign stream; datagrams come with any source.
    fn forge(&mut self, packet: Packet) {
        if !packet.via.is_stream() {
            self.cast(packet);
        }
    }

    fn act_damage(&mut self) {
        let Some(mut packet) = self.overheard() else { return };
        let mut bytes = packet.bytes.to_vec();
        let (at, flip) = (self.rng.below(bytes.len() as u64) as usize, self.rng.next());
        match self.rng.below(6) {
            0 => bytes[at] ^= 1 << (flip % 8),
            1 => {
                let head = at % 28.min(bytes.len());
                bytes[head] ^= 1 << (flip % 8);
            }
            2 => bytes.truncate(at),
            3 => bytes.extend_from_slice(&flip.to_be_bytes()[..(flip % 8) as usize]),
            4 => bytes[at] = flip as u8,
            _ => {
                // A lie about a length: of the message or of its first attribute.
                let at = if flip % 2 == 0 { 3 } else { 23 };
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = byte.wrapping_add((flip >> 8) as u8 | 1);
                }
            }
        }
        if packet.bytes[..] != bytes[..] {
            packet.bytes = bytes.into();
            packet.damaged = true;
        }
        self.forge(packet);
    }

    fn act_noise(&mut self, client: usize) {
        let len = self.rng.range(1, 80) as usize;
        let mut bytes = vec![0; len];
        self.rng.fill(&mut bytes);
        match self.rng.below(5) {
            0 => bytes[0] = 0x40 | bytes[0] & 0x3F,
            1 => bytes[0] = 0x80,
            2 | 3 => {
                // Looks like STUN: type and cookie fit, and mostly the length.
                let len = if self.rng.percent(5) { 4_100 } else { len };
                bytes.resize(len.next_multiple_of(4).max(20), 0);
                let body = bytes.len() as u16 - 20;
                bytes[..2].copy_from_slice(&[0, *self.rng.pick(&[1, 3, 4, 8, 9, 0x16, 0x11])]);
                bytes[2..4].copy_from_slice(&body.to_be_bytes());
                bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xA4, 0x42]);
            }
            _ => {}
        }
        let via = self.clients[client].via;
        self.forge(Packet { via, bytes: bytes.into(), request: None, damaged: true });
    }

    /// The NAT forgets its mapping, or the stream breaks: the client comes from elsewhere.
    fn act_move(&mut self, client: usize) {
        let old = self.clients[client].via;
        let via = self.fresh_via(old.five_tuple().client.ip());
        trace!(self, "client {client} moves from {old:?} to {via:?}");
        if old.is_stream() {
            self.close_stream(old);
        } else {
            self.client_of.remove(&old);
        }
        self.client_of.insert(via, client);
        self.clients[client].via = via;
        if self.rng.percent(50) {
            (self.clients[client].username, self.clients[client].password) = self.fresh_credential();
        }
    }

    /// Somebody with a good credential on another user's five-tuple.
    fn act_other_user(&mut self, client: usize, session: Option<Key>) {
        if session.is_none() {
            return;
        }
        let (username, password) = self.fresh_credential();
        let what = *self.rng.pick(&[What::Allocate, What::Refresh, What::CreatePermission, What::ChannelBind]);
        let mut request = Request::new(what, self.rng.bytes());
        request.lifetime = Some(0);
        request.peers = vec![self.some_peer(Family::V4)];
        request.channel = Some(0x4000);
        self.sign(client, &mut request);
        if let Some(signed) = &mut request.signed {
            (signed.username, signed.password) = (username, password);
        }
        let via = self.clients[client].via;
        let bytes = request.encode().into();
        let packet = Packet { via, bytes, request: Some(Rc::new(request)), damaged: false };
        self.at(self.now, Due::ToServer(packet));
    }

    /// Packets in the last millisecond of a lifetime and in the first one after it.
    fn act_probe(&mut self) {
        let Some(key) = self.some_session() else { return };
        let session = &self.model.sessions[&key];
        if session.is_tcp {
            return;
        }
        let (via, relayed) = (session.via, session.relayed);
        let permission = session.permissions.iter().map(|(ip, until)| (*ip, *until)).next();
        let channel = session.channels.iter().map(|(number, (peer, until))| (*number, *peer, *until)).next_back();
        let (end, known) = (session.expires_at, permission.map(|(ip, _)| PeerAddress::new(ip, 5000)));
        let when = match self.rng.below(4) {
            0 => end,
            1 => channel.map_or(end, |(_, _, until)| until),
            _ => permission.map_or(end, |(_, until)| until),
        };
        for when in [when.saturating_sub(1), when] {
            if when < self.now {
                continue;
            }
            if let Some((number, peer, _)) = channel {
                let bytes = channel_data(number, &self.noise[..33], via.is_stream());
                self.at(when, Due::ToServer(Packet { via, bytes: bytes.into(), request: None, damaged: false }));
                self.at(when, Due::FromPeer { to: relayed, from: peer, at: 7, len: 41 });
            }
            if let Some(peer) = known {
                let bytes = send_indication([5; 12], peer, &self.noise[..10], false);
                self.at(when, Due::ToServer(Packet { via, bytes: bytes.into(), request: None, damaged: false }));
                self.at(when, Due::FromPeer { to: relayed, from: peer, at: 0, len: 42 });
            }
        }
    }

    /// A datagram was read from a relayed socket just before its allocation ended.
    fn act_stale_id(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let key = *self.rng.pick(&self.ended);
        let from = self.some_peer(Family::V4);
        self.deliver_from_peer(key, from, 3, 77);
    }

    fn act_reconfigure(&mut self) {
        match self.rng.below(9) {
            0 | 1 => {
                let edited = self.config.policy == Policy::Edited;
                self.config.policy = if edited { Policy::Plain } else { Policy::Edited };
            }
            2 => {
                let password = *self.rng.pick(&["wonderland", "looking-glass"]);
                self.config.users = vec![("alice", password, self.rng.percent(50)), ("bob", "builder", true)];
            }
            3 => self.config.users.retain(|(name, ..)| *name == "alice"),
            4 => {
                let value = *self.rng.pick(&SECRETS);
                let secret = self.config.secret(value);
                self.config.secrets.insert(0, secret);
                self.config.secrets.truncate(2);
            }
            5 => self.config.on_expiry = *self.rng.pick(&EXPIRIES),
            6 => self.config.max_session = self.rng.percent(50).then(|| self.rng.range(60, 2_000)),
            7 => self.change_rates(),
            _ => {
                self.config.nonce_lifetime = *self.rng.pick(&[30, 600, 3600]);
                self.config.limits.allocations_per_user = Some(self.rng.range(1, 10) as u32);
            }
        }
        self.reconfigure();
    }

    /// The operator takes some of the limits he thinks of, and leaves others.
    fn change_rates(&mut self) {
        let rates = self.config.rates;
        let rng = &mut self.rng;
        let mut some = |rates: Rates| if rng.percent(60) { rates } else { Rates::default() };
        let limits = &mut self.config.limits;
        limits.server = some(rates.server);
        limits.tenant = some(rates.tenant);
        limits.client = some(rates.client);
        limits.user = some(rates.user);
        limits.allocation = some(rates.allocation);
        limits.bytes_per_user_per_day = rates.bytes_per_user_per_day.filter(|_| rng.percent(70));
        limits.burst_ms = *rng.pick(&[200, 1_000, 1_000, 5_000]);
    }

    /// Somebody is sent away, shut out, or let in again.
    fn act_operator(&mut self) {
        let Some(key) = self.some_session() else { return };
        let who = self.model.sessions[&key].who.clone();
        let seconds = *self.rng.pick(&[1, 30, 400, 3_000]);
        match self.rng.below(10) {
            0..4 => self.kick(key),
            4 | 5 => self.revoke(Subject::Credential(who.username.into()), seconds),
            6 => {
                let tenant = who.tenant.filter(|_| self.rng.percent(50)).map(Into::into);
                self.revoke(Subject::User { user: who.identity.into(), tenant }, seconds);
            }
            7 => {
                let tenant = who.tenant.unwrap_or_else(|| "acme".into());
                self.revoke(Subject::Tenant(tenant.into()), seconds.min(30));
            }
            _ => {
                let whose = self.model.revoked.first().map(|(whose, _)| whose.clone());
                whose.into_iter().for_each(|whose| self.forgive(&whose));
            }
        }
    }

    fn act_shut_down(&mut self) {
        // Late and seldom: most runs live on to the natural end.
        if self.step > 1500 && self.rng.percent(12) {
            if self.rng.percent(50) { self.drain_servers() } else { self.close_all() }
        }
    }
}
