//! Decides which parts of an event must not leave the relay: those that are named by the rules for
//! the event's object, and those that are always redacted.
//!
//! Five things are always redacted: the contents and annotations of Secrets; the bodies of requests
//! that make or check tokens, and of OpenShift's OAuth objects; the environment variables of
//! requests for ephemeral containers; credentials in a request's URI; and JSON Web Tokens anywhere
//! (`web_token`). In a body about Secrets, parts are kept only if the shape of the body is known; a
//! body of any other shape is dropped as a whole.
//!
//! If something in a body must not leave, the server's message about that body must not leave
//! either, because a validation error quotes the value that it is about. A message stays if only
//! kube-apiserver writes messages with its reason, and a webhook has not. Annotations of the event
//! that are not known to be kube-apiserver's own, by name and value, are dropped even if the
//! message stays: webhooks and admission policies can quote any part of the body there.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::look::Look;
use super::path::{Path, Step, With, is_forged, is_of_admission};
use super::rule::{COPY, Compiled, MANAGED_FIELDS, Rule, in_body};
use super::text;
use super::walk::{Child, Why, Wish};
use audit::request::{Object, Request};
use audit::scan;

const BODIES: [&[u8]; 2] = [b"requestObject", b"responseObject"];

/// The compiled redaction rules of an output, together with the redactions that always hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Redaction {
    rules: Vec<Compiled>,
}

/// The decision about `requestObject` and `responseObject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bodies {
    /// The bodies stay, but redaction rules may change them.
    Stay,
    /// The bodies are about Secrets. The secret parts of a body with a known shape are removed; a
    /// body of any other shape is dropped.
    Secret,
    /// Both bodies are dropped.
    Go,
}

/// The redactions that one event needs, without those of JSON Web Tokens.
#[derive(Debug)]
pub(super) struct Plan<'r> {
    /// The changes, each with the path from the top of the event to the value to redact.
    pub(super) wishes: Vec<Wish<'r>>,
    pub(super) bodies: Bodies,
    /// `true` if the server's message may quote a value that must not leave the relay.
    pub(super) is_quotable: bool,
}

impl Redaction {
    /// Compiles the rules of an output. The redactions that always hold are added for each event
    /// (`plan`), even if there are no rules.
    ///
    /// # Errors
    ///
    /// The first mistake in the rules: a part that is not written correctly or not allowed, or a
    /// rule without an effect.
    pub fn new(rules: &[Rule]) -> Result<Self, String> {
        Ok(Self { rules: rules.iter().map(Compiled::new).collect::<Result<_, _>>()? })
    }

    /// Returns the redactions that the event needs, if any. `look` is the result of [`Look::at`]
    /// for the event.
    pub(super) fn plan(&self, event: &[u8], request: &Request<'_>, look: Look) -> Option<Plan<'_>> {
        let is_ambiguous = look.is_ambiguous;
        let bodies = if is_ambiguous { Bodies::Go } else { bodies(request.object.as_ref()) };
        let (mut wishes, mut is_quotable) = (Vec::new(), bodies != Bodies::Stay);
        let rules = self.rules.iter();
        let rules = rules.filter(|rule| is_ambiguous || rule.applies_to(request.object.as_ref()));
        let mut applies = false;
        for rule in rules {
            applies = true;
            is_quotable |= rule.of_bodies;
            let wish = |path| Wish::new(path, rule.with, Why::Redacted);
            wishes.extend(rule.paths.iter().map(|path| wish(path)));
            let repeated = |path| Wish::new(path, With::Drop, Why::Redacted);
            wishes.extend(rule.repeats.iter().map(|path| repeated(path)));
        }
        if request.object.as_ref().is_some_and(|it| *it.subresource == *b"ephemeralcontainers") {
            (applies, is_quotable) = (true, true);
            let wish = |path| Wish::new(path, With::Drop, Why::Redacted);
            wishes.extend(OF_EPHEMERAL.iter().map(|path| wish(path)));
        }
        // Most events about Secrets are of the level Metadata and have no bodies.
        if bodies == Bodies::Secret && look.may_have_bodies(event) {
            wishes.extend(SECRET.iter().map(|path| Wish::new(path, With::Drop, Why::Redacted)));
        }
        let is_needed = is_ambiguous
            || look.has_credentials
            || applies
            || bodies != Bodies::Stay && (look.spells_letters || has_words(event, look.known));
        if is_needed && is_quotable {
            let path = if has_forged(event, look.known) { &ANNOTATIONS } else { &OF_ADMISSION };
            wishes.push(Wish::new(path, With::Drop, Why::Redacted));
        }
        is_needed.then_some(Plan { wishes, bodies, is_quotable })
    }
}

/// Returns `true` if an event about something secret may have anything to redact: a body, a message
/// of the server, or an annotation that is not known to be kube-apiserver's own. Events of the
/// level Metadata usually have nothing to redact. `known` is the number of
/// [known](audit::request::Reader::known) bytes. The event must spell no letters as escapes.
fn has_words(event: &[u8], known: usize) -> bool {
    static WORDS: LazyLock<[Finder<'static>; 2]> =
        LazyLock::new(|| [br#""message""#, br#""details""#].map(Finder::new));
    known == 0
        || scan::members_behind(event, known).any(|member| match member.key {
            b"requestObject" | b"responseObject" => true,
            b"responseStatus" => WORDS.iter().any(|word| word.find(member.value).is_some()),
            b"annotations" if member.value.first() == Some(&b'{') => {
                scan::members(member.value).any(|it| is_of_admission(it.key, it.value))
            }
            b"annotations" => member.value != b"null",
            _ => false,
        })
}

/// Returns `true` if an annotation has a name that kube-apiserver uses, but not a value as
/// kube-apiserver writes it. A webhook or an admission policy, whose annotations begin with its own
/// name, then has a name with which they look like kube-apiserver's.
fn has_forged(event: &[u8], known: usize) -> bool {
    let members =
        if known == 0 { scan::members(event) } else { scan::members_behind(event, known) };
    members
        .filter(|it| *it.name() == *b"annotations" && it.value.starts_with(b"{"))
        .any(|it| scan::members(it.value).any(|it| is_forged(&text::unescape(it.key), it.value)))
}

/// Resources whose bodies hold secrets: the API groups that serve them, the resources, and the
/// subresource (`*`: any, or none). If the `bool` is `true`, the bodies are redacted in every API
/// group.
type SecretKinds = (&'static [&'static str], &'static [&'static str], &'static str, bool, Bodies);

const SECRET_KINDS: [SecretKinds; 5] = [
    (&[""], &["secrets"], "*", false, Bodies::Secret),
    (&["", "image.openshift.io"], &["imagestreams"], "secrets", false, Bodies::Secret),
    (&[""], &["serviceaccounts"], "token", true, Bodies::Go),
    (&["authentication.k8s.io"], &["tokenreviews"], "*", true, Bodies::Go),
    (
        &["", "oauth.openshift.io"],
        &["oauthaccesstokens", "oauthauthorizetokens", "useroauthaccesstokens", "oauthclients"],
        "*",
        false,
        Bodies::Go,
    ),
];

/// Returns the API groups with the resources (and their subresource) whose bodies hold secrets.
pub fn secret_kinds() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    SECRET_KINDS.iter().flat_map(|(groups, resources, sub, ..)| {
        let of = move |resource| format!("{resource}/{sub}");
        groups.iter().map(move |group| (*group, resources.iter().map(of).collect()))
    })
}

/// Returns `true` if the object is of one of the [`secret_kinds`], so that bodies about it are
/// always redacted.
pub fn is_secret(object: &Object<'_>) -> bool {
    bodies(Some(object)) != Bodies::Stay
}

fn bodies(object: Option<&Object<'_>>) -> Bodies {
    let Some(object) = object else { return Bodies::Stay };
    let has = |list: &[&str], text: &[u8]| list.iter().any(|own| own.as_bytes() == text);
    let found = SECRET_KINDS.iter().find(|(groups, resources, sub, is_any_group, _)| {
        has(resources, &object.resource)
            && (*sub == "*" || sub.as_bytes() == &*object.subresource)
            && (*is_any_group || has(groups, &object.group))
    });
    found.map_or(Bodies::Stay, |(.., bodies)| *bodies)
}

/// The paths to the secret parts of a Secret in a body. The Secret can be the whole body, an item
/// of a list, or the object in a row of a table.
static SECRET: LazyLock<Vec<Path>> = LazyLock::new(|| {
    let inside: [&[Step]; 3] = [
        &[Step::Known(b"data"), Step::Any],
        &[Step::Known(b"stringData"), Step::Any],
        // Annotations may hold a copy of the object, or values from controllers: OpenShift keeps a
        // service account's token in an annotation.
        &[Step::Known(b"metadata"), Step::Known(b"annotations"), Step::Any],
    ];
    in_bodies(&inside)
});

/// The paths to the environment variables in requests for ephemeral containers, which `kubectl
/// debug --env` sets as `kubectl exec --env` does in a URI. The response has the whole pod with its
/// other containers.
static OF_EPHEMERAL: LazyLock<Vec<Path>> = LazyLock::new(|| {
    let env = [Step::Known(b"env"), Step::Any, Step::Known(b"value")];
    let of_pod = [&[Step::Known(b"spec"), Step::Any, Step::Any], &env[..]].concat();
    // The object of the subresource before Kubernetes 1.22.
    let before = [&[Step::Known(b"ephemeralContainers"), Step::Any], &env[..]].concat();
    in_bodies(&[&of_pod, &before, &COPY])
});

/// The path to the annotations with the patches of mutating webhooks, which kube-apiserver records
/// only from level Request on. It does not lead to the annotations that name the webhooks
/// (`mutation.webhook.admission.k8s.io/`), which are recorded at every level.
const PATCHES: [Step; 2] =
    [Step::Known(b"annotations"), Step::Prefixed(b"patch.webhook.admission.k8s.io/")];

/// The path to the annotations in which webhooks and admission policies may quote a body.
const OF_ADMISSION: [Step; 2] = [Step::Known(b"annotations"), Step::OfAdmission];

/// The path to all annotations of the event.
const ANNOTATIONS: [Step; 2] = [Step::Known(b"annotations"), Step::Any];

/// Returns the wish that removes the patches of webhooks, which repeat what webhooks have put into
/// the body.
pub(super) fn patches<'w>(why: Why) -> Wish<'w> {
    Wish::new(&PATCHES, With::Drop, why)
}

pub(super) fn is_patch(annotation: &Child<'_>) -> bool {
    PATCHES[1].leads_to(annotation.name().as_deref())
}

/// The paths to `managedFields` in the request body, and those in the response body.
static OF_MANAGERS: LazyLock<[[Path; 3]; 2]> =
    LazyLock::new(|| BODIES.map(|body| in_body(body, &MANAGED_FIELDS)));

/// Makes full paths, which begin at an event, from paths that begin at an object in a body.
fn in_bodies(inside: &[&[Step]]) -> Vec<Path> {
    let of = |body| inside.iter().flat_map(move |inside| in_body(body, inside));
    BODIES.iter().flat_map(|body| of(body)).collect()
}

/// Returns the wishes that remove the managed fields from both bodies. The request body of a patch
/// keeps them, as with `omitManagedFields` in kube-apiserver, which records a patch exactly as the
/// client sent it.
pub(super) fn managed_fields<'w>(request: &Request<'_>) -> Vec<Wish<'w>> {
    let bodies = OF_MANAGERS.iter().skip(usize::from(*request.verb == *b"patch"));
    bodies.flatten().map(|path| Wish::new(path, With::Drop, Why::Lowered)).collect()
}

/// Returns `true` if `object` is a JSON object that has only known members: those of a Secret, with
/// a known `kind` if there is one. A whole body (`is_body`) may also have the members of a Status,
/// of DeleteOptions, or of a list whose items are all known. Only `metadata`, `data`, `stringData`,
/// `items`, `details`, `preconditions` and `dryRun` may be objects or arrays.
pub(super) fn is_known(object: &[u8], is_body: bool) -> bool {
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
                // Members of a Status or of DeleteOptions.
                b"details" | b"preconditions" | b"dryRun" => is_body,
                b"status" | b"message" | b"reason" | b"code" => is_body && is_plain,
                b"gracePeriodSeconds" | b"orphanDependents" | b"propagationPolicy" => {
                    is_body && is_plain
                }
                _ => false,
            }
        })
}

/// Returns wishes that remove the message and the causes from a Status that may quote the request's
/// body. They stay if the Status has a reason, [`is_the_servers`] is `true` for each of its
/// reasons, and no message is from a webhook.
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
                // A webhook can choose the reason and the text of its message, but kube-apiserver
                // puts these words before the text.
                b"message" => {
                    is_others |= text().is_some_and(|message| {
                        memchr::memmem::find(&message, b"admission webhook ").is_some()
                    });
                }
                _ => {}
            }
        }
        is_others || !has_reason
    };
    let paths = PATHS.iter().filter(|_| may_quote);
    paths.map(|path| Wish::new(path, With::Drop, Why::Redacted)).collect()
}

/// Returns `true` if kube-apiserver writes the messages with this reason and quotes no values of a
/// body in them except names and UIDs. `Conflict` gives `false`, because its messages quote keys of
/// lists, and so do `Forbidden` and `Unauthorized`, because admission policies write
/// texts with these reasons.
fn is_the_servers(reason: &[u8]) -> bool {
    matches!(
        reason,
        b"AlreadyExists"
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

pub(super) fn is_status(body: &[u8]) -> bool {
    body.first() == Some(&b'{')
        && scan::members(body).any(|member| {
            *text::unescape(member.key) == *b"kind"
                && text::string(member.value).as_deref() == Some(b"Status")
        })
}
