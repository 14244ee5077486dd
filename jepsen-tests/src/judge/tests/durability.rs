use expect_test::expect;

use super::check;

#[test]
fn what_was_acknowledged_is_on_every_node() {
    check(
        "
        1..3 register web-1 10 = 1
        1..4 register web-2 11 = 2
        5..6 register web-1 12 = 3
        5..8 deregister web-2 = found 4
        9..10 list * final on node-1 = web-1:12@3/3 at 4
        9..10 list * final on node-2 = web-1:10@1/1 at 4
        9..10 list * final on node-3 = web-2:11@2/2 at 4
        ",
        expect![[r#"
            D1: the final read of node-2 (line 12) shows web-1 of 1, but 3 was acknowledged (line 6)
            S7: the final read of node-2 (line 12) differs from another node's at revision 4
            D1: the final read of node-3 (line 13) lacks web-1, acknowledged at 3 (line 6)
            D1: the final read of node-3 (line 13) shows web-2 of 2, but 4 was acknowledged (line 7)
            S7: the final read of node-3 (line 13) differs from another node's at revision 4"#]],
    );
}

#[test]
fn who_may_have_undone_it_excuses_it() {
    check(
        "
        1..3 register web-1 10 = 1
        1..4 register web-2 11 = 2
        5..? register web-1 12
        5..? deregister web-2
        1..4 register lease-1 13 ttl 3000 = 3
        19000..19010 list * final on node-1 = web-1:12@4/4 at 5
        ",
        expect![[""]],
    );
}

#[test]
fn a_refused_write_excuses_nothing() {
    check(
        "
        1..3 register web-1 10 = 1
        5..6 register web-1 12 = fail
        5..6 deregister web-1 = fail
        9..10 list * final on node-1 = web-1:12@4/4 at 5
        9..10 list * final on node-2 = at 5
        ",
        expect![[r#"
            S8: line 6 shows web-1=12, though the write of line 2 was refused
            D1: the final read of node-1 (line 8) shows web-1 of 4, newer than line 1, written by nobody
            D1: the final read of node-2 (line 9) lacks web-1, acknowledged at 1 (line 1)
            S7: the final read of node-2 (line 9) differs from another node's at revision 5"#]],
    );
}

#[test]
fn a_hole_swallows_nothing() {
    check(
        "
        watch w1 @0 reset 0
        1..3 register web-1 10 = 1
        watch w1 @3 events 1 | 1 put web-1:10@1/1
        4..6 register web-2 11 = 2
        7..9 register web-3 12 = 3
        watch w1 @20 reset 3 web-1:10@1/1 web-3:12@3/3
        ",
        expect!["D1: the snapshot at 3 after a hole from 1 lacks web-2, acknowledged at 2 (line 3)"],
    );
}
