//! What happened, folded into one number: two runs of one seed must come to the same.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

/// A run's trace. Cheap to clone.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    began: Instant,
    hash: u64,
    verbose: bool,
}

impl Trace {
    /// An empty one; `verbose` prints every line.
    pub fn new(verbose: bool) -> Self {
        Self(Arc::new(Mutex::new(State { began: Instant::now(), hash: 0xcbf2_9ce4_8422_2325, verbose })))
    }

    /// Adds what happened now.
    pub fn note(&self, numbers: &[u64], what: &str) {
        let mut state = self.0.lock().expect("no panic while it is held");
        let at = state.began.elapsed().as_micros() as u64;
        let bytes = std::iter::once(&at).chain(numbers).flat_map(|n| n.to_le_bytes()).chain(what.bytes());
        // FNV-1a, 64 bits.
        state.hash =
            bytes.fold(state.hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        if state.verbose {
            eprintln!("{:>9.3} ms {numbers:?} {what}", at as f64 / 1000.0);
        }
    }

    /// What it has come to.
    pub fn hash(&self) -> u64 {
        self.0.lock().expect("no panic while it is held").hash
    }

    /// Since it began.
    pub fn now(&self) -> std::time::Duration {
        self.0.lock().expect("no panic while it is held").began.elapsed()
    }
}
