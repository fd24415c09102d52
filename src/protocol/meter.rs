//! How much may pass: token buckets for bits and packets, budgets for bytes.
//!
//! One [`Meter`] stands for one scope (an allocation, a credential, a user, a tenant, a client prefix, the
//! server) and is shared by its allocations on all workers. All of it is atomics: a charge never waits, and a
//! limit is exact however many charge at the same time.
//!
//! What is charged is what a packet takes of the network, [`wire_bytes`]: an empty payload is a packet too. Packets of
//! one allocation are counted in the allocation itself, [`PacketBucket`](super::packet_bucket::PacketBucket): all of them are, so that it must cost little.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minicbor::{Decode, Encode};

use super::day_bytes::{DAYS, DayBytes, SECONDS_PER_DAY, day_of};
use super::reason::{Direction, DropReason};
use super::token_bucket::TokenBucket;
use crate::time::{Now, Ticks, UnixSeconds};

const NANOSECONDS: u64 = 1_000_000_000;

/// Limits of one scope; `None` means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Rates {
    /// Bits per second, heads of IP and UDP included, each way.
    #[n(0)]
    pub bits_per_second: Option<u64>,
    /// Packets per second, each way.
    #[n(1)]
    pub packets_per_second: Option<u64>,
}

/// All that a meter limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Allowance {
    /// Rates.
    #[n(0)]
    pub rates: Rates,
    /// How long a flow may run ahead of its rate, in milliseconds.
    #[n(1)]
    pub burst_ms: u64,
    /// Bytes, heads of IP and UDP included, both ways together, as long as the meter lives.
    #[n(2)]
    pub bytes: Option<u64>,
    /// Bytes, heads of IP and UDP included, both ways together, of a day (UTC).
    #[n(3)]
    pub bytes_per_day: Option<u64>,
}

impl Allowance {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.rates == Rates::default() && self.bytes.is_none() && self.bytes_per_day.is_none()
    }
}

/// A [`TokenBucket`] that several threads use, in nanoseconds of the ticks: one word, so one exchange decides.
#[derive(Debug, Default)]
struct SharedBucket(AtomicU64);

impl SharedBucket {
    /// Takes what costs so many nanoseconds of the rate, if the bucket then is at most `burst` ahead of `now`.
    fn take(&self, now: u64, cost: u64, burst: u64) -> bool {
        let after = |full_at| TokenBucket::full_at(full_at).after(now, cost, burst).ok().map(TokenBucket::time);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
    }

    fn give_back(&self, cost: u64) {
        self.0.fetch_sub(cost, Ordering::Relaxed);
    }
}

/// A limit that can change while others read it; [`u64::MAX`] means none.
#[derive(Debug)]
struct Limit(AtomicU64);

impl Default for Limit {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Limit {
    fn set(&self, limit: Option<u64>) {
        self.0.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        let limit = self.0.load(Ordering::Relaxed);
        (limit != u64::MAX).then_some(limit)
    }
}

/// The meter of one scope.
#[derive(Debug, Default)]
pub struct Meter {
    bits_per_second: Limit,
    packets_per_second: Limit,
    /// In milliseconds.
    burst: AtomicU64,
    bits: [SharedBucket; 2],
    packets: [SharedBucket; 2],
    bytes_max: Limit,
    bytes: AtomicU64,
    day_max: Limit,
    days: DayBytes,
    /// Since its scope has no allocations: until when it is remembered whatever the wall clock says, in ticks.
    kept_until: AtomicU64,
    /// It belongs to one allocation and goes with it.
    is_own: bool,
}

/// A [`Meter`] as plain values: what is allowed and what was used.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct MeterState {
    /// What everybody in the scope is allowed.
    #[n(0)]
    pub allowance: Allowance,
    /// When the bucket of bits is full again, each way, in nanoseconds of the ticks.
    #[n(1)]
    pub bits_full_at: [u64; 2],
    /// When the bucket of packets is full again, each way, in nanoseconds of the ticks.
    #[n(2)]
    pub packets_full_at: [u64; 2],
    /// Bytes used as long as the meter lives.
    #[n(3)]
    pub bytes: u64,
    /// Bytes used by day: the words of [`DayBytes`], and which of them was changed last.
    #[n(4)]
    pub days: ([u64; DAYS], u8),
    /// Until when it is kept whatever the wall clock says, in ticks.
    #[n(5)]
    pub kept_until: u64,
    /// It belongs to one allocation.
    #[n(6)]
    pub is_own: bool,
}

/// What charges change in a [`Meter`], as words: the buckets of bits and of packets each way, bytes, those of [`DAYS`] days,
/// which day was changed last, and until when it is kept.
pub(super) type MeterWords = [u64; 7 + DAYS];

impl MeterState {
    fn words(&self) -> MeterWords {
        let ([bits, bits_back], [packets, packets_back]) = (self.bits_full_at, self.packets_full_at);
        let ([one, two, three, four], last) = self.days;
        [bits, bits_back, packets, packets_back, self.bytes, one, two, three, four, u64::from(last), self.kept_until]
    }
}

/// What one packet costs in nanoseconds at a rate.
const fn cost(amount: u64, per_second: u64) -> u64 {
    // 65,507 bytes are 5.3e14 here: far from the end of the word.
    match amount.saturating_mul(NANOSECONDS).checked_div(per_second) {
        Some(cost) => cost,
        None => u64::MAX,
    }
}

const fn nanoseconds(ticks: Ticks) -> u64 {
    ticks.0.saturating_mul(1_000_000)
}

impl Meter {
    /// Everything, as plain values; what others charge meanwhile may be in it or not.
    #[must_use]
    pub fn to_state(&self) -> MeterState {
        let words = |buckets: &[SharedBucket; 2]| buckets.each_ref().map(|bucket| bucket.0.load(Ordering::Relaxed));
        MeterState {
            allowance: self.allowance(),
            bits_full_at: words(&self.bits),
            packets_full_at: words(&self.packets),
            bytes: self.bytes.load(Ordering::Relaxed),
            days: self.days.to_state(),
            kept_until: self.kept_until.load(Ordering::Relaxed),
            is_own: self.is_own,
        }
    }

    /// The meter that [`Meter::to_state`] described.
    #[must_use]
    pub fn from_state(state: &MeterState) -> Self {
        let meter = Self { is_own: state.is_own, ..Self::default() };
        meter.set(state);
        meter
    }

    /// Goes on where [`Meter::to_state`] was, for all that share this meter.
    pub(super) fn set(&self, state: &MeterState) {
        self.set_words(&state.words());
        self.allow(&state.allowance);
    }

    /// What charges change in it; others may charge meanwhile.
    pub(super) fn words(&self) -> MeterWords {
        self.to_state().words()
    }

    /// Goes on where [`Meter::words`] was; what is allowed stays as it is.
    pub(super) fn set_words(&self, words: &MeterWords) {
        let [bits, bits_back, packets, packets_back, bytes, one, two, three, four, last, kept_until] = *words;
        let buckets = self.bits.iter().chain(&self.packets);
        for (bucket, word) in buckets.zip([bits, bits_back, packets, packets_back]) {
            bucket.0.store(word, Ordering::Relaxed);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        self.days.set(([one, two, three, four], last as u8));
        self.kept_until.store(kept_until, Ordering::Relaxed);
    }

    /// Sets what is allowed from now on; what was used stays used.
    pub fn allow(&self, allowance: &Allowance) {
        self.bits_per_second.set(allowance.rates.bits_per_second);
        self.packets_per_second.set(allowance.rates.packets_per_second);
        self.burst.store(allowance.burst_ms, Ordering::Relaxed);
        self.bytes_max.set(allowance.bytes);
        self.day_max.set(allowance.bytes_per_day);
    }

    /// The meter of a single allocation.
    #[must_use]
    pub fn of_one_allocation() -> Self {
        Self { is_own: true, ..Self::default() }
    }

    /// What everybody in the scope is allowed.
    pub(super) fn allowance(&self) -> Allowance {
        Allowance {
            rates: Rates {
                bits_per_second: self.bits_per_second.get(),
                packets_per_second: self.packets_per_second.get(),
            },
            burst_ms: self.burst.load(Ordering::Relaxed),
            bytes: self.bytes_max.get(),
            bytes_per_day: self.day_max.get(),
        }
    }

    /// Lets a packet pass under what everybody in the scope is allowed, or says what stands against it; nothing was
    /// taken then.
    ///
    /// # Errors
    /// [`DropReason::OverBandwidth`], [`DropReason::OverPackets`], or [`DropReason::OverBudget`].
    // [8656-5-15]
    pub fn charge(&self, now: Now, direction: Direction, bytes: u64) -> Result<(), DropReason> {
        self.charge_under(&self.allowance(), now, direction, bytes)
    }

    fn charge_under(&self, allowed: &Allowance, now: Now, direction: Direction, bytes: u64) -> Result<(), DropReason> {
        let at = nanoseconds(now.ticks);
        let burst = allowed.burst_ms.saturating_mul(1_000_000);
        let (packet, bits) = costs(allowed, bytes);
        if packet.is_some_and(|cost| !self.packets[direction as usize].take(at, cost, burst)) {
            return Err(DropReason::OverPackets);
        }
        if bits.is_some_and(|cost| !self.bits[direction as usize].take(at, cost, burst)) {
            self.give_back(direction, packet, None);
            return Err(DropReason::OverBandwidth);
        }
        if !self.spend(allowed, now.unix, bytes) {
            self.give_back(direction, packet, bits);
            return Err(DropReason::OverBudget);
        }
        Ok(())
    }

    fn give_back(&self, direction: Direction, packet: Option<u64>, bits: Option<u64>) {
        if let Some(cost) = packet {
            self.packets[direction as usize].give_back(cost);
        }
        if let Some(cost) = bits {
            self.bits[direction as usize].give_back(cost);
        }
    }

    fn spend(&self, allowed: &Allowance, unix: UnixSeconds, bytes: u64) -> bool {
        if let Some(max) = allowed.bytes {
            let spent = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= max)
            });
            if spent.is_err() {
                return false;
            }
        }
        let Some(max) = allowed.bytes_per_day else { return true };
        let spent = self.days.change(unix, |used| used.checked_add(bytes).filter(|used| *used <= max));
        if !spent && allowed.bytes.is_some() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        spent
    }

    /// Takes a charge back: the packet was stopped elsewhere.
    fn uncharge(&self, allowed: &Allowance, direction: Direction, bytes: u64) {
        let (packet, bits) = costs(allowed, bytes);
        self.give_back(direction, packet, bits);
        self.refund(allowed, bytes);
    }

    /// Gives bytes of the budgets back: they were charged and could not be sent.
    fn refund(&self, allowed: &Allowance, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        if allowed.bytes.is_some() {
            // The closure always has an answer.
            let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        if allowed.bytes_per_day.is_some() {
            self.days.give_back(bytes);
        }
    }

    /// A session ends for want of so many bytes: the rest of that budget is forfeited, or a few bytes would let the
    /// next session in, which would end for the same reason.
    fn forfeit(&self, allowed: &Allowance, unix: UnixSeconds, bytes: u64) {
        if let Some(max) = allowed.bytes {
            // Without enough left nothing changes by being late.
            let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used.saturating_add(bytes) > max).then(|| used.max(max))
            });
        }
        if let Some(max) = allowed.bytes_per_day {
            let _ = self.days.change(unix, |used| (used.saturating_add(bytes) > max).then(|| used.max(max)));
        }
    }

    /// Whether a budget of this allowance has nothing left for even one byte more.
    #[must_use]
    pub fn is_spent(&self, unix: UnixSeconds, allowed: &Allowance) -> bool {
        let total = allowed.bytes.is_some_and(|max| self.bytes.load(Ordering::Relaxed) >= max);
        total || allowed.bytes_per_day.is_some_and(|max| self.days.used(unix) >= max)
    }

    /// When everything it remembers will be forgotten or of no account; the past if it is so already.
    ///
    /// `expires_at` is the end of the credential that a budget without a day belongs to.
    #[must_use]
    pub fn matters_until(&self, now: Now, expires_at: UnixSeconds) -> UnixSeconds {
        let mut until = UnixSeconds(0);
        let ahead = self.bits.iter().chain(&self.packets).map(|bucket| bucket.0.load(Ordering::Relaxed)).max();
        if let Some(ahead) = ahead.and_then(|full_at| full_at.checked_sub(nanoseconds(now.ticks))).filter(|ns| *ns > 0)
        {
            until = UnixSeconds(now.unix.0 + ahead / NANOSECONDS + 1);
        }
        if self.bytes.load(Ordering::Relaxed) > 0 {
            until = until.max(expires_at);
        }
        if self.days.used(now.unix) > 0 {
            until = until.max(UnixSeconds((day_of(now.unix) + 1) * SECONDS_PER_DAY));
        }
        until
    }

    /// The last allocation of its scope is over: its budgets are remembered by the clock that no time server moves, too,
    /// so that a wall clock that is days ahead for a moment does not make them be forgotten.
    pub(super) fn keep(&self, now: Now, expires_at: UnixSeconds) {
        let mut seconds = 0;
        if self.bytes.load(Ordering::Relaxed) > 0 {
            seconds = expires_at.0.saturating_sub(now.unix.0);
        }
        if self.days.used(now.unix) > 0 {
            seconds = seconds.max(SECONDS_PER_DAY - now.unix.0 % SECONDS_PER_DAY);
        } else if self.days.is_used() {
            // Used on another day, as far as the wall clock knows now.
            seconds = seconds.max(SECONDS_PER_DAY);
        }
        let until = if seconds == 0 { Ticks(0) } else { now.ticks.plus_seconds(seconds) };
        self.kept_until.store(until.0, Ordering::Relaxed);
    }

    /// Whether [`Meter::keep`] still holds it.
    pub(super) fn is_kept(&self, now: Now) -> bool {
        now.ticks.0 < self.kept_until.load(Ordering::Relaxed)
    }
}

/// What a packet costs of both buckets, in nanoseconds; `None` where there is no limit.
fn costs(allowed: &Allowance, bytes: u64) -> (Option<u64>, Option<u64>) {
    let Rates { bits_per_second, packets_per_second } = allowed.rates;
    let bits = bits_per_second.map(|rate| cost(bytes.saturating_mul(8), rate));
    (packets_per_second.map(|rate| cost(1, rate)), bits)
}

/// A meter that an allocation passes.
#[derive(Clone, Debug)]
pub struct Passage {
    /// The scope's.
    pub meter: Arc<Meter>,
    /// What this allocation is allowed, where its credential is granted less than the scope; what it uses is charged
    /// to the scope all the same.
    pub narrow: Option<Box<Allowance>>,
}

impl Passage {
    fn allowed(&self) -> Allowance {
        self.narrow.as_ref().map_or_else(|| self.meter.allowance(), |narrow| **narrow)
    }
}

impl PartialEq for Passage {
    /// Whether they are the very same meter.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.meter, &other.meter) && self.narrow == other.narrow
    }
}

/// The meters that an allocation passes, the narrowest scope first, so that who floods takes nothing from others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meters(Option<Box<[Passage]>>);

impl Meters {
    /// These, in this order.
    #[must_use]
    pub fn new(meters: Vec<Passage>) -> Self {
        Self((!meters.is_empty()).then(|| meters.into()))
    }

    /// Whether nothing is metered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Only the meter that is an allocation's own, as a [`Quotas`](super::quota::Quotas) takes it over.
    pub(super) fn of_own(own: Option<&MeterState>) -> Self {
        let passage = |state| Passage { meter: Arc::new(Meter::from_state(state)), narrow: None };
        Self::new(own.map(passage).into_iter().collect())
    }

    /// The one that is the allocation's own.
    pub(super) fn own(&self) -> Option<&Arc<Meter>> {
        self.0.as_ref()?.first().map(|first| &first.meter).filter(|meter| meter.is_own)
    }

    /// Charges all of them, or none.
    ///
    /// # Errors
    /// The first that stands against it.
    #[inline]
    pub(super) fn charge(&self, now: Now, direction: Direction, bytes: u64) -> Result<(), DropReason> {
        match &self.0 {
            None => Ok(()),
            Some(meters) => charge_all(meters, now, direction, bytes),
        }
    }

    /// Gives bytes back that were charged and not sent.
    pub(super) fn refund(&self, bytes: u64) {
        for passage in self.0.iter().flatten() {
            passage.meter.refund(&passage.allowed(), bytes);
        }
    }
}

fn charge_all(meters: &[Passage], now: Now, direction: Direction, bytes: u64) -> Result<(), DropReason> {
    for (at, passage) in meters.iter().enumerate() {
        let allowed = passage.allowed();
        if let Err(why) = passage.meter.charge_under(&allowed, now, direction, bytes) {
            for charged in meters.iter().take(at) {
                charged.meter.uncharge(&charged.allowed(), direction, bytes);
            }
            if why == DropReason::OverBudget {
                passage.meter.forfeit(&allowed, now.unix, bytes);
            }
            return Err(why);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000 / SECONDS_PER_DAY * SECONDS_PER_DAY + SECONDS_PER_DAY / 2;

    fn at(ms: u64) -> Now {
        Now { ticks: Ticks(1_000_000 + ms), unix: UnixSeconds(NOON + ms / 1000) }
    }

    fn meter(allowance: Allowance) -> Meter {
        let meter = Meter::default();
        meter.allow(&allowance);
        meter
    }

    fn bits(bits_per_second: u64) -> Allowance {
        let rates = Rates { bits_per_second: Some(bits_per_second), ..Rates::default() };
        Allowance { rates, burst_ms: 1000, ..Allowance::default() }
    }

    #[test]
    fn a_bucket_lets_the_burst_pass_and_then_the_rate_each_way_for_itself() {
        let meter = meter(bits(80_000));
        let sent = |ms, direction| (0..1000).filter(|_| meter.charge(at(ms), direction, 100).is_ok()).count();
        assert_eq!(sent(0, Direction::ToPeer), 100, "one second of 10,000 bytes");
        assert_eq!(sent(0, Direction::ToClient), 100, "the other way has its own");
        assert_eq!(sent(10, Direction::ToPeer), 1, "100 bytes every 10 ms");
        assert_eq!(sent(510, Direction::ToPeer), 50);
        assert_eq!(sent(60_000, Direction::ToPeer), 100, "no more than the burst is saved up");
        assert_eq!(meter.charge(at(60_000), Direction::ToPeer, 1), Err(DropReason::OverBandwidth));
    }

    #[test]
    fn over_a_minute_the_rate_is_exact_whatever_the_packets_are() {
        let meter = meter(bits(1_000_000));
        let mut sent = 0;
        for ms in 0..60_000 {
            for size in [40, 160, 1200] {
                if meter.charge(at(ms), Direction::ToClient, size).is_ok() {
                    sent += size;
                }
            }
        }
        let allowed = 61 * 1_000_000 / 8;
        assert!(sent <= allowed && sent > allowed - 3000, "{sent} of {allowed}");
    }

    #[test]
    fn packets_are_limited_beside_bits_and_a_refusal_takes_nothing() {
        let mut allowance = bits(8_000);
        allowance.rates.packets_per_second = Some(10);
        let meter = meter(allowance);
        for _ in 0..5 {
            assert_eq!(meter.charge(at(0), Direction::ToPeer, 200), Ok(()));
        }
        for _ in 0..100 {
            assert_eq!(meter.charge(at(0), Direction::ToPeer, 200), Err(DropReason::OverBandwidth));
        }
        for _ in 0..5 {
            assert_eq!(meter.charge(at(0), Direction::ToPeer, 0), Ok(()), "packets were given back");
        }
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 0), Err(DropReason::OverPackets));
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_a_full_bucket() {
        let meter = meter(bits(800));
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 1000), Ok(()));
        assert_eq!(meter.charge(at(5_000), Direction::ToPeer, 1000), Err(DropReason::OverBandwidth));
        assert_eq!(meter.charge(at(10_000), Direction::ToPeer, 1000), Ok(()));
    }

    #[test]
    fn a_budget_is_spent_to_the_byte_both_ways_together_and_what_was_not_sent_comes_back() {
        let meter = meter(Allowance { bytes: Some(1000), ..Allowance::default() });
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 600), Ok(()));
        assert_eq!(meter.charge(at(0), Direction::ToClient, 401), Err(DropReason::OverBudget));
        assert_eq!(meter.charge(at(0), Direction::ToClient, 400), Ok(()));
        assert!(meter.is_spent(at(0).unix, &meter.allowance()));
        meter.refund(&meter.allowance(), 100);
        assert!(!meter.is_spent(at(0).unix, &meter.allowance()));
        assert_eq!(meter.charge(at(0), Direction::ToClient, 100), Ok(()));
        assert_eq!(meter.matters_until(at(0), UnixSeconds(NOON + 77)), UnixSeconds(NOON + 77));
    }

    #[test]
    fn a_day_has_its_own_bytes() {
        let meter = meter(Allowance { bytes_per_day: Some(1000), bytes: Some(1500), ..Allowance::default() });
        let tomorrow = at(SECONDS_PER_DAY / 2 * 1000);
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 1000), Ok(()));
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 1), Err(DropReason::OverBudget));
        assert!(meter.is_spent(at(0).unix, &meter.allowance()) && !meter.is_spent(tomorrow.unix, &meter.allowance()));
        assert_eq!(meter.matters_until(at(0), UnixSeconds(0)), tomorrow.unix);
        assert_eq!(
            meter.charge(tomorrow, Direction::ToPeer, 501),
            Err(DropReason::OverBudget),
            "500 of the whole are left"
        );
        assert_eq!(meter.charge(tomorrow, Direction::ToPeer, 500), Ok(()));
    }

    #[test]
    fn a_full_wide_meter_takes_nothing_from_a_narrow_one() {
        let narrow = Arc::new(meter(Allowance { bytes: Some(1000), ..bits(800_000) }));
        let wide = Arc::new(meter(Allowance { bytes: Some(100), ..Allowance::default() }));
        let meters = Meters::new([Arc::clone(&narrow), wide].map(|meter| Passage { meter, narrow: None }).into());
        assert_eq!(meters.charge(at(0), Direction::ToPeer, 101), Err(DropReason::OverBudget));
        assert_eq!(narrow.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(narrow.matters_until(at(0), UnixSeconds(5)), UnixSeconds(0), "its bucket is full again");
        assert_eq!(meters.charge(at(0), Direction::ToPeer, 1), Err(DropReason::OverBudget), "the rest is forfeited");
        assert!(Meters::new(Vec::new()).is_empty() && Meters::default().charge(at(0), Direction::ToPeer, 9).is_ok());
    }

    #[test]
    fn limits_change_and_what_was_used_stays_used() {
        let meter = meter(Allowance { bytes: Some(1000), ..Allowance::default() });
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 900), Ok(()));
        meter.allow(&Allowance { bytes: Some(950), ..Allowance::default() });
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 51), Err(DropReason::OverBudget));
        meter.allow(&Allowance::default());
        assert_eq!(meter.charge(at(0), Direction::ToPeer, 51), Ok(()));
        assert!(Allowance::default().is_unlimited() && !bits(1).is_unlimited());
    }
}
