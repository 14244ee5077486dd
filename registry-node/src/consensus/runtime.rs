//! What openraft runs on: tokio, with every task in its process's scope, and waiters that wake in order. In a
//! server no scope is open and this is tokio; in the simulation the same code runs from one seed.

use std::{convert::Infallible, time::Duration};

use openraft::{
    AsyncRuntime, OptionalSend, OptionalSync,
    async_runtime::{RecvError, watch},
    impls::TokioRuntime,
};
use tokio::task::JoinHandle;

use crate::{
    latest,
    scope::{dice, scoped},
};

type Tokio = TokioRuntime;

#[derive(Debug)]
pub struct Runtime(Tokio);

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Dice;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = Latest;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        tokio::spawn(scoped(future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Dice {
        Dice(dice())
    }

    fn new(threads: usize) -> Self {
        Self(Tokio::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Spreads election time-outs; nothing depends on their secrecy.
pub struct Dice(fastrand::Rng);

impl rand_core::TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.0.u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.u64(..))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// [`latest`] as openraft's kind of watch.
pub struct Latest;

impl watch::Watch for Latest {
    type Sender<T: OptionalSend + OptionalSync> = latest::Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = latest::Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = latest::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (latest::Sender<T>, latest::Receiver<T>) {
        latest::channel(init)
    }
}

impl<T: OptionalSend + OptionalSync> watch::WatchSender<Latest, T> for latest::Sender<T> {
    fn send(&self, value: T) -> Result<(), watch::SendError<T>> {
        latest::Sender::send(self, value).map_err(watch::SendError)
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        latest::Sender::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> latest::Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> latest::Receiver<T> {
        latest::Sender::subscribe(self)
    }
}

impl<T: OptionalSend + OptionalSync> watch::WatchReceiver<Latest, T> for latest::Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        latest::Receiver::changed(self).await.map_err(|latest::Closed| RecvError(()))
    }

    fn borrow_watched(&self) -> latest::Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> latest::Ref<'_, T> {
        latest::Receiver::borrow_and_update(self)
    }
}
