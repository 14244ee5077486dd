//! What the balancer tells of each request: the access log.

use std::path::Path;
use std::time::Duration;

use http::Method;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::backend::{Backend, Breaker};
use crate::balancer::{Balancer, eventually, system, system_with};
use crate::client::{self, request};
use crate::registry::Registry;

/// The lines of a log, each of which has to be JSON.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"))).collect()
}

/// Waits for the line about `path`.
async fn line(log: &Path, path: &str) -> Value {
    let mut found = Value::Null;
    eventually(&format!("there is a line about {path}"), async || {
        found = lines(log).into_iter().find(|l| l["path"] == path).unwrap_or_default();
        !found.is_null()
    })
    .await;
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_says_what_became_of_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let (registry, backends, lb) = system_with(1, &format!("accessLog: {}\n", log.display())).await;
    let agent = "test \"agent\" \u{9b}2J";
    let head =
        "POST /cart/42?secret=1 HTTP/1.1\r\nhost: shop.example\r\nx-request-id: r-1\r\nconnection: close\r\n";
    let post = format!("{head}user-agent: {agent}\r\ncontent-length: 5\r\n\r\nhello");
    let sent = client::raw(lb.http, post.as_bytes()).await;
    assert!(sent.starts_with("HTTP/1.1 200"), "{sent}");
    let entry = line(&log, "/cart/42").await;
    let is = |name: &str, value: Value| assert_eq!(entry[name], value, "{name} in {entry}");
    is("client", "127.0.0.1".into());
    is("method", "POST".into());
    is("host", "shop.example".into());
    is("protocol", "HTTP/1.1".into());
    is("request_id", "r-1".into());
    is("user_agent", agent.into());
    is("status", 200.into());
    is("bytes_in", 5.into());
    is("route", "/".into());
    is("endpoint", "b0".into());
    is("failed_attempts", Value::Array(Vec::new()));
    is("reason", Value::Null);
    let body = sent.split("\r\n\r\n").nth(1).unwrap();
    is("bytes_out", body.len().into());
    assert!(!entry.to_string().contains("secret"), "a query is nobody's business: {entry}");
    assert_eq!(entry["revision"].as_u64(), lb.endpoints().await["revision"].as_u64());
    let time = entry["time"].as_str().unwrap();
    let age = std::time::SystemTime::now().duration_since(humantime::parse_rfc3339(time).unwrap()).unwrap();
    assert!(age < Duration::from_secs(60), "{time}");
    let ms = |name: &str| entry[name].as_f64().unwrap_or_else(|| panic!("{name} in {entry}"));
    assert!(ms("connect_ms") <= ms("first_byte_ms") && ms("first_byte_ms") <= ms("duration_ms"), "{entry}");

    // Refused before it was a request.
    assert!(client::raw(lb.http, b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await.contains(" 400 "));
    eventually("it is told of", async || {
        lines(&log).iter().any(|l| l["reason"] == "malformed" && l["status"] == 400)
    })
    .await;
    // Refused by the balancer; its text has a length, too.
    let refused =
        client::raw(lb.http, b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n").await;
    assert!(refused.contains(" 405 "), "{refused}");
    eventually("it is told of", async || {
        lines(&log).iter().any(|l| l["reason"] == "method" && l["status"] == 405)
    })
    .await;
    // Whose client leaves.
    let leaving = tokio::spawn(client::get(lb.http, "/slow?ms=60000"));
    eventually("it is in flight", async || lb.endpoint("b0", "in_flight").await == 1).await;
    leaving.abort();
    let left = line(&log, "/slow").await;
    assert_eq!((&left["status"], &left["reason"]), (&499.into(), &"client_left".into()), "{left}");
    // That nobody could take.
    registry.deregister("b0");
    eventually("it is gone", async || lb.endpoint("b0", "id").await.is_null()).await;
    assert_eq!(client::get(lb.http, "/nobody").await.unwrap().status, 503);
    let nobody = line(&log, "/nobody").await;
    assert_eq!((&nobody["reason"], &nobody["endpoint"]), (&"no_endpoint".into(), &Value::Null), "{nobody}");
    drop(backends);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_names_the_attempts_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let (registry, breaker, good) = (Registry::start().await, Breaker::start().await, Backend::start("good"));
    registry.register("broken", &breaker.url());
    registry.register("good", &good.url());
    let lb = Balancer::start(&registry, &["--access-log", log.to_str().unwrap()]).await;
    lb.rotates(&["broken", "good"]).await;
    for i in 0..4 {
        assert_eq!(client::get(lb.http, &format!("/{i}")).await.unwrap().status, 200);
    }
    eventually("all are told of", async || lines(&log).len() == 4).await;
    let all = lines(&log);
    assert!(all.iter().all(|l| l["endpoint"] == "good" && l["reason"].is_null()), "{all:?}");
    let retried: Vec<&Value> = all.iter().filter_map(|l| l["failed_attempts"].get(0)).collect();
    assert_eq!(retried.len(), breaker.requests(), "{all:?}");
    assert!(!retried.is_empty());
    for attempt in retried {
        assert_eq!(attempt["endpoint"], "broken");
        assert!(attempt["why"].as_str().is_some_and(|why| !why.is_empty()), "{attempt}");
        assert!(attempt["duration_ms"].is_number());
    }
    // Not idempotent, so not tried again.
    let mut status = 0;
    while status != 502 {
        status = client::post(lb.http, "/post", "x").await.unwrap().status;
    }
    eventually("it is told of", async || lines(&log).iter().any(|l| l["status"] == 502)).await;
    let failed = lines(&log).into_iter().find(|l| l["status"] == 502).unwrap();
    assert_eq!(failed["reason"], "broke", "{failed}");
    assert_eq!(failed["failed_attempts"][0]["endpoint"], "broken", "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_is_opened_again_on_sighup_and_whole_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (log, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let (_registry, _backends, mut lb) = system(1, &["--access-log", log.to_str().unwrap()]).await;
    client::get(lb.http, "/before").await.unwrap();
    line(&log, "/before").await;
    std::fs::rename(&log, &moved).unwrap();
    lb.signal(Signal::SIGHUP);
    eventually("the file is there again", async || log.exists()).await;
    let last = request(Method::GET, "/after", &[("connection", "close")], "");
    client::send(lb.http, last).await.unwrap();
    lb.signal(Signal::SIGTERM);
    assert_eq!(lb.exited().await.code(), Some(0));
    let paths = |log: &Path| lines(log).iter().map(|l| l["path"].clone()).collect::<Vec<_>>();
    assert_eq!(paths(&log), ["/after"]);
    assert_eq!(paths(&moved), ["/before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_goes_to_standard_output_on_request_and_nowhere_by_default() {
    let (_registry, _backends, lb) = system(1, &["--access-log", "stdout"]).await;
    client::get(lb.http, "/here").await.unwrap();
    eventually("it is told of", async || !lb.output().is_empty()).await;
    let entry: Value = serde_json::from_str(&lb.output()[0]).unwrap();
    assert_eq!(entry["path"], "/here");
    assert!(lb.metrics().await.contains("balancer_access_log_dropped_total 0"));
    let (_registry, _backends, mut silent) = system(1, &[]).await;
    client::get(silent.http, "/here").await.unwrap();
    silent.signal(Signal::SIGTERM);
    assert!(silent.exited().await.success());
    assert_eq!(silent.output(), [""; 0]);
}
