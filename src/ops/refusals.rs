//! The last requests that were refused, so that "why can't this client connect" has an answer afterwards.
//!
//! Bounded whatever arrives. Refusals that are alike (client address, USERNAME, reason) are one entry with a count. What a
//! stranger can cause is kept apart from what took a valid credential, and neither an address nor a user name has more
//! than its share of entries: a flood pushes out its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::calendar::rfc3339;
use crate::credentials::claims::SEPARATOR;
use crate::credentials::{USERNAME_BYTES_MAX, parse_username};
use crate::ops::remedy::remedy;
use crate::protocol::border::Event;
use crate::protocol::reject::RejectReason;

/// Entries of requests that proved nothing, and as many of those that did.
const ENTRIES_MAX: usize = 4096;

/// Entries of one IPv4 address or IPv6 /64 among them.
const ENTRIES_PER_CLIENT: usize = 32;

/// Entries of one USERNAME among them: a name can be guessed from everywhere.
const ENTRIES_PER_NAME: usize = 64;

/// What refusals have in common to be one entry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RefusalKey {
    client: IpAddr,
    username: Option<Box<str>>,
    reason: usize,
}

#[derive(Clone, Debug)]
struct RefusalEntry {
    key: RefusalKey,
    port: u16,
    times: u64,
    first: u64,
    last: u64,
}

/// Entries of one kind, by the number of their last refusal.
#[derive(Default)]
struct RefusalRing {
    entries: BTreeMap<u64, RefusalEntry>,
    numbers: BTreeMap<RefusalKey, u64>,
    by_client: BTreeMap<IpAddr, BTreeSet<u64>>,
    by_name: BTreeMap<Box<str>, BTreeSet<u64>>,
}

#[derive(Default)]
struct RefusalRings {
    number: u64,
    strangers: RefusalRing,
    known: RefusalRing,
}

/// The memory.
#[derive(Default)]
pub struct Refusals(Mutex<RefusalRings>);

/// Refusals of one client for one reason, as the API shows them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// When it was the last time, UTC.
    pub time: String,
    /// When it was the first time.
    pub first: String,
    /// How often.
    pub times: u64,
    /// Address and port of the last one.
    pub client: String,
    /// The USERNAME, if the request had one.
    pub username: Option<String>,
    /// The reason's name.
    pub reason: String,
    /// The ERROR-CODE that the client heard.
    pub code: u16,
    /// Whether the request proved to be the user's own.
    pub verified: bool,
    /// What it means and what to do about it.
    pub remedy: String,
}

/// What was found, newest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FoundRefusals {
    /// At most as many as were asked for.
    pub refusals: Vec<Refusal>,
    /// Whether there are more.
    pub more: bool,
}

/// Whether a request got as far as this only with a key that fits its USERNAME.
#[must_use]
pub const fn is_after_verification(reason: RejectReason) -> bool {
    // Authentication has these reasons; all others come after it.
    !matches!(
        reason,
        RejectReason::Challenge
            | RejectReason::IncompleteCredentials
            | RejectReason::WrongRealm
            | RejectReason::UnknownUser
            | RejectReason::BadIntegrity
    )
}

/// The address, or the /64 that one machine has for itself.
fn prefix(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
    }
}

impl RefusalRing {
    fn add(&mut self, number: u64, key: RefusalKey, port: u16, unix: u64) {
        let before = self.numbers.get(&key).copied().and_then(|before| self.remove(before));
        let (times, first) = before.map_or((1, unix), |before| (before.times.saturating_add(1), before.first));
        self.make_room(&key);
        self.numbers.insert(key.clone(), number);
        self.by_client.entry(prefix(key.client)).or_default().insert(number);
        if let Some(name) = &key.username {
            self.by_name.entry(name.clone()).or_default().insert(number);
        }
        self.entries.insert(number, RefusalEntry { key, port, times, first, last: unix });
    }

    /// Forgets the oldest of a source that has a full share.
    fn make_room(&mut self, key: &RefusalKey) {
        let full = |numbers: Option<&BTreeSet<u64>>, max: usize| {
            numbers.filter(|numbers| numbers.len() >= max).and_then(BTreeSet::first).copied()
        };
        if let Some(oldest) = full(self.by_client.get(&prefix(key.client)), ENTRIES_PER_CLIENT) {
            self.remove(oldest);
        }
        if let Some(name) = &key.username
            && let Some(oldest) = full(self.by_name.get(name), ENTRIES_PER_NAME)
        {
            self.remove(oldest);
        }
        if self.entries.len() >= ENTRIES_MAX
            && let Some((&oldest, _)) = self.entries.first_key_value()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: u64) -> Option<RefusalEntry> {
        let entry = self.entries.remove(&number)?;
        self.numbers.remove(&entry.key);
        take(&mut self.by_client, &prefix(entry.key.client), number);
        if let Some(name) = &entry.key.username {
            take(&mut self.by_name, name, number);
        }
        Some(entry)
    }
}

fn take<K: Ord + Clone>(index: &mut BTreeMap<K, BTreeSet<u64>>, key: &K, number: u64) {
    if let Some(numbers) = index.get_mut(key) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}

impl Refusals {
    /// Takes in what the workers tell; `unix` is the time of hearing it.
    pub fn hear(&self, event: &Event, unix: u64) {
        let Event::Refused { via, reason, username } = event else { return };
        let client = via.five_tuple().client;
        let username = username.as_deref().map(|name| {
            // A longer one belongs to no client.
            let end = (0..=USERNAME_BYTES_MAX.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
            Box::from(&name[..end.unwrap_or(0)])
        });
        let mut rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rings.number += 1;
        let number = rings.number;
        let ring = if is_after_verification(*reason) { &mut rings.known } else { &mut rings.strangers };
        ring.add(number, RefusalKey { client: client.ip(), username, reason: *reason as usize }, client.port(), unix);
    }

    /// Those of a user id, a USERNAME or an address; of everybody without one. At most `limit`.
    #[must_use]
    pub fn find(&self, of: Option<&str>, limit: usize) -> FoundRefusals {
        let address = of.and_then(address);
        let fits = |entry: &RefusalEntry| match (of, address) {
            (None, _) => true,
            (Some(_), Some(address)) => entry.key.client == address,
            (Some(user), None) => {
                let name = entry.key.username.as_deref();
                name == Some(user) || name.and_then(parse_username).is_some_and(|parts| is_id(parts.user_id, user))
            }
        };
        let rings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let both = rings.strangers.entries.iter().chain(&rings.known.entries);
        let mut found: Vec<(u64, &RefusalEntry)> =
            both.map(|(number, entry)| (*number, entry)).filter(|(_, entry)| fits(entry)).collect();
        found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        let more = found.len() > limit;
        FoundRefusals { refusals: found.into_iter().take(limit).map(|(_, entry)| entry.show()).collect(), more }
    }
}

/// Whether that is the user's id; claims may follow it.
fn is_id(id: &str, user: &str) -> bool {
    !user.is_empty() && (id == user || id.split_once(SEPARATOR).is_some_and(|(id, _)| id == user))
}

/// An address as people write it: also with its port, which is left out of account, and in brackets.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))?;
    Some(IpAddr::to_canonical(&ip))
}

impl RefusalEntry {
    fn show(&self) -> Refusal {
        let reason = RejectReason::ALL[self.key.reason];
        Refusal {
            time: rfc3339(self.last),
            first: rfc3339(self.first),
            times: self.times,
            client: std::net::SocketAddr::new(self.key.client, self.port).to_string(),
            username: self.key.username.as_deref().map(Into::into),
            reason: reason.name().to_owned(),
            code: reason.code().0,
            verified: is_after_verification(reason),
            remedy: remedy(reason).to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{FiveTuple, Transport, Via};

    fn event(client: &str, username: Option<&str>, reason: RejectReason) -> Event {
        let client: std::net::SocketAddr = client.parse().unwrap();
        let server: std::net::SocketAddr = "192.0.2.1:3478".parse().unwrap();
        let five_tuple = FiveTuple { client: client.into(), server: server.into(), transport: Transport::Udp };
        Event::Refused { via: Via::Datagram(five_tuple), reason, username: username.map(Into::into) }
    }

    fn check(ring: &RefusalRing) {
        assert_eq!(ring.entries.len(), ring.numbers.len());
        assert_eq!(ring.entries.len(), ring.by_client.values().map(BTreeSet::len).sum::<usize>());
        let named = ring.entries.values().filter(|entry| entry.key.username.is_some()).count();
        assert_eq!(named, ring.by_name.values().map(BTreeSet::len).sum::<usize>());
        assert!(ring.entries.len() <= ENTRIES_MAX);
        assert!(ring.by_client.values().all(|numbers| (1..=ENTRIES_PER_CLIENT).contains(&numbers.len())));
        assert!(ring.by_name.values().all(|numbers| (1..=ENTRIES_PER_NAME).contains(&numbers.len())));
    }

    #[test]
    fn a_refusal_is_found_by_address_user_id_and_whole_name() {
        let memory = Refusals::default();
        memory.hear(&event("198.51.100.7:5000", Some("1900000000:alice"), RejectReason::BadIntegrity), 100);
        memory.hear(&event("198.51.100.7:5001", Some("1900000000:alice"), RejectReason::BadIntegrity), 160);
        memory.hear(&event("198.51.100.7:5002", None, RejectReason::IncompleteCredentials), 170);
        memory.hear(&event("[2001:db8::1]:9", Some("alice"), RejectReason::QuotaUser), 180);
        let reasons = |of| {
            let found = memory.find(of, 10);
            assert!(!found.more);
            found.refusals.into_iter().map(|refusal| refusal.reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(None), ["quota_user", "incomplete_credentials", "bad_integrity"]);
        assert_eq!(reasons(Some("198.51.100.7")), ["incomplete_credentials", "bad_integrity"]);
        assert_eq!(reasons(Some("198.51.100.7:5001")), ["incomplete_credentials", "bad_integrity"]);
        assert_eq!(reasons(Some("::ffff:198.51.100.7")), ["incomplete_credentials", "bad_integrity"]);
        assert_eq!(reasons(Some("[2001:db8::1]")), ["quota_user"]);
        assert_eq!(reasons(Some("alice")), ["quota_user", "bad_integrity"]);
        assert_eq!(reasons(Some("1900000000:alice")), ["bad_integrity"]);
        memory.hear(&event("192.0.2.9:9", Some("1900000000:bob~eyJiIjoxfQ"), RejectReason::QuotaBytes), 190);
        assert_eq!(reasons(Some("bob")), ["quota_bytes"], "what a credential carries is not the user's id");
        assert!(reasons(Some("")).is_empty() && reasons(Some("ali")).is_empty());
        let found = memory.find(Some("1900000000:alice"), 10).refusals.remove(0);
        assert_eq!((found.times, &*found.client), (2, "198.51.100.7:5001"));
        assert_eq!((&*found.first, &*found.time), ("1970-01-01T00:01:40Z", "1970-01-01T00:02:40Z"));
        assert_eq!((found.code, found.verified), (401, false));
        assert!(found.remedy.contains("throughway credentials verify"), "{}", found.remedy);
        let cut = memory.find(None, 1);
        assert!(cut.more && cut.refusals.len() == 1);
    }

    #[test]
    fn a_flood_from_one_address_or_of_one_name_pushes_out_its_own_only() {
        let memory = Refusals::default();
        memory.hear(&event("198.51.100.7:1", Some("victim"), RejectReason::BadIntegrity), 1);
        for number in 0..10_000 {
            let name = format!("guess-{number}");
            memory.hear(&event("203.0.113.9:1", Some(&name), RejectReason::UnknownUser), 2);
            // One machine has a /64 to itself.
            memory.hear(&event(&format!("[2001:db8::{:x}]:1", number % 65_536), None, RejectReason::WrongRealm), 2);
            let from = format!("10.{}.{}.1:1", number / 256, number % 256);
            memory.hear(&event(&from, Some("root"), RejectReason::UnknownUser), 2);
        }
        assert_eq!(memory.find(Some("victim"), 10).refusals.len(), 1);
        assert_eq!(memory.find(Some("203.0.113.9"), 1000).refusals.len(), ENTRIES_PER_CLIENT);
        assert_eq!(memory.find(Some("root"), 1000).refusals.len(), ENTRIES_PER_NAME);
        let rings = memory.0.lock().unwrap();
        check(&rings.strangers);
        assert_eq!(rings.strangers.entries.len(), 1 + 2 * ENTRIES_PER_CLIENT + ENTRIES_PER_NAME);
    }

    #[test]
    fn forged_addresses_push_out_strangers_only_and_memory_stays_bounded() {
        let memory = Refusals::default();
        memory.hear(&event("198.51.100.7:1", Some("1900000000:alice"), RejectReason::QuotaUser), 1);
        let long = "x".repeat(60_000);
        for number in 0..20_000_u32 {
            let from = format!("{}:1", std::net::Ipv4Addr::from(0x0a00_0000 + number));
            let name = format!("{number}-{long}");
            memory.hear(&event(&from, Some(&name), RejectReason::UnknownUser), 2);
        }
        assert_eq!(memory.find(Some("alice"), 10).refusals.len(), 1);
        let rings = memory.0.lock().unwrap();
        check(&rings.strangers);
        assert_eq!(rings.strangers.entries.len(), ENTRIES_MAX);
        let longest = rings.strangers.by_name.keys().map(|name| name.len()).max();
        assert_eq!(longest, Some(USERNAME_BYTES_MAX));
    }
}
