//! The entrance: a cheap handle that speaks to whichever node answers.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::{Error, Instance, Registration, Status, Transport, Watch};

/// A handle to the registry. Cheap to clone; all clones share connections and what is known of the nodes.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Builder>,
}

/// Settings of a [`Client`].
#[derive(Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    call_timeout: Duration,
    name: String,
    transport: Transport,
    metrics: Option<prometheus::Registry>,
}

/// A value and what it is as of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// The catalog's revision that the answer is about.
    pub revision: u64,
    /// The cluster that answered. Revisions of different clusters cannot be compared.
    pub cluster_id: String,
    /// The node that answered.
    pub node_id: u64,
    /// How long ago that node last heard of a leader: a stale read may be this old.
    pub age: Duration,
    /// The answer itself.
    pub value: T,
}

/// What goes with a write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Write only if the id's `mod_rev` is this; 0: only if it is not registered.
    pub expected_revision: Option<u64>,
    /// Who asks, for people. Empty: the client's name.
    pub by: String,
    /// Why, for people.
    pub why: String,
}

/// A service and how many run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceSummary {
    /// The service.
    pub name: String,
    /// All its instances.
    pub instances: u32,
    /// Those that take requests.
    pub up: u32,
}

/// A node of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Never used twice in a cluster.
    pub id: u64,
    /// For people.
    pub name: String,
    /// URL for other nodes.
    pub peer: String,
    /// URL for clients.
    pub grpc: String,
    /// URL for clients.
    pub rest: String,
    /// As the answering node knows it.
    pub role: Role,
}

/// What a node is in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Decides.
    Leader,
    /// Votes and follows.
    Follower,
    /// Follows, has no vote.
    Learner,
    /// Asks for votes.
    Candidate,
    /// Not said.
    Unknown,
}

/// What a node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Of its program.
    pub version: String,
    /// What it is now.
    pub role: Role,
    /// The term it is in.
    pub term: u64,
    /// The leader it knows; 0 if none.
    pub leader_id: u64,
    /// Applied to the catalog.
    pub applied_index: u64,
    /// Known to be on a majority.
    pub committed_index: u64,
    /// The end of its log.
    pub last_log_index: u64,
    /// Its snapshot covers up to here.
    pub snapshot_index: u64,
    /// Its log begins after this.
    pub purged_index: u64,
    /// Registered in all.
    pub instances: u64,
    /// Following its changes.
    pub watchers: u64,
    /// Serves linearizable reads now.
    pub ready: bool,
    /// Why not, for people.
    pub not_ready_reason: String,
    /// Hash of the catalog at the answer's revision.
    pub catalog_hash: String,
}

impl Client {
    /// A client of these nodes, such as `http://127.0.0.1:8081`. Does no I/O; fails only on a URL that cannot
    /// be one, or none at all.
    pub fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Client, Error> {
        Client::builder(endpoints).build()
    }

    /// A client with settings.
    pub fn builder(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        Builder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            call_timeout: Duration::from_secs(5),
            name: "flux".to_owned(),
            transport: Transport::Auto,
            metrics: None,
        }
    }

    /// Registers and stays registered. Returns after the first acknowledgement; until then tries for ever,
    /// unless the registry says that the request can never succeed.
    pub async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        instance.check()?;
        Err(self.later())
    }

    /// All instances, or those of one service; linearizable.
    pub async fn list(&self, _service: Option<&str>) -> Result<Answer<Vec<Instance>>, Error> {
        Err(self.later())
    }

    /// As [`Client::list`], from whichever node answers: [`Answer::age`] says how old it may be.
    pub async fn list_stale(&self, _service: Option<&str>) -> Result<Answer<Vec<Instance>>, Error> {
        Err(self.later())
    }

    /// One instance; linearizable. [`Code::NotFound`](crate::Code::NotFound) if it is not registered.
    pub async fn get(&self, _id: &str) -> Result<Answer<Instance>, Error> {
        Err(self.later())
    }

    /// Services with the number of their instances; linearizable.
    pub async fn services(&self) -> Result<Answer<Vec<ServiceSummary>>, Error> {
        Err(self.later())
    }

    /// Registers once, without heartbeats: for tools and tests. Tried again on another node only if it
    /// certainly had no effect.
    pub async fn put(&self, _instance: &Instance, _options: WriteOptions) -> Result<Answer<Instance>, Error> {
        Err(self.later())
    }

    /// Deregisters once; only the incarnation `reg_rev` if it is given. The answer says whether something was
    /// there.
    pub async fn deregister(&self, _id: &str, _reg_rev: Option<u64>) -> Result<Answer<bool>, Error> {
        Err(self.later())
    }

    /// Renews a lease once. False: it is lost, register again.
    pub async fn heartbeat(&self, _id: &str, _reg_rev: u64) -> Result<Answer<bool>, Error> {
        Err(self.later())
    }

    /// Marks an instance up, draining or in maintenance; only the incarnation `reg_rev` if it is given.
    pub async fn set_status(
        &self,
        _id: &str,
        _status: Status,
        _reg_rev: Option<u64>,
    ) -> Result<Answer<Instance>, Error> {
        Err(self.later())
    }

    /// The registry's own nodes.
    pub async fn members(&self) -> Result<Answer<Vec<Member>>, Error> {
        Err(self.later())
    }

    /// What the node that this client talks to knows of itself.
    pub async fn status(&self) -> Result<Answer<NodeStatus>, Error> {
        Err(self.later())
    }

    /// Follows one service, or all. Needs a tokio runtime; never fails.
    pub fn watch(&self, _service: Option<&str>) -> Watch {
        Watch::silent()
    }

    fn later(&self) -> Error {
        Error::invalid(format!("{} has no connection", self.inner.name))
    }
}

impl Builder {
    /// How long one call may take in all, tries on other nodes included. 5 s unless set.
    pub fn call_timeout(mut self, timeout: Duration) -> Builder {
        self.call_timeout = timeout;
        self
    }

    /// Who this is, for people: in provenance and in lists of watchers.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// The protocol. [`Transport::Auto`] unless set.
    pub fn transport(mut self, transport: Transport) -> Builder {
        self.transport = transport;
        self
    }

    /// Where the client's metrics go.
    pub fn metrics(mut self, registry: &prometheus::Registry) -> Builder {
        self.metrics = Some(registry.clone());
        self
    }

    /// The client. Does no I/O.
    pub fn build(self) -> Result<Client, Error> {
        let _ = (self.call_timeout, self.transport, &self.metrics);
        if self.endpoints.is_empty() {
            return Err(Error::invalid("no endpoints given"));
        }
        Ok(Client { inner: Arc::new(self) })
    }
}
