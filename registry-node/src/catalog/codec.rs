//! What of the catalog leaves memory: proposals, outcomes and snapshots, each sealed in an envelope.
//!
//! The structs here are frozen: version 1 is what they are, for ever. A change to the types above is a `V2` here,
//! with a conversion from `V1`, and a golden test beside the old one.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Catalog;
use super::metadata::Metadata;
use super::sessions::Done;
use super::types::{
    Command, InstanceId, Invalid, Origin, Outcome, Proposal, Provenance, Record, Refusal, ServiceName, Spec,
    Status,
};
use crate::envelope::{self, Kind};

/// The version written of proposals and outcomes, and the newest one read.
const VERSION: u16 = 1;

/// The same of a snapshot's chunks. Version 2 adds removed nodes, and its header's hash covers everything; in
/// version 1 it covers revision and records.
const CHUNK_VERSION: u16 = 2;

/// Names the definition of [`Catalog::hash`]: hashes of another one cannot be compared.
pub const HASH_VERSION: u32 = 2;

/// A chunk of a snapshot is closed when it reaches this size, its envelope included, unless a single item is
/// larger: as with the log's frames, 16 of them make a leaf of the store that stays in one file.
const CHUNK_BYTES: usize = 7 << 10;

/// Why chunks are not a snapshot of a catalog.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A chunk cannot be read.
    #[error("chunk {chunk} of the snapshot")]
    Chunk {
        /// Which, from 0.
        chunk: usize,
        /// Why.
        source: envelope::Error,
    },
    /// The first chunk does not begin with the header, or a later one has another.
    #[error("snapshot has {found} headers where one at its start belongs")]
    Header {
        /// How many there are at the place in question.
        found: usize,
    },
    /// Something is missing or there twice.
    #[error("snapshot says {said} {what}, {found} are there")]
    Count {
        /// Of what.
        what: &'static str,
        /// By the header.
        said: u64,
        /// By counting.
        found: u64,
    },
    /// All is there, and it is not what was written.
    #[error("snapshot says hash {said:#018x}, its records give {found:#018x}")]
    Hash {
        /// By the header.
        said: u64,
        /// By hashing.
        found: u64,
    },
}

/// The proposal as it is replicated.
pub fn encode_proposal(proposal: &Proposal) -> Vec<u8> {
    envelope::seal(Kind::COMMAND, VERSION, &ProposalV1::from(proposal))
}

/// Reads what [`encode_proposal`] wrote.
pub fn decode_proposal(bytes: &[u8]) -> Result<Proposal, envelope::Error> {
    let proposal: ProposalV1<'_> = open(bytes, Kind::COMMAND)?;
    proposal.try_into().map_err(invalid)
}

/// The outcome as one node tells it to another.
pub fn encode_outcome(outcome: &Outcome) -> Vec<u8> {
    envelope::seal(Kind::OUTCOME, VERSION, &OutcomeV1::from(outcome))
}

/// Reads what [`encode_outcome`] wrote.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, envelope::Error> {
    let outcome: OutcomeV1<'_> = open(bytes, Kind::OUTCOME)?;
    outcome.try_into().map_err(invalid)
}

/// How far the hashes of what holds a spec have come once they are through its bytes. A registration is hashed as a
/// command, as a record and as an outcome, on every node, and its spec is nearly all of each: one pass serves them.
#[derive(Clone, Copy, Debug)]
pub struct SpecHash {
    /// Of a record, which begins with its spec.
    in_record: u64,
    /// Of [`Command::Register`] and of [`Outcome::Registered`]: both are the first of their kind, and say so first.
    in_first: u64,
}

/// How the first variant of anything begins.
const FIRST: u32 = 0;

impl SpecHash {
    /// Takes in a spec's bytes of version 1.
    pub fn of(spec: &Spec) -> SpecHash {
        let (mut in_record, mut in_first) = (FNV_OFFSET, fnv1a(FNV_OFFSET, &FIRST.to_le_bytes()));
        envelope::feed(&SpecV1::from(spec), |bytes| {
            // Each waits for itself alone, so that the processor works on both at once.
            (in_record, in_first) = fnv1a_both(in_record, in_first, bytes);
        });
        SpecHash { in_record, in_first }
    }

    /// Of a record of the spec: its part of [`Catalog::hash`], FNV-1a (64 bit) of its bytes in version 1, mixed.
    pub fn record_hash(self, record: &Record) -> u64 {
        hash_on(self.in_record, &RecordTailV1::from(record))
    }
}

/// Tells one command from another: the same hash over its bytes in version 1. `spec` is that of what it registers,
/// if it is known.
pub fn command_digest(command: &Command, spec: Option<SpecHash>) -> u64 {
    match (command, spec) {
        (Command::Register { expected, .. }, Some(spec)) => hash_on(spec.in_first, expected),
        _ => hash_on(FNV_OFFSET, &CommandV1::from(command)),
    }
}

/// Of what became of a command; `spec` is that of what was registered, if it is known.
pub fn outcome_hash(outcome: &Outcome, spec: Option<SpecHash>) -> u64 {
    match (outcome, spec) {
        (Outcome::Registered(record), Some(spec)) => {
            hash_on(spec.in_first, &RecordTailV1::from(record.as_ref()))
        }
        _ => hash_on(FNV_OFFSET, &OutcomeV1::from(outcome)),
    }
}

/// Of a client's name.
pub fn name_hash(name: &str) -> u64 {
    mix(fnv1a(FNV_OFFSET, name.as_bytes()))
}

/// Tells the items of a sum apart by what they are.
pub mod tag {
    pub const FEATURE_LEVEL: u64 = 1;
    pub const CLIENT: u64 = 2;
    pub const OUTCOME: u64 = 3;
    pub const RETIRED: u64 = 4;
    pub const RETIRED_FLOOR: u64 = 5;
}

/// Of numbers in their order.
pub fn chain(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |hash: u64, number| mix(hash.wrapping_add(mix(*number))))
}

/// FNV-1a goes on from `hash` over a value's bytes; then it is mixed.
fn hash_on<T: Serialize>(mut hash: u64, value: &T) -> u64 {
    envelope::feed(value, |bytes| hash = fnv1a(hash, bytes));
    mix(hash)
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    fnv1a_both(hash, hash, bytes).0
}

/// FNV-1a of the same bytes from two beginnings.
fn fnv1a_both(mut one: u64, mut other: u64, bytes: &[u8]) -> (u64, u64) {
    let (bytes, zeros) = match bytes {
        // Numbers come as four or eight bytes, mostly small: a zero byte multiplies and nothing else, so that all of
        // them at the end are one multiplication.
        &[_, 0, 0, 0] | &[_, 0, 0, 0, 0, 0, 0, 0] => (&bytes[..1], bytes.len() - 1),
        _ => (bytes, 0),
    };
    for byte in bytes {
        one = (one ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        other = (other ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
    }
    match zeros {
        0 => (one, other),
        3 => (one.wrapping_mul(FNV_PRIME.wrapping_pow(3)), other.wrapping_mul(FNV_PRIME.wrapping_pow(3))),
        _ => (one.wrapping_mul(FNV_PRIME.wrapping_pow(7)), other.wrapping_mul(FNV_PRIME.wrapping_pow(7))),
    }
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the result.
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Catalog {
    /// The whole catalog as sealed chunks of at most 7 KiB each (a larger item stands alone): first the header,
    /// then records by id, then what makes retries apply once, then removed nodes. Equal catalogs give equal
    /// chunks.
    pub fn to_chunks(&self) -> Vec<Vec<u8>> {
        let mut chunks = Chunks::default();
        chunks.push(&ItemV1::Header(HeaderV1::of(self)));
        for record in self.records() {
            chunks.push(&ItemV1::Record(Box::new(RecordV1::from(record.as_ref()))));
        }
        for (client, session) in self.sessions.iter() {
            let (used, forgotten) = (session.used, session.forgotten);
            let name = || client.to_string();
            chunks.push(&ItemV1::Session { client: name(), used, forgotten });
            for (seq, done) in &session.outcomes {
                let (digest, outcome) = (done.digest, (&done.outcome).into());
                chunks.push(&ItemV1::Outcome { client: name(), seq: *seq, digest, outcome });
            }
        }
        let (floor, nodes) = self.retired.parts();
        if let Some((id, revision)) = floor {
            chunks.push(&ItemV1::RetiredFloor { id, revision });
        }
        for (id, revision) in nodes {
            chunks.push(&ItemV1::Retired { id, revision });
        }
        chunks.finish()
    }

    /// Rebuilds the catalog from the chunks of [`Catalog::to_chunks`], in their order. Nothing is believed that
    /// the header does not confirm: counts and hash. Reads every version that was ever written.
    pub fn from_chunks<B: AsRef<[u8]>>(chunks: impl IntoIterator<Item = B>) -> Result<Catalog, RestoreError> {
        let mut restore = Restore::default();
        for (chunk, bytes) in chunks.into_iter().enumerate() {
            let (version, items) =
                open_chunk(bytes.as_ref()).map_err(|source| RestoreError::Chunk { chunk, source })?;
            restore.version = version;
            for item in items {
                restore.take(chunk, item)?;
            }
        }
        restore.finish()
    }
}

/// Items, packed.
#[derive(Default)]
struct Chunks {
    sealed: Vec<Vec<u8>>,
    /// Payload of the chunk under way: the items' own encodings, one after the other.
    open: Vec<u8>,
}

impl Chunks {
    fn push(&mut self, item: &ItemV1<'_>) {
        let item = envelope::encode(item);
        let room = CHUNK_BYTES - envelope::HEADER_BYTES;
        if !self.open.is_empty() && self.open.len() + item.len() + LENGTH_BYTES > room {
            self.close();
        }
        self.open.extend_from_slice(&(item.len() as u32).to_le_bytes());
        self.open.extend_from_slice(&item);
    }

    fn close(&mut self) {
        let payload = std::mem::take(&mut self.open);
        self.sealed.push(envelope::seal_bytes(Kind::RECORDS, CHUNK_VERSION, &payload));
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        self.close();
        self.sealed
    }
}

/// Each item of a chunk is preceded by its length.
const LENGTH_BYTES: usize = 4;

fn open_chunk(bytes: &[u8]) -> Result<(u16, Vec<ItemV1<'_>>), envelope::Error> {
    let (version, mut rest) = envelope::open(bytes, Kind::RECORDS)?;
    envelope::require_version(Kind::RECORDS, version, CHUNK_VERSION)?;
    let cut = || envelope::Error::Payload("an item is cut off".to_owned());
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(cut)?;
        let (item, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
        items.push(envelope::decode(item)?);
        rest = after;
    }
    Ok((version, items))
}

/// A catalog under reconstruction.
#[derive(Default)]
struct Restore {
    /// Of the chunk taken last; all are of one.
    version: u16,
    header: Option<HeaderV1>,
    catalog: Catalog,
    records: u64,
    outcomes: u64,
    sessions: u64,
}

impl Restore {
    fn take(&mut self, chunk: usize, item: ItemV1<'_>) -> Result<(), RestoreError> {
        let broken = |error: Invalid| RestoreError::Chunk { chunk, source: invalid(error) };
        match (item, self.header.is_some()) {
            (ItemV1::Header(header), false) => self.header = Some(header),
            (ItemV1::Header(_), true) => return Err(RestoreError::Header { found: 2 }),
            (_, false) => return Err(RestoreError::Header { found: 0 }),
            (ItemV1::Record(record), true) => self.take_record((*record).try_into().map_err(broken)?),
            (ItemV1::Session { client, used, forgotten }, true) => {
                self.sessions += 1;
                self.catalog.sessions.insert(client.into(), used, forgotten);
            }
            (ItemV1::Outcome { client, seq, digest, outcome }, true) => {
                let done = Done::new(digest, outcome.try_into().map_err(broken)?, None);
                self.outcomes += u64::from(self.catalog.sessions.insert_outcome(&client, seq, done));
            }
            (ItemV1::RetiredFloor { id, revision }, true) => self.catalog.retired.set_floor((id, revision)),
            (ItemV1::Retired { id, revision }, true) => self.catalog.retired.note(id, revision),
        }
        Ok(())
    }

    fn take_record(&mut self, record: Record) {
        // A second record of an id is not put: the count will tell.
        if self.catalog.get(&record.spec.id).is_none() {
            self.records += 1;
            let hash = SpecHash::of(&record.spec);
            self.catalog.put(Arc::new(record), hash);
        }
    }

    fn finish(mut self) -> Result<Catalog, RestoreError> {
        let header = self.header.take().ok_or(RestoreError::Header { found: 0 })?;
        check_count("records", header.records, self.records)?;
        check_count("clients", header.sessions, self.sessions)?;
        check_count("outcomes", header.outcomes, self.outcomes)?;
        self.catalog.revision = header.revision;
        self.catalog.feature_level = header.feature_level;
        let found = if self.version == 1 { self.catalog.hash_of_version_1() } else { self.catalog.hash() };
        match found {
            found if found == header.hash => Ok(self.catalog),
            found => Err(RestoreError::Hash { said: header.hash, found }),
        }
    }
}

fn check_count(what: &'static str, said: u64, found: u64) -> Result<(), RestoreError> {
    if said != found {
        return Err(RestoreError::Count { what, said, found });
    }
    Ok(())
}

fn open<'a, T: Deserialize<'a>>(bytes: &'a [u8], kind: Kind) -> Result<T, envelope::Error> {
    let (version, payload) = envelope::open(bytes, kind)?;
    envelope::require_version(kind, version, VERSION)?;
    envelope::decode(payload)
}

fn invalid(error: Invalid) -> envelope::Error {
    envelope::Error::Payload(error.to_string())
}

// ---- frozen: version 1, but for what says otherwise ----
// Encoding borrows: a command's digest and a record's hash are taken of every command on every node.

#[derive(Serialize, Deserialize)]
enum ItemV1<'a> {
    Header(HeaderV1),
    #[serde(borrow)]
    Record(Box<RecordV1<'a>>),
    Session {
        client: String,
        used: u64,
        forgotten: u64,
    },
    Outcome {
        client: String,
        seq: u64,
        digest: u64,
        #[serde(borrow)]
        outcome: OutcomeV1<'a>,
    },
    /// Since version 2: every node id up to this one is spent.
    RetiredFloor {
        id: u64,
        revision: u64,
    },
    /// Since version 2.
    Retired {
        id: u64,
        revision: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct HeaderV1 {
    revision: u64,
    feature_level: u32,
    hash: u64,
    records: u64,
    sessions: u64,
    outcomes: u64,
}

#[derive(Serialize, Deserialize)]
struct ProposalV1<'a> {
    #[serde(borrow)]
    command: CommandV1<'a>,
    #[serde(borrow)]
    cause: ProvenanceV1<'a>,
    #[serde(borrow)]
    origin: Option<OriginV1<'a>>,
}

#[derive(Serialize, Deserialize)]
enum CommandV1<'a> {
    Register {
        #[serde(borrow)]
        spec: Box<SpecV1<'a>>,
        expected: Option<u64>,
    },
    Deregister {
        #[serde(borrow)]
        id: Cow<'a, str>,
        reg_rev: Option<u64>,
    },
    SetStatus {
        #[serde(borrow)]
        id: Cow<'a, str>,
        status: StatusV1,
        reg_rev: Option<u64>,
    },
    Expire {
        term: u64,
        victims: Vec<(Cow<'a, str>, u64)>,
    },
    SetFeatureLevel {
        level: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct ProvenanceV1<'a> {
    #[serde(borrow)]
    by: Cow<'a, str>,
    #[serde(borrow)]
    why: Cow<'a, str>,
    at_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct OriginV1<'a> {
    #[serde(borrow)]
    client: Cow<'a, str>,
    seq: u64,
}

#[derive(Serialize, Deserialize)]
struct SpecV1<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    service: Cow<'a, str>,
    #[serde(borrow)]
    host: Cow<'a, str>,
    port: u16,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    health_path: Cow<'a, str>,
    ttl_ms: u32,
    weight: u32,
    #[serde(borrow)]
    zone: Cow<'a, str>,
    #[serde(borrow)]
    version: Cow<'a, str>,
    tags: Cow<'a, [String]>,
    metadata: Cow<'a, Metadata>,
    status: StatusV1,
}

#[derive(Serialize, Deserialize)]
struct RecordV1<'a> {
    #[serde(borrow)]
    spec: SpecV1<'a>,
    reg_rev: u64,
    mod_rev: u64,
    #[serde(borrow)]
    changed: ProvenanceV1<'a>,
}

/// What of a [`RecordV1`] follows its spec.
#[derive(Serialize)]
struct RecordTailV1<'a> {
    reg_rev: u64,
    mod_rev: u64,
    changed: ProvenanceV1<'a>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum StatusV1 {
    Up,
    Draining,
    Maintenance,
}

#[derive(Serialize, Deserialize)]
enum OutcomeV1<'a> {
    #[serde(borrow)]
    Registered(Box<RecordV1<'a>>),
    Deregistered {
        found: bool,
    },
    #[serde(borrow)]
    StatusSet(Box<RecordV1<'a>>),
    Expired {
        ids: Vec<Cow<'a, str>>,
    },
    FeatureLevel(u32),
    Refused(RefusalV1),
}

#[derive(Serialize, Deserialize)]
enum RefusalV1 {
    Precondition { current: Option<u64> },
    NotFound,
    Superseded { current: u64 },
    StaleTerm,
    StaleSequence,
    SequenceReused,
}

impl HeaderV1 {
    fn of(catalog: &Catalog) -> HeaderV1 {
        let outcomes = catalog.sessions.iter().map(|(_, session)| session.outcomes.len() as u64).sum();
        HeaderV1 {
            revision: catalog.revision,
            feature_level: catalog.feature_level,
            hash: catalog.hash(),
            records: catalog.len() as u64,
            sessions: catalog.sessions.iter().count() as u64,
            outcomes,
        }
    }
}

impl<'a> From<&'a Proposal> for ProposalV1<'a> {
    fn from(proposal: &'a Proposal) -> ProposalV1<'a> {
        ProposalV1 {
            command: (&proposal.command).into(),
            cause: proposal.cause.as_ref().into(),
            origin: proposal
                .origin
                .as_ref()
                .map(|Origin { client, seq }| OriginV1 { client: client.as_str().into(), seq: *seq }),
        }
    }
}

impl TryFrom<ProposalV1<'_>> for Proposal {
    type Error = Invalid;
    fn try_from(proposal: ProposalV1<'_>) -> Result<Proposal, Invalid> {
        Ok(Proposal {
            command: proposal.command.try_into()?,
            cause: Arc::new(proposal.cause.into()),
            origin: proposal.origin.map(|OriginV1 { client, seq }| Origin { client: client.into(), seq }),
        })
    }
}

impl<'a> From<&'a Command> for CommandV1<'a> {
    fn from(command: &'a Command) -> CommandV1<'a> {
        match command {
            Command::Register { spec, expected } => {
                CommandV1::Register { spec: Box::new(spec.as_ref().into()), expected: *expected }
            }
            Command::Deregister { id, reg_rev } => {
                CommandV1::Deregister { id: id.as_str().into(), reg_rev: *reg_rev }
            }
            Command::SetStatus { id, status, reg_rev } => {
                CommandV1::SetStatus { id: id.as_str().into(), status: (*status).into(), reg_rev: *reg_rev }
            }
            Command::Expire { term, victims } => CommandV1::Expire {
                term: *term,
                victims: victims.iter().map(|(id, reg_rev)| (id.as_str().into(), *reg_rev)).collect(),
            },
            Command::SetFeatureLevel { level } => CommandV1::SetFeatureLevel { level: *level },
        }
    }
}

impl TryFrom<CommandV1<'_>> for Command {
    type Error = Invalid;
    fn try_from(command: CommandV1<'_>) -> Result<Command, Invalid> {
        Ok(match command {
            CommandV1::Register { spec, expected } => {
                Command::Register { spec: Arc::new((*spec).try_into()?), expected }
            }
            CommandV1::Deregister { id, reg_rev } => {
                Command::Deregister { id: InstanceId::new(id)?, reg_rev }
            }
            CommandV1::SetStatus { id, status, reg_rev } => {
                Command::SetStatus { id: InstanceId::new(id)?, status: status.into(), reg_rev }
            }
            CommandV1::Expire { term, victims } => {
                let victims = victims.into_iter().map(|(id, reg_rev)| Ok((InstanceId::new(id)?, reg_rev)));
                Command::Expire { term, victims: victims.collect::<Result<_, Invalid>>()? }
            }
            CommandV1::SetFeatureLevel { level } => Command::SetFeatureLevel { level },
        })
    }
}

impl<'a> From<&'a Provenance> for ProvenanceV1<'a> {
    fn from(provenance: &'a Provenance) -> ProvenanceV1<'a> {
        let Provenance { by, why, at_ms } = provenance;
        ProvenanceV1 { by: by.as_str().into(), why: why.as_str().into(), at_ms: *at_ms }
    }
}

impl From<ProvenanceV1<'_>> for Provenance {
    fn from(ProvenanceV1 { by, why, at_ms }: ProvenanceV1<'_>) -> Provenance {
        Provenance { by: by.into(), why: why.into(), at_ms }
    }
}

impl<'a> From<&'a Spec> for SpecV1<'a> {
    fn from(spec: &'a Spec) -> SpecV1<'a> {
        SpecV1 {
            id: spec.id.as_str().into(),
            service: spec.service.as_str().into(),
            host: spec.host.as_str().into(),
            port: spec.port,
            url: spec.url.as_str().into(),
            health_path: spec.health_path.as_str().into(),
            ttl_ms: spec.ttl_ms,
            weight: spec.weight,
            zone: spec.zone.as_str().into(),
            version: spec.version.as_str().into(),
            tags: (&spec.tags).into(),
            metadata: Cow::Borrowed(&spec.metadata),
            status: spec.status.into(),
        }
    }
}

impl TryFrom<SpecV1<'_>> for Spec {
    type Error = Invalid;
    fn try_from(spec: SpecV1<'_>) -> Result<Spec, Invalid> {
        Ok(Spec {
            id: InstanceId::new(spec.id)?,
            service: ServiceName::new(spec.service)?,
            host: spec.host.into(),
            port: spec.port,
            url: spec.url.into(),
            health_path: spec.health_path.into(),
            ttl_ms: spec.ttl_ms,
            weight: spec.weight,
            zone: spec.zone.into(),
            version: spec.version.into(),
            tags: spec.tags.into_owned(),
            metadata: spec.metadata.into_owned(),
            status: spec.status.into(),
        })
    }
}

impl<'a> From<&'a Record> for RecordV1<'a> {
    fn from(record: &'a Record) -> RecordV1<'a> {
        let (reg_rev, mod_rev) = (record.reg_rev, record.mod_rev);
        let (spec, changed) = (record.spec.as_ref().into(), record.changed.as_ref().into());
        RecordV1 { spec, reg_rev, mod_rev, changed }
    }
}

impl<'a> From<&'a Record> for RecordTailV1<'a> {
    fn from(record: &'a Record) -> RecordTailV1<'a> {
        let (reg_rev, mod_rev) = (record.reg_rev, record.mod_rev);
        RecordTailV1 { reg_rev, mod_rev, changed: record.changed.as_ref().into() }
    }
}

impl TryFrom<RecordV1<'_>> for Record {
    type Error = Invalid;
    fn try_from(record: RecordV1<'_>) -> Result<Record, Invalid> {
        let (reg_rev, mod_rev) = (record.reg_rev, record.mod_rev);
        let (spec, changed) = (record.spec.try_into()?, record.changed.into());
        Ok(Record { spec: Arc::new(spec), reg_rev, mod_rev, changed: Arc::new(changed) })
    }
}

impl From<Status> for StatusV1 {
    fn from(status: Status) -> StatusV1 {
        match status {
            Status::Up => StatusV1::Up,
            Status::Draining => StatusV1::Draining,
            Status::Maintenance => StatusV1::Maintenance,
        }
    }
}

impl From<StatusV1> for Status {
    fn from(status: StatusV1) -> Status {
        match status {
            StatusV1::Up => Status::Up,
            StatusV1::Draining => Status::Draining,
            StatusV1::Maintenance => Status::Maintenance,
        }
    }
}

impl<'a> From<&'a Outcome> for OutcomeV1<'a> {
    fn from(outcome: &'a Outcome) -> OutcomeV1<'a> {
        match outcome {
            Outcome::Registered(record) => OutcomeV1::Registered(Box::new(record.as_ref().into())),
            Outcome::Deregistered { found } => OutcomeV1::Deregistered { found: *found },
            Outcome::StatusSet(record) => OutcomeV1::StatusSet(Box::new(record.as_ref().into())),
            Outcome::Expired { ids } => {
                OutcomeV1::Expired { ids: ids.iter().map(|id| id.as_str().into()).collect() }
            }
            Outcome::FeatureLevel(level) => OutcomeV1::FeatureLevel(*level),
            Outcome::Refused(refusal) => OutcomeV1::Refused(refusal.into()),
        }
    }
}

impl TryFrom<OutcomeV1<'_>> for Outcome {
    type Error = Invalid;
    fn try_from(outcome: OutcomeV1<'_>) -> Result<Outcome, Invalid> {
        Ok(match outcome {
            OutcomeV1::Registered(record) => Outcome::Registered(Arc::new((*record).try_into()?)),
            OutcomeV1::Deregistered { found } => Outcome::Deregistered { found },
            OutcomeV1::StatusSet(record) => Outcome::StatusSet(Arc::new((*record).try_into()?)),
            OutcomeV1::Expired { ids } => Outcome::Expired {
                ids: ids.into_iter().map(InstanceId::new).collect::<Result<_, Invalid>>()?,
            },
            OutcomeV1::FeatureLevel(level) => Outcome::FeatureLevel(level),
            OutcomeV1::Refused(refusal) => Outcome::Refused(refusal.into()),
        })
    }
}

impl From<&Refusal> for RefusalV1 {
    fn from(refusal: &Refusal) -> RefusalV1 {
        match refusal {
            Refusal::Precondition { current } => RefusalV1::Precondition { current: *current },
            Refusal::NotFound => RefusalV1::NotFound,
            Refusal::Superseded { current } => RefusalV1::Superseded { current: *current },
            Refusal::StaleTerm => RefusalV1::StaleTerm,
            Refusal::StaleSequence => RefusalV1::StaleSequence,
            Refusal::SequenceReused => RefusalV1::SequenceReused,
        }
    }
}

impl From<RefusalV1> for Refusal {
    fn from(refusal: RefusalV1) -> Refusal {
        match refusal {
            RefusalV1::Precondition { current } => Refusal::Precondition { current },
            RefusalV1::NotFound => Refusal::NotFound,
            RefusalV1::Superseded { current } => Refusal::Superseded { current },
            RefusalV1::StaleTerm => Refusal::StaleTerm,
            RefusalV1::StaleSequence => Refusal::StaleSequence,
            RefusalV1::SequenceReused => Refusal::SequenceReused,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// One pass over the spec gives what three passes over everything give.
        #[test]
        fn hashes_are_those_of_the_bytes(
            text in "[ -~]{0,300}",
            weight in any::<u32>(),
            (reg_rev, mod_rev, at_ms) in any::<(u64, u64, u64)>(),
            expected in any::<Option<u64>>(),
        ) {
            let naive = |bytes: &[u8]| {
                let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
                mix(bytes.iter().fold(FNV_OFFSET, step))
            };
            let id = InstanceId::new("a").expect("it is valid");
            let mut spec = Spec::new(id, ServiceName::new("web").expect("it is valid"), text.as_str());
            (spec.weight, spec.tags) = (weight, vec![text.clone()]);
            spec.metadata = [("key", text.as_str())].into_iter().collect();
            let (spec, changed) = (Arc::new(spec), Arc::new(Provenance { by: "me".into(), why: text.into(), at_ms }));
            let hash = SpecHash::of(&spec);
            let record = Arc::new(Record { spec: spec.clone(), reg_rev, mod_rev, changed });
            let bytes = envelope::encode(&RecordV1::from(record.as_ref()));
            prop_assert_eq!(hash.record_hash(&record), naive(&bytes));
            let command = Command::Register { spec, expected };
            let bytes = envelope::encode(&CommandV1::from(&command));
            prop_assert_eq!(command_digest(&command, Some(hash)), naive(&bytes));
            prop_assert_eq!(command_digest(&command, None), naive(&bytes));
            let outcome = Outcome::Registered(record);
            let bytes = envelope::encode(&OutcomeV1::from(&outcome));
            prop_assert_eq!(outcome_hash(&outcome, Some(hash)), naive(&bytes));
            prop_assert_eq!(outcome_hash(&outcome, None), naive(&bytes));
        }
    }
}
