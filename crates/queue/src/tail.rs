//! The end of the log: how far it goes, and which invalid bytes there were never acknowledged. (The
//! newest records in memory, which are also called the tail, are in `spool/state.rs`.)
//!
//! The start of the queue cuts the log off there, by the cases 14 to 18 of the table in
//! `spool/recovery.rs`. The commands that look at a directory from outside use the same code, so
//! that both call the same bytes damaged and the same write unfinished.

use super::segment::{BLOCK, Check, Damage, Found, LogOffset, RecordHeader, SegmentFile};
use super::synced::Synced;
use base::position::Position;

/// The result of reading the end of the last segment, which is the end of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The place where the log ends: the position after its last event, and the number of bytes of
    /// all lines in the log.
    pub end: LogOffset,
    /// The offset in the segment file where the log ends.
    pub kept: u64,
    /// The damaged parts of the file that had acknowledged events in them (cases 15, 16 and 18).
    pub damages: Vec<Damage>,
    /// The offset in the file of a write that was not finished (case 17), so that its events were
    /// never acknowledged. `None` if there is no such write.
    pub unfinished: Option<u64>,
}

/// The place up to which the log is known to be synced.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// Events before this place were synced. Damage before it is therefore never taken for an
    /// unfinished write.
    pub end: LogOffset,
    /// The offset of this place in the file of the last segment; `None` if only the place in the
    /// log is known.
    pub offset: Option<u64>,
}

impl Known {
    /// Returns up to where the log is known to be synced: the later one of the places that the
    /// cursors file (`cursors`) and the file `synced` name.
    pub(crate) fn end(cursors: LogOffset, synced: Option<Synced>) -> LogOffset {
        synced.map_or(cursors, |synced| synced.end.max(cursors))
    }

    /// Joins what the cursors file says (`cursors`) with what the file `synced` says. `last`: the
    /// first position of the segment whose end is read.
    pub(crate) fn new(cursors: LogOffset, synced: Option<Synced>, last: Position) -> Self {
        let here = synced.filter(|synced| synced.end >= cursors && synced.segment == last);
        Self { end: Self::end(cursors, synced), offset: here.map(|synced| synced.offset) }
    }
}

/// Damaged bytes in the last group, of which nothing has proved yet that they were synced, and the
/// end of the log before them.
type Unsure = (Damage, LogOffset);

impl Tail {
    /// Reads the last segment to its end, and finds where the log ends. Reading begins at the
    /// offset `from` of the file, which is the place `begin` of the log. The table of cases is at
    /// the head of `spool/recovery.rs`.
    pub(crate) fn read(last: &SegmentFile<'_>, from: u64, begin: LogOffset, known: Known) -> Self {
        let mut tail = Self { end: begin, kept: from, damages: Vec::new(), unfinished: None };
        let mut from = (from, begin.position);
        if let Some(offset) = known.offset.filter(|offset| *offset > from.0) {
            tail.read_synced(last, from, offset);
            (tail.end, tail.kept) = (tail.end.max(known.end), offset);
            from = (offset.next_multiple_of(BLOCK), tail.end.position);
        }
        let unsure = tail.read_groups(last, from);
        tail.judge(last, unsure, known.end.position);
        tail
    }

    /// Reads the bytes before the offset that is known to be synced.
    fn read_synced(&mut self, last: &SegmentFile<'_>, from: (u64, Position), offset: u64) {
        let synced = SegmentFile { size: offset.min(last.size), ..*last };
        let mut scan = synced.scan(from, Check::Lines);
        while let Some(found) = scan.next() {
            match found {
                // Case 15.
                Found::Damage(damage) => self.damages.push(damage),
                Found::Record(record) => self.end = record.header.end_place(),
            }
        }
    }

    /// Reads the groups that begin at `from` or later. Returns the damage in the last group.
    fn read_groups(&mut self, last: &SegmentFile<'_>, from: (u64, Position)) -> Vec<Unsure> {
        let mut scan = last.scan(from, Check::Lines);
        let mut unsure: Vec<Unsure> = Vec::new();
        while let Some(found) = scan.next() {
            match found {
                Found::Damage(damage) => unsure.push((damage, self.end)),
                Found::Record(record) => {
                    // Case 16. The first record of a group proves that everything before the group
                    // was synced.
                    let RecordHeader { first, group, .. } = record.header;
                    let is_earlier = |(_, before): &Unsure| before.position < group;
                    if first == group || unsure.first().is_some_and(is_earlier) {
                        self.damages.extend(unsure.drain(..).map(|(damage, _)| damage));
                    }
                    self.end = record.header.end_place();
                    self.kept = scan.offset();
                }
            }
        }
        unsure
    }

    /// Decides whether the damage in the last group is an unfinished write. Events before `known`
    /// were synced.
    fn judge(&mut self, last: &SegmentFile<'_>, unsure: Vec<Unsure>, known: Position) {
        let whole = self.kept;
        for (damage, before) in unsure {
            let offset = damage.bytes.start;
            // Case 17. In a file that was used before, old bytes are where nothing was written, and
            // not zeros.
            if (damage.torn || last.reused) && known <= before.position {
                if offset < whole {
                    (self.end, self.kept) = (before, offset);
                }
                let header = last.scan((offset, last.first), Check::Lines).header(offset);
                let is_leftover = last.reused && header.is_none() && offset >= whole;
                self.unfinished = (!is_leftover).then_some(offset);
                return;
            }
            // Case 18.
            if damage.bytes.end > self.kept {
                // The number of events in bytes of an earlier segment means nothing.
                if !last.reused {
                    self.end.position += damage.events;
                    self.end.byte += damage.lines;
                }
                self.kept = damage.bytes.end;
            }
            self.damages.push(damage);
        }
    }
}
