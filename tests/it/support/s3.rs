//! A strict fake of an S3 server. It checks the signature of every request and the headers of every
//! upload, and keeps its objects while no relay runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::{digest, hmac};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use tempfile::TempDir;

use super::http_sink::{Answer, HttpSink, Keeper, Request};
use super::server::Options;
use super::text;

/// The bucket that the relay's config must name.
pub(crate) const BUCKET: &str = "audit-archive";

/// The region that the relay's config must name.
pub(crate) const REGION: &str = "eu-central-1";

/// The prefix that the relay's config must name.
pub(crate) const PREFIX: &str = "clusters/prod+1";

const CHECKSUM: &str = "x-amz-checksum-sha256";

const ALGORITHM: &str = "x-amz-sdk-checksum-algorithm";

/// The access key that the fake accepts.
pub(crate) const KEY_ID: &str = "AKIDEXAMPLE";
pub(crate) const SECRET: &str = "s3cr3t/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// The bucket and the prefix as a path, percent-encoded.
pub(crate) const PATH: &str = "/audit-archive/clusters/prod%2B1/";

/// How the fake handles one request to store an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Mood {
    /// The fake stores a new object. If the object exists, it responds with 412.
    Stores,
    /// The fake stores nothing, and responds with this status and error code.
    Fails(u16, &'static str),
    /// Like `Stores`, but the fake responds with 500.
    StoresAndFails,
    /// The fake closes the connection without an answer. If `true`, it stores a new object first.
    HangsUp(bool),
    /// Like `Stores`, but the answer breaks off.
    Cut,
    /// For a new object, the fake answers after this time. If not `stores`, it responds with 500
    /// and stores nothing. Until then, it responds to other requests for the object with 409, as S3
    /// does when conditional writes race.
    Races { time: Duration, stores: bool },
    /// The fake stores nothing, and responds with 200 and a web page.
    Page,
    /// The fake stores nothing, and responds with 200 and an error document.
    FailsWith200,
    /// The fake responds with this status to an object with an event that has this text.
    FailsOn(u16, &'static str),
    /// The fake does not implement `If-None-Match`: it responds with 501 to a request that has it.
    /// It accepts any other request, even if the object exists.
    Unconditional,
    /// The fake knows no header of a checksum: its response names the header, and has this status
    /// and this code.
    NoChecksum(u16, &'static str),
}

/// The objects, and the requests so far.
#[derive(Default)]
pub(crate) struct Store {
    /// The bytes of each object, by its path below the prefix.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    /// The paths of the objects, in the order in which they were stored.
    pub(crate) order: Vec<String>,
    /// The number of requests to store an object.
    pub(crate) puts: usize,
    /// How many requests were for an object that existed already.
    pub(crate) again: usize,
    /// When the last [`Mood::Races`] request for an object is answered, by the object's path.
    under_way: BTreeMap<String, Instant>,
    /// The `x-amz-storage-class` headers of the requests.
    pub(crate) classes: Vec<String>,
    /// The `x-amz-security-token` headers of the requests.
    pub(crate) sessions: Vec<String>,
    /// The different `host` headers of the requests.
    pub(crate) hosts: BTreeSet<String>,
}

impl Store {
    /// Returns the lines of all objects, by relay and position. Panics if an object's name does not
    /// match its content, or if two objects overlap.
    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        lines(&self.objects)
    }
}

/// Decompresses an object whose name has this extension.
fn decompressed(extension: &str, bytes: &[u8]) -> Vec<u8> {
    match extension {
        "jsonl" => bytes.to_vec(),
        "jsonl.gz" => {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).expect("gzip");
            text
        }
        "jsonl.zst" => zstd::decode_all(bytes).expect("zstd"),
        other => panic!("the extension {other}"),
    }
}

/// Returns the lines of these objects; see [`Store::lines`]. The keys are paths below the prefix.
pub(crate) fn lines(objects: &BTreeMap<String, Vec<u8>>) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (name, bytes) in objects {
        let parts: Vec<_> = name.split('/').collect();
        let [year, month, day, hour, file] = parts[..] else { panic!("the name {name}") };
        let widths = [year, month, day, hour].map(str::len);
        assert_eq!(widths, [4, 2, 2, 2], "{name}");
        let (stem, extension) = file.split_once('.').expect("an extension");
        let text = decompressed(extension, bytes);
        let parts: Vec<_> = stem.split('-').collect();
        let [relay, first, last, hash] = parts[..] else { panic!("the name {name}") };
        assert!(relay.len() == 32 && relay.bytes().all(|it| it.is_ascii_hexdigit()), "{name}");
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        let sha256 = hex(digest::digest(&digest::SHA256, &text).as_ref());
        assert_eq!(sha256.get(..16), Some(hash), "{name}");
        let text = text.strip_suffix(b"\n").expect("the last line ends");
        let lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(Into::into).collect();
        assert!(lines.len() as u64 <= last - first + 1, "{name} has {} lines", lines.len());
        all.push((relay.to_owned(), first, last, lines));
    }
    all.sort();
    for pair in all.windows(2) {
        let ((relay, _, last, _), (next, first, ..)) = (&pair[0], &pair[1]);
        assert!(relay != next || last < first, "two objects overlap: {last}, {first}");
    }
    all.into_iter().flat_map(|(.., lines)| lines).collect()
}

pub(crate) type S3 = Keeper<Store>;

impl S3 {
    /// Starts a server. It calls `mood` once for each request to store an object.
    pub(crate) fn start(mood: impl FnMut() -> Mood + Send + 'static) -> Self {
        Self::with(Options::default(), mood)
    }

    pub(crate) fn with(options: Options, mood: impl FnMut() -> Mood + Send + 'static) -> Self {
        Self::for_key(true, options, mood)
    }

    /// Starts a server whose access key may look for objects, or may only store them.
    pub(crate) fn for_key(
        may_look: bool,
        options: Options,
        mut mood: impl FnMut() -> Mood + Send + 'static,
    ) -> Self {
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let sink = HttpSink::remembering(options, move |request| {
            if !is_signed(request) {
                return error(403, "SignatureDoesNotMatch");
            }
            if request.method == "HEAD" && request.target == format!("/{BUCKET}") {
                return Answer::status(200);
            } else if request.method == "HEAD" {
                let store = kept.lock().expect("not poisoned");
                let is_there = store.objects.keys().any(|name| request.target.contains(name));
                return match (may_look, is_there) {
                    (false, _) => Answer::status(403),
                    (true, true) => stored(),
                    (true, false) => Answer::status(404),
                };
            }
            let (host, name) = check(request);
            let mut store = kept.lock().expect("not poisoned");
            store.hosts.insert(host);
            store.sessions.extend(request.header("x-amz-security-token").map(str::to_owned));
            store.puts += 1;
            store.classes.extend(request.header("x-amz-storage-class").map(str::to_owned));
            let (mood, condition) = (mood(), request.header("if-none-match"));
            let algorithm = request.header(ALGORITHM);
            if let Mood::NoChecksum(status, code) = mood {
                if algorithm.is_some() {
                    let text = "<Message>Unsupported header 'x-amz-checksum-sha256'</Message>";
                    let body = format!("<Error><Code>{code}</Code>{text}</Error>");
                    return Answer::status(status).body(body);
                }
                assert_eq!(request.header(CHECKSUM), None);
            } else {
                assert_eq!(algorithm, Some("SHA256"));
            }
            if mood != Mood::Unconditional {
                assert_eq!(condition, Some("*"), "if-none-match");
            } else if condition.is_some() {
                return error(501, "NotImplemented");
            }
            match mood {
                Mood::Fails(status, code) => return error(status, code),
                Mood::FailsWith200 => return error(200, "InternalError"),
                // The page has an ETag, as an object has.
                Mood::Page => return stored().body("\n<html>sign in</html>"),
                Mood::HangsUp(false) => return Answer::hang_up(),
                Mood::Stores | Mood::StoresAndFails | Mood::HangsUp(true) => {}
                Mood::Cut | Mood::Unconditional | Mood::Races { .. } => {}
                Mood::FailsOn(status, text) if has(&name, &request.body, text) => {
                    return error(status, "AccessDenied");
                }
                Mood::NoChecksum(..) | Mood::FailsOn(..) => {}
            }
            if store.under_way.get(&name).is_some_and(|until| Instant::now() < *until) {
                return error(409, "ConditionalRequestConflict");
            }
            let is_there = store.objects.contains_key(&name);
            if is_there {
                store.again += 1;
                // A compressor can write the same lines as different bytes if it gets them in
                // different parts. A restarted relay may read them in other parts than before.
                let (_, extension) = name.split_once('.').expect("an extension");
                let lines = |bytes: &[u8]| decompressed(extension, bytes);
                let is_same = lines(&store.objects[&name]) == lines(&request.body);
                assert!(is_same, "{name} came with other lines");
            } else {
                if let Mood::Races { time, stores } = mood {
                    store.under_way.insert(name.clone(), Instant::now() + time);
                    if !stores {
                        return error(500, "InternalError").after(time);
                    }
                }
                store.order.push(name.clone());
                store.objects.insert(name, request.body.clone());
            }
            match mood {
                Mood::Stores | Mood::FailsOn(..) | Mood::Races { .. } if is_there => {
                    error(412, "PreconditionFailed")
                }
                Mood::Stores | Mood::FailsOn(..) => stored(),
                Mood::Unconditional | Mood::NoChecksum(..) => stored(),
                Mood::Races { time, .. } => stored().after(time),
                Mood::StoresAndFails => error(500, "InternalError"),
                Mood::HangsUp(_) => Answer::hang_up(),
                Mood::Cut => Answer::raw("HTTP/1.1 200 OK\r\nContent-Len").closing(),
                Mood::Fails(..) | Mood::Page | Mood::FailsWith200 => {
                    unreachable!("answered above")
                }
            }
        });
        Self { sink, kept: store }
    }
}

/// Returns `true` if a line of the object has this text.
fn has(name: &str, object: &[u8], text: &str) -> bool {
    let (_, extension) = name.split_once('.').expect("an extension");
    memchr::memmem::find(&decompressed(extension, object), text.as_bytes()).is_some()
}

fn stored() -> Answer {
    Answer::status(200).header("ETag", "\"9b2cf535f27731c974343645a3985328\"")
}

fn error(status: u16, code: &str) -> Answer {
    let body = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Key>x</Key></Error>");
    Answer::status(status).header("Content-Type", "application/xml").body(body)
}

/// Checks a request to store an object. Returns the host, and the path of the object below the
/// prefix. The bucket is in the path or in the host name.
fn check(request: &Request) -> (String, String) {
    assert_eq!(request.method, "PUT");
    let host = request.header("host").expect("a host");
    let path = match host.strip_prefix(BUCKET) {
        Some(_) => PATH.strip_prefix("/audit-archive").expect("the bucket"),
        None => PATH,
    };
    let target = request.target.strip_prefix("/gate+way").unwrap_or(&request.target);
    let target = target.strip_suffix("?b=2&a=x/y").unwrap_or(target);
    let name = target.strip_prefix(path).expect("the bucket and the prefix");
    let sha256 = digest::digest(&digest::SHA256, &request.body);
    let content_type = match name.split_once('.').map(|(_, extension)| extension) {
        Some("jsonl.zst") => "application/zstd",
        Some("jsonl.gz") => "application/gzip",
        _ => "application/x-ndjson",
    };
    for (header, wanted) in [
        ("content-type", content_type.to_owned()),
        ("content-length", request.body.len().to_string()),
        ("x-amz-content-sha256", hex(sha256.as_ref())),
    ] {
        assert_eq!(request.header(header), Some(&*wanted), "{header}");
    }
    // With the name of its kind, a checksum must be there.
    if request.header(ALGORITHM).is_some() {
        assert_eq!(request.header(CHECKSUM), Some(&*BASE64_STANDARD.encode(sha256)));
    }
    for header in ["content-encoding", "transfer-encoding", "expect"] {
        assert_eq!(request.header(header), None, "{header}");
    }
    (host.to_owned(), name.to_owned())
}

/// Returns `true` if a request is signed with [`SECRET`] (AWS documentation, "Create a signed AWS
/// API request"). Panics if a header that must be signed is not signed.
fn is_signed(request: &Request) -> bool {
    let header = |name: &str| request.header(name).unwrap_or_else(|| panic!("no header {name}"));
    let authorization = header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").expect("AWS4");
    let parts: BTreeMap<_, _> =
        authorization.split(", ").map(|part| part.split_once('=').expect("a part")).collect();
    let (time, names) = (header("x-amz-date"), parts["SignedHeaders"]);
    let date = time.split_once('T').expect("a time").0;
    let scope = format!("{date}/{REGION}/s3/aws4_request");
    let today: Vec<String> = [0, 3600]
        .map(|ago| SystemTime::now() - Duration::from_secs(ago))
        .map(httpdate::fmt_http_date)
        .into();
    let day = date.get(6..).expect("a day");
    assert!(today.iter().any(|it| it.contains(&format!(" {day} "))), "{time} is not now");
    let mut lines = String::new();
    for name in names.split(';') {
        lines += &format!("{name}:{}\n", header(name));
    }
    for (name, _) in &request.head.headers {
        let must = name == "host" || name == "content-type" || name.starts_with("x-amz-");
        assert!(!must || names.split(';').any(|it| it == name), "{name} is not signed");
    }
    assert!(names.split(';').is_sorted(), "{names}");
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    // Only these parts of the tests' URLs must be escaped here. `PATH` already is.
    let (path, query) = (
        path.replace("gate+way", "gate%2Bway"),
        match query {
            "b=2&a=x/y" => "a=x%2Fy&b=2",
            other => other,
        },
    );
    let body = hex(digest::digest(&digest::SHA256, &request.body).as_ref());
    let canonical = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{body}", request.method);
    let canonical = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let mac = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
    };
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [date, REGION, "s3", "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{canonical}")));
    parts["Credential"] == format!("{KEY_ID}/{scope}") && parts["Signature"] == signature
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) struct Keys {
    directory: TempDir,
}

impl Keys {
    /// Creates the files of the access key that the fake accepts.
    pub(crate) fn new() -> Self {
        let keys = Self { directory: TempDir::new().expect("a temporary directory") };
        keys.write(KEY_ID, SECRET);
        keys
    }

    pub(crate) fn files(&self) -> [PathBuf; 2] {
        ["id", "secret"].map(|name| self.directory.path().join(name))
    }

    pub(crate) fn write(&self, id: &str, secret: &str) {
        for (name, content) in [("id", id), ("secret", secret)] {
            let (file, new) = (self.directory.path().join(name), self.directory.path().join("new"));
            std::fs::write(&new, format!("{content}\n")).expect("written");
            std::fs::rename(new, file).expect("renamed");
        }
    }

    /// Returns the config of an output `archive` to this address. `more` adds keys.
    pub(crate) fn output(&self, address: SocketAddr, more: &str) -> String {
        format!("[[output]]\nname = \"archive\"\n{}{more}\n", self.keys(address))
    }

    /// Returns the keys of an output to this address.
    pub(crate) fn keys(&self, address: SocketAddr) -> String {
        let directory = text(self.directory.path());
        format!(
            "type = \"s3\"\nurls = [\"http://{address}\"]\nbucket = \"{BUCKET}\"\n\
             region = \"{REGION}\"\nprefix = \"{PREFIX}\"\n\
             access_key_id_file = \"{directory}/id\"\n\
             secret_access_key_file = \"{directory}/secret\"\n"
        )
    }
}

/// A strict fake of the Security Token Service. Each answer has the access key that the fake of S3
/// accepts, and a new session token that expires in two seconds.
pub(crate) struct Sts {
    pub(crate) sink: HttpSink,
}

/// The role that the relay must request.
pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/audit archive";

impl Sts {
    /// Starts a server that accepts this service account token.
    pub(crate) fn start(token: &'static str) -> Self {
        let sink = HttpSink::with(Options::default(), move |request| {
            assert_eq!((&*request.method, &*request.target), ("POST", "/"));
            let content_type = request.header("content-type");
            assert_eq!(content_type, Some("application/x-www-form-urlencoded"));
            assert_ne!(request.header("accept"), Some("application/json"), "the answer is XML");
            let form: BTreeMap<_, _> = url::form_urlencoded::parse(&request.body).collect();
            let wanted = [
                ("Action", "AssumeRoleWithWebIdentity"),
                ("Version", "2011-06-15"),
                ("RoleArn", ROLE),
                ("RoleSessionName", "kube-audit-forwarder"),
            ];
            assert_eq!(form.len(), wanted.len() + 1, "{form:?}");
            assert!(wanted.iter().all(|(name, value)| form[*name] == *value), "{form:?}");
            if form["WebIdentityToken"] != token {
                return error(400, "InvalidIdentityToken");
            }
            let expires = SystemTime::now() + Duration::from_secs(2);
            Answer::status(200).header("Content-Type", "text/xml").body(format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n\
                 <AssumeRoleWithWebIdentityResult>\n\
                 <AssumedRoleUser><Arn>arn</Arn><AssumedRoleId>x:y</AssumedRoleId></AssumedRoleUser>\n\
                 <Credentials><SessionToken>session+/={}</SessionToken>\
                 <SecretAccessKey>{SECRET}</SecretAccessKey><Expiration>{}</Expiration>\
                 <AccessKeyId>{KEY_ID}</AccessKeyId></Credentials>\n\
                 </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
                request.number,
                rfc3339(expires),
            ))
        });
        Self { sink }
    }
}

/// Formats a time as `yyyy-mm-ddThh:mm:ssZ`.
fn rfc3339(time: SystemTime) -> String {
    let months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec";
    let text = httpdate::fmt_http_date(time);
    let parts: Vec<_> = text.split(' ').collect();
    let [_, day, name, year, clock, _] = parts[..] else { panic!("the date {text}") };
    let month = 1 + months.split(' ').position(|it| it == name).expect("a month");
    format!("{year}-{month:02}-{day}T{clock}Z")
}
