//! Limits that a key has, a token carries or a caller asks for: read from JSON, put together, and said in words.

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::calendar::rfc3339;
use crate::config::{RATE, SIZE};
use crate::credentials::claims::{Claim, Claims, Grant, PeerScope};
use crate::credentials::limits::PrefixForm;

/// More prefixes would not fit into a username.
const PREFIXES_MAX: usize = 32;

/// What an object of limits may have: every claim but the tenant.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    limits().map(Claim::name)
}

fn limits() -> impl Iterator<Item = Claim> {
    Claim::ALL.into_iter().filter(|claim| *claim != Claim::Tenant)
}

/// Reads an object of limits, by the names that `auth.secrets.claims` has.
pub(super) fn parse(value: &Value) -> Result<Grant, &'static str> {
    let fields = value.as_object().ok_or("limits must be an object")?;
    let mut grant = Grant::default();
    for (name, value) in fields {
        let limit = limits().find(|limit| limit.name() == name);
        let limit =
            limit.ok_or("limits has bytes, bitrate, allocations, peers, transports and closes_at, and nothing else")?;
        let is_too_long = limit == Claim::Peers && value.as_array().is_some_and(|list| list.len() > PREFIXES_MAX);
        if is_too_long || grant.set(limit, &value.into(), PrefixForm::Exact).is_err() {
            return Err(match limit {
                Claim::Bytes => "limits.bytes must be a whole number, 1 or more",
                Claim::Bitrate => "limits.bitrate must be a whole number of bits per second, 1 or more",
                Claim::Allocations => "limits.allocations must be a whole number, 1 or more",
                Claim::Peers => {
                    "limits.peers must be \"relay\" or a list of up to 32 prefixes, which have no bits set after their length"
                }
                Claim::Transports => "limits.transports must be a list of udp, tcp and tls",
                Claim::ClosesAt | Claim::Tenant => "limits.closes_at must be a time in seconds since 1970",
            });
        }
    }
    Ok(grant)
}

/// The narrower of both in everything, in the form that a credential can carry: one scope of peers.
pub(super) fn combine(allowed: &Grant, requested: &Grant, now: u64) -> Result<Grant, &'static str> {
    let mut grant = allowed.narrowed_by(requested);
    if let [one, other] = grant.peers.as_slice() {
        let (PeerScope::Prefixes(one), PeerScope::Prefixes(other)) = (one, other) else {
            return Err("limits.peers: this key allows other peers, and one credential can't carry both");
        };
        let both = |a: &IpNet, b: &IpNet| {
            if a.contains(b) { Some(*b) } else { b.contains(a).then_some(*a) }
        };
        let mut common: Vec<IpNet> = one.iter().flat_map(|a| other.iter().filter_map(move |b| both(a, b))).collect();
        common.sort_unstable();
        common.dedup();
        if common.is_empty() {
            return Err("limits.peers: this key allows none of them");
        }
        grant.peers = vec![PeerScope::Prefixes(common.into())];
    }
    if grant.transports.is_some_and(|transports| transports.names().is_empty()) {
        return Err("limits.transports: this key allows none of them");
    }
    if grant.closes_at.is_some_and(|time| time <= now) {
        return Err("limits.closes_at is in the past");
    }
    Ok(grant)
}

/// What a credential carries, as a request for it would say it.
pub(super) fn json(grant: &Grant) -> Map<String, Value> {
    grant.limits().map(|(limit, value)| (limit.name().to_owned(), value)).collect()
}

/// Tenant and limits in words; empty where nothing is limited.
#[must_use]
pub(crate) fn in_words(claims: &Claims) -> String {
    let grant = &claims.grant;
    let mut words = Vec::new();
    words.extend(claims.tenant.as_ref().map(|tenant| format!("tenant {tenant}")));
    words.extend(grant.bytes.map(|bytes| format!("{} in all", SIZE.show(bytes))));
    words.extend(grant.bytes_per_day.map(|bytes| format!("{} a day", SIZE.show(bytes))));
    words.extend(grant.bits_per_second.map(|rate| format!("{} each way", RATE.show(rate))));
    words.extend(grant.packets_per_second.map(|rate| format!("{rate} packets/s each way")));
    words.extend(grant.allocations.map(|count| format!("{count} allocations at a time")));
    words.extend(grant.peers.iter().map(|scope| match scope {
        PeerScope::Relay => "peers: relayed addresses of this server".to_owned(),
        PeerScope::Prefixes(prefixes) => {
            format!("peers: {}", prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
    }));
    words.extend(grant.transports.map(|transports| format!("over {}", transports.names().join(" or "))));
    words.extend(grant.closes_at.map(|time| format!("closed at {}", rfc3339(time))));
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grant(text: &str) -> Grant {
        parse(&serde_json::from_str(text).unwrap()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn limits_are_read_and_come_back() {
        let text = r#"{"bytes":1048576,"bitrate":3000000,"allocations":2,"peers":["10.0.0.0/8"],"transports":["tcp","tls"],"closes_at":1800000000}"#;
        let limits = grant(text);
        assert_eq!(Value::Object(json(&limits)), serde_json::from_str::<Value>(text).unwrap());
        let claims = Claims { grant: limits, tenant: Some("acme".into()), nonce: None };
        assert_eq!(
            in_words(&claims),
            "tenant acme, 1MiB in all, 3Mbit/s each way, 2 allocations at a time, peers: 10.0.0.0/8, over tcp or tls, \
             closed at 2027-01-15T08:00:00Z"
        );
        assert_eq!(in_words(&Claims::default()), "");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for text in [
            "[]",
            "5",
            r#"{"byte":5}"#,
            r#"{"bytes":0}"#,
            r#"{"bytes":-1}"#,
            r#"{"bytes":"1"}"#,
            r#"{"bytes":1.5}"#,
            r#"{"allocations":4294967296}"#,
            r#"{"peers":[]}"#,
            r#"{"peers":"all"}"#,
            r#"{"peers":["10.0.0.0/40"]}"#,
            r#"{"peers":[5]}"#,
            r#"{"peers":["10.0.0.1/8"]}"#,
            r#"{"peers":["10.0.0.0/8","2001:db8::1/32"]}"#,
            r#"{"transports":["sctp"]}"#,
            r#"{"transports":[]}"#,
            r#"{"closes_at":null}"#,
        ] {
            assert!(parse(&serde_json::from_str(text).unwrap()).is_err(), "{text}");
        }
    }

    #[test]
    fn asking_narrows_and_never_widens() {
        let key =
            grant(r#"{"bytes":1000,"allocations":2,"peers":["10.0.0.0/8","192.0.2.0/24"],"transports":["udp","tls"]}"#);
        let requested =
            grant(r#"{"bytes":5000,"bitrate":9,"peers":["10.1.0.0/16","192.0.0.0/16"],"transports":["tcp","tls"]}"#);
        let both = combine(&key, &requested, 0).unwrap();
        assert_eq!(
            Value::Object(json(&both)),
            json!({"bytes":1000,"bitrate":9,"allocations":2,"peers":["10.1.0.0/16","192.0.2.0/24"],"transports":["tls"]})
        );
        assert_eq!(combine(&key, &Grant::default(), 0).as_ref(), Ok(&key));
        for requested in [r#"{"peers":["198.51.100.0/24"]}"#, r#"{"peers":"relay"}"#, r#"{"transports":["tcp"]}"#] {
            assert!(combine(&key, &grant(requested), 0).is_err(), "{requested}");
        }
        assert!(combine(&Grant::default(), &grant(r#"{"closes_at":100}"#), 100).is_err());
    }
}
