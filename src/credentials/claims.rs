//! Limits inside a credential: `expiry:userid~claims`, claims being base64url of a small JSON object.
//!
//! The HMAC covers the whole username, so claims need no database and can't be forged. They are read only under
//! a secret that says so; elsewhere `~` is an ordinary character of a user id. Whatever is not understood is
//! refused: a limit that was overlooked would be no limit.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::protocol::address::Transport;

/// Stands between user id and claims.
pub const SEPARATOR: char = '~';

/// The longest claims text that is minted, in bytes: the rest of 508 is for expiry and user id.
pub const CLAIMS_BYTES_MAX: usize = 300;

/// What one credential, one user or one secret may at most; `None` means that nothing is said.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Grant {
    /// Payload bytes, both ways together, as long as the credential lives.
    pub bytes: Option<u64>,
    /// Payload bytes, both ways together, of the user and a day (UTC).
    pub bytes_per_day: Option<u64>,
    /// Payload bits per second, each way.
    pub bits_per_second: Option<u64>,
    /// Packets per second, each way.
    pub packets_per_second: Option<u64>,
    /// Allocations at a time.
    pub allocations: Option<u32>,
    /// Which peers may be reached, each of these standing for itself; empty means all that the policy allows.
    pub peers: Vec<PeerScope>,
    /// How the client may come.
    pub transports: Option<Transports>,
    /// Sessions are closed then, in seconds since 1970.
    pub closes_at: Option<u64>,
}

/// Which peers may be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PeerScope {
    /// Relayed addresses of this server only: both ends use the relay.
    Relay,
    /// Addresses under these prefixes.
    Prefixes(Box<[IpNet]>),
}

/// A set of transports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transports(u8);

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
    /// Whose user it is.
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
            Self::NotBase64Url => f.write_str("what follows ~ is not base64url without padding"),
            Self::Unknown => f.write_str(
                "what follows ~ is not a JSON object of q, b, a, p, r, x, t and n with values of their kinds",
            ),
            Self::Empty(claim) => write!(
                f,
                "{} is 0, empty or holds control characters; leave a claim out that shall not limit",
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
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    q: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<WrittenPeers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r: Option<Vec<WrittenTransport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<Box<str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenPeers {
    Word(WrittenScope),
    Prefixes(Box<[IpNet]>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenScope {
    Relay,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum WrittenTransport {
    Udp,
    Tcp,
    Tls,
}

impl From<WrittenTransport> for Transport {
    fn from(written: WrittenTransport) -> Self {
        match written {
            WrittenTransport::Udp => Self::Udp,
            WrittenTransport::Tcp => Self::Tcp,
            WrittenTransport::Tls => Self::Tls,
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
        let grant = &self.grant;
        [
            (grant.bytes.is_some(), Claim::Bytes),
            (grant.bits_per_second.is_some(), Claim::Bitrate),
            (grant.allocations.is_some(), Claim::Allocations),
            (!grant.peers.is_empty(), Claim::Peers),
            (grant.transports.is_some(), Claim::Transports),
            (grant.closes_at.is_some(), Claim::ClosesAt),
            (self.tenant.is_some(), Claim::Tenant),
        ]
        .into_iter()
        .filter_map(|(is_there, claim)| is_there.then_some(claim))
    }

    /// The text after `~`: base64url of JSON.
    ///
    /// What no claim can say is not in it: [`Grant::bytes_per_day`], [`Grant::packets_per_second`], and of
    /// several peer scopes all but the first.
    #[must_use]
    pub fn encode(&self) -> String {
        let grant = &self.grant;
        let transports = grant.transports.map(|set| {
            [WrittenTransport::Udp, WrittenTransport::Tcp, WrittenTransport::Tls]
                .into_iter()
                .filter(|transport| set.has((*transport).into()))
                .collect()
        });
        let written = Written {
            q: grant.bytes,
            b: grant.bits_per_second,
            a: grant.allocations,
            p: grant.peers.first().map(|scope| match scope {
                PeerScope::Relay => WrittenPeers::Word(WrittenScope::Relay),
                PeerScope::Prefixes(prefixes) => WrittenPeers::Prefixes(prefixes.clone()),
            }),
            r: transports,
            x: grant.closes_at,
            t: self.tenant.clone(),
            n: self.nonce.clone(),
        };
        let json = serde_json::to_vec(&written).expect("numbers and texts are JSON");
        BASE64URL.encode(json)
    }

    /// Reads what follows `~`, under a secret that reads these claims.
    ///
    /// # Errors
    /// [`ClaimsRefused`], for everything that is not understood to the last.
    pub fn decode(text: &str, read: ClaimSet) -> Result<Self, ClaimsRefused> {
        let json = BASE64URL.decode(text).map_err(|_| ClaimsRefused::NotBase64Url)?;
        let written: Written = serde_json::from_slice(&json).map_err(|_| ClaimsRefused::Unknown)?;
        let peers = match written.p {
            None => Vec::new(),
            Some(WrittenPeers::Word(WrittenScope::Relay)) => vec![PeerScope::Relay],
            Some(WrittenPeers::Prefixes(prefixes)) if prefixes.is_empty() => {
                return Err(ClaimsRefused::Empty(Claim::Peers));
            }
            Some(WrittenPeers::Prefixes(prefixes)) => {
                vec![PeerScope::Prefixes(prefixes.iter().map(IpNet::trunc).collect())]
            }
        };
        let transports = written.r.map(|list| Transports::of(&list.into_iter().map(Into::into).collect::<Vec<_>>()));
        let claims = Self {
            grant: Grant {
                bytes: written.q,
                bytes_per_day: None,
                bits_per_second: written.b,
                packets_per_second: None,
                allocations: written.a,
                peers,
                transports,
                closes_at: written.x,
            },
            tenant: written.t,
            nonce: written.n,
        };
        claims.check_empty()?;
        let other = claims.named().find(|claim| !read.has(*claim));
        other.map_or(Ok(claims), |claim| Err(ClaimsRefused::NotRead(claim)))
    }

    fn check_empty(&self) -> Result<(), ClaimsRefused> {
        let grant = &self.grant;
        let empty = [
            (grant.bytes == Some(0), Claim::Bytes),
            (grant.bits_per_second == Some(0), Claim::Bitrate),
            (grant.allocations == Some(0), Claim::Allocations),
            (grant.transports == Some(Transports(0)), Claim::Transports),
            (grant.closes_at == Some(0), Claim::ClosesAt),
            // It stands in logs, and in the names of quotas, where a zero byte ends it.
            (
                self.tenant.as_deref().is_some_and(|name| name.is_empty() || name.contains(char::is_control)),
                Claim::Tenant,
            ),
        ];
        match empty.into_iter().find(|(is_empty, _)| *is_empty) {
            Some((_, claim)) => Err(ClaimsRefused::Empty(claim)),
            None => Ok(()),
        }
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
