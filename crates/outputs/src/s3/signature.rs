//! AWS Signature Version 4 of a request (AWS documentation, "Create a signed AWS API request").

use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use audit::time::rfc3339;

/// The keys that sign requests.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SigningKey {
    pub(super) id: String,
    pub(super) secret: String,
    /// The token of temporary keys. `None` for keys that are valid until they are deleted.
    pub(super) session: Option<String>,
}

/// The signed parts of a request, without the headers that the signature adds.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// The path, as it is sent.
    pub(super) path: &'a str,
    /// The query, as it is sent, or empty.
    pub(super) query: &'a str,
    pub(super) host: &'a str,
    /// Further headers: names in lower case, and values without blanks at their ends.
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// The SHA-256 of the body, in hexadecimal digits.
    pub(super) body: &'a str,
}

/// Returns the headers that sign a request for the service `s3` in `region`: the names in lower
/// case, with the values. `now` is the time of the request, which the server compares with its
/// clock.
pub(super) fn sign(
    request: &Request<'_>,
    keys: &SigningKey,
    region: &str,
    now: SystemTime,
) -> Vec<(&'static str, String)> {
    let time = basic_time(now);
    let date = time.split_once('T').map_or(time.as_str(), |(date, _)| date);
    let mut added =
        vec![("x-amz-content-sha256", request.body.to_owned()), ("x-amz-date", time.clone())];
    if let Some(session) = &keys.session {
        added.push(("x-amz-security-token", session.clone()));
    }
    let mut headers: Vec<(&str, &str)> = vec![("host", request.host)];
    headers.extend(request.headers);
    headers.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
    headers.sort_unstable();
    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let Request { method, body, .. } = request;
    let (path, query) = (encoded(decoded(request.path)), canonical_query(request.query));
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{body}");
    let scope = format!("{date}/{region}/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
    let first = format!("AWS4{}", keys.secret).into_bytes();
    let parts = [date, region, "s3", "aws4_request"];
    let key = parts.iter().fold(first, |key, part| hmac(&key, part));
    let (id, signature) = (&keys.id, hex(&hmac(&key, &text)));
    added.push((
        "authorization",
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        ),
    ));
    added
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The characters that `UriEncode` of the documentation encodes in a path.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Percent-encodes every byte of a path except letters, digits and `-._~/`.
pub(super) fn encoded(path: impl AsRef<[u8]>) -> String {
    percent_encode(path.as_ref(), ENCODED).to_string()
}

fn decoded(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

/// Returns a query in its signed form: sorted, each name and value percent-encoded.
fn canonical_query(query: &str) -> String {
    let value = |text: &str| encoded(decoded(text)).replace('/', "%2F");
    let mut pairs: Vec<_> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    pairs.sort_unstable();
    let pairs = pairs.into_iter().map(|pair| {
        let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
        format!("{}={}", value(name), value(text))
    });
    pairs.collect::<Vec<_>>().join("&")
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// Returns a time as `yyyymmddThhmmssZ`, in UTC.
fn basic_time(time: SystemTime) -> String {
    let text = rfc3339(time);
    let whole = text.split_once('.').map_or(text.trim_end_matches('Z'), |(whole, _)| whole);
    let digits: String = whole.chars().filter(|c| !"-:".contains(*c)).collect();
    digits + "Z"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The examples "GET Object" and "PUT Object" of the documentation of Amazon S3, "Signature
    /// Calculations for the Authorization Header: Transferring Payload in a Single Chunk".
    #[test]
    fn requests_are_signed_as_in_the_documentation() {
        let keys = SigningKey {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session: None,
        };
        // 2013-05-24T00:00:00Z
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let host = "examplebucket.s3.amazonaws.com";
        let signature = |method, path, headers: &[_], body| {
            let body = &sha256(body);
            let request = Request { method, path, query: "", host, headers, body };
            let (_, value) = sign(&request, &keys, "us-east-1", now).pop().unwrap();
            value.split_once("Signature=").unwrap().1.to_owned()
        };
        assert_eq!(
            signature("GET", "/test.txt", &[("range", "bytes=0-9")], b""),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let headers = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        assert_eq!(
            signature("PUT", &encoded("/test$file.text"), &headers, b"Welcome to Amazon S3."),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
    }

    #[test]
    fn a_path_is_encoded_and_a_time_is_without_separators() {
        assert_eq!(encoded("/a b/ä+~%.jsonl"), "/a%20b/%C3%A4%2B~%25.jsonl");
        assert_eq!(encoded(decoded("/a+b/%C3%A4%2b%+1%4")), "/a%2Bb/%C3%A4%2B%25%2B1%254");
        assert_eq!(canonical_query("x&b=1/2&a=%3d"), "a=%3D&b=1%2F2&x=");
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_155_862_439);
        assert_eq!(basic_time(time), "20261120T062422Z");
    }
}
