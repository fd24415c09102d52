//! Clients that change their network (RFC 8016), on real sockets: from worker to worker, between transports, through
//! upgrades and a crash.

use std::net::SocketAddr;
use std::time::Duration;

use test_support::e2e::peer::Echo;
use test_support::e2e::upgrade::Upgradable;
use test_support::e2e::{Client, Origin, Server, Settings, Wanted, wait_for};
use throughway::wire::message::{AttrType, Known, METHOD_ALLOCATE, METHOD_REFRESH};

const MOBILITY_TICKET: AttrType = AttrType(0x8030);
const CHANNEL: u16 = 0x4000;

fn settings(workers: u8) -> Settings {
    let mut settings = Settings::new(workers);
    settings.relay.push(("mobility", "true"));
    settings
}

fn with_ticket(ticket: &[u8]) -> Wanted {
    Wanted::Bytes(MOBILITY_TICKET, ticket.to_vec())
}

/// A client that goes from network to network, and a peer that answers.
struct Phone {
    client: Client,
    ticket: Vec<u8>,
    relayed: SocketAddr,
    echo: Echo,
    sent: u64,
}

impl Phone {
    #[track_caller]
    fn start(mut client: Client) -> Self {
        let answer = client.request(METHOD_ALLOCATE, &[Wanted::udp(), with_ticket(b"")]);
        assert_eq!(answer.code(), 0);
        let (relayed, ticket) = (answer.relayed(), answer.bytes(Known::MobilityTicket));
        let echo = Echo::start(relayed);
        client.bind(CHANNEL, echo.address);
        Self { client, ticket, relayed, echo, sent: 0 }
    }

    /// A packet goes to the peer and comes back.
    #[track_caller]
    fn check(&mut self) {
        self.sent += 1;
        let payload = format!("{} of {}", self.sent, self.relayed).into_bytes();
        self.client.send_channel(CHANNEL, &payload);
        self.client.expect_data(Origin::Channel(CHANNEL), &payload);
    }

    /// Says at the new address that it comes from there; its data go the old way.
    #[track_caller]
    fn announce(&mut self, new: &mut Client) {
        let answer = new.request(METHOD_REFRESH, &[with_ticket(&self.ticket)]);
        assert_eq!(answer.code(), 0);
        let ticket = answer.bytes(Known::MobilityTicket);
        assert_ne!(ticket, self.ticket);
        self.ticket = ticket;
        self.check();
    }

    /// Comes from there; gives the old client, and how many packets were lost. An echo may take its time: only the
    /// server's counter says that a packet was lost.
    #[track_caller]
    fn come(&mut self, server: &Server, new: Client) -> (Client, u64) {
        let old = std::mem::replace(&mut self.client, new);
        for lost in 0..50 {
            let (dropped, moved) = (server.dropped("moving"), moves(server));
            self.sent += 1;
            let payload = format!("{} of {}", self.sent, self.relayed).into_bytes();
            self.client.send_channel(CHANNEL, &payload);
            let echo = wait_for("an echo, or a packet dropped", || {
                let echo = self.client.data_within(Duration::from_millis(20));
                (echo.is_some() || server.dropped("moving") > dropped).then_some(echo)
            });
            if let Some(data) = echo {
                assert_eq!(data.payload, payload);
                return (old, lost);
            }
            // What is sent before the allocation has come here is dropped as well.
            wait_for("the move", || (moves(server) > moved).then_some(()));
        }
        panic!("no packet came back");
    }

    #[track_caller]
    fn move_to(&mut self, server: &Server, mut new: Client) -> (Client, u64) {
        self.announce(&mut new);
        self.come(server, new)
    }

    #[track_caller]
    fn end(mut self) {
        self.check();
        assert_eq!(self.client.refresh(0).code(), 0);
    }
}

fn moves(server: &Server) -> u64 {
    server.scrape().sum("throughway_allocation_moves_total")
}

fn streams(server: &Server) -> u64 {
    server.scrape().value("throughway_streams", &[])
}

#[test]
fn a_phone_goes_from_worker_to_worker_and_from_transport_to_transport() {
    let workers = 3;
    let server = Server::start(settings(workers));
    let mut phone = Phone::start(Client::udp_on_worker(server.udp4(), 0, workers));
    let mut lost = 0;
    let all: Vec<Client> = [1, 2, 2, 0, 1]
        .into_iter()
        .map(|worker| Client::udp_on_worker(server.udp4(), worker, workers))
        .chain([Client::tcp(server.tcp4()), Client::udp(server.udp6()), Client::tcp(server.tcp6())])
        .chain([Client::tcp(server.tcp4()), Client::udp_on_worker(server.udp4(), 2, workers)])
        .collect();
    let count = all.len() as u64;
    for new in all {
        let (mut old, of_move) = phone.move_to(&server, new);
        lost += of_move;
        for _ in 0..3 {
            phone.check();
        }
        assert_eq!(server.live(), 1);
        if !old.is_stream() {
            assert_eq!(old.try_bind(CHANNEL, phone.echo.address), 437, "the old address is free");
        }
    }
    assert!(lost <= count, "{lost} packets were lost in {count} moves");
    assert_eq!(moves(&server), count);
    assert_eq!(server.dropped("moving"), lost);
    println!("{count} moves, {lost} packets lost");
    phone.end();
    wait_for("the end", || (server.live() == 0).then_some(()));
}

#[test]
fn what_is_no_good_is_refused_by_its_reason() {
    let workers = 2;
    let mut server = Server::start(settings(workers));
    let mut phone = Phone::start(Client::udp_on_worker(server.udp4(), 0, workers));
    for worker in 0..workers {
        let new = || Client::udp_on_worker(server.udp4(), worker, workers);
        let try_ticket =
            |mut client: Client, ticket: &[u8]| client.request(METHOD_REFRESH, &[with_ticket(ticket)]).code();
        let thief = new().user("bob", "builder");
        assert_eq!(server.expect_refused("wrong_user", 1, || try_ticket(thief, &phone.ticket)), 441);
        let mut forged = phone.ticket.clone();
        forged[20] ^= 1;
        assert_eq!(server.expect_refused("bad_ticket", 1, || try_ticket(new(), &forged)), 400);
        let old = phone.ticket.clone();
        let mut next = new();
        phone.announce(&mut next);
        assert_eq!(server.expect_refused("old_ticket", 1, || try_ticket(new(), &old)), 400);
        assert_eq!(
            server
                .expect_refused("same_five_tuple", 1, || next.request(METHOD_REFRESH, &[with_ticket(&phone.ticket)]))
                .code(),
            400
        );
        phone.come(&server, next);
        phone.check();
    }
    let mut off = settings(workers);
    off.relay.clear();
    server.reload(off);
    let mut new = Client::udp_on_worker(server.udp4(), 1, workers);
    let code =
        server.expect_refused("mobility_forbidden", 1, || new.request(METHOD_REFRESH, &[with_ticket(&phone.ticket)]));
    assert_eq!(code.code(), 405);
    phone.end();
}

// A phone whose connection breaks, and that comes again by another one.
#[test]
fn a_broken_connection_is_taken_up_by_another_one() {
    let server = Server::start(settings(2));
    for _ in 0..4 {
        let mut phone = Phone::start(Client::tcp(server.tcp4()));
        phone.check();
        let (mut new, next) = (Client::tcp(server.tcp4()), Client::tcp(server.tcp4()));
        wait_for("the streams", || (streams(&server) == 3).then_some(()));
        std::mem::replace(&mut phone.client, next).close();
        wait_for("the end of the first one", || (streams(&server) == 2).then_some(()));
        assert_eq!(server.live(), 1, "it waits");
        let answer = new.request(METHOD_REFRESH, &[with_ticket(&phone.ticket)]);
        assert_eq!(answer.code(), 0);
        phone.ticket = answer.bytes(Known::MobilityTicket);
        phone.come(&server, new);
        phone.check();
        phone.end();
        wait_for("the end of all streams", || (streams(&server) == 0).then_some(()));
    }
    wait_for("the end", || (server.live() == 0).then_some(()));
}

// What was announced before an upgrade is known after it.
#[test]
fn an_upgrade_in_the_middle_of_a_move_changes_nothing() {
    let workers = 2;
    let mut server = Upgradable::start(settings(workers));
    let mut phones: Vec<Phone> = (0..workers)
        .map(|worker| Phone::start(Client::udp_on_worker(server.server.udp4(), worker, workers)))
        .chain([Phone::start(Client::tcp(server.server.tcp4()))])
        .collect();
    let mut next: Vec<Client> = vec![
        Client::udp_on_worker(server.server.udp4(), 1, workers),
        Client::tcp(server.server.tcp4()),
        Client::udp_on_worker(server.server.udp4(), 0, workers),
    ];
    for (phone, next) in phones.iter_mut().zip(&mut next) {
        phone.announce(next);
    }
    server.upgrade();
    for (mut phone, next) in phones.into_iter().zip(next) {
        phone.check();
        phone.come(&server.server, next);
        phone.check();
        phone.move_to(&server.server, Client::udp_on_worker(server.server.udp4(), 1, workers));
        phone.end();
    }
    wait_for("the end", || (server.server.live() == 0).then_some(()));
}

// A server that was killed and revived: phones over TCP come again with their tickets, those over UDP notice nothing.
#[test]
fn tickets_are_good_after_a_crash() {
    let workers = 2;
    let mut settings = settings(workers);
    settings.supervise = true;
    let server = Server::start(settings);
    let mut over_udp = Phone::start(Client::udp_on_worker(server.udp4(), 0, workers));
    over_udp.move_to(&server, Client::udp_on_worker(server.udp4(), 1, workers));
    let mut over_tcp = Phone::start(Client::tcp(server.tcp4()));
    over_tcp.check();
    server.crash();
    over_tcp.client.expect_closed();
    over_udp.check();
    let mut new = wait_for("the listener", || std::net::TcpStream::connect(server.tcp4()).ok().map(Client::tcp_by));
    let answer = new.request(METHOD_REFRESH, &[with_ticket(&over_tcp.ticket)]);
    assert_eq!(answer.code(), 0);
    over_tcp.ticket = answer.bytes(Known::MobilityTicket);
    over_tcp.come(&server, new);
    for mut phone in [over_udp, over_tcp] {
        phone.move_to(&server, Client::udp_on_worker(server.udp4(), 0, workers));
        phone.end();
    }
}

// What still waited for a connection that its client has left is counted as not sent, in its record as in the metrics.
#[test]
fn what_waited_for_the_old_connection_is_counted() {
    let workers = 2;
    for worker in 0..workers {
        let mut server = Server::start(settings(workers));
        let mut phone = Phone::start(Client::tcp(server.tcp4()));
        // It does not read what comes back.
        while server.dropped("slow_client") == 0 {
            for _ in 0..200 {
                phone.client.send_channel(CHANNEL, &[7; 1000]);
            }
        }
        let mut new = Client::udp_on_worker(server.udp4(), worker, workers);
        let answer = new.request(METHOD_REFRESH, &[with_ticket(&phone.ticket)]);
        assert_eq!(answer.code(), 0);
        let old = std::mem::replace(&mut phone.client, new);
        wait_for("the move", || {
            phone.client.send_channel(CHANNEL, b"here");
            (moves(&server) == 1 && phone.client.data_within(Duration::from_millis(50)).is_some()).then_some(())
        });
        wait_for("what waited to be counted", || (server.dropped("stream_closed") > 0).then_some(()));
        old.close();
        wait_for("the end of the old connection", || (streams(&server) == 0).then_some(()));
        // What was on its way through the peer comes to the new socket: an answer needs room there.
        while phone.client.data_within(Duration::from_millis(100)).is_some() {}
        assert_eq!(phone.client.refresh(0).code(), 0);
        let of_clients = [("way", "sent"), ("side", "clients")];
        let sent = server.scrape().value("throughway_payload_bytes_total", &of_clients);
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log.text());
        let sessions = server.log.sessions();
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions[0]["bytes_to_client"].as_u64(), Some(sent), "to the byte");
    }
}
