//! A leader that is heard and hears nobody, in simulated time: it has to fall silent, for whatever it sends keeps the
//! others from electing another.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::trio::{Trio, registration};

/// The longest election time-out, after which a leader that has heard no quorum says nothing.
const ELECTION_MAX: Duration = Duration::from_millis(600);
/// A heartbeat that was due just then, and its way.
const LATE: Duration = Duration::from_millis(110);

#[tokio::test(start_paused = true)]
async fn a_leader_that_hears_nobody_sends_nothing_while_the_others_elect() {
    // The answers are lost from any moment of a write on: that to its entry, or that to the mark that it is committed.
    for after_ms in 0..12 {
        let trio = Trio::start().await;
        trio.delay(Duration::from_millis(3));
        let leader = trio.leader().await;
        leader.register("before").await.expect("a quorum");
        sleep(Duration::from_millis(after_ms)).await;
        trio.deafen(leader.id);
        let deaf = Instant::now();
        for number in 0..20 {
            let (consensus, until) = (leader.consensus.clone(), deaf + 5 * ELECTION_MAX);
            tokio::spawn(async move {
                sleep(Duration::from_millis(20 * number)).await;
                let _ = consensus.propose(registration(&format!("i{number}")), until).await; // nobody can confirm it
            });
        }
        sleep_until(deaf + 5 * ELECTION_MAX).await;
        let appends = trio.appends_of(leader.id);
        assert!(appends.iter().any(|at| *at > deaf), "it is heard");
        let silence = deaf + ELECTION_MAX + LATE..deaf + 3 * ELECTION_MAX;
        let heard: Vec<_> = appends.iter().filter(|at| silence.contains(at)).map(|at| *at - deaf).collect();
        assert!(heard.is_empty(), "deaf {after_ms} ms after a write, and heard {heard:?} later");
    }
}
