//! A seeded simulation: the whole core, one to four workers, on a virtual network and clock.
//!
//! `SIM_SEED=n cargo test --test simulation` replays one seed with a trace, `SIM_SEEDS=n` runs that many. A seed that fails
//! is tried again with fewer actions; `SIM_ACTIONS=1,2,3` beside `SIM_SEED` replays those alone, `SIM_WORKERS=n`
//! gives all of them so many workers.
//! Beside the servers runs a shadow model (`sim_support/model.rs`) that foretells each reply, each verdict and
//! each counter.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs, unreachable_pub)]

mod sim_support;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim_support::world::World;
use throughway::protocol::reason::{DropReason, EndReason};

/// Seeds of the ordinary run.
const SEEDS: u64 = 256;

/// Actions of one run.
const ACTIONS: u64 = 3_000;

/// Runs that a failing sequence is worth.
const ATTEMPTS: u32 = 300;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Runs a seed, with all actions or with these alone; the number of the last action if it fails.
fn attempt(seed: u64, trace: bool, only: Option<BTreeSet<u64>>, forbidden: Option<Forbidden>) -> Result<World, Failed> {
    let mut world = World::new(seed, trace);
    (world.only, world.forbidden) = (only, forbidden);
    match catch_unwind(AssertUnwindSafe(|| world.run(ACTIONS))) {
        Ok(()) => Ok(world),
        Err(panic) => Err(Failed { panic, action: world.action, step: world.step, at: world.now }),
    }
}

type Forbidden = fn(&World) -> bool;

struct Failed {
    panic: Box<dyn std::any::Any + Send>,
    action: u64,
    step: u64,
    at: u64,
}

/// The fewest actions that were found which still fail: parts are left out, large ones first, for so many attempts.
fn shrink(seed: u64, last: u64, forbidden: Option<Forbidden>, mut attempts: u32) -> BTreeSet<u64> {
    let mut kept: Vec<u64> = (1..=last).collect();
    let mut part = kept.len().div_ceil(2);
    while part > 0 {
        let mut from = 0;
        while from < kept.len() && attempts > 0 {
            attempts -= 1;
            let rest: Vec<u64> = kept
                .iter()
                .enumerate()
                .filter(|(at, _)| !(from..from + part).contains(at))
                .map(|(_, action)| *action)
                .collect();
            match attempt(seed, false, Some(rest.iter().copied().collect()), forbidden) {
                Err(failed) => kept = rest.into_iter().filter(|action| *action <= failed.action).collect(),
                Ok(_) => from += part,
            }
        }
        part = if attempts == 0 { 0 } else { part / 2 };
    }
    kept.into_iter().collect()
}

fn run(seed: u64, trace: bool, only: Option<BTreeSet<u64>>) -> World {
    let failed = match attempt(seed, trace, only.clone(), None) {
        Ok(world) => return world,
        Err(failed) => failed,
    };
    let Failed { panic, action, step, at } = failed;
    eprintln!("seed {seed} failed in step {step} at {at} ms, after {action} actions");
    if only.is_none() && !trace {
        // What the attempts print is of no use.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let fewest = shrink(seed, action, None, ATTEMPTS);
        std::panic::set_hook(hook);
        let list: Vec<String> = fewest.iter().map(ToString::to_string).collect();
        eprintln!("{} of them are enough: SIM_SEED={seed} SIM_ACTIONS={} shows them", list.len(), list.join(","));
    }
    resume_unwind(panic);
}

#[test]
fn core_does_what_the_model_foretells() {
    if let Some(seed) = number("SIM_SEED") {
        let only = std::env::var("SIM_ACTIONS").ok();
        let only = only.map(|list| list.split(',').map(|action| action.parse().expect("numbers of actions")).collect());
        run(seed, true, only);
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
                    let world = run(seed, false, None);
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
    restarts: u64,
    hand_overs: u64,
    rollbacks: u64,
    /// Of two relayed addresses: the second one given back, the first one, and those whose time was over.
    given_back: [u64; 2],
    expired: u64,
    /// See the world's.
    modern: [u64; 3],
    /// See the world's.
    connections: [u64; 5],
    /// Sessions of the other realm.
    others: u64,
    codes: BTreeMap<u16, u64>,
    drops: BTreeMap<&'static str, u64>,
}

impl Sum {
    fn add(&mut self, world: &World) {
        self.relayed += world.delivered;
        self.interims += world.interims;
        self.restarts += world.restarts;
        self.hand_overs += world.hand_overs;
        self.rollbacks += world.rollbacks;
        self.given_back = [0, 1].map(|which| self.given_back[which] + world.given_back[which]);
        self.expired += world.expired_addresses;
        self.others += world.others;
        self.modern = [0, 1, 2].map(|which| self.modern[which] + world.modern[which]);
        self.connections = [0, 1, 2, 3, 4].map(|which| self.connections[which] + world.connections[which]);
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
        assert!(self.restarts > 10_000, "hardly any server was taken over: {self:?}");
        let is_lost = self.given_back.iter().all(|count| *count > 50) && self.expired > 50;
        assert!(is_lost, "hardly one of two relayed addresses was lost: {self:?}");
        assert!(self.modern.iter().all(|count| *count > 100), "hardly a client knew RFC 8489: {self:?}");
        assert!(self.hand_overs > 3_000 && self.rollbacks > 1_000, "hardly any upgrade came about: {self:?}");
        assert!(self.connections.iter().all(|count| *count > 200), "hardly any connection to a peer: {self:?}");
        assert!(self.others > 500, "hardly a client had another realm: {self:?}");
        assert!(self.interims > 5_000, "hardly any session lived for a minute: {self:?}");
        assert!(self.created > 5_000 && self.relayed > 50_000, "too little happened: {self:?}");
        // No server of this world has a fault of its own, and none is killed.
        for why in EndReason::ALL.into_iter().filter(|why| !matches!(why, EndReason::Fault | EndReason::Crash)) {
            assert!(self.ended[why as usize] > 20, "hardly any allocation was {}: {self:?}", why.name());
        }
        for code in [400, 401, 403, 420, 437, 438, 440, 441, 442, 443, 446, 447, 486, 508] {
            assert!(self.codes.get(&code).is_some_and(|count| *count > 10), "{code} was hardly due: {self:?}");
        }
        // No reload of this world removes a listener, its packets have a source port, none makes the server panic, the answers and
        // failures of a network are not counted, no client asks for a hundred things a second, and none changes its network (that is
        // `simulation_mobility.rs`).
        let elsewhere = [
            DropReason::ListenerLeaving,
            DropReason::NoSourcePort,
            DropReason::Suspect,
            DropReason::OverReplies,
            DropReason::OverRequests,
            DropReason::OverFailures,
            DropReason::Moving,
        ]
        .map(DropReason::name);
        for (why, count) in self.drops.iter().filter(|(why, _)| !elsewhere.contains(*why)) {
            assert!(*count > 10, "{why} hardly happened: {self:?}");
        }
    }
}

#[test]
fn same_seed_gives_the_same_run() {
    let (one, two) = (run(3, false, None), run(3, false, None));
    assert_eq!((one.now, one.step, one.delivered), (two.now, two.step, two.delivered));
}

// A sequence of thousands is of no use to who must understand it.
#[test]
fn a_failing_sequence_shrinks_to_the_actions_that_matter() {
    let forbidden: Forbidden = |world| world.model.totals.iter().map(|totals| totals.created).sum::<u64>() >= 3;
    let Err(failed) = attempt(5, false, None, Some(forbidden)) else { panic!("three allocations come about") };
    let fewest = shrink(5, failed.action, Some(forbidden), 200);
    assert!(
        fewest.len() >= 3 && fewest.len() * 4 <= failed.action as usize + 12,
        "{} of {}",
        fewest.len(),
        failed.action
    );
    assert!(attempt(5, false, Some(fewest), Some(forbidden)).is_err(), "what is left still fails");
}
