//! The results at fixed rates: most relays are far from saturation most of the time.

use std::time::Duration;

use crate::figures::Spread;
use crate::proxy::Through;
use crate::report::{line, over, ratio};
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
    /// Makes a row for each proxy at each rate, in events per second. Rows of the same proxy follow
    /// each other.
    pub(crate) fn new(throughs: &[Through], rates: &[u32]) -> Self {
        let rows = throughs.iter().flat_map(|&through| {
            rates.iter().map(move |&events| Held { through, events, samples: Vec::new() })
        });
        Self { rows: rows.collect() }
    }

    fn of(&self, through: Through, events: u32) -> Option<&Held> {
        self.rows.iter().find(|row| row.through == through && row.events == events)
    }

    /// Returns a figure as a multiple of HAProxy's at the same rate, or `None` if this proxy was
    /// not measured at this rate.
    pub(crate) fn ratio(
        &self,
        through: Through,
        events: u32,
        value: fn(&Fixed) -> f64,
    ) -> Option<Spread> {
        let row = self.of(through, events)?;
        let haproxy = self.of(through.haproxy(), events).expect("each relay has its HAProxy");
        Some(ratio(&row.samples, &haproxy.samples, value))
    }

    /// Returns a table for each rate.
    pub(crate) fn tables(&self, work: &Work) -> String {
        let Some(first) = self.rows.first().map(|row| row.through) else { return String::new() };
        let rates = self.rows.iter().filter(|row| row.through == first).map(|row| row.events);
        rates.map(|events| self.table(work, events)).collect()
    }

    fn table(&self, work: &Work, events: u32) -> String {
        let mut text = format!(
            "\n### {}: {events} events/s ({} requests/s)\n\n\
             | through | CPU s/GB | ÷ HAProxy | CPU % of a core | p50 ms | p99 ms \
             | p50 · p99 ÷ HAProxy | waits/request | sent late, p99 ms | refused |\n\
             |---|---|---|---|---|---|---|---|---|---|\n",
            work.name,
            f64::from(events) / work.events as f64,
        );
        for row in self.rows.iter().filter(|row| row.events == events) {
            let over = |value: fn(&Fixed) -> f64, digits| over(&row.samples, value).show(digits);
            let ratio = |value| self.ratio(row.through, events, value).expect("this row is there");
            text += &line(&[
                row.through.name(),
                over(cpu, 3),
                ratio(cpu).show(2),
                over(|it| it.cpu / it.seconds * 100.0, 2),
                over(p50, 2),
                over(p99, 2),
                format!("{:.2} · {:.2}", ratio(p50).median, ratio(p99).median),
                over(|it| it.waits, 2),
                over(|it| milliseconds(it.answers.late_p99), 2),
                row.samples.iter().map(|it| it.answers.refused).sum::<u64>().to_string(),
            ]);
        }
        text
    }
}

/// Returns the CPU seconds for each GB.
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
