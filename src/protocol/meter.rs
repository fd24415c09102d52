//! How much may pass: token buckets for bits and packets, budgets for bytes.
//!
//! One [`Meter`] stands for one scope (an allocation, a credential, a user, a tenant, a client prefix, the
//! server) and is shared by its allocations on all workers. All of it is atomics: a charge never waits, and a
//! limit is exact whoever charges at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::border::{DropReason, Way};
use super::time::{Now, Ticks, UnixSeconds};

const NANOSECONDS: u64 = 1_000_000_000;
const SECONDS_PER_DAY: u64 = 86_400;

/// The bytes of a day fill the low bits of a word, the day the high ones: 256 TiB a day, until the year 2149.
const DAY_SHIFT: u32 = 48;
const DAY_BYTES: u64 = (1 << DAY_SHIFT) - 1;

/// Limits of one scope; `None` means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rates {
    /// Payload bits per second, each way.
    pub bits_per_second: Option<u64>,
    /// Packets per second, each way.
    pub packets_per_second: Option<u64>,
}

/// All that a meter limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allowance {
    /// Rates.
    pub rates: Rates,
    /// How long a flow may run ahead of its rate, in milliseconds.
    pub burst_ms: u64,
    /// Payload bytes, both ways together, as long as the meter lives.
    pub bytes: Option<u64>,
    /// Payload bytes, both ways together, of a day (UTC).
    pub bytes_per_day: Option<u64>,
}

impl Allowance {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.rates == Rates::default() && self.bytes.is_none() && self.bytes_per_day.is_none()
    }
}

/// A token bucket as the time at which it will be full again: one word, so one exchange decides.
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Takes what costs so many nanoseconds of the rate, if the bucket then is at most `burst` ahead of `now`.
    fn take(&self, now: u64, cost: u64, burst: u64) -> bool {
        // What is larger than the burst passes a bucket that is full, or it never would.
        let limit = now.saturating_add(burst.max(cost));
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now).saturating_add(cost);
                (next <= limit).then_some(next)
            })
            .is_ok()
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
    burst: AtomicU64,
    bits: [Bucket; 2],
    packets: [Bucket; 2],
    bytes_max: Limit,
    bytes: AtomicU64,
    day_max: Limit,
    day: AtomicU64,
}

/// What one packet costs in nanoseconds at a rate.
const fn cost(amount: u64, per_second: u64) -> u64 {
    // 65,507 bytes are 5.3e14 here: far from the end of the word.
    match (amount * NANOSECONDS).checked_div(per_second) {
        Some(cost) => cost,
        None => u64::MAX,
    }
}

const fn nanoseconds(ticks: Ticks) -> u64 {
    ticks.0 * 1_000_000
}

const fn day_of(unix: UnixSeconds) -> u64 {
    unix.0 / SECONDS_PER_DAY
}

impl Meter {
    /// Sets what is allowed from now on; what was used stays used.
    pub fn allow(&self, allowance: &Allowance) {
        self.bits_per_second.set(allowance.rates.bits_per_second);
        self.packets_per_second.set(allowance.rates.packets_per_second);
        self.burst.store(allowance.burst_ms * 1_000_000, Ordering::Relaxed);
        self.bytes_max.set(allowance.bytes);
        self.day_max.set(allowance.bytes_per_day);
    }

    /// Lets a packet pass, or says what stands against it; nothing was taken then.
    ///
    /// # Errors
    /// [`DropReason::OverBandwidth`], [`DropReason::OverPackets`], or [`DropReason::OverBudget`].
    pub fn charge(&self, now: Now, way: Way, bytes: u64) -> Result<(), DropReason> {
        let at = nanoseconds(now.ticks);
        let burst = self.burst.load(Ordering::Relaxed);
        let packet = self.packets_per_second.get().map(|rate| cost(1, rate));
        if packet.is_some_and(|cost| !self.packets[way as usize].take(at, cost, burst)) {
            return Err(DropReason::OverPackets);
        }
        let bits = self.bits_per_second.get().map(|rate| cost(bytes * 8, rate));
        if bits.is_some_and(|cost| !self.bits[way as usize].take(at, cost, burst)) {
            self.give_back(way, packet, None);
            return Err(DropReason::OverBandwidth);
        }
        if !self.spend(now.unix, bytes) {
            self.give_back(way, packet, bits);
            return Err(DropReason::OverBudget);
        }
        Ok(())
    }

    fn give_back(&self, way: Way, packet: Option<u64>, bits: Option<u64>) {
        if let Some(cost) = packet {
            self.packets[way as usize].give_back(cost);
        }
        if let Some(cost) = bits {
            self.bits[way as usize].give_back(cost);
        }
    }

    fn spend(&self, unix: UnixSeconds, bytes: u64) -> bool {
        if let Some(max) = self.bytes_max.get() {
            let spent = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= max)
            });
            if spent.is_err() {
                return false;
            }
        }
        let Some(max) = self.day_max.get() else { return true };
        let today = day_of(unix);
        let spent = self.day.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let used = if word >> DAY_SHIFT == today { word & DAY_BYTES } else { 0 };
            let used = used.checked_add(bytes).filter(|used| *used <= max.min(DAY_BYTES))?;
            Some(today << DAY_SHIFT | used)
        });
        if spent.is_err() && self.bytes_max.get().is_some() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        spent.is_ok()
    }

    /// Takes a charge back: the packet was stopped elsewhere.
    fn uncharge(&self, way: Way, bytes: u64) {
        let packet = self.packets_per_second.get().map(|rate| cost(1, rate));
        self.give_back(way, packet, self.bits_per_second.get().map(|rate| cost(bytes * 8, rate)));
        self.refund(bytes);
    }

    /// Gives bytes of the budgets back: they were charged and could not be sent.
    fn refund(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        if self.bytes_max.get().is_some() {
            // The closure always has an answer.
            let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        if self.day_max.get().is_some() {
            // What was charged a moment before midnight may be given back to the day after: never more than it spent.
            let _ = self
                .day
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(word - (word & DAY_BYTES).min(bytes)));
        }
    }

    /// A session ends for want of so many bytes: the rest of that budget is forfeited, or a few bytes would let the
    /// next session in, which would end for the same reason.
    fn forfeit(&self, unix: UnixSeconds, bytes: u64) {
        if let Some(max) = self.bytes_max.get() {
            // Without enough left nothing changes by being late.
            let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used.saturating_add(bytes) > max).then(|| used.max(max))
            });
        }
        if let Some(max) = self.day_max.get() {
            let today = day_of(unix);
            let _ = self.day.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let used = if word >> DAY_SHIFT == today { word & DAY_BYTES } else { 0 };
                let max = max.min(DAY_BYTES);
                (used.saturating_add(bytes) > max).then(|| today << DAY_SHIFT | used.max(max))
            });
        }
    }

    /// Whether a budget has nothing left for even one byte more.
    #[must_use]
    pub fn is_spent(&self, unix: UnixSeconds) -> bool {
        let total = self.bytes_max.get().is_some_and(|max| self.bytes.load(Ordering::Relaxed) >= max);
        total
            || self.day_max.get().is_some_and(|max| {
                let word = self.day.load(Ordering::Relaxed);
                word >> DAY_SHIFT == day_of(unix) && word & DAY_BYTES >= max
            })
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
        let word = self.day.load(Ordering::Relaxed);
        if word & DAY_BYTES > 0 && word >> DAY_SHIFT == day_of(now.unix) {
            until = until.max(UnixSeconds((day_of(now.unix) + 1) * SECONDS_PER_DAY));
        }
        until
    }
}

/// The meters that an allocation passes, the narrowest scope first, so that who floods takes nothing from others.
#[derive(Clone, Debug, Default)]
pub struct Meters(Option<Box<[Arc<Meter>]>>);

impl PartialEq for Meters {
    /// Whether they are the very same meters.
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(two)) => one.len() == two.len() && one.iter().zip(two).all(|(a, b)| Arc::ptr_eq(a, b)),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}

impl Meters {
    /// These, in this order.
    #[must_use]
    pub fn new(meters: Vec<Arc<Meter>>) -> Self {
        Self((!meters.is_empty()).then(|| meters.into()))
    }

    /// Whether nothing is metered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Charges all of them, or none.
    ///
    /// # Errors
    /// The first that stands against it.
    #[inline]
    pub(super) fn charge(&self, now: Now, way: Way, bytes: usize) -> Result<(), DropReason> {
        match &self.0 {
            None => Ok(()),
            Some(meters) => charge_all(meters, now, way, bytes as u64),
        }
    }

    /// Gives bytes back that were charged and not sent.
    pub(super) fn refund(&self, bytes: u64) {
        for meter in self.0.iter().flatten() {
            meter.refund(bytes);
        }
    }
}

fn charge_all(meters: &[Arc<Meter>], now: Now, way: Way, bytes: u64) -> Result<(), DropReason> {
    for (at, meter) in meters.iter().enumerate() {
        if let Err(why) = meter.charge(now, way, bytes) {
            for charged in &meters[..at] {
                charged.uncharge(way, bytes);
            }
            if why == DropReason::OverBudget {
                meter.forfeit(now.unix, bytes);
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
        let sent = |ms, way| (0..1000).filter(|_| meter.charge(at(ms), way, 100).is_ok()).count();
        assert_eq!(sent(0, Way::ToPeer), 100, "one second of 10,000 bytes");
        assert_eq!(sent(0, Way::ToClient), 100, "the other way has its own");
        assert_eq!(sent(10, Way::ToPeer), 1, "100 bytes every 10 ms");
        assert_eq!(sent(510, Way::ToPeer), 50);
        assert_eq!(sent(60_000, Way::ToPeer), 100, "no more than the burst is saved up");
        assert_eq!(meter.charge(at(60_000), Way::ToPeer, 1), Err(DropReason::OverBandwidth));
    }

    #[test]
    fn over_a_minute_the_rate_is_exact_whatever_the_packets_are() {
        let meter = meter(bits(1_000_000));
        let mut sent = 0;
        for ms in 0..60_000 {
            for size in [40, 160, 1200] {
                if meter.charge(at(ms), Way::ToClient, size).is_ok() {
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
            assert_eq!(meter.charge(at(0), Way::ToPeer, 200), Ok(()));
        }
        for _ in 0..100 {
            assert_eq!(meter.charge(at(0), Way::ToPeer, 200), Err(DropReason::OverBandwidth));
        }
        for _ in 0..5 {
            assert_eq!(meter.charge(at(0), Way::ToPeer, 0), Ok(()), "packets were given back");
        }
        assert_eq!(meter.charge(at(0), Way::ToPeer, 0), Err(DropReason::OverPackets));
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_a_full_bucket() {
        let meter = meter(bits(800));
        assert_eq!(meter.charge(at(0), Way::ToPeer, 1000), Ok(()));
        assert_eq!(meter.charge(at(5_000), Way::ToPeer, 1000), Err(DropReason::OverBandwidth));
        assert_eq!(meter.charge(at(10_000), Way::ToPeer, 1000), Ok(()));
    }

    #[test]
    fn a_budget_is_spent_to_the_byte_both_ways_together_and_what_was_not_sent_comes_back() {
        let meter = meter(Allowance { bytes: Some(1000), ..Allowance::default() });
        assert_eq!(meter.charge(at(0), Way::ToPeer, 600), Ok(()));
        assert_eq!(meter.charge(at(0), Way::ToClient, 401), Err(DropReason::OverBudget));
        assert_eq!(meter.charge(at(0), Way::ToClient, 400), Ok(()));
        assert!(meter.is_spent(at(0).unix));
        meter.refund(100);
        assert!(!meter.is_spent(at(0).unix));
        assert_eq!(meter.charge(at(0), Way::ToClient, 100), Ok(()));
        assert_eq!(meter.matters_until(at(0), UnixSeconds(NOON + 77)), UnixSeconds(NOON + 77));
    }

    #[test]
    fn a_day_has_its_own_bytes() {
        let meter = meter(Allowance { bytes_per_day: Some(1000), bytes: Some(1500), ..Allowance::default() });
        let tomorrow = at(SECONDS_PER_DAY / 2 * 1000);
        assert_eq!(meter.charge(at(0), Way::ToPeer, 1000), Ok(()));
        assert_eq!(meter.charge(at(0), Way::ToPeer, 1), Err(DropReason::OverBudget));
        assert!(meter.is_spent(at(0).unix) && !meter.is_spent(tomorrow.unix));
        assert_eq!(meter.matters_until(at(0), UnixSeconds(0)), tomorrow.unix);
        assert_eq!(meter.charge(tomorrow, Way::ToPeer, 501), Err(DropReason::OverBudget), "500 of the whole are left");
        assert_eq!(meter.charge(tomorrow, Way::ToPeer, 500), Ok(()));
    }

    #[test]
    fn a_full_wide_meter_takes_nothing_from_a_narrow_one() {
        let narrow = Arc::new(meter(Allowance { bytes: Some(1000), ..bits(800_000) }));
        let wide = Arc::new(meter(Allowance { bytes: Some(100), ..Allowance::default() }));
        let meters = Meters::new(vec![Arc::clone(&narrow), wide]);
        assert_eq!(meters.charge(at(0), Way::ToPeer, 101), Err(DropReason::OverBudget));
        assert_eq!(narrow.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(narrow.matters_until(at(0), UnixSeconds(5)), UnixSeconds(0), "its bucket is full again");
        assert_eq!(meters.charge(at(0), Way::ToPeer, 1), Err(DropReason::OverBudget), "the rest is forfeited");
        assert!(Meters::new(Vec::new()).is_empty() && Meters::default().charge(at(0), Way::ToPeer, 9).is_ok());
    }

    #[test]
    fn limits_change_and_what_was_used_stays_used() {
        let meter = meter(Allowance { bytes: Some(1000), ..Allowance::default() });
        assert_eq!(meter.charge(at(0), Way::ToPeer, 900), Ok(()));
        meter.allow(&Allowance { bytes: Some(950), ..Allowance::default() });
        assert_eq!(meter.charge(at(0), Way::ToPeer, 51), Err(DropReason::OverBudget));
        meter.allow(&Allowance::default());
        assert_eq!(meter.charge(at(0), Way::ToPeer, 51), Ok(()));
        assert!(Allowance::default().is_unlimited() && !bits(1).is_unlimited());
    }
}
