use std::path::PathBuf;

use super::*;

/// Writes a certificate for `names` with its key.
fn made(dir: &Path, file: &str, names: &[&str]) -> Certificate {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (cert, key) = (dir.join(format!("{file}.pem")), dir.join(format!("{file}.key")));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    Certificate { cert, key }
}

fn der(names: &Names, asked: Option<&str>) -> Vec<u8> {
    names.find(asked).cert[0].to_vec()
}

#[test]
fn the_name_that_is_asked_for_chooses() {
    let dir = tempfile::tempdir().unwrap();
    let a = made(dir.path(), "a", &["a.example"]);
    let b = made(dir.path(), "b", &["*.b.example", "B.example"]);
    let names = Names::load(&[a, b]).unwrap();
    let (first, second) = (der(&names, None), der(&names, Some("b.example")));
    assert_ne!(first, second);
    assert_eq!(der(&names, Some("A.Example")), first);
    assert_eq!(der(&names, Some("x.b.example")), second);
    for stranger in ["x.y.b.example", "example", "c.example"] {
        assert_eq!(der(&names, Some(stranger)), first, "{stranger}");
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (made(dir.path(), "a", &["a.example"]), made(dir.path(), "b", &["b.example"]));
    let text = |c: Certificate| Names::load(&[c]).unwrap_err().to_string();
    let mixed = text(Certificate { cert: a.cert.clone(), key: b.key });
    assert!(mixed.contains("b.key: is not the key of") && mixed.contains("a.pem"), "{mixed}");
    let absent = text(Certificate { cert: PathBuf::from("/nowhere/x.pem"), key: a.key.clone() });
    assert!(absent.starts_with("/nowhere/x.pem: cannot read a certificate in PEM"), "{absent}");
    let swapped = text(Certificate { cert: a.key, key: a.cert });
    assert!(swapped.contains("a.key: holds no certificate"), "{swapped}");
}

#[test]
fn a_bad_file_leaves_the_certificate_before() {
    let dir = tempfile::tempdir().unwrap();
    let a = made(dir.path(), "a", &["a.example"]);
    let settings = Tls { certificates: vec![a.clone()], takes_1_2: true };
    let certificates = Certificates::load(&settings).unwrap();
    let before = der(&certificates.chosen.0.load(), None);
    std::fs::write(&a.cert, "half of a").unwrap();
    certificates.reload().unwrap_err();
    assert_eq!(der(&certificates.chosen.0.load(), None), before);
    made(dir.path(), "a", &["a.example"]);
    certificates.reload().unwrap();
    assert_ne!(der(&certificates.chosen.0.load(), None), before);
}
