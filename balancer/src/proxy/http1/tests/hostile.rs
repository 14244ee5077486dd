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

/// One request, as a careless server might read it: the first length or coding that is there, lines however they end.
/// What it takes for the body, and what it leaves.
fn careless(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let text: String = bytes.iter().map(|&b| b as char).collect();
    let end = ["\r\n\r\n", "\n\n", "\n\r\n"]
        .iter()
        .filter_map(|mark| text.find(mark).map(|at| at + mark.len()))
        .min()?;
    let head = text[..end].to_ascii_lowercase();
    let mut rest = &bytes[end..];
    let value = |name: &str| {
        head.lines().find_map(|line| line.trim().replace('_', "-").strip_prefix(name).map(str::to_owned))
    };
    if value("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        let mut body = Vec::new();
        loop {
            let line = rest.iter().position(|&b| b == b'\n')?;
            let size: String =
                rest[..line].iter().map(|&b| b as char).take_while(char::is_ascii_hexdigit).collect();
            let size = usize::from_str_radix(&size, 16).ok()?;
            rest = &rest[line + 1..];
            if size == 0 {
                let mut line = Vec::new();
                while !line.trim_ascii().is_empty() || line.is_empty() {
                    let end = rest.iter().position(|&b| b == b'\n')?;
                    line = rest[..=end].to_vec();
                    rest = &rest[end + 1..];
                }
                return Some((body, rest));
            }
            body.extend_from_slice(rest.get(..size)?);
            rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
        }
    }
    let length =
        value("content-length").map_or(Some(0), |v| v.trim_matches([':', ' ', '\t']).parse().ok())?;
    Some((rest.get(..length)?.to_vec(), &rest[length..]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

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
    fn who_is_careless_reads_no_other_request(bytes in stream()) {
        let mut requests = Requests::new(HEAD_BYTES_MAX);
        let (mut request, mut pieces) = (Request::default(), Pieces::default());
        let (mut rest, mut body) = (&bytes[..], Vec::new());
        let whole = loop {
            let Ok((consumed, event)) = requests.advance(rest, &mut request, &mut pieces) else { break false };
            pieces.iter().for_each(|place| body.extend_from_slice(&rest[place]));
            rest = &rest[consumed..];
            match event {
                Event::End => break true,
                Event::More | Event::Closed => break false,
                Event::Head | Event::Data => {}
            }
        };
        if whole {
            let start = bytes.iter().position(|b| !b"\r\n".contains(b)).unwrap_or_default();
            let (theirs, left) = careless(&bytes[start..]).expect("it is whole");
            prop_assert_eq!(body, theirs);
            prop_assert_eq!(rest, left);
        }
    }
}
