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
    let private = |ips: Vec<IpAddr>| -> Vec<String> {
        ips.into_iter().filter(|ip| is_private(*ip)).map(|ip| ip.to_string()).collect()
    };
    let external: Vec<String> =
        config.relay.external.public().into_iter().filter(|ip| !is_global(*ip)).map(|ip| ip.to_string()).collect();
    // Somebody who relays from loopback is alone with it, and knows.
    let told: Vec<IpAddr> = relays.iter().map(|of| of.advertised).filter(|ip| !ip.is_loopback()).collect();
    let unreached = private(told.clone());
    if !external.is_empty() {
        advice.push((
            "relay.external",
            format!(
                "{} is not an address of the internet (private, loopback, for documentation or the like), so clients there get relayed addresses that no peer can reach; write the public address of this machine, or of its NAT",
                external.join(", ")
            ),
        ));
    } else if !told.is_empty() && unreached.len() == told.len() {
        advice.push((
            "relay.external",
            format!(
                "every relay address is private ({}), so clients on the internet get relayed addresses that no peer can reach; if this machine has a public address, as cloud machines have, set relay.external to it",
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
    advice
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
            RelayAddress { local, advertised: config.relay.external.advertised(local) }
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
        for fine in [&["45.0.0.7"][..], &["10.0.0.5", "2a00::5"], &["127.0.0.1"], &["100.128.0.1"]] {
            assert!(reach_of("\"\"", fine).is_empty(), "{fine:?}");
        }
        assert!(reach_of("\"45.0.0.7\"", &["10.0.0.5"]).is_empty());
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
