//! The aims, and the table that compares the results with them.

use crate::figures::Spread;
use crate::fixed;
use crate::fixed::FixedRates;
use crate::idle::Idle;
use crate::proxy::{Buffering, Mode, Route, Through};
use crate::report::{Answers, Comparison, Saturated, Throughput, Value, line, over};
use crate::run::Fixed;

/// The results of all parts of the measurement with one work.
pub(crate) struct Measured {
    pub(crate) throughput: Throughput,
    pub(crate) answers: Answers,
    pub(crate) fixed: FixedRates,
}

/// How much the load sends.
#[derive(Clone, Copy)]
enum Rate {
    Saturation,
    /// A fixed number of events per second.
    Events(u32),
}

use Rate::{Events, Saturation};

const HTTP: Through = Through::Relay(Route::Http, Mode::Memory);
const POLICY: Through = Through::Relay(Route::Http, Mode::Policy);
const REDACT: Through = Through::Relay(Route::Http, Mode::Redact);
const TCP: Through = Through::Relay(Route::Tcp, Mode::Memory);
const SYSLOG: Through = Through::Relay(Route::Syslog, Mode::Memory);
const TLS: Through = Through::Relay(Route::Tls, Mode::Memory);
const HTTP_DISK: Through = Through::Relay(Route::Http, Mode::Disk);
const TCP_DISK: Through = Through::Relay(Route::Tcp, Mode::Disk);
const HTTP_EVIDENCE: Through = Through::Relay(Route::Http, Mode::Evidence);

/// The aims for the CPU time as a multiple of HAProxy's for the same work: the beginning of the
/// work's name, the relay, the rate, and the aim.
const CPU: [(&str, Through, Rate, f64); 13] = [
    ("metadata", HTTP, Saturation, 1.4),
    ("metadata", HTTP, Events(100_000), 1.25),
    ("metadata", TCP, Saturation, 1.35),
    ("metadata", TCP, Events(100_000), 1.25),
    ("metadata", SYSLOG, Saturation, 1.9),
    ("metadata", TLS, Saturation, 0.7),
    ("metadata", HTTP_DISK, Saturation, 2.0),
    ("metadata", HTTP_DISK, Events(100_000), 2.1),
    ("metadata", TCP_DISK, Saturation, 1.7),
    ("metadata", TCP_DISK, Events(100_000), 2.0),
    ("generated", HTTP, Saturation, 1.7),
    ("single", HTTP, Saturation, 0.6),
    ("single", HTTP, Events(15_000), 0.9),
];

/// The aims for the CPU time as a multiple of that of the same relay without its filter.
const CPU_FILTER: [(Through, f64); 2] = [(POLICY, 1.12), (REDACT, 1.25)];

/// The aim for the CPU seconds per GB that evidence adds to `HTTP_DISK`.
const CPU_EVIDENCE: f64 = 0.5;

/// The rate at which filters and evidence have the same aims as at saturation, in events/s.
const RATE: u32 = 100_000;

/// The aim for the CPU time of `HTTP` at saturation as a multiple of a buffering nginx's.
const CPU_NGINX: f64 = 1.25;

/// The aim for the p99 of `HTTP`'s answers as a multiple of HAProxy's at the same rate.
const P99_RATIO: f64 = 1.0;

/// The aim for the p99 of answers at half load with the queue on disk, in milliseconds.
const P99_ON_DISK: f64 = 5.0;

/// The aims for the memory after the start, and beyond the queue and the bodies in flight, in MiB.
const RSS_IDLE: f64 = 12.0;
const RSS_BEYOND: f64 = 32.0;

/// The aim for the memory of an idle connection that has carried a batch, in KiB.
const CONNECTION: f64 = 64.0;

/// A table of aims.
struct Table(String);

impl Table {
    fn add(&mut self, what: &str, work: &str, aim: f64, measured: &Spread, digits: usize) {
        let reached = if measured.median <= aim { "yes" } else { "no" };
        self.0 += &line(&[
            what.to_owned(),
            work.to_owned(),
            format!("≤ {aim:.digits$}"),
            measured.show(digits),
            reached.to_owned(),
        ]);
    }
}

/// Returns the aims and the results: medians, with the least and the greatest value. An aim whose
/// runs were not made is left out.
pub(crate) fn in_short(measured: &[Measured], idle: &Idle) -> String {
    let mut table =
        Table(String::from("| what | work | aim | measured | reached |\n|---|---|---|---|---|\n"));
    for measured in measured {
        add_cpu(&mut table, measured);
        add_more(&mut table, measured);
        add_p99(&mut table, measured);
    }
    add_rss(&mut table, measured);
    for row in idle.rows.iter().filter(|row| matches!(row.through, Through::Relay(..))) {
        let what = format!("RSS of an idle connection after a batch, KiB, {}", row.through.name());
        table.add(&what, idle.work, CONNECTION, &over(&row.samples, |it| it.each), 1);
    }
    table.0
}

fn add_cpu(table: &mut Table, measured: &Measured) {
    let Measured { throughput, fixed, .. } = measured;
    let work = throughput.work.name;
    let nginx = Through::Buffering(Buffering::Nginx);
    if let Some(ratio) = throughput.compare(HTTP, nginx, |it, nginx| it / nginx)
        && work.starts_with("metadata")
    {
        let what = format!("CPU ÷ nginx that buffers, {}, at saturation", HTTP.name());
        table.add(&what, work, CPU_NGINX, &ratio, 2);
    }
    for (_, through, rate, aim) in CPU.iter().filter(|(name, ..)| work.starts_with(name)) {
        let (at, ratio) = match *rate {
            Saturation => {
                let row = throughput.of(*through);
                ("at saturation".to_owned(), row.map(|row| throughput.ratio(row)))
            }
            Events(events) => {
                (format!("at {events} events/s"), fixed.ratio(*through, events, fixed::cpu))
            }
        };
        let Some(ratio) = ratio else { continue };
        table.add(&format!("CPU ÷ HAProxy, {}, {at}", through.name()), work, *aim, &ratio, 2);
    }
}

/// Adds the aims for the costs of filters and of evidence.
fn add_more(table: &mut Table, measured: &Measured) {
    let Measured { throughput, fixed, .. } = measured;
    let work = throughput.work.name;
    if !work.starts_with("metadata") {
        return;
    }
    let mut add = |what: &str, aim, through: Through, without, value: fn(f64, f64) -> f64| {
        let of_fixed = |it: &Fixed, other: &Fixed| value(fixed::cpu(it), fixed::cpu(other));
        let ratios = [
            ("at saturation".to_owned(), throughput.compare(through, without, value)),
            (format!("at {RATE} events/s"), fixed.compare(through, without, RATE, of_fixed)),
        ];
        for (at, ratio) in ratios {
            let Some(ratio) = ratio else { continue };
            table.add(&format!("{what}, {}, {at}", through.name()), work, aim, &ratio, 2);
        }
    };
    for (through, aim) in CPU_FILTER {
        add("CPU ÷ the same without filter", aim, through, HTTP, |it, without| it / without);
    }
    let what = "CPU s/GB more than without evidence";
    add(what, CPU_EVIDENCE, HTTP_EVIDENCE, HTTP_DISK, |it, disk| it - disk);
}

fn add_p99(table: &mut Table, measured: &Measured) {
    let Measured { throughput, answers, fixed } = measured;
    let work = throughput.work.name;
    let what = format!("p99 ÷ HAProxy, {}, at", HTTP.name());
    if let Some(ratio) = answers.p99_ratio(HTTP, Comparison::SameRate) {
        table.add(&format!("{what} half the rate of the slower one"), work, P99_RATIO, &ratio, 2);
    }
    for row in fixed.rows.iter().filter(|row| row.through == HTTP) {
        let ratio = fixed.ratio(HTTP, row.events, fixed::p99).expect("this row is there");
        table.add(&format!("{what} {} events/s", row.events), work, P99_RATIO, &ratio, 2);
    }
    for (through, p99) in answers.p99_at_half().filter(|(through, _)| through.on_disk()) {
        let what = format!("p99 at half load, ms, {}", through.name());
        table.add(&what, work, P99_ON_DISK, &p99, 2);
    }
}

/// Adds the aims for memory, each with the relay that took the most. The aim beyond the queue also
/// has a row for syslog. Only the first four routes with the queue in memory count.
fn add_rss(table: &mut Table, measured: &[Measured]) {
    let rows = measured.iter().flat_map(|measured| {
        let Throughput { work, rows } = &measured.throughput;
        rows.iter().map(|row| (work.name, row))
    });
    let has_aims = |row: &Saturated| match row.through {
        Through::Relay(route, mode) => mode == Mode::Memory && !route.is_further(),
        Through::Haproxy(_) | Through::Buffering(_) | Through::Loop | Through::Floor => false,
    };
    let rows: Vec<(&str, &Saturated)> = rows.filter(|(_, row)| has_aims(row)).collect();
    let mut add = |what: &str, aim: f64, value: Value, only: Option<Through>| {
        let rows = rows.iter().filter(|(_, row)| only.is_none_or(|only| row.through == only));
        let figures = rows.map(|(work, row)| (work, row, over(&row.samples, value)));
        let most = figures.max_by(|one, other| one.2.median.total_cmp(&other.2.median));
        if let Some((work, row, figure)) = most {
            let of_all = if only.is_none() { ", at most" } else { "" };
            let what = format!("{what}, MiB{of_all}: {}", row.through.name());
            table.add(&what, work, aim, &figure, 1);
        }
    };
    add("RSS at idle", RSS_IDLE, |it| it.rss_idle, None);
    let beyond: Value = |it| it.rss_beyond;
    add("RSS beyond queue and in flight", RSS_BEYOND, beyond, None);
    add("RSS beyond queue and in flight", RSS_BEYOND, beyond, Some(SYSLOG));
}
