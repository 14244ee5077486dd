//! The end of a log.

#[test]
fn the_last_lines_of_a_log() {
    let check = |text: &str, lines, expected: &str| {
        assert_eq!(super::last_lines(text.as_bytes(), lines), expected.as_bytes(), "{text:?} {lines}");
    };
    check("a\nb\nc\n", 2, "b\nc\n");
    check("a\nb\nc", 2, "b\nc");
    check("a\nb\n", 2, "a\nb\n");
    check("a\nb\n", 9, "a\nb\n");
    check("a\n", 0, "");
    check("", 3, "");
}
