//! Paths through an event, from its top or from a body to a value, and what is done at their end.

/// The greatest number of steps in a path. The limit bounds the depth of the recursion, because the
/// code that follows a path calls itself once for each step.
pub(super) const STEPS_MAX: usize = 64;

/// The way to a value: the steps that lead to it from the top of an event or from a body.
pub(super) type Path = Box<[Step]>;

/// One step on the way from the top of an event, or from a body, to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The step leads to the member with this name. The name comes from a rule of the config.
    Name(Box<[u8]>),
    /// The step leads to the member with this name. The name is a constant of the program.
    Known(&'static [u8]),
    /// The step leads to every member of an object, or to every element of an array.
    Any,
    /// The step leads to an annotation in which `kubectl apply` or a similar tool keeps a copy of
    /// the annotated object.
    CopyOfTheObject,
    /// The step leads to every member whose name begins with this prefix.
    Prefixed(&'static [u8]),
    /// The step leads to each annotation of an event that a webhook or an admission policy may have
    /// written. These are all annotations except for those that are known to be kube-apiserver's or
    /// this relay's own.
    OfAdmission,
}

impl Step {
    /// Returns `true` if the step leads to the member with this name or, if `name` is `None`, to an
    /// element of an array.
    pub(super) fn leads_to(&self, name: Option<&[u8]>) -> bool {
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

/// The names of the annotations whose text is always written by kube-apiserver or by this relay. A
/// name that ends in a slash is a prefix: all names that begin with it are meant.
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

/// Returns `true` if a webhook or an admission policy may have written the annotation with this
/// name.
pub(super) fn is_of_admission(name: &[u8]) -> bool {
    !OF_THE_SERVER.iter().any(|own| match own.ends_with(b"/") {
        true => name.starts_with(own),
        false => name == *own,
    })
}

/// The way in which a value that must not leave the relay is redacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// The value is removed together with its name.
    Drop,
    /// The value is replaced by its SHA-256 hash. A reader still sees if two values are equal. A
    /// reader can also guess values and compare hashes, so that an easy value is not safe.
    Sha256,
}
