//! One question to one STUN server: how it sees one local address (RFC 8489 section 6).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::config::external::StunServer;
use crate::wire::attribute::{ATTR_XORMAPPED_ADDRESS, xor_address};
use crate::wire::integrity::{Fingerprint, check_fingerprint};
use crate::wire::message::{
    CLASS_ERROR_RESPONSE, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE, METHOD_BINDING, Message, MessageType, TransactionId,
};
use crate::wire::writer::Writer;

/// How long the first sending waits for its answer; each later one waits twice as long (RFC 8489 section 6.2.1, RTO).
const RTO: Duration = Duration::from_millis(500);

/// How often the request is sent (Rc).
const SENDINGS: u32 = 7;

/// The last sending waits so many times as long as the first one (Rm).
const LAST_WAIT: u32 = 16;

/// Datagrams that are no answer, before the server is given up: one that floods keeps no task busy.
const STRANGE_MAX: usize = 64;

/// How a server sees a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mapped {
    pub(super) ip: IpAddr,
    /// The port that it sees is the socket's own one.
    pub(super) is_port_kept: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("it refuses the question")]
    Refused,
    #[error("it sends something else than answers")]
    Strange,
    #[error("its answer names {0}, which can't be an address of this machine")]
    Unfit(IpAddr),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The first address of each family.
pub(super) async fn resolve(server: &StunServer) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((&*server.host, server.port)).await;
    let found: Vec<SocketAddr> = found.map_err(|error| format!("its name can't be resolved: {error}"))?.collect();
    let first = |is_ipv4| found.iter().find(|address| address.is_ipv4() == is_ipv4).copied();
    Ok([first(true), first(false)].into_iter().flatten().collect())
}

/// Whatever address the routes choose towards a server.
pub(super) fn unspecified(server: SocketAddr) -> IpAddr {
    if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Asks, no longer than `within`. The socket is connected, so that the kernel drops what others send.
pub(super) async fn ask(server: SocketAddr, local: IpAddr, within: Duration) -> Result<Mapped, AskError> {
    let end = Instant::now() + within;
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    let own = socket.local_addr()?;
    let mut id = [0; 12];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = TransactionId(id);
    let mut request = [0; 64];
    let mut writer = Writer::new(&mut request, MessageType { method: METHOD_BINDING, class: CLASS_REQUEST }, id);
    let length = writer.fingerprint().finish().ok_or_else(|| io::Error::other("the request has no room"))?;
    let (mut answer, mut strange) = ([0; 1500], 0);
    for sending in 0..SENDINGS {
        socket.send(&request[..length]).await?;
        let wait = if sending + 1 == SENDINGS { RTO * LAST_WAIT } else { RTO * (1 << sending) };
        let again = (Instant::now() + wait).min(end);
        // An answer to something else is none; the wait goes on.
        while let Ok(received) = timeout_at(again, socket.recv(&mut answer)).await {
            match read(&answer[..received?], id) {
                Some(Ok(mapped)) if is_fit(mapped.ip(), own.ip()) => {
                    return Ok(Mapped { ip: mapped.ip(), is_port_kept: mapped.port() == own.port() });
                }
                Some(Ok(mapped)) => return Err(AskError::Unfit(mapped.ip())),
                Some(Err(())) => return Err(AskError::Refused),
                None if strange == STRANGE_MAX => return Err(AskError::Strange),
                None => strange += 1,
            }
        }
        if again == end {
            break;
        }
    }
    Err(AskError::Timeout(within))
}

/// What an answer to our request says; nothing if it is none.
fn read(bytes: &[u8], id: TransactionId) -> Option<Result<SocketAddr, ()>> {
    let message = Message::parse(bytes).ok()?;
    if message.transaction_id() != id || message.message_type().method != METHOD_BINDING {
        return None;
    }
    if check_fingerprint(&message) == Fingerprint::Wrong {
        return None;
    }
    match message.message_type().class {
        CLASS_SUCCESS_RESPONSE => {
            let address = xor_address(message.all(ATTR_XORMAPPED_ADDRESS).next()?, id).ok()?;
            Some(Ok(SocketAddr::from(address)))
        }
        CLASS_ERROR_RESPONSE => Some(Err(())),
        _ => None,
    }
}

/// Whether packets to this address could ever come to this machine, which asked from `own`.
fn is_fit(ip: IpAddr, own: IpAddr) -> bool {
    let is_special = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    let is_elsewhere = ip.is_loopback() && !own.is_loopback();
    ip.is_ipv4() == own.is_ipv4() && !(is_special || is_elsewhere || ip.is_unspecified() || ip.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn answer(class: crate::wire::message::MessageClass, id: &[u8], told: Option<&str>) -> Vec<u8> {
        let id = TransactionId(id.try_into().unwrap());
        let mut bytes = [0; 100];
        let mut writer = Writer::new(&mut bytes, MessageType { method: METHOD_BINDING, class }, id);
        if let Some(told) = told {
            writer.xor_address(ATTR_XORMAPPED_ADDRESS, told.parse::<SocketAddr>().unwrap().into());
        }
        let length = writer.finish().unwrap();
        bytes[..length].to_vec()
    }

    /// A server that answers each request with these, its id already in place; `false` spoils the id.
    async fn asked(
        answers: Vec<(bool, crate::wire::message::MessageClass, Option<&'static str>)>,
    ) -> Result<Mapped, AskError> {
        let (socket, address) = server().await;
        let serving = tokio::spawn(async move {
            let mut request = [0; 100];
            loop {
                let (length, client) = socket.recv_from(&mut request).await.unwrap();
                assert_eq!(request[..2], [0, 1], "a Binding request");
                assert_eq!(length, 28, "with a FINGERPRINT");
                // What others send to the socket is not heard.
                let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let forged = answer(CLASS_SUCCESS_RESPONSE, &request[8..20], Some("45.0.0.66:9"));
                stranger.send_to(&forged, client).await.unwrap();
                for (is_ours, class, told) in &answers {
                    let mut id = request[8..20].to_vec();
                    id[0] ^= u8::from(!is_ours);
                    socket.send_to(&answer(*class, &id, *told), client).await.unwrap();
                }
            }
        });
        let result = ask(address, [127, 0, 0, 1].into(), Duration::from_secs(5)).await;
        serving.abort();
        result
    }

    #[tokio::test]
    async fn only_the_answer_of_the_server_to_this_request_counts() {
        let (good, bad) = (Some("45.0.0.7:9"), Some("45.0.0.8:9"));
        let mapped = asked(vec![(false, CLASS_SUCCESS_RESPONSE, bad), (true, CLASS_SUCCESS_RESPONSE, good)]).await;
        assert_eq!(mapped.unwrap(), Mapped { ip: [45, 0, 0, 7].into(), is_port_kept: false });
        let refused = asked(vec![(false, CLASS_ERROR_RESPONSE, None), (true, CLASS_ERROR_RESPONSE, None)]).await;
        assert!(matches!(refused, Err(AskError::Refused)), "{refused:?}");
        for unfit in ["0.0.0.0:9", "224.0.0.1:9", "255.255.255.255:9", "[2a00::7]:9"] {
            let told = asked(vec![(true, CLASS_SUCCESS_RESPONSE, Some(unfit))]).await;
            assert!(matches!(told, Err(AskError::Unfit(_))), "{unfit}: {told:?}");
        }
        assert!(!is_fit([127, 0, 0, 1].into(), [10, 0, 0, 5].into()));
    }

    #[tokio::test]
    async fn a_flood_of_something_else_ends_the_question() {
        let strange = asked(vec![(false, CLASS_SUCCESS_RESPONSE, None); 70]).await;
        assert!(matches!(strange, Err(AskError::Strange)), "{strange:?}");
    }

    #[tokio::test]
    async fn requests_are_repeated_as_the_rfc_says() {
        let (socket, address) = server().await;
        let counting = tokio::spawn(async move {
            let (mut at, mut bytes) = (Vec::new(), [0; 100]);
            let started = Instant::now();
            while at.len() < 3 {
                socket.recv_from(&mut bytes).await.unwrap();
                at.push(started.elapsed().as_millis());
            }
            at
        });
        let result = ask(address, [127, 0, 0, 1].into(), Duration::from_millis(2000)).await;
        assert!(matches!(result, Err(AskError::Timeout(_))), "{result:?}");
        let at = counting.await.unwrap();
        assert!((400..1000).contains(&at[1]) && (1400..2000).contains(&at[2]), "0, 500 and 1500 ms: {at:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_at_once() {
        let (socket, address) = server().await;
        drop(socket);
        let result = ask(address, [127, 0, 0, 1].into(), Duration::from_secs(30)).await;
        assert!(matches!(&result, Err(AskError::System(error)) if error.kind() == io::ErrorKind::ConnectionRefused));
        let server = StunServer::parse("name.invalid").unwrap();
        assert!(resolve(&server).await.unwrap_err().contains("can't be resolved"));
    }
}
