//! The committed types are what the `.proto` files say, and JSON is what the REST API promises.

mod backup;

use std::{fs, path::Path};

use proto::registry::v1 as pb;

const FILES: [&str; 3] = ["registry/v1/registry.proto", "raft/v1/raft.proto", "service_registry.proto"];

/// Compiles the `.proto` files into `out` just as the committed code was made.
fn generate(root: &Path, out: &Path) {
    let mut compiler = protox::Compiler::new([root.join("proto")]).expect("the include path exists");
    compiler.include_source_info(true).open_files(FILES).expect("the .proto files compile");
    let descriptors = compiler.file_descriptor_set();
    let encoded = compiler.encode_file_descriptor_set();

    let mut prost = prost_build::Config::new();
    prost.btree_map(["."]).bytes([".raft.v1"]);
    tonic_prost_build::configure()
        .out_dir(out)
        .build_transport(true)
        .compile_fds_with_config(descriptors, prost)
        .expect("code can be generated");
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)
        .expect("descriptors decode")
        .ignore_unknown_fields()
        .btree_map(["."])
        .out_dir(out)
        .build(&[".registry.v1"])
        .expect("JSON code can be generated");
}

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a temporary directory");
    generate(root, fresh.path());
    let mut stale = Vec::new();
    for entry in fs::read_dir(fresh.path()).expect("readable").map(|e| e.expect("readable")) {
        let committed = root.join("src/gen").join(entry.file_name());
        let new = fs::read(entry.path()).expect("readable");
        if fs::read(&committed).ok().as_ref() != Some(&new) {
            if std::env::var_os("UPDATE").is_some() {
                fs::write(&committed, new).expect("src/gen is writable");
            } else {
                stale.push(entry.file_name());
            }
        }
    }
    assert!(stale.is_empty(), "{stale:?} differ from the .proto files: run `UPDATE=1 cargo test -p proto`");
}

#[test]
fn json_is_camel_case_with_64_bit_integers_as_strings_and_unknown_fields_ignored() {
    let instance = pb::Instance {
        id: "pay-1".into(),
        service: "pay".into(),
        ttl_ms: 10_000,
        health_path: "/health".into(),
        status: pb::instance::Status::Up.into(),
        reg_rev: 7,
        ..Default::default()
    };
    let json = serde_json::to_string(&instance).expect("serialisable");
    assert_eq!(
        json,
        r#"{"id":"pay-1","service":"pay","healthPath":"/health","ttlMs":10000,"status":"UP","regRev":"7"}"#
    );
    let back: pb::Instance =
        serde_json::from_str(r#"{"id":"pay-1","service":"pay","health_path":"/health","regRev":7,"new":1}"#)
            .expect("both spellings, numbers, unknown fields");
    assert_eq!((back.health_path.as_str(), back.reg_rev), ("/health", 7));
}
