use super::*;
use proptest::prelude::*;

#[test]
fn what_go_reads_is_read() {
    let cases: [(&str, u64); 14] = [
        ("0", 0),
        ("0s", 0),
        ("5s", 5_000_000_000),
        ("300ms", 300_000_000),
        ("1.5h", 5_400_000_000_000),
        ("1m30s", 90_000_000_000),
        ("1h1m1s1ms1us1ns", 3_661_001_001_001),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        ("1µs", 1_000),
        ("1μs", 1_000),
        ("0.000000001s", 1),
        ("1.00000000000000000000001s", 1_000_000_000),
        ("2s1s", 3_000_000_000),
    ];
    for (text, nanos) in cases {
        assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
    }
}

#[test]
fn what_go_refuses_is_refused_with_a_reason() {
    assert_eq!(parse(""), Err(Error::Empty));
    assert_eq!(parse("5"), Err(Error::NoUnit("5".into())));
    assert_eq!(parse("1.5"), Err(Error::NoUnit("1.5".into())));
    assert_eq!(parse("5 s"), Err(Error::UnknownUnit { text: "5 s".into(), unit: " s".into() }));
    assert_eq!(parse("1d"), Err(Error::UnknownUnit { text: "1d".into(), unit: "d".into() }));
    for text in ["s", "-5s", "+5s", ".s", "1..2s", "x", "ms5"] {
        assert_eq!(parse(text), Err(Error::Malformed(text.into())), "{text}");
    }
    for text in ["99999999999h", "99999999999999999999999999999s"] {
        assert_eq!(parse(text), Err(Error::TooLong(text.into())), "{text}");
    }
    assert!(parse("1s5").is_err());
}

proptest! {
    #[test]
    fn sums_add_up(h in 0u64..1000, m in 0u64..100, ms in 0u64..100_000) {
        let want = Duration::from_millis(h * 3_600_000 + m * 60_000 + ms);
        prop_assert_eq!(parse(&format!("{h}h{m}m{ms}ms")), Ok(want));
    }

    #[test]
    fn nothing_panics(text in "\\PC{0,12}|[0-9.]{0,30}[hms]{0,3}") {
        let _ = parse(&text);
    }
}
