//! A list that does not fit into memory as a whole, event by event.
//!
//! The lines of the events that have arrived and the event that is arriving take at most `max`
//! bytes, and a little more while one of them ends. If more arrive:
//!
//! 1. The longest lines are trimmed, as `filter.max_event_bytes` trims them.
//! 2. If there are no lines to trim, the lines are a batch of their own, and the next begins.
//! 3. If one event alone is larger, its longest members are left out while it arrives.
//!
//! kube-apiserver bounds a batch by events and not by bytes, and anybody can make it write an event
//! of 12 MB. One refused batch would cost the events of all others in it.

use std::cmp::Reverse;
use std::sync::Arc;

use audit::request::Reader;
use audit::{Ended, Events, Invalid, Items, LIST_HEAD, LevelCounts, Rejected, RejectedItem, Split};
use bytes::Bytes;
use queue::Append;
use transform::redact;
use transform::redact::Change;

use super::answer::Notes;
use super::buffer::{Buffer, Pool};

/// The annotation with which kube-apiserver marks the events that it truncates.
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// The room in bytes for that annotation, and for a line break.
const MARK_BYTES: usize = 64;

/// The size in bytes to which a line is trimmed: so many of them fit, for a batch of
/// kube-apiserver's default, 400 events.
fn trimmed_bytes(max: usize) -> usize {
    (max / 1024).clamp(4 * 1024, 64 * 1024)
}

/// The reason why a list is refused.
#[derive(Debug)]
pub(super) enum Unfit {
    Invalid(Invalid),
    /// The text is not a list, or an event is too large without its longest members.
    TooLarge,
}

/// The events of a list that arrives. The result is the same, however the list is cut into pieces.
pub(super) struct Pieces {
    max: usize,
    items: Items,
    /// The head of a list, and then the item that is arriving.
    open: Vec<u8>,
    /// `true`: a member of the open item is left out.
    is_cut: bool,
    /// The lines of the events so far, and the offset behind each.
    lines: Buffer,
    ends: Vec<usize>,
    pool: Arc<Pool>,
    levels: LevelCounts,
    /// `true`: the lines must be taken before more is read.
    is_full: bool,
    notes: Notes,
}

impl Pieces {
    /// `max` is the number of bytes that may be held. The memory for the lines comes from `pool`.
    pub(super) fn new(max: usize, pool: &Arc<Pool>) -> Self {
        Self {
            max,
            items: Items::default(),
            open: LIST_HEAD.to_vec(),
            is_cut: false,
            lines: Buffer::new(None, pool),
            ends: Vec::new(),
            pool: Arc::clone(pool),
            levels: LevelCounts::default(),
            is_full: false,
            notes: Notes::default(),
        }
    }

    /// Continues a list of which `begun` is the beginning. The second value is this beginning as a
    /// list of its own, without the item that is arriving; `None` if no item is complete. Takes
    /// milliseconds for each MiB.
    pub(super) fn after(
        mut begun: Buffer,
        max: usize,
        pool: &Arc<Pool>,
    ) -> Result<(Self, Option<Buffer>), Unfit> {
        let (mut pieces, mut at, mut complete) = (Self::new(max, pool), 0, 0);
        while at < begun.len() {
            let rest = begun.bytes().get(at..).unwrap_or_default();
            let read = pieces.items.read(rest, &mut pieces.open);
            let (count, ended) = read.map_err(|it| it.map_or(Unfit::TooLarge, Unfit::Invalid))?;
            at += count;
            if ended == Ended::Item {
                complete = at;
                pieces.open.truncate(LIST_HEAD.len());
            }
        }
        begun.truncate(complete);
        begun.extend(b"]}");
        Ok((pieces, (complete > 0).then_some(begun)))
    }

    /// Returns `true` if a byte of the list was read.
    pub(super) fn is_begun(&self) -> bool {
        self.items.offset() > 0
    }

    /// Returns `true` if more bytes than fit into memory have arrived.
    pub(super) fn is_above_max(&self) -> bool {
        self.items.offset() > self.max
    }

    /// Returns the bytes that the lines and the open item take.
    pub(super) fn held(&self) -> usize {
        self.lines.len() + self.open.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Reads the next bytes of the list until the lines must be taken. Returns the number of bytes
    /// that were read. Takes milliseconds for each MiB.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<usize, Unfit> {
        let step = (self.max / 8).max(1);
        let mut at = 0;
        while at < bytes.len() && !self.is_full {
            let part = bytes.get(at..bytes.len().min(at + step)).unwrap_or_default();
            let read = self.items.read(part, &mut self.open);
            let (count, ended) = read.map_err(|it| it.map_or(Unfit::TooLarge, Unfit::Invalid))?;
            at += count;
            if ended == Ended::Item {
                self.end_item()?;
            }
            self.make_room()?;
        }
        Ok(at)
    }

    /// Takes the lines, as a batch. `None` if there are none.
    pub(super) fn take(&mut self) -> Option<Append> {
        let lines = std::mem::replace(&mut self.lines, Buffer::new(None, &self.pool));
        let events = std::mem::take(&mut self.ends).len() as u64;
        let levels = std::mem::take(&mut self.levels);
        self.is_full = false;
        let length = lines.len();
        (events > 0).then(|| Append { lines: lines.keep(0..length), events, levels, list: None })
    }

    /// Checks what is around the items. Call this after the last byte.
    pub(super) fn finish(&mut self) -> Result<(), Unfit> {
        let end = std::mem::take(&mut self.items).finish();
        end.map_err(|it| it.map_or(Unfit::TooLarge, Unfit::Invalid))
    }

    pub(super) fn notes(&mut self) -> &mut Notes {
        &mut self.notes
    }

    /// Appends the line of the item that has ended, if it is an event.
    fn end_item(&mut self) -> Result<(), Unfit> {
        let is_cut = std::mem::take(&mut self.is_cut);
        let item = self.open.len();
        self.open.extend_from_slice(b"]}\n");
        let index = self.items.count() - 1;
        match audit::decode_in_place(&mut self.open) {
            Ok(Split { lines, levels, mended, own, .. }) => {
                let text = own.as_ref().unwrap_or(&self.open).get(lines).unwrap_or_default();
                match (is_cut, text.split_last()) {
                    (true, Some((_, event))) => {
                        let mut marked = Vec::with_capacity(text.len() + 64);
                        audit::annotate(event, TRUNCATED, &mut marked);
                        marked.push(b'\n');
                        self.lines.extend(&marked);
                        self.notes.trimmed += 1;
                    }
                    _ => self.lines.extend(text),
                }
                self.ends.push(self.lines.len());
                self.notes.mended += mended;
                for (sum, count) in self.levels.iter_mut().zip(levels) {
                    *sum += count;
                }
            }
            Err(_) if is_cut => return Err(Unfit::TooLarge),
            Err(fault) => {
                let byte =
                    fault.byte - LIST_HEAD.len() + self.items.offset() - (item - LIST_HEAD.len());
                let fault = Invalid { byte, item: Some(index), ..fault };
                if !fault.is_sound {
                    return Err(Unfit::Invalid(fault));
                }
                let text = self.open.get(LIST_HEAD.len()..item).unwrap_or_default();
                let text = Bytes::from(audit::mended(text).replace(['\n', '\r'], " "));
                let first = vec![RejectedItem { fault, text }];
                self.notes.rejected.append(Rejected { count: 1, first });
            }
        }
        self.open.truncate(LIST_HEAD.len());
        // A large item leaves no large buffer behind.
        self.open.shrink_to(self.max / 8);
        Ok(())
    }

    fn make_room(&mut self) -> Result<(), Unfit> {
        while self.held() > self.max && !self.is_full {
            if self.trim(self.held() - self.max + self.max / 8) {
                continue;
            }
            if !self.ends.is_empty() {
                self.is_full = true;
            } else if self.items.leave_member_out(&mut self.open, LIST_HEAD.len()) {
                self.is_cut = true;
            } else {
                return Err(Unfit::TooLarge);
            }
        }
        Ok(())
    }

    /// Trims the longest lines, until all together are shorter by `missing` bytes. Returns `false`
    /// if no line can be made shorter.
    pub(super) fn trim(&mut self, missing: usize) -> bool {
        let wanted = trimmed_bytes(self.max);
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let lengths = self.ends.iter().zip(starts).map(|(end, start)| end - start);
        let mut longest: Vec<(usize, usize)> =
            lengths.enumerate().filter(|(_, length)| *length > wanted).collect();
        longest.sort_unstable_by_key(|(_, length)| Reverse(*length));
        let mut freed = 0;
        let is_needed = |(_, length): &(usize, usize)| {
            let is_needed = freed < missing;
            freed += length - wanted;
            is_needed
        };
        let mut chosen: Vec<usize> =
            longest.into_iter().take_while(is_needed).map(|(line, _)| line).collect();
        chosen.sort_unstable();
        let mut chosen = chosen.into_iter().peekable();
        let (before, lines) = (self.lines.len(), self.lines.bytes());
        let (mut start, mut write, mut out) = (0, 0, Vec::new());
        for (line, end) in self.ends.iter_mut().enumerate() {
            let range = start..std::mem::replace(end, write);
            start = range.end;
            out.clear();
            if chosen.next_if_eq(&line).is_some() {
                trim_line(lines.get(range.clone()).unwrap_or_default(), wanted, &mut out);
            }
            if out.is_empty() || out.len() >= range.len() {
                lines.copy_within(range.clone(), write);
                write += range.len();
            } else {
                lines[write..write + out.len()].copy_from_slice(&out);
                write += out.len();
                self.notes.trimmed += 1;
            }
            *end = write;
        }
        self.lines.truncate(write);
        write < before
    }
}

/// Appends the event of a line to `out`, trimmed to `max` bytes with its line break. Nothing is
/// appended if it can't be trimmed.
///
/// An event of megabytes is nearly always one long member. To cut it takes one look at the event,
/// where the rules of `max_event_bytes` take several.
fn trim_line(line: &[u8], max: usize, out: &mut Vec<u8>) {
    let Some((_, event)) = line.split_last() else { return };
    let mut short = Vec::new();
    let is_short = audit::shorten(event, max - MARK_BYTES, &mut short);
    if !short.is_empty() {
        audit::annotate(&short, TRUNCATED, out);
    }
    if !is_short {
        let rest = if out.is_empty() { line.to_vec() } else { [out, &b"\n"[..]].concat() };
        out.clear();
        let mut reader = Reader::of(Events::of(&rest, None));
        let Some(event) = reader.advance() else { return };
        let change = Change { event_bytes_max: Some(max - 1), ..Change::default() };
        redact::apply(event, reader.request(), reader.known(), &change, out);
    }
    if !out.is_empty() {
        out.push(b'\n');
    }
}
