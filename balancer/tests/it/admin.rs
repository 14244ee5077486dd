//! The admin API: what it answers is what its document says, and what changes something is not done for strangers.

use http::Method;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::balancer::{eventually, system, system_with};
use crate::client::{self, Answer, request};

/// Whether `value` is as `schema` says; the error names the place. Knows what the document uses, and stricter: no field
/// that is not described.
fn matches(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.trim_start_matches('#');
        let target = document.pointer(pointer).ok_or_else(|| format!("{at}: no {name}"))?;
        return matches(document, target, value, at);
    }
    const KNOWN: [&str; 9] = [
        "type",
        "description",
        "enum",
        "minimum",
        "items",
        "properties",
        "required",
        "additionalProperties",
        "examples",
    ];
    let words = schema.as_object().ok_or_else(|| format!("{at}: no schema"))?;
    if let Some(word) = words.keys().find(|word| !KNOWN.contains(&word.as_str())) {
        return Err(format!("{at}: the test does not know {word}"));
    }
    let is = |kind: &Value| match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    };
    let fits = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(is),
        kind => is(kind),
    };
    if !fits {
        return Err(format!("{at}: {value} is not {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        return Err(format!("{at}: {value} is none of {}", schema["enum"]));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        return Err(format!("{at}: {number} is less than {least}"));
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        matches(document, &schema["items"], item, &format!("{at}[{i}]"))?;
    }
    let Some(fields) = value.as_object().filter(|_| words.len() > 2) else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        fields.get(name).ok_or_else(|| format!("{at}: no {name}"))?;
    }
    for (name, field) in fields {
        let described = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
        let described = described.ok_or_else(|| format!("{at}: {name} is not described"))?;
        matches(document, described, field, &format!("{at}.{name}"))?;
    }
    Ok(())
}

/// What the document says of an answer with `status` to an operation.
fn described<'a>(document: &'a Value, operation: &'a Value, status: &str) -> &'a Value {
    let response = operation["responses"].get(status).unwrap_or(&operation["responses"]["default"]);
    match response["$ref"].as_str() {
        Some(name) => document.pointer(name.trim_start_matches('#')).expect("it is there"),
        None => response,
    }
}

/// Compares an answer with what the document says of it.
fn holds(document: &Value, operation: &Value, answer: &Answer, what: &str) {
    let content = &described(document, operation, &answer.status.to_string())["content"];
    let kind = answer.header("content-type");
    let essence = kind.split(';').next().unwrap_or_default();
    let schema = &content[essence]["schema"];
    assert!(schema.is_object(), "{what}: {} {essence} is not in {content}", answer.status);
    if essence.ends_with("json") {
        matches(document, schema, &answer.json(), what)
            .unwrap_or_else(|why| panic!("{why}\n{}", answer.text()));
    }
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_says_what_is_served() {
    let (_registry, _backends, lb) = system(2, &[]).await;
    assert_eq!(client::get(lb.http, "/some/path").await.unwrap().status, 200);
    let document = client::get(lb.admin, "/openapi.json").await.unwrap().json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() >= 8, "{paths:?}");
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            for (status, response) in operation["responses"].as_object().expect("responses") {
                for (kind, content) in
                    described(&document, operation, status)["content"].as_object().expect("content")
                {
                    let (schema, example) = (&content["schema"], &content["example"]);
                    if !example.is_null() {
                        let what = format!("the example of {method} {path} {status} {kind}");
                        matches(&document, schema, example, &what).unwrap_or_else(|why| panic!("{why}"));
                    } else {
                        assert!(
                            kind.ends_with("html") || path == "/openapi.json",
                            "{path} {response} has no example"
                        );
                    }
                }
            }
            // A foreign page's, so that nothing changes.
            let headers: &[(&str, &str)] =
                if method == "post" { &[("origin", "http://evil.example")] } else { &[] };
            let query = operation["x-example-query"].as_str().unwrap_or_default();
            let verb: Method = method.to_uppercase().parse().unwrap();
            let sent = request(verb, &format!("{path}{query}"), headers, "");
            let answer = client::send(lb.admin, sent).await.unwrap();
            assert_eq!(
                answer.status,
                if method == "post" { 403 } else { 200 },
                "{method} {path}: {}",
                answer.text()
            );
            holds(&document, operation, &answer, &format!("{method} {path}"));
            let wrong = client::send(lb.admin, request(Method::DELETE, path, &[], "")).await.unwrap();
            assert_eq!(wrong.status, 405, "{path}");
            assert!(
                wrong.header("allow").contains(&method.to_uppercase()),
                "{path}: {}",
                wrong.header("allow")
            );
            holds(&document, operation, &wrong, path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_a_problem_that_says_what_is() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let answer = client::get(lb.admin, "/v1/endpoint").await.unwrap();
    assert_eq!((answer.status, answer.header("content-type").as_str()), (404, "application/problem+json"));
    let problem = answer.json();
    assert_eq!(problem["status"], 404);
    assert_eq!(problem["type"], "urn:balancer:problem:no-such-path");
    assert!(problem["detail"].as_str().unwrap().contains("/v1/endpoints"), "{problem}");
    let head = client::send(lb.admin, request(Method::HEAD, "/v1/endpoints", &[], "")).await.unwrap();
    assert_eq!((head.status, head.body.len()), (200, 0));
}

/// A browser's page of another origin cannot, nor can one whose name was made to point here; curl can.
#[tokio::test(flavor = "multi_thread")]
async fn drain_by_the_api_is_a_graceful_stop() {
    let (_registry, _backends, mut lb) = system(1, &[]).await;
    let (http, admin) = (lb.http, lb.admin);
    let slow = tokio::spawn(client::get(http, "/slow?ms=700"));
    eventually("it is in flight", async || lb.endpoint("b0", "in_flight").await == 1).await;
    for headers in [
        [("origin", "http://evil.example"), ("host", "127.0.0.1")],
        [("origin", "http://a.b"), ("host", "a.b")],
    ] {
        let answer = client::send(admin, request(Method::POST, "/v1/drain", &headers, "")).await.unwrap();
        assert_eq!((answer.status, answer.json()["status"].clone()), (403, 403.into()), "{headers:?}");
    }
    assert_eq!(client::get(admin, "/v1/drain").await.unwrap().status, 405);
    assert!(lb.ready().await);
    for _ in 0..2 {
        let answer = client::post(admin, "/v1/drain", "").await.unwrap();
        assert_eq!((answer.status, answer.json()["draining"].clone()), (202, true.into()));
    }
    eventually("it accepts no more", async || client::get(http, "/").await.is_err()).await;
    let answer = slow.await.unwrap().expect("it is finished");
    assert_eq!((answer.status, answer.header("connection").as_str()), (200, "close"));
    assert_eq!(lb.exited().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_counts_also_what_backends_did_that_have_gone() {
    let (registry, _backends, lb) = system(2, &[]).await;
    for _ in 0..10 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().status, 200);
    }
    let overview = async || client::get(lb.admin, "/v1/overview").await.unwrap().json();
    eventually("all are counted", async || overview().await["traffic"]["requests"] == 10).await;
    let before = overview().await;
    assert_eq!(before["traffic"]["by_class"]["2xx"], 10);
    assert_eq!(before["in_rotation"], 2);
    assert_eq!(before["endpoints_by_state"]["up"], 2);
    let durations = before["traffic"]["durations"].as_array().unwrap();
    assert!(durations.last().unwrap()["count"].as_u64().unwrap() <= 10, "{durations:?}");
    registry.deregister("b0");
    lb.rotates(&["b1"]).await;
    let after = overview().await;
    assert_eq!(after["traffic"]["requests"], 10, "{after}");
    assert_eq!(after["in_rotation"], 1);
}

/// It must work where nothing else can be reached, and nothing that a name or an error text holds may run in it.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_whole_by_itself_and_runs_only_its_own_script() {
    let (_registry, _backends, lb) = system(1, &[]).await;
    let page = client::get(lb.admin, "/").await.unwrap();
    assert_eq!((page.status, page.header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'nonce-"), "{policy}");
    assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    let text = page.text();
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "one style, one script");
    assert!(!text.contains("NONCE") && !text.contains("innerHTML"));
    for elsewhere in ["src=\"", "@import", "url(", "href=\"http", "style=\"", "onclick="] {
        assert!(!text.contains(elsewhere), "{elsewhere}");
    }
    let again = client::get(lb.admin, "/").await.unwrap();
    assert_ne!(again.header("content-security-policy"), policy, "a nonce is used once");
}

/// An orchestrator's hook asks by the API, and the signal follows at once: what is in flight is finished all the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_signal_after_a_drain_by_the_api_cuts_nothing_and_the_next_does() {
    let (_registry, _backends, mut lb) = system(1, &[]).await;
    let endless = tokio::spawn(client::get(lb.http, "/sse"));
    let slow = tokio::spawn(client::get(lb.http, "/slow?ms=700"));
    eventually("both are in flight", async || lb.endpoint("b0", "in_flight").await == 2).await;
    assert_eq!(client::post(lb.admin, "/v1/drain", "").await.unwrap().status, 202);
    lb.signal(Signal::SIGTERM);
    eventually("it is heard", async || lb.log().contains("SIGTERM")).await;
    assert_eq!(slow.await.unwrap().expect("it is finished").status, 200);
    lb.signal(Signal::SIGTERM);
    assert_eq!(lb.exited().await.code(), Some(1));
    assert!(endless.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_who_gets_a_request_and_why_the_others_do_not_and_sends_nothing() {
    let (registry, backends, lb) = system(2, &["--strategy", "least_connections"]).await;
    registry.put("drained", "http://127.0.0.1:1", "DRAINING");
    eventually("it is known", async || lb.endpoint("drained", "state").await == "draining").await;
    let ask = async |query: &str| client::get(lb.admin, &format!("/v1/explain{query}")).await.unwrap();
    let verdict = |answer: &Value, id: &str| {
        let found = answer["endpoints"].as_array().unwrap().iter().find(|e| e["id"] == id).cloned().unwrap();
        (found["verdict"].as_str().unwrap().to_owned(), found["why"].as_str().unwrap().to_owned())
    };
    // One of them is busy, so the other one is picked.
    let busy = tokio::spawn(client::get(lb.http, "/sse"));
    let in_flight = async |id: &str| lb.endpoint(id, "in_flight").await == 1;
    eventually("one is busy", async || in_flight("b0").await || in_flight("b1").await).await;
    let (idle, other) = if in_flight("b0").await { ("b1", "b0") } else { ("b0", "b1") };
    let sent = backends[0].requests() + backends[1].requests();
    let answer = ask("?host=shop.example&path=/cart%3Fx%3D1&header=accept:*/*").await.json();
    assert_eq!((&answer["outcome"], &answer["picked"]), (&"forwarded".into(), &idle.into()), "{answer}");
    assert_eq!(answer["route"]["name"], "/");
    assert_eq!(answer["route"]["strategy"], "least_connections");
    assert_eq!(verdict(&answer, idle), ("picked".into(), answer["why"].as_str().unwrap().into()));
    assert_eq!(verdict(&answer, other).0, "candidate");
    assert_eq!(
        verdict(&answer, "drained"),
        ("left_out".into(), "it is draining: its owner drains it".into())
    );
    // After an attempt failed.
    let answer = ask(&format!("?tried={idle}")).await.json();
    assert_eq!(answer["picked"], other);
    assert_eq!(verdict(&answer, idle), ("left_out".into(), "it was tried already".into()));
    let answer = ask("?tried=b0&tried=b1").await.json();
    assert_eq!((&answer["outcome"], &answer["picked"]), (&"nobody_there".into(), &Value::Null), "{answer}");
    // What is read as strictly as a client's.
    for (query, outcome) in [
        ("?method=CONNECT&path=/a", "refused"),
        ("?path=/metrics", "answered_here"),
        ("?host=a%20b", "refused"),
    ] {
        assert_eq!(ask(query).await.json()["outcome"], outcome, "{query}");
    }
    for (query, word) in
        [("?hots=a", "known are"), ("?header=a", "colon"), ("?path=a", "slash"), ("?path=/%0d", "control")]
    {
        let answer = ask(query).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(word), "{query}: {}", answer.text());
    }
    assert_eq!(backends[0].requests() + backends[1].requests(), sent, "nothing was sent");
    busy.abort();
}

const ROUTES: &str = "\
routes:
  - { name: cart, match: { host: shop.example, path: /cart }, service: web }
  - { name: cart for partners, match: { host: shop.example, path: /cart, headers: { x-partner: acme } }, service: web }
  - { name: reports, match: { path: /reports, method: POST }, service: reports }
  - { name: old, match: { host: '*.old.example' }, redirect: { host: shop.example } }
  - { name: rest, service: '*' }
";

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_which_route_takes_a_request_and_why_the_others_do_not() {
    let (_registry, _backends, lb) = system_with(1, ROUTES).await;
    let ask =
        async |query: &str| client::get(lb.admin, &format!("/v1/explain?{query}")).await.unwrap().json();
    let why = |answer: &Value, name: &str| {
        let all = answer["routes_passed_over"].as_array().unwrap();
        let found = all.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("{name} in {answer}"));
        found["why"].as_str().unwrap().to_owned()
    };
    let answer = ask("host=shop.example&path=/cart/7").await;
    assert_eq!((&answer["route"]["name"], &answer["picked"]), (&"cart".into(), &"b0".into()), "{answer}");
    assert_eq!(why(&answer, "cart for partners"), "it wants another header x-partner");
    assert_eq!(why(&answer, "reports"), "it is for paths from /reports/ on");
    assert_eq!(why(&answer, "old"), "it is for the host *.old.example");
    assert!(why(&answer, "rest").contains("cart is more specific"), "{answer}");
    let answer = ask("host=shop.example&path=/cart&header=x-partner:acme").await;
    assert_eq!(answer["route"]["name"], "cart for partners");
    let answer = ask("host=a.old.example&path=/").await;
    assert_eq!(
        (&answer["outcome"], &answer["route"]["name"]),
        (&"answered_here".into(), &"old".into()),
        "{answer}"
    );
    let answer = ask("method=POST&path=/reports").await;
    assert_eq!((&answer["outcome"], &answer["route"]["name"]), (&"nobody_there".into(), &"reports".into()));
    assert_eq!(answer["endpoints"][0]["why"], "the request goes to instances of reports");
    assert_eq!(why(&ask("path=/reports").await, "reports"), "it is for POST");
    let listed = client::get(lb.admin, "/v1/routes").await.unwrap().json();
    let names: Vec<&str> =
        listed["routes"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names[..5], ["cart", "cart for partners", "reports", "old", "rest"]);
    assert_eq!(
        (&listed["routes"][0]["endpoints"], &listed["routes"][2]["endpoints"]),
        (&1.into(), &0.into())
    );
}
