//! Where clients come to: ports, addresses, certificate. Each port of coturn speaks everything that is switched on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::import::draft::{Draft, quote, quote_all};
use crate::import::lines::Setting;
use crate::import::source::{Source, places};
use crate::import::verdict::{Outcome, Place};

const PLAIN_PORT: u16 = 3478;
const TLS_PORT: u16 = 5349;

/// What the parts after this one must know.
pub(super) struct Listeners {
    /// The ports of UDP listeners: none of them may be relayed from.
    pub(super) udp_ports: Vec<u16>,
    /// The addresses that were named and stand for themselves, with their settings.
    pub(super) named: Vec<(IpAddr, Setting)>,
}

/// Which listeners there are, before they are written.
struct Shape {
    udp: bool,
    tcp: bool,
    tls: bool,
    dtls: bool,
}

/// The lists of `[listen]`.
#[derive(Default)]
struct Lists {
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
    tls: Vec<SocketAddr>,
    auto: Vec<SocketAddr>,
}

pub(super) fn carry(source: &mut Source, draft: &mut Draft) -> Listeners {
    let has_certificate = certificate(source, draft);
    let shape = shape(source, has_certificate, draft);
    let plain = source.port("listening-port", draft);
    let tls = source.port("tls-listening-port", draft);
    let named = addresses(source, draft);
    let mut from: Vec<Place> = plain.iter().chain(&tls).map(|(setting, _)| setting.place.clone()).collect();
    from.extend(named.iter().map(|(_, setting)| setting.place.clone()));
    let ports =
        (plain.as_ref().map_or(PLAIN_PORT, |(_, port)| *port), tls.as_ref().map_or(TLS_PORT, |(_, port)| *port));
    let ips: Vec<IpAddr> = if named.is_empty() {
        vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
    } else {
        named.iter().map(|(ip, _)| *ip).collect()
    };
    let mut lists = lists(&shape, ports, &ips);
    if let Some((setting, _)) = &plain {
        draft.say(setting, Outcome::Carried, format!("port {} of {}", ports.0, names_of(&lists, ports.0)));
    }
    if let Some((setting, _)) = &tls {
        if shape.tls || shape.dtls {
            draft.say(setting, Outcome::Carried, format!("port {} of {}", ports.1, names_of(&lists, ports.1)));
        } else {
            draft.say(setting, Outcome::Dropped, "without a certificate, or with no-tls, coturn opens no such port");
        }
    }
    for (ip, setting) in &named {
        draft.say(setting, Outcome::Carried, format!("{ip} in [listen]"));
    }
    auxiliary(source, &shape, &mut lists, &mut from, draft);
    write(&lists, &from, draft);
    let mut udp_ports: Vec<u16> = lists.udp.iter().map(SocketAddr::port).collect();
    udp_ports.dedup();
    Listeners { udp_ports, named: named.into_iter().filter(|(ip, _)| !ip.is_unspecified()).collect() }
}

fn shape(source: &mut Source, has_certificate: bool, draft: &mut Draft) -> Shape {
    let mut is_off = |name: &str| match source.flag(name, draft) {
        Some(setting) => {
            let (outcome, message) = match name {
                "no-udp" if has_certificate => (
                    Outcome::Carried,
                    "listen.udp is empty; coturn takes UDP at its TLS port all the same, unless no-dtls is set",
                ),
                "no-udp" => (Outcome::Carried, "listen.udp is empty"),
                "no-tcp" => (Outcome::Carried, "no listener takes plain TCP"),
                "no-tls" if has_certificate => (Outcome::Carried, "no listener takes TLS"),
                "no-tls" => (Outcome::Implied, "there is no certificate"),
                _ => (Outcome::Implied, "there is no DTLS"),
            };
            draft.say(&setting, outcome, message);
            true
        }
        None => false,
    };
    Shape {
        udp: !is_off("no-udp"),
        tcp: !is_off("no-tcp"),
        tls: !is_off("no-tls") && has_certificate,
        dtls: !is_off("no-dtls") && has_certificate,
    }
}

/// What coturn opens for these switches. Its second port takes UDP if it would take DTLS.
fn lists(shape: &Shape, (plain, tls): (u16, u16), ips: &[IpAddr]) -> Lists {
    let on = |port: u16| ips.iter().map(move |ip| SocketAddr::new(*ip, port));
    let mut lists = Lists::default();
    if shape.udp {
        lists.udp.extend(on(plain));
        if shape.dtls && tls != plain {
            lists.udp.extend(on(tls));
        }
    }
    match (shape.tcp, shape.tls) {
        (true, true) => {
            lists.auto.extend(on(plain));
            if tls != plain {
                lists.auto.extend(on(tls));
            }
        }
        (true, false) => lists.tcp.extend(on(plain)),
        (false, true) => lists.tls.extend(on(tls)),
        (false, false) => {}
    }
    lists
}

/// The keys that have a port, for a verdict.
fn names_of(lists: &Lists, port: u16) -> String {
    let has = |list: &[SocketAddr]| list.iter().any(|address| address.port() == port);
    let names = [("udp", &lists.udp), ("tcp", &lists.tcp), ("tls", &lists.tls), ("auto", &lists.auto)];
    let names: Vec<String> =
        names.into_iter().filter(|(_, list)| has(list)).map(|(name, _)| format!("listen.{name}")).collect();
    if names.is_empty() { "no listener, as all of them are switched off".to_owned() } else { names.join(" and ") }
}

fn addresses(source: &mut Source, draft: &mut Draft) -> Vec<(IpAddr, Setting)> {
    let mut named: Vec<(IpAddr, Setting)> = Vec::new();
    for setting in source.all("listening-ip") {
        match address(setting.value.as_deref().unwrap_or_default()) {
            Err(message) => draft.say(&setting, Outcome::NeedsYou, message),
            Ok(ip) if named.iter().any(|(other, _)| *other == ip) => {
                draft.say(&setting, Outcome::Dropped, "is there twice");
            }
            Ok(ip) => named.push((ip, setting)),
        }
    }
    for is_ipv4 in [true, false] {
        let covers = |ip: &IpAddr| ip.is_unspecified() && ip.is_ipv4() == is_ipv4;
        if !named.iter().any(|(ip, _)| covers(ip)) {
            continue;
        }
        let is_covered = |ip: &IpAddr| ip.is_ipv4() == is_ipv4 && !ip.is_unspecified();
        let (covered, left) = named.into_iter().partition(|(ip, _)| is_covered(ip));
        named = left;
        for (_, setting) in covered {
            draft.say(&setting, Outcome::Implied, "another listening-ip stands for every address of its family");
        }
    }
    named
}

/// An address that can be listened on or relayed from.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let Ok(ip) = text.trim().parse::<IpAddr>() else {
        return Err("is no IP address; coturn asks DNS for a name at its start, here write the address".to_owned());
    };
    let is_unfit = match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_multicast() || ip.to_ipv4_mapped().is_some() || ip.is_unicast_link_local(),
    };
    if is_unfit { Err(format!("{ip} can't be listened on here; name another address")) } else { Ok(ip) }
}

/// What a new user may lack.
pub(super) const KEY_RIGHTS: &str = "; the user throughway must be able to read it";

/// `cert` and `pkey`; whether both are there, or will be.
fn certificate(source: &mut Source, draft: &mut Draft) -> bool {
    let chain = source.last("cert", draft);
    let private = source.last("pkey", draft);
    let has_chain = chain.is_some() || source.asks("cert");
    let has_private = private.is_some() || source.asks("pkey");
    let is_whole = has_chain && has_private;
    for (setting, key) in [(&chain, "tls.certificate"), (&private, "tls.private_key")] {
        let Some(setting) = setting else { continue };
        let path = setting.value.as_deref().unwrap_or_default();
        if !is_whole {
            let message = "is there without the other one of cert and pkey, so coturn offers no TLS; add the other file to both, or remove it";
            draft.say(setting, Outcome::NeedsYou, message);
            continue;
        }
        draft.key(key, quote(path), std::slice::from_ref(&setting.place));
        let relative =
            if path.starts_with('/') { "" } else { "; a relative path begins at the directory of config.toml" };
        let rights = if key == "tls.private_key" { KEY_RIGHTS } else { "" };
        draft.say(setting, Outcome::Carried, format!("{key}{relative}{rights}"));
    }
    is_whole
}

fn auxiliary(source: &mut Source, shape: &Shape, lists: &mut Lists, from: &mut Vec<Place>, draft: &mut Draft) {
    let settings = source.all("aux-server");
    from.extend(places(&settings));
    for setting in settings {
        let Ok(address) = setting.value.as_deref().unwrap_or_default().parse::<SocketAddr>() else {
            draft.say(&setting, Outcome::NeedsYou, "is no address with a port; write it into [listen]");
            continue;
        };
        if shape.udp {
            lists.udp.push(address);
        }
        match (shape.tcp, shape.tls) {
            (true, true) => lists.auto.push(address),
            (true, false) => lists.tcp.push(address),
            (false, true) => lists.tls.push(address),
            (false, false) => {}
        }
        draft.say(&setting, Outcome::Carried, format!("{address} in [listen]"));
    }
}

/// Writes the lists that are not as by default.
fn write(lists: &Lists, from: &[Place], draft: &mut Draft) {
    let default: Vec<SocketAddr> = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]
        .map(|ip| SocketAddr::new(ip, PLAIN_PORT))
        .to_vec();
    let all = [
        ("listen.udp", &lists.udp, &default[..]),
        ("listen.tcp", &lists.tcp, &default[..]),
        ("listen.tls", &lists.tls, &[]),
        ("listen.auto", &lists.auto, &[]),
    ];
    for (key, list, default) in all {
        if list.as_slice() != default {
            draft.key(key, quote_all(list), from);
        }
    }
}
