//! The keys about who gets a request: what strategies need to know, zones, slow start, outliers, limits and queues.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::{Error, File, Flags, OneOrMany, Span, positive, within};
use crate::control::outlier;
use crate::control::record::Probe;
use crate::picker::{HashOn, Queue, Settings, Signer, Strategy};
use crate::pool::{Rules, Zones};

/// What an endpoint may have in flight, over the average, before keys of consistent hashing pass it over. HAProxy and
/// Envoy suggest from 125 to 200.
const BALANCE_PERCENT: u32 = 150;

/// Share of a zone that has to be fit for it to keep all of its traffic: about Envoy's 1/1.4.
const ZONE_FIT_PERCENT: u32 = 70;

/// How long a request waits for a slot, where `queue` does not say.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// More would hold more memory than what waits is worth.
const QUEUE_SIZE_MAX: usize = 100_000;

/// `queue`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct QueueFile {
    size: Option<usize>,
    timeout: Option<Span>,
}

/// `outlierDetection`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OutlierFile {
    enabled: Option<bool>,
    window: Option<Span>,
    failures: Option<u32>,
    failure_share: Option<u32>,
    consecutive_failures: Option<u32>,
    gateway_errors: Option<bool>,
    base_ejection: Option<Span>,
    max_ejection: Option<Span>,
    max_ejected: Option<u32>,
    panic_threshold: Option<u32>,
}

/// `hashOn`: `clientIp`, `header:NAME` or `cookie:NAME`.
#[derive(Debug, Clone)]
pub struct HashKey(HashOn);

impl<'de> Deserialize<'de> for HashKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let named = |name: &str| Some(name.trim().to_owned()).filter(|name| !name.is_empty());
        let on = match text.split_once(':') {
            None if text == "clientIp" => Some(HashOn::ClientIp),
            Some(("header", name)) => named(name).map(|name| HashOn::Header(name.to_ascii_lowercase())),
            Some(("cookie", name)) => named(name).map(HashOn::Cookie),
            _ => None,
        };
        on.map(HashKey).ok_or_else(|| {
            serde::de::Error::custom(format!("hashOn is clientIp, header:NAME or cookie:NAME, not {text:?}"))
        })
    }
}

/// `healthCheckType`: `http`, `tcp` or `grpc`, in any case.
#[derive(Debug, Clone, Copy)]
pub struct ProbeKind(pub Probe);

impl<'de> Deserialize<'de> for ProbeKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Probe::named(&text).map(ProbeKind).ok_or_else(|| {
            serde::de::Error::custom(format!("healthCheckType is http, tcp or grpc, not {text:?}"))
        })
    }
}

/// How endpoints are picked.
pub fn settings(flags: &Flags, file: &File) -> Result<Settings, Error> {
    let strategy = flags.strategy.or(file.strategy).unwrap_or(Strategy::RoundRobin);
    let balance = file.hash_balance_factor.unwrap_or(match strategy {
        Strategy::ConsistentHash => BALANCE_PERCENT,
        _ => 0,
    });
    let queue = file.queue.as_ref();
    let size = queue.map_or(0, |q| q.size.unwrap_or(100));
    if queue.is_some() && file.max_requests_per_endpoint.is_none() {
        let why = "queue needs maxRequestsPerEndpoint: without a limit nothing ever waits";
        return Err(Error::Value(why.into()));
    }
    let timeout = queue.and_then(|q| q.timeout).map_or(QUEUE_TIMEOUT, |s| s.0);
    Ok(Settings {
        strategy,
        hash_on: file.hash_on.clone().map_or(HashOn::ClientIp, |key| key.0),
        balance_percent: match balance {
            0 => 0,
            percent => within("hashBalanceFactor, unless it is 0,", percent, 101, 1000)?,
        },
        requests_max: match file.max_requests_per_endpoint {
            None => u32::MAX,
            Some(n) => within("maxRequestsPerEndpoint", n, 1, 1_000_000)?,
        },
        queue: Queue {
            size: within("queue.size", size, 0, QUEUE_SIZE_MAX)?,
            timeout: positive("queue.timeout", timeout)?,
        },
        signer: signer(flags, file)?,
    })
}

/// `settings`, but with another strategy.
pub fn with_strategy(settings: &Settings, strategy: Strategy) -> Settings {
    let balance_percent = match (settings.balance_percent, strategy) {
        (0, Strategy::ConsistentHash) => BALANCE_PERCENT,
        (BALANCE_PERCENT, Strategy::StickySessions) => 0,
        (given, _) => given,
    };
    Settings { strategy, balance_percent, ..settings.clone() }
}

fn signer(flags: &Flags, file: &File) -> Result<Option<Arc<Signer>>, Error> {
    let secrets = match (&flags.sticky_secret, &file.sticky_secret) {
        (Some(secret), _) => vec![secret.clone()],
        (None, Some(OneOrMany::One(secret))) => vec![secret.clone()],
        (None, Some(OneOrMany::Many(secrets))) => secrets.clone(),
        (None, None) => return Ok(None),
    };
    let signer = Signer::new(&secrets).map_err(|e| Error::Value(format!("stickySecret: {e}")))?;
    Ok(Some(Arc::new(signer)))
}

/// Who is in rotation.
pub fn rules(flags: &Flags, file: &File) -> Result<Rules, Error> {
    let own = flags.zone.clone().or(file.zone.clone()).filter(|zone| !zone.is_empty());
    let fit = within("zoneHealthyMin", file.zone_healthy_min.unwrap_or(ZONE_FIT_PERCENT), 1, 100)?;
    let panic = file.outlier_detection.as_ref().and_then(|o| o.panic_threshold).unwrap_or(0);
    Ok(Rules {
        panic_percent: within("outlierDetection.panicThreshold", panic, 0, 100)?,
        zones: own.map(|own| Zones { own, fit_min_percent: fit }),
    })
}

/// When endpoints are ejected.
pub fn outliers(file: &File) -> Result<outlier::Policy, Error> {
    let default = outlier::Policy::default();
    let Some(block) = &file.outlier_detection else { return Ok(default) };
    let window = block.window.map_or(default.window, |s| s.0);
    if window.subsec_nanos() > 0 || !(1..=60).contains(&window.as_secs()) {
        return Err(Error::Value("outlierDetection.window must be whole seconds from 1s to 60s".into()));
    }
    let enabled = block.enabled.unwrap_or(true);
    let number =
        |given: Option<u32>, default: u32| Some(given.unwrap_or(default)).filter(|&n| enabled && n > 0);
    let base = positive("outlierDetection.baseEjection", block.base_ejection.map_or(default.base, |s| s.0))?;
    let max = block.max_ejection.map_or(default.max.max(base), |s| s.0);
    if max < base {
        return Err(Error::Value(
            "outlierDetection.maxEjection must not be shorter than baseEjection".into(),
        ));
    }
    let percent = |key, given: Option<u32>, default| {
        within(&format!("outlierDetection.{key}"), given.unwrap_or(default), 0, 100)
    };
    Ok(outlier::Policy {
        window,
        failures_min: number(block.failures, 5),
        share_min_percent: percent("failureShare", block.failure_share, default.share_min_percent)?,
        in_a_row_max: number(block.consecutive_failures, 0),
        base,
        max,
        ejected_max_percent: percent("maxEjected", block.max_ejected, default.ejected_max_percent)?,
    })
}

/// Whether 502, 503 and 504 count as failures.
pub fn counts_gateway_errors(file: &File) -> bool {
    file.outlier_detection.as_ref().and_then(|o| o.gateway_errors).unwrap_or(false)
}
