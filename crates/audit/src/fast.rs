//! Validates and splits bodies that are written as kube-apiserver writes them, 64 bytes at a time.
//!
//! The scanner has two outcomes: "these are the events" and "unknown". A body with anything unusual
//! (white space between tokens, another envelope, an event nested deeper than 61 levels, an event
//! with its own kind) is unknown, and is left to serde_json, which alone refuses bodies. The
//! scanner must never accept anything that serde_json would refuse, but it may call a valid body
//! unknown.
//!
//! Audit events are dense: 64 bytes hold nine tokens on average, of which 1.5 are brackets.
//! Therefore 64 bytes are checked together with bit masks, and only brackets are visited one by
//! one. The steps are:
//!
//! 1. *Masks*: for each class of bytes (quote, comma, bracket …), a mask has one bit for each byte
//!    of the text ([`portable`], `sse2`, `neon`, `avx2`, `avx512`).
//! 2. *Strings*: escaped quotes are removed from the masks, and the bytes inside of strings are
//!    found.
//! 3. *Neighbours*: after each of `, : { [`, a value or a key begins, or the bracket that was just
//!    opened is closed; a value begins nowhere else. This rule also decides which bytes may follow
//!    a value. All bytes of a *stretch*, the text between two brackets, belong to one container.
//!    Each stretch is checked twice, as part of an object and as part of an array, before its
//!    container is known ([`rules`]).
//! 4. *Brackets*: one loop visits the brackets and compares the container that each stretch needs
//!    (object or array) with the container that is open there ([`Pass::brackets`]).
//! 5. *Escapes, numbers and literals* are few, and are checked one by one ([`Pass::one_by_one`]).
//!    Blocks without any of them are skipped ([`Used`]).
//!
//! Steps 1 and 2 are the method of simdjson (Langdale and Lemire, "Parsing Gigabytes of JSON per
//! Second", 2019).

use std::cell::RefCell;

use crate::{EVENT_BYTES_MIN, LEVELS, LIST_HEAD, LevelCounts, Span, event};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod rules;
#[cfg(target_arch = "x86_64")]
mod sse2;

pub use isa::Isa;

/// The number of bytes in a block, which one mask describes: bit i of the `u64` is about byte i.
const BLOCK: usize = 64;
/// [`BLOCK`] as a `u16`: the number of bits in a mask.
const BITS: u16 = 64;

/// The number of blocks in a chunk. The scanner works through a body chunk by chunk, because the
/// masks of one chunk stay in the CPU's first-level cache.
const BLOCKS: usize = 64;

const CHUNK: usize = BLOCKS * BLOCK;

/// The masks of the blocks of one chunk. A field names the bytes that its masks mark.
struct Blocks {
    quote: [u64; BLOCKS],
    backslash: [u64; BLOCKS],
    comma: [u64; BLOCKS],
    colon: [u64; BLOCKS],
    /// `{` and `[`.
    open: [u64; BLOCKS],
    /// `}` and `]`.
    close: [u64; BLOCKS],
    /// `{` and `}`, but not `[` and `]`. The bits of all other bytes are meaningless.
    curly: [u64; BLOCKS],
    /// The letter `n`, which is in the escape `\n` and in the keys `kind` and `apiVersion`.
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

/// The unusual bytes that occur in the blocks that were compared.
struct Seen {
    /// A control character: a byte below 0x20.
    control: bool,
    /// A part of a character that is not ASCII: a byte above 0x7f.
    high: bool,
}

/// The masks (one for each block) and offsets that the scanner of one thread works with. The thread
/// uses this memory for every body, because clearing it for each body would take too long.
struct Space {
    blocks: Blocks,
    /// The brackets outside of strings.
    bracket: [u64; BLOCKS],
    /// At a bracket: 1 if the container that is open before it must be an object, 0 for an array.
    is_object: [u64; BLOCKS],
    /// The brackets at the end of a stretch that has a key that may be `kind` or `apiVersion`.
    named: [u64; BLOCKS],
    /// The first bytes of numbers and literals (`true`, `false`, `null`).
    scalar_start: [u64; BLOCKS],
    /// The bytes after a backslash, for [`Pass::one_by_one`] to check. The frequent escapes `\"`,
    /// `\\` and `\n` are left out, because they are always valid.
    escaped: [u64; BLOCKS],
    /// The bytes after the end of the text, which only fill the last blocks of the chunk.
    padding: [u64; BLOCKS],
    /// The offsets in the chunk of the brackets outside of strings. For each block with brackets,
    /// [`flatten`] writes at least four offsets; those of the next block replace the meaningless
    /// ones. [`Pass::brackets`] then keeps only some of the offsets.
    places: [u16; PLACES],
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
            places: [0; PLACES],
        }
    }
}

/// The length of [`Space::places`]: more than a chunk, because [`flatten`] may write more offsets
/// than there are marks.
const PLACES: usize = CHUNK + BLOCK;

/// The blocks of a chunk with marked bytes: bit i of a field is set if the mask of block i in the
/// [`Space`] field of the same name is not 0.
#[derive(Default)]
struct Used {
    bracket: u64,
    escaped: u64,
    scalar_start: u64,
}

/// Fills `masks` so that they mark the padding of a chunk whose text has `length` bytes.
fn padding(length: usize, masks: &mut [u64; BLOCKS]) -> &[u64; BLOCKS] {
    for (block, mask) in masks.iter_mut().enumerate() {
        let valid = length.saturating_sub(block * BLOCK);
        *mask = if valid < BLOCK { u64::MAX << valid } else { 0 };
    }
    masks
}

/// The value of [`Pass::stack`] while no container is open. Each open container has one bit: 1 for
/// an object, 0 for an array, the innermost lowest. Above them is the end mark, always 1.
const OUTSIDE: u64 = 0b1;
/// The value of [`Pass::stack`] while only the array of events is open: the end mark, and 0.
const IN_ARRAY: u64 = 0b10;
/// The value of [`Pass::stack`] while the array and one item are open: the end mark, 0, 1.
const IN_ITEM: u64 = 0b101;

/// The state of the scanner while it passes once over the array of events of one body.
struct Pass<'a> {
    /// The body up to and including the closing bracket of the array of events.
    body: &'a [u8],
    /// The offset in `body` of the array's opening bracket.
    start: usize,
    space: &'a mut Space,
    /// The byte ranges in `body` of the items that have ended so far.
    events: &'a mut Vec<Span>,
    /// 1 if a backslash escapes the first byte after the blocks that were read so far, otherwise 0.
    escaped: u64,
    /// The open containers, one bit for each: see [`OUTSIDE`].
    stack: u64,
    /// The offset in `body` of the open item or, if none is open, of the next item.
    next_item: usize,
    /// `true` if the body contains bytes that are not ASCII and must be checked as UTF-8.
    has_high: bool,
}

thread_local! {
    static SPACE: RefCell<Space> = const { RefCell::new(Space::new()) };
}

/// Returns the byte ranges of the events of a body, and the number of events of each level. `None`
/// if the scanner does not recognise the body, which may still be valid, or if there are no events.
pub(super) fn split(isa: Isa, body: &[u8]) -> Option<(Vec<Span>, LevelCounts)> {
    split_by::<CHUNK>(isa, body)
}

/// Does what [`split`] does, with chunks of `BYTES` bytes. Tests use short chunks, for more
/// borders.
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

/// Returns `true` if `body`, from the `[` at the end of its head on, is certainly one valid array
/// of one or more objects, and nothing else. `events` then holds the byte ranges of the objects,
/// which may not be audit events. After `false`, `events` is meaningless.
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

/// Checks an event that begins as kube-apiserver's events do, faster than [`event::check`]. Returns
/// the index of its level in [`LEVELS`]. The caller has made sure that the event has neither a
/// `kind` nor an `apiVersion`. After `None`, the caller must call [`event::check`].
fn check_usual(event: &[u8]) -> Option<usize> {
    let rest = event.strip_prefix(br#"{"level":""#)?;
    let (level, rest) = LEVELS[..4].iter().enumerate().find_map(|(index, name)| {
        Some((index, rest.strip_prefix(name.as_bytes())?.strip_prefix(br#"","auditID":""#)?))
    })?;
    let (id, rest) = rest.split_at(memchr::memchr(b'"', rest)?);
    let rest = rest.strip_prefix(br#"","stage":""#)?;
    let stages = ["ResponseComplete\"", "RequestReceived\"", "ResponseStarted\"", "Panic\""];
    let is_known = stages.iter().any(|stage| rest.starts_with(stage.as_bytes()));
    // After a backslash, the quote may be a part of the ID.
    let is_id = id.last().is_some_and(|last| *last != b'\\');
    (is_id && is_known).then_some(level)
}

// Most of these functions are inlined into `run`, and compiled for each instruction set with it.
impl Pass<'_> {
    /// Removes escaped quotes from the masks `quote`. Marks rare escapes (all but `\"`, `\\` and
    /// `\n`) in the masks `escaped`, for [`Self::one_by_one`]. `backslashes` has a bit for each
    /// block with a backslash, and the result has one for each block with a rare escape.
    #[inline(always)]
    fn escaped_quotes(&mut self, backslashes: u64, blocks: usize) -> u64 {
        let Space { blocks: Blocks { quote, backslash, n, .. }, escaped, .. } = &mut *self.space;
        let (mut left, mut rare) = (backslashes | self.escaped, 0);
        while left != 0 {
            let block = usize::from(first_bit(&mut left)) % BLOCKS;
            let behind = escaped_by(backslash[block], &mut self.escaped);
            escaped[block] = behind & !(quote[block] | backslash[block] | n[block]);
            quote[block] &= !behind;
            rare |= u64::from(escaped[block] != 0) << block;
            // The next block is visited for its escaped first byte, even if it has no backslash.
            if block + 1 < blocks {
                left |= self.escaped << (block + 1);
            }
        }
        rare
    }

    /// Checks the brackets, escapes, numbers and literals of the chunk at the offset `at`, one by
    /// one. `used` has the blocks with any of them. Returns `false` if a check fails: serde_json
    /// must decide.
    #[inline(always)]
    fn one_by_one(&mut self, at: usize, used: &Used) -> bool {
        let Space { bracket, escaped, scalar_start, places, .. } = &mut *self.space;
        let text = self.body.get(at..).unwrap_or_default();
        if !all_marked(escaped, used.escaped, text, is_escape)
            || !all_marked(scalar_start, used.scalar_start, text, is_scalar)
        {
            return false;
        }
        let Some(brackets) = flatten(bracket, used.bracket, places) else { return false };
        let Some(ends) = self.brackets(brackets) else { return false };
        self.items(at, ends)
    }

    /// Checks that each bracket of the chunk fits the container that is open before it. `count` is
    /// the number of brackets, whose offsets are in `space.places`.
    ///
    /// Returns `None` if a bracket does not fit, the nesting is too deep, or an item of the array
    /// of events has a key that may be `kind` or `apiVersion`. Otherwise, keeps at the front of
    /// `space.places` the brackets after which only the array of events is open, and returns their
    /// number. The kept brackets are the opening bracket of this array and the closing bracket of
    /// each element that is an object or an array; [`Self::items`] refuses arrays.
    #[inline(always)]
    fn brackets(&mut self, count: usize) -> Option<usize> {
        let Space { places, blocks, is_object, named, .. } = &mut *self.space;
        let places = &mut places[..count];
        let mut stack = self.stack;
        // Only the lowest bit of `doubts` counts; the loop leaves anything in the other bits.
        let (mut stacks, mut doubts, mut found) = (0, 0, 0);
        for index in 0..places.len() {
            let place = places[index];
            let block = usize::from(place) / BLOCK % BLOCKS;
            let from = |masks: &[u64; BLOCKS]| masks[block] >> (place % BITS);
            doubts |= stack ^ from(is_object) | from(named) & u64::from(stack == IN_ITEM);
            let opened = stack << 1 | from(&blocks.curly) & 1;
            stack = if from(&blocks.open) & 1 == 1 { opened } else { stack >> 1 };
            // `found` is at most `index`, so no offset is lost that is still needed.
            places[found] = place;
            found += usize::from(stack == IN_ARRAY);
            stacks |= stack;
        }
        self.stack = stack;
        // If the highest bit was ever set, the stack was full: later values of `stack` are wrong.
        (doubts & 1 == 0 && stacks >> 63 == 0).then_some(found)
    }

    /// Appends the items that end in the chunk at the offset `at` to `events`. `ends` is the result
    /// of [`Self::brackets`]. One byte, a comma, lies between two items. Returns `false` if an
    /// element is not an object, is too short for an event, or does not end within the first 4 GiB.
    #[inline(always)]
    fn items(&mut self, at: usize, ends: usize) -> bool {
        for &end in &self.space.places[..ends] {
            let end = at + usize::from(end);
            if end == self.start {
                continue;
            }
            // This byte is not inside of a string: the byte before it is the array's opening
            // bracket or the comma after an item.
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

    /// Returns `true` if, after the last chunk, every container is closed, nothing follows the
    /// array, and the body is UTF-8.
    fn is_whole(&self) -> bool {
        // `next_item` is 2 bytes after the last item's closing brace: after its comma or, at the
        // end, after the array's closing bracket, which is the last byte of `body`.
        self.stack == OUTSIDE
            && self.next_item == self.body.len()
            && (!self.has_high || simdutf8::basic::from_utf8(self.body).is_ok())
    }
}

/// Returns `true` if `check` accepts the text that begins at each marked byte. `text` begins with
/// the chunk. Only the masks for which `used` has a bit count.
#[inline(always)]
fn all_marked(
    masks: &[u64; BLOCKS],
    mut used: u64,
    text: &[u8],
    check: impl Fn(&[u8]) -> bool,
) -> bool {
    while used != 0 {
        let block = usize::from(first_bit(&mut used)) % BLOCKS;
        let mut left = masks[block];
        while left != 0 {
            let place = block * BLOCK + usize::from(first_bit(&mut left));
            if !check(text.get(place..).unwrap_or_default()) {
                return false;
            }
        }
    }
    true
}

/// Writes the offsets of all marked bytes to `places`, and returns their number. Only masks with a
/// bit in `used` count. Never `None`, because `places` is longer than a chunk.
#[inline(always)]
fn flatten(masks: &[u64; BLOCKS], mut used: u64, places: &mut [u16; PLACES]) -> Option<usize> {
    let mut count = 0;
    while used != 0 {
        let block = first_bit(&mut used) % BITS;
        let base = block * BITS;
        let mask = masks[usize::from(block)];
        let places = places.get_mut(count..count + BLOCK)?;
        let mut left = mask;
        // Four offsets are always written: most blocks have at most four marks, and a branch that
        // the CPU predicts wrongly costs more than offsets that are overwritten later.
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
    }
    Some(count)
}

/// Removes the lowest set bit of `mask` and returns its index; 64 if no bit is set.
#[inline(always)]
fn first_bit(mask: &mut u64) -> u16 {
    let place = u16::try_from(mask.trailing_zeros()).unwrap_or(BITS);
    *mask &= mask.wrapping_sub(1);
    place
}

/// Returns `true` if `text` begins with an escape, such as `n` or `u00e4`, without its backslash.
#[inline(always)]
fn is_escape(text: &[u8]) -> bool {
    match text {
        [b'u', a, b, c, d, ..] => {
            let is_hex = |byte: &u8| IS_HEX[usize::from(*byte)];
            // There is no branch, because the four digits are nearly always hexadecimal.
            is_hex(a) & is_hex(b) & is_hex(c) & is_hex(d)
        }
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => true,
        _ => false,
    }
}

/// `true` for hexadecimal digits. A table takes fewer instructions than comparisons, and text from
/// Go has many escapes such as `\u003c`.
static IS_HEX: [bool; 256] = {
    let mut is_hex = [false; 256];
    let digits = b"0123456789abcdefABCDEF";
    let mut at = 0;
    while at < digits.len() {
        is_hex[digits[at] as usize] = true;
        at += 1;
    }
    is_hex
};

/// Returns `true` if `text` begins with a number or literal that a comma or closing bracket
/// follows.
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

/// Returns the length of the number (RFC 8259 §6) at the beginning of `text`, if it is valid.
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

/// Returns a mask of the bytes that an odd number of backslashes directly precedes (the method is
/// simdjson's). `carry` is 1 if the block before escapes the first byte, and is set for the next.
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

#[cfg(test)]
mod tests;
