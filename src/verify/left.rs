//! The lines that left by the outputs that are asked about, according to one log.

use super::positions::Positions;
use crate::evidence::entry::Delivered;

/// The lines that left by one output of one log. Each line has a number: the lines are counted in
/// the order in which the log has their deliveries.
#[derive(Default)]
pub(super) struct Sent {
    /// The name of the output.
    pub(super) output: String,
    /// The source of the lines in the comparison.
    pub(super) source: u16,
    /// For each entry about deliveries the number of its first line, the position of this line, and
    /// the log's time.
    entries: Vec<(u64, u64, u64)>,
    /// The number of the next line.
    next: u64,
    /// The positions of the events that left.
    pub(super) seen: Positions,
    /// The numbers of the lines that left and are asked about.
    pub(super) must: Positions,
}

impl Sent {
    /// Takes the next entry. Returns the number of its first line.
    pub(super) fn enter(&mut self, entry: &Delivered, now: u64) -> u64 {
        let first = self.next;
        self.entries.push((first, entry.first, now));
        self.next = self.next.saturating_add(entry.count);
        first
    }

    /// Returns the position of a line, and the log's time at which it was delivered.
    pub(super) fn place(&self, number: u64) -> (u64, u64) {
        let at = self.entries.partition_point(|entry| entry.0 <= number);
        let entry = at.checked_sub(1).and_then(|at| self.entries.get(at));
        entry.map_or((0, 0), |(first, position, at)| (position + (number - first), *at))
    }

    /// Returns two numbers of lines, if the last line that is stored has the number `last`: that
    /// from which on lines need not have settled, and that from which on they are not exported.
    /// `settle` is in milliseconds.
    pub(super) fn end_of_export(&self, last: Option<u64>, settle: u64) -> (u64, u64) {
        let Some(last) = last else { return (0, 0) };
        let end = self.place(last).1;
        let at = self.entries.partition_point(|entry| entry.2.saturating_add(settle) <= end);
        let settled = self.entries.get(at).map_or(last, |entry| entry.0);
        (settled.min(last), last + 1)
    }
}

/// The lines of one log that left by the outputs that are asked about.
#[derive(Default)]
pub(super) struct Left {
    /// The lines that left by each output of the request.
    pub(super) sent: Vec<Sent>,
    /// The number of events that left and are asked about.
    pub(super) asked: u64,
    /// The events that left and whose line hash is gone.
    pub(super) unhashed: Positions,
    /// The number of events whose fate is not in the log yet.
    pub(super) pending: u64,
    /// `true`: the consumer may have got events that the log calls lost or pending.
    pub(super) has_doubtful: bool,
    /// `true`: the filter of the output changes events.
    pub(super) changes: bool,
    /// `true`: the filter of the output changes or drops events.
    pub(super) filters: bool,
    /// `true`: events may have been sent twice, because of a crash or a change of the config.
    pub(super) sent_again: bool,
    /// `true`: all that left by this log when the stored lines were read is in the log.
    pub(super) is_closed: bool,
    /// `true`: the events before the first one of this log may be those of a log that is not given.
    pub(super) has_earlier_log: bool,
}

impl Left {
    /// `outputs` are those of the request.
    pub(super) fn by(outputs: &[String]) -> Self {
        let sent = outputs.iter().map(|it| Sent { output: it.clone(), ..Sent::default() });
        Self { sent: sent.collect(), ..Self::default() }
    }

    /// Returns `true` if the request asks about the lines of this output.
    pub(super) fn has(&self, output: &str) -> bool {
        self.sent.iter().any(|sent| sent.output == output)
    }
}
