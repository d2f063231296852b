//! The results at fixed rates. Most relays are far below saturation most of the time.

use std::time::Duration;

use crate::figures::Spread;
use crate::floor;
use crate::proxy::Through;
use crate::report::{Column, Detail, column, compare, over, table};
use crate::run::Fixed;
use crate::work::Work;

/// The results of one work at fixed rates.
pub(crate) struct FixedRates {
    pub(crate) rows: Vec<Held>,
}

/// The results of one proxy at one rate.
pub(crate) struct Held {
    pub(crate) through: Through,
    /// The rate in events per second.
    pub(crate) events: u32,
    /// One sample for each round.
    pub(crate) samples: Vec<Fixed>,
}

impl FixedRates {
    /// Makes a row for each proxy at each rate, in events per second. The rows of a proxy are
    /// adjacent.
    pub(crate) fn new(throughs: &[Through], rates: &[u32]) -> Self {
        let rows = throughs.iter().flat_map(|&through| {
            rates.iter().map(move |&events| Held { through, events, samples: Vec::new() })
        });
        Self { rows: rows.collect() }
    }

    fn of(&self, through: Through, events: u32) -> Option<&Held> {
        self.rows.iter().find(|row| row.through == through && row.events == events)
    }

    /// Returns a figure as a multiple of HAProxy's at the same rate, or `None` if one of the two
    /// was not measured at this rate.
    pub(crate) fn ratio(
        &self,
        through: Through,
        events: u32,
        value: fn(&Fixed) -> f64,
    ) -> Option<Spread> {
        self.compare(through, through.haproxy(), events, |it, other| value(it) / value(other))
    }

    /// Compares two proxies at the same rate within each round. Returns `None` if one of them was
    /// not measured at this rate.
    pub(crate) fn compare(
        &self,
        through: Through,
        other: Through,
        events: u32,
        value: impl Fn(&Fixed, &Fixed) -> f64,
    ) -> Option<Spread> {
        let (row, other) = (self.of(through, events)?, self.of(other, events)?);
        Some(compare(&row.samples, &other.samples, value))
    }

    /// Returns the rates in events per second, each once.
    pub(crate) fn rates(&self) -> Vec<u32> {
        let first = self.rows.first().map(|row| row.through);
        let rows = self.rows.iter().filter(|row| Some(row.through) == first);
        rows.map(|row| row.events).collect()
    }

    /// Adds HAProxy's figures to the floor on disk, whose samples have only the writer's so far.
    pub(crate) fn complete_floor(&mut self) {
        for events in self.rates() {
            let (floor, haproxy) = (Through::Floor, Through::Floor.haproxy());
            let (Some(writer), Some(haproxy)) = (self.of(floor, events), self.of(haproxy, events))
            else {
                continue;
            };
            let pairs = haproxy.samples.iter().zip(&writer.samples);
            let samples = pairs.map(|(haproxy, writer)| floor::at_rate(haproxy, writer)).collect();
            let mut rows = self.rows.iter_mut();
            let row = rows.find(|row| row.through == floor && row.events == events);
            row.expect("found before").samples = samples;
        }
    }

    /// Returns a table for each rate.
    pub(crate) fn tables(&self, work: &Work, detail: Detail) -> String {
        self.rates().into_iter().map(|events| self.table(work, events, detail)).collect()
    }

    fn table(&self, work: &Work, events: u32, detail: Detail) -> String {
        let over =
            |row: &Held, value: fn(&Fixed) -> f64, digits| over(&row.samples, value).show(digits);
        let ratio =
            |row: &Held, value| self.ratio(row.through, events, value).expect("this row is there");
        let late: fn(&Fixed) -> f64 = |it| milliseconds(it.answers.late_p99);
        let columns: [Column<'_, Held>; 10] = [
            column("through", |row: &Held| row.through.name()),
            column("CPU s/GB", |row: &Held| over(row, cpu, 3)),
            column("÷ HAProxy", |row: &Held| ratio(row, cpu).show(2)),
            column("CPU % of a core", |row: &Held| over(row, |it| it.cpu / it.seconds * 100.0, 2)),
            column("p50 ms", |row: &Held| over(row, p50, 2)),
            column("p99 ms", |row: &Held| over(row, p99, 2)),
            column("p50 · p99 ÷ HAProxy", |row: &Held| {
                format!("{:.2} · {:.2}", ratio(row, p50).median, ratio(row, p99).median)
            }),
            column("waits/request", |row: &Held| over(row, |it| it.waits, 2)),
            column("sent late, p99 ms", move |row: &Held| over(row, late, 2)).detail(),
            column("refused", |row: &Held| {
                row.samples.iter().map(|it| it.answers.refused).sum::<u64>().to_string()
            })
            .detail(),
        ];
        let rate = f64::from(events) / work.events as f64;
        let rows = self.rows.iter().filter(|row| row.events == events);
        format!("\n### {}: {events} events/s ({rate} requests/s)\n\n", work.name)
            + &table(rows, &columns, detail)
    }
}

/// Returns the CPU seconds per GB.
pub(crate) fn cpu(run: &Fixed) -> f64 {
    run.cpu / run.gigabytes
}

fn p50(run: &Fixed) -> f64 {
    milliseconds(run.answers.p50)
}

/// Returns the time within which 99 % of the requests were answered, in milliseconds.
pub(crate) fn p99(run: &Fixed) -> f64 {
    milliseconds(run.answers.p99)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
