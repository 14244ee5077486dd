use proptest::prelude::{any, prop_assert, proptest};

use super::*;

fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = (rest.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, rest].concat()
}

fn told(bytes: &[u8]) -> String {
    let mut stream = bytes;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match runtime.block_on(read(&mut stream)) {
        Ok(source) => format!("{source:?}, {} left", stream.len()),
        Err(bad) => bad.to_string(),
    }
}

#[test]
fn the_client_is_whom_the_header_names() {
    let v4 = [10, 0, 0, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80];
    let v6 = [[0; 15].as_slice(), &[1], &[0; 16], &[0, 7, 0, 80], b"more"].concat();
    let cases = [
        ([header(0x21, 0x11, &v4), b"GET".to_vec()].concat(), "Some(10.0.0.7:12345), 3 left"),
        (header(0x21, 0x21, &v6), "Some([::1]:7), 0 left"),
        (header(0x20, 0x00, b"whatever"), "None, 0 left"),
        (header(0x21, 0x00, &[]), "None, 0 left"),
        (
            header(0x21, 0x11, &v4[..11]),
            "a PROXY protocol header that makes no sense: too short for its addresses",
        ),
        (
            header(0x21, 0x31, &v4),
            "a PROXY protocol header that makes no sense: a family that TCP does not have",
        ),
        (
            header(0x11, 0x11, &v4),
            "a PROXY protocol header that makes no sense: an unknown version or command",
        ),
        (header(0x21, 0x11, &[0; 5000]), "a PROXY protocol header that makes no sense: too long"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), "no PROXY protocol header of version 2"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no PROXY protocol header of version 2"),
        (header(0x21, 0x11, &v4)[..20].to_vec(), "early eof"),
    ];
    for (bytes, want) in cases {
        assert_eq!(told(&bytes), want, "{bytes:?}");
    }
}

#[test]
fn an_address_counts_in_either_notation() {
    let trust = Trust::Only(vec!["127.0.0.1".parse().unwrap()]);
    assert!(is_trusted(&trust, "::ffff:127.0.0.1".parse().unwrap()));
    assert!(!is_trusted(&trust, "127.0.0.2".parse().unwrap()));
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(head in any::<[u8; 4]>(), rest in any::<Vec<u8>>()) {
        let said = told(&[&SIGNATURE[..], &head, &rest].concat());
        prop_assert!(!said.is_empty());
    }
}
