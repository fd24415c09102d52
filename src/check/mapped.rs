//! The addresses under which the internet sees this machine: one Binding request in each family, to a STUN server that the
//! caller names.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

use crate::wire::attribute::{ATTR_XORMAPPED_ADDRESS, xor_address};
use crate::wire::message::{
    CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, METHOD_BINDING, Message, MessageType, TransactionId,
};
use crate::wire::writer::Writer;

/// How long each sending of the request waits for its answer (RFC 8489 section 6.2.1): four seconds in all.
const WAITS: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(1), Duration::from_millis(1500)];

/// The port of STUN (RFC 8489 section 8).
const PORT: u16 = 3478;

/// The address of this machine in each family in which the server answers.
///
/// # Errors
/// Why there is none, as a sentence about the server.
pub fn addresses(server: &str) -> Result<Vec<IpAddr>, String> {
    let server = server.strip_prefix("stun:").unwrap_or(server);
    let resolved = match server.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, PORT)],
        // A name with a port, or without one.
        Err(_) => server
            .to_socket_addrs()
            .or_else(|error| if server.contains(':') { Err(error) } else { (server, PORT).to_socket_addrs() })
            .map_err(|error| format!("{server}: {error}; expected HOST or HOST:PORT of a STUN server"))?
            .collect(),
    };
    let of_family = |is_ipv4: bool| resolved.iter().find(|address| address.is_ipv4() == is_ipv4);
    let (mut found, mut failed) = (Vec::new(), None);
    for address in [true, false].into_iter().filter_map(of_family) {
        match ask(*address) {
            Ok(ip) => found.push(ip),
            Err(error) => failed = failed.or(Some(format!("{server} ({address}): {error}"))),
        }
    }
    if found.is_empty() {
        return Err(failed.unwrap_or_else(|| format!("{server} has no address")));
    }
    Ok(found)
}

fn ask(server: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(server)?;
    let mut id = [0; 12];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = TransactionId(id);
    let mut request = [0; 64];
    let mut writer = Writer::new(&mut request, MessageType { method: METHOD_BINDING, class: CLASS_REQUEST }, id);
    let len = writer.finish().ok_or_else(|| io::Error::other("the request has no room"))?;
    let mut answer = [0; 1500];
    for wait in WAITS {
        socket.send(&request[..len])?;
        socket.set_read_timeout(Some(wait))?;
        // An answer to something else is as good as none; the next sending waits again.
        match socket.recv(&mut answer) {
            Ok(received) => {
                if let Some(ip) = mapped(&answer[..received], id) {
                    return Ok(ip);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no answer to a STUN request"))
}

/// What a success response to our request says.
fn mapped(bytes: &[u8], id: TransactionId) -> Option<IpAddr> {
    let message = Message::parse(bytes).ok()?;
    if message.transaction_id() != id || message.message_type().class != CLASS_SUCCESS_RESPONSE {
        return None;
    }
    let address = xor_address(message.all(ATTR_XORMAPPED_ADDRESS).next()?, id).ok()?;
    Some(SocketAddr::from(address).ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that first answers something else, then to the second sending.
    fn server(answers: impl FnOnce(UdpSocket) + Send + 'static) -> (String, std::thread::JoinHandle<()>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        (address, std::thread::spawn(move || answers(socket)))
    }

    #[test]
    fn an_answer_to_the_second_sending_is_taken_and_one_to_another_request_is_not() {
        let (address, thread) = server(|socket| {
            let mut request = [0; 100];
            let (len, client) = socket.recv_from(&mut request).unwrap();
            assert_eq!(request[..len][..2], [0, 1], "a Binding request");
            for is_ours in [false, true] {
                let mut id: [u8; 12] = request[8..20].try_into().unwrap();
                id[0] ^= u8::from(!is_ours);
                let mut answer = [0; 100];
                let kind = MessageType { method: METHOD_BINDING, class: CLASS_SUCCESS_RESPONSE };
                let mut writer = Writer::new(&mut answer, kind, TransactionId(id));
                let told = SocketAddr::from(([203, 0, 113, if is_ours { 7 } else { 8 }], 40000));
                let len = writer.xor_address(ATTR_XORMAPPED_ADDRESS, told.into()).finish().unwrap();
                socket.send_to(&answer[..len], client).unwrap();
                if !is_ours {
                    socket.recv_from(&mut request).expect("the request is sent again");
                }
            }
        });
        assert_eq!(addresses(&format!("stun:{address}")), Ok(vec!["203.0.113.7".parse().unwrap()]));
        thread.join().unwrap();
    }

    #[test]
    fn a_server_that_is_not_there_is_told_with_its_address() {
        // Bound and closed: no program listens.
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = addresses(&address.to_string()).unwrap_err();
        assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
        let error = addresses("no such host:1").unwrap_err();
        assert!(error.starts_with("no such host:1: "), "{error}");
    }
}
