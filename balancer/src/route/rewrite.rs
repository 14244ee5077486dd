//! What a route changes about a request and its response, and what it answers by itself. Pure.

use http::StatusCode;

use super::path;

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;

/// How the target of a request changes on its way to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The prefix that the route matched, by its number of segments, is replaced by this: a path without a trailing slash,
    /// or nothing.
    pub prefix: Option<(usize, String)>,
    /// The host that the endpoint is told.
    pub host: Option<String>,
}

impl Rewrite {
    /// The target for `target`, a path with or without a query that was matched before; `None` if it stays as it is.
    pub fn target(&self, target: &str) -> Option<String> {
        let (segments, to) = self.prefix.as_ref()?;
        let (path, query) = split(target);
        if !path.starts_with('/') {
            return None;
        }
        let mut out = format!("{to}{}", path::rest(path, *segments));
        if !out.starts_with('/') {
            out.insert(0, '/');
        }
        out.push_str(query);
        Some(out)
    }
}

/// Where a client is sent instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `http` or `https`; else as it came.
    pub scheme: Option<String>,
    /// With its port, if there is one; else as it came.
    pub host: Option<String>,
    /// What becomes of the path.
    pub path: RedirectPath,
}

/// What becomes of the path of a redirected request. The query stays, unless the new path has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// It stays.
    Kept,
    /// It is this one.
    Whole(String),
    /// The prefix that the route matched, by its number of segments, is replaced by this.
    Prefix(usize, String),
}

impl Redirect {
    /// The URL for a request of `target` that came over `scheme` to `host`.
    pub fn location(&self, scheme: &str, host: &str, target: &str) -> String {
        let (path, query) = split(target);
        let to = match &self.path {
            RedirectPath::Kept => target.to_owned(),
            RedirectPath::Whole(whole) if whole.contains('?') => whole.clone(),
            RedirectPath::Whole(whole) => format!("{whole}{query}"),
            RedirectPath::Prefix(segments, to) => {
                let rest = path::rest(path, *segments);
                let slash = if to.is_empty() && rest.is_empty() { "/" } else { "" };
                format!("{to}{slash}{rest}{query}")
            }
        };
        let to_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let host = match &self.host {
            Some(host) => host.as_str(),
            // A port belongs to the scheme it was asked with.
            None if to_scheme != scheme => without_port(host),
            None => host,
        };
        format!("{to_scheme}://{host}{to}")
    }
}

/// An answer that needs no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The type of its text.
    pub kind: String,
    /// The text.
    pub text: String,
}

/// Changes to the fields of a head: of any that were there, those in `dropped` go; then `written` is added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Names, in small letters.
    dropped: Vec<String>,
    /// Whole lines.
    written: Vec<u8>,
}

impl Edits {
    /// Nothing changes.
    pub const NONE: Edits = Edits { dropped: Vec::new(), written: Vec::new() };

    /// Of fields called `name`, only this one is left.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.add(name, value);
    }

    /// A field more.
    pub fn add(&mut self, name: &str, value: &str) {
        for part in [name, ": ", value, "\r\n"] {
            self.written.extend_from_slice(part.as_bytes());
        }
    }

    /// Fields called `name` go.
    pub fn remove(&mut self, name: &str) {
        self.dropped.push(name.to_ascii_lowercase());
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.written.is_empty()
    }

    /// Whether a field called `name` goes.
    pub fn drops(&self, name: &[u8]) -> bool {
        self.dropped.iter().any(|d| name.eq_ignore_ascii_case(d.as_bytes()))
    }

    /// The lines that are added, each with its end.
    pub fn written(&self) -> &[u8] {
        &self.written
    }
}

/// A target's path, and its query with the question mark or nothing.
fn split(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}
