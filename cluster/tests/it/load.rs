//! An open-loop load: requests begin on the clock, whether or not the earlier ones have ended, so that a stall shows.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::MissedTickBehavior;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{PATIENCE, eventually};

/// Longer than any time-out of a caller that people would accept.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A forgotten load ends by itself.
const LOAD_MAX: Duration = Duration::from_secs(120);

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Shot {
    pub at: Instant,
    pub took: Duration,
    pub via: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    /// The instance that answered.
    Answered(String),
    /// The head of a good answer came, and then its body broke off.
    BrokeOff(String),
    Failed(String),
}

impl Shot {
    pub fn instance(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Answered(instance) => Some(instance),
            _ => None,
        }
    }
}

/// A running load on several URLs.
pub struct Load {
    shots: Arc<Mutex<Vec<Shot>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
    begun: Instant,
    per_second: u32,
    urls: usize,
}

impl Load {
    /// Sends `per_second` GETs to each of `urls`: every second one on a connection of its own, the others on kept ones.
    pub fn start(urls: &[String], per_second: u32) -> Load {
        let load = Load {
            shots: Arc::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            begun: Instant::now(),
            per_second,
            urls: urls.len(),
        };
        for url in urls {
            let (shots, tasks) = (load.shots.clone(), load.tasks.clone());
            let firing = fire(format!("{url}/"), per_second, shots, tasks);
            load.tasks.spawn(load.stop.clone().run_until_cancelled_owned(firing));
        }
        load
    }

    /// What has ended so far.
    pub fn shots(&self) -> Vec<Shot> {
        self.shots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on until so many more seconds' worth of requests have ended.
    pub async fn go_on(&self, seconds: u32) {
        let more = (seconds * self.per_second) as usize * self.urls;
        let enough = self.shots().len() + more;
        let within = PATIENCE + Duration::from_secs(seconds.into());
        eventually("the load goes on", within, async || (self.shots().len() >= enough).then_some(())).await;
    }

    /// Stops, waits for what is under way, and returns everything. Panics if the load was not what it claims.
    pub async fn finish(self) -> Vec<Shot> {
        self.stop.cancel();
        let lasted = self.begun.elapsed();
        self.tasks.close();
        self.tasks.wait().await;
        let shots = self.shots();
        let promised = lasted.as_secs_f64() * f64::from(self.per_second) * self.urls as f64;
        assert!(shots.len() as f64 >= promised * 0.9 - 10.0, "only {} requests in {lasted:?}", shots.len());
        shots
    }
}

async fn fire(url: String, per_second: u32, shots: Arc<Mutex<Vec<Shot>>>, tasks: TaskTracker) {
    let kept = Client::builder(TokioExecutor::new()).build_http();
    let mut clock = tokio::time::interval(Duration::from_secs(1) / per_second);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + LOAD_MAX;
    let mut number = 0_u64;
    while Instant::now() < end {
        clock.tick().await;
        number += 1;
        let client = if number.is_multiple_of(2) { kept.clone() } else { once() };
        let (url, shots) = (url.clone(), shots.clone());
        tasks.spawn(async move {
            let at = Instant::now();
            let outcome = tokio::time::timeout(ANSWER_WITHIN, shoot(client, &url)).await;
            let outcome = outcome.unwrap_or_else(|_| Outcome::Failed("time-out".into()));
            let shot = Shot { at, took: at.elapsed(), via: url, outcome };
            shots.lock().unwrap_or_else(PoisonError::into_inner).push(shot);
        });
    }
}

type Http = Client<HttpConnector, Empty<Bytes>>;

fn once() -> Http {
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http()
}

async fn shoot(client: Http, url: &str) -> Outcome {
    let request = Request::get(url).body(Empty::new()).expect("a valid request");
    let answer = match client.request(request).await {
        Ok(answer) => answer,
        Err(error) => return Outcome::Failed(format!("{error:?}")),
    };
    let status = answer.status();
    let body = match answer.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Outcome::BrokeOff(error.to_string()),
    };
    let json: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    match json.as_ref().and_then(|json| json.get("instance")?.as_str()) {
        Some(instance) if status == 200 => Outcome::Answered(instance.to_owned()),
        _ => Outcome::Failed(format!("{status} {}", String::from_utf8_lossy(&body))),
    }
}

/// Panics unless every request was answered; `may_break_off` allows a body to end early.
pub fn assert_none_failed(during: &str, shots: &[Shot], may_break_off: bool) {
    let bad = |shot: &&Shot| match shot.outcome {
        Outcome::Answered(_) => false,
        Outcome::BrokeOff(_) => !may_break_off,
        Outcome::Failed(_) => true,
    };
    let failed: Vec<&Shot> = shots.iter().filter(bad).collect();
    let begun = shots.iter().map(|shot| shot.at).min();
    let line = |shot: &&Shot| {
        let at = begun.map_or(Duration::ZERO, |begun| shot.at - begun);
        let how = match &shot.outcome {
            Outcome::Answered(instance) => format!("answered by {instance}"),
            Outcome::BrokeOff(why) => format!("broke off: {why}"),
            Outcome::Failed(why) => format!("failed: {why}"),
        };
        format!("{at:?} {} after {:?} {how}", shot.via, shot.took)
    };
    let first: Vec<String> = failed.iter().take(10).map(line).collect();
    assert!(failed.is_empty(), "{during}: {} of {} failed\n{}", failed.len(), shots.len(), first.join("\n"));
    let slowest = shots.iter().map(|shot| shot.took).max().unwrap_or_default();
    println!("{during}: {} requests, none failed, slowest {slowest:?}", shots.len());
}
