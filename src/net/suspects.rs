//! Clients whose packets made a server panic, known to all workers: a stream that is opened again comes to any of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::FiveTuple;
use crate::time::Ticks;

/// How long a client over whose packets a server panicked twice is not heard, in seconds.
const IGNORED_SECONDS: u64 = 60;

/// Five-tuples that are remembered because of a panic; more of them end the process long before.
const SUSPECTS_MAX: usize = 64;

/// They, by address and port of both sides and transport, whenever the first panic was.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// With the end of the time in which they are not heard; the oldest first.
    known: Mutex<Vec<(FiveTuple, Option<Ticks>)>>,
    is_any_ignored: AtomicBool,
}

impl Suspects {
    fn known(&self) -> MutexGuard<'_, Vec<(FiveTuple, Option<Ticks>)>> {
        // Whole after each statement.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a client is not heard at the moment. As long as none is, this is one word.
    #[inline]
    pub(super) fn ignores(&self, five_tuple: &FiveTuple, now: Ticks) -> bool {
        self.is_any_ignored.load(Ordering::Relaxed) && self.is_ignored(five_tuple, now)
    }

    #[cold]
    fn is_ignored(&self, five_tuple: &FiveTuple, now: Ticks) -> bool {
        let mut known = self.known();
        let is_it = known.iter().any(|(known, until)| known == five_tuple && until.is_some_and(|until| now < until));
        if known.iter().all(|(_, until)| until.is_none_or(|until| until <= now)) {
            known.iter_mut().for_each(|(_, until)| *until = None);
            self.is_any_ignored.store(false, Ordering::Relaxed);
        }
        is_it
    }

    /// One more panic over a client's packets; `true` if it is not the first, and the client is not heard from now on.
    pub(super) fn note(&self, five_tuple: FiveTuple, now: Ticks) -> bool {
        let mut known = self.known();
        if let Some((_, until)) = known.iter_mut().find(|(known, _)| *known == five_tuple) {
            *until = Some(now.plus_seconds(IGNORED_SECONDS));
            self.is_any_ignored.store(true, Ordering::Relaxed);
            return true;
        }
        if known.len() == SUSPECTS_MAX {
            known.remove(0);
        }
        known.push((five_tuple, None));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddress, ServerAddress, Transport};

    fn client(port: u16) -> FiveTuple {
        FiveTuple {
            client: ClientAddress::new([9, 9, 9, 9].into(), port),
            server: ServerAddress::new([9, 9, 9, 8].into(), 3478),
            transport: Transport::Udp,
        }
    }

    #[test]
    fn the_second_panic_over_a_client_silences_it_for_a_minute() {
        let suspects = Suspects::default();
        let now = Ticks(1_000);
        assert!(!suspects.note(client(1), now));
        assert!(!suspects.ignores(&client(1), now));
        assert!(!suspects.note(client(2), now));
        assert!(suspects.note(client(1), now));
        assert!(suspects.ignores(&client(1), now) && !suspects.ignores(&client(2), now));
        assert!(suspects.ignores(&client(1), Ticks(60_999)));
        assert!(!suspects.ignores(&client(1), Ticks(61_000)));
        assert!(!suspects.is_any_ignored.load(Ordering::Relaxed), "no client is looked for any more");
        assert!(suspects.note(client(1), Ticks(70_000)), "it stays known");
    }

    #[test]
    fn no_more_suspects_are_kept_than_their_maximum() {
        let suspects = Suspects::default();
        for port in 0..1_000 {
            suspects.note(client(port), Ticks(0));
        }
        assert_eq!(suspects.known().len(), SUSPECTS_MAX);
        assert!(suspects.note(client(999), Ticks(0)));
    }
}
