//! The account of what was acknowledged: what it accepts, and what it finds.

use expect_test::{Expect, expect};

use crate::history::Entry;
use crate::judge::ledger::Ledger;

/// Plays a script, then judges what a node shows. A line is a key and what happened to it:
/// `a 7 ack@3` put 7, acknowledged at revision 3 · `a - ack@4 was` / `not` deregistered, and the answer said it was or was not there
/// · `a 7 lost` no answer · `a 7 refused`. `shows R: a=7@3 ...` is a read of everything at revision R.
#[track_caller]
fn check(script: &str, expected: Expect) {
    let mut ledger = Ledger::default();
    let mut wrong = Vec::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(shown) = line.strip_prefix("shows ") {
            let (revision, entries) = shown.split_once(':').expect("shows R:");
            let entries: Vec<Entry> = entries.split_whitespace().map(entry).collect();
            wrong.extend(ledger.judge("node-1", revision.parse().expect("a revision"), &entries));
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        ledger.ask(words[0], words[1].parse().ok());
        match words[2] {
            "lost" => ledger.lost_track(),
            "refused" => ledger.refused(words[0]),
            ack => {
                let revision = ack.strip_prefix("ack@").expect("ack@R").parse().expect("a revision");
                ledger.ack(words[0], Some(revision), words.get(3).map(|word| *word == "was"));
            }
        }
    }
    expected.assert_eq(&wrong.join("\n"));
}

fn entry(text: &str) -> Entry {
    let (key, rest) = text.split_once('=').expect("key=value@revision");
    let (value, revision) = rest.split_once('@').expect("value@revision");
    let revision = revision.parse().expect("a revision");
    Entry(key.into(), value.parse().ok(), revision, revision)
}

#[test]
fn what_was_acknowledged_and_is_there_passes() {
    check("a 1 ack@1\nb 2 ack@2\nb - ack@3 was\na 3 ack@4\nshows 4: a=3@4\nshows 9: a=3@4", expect![""]);
}

#[test]
fn a_lost_registration_is_found() {
    check(
        "a 1 ack@1\nb 2 ack@2\nshows 2: b=2@2",
        expect!["node-1 has a as Nothing; acknowledged was Value { value: 1, mod_rev: Some(1) }"],
    );
}

#[test]
fn a_lost_overwrite_is_found() {
    check(
        "a 1 ack@1\na 2 ack@2\nshows 2: a=1@1",
        expect![
            "node-1 has a as Value { value: 1, mod_rev: Some(1) }; acknowledged was Value { value: 2, mod_rev: Some(2) }"
        ],
    );
}

#[test]
fn a_lost_deregistration_is_found() {
    check(
        "a 1 ack@1\na - ack@2 was\nshows 2: a=1@1",
        expect!["node-1 has a as Value { value: 1, mod_rev: Some(1) }; acknowledged was Nothing"],
    );
}

#[test]
fn a_write_that_got_another_revision_is_found() {
    check(
        "a 1 ack@1\nshows 3: a=1@3",
        expect![
            "node-1 has a as Value { value: 1, mod_rev: Some(3) }; acknowledged was Value { value: 1, mod_rev: Some(1) }"
        ],
    );
}

#[test]
fn a_revision_that_goes_back_is_found() {
    check("a 1 ack@7\na - ack@8 was\nshows 7:", expect!["node-1 is at revision 7, and 8 was seen before"]);
}

#[test]
fn what_nobody_asked_for_is_found() {
    check("a 1 ack@1\nshows 2: a=1@1 z=9@2", expect!["node-1 has z, which nobody asked for"]);
}

#[test]
fn a_refused_write_that_happened_is_found() {
    check(
        "a 1 ack@1\na 2 refused\nshows 2: a=2@2",
        expect![
            "node-1 has a as Value { value: 2, mod_rev: Some(2) }; acknowledged was Value { value: 1, mod_rev: Some(1) }"
        ],
    );
}

#[test]
fn an_unknown_write_may_have_happened_or_not_but_never_unhappens() {
    check("a 1 ack@1\na 2 lost\nshows 1: a=1@1", expect![""]);
    check("a 1 ack@1\na - lost\nshows 2:", expect![""]);
    check(
        "a 1 ack@1\na 2 lost\nshows 2: a=2@2\nshows 3: a=1@1",
        expect![
            "node-1 has a as Value { value: 1, mod_rev: Some(1) }; acknowledged was Value { value: 2, mod_rev: Some(2) }"
        ],
    );
}

#[test]
fn a_deregistration_that_found_nothing_where_something_was_is_found() {
    check(
        "a 1 ack@1\na - ack@1 not\nshows 1:",
        expect![[
            "a was Value { value: 1, mod_rev: Some(1) } before it was deregistered, and the answer denies it"
        ]],
    );
}
