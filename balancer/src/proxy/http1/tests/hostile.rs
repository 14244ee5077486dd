//! Whatever comes: how it is cut into arrivals makes no difference, nothing panics, and what is understood has one
//! meaning only.

use super::*;

/// What messages are made of, and what they are made of when somebody wants to be misunderstood.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let texts: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"GET http://b/x HTTP/1.1\r\n",
        b"HTTP/1.0",
        b"Host: a\r\n",
        b"Host: b\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: x\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"X: y\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"5\r\nhello\r\n",
        b"5;a=\"b\"\r\nhello\r\n",
        b"0\r\n",
        b"0\r\n\r\n",
        b"hello",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"\xff",
    ];
    prop_oneof![
        8 => prop::sample::select(texts.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

/// Requests that are well-formed, with a flaw here and there.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5;a\r\nworld\r\n0\r\nX: y\r\n\r\n",
    ])
    .prop_map(|text: &str| text.as_bytes().to_vec());
    let part = prop_oneof![2 => good, 3 => fragment()];
    let whole = prop::collection::vec(part, 1..12).prop_map(|parts| parts.concat());
    (whole, prop::option::of((any::<prop::sample::Index>(), any::<u8>()))).prop_map(|(mut bytes, flaw)| {
        if let Some((at, byte)) = flaw.filter(|_| !bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn arrivals_make_no_difference(bytes in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let arrivals: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        prop_assert_eq!(told_in(&arrivals), told(&bytes));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(told_in(&single), told(&bytes));
    }

    /// Where the first request is understood, a reader that is as lenient as can be finds the same body and the same
    /// beginning of what follows.
    #[test]
    fn who_is_careless_reads_no_other_request(bytes in stream(), cut in 0usize..64) {
        reading::check(&bytes, cut);
    }
}
