//! The network between nodes, where a test can break it: one forwarder for each direction of each pair.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A way from one node to another's port. What is asked always arrives; what is answered does unless it is muted.
#[derive(Clone)]
pub struct Link {
    pub from: usize,
    pub to: usize,
    pub address: String,
    muted: Arc<AtomicBool>,
}

impl Link {
    /// Forwards to `target` (`HOST:PORT`) until the test ends.
    pub fn open(from: usize, to: usize, target: String) -> Link {
        let listener = StdListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a fresh socket");
        let address = listener.local_addr().expect("it is bound").to_string();
        let muted = Arc::new(AtomicBool::new(false));
        let answers_are_lost = muted.clone();
        tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it is bound");
            while let Ok((near, _)) = listener.accept().await {
                let (target, lost) = (target.clone(), answers_are_lost.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, None), carry(far_in, near_out, Some(lost)));
                });
            }
        });
        Link { from, to, address, muted }
    }

    /// Whether answers are lost from now on, on connections that stand too.
    pub fn mute(&self, muted: bool) {
        self.muted.store(muted, Ordering::SeqCst);
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    lost: Option<Arc<AtomicBool>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer).await {
        let dropped = lost.as_ref().is_some_and(|lost| lost.load(Ordering::SeqCst));
        if read == 0 || (!dropped && to.write_all(&buffer[..read]).await.is_err()) {
            break;
        }
    }
    let _ = to.shutdown().await; // the other end may be gone already
}
