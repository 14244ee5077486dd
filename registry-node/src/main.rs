//! registry-node
fn main() {}
