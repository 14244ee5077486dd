//! jepsen-tests
fn main() {}
