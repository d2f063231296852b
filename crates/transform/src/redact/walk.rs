//! Follows paths through the values of an event, and finds which bytes to cut out or replace.
//!
//! A *wish* is the part of a path that is still to be followed at a value. A wish is met if no step
//! is left. A redaction is also met if a name led to a value that cannot hold the rest of the path:
//! to a text (if not empty) or number, or to an array although the next step is a name. The author
//! of the path did not expect such a value, so the whole value is treated as the one to redact.
//!
//! Each recursive call follows one step of a path, so the depth of the recursion is limited by the
//! paths, however deep the event is.

use std::borrow::Cow;
use std::ops::Range;

use aws_lc_rs::digest::{SHA256, digest};

use super::path::{STEPS_MAX, Step, With};
use super::text;
use audit::scan;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The audit policy or the output's form leaves a part of the event out. This change is made
    /// only if the whole path exists in the event.
    Lowered,
    /// The event is too large. This change, too, is made only if the whole path exists.
    Trimmed,
    /// The value must not leave the relay. A value at which the path cannot continue may be changed
    /// as a whole ([`Wish::is_met_by`]).
    Redacted,
}

/// A wish to change something in a value: the part of a path (`rest`) that must still be followed
/// from this value, and the change at the path's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'p> {
    rest: &'p [Step],
    with: With,
    why: Why,
    /// `true` if the last step was a condition on names, such as a name or a prefix; `false` if it
    /// was `*`, which leads to every member or element.
    by_name: bool,
}

impl<'p> Wish<'p> {
    pub(super) fn new(path: &'p [Step], with: With, why: Why) -> Self {
        Self { rest: path, with, why, by_name: true }
    }

    /// Returns the wishes for one child of an object or array: those of `wishes` whose next step
    /// leads to the child, without that step. `name` is `None` for an element of an array.
    pub(super) fn at_child(wishes: &[Self], name: Option<&[u8]>) -> Vec<Self> {
        let follow = |wish: &Self| {
            let (step, rest) = wish.rest.split_first()?;
            let by_name = *step != Step::Any;
            step.leads_to(name).then_some(Self { rest, by_name, ..*wish })
        };
        wishes.iter().filter_map(follow).collect()
    }

    /// Returns the first wish with the strongest change: to remove a value is stronger than to
    /// replace it by its hash.
    fn strongest<'w>(wishes: impl Iterator<Item = &'w Self>) -> Option<&'w Self>
    where
        'p: 'w,
    {
        wishes.min_by_key(|wish| wish.with == With::Sha256)
    }

    /// Returns `true` if the change must be made to this whole value: the path ends here, or it
    /// cannot continue. The second case counts only for a redaction whose last step was not `*`,
    /// and only if the value is a string that is not empty, a number or an array.
    fn is_met_by(&self, value: &[u8]) -> bool {
        let Some(next) = self.rest.first() else { return true };
        // A step `*` leads to many children, and the path may not be meant for all of them.
        self.by_name
            && self.why == Why::Redacted
            && match value.first() {
                Some(b'"' | b'-' | b'0'..=b'9') => value != b"\"\"",
                Some(b'[') => *next != Step::Any,
                _ => false,
            }
    }
}

#[derive(Debug)]
pub(super) struct Edit {
    pub(super) place: Range<usize>,
    pub(super) with: Cow<'static, [u8]>,
}

/// Appends the event with these edits, which are sorted by their positions, to `out`.
pub(super) fn write(event: &[u8], edits: &[Edit], out: &mut Vec<u8>) {
    let mut at = 0;
    for Edit { place, with } in edits {
        out.extend_from_slice(event.get(at..place.start).unwrap_or_default());
        out.extend_from_slice(with);
        at = place.end;
    }
    out.extend_from_slice(event.get(at..).unwrap_or_default());
}

/// A value that needs this many edits or more is dropped as a whole, because an edit can take more
/// memory than the text that it replaces. Example: a list of 131,072 objects with one secret each.
pub(super) const EDITS_MAX: usize = 1 << 17;

/// Collects the edits in one value of the event. `lowered`, `trimmed` and `redacted` are `true` if
/// at least one edit has that reason. A method that adds edits and returns a `bool` returns `true`
/// if the value stays, with these edits, and `false` if the caller must remove the whole value.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    event: &'a [u8],
    pub(super) edits: Vec<Edit>,
    pub(super) lowered: bool,
    pub(super) trimmed: bool,
    pub(super) redacted: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(event: &'a [u8]) -> Self {
        Self { event, edits: Vec::new(), lowered: false, trimmed: false, redacted: false }
    }

    /// Returns `true` if the value needs too many edits. The caller must then drop the whole value.
    pub(super) fn is_full(&self) -> bool {
        self.edits.len() >= EDITS_MAX
    }

    /// Adds the edits that `wishes` need in this value.
    pub(super) fn value(&mut self, value: &'a [u8], wishes: &[Wish<'_>]) -> bool {
        let met = wishes.iter().filter(|wish| wish.is_met_by(value));
        if let Some(strongest) = Wish::strongest(met) {
            return self.meet(value, *strongest);
        }
        if !wishes.is_empty() && matches!(value.first(), Some(b'{' | b'[')) {
            self.each(value, |walk, child| {
                walk.value(child.value, &Wish::at_child(wishes, child.name().as_deref()))
            });
        }
        true
    }

    /// Makes the change of a wish to a whole value, which stays if it is replaced by its hash.
    fn meet(&mut self, value: &'a [u8], wish: Wish<'_>) -> bool {
        match wish.why {
            Why::Lowered => self.lowered = true,
            Why::Trimmed => self.trimmed = true,
            Why::Redacted => self.redacted = true,
        }
        if wish.with == With::Sha256 {
            let place = place(self.event, value);
            self.edits.push(Edit { place, with: sha256(value).into() });
        }
        wish.with == With::Sha256
    }

    /// Cuts out each member of an object, or element of an array, for which `stays` returns
    /// `false`. Stops early if there are too many edits ([`Self::is_full`]).
    fn each(&mut self, container: &'a [u8], mut stays: impl FnMut(&mut Self, &Child<'a>) -> bool) {
        let mut removal = Removal::default();
        for child in children(self.event, container) {
            if self.is_full() {
                break;
            }
            let stays = stays(self, &child);
            removal.pass(&child, stays, &mut self.edits);
        }
        removal.finish(&mut self.edits);
    }

    /// Adds the edits that `wishes` need in a body.
    ///
    /// A body may be a JSON Patch (RFC 6902): a list of operations that put values into an object.
    /// The paths of the wishes begin at that object. An operation may concern a value that must be
    /// redacted, a part of it, or a larger value that contains it. Then the operation's members are
    /// changed as a whole, except for `op`, `path` and `from`.
    pub(super) fn body(&mut self, body: &'a [u8], wishes: &[Wish<'_>]) -> bool {
        let about_inside = |wish: &Wish<'_>| wish.why == Why::Redacted && !wish.rest.is_empty();
        if body.first() != Some(&b'[') || !wishes.iter().any(about_inside) {
            return self.value(body, wishes);
        }
        let whole = wishes.iter().filter(|wish| wish.rest.is_empty());
        if let Some(whole) = Wish::strongest(whole) {
            return self.meet(body, *whole);
        }
        let as_element = Wish::at_child(wishes, None);
        self.each(body, |walk, operation| walk.operation(operation.value, wishes, &as_element));
        true
    }

    /// Adds the edits in one operation of a JSON Patch. The paths of `wishes` begin at the object
    /// that the patch changes, those of `as_element` at the operation itself, an element of the
    /// patch.
    fn operation(
        &mut self,
        operation: &'a [u8],
        wishes: &[Wish<'_>],
        as_element: &[Wish<'_>],
    ) -> bool {
        let redacting = wishes.iter().filter(|wish| wish.why == Why::Redacted);
        if operation.first() != Some(&b'{') {
            // This element does not say which value it is about, so it may be about any redacted
            // value.
            return match Wish::strongest(redacting) {
                Some(strongest) => self.meet(operation, *strongest),
                None => self.value(operation, as_element),
            };
        }
        let whole = as_element.iter().filter(|wish| wish.rest.is_empty());
        if let Some(whole) = Wish::strongest(whole) {
            return self.meet(operation, *whole);
        }
        let strongest = match concerned(operation, wishes) {
            None => Wish::strongest(redacting),
            Some(found) => {
                Wish::strongest(found.into_iter().filter(|wish| wish.why == Why::Redacted))
            }
        };
        self.each(operation, |walk, member| {
            let name = member.name();
            let says_what = matches!(name.as_deref(), Some(b"op" | b"path" | b"from"))
                && member.value.first() == Some(&b'"');
            match strongest {
                Some(wish) if !says_what => walk.meet(member.value, *wish),
                _ => walk.value(member.value, &Wish::at_child(as_element, name.as_deref())),
            }
        });
        true
    }
}

/// Returns the wishes that a JSON Patch operation concerns by its members `path` and `from`. `None`
/// if `path` is missing, or if one of them is not a valid JSON Pointer. The members are handled one
/// after the other and not collected, because an operation may repeat them millions of times.
fn concerned<'w, 'p>(operation: &[u8], wishes: &'w [Wish<'p>]) -> Option<Vec<&'w Wish<'p>>> {
    let (mut others, mut has_path) = (wishes.iter().collect::<Vec<_>>(), false);
    let mut found = Vec::new();
    for member in scan::members(operation) {
        let name = text::unescape(member.key);
        if matches!(&*name, b"path" | b"from") {
            has_path |= *name == *b"path";
            let place = pointer(&text::string(member.value)?)?;
            // A wish about the value at this position, about a part of it, or about a larger value
            // that contains it.
            found.extend(others.extract_if(.., |wish| {
                wish.rest.iter().zip(&place).all(|(step, name)| step.leads_to(Some(name)))
            }));
        }
    }
    has_path.then_some(found)
}

/// Returns the names in a JSON Pointer (RFC 6901): `a` and `b` for `/a/b`. Only the first
/// [`STEPS_MAX`] names are returned; a longer pointer is treated like its beginning, so that it
/// concerns more values and never fewer.
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

/// A member of an object or an element of an array, with its range in the event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child<'a> {
    /// The name of a member as it is written; `None` for an element of an array.
    pub(super) key: Option<&'a [u8]>,
    /// The indices at which the child begins and ends. A member begins with the quote before its
    /// name.
    pub(super) place: (usize, usize),
    pub(super) value: &'a [u8],
}

impl<'a> Child<'a> {
    /// Returns the name of a member with its escapes resolved.
    pub(super) fn name(&self) -> Option<Cow<'a, [u8]>> {
        self.key.map(text::unescape)
    }
}

/// Returns the members of an object or the elements of an array, a slice of `event`; none for any
/// other value.
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
        // `key` begins after the quote of the name, and the child begins at that quote.
        let start = key.map_or(own.start, |key| place(event, key).start - 1);
        Child { key, place: (start, own.end), value }
    })
}

/// Returns the range of indices of `part`, a slice of the event.
pub(super) fn place(event: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - event.as_ptr() as usize;
    start..start + part.len()
}

/// Makes the edits that cut children out of an object or array: one edit for each run of adjacent
/// children. An edit includes one comma before or after the run if another child stays.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// The indices at which the current run begins and ends; it has no edit yet.
    run: Option<(usize, usize)>,
    /// The end of the last child that stays; `None` if none stays so far.
    kept: Option<usize>,
}

impl Removal {
    /// Handles the next child, in order. If the child does not stay, a later call of this function,
    /// or of `finish`, adds the edit that cuts it out.
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

    /// Adds the edit that cuts out trailing children. Returns the end of the last child that stays;
    /// `None` if none stays.
    pub(super) fn finish(self, edits: &mut Vec<Edit>) -> Option<usize> {
        if let Some((first, end)) = self.run {
            edits.push(Edit { place: self.kept.unwrap_or(first)..end, with: Cow::default() });
        }
        self.kept
    }
}

/// Returns the SHA-256 of a value as a JSON string, `"sha256:…"`. The escapes of a text are
/// resolved first, so that their spelling does not matter; any other value is hashed as it is
/// written.
fn sha256(value: &[u8]) -> Vec<u8> {
    let text = text::string(value);
    let digest = digest(&SHA256, text.as_deref().unwrap_or(value));
    let mut quoted = Vec::with_capacity(2 * digest.as_ref().len() + 9);
    quoted.extend(b"\"sha256:");
    for byte in digest.as_ref() {
        quoted.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    quoted.push(b'"');
    quoted
}
