//! Allocations with relayed addresses of both families, on real sockets: through their life, upgrades and a crash.

use std::net::SocketAddr;
use std::time::Duration;

use test_support::e2e::peer::Echo;
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, Origin, Server, Settings, Wanted};
use test_support::with_one_and_three_workers;
use throughway::wire::attribute::ATTR_XOR_RELAYED_ADDRESS;
use throughway::wire::message::{AttrType, METHOD_ALLOCATE, METHOD_REFRESH, Message};

const ADDITIONAL_ADDRESS_FAMILY: AttrType = AttrType(0x8000);

/// One family of a client: its relayed address, a peer that answers, and the channel to it.
struct Way {
    relayed: SocketAddr,
    echo: Echo,
    channel: u16,
}

struct Dual {
    client: Client,
    ways: Vec<Way>,
}

impl Dual {
    #[track_caller]
    fn start(mut client: Client) -> Self {
        let both = Wanted::Bytes(ADDITIONAL_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
        let answer = client.request(METHOD_ALLOCATE, &[Wanted::udp(), both]);
        assert_eq!(answer.code(), 0);
        let message = Message::parse(&answer.0).unwrap();
        let relayed = message.all(ATTR_XOR_RELAYED_ADDRESS).map(|value| {
            let address = throughway::wire::attribute::xor_address(value, message.transaction_id()).unwrap();
            SocketAddr::from(address)
        });
        let relayed: Vec<SocketAddr> = relayed.collect();
        assert!(relayed.len() == 2 && relayed[0].is_ipv4() && relayed[1].is_ipv6(), "{relayed:?}");
        let mut own = Self { client, ways: Vec::new() };
        for (number, relayed) in relayed.into_iter().enumerate() {
            let (echo, channel) = (Echo::start(relayed), 0x4000 + number as u16);
            own.client.bind(channel, echo.address);
            own.ways.push(Way { relayed, echo, channel });
        }
        own
    }

    /// Gives the address of a family back.
    #[track_caller]
    fn give_back(mut self, ipv4: bool) -> Self {
        let answer = self.client.request(METHOD_REFRESH, &[Wanted::family(ipv4), Wanted::lifetime(0)]);
        assert_eq!(answer.code(), 0);
        self.ways.retain(|way| way.relayed.is_ipv4() != ipv4);
        self
    }

    /// A packet goes to a peer of each family and comes back, and one that was given back is refused.
    #[track_caller]
    fn check(&mut self, what: &str) {
        for Way { channel, relayed, echo } in &self.ways {
            let payload = format!("{what} {relayed}").into_bytes();
            self.client.send_channel(*channel, &payload);
            self.client.expect_data(Origin::Channel(*channel), &payload);
            assert_eq!(self.client.try_permit(echo.address), 0, "{what}");
        }
        if self.ways.len() == 1 {
            let other = if self.ways[0].relayed.is_ipv4() { "[::1]:9" } else { "127.0.0.1:9" };
            assert_eq!(self.client.try_permit(other.parse().unwrap()), 443, "{what}");
        }
    }

    #[track_caller]
    fn check_refresh(&mut self) {
        for way in &self.ways {
            let of_family = [Wanted::family(way.relayed.is_ipv4()), Wanted::lifetime(700)];
            assert_eq!(self.client.request(METHOD_REFRESH, &of_family).lifetime(), 700);
        }
    }
}

fn worker_clients(server: &Server, workers: u8) -> Vec<Client> {
    let mut clients: Vec<Client> =
        (0..workers).map(|worker| Client::udp_on_worker(server.udp4(), worker, workers)).collect();
    clients.push(Client::udp(server.udp6()));
    clients
}

/// As they are, and with either address given back.
#[track_caller]
fn of_each_kind(server: &Server, workers: u8) -> Vec<Dual> {
    let kept = worker_clients(server, workers).into_iter().map(Dual::start);
    let ipv6 = worker_clients(server, workers).into_iter().map(|client| Dual::start(client).give_back(true));
    let ipv4 = worker_clients(server, workers).into_iter().map(|client| Dual::start(client).give_back(false));
    kept.chain(ipv6).chain(ipv4).collect()
}

with_one_and_three_workers! {
    fn packets_of_each_family_have_their_own_address(workers: u8) {
        let mut server = Server::start(Settings::new(workers));
        let mut all = of_each_kind(&server, workers);
        all.push(Dual::start(Client::tcp(server.tcp4())));
        all.push(Dual::start(Client::tcp(server.tcp4())).give_back(true));
        for dual in &mut all {
            dual.check("first");
            dual.check_refresh();
        }
        // Two clients, each at the relayed address of the other, in both families.
        let [mut left, mut right] = [(); 2].map(|()| Dual::start(Client::udp(server.udp4())));
        for (way, channel) in [(0, 0x4800), (1, 0x4801)] {
            let (here, there) = (left.ways[way].relayed, right.ways[way].relayed);
            left.client.bind(channel, there);
            right.client.bind(channel, here);
            left.client.send_channel(channel, b"inside");
            right.client.expect_data(Origin::Channel(channel), b"inside");
            right.client.send_channel(channel, b"and back");
            left.client.expect_data(Origin::Channel(channel), b"and back");
        }
        let (ipv4, ipv6) = (left.ways[0].relayed, left.ways[1].relayed);
        drop((left, right, all));
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
        let sessions = server.log.sessions();
        let of_left = sessions.iter().find(|session| session["relayed"] == ipv4.to_string()).expect("its record");
        assert_eq!(of_left["additional_relayed"], ipv6.to_string(), "records name both");
    }

    fn both_addresses_go_through_upgrades(workers: u8) {
        let mut own = Upgradable::start(Settings::new(workers));
        let mut all = of_each_kind(&own.server, workers);
        all.push(Dual::start(Client::tcp(own.server.tcp4())));
        for round in 1..=2 {
            let cut = own.upgrade();
            assert_eq!(cut["allocations"], all.len(), "{cut}");
            all.iter_mut().for_each(|dual| dual.check(&format!("after upgrade {round}")));
        }
        // What the new process took over can be given back, and goes on from there.
        let mut left: Vec<Dual> = Vec::new();
        for (number, dual) in all.into_iter().enumerate() {
            left.push(if dual.ways.len() == 2 { dual.give_back(number % 2 == 0) } else { dual });
        }
        assert_eq!(own.upgrade()["allocations"], left.len());
        for mut dual in left {
            dual.check("after the last upgrade");
            assert_eq!(dual.client.refresh(0).code(), 0);
        }
        assert_eq!(own.server.scrape().sum("throughway_allocations"), 0);
    }

    fn both_addresses_go_through_a_crash(workers: u8) {
        let server = Server::start(Settings { supervise: true, ..Settings::new(workers) });
        let mut all = of_each_kind(&server, workers);
        // What was asked for is in the ledger when its answer leaves.
        for round in 1..=2 {
            server.crash();
            std::thread::sleep(Duration::from_millis(50));
            all.iter_mut().for_each(|dual| dual.check(&format!("after crash {round}")));
        }
        for mut dual in all {
            assert_eq!(dual.client.refresh(0).code(), 0);
        }
    }
}
