//! What a connection goes through before it may speak HTTP: a PROXY protocol header, a TLS handshake, or nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::proxy_protocol;
use super::stream::Stream;
use super::tls::{Certificates, Unusable};
use crate::config::listeners::{Listener, Trust};

/// The way in of one listener.
pub struct Door {
    tls: Option<(Arc<Certificates>, TlsAcceptor)>,
    proxy_protocol: Option<Trust>,
}

impl Door {
    /// As `listener` is configured; reads its certificates.
    pub fn new(listener: &Listener) -> Result<Door, Unusable> {
        let tls = listener.tls.as_ref().map(Certificates::load).transpose()?;
        let tls = tls.map(|certificates| {
            let acceptor = certificates.acceptor();
            (Arc::new(certificates), acceptor)
        });
        Ok(Door { tls, proxy_protocol: listener.proxy_protocol.clone() })
    }

    /// Its certificates, if it speaks TLS.
    pub fn certificates(&self) -> Option<&Arc<Certificates>> {
        self.tls.as_ref().map(|(certificates, _)| certificates)
    }

    /// Whether a connection has to do anything at all.
    pub fn is_open(&self) -> bool {
        self.tls.is_none() && self.proxy_protocol.is_none()
    }

    /// Lets a connection from `peer` in, which has `patience` for all of it. Returns it with the client's address;
    /// nothing if it did not do what it has to.
    pub async fn enter(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        patience: Duration,
    ) -> Option<(Stream, SocketAddr)> {
        if self.is_open() {
            return Some((Stream::Plain(stream), peer));
        }
        // Boxed, as what else is rare: the task of a connection is as large as its largest moment, for all of its life.
        match tokio::time::timeout(patience, Box::pin(self.pass(stream, peer))).await {
            Ok(Ok(entered)) => Some(entered),
            Ok(Err(why)) => {
                debug!(%peer, why, "refused a connection");
                None
            }
            Err(_) => {
                debug!(%peer, "a connection took too long to begin");
                None
            }
        }
    }

    async fn pass(&self, mut stream: TcpStream, peer: SocketAddr) -> Result<(Stream, SocketAddr), String> {
        let mut client = peer;
        if let Some(trust) = &self.proxy_protocol {
            if !proxy_protocol::is_trusted(trust, peer.ip()) {
                return Err("not trusted with a PROXY protocol header".into());
            }
            let told = proxy_protocol::read(&mut stream).await.map_err(|e| e.to_string())?;
            client = told.unwrap_or(peer);
        }
        let Some((_, acceptor)) = &self.tls else { return Ok((Stream::Plain(stream), client)) };
        let stream = acceptor.accept(stream).await.map_err(|e| e.to_string())?;
        Ok((Stream::Tls(Box::new(stream)), client))
    }
}
