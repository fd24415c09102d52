//! How busy a worker is: whether it pays to let packets gather, and how many to ask a socket for.

use std::os::fd::BorrowedFd;

use crate::net::sys;
use crate::protocol::time::Ticks;

/// From so many datagrams per millisecond on, the next ones come within the time that is waited.
const FAST: u64 = 50;

/// Milliseconds over which the rate is taken.
const WINDOW: u64 = 10;

/// The rate of datagrams, without another look at a clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    since: Ticks,
    datagrams: u64,
    is_fast: bool,
}

impl Pace {
    /// Whether datagrams come at 50,000 per second or more; `datagrams` are all that ever came.
    pub(super) fn is_fast(&mut self, now: Ticks, datagrams: u64) -> bool {
        let elapsed = now.since(self.since);
        if elapsed >= WINDOW {
            self.is_fast = datagrams - self.datagrams >= FAST * elapsed;
            (self.since, self.datagrams) = (now, datagrams);
        }
        self.is_fast
    }
}

/// From this score on, a socket's datagrams are coalesced.
const COALESCES_FROM: u8 = 32;

/// How a socket is read: one datagram at a time, many at once, or coalesced by the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct Appetite {
    ready_in: u32,
    wanted: u8,
    score: u8,
    coalesces: bool,
}

impl Appetite {
    /// Datagrams to ask for, now that the socket is ready in this loop.
    ///
    /// One for a socket that was found empty in between; twice as many each time for one that was not.
    pub(super) const fn ready(&mut self, loops: u32, most: usize) -> usize {
        let again = self.ready_in.wrapping_add(1) == loops;
        self.ready_in = loops;
        if again {
            self.wanted = self.wanted.saturating_mul(2);
        }
        let most = if most > 128 { 128 } else { most as u8 };
        self.wanted = if self.wanted < 1 {
            1
        } else if self.wanted > most {
            most
        } else {
            self.wanted
        };
        self.wanted as usize
    }

    /// So many came. Of those that were not needed a quarter is not asked for again.
    pub(super) const fn took(&mut self, count: usize) {
        let less = self.wanted - self.wanted.div_ceil(4);
        if count < self.wanted as usize {
            self.wanted = if count > less as usize { count as u8 } else { less };
        }
    }

    pub(super) const fn coalesces(&self) -> bool {
        self.coalesces
    }

    /// Notes whether datagrams of one sender and one size came in a row; tells whether such should be coalesced.
    pub(super) const fn note(&mut self, in_a_row: bool) -> bool {
        self.score = match in_a_row {
            true => self.score.saturating_add(4),
            false => self.score.saturating_sub(1),
        };
        self.score >= COALESCES_FROM
    }

    /// Asks the kernel to coalesce from now on, and for good: after taking it back, what is coalesced already would come
    /// without its sizes.
    pub(super) fn coalesce(&mut self, fd: BorrowedFd<'_>) {
        // A kernel that can't is asked again when rows have proved themselves again.
        self.coalesces |= sys::coalesce(fd).is_ok();
        self.score = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_worker_is_fast_from_fifty_thousand_datagrams_per_second_on() {
        let mut pace = Pace::default();
        assert!(!pace.is_fast(Ticks(100), 4_999));
        assert!(!pace.is_fast(Ticks(109), 90_000), "the window is not over");
        assert!(pace.is_fast(Ticks(110), 5_499));
        assert!(pace.is_fast(Ticks(111), 5_500), "as before, until the window is over");
        assert!(!pace.is_fast(Ticks(1_000), 6_000));
    }

    #[test]
    fn a_socket_that_is_never_empty_is_asked_for_more_and_more_and_then_for_less() {
        let mut appetite = Appetite::default();
        let wanted: Vec<_> = (10..20).map(|loops| appetite.ready(loops, 64)).collect();
        assert_eq!(wanted, [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
        let mut asked = Vec::new();
        for loops in (30..70).step_by(2) {
            appetite.took(1);
            asked.push(appetite.ready(loops, 64));
        }
        assert!(
            asked.is_sorted_by(|a, b| a >= b) && asked.first() == Some(&48) && asked.last() == Some(&1),
            "{asked:?}"
        );
        let mut bursts = Appetite::default();
        for loops in 0..6 {
            bursts.ready(loops, 64);
        }
        bursts.took(16);
        assert_eq!(bursts.ready(50, 64), 24, "the next burst is expected to be as large as the last ones");
    }

    #[test]
    fn only_a_socket_that_proves_bursty_coalesces() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut appetite = Appetite::default();
        let mut read = |in_a_row, times| (0..times).any(|_| appetite.note(in_a_row));
        assert!(!read(true, 7) && !read(false, 10) && !read(true, 2), "rows here and there");
        assert!(read(true, 3));
        assert!(!appetite.coalesces());
        appetite.coalesce(socket.as_fd());
        assert!(appetite.coalesces());
    }
}
