//! Good and bad histories, as scripts; each bad one is a bug that a registry could have.

mod durability;
mod gates;
mod leases;
mod ledger;
mod random;
mod revisions;
mod story;
mod watches;
mod wgl;

use expect_test::Expect;

use story::Story;

/// The violations of a script, one a line: see [`Story`].
#[track_caller]
fn check(script: &str, expected: Expect) {
    let story = Story::tell(script);
    let report = super::judge(&story.history, &story.transcripts).expect("scripts are well-formed");
    let lines: Vec<String> = report.violations.iter().map(|it| format!("{}: {}", it.rule, it.what)).collect();
    expected.assert_eq(&lines.join("\n"));
}
