//! The start of the queue: the files in the directory, the place where each output continues, and
//! the end of the log.
//!
//! No segment is deleted here: the upkeep gets those that do not belong to the log. Only the last
//! segment, and in case 13 the one before it, is read in full. Of other segments only headers are
//! read: that of the segment and, if it is damaged or an output continues there, those of records.
//!
//! A crash, a fault of the disk or a person may have changed the directory. The table lists all
//! cases, and comments in the code name the case that is decided there ("Case 7"). The decisions
//! follow two rules: no position is given to two events, and an event whose sender got the status
//! 200 is handed out or counted as lost. In doubt an output gets events twice.
//!
//! | case | found on disk | decision | why |
//! |---|---|---|---|
//! | | **the cursors file** | | |
//! | 1 | both slots are whole | an output starts at its place; one that is not named starts at the end of the log | the last save is here, so this output is new |
//! | 2 | one slot is whole, or the two were not written one after the other | as 1, but an output that is not named, or whose place is before the oldest segment, starts at the oldest event | the other slot may have been newer and may have named it |
//! | 3 | no file, or no slot is whole | each output starts at the oldest event | nobody knows what was delivered |
//! | 4 | a newer version | the start is refused | the file may say what this program can't read |
//! | 5 | an output that the config does not name | what it has not finished is counted as lost | nobody will ever deliver it |
//! | | **a segment** | | |
//! | 6 | the header is whole | it is believed | |
//! | 7 | the header has a newer version | the start is refused | as 4 |
//! | 8 | the header is damaged | the first position is that of the file's name, and the byte number that of the first record with a valid header. It counts as damage, except in case 13 | the records can be verified without the header |
//! | 9 | the cursors file names the segment's positions as a hole | the segment leaves the log | it was dropped and its events were counted; a crash came before its file was deleted |
//! | 10 | the segment after it has left the log (case 9) | it ends where the hole begins | the cursors file has the hole's length |
//! | 11 | no file has the positions between two segments | the cursors find a gap there, and count it as lost | somebody has deleted a file |
//! | | **the last segment** | | |
//! | 12 | no record, and the header is whole | it leaves the log, which ends here | the next segment needs its name |
//! | 13 | no record, and the header is damaged | it leaves the log, and the segment before it is judged as the last one | a crash came before the header was synced |
//! | 14 | whole records behind the end that is known to be synced | they belong to the log, and are written again and synced now | they were written before a kill; their senders may have got 200 |
//! | | **bytes in the last segment that are not a valid record** ([`Tail::read`]) | | |
//! | 15 | before the offset that the file `synced` has | damage | they were synced, and acknowledged |
//! | 16 | before a record of a later group | damage | a group is written after the sync of the one before |
//! | 17 | in the last group, behind all known ends; sectors of zeros or a missing end, or the file was another segment before | the log ends before them, and the file is cut there | the write was not finished and not acknowledged |
//! | 18 | in the last group, and not case 17 | damage; the log ends behind them | a byte may have been changed later |
//! | | **the end of the log** | | |
//! | 19 | `cursors` or `synced` names a later end than the segments have | the log ends at the later one | the positions were given; what is missing there is a gap |
//! | 20 | the last segment can't be written, cut or synced | it is read as it is, and new records go into a new segment | an old file may belong to another user |
//! | | **other files** | | |
//! | 21 | `*.incoming`, `*.spare` | the upkeep deletes them | nobody was told that something in them is safe |
//! | 24 | an event before its output's place that whole cursors list as set aside, with or without a file | the output tries the event again, or counts it as lost when it reads the file | it was set aside, and the log may not have it any more; the relay deletes a file after a save of the cursors without the event |
//! | 25 | a file in `set-aside/` that whole cursors do not list, or whose event is not before its output's place | it is deleted | the event is decided, or the output gets it from the log |
//! | 28 | a file in `set-aside/` whose event is before its output's place, without whole cursors or without their list | as 24 | the event may be set aside |
//! | 26 | a file in `set-aside/` of an output that the config does not name | if the cursors file names the output, it is deleted, and as 5; otherwise it is left alone | as 5 |
//! | 27 | a file in `segments/` that the queue did not write ([`foreign`]) | it is left alone, and nothing is counted; before the log reaches its position, it gets another name | no event of the log is in it |
//! | | **a read fails** ([`Patient`]) | | |
//! | 22 | and of a segment, `cursors` or `synced` nothing can be read for half a minute | the start is refused, and nothing is changed | the disk is unreachable, and its data may be whole |
//! | 23 | and other parts of the file can be read | damage | a sector is bad, and must not keep the relay from starting |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::accounting::{Accounting, SPARE, number_of};
use super::cursor::REMOVED;
use super::load::Spot;
use super::state::WriterState;
use super::unrecorded::Unrecorded;
use super::writer::Writer;
use super::{
    Cursor, CursorState, LogState, Queue, Segment, Shared, SpoolState, Wakes, load,
    quarantine_bytes,
};
use crate::contract::{Backlog, Claim, Outcome};
use crate::cursors::{Contents, Cursors, CursorsFile, Hole};
use crate::identity::Identity;
use crate::outputs::{Output, show_start, signed};
use crate::patient::Patient;
use crate::segment::{
    BadHeader, Check, Damage, FIRST_RECORD, Found, LogOffset, Record, SEGMENT_HEADER, Scan, Seed,
    SegmentFile, SegmentHeader,
};
use crate::synced::Synced;
use crate::tail::{Known, Tail};
use crate::{cursors, foreign, identity, patient, segment, shelf, synced};
use base::disk;
use base::disk::{ASIDE, Access, Disk, File, OpenError, QUARANTINE, SEGMENTS, SPARES, named};
use base::position::Position;
use telemetry::{QueueMetrics, Telemetry};

/// The number of bytes that are read and written again in one step.
const AGAIN_BYTES: usize = 64 * 1024;

/// The read size where some bytes can't be read, so that the readable pages are found.
const PAGE: usize = 4096;

/// Opens the queue on a disk. Also returns a cursor for each of `outputs`, in order, and the
/// writer, which the caller has to run. Damage in the files is not an error.
pub(super) fn open(
    disk: Arc<dyn Disk>,
    directory: &Path,
    config: &config::Queue,
    telemetry: &Telemetry,
    outputs: &[Output],
) -> Result<(Queue, Vec<Cursor>, Writer), OpenError> {
    let failed = |what, name: &str| failed(directory, what, name);
    let metrics = telemetry.queue();
    let reading = Patient::new(Arc::clone(&disk), patient::PATIENCE);
    let (found, writing) = read_cursors(&reading, directory, outputs)?;
    let contents = found.contents.as_ref();
    let mut log = Log::read(&reading, directory)?;
    let synced = synced::read(&reading).map_err(failed("read", synced::FILE))?;
    let identity = Identity::of(&reading).map_err(failed("make", identity::FILE))?;
    if contents.is_none() && (synced.is_some() || !log.segments.is_empty()) {
        tracing::warn!(
            segments = log.segments.len(),
            "the cursors file is missing or damaged: every output starts again at the oldest event \
             in the queue, so events may be sent twice; if files of undelivered events were deleted \
             too, these events are lost without a count"
        );
    }
    let quarantined = AtomicU64::new(disk::sizes(&*disk, QUARANTINE).1);
    let room = quarantine_bytes(config.max_bytes);
    let judged = log.judge(&reading, contents, synced, &mut |file, at, damage| {
        metrics.spool.corrupt.increment(1);
        load::set_aside(&*disk, file, at, damage, room, &quarantined, &metrics);
    });
    judged.map_err(failed("read a file of", SEGMENTS))?;
    let abandoned = not_taken(&reading).map_err(failed("read", SEGMENTS))?;
    let is_output = |name: &str| {
        let is_named = contents.is_some_and(|contents| contents.outputs.contains_key(name));
        is_named || outputs.iter().any(|output| output.name == name)
    };
    let mut aside = shelf::find(&reading, &found, is_output).map_err(failed("read", ASIDE))?;
    if aside.unknown > 0 {
        tracing::warn!(
            events = aside.unknown,
            "half of the cursors file is damaged, and the other half lists events as set aside that \
             have no file: either they were delivered or counted as lost later, or somebody has \
             deleted their files and they are lost without a count"
        );
    }

    let mut state = state_of(log, abandoned, contents, config);
    if outputs.iter().any(|output| output.is_recorder()) {
        state.log.finished_wakes = Some(Arc::new(Notify::new()));
        state.log.given_up = contents.map(given_up).unwrap_or_default();
    }
    if let Some(contents) = contents {
        count_removed(&mut state, contents, telemetry, outputs, &aside.events);
    }
    let indices = join_all(&mut state, &reading, &found, outputs, &mut aside.events);
    let indices = indices.map_err(failed("read", ASIDE))?;
    // Cases 25 and 26.
    let rest = aside.events.iter().flat_map(|(output, events)| {
        events.iter().map(move |position| shelf::name(output, *position))
    });
    let leftovers = aside.leftovers.into_iter().chain(rest).collect();
    shelf::tidy(&*disk, leftovers, aside.foreign);

    show(&metrics, config.max_bytes, state.log.end.position);
    let shared = Arc::new(Shared {
        disk,
        identity,
        state: Mutex::new(state),
        wakes: Wakes::default(),
        capacity: AtomicU64::new(config.max_bytes),
        metrics,
        quarantined,
        originals: OnceLock::new(),
        keeps_unknown: AtomicBool::new(false),
        threads: Mutex::new(Vec::new()),
        panicked: CancellationToken::new(),
    });
    let mut writer = Writer::new(Arc::clone(&shared), writing);
    writer.begin().map_err(failed("write", cursors::FILE))?;
    let cursor = |index| Cursor::new(Arc::clone(&shared), index);
    let cursors = indices.into_iter().map(cursor).collect();
    Ok((Queue { shared }, cursors, writer))
}

#[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^52")]
fn show(metrics: &QueueMetrics, max_bytes: u64, end: Position) {
    metrics.earlier.set(end.get() as f64);
    metrics.capacity.set(max_bytes as f64);
    metrics.durable.set(1.0);
    metrics.writable.set(1.0);
}

/// Returns a function that makes an [`OpenError`] for the operation `what` on the file `name`.
fn failed(
    directory: &Path,
    what: &'static str,
    name: &str,
) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let path = directory.join(name);
    move |error| OpenError::new(what, path, error)
}

fn read_cursors(
    disk: &dyn Disk,
    directory: &Path,
    outputs: &[Output],
) -> Result<(cursors::Found, Cursors), OpenError> {
    let failed = |what| failed(directory, what, cursors::FILE);
    if outputs.iter().filter(|output| !output.is_recorder()).count() > cursors::OUTPUTS_MAX {
        let error = io::Error::other(format!("it has room for {} outputs", cursors::OUTPUTS_MAX));
        return Err(failed("use")(error));
    }
    let found = cursors::read(disk).map_err(failed("read"))?;
    if let CursorsFile::Newer(version) = found.state {
        // Case 4.
        return Err(OpenError::Newer { path: directory.join(cursors::FILE), version });
    }
    let writing = Cursors::open(disk, &found).map_err(failed("open"))?;
    Ok((found, writing))
}

/// Makes the state of a queue without outputs. `abandoned`: the files of case 21.
fn state_of(
    log: Log,
    abandoned: Vec<(String, u64)>,
    contents: Option<&Contents>,
    config: &config::Queue,
) -> SpoolState {
    let mut state = SpoolState { log: LogState::default(), writing: WriterState::new(config) };
    state.writing.accounting = Accounting::new(&log.segments, log.pending_delete, abandoned);
    (state.log.segments, state.log.end) = (log.segments, log.end);
    state.log.foreign = log.foreign;
    state.log.foreign.retain(|first| *first >= state.log.end.position);
    state.log.holes = contents.map(|contents| contents.holes.clone()).unwrap_or_default();
    state
}

/// The end of the name of a file in which an older version stored a large body while it arrived.
const INCOMING: &str = ".incoming";

/// Case 21: returns the names and sizes of unfinished large bodies and of spare files.
fn not_taken(disk: &dyn Disk) -> io::Result<Vec<(String, u64)>> {
    let is_incoming = |name: &str| number_of(name, INCOMING).is_some();
    let of = |directory: &str| -> io::Result<Vec<String>> {
        let names = disk.list(directory)?.into_iter();
        Ok(names.map(|name| format!("{directory}/{name}")).collect())
    };
    let names = of(SEGMENTS)?.into_iter().filter(|name| is_incoming(name));
    let spares = of(SPARES)?.into_iter().filter(|name| number_of(name, SPARE).is_some());
    let sized = names.chain(spares).map(|path| {
        let bytes = disk.open(&path, Access::Read).and_then(|file| file.bytes());
        let bytes = bytes.map_err(named(&path))?;
        if is_incoming(&path) {
            tracing::info!(
                file = path,
                bytes,
                "a large request body was arriving when the last process ended: it was not \
                 acknowledged, and its file is deleted"
            );
        }
        Ok((path, bytes))
    });
    sized.collect()
}

/// Case 5: counts the lost events of outputs that the config does not name any more.
fn count_removed(
    state: &mut SpoolState,
    contents: &Contents,
    telemetry: &Telemetry,
    outputs: &[Output],
    aside: &BTreeMap<String, BTreeSet<Position>>,
) {
    let removed =
        contents.outputs.iter().filter(|(name, _)| outputs.iter().all(|kept| kept.name != **name));
    for (name, place) in removed {
        let dropped = cursors::missing_from(&state.log.holes, place.position).0;
        // Case 26.
        let aside = aside.get(name).into_iter().flatten();
        let aside = aside.filter(|position| **position < place.position).count() as u64;
        let events = (state.log.end.position - place.position).saturating_sub(dropped) + aside;
        tracing::info!(
            output = name,
            "an output of the last run is no longer in the config: its backlog counts as lost"
        );
        telemetry.removed(name, events);
        state.log.departed.leave(name, signed(events), 0);
        let claim = Claim { start: place.position, end: state.log.end.position };
        if let Some(wakes) = state.log.finished_wakes.clone()
            && claim.start < claim.end
        {
            let mut unrecorded = Unrecorded::new(wakes);
            unrecorded.add(name, claim, place.byte, Outcome::Lost(REMOVED));
            state.log.leaving.push((name.clone(), unrecorded));
        }
    }
}

/// Returns the positions that all outputs have finished, or that were dropped.
fn given_up(contents: &Contents) -> Vec<Range<Position>> {
    let finished = contents.outputs.values().map(|place| place.position).min();
    let finished = finished.map(|end| Position::START..end);
    finished.into_iter().chain(contents.holes.iter().map(|hole| hole.start..hole.end)).collect()
}

/// Sets the gauges `output_start_events` and `output_aside_events`, and logs the number of
/// unfinished events and of those set aside.
fn begin(cursor: &mut CursorState, backlog: Backlog) {
    cursor.aside = cursor.found.len() as u64;
    cursor.shelved = cursor.found.iter().map(|(position, _)| *position).collect();
    cursor.start = signed(backlog.events + cursor.aside);
    show_start(&cursor.output.metrics, cursor.start);
    cursor.output.show_aside(cursor.aside);
    if cursor.aside > 0 {
        let (output, events) = (&cursor.output.name, cursor.aside);
        tracing::info!(
            output,
            events,
            "the output retries the events that were set aside before this start"
        );
    }
    if backlog.events > 0 {
        let (output, events, position) =
            (&cursor.output.name, backlog.events, cursor.claims.read.get());
        tracing::info!(
            output,
            events,
            position,
            "the output continues with the events that were not delivered before this start"
        );
    }
}

/// Makes the cursors of the outputs. Returns their indices, in the order of `outputs`.
fn join_all(
    state: &mut SpoolState,
    disk: &dyn Disk,
    found: &cursors::Found,
    outputs: &[Output],
    aside: &mut BTreeMap<String, BTreeSet<Position>>,
) -> io::Result<Vec<usize>> {
    let mut indices = Vec::with_capacity(outputs.len());
    for output in outputs {
        let mut cursor = join(state, disk, found, output);
        let backlog = state.log.backlog(&cursor);
        if !output.is_recorder() {
            // Only whole cursors show that an output is new. Any other output may have set aside
            // events of deleted segments: the files are then the only copy, and nobody has counted
            // the events.
            let is_whole = found.state == CursorsFile::Whole;
            let is_named =
                found.contents.as_ref().is_some_and(|it| it.outputs.contains_key(&output.name));
            if let Some(events) = aside.get_mut(&output.name).filter(|_| is_named || !is_whole) {
                // Cases 24 and 28.
                let rest = events.split_off(&cursor.claims.watermark());
                let before = std::mem::replace(events, rest);
                cursor.found = shelf::sizes(disk, &output.name, &before)?;
            }
            begin(&mut cursor, backlog);
        }
        indices.push(state.insert_cursor(cursor));
    }
    Ok(indices)
}

/// Makes the cursor of an output (cases 1 to 3), or of the evidence recorder.
fn join(
    state: &SpoolState,
    disk: &dyn Disk,
    found: &cursors::Found,
    output: &Output,
) -> CursorState {
    let name = output.name.as_str();
    let oldest = state.log.segments.front().map_or(state.log.end, |segment| segment.first);
    let contents = found.contents.as_ref();
    let is_whole = found.state == CursorsFile::Whole;
    let at = match contents {
        _ if let Some(needed) = output.recorder => {
            let segment = state.log.segments.get(state.log.segment_at(needed));
            segment.map_or(state.log.end, |segment| segment.first)
        }
        // Case 3.
        None => oldest,
        Some(contents) => match contents.outputs.get(name) {
            // Case 2. The damaged slot said that all events before the oldest segment were
            // delivered or counted: only after its write were their segments deleted.
            Some(place) if !is_whole && place.position < oldest.position => oldest,
            Some(place) => *place,
            None if is_whole => {
                tracing::info!(
                    output = name,
                    position = state.log.end.position.get(),
                    "the output is new: it gets the events that arrive from now on"
                );
                state.log.end
            }
            None => {
                tracing::warn!(
                    output = name,
                    "half of the cursors file is damaged, and it may have had the position of this \
                     output: the output starts at the oldest event in the queue, so events may be \
                     sent twice; if files of undelivered events were deleted too, these events are \
                     lost without a count"
                );
                oldest
            }
        },
    };
    let mut cursor = CursorState::new(output.clone(), at);
    if let Some((spot, received)) = locate(state, disk, at.position) {
        cursor.ahead.spot = Some(spot);
        cursor.ahead.received = received;
    }
    cursor
}

/// Finds the record of an event. Returns its place, and the time in ms since 1970 when it was
/// received. `None` if it does not exist or is damaged: the cursor then searches when it reads.
fn locate(state: &SpoolState, disk: &dyn Disk, position: Position) -> Option<(Spot, u64)> {
    let segment = state.log.segments.get(state.log.segment_at(position))?;
    let first = segment.first.position;
    let file = disk.open(&segment::file_name(first), Access::Read).ok()?;
    let mut scan = segment.scan(&*file, (FIRST_RECORD, first), Check::Headers);
    scan.skip_to(position);
    let Some(Found::Record(record)) = scan.next() else { return None };
    let Record { offset, header, .. } = record;
    // If another record is found, the wanted one is damaged. The read of its lines reports that.
    let holds = (header.first..header.end()).contains(&position);
    let spot = Spot { segment: first, offset, line: 0, position: header.first };
    holds.then_some((spot, header.received))
}

struct Log {
    segments: VecDeque<Segment>,
    /// The segments that do not belong to the log, and must be deleted.
    pending_delete: Vec<(Position, u64)>,
    end: LogOffset,
    /// The files that have the name of a segment, and that the queue did not write.
    foreign: Vec<Position>,
}

/// The function that is called for each damage, with the segment's file and first position.
type Report<'a> = &'a mut dyn FnMut(&dyn File, Position, &Damage);

impl Log {
    fn read(disk: &Patient, directory: &Path) -> Result<Self, OpenError> {
        let failed = |what, name: &str| failed(directory, what, name);
        let mut positions = segment::list(disk).map_err(failed("read", SEGMENTS))?;
        // Case 27.
        let foreign = foreign::find(disk, &positions);
        disk.check().map_err(failed("read a file of", SEGMENTS))?;
        positions.retain(|first| !foreign.contains(first));
        if let Some(first) = foreign.first() {
            tracing::error!(
                file = segment::file_name(*first),
                files = foreign.len(),
                "files in segments/ were not written by this queue: they are left alone, and none \
                 of their events is sent or counted; find out who writes to queue.directory, and \
                 move the files away"
            );
        }
        let mut segments: VecDeque<Segment> = VecDeque::with_capacity(positions.len());
        for position in positions {
            let name = segment::file_name(position);
            let file = disk.open(&name, Access::Read).map_err(failed("open", &name))?;
            let size = file.bytes().map_err(failed("look at", &name))?;
            let header = match SegmentHeader::read(&*file, position) {
                // Case 6.
                Ok(header) => Some(header),
                // Case 7.
                Err(BadHeader::Newer(version)) => {
                    return Err(OpenError::Newer { path: directory.join(name), version });
                }
                // Case 8. A foreign file (case 27) is not in `positions`.
                Err(BadHeader::Damaged | BadHeader::Misnamed) => None,
            };
            let (seed, reused) = Seed::of_file(header, &*file, position);
            let byte = match header {
                Some(header) => header.first_byte,
                None => first_byte(&*file, seed, position, segments.back()),
            };
            // Case 22.
            disk.check().map_err(failed("read", &name))?;
            let first = LogOffset { position, byte };
            if let Some(before) = segments.back_mut() {
                // Case 11 too: the positions that no file has are a part of the segment before.
                before.end = first;
            }
            let damaged = header.is_none().then_some(0).into_iter().collect();
            segments.push_back(Segment {
                offset: size,
                seed,
                reused,
                is_sound: header.is_some(),
                damaged,
                ..Segment::new(first, size)
            });
        }
        let end = segments.back().map(|last| last.first).unwrap_or_default();
        Ok(Self { segments, pending_delete: Vec::new(), end, foreign })
    }

    /// Decides which segments belong to the log and where it ends, and cuts off an unfinished write
    /// at its end. Reports damage in the last segment, and each damaged header.
    fn judge(
        &mut self,
        disk: &Patient,
        contents: Option<&Contents>,
        synced: Option<Synced>,
        report: Report<'_>,
    ) -> io::Result<()> {
        let holes = contents.map(|contents| contents.holes.as_slice()).unwrap_or_default();
        self.leave_out(holes);
        let known = contents.map(Contents::known).unwrap_or_default();
        self.find_end(disk, Known::end(known, synced), synced, holes, report)?;
        for segment in &mut self.segments {
            // Case 10.
            let is_behind = |hole: &&Hole, segment: &Segment| {
                hole.end == segment.end.position && hole.start > segment.first.position
            };
            while let Some(hole) = holes.iter().find(|hole| is_behind(hole, segment)) {
                let byte = segment.end.byte.saturating_sub(hole.bytes);
                segment.end = LogOffset { position: hole.start, byte };
            }
        }
        for segment in self.segments.iter().filter(|segment| segment.damaged.contains(&0)) {
            // Case 8.
            let first = segment.first.position;
            let name = segment::file_name(first);
            let file = disk.open(&name, Access::Read).map_err(named(&name))?;
            let bytes = 0..SEGMENT_HEADER as u64;
            report(&*file, first, &Damage { bytes, events: 0, lines: 0, torn: false });
        }
        Ok(())
    }

    /// Case 9: removes the dropped segments from the log.
    fn leave_out(&mut self, holes: &[Hole]) {
        let is_dropped =
            |first: Position| holes.iter().any(|hole| (hole.start..hole.end).contains(&first));
        let dropped = self.segments.iter().filter(|segment| is_dropped(segment.first.position));
        self.pending_delete.extend(dropped.map(|segment| (segment.first.position, segment.size)));
        self.segments.retain(|segment| !is_dropped(segment.first.position));
        let behind: Vec<LogOffset> = self.segments.iter().skip(1).map(|next| next.first).collect();
        for (segment, end) in self.segments.iter_mut().zip(behind) {
            segment.end = end;
        }
    }

    /// Finds the end of the log. `known`: the latest end that `cursors` and `synced` name.
    fn find_end(
        &mut self,
        disk: &Patient,
        mut known: LogOffset,
        mut synced: Option<Synced>,
        holes: &[Hole],
        report: Report<'_>,
    ) -> io::Result<()> {
        let mut limit = Position::MAX;
        self.end = known;
        while let Some(mut last) = self.segments.pop_back() {
            let first = last.first.position;
            let known_here = Known::new(known, synced, first);
            let behind = holes.iter().map(|hole| hole.start).filter(|start| *start > first);
            let limit_here = behind.chain([limit]).min().unwrap_or(limit);
            self.end = judge_last(&mut last, limit_here, disk, known_here, report)?;
            if self.end.position < known.position {
                // Case 19.
                self.end = LogOffset { byte: known.byte.max(self.end.byte), ..known };
            }
            if self.end.position > first {
                last.end = self.end;
                self.segments.push_back(last);
                break;
            }
            self.pending_delete.push((first, last.size));
            if !last.damaged.contains(&0) {
                // Case 12.
                break;
            }
            // Case 13. The segment before it, or the cursors file, knows the byte number.
            (limit, known.position, synced) = (first, first, None);
            self.end = known;
        }
        Ok(())
    }
}

/// Reads the last segment, cuts off an unfinished write at its end, and returns the end of the log.
/// Records from `limit` on do not belong to it. Damage before `known` is not an unfinished write.
fn judge_last(
    last: &mut Segment,
    limit: Position,
    disk: &Patient,
    known: Known,
    report: Report<'_>,
) -> io::Result<LogOffset> {
    let first = last.first.position;
    let name = segment::file_name(first);
    // Case 20. A segment that could not be deleted may not be writable either.
    let opened = disk.open(&name, Access::Write).or_else(|error| {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Err(error);
        }
        disk.open(&name, Access::Read).map_err(|_| error)
    });
    let file = opened.map_err(named(&name))?;
    let Segment { seed, reused, size, .. } = *last;
    let read = SegmentFile { file: &*file, first, seed, reused, size, limit };
    let Tail { end, kept, damages, unfinished } =
        Tail::read(&read, FIRST_RECORD, last.first, known);
    // Case 22.
    disk.check()?;
    for damage in damages {
        last.damaged.insert(damage.bytes.start);
        report(&*file, first, &damage);
    }
    if let Some(offset) = unfinished {
        let segment = segment::file_name(first);
        tracing::info!(
            segment,
            offset,
            "an unfinished write at the end of the queue is discarded: it was not acknowledged, so \
             no accepted event is lost"
        );
    }
    // The cut frees unused room. The sync is for the records of case 14, which outputs may get now.
    let kept = kept.min(last.size);
    let unsynced = known.offset.unwrap_or_default()..kept;
    let cut = file.truncate(kept);
    if cut.is_ok() {
        last.size = kept;
    }
    if let Err(error) = cut.and_then(|()| write_again(&*file, unsynced)).and(file.sync()) {
        last.is_sound = false;
        // Case 20.
        let segment = segment::file_name(first);
        tracing::warn!(
            segment,
            %error,
            "cannot truncate and sync the last segment of the queue: it is kept as it is, and new \
             events go into a new segment"
        );
    }
    last.offset = kept;
    Ok(end)
}

/// Writes bytes again unchanged. If a sync of them has failed before, the kernel takes them for
/// stored, and a sync alone does not store them. Unreadable bytes are skipped: they are damage.
fn write_again(file: &dyn File, bytes: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; AGAIN_BYTES];
    let (mut offset, mut most) = (bytes.start, AGAIN_BYTES);
    while offset < bytes.end {
        let rest = usize::try_from(bytes.end - offset).unwrap_or(AGAIN_BYTES);
        let room = &mut buffer[..rest.min(most)];
        match file.read_at(room, offset) {
            Ok(0) => break,
            Ok(count) => {
                file.write_at(&[&room[..count]], offset)?;
                offset += count as u64;
            }
            // In smaller steps, the readable parts of these bytes are found.
            Err(_) if most > PAGE => most = PAGE,
            Err(_) => offset += room.len() as u64,
        }
    }
    Ok(())
}

/// Case 8: returns the byte number at which a segment with a damaged header begins: that of the
/// first record with a valid header, or an estimate from the segment `before`.
fn first_byte(file: &dyn File, seed: Seed, position: Position, before: Option<&Segment>) -> u64 {
    let begin = (FIRST_RECORD, position);
    let mut scan = Scan::new(file, seed, begin, u64::MAX, Position::MAX, Check::Headers);
    while let Some(found) = scan.next() {
        if let Found::Record(record) = found {
            return record.header.first_byte;
        }
    }
    before.map_or(0, |before| before.first.byte + before.size)
}
