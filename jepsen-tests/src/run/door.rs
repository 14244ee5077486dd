//! The two ways into the registry, with one set of answers: through flux, which follows the leader, and through one
//! node's REST API.

use std::time::Duration;

use flux::{Code, Instance, WriteOptions};

use super::rest::{Rest, VALUE};
use crate::history::{Consistency, Entry, service_of};

/// How a client calls.
#[derive(Clone, Debug)]
pub(super) enum Door {
    /// The SDK: any node, preferably the leader.
    Flux(flux::Client),
    /// This node or none.
    Node(Box<Rest>),
}

/// An answer and the revision that it is about, if it says so.
#[derive(Debug)]
pub(super) struct Found<T> {
    pub(super) revision: Option<u64>,
    pub(super) value: T,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Trouble {
    /// Whether the call certainly changed nothing.
    pub(super) no_effect: bool,
    /// The stable name, or empty.
    pub(super) code: String,
    pub(super) message: String,
}

/// A record to put.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) key: &'a str,
    pub(super) service: &'a str,
    pub(super) value: u64,
    pub(super) ttl: Duration,
    pub(super) expected: Option<u64>,
}

impl Trouble {
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Self { no_effect: false, code: String::new(), message: message.into() }
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self { no_effect: true, code: String::new(), message: message.into() }
    }
}

impl From<flux::Error> for Trouble {
    fn from(error: flux::Error) -> Self {
        Self {
            no_effect: error.had_no_effect(),
            code: error.code().as_str().into(),
            message: error.to_string(),
        }
    }
}

impl<'a> Write<'a> {
    pub(super) fn new(key: &'a str, value: u64, ttl: Duration, expected: Option<u64>) -> Self {
        Self { key, service: service_of(key), value, ttl, expected }
    }

    fn instance(&self) -> Instance {
        let mut instance = Instance::new(self.service, "127.0.0.1", 1).id(self.key).ttl(self.ttl);
        instance.metadata.insert(VALUE.into(), self.value.to_string());
        instance
    }
}

impl Door {
    pub(super) async fn put(&self, write: &Write<'_>) -> Result<Found<Entry>, Trouble> {
        match self {
            Self::Node(node) => node.put(write).await,
            Self::Flux(client) => {
                let options = WriteOptions { expected_revision: write.expected, ..WriteOptions::default() };
                let answer = client.put(&write.instance(), options).await?;
                Ok(Found { revision: Some(answer.value.mod_rev), value: entry(&answer.value) })
            }
        }
    }

    pub(super) async fn deregister(&self, key: &str, reg_rev: Option<u64>) -> Result<Found<bool>, Trouble> {
        match self {
            Self::Node(node) => node.deregister(key, reg_rev).await,
            Self::Flux(client) => {
                let answer = client.deregister(key, reg_rev).await?;
                Ok(Found { revision: Some(answer.revision), value: answer.value })
            }
        }
    }

    pub(super) async fn renew(&self, key: &str, reg_rev: u64) -> Result<Found<bool>, Trouble> {
        match self {
            Self::Node(node) => node.renew(key, reg_rev).await,
            Self::Flux(client) => {
                let answer = client.heartbeat(key, reg_rev).await?;
                Ok(Found { revision: Some(answer.revision), value: answer.value })
            }
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Found<Option<Entry>>, Trouble> {
        match self {
            Self::Node(node) => node.get(key).await,
            Self::Flux(client) => match client.get(key).await {
                Ok(answer) => {
                    Ok(Found { revision: Some(answer.revision), value: Some(entry(&answer.value)) })
                }
                Err(error) if error.code() == Code::NotFound => Ok(Found { revision: None, value: None }),
                Err(error) => Err(error.into()),
            },
        }
    }

    pub(super) async fn list(
        &self,
        service: Option<&str>,
        consistency: Consistency,
    ) -> Result<Found<Vec<Entry>>, Trouble> {
        match self {
            Self::Node(node) => node.list(service, consistency).await,
            Self::Flux(client) => {
                let answer = match consistency {
                    Consistency::Linearizable => client.list(service).await?,
                    Consistency::Stale => client.list_stale(service).await?,
                };
                Ok(Found { revision: Some(answer.revision), value: answer.value.iter().map(entry).collect() })
            }
        }
    }
}

/// What the history keeps of an instance.
pub(super) fn entry(instance: &Instance) -> Entry {
    let value = instance.metadata.get(VALUE).and_then(|value| value.parse().ok());
    Entry(instance.id.clone(), value, instance.reg_rev, instance.mod_rev)
}
