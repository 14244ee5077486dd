//! Which route a request belongs to: all rules compiled into one table. Pure.
//!
//! # The most specific route wins
//! As in the Gateway API, not the first in the file: a route that somebody adds at the end must not be dead because of
//! one at the beginning, and the order of a file must not carry the meaning. In this order: an exact host, the longer
//! wildcard, any host; an exact path, an expression, the longer prefix, any path; one that names methods; more header
//! fields; more query parameters. Of equals the first in the file. A route that fits by host and path alone and not by
//! the rest is passed over for the next best one.
//!
//! # Why not matchit
//! Its tree knows one winner per path and no way on from there; prefixes at segment borders would be two patterns
//! each, and expressions and conditions stay outside anyway. A look-up for each border of the path costs as little.

use std::collections::HashMap;

use regex::bytes::Regex;

use super::path::{self, Misread};
use super::rules::{Asked, HOST_BYTES_MAX, Host, PathRule, Rules, host_name};

#[cfg(test)]
#[path = "matcher_tests.rs"]
mod tests;

/// See the file's head. Routes are numbers: their places in the list that it was made of.
#[derive(Debug, Default)]
pub struct Matcher {
    rules: Vec<Rules>,
    exact: HashMap<String, Paths>,
    under: HashMap<String, Paths>,
    any: Paths,
}

/// The routes of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<String, Vec<usize>>,
    regexes: Vec<(Regex, usize)>,
    prefixes: HashMap<String, Vec<usize>>,
    /// Of the longest prefix: no border beyond it is looked at, however long a path.
    prefix_bytes_max: usize,
    any: Vec<usize>,
}

/// Why a request belongs to no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmatched {
    /// There is none for it.
    #[error("no route for this request")]
    None,
    /// Its path cannot be read.
    #[error("{0}")]
    Misread(#[from] Misread),
    /// Its path can be read in ways that belong to different routes.
    #[error("a path that can be read in ways that belong to different routes")]
    Ambiguous,
}

impl Matcher {
    /// Compiles `rules`, one for each route.
    pub fn new(rules: Vec<Rules>) -> Matcher {
        let mut matcher = Matcher::default();
        for (route, of) in rules.iter().enumerate() {
            for host in &of.hosts {
                match host {
                    Host::Exact(name) => matcher.exact.entry(name.clone()).or_default().add(of, route),
                    Host::Under(name) => matcher.under.entry(name.clone()).or_default().add(of, route),
                }
            }
            if of.hosts.is_empty() {
                matcher.any.add(of, route);
            }
        }
        matcher.hosts_mut().for_each(|paths| paths.sort(&rules));
        matcher.rules = rules;
        matcher
    }

    /// What each route demands.
    pub fn rules(&self) -> &[Rules] {
        &self.rules
    }

    /// The route of a request for `path`, which comes without its query.
    pub fn find(&self, path: &str, asked: &Asked<'_>) -> Result<usize, Unmatched> {
        let read = path::read(path)?;
        let found = self.look_up(&read.normal, asked);
        if read.others.iter().any(|other| self.look_up(other, asked) != found) {
            return Err(Unmatched::Ambiguous);
        }
        found.ok_or(Unmatched::None)
    }

    /// Routes that no request can belong to, each with the one that takes them all.
    pub fn shadowed(&self) -> Vec<(usize, usize)> {
        let mut by: Vec<Option<usize>> = vec![None; self.rules.len()];
        let mut open = vec![false; self.rules.len()];
        for list in self.hosts().flat_map(Paths::lists) {
            for (n, &route) in list.iter().enumerate() {
                match list[..n].iter().find(|&&earlier| self.rules[earlier].cover(&self.rules[route])) {
                    Some(&earlier) => by[route] = by[route].or(Some(earlier)),
                    None => open[route] = true,
                }
            }
        }
        by.iter().enumerate().filter(|(n, _)| !open[*n]).filter_map(|(n, by)| Some((n, (*by)?))).collect()
    }

    fn look_up(&self, path: &str, asked: &Asked<'_>) -> Option<usize> {
        let fits = |route: usize| self.rules[route].allow(asked);
        if !(self.exact.is_empty() && self.under.is_empty()) {
            let mut room = [0; HOST_BYTES_MAX];
            let name = asked.host.and_then(|host| host_name(host, &mut room));
            if let Some(found) = name.and_then(|name| self.by_host(name, path, &fits)) {
                return Some(found);
            }
        }
        self.any.find(path, &fits)
    }

    fn by_host(&self, name: &str, path: &str, fits: &dyn Fn(usize) -> bool) -> Option<usize> {
        let exact = self.exact.get(name).and_then(|paths| paths.find(path, fits));
        if exact.is_some() || self.under.is_empty() {
            return exact;
        }
        let parents = name.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| &name[at + 1..]);
        parents.filter_map(|parent| self.under.get(parent)).find_map(|paths| paths.find(path, fits))
    }

    fn hosts(&self) -> impl Iterator<Item = &Paths> {
        self.exact.values().chain(self.under.values()).chain([&self.any])
    }

    fn hosts_mut(&mut self) -> impl Iterator<Item = &mut Paths> {
        self.exact.values_mut().chain(self.under.values_mut()).chain([&mut self.any])
    }
}

impl Paths {
    fn add(&mut self, rules: &Rules, route: usize) {
        for rule in &rules.paths {
            match rule {
                PathRule::Exact(path) => self.exact.entry(path.clone()).or_default().push(route),
                PathRule::Prefix(path) => {
                    self.prefix_bytes_max = self.prefix_bytes_max.max(path.len());
                    self.prefixes.entry(path.clone()).or_default().push(route);
                }
                PathRule::Regex(regex) => self.regexes.push((regex.clone(), route)),
            }
        }
        if rules.paths.is_empty() {
            self.any.push(route);
        }
    }

    fn sort(&mut self, rules: &[Rules]) {
        let rank = |route: &usize| (std::cmp::Reverse(rules[*route].rank()), *route);
        self.exact.values_mut().chain(self.prefixes.values_mut()).for_each(|list| list.sort_by_key(rank));
        self.any.sort_by_key(rank);
        self.regexes.sort_by_key(|(_, route)| rank(route));
    }

    fn find(&self, path: &str, fits: &dyn Fn(usize) -> bool) -> Option<usize> {
        let first = |list: Option<&Vec<usize>>| list?.iter().copied().find(|&route| fits(route));
        let exact = if self.exact.is_empty() { None } else { first(self.exact.get(path)) };
        exact
            .or_else(|| {
                let mut matching = self.regexes.iter().filter(|(regex, _)| regex.is_match(path.as_bytes()));
                matching.find(|(_, route)| fits(*route)).map(|(_, route)| *route)
            })
            .or_else(|| self.borders(path).find_map(|end| first(self.prefixes.get(&path[..end]))))
            .or_else(|| first(Some(&self.any)))
    }

    /// Where a prefix of `path` may end, the longest first.
    fn borders<'a>(&'a self, path: &'a str) -> impl Iterator<Item = usize> + 'a {
        let (is_path, most) = (path.starts_with('/') && !self.prefixes.is_empty(), self.prefix_bytes_max);
        let whole = (is_path && path.len() <= most).then_some(path.len());
        let reach = if is_path { path.len().min(most + 1) } else { 0 };
        // A slash is a byte of its own in UTF-8, so it can be looked for among bytes.
        let inner = (0..reach).rev().filter(|&at| path.as_bytes()[at] == b'/');
        whole.into_iter().chain(inner)
    }

    /// Routes that compete for the same requests, in the order in which they are asked.
    fn lists(&self) -> Vec<Vec<usize>> {
        let mut by_pattern: HashMap<&str, Vec<usize>> = HashMap::new();
        for (regex, route) in &self.regexes {
            by_pattern.entry(regex.as_str()).or_default().push(*route);
        }
        let lists = self.exact.values().chain(self.prefixes.values()).chain([&self.any]).cloned();
        lists.chain(by_pattern.into_values()).collect()
    }
}
