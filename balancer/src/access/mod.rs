//! The access log: one line of JSON for each request that has ended, to standard output or a file.
//!
//! Nobody waits for it. A worker collects lines in a [`Pen`] of its own and hands them over in batches through a bounded
//! queue; a thread of its own writes them. When that falls behind, whole batches are dropped and their lines counted
//! (`balancer_access_log_dropped_total`). Batches go back to the worker they came from and are filled again, so a line costs
//! no allocation.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use prometheus::IntCounter;
use tracing::{info, warn};

pub mod line;

#[cfg(test)]
mod tests;

/// A batch is handed over when it has as much: one write for a few dozen lines.
const BATCH_BYTES: usize = 32 * 1024;

/// Batches that may wait: 8 MiB, about 20 000 lines.
const QUEUED_MAX: usize = 256;

/// Empty batches that a worker keeps.
const SPARES_MAX: usize = 8;

/// How long lines wait in a worker at most, so that whoever follows the log sees what happens now.
pub const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// The end of this file, which is made if it is not there.
    File(PathBuf),
}

/// Lines on their way.
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    home: SyncSender<Vec<u8>>,
}

enum Message {
    Lines(Batch),
    /// Look whether the file is to be opened again.
    Look,
}

/// The log. Its thread ends when it, all its pens and what makes them are gone, and everything is written.
pub struct Log {
    pens: Pens,
    reopen: Arc<AtomicBool>,
    ended: tokio::sync::oneshot::Receiver<()>,
}

/// Makes pens.
#[derive(Clone)]
pub struct Pens {
    sender: SyncSender<Message>,
    dropped: IntCounter,
}

impl Pens {
    /// What a worker writes with.
    pub fn pen(&self) -> Pen {
        let (home, spares) = sync_channel(SPARES_MAX);
        let (to, dropped) = (self.sender.clone(), self.dropped.clone());
        Pen { batch: Vec::new(), lines: 0, to, home, spares, dropped }
    }
}

impl Log {
    /// Opens `sink` and starts the thread. `dropped` counts lines that could not be written.
    pub fn start(sink: &Sink, dropped: IntCounter) -> io::Result<Log> {
        let (sender, messages) = sync_channel(QUEUED_MAX);
        let (end, ended) = tokio::sync::oneshot::channel();
        let reopen = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            to: Target::open(sink)?,
            reopen: reopen.clone(),
            dropped: dropped.clone(),
            is_failing: false,
        };
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            writer.run(&messages);
            let _ = end.send(());
        })?;
        Ok(Log { pens: Pens { sender, dropped }, reopen, ended })
    }

    /// What makes pens for it.
    pub fn pens(&self) -> Pens {
        self.pens.clone()
    }

    /// What makes the log open its file again, under the same name: after somebody has moved it away.
    pub fn reopener(&self) -> impl Fn() + Send + use<> {
        let (reopen, sender) = (self.reopen.clone(), self.pens.sender.clone());
        move || {
            reopen.store(true, Ordering::Release);
            // If the queue is full the thread has enough to do, and looks after each.
            let _ = sender.try_send(Message::Look);
        }
    }

    /// Waits until everything is written, for `patience` at most: a pipe that nobody reads takes nothing. Pens and reopeners
    /// have to be gone.
    pub async fn close(self, patience: Duration) {
        drop(self.pens);
        if tokio::time::timeout(patience, self.ended).await.is_err() {
            warn!("the access log takes no more; what waited for it is lost");
        }
    }
}

/// One worker's end of the log.
pub struct Pen {
    batch: Vec<u8>,
    lines: u64,
    to: SyncSender<Message>,
    home: SyncSender<Vec<u8>>,
    spares: Receiver<Vec<u8>>,
    dropped: IntCounter,
}

impl Pen {
    /// Adds `line`, which ends with a line feed.
    pub fn write(&mut self, line: &[u8]) {
        self.batch.extend_from_slice(line);
        self.lines += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Hands over what there is. Never blocks.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let spare = self.spares.try_recv().unwrap_or_default();
        let (bytes, lines) = (std::mem::replace(&mut self.batch, spare), std::mem::take(&mut self.lines));
        let batch = Batch { bytes, lines, home: self.home.clone() };
        if let Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) =
            self.to.try_send(Message::Lines(batch))
        {
            self.dropped.inc_by(lines);
            if let Message::Lines(mut batch) = message {
                batch.bytes.clear();
                self.batch = batch.bytes;
            }
        }
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        self.flush();
    }
}

enum Target {
    Stdout,
    File(PathBuf, File),
}

impl Target {
    fn open(sink: &Sink) -> io::Result<Target> {
        match sink {
            Sink::Stdout => Ok(Target::Stdout),
            Sink::File(path) => Ok(Target::File(path.clone(), append(path)?)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Target::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Target::File(_, file) => file.write_all(bytes),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

struct Writer {
    to: Target,
    reopen: Arc<AtomicBool>,
    dropped: IntCounter,
    is_failing: bool,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            if self.reopen.swap(false, Ordering::AcqRel) {
                self.open_again();
            }
            if let Message::Lines(batch) = message {
                self.write(batch);
            }
        }
    }

    fn write(&mut self, mut batch: Batch) {
        match self.to.write(&batch.bytes) {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                self.dropped.inc_by(batch.lines);
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(%error, "cannot write the access log; lines are lost until it can be written again");
                }
            }
        }
        batch.bytes.clear();
        let _ = batch.home.try_send(batch.bytes);
    }

    fn open_again(&mut self) {
        let Target::File(path, file) = &mut self.to else { return };
        match append(path) {
            Ok(fresh) => {
                *file = fresh;
                info!(path = %path.display(), "access log opened again");
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot open the access log again, going on with the old one")
            }
        }
    }
}
