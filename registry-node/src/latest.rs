//! The latest value of something, and a wake-up for whoever waits for the next: what `tokio::sync::watch` is, but
//! waiters wake in the order in which they began to wait.
//!
//! # Why not tokio's
//! It spreads its waiters at random over eight lists, from a seed that only `--cfg tokio_unstable` lets one set:
//! no run of a simulation could be repeated. Everything here and all of openraft waits on this one instead.

use std::{
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

/// A value at version 0, and a receiver that has seen it.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let state = RwLock::new(State { value, version: 0 });
    let shared = Arc::new(Shared {
        state,
        senders: AtomicUsize::new(1),
        receivers: AtomicUsize::new(1),
        moved: Notify::new(),
    });
    (Sender(shared.clone()), Receiver { shared, seen: 0 })
}

#[derive(Debug)]
struct Shared<T> {
    state: RwLock<State<T>>,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    moved: Notify,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    version: u64,
}

/// Every sender is gone: the value is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there will be no further value")]
pub struct Closed;

/// A look at the value; holds back senders while it lives.
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Shared<T> {
    fn read(&self) -> Ref<'_, T> {
        Ref(self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// The value now.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.read()
    }

    /// Changes the value, and wakes who waits if `change` says so.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            let changed = change(&mut state.value);
            state.version += u64::from(changed);
            changed
        };
        if changed {
            self.0.moved.notify_waiters();
        }
        changed
    }

    /// Replaces the value and wakes who waits.
    pub fn send_replace(&self, value: T) {
        self.send_if_modified(|current| {
            *current = value;
            true
        });
    }

    /// The same; gives the value back, and changes nothing, if nobody could receive it.
    pub fn send(&self, value: T) -> Result<(), T> {
        if self.0.receivers.load(Ordering::Acquire) == 0 {
            return Err(value);
        }
        self.send_replace(value);
        Ok(())
    }

    /// Whether both change the same value.
    pub fn same_channel(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A receiver that has seen the value as it is now.
    pub fn subscribe(&self) -> Receiver<T> {
        self.0.receivers.fetch_add(1, Ordering::AcqRel);
        Receiver { seen: self.borrow().0.version, shared: self.0.clone() }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::AcqRel);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.moved.notify_waiters();
        }
    }
}

/// Sees the value, and waits for the next.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    /// The value now.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.read()
    }

    /// The value now, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = value.0.version;
        value
    }

    /// What there is counts as seen.
    pub fn mark_unchanged(&mut self) {
        self.borrow_and_update();
    }

    /// Returns once there is a value that this receiver has not seen, and counts it as seen. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Made before the look: what happens after it wakes it.
            let moved = self.shared.moved.notified();
            let open = self.shared.senders.load(Ordering::Acquire) > 0;
            let version = self.shared.read().0.version;
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if !open {
                return Err(Closed);
            }
            moved.await;
        }
    }

    /// Returns once the value is as wanted, now or later. Cancel-safe.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<(), Closed> {
        while !wanted(&self.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.fetch_add(1, Ordering::AcqRel);
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_missed() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(2);
        receiver.changed().await.expect("a change");
        assert_eq!(*receiver.borrow(), 2);
        let waiting =
            tokio::spawn(
                async move { receiver.wait_for(|value| *value == 4).await.map(|()| *receiver.borrow()) },
            );
        for value in [3, 4] {
            sender.send_replace(value);
            tokio::task::yield_now().await;
        }
        assert_eq!(waiting.await.expect("no panic"), Ok(4));
    }

    #[tokio::test]
    async fn the_last_sender_ends_the_wait() {
        let (sender, mut receiver) = channel(1);
        let other = sender.clone();
        drop(sender);
        let waiting = tokio::spawn(async move { receiver.changed().await });
        tokio::task::yield_now().await;
        other.send_if_modified(|_| false);
        drop(other);
        assert_eq!(waiting.await.expect("no panic"), Err(Closed));
    }

    #[tokio::test]
    async fn a_value_for_nobody_comes_back() {
        let (sender, receiver) = channel(1);
        drop(receiver);
        assert_eq!(sender.send(2), Err(2));
        let mut late = sender.subscribe();
        assert_eq!(*late.borrow(), 1);
        assert_eq!(sender.send(3), Ok(()));
        late.changed().await.expect("a change");
    }

    #[tokio::test]
    async fn who_waited_first_wakes_first() {
        let (sender, receiver) = channel(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waiters: Vec<_> = (0..50)
            .map(|n| {
                let (mut receiver, woken) = (receiver.clone(), woken.clone());
                tokio::spawn(async move {
                    receiver.changed().await.expect("a change");
                    woken.lock().expect("no panic").push(n);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for waiter in waiters {
            waiter.await.expect("no panic");
        }
        assert_eq!(*woken.lock().expect("no panic"), (0..50).collect::<Vec<_>>());
    }
}
