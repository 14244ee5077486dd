//! The directory of a run, read back: history, transcripts and the nodes' logs.
//!
//! A run is judged from its files, by the same code as later by `jepsen check`, so the files are always enough.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::history::{Error, History};
use crate::judge::{Report, Violation, judge};
use crate::transcript::Transcript;

/// Where the cluster lives in the directory of a run.
pub const CLUSTER: &str = "cluster";

/// What a run left behind.
#[derive(Debug)]
pub struct Evidence {
    history: History,
    transcripts: Vec<Transcript>,
    /// Lines of the nodes' logs that tell of a panic, with the file's name.
    panics: Vec<(String, String)>,
}

impl Evidence {
    /// Reads the history at `path` and, beside it, the transcripts `watch-*.jsonl` and the logs `cluster/*.log`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let history = History::read(BufReader::new(File::open(path)?))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut transcripts = Vec::new();
        for path in files(dir, "watch-", ".jsonl")? {
            let id = stem(&path).trim_start_matches("watch-").to_owned();
            transcripts.push(Transcript::read(&id, BufReader::new(File::open(&path)?))?);
        }
        let mut panics = Vec::new();
        for path in files(&dir.join(CLUSTER), "", ".log")? {
            for line in BufReader::new(File::open(&path)?).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                if line.contains("panicked at") {
                    panics.push((stem(&path), line));
                }
            }
        }
        Ok(Self { history, transcripts, panics })
    }

    /// The verdict. R4, no panic in any log, is judged here: the other judges know no logs.
    pub fn judge(&self) -> Result<Report, Error> {
        let mut report = judge(&self.history, &self.transcripts)?;
        let panic =
            |(process, line): &(String, String)| Violation { rule: "R4", what: format!("{process}: {line}") };
        report.violations.extend(self.panics.iter().map(panic));
        Ok(report)
    }
}

/// The files in `dir` of this name, in order; none if there is no such directory.
fn files(dir: &Path, begins: &str, ends: &str) -> Result<Vec<PathBuf>, Error> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(begins) && name.ends_with(ends) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
