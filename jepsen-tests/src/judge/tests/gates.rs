use expect_test::{Expect, expect};

use super::story::Story;
use crate::history::{F, Gates};

#[track_caller]
fn check(script: &str, expected: Expect) {
    let gates = Gates {
        faults: vec!["kill-leader".into(), "pause-one".into()],
        calls_per_second_min: 2,
        unknown_percent_max: 10,
        ok_percent_min: 50,
        calls: vec![F::Register, F::Renew],
        uncovered_percent_max: 100,
        final_reads: true,
    };
    let story = Story::gated(script, gates);
    let report = crate::judge::judge(&story.history, &story.transcripts).expect("scripts are well-formed");
    expected.assert_eq(&report.gates.join("\n"));
}

#[test]
fn an_idle_run_proves_nothing() {
    check(
        "0..1 register web-1 10 = fail",
        expect![[r#"
        kill-leader was not installed and healed
        pause-one was not installed and healed
        no register succeeded
        no renew succeeded
        0 acknowledged calls per second before the first fault, under 2
        node-1 answered no final read of everything
        node-2 answered no final read of everything
        node-3 answered no final read of everything"#]],
    );
}

#[test]
fn a_run_that_did_its_work_counts() {
    check(
        "
        0..1 register web-1 10 = 1
        2..3 register lease-1 11 ttl 3000 = 2
        900..901 renew lease-1 2 = true
        1000 kill leader 1 node-1 led node-1 installed
        1100..1200 register web-1 12 = 3
        2000 kill leader 1 node-1 led node-1 healed
        2000 pause one 2 node-1 led node-2 installed
        3000 pause one 2 node-1 led node-2 healed
        4000..4001 list * final on node-1 = web-1:12@3/3 lease-1:11@2/2 at 3
        4000..4001 list * final on node-2 = web-1:12@3/3 lease-1:11@2/2 at 3
        4000..4001 list * final on node-3 = web-1:12@3/3 lease-1:11@2/2 at 3
        ",
        expect![[""]],
    );
}

#[test]
fn a_run_that_only_suffered_does_not() {
    check(
        "
        0..1 register web-1 10 = 1
        1000 kill leader 1 node-1 led node-1 installed
        1100..1200 register web-1 12 = fail
        1300..? register web-1 13
        2000 kill leader 1 node-1 led node-1 healed
        2000 pause one 2 led node-2 skipped
        4000..4001 list * final on node-1 = fail
        4000..4001 list * final on node-2 = web-1:10@1/1 at 1
        ",
        expect![[r#"
            pause-one was not installed and healed
            no renew succeeded
            1 acknowledged calls per second before the first fault, under 2
            1 of 5 outcomes are unknown, over 10 %
            the final call of line 8 is not ok: no outcome
            node-1 answered no final read of everything
            node-3 answered no final read of everything"#]],
    );
}

#[test]
fn a_registry_that_stops_with_its_first_node_does_not_count() {
    let refused: String =
        (0..60).map(|at| format!("{}..{} register web-1 {at} = fail\n", 1100 + at, 1101 + at)).collect();
    check(
        &format!(
            "
            0..1 register web-1 100 = 1
            2..3 register lease-1 101 ttl 3000 = 2
            900..901 renew lease-1 2 = true
            1000 kill leader 1 node-1 led node-1 installed
            {refused}
            2000 kill leader 1 node-1 led node-1 healed
            "
        ),
        expect![[r#"
            pause-one was not installed and healed
            0 of 60 calls succeeded while a majority was up, under 50 %
            node-1 answered no final read of everything
            node-2 answered no final read of everything
            node-3 answered no final read of everything"#]],
    );
}
