//! registryctl
fn main() {}
