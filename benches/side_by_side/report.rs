//! Medians, spreads and ratios as Markdown.

use std::process::Command;
use std::time::Duration;

use crate::figures::{Spread, spread};
use crate::proxy::Through;
use crate::run::{Paced, Saturation};
use crate::sink::Wire;
use crate::work::Work;
use crate::{Arguments, figures, proxy};

/// Returns the conditions of the measurement: the machine, the versions, the options and the time.
pub(crate) fn conditions(arguments: &Arguments) -> String {
    let haproxy = figures::first_line(Command::new(proxy::haproxy()).arg("-v"));
    format!(
        "{}- {haproxy}\n\
         - {} rounds, {} s each run, {} s at a fixed rate, {} senders, {} where an answer takes \
         the replay window\n\
         - queue.max_bytes {} MiB, replay_window {} ms\n",
        figures::machine(),
        arguments.pairs,
        arguments.seconds,
        arguments.fixed_seconds,
        arguments.senders,
        arguments.waiting_senders,
        proxy::QUEUE_MIB,
        arguments.replay_window,
    )
}

/// Returns one figure of a run.
pub(crate) type Value = fn(&Saturation) -> f64;

pub(crate) fn over<T>(samples: &[T], value: impl Fn(&T) -> f64) -> Spread {
    spread(samples.iter().map(value).collect())
}

/// Returns the spread of the ratios within each round.
pub(crate) fn ratio<T>(samples: &[T], others: &[T], value: impl Fn(&T) -> f64) -> Spread {
    let pairs = samples.iter().zip(others);
    spread(pairs.map(|(sample, other)| value(sample) / value(other)).collect())
}

pub(crate) fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

pub(crate) fn none() -> String {
    "–".to_owned()
}

/// The results of one work at saturation.
pub(crate) struct Throughput {
    pub(crate) work: Work,
    pub(crate) rows: Vec<Saturated>,
}

/// The results of one proxy at saturation.
pub(crate) struct Saturated {
    pub(crate) through: Through,
    /// One sample for each round.
    pub(crate) samples: Vec<Saturation>,
}

impl Throughput {
    pub(crate) fn new(work: Work, throughs: &[Through]) -> Self {
        let row = |&through| Saturated { through, samples: Vec::new() };
        Self { work, rows: throughs.iter().map(row).collect() }
    }

    pub(crate) fn of(&self, through: Through) -> Option<&Saturated> {
        self.rows.iter().find(|row| row.through == through)
    }

    /// Returns the CPU time as a multiple of HAProxy's for the same work.
    pub(crate) fn ratio(&self, row: &Saturated) -> Spread {
        let haproxy = self.of(row.through.haproxy()).expect("each relay has its HAProxy");
        ratio(&row.samples, &haproxy.samples, |it| it.cpu.total() / it.gigabytes)
    }

    pub(crate) fn table(&self, arguments: &Arguments) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "\n### {} ({} bytes): at saturation\n\n\
             | through | CPU s/GB | of it user | ÷ HAProxy | CPU s/M events | MB/s | 1000 events/s \
             | RSS idle MiB | RSS peak MiB | RSS beyond queue and in flight MiB \
             | load s/GB | sink s/GB | refused |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
            self.work.name,
            self.work.body.len(),
        );
        for row in &self.rows {
            let over = |value: Value, digits| over(&row.samples, value).show(digits);
            let counts = row.through.counts_memory();
            text += &line(&[
                row.through.name(),
                over(|it| it.cpu.total() / it.gigabytes, 3),
                over(|it| it.cpu.user / it.gigabytes, 3),
                self.ratio(row).show(2),
                over(|it| it.cpu.total() * 1e6 / it.events as f64, 2),
                over(|it| it.gigabytes * 1e3 / it.seconds, 0),
                over(|it| it.events as f64 / 1e3 / it.seconds, 0),
                over(|it| it.rss_idle, 1),
                over(|it| it.rss_peak, 1),
                if counts { over(|it| it.rss_beyond, 1) } else { none() },
                over(|it| it.load_cpu / it.gigabytes, 3),
                over(|it| it.sink_cpu / it.gigabytes, 3),
                row.samples.iter().map(|it| it.refused).sum::<u64>().to_string(),
            ]);
        }
        text + &self.replay_window(arguments.replay_window)
    }

    /// Returns a text about the part of the queue that the replay window takes.
    fn replay_window(&self, milliseconds: u32) -> String {
        let streams = self.rows.iter().filter(|row| row.through.wire() == Wire::Stream);
        let speeds =
            streams.map(|row| over(&row.samples, |it| it.gigabytes * 1e9 / it.seconds).most);
        let Some(fastest) = speeds.max_by(f64::total_cmp) else { return String::new() };
        let mebibytes = fastest * f64::from(milliseconds) / 1e3 / f64::from(1 << 20);
        format!(
            "\nWhat a stream sent stays in the queue for the replay window: in {milliseconds} ms at most \
             {mebibytes:.0} MiB. The queue holds {:.0} times that.\n",
            f64::from(proxy::QUEUE_MIB) / mebibytes,
        )
    }
}

impl Saturated {
    /// Returns the requests per second.
    fn rate(&self) -> f64 {
        over(&self.samples, |it| it.requests as f64 / it.seconds).median
    }
}

/// The results of one work at half load.
pub(crate) struct Answers {
    pub(crate) rows: Vec<Pace>,
}

/// The results of one proxy at one rate.
pub(crate) struct Pace {
    pub(crate) through: Through,
    /// The rate in requests per second: half of the rate of `half_of` at saturation.
    pub(crate) rate: f64,
    half_of: Through,
    /// One sample for each round.
    pub(crate) samples: Vec<Paced>,
}

/// The way in which a relay is compared with its HAProxy.
#[derive(Clone, Copy)]
pub(crate) enum Comparison {
    /// Each of the two gets half of its own rate at saturation.
    EachAtHalf,
    /// Both get half of the rate of the slower one.
    SameRate,
}

impl Answers {
    /// Makes the rows from the rates at saturation. Rows of the same proxy follow each other.
    pub(crate) fn new(throughput: &Throughput, throughs: &[Through]) -> Self {
        let mut rows = Vec::new();
        let half = |through| Some(throughput.of(through)?.rate() / 2.0);
        for &through in throughs {
            let Some(own) = half(through) else { continue };
            // The slower proxies among those that this one is compared with.
            let others = throughs
                .iter()
                .filter(|other| through.haproxy() == **other || through == other.haproxy());
            let slower = others.filter_map(|other| Some((*other, half(*other)?)));
            let slower = slower.filter(|(_, rate)| *rate < own);
            rows.extend([(through, own)].into_iter().chain(slower).map(|(half_of, rate)| Pace {
                through,
                rate,
                half_of,
                samples: Vec::new(),
            }));
        }
        Self { rows }
    }

    /// Returns the row of the HAProxy that a relay's row is compared with, or `None` if there is
    /// none.
    fn haproxy(&self, row: &Pace, comparison: Comparison) -> Option<&Pace> {
        let haproxy = row.through.haproxy();
        let half_of = match comparison {
            Comparison::EachAtHalf if row.half_of == row.through => haproxy,
            Comparison::EachAtHalf => return None,
            Comparison::SameRate => row.half_of,
        };
        let mut rows = self.rows.iter().filter(|_| row.through != haproxy);
        rows.find(|it| it.through == haproxy && it.half_of == half_of)
    }

    pub(crate) fn table(&self, name: &str) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "\n### {name}: answers at half load\n\n\
             | through | requests/s | half of what … took | p50 ms | p99 ms | p99.9 ms \
             | p50 · p99 · p99.9 ÷ HAProxy at its half | the same ÷ HAProxy at the same rate \
             | sent late, p99 ms | refused |\n\
             |---|---|---|---|---|---|---|---|---|---|\n"
        );
        for row in &self.rows {
            let over = |value: fn(&Paced) -> f64, digits| over(&row.samples, value).show(digits);
            let ratios = |haproxy: Option<&Pace>| {
                let Some(haproxy) = haproxy else { return none() };
                let quantiles: [fn(&Paced) -> Duration; 3] =
                    [|it| it.p50, |it| it.p99, |it| it.p999];
                let medians = quantiles.map(|quantile| {
                    let value = |it: &Paced| quantile(it).as_secs_f64();
                    format!("{:.2}", ratio(&row.samples, &haproxy.samples, value).median)
                });
                medians.join(" · ")
            };
            text += &line(&[
                row.through.name(),
                format!("{:.0}", row.rate),
                if row.half_of == row.through { "itself".to_owned() } else { row.half_of.name() },
                over(|it| it.p50.as_secs_f64() * 1e3, 2),
                over(|it| it.p99.as_secs_f64() * 1e3, 2),
                over(|it| it.p999.as_secs_f64() * 1e3, 2),
                ratios(self.haproxy(row, Comparison::EachAtHalf)),
                ratios(self.haproxy(row, Comparison::SameRate)),
                over(|it| it.late_p99.as_secs_f64() * 1e3, 2),
                row.samples.iter().map(|it| it.refused).sum::<u64>().to_string(),
            ]);
        }
        text
    }

    /// Returns the proxies that got half of their own rate, with the p99 of their answers in
    /// milliseconds.
    pub(crate) fn p99_at_half(&self) -> impl Iterator<Item = (Through, Spread)> {
        let rows = self.rows.iter().filter(|row| row.half_of == row.through);
        rows.map(|row| (row.through, over(&row.samples, |it| it.p99.as_secs_f64() * 1e3)))
    }

    /// Returns a relay's p99 as a multiple of HAProxy's.
    pub(crate) fn p99_ratio(&self, through: Through, comparison: Comparison) -> Option<Spread> {
        let mut rows = self.rows.iter().filter(|row| row.through == through);
        rows.find_map(|row| {
            let haproxy = self.haproxy(row, comparison)?;
            Some(ratio(&row.samples, &haproxy.samples, |it| it.p99.as_secs_f64()))
        })
    }
}
