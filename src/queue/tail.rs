//! The end of the log: how far it goes, and which bytes there that do not check were never
//! acknowledged.
//!
//! The start of the queue cuts the log off there. The commands that look at a directory from
//! outside use the same code, so that both call the same bytes damaged and the same write
//! unfinished.

use super::disk::File;
use super::segment::BLOCK;
use super::segment::Check;
use super::segment::Damage;
use super::segment::Found;
use super::segment::LogOffset;
use super::segment::RecordHeader;
use super::segment::Scan;
use super::segment::Seed;
use super::synced::Synced;
use crate::position::Position;

/// The result of reading the end of the last segment, which is the end of the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The place where the log ends: the position after its last event, and the number of bytes of
    /// all lines in the log.
    pub(super) end: LogOffset,
    /// The offset in the segment file where the log ends.
    pub(super) kept: u64,
    /// The damaged parts of the file that had acknowledged events in them.
    pub(super) damages: Vec<Damage>,
    /// The offset in the file of a write that was not finished, so that its events were never
    /// acknowledged. `None` if there is no such write.
    pub(super) unfinished: Option<u64>,
}

/// How far the log is known to be synced.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// Events before this place were synced. Damage before it is therefore never taken for an
    /// unfinished write.
    pub(super) end: LogOffset,
    /// The offset of this place in the file of the last segment; `None` if only the place in the
    /// log is known.
    pub(super) offset: Option<u64>,
}

impl Known {
    /// Returns up to where the log is known to be synced: the later one of the places that the
    /// cursors file (`cursors`) and the file `synced` name.
    pub(super) fn end(cursors: LogOffset, synced: Option<Synced>) -> LogOffset {
        synced.map_or(cursors, |synced| synced.end.max(cursors))
    }

    /// Joins what the cursors file says (`cursors`) with what the file `synced` says. `last`: the
    /// first position of the segment whose end is read.
    pub(super) fn new(cursors: LogOffset, synced: Option<Synced>, last: Position) -> Self {
        let here = synced.filter(|synced| synced.end >= cursors && synced.segment == last);
        Self { end: Self::end(cursors, synced), offset: here.map(|synced| synced.offset) }
    }
}

/// The last segment of a log, or what is read of it.
pub(super) struct LastSegment<'a> {
    pub(super) file: &'a dyn File,
    /// The seed of the checksums of the segment's records.
    pub(super) seed: Seed,
    /// `true`: the file was an earlier segment before, and what is behind the last record is left
    /// of that one.
    pub(super) reused: bool,
    /// The offset in the file at which reading begins, and the position that is expected there.
    pub(super) from: (u64, Position),
    /// The size of the file in bytes.
    pub(super) size: u64,
    /// The first position that does not belong to the segment.
    pub(super) limit: Position,
}

impl LastSegment<'_> {
    fn scan(&self, from: (u64, Position), end: u64) -> Scan<'_> {
        Scan::new(self.file, self.seed, from, end, self.limit, Check::Lines)
    }
}

impl Tail {
    /// Reads the last segment to its end, and finds where the log ends. Reading begins at the place
    /// `begin` of the log.
    pub(super) fn read(last: &LastSegment<'_>, begin: LogOffset, known: Known) -> Self {
        let (mut end, mut kept) = (begin, last.from.0);
        let mut damages: Vec<Damage> = Vec::new();
        let mut from = last.from;
        // All bytes up to the known offset were synced: whatever does not check there is damaged.
        if let Some(offset) = known.offset.filter(|offset| *offset > from.0) {
            let mut scan = last.scan(from, offset.min(last.size));
            while let Some(found) = scan.next() {
                match found {
                    Found::Damage(damage) => damages.push(damage),
                    Found::Record(record) => end = record.header.end_place(),
                }
            }
            (end, kept) = (end.max(known.end), offset);
            from = (offset.next_multiple_of(BLOCK), end.position);
        }
        let mut scan = last.scan(from, last.size);
        // The damage in the last group (the records of one write and one sync) so far, each with
        // the end of the log before it. The damage was synced, and is not an unfinished write, if
        // there is a record of a later group. If a record is the first of its group, this is proved
        // for all damage before the record.
        let mut unsure: Vec<(Damage, LogOffset)> = Vec::new();
        while let Some(found) = scan.next() {
            match found {
                Found::Damage(damage) => unsure.push((damage, end)),
                Found::Record(record) => {
                    let RecordHeader { first, group, .. } = record.header;
                    let is_earlier = |(_, before): &(Damage, LogOffset)| before.position < group;
                    if first == group || unsure.first().is_some_and(is_earlier) {
                        damages.extend(unsure.drain(..).map(|(damage, _)| damage));
                    }
                    end = record.header.end_place();
                    kept = scan.offset();
                }
            }
        }
        let (whole, mut unfinished) = (kept, None);
        for (damage, before) in unsure {
            let offset = damage.bytes.start;
            // A group that is not whole was not acknowledged, unless it is known to be synced. In a
            // file that was used before, the part that was not written has old bytes, not zeros.
            if (damage.torn || last.reused) && known.end.position <= before.position {
                if offset < whole {
                    (end, kept) = (before, offset);
                }
                let is_leftover = last.reused && !scan.begins_record(offset) && offset >= whole;
                unfinished = (!is_leftover).then_some(offset);
                break;
            }
            if damage.bytes.end > kept {
                // The number of events in bytes of an earlier segment means nothing.
                if !last.reused {
                    end.position += damage.events;
                    end.byte += damage.lines;
                }
                kept = damage.bytes.end;
            }
            damages.push(damage);
        }
        Self { end, kept, damages, unfinished }
    }
}
