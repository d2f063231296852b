//! The status page: one file, sent with a policy under which a browser runs the script and the style that are in it, and
//! nothing else, and asks nobody but the relay.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header;
use hyper::header::HeaderValue;
use ring::digest;

const PAGE: &str = include_str!("page.html");

/// `img-src data:` is for its icon: without one a browser asks for `/favicon.ico`.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (script, style) = (source("script"), source("style"));
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    // It is ASCII without control characters; were it not, nothing would be allowed.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// What a policy calls the only element of this name (CSP Level 3 §2.3.1).
fn source(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let content = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let content = content.map(|(content, _)| content).unwrap_or_default();
    let hash = digest::digest(&digest::SHA256, content.as_bytes());
    format!("'sha256-{}'", BASE64_STANDARD.encode(hash))
}

/// The answer to a GET of it.
pub(super) fn response() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_the_relay_is_never_markup() {
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "createContextualFragment",
            "setHTML",
            "srcdoc",
            "eval(",
            "Function(",
            "javascript:",
        ] {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        // Nor do attributes run scripts or carry styles, which the policy would forbid.
        for attribute in [" onclick=", " onload=", " onerror=", " style="] {
            assert!(!PAGE.contains(attribute), "{attribute}");
        }
    }

    #[test]
    fn it_is_one_file_that_names_no_other_host() {
        let addresses: Vec<_> = PAGE.match_indices("://").collect();
        // The name space of the icon, which nobody asks.
        assert_eq!(addresses.len(), 1);
        assert!(PAGE.contains("xmlns='http://www.w3.org/2000/svg'"));
        assert!(!PAGE.contains("url(") && !PAGE.contains("@import"));
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(PAGE.matches(&format!("</{element}>")).count(), 1, "{element}");
        }
    }

    #[test]
    fn the_policy_names_the_script_and_the_style() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert_eq!(policy.matches("'sha256-").count(), 2);
        // SHA-256 of nothing: an element was not found.
        assert!(!policy.contains("47DEQpj8HBSa"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
