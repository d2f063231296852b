//! The members `extra` of the users of an event.
//!
//! A client that may impersonate chooses the names in `extra` by its headers `Impersonate-Extra-…`:
//! an empty one, `a` beside `a.b`, or a thousand. A store that makes a field of each name refuses
//! such an event, or each event after it. Only names of authenticators that are in use therefore
//! stay names; all other members are in one string, [`OTHER`].

use std::ops::Range;

use super::json::{Object, place, write_string};
use audit::scan;
use audit::scan::Member;

/// The name of the member that holds all members with other names, as the text of a JSON object.
const OTHER: &[u8] = b"other";

/// The names of Kubernetes, OpenShift, EKS, GKE and AKS, and `reason`, in which people say why they
/// impersonate somebody. No name is another one up to one of its dots, and none is [`OTHER`].
const KNOWN: [&[u8]; 16] = [
    b"accessKeyId",
    b"arn",
    b"authentication.kubernetes.io/credential-id",
    b"authentication.kubernetes.io/node-name",
    b"authentication.kubernetes.io/node-uid",
    b"authentication.kubernetes.io/pod-name",
    b"authentication.kubernetes.io/pod-uid",
    b"canonicalArn",
    b"iam.gke.io/user-assertion",
    b"oid",
    b"principalId",
    b"reason",
    b"scopes.authorization.openshift.io",
    b"sessionName",
    b"sigs.k8s.io/aws-iam-authenticator/principalId",
    b"user-assertion.cloud.google.com",
];

fn is_known(member: &Member<'_>) -> bool {
    KNOWN.contains(&&*member.name())
}

/// Returns the values of `extra` in a user that have members with other than known names.
pub(super) fn in_user(user: &[u8]) -> impl Iterator<Item = &[u8]> {
    let user = if user.first() == Some(&b'{') { user } else { b"{}" };
    let extras = scan::members(user).filter(|member| *member.name() == *b"extra");
    extras.map(|member| member.value).filter(|extra| has_others(extra))
}

fn has_others(extra: &[u8]) -> bool {
    extra.first() == Some(&b'{') && scan::members(extra).any(|member| !is_known(&member))
}

/// Appends a user to `out`, with the members of its `extra` that have unknown names in a string.
pub(super) fn write_user(user: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    for extra in in_user(user) {
        let Range { start, end } = place(user, extra);
        out.extend_from_slice(user.get(at..start).unwrap_or_default());
        write(extra, out);
        at = end;
    }
    out.extend_from_slice(user.get(at..).unwrap_or_default());
}

/// Appends the value of `extra` to `out`, with the members that have unknown names in a string.
pub(super) fn write(extra: &[u8], out: &mut Vec<u8>) {
    if !has_others(extra) {
        out.extend_from_slice(extra);
        return;
    }
    let mut text = Vec::new();
    let mut others = Object::begin(&mut text);
    for member in scan::members(extra).filter(|member| !is_known(member)) {
        others.key(member.key).extend_from_slice(member.value);
    }
    others.end();
    let mut written = Object::begin(out);
    for member in scan::members(extra).filter(is_known) {
        written.key(member.key).extend_from_slice(member.value);
    }
    write_string(&text, written.key(OTHER));
    written.end();
}
