//! Writes an event in another shape: as a document of the Elastic Common Schema (ECS) or of the
//! Open Cybersecurity Schema Framework (OCSF), or as the event itself with other bodies.
//!
//! A shape moves values: each value of the event is copied as it is written, so that numbers keep
//! their digits and texts their escapes. Four things change: bodies become strings if `bodies` says
//! so; so do the members of a user's `extra` with unknown names, then and in ECS and OCSF; the keys
//! of annotations lose their dots in ECS; and OCSF cuts `requestURI` at its first question mark.
//! Members that a shape does not know are kept. An ECS document holds the whole event in
//! `kubernetes.audit`, and an OCSF document holds in `unmapped` all that has no place of its own.
//! An event with members that are missing or have unexpected types is shaped as well as it can be.
//! If the event has a key twice, the first counts.
//!
//! A document is one JSON object in one line, because the event is one. No object that a shape
//! makes has a key twice, unless the event itself has it twice.
//!
//! The module does not decide which shape an output gets, and it does no I/O.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use audit::scan;
use audit::time::is_timestamp;

mod bodies;
mod ecs;
mod extra;
mod json;
mod ocsf;

#[cfg(test)]
mod tests;

use bodies::Edits;

pub use json::write_string;

/// The form in which an output sends its events. By default, they are sent as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// The schema of the documents.
    pub shape: Shape,
    /// The form of `requestObject` and `responseObject`. Before [`Form::write`], the caller removes
    /// the bodies and managed fields that are not sent.
    pub bodies: Bodies,
    /// The treatment of `metadata.managedFields` in the bodies.
    pub managed_fields: ManagedFields,
}

/// The schema of the documents that an output sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// The event as it is.
    #[default]
    Event,
    /// The Elastic Common Schema, as the integration `kubernetes` of Elastic writes audit events.
    Ecs,
    /// The class API Activity of the Open Cybersecurity Schema Framework.
    Ocsf,
}

impl Shape {
    /// Returns the value of the key `filter.shape` that chooses this schema.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Ecs => "ecs",
            Self::Ocsf => "ocsf",
        }
    }
}

/// The form in which the members `requestObject` and `responseObject` of an event are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bodies {
    /// As they are.
    #[default]
    Keep,
    /// As strings that hold their JSON text. `null` stays `null`. Members of a user's `extra` with
    /// unknown names become a string too.
    String,
    /// Not at all. The annotations in which webhooks record their changes to a body are removed
    /// too.
    Drop,
}

/// The treatment of `metadata.managedFields` in the bodies of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManagedFields {
    /// As they are.
    #[default]
    Keep,
    /// They are removed, as kube-apiserver does for a policy with `omitManagedFields`.
    Drop,
}

/// The name of a data stream of Elasticsearch, in its three parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataStream {
    /// The type, such as `logs`.
    kind: String,
    dataset: String,
    namespace: String,
}

impl DataStream {
    /// Returns the data stream with the name `TYPE-DATASET-NAMESPACE`, of which no part may be
    /// empty or have a hyphen.
    pub fn of(name: &str) -> Option<Self> {
        let mut parts = name.split('-').map(str::to_owned);
        let (kind, dataset, namespace) = (parts.next()?, parts.next()?, parts.next()?);
        let is_whole = parts.next().is_none();
        let has_all = ![&kind, &dataset, &namespace].iter().any(|part| part.is_empty());
        (is_whole && has_all).then_some(Self { kind, dataset, namespace })
    }
}

impl Form {
    /// The form in which every event is sent as it is.
    pub const AS_RECEIVED: Self =
        Self { shape: Shape::Event, bodies: Bodies::Keep, managed_fields: ManagedFields::Keep };

    /// Appends the document of an event, which [`audit`] must have found valid, to `out`. Appends
    /// nothing if the event is sent as it is. `data_stream` is the data stream into which the
    /// document is written, if there is one; only ECS documents name it.
    pub fn write(self, event: &[u8], data_stream: Option<&DataStream>, out: &mut Vec<u8>) {
        if event.first() != Some(&b'{') {
            return;
        }
        match self.shape {
            Shape::Event if self.bodies != Bodies::String => {}
            Shape::Event => {
                let edits = Edits::to_strings(event);
                if !edits.is_empty() {
                    edits.write(event, out);
                }
            }
            Shape::Ecs => ecs::write(event, self.bodies, data_stream, out),
            Shape::Ocsf => ocsf::write(event, self.bodies, out),
        }
    }
}

/// Returns `true` if the document begins with the member `@timestamp`, as an ECS document of an
/// event with a time does.
pub fn has_timestamp(document: &[u8]) -> bool {
    document.starts_with(ecs::HEAD)
}

/// Returns the event in an ECS document, with bodies and annotations as the shape has changed them.
/// Returns any other document as it is.
pub fn event_in(document: &[u8]) -> &[u8] {
    static AUDIT: LazyLock<Finder<'static>> =
        LazyLock::new(|| Finder::new(br#""kubernetes":{"audit":"#));
    if !ecs::HEADS.iter().any(|head| document.starts_with(head)) {
        return document;
    }
    // Before this member, the values of the event are only texts, in which quotes are escaped.
    let event = AUDIT.find(document).and_then(|at| document.get(at + AUDIT.needle().len()..));
    event.and_then(|event| event.strip_suffix(b"}}")).unwrap_or(document)
}

/// Returns `true` if the document begins as an OCSF document of an event does.
pub fn is_ocsf(document: &[u8]) -> bool {
    ocsf::HEADS.iter().any(|head| document.starts_with(head))
}

/// Returns the `auditID` of the event from which a document was made, as it is written.
pub fn audit_id(document: &[u8]) -> Option<&[u8]> {
    let object = |value: &&[u8]| value.first() == Some(&b'{');
    let of_event = scan::member(event_in(document), "auditID");
    of_event.or_else(|| {
        let api = scan::member(document, "api").filter(object)?;
        scan::member(scan::member(api, "request").filter(object)?, "uid")
    })
}

/// Returns the time with which an ECS or OCSF document begins: the time of the event's stage or, if
/// that is not valid, of its request. `None` if there is no valid time, or if the event is sent in
/// its own shape.
pub fn time_of(document: &[u8]) -> Option<&[u8]> {
    let rest = [ecs::HEAD, ocsf::HEAD].iter().find_map(|head| document.strip_prefix(*head))?;
    let time = rest.get(..memchr::memchr(b'"', rest)?)?;
    is_timestamp(time).then_some(time)
}
