//! Collects what the oracle judges: arrivals, dead letters, and the counted losses of all lives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::consumers::{Arrived, Consumer, Kind};
use crate::kernel;
use crate::oracle::said::{LATE, Memory, Said};
use crate::oracle::{Calm, Counted, Letter, View, World, letters, losses_in, said, uncounted};
use crate::support::metrics::Metrics;
use crate::truth::Book;

/// The events that all lives have counted as lost, for each output and for `queue`.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// The losses of the lives that have ended.
    ended: BTreeMap<String, u64>,
}

impl Losses {
    /// Adds the losses that a life had counted shortly before it ended.
    pub(crate) fn add_metrics(&mut self, metrics: &Metrics) {
        for (labels, value) in metrics.all("kube_audit_forwarder_error_total") {
            let plugin = labels.into_iter().find(|(name, _)| name == "plugin");
            // Counts are whole numbers, far below the largest that a float can hold.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let count = value as u64;
            *self.ended.entry(plugin.map(|(_, name)| name).unwrap_or_default()).or_default() +=
                count;
        }
    }

    /// Adds the losses in the last line of a log. Returns `false` if there is no such line.
    pub(crate) fn add_last_line(&mut self, log: &str) -> bool {
        let is_last = |line: &&str| line.contains(" the relay has ended");
        let Some(line) = log.lines().rev().find(is_last) else { return false };
        let Some((_, outputs)) = line.split_once("outputs=\"") else { return false };
        for part in outputs.trim_end_matches('"').split("; ") {
            let Some((name, numbers)) = part.split_once(": ") else { continue };
            let lost = numbers.split(", ").find_map(|number| number.strip_suffix(" lost"));
            if let Some(lost) = lost.and_then(|lost| lost.parse::<u64>().ok()) {
                *self.ended.entry(name.to_owned()).or_default() += lost;
            }
        }
        true
    }

    pub(crate) fn of(&self, name: &str) -> u64 {
        self.ended.get(name).copied().unwrap_or(0)
    }
}

fn all_letters() -> Vec<Letter> {
    let Ok(files) = fs::read_dir("letters") else { return Vec::new() };
    let files = files.filter_map(|file| fs::read(file.ok()?.path()).ok());
    files.flat_map(|file| letters(&file)).collect()
}

/// Returns a function that recognizes the events that a consumer refuses for good.
fn refuses(consumer: &Consumer) -> impl Fn(&[u8]) -> bool + '_ {
    |event| consumer.refuses(event)
}

/// Judges a run at its end.
pub(crate) fn judge(
    book: &Book,
    consumers: &[Consumer],
    losses: &Losses,
    calm: Calm,
    said: &[Said],
    (memory, room): (&[Memory], usize),
) -> Vec<String> {
    let arrived: Vec<Vec<Arrived>> = consumers.iter().map(|it| it.arrived_since(0)).collect();
    let mut by_output: BTreeMap<String, Vec<Letter>> = BTreeMap::new();
    for letter in all_letters() {
        by_output.entry(letter.output.clone()).or_default().push(letter);
    }
    let of = |(output, letters): (&String, &Vec<Letter>)| {
        let counted = book.read(|truth| uncounted::counted(letters, output, truth, said));
        (output.clone(), counted)
    };
    let counted_letters: BTreeMap<String, Vec<Letter>> = by_output.iter().map(of).collect();
    let mut faults: Vec<String> = Vec::new();
    for consumer in consumers {
        let violations = consumer.violations().into_iter();
        faults.extend(violations.map(|it| format!("protocol: {}: {it}", consumer.name)));
    }
    book.read(|truth| {
        let configs = truth.epochs.iter().flat_map(|epoch| &epoch.config.outputs);
        let outputs: BTreeSet<(&str, usize)> =
            configs.map(|output| (output.name.as_str(), output.consumer)).collect();
        let refusals: Vec<_> = consumers.iter().map(refuses).collect();
        let troubles: Vec<_> = consumers.iter().map(Consumer::troubles).collect();
        let cuts: Vec<_> = consumers.iter().map(Consumer::cuts).collect();
        let turned_down: Vec<_> = consumers.iter().map(Consumer::turned_down).collect();
        let mut views = Vec::new();
        for (output, number) in outputs {
            let consumer = &consumers[number];
            let letters = by_output.get(output).map_or(&[][..], Vec::as_slice);
            let counted_letters = counted_letters.get(output).map_or(&[][..], Vec::as_slice);
            let counted = Counted {
                lost: losses.of(output),
                queue: losses.of("queue"),
                letters: losses_in(counted_letters),
                letters_dropped: 0,
            };
            views.push(View {
                output,
                consumer: number,
                promise: consumer.promise(),
                is_unconfirmed: matches!(consumer.kind, Kind::Tcp | Kind::Syslog),
                is_stream: matches!(
                    consumer.kind,
                    Kind::Tcp | Kind::Syslog | Kind::Relp | Kind::Lumberjack
                ),
                refuses_requests: matches!(
                    consumer.kind,
                    Kind::Http | Kind::Loki | Kind::Otlp | Kind::Ibm
                ),
                has_door: consumer.has_door(),
                arrived: &arrived[number],
                turned_down: &turned_down[number],
                troubles: &troubles[number],
                letters,
                counted_letters,
                counted,
                refuses: &refusals[number],
                consumer_died: consumer.died(),
                cuts: &cuts[number],
                longest: consumer.longest(),
                late: LATE + consumer.collects(),
            });
        }
        let world = World::new(truth, kernel::now(), views);
        faults.extend(world.judge(calm).iter().map(ToString::to_string));
        let too_much = memory.iter().filter_map(|it| said::memory(&world, *it, room));
        faults.extend(too_much.map(|it| it.to_string()));
        faults.extend(said::judge(&world, said, calm).iter().map(ToString::to_string));
    });
    faults
}
