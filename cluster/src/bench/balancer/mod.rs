//! `cluster bench balancer`: our balancer beside HAProxy and nginx.
//!
//! Everything runs on this machine and shares its processors: the proxies, three backends and the load, which this
//! process makes. What is compared is measured in turns within one run, in short windows, and each round gives one
//! ratio; the figure is the median of the rounds. Processor time is that of the proxy's processes alone, from the
//! kernel, and so says more on a busy machine than any rate.

mod churn;
mod load;
mod peers;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::time::Instant;

use self::{
    load::{Backend, LARGE, SMALL, Seen, Work},
    peers::{Proxy, Setup},
};
use super::{
    machine,
    report::{Bound, Line, Peer, Report, median, quantile},
};

/// What to measure, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds; the figure is their median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long one window is, in milliseconds.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    window_ms: u64,
    /// Connections that rest while memory is weighed.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u16).range(1..=9_000))]
    resting: u16,
    /// Fail if HAProxy or nginx is not installed, instead of leaving it out.
    #[arg(long)]
    require_peers: bool,
    /// Fail if a figure misses what must be.
    #[arg(long)]
    pub check: bool,
}

const GET: Work = Work {
    what: "GET 1 KiB, 64 connections",
    connections: 64,
    posts: false,
    answer_bytes: SMALL,
    closes: false,
};

/// What is asked for, and what our processor time may be of HAProxy's and of nginx's.
fn works() -> [(Work, Held); 5] {
    let post = Work { what: "POST 1 KiB, 64 connections", posts: true, ..GET };
    let large = Work { what: "GET 64 KiB, 64 connections", answer_bytes: LARGE, ..GET };
    let many = Work { what: "GET 1 KiB, 256 connections", connections: 256, ..GET };
    let close = Work { what: "GET 1 KiB, a connection each", closes: true, ..GET };
    [
        (GET, Held::Each { haproxy: (0.75, 0.65), nginx: (0.85, 0.75) }),
        (post, Held::Better(0.95, 0.65)),
        (large, Held::Better(0.95, 0.85)),
        (many, Held::Better(1.05, 0.95)),
        (close, Held::Better(1.05, 0.95)),
    ]
}

/// What a ratio of processor times is held to: must and goal.
#[derive(Clone, Copy, Debug)]
enum Held {
    /// To each of the two.
    Each { haproxy: (f64, f64), nginx: (f64, f64) },
    /// To the better of the two.
    Better(f64, f64),
}

/// As many requests at once as with 64 connections and more, over HTTP/2.
const HTTP2: Work = Work { what: "HTTP/2 GET 1 KiB, 16 connections of 8 streams", connections: 16, ..GET };
const STREAMS: usize = 8;

/// Requests a second at which latency is looked at, and over how many connections.
const RATE: u32 = 2_000;
const RATE_CONNECTIONS: usize = 50;

/// Descriptors beyond the resting connections.
const DESCRIPTORS: u64 = 2_000;

const CPU: &str = "processor time";
const RATES: &str = "rate";
const LATENCY: &str = "latency";
const MEMORY: &str = "memory";

/// One run.
struct Run<'a> {
    args: &'a Args,
    note: fn(&str),
    report: Report,
    begun: Instant,
}

/// One window of one proxy.
#[derive(Clone, Copy)]
struct Sample {
    /// Microseconds of processor time for a request.
    micros: f64,
    /// Requests a second.
    rate: f64,
}

/// Measures what `args` ask for.
pub(super) async fn run(args: &Args, note: fn(&str)) -> Result<Report> {
    let found = peers::peers();
    for peer in found.iter().filter(|peer| peer.version.is_none()) {
        let how = format!("{} is not installed: `apt-get install {}`", peer.name, peer.package);
        if args.require_peers {
            bail!("{how}");
        }
        note(&format!("{how}; measuring without it"));
    }
    if cfg!(debug_assertions) {
        note("this is no release build: the figures say little; use `cargo cluster bench`");
    }
    let dir = tempfile::Builder::new().prefix("flux-bench-").tempdir().context("no temporary directory")?;
    let limit = u64::from(args.resting) + DESCRIPTORS;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit.min(hard), hard)
        .context("cannot raise the limit of open files")?;
    let report = Report { cores: machine::cores(), peers: found.clone(), ..Report::default() };
    let mut run = Run { args, note, report, begun: Instant::now() };
    let proxies = 1 + found.iter().filter(|peer| peer.version.is_some()).count() as u32;
    // Each kind of work and the latency for everybody; ours with everything on, and among many services, besides.
    let windows = args.rounds * ((works().len() as u32 + 2) * proxies + 4);
    let total = Duration::from_millis(args.window_ms) * windows + Duration::from_secs(45);
    note(&format!("this takes about {} s", total.as_secs()));
    run.report.load.push(("before".into(), machine::load_average()));
    let measured = tokio::time::timeout(2 * total + Duration::from_secs(60), run.measure(dir.path(), &found));
    match measured.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => run.report.failed.push(format!("{error:#}")),
        Err(_) => run.report.failed.push("the machine is too busy to measure".into()),
    }
    run.report.load.push(("after".into(), machine::load_average()));
    run.report.method = vec![
        format!(
            "median of {} rounds in windows of {} s, in turns; two worker threads each, kept connections to three \
             backends, no access log",
            args.rounds,
            Duration::from_millis(args.window_ms).as_secs_f64()
        ),
        "proxies, backends and load share the machine; processor time is the proxy's alone".into(),
    ];
    run.report.seconds = run.begun.elapsed().as_secs_f64();
    Ok(run.report)
}

impl Run<'_> {
    async fn measure(&mut self, dir: &Path, found: &[Peer]) -> Result<()> {
        let backends = [Backend::start().await?, Backend::start().await?, Backend::start().await?];
        let addresses = backends.each_ref().map(|backend| backend.address);
        let (ours, _) = Box::pin(Proxy::ours(dir, Setup::Bare, &addresses)).await?;
        let mut proxies = vec![ours];
        for peer in found.iter().filter(|peer| peer.version.is_some()) {
            proxies.push(match peer.name {
                "haproxy" => Proxy::haproxy(dir, &addresses).await?,
                _ => Proxy::nginx(dir, &addresses).await?,
            });
        }
        for (work, held) in works() {
            self.compare(&proxies, &work, held).await?;
            self.progress(work.what);
        }
        self.compare(&proxies, &HTTP2, Held::Each { haproxy: (1.15, 1.0), nginx: (0.95, 0.95) }).await?;
        self.progress(HTTP2.what);
        self.latency(&proxies).await?;
        self.memory(&proxies).await?;
        self.full(dir, &addresses, &proxies[0]).await?;
        for proxy in proxies {
            proxy.shutdown().await?;
        }
        self.among(dir, &addresses).await
    }

    /// Processor time of a request with everything on, beside that of the balancer as it comes.
    async fn full(&mut self, dir: &Path, addresses: &[SocketAddr], bare: &Proxy) -> Result<()> {
        let (full, _) = Box::pin(Proxy::ours(dir, Setup::Full, addresses)).await?;
        let (mut ratios, mut micros) = (Vec::new(), [Vec::new(), Vec::new()]);
        for _ in 0..self.args.rounds {
            let samples = [self.sample(bare, &GET).await?, self.sample(&full, &GET).await?];
            ratios.push(samples[1].micros / samples[0].micros);
            micros.iter_mut().zip(samples).for_each(|(all, sample)| all.push(sample.micros));
        }
        let shown = format!("with {:.1} µs, without {:.1} µs", median(&micros[1]), median(&micros[0]));
        let line = Line::info(CPU, "GET 1 KiB with routes and access log: of without", ratios, "x");
        self.line(line.held_to(Bound::AtMost { must: 1.3, goal: 1.15 }).with(shown));
        self.progress("with routes and access log");
        full.shutdown().await
    }

    /// What it costs that other services change all the time.
    async fn among(&mut self, dir: &Path, addresses: &[SocketAddr]) -> Result<()> {
        let (ours, registry) = Box::pin(Proxy::ours(dir, Setup::Among, addresses)).await?;
        let many = churn::Many::register(registry, addresses[0]).await?;
        let (mut ratios, mut rates, mut changes) = (Vec::new(), [Vec::new(), Vec::new()], Vec::new());
        for _ in 0..self.args.rounds {
            let still = self.sample(&ours, &GET).await?;
            let changing = many.change();
            let begun = Instant::now();
            let sample = self.sample(&ours, &GET).await?;
            changes.push(changing.end().await? as f64 / begun.elapsed().as_secs_f64());
            ratios.push(sample.rate / still.rate);
            rates.iter_mut().zip([still, sample]).for_each(|(all, sample)| all.push(sample.rate));
        }
        let shown = format!(
            "{:.0} /s at {:.0} changes/s, {:.0} /s at none",
            median(&rates[1]),
            median(&changes),
            median(&rates[0])
        );
        let what = "GET 1 KiB while 1 000 services of 10 change: of without";
        let line = Line::info(RATES, what, ratios, "x");
        self.line(line.held_to(Bound::AtLeast { must: 0.9, goal: 0.97 }).with(shown));
        self.progress("among many services");
        ours.shutdown().await
    }

    /// One window.
    async fn sample(&self, proxy: &Proxy, work: &Work) -> Result<Sample> {
        let before = machine::tree_cpu_time(proxy.pid);
        let begun = Instant::now();
        let seen = match work.what == HTTP2.what {
            true => load::closed_loop_http2(proxy.http2, work, STREAMS, self.window()).await,
            false => load::closed_loop(proxy.address, work, self.window()).await,
        };
        let seen = seen.with_context(|| format!("{} by way of {}", work.what, proxy.name))?;
        let cpu = machine::tree_cpu_time(proxy.pid).saturating_sub(before);
        Ok(Sample {
            micros: cpu.as_secs_f64() * 1e6 / seen.answered as f64,
            rate: seen.answered as f64 / begun.elapsed().as_secs_f64(),
        })
    }

    /// Processor time and rate of one kind of work.
    async fn compare(&mut self, proxies: &[Proxy], work: &Work, held: Held) -> Result<()> {
        let mut rounds: Vec<Vec<Sample>> = Vec::new();
        for _ in 0..self.args.rounds {
            let mut round = Vec::new();
            for proxy in proxies {
                round.push(self.sample(proxy, work).await?);
            }
            rounds.push(round);
        }
        let shown = |of: fn(&Sample) -> f64, unit: &str| {
            let each = proxies.iter().enumerate().map(|(nth, proxy)| {
                let samples: Vec<f64> = rounds.iter().map(|round| of(&round[nth])).collect();
                format!("{} {:.1} {unit}", proxy.name, median(&samples))
            });
            each.collect::<Vec<_>>().join(", ")
        };
        let (micros, rates) = (shown(|s| s.micros, "µs"), shown(|s| s.rate, "/s"));
        let ratios = |of: fn(&Sample) -> f64, to: &dyn Fn(&[Sample]) -> f64| -> Vec<f64> {
            rounds.iter().map(|round| of(&round[0]) / to(&round[1..])).collect()
        };
        let what = work.what;
        if proxies.len() == 1 {
            let samples = rounds.iter().map(|round| round[0].micros).collect();
            self.line(Line::info(CPU, format!("{what}: of a request"), samples, "µs"));
            return Ok(());
        }
        let least = |round: &[Sample]| round.iter().map(|s| s.micros).fold(f64::INFINITY, f64::min);
        match held {
            Held::Better(must, goal) => {
                let line =
                    Line::info(CPU, format!("{what}: of the better"), ratios(|s| s.micros, &least), "x");
                self.line(line.held_to(Bound::AtMost { must, goal }).with(micros));
            }
            Held::Each { haproxy, nginx } => {
                for (nth, proxy) in proxies[1..].iter().enumerate() {
                    let (must, goal) = if proxy.name == "haproxy" { haproxy } else { nginx };
                    let ratios = ratios(|s| s.micros, &|round: &[Sample]| round[nth].micros);
                    let line = Line::info(CPU, format!("{what}: of {}", proxy.name), ratios, "x");
                    self.line(line.held_to(Bound::AtMost { must, goal }).with(micros.clone()));
                }
            }
        }
        if work.what == HTTP2.what {
            return Ok(());
        }
        let most = |round: &[Sample]| round.iter().map(|s| s.rate).fold(0.0, f64::max);
        let must = if work.connections > 64 { 0.95 } else { 1.0 };
        let line = Line::info(RATES, format!("{what}: of the better"), ratios(|s| s.rate, &most), "x");
        self.line(line.held_to(Bound::AtLeast { must, goal: must }).with(rates));
        Ok(())
    }

    /// Latency at a fixed rate, far below what any of them can do.
    async fn latency(&mut self, proxies: &[Proxy]) -> Result<()> {
        let work = Work { what: "GET 1 KiB at 2 000/s", connections: RATE_CONNECTIONS, ..GET };
        let mut rounds: Vec<Vec<Seen>> = Vec::new();
        for _ in 0..self.args.rounds {
            let mut round = Vec::new();
            for proxy in proxies {
                round.push(load::fixed_rate(proxy.address, &work, RATE, self.window()).await?);
            }
            rounds.push(round);
        }
        for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
            let of = |seen: &Seen| quantile(&seen.millis, share);
            let each = proxies.iter().enumerate().map(|(nth, proxy)| {
                let samples: Vec<f64> = rounds.iter().map(|round| of(&round[nth])).collect();
                format!("{} {:.2} ms", proxy.name, median(&samples))
            });
            let shown = each.collect::<Vec<_>>().join(", ");
            let what = format!("{}: {name}", work.what);
            let line = match proxies.len() {
                1 => Line::info(LATENCY, what, rounds.iter().map(|r| of(&r[0])).collect(), "ms"),
                _ => {
                    let best = |r: &[Seen]| r[1..].iter().map(of).fold(f64::INFINITY, f64::min);
                    let ratios = rounds.iter().map(|r| of(&r[0]) / best(r)).collect();
                    Line::info(LATENCY, format!("{what}, of the better"), ratios, "x")
                        .held_to(Bound::AtMost { must: 1.25, goal: 1.0 })
                }
            };
            self.line(line.with(shown));
        }
        self.progress(work.what);
        Ok(())
    }

    /// What resting connections weigh, all else included.
    async fn memory(&mut self, proxies: &[Proxy]) -> Result<()> {
        let count = usize::from(self.args.resting);
        let mut weights = Vec::new();
        for proxy in proxies {
            let resting =
                proxy.rest(count).await.with_context(|| format!("{count} connections to {}", proxy.name))?;
            weights.push(machine::tree_rss_mib(proxy.pid));
            drop(resting);
        }
        let each = proxies.iter().zip(&weights).map(|(proxy, mib)| format!("{} {mib:.1} MiB", proxy.name));
        let shown = each.collect::<Vec<_>>().join(", ");
        let what = format!("with {count} resting connections");
        let haproxy = proxies.iter().zip(&weights).find(|(proxy, _)| proxy.name == "haproxy");
        let line = match haproxy {
            Some((_, theirs)) => {
                Line::info(MEMORY, format!("{what}, of haproxy's"), vec![weights[0] / theirs], "x")
                    .held_to(Bound::AtMost { must: 1.5, goal: 1.0 })
            }
            None => Line::info(MEMORY, what, vec![weights[0]], "MiB"),
        };
        self.line(line.with(shown));
        Ok(())
    }

    fn window(&self) -> Duration {
        Duration::from_millis(self.args.window_ms)
    }

    fn line(&mut self, line: Line) {
        self.report.lines.push(line);
    }

    fn progress(&self, what: &str) {
        (self.note)(&format!("{:5.1} s  {what}", self.begun.elapsed().as_secs_f64()));
    }
}
