//! Reads the namespace and the name of a request's object from its URL.
//!
//! The URL is read as Kubernetes reads it in `RequestInfoFactory.NewRequestInfo`
//! (`pkg/endpoints/request/requestinfo.go`), the function whose result kube-apiserver's own audit
//! policy sees. `objectRef` cannot replace the URL. If the URL lacks the namespace or the name,
//! kube-apiserver takes the missing one from the request's body, even for objects of no namespace:
//! the sender of the request chooses it.
//!
//! The event's `requestURI` is Go's `URL.RequestURI()`. The scheme and host of an absolute URI are
//! removed. Characters that a path must not contain are percent-encoded, the `#` of a fragment too.
//! Decoding the path once gives the path that kube-apiserver divides into parts. Slashes at both
//! ends do not count, two slashes in the middle have an empty part between them, an encoded slash
//! divides too, and the case of letters matters.

use std::borrow::Cow;
use std::ops::Range;

use super::{Text, Uri};

/// The namespace and the name of the object that a request's URL is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location<'a> {
    /// The path of the URL, percent-decoded and without the query.
    path: Text<'a>,
    /// The byte range of the namespace in `path`; may be empty.
    namespace: Range<usize>,
    /// The byte range of the object's name in `path`; may be empty.
    name: Range<usize>,
}

impl<'a> Location<'a> {
    /// Reads a URI. `None` if, to kube-apiserver, a request with this URI is not about an object.
    pub(super) fn of(uri: Uri<'a>) -> Option<Self> {
        let path = decoded(uri)?;
        if path.first() != Some(&b'/') {
            return None;
        }
        let (namespace, name) = locate(&path)?;
        Some(Self { path, namespace, name })
    }

    /// Returns the namespace, which for a namespace object is its name. It is empty if the request
    /// is about no namespace, or about all namespaces.
    pub fn namespace(&self) -> &[u8] {
        self.path.get(self.namespace.clone()).unwrap_or_default()
    }

    /// Returns the name; empty if the URL has none, as when an object is created or many are
    /// listed.
    pub fn name(&self) -> &[u8] {
        self.path.get(self.name.clone()).unwrap_or_default()
    }
}

/// Returns the path of a URI, percent-decoded. `None` if it has an invalid escape, of
/// percent-encoding or of JSON. Go's `url.ParseRequestURI` refuses invalid percent-encoding, so
/// kube-apiserver makes no event for such a URI.
fn decoded(uri: Uri<'_>) -> Option<Text<'_>> {
    // Most URIs have no escape before the query. The path is then borrowed from the event.
    let raw = uri.0;
    match memchr::memchr3(b'?', b'%', b'\\', raw) {
        None => return Some(Cow::Borrowed(raw)),
        Some(end) if raw.get(end) == Some(&b'?') => return raw.get(..end).map(Cow::Borrowed),
        Some(_) => {}
    }
    let path = uri.path();
    // A backslash that is still in the path belongs to an escape that stands for no character.
    if memchr::memchr(b'\\', &path).is_some() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = &*path;
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        if first != b'%' {
            plain.push(first);
            continue;
        }
        let [high, low, behind @ ..] = behind else { return None };
        plain.push(digit(*high)? << 4 | digit(*low)?);
        rest = behind;
    }
    Some(Cow::Owned(plain))
}

/// Returns the ranges of the namespace and name in `path`; `None` if it is not about an object.
fn locate(path: &[u8]) -> Option<(Range<usize>, Range<usize>)> {
    let mut parts = Parts::new(path);
    let text = |part: &Range<usize>| path.get(part.clone()).unwrap_or_default();
    match text(&parts.next()?) {
        b"api" => {}
        b"apis" => {
            let _group = parts.next()?;
        }
        _ => return None,
    }
    let _version = parts.next()?;
    let mut first = parts.next()?;
    if matches!(text(&first), b"proxy" | b"watch") {
        first = parts.next()?;
    }
    if text(&first) != b"namespaces" {
        return Some((0..0, parts.next().unwrap_or_default()));
    }
    let Some(namespace) = parts.next() else { return Some((0..0, 0..0)) };
    let name = match parts.next() {
        Some(resource) if !matches!(text(&resource), b"status" | b"finalize") => {
            parts.next().unwrap_or_default()
        }
        Some(_) | None => namespace.clone(),
    };
    Some((namespace, name))
}

/// An iterator over the byte ranges of a path's parts, which slashes separate.
struct Parts<'a> {
    path: &'a [u8],
    /// The offset in `path` of the next part; greater than its length if there is none.
    at: usize,
}

impl<'a> Parts<'a> {
    fn new(path: &'a [u8]) -> Self {
        let is_slash = |byte: &&u8| **byte == b'/';
        let at = path.iter().take_while(is_slash).count();
        let behind = path.iter().rev().take_while(is_slash).count();
        match path.len().checked_sub(behind) {
            Some(end) if end > at => Self { path: path.get(..end).unwrap_or_default(), at },
            // A path of slashes only has no parts.
            _ => Self { path: &[], at: 1 },
        }
    }
}

impl Iterator for Parts<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let rest = self.path.get(start..)?;
        let end = memchr::memchr(b'/', rest).map_or(self.path.len(), |length| start + length);
        self.at = end + 1;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the namespace and the name that are read from `uri`, the bytes between the quotes of
    /// `requestURI`.
    fn located(uri: &str) -> Option<(String, String)> {
        let location = Uri::written(uri.as_bytes()).location()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some((text(location.namespace()), text(location.name())))
    }

    #[test]
    fn the_url_says_namespace_and_name_as_kube_apiserver_reads_them() {
        for (uri, namespace, name) in [
            ("/api/v1/pods", "", ""),
            ("/api/v1/pods?x=/namespaces/quiet/pods/p", "", ""),
            ("/api/v1/nodes/n", "", "n"),
            ("/api/v1/nodes/n/status", "", "n"),
            ("/api/v1/nodes/n/proxy/namespaces/quiet/x", "", "n"),
            ("/api/v1/namespaces", "", ""),
            ("/api/v1/namespaces/", "", ""),
            ("/api/v1/namespaces/quiet", "quiet", "quiet"),
            ("/api/v1/namespaces/quiet/", "quiet", "quiet"),
            ("/api/v1/namespaces/quiet/status", "quiet", "quiet"),
            ("/api/v1/namespaces/quiet/finalize", "quiet", "quiet"),
            ("/api/v1/namespaces/quiet/finalize/x", "quiet", "quiet"),
            ("/api/v1/namespaces/quiet/Status/x", "quiet", "x"),
            ("/api/v1/namespaces/quiet/pods", "quiet", ""),
            ("/api/v1/namespaces/quiet/pods/p", "quiet", "p"),
            ("/api/v1/namespaces/quiet/pods/p/log?follow=true", "quiet", "p"),
            ("/apis/apps/v1/namespaces/quiet/deployments/d/scale", "quiet", "d"),
            ("/apis/apps/v1/deployments", "", ""),
            ("/apis/apps/namespaces/namespaces/quiet/x/y", "quiet", "y"),
            ("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "", ""),
            ("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/evil", "", "evil"),
            // Some paths have an old verb, `watch` or `proxy`, before the resource.
            ("/api/v1/watch/namespaces/quiet/pods/p", "quiet", "p"),
            ("/api/v1/watch/pods", "", ""),
            ("/api/v1/proxy/namespaces/quiet/pods/p/x/y", "quiet", "p"),
            ("/api/v1/watch/watch/namespaces", "", "namespaces"),
            ("/api/watch/namespaces/quiet/pods", "quiet", ""),
            ("/apis/apps/v1/proxy/namespaces/quiet", "quiet", "quiet"),
            // Slashes at both ends do not count, and two slashes in the middle have an empty part
            // between them.
            ("//api/v1/namespaces/quiet/pods/p", "quiet", "p"),
            ("///api/v1/namespaces/quiet/pods///", "quiet", ""),
            ("/api//v1/namespaces/quiet/pods", "", "namespaces"),
            ("/api/v1//namespaces/quiet/pods", "", "namespaces"),
            ("/api/v1/namespaces//pods/p", "", "p"),
            ("/api/v1/namespaces//quiet/pods", "", "pods"),
            ("/api/v1/namespaces/quiet//p", "quiet", "p"),
            ("/api/v1/./namespaces/quiet/pods", "", "namespaces"),
            ("/api/v1/x/../namespaces/quiet/pods", "", ".."),
            // An encoded slash divides, and nothing is decoded twice.
            ("/api/v1/%6eamespaces/%71uiet/pods/%70", "quiet", "p"),
            ("/api/v1/namespaces%2Fquiet%2fpods%2fp", "quiet", "p"),
            ("/%61pi/v1/namespaces/quiet/pods%2F", "quiet", ""),
            ("/api/v1/namespaces/qu%2569et/pods", "qu%69et", ""),
            ("/api/v1/namespaces/quiet%3Fx/pods", "quiet?x", ""),
            ("/api/v1/namespaces/a+b/pods", "a+b", ""),
            ("/api/v1/namespaces/%C3%A9/pods/%FF", "é", "\u{fffd}"),
            ("/api/v1/pods%23/namespaces/quiet", "", "namespaces"),
            ("/api/v1/pods;x=/namespaces/quiet", "", "namespaces"),
            // Escapes of JSON are resolved before percent-encoding.
            (r"/api/v1/n\u0061mespaces/quiet/pods", "quiet", ""),
            (r"/api/v1/namespaces/a\u0026b/pods?c\u0026d", "a&b", ""),
            (r"/api/v1/pods\u003f/namespaces/quiet/", "", ""),
            (r"/api/v1/namespaces/\u002571uiet/pods", "quiet", ""),
            (r"\/api\/v1\/namespaces\/quiet\/pods", "quiet", ""),
            // The case of letters matters.
            ("/api/v1/Namespaces/quiet/pods", "", "quiet"),
            ("/api/v1/namespaces/Quiet/pods", "Quiet", ""),
        ] {
            let expected = Some((namespace.to_owned(), name.to_owned()));
            assert_eq!(located(uri), expected, "{uri}");
        }
    }

    #[test]
    fn what_kube_apiserver_does_not_read_as_the_url_of_an_object_has_no_location() {
        // Go refuses the last ones that begin with `/`.
        let uris = ", /, ///, *, ?, /?/api/v1/namespaces/quiet/pods, /api, /api/v1, /api/v1/, \
             /api/v1/watch, /api/v1/proxy/, /apis/apps/v1, /apis/apps/v1/, /apis/apps/v1/watch, \
             /API/v1/namespaces/quiet/pods, /oapi/v1/namespaces/quiet/pods, \
             /prefix/api/v1/namespaces/quiet/pods, /healthz, api/v1/namespaces/quiet/pods, \
             %2Fapi/v1/namespaces/quiet/pods, http://host/api/v1/namespaces/quiet/pods, \
             /api/v1/namespaces/quiet/pods/%, /api/v1/namespaces/quiet/pods/%2, \
             /api/v1/namespaces/quiet/pods/%zz, /api/v1/namespaces/%2 quiet/pods, \
             /api/v1/namespaces/quiet/\\ud800/x, REDACTED";
        for uri in uris.split(", ") {
            assert_eq!(located(uri), None, "{uri}");
        }
    }

    #[test]
    fn a_usual_path_is_not_copied() {
        for uri in [
            "/api/v1/namespaces/quiet/pods/p",
            r"/api/v1/namespaces/quiet/pods?labelSelector=a%3Db\u0026watch=true",
        ] {
            let location = Uri::written(uri.as_bytes()).location().unwrap();
            assert!(matches!(location.path, Cow::Borrowed(_)), "{uri}");
            assert_eq!(location.namespace(), b"quiet");
        }
    }
}
