//! The pool of `turn.alternates`: who of it takes clients, and how full this server is.
//!
//! Both are measured here and told to the workers as one small value; which client is sent where is the core's
//! (`protocol::redirect`). Decision: docs/decisions/0227-a-pool-of-alternate-servers.md.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::metrics::Text;
use crate::address::{Family, Transport};
use crate::config::Config;
use crate::net::Running;
use crate::probe::{self, Takes};
use crate::protocol::accounting::Amount;
use crate::protocol::pool::{LOAD_MAX, Pool, PoolState, Redirect};

/// How often each server of the pool is asked, from the end of one round to the beginning of the next.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How often the load is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// So much the load must fall, in thousandths, before the log tells again that it is above the threshold.
const HYSTERESIS: u16 = 50;

/// What IP and UDP add to a packet, as `limits.bandwidth` counts it (decision 0162), for IPv4.
const HEAD_BYTES: u64 = 28;

/// One address of the pool, by one transport.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Way {
    member: usize,
    address: SocketAddr,
    transport: Transport,
    takes: Option<Takes>,
    /// Why it does not take all clients.
    why: Option<String>,
}

/// What is known of the pool.
#[derive(Default)]
pub struct Alternates {
    ways: Mutex<Vec<Way>>,
    load: Mutex<u16>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Alternates {
    /// Follows the pool of this relay as long as it runs.
    #[must_use]
    pub fn start(running: &Arc<Running>) -> Arc<Self> {
        let alternates = Arc::new(Self::default());
        tokio::spawn(Arc::clone(&alternates).ask_again_and_again(Arc::downgrade(running)));
        tokio::spawn(Arc::clone(&alternates).measure_again_and_again(Arc::downgrade(running)));
        alternates
    }

    /// For `/metrics`; nothing without a pool.
    pub fn publish(&self, text: &mut Text) {
        let ways = lock(&self.ways).clone();
        if ways.is_empty() {
            return;
        }
        let up =
            ways.iter().map(|way| ([way.address.to_string()], [way.transport.name()], u8::from(way.why.is_none())));
        text.gauge("throughway_alternate_up", "1 while a server of turn.alternates takes clients by this transport")
            .each_of_two(["address", "transport"], up);
        text.gauge("throughway_load_ratio", "How full this server is, from 0 to 1, as turn.redirect sees it")
            .value(f64::from(*lock(&self.load)) / f64::from(LOAD_MAX));
    }

    /// For the status.
    #[must_use]
    pub fn status(&self) -> Value {
        let ways = lock(&self.ways);
        let ways = ways.iter().map(|way| {
            json!({
                "address": way.address, "transport": way.transport.name(), "up": way.why.is_none(), "why": way.why,
            })
        });
        json!({ "load_percent": *lock(&self.load) / 10, "servers": ways.collect::<Vec<_>>() })
    }

    async fn ask_again_and_again(self: Arc<Self>, running: Weak<Running>) {
        loop {
            let Some(relay) = running.upgrade() else { return };
            let config = relay.config().await;
            drop(relay);
            let ways = ask(&config.pool).await;
            let Some(relay) = running.upgrade() else { return };
            self.note(&config.pool, ways, &relay);
            drop(relay);
            self.rest(&running, &config).await;
        }
    }

    /// Waits until it is time to ask again, or the pool is another one.
    async fn rest(&self, running: &Weak<Running>, asked: &Config) {
        let end = tokio::time::Instant::now() + ASK_EVERY;
        while tokio::time::Instant::now() < end {
            tokio::time::sleep(MEASURE_EVERY).await;
            let Some(relay) = running.upgrade() else { return };
            if relay.config().await.pool.members != asked.pool.members {
                return;
            }
        }
    }

    /// Tells the workers and, of what has changed, the log.
    fn note(&self, pool: &Pool, ways: Vec<Way>, running: &Running) {
        let mut state = PoolState::new(pool);
        for way in &ways {
            match way.takes {
                Some(Takes::All) => state.set_up(way.member, way.transport),
                Some(Takes::WithoutPlace) => state.set_spare(way.member, way.transport),
                None => {}
            }
        }
        running.set_alternates(state);
        let mut before = lock(&self.ways);
        for way in &ways {
            let is_it = |old: &&Way| (old.address, old.transport) == (way.address, way.transport);
            let was = before.iter().find(is_it).map(|old| old.why.is_none());
            if was == Some(way.why.is_none()) {
                continue;
            }
            let (address, transport) = (way.address, way.transport.name());
            match &way.why {
                None => tracing::info!(%address, transport, "an alternate server takes clients"),
                Some(why) => {
                    tracing::warn!(%address, transport, why, "an alternate server takes no clients: none are sent there");
                }
            }
        }
        *before = ways;
    }

    async fn measure_again_and_again(self: Arc<Self>, running: Weak<Running>) {
        let (mut before, mut is_told) = (None, false);
        let mut looks = tokio::time::interval(MEASURE_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let at = looks.tick().await;
            let Some(relay) = running.upgrade() else { return };
            let config = relay.config().await;
            let traffic = Traffic::of(&relay);
            let rate = before.map_or(0, |(then, traffic_then): (tokio::time::Instant, Traffic)| {
                traffic.bits_per_second(traffic_then, at.duration_since(then))
            });
            before = Some((at, traffic));
            let load = load(&relay, &config, rate);
            relay.set_load(load);
            *lock(&self.load) = load;
            tell_of_load(load, config.pool.redirect, &mut is_told);
        }
    }
}

/// Says once that a threshold is passed.
fn tell_of_load(load: u16, redirect: Redirect, is_told: &mut bool) {
    let Redirect::Full { above } = redirect else { return };
    if load >= above && !*is_told {
        *is_told = true;
        tracing::warn!(
            percent = load / 10,
            "this server is fuller than turn.redirect_percent: new clients are sent to the alternate servers that take them"
        );
    } else if load.saturating_add(HYSTERESIS) < above && *is_told {
        *is_told = false;
        tracing::info!(percent = load / 10, "this server has room again: new clients are served here");
    }
}

/// Asks every server of a pool by every transport, all at once.
async fn ask(pool: &Pool) -> Vec<Way> {
    let ways = pool.members.iter().enumerate().flat_map(|(member, of)| {
        let address = move |transport| Some((member, of, of.address(transport)?, transport));
        Transport::ALL.into_iter().filter_map(address)
    });
    join_all(ways.map(|(member, of, address, transport)| async move {
        let asked = probe::ask(address, transport, of.name.as_deref()).await;
        let why = match &asked {
            Ok(Takes::All) => None,
            Ok(Takes::WithoutPlace) => {
                Some("it is nearly full, and takes those that find no place elsewhere".to_owned())
            }
            Err(why) => Some(why.to_string()),
        };
        Way { member, address, transport, takes: asked.ok(), why }
    }))
    .await
}

/// What was received, each way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Traffic {
    from_clients: u64,
    from_peers: u64,
}

impl Traffic {
    fn of(running: &Running) -> Self {
        let on_the_wire = |amount: Amount| amount.bytes + amount.packets * HEAD_BYTES;
        let mut traffic = Self { from_clients: 0, from_peers: 0 };
        for (core, _) in running.counters() {
            traffic.from_clients += on_the_wire(core.from_clients.get());
            traffic.from_peers += on_the_wire(core.from_peers.get());
        }
        traffic
    }

    /// Of the way with more of it.
    fn bits_per_second(self, before: Self, elapsed: Duration) -> u64 {
        let more = |now: u64, then: u64| now.saturating_sub(then);
        let bytes = more(self.from_clients, before.from_clients).max(more(self.from_peers, before.from_peers));
        let millis = elapsed.as_millis().max(1);
        u64::try_from(u128::from(bytes) * 8_000 / millis).unwrap_or(u64::MAX)
    }
}

/// How full this server is: by allocations, by bandwidth or by ports, whatever is fullest.
fn load(running: &Running, config: &Config, bits_per_second: u64) -> u16 {
    let limits = &config.limits.tables;
    if !running.has_relay_address() {
        return LOAD_MAX;
    }
    let allocations = limits.allocations.map_or(0, |max| share(running.usage().0.into(), max.into()));
    let bandwidth = limits.server.bits_per_second.map_or(0, |max| share(bits_per_second, max));
    let mut ports = [(0, 0); 2];
    for (address, counts, _) in running.relay_ports() {
        let (used, all) = &mut ports[Family::of(address.advertised) as usize];
        *used += counts.used as u64;
        *all += (counts.used + counts.free + counts.resting) as u64;
    }
    let ports = ports.into_iter().map(|(used, all)| share(used, all)).max().unwrap_or(0);
    allocations.max(bandwidth).max(ports)
}

/// In thousandths; of nothing it is nothing.
fn share(used: u64, all: u64) -> u16 {
    let thousandths = u128::from(used) * u128::from(LOAD_MAX);
    let share = thousandths.checked_div(u128::from(all)).unwrap_or(0).min(u128::from(LOAD_MAX));
    u16::try_from(share).unwrap_or(LOAD_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_in_thousandths_and_no_more_than_all() {
        assert_eq!((share(0, 0), share(1, 3), share(5, 5), share(9, 5)), (0, 333, 1000, 1000));
        assert_eq!(share(u64::MAX, u64::MAX), 1000);
    }

    #[test]
    fn the_busier_way_counts() {
        let (then, now) =
            (Traffic { from_clients: 0, from_peers: 500 }, Traffic { from_clients: 1000, from_peers: 600 });
        assert_eq!(now.bits_per_second(then, Duration::from_millis(500)), 16_000);
        assert_eq!(then.bits_per_second(now, Duration::ZERO), 0, "counters start anew after a panic");
    }

    #[test]
    fn the_log_is_told_once_until_there_is_clearly_room_again() {
        let (full, mut is_told) = (Redirect::Full { above: 900 }, false);
        let mut told = Vec::new();
        for load in [899, 900, 950, 890, 900, 849, 900] {
            tell_of_load(load, full, &mut is_told);
            told.push(is_told);
        }
        assert_eq!(told, [false, true, true, true, true, false, true]);
        is_told = false;
        tell_of_load(1000, Redirect::Always, &mut is_told);
        assert!(!is_told);
    }
}
