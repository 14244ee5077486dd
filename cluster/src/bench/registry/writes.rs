//! Committed, synced writes: through `Pipeline`, by unary calls, and etcd's puts, in turns.

use std::time::Duration;

use anyhow::Result;

use super::{
    Run,
    nodes::{Unary, VALUE_BYTES, key},
    pipeline::{Pipeline, Writes},
};
use crate::bench::{
    etcd::Puts,
    load::{Window, closed_loop},
    machine,
    report::{Bound, Line, median, with_unit},
};

pub(super) const NAME: &str = "writes";

/// Distinct instances, and keys in etcd, that are written by chance.
const KEYS: u64 = 10_000;

/// Callers, and what their rate must be and is hoped to be in multiples of etcd's: by pipeline, by unary calls;
/// and the same for the p99 of their times.
const STEPS: [Step; 4] = [
    Step { callers: 1, pipeline: (0.9, 1.0), unary: (0.9, 1.0), p99: (1.25, 0.5) },
    Step { callers: 16, pipeline: (1.8, 2.3), unary: (1.4, 1.8), p99: (1.0, 0.5) },
    Step { callers: 64, pipeline: (2.8, 3.5), unary: (1.8, 2.4), p99: (1.0, 0.5) },
    Step { callers: 256, pipeline: (5.0, 7.0), unary: (2.3, 3.0), p99: (1.0, 0.5) },
];

struct Step {
    callers: usize,
    pipeline: (f64, f64),
    unary: (f64, f64),
    p99: (f64, f64),
}

/// Windows of one way to write, in the order of the rounds, and the processor time of each write in microseconds.
#[derive(Default)]
struct Seen {
    windows: Vec<Window>,
    server_micros: Vec<f64>,
    client_micros: Vec<f64>,
}

pub(super) fn estimate(run: &Run<'_>) -> Duration {
    let ways = 2 + u32::from(run.beside_etcd);
    run.window().mul_f64(1.15) * ways * run.rounds() * STEPS.len() as u32 + Duration::from_secs(6)
}

pub(super) async fn measure(run: &mut Run<'_>) -> Result<()> {
    let nodes = run.nodes("writes").await?;
    let etcd = run.etcd("writes-etcd").await?;
    let clients = nodes.clients(run.connections()).await?;
    let pipelines = Pipeline::open(&clients).await?;
    let puts = match &etcd {
        Some(etcd) => etcd.clients(run.connections()).await?,
        None => Vec::new(),
    };
    let ours = || nodes.cpu_time().unwrap_or_default();
    for step in &STEPS {
        let (mut pipeline, mut unary, mut beside) = (Seen::default(), Seen::default(), Seen::default());
        for round in 0..run.rounds() {
            // Each round begins with another: none always follows the same.
            for turn in 0..3 {
                match (round + turn) % 3 {
                    0 => {
                        let doors = Writes::callers(&pipelines, step.callers);
                        pipeline.add(closed_loop(doors, KEYS, run.window()), ours, "pipeline").await?;
                    }
                    1 => {
                        let doors = Unary::callers(&clients, step.callers);
                        unary.add(closed_loop(doors, KEYS, run.window()), ours, "unary").await?;
                    }
                    _ => {
                        let Some(etcd) = &etcd else { continue };
                        let door = |client| Puts { client, key, value_bytes: VALUE_BYTES };
                        let doors = puts.iter().cloned().map(door).cycle().take(step.callers).collect();
                        let cpu = || etcd.cpu_time();
                        beside.add(closed_loop(doors, KEYS, run.window()), cpu, "etcd").await?;
                    }
                }
            }
        }
        run.progress(&format!("writes, {} callers: done", step.callers));
        for (way, seen, rate) in [("pipeline", pipeline, step.pipeline), ("unary", unary, step.unary)] {
            let [rate, p99, cpu] =
                lines(&format!("{way}, {} callers", step.callers), &seen, &beside, rate, step.p99);
            run.line(rate);
            run.line(p99);
            run.line(cpu);
        }
    }
    if let Some(etcd) = &etcd
        && !etcd.still_leads().await
    {
        anyhow::bail!("etcd's leader changed while it was measured: its figures are not its best, run again");
    }
    nodes.shutdown().await
}

impl Seen {
    /// Waits for a window, and notes what it cost.
    async fn add(
        &mut self,
        window: impl Future<Output = Window>,
        cpu: impl Fn() -> Duration,
        what: &str,
    ) -> Result<()> {
        let me = || machine::cpu_time(std::process::id().cast_signed());
        let before = (cpu(), me());
        let window = window.await.whole(what)?;
        // The warm-up is in the processor's time and not in the count; it is the same share for everybody.
        let micros = |spent: Duration| spent.as_secs_f64() * 1e6 / (window.millis.len() as f64 * 1.15);
        self.server_micros.push(micros(cpu().saturating_sub(before.0)));
        self.client_micros.push(micros(me().saturating_sub(before.1)));
        self.windows.push(window);
        Ok(())
    }

    fn each(&self, figure: impl Fn(&Window) -> f64) -> Vec<f64> {
        self.windows.iter().map(figure).collect()
    }

    fn describe(&self) -> String {
        let of = |figure: fn(&Window) -> f64| median(&self.each(figure));
        format!(
            "{}, p50 {} p99 {}",
            with_unit(of(Window::rate), "/s"),
            with_unit(of(|w| w.quantile(0.5)), "ms"),
            with_unit(of(|w| w.quantile(0.99)), "ms")
        )
    }
}

/// Rate, p99 and processor time; in multiples of etcd's of the same round where etcd is there.
fn lines(what: &str, ours: &Seen, etcd: &Seen, rate: (f64, f64), p99: (f64, f64)) -> [Line; 3] {
    let cpu = format!(
        "nodes {}, client {}; etcd nodes {}, client {}",
        with_unit(median(&ours.server_micros), "µs"),
        with_unit(median(&ours.client_micros), "µs"),
        with_unit(median(&etcd.server_micros), "µs"),
        with_unit(median(&etcd.client_micros), "µs"),
    );
    let cpu = Line::info(NAME, format!("{what}: processor time"), ours.server_micros.clone(), "µs").with(cpu);
    let tail = |window: &Window| window.quantile(0.99);
    if etcd.windows.is_empty() {
        let rates = Line::info(NAME, what, ours.each(Window::rate), "/s").with(ours.describe());
        return [rates, Line::info(NAME, format!("{what}: p99"), ours.each(tail), "ms"), cpu];
    }
    let ratio = |figure: fn(&Window) -> f64| -> Vec<f64> {
        ours.each(figure).iter().zip(etcd.each(figure)).map(|(ours, etcd)| ours / etcd).collect()
    };
    let from = format!("{}; etcd {}", ours.describe(), etcd.describe());
    [
        Line::info(NAME, what, ratio(Window::rate), "x")
            .held_to(Bound::AtLeast { must: rate.0, goal: rate.1 })
            .with(from),
        Line::info(NAME, format!("{what}: p99"), ratio(|window| window.quantile(0.99)), "x")
            .held_to(Bound::AtMost { must: p99.0, goal: p99.1 }),
        cpu,
    ]
}
