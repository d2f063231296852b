//! The end of the log: how far it goes, and which bytes there that do not check were never
//! acknowledged.
//!
//! The start of the queue cuts the log off there. The commands that look at a directory from
//! outside use the same code, so that both call the same bytes damaged and the same write
//! unfinished.

use super::cursors::LogOffset;
use super::segment::Damage;
use super::segment::Found;
use super::segment::RecordHeader;
use super::segment::Scan;
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

impl Tail {
    /// Reads the last segment to its end, and finds where the log ends. `scan` must begin at the
    /// place `begin` of the log, and must verify the checksums of lines. Events before `known` are
    /// known to be synced: damage before `known` is therefore never taken for an unfinished write.
    pub(super) fn read(mut scan: Scan<'_>, begin: LogOffset, known: Position) -> Self {
        let (mut end, mut kept) = (begin, scan.offset());
        // The damage in the last group (the records of one write and one sync) so far, each with
        // the end of the log before it. The damage was synced, and is not an unfinished write, if
        // there is a record of a later group. If a record is the first of its group, this is proved
        // for all damage before the record.
        let mut unsure: Vec<(Damage, LogOffset)> = Vec::new();
        let mut damages: Vec<Damage> = Vec::new();
        while let Some(found) = scan.next() {
            match found {
                Found::Damage(damage) => unsure.push((damage, end)),
                Found::Record(record) => {
                    let RecordHeader { first, group, .. } = record.header;
                    let is_earlier = |(_, before): &(Damage, LogOffset)| before.position < group;
                    if first == group || unsure.first().is_some_and(is_earlier) {
                        damages.extend(unsure.drain(..).map(|(damage, _)| damage));
                    }
                    end =
                        LogOffset { position: record.header.end(), byte: record.header.end_byte() };
                    kept = scan.offset();
                }
            }
        }
        let (whole, mut unfinished) = (kept, None);
        for (damage, before) in unsure {
            // A group that is not whole was not acknowledged, unless the cursors file knows of it.
            if damage.torn && known <= before.position {
                let offset = damage.bytes.start;
                if offset < whole {
                    (end, kept) = (before, offset);
                }
                unfinished = Some(offset);
                break;
            }
            if damage.bytes.end > kept {
                end.position += damage.events;
                end.byte += damage.lines;
                kept = damage.bytes.end;
            }
            damages.push(damage);
        }
        Self { end, kept, damages, unfinished }
    }
}
