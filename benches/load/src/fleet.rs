//! Many TURN clients on one UDP socket, each with an address of its own and at most one request under way.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use crate::account::{Account, Asked, Outcome, judge};
use crate::exchange::{Due, Exchange};
use crate::plan::Places;
use crate::stun::{self, Builder, Message, TransactionId};
use crate::sys;
use crate::udp::ManyAddresses;

/// How often the waits of all clients are looked at.
const LOOK_NS: u64 = 2_000_000;

pub struct Fleet {
    socket: ManyAddresses,
    places: Places,
    port: u16,
    clients: Vec<Client>,
    /// After so many the addresses begin again; zero means never.
    addresses: usize,
    transaction: u64,
    looked_at: u64,
    pub counts: Counts,
}

#[derive(Default)]
pub struct Counts {
    pub requests: u64,
    pub retransmissions: u64,
    pub stale_nonces: u64,
    /// Second answers to requests that were sent more than once.
    pub late_answers: u64,
    /// Messages that belong to no request, or come from elsewhere.
    pub unmatched: u64,
    /// The system did not take them; the retransmission is their second chance.
    pub not_sent: u64,
}

struct Client {
    /// Counts addresses, see `Places::client`; taken modulo the number of clients it is the client.
    address: usize,
    account: Account,
    exchange: Option<Exchange>,
    /// The last request that ended, and how many more answers to it may still come.
    ended: (TransactionId, u32),
}

/// A request that has come to its end.
pub struct Ended {
    pub client: usize,
    pub asked: Asked,
    pub outcome: Outcome,
    pub first_sent: u64,
    pub last_sent: u64,
    pub at: u64,
}

impl Fleet {
    pub fn open(places: Places, port: u16, clients: usize, account: &Account) -> Result<Self, String> {
        let client = |address| Client { address, account: account.clone(), exchange: None, ended: ([0; 12], 0) };
        Ok(Self {
            socket: ManyAddresses::open_for_messages(port)?,
            places,
            port,
            clients: (0..clients).map(client).collect(),
            addresses: 0,
            transaction: sys::now(),
            looked_at: 0,
            counts: Counts::default(),
        })
    }

    /// So many addresses are used in all, at least one for each client; zero means ever new ones.
    pub fn limit_addresses(&mut self, addresses: usize) {
        self.addresses = addresses.next_multiple_of(self.clients.len());
    }

    /// The client goes on from the next address: one that no client of this run has used before, unless they are limited.
    pub fn renew(&mut self, client: usize) {
        let next = self.clients[client].address + self.clients.len();
        self.clients[client].address = if self.addresses > 0 { next % self.addresses } else { next };
    }

    pub fn account(&mut self, client: usize) -> &mut Account {
        &mut self.clients[client].account
    }

    pub fn is_busy(&self, client: usize) -> bool {
        self.clients[client].exchange.is_some()
    }

    pub fn busy(&self) -> usize {
        self.clients.iter().filter(|client| client.exchange.is_some()).count()
    }

    /// Queues a request; `flush` or a full batch sends it.
    pub fn ask(&mut self, client: usize, asked: Asked, now: u64, fill: impl FnOnce(Builder) -> Builder) {
        let id = self.next_transaction();
        let request = fill(Builder::new(asked.method, id));
        let request = match asked.lifetime {
            Some(seconds) => request.attribute(stun::LIFETIME, &seconds.to_be_bytes()),
            None => request,
        };
        let bytes = match asked.signed {
            true => self.clients[client].account.sign(request),
            false => request.unsigned(),
        };
        self.counts.requests += 1;
        self.clients[client].exchange = Some(Exchange::new(id, asked, bytes, now));
        self.transmit(client);
    }

    fn next_transaction(&mut self) -> TransactionId {
        self.transaction = self.transaction.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let mut id = [0x4C; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        id
    }

    fn transmit(&mut self, client: usize) {
        let Client { address, exchange: Some(exchange), .. } = &self.clients[client] else {
            return;
        };
        let from = *self.places.client(*address).ip();
        if self.socket.push(from, self.places.server, &[&exchange.bytes], &[], 0) {
            self.flush();
        }
    }

    pub fn flush(&mut self) {
        self.counts.not_sent += self.socket.flush();
    }

    /// One batch of answers. Returns how many messages there were, whatever they were.
    pub fn receive(&mut self, ended: &mut Vec<Ended>) -> usize {
        let Self { socket, places, port, clients, counts, .. } = self;
        let mut now = 0;
        socket.receive(|from, to, bytes| {
            if now == 0 {
                now = sys::now();
            }
            let address = places.session_of_client(to);
            let index = address % clients.len();
            let client = &mut clients[index];
            let message = Message::parse(bytes).filter(|_| from == places.server);
            let Some(message) = message else {
                counts.unmatched += 1;
                return;
            };
            let fits = |exchange: &Exchange| exchange.id == message.id() && client.address == address;
            if !client.exchange.as_ref().is_some_and(fits) {
                if client.ended.0 == message.id() && client.ended.1 > 0 {
                    client.ended.1 -= 1;
                    counts.late_answers += 1;
                } else {
                    counts.unmatched += 1;
                }
                return;
            }
            let Some(exchange) = client.exchange.take() else {
                return;
            };
            client.ended = (exchange.id, exchange.sends - 1);
            let source = SocketAddrV4::new(to, *port);
            let outcome = judge(exchange.asked, &message, source, &mut client.account);
            counts.stale_nonces += u64::from(outcome == Outcome::Challenged(438));
            ended.push(exchange.end(index, outcome, now));
        })
    }

    /// Sends again what has waited long enough, and gives up what has waited too long.
    pub fn look(&mut self, now: u64, ended: &mut Vec<Ended>) {
        if now < self.looked_at + LOOK_NS {
            return;
        }
        self.looked_at = now;
        for index in 0..self.clients.len() {
            let Some(exchange) = &mut self.clients[index].exchange else {
                continue;
            };
            match exchange.due(now) {
                Due::Nothing => {}
                Due::SendAgain => {
                    self.counts.retransmissions += 1;
                    self.transmit(index);
                }
                Due::GiveUp => {
                    if let Some(exchange) = self.clients[index].exchange.take() {
                        self.clients[index].ended = (exchange.id, exchange.sends);
                        ended.push(exchange.end(index, Outcome::TimedOut, now));
                    }
                }
            }
        }
    }
}

impl Exchange {
    fn end(self, client: usize, outcome: Outcome, at: u64) -> Ended {
        Ended { client, asked: self.asked, outcome, first_sent: self.first_sent, last_sent: self.last_sent, at }
    }
}

/// What went wrong, by its text, and how often.
#[derive(Default)]
pub struct Failures(BTreeMap<String, u64>);

impl Failures {
    /// Keeps what is neither a success nor a challenge.
    pub fn note(&mut self, asked: Asked, outcome: &Outcome) {
        let what = match outcome {
            Outcome::Success { .. } => return,
            Outcome::Challenged(code) => format!("error {code} again"),
            Outcome::Refused(text) => text.clone(),
            Outcome::Wrong(text) => (*text).to_owned(),
            Outcome::TimedOut => "no answer to seven transmissions".to_owned(),
        };
        let text = format!("{}: {what}", method_name(asked.method));
        // what a server writes as a reason may differ each time
        if self.0.len() < 100 || self.0.contains_key(&text) {
            *self.0.entry(text).or_default() += 1;
        } else {
            *self.0.entry("others".to_owned()).or_default() += 1;
        }
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// `Allocate: error 486 Allocation Quota Reached (12 times); ...`
    pub fn text(&self) -> String {
        let parts: Vec<_> = self.0.iter().map(|(text, count)| format!("{text} ({count} times)")).collect();
        parts.join("; ")
    }
}

fn method_name(method: u16) -> &'static str {
    match method {
        stun::BINDING => "Binding",
        stun::ALLOCATE => "Allocate",
        stun::REFRESH => "Refresh",
        stun::CREATE_PERMISSION => "CreatePermission",
        stun::CHANNEL_BIND => "ChannelBind",
        _ => "request",
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
    use std::time::Duration;

    use super::*;

    /// A fleet of two, and the socket that plays its server.
    fn fleet(port: u16) -> (Fleet, UdpSocket) {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        server.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let SocketAddr::V4(address) = server.local_addr().expect("bound") else {
            panic!("bound to IPv4");
        };
        let places = Places::on_loopback(address, port);
        (Fleet::open(places, port, 2, &Account::new("user", "pass")).expect("a fleet"), server)
    }

    const BINDING: Asked = Asked { method: stun::BINDING, signed: false, lifetime: None };

    fn receive(fleet: &mut Fleet, messages: usize) -> Vec<Ended> {
        let (mut ended, mut got) = (Vec::new(), 0);
        let until = sys::now() + 5_000_000_000;
        while got < messages && sys::now() < until {
            got += fleet.receive(&mut ended);
        }
        assert_eq!(got, messages);
        ended
    }

    fn ask(fleet: &mut Fleet, server: &UdpSocket, client: usize) -> (TransactionId, SocketAddr) {
        fleet.ask(client, BINDING, sys::now(), |request| request);
        fleet.flush();
        let mut bytes = [0; 100];
        let (length, from) = server.recv_from(&mut bytes).expect("a request");
        (Message::parse(&bytes[..length]).expect("STUN").id(), from)
    }

    fn answer(id: TransactionId, mapped: SocketAddr) -> Vec<u8> {
        let SocketAddr::V4(mapped) = mapped else {
            panic!("a client of IPv4");
        };
        Builder::new(stun::BINDING | stun::SUCCESS, id).xor_address(stun::XOR_MAPPED_ADDRESS, mapped).unsigned()
    }

    #[test]
    fn only_the_right_answer_from_the_right_place_ends_a_request() {
        let (mut fleet, server) = fleet(45_101);
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let (id, from) = ask(&mut fleet, &server, 0);
        let (other_id, other_from) = ask(&mut fleet, &server, 1);
        stranger.send_to(&answer(id, from), from).expect("sent");
        server.send_to(&answer([9; 12], from), from).expect("sent");
        server.send_to(&answer(id, from), other_from).expect("sent");
        server.send_to(b"no STUN", from).expect("sent");
        assert!(receive(&mut fleet, 4).is_empty());
        assert_eq!((fleet.counts.unmatched, fleet.busy()), (4, 2));
        server.send_to(&answer(id, from), from).expect("sent");
        server.send_to(&answer(other_id, from), other_from).expect("sent");
        let ended = receive(&mut fleet, 2);
        assert_eq!(ended[0].outcome, Outcome::Success { relayed: None });
        // the right transaction, and the address of another client
        assert!(matches!(ended[1].outcome, Outcome::Wrong(_)));
        assert_eq!(fleet.busy(), 0);
    }

    #[test]
    fn a_second_answer_is_late_after_a_retransmission_and_unmatched_without() {
        let (mut fleet, server) = fleet(45_102);
        let (id, from) = ask(&mut fleet, &server, 0);
        server.send_to(&answer(id, from), from).expect("sent");
        server.send_to(&answer(id, from), from).expect("sent");
        receive(&mut fleet, 2);
        assert_eq!((fleet.counts.late_answers, fleet.counts.unmatched), (0, 1));
        let (id, from) = ask(&mut fleet, &server, 1);
        fleet.look(sys::now() + 600_000_000, &mut Vec::new());
        fleet.flush();
        let mut bytes = [0; 100];
        let again = server.recv(&mut bytes).expect("the retransmission");
        assert_eq!(Message::parse(&bytes[..again]).expect("STUN").id(), id);
        for _ in 0..3 {
            server.send_to(&answer(id, from), from).expect("sent");
        }
        assert_eq!(receive(&mut fleet, 3).len(), 1);
        assert_eq!((fleet.counts.retransmissions, fleet.counts.late_answers, fleet.counts.unmatched), (1, 1, 2));
    }

    #[test]
    fn a_renewed_client_is_seen_at_an_address_of_its_own() {
        let (mut fleet, server) = fleet(45_103);
        let mut seen = Vec::new();
        for _ in 0..3 {
            for client in 0..2 {
                let (id, from) = ask(&mut fleet, &server, client);
                server.send_to(&answer(id, from), from).expect("sent");
                assert_eq!(receive(&mut fleet, 1)[0].client, client);
                assert!(!seen.contains(&from), "{from}");
                seen.push(from);
                fleet.renew(client);
            }
        }
        fleet.limit_addresses(2);
        fleet.renew(0);
        assert_eq!(ask(&mut fleet, &server, 0).1, seen[0]);
    }

    #[test]
    fn failures_are_told_by_method_and_reason() {
        let mut failures = Failures::default();
        failures.note(BINDING, &Outcome::Success { relayed: None });
        assert_eq!((failures.total(), failures.text()), (0, String::new()));
        failures.note(BINDING, &Outcome::TimedOut);
        let refused = Outcome::Refused("error 486 full".to_owned());
        (0..2).for_each(|_| failures.note(Asked { method: stun::ALLOCATE, ..BINDING }, &refused));
        assert_eq!(failures.total(), 3);
        assert_eq!(
            failures.text(),
            "Allocate: error 486 full (2 times); Binding: no answer to seven transmissions (1 times)"
        );
    }
}
