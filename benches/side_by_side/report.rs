//! Medians, spreads and ratios as Markdown.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::figures;
use crate::figures::spread;
use crate::process::Cpu;
use crate::proxy;
use crate::proxy::Through;
use crate::work::Work;

/// One run.
pub(crate) struct Sample {
    /// Of the proxy's process.
    pub(crate) cpu: Cpu,
    pub(crate) load_cpu: f64,
    pub(crate) sink_cpu: f64,
    /// From the first byte sent to the last at the sink.
    pub(crate) seconds: f64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) refused: u64,
    /// MiB.
    pub(crate) rss_idle: f64,
    pub(crate) rss_peak: f64,
}

impl Sample {
    /// For whoever watches the bench run.
    pub(crate) fn line(&self, through: Through) -> String {
        format!(
            "{}: {:.2} s user, {:.2} s system, {:.2} s; {} refused",
            through.name(),
            self.cpu.user,
            self.cpu.system,
            self.seconds,
            self.refused
        )
    }
}

/// The table of one work: a row for each proxy.
pub(crate) fn table(
    work: &Work,
    requests: u64,
    throughs: &[Through],
    rounds: &[Vec<Sample>],
) -> String {
    let gigabytes = (work.body.len() as u64 * requests) as f64 / 1e9;
    let millions = (work.events * requests) as f64 / 1e6;
    let mut text = format!(
        "\n### {} ({} bytes), {requests} requests, {gigabytes:.2} GB\n\n\
         | through | CPU s/GB | of it user | ÷ HAProxy | CPU s/M events | MB/s | p50 ms | p99 ms \
         | RSS idle MiB | RSS peak MiB | load s/GB | sink s/GB | refused |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        work.name,
        work.body.len(),
    );
    for (column, through) in throughs.iter().enumerate() {
        let over = |value: &dyn Fn(&Sample) -> f64| {
            spread(rounds.iter().map(|round| value(&round[column])).collect())
        };
        let ratio = spread(
            rounds.iter().map(|round| round[column].cpu.total() / round[0].cpu.total()).collect(),
        );
        let row = [
            through.name().to_owned(),
            over(&|it| it.cpu.total() / gigabytes).show(3),
            over(&|it| it.cpu.user / gigabytes).show(3),
            ratio.show(2),
            over(&|it| it.cpu.total() / millions).show(2),
            over(&|it| gigabytes * 1e3 / it.seconds).show(0),
            over(&|it| it.p50.as_secs_f64() * 1e3).show(2),
            over(&|it| it.p99.as_secs_f64() * 1e3).show(2),
            over(&|it| it.rss_idle).show(1),
            over(&|it| it.rss_peak).show(1),
            over(&|it| it.load_cpu / gigabytes).show(3),
            over(&|it| it.sink_cpu / gigabytes).show(3),
            rounds.iter().map(|round| round[column].refused).sum::<u64>().to_string(),
        ];
        writeln!(text, "| {} |", row.join(" | ")).expect("a String takes everything");
    }
    text
}

/// Where, with what and when.
pub(crate) fn machine() -> String {
    let haproxy = figures::first_line(Command::new(proxy::haproxy()).arg("-v"));
    format!("{}- {haproxy}\n", figures::machine())
}
