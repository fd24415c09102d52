//! ICMP errors of real peers, told to real clients; and that they cost no other packet (RFC 8656 section 11.5).

use std::net::{SocketAddr, UdpSocket};

use test_support::e2e::{Client, Origin, PATIENCE, Server, Settings, peer, receive, wait_for};
use test_support::with_one_and_three_workers;

const CHANNEL: u16 = 0x4001;

/// Destination unreachable, port unreachable: type in 7 bits, code in 9.
const REFUSED_IPV4: [u8; 8] = [0, 0, 3 << 1, 3, 0, 0, 0, 0];
const REFUSED_IPV6: [u8; 8] = [0, 0, 1 << 1, 4, 0, 0, 0, 0];

/// A port of that address at which no socket listens, and which no other socket gets while this socket lives: connected to
/// itself, it takes nothing from others, and the kernel answers them as if there were no socket.
fn closed_port(like: SocketAddr) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(SocketAddr::new(like.ip(), 0)).unwrap();
    let at = socket.local_addr().unwrap();
    socket.connect(at).unwrap();
    (socket, at)
}

fn told(server: &Server) -> u64 {
    server.scrape().sum("throughway_icmp_errors_total")
}

with_one_and_three_workers! {
    /// Over UDP and TCP, for peers of both families, with and without a channel.
    fn a_client_hears_that_a_peer_is_unreachable(workers: u8) {
        let server = Settings::new(workers).start();
        let mut count = 0;
        for is_stream in [false, true] {
            for (ipv4, refused) in [(true, REFUSED_IPV4), (false, REFUSED_IPV6)] {
                let mut client = if is_stream { Client::tcp(server.tcp4()) } else { Client::udp(server.udp4()) };
                let relayed = client.allocate_family(ipv4);
                let (_kept, closed) = closed_port(relayed);
                client.permit(closed);
                client.send_to(closed, b"is anybody there?");
                assert_eq!(client.icmp_error(), Some((closed, refused)), "stream {is_stream}, IPv4 {ipv4}");
                client.bind(CHANNEL, closed);
                client.send_channel(CHANNEL, b"and by a channel?");
                assert_eq!(client.icmp_error(), Some((closed, refused)));
                count += 2;
            }
        }
        assert_eq!(told(&server), count);
    }

    /// The kernel gives an error to the next call, whose own datagram it then does not send: none may be lost for that.
    fn an_unreachable_peer_costs_the_others_nothing(workers: u8) {
        const PACKETS: u32 = 500;
        let server = Settings::new(workers).start();
        let mut client = Client::udp(server.udp4());
        let relayed = client.allocate();
        let (there, (_kept, closed)) = (peer(relayed), closed_port(relayed));
        let at = there.local_addr().unwrap();
        client.bind(CHANNEL, at);
        client.bind(CHANNEL + 1, closed);
        there.set_read_timeout(Some(PATIENCE)).unwrap();
        for number in 0..PACKETS {
            let payload = number.to_be_bytes();
            client.send_channel(CHANNEL + 1, &payload);
            client.send_channel(CHANNEL, &payload);
            there.send_to(&payload, relayed).unwrap();
            assert_eq!(receive(&there).0, payload, "to the peer");
            client.expect_data(Origin::Channel(CHANNEL), &payload);
        }
        let dropped = server.scrape().sum("throughway_dropped_packets_total");
        assert_eq!(dropped, 0, "the errors came after the datagrams were sent");
        wait_for("the last error", || (told(&server) == u64::from(PACKETS)).then_some(()));
    }
}
