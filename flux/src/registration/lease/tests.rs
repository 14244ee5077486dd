use std::fmt::Write as _;

use expect_test::{Expect, expect};

use super::*;

/// Runs a script of answers, each with how long it took to come, against a lease of 9 s. After each line:
/// whether the lease is held, and what comes next in how many milliseconds, rounded up to 50.
fn check(script: &str, want: Expect) {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut now = Instant::now();
    let mut lease = Lease::registered(Duration::from_secs(9), 1, now, &mut rng);
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (answer, took) = line.split_once(" after ").expect("ANSWER after MS");
        let sent_at = now.max(lease.due().0);
        now = sent_at + Duration::from_millis(took.parse().expect("milliseconds"));
        match answer {
            "renewed" => lease.renewed(sent_at, &mut rng),
            "lost" => lease.lost(now, &mut rng),
            "failed" => lease.failed(now, &mut rng),
            "registered" => lease = Lease::registered(Duration::from_secs(9), 2, sent_at, &mut rng),
            other => panic!("unknown answer {other}"),
        }
        let (at, step) = lease.due();
        let wait = at.saturating_duration_since(now).as_millis().div_ceil(50) * 50;
        let held = if lease.is_held(now) { "held" } else { "not held" };
        writeln!(out, "{line:<22} {held:<8} {step:?} in {wait} ms").expect("strings take everything");
    }
    want.assert_eq(&out);
}

#[test]
fn beats_at_a_third_and_retries_soon() {
    check(
        "
        renewed after 10
        failed after 100
        failed after 3000
        failed after 3000
        failed after 3000
        renewed after 10
        ",
        expect![[r#"
            renewed after 10       held     Beat { reg_rev: 1 } in 2950 ms
            failed after 100       held     Beat { reg_rev: 1 } in 200 ms
            failed after 3000      held     Beat { reg_rev: 1 } in 300 ms
            failed after 3000      not held Beat { reg_rev: 1 } in 450 ms
            failed after 3000      not held Beat { reg_rev: 1 } in 600 ms
            renewed after 10       held     Beat { reg_rev: 1 } in 2800 ms
        "#]],
    );
}

#[test]
fn a_lost_lease_is_registered_again_for_ever() {
    check(
        "
        lost after 10
        failed after 0
        failed after 0
        failed after 0
        failed after 0
        failed after 0
        failed after 0
        failed after 0
        registered after 10
        ",
        expect![[r#"
            lost after 10          not held Register in 100 ms
            failed after 0         not held Register in 200 ms
            failed after 0         not held Register in 300 ms
            failed after 0         not held Register in 450 ms
            failed after 0         not held Register in 950 ms
            failed after 0         not held Register in 2900 ms
            failed after 0         not held Register in 2750 ms
            failed after 0         not held Register in 2850 ms
            registered after 10    held     Beat { reg_rev: 2 } in 2900 ms
        "#]],
    );
}
