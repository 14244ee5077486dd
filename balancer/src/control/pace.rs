//! How often all endpoints are looked at. Pure; the caller passes the time.
//!
//! A look costs what there are endpoints. With three of them it follows whatever happens at once; with ten thousand,
//! of which a hundred change each second, it would be all that is ever done.

use std::time::{Duration, Instant};

/// Rest after a look, for each endpoint looked at: some fifty times of what the look took.
const REST_PER_ENDPOINT: Duration = Duration::from_micros(2);

/// Between looks at most: counts are read and windows slide.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When to look.
#[derive(Debug)]
pub struct Pace {
    /// No look before.
    floor: Instant,
    /// A look without anything having happened.
    next: Instant,
    happened: bool,
}

impl Pace {
    /// Looks at once.
    pub fn new(now: Instant) -> Pace {
        Pace { floor: now, next: now, happened: true }
    }

    /// Something happened, and may have made something due.
    pub fn happened(&mut self) {
        self.happened = true;
    }

    /// When the next look is.
    pub fn at(&self) -> Instant {
        if self.happened { self.floor } else { self.next.max(self.floor) }
    }

    /// Whether to look now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.at() <= now
    }

    /// `endpoints` were looked at, and nothing will be due before `deadline` unless something happens.
    pub fn looked(&mut self, now: Instant, endpoints: usize, deadline: Option<Instant>) {
        self.floor = now + REST_PER_ENDPOINT * u32::try_from(endpoints).unwrap_or(u32::MAX);
        self.next = deadline.unwrap_or(now + LOOK_EVERY).min(now + LOOK_EVERY);
        self.happened = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn few_endpoints_are_looked_at_whenever_something_happens() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pace.is_due(start));
        pace.looked(start, 3, Some(start + ms(300)));
        assert!(!pace.is_due(start + ms(299)) && pace.is_due(start + ms(300)));
        pace.happened();
        assert!(pace.is_due(start + ms(1)));
        pace.looked(start, 3, None);
        assert!(!pace.is_due(start + ms(999)) && pace.is_due(start + ms(1000)));
    }

    #[test]
    fn many_endpoints_rest_whatever_happens() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.looked(start, 10_000, Some(start));
        pace.happened();
        assert!(!pace.is_due(start + ms(19)) && pace.is_due(start + ms(20)));
    }
}
