//! Validates and splits what kube-apiserver sends, 64 bytes at a time.
//!
//! It says "these are the events" or "I don't know"; it never refuses. What is odd (white space between tokens, another
//! envelope, nesting beyond 61 levels, an event that names its kind) is unknown here and left to serde_json, which alone
//! refuses. So nothing may be taken here that serde_json refuses, and nothing else needs to agree.
//!
//! Audit events are dense: nine tokens in 64 bytes, of which 1.5 are brackets. So tokens are checked 64 at a time, as bit
//! masks, and only brackets one by one:
//!
//! 1. *Masks*: a bit for each byte that is a quote, comma, bracket … ([`avx2`], [`avx512`]).
//! 2. *Strings*: quotes that are not escaped, and what lies between them.
//! 3. *Neighbours*: behind each of `, : { [`, and only there, a value begins, or its bracket closes at once. That also
//!    settles what may follow a value. And in each *stretch* between two brackets all bytes are in one container, so
//!    whether it may be an object's or an array's is found without knowing which ([`rules`]).
//! 4. *Brackets*: one loop over them compares what each stretch needs with the container that is open
//!    ([`Pass::brackets`]).
//! 5. *Escapes, numbers, literals*: one by one; there are few ([`Pass::escapes`], [`Pass::scalars`]).
//!
//! The method is simdjson's (Langdale and Lemire, "Parsing Gigabytes of JSON per Second", 2019) up to the second step.

use std::cell::RefCell;

use super::EVENT_BYTES_MIN;
use super::LEVELS;
use super::LIST_HEAD;
use super::LevelCounts;
use super::Span;
use super::event;
use super::scan;

mod avx2;
mod avx512;
mod isa;
mod rules;

pub(super) use isa::Isa;

/// Bytes of a block: bits of a mask.
const BLOCK: usize = 64;
const BITS: u16 = 64;

/// Blocks between two rounds of the loop over brackets: all that it needs stays in the first cache.
const BLOCKS: usize = 64;

const CHUNK: usize = BLOCKS * BLOCK;

/// The bytes of a chunk by what they are, a mask each block.
struct Blocks {
    quote: [u64; BLOCKS],
    backslash: [u64; BLOCKS],
    comma: [u64; BLOCKS],
    colon: [u64; BLOCKS],
    open: [u64; BLOCKS],
    close: [u64; BLOCKS],
    curly: [u64; BLOCKS],
    n: [u64; BLOCKS],
}

impl Blocks {
    const fn new() -> Self {
        const NONE: [u64; BLOCKS] = [0; BLOCKS];
        Self {
            quote: NONE,
            backslash: NONE,
            comma: NONE,
            colon: NONE,
            open: NONE,
            close: NONE,
            curly: NONE,
            n: NONE,
        }
    }
}

/// What is among the bytes of some blocks.
struct Seen {
    /// Below 0x20.
    control: bool,
    /// Above 0x7f.
    high: bool,
}

/// Work space of a thread: too large to be cleared for each body.
struct Space {
    blocks: Blocks,
    bracket: [u64; BLOCKS],
    is_object: [u64; BLOCKS],
    named: [u64; BLOCKS],
    scalar_start: [u64; BLOCKS],
    escaped: [u64; BLOCKS],
    padding: [u64; BLOCKS],
    /// Where the brackets of a chunk are, and room for what is written at once.
    brackets: [u16; CHUNK + BLOCK],
    /// Those that begin or end an item, or the array.
    ends: [u16; CHUNK + 1],
}

impl Space {
    const fn new() -> Self {
        const NONE: [u64; BLOCKS] = [0; BLOCKS];
        Self {
            blocks: Blocks::new(),
            bracket: NONE,
            is_object: NONE,
            named: NONE,
            scalar_start: NONE,
            escaped: NONE,
            padding: NONE,
            brackets: [0; CHUNK + BLOCK],
            ends: [0; CHUNK + 1],
        }
    }
}

/// The bytes of a chunk that only fill it.
fn padding(length: usize, masks: &mut [u64; BLOCKS]) -> &[u64; BLOCKS] {
    for (block, mask) in masks.iter_mut().enumerate() {
        let valid = length.saturating_sub(block * BLOCK);
        *mask = if valid < BLOCK { u64::MAX << valid } else { 0 };
    }
    masks
}

/// Depth as a stack of bits, 1 for an object, above a first 1: nothing is open, the array is, an item is.
const OUTSIDE: u64 = 0b1;
const IN_ARRAY: u64 = 0b10;
const IN_ITEM: u64 = 0b101;

/// One pass over an array of events.
struct Pass<'a> {
    /// The body, up to the end of the array.
    body: &'a [u8],
    /// Where the array begins.
    start: usize,
    space: &'a mut Space,
    events: &'a mut Vec<Span>,
    /// Whether the next byte is escaped: 1 or 0.
    escaped: u64,
    stack: u64,
    /// Where the item begins that is open, or is next.
    next_item: usize,
    /// Whether there are bytes beyond ASCII.
    has_high: bool,
}

thread_local! {
    static SPACE: RefCell<Space> = const { RefCell::new(Space::new()) };
}

/// Finds and checks the events of a body, one or more, if it is known to be right.
pub(super) fn split(isa: Isa, body: &[u8]) -> Option<(Vec<Span>, LevelCounts)> {
    split_by::<CHUNK>(isa, body)
}

/// [`split`], with so many bytes between two rounds of the loop over brackets; tests want many such borders.
fn split_by<const BYTES: usize>(isa: Isa, body: &[u8]) -> Option<(Vec<Span>, LevelCounts)> {
    let body = body.strip_suffix(b"\n").unwrap_or(body).strip_suffix(b"}")?;
    if !body.starts_with(LIST_HEAD) {
        return None;
    }
    let mut events = Vec::new();
    if !array::<BYTES>(isa, body, &mut events) {
        return None;
    }
    let mut levels = LevelCounts::default();
    for event in &events {
        let event = body.get(event.range())?;
        levels[check_usual(event).or_else(|| event::check(event).ok())?] += 1;
    }
    Some((events, levels))
}

/// Whether a body is known to be an array of events behind its head, and nothing more; only then `events` has them all.
fn array<const BYTES: usize>(isa: Isa, body: &[u8], events: &mut Vec<Span>) -> bool {
    let start = LIST_HEAD.len() - 1;
    SPACE.with_borrow_mut(|space| {
        isa.run::<BYTES>(&mut Pass {
            body,
            start,
            space,
            events,
            escaped: 0,
            stack: OUTSIDE,
            next_item: start + 1,
            has_high: false,
        })
    })
}

/// [`event::check`] for an event that begins as kube-apiserver's do and names neither kind nor version; `None` says nothing.
fn check_usual(event: &[u8]) -> Option<usize> {
    let rest = event.strip_prefix(br#"{"level":""#)?;
    let (level, rest) = LEVELS[..4].iter().enumerate().find_map(|(index, name)| {
        Some((index, rest.strip_prefix(name.as_bytes())?.strip_prefix(br#"","auditID":"#)?))
    })?;
    let [b'"', first, ..] = rest else { return None };
    let rest = rest.get(scan::string_end(rest, 0)..)?.strip_prefix(br#","stage":""#)?;
    let stages = ["ResponseComplete\"", "RequestReceived\"", "ResponseStarted\"", "Panic\""];
    let is_known = stages.iter().any(|stage| rest.starts_with(stage.as_bytes()));
    (*first != b'"' && is_known).then_some(level)
}

// What needs no wide registers. Inlined, so that it is compiled for each instruction set too.
impl Pass<'_> {
    /// Clears escaped quotes, and leaves the escapes that are not among the frequent ones to [`Self::escapes`].
    #[inline(always)]
    fn escaped_quotes(&mut self, blocks: usize) {
        let Space { blocks: Blocks { quote, backslash, n, .. }, escaped, .. } = &mut *self.space;
        for block in 0..blocks {
            escaped[block] = 0;
            if backslash[block] | self.escaped != 0 {
                let behind = escaped_by(backslash[block], &mut self.escaped);
                escaped[block] = behind & !(quote[block] | backslash[block] | n[block]);
                quote[block] &= !behind;
            }
        }
    }

    /// What is checked one by one, in the chunk that begins at `at`.
    #[inline(always)]
    fn one_by_one(&mut self, at: usize, blocks: usize) -> bool {
        let brackets = self.flatten(blocks);
        let Some(ends) = self.brackets(brackets) else { return false };
        self.items(at, ends) && self.escapes(at, blocks) && self.scalars(at, blocks)
    }

    /// Lists the brackets, and says how many there are.
    #[inline(always)]
    fn flatten(&mut self, blocks: usize) -> usize {
        let Space { bracket, brackets, .. } = &mut *self.space;
        let mut count = 0;
        let mut base = 0;
        for &mask in &bracket[..blocks] {
            let Some(places) = brackets.get_mut(count..count + BLOCK) else { return 0 };
            let mut left = mask;
            // Without a look at how many there are: most blocks have up to four, and to guess wrong is dearer.
            for place in &mut places[..4] {
                *place = base + first_bit(&mut left);
            }
            for place in &mut places[4..] {
                if left == 0 {
                    break;
                }
                *place = base + first_bit(&mut left);
            }
            count += mask.count_ones() as usize;
            base += BITS;
        }
        count
    }

    /// Compares each bracket with the container that is open, and lists those behind which only the array is: its own
    /// beginning and the ends of items. Says how many; `None` where one is wrong.
    #[inline(always)]
    fn brackets(&mut self, count: usize) -> Option<usize> {
        let Space { brackets, blocks, is_object, named, ends, .. } = &mut *self.space;
        let mut stack = self.stack;
        let (mut stacks, mut doubts, mut found) = (0, 0, 0);
        for &place in &brackets[..count] {
            let block = usize::from(place) / BLOCK % BLOCKS;
            let bit = |masks: &[u64; BLOCKS]| masks[block] >> (place % BITS) & 1;
            doubts |= (stack ^ bit(is_object)) & 1 | bit(named) & u64::from(stack == IN_ITEM);
            let opened = stack << 1 | bit(&blocks.curly);
            stack = if bit(&blocks.open) == 1 { opened } else { stack >> 1 };
            ends[found % CHUNK] = place;
            found += usize::from(stack == IN_ARRAY);
            stacks |= stack;
        }
        self.stack = stack;
        // With the highest bit the stack is full, and what has come after is nonsense.
        (doubts == 0 && stacks >> 63 == 0).then_some(found)
    }

    /// Lists the items: they lie end to end, one comma between two.
    #[inline(always)]
    fn items(&mut self, at: usize, ends: usize) -> bool {
        for &end in &self.space.ends[..ends] {
            let end = at + usize::from(end);
            if end == self.start {
                continue;
            }
            // Inside of no string, because the byte before it is the array's beginning or the comma behind an item.
            if self.body.get(self.next_item) != Some(&b'{') {
                return false;
            }
            let Some(span) = Span::new(self.next_item, end + 1) else { return false };
            if span.len() < EVENT_BYTES_MIN {
                return false;
            }
            span.push_to(self.events, self.body.len());
            self.next_item = end + 2;
        }
        true
    }

    #[inline(always)]
    fn escapes(&self, at: usize, blocks: usize) -> bool {
        let escapes = self.space.escaped[..blocks].iter().enumerate();
        for (block, mut left) in escapes.map(|(block, mask)| (block, *mask)) {
            while left != 0 {
                let place = at + block * BLOCK + usize::from(first_bit(&mut left));
                if !is_escape(self.body.get(place..).unwrap_or_default()) {
                    return false;
                }
            }
        }
        true
    }

    #[inline(always)]
    fn scalars(&self, at: usize, blocks: usize) -> bool {
        let starts = self.space.scalar_start[..blocks].iter().enumerate();
        for (block, mut left) in starts.map(|(block, mask)| (block, *mask)) {
            while left != 0 {
                let place = at + block * BLOCK + usize::from(first_bit(&mut left));
                if !is_scalar(self.body.get(place..).unwrap_or_default()) {
                    return false;
                }
            }
        }
        true
    }

    /// Whether all that was begun has ended, with the body, and is text.
    fn is_whole(&self) -> bool {
        // Where one more item might begin behind a comma is behind the array's end, which is the body's.
        self.stack == OUTSIDE
            && self.next_item == self.body.len()
            && (!self.has_high || simdutf8::basic::from_utf8(self.body).is_ok())
    }
}

/// The lowest bit, which is taken away; 64 where there is none.
#[inline(always)]
fn first_bit(mask: &mut u64) -> u16 {
    let place = u16::try_from(mask.trailing_zeros()).unwrap_or(BITS);
    *mask &= mask.wrapping_sub(1);
    place
}

/// Whether a text may stand behind a backslash.
#[inline(always)]
fn is_escape(text: &[u8]) -> bool {
    match text {
        [b'u', a, b, c, d, ..] => {
            let is_hex = |byte: &u8| byte.is_ascii_hexdigit();
            // Not one by one: they nearly always are.
            is_hex(a) & is_hex(b) & is_hex(c) & is_hex(d)
        }
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => true,
        _ => false,
    }
}

/// Whether a text begins with a number or literal and a byte that may stand behind one.
fn is_scalar(text: &[u8]) -> bool {
    let length = match text {
        [b't', b'r', b'u', b'e', ..] | [b'n', b'u', b'l', b'l', ..] => 4,
        [b'f', b'a', b'l', b's', b'e', ..] => 5,
        _ => match number(text) {
            Some(length) => length,
            None => return false,
        },
    };
    matches!(text.get(length), Some(b',' | b'}' | b']'))
}

/// Length of the number (RFC 8259 §6) that a text begins with.
fn number(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    };
    let mut at = usize::from(text.first() == Some(&b'-'));
    at += match text.get(at)? {
        b'0' => 1,
        b'1'..=b'9' => digits(at),
        _ => return None,
    };
    if text.get(at) == Some(&b'.') {
        let count = digits(at + 1);
        if count == 0 {
            return None;
        }
        at += 1 + count;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(text.get(at), Some(b'+' | b'-')));
        let count = digits(at);
        if count == 0 {
            return None;
        }
        at += count;
    }
    Some(at)
}

/// The bytes behind an odd run of backslashes, by simdjson's addition.
#[inline(always)]
fn escaped_by(backslash: u64, carry: &mut u64) -> u64 {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    let backslash = backslash & !*carry;
    let follows = backslash << 1 | *carry;
    let odd_starts = backslash & !EVEN & !follows;
    let (sum, overflow) = odd_starts.overflowing_add(backslash);
    *carry = u64::from(overflow);
    (EVEN ^ (sum << 1)) & follows
}

// Elsewhere it says nothing to any body.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
