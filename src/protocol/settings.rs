//! What the operator decided, checked and ready to use; swapped whole on reload.
//!
//! Built by `config::checked`, read by every part of the core. Nothing here can be wrong: the
//! types either rule a mistake out or the constructor refuses it.

use hashbrown::HashMap;
use ipnet::IpNet;

use crate::address::Via;
use crate::credentials::claims::Grant;
use crate::credentials::{Secret, SharedSecret};
use crate::protocol::alternates::Alternates;
use crate::protocol::discovery::Discovery;
use crate::protocol::meter::Rates;
use crate::protocol::nonce::Offer;
use crate::protocol::peer_policy::PeerPolicy;
use crate::protocol::pool::Pool;
use crate::protocol::tenancy::{PortParts, Tenancies};
use crate::wire::integrity::{USERHASH_BYTES, userhash};

/// Everything the core reads.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The realm of the 401 challenge (RFC 8489 section 14.9), at most 763 bytes.
    pub realm: Box<str>,
    /// Granted to a client that asks for less or for nothing, in seconds (RFC 8656 section 7.2).
    pub default_lifetime: u32,
    /// The longest lifetime granted, in seconds; at least `default_lifetime`.
    pub max_lifetime: u32,
    /// The highest channel number that may be bound, at most [`CHANNEL_NUMBER_MAX`](crate::wire::channel_data::CHANNEL_NUMBER_MAX).
    pub channel_number_max: u16,
    /// Who may allocate.
    pub auth: AuthSettings,
    /// Listeners with a realm or a tenant of their own.
    pub tenancies: Tenancies,
    /// Relayed ports that are one tenant's alone.
    pub port_parts: PortParts,
    /// Which peers may be reached.
    pub peers: PeerPolicy,
    /// Bounds of every table.
    pub limits: Limits,
    /// Where clients are sent while the server drains.
    pub alternates: Alternates,
    /// The servers that take clients from this one, and when.
    pub pool: Pool,
    /// What Binding does beyond RFC 8489.
    pub stun: StunSettings,
    /// TCP allocations (RFC 6062).
    pub tcp: TcpRelaySettings,
    /// Where proxies are that announce their clients: what such an address itself fails is not charged to it.
    pub proxies: Vec<IpNet>,
    /// How often a live allocation is accounted for, in seconds; 0 means only when it begins and ends.
    pub interim_seconds: u32,
    /// Whether there is an IPv4 address to relay from.
    pub relay_ipv4: bool,
    /// Whether there is an IPv6 address to relay from.
    pub relay_ipv6: bool,
    /// Whether clients may change their network (RFC 8016).
    pub mobility: bool,
}

/// `[stun]`: what Binding does beyond RFC 8489.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StunSettings {
    /// Whether clients of RFC 3489 are answered, which send no magic cookie.
    pub classic: bool,
    /// The four addresses of NAT behaviour discovery (RFC 5780), if it is served.
    pub discovery: Option<Discovery>,
}

/// `relay.tcp` and what belongs to it: relaying of TCP connections (RFC 6062).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpRelaySettings {
    /// Whether there are TCP allocations.
    pub is_on: bool,
    /// Whether peers may be connected to at ports below 1024.
    pub low_ports: bool,
}

/// Who may allocate, and how a claim is checked.
#[derive(Clone, Debug)]
pub struct AuthSettings {
    /// Static users of the server's own realm, by exact name; looked up first.
    pub users: HashMap<Box<str>, StaticUser>,
    /// What else that realm and the names of its static users may come as.
    pub forms: NameForms,
    /// Those of other realms, in the order of the realms.
    pub realms: Vec<RealmUsers>,
    /// Secrets of time-limited credentials, tried in order; the first one mints.
    pub secrets: Vec<SharedSecret>,
    /// How far ahead a credential may end, in seconds.
    pub max_ttl: u64,
    /// How long a nonce is good for, in seconds; then 438.
    pub nonce_lifetime: u64,
    /// What becomes of an allocation whose credential expires.
    pub on_expiry: OnExpiry,
    /// The longest that an allocation may live, in seconds; `None` means as long as it is refreshed.
    pub max_session: Option<u64>,
    /// Where clients are offered SHA-256.
    pub sha256: Sha256Offer,
}

impl AuthSettings {
    /// What a challenge to this client offers (RFC 8489 section 9.2.4). [8489-9.2.4-6, -7]
    ///
    /// A client that is offered USERHASH must use it, and the name behind a hash can be found only if all names are known:
    /// those in time-limited credentials are not.
    #[must_use]
    pub fn offer(&self, via: &Via) -> Offer {
        let is_offered = match self.sha256 {
            Sha256Offer::Streams => via.is_stream(),
            Sha256Offer::Always => true,
            Sha256Offer::Never => false,
        };
        match (is_offered, self.secrets.is_empty()) {
            (false, _) => Offer::Plain,
            (true, false) => Offer::Algorithms,
            (true, true) => Offer::AlgorithmsAndAnonymity,
        }
    }

    /// The names of all static users of the server's own realm, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        names_of(&self.users)
    }

    /// How many static users there are, of all realms.
    #[must_use]
    pub fn user_count(&self) -> usize {
        self.users.len() + self.realms.iter().map(|of| of.users.len()).sum::<usize>()
    }
}

#[allow(clippy::disallowed_methods, reason = "what comes out of the map is sorted at once")]
fn names_of(users: &HashMap<Box<str>, StaticUser>) -> Vec<&str> {
    let mut names: Vec<&str> = users.keys().map(|name| &**name).collect();
    names.sort_unstable();
    names
}

/// The static users of a realm that is not the server's own one.
#[derive(Clone, Debug, Default)]
pub struct RealmUsers {
    /// The realm (RFC 8489 section 14.9), at most 763 bytes.
    pub realm: Box<str>,
    /// Its users by exact name.
    pub users: HashMap<Box<str>, StaticUser>,
    /// What else the realm and their names may come as.
    pub forms: NameForms,
}

impl RealmUsers {
    /// The names of all its users, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        names_of(&self.users)
    }
}

/// A realm: who is known in it, and by which names. A user of another realm is not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Realm<'a> {
    pub(super) name: &'a str,
    /// `None` for the server's own realm.
    pub(super) other: Option<&'a str>,
    users: Option<(&'a HashMap<Box<str>, StaticUser>, &'a NameForms)>,
}

impl<'a> Realm<'a> {
    /// The user of this name, in any of its forms, and the name in `auth.users`.
    pub(super) fn static_user(&self, username: &str) -> Option<(&'a str, &'a StaticUser)> {
        let (users, forms) = self.users?;
        let known = |name: &str| users.get_key_value(name).map(|(name, user)| (&**name, user));
        known(username).or_else(|| known(forms.names.get(username)?))
    }

    /// The name as clients compare it, where that is another text.
    pub(super) fn opaque_name(&self) -> Option<&'a str> {
        self.users?.1.realm.as_deref()
    }

    /// Whether a REALM is this one.
    pub(super) fn is(&self, realm: &[u8]) -> bool {
        realm == self.name.as_bytes() || Some(realm) == self.opaque_name().map(str::as_bytes)
    }

    /// The name behind a USERHASH, as the client has it.
    pub(super) fn name_behind(&self, hash: &[u8; USERHASH_BYTES]) -> Option<&'a str> {
        self.users?.1.hashes.get(hash).map(|name| &**name)
    }
}

impl Settings {
    /// The realm of this name; `None` means the server's own.
    pub(super) fn realm<'a>(&'a self, name: Option<&'a str>) -> Realm<'a> {
        let Some(name) = name.filter(|name| **name != *self.realm) else {
            return Realm { name: &self.realm, other: None, users: Some((&self.auth.users, &self.auth.forms)) };
        };
        let at = self.auth.realms.binary_search_by_key(&name, |of| &of.realm).ok();
        let of = at.and_then(|at| self.auth.realms.get(at));
        Realm { name, other: Some(name), users: of.map(|of| (&of.users, &of.forms)) }
    }
}

/// Where clients are offered PASSWORD-ALGORITHMS (RFC 8489 section 9.2.4), which makes the answer to strangers longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sha256Offer {
    /// Over TCP and TLS, where no source is forged.
    #[default]
    Streams,
    /// Over UDP too.
    Always,
    /// Nowhere.
    Never,
}

/// Other forms of the realm and of the names in `auth.users`: as clients compare them (OpaqueString, RFC 8265 section
/// 4.2), and as USERHASH hides them (RFC 8489 section 14.4).
#[derive(Clone, Debug, Default)]
pub struct NameForms {
    realm: Option<Box<str>>,
    names: HashMap<Box<str>, Box<str>>,
    hashes: HashMap<[u8; USERHASH_BYTES], Box<str>>,
}

impl NameForms {
    /// `opaque` gives the form to compare of a text; of names with the same one the first counts. [8489-14.3-3, 8489-14.4-1, 8489-14.9-2]
    #[must_use]
    pub fn new<'a>(
        realm: &str,
        names: impl Iterator<Item = &'a str>,
        opaque: impl Fn(&str) -> Option<Box<str>>,
    ) -> Self {
        let other = |text: &str| opaque(text).filter(|form| **form != *text);
        let mut forms = Self { realm: other(realm), ..Self::default() };
        for name in names {
            let form = other(name);
            for as_sent in [Some(name), form.as_deref()].into_iter().flatten() {
                for realm in [Some(realm), forms.realm.as_deref()].into_iter().flatten() {
                    forms
                        .hashes
                        .entry(userhash(as_sent.as_bytes(), realm.as_bytes()))
                        .or_insert_with(|| as_sent.into());
                }
            }
            if let Some(form) = form {
                forms.names.entry(form).or_insert_with(|| name.into());
            }
        }
        forms
    }
}

/// What becomes of an allocation whose credential expires; a new one is refused in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnExpiry {
    /// It goes on as long as it is refreshed.
    #[default]
    Keep,
    /// It goes on, but reaches no new peers.
    DenyNew,
    /// It ends so many seconds later.
    Close {
        /// The seconds.
        grace: u64,
    },
}

/// What is known of a static user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticUser {
    /// How the user is recognised.
    pub key: StaticKey,
    /// The tenant that the user belongs to.
    pub tenant: Option<Box<str>>,
    /// What the user may at most.
    pub grant: Grant,
}

impl StaticUser {
    /// One with a password and nothing else.
    #[must_use]
    pub fn password(password: Secret) -> Self {
        let key = StaticKey::Password { given: password, opaque: None };
        Self { key, tenant: None, grant: Grant::default() }
    }

    /// One with keys made elsewhere and nothing else.
    #[must_use]
    pub fn keys(md5: Secret, sha256: Option<Secret>) -> Self {
        Self { key: StaticKey::Keys { md5, sha256 }, tenant: None, grant: Grant::default() }
    }

    /// Whether the user can't be recognised by SHA-256.
    #[must_use]
    pub const fn is_md5_only(&self) -> bool {
        matches!(self.key, StaticKey::Keys { sha256: None, .. })
    }
}

/// How a static user is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StaticKey {
    /// The password itself.
    Password {
        /// As it was given; tried first.
        given: Secret,
        /// As clients compare it (OpaqueString, RFC 8265 section 4.2), where that is another text.
        opaque: Option<Secret>,
    },
    /// Digests of username ":" realm ":" password, made elsewhere (RFC 8489 section 18.5.1).
    Keys {
        /// 16 bytes.
        md5: Secret,
        /// 32 bytes.
        sha256: Option<Secret>,
    },
}

/// Bounds of every table; `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations on the whole server.
    pub allocations: Option<u32>,
    /// Allocations per user id of time-limited credentials.
    pub allocations_per_user: Option<u32>,
    /// Allocations that a user id of time-limited credentials may make in a minute; up to 100 of them at once.
    pub allocations_per_user_per_minute: Option<u32>,
    /// Ports held for a RESERVATION-TOKEN per user.
    pub reservations_per_user: Option<u32>,
    /// Allocations per time-limited credential.
    pub allocations_per_credential: Option<u32>,
    /// Allocations per tenant.
    pub allocations_per_tenant: Option<u32>,
    /// Allocations per client /32 or /56; loopback is exempt.
    pub allocations_per_client: Option<u32>,
    /// Allocations that clients of a /32 or /56 may make in a minute, all users together; loopback is exempt.
    pub allocations_per_client_per_minute: Option<u32>,
    /// Answers a second to requests that prove nothing, for each IPv4 /24 or IPv6 /56; loopback is exempt.
    pub replies_per_network: Option<u32>,
    /// Requests a second that the owner of an allocation may make on it; twice as many at once.
    pub requests_per_allocation: Option<u32>,
    /// Connections to peers of one TCP allocation, bound or not.
    pub connections_per_allocation: u32,
    /// Requests with a wrong key or user name that each IPv4 /24 or IPv6 /56 may send in a minute; loopback is exempt.
    pub failures: Option<u32>,
    /// Rates of the whole server.
    pub server: Rates,
    /// Rates of each tenant.
    pub tenant: Rates,
    /// Rates of each client /32 or /56; loopback is exempt.
    pub client: Rates,
    /// Rates of each user.
    pub user: Rates,
    /// Rates of each credential.
    pub credential: Rates,
    /// Rates of each allocation.
    pub allocation: Rates,
    /// How long a flow may run ahead of its rate, in milliseconds.
    pub burst_ms: u64,
    /// Bytes of a time-limited credential, IP and UDP heads included, both ways together.
    pub bytes_per_credential: Option<u64>,
    /// Bytes of a user and a day (UTC), IP and UDP heads included, both ways together.
    pub bytes_per_user_per_day: Option<u64>,
    /// Live permissions of one allocation; 508 above.
    pub permissions_per_allocation: u32,
    /// Live channels of one allocation; 508 above.
    pub channels_per_allocation: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allocations: Some(100_000),
            allocations_per_user: Some(100),
            allocations_per_user_per_minute: Some(300),
            reservations_per_user: Some(2),
            allocations_per_credential: None,
            allocations_per_tenant: None,
            allocations_per_client: Some(2_000),
            // At that rate 12,000 of the 16,384 ports rest.
            allocations_per_client_per_minute: Some(6_000),
            replies_per_network: Some(1_000),
            // A call with as many peers as there is room for permissions asks for each of them at once.
            requests_per_allocation: Some(100),
            connections_per_allocation: 64,
            // One client with an old password that tries each second has half as many.
            failures: Some(120),
            server: Rates::default(),
            tenant: Rates::default(),
            client: Rates::default(),
            user: Rates::default(),
            credential: Rates::default(),
            // A video of 25 Mbit/s has half as many.
            allocation: Rates { bits_per_second: None, packets_per_second: Some(5_000) },
            burst_ms: 1_000,
            bytes_per_credential: None,
            bytes_per_user_per_day: None,
            permissions_per_allocation: 64,
            channels_per_allocation: 64,
        }
    }
}
