//! How long the disk takes to make a batch of writes durable, lately.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

/// What is older says nothing about the disk as it is now.
const WINDOW: Duration = Duration::from_secs(60);
/// Barriers remembered; a disk that is fast has more of them in a minute, and then the newest tell.
const BARRIERS_MAX: usize = 1_000;
/// A disk is as slow as this many of its barriers, at least: one that carried a snapshot is no rule.
const BARRIERS_MIN: usize = 3;

/// The last barriers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<Mutex<VecDeque<(Instant, Duration)>>>);

impl Pace {
    /// Notes a barrier that ended at `now`.
    pub(super) fn note(&self, now: Instant, took: Duration) {
        let mut barriers = self.0.lock().expect("no panic while it is held");
        if barriers.len() == BARRIERS_MAX {
            barriers.pop_front();
        }
        barriers.push_back((now, took));
    }

    /// What one barrier in a hundred of the last minute took at least, and three of them; none if there were no
    /// three.
    pub fn p99(&self, now: Instant) -> Option<Duration> {
        let mut barriers = self.0.lock().expect("no panic while it is held");
        while barriers.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            barriers.pop_front();
        }
        let mut took: Vec<Duration> = barriers.iter().map(|(_, took)| *took).collect();
        drop(barriers);
        let rank = took.len().div_ceil(100).max(BARRIERS_MIN);
        let place = took.len().checked_sub(rank)?;
        Some(*took.select_nth_unstable(place).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(start: Instant, took: impl IntoIterator<Item = u32>) -> Pace {
        let pace = Pace::default();
        took.into_iter().for_each(|took| pace.note(start, took * MS));
        pace
    }

    #[test]
    fn a_few_slow_barriers_are_no_rule_and_one_in_a_hundred_is() {
        let start = Instant::now();
        assert_eq!(pace(start, []).p99(start), None);
        assert_eq!(pace(start, [900, 900]).p99(start), None);
        assert_eq!(pace(start, [2, 900, 2, 900, 2]).p99(start), Some(2 * MS));
        assert_eq!(pace(start, [2, 900, 700, 900, 2]).p99(start), Some(700 * MS));
        // Of a thousand the tenth slowest.
        assert_eq!(pace(start, (1..=1_000).rev()).p99(start), Some(991 * MS));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let start = Instant::now();
        let old = pace(start, [900; 20]);
        assert_eq!(old.p99(start + WINDOW), Some(900 * MS));
        assert_eq!(old.p99(start + WINDOW + MS), None);
        let busy = pace(start, [900; 20]);
        (0..BARRIERS_MAX).for_each(|_| busy.note(start, 2 * MS));
        assert_eq!(busy.p99(start), Some(2 * MS));
    }
}
