//! Writes the history and the transcripts, on one clock.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::history::{Header, Kind, Line, Nemesis, NemesisProcess, Op, Phase, Target, write_line};
use crate::transcript::{Body, Message};

/// The name of the history in the directory of a run.
pub(super) const HISTORY: &str = "history.jsonl";

/// Where every party of a run records. Clones write to the same history.
///
/// An invocation is recorded before its request is sent and an outcome after its answer was read, so recorded
/// intervals contain the real ones and no checker accuses anybody wrongly.
#[derive(Clone, Debug)]
pub(super) struct Recorder {
    dir: PathBuf,
    began: Instant,
    processes: Arc<AtomicU64>,
    history: Arc<Mutex<History>>,
}

#[derive(Debug)]
struct History {
    file: BufWriter<File>,
    next_index: u64,
    failed: Option<std::io::Error>,
}

/// One watcher's transcript.
#[derive(Debug)]
pub(super) struct Tape {
    file: BufWriter<File>,
    began: Instant,
    failed: Option<std::io::Error>,
}

impl Recorder {
    /// Begins the history of a run in `dir`; this moment is time 0.
    pub(super) fn begin(dir: &Path, header: &Header) -> std::io::Result<Self> {
        let mut file = BufWriter::new(File::create(dir.join(HISTORY))?);
        write_line(&mut file, header)?;
        let history = History { file, next_index: 0, failed: None };
        Ok(Self {
            dir: dir.to_owned(),
            began: Instant::now(),
            processes: Arc::new(AtomicU64::new(0)),
            history: Arc::new(Mutex::new(history)),
        })
    }

    /// A process id that nobody has had.
    pub(super) fn process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// Records an invocation or an outcome; index and time are set here.
    pub(super) fn op(&self, op: Op) {
        let mut history = self.history();
        let (index, time) = (history.next_index, self.now());
        history.write(&Line::Op(Op { index, time, ..op }));
    }

    /// Records what was done to the cluster.
    pub(super) fn nemesis(&self, f: String, value: Target, phase: Phase) {
        let mut history = self.history();
        let (index, time) = (history.next_index, self.now());
        let (process, kind) = (NemesisProcess::Nemesis, Kind::Info);
        history.write(&Line::Nemesis(Nemesis { index, time, process, kind, f, value, phase }));
    }

    /// A new transcript.
    pub(super) fn tape(
        &self,
        id: &str,
        service: Option<&str>,
        endpoints: Vec<String>,
    ) -> std::io::Result<Tape> {
        let file = BufWriter::new(File::create(self.dir.join(format!("watch-{id}.jsonl")))?);
        let mut tape = Tape { file, began: self.began, failed: None };
        tape.write(Body::Open { service: service.map(str::to_owned), endpoints });
        Ok(tape)
    }

    /// Everything recorded so far is in the file, or an error says why not.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        let mut history = self.history();
        match history.failed.take() {
            Some(error) => Err(error),
            None => history.file.flush(),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    fn write(&mut self, line: &Line) {
        self.next_index += 1;
        if let Err(error) = write_line(&mut self.file, line) {
            self.failed.get_or_insert(error);
        }
    }
}

impl Tape {
    /// Records what was just received.
    pub(super) fn write(&mut self, body: Body) {
        let time = self.began.elapsed().as_nanos() as u64;
        if let Err(error) = write_line(&mut self.file, &Message { time, body }) {
            self.failed.get_or_insert(error);
        }
    }

    /// Everything recorded is in the file, or an error says why not.
    pub(super) fn finish(mut self) -> std::io::Result<()> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.file.flush(),
        }
    }
}
