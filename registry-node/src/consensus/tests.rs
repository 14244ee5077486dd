//! openraft's own storage suite on our store, and our encodings.
