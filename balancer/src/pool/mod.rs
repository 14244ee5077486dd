//! What the balancer knows about its upstreams, as one immutable value.
//!
//! Owns [`Pool`], [`Entry`] and [`Endpoint`]. The control side builds a pool and publishes it with one atomic
//! swap; the proxy side only reads it. Nothing here does I/O or draws a random number, and time is an argument.
//!
//! What changes in place is an endpoint's load and latency: they are counted on the worker threads, in atomics that
//! survive from one pool to the next. What only some strategies need (the table of consistent hashing, the index
//! of sessions) is made when it is first asked for.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

mod endpoint;
mod gate;
mod latency;
mod maglev;
mod schedule;
mod zones;

pub use endpoint::{Address, AddressError, Endpoint, InFlight, Protocol, hash, mix};
pub use gate::{Crowded, Gate, Ticket};
pub use maglev::{Maglev, SLOTS};
pub use zones::Zones;

#[cfg(test)]
mod tests;

/// The ramp of an endpoint that takes its whole share.
pub const RAMP_FULL: u8 = 10;

/// How an endpoint stands. The order is the order of preference: see [`Pool::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Probed and healthy.
    Up,
    /// Known, not probed yet.
    Unproven,
    /// Taken out for failing requests; comes back on its own.
    Ejected,
    /// Accepts connections, but its probe fails.
    Failing,
    /// Refuses connections.
    Down,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Out of rotation by an operator's wish.
    Maintenance,
    /// Its record cannot be used, such as a URL with an unknown scheme.
    Unusable,
}

impl Standing {
    /// Every standing, for metrics that name them all.
    pub const ALL: [Standing; 8] = [
        Standing::Up,
        Standing::Unproven,
        Standing::Ejected,
        Standing::Failing,
        Standing::Down,
        Standing::Draining,
        Standing::Maintenance,
        Standing::Unusable,
    ];

    /// The name used in metrics, logs and the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Up => "up",
            Standing::Unproven => "unproven",
            Standing::Ejected => "ejected",
            Standing::Failing => "failing",
            Standing::Down => "down",
            Standing::Draining => "draining",
            Standing::Maintenance => "maintenance",
            Standing::Unusable => "unusable",
        }
    }

    /// Which fallback an endpoint belongs to; `None` if it takes requests under no circumstances.
    pub fn tier(self) -> Option<u8> {
        match self {
            Standing::Up => Some(0),
            Standing::Unproven => Some(1),
            Standing::Ejected | Standing::Failing => Some(2),
            Standing::Down => Some(3),
            Standing::Draining | Standing::Maintenance | Standing::Unusable => None,
        }
    }
}

/// An endpoint as of one pool.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Share of traffic relative to the others, at least 1.
    pub weight: u32,
    /// How much of it is in effect while the endpoint starts slowly, in tenths: 1 to [`RAMP_FULL`].
    pub ramp: u8,
    /// Where it runs; empty if it does not say.
    pub zone: Arc<str>,
    /// How it stands.
    pub standing: Standing,
    /// Why it stands so, for people.
    pub why: String,
}

impl Entry {
    /// An endpoint that takes its whole share, in no zone.
    pub fn new(endpoint: Arc<Endpoint>, weight: u32, standing: Standing, why: String) -> Entry {
        Entry { endpoint, weight, ramp: RAMP_FULL, zone: Arc::from(""), standing, why }
    }

    /// Its weight times its ramp.
    fn ramped(&self) -> u32 {
        self.weight.max(1).saturating_mul(u32::from(self.ramp.clamp(1, RAMP_FULL)))
    }
}

/// Who is in rotation, beyond how endpoints stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// If less than this share of those that may serve is up, in percent, all of them take requests: probes that fail
    /// everywhere say more about the probes. 0 for never.
    pub panic_percent: u32,
    /// Which zone is preferred, if any.
    pub zones: Option<Zones>,
}

/// One endpoint in rotation, with what a pick looks at close together.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its weight in effect, relative to the others of the rotation; at least 1.
    pub weight: u32,
    index: u32,
}

/// Every endpoint the balancer knows, and those that take new requests.
#[derive(Debug, Default)]
pub struct Pool {
    /// The catalog's revision this pool reflects.
    pub revision: u64,
    entries: Vec<Entry>,
    rotation: Vec<Slot>,
    spares: Vec<usize>,
    schedule: Vec<u16>,
    /// The fallback that takes requests; `None` if nobody does.
    best: Option<u8>,
    /// Whether all that may serve do, however they stand.
    panics: bool,
    /// The weights of those that [`Pool::takes`] names, together.
    able_weight: u64,
    maglev: Arc<OnceLock<Maglev>>,
    /// Entries by the hash of their ids.
    homes: Arc<OnceLock<Vec<(u64, u32)>>>,
    load: Load,
}

/// Requests in flight at those that [`Pool::takes`] names, counted now and then.
#[derive(Debug, Default)]
struct Load {
    total: AtomicU64,
    /// Picks until they are counted anew.
    left: AtomicU32,
}

impl Pool {
    /// Builds a pool. `entries` are ordered by id, so the order of the rotation never depends on chance.
    ///
    /// New requests go to the endpoints that are up. If none is, to those not yet probed; else to those that
    /// answer but fail; else to those that refuse, since a refusal costs little and one may just have come back.
    /// So probes alone never empty a rotation.
    pub fn new(revision: u64, entries: Vec<Entry>) -> Pool {
        Pool::under(&Rules::default(), revision, entries, None)
    }

    /// The same under `rules`, and after a pool of which what is still true is kept: a table for hashing is built
    /// anew only if who shares in it has changed, and then here, not by the request that first needs it.
    pub fn under(rules: &Rules, revision: u64, entries: Vec<Entry>, before: Option<&Pool>) -> Pool {
        let able = || entries.iter().filter(|e| e.standing.tier().is_some());
        let up = able().filter(|e| e.standing == Standing::Up).count() as u64;
        let panics = up * 100 < able().count() as u64 * u64::from(rules.panic_percent);
        let best = able().filter_map(|e| e.standing.tier()).min();
        let mut pool = Pool { revision, entries, best, panics, ..Pool::default() };
        let members: Vec<u32> = (0..pool.entries.len() as u32).filter(|&i| pool.takes(i as usize)).collect();
        pool.able_weight = members.iter().map(|&i| u64::from(pool.entries[i as usize].weight.max(1))).sum();
        let weights = zones::weights(rules.zones.as_ref(), &pool.entries, &members);
        let slot = |(&index, weight): (&u32, u32)| {
            let endpoint = pool.entries[index as usize].endpoint.clone();
            (weight > 0).then_some(Slot { endpoint, weight, index })
        };
        pool.rotation = members.iter().zip(weights).filter_map(slot).collect();
        let mut rotates = vec![false; pool.entries.len()];
        pool.rotation.iter().for_each(|slot| rotates[slot.index as usize] = true);
        let tier = |i: usize| pool.entries[i].standing.tier();
        pool.spares = (0..pool.entries.len()).filter(|&i| tier(i).is_some() && !rotates[i]).collect();
        pool.spares.sort_by_key(|&i| pool.entries[i].standing.tier());
        let weights: Vec<u32> = pool.rotation.iter().map(|slot| slot.weight).collect();
        pool.schedule = schedule::turns(&weights);
        if let Some(before) = before {
            pool.inherit(before);
        }
        pool
    }

    fn inherit(&mut self, before: &Pool) {
        let share = |e: &Entry| (e.endpoint.id_hash, e.weight, e.standing.tier().is_some());
        if self.entries.iter().map(share).eq(before.entries.iter().map(share)) {
            (self.maglev, self.homes) = (before.maglev.clone(), before.homes.clone());
        } else if before.maglev.get().is_some() {
            self.table();
        }
    }

    /// Every endpoint, in the order given to [`Pool::new`].
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many endpoints take new requests.
    pub fn rotation_len(&self) -> usize {
        self.rotation.len()
    }

    /// The endpoints that take new requests.
    pub fn rotation(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.rotation.iter().map(|slot| self.entry(slot))
    }

    /// The same, for a quick look at all of them.
    pub fn slots(&self) -> &[Slot] {
        &self.rotation
    }

    /// The endpoint of a slot of this pool.
    pub fn entry(&self, slot: &Slot) -> &Entry {
        &self.entries[slot.index as usize]
    }

    /// The endpoints outside the rotation that could take a request if all of the rotation failed it, the
    /// likeliest to answer first.
    pub fn spares(&self) -> impl Iterator<Item = &Entry> {
        self.spares.iter().map(|&i| &self.entries[i])
    }

    /// Of these the ones that stand as well as the rotation, and are not needed there.
    pub fn peers(&self) -> impl Iterator<Item = &Entry> {
        self.spares.iter().filter(|&&i| self.takes(i)).map(|&i| &self.entries[i])
    }

    /// The `n`th endpoint of the rotation. Panics if `n` is not below [`Pool::rotation_len`].
    pub fn rotated(&self, n: usize) -> &Entry {
        self.entry(&self.rotation[n])
    }

    /// Who has the `turn`th turn, as a position in the rotation: weights are respected, and turns of one
    /// endpoint are spread out. `None` if nobody takes requests.
    pub fn scheduled(&self, turn: usize) -> Option<usize> {
        match self.schedule.len() {
            0 => None,
            n => Some(usize::from(self.schedule[turn % n])),
        }
    }

    /// The share of turns that each of the rotation has, in its order; they sum up to 1.
    pub fn shares(&self) -> impl Iterator<Item = (&Entry, f64)> {
        let total: f64 = self.rotation.iter().map(|slot| f64::from(slot.weight)).sum();
        self.rotation.iter().map(move |slot| (self.entry(slot), f64::from(slot.weight) / total))
    }

    /// Whether new requests may go to the entry numbered `index`, of whatever zone: hashing has to come to the same
    /// endpoint in every zone.
    pub fn takes(&self, index: usize) -> bool {
        match self.entries[index].standing.tier() {
            None => false,
            tier => self.panics || tier == self.best,
        }
    }

    /// The number of the entry that `key`, a good hash, belongs to, whether or not it takes requests.
    pub fn owner(&self, key: u64) -> Option<usize> {
        self.table().owner(key)
    }

    /// Endpoints that are to take no more requests have no share in it, so that their keys move only once.
    fn table(&self) -> &Maglev {
        self.maglev.get_or_init(|| {
            let able = self.entries.iter().enumerate().filter(|(_, e)| e.standing.tier().is_some());
            Maglev::new(able.map(|(i, e)| (i, &*e.endpoint.id, e.weight)))
        })
    }

    /// The number of the entry whose id has this hash.
    pub fn home(&self, id_hash: u64) -> Option<usize> {
        let homes = self.homes.get_or_init(|| {
            let hashes = self.entries.iter().zip(0u32..).map(|(e, i)| (e.endpoint.id_hash, i));
            let mut homes: Vec<(u64, u32)> = hashes.collect();
            homes.sort_unstable();
            homes
        });
        let at = homes.partition_point(|(hash, _)| *hash < id_hash);
        homes.get(at).filter(|(hash, _)| *hash == id_hash).map(|&(_, index)| index as usize)
    }

    /// How many requests the endpoint of weight `weight` may have in flight, the one to come included, so that none has
    /// more than `percent` of its share of all: `ceil(c * m * w / W)`, after Mirrokni, Thorup and Zadimoghaddam
    /// ("Consistent hashing with bounded loads", SODA 2018).
    ///
    /// All are counted anew after as many picks as there are eighths of them, and each pick between is taken to last:
    /// so the bound may be too high by an eighth of a request for each endpoint, and never too low for what this pool
    /// sent.
    pub fn bound(&self, percent: u32) -> Bound {
        let able = || self.entries.iter().enumerate().filter(|(i, _)| self.takes(*i)).map(|(_, e)| e);
        let step = |left: u32| left.checked_sub(1);
        let total = match self.load.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step) {
            Ok(_) => self.load.total.fetch_add(1, Ordering::Relaxed) + 1,
            Err(_) => {
                let total = able().map(|e| u64::from(e.endpoint.in_flight())).sum();
                self.load.total.store(total, Ordering::Relaxed);
                self.load.left.store(self.entries.len() as u32 / 8, Ordering::Relaxed);
                total
            }
        };
        Bound { loads: (total + 1) * u64::from(percent), weights: self.able_weight }
    }
}

/// See [`Pool::bound`].
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// All requests, times the percentage.
    loads: u64,
    /// The sum of all weights.
    weights: u64,
}

impl Bound {
    /// Most requests for an endpoint of this weight.
    pub fn of(&self, weight: u32) -> u64 {
        (self.loads * u64::from(weight.max(1))).div_ceil((self.weights * 100).max(1))
    }
}
