//! How connections come in: TLS, PROXY protocol, several addresses.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::backend::Backend;
use crate::balancer::{Balancer, command, eventually};
use crate::client::{self, Client};
use crate::registry::Registry;

/// Writes `NAME.pem` and `NAME.key` for the host `name`; returns the certificate.
fn certificate(dir: &Path, name: &str) -> String {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    // As tools do that know that somebody reads along: never half a file under its name.
    for (file, text) in
        [(format!("{name}.key"), made.signing_key.serialize_pem()), (format!("{name}.pem"), made.cert.pem())]
    {
        std::fs::write(dir.join("fresh"), text).unwrap();
        std::fs::rename(dir.join("fresh"), dir.join(file)).unwrap();
    }
    made.cert.pem()
}

/// Connects as a client that trusts only `certificate` and asks for `name`.
async fn connect(
    address: SocketAddr,
    name: &str,
    certificate: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_speaking(&[], address, name, certificate).await
}

/// Offers to speak `protocols` within.
async fn connect_speaking(
    protocols: &[&[u8]],
    address: SocketAddr,
    name: &str,
    certificate: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

/// A balancer in `dir` with these `listeners`, in front of one backend.
async fn system(dir: tempfile::TempDir, listeners: &str) -> (Registry, Backend, Balancer) {
    let registry = Registry::start().await;
    let backend = Backend::start("b0");
    registry.register("b0", &backend.url());
    let config =
        format!("serviceRegistryURL: {}\nheaderTimeout: 1s\nlisteners:\n{listeners}", registry.url());
    let lb = Balancer::spawn_in(dir, &[], &config).await;
    lb.rotates(&["b0"]).await;
    (registry, backend, lb)
}

const TLS: &str = "\
- address: 127.0.0.1:0
  tls:
    certificates:
    - {cert: a.example.pem, key: a.example.key}
    - {cert: b.example.pem, key: b.example.key}
- address: 127.0.0.1:0
";

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_each_host_with_its_own_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (certificate(dir.path(), "a.example"), certificate(dir.path(), "b.example"));
    let (_registry, _backend, lb) = system(dir, TLS).await;
    for (name, own) in [("a.example", &a), ("b.example", &b)] {
        let stream = connect(lb.http, name, own).await.expect("its own certificate");
        let mut client = Client::over(stream).await.unwrap();
        let body = "x".repeat(300_000);
        for _ in 0..3 {
            let answer =
                client.send(client::request(Method::POST, "/", &[("host", name)], &body)).await.unwrap();
            assert_eq!((answer.status, answer.echoed("x-forwarded-proto").as_str()), (200, "https"));
            assert_eq!(answer.json()["body_bytes"].as_u64().unwrap_or(300_000), 300_000);
        }
        assert!(client.get("/big").await.unwrap().body.len() > 100_000);
    }
    connect(lb.http, "b.example", &a).await.expect_err("it must not get the certificate of a.example");
    let plain = client::get(lb.listeners[1], "/").await.unwrap();
    assert_eq!(plain.echoed("x-forwarded-proto"), "http");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_agrees_on_http_2_with_clients_that_offer_it() {
    let dir = tempfile::tempdir().unwrap();
    let a = certificate(dir.path(), "a.example");
    certificate(dir.path(), "b.example");
    let (_registry, _backend, lb) = system(dir, TLS).await;
    let offers: [(&[&[u8]], &[u8]); 3] =
        [(&[b"http/1.1", b"h2"], b"h2"), (&[b"h2"], b"h2"), (&[b"http/1.1"], b"http/1.1")];
    for (protocols, agreed) in offers {
        let stream = connect_speaking(protocols, lb.http, "a.example", &a).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(agreed));
        let answer = match agreed {
            b"h2" => crate::http2::get(&mut crate::http2::over(stream).await, "/").await,
            _ => {
                let mut client = Client::over(stream).await.unwrap();
                client.get("/").await.unwrap()
            }
        };
        assert_eq!((answer.status, answer.echoed("x-forwarded-proto").as_str()), (200, "https"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_carries_upgraded_connections() {
    let dir = tempfile::tempdir().unwrap();
    let a = certificate(dir.path(), "a.example");
    certificate(dir.path(), "b.example");
    let (_registry, _backend, lb) = system(dir, TLS).await;
    let stream = connect(lb.http, "a.example", &a).await.unwrap();
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://a.example/ws", stream).await.expect("an upgrade");
    for _ in 0..3 {
        use futures_util::{SinkExt, StreamExt};
        socket.send("hello".into()).await.unwrap();
        assert!(socket.next().await.unwrap().unwrap().to_text().unwrap().contains("hello"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_while_connections_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let old = certificate(&path, "a.example");
    certificate(&path, "b.example");
    let (_registry, _backend, lb) = system(dir, TLS).await;
    let mut client = Client::over(connect(lb.http, "a.example", &old).await.unwrap()).await.unwrap();
    assert_eq!(client.get("/").await.unwrap().status, 200);

    std::fs::write(path.join("a.example.pem"), "not a certificate").unwrap();
    eventually("it is said", async || lb.log().contains("a.example.pem: holds no certificate")).await;
    connect(lb.http, "a.example", &old).await.expect("the one before stays in force");

    let new = certificate(&path, "a.example");
    eventually("the new one is used", async || connect(lb.http, "a.example", &new).await.is_ok()).await;
    assert_eq!(client.get("/").await.unwrap().status, 200, "on the connection of before");
    let counted = |metrics: &str, result: &str| {
        !metrics.contains(&format!(r#"balancer_tls_reloads_total{{result="{result}"}} 0"#))
    };
    eventually("both count", async || {
        let metrics = lb.metrics().await;
        counted(&metrics, "failed") && counted(&metrics, "done")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_handshake_ends() {
    let dir = tempfile::tempdir().unwrap();
    let a = certificate(dir.path(), "a.example");
    certificate(dir.path(), "b.example");
    let (_registry, backend, lb) = system(dir, TLS).await;
    client::raw(lb.http, b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    // Says nothing, for longer than `headerTimeout`.
    client::raw(lb.http, b"").await;
    assert_eq!(backend.requests(), 0);
    let counted = r#"balancer_refused_total{reason="handshake"} 2"#;
    eventually("both count", async || lb.metrics().await.contains(counted)).await;
    // Within, everything is as strict as without.
    let mut stream = connect(lb.http, "a.example", &a).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\nhost: b.example\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it ends as TLS does");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn check_reads_the_certificates() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "a.example");
    std::fs::write(dir.path().join("c.yaml"), format!("listeners:\n{TLS}")).unwrap();
    let run = || {
        let out = command(dir.path()).args(["check", "c.yaml"]).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (code, text) = run();
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("cannot speak TLS on 127.0.0.1:0: b.example.pem: cannot read"), "{text}");
    certificate(dir.path(), "b.example");
    let (code, text) = run();
    assert!(code == Some(0) && text.contains("https://127.0.0.1:0 http://127.0.0.1:0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_protocol_header_says_who_the_client_is() {
    let listeners = "\
- {address: '127.0.0.1:0', proxyProtocol: true}
- {address: '127.0.0.1:0', proxyProtocol: true, proxyProtocolFrom: [192.0.2.1]}
";
    let (_registry, backend, lb) = system(tempfile::tempdir().unwrap(), listeners).await;
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([203, 0, 113, 9, 10, 0, 0, 1, 1, 0, 0, 80]);
    let get = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = client::raw(lb.http, &[&header[..], get].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("203.0.113.9"), "{answer}");
    let seen = backend.requests();
    assert_eq!(client::raw(lb.http, get).await, "", "without a header");
    assert_eq!(client::raw(lb.http, &header[..20]).await, "", "with half of one");
    assert_eq!(client::raw(lb.listeners[1], &[&header[..], get].concat()).await, "", "from a stranger");
    assert_eq!(backend.requests(), seen);
}
