//! Where peers are talked to from: local addresses, public addresses, ports.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::import::draft::{Draft, quote, quote_all};
use crate::import::lines::Setting;
use crate::import::listeners::{self, Listeners};
use crate::import::source::{Source, places};
use crate::import::verdict::{Outcome, Place};

/// The ports of coturn and of ours if none are named.
const PORTS: RangeInclusive<u16> = 49152..=65535;

/// Carries all of it over; returns the addresses that are this server's own to its clients.
pub(super) fn carry(source: &mut Source, listeners: &Listeners, draft: &mut Draft) -> Vec<IpAddr> {
    let addresses = addresses(source, listeners, draft);
    let public = external(source, &addresses, draft);
    ports(source, &listeners.udp_ports, draft);
    addresses.into_iter().chain(public).collect()
}

fn addresses(source: &mut Source, listeners: &Listeners, draft: &mut Draft) -> Vec<IpAddr> {
    let mut found: Vec<(IpAddr, Place)> = Vec::new();
    for setting in source.all("relay-ip") {
        match listeners::address(setting.value.as_deref().unwrap_or_default()) {
            Err(message) => draft.say(&setting, Outcome::NeedsYou, message),
            Ok(ip) if ip.is_unspecified() => {
                let message =
                    "no peer can answer to this address; left out, an address for each family is found from the routes";
                draft.say(&setting, Outcome::Dropped, message);
            }
            Ok(ip) if found.iter().any(|(other, _)| *other == ip) => {
                draft.say(&setting, Outcome::Dropped, "is there twice");
            }
            Ok(ip) => {
                draft.say(&setting, Outcome::Carried, "relay.addresses");
                found.push((ip, setting.place));
            }
        }
    }
    if found.is_empty() && !source.asks("relay-ip") {
        for (ip, setting) in &listeners.named {
            let message = "relay.addresses too: without relay-ip coturn relays from the addresses that it listens on";
            draft.say(setting, Outcome::Carried, message);
            found.push((*ip, setting.place.clone()));
        }
    }
    let (ips, from): (Vec<IpAddr>, Vec<Place>) = found.into_iter().unzip();
    if !ips.is_empty() {
        draft.key("relay.addresses", quote_all(&ips), &from);
    }
    ips
}

/// The settings of `external-ip`, read.
#[derive(Default)]
struct Externals {
    /// One for each family at most.
    bare: Vec<(IpAddr, Setting)>,
    /// Public and local.
    pairs: Vec<(IpAddr, IpAddr, Setting)>,
}

fn external(source: &mut Source, addresses: &[IpAddr], draft: &mut Draft) -> Vec<IpAddr> {
    let settings = source.all("external-ip");
    let from = places(&settings);
    let read = read_external(settings, draft);
    let mut table: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (public, local, setting) in &read.pairs {
        if !addresses.is_empty() && !addresses.contains(local) {
            let message =
                format!("{local} is not among the addresses that are relayed from, so the line had no effect");
            draft.say(setting, Outcome::Dropped, message);
        } else if table.iter().any(|(other, taken)| other == local || taken == public) {
            let message = "a local or a public address is there twice; each stands for one other address here";
            draft.say(setting, Outcome::NeedsYou, message);
        } else {
            table.push((*local, *public));
            draft.say(setting, Outcome::Carried, format!("relay.external{}", nature(*public)));
        }
    }
    let mut single: Vec<(Option<IpAddr>, IpAddr)> = Vec::new();
    for (public, setting) in &read.bare {
        let locals: Vec<IpAddr> = addresses.iter().copied().filter(|ip| ip.is_ipv4() == public.is_ipv4()).collect();
        let is_paired = table.iter().any(|(local, _)| local.is_ipv4() == public.is_ipv4());
        let local = match (locals.as_slice(), is_paired) {
            ([], _) if !addresses.is_empty() => {
                let message = "no address of its family is relayed from, so the line had no effect";
                draft.say(setting, Outcome::Dropped, message);
                continue;
            }
            ([], false) => None,
            ([local], false) => Some(*local),
            _ => {
                let message = "stands for several local addresses; here each has a public address of its own";
                let example = "external = { \"10.0.0.5\" = \"203.0.113.7\", \"10.0.0.6\" = \"203.0.113.8\" }";
                draft.question("relay", &setting.place, &format!("external-ip = {public} {message}"), example);
                draft.say(setting, Outcome::NeedsYou, message);
                continue;
            }
        };
        single.push((local, *public));
        draft.say(setting, Outcome::Carried, format!("relay.external{}", nature(*public)));
    }
    let public = table.iter().map(|(_, public)| *public).chain(single.iter().map(|(_, public)| *public)).collect();
    write_external(table, &single, &from, draft);
    public
}

fn write_external(
    mut table: Vec<(IpAddr, IpAddr)>,
    single: &[(Option<IpAddr>, IpAddr)],
    from: &[Place],
    draft: &mut Draft,
) {
    if table.is_empty() {
        match single {
            [] => {}
            [(_, one)] => draft.key("relay.external", quote(&one.to_string()), from),
            _ => {
                let all: Vec<IpAddr> = single.iter().map(|(_, public)| *public).collect();
                draft.key("relay.external", quote_all(&all), from);
            }
        }
        return;
    }
    for (local, public) in single {
        match local {
            Some(local) => table.push((*local, *public)),
            None => {
                let place = from.first().cloned().unwrap_or(Place::File("".into()));
                let message = format!("which local address has the public address {public}? Add it to relay.external");
                draft.say_of(place, "external-ip", Outcome::NeedsYou, message);
            }
        }
    }
    let pair = |(local, public): &(IpAddr, IpAddr)| format!("\"{local}\" = \"{public}\"");
    let pairs: Vec<String> = table.iter().map(pair).collect();
    draft.key("relay.external", format!("{{ {} }}", pairs.join(", ")), from);
}

fn read_external(settings: Vec<Setting>, draft: &mut Draft) -> Externals {
    let mut read = Externals::default();
    for setting in settings {
        let value = setting.value.clone().unwrap_or_default();
        let (public, local) = match value.split_once('/') {
            Some((public, local)) => (public, Some(local)),
            None => (value.as_str(), None),
        };
        let parsed = (listeners::address(public), local.map(listeners::address).transpose());
        match parsed {
            (Err(message), _) | (_, Err(message)) => draft.say(&setting, Outcome::NeedsYou, message),
            (Ok(public), Ok(_)) if public.is_unspecified() => {
                draft.say(&setting, Outcome::NeedsYou, "no client can send to this address; name the public one");
            }
            (Ok(public), Ok(Some(local))) if public.is_ipv4() != local.is_ipv4() => {
                draft.say(&setting, Outcome::NeedsYou, "both addresses must be of one family");
            }
            (Ok(public), Ok(Some(local))) => read.pairs.push((public, local, setting)),
            (Ok(public), Ok(None)) if read.bare.iter().any(|(other, _)| other.is_ipv4() == public.is_ipv4()) => {
                draft.say(&setting, Outcome::Dropped, "coturn uses the first external-ip without a slash only");
            }
            (Ok(public), Ok(None)) => read.bare.push((public, setting)),
        }
    }
    read
}

/// A warning about a public address that is none.
fn nature(public: IpAddr) -> &'static str {
    let is_private = match public {
        IpAddr::V4(ip) => {
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || (ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64)
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback(),
    };
    if is_private { "; it is a private address, so only clients of that network reach it" } else { "" }
}

fn ports(source: &mut Source, taken: &[u16], draft: &mut Draft) {
    let min = source.port("min-port", draft);
    let max = source.port("max-port", draft);
    let first = min.as_ref().map_or(*PORTS.start(), |(_, port)| *port);
    let last = max.as_ref().map_or(*PORTS.end(), |(_, port)| *port);
    let settings: Vec<Setting> = min.into_iter().chain(max).map(|(setting, _)| setting).collect();
    if first > last {
        for setting in &settings {
            draft.say(
                setting,
                Outcome::NeedsYou,
                format!("{first}-{last} holds no port; correct min-port or max-port"),
            );
        }
        return;
    }
    let ports = without(first..=last, taken);
    let narrowed = if ports == (first..=last) {
        ""
    } else {
        "; a listener's port lies between them, which can't be relayed from: the larger part is kept"
    };
    for setting in &settings {
        let outcome = if ports.is_empty() { Outcome::NeedsYou } else { Outcome::Carried };
        draft.say(setting, outcome, format!("relay.ports{narrowed}"));
    }
    if ports != PORTS && !ports.is_empty() {
        draft.key("relay.ports", quote(&format!("{}-{}", ports.start(), ports.end())), &places(&settings));
    }
}

/// The largest part of a range that holds none of these ports.
fn without(range: RangeInclusive<u16>, taken: &[u16]) -> RangeInclusive<u16> {
    let mut walls: Vec<u32> = taken.iter().filter(|port| range.contains(port)).map(|port| u32::from(*port)).collect();
    walls.sort_unstable();
    walls.push(u32::from(*range.end()) + 1);
    let mut from = u32::from(*range.start());
    let mut best = 0..0;
    for wall in walls {
        if wall - from.min(wall) > best.end - best.start {
            best = from..wall;
        }
        from = wall + 1;
    }
    if best.is_empty() {
        #[expect(clippy::reversed_empty_ranges, reason = "no port at all")]
        return 1..=0;
    }
    // Both lie within the range of ports.
    best.start as u16..=(best.end - 1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_part_of_a_range_is_kept() {
        for (range, taken, left) in [
            (49152..=65535, &[3478][..], 49152..=65535),
            (1024..=65535, &[3478, 5349], 5350..=65535),
            (3000..=3500, &[3478], 3000..=3477),
            (3478..=3479, &[3478], 3479..=3479),
            (65535..=65535, &[], 65535..=65535),
        ] {
            assert_eq!(without(range.clone(), taken), left, "{range:?}");
        }
        assert!(without(3478..=3478, &[3478]).is_empty());
    }
}
