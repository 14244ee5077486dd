//! Fault injection against real processes, and checkers that share no code with the servers.
//!
//! A run starts a cluster of real processes, drives clients and watchers against it while faults come and go, and
//! writes what every client saw into a history. The judges read nothing but that history, so a verdict can
//! be repeated from the files alone.
//!
//! ```text
//! run          the shell: cluster, clients, watchers, faults, recorder; power cuts
//!   plan       pure: what each client does next, which fault comes when; all from one seed
//! evidence     the files of a run, read back and judged
//!   judge      pure: history and transcripts in, violations out
//! kernel       the system calls that have no safe form
//! history      the lines of `history.jsonl`      transcript      the lines of `watch-*.jsonl`
//! ```
//!
//! `run` and `judge` meet in the files alone.

pub mod evidence;
pub mod history;
pub mod judge;
mod kernel;
pub mod plan;
pub mod run;
pub mod transcript;
