//! How long to wait before the next try. Pure: the source of chance is an argument.

use std::time::Duration;

#[cfg(test)]
mod tests;

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
