//! The README's reference says what the deserializer says, and its example is good.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const README: &str = include_str!("../../README.md");

/// Every block with the file in which its keys are asked for.
const BLOCKS: [(&str, &str); 17] = [
    ("key", "?"),
    ("key of `tracing`", "tracing: { ? }"),
    ("key of `queue`", "queue: { ? }"),
    ("key of `outlierDetection`", "outlierDetection: { ? }"),
    ("key of a route", "routes: [{ ? }]"),
    ("key of `match`", "routes: [{ match: { ? } }]"),
    ("key of `path`", "routes: [{ match: { path: { ? } } }]"),
    ("key of `headers` and `query`", "routes: [{ match: { headers: { x: { ? } } } }]"),
    ("key of `headers` and `query`", "routes: [{ match: { query: { x: { ? } } } }]"),
    ("key of `split`", "routes: [{ split: [{ ? }] }]"),
    ("key of `redirect`", "routes: [{ redirect: { ? } }]"),
    ("key of `respond`", "routes: [{ respond: { ? } }]"),
    ("key of `rewrite`", "routes: [{ rewrite: { ? } }]"),
    ("key of `requestHeaders` and `responseHeaders`", "routes: [{ responseHeaders: { ? } }]"),
    ("key of `timeouts`", "routes: [{ timeouts: { ? } }]"),
    ("key of `retry`", "routes: [{ retry: { ? } }]"),
    ("key of `rateLimit`", "routes: [{ rateLimit: { ? } }]"),
];

/// The keys that a block takes: what the refusal of an unknown one names.
fn accepted(block: &str) -> BTreeSet<String> {
    let text = block.replace('?', "nobody-calls-a-key-this: 1");
    let error = serde_saphyr::from_str::<File>(&text).expect_err("no such key");
    match error.without_snippet() {
        serde_saphyr::Error::SerdeUnknownField { expected, .. } => {
            expected.iter().map(|key| (*key).to_owned()).collect()
        }
        other => panic!("{block}: {other}"),
    }
}

/// The keys in the first column of each table of the README, by the head of that column.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let (mut tables, mut head) = (BTreeMap::<String, BTreeSet<String>>::new(), None);
    for line in README.lines() {
        let Some(row) = line.strip_prefix("| ") else {
            if !line.starts_with('|') {
                head = None;
            }
            continue;
        };
        let first = row.split(" |").next().unwrap_or_default().trim();
        match &head {
            None => head = Some(first.to_owned()),
            Some(head) if head.starts_with("key") => {
                let mut block = "";
                for key in first.split('`').skip(1).step_by(2) {
                    let Some((of, key)) = key.split_once('.') else {
                        tables.entry(head.clone()).or_default().insert(key.to_owned());
                        continue;
                    };
                    // `queue.size`, `.timeout`
                    block = if of.is_empty() { block } else { of };
                    tables.entry(head.clone()).or_default().insert(block.to_owned());
                    tables.entry(format!("key of `{block}`")).or_default().insert(key.to_owned());
                }
            }
            Some(_) => {}
        }
    }
    tables
}

#[test]
fn every_key_stands_in_the_readme_and_every_key_there_is_one() {
    let documented = documented();
    for (head, block) in BLOCKS {
        assert_eq!(documented.get(head), Some(&accepted(block)), "the table {head:?} of the README");
    }
    let known: BTreeSet<&str> = BLOCKS.iter().map(|(head, _)| *head).collect();
    assert!(documented.keys().all(|head| known.contains(head.as_str())), "{:?}", documented.keys());
}

#[test]
fn the_readmes_examples_are_good() {
    let examples: Vec<&str> =
        README.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let config = parse("README", example).and_then(|file| resolve(Flags::default(), file));
        let config = config.unwrap_or_else(|e| panic!("{e} in\n{example}"));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }
}
