//! Randomness from a seed that is passed in: the same seed gives the same run.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use sha2::{Digest, Sha256};

use crate::wire::message::TransactionId;

/// A generator whose output can't be foretold without its seed.
#[derive(Clone)]
pub struct Random {
    seed: [u8; 32],
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Random {
    /// From a secret seed in production, from a fixed one in tests.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0, block: [0; 32], used: 32 }
    }

    /// Fills a slice.
    pub fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            if self.used == self.block.len() {
                let mut hash = Sha256::new();
                hash.update(self.seed);
                hash.update(self.counter.to_be_bytes());
                self.block = hash.finalize().into();
                self.counter += 1;
                self.used = 0;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }

    /// The seed of another generator: as secret as this one's, and another one each time.
    pub fn seed(&mut self) -> [u8; 32] {
        let number = self.next_u64();
        let mut hash = Sha256::new();
        hash.update(b"seed of another generator");
        hash.update(self.seed);
        hash.update(number.to_be_bytes());
        hash.finalize().into()
    }

    /// Any 64-bit number.
    pub fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// A number below `bound`, which must not be 0; the bias of one in 2^32 is of no matter here.
    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.next_u64() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random(..)")
    }
}

/// Transaction ids of Data indications: uniform, and the next one can't be foretold (RFC 8489 section 5), at a few
/// nanoseconds each.
#[derive(Clone)]
pub(super) struct TransactionIds(ChaCha8Rng);

impl TransactionIds {
    /// From a secret seed in production, from a fixed one in tests.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(seed))
    }

    // [8489-5-5]
    #[inline]
    pub(super) fn next(&mut self) -> TransactionId {
        // By words: filling a slice takes several times as long.
        let (first, rest) = (self.0.next_u64(), self.0.next_u32());
        let mut id = [0; 12];
        id[..8].copy_from_slice(&first.to_be_bytes());
        id[8..].copy_from_slice(&rest.to_be_bytes());
        TransactionId(id)
    }
}

impl std::fmt::Debug for TransactionIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TransactionIds(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // [8489-5-5]
    #[test]
    fn transaction_ids_differ_and_have_each_bit_as_often_set_as_not() {
        const COUNT: u32 = 4096;
        let mut ids = TransactionIds::new([7; 32]);
        let drawn: Vec<[u8; 12]> = (0..COUNT).map(|_| ids.next().0).collect();
        assert_eq!(drawn.iter().collect::<std::collections::HashSet<_>>().len(), COUNT as usize);
        for bit in 0..96 {
            let set = drawn.iter().filter(|id| id[bit / 8] >> (bit % 8) & 1 == 1).count() as u32;
            // Six standard deviations of 32 each.
            assert!(set.abs_diff(COUNT / 2) < 192, "bit {bit}: {set}");
        }
        let mut others = TransactionIds::new([8; 32]);
        assert!(!drawn.contains(&others.next().0), "another seed, other numbers");
    }
}
