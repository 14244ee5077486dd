//! The load: callers that each ask for one thing at a time, and what became of it.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};
use tonic::Status;

use super::report::quantile;

/// What one window has seen.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// How long it was.
    pub seconds: f64,
    /// Calls that failed, and what the first of them said.
    pub failed: usize,
    /// The first failure.
    pub first_error: Option<String>,
    /// How long each answered call took, in milliseconds; in no order.
    pub millis: Vec<f64>,
}

impl Window {
    /// Answered calls a second.
    pub fn rate(&self) -> f64 {
        self.millis.len() as f64 / self.seconds
    }

    /// What so large a share of the calls did not exceed, in milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        quantile(&self.millis, share)
    }

    /// Fails if a call failed: a rate of which part is errors says nothing.
    pub fn whole(self, what: &str) -> anyhow::Result<Self> {
        match &self.first_error {
            Some(error) => anyhow::bail!("{what}: {} calls failed, the first with: {error}", self.failed),
            None if self.millis.is_empty() => anyhow::bail!("{what}: no call was answered"),
            None => Ok(self),
        }
    }
}

/// Something that answers calls, one at a time; each caller has its own.
pub(crate) trait Door: Send + 'static {
    /// The `nth` thing to ask for; returns once it is answered.
    fn call(&mut self, nth: u64) -> impl Future<Output = Result<(), Status>> + Send;
}

/// Share of the window that runs before it counts: connections open, queues fill.
const WARM_UP: f64 = 0.15;

/// Every door is called as soon as it has answered, with a number below `below` by chance. Counted is what is
/// answered within the window.
pub(crate) async fn closed_loop<D: Door>(doors: Vec<D>, below: u64, window: Duration) -> Window {
    let begin = Instant::now() + window.mul_f64(WARM_UP);
    let end = begin + window;
    let mut callers = JoinSet::new();
    for mut door in doors {
        callers.spawn(async move {
            let mut seen = Window::default();
            loop {
                let asked = Instant::now();
                if asked >= end {
                    return seen;
                }
                let answer = door.call(fastrand::u64(..below)).await;
                let now = Instant::now();
                match answer {
                    Ok(()) if now >= begin && now < end => {
                        seen.millis.push((now - asked).as_secs_f64() * 1e3);
                    }
                    Ok(()) => {}
                    Err(status) => {
                        seen.failed += 1;
                        seen.first_error.get_or_insert_with(|| explain(&status));
                        if seen.failed > FAILURES_MAX {
                            return seen;
                        }
                    }
                }
            }
        });
    }
    let mut whole = Window { seconds: window.as_secs_f64(), ..Window::default() };
    while let Some(seen) = callers.join_next().await {
        let Ok(seen) = seen else { continue };
        whole.failed += seen.failed;
        whole.first_error = whole.first_error.or(seen.first_error);
        whole.millis.extend(seen.millis);
    }
    whole
}

/// A caller that has failed so often stops: nobody is there.
const FAILURES_MAX: usize = 100;

/// A status on one line.
pub(crate) fn explain(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
