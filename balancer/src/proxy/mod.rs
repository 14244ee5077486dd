//! The data path: accepts clients, sends each request to the endpoint the picker names, and passes the answer
//! back, without ever holding a whole body.
//!
//! ```text
//! worker ─▶ door (TLS, PROXY protocol)
//!   └────▶ connection ─▶ exchange ─▶ course (what is decided) ─▶ route, picker, headers, retry (pure)
//!              │              ├────▶ upstream (connections)        meter (what ends with a response)
//!              │              └────▶ relay (bodies both ways), tunnel (upgrades)
//!              └──▶ http1 (pure: what bytes mean)   buffer, deadline (bytes and time on their way)
//! ```
//!
//! One task serves a client's connection and drives the endpoint's with it: a request costs no channel, no further
//! task and, in the steady state, no allocation.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio_util::sync::CancellationToken;

mod account;
mod belonging;
mod buffer;
mod connection;
mod course;
mod deadline;
mod door;
mod exchange;
pub mod explain;
mod headers;
mod http1;
mod http2;
mod meter;
mod proxy_protocol;
mod relay;
mod retry;
mod stream;
mod tls;
mod trail;
mod tunnel;
mod upstream;
mod worker;

use door::Door;
pub use tls::{Certificates, Unusable};
pub use worker::Shared;

use crate::config::listeners::Listener;

/// Connections that the kernel completes ahead of us.
const BACKLOG: i32 = 1024;

/// Why requests cannot be listened for.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("cannot listen on {0} for requests")]
    Address(SocketAddr, #[source] io::Error),
    /// A certificate cannot be used.
    #[error("cannot speak TLS on {0}")]
    Tls(SocketAddr, #[source] Unusable),
}

/// A listener that connections may already come to, though nobody serves them yet.
pub struct Bound {
    /// Where it listens.
    pub address: SocketAddr,
    door: Arc<Door>,
    sockets: Vec<TcpListener>,
}

impl Bound {
    /// Its certificates, if it speaks TLS.
    pub fn certificates(&self) -> Option<Arc<Certificates>> {
        self.door.certificates().cloned()
    }
}

/// One socket per worker on the same port, among which the kernel spreads connections. Port 0 picks one.
///
/// Fails if anybody else listens there, even if they would share the port: two balancers on one port by
/// mistake would be half of the requests going astray.
pub fn listen(listener: &Listener, workers: usize) -> Result<Bound, ListenError> {
    let door = Door::new(listener).map_err(|e| ListenError::Tls(listener.address, e))?;
    let sockets = sockets(listener.address, workers);
    let (address, sockets) = sockets.map_err(|e| ListenError::Address(listener.address, e))?;
    Ok(Bound { address, door: Arc::new(door), sockets })
}

/// Whether `listener` could be listened on as far as its files tell.
pub fn check(listener: &Listener) -> Result<(), ListenError> {
    Door::new(listener).map(drop).map_err(|e| ListenError::Tls(listener.address, e))
}

fn sockets(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if address.port() != 0 {
        drop(bind(address, false)?);
    }
    let first = bind(address, true)?;
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind(address, true)?);
    }
    Ok((address, sockets))
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts `count` workers, each with a socket of every listener. They accept until `stop`, and end when nothing is in
/// flight any more or at `cut`. A worker that ends for any other reason cancels `stop`, so that the rest is not left
/// half alive.
pub fn spawn(
    listeners: Vec<Bound>,
    count: usize,
    shared: &Shared,
    stop: &CancellationToken,
    cut: &CancellationToken,
) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
    let connections_max = shared.limits.connections_max.div_ceil(count.max(1));
    let mut each: Vec<Vec<(Arc<Door>, TcpListener)>> = (0..count).map(|_| Vec::new()).collect();
    for bound in listeners {
        each.iter_mut().zip(bound.sockets).for_each(|(own, socket)| own.push((bound.door.clone(), socket)));
    }
    let start = |(n, listeners)| {
        let (shared, fallen) = (shared.clone(), stop.clone().drop_guard());
        let (stop, cut) = (stop.child_token(), cut.clone());
        std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
            let _fallen = fallen;
            worker::run(listeners, &shared, connections_max, stop, cut)
        })
    };
    each.into_iter().enumerate().map(start).collect()
}
