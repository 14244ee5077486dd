use tokio::io::AsyncWriteExt;

use http::StatusCode;

use super::api::text;
use super::*;

/// The permit of its connection must come back.
#[tokio::test]
async fn a_peer_that_asks_and_never_reads_is_cut_off() {
    let (mut peer, ours) = tokio::io::duplex(256);
    let service = service_fn(|_| async { Ok::<_, Infallible>(text(StatusCode::OK, "x".repeat(4096))) });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(ours), service);
    let asking = async { peer.write_all(&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(8)).await };
    let brief = Duration::from_millis(50);
    let serving =
        async { tokio::time::timeout(Duration::from_secs(10), bounded(connection, brief, brief)).await };
    let (_, served) = tokio::join!(asking, serving);
    assert!(served.expect("it ends").is_ok());
}

/// What is served and what the document tells of are the same.
#[test]
fn every_operation_is_documented_and_nothing_else() {
    let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut documented: Vec<(String, String)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().expect("methods").keys().map(|m| (path.clone(), m.to_uppercase()))
        })
        .collect();
    let mut served: Vec<(String, String)> =
        api::OPERATIONS.iter().map(|o| (o.path.to_owned(), o.method.to_string())).collect();
    documented.sort();
    served.sort();
    assert_eq!(documented, served);
}

#[test]
fn a_page_of_another_origin_changes_nothing() {
    let check = |headers: &[(&'static str, &'static str)]| {
        let mut map = http::HeaderMap::new();
        headers.iter().for_each(|(name, value)| {
            map.insert(*name, http::HeaderValue::from_static(value));
        });
        origin::check(&map).is_ok()
    };
    let cases: &[(bool, &[(&str, &str)])] = &[
        // No browser.
        (true, &[("host", "10.0.0.1:8060")]),
        (true, &[("host", "lb-1.internal:8060")]),
        (true, &[]),
        // Our own page.
        (true, &[("host", "127.0.0.1:8060"), ("origin", "http://127.0.0.1:8060")]),
        (true, &[("host", "[::1]:8060"), ("origin", "http://[::1]:8060"), ("sec-fetch-site", "same-origin")]),
        (
            true,
            &[("host", "localhost:8060"), ("origin", "http://localhost:8060"), ("sec-fetch-site", "none")],
        ),
        // Somebody else's.
        (false, &[("host", "127.0.0.1:8060"), ("origin", "http://evil.example")]),
        (false, &[("host", "127.0.0.1:8060"), ("origin", "http://127.0.0.1:9999")]),
        (false, &[("host", "127.0.0.1:8060"), ("origin", "https://127.0.0.1:8060")]),
        (false, &[("host", "127.0.0.1:8060"), ("origin", "null")]),
        (false, &[("host", "127.0.0.1:8060"), ("sec-fetch-site", "cross-site")]),
        (false, &[("host", "127.0.0.1:8060"), ("sec-fetch-site", "same-site")]),
        // Somebody else's, under a name that was made to point here.
        (false, &[("host", "evil.example:8060"), ("origin", "http://evil.example:8060")]),
        (
            false,
            &[
                ("host", "localhost.evil.example"),
                ("origin", "http://localhost.evil.example"),
                ("sec-fetch-site", "same-origin"),
            ],
        ),
        (false, &[("origin", "http://")]),
    ];
    for (allowed, headers) in cases {
        assert_eq!(check(headers), *allowed, "{headers:?}");
    }
}
