//! Changes one event for an output: lowers its level, removes values that must not leave the relay,
//! drops bodies and cuts other parts that are too large for the consumer, and adds constant
//! annotations.
//!
//! [`apply`] cuts bytes out of an event and inserts others. It does not rewrite the JSON:
//! everything that no rule changes stays byte for byte and in its order, including unusual numbers,
//! escapes and duplicate keys. The one exception is an event that is too large even with short
//! strings (`cut`). The result is valid JSON, and still an audit event.
//!
//! The caller decides which changes an event gets. With a redaction, the values that are always
//! redacted ([`redaction`]) are redacted too. Tokens are replaced last, so that a hash that stands
//! for a value is the hash of the value as it was received.
//!
//! A key counts wherever it occurs and however it is escaped, because parsers differ in which of
//! two duplicate keys they read.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `text` `signs` `ambiguous` | escapes · what an event certainly lacks · keys that stand twice |
//! | 2 | `path` | steps to values, and which annotations are kube-apiserver's |
//! | 3 | `walk` `rule` `named` | which bytes are cut out or replaced · the rules of the config · credentials with a telling name |
//! | 4 | `annotate` `web_token` `command` | annotations that are added · JSON Web Tokens · credentials in a command |
//! | 5 | `uri` | credentials in a URI |
//! | 6 | `look` | whether an event must be read at all |
//! | 7 | `redaction` | which values must not leave |
//! | 8 | `cut` | how an event becomes small that is too large without its bodies |

use std::sync::LazyLock;

use memchr::memmem::Finder;

use audit::request::Request;

mod ambiguous;
mod annotate;
mod command;
mod cut;
mod look;
mod named;
mod path;
mod redaction;
mod rule;
mod signs;
mod text;
mod uri;
mod walk;
mod web_token;

pub use annotate::Annotations;
pub use path::With;
pub use redaction::{Redaction, is_secret, secret_kinds};
pub use rule::Rule;

use annotate::{Addition, TRUNCATED};
use look::Look;
use redaction::{Bodies, Plan};
use walk::{Edit, Removal, Walk, Why, Wish, write};

/// The changes that [`apply`] makes to one event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// The level to which the event is lowered; `None` if it keeps its level.
    pub level: Option<Level>,
    /// `true` if both bodies are removed, and with them the annotations in which webhooks record
    /// their changes to a body. The level stays.
    pub without_bodies: bool,
    /// `true` if `metadata.managedFields` is removed from the objects in both bodies, as
    /// kube-apiserver does for a policy with `omitManagedFields`.
    pub omit_managed_fields: bool,
    /// The rules for values that must not leave the relay, if values are redacted.
    pub redaction: Option<&'a Redaction>,
    /// The constant annotations to add to the event.
    pub annotations: Option<&'a Annotations>,
    /// The maximum size of the changed event in bytes, if there is one. A larger event loses the
    /// first set of parts in `TRIMMED` without which it is small enough. If there is no such set,
    /// it loses all of the parts, and others are cut (`cut`). From 4 KiB on, every event becomes
    /// small enough.
    pub event_bytes_max: Option<usize>,
}

/// A level to which the relay can lower an event whose own level is higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The event has no body, and no annotations in which webhooks record their changes to a body.
    Metadata,
    /// The event has no response body.
    Request,
}

/// What [`apply`] has done to an event; by default nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// A part was changed or removed because of the `level`, `without_bodies` or
    /// `omit_managed_fields` of the [`Change`].
    pub lowered: bool,
    /// A value that must not leave the relay was removed or replaced.
    pub redacted: bool,
    /// A part was removed or cut because the event was too large.
    pub trimmed: bool,
    /// An annotation was added.
    pub annotated: bool,
    /// The event is larger than `event_bytes_max`, even after all changes. Its bodies are removed,
    /// but nothing else is cut.
    pub is_too_large: bool,
}

/// Appends the changed event to `out`. If the event needs no change, `out` stays as it is.
///
/// The event must be one that [`audit`] has found valid, and `request` must be read from it.
/// `known` is the result of [`Reader::known`](audit::request::Reader::known) for this event, so
/// that less of the event has to be read, or 0.
pub fn apply(
    event: &[u8],
    request: &Request<'_>,
    known: usize,
    change: &Change<'_>,
    out: &mut Vec<u8>,
) -> Done {
    let look = match change.redaction {
        Some(_) => Look::at(event, request, known),
        None => Look::default(),
    };
    Asked { event, request, look }.apply(change, out)
}

/// An event that may need changes, and its request.
#[derive(Clone, Copy)]
struct Asked<'a> {
    event: &'a [u8],
    request: &'a Request<'a>,
    look: Look,
}

impl Asked<'_> {
    fn apply(&self, change: &Change<'_>, out: &mut Vec<u8>) -> Done {
        let start = out.len();
        let mut done = match self.look.has_tokens {
            true => self.without_tokens(change, out),
            false => self.with_tokens(change, out),
        };
        if let (true, Some(max)) = (done.is_too_large, change.event_bytes_max) {
            let changed = out.get(start..).filter(|text| !text.is_empty());
            if let Some(text) = cut::cut(&marked(changed.unwrap_or(self.event)), max) {
                out.truncate(start);
                out.extend_from_slice(&text);
                done = Done { trimmed: true, annotated: true, is_too_large: false, ..done };
            }
        }
        done
    }

    /// Does what [`apply`] does, without looking for JSON Web Tokens.
    fn with_tokens(&self, change: &Change<'_>, out: &mut Vec<u8>) -> Done {
        let Some(Changed { edits, mut done, .. }) = changed(self, change) else {
            return Done::default();
        };
        let length = length(self.event, &edits);
        done.is_too_large = change.event_bytes_max.is_some_and(|max| length > max);
        if !edits.is_empty() {
            out.reserve(length);
            write(self.event, &edits, out);
        }
        done
    }

    /// Does what [`apply`] does for an event that may contain JSON Web Tokens. Parts are removed
    /// because of the size only if the event is too large even after the tokens are replaced. The
    /// number of these parts depends on the size with the tokens.
    fn without_tokens(&self, change: &Change<'_>, out: &mut Vec<u8>) -> Done {
        let is_large = |text: &[u8]| change.event_bytes_max.is_some_and(|max| text.len() > max);
        let mut last = (Vec::new(), Done::default());
        for event_bytes_max in [None, change.event_bytes_max] {
            let mut text = Vec::new();
            let mut done = self.with_tokens(&Change { event_bytes_max, ..*change }, &mut text);
            let redacted = web_token::redact(if text.is_empty() { self.event } else { &text });
            done.redacted |= redacted.is_some();
            text = redacted.unwrap_or(text);
            done.is_too_large = is_large(if text.is_empty() { self.event } else { &text });
            let is_small = !done.is_too_large;
            last = (text, done);
            if is_small {
                break;
            }
        }
        let (text, done) = last;
        out.extend_from_slice(&text);
        done
    }
}

/// The sets of parts that an event can lose because it is too large; see
/// [`Change::event_bytes_max`]. `Annotations` stands only for the annotations with the patches of
/// webhooks. Patches matter least, because the response body shows their result, and the request
/// body matters most, because nothing else shows its content.
const TRIMMED: [&[Name]; 5] = [
    &[Name::Annotations],
    &[Name::ResponseObject],
    &[Name::Annotations, Name::ResponseObject],
    &[Name::ResponseObject, Name::RequestObject],
    &[Name::Annotations, Name::ResponseObject, Name::RequestObject],
];

/// Returns the event with the annotation [`TRUNCATED`].
fn marked(event: &[u8]) -> Vec<u8> {
    let (level, without_bodies, trims, plan) = (None, false, false, None);
    let reader = Reader { event, level, without_bodies, trims, plan, wishes: &[] };
    let mut marked = Vec::with_capacity(event.len());
    write(event, &reader.changed(&[&TRUNCATED], &[]).edits, &mut marked);
    marked
}

/// Finds the edits that `change` needs in this event, except for those of JSON Web Tokens. `None`
/// if it is clear, before the members of the event are read, that there is nothing to do.
fn changed(asked: &Asked<'_>, change: &Change<'_>) -> Option<Changed> {
    let Asked { event, request, look } = *asked;
    let is_large = |length: usize| change.event_bytes_max.is_some_and(|max| length > max);
    let plan = change.redaction.and_then(|redaction| redaction.plan(event, request, look));
    let without_bodies = change.without_bodies || change.level == Some(Level::Metadata);
    let omits = change.omit_managed_fields && !without_bodies && may_have_managed_fields(event);
    let additions: Vec<_> = change.annotations.into_iter().flat_map(|it| &it.additions).collect();
    if change.level.is_none()
        && !without_bodies
        && !omits
        && plan.is_none()
        && additions.is_empty()
        && !is_large(event.len())
    {
        return None;
    }
    let mut wishes: Vec<_> = plan.as_ref().map(|plan| plan.wishes.clone()).unwrap_or_default();
    if omits {
        wishes.extend(redaction::managed_fields(request));
    }
    if without_bodies {
        wishes.push(redaction::patches(Why::Lowered));
    }
    let Change { level, event_bytes_max, .. } = *change;
    let (plan, trims) = (plan.as_ref(), event_bytes_max.is_some());
    let reader = Reader { event, level, without_bodies, trims, plan, wishes: &wishes };
    let mut changed = reader.changed(&additions, &[]);
    let (parts, mut tried) = (std::mem::take(&mut changed.parts), Vec::new());
    for without in TRIMMED {
        let without: Vec<_> = without.iter().copied().filter(|it| parts.contains(it)).collect();
        if without != tried && is_large(length(event, &changed.edits)) {
            drop(changed);
            changed = reader.changed(&[&additions[..], &[&TRUNCATED]].concat(), &without);
            tried = without;
        }
    }
    Some(changed)
}

/// Returns `true` if the event may contain the key `managedFields`, in plain letters or with
/// escapes. Only `false` is certain: a search in the bytes is much faster than parsing the event.
fn may_have_managed_fields(event: &[u8]) -> bool {
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"managedFields"));
    NAME.find(event).is_some() || ambiguous::spells_letters(event)
}

/// The members of an event that are handled in a special way, and `Other` for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Level,
    RequestObject,
    ResponseObject,
    ResponseStatus,
    RequestUri,
    Annotations,
    Other,
}

impl Name {
    fn of(name: &[u8]) -> Self {
        match name {
            b"level" => Self::Level,
            b"requestObject" => Self::RequestObject,
            b"responseObject" => Self::ResponseObject,
            b"responseStatus" => Self::ResponseStatus,
            b"requestURI" => Self::RequestUri,
            b"annotations" => Self::Annotations,
            _ => Self::Other,
        }
    }
}

/// The members that are kept even if an event needs too many edits, because they make the text an
/// audit event and name the event's request. After [`walk::EDITS_MAX`] edits, a later member is
/// removed if it is not in this list, or if it repeats the name of another later member.
const ESSENTIAL: [&[u8]; 11] = [
    b"kind",
    b"apiVersion",
    b"level",
    b"auditID",
    b"stage",
    b"requestURI",
    b"verb",
    b"user",
    b"objectRef",
    b"requestReceivedTimestamp",
    b"stageTimestamp",
];

struct Changed {
    /// The edits, sorted by the position of the bytes that they replace.
    edits: Vec<Edit>,
    done: Done,
    /// The parts in [`TRIMMED`] that stay in the event; empty if its size has no limit.
    parts: Vec<Name>,
}

/// Finds the edits that an event needs. `wishes` holds the paths from the top of the event to the
/// values to change.
struct Reader<'a, 'r> {
    event: &'a [u8],
    level: Option<Level>,
    without_bodies: bool,
    /// `true` if the size of the event has a limit.
    trims: bool,
    plan: Option<&'r Plan<'r>>,
    wishes: &'r [Wish<'r>],
}

impl<'a> Reader<'a, '_> {
    /// Finds the edits for all members of the event. `without` names the parts to remove because
    /// the event is too large: those of a set in [`TRIMMED`] that the event has, or none.
    /// `additions` are the annotations to add. One member is handled at a time, without a list of
    /// all members, because an event may have millions of them.
    fn changed(&self, additions: &[&Addition], without: &[Name]) -> Changed {
        let (mut edits, mut done, mut removal) = (Vec::new(), Done::default(), Removal::default());
        let (mut parts, mut has_annotations) = (Vec::new(), false);
        let mut essential = ESSENTIAL.to_vec();
        for child in walk::children(self.event, self.event) {
            let key = child.name().unwrap_or_default();
            let name = Name::of(&key);
            let mut wishes = Wish::at_child(self.wishes, Some(&key));
            if name == Name::Annotations && without.contains(&name) {
                let patches = [redaction::patches(Why::Trimmed)];
                wishes.extend(Wish::at_child(&patches, Some(&key)));
            }
            let mut walk = Walk::new(self.event);
            let mut stays = self.member(name, child.value, &wishes, &mut walk) && !walk.is_full();
            let is_body = matches!(name, Name::RequestObject | Name::ResponseObject);
            if stays && is_body && without.contains(&name) {
                done.trimmed = true;
                stays = false;
            } else {
                done.lowered |= walk.lowered;
                done.redacted |= walk.redacted;
                done.trimmed |= walk.trimmed;
            }
            if edits.len() >= walk::EDITS_MAX {
                stays &= essential.extract_if(.., |own| **own == *key).next().is_some();
            }
            removal.pass(&child, stays, &mut edits);
            if !stays {
                continue;
            }
            edits.append(&mut walk.edits);
            let mut is_part = is_body;
            if name == Name::Annotations {
                has_annotations = true;
                let kept = || self.kept(child.value, &wishes);
                is_part = self.trims && kept().any(|it| redaction::is_patch(&it));
                let place = walk::place(self.event, child.value);
                let added = annotate::added(place, child.value, kept(), additions);
                done.annotated |= added.is_some();
                edits.extend(added);
            }
            if is_part && self.trims && !parts.contains(&name) {
                parts.push(name);
            }
        }
        let kept = removal.finish(&mut edits);
        if !has_annotations && !additions.is_empty() {
            done.annotated = true;
            let mut with = annotate::whole(additions);
            if kept.is_some() {
                with.insert(0, b',');
            }
            let place = kept.unwrap_or(self.event.len().min(1));
            edits.push(Edit { place: place..place, with: with.into() });
        }
        // At the same byte, an insertion, whose range is empty, sorts before a removal. No two
        // edits have the same range.
        edits.sort_unstable_by_key(|edit| (edit.place.start, edit.place.end));
        Changed { edits, done, parts }
    }

    /// Adds the edits of one member to `walk`. `wishes` are the changes in the member. Returns
    /// `false` if the caller must remove the whole member; so do `body` and `status`.
    fn member(
        &self,
        name: Name,
        value: &'a [u8],
        wishes: &[Wish<'_>],
        walk: &mut Walk<'a>,
    ) -> bool {
        match name {
            Name::Level => self.level(value, walk),
            Name::RequestObject | Name::ResponseObject => self.body(name, value, wishes, walk),
            Name::ResponseStatus => self.status(value, wishes, walk),
            Name::RequestUri => {
                let stays = walk.value(value, wishes);
                if stays && walk.edits.is_empty() && self.plan.is_some() {
                    self.uri(value, walk);
                }
                stays
            }
            Name::Annotations | Name::Other => walk.value(value, wishes),
        }
    }

    /// Adds the edit that sets `level` to the wanted level, unless the value is this level or a
    /// lower one. An unknown value counts as higher. The member always stays.
    fn level(&self, value: &[u8], walk: &mut Walk<'a>) -> bool {
        let known = text::string(value);
        let (with, enough): (&'static [u8], &[&[u8]]) = match self.level {
            None => return true,
            Some(Level::Metadata) => (b"\"Metadata\"", &[b"None", b"Metadata"]),
            Some(Level::Request) => (b"\"Request\"", &[b"None", b"Metadata", b"Request"]),
        };
        if !enough.iter().any(|level| known.as_deref() == Some(level)) {
            walk.lowered = true;
            let place = walk::place(self.event, value);
            walk.edits.push(Edit { place, with: with.into() });
        }
        true
    }

    fn body(&self, name: Name, body: &'a [u8], wishes: &[Wish<'_>], walk: &mut Walk<'a>) -> bool {
        let is_response = name == Name::ResponseObject;
        if self.without_bodies || is_response && self.level == Some(Level::Request) {
            walk.lowered = true;
            return false;
        }
        if let Some(plan) = self.plan {
            let stays = match plan.bodies {
                Bodies::Stay => true,
                Bodies::Secret => body == b"null" || redaction::is_known(body, true),
                Bodies::Go => body == b"null",
            };
            if !stays {
                walk.redacted = true;
                return false;
            }
            let may_be_status = plan.bodies == Bodies::Secret || redaction::is_status(body);
            if plan.is_quotable && may_be_status {
                return walk.body(body, &[wishes, &*redaction::quotes(body)].concat());
            }
        }
        walk.body(body, wishes)
    }

    fn status(&self, status: &'a [u8], wishes: &[Wish<'_>], walk: &mut Walk<'a>) -> bool {
        if self.plan.is_some_and(|plan| plan.is_quotable) {
            return walk.value(status, &[wishes, &*redaction::quotes(status)].concat());
        }
        walk.value(status, wishes)
    }

    /// Adds the edits that replace the credentials in the request's URI. A URI of more than
    /// [`uri::BYTES_MAX`] bytes is replaced as a whole.
    fn uri(&self, value: &[u8], walk: &mut Walk<'a>) {
        let [b'"', raw @ .., b'"'] = value else { return };
        let whole = walk::place(self.event, value);
        let uri = text::unescape(raw);
        if uri.len() > uri::BYTES_MAX {
            walk.edits.push(Edit { place: whole, with: uri::REDACTED_WHOLE.into() });
            walk.redacted = true;
            return;
        }
        let mut parts = uri::secrets(&uri);
        text::to_written(raw, &mut parts);
        walk.redacted |= !parts.is_empty();
        let start = whole.start + 1;
        walk.edits.extend(parts.into_iter().map(|part| {
            let place = start + part.start..start + part.end;
            Edit { place, with: text::REDACTED.into() }
        }));
    }

    /// Returns the annotations that stay, as [`Self::changed`] has found out before. Finding them
    /// again costs little, because few events have annotations that are removed.
    fn kept(
        &self,
        annotations: &'a [u8],
        wishes: &[Wish<'_>],
    ) -> impl Iterator<Item = walk::Child<'a>> {
        walk::children(self.event, annotations).filter(|child| {
            let at_child = Wish::at_child(wishes, child.name().as_deref());
            at_child.is_empty() || Walk::new(self.event).value(child.value, &at_child)
        })
    }
}

fn length(event: &[u8], edits: &[Edit]) -> usize {
    let removed: usize = edits.iter().map(|edit| edit.place.len()).sum();
    let added: usize = edits.iter().map(|edit| edit.with.len()).sum();
    event.len() + added - removed
}

#[cfg(test)]
pub(crate) mod tests;
