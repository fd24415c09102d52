//! How much one turn of a worker may do for streams, counted in what it costs rather than in bytes.
//!
//! A datagram is one message and a batch holds 64 of them; one read of a stream can hold 33,000. Each message that is
//! handled takes from its stream's share and from the turn's whole; what is over waits for the next turn, and in
//! between everything else has its own. Decision 0190.

/// What one turn may do for all streams.
const TURN_UNITS: u32 = 256;

/// What one visit of a stream may cost.
const VISIT_UNITS: u32 = 64;

/// A frame of data: looked up, judged, queued.
const DATA_UNITS: u32 = 1;

/// A request: parsed, verified by HMAC, answered and signed, what many frames of data cost.
const REQUEST_UNITS: u32 = 8;

/// TLS records that cost as much as a frame of data: each is decrypted, however little is in it.
const RECORDS_PER_UNIT: u32 = 4;

/// Bytes of a data connection that cost as much as a frame of data.
const BYTES_PER_UNIT: usize = 1024;

/// Streams adopted in one turn, and streams closed in one because their time is over.
pub(super) const STREAMS_PER_TURN: usize = 16;

/// What a message of a stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// ChannelData or a Send indication.
    Data,
    /// Any other STUN message, or what is none.
    Request,
}

impl Work {
    const fn units(self) -> u32 {
        match self {
            Self::Data => DATA_UNITS,
            Self::Request => REQUEST_UNITS,
        }
    }
}

/// What is left of this turn, and of this visit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    turn: u32,
    visit: u32,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self { turn: TURN_UNITS, visit: 0 }
    }

    /// A new turn begins.
    pub(super) const fn begin_turn(&mut self) {
        *self = Self::new();
    }

    /// The next stream has its share.
    pub(super) const fn begin_visit(&mut self) {
        self.visit = VISIT_UNITS;
    }

    /// Whether nothing more can be done for streams in this turn.
    pub(super) const fn is_spent(&self) -> bool {
        self.turn == 0
    }

    /// Takes what so many TLS records of a visit have cost, which were opened before their messages were known.
    pub(super) const fn charge_records(&mut self, records: u32) {
        self.turn = self.turn.saturating_sub(records / RECORDS_PER_UNIT);
    }

    /// Takes what bytes of a data connection cost, which are carried and not looked at.
    pub(super) const fn charge_bytes(&mut self, bytes: usize) {
        self.turn = self.turn.saturating_sub(bytes.div_ceil(BYTES_PER_UNIT) as u32);
    }

    /// Takes what a message costs; `false` if nothing is left of the visit or the turn. The last one may cost more than
    /// is left, so that each visit handles at least one.
    pub(super) const fn take(&mut self, work: Work) -> bool {
        if self.turn == 0 || self.visit == 0 {
            return false;
        }
        self.turn = self.turn.saturating_sub(work.units());
        self.visit = self.visit.saturating_sub(work.units());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-A1: bounded by what it costs, not by bytes.
    #[test]
    fn a_visit_and_a_turn_end_when_their_units_are_spent() {
        let mut budget = Budget::new();
        let visit = |budget: &mut Budget, work| {
            budget.begin_visit();
            (0..100_000).take_while(|_| budget.take(work)).count() as u32
        };
        assert_eq!(visit(&mut budget, Work::Data), VISIT_UNITS);
        assert_eq!(visit(&mut budget, Work::Request), VISIT_UNITS / REQUEST_UNITS);
        assert_eq!(visit(&mut budget, Work::Data), VISIT_UNITS);
        assert_eq!(visit(&mut budget, Work::Data), VISIT_UNITS);
        assert!(budget.is_spent());
        assert_eq!(visit(&mut budget, Work::Data), 0);
        budget.begin_turn();
        assert_eq!(visit(&mut budget, Work::Request), VISIT_UNITS / REQUEST_UNITS);
    }

    #[test]
    fn a_turn_carries_so_many_bytes_however_many_connections_have_them() {
        let mut budget = Budget::new();
        let reads = (0..1_000).take_while(|_| {
            let goes_on = !budget.is_spent();
            budget.charge_bytes(16 * 1024);
            goes_on
        });
        assert_eq!(reads.count() * 16 * 1024, 256 * 1024);
        budget.begin_turn();
        budget.charge_bytes(1);
        assert_eq!(budget.turn, TURN_UNITS - 1);
    }

    /// A client may put each byte into a record of its own: 64 KiB of ciphertext are 2,800 of them.
    #[test]
    fn records_with_little_in_them_end_a_turn_as_well() {
        let mut budget = Budget::new();
        budget.charge_records(54);
        assert!(!budget.is_spent(), "a read full of video");
        budget.charge_records(2_800);
        assert!(budget.is_spent());
        budget.begin_turn();
        assert!(!budget.is_spent());
    }
}
