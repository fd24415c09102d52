//! How many answers go to those who have proved nothing, for each network that asks.
//!
//! The source of a datagram can be forged. Its answer then goes to the owner of that address: a server that answers all that it is
//! asked sends as much to a victim as an attacker likes. So every network has a token bucket for the answers to requests
//! without a nonce of ours, which proves that answers arrive (decision 0222).
//!
//! The tables have one size for ever, and networks that fall into one place share it.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::network::Network;
use super::token_bucket::TokenBucket;
use crate::address::FiveTuple;
use crate::time::Ticks;
use crate::wire::message::TransactionId;

/// Buckets of networks; as many more stand beside them for requests that are sent again.
pub const REPLY_BUCKETS: usize = 16_384;

/// Unanswered requests that are remembered, to know them when they are sent again. At 50,000 a second one of two seconds ago is
/// still known in five of six cases.
pub const UNANSWERED_REQUESTS: usize = 524_288;

/// Of the requests above the budget, one in so many is answered all the same.
pub const ANSWERED_IN: u64 = 16;

/// How many more answers than a second's a network may have at once, as a multiple of the rate.
const BURST_SECONDS: u64 = 2;

/// The answers that a network may have: in microseconds, as [`TokenBucket`] wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyRate {
    cost: u64,
    burst: u64,
}

impl ReplyRate {
    /// So many answers a second, and twice as many at once. Beyond a million there is no limit.
    #[must_use]
    pub fn new(per_second: u32) -> Option<Self> {
        let cost = 1_000_000_u64.checked_div(u64::from(per_second)).filter(|cost| *cost > 0)?;
        Some(Self { cost, burst: BURST_SECONDS * 1_000_000 })
    }
}

/// The budgets of all networks, shared by the workers without a lock.
#[derive(Debug)]
pub struct ReplyBudget {
    hasher: foldhash::quality::RandomState,
    /// First those for requests that come for the first time, then those for the others.
    buckets: Box<[AtomicU64]>,
    /// What was left unanswered: a mark of each, in a place that a later one may take.
    unanswered: Box<[AtomicU16]>,
    /// Requests above the budget.
    above: AtomicU64,
    /// Those of them that got no answer.
    withheld: AtomicU64,
    /// The network of the last one.
    latest: AtomicU64,
}

impl Default for ReplyBudget {
    fn default() -> Self {
        Self {
            hasher: foldhash::quality::RandomState::default(),
            buckets: (0..2 * REPLY_BUCKETS).map(|_| AtomicU64::default()).collect(),
            unanswered: (0..UNANSWERED_REQUESTS).map(|_| AtomicU16::default()).collect(),
            above: AtomicU64::new(0),
            withheld: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        }
    }
}

impl ReplyBudget {
    /// Whether a request that proves nothing may be answered: it is within the budget of its network, or it is sent again
    /// after it got no answer and within the budget for those, or it is one of [`ANSWERED_IN`].
    ///
    /// Loopback addresses are exempt: no packet from outside has one.
    pub fn takes(&self, now: Ticks, rate: ReplyRate, five_tuple: &FiveTuple, transaction: &TransactionId) -> bool {
        let ip = five_tuple.client.ip();
        if ip.is_loopback() {
            return true;
        }
        let network = Network::of(ip);
        let at = self.hasher.hash_one(network) as usize % REPLY_BUCKETS;
        if self.gives(at, now, rate)
            || (self.was_unanswered(five_tuple, transaction) && self.gives(REPLY_BUCKETS + at, now, rate))
        {
            return true;
        }
        if self.above.fetch_add(1, Ordering::Relaxed).is_multiple_of(ANSWERED_IN) {
            return true;
        }
        self.withheld.fetch_add(1, Ordering::Relaxed);
        self.latest.store(network.to_word(), Ordering::Relaxed);
        false
    }

    /// How many answers were withheld up to now, and the network of the last one, such as `192.0.2.0/24`.
    #[must_use]
    pub fn withheld(&self) -> (u64, String) {
        let network = Network::from_word(self.latest.load(Ordering::Relaxed));
        (self.withheld.load(Ordering::Relaxed), network.to_string())
    }

    fn gives(&self, at: usize, now: Ticks, rate: ReplyRate) -> bool {
        let Some(bucket) = self.buckets.get(at) else { return true };
        let micros = now.0.saturating_mul(1000);
        let give =
            |full_at| TokenBucket::full_at(full_at).after(micros, rate.cost, rate.burst).ok().map(TokenBucket::time);
        bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give).is_ok()
    }

    /// Whether this very request came before; notes that it came.
    fn was_unanswered(&self, five_tuple: &FiveTuple, transaction: &TransactionId) -> bool {
        let hash = self.hasher.hash_one(Request { five_tuple, transaction });
        // No request has the mark 0, which is that of an empty place.
        let mark = (hash >> 48) as u16 | 1;
        self.unanswered
            .get(hash as usize % UNANSWERED_REQUESTS)
            .is_some_and(|place| place.swap(mark, Ordering::Relaxed) == mark)
    }
}

#[derive(Hash)]
struct Request<'r> {
    five_tuple: &'r FiveTuple,
    transaction: &'r TransactionId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, ServerAddress, Transport};

    fn from(ip: &str, port: u16) -> FiveTuple {
        FiveTuple {
            client: ClientAddress::new(ip.parse().unwrap(), port),
            server: ServerAddress::new([9, 9, 9, 9].into(), 3478),
            transport: Transport::Udp,
        }
    }

    fn id(number: u64) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&number.to_be_bytes());
        TransactionId(id)
    }

    /// Of so many different requests, how many are answered.
    fn answered(budget: &ReplyBudget, now: u64, ip: &str, requests: std::ops::Range<u64>) -> u64 {
        let rate = ReplyRate::new(1_000).unwrap();
        let is_answered =
            |number: &u64| budget.takes(Ticks(now), rate, &from(ip, 1_000 + *number as u16), &id(*number));
        requests.filter(is_answered).count() as u64
    }

    #[test]
    fn a_network_has_a_burst_then_its_rate_then_one_in_sixteen() {
        let budget = ReplyBudget::default();
        assert_eq!(answered(&budget, 5_000, "192.0.2.1", 0..2_000), 2_000);
        assert_eq!(answered(&budget, 5_000, "192.0.2.200", 2_000..2_160), 10, "another address of the same network");
        assert_eq!(answered(&budget, 5_000, "198.51.100.1", 0..100), 100, "another network");
        assert_eq!(answered(&budget, 5_100, "192.0.2.1", 3_000..3_100), 100, "what ran in meanwhile");
        let (withheld, network) = budget.withheld();
        assert_eq!((withheld, network.as_str()), (150, "192.0.2.0/24"));
    }

    #[test]
    fn an_ipv6_network_is_a_56() {
        let budget = ReplyBudget::default();
        assert_eq!(answered(&budget, 0, "2001:db8:0:100::1", 0..2_000), 2_000);
        assert_eq!(answered(&budget, 0, "2001:db8:0:1ff::2", 2_000..2_016), 1);
        assert_eq!(answered(&budget, 0, "2001:db8:0:200::1", 0..16), 16);
        assert_eq!(budget.withheld().1, "2001:db8:0:100::/56");
    }

    #[test]
    fn a_request_that_is_sent_again_has_a_budget_of_its_own() {
        let budget = ReplyBudget::default();
        let rate = ReplyRate::new(1_000).unwrap();
        answered(&budget, 0, "192.0.2.1", 0..10_000);
        let client = from("192.0.2.77", 40_000);
        let first = budget.takes(Ticks(0), rate, &client, &id(77_777));
        // Half a second of 50,000 forged requests a second passes until it is sent again.
        answered(&budget, 500, "192.0.2.1", 10_000..35_000);
        assert!(first || budget.takes(Ticks(500), rate, &client, &id(77_777)));
        // All of them are sent again: no more than that budget, and one in sixteen of the rest.
        let again = answered(&budget, 500, "192.0.2.1", 10_000..35_000);
        assert!(again < 2_000 + 23_000 / 16 + 500, "{again}");
    }

    #[test]
    fn loopback_and_no_limit_are_exempt() {
        let budget = ReplyBudget::default();
        assert_eq!(answered(&budget, 0, "127.0.0.1", 0..10_000), 10_000);
        assert_eq!(answered(&budget, 0, "::1", 0..10_000), 10_000);
        assert_eq!(ReplyRate::new(0), None);
        assert_eq!(ReplyRate::new(2_000_000), None, "no cost in microseconds");
    }
}
