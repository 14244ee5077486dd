//! Which process a task belongs to, where one process stands for several: the deterministic simulation runs a
//! whole cluster in one. A node's tasks then take their random numbers from its seed, read a wall clock of its own,
//! stand still while it is paused, and never run again once it is killed. Where nobody has opened a scope, this does
//! nothing.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::SystemTime,
};

tokio::task_local! {
    static SCOPE: Scope;
}

/// A process within the process. Cheap to clone.
#[derive(Clone)]
pub struct Scope(Arc<Mutex<State>>);

struct State {
    dice: fastrand::Rng,
    /// What the wall clock shows at each look.
    clock: fastrand::Rng,
    life: Life,
    /// Tasks that wanted to run while it was paused.
    held: Vec<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Paused,
    Killed,
}

impl Scope {
    /// A running one, whose random numbers come from `seed`. Its wall clock jumps with every look, as `clock` says.
    pub fn new(seed: u64, clock: u64) -> Self {
        let [dice, clock] = [seed, clock].map(fastrand::Rng::with_seed);
        Self(Arc::new(Mutex::new(State { dice, clock, life: Life::Running, held: Vec::new() })))
    }

    /// Runs a future as part of this process, and everything it spawns with [`scoped`].
    pub fn run<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let scope = self.clone();
        SCOPE.scope(self.clone(), async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let may_run = {
                    let mut state = scope.state();
                    if state.life == Life::Paused {
                        state.held.push(cx.waker().clone());
                    }
                    state.life == Life::Running
                };
                if may_run { future.as_mut().poll(cx) } else { Poll::Pending }
            })
            .await
        })
    }

    /// No task of it runs until [`Scope::resume`]; time goes on.
    pub fn pause(&self) {
        let mut state = self.state();
        if state.life == Life::Running {
            state.life = Life::Paused;
        }
    }

    /// Ends a pause.
    pub fn resume(&self) {
        let held = {
            let mut state = self.state();
            if state.life == Life::Paused {
                state.life = Life::Running;
            }
            std::mem::take(&mut state.held)
        };
        held.into_iter().for_each(Waker::wake);
    }

    /// No task of it ever runs again.
    pub fn kill(&self) {
        self.state().life = Life::Killed;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The future as part of the process that the calling task belongs to.
pub fn scoped<F: Future>(future: F) -> impl Future<Output = F::Output> + use<F> {
    let scope = SCOPE.try_with(Scope::clone).ok();
    async move {
        match scope {
            Some(scope) => scope.run(future).await,
            None => future.await,
        }
    }
}

/// Milliseconds since 1970 by the wall clock, which may jump: for people, never for decisions.
pub fn wall_ms() -> u64 {
    let real = |_| SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64);
    SCOPE.try_with(|scope| scope.state().clock.u64(..)).unwrap_or_else(real)
}

/// Random numbers for timing; from the seed of the process that the calling task belongs to.
pub fn dice() -> fastrand::Rng {
    SCOPE.try_with(|scope| scope.state().dice.fork()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_paused_task_stands_still_and_a_killed_one_for_ever() {
        let scope = Scope::new(1, 1);
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let (count, mut counted) = tokio::sync::mpsc::unbounded_channel();
        // A task of a task: it belongs to the scope as well.
        let child = scope.run(async move {
            let child = scoped(async move {
                while let Some(n) = receiver.recv().await {
                    let _ = count.send(n); // the test has ended
                }
            });
            [tokio::spawn(child)]
        });
        let [child] = child.await;
        let settle = async || {
            for _ in 0..10 {
                tokio::task::yield_now().await
            }
        };
        sender.send(1).expect("the task listens");
        settle().await;
        assert_eq!(counted.try_recv(), Ok(1));
        scope.pause();
        sender.send(2).expect("the task listens");
        settle().await;
        assert!(counted.try_recv().is_err());
        scope.resume();
        settle().await;
        assert_eq!(counted.try_recv(), Ok(2));
        scope.kill();
        scope.resume();
        sender.send(3).expect("the task listens");
        settle().await;
        assert!(counted.try_recv().is_err());
        assert!(!child.is_finished());
    }

    #[tokio::test]
    async fn the_same_seed_throws_the_same_dice() {
        let throw = async || {
            Scope::new(7, 1).run(async { (dice().u64(..), scoped(async { dice().u64(..) }).await) }).await
        };
        let (first, second) = (throw().await, throw().await);
        assert_eq!(first, second);
        assert_ne!(first.0, first.1);
    }

    #[tokio::test]
    async fn the_wall_clock_is_real_outside_and_jumps_inside() {
        let look = async |clock| Scope::new(7, clock).run(async { [wall_ms(), wall_ms()] }).await;
        assert_eq!(look(1).await, look(1).await);
        assert_ne!(look(1).await, look(2).await);
        let [first, second] = look(1).await;
        assert!(first.abs_diff(second) > 60_000, "{first} {second}");
        const YEAR_2020_MS: u64 = 1_577_836_800_000;
        assert!(wall_ms() > YEAR_2020_MS && wall_ms() < 10 * YEAR_2020_MS);
    }
}
