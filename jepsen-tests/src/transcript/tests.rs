use expect_test::expect;

use super::*;

#[test]
fn a_transcript_is_read_line_by_line() {
    let text = r#"{"time":1,"kind":"open","service":null,"endpoints":["http://127.0.0.1:1"]}
{"time":2,"kind":"reset","revision":4,"instances":[["a-1",7,4,4]]}
{"time":3,"kind":"events","revision":5,"events":[{"revision":5,"change":"expire","entry":["a-1",7,4,4]}]}
{"time":4,"kind":"progress","revision":5}
"#;
    let transcript = Transcript::read("w1", text.as_bytes()).expect("well-formed");
    assert_eq!(transcript.service, None);
    let mut written = Vec::new();
    for message in &transcript.messages {
        crate::history::write_line(&mut written, message).expect("memory takes everything");
    }
    let rest = text.split_once('\n').expect("several lines").1;
    assert_eq!(String::from_utf8(written).expect("JSON is UTF-8"), rest);
}

#[test]
fn a_transcript_begins_with_an_open() {
    let error = Transcript::read("w1", r#"{"time":4,"kind":"progress","revision":5}"#.as_bytes());
    expect!["line 1: watch w1: the first line is not an open"]
        .assert_eq(&error.expect_err("it does not").to_string());
}
