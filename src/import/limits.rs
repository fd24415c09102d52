//! Quotas, bandwidths, times, and what else is a number; metrics and the log.

use std::net::{IpAddr, SocketAddr};

use crate::import::draft::{Draft, quote};
use crate::import::lines::{self, Setting};
use crate::import::source::{Source, places};
use crate::import::verdict::Outcome;

/// The longest that `auth.nonce_lifetime` allows.
const DAY: u64 = 86_400;

pub(super) fn carry(source: &mut Source, keep_verbose: bool, draft: &mut Draft) {
    quota(source, "total-quota", "limits.allocations", "; coturn counted them for each realm", draft);
    quota(
        source,
        "user-quota",
        "limits.allocations_per_user",
        "; it counts user ids, and static users have no such limit",
        draft,
    );
    let has_rate = source.asks("max-bps") || source.has("max-bps");
    bandwidth(source, "max-bps", "limits.bandwidth_per_allocation", "", draft);
    let alone = if has_rate { "" } else { "; coturn does not start with it unless max-bps is there too" };
    bandwidth(source, "bps-capacity", "limits.bandwidth", alone, draft);
    nonce_lifetime(source, draft);
    lifetime(source, draft);
    if let Some((setting, seconds)) = source.number("max-allocate-timeout", draft) {
        if seconds > 0 {
            draft.key(
                "limits.tcp_unauthenticated",
                quote(&format!("{seconds}s")),
                std::slice::from_ref(&setting.place),
            );
        }
        draft.say(&setting, Outcome::Carried, "limits.tcp_unauthenticated, for connections over TCP and TLS");
    }
    threads(source, draft);
    if let Some(setting) = source.last("udp-gso", draft) {
        if lines::flag(setting.value.as_deref()) == Some(false) {
            draft.key("relay.segmentation_offload", "false", std::slice::from_ref(&setting.place));
            draft.say(&setting, Outcome::Carried, "relay.segmentation_offload");
        } else {
            draft.say(&setting, Outcome::Implied, "relay.segmentation_offload is on by default");
        }
    }
    metrics(source, draft);
    log(source, keep_verbose, draft);
}

fn quota(source: &mut Source, name: &str, key: &str, note: &str, draft: &mut Draft) {
    let Some((setting, number)) = source.number(name, draft) else { return };
    if number == 0 || u32::try_from(number).is_err() {
        // No limit there, a number by default here.
        draft.key(key, "0", std::slice::from_ref(&setting.place));
        draft.say(&setting, Outcome::Carried, format!("{key} = 0, which is no limit"));
    } else {
        draft.key(key, number.to_string(), std::slice::from_ref(&setting.place));
        draft.say(&setting, Outcome::Carried, format!("{key} = {number}{note}"));
    }
}

fn bandwidth(source: &mut Source, name: &str, key: &str, note: &str, draft: &mut Draft) {
    let Some((setting, bytes)) = source.number(name, draft) else { return };
    if bytes == 0 {
        draft.say(&setting, Outcome::Implied, "0 is no limit, as by default");
        return;
    }
    let rate = rate(bytes.saturating_mul(8));
    draft.key(key, quote(&rate), std::slice::from_ref(&setting.place));
    let message = format!("{key} = \"{rate}\", as coturn counts bytes and this server bits{note}");
    draft.say(&setting, Outcome::Carried, message);
}

/// A rate in its largest unit.
fn rate(bits: u64) -> String {
    let units = [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1000, "kbit/s")];
    match units.into_iter().find(|(size, _)| bits.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", bits / size),
        None => format!("{bits}bit/s"),
    }
}

fn nonce_lifetime(source: &mut Source, draft: &mut Draft) {
    let Some(setting) = source.last("stale-nonce", draft) else { return };
    let seconds = match setting.value.as_deref() {
        None => 600,
        Some(value) => match value.parse::<u64>() {
            Ok(seconds) => seconds,
            Err(_) => {
                draft.say(&setting, Outcome::NeedsYou, "is no number of seconds; set auth.nonce_lifetime");
                return;
            }
        },
    };
    match seconds {
        600 | 3600 => {
            draft.say(&setting, Outcome::Implied, "nonces expire; auth.nonce_lifetime is 1h, and clients don't notice")
        }
        0 | DAY.. => {
            draft.key("auth.nonce_lifetime", quote("1d"), std::slice::from_ref(&setting.place));
            draft.say(
                &setting,
                Outcome::Carried,
                "auth.nonce_lifetime = \"1d\", the longest; clients don't notice a new nonce",
            );
        }
        _ => {
            draft.key("auth.nonce_lifetime", quote(&format!("{seconds}s")), std::slice::from_ref(&setting.place));
            draft.say(&setting, Outcome::Carried, format!("auth.nonce_lifetime = \"{seconds}s\""));
        }
    }
}

fn lifetime(source: &mut Source, draft: &mut Draft) {
    let Some(setting) = source.last("max-allocate-lifetime", draft) else { return };
    match setting.value.as_deref().unwrap_or("3600").parse::<u32>() {
        Ok(3600) => draft.say(&setting, Outcome::Implied, "turn.max_lifetime is 3600s by default"),
        Ok(seconds) if seconds > 0 => {
            let from = std::slice::from_ref(&setting.place);
            draft.key("turn.max_lifetime", quote(&format!("{seconds}s")), from);
            if seconds < 600 {
                draft.key("turn.default_lifetime", quote(&format!("{seconds}s")), from);
            }
            draft.say(&setting, Outcome::Carried, format!("turn.max_lifetime = \"{seconds}s\""));
        }
        Ok(_) | Err(_) => draft.say(&setting, Outcome::NeedsYou, "is no number of seconds; set turn.max_lifetime"),
    }
}

fn threads(source: &mut Source, draft: &mut Draft) {
    for name in ["relay-threads", "cpus", "cpus-num"] {
        let Some((setting, number)) = source.number(name, draft) else { continue };
        if (1..=256).contains(&number) && !draft.has("workers") {
            draft.key("workers", number.to_string(), std::slice::from_ref(&setting.place));
            draft.say(&setting, Outcome::Carried, format!("workers = {number}"));
        } else {
            draft.say(&setting, Outcome::Dropped, "workers = \"auto\" suits almost every machine");
        }
    }
}

/// coturn serves metrics on every address; here they stay on the machine.
fn metrics(source: &mut Source, draft: &mut Draft) {
    let switch = ["prometheus", "prom"].into_iter().find_map(|name| source.flag(name, draft));
    let port = ["prometheus-port", "prom-port"].into_iter().find_map(|name| source.port(name, draft));
    let address = ["prometheus-address", "prometheus-ip"].into_iter().find_map(|name| source.last(name, draft));
    let Some(switch) = switch else {
        for setting in port.into_iter().map(|(setting, _)| setting).chain(address) {
            draft.say(&setting, Outcome::Dropped, "metrics were not switched on; here they are at http.listen");
        }
        return;
    };
    let ip = address.as_ref().and_then(|setting| setting.value.as_deref()?.parse::<IpAddr>().ok());
    let ip = ip.filter(IpAddr::is_loopback).unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let number = port.as_ref().map_or(9641, |(_, port)| *port);
    let listen = SocketAddr::new(ip, number).to_string();
    let settings: Vec<Setting> = [switch].into_iter().chain(port.map(|(setting, _)| setting)).chain(address).collect();
    draft.key("http.listen", quote(&listen), &places(&settings));
    for setting in settings {
        let message = format!(
            "http.listen = \"{listen}\", /metrics: on this machine only, a Prometheus elsewhere needs a reverse proxy in front"
        );
        draft.say(&setting, Outcome::Carried, message);
    }
}

fn log(source: &mut Source, keep_verbose: bool, draft: &mut Draft) {
    for name in ["verbose", "Verbose"] {
        let Some(setting) = source.flag(name, draft) else { continue };
        if keep_verbose && !draft.has("log.level") {
            draft.key("log.level", quote("debug"), std::slice::from_ref(&setting.place));
            draft.say(&setting, Outcome::Carried, "log.level = \"debug\"");
        } else {
            let message = "log.level = \"info\" tells enough; import with --keep-verbose for \"debug\"";
            draft.say(&setting, Outcome::Dropped, message);
        }
    }
    let Some(setting) = source.last("log-min-level", draft) else { return };
    let level = match setting.value.as_deref().unwrap_or_default().to_ascii_lowercase().as_str() {
        "debug" => "debug",
        "warn" | "warning" => "warn",
        "error" => "error",
        _ => "info",
    };
    if level != "info" && !draft.has("log.level") {
        draft.key("log.level", quote(level), std::slice::from_ref(&setting.place));
    }
    draft.say(&setting, Outcome::Carried, format!("log.level = \"{level}\""));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_second_become_bits_in_the_largest_unit() {
        for (bytes, told) in [(125_000, "1Mbit/s"), (1, "8bit/s"), (64_000, "512kbit/s"), (125_000_000, "1Gbit/s")] {
            assert_eq!(rate(bytes * 8), told);
        }
    }
}
