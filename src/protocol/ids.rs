//! Names of what lives in the core: workers, allocations, sessions, questions.

use std::fmt;

use minicbor::{Decode, Encode};

/// Names an allocation of one worker; the generation makes a stale id harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct AllocationId {
    /// The slot in the worker's table; small numbers, reused.
    #[n(0)]
    pub index: u32,
    /// Counts up with each allocation of this worker.
    #[n(1)]
    pub generation: u32,
}

/// Names a worker; it stands in the first byte of every token that needs its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct WorkerId(#[n(0)] pub u8);

/// Matches an answer of another worker to our question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct QuestionId {
    /// Who asked.
    pub worker: WorkerId,
    /// The asker's own number.
    pub number: u64,
}

/// Names a session for good: no other worker, process or machine gives the same name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Encode, Decode)]
pub struct SessionId {
    /// Drawn by each worker when it starts.
    #[n(0)]
    pub instance: u64,
    /// Counts that worker's sessions from 1.
    #[n(1)]
    pub number: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.instance, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_short_name() {
        assert_eq!(SessionId { instance: 0x1f, number: 17 }.to_string(), "000000000000001f-11");
    }
}
