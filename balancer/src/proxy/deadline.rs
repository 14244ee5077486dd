//! Time limits, coarse and cheap: one clock per worker looks at all of them now and then.
//!
//! A request passes through half a dozen limits and reaches none of them. A timer of the runtime for each would have
//! to be entered and taken out again each time; here setting one is writing a number.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How often the clock looks, and so how late a limit may be noticed.
const TICK: Duration = Duration::from_millis(50);

/// All limits of one worker.
#[derive(Default)]
pub struct Deadlines {
    slots: RefCell<Vec<Slot>>,
    /// Slots that nobody has.
    free: RefCell<Vec<usize>>,
}

#[derive(Default)]
struct Slot {
    at: Option<Instant>,
    waker: Option<Waker>,
}

impl Deadlines {
    /// A limit that is not set.
    pub fn add(self: &Rc<Self>) -> Deadline {
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            self.slots.borrow_mut().push(Slot::default());
            self.slots.borrow().len() - 1
        });
        Deadline { home: self.clone(), slot }
    }

    /// Wakes whoever waits beyond its limit, now and then, for ever.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await.into_std();
            self.wake(|slot| slot.at.is_some_and(|at| at <= now));
        }
    }

    /// Wakes everybody: something has changed that all have to look at.
    pub fn wake_all(&self) {
        self.wake(|_| true);
    }

    fn wake(&self, due: impl Fn(&Slot) -> bool) {
        let wakers: Vec<Waker> =
            self.slots.borrow().iter().filter(|s| due(s)).filter_map(|s| s.waker.clone()).collect();
        wakers.iter().for_each(Waker::wake_by_ref);
    }
}

/// One task's limit. A task waits for one thing at a time; the latest limit replaces the one before.
pub struct Deadline {
    home: Rc<Deadlines>,
    slot: usize,
}

impl Deadline {
    /// Ready once `at` is past; until then the task is woken no later than a tick after it.
    pub fn poll(&self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        if at <= Instant::now() {
            return Poll::Ready(());
        }
        let mut slots = self.home.slots.borrow_mut();
        let slot = &mut slots[self.slot];
        slot.at = Some(at);
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Nothing is waited for any more.
    pub fn clear(&self) {
        self.home.slots.borrow_mut()[self.slot].at = None;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.home.slots.borrow_mut()[self.slot] = Slot::default();
        self.home.free.borrow_mut().push(self.slot);
    }
}
