//! Many services, of which some change all the time.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::peers::Registry;

const SERVICES: usize = 1_000;
/// Instances of each.
const INSTANCES: usize = 10;
/// Registrations under way at once, while they are made.
const AT_ONCE: usize = 64;
/// Between changes: a hundred a second.
const EVERY: Duration = Duration::from_millis(10);

/// They are all registered.
#[derive(Debug)]
pub(super) struct Many {
    registry: Registry,
    address: SocketAddr,
}

/// Changes under way.
#[derive(Debug)]
pub(super) struct Changing {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<u64>>,
}

fn name(n: usize) -> (String, String) {
    (format!("other-{}", n % SERVICES), format!("other-{}-{}", n % SERVICES, n / SERVICES))
}

impl Many {
    /// Registers them all at `address`.
    pub async fn register(registry: Registry, address: SocketAddr) -> Result<Many> {
        let all = stream::iter(0..SERVICES * INSTANCES).map(|n| {
            let registry = registry.clone();
            async move {
                let (service, id) = name(n);
                registry.register(&service, &id, address).await
            }
        });
        all.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(Many { registry, address })
    }

    /// Takes one after the other out and in again, until [`Changing::end`].
    pub fn change(&self) -> Changing {
        let stop = CancellationToken::new();
        let (registry, address, stopped) = (self.registry.clone(), self.address, stop.clone());
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut changes = 0;
            // To the end of a pair: everybody is there again.
            for n in (0..SERVICES * INSTANCES).cycle() {
                if stopped.is_cancelled() {
                    break;
                }
                let (service, id) = name(n);
                ticks.tick().await;
                registry.deregister(&id).await?;
                ticks.tick().await;
                registry.register(&service, &id, address).await?;
                changes += 2;
            }
            Ok(changes)
        });
        Changing { stop, task }
    }
}

impl Changing {
    /// Ends them. Returns how many there were.
    pub async fn end(self) -> Result<u64> {
        self.stop.cancel();
        self.task.await.context("the changes have panicked")?
    }
}
