use expect_test::{Expect, expect};

use super::*;

const HEADER: &str = r#"{"format":"flux-history/1","seed":4711,"nodes":["n1","n2","n3"],"git":"x","argv":["jepsen"],"start":"2026-11-22T10:00:00Z"}"#;

fn read(lines: &str) -> Result<History, Error> {
    History::read(format!("{HEADER}\n{lines}").as_bytes())
}

/// The calls of a history, or why it is refused.
fn check(lines: &str, expected: Expect) {
    let calls = read(lines).and_then(|history| history.calls());
    let text = match calls {
        Err(error) => error.to_string(),
        Ok(calls) => calls
            .iter()
            .map(|call| {
                let (f, key, kind) = (call.f(), call.key().unwrap_or("*"), call.kind());
                format!("{f:?} {key} {kind:?} wrote={:?} returned={:?}", call.wrote(), call.returned())
            })
            .collect::<Vec<_>>()
            .join("\n"),
    };
    expected.assert_eq(&text);
}

#[test]
fn invocations_meet_their_outcomes() {
    check(
        r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"register","key":"pay-7","value":41,"node":"n2","client":"c3","seq":12}
{"index":1,"time":6,"process":4,"type":"invoke","f":"read","key":"pay-7","value":null,"consistency":"linearizable"}
{"index":2,"time":9,"process":3,"type":"ok","f":"register","key":"pay-7","value":41,"revision":88}
{"index":3,"time":9,"process":"nemesis","type":"info","f":"kill","value":{"fault":1,"scope":"one","nodes":["n1"]},"phase":"installed"}
{"index":4,"time":12,"process":4,"type":"ok","f":"read","key":"pay-7","value":41,"revision":88,"reg_rev":88,"mod_rev":88}
{"index":5,"time":20,"process":4,"type":"invoke","f":"deregister","key":"pay-7"}
{"index":6,"time":21,"process":4,"type":"info","f":"deregister","key":"pay-7","error":"timeout"}
{"index":7,"time":22,"process":5,"type":"invoke","f":"cas","key":"pay-7","value":[41,42],"expected":88}
{"index":8,"time":23,"process":5,"type":"fail","f":"cas","key":"pay-7","error":"precondition"}
{"index":9,"time":25,"process":3,"type":"invoke","f":"list","key":null}"#,
        expect![[r#"
            Register pay-7 Ok wrote=Some(88) returned=Some(9)
            Read pay-7 Ok wrote=None returned=Some(12)
            Deregister pay-7 Info wrote=None returned=None
            Cas pay-7 Fail wrote=None returned=Some(23)
            List * Info wrote=None returned=None"#]],
    );
}

#[test]
fn one_process_has_one_call_open() {
    check(
        r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"list"}
{"index":1,"time":6,"process":3,"type":"invoke","f":"list"}"#,
        expect!["line 3: process 3 already has a call open"],
    );
}

#[test]
fn after_an_unknown_outcome_a_process_is_not_used_again() {
    check(
        r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"list"}
{"index":1,"time":6,"process":3,"type":"info","f":"list"}
{"index":2,"time":7,"process":3,"type":"invoke","f":"list"}"#,
        expect!["line 4: process 3 was used again after an unknown outcome"],
    );
}

#[test]
fn an_outcome_needs_its_invocation() {
    check(
        r#"{"index":0,"time":5,"process":3,"type":"ok","f":"list","value":[]}"#,
        expect!["line 2: process 3 completes a call that it has not invoked"],
    );
    check(
        r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"list"}
{"index":1,"time":6,"process":3,"type":"ok","f":"read","value":4}"#,
        expect!["line 3: process 3 completes another call than it invoked"],
    );
}

#[test]
fn what_is_not_a_history_is_refused() {
    for (text, why) in [
        ("", "line 1: the file is empty"),
        (
            r#"{"format":"flux-history/9","seed":1,"nodes":[],"git":"","argv":[],"start":""}"#,
            "line 1: format",
        ),
    ] {
        let error = History::read(text.as_bytes()).expect_err("it is not one").to_string();
        assert!(error.starts_with(why), "{error}");
    }
    for (line, why) in [
        (r#"{"index":1,"time":5,"process":3,"type":"invoke","f":"list"}"#, "line 2: index 1 where 0 follows"),
        (r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"lis"#, "line 2: EOF"),
        (
            r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"dance"}"#,
            "line 2: unknown variant `dance`",
        ),
    ] {
        let error = read(line).expect_err("it is not one").to_string();
        assert!(error.starts_with(why), "{error}");
    }
}

#[test]
fn what_is_written_is_read() {
    let text = r#"{"index":0,"time":5,"process":3,"type":"invoke","f":"cas","key":"cas-1","value":[null,7],"expected":0,"ttl_ms":3000,"node":"n1","client":"c","seq":1}
{"index":1,"time":6,"process":3,"type":"ok","f":"cas","key":"cas-1","value":[null,7],"revision":1,"reg_rev":1,"mod_rev":1}
{"index":2,"time":7,"process":3,"type":"invoke","f":"list","key":null,"value":null,"consistency":"stale","final":true}
{"index":3,"time":8,"process":3,"type":"ok","f":"list","key":null,"value":[["cas-1",7,1,1],["old",null,1,1]],"revision":1,"final":true}
{"index":4,"time":9,"process":"nemesis","type":"info","f":"pause","value":{"fault":2,"scope":"leader","nodes":["n1"],"leader":"n1"},"phase":"healed"}
"#;
    let history = read(text).expect("well-formed");
    let mut written = Vec::new();
    for line in &history.lines {
        write_line(&mut written, line).expect("memory takes everything");
    }
    assert_eq!(String::from_utf8(written).expect("JSON is UTF-8"), text);
    assert_eq!(history.header.gates, Gates::default());
}
