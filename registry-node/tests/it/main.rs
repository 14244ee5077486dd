//! The node as its clients meet it: real processes, real sockets, every promise of the wire contract.

mod contract;
mod corruption;
mod damage;
mod disk;
mod failover;
mod malformed;
mod membership;
mod node;
mod offline;
mod original;
mod pipeline;
mod registryctl;
mod wire;
