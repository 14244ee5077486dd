use expect_test::{Expect, expect};
use proptest::prelude::*;

use crate::judge::wgl::{Action, Answer, Operation, search};

const STEPS: u64 = 1_000_000;

/// `0..5 write 1`, `0..? write 1`, `3..4 read 1`, `read _`, `swap 1>2`, `remove`, `remove found`, `remove none`.
#[track_caller]
fn check(script: &str, expected: Expect) {
    expected.assert_eq(&format!("{:?}", search(&parse(script), STEPS)));
}

fn parse(script: &str) -> Vec<Operation> {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (from, until) = words[0].split_once("..").expect("times");
            let action = match words[1..] {
                ["write", value] => Action::Write(value.parse().expect("a number")),
                ["read", value] => Action::Read(value.parse().ok()),
                ["swap", swap] => {
                    let (from, to) = swap.split_once('>').expect("from>to");
                    Action::Swap { from: from.parse().ok(), to: to.parse().expect("a number") }
                }
                ["remove"] => Action::Remove { found: None },
                ["remove", found] => Action::Remove { found: Some(found == "found") },
                _ => panic!("{line} is no operation"),
            };
            Operation { action, invoked: from.parse().expect("a number"), returned: until.parse().ok() }
        })
        .collect()
}

#[test]
fn an_empty_history_has_an_order() {
    check("", expect!["Linearizable"]);
}

#[test]
fn reads_see_the_last_write() {
    check("0..1 write 1\n2..3 read 1", expect!["Linearizable"]);
    check("0..1 write 1\n2..3 read _", expect!["Illegal"]);
    check("0..1 write 1\n1..3 read _", expect!["Linearizable"]);
}

#[test]
fn reads_do_not_go_back() {
    check("0..9 write 1\n1..2 read 1\n3..4 read _", expect!["Illegal"]);
    check("0..9 write 1\n1..4 read 1\n3..5 read _", expect!["Linearizable"]);
}

#[test]
fn an_unknown_write_happens_later_or_never() {
    check("0..? write 1\n5..6 read _\n7..8 read 1\n9..10 read 1", expect!["Linearizable"]);
    check("0..? write 1\n5..6 read _\n7..8 read _", expect!["Linearizable"]);
    check("0..? write 1\n5..6 read 1\n7..8 read _", expect!["Illegal"]);
}

#[test]
fn one_swap_wins() {
    check("0..1 write 1\n2..5 swap 1>2\n2..5 swap 1>3\n6..7 read 3", expect!["Illegal"]);
    check("0..1 write 1\n2..5 swap 1>2\n2..5 swap 2>3\n6..7 read 3", expect!["Linearizable"]);
}

#[test]
fn a_removal_finds_what_is_there() {
    check("0..1 remove none\n2..3 write 1\n4..5 remove found\n6..7 read _", expect!["Linearizable"]);
    check("0..1 write 1\n2..3 remove none", expect!["Illegal"]);
    check("0..1 write 1\n2..? remove\n6..7 read _\n8..9 swap _>4", expect!["Linearizable"]);
}

#[test]
fn a_budget_that_runs_out_is_no_verdict() {
    let many: String = (0..30).map(|n| format!("0..9 write {n}\n")).collect();
    let operations = parse(&format!("{many}10..11 read 99"));
    assert_eq!(search(&operations, 1_000), Answer::Unknown);
}

/// Tries every order.
fn by_force(operations: &[Operation]) -> bool {
    fn place(left: &mut Vec<Operation>, state: Option<u64>) -> bool {
        if left.iter().all(|operation| operation.returned.is_none()) {
            return true;
        }
        (0..left.len()).any(|at| {
            let operation = left[at];
            let first_return = left.iter().filter_map(|other| other.returned).min().unwrap_or(u64::MAX);
            let after = match operation.action {
                _ if operation.invoked > first_return => None,
                Action::Write(value) => Some(Some(value)),
                Action::Swap { from, to } if from == state => Some(Some(to)),
                Action::Remove { found } if found.is_none_or(|found| found == state.is_some()) => Some(None),
                Action::Read(value) if value == state => Some(state),
                _ => None,
            };
            after.is_some_and(|after| {
                let taken = left.swap_remove(at);
                let found = place(left, after);
                left.push(taken);
                let last = left.len() - 1;
                left.swap(at, last);
                found
            })
        })
    }
    place(&mut operations.to_vec(), None)
}

fn operation() -> impl Strategy<Value = Operation> {
    let value = || 0..3_u64;
    let seen = || prop::option::of(0..3_u64);
    let action = prop_oneof![
        value().prop_map(Action::Write),
        (seen(), value()).prop_map(|(from, to)| Action::Swap { from, to }),
        prop::option::of(any::<bool>()).prop_map(|found| Action::Remove { found }),
        seen().prop_map(Action::Read),
    ];
    (action, 0..12_u64, prop::option::weighted(0.8, 0..8_u64)).prop_map(|(action, invoked, took)| Operation {
        action,
        invoked,
        returned: took.map(|took| invoked + took),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn agrees_with_trying_every_order(operations in prop::collection::vec(operation(), 0..7)) {
        let wanted = if by_force(&operations) { Answer::Linearizable } else { Answer::Illegal };
        prop_assert_eq!(search(&operations, STEPS), wanted);
    }
}
