//! Latencies in nanoseconds, 64 buckets per power of two: at most 1.6 % too high, and no allocation.

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// Up to 2^40 ns, eighteen minutes; more than any run lasts.
const BUCKETS: usize = (40 - SUB_BITS as usize + 1) * SUB;

pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: 0 }
    }

    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that `part` (0 to 1) of all samples do not exceed; the bucket's upper edge.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = ((self.total as f64) * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_edge(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let bits = 64 - value.leading_zeros();
    if bits <= SUB_BITS {
        return value as usize;
    }
    let shift = bits - SUB_BITS - 1;
    let index = (shift as usize + 1) * SUB + ((value >> shift) as usize & (SUB - 1));
    index.min(BUCKETS - 1)
}

fn upper_edge(index: usize) -> u64 {
    if index < SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    (((index % SUB + SUB) as u64 + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_at_or_below_its_buckets_edge_and_within_two_percent() {
        for value in (0..5_000).chain((1..35).map(|n| (1_u64 << n) + 3)) {
            let edge = upper_edge(bucket(value));
            assert!(edge >= value && edge as f64 <= value as f64 * 1.016 + 1.0, "{value} -> {edge}");
        }
    }

    #[test]
    fn quantiles_of_a_ramp() {
        let mut histogram = Histogram::new();
        (1..=1_000).for_each(|n| histogram.record(n * 1_000));
        let close = |a: u64, b: u64| (a as f64 / b as f64 - 1.0).abs() < 0.02;
        assert!(close(histogram.quantile(0.5), 500_000));
        assert!(close(histogram.quantile(0.99), 990_000));
        assert_eq!(histogram.quantile(1.0), 1_000_000);
    }
}
