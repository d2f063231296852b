//! The manual: pages that were compressed while the program was built. They are public, so they
//! need no token.

use std::io::Read;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, Response, header};

/// The path of each page without its first `/`, and the page, compressed with gzip. A path with an
/// extension is a plain file or a style sheet, any other one an HTML document.
pub type Manual = &'static [(&'static str, &'static [u8])];

/// The pages load only their style sheet. `img-src data:` allows the empty icon.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// Returns the response with the page that a request asks for; `None` if there is no such page.
pub(super) fn response<B>(manual: Manual, request: &Request<B>) -> Option<Response<Full<Bytes>>> {
    let name = request.uri().path().strip_prefix('/')?;
    let (_, page) = manual.iter().find(|(other, _)| *other == name)?;
    let takes_gzip = takes_gzip(request.headers());
    let body = if takes_gzip { Bytes::from_static(page) } else { unpacked(page)?.into() };
    let kind = match name.rsplit_once('.') {
        None => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some(_) => "text/plain; charset=utf-8",
    };
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    if takes_gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(response)
}

/// Returns `true` if the client names gzip in `Accept-Encoding` and does not refuse it with `q=0`
/// (RFC 9110 §12.5.3). Every other client, such as curl without options, gets the page as it is.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).into_iter();
    let mut codings = values.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|it| it.to_ascii_lowercase().strip_prefix("q=")?.parse().ok());
        is_gzip && weight.is_none_or(|weight: f32| weight > 0.0)
    })
}

fn unpacked(page: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    GzDecoder::new(page).read_to_end(&mut body).ok().map(|_| body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_takes_gzip_gets_it() {
        for (value, taken) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5, br", true),
            ("gzip; Q=1.0", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("identity, *;q=0", false),
            ("x-gzipped", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(takes_gzip(&headers), taken, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
