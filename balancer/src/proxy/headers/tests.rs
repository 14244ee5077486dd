use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn map(lines: &str) -> HeaderMap {
    let pairs = lines.trim().lines().map(|l| l.trim().split_once(": ").expect("name: value"));
    pairs
        .map(|(n, v)| (n.parse::<HeaderName>().expect("a name"), v.parse::<HeaderValue>().expect("a value")))
        .collect()
}

fn text(headers: &HeaderMap) -> String {
    let mut lines: Vec<String> =
        headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap_or("?"))).collect();
    lines.sort();
    lines.join("\n")
}

fn upstream(lines: &str, want: Expect) {
    let mut headers = map(lines);
    let uri = Uri::from_static("/");
    let upgrade = upgrade(&Method::GET, &headers);
    let client = IpAddr::from([10, 0, 0, 9]);
    to_upstream(&mut headers, Arrival { client, upgrade, uri: &uri, fresh_id: 7 });
    want.assert_eq(&text(&headers));
}

#[test]
fn a_plain_request_is_told_where_it_came_from() {
    upstream(
        "host: shop.example
         accept: */*",
        expect![[r#"
            accept: */*
            host: shop.example
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: shop.example
            x-forwarded-proto: http
            x-request-id: 07000000-0000-4000-8000-000000000000"#]],
    );
}

#[test]
fn the_client_is_appended_once_to_a_list_of_several_lines() {
    upstream(
        "host: a
         x-forwarded-for: 1.1.1.1, 2.2.2.2
         x-forwarded-for: 3.3.3.3
         x-forwarded-proto: https
         x-request-id: from-the-edge",
        expect![[r#"
            host: a
            x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: https
            x-request-id: from-the-edge"#]],
    );
}

#[test]
fn hop_by_hop_fields_stay_behind_ours_do_not() {
    upstream(
        "host: a
         connection: keep-alive, X-Mine, x-forwarded-for, host, close
         x-mine: 1
         keep-alive: timeout=5
         te: trailers
         trailer: x
         transfer-encoding: chunked
         proxy-authorization: secret
         expect: 100-continue
         x-request-id: a",
        expect![[r#"
            host: a
            trailer: x
            transfer-encoding: chunked
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: http
            x-request-id: a"#]],
    );
}

#[test]
fn a_web_socket_passes_and_h2c_does_not() {
    upstream(
        "host: a
         connection: Upgrade
         upgrade: websocket
         sec-websocket-version: 13
         x-request-id: a",
        expect![[r#"
            connection: upgrade
            host: a
            sec-websocket-version: 13
            upgrade: websocket
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: http
            x-request-id: a"#]],
    );
    upstream(
        "host: a
         connection: Upgrade, HTTP2-Settings
         upgrade: h2c
         http2-settings: AAMAAABk
         x-request-id: a",
        expect![[r#"
            host: a
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: http
            x-request-id: a"#]],
    );
}

#[test]
fn an_upgrade_nobody_asked_for_is_none() {
    let get = |lines| upgrade(&Method::GET, &map(lines));
    assert_eq!(get("upgrade: websocket"), None);
    assert_eq!(get("connection: upgrade"), None);
    assert_eq!(get("connection: upgrade\nupgrade: websocket, h2c"), None);
    assert!(get("connection: keep-alive, Upgrade\nupgrade: websocket").is_some());
    assert_eq!(upgrade(&Method::POST, &map("connection: upgrade\nupgrade: websocket")), None);
}

#[test]
fn ambiguous_requests_are_refused() {
    let uri = Uri::from_static("/");
    let check = |version, lines| check(version, &uri, &map(lines));
    assert_eq!(check(Version::HTTP_11, "host: a:80"), Ok(()));
    assert_eq!(check(Version::HTTP_11, "host: [::1]:80\ntransfer-encoding: Chunked"), Ok(()));
    assert_eq!(check(Version::HTTP_10, "accept: */*"), Ok(()));
    assert_eq!(check(Version::HTTP_11, "accept: */*"), Err(Malformed::NoHost));
    assert_eq!(check(Version::HTTP_11, "host: a\nhost: a"), Err(Malformed::ManyHosts));
    assert_eq!(check(Version::HTTP_11, "host: a/b"), Err(Malformed::BadHost));
    assert_eq!(check(Version::HTTP_11, "host: a@b"), Err(Malformed::BadHost));
    let both = "host: a\ncontent-length: 1\ntransfer-encoding: chunked";
    assert_eq!(check(Version::HTTP_11, both), Err(Malformed::TwoFramings));
    for coding in ["gzip, chunked", "identity", "chunked, chunked", "xchunked"] {
        let lines = format!("host: a\ntransfer-encoding: {coding}");
        assert_eq!(super::check(Version::HTTP_11, &uri, &map(&lines)), Err(Malformed::BadCoding));
    }
}

#[test]
fn targets_get_the_base_path_and_keep_the_query() {
    let target = |base, uri: &str| target(base, &uri.parse().unwrap()).to_string();
    assert_eq!(target("", "/a?b=c"), "/a?b=c");
    assert_eq!(target("/api", "/a?b=c"), "/api/a?b=c");
    assert_eq!(target("/api", "/"), "/api/");
    assert_eq!(target("", "http://h:1/a?b=c"), "/a?b=c");
    assert_eq!(target("/api", "http://h:1?b=c"), "/api/?b=c");
    assert_eq!(target("/api", "*"), "*");
    assert_eq!(target("", "//double//slash/../x"), "//double//slash/../x");
}

#[test]
fn the_target_in_absolute_form_names_the_host() {
    let mut headers = map("host: wrong");
    let uri: Uri = "http://user@right:81/x".parse().unwrap();
    let client = IpAddr::from([1, 1, 1, 1]);
    to_upstream(&mut headers, Arrival { client, upgrade: None, uri: &uri, fresh_id: 0 });
    assert_eq!(headers[header::HOST], "right:81");
}

#[test]
fn event_streams_are_known_by_their_type() {
    let events = |lines| is_events(&map(lines));
    assert!(events("content-type: text/event-stream"));
    assert!(events("content-type: Text/Event-Stream ; charset=utf-8"));
    assert!(!events("content-type: text/event-streams") && !events("accept: text/event-stream"));
}

#[test]
fn a_length_beside_chunks_is_dropped() {
    let mut headers = map("content-length: 3\ntransfer-encoding: chunked\nserver: x");
    to_downstream(&mut headers);
    assert_eq!(text(&headers), "server: x");
    let mut headers = map("content-length: 3");
    to_downstream(&mut headers);
    assert_eq!(text(&headers), "content-length: 3");
}

#[test]
fn sessions_are_found_among_cookies() {
    let session = |lines| session(&map(lines)).map(str::to_owned);
    assert_eq!(session("cookie: SESSIONID=abc"), Some("abc".into()));
    assert_eq!(session("cookie: a=b; SESSIONID=x=y; c=d"), Some("x=y".into()));
    assert_eq!(session("cookie: a=b\ncookie: SESSIONID=q"), Some("q".into()));
    assert_eq!(session("cookie: MYSESSIONID=abc; sessionid=abc"), None);
    assert_eq!(session("cookie: SESSIONID=; x"), None);
    assert_eq!(session("accept: */*"), None);
}

#[test]
fn an_application_keeps_its_own_session_cookie() {
    let mut headers = map("set-cookie: SESSIONID=theirs; Path=/app");
    set_session(&mut headers, "ours");
    assert_eq!(text(&headers), "set-cookie: SESSIONID=theirs; Path=/app");
    let mut headers = map("set-cookie: OTHER=1");
    set_session(&mut headers, "ours");
    assert_eq!(
        text(&headers),
        "set-cookie: OTHER=1\n\
         set-cookie: SESSIONID=ours; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax"
    );
}

proptest! {
    #[test]
    fn whatever_connection_names_nothing_of_ours_is_lost(
        nominated in prop::collection::vec("[a-zA-Z-]{1,12}|x-forwarded-for|host|X-Request-Id|,", 0..6),
        mine in "[a-z]{1,8}",
    ) {
        let mut headers = map("host: a");
        headers.insert(header::CONNECTION, nominated.join(", ").parse().unwrap());
        headers.insert("x-forwarded-for", mine.parse().unwrap());
        let uri = Uri::from_static("/");
        let client = IpAddr::from([10, 0, 0, 9]);
        to_upstream(&mut headers, Arrival { client, upgrade: None, uri: &uri, fresh_id: 1 });
        let list = format!("{mine}, 10.0.0.9");
        prop_assert_eq!(&headers["x-forwarded-for"], list.as_str());
        prop_assert_eq!(&headers["host"], "a");
        prop_assert!(headers.contains_key("x-request-id") && !headers.contains_key("connection"));
    }
}
