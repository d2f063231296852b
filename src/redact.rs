//! Changes one event for an output: lowers its level, takes out what must not leave, drops bodies
//! that are too large for the consumer, and adds constant annotations.
//!
//! [`apply`] cuts bytes out of an event and inserts others. It never writes the JSON anew:
//! everything that no rule changes leaves byte for byte and in its order, including unusual
//! numbers, escapes and duplicate keys. The result is valid JSON, and still an audit event.
//!
//! The caller decides which changes an event gets, with two exceptions: `rule` finds the redaction
//! rules for the event's resource, and `redaction` adds the redactions that always hold. `walk`
//! finds where a value is written, `uri` finds credentials in a URI (`named` finds those that have
//! a telling name), and `web_token` finds JSON Web Tokens. Tokens are replaced last, so that a hash
//! that stands for a value is the hash of the value as it was received.
//!
//! A key counts wherever it occurs and however it is escaped, because parsers differ in which of
//! two duplicate keys they read.

use crate::audit::request::Request;

mod ambiguous;
mod annotate;
mod named;
mod redaction;
mod rule;
mod text;
mod uri;
mod walk;
mod web_token;

pub use annotate::Annotations;
pub use redaction::Redaction;
pub use rule::Mistake;
pub use rule::Rule;
pub use rule::With;

use annotate::Addition;
use annotate::TRUNCATED;
use redaction::Bodies;
use redaction::Plan;
use walk::Edit;
use walk::Removal;
use walk::Walk;
use walk::Wish;

/// The changes to make to one event. They are made in the order of the fields.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// The level to lower the event to; `None`: the event keeps its level.
    pub level: Option<Level>,
    /// Whether to leave out `metadata.managedFields` of the objects in bodies, as kube-apiserver
    /// does.
    pub omit_managed_fields: bool,
    /// The values that must not leave; `None`: everything may leave.
    pub redaction: Option<&'a Redaction>,
    /// The annotations to add.
    pub annotations: Option<&'a Annotations>,
    /// The largest size in bytes. A larger event loses its response body, and if it is still too
    /// large, its request body.
    pub event_bytes_max: Option<usize>,
}

/// A level to which an event of a higher level can be lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Without bodies, and without the annotations in which webhooks record their changes to
    /// bodies.
    Metadata,
    /// Without the response body.
    Request,
}

/// Reports the changes that [`apply`] made to an event. The default value means that nothing
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// The level was lowered, or managed fields were taken out.
    pub lowered: bool,
    /// Something that must not leave was taken out or replaced.
    pub redacted: bool,
    /// A body was taken out because the event was too large.
    pub trimmed: bool,
    /// An annotation was added.
    pub annotated: bool,
    /// The event is larger than `event_bytes_max`, even after all changes.
    pub is_too_large: bool,
}

/// Appends the changed event to `out` and returns what was done. If nothing is changed, `out` stays
/// as it is.
///
/// The event must be one that [`crate::audit`] has found valid, and `request` must be read from
/// this event.
pub fn apply(event: &[u8], request: &Request<'_>, change: &Change<'_>, out: &mut Vec<u8>) -> Done {
    let redacts = change.redaction.is_some();
    let spells_letters = redacts && ambiguous::spells_letters(event);
    let asked = Asked { event, request, spells_letters };
    match redacts && web_token::may_be_in(event, spells_letters) {
        true => asked.without_tokens(change, out),
        false => asked.with_tokens(change, out),
    }
}

/// An event to change, with its request.
#[derive(Clone, Copy)]
struct Asked<'a> {
    event: &'a [u8],
    request: &'a Request<'a>,
    /// Whether some letters of the event may be written as escapes, such as `\u0041` for `A`.
    spells_letters: bool,
}

impl Asked<'_> {
    /// Does what [`apply`] does, but leaves JSON Web Tokens in the event.
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

    /// Does what [`apply`] does, for an event that may have JSON Web Tokens. The size of the event
    /// is measured after its tokens are replaced: bodies are dropped only if the event is too large
    /// even then.
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

/// Finds the edits that a change needs, apart from JSON Web Tokens. `None` if the change asks for
/// nothing in this event.
fn changed(asked: &Asked<'_>, change: &Change<'_>) -> Option<Changed> {
    let Asked { event, request, spells_letters } = *asked;
    let is_large = |length: usize| change.event_bytes_max.is_some_and(|max| length > max);
    let plan =
        change.redaction.and_then(|redaction| redaction.plan(event, request, spells_letters));
    let omits = change.omit_managed_fields && may_have_managed_fields(event);
    let additions: Vec<_> =
        change.annotations.into_iter().flat_map(Annotations::additions).collect();
    if change.level.is_none()
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
    if change.level == Some(Level::Metadata) {
        wishes.push(redaction::above_metadata());
    }
    let reader = Reader { event, level: change.level, plan: plan.as_ref(), wishes: &wishes };
    let mut changed = reader.changed(&additions, &[]);
    for without in [&[Name::ResponseObject][..], &[Name::ResponseObject, Name::RequestObject]] {
        let has_body = without.last().is_some_and(|body| changed.bodies.contains(body));
        if has_body && is_large(length(event, &changed.edits)) {
            drop(changed);
            changed = reader.changed(&[&additions[..], &[&TRUNCATED]].concat(), without);
        }
    }
    Some(changed)
}

/// Whether to look for `managedFields` in the event. Events without bodies do not have them, and
/// this check is much faster than the search.
fn may_have_managed_fields(event: &[u8]) -> bool {
    let has = |text: &[u8]| memchr::memmem::find(event, text).is_some();
    has(b"managedFields") || has(b"\\u00")
}

/// The members of an event that are handled by their names.
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

/// The members that stay if an event has more edits than [`walk::EDITS_MAX`], each of them once.
/// They make it an audit event and name the request that it is about.
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

/// The edits that change an event, and a summary of them.
struct Changed {
    /// The edits, in the order of the event's bytes.
    edits: Vec<Edit>,
    done: Done,
    /// The bodies that stay in the event.
    bodies: Vec<Name>,
}

/// Finds the edits that an event needs. `wishes` lead from the top of the event to the values to
/// change.
struct Reader<'a, 'r> {
    event: &'a [u8],
    level: Option<Level>,
    plan: Option<&'r Plan<'r>>,
    wishes: &'r [Wish<'r>],
}

impl<'a> Reader<'a, '_> {
    /// Finds the edits of all members, without the members in `without`. Nothing is kept of a
    /// member but its edits: an event may have millions of members.
    fn changed(&self, additions: &[&Addition], without: &[Name]) -> Changed {
        let (mut edits, mut done, mut removal) = (Vec::new(), Done::default(), Removal::default());
        let (mut bodies, mut has_annotations) = (Vec::new(), false);
        let mut essential = ESSENTIAL.to_vec();
        for child in walk::children(self.event, self.event) {
            let key = child.name().unwrap_or_default();
            let name = Name::of(&key);
            let wishes = Wish::at_child(self.wishes, Some(&key));
            let mut walk = Walk::new(self.event);
            let mut stays = self.member(name, child.value, &wishes, &mut walk) && !walk.is_full();
            if stays && without.contains(&name) {
                done.trimmed = true;
                stays = false;
            } else {
                done.lowered |= walk.lowered;
                done.redacted |= walk.redacted;
            }
            if edits.len() >= walk::EDITS_MAX {
                stays &= essential.extract_if(.., |own| **own == *key).next().is_some();
            }
            removal.pass(&child, stays, &mut edits);
            if !stays {
                continue;
            }
            edits.append(&mut walk.edits);
            if matches!(name, Name::RequestObject | Name::ResponseObject) && !bodies.contains(&name)
            {
                bodies.push(name);
            }
            if name == Name::Annotations {
                has_annotations = true;
                let added = self.added(child.value, &wishes, additions);
                done.annotated |= added.is_some();
                edits.extend(added);
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
        // If two edits begin at the same byte, the insertion comes before the removal. No two edits
        // have the same begin and the same end.
        edits.sort_unstable_by_key(|edit| (edit.place.start, edit.place.end));
        Changed { edits, done, bodies }
    }

    /// Adds the edits of one member to `walk`. Returns `false` if the whole member is to be
    /// removed.
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
        if self.level == Some(Level::Metadata) || is_response && self.level == Some(Level::Request)
        {
            walk.lowered = true;
            return false;
        }
        if let Some(plan) = self.plan {
            let stays = match plan.bodies {
                Bodies::Stay => true,
                Bodies::Secret => redaction::is_known_of_secrets(body),
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
            Edit { place, with: uri::REDACTED.into() }
        }));
    }

    /// The edit that adds annotations; `None` if nothing is missing. The annotations that stay are
    /// computed a second time here, because only few events need this, or the annotations have no
    /// wishes and the computation is cheap.
    fn added(
        &self,
        annotations: &'a [u8],
        wishes: &[Wish<'_>],
        additions: &[&Addition],
    ) -> Option<Edit> {
        if additions.is_empty() {
            return None;
        }
        let stays = |child: &walk::Child<'a>| {
            let at_child = Wish::at_child(wishes, child.name().as_deref());
            at_child.is_empty() || Walk::new(self.event).value(child.value, &at_child)
        };
        let kept = walk::children(self.event, annotations).filter(stays);
        annotate::added(walk::place(self.event, annotations), annotations, kept, additions)
    }
}

fn length(event: &[u8], edits: &[Edit]) -> usize {
    let removed: usize = edits.iter().map(|edit| edit.place.len()).sum();
    let added: usize = edits.iter().map(|edit| edit.with.len()).sum();
    event.len() + added - removed
}

fn write(event: &[u8], edits: &[Edit], out: &mut Vec<u8>) {
    let mut at = 0;
    for Edit { place, with } in edits {
        out.extend_from_slice(event.get(at..place.start).unwrap_or_default());
        out.extend_from_slice(with);
        at = place.end;
    }
    out.extend_from_slice(event.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests;
