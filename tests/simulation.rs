//! A seeded simulation: the whole core, one to four workers, on a virtual network and clock.
//!
//! `SIM_SEED=n cargo test --test simulation` replays one seed with a trace, `SIM_SEEDS=n` runs that many.
//! Beside the servers runs a shadow model (`sim_support/model.rs`) that foretells each reply, each verdict and
//! each counter.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs, unreachable_pub)]

mod sim_support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim_support::world::World;
use throughway::protocol::border::{DropReason, EndReason};

/// Seeds of the ordinary run.
const SEEDS: u64 = 256;

/// Events of one run.
const STEPS: u64 = 6_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

fn run(seed: u64, trace: bool) -> World {
    let mut world = World::new(seed, trace);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run(STEPS))) {
        eprintln!("seed {seed} failed in step {} at {} ms; SIM_SEED={seed} replays it", world.step, world.now);
        resume_unwind(panic);
    }
    world
}

#[test]
fn core_does_what_the_model_foretells() {
    if let Some(seed) = number("SIM_SEED") {
        run(seed, true);
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let world = run(seed, false);
                    sum.lock().unwrap().add(&world);
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    eprintln!("{seeds} seeds: {sum:?}");
    if seeds >= SEEDS {
        sum.check();
    }
}

/// What happened in all runs together: a simulation in which nothing happens proves nothing.
#[derive(Default, Debug)]
struct Sum {
    created: u64,
    ended: [u64; EndReason::ALL.len()],
    relayed: u64,
    interims: u64,
    codes: BTreeMap<u16, u64>,
    drops: BTreeMap<&'static str, u64>,
}

impl Sum {
    fn add(&mut self, world: &World) {
        self.relayed += world.delivered;
        self.interims += world.interims;
        for totals in &world.model.totals {
            self.created += totals.created;
            self.ended.iter_mut().zip(totals.ended).for_each(|(sum, ended)| *sum += ended);
            for why in DropReason::ALL {
                *self.drops.entry(why.name()).or_default() += totals.drops[*why as usize].packets;
            }
        }
        for (code, count) in &world.codes {
            *self.codes.entry(*code).or_default() += count;
        }
    }

    fn check(&self) {
        assert!(self.interims > 5_000, "hardly any session lived for a minute: {self:?}");
        assert!(self.created > 5_000 && self.relayed > 50_000, "too little happened: {self:?}");
        for why in EndReason::ALL {
            assert!(self.ended[why as usize] > 20, "hardly any allocation was {}: {self:?}", why.name());
        }
        for code in [400, 401, 403, 420, 437, 438, 440, 441, 442, 443, 486, 508] {
            assert!(self.codes.get(&code).is_some_and(|count| *count > 10), "{code} was hardly due: {self:?}");
        }
        // No reload of this world removes a listener.
        for (why, count) in self.drops.iter().filter(|(why, _)| **why != DropReason::ListenerLeaving.name()) {
            assert!(*count > 10, "{why} hardly happened: {self:?}");
        }
    }
}

#[test]
fn same_seed_gives_the_same_run() {
    let (one, two) = (run(3, false), run(3, false));
    assert_eq!((one.now, one.step, one.delivered), (two.now, two.step, two.delivered));
}
