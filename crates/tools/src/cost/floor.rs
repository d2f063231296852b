//! The floor of an advice: the events that it never drops, so that they stay at least at the level
//! Metadata. The floor is fixed, and no option lowers it.
//!
//! - requests that change something: every verb but get, list and watch;
//! - Secrets and ConfigMaps;
//! - RBAC: everything in `rbac.authorization.k8s.io` and `authorization.openshift.io`;
//! - tokens: `serviceaccounts/token`, TokenReviews, what else is in `authentication.k8s.io`, and
//!   all other kinds of [`redact::secret_kinds`];
//! - exec, attach, portforward and proxy, by any verb;
//! - requests that impersonate somebody;
//! - responses with the status 401 or 403;
//! - `system:anonymous`, the group `system:unauthenticated`, and requests without a user;
//! - requests whose URL is not that of the object in the event, or of an object that it lacks.
//!
//! Deletes of events change something, and are therefore among them.

use std::sync::LazyLock;

use audit::request::Request;
use audit::scan;
use transform::policy::GroupResources;
use transform::redact;

/// The verbs that a rule of an advice may drop.
pub(super) const READS: [&str; 3] = ["get", "list", "watch"];

/// The API groups of which nothing is dropped.
const GROUPS: [&str; 3] =
    ["rbac.authorization.k8s.io", "authorization.openshift.io", "authentication.k8s.io"];

/// The subresources by which a client reaches into pods, or gets a token.
const SUBRESOURCES: [&str; 5] = ["token", "exec", "attach", "portforward", "proxy"];

/// Returns `true` if the request changes nothing.
pub(super) fn is_read(request: &Request<'_>) -> bool {
    READS.iter().any(|read| *request.verb == *read.as_bytes())
}

/// Returns `true` if no advice may drop the event.
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
    let [impersonated, status] = scan::firsts(event, ["impersonatedUser", "responseStatus"]);
    let code = status.filter(|status| status.first() == Some(&b'{'));
    let code = code.and_then(|status| scan::member(status, "code"));
    !is_read(request)
        || is_of_nobody
        || is_sensitive
        || impersonated.is_some_and(|user| user != b"null")
        || matches!(code, Some(b"401" | b"403"))
}

/// The kinds of objects whose bodies hold secrets. A policy that records bodies keeps these
/// at Metadata.
pub(super) static SECRET_KINDS: LazyLock<Vec<GroupResources>> = LazyLock::new(|| {
    let configmaps = ("", vec!["configmaps/*".to_owned()]);
    let kinds = [configmaps].into_iter().chain(redact::secret_kinds());
    let kinds = kinds.map(|(group, resources)| (group.to_owned(), resources));
    kinds
        .map(|(group, resources)| GroupResources { group, resources, ..Default::default() })
        .collect()
});
