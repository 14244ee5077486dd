//! How long an endpoint takes to answer: a moving average that rises at once and falls slowly. Pure.
//!
//! Peak EWMA, after Finagle's `PeakEwma` (`com.twitter.finagle.loadbalancer.p2c`): what is slower than the average
//! becomes the average at once, what is faster brings it down by how much time has passed; and an endpoint that is
//! not asked is forgiven in time, so that it is tried again.
//!
//! The plain form favours an endpoint that fails fast: nothing answers as quickly as an error. So a failed attempt
//! counts as a slow one here: several times the average, more with each, and never less than [`FAILED_MIN`]. It is a
//! multiple, because what is slow differs from service to service.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// After so long, what was observed weighs 1/e of what it did. Finagle's default.
const DECAY: Duration = Duration::from_secs(10);

/// A failed attempt counts as so many times the average.
const FAILED_FACTOR: f32 = 4.0;

/// A failed attempt counts as no less, however fast the endpoint was.
const FAILED_MIN: Duration = Duration::from_millis(10);

/// An average is never more: after a row of failures an endpoint must be forgiven within a minute or so.
const MAX: Duration = Duration::from_secs(10);

/// The average of one endpoint, without a lock: two observations at once may come to only one of them.
#[derive(Debug, Default)]
pub struct Latency {
    /// When it was last observed, in ms since the endpoint was made (it may wrap), and the average in µs as the bits
    /// of an `f32`. All zero: nothing was observed.
    packed: AtomicU64,
}

impl Latency {
    /// The average as of `now_ms`, in µs; `None` if nothing was observed.
    pub fn read(&self, now_ms: u32) -> Option<f32> {
        unpack(self.packed.load(Ordering::Relaxed)).map(|(at, average)| average * faded(at, now_ms))
    }

    /// An attempt was answered after `took`.
    pub fn observe(&self, took: Duration, now_ms: u32) {
        self.update(now_ms, |average| peak(average, took));
    }

    /// An attempt failed, or was answered by an error, after `took`.
    pub fn observe_failure(&self, took: Duration, now_ms: u32) {
        self.update(now_ms, |average| {
            let penalty = (average.unwrap_or(0.0) * FAILED_FACTOR).max(micros(FAILED_MIN));
            Observed::AtLeast(penalty.max(micros(took)))
        });
    }

    fn update(&self, now_ms: u32, observed: impl Fn(Option<f32>) -> Observed) {
        let before = unpack(self.packed.load(Ordering::Relaxed));
        let keeps = before.map_or(0.0, |(at, _)| faded(at, now_ms));
        let average = before.map(|(_, average)| average);
        let after = match (observed(average.map(|a| a * keeps)), average) {
            (Observed::AtLeast(value), _) => value,
            (Observed::Toward(value), Some(average)) => average * keeps + value * (1.0 - keeps),
            (Observed::Toward(value), None) => value,
        };
        self.packed.store(pack(now_ms, after.clamp(1.0, micros(MAX))), Ordering::Relaxed);
    }
}

enum Observed {
    /// The average becomes this.
    AtLeast(f32),
    /// The average moves towards this, as time has passed.
    Toward(f32),
}

fn peak(average: Option<f32>, took: Duration) -> Observed {
    let took = micros(took);
    if average.is_none_or(|average| took >= average) {
        Observed::AtLeast(took)
    } else {
        Observed::Toward(took)
    }
}

/// What is left at `now_ms` of what was observed at `at`.
fn faded(at: u32, now_ms: u32) -> f32 {
    match now_ms.wrapping_sub(at) {
        0 => 1.0,
        // Another thread was later.
        past if past > u32::MAX / 2 => 1.0,
        past => (-(past as f32) / DECAY.as_millis() as f32).exp(),
    }
}

fn micros(time: Duration) -> f32 {
    time.as_secs_f32() * 1e6
}

fn pack(at: u32, average: f32) -> u64 {
    u64::from(at) << 32 | u64::from(average.to_bits())
}

fn unpack(packed: u64) -> Option<(u32, f32)> {
    (packed != 0).then(|| ((packed >> 32) as u32, f32::from_bits(packed as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn read(latency: &Latency, now_ms: u32) -> f32 {
        latency.read(now_ms).expect("it was observed") / 1000.0
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let latency = Latency::default();
        assert_eq!(latency.read(5), None);
        latency.observe(ms(10), 0);
        latency.observe(ms(200), 1);
        assert!((read(&latency, 1) - 200.0).abs() < 0.1);
        latency.observe(ms(10), 1001);
        assert!((170.0..185.0).contains(&read(&latency, 1001)), "{}", read(&latency, 1001));
        (2..100).for_each(|second| latency.observe(ms(10), second * 1000));
        assert!((10.0..11.0).contains(&read(&latency, 99_000)));
    }

    #[test]
    fn an_endpoint_that_is_not_asked_is_forgiven() {
        let latency = Latency::default();
        latency.observe(ms(1000), 0);
        assert!((360.0..375.0).contains(&read(&latency, 10_000)));
        assert!(read(&latency, 60_000) < 3.0);
    }

    #[test]
    fn failing_fast_is_slow_and_each_failure_makes_it_slower_up_to_a_maximum() {
        let latency = Latency::default();
        latency.observe(ms(5), 0);
        let mut before = read(&latency, 0);
        for _ in 0..4 {
            latency.observe_failure(Duration::from_micros(50), 1);
            assert!(read(&latency, 1) >= before * 3.9, "{before} then {}", read(&latency, 1));
            before = read(&latency, 1);
        }
        (0..100).for_each(|_| latency.observe_failure(ms(0), 2));
        assert!((read(&latency, 2) - 10_000.0).abs() < 1.0);
        let fresh = Latency::default();
        fresh.observe_failure(Duration::ZERO, 0);
        assert!((read(&fresh, 0) - 10.0).abs() < 0.1);
    }

    #[test]
    fn time_that_wraps_or_runs_backwards_between_threads_does_no_harm() {
        let latency = Latency::default();
        latency.observe(ms(100), u32::MAX - 10);
        assert!((99.0..=100.1).contains(&read(&latency, 5)));
        latency.observe(ms(100), 1000);
        assert!((99.0..=100.1).contains(&read(&latency, 990)));
    }
}
