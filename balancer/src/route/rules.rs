//! What a request must look like to belong to a route, each rule by itself. Pure.

use http::Method;
use percent_encoding::percent_decode;
use regex::bytes::{Regex, RegexBuilder};

/// Bytes a compiled expression may take. A pattern beyond it is a mistake, or a way to use up memory.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Whether any line of the field with a name, in small letters, satisfies a predicate.
pub type AnyField<'a> = &'a dyn Fn(&str, &dyn Fn(&[u8]) -> bool) -> bool;

/// What is asked of a request's head.
pub struct Asked<'a> {
    /// The host, with its port if there is one; `None` if the request names none.
    pub host: Option<&'a [u8]>,
    /// The method.
    pub method: &'a Method,
    /// The query, without its question mark.
    pub query: Option<&'a str>,
    /// Its fields.
    pub any_field: AnyField<'a>,
}

/// Everything that one route demands. A request belongs to it if each list that is not empty has a host, path or method
/// of it, and all fields and parameters are as they should be.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// One of these hosts.
    pub hosts: Vec<Host>,
    /// One of these paths.
    pub paths: Vec<PathRule>,
    /// One of these methods.
    pub methods: Vec<Method>,
    /// All of these fields; names in small letters.
    pub fields: Vec<(String, ValueRule)>,
    /// All of these parameters of the query.
    pub query: Vec<(String, ValueRule)>,
}

/// A host, in small letters and without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// This one.
    Exact(String),
    /// Every name that ends with a dot and this: `*.example.com`.
    Under(String),
}

/// A path, in normal form.
#[derive(Clone, Debug)]
pub enum PathRule {
    /// This one.
    Exact(String),
    /// This one and whatever is below it: `/a` has `/a` and `/a/b`, not `/ab`. Without a trailing slash, so the root is empty.
    Prefix(String),
    /// One that this matches as a whole.
    Regex(Regex),
}

/// The value of a field or of a parameter.
#[derive(Clone, Debug)]
pub enum ValueRule {
    /// Any, if it is there.
    Present,
    /// This one.
    Exact(String),
    /// One that this matches as a whole.
    Regex(Regex),
}

/// Compiles `pattern` so that it has to match the whole of a text: a part of a text is matched by saying so (`.*`), never
/// by having forgotten an anchor.
pub fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    let compile = |p: &str| RegexBuilder::new(p).size_limit(REGEX_BYTES_MAX).build();
    // By itself first: `a)|(b` is none.
    compile(pattern)?;
    compile(&format!(r"\A(?:{pattern})\z"))
}

impl Host {
    /// `shop.example.com`, `*.example.com` or an address. The error says what to do.
    pub fn configured(text: &str) -> Result<Host, &'static str> {
        let small = text.to_ascii_lowercase();
        let name = small.strip_suffix('.').unwrap_or(&small);
        let (name, wild) = name.strip_prefix("*.").map_or((name, false), |rest| (rest, true));
        let is_v6 = name.starts_with('[') && name.ends_with(']');
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        match name {
            _ if name.contains('*') => Err("a wildcard stands for whole labels in front: *.example.com"),
            _ if is_v6 && !wild => Ok(Host::Exact(name.to_owned())),
            _ if name.contains(':') => Err("a host is matched without its port"),
            _ if name.is_empty() || name.len() > HOST_BYTES_MAX || !name.bytes().all(is_plain) => Err(
                "a host is a name such as shop.example.com, *.example.com or an address; others in punycode",
            ),
            _ if wild => Ok(Host::Under(name.to_owned())),
            _ => Ok(Host::Exact(name.to_owned())),
        }
    }
}

/// The longest name there is (RFC 1035 §2.3.4).
pub const HOST_BYTES_MAX: usize = 255;

/// `host` without its port and final dot, in small letters, written to `room`. `None` if it is too long for a name.
pub fn host_name<'a>(host: &[u8], room: &'a mut [u8; HOST_BYTES_MAX]) -> Option<&'a str> {
    let colon = host.iter().rposition(|&b| b == b':');
    let name = match colon {
        Some(at) if host[at + 1..].iter().all(u8::is_ascii_digit) => &host[..at],
        _ => host,
    };
    let name = name.strip_suffix(b".").unwrap_or(name);
    let room = room.get_mut(..name.len())?;
    room.copy_from_slice(name);
    room.make_ascii_lowercase();
    std::str::from_utf8(room).ok()
}

impl ValueRule {
    /// Whether `value` is as it should be.
    pub fn allows(&self, value: &[u8]) -> bool {
        match self {
            ValueRule::Present => true,
            ValueRule::Exact(text) => text.as_bytes() == value,
            ValueRule::Regex(regex) => regex.is_match(value),
        }
    }

    fn same(&self, other: &ValueRule) -> bool {
        match (self, other) {
            (ValueRule::Present, _) => true,
            (ValueRule::Exact(a), ValueRule::Exact(b)) => a == b,
            (ValueRule::Regex(a), ValueRule::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Rules {
    /// Whether method, fields and query are as they should be.
    pub fn allow(&self, asked: &Asked<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(asked.method))
            && self.fields.iter().all(|(name, rule)| (asked.any_field)(name, &|value| rule.allows(value)))
            && (self.query.is_empty() || self.allow_query(asked.query.unwrap_or_default()))
    }

    fn allow_query(&self, query: &str) -> bool {
        self.query.iter().all(|(name, rule)| {
            let of_name =
                |pair: &&str| parameter(pair.split('=').next().unwrap_or_default()) == name.as_bytes();
            let pair = query.split('&').find(of_name);
            pair.is_some_and(|pair| {
                rule.allows(&parameter(pair.split_once('=').map_or("", |(_, value)| value)))
            })
        })
    }

    /// Whether whoever satisfies `other` besides host and path satisfies this, too.
    pub fn cover(&self, other: &Rules) -> bool {
        let within = |mine: &[(String, ValueRule)], theirs: &[(String, ValueRule)]| {
            mine.iter().all(|(name, rule)| theirs.iter().any(|(n, r)| n == name && rule.same(r)))
        };
        let methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|m| self.methods.contains(m));
        methods && within(&self.fields, &other.fields) && within(&self.query, &other.query)
    }

    /// How much is demanded besides host and path: the more, the earlier it is asked.
    pub fn rank(&self) -> (bool, usize, usize) {
        (!self.methods.is_empty(), self.fields.len(), self.query.len())
    }
}

/// A name or value as forms encode it (WHATWG URL, application/x-www-form-urlencoded).
fn parameter(text: &str) -> Vec<u8> {
    let spaced: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    percent_decode(&spaced).collect()
}
