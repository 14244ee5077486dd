use expect_test::{Expect, expect};

/// What is told by a second watcher, beside one that is right.
#[track_caller]
fn check(told: &str, expected: Expect) {
    let script = format!(
        "
        1..3 register web-1 10 = 1
        1..4 register cas-1 11 = 2
        5..8 deregister web-1 = found 3
        watch a @0 reset 0
        watch a @4 events 2 | 1 put web-1:10@1/1 | 2 put cas-1:11@2/2
        watch a @9 events 3 | 3 delete web-1:10@1/1
        {told}
        "
    );
    super::check(&script, expected);
}

#[test]
fn a_watcher_may_come_late_and_take_small_steps() {
    check(
        "
        watch b @3 reset 1 web-1:10@1/1
        watch b @4 progress 1
        watch b @5 events 2 | 2 put cas-1:11@2/2
        watch b @9 events 3 | 3 delete web-1:10@1/1
        watch c/web @0 reset 0
        watch c/web @4 events 1 | 1 put web-1:10@1/1
        watch c/web @6 progress 2
        watch c/web @9 events 3 | 3 delete web-1:10@1/1
        ",
        expect![[""]],
    );
}

#[test]
fn w1_order() {
    check(
        "
        watch b @0 reset 0
        watch b @4 events 2 | 2 put cas-1:11@2/2 | 1 put web-1:10@1/1
        watch b @5 progress 1
        ",
        expect![[r#"
            W1: watch b at 4000000 ns: revision 1 after 2
            W3: watch b at 4000000 ns: between 0 and 2: order or number differ from the log
            W1: watch b at 5000000 ns: the position goes back from 2 to 1"#]],
    );
}

#[test]
fn w2_once() {
    check(
        "
        watch b @0 reset 0
        watch b @4 events 2 | 1 put web-1:10@1/1 | 1 put web-1:10@1/1 | 2 put cas-1:11@2/2
        ",
        expect![[r#"
            W2: watch b at 4000000 ns: web-1 twice in revision 1
            W3: watch b at 4000000 ns: between 0 and 2: order or number differ from the log"#]],
    );
}

#[test]
fn w3_no_gap() {
    check(
        "
        watch b @0 reset 0
        watch b @4 events 2 | 2 put cas-1:11@2/2
        ",
        expect![[
            r#"W3: watch b at 4000000 ns: between 0 and 2: lacks Event { revision: 1, change: Put, entry: Entry("web-1", Some(10), 1, 1) }"#
        ]],
    );
}

#[test]
fn w3_no_gap_that_all_share() {
    super::check(
        "
        1..3 register web-1 10 = 1
        1..4 register web-2 11 = 2
        watch a @0 reset 0
        watch a @9 events 2 | 2 put web-2:11@2/2
        ",
        expect![[r#"
            W3: no watcher was told of 1 up to 1
            S1: line 2 was acknowledged at revision 1, the log has another"#]],
    );
}

#[test]
fn w4_a_revision_in_one_message() {
    super::check(
        "
        1..3 register lease-1 10 ttl 3000 = 1
        1..4 register lease-2 11 ttl 3000 = 2
        watch a @0 reset 0
        watch a @4 events 2 | 1 put lease-1:10@1/1 | 2 put lease-2:11@2/2
        watch a @4000 events 3 | 3 expire lease-1:10@1/1 | 3 expire lease-2:11@2/2
        watch b @0 reset 0
        watch b @4 events 2 | 1 put lease-1:10@1/1 | 2 put lease-2:11@2/2
        watch b @4000 events 3 | 3 expire lease-1:10@1/1
        watch b @4001 events 3 | 3 expire lease-2:11@2/2
        ",
        expect![[r#"
            W3: watch b at 4000000000 ns: between 2 and 3: lacks Event { revision: 3, change: Expire, entry: Entry("lease-2", Some(11), 2, 2) }
            W1: watch b at 4001000000 ns: revision 3 again or late, after 3"#]],
    );
}

#[test]
fn w5_resumed_after_the_position() {
    check(
        "
        watch b @0 reset 0
        watch b @4 events 2 | 1 put web-1:10@1/1 | 2 put cas-1:11@2/2
        watch b @9 events 3 | 2 put cas-1:11@2/2 | 3 delete web-1:10@1/1
        ",
        expect!["W1: watch b at 9000000 ns: revision 2 again or late, after 2"],
    );
}

#[test]
fn w6_progress_skips_nothing() {
    check(
        "
        watch b @0 reset 0
        watch b @4 progress 2
        ",
        expect![[
            r#"W6: watch b at 4000000 ns: between 0 and 2: lacks Event { revision: 1, change: Put, entry: Entry("web-1", Some(10), 1, 1) }"#
        ]],
    );
}

#[test]
fn w8_only_its_service() {
    check(
        "
        watch b/web @0 reset 0
        watch b/web @4 events 2 | 1 put web-1:10@1/1 | 2 put cas-1:11@2/2
        ",
        expect![[r#"
            W8: watch b at 4000000 ns: cas-1 is of another service
            W3: watch b at 4000000 ns: between 0 and 2: Event { revision: 2, change: Put, entry: Entry("cas-1", Some(11), 2, 2) } is not in the log"#]],
    );
}

#[test]
fn w9_a_snapshot_does_not_go_back() {
    check(
        "
        watch b @3 reset 2 web-1:10@1/1 cas-1:11@2/2
        watch b @4 reset 1 web-1:10@1/1
        ",
        expect!["W9: watch b at 4000000 ns: a snapshot goes back from 2 to 1"],
    );
}

#[test]
fn w10_a_snapshot_is_the_replay() {
    check(
        "watch b @3 reset 2 web-1:10@1/1",
        expect!["W10: watch b: the snapshot at 2 is not the replay up to it"],
    );
}

#[test]
fn the_log_itself_makes_sense() {
    super::check(
        "
        1..3 register web-1 10 = 1
        1..4 register web-2 11 = 2
        1..4 deregister web-3 = found 3
        watch a @0 reset 0
        watch a @9 events 3 | 1 put web-1:10@1/1 | 2 put web-2:11@2/1 | 3 delete web-3:11@2/2
        ",
        expect![[r#"
            S1: revision 2 puts web-2 with mod_rev 1, reg_rev 2
            S1: revision 3 takes out Entry("web-3", Some(11), 2, 2), but nothing was there"#]],
    );
}
