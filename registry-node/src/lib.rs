//! registry-node
