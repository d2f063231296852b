//! Goes through the values of an event along paths, and notes what is to be cut out or replaced.
//!
//! A *wish* is what is left of a path at a value. It is met where nothing is left, and also where a name was followed to
//! what cannot hold the rest: a text or number where an object is expected, an array where a name is looked for. What is
//! written there is not what the path's author had in mind, so it is treated as all of it.
//!
//! Each call goes one step along a path, so that paths bound how deep it calls itself, and events do not.

use std::borrow::Cow;
use std::ops::Range;

use super::redaction::is_of_admission;
use super::rule::STEPS_MAX;
use super::rule::With;
use super::text;
use crate::audit::scan;

/// From the event's top.
pub(super) type Path = Box<[Step]>;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The member of this name.
    Name(Box<[u8]>),
    /// The same.
    Known(&'static [u8]),
    /// Any member or element.
    Any,
    /// An annotation with a copy of the object that it is on.
    CopyOfTheObject,
    /// Any member whose name begins so.
    Prefixed(&'static [u8]),
    /// An annotation of an event that is not kube-apiserver's own.
    OfAdmission,
}

impl Step {
    /// Whether it leads to a member of this name, or where there is none, to an element.
    fn leads_to(&self, name: Option<&[u8]>) -> bool {
        match self {
            Self::Name(own) => name == Some(own),
            Self::Known(own) => name == Some(own),
            Self::Any => true,
            Self::CopyOfTheObject => name.is_some_and(|name| {
                name.ends_with(b"last-applied-configuration") || name == b"kapp.k14s.io/original"
            }),
            Self::Prefixed(prefix) => name.is_some_and(|name| name.starts_with(prefix)),
            Self::OfAdmission => name.is_some_and(is_of_admission),
        }
    }
}

/// Why something is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The policy asks for less. Then a path that leads nowhere asks for nothing.
    Lowered,
    /// It must not leave.
    Redacted,
}

/// What is left of a path at a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'p> {
    rest: &'p [Step],
    with: With,
    why: Why,
    /// Whether the last step was to a name.
    by_name: bool,
}

impl<'p> Wish<'p> {
    pub(super) fn new(path: &'p [Step], with: With, why: Why) -> Self {
        Self { rest: path, with, why, by_name: true }
    }

    /// Of those at a container, those at its child.
    pub(super) fn at_child(wishes: &[Self], name: Option<&[u8]>) -> Vec<Self> {
        let follow = |wish: &Self| {
            let (step, rest) = wish.rest.split_first()?;
            let by_name = *step != Step::Any;
            step.leads_to(name).then_some(Self { rest, by_name, ..*wish })
        };
        wishes.iter().filter_map(follow).collect()
    }

    /// Of several wishes, the least gentle is followed.
    fn gentleness(wish: &&Self) -> bool {
        wish.with == With::Sha256
    }

    fn is_met_by(&self, value: &[u8]) -> bool {
        let Some(next) = self.rest.first() else { return true };
        // What `*` has led to is one of many, and most of them may well be something else.
        self.by_name
            && self.why == Why::Redacted
            && match value.first() {
                Some(b'"' | b'-' | b'0'..=b'9') => value != b"\"\"",
                Some(b'[') => *next != Step::Any,
                _ => false,
            }
    }

    /// Whether an operation at this place of a document (RFC 6902) is about what the path leads to, or part of it, or holds it.
    fn concerns(&self, pointer: &[Vec<u8>]) -> bool {
        self.rest.iter().zip(pointer).all(|(step, name)| step.leads_to(Some(name)))
    }
}

/// Bytes of the event that others take the place of.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) place: Range<usize>,
    pub(super) with: Cow<'static, [u8]>,
}

/// The most edits in one value. Each takes more memory than what it may be about: a value with more of them, a list of a
/// hundred thousand objects, goes as a whole.
pub(super) const EDITS_MAX: usize = 1 << 17;

/// What is to be changed in one value.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    event: &'a [u8],
    pub(super) edits: Vec<Edit>,
    pub(super) lowered: bool,
    pub(super) redacted: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(event: &'a [u8]) -> Self {
        Self { event, edits: Vec::new(), lowered: false, redacted: false }
    }

    /// Whether it has given up: then the whole value is to go.
    pub(super) fn is_full(&self) -> bool {
        self.edits.len() >= EDITS_MAX
    }

    /// Treats a value as the wishes at it say; `false`: it is to go.
    pub(super) fn value(&mut self, value: &'a [u8], wishes: &[Wish<'_>]) -> bool {
        let met = wishes.iter().filter(|wish| wish.is_met_by(value));
        let Some(strongest) = met.min_by_key(Wish::gentleness) else {
            if !wishes.is_empty() && matches!(value.first(), Some(b'{' | b'[')) {
                self.children(value, wishes);
            }
            return true;
        };
        self.meet(value, *strongest)
    }

    fn meet(&mut self, value: &'a [u8], wish: Wish<'_>) -> bool {
        match wish.why {
            Why::Lowered => self.lowered = true,
            Why::Redacted => self.redacted = true,
        }
        if wish.with == With::Sha256 {
            let place = place(self.event, value);
            self.edits.push(Edit { place, with: sha256(value).into() });
        }
        wish.with == With::Sha256
    }

    fn children(&mut self, container: &'a [u8], wishes: &[Wish<'_>]) {
        let mut removal = Removal::default();
        for child in children(self.event, container) {
            if self.is_full() {
                return;
            }
            let at_child = Wish::at_child(wishes, child.name().as_deref());
            let stays = self.value(child.value, &at_child);
            removal.pass(&child, stays, &mut self.edits);
        }
        removal.finish(&mut self.edits);
    }

    /// [`Walk::value`] of a body: what a JSON patch (RFC 6902) puts into an object is treated as if it were in place.
    pub(super) fn body(&mut self, body: &'a [u8], wishes: &[Wish<'_>]) -> bool {
        let is_whole = |wish: &&Wish<'_>| wish.rest.is_empty();
        let about_inside = |wish: &Wish<'_>| wish.why == Why::Redacted && !is_whole(&wish);
        if body.first() != Some(&b'[') || !wishes.iter().any(about_inside) {
            return self.value(body, wishes);
        }
        if let Some(whole) =
            wishes.iter().filter(|wish| is_whole(wish)).min_by_key(Wish::gentleness)
        {
            return self.meet(body, *whole);
        }
        let as_element = Wish::at_child(wishes, None);
        let mut removal = Removal::default();
        for operation in children(self.event, body) {
            if self.is_full() {
                break;
            }
            let stays = self.operation(operation.value, wishes, &as_element);
            removal.pass(&operation, stays, &mut self.edits);
        }
        removal.finish(&mut self.edits);
        true
    }

    /// With the wishes at the body, and those of them at an element of it.
    fn operation(
        &mut self,
        operation: &'a [u8],
        wishes: &[Wish<'_>],
        as_element: &[Wish<'_>],
    ) -> bool {
        let redacting = wishes.iter().filter(|wish| wish.why == Why::Redacted);
        if operation.first() != Some(&b'{') {
            // No operation: nobody knows what it is about.
            let Some(strongest) = redacting.min_by_key(Wish::gentleness) else {
                return self.value(operation, as_element);
            };
            return self.meet(operation, *strongest);
        }
        if let Some(whole) =
            as_element.iter().filter(|wish| wish.rest.is_empty()).min_by_key(Wish::gentleness)
        {
            return self.meet(operation, *whole);
        }
        let strongest = match concerned(operation, wishes) {
            None => redacting.min_by_key(Wish::gentleness),
            Some(concerned) => concerned
                .into_iter()
                .filter(|wish| wish.why == Why::Redacted)
                .min_by_key(Wish::gentleness),
        };
        let mut removal = Removal::default();
        for member in children(self.event, operation) {
            if self.is_full() {
                break;
            }
            let name = member.name();
            let says_what = matches!(name.as_deref(), Some(b"op" | b"path" | b"from"))
                && member.value.first() == Some(&b'"');
            let stays = match strongest {
                Some(wish) if !says_what => self.meet(member.value, *wish),
                _ => self.value(member.value, &Wish::at_child(as_element, name.as_deref())),
            };
            removal.pass(&member, stays, &mut self.edits);
        }
        removal.finish(&mut self.edits);
        true
    }
}

/// The wishes that an operation of a JSON patch concerns; `None`: it does not say what it is about.
///
/// One place after the other: an operation may have as many as it has bytes.
fn concerned<'w, 'p>(operation: &[u8], wishes: &'w [Wish<'p>]) -> Option<Vec<&'w Wish<'p>>> {
    let (mut others, mut has_path) = (wishes.iter().collect::<Vec<_>>(), false);
    let mut found = Vec::new();
    for member in scan::members(operation) {
        let name = text::unescape(member.key);
        if matches!(&*name, b"path" | b"from") {
            has_path |= *name == *b"path";
            let place = pointer(&text::string(member.value)?)?;
            found.extend(others.extract_if(.., |wish| wish.concerns(&place)));
        }
    }
    has_path.then_some(found)
}

/// The first names of a place (RFC 6901). Where it has more, what begins as it does counts as being about it.
fn pointer(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let unescape = |name: &[u8]| {
        let mut plain = Vec::with_capacity(name.len());
        let mut bytes = name.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            let escaped = match (byte, bytes.peek()) {
                (b'~', Some(b'0')) => Some(b'~'),
                (b'~', Some(b'1')) => Some(b'/'),
                _ => None,
            };
            if escaped.is_some() {
                bytes.next();
            }
            plain.push(escaped.unwrap_or(byte));
        }
        plain
    };
    let names = text.strip_prefix(b"/")?.split(|byte| *byte == b'/');
    Some(names.take(STEPS_MAX).map(unescape).collect())
}

/// A member of an object or element of an array, and where it begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child<'a> {
    /// As written.
    key: Option<&'a [u8]>,
    pub(super) place: (usize, usize),
    pub(super) value: &'a [u8],
}

impl<'a> Child<'a> {
    /// A member's name.
    pub(super) fn name(&self) -> Option<Cow<'a, [u8]>> {
        self.key.map(text::unescape)
    }
}

/// The members or elements of an object or array of the event.
pub(super) fn children<'a>(
    event: &'a [u8],
    container: &'a [u8],
) -> impl Iterator<Item = Child<'a>> {
    let is_object = container.first() == Some(&b'{');
    let members = scan::members(if is_object { container } else { b"{}".as_slice() })
        .map(|member| (Some(member.key), member.value));
    let elements = scan::elements(container).map(|element| (None, element));
    members.chain(elements).map(|(key, value)| {
        let own = place(event, value);
        // A key begins behind its quote.
        let start = key.map_or(own.start, |key| place(event, key).start - 1);
        Child { key, place: (start, own.end), value }
    })
}

/// Where in the event a part of it is.
pub(super) fn place(event: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - event.as_ptr() as usize;
    start..start + part.len()
}

/// Cuts children out of a container, each run of them with one comma.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// Where the run begins that is under way, and where its last child ends.
    run: Option<(usize, usize)>,
    /// Behind the last child that stays.
    kept: Option<usize>,
}

impl Removal {
    /// In their order.
    pub(super) fn pass(&mut self, child: &Child<'_>, stays: bool, edits: &mut Vec<Edit>) {
        let (start, end) = child.place;
        if !stays {
            self.run = Some((self.run.map_or(start, |(first, _)| first), end));
            return;
        }
        if let Some((first, _)) = self.run.take() {
            edits.push(Edit { place: first..start, with: Cow::default() });
        }
        self.kept = Some(end);
    }

    /// Says where the last child that stays ends.
    pub(super) fn finish(self, edits: &mut Vec<Edit>) -> Option<usize> {
        if let Some((first, end)) = self.run {
            edits.push(Edit { place: self.kept.unwrap_or(first)..end, with: Cow::default() });
        }
        self.kept
    }
}

/// Of a text its characters, whichever way they are written; of all else what is written.
fn sha256(value: &[u8]) -> Vec<u8> {
    let text = text::string(value);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_deref().unwrap_or(value));
    let mut quoted = Vec::with_capacity(2 * digest.as_ref().len() + 9);
    quoted.extend(b"\"sha256:");
    for byte in digest.as_ref() {
        quoted.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    quoted.push(b'"');
    quoted
}
