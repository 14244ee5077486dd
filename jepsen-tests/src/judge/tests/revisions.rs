use expect_test::expect;

use super::check;

#[test]
fn a_plain_run_is_good() {
    check(
        "
        watch w1 @0 reset 0
        1..5 register web-1 10 = 1
        watch w1 @4 events 1 | 1 put web-1:10@1/1
        6..7 read web-1 = 10@1/1 at 1
        6..9 register web-1 11 = 2
        8..12 deregister web-1 = found 3
        watch w1 @13 events 3 | 2 put web-1:11@2/2 | 3 delete web-1:11@2/2
        14..15 read web-1 = nothing
        14..16 list * = at 3
        16..18 deregister web-1 = none 3
        20..? register web-2 12
        watch w1 @30 events 4 | 4 put web-2:12@4/4
        31..33 list web = web-2:12@4/4 at 4
        ",
        expect![[""]],
    );
}

#[test]
fn two_writes_cannot_make_one_revision() {
    check(
        "
        1..5 register web-1 10 = 1
        1..6 register web-2 11 = 1
        ",
        expect!["S2: lines 2 and 3 both made revision 1"],
    );
}

#[test]
fn a_later_write_has_a_higher_revision() {
    check(
        "
        1..5 register web-1 10 = 7
        6..9 register web-2 11 = 6
        ",
        expect!["S2: line 3 wrote revision 6, but 7 was known before it"],
    );
}

#[test]
fn concurrent_calls_may_take_any_order() {
    check(
        "
        1..9 register web-1 10 = 7
        2..5 register web-2 11 = 6
        3..5 register web-3 12 = 8
        5..6 list * = web-1:10@7/7 web-2:11@6/6 web-3:12@8/8 at 8
        ",
        expect![[""]],
    );
}

#[test]
fn a_stale_read_is_no_linearizable_one() {
    let script = |stale| {
        format!(
            "
            watch w1 @0 reset 0
            1..3 register web-1 10 = 1
            4..5 register web-1 11 = 2
            watch w1 @6 events 2 | 1 put web-1:10@1/1 | 2 put web-1:11@2/2
            7..8 read web-1 {stale} = 10@1/1 at 1
            "
        )
    };
    check(&script(""), expect!["S2: line 5 read at 1, but 2 was known before it"]);
    check(&script("stale"), expect![[""]]);
}

#[test]
fn what_a_watcher_knew_a_later_read_must_know() {
    check(
        "
        watch w1 @0 reset 0
        1..? register web-1 10
        watch w1 @5 events 1 | 1 put web-1:10@1/1
        6..8 list * = at 0
        ",
        expect!["S2: line 2 read at 0, but 1 was known before it"],
    );
}

#[test]
fn stale_reads_of_one_node_do_not_go_back() {
    check(
        "
        watch w1 @0 reset 0
        1..3 register web-1 10 = 1
        watch w1 @3 events 1 | 1 put web-1:10@1/1
        4..5 list * stale by c on node-1 = web-1:10@1/1 at 1
        6..7 list * stale by c on node-1 = at 0
        8..9 list * stale by d on node-1 = at 0
        10..11 list * stale by c on node-2 = at 0
        12..13 register web-2 11 by e on node-2 = 2
        14..15 list * stale by e on node-2 = web-1:10@1/1 at 1
        ",
        expect!["S4: c on node-1 went back from 1 (line 3) to 0 (line 5)"],
    );
}

#[test]
fn a_read_shows_the_catalog_of_its_revision() {
    check(
        "
        watch w1 @0 reset 0
        1..3 register web-1 10 = 1
        1..4 register web-2 11 = 2
        watch w1 @5 events 2 | 1 put web-1:10@1/1 | 2 put web-2:11@2/2
        6..7 list * = web-1:10@1/1 at 2
        6..7 list * = web-1:10@1/1 web-2:11@2/2 web-3:11@2/2 at 2
        6..7 read web-2 = 10@1/1 at 2
        6..7 read web-2 = nothing
        ",
        expect![[r#"
            S3: line 11 did not find web-2, which was there
            S3: line 8 lists revision 2 wrongly in 1 places: web-2 None where Record { value: Some(11), reg_rev: 2, mod_rev: 2 } was
            S3: line 9 lists revision 2 wrongly in 1 places: web-3 is extra
            S3: line 10 read web-2 at 2 as Some(Record { value: Some(10), reg_rev: 1, mod_rev: 1 }), it was Some(Record { value: Some(11), reg_rev: 2, mod_rev: 2 })
            S8: line 5 shows web-3=11, which line 1 wrote under another id
            S8: line 6 shows web-2=10, which line 0 wrote under another id"#]],
    );
}

#[test]
fn an_acknowledged_write_is_in_the_log() {
    check(
        "
        watch w1 @0 reset 0
        1..3 register web-1 10 = 1
        1..4 deregister web-2 = found 2
        watch w1 @5 events 2 | 1 put web-1:11@1/1 | 2 put web-3:12@2/2
        ",
        expect![[r#"
            S1: line 2 was acknowledged at revision 1, the log has another
            S1: line 3 was acknowledged at revision 2, the log has another
            S8: revision 1 puts web-1=11, which nobody wrote
            S8: revision 2 puts web-3=12, which nobody wrote"#]],
    );
}

#[test]
fn nothing_happens_unasked() {
    check(
        "
        watch w1 @0 reset 0
        1..3 register web-1 10 = fail
        20..? register web-2 11
        1..? register web-3 12
        1..? register web-4 13
        watch w1 @9 events 5 | 1 put web-1:10@1/1 | 2 put web-2:11@2/2 | 3 put web-3:12@3/3 | 4 put web-9:13@4/4 | 5 delete web-3:12@3/3
        ",
        expect![[r#"
            S8: revision 1 puts web-1=10, though the write of line 0 was refused
            S8: revision 2 puts web-2=11 before line 4 wrote it
            S8: revision 4 puts web-9=13, which line 2 wrote under another id
            S8: revision 5 deletes web-3, unasked"#]],
    );
}

#[test]
fn an_unknown_write_takes_effect_once() {
    check(
        "
        watch w1 @0 reset 0
        1..? register web-1 10
        2..4 register web-1 11 = 2
        watch w1 @9 events 3 | 1 put web-1:10@1/1 | 2 put web-1:11@2/2 | 3 put web-1:10@3/3
        ",
        expect!["S8: line 0 took effect at 1 and at 3"],
    );
}

#[test]
fn a_swap_meets_what_it_expected() {
    check(
        "
        watch w1 @0 reset 0
        1..3 cas cas-1 _>10@0 = 1
        4..6 cas cas-1 10>11@1 = 2
        5..7 cas cas-1 10>12@1 = 3
        watch w1 @9 events 3 | 1 put cas-1:10@1/1 | 2 put cas-1:11@2/2 | 3 put cas-1:12@3/3
        ",
        expect![[r#"
            S9: line 5 swapped cas-1 at 2 + 1 expecting 1, 2 was there
            S2: the 3 calls of cas-1 have no order"#]],
    );
}

#[test]
fn inside_a_hole_nothing_is_replayed() {
    check(
        "
        watch w1 @0 reset 0
        1..3 register web-1 10 = 1
        watch w1 @3 events 1 | 1 put web-1:10@1/1
        4..6 register web-2 11 = 2
        7..8 list * = web-1:10@1/1 web-2:11@2/2 at 2
        7..9 register web-3 12 = 3
        watch w1 @20 reset 3 web-1:10@1/1 web-2:11@2/2 web-3:12@3/3
        21..22 list * = web-1:10@1/1 at 3
        ",
        expect![
            "S3: line 9 lists revision 3 wrongly in 2 places: web-2 None where Record { value: Some(11), reg_rev: 2, mod_rev: 2 } was"
        ],
    );
}

#[test]
fn a_removal_that_somebody_owns_was_not_made_by_another() {
    check(
        "
        watch w1 @0 reset 0
        0..? deregister web-1
        5..? register web-1 10
        watch w1 @9 events 1 | 1 put web-1:10@1/1
        10..12 read web-1 = nothing
        20..25 deregister web-1 = found 2
        watch w1 @23 events 2 | 2 delete web-1:10@1/1
        ",
        expect![[r#"
            S2: line 5 wrote revision 2, but 2 was known before it
            S3: line 3 did not find web-1, which was there"#]],
    );
}

#[test]
fn what_was_found_gone_is_not_read_again() {
    check(
        "
        watch w1 @0 reset 0
        0..3 register web-1 10 = 1
        watch w1 @5 events 1 | 1 put web-1:10@1/1
        10..? deregister web-1
        12..14 read web-1 = nothing
        20..22 read web-1 = 10@1/1 at 1
        watch w1 @30 events 2 | 2 delete web-1:10@1/1
        ",
        expect!["S2: line 6 read at 1, but 2 was known before it"],
    );
}

#[test]
fn a_call_of_unknown_outcome_removes_once() {
    check(
        "
        watch w1 @0 reset 0
        0..? register web-1 10
        watch w1 @5 events 1 | 1 put web-1:10@1/1
        0..? deregister web-1
        watch w1 @6 events 2 | 2 delete web-1:10@1/1
        10..? register web-1 11
        watch w1 @15 events 3 | 3 put web-1:11@3/3
        18..19 read web-1 = nothing
        20..? deregister web-1
        watch w1 @25 events 4 | 4 delete web-1:11@3/3
        ",
        expect!["S3: line 4 did not find web-1, which was there"],
    );
}
