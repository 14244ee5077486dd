use expect_test::expect;

use super::*;

#[test]
fn a_report_says_what_is_met_and_what_is_not() {
    let least = |must, goal| Bound::AtLeast { must, goal };
    let lines = vec![
        Line::info("writes", "unary, 64 clients", vec![2.0, 2.5, 1.9], "x").held_to(least(1.8, 2.4)),
        Line::info("writes", "unary, 256 clients", vec![3.5], "x").held_to(least(2.3, 3.0)).with("12 000/s"),
        Line::info("kills", "gap p99", vec![1_710.0], "ms")
            .held_to(Bound::AtMost { must: 1_500.0, goal: 1_200.0 }),
        Line::info("kills", "kills", vec![10.0], ""),
        Line::info("kills", "without a sample", vec![], "ms")
            .held_to(Bound::AtMost { must: 1_500.0, goal: 1_200.0 }),
    ];
    let load = vec![("before".into(), 0.5)];
    let peers = vec![
        Peer { name: "etcd", version: None, package: "etcd-server" },
        Peer { name: "nginx", version: Some("1.22.1".into()), package: "nginx-light" },
    ];
    let report = Report { cores: 2, peers, load, seconds: 12.0, lines, ..Report::default() };
    assert_eq!(report.missed(), 2);
    expect![[r#"
        WHAT                VALUE     MUST        GOAL        MET   FROM
        -- writes
        unary, 64 clients   2.00x     ≥ 1.80x     ≥ 2.40x     must
        unary, 256 clients  3.50x     ≥ 2.30x     ≥ 3.00x     goal  12 000/s
        -- kills
        gap p99             1 710 ms  ≤ 1 500 ms  ≤ 1 200 ms  NO
        kills               10.0
        without a sample    NaN ms    ≤ 1 500 ms  ≤ 1 200 ms  NO

        2 cores; load average: before 0.5; etcd: not installed: apt-get install etcd-server; nginx: 1.22.1
        2 of 4 bounds met, in 12 s"#]]
    .assert_eq(&report.table());
}

#[test]
fn figures_are_grouped_and_short() {
    let shown: Vec<String> =
        [0.0, 0.456, 45.67, 456.7, 123_456.0, -1_234.0].map(|v| with_unit(v, "ms")).into();
    assert_eq!(shown, ["0 ms", "0.46 ms", "45.7 ms", "457 ms", "123 456 ms", "-1 234 ms"]);
}

#[test]
fn quantiles_are_by_nearest_rank() {
    let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
    assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&hundred, share)), [1.0, 50.0, 99.0, 100.0]);
    assert_eq!(quantile(&[7.0], 0.99), 7.0);
    assert!(quantile(&[], 0.5).is_nan() && median(&[]).is_nan());
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
}
