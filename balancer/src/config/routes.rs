//! From the keys of `routes` to the compiled table, or to what is wrong with them and where.

use std::collections::HashSet;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_saphyr::{Location, Spanned};

use super::picking::with_strategy;
use super::schema::{
    ByFile, EditsFile, MatchFile, PathFile, RateLimitFile, RedirectFile, RetryFile, RetryOn, RewriteFile,
    RouteFile, ShareFile, TimeoutsFile, ValueFile,
};
use crate::picker::Settings;
use crate::route::limit::{Allowance, By};
use crate::route::rewrite::{Answer, Edits, Redirect, RedirectPath, Rewrite};
use crate::route::rules::{self, Host, PathRule, Rules, ValueRule};
use crate::route::{Action, Limiter, Limits, NONE, Retry, Route, Routes, Selector, Target, path};

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;

/// Longest name: it is a label of every series of the route.
const NAME_BYTES_MAX: usize = 128;

/// Attempts at most: whoever needs more has another problem.
const ATTEMPTS_MAX: u8 = 10;

/// Longest time in which requests are counted: a day.
const PER_MAX: Duration = Duration::from_secs(86_400);

/// Longest time until a burst may come again: a year. What is behind counts in nanoseconds.
const REFILL_SECONDS_MAX: f64 = 31_536_000.0;

/// The service that stands for all of them.
const ALL_SERVICES: &str = "*";

/// Fields that say how a message is framed, where it goes and whom it comes from. They are not a route's to change.
const OURS: [&str; 15] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-request-id",
];

/// What is wrong, and where.
#[derive(Debug)]
pub struct Flaw {
    /// Where.
    pub at: Location,
    /// What, why, and what to do.
    pub message: String,
}

/// What routes that do not say otherwise do.
pub struct Defaults {
    /// How they pick.
    pub picking: Settings,
    /// How long requests may take.
    pub limits: Limits,
}

/// What a list of routes comes to.
pub struct Compiled {
    /// The table.
    pub routes: Routes,
    /// A line for each route, for people.
    pub lines: Vec<String>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<String>,
}

fn flaw<T>(at: Location, message: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw { at, message: message.into() })
}

/// Adds the place of `of` to an error.
fn at<T, U, E: Display>(of: &Spanned<U>, result: Result<T, E>) -> Result<T, Flaw> {
    result.map_err(|e| Flaw { at: of.referenced, message: e.to_string() })
}

/// Compiles `files`.
pub fn compile(files: &[Spanned<RouteFile>], defaults: &Defaults) -> Result<Compiled, Flaw> {
    let mut selectors = Vec::new();
    let (mut routes, mut lines) = (Vec::new(), Vec::new());
    let mut names = HashSet::new();
    for file in files {
        let rules = match &file.value.rules {
            Some(rules) => compile_rules(rules)?,
            None => Rules::default(),
        };
        let name = name(file, &rules)?;
        if !names.insert(name.clone()) {
            let message = format!(
                "two routes are called {name:?}; give this one another name, which is its label in metrics"
            );
            return flaw(file.value.name.as_ref().map_or(file.referenced, |n| n.referenced), message);
        }
        let route = route(&name, file, &rules, defaults, &mut selectors)?;
        lines.push(line(&rules, &route, &selectors));
        routes.push((rules, route));
    }
    let routes = Routes::new(routes, selectors);
    let dead = routes.shadowed().into_iter();
    let never = dead.map(|(dead, by)| {
        format!("route {:?} never takes a request: {:?} takes them all", dead.name, by.name)
    });
    let warnings = never.collect();
    Ok(Compiled { routes, lines, warnings })
}

fn name(file: &Spanned<RouteFile>, rules: &Rules) -> Result<String, Flaw> {
    let Some(name) = &file.value.name else { return Ok(pattern(rules)) };
    let is_good =
        (1..=NAME_BYTES_MAX).contains(&name.value.len()) && !name.value.chars().any(char::is_control);
    match is_good && name.value != NONE {
        true => Ok(name.value.clone()),
        false => flaw(
            name.referenced,
            format!(
                "name {:?} must have 1 to {NAME_BYTES_MAX} printable bytes and not be {NONE:?}",
                name.value
            ),
        ),
    }
}

/// Host and path of a route, the first of each.
fn pattern(rules: &Rules) -> String {
    let host = rules.hosts.first().map_or(String::new(), |host| match host {
        Host::Exact(name) => name.clone(),
        Host::Under(name) => format!("*.{name}"),
    });
    let path = rules.paths.first().map_or("/".to_owned(), |path| match path {
        PathRule::Exact(path) => path.clone(),
        PathRule::Prefix(path) if path.is_empty() => "/".to_owned(),
        PathRule::Prefix(path) => path.clone(),
        PathRule::Regex(regex) => format!("~{}", source(regex.as_str())),
    });
    let mut whole = format!("{host}{path}");
    while whole.len() > NAME_BYTES_MAX {
        whole.pop();
    }
    whole
}

/// An expression as it was configured.
fn source(compiled: &str) -> &str {
    compiled.strip_prefix(r"\A(?:").and_then(|rest| rest.strip_suffix(r")\z")).unwrap_or(compiled)
}

fn compile_rules(file: &MatchFile) -> Result<Rules, Flaw> {
    let mut rules = Rules::default();
    if let Some(hosts) = &file.host {
        for text in some(hosts, &hosts.value.0)? {
            rules.hosts.push(at(hosts, Host::configured(text).map_err(|e| format!("host {text:?}: {e}")))?);
        }
    }
    if let Some(paths) = &file.path {
        for path in some(paths, &paths.value.0)? {
            rules.paths.push(at(paths, path_rule(path))?);
        }
    }
    if let Some(methods) = &file.method {
        for text in some(methods, &methods.value.0)? {
            rules.methods.push(at(methods, method(text))?);
        }
    }
    if let Some(fields) = &file.headers {
        for (name, value) in &fields.value {
            let known =
                at(fields, HeaderName::try_from(name).map_err(|_| format!("{name:?} is no header's name")))?;
            if known == "host" {
                return flaw(fields.referenced, "the host is matched by the key host");
            }
            rules.fields.push((known.as_str().to_owned(), at(fields, value_rule(name, value))?));
        }
    }
    if let Some(query) = &file.query {
        for (name, value) in &query.value {
            rules.query.push((name.clone(), at(query, value_rule(name, value))?));
        }
    }
    Ok(rules)
}

/// A list that says something: an empty one could mean all or nothing.
fn some<'a, T, U>(of: &Spanned<U>, list: &'a [T]) -> Result<&'a [T], Flaw> {
    match list {
        [] => flaw(of.referenced, "an empty list; leave the key out to take all"),
        list => Ok(list),
    }
}

fn path_rule(file: &PathFile) -> Result<PathRule, String> {
    let plain = |text: &str| path::configured(text).map_err(|e| format!("path {text:?}: {e}"));
    Ok(match file {
        PathFile::Exact(text) => PathRule::Exact(plain(text)?),
        PathFile::Prefix(text) => PathRule::Prefix(plain(text)?.trim_end_matches('/').to_owned()),
        PathFile::Regex(pattern) => PathRule::Regex(regex(pattern)?),
    })
}

fn value_rule(name: &str, file: &ValueFile) -> Result<ValueRule, String> {
    Ok(match file {
        ValueFile::Exact(text) => ValueRule::Exact(text.clone()),
        ValueFile::Present => ValueRule::Present,
        ValueFile::Regex(pattern) => ValueRule::Regex(regex(pattern).map_err(|e| format!("{name}: {e}"))?),
    })
}

fn regex(pattern: &str) -> Result<regex::bytes::Regex, String> {
    rules::regex(pattern).map_err(|error| {
        // Its last line says what is wrong; those before draw it.
        let text = error.to_string();
        let what = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("regex {pattern:?}: {what}")
    })
}

fn method(text: &str) -> Result<Method, String> {
    let method = Method::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no method"))?;
    let upper = text.to_ascii_uppercase();
    match upper == text {
        true => Ok(method),
        false => Err(format!("methods are told apart by case; did you mean {upper:?}?")),
    }
}

fn route(
    name: &str,
    file: &Spanned<RouteFile>,
    rules: &Rules,
    defaults: &Defaults,
    selectors: &mut Vec<Selector>,
) -> Result<Route, Flaw> {
    let of = &file.value;
    let action = action(file, rules, selectors)?;
    let needs_endpoint = [
        of.rewrite.as_ref().map(|s| ("rewrite", s.referenced)),
        of.strategy.as_ref().map(|s| ("strategy", s.referenced)),
        of.timeouts.as_ref().map(|s| ("timeouts", s.referenced)),
        of.retry.as_ref().map(|s| ("retry", s.referenced)),
    ];
    if let (false, Some((key, place))) =
        (matches!(action, Action::Forward(_)), needs_endpoint.into_iter().flatten().next())
    {
        return flaw(place, format!("{key} says nothing where no backend is asked"));
    }
    let picking = match &of.strategy {
        Some(strategy) => with_strategy(&defaults.picking, strategy.value),
        None => defaults.picking.clone(),
    };
    let mut route = Route::new(name, picking, action, defaults.limits.clone());
    if let Some(timeouts) = &of.timeouts {
        set_limits(&mut route.limits, &timeouts.value)?;
    }
    if let Some(retry) = &of.retry {
        route.retry = compile_retry(&retry.value)?;
    }
    if let Some(rewrite) = &of.rewrite {
        route.rewrite = compile_rewrite(rewrite, rules)?;
    }
    if let Some(edits) = &of.request_headers {
        if !matches!(route.action, Action::Forward(_)) {
            return flaw(file.referenced, "requestHeaders says nothing where no backend is asked");
        }
        route.request = compile_edits(edits)?;
    }
    if let Some(edits) = &of.response_headers {
        route.response = compile_edits(edits)?;
    }
    if let Some(rate) = &of.rate_limit {
        route.rate = Some(Arc::new(limiter(rate)?));
    }
    Ok(route)
}

fn action(file: &Spanned<RouteFile>, rules: &Rules, selectors: &mut Vec<Selector>) -> Result<Action, Flaw> {
    let of = &file.value;
    if let (Some(version), None) = (&of.version, &of.service) {
        return flaw(version.referenced, "version says which instances of a service; name the service, too");
    }
    match (&of.service, &of.split, &of.redirect, &of.respond) {
        (Some(service), None, None, None) => {
            let selector = selector(service, of.version.as_ref(), selectors)?;
            Ok(Action::Forward(vec![Target { selector, weight: 1 }]))
        }
        (None, Some(shares), None, None) => split(shares, selectors).map(Action::Forward),
        (None, None, Some(redirect), None) => compile_redirect(redirect, rules).map(Action::Redirect),
        (None, None, None, Some(own)) => {
            let status = status(&own.value.status, 200, 599)?;
            let kind = match &own.value.content_type {
                Some(kind) => at(kind, HeaderValue::from_str(&kind.value).map(|_| kind.value.clone()))?,
                None => "text/plain; charset=utf-8".to_owned(),
            };
            let text = own.value.body.clone().unwrap_or_default();
            if matches!(status.as_u16(), 204 | 205 | 304) && !text.is_empty() {
                return flaw(own.referenced, format!("a response of status {} has no body", status.as_u16()));
            }
            Ok(Action::Answer(Answer { status, kind, text }))
        }
        (None, None, None, None) => flaw(
            file.referenced,
            "a route says what becomes of its requests: service (\"*\" for all instances), split, redirect or respond",
        ),
        _ => flaw(file.referenced, "a route has only one of service, split, redirect and respond"),
    }
}

fn selector(
    service: &Spanned<String>,
    version: Option<&Spanned<String>>,
    selectors: &mut Vec<Selector>,
) -> Result<usize, Flaw> {
    for text in [Some(service), version].into_iter().flatten() {
        if text.value.is_empty() || text.value.len() > 256 {
            return flaw(text.referenced, "a service or version has 1 to 256 bytes");
        }
    }
    let wanted = Selector {
        service: (service.value != ALL_SERVICES).then(|| service.value.as_str().into()),
        version: version.map(|v| v.value.as_str().into()),
    };
    let known = selectors.iter().position(|s| *s == wanted);
    Ok(known.unwrap_or_else(|| {
        selectors.push(wanted);
        selectors.len() - 1
    }))
}

fn split(shares: &Spanned<Vec<ShareFile>>, selectors: &mut Vec<Selector>) -> Result<Vec<Target>, Flaw> {
    let mut targets: Vec<Target> = Vec::new();
    for share in some(shares, &shares.value)? {
        let selector = selector(&share.service, share.version.as_ref(), selectors)?;
        if targets.iter().any(|t| t.selector == selector) {
            let version =
                share.version.as_ref().map_or(String::new(), |v| format!(" in version {:?}", v.value));
            let message =
                format!("{:?}{version} stands twice in one split; add its weights up", share.service.value);
            return flaw(share.service.referenced, message);
        }
        let weight = share.weight.as_ref().map_or(1, |w| w.value);
        if let Some(given) = share.weight.as_ref().filter(|w| w.value > 1_000_000) {
            return flaw(given.referenced, format!("weight must be from 0 to 1000000, not {}", given.value));
        }
        targets.push(Target { selector, weight });
    }
    match targets.iter().any(|t| t.weight > 0) {
        true => Ok(targets),
        false => {
            flaw(shares.referenced, "all weights are 0, so nobody would take a request; give one a weight")
        }
    }
}

fn status(of: &Spanned<u16>, least: u16, most: u16) -> Result<StatusCode, Flaw> {
    match StatusCode::from_u16(of.value).ok().filter(|_| (least..=most).contains(&of.value)) {
        Some(status) => Ok(status),
        None => flaw(of.referenced, format!("status must be from {least} to {most}, not {}", of.value)),
    }
}

/// How many segments the prefix has that all paths of a route begin with.
fn prefix_segments(of: Location, key: &str, rules: &Rules) -> Result<usize, Flaw> {
    let mut counts = rules.paths.iter().map(|path| match path {
        PathRule::Prefix(prefix) => Some(prefix.matches('/').count()),
        PathRule::Exact(_) | PathRule::Regex(_) => None,
    });
    let first = counts.next().flatten();
    match first.filter(|_| counts.all(|count| count == first)) {
        Some(count) => Ok(count),
        None => {
            let message = format!(
                "{key} replaces the prefix that match.path names, and only prefixes of as many segments"
            );
            flaw(of, message)
        }
    }
}

/// A path to put in place of a prefix.
fn replacement(text: &Spanned<String>) -> Result<String, Flaw> {
    let path = at(text, path::configured(&text.value).map_err(|e| format!("{:?}: {e}", text.value)))?;
    Ok(path.trim_end_matches('/').to_owned())
}

fn compile_rewrite(file: &Spanned<RewriteFile>, rules: &Rules) -> Result<Rewrite, Flaw> {
    let of = &file.value;
    let prefix = match (of.strip_prefix.unwrap_or_default(), &of.replace_prefix) {
        (true, Some(_)) => return flaw(file.referenced, "stripPrefix and replacePrefix exclude each other"),
        (true, None) => Some((prefix_segments(file.referenced, "stripPrefix", rules)?, String::new())),
        (false, Some(to)) => {
            Some((prefix_segments(to.referenced, "replacePrefix", rules)?, replacement(to)?))
        }
        (false, None) => None,
    };
    let host = of.host.as_ref().map(authority).transpose()?;
    Ok(Rewrite { prefix, host })
}

/// A host that may have a port.
fn authority(text: &Spanned<String>) -> Result<String, Flaw> {
    let good = text.value.parse::<http::uri::Authority>();
    match good.ok().filter(|a| !a.as_str().contains('@')) {
        Some(authority) => Ok(authority.to_string()),
        None => flaw(text.referenced, format!("host {:?} is not host or host:port", text.value)),
    }
}

fn compile_redirect(file: &Spanned<RedirectFile>, rules: &Rules) -> Result<Redirect, Flaw> {
    let of = &file.value;
    let code = of.status.as_ref().map_or(Ok(StatusCode::FOUND), |code| match code.value {
        301 | 302 | 303 | 307 | 308 => status(code, 301, 308),
        other => {
            flaw(code.referenced, format!("a redirect has status 301, 302, 303, 307 or 308, not {other}"))
        }
    })?;
    let parts = of.scheme.is_some() || of.host.is_some() || of.path.is_some() || of.prefix.is_some();
    match &of.to {
        Some(to) if parts => {
            flaw(to.referenced, "to is a whole URL; scheme, host, path and prefix change parts of one")
        }
        Some(to) => redirect_to(to, code),
        None if !parts => {
            flaw(file.referenced, "a redirect says where: to, or some of scheme, host, path and prefix")
        }
        None => {
            let scheme = of.scheme.as_ref().map(|scheme| match scheme.value.as_str() {
                "http" | "https" => Ok(scheme.value.clone()),
                other => flaw(scheme.referenced, format!("scheme is http or https, not {other:?}")),
            });
            let path = match (&of.path, &of.prefix) {
                (Some(_), Some(prefix)) => {
                    return flaw(prefix.referenced, "path and prefix exclude each other");
                }
                (Some(path), None) if !path.value.starts_with('/') => {
                    return flaw(path.referenced, "a path begins with a slash");
                }
                (Some(path), None) => RedirectPath::Whole(at(path, visible(&path.value))?),
                (None, Some(to)) => {
                    RedirectPath::Prefix(prefix_segments(to.referenced, "prefix", rules)?, replacement(to)?)
                }
                (None, None) => RedirectPath::Kept,
            };
            let host = of.host.as_ref().map(authority).transpose()?;
            Ok(Redirect { status: code, scheme: scheme.transpose()?, host, path })
        }
    }
}

fn redirect_to(to: &Spanned<String>, status: StatusCode) -> Result<Redirect, Flaw> {
    let uri: Option<http::Uri> = to.value.parse().ok();
    let uri =
        uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some());
    let Some(uri) = uri else {
        return flaw(to.referenced, format!("{:?} is not a URL; write https://host/path", to.value));
    };
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let rest = to.value.splitn(4, '/').nth(3).map(|rest| format!("/{rest}"));
    let path = rest.map_or(Ok(RedirectPath::Kept), |rest| at(to, visible(&rest)).map(RedirectPath::Whole))?;
    let scheme = uri.scheme_str().map(str::to_owned);
    Ok(Redirect { status, scheme, host: Some(authority.to_owned()), path })
}

/// What can stand in a Location field as it is.
fn visible(text: &str) -> Result<String, &'static str> {
    match text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("write spaces and letters beyond ASCII percent-encoded here"),
    }
}

fn compile_edits(file: &EditsFile) -> Result<Edits, Flaw> {
    let mut edits = Edits::default();
    for (fields, sets) in [(&file.set, true), (&file.add, false)] {
        let Some(fields) = fields else { continue };
        for (name, value) in &fields.value {
            let known = changeable(fields, name)?;
            let good =
                HeaderValue::from_str(&value.0).ok().filter(|v| v.as_bytes().trim_ascii() == v.as_bytes());
            if good.is_none() {
                return flaw(
                    fields.referenced,
                    format!("{name}: a header's value is one line of plain text, without space around it"),
                );
            }
            match sets {
                true => edits.set(known.as_str(), &value.0),
                false => edits.add(known.as_str(), &value.0),
            }
        }
    }
    if let Some(names) = &file.remove {
        for name in &names.value.0 {
            edits.remove(changeable(names, name)?.as_str());
        }
    }
    Ok(edits)
}

fn changeable<T>(of: &Spanned<T>, name: &str) -> Result<HeaderName, Flaw> {
    let known = at(of, HeaderName::try_from(name).map_err(|_| format!("{name:?} is no header's name")))?;
    match OURS.contains(&known.as_str()) {
        false => Ok(known),
        true if known == "host" => flaw(of.referenced, "the host is changed by rewrite.host"),
        true => flaw(
            of.referenced,
            format!(
                "{known} belongs to the connection or says where a request comes from; a route cannot change it"
            ),
        ),
    }
}

fn set_limits(limits: &mut Limits, file: &TimeoutsFile) -> Result<(), Flaw> {
    let positive = |key: &str, span: &Spanned<super::Span>| match span.value.0.is_zero() {
        true => flaw(span.referenced, format!("{key} must be longer than 0; leave it out for the default")),
        false => Ok(span.value.0),
    };
    if let Some(span) = &file.response {
        limits.response_timeout = positive("response", span)?;
    }
    if let Some(span) = &file.body_idle {
        limits.body_idle = positive("bodyIdle", span)?;
    }
    if let Some(span) = &file.total {
        limits.total = Some(positive("total", span)?);
    }
    Ok(())
}

fn compile_retry(file: &RetryFile) -> Result<Retry, Flaw> {
    let mut retry = Retry::default();
    if let Some(attempts) = &file.attempts {
        if !(1..=ATTEMPTS_MAX).contains(&attempts.value) {
            let message =
                format!("attempts must be from 1 (no further one) to {ATTEMPTS_MAX}, not {}", attempts.value);
            return flaw(attempts.referenced, message);
        }
        retry.attempts = attempts.value;
    }
    if let Some(on) = &file.on {
        let has = |what| on.0.contains(&what);
        retry.connect = has(RetryOn::Connect);
        retry.stale = has(RetryOn::Stale);
        retry.broke = has(RetryOn::Broke);
    }
    Ok(retry)
}

fn limiter(file: &Spanned<RateLimitFile>) -> Result<Limiter, Flaw> {
    let of = &file.value;
    let number = |key: &str, n: &Spanned<u32>| match NonZeroU32::new(n.value) {
        Some(number) => Ok(number),
        None => flaw(n.referenced, format!("{key} must be at least 1; to refuse all requests use respond")),
    };
    let requests = number("requests", &of.requests)?;
    let burst = of.burst.as_ref().map_or(Ok(requests), |burst| number("burst", burst))?;
    let per = of.per.as_ref().map_or(Duration::from_secs(1), |per| per.value.0);
    if let Some(given) = of.per.as_ref().filter(|_| per.is_zero() || per > PER_MAX) {
        return flaw(given.referenced, "per must be longer than 0 and at most 24h");
    }
    let refill = per.as_secs_f64() / f64::from(requests.get()) * f64::from(burst.get());
    if let Some(given) = of.burst.as_ref().filter(|_| refill > REFILL_SECONDS_MAX) {
        return flaw(given.referenced, "burst would take more than a year to come back; make it smaller");
    }
    let by = match (of.by.as_ref().map(|by| by.value), &of.header) {
        (None | Some(ByFile::Header), Some(name)) => {
            let known = HeaderName::try_from(&name.value)
                .map_err(|_| format!("{:?} is no header's name", name.value));
            By::Field(at(name, known)?.as_str().to_owned())
        }
        (Some(ByFile::Header), None) => {
            return flaw(file.referenced, "by: header needs the key header, its name");
        }
        (Some(_), Some(name)) => return flaw(name.referenced, "header is only for by: header"),
        (None | Some(ByFile::Client), None) => By::Client,
        (Some(ByFile::Route), None) => By::Route,
    };
    match Limiter::new(Allowance { requests, per, burst, by }) {
        Some(limiter) => Ok(limiter),
        None => flaw(file.referenced, "more than one request in a nanosecond; leave the limit out"),
    }
}

/// One route, for people.
fn line(rules: &Rules, route: &Route, selectors: &[Selector]) -> String {
    let mut demands: Vec<String> = rules.methods.iter().map(Method::to_string).collect();
    let value = |name: &str, rule: &ValueRule| match rule {
        ValueRule::Present => name.to_owned(),
        ValueRule::Exact(text) => format!("{name}={text}"),
        ValueRule::Regex(regex) => format!("{name}~{}", source(regex.as_str())),
    };
    demands.extend(
        rules.hosts.iter().map(|host| pattern(&Rules { hosts: vec![host.clone()], ..Rules::default() })),
    );
    demands.extend(rules.paths.iter().map(|path| match path {
        PathRule::Exact(path) => format!("={path}"),
        path => pattern(&Rules { paths: vec![path.clone()], ..Rules::default() }),
    }));
    demands.extend(rules.fields.iter().map(|(name, rule)| value(name, rule)));
    demands.extend(rules.query.iter().map(|(name, rule)| format!("?{}", value(name, rule))));
    if demands.is_empty() {
        demands.push("everything".to_owned());
    }
    let does = match &route.action {
        Action::Forward(targets) => {
            let shares: Vec<String> =
                targets.iter().map(|t| share(t, targets.len(), &selectors[t.selector])).collect();
            format!("{}, {}", shares.join(" + "), route.picking.strategy.name())
        }
        Action::Redirect(redirect) => format!("redirect {}", redirect.status.as_u16()),
        Action::Answer(answer) => format!("respond {}", answer.status.as_u16()),
        Action::Nowhere => "nothing".to_owned(),
    };
    let rate = route.rate.as_ref().map_or(String::new(), |rate| {
        let (per, by) = (humantime::format_duration(rate.allowance.per), &rate.allowance.by);
        let by = match by {
            By::Route => "together".to_owned(),
            By::Client => "per client".to_owned(),
            By::Field(name) => format!("per {name}"),
        };
        format!(", {} requests in {per} {by}", rate.allowance.requests)
    });
    format!("{}: {} -> {does}{rate}", route.name, demands.join(" "))
}

fn share(target: &Target, of: usize, selector: &Selector) -> String {
    let service = selector.service.as_deref().unwrap_or("all services");
    let version = selector.version.as_deref().map_or(String::new(), |v| format!(" {v}"));
    let weight = if of > 1 { format!(" ({})", target.weight) } else { String::new() };
    format!("{service}{version}{weight}")
}
