//! The status page: a single HTML document, made of the files in `page/` and of the thresholds by
//! which the relay judges itself. Its Content-Security-Policy allows only the script and the style
//! in that document, and requests of the script only to the relay.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{Response, header};

use telemetry::status::thresholds::{ALL_DROPPED, QUEUE_NEARLY_FULL};

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let thresholds =
        format!("const NEARLY_FULL = {QUEUE_NEARLY_FULL}, ALL_DROPPED = {ALL_DROPPED};\n");
    let script = [
        "'use strict';\n",
        &thresholds,
        include_str!("page/words.js"),
        include_str!("page/nodes.js"),
        include_str!("page/memory.js"),
        include_str!("page/verdict.js"),
        include_str!("page/chart.js"),
        include_str!("page/flow.js"),
        include_str!("page/outputs.js"),
        include_str!("page/rest.js"),
        include_str!("page/volume.js"),
        include_str!("page/ask.js"),
    ]
    .join("\n");
    let (head, body) = (include_str!("page/head.html"), include_str!("page/body.html"));
    let style = include_str!("page/style.css");
    format!("{head}<style>\n{style}</style>\n{body}<script>\n{script}</script>\n</body>\n</html>\n")
});

/// The Content-Security-Policy of the status page. `img-src data:` allows the embedded icon,
/// because browsers request `/favicon.ico` for a page without an icon.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (script, style) = (source("script"), source("style"));
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    // The policy is always ASCII without control characters. If it were not, the browser would be
    // allowed nothing.
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// Returns the CSP source expression `'sha256-…'` (CSP Level 3 §2.3.1), which contains the hash of
/// an element of the page. `element` is `script` or `style`; the page has only one of each.
fn source(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let content = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let content = content.map(|(content, _)| content).unwrap_or_default();
    let hash = digest::digest(&digest::SHA256, content.as_bytes());
    format!("'sha256-{}'", BASE64_STANDARD.encode(hash))
}

pub(super) fn response() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(PAGE.as_str()));
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
        let forbidden = "innerHTML outerHTML insertAdjacentHTML document.write DOMParser \
             createContextualFragment setHTML srcdoc eval( Function( javascript:";
        for forbidden in forbidden.split(' ') {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        // Attributes must not run scripts or carry styles either: the policy would forbid them.
        for attribute in [" onclick=", " onload=", " onerror=", " style="] {
            assert!(!PAGE.contains(attribute), "{attribute}");
        }
    }

    #[test]
    fn it_is_one_document_that_names_no_other_host() {
        // The only address is the XML name space of the icon and of the charts, which no browser
        // fetches.
        let space = "http://www.w3.org/2000/svg";
        assert_eq!(PAGE.matches("://").count(), PAGE.matches(space).count());
        assert!(PAGE.contains(&format!("xmlns='{space}'")));
        assert!(!PAGE.contains("url(") && !PAGE.contains("@import"));
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(PAGE.matches(&format!("</{element}>")).count(), 1, "{element}");
        }
    }

    #[test]
    fn it_is_small() {
        assert!(PAGE.len() < 84_000, "{}", PAGE.len());
    }

    #[test]
    fn the_policy_names_the_script_and_the_style() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert_eq!(policy.matches("'sha256-").count(), 2);
        // The SHA-256 of an empty text would mean that an element was not found.
        assert!(!policy.contains("47DEQpj8HBSa"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
