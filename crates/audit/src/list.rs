//! The two forms of a text of events: lines, and a part of a JSON list.

use std::ops::Range;
use std::slice::Iter;
use std::sync::Arc;

/// The ends of the events in a JSON list that was left as it was received, or in a part of it. Each
/// event has one byte after it: a comma, or `]` after the last event of the list. A part shares the
/// memory of the whole list, which has 4 bytes for each event.
#[derive(Debug, Clone)]
pub struct ListEnds {
    /// The offset of the byte after each event of the whole list, counted from the first event.
    all: Arc<[u32]>,
    /// The indices in `all` of the events in this part.
    events: Range<usize>,
    /// The offset of this part, counted from the first event of the whole list.
    start: usize,
}

/// Makes the ends of a whole list from the offset of the byte after each event.
impl FromIterator<u32> for ListEnds {
    fn from_iter<I: IntoIterator<Item = u32>>(offsets: I) -> Self {
        let all = Arc::from_iter(offsets);
        Self { events: 0..all.len(), all, start: 0 }
    }
}

impl ListEnds {
    /// Returns the offset at which an event begins. Beyond the last event, this is the text's end.
    pub fn offset(&self, event: usize) -> usize {
        let before = event.min(self.events.len()).checked_sub(1);
        before.map_or(0, |before| self.end(before) + 1)
    }

    /// Returns the offset in the text of the byte after an event, which must be in the text.
    fn end(&self, event: usize) -> usize {
        self.all.get(self.events.start + event).map_or(0, |end| *end as usize - self.start)
    }

    /// Returns the ends of the events with these indices, as those of a text of their own.
    #[must_use]
    pub fn part(&self, events: Range<usize>) -> Self {
        let number = |event: usize| self.events.start + event.min(self.events.len());
        let start = self.start + self.offset(events.start);
        Self { all: Arc::clone(&self.all), events: number(events.start)..number(events.end), start }
    }

    /// Returns the offset in the text of the byte after each event.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.offsets().iter().map(|end| *end as usize - self.start)
    }

    /// Makes lines of the text: a line break replaces the byte after each event.
    pub fn end_lines(&self, text: &mut [u8]) {
        for end in self.iter() {
            if let Some(byte) = text.get_mut(end) {
                *byte = b'\n';
            }
        }
    }

    /// Returns the offset of the byte after each event, counted from the list's first event.
    pub fn offsets(&self) -> &[u32] {
        self.all.get(self.events.clone()).unwrap_or_default()
    }
}

/// Turns lines into a part of a JSON list: a comma replaces each line break. An event has no line
/// break inside.
pub fn separate(lines: &mut [u8]) {
    for byte in lines {
        *byte = if *byte == b'\n' { b',' } else { *byte };
    }
}

/// An iterator over the events of a text, each without the byte after it.
#[derive(Debug)]
pub struct Events<'a> {
    rest: &'a [u8],
    /// The offset of the byte after each event in `rest`, and the offset of `rest`, both counted
    /// from the list's first event. `None` if the text is lines.
    list: Option<(Iter<'a, u32>, usize)>,
}

impl<'a> Events<'a> {
    /// Returns the events of `text`: lines, each ended by `\n`, or a list with these ends.
    pub fn of(text: &'a [u8], list: Option<&'a ListEnds>) -> Self {
        Self { rest: text, list: list.map(|ends| (ends.offsets().iter(), ends.start)) }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest;
        let end = match &mut self.list {
            _ if rest.is_empty() => return None,
            None => memchr::memchr(b'\n', rest).unwrap_or(rest.len()),
            Some((ends, start)) => {
                let end = (*ends.next()? as usize).checked_sub(*start)?;
                *start += end + 1;
                end
            }
        };
        self.rest = rest.get(end + 1..).unwrap_or_default();
        rest.get(..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_list_has_the_events_of_the_list() {
        let list = b"1,22,333,4444]";
        let ends = ListEnds::from_iter([1, 4, 8, 13]);
        let texts: [&[u8]; 4] = [b"1", b"22", b"333", b"4444"];
        for (from, to) in (0..=4).flat_map(|from| (from..=4).map(move |to| (from, to))) {
            let part = ends.part(from..to);
            let text = &list[ends.offset(from)..ends.offset(to)];
            assert_eq!(Vec::from_iter(Events::of(text, Some(&part))), texts[from..to]);
            // A part of a part is a part of the whole.
            for middle in from..=to {
                let rest = part.part(middle - from..to - from);
                let text = &text[part.offset(middle - from)..];
                assert_eq!(Vec::from_iter(Events::of(text, Some(&rest))), texts[middle..to]);
                let behind: Vec<_> = rest.iter().map(|end| text[end]).collect();
                assert_eq!(behind, b",,,]"[middle..to]);
            }
        }
        let lines = Events::of(b"1\n22\n", None);
        assert_eq!(Vec::from_iter(lines), texts[..2]);
    }
}
