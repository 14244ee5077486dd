//! Lets go of clients that stop reading a stream. Such a stream is not asked for more, so it cannot end itself;
//! whoever carries it ends it: the carrier drops the stream, the client sees it broken off and resumes elsewhere
//! or later. What it has not read costs no more than its window.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Stream, future};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may leave a stream unread that holds what others wait for. A part of a snapshot is a quarter of
/// a MiB: whoever reads 50 KiB a second is never let go for it.
const HURRY: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Of whoever carries the stream that this task makes.
    static READER: Reader;
}

/// When a stream was last asked for more.
#[derive(Clone, Debug)]
struct Reader(Arc<Read>);

#[derive(Debug)]
struct Read {
    begun: Instant,
    /// Milliseconds since `begun` and one; 0 while no stream is watched over.
    asked: AtomicU64,
    /// Whether others wait for what the stream holds.
    hurried: AtomicBool,
}

impl Reader {
    fn new() -> Reader {
        let (asked, hurried) = (AtomicU64::new(0), AtomicBool::new(false));
        Reader(Arc::new(Read { begun: Instant::now(), asked, hurried }))
    }

    fn note(&self) {
        let now = self.0.begun.elapsed().as_millis() as u64;
        self.0.asked.store(now + 1, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.asked.store(0, Ordering::Relaxed);
    }

    fn patience_ends(&self, stall_max: Duration) -> Option<Instant> {
        let asked = self.0.asked.load(Ordering::Relaxed).checked_sub(1)?;
        let hurried = self.0.hurried.load(Ordering::Relaxed);
        let patience = if hurried { stall_max.min(HURRY) } else { stall_max };
        Some(self.0.begun + Duration::from_millis(asked) + patience)
    }
}

/// While it lives, others wait for what the stream of this task holds: its client has less time to read on.
#[derive(Debug)]
pub struct Hurry(Option<Reader>);

/// Begins to hurry the client of the stream that this task carries.
pub fn hurry() -> Hurry {
    let reader = READER.try_with(Reader::clone).ok();
    if let Some(reader) = &reader {
        reader.0.hurried.store(true, Ordering::Relaxed);
    }
    Hurry(reader)
}

impl Drop for Hurry {
    fn drop(&mut self) {
        if let Some(reader) = &self.0 {
            reader.0.hurried.store(false, Ordering::Relaxed);
        }
    }
}

/// A stream whose carrier ends it when nobody reads it for too long. It must have something to say every now and
/// then.
pub fn noticed<S: Stream>(stream: S) -> impl Stream<Item = S::Item> {
    Noticed { reader: READER.try_with(Reader::clone).ok(), stream: Box::pin(stream) }
}

struct Noticed<S> {
    reader: Option<Reader>,
    stream: Pin<Box<S>>,
}

impl<S: Stream> Stream for Noticed<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if let Some(reader) = &self.reader {
            reader.note();
        }
        self.stream.as_mut().poll_next(cx)
    }
}

impl<S> Drop for Noticed<S> {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.clear();
        }
    }
}

/// Carries `future`, which may make a stream; none if its client stopped reading that. In one allocation: what a
/// stream costs while it is idle is mostly this.
pub fn unless_stalled<F: Future>(
    stall_max: Duration,
    future: F,
) -> impl Future<Output = Option<F::Output>> + use<F> {
    let reader = Reader::new();
    let mut carried = Box::pin(READER.scope(reader.clone(), future));
    let mut patience: Option<Pin<Box<Sleep>>> = None;
    future::poll_fn(move |cx| {
        if let Poll::Ready(output) = carried.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let Some(ends) = reader.patience_ends(stall_max) else { return Poll::Pending };
        let sleep = patience.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        if ends < sleep.deadline() {
            sleep.as_mut().reset(ends);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if ends <= Instant::now() {
                return Poll::Ready(None);
            }
            sleep.as_mut().reset(ends);
        }
    })
}

/// Runs the streams of HTTP/2 connections, each until its client stops reading.
#[derive(Clone, Copy, Debug)]
pub struct Carrying(pub Duration);

impl<F> Executor<F> for Carrying
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let carried = unless_stalled(self.0, future);
        tokio::spawn(async move {
            if carried.await.is_none() {
                tracing::info!("a stream was let go: its client reads no more");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::StreamExt;
    use tokio::time::sleep;

    use super::*;

    /// A stream that always has something to say, asked so many times a second for so many seconds, and then no
    /// more.
    async fn carry(stall_max: Duration, seconds: u64, goes_on: bool) -> Option<()> {
        unless_stalled(stall_max, async {
            let mut stream = pin!(noticed(futures_util::stream::repeat(())));
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(seconds) {
                stream.next().await;
                sleep(Duration::from_millis(20)).await;
            }
            if !goes_on {
                future::pending::<()>().await;
            }
        })
        .await
    }

    #[tokio::test]
    async fn a_stream_that_is_read_now_and_then_goes_on() {
        assert_eq!(carry(Duration::from_secs(4), 6, true).await, Some(()));
    }

    #[tokio::test]
    async fn a_stream_that_is_read_no_more_is_let_go() {
        assert_eq!(carry(Duration::from_millis(200), 1, false).await, None);
    }

    /// A stream that holds what others wait for is let go soon, and only while it does.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_others_wait_for_is_let_go_sooner() {
        let carry = async |hurried: Duration, unread: Duration| {
            let begun = Instant::now();
            let carried = unless_stalled(12 * HURRY, async move {
                let mut stream = pin!(noticed(futures_util::stream::repeat(())));
                stream.next().await;
                // The stall is noticed anew at every poll: the timer of the long patience runs already.
                sleep(Duration::from_millis(1)).await;
                let hurry = hurry();
                stream.next().await;
                sleep(hurried).await;
                drop(hurry);
                stream.next().await;
                sleep(unread).await;
            });
            (carried.await, begun.elapsed())
        };
        let (carried, took) = carry(2 * HURRY, Duration::ZERO).await;
        assert!(carried.is_none() && took < 2 * HURRY, "{took:?}");
        let (carried, took) = carry(HURRY / 2, 2 * HURRY).await;
        assert!(carried.is_some() && took > 2 * HURRY, "{took:?}");
    }

    #[tokio::test]
    async fn what_makes_no_stream_takes_as_long_as_it_likes() {
        let stall_max = Duration::from_millis(50);
        assert_eq!(unless_stalled(stall_max, sleep(10 * stall_max)).await, Some(()));
        // Nor does one that made a stream and has finished it.
        let after = async {
            pin!(noticed(futures_util::stream::iter([()]))).next().await;
            sleep(10 * stall_max).await;
        };
        assert_eq!(unless_stalled(stall_max, after).await, Some(()));
    }
}
