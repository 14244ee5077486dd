//! What stands between a client and a node: passes bytes on, or misbehaves as told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What to do with connections. A change of mode cuts those there are, except that `Swallow` only mutes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Closes connections as they come.
    Refuse,
    /// Accepts everything and says nothing.
    Swallow,
    /// Closes connections that speak HTTP/2.
    ResetHttp2,
    /// Accepts HTTP/2 and says nothing.
    SwallowHttp2,
}

pub struct Middlebox {
    pub url: String,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicUsize>,
}

impl Middlebox {
    /// Stands before `node`.
    pub async fn before(node: SocketAddr, mode: Mode) -> Middlebox {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let mode = watch::Sender::new(mode);
        let modes = mode.clone();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(client, node, modes.subscribe()));
            }
        });
        Middlebox { url, mode, connections }
    }

    /// How many have come so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(mut client: TcpStream, node: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let mode = *modes.borrow_and_update();
    let http2 = speaks_http2(&client).await;
    match mode {
        Mode::Refuse => return,
        Mode::ResetHttp2 if http2 => return,
        Mode::SwallowHttp2 if http2 => return hold(&mut modes).await,
        Mode::Swallow => return hold(&mut modes).await,
        _ => {}
    }
    let Ok(mut node) = TcpStream::connect(node).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut node) => {}
        _ = modes.changed() => {
            if *modes.borrow() == Mode::Swallow {
                hold(&mut modes).await;
            }
        }
    }
}

/// Keeps the connection open and mute until the mode changes.
async fn hold(modes: &mut watch::Receiver<Mode>) {
    let _ = modes.changed().await;
}

async fn speaks_http2(client: &TcpStream) -> bool {
    let mut first = [0; 3];
    matches!(client.peek(&mut first).await, Ok(3)) && &first == b"PRI"
}
