//! What must not leave of an event, by the object that it is about: the rules, and what always holds.
//!
//! Always: the contents and annotations of Secrets; the bodies of requests that make or check
//! tokens, and of OpenShift's OAuth objects; credentials in a request's URI; JSON Web Tokens
//! everywhere (`web_token`). Of Secrets only shapes that are known are taken apart; of any other
//! the whole body goes.
//!
//! Where something in a body must not leave, the server's words about the body must not either,
//! unless its reason is one whose words come from the server alone: a validation error quotes the
//! value that it is about. With them go the annotations of the event that are not known to be
//! kube-apiserver's own: webhooks and admission policies put there what they like of the body.

use std::sync::LazyLock;

use super::ambiguous::is_ambiguous;
use super::rule::Compiled;
use super::rule::Mistake;
use super::rule::Rule;
use super::rule::With;
use super::rule::in_lists;
use super::text;
use super::uri;
use super::walk::Path;
use super::walk::Step;
use super::walk::Why;
use super::walk::Wish;
use crate::audit::request::Object;
use crate::audit::request::Request;
use crate::audit::scan;

const BODIES: [&[u8]; 2] = [b"requestObject", b"responseObject"];

/// Rules that are ready for use, and what always holds.
#[derive(Debug)]
pub struct Redaction {
    rules: Vec<Compiled>,
}

/// What is to be done with the bodies as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bodies {
    Stay,
    /// Those of Secrets.
    Secret,
    Go,
}

/// What is asked for one event.
#[derive(Debug)]
pub(super) struct Plan<'r> {
    /// From the event's top.
    pub(super) wishes: Vec<Wish<'r>>,
    pub(super) bodies: Bodies,
    /// Whether the server's words may quote what must not leave.
    pub(super) is_quotable: bool,
}

impl Redaction {
    /// Without rules, what always holds.
    ///
    /// # Errors
    ///
    /// The first [`Mistake`].
    pub fn new(rules: &[Rule]) -> Result<Self, Mistake> {
        let compiled = rules.iter().enumerate().map(|(index, rule)| Compiled::new(index, rule));
        Ok(Self { rules: compiled.collect::<Result<_, _>>()? })
    }

    /// `None`: nothing, but for JSON Web Tokens. `spells_letters`: whether the event may have
    /// letters as escapes.
    pub(super) fn plan(
        &self,
        event: &[u8],
        request: &Request<'_>,
        spells_letters: bool,
    ) -> Option<Plan<'_>> {
        let is_ambiguous = is_ambiguous(event, spells_letters);
        let bodies = if is_ambiguous { Bodies::Go } else { bodies(request.object.as_ref()) };
        let (mut wishes, mut is_quotable) = (Vec::new(), bodies != Bodies::Stay);
        for rule in &self.rules {
            if is_ambiguous || rule.applies_to(request.object.as_ref()) {
                is_quotable |= rule.of_bodies;
                let wish = |path| Wish::new(path, rule.with, Why::Redacted);
                wishes.extend(rule.paths.iter().map(|path| wish(path)));
            }
        }
        if is_quotable {
            let wish = |path: &'static [Step; 2]| Wish::new(path, With::Drop, Why::Redacted);
            wishes.push(wish(&OF_ADMISSION));
        }
        if bodies == Bodies::Secret {
            wishes.extend(SECRET.iter().map(|path| Wish::new(path, With::Drop, Why::Redacted)));
        }
        let is_needed = is_ambiguous
            || !wishes.is_empty()
            || bodies != Bodies::Stay
            || has_secrets(&request.uri.text());
        is_needed.then_some(Plan { wishes, bodies, is_quotable })
    }
}

fn has_secrets(uri: &[u8]) -> bool {
    // What `request` could not resolve is left as it is written.
    uri.len() > uri::BYTES_MAX
        || memchr::memchr(b'\\', uri).is_some()
        || !uri::secrets(uri).is_empty()
}

fn bodies(object: Option<&Object<'_>>) -> Bodies {
    let Some(object) = object else { return Bodies::Stay };
    match (&*object.group, &*object.resource, &*object.subresource) {
        (b"", b"secrets", _) | (b"" | b"image.openshift.io", b"imagestreams", b"secrets") => {
            Bodies::Secret
        }
        (_, b"serviceaccounts", b"token") | (_, b"tokenreviews", _) => Bodies::Go,
        (
            b"" | b"oauth.openshift.io",
            b"oauthaccesstokens"
            | b"oauthauthorizetokens"
            | b"useroauthaccesstokens"
            | b"oauthclients",
            _,
        ) => Bodies::Go,
        _ => Bodies::Stay,
    }
}

/// What is secret in a Secret, and in those of a list.
static SECRET: LazyLock<Vec<Path>> = LazyLock::new(|| {
    let inside: [&[Step]; 3] = [
        &[Step::Known(b"data"), Step::Any],
        &[Step::Known(b"stringData"), Step::Any],
        // Copies of the object, and whatever controllers keep there: OpenShift's, a service account's token.
        &[Step::Known(b"metadata"), Step::Known(b"annotations"), Step::Any],
    ];
    in_bodies(&BODIES, &inside)
});

/// What mutating webhooks have put into the object: kube-apiserver records their patches from the level Request on, which
/// webhook has changed something (`mutation.webhook.admission.k8s.io/`) at each.
const PATCHES: [Step; 2] =
    [Step::Known(b"annotations"), Step::Prefixed(b"patch.webhook.admission.k8s.io/")];

/// Whatever webhooks and admission policies have put into the event's annotations, where it may
/// quote a body: all that is not known to be kube-apiserver's own.
const OF_ADMISSION: [Step; 2] = [Step::Known(b"annotations"), Step::OfAdmission];

/// Annotations with words of kube-apiserver's own, or ours: whole, or up to the slash that ends
/// them.
const OF_THE_SERVER: [&[u8]; 19] = [
    b"apiserver.k8s.io/",
    b"apiserver.latency.k8s.io/",
    b"audit.k8s.io/",
    b"authentication.k8s.io/",
    b"authentication.kubernetes.io/",
    b"authentication.openshift.io/",
    b"authorization.k8s.io/",
    b"failed-open.mutating.webhook.admission.k8s.io/",
    b"failed-open.mutation.webhook.admission.k8s.io/",
    b"failed-open.validating.webhook.admission.k8s.io/",
    b"failed-open.validation.webhook.admission.k8s.io/",
    b"insecure-sha1.invalid-cert.kubernetes.io/",
    b"k8s.io/deprecated",
    b"k8s.io/removed-release",
    b"kube-audit-forwarder/",
    b"missing-san.invalid-cert.kubernetes.io/",
    b"mutation.webhook.admission.k8s.io/",
    b"pod-security.kubernetes.io/enforce-policy",
    b"pod-security.kubernetes.io/exempt",
];

/// Whether an annotation of an event is by admission, as far as its name says.
pub(super) fn is_of_admission(name: &[u8]) -> bool {
    !OF_THE_SERVER.iter().any(|own| match own.ends_with(b"/") {
        true => name.starts_with(own),
        false => name == *own,
    })
}

/// What is no part of an event at the level Metadata, besides its bodies.
pub(super) fn above_metadata<'w>() -> Wish<'w> {
    Wish::new(&PATCHES, With::Drop, Why::Lowered)
}

/// What `omitManagedFields` of an audit policy takes away, in both bodies.
static MANAGED_FIELDS: LazyLock<[Vec<Path>; 2]> = LazyLock::new(|| {
    let inside: [&[Step]; 1] = [&[Step::Known(b"metadata"), Step::Known(b"managedFields")]];
    BODIES.map(|body| in_bodies(&[body], &inside))
});

/// The same paths in each body, in the items of lists and in the rows of tables.
fn in_bodies(bodies: &[&'static [u8]], inside: &[&[Step]]) -> Vec<Path> {
    let mut paths = Vec::new();
    for body in bodies {
        for inside in inside {
            paths.push([&[Step::Known(body)][..], inside].concat().into());
            paths.extend(in_lists(body, inside));
        }
    }
    paths
}

/// kube-apiserver records a patch as it was sent, with the managed fields in it, if any.
pub(super) fn managed_fields<'w>(request: &Request<'_>) -> Vec<Wish<'w>> {
    let bodies = MANAGED_FIELDS.iter().skip(usize::from(*request.verb == *b"patch"));
    bodies.flatten().map(|path| Wish::new(path, With::Drop, Why::Lowered)).collect()
}

/// Whether a body of a request about Secrets is one of those whose secret parts are known.
pub(super) fn is_known_of_secrets(body: &[u8]) -> bool {
    body == b"null" || is_known(body, true)
}

/// Items are Secrets and nothing else.
fn is_known(object: &[u8], is_body: bool) -> bool {
    object.first() == Some(&b'{')
        && scan::members(object).all(|member| {
            let is_plain = !matches!(member.value.first(), Some(b'{' | b'['));
            match &*text::unescape(member.key) {
                b"kind" => text::string(member.value).is_some_and(|kind| {
                    matches!(
                        &*kind,
                        b"Secret"
                            | b"SecretList"
                            | b"Status"
                            | b"DeleteOptions"
                            | b"PartialObjectMetadata"
                            | b"PartialObjectMetadataList"
                    )
                }),
                b"items" => {
                    is_body
                        && (member.value == b"null" || member.value.first() == Some(&b'['))
                        && scan::elements(member.value).all(|item| is_known(item, false))
                }
                b"metadata" | b"data" | b"stringData" => true,
                b"apiVersion" | b"type" | b"immutable" => is_plain,
                // A Status has these, and DeleteOptions.
                b"details" | b"preconditions" | b"dryRun" => is_body,
                b"status" | b"message" | b"reason" | b"code" => is_body && is_plain,
                b"gracePeriodSeconds" | b"orphanDependents" | b"propagationPolicy" => {
                    is_body && is_plain
                }
                _ => false,
            }
        })
}

/// What to take away from a Status that may quote its request.
pub(super) fn quotes<'w>(status: &[u8]) -> Vec<Wish<'w>> {
    static PATHS: [&[Step]; 2] =
        [&[Step::Known(b"message")], &[Step::Known(b"details"), Step::Known(b"causes")]];
    let may_quote = status.first() == Some(&b'{') && {
        let (mut has_reason, mut is_others) = (false, false);
        for member in scan::members(status) {
            let text = || text::string(member.value);
            match &*text::unescape(member.key) {
                b"reason" => {
                    has_reason = true;
                    is_others |= !text().is_some_and(|reason| is_the_servers(&reason));
                }
                b"message" => is_others |= text().is_some_and(|message| is_a_webhooks(&message)),
                _ => {}
            }
        }
        is_others || !has_reason
    };
    let paths = PATHS.iter().filter(|_| may_quote);
    paths.map(|path| Wish::new(path, With::Drop, Why::Redacted)).collect()
}

/// Reasons whose messages name the object and quote no values. `Forbidden` and `Unauthorized` are not among them: admission
/// policies give them, with words of their own.
fn is_the_servers(reason: &[u8]) -> bool {
    matches!(
        reason,
        b"AlreadyExists"
            | b"Conflict"
            | b"Expired"
            | b"Gone"
            | b"MethodNotAllowed"
            | b"NotFound"
            | b"ServerTimeout"
            | b"ServiceUnavailable"
            | b"Timeout"
            | b"TooManyRequests"
    )
}

/// An admission webhook denies with any reason and any words; kube-apiserver puts these in front of them.
fn is_a_webhooks(message: &[u8]) -> bool {
    memchr::memmem::find(message, b"admission webhook ").is_some()
}

/// Whether a body is the server's word about a request.
pub(super) fn is_status(body: &[u8]) -> bool {
    body.first() == Some(&b'{')
        && scan::members(body).any(|member| {
            *text::unescape(member.key) == *b"kind"
                && text::string(member.value).as_deref() == Some(b"Status")
        })
}
