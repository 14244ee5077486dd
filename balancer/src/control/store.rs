//! The last known records on disk, so that a balancer that restarts while the registry is away still knows
//! where to send requests. A cache, not a store of record: if it cannot be read, it is as if it were not there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::record::Record;

/// Raised when the file's meaning changes; other versions are not read.
const VERSION: u32 = 1;

/// What is kept.
#[derive(Serialize, Deserialize, Debug, PartialEq)]
pub struct Saved {
    version: u32,
    saved_at_ms: u64,
    /// The catalog's revision.
    pub revision: u64,
    /// All records.
    pub records: Vec<Record>,
}

impl Saved {
    /// The records as of now.
    pub fn new(revision: u64, records: Vec<Record>) -> Saved {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Saved { version: VERSION, saved_at_ms: now.as_millis() as u64, revision, records }
    }

    /// How long ago it was saved, by the wall clock.
    pub fn age(&self) -> Duration {
        let saved = SystemTime::UNIX_EPOCH + Duration::from_millis(self.saved_at_ms);
        SystemTime::now().duration_since(saved).unwrap_or_default()
    }
}

/// Where it is kept.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// In `dir`, which is made if it is not there, under the balancer's `name`.
    pub fn open(dir: &Path, name: &str) -> io::Result<Store> {
        std::fs::create_dir_all(dir)?;
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let name: String = name.chars().map(safe).collect();
        Ok(Store { path: dir.join(format!("endpoints-{name}.json")) })
    }

    /// What was saved last; `None` if nothing was.
    pub fn load(&self) -> io::Result<Option<Saved>> {
        let bytes = match std::fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let saved: Saved = serde_json::from_slice(&bytes)?;
        Ok((saved.version == VERSION).then_some(saved))
    }

    /// Replaces what was saved. Blocks. A crash leaves the old or the new, never half of one.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let fresh = self.path.with_extension("json.new");
        std::fs::write(&fresh, serde_json::to_vec(saved)?)?;
        std::fs::File::open(&fresh)?.sync_all()?;
        std::fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests;
