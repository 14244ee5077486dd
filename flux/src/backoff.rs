//! How long to wait before the next try. Pure: the source of chance is an argument.

use std::time::Duration;

/// A schedule that doubles up to a cap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// The first wait, before jitter.
    pub(crate) base: Duration,
    /// The longest, before jitter.
    pub(crate) cap: Duration,
}

impl Backoff {
    /// The wait after `failures` in a row: between half and the whole of the doubled base, so that many clients
    /// that failed together do not come back together. The first failure is number 1.
    pub(crate) fn wait(self, failures: u32, rng: &mut fastrand::Rng) -> Duration {
        let doubled = self.base.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
        doubled.min(self.cap).mul_f64(0.5 + rng.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_jitters_within_the_upper_half() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
        let mut rng = fastrand::Rng::with_seed(1);
        for failures in [1, 2, 3, 6, 7, 40, u32::MAX] {
            let whole = match failures {
                1..=6 => 100 << (failures - 1),
                _ => 5000,
            };
            for _ in 0..50 {
                let wait = u64::try_from(backoff.wait(failures, &mut rng).as_millis()).expect("small");
                assert!((whole / 2..=whole).contains(&wait), "after {failures} failures: {wait} ms");
            }
        }
    }
}
