//! What to do about what was seen. Pure: facts in, words out.

use std::net::IpAddr;

use crate::check::answer::Login;
use crate::credentials::parse_username;
use crate::printable::is_printable;
pub use crate::protocol::peer_policy::is_global;

/// How far two clocks may be apart before it is said; servers forgive about as much.
pub const SKEW_SECONDS_MAX: u64 = 30;

/// What servers refuse as too far ahead by default: two days.
const TTL_SECONDS_USUAL: u64 = 48 * 3600;

/// A refusal in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

/// Explains an error code as the answer to a request.
#[must_use]
pub fn refused(request: &str, code: u16, reason: &str, login: Option<&Login>, now: u64) -> Refusal {
    let name = match code {
        300 => "Try Alternate",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        420 => "Unknown Attribute",
        437 => "Allocation Mismatch",
        438 => "Stale Nonce",
        440 => "Address Family not Supported",
        441 => "Wrong Credentials",
        442 => "Unsupported Transport Protocol",
        443 => "Peer Address Family Mismatch",
        486 => "Allocation Quota Reached",
        500 => "Server Error",
        508 => "Insufficient Capacity",
        _ if reason.is_empty() => "unknown code",
        _ => reason,
    };
    let (more, remedy) = match code {
        401 => match login {
            Some(login) => unauthorized(login, now),
            None => (String::new(), "give --username and --password, or the URL of a credential endpoint".to_owned()),
        },
        300 => (String::new(), "the server accepts no new clients, most likely because it drains before a restart: check the server that it names, and this one afterwards".to_owned()),
        403 if request == "Allocate" => (
            String::new(),
            "no peer is meant: the user was revoked, or the credential is of another tenant than this listener; `throughway sessions --refused USER` says which".to_owned(),
        ),
        403 => (
            String::new(),
            "the server's peer policy denies this address: peers.allow and peers.deny in throughway, allowed-peer-ip and denied-peer-ip in coturn".to_owned(),
        ),
        437 => (String::new(), "the server thinks this five-tuple differs: look for a NAT or load balancer that moves packets between servers".to_owned()),
        438 => (
            " again, with the nonce it just gave".to_owned(),
            "requests reach different servers, or the server restarts: let a load balancer keep a client on one server, or give the fleet one auth.nonce_key_file".to_owned(),
        ),
        441 => (String::new(), "the five-tuple belongs to another user: wait for its allocation to end, and don't share a socket between users".to_owned()),
        440 => (String::new(), "the server relays no address of that family: give it one (relay.addresses)".to_owned()),
        442 => (String::new(), "the server relays no UDP: enable it there".to_owned()),
        486 if reason.contains("draining") => (
            String::new(),
            "the server accepts no new clients because it drains before a restart: check again afterwards".to_owned(),
        ),
        486 => (
            String::new(),
            "a quota is used up: end other allocations of this user, or raise limits.allocations_per_user (coturn: user-quota, total-quota); the server's log names the key".to_owned(),
        ),
        508 => (
            String::new(),
            "the server has no relay port left, or can't bind its relay address: widen relay.ports, check relay.addresses and the limit of open files".to_owned(),
        ),
        400 | 420 => (String::new(), "the server does not understand a standard request: check its version, and whether something between changes packets".to_owned()),
        _ => (String::new(), "see the server's log for this moment".to_owned()),
    };
    let said =
        if reason.is_empty() || reason == name { String::new() } else { format!(" (\"{}\")", printable(reason)) };
    Refusal { detail: format!("{request}: {code} {name}{said}{more}"), remedy }
}

/// A text of the network's, made fit for a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().take(120).map(|c| if is_printable(c) { c } else { '?' }).collect()
}

/// Why a login may be refused, as far as the outside can tell.
fn unauthorized(login: &Login, now: u64) -> (String, String) {
    let Some(parts) = parse_username(&login.username) else {
        let verify = "on the server, throughway credentials verify USERNAME PASSWORD says which";
        return (String::new(), format!("unknown user or wrong password: {verify}"));
    };
    let ends = parts.expires_at;
    if ends <= now {
        let ago = now - ends;
        return (
            format!("; by this machine's clock the credential ended {ago} s ago"),
            "mint a new one; if it is fresh, the issuer's clock is behind: synchronise the clocks of issuer and relay (NTP)"
                .to_owned(),
        );
    }
    let left = ends - now;
    if left > TTL_SECONDS_USUAL {
        return (
            format!("; the credential is good for {left} s more"),
            "servers refuse credentials that end too far ahead (48 h by default): mint it with a shorter lifetime, raise auth.max_ttl, or synchronise the issuer's clock (NTP)"
                .to_owned(),
        );
    }
    (
        format!("; by this machine's clock the credential is good for {left} s more"),
        "the secret of the issuer is not the relay's (compare value, algorithm and a trailing newline), or the relay's clock is ahead: on the relay, throughway credentials verify USERNAME PASSWORD says which"
            .to_owned(),
    )
}

/// What an expiry and a lifetime say about the issuer's clock: seconds ahead of ours.
#[must_use]
pub fn issuer_ahead(username: &str, ttl: u64, now: u64) -> Option<i64> {
    let issued_at = parse_username(username)?.expires_at.checked_sub(ttl)?;
    i64::try_from(issued_at).ok()?.checked_sub(i64::try_from(now).ok()?)
}

/// How a relayed address looks beside the address where the server was reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RelayedLook {
    /// Peers can reach it where we reached the server.
    Fine(String),
    /// Worth a look.
    Odd(String, String),
    /// Peers can't reach it.
    Wrong(String, String),
}

/// Judges a relayed address.
#[must_use]
pub fn relayed(server: IpAddr, relayed: IpAddr) -> RelayedLook {
    let external = format!(
        "tell clients the public address: relay.external = \"{}\" in throughway, external-ip in coturn",
        if server.is_ipv4() == relayed.is_ipv4() { server.to_string() } else { "PUBLIC ADDRESS".to_owned() }
    );
    if relayed.is_unspecified() || relayed.is_multicast() {
        return RelayedLook::Wrong("no peer can send to that".to_owned(), external);
    }
    if server == relayed {
        return RelayedLook::Fine("the server's own address".to_owned());
    }
    if relayed.is_loopback() && !server.is_loopback() {
        return RelayedLook::Wrong("loopback: only the server itself can reach it".to_owned(), external);
    }
    match (is_global(server), is_global(relayed)) {
        (true, false) => RelayedLook::Wrong(
            "a private address, which peers in the internet can't reach (1:1 NAT?)".to_owned(),
            external,
        ),
        (true, true) => RelayedLook::Fine("another public address than the server was reached at".to_owned()),
        (false, true) => {
            RelayedLook::Fine("a public address, though the server was reached at a private one".to_owned())
        }
        (false, false) if server.is_ipv4() != relayed.is_ipv4() => {
            RelayedLook::Fine("not a public address, and neither is the server's".to_owned())
        }
        (false, false) => RelayedLook::Odd(
            "neither public nor the address that the server was reached at".to_owned(),
            format!("if peers below can't reach it, {external}"),
        ),
    }
}

/// Why a server is silent.
#[must_use]
pub fn silent_udp(port: u16, others_answer: bool) -> String {
    if others_answer {
        format!(
            "the server answers over another transport, so a firewall drops UDP: open UDP port {port} towards the server, and its answers; also try from another network, because this one may block UDP"
        )
    } else {
        format!(
            "open UDP port {port} in the firewall of the server and of its provider, check that it listens there, and that the name points to it; also try from another network, because this one may block UDP"
        )
    }
}

/// What to do when the relayed addresses are unreachable.
#[must_use]
pub fn relay_unreachable(relayed: &str, hairpin_works: bool) -> String {
    let ports = "open the relay ports (relay.ports, UDP 49152 to 65535 by default) in the firewall of the server and of its provider";
    if hairpin_works {
        format!(
            "{relayed} is reachable inside the server, but not from outside: {ports}, and check that relay.external (coturn: external-ip) is the address that leads to this server"
        )
    } else {
        format!(
            "{relayed} is not reachable: {ports}, and check relay.external (coturn: external-ip) and relay.addresses"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn login(username: &str) -> Login {
        Login { username: username.into(), password: "p".into() }
    }

    #[test]
    fn an_unauthorized_login_is_told_by_its_expiry() {
        let rows = [
            ("alice".to_owned(), "unknown user or wrong password"),
            (format!("{}:alice", NOW - 5), "clock is behind"),
            (format!("{}:alice", NOW + 60), "the secret of the issuer is not the relay's"),
            (format!("{}:alice", NOW + 500_000), "too far ahead"),
        ];
        for (username, remedy) in rows {
            let refusal = refused("Allocate", 401, "", Some(&login(&username)), NOW);
            assert!(refusal.remedy.contains(remedy), "{username}: {refusal:?}");
            assert!(refusal.detail.starts_with("Allocate: 401 Unauthorized"), "{refusal:?}");
        }
        assert!(refused("Allocate", 401, "", None, NOW).remedy.contains("--username"));
        let ago = refused("Allocate", 401, "", Some(&login(&format!("{}", NOW - 5))), NOW);
        assert!(ago.detail.contains("ended 5 s ago"), "{ago:?}");
    }

    #[test]
    fn every_code_has_a_remedy_of_its_own() {
        let mut remedies = std::collections::HashSet::new();
        let of_peer = refused("CreatePermission", 403, "", None, NOW);
        assert!(of_peer.remedy.contains("peers.allow"), "{of_peer:?}");
        for (code, remedy) in [
            (300, "the server that it names"),
            (403, "another tenant"),
            (437, "load balancer"),
            (438, "nonce_key_file"),
            (440, "relay.addresses"),
            (441, "another user"),
            (442, "no UDP"),
            (486, "allocations_per_user"),
            (508, "relay.ports"),
            (420, "version"),
            (500, "log"),
        ] {
            let refusal = refused("Allocate", code, "Because\u{1b}[2J", None, NOW);
            assert!(refusal.remedy.contains(remedy), "{code}: {refusal:?}");
            assert!(refusal.detail.contains(&code.to_string()) && !refusal.detail.contains('\u{1b}'), "{refusal:?}");
            assert!(remedies.insert(refusal.remedy), "{code}");
        }
    }

    #[test]
    fn a_draining_server_is_not_a_quota() {
        let remedy = refused("Allocate", 486, "Server is draining", None, NOW).remedy;
        assert!(remedy.contains("drains") && !remedy.contains("quota"), "{remedy}");
    }

    #[test]
    fn the_issuers_clock_shows_in_expiry_and_lifetime() {
        assert_eq!(issuer_ahead("1700003600:alice", 3600, NOW), Some(0));
        assert_eq!(issuer_ahead("1700000000:alice", 3600, NOW), Some(-3600));
        assert_eq!(issuer_ahead("1700007200", 3600, NOW), Some(3600));
        assert_eq!(issuer_ahead("alice", 3600, NOW), None);
        assert_eq!(issuer_ahead("5:alice", 3600, NOW), None);
    }

    #[test]
    fn a_private_relayed_address_behind_a_public_server_is_wrong_and_names_the_key() {
        let look = |server: &str, address: &str| relayed(server.parse().unwrap(), address.parse().unwrap());
        for private in ["10.0.0.5", "192.168.1.1", "100.64.0.1", "127.0.0.1", "0.0.0.0"] {
            let RelayedLook::Wrong(_, remedy) = look("198.41.0.4", private) else { panic!("{private}") };
            assert!(remedy.contains("relay.external = \"198.41.0.4\""), "{remedy}");
        }
        assert!(matches!(look("10.0.0.1", "127.0.0.1"), RelayedLook::Wrong(..)));
        for (server, address) in [
            ("198.41.0.4", "198.41.0.4"),
            ("198.41.0.4", "199.9.14.201"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "198.41.0.4"),
            ("127.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "::1"),
        ] {
            assert!(matches!(look(server, address), RelayedLook::Fine(_)), "{server} {address}");
        }
        assert!(matches!(look("10.0.0.1", "192.168.1.1"), RelayedLook::Odd(..)));
    }

    #[test]
    fn silence_is_told_apart_by_what_else_answers() {
        assert!(silent_udp(3478, true).contains("firewall drops UDP"));
        assert!(silent_udp(3478, false).contains("UDP port 3478"));
        assert!(relay_unreachable("192.0.2.7", true).contains("relay.external"));
        assert!(relay_unreachable("192.0.2.7", false).contains("relay.ports"));
    }
}
