//! The PROXY protocol, version 2: who the client is, told by a load balancer in front of us that only passes TCP on.
//!
//! Source: the protocol's text of 2020, as HAProxy publishes it. Version 1, the one in words, is refused.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::config::listeners::Trust;

#[cfg(test)]
mod tests;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length.
const HEAD: usize = 16;

/// Addresses and what follows them, at most. The longest in use are certificates of clients.
const REST_MAX: usize = 4096;

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
pub enum Bad {
    /// It does not begin as one.
    #[error("no PROXY protocol header of version 2")]
    Signature,
    /// Its command, family or length is none.
    #[error("a PROXY protocol header that makes no sense: {0}")]
    Sense(&'static str),
    /// The connection ended, or failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Whether headers of a connection from `peer` count.
pub fn is_trusted(trust: &Trust, peer: IpAddr) -> bool {
    match trust {
        Trust::All => true,
        Trust::Only(list) => list.iter().any(|ip| ip.to_canonical() == peer.to_canonical()),
    }
}

/// Reads a header and nothing beyond it. `None`: the sender speaks for itself, as a health check does.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Bad> {
    let mut head = [0; HEAD];
    // The signature first: who speaks something else is not waited for.
    stream.read_exact(&mut head[..SIGNATURE.len()]).await?;
    if head[..SIGNATURE.len()] != SIGNATURE {
        return Err(Bad::Signature);
    }
    stream.read_exact(&mut head[SIGNATURE.len()..]).await?;
    let len = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if len > REST_MAX {
        return Err(Bad::Sense("too long"));
    }
    let mut rest = vec![0; len];
    stream.read_exact(&mut rest).await?;
    source(head[12], head[13], &rest)
}

/// Who the client is, by the header's version and command, its family, and its addresses.
fn source(command: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, Bad> {
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match (command, family) {
        (0x20, _) => Ok(None),
        (0x21, 0x11) if rest.len() >= 12 => {
            let ip: [u8; 4] = rest[..4].try_into().expect("it is long enough");
            Ok(Some(SocketAddr::new(ip.into(), port(8))))
        }
        (0x21, 0x21) if rest.len() >= 36 => {
            let ip: [u8; 16] = rest[..16].try_into().expect("it is long enough");
            Ok(Some(SocketAddr::new(IpAddr::from(ip).to_canonical(), port(32))))
        }
        (0x21, 0x11 | 0x21) => Err(Bad::Sense("too short for its addresses")),
        // Not over TCP: the sender cannot say who it is for.
        (0x21, 0x00) => Ok(None),
        (0x21, _) => Err(Bad::Sense("a family that TCP does not have")),
        _ => Err(Bad::Sense("an unknown version or command")),
    }
}
