//! NAT behaviour discovery (RFC 5780) on real sockets: answers leave from each of the four addresses.

use std::net::{SocketAddr, UdpSocket};

use test_support::e2e::client::transaction_id;
use test_support::e2e::{PATIENCE, SILENCE, Server, Settings};
use test_support::with_one_and_three_workers;
use throughway::address::Address;
use throughway::wire::attribute::{ATTR_XORMAPPED_ADDRESS, plain_address, xor_address};
use throughway::wire::behavior::{ATTR_CHANGE_REQUEST, ATTR_OTHER_ADDRESS, ATTR_PADDING, ATTR_RESPONSE_PORT};
use throughway::wire::message::{
    AttrType, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, METHOD_BINDING, Message, MessageType,
};
use throughway::wire::writer::Writer;

const FIRST: [u8; 4] = [127, 0, 0, 1];
const SECOND: [u8; 4] = [127, 0, 0, 2];

/// Two ports that are free on every address of loopback at this moment.
fn two_ports() -> [u16; 2] {
    let sockets = [(); 2].map(|()| UdpSocket::bind("0.0.0.0:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

/// A server that listens there, and serves discovery at both addresses with both ports.
fn server(workers: u8, listen: &[[u8; 4]], [one, two]: [u16; 2]) -> Server {
    let mut settings = Settings::new(workers);
    let addresses = listen.iter().flat_map(|ip| [one, two].map(|port| SocketAddr::from((*ip, port)).to_string()));
    settings.udp = addresses.collect();
    settings.tables = format!("[stun]\ndiscovery = [\"127.0.0.1:{one}\", \"127.0.0.2:{two}\"]\n");
    settings.start()
}

fn request(attribute: AttrType, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 2_048];
    let message_type = MessageType { method: METHOD_BINDING, class: CLASS_REQUEST };
    let len = Writer::new(&mut bytes, message_type, transaction_id()).attribute(attribute, value).finish().unwrap();
    bytes.truncate(len);
    bytes
}

fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The answer that arrives here: from where, its mapped address, and what it names as the other address.
fn answer(at: &UdpSocket) -> (SocketAddr, SocketAddr, SocketAddr) {
    let mut bytes = [0; 2_048];
    let (len, from) = at.recv_from(&mut bytes).expect("an answer");
    let message = Message::parse(&bytes[..len]).expect("a STUN message");
    assert_eq!(message.message_type().class, CLASS_SUCCESS_RESPONSE, "{message:?}");
    let value = |attribute| message.all(attribute).next().expect("the attribute");
    let mapped = xor_address(value(ATTR_XORMAPPED_ADDRESS), message.transaction_id()).expect("an address");
    let other: Address = plain_address(value(ATTR_OTHER_ADDRESS)).expect("an address");
    (from, mapped.into(), other.into())
}

with_one_and_three_workers! {
    /// From another address, another port, and both; whichever of the four was asked.
    fn an_answer_leaves_from_the_address_that_was_wished_for(workers: u8) {
        for listen in [&[FIRST, SECOND][..], &[[0; 4]]] {
            let ports = two_ports();
            let server = server(workers, listen, ports);
            let [one, two] = ports;
            for (ip, port, other_ip, other_port) in [(FIRST, one, SECOND, two), (SECOND, one, FIRST, two), (FIRST, two, SECOND, one)] {
                let socket = client();
                for (flags, from) in [(0, (ip, port)), (2, (ip, other_port)), (4, (other_ip, port)), (6, (other_ip, other_port))] {
                    socket.send_to(&request(ATTR_CHANGE_REQUEST, &[0, 0, 0, flags]), SocketAddr::from((ip, port))).unwrap();
                    let other = SocketAddr::from((other_ip, other_port));
                    assert_eq!(answer(&socket), (from.into(), socket.local_addr().unwrap(), other), "flags {flags}");
                }
            }
            drop(server);
        }
    }

    /// From loopback, which is a proof: to another port, and padded.
    fn an_answer_goes_to_the_port_that_was_named(workers: u8) {
        let ports = two_ports();
        let _server = server(workers, &[FIRST, SECOND], ports);
        let to = SocketAddr::from((FIRST, ports[0]));
        let (asker, other) = (client(), client());
        let port = other.local_addr().unwrap().port();
        asker.send_to(&request(ATTR_RESPONSE_PORT, &port.to_be_bytes()), to).unwrap();
        assert_eq!((answer(&other).0, answer_is_absent(&asker)), (to, true));
        asker.send_to(&request(ATTR_PADDING, &[1; 1_400]), to).unwrap();
        let mut bytes = [0; 2_048];
        let (len, _) = asker.recv_from(&mut bytes).unwrap();
        let message = Message::parse(&bytes[..len]).unwrap();
        assert_eq!(message.all(ATTR_PADDING).next(), Some(&[0; 1_400][..]));
    }
}

fn answer_is_absent(at: &UdpSocket) -> bool {
    at.set_read_timeout(Some(SILENCE)).unwrap();
    let is_absent = at.recv_from(&mut [0; 2_048]).is_err();
    at.set_read_timeout(Some(PATIENCE)).unwrap();
    is_absent
}

/// A reload switches it on and off.
#[test]
fn a_reload_serves_it_and_stops_it() {
    let ports = two_ports();
    let with = |discovery: &str| {
        let mut settings = Settings::new(1);
        settings.udp =
            [FIRST, SECOND].iter().flat_map(|ip| ports.map(|port| SocketAddr::from((*ip, port)).to_string())).collect();
        settings.tables = format!("[stun]\ndiscovery = {discovery}\n");
        settings
    };
    let to = SocketAddr::from((FIRST, ports[0]));
    let both = format!("[\"127.0.0.1:{}\", \"127.0.0.2:{}\"]", ports[0], ports[1]);
    let mut server = with("[]").start();
    let socket = client();
    let code = |socket: &UdpSocket| {
        socket.send_to(&request(ATTR_CHANGE_REQUEST, &[0, 0, 0, 6]), to).unwrap();
        let mut bytes = [0; 2_048];
        let (_, from) = socket.recv_from(&mut bytes).unwrap();
        (from, bytes[1])
    };
    assert_eq!(code(&socket), (to, 0x11), "an error response");
    server.reload(with(&both));
    assert_eq!(code(&socket), (SocketAddr::from((SECOND, ports[1])), 0x01));
    server.reload(with("[]"));
    assert_eq!(code(&socket), (to, 0x11));
}
