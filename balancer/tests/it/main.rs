//! The real balancer process over real sockets, against small backends in this process and a registry that
//! speaks only the wire.

mod backend;
mod balancer;
mod bodies;
mod client;
mod failures;
mod operation;
mod protocol;
mod registry;
mod routing;
