//! Which ports a cluster takes. Pure: whether a port is free is asked through a closure.
//!
//! # Why not port 0
//! A process that is stopped and started again must come back on its port, and others are told the port before it
//! listens. A port of the kernel's ephemeral range could meanwhile become the source port of any outgoing
//! connection (even of one that is trying to reach it: a TCP self-connect), so free ports are picked below it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// How ports are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// The documented ones; a taken one moves on to the next.
    #[default]
    Default,
    /// The documented ones; a taken one is an error.
    Strict,
    /// Any that are free: for tests and for several clusters side by side.
    Free,
}

/// One port that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    /// For people: `node-1 rest`.
    pub owner: String,
    pub port: u16,
}

/// What was asked for, and what it became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub want: Want,
    pub port: u16,
}

impl Assigned {
    pub(crate) fn moved(&self) -> bool {
        self.want.port != self.port
    }
}

/// No port could be given to `owner`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Strict, and somebody has it.
    #[error("port {port}, wanted for {owner}, is taken; stop whoever has it, or leave out --strict-ports")]
    Taken {
        /// Who wanted it.
        owner: String,
        /// Which one.
        port: u16,
    },
    /// Everything that was tried is taken.
    #[error("found no free port for {owner}")]
    Exhausted {
        /// Who wanted one.
        owner: String,
    },
}

/// Free ports are picked from here on: below lie the documented ones and what people run by hand.
const FREE_FROM: u16 = 12_000;
/// Tries before giving up: so many random ports are never all taken by chance.
const FREE_TRIES: usize = 2_000;

/// Chooses a port for each of `wants`, in order. Nobody gets one of `reserved`, nor one that another wants and can
/// have. `free_below` is where the ephemeral range begins.
pub(crate) fn assign(
    wants: &[Want],
    policy: Ports,
    reserved: &BTreeSet<u16>,
    free_below: u16,
    mut is_free: impl FnMut(u16) -> bool,
) -> Result<Vec<Assigned>, Error> {
    let wanted: BTreeSet<u16> = wants.iter().map(|want| want.port).collect();
    let mut given = reserved.clone();
    let mut assigned = Vec::with_capacity(wants.len());
    for want in wants {
        let exhausted = || Error::Exhausted { owner: want.owner.clone() };
        let mut can_have = |port: u16| !given.contains(&port) && is_free(port);
        let port = match policy {
            Ports::Free => (0..FREE_TRIES)
                .map(|_| fastrand::u16(FREE_FROM..free_below.max(FREE_FROM + 1)))
                .find(|port| can_have(*port))
                .ok_or_else(exhausted)?,
            _ if can_have(want.port) => want.port,
            Ports::Strict => return Err(Error::Taken { owner: want.owner.clone(), port: want.port }),
            Ports::Default => (want.port..u16::MAX)
                .skip(1)
                .find(|port| !wanted.contains(port) && can_have(*port))
                .ok_or_else(exhausted)?,
        };
        given.insert(port);
        assigned.push(Assigned { want: want.clone(), port });
    }
    Ok(assigned)
}

/// Whether a listener could have this port of the loopback address now.
pub(crate) fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Where the kernel's range of source ports begins.
pub(crate) fn ephemeral_begins() -> u16 {
    const LINUX_DEFAULT: u16 = 32_768;
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|begin| *begin > FREE_FROM + 1_000)
        .unwrap_or(LINUX_DEFAULT)
}
