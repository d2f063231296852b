//! Compares the scanner with serde_json ([`strict`]), which alone decides if a body is valid.
//!
//! For a valid body that is written as kube-apiserver writes it ([`is_usual`]), the scanner must
//! return exactly the events and levels that [`strict`] returns. For every other body it must
//! return `None`. The tests therefore fail in both directions: if the scanner accepts a body that
//! it must not accept, and if it leaves a body to serde_json without need.
//!
//! Each body is scanned with every instruction set that this CPU has, and with chunks of two sizes,
//! because much state is carried from one chunk to the next.

use super::super::strict;
use super::*;
use crate::scan;
use testing::{Failing, corpus, seeds};

mod forms;
mod generated;
mod mutations;
mod sequences;

type Split = (Vec<Span>, LevelCounts);

type Scan = fn(&[u8]) -> Option<Split>;

/// The smallest chunk in bytes that fills a register of AVX-512 with masks.
const SMALL: usize = 512;

const SCANS: [(Isa, &str, Scan); 10] = [
    (Isa::Portable, "portable", |body| split(Isa::Portable, body)),
    (Isa::Portable, "portable, small chunks", |body| split_by::<SMALL>(Isa::Portable, body)),
    (Isa::Sse2, "SSE2", |body| split(Isa::Sse2, body)),
    (Isa::Sse2, "SSE2, small chunks", |body| split_by::<SMALL>(Isa::Sse2, body)),
    (Isa::Neon, "NEON", |body| split(Isa::Neon, body)),
    (Isa::Neon, "NEON, small chunks", |body| split_by::<SMALL>(Isa::Neon, body)),
    (Isa::Avx2, "AVX2", |body| split(Isa::Avx2, body)),
    (Isa::Avx2, "AVX2, small chunks", |body| split_by::<SMALL>(Isa::Avx2, body)),
    (Isa::Avx512, "AVX-512", |body| split(Isa::Avx512, body)),
    (Isa::Avx512, "AVX-512, small chunks", |body| split_by::<SMALL>(Isa::Avx512, body)),
];

/// The result that [`check`] expects for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// [`strict`] refuses the body.
    Refused,
    /// [`strict`] accepts the body, and the scanner returns `None`.
    Unusual,
    /// The scanner accepts the body.
    Usual,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    refused: u64,
    unusual: u64,
    usual: u64,
}

impl Counts {
    fn check(&mut self, body: &[u8]) {
        match check(body) {
            Outcome::Refused => self.refused += 1,
            Outcome::Unusual => self.unusual += 1,
            Outcome::Usual => self.usual += 1,
        }
    }
}

/// Scans a body in all ways, asserts that each result is the expected one, and returns the outcome.
fn check(body: &[u8]) -> Outcome {
    let known = std::str::from_utf8(body).ok().and_then(|text| strict::split(text).ok());
    // The scanner must leave a body alone if an item of it is not an event.
    let known = known.filter(|known| known.rejected.count == 0);
    let known = known.map(|strict::Checked { events, levels, .. }| (events, levels));
    let outcome = match &known {
        None => Outcome::Refused,
        Some((events, _)) if is_usual(body, events) => Outcome::Usual,
        Some(_) => Outcome::Unusual,
    };
    let expected = known.filter(|_| outcome == Outcome::Usual);
    for (_, name, scan) in SCANS.iter().filter(|(isa, ..)| isa.is_there()) {
        let found = scan(body);
        assert!(
            found == expected,
            "{name}: {found:?} instead of {expected:?} for {} bytes: {}",
            body.len(),
            body.escape_ascii(),
        );
    }
    outcome
}

/// Returns `true` if the scanner must accept this valid body, whose events are `events`.
fn is_usual(body: &[u8], events: &[Span]) -> bool {
    let Some((first, last)) = events.first().zip(events.last()) else { return false };
    if !body.starts_with(LIST_HEAD) {
        return false;
    }
    let (strings, has_space) = strings(&body[LIST_HEAD.len()..]);
    let is_string = |at: usize| strings.binary_search(&at.wrapping_sub(LIST_HEAD.len())).is_ok();
    // The scanner recognises "kind" and "apiVersion" only by their length and one letter `n`. A key
    // with an escape may be one of the two.
    let is_named = |key: &[u8]| {
        let end = key.as_ptr() as usize + key.len() - body.as_ptr() as usize;
        body[end - 2] == b'n' && is_string(end - 5)
            || body[end - 1] == b'n' && is_string(end - 11)
            || key.contains(&b'\\')
    };
    let is_usual_event = |event: &Span| {
        let mut members = scan::members(&body[event.range()]);
        !members.by_ref().any(|member| is_named(member.key)) && members.depth() <= DEPTH
    };
    first.range().start == LIST_HEAD.len()
        && events.windows(2).all(|pair| pair[0].range().end + 1 == pair[1].range().start)
        && matches!(&body[last.range().end..], b"]}" | b"]}\n")
        && !has_space
        && events.iter().all(is_usual_event)
}

/// The deepest nesting of an event that the scanner can follow; its stack has room for no more
/// bits.
const DEPTH: usize = 61;

/// Returns the offsets of all strings in valid JSON, and `true` if there is white space between
/// tokens other than a line break at the end.
fn strings(json: &[u8]) -> (Vec<usize>, bool) {
    let (mut starts, mut in_string, mut has_space) = (Vec::new(), false, false);
    let mut bytes = json.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                in_string = !in_string;
                starts.extend(in_string.then_some(at));
            }
            // The byte after a backslash may be a quote that does not end the string.
            b'\\' => {
                bytes.next();
            }
            b' ' | b'\t' | b'\r' | b'\n' => has_space |= !in_string && at + 1 < json.len(),
            _ => {}
        }
    }
    (starts, has_space)
}

/// Returns a body with these items, written as kube-apiserver writes it.
fn list(items: impl AsRef<[u8]>) -> Vec<u8> {
    [LIST_HEAD, items.as_ref(), b"]}\n"].concat()
}

fn event(value: &str) -> String {
    format!(r#"{{"level":"Metadata","auditID":"a","stage":"Panic","requestObject":{value}}}"#)
}

/// Prints which instruction sets are tested; the output is always shown (`.config/nextest.toml`).
/// The tests of this file can test only the instruction sets of the CPU on which they run.
#[test]
fn the_instruction_sets_that_are_tested() {
    for isa in Isa::ALL {
        let is_tested = if isa.is_there() { "tested" } else { "NOT TESTED, this CPU lacks it" };
        println!("{isa:?}: {is_tested}");
    }
    let (x86, arm) = (cfg!(target_arch = "x86_64"), cfg!(target_arch = "aarch64"));
    assert_eq!((Isa::Sse2.is_there(), Isa::Neon.is_there()), (x86, arm), "every such CPU has it");
    assert!(!x86 || Isa::Avx2.is_there(), "this CPU has no AVX2: two instruction sets are tested");
}

#[test]
fn recorded_bodies_need_no_serde_json() {
    for (name, body) in corpus() {
        assert_eq!(check(&body), Outcome::Usual, "{name}");
        // The line break at the end of a body is optional.
        assert_eq!(check(body.trim_ascii_end()), Outcome::Usual, "{name}");
    }
}
