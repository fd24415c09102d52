//! The configuration after every check: nothing in it can be wrong.
//!
//! Made by `config::load` and its sisters only from a document that held no error. Read by
//! `run`, `net` and `ops`; the core gets its own part through [`Config::settings`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::config::accounting::AccountingConfig;
use crate::config::admin::AdminConfig;
use crate::config::diff::Written;
use crate::config::drain::DrainConfig;
use crate::config::error::{ConfigError, Note, Place, Problem};
use crate::config::issuing::IssuingConfig;
use crate::credentials::{Secret, SharedSecret};
use crate::protocol::address::Transport;
use crate::protocol::peer_policy::PeerPolicy;
use crate::protocol::settings::{AuthSettings, Limits, LocalAddresses, OnExpiry, Settings, StaticUser};
use crate::tls::certificates::Files;

/// Bytes of a nonce (section 3 of the decisions: issue time and an HMAC).
pub const NONCE_BYTES: usize = 24;

/// Everything the operator decided.
#[derive(Clone, Debug)]
pub struct Config {
    /// `realm`.
    pub realm: Box<str>,
    /// `workers`.
    pub workers: Workers,
    /// `[listen]`: UDP, TCP, TLS, then those for both, each in the order of the file.
    pub listen: Vec<Listen>,
    /// `[tls]`.
    pub tls: TlsConfig,
    /// `[relay]`.
    pub relay: RelayConfig,
    /// `[turn]`.
    pub lifetimes: Lifetimes,
    /// `[auth]`.
    pub auth: AuthConfig,
    /// `[peers]`.
    pub peers: PeersConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// `[http]`.
    pub http: HttpConfig,
    /// Who may use the admin API, and where revocations are kept.
    pub admin: AdminConfig,
    /// `[accounting]`.
    pub accounting: AccountingConfig,
    /// `[drain]`.
    pub drain: DrainConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// Where all this came from.
    pub source: Source,
    /// What was written, for comparison with the next one.
    pub written: Written,
    /// What an operator should look at, though it does not stop the server.
    pub warnings: Vec<Note>,
}

/// How many threads relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// One up to two cores, else one per core.
    Auto,
    /// So many, 1 to 256.
    Count(u16),
}

/// A socket that clients talk to. `[::]` means IPv6 only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen {
    /// What carries the messages.
    pub transport: Transport,
    /// The local address; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// From `listen.auto`: one socket that stands here twice, once as TCP and once as TLS.
    pub is_auto: bool,
}

/// `[tls]`; not empty if a listener needs it, and every file was good when it was checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsConfig {
    /// `tls.certificate` first.
    pub files: Vec<Files>,
    /// The first DNS name in a certificate that is no wildcard: what clients must be told for `turns:`.
    pub name: Option<Box<str>>,
}

/// `[relay]`: where relayed sockets are opened and what clients are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayConfig {
    /// Local addresses to relay from; empty means: find one per family from the routes.
    pub addresses: Vec<IpAddr>,
    /// What clients are told instead of the local address.
    pub external: External,
    /// The ports of relayed sockets.
    pub ports: RangeInclusive<u16>,
    /// Whether the kernel may coalesce and segment (UDP_GRO, UDP_SEGMENT).
    pub segmentation_offload: bool,
    /// Microseconds that a busy worker lets packets gather; 0 means not at all.
    pub coalesce_microseconds: u32,
}

/// The public face of local addresses (1:1 NAT).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum External {
    /// Clients are told the local address.
    Same,
    /// One public address per family, at least one of them.
    PerFamily {
        /// For local IPv4 addresses.
        ipv4: Option<Ipv4Addr>,
        /// For local IPv6 addresses.
        ipv6: Option<Ipv6Addr>,
    },
    /// (local, public), each local and each public address at most once.
    PerAddress(Vec<(IpAddr, IpAddr)>),
}

impl External {
    /// What clients are told for a local address.
    #[must_use]
    pub fn advertised(&self, local: IpAddr) -> IpAddr {
        match (self, local) {
            (Self::PerFamily { ipv4: Some(public), .. }, IpAddr::V4(_)) => IpAddr::V4(*public),
            (Self::PerFamily { ipv6: Some(public), .. }, IpAddr::V6(_)) => IpAddr::V6(*public),
            (Self::PerAddress(pairs), _) => {
                pairs.iter().find(|(from, _)| *from == local).map_or(local, |(_, public)| *public)
            }
            (Self::Same | Self::PerFamily { .. }, _) => local,
        }
    }

    /// Every public address named.
    #[must_use]
    pub fn public(&self) -> Vec<IpAddr> {
        match self {
            Self::Same => Vec::new(),
            Self::PerFamily { ipv4, ipv6 } => {
                ipv4.iter().copied().map(IpAddr::V4).chain(ipv6.iter().copied().map(IpAddr::V6)).collect()
            }
            Self::PerAddress(pairs) => pairs.iter().map(|(_, public)| *public).collect(),
        }
    }
}

/// `[turn]`, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// Granted to a client that asks for less or for nothing.
    pub default: u32,
    /// The longest granted; at least `default`.
    pub max: u32,
}

/// `[auth]`. At least one user or one secret: this server never is an open relay.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// Static users by exact name.
    pub users: HashMap<Box<str>, StaticUser>,
    /// Secrets of time-limited credentials, at most eight; the first one mints.
    pub secrets: Vec<SharedSecret>,
    /// How far ahead a credential may end, in seconds.
    pub max_ttl: u64,
    /// How long a nonce is good for, in seconds.
    pub nonce_lifetime: u64,
    /// What becomes of an allocation whose credential expires.
    pub on_expiry: OnExpiry,
    /// The longest that an allocation may live, in seconds.
    pub max_session: Option<u64>,
    /// What is in `auth.nonce_key_file`, at least 16 bytes; without it each process makes its own key.
    pub nonce_key: Option<Secret>,
}

/// `[peers]`; every entry is one that [`PeerPolicy::new`] takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeersConfig {
    /// Opened.
    pub allow: Vec<IpNet>,
    /// Closed.
    pub deny: Vec<IpNet>,
}

/// `[limits]`; `None` means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitsConfig {
    /// What the core counts.
    pub tables: Limits,
    /// Bytes that may wait for one TCP client; then packets are dropped and counted.
    pub tcp_queue: Option<usize>,
    /// How long a TCP connection may stay without an authenticated request.
    pub tcp_unauthenticated: Option<Duration>,
    /// How long a TLS handshake may take.
    pub tls_handshake: Option<Duration>,
    /// TLS handshakes under way at once.
    pub tls_half_open: Option<u32>,
}

/// `[http]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpConfig {
    /// Where metrics and health are served; `None` serves none.
    pub listen: Option<HttpListen>,
    /// Further Host names, in lower case; loopback names are always allowed.
    pub hosts: Vec<Box<str>>,
    /// Where credentials are served to everybody who has a key.
    pub public: Vec<PublicListen>,
    /// Who gets credentials.
    pub issuing: IssuingConfig,
}

/// One of `http.public`; `[::]` means IPv6 only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicListen {
    /// Where.
    pub address: SocketAddr,
    /// Over TLS, with the certificates of `[tls]`.
    pub is_https: bool,
}

impl std::fmt::Display for PublicListen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.is_https { "https" } else { "http" }, self.address)
    }
}

impl HttpConfig {
    /// Whether it needs certificates.
    #[must_use]
    pub fn has_https(&self) -> bool {
        self.public.iter().any(|listen| listen.is_https)
    }
}

/// Where HTTP is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HttpListen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A unix socket at an absolute path.
    Unix(PathBuf),
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// The journal's socket.
    pub journal: Option<PathBuf>,
    /// What is worth a line.
    pub level: LogLevel,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For the journal if it is standard error; else text on a terminal, and JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
    /// Fields for `journalctl`.
    Journal,
}

/// What is worth a log line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// We can't go on.
    Error,
    /// An operator should look.
    Warn,
    /// Start, end, one line per session.
    Info,
    /// Refusals and addresses.
    Debug,
    /// Per packet.
    Trace,
}

impl LogLevel {
    /// The name in the configuration, which `tracing` knows too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Where a configuration came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file; `None` means built-in defaults.
    pub file: Option<PathBuf>,
    /// The environment variables that had a say.
    pub variables: Vec<String>,
    /// Whether the file itself holds a password or a secret.
    pub holds_secrets: bool,
    /// A secret made for want of any other, kept over reloads.
    pub initial_secret: Option<SharedSecret>,
}

impl Config {
    /// What the core needs; called at start and on every reload, when the addresses are known.
    ///
    /// # Errors
    /// When the peer policy refuses an entry, which the checks before have ruled out.
    pub fn settings(&self, local: LocalAddresses, relay_ipv4: bool, relay_ipv6: bool) -> Result<Settings, ConfigError> {
        let peers = PeerPolicy::new(&self.peers.allow, &self.peers.deny, local)
            .map_err(|error| ConfigError::from(Problem::new(Place::Nowhere, "peers.allow", error.to_string())))?;
        Ok(Settings {
            realm: self.realm.clone(),
            default_lifetime: self.lifetimes.default,
            max_lifetime: self.lifetimes.max,
            auth: AuthSettings {
                users: self.auth.users.clone(),
                secrets: self.auth.secrets.clone(),
                max_ttl: self.auth.max_ttl,
                nonce_lifetime: self.auth.nonce_lifetime,
                on_expiry: self.auth.on_expiry,
                max_session: self.auth.max_session,
            },
            peers,
            limits: self.limits.tables,
            alternates: self.drain.alternates.clone(),
            interim_seconds: self.accounting.interim_seconds(),
            relay_ipv4,
            relay_ipv6,
        })
    }

    /// Whether a socket stands for a listener of this configuration: (is UDP, address), or a unix path.
    #[must_use]
    pub fn has_listener(&self, place: Result<(bool, SocketAddr), &Path>) -> bool {
        let http = self.http.listen.as_ref();
        match place {
            Ok((true, address)) => self.listen.iter().any(|l| l.transport == Transport::Udp && l.address == address),
            Ok((false, address)) => {
                self.listen.iter().any(|l| l.transport != Transport::Udp && l.address == address)
                    || http == Some(&HttpListen::Tcp(address))
                    || self.http.public.iter().any(|listen| listen.address == address)
            }
            Err(path) => matches!(http, Some(HttpListen::Unix(own)) if own == path),
        }
    }

    /// The size of a 401 challenge in bytes: header, ERROR-CODE without a phrase, REALM, NONCE.
    ///
    /// It answers a request of 20 bytes from an address that may be forged, so small is polite.
    #[must_use]
    pub fn challenge_bytes(&self) -> usize {
        20 + (4 + 4) + (4 + self.realm.len().next_multiple_of(4)) + (4 + NONCE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml("c.toml", &format!("{text}\n[[auth.secrets]]\nid = \"s\"\nvalue = \"north\"\n")).unwrap()
    }

    #[test]
    fn settings_carry_what_was_configured() {
        let config = config(
            "realm = \"r\"\nturn.max_lifetime = \"2h\"\nauth.users = { a = \"b\" }\nauth.max_ttl = \"1h\"\n\
             peers.allow = [\"10.0.0.0/8\"]\nlimits.allocations = 0\nlimits.channels_per_allocation = 9",
        );
        let settings = config.settings(LocalAddresses::default(), true, false).unwrap();
        assert_eq!((&*settings.realm, settings.default_lifetime, settings.max_lifetime), ("r", 600, 7200));
        assert_eq!(settings.auth.users["a"], StaticUser::password(Secret::new(*b"b")));
        assert_eq!((settings.auth.secrets.len(), settings.auth.max_ttl, settings.auth.nonce_lifetime), (1, 3600, 3600));
        assert!(settings.peers.judge("10.1.2.3".parse().unwrap()).is_some());
        assert!(settings.peers.judge("192.168.1.1".parse().unwrap()).is_none());
        assert_eq!((settings.limits.allocations, settings.limits.channels_per_allocation), (None, 9));
        assert!(settings.relay_ipv4 && !settings.relay_ipv6);
    }

    #[test]
    fn external_addresses_stand_for_their_own_family_or_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let family = config("relay.external = \"203.0.113.7\"").relay.external;
        assert_eq!(family.advertised(ip("10.0.0.5")), ip("203.0.113.7"));
        assert_eq!(family.advertised(ip("2001:db8::5")), ip("2001:db8::5"));
        let table =
            config("relay.external = { \"10.0.0.5\" = \"203.0.113.7\", \"fd00::5\" = \"2001:db8::7\" }").relay.external;
        assert_eq!(table.advertised(ip("10.0.0.5")), ip("203.0.113.7"));
        assert_eq!(table.advertised(ip("fd00::5")), ip("2001:db8::7"));
        assert_eq!(table.advertised(ip("10.0.0.6")), ip("10.0.0.6"));
        assert_eq!(table.public().len(), 2);
    }
}
