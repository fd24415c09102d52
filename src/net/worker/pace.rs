//! How busy a worker is: whether it pays to let packets gather, and how many to ask a socket for.

use std::os::fd::BorrowedFd;

use crate::net::sys;
use crate::time::Ticks;

/// From so many datagrams per millisecond on, the next ones come within the time that is waited.
const FAST: u64 = 50;

/// Milliseconds over which the rate is taken.
const WINDOW: u64 = 10;

/// All packets that ever came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PacketsSoFar {
    /// On the whole.
    pub(super) all: u64,
    /// Of these, frames of streams, and datagrams behind another one of the same sender and size: more of them at once cost
    /// less each, on the way in and on the way out.
    pub(super) in_rows: u64,
}

/// The rate of packets, without another look at a clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    since: Ticks,
    before: PacketsSoFar,
    pays: bool,
}

impl Pace {
    /// Whether it pays to wait for more: packets come at 50,000 per second or more, and at least a quarter of them in rows.
    pub(super) fn pays_to_wait(&mut self, now: Ticks, packets: PacketsSoFar) -> bool {
        let elapsed = now.since(self.since);
        if elapsed >= WINDOW {
            let (all, in_rows) = (packets.all - self.before.all, packets.in_rows - self.before.in_rows);
            self.pays = all >= FAST * elapsed && in_rows * 4 >= all;
            (self.since, self.before) = (now, packets);
        }
        self.pays
    }
}

/// From this score on, a socket's datagrams are coalesced: so many more batches of rows than others.
const COALESCES_FROM: u8 = 32;

/// Pieces read at once from a socket that coalesces: few while each may hold dozens of datagrams, more while they come
/// single all the same.
const PIECES_MIN: u8 = 4;
const PIECES_MAX: u8 = 16;

/// How a socket is read: one datagram at a time, many at once, or coalesced by the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct ReadBudget {
    ready_in: u32,
    wanted: u8,
    score: u8,
    /// Pieces to read at once, if the kernel coalesces; 0 if it does not.
    pieces: u8,
    /// Reads since the last one that brought a traffic class, up to where the next look is due; and [`IS_UNTOLD`].
    unmarked: u8,
}

/// The kernel was asked not to tell traffic classes, or may have been.
const IS_UNTOLD: u8 = 0x80;

/// So many reads without a traffic class, and the next ones don't ask for it.
const UNMARKED_READS: u8 = 16;

/// Of those that don't ask, every so many-th does: a call may begin to mark its packets.
const LOOK_EVERY: u8 = 64;

impl ReadBudget {
    /// For a socket that another process read before: it may coalesce already.
    pub(in crate::net) fn of_socket(fd: BorrowedFd<'_>) -> Self {
        Self { pieces: if sys::coalesces(fd) { PIECES_MIN } else { 0 }, unmarked: IS_UNTOLD, ..Self::default() }
    }

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

    /// Whether the next read takes what the kernel tells beside the datagrams: for itself, as where it `coalesces`, or for
    /// their traffic class (RFC 8656 section 14). That costs a few percent, and few networks mark anything: so the kernel is
    /// asked for it while marked datagrams come, and now and then. Decision 0235.
    pub(super) fn asks(&mut self, fd: BorrowedFd<'_>, coalesces: bool) -> bool {
        let asks_class = self.asks_class();
        let is_told = self.unmarked & IS_UNTOLD == 0;
        if is_told != asks_class && (asks_class || coalesces) {
            self.unmarked ^= IS_UNTOLD;
            // Should it fail, it is told as before.
            let _ = sys::tell_class(fd, asks_class);
        }
        asks_class || coalesces
    }

    const fn asks_class(&mut self) -> bool {
        let next = (self.unmarked & !IS_UNTOLD) + 1;
        let reads = if next >= UNMARKED_READS + LOOK_EVERY { UNMARKED_READS } else { next };
        self.unmarked = self.unmarked & IS_UNTOLD | reads;
        reads <= UNMARKED_READS
    }

    /// A datagram with a traffic class came: the next reads ask for it.
    pub(super) const fn class_came(&mut self) {
        self.unmarked &= IS_UNTOLD;
    }

    pub(in crate::net) const fn coalesces(&self) -> bool {
        self.pieces > 0
    }

    /// Pieces to read at once: `usual` where each is one datagram.
    pub(super) const fn most(&self, usual: usize) -> usize {
        if self.pieces == 0 { usual } else { self.pieces as usize }
    }

    /// So many datagrams came in so many pieces.
    pub(super) const fn came(&mut self, datagrams: usize, pieces: usize) {
        if self.pieces > 0 {
            let next = if datagrams < 2 * pieces { self.pieces * 2 } else { PIECES_MIN };
            self.pieces = if next > PIECES_MAX { PIECES_MAX } else { next };
        }
    }

    /// Notes whether data of one client and one size came in a row; tells whether such should be coalesced, which is so
    /// where most batches are rows. A burst of one client changes nothing for the others.
    pub(super) const fn note(&mut self, in_a_row: bool) -> bool {
        self.score = match in_a_row {
            true => self.score.saturating_add(1),
            false => self.score.saturating_sub(1),
        };
        self.score >= COALESCES_FROM
    }

    /// Asks the kernel to coalesce from now on, and for good: after taking it back, what is coalesced already would come
    /// without its sizes.
    pub(super) fn coalesce(&mut self, fd: BorrowedFd<'_>) {
        // A kernel that can't is asked again when rows have proved themselves again.
        if sys::coalesce(fd).is_ok() {
            self.pieces = PIECES_MIN;
        }
        self.score = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    #[test]
    fn it_pays_to_wait_from_fifty_thousand_packets_per_second_on_that_come_in_rows() {
        let packets = |all| PacketsSoFar { all, in_rows: all };
        let mut pace = Pace::default();
        assert!(!pace.pays_to_wait(Ticks(100), packets(4_999)));
        assert!(!pace.pays_to_wait(Ticks(109), packets(90_000)), "the window is not over");
        assert!(pace.pays_to_wait(Ticks(110), packets(5_499)));
        assert!(pace.pays_to_wait(Ticks(111), packets(5_500)), "as before, until the window is over");
        assert!(!pace.pays_to_wait(Ticks(1_000), packets(6_000)));
        let mixed = |all, in_rows: u64| PacketsSoFar { all, in_rows: 6_000 + in_rows };
        assert!(pace.pays_to_wait(Ticks(1_010), mixed(7_000, 250)));
        assert!(!pace.pays_to_wait(Ticks(1_020), mixed(8_000, 499)), "many clients with a packet each gain nothing");
    }

    #[test]
    fn a_socket_that_is_never_empty_is_asked_for_more_and_more_and_then_for_less() {
        let mut read_budget = ReadBudget::default();
        let wanted: Vec<_> = (10..20).map(|loops| read_budget.ready(loops, 64)).collect();
        assert_eq!(wanted, [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]);
        let mut asked = Vec::new();
        for loops in (30..70).step_by(2) {
            read_budget.took(1);
            asked.push(read_budget.ready(loops, 64));
        }
        assert!(
            asked.is_sorted_by(|a, b| a >= b) && asked.first() == Some(&48) && asked.last() == Some(&1),
            "{asked:?}"
        );
        let mut bursts = ReadBudget::default();
        for loops in 0..6 {
            bursts.ready(loops, 64);
        }
        bursts.took(16);
        assert_eq!(bursts.ready(50, 64), 24, "the next burst is expected to be as large as the last ones");
    }

    #[test]
    fn a_socket_is_asked_for_classes_at_first_and_while_there_are_any_and_then_rarely() {
        let mut read_budget = ReadBudget::default();
        let reads = |budget: &mut ReadBudget, count| (0..count).filter(|_| budget.asks_class()).count();
        assert_eq!(reads(&mut read_budget, 16), 16);
        assert_eq!(reads(&mut read_budget, 63), 0);
        let looks = reads(&mut read_budget, 6_400);
        assert_eq!(looks, 100, "one of 64");
        for _ in 0..1_000 {
            read_budget.class_came();
            assert!(read_budget.asks_class(), "a marked flow is told packet by packet");
        }
    }

    // Where ancillary data are read anyway, each class would cost.
    #[test]
    fn a_socket_that_coalesces_is_told_no_class_but_where_it_asks() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tells = || socket2::SockRef::from(&socket).recv_tos_v4().unwrap();
        let fd = socket.as_fd();
        // Of another worker or process: what is told there is not known.
        for (mut read_budget, is_told) in [(ReadBudget::default(), true), (ReadBudget::of_socket(fd), false)] {
            sys::tell_class(fd, is_told).unwrap();
            for read in 0..200 {
                assert!(read_budget.asks(fd, true));
                let asks = read < 16 || (read - 16) % 64 == 63;
                assert_eq!(tells(), asks, "read {read}");
            }
            // One that coalesces no more, or never did, is told as soon as it asks.
            let asked = (0..64).find(|_| read_budget.asks(fd, false)).unwrap();
            assert!(tells(), "read {asked}");
            read_budget.class_came();
            assert!(read_budget.asks(fd, true) && tells());
        }
    }

    #[test]
    fn only_a_socket_that_proves_bursty_coalesces() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut read_budget = ReadBudget::default();
        let mut read = |in_a_row, times| (0..times).any(|_| read_budget.note(in_a_row));
        assert!(!read(true, 31) && !read(false, 20) && !read(true, 10), "rows here and there");
        assert!((0..200).all(|_| !read(true, 1) && !read(false, 1)), "every other batch");
        assert!(read(true, 20));
        assert!(!read_budget.coalesces());
        assert_eq!(read_budget.most(64), 64);
        read_budget.coalesce(socket.as_fd());
        assert!(read_budget.coalesces());
        assert!(ReadBudget::of_socket(socket.as_fd()).coalesces(), "the next reader of it must know");
        assert_eq!(read_budget.most(64), usize::from(PIECES_MIN));
        (0..5).for_each(|_| read_budget.came(16, 16));
        assert_eq!(read_budget.most(64), usize::from(PIECES_MAX), "single ones are read as many at once");
        read_budget.came(200, 16);
        assert_eq!(read_budget.most(64), usize::from(PIECES_MIN));
    }
}
