//! Figures, the bounds they are held against, and how they are printed. Pure.

use std::fmt::Write as _;

use serde::Serialize;

#[cfg(test)]
mod tests;

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// The more the better: what must be, and what is hoped for.
    AtLeast { must: f64, goal: f64 },
    /// The less the better.
    AtMost { must: f64, goal: f64 },
}

/// How a figure stands to its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// What is hoped for is reached.
    Goal,
    /// What must be is reached.
    Must,
    /// It is not.
    Missed,
    /// It has no bound: it says how another came about.
    Info,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    /// The group it belongs to; sections are chosen by it.
    pub section: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure: of several samples their median.
    pub value: f64,
    /// Of the value; `x` is a ratio to a peer in the same run.
    pub unit: &'static str,
    /// What it has to reach; none for what only explains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
    /// How it stands to it.
    pub verdict: Verdict,
    /// What it was made from, for people.
    pub detail: String,
    /// Every measurement, in order.
    pub samples: Vec<f64>,
}

impl Line {
    /// The median of `samples`, without a bound.
    pub fn info(
        section: &'static str,
        what: impl Into<String>,
        samples: Vec<f64>,
        unit: &'static str,
    ) -> Self {
        let value = median(&samples);
        let (what, detail) = (what.into(), String::new());
        Self { section, what, value, unit, bound: None, verdict: Verdict::Info, detail, samples }
    }

    /// Holds it against a bound.
    pub fn held_to(mut self, bound: Bound) -> Self {
        self.verdict = bound.verdict(self.value);
        self.bound = Some(bound);
        self
    }

    /// Says what it was made from.
    pub fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl Bound {
    fn verdict(self, value: f64) -> Verdict {
        let reaches = |wanted: f64| match self {
            Self::AtLeast { .. } => value >= wanted,
            Self::AtMost { .. } => value <= wanted,
        };
        let (Self::AtLeast { must, goal } | Self::AtMost { must, goal }) = self;
        match () {
            () if reaches(goal) => Verdict::Goal,
            () if reaches(must) => Verdict::Must,
            () => Verdict::Missed,
        }
    }
}

/// A program that is measured beside us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Peer {
    /// Its name.
    pub name: &'static str,
    /// None if it is not installed.
    pub version: Option<String>,
    /// The Debian package that has it.
    pub package: &'static str,
}

impl Peer {
    fn describe(&self) -> String {
        match &self.version {
            Some(version) => format!("{}: {version}", self.name),
            None => format!("{}: not installed: apt-get install {}", self.name, self.package),
        }
    }
}

/// Everything of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Processors of the machine; what is measured, its peers and the load share them.
    pub cores: usize,
    /// Who is measured beside us.
    pub peers: Vec<Peer>,
    /// Load averages over one minute: before, and after each section. Much above the cores' number before it
    /// begins, or between: others were at work, and absolute figures are pessimistic.
    pub load: Vec<(String, f64)>,
    /// How it was measured.
    pub method: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// The figures, in order.
    pub lines: Vec<Line>,
    /// Sections that could not be measured to their end, and why.
    pub failed: Vec<String>,
}

impl Report {
    /// Figures that miss what must be.
    pub fn missed(&self) -> usize {
        self.lines.iter().filter(|line| line.verdict == Verdict::Missed).count()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut rows = vec![["WHAT", "VALUE", "MUST", "GOAL", "MET", "FROM"].map(String::from)];
        let mut section = "";
        for line in &self.lines {
            if line.section != section {
                section = line.section;
                rows.push([format!("-- {section}"), "".into(), "".into(), "".into(), "".into(), "".into()]);
            }
            let sign = |bound| if matches!(bound, Bound::AtLeast { .. }) { "≥" } else { "≤" };
            let shown = |bound, wanted: f64| format!("{} {}", sign(bound), with_unit(wanted, line.unit));
            let (must, goal) = match line.bound {
                Some(bound @ (Bound::AtLeast { must, goal } | Bound::AtMost { must, goal })) => {
                    (shown(bound, must), shown(bound, goal))
                }
                None => (String::new(), String::new()),
            };
            let met = match line.verdict {
                Verdict::Goal => "goal",
                Verdict::Must => "must",
                Verdict::Missed => "NO",
                Verdict::Info => "",
            };
            let value = with_unit(line.value, line.unit);
            rows.push([line.what.clone(), value, must, goal, met.into(), line.detail.clone()]);
        }
        let mut text = crate::cli::columns(&rows);
        let peers: Vec<String> = self.peers.iter().map(Peer::describe).collect();
        let load: Vec<String> = self.load.iter().map(|(when, load)| format!("{when} {load:.1}")).collect();
        let _ =
            writeln!(text, "\n{} cores; load average: {}; {}", self.cores, load.join(", "), peers.join("; "));
        for method in &self.method {
            let _ = writeln!(text, "{method}");
        }
        let judged = self.lines.iter().filter(|line| line.bound.is_some()).count();
        let _ = write!(text, "{} of {judged} bounds met, in {:.0} s", judged - self.missed(), self.seconds);
        text
    }
}

/// A figure with three digits that count.
pub(crate) fn with_unit(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let number = format!("{value:.digits$}");
    let (whole, part) = number.split_once('.').map_or((number.as_str(), None), |(w, p)| (w, Some(p)));
    let mut text = String::new();
    for (nth, digit) in whole.chars().enumerate() {
        if nth > 0 && (whole.len() - nth) % 3 == 0 && whole.as_bytes()[nth - 1] != b'-' {
            text.push(' ');
        }
        text.push(digit);
    }
    if let Some(part) = part {
        text.push('.');
        text.push_str(part);
    }
    match unit {
        "" => text,
        "x" => text + "x",
        unit => format!("{text} {unit}"),
    }
}

/// The middle one; of an even number the mean of the middle two. Not a number if there are none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The value that so large a share does not exceed, by the nearest rank; not a number if there are none.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}
