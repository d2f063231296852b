//! The inspection commands on directories that are whole, torn, damaged or incomplete, and while a
//! relay changes the directory at the worst moments.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

use super::*;
use crate::cursors::{Cursors, Hole};
use crate::segment::{BLOCK, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, Seed, WINDOW};
use crate::synced::SyncedFile;
use base::disk::Access;
use testing::simulated_disk::{Operation, SimulatedDisk};

/// The length of each event's line, in bytes.
const LINE: u64 = 100;

/// Returns the time at which the event at a position was received, in milliseconds since 1970:
/// about 1,000 seconds ago.
fn received(position: u64) -> u64 {
    now() - 1_000_000 + position
}

fn line(position: u64) -> Vec<u8> {
    let mut line = format!("{{\"n\":{position},\"x\":\"").into_bytes();
    line.resize(usize::try_from(LINE).unwrap() - 3, b'x');
    line.extend(b"\"}\n");
    line
}

fn lines(positions: Range<u64>) -> Vec<u8> {
    positions.flat_map(line).collect()
}

fn place(position: u64) -> LogOffset {
    LogOffset { position: Position::new(position), byte: position * LINE }
}

/// A log as its writer makes it.
struct Log {
    disk: SimulatedDisk,
    end: u64,
    /// The active segment, and the offset after its last record.
    active: Option<(Arc<dyn File>, u64)>,
    seed: Seed,
    /// The segment, the offset and the positions of each record.
    records: Vec<(String, u64, Range<u64>)>,
}

const RESERVED: u64 = 16 * BLOCK;

impl Log {
    fn new(end: u64) -> Self {
        let seed = Seed::NONE;
        Self { disk: SimulatedDisk::new(1), end, active: None, seed, records: Vec::new() }
    }

    /// Makes a log with two segments, an active one, and two outputs.
    fn usual() -> Self {
        let mut log = Self::new(0);
        log.segment().group(&[3, 1]).group(&[60]).group(&[1]);
        log.segment().group(&[50, 10]).group(&[5]);
        log.segment().group(&[2]).group(&[20, 30]);
        log.cursors(&[("fast", 182), ("slow", 40)], &[], 182);
        log
    }

    fn seal(&mut self) {
        if let Some((file, offset)) = self.active.take() {
            file.truncate(offset).unwrap();
        }
    }

    fn segment(&mut self) -> &mut Self {
        self.seal();
        let file =
            self.disk.create(&segment::file_name(Position::new(self.end)), RESERVED).unwrap();
        let first = place(self.end);
        let header = SegmentHeader::new(first, 1, false);
        file.write_at(&[&header.encode()], 0).unwrap();
        self.seed = header.seed();
        self.active = Some((file, FIRST_RECORD));
        self
    }

    /// Adds a group of records with this many events each.
    fn group(&mut self, records: &[u64]) -> &mut Self {
        let (file, mut offset) = self.active.take().expect("a segment");
        let name = self.names().pop().expect("a segment");
        offset = offset.next_multiple_of(BLOCK);
        let group = self.end;
        for &events in records {
            let positions = self.end..self.end + events;
            let lines = lines(positions.clone());
            let header = header(&positions, group, &lines, self.seed).encode(self.seed);
            file.write_at(&[&header, &lines], offset).unwrap();
            self.records.push((name.clone(), offset, positions));
            offset += RECORD_HEADER + lines.len() as u64;
            self.end += events;
        }
        self.active = Some((file, offset));
        self
    }

    /// Writes the cursors file, with the end of the log as it is known at that time.
    fn cursors(&self, outputs: &[(&str, u64)], holes: &[Range<u64>], end: u64) {
        let outputs = outputs.iter().map(|(name, at)| ((*name).to_owned(), place(*at))).collect();
        let hole = |hole: &Range<u64>| Hole {
            start: Position::new(hole.start),
            end: Position::new(hole.end),
            bytes: (hole.end - hole.start) * LINE,
        };
        let holes = holes.iter().map(hole).collect();
        let contents = Contents { end: place(end), outputs, holes, ..Contents::default() };
        let found = cursors::read(&self.disk).unwrap();
        Cursors::open(&self.disk, &found).unwrap().write(&self.disk, &contents).unwrap();
    }

    /// Notes that the log is synced up to this position, where the active segment ends.
    fn synced(&self, end: u64) {
        let segments = segment::list(&self.disk).unwrap();
        let segment = *segments.last().expect("a segment");
        let (_, offset) = self.active.as_ref().expect("a segment");
        let synced = Synced { end: place(end), segment, offset: *offset };
        SyncedFile::default().write(&self.disk, &synced).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let segments = segment::list(&self.disk).unwrap();
        segments.into_iter().map(segment::file_name).collect()
    }

    fn directory(&self) -> Directory {
        on(Arc::new(self.disk.clone()))
    }

    fn put(&self, name: &str, offset: u64, bytes: &[u8]) {
        self.disk.open(name, Access::Write).unwrap().write_at(&[bytes], offset).unwrap();
    }

    fn verify(&self) -> (Verdict, Vec<String>) {
        verify(&self.directory())
    }

    fn export(&self, output: Option<&str>) -> (Vec<u8>, Vec<String>) {
        export(&self.directory(), output)
    }
}

fn header(positions: &Range<u64>, group: u64, lines: &[u8], seed: Seed) -> RecordHeader {
    RecordHeader {
        first: Position::new(positions.start),
        first_byte: positions.start * LINE,
        received: received(positions.start),
        length: lines.len() as u64,
        events: positions.end - positions.start,
        group: Position::new(group),
        crc: seed.crc(lines),
    }
}

fn on(disk: Arc<dyn Disk>) -> Directory {
    Directory { disk, root: PathBuf::from("/spool") }
}

fn verify(directory: &Directory) -> (Verdict, Vec<String>) {
    let mut told = Vec::new();
    let verdict = directory.verify(&mut |seen| {
        match seen {
            Seen::At(_) | Seen::Lines(_) => panic!("nobody has asked for them"),
            Seen::Finding(finding) => told.push(finding.to_string()),
            Seen::Progress(done, of) => assert!((1..=of).contains(&done)),
        }
        Ok(())
    });
    let verdict = verdict.unwrap();
    assert_eq!(verdict.findings, told.len() as u64);
    (verdict, told)
}

fn export(directory: &Directory, output: Option<&str>) -> (Vec<u8>, Vec<String>) {
    let (mut lines, mut told) = (Vec::new(), Vec::new());
    let exported = directory.export(output, &mut |seen| {
        match seen {
            Seen::At(position) => {
                let before = memchr::memchr_iter(b'\n', &lines).count() as u64;
                assert!(position.get() >= before, "{position} with {before} lines before it");
            }
            Seen::Lines(some) => {
                assert!(!some.is_empty() && some.len() as u64 <= WINDOW);
                lines.extend(some);
            }
            Seen::Finding(finding) => told.push(finding.to_string()),
            Seen::Progress(..) => {}
        }
        Ok(())
    });
    exported.unwrap();
    (lines, told)
}

/// Returns everything that the commands show, for comparisons.
fn seen(directory: &Directory) -> (Vec<String>, Vec<u8>, u64) {
    let ((lines, told), summary) = (export(directory, None), directory.summary().unwrap());
    (told, lines, summary.end.get())
}

#[test]
fn a_whole_log_is_shown_exported_and_verified_and_nothing_is_changed() {
    let log = Log::usual();
    let copy = log.disk.create(&format!("{QUARANTINE}/x.bad"), 77).unwrap();
    drop(copy);
    let changes = log.disk.changes();

    let summary = log.directory().summary().unwrap();
    let size = |name: &String| log.disk.contents(name).len() as u64;
    assert_eq!(summary.segments, 3);
    assert_eq!(summary.segment_bytes, log.names().iter().map(size).sum::<u64>());
    assert_eq!((summary.first.get(), summary.end.get()), (0, 182));
    assert_eq!((summary.format, summary.cursors), (2, CursorsFile::Whole));
    assert_eq!((summary.damaged_headers, summary.quarantine), (0, (1, 77)));
    let [fast, slow] = summary.outputs.as_slice() else { panic!("{summary:?}") };
    assert_eq!((fast.name.as_str(), fast.events, fast.bytes), ("fast", 0, 0));
    assert_eq!(fast.oldest, Some(Duration::ZERO));
    assert_eq!((slow.name.as_str(), slow.events, slow.bytes), ("slow", 142, 142 * LINE));
    // The record of the oldest event holds the positions 4 to 63.
    let age = slow.oldest.expect("it can be read").as_millis();
    assert!((999_996..1_060_000).contains(&age), "{age}");

    let (verdict, told) = log.verify();
    assert_eq!((verdict.segments, verdict.events, verdict.bytes), (3, 182, 182 * LINE));
    assert_eq!((told, verdict.missing, verdict.unfinished), (vec![], 0, None));

    assert_eq!(log.export(None), (lines(0..182), vec![]));
    assert_eq!(log.export(Some("slow")), (lines(40..182), vec![]));
    assert_eq!(log.export(Some("fast")), (vec![], vec![]));
    assert_eq!(log.disk.changes(), changes);
}

/// Reads the log from a position on, and returns the lines, the faults and the missing positions.
fn read(directory: &Directory, from: u64) -> (Vec<u8>, Vec<String>, Vec<Range<u64>>) {
    let (mut lines, mut told, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let read = directory.read(Position::new(from), None, &mut |seen| {
        match seen {
            Seen::Lines(some) => lines.extend(some),
            Seen::Finding(finding) => {
                told.push(finding.to_string());
                missing.push(finding.positions.start.get()..finding.positions.end.get());
            }
            Seen::At(_) | Seen::Progress(..) => {}
        }
        Ok(())
    });
    read.unwrap();
    (lines, told, missing)
}

/// Method: the log is read from each position on, both before and after the position of the lowest
/// cursor, with a cursors file and without one. Segments that are skipped must not count as
/// missing.
#[test]
fn a_log_is_read_from_any_position_whatever_its_cursors_say() {
    let log = Log::usual();
    for from in 0..=182 {
        assert_eq!(read(&log.directory(), from), (lines(from..182), vec![], vec![]), "{from}");
    }
    log.disk.remove(cursors::FILE).unwrap();
    for from in 0..=182 {
        assert_eq!(read(&log.directory(), from), (lines(from..182), vec![], vec![]), "{from}");
    }
}

#[test]
fn faults_name_the_positions_that_are_missing_from_the_first_one_that_is_asked_for() {
    let log = Log::usual();
    log.cursors(&[("slow", 0)], &[], 182);
    // The third record holds the positions 4 to 63.
    let (name, offset, positions) = log.records[2].clone();
    assert_eq!(positions, 4..64);
    log.disk.flip(&name, offset + 90, 1);
    for (from, missing) in [(0, 4..64), (4, 4..64), (30, 30..64)] {
        let (read, told, positions) = read(&log.directory(), from);
        assert_eq!(positions, std::slice::from_ref(&missing));
        assert_eq!(read, [lines(from.min(4)..4), lines(64..182)].concat());
        let events = missing.end - missing.start;
        assert!(told[0].ends_with(&format!("{events} events missing")), "{told:?}");
    }
    assert_eq!(read(&log.directory(), 64), (lines(64..182), vec![], vec![]));
}

#[test]
fn what_is_left_over_begins_at_the_lowest_cursor_or_at_the_one_that_is_asked_for() {
    let log = Log::usual();
    let left = |output| log.directory().leftover(output);
    let all = left(None).unwrap();
    assert_eq!((all.begin.get(), all.end.get(), all.bytes), (40, 182, 142 * LINE));
    let outputs: Vec<_> = all.outputs.iter().map(|(name, at)| (&**name, at.get())).collect();
    assert_eq!(outputs, [("fast", 182), ("slow", 40)]);
    let one = left(Some("fast")).unwrap();
    assert_eq!((one.begin.get(), one.end.get(), one.bytes), (182, 182, 0));
    let error = left(Some("nobody")).unwrap_err().to_string();
    assert!(error.contains("which has the outputs: fast, slow"), "{error}");

    // The relay has dropped the positions 64 to 127.
    let hole = 64..128;
    log.cursors(&[("fast", 182), ("slow", 40)], std::slice::from_ref(&hole), 182);
    let holes = left(None).unwrap();
    let dropped = |from, to| holes.dropped_in(Position::new(from)..Position::new(to));
    assert_eq!([dropped(0, 182), dropped(100, 182), dropped(128, 182)], [64, 28, 0]);

    // Without a usable cursors file all stored events are left over, even if one output is named.
    log.disk.remove(cursors::FILE).unwrap();
    for output in [None, Some("fast"), Some("nobody")] {
        let all = left(output).unwrap();
        assert_eq!((all.begin.get(), all.end.get()), (0, 182));
        assert_eq!((all.cursors, all.outputs.len()), (CursorsFile::Missing, 0));
    }
    // The queue has no identity, so it is named after its first segment.
    assert_eq!(left(None).unwrap().queue, all.queue);
    assert!(all.queue.starts_with("unnamed-"), "{}", all.queue);
}

#[test]
fn an_unknown_output_is_told_with_the_names_that_there_are() {
    let log = Log::usual();
    let error = log.directory().export(Some("a\tb"), &mut |_| Ok(())).unwrap_err();
    let told = error.to_string();
    assert!(told.contains(r"output a\u{9}b ") && told.ends_with("fast, slow"), "{told}");
    let log = Log::new(0);
    let error = log.directory().export(Some("x"), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().ends_with("none"), "{error}");
}

#[test]
fn names_are_one_printable_word() {
    for (name, shown) in [
        ("logstash-2", "logstash-2"),
        ("", "\"\""),
        ("a b", r"a\u{20}b"),
        ("\x1b[2J\n", r"\u{1b}[2J\u{a}"),
        ("\u{202e}x", r"\u{202e}x"),
    ] {
        assert_eq!(printable(name), shown);
    }
}

#[test]
fn a_changed_byte_costs_its_record_and_is_told_with_its_place() {
    for (name, offset, positions) in Log::usual().records {
        let size = RECORD_HEADER + (positions.end - positions.start) * LINE;
        for at in [0, 9, 63, 64, size / 2, size - 1] {
            let log = Log::usual();
            log.disk.flip(&name, offset + at, 0x20);
            let events = positions.end - positions.start;
            let missing = counted(events, "event", "events");
            let told = format!("{name} offset {offset}: {size} bytes damaged, {missing} missing");
            let (verdict, found) = log.verify();
            assert_eq!(found, [told.as_str()], "byte {at}");
            assert_eq!((verdict.events, verdict.missing), (182 - events, events));
            let whole = [lines(0..positions.start), lines(positions.end..182)].concat();
            assert_eq!(log.export(None), (whole, vec![told]));
        }
    }
}

#[test]
fn a_changed_byte_in_a_segments_header_costs_nothing_and_is_told() {
    for name in Log::usual().names() {
        let log = Log::usual();
        log.disk.flip(&name, 20, 1);
        let (verdict, told) = log.verify();
        assert_eq!(told, [format!("{name} offset 0: 48 bytes damaged, 0 events missing")]);
        assert_eq!(verdict.events, 182);
        let summary = log.directory().summary().unwrap();
        assert_eq!((summary.damaged_headers, summary.end.get()), (1, 182));
        assert_eq!(summary.outputs[1].bytes, 142 * LINE);
    }
}

#[test]
fn records_damaged_one_after_another_are_one_place() {
    let log = Log::usual();
    let (name, offset, _) = log.records[4].clone();
    log.disk.flip(&name, offset, 1);
    log.disk.flip(&name, log.records[5].1 + 80, 1);
    let (_, told) = log.verify();
    let bytes = 60 * LINE + 2 * RECORD_HEADER;
    assert_eq!(told, [format!("{name} offset {offset}: {bytes} bytes damaged, 60 events missing")]);
}

#[test]
fn the_part_that_an_output_had_of_a_damaged_record_is_not_missing() {
    let log = Log::usual();
    let (name, offset, _) = log.records[2].clone();
    log.disk.flip(&name, offset + 60, 1);
    let (exported, told) = log.export(Some("slow"));
    assert_eq!(exported, lines(64..182));
    assert!(told[0].ends_with("bytes damaged, 24 events missing"), "{told:?}");
}

#[test]
fn a_write_that_was_cut_off_is_no_damage() {
    let log = Log::usual();
    log.cursors(&[("fast", 132), ("slow", 40)], &[], 132);
    for (name, offset, positions) in log.records.iter().skip(8).cloned() {
        let end = offset + RECORD_HEADER + (positions.end - positions.start) * LINE;
        let whole = log.disk.contents(&name);
        // Nothing was written from a sector on, or one single sector was not written, for each
        // sector. The records after it in the same group do not count either.
        for sector in offset / 512 + 1..end / 512 {
            for upto in [end, (sector + 1) * 512] {
                log.put(&name, 0, &whole);
                let zeros = vec![0; usize::try_from(upto - sector * 512).unwrap()];
                log.put(&name, sector * 512, &zeros);
                let (verdict, told) = log.verify();
                assert_eq!(told, Vec::<String>::new());
                assert_eq!(verdict.unfinished, Some((name.clone(), offset)), "sector {sector}");
                let kept = positions.start;
                assert_eq!(seen(&log.directory()), (vec![], lines(0..kept), kept));
            }
        }
        // Events before the end that the cursors file knows were acknowledged.
        log.cursors(&[("fast", 182), ("slow", 40)], &[], 182);
        let (verdict, told) = log.verify();
        let events = positions.end - positions.start;
        assert_eq!((verdict.unfinished, verdict.missing, told.len()), (None, events, 1));
        assert_eq!(log.directory().summary().unwrap().end, 182);
        log.put(&name, 0, &whole);
        log.cursors(&[("fast", 132), ("slow", 40)], &[], 132);
    }
    // A group that is followed by another group was synced.
    let (name, offset, _) = log.records[5].clone();
    log.put(&name, offset + 500, &[0; 600]);
    assert_eq!(log.verify().1.len(), 1);
    // This also holds in the last segment, although no file says that the group was synced.
    log.cursors(&[("fast", 130), ("slow", 40)], &[], 130);
    let (name, offset, _) = log.records[7].clone();
    log.put(&name, offset, &[0; 600]);
    assert_eq!(log.verify().1.len(), 2);
    assert_eq!(log.directory().summary().unwrap().end, 182);
}

#[test]
fn a_segment_that_was_about_to_be_made_is_no_damage() {
    for bytes in [0, RESERVED] {
        let mut log = Log::usual();
        log.seal();
        log.disk.create(&segment::file_name(Position::new(log.end)), bytes).unwrap();
        let (verdict, told) = log.verify();
        assert_eq!(told, Vec::<String>::new());
        assert_eq!(verdict.unfinished, Some((segment::file_name(Position::new(182)), 0)));
        assert_eq!(seen(&log.directory()), (vec![], lines(0..182), 182));
        assert_eq!(log.directory().summary().unwrap().damaged_headers, 0);
    }
    let mut log = Log::usual();
    log.seal();
    let file = log.disk.create(&segment::file_name(Position::new(log.end)), RESERVED).unwrap();
    file.write_at(&[b"not a header"], 0).unwrap();
    assert_eq!(log.verify().1, Vec::<String>::new());
    // The cursors file says that the segment held events.
    log.cursors(&[("slow", 182)], &[], 190);
    assert_eq!(log.verify().1.len(), 2);
    assert_eq!(log.directory().summary().unwrap().end, 190);
    // A segment that holds records had a header.
    let log = Log::usual();
    let name = log.names().pop().unwrap();
    log.put(&name, 0, &[0; SEGMENT_HEADER]);
    let (verdict, told) = log.verify();
    assert_eq!(told, [format!("{name} offset 0: 48 bytes damaged, 0 events missing")]);
    assert_eq!((verdict.events, verdict.unfinished), (182, None));
}

#[test]
fn what_a_failed_write_left_behind_is_no_damage() {
    let mut log = Log::usual();
    let name = log.names().pop().unwrap();
    // The lost record was never acknowledged, and its positions were given to later events.
    let lost = lines(182..200);
    let offset = log.active.as_ref().unwrap().1.next_multiple_of(BLOCK);
    for (head, torn) in [(true, false), (true, true), (false, true)] {
        let mut bytes = header(&(182..200), 182, &lost, log.seed).encode(log.seed).to_vec();
        bytes.extend(&lost);
        if !head {
            bytes[..512].fill(b'x');
        }
        if torn {
            bytes[600..].fill(0);
        }
        log.put(&name, offset, &bytes);
        log.active = None;
        if log.names().len() == 3 {
            log.segment().group(&[4]);
        }
        assert_eq!(log.verify().1, Vec::<String>::new());
        assert_eq!(seen(&log.directory()), (vec![], lines(0..186), 186));
    }
}

#[test]
fn missing_events_are_told_as_far_as_an_output_needs_them() {
    let gap = |start: u64, end: u64| {
        let events = end - start;
        vec![format!(
            "positions {start} to {}: {events} events missing, no segment has them",
            end - 1
        )]
    };
    let remove = |log: &Log, index: usize| log.disk.remove(&log.names()[index]).unwrap();
    // A file in the middle is missing.
    let log = Log::usual();
    remove(&log, 1);
    assert_eq!(log.verify().1, gap(65, 130));
    assert_eq!(log.export(None), ([lines(0..65), lines(130..182)].concat(), gap(65, 130)));
    assert_eq!(log.export(Some("slow")).1, gap(65, 130));
    assert_eq!(log.export(Some("fast")).1, Vec::<String>::new());
    log.cursors(&[("fast", 182), ("slow", 100)], &[], 182);
    assert_eq!(log.verify().1, gap(100, 130));
    log.cursors(&[("fast", 182), ("slow", 40)], std::slice::from_ref(&(65..130)), 182);
    assert_eq!(log.verify().1, Vec::<String>::new());
    assert_eq!(log.directory().summary().unwrap().outputs[1].events, 142 - 65);
    // The oldest file is missing.
    let log = Log::usual();
    remove(&log, 0);
    assert_eq!(log.verify().1, gap(40, 65));
    log.cursors(&[("slow", 65)], &[], 182);
    assert_eq!(log.verify().1, Vec::<String>::new());
    // The newest file is missing; the cursors file knows the end of the log.
    let log = Log::usual();
    remove(&log, 2);
    assert_eq!(log.verify().1, gap(130, 182));
    // All files are missing.
    remove(&log, 0);
    remove(&log, 0);
    assert_eq!(log.verify().1, gap(40, 182));
    assert_eq!(log.directory().summary().unwrap().outputs[1].oldest, None);
    log.cursors(&[("slow", 182)], &[], 182);
    assert_eq!(log.verify().1, Vec::<String>::new());
    // A record in the middle of a file is missing without a trace, and then a record at the end.
    let log = Log::usual();
    let (name, offset, _) = log.records[2].clone();
    log.put(&name, offset, &vec![0; usize::try_from(RECORD_HEADER + 60 * LINE).unwrap()]);
    let bytes = log.records[3].1 - offset;
    let zeros = format!("{name} offset {offset}: {bytes} bytes damaged, 60 events missing");
    assert_eq!(log.verify().1, std::slice::from_ref(&zeros));
    let (name, offset, _) = log.records[6].clone();
    log.disk.open(&name, Access::Write).unwrap().truncate(offset).unwrap();
    assert_eq!(log.verify().1, [vec![zeros], gap(125, 130)].concat());
}

#[test]
fn without_the_cursors_file_everything_is_needed() {
    let log = Log::usual();
    log.disk.flip(cursors::FILE, 30, 1);
    let (verdict, told) = log.verify();
    assert_eq!((verdict.events, told.len()), (182, 1));
    assert!(told[0].contains("one of two slots"), "{told:?}");
    assert_eq!(log.export(None), (lines(0..182), vec![]));
    log.disk.flip(cursors::FILE, cursors::BYTES / 2 + 30, 1);
    assert!(log.verify().1[0].contains("cursors: damaged"));
    let summary = log.directory().summary().unwrap();
    assert_eq!(
        (summary.cursors, summary.outputs, summary.end),
        (CursorsFile::Damaged, vec![], Position::new(182))
    );
    log.disk.remove(cursors::FILE).unwrap();
    assert!(log.verify().1[0].contains("cursors: missing"));
    log.disk.remove(&log.names()[1]).unwrap();
    assert_eq!(log.verify().1.len(), 2);
    assert_eq!(log.export(None).0, [lines(0..65), lines(130..182)].concat());
    // This queue was never used.
    let log = Log::new(0);
    assert_eq!(log.verify().1, Vec::<String>::new());
    assert_eq!(seen(&log.directory()), (vec![], vec![], 0));
}

#[test]
fn a_newer_version_is_refused() {
    let log = Log::usual();
    let name = log.names()[1].clone();
    let mut header = log.disk.contents(&name)[..SEGMENT_HEADER].to_vec();
    header[8] = 3;
    let crc = crc32c::crc32c(&header[..44]);
    header[44..].copy_from_slice(&crc.to_le_bytes());
    log.put(&name, 0, &header);
    let directory = log.directory();
    let refusals = [
        directory.summary().map(drop),
        directory.export(None, &mut |_| Ok(())).map(drop),
        directory.verify(&mut |_| Ok(())).map(drop),
    ];
    for refused in refusals {
        let told = refused.unwrap_err().to_string();
        assert!(told.contains(&name) && told.contains("format version 3"), "{told}");
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_told_and_passed() {
    let log = Log::usual();
    // The first open of a segment is for its header, to know whether the queue wrote the file.
    let closed = |nth: u64| {
        let (at, log) = (AtomicU64::new(0), log.disk.clone());
        busy(&log, move |disk, what| {
            let is_second = what.starts_with("open segments/00000000000000000065");
            if is_second && at.fetch_add(1, Ordering::Relaxed) == nth {
                disk.fail(Operation::Open, 0, Errno::ACCESS);
            }
        })
    };
    let (verdict, told) = verify(&closed(1));
    assert_eq!((verdict.events, verdict.missing, told.len()), (117, 65, 1));
    assert!(told[0].contains("00065.seg: cannot be read, 65 events"), "{told:?}");
    assert!(told[0].ends_with("; run this as the user that runs the relay, or as root"));
    let summary = closed(1).summary().unwrap();
    assert_eq!((summary.segments, summary.unreadable.len(), summary.end.get()), (2, 1, 182));
    log.disk.fail(Operation::Open, 0, Errno::ACCESS);
    let error = log.directory().summary().unwrap_err().to_string();
    assert!(error.starts_with("cannot read /spool/cursors: "), "{error}");
}

/// Method: a copy of the first segment gets a later name, and an empty file a still later one.
#[test]
fn a_file_that_the_queue_did_not_write_is_named_and_makes_nothing_missing() {
    let log = Log::usual();
    log.synced(182);
    let copy = log.disk.contents(&log.names()[0]);
    for (first, bytes) in [(70, &copy[..]), (100_000, &[])] {
        let file = log.disk.create(&segment::file_name(Position::new(first)), bytes.len() as u64);
        file.unwrap().write_at(&[bytes], 0).unwrap();
    }
    let (verdict, told) = log.verify();
    assert_eq!((verdict.events, verdict.missing, verdict.segments), (182, 0, 3), "{told:?}");
    let named = |file: &str| format!("segments/{file}.seg: not written by this queue");
    assert!(told[0].starts_with(&named("00000000000000000070")), "{told:?}");
    assert!(told[1].starts_with(&named("00000000000000100000")) && told.len() == 2, "{told:?}");
    let summary = log.directory().summary().unwrap();
    assert_eq!((summary.segments, summary.end.get(), summary.damaged_headers), (3, 182, 0));
}

/// Method: the first file cannot be opened, and the relay has dropped the second one.
#[test]
fn events_that_were_dropped_behind_a_file_that_cannot_be_opened_are_not_missing() {
    let log = Log::usual();
    log.disk.remove(&log.names()[1]).unwrap();
    log.cursors(&[("slow", 40)], std::slice::from_ref(&(65..130)), 182);
    let closed = || {
        busy(&log.disk, |disk, what| {
            if what.starts_with("open segments/00000000000000000000") {
                disk.fail(Operation::Open, 0, Errno::ACCESS);
            }
        })
    };
    let (verdict, told) = verify(&closed());
    assert_eq!((verdict.events, verdict.missing, told.len()), (52, 65, 1), "{told:?}");
    let summary = closed().summary().unwrap();
    assert_eq!(summary.unreadable[0].positions, Position::START..Position::new(65));
}

#[test]
fn a_page_that_cannot_be_read_is_damage() {
    let log = Log::usual();
    let (name, offset, _) = log.records[4].clone();
    log.disk.unreadable(&name, offset + 4096);
    let (verdict, told) = log.verify();
    assert!(told[0].starts_with(&format!("{name} offset {offset}: ")), "{told:?}");
    assert_eq!(told.len(), 1);
    assert!(verdict.missing >= 50 && verdict.unfinished.is_none());
}

#[test]
fn long_records_are_told_in_parts() {
    let mut log = Log::new(0);
    let events = 2 * WINDOW / LINE + 1000;
    log.segment().group(&[7, events, 3]);
    log.cursors(&[("o", 7 + events / 2)], &[], log.end);
    assert!(log.export(None) == (lines(0..log.end), vec![]));
    assert!(log.export(Some("o")) == (lines(7 + events / 2..log.end), vec![]));
    assert_eq!(log.verify().0.events, log.end);
}

#[test]
fn a_summary_reads_headers_and_what_is_newer_than_the_cursors() {
    let mut log = Log::new(0);
    let events = 2 * WINDOW / LINE;
    for _ in 0..4 {
        log.segment().group(&[events]).group(&[events]);
    }
    log.cursors(&[("a", 10), ("b", 3 * events + 1), ("c", 8 * events)], &[], 8 * events);
    let read = Arc::new(AtomicU64::new(0));
    let directory = busy(&log.disk, {
        let read = Arc::clone(&read);
        move |_, what| {
            if let Some(size) = what.strip_prefix("read segments bytes ") {
                read.fetch_add(size.parse().unwrap(), Ordering::Relaxed);
            }
        }
    });
    let summary = directory.summary().unwrap();
    assert_eq!(summary.end, 8 * events);
    let read = read.load(Ordering::Relaxed);
    assert!(read < 20 * BLOCK, "{read} bytes");
}

/// A disk on which a relay works. A test can change the disk before any operation.
#[derive(Clone)]
struct Busy {
    disk: SimulatedDisk,
    act: Arc<Act>,
}

type Act = dyn Fn(&SimulatedDisk, &str) + Send + Sync;

fn busy(
    disk: &SimulatedDisk,
    act: impl Fn(&SimulatedDisk, &str) + Send + Sync + 'static,
) -> Directory {
    on(Arc::new(Busy { disk: disk.clone(), act: Arc::new(act) }))
}

/// Makes a directory whose disk calls `act` before the n-th operation of this name, from 0.
fn busy_at(
    disk: &SimulatedDisk,
    what: &'static str,
    n: u64,
    act: impl FnOnce(&SimulatedDisk) + Send + 'static,
) -> Directory {
    let (count, act) = (AtomicU64::new(0), Mutex::new(Some(act)));
    busy(disk, move |disk, now| {
        if now == what && count.fetch_add(1, Ordering::Relaxed) == n {
            act.lock().unwrap().take().expect("only once")(disk);
        }
    })
}

impl Busy {
    fn begin(&self, what: &str) {
        (self.act)(&self.disk, what);
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Busy")
    }
}

#[derive(Debug)]
struct BusyFile {
    disk: Busy,
    file: Arc<dyn File>,
    name: String,
}

impl Disk for Busy {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.begin(&format!("list {directory}"));
        self.disk.list(directory)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.begin(&format!("open {name}"));
        let file = self.disk.open(name, access)?;
        Ok(Arc::new(BusyFile { disk: self.clone(), file, name: name.to_owned() }))
    }

    fn create(&self, _: &str, _: u64) -> io::Result<Arc<dyn File>> {
        Err(Errno::ROFS.into())
    }

    fn make_directory(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn recycle(&self, _: &str, _: &str) -> io::Result<bool> {
        Err(Errno::ROFS.into())
    }

    fn sync_directory(&self, _: &str) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }
}

impl File for BusyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let directory = self.name.split('/').next().unwrap();
        self.disk.begin(&format!("read {directory} bytes {}", buffer.len()));
        if self.name == "segments/00000000000000000130.seg" && offset >= FIRST_RECORD {
            self.disk.begin("read last");
        }
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, _: &[&[u8]], _: u64) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(Errno::ROFS.into())
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
}

/// Moves the outputs to a position, and deletes the segments that no output needs any more.
fn deliver(log: &Arc<Mutex<Log>>, to: u64) {
    let log = log.lock().unwrap();
    log.cursors(&[("fast", log.end.max(to)), ("slow", to)], &[], log.end);
    let segments = segment::list(&log.disk).unwrap();
    for (first, next) in with_next(&segments) {
        if next.is_some_and(|next| next <= Position::new(to)) {
            log.disk.remove(&segment::file_name(first)).unwrap();
        }
    }
}

/// Method: before one operation of a command, each in turn, a relay stores events in a new segment,
/// and notes that they are synced. No command may report them as missing.
#[test]
fn segments_that_are_made_meanwhile_are_not_missing() {
    let at = [
        ("open cursors", 0),
        ("open synced", 0),
        ("list segments", 0),
        ("list segments", 1),
        ("open segments/00000000000000000000.seg", 0),
        ("open segments/00000000000000000130.seg", 0),
    ];
    for (what, n) in at {
        let begin = || {
            let log = Mutex::new(Log::usual());
            let disk = log.lock().unwrap().disk.clone();
            log.lock().unwrap().synced(182);
            busy_at(&disk, what, n, move |_| {
                let mut log = log.into_inner().unwrap();
                log.segment().group(&[8]);
                log.synced(190);
            })
        };
        for output in [None, Some("slow")] {
            let from = if output.is_some() { 40 } else { 0 };
            let (exported, told) = export(&begin(), output);
            assert_eq!(told, Vec::<String>::new(), "{what} {n}");
            assert!(exported.starts_with(&lines(from..182)), "{what} {n}");
        }
        let (verdict, told) = verify(&begin());
        assert_eq!(told, Vec::<String>::new(), "{what} {n}");
        assert!(verdict.unfinished.is_none() && verdict.events >= 182, "{what} {n}");
        assert!(begin().summary().unwrap().end.get() >= 182, "{what} {n}");
    }
}

/// Method: before one operation of a command, each in turn, a relay delivers events and deletes
/// segments. No command may report missing events, and each must still show everything that was not
/// deleted.
#[test]
fn segments_that_are_delivered_and_deleted_meanwhile_are_not_missing() {
    for (to, left) in [(65, 65..182), (100, 65..182), (182, 130..182)] {
        let at = [
            ("open cursors", 0),
            ("list segments", 0),
            ("list segments", 1),
            ("open segments/00000000000000000000.seg", 0),
            ("open segments/00000000000000000065.seg", 0),
            ("open segments/00000000000000000130.seg", 0),
        ];
        for (what, n) in at {
            let begin = || {
                let log = Arc::new(Mutex::new(Log::usual()));
                let disk = log.lock().unwrap().disk.clone();
                let directory = busy_at(&disk, what, n, {
                    let log = Arc::clone(&log);
                    move |_| deliver(&log, to)
                });
                (directory, log)
            };
            let (verdict, told) = verify(&begin().0);
            assert_eq!(told, Vec::<String>::new(), "{what} {n}");
            assert!(verdict.unfinished.is_none() && verdict.events >= left.end - left.start);
            let (exported, told) = export(&begin().0, None);
            assert_eq!(told, Vec::<String>::new(), "{what} {n}");
            assert!(exported.ends_with(&lines(left.clone())), "{what} {n}");
            let (exported, told) = export(&begin().0, Some("slow"));
            assert_eq!(told, Vec::<String>::new(), "{what} {n}");
            assert!(exported.ends_with(&lines(left.start.max(to)..left.end)), "{what} {n}");
            let summary = begin().0.summary().unwrap();
            assert_eq!((summary.end.get(), summary.unreadable.len()), (182, 0), "{what} {n}");
        }
    }
}

#[test]
fn a_segment_that_is_deleted_and_was_needed_is_missing() {
    let log = Log::usual();
    let directory = busy_at(&log.disk, "open segments/00000000000000000065.seg", 0, |disk| {
        disk.remove("segments/00000000000000000065.seg").unwrap();
    });
    let (_, told) = verify(&directory);
    assert_eq!(told, ["positions 65 to 129: 65 events missing, no segment has them"]);
}

#[test]
fn a_list_that_lacks_an_older_segment_is_made_again() {
    // The first list of the directory begins before both segments are made, and holds only the
    // younger one.
    let mut log = Log::usual();
    log.segment().group(&[8]);
    let hidden = log.names()[2].clone();
    let bytes = log.disk.contents(&hidden);
    log.disk.remove(&hidden).unwrap();
    let directory = busy_at(&log.disk, "list segments", 1, move |disk| {
        let file = disk.create(&hidden, bytes.len() as u64).unwrap();
        file.write_at(&[&bytes], 0).unwrap();
    });
    assert_eq!(verify(&directory).1, Vec::<String>::new());
    // Segments that are made after the first list are not waited for.
    let log = Arc::new(Mutex::new(Log::usual()));
    let disk = log.lock().unwrap().disk.clone();
    let directory = busy_at(&disk, "list segments", 1, move |_| {
        log.lock().unwrap().segment().group(&[8]);
    });
    assert_eq!(export(&directory, None), (lines(0..182), vec![]));
}

/// Method: a part of one of the last two records holds zeros, as during an unfinished write, and
/// becomes visible only after several reads. The commands must wait for it instead of reporting
/// damage.
#[test]
fn a_record_that_is_being_written_is_read_again() {
    let log = Log::usual();
    log.cursors(&[("fast", 150), ("slow", 40)], &[], 150);
    let whole = log.disk.contents("segments/00000000000000000130.seg");
    let cases = [
        (8, [0..1, 10..60, 56..58, 700..1400, 0..2056, 0..2100]),
        (9, [0..1, 10..60, 56..58, 600..602, 1000..1009, 3050..3055]),
    ];
    for (record, hidden) in
        cases.iter().flat_map(|(record, hidden)| hidden.iter().map(|it| (*record, it)))
    {
        let (name, offset, _) = log.records[record].clone();
        let zeros = vec![0; usize::try_from(hidden.end - hidden.start).unwrap()];
        log.put(&name, 0, &whole);
        log.put(&name, offset + hidden.start, &zeros);
        // The record is found damaged several times before it is whole.
        let directory = busy_at(&log.disk, "read last", 6, {
            let (name, whole) = (name.clone(), whole.clone());
            move |disk| disk.open(&name, Access::Write).unwrap().write_at(&[&whole], 0).unwrap()
        });
        let (verdict, told) = verify(&directory);
        assert_eq!((told, verdict.events), (vec![], 182), "{record} {hidden:?}");
    }
}

#[test]
fn a_header_and_cursors_that_are_being_written_are_read_again() {
    let log = Log::usual();
    let name = log.names().pop().unwrap();
    let header = log.disk.contents(&name)[..SEGMENT_HEADER].to_vec();
    log.put(&name, 0, &[0; SEGMENT_HEADER - 8]);
    let reads = AtomicU64::new(0);
    let directory = busy(&log.disk, move |disk, what| {
        if what == "read segments bytes 48" && reads.fetch_add(1, Ordering::Relaxed) == 4 {
            disk.open(&name, Access::Write).unwrap().write_at(&[&header], 0).unwrap();
        }
    });
    assert_eq!(verify(&directory).1, Vec::<String>::new());

    let log = Log::usual();
    log.disk.flip(cursors::FILE, 20, 1);
    log.disk.flip(cursors::FILE, cursors::BYTES / 2 + 20, 1);
    let directory = busy_at(&log.disk, "open cursors", 2, |disk| {
        disk.flip(cursors::FILE, 20, 1);
        disk.flip(cursors::FILE, cursors::BYTES / 2 + 20, 1);
    });
    assert_eq!(verify(&directory).1, Vec::<String>::new());
}

#[test]
fn a_summary_is_made_again_where_the_last_segment_has_gone() {
    let log = Arc::new(Mutex::new(Log::usual()));
    let disk = log.lock().unwrap().disk.clone();
    let done = AtomicBool::new(false);
    let directory = busy(&disk, move |_, what| {
        let last = what == "open segments/00000000000000000130.seg";
        if last && !done.swap(true, Ordering::Relaxed) {
            log.lock().unwrap().segment().group(&[18]);
            deliver(&log, 200);
        }
    });
    let summary = directory.summary().unwrap();
    assert_eq!((summary.first.get(), summary.end.get(), summary.segments), (182, 200, 1));
    assert_eq!(summary.outputs[1].events, 0);
}

#[test]
fn who_is_told_can_stop() {
    let log = Log::usual();
    let mut parts = 0;
    let stopped = log.directory().export(None, &mut |seen| {
        parts += u32::from(matches!(seen, Seen::Lines(_)));
        if parts == 2 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    });
    assert!(
        matches!(stopped, Err(Error::Told(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    );
    assert_eq!(parts, 2);
}

#[test]
fn what_holds_no_queue_is_told_apart() {
    let directory = tempfile::TempDir::new().unwrap();
    let root = directory.path();
    let absent = root.join("absent");
    assert!(matches!(Directory::open(&absent), Err(Error::Absent(path)) if path == absent));
    assert!(matches!(Directory::open(root), Err(Error::NoQueue(_))));
    fs::write(root.join("file"), "").unwrap();
    assert!(matches!(Directory::open(&root.join("file")), Err(Error::NoQueue(_))));
    fs::write(root.join(SEGMENTS), "").unwrap();
    assert!(matches!(Directory::open(root), Err(Error::NoQueue(_))));
    fs::remove_file(root.join(SEGMENTS)).unwrap();
    fs::create_dir(root.join(SEGMENTS)).unwrap();
    let opened = Directory::open(root).unwrap();
    assert_eq!(verify(&opened).1, Vec::<String>::new());
    assert_eq!(fs::read_dir(root).unwrap().count(), 2, "nothing is made");
}
