//! The bucket: the requests that store objects, their signatures, and the meaning of the answers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, StatusCode, header};

use super::signature::{Request, SigningKey, encoded, sha256, sign};
use super::sts::Sts;
use crate::http::api::{
    Api, Call, Encoded, Outcome, Reply, RequestHead, Sent, TestRequest, body_for, unreadable,
};
use crate::tokens::Tokens;
use config::Compression;
use delivery::endpoints::Probed;
use delivery::failure::Failure;
use delivery::link::{Part, Verdict};
use queue::{Batch, Identity};
use telemetry::AttemptError;

/// The maximum bytes of an answer that is parsed. An error is a short document of XML.
const ANSWER_BYTES: usize = 16 * 1024;

/// The headers `x-amz-…` of a signature. They replace headers of the config with these names.
const OWN: [&str; 2] = ["x-amz-content-sha256", "x-amz-date"];

/// The header with the token of temporary keys. It is ours only if the keys have a token.
const SESSION: &str = "x-amz-security-token";

/// The number of looks for an object after which it counts as not stored, if the server says each
/// time neither that it has the object nor that it has not. If the key may only write, or may not
/// list, AWS answers 403.
const LOOKS_MAX: u32 = 8;

/// The header with the checksum of an object. A bucket with Object Lock needs it.
const CHECKSUM: &str = "x-amz-checksum-sha256";

/// The header that names the kind of the checksum. AWS's own SDKs send it beside the checksum, and
/// some stores look for it alone.
const ALGORITHM: &str = "x-amz-sdk-checksum-algorithm";

/// The end of the message about a store that refuses [`CHECKSUM`] or [`ALGORITHM`].
const WITHOUT_CHECKSUM: &str =
    ": the store refuses the headers of the checksum, so objects are now stored without them";

/// The error code for expired temporary keys. The status is 400.
const EXPIRED: &str = "ExpiredToken";

/// The end of the message about a server that answers 501.
const UNCONDITIONAL: &str =
    ": if the server does not implement If-None-Match, set conditional_writes = false";

/// The maximum bytes of an error's code. A longer text is not a code.
const CODE_MAX: usize = 64;

/// The place and the form in which objects are stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Address {
    pub(super) bucket: String,
    pub(super) region: String,
    /// The beginning of the names of all objects, without `/` at its ends, or empty.
    pub(super) prefix: String,
    /// `true`: the bucket is the first part of the path. `false`: it is the first part of the
    /// host's name.
    pub(super) path_style: bool,
    /// `true`: an object is written only if no other one has its name (`If-None-Match: *`).
    pub(super) conditional: bool,
}

/// The files with the ID of the access key, and the secret access key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeyFiles {
    pub(super) id: PathBuf,
    pub(super) secret: PathBuf,
}

/// The source of the access keys, and the newest keys from that source.
pub(super) enum Keys {
    Files {
        files: KeyFiles,
        /// The keys that were read last. [`Api::take_up`] puts them in use.
        read: ArcSwapOption<SigningKey>,
        /// The keys that sign requests. `None` before the files were read.
        used: ArcSwapOption<SigningKey>,
    },
    WebIdentity(Tokens<Sts>),
}

pub(crate) struct Bucket {
    /// The object that was tried last.
    pub(super) tried: Mutex<Tried>,
    pub(super) address: Address,
    pub(super) compression: Compression,
    pub(super) keys: Keys,
    /// `true` once the store has refused the headers of the checksum.
    pub(super) refuses_checksum: AtomicBool,
}

/// The attempts to store one object, and whether they may have stored it.
#[derive(Debug, Default)]
pub(super) struct Tried {
    name: String,
    may_be_there: bool,
    /// The number of looks that have found out nothing.
    looks: u32,
}

impl Tried {
    /// An attempt begins. `is_retry`: there was an attempt before it. If it is the first attempt of
    /// this process, an earlier process may have stored the object.
    pub(super) fn begin(&mut self, name: &str, is_retry: bool) {
        if self.name != name {
            let may_be_there = is_retry && self.name.is_empty();
            *self = Self { name: name.to_owned(), may_be_there, looks: 0 };
        }
    }

    /// An attempt has failed: the object may be there, unless the answer says that it is not.
    pub(super) fn failed(&mut self, failure: &Failure) {
        self.may_be_there |= failure.may_be_the_events && failure.reason != AttemptError::Status4xx;
    }

    pub(super) fn may_be_there(&self) -> bool {
        self.may_be_there
    }

    /// A look after a failed attempt has found out that the object is not there, or nothing. After
    /// [`LOOKS_MAX`] looks that have found out nothing, an object that the store refuses is divided
    /// all the same. A part of it may then be stored twice.
    pub(super) fn looked(&mut self, is_absent: bool) {
        self.looks += 1;
        if is_absent || self.looks >= LOOKS_MAX {
            (self.may_be_there, self.looks) = (false, 0);
        }
    }
}

impl Bucket {
    /// Returns the tokens that are renewed. `None` if the keys come from files.
    fn tokens(&self) -> Option<&Tokens<Sts>> {
        match &self.keys {
            Keys::Files { .. } => None,
            Keys::WebIdentity(tokens) => Some(tokens),
        }
    }

    /// Returns the path of an object, or of the bucket if `name` is empty.
    fn path(&self, name: &str) -> String {
        let Address { bucket, prefix, path_style, .. } = &self.address;
        let bucket = if *path_style { bucket } else { "" };
        let prefix = if name.is_empty() { "" } else { prefix };
        let parts = [bucket, prefix, name].into_iter().filter(|part| !part.is_empty());
        encoded(format!("/{}", parts.collect::<Vec<_>>().join("/")))
    }

    /// Returns the request that stores an object.
    pub(super) fn put(&self, name: &str, body_sha256: String) -> RequestHead {
        let content_type = match self.compression {
            Compression::None => "application/x-ndjson",
            Compression::Gzip => "application/gzip",
            Compression::Zstd => "application/zstd",
        };
        let post = RequestHead::post(&self.path(name), content_type);
        RequestHead { method: Method::PUT, body_sha256, ..post }
    }

    /// Returns the request that looks whether an object is there.
    pub(super) fn look(&self, name: &str) -> RequestHead {
        let post = RequestHead::post(&self.path(name), self.content_type());
        RequestHead { method: Method::HEAD, body_sha256: sha256(b""), ..post }
    }
}

impl Api for Bucket {
    fn content_type(&self) -> &'static str {
        "application/octet-stream"
    }

    /// Reads the keys. They sign each request separately, so there is no common header.
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let (KeyFiles { id, secret }, newest) = match &self.keys {
            Keys::Files { files, read, .. } => (files, read),
            Keys::WebIdentity(tokens) => return tokens.check().map(|()| None),
        };
        let key = |file| config::read_token(file).map_err(|error| unreadable(file, &error));
        let read = SigningKey { id: key(id)?, secret: key(secret)?, session: None };
        if HeaderValue::from_str(&read.id).is_err() {
            let file = id.display();
            return Err(format!(
                "{file} contains a character that is not allowed in an HTTP header"
            ));
        }
        newest.store(Some(Arc::new(read)));
        Ok(None)
    }

    fn take_up(&self) {
        if let Keys::Files { read, used, .. } = &self.keys {
            used.store(read.load_full());
        }
    }

    fn begin(&self) {
        self.tokens().inspect(|tokens| tokens.begin());
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), Failure>> {
        match self.tokens() {
            Some(tokens) => tokens.ready().boxed(),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn probe(&self) -> BoxFuture<'_, Probed> {
        match self.tokens() {
            Some(tokens) => tokens.probe().map(|probed| vec![probed]).boxed(),
            None => Box::pin(std::future::ready(Probed::new())),
        }
    }

    fn host_prefix(&self) -> Option<&str> {
        (!self.address.path_style).then_some(&*self.address.bucket)
    }

    fn request_headers(&self, call: &Call<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
        let failed = |what: &str| Failure::new(AttemptError::Protocol, what);
        let keys = match &self.keys {
            Keys::Files { used, .. } => used.load_full(),
            Keys::WebIdentity(tokens) => Some(tokens.newest()?),
        };
        let keys = keys.ok_or_else(|| failed("the access key has not been read"))?;
        // The config may replace the host and the content type.
        let host = call.extra.get(header::HOST).unwrap_or(call.host);
        let host = host.to_str().map_err(|_| failed("the host is not ASCII"))?;
        let content_type = call.extra.get(header::CONTENT_TYPE).map(HeaderValue::to_str);
        let content_type = content_type.transpose().map_err(|_| failed("the type is not ASCII"))?;
        let content_type = content_type.unwrap_or(call.head.content_type).trim();
        let (path, query) = call.target.split_once('?').unwrap_or((call.target, ""));
        let mut own = Vec::new();
        if call.head.method == Method::PUT {
            if self.address.conditional {
                own.push(("if-none-match", "*".to_owned()));
            }
            if !self.refuses_checksum.load(Ordering::Relaxed) {
                own.push((CHECKSUM, checksum(&call.head.body_sha256)));
                own.push((ALGORITHM, "SHA256".to_owned()));
            }
        }
        let mut signed = vec![("content-type", content_type)];
        signed.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        let has_session = keys.session.is_some();
        let is_own = |name: &str| {
            OWN.contains(&name)
                || (has_session && name == SESSION)
                || own.iter().any(|(it, _)| *it == name)
        };
        let extra = call
            .extra
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-amz-") && !is_own(name.as_str()));
        for (name, value) in extra {
            let value = value.to_str().map_err(|_| failed("a header x-amz-… is not ASCII"))?;
            signed.push((name.as_str(), value.trim()));
        }
        let request = Request {
            method: call.head.method.as_str(),
            path,
            query,
            host,
            headers: &signed,
            body: &call.head.body_sha256,
        };
        own.extend(sign(&request, &keys, &self.address.region, SystemTime::now()));
        let header = |(name, value): (&'static str, String)| {
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| failed("a header can't be made"))?;
            value.set_sensitive(["authorization", SESSION].contains(&name));
            Ok((HeaderName::from_static(name), value))
        };
        own.into_iter().map(header).collect()
    }

    fn test_requests(&self) -> Vec<TestRequest> {
        let post = RequestHead::post(&self.path(""), self.content_type());
        let head = RequestHead { method: Method::HEAD, body_sha256: sha256(b""), ..post };
        vec![TestRequest { head, body: b"" }]
    }

    /// The answer to HEAD has no body, and therefore no error code. Only the header `Content-Type`
    /// can show a web page.
    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        let Address { bucket, region, .. } = &self.address;
        Err(match reply.status {
            status if status.is_success() && !reply.has_type_of_page() => return Ok(()),
            status if status.is_success() => reply.instead("").to_owned(),
            StatusCode::FORBIDDEN => {
                format!("the access key is wrong, or lacks s3:ListBucket for the bucket {bucket}")
            }
            StatusCode::NOT_FOUND => format!("the bucket {bucket} does not exist"),
            StatusCode::MOVED_PERMANENTLY | StatusCode::BAD_REQUEST => {
                format!("the bucket {bucket} is not in the region {region}, or not at this URL")
            }
            _ => "the server is not accepting objects now".to_owned(),
        })
    }

    /// The answer about a stored object has an `ETag`. Some servers answer 200 before they know the
    /// result, and report an error in the body later.
    fn acknowledged(&self, reply: &Reply<'_>) -> Result<(), String> {
        if let Some(code) = reply.body.and_then(code) {
            return Err(format!("the object was not stored ({code})"));
        }
        let is_plain = reply.body.is_some_and(|body| !body.trim_ascii_start().starts_with(b"<"));
        match is_plain && reply.headers.contains_key(header::ETAG) {
            true => Ok(()),
            false => Err("not an S3 response: no ETag, or an XML or HTML body".to_owned()),
        }
    }

    fn answer_bytes(&self) -> usize {
        ANSWER_BYTES
    }

    /// Never called, because the link makes the requests.
    fn encode(&self, batch: Batch, _: Identity, _: u64) -> Encoded {
        Encoded::new(body_for(&batch), batch.events)
    }

    /// The answer 412 to `If-None-Match` means that an object with this name exists, which only
    /// this relay can have written. A gateway may answer 412, too: the result has no parts if the
    /// answer is not the store's own, and the link looks for the object in any case. 409 means that
    /// another request for the same object has not ended, and may still fail. Single events are
    /// never at fault, so any error except 412 is retried.
    fn judge(&self, reply: Reply<'_>, sent: &Sent) -> Outcome {
        let code = reply.body.and_then(code);
        if let Some(tokens) = self.tokens() {
            if reply.status.is_success() {
                tokens.accepted();
            } else if reply.status == StatusCode::FORBIDDEN || code == Some(EXPIRED) {
                tokens.refused();
            }
        }
        let is_existing =
            reply.status == StatusCode::PRECONDITION_FAILED && !reply.has_type_of_page();
        if is_existing && self.address.conditional {
            let (end, events) = (sent.claim.end, sent.events);
            let part = Part { end, events, verdict: Verdict::Existing };
            let is_own = reply.body.is_some_and(says_exists);
            return Outcome::Judged(is_own.then_some(part).into_iter().collect());
        }
        match reply.by_status {
            Outcome::Refused(mut failure) | Outcome::Failed(mut failure) => {
                if let Some(code) = code {
                    failure.message = format!("{} ({code})", failure.message);
                }
                let body = reply.body.unwrap_or_default();
                if refuses_checksum(reply.status, body) {
                    self.refuses_checksum.store(true, Ordering::Relaxed);
                    failure.message.push_str(WITHOUT_CHECKSUM);
                } else if reply.status == StatusCode::NOT_IMPLEMENTED
                    && self.address.conditional
                    && reply.body.is_some()
                    && memchr::memmem::find(&body.to_ascii_lowercase(), b"x-amz-").is_none()
                {
                    failure.message.push_str(UNCONDITIONAL);
                }
                Outcome::Failed(failure)
            }
            outcome @ (Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_)) => outcome,
        }
    }
}

/// Returns `true` for the answer of a store that does not know the headers of the checksum. A
/// checksum that does not match the object is another fault.
fn refuses_checksum(status: StatusCode, body: &[u8]) -> bool {
    let text = body.to_ascii_lowercase();
    let names = |header: &str| memchr::memmem::find(&text, header.as_bytes()).is_some();
    let is_unknown = |code| ["InvalidArgument", "InvalidRequest", "NotImplemented"].contains(&code);
    [StatusCode::BAD_REQUEST, StatusCode::NOT_IMPLEMENTED].contains(&status)
        && code(body).is_some_and(is_unknown)
        && (names(CHECKSUM) || names(ALGORITHM))
}

/// Returns the value of [`CHECKSUM`] for a body with this SHA-256: base64 instead of hexadecimal
/// digits.
fn checksum(sha256: &str) -> String {
    let digits = sha256.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    let bytes: Vec<u8> = digits.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    BASE64_STANDARD.encode(bytes)
}

/// Returns `true` for the answer of a store that has an object of this name: the error
/// `PreconditionFailed`, and if it names a condition, `If-None-Match`.
fn says_exists(body: &[u8]) -> bool {
    let names = |text: &[u8]| memchr::memmem::find(body, text).is_some();
    let is_other = names(b"<Condition>") && !names(b"<Condition>If-None-Match</Condition>");
    code(body) == Some("PreconditionFailed") && !is_other
}

/// Returns the code of an error, such as `SignatureDoesNotMatch`. `None` if the answer has no code.
fn code(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_code = code.len() <= CODE_MAX && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_code.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_if_none_match_says_that_the_object_is_there() {
        let error = |more: &str| format!("<Error><Code>PreconditionFailed</Code>{more}</Error>");
        let own = error("<Condition>If-None-Match</Condition>");
        assert!(says_exists(own.as_bytes()) && says_exists(error("").as_bytes()));
        let other = error("<Condition>x-amz-object-lock</Condition>");
        for body in [other.as_str(), "", "{}", "<Error><Code>AccessDenied</Code></Error>"] {
            assert!(!says_exists(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn a_store_refuses_the_checksums_header_only_by_its_name() {
        let of = |status: u16, code: &str, text: &str| {
            let body = format!("<Error><Code>{code}</Code><Message>{text}</Message></Error>");
            refuses_checksum(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert!(of(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-sha256'"));
        assert!(of(400, "InvalidArgument", "Unsupported header X-Amz-Checksum-Sha256"));
        assert!(of(501, "NotImplemented", "x-amz-sdk-checksum-algorithm is not implemented"));
        assert!(!of(400, "BadDigest", "x-amz-checksum-sha256 does not match"));
        assert!(!of(400, "InvalidRequest", "Content-MD5 OR x-amz-checksum- is required"));
        assert!(!of(501, "NotImplemented", "If-None-Match"));
        assert!(!of(403, "InvalidArgument", "x-amz-checksum-sha256"));
    }

    #[test]
    fn a_code_is_shown_if_it_is_one() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Key>x</Key></Error>";
        assert_eq!(code(body), Some("NoSuchBucket"));
        assert_eq!(code(b"<Code>a secret</Code>"), None);
        assert_eq!(code(b"<html>"), None);
    }
}
