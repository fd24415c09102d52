//! Who somebody is, what he may, and what he has used up: told a second time, by plain arithmetic.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use throughway::protocol::meter::Rates;
use throughway::protocol::reason::{Direction, DropReason, EndReason};
use throughway::protocol::revocation::Subject;
use throughway::protocol::settings::OnExpiry;

use super::config::{Config, REALM};
use super::model::{Key, unix};
use super::quota::prefix;

/// What a credential, a secret or a static user allows at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct May {
    pub bytes: Option<u64>,
    pub bits: Option<u64>,
    pub packets: Option<u64>,
    pub allocations: Option<u32>,
    pub closes_at: Option<u64>,
    pub day: Option<u64>,
}

pub fn least<T: Ord>(one: Option<T>, two: Option<T>) -> Option<T> {
    [one, two].into_iter().flatten().min()
}

impl May {
    pub fn narrowed(&self, other: &Self) -> Self {
        Self {
            bytes: least(self.bytes, other.bytes),
            bits: least(self.bits, other.bits),
            packets: least(self.packets, other.packets),
            allocations: least(self.allocations, other.allocations),
            closes_at: least(self.closes_at, other.closes_at),
            day: least(self.day, other.day),
        }
    }
}

/// The name of a static user of another realm is another user's.
pub fn in_realm(name: String, is_limited: bool, realm: &str) -> String {
    if is_limited || realm == REALM { name } else { format!("{name}\0{realm}") }
}

/// Whose an allocation is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Who {
    pub username: String,
    pub realm: &'static str,
    pub identity: String,
    pub tenant: Option<String>,
    /// The end of a time-limited credential; a static user has none.
    pub expires: Option<u64>,
    pub may: May,
}

impl Who {
    pub fn limited(&self) -> bool {
        self.expires.is_some()
    }

    /// The same by a listener of this tenant.
    pub fn at(mut self, tenant: Option<&str>) -> Self {
        self.tenant = self.tenant.or(tenant.map(ToOwned::to_owned));
        self
    }

    /// Tenant and user: a user without a tenant is another than a tenant's of the same name.
    pub fn user(&self) -> String {
        format!("{}\0{}", self.tenant.as_deref().unwrap_or_default(), self.identity)
    }

    /// Who may bring a token of his: a static user is another than a credential's of the same name.
    pub fn full_identity(&self) -> String {
        format!("{}{}", if self.limited() { "t" } else { "s" }, in_realm(self.user(), self.limited(), self.realm))
    }

    /// What its credential is counted under.
    pub fn counted_name(&self) -> String {
        in_realm(self.username.clone(), self.limited(), self.realm)
    }

    /// Whether an operator means him.
    pub fn is_meant(&self, whose: &Subject) -> bool {
        match whose {
            Subject::Credential(username) => self.username == **username,
            Subject::User { user, tenant: None } => self.identity == **user,
            Subject::User { user, tenant } => self.identity == **user && self.tenant.as_deref() == tenant.as_deref(),
            Subject::Tenant(tenant) => self.tenant.as_deref() == Some(&**tenant),
        }
    }

    /// When a session ends in any case, and why: what comes first.
    pub fn ends_by(&self, config: &Config, created_at: u64, now: u64) -> Option<(u64, EndReason)> {
        // Clocks of seconds know no better than the second that now is.
        let at = |second: u64| now + second.saturating_sub(unix(now)) * 1000;
        let mut ends = Vec::new();
        ends.extend(self.may.closes_at.map(|second| (at(second), EndReason::ClosingTime)));
        if let (OnExpiry::Close { grace }, Some(expires)) = (config.on_expiry, self.expires) {
            ends.push((at(expires + grace), EndReason::CredentialExpired));
        }
        ends.extend(config.max_session.map(|seconds| (created_at + seconds * 1000, EndReason::MaxSession)));
        let first = ends.iter().map(|(at, _)| *at).min()?;
        ends.into_iter().find(|(at, _)| *at == first)
    }

    pub fn limits_of_credential(&self, config: &Config) -> (Option<u32>, Law) {
        let of_config = |limit: Option<u64>| limit.filter(|_| self.limited());
        let max = config.limits.allocations_per_credential.filter(|_| self.limited());
        let law = Law {
            bytes: least(of_config(config.limits.bytes_per_credential), self.may.bytes),
            bits: least(config.limits.credential.bits_per_second, self.may.bits),
            packets: least(config.limits.credential.packets_per_second, self.may.packets),
            ..Law::of(config, Rates::default())
        };
        (least(max, self.may.allocations), law)
    }

    /// Whether the credential is counted: where nothing limits it, it is not.
    pub fn is_counted(&self, config: &Config) -> bool {
        let (max, law) = self.limits_of_credential(config);
        max.is_some() || law.says_something()
    }
}

/// Who shares a limit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    Own(Key),
    Credential(String),
    User(String),
    Client(IpAddr),
    Tenant(String),
    Server,
}

/// The limits of a scope.
#[derive(Clone, Copy, Debug)]
pub struct Law {
    pub bits: Option<u64>,
    pub packets: Option<u64>,
    pub burst_ms: u64,
    pub bytes: Option<u64>,
    pub day: Option<u64>,
}

impl Law {
    fn of(config: &Config, rates: Rates) -> Self {
        let Rates { bits_per_second: bits, packets_per_second: packets } = rates;
        Self { bits, packets, burst_ms: config.limits.burst_ms, bytes: None, day: None }
    }

    fn says_something(&self) -> bool {
        self.bits.is_some() || self.packets.is_some() || self.bytes.is_some() || self.day.is_some()
    }
}

/// What a payload takes of the network: itself, and the heads of IP and UDP.
pub fn on_the_wire(is_ipv6: bool, payload: usize) -> u64 {
    payload as u64 + if is_ipv6 { 40 + 8 } else { 20 + 8 }
}

/// Something that leaks: its level in thousandths, so that a rate per second is what leaves in a millisecond.
#[derive(Clone, Copy, Debug, Default)]
struct Leaky {
    level: u64,
    at: u64,
}

impl Leaky {
    /// The level with so much more, if the bucket holds it; what is larger than the bucket needs an empty one.
    fn with(&self, now: u64, rate: u64, burst_ms: u64, amount: u64) -> Option<Self> {
        let level = self.level.saturating_sub((now - self.at) * rate) + amount * 1000;
        (level <= (rate * burst_ms).max(amount * 1000)).then_some(Self { level, at: now })
    }
}

/// What a scope has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Purse {
    bits: [Leaky; 2],
    packets: [Leaky; 2],
    bytes: u64,
    day: (u64, u64),
}

fn today(now: u64) -> u64 {
    unix(now) / 86_400
}

impl Purse {
    fn spent_today(&self, now: u64) -> u64 {
        if self.day.0 == today(now) { self.day.1 } else { 0 }
    }

    /// With one more packet, or what stands against it.
    fn with(mut self, law: &Law, now: u64, way: Direction, len: u64) -> Result<Self, DropReason> {
        let way = way as usize;
        if let Some(rate) = law.packets {
            let packets = self.packets[way].with(now, rate, law.burst_ms, 1);
            self.packets[way] = packets.ok_or(DropReason::OverPackets)?;
        }
        if let Some(rate) = law.bits {
            self.bits[way] = self.bits[way].with(now, rate, law.burst_ms, len * 8).ok_or(DropReason::OverBandwidth)?;
        }
        if let Some(max) = law.bytes {
            self.bytes += len;
            if self.bytes > max {
                return Err(DropReason::OverBudget);
            }
        }
        if let Some(max) = law.day {
            self.day = (today(now), self.spent_today(now) + len);
            if self.day.1 > max {
                return Err(DropReason::OverBudget);
            }
        }
        Ok(self)
    }

    /// Too little for a packet that wanted to pass is nothing.
    fn forfeit(&mut self, law: &Law, now: u64, len: u64) {
        if let Some(max) = law.bytes.filter(|max| self.bytes + len > *max) {
            self.bytes = self.bytes.max(max);
        }
        if let Some(max) = law.day.filter(|max| self.spent_today(now) + len > *max) {
            self.day = (today(now), self.spent_today(now).max(max));
        }
    }

    fn is_spent(&self, law: &Law, now: u64) -> bool {
        law.bytes.is_some_and(|max| self.bytes >= max) || law.day.is_some_and(|max| self.spent_today(now) >= max)
    }
}

/// What everybody has used; nothing is ever forgotten here.
#[derive(Default)]
pub struct Ledger {
    purses: HashMap<Scope, Purse>,
    of_user: HashMap<String, Leaky>,
    of_client: HashMap<IpAddr, Leaky>,
    /// TCP allocations.
    pub of_tcp: HashSet<Key>,
}

impl Ledger {
    /// The buckets of a user's and of a client's allocations with one more, in sixtieths of a minute's worth so that a
    /// rate a minute is one a second; `None` if one is full. Static users have none of their own.
    fn allocations_with_one(&self, config: &Config, who: &Who, client: IpAddr, now: u64) -> Option<[Leaky; 2]> {
        let with_one = |bucket: Option<&Leaky>, rate: Option<u32>, at_once: u64| {
            let Some(rate) = rate.map(u64::from) else { return Some(Leaky::default()) };
            bucket.copied().unwrap_or_default().with(now, rate, 60_000 * rate.min(at_once) / rate, 60)
        };
        let of_user = config.limits.allocations_per_user_per_minute.filter(|_| who.limited());
        let of_client = config.limits.allocations_per_client_per_minute;
        Some([
            with_one(self.of_user.get(&who.user()), of_user, 100)?,
            with_one(self.of_client.get(&prefix(client)), of_client, u64::MAX)?,
        ])
    }

    /// Whether a user, or somebody at the client's address, makes allocations too often.
    pub fn is_too_often(&self, config: &Config, who: &Who, client: IpAddr, now: u64) -> bool {
        self.allocations_with_one(config, who, client, now).is_none()
    }

    /// An allocation was let in.
    pub fn let_in(&mut self, config: &Config, who: &Who, client: IpAddr, now: u64) {
        let [of_user, of_client] = self.allocations_with_one(config, who, client, now).expect("it was let in");
        if who.limited() {
            self.of_user.insert(who.user(), of_user);
        }
        self.of_client.insert(prefix(client), of_client);
    }

    /// The limits that a packet passes, the narrowest first.
    fn laws(config: &Config, who: &Who, client: IpAddr) -> Vec<(Scope, Law)> {
        let limits = &config.limits;
        let mut laws = Vec::new();
        if who.is_counted(config) {
            laws.push((Scope::Credential(who.counted_name()), who.limits_of_credential(config).1));
        }
        // The narrower holds for its own credential; what anybody of the user relays is charged to the user.
        let day = least(limits.bytes_per_user_per_day, who.may.day);
        let user = Law { day, ..Law::of(config, limits.user) };
        laws.push((Scope::User(who.full_identity()), user));
        laws.push((Scope::Client(prefix(client)), Law::of(config, limits.client)));
        laws.extend(who.tenant.clone().map(|tenant| (Scope::Tenant(tenant), Law::of(config, limits.tenant))));
        laws.push((Scope::Server, Law::of(config, limits.server)));
        laws.retain(|(_, law)| law.says_something());
        laws
    }

    /// Lets a packet pass everywhere or nowhere.
    pub fn charge(
        &mut self,
        config: &Config,
        (key, who, client): (Key, &Who, IpAddr),
        now: u64,
        way: Direction,
        len: u64,
    ) -> Result<(), DropReason> {
        let mut own = Law::of(config, config.limits.allocation);
        if self.of_tcp.contains(&key) {
            // What is read of a connection at once is no packet.
            own.packets = None;
        }
        let mut laws = Self::laws(config, who, client);
        if own.says_something() {
            laws.insert(0, (Scope::Own(key), own));
        }
        let mut after = Vec::new();
        for (scope, law) in laws {
            let purse = self.purses.get(&scope).copied().unwrap_or_default();
            match purse.with(&law, now, way, len) {
                Ok(purse) => after.push((scope, purse)),
                Err(why) => {
                    if why == DropReason::OverBudget {
                        self.purses.entry(scope).or_default().forfeit(&law, now, len);
                    }
                    return Err(why);
                }
            }
        }
        self.purses.extend(after);
        Ok(())
    }

    /// Gives back to the budgets what was not sent.
    pub fn refund(&mut self, config: &Config, who: &Who, client: IpAddr, len: u64) {
        for (scope, law) in Self::laws(config, who, client) {
            let purse = self.purses.entry(scope).or_default();
            if law.bytes.is_some() {
                purse.bytes = purse.bytes.saturating_sub(len);
            }
            if law.day.is_some() {
                purse.day.1 = purse.day.1.saturating_sub(len);
            }
        }
    }

    /// Whether somebody has nothing left.
    pub fn is_spent(&self, config: &Config, who: &Who, client: IpAddr, now: u64) -> bool {
        let laws = Self::laws(config, who, client);
        laws.iter().any(|(scope, law)| self.purses.get(scope).is_some_and(|purse| purse.is_spent(law, now)))
    }

    pub fn forget_own(&mut self, key: Key) {
        self.purses.remove(&Scope::Own(key));
    }
}
