//! Helpers that the tests of policies share: they make requests from a few words, and read the
//! policies of the repository.

mod corpus;
mod explained;
mod random;
mod reading;
mod upstream;

use std::borrow::Cow;

use super::Policy;
use audit::request::{Object, Request, Text, Uri, User};

fn text(text: &str) -> Text<'_> {
    Cow::Borrowed(text.as_bytes())
}

/// Returns a request at level RequestResponse and stage ResponseComplete, without a user and
/// without an object.
fn asked<'a>(verb: &'a str, uri: &'a str) -> Request<'a> {
    Request {
        level: text("RequestResponse"),
        stage: text("ResponseComplete"),
        uri: Uri::written(uri.as_bytes()),
        verb: text(verb),
        ..Request::default()
    }
}

fn user<'a>(name: &'a str, groups: &[&'a str]) -> Option<User<'a>> {
    Some(User { name: text(name), groups: groups.iter().map(|group| text(group)).collect() })
}

/// Makes an object from `namespace/resource/name/subresource`. Every part but the resource may be
/// empty.
fn object<'a>(group: &'a str, path: &'a str) -> Option<Object<'a>> {
    let mut parts = path.split('/').map(text).chain(std::iter::repeat(text("")));
    let mut next = || parts.next().unwrap_or_default();
    let (namespace, resource, name, subresource) = (next(), next(), next(), next());
    Some(Object { group: text(group), resource, subresource, namespace, name })
}

/// Reads a policy with these rules, which must have no mistakes.
fn rules(rules: &str) -> Policy {
    let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n{rules}");
    Policy::read(&text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

fn shipped(name: &str) -> Policy {
    let folder = testing::repository("tests/policies");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    Policy::read(&text).unwrap_or_else(|problems| panic!("{name}: {problems:?}"))
}
