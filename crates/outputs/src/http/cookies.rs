//! The cookies of one connection.
//!
//! A balancer in front of several servers may give each client a cookie, and send further requests
//! with the cookie to the same server. A protocol whose consumer confirms requests later needs such
//! cookies, because only the server that has taken a request can confirm it. The requests of a
//! connection therefore carry the cookies of earlier answers on the same connection (RFC 6265), and
//! of no other connection. A cookie lives as long as its connection, unless an answer deletes it.
//! The attribute `Domain` is ignored, because a connection leads to one host.
//!
//! Cookies may be secrets, so nothing here shows them.

use std::time::SystemTime;

use hyper::header::HeaderValue;
use hyper::{HeaderMap, header};

/// The maximum number of cookies of a connection. A balancer sets one or two.
const COOKIES_MAX: usize = 16;

/// The maximum bytes of the names and values of a connection's cookies. Servers may refuse longer
/// headers.
const BYTES_MAX: usize = 4096;

/// The cookies that the answers on a connection have set.
#[derive(Default)]
pub(super) struct Cookies(Vec<Cookie>);

struct Cookie {
    name: Vec<u8>,
    value: Vec<u8>,
    /// The path below which requests get the cookie.
    path: String,
}

impl Cookie {
    /// Returns `true` if a request to this path gets the cookie (RFC 6265 §5.1.4).
    fn is_for(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.path.as_str());
        below.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with('/') || self.path.ends_with('/')
        })
    }
}

impl Cookies {
    /// Stores the cookies that an answer sets, and removes the cookies that the answer deletes.
    /// `target` is the path and query of the request, and `https` is `true` if the connection is
    /// encrypted. Ignores cookies above the limits.
    pub(super) fn take_up(&mut self, headers: &HeaderMap, target: &str, https: bool) {
        for header in headers.get_all(header::SET_COOKIE) {
            let parsed = parse(header.as_bytes(), path_of(target), https);
            let Some((cookie, is_over)) = parsed else { continue };
            self.0.retain(|old| old.name != cookie.name || old.path != cookie.path);
            let all = self.0.iter().chain([&cookie]);
            let bytes: usize = all.map(|it| it.name.len() + it.value.len()).sum();
            if !is_over && self.0.len() < COOKIES_MAX && bytes <= BYTES_MAX {
                self.0.push(cookie);
            }
        }
    }

    /// Returns the header `Cookie` of a request to this path and query. `None` if no cookie of the
    /// connection is for this path. `more` are the cookies of the config, which come first.
    pub(super) fn header(&self, target: &str, more: Option<&HeaderValue>) -> Option<HeaderValue> {
        let path = path_of(target);
        let own = self.0.iter().filter(|cookie| cookie.is_for(path));
        let mut all: Vec<_> = own.map(|it| [&*it.name, b"=", &*it.value].concat()).collect();
        if all.is_empty() {
            return None;
        }
        all.splice(..0, more.map(|more| more.as_bytes().to_vec()));
        let mut value = HeaderValue::from_bytes(&all.join(&b"; "[..])).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// Returns the cookie of a header `Set-Cookie` (RFC 6265 §5.2), and `true` if the cookie is
/// deleted. `path` is the path of the request. `None` if the header can't be read, or if the cookie
/// is only for https and the connection is not encrypted.
fn parse(header: &[u8], path: &str, https: bool) -> Option<(Cookie, bool)> {
    let mut parts = header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let (name, value) = pair(parts.next()?);
    let name = Some(name).filter(|name| !name.is_empty())?;
    // Without the attribute `Path`, the cookie is for the directory of the request's path.
    let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
    let mut cookie_path = if directory.is_empty() { "/" } else { directory };
    let (mut age_is_over, mut is_expired) = (None, false);
    for part in parts {
        let (key, value) = pair(part);
        let value = value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        match key.to_ascii_lowercase().as_slice() {
            b"secure" if !https => return None,
            b"path" if value.starts_with('/') => cookie_path = value,
            b"max-age" => {
                let digits = value.strip_prefix('-').unwrap_or(value);
                if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    let is_zero = digits.bytes().all(|byte| byte == b'0');
                    age_is_over = Some(is_zero || value.starts_with('-'));
                }
            }
            b"expires" => {
                // Older servers write `01-Jan-1970`, with hyphens and four digits of the year.
                let date = httpdate::parse_http_date(value)
                    .or_else(|_| httpdate::parse_http_date(&value.replace('-', " ")));
                is_expired = date.is_ok_and(|date| date <= SystemTime::now());
            }
            _ => {}
        }
    }
    let cookie =
        Cookie { name: name.to_vec(), value: value?.to_vec(), path: cookie_path.to_owned() };
    // Max-Age has precedence over Expires.
    Some((cookie, age_is_over.unwrap_or(is_expired)))
}

/// Returns the texts before and after the first `=`, without surrounding white space. The second
/// one is `None` if there is no `=`.
fn pair(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, value) = text.split_at(at);
            (name.trim_ascii(), value.get(1..).map(<[u8]>::trim_ascii))
        }
        None => (text.trim_ascii(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "/services/collector/event?token=t";

    /// Returns the header `Cookie` of a request to `target`, after answers to requests to
    /// [`TARGET`] have set the cookies `set`.
    fn sent(set: &[&str], https: bool, target: &str) -> Option<String> {
        let mut cookies = Cookies::default();
        for value in set {
            let value = HeaderValue::from_str(value).unwrap();
            let headers = HeaderMap::from_iter([(header::SET_COOKIE, value)]);
            cookies.take_up(&headers, TARGET, https);
        }
        let value = cookies.header(target, None)?;
        assert!(value.is_sensitive());
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_cookie_goes_back_with_its_value_and_without_its_attributes() {
        for (set, wanted) in [
            (&["SRV=a; Path=/; HttpOnly; SameSite=None"][..], Some("SRV=a")),
            (&["SRV=a=b==; path=/"], Some("SRV=a=b==")),
            (&[" SRV = \"a b\" ;Max-Age=60"], Some("SRV=\"a b\"")),
            (&["SRV="], Some("SRV=")),
            (&["SRV=a", "SRV=b"], Some("SRV=b")),
            (&["A=1", "B=2"], Some("A=1; B=2")),
            (&["SRV"], None),
            (&["=a"], None),
            (&[""], None),
            // A cookie whose lifetime is over is deleted.
            (&["SRV=a", "SRV=; Max-Age=0"], None),
            (&["SRV=a", "SRV=x; max-age=-1; Expires=Fri, 31 Dec 9999 23:59:59 GMT"], None),
            (&["SRV=a", "SRV=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], None),
            (&["SRV=a", "SRV=x; Expires=Thu, 01-Jan-1970 00:00:01 GMT"], None),
            (&["SRV=a", "SRV=x; Expires=Thursday, 01-Jan-70 00:00:01 GMT"], None),
            (&["SRV=b; Max-Age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT"], Some("SRV=b")),
            (&["SRV=b; Max-Age=soon"], Some("SRV=b")),
            (&["SRV=b; Expires=Fri, 31 Dec 9999 23:59:59 GMT"], Some("SRV=b")),
            (&["SRV=b; Expires=soon"], Some("SRV=b")),
        ] {
            assert_eq!(sent(set, false, TARGET).as_deref(), wanted, "{set:?}");
        }
    }

    #[test]
    fn a_cookie_goes_to_its_path_and_below_only_and_a_secure_one_over_https_only() {
        const ACK: &str = "/services/collector/ack";
        for (set, https, target, is_sent) in [
            ("SRV=a", false, ACK, true),
            ("SRV=a", false, "/services/collector", true),
            ("SRV=a", false, "/services/collectors", false),
            ("SRV=a", false, "/services", false),
            ("SRV=a; Path=/", false, "/", true),
            ("SRV=a; Path=/services/", false, ACK, true),
            ("SRV=a; Path=/services", false, ACK, true),
            ("SRV=a; Path=/service", false, ACK, false),
            ("SRV=a; Path=/other", false, ACK, false),
            ("SRV=a; Path=other", false, ACK, true),
            ("SRV=a; Secure", true, TARGET, true),
            ("SRV=a; Secure", false, TARGET, false),
        ] {
            assert_eq!(sent(&[set], https, target).is_some(), is_sent, "{set} to {target}");
        }
    }

    #[test]
    fn cookies_are_bounded() {
        let many: Vec<String> = (0..100).map(|number| format!("C{number}=a")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let header = sent(&many, false, TARGET).unwrap();
        assert_eq!(header.matches('=').count(), COOKIES_MAX);
        let large = format!("LARGE={}", "x".repeat(BYTES_MAX));
        assert_eq!(sent(&["SRV=a", &large], false, TARGET).as_deref(), Some("SRV=a"));
    }

    #[test]
    fn the_cookies_of_the_config_stay() {
        let mut cookies = Cookies::default();
        let more = HeaderValue::from_static("mine=1");
        assert_eq!(cookies.header(TARGET, Some(&more)), None);
        let set = HeaderMap::from_iter([(header::SET_COOKIE, HeaderValue::from_static("SRV=a"))]);
        cookies.take_up(&set, TARGET, false);
        assert_eq!(cookies.header(TARGET, Some(&more)).unwrap(), "mine=1; SRV=a");
    }
}
