use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// A request of these lines.
fn request(start: &str, lines: &str) -> Request {
    let lines: Vec<&str> = lines.trim().lines().map(str::trim).collect();
    let head = format!("{start}\r\n{}\r\n\r\n", lines.join("\r\n"));
    let mut request = Request::default();
    request.parse(head.as_bytes()).expect("a good head");
    request
}

fn response(lines: &str) -> Response {
    let lines: Vec<&str> = lines.trim().lines().map(str::trim).collect();
    let mut response = Response::default();
    let head = format!("{}\r\n\r\n", lines.join("\r\n"));
    response.parse(head.as_bytes(), &http::Method::GET).expect("a good head");
    response
}

fn text(bytes: Vec<u8>) -> String {
    let text = String::from_utf8(bytes).expect("text").replace("\r\n", "\n");
    text.trim_end().to_owned()
}

fn upstream_of(start: &str, lines: &str) -> String {
    let request = request(start, lines);
    let id = request_id(&request.fields).unwrap_or("fresh").to_owned();
    let arrival = Arrival {
        client: "10.0.0.9",
        scheme: "http",
        target: request.target(),
        told_host: None,
        edits: &Edits::NONE,
        base_path: "/api",
        host: "b:80",
        id: &id,
        trail: None,
    };
    let mut out = Vec::new();
    to_upstream(&request, &arrival, &mut out);
    text(out)
}

fn upstream(lines: &str, want: Expect) {
    want.assert_eq(&upstream_of("GET /x?q HTTP/1.1", lines));
}

fn downstream(lines: &str, want: Expect) {
    let response = response(lines);
    let framing = response.framing.expect("it has been read");
    let (session, upgrade) = (None, None);
    let to = Return {
        is_1_1: true,
        framing,
        keep_alive: true,
        session,
        upgrade,
        edits: &Edits::NONE,
        date: "now",
    };
    let mut out = Vec::new();
    to_downstream(&response, &to, &mut out);
    want.assert_eq(&text(out));
}

#[test]
fn a_plain_request_is_told_where_it_came_from() {
    upstream(
        "Host: shop.example
         Accept: */*",
        expect![[r#"
            GET /api/x?q HTTP/1.1
            host: shop.example
            Accept: */*
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: shop.example
            x-forwarded-proto: http
            x-request-id: fresh"#]],
    );
}

#[test]
fn the_client_is_appended_once_to_a_list_of_several_lines() {
    upstream(
        "Host: a
         X-Forwarded-For: 1.1.1.1, 2.2.2.2
         X-Forwarded-For: 3.3.3.3
         X-Forwarded-Proto: https
         X-Request-Id: from-the-edge",
        expect![[r#"
            GET /api/x?q HTTP/1.1
            host: a
            X-Forwarded-Proto: https
            x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9
            x-forwarded-host: a
            x-request-id: from-the-edge"#]],
    );
}

#[test]
fn hop_by_hop_fields_stay_behind_ours_do_not() {
    upstream(
        "Host: a
         Connection: keep-alive, X-Mine, x-forwarded-for, host, content-length, cookie, close
         X-Mine: 1
         Cookie: a=b
         Keep-Alive: timeout=5
         TE: trailers
         Trailer: x
         Proxy-Authorization: secret
         Proxy-Connection: keep-alive
         Expect: 100-continue
         Content-Length: 005
         X-Request-Id: a",
        expect![[r#"
            GET /api/x?q HTTP/1.1
            host: a
            Cookie: a=b
            Trailer: x
            content-length: 5
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: http
            x-request-id: a"#]],
    );
}

#[test]
fn chunks_are_announced_again() {
    let text = upstream_of("GET / HTTP/1.1", "Host: a\nTransfer-Encoding: Chunked");
    assert!(text.contains("\ntransfer-encoding: chunked\n"), "{text}");
}

#[test]
fn a_web_socket_passes_and_h2c_does_not() {
    upstream(
        "Host: a
         Connection: Upgrade
         Upgrade: websocket
         Sec-WebSocket-Version: 13
         X-Request-Id: a",
        expect![[r#"
            GET /api/x?q HTTP/1.1
            host: a
            Sec-WebSocket-Version: 13
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: http
            x-request-id: a
            connection: upgrade
            upgrade: websocket"#]],
    );
    upstream(
        "Host: a
         Connection: Upgrade, HTTP2-Settings
         Upgrade: h2c
         HTTP2-Settings: AAMAAABk
         X-Request-Id: a",
        expect![[r#"
            GET /api/x?q HTTP/1.1
            host: a
            x-forwarded-for: 10.0.0.9
            x-forwarded-host: a
            x-forwarded-proto: http
            x-request-id: a"#]],
    );
}

#[test]
fn targets_get_the_base_path_and_keep_the_query() {
    let target = |start: &str| {
        let text = upstream_of(start, "Host: a");
        text.lines().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(target("GET / HTTP/1.1"), "GET /api/ HTTP/1.1 host: a");
    assert_eq!(target("GET http://right:81/a?b=c HTTP/1.1"), "GET /api/a?b=c HTTP/1.1 host: right:81");
    assert_eq!(target("GET http://right?b=c HTTP/1.1"), "GET /api/?b=c HTTP/1.1 host: right");
    assert_eq!(target("OPTIONS * HTTP/1.1"), "OPTIONS * HTTP/1.1 host: a");
    assert_eq!(target("GET //double//slash/../x HTTP/1.1"), "GET /api//double//slash/../x HTTP/1.1 host: a");
}

#[test]
fn who_names_no_host_gets_the_endpoints() {
    let text = upstream_of("GET / HTTP/1.0", "Accept: */*");
    assert!(text.contains("HTTP/1.1\nhost: b:80\n") && !text.contains("x-forwarded-host"), "{text}");
}

#[test]
fn request_ids_that_cannot_stand_in_a_log_are_replaced() {
    let id = |lines: &str| request_id(&request("GET / HTTP/1.1", lines).fields).map(str::to_owned);
    assert_eq!(id("Host: a\nX-Request-Id: a-1"), Some("a-1".into()));
    assert_eq!(id("Host: a\nX-Request-Id: a b"), None);
    assert_eq!(id("Host: a\nX-Request-Id:"), None);
    assert_eq!(id("Host: a\nX-Request-Id: a\nX-Request-Id: b"), None);
    assert_eq!(id(&format!("Host: a\nX-Request-Id: {}", "x".repeat(129))), None);
}

#[test]
fn a_response_keeps_what_is_its_own() {
    downstream(
        "HTTP/1.1 201 Made It
         Content-Length: 2
         Connection: keep-alive, X-Secret
         X-Secret: 1
         Keep-Alive: timeout=5
         Set-Cookie: a=b
         Server: x",
        expect![[r#"
            HTTP/1.1 201 Made It
            Content-Length: 2
            Set-Cookie: a=b
            Server: x
            date: now"#]],
    );
    downstream(
        "HTTP/1.1 204 No Content
         Content-Length: 2
         Date: then",
        expect![[r#"
            HTTP/1.1 204 No Content
            Date: then"#]],
    );
    downstream(
        "HTTP/1.1 200 OK
         Transfer-Encoding: chunked
         Trailer: x-sum",
        expect![[r#"
            HTTP/1.1 200 OK
            Trailer: x-sum
            date: now
            transfer-encoding: chunked"#]],
    );
}

#[test]
fn each_client_is_told_what_becomes_of_its_connection() {
    let told = |is_1_1, keep_alive| {
        let response = response("HTTP/1.1 200 OK\nContent-Length: 0\nDate: then");
        let framing = Framing::Length(0);
        let to = Return {
            is_1_1,
            framing,
            keep_alive,
            session: None,
            upgrade: None,
            edits: &Edits::NONE,
            date: "now",
        };
        let mut out = Vec::new();
        to_downstream(&response, &to, &mut out);
        let text = text(out);
        (text[..8].to_owned(), text.lines().find_map(|l| l.strip_prefix("connection: ")).map(str::to_owned))
    };
    assert_eq!(told(true, true), ("HTTP/1.1".into(), None));
    assert_eq!(told(true, false), ("HTTP/1.1".into(), Some("close".into())));
    assert_eq!(told(false, true), ("HTTP/1.0".into(), Some("keep-alive".into())));
    assert_eq!(told(false, false), ("HTTP/1.0".into(), Some("close".into())));
}

#[test]
fn event_streams_are_known_by_their_type() {
    let events = |line: &str| is_events(&response(&format!("HTTP/1.1 200 OK\n{line}")).fields);
    assert!(events("Content-Type: text/event-stream"));
    assert!(events("Content-Type: Text/Event-Stream ; charset=utf-8"));
    assert!(!events("Content-Type: text/event-streams") && !events("Accept: text/event-stream"));
}

#[test]
fn sessions_are_found_among_cookies() {
    let session = |lines: &str| {
        cookie(&request("GET / HTTP/1.1", &format!("Host: a\n{lines}")).fields, "SESSIONID")
            .map(str::to_owned)
    };
    assert_eq!(session("Cookie: SESSIONID=abc"), Some("abc".into()));
    assert_eq!(session("Cookie: a=b; SESSIONID=x=y; c=d"), Some("x=y".into()));
    assert_eq!(session("Cookie: a=b\nCookie: SESSIONID=q"), Some("q".into()));
    assert_eq!(session("Cookie: MYSESSIONID=abc; sessionid=abc"), None);
    assert_eq!(session("Cookie: SESSIONID=; x"), None);
    assert_eq!(session("Accept: */*"), None);
}

#[test]
fn an_application_keeps_its_own_session_cookie() {
    let cookies = |line: &str| {
        let response = response(&format!("HTTP/1.1 200 OK\nContent-Length: 0\n{line}"));
        let framing = Framing::Length(0);
        let session = Some("SESSIONID=ours");
        let to = Return {
            is_1_1: true,
            framing,
            keep_alive: true,
            session,
            upgrade: None,
            edits: &Edits::NONE,
            date: "now",
        };
        let mut out = Vec::new();
        to_downstream(&response, &to, &mut out);
        let text = text(out).to_ascii_lowercase();
        text.lines().filter(|l| l.starts_with("set-cookie")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        cookies("Set-Cookie: SESSIONID=theirs; Path=/app"),
        ["set-cookie: sessionid=theirs; path=/app"]
    );
    assert_eq!(
        cookies("Set-Cookie: OTHER=1"),
        ["set-cookie: other=1", "set-cookie: sessionid=ours; path=/; max-age=86400; httponly; samesite=lax"]
    );
}

#[test]
fn own_answers_are_whole() {
    let answer = |status: http::StatusCode, head_only| {
        let (is_1_1, keep_alive) = (true, true);
        let to = Return {
            is_1_1,
            framing: Framing::Empty,
            keep_alive,
            session: None,
            upgrade: None,
            edits: &Edits::NONE,
            date: "now",
        };
        let mut out = Vec::new();
        own(
            &Own { status, kind: PLAIN, text: b"text", id: Some("a"), more: b"x-more: 1\r\n" },
            &to,
            head_only,
            &mut out,
        );
        text(out)
    };
    expect![[r#"
        HTTP/1.1 503 Service Unavailable
        content-type: text/plain; charset=utf-8
        content-length: 4
        date: now
        retry-after: 1
        x-request-id: a
        x-more: 1

        text"#]]
    .assert_eq(&answer(http::StatusCode::SERVICE_UNAVAILABLE, false));
    assert!(!answer(http::StatusCode::OK, true).ends_with("text"));
}

proptest! {
    #[test]
    fn whatever_connection_names_nothing_of_ours_is_lost(
        nominated in prop::collection::vec("[a-zA-Z-]{1,12}|x-forwarded-for|host|X-Request-Id|transfer-encoding|,", 0..6),
        mine in "[a-z]{1,8}",
    ) {
        let lines = format!(
            "Host: a\nConnection: {}\nX-Forwarded-For: {mine}\nTransfer-Encoding: chunked",
            nominated.join(", ")
        );
        let text = upstream_of("POST / HTTP/1.1", &lines);
        let list = format!("\nx-forwarded-for: {mine}, 10.0.0.9\n");
        for kept in [&list, "\nhost: a\n", "\nx-request-id: fresh", "\ntransfer-encoding: chunked\n"] {
            prop_assert!(text.contains(kept), "{}", text);
        }
        prop_assert!(!text.contains("onnection:"), "{}", text);
    }

    /// What goes to an endpoint is one request to the strictest reader there is, and the same one.
    #[test]
    fn what_is_sent_is_read_as_it_was_meant(
        lines in prop::collection::vec("[A-Za-z-]{1,10}: [ -~]{0,12}", 0..6),
        length in prop::option::of(0u64..1000),
    ) {
        let framed = length.map_or(String::new(), |n| format!("\nContent-Length: {n}"));
        let head = format!("POST /p HTTP/1.1\nHost: a{framed}\n{}", lines.join("\n"));
        let head = format!("{}\r\n\r\n", head.trim_end().replace('\n', "\r\n"));
        let mut request = Request::default();
        if request.parse(head.as_bytes()).is_ok() {
            let arrival = Arrival {
                client: "1.1.1.1",
                scheme: "http",
        target: request.target(),
                told_host: None,
                edits: &Edits::NONE,
                base_path: "",
                host: "b",
                id: "id",
                trail: None,
            };
            let mut out = Vec::new();
            to_upstream(&request, &arrival, &mut out);
            let mut again = Request::default();
            prop_assert_eq!(again.parse(&out), Ok(()));
            prop_assert_eq!(
                (again.target(), again.host(), again.framing, &again.method),
                (request.target(), request.host(), request.framing, &request.method)
            );
        }
    }
}
