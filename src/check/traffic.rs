//! Figures: round-trip time, sizes that pass, and a short burst that never sends more than was asked for.

use std::time::Duration;

use tokio::time::Instant;

use crate::check::client::Client;
use crate::check::relay::{CHANNEL, FarEnd};
use crate::check::report::Step;

/// Payload of the burst's packets, as a call's video has them.
const BURST_PAYLOAD_BYTES: usize = 1000;

/// How many Bindings measure the round trip.
const PINGS: usize = 20;

/// How long all of them may take.
const PINGS_WITHIN: Duration = Duration::from_secs(2);

/// Above this a call is felt to lag.
const ROUND_TRIP_WARN: Duration = Duration::from_millis(300);

/// Payload sizes; up to 1,200 must pass, because browsers send that much.
const SIZES: [usize; 9] = [500, 1000, 1200, 1400, 1472, 1500, 2000, 4000, 8000];

/// What WebRTC sends without asking.
const SIZE_NEEDED: usize = 1200;

/// Above this share of lost packets a call suffers, and above the second it fails.
const LOSS_WARN_PERCENT: f64 = 2.0;
const LOSS_FAIL_PERCENT: f64 = 20.0;

/// The bounded burst.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Burst {
    duration: Duration,
    bits_per_second: u64,
}

impl Burst {
    /// For so long, so many bits of payload per second.
    #[must_use]
    pub const fn new(duration: Duration, bits_per_second: u64) -> Self {
        Self { duration, bits_per_second }
    }

    pub(super) fn seconds(&self) -> f64 {
        if self.bits_per_second == 0 { 0.0 } else { self.duration.as_secs_f64() }
    }

    /// How many packets that is, rounded down: never more than was asked for.
    fn packets(&self) -> u32 {
        let bits = self.duration.as_secs_f64() * self.bits_per_second as f64;
        (bits / (BURST_PAYLOAD_BYTES * 8) as f64) as u32
    }

    fn gap(&self) -> Duration {
        Duration::from_secs_f64((BURST_PAYLOAD_BYTES * 8) as f64 / self.bits_per_second.max(1) as f64)
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

/// Median and 95th percentile.
fn percentiles(times: &mut [Duration]) -> Option<(Duration, Duration)> {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied();
    Some((at(50)?, at(95)?))
}

/// Bindings one after the other.
pub(super) async fn round_trips(client: &Client) -> Step {
    let (mut times, mut sent) = (Vec::new(), 0_usize);
    let deadline = Instant::now() + PINGS_WITHIN;
    while sent < PINGS {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        sent += 1;
        if let Some(time) = client.ping(left.min(Duration::from_secs(1))).await {
            times.push(time);
        }
    }
    let lost = sent - times.len();
    let Some((median, p95)) = percentiles(&mut times) else {
        return Step::fail(
            "round-trip",
            format!("{sent} Bindings were lost"),
            "look for loss on the way to the server",
        );
    };
    let lost_text = if lost == 0 { String::new() } else { format!(", {lost} of {sent} lost") };
    let text = format!("median {} ms, p95 {} ms{lost_text}", milliseconds(median), milliseconds(p95));
    let step = if median > ROUND_TRIP_WARN {
        Step::warn("round-trip", text, "calls lag at this distance: offer a server nearer to these clients")
    } else if lost > 1 {
        Step::warn("round-trip", text, "look for loss on the way to the server")
    } else {
        Step::ok("round-trip", text)
    };
    step.with("median_ms", milliseconds(median)).with("p95_ms", milliseconds(p95)).with("lost", lost)
}

fn sized(number: usize, size: usize) -> Vec<u8> {
    let mut payload = vec![number as u8; size];
    payload[..8].copy_from_slice(&(size as u64).to_be_bytes());
    payload
}

/// Sends each size and says which ones passed, there and back.
pub(super) async fn sizes(client: &mut Client, far: &mut FarEnd<'_>, within: Duration) -> Step {
    let mut there = [false; SIZES.len()];
    let mut back = [false; SIZES.len()];
    let pause = within / 5;
    for _ in 0..3 {
        for (number, size) in SIZES.into_iter().enumerate().filter(|(number, _)| !there[*number]) {
            // Too long for this machine's link is the same as lost.
            let _ = client.send_channel(CHANNEL, &sized(number, size)).await;
        }
        while let Some(payload) = far.receive(pause).await {
            note(&payload, &mut there);
            if there.iter().all(|passed| *passed) {
                break;
            }
        }
        for (number, size) in SIZES.into_iter().enumerate().filter(|(number, _)| !back[*number]) {
            let _ = far.send(&sized(number, size)).await;
        }
        while let Some(arrival) = client.link.arrival(pause).await {
            note(&arrival.payload, &mut back);
            if back.iter().all(|passed| *passed) {
                break;
            }
        }
        if there.iter().chain(&back).all(|passed| *passed) {
            break;
        }
    }
    judge_sizes(&there, &back)
}

fn note(payload: &[u8], passed: &mut [bool; SIZES.len()]) {
    if let Some(number) = SIZES.iter().position(|size| *size == payload.len())
        && payload == sized(number, payload.len())
    {
        passed[number] = true;
    }
}

fn judge_sizes(there: &[bool; SIZES.len()], back: &[bool; SIZES.len()]) -> Step {
    // The longest of those up to which everything passed.
    let largest = |passed: &[bool]| {
        SIZES.iter().zip(passed).take_while(|(_, passed)| **passed).last().map_or(0, |(size, _)| *size)
    };
    let (up, down) = (largest(there), largest(back));
    let text = if up == down {
        format!("up to {up} bytes pass")
    } else {
        format!("up to {up} bytes pass to the peer, {down} to the client")
    };
    let step = if up.min(down) < SIZE_NEEDED {
        Step::fail(
            "sizes",
            text,
            "WebRTC sends 1,200 bytes at a time: look for a tunnel with a small MTU on the way, and let ICMP \"fragmentation needed\" pass",
        )
    } else if up.min(down) < SIZES[SIZES.len() - 1] {
        Step::ok("sizes", format!("{text}; larger ones need fragments, which are lost on the way"))
    } else {
        Step::ok("sizes", text)
    };
    step.with("to_peer", up).with("to_client", down)
}

/// What a burst came to.
#[derive(Default)]
struct Tally {
    sent: u32,
    received: u32,
    reordered: u32,
    took: Duration,
    delays: Vec<Duration>,
}

/// Packets at a steady rate from the client to the far end.
pub(super) async fn burst(client: &Client, far: &mut FarEnd<'_>, burst: &Burst) -> Step {
    let packets = burst.packets();
    if packets == 0 {
        return Step::skip("burst", "so little time and rate make no packet");
    }
    let mut tally = Tally::default();
    let mut sent_at = Vec::new();
    let mut seen = vec![false; packets as usize];
    let mut highest = 0;
    let mut ticks = tokio::time::interval(burst.gap());
    // A late tick must not be made up for by a faster rate.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = Instant::now();
    // A packet under way when the last is sent still has half a second.
    let mut end = started + burst.duration + Duration::from_millis(500);
    loop {
        let is_sending = tally.sent < packets && started.elapsed() < burst.duration;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || (!is_sending && tally.received == tally.sent) {
            break;
        }
        tokio::select! {
            _ = ticks.tick(), if is_sending => {
                let mut payload = vec![0x5A; BURST_PAYLOAD_BYTES];
                payload[..4].copy_from_slice(&tally.sent.to_be_bytes());
                sent_at.push(Instant::now());
                tally.sent += 1;
                if client.send_channel(CHANNEL, &payload).await.is_err() {
                    end = Instant::now();
                }
            }
            arrived = far.receive(left) => {
                let Some(payload) = arrived else { continue };
                let number = payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                let Some(number) = number.filter(|number| *number < tally.sent && payload.len() == BURST_PAYLOAD_BYTES) else { continue };
                if !std::mem::replace(&mut seen[number as usize], true) {
                    tally.received += 1;
                    tally.reordered += u32::from(number < highest);
                    highest = highest.max(number);
                    tally.delays.push(sent_at[number as usize].elapsed());
                    // The last packet's turn lasts until the next one would be sent.
                    tally.took = started.elapsed() + burst.gap();
                }
            }
        }
    }
    judge_burst(tally)
}

fn judge_burst(mut tally: Tally) -> Step {
    let lost = tally.sent - tally.received;
    let percent = f64::from(lost) * 100.0 / f64::from(tally.sent.max(1));
    let percent = (percent * 10.0).round() / 10.0;
    let bits = f64::from(tally.received) * (BURST_PAYLOAD_BYTES * 8) as f64;
    let rate = if tally.took.is_zero() { 0.0 } else { bits / tally.took.as_secs_f64() / 1e6 };
    let rate = (rate * 100.0).round() / 100.0;
    let (median, p95) = percentiles(&mut tally.delays).unwrap_or_default();
    let text = format!(
        "{} of {} packets arrived at {rate} Mbit/s ({percent} % lost, {} late), relayed within {} ms (p95 {} ms)",
        tally.received,
        tally.sent,
        tally.reordered,
        milliseconds(median),
        milliseconds(p95)
    );
    let remedy = "look for a full link, a busy server (its load, socket buffer drops) or a limit of bandwidth, and compare with a lower --burst-rate";
    let step = if percent > LOSS_FAIL_PERCENT {
        Step::fail("burst", text, remedy)
    } else if percent > LOSS_WARN_PERCENT {
        Step::warn("burst", text, remedy)
    } else {
        Step::ok("burst", text)
    };
    step.with("sent", tally.sent)
        .with("received", tally.received)
        .with("loss_percent", percent)
        .with("mbit_per_second", rate)
        .with("median_ms", milliseconds(median))
        .with("p95_ms", milliseconds(p95))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;

    #[test]
    fn percentiles_come_from_the_sorted_times() {
        let mut times: Vec<Duration> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!(percentiles(&mut times), Some((Duration::from_millis(11), Duration::from_millis(20))));
        assert_eq!(
            percentiles(&mut [Duration::from_millis(3)]),
            Some((Duration::from_millis(3), Duration::from_millis(3)))
        );
        assert_eq!(percentiles(&mut []), None);
    }

    #[test]
    fn a_burst_is_never_more_than_was_asked_for() {
        let burst = |seconds, bits| Burst::new(Duration::from_secs_f64(seconds), bits);
        assert_eq!(burst(2.0, 1_000_000).packets(), 250);
        assert_eq!(burst(0.1, 79_000).packets(), 0);
        assert_eq!(burst(2.0, 1_000_000).gap(), Duration::from_millis(8));
        assert_eq!(burst(2.0, 0).seconds(), 0.0);
    }

    #[test]
    fn loss_is_judged_by_its_share() {
        let tally = |received| Tally { sent: 100, received, took: Duration::from_secs(1), ..Tally::default() };
        for (received, outcome) in
            [(100, Outcome::Ok), (98, Outcome::Ok), (95, Outcome::Warn), (70, Outcome::Fail), (0, Outcome::Fail)]
        {
            assert_eq!(judge_burst(tally(received)).outcome, outcome, "{received}");
        }
        assert_eq!(judge_burst(tally(95)).values["loss_percent"], 5.0);
        assert_eq!(judge_burst(tally(100)).values["mbit_per_second"], 0.8);
    }

    #[test]
    fn what_browsers_send_must_pass() {
        let passed = |count: usize| std::array::from_fn(|number| number < count);
        assert_eq!(judge_sizes(&passed(9), &passed(9)).outcome, Outcome::Ok);
        let some = judge_sizes(&passed(4), &passed(9));
        assert!(some.outcome == Outcome::Ok && some.detail.contains("1400 bytes pass to the peer, 8000"), "{some:?}");
        assert_eq!(judge_sizes(&passed(2), &passed(9)).outcome, Outcome::Fail);
        assert_eq!(judge_sizes(&passed(0), &passed(9)).values["to_peer"], 0);
        let mut seen = [false; SIZES.len()];
        note(&sized(2, 1200), &mut seen);
        note(&[0; 500], &mut seen);
        assert_eq!(seen.iter().filter(|passed| **passed).count(), 1);
    }
}
