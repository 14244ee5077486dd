//! The two judges against each other: random small histories of one key, right and wrong.

use proptest::prelude::*;

use super::story::Story;
use crate::judge::wgl::Answer;
use crate::judge::{judge, linear, log::Log};

/// One call: when it begins, how long until it takes effect, how long until it returns, what it does.
#[derive(Clone, Debug)]
struct Plan {
    begins: u64,
    effect_after: u64,
    returns_after: u64,
    what: What,
    known: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Write,
    Swap,
    Remove,
    Read,
}

fn plan() -> impl Strategy<Value = Plan> {
    let what = prop_oneof![Just(What::Write), Just(What::Swap), Just(What::Remove), Just(What::Read)];
    (0..30_u64, 0..6_u64, 0..6_u64, what, prop::bool::weighted(0.8)).prop_map(
        |(begins, effect_after, returns_after, what, known)| Plan {
            begins,
            effect_after,
            returns_after,
            what,
            known,
        },
    )
}

/// What a right registry does with the calls, as a script: effects one after another, at distinct times.
fn script_of(plans: &[Plan]) -> Vec<String> {
    let mut order: Vec<usize> = (0..plans.len()).collect();
    order.sort_by_key(|at| (plans[*at].begins + plans[*at].effect_after, *at));
    let mut lines = vec!["watch w @0 reset 0".to_owned()];
    let (mut revision, mut state) = (0_u64, None::<(u64, u64)>);
    for at in order {
        let Plan { begins, effect_after, returns_after, what, known } = plans[at];
        let (from, at_work) = (begins * 10, (begins + effect_after) * 10 + 5);
        let until = (begins + effect_after + returns_after) * 10 + 9;
        let value = at as u64 + 100;
        let times = if known { format!("{from}..{until}") } else { format!("{from}..?") };
        let answer = |text: String| if known { format!(" = {text}") } else { String::new() };
        let next = revision + 1;
        match what {
            What::Write | What::Swap => {
                let (before, expected) =
                    state.map_or(("_".into(), 0), |(value, rev)| (value.to_string(), rev));
                let call = match what {
                    What::Write => format!("register cas-1 {value}"),
                    _ => format!("cas cas-1 {before}>{value}@{expected}"),
                };
                lines.push(format!("{times} {call}{}", answer(next.to_string())));
                lines.push(format!(
                    "watch w @{at_work} events {next} | {next} put cas-1:{value}@{next}/{next}"
                ));
                (revision, state) = (next, Some((value, next)));
            }
            What::Remove => match state {
                Some((value, rev)) => {
                    lines.push(format!("{times} deregister cas-1{}", answer(format!("found {next}"))));
                    lines.push(format!(
                        "watch w @{at_work} events {next} | {next} delete cas-1:{value}@{rev}/{rev}"
                    ));
                    (revision, state) = (next, None);
                }
                None => lines.push(format!("{times} deregister cas-1{}", answer(format!("none {revision}")))),
            },
            What::Read => {
                let found = state
                    .map_or("nothing".into(), |(value, rev)| format!("{value}@{rev}/{rev} at {revision}"));
                lines.push(format!("{times} read cas-1{}", answer(found)));
            }
        }
    }
    lines
}

/// What the search says of the only key.
fn searched(story: &Story) -> Answer {
    let calls = story.history.calls().expect("scripts are well-formed");
    let mut findings = crate::judge::Findings::default();
    linear::check(&calls, &Log::merge(&story.transcripts), &mut findings);
    if findings.list().is_empty() { Answer::Linearizable } else { Answer::Illegal }
}

/// What the judge by revision says, without the search.
fn accused(story: &Story) -> Vec<String> {
    let report = judge(&story.history, &story.transcripts).expect("scripts are well-formed");
    let by_revision = report.violations.iter().filter(|it| !it.what.contains("have no order"));
    by_revision.map(|it| format!("{}: {}", it.rule, it.what)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn nobody_accuses_a_right_registry(plans in prop::collection::vec(plan(), 1..14)) {
        let script = script_of(&plans).join("\n");
        let story = Story::tell(&script);
        prop_assert_eq!(accused(&story), Vec::<String>::new(), "{}", script);
        prop_assert_eq!(searched(&story), Answer::Linearizable, "{}", script);
    }

    /// A read answers with what another read was to answer. Whatever the search refuses, the judge by revision refuses.
    #[test]
    fn the_judge_by_revision_sees_what_the_search_sees(
        plans in prop::collection::vec(plan(), 2..14),
        one in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
    ) {
        let mut lines = script_of(&plans);
        let reads: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].contains("read cas-1 = ")).collect();
        if reads.len() < 2 {
            return Ok(());
        }
        let (one, other) = (reads[one.index(reads.len())], reads[other.index(reads.len())]);
        let answer = lines[other].split_once(" = ").expect("a known read").1.to_owned();
        let asked = lines[one].split_once(" = ").expect("a known read").0.to_owned();
        lines[one] = format!("{asked} = {answer}");
        let script = lines.join("\n");
        let story = Story::tell(&script);
        if searched(&story) == Answer::Illegal {
            prop_assert!(!accused(&story).is_empty(), "{}", script);
        }
    }
}
