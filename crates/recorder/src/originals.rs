//! Compares the lines that outputs read from files of the queue with the line hashes. If somebody
//! has changed a line, and has made the checksums right again, the line is not sent.
//!
//! A line without a readable hash is not compared, nor any line while nothing is recorded.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use tokio::time::Instant;

use base::disk::{Access, Disk, File};
use base::lock::lock;
use base::position::Position;
use evidence_log::layout::{LINES, LineFile, if_there, path, read_exact};
use evidence_log::lines;
use evidence_log::lines::{HEADING, Heading, Record};
use evidence_log::tlog::merkle::Hash;
use queue::lines;
use telemetry::{EvidenceError, EvidenceMetrics};

/// The number of files whose records are indexed in memory. Each record takes 24 bytes there.
const INDEXED_MAX: usize = 2;

/// The longest time for which a read of lines from a file waits until the recorder has opened the
/// log. After this time, lines are sent without a comparison.
const OPENS_WITHIN: Duration = Duration::from_secs(10);

/// The number of remembered positions of changed events at which all of them are forgotten.
const TOLD_MAX: usize = 1 << 16;

/// The shortest time between two log lines about changed events.
const QUIET: Duration = Duration::from_secs(10);

/// Compares lines from files of the queue with the hashes of the lines that came in.
pub struct Originals {
    disk: Arc<dyn Disk>,
    metrics: EvidenceMetrics,
    indexed: Mutex<Vec<Indexed>>,
    told: Mutex<Told>,
    /// `true`: lines are compared. `None`: the recorder has not opened the log yet.
    compares: Mutex<Option<bool>>,
    decided: Condvar,
}

#[derive(Default)]
struct Told {
    /// The time of the last log line about changed events.
    at: Option<Instant>,
    /// The positions of the changed events that were counted. Several outputs may read an event,
    /// each more than once.
    positions: HashSet<Position>,
}

struct Indexed {
    name: LineFile,
    /// The number of bytes of the file that were searched for records.
    bytes: u64,
    /// The positions and the offset of each record with hashes of received lines.
    records: Vec<(Range<u64>, u64)>,
}

impl fmt::Debug for Originals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Originals").finish_non_exhaustive()
    }
}

impl Originals {
    /// Makes a comparison that waits for [`Originals::decide`].
    pub fn new(disk: Arc<dyn Disk>, metrics: EvidenceMetrics) -> Self {
        Self {
            disk,
            metrics,
            indexed: Mutex::default(),
            told: Mutex::default(),
            compares: Mutex::default(),
            decided: Condvar::new(),
        }
    }

    /// Sets whether lines are compared from now on. The recorder calls this when it has opened the
    /// log, has failed to open it, or records no more. While nothing is recorded, the hashes on the
    /// disk may be those of other events.
    pub fn decide(&self, compares: bool) {
        *lock(&self.compares) = Some(compares);
        self.decided.notify_all();
    }

    /// Waits for [`Originals::decide`], for at most [`OPENS_WITHIN`]. Returns `true` if lines are
    /// compared.
    fn compares(&self) -> bool {
        let compares = lock(&self.compares);
        let waited = self.decided.wait_timeout_while(compares, OPENS_WITHIN, |it| it.is_none());
        let (mut compares, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *compares.get_or_insert(false)
    }

    /// Returns the hashes of received lines in all ranges that overlap these positions. After a
    /// crash, several ranges may have the same position.
    fn ranges(&self, positions: &Range<u64>) -> io::Result<Vec<lines::Range>> {
        let names = if_there(self.disk.list(&path(LINES)))?.unwrap_or_default();
        let mut names: Vec<_> = names.iter().filter_map(|name| LineFile::parse(name)).collect();
        names.sort_unstable();
        names.retain(|name| name.first < positions.end);
        // A record of these positions is in the last file that begins before them, or in a later
        // one. After a crash, a file may end after the first position of the next file, so one more
        // file is read.
        let begins = names.partition_point(|name| name.first <= positions.start);
        let mut found = Vec::new();
        for name in names.into_iter().skip(begins.saturating_sub(2)) {
            let file = if_there(self.disk.open(&path(&name.path()), Access::Read))?;
            // `None`: the relay has just deleted this file.
            let Some(file) = file else { continue };
            for offset in self.offsets(&*file, name, positions)? {
                let read = |buffer: &mut [u8], at| read_exact(&*file, buffer, at);
                if let Some(Record { output: None, range, .. }) = lines::record_at(offset, read)? {
                    found.push(range);
                }
            }
        }
        Ok(found)
    }

    /// Returns the offset in the file of each record of received lines that overlaps these
    /// positions.
    fn offsets(
        &self,
        file: &dyn File,
        name: LineFile,
        positions: &Range<u64>,
    ) -> io::Result<Vec<u64>> {
        let mut indexed = lock(&self.indexed);
        let mut of_file = match indexed.iter().position(|it| it.name == name) {
            Some(at) => indexed.remove(at),
            None => Indexed { name, bytes: 0, records: Vec::new() },
        };
        of_file.read_on(file)?;
        let has =
            |it: &&(Range<u64>, u64)| it.0.start < positions.end && positions.start < it.0.end;
        let offsets = of_file.records.iter().filter(has).map(|(_, offset)| *offset).collect();
        indexed.truncate(INDEXED_MAX - 1);
        indexed.insert(0, of_file);
        Ok(offsets)
    }

    fn tell(&self, changed: &[Position]) {
        let Some(first) = changed.first() else { return };
        let is_due = {
            let mut told = lock(&self.told);
            if told.positions.len() >= TOLD_MAX {
                told.positions.clear();
            }
            let new = changed.iter().filter(|position| told.positions.insert(**position)).count();
            (0..new).for_each(|_| self.metrics.failed(EvidenceError::Tampered));
            let is_due = new > 0 && told.at.is_none_or(|at| at.elapsed() >= QUIET);
            if is_due {
                told.at = Some(Instant::now());
            }
            is_due
        };
        if is_due {
            tracing::error!(
                first_position = first.get(),
                events = changed.len(),
                "events in the files of the queue were changed and do not match the evidence: they \
                 are not sent, and count as lost; find out who can write to queue.directory"
            );
        }
    }
}

impl queue::Originals for Originals {
    fn changed(&self, first: Position, text: &[u8]) -> Vec<Position> {
        if !self.compares() {
            return Vec::new();
        }
        let events = memchr::memchr_iter(b'\n', text).count() as u64;
        let positions = first.get()..first.get() + events;
        let known = self.ranges(&positions).unwrap_or_else(|error| {
            tracing::debug!(%error, "lines of the queue can't be compared with their hashes");
            Vec::new()
        });
        if known.is_empty() {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for (line, position) in lines(&[text]).zip(positions) {
            let mut hashes = known.iter().filter_map(|range| range.hash(position)).peekable();
            if hashes.peek().is_some() {
                let hash = Hash::of(&[line]);
                if hashes.all(|known| *known != hash) {
                    changed.push(Position::new(position));
                }
            }
        }
        self.tell(&changed);
        changed
    }
}

impl Indexed {
    /// Adds the records that were appended to the file since the last call.
    fn read_on(&mut self, file: &dyn File) -> io::Result<()> {
        let mut heading = [0; HEADING];
        while file.read_at(&mut heading, self.bytes)? == HEADING {
            let Some(Heading { bytes, accepted }) = Heading::parse(&heading) else { return Ok(()) };
            self.records.extend(accepted.map(|positions| (positions, self.bytes)));
            self.bytes += bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashes::Hashes;
    use evidence_log::lines::{SALT_BYTES, Salt};
    use queue::Originals as _;
    use telemetry::Telemetry;
    use testing::simulated_disk::SimulatedDisk;

    fn line(at: u64) -> Vec<u8> {
        format!("{{\"event\":{at}}}").into_bytes()
    }

    fn text(positions: Range<u64>) -> Vec<u8> {
        positions.flat_map(|at| [line(at), b"\n".to_vec()].concat()).collect()
    }

    fn record(positions: Range<u64>) -> Record {
        let (first, salt) = (positions.start, Salt([1; SALT_BYTES]));
        let lines = positions.map(|at| Hash::of(&[&line(at)])).collect();
        Record::accepted(lines::Range { first, salt, lines })
    }

    /// Returns a comparison of lines that has been decided, and the files of hashes for it.
    fn opened(telemetry: &Telemetry, compares: bool) -> (Originals, Hashes) {
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new(1));
        let originals = Originals::new(Arc::clone(&disk), telemetry.evidence());
        originals.decide(compares);
        (originals, Hashes::open(disk, 1 << 20, None, true).expect("no fault is set").0)
    }

    /// Method: ranges of random lengths in files of 64 KiB, and records of lines that were sent
    /// between them. Lines are read at random places while the files grow.
    #[test]
    fn each_changed_line_is_found_and_no_other() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (originals, mut hashes) = opened(&Telemetry::new(), true);
        assert!(originals.changed(Position::new(5), &text(5..9)).is_empty());
        let mut next = 100;
        while next < 12_000 {
            let end = next + rng.u64(1..400);
            hashes.push(&record(next..end), next);
            let sent = Record { output: Some("siem".to_owned()), ..record(next..next + 1) };
            hashes.push(&sent, end);
            hashes.commit().expect("no fault is set");
            next = end;
            let first = rng.u64(0..next + 50);
            let last = first + rng.u64(1..900);
            let mut lines = text(first..last);
            assert!(originals.changed(Position::new(first), &lines).is_empty());
            let changed = rng.u64(first..last);
            let at = lines.len() - text(changed..last).len();
            lines[at] = b'x';
            let expected = (100..next).contains(&changed).then_some(Position::new(changed));
            assert_eq!(originals.changed(Position::new(first), &lines), expected.as_slice());
        }
    }

    /// Method: the hashes of some events are there twice, as after a crash, once of other lines.
    #[test]
    fn a_line_is_right_if_any_of_its_hashes_is() {
        let (originals, mut hashes) = opened(&Telemetry::new(), true);
        hashes.push(&record(0..10), 0);
        let mut others = record(50..60);
        others.range.first = 5;
        hashes.push(&others, 0);
        hashes.commit().expect("no fault is set");
        assert!(originals.changed(Position::new(0), &text(0..10)).is_empty());
        assert!(originals.changed(Position::new(5), &text(50..60)).is_empty());
        let wrong = originals.changed(Position::new(8), &text(80..84));
        assert_eq!(wrong, [8, 9, 10, 11].map(Position::new));
    }

    #[test]
    fn nothing_is_compared_if_nothing_is_recorded() {
        let telemetry = Telemetry::new();
        let (originals, mut hashes) = opened(&telemetry, false);
        hashes.push(&record(0..10), 0);
        hashes.commit().expect("no fault is set");
        assert!(originals.changed(Position::new(0), &text(50..60)).is_empty());
        originals.decide(true);
        for _ in 0..3 {
            assert_eq!(originals.changed(Position::new(0), &text(50..60)).len(), 10);
        }
        let counted = telemetry.render();
        assert!(counted.contains("evidence_errors_total{reason=\"tampered\"} 10\n"), "{counted}");
    }
}
