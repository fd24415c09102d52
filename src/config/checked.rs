//! The configuration after every check: nothing in it can be wrong.
//!
//! Made by `config::load` and its sisters only from a document that held no error. Read by
//! `run`, `net` and `ops`; the core gets its own part through [`Config::settings`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::config::external::External;
pub use crate::config::general::{ChannelNumbers, Lifetimes, LogConfig, LogFormat, LogLevel, PeersConfig, Workers};
pub use crate::config::http::{HttpConfig, HttpListen, PublicListen};
pub use crate::config::limits::LimitsConfig;
pub use crate::config::network::{Listen, RelayConfig};
pub use crate::config::shared::{SendProxy, SharedPort};
pub use crate::config::tls::TlsConfig;

use crate::address::Transport;
use crate::config::accounting::AccountingConfig;
use crate::config::admin::AdminConfig;
use crate::config::auth::opaque_string;
use crate::config::diff::Snapshot;
use crate::config::drain::DrainConfig;
use crate::config::error::{ConfigError, Note, Problem, SourceLocation};
use crate::config::upgrade::UpgradeConfig;
use crate::credentials::{Secret, SharedSecret};
use crate::protocol::nonce::{NONCE_BYTES_MAX, PLAIN_NONCE_BYTES};
use crate::protocol::peer_policy::{LocalAddresses, PeerPolicy};
use crate::protocol::pool::Pool;
use crate::protocol::settings::{AuthSettings, NameForms, RealmUsers, Settings, Sha256Offer, StunSettings};
use crate::protocol::tenancy::Tenancies;
use crate::wire::integrity::PASSWORD_ALGORITHMS;

/// Everything the operator decided.
#[derive(Clone, Debug)]
pub struct Config {
    /// `realm`.
    pub realm: Box<str>,
    /// `workers`.
    pub workers: Workers,
    /// `supervise`.
    pub supervise: bool,
    /// `[listen]`: UDP, TCP, TLS, then those for both, each in the order of the file.
    pub listen: Vec<Listen>,
    /// `[tls]`.
    pub tls: TlsConfig,
    /// `[relay]`.
    pub relay: RelayConfig,
    /// `[turn]`.
    pub lifetimes: Lifetimes,
    /// The channel numbers that may be bound.
    pub channel_numbers: ChannelNumbers,
    /// `[stun]`.
    pub stun: StunSettings,
    /// `turn.alternates`, and when clients are sent there.
    pub pool: Pool,
    /// `[auth]`, as the core has it.
    pub auth: AuthSettings,
    /// What is in `auth.nonce_key_file`, at least 16 bytes; without it each process makes its own key.
    pub nonce_key: Option<Secret>,
    /// `[peers]`.
    pub peers: PeersConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// `[http]`.
    pub http: HttpConfig,
    /// Who may use the admin API, and where revocations and limits set at run time are kept.
    pub admin: AdminConfig,
    /// `[accounting]`.
    pub accounting: AccountingConfig,
    /// `[drain]`.
    pub drain: DrainConfig,
    /// `[upgrade]`.
    pub upgrade: UpgradeConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// Where all this came from.
    pub source: Source,
    /// What each key said, for comparison with the next one.
    pub snapshot: Snapshot,
    /// What an operator should look at, though it does not stop the server.
    pub warnings: Vec<Note>,
}

/// Where a configuration came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file; `None` means built-in defaults.
    pub file: Option<PathBuf>,
    /// What it said.
    pub text: Option<Arc<Secret>>,
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
        let peers = PeerPolicy::new(&self.peers.allow, &self.peers.deny, local).map_err(|error| {
            ConfigError::from(Problem::new(SourceLocation::Nowhere, "peers.allow", error.to_string()))
        })?;
        Ok(Settings {
            realm: self.realm.clone(),
            default_lifetime: self.lifetimes.default,
            max_lifetime: self.lifetimes.max,
            channel_number_max: self.channel_numbers.max(),
            auth: self.auth_settings(),
            // Of the listeners as they are bound, which the shell knows.
            tenancies: Tenancies::default(),
            port_parts: self.relay.port_parts.clone(),
            peers,
            limits: self.limits.tables,
            alternates: self.drain.alternates.clone(),
            pool: self.pool.clone(),
            stun: StunSettings {
                discovery: self.stun.discovery.and_then(|of| of.advertised_as(|ip| self.relay.external.advertised(ip))),
                ..self.stun
            },
            tcp: self.relay.tcp,
            proxies: self.listen.iter().flat_map(|listen| listen.proxy_from.iter().copied()).collect(),
            interim_seconds: self.accounting.interim_seconds(),
            relay_ipv4,
            relay_ipv6,
            mobility: self.relay.mobility,
        })
    }

    /// Who is known in which realm, each user under the realm that is in force.
    fn auth_settings(&self) -> AuthSettings {
        let mut auth = self.auth.clone();
        let (own, mut realms): (Vec<RealmUsers>, Vec<RealmUsers>) =
            std::mem::take(&mut auth.realms).into_iter().partition(|of| of.realm == self.realm);
        own.into_iter().for_each(|of| auth.users.extend(of.users));
        for realm in self.listen.iter().filter_map(|listen| listen.tenancy.realm.as_ref()) {
            if *realm != self.realm && !realms.iter().any(|of| of.realm == *realm) {
                realms.push(RealmUsers { realm: realm.clone(), ..RealmUsers::default() });
            }
        }
        realms.sort_by(|a, b| a.realm.cmp(&b.realm));
        for of in &mut realms {
            of.forms = NameForms::new(&of.realm, of.names().into_iter(), opaque_string);
        }
        auth.realms = realms;
        auth.forms = NameForms::new(&self.realm, auth.names().into_iter(), opaque_string);
        auth
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
            Err(path) => {
                matches!(http, Some(HttpListen::Unix(own)) if own == path)
                    || self.http.admin_socket.as_deref() == Some(path)
                    || self.http.chatmail_socket.as_deref() == Some(path)
            }
        }
    }

    /// The size of a 401 challenge over UDP in bytes: header, ERROR-CODE without a phrase, REALM, NONCE, and with
    /// `auth.sha256 = "always"` the nonce cookie and PASSWORD-ALGORITHMS.
    ///
    /// It answers a request of 20 bytes from an address that may be forged, so small is polite.
    #[must_use]
    pub fn challenge_bytes(&self) -> usize {
        let (nonce, algorithms) = match self.auth.sha256 {
            Sha256Offer::Always => (NONCE_BYTES_MAX, 4 + PASSWORD_ALGORITHMS.len()),
            Sha256Offer::Streams | Sha256Offer::Never => (PLAIN_NONCE_BYTES, 0),
        };
        let padded = |bytes: usize| 4 + bytes.next_multiple_of(4);
        20 + padded(4) + padded(self.realm.len()) + padded(nonce) + algorithms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::settings::StaticUser;

    #[test]
    fn settings_carry_what_was_configured() {
        let config = Config::with_a_secret(
            "realm = \"r\"\nturn.max_lifetime = \"2h\"\nauth.users = { a = \"b\" }\nauth.max_ttl = \"1h\"\n\
             peers.allow = [\"10.0.0.0/8\"]\nlimits.allocations = 0\nlimits.channels_per_allocation = 9",
        )
        .unwrap();
        let settings = config.settings(LocalAddresses::default(), true, false).unwrap();
        assert_eq!((&*settings.realm, settings.default_lifetime, settings.max_lifetime), ("r", 600, 7200));
        assert_eq!(settings.auth.users["a"], StaticUser::password(Secret::new(*b"b")));
        assert_eq!((settings.auth.secrets.len(), settings.auth.max_ttl, settings.auth.nonce_lifetime), (1, 3600, 3600));
        assert!(settings.peers.judge("10.1.2.3".parse().unwrap()).is_some());
        assert!(settings.peers.judge("192.168.1.1".parse().unwrap()).is_none());
        assert_eq!((settings.limits.allocations, settings.limits.channels_per_allocation), (None, 9));
        assert!(settings.relay_ipv4 && !settings.relay_ipv6);
    }
}
