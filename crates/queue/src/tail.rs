//! The end of the log: how far the log goes, and which invalid bytes at its end were never
//! acknowledged. (The newest records in memory, also called the tail, are in `spool/state.rs`.)
//!
//! At startup the queue cuts the log off at this end, by the cases 14 to 18 of the table in
//! `spool/recovery.rs`. The inspection commands use the same code, so that both call the same bytes
//! damaged and the same write unfinished.

use super::segment::{BLOCK, Check, Damage, Found, LogOffset, RecordHeader, SegmentFile};
use super::synced::Synced;
use base::position::Position;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The place where the log ends.
    pub end: LogOffset,
    /// The offset in the segment file where the log ends.
    pub kept: u64,
    /// The damaged parts of the file that may hold acknowledged events (cases 15, 16 and 18).
    pub damages: Vec<Damage>,
    /// The offset of an unfinished write (case 17), whose events were never acknowledged.
    pub unfinished: Option<u64>,
}

/// The place up to which the log is known to be synced.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// Damage before this place is never an unfinished write.
    pub end: LogOffset,
    /// The offset of this place in the last segment; `None` if it is unknown.
    pub offset: Option<u64>,
}

impl Known {
    /// Returns the later one of the ends that the cursors file and the file `synced` name.
    pub(crate) fn end(cursors: LogOffset, synced: Option<Synced>) -> LogOffset {
        synced.map_or(cursors, |synced| synced.end.max(cursors))
    }

    /// Makes the value from the cursors file and the file `synced`. `last`: the first position of
    /// the segment whose end is read.
    pub(crate) fn new(cursors: LogOffset, synced: Option<Synced>, last: Position) -> Self {
        let here = synced.filter(|synced| synced.end >= cursors && synced.segment == last);
        Self { end: Self::end(cursors, synced), offset: here.map(|synced| synced.offset) }
    }
}

/// Damage in the last group that may be an unfinished write, and the end of the log before it.
type Unsure = (Damage, LogOffset);

impl Tail {
    /// Reads the last segment from the offset `from` to the end of the file. `begin`: the place in
    /// the log of this offset.
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

    /// Reads the groups from `from` on. Returns the damage in the last group.
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

    /// Decides whether the damage in the last group, behind `known`, is an unfinished write.
    fn judge(&mut self, last: &SegmentFile<'_>, unsure: Vec<Unsure>, known: Position) {
        let whole = self.kept;
        for (damage, before) in unsure {
            let offset = damage.bytes.start;
            // Case 17. A reused file has old bytes, and not zeros, where nothing was written.
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
                // In bytes of an earlier segment, the number of events means nothing.
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
