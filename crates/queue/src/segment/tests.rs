//! The format of segments, with changed, torn and missing bytes.

use std::iter;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::io::Errno;

use super::*;
use base::disk::Disk;
use testing::simulated_disk::{Operation, SimulatedDisk};

/// The position and the byte number at which the log of these tests begins.
const FIRST: Position = Position::new(1_000);
const FIRST_BYTE: u64 = 70_000;

const CHECKS: [Check; 2] = [Check::Headers, Check::Lines];

fn seed() -> Seed {
    Seed::of(FIRST)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a small file")
}

struct Written {
    offset: u64,
    header: RecordHeader,
    lines: Vec<u8>,
}

impl Written {
    fn bytes(&self) -> Range<u64> {
        self.offset..self.offset + self.header.size()
    }

    fn damage(&self) -> Found {
        let RecordHeader { events, length, .. } = self.header;
        Found::Damage(Damage { bytes: self.bytes(), events, lines: length, torn: false })
    }
}

/// A segment as its writer makes it.
struct Segment {
    bytes: Vec<u8>,
    records: Vec<Written>,
    groups: Vec<u64>,
}

impl Segment {
    fn new() -> Self {
        let header = SegmentHeader::new(LogOffset { position: FIRST, byte: FIRST_BYTE }, 1, false);
        let mut bytes = header.encode().to_vec();
        bytes.resize(index(FIRST_RECORD), 0);
        Self { bytes, records: Vec::new(), groups: Vec::new() }
    }

    /// Adds a group. Each element of `records` is the lines of one record.
    fn group(&mut self, records: impl IntoIterator<Item = Vec<u8>>) -> &mut Self {
        self.groups.push(self.bytes.len() as u64);
        for lines in records {
            let last = self.records.last().map(|last| last.header);
            let header = RecordHeader {
                first: last.map_or(FIRST, |last| last.end()),
                first_byte: last.map_or(FIRST_BYTE, |last| last.end_byte()),
                received: 1_700_000_000_000,
                length: lines.len() as u64,
                events: memchr::memchr_iter(b'\n', &lines).count() as u64,
                group: FIRST,
                crc: seed().crc(&lines),
            };
            self.records.push(Written { offset: self.bytes.len() as u64, header, lines });
            self.bytes.extend(header.encode(seed()));
            self.bytes.extend(&self.records.last().expect("just now").lines);
        }
        self.reserve(0)
    }

    /// Fills the segment with zeros up to the next block, and with this many bytes more.
    fn reserve(&mut self, bytes: u64) -> &mut Self {
        let size = (self.bytes.len() as u64).next_multiple_of(BLOCK) + bytes;
        self.bytes.resize(index(size), 0);
        self
    }

    fn name() -> String {
        file_name(FIRST)
    }

    fn put(&self) -> (SimulatedDisk, Arc<dyn File>) {
        let disk = SimulatedDisk::new(0);
        let file = disk.create(&Self::name(), self.bytes.len() as u64).unwrap();
        file.write_at(&[&self.bytes], 0).unwrap();
        file.sync().unwrap();
        disk.sync_directory(SEGMENTS).unwrap();
        (disk, file)
    }

    fn at(&self, offset: u64) -> Option<&Written> {
        self.records.iter().find(|record| record.bytes().contains(&offset))
    }

    /// Returns the expected results of a scan. `damage` returns that of a record whose bytes have
    /// changed, and `None` for an unchanged record.
    fn expect(&self, check: Check, damage: impl Fn(&Written) -> Option<Found>) -> Vec<Found> {
        let found = |written: &Written| match damage(written) {
            Some(damage) => damage,
            None => Found::Record(Record {
                offset: written.offset,
                header: written.header,
                lines: (check == Check::Lines).then(|| Bytes::from(written.lines.clone())),
            }),
        };
        self.records.iter().map(found).collect()
    }
}

fn scan(file: &dyn File, check: Check) -> Scan<'_> {
    Scan::new(file, seed(), (FIRST_RECORD, FIRST), u64::MAX, Position::MAX, check)
}

/// Returns everything that the scan still finds. Lines that were too long for the scan are read in
/// parts.
fn all(mut scan: Scan<'_>) -> Vec<Found> {
    let mut found: Vec<Found> = iter::from_fn(|| scan.next()).collect();
    for found in &mut found {
        if let (Found::Record(record), Check::Lines) = (found, scan.check) {
            let (from, end) = (record.offset + RECORD_HEADER, record.offset + record.header.size());
            let lines = || Bytes::from(parts(&mut scan, from, end, 1000).concat());
            record.lines.get_or_insert_with(lines);
        }
    }
    found
}

fn parts(scan: &mut Scan<'_>, from: u64, end: u64, about: u64) -> Vec<Bytes> {
    let mut at = from;
    iter::from_fn(|| {
        let part = (at < end).then(|| scan.read_lines(at, end, about))?;
        at += part.len() as u64;
        Some(part)
    })
    .collect()
}

fn records(found: &[Found]) -> Vec<u64> {
    let records = found.iter().filter_map(|found| match found {
        Found::Record(record) => Some(record.offset),
        Found::Damage(_) => None,
    });
    records.collect()
}

fn damages(found: &[Found]) -> Vec<&Damage> {
    let damages = found.iter().filter_map(|found| match found {
        Found::Record(_) => None,
        Found::Damage(damage) => Some(damage),
    });
    damages.collect()
}

#[track_caller]
fn assert_same(found: &[Found], expected: &[Found], why: impl Fn() -> String) {
    assert!(found == expected, "{}: {found:#?}\nexpected {expected:#?}", why());
}

/// Returns lines of about this many bytes together, made of characters that JSON may hold and of
/// bytes that look nearly like a magic.
fn lines(rng: &mut fastrand::Rng, events: usize, bytes: usize) -> Vec<u8> {
    let pieces = ["{\"a\":1}", "x", "KAFREC", "\u{FF}KAFREC", "ü", "\u{10FFFF}", "\\u0000"];
    let mut lines = Vec::new();
    for event in 1..=events {
        while lines.len() < bytes * event / events {
            lines.extend(rng.choice(pieces).expect("there are some").bytes());
        }
        lines.push(b'\n');
    }
    lines
}

/// Makes a segment of three groups, with reserved room after them: small records, a record of more
/// than a block that ends with the first byte of a sector, and small records again.
fn segment() -> Segment {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut long = lines(&mut rng, 6, 4400);
    long.resize(9 * 512 - RECORD_HEADER_LENGTH, b'x');
    long.push(b'\n');
    let mut segment = Segment::new();
    segment
        .group([lines(&mut rng, 3, 500), lines(&mut rng, 1, 4), lines(&mut rng, 20, 700)])
        .group([long])
        .group([lines(&mut rng, 1, 300), lines(&mut rng, 10, 390), lines(&mut rng, 2, 50)])
        .reserve(3 * BLOCK);
    segment
}

/// The program writes the same bytes as in the example.
#[test]
fn the_example_of_the_page_is_a_segment() {
    let page = include_str!("../../../../docs/internals/spool-format.md");
    let (_, example) = page.split_once("### An example\n").expect("its heading");
    let (_, block) = example.split_once("```text\n").expect("a block");
    let mut bytes = vec![0; index(2 * BLOCK)];
    for line in block.lines().take_while(|line| *line != "```") {
        let (at, row) = line.split_once("  ").expect("an offset and bytes");
        let at = usize::from_str_radix(at, 16).expect("an offset");
        for (at, byte) in (at..).zip(row.split(' ')) {
            bytes[at] = u8::from_str_radix(byte, 16).expect("a byte");
        }
    }
    let begin = LogOffset { position: Position::new(42_000), byte: 61_320_000 };
    let header = SegmentHeader::new(begin, 1_767_225_600_000, false);
    assert_eq!(bytes[..SEGMENT_HEADER], header.encode());
    let reused = SegmentHeader { reused: true, ..header };
    assert_eq!(reused.encode()[12..16], [1, 0, 0, 0], "the flag");
    let lines = b"{\"auditID\":\"1\"}\n{\"auditID\":\"2\"}\n";
    let record = RecordHeader {
        first: begin.position,
        first_byte: begin.byte,
        received: 1_767_225_600_250,
        length: lines.len() as u64,
        events: 2,
        group: begin.position,
        crc: header.seed().crc(lines),
    };
    let written = [&record.encode(header.seed())[..], lines].concat();
    assert_eq!(bytes[index(FIRST_RECORD)..][..written.len()], written);
    assert_eq!((0x9f60_5e56, 0xf0b8_3bc2), (u32_at(&bytes, 44), record.crc));
    let seed = header.seed();
    assert_eq!(seed, Seed(0xa410), "as the table says");
}

/// The page has these two seeds as an example of segments that only their positions tell apart.
#[test]
fn two_seeds_may_be_equal_across_a_multiple_of_2_32() {
    let of = |first| Seed::of(Position::new(first));
    assert_eq!(of(5), of((1 << 32) + 4));
    assert_ne!(of(5), of(1 << 32));
}

#[test]
fn headers_read_back_and_any_changed_byte_is_seen() {
    let begin = LogOffset { position: Position::new(7), byte: 600 };
    let segment = SegmentHeader::new(begin, 1_700_000_000_000, false);
    assert_eq!(
        SegmentHeader::decode(&[&segment.encode(), [9; 20].as_slice()].concat()),
        Ok(segment)
    );
    assert_eq!(SegmentHeader::decode(&segment.encode()[..47]), Err(BadHeader::Damaged));
    let record = RecordHeader {
        first: Position::new((1 << 62) - 1),
        first_byte: (1 << 62) - 1,
        received: u64::MAX,
        length: (1 << 62) - 1,
        events: 3,
        group: Position::new(9),
        crc: 5,
    };
    assert_eq!(RecordHeader::decode(&record.encode(seed()), seed()), Some(record));
    assert_eq!(
        RecordHeader::decode(&record.encode(seed())[..RECORD_HEADER_LENGTH - 1], seed()),
        None
    );
    assert_eq!((record.end().get(), record.end_byte()), ((1 << 62) + 2, (1 << 63) - 2));
    for mask in 1..=u8::MAX {
        for at in 0..SEGMENT_HEADER {
            let mut bytes = segment.encode();
            bytes[at] ^= mask;
            let decoded = SegmentHeader::decode(&bytes);
            assert_eq!(decoded, Err(BadHeader::Damaged), "byte {at}, mask {mask}");
        }
        for at in 0..RECORD_HEADER_LENGTH {
            let mut bytes = record.encode(seed());
            bytes[at] ^= mask;
            assert_eq!(RecordHeader::decode(&bytes, seed()), None, "byte {at}, mask {mask}");
        }
    }
}

#[test]
fn a_newer_version_is_believed_only_with_the_right_checksum() {
    let begin = LogOffset { position: Position::new(7), byte: 600 };
    let segment = SegmentHeader::new(begin, 1, false);
    let decode = |version: u32, checks: bool| {
        let mut bytes = segment.encode();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]) ^ u32::from(!checks);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        SegmentHeader::decode(&bytes)
    };
    for version in [1, 2] {
        assert_eq!(decode(version, true), Ok(SegmentHeader { version, ..segment }));
    }
    for newer in [3, 256, u32::MAX] {
        assert_eq!(decode(newer, true), Err(BadHeader::Newer(newer)));
        assert_eq!(decode(newer, false), Err(BadHeader::Damaged));
    }
    assert_eq!(decode(0, true), Err(BadHeader::Damaged), "there was none");
}

#[test]
fn a_record_header_with_numbers_that_cannot_be_is_none() {
    let good = RecordHeader {
        first: Position::new(1),
        first_byte: 1,
        received: 1,
        length: 10,
        events: 2,
        group: Position::new(1),
        crc: 0,
    };
    for bad in [
        RecordHeader { events: 0, ..good },
        RecordHeader { events: 11, ..good },
        RecordHeader { length: 1 << 62, ..good },
        RecordHeader { first: Position::new(1 << 62), ..good },
        RecordHeader { first_byte: u64::MAX, ..good },
        RecordHeader { group: Position::new(2), ..good },
    ] {
        assert_eq!(RecordHeader::decode(&bad.encode(seed()), seed()), None, "{bad:?}");
    }
}

#[test]
fn files_are_named_by_their_first_position() {
    for first in [0, 42, u64::MAX] {
        let name = file_name(Position::new(first));
        let name = name.strip_prefix("segments/").expect("it is in the directory");
        assert_eq!(position_of(name), Some(Position::new(first)));
    }
    assert_eq!(file_name(Position::new(42)), "segments/00000000000000000042.seg");
    for name in [
        "42.seg",
        "000000000000000000042.seg",
        "+0000000000000000042.seg",
        "0000000000000000004x.seg",
        "99999999999999999999.seg",
        "00000000000000000042",
        "00000000000000000042.seg.gz",
        "00000000000000000042-4096.bad",
        "",
    ] {
        assert_eq!(position_of(name), None, "{name}");
    }
}

/// Method: every byte of the records, and some bytes between them, are changed, one at a time: each
/// byte of a header in up to six ways, any other byte in one of these ways. A scan must report the
/// record that holds the byte as damaged, and must find every other record.
#[test]
fn any_changed_byte_costs_its_record_and_nothing_else() {
    let segment = segment();
    let (disk, file) = segment.put();
    let (mut changes, mut of_records) = (0, 0);
    for offset in FIRST_RECORD..segment.bytes.len() as u64 {
        let hit = segment.at(offset);
        // Every 41st of the bytes that are neither in a record nor directly after one is enough.
        if hit.is_none() && offset % 41 > 0 && segment.at(offset - 1).is_none() {
            continue;
        }
        let byte = segment.bytes[index(offset)];
        let masks = [0x01, 0x80, 0xFF, byte, byte ^ b'\n', byte ^ 0xFF];
        let is_header = hit.is_some_and(|record| offset - record.offset < RECORD_HEADER);
        let one = index(offset) % masks.len();
        for mask in if is_header { masks.to_vec() } else { vec![masks[one]] } {
            if mask == 0 {
                continue;
            }
            disk.flip(&Segment::name(), offset, mask);
            for check in CHECKS {
                let seen = |written: &Written| {
                    let header = offset - written.offset < RECORD_HEADER;
                    check == Check::Lines || header
                };
                let mut found = all(scan(&*file, check).ahead(2000));
                if hit.is_none() {
                    let between = |damage: &&Damage| {
                        damage.bytes.contains(&offset)
                            && segment.records.iter().all(|record| {
                                record.bytes().end <= damage.bytes.start
                                    || damage.bytes.end <= record.offset
                            })
                    };
                    let damages = damages(&found);
                    assert!(damages.iter().all(between), "{damages:?} for byte {offset}");
                    found.retain(|found| matches!(found, Found::Record(_)));
                }
                let expected = segment.expect(check, |written| {
                    let changed = written.bytes().contains(&offset) && seen(written);
                    changed.then(|| written.damage())
                });
                let why = || format!("byte {offset}, mask {mask:#X}, {check:?}");
                assert_same(&found, &expected, why);
            }
            disk.flip(&Segment::name(), offset, mask);
            changes += 1;
            of_records += u32::from(hit.is_some());
        }
    }
    assert!(changes > 5_000 && of_records > 5_000, "{changes} {of_records}");
}

/// Method: the file is cut at every byte of its last group. A scan must find the records before the
/// cut, and report the rest as torn and not as damaged.
#[test]
fn a_file_cut_short_anywhere_is_torn_there() {
    let segment = segment();
    let (start, last) = (segment.groups[2], segment.records.last().expect("the last").bytes().end);
    let (_, file) = segment.put();
    for cut in (start..last).rev() {
        file.truncate(cut).unwrap();
        let whole = segment.records.iter().filter(|record| record.bytes().end <= cut);
        let whole: Vec<u64> = whole.map(|record| record.offset).collect();
        for check in CHECKS {
            let found = all(scan(&*file, check));
            assert_eq!(records(&found), whole, "cut at {cut}, {check:?}");
            match damages(&found).as_slice() {
                [] => assert!(segment.records.iter().any(|record| record.offset == cut), "{cut}"),
                [damage] => assert!(damage.torn, "{damage:?}, cut at {cut}"),
                more => panic!("{more:?}, cut at {cut}"),
            }
        }
    }
}

/// Method: the first reads fail, from one to [`READS`] of them, and later ones succeed. A scan must
/// find every record, and must still report a torn end as torn.
#[test]
fn a_read_that_fails_at_times_costs_nothing() {
    let segment = segment();
    // The failing reads are that of the window, and then those of its first block.
    for failures in 1..=u64::from(READS) {
        let (disk, file) = segment.put();
        (0..failures).for_each(|read| disk.fail(Operation::Read, read, Errno::IO));
        // The last record is torn, to check that it is still reported so.
        let last = segment.records.last().expect("the last");
        file.truncate(last.bytes().end - 1).unwrap();
        let found = all(scan(&*file, Check::Lines));
        let count = segment.records.len() - 1;
        assert_eq!(records(&found).len(), count, "{failures} failures");
        assert!(damages(&found)[0].torn, "{failures} failures");
    }
}

#[test]
fn what_is_at_or_beyond_the_limit_is_another_segments() {
    let segment = segment();
    let (disk, file) = segment.put();
    let limited = |limit, check| {
        all(Scan::new(&*file, seed(), (FIRST_RECORD, FIRST), u64::MAX, limit, check))
    };
    for check in CHECKS {
        for (count, record) in segment.records.iter().enumerate() {
            let found = limited(record.header.first, check);
            assert_same(&found, &segment.expect(check, |_| None)[..count], || format!("{count}"));
        }
        // A record at the limit, which a failed write has left there, does not count, even if it is
        // whole.
        let [.., before, last] = segment.records.as_slice() else { panic!("several") };
        disk.flip(&Segment::name(), last.offset + 8, 1);
        let found = limited(last.header.first, check);
        assert_eq!(records(&found).len(), segment.records.len() - 1);
        assert!(damages(&found).is_empty(), "{found:?}");
        disk.flip(&Segment::name(), last.offset + 8, 1);
        // A record that is missing before the limit does count.
        disk.flip(&Segment::name(), before.offset + 8, 1);
        let found = limited(last.header.first, check);
        assert_eq!(records(&found).len(), segment.records.len() - 2);
        assert_same(&found[found.len() - 1..], &[before.damage()], || format!("{check:?}"));
        disk.flip(&Segment::name(), before.offset + 8, 1);
    }
}

#[test]
fn a_record_that_reaches_into_the_next_segment_is_damage() {
    let mut segment = Segment::new();
    segment.group([b"one\n".to_vec(), b"two\nthree\nfour\n".to_vec()]);
    let (_disk, file) = segment.put();
    let limit = FIRST + 2;
    let found =
        all(Scan::new(&*file, seed(), (FIRST_RECORD, FIRST), u64::MAX, limit, Check::Lines));
    assert_eq!(found.len(), 2);
    assert_eq!(found[1], segment.records[1].damage());
}

/// Method: a scan begins at each record, and another one ends there. Both together must find all
/// records, and each of them once.
#[test]
fn a_scan_may_begin_and_end_at_any_record() {
    let segment = segment();
    let (_, file) = segment.put();
    for (check, (count, record)) in CHECKS
        .into_iter()
        .flat_map(|check| segment.records.iter().enumerate().map(move |it| (check, it)))
    {
        let expected = segment.expect(check, |_| None);
        let (before, behind) = expected.split_at(count);
        let (begin, here) = ((FIRST_RECORD, FIRST), (record.offset, record.header.first));
        for (begin, end, expected) in [(begin, record.offset, before), (here, u64::MAX, behind)] {
            let found = all(Scan::new(&*file, seed(), begin, end, Position::MAX, check));
            assert_same(&found, expected, || format!("{begin:?} to {end}, {check:?}"));
        }
    }
}

#[test]
fn records_of_the_past_are_not_found_again() {
    let mut segment = Segment::new();
    segment.group([b"{}\n".to_vec()]);
    let old = segment.bytes[index(FIRST_RECORD)..].to_vec();
    // An old record lies where the next one should be, and the lines of another record hold bytes
    // that look like a header but can't come next.
    segment.bytes.extend(&old);
    let stale = FIRST_RECORD + BLOCK;
    let decoy = RecordHeader { events: 0, ..segment.records[0].header }.encode(seed());
    let magics = [b"\xFFKAFREC\0".as_slice(), b"\xFF\xFFKAFREC\0KAFREC\0", b"\xFFKAFREC"].concat();
    segment.group([[old.as_slice(), &decoy, &magics, b"\n"].concat(), b"{}\n".to_vec()]);
    let (disk, file) = segment.put();
    let [first, second, third] = [0, 1, 2].map(|record: usize| segment.records[record].offset);
    for check in CHECKS {
        let found = all(scan(&*file, check));
        assert_eq!(records(&found), [first, second, third], "{check:?}");
        let damages = damages(&found);
        assert_eq!(damages[0].bytes, stale..stale + segment.records[0].header.size(), "{check:?}");
        assert_eq!(damages.len(), 1, "{check:?}");
    }
    disk.flip(&Segment::name(), second, 1);
    for check in CHECKS {
        let found = all(scan(&*file, check));
        assert_eq!(records(&found), [first, third], "{check:?}");
        assert_eq!(damages(&found)[1].bytes, segment.records[1].bytes(), "{check:?}");
    }
}

#[test]
fn the_next_record_is_found_wherever_the_steps_of_the_search_end() {
    for before in 0..=RECORD_MAGIC.len() {
        let mut rng = fastrand::Rng::with_seed(before as u64);
        let mut segment = Segment::new();
        // The search starts at the second byte of the header.
        let mut long = lines(&mut rng, 1000, STEP);
        long.truncate(STEP + 1 - before - RECORD_HEADER_LENGTH);
        *long.last_mut().expect("it is long") = b'\n';
        segment.group([long, lines(&mut rng, 2, 90)]).reserve(3 * STEP as u64);
        let (disk, file) = segment.put();
        disk.flip(&Segment::name(), FIRST_RECORD + 3, 0x10);
        for check in CHECKS {
            let lost =
                |written: &Written| (written.offset == FIRST_RECORD).then(|| written.damage());
            let expected = segment.expect(check, lost);
            assert_same(&all(scan(&*file, check)), &expected, || format!("{before} bytes before"));
        }
    }
}

#[test]
fn long_records_are_read_in_parts() {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut segment = Segment::new();
    let long = [
        lines(&mut rng, 500, 100_000),
        vec![b'x'; 70_000],
        b"\n".repeat(50),
        lines(&mut rng, 5000, 600_000),
    ];
    let long = long.concat();
    segment.group([lines(&mut rng, 2, 80), long.clone(), lines(&mut rng, 2, 80)]);
    let (disk, file) = segment.put();
    let starts: Vec<usize> =
        iter::once(0).chain(memchr::memchr_iter(b'\n', &long).map(|end| end + 1)).collect();
    for ahead in [0, 1000, 300_000, WINDOW] {
        let mut scan = scan(&*file, Check::Lines).ahead(ahead);
        scan.next();
        let Some(Found::Record(record)) = scan.next() else { panic!("a record") };
        assert_eq!(record.lines.is_some(), ahead == WINDOW, "{ahead}");
        let (from, end) = (record.offset + RECORD_HEADER, record.offset + record.header.size());
        for about in [0, 1, 150, 10_000, 300_000, u64::MAX] {
            let parts = parts(&mut scan, from, end, about);
            assert_eq!(parts.concat(), long, "{ahead} {about}");
            for part in &parts {
                let first = memchr::memchr(b'\n', part).expect("a line") as u64 + 1;
                let length = part.len() as u64;
                assert!(
                    part.ends_with(b"\n") && (length <= about || length < 2 * first),
                    "{about}"
                );
            }
        }
        for (n, start) in starts.iter().enumerate().step_by(97) {
            assert_eq!(scan.nth_line(from..end, n as u64), from + *start as u64, "{ahead}, {n}");
        }
        for beyond in [starts.len() as u64 - 1, starts.len() as u64, u64::MAX] {
            assert_eq!(scan.nth_line(from..end, beyond), end);
        }
        assert!(matches!(scan.next(), Some(Found::Record(last)) if last.offset == end));
    }
    // Each byte of the long record is checked, though the record is never in memory as a whole.
    let last = segment.records[1].bytes().end - 2;
    disk.flip(&Segment::name(), last, 1);
    let found = all(scan(&*file, Check::Lines).ahead(1000));
    let lost = |written: &Written| written.bytes().contains(&last).then(|| written.damage());
    assert_same(&found, &segment.expect(Check::Lines, lost), || "byte by byte".to_owned());
}

#[test]
fn lines_that_are_gone_meanwhile_read_as_zeros() {
    let segment = segment();
    let (_, file) = segment.put();
    let long = &segment.records[3];
    let (from, end) = (long.offset + RECORD_HEADER, long.bytes().end);
    let early = scan(&*file, Check::Headers);
    file.truncate(from - 10).unwrap();
    let late = scan(&*file, Check::Headers);
    for mut scan in [early, late] {
        let read = parts(&mut scan, from, end, 100).concat();
        assert_eq!(read, vec![0; long.lines.len()]);
        assert_eq!(scan.nth_line(from..end, 2), end);
    }
}

/// Generates the shapes of groups: the number of events and the bytes of the lines of each record.
fn shapes() -> impl Strategy<Value = Vec<Vec<(usize, usize)>>> {
    let bytes = prop_oneof![6 => 0_usize..300, 3 => 300_usize..6000, 1 => 6000_usize..40_000];
    prop::collection::vec(prop::collection::vec((1_usize..40, bytes), 1..8), 1..6)
}

fn shaped(shapes: &[Vec<(usize, usize)>], seed: u64) -> Segment {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut segment = Segment::new();
    for group in shapes {
        segment.group(group.iter().map(|(events, bytes)| lines(&mut rng, *events, *bytes)));
    }
    segment.reserve(rng.u64(0..4) * BLOCK);
    segment
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_scan_finds_all_that_was_written(shapes in shapes(), seed: u64, ahead in 0_u64..50_000) {
        let segment = shaped(&shapes, seed);
        let (_, file) = segment.put();
        for check in CHECKS {
            let found = all(scan(&*file, check).ahead(ahead));
            prop_assert!(found == segment.expect(check, |_| None));
        }
    }
}
