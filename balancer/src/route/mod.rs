//! Where a request belongs and how it is treated on the way: routes, compiled once, immutable. Pure but for the counts of
//! rate limits.
//!
//! ```text
//! path (one form for all spellings) ─┐
//! rules (one rule by itself) ────────┴─▶ matcher (which route) ─▶ Route ─▶ rewrite, limit
//! ```
//!
//! Without configured routes everything is one route over one pool of all instances, as in the original, and nothing is
//! compared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::picker::{Key, Settings, Strategy};

pub mod limit;
pub mod matcher;
pub mod path;
pub mod rewrite;
pub mod rules;
mod why;

pub use limit::Limiter;
pub use matcher::Unmatched;
pub use rules::Asked;

use matcher::Matcher;
use rewrite::{Answer, Edits, Redirect, Rewrite};
use rules::Rules;

#[cfg(test)]
mod tests;

/// The pattern of the route that takes everything; metrics call it by this name.
pub const ALL: &str = "/";

/// The name of what no route takes, in metrics and logs.
pub const NONE: &str = "none";

/// All routes, and which instances they need.
#[derive(Debug)]
pub struct Routes {
    /// The last one answers what belongs to none of the others, unless all belongs to one.
    routes: Vec<Route>,
    selectors: Vec<Selector>,
    /// Nothing is compared without one.
    matcher: Option<Matcher>,
}

/// What becomes of the requests that it matches.
#[derive(Debug)]
pub struct Route {
    /// Unique among all routes this process ever made.
    pub key: u64,
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    /// How endpoints are picked.
    pub picking: Settings,
    /// What becomes of a request.
    pub action: Action,
    /// How long a request may take.
    pub limits: Limits,
    /// When it is tried again.
    pub retry: Retry,
    /// How its target changes.
    pub rewrite: Rewrite,
    /// How its fields change.
    pub request: Edits,
    /// How its response's fields change.
    pub response: Edits,
    /// How many there may be.
    pub rate: Option<Arc<Limiter>>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to an endpoint of one of these. Not all weights are 0.
    Forward(Vec<Target>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Answer(Answer),
    /// There is no route for it.
    Nowhere,
}

/// One of the places that a route's requests are divided among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which of [`Routes::selectors`].
    pub selector: usize,
    /// Its share, relative to the others.
    pub weight: u32,
}

/// How long a request may take, in its parts and as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the end of a request to the head of its response.
    pub response_timeout: Duration,
    /// Between two pieces of a body, in either direction.
    pub body_idle: Duration,
    /// Without a byte in either direction on an upgraded connection, or without an event in a stream of them.
    pub tunnel_idle: Duration,
    /// From the end of a request's head to the end of its response, all attempts included.
    pub total: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            response_timeout: Duration::from_secs(30),
            body_idle: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
            total: None,
        }
    }
}

/// When a request is tried again. What must not happen twice is not sent twice, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts at most, the first included.
    pub attempts: u8,
    /// After no connection could be made.
    pub connect: bool,
    /// After a connection kept from an earlier request turned out closed.
    pub stale: bool,
    /// After a connection broke off before a response.
    pub broke: bool,
}

impl Default for Retry {
    /// Refused connections cost little and a stale connection is nobody's fault, but a request must end.
    fn default() -> Retry {
        Retry { attempts: 4, connect: true, stale: true, broke: true }
    }
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

impl Route {
    /// Treats requests as the defaults have it.
    pub fn new(name: &str, picking: impl Into<Settings>, action: Action, limits: Limits) -> Route {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        Route {
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            picking: picking.into(),
            action,
            limits,
            retry: Retry::default(),
            rewrite: Rewrite::default(),
            request: Edits::default(),
            response: Edits::default(),
            rate: None,
        }
    }

    /// Where a request goes, in the order in which it is asked: one by its share, as `draw` has it, and should nobody be
    /// there the others that have a share.
    pub fn targets(&self, draw: u64) -> impl Iterator<Item = Target> {
        let targets = match &self.action {
            Action::Forward(targets) => targets.as_slice(),
            Action::Redirect(_) | Action::Answer(_) | Action::Nowhere => &[],
        };
        let first = if targets.len() > 1 { shared_out(targets, draw) } else { 0 };
        let (others, rest) = targets.split_at(first);
        rest.iter().chain(others).copied().filter(|t| t.weight > 0)
    }

    /// Whether requests are divided.
    pub fn is_split(&self) -> bool {
        matches!(&self.action, Action::Forward(targets) if targets.len() > 1)
    }

    /// The draw of what belongs to `key`: every balancer divides sessions alike, and each split by itself.
    pub fn draw(&self, key: u64) -> u64 {
        // FNV-1a: the same in every process and every release.
        let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        let name = self.name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
        match Key::of(&(name ^ key).to_be_bytes()) {
            Key::Hash(mixed) => mixed,
            Key::Home(session) => session.key(),
        }
    }
}

/// The number of the target whose part of the weights `draw` falls into.
fn shared_out(targets: &[Target], draw: u64) -> usize {
    let total: u64 = targets.iter().map(|t| u64::from(t.weight)).sum();
    let mut left = ((u128::from(draw) * u128::from(total)) >> 64) as u64;
    let mut takes = |t: &Target| {
        let is_within = left < u64::from(t.weight);
        left = left.saturating_sub(u64::from(t.weight));
        is_within
    };
    targets.iter().position(&mut takes).unwrap_or_default()
}

impl Routes {
    /// One route, over all instances.
    pub fn to_all(picking: impl Into<Settings>, limits: Limits) -> Routes {
        let all = Action::Forward(vec![Target { selector: 0, weight: 1 }]);
        Routes {
            routes: vec![Route::new(ALL, picking, all, limits)],
            selectors: vec![Selector::default()],
            matcher: None,
        }
    }

    /// Each of `routes` for the requests that its rules are for; their targets are places in `selectors`.
    pub fn new(routes: Vec<(Rules, Route)>, selectors: Vec<Selector>) -> Routes {
        let (rules, mut routes): (Vec<Rules>, Vec<Route>) = routes.into_iter().unzip();
        routes.push(Route::new(NONE, Strategy::RoundRobin, Action::Nowhere, Limits::default()));
        Routes { routes, selectors, matcher: Some(Matcher::new(rules)) }
    }

    /// One route, over the first of `selectors`.
    #[cfg(test)]
    pub fn over(selectors: Vec<Selector>) -> Routes {
        Routes { selectors, ..Routes::to_all(Strategy::RoundRobin, Limits::default()) }
    }

    /// The instances that routes need.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// All routes, in the order of their numbers.
    pub fn all(&self) -> &[Route] {
        &self.routes
    }

    /// The route numbered `index`. Panics if neither [`Routes::find`] nor [`Routes::nowhere`] named it.
    pub fn get(&self, index: usize) -> &Route {
        &self.routes[index]
    }

    /// Whether there is more than one route to choose from. If not, all belongs to the first.
    pub fn are_many(&self) -> bool {
        self.matcher.is_some()
    }

    /// The number of the route that takes a request for `path`, which comes without its query.
    pub fn find(&self, path: &str, asked: &Asked<'_>) -> Result<usize, Unmatched> {
        self.matcher.as_ref().map_or(Ok(0), |matcher| matcher.find(path, asked))
    }

    /// The number of the route for requests that have none.
    pub fn nowhere(&self) -> usize {
        self.routes.len() - 1
    }

    /// Routes that no request can belong to, each with the one that takes them all.
    pub fn shadowed(&self) -> Vec<(&Route, &Route)> {
        let dead = self.matcher.iter().flat_map(Matcher::shadowed);
        dead.map(|(dead, by)| (self.get(dead), self.get(by))).collect()
    }

    /// Goes on with the counts of `before`, where a route of the same name allows the same.
    pub fn inherit(&mut self, before: &Routes) {
        for route in &mut self.routes {
            let old =
                before.routes.iter().find(|old| old.name == route.name).and_then(|old| old.rate.as_ref());
            if let (Some(old), Some(new)) = (old, &mut route.rate)
                && old.allowance == new.allowance
            {
                *new = old.clone();
            }
        }
    }
}
