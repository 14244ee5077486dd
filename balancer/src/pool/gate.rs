//! Who waits for a free slot where endpoints take only so many requests at a time. One for all workers.
//!
//! A queue for each pool, first come first served: a slot that becomes free wakes whoever waits longest and can use it,
//! and that one picks again from the latest pool. It keeps its place until it has got a slot, and whoever comes while
//! others wait queues behind them; so nobody is overtaken. But for a request that is tried again: it can use fewer endpoints
//! than others, and must not keep them from what it cannot use.
//!
//! # Why not hand over the slot itself
//! The endpoint that became free may just have gone down or begun to drain, and the request would be sent there all
//! the same. Only the latest pool says who takes requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Gate {
    /// How many wait, so that a request that ends looks no further if nobody does.
    waiting: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    next: u64,
    /// By pool, then by when they came.
    pools: BTreeMap<u64, BTreeMap<u64, Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    /// Endpoints that have failed it already.
    tried: Vec<u64>,
    woken: Option<Why>,
    waker: Option<Waker>,
}

/// Why a waiter should look again.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// This endpoint has a free slot.
    Freed(u64),
    /// There are other endpoints than before.
    Changed,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Crowded;

impl Gate {
    /// How many wait, for whatever pool.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether anybody waits who can use every endpoint of `pool`.
    pub fn is_waited_for(&self, pool: u64) -> bool {
        let waits = |queue: &BTreeMap<u64, Waiter>| queue.values().any(Waiter::takes_any);
        self.waiting() > 0 && self.queues().pools.get(&pool).is_some_and(waits)
    }

    /// Queues up for an endpoint of `pool` that is not among `tried`, unless `size` are waiting for one. Pick again
    /// right after: a slot that became free before this was not waited for.
    pub fn enter(self: &Arc<Gate>, pool: u64, tried: &[u64], size: usize) -> Result<Ticket, Crowded> {
        let mut queues = self.queues();
        let length = queues.pools.get(&pool).map_or(0, BTreeMap::len);
        if length >= size {
            return Err(Crowded);
        }
        let number = queues.next;
        queues.next += 1;
        let waiter = Waiter { tried: tried.to_vec(), woken: None, waker: None };
        queues.pools.entry(pool).or_default().insert(number, waiter);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // With its counterpart in `freed`: either we see the slot that became free, or that sees us.
        fence(Ordering::SeqCst);
        Ok(Ticket { gate: self.clone(), pool, number })
    }

    /// The endpoint `key` has a free slot. Its count must have fallen by a `SeqCst` operation before.
    pub fn freed(&self, key: u64) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.wake(Why::Freed(key), None);
        }
    }

    /// Pools or limits have changed.
    pub fn changed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.wake(Why::Changed, None);
        }
    }

    /// Wakes the first of each queue, or of the one of `pool`, whom `why` concerns and who is not awake.
    fn wake(&self, why: Why, pool: Option<u64>) {
        let mut queues = self.queues();
        let concerned = queues.pools.iter_mut().filter(|(of, _)| pool.is_none_or(|pool| pool == **of));
        let mut wakers: Vec<Waker> = Vec::new();
        for (_, queue) in concerned {
            for waiter in queue.values_mut().filter(|w| w.woken.is_none() && w.is_concerned(why)) {
                waiter.woken = Some(why);
                wakers.extend(waiter.waker.take());
                // One who may find that what has changed is of no use to it is not the last to be told.
                if matches!(why, Why::Freed(_)) || waiter.takes_any() {
                    break;
                }
            }
        }
        drop(queues);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        // What it guards is whole after every statement, so a panic elsewhere does not spoil it.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Whether it can use every endpoint.
    fn takes_any(&self) -> bool {
        self.tried.is_empty()
    }

    fn is_concerned(&self, why: Why) -> bool {
        match why {
            Why::Freed(key) => !self.tried.contains(&key),
            Why::Changed => true,
        }
    }
}

/// A place in a queue. Dropping it gives the place up.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    pool: u64,
    number: u64,
}

impl Ticket {
    /// Ready when it is worth picking again.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut queues = self.gate.queues();
        let waiter = queues.pools.get_mut(&self.pool).and_then(|queue| queue.get_mut(&self.number));
        let waiter = waiter.expect("a ticket's waiter goes with the ticket");
        match waiter.woken.take() {
            Some(_) => Poll::Ready(()),
            None => {
                if !waiter.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    waiter.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// Whether nobody of its queue came before it who can use every endpoint.
    pub fn is_first(&self) -> bool {
        let queues = self.gate.queues();
        let before = queues.pools.get(&self.pool).into_iter().flat_map(|queue| queue.range(..self.number));
        !before.map(|(_, waiter)| waiter).any(Waiter::takes_any)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.gate.queues();
        if let Some(queue) = queues.pools.get_mut(&self.pool) {
            queue.remove(&self.number);
            if queue.is_empty() {
                queues.pools.remove(&self.pool);
            }
        }
        drop(queues);
        self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
        // It has got a slot, and where there was room for one, there may be for the next; or it was called and does not
        // come; and a slot that became free while all were awake called nobody.
        self.gate.wake(Why::Changed, Some(self.pool));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Flag(AtomicU32);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Waits {
        ticket: Ticket,
        flag: Arc<Flag>,
    }

    impl Waits {
        fn on(gate: &Arc<Gate>, pool: u64, tried: &[u64]) -> Waits {
            let mut waits = Waits { ticket: gate.enter(pool, tried, 9).unwrap(), flag: Arc::default() };
            assert!(!waits.is_called());
            waits
        }

        /// Whether it is its turn; asks again if not.
        fn is_called(&mut self) -> bool {
            let waker = Waker::from(self.flag.clone());
            self.ticket.poll(&mut Context::from_waker(&waker)).is_ready()
        }

        fn times_woken(&self) -> u32 {
            self.flag.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn a_slot_calls_whoever_waits_longest_and_each_slot_another() {
        let gate = Arc::new(Gate::default());
        let mut all: Vec<Waits> = (0..3).map(|_| Waits::on(&gate, 1, &[])).collect();
        gate.freed(7);
        gate.freed(7);
        assert_eq!(all.iter().map(Waits::times_woken).collect::<Vec<_>>(), [1, 1, 0]);
        assert_eq!(all.iter_mut().map(Waits::is_called).collect::<Vec<_>>(), [true, true, false]);
        drop(all.remove(0));
        assert!(gate.is_waited_for(1) && !gate.is_waited_for(2));
        assert_eq!(gate.waiting(), 2);
        // There may be room for another; it finds none, and keeps its place.
        assert!(all[0].is_called() && !all[0].is_called());
        gate.freed(7);
        assert!(all[0].is_called() && !all[1].is_called());
    }

    /// It waits for one that is full, while another is idle.
    #[test]
    fn one_that_is_tried_again_holds_nobody_up() {
        let gate = Arc::new(Gate::default());
        let mut again = Waits::on(&gate, 1, &[7]);
        assert!(!gate.is_waited_for(1));
        let mut other = Waits::on(&gate, 1, &[]);
        assert!(gate.is_waited_for(1) && other.ticket.is_first());
        gate.changed();
        assert!(again.is_called() && other.is_called());
        let behind = Waits::on(&gate, 1, &[]);
        assert!(!behind.ticket.is_first());
    }

    #[test]
    fn a_queue_is_bounded_and_each_pool_has_its_own() {
        let gate = Arc::new(Gate::default());
        let one = gate.enter(1, &[], 1).unwrap();
        assert_eq!(gate.enter(1, &[], 1).err(), Some(Crowded));
        assert_eq!(gate.enter(2, &[], 0).err(), Some(Crowded));
        let mut other = Waits::on(&gate, 2, &[]);
        drop(one);
        gate.freed(7);
        assert!(other.is_called());
        drop(other);
        assert_eq!(gate.waiting(), 0);
        assert!(gate.enter(1, &[], 1).is_ok());
    }

    #[test]
    fn a_slot_passes_over_whom_its_endpoint_has_failed() {
        let gate = Arc::new(Gate::default());
        let (mut first, mut second) = (Waits::on(&gate, 1, &[7]), Waits::on(&gate, 1, &[]));
        gate.freed(7);
        assert!(!first.is_called() && second.is_called());
        gate.freed(8);
        assert!(first.is_called());
    }

    #[test]
    fn the_call_of_one_who_has_left_goes_to_the_next() {
        let gate = Arc::new(Gate::default());
        let (first, mut second) = (Waits::on(&gate, 1, &[]), Waits::on(&gate, 1, &[]));
        gate.freed(7);
        drop(first);
        assert!(second.is_called());
    }

    #[test]
    fn a_change_calls_one_after_the_other_for_as_long_as_there_is_room() {
        let gate = Arc::new(Gate::default());
        let (mut first, mut second) = (Waits::on(&gate, 1, &[]), Waits::on(&gate, 1, &[]));
        let mut third = Waits::on(&gate, 1, &[]);
        gate.changed();
        assert!(first.is_called() && !second.is_called());
        drop(first);
        assert!(second.is_called());
        // No more room.
        assert!(!third.is_called() && !second.is_called());
    }
}
