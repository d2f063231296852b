//! The results as Markdown tables: medians, spreads and ratios.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::disk::Disk;
use crate::figures::{Spread, spread};
use crate::proxy::Through;
use crate::run::{Paced, Saturation};
use crate::sink::Wire;
use crate::work::Work;
use crate::{Arguments, figures, floor, proxy};

/// Returns the conditions of the measurement: the machine, the versions, the options and the time.
pub(crate) fn conditions(arguments: &Arguments) -> String {
    let version = |command: &mut Command| figures::first_line(command);
    let nginx = Command::new(proxy::program("nginx")).arg("-v").output();
    let nginx = nginx.map(|output| output.stderr).unwrap_or_default();
    format!(
        "{}- {}, {}, {}\n\
         - {}, with {}; {}\n\
         - files: {}\n\
         - {} rounds, {} s each run, {} s at a fixed rate, {} senders, {} where an answer takes \
         the replay window\n\
         - queue.max_bytes {} MiB, replay_window {} ms\n",
        figures::machine(),
        version(Command::new("rustc").arg("--version")),
        if cfg!(debug_assertions) { "with debug assertions" } else { "optimised" },
        if cfg!(feature = "kafka") { "with Kafka" } else { "without Kafka" },
        haproxy(&arguments.haproxy),
        openssl(&arguments.haproxy),
        String::from_utf8_lossy(&nginx).trim_end(),
        Disk::new(&arguments.directory).describe(),
        arguments.pairs,
        arguments.seconds,
        arguments.fixed_seconds,
        arguments.senders,
        arguments.waiting_senders,
        proxy::QUEUE_MIB,
        arguments.replay_window,
    )
}

/// Returns `HAProxy` and the version of this program.
pub(crate) fn haproxy(program: &Path) -> String {
    let line = figures::first_line(Command::new(program).arg("-v"));
    let version = line.split(' ').find(|word| word.starts_with(|it: char| it.is_ascii_digit()));
    format!("HAProxy {}", version.unwrap_or("of an unknown version"))
}

/// Returns the TLS library that this HAProxy runs with.
fn openssl(haproxy: &Path) -> String {
    let output = Command::new(haproxy).arg("-vv").output().map(|output| output.stdout);
    let text = String::from_utf8_lossy(&output.unwrap_or_default()).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("Running on OpenSSL version : "));
    line.unwrap_or("an unknown TLS library").to_owned()
}

/// Which columns a table has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    All,
    /// Only the columns of benches/RESULTS.md.
    Page,
}

/// A column of a table: its title, and the function that returns the text of a row's cell.
pub(crate) struct Column<'a, R> {
    title: &'static str,
    /// `false` if benches/RESULTS.md does not have this column.
    on_page: bool,
    cell: Box<dyn Fn(&R) -> String + 'a>,
}

pub(crate) fn column<'a, R>(
    title: &'static str,
    cell: impl Fn(&R) -> String + 'a,
) -> Column<'a, R> {
    Column { title, on_page: true, cell: Box::new(cell) }
}

impl<R> Column<'_, R> {
    /// Leaves this column out of benches/RESULTS.md.
    pub(crate) fn detail(self) -> Self {
        Self { on_page: false, ..self }
    }
}

pub(crate) fn table<'a, R: 'a>(
    rows: impl Iterator<Item = &'a R>,
    columns: &[Column<'_, R>],
    detail: Detail,
) -> String {
    let columns = || columns.iter().filter(|it| it.on_page || detail == Detail::All);
    let titles: Vec<String> = columns().map(|it| it.title.to_owned()).collect();
    let mut text = line(&titles) + "|" + &"---|".repeat(titles.len()) + "\n";
    for row in rows {
        text += &line(&columns().map(|it| (it.cell)(row)).collect::<Vec<_>>());
    }
    text
}

/// Returns one figure of a run.
pub(crate) type Value = fn(&Saturation) -> f64;

pub(crate) fn over<T>(samples: &[T], value: impl Fn(&T) -> f64) -> Spread {
    spread(samples.iter().map(value).collect())
}

/// Returns the spread of the ratios within each round.
pub(crate) fn ratio<T>(samples: &[T], others: &[T], value: impl Fn(&T) -> f64) -> Spread {
    compare(samples, others, |sample, other| value(sample) / value(other))
}

/// Compares the two samples of each round, and returns the spread of the results.
pub(crate) fn compare<T>(samples: &[T], others: &[T], value: impl Fn(&T, &T) -> f64) -> Spread {
    spread(samples.iter().zip(others).map(|(sample, other)| value(sample, other)).collect())
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

    /// Returns a proxy's CPU time as a multiple of HAProxy's for the same work.
    pub(crate) fn ratio(&self, row: &Saturated) -> Spread {
        let ratio = self.compare(row.through, row.through.haproxy(), |it, other| it / other);
        ratio.expect("each relay has its HAProxy")
    }

    /// Compares the CPU seconds per GB of two proxies within each round. Returns `None` if one of
    /// them was not measured.
    pub(crate) fn compare(
        &self,
        through: Through,
        other: Through,
        value: impl Fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let (row, other) = (self.of(through)?, self.of(other)?);
        Some(compare(&row.samples, &other.samples, |it, other| value(cpu(it), cpu(other))))
    }

    /// Adds HAProxy's figures to the floor on disk, whose samples have only the writer's so far.
    pub(crate) fn complete_floor(&mut self) {
        let floor = Through::Floor;
        let (Some(writer), Some(haproxy)) = (self.of(floor), self.of(floor.haproxy())) else {
            return;
        };
        let pairs = haproxy.samples.iter().zip(&writer.samples);
        let samples = pairs.map(|(it, writer)| floor::at_saturation(it, writer)).collect();
        let row = self.rows.iter_mut().find(|row| row.through == floor);
        row.expect("found before").samples = samples;
    }

    /// Returns the table, and a text about the replay window.
    pub(crate) fn table(&self, arguments: &Arguments) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let (name, bytes) = (self.work.name, self.work.body.len());
        format!("\n### {name} ({bytes} bytes): at saturation\n\n")
            + &self.table_of(|_| true, Detail::All)
            + &self.replay_window(arguments.replay_window)
    }

    /// Returns the table of the proxies for which `wanted` returns `true`.
    pub(crate) fn table_of(&self, wanted: impl Fn(Through) -> bool, detail: Detail) -> String {
        let over = |row: &Saturated, value: Value, digits| over(&row.samples, value).show(digits);
        let columns: [Column<'_, Saturated>; 13] = [
            column("through", |row: &Saturated| row.through.name()),
            column("CPU s/GB", |row: &Saturated| over(row, cpu, 3)),
            column("of it user", |row: &Saturated| over(row, |it| it.cpu.user / it.gigabytes, 3))
                .detail(),
            column("÷ HAProxy", |row: &Saturated| self.ratio(row).show(2)),
            column("CPU s/M events", |row: &Saturated| {
                over(row, |it| it.cpu.total() * 1e6 / it.events as f64, 2)
            })
            .detail(),
            column("MB/s", |row: &Saturated| over(row, |it| it.gigabytes * 1e3 / it.seconds, 0)),
            column("1000 events/s", |row: &Saturated| {
                over(row, |it| it.events as f64 / 1e3 / it.seconds, 0)
            })
            .detail(),
            column("RSS idle MiB", |row: &Saturated| over(row, |it| it.rss_idle, 1)),
            column("RSS peak MiB", |row: &Saturated| over(row, |it| it.rss_peak, 1)),
            column("RSS beyond queue and in flight MiB", |row: &Saturated| {
                if row.through.counts_memory() { over(row, |it| it.rss_beyond, 1) } else { none() }
            }),
            column("load s/GB", |row: &Saturated| over(row, |it| it.load_cpu / it.gigabytes, 3))
                .detail(),
            column("sink s/GB", |row: &Saturated| over(row, |it| it.sink_cpu / it.gigabytes, 3))
                .detail(),
            column("refused", |row: &Saturated| row.refused().to_string()).detail(),
        ];
        table(self.rows.iter().filter(|row| wanted(row.through)), &columns, detail)
    }

    /// Returns a text about how much of the queue the replay window takes.
    pub(crate) fn replay_window(&self, milliseconds: u32) -> String {
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

/// Returns the CPU seconds per GB.
pub(crate) fn cpu(run: &Saturation) -> f64 {
    run.cpu.total() / run.gigabytes
}

impl Saturated {
    pub(crate) fn refused(&self) -> u64 {
        self.samples.iter().map(|it| it.refused).sum()
    }

    /// Returns the median of the requests per second.
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

/// How a relay is compared with its HAProxy.
#[derive(Clone, Copy)]
pub(crate) enum Comparison {
    /// Each of the two gets half of its own rate at saturation.
    EachAtHalf,
    /// Both get half of the rate of the slower one.
    SameRate,
}

impl Pace {
    pub(crate) fn refused(&self) -> u64 {
        self.samples.iter().map(|it| it.refused).sum()
    }
}

impl Answers {
    /// Makes the rows from the rates at saturation. The rows of a proxy are adjacent.
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

    /// Returns the row of the HAProxy that `row` is compared with, or `None` if there is none.
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

    pub(crate) fn table(&self, name: &str, detail: Detail) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let over = |row: &Pace, value: fn(&Paced) -> Duration, digits| {
            over(&row.samples, |it| value(it).as_secs_f64() * 1e3).show(digits)
        };
        let ratios = |row: &Pace, comparison| {
            let Some(haproxy) = self.haproxy(row, comparison) else { return none() };
            let quantiles: [fn(&Paced) -> Duration; 3] = [|it| it.p50, |it| it.p99, |it| it.p999];
            let medians = quantiles.map(|quantile| {
                let value = |it: &Paced| quantile(it).as_secs_f64();
                format!("{:.2}", ratio(&row.samples, &haproxy.samples, value).median)
            });
            medians.join(" · ")
        };
        let half_of = |row: &Pace| {
            if row.half_of == row.through { "itself".to_owned() } else { row.half_of.name() }
        };
        let columns: [Column<'_, Pace>; 10] = [
            column("through", |row: &Pace| row.through.name()),
            column("requests/s", |row: &Pace| format!("{:.0}", row.rate)),
            column("half of what … took", half_of),
            column("p50 ms", |row: &Pace| over(row, |it| it.p50, 2)),
            column("p99 ms", |row: &Pace| over(row, |it| it.p99, 2)),
            column("p99.9 ms", |row: &Pace| over(row, |it| it.p999, 2)).detail(),
            column("p50 · p99 · p99.9 ÷ HAProxy at its half", |row: &Pace| {
                ratios(row, Comparison::EachAtHalf)
            })
            .detail(),
            column("p50 · p99 · p99.9 ÷ HAProxy at the same rate", |row: &Pace| {
                ratios(row, Comparison::SameRate)
            }),
            column("sent late, p99 ms", |row: &Pace| over(row, |it| it.late_p99, 2)).detail(),
            column("refused", |row: &Pace| row.refused().to_string()).detail(),
        ];
        // The page has HAProxy only at half of its own rate. Its other rows are for the ratios.
        let on_page =
            |row: &Pace| row.half_of == row.through || row.through != row.through.haproxy();
        let rows = self.rows.iter().filter(|row| detail == Detail::All || on_page(row));
        format!("\n### {name}: answers at half load\n\n") + &table(rows, &columns, detail)
    }

    /// Returns the p99 of each proxy's answers at half of its own rate, in milliseconds.
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
