//! Data through the relay and back: between two allocations of ours, and between one and a plain socket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

use crate::address::Family;
use crate::check::answer::Login;
use crate::check::client::{Client, Failed};
use crate::check::link::{Origin, udp_socket};
use crate::check::remedy;
use crate::check::report::{Outcome, Step};
use crate::check::server::{Server, failed};

/// The channel that the first client binds to the far end, and the far end to the first client.
pub(super) const CHANNEL: u16 = 0x4001;

/// How often a datagram is sent before it counts as lost for good.
const TRIES: u32 = 3;

/// The other end of what the first client relays.
pub(super) enum FarEnd<'a> {
    /// A second allocation; what it sends goes to the first one's relayed address.
    Client { client: &'a mut Client, address: SocketAddr, to: SocketAddr },
    /// A plain socket, and the address that the relay sees it under.
    Socket { socket: UdpSocket, address: SocketAddr, to: SocketAddr },
}

impl FarEnd<'_> {
    /// What the first client calls it.
    pub(super) const fn address(&self) -> SocketAddr {
        match self {
            Self::Client { address, .. } | Self::Socket { address, .. } => *address,
        }
    }

    pub(super) async fn receive(&mut self, within: Duration) -> Option<Vec<u8>> {
        match self {
            Self::Client { client, .. } => client.link.arrival(within).await.map(|arrival| arrival.payload),
            Self::Socket { socket, .. } => receive(socket, within).await.map(|(payload, _)| payload),
        }
    }

    /// Sends to the first client; over the channel where there is one.
    pub(super) async fn send(&self, payload: &[u8]) -> Result<(), Failed> {
        match self {
            Self::Client { client, .. } => client.send_channel(CHANNEL, payload).await,
            // A datagram too long for this machine is a lost one.
            Self::Socket { socket, to, .. } => {
                let _ = socket.send_to(payload, *to).await;
                Ok(())
            }
        }
    }
}

async fn receive(socket: &UdpSocket, within: Duration) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    let deadline = tokio::time::Instant::now() + within;
    loop {
        match tokio::time::timeout_at(deadline, socket.recv_from(&mut buffer)).await {
            Ok(Ok((len, from))) => return Some((buffer[..len].to_vec(), from)),
            // An ICMP error of an earlier datagram; it is not repeated.
            Ok(Err(_)) => {}
            Err(_) => return None,
        }
    }
}

/// Bytes that no other program sends.
pub(super) fn mark(text: &str) -> Vec<u8> {
    let mut random = [0; 8];
    // Were there no random bytes, the text would still tell the steps apart.
    let _ = getrandom::fill(&mut random);
    let mut mark = format!("throughway check, {text} ").into_bytes();
    mark.extend(random);
    mark
}

/// A second allocation of ours, and data between the two by indications: one step, and the client where it has one.
pub(super) async fn hairpin(server: &Server<'_>, first: &mut Client, family: Option<Family>) -> (Option<Client>, Step) {
    const NAME: &str = "hairpin";
    let link = match server.connect_quietly().await {
        Ok(link) => link,
        Err(error) => return (None, failed(NAME, "a second connection", &Failed::NoAnswer(error), None)),
    };
    let login = server.login.cloned().unwrap_or(Login { username: String::new(), password: String::new() });
    let mut second = Client::new(link, login);
    if let Err(error) = second.allocate(family).await {
        return (None, failed(NAME, "a second Allocate", &error, server.login));
    }
    let (Some(here), Some(there)) = (first.relayed, second.relayed) else {
        return (Some(second), Step::skip(NAME, "no relayed addresses"));
    };
    if here.is_ipv4() != there.is_ipv4() {
        return (
            Some(second),
            Step::skip(NAME, format!("the two relayed addresses, {here} and {there}, differ in family")),
        );
    }
    for result in [first.permit(there).await, second.permit(here).await] {
        match result {
            Ok(()) => {}
            Err(Failed::Refused(refused)) if refused.code == 403 => {
                let detail = format!("the server denies its own relayed address {} as a peer (403)", there.ip());
                return (Some(second), Step::warn(NAME, detail, own_address_remedy()));
            }
            Err(error) => {
                return (
                    Some(second),
                    failed(NAME, "CreatePermission for the other relayed address", &error, server.login),
                );
            }
        }
    }
    let pause = server.options.timeout / TRIES;
    for (way, to) in [("there", there), ("back", here)] {
        let payload = mark(way);
        let (sender, receiver) = if way == "there" { (&*first, &mut second) } else { (&second, &mut *first) };
        let mut heard = None;
        for _ in 0..TRIES {
            if let Err(error) = sender.send_indication(to, &payload).await {
                return (Some(second), failed(NAME, "Send", &error, server.login));
            }
            heard = receiver.expect(&payload, pause).await;
            if heard.is_some() {
                break;
            }
        }
        let expected = if way == "there" { here } else { there };
        match heard {
            Some(Origin::Peer(from)) if from == expected => {}
            Some(Origin::Peer(from)) => {
                let detail = format!("data arrives from {from} instead of {expected}");
                let remedy = "the server's own NAT rewrites what it sends to itself: relay.external of throughway (coturn: external-ip=PUBLIC/PRIVATE) keeps it inside";
                return (Some(second), Step::warn(NAME, detail, remedy));
            }
            Some(Origin::Channel(_)) | None => {
                let detail = format!("nothing arrives from relayed address to relayed address ({way})");
                return (Some(second), Step::warn(NAME, detail, own_address_remedy()));
            }
        }
    }
    (Some(second), Step::ok(NAME, format!("data passes both ways between {here} and {there}")))
}

fn own_address_remedy() -> &'static str {
    "two clients of this server can't meet when both must relay: the server must reach its own relayed addresses (throughway: relay.external must be the public address, and peers.deny must not cover it; list it in peers.allow if it is private. coturn: external-ip=PUBLIC/PRIVATE, allowed-peer-ip. A NAT before the server must loop packets back)"
}

/// The hairpin is worse where nothing else works either.
pub(super) fn judge_hairpin(mut hairpin: Step, peer_works: bool) -> Step {
    if hairpin.outcome == Outcome::Warn && !peer_works && !hairpin.detail.contains("403") {
        hairpin.outcome = Outcome::Fail;
    }
    hairpin
}

/// A peer that could not be tried is fine as long as data passed in another way.
pub(super) fn judge_peer(mut peer: Step, hairpin_works: bool) -> Step {
    if peer.outcome == Outcome::Skip && !hairpin_works {
        peer.outcome = Outcome::Warn;
        peer.remedy = Some("run the check from a machine whose address the server allows as a peer".to_owned());
    }
    peer
}

/// Whether a plain socket here has an address of the server's own machine, which a server rightly refuses as a peer:
/// the check says nothing about peers elsewhere then. Loopback is not meant, since only tests relay there.
async fn is_own_machine(server: &Server<'_>, relayed: SocketAddr, mapped: SocketAddr) -> bool {
    let (there, seen) = (server.address.ip(), mapped.ip());
    if there.is_loopback() || seen.is_loopback() {
        return false;
    }
    // Only an address of this machine can be bound.
    seen == there || seen == relayed.ip() || UdpSocket::bind(SocketAddr::new(there, 0)).await.is_ok()
}

fn own_machine(seen: IpAddr, what: &str) -> String {
    format!(
        "can't be seen from here: as a peer this machine is {seen}, an address of the server itself, and the server {what}, as servers rightly do; run the check from another machine to see whether peers get through (or allow this address as a peer: peers.allow in throughway, allowed-peer-ip in coturn)"
    )
}

/// A plain socket of this machine as the peer: what a client's counterpart in the internet does.
pub(super) async fn plain_peer(
    server: &Server<'_>,
    client: &mut Client,
    relayed: SocketAddr,
    mapped: SocketAddr,
    hairpin_works: bool,
) -> (Option<FarEnd<'static>>, Step) {
    const NAME: &str = "peer";
    if mapped.is_ipv4() != relayed.is_ipv4() {
        return (None, Step::skip(NAME, "this machine's address is of another family than the relayed one"));
    }
    let is_own = is_own_machine(server, relayed, mapped).await;
    match client.permit(mapped).await {
        Ok(()) => {}
        Err(Failed::Refused(refused)) if refused.code == 403 && is_own => {
            return (None, Step::skip(NAME, own_machine(mapped.ip(), "denies it (403)")));
        }
        Err(Failed::Refused(refused)) if refused.code == 403 && !remedy::is_global(mapped.ip()) => {
            let detail =
                format!("the server denies {} as a peer (403), as it should with a private address", mapped.ip());
            return (None, Step::skip(NAME, detail));
        }
        Err(error) => {
            return (None, failed(NAME, &format!("CreatePermission for {}", mapped.ip()), &error, server.login));
        }
    }
    let Ok(socket) = udp_socket(relayed).await else {
        return (None, Step::skip(NAME, "this machine gives no UDP socket of that family"));
    };
    let pause = server.options.timeout / TRIES;
    let payload = mark("from a peer");
    let mut heard = None;
    // Silence is what is expected of a server towards its own machine.
    for _ in 0..if is_own { 1 } else { TRIES } {
        // Not sent is not heard.
        let _ = socket.send_to(&payload, relayed).await;
        heard = client.expect(&payload, pause).await;
        if heard.is_some() {
            break;
        }
    }
    let Some(Origin::Peer(address)) = heard else {
        if is_own {
            return (None, Step::skip(NAME, own_machine(mapped.ip(), "drops what it sends")));
        }
        let remedy = remedy::relay_unreachable(&relayed.to_string(), hairpin_works);
        return (None, Step::fail(NAME, format!("packets from a peer to {relayed} do not arrive"), remedy));
    };
    let payload = mark("to a peer");
    for _ in 0..TRIES {
        if let Err(error) = client.send_indication(address, &payload).await {
            return (None, failed(NAME, "Send", &error, server.login));
        }
        while let Some((bytes, from)) = receive(&socket, pause).await {
            if bytes != payload {
                continue;
            }
            if from != relayed {
                let detail = format!("the relay sends from {from}, but told clients {relayed}");
                let remedy = "peers behind NATs drop that: check relay.addresses and relay.external (coturn: relay-ip, external-ip), and a NAT before the server";
                return (None, Step::fail(NAME, detail, remedy));
            }
            let step = Step::ok(NAME, format!("a plain socket at {address} is reached both ways"));
            return (Some(FarEnd::Socket { socket, address, to: relayed }), step);
        }
    }
    let remedy = "allow the server to send UDP from its relay ports to any address; a firewall in front of this machine can also be the cause";
    (None, Step::fail(NAME, format!("packets to the peer {address} do not arrive"), remedy))
}

/// ChannelBind, and ChannelData both ways.
pub(super) async fn channels(server: &Server<'_>, first: &mut Client, far: &mut FarEnd<'_>) -> Step {
    const NAME: &str = "channels";
    let peer = far.address();
    if let Err(error) = first.bind(CHANNEL, peer).await {
        return failed(NAME, &format!("ChannelBind to {peer}"), &error, server.login);
    }
    if let FarEnd::Client { client, to, .. } = far
        && let Err(error) = client.bind(CHANNEL, *to).await
    {
        return failed(NAME, &format!("ChannelBind to {to}"), &error, server.login);
    }
    let pause = server.options.timeout / TRIES;
    let lost = |way: &str| {
        Step::fail(
            NAME,
            format!("indications pass, but ChannelData is lost ({way})"),
            "check the server's version; a device that inspects STUN may drop ChannelData",
        )
    };
    let payload = mark("by channel");
    let mut heard = false;
    for _ in 0..TRIES {
        if let Err(error) = first.send_channel(CHANNEL, &payload).await {
            return failed(NAME, "ChannelData", &error, server.login);
        }
        while let Some(bytes) = far.receive(pause).await {
            heard = bytes == payload;
            if heard {
                break;
            }
        }
        if heard {
            break;
        }
    }
    if !heard {
        return lost("to the peer");
    }
    let payload = mark("back by channel");
    for _ in 0..TRIES {
        if let Err(error) = far.send(&payload).await {
            return failed(NAME, "ChannelData", &error, server.login);
        }
        match first.expect(&payload, pause).await {
            Some(Origin::Channel(CHANNEL)) => return Step::ok(NAME, "ChannelData passes both ways"),
            Some(Origin::Channel(_) | Origin::Peer(_)) => {
                return Step::warn(
                    NAME,
                    "data comes back as an indication though a channel is bound",
                    "every packet costs 32 bytes more: check the server's version",
                );
            }
            None => {}
        }
    }
    lost("to the client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_of_a_hairpin_names_the_keys_of_both_servers() {
        for key in ["relay.external", "peers.allow", "peers.deny", "external-ip", "allowed-peer-ip"] {
            assert!(own_address_remedy().contains(key), "{key}");
        }
    }

    #[test]
    fn a_hairpin_that_fails_alone_is_a_warning_and_with_the_peer_a_failure() {
        let hairpin = || Step::warn("hairpin", "nothing arrives", "x");
        assert_eq!(judge_hairpin(hairpin(), true).outcome, Outcome::Warn);
        assert_eq!(judge_hairpin(hairpin(), false).outcome, Outcome::Fail);
        assert_eq!(judge_hairpin(Step::ok("hairpin", "x"), false).outcome, Outcome::Ok);
        let denied = Step::warn("hairpin", "denied (403)", "x");
        assert_eq!(judge_hairpin(denied, false).outcome, Outcome::Warn);
    }

    #[test]
    fn a_denied_private_peer_is_fine_only_where_data_passed_otherwise() {
        let peer = || Step::skip("peer", "denied");
        assert_eq!(judge_peer(peer(), true).outcome, Outcome::Skip);
        let judged = judge_peer(peer(), false);
        assert_eq!(judged.outcome, Outcome::Warn);
        assert!(judged.remedy.is_some());
    }

    #[test]
    fn marks_differ() {
        assert_ne!(mark("a"), mark("a"));
    }
}
