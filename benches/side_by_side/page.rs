//! The tables of benches/RESULTS.md that this bench measures, in the order of that page.

use std::fmt::Write as _;

use crate::aims::{Measured, in_short};
use crate::figures::Spread;
use crate::fixed;
use crate::idle::Idle;
use crate::proxy::{Form, Through};
use crate::report::{Detail, cpu, line, over};
use crate::run::Fixed;

/// Returns everything after the conditions of the measurement. `replay_window` is in milliseconds.
pub(crate) fn page(measured: &[Measured], idle: &Idle, replay_window: u32) -> String {
    let mut text = format!("\n## In short\n\n{}", in_short(measured, idle));
    text += "\n## Side by side\n";
    for measured in measured {
        let Measured { throughput, answers, .. } = measured;
        let (name, bytes) = (throughput.work.name, throughput.work.body.len());
        let table =
            throughput.table_of(|it| !is_further(it) && it.form() != Form::Gzip, Detail::Page);
        write!(text, "\n### {name} ({bytes} bytes): at saturation\n\n{table}")
            .expect("a String takes everything");
        text += &throughput.replay_window(replay_window);
        text += &answers.table(name, Detail::Page);
        text += &filters(measured);
    }
    text += "\n## Further routes\n";
    for Measured { throughput, .. } in measured {
        let further = || throughput.rows.iter().map(|row| row.through).filter(|it| is_further(*it));
        if further().next().is_some() {
            let wanted = |through| further().any(|it| through == it || through == it.haproxy());
            let table = throughput.table_of(wanted, Detail::Page);
            write!(text, "\n### {}: at saturation\n\n{table}", throughput.work.name)
                .expect("a String takes everything");
        }
    }
    text += "\n## At fixed rates\n";
    for Measured { throughput, fixed, .. } in measured {
        text += &fixed.tables(&throughput.work, Detail::Page);
    }
    text += "\n## Idle connections\n";
    text + &idle.table()
}

fn is_further(through: Through) -> bool {
    matches!(through, Through::Relay(route, _) if route.is_further())
}

/// Returns how many requests were refused at saturation, at half load and at fixed rates.
pub(crate) fn refused(measured: &[Measured]) -> u64 {
    let of = |Measured { throughput, answers, fixed }: &Measured| {
        let saturated = throughput.rows.iter().map(|row| row.refused());
        let paced = answers.rows.iter().map(|row| row.refused());
        let held = fixed.rows.iter().flat_map(|row| &row.samples).map(|it| it.answers.refused);
        saturated.chain(paced).chain(held).sum::<u64>()
    };
    measured.iter().map(of).sum()
}

/// Returns the table of relays with a filter, beside the same relays without it. It is empty if no
/// relay with a filter was measured.
pub(crate) fn filters(measured: &Measured) -> String {
    let Measured { throughput, fixed, .. } = measured;
    let mut rows = String::new();
    let mut add = |through: Through, rate: &str, cpu: &Spread, ratios: [Option<Spread>; 2]| {
        let [haproxy, without] = ratios.map(|it| it.map_or_else(String::new, |it| it.show(2)));
        rows += &line(&[through.name(), rate.to_owned(), cpu.show(3), haproxy, without]);
    };
    for row in &throughput.rows {
        let through = row.through;
        let Some(without) = through.without_filter() else { continue };
        let ratio = |other| throughput.compare(through, other, |it, other| it / other);
        let ratios = [through.haproxy(), without].map(ratio);
        add(through, "saturation", &over(&row.samples, cpu), ratios);
    }
    for row in &fixed.rows {
        let (through, events) = (row.through, row.events);
        let Some(without) = through.without_filter() else { continue };
        let ratio = |it: &Fixed, other: &Fixed| fixed::cpu(it) / fixed::cpu(other);
        let compare = |other| fixed.compare(through, other, events, ratio);
        let ratios = [through.haproxy(), without].map(compare);
        add(through, &format!("{events} events/s"), &over(&row.samples, fixed::cpu), ratios);
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "\n### {}: with a filter\n\n\
         | through | rate | CPU s/GB | ÷ HAProxy | ÷ the same without filter |\n\
         |---|---|---|---|---|\n{rows}",
        throughput.work.name,
    )
}
