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

/// What was found at the end of the last segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The place where the log ends: its events, and the bytes of their lines.
    pub(super) end: LogOffset,
    /// The offset in the file where the log ends.
    pub(super) kept: u64,
    /// The damaged bytes that belong to acknowledged events.
    pub(super) damages: Vec<Damage>,
    /// The offset of a write that was not finished, and so not acknowledged. `None` if there is no
    /// such write.
    pub(super) unfinished: Option<u64>,
}

impl Tail {
    /// Runs a scan of the last segment to its end, and finds where the log ends. The scan begins at
    /// the place `begin` of the log and must verify the checksums of lines. Events before `known`
    /// are known to be synced, so damage there is never an unfinished write.
    pub(super) fn read(mut scan: Scan<'_>, begin: LogOffset, known: Position) -> Self {
        let (mut end, mut kept) = (begin, scan.offset());
        // The damage in the last group so far, each with the end of the log before it. A record of
        // a later group proves that this group was synced, and so does the first record of a group
        // for all damage before it.
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
