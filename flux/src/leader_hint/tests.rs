use std::fmt::Write as _;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Runs a script of what happens, one line each, with nodes named by their host. After each line: the order.
fn check(script: &str, want: Expect) {
    let node = |name: &str| Node::parse(&format!("http://{name}:1")).expect("a name is a host");
    let start = Instant::now();
    let mut now = start;
    let mut nodes: Option<Nodes> = None;
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let verb = words.next().expect("a line has a verb");
        let args: Vec<&str> = words.collect();
        if verb == "configured" {
            nodes = Some(Nodes::new(args.iter().map(|n| node(n)).collect()));
        }
        let nodes = nodes.as_mut().expect("a script begins with `configured`");
        match verb {
            "configured" => {}
            "answered" => nodes.answered(&node(args[0]), args.get(1).map(|n| node(n)).as_ref()),
            "hint" => nodes.follow(&node(args[0])),
            "failed" => nodes.failed(&node(args[0]), now),
            "learn" => nodes.learn(args.iter().map(|n| node(n))),
            "pass" => now += Duration::from_millis(args[0].parse().expect("milliseconds")),
            other => panic!("unknown verb {other}"),
        }
        let order: Vec<String> = nodes
            .order(now)
            .iter()
            .map(|n| n.rest.trim_start_matches("http://").trim_end_matches(":1").to_owned())
            .collect();
        writeln!(out, "{line:<22} {}", order.join(" ")).expect("strings take everything");
    }
    want.assert_eq(&out);
}

#[test]
fn the_hint_is_followed_at_once() {
    check(
        "
        configured a b c
        answered a c
        answered c c
        hint b
        ",
        expect![[r#"
            configured a b c       a b c
            answered a c           c a b
            answered c c           c a b
            hint b                 b c a
        "#]],
    );
}

#[test]
fn a_dead_leader_is_asked_last_however_often_it_is_named() {
    check(
        "
        configured a b c
        answered a c
        failed c
        answered a c
        pass 499
        pass 1
        failed c
        pass 999
        pass 1
        answered c c
        failed c
        pass 500
        ",
        expect![[r#"
            configured a b c       a b c
            answered a c           c a b
            failed c               a b c
            answered a c           a b c
            pass 499               a b c
            pass 1                 c a b
            failed c               a b c
            pass 999               a b c
            pass 1                 c a b
            answered c c           c a b
            failed c               a b c
            pass 500               c a b
        "#]],
    );
}

#[test]
fn members_are_learned_and_the_configured_are_never_forgotten() {
    check(
        "
        configured a
        learn a b c
        failed a
        answered b c
        learn d
        failed d
        failed c
        failed b
        ",
        expect![[r#"
            configured a           a
            learn a b c            a b c
            failed a               b c a
            answered b c           c b a
            learn d                c b d a
            failed d               c b a d
            failed c               b c a d
            failed b               c b a d
        "#]],
    );
}

#[test]
fn watches_spread_and_leave_a_node_for_another() {
    let node = |name: &str| Node::parse(name).expect("an endpoint");
    let mut nodes = Nodes::new(vec![node("a:1"), node("b:1"), node("c:1")]);
    let now = Instant::now();
    let order = |nodes: &Nodes, turn, left: Option<&Node>| {
        let order = nodes.order_for_watch(turn, left, now);
        order.iter().map(|n| n.rest.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(order(&nodes, 1, None), "http://b:1 http://c:1 http://a:1");
    assert_eq!(order(&nodes, 4, Some(&node("b:1"))), "http://c:1 http://a:1 http://b:1");
    nodes.failed(&node("c:1"), now);
    assert_eq!(order(&nodes, 4, Some(&node("b:1"))), "http://a:1 http://b:1 http://c:1");
}

#[test]
fn a_configured_address_stands_for_the_members_own() {
    let configured = Node::parse("127.0.0.1:8081").expect("an endpoint");
    let mut nodes = Nodes::new(vec![configured.clone()]);
    let member = Node::of_urls("http://127.0.0.1:9091", "http://127.0.0.1:8081").expect("addresses");
    nodes.answered(&configured, Some(&member));
    nodes.learn([member]);
    assert_eq!(nodes.order(Instant::now()), [configured]);
}

#[test]
fn endpoints_are_read_as_people_write_them() {
    let read = |text: &str| match Node::parse(text) {
        Ok(node) => node.rest.to_string(),
        Err(error) => error.to_string(),
    };
    let all = [
        "http://a:8081",
        "a:8081",
        " http://a:8081/ ",
        "http://a:8081/api/v1/services",
        "http://[::1]:8081",
        "https://a:8081",
        "http://a:80810",
        "http://",
        "",
        "http://a:1/x",
    ];
    let out: String = all.iter().map(|text| format!("{text:?} -> {}\n", read(text))).collect();
    expect![[r#"
        "http://a:8081" -> http://a:8081
        "a:8081" -> http://a:8081
        " http://a:8081/ " -> http://a:8081
        "http://a:8081/api/v1/services" -> http://a:8081
        "http://[::1]:8081" -> http://[::1]:8081
        "https://a:8081" -> "https://a:8081" is not an endpoint: only http:// is spoken
        "http://a:80810" -> "http://a:80810" is not an endpoint: the port is not one
        "http://" -> "http://" is not an endpoint: give it as http://host:port
        "" -> "" is not an endpoint: give it as http://host:port
        "http://a:1/x" -> "http://a:1/x" is not an endpoint: give it as http://host:port
    "#]]
    .assert_eq(&out);
}

proptest! {
    /// Whatever happens, every configured node stays in the order, once, and none is invented.
    #[test]
    fn configured_nodes_are_always_in_the_order(steps in prop::collection::vec((0u8..5, 0usize..6), 0..60)) {
        let all: Vec<Node> =
            ["a", "b", "c", "d", "e", "f"].iter().map(|n| Node::parse(n).expect("a host")).collect();
        let mut nodes = Nodes::new(all[..3].to_vec());
        let mut now = Instant::now();
        for (verb, at) in steps {
            let node = &all[at];
            match verb {
                0 => nodes.answered(node, None),
                1 => nodes.follow(node),
                2 => nodes.failed(node, now),
                3 => nodes.learn(all[at..].to_vec()),
                _ => now += Duration::from_millis(300 * at as u64),
            }
            let order = nodes.order(now);
            for configured in &all[..3] {
                prop_assert_eq!(order.iter().filter(|n| *n == configured).count(), 1);
            }
            prop_assert!(order.iter().all(|n| all.contains(n)));
        }
    }
}
