//! The sample backend by itself: what it answers, and that it leaves in order. Its registry never answers.

use std::{process::Stdio, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::Method;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{EXE, PATIENCE, alone, eventually, get_json, request};

struct Backend {
    process: Child,
    url: String,
    metrics: String,
}

impl Backend {
    async fn start() -> Backend {
        let mut command = Command::new(EXE);
        command.args(["backend", "--service", "echo", "--port", "0", "--metrics-port", "0"]);
        command.args(["--registry", "http://127.0.0.1:1"]).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("the binary runs");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let listening = async {
            loop {
                let line = lines.next_line().await.expect("text").expect("it says where it listens");
                if let (Some(url), Some(metrics)) = (field(&line, "http="), field(&line, "metrics=")) {
                    return (url, metrics);
                }
            }
        };
        let (url, metrics) = tokio::time::timeout(PATIENCE, listening).await.expect("it starts");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Backend { process, url, metrics }
    }

    fn terminate(&self) {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("it is ours");
    }
}

fn field(line: &str, name: &str) -> Option<String> {
    let value = line.split_once(name)?.1.split_whitespace().next()?;
    Some(format!("http://{value}"))
}

#[test]
fn it_answers_what_a_balancer_must_carry() {
    alone(async {
        let Backend { process: _process, url, metrics } = Backend::start().await;
        let port = url.rsplit_once(':').expect("a port").1;
        let who = json!({"instance": format!("echo-127.0.0.1-{port}")});
        assert_eq!(get_json(&url).await, Ok(who.clone()));
        assert_eq!(get_json(&format!("{url}/slow?ms=20")).await, Ok(who));
        assert_eq!(
            request(Method::GET, &format!("{url}/health"), None).await.map(|(status, _)| status),
            Ok(200)
        );

        let (status, body) =
            request(Method::PUT, &format!("{url}/echo?a=1"), Some(json!("x"))).await.expect("an answer");
        let echo: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((status, &echo["method"], &echo["uri"]), (200, &json!("PUT"), &json!("/echo?a=1")));
        assert_eq!(
            (&echo["headers"]["content-type"], &echo["body_bytes"]),
            (&json!("application/json"), &json!(3))
        );

        let (status, body) =
            request(Method::GET, &format!("{url}/sse?n=2&ms=1"), None).await.expect("an answer");
        let text = String::from_utf8_lossy(&body);
        assert_eq!((status, text.matches("data: ").count()), (200, 2), "{text}");

        let (mut socket, _) = tokio_tungstenite::connect_async(format!("{}/ws", url.replace("http", "ws")))
            .await
            .expect("a WebSocket");
        socket.send(Message::text("hello")).await.expect("it is open");
        assert_eq!(socket.next().await.expect("it is open").expect("a message"), Message::text("hello"));

        let (_, body) = request(Method::GET, &format!("{metrics}/metrics"), None).await.expect("an answer");
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains(r#"backend_requests_total{route="/",status="200"} 1"#), "{text}");
    });
}

/// What `url`'s server says to raw bytes, until it closes the connection.
async fn answer_to(url: &str, bytes: &[u8]) -> String {
    let exchange = async {
        let address = url.trim_start_matches("http://");
        let (mut read, mut write) = TcpStream::connect(address).await.expect("it listens").into_split();
        let mut answer = Vec::new();
        // It may answer and close before it has read everything; then either side fails, and neither matters.
        let (_, _) = tokio::join!(write.write_all(bytes), read.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("it does not wait for more")
}

#[test]
fn it_refuses_what_is_too_long_or_no_http_and_goes_on() {
    alone(async {
        let Backend { process: _process, url, metrics } = Backend::start().await;
        let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx-long: {}\r\n\r\n", "a".repeat(100 << 10));
        let fits = format!(
            "GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\nx: {}\r\n\r\n",
            "a".repeat(32 << 10)
        );
        let cases: [(&str, &[u8], &str); 3] = [
            ("too long", long.as_bytes(), "HTTP/1.1 431"),
            ("garbage", b"\x16\x03\x01\x00 no http at all\r\n\r\n", "HTTP/1.1 400"),
            ("fits", fits.as_bytes(), "HTTP/1.1 "),
        ];
        for (what, bytes, expected) in cases {
            for url in [&url, &metrics] {
                let answer = answer_to(url, bytes).await;
                assert!(answer.starts_with(expected), "{what} to {url}: {:?}", answer.lines().next());
            }
        }
        assert!(get_json(&url).await.is_ok());
        let (status, _) = request(Method::GET, &format!("{metrics}/metrics"), None).await.expect("a scrape");
        assert_eq!(status, 200);
    });
}

#[test]
fn it_cuts_off_who_never_asks() {
    alone(async {
        let Backend { process: _process, url, metrics } = Backend::start().await;
        // Nothing, what may become HTTP/2, and half a head.
        let starts: [&[u8]; 3] = [b"", b"PRI * HT", b"GET / HTTP/1.1\r\nhost:"];
        let all = starts.iter().flat_map(|start| [(start, &url), (start, &metrics)]);
        let answers = all.map(|(start, url)| answer_to(url, start));
        for answer in futures_util::future::join_all(answers).await {
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert!(get_json(&url).await.is_ok());
    });
}

#[test]
fn it_finishes_what_is_in_flight_before_it_goes() {
    alone(async {
        let mut backend = Backend::start().await;
        let slow = tokio::spawn({
            let url = backend.url.clone();
            async move { get_json(&format!("{url}/slow?ms=1500")).await }
        });
        let metrics = format!("{}/metrics", backend.metrics);
        eventually("the request is in flight", PATIENCE, async || {
            let (_, body) = request(Method::GET, &metrics, None).await.ok()?;
            String::from_utf8_lossy(&body).contains("backend_in_flight 1").then_some(())
        })
        .await;
        backend.terminate();
        let root = backend.url.clone();
        eventually("it takes no more", PATIENCE, async || get_json(&root).await.is_err().then_some(())).await;
        assert!(slow.await.expect("it does not panic").is_ok(), "it was cut off");
        let ended =
            tokio::time::timeout(Duration::from_secs(10), backend.process.wait()).await.expect("it ends");
        assert!(ended.expect("it is ours").success());
    });
}
