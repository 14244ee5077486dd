//! A node that is a cluster by itself, for tests of what stands on consensus.

use std::{sync::Arc, time::Duration};

use clap::Parser;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    config::{Args, Config},
    consensus::{Consensus, Parts, PeerServer, over_tcp, sound},
    metrics::Metrics,
    storage::Store,
    watch::Hub,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// It leads, in `term`, and answers.
pub struct SoleMember {
    /// What it was started with.
    pub config: Config,
    /// Its part in itself.
    pub consensus: Consensus,
    /// Where its catalog lives.
    pub hub: Hub,
    /// What it measures.
    pub metrics: Arc<Metrics>,
    /// Confirmed.
    pub term: u64,
    /// Its directory goes with this.
    pub dir: tempfile::TempDir,
}

impl SoleMember {
    /// Starts it with these flags, and returns when it leads.
    pub async fn lead(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_str().expect("text").to_owned();
        let args = ["registry-node", "--dir", &path].into_iter().chain(flags.iter().copied());
        let config = Args::parse_from(args).check().expect("valid");
        let metrics = Arc::new(Metrics::new());
        let (store, recovered) =
            Store::open(&config.dir, &sound, metrics.clone(), |error| panic!("{error}")).expect("empty");
        let server = PeerServer::new(&config, store.clone(), None, false);
        let hub = Hub::new(8);
        let parts = Parts {
            config: &config,
            store,
            recovered,
            hub: hub.clone(),
            dial: over_tcp(),
            server: &server,
            tracker: &TaskTracker::new(),
        };
        let consensus = Consensus::start(parts).await.expect("it founds a cluster");
        let deadline = Instant::now() + PATIENCE;
        let term = loop {
            match consensus.confirmed_term() {
                Some(term) => break term,
                None => consensus.await_change(Instant::now() + Duration::from_millis(100)).await,
            }
            assert!(Instant::now() < deadline, "it does not lead");
        };
        Self { config, consensus, hub, metrics, term, dir }
    }
}
