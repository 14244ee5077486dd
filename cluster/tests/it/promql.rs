//! The metric names in a PromQL expression. A tokenizer, not a parser: enough to tell a metric from a function, a label
//! and a keyword.

use std::collections::BTreeSet;

const OPERATORS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];
/// Are followed by a list of labels in parentheses.
const LABELLING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Every metric that `expression` reads.
pub fn metrics(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '"' | '\'' | '`' => after(&rest[1..], first),
            '{' => after(rest, '}'),
            '[' => after(rest, ']'),
            _ if first.is_ascii_digit() => {
                rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.')
            }
            _ if starts_name(first) => {
                let end = rest.find(|c: char| !starts_name(c) && !c.is_ascii_digit()).unwrap_or(rest.len());
                let (name, tail) = rest.split_at(end);
                let calls = tail.trim_start().starts_with('(');
                if LABELLING.contains(&name) {
                    if calls { after(tail, ')') } else { tail }
                } else {
                    // `sum by (x) (...)`: an aggregation is followed by its labels.
                    let aggregates = LABELLING.iter().any(|word| tail.trim_start().starts_with(word));
                    if !calls && !aggregates && !OPERATORS.contains(&name) {
                        names.insert(name.to_owned());
                    }
                    tail
                }
            }
            _ => &rest[first.len_utf8()..],
        };
    }
    names
}

fn starts_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

fn after(text: &str, end: char) -> &str {
    text.split_once(end).map_or("", |(_, rest)| rest)
}

#[test]
fn metrics_are_told_from_functions_labels_and_keywords() {
    let check = |expression, expected: &[&str]| {
        let names: Vec<String> = metrics(expression).into_iter().collect();
        assert_eq!(names, expected, "{expression}");
    };
    check("up", &["up"]);
    check(r#"sum by (job, le) (rate(a_bucket{job="x", path=~"/y}"}[$__rate_interval]))"#, &["a_bucket"]);
    check("histogram_quantile(0.99, sum(rate(a_bucket[5m])) by (le))", &["a_bucket"]);
    check("a / on(instance) group_left b offset 5m and c > 1e3", &["a", "b", "c"]);
    check("sum without (x) (a) or vector(0)", &["a"]);
    check("max(registry_role == 1) * 100", &["registry_role"]);
}
