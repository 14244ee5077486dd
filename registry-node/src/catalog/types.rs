//! The catalog's vocabulary: what is registered, what may be commanded, what came of it.
//!
//! Names are valid by construction. The serde forms here are for in-process bounds only; what is stored or sent
//! goes through `codec`, whose structs are frozen.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use compact_str::CompactString;
use serde::{Deserialize, Serialize};

use super::metadata::Metadata;
use crate::config::Limits;

/// Longest instance id or service name, in bytes: they are keys of maps, log fields and path segments.
pub const NAME_BYTES_MAX: usize = 256;
/// The greatest weight. With the least, 1, it spans three orders of magnitude.
pub const WEIGHT_MAX: u32 = 1_000;
/// The weight of an instance that names none.
pub const WEIGHT_DEFAULT: u32 = 100;

/// Why a value is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub struct Invalid {
    /// The field, by its name in the API.
    pub field: &'static str,
    /// What is wrong with it, to follow the field's name: "is empty".
    pub why: String,
}

impl Invalid {
    /// `field` is wrong because `why`.
    pub fn new(field: &'static str, why: impl Into<String>) -> Invalid {
        Invalid { field, why: why.into() }
    }
}

/// Names one instance in the whole catalog: 1..=256 bytes without control characters. Up to 24 of them lie in place:
/// maps compare them without a look elsewhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(CompactString);

impl InstanceId {
    /// Checks `id`.
    pub fn new(id: impl AsRef<str>) -> Result<InstanceId, Invalid> {
        checked_name("id", id.as_ref()).map(InstanceId)
    }

    /// The id itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names a service: 1..=256 bytes without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(CompactString);

impl ServiceName {
    /// Checks `name`.
    pub fn new(name: impl AsRef<str>) -> Result<ServiceName, Invalid> {
        checked_name("service", name.as_ref()).map(ServiceName)
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether an instance wants traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Takes requests.
    #[default]
    Up,
    /// Finishes what is in flight, takes nothing new.
    Draining,
    /// Registered, takes nothing, by an operator's wish.
    Maintenance,
}

/// Who changed something, why and when: for people, never for decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Provenance {
    /// Who: a program, a person, an address.
    pub by: CompactString,
    /// Why, in their words; may be empty.
    pub why: CompactString,
    /// Unix time in milliseconds, by the clock of the node that took the request.
    pub at_ms: u64,
}

/// What a registration says about an instance. Checked by [`Spec::validate`] at the API, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Unique in the whole catalog.
    pub id: InstanceId,
    /// What it is an instance of.
    pub service: ServiceName,
    /// May be empty.
    pub host: CompactString,
    /// 0 if unknown.
    pub port: u16,
    /// `http://` or `https://`, an authority, perhaps a path.
    pub url: CompactString,
    /// Path of the health probe; empty means the balancer's default.
    pub health_path: CompactString,
    /// How long the registration lives without a heartbeat.
    pub ttl_ms: u32,
    /// Share of traffic relative to the others, 1..=1000.
    pub weight: u32,
    /// Where it runs; may be empty.
    pub zone: CompactString,
    /// What it runs; may be empty.
    pub version: CompactString,
    /// Free words.
    pub tags: Vec<String>,
    /// Free pairs.
    pub metadata: Metadata,
    /// Whether it wants traffic.
    pub status: Status,
}

/// A registered instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was registered; its status is the current one. Shared with the command that registered it.
    pub spec: Arc<Spec>,
    /// The revision that registered this incarnation: the fencing token of heartbeats and deregistrations.
    pub reg_rev: u64,
    /// The revision that last changed the record; never less than `reg_rev`.
    pub mod_rev: u64,
    /// Who changed it last.
    pub changed: Arc<Provenance>,
}

/// What can be asked of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Puts an instance in, as a new incarnation.
    Register {
        /// What to put.
        spec: Arc<Spec>,
        /// Only if the id's `mod_rev` is this; 0: only if it is not registered.
        expected: Option<u64>,
    },
    /// Takes an instance out.
    Deregister {
        /// Which.
        id: InstanceId,
        /// Only this incarnation.
        reg_rev: Option<u64>,
    },
    /// Changes the status and nothing else.
    SetStatus {
        /// Which.
        id: InstanceId,
        /// To what.
        status: Status,
        /// Only this incarnation.
        reg_rev: Option<u64>,
    },
    /// Takes out instances whose leases ran out on the leader of `term`.
    Expire {
        /// The term of the leader that decided it.
        term: u64,
        /// Ids with the incarnation that went silent.
        victims: Vec<(InstanceId, u64)>,
    },
    /// Raises what every member is known to understand.
    SetFeatureLevel {
        /// The new level; a lower one changes nothing.
        level: u32,
    },
}

/// Makes a retried command apply once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Who numbers its commands.
    pub client: CompactString,
    /// The number: unique per client, rising.
    pub seq: u64,
}

/// What is replicated. An entry of the log holds one or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// What to do.
    pub command: Command,
    /// Who asked.
    pub cause: Arc<Provenance>,
    /// Set by clients that want retries to apply once.
    pub origin: Option<Origin>,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The record as it now stands.
    Registered(Arc<Record>),
    /// Whether something was taken out.
    Deregistered {
        /// False if nothing had that id.
        found: bool,
    },
    /// The record as it now stands.
    StatusSet(Arc<Record>),
    /// Those victims that were taken out.
    Expired {
        /// In the order of the command.
        ids: Vec<InstanceId>,
    },
    /// The level as it now stands.
    FeatureLevel(u32),
    /// Nothing changed.
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// `expected` does not match.
    Precondition {
        /// The record's `mod_rev`; none if the id is not registered.
        current: Option<u64>,
    },
    /// Nothing has that id.
    NotFound,
    /// Another incarnation holds the id.
    Superseded {
        /// Its `reg_rev`.
        current: u64,
    },
    /// An expiry decided in an earlier term.
    StaleTerm,
    /// The client's number is older than the outcomes still remembered: whether it once took effect is unknown.
    StaleSequence,
    /// The client has used the number for another command.
    SequenceReused,
}

/// How the catalog changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in the catalog's own time. Several events may share it.
    pub revision: u64,
    /// What.
    pub kind: EventKind,
    /// After a put the record, for a removal the record as it was.
    pub record: Arc<Record>,
    /// For a put the record that it took the place of, so that changes can be undone.
    pub previous: Option<Arc<Record>>,
    /// Who.
    pub cause: Arc<Provenance>,
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// Registered or changed.
    Put,
    /// Deregistered, or moved to another service.
    Delete,
    /// Its lease ran out.
    Expire,
}

/// What applying one proposal gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The catalog's revision after it.
    pub revision: u64,
    /// For whoever proposed it.
    pub outcome: Outcome,
    /// For whoever watches: empty, or all of `revision`.
    pub events: Vec<Event>,
}

impl Spec {
    /// An instance with defaults: no host, weight 100, the lease of a client that names none (30 s).
    pub fn new(id: InstanceId, service: ServiceName, url: impl Into<CompactString>) -> Spec {
        Spec {
            id,
            service,
            host: CompactString::default(),
            port: 0,
            url: url.into(),
            health_path: CompactString::default(),
            ttl_ms: 30_000,
            weight: WEIGHT_DEFAULT,
            zone: CompactString::default(),
            version: CompactString::default(),
            tags: Vec::new(),
            metadata: Metadata::default(),
            status: Status::Up,
        }
    }

    /// Checks everything that the types do not: the first wrong field, by its name in the API.
    pub fn validate(&self, limits: &Limits) -> Result<(), Invalid> {
        check_host(&self.host)?;
        check_url(&self.url)?;
        check_visible("health_path", &self.health_path)?;
        check_range("ttl_ms", self.ttl_ms, limits.ttl_min.as_millis(), limits.ttl_max.as_millis())?;
        check_range("weight", self.weight, 1, WEIGHT_MAX.into())?;
        check_printable("zone", &self.zone)?;
        check_printable("version", &self.version)?;
        if self.metadata.len() > limits.metadata_keys_max {
            let why = format!("has {} keys; {} are allowed", self.metadata.len(), limits.metadata_keys_max);
            return Err(Invalid::new("metadata", why));
        }
        let bytes = self.bytes();
        if bytes > limits.record_bytes_max {
            let why = format!("has {bytes} bytes; {} are allowed", limits.record_bytes_max);
            return Err(Invalid::new("instance", why));
        }
        Ok(())
    }

    /// Bytes of all strings, with 8 for each one's length.
    pub fn bytes(&self) -> usize {
        let fixed = [&self.host, &self.url, &self.health_path, &self.zone, &self.version];
        let tags = self.tags.iter().map(String::len);
        let texts = fixed.into_iter().map(CompactString::len).chain(tags).map(|bytes| bytes + 8);
        let pairs = self.metadata.iter().map(|(key, value)| key.len() + value.len() + 16);
        self.id.as_str().len() + self.service.as_str().len() + texts.chain(pairs).sum::<usize>()
    }
}

impl Record {
    /// What it is an instance of.
    pub fn service(&self) -> &ServiceName {
        &self.spec.service
    }
}

impl Event {
    /// The service it concerns: a move concerns two, with an event each.
    pub fn service(&self) -> &ServiceName {
        &self.record.spec.service
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

impl Borrow<str> for InstanceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InstanceId {
    type Error = Invalid;
    fn try_from(id: String) -> Result<InstanceId, Invalid> {
        InstanceId::new(id)
    }
}

impl TryFrom<String> for ServiceName {
    type Error = Invalid;
    fn try_from(name: String) -> Result<ServiceName, Invalid> {
        ServiceName::new(name)
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.0.into()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> String {
        name.0.into()
    }
}

fn checked_name(field: &'static str, name: &str) -> Result<CompactString, Invalid> {
    if name.is_empty() {
        return Err(Invalid::new(field, "is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        let why = format!("has {} bytes; {NAME_BYTES_MAX} are allowed", name.len());
        return Err(Invalid::new(field, why));
    }
    check_printable(field, name)?;
    Ok(name.into())
}

fn check_host(host: &str) -> Result<(), Invalid> {
    check_visible("host", host)?;
    if host.len() > NAME_BYTES_MAX {
        return Err(Invalid::new("host", format!("has {} bytes; {NAME_BYTES_MAX} are allowed", host.len())));
    }
    Ok(())
}

/// A light look, not a parser: whoever connects parses. It keeps out what could never be connected to and what
/// would smuggle bytes into a request line.
fn check_url(url: &str) -> Result<(), Invalid> {
    if url.is_empty() {
        return Err(Invalid::new("url", "is empty"));
    }
    check_visible("url", url)?;
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(Invalid::new("url", "has no scheme; http:// or https:// is expected"));
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Invalid::new("url", "is neither http nor https"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || authority.starts_with(':') {
        return Err(Invalid::new("url", "names no host"));
    }
    Ok(())
}

fn check_range(field: &'static str, value: u32, min: u128, max: u128) -> Result<(), Invalid> {
    if (min..=max).contains(&value.into()) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("is {value}; {min} to {max} are allowed")))
}

fn check_visible(field: &'static str, text: &str) -> Result<(), Invalid> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    match !plain && text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        true => Err(Invalid::new(field, "contains white space or a control character")),
        false => Ok(()),
    }
}

fn check_printable(field: &'static str, text: &str) -> Result<(), Invalid> {
    let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    match !plain && text.chars().any(char::is_control) {
        true => Err(Invalid::new(field, "contains a control character")),
        false => Ok(()),
    }
}
