//! What a request costs in calls to the kernel, which no noise changes.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::balancer::{Balancer, eventually};
use crate::registry::Registry;

const REQUESTS: usize = 50_000;
const CONNECTIONS: usize = 64;

/// A read and a write on either side are four; the rest is waiting for many connections at once.
const CALLS_MAX: f64 = 4.2;

/// A backend that answers each head with 1 KiB.
async fn backend() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{}", "x".repeat(1024));
    let answer: Arc<[u8]> = answer.into_bytes().into();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(1..) = stream.read(&mut bytes).await {
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    (address, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_on_kept_connections_costs_four_calls_and_a_little() {
    let installed =
        Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !installed {
        assert!(std::env::var_os("CI").is_none(), "strace is missing: install it");
        return eprintln!("not counted: strace is not installed");
    }
    let (registry, (address, _backend)) = (Registry::start().await, backend().await);
    registry.register("b", &format!("http://{address}"));
    let lb = Balancer::start(&registry, &["--workers", "2"]).await;
    lb.rotates(&["b"]).await;

    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("calls");
    let mut strace = Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o"])
        .args([table.as_os_str(), "-p".as_ref(), lb.pid().to_string().as_ref()])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is traced", async || lb.is_traced()).await;
    let left = Arc::new(AtomicUsize::new(REQUESTS));
    let clients = (0..CONNECTIONS).map(|_| tokio::spawn(load(lb.http, left.clone())));
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    strace.wait().unwrap();
    let table = std::fs::read_to_string(&table).unwrap();
    let total = table.lines().find(|l| l.trim_end().ends_with("total")).unwrap_or_else(|| panic!("{table}"));
    let total: f64 = total.split_whitespace().next().unwrap().parse().unwrap();
    let each = total / REQUESTS as f64;
    assert!(each > 3.5, "it has not seen them: {each:.2} of each\n{table}");
    assert!(each <= CALLS_MAX, "{each:.2} of each\n{table}");
}

async fn load(address: std::net::SocketAddr, left: Arc<AtomicUsize>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = [0; 4096];
    let took = |n: usize| n.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, took).is_ok() {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut n = 0;
        while n < 1024 || !bytes[..n].ends_with(&[b'x'; 1024]) {
            n += stream.read(&mut bytes[n..]).await.unwrap();
        }
        assert!(bytes.starts_with(b"HTTP/1.1 200 "));
    }
}
