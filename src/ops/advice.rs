//! What a relay suffers from though nothing is wrong with its configuration: settings of the machine, and addresses that
//! clients can't reach. Told as warnings.

use std::net::IpAddr;

use crate::config::Config;
use crate::net::RelayAddress;
use crate::protocol::peer_policy::is_global;

/// Each thing to look at, as a sentence with its remedy.
///
/// Only what costs packets: relay ports that lie in `net.ipv4.ip_local_port_range` break nothing, since a port that another
/// program has is stepped over, and every stock Linux has them there.
#[must_use]
pub fn machine(receive_buffer: Option<usize>, wanted: usize) -> Vec<String> {
    buffers(receive_buffer, wanted).into_iter().collect()
}

/// Each reason why clients will not reach these relay addresses: the key that mends it, and a sentence with the remedy.
///
/// The one place that knows of it, for `serve`, `check-config`, `credentials mint` and `check`.
#[must_use]
pub fn reach(config: &Config, relays: &[RelayAddress]) -> Vec<(&'static str, String)> {
    let mut advice = Vec::new();
    let external: Vec<String> =
        config.relay.external.public().into_iter().filter(|ip| !is_global(*ip)).map(|ip| ip.to_string()).collect();
    // Somebody who relays from loopback is alone with it, and knows.
    let told: Vec<IpAddr> = relays.iter().map(|of| of.advertised).filter(|ip| !ip.is_loopback()).collect();
    let unreached: Vec<String> = told.iter().filter(|ip| is_private(**ip)).map(ToString::to_string).collect();
    if !external.is_empty() {
        advice.push((
            "relay.external",
            format!(
                "{} is not an address of the internet (private, loopback, for documentation or the like), so clients there get relayed addresses that no peer can reach; write the public address of this machine, or of its NAT",
                external.join(", ")
            ),
        ));
    } else if !unreached.is_empty() {
        let remedy = if unreached.len() == told.len() {
            "set relay.external to it, or to \"auto\" or the provider's name"
        } else {
            "add it to relay.external; if it has none in this family, name the other addresses in relay.addresses"
        };
        advice.push((
            "relay.external",
            format!(
                "clients on the internet are told a private relay address ({}) that no peer can reach; if this machine has a public address, as cloud machines have, {remedy}",
                unreached.join(", ")
            ),
        ));
    }
    if !relays.is_empty() && relays.iter().all(|of| of.advertised.is_ipv6()) {
        advice.push((
            "relay.addresses",
            "there is no IPv4 address to relay from, so clients that ask for no address family, as most do, get 440; give this machine an IPv4 address, or clients that ask for IPv6".to_owned(),
        ));
    }
    advice.extend(families(config, relays));
    advice
}

/// Whether clients are told at least one relay address that is not private.
#[must_use]
pub fn reaches_any(relays: &[RelayAddress]) -> bool {
    relays.iter().any(|of| !is_private(of.advertised))
}

/// Families that the configuration names, and that can't be relayed in.
fn families(config: &Config, relays: &[RelayAddress]) -> Option<(&'static str, String)> {
    let serves = |ip: &IpAddr| relays.iter().any(|of| of.local.is_ipv4() == ip.is_ipv4());
    if relays.is_empty() || config.relay.external.source().is_some() {
        // Somebody else says so: a server that waits for its address, or who is asked for it.
        return None;
    }
    let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    if let Some(public) = config.relay.external.public().iter().find(|ip| !serves(ip)) {
        let text = format!(
            "{public} stands for no address of this machine, which has no {} address to relay from: clients that ask for {} get 440; give it one, or leave {public} out",
            family(public),
            family(public)
        );
        return Some(("relay.external", text));
    }
    let mut own = config.listen.iter().map(|listen| listen.address.ip()).filter(|ip| is_global(*ip));
    let own = own.find(|ip| !serves(ip))?;
    let text = format!(
        "clients connect to {own}, but nothing is relayed from an {} address: those that ask for one get 440; add {own} to relay.addresses",
        family(&own)
    );
    Some(("relay.addresses", text))
}

/// Relay addresses of which clients are told something else than what STUN servers see, though it is not this machine's own.
#[must_use]
pub fn unseen(
    relays: &[RelayAddress],
    seen: &[(IpAddr, IpAddr)],
    interfaces: &[IpAddr],
) -> Vec<(&'static str, String)> {
    let sight = |of: &RelayAddress| seen.iter().find(|(local, _)| *local == of.local).map(|(_, public)| *public);
    let differs = relays.iter().filter_map(|of| Some((of, sight(of).filter(|public| *public != of.advertised)?)));
    let is_fine = |of: &RelayAddress| interfaces.contains(&of.advertised) && !is_private(of.advertised);
    let wrong = differs.filter(|(of, _)| !is_fine(of));
    let text = |(of, public): (&RelayAddress, IpAddr)| {
        let RelayAddress { local, advertised } = of;
        format!(
            "clients are told {advertised} for {local}, but the servers of relay.external_servers see it as {public}, so peers may not reach it; set relay.external to {public}, or to \"auto\" to follow it"
        )
    };
    wrong.map(|differs| ("relay.external", text(differs))).collect()
}

/// Whether an address means something inside one network only: private use (RFC 1918), shared address space (RFC 6598),
/// link-local, unique local (RFC 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (first == 100 && second & 0xC0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn buffers(granted: Option<usize>, wanted: usize) -> Option<String> {
    let granted = granted.filter(|granted| *granted < wanted)?;
    Some(format!(
        "net.core.rmem_max: a listener got {granted} bytes of receive buffer instead of {wanted}, so bursts are lost; sysctl net.core.rmem_max={wanted}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach_of(external: &str, relays: &[&str]) -> Vec<&'static str> {
        let config = Config::with_a_secret(&format!("relay.external = {external}")).unwrap();
        let relays = relays.iter().map(|local| {
            let local = local.parse().unwrap();
            RelayAddress { local, advertised: config.relay.external.advertised(local).unwrap() }
        });
        reach(&config, &relays.collect::<Vec<_>>()).into_iter().map(|(key, _)| key).collect()
    }

    // F-B1
    #[test]
    fn relay_addresses_that_no_peer_can_reach_are_told() {
        let (none, external, family) = (reach_of("\"\"", &[]), ["relay.external"], ["relay.addresses"]);
        assert!(none.is_empty(), "a server that waits for its address says so itself");
        for local in ["10.0.0.5", "172.16.9.9", "192.168.1.2", "100.64.0.1", "169.254.7.7"] {
            assert_eq!(reach_of("\"\"", &[local]), external, "{local}");
        }
        for wrong in ["10.1.2.3", "127.0.0.1", "198.51.100.1", "203.0.113.7", "192.0.2.1", "240.0.0.1"] {
            assert_eq!(reach_of(&format!("\"{wrong}\""), &["10.0.0.5"]), external, "{wrong}");
        }
        assert_eq!(reach_of("\"\"", &["fd00::5"]), ["relay.external", "relay.addresses"]);
        assert_eq!(reach_of("\"\"", &["2a00::5"]), family);
        assert_eq!(reach_of("[\"45.0.0.7\", \"fd00::7\"]", &["10.0.0.5", "fd00::5"]), external);
        for partly in [["10.0.0.5", "2a00::5"], ["45.0.0.7", "fd00::5"]] {
            assert_eq!(reach_of("\"\"", &partly), external, "{partly:?}");
        }
        for fine in [&["45.0.0.7"][..], &["127.0.0.1"], &["100.128.0.1"]] {
            assert!(reach_of("\"\"", fine).is_empty(), "{fine:?}");
        }
        assert!(reach_of("\"45.0.0.7\"", &["10.0.0.5"]).is_empty());
    }

    #[test]
    fn a_family_that_is_named_and_can_not_be_relayed_in_is_told() {
        let told = |lines: &str, local: &str| {
            let config = Config::with_a_secret(lines).unwrap();
            let local: IpAddr = local.parse().unwrap();
            let relay = RelayAddress { local, advertised: config.relay.external.advertised(local).unwrap() };
            reach(&config, &[relay]).into_iter().map(|(_, text)| text).collect::<Vec<_>>()
        };
        let named = told("relay.external = [\"45.0.0.7\", \"2a00::7\"]", "10.0.0.5");
        assert!(named.len() == 1 && named[0].contains("no IPv6 address to relay from"), "{named:?}");
        let heard = told("listen.udp = [\"[2a00::5]:3478\"]", "45.0.0.5");
        assert!(heard.len() == 1 && heard[0].contains("add 2a00::5 to relay.addresses"), "{heard:?}");
        assert!(told("", "45.0.0.5").is_empty(), "most machines have no IPv6");
    }

    #[test]
    fn an_address_that_servers_do_not_see_is_told_unless_an_interface_has_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let told = |advertised: &str, public: &str, interfaces: &[&str]| {
            let relay = RelayAddress { local: ip("10.0.0.5"), advertised: ip(advertised) };
            let interfaces: Vec<_> = interfaces.iter().map(|text| ip(text)).collect();
            unseen(&[relay], &[(ip("10.0.0.5"), ip(public))], &interfaces).len()
        };
        assert_eq!(told("45.0.0.7", "45.0.0.7", &["10.0.0.5"]), 0);
        assert_eq!(told("45.0.0.8", "45.0.0.7", &["10.0.0.5"]), 1, "not ours");
        assert_eq!(told("45.0.0.8", "45.0.0.7", &["10.0.0.5", "45.0.0.8"]), 0, "a second uplink");
        assert_eq!(told("10.0.0.5", "45.0.0.7", &["10.0.0.5"]), 1, "private");
        assert!(unseen(&[], &[(ip("10.0.0.5"), ip("45.0.0.7"))], &[]).is_empty());
    }

    // F-B10
    #[test]
    fn a_small_buffer_is_told_and_nothing_else() {
        assert!(buffers(Some(212_992), 4 << 20).unwrap().contains("rmem_max=4194304"));
        assert_eq!(buffers(Some(4 << 20), 4 << 20), None);
        assert_eq!(buffers(None, 4 << 20), None);
        assert_eq!(machine(Some(4 << 20), 4 << 20), Vec::<String>::new());
    }
}
