//! The floor of an advice: the events that it never drops, so that they stay at least at the level
//! Metadata. The floor is fixed, and no option lowers it.
//!
//! - requests that change something: every verb but get, list and watch;
//! - Secrets and ConfigMaps;
//! - RBAC, and what else is in `rbac.authorization.k8s.io`;
//! - tokens: `serviceaccounts/token`, TokenReviews, and what else is in `authentication.k8s.io`;
//! - exec, attach, portforward and proxy, by any verb;
//! - requests that impersonate somebody;
//! - responses with the status 401 or 403;
//! - `system:anonymous`, the group `system:unauthenticated`, and requests without a user;
//! - requests whose URL is not that of the object in the event.
//!
//! Deletes of events change something, and are therefore among them.

use crate::audit::request::Request;
use crate::audit::scan;

/// The verbs that a rule of an advice may drop.
pub(super) const READS: [&str; 3] = ["get", "list", "watch"];

/// The resources whose bodies hold secrets. A policy that records bodies keeps these at Metadata.
/// Each is an API group with its resources.
pub(super) const SECRET: [(&str, &[&str]); 3] = [
    ("", &["secrets", "configmaps", "serviceaccounts/token"]),
    ("authentication.k8s.io", &["tokenreviews"]),
    ("oauth.openshift.io", &["oauthaccesstokens", "oauthauthorizetokens"]),
];

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
    let is_sensitive = request.object.as_ref().is_some_and(|object| {
        matches!(&*object.resource, b"secrets" | b"configmaps" | b"tokenreviews")
            || matches!(&*object.group, b"rbac.authorization.k8s.io" | b"authentication.k8s.io")
            || SUBRESOURCES.iter().any(|sub| *object.subresource == *sub.as_bytes())
            || request.uri.location().is_none()
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

/// Returns `true` if the request is about one of [`SECRET`].
pub(super) fn is_secret(request: &Request<'_>) -> bool {
    let Some(object) = &request.object else { return false };
    SECRET.iter().any(|(group, kinds)| {
        let kind = [&*object.resource, &*object.subresource].join(&b'/');
        let kind = kind.strip_suffix(b"/").unwrap_or(&kind);
        *object.group == *group.as_bytes() && kinds.iter().any(|own| own.as_bytes() == kind)
    })
}
