//! Messages and what they come to, from RFC 9110 and RFC 9112 and from what smuggled requests were made of.

use super::*;

/// Each line: what comes, and what it comes to.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    let wrong: Vec<String> = cases
        .iter()
        .map(|&(bytes, want)| (bytes, want, told(bytes.as_bytes())))
        .filter(|(_, want, got)| want != got)
        .map(|(bytes, want, got)| format!("{bytes:?}\n   want {want}\n    got {got}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A request with one more line.
fn with(line: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n")
}

#[track_caller]
fn check_lines(cases: &[(&str, &str)]) {
    let whole: Vec<(String, &str)> = cases.iter().map(|&(line, want)| (with(line), want)).collect();
    check(&whole.iter().map(|(bytes, want)| (bytes.as_str(), *want)).collect::<Vec<_>>());
}

#[test]
fn targets() {
    check(&[
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET / @a """#),
        ("GET /a%20b?q=%2F&q HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET /a%20b?q=%2F&q @a """#),
        ("GET /a|b{c}\"^`\\ HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET /a|b{c}"^`\ @a """#),
        ("GET //a/../b HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET //a/../b @a """#),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", r#"get / @a """#),
        ("BREW-POT /x HTTP/1.1\r\nHost: a\r\n\r\n", r#"BREW-POT /x @a """#),
        ("GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET /x?y @b """#),
        ("GET HTTP://b:81 HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET / @b:81 """#),
        ("GET http://b?q HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET /?q @b """#),
        ("GET https://[::1]:8/x HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET /x @[::1]:8 """#),
        ("GET http://b/ HTTP/1.1\r\n\r\n", "400 missing Host header"),
        ("GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET ftp://b/x HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid start line"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", r#"OPTIONS * @a """#),
        ("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", r#"OPTIONS * @b """#),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid request target"),
        ("CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", r#"CONNECT b:443 @b:443 """#),
    ]);
}

#[test]
fn start_lines() {
    check(&[
        ("", ""),
        ("GET / HT", "…"),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET / @a """#),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", r#"GET / @a """#),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "400 a line that ends without carriage return and line feed"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid start line"),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", "505 unsupported HTTP version"),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "400 invalid start line"),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid start line"),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid start line"),
        ("GET /\r\n\r\n", "400 invalid start line"),
        ("GET\r\n\r\n", "400 invalid start line"),
        ("GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", "400 invalid start line"),
        ("hello\r\n\r\n", "400 invalid start line"),
        ("\x16\x03\x01\x02", "400 invalid start line"),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", "505 unsupported HTTP version"),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505 unsupported HTTP version"),
        ("GET / HTTP/01.1\r\nHost: a\r\n\r\n", "505 unsupported HTTP version"),
        ("GET / HTTP/1.1.\r\nHost: a\r\n\r\n", "400 invalid start line"),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", "505 unsupported HTTP version"),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", "400 invalid start line"),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", "400 a line that ends without carriage return and line feed"),
    ]);
}

#[test]
fn hosts() {
    check(&[
        ("GET / HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n", r#"GET / @shop.example:8080 """#),
        ("GET / HTTP/1.1\r\nhOsT:\ta \t\r\n\r\n", r#"GET / @a """#),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", r#"GET / @[2001:db8::1]:80 """#),
        ("GET / HTTP/1.1\r\nHost: a:\r\n\r\n", r#"GET / @a: """#),
        ("GET / HTTP/1.1\r\n\r\n", "400 missing Host header"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400 more than one Host header"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400 more than one Host header"),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n", "400 invalid Host header"),
        ("GET / HTTP/1.0\r\n\r\n", r#"GET / @- last ""; closed"#),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "400 more than one Host header"),
    ]);
}

#[test]
fn fields() {
    check_lines(&[
        ("X: ", r#"GET / @a """#),
        ("X: a\tb", r#"GET / @a """#),
        ("X: \u{e9}", r#"GET / @a """#),
        ("X: a,,b", r#"GET / @a """#),
        ("X : a", "400 invalid header field"),
        ("X\t: a", "400 invalid header field"),
        (" X: a", "400 invalid header field"),
        ("X: a\r\n b", "400 invalid header field"),
        ("X: a\r\n\tb", "400 invalid header field"),
        ("X: a\0b", "400 invalid header field"),
        ("X: a\x01b", "400 invalid header field"),
        ("X: a\x7f", "400 invalid header field"),
        ("X: a\rb", "400 invalid header field"),
        ("X: a\r", "400 invalid header field"),
        ("X: a\nContent-Length: 5", "400 a line that ends without carriage return and line feed"),
        ("X\0: a", "400 invalid header field"),
        ("X\u{e9}: a", "400 invalid header field"),
        ("X(): a", "400 invalid header field"),
        (": a", "400 invalid header field"),
        ("X", "400 invalid header field"),
        ("Content_Length: 5", "400 invalid header field"),
        ("transfer_encoding: chunked", "400 invalid header field"),
        ("Expect: 200-ok", "417 unsupported Expect"),
    ]);
}

#[test]
fn limits() {
    let long = |n: usize| with(&format!("X: {}", "x".repeat(n)));
    let room = HEAD_BYTES_MAX - long(0).len();
    check(&[
        (&long(room), r#"GET / @a """#),
        (&long(room + 1), "431 the head is too long"),
        // Refused before its end has come.
        (&long(room + 1)[..HEAD_BYTES_MAX + 1], "431 the head is too long"),
        (&with(&vec!["X: a"; head::FIELDS_MAX - 1].join("\r\n")), r#"GET / @a """#),
        (&with(&vec!["X: a"; head::FIELDS_MAX].join("\r\n")), "431 too many header fields"),
        (&"\r\n".repeat(HEAD_BYTES_MAX), "431 the head is too long"),
    ]);
}

#[test]
fn lengths() {
    let post = |line: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\nhello");
    let cases = [
        ("Content-Length: 5", r#"POST / @a 5 "hello""#),
        ("Content-Length: 005", r#"POST / @a 5 "hello""#),
        ("Content-Length: 6", "POST / @a 6 …"),
        ("Content-Length: 0", r#"POST / @a 0 ""; …"#),
        ("X: no length", r#"POST / @a ""; …"#),
        ("Content-Length: 5\r\nContent-Length: 5", "400 invalid Content-Length"),
        ("Content-Length: 5\r\nContent-Length: 6", "400 invalid Content-Length"),
        ("Content-Length: 5, 5", "400 invalid Content-Length"),
        ("Content-Length: 5,", "400 invalid Content-Length"),
        ("Content-Length: +5", "400 invalid Content-Length"),
        ("Content-Length: -5", "400 invalid Content-Length"),
        ("Content-Length:", "400 invalid Content-Length"),
        ("Content-Length: 0x5", "400 invalid Content-Length"),
        ("Content-Length: 5 5", "400 invalid Content-Length"),
        ("Content-Length: 5.0", "400 invalid Content-Length"),
        ("Content-Length: 5e0", "400 invalid Content-Length"),
        ("Content-Length: \u{665}", "400 invalid Content-Length"),
        ("Content-Length: 18446744073709551621", "400 invalid Content-Length"),
        ("Content-Length: 999999999999999999", "POST / @a 999999999999999999 …"),
        ("Content-Length : 5", "400 invalid header field"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", "400 both Content-Length and Transfer-Encoding"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", "400 both Content-Length and Transfer-Encoding"),
        ("Content-Length: 5\r\nTransfer-Encoding: identity", "400 unsupported Transfer-Encoding"),
    ];
    let whole: Vec<(String, &str)> = cases.iter().map(|&(line, want)| (post(line), want)).collect();
    check(&whole.iter().map(|(bytes, want)| (bytes.as_str(), *want)).collect::<Vec<_>>());
}

#[test]
fn codings() {
    let post = |line: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let whole = r#"POST / @a chunked "hello""#;
    let refused = "400 unsupported Transfer-Encoding";
    let cases = [
        ("Transfer-Encoding: chunked", whole),
        ("Transfer-Encoding: CHUNKED", whole),
        ("tRANSFER-eNCODING:chunked", whole),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", refused),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", refused),
        ("Transfer-Encoding: chunked, chunked", refused),
        ("Transfer-Encoding: gzip, chunked", refused),
        ("Transfer-Encoding: chunked, gzip", refused),
        ("Transfer-Encoding: gzip", refused),
        ("Transfer-Encoding: identity", refused),
        ("Transfer-Encoding: xchunked", refused),
        ("Transfer-Encoding: chunked;q=1", refused),
        ("Transfer-Encoding: \"chunked\"", refused),
        ("Transfer-Encoding: chunked,", refused),
        ("Transfer-Encoding:", refused),
        ("Transfer-Encoding: \u{b}chunked", "400 invalid header field"),
        ("Transfer-Encoding : chunked", "400 invalid header field"),
        ("Transfer-Encoding\r\n : chunked", "400 invalid header field"),
        ("X: y\r\n Transfer-Encoding: chunked", "400 invalid header field"),
    ];
    let whole: Vec<(String, &str)> = cases.iter().map(|&(line, want)| (post(line), want)).collect();
    check(&whole.iter().map(|(bytes, want)| (bytes.as_str(), *want)).collect::<Vec<_>>());
    check(&[(
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 Transfer-Encoding in HTTP/1.0",
    )]);
}

#[test]
fn chunks() {
    let of = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let (size, ext) = ("invalid chunk size", "invalid chunk extension");
    let (end, trailer) = ("invalid chunk end", "invalid trailer");
    let hello = |why: &str| format!("POST / @a chunked 400 {why}");
    let cases = [
        ("0\r\n\r\n", r#"POST / @a chunked """#.to_owned()),
        ("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", r#"POST / @a chunked "hello world""#.into()),
        ("00005\r\nhello\r\n000\r\n\r\n", r#"POST / @a chunked "hello""#.into()),
        (
            "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
            r#"POST / @a chunked "01234567890123456789""#.into(),
        ),
        ("5;a\r\nhello\r\n0;a=b;c=\"d;\\\"\\r\"\r\n\r\n", r#"POST / @a chunked "hello""#.into()),
        ("5\r\nhello\r\n0\r\n", "POST / @a chunked …".into()),
        ("5\r\nhel", "POST / @a chunked …".into()),
        ("\r\n", hello(size)),
        (";a\r\n", hello(size)),
        ("5 \r\nhello\r\n0\r\n\r\n", hello(size)),
        (" 5\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("+5\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("-5\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("0x5\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("5_0\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("g\r\n", hello(size)),
        ("5\nhello\r\n0\r\n\r\n", hello(size)),
        ("5\rXhello\r\n0\r\n\r\n", hello(size)),
        ("1000000000000000\r\n", hello(size)),
        ("ffffffffffffffffff\r\n", hello(size)),
        ("0000000000000005\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("5;\r\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5 ;a\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("5; a\r\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;a=\r\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;a\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;a=\"b\r\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;a=\"b\"c\r\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;a\0\r\nhello\r\n0\r\n\r\n", hello(ext)),
        ("5;a\r\r\nhello\r\n0\r\n\r\n", hello(size)),
        ("5\r\nhelloX\r\n0\r\n\r\n", hello(end)),
        ("5\r\nhello\n0\r\n\r\n", hello(end)),
        ("5\r\nhello0\r\n\r\n", hello(end)),
        ("5\r\nhell\r\n0\r\n\r\n", hello(end)),
        ("5\r\nhello\r0\r\n\r\n", hello(end)),
        ("0\r\nX: y\r\n\r\n", r#"POST / @a chunked "X: y\r\n" then """#.into()),
        ("0\r\nX: y\r\nZ: \r\n\r\n", r#"POST / @a chunked "X: y\r\nZ: \r\n" then """#.into()),
        ("0\r\nX: y\n\r\n", hello(trailer)),
        ("0\r\n\n", hello(trailer)),
        ("0\n\r\n", hello(size)),
        ("0\r\nX : y\r\n\r\n", hello(trailer)),
        ("0\r\nX: y\r\n z\r\n\r\n", hello(trailer)),
        ("0\r\nGET /canary HTTP/1.1\r\n\r\n", hello(trailer)),
        ("0\r\nContent-Length: 5\r\n\r\n", hello(trailer)),
        ("0\r\nTransfer-Encoding: chunked\r\n\r\n", hello(trailer)),
        ("0\r\nHost: b\r\n\r\n", hello(trailer)),
        ("0\r\nAuthorization: b\r\n\r\n", hello(trailer)),
        ("0\r\nConnection: close\r\n\r\n", hello(trailer)),
        ("0\r\nX-Forwarded-For: b\r\n\r\n", hello(trailer)),
        ("0\r\ncontent_length: 5\r\n\r\n", hello(trailer)),
    ];
    let whole: Vec<(String, String)> = cases.iter().map(|(body, want)| (of(body), want.clone())).collect();
    check(&whole.iter().map(|(bytes, want)| (bytes.as_str(), want.as_str())).collect::<Vec<_>>());
    let long = of(&format!("0\r\nX: {}", "x".repeat(9000)));
    check(&[(&long, &hello(trailer))]);
}

#[test]
fn connections() {
    check(&[
        (
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            r#"GET /1 @a ""; GET /2 @a """#,
        ),
        (
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            r#"POST /1 @a 2 "hi"; GET /2 @a """#,
        ),
        (
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            r#"POST /1 @a 2 "hi"; GET /2 @a """#,
        ),
        (
            "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            r#"GET /1 @a last ""; closed"#,
        ),
        (
            "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            r#"GET /1 @a last ""; closed"#,
        ),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", r#"GET / @a """#),
        ("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", r#"GET / @a last ""; closed"#),
        (
            "GET /1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            "400 more than one Host header",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
            "POST / @a 2 waits …",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", r#"GET / @a """#),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
            "POST / @a 2 last …",
        ),
    ]);
}

#[test]
fn upgrades() {
    let upgrade = |line: &str| with(&format!("Connection: Upgrade\r\n{line}"));
    check(&[
        (&upgrade("Upgrade: websocket"), r#"GET / @a upgrade=websocket """#),
        (&upgrade("Upgrade: WebSocket"), r#"GET / @a upgrade=WebSocket """#),
        (&upgrade("Upgrade: h2c"), r#"GET / @a """#),
        (&upgrade("Upgrade: H2C"), r#"GET / @a """#),
        (&upgrade("Upgrade: h2"), r#"GET / @a """#),
        (&upgrade("Upgrade: websocket, h2c"), r#"GET / @a """#),
        (&upgrade("Upgrade: websocket\r\nUpgrade: h2c"), r#"GET / @a """#),
        (&upgrade("Upgrade:"), r#"GET / @a """#),
        (&with("Upgrade: websocket"), r#"GET / @a """#),
        (&upgrade("Upgrade: websocket\r\nContent-Length: 0"), r#"GET / @a 0 """#),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
            r#"POST / @a 0 """#,
        ),
        (
            "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            r#"GET / @a last ""; closed"#,
        ),
    ]);
}

#[test]
fn responses() {
    let cases = [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", r#"200 "OK" Length(2) keep"#),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!",
            r#"200 "OK" Length(2) keep; 1 bytes too many"#,
        ),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", r#"200 "OK" Length(2) keep; …"#),
        ("GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", r#"200 "" Length(0) keep"#),
        ("GET", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", r#"200 "" Length(0) keep"#),
        ("GET", "HTTP/1.1 200 OK\r\n\r\nany", r#"200 "OK" UntilClose keep"#),
        ("GET", "HTTP/1.0 200 OK\r\n\r\nany", r#"200 "OK" UntilClose last"#),
        (
            "GET",
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            r#"200 "OK" Length(0) keep"#,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            r#"200 "OK" Chunked keep"#,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhi\r\n",
            r#"200 "OK" Chunked keep; invalid chunk size"#,
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", r#"200 "OK" Empty keep"#),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", r#"200 "OK" Empty keep"#),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi",
            r#"204 "No Content" Empty keep; 2 bytes too many"#,
        ),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", r#"304 "Not Modified" Empty keep"#),
        ("GET", "HTTP/1.1 100 Continue\r\n\r\n", r#"100 "Continue" Empty keep"#),
        (
            "GET",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
            r#"101 "Switching Protocols" Empty keep"#,
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            "both Content-Length and Transfer-Encoding",
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
            "invalid Content-Length",
        ),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", "invalid Content-Length"),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "unsupported Transfer-Encoding",
        ),
        ("GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding in HTTP/1.0"),
        (
            "GET",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
            "a line that ends without carriage return and line feed",
        ),
        ("GET", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "invalid header field"),
        ("GET", "HTTP/1.1 200 OK\r\nX : a\r\n\r\n", "invalid header field"),
        ("GET", "HTTP/1.1 99 Low\r\n\r\n", "invalid start line"),
        ("GET", "HTTP/1.1 600 High\r\n\r\n", "invalid start line"),
        ("GET", "HTTP/1.1 0200 OK\r\n\r\n", "invalid start line"),
        ("GET", "HTTP/2 200 OK\r\n\r\n", "unsupported HTTP version"),
        ("GET", "SSH-2.0-OpenSSH_9.2\r\n\r\n", "unsupported HTTP version"),
        ("GET", "HTTP/1.1 200 OK\r\n", "…"),
    ];
    for (method, bytes, want) in cases {
        assert_eq!(answered(bytes.as_bytes(), method), want, "{bytes:?}");
    }
}
