//! Paths through an event, from its top or from a body to a value, and what is done at their end.

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
    /// To the annotations of an event that count as written by a webhook or an admission policy:
    /// all but those in [`OF_THE_SERVER`].
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
            Self::OfAdmission => name.is_some_and(is_of_admission),
        }
    }
}

/// The annotations that kube-apiserver and this relay write, and in which they quote no body. A
/// webhook or policy with such a name could write them too. A name that ends in `/` is a prefix.
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

pub(super) fn is_of_admission(name: &[u8]) -> bool {
    !OF_THE_SERVER.iter().any(|own| match own.ends_with(b"/") {
        true => name.starts_with(own),
        false => name == *own,
    })
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
