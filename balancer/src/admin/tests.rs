use tokio::io::AsyncWriteExt;

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
