//! The real balancer process over real sockets, against small backends in this process and a registry that
//! speaks only the wire.

#![allow(clippy::unwrap_used)] // Tests may be blunt.

mod admin;
mod backend;
mod balancer;
mod bodies;
mod client;
mod failures;
mod h2c;
mod http2;
mod listeners;
mod operation;
mod picking;
mod protocol;
mod registry;
mod reload;
mod routes;
mod routing;
mod seeing;
mod strict;
mod syscalls;
mod traces;
