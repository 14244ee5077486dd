//! The data path: accepts clients, sends each request to the endpoint the picker names, and passes the answer
//! back, without ever holding a whole body.
//!
//! ```text
//! worker ─▶ connection ─▶ exchange ─▶ course (what is decided) ─▶ route, picker, headers, retry (pure)
//!              │              ├────▶ upstream (connections)        meter (what ends with a response)
//!              │              └────▶ relay (bodies both ways), tunnel (upgrades)
//!              └──▶ http1 (pure: what bytes mean)   buffer, deadline (bytes and time on their way)
//! ```
//!
//! One task serves a client's connection and drives the endpoint's with it: a request costs no channel, no further
//! task and, in the steady state, no allocation.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio_util::sync::CancellationToken;

mod account;
mod belonging;
mod buffer;
mod connection;
mod course;
mod deadline;
mod exchange;
mod headers;
mod http1;
mod meter;
mod relay;
mod retry;
mod tunnel;
mod upstream;
mod worker;

pub use worker::Shared;

/// Connections that the kernel completes ahead of us.
const BACKLOG: i32 = 1024;

/// One listener per worker on the same port, among which the kernel spreads connections. Port 0 picks one.
///
/// Fails if anybody else listens there, even if they would share the port: two balancers on one port by
/// mistake would be half of the requests going astray.
pub fn listen(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if address.port() != 0 {
        drop(bind(address, false)?);
    }
    let first = bind(address, true)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        listeners.push(bind(address, true)?);
    }
    Ok((address, listeners))
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

/// Starts a worker per listener. They accept until `stop`, and end when nothing is in flight any more or at
/// `cut`. A worker that ends for any other reason cancels `stop`, so that the rest is not left half alive.
pub fn spawn(
    listeners: Vec<TcpListener>,
    shared: &Shared,
    stop: &CancellationToken,
    cut: &CancellationToken,
) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
    let connections_max = shared.limits.connections_max.div_ceil(listeners.len().max(1));
    let start = |(n, listener)| {
        let (shared, fallen) = (shared.clone(), stop.clone().drop_guard());
        let (stop, cut) = (stop.child_token(), cut.clone());
        std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
            let _fallen = fallen;
            worker::run(listener, &shared, connections_max, stop, cut)
        })
    };
    listeners.into_iter().enumerate().map(start).collect()
}
