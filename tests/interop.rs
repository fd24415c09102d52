//! A foreign client, `turn::client`, against the real binary.
//!
//! With THROUGHWAY_INTEROP_SERVER=ADDRESS:PORT (and THROUGHWAY_INTEROP_USER, THROUGHWAY_INTEROP_PASSWORD; default
//! alice, wonderland) the same cases run against a server that is running already. Its peers sit on
//! THROUGHWAY_INTEROP_PEER, which it must be allowed to reach; default 127.0.0.1.

use std::env;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use test_support::e2e::{PATIENCE, SILENCE, Server, payload};
use test_support::with_one_and_three_workers;
use tokio::net::UdpSocket;
use turn::client::{Client, ClientConfig};
use webrtc_util::Conn;

/// What the cases run against.
struct Target {
    server: SocketAddr,
    user: String,
    password: String,
    peer: IpAddr,
    /// Ours, unless a running one was named.
    own: Option<Server>,
}

impl Target {
    fn new(workers: u8) -> Self {
        let variable = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
        let named = env::var("THROUGHWAY_INTEROP_SERVER").ok().map(|server| {
            server.parse().unwrap_or_else(|_| panic!("THROUGHWAY_INTEROP_SERVER={server}: expected ADDRESS:PORT"))
        });
        let own = named.is_none().then(|| Server::ordinary(workers));
        Self {
            server: named.unwrap_or_else(|| own.as_ref().expect("one of both").udp4()),
            user: variable("THROUGHWAY_INTEROP_USER", "alice"),
            password: variable("THROUGHWAY_INTEROP_PASSWORD", "wonderland"),
            peer: variable("THROUGHWAY_INTEROP_PEER", "127.0.0.1")
                .parse()
                .expect("THROUGHWAY_INTEROP_PEER: an address"),
            own,
        }
    }

    async fn connect(&self, password: &str) -> (Client, SocketAddr) {
        let any = if self.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let local =
            if self.server.ip().is_loopback() { SocketAddr::new(self.server.ip(), 0) } else { any.parse().unwrap() };
        let socket = UdpSocket::bind(local).await.unwrap();
        let at = socket.local_addr().unwrap();
        let config = ClientConfig {
            stun_serv_addr: self.server.to_string(),
            turn_serv_addr: self.server.to_string(),
            username: self.user.clone(),
            password: password.to_owned(),
            realm: String::new(),
            software: String::new(),
            rto_in_ms: 0,
            conn: Arc::new(socket),
            vnet: None,
        };
        let client = Client::new(config).await.unwrap();
        client.listen().await.unwrap();
        (client, at)
    }

    async fn peer(&self) -> UdpSocket {
        UdpSocket::bind((self.peer, 0)).await.unwrap()
    }
}

fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, case).await.expect("the case ends in time") });
}

async fn receive(peer: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = tokio::time::timeout(PATIENCE, peer.recv_from(&mut buffer)).await.expect("a datagram in time");
    let (len, from) = received.unwrap();
    buffer.truncate(len);
    (buffer, from)
}

async fn receive_relayed(relay: &impl Conn) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let received = tokio::time::timeout(PATIENCE, relay.recv_from(&mut buffer)).await.expect("data in time");
    let (len, from) = received.unwrap();
    buffer.truncate(len);
    (buffer, from)
}

with_one_and_three_workers! {
    fn binding_tells_the_clients_address(workers: u8) {
        let target = Target::new(workers);
        run(async {
            let (client, at) = target.connect(&target.password).await;
            let mapped = client.send_binding_request().await.unwrap();
            assert_eq!(mapped.port(), at.port());
            if target.own.is_some() {
                assert_eq!(mapped, at);
            }
            client.close().await.unwrap();
        });
    }

    fn data_passes_both_ways_and_the_allocation_ends_with_close(workers: u8) {
        let target = Target::new(workers);
        run(async {
            let (client, _) = target.connect(&target.password).await;
            let relay = client.allocate().await.unwrap();
            let relayed = relay.local_addr().unwrap();
            let peer = target.peer().await;
            let at = peer.local_addr().unwrap();
            // This client sends by indication until its ChannelBind is through, then by channel.
            for round in 0..40_u32 {
                let (up, down) = (payload(round, (round * 31) as usize), payload(round + 1000, (round * 29) as usize));
                relay.send_to(&up, at).await.unwrap();
                assert_eq!(receive(&peer).await, (up, relayed), "round {round}");
                peer.send_to(&down, relayed).await.unwrap();
                assert_eq!(receive_relayed(&relay).await, (down, at), "round {round}");
            }
            if let Some(server) = &target.own {
                let granted = |method| server.scrape().value("throughway_requests_granted_total", &[("method", method)]);
                assert_eq!(granted("create_permission"), 1);
                assert_eq!(granted("channel_bind"), 1, "the channel was bound, so both forms were relayed");
                assert_eq!(server.live(), 1);
            }
            relay.close().await.unwrap();
            client.close().await.unwrap();
            if let Some(server) = &target.own {
                let session = server.log.wait_for_session("alice");
                assert_eq!(session["reason"], "refreshed");
                assert_eq!(session["packets_to_peers"], 40);
                assert_eq!(session["packets_to_client"], 40);
                assert_eq!(server.live(), 0);
            }
        });
    }

    fn a_peer_is_heard_only_after_it_was_spoken_to(workers: u8) {
        let target = Target::new(workers);
        run(async {
            let (client, _) = target.connect(&target.password).await;
            let relay = client.allocate().await.unwrap();
            let relayed = relay.local_addr().unwrap();
            let peer = target.peer().await;
            peer.send_to(b"too early", relayed).await.unwrap();
            let mut buffer = [0; 100];
            assert!(tokio::time::timeout(SILENCE, relay.recv_from(&mut buffer)).await.is_err());
            relay.send_to(b"hello", peer.local_addr().unwrap()).await.unwrap();
            assert_eq!(receive(&peer).await.0, b"hello");
            peer.send_to(b"in time", relayed).await.unwrap();
            assert_eq!(receive_relayed(&relay).await.0, b"in time");
            relay.close().await.unwrap();
        });
    }

    fn two_clients_meet_through_their_relayed_addresses(workers: u8) {
        let target = Target::new(workers);
        run(async {
            let (one, _) = target.connect(&target.password).await;
            let (two, _) = target.connect(&target.password).await;
            let (relay_one, relay_two) = (one.allocate().await.unwrap(), two.allocate().await.unwrap());
            let (at_one, at_two) = (relay_one.local_addr().unwrap(), relay_two.local_addr().unwrap());
            assert_ne!(at_one, at_two);
            // Each must have spoken once before it hears the other; this first one arrives nowhere.
            relay_one.send_to(b"hole", at_two).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            for round in 0..20_u32 {
                let (there, back) = (payload(round, 1000), payload(round + 100, 1000));
                relay_two.send_to(&there, at_one).await.unwrap();
                assert_eq!(receive_relayed(&relay_one).await, (there, at_two), "round {round}");
                relay_one.send_to(&back, at_two).await.unwrap();
                assert_eq!(receive_relayed(&relay_two).await, (back, at_one), "round {round}");
            }
            relay_one.close().await.unwrap();
            relay_two.close().await.unwrap();
        });
    }

    fn a_wrong_password_is_refused(workers: u8) {
        let target = Target::new(workers);
        run(async {
            let (client, _) = target.connect("not the password").await;
            let error = client.allocate().await.err().expect("no allocation without the password").to_string();
            assert!(error.contains("401"), "{error}");
            if let Some(server) = &target.own {
                assert_eq!(server.refused("bad_integrity"), 1);
                assert_eq!(server.live(), 0);
            }
        });
    }
}
