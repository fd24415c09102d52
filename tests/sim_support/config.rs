//! What the simulated operator decided, and an independent word on peers and credentials.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use md5::{Digest, Md5};
use sha2::Sha256;
use throughway::address::{PeerAddress, Transport, Via};
use throughway::credentials::claims::{ClaimSet, Grant};
use throughway::credentials::{self, Algorithm, Secret, SharedSecret};
use throughway::protocol::alternates::Alternates;
use throughway::protocol::peer_policy::LocalAddresses;
use throughway::protocol::peer_policy::PeerPolicy;
use throughway::protocol::pool::Pool;
use throughway::protocol::settings::{
    AuthSettings, Limits, NameForms, OnExpiry, RealmUsers, Settings, Sha256Offer, StaticUser, StunSettings,
    TcpRelaySettings,
};
use throughway::protocol::tenancy::{PortParts, Tenancies, Tenancy};

use super::rng::Rng;
use super::terms::{May, Who};

/// How often a live session is accounted for.
pub const INTERIM_SECONDS: u64 = 60;

pub const REALM: &str = "sim.example";
/// What the listener at [`OTHER_PORT`] has of its own, where there is one.
pub const OTHER_REALM: &str = "other.example";
pub const OTHER_TENANT: &str = "umbrella";
/// Its static users and their passwords; one has the name of a user of [`REALM`].
pub const OTHER_USERS: [(&str, &str); 2] = [("alice", "mirror"), ("carol", "christmas")];
pub const RELAY_IPV4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 7));
pub const RELAY_IPV6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2a02, 0x500, 0, 0, 0, 0, 0, 7));
pub const LISTEN_PORT: u16 = 3478;
pub const OTHER_PORT: u16 = 3479;
pub const DEFAULT_LIFETIME: u32 = 600;
pub const MAX_LIFETIME: u32 = 1800;
pub const MAX_TTL: u64 = 7200;

/// Two peer policies that differ in three places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Nothing but the defaults.
    Plain,
    /// 10.9.9.0/24 and 127.0.0.1 opened, 45.0.0.0/8 closed.
    Edited,
}

/// What an address may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Remote,
    Own,
    Local,
}

pub const EXPIRIES: [OnExpiry; 4] =
    [OnExpiry::Keep, OnExpiry::DenyNew, OnExpiry::Close { grace: 0 }, OnExpiry::Close { grace: 100 }];

#[derive(Clone, Debug)]
pub struct Config {
    pub policy: Policy,
    /// Name, password, and whether the server is told the MD5 key only.
    pub users: Vec<(&'static str, &'static str, bool)>,
    pub secrets: Vec<SharedSecret>,
    pub limits: Limits,
    /// All rates that the operator thinks of; a reload takes some of them and leaves others.
    pub rates: Limits,
    pub nonce_lifetime: u64,
    pub sha256: Sha256Offer,
    /// Whether TCP allocations are given.
    pub has_tcp: bool,
    /// Whether there is another listener, with a realm and a tenant of its own.
    pub has_realms: bool,
    pub on_expiry: OnExpiry,
    pub max_session: Option<u64>,
    /// What is so from beginning to end: what each secret and each static user says besides.
    terms: BTreeMap<&'static str, Terms>,
    /// What was minted: the user id and the claims.
    pub minted: BTreeMap<String, (String, May)>,
}

pub const SECRETS: [&str; 3] = ["north", "south", "west-256"];

#[derive(Clone, Debug, Default)]
struct Terms {
    tenant: Option<&'static str>,
    may: May,
    claims: bool,
}

impl Terms {
    fn grant(&self) -> Grant {
        grant(&self.may)
    }
}

/// The realm and the tenant of the listener that a client came by.
pub fn listener_of(via: &Via) -> (&'static str, Option<&'static str>) {
    match via.five_tuple().server.port() {
        OTHER_PORT => (OTHER_REALM, Some(OTHER_TENANT)),
        _ => (REALM, None),
    }
}

fn other_realm() -> RealmUsers {
    let user = |password: &str| StaticUser::password(Secret::new(password.as_bytes()));
    RealmUsers {
        realm: OTHER_REALM.into(),
        users: OTHER_USERS.into_iter().map(|(name, password)| (name.into(), user(password))).collect(),
        forms: NameForms::new(OTHER_REALM, OTHER_USERS.into_iter().map(|(name, _)| name), |_| None),
    }
}

fn other_listener() -> Tenancies {
    let tenancy = || Tenancy { realm: Some(OTHER_REALM.into()), tenant: Some(OTHER_TENANT.into()) };
    let places = [Transport::Udp, Transport::Tcp]
        .into_iter()
        .flat_map(|transport| [RELAY_IPV4, RELAY_IPV6].map(|ip| (transport, ip, OTHER_PORT, tenancy())));
    Tenancies::new(places)
}

pub fn grant(may: &May) -> Grant {
    Grant {
        bytes: may.bytes,
        bits_per_second: may.bits,
        packets_per_second: may.packets,
        allocations: may.allocations,
        closes_at: may.closes_at,
        bytes_per_day: may.day,
        ..Grant::default()
    }
}

/// Rates whose packets take whole nanoseconds, so that plain arithmetic is exact.
pub const BITS: [u64; 5] = [800, 4_000, 8_000, 32_000, 64_000];
pub const PACKETS: [u64; 4] = [1, 2, 5, 10];

impl Config {
    pub fn first(limits: Limits, rates: Limits, rng: &mut Rng, is_strict: bool) -> Self {
        let mut terms = BTreeMap::new();
        for name in SECRETS.into_iter().chain(["alice"]) {
            let mut some =
                Terms { tenant: *rng.pick(&[None, None, Some("acme"), Some("umbrella")]), ..Terms::default() };
            some.claims = rng.percent(50);
            if is_strict && rng.percent(40) {
                some.may = May {
                    bytes: rng.percent(30).then(|| rng.range(5_000, 80_000)).filter(|_| name != "alice"),
                    bits: rng.percent(30).then(|| *rng.pick(&BITS)),
                    packets: rng.percent(30).then(|| *rng.pick(&PACKETS)),
                    allocations: rng.percent(30).then(|| rng.range(1, 4) as u32),
                    closes_at: None,
                    day: rng.percent(30).then(|| rng.range(5_000, 200_000)),
                };
            }
            terms.insert(name, some);
        }
        let mut config = Self {
            policy: Policy::Plain,
            users: vec![("alice", "wonderland", false), ("bob", "builder", true)],
            secrets: Vec::new(),
            limits,
            rates,
            nonce_lifetime: 3600,
            on_expiry: *rng.pick(&EXPIRIES),
            max_session: if rng.percent(20) { Some(rng.range(60, 2_000)) } else { None },
            terms,
            minted: BTreeMap::new(),
            sha256: *rng.pick(&[Sha256Offer::Always, Sha256Offer::Streams, Sha256Offer::Never]),
            has_tcp: false,
            has_realms: false,
        };
        config.secrets = vec![config.secret("north")];
        config
    }

    /// A secret, with what is said of it from beginning to end.
    pub fn secret(&self, value: &str) -> SharedSecret {
        let algorithm = if value.ends_with("256") { Algorithm::Sha256 } else { Algorithm::Sha1 };
        let mut secret = SharedSecret::new(value, Secret::new(value.as_bytes()), algorithm);
        let terms = &self.terms[value];
        secret.tenant = terms.tenant.map(Into::into);
        secret.grant = terms.grant();
        secret.claims = if terms.claims { ClaimSet::LIMITS } else { ClaimSet::default() };
        secret
    }

    pub fn settings(&self) -> Arc<Settings> {
        let (allow, deny): (&[&str], &[&str]) = match self.policy {
            Policy::Plain => (&[], &[]),
            Policy::Edited => (&["10.9.9.0/24", "127.0.0.1/32"], &["45.0.0.0/8"]),
        };
        let parse = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
        let local = LocalAddresses {
            own: vec![RELAY_IPV4, RELAY_IPV6],
            interfaces: vec![RELAY_IPV4, RELAY_IPV6],
            routes: vec![],
            listeners: vec![("0.0.0.0".parse().unwrap(), LISTEN_PORT), ("::".parse().unwrap(), LISTEN_PORT)],
        };
        let user = |name: &str, password: &str, md5: bool| {
            let mut user = if md5 {
                let text = format!("{name}:{REALM}:{password}");
                let [md5, sha256] = [Md5::digest(&text).to_vec(), Sha256::digest(&text).to_vec()].map(Secret::new);
                StaticUser::keys(md5, Some(sha256))
            } else {
                StaticUser::password(Secret::new(password.as_bytes()))
            };
            if let Some(terms) = self.terms.get(name) {
                (user.tenant, user.grant) = (terms.tenant.map(Into::into), terms.grant());
            }
            user
        };
        Arc::new(Settings {
            realm: REALM.into(),
            default_lifetime: DEFAULT_LIFETIME,
            max_lifetime: MAX_LIFETIME,
            auth: AuthSettings {
                users: self.users.iter().map(|&(n, p, md5)| (n.into(), user(n, p, md5))).collect(),
                secrets: self.secrets.clone(),
                max_ttl: MAX_TTL,
                nonce_lifetime: self.nonce_lifetime,
                on_expiry: self.on_expiry,
                max_session: self.max_session,
                sha256: self.sha256,
                forms: NameForms::new(REALM, self.users.iter().map(|(name, ..)| *name), |_| None),
                realms: if self.has_realms { vec![other_realm()] } else { Vec::new() },
            },
            tenancies: if self.has_realms { other_listener() } else { Tenancies::default() },
            port_parts: PortParts::default(),
            peers: PeerPolicy::new(&parse(allow), &parse(deny), local).unwrap(),
            limits: self.limits,
            alternates: Alternates::default(),
            pool: Pool::default(),
            proxies: Vec::new(),
            interim_seconds: INTERIM_SECONDS as u32,
            channel_number_max: 0x7FFE,
            relay_ipv4: true,
            relay_ipv6: true,
            mobility: false,
            tcp: TcpRelaySettings { is_on: self.has_tcp, low_ports: false },
            stun: StunSettings::default(),
        })
    }

    /// What a peer address is; `None` is a 403.
    pub fn class(&self, ip: IpAddr) -> Option<Class> {
        let edited = self.policy == Policy::Edited;
        match ip {
            RELAY_IPV4 | RELAY_IPV6 => Some(Class::Own),
            IpAddr::V4(ip) => match ip.octets() {
                [127, 0, 0, 1] => edited.then_some(Class::Local),
                [10, 9, 9, _] => edited.then_some(Class::Remote),
                [45, ..] => (!edited).then_some(Class::Remote),
                [93, ..] => Some(Class::Remote),
                [10 | 127 | 169 | 192 | 224, ..] => None,
                other => panic!("the simulation has no peer {other:?}"),
            },
            IpAddr::V6(ip) => match ip.segments()[0] {
                0x2a00 => Some(Class::Remote),
                0xfe80 | 0xfd00 => None,
                other => panic!("the simulation has no peer {other:x}"),
            },
        }
    }

    /// Whether a realm has a static user of this name.
    pub fn is_static(&self, realm: &str, username: &str) -> bool {
        match realm {
            REALM => self.users.iter().any(|(name, ..)| *name == username),
            _ => OTHER_USERS.iter().any(|(name, _)| *name == username),
        }
    }

    /// Who a name and a password are in a realm.
    pub fn user(&self, realm: &'static str, username: &str, password: &str, unix: u64) -> Option<Who> {
        let who = |identity: &str, expires, terms: Terms, claims: &May| Who {
            username: username.to_owned(),
            realm,
            identity: identity.to_owned(),
            tenant: terms.tenant.map(ToOwned::to_owned),
            expires,
            may: terms.may.narrowed(claims),
        };
        if let Some((_, right)) = OTHER_USERS.iter().find(|(name, _)| realm != REALM && *name == username) {
            return (password == *right).then(|| who(username, None, Terms::default(), &May::default()));
        }
        if let Some(&(_, right, _)) = self.users.iter().find(|(name, ..)| realm == REALM && *name == username) {
            let terms = self.terms.get(username).cloned().unwrap_or_default();
            return (password == right).then(|| who(username, None, terms, &May::default()));
        }
        let (expiry, _) = username.split_once(':')?;
        let expiry: u64 = expiry.parse().ok()?;
        if expiry + 30 < unix || expiry > unix + MAX_TTL + 30 {
            return None;
        }
        let right = |secret: &&SharedSecret| credentials::password(secret, username.as_bytes()).as_str() == password;
        let secret = self.secrets.iter().find(right)?;
        let (id, claims) = &self.minted[username];
        Some(who(id, Some(expiry), self.terms[&*secret.id].clone(), claims))
    }
}

/// Peers of every class and family.
pub fn peers() -> Vec<PeerAddress> {
    [
        "93.1.1.1:5000",
        "93.1.1.1:5001",
        "93.1.1.2:5000",
        "93.1.1.3:9",
        "93.1.1.4:65535",
        "45.0.0.1:700",
        "45.0.0.2:700",
        "10.9.9.9:80",
        "192.168.0.5:22",
        "169.254.169.254:80",
        "224.0.0.1:5353",
        "127.0.0.1:8000",
        "127.0.0.1:3478",
        "[2a00:1450::1]:4000",
        "[2a00:1450::1]:4001",
        "[2a00:1450::2]:4000",
        "[fe80::1]:1",
        "[fd00::1]:1",
    ]
    .iter()
    .map(|text| PeerAddress::from(text.parse::<std::net::SocketAddr>().unwrap()))
    .collect()
}
