//! Time limits, coarse and cheap: one clock per worker looks at all of them now and then.
//!
//! A request passes through half a dozen limits and reaches none of them. A timer of the runtime for each would have
//! to be entered and taken out again each time; here setting one is writing a number. Nor is the time asked for each
//! time: what a limit counts from is as coarse as the clock that looks at it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How often the clock looks, and so how late a limit may be noticed.
const TICK: Duration = Duration::from_millis(50);

thread_local! {
    /// When this thread last looked.
    static SEEN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// About now: when this thread last looked at the clock, which it does for each request and with each tick.
pub fn now() -> Instant {
    SEEN.get().unwrap_or_else(look)
}

/// Now.
pub fn look() -> Instant {
    let now = Instant::now();
    SEEN.set(Some(now));
    now
}

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
            ticks.tick().await;
            let now = look();
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
    /// Ready once `at` is past by a tick, since it may count from a tick too early; until then the task is woken no later
    /// than another tick after it.
    pub fn poll(&self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let at = at + TICK;
        if at <= now() {
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
