//! Is the disk fast enough for the election time-outs? An election takes two barriers one after the other, the
//! candidate's and the voters'; and what a follower is sent waits for one while its leader counts the time. Where that
//! takes near a third of the shortest time-out, elections and busy leaders fail for nothing. Nothing is changed by
//! itself: time-outs must fit on all nodes, so an operator is told what to say.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::Consensus;
use crate::config::Timers;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The log tells of it this often at most, while it lasts and if it comes back.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// What is wrong with a disk of this pace, and what to do, if anything is.
fn too_slow(p99: Option<Duration>, timers: &Timers) -> Option<String> {
    let p99 = p99.filter(|p99| *p99 >= timers.election_min / 3)?;
    // Four barriers, in steps that people would choose.
    let fit = (4 * p99.as_millis()).div_ceil(100) * 100;
    Some(format!(
        "one in a hundred writes takes the disk {} ms or longer, too slow for election time-outs from {} ms on: leaders will be \
         voted out for nothing. Find out what keeps the disk busy, or start every node with --election-min-ms {fit} \
         --election-max-ms {}",
        p99.as_millis(),
        timers.election_min.as_millis(),
        2 * fit
    ))
}

/// What to say, and when it was last said.
#[derive(Debug, Default)]
struct Teller {
    warned: Option<Instant>,
    /// Whether the last that was said is that it is slow.
    open: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Say {
    Slow,
    Over,
}

impl Teller {
    fn look(&mut self, now: Instant, slow: bool) -> Option<Say> {
        let due = self.warned.is_none_or(|warned| now.duration_since(warned) >= REMIND_EVERY);
        let say = match (slow, self.open) {
            (true, _) if due => Say::Slow,
            (false, true) => Say::Over,
            _ => return None,
        };
        self.open = say == Say::Slow;
        if self.open {
            self.warned = Some(now);
        }
        Some(say)
    }
}

impl Consensus {
    /// Why the disk is too slow for the election time-outs; none if it is not.
    pub fn disk_slow(&self) -> Option<String> {
        too_slow(self.0.store.pace().p99(Instant::now()), &self.0.timers)
    }

    /// Tells the log of a slow disk until this node stops.
    pub(super) async fn watch_the_disk(self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut teller = Teller::default();
        while !self.stopped() {
            let now = looks.tick().await;
            let slow = self.disk_slow();
            match (teller.look(now, slow.is_some()), slow) {
                (Some(Say::Slow), Some(why)) => tracing::warn!(node = self.0.id, "{why}"),
                (Some(Say::Over), _) => {
                    tracing::info!(node = self.0.id, "the disk is fast enough again");
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const TIMERS: Timers =
        Timers { heartbeat: MS, election_min: Duration::from_millis(300), election_max: MS };

    #[test]
    fn a_third_of_the_shortest_time_out_is_too_slow() {
        assert_eq!(too_slow(None, &TIMERS), None);
        assert_eq!(too_slow(Some(99 * MS), &TIMERS), None);
        let why = too_slow(Some(130 * MS), &TIMERS).expect("it is");
        for part in ["130 ms", "from 300 ms on", "--election-min-ms 600", "--election-max-ms 1200"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        // With what it advises it is no longer too slow.
        let advised = Timers { election_min: 600 * MS, ..TIMERS };
        assert_eq!(too_slow(Some(130 * MS), &advised), None);
    }

    #[test]
    fn the_log_is_told_once_a_minute_at_most() {
        let (start, mut teller) = (Instant::now(), Teller::default());
        let mut said = Vec::new();
        let script = [(0, false), (1, true), (2, true), (60, true), (61, true), (62, false), (63, false)];
        // It comes and goes: no more often for that.
        let flapping =
            [(64, true), (65, false), (66, true), (120, true), (121, true), (122, false), (300, true)];
        for (second, slow) in script.into_iter().chain(flapping) {
            let now = start + Duration::from_secs(second);
            said.extend(teller.look(now, slow).map(|say| (second, say)));
        }
        let expected = [
            (1, Say::Slow),
            (61, Say::Slow),
            (62, Say::Over),
            (121, Say::Slow),
            (122, Say::Over),
            (300, Say::Slow),
        ];
        assert_eq!(said, expected);
    }
}
