//! Where a request belongs and how it is treated on the way: routes, compiled once, immutable. Pure.
//!
//! Without configured routes everything is one route over one pool of all instances, as in the original.

use std::sync::Arc;

use crate::picker::Settings;

/// The pattern of the route that takes everything; metrics call it by this name.
pub const ALL: &str = "/";

/// All routes, and which instances they need.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
    selectors: Vec<Selector>,
}

/// What becomes of the requests that it matches.
#[derive(Debug)]
pub struct Route {
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    /// How endpoints are picked.
    pub picking: Settings,
    /// Which of [`Routes::selectors`] they are picked from.
    pub selector: usize,
}

/// Which instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Those of this service; of all, if there is none.
    pub service: Option<Arc<str>>,
    /// Those of this version; of all, if there is none.
    pub version: Option<Arc<str>>,
}

impl Selector {
    /// Whether an instance of `service` in `version` is meant.
    pub fn takes(&self, service: &str, version: &str) -> bool {
        self.service.as_deref().is_none_or(|s| s == service)
            && self.version.as_deref().is_none_or(|v| v == version)
    }
}

impl Routes {
    /// One route, over all instances.
    pub fn to_all(picking: impl Into<Settings>) -> Routes {
        Routes {
            routes: vec![Route { name: ALL.into(), picking: picking.into(), selector: 0 }],
            selectors: vec![Selector::default()],
        }
    }

    /// One route, over the first of `selectors`.
    #[cfg(test)]
    pub fn over(selectors: Vec<Selector>) -> Routes {
        Routes { selectors, ..Routes::to_all(crate::picker::Strategy::RoundRobin) }
    }

    /// The instances that routes need.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// The route numbered `index`. Panics if [`Routes::find`] did not name it.
    pub fn get(&self, index: usize) -> &Route {
        &self.routes[index]
    }

    /// The number of the route that takes a request.
    pub fn find(&self) -> Option<usize> {
        Some(0)
    }
}
