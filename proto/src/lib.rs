//! The wire contract of the system: what its programs say to each other, and to programs written against the
//! original. The `.proto` files under `proto/` are the source; `src/gen` is made from them and kept current by
//! the test `generated_code_is_current` (run with `UPDATE=1` to rewrite it). No protoc, no build script.

pub mod backup;

/// The registry's own API, and its proto3 JSON.
pub mod registry {
    /// Version 1.
    #[allow(missing_docs, clippy::all, unused_qualifications)]
    pub mod v1 {
        include!("gen/registry.v1.rs");
        include!("gen/registry.v1.serde.rs");
    }
}

/// Between the nodes of one cluster.
pub mod raft {
    /// Version 1.
    #[allow(missing_docs, clippy::all, unused_qualifications)]
    pub mod v1 {
        include!("gen/raft.v1.rs");
    }
}

/// The original's API.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod legacy {
    include!("gen/serviceregistry.rs");
}
