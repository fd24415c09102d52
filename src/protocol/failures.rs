//! Failed credentials, charged to where they come from: first their answers come late, then they stay away for a while.
//!
//! What is charged is a request that proves no key, and whose source is proved by a nonce of ours (decision 0230). A right
//! key is answered at any time, so that no client locks out others of its network.
//!
//! The table has one size for ever. When the places of a network's set are taken, the one that is nearest to having no
//! failures gives way.

use std::hash::{BuildHasher, Hash};

use ipnet::IpNet;

use super::network::Network;
use super::token_bucket::TokenBucket;
use crate::address::{FiveTuple, Via};
use crate::time::Ticks;
use crate::wire::message::TransactionId;

/// Networks whose failures are remembered.
pub const FAILURE_NETWORKS: usize = 16_384;

/// Places among which a network has to find one.
const SET_PLACES: usize = 8;

/// Requests that wait for being sent again.
pub const DELAYED_REQUESTS: usize = 16_384;

/// How late an answer is at least, in milliseconds; clients send a request again after 250 to 500 ms.
pub const DELAY_MS: u32 = 200;

/// How long a network is silenced, in milliseconds; a bucket that is empty is full again after it.
pub const SILENCE_MS: u64 = 60_000;

const BURST_MICROS: u64 = SILENCE_MS * 1_000;

/// The failures that a network may have: in microseconds, as [`TokenBucket`] wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailureRate {
    cost: u64,
}

impl FailureRate {
    /// So many a minute, all of them at once if need be. Beyond 60 million there is no limit.
    #[must_use]
    pub fn new(per_minute: u32) -> Option<Self> {
        let cost = BURST_MICROS.checked_div(u64::from(per_minute)).filter(|cost| *cost > 0)?;
        Some(Self { cost })
    }
}

/// What is known of a network.
#[derive(Clone, Copy, Default, Debug)]
struct FailurePlace {
    /// The network's word; 0 is an empty place.
    network: u64,
    /// When it has no failures any more, in microseconds.
    clear_at: u64,
    /// Answers that stayed away since it is silenced.
    unanswered: u32,
    is_silenced: bool,
}

/// A request whose answer waits for it to be sent again.
#[derive(Clone, Copy, Default, Debug)]
struct DelayedRequest {
    /// Tells it from others; 0 is an empty place.
    mark: u32,
    /// When it came, in milliseconds.
    since: u32,
}

/// A network that is silenced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SilencedNetwork {
    /// Which one.
    pub network: Network,
    /// For how long, in milliseconds.
    pub remaining: u64,
    /// Answers that stayed away up to now.
    pub unanswered: u32,
}

/// The failures of all networks.
#[derive(Debug)]
pub struct Failures {
    hasher: foldhash::quality::RandomState,
    places: Box<[FailurePlace]>,
    delayed: Box<[DelayedRequest]>,
    unanswered: u64,
    latest: Option<Network>,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            hasher: foldhash::quality::RandomState::default(),
            places: vec![FailurePlace::default(); FAILURE_NETWORKS].into(),
            delayed: vec![DelayedRequest::default(); DELAYED_REQUESTS].into(),
            unanswered: 0,
            latest: None,
        }
    }
}

impl Failures {
    /// Charges a request that failed to its network; tells whether it is answered now.
    ///
    /// Half of what a network may have is answered at once. Over UDP the other half is answered when the request is sent
    /// again, which costs nothing more. Beyond that nothing is answered for [`SILENCE_MS`]. Loopback addresses are exempt.
    pub fn answers(&mut self, now: Ticks, rate: FailureRate, via: &Via, transaction: &TransactionId) -> bool {
        let five_tuple = via.five_tuple();
        let ip = five_tuple.client.ip();
        if ip.is_loopback() {
            return true;
        }
        let network = Network::of(ip);
        let micros = now.0.saturating_mul(1_000);
        let at = self.place_of(network, micros);
        let Some(place) = self.places.get(at).copied() else { return true };
        if place.is_silenced {
            return self.withhold(at, place, network);
        }
        if let Some(is_due) = self.was_delayed(now, five_tuple, transaction) {
            return is_due;
        }
        match TokenBucket::full_at(place.clear_at).after(micros, rate.cost, BURST_MICROS) {
            Ok(after) => {
                self.places[at] = FailurePlace { clear_at: after.time(), ..place };
                let is_at_once = via.is_stream() || 2 * after.time().saturating_sub(micros) <= BURST_MICROS;
                if !is_at_once {
                    self.delay(now, five_tuple, transaction);
                }
                is_at_once
            }
            Err(_) => {
                let clear_at = micros.saturating_add(BURST_MICROS);
                self.withhold(at, FailurePlace { clear_at, is_silenced: true, ..place }, network)
            }
        }
    }

    fn withhold(&mut self, at: usize, place: FailurePlace, network: Network) -> bool {
        self.places[at] = FailurePlace { unanswered: place.unanswered.saturating_add(1), ..place };
        self.unanswered += 1;
        self.latest = Some(network);
        false
    }

    /// The network's place, or one that it may have: an empty one, or that with the fewest failures.
    fn place_of(&mut self, network: Network, micros: u64) -> usize {
        let word = network.to_word();
        let sets = FAILURE_NETWORKS / SET_PLACES;
        let first = self.hasher.hash_one(network) as usize % sets * SET_PLACES;
        let set = first..first + SET_PLACES;
        let rank = |at: &usize| {
            let place = &self.places[*at];
            // Its own before all others.
            if place.network == word { (0, 0) } else { (1, place.clear_at) }
        };
        let at = set.min_by_key(rank).unwrap_or(first);
        let place = &mut self.places[at];
        if place.network != word || place.clear_at <= micros {
            *place = FailurePlace { network: word, ..FailurePlace::default() };
        }
        at
    }

    /// Where a request may be remembered, and how.
    fn delayed_at(&self, five_tuple: &FiveTuple, transaction: &TransactionId) -> (usize, u32) {
        let hash = self.hasher.hash_one(RequestKey { five_tuple, transaction });
        // No request has the mark 0, which is that of an empty place.
        (hash as usize % DELAYED_REQUESTS, (hash >> 32) as u32 | 1)
    }

    fn delay(&mut self, now: Ticks, five_tuple: &FiveTuple, transaction: &TransactionId) {
        let (at, mark) = self.delayed_at(five_tuple, transaction);
        self.delayed[at] = DelayedRequest { mark, since: now.0 as u32 };
    }

    /// Whether the answer to this very request is due, if it was delayed. Then it is not remembered any more: what has the same
    /// transaction id later may be another guess.
    fn was_delayed(&mut self, now: Ticks, five_tuple: &FiveTuple, transaction: &TransactionId) -> Option<bool> {
        let (at, mark) = self.delayed_at(five_tuple, transaction);
        let known = self.delayed.get_mut(at).filter(|request| request.mark == mark)?;
        let is_due = (now.0 as u32).wrapping_sub(known.since) >= DELAY_MS;
        if is_due {
            *known = DelayedRequest::default();
        }
        Some(is_due)
    }

    /// How many answers stayed away up to now, and the network of the last one, such as `192.0.2.0/24`.
    #[must_use]
    pub fn unanswered(&self) -> (u64, String) {
        (self.unanswered, self.latest.map(|network| network.to_string()).unwrap_or_default())
    }

    /// The networks that are silenced, in order.
    #[must_use]
    pub fn silenced(&self, now: Ticks) -> Vec<SilencedNetwork> {
        let mut all: Vec<SilencedNetwork> = self.silenced_places(now).collect();
        all.sort_unstable_by_key(|of| of.network);
        all
    }

    /// How many they are.
    #[must_use]
    pub fn silenced_count(&self, now: Ticks) -> usize {
        self.silenced_places(now).count()
    }

    fn silenced_places(&self, now: Ticks) -> impl Iterator<Item = SilencedNetwork> {
        let remaining = move |place: &FailurePlace| (place.clear_at / 1_000).saturating_sub(now.0);
        let is_silenced = move |place: &&FailurePlace| place.is_silenced && remaining(place) > 0;
        self.places.iter().filter(is_silenced).map(move |place| SilencedNetwork {
            network: Network::from_word(place.network),
            remaining: remaining(place),
            unanswered: place.unanswered,
        })
    }

    /// Forgets the failures of the networks that a prefix meets; tells which had any, in order.
    pub fn forgive(&mut self, now: Ticks, prefix: &IpNet) -> Vec<Network> {
        let micros = now.0.saturating_mul(1_000);
        let mut forgiven = Vec::new();
        for place in &mut self.places {
            let network = Network::from_word(place.network);
            if place.network != 0 && place.clear_at > micros && network.meets(prefix) {
                *place = FailurePlace::default();
                forgiven.push(network);
            }
        }
        forgiven.sort_unstable();
        forgiven
    }
}

#[derive(Hash)]
struct RequestKey<'r> {
    five_tuple: &'r FiveTuple,
    transaction: &'r TransactionId,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, ServerAddress, StreamId, Transport};

    fn five_tuple(ip: &str, transport: Transport) -> FiveTuple {
        FiveTuple {
            client: ClientAddress::new(ip.parse().unwrap(), 4_000),
            server: ServerAddress::new([9, 9, 9, 9].into(), 3478),
            transport,
        }
    }

    fn udp(ip: &str) -> Via {
        Via::Datagram(five_tuple(ip, Transport::Udp))
    }

    fn id(number: u64) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&number.to_be_bytes());
        TransactionId(id)
    }

    /// Of so many different requests, which are answered at once.
    fn answered(failures: &mut Failures, now: u64, via: &Via, requests: std::ops::Range<u64>) -> usize {
        let rate = FailureRate::new(10).unwrap();
        requests.filter(|number| failures.answers(Ticks(now), rate, via, &id(*number))).count()
    }

    #[test]
    fn half_is_answered_at_once_half_late_and_then_nothing_for_a_minute() {
        let mut failures = Failures::default();
        let (one, other) = (udp("192.0.2.1"), udp("192.0.2.200"));
        assert_eq!(answered(&mut failures, 5_000, &one, 0..5), 5);
        assert_eq!(answered(&mut failures, 5_000, &other, 5..10), 0, "another address of the same network");
        assert_eq!(answered(&mut failures, 5_199, &other, 5..10), 0, "sent again too soon");
        assert_eq!(answered(&mut failures, 5_200, &other, 5..10), 5, "sent again, which costs nothing");
        assert!(failures.silenced(Ticks(5_200)).is_empty());
        assert_eq!(answered(&mut failures, 5_300, &one, 10..13), 0);
        assert_eq!(answered(&mut failures, 5_300, &udp("198.51.100.1"), 0..5), 5, "another network");
        let network = Network::of([192, 0, 2, 0].into());
        let silenced = SilencedNetwork { network, remaining: 60_000, unanswered: 3 };
        assert_eq!(failures.silenced(Ticks(5_300)), [silenced]);
        assert_eq!(answered(&mut failures, 65_299, &other, 5..14), 0, "silence does not end earlier");
        assert_eq!((failures.silenced_count(Ticks(65_299)), failures.silenced_count(Ticks(65_300))), (1, 0));
        assert_eq!(failures.unanswered(), (12, "192.0.2.0/24".to_owned()));
        assert_eq!(answered(&mut failures, 65_300, &one, 20..30), 5, "nor is it longer");
    }

    #[test]
    fn each_guess_counts_though_all_have_one_transaction_id() {
        let mut failures = Failures::default();
        let via = udp("192.0.2.1");
        assert_eq!(answered(&mut failures, 5_000, &via, 0..5), 5);
        let late = (0..100)
            .filter(|step| answered(&mut failures, 5_000 + step * u64::from(DELAY_MS), &via, 5..6) == 1)
            .count();
        assert!((4..10).contains(&late), "{late}");
        assert_eq!(failures.silenced_count(Ticks(25_000)), 1);
    }

    #[test]
    fn who_fails_more_slowly_is_answered_at_once() {
        let mut failures = Failures::default();
        for number in 0..1_000 {
            assert_eq!(answered(&mut failures, number * 6_000, &udp("2001:db8::1"), number..number + 1), 1);
        }
    }

    #[test]
    fn a_stream_is_answered_until_it_is_silenced() {
        let mut failures = Failures::default();
        let five_tuple = five_tuple("2001:db8:0:1ff::1", Transport::Tcp);
        let via = Via::Stream(StreamId(7), five_tuple);
        assert_eq!(answered(&mut failures, 0, &via, 0..50), 10);
        assert_eq!(answered(&mut failures, 0, &udp("2001:db8:0:100::9"), 0..5), 0, "the same /56");
        assert_eq!(answered(&mut failures, 0, &udp("2001:db8:0:200::9"), 0..5), 5);
        assert_eq!(failures.unanswered(), (45, "2001:db8:0:100::/56".to_owned()));
    }

    #[test]
    fn loopback_and_no_limit_are_exempt() {
        let mut failures = Failures::default();
        assert_eq!(answered(&mut failures, 0, &udp("127.0.0.1"), 0..100), 100);
        assert_eq!(answered(&mut failures, 0, &udp("::1"), 0..100), 100);
        assert_eq!(FailureRate::new(0), None);
        assert_eq!(FailureRate::new(u32::MAX), None, "no cost in microseconds");
    }

    #[test]
    fn an_operator_forgives_what_a_prefix_meets() {
        let mut failures = Failures::default();
        for ip in ["192.0.2.1", "192.0.3.1", "2001:db8::1"] {
            answered(&mut failures, 0, &udp(ip), 0..20);
        }
        answered(&mut failures, 0, &udp("198.51.100.1"), 0..1);
        let mut forgive = |prefix: &str| {
            let forgiven = failures.forgive(Ticks(1), &prefix.parse().unwrap());
            forgiven.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(forgive("192.0.2.77/32"), ["192.0.2.0/24"]);
        assert_eq!(forgive("192.0.2.0/24"), [""; 0], "once");
        assert_eq!(forgive("0.0.0.0/0"), ["192.0.3.0/24", "198.51.100.0/24"]);
        assert_eq!(failures.silenced_count(Ticks(1)), 1);
        assert_eq!(answered(&mut failures, 1, &udp("192.0.2.1"), 20..40), 5, "as if nothing had been");
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_who_are_silenced() {
        let mut failures = Failures::default();
        answered(&mut failures, 1_000, &udp("192.0.2.1"), 0..20);
        for number in 0..4 * FAILURE_NETWORKS as u32 {
            let ip = std::net::Ipv4Addr::from_bits(0x0A00_0000 + (number << 8)).to_string();
            answered(&mut failures, 1_000, &udp(&ip), 0..1);
        }
        assert_eq!(answered(&mut failures, 1_000, &udp("192.0.2.1"), 20..21), 0, "still known");
        assert_eq!((failures.places.len(), failures.delayed.len()), (FAILURE_NETWORKS, DELAYED_REQUESTS));
        assert!(failures.forgive(Ticks(1_000), &"0.0.0.0/0".parse().unwrap()).len() <= FAILURE_NETWORKS);
    }
}
