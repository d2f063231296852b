//! The floor of an advice: the events that it never drops, so that they stay at least at the level
//! Metadata. The floor is fixed, and no option lowers it.
//!
//! - requests that change something, except [three](verbs) that do not show what somebody did:
//!   updates of Leases, `create` and `patch` of events in the core group, and `deletecollection` of
//!   anything but events. Even these are dropped only for the cluster's own
//!   [components](is_component), and not for members of `system:masters` except `system:apiserver`;
//! - Secrets and ConfigMaps;
//! - RBAC: everything in `rbac.authorization.k8s.io` and `authorization.openshift.io`;
//! - tokens: `serviceaccounts/token`, everything in `authentication.k8s.io`, such as TokenReviews,
//!   and the other resources of [`redact::secret_kinds`];
//! - exec, attach, portforward and proxy, by any verb;
//! - requests that impersonate somebody;
//! - responses with the status 401 or 403;
//! - `system:anonymous`, the group `system:unauthenticated`, and requests without a user;
//! - requests whose URL does not belong to the object in the event, or belongs to an object
//!   although the event has none.
//!
//! Every delete of events, also with `deletecollection`, is above the floor.
//!
//! # Namespaces that begin with `openshift-`
//!
//! On OpenShift, only a cluster's administrator can make such a namespace: requests for projects of
//! such names are refused. On other clusters, everybody who may make namespaces can make such a
//! namespace, and could hide a service account in it. Therefore service accounts of such namespaces
//! count as components only if the input [shows](shows_openshift) that the cluster is OpenShift. A
//! cluster on which somebody has installed OpenShift's resources looks the same, so each rule about
//! such an account tells the operator when to delete the rule.

use std::sync::LazyLock;

use audit::request::{Request, code};
use audit::scan;
use transform::policy::GroupResources;
use transform::redact;

/// The verbs of reads. A rule that drops reads lists all three.
pub(super) const READS: [&str; 3] = ["get", "list", "watch"];

/// The API groups of which no request is dropped.
const GROUPS: [&str; 3] =
    ["rbac.authorization.k8s.io", "authorization.openshift.io", "authentication.k8s.io"];

/// The subresources with which a client reaches into pods or gets a token.
const SUBRESOURCES: [&str; 5] = ["token", "exec", "attach", "portforward", "proxy"];

/// Returns the verbs of the rule that may drop requests like this one. `None` if no rule may.
pub(super) fn verbs(request: &Request<'_>) -> Option<&'static [&'static str]> {
    if READS.iter().any(|read| *request.verb == *read.as_bytes()) {
        return Some(&READS);
    }
    let object = request.object.as_ref().filter(|object| object.subresource.is_empty())?;
    match (&*request.verb, &*object.group, &*object.resource) {
        (b"update", b"coordination.k8s.io", b"leases") => Some(&["update"]),
        (b"create" | b"patch", b"", b"events") => Some(&["create", "patch"]),
        (b"deletecollection", _, resource) if resource != b"events" => Some(&["deletecollection"]),
        _ => None,
    }
}

/// The prefix of the names of kubelets, which count as the group `system:nodes`.
pub(super) const KUBELET: &[u8] = b"system:node:";

/// The prefix of the user names of service accounts in kube-system. These accounts, and those with
/// the prefix [`OPENSHIFT`], count as components.
const KUBE_SYSTEM: &str = "system:serviceaccount:kube-system:";
const OPENSHIFT: &str = "system:serviceaccount:openshift-";

/// Returns `true` if this user counts as a component of the cluster whose writes may be dropped.
/// `system:admin` (the administrator on OpenShift and k3s) and `system:bootstrap:…` (anybody with a
/// token to join a node) are not components.
pub(super) fn is_component(name: &[u8]) -> bool {
    let is_of = |prefix: &str| name.starts_with(prefix.as_bytes());
    match is_of("system:serviceaccount:") {
        true => is_of(KUBE_SYSTEM) || is_of(OPENSHIFT),
        false => {
            let others = ["system:admin", "system:anonymous", "system:unauthenticated"];
            is_of("system:")
                && !is_of("system:bootstrap")
                && !others.iter().any(|other| *name == *other.as_bytes())
        }
    }
}

/// Returns `true` if a rule about this component needs an input that shows OpenShift.
pub(super) fn needs_openshift(name: &str) -> bool {
    name.starts_with(OPENSHIFT)
}

/// Describes the component in a rule about its writes.
pub(super) fn concerned(name: &str) -> &'static str {
    match name {
        "system:nodes" => "the kubelets, as members of the group system:nodes",
        _ if name.starts_with(KUBE_SYSTEM) => "a service account of kube-system",
        _ if needs_openshift(name) => {
            "a service account of a namespace openshift-…; delete\n# this rule where others than the \
             administrators may make such namespaces"
        }
        _ => "a component of the control plane",
    }
}

/// Returns `true` if the event shows that the cluster is OpenShift: a request for an object of
/// `config.openshift.io` had the status 200. Only an administrator can install this group.
pub(super) fn shows_openshift(event: &[u8], request: &Request<'_>) -> bool {
    let is_config = |group: &[u8]| group == b"config.openshift.io";
    request.object.as_ref().is_some_and(|object| is_config(&object.group))
        && code(event) == Some(200)
}

/// Returns `true` if no advice may drop the event. The caller also has to check [`is_component`].
pub(super) fn is_above(event: &[u8], request: &Request<'_>) -> bool {
    let is_of_nobody = request.user.as_ref().is_none_or(|user| {
        *user.name == *b"system:anonymous"
            || user.groups.iter().any(|group| **group == *b"system:unauthenticated")
    });
    let has_location = request.uri.location().is_some();
    let is_sensitive = request.object.as_ref().map_or(has_location, |object| {
        let is_in = |list: &[&str], text: &[u8]| list.iter().any(|own| own.as_bytes() == text);
        redact::is_secret(object)
            || is_in(&["secrets", "configmaps"], &object.resource)
            || is_in(&GROUPS, &object.group)
            || is_in(&SUBRESOURCES, &object.subresource)
            || !has_location
    });
    // The administrators' group. kube-apiserver's requests to itself have this group too.
    let is_master = request.user.as_ref().is_some_and(|user| {
        *user.name != *b"system:apiserver"
            && user.groups.iter().any(|group| **group == *b"system:masters")
    });
    let [impersonated] = scan::firsts(event, ["impersonatedUser"]);
    let verbs = verbs(request);
    verbs.is_none()
        || verbs != Some(&READS) && is_master
        || is_of_nobody
        || is_sensitive
        || impersonated.is_some_and(|user| user != b"null")
        || matches!(code(event), Some(401 | 403))
}

/// The resources whose bodies hold secrets. A policy of an advice never records these bodies.
pub(super) static SECRET_KINDS: LazyLock<Vec<GroupResources>> = LazyLock::new(|| {
    let configmaps = ("", vec!["configmaps/*".to_owned()]);
    let kinds = [configmaps].into_iter().chain(redact::secret_kinds());
    let kinds = kinds.map(|(group, resources)| (group.to_owned(), resources));
    kinds
        .map(|(group, resources)| GroupResources { group, resources, ..Default::default() })
        .collect()
});
