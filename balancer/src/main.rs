//! balancer
fn main() {}
