//! Why a request belongs to one route and not to the others: for people who ask, so at leisure. Pure.

use super::matcher::Unmatched;
use super::path;
use super::rules::{Asked, HOST_BYTES_MAX, Host, PathRule, Rules, host_name};
use super::{Route, Routes};

impl Routes {
    /// For each route but the one numbered `chosen`, why a request for `path` does not belong to it.
    pub fn others(&self, chosen: usize, path: &str, asked: &Asked<'_>) -> Vec<(&Route, String)> {
        let Some(matcher) = &self.matcher else { return Vec::new() };
        let normal = path::read(path).map(|read| read.normal.into_owned()).unwrap_or_default();
        let rules = matcher.rules().iter().enumerate().filter(|(n, _)| *n != chosen);
        rules
            .map(|(n, rules)| {
                let fits = || match chosen == self.nowhere() {
                    true => "it would take the request, if its path could be read in one way only".to_owned(),
                    false => format!(
                        "it would take the request, but {} is more specific, or stands before it",
                        self.get(chosen).name
                    ),
                };
                (self.get(n), rules.lack(&normal, asked).unwrap_or_else(fits))
            })
            .collect()
    }

    /// Why a request belongs to the route that [`Routes::find`] names.
    pub fn because(&self, found: Result<usize, Unmatched>) -> String {
        match found {
            Ok(_) if !self.are_many() => "there is one route, for every request".to_owned(),
            Ok(_) => "it is the most specific route that takes the request".to_owned(),
            Err(why) => why.to_string(),
        }
    }
}

impl Rules {
    /// What a request for `path`, in normal form, lacks to belong to this route; `None` if nothing.
    fn lack(&self, path: &str, asked: &Asked<'_>) -> Option<String> {
        let mut room = [0; HOST_BYTES_MAX];
        let name = asked.host.and_then(|host| host_name(host, &mut room)).unwrap_or_default();
        if !self.hosts.is_empty() && !self.hosts.iter().any(|host| host.takes(name)) {
            let hosts: Vec<String> = self.hosts.iter().map(Host::shown).collect();
            return Some(format!("it is for the host {}", hosts.join(" or ")));
        }
        if !self.paths.is_empty() && !self.paths.iter().any(|rule| rule.takes(path)) {
            let paths: Vec<String> = self.paths.iter().map(PathRule::shown).collect();
            return Some(format!("it is for {}", paths.join(" or ")));
        }
        if !self.methods.is_empty() && !self.methods.contains(asked.method) {
            let methods: Vec<&str> = self.methods.iter().map(|method| method.as_str()).collect();
            return Some(format!("it is for {}", methods.join(" or ")));
        }
        let lacks = |(name, rule): &&(String, super::rules::ValueRule)| {
            !(asked.any_field)(name, &|value| rule.allows(value))
        };
        if let Some((name, _)) = self.fields.iter().find(lacks) {
            return Some(format!("it wants another header {name}"));
        }
        (!self.allow(asked)).then(|| "it wants another query".to_owned())
    }
}

impl Host {
    fn takes(&self, name: &str) -> bool {
        match self {
            Host::Exact(exact) => exact == name,
            Host::Under(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }

    fn shown(&self) -> String {
        match self {
            Host::Exact(name) => name.clone(),
            Host::Under(name) => format!("*.{name}"),
        }
    }
}

impl PathRule {
    fn takes(&self, path: &str) -> bool {
        match self {
            PathRule::Exact(exact) => exact == path,
            PathRule::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            PathRule::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }

    fn shown(&self) -> String {
        match self {
            PathRule::Exact(path) => format!("the path {path}"),
            PathRule::Prefix(path) => format!("paths from {path}/ on"),
            PathRule::Regex(regex) => format!("paths like {}", regex.as_str()),
        }
    }
}
