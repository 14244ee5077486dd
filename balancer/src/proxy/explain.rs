//! What would become of a request, and why: the same reading of its head, the same route, the same pick, and nothing is
//! sent. Pure but for the draw of what is left to chance.

use std::collections::HashMap;
use std::time::Instant;

use http::Method;
use serde::Serialize;

use super::belonging::Belonging;
use super::course::{METRICS, asked};
use super::http1::Request;
use crate::picker::{self, Ask, Key, Missing, Settings, Strategy};
use crate::pool::{Entry, Pool, Standing};
use crate::route::{Action, Route, Selector};
use crate::table::Table;

/// A request that nobody sends.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its method.
    pub method: String,
    /// Its path, and its query behind a question mark.
    pub path: String,
    /// Its Host.
    pub host: String,
    /// Its other fields.
    pub fields: Vec<(String, String)>,
    /// The client's address.
    pub client: String,
    /// The ids of endpoints that it was tried at in vain.
    pub tried: Vec<String>,
    /// Whose turn it is, for strategies that go by turns.
    pub turn: usize,
}

/// See the file's head.
#[derive(Debug, Serialize)]
pub struct Explanation {
    outcome: Outcome,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Chosen>,
    routes_passed_over: Vec<PassedOver>,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    picked: Option<String>,
    endpoints: Vec<Candidate>,
}

/// What becomes of the request.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// It goes to an endpoint.
    Forwarded,
    /// It waits, or is answered with 503: every endpoint has as many as it may have.
    Full,
    /// It is answered with 503.
    NobodyThere,
    /// It is refused.
    Refused,
    /// The balancer answers it.
    AnsweredHere,
}

#[derive(Debug, Serialize)]
struct Chosen {
    name: String,
    why: String,
    strategy: &'static str,
}

#[derive(Debug, Serialize)]
struct PassedOver {
    name: String,
    why: String,
}

/// One endpoint, whether it may have the request, and why.
#[derive(Debug, Serialize)]
struct Candidate {
    id: String,
    service: String,
    verdict: Verdict,
    why: String,
    weight: u32,
    in_flight: u32,
    /// Of the turns; null for one that takes none.
    share: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It gets the request.
    Picked,
    /// It could.
    Candidate,
    /// It could if all candidates failed.
    Spare,
    /// It cannot.
    LeftOut,
}

/// Explains what `table` makes of a request.
pub fn explain(table: &Table, question: &Question) -> Explanation {
    let mut request = Request::default();
    if let Err(why) = request.parse(&head(question)) {
        return Explanation::without_endpoint(
            table,
            Outcome::Refused,
            format!("the request is malformed: {why}"),
        );
    }
    match (&request.method, request.path()) {
        (&Method::CONNECT, _) => {
            return Explanation::without_endpoint(
                table,
                Outcome::Refused,
                "CONNECT is not supported".to_owned(),
            );
        }
        (&Method::GET | &Method::HEAD, METRICS) => {
            let why = "the balancer answers with its own metrics".to_owned();
            return Explanation::without_endpoint(table, Outcome::AnsweredHere, why);
        }
        _ => {}
    }
    let routes = &table.routes;
    let found = asked(&request, |asked| routes.find(request.path(), asked));
    let index = found.unwrap_or_else(|_| routes.nowhere());
    let route = routes.get(index);
    let others = asked(&request, |asked| routes.others(index, request.path(), asked));
    let passed_over =
        others.into_iter().map(|(route, why)| PassedOver { name: route.name.to_string(), why }).collect();
    let mut explanation = match &route.action {
        Action::Forward(_) => forwarded(table, route, question, &request),
        Action::Redirect(redirect) => {
            let why = format!("the route redirects with {}", redirect.status);
            Explanation::without_endpoint(table, Outcome::AnsweredHere, why)
        }
        Action::Answer(own) => Explanation::without_endpoint(
            table,
            Outcome::AnsweredHere,
            format!("the route answers {}", own.status),
        ),
        Action::Nowhere => Explanation::without_endpoint(table, Outcome::Refused, routes.because(found)),
    };
    let chosen = || Chosen {
        name: route.name.to_string(),
        why: routes.because(found),
        strategy: route.picking.strategy.name(),
    };
    explanation.route = found.is_ok().then(chosen);
    explanation.routes_passed_over = passed_over;
    explanation
}

/// What a request of `route` meets.
fn forwarded(table: &Table, route: &Route, question: &Question, request: &Request) -> Explanation {
    let picking = &route.picking;
    let tried = |e: &&Entry| question.tried.iter().any(|id| **id == *e.endpoint.id);
    let tried: Vec<u64> = table.entries().filter(tried).map(|e| e.endpoint.key).collect();
    let key = Belonging::of(picking, request, &question.client).key();
    let ask = Ask { turn: question.turn, draw: fastrand::u64(..), now: Instant::now(), key, tried: &tried };
    let draw = match key {
        None => fastrand::u64(..),
        Some(Key::Hash(key)) => route.draw(key),
        Some(Key::Home(session)) => route.draw(session.key()),
    };
    // From the target that has its turn, or from the next that has anybody.
    let mut selectors: Vec<usize> = route.targets(draw).map(|target| target.selector).collect();
    if let Some(Key::Home(session)) = key {
        // A session that names its endpoint goes where that is.
        selectors.sort_by_key(|&n| table.pools[n].home(session.endpoint).is_none());
    }
    let mut picks = selectors.iter().map(|&n| (n, picker::pick(picking, &table.pools[n], &ask)));
    let picked = picks.find(|(_, picked)| !matches!(picked, Err(Missing::Nobody)));
    let spare = || {
        let spare = |&n: &usize| Some((n, picker::spare(picking, &table.pools[n], question.turn, &tried)?));
        selectors.iter().find_map(spare)
    };
    let (target, picked, outcome, mut why) = match picked {
        Some((n, Ok(entry))) => {
            (n, Some(entry), Outcome::Forwarded, how(picking.strategy, key, &table.pools[n], entry))
        }
        Some((n, Err(_))) => {
            (n, None, Outcome::Full, "every endpoint has as many requests as it may have".to_owned())
        }
        None => match spare().filter(|_| !tried.is_empty()) {
            Some((n, entry)) => {
                let why = "all of the rotation was tried; it may still answer".to_owned();
                (n, Some(entry), Outcome::Forwarded, why)
            }
            None => {
                let why = "no endpoint of this route takes requests".to_owned();
                (selectors.first().copied().unwrap_or_default(), None, Outcome::NobodyThere, why)
            }
        },
    };
    if route.is_split() {
        let takes = named(&table.routes.selectors()[target]);
        let chance = if key.is_none() { "; another draw may lead elsewhere" } else { "" };
        why = format!("of the route's targets {takes} have their turn{chance}; there: {why}");
    }
    let (pool, selector) = (&table.pools[target], &table.routes.selectors()[target]);
    let judge = Judge::new(pool, selector, picking, &tried, picked, &why);
    let mut endpoints: Vec<Candidate> = table.entries().map(|entry| judge.candidate(entry)).collect();
    endpoints.sort_by(|a, b| a.id.cmp(&b.id));
    let picked = picked.map(|entry| entry.endpoint.id.to_string());
    Explanation { outcome, why: why.clone(), picked, endpoints, ..Explanation::of(table) }
}

impl Explanation {
    fn of(table: &Table) -> Explanation {
        Explanation {
            outcome: Outcome::Refused,
            why: String::new(),
            route: None,
            routes_passed_over: Vec::new(),
            revision: table.revision,
            picked: None,
            endpoints: Vec::new(),
        }
    }

    fn without_endpoint(table: &Table, outcome: Outcome, why: String) -> Explanation {
        Explanation { outcome, why, ..Explanation::of(table) }
    }
}

/// Why the strategy names `entry`.
fn how(strategy: Strategy, key: Option<Key>, pool: &Pool, entry: &Entry) -> String {
    let by_load = "of two endpoints drawn by weight";
    let draws = "another draw may lead elsewhere";
    match (strategy, key) {
        (Strategy::RoundRobin, _) => "it has the next turn, by weight".to_owned(),
        (Strategy::LeastConnections, _) => "it has the fewest requests in flight for its weight".to_owned(),
        (Strategy::LeastRequest, _) => {
            format!("{by_load} it has the fewer requests in flight for its weight; {draws}")
        }
        (Strategy::PeakEwma, _) => format!("{by_load} it is likely to answer sooner; {draws}"),
        (Strategy::Random, _) => format!("by chance, by weight; {draws}"),
        (Strategy::ConsistentHash | Strategy::StickySessions, None) => {
            format!(
                "the request brings nothing to hash; {by_load} it has the fewer requests in flight; {draws}"
            )
        }
        (Strategy::ConsistentHash | Strategy::StickySessions, Some(key)) => {
            let owner = match key {
                Key::Hash(hash) => pool.owner(hash),
                Key::Home(session) => pool.home(session.endpoint),
            };
            match owner.map(|i| &pool.entries()[i]) {
                Some(owner) if owner.endpoint.key == entry.endpoint.key => {
                    "what the request brings belongs to it".to_owned()
                }
                Some(owner) => format!(
                    "what the request brings belongs to {}, which is passed over ({}, {} in flight); this one is next",
                    owner.endpoint.id,
                    owner.standing.name(),
                    owner.endpoint.in_flight()
                ),
                None => "what the request brings belongs to an endpoint that has gone; this one is next"
                    .to_owned(),
            }
        }
    }
}

/// Judges endpoints, one after the other.
struct Judge<'a> {
    here: HashMap<u64, f64>,
    known: HashMap<u64, &'a Entry>,
    peers: Vec<u64>,
    spares: Vec<u64>,
    selector: &'a Selector,
    picking: &'a Settings,
    tried: &'a [u64],
    picked: Option<&'a Entry>,
    how: &'a str,
}

impl<'a> Judge<'a> {
    fn new(
        pool: &'a Pool,
        selector: &'a Selector,
        picking: &'a Settings,
        tried: &'a [u64],
        picked: Option<&'a Entry>,
        how: &'a str,
    ) -> Judge<'a> {
        Judge {
            here: pool.shares().map(|(entry, share)| (entry.endpoint.key, share)).collect(),
            known: pool.entries().iter().map(|entry| (entry.endpoint.key, entry)).collect(),
            peers: pool.peers().map(|entry| entry.endpoint.key).collect(),
            spares: pool.spares().map(|entry| entry.endpoint.key).collect(),
            selector,
            picking,
            tried,
            picked,
            how,
        }
    }

    fn candidate(&self, entry: &Entry) -> Candidate {
        let endpoint = &entry.endpoint;
        let (verdict, why) = self.verdict(entry);
        Candidate {
            id: endpoint.id.to_string(),
            service: endpoint.service.to_string(),
            verdict,
            why,
            weight: entry.weight,
            in_flight: endpoint.in_flight(),
            share: self.here.get(&endpoint.key).copied(),
        }
    }

    fn verdict(&self, entry: &Entry) -> (Verdict, String) {
        let key = entry.endpoint.key;
        let Some(entry) = self.known.get(&key).copied() else {
            return (Verdict::LeftOut, format!("the request goes to {}", named(self.selector)));
        };
        let stands = format!("it is {}: {}", entry.standing.name(), entry.why);
        if self.picked.is_some_and(|picked| picked.endpoint.key == key) {
            return (Verdict::Picked, self.how.to_owned());
        }
        if self.tried.contains(&key) {
            return (Verdict::LeftOut, "it was tried already".to_owned());
        }
        if entry.standing.tier().is_none() {
            return (Verdict::LeftOut, stands);
        }
        let in_flight = entry.endpoint.in_flight();
        if in_flight >= self.picking.requests_max {
            return (
                Verdict::LeftOut,
                format!("it has {in_flight} requests in flight, as many as it may have"),
            );
        }
        if self.here.contains_key(&key) {
            return match entry.standing {
                Standing::Up => (Verdict::Candidate, "it takes requests".to_owned()),
                _ => (Verdict::Candidate, format!("{stands}; it takes requests, as nobody is better")),
            };
        }
        if self.peers.contains(&key) {
            let why = format!("it is in zone {:?}, and there are enough nearer", entry.zone);
            return (Verdict::Spare, why);
        }
        match self.spares.contains(&key) {
            true => (Verdict::Spare, format!("{stands}; others are better")),
            false => (Verdict::LeftOut, stands),
        }
    }
}

/// Which instances a selector means.
pub fn named(selector: &Selector) -> String {
    match (&selector.service, &selector.version) {
        (None, None) => "every instance".to_owned(),
        (Some(service), None) => format!("instances of {service}"),
        (None, Some(version)) => format!("instances in version {version}"),
        (Some(service), Some(version)) => format!("instances of {service} in version {version}"),
    }
}

/// The head that a client would send.
fn head(question: &Question) -> Vec<u8> {
    let Question { method, path, host, .. } = question;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
    question.fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    (head + "\r\n").into_bytes()
}
