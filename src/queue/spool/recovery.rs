//! The start: what is in the directory, where each output goes on, and where new records go.
//!
//! Nothing is deleted here. Only the last segment is read in full. Of each other segment the header
//! is read. If the place of an output is in a segment, the headers of the records before this place
//! are read too.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Cursor;
use super::CursorState;
use super::Queue;
use super::Segment;
use super::Shared;
use super::SpoolState;
use super::accounting::Accounting;
use super::accounting::Spare;
use super::cursor::REMOVED;
use super::incoming;
use super::load;
use super::load::Spot;
use super::quarantine_bytes;
use super::unrecorded::Unrecorded;
use super::writer::Writer;
use crate::position::Position;
use crate::queue::contract::Backlog;
use crate::queue::contract::Claim;
use crate::queue::contract::Outcome;
use crate::queue::contract::now;
use crate::queue::cursors;
use crate::queue::cursors::Contents;
use crate::queue::cursors::Cursors;
use crate::queue::cursors::Hole;
use crate::queue::disk;
use crate::queue::disk::Access;
use crate::queue::disk::Disk;
use crate::queue::disk::File;
use crate::queue::disk::OpenError;
use crate::queue::disk::SEGMENTS;
use crate::queue::disk::SPARES;
use crate::queue::disk::named;
use crate::queue::identity;
use crate::queue::identity::Identity;
use crate::queue::outputs::Output;
use crate::queue::outputs::show_start;
use crate::queue::outputs::signed;
use crate::queue::segment;
use crate::queue::segment::BadHeader;
use crate::queue::segment::Check;
use crate::queue::segment::Damage;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::Found;
use crate::queue::segment::LogOffset;
use crate::queue::segment::Record;
use crate::queue::segment::SEGMENT_HEADER;
use crate::queue::segment::Scan;
use crate::queue::segment::Seed;
use crate::queue::segment::SegmentHeader;
use crate::queue::synced;
use crate::queue::synced::Synced;
use crate::queue::tail::Known;
use crate::queue::tail::LastSegment;
use crate::queue::tail::Tail;
use crate::telemetry::Telemetry;

/// Opens the queue on a disk. Returns the queue, one cursor for each of the `outputs` in the same
/// order, and the writer. The caller has to run the writer.
///
/// # Errors
///
/// The directory can't be used, a newer version of the program has written it, or there are too
/// many outputs. Damage in the files is no error.
pub(super) fn open(
    disk: Arc<dyn Disk>,
    directory: &Path,
    config: &crate::config::Queue,
    telemetry: &Telemetry,
    outputs: &[Output],
) -> Result<(Queue, Vec<Cursor>, Writer), OpenError> {
    let metrics = telemetry.queue();
    let failed = |what: &'static str, name: &str| {
        let path = directory.join(name);
        move |error: io::Error| OpenError::new(what, path, error)
    };
    if outputs.iter().filter(|output| !output.is_recorder()).count() > cursors::OUTPUTS_MAX {
        let error = io::Error::other(format!("it has room for {} outputs", cursors::OUTPUTS_MAX));
        return Err(failed("use", cursors::FILE)(error));
    }
    let (found, generation) = cursors::read(&*disk).map_err(failed("read", cursors::FILE))?;
    if let cursors::Found::Newer(version) = found {
        return Err(OpenError::Newer { path: directory.join(cursors::FILE), version });
    }
    let writing =
        Cursors::open(&*disk, &found, generation).map_err(failed("open", cursors::FILE))?;
    let contents = match found {
        cursors::Found::Whole(contents) => Some((contents, Trust::Names)),
        cursors::Found::Half(contents) => Some((contents, Trust::Places)),
        cursors::Found::Nothing | cursors::Found::Damaged | cursors::Found::Newer(_) => None,
    };
    let identity = Identity::of(&*disk).map_err(failed("make", identity::FILE))?;
    let mut log = Log::read(&*disk, directory)?;
    if contents.is_none() && !log.segments.is_empty() {
        tracing::warn!(
            "the cursors file is missing or damaged: every output starts at the oldest event"
        );
    }
    let quarantined = AtomicU64::new(disk::quarantined(&*disk).1);
    let room = quarantine_bytes(config.max_bytes);
    let known = contents.as_ref().map(|(contents, _)| contents);
    let judged = log.judge(&*disk, known, synced::read(&*disk), &mut |file, at, damage| {
        metrics.corrupt.increment(1);
        load::set_aside(&*disk, file, at, damage, room, &quarantined, &metrics);
    });
    judged.map_err(failed("open a file of", SEGMENTS))?;

    let abandoned = not_taken(&*disk).map_err(failed("read", SEGMENTS))?;
    let mut state = SpoolState::new(config);
    state.writing.incoming_count = incoming::next_number(&abandoned);
    state.writing.accounting = Accounting::new(&log.segments, log.pending_delete, abandoned);
    (state.log.segments, state.log.end) = (log.segments, log.end);
    state.log.holes = contents.as_ref().map(|(it, _)| it.holes.clone()).unwrap_or_default();
    if outputs.iter().any(|output| output.is_recorder()) {
        state.log.finished_wakes = Some(Arc::new(Notify::new()));
    }
    if let Some((contents, _)) = &contents {
        count_removed(&mut state, contents, telemetry, outputs);
    }
    let mut indices = Vec::with_capacity(outputs.len());
    for output in outputs {
        let mut cursor = join(&state, &*disk, contents.as_ref(), output);
        let backlog = state.log.backlog(&cursor);
        if !output.is_recorder() {
            begin(&mut cursor, backlog);
        }
        indices.push(state.insert_cursor(cursor));
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^52")]
    metrics.capacity.set(config.max_bytes as f64);
    metrics.durable.set(1.0);
    metrics.writable.set(1.0);
    let shared = Arc::new(Shared {
        disk,
        identity,
        state: Mutex::new(state),
        work: Condvar::new(),
        chores: Condvar::new(),
        reclaimed: Condvar::new(),
        capacity: AtomicU64::new(config.max_bytes),
        metrics,
        progress: Notify::new(),
        quarantined,
        originals: OnceLock::new(),
        threads: Mutex::new(Vec::new()),
        panicked: CancellationToken::new(),
    });
    let mut writer = Writer::new(Arc::clone(&shared), writing);
    writer.begin().map_err(failed("write", cursors::FILE))?;
    let cursor = |index| Cursor::new(Arc::clone(&shared), index);
    let cursors = indices.into_iter().map(cursor).collect();
    Ok((Queue { shared }, cursors, writer))
}

/// Finds the files of large request bodies that never became segments, and spare files. Returns
/// their names and sizes in bytes. No sender was told that something in them is safe. The upkeep
/// deletes these files.
fn not_taken(disk: &dyn Disk) -> io::Result<Vec<(String, u64)>> {
    let is_incoming = |name: &str| incoming::number_of(name).is_some();
    let of = |directory: &str| -> io::Result<Vec<String>> {
        let names = disk.list(directory)?.into_iter();
        Ok(names.map(|name| format!("{directory}/{name}")).collect())
    };
    let names = of(SEGMENTS)?.into_iter().filter(|name| is_incoming(name));
    let spares = of(SPARES)?.into_iter().filter(|name| Spare::number_of(name).is_some());
    let sized = names.chain(spares).map(|path| {
        let bytes = disk.open(&path, Access::Read).and_then(|file| file.bytes());
        let bytes = bytes.map_err(named(&path))?;
        if is_incoming(&path) {
            tracing::info!(
                file = path,
                bytes,
                "a large body was arriving when the process ended: it was not \
                 acknowledged, and its file is deleted"
            );
        }
        Ok((path, bytes))
    });
    sized.collect()
}

/// How far the cursors file can be trusted after it was read. The file has two slots, which are
/// written in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Both slots are whole. An output that the file does not name is therefore new.
    Names,
    /// Only one slot can be used. The other slot may have been newer, and may have named outputs
    /// that the usable slot does not name.
    Places,
}

/// Counts the lost events of removed outputs. These are outputs that the cursors file names and the
/// config does not name any more. The events that such an output has not finished are lost.
fn count_removed(
    state: &mut SpoolState,
    contents: &Contents,
    telemetry: &Telemetry,
    outputs: &[Output],
) {
    let removed =
        contents.outputs.iter().filter(|(name, _)| outputs.iter().all(|kept| kept.name != **name));
    for (name, place) in removed {
        let dropped = state.log.dropped_from(place.position).0;
        let events = (state.log.end.position - place.position).saturating_sub(dropped);
        tracing::info!(output = name, "the config does not name this output any more");
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

/// Sets an output's gauge `output_start_events` to its backlog: the number of events that it has
/// not finished. Logs the backlog if it is not 0.
fn begin(cursor: &mut CursorState, backlog: Backlog) {
    cursor.start = signed(backlog.events);
    show_start(&cursor.output.metrics, cursor.start);
    if backlog.events > 0 {
        let (output, events, position) =
            (&cursor.output.name, backlog.events, cursor.claims.read.get());
        tracing::info!(output, events, position, "the output goes on with its backlog");
    }
}

/// Makes the cursor of an output at the start. Normally the cursor begins at the place that the
/// cursors file has for this output, and a new output begins at the end of the log. If there is no
/// usable cursors file, the output begins at the oldest event. If half of the file is damaged, the
/// output also begins there if the other half does not name it, or names a place before the oldest
/// event.
fn join(
    state: &SpoolState,
    disk: &dyn Disk,
    contents: Option<&(Contents, Trust)>,
    output: &Output,
) -> CursorState {
    let name = output.name.as_str();
    let oldest = state.log.segments.front().map_or(state.log.end, |segment| segment.first);
    let at = match contents {
        _ if let Some(needed) = output.recorder => {
            let segment = state.log.segments.get(state.log.segment_at(needed));
            segment.map_or(state.log.end, |segment| segment.first)
        }
        None => oldest,
        Some((contents, trust)) => match (contents.outputs.get(name), trust) {
            // Segments before the oldest one were deleted after the damaged slot was written, which
            // said that their events were delivered or counted.
            (Some(place), Trust::Places) if place.position < oldest.position => oldest,
            (Some(place), _) => *place,
            (None, Trust::Names) => {
                tracing::info!(
                    output = name,
                    position = state.log.end.position.get(),
                    "the output is new and begins with the next event"
                );
                state.log.end
            }
            (None, Trust::Places) => {
                tracing::warn!(
                    output = name,
                    "half of the cursors file is damaged, and may have named this output: it starts at the oldest event"
                );
                oldest
            }
        },
    };
    let mut cursor = CursorState::new(output.clone(), at);
    if let Some(history) = contents.and_then(|(contents, _)| contents.histories.get(name)) {
        (cursor.since, cursor.selection) = (history.since, history.selection);
    }
    if let Some((spot, received)) = locate(state, disk, at.position) {
        cursor.spot = Some(spot);
        cursor.received = received;
    }
    cursor
}

/// Finds the record that holds the event at a position. Returns the place of the record in a file,
/// and the time when it was received, in ms since 1970. `None` if the log has no such record yet,
/// or if the record is damaged. The cursor then searches for the event when it reads.
fn locate(state: &SpoolState, disk: &dyn Disk, position: Position) -> Option<(Spot, u64)> {
    let segment = state.log.segments.get(state.log.segment_at(position))?;
    let first = segment.first.position;
    let file = disk.open(&segment::file_name(first), Access::Read).ok()?;
    let begin = (FIRST_RECORD, first);
    let (end, limit) = (segment.offset, segment.end.position);
    let mut scan = Scan::new(&*file, segment.seed, begin, end, limit, Check::Headers);
    scan.skip_to(position);
    let Some(Found::Record(record)) = scan.next() else { return None };
    let Record { offset, header, .. } = record;
    // If another record is found, the one that is looked for is damaged. Its reader reports that.
    let holds = (header.first..header.end()).contains(&position);
    let spot = Spot { segment: first, offset, line: 0, position: header.first };
    holds.then_some((spot, header.received))
}

/// The segments that were found in a directory at the start.
struct Log {
    segments: VecDeque<Segment>,
    /// The first positions and the sizes in bytes of segment files that do not belong to the log
    /// any more, and that are to be deleted.
    pending_delete: Vec<(Position, u64)>,
    /// The place where the log ends.
    end: LogOffset,
}

/// A function that is called each time when damage is found. Its arguments are the segment's file,
/// the first position of the segment, and the damage.
type Report<'a> = &'a mut dyn FnMut(&dyn File, Position, &Damage);

impl Log {
    /// Finds all segments in the queue's directory, and reads the header of each.
    fn read(disk: &dyn Disk, directory: &Path) -> Result<Self, OpenError> {
        let failed = |what: &'static str, name: &str| {
            let path = directory.join(name);
            move |error: io::Error| OpenError::new(what, path, error)
        };
        let positions = segment::list(disk).map_err(failed("read", SEGMENTS))?;
        let mut segments: VecDeque<Segment> = VecDeque::with_capacity(positions.len());
        for position in positions {
            let name = segment::file_name(position);
            let file = disk.open(&name, Access::Read).map_err(failed("open", &name))?;
            let size = file.bytes().map_err(failed("look at", &name))?;
            let header = match SegmentHeader::read(&*file, position) {
                Ok(header) => Some(header),
                Err(BadHeader::Newer(version)) => {
                    return Err(OpenError::Newer { path: directory.join(name), version });
                }
                Err(BadHeader::Damaged) => None,
            };
            let (seed, reused) = Seed::of_file(header, &*file, position);
            let byte = match header {
                Some(header) => header.first_byte,
                None => first_byte(&*file, seed, position, segments.back()),
            };
            let first = LogOffset { position, byte };
            if let Some(before) = segments.back_mut() {
                before.end = first;
            }
            let damaged = header.is_none().then_some(0).into_iter().collect();
            segments.push_back(Segment {
                first,
                end: first,
                offset: size,
                size,
                seed,
                reused,
                is_sound: header.is_some(),
                damaged,
                active: false,
                ended: now(),
            });
        }
        let end = segments.back().map(|last| last.first).unwrap_or_default();
        Ok(Self { segments, pending_delete: Vec::new(), end })
    }

    /// Reads the last segment, cuts off an unfinished write at its end, and finds the end of the
    /// log. Calls `report` for damage in the last segment. Also calls `report` for each segment
    /// that has a damaged header.
    fn judge(
        &mut self,
        disk: &dyn Disk,
        contents: Option<&Contents>,
        mut synced: Option<Synced>,
        report: Report<'_>,
    ) -> io::Result<()> {
        // The log must not end before a place that the cursors file names. Otherwise a position
        // would be given twice, and an output would take new events for events that it has got.
        let mut known = contents.map(Contents::known).unwrap_or_default();
        let holes = contents.map(|contents| contents.holes.as_slice()).unwrap_or_default();
        // `true` if this segment was dropped and is not deleted yet.
        let is_dropped =
            |first: Position| holes.iter().any(|hole| (hole.start..hole.end).contains(&first));
        let dropped = self.segments.iter().filter(|segment| is_dropped(segment.first.position));
        self.pending_delete.extend(dropped.map(|segment| (segment.first.position, segment.size)));
        self.segments.retain(|segment| !is_dropped(segment.first.position));
        let behind: Vec<LogOffset> = self.segments.iter().skip(1).map(|next| next.first).collect();
        for (segment, end) in self.segments.iter_mut().zip(behind) {
            segment.end = end;
        }
        let mut limit = Position::MAX;
        known = Known::end(known, synced);
        self.end = known;
        while let Some(mut last) = self.segments.pop_back() {
            let first = last.first.position;
            let known_here = Known::new(known, synced, first);
            let behind = holes.iter().map(|hole| hole.start).filter(|start| *start > first);
            let limit_here = behind.chain([limit]).min().unwrap_or(limit);
            self.end = judge_last(&mut last, limit_here, disk, known_here, report)?;
            if self.end.position < known.position {
                self.end = LogOffset { byte: known.byte.max(self.end.byte), ..known };
            }
            if self.end.position > first {
                last.end = self.end;
                self.segments.push_back(last);
                break;
            }
            self.pending_delete.push((first, last.size));
            if !last.damaged.contains(&0) {
                break;
            }
            // The header of this segment was not written before a crash. The log ends here. The
            // segment before it, or the cursors file, knows the byte number.
            (limit, known.position, synced) = (first, first, None);
            self.end = known;
        }
        for segment in &mut self.segments {
            // If the segment after this one was dropped, this one ends where the hole begins.
            let is_behind = |hole: &&Hole, segment: &Segment| {
                hole.end == segment.end.position && hole.start > segment.first.position
            };
            while let Some(hole) = holes.iter().find(|hole| is_behind(hole, segment)) {
                let byte = segment.end.byte.saturating_sub(hole.bytes);
                segment.end = LogOffset { position: hole.start, byte };
            }
        }
        for segment in self.segments.iter().filter(|segment| segment.damaged.contains(&0)) {
            let first = segment.first.position;
            let name = segment::file_name(first);
            let file = disk.open(&name, Access::Read).map_err(named(&name))?;
            let bytes = 0..SEGMENT_HEADER as u64;
            report(&*file, first, &Damage { bytes, events: 0, lines: 0, torn: false });
        }
        Ok(())
    }
}

/// Reads the last segment, cuts off an unfinished write at its end, and returns the place where the
/// log ends. Records at or after the position `limit` do not belong to the log. Events before
/// `known` were synced. Damage before `known` is therefore never an unfinished write.
fn judge_last(
    last: &mut Segment,
    limit: Position,
    disk: &dyn Disk,
    known: Known,
    report: Report<'_>,
) -> io::Result<LogOffset> {
    let first = last.first.position;
    let name = segment::file_name(first);
    // A segment that could not be deleted may not be writable either. Then it is read, nothing is
    // cut off, and new events go into the next segment.
    let opened = disk.open(&name, Access::Write).or_else(|error| {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Err(error);
        }
        disk.open(&name, Access::Read).map_err(|_| error)
    });
    let file = opened.map_err(named(&name))?;
    let read = LastSegment {
        file: &*file,
        seed: last.seed,
        reused: last.reused,
        from: (FIRST_RECORD, first),
        size: last.size,
        limit,
    };
    let Tail { end, kept, damages, unfinished } = Tail::read(&read, last.first, known);
    for damage in damages {
        last.damaged.insert(damage.bytes.start);
        report(&*file, first, &damage);
    }
    if let Some(offset) = unfinished {
        let segment = segment::file_name(first);
        tracing::info!(
            segment,
            offset,
            "the last write was not finished and not acknowledged: it is cut off"
        );
    }
    // The cut gives back room that was reserved and not used. The sync is for records that were
    // written and are whole, but were not synced before a kill: outputs may get them now.
    let kept = kept.min(last.size);
    match file.truncate(kept).and_then(|()| file.sync()) {
        Ok(()) => last.size = kept,
        Err(error) => {
            let segment = segment::file_name(first);
            tracing::warn!(segment, %error, "the last segment can't be cut to its length and synced");
        }
    }
    last.offset = kept;
    Ok(end)
}

/// Returns the byte number at which a segment with a damaged header begins. A byte number is the
/// number of bytes of all lines before a place in the log. The number is read from the first whole
/// record of the segment. If there is no such record, the result is an estimate from the segment
/// `before`; 0 if `before` is `None`.
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
