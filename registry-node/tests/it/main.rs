//! The node as its clients meet it: real processes, real sockets, every promise of the wire contract.

mod contract;
mod corruption;
mod damage;
mod disk;
mod divergence;
mod failover;
mod leases;
mod limits;
mod links;
mod logs;
mod malformed;
mod membership;
mod node;
mod offline;
mod original;
mod pipeline;
mod reads;
mod registryctl;
mod watches;
mod wire;
