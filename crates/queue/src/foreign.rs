//! The files in `segments/` that have the name of a segment, and that the queue did not write.
//!
//! Such a file is no part of the log. It is left alone, and none of its events is delivered or
//! counted. If it counted as a segment, the positions before it would count as lost, although no
//! event had them. A file is foreign in two cases:
//!
//! - Its header is whole, and has another position than the name: it is a copy of a segment, or a
//!   segment that somebody has renamed. The queue writes the header before it gives the name.
//! - Its header is not whole, it begins after the end that `synced` and `cursors` name, and the
//!   records of the segment before it do not reach it. The queue begins a segment where the log
//!   ends, after it has noted this end. After a power loss the note may be older, but then the
//!   records reach the segment.
//!
//! A file with a whole header and the right name counts as a segment: after a power loss, it can't
//! be told from one of the queue's own of which the segments before were deleted, and their events
//! are lost. The second case is not decided, and the file counts as a segment, without
//! a valid `synced`, if a file can't be read, or if the segment before it is damaged: the damage
//! may hide records that reach it.

use super::segment::{BadHeader, Check, FIRST_RECORD, Found, Scan, Seed, SegmentHeader};
use super::{cursors, segment, synced};
use base::disk::{Access, Disk};
use base::position::Position;

/// Returns those of `segments`, the first positions of all files in their order, that are foreign.
/// `synced` and `cursors` are read here, after the list was made: a relay may be running, and may
/// have begun these segments since.
pub(crate) fn find(disk: &dyn Disk, segments: &[Position]) -> Vec<Position> {
    // The caller reads the two files, too, and reports an error.
    let end = synced::read(disk).ok().flatten().and_then(|synced| {
        let contents = cursors::read(disk).ok()?.contents;
        Some(contents.map_or(synced.end, |it| it.known().max(synced.end)).position)
    });
    let (mut foreign, mut before) = (Vec::new(), None);
    for &first in segments {
        let is_foreign = match disk.open(&segment::file_name(first), Access::Read) {
            Ok(file) => match SegmentHeader::read(&*file, first) {
                Err(BadHeader::Misnamed) => true,
                Ok(_) | Err(BadHeader::Newer(_)) => false,
                Err(BadHeader::Damaged) => {
                    end.is_some_and(|end| first > end) && !reaches(disk, before, first)
                }
            },
            // The caller opens it again, and reports the error.
            Err(_) => false,
        };
        if is_foreign {
            foreign.push(first);
        } else {
            before = Some(first);
        }
    }
    foreign
}

/// Returns `false` if the records of the segment `before`, all of them whole, end before `first`,
/// or if there is no such segment. Returns `true` if that is unknown.
fn reaches(disk: &dyn Disk, before: Option<Position>, first: Position) -> bool {
    let Some(before) = before else { return false };
    // A relay may have deleted it since.
    let Ok(file) = disk.open(&segment::file_name(before), Access::Read) else { return true };
    let header = SegmentHeader::read(&*file, before).ok();
    let (seed, _) = Seed::of_file(header, &*file, before);
    let begin = (FIRST_RECORD, before);
    let mut scan = Scan::new(&*file, seed, begin, u64::MAX, first, Check::Headers);
    let is_damaged = std::iter::from_fn(|| scan.next()).any(|it| matches!(it, Found::Damage(_)));
    is_damaged || scan.position() >= first || !scan.has_read_all()
}
