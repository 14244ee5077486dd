//! What the control side publishes with one atomic swap: the routes, and for each the endpoints it may use.
//!
//! Routes and pools change together, so that no request sees a route whose pool is not there yet. A pool is shared
//! from table to table until one of its endpoints changes: with a thousand services a change costs what one costs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::picker::Strategy;
use crate::pool::{Entry, Pool};
use crate::route::{Limits, Routes};

/// See the file's head.
#[derive(Debug)]
pub struct Table {
    /// The catalog's revision that this table reflects.
    pub revision: u64,
    /// Where requests go.
    pub routes: Arc<Routes>,
    /// The endpoints of each selector of `routes`, in their order.
    pub pools: Vec<Arc<Pool>>,
    /// The endpoints of every service that has any, whether a route leads there or not.
    pub services: BTreeMap<Arc<str>, Arc<Pool>>,
}

impl Table {
    /// Before the catalog is known: `routes` lead nowhere.
    pub fn empty(routes: Arc<Routes>) -> Table {
        let pools = routes.selectors().iter().map(|_| Arc::default()).collect();
        Table { revision: 0, routes, pools, services: BTreeMap::new() }
    }

    /// Every endpoint, by service.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.services.values().flat_map(|pool| pool.entries())
    }
}

impl Default for Table {
    fn default() -> Table {
        Table::empty(Arc::new(Routes::to_all(Strategy::RoundRobin, Limits::default())))
    }
}
