//! The real binary on loopback, and what talks to it: clients, peers, a scraper of `/metrics`, a reader of its log.
//!
//! Nothing here sleeps for luck: a test waits for an answer, a log line or a counter, and fails with its name.

pub mod client;
pub mod hook;
pub mod http;
pub mod log;
pub mod operator;
pub mod peer;
pub mod server;
pub mod tls;
pub mod upgrade;

use std::time::{Duration, Instant};

pub use client::{Client, Data, Origin, Response, Wanted};
pub use peer::{Echo, Witness, peer, receive};
pub use server::{Directory, Server, Settings};

/// How long anything may take before a test gives up on it; generous, because machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a test watches for something that must not come.
pub const SILENCE: Duration = Duration::from_millis(150);

/// Waits until a question has an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that are the same nowhere else, so that a swapped or cut payload is seen.
pub fn payload(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Makes each case a test with one worker and a test with three.
#[macro_export]
macro_rules! with_one_and_three_workers {
    ($($(#[doc = $doc:literal])* fn $name:ident($workers:ident: u8) $body:block)+) => {
        $(
            mod $name {
                use super::*;

                $(#[doc = $doc])*
                fn case($workers: u8) $body

                #[test]
                fn one_worker() {
                    case(1);
                }

                #[test]
                fn three_workers() {
                    case(3);
                }
            }
        )+
    };
}
