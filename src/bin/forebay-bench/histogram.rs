//! Latencies in logarithmic buckets: 3 % precision from a microsecond to hours, in 15 KiB.

use std::time::Duration;

/// Buckets per doubling; half of them, so 1/32 is the relative error at worst.
const STEPS: u64 = 32;
const STEPS_BITS: u32 = STEPS.ilog2();
const BUCKETS: usize = (64 - STEPS_BITS as usize + 1) * STEPS as usize;

/// Counts of microseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_us: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0, max_us: 0 }
    }

    pub fn record(&mut self, latency: Duration) {
        let value_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[index(value_us)] += 1;
        self.total += 1;
        self.max_us = self.max_us.max(value_us);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// The upper end of the bucket that holds `quantile` (0 to 1), in milliseconds; 0 when nothing was recorded.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let wanted = ((self.total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_us(index).min(self.max_us) as f64 / 1e3;
            }
        }
        0.0
    }
}

fn index(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEPS_BITS;
    ((u64::from(shift) + 1) * STEPS + (value >> shift) - STEPS) as usize
}

fn upper_us(index: usize) -> u64 {
    let (row, step) = (index as u64 / STEPS, index as u64 % STEPS);
    if row == 0 {
        return step;
    }
    let shift = row - 1;
    let upper = (u128::from(STEPS + step + 1) << shift) - 1;
    u64::try_from(upper).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_within_four_percent() {
        for value in (0..2000).chain((0..64).map(|bit| 1_u64 << bit)).chain([u64::MAX, u64::MAX - 1]) {
            let upper = upper_us(index(value));
            assert!(upper >= value, "{value} in a bucket that ends at {upper}");
            assert!((upper - value) as f64 <= value as f64 / 25.0 + 1.0, "{value} in a bucket that ends at {upper}");
        }
    }

    #[test]
    fn quantiles_come_from_the_counts() {
        let mut histogram = Histogram::new();
        for ms in 1..=100 {
            histogram.record(Duration::from_millis(ms));
        }
        assert!((histogram.quantile_ms(0.5) - 50.0).abs() < 2.0);
        assert!((histogram.quantile_ms(0.99) - 99.0).abs() < 4.0);
        assert!((histogram.quantile_ms(1.0) - 100.0).abs() < 0.001);
        assert_eq!(Histogram::new().quantile_ms(0.5), 0.0);
    }
}
