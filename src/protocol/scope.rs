//! Scopes of quotas: what allocations are counted and metered by (user, credential, tenant, client prefix, server), and
//! which of them one allocation counts in.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::meter::{Allowance, Meter, MeterState, Rates};
use super::overrides::Overrides;
use super::reject::RejectReason;
use super::revocation::SessionSubject;
use super::settings::Limits;
use super::token_bucket::TokenBucket;
use crate::credentials::EXPIRY_SKEW_SECONDS;
use crate::credentials::claims::{Grant, least};
use crate::time::{Now, UnixSeconds};

/// So many allocations a user may make at once, or those of a minute where these are fewer. A client prefix, behind which
/// a whole office may come back at once, may make all of a minute.
const ALLOCATION_BURST: u64 = 100;

/// In milliseconds.
const MINUTE: u64 = 60_000;

/// The scopes that one allocation counts in.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct QuotaClaim<'a> {
    /// Who it is.
    pub subject: SessionSubject<'a>,
    /// The realm, if it is not the server's own: a static user of it is another than one of the same name.
    pub realm: Option<&'a str>,
    /// When the credential ends; `None` for a static user, who has only a limit of their own.
    pub expires_at: Option<UnixSeconds>,
    /// What the credential, or the static user's entry, allows.
    pub grant: Option<&'a Grant>,
    /// The client's address.
    pub client: IpAddr,
}

/// What was counted for an allocation and must be counted out; the scope of the credential is kept only where
/// something limits it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Counted {
    /// The credential has a scope.
    #[n(0)]
    pub credential: bool,
}

/// What a scope is for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Encode, Decode)]
pub enum ScopeKey {
    /// The whole server.
    #[n(0)]
    Server,
    /// One tenant.
    #[n(1)]
    Tenant(#[n(0)] Box<str>),
    /// Tenant and user; the users of `auth.users` are others than those of credentials.
    #[n(2)]
    User(#[n(0)] Box<str>),
    /// One credential, by its USERNAME.
    #[n(3)]
    Credential(#[n(0)] Box<str>),
    /// A client's /32 or /56.
    #[n(4)]
    Client(#[n(0)] IpAddr),
}

/// One scope that is remembered.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Allocations and reservations.
    pub(super) count: u32,
    /// The end of the last credential seen, in seconds since 1970.
    pub(super) expires_at: u32,
    pub(super) meter: Option<Arc<Meter>>,
    pub(super) pace: PaceState,
}

// There is one for each user with an allocation.
const _: () = assert!(size_of::<(ScopeKey, Scope)>() == 48);

/// What users and client prefixes have, in one word: how many reservations of a user there are among the allocations, in
/// 16 bits, and the bucket of allocations a minute, in milliseconds of the ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PaceState(u64);

impl PaceState {
    const TIME: u64 = (1 << 48) - 1;

    pub(super) const fn reserved(self) -> u32 {
        (self.0 >> 48) as u32
    }

    pub(super) const fn bucket(self) -> TokenBucket {
        TokenBucket::full_at(self.0 & Self::TIME)
    }

    pub(super) fn set(&mut self, reserved: u32, bucket: TokenBucket) {
        self.0 = u64::from(reserved.min(0xFFFF)) << 48 | bucket.time().min(Self::TIME);
    }
}

/// One scope as plain values.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct ScopeState {
    /// What it is for.
    #[n(0)]
    pub key: ScopeKey,
    /// Allocations and reservations.
    #[n(1)]
    pub count: u32,
    /// The end of the last credential seen, in seconds since 1970.
    #[n(2)]
    pub expires_at: u32,
    /// What its allocations used.
    #[n(3)]
    pub meter: Option<MeterState>,
    /// Of a user: reservations among the allocations.
    #[n(4)]
    pub reserved: u32,
    /// Of a user or a client prefix: when the bucket of allocations is full again, in ticks.
    #[n(5)]
    pub full_at: u64,
}

impl Scope {
    /// Everything, as plain values.
    pub(super) fn to_state(&self, key: ScopeKey) -> ScopeState {
        ScopeState {
            key,
            count: self.count,
            expires_at: self.expires_at,
            meter: self.meter.as_ref().map(|meter| meter.to_state()),
            reserved: self.pace.reserved(),
            full_at: self.pace.bucket().time(),
        }
    }

    /// The scope that [`Scope::to_state`] described, with its key.
    pub(super) fn from_state(state: ScopeState) -> (ScopeKey, Self) {
        let ScopeState { key, count, expires_at, meter, reserved, full_at } = state;
        let mut pace = PaceState::default();
        pace.set(reserved, TokenBucket::full_at(full_at));
        let meter = meter.map(|state| Arc::new(Meter::from_state(&state)));
        (key, Self { count, expires_at, meter, pace })
    }
}

/// As long as a credential is let in, clocks that differ included; its end in seconds since 1970.
pub(super) fn let_in_until(expires_at: u32) -> UnixSeconds {
    UnixSeconds(u64::from(expires_at) + EXPIRY_SKEW_SECONDS + 1)
}

/// A client's /32 or /56; loopback is exempt.
fn prefix(client: IpAddr) -> Option<IpAddr> {
    if client.is_loopback() {
        return None;
    }
    Some(match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 72 << 72).into()),
    })
}

/// Where the scopes of the user and of the client stand among the five.
pub(super) const USER: usize = 1;
pub(super) const CLIENT: usize = 2;

/// How often allocations may be made in a scope.
#[derive(Clone, Copy)]
pub(super) struct AllocationRate {
    per_minute: u64,
    at_once: u64,
    /// What is said beyond it.
    reason: RejectReason,
}

impl AllocationRate {
    /// Of a user with time-limited credentials.
    pub(super) fn of_user(per_minute: u32) -> Self {
        let per_minute = u64::from(per_minute.max(1));
        Self { per_minute, at_once: per_minute.min(ALLOCATION_BURST), reason: RejectReason::QuotaRate }
    }

    /// Of a client prefix, for all its users together.
    pub(super) fn of_client(per_minute: u32) -> Self {
        let per_minute = u64::from(per_minute.max(1));
        Self { per_minute, at_once: per_minute, reason: RejectReason::QuotaClientRate }
    }

    /// The scope's bucket after one more allocation.
    pub(super) fn after_allocation(self, now: Now, known: Option<&Scope>) -> Result<TokenBucket, RejectReason> {
        let cost = MINUTE / self.per_minute;
        let bucket = known.map(|known| known.pace.bucket()).unwrap_or_default();
        bucket.after(now.ticks.0, cost, cost * self.at_once).map_err(|_| self.reason)
    }
}

/// The name of a static user: in another realm it is another user's.
fn in_realm<'a>(name: &'a str, claim: &QuotaClaim<'_>) -> Cow<'a, str> {
    match claim.realm.filter(|_| claim.expires_at.is_none()) {
        Some(realm) => format!("{name}\0{realm}").into(),
        None => name.into(),
    }
}

pub(super) fn user_scope(claim: &QuotaClaim<'_>) -> ScopeKey {
    let kind = if claim.expires_at.is_some() { "t" } else { "s" };
    let SessionSubject { tenant, user, .. } = claim.subject;
    // No tenant's name holds a zero byte, whatever a user id may hold; no name of a static user does.
    ScopeKey::User(format!("{kind}{}\0{}", tenant.unwrap_or_default(), in_realm(user, claim)).into())
}

/// One scope that an allocation would count in.
pub(super) struct AskedScope {
    pub(super) key: ScopeKey,
    pub(super) max: Option<u32>,
    pub(super) full: RejectReason,
    /// What the configuration allows everybody in the scope.
    pub(super) allowance: Allowance,
    /// What this credential is allowed in it, if that is less.
    pub(super) narrow: Option<Allowance>,
    pub(super) spent: RejectReason,
}

impl AskedScope {
    /// The five shared scopes that there may be, the narrowest first. What was set at run time takes the place of what is
    /// configured.
    pub(super) fn of(
        claim: &QuotaClaim<'_>,
        limits: &Limits,
        set: &Overrides,
        counted: Option<Counted>,
    ) -> [Option<Self>; 5] {
        let is_static = claim.expires_at.is_none();
        let none = Grant::default();
        let grant = claim.grant.unwrap_or(&none);
        let allowance = |rates: Rates| Allowance { rates, burst_ms: limits.burst_ms, ..Allowance::default() };
        // A static user has one credential that never ends: his name.
        let config_bytes = if is_static { None } else { limits.bytes_per_credential };
        let config_max = if is_static { None } else { limits.allocations_per_credential };
        let narrowed = |wide: Allowance, narrow: Allowance| (wide, (narrow != wide).then_some(narrow));
        let wide = Allowance { bytes: config_bytes, ..allowance(limits.credential) };
        let (of_credential, narrow) = narrowed(
            wide,
            Allowance {
                bytes: least(config_bytes, grant.bytes),
                rates: Rates {
                    bits_per_second: least(wide.rates.bits_per_second, grant.bits_per_second),
                    packets_per_second: least(wide.rates.packets_per_second, grant.packets_per_second),
                },
                ..wide
            },
        );
        let credential = Self {
            key: ScopeKey::Credential(in_realm(claim.subject.username, claim).into()),
            max: least(config_max, grant.allocations),
            full: RejectReason::QuotaCredential,
            allowance: of_credential,
            narrow,
            spent: RejectReason::QuotaBytes,
        };
        let is_limited = credential.max.is_some() || !credential.allowed().is_unlimited();
        let keeps = counted.map_or(is_limited, |counted| counted.credential);
        let set_of_user = set.of_user(&claim.subject);
        let a_day = set_of_user.bytes_per_day_over(limits.bytes_per_user_per_day);
        let wide = Allowance { bytes_per_day: a_day, ..allowance(set_of_user.rates_over(limits.user)) };
        let (of_user, narrow) = narrowed(wide, Allowance { bytes_per_day: least(a_day, grant.bytes_per_day), ..wide });
        let user = Self {
            key: user_scope(claim),
            max: set_of_user.allocations_over(if is_static { None } else { limits.allocations_per_user }),
            full: RejectReason::QuotaUser,
            allowance: of_user,
            narrow,
            spent: RejectReason::QuotaDay,
        };
        let client = prefix(claim.client).map(|prefix| Self {
            key: ScopeKey::Client(prefix),
            max: limits.allocations_per_client,
            full: RejectReason::QuotaClient,
            allowance: allowance(limits.client),
            narrow: None,
            spent: RejectReason::QuotaBytes,
        });
        let tenant = claim.subject.tenant.map(|tenant| {
            let set = set.of_tenant(tenant);
            Self {
                key: ScopeKey::Tenant(tenant.into()),
                max: set.allocations_over(limits.allocations_per_tenant),
                full: RejectReason::QuotaTenant,
                allowance: allowance(set.rates_over(limits.tenant)),
                narrow: None,
                spent: RejectReason::QuotaBytes,
            }
        });
        let server = Self {
            key: ScopeKey::Server,
            max: limits.allocations,
            full: RejectReason::QuotaServer,
            allowance: allowance(limits.server),
            narrow: None,
            spent: RejectReason::QuotaBytes,
        };
        [keeps.then_some(credential), Some(user), client, tenant, Some(server)]
    }

    /// Those that an allocation which was let in counts in, whatever their limits are now.
    pub(super) fn counted(claim: &QuotaClaim<'_>, counted: Counted) -> [Option<Self>; 5] {
        Self::of(claim, &Limits::default(), &Overrides::default(), Some(counted))
    }

    /// What holds for the one who asks.
    pub(super) fn allowed(&self) -> &Allowance {
        self.narrow.as_ref().unwrap_or(&self.allowance)
    }
}
