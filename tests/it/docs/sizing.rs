//! The page about sizing: its table follows its formulas, and a queue of that size survives the
//! outage.

use super::pages::Page;
use crate::support::prelude::*;
use crate::support::setup::start_with_dead_consumer;

const MIB: f64 = (1_u64 << 20) as f64;
const GIB: f64 = (1_u64 << 30) as f64;

/// Returns `queue.max_bytes` by the page's formulas, for a queue on disk and each of two replicas
/// with three kube-apiservers.
fn queue_bytes(events_per_second: f64, event_bytes: f64, seconds: f64) -> f64 {
    let batch = (events_per_second / 3.0 * 30.0).clamp(1.0, 400.0);
    let stored = event_bytes + 1.0 + 4_160.0 / batch;
    let events = events_per_second * seconds * stored * 1.25;
    // Open files and the room for damaged records take 192 MiB, or 3/16 of a small queue.
    (events + 192.0 * MIB).min(events * 16.0 / 13.0).max(256.0 * MIB)
}

/// Returns a size as the page writes it.
fn size(bytes: f64) -> String {
    match bytes < GIB / 2.0 {
        true => format!("{:.0} MiB", (bytes / MIB).ceil()),
        false => format!("{:.1} GiB", (bytes / GIB * 10.0).ceil() / 10.0),
    }
}

#[test]
fn the_table_of_sizing_follows_its_formulas() {
    let page = Page::read("docs/operating/sizing.md");
    let mut count = 0;
    for row in page.text.lines().skip_while(|line| !line.starts_with("| events a second |")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [rate, bytes, hours, queue, volume] = cells[..] else { break };
        let number = |cell: &str| cell.replace(',', "").parse::<f64>().ok();
        let (Some(rate), Some(bytes)) = (number(rate), number(bytes)) else { continue };
        let hours = hours.strip_suffix(" h").and_then(number).expect("hours");
        let needed = queue_bytes(rate, bytes, hours * 3600.0);
        assert_eq!(queue, size(needed), "{row}");
        assert_eq!(volume, size((needed + 64.0 * MIB) * 1.05), "{row}");
        count += 1;
    }
    assert_eq!(count, 6);
    // The worked example.
    let example = queue_bytes(150.0, 1430.0, 43_200.0);
    assert!(page.text.contains(&format!("10.9 GiB + 192 MiB = {}", size(example))));
    let rate = 150.0 * (1430.0 + 1.0 + 4_160.0 / 400.0);
    let lasts = (12.0 * GIB - 192.0 * MIB) / rate / 3600.0;
    assert!((16.0..17.0).contains(&lasts) && (5.0..6.0).contains(&(lasts / 3.0)), "{lasts}");
}

/// Method: the consumer refuses connections, and the queue has the size from the page. The relay
/// accepts all events of the outage, and then more until the queue is full. The directory is then
/// not larger than the page says.
#[test]
fn a_queue_of_the_formulas_of_sizing_bears_the_outage() {
    let body = generated_batch(7, 400, 1500);
    let event_bytes = events_of(&body).iter().map(Vec::len).sum::<usize>() as f64 / 400.0;
    // 20 s of 10,000 events/s: 500 batches, some 300 MB.
    let (rate, seconds) = (10_000, 20);
    let needed = queue_bytes(f64::from(rate), event_bytes, f64::from(seconds));
    let volume = (needed + 64.0 * MIB) * 1.05;
    let spool = Spool::new();
    let queue = format!("[queue]\ndirectory = {:?}\nmax_bytes = {needed:.0}\n", spool.path());
    let (relay, _sink) = start_with_dead_consumer("", &queue);
    let batches = rate * seconds / 400;
    for batch in 0..batches {
        assert_eq!(relay.post(&body).status, 200, "batch {batch} of {batches}");
    }
    // The page's formula adds a quarter as a reserve.
    let mut more = 0;
    while relay.post(&body).status == 200 {
        more += 1;
        assert!(more < batches, "the queue does not become full");
    }
    assert!(more >= batches / 8, "{more} of {batches}");
    let (held, allocated) = (relay.metrics().value("queue_bytes", &[]), spool.usage().allocated);
    assert!(held <= needed.ceil(), "{held} {needed}");
    assert!(allocated as f64 <= volume, "{allocated} {volume}");
    relay.finish(Backlog::Stable);
}
