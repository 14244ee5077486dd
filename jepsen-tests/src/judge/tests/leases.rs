use expect_test::expect;

use super::check;

#[test]
fn an_abandoned_lease_expires_in_time() {
    check(
        "
        watch a @0 reset 0
        1..5 register lease-1 10 ttl 3000 = 1
        watch a @5 events 1 | 1 put lease-1:10@1/1
        1000..1005 renew lease-1 1 = true
        2000..2005 renew lease-1 1 = true
        watch a @5300 events 2 | 2 expire lease-1:10@1/1
        9000..9005 list * = at 2
        ",
        expect![[""]],
    );
}

#[test]
fn e1_not_before_the_ttl_after_the_last_acknowledged_renewal() {
    check(
        "
        watch a @0 reset 0
        1..5 register lease-1 10 ttl 3000 = 1
        watch a @5 events 1 | 1 put lease-1:10@1/1
        2000..2005 renew lease-1 1 = true
        watch a @4900 events 2 | 2 expire lease-1:10@1/1
        ",
        expect!["E1: lease-1 of 1 was gone 100 ms before its lease ran out"],
    );
}

#[test]
fn e1_nor_by_a_lost_answer() {
    check(
        "
        1..5 register lease-1 10 ttl 3000 = 1
        1500..1505 renew lease-1 1 = true
        2000..2005 renew lease-1 1 = false
        ",
        expect!["E1: lease-1 of 1 was gone 2495 ms before its lease ran out"],
    );
}

#[test]
fn e1_what_lives_for_ever_does_not_expire() {
    check(
        "
        watch a @0 reset 0
        1..5 register web-1 10 = 1
        watch a @9900 events 2 | 1 put web-1:10@1/1 | 2 expire web-1:10@1/1
        ",
        expect!["E1: web-1 expired at 2, long before its TTL"],
    );
}

#[test]
fn e6_who_keeps_trying_is_not_forgotten() {
    let trying = |last: &str| {
        format!(
            "
            watch a @0 reset 0
            1..5 register lease-1 10 ttl 3000 = 1
            watch a @5 events 1 | 1 put lease-1:10@1/1
            100 pause majority 1 node-1 node-2 led node-1 installed
            1000..? renew lease-1 1
            2000..? renew lease-1 1
            3000..? renew lease-1 1
            4000 pause majority 1 node-1 node-2 led node-1 healed
            {last}
            watch a @5500 events 2 | 2 expire lease-1:10@1/1
            "
        )
    };
    check(
        &trying("4100..4105 renew lease-1 1 = false"),
        expect!["E6: lease-1 of 1 is gone although its client never stopped trying"],
    );
    check(&trying(""), expect![[""]]);
}

#[test]
fn e3_gone_is_gone() {
    check(
        "
        watch a @0 reset 0
        1..5 register lease-1 10 ttl 3000 = 1
        10..15 register lease-1 11 ttl 3000 = 2
        watch a @15 events 2 | 1 put lease-1:10@1/1 | 2 put lease-1:11@2/2
        20..25 renew lease-1 1 = true
        20..26 renew lease-1 2 = true
        30..35 deregister lease-1 = found 3
        watch a @36 events 3 | 3 delete lease-1:11@2/2
        40..45 renew lease-1 2 = true
        ",
        expect![[r#"
            E3: line 4 renewed lease-1 of 1, gone at 2
            E3: line 10 renewed lease-1 of 2, gone at 3"#]],
    );
}

#[test]
fn e2_a_dead_instance_does_not_stay() {
    let abandoned = |fault: &str| {
        format!(
            "
            watch a @0 reset 0
            1..5 register lease-1 10 ttl 3000 = 1
            watch a @5 events 1 | 1 put lease-1:10@1/1
            {fault}
            1000..1005 renew lease-1 1 = true
            watch a @9000 events 2 | 2 expire lease-1:10@1/1
            "
        )
    };
    check(&abandoned(""), expect!["E2: lease-1 of 1 was gone 3495 ms after it had to be gone"]);
    check(
        &abandoned(
            "2000 pause one 1 node-2 led node-1 installed
             3000 pause one 1 node-2 led node-1 healed",
        ),
        expect!["E2: lease-1 of 1 was gone 3495 ms after it had to be gone"],
    );
    check(
        &abandoned(
            "2000 kill leader 1 node-1 led node-1 installed
             3000 kill leader 1 node-1 led node-1 healed",
        ),
        expect![[""]],
    );
}

#[test]
fn e2_nor_for_ever() {
    check(
        "
        watch a @0 reset 0
        1..5 register lease-1 10 ttl 3000 = 1
        watch a @5 events 1 | 1 put lease-1:10@1/1
        watch a @20000 progress 1
        20000..20005 list * = lease-1:10@1/1 at 1
        ",
        expect!["E2: lease-1 of 1 was still there 15500 ms after it had to be gone"],
    );
}
