//! Paths through an event, from its top or from a body to a value, and what is done at their end.

use super::text;

/// The maximum number of steps in the path of a rule. The code that follows a path calls itself
/// once for each step, so this limits the depth of the recursion.
pub(super) const STEPS_MAX: usize = 64;

/// The steps that lead from the top of an event, or from a body, to a value.
pub(super) type Path = Box<[Step]>;

/// One step of a [`Path`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// To the member with this name, from a rule of the config.
    Name(Box<[u8]>),
    /// To the member with this name, a constant of the program.
    Known(&'static [u8]),
    /// To every member of an object, or to every element of an array.
    Any,
    /// To an annotation in which `kubectl apply` or a similar tool keeps a copy of the annotated
    /// object.
    CopyOfTheObject,
    /// To the members of a strategic merge patch that list elements of the list with this name.
    OfList(Box<[u8]>),
    /// To every member whose name begins with this prefix.
    Prefixed(&'static [u8]),
    /// To the annotations of an event whose names kube-apiserver does not write, so that they count
    /// as written by a webhook or an admission policy.
    OfAdmission,
}

impl Step {
    /// Returns `true` if the step leads to the member with this name, or to an element of an array
    /// if `name` is `None`.
    pub(super) fn leads_to(&self, name: Option<&[u8]>) -> bool {
        match self {
            Self::Name(own) => name == Some(own),
            Self::Known(own) => name == Some(own),
            Self::Any => true,
            Self::CopyOfTheObject => name.is_some_and(|name| {
                name.ends_with(b"last-applied-configuration") || name == b"kapp.k14s.io/original"
            }),
            Self::OfList(own) => name.is_some_and(|name| {
                let begins = [b"$setElementOrder/".as_slice(), b"$deleteFromPrimitiveList/"];
                begins.iter().any(|begin| name.strip_prefix(*begin) == Some(own))
            }),
            Self::Prefixed(prefix) => name.is_some_and(|name| name.starts_with(prefix)),
            Self::OfAdmission => name.is_some_and(|name| form(name).is_none()),
        }
    }
}

/// Returns `true` if an annotation counts as written by a webhook or an admission policy: if
/// kube-apiserver does not write an annotation with this name, or not with such a value.
pub(super) fn is_of_admission(name: &[u8], value: &[u8]) -> bool {
    !form(name).is_some_and(|form| has_form(value, form))
}

/// Returns `true` if kube-apiserver writes an annotation with this name, but not with such a value.
pub(super) fn is_forged(name: &[u8], value: &[u8]) -> bool {
    form(name).is_some_and(|form| !has_form(value, form))
}

fn has_form(value: &[u8], form: fn(&str) -> bool) -> bool {
    let text = text::string(value);
    text.is_some_and(|text| std::str::from_utf8(&text).is_ok_and(form))
}

/// Returns the check of the values that kube-apiserver (or OpenShift's OAuth server) writes under
/// the name of an annotation. `None` if it writes no annotation with this name, or if it quotes
/// bodies in it.
///
/// A webhook or an admission policy writes its own name, a `/` and a key, and its own name can be
/// `authorization.k8s.io`. Names are therefore compared as a whole. kube-apiserver keeps the first
/// value of an annotation, so nobody can replace the decision and the reason, which it writes
/// before admission. A policy can write each of the other names. It then gets through only values
/// of the same form, such as a word under a name whose values are names.
///
/// `missing-san.invalid-cert.kubernetes.io/HOST` and the same with `insecure-sha1` are not here,
/// because any key could be a host. Neither are annotations that a relay before this one has added:
/// a policy can be named `kube-audit-forwarder`, and this relay adds its own after the redaction,
/// all but the mark of [`audit::NOT_UTF8`].
///
/// Source: the calls of `AddAuditAnnotation` and `AddAnnotation` in Kubernetes 1.19 to 1.36.
fn form(name: &[u8]) -> Option<fn(&str) -> bool> {
    Some(match name {
        b"authorization.k8s.io/reason" => |_| true,
        b"authorization.k8s.io/decision" => |text| matches!(text, "allow" | "forbid"),
        b"authentication.openshift.io/decision" => {
            |text| matches!(text, "allow" | "deny" | "error")
        }
        b"apiserver.k8s.io/unsafe-delete-ignore-read-error" => str::is_empty,
        b"audit.k8s.io/truncated" | b"k8s.io/deprecated" | b"kube-audit-forwarder/invalid-utf8" => {
            |text| text == "true"
        }
        b"k8s.io/removed-release" => |text| text.bytes().all(|b| b == b'.' || b.is_ascii_digit()),
        b"apiserver.latency.k8s.io/apf-queue-wait"
        | b"apiserver.latency.k8s.io/authentication"
        | b"apiserver.latency.k8s.io/authorization"
        | b"apiserver.latency.k8s.io/decode-response-object"
        | b"apiserver.latency.k8s.io/etcd"
        | b"apiserver.latency.k8s.io/impersonation"
        | b"apiserver.latency.k8s.io/mutating-webhook"
        | b"apiserver.latency.k8s.io/response-write"
        | b"apiserver.latency.k8s.io/serialize-response-object"
        | b"apiserver.latency.k8s.io/total"
        | b"apiserver.latency.k8s.io/transform-response-object"
        | b"apiserver.latency.k8s.io/validating-webhook" => is_duration,
        b"authentication.k8s.io/issued-credential-id"
        | b"authentication.kubernetes.io/issued-credential-id" => {
            |text| text.strip_prefix("JTI=").is_some_and(is_name)
        }
        b"authentication.k8s.io/stale-token" => is_stale_token,
        b"authentication.k8s.io/legacy-token"
        | b"authentication.k8s.io/legacy-token-autogenerated-secret"
        | b"authentication.k8s.io/legacy-token-invalidated"
        | b"authentication.k8s.io/legacy-token-manual-secret"
        | b"authentication.openshift.io/username"
        | b"pod-security.kubernetes.io/enforce-policy"
        | b"pod-security.kubernetes.io/exempt" => is_name,
        _ => {
            let (webhooks, call) = name.split_at(memchr::memchr(b'/', name)?);
            let numbers = call.strip_prefix(b"/round_")?;
            let at = memchr::memmem::find(numbers, b"_index_")?;
            let number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            if !number(numbers.get(..at)?) || !number(numbers.get(at + "_index_".len()..)?) {
                return None;
            }
            match webhooks {
                b"failed-open.mutation.webhook.admission.k8s.io"
                | b"failed-open.validating.webhook.admission.k8s.io" => is_name,
                b"mutation.webhook.admission.k8s.io" => is_mutation,
                _ => return None,
            }
        }
    })
}

/// Returns `true` if the text has only characters that names of objects and users usually have.
fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte))
}

/// Returns `true` for a duration as Go writes it, such as `1m2.5s`.
fn is_duration(text: &str) -> bool {
    text.ends_with('s')
        && text.chars().all(|char| char.is_ascii_digit() || ".hmnsuµ".contains(char))
}

/// Returns `true` for a text such as
/// `subject: system:serviceaccount:NAMESPACE:NAME, seconds after warning threshold: 1`.
fn is_stale_token(text: &str) -> bool {
    let parts = text.split_once(", seconds after warning threshold: ");
    parts.is_some_and(|(subject, seconds)| {
        subject.strip_prefix("subject: ").is_some_and(is_name)
            && seconds.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Returns `true` for the JSON in which kube-apiserver says whether a webhook has changed an
/// object.
fn is_mutation(text: &str) -> bool {
    let parts = || {
        let (configuration, rest) =
            text.strip_prefix(r#"{"configuration":""#)?.split_once(r#"","webhook":""#)?;
        let (webhook, mutated) = rest.split_once(r#"","mutated":"#)?;
        Some(is_name(configuration) && is_name(webhook) && matches!(mutated, "true}" | "false}"))
    };
    parts().unwrap_or_default()
}

/// How a value that must not leave the relay is redacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// The value is removed together with its name.
    Drop,
    /// The value is replaced by its SHA-256 hash. A reader still sees if two values are equal, and
    /// can guess values and compare hashes, so a value that is easy to guess is not safe.
    Sha256,
}
