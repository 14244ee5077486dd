//! What a watcher was told, line by line: `watch-<id>.jsonl` beside the history.
//!
//! The transcripts of all watchers together say in which order everything happened: see `judge::log`. Times are on
//! the clock of the history.

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use crate::history::{Entry, Error};

#[cfg(test)]
mod tests;

/// One watcher's life.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcript {
    /// From the file name.
    pub id: String,
    /// What it watches; nothing means everything.
    pub service: Option<String>,
    /// What it was told.
    pub messages: Vec<Message>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// When it was received, in nanoseconds since the start of the run.
    pub time: u64,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Body {
    /// The first line: what is watched, through whom.
    Open {
        /// Nothing means everything.
        service: Option<String>,
        /// Where the watcher may connect.
        endpoints: Vec<String>,
    },
    /// Replaces everything the watcher holds.
    Reset {
        /// The catalog's revision that the instances are of.
        revision: u64,
        /// All of them, in any order.
        instances: Vec<Entry>,
    },
    /// Changes after the position of the watcher, which moves to `revision`.
    Events {
        /// The new position.
        revision: u64,
        /// In order.
        events: Vec<Event>,
    },
    /// Nothing more happened up to `revision`.
    Progress {
        /// The new position.
        revision: u64,
    },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The revision that it belongs to.
    pub revision: u64,
    /// What happened.
    pub change: Change,
    /// The record after a put, or as it was before a removal.
    pub entry: Entry,
}

/// What happened to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Registered or changed.
    Put,
    /// Taken out by a client.
    Delete,
    /// Its lease ran out.
    Expire,
}

impl Transcript {
    /// Reads a transcript. The first line must be `open`.
    pub fn read(id: &str, from: impl BufRead) -> Result<Self, Error> {
        let mut messages = Vec::new();
        let mut service = None;
        for (at, text) in from.lines().enumerate() {
            let malformed = |why: String| Error::Line { line: at + 1, why: format!("watch {id}: {why}") };
            let message: Message =
                serde_json::from_str(&text?).map_err(|error| malformed(error.to_string()))?;
            match (at, message.body) {
                (0, Body::Open { service: watched, .. }) => service = watched,
                (0, _) => return Err(malformed("the first line is not an open".into())),
                (_, Body::Open { .. }) => return Err(malformed("an open that is not the first line".into())),
                (_, body) => messages.push(Message { time: message.time, body }),
            }
        }
        Ok(Self { id: id.into(), service, messages })
    }
}
