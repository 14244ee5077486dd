//! What two readers could read differently goes no further, in either direction.

use http::Method;

use crate::backend::Tape;
use crate::balancer::{Balancer, eventually, system};
use crate::client::{self, Client};
use crate::registry::Registry;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// A balancer in front of one backend that answers every head with `answer`.
async fn tape(answer: &'static [u8]) -> (Registry, Tape, Balancer) {
    let (registry, tape) = (Registry::start().await, Tape::start(answer).await);
    registry.register("tape", &tape.url());
    let lb = Balancer::start(&registry, &["--workers", "1"]).await;
    lb.rotates(&["tape"]).await;
    (registry, tape, lb)
}

/// Each is a request that hides another one for whoever reads it otherwise than we do.
#[tokio::test(flavor = "multi_thread")]
async fn smuggled_requests_reach_nobody() {
    const SMUGGLED: &str = "GET /canary HTTP/1.1\r\nHost: a\r\n\r\n";
    let (_registry, tape, lb) = tape(OK).await;
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let lines = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 90",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 90",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length:",
        "Content-Length : 5",
        "Content_Length: 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding:\u{b}chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer_Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X\0: y",
        "Host: b",
    ];
    let mut attacks: Vec<String> =
        lines.iter().map(|line| format!("POST / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n{chunked}")).collect();
    let bodies = [
        "5\nhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n-1\r\n",
    ];
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    attacks.extend(bodies.iter().map(|body| format!("{head}{body}{SMUGGLED}")));
    attacks.push(format!("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"));
    attacks.push(format!("GET / HTTP/1.1\nHost: a\n\n{SMUGGLED}"));
    attacks.push(format!("GET /x\r\n\r\n{SMUGGLED}"));
    for attack in &attacks {
        let answer = client::raw(lb.http, attack.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.matches("\r\n\r\n").count() == 1,
            "{attack:?}: {answer:?}"
        );
        assert!(!tape.text().contains("/canary"), "{attack:?} came through: {:?}", tape.text());
    }
    assert_eq!(client::get(lb.http, "/").await.unwrap().text(), "hi", "service goes on");
    let refused = format!("balancer_refused_total{{reason=\"malformed\"}} {}\n", attacks.len());
    assert!(lb.metrics().await.contains(&refused), "each is counted");
}

/// Its end never came; whoever got it next would take the next request for the rest of the body.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_turns_out_malformed_spoils_its_connection_to_the_backend() {
    let (_registry, tape, lb) = tape(b"").await;
    let first = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for n in 1..4 {
        let mut stream = tokio::net::TcpStream::connect(lb.http).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, first.as_bytes()).await.unwrap();
        eventually("the good part is there", async || tape.text().matches("5\r\nhello\r\n").count() == n)
            .await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"zz\r\nGET /canary").await.unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("invalid chunk size"), "{answer}");
        assert_eq!((tape.connections(), tape.text().contains("canary")), (n, false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_could_be_read_in_two_ways_are_not_passed_on() {
    let flawed: [(&[u8], &str); 6] = [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "both Content-Length",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", "invalid Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi", "unsupported Transfer-Encoding"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "a line that ends"),
        (b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 2\r\n\r\nhi", "invalid header field"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "unsupported HTTP version"),
    ];
    for (answer, why) in flawed {
        let (_registry, _tape, lb) = tape(answer).await;
        let got = client::post(lb.http, "/", "x").await.unwrap();
        assert_eq!(got.status, 502);
        assert!(
            got.text().starts_with(&format!("Bad gateway: backend tape sent what is not HTTP: {why}")),
            "{}",
            got.text()
        );
    }
}

/// The second would be taken for the response to the next request.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_nobody_asked_for_reaches_nobody() {
    const TWO: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let (_registry, tape, lb) = tape(TWO).await;
    for n in 1..5 {
        assert_eq!(client::get(lb.http, "/").await.unwrap().text(), "hi");
        assert_eq!(tape.connections(), n, "none is used again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_ours_and_trailers_pass() {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0002;x=y\r\nhi\r\n0;z\r\nX-Sum: theirs\r\n\r\n";
    let (_registry, tape, lb) = tape(ANSWER).await;
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
        0005;a=\"b\"\r\nhello\r\n00;c\r\nX-Sum: ours\r\n\r\n";
    let answer = client::raw(lb.http, request).await;
    assert!(answer.ends_with("\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: theirs\r\n\r\n"), "{answer:?}");
    let seen = tape.text();
    assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: ours\r\n\r\n"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_pass_and_a_body_without_a_length_gets_chunks() {
    const ANSWER: &[u8] =
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
    let (_registry, _tape, lb) = tape(ANSWER).await;
    let answer = client::raw(lb.http, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{answer}");
    // HTTP/1.0 has neither interim responses nor chunks.
    let answer = client::raw(lb.http, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(answer.contains("connection: close") && !answer.contains("chunked"), "{answer}");
}

/// A response that is not whole must not look whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_is_seen_to() {
    let (_registry, _tape, lb) =
        tape(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhi").await;
    assert!(client::get(lb.http, "/").await.is_err());
    let (_registry, _tape, lb) =
        tape(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n").await;
    assert!(client::get(lb.http, "/").await.is_err());
}

/// Whoever comes before or after on any of the connections.
#[tokio::test(flavor = "multi_thread")]
async fn every_response_is_its_own_requests() {
    let (_registry, _backends, lb) = system(3, &["--workers", "2"]).await;
    let clients = (0..16).map(|client| {
        let address = lb.http;
        tokio::spawn(async move {
            let mut connection = Client::connect(address).await.unwrap();
            for n in 0..250 {
                let id = format!("{client}-{n}");
                let (method, body) = if n % 3 == 0 { (Method::POST, "some") } else { (Method::GET, "") };
                let request = client::request(method, "/", &[("x-request-id", &id)], body);
                let answer = connection.send(request).await.unwrap();
                assert_eq!((answer.status, answer.echoed("x-request-id")), (200, id));
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// Nobody sends many, and a client that does not read them would have them pile up.
#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_without_end_are_a_backends_fault() {
    static MANY: std::sync::LazyLock<Vec<u8>> =
        std::sync::LazyLock::new(|| b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100));
    let (_registry, _tape, lb) = tape(&MANY).await;
    let answer = client::raw(lb.http, b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.matches("HTTP/1.1 103 ").count(), 16, "{answer}");
    assert!(answer.ends_with("Bad gateway: backend tape sent more than 16 interim responses"), "{answer}");
}

/// Its response waits behind what it does not read; meanwhile others are served by the same worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_gets_its_own_response_in_the_end() {
    static SLOW: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(60_000));
        [hint.repeat(15).as_bytes(), b"HTTP/1.1 200 OK\r\nX-Mine: yes\r\n", OK_REST].concat()
    });
    const OK_REST: &[u8] = b"Content-Length: 2\r\n\r\nhi";
    let (_registry, tape, lb) = tape(&SLOW).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut waiting = socket.connect(lb.http).await.unwrap();
    // More than the kernel takes for a client that does not read.
    const REQUESTS: usize = 12;
    let request = "GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n".repeat(REQUESTS - 1)
        + "GET /waiting HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut waiting, request.as_bytes()).await.unwrap();
    eventually("it has reached the backend", async || tape.text().contains("/waiting")).await;
    for _ in 0..20 {
        let other = "GET /other HTTP/1.0\r\nX-Marker: of-another\r\nCookie: of-another\r\n\r\n";
        assert!(client::raw(lb.http, other.as_bytes()).await.starts_with("HTTP/1.0 200 OK\r\n"));
    }
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut waiting, &mut answer).await.unwrap();
    assert!(!answer.contains("of-another") && !answer.contains("HTTP/1.0"), "the head of another's");
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\nX-Mine: yes\r\n").count(), REQUESTS);
    assert!(answer.ends_with("\r\n\r\nhi"));
}
