//! What is pure: heads, and the count of frames.

use std::time::{Duration, Instant};

use expect_test::{Expect, expect};
use http::{HeaderMap, Request, StatusCode};

use super::frames::Frames;
use super::{grpc, heads};

fn check(request: http::request::Builder, is_over: bool, expected: Expect) {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let mut out = Vec::new();
    let text = match heads::to_http1(&parts, is_over, &mut out) {
        Ok(()) => String::from_utf8(out).unwrap().replace('\r', ""),
        Err(why) => format!("{} {why}\n", why.status()),
    };
    expected.assert_eq(&text);
}

#[test]
fn a_head_of_http_2_becomes_one_of_http_1() {
    let uri = "http://shop.example:81/a?q=1";
    check(
        Request::get(uri).header("cookie", "a=1").header("x-a", "1").header("cookie", "b=2"),
        true,
        expect![[r#"
            GET /a?q=1 HTTP/1.1
            host: shop.example:81
            x-a: 1
            cookie: a=1; b=2

        "#]],
    );
    check(
        Request::post(uri).header("host", "SHOP.example:81").header("te", "trailers"),
        false,
        expect![[r#"
            POST /a?q=1 HTTP/1.1
            host: shop.example:81
            te: trailers
            transfer-encoding: chunked

        "#]],
    );
    check(
        Request::post("/").header("host", "a").header("content-length", "3"),
        false,
        expect![[r#"
            POST / HTTP/1.1
            host: a
            content-length: 3

        "#]],
    );
    check(
        Request::connect("other:443"),
        true,
        expect![[r#"
            CONNECT other:443 HTTP/1.1
            host: other:443

        "#]],
    );
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let two = || {
        expect![[r#"
            400 Bad Request :authority and Host name different hosts
        "#]]
    };
    check(Request::get("http://a/").header("host", "b"), true, two());
    check(Request::get("http://a/").header("host", "a").header("host", "b"), true, two());
    let field = || {
        expect![[r#"
            400 Bad Request a field of a connection, which HTTP/2 does not have
        "#]]
    };
    for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"] {
        check(Request::get("http://a/").header(name, "x"), true, field());
    }
    check(
        Request::get("http://a/").header("te", "gzip"),
        true,
        expect![[r#"
            400 Bad Request unsupported TE
        "#]],
    );
}

#[test]
fn heads_and_trailers_of_http_1_become_those_of_http_2() {
    let head = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nempty: \r\n\r\n";
    let response = heads::from_http1(StatusCode::OK, head).unwrap();
    let fields: Vec<String> =
        response.headers().iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
    assert_eq!(fields, ["x-a=1", "set-cookie=a=1", "set-cookie=b=2", "empty="]);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let lines = heads::trailer(&trailers).unwrap();
    assert_eq!(lines, b"x-sum: 7\r\n");
    assert_eq!(heads::fields(&lines).unwrap(), trailers);
    trailers.insert("content-length", "7".parse().unwrap());
    assert!(heads::trailer(&trailers).is_err(), "it would frame the message anew");
}

/// A frame's head and its payload.
fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
    let len = (payload as u32).to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags, 0, 0, 0, 1];
    bytes.resize(9 + payload, 0);
    bytes
}

/// How many of `frame` a connection may send at once, up to ten thousand, however they are cut.
fn allowed(frame: &[u8], cut: usize) -> usize {
    let now = Instant::now();
    let mut frames = Frames::new(now);
    assert!(frames.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now));
    (0..10_000)
        .take_while(|_| {
            let (a, b) = frame.split_at(cut.min(frame.len()));
            frames.received(a, now) & frames.received(b, now)
        })
        .count()
}

#[test]
fn frames_that_ask_for_nothing_are_counted() {
    for cut in [0, 1, 5, 9, 10] {
        for (kind, flags, payload) in [
            (6, 0, 8),
            (4, 0, 0),
            (4, 0, 6),
            (2, 0, 5),
            (3, 0, 4),
            (8, 0, 4),
            (0, 0, 0),
            (0, 8, 200),
            (99, 0, 1),
        ] {
            assert_eq!(allowed(&frame(kind, flags, payload), cut), 2000, "{kind} {flags} {payload} {cut}");
        }
        for (kind, flags, payload) in [(0, 0, 1), (0, 1, 0), (0, 8, 300), (1, 4, 20), (9, 4, 20)] {
            assert_eq!(allowed(&frame(kind, flags, payload), cut), 10_000, "{kind} {flags} {payload} {cut}");
        }
    }
}

#[test]
fn credit_comes_with_time_and_with_what_is_sent() {
    let now = Instant::now();
    let mut frames = Frames::new(now);
    let ping = frame(6, 0, 8);
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(ping.repeat(2000));
    assert!(frames.received(&all, now));
    assert!(frames.received(&ping.repeat(200), now + Duration::from_secs(1)));
    frames.sent(64 * 100);
    assert!(frames.received(&ping.repeat(100), now + Duration::from_secs(1)));
    assert!(!frames.received(&ping, now + Duration::from_secs(1)));
}

#[test]
fn an_answer_of_ours_is_a_status_of_grpc() {
    for (status, code) in
        [(503, "14"), (502, "14"), (504, "4"), (408, "4"), (400, "13"), (431, "8"), (405, "2")]
    {
        let head = http::Response::builder()
            .status(status)
            .header("content-type", "text/plain")
            .header("content-length", "3")
            .header("x-request-id", "7");
        let head = grpc::trailers_only(head.body(()).unwrap(), "50 % of “it”\n");
        let fields = ["grpc-status", "grpc-message", "content-type", "x-request-id"];
        let got = fields.map(|name| head.headers()[name].to_str().unwrap());
        assert_eq!(got, [code, "50 %25 of %E2%80%9Cit%E2%80%9D%0A", "application/grpc", "7"]);
        assert_eq!((head.status(), head.headers().get("content-length")), (StatusCode::OK, None));
    }
}

#[test]
fn calls_of_grpc_are_told_by_their_type() {
    let is_call = |kind: &str| {
        let mut request = crate::proxy::http1::Request::default();
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\n\r\n");
        request.parse(head.as_bytes()).unwrap();
        grpc::is_call(&request.fields)
    };
    let yes = ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"];
    assert!(yes.iter().all(|kind| is_call(kind)));
    assert!(!["application/grpc-web", "application/json", "text/plain"].iter().any(|kind| is_call(kind)));
}
