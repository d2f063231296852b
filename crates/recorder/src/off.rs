//! The positions of the events that came in while evidence was off.
//!
//! A relay that starts without `[evidence]` notes the end of the queue in a file of the queue's
//! directory, before it accepts an event. It does so only if evidence was on for this queue before.
//! The start that turns evidence on again notes the end of the range. The recorder enters the
//! ranges into the log, and deletes the file when a checkpoint covers the entries.

use std::io;
use std::ops::Range;

use base::disk::{Access, Disk, replace};
use evidence_log::layout::{DIRECTORY, KNOWN, OFF, if_there, read};

const FILE_BYTES_MAX: usize = 16 << 10;

/// The maximum number of ranges in the file. If evidence is turned on and off more often without a
/// checkpoint, the last range grows over the events in between.
const RANGES_MAX: usize = 64;

/// The end of a range that is still growing, because evidence is off.
const OPEN: u64 = u64::MAX;

/// Notes that evidence is off for events from position `end` on, if evidence was on before.
///
/// # Errors
///
/// The disk refuses, or the file has another form.
pub fn turned_off(disk: &dyn Disk, end: u64) -> io::Result<()> {
    if !was_on(disk)? {
        return Ok(());
    }
    let mut ranges = ranges(disk)?;
    let is_full = ranges.len() >= RANGES_MAX;
    match ranges.last_mut() {
        Some(last) if last.end == OPEN => return Ok(()),
        Some(last) if is_full => last.end = OPEN,
        _ => ranges.push(end..OPEN),
    }
    write(disk, &ranges)
}

/// Notes that evidence is on for events from position `end` on. Returns the positions before `end`
/// of events that came in while evidence was off and may have no entry yet, in order.
///
/// # Errors
///
/// The disk refuses, or the file has another form.
pub fn turned_on(disk: &dyn Disk, end: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = ranges(disk)?;
    if ranges.is_empty() {
        return Ok(ranges);
    }
    ranges.iter_mut().for_each(|range| range.end = range.end.min(end));
    ranges.retain(|range| range.start < range.end);
    if ranges.is_empty() {
        entered(disk)?
    } else {
        write(disk, &ranges)?
    }
    Ok(ranges)
}

/// Deletes the file: a checkpoint covers the entries about its ranges, or no event came in while
/// evidence was off.
pub(super) fn entered(disk: &dyn Disk) -> io::Result<()> {
    match if_there(disk.remove(OFF))? {
        Some(()) => disk.sync_directory(""),
        None => Ok(()),
    }
}

/// Returns `true` if the log's directory has files, or the copy of a checkpoint is next to it.
fn was_on(disk: &dyn Disk) -> io::Result<bool> {
    let is_known = if_there(disk.open(KNOWN, Access::Read))?.is_some();
    Ok(is_known || if_there(disk.list(DIRECTORY))?.is_some_and(|names| !names.is_empty()))
}

fn ranges(disk: &dyn Disk) -> io::Result<Vec<Range<u64>>> {
    let text = read(disk, OFF, FILE_BYTES_MAX)?.unwrap_or_default();
    let line = |line: &str| {
        let (first, end) = line.split_once(' ')?;
        let end = if end == "-" { OPEN } else { end.parse().ok()? };
        Some(first.parse().ok()?..end)
    };
    let ranges: Option<_> = String::from_utf8_lossy(&text).lines().map(line).collect();
    ranges.ok_or_else(|| io::Error::other(format!("the file {OFF} can't be read")))
}

fn write(disk: &dyn Disk, ranges: &[Range<u64>]) -> io::Result<()> {
    let line = |range: &Range<u64>| match range.end {
        OPEN => format!("{} -\n", range.start),
        end => format!("{} {end}\n", range.start),
    };
    replace(disk, OFF, ranges.iter().map(line).collect::<String>().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::simulated_disk::SimulatedDisk;

    /// Method: evidence is turned off, the relay is started again without it, then evidence is on
    /// for two starts, off again, and on.
    #[test]
    fn the_ranges_are_those_between_off_and_on_whatever_starts_are_between() {
        let disk = SimulatedDisk::new(1);
        replace(&disk, "evidence/checkpoint", b"checkpoint").expect("no fault is set");
        turned_off(&disk, 500).expect("no fault is set");
        turned_off(&disk, 700).expect("no fault is set");
        let (first, second) = (500..900, 1000..1001);
        for end in [900, 950] {
            let ranges = turned_on(&disk, end).expect("no fault is set");
            assert_eq!(ranges, std::slice::from_ref(&first));
        }
        turned_off(&disk, 1000).expect("no fault is set");
        assert_eq!(turned_on(&disk, 1001).expect("no fault is set"), [first, second]);
        entered(&disk).expect("no fault is set");
        assert_eq!(turned_on(&disk, 1500).expect("no fault is set"), []);
        // Nothing came in while it was off.
        turned_off(&disk, 1500).expect("no fault is set");
        assert_eq!(turned_on(&disk, 1500).expect("no fault is set"), []);
        assert!(!disk.names().iter().any(|name| name == OFF));
    }

    #[test]
    fn the_file_stays_short() {
        let disk = SimulatedDisk::new(1);
        replace(&disk, "evidence/checkpoint", b"checkpoint").expect("no fault is set");
        for at in 0..1000 {
            turned_off(&disk, at * 10).expect("no fault is set");
            turned_on(&disk, at * 10 + 5).expect("no fault is set");
        }
        let ranges = turned_on(&disk, 20_000).expect("no fault is set");
        assert_eq!((ranges.len(), ranges.last().map(|range| range.end)), (RANGES_MAX, Some(9995)));
    }
}
