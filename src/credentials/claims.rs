//! Limits inside a credential: `expiry:userid~claims`, claims being base64url of a small JSON object.
//!
//! The HMAC covers the whole username, so claims need no database and can't be forged. They are read only under
//! a secret that says so; elsewhere `~` is an ordinary character of a user id. Whatever is not understood is
//! refused: a limit that was overlooked would be no limit.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ipnet::IpNet;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::limits::{LimitRefused, PrefixForm};
use crate::address::Transport;

/// Stands between user id and claims.
pub const SEPARATOR: char = '~';

/// The longest claims text that is minted, in bytes: the rest of 508 is for expiry and user id.
pub const CLAIMS_BYTES_MAX: usize = 300;

/// What one credential, one user or one secret may at most; `None` means that nothing is said.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Grant {
    /// Payload bytes, both ways together, as long as the credential lives.
    #[n(0)]
    pub bytes: Option<u64>,
    /// Payload bytes, both ways together, of the user and a day (UTC).
    #[n(1)]
    pub bytes_per_day: Option<u64>,
    /// Payload bits per second, each way.
    #[n(2)]
    pub bits_per_second: Option<u64>,
    /// Packets per second, each way.
    #[n(3)]
    pub packets_per_second: Option<u64>,
    /// Allocations at the same time.
    #[n(4)]
    pub allocations: Option<u32>,
    /// Which peers may be reached, each of these standing for itself; empty means all that the policy allows.
    #[n(5)]
    pub peers: Vec<PeerScope>,
    /// How the client may come.
    #[n(6)]
    pub transports: Option<Transports>,
    /// Sessions are closed then, in seconds since 1970.
    #[n(7)]
    pub closes_at: Option<u64>,
}

/// Which peers may be reached.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum PeerScope {
    /// Relayed addresses of this server only: both ends use the relay.
    #[n(0)]
    Relay,
    /// Addresses under these prefixes.
    #[n(1)]
    Prefixes(
        #[n(0)]
        #[cbor(with = "prefixes")]
        Box<[IpNet]>,
    ),
}

/// Prefixes in a state for another process: address and length each.
mod prefixes {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use minicbor::{Decoder, Encoder, decode::Error, encode::Write};

    pub(super) fn encode<C, W: Write>(
        prefixes: &[IpNet],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(prefixes.len() as u64)?;
        for prefix in prefixes {
            e.encode_with((prefix.addr(), prefix.prefix_len()), ctx)?;
        }
        Ok(())
    }

    pub(super) fn decode<'b, C>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Box<[IpNet]>, Error> {
        let read: Vec<(IpAddr, u8)> = d.decode_with(ctx)?;
        let prefix = |(ip, length)| IpNet::new(ip, length).map_err(Error::custom);
        read.into_iter().map(prefix).collect()
    }
}

/// A set of transports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(transparent)]
pub struct Transports(#[n(0)] u8);

impl Transports {
    /// These, and no other.
    #[must_use]
    pub fn of(transports: &[Transport]) -> Self {
        Self(transports.iter().fold(0, |set, transport| set | 1 << *transport as u8))
    }

    /// Whether one is among them.
    #[must_use]
    pub const fn has(self, transport: Transport) -> bool {
        self.0 & 1 << transport as u8 != 0
    }

    /// They by name.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        Transport::ALL.into_iter().filter(|transport| self.has(*transport)).map(Transport::name).collect()
    }
}

/// The smaller of two limits, of which either may say nothing.
pub fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Grant {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// The narrower of both in everything.
    #[must_use]
    pub fn narrowed_by(&self, other: &Self) -> Self {
        let mut peers = self.peers.clone();
        for scope in &other.peers {
            if !peers.contains(scope) {
                peers.push(scope.clone());
            }
        }
        Self {
            bytes: least(self.bytes, other.bytes),
            bytes_per_day: least(self.bytes_per_day, other.bytes_per_day),
            bits_per_second: least(self.bits_per_second, other.bits_per_second),
            packets_per_second: least(self.packets_per_second, other.packets_per_second),
            allocations: least(self.allocations, other.allocations),
            peers,
            transports: match (self.transports, other.transports) {
                (Some(a), Some(b)) => Some(Transports(a.0 & b.0)),
                (a, b) => a.or(b),
            },
            closes_at: least(self.closes_at, other.closes_at),
        }
    }

    /// Whether a client may come this way.
    #[must_use]
    pub fn allows_transport(&self, transport: Transport) -> bool {
        self.transports.is_none_or(|allowed| allowed.has(transport))
    }
}

/// The claims there are, as `auth.secrets.claims` names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Claim {
    /// `q`: a budget in payload bytes.
    Bytes,
    /// `b`: bits per second, each way.
    Bitrate,
    /// `a`: allocations at a time.
    Allocations,
    /// `p`: "relay", or a list of prefixes.
    Peers,
    /// `r`: a list of transports.
    Transports,
    /// `x`: when sessions are closed, in seconds since 1970.
    ClosesAt,
    /// `t`: the tenant.
    Tenant,
}

impl Claim {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Bytes, Self::Bitrate, Self::Allocations, Self::Peers, Self::Transports, Self::ClosesAt, Self::Tenant];

    /// The name in the configuration, and in what people read.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Bitrate => "bitrate",
            Self::Allocations => "allocations",
            Self::Peers => "peers",
            Self::Transports => "transports",
            Self::ClosesAt => "closes_at",
            Self::Tenant => "tenant",
        }
    }
}

/// Which claims are read under a secret; none means that `~` is an ordinary character.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClaimSet(u8);

impl ClaimSet {
    /// `claims = true`: all limits. The tenant stays the secret's own.
    pub const LIMITS: Self = Self((1 << Claim::Tenant as u8) - 1);

    /// These.
    #[must_use]
    pub fn of(claims: &[Claim]) -> Self {
        Self(claims.iter().fold(0, |set, claim| set | 1 << *claim as u8))
    }

    /// Whether claims are read at all.
    #[must_use]
    pub const fn is_read(self) -> bool {
        self.0 != 0
    }

    /// Whether this one is read.
    #[must_use]
    pub const fn has(self, claim: Claim) -> bool {
        self.0 & 1 << claim as u8 != 0
    }
}

/// What a credential says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Claims {
    /// Limits.
    pub grant: Grant,
    /// The tenant that the user belongs to.
    pub tenant: Option<Box<str>>,
    /// Anything, to make two credentials of one user and second differ.
    pub nonce: Option<Box<str>>,
}

/// Why claims are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ClaimsRefused {
    /// What follows `~` is not base64url without padding.
    NotBase64Url,
    /// It is no JSON object of known claims with values of their kinds.
    Unknown,
    /// A value that says nothing: 0, an empty list, an empty name, or one with control characters.
    Empty(Claim),
    /// The secret does not read this claim.
    NotRead(Claim),
}

impl fmt::Display for ClaimsRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBase64Url => f.write_str("the text after ~ must be base64url without padding"),
            Self::Unknown => f.write_str(
                "the text after ~ must be a JSON object with the members q, b, a, p, r, x, t and n, each with a valid value",
            ),
            Self::Empty(claim) => write!(
                f,
                "{} is 0, empty or contains control characters; leave out a claim that sets no limit",
                claim.name()
            ),
            Self::NotRead(claim) => {
                write!(f, "the secret does not read the claim \"{0}\"; add it to its claims list", claim.name())
            }
        }
    }
}

/// The JSON object.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ClaimsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    q: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<Box<str>>,
}

impl ClaimsJson {
    const fn of(&mut self, claim: Claim) -> &mut Option<Value> {
        match claim {
            Claim::Bytes => &mut self.q,
            Claim::Bitrate => &mut self.b,
            Claim::Allocations => &mut self.a,
            Claim::Peers => &mut self.p,
            Claim::Transports => &mut self.r,
            Claim::ClosesAt => &mut self.x,
            Claim::Tenant => &mut self.t,
        }
    }
}

impl Claims {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The claims that say something.
    pub fn named(&self) -> impl Iterator<Item = Claim> {
        self.grant.limits().map(|(claim, _)| claim).chain(self.tenant.is_some().then_some(Claim::Tenant))
    }

    /// The text after `~`: base64url of JSON, with what [`Grant::limits`] has.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut json = ClaimsJson { n: self.nonce.clone(), ..ClaimsJson::default() };
        let tenant = self.tenant.as_deref().map(|tenant| (Claim::Tenant, Value::from(tenant)));
        for (claim, value) in self.grant.limits().chain(tenant) {
            *json.of(claim) = Some(value);
        }
        BASE64URL.encode(serde_json::to_vec(&json).expect("numbers and texts are JSON"))
    }

    /// Reads what follows `~`, under a secret that reads these claims.
    ///
    /// # Errors
    /// [`ClaimsRefused`], for everything that is not understood to the last.
    pub fn decode(text: &str, read: ClaimSet) -> Result<Self, ClaimsRefused> {
        let bytes = BASE64URL.decode(text).map_err(|_| ClaimsRefused::NotBase64Url)?;
        let mut json: ClaimsJson = serde_json::from_slice(&bytes).map_err(|_| ClaimsRefused::Unknown)?;
        let mut claims = Self { nonce: json.n.take(), ..Self::default() };
        let mut empty = None;
        for claim in Claim::ALL {
            let Some(value) = json.of(claim) else { continue };
            let taken = match (claim, &*value) {
                (Claim::Tenant, Value::String(name)) => {
                    claims.tenant = Some(name.as_str().into());
                    // It stands in logs, and in the names of quotas, where a zero byte ends it.
                    let is_empty = name.is_empty() || name.contains(char::is_control);
                    if is_empty { Err(LimitRefused::Empty) } else { Ok(()) }
                }
                (_, value) => claims.grant.set(claim, &value.into(), PrefixForm::Truncated),
            };
            match taken {
                Ok(()) => {}
                Err(LimitRefused::Empty) => empty = empty.or(Some(claim)),
                Err(LimitRefused::Kind | LimitRefused::Item(_)) => return Err(ClaimsRefused::Unknown),
            }
        }
        if let Some(claim) = empty {
            return Err(ClaimsRefused::Empty(claim));
        }
        let other = claims.named().find(|claim| !read.has(*claim));
        other.map_or(Ok(claims), |claim| Err(ClaimsRefused::NotRead(claim)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ClaimSet = ClaimSet(0x7F);

    fn full() -> Claims {
        Claims {
            grant: Grant {
                bytes: Some(1_000_000),
                bits_per_second: Some(3_000_000),
                allocations: Some(2),
                peers: vec![PeerScope::Prefixes(["10.0.0.0/8".parse().unwrap()].into())],
                transports: Some(Transports::of(&[Transport::Tcp, Transport::Tls])),
                closes_at: Some(1_800_000_000),
                ..Grant::default()
            },
            tenant: Some("acme".into()),
            nonce: Some("x1".into()),
        }
    }

    fn encoded(json: &str) -> String {
        BASE64URL.encode(json)
    }

    #[test]
    fn claims_are_short_json_and_come_back() {
        let text = full().encode();
        let json = String::from_utf8(BASE64URL.decode(&text).unwrap()).unwrap();
        assert_eq!(
            json,
            r#"{"q":1000000,"b":3000000,"a":2,"p":["10.0.0.0/8"],"r":["tcp","tls"],"x":1800000000,"t":"acme","n":"x1"}"#
        );
        assert_eq!(Claims::decode(&text, ALL), Ok(full()));
        let relay = Claims { grant: Grant { peers: vec![PeerScope::Relay], ..Grant::default() }, ..Claims::default() };
        assert_eq!(relay.encode(), encoded(r#"{"p":"relay"}"#));
        assert_eq!(Claims::decode(&relay.encode(), ALL), Ok(relay));
        assert_eq!(Claims::decode(&encoded("{}"), ALL), Ok(Claims::default()));
    }

    #[test]
    fn whatever_is_not_understood_is_refused() {
        for text in ["", "e30=", "e3 0", "~", "{}"] {
            let refused = Claims::decode(text, ALL).unwrap_err();
            assert!(matches!(refused, ClaimsRefused::NotBase64Url | ClaimsRefused::Unknown), "{text}: {refused}");
        }
        for json in [
            r#"{"z":1}"#,
            r#"{"q":1,"q":2}"#,
            r#"{"q":-1}"#,
            r#"{"q":"1"}"#,
            r#"{"q":1.5}"#,
            r#"{"q":18446744073709551616}"#,
            r#"{"p":"all"}"#,
            r#"{"p":["10.0.0.0/40"]}"#,
            r#"{"r":["sctp"]}"#,
            r#"{"r":"udp"}"#,
            "[]x",
            "{}{}",
            "null",
            "1",
        ] {
            assert_eq!(Claims::decode(&encoded(json), ALL), Err(ClaimsRefused::Unknown), "{json}");
        }
        for (json, claim) in [
            (r#"{"q":0}"#, Claim::Bytes),
            (r#"{"b":0}"#, Claim::Bitrate),
            (r#"{"a":0}"#, Claim::Allocations),
            (r#"{"p":[]}"#, Claim::Peers),
            (r#"{"r":[]}"#, Claim::Transports),
            (r#"{"x":0}"#, Claim::ClosesAt),
            (r#"{"t":""}"#, Claim::Tenant),
            (r#"{"t":"a\u0000b"}"#, Claim::Tenant),
        ] {
            assert_eq!(Claims::decode(&encoded(json), ALL), Err(ClaimsRefused::Empty(claim)), "{json}");
        }
    }

    #[test]
    fn a_secret_reads_the_claims_that_it_lists_and_refuses_the_others() {
        assert_eq!(Claims::decode(&full().encode(), ClaimSet::LIMITS), Err(ClaimsRefused::NotRead(Claim::Tenant)));
        let without_tenant = Claims { tenant: None, ..full() };
        assert_eq!(Claims::decode(&without_tenant.encode(), ClaimSet::LIMITS), Ok(without_tenant.clone()));
        for claim in Claim::ALL {
            assert_eq!(ClaimSet::LIMITS.has(claim), claim != Claim::Tenant, "{claim:?}");
        }
        let only_bytes = ClaimSet::of(&[Claim::Bytes]);
        let refused = Claims::decode(&without_tenant.encode(), only_bytes);
        assert_eq!(refused, Err(ClaimsRefused::NotRead(Claim::Bitrate)));
        assert!(only_bytes.is_read() && !ClaimSet::default().is_read());
    }

    #[test]
    fn the_narrower_of_two_grants_wins_in_everything() {
        let one = Grant { bytes: Some(5), bits_per_second: Some(9), peers: vec![PeerScope::Relay], ..Grant::default() };
        let other = Grant {
            bytes: Some(7),
            allocations: Some(1),
            bits_per_second: Some(8),
            transports: Some(Transports::of(&[Transport::Udp, Transport::Tls])),
            ..full().grant
        };
        let both = one.narrowed_by(&other);
        assert_eq!((both.bytes, both.bits_per_second, both.allocations), (Some(5), Some(8), Some(1)));
        assert_eq!(both.peers.len(), 2, "a peer must lie in each of them");
        assert_eq!(both, Grant { peers: both.peers.clone(), ..other.narrowed_by(&one) });
        let udp = Grant { transports: Some(Transports::of(&[Transport::Udp, Transport::Tcp])), ..Grant::default() };
        assert_eq!(both.narrowed_by(&udp).transports.map(Transports::names), Some(vec!["udp"]));
        assert!(udp.allows_transport(Transport::Udp) && !udp.allows_transport(Transport::Tls));
        assert!(Grant::default().is_unlimited() && Grant::default().allows_transport(Transport::Tls));
    }
}
