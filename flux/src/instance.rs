//! What is registered: the SDK's own type, and its translation from and to the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::registry::v1 as wire;
use serde::Serialize;

use crate::Error;

/// The lease flux asks for. A beat each third of it leaves room for two lost ones.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10);

/// The share of traffic of an instance that names none.
pub const WEIGHT_DEFAULT: u32 = 100;

/// One running copy of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Unique in the whole registry, 1..256 bytes.
    pub id: String,
    /// 1..256 bytes.
    pub service: String,
    /// May be empty; then `url` alone says where the instance is.
    pub host: String,
    /// 0 if unknown.
    pub port: u16,
    /// Requests go to this URL + path.
    pub url: String,
    /// Path of the health probe; empty means the balancer's default.
    pub health_path: String,
    /// How long the registration lives without a heartbeat: 3 s to 1 h.
    #[serde(rename = "ttl_ms", serialize_with = "as_millis")]
    pub ttl: Duration,
    /// Share of traffic relative to the others, 1..1000.
    pub weight: u32,
    /// Where it runs, for balancers that prefer their own zone.
    pub zone: String,
    /// Of the program.
    pub version: String,
    /// Free words to select by.
    pub tags: Vec<String>,
    /// At most 64 keys.
    pub metadata: BTreeMap<String, String>,
    /// Whether it takes requests.
    pub status: Status,
    /// The revision that registered this incarnation: the fencing token. 0 before it is registered.
    pub reg_rev: u64,
    /// The revision that last changed the record. 0 before it is registered.
    pub mod_rev: u64,
}

/// Whether an instance takes requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Takes requests.
    #[default]
    Up,
    /// Finishes what is in flight, takes nothing new.
    Draining,
    /// Registered, takes nothing, by an operator's wish.
    Maintenance,
}

impl Instance {
    /// An instance at `http://host:port` with the id `service-host-port`, a lease of [`TTL_DEFAULT`], and the
    /// balancer's health path.
    pub fn new(service: impl Into<String>, host: impl Into<String>, port: u16) -> Instance {
        let (service, host) = (service.into(), host.into());
        Instance {
            id: format!("{service}-{host}-{port}"),
            url: format!("http://{host}:{port}"),
            service,
            host,
            port,
            health_path: String::new(),
            ttl: TTL_DEFAULT,
            weight: WEIGHT_DEFAULT,
            zone: String::new(),
            version: String::new(),
            tags: Vec::new(),
            metadata: BTreeMap::new(),
            status: Status::Up,
            reg_rev: 0,
            mod_rev: 0,
        }
    }

    /// Replaces the id.
    pub fn id(mut self, id: impl Into<String>) -> Instance {
        self.id = id.into();
        self
    }

    /// Replaces the URL.
    pub fn url(mut self, url: impl Into<String>) -> Instance {
        self.url = url.into();
        self
    }

    /// Sets the path of the health probe.
    pub fn health_path(mut self, path: impl Into<String>) -> Instance {
        self.health_path = path.into();
        self
    }

    /// Sets the lease, 3 s to 1 h.
    pub fn ttl(mut self, ttl: Duration) -> Instance {
        self.ttl = ttl;
        self
    }

    /// Sets the share of traffic, 1..1000.
    pub fn weight(mut self, weight: u32) -> Instance {
        self.weight = weight;
        self
    }

    /// Sets the zone.
    pub fn zone(mut self, zone: impl Into<String>) -> Instance {
        self.zone = zone.into();
        self
    }

    /// Sets the program's version.
    pub fn version(mut self, version: impl Into<String>) -> Instance {
        self.version = version.into();
        self
    }

    /// Adds a tag.
    pub fn tag(mut self, tag: impl Into<String>) -> Instance {
        self.tags.push(tag.into());
        self
    }

    /// Adds or replaces one entry of the metadata.
    pub fn meta(mut self, key: impl Into<String>, value: impl Into<String>) -> Instance {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets the status to register with.
    pub fn status(mut self, status: Status) -> Instance {
        self.status = status;
        self
    }

    /// What the registry would refuse anyway, said before anything is sent.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let limit = |what: &str, value: &str| match value.len() {
            1..=256 => Ok(()),
            0 => Err(Error::invalid(format!("the instance has no {what}"))),
            n => Err(Error::invalid(format!("the {what} is {n} bytes long, more than 256"))),
        };
        limit("id", &self.id)?;
        limit("service", &self.service)?;
        if self.url.is_empty() {
            return Err(Error::invalid("the instance has no url"));
        }
        Ok(())
    }
}

impl Status {
    /// The name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Up => "up",
            Status::Draining => "draining",
            Status::Maintenance => "maintenance",
        }
    }
}

impl From<wire::Instance> for Instance {
    fn from(i: wire::Instance) -> Instance {
        let status = Status::from(i.status());
        Instance {
            id: i.id,
            service: i.service,
            host: i.host,
            port: u16::try_from(i.port).unwrap_or(0),
            url: i.url,
            health_path: i.health_path,
            ttl: Duration::from_millis(u64::from(i.ttl_ms)),
            weight: if i.weight == 0 { WEIGHT_DEFAULT } else { i.weight },
            zone: i.zone,
            version: i.version,
            tags: i.tags,
            metadata: i.metadata.into_iter().collect(),
            status,
            reg_rev: i.reg_rev,
            mod_rev: i.mod_rev,
        }
    }
}

impl From<&Instance> for wire::Instance {
    fn from(i: &Instance) -> wire::Instance {
        wire::Instance {
            id: i.id.clone(),
            service: i.service.clone(),
            host: i.host.clone(),
            port: u32::from(i.port),
            url: i.url.clone(),
            health_path: i.health_path.clone(),
            ttl_ms: u32::try_from(i.ttl.as_millis()).unwrap_or(u32::MAX),
            weight: i.weight,
            zone: i.zone.clone(),
            version: i.version.clone(),
            tags: i.tags.clone(),
            metadata: i.metadata.clone().into_iter().collect(),
            status: wire::instance::Status::from(i.status).into(),
            ..Default::default()
        }
    }
}

impl From<wire::instance::Status> for Status {
    fn from(status: wire::instance::Status) -> Status {
        match status {
            wire::instance::Status::Draining => Status::Draining,
            wire::instance::Status::Maintenance => Status::Maintenance,
            wire::instance::Status::Up | wire::instance::Status::Unspecified => Status::Up,
        }
    }
}

impl From<Status> for wire::instance::Status {
    fn from(status: Status) -> wire::instance::Status {
        match status {
            Status::Up => wire::instance::Status::Up,
            Status::Draining => wire::instance::Status::Draining,
            Status::Maintenance => wire::instance::Status::Maintenance,
        }
    }
}

fn as_millis<S: serde::Serializer>(ttl: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}
