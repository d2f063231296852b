//! The end of the log: how far it goes, and what of that which does not check there was never acknowledged.
//!
//! The start cuts it off there, and those who look at a directory from outside call the same damage and the same unfinished.

use super::cursors::LogOffset;
use super::segment::Damage;
use super::segment::Found;
use super::segment::RecordHeader;
use super::segment::Scan;
use crate::position::Position;

/// The last segment, from some record on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The log's end.
    pub(super) end: LogOffset,
    /// The offset behind what belongs to the log.
    pub(super) kept: u64,
    /// What does not check, and was acknowledged.
    pub(super) damages: Vec<Damage>,
    /// Where a write begins that was not finished, and not acknowledged.
    pub(super) unfinished: Option<u64>,
}

impl Tail {
    /// Reads to the end of a scan that checks lines and begins at a place. `known`: what is before it was synced.
    pub(super) fn read(mut scan: Scan<'_>, begin: LogOffset, known: Position) -> Self {
        let (mut end, mut kept) = (begin, scan.offset());
        // Damage of the last group, each with the log's end before it. A record of a later group would prove that this one
        // was synced, and what is before a group's first record is not of it.
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
            // Unless more is known, nothing of a group that is not whole was acknowledged.
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
