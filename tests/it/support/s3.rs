//! A strict fake of a server of the S3 protocol. It checks every header and every signature, and
//! keeps its objects while no process of the relay runs.

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

/// The access key that the servers know.
pub(crate) const KEY_ID: &str = "AKIDEXAMPLE";
pub(crate) const SECRET: &str = "s3cr3t/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// The path of the prefix in requests, percent-encoded, with the bucket.
pub(crate) const PATH: &str = "/audit-archive/clusters/prod%2B1/";

/// The way in which the fake treats one request to store an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// The fake stores a new object, and answers 412 if there is one.
    Stores,
    /// The fake stores nothing, and answers this status with this code.
    Fails(u16, &'static str),
    /// The fake does as for `Stores`, and answers 500.
    StoresAndFails,
    /// The fake does as for `Stores` if the value is `true`, and closes the connection without an
    /// answer.
    HangsUp(bool),
    /// The fake does as for `Stores`, and its answer breaks off.
    Cut,
    /// The fake does as for `Stores`, and never answers.
    Silent,
    /// The fake answers after this time, if the object is new: with `stores`, as for `Stores`, and
    /// otherwise it stores nothing and answers 500. To a request for the same object that comes
    /// before, it answers 409, as S3 does if conditional writes race.
    Races { time: Duration, stores: bool },
    /// The fake stores nothing, and answers 200 with a web page.
    Page,
    /// The fake stores nothing, and answers 200 with an error document.
    FailsWith200,
    /// The fake does not implement `If-None-Match`: it answers 501 to it, and writes any other
    /// object over the one that is there.
    Unconditional,
}

/// The objects, and the requests so far.
#[derive(Default)]
pub(crate) struct Store {
    /// The bytes of each object, by its path below the prefix.
    pub(crate) objects: BTreeMap<String, Vec<u8>>,
    /// The paths of the objects, in the order in which they came first.
    pub(crate) order: Vec<String>,
    /// The number of requests to store an object.
    pub(crate) puts: usize,
    /// How many times an object came that was there already.
    pub(crate) again: usize,
    /// The end of the last request that takes long to store an object, by the name of the object.
    under_way: BTreeMap<String, Instant>,
    /// The headers `x-amz-storage-class` of the requests.
    pub(crate) classes: Vec<String>,
    /// The headers `x-amz-security-token` of the requests.
    pub(crate) sessions: Vec<String>,
    /// The headers `host` of the requests.
    pub(crate) hosts: BTreeSet<String>,
}

impl Store {
    /// Returns the lines of all objects in the order of their positions. Panics if the name of an
    /// object does not say what is in it, or if two objects overlap.
    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        lines(&self.objects)
    }
}

/// Returns the lines of an object whose name has this extension.
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

/// Returns the lines of these objects: see [`Store::lines`]. The keys are names below the prefix.
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
    /// Starts a server. `mood` is asked once for each request to store an object.
    pub(crate) fn start(mood: impl FnMut() -> Mood + Send + 'static) -> Self {
        Self::with(Options::default(), mood)
    }

    pub(crate) fn with(options: Options, mut mood: impl FnMut() -> Mood + Send + 'static) -> Self {
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let sink = HttpSink::remembering(options, move |request| {
            if !is_signed(request) {
                return error(403, "SignatureDoesNotMatch");
            }
            if request.method == "HEAD" {
                let is_there = request.target == format!("/{BUCKET}");
                return Answer::status(if is_there { 200 } else { 404 });
            }
            let (host, name) = check(request);
            let mut store = kept.lock().expect("not poisoned");
            store.hosts.insert(host);
            store.sessions.extend(request.header("x-amz-security-token").map(str::to_owned));
            store.puts += 1;
            store.classes.extend(request.header("x-amz-storage-class").map(str::to_owned));
            let (mood, condition) = (mood(), request.header("if-none-match"));
            if mood != Mood::Unconditional {
                assert_eq!(condition, Some("*"), "if-none-match");
            } else if condition.is_some() {
                return error(501, "NotImplemented");
            }
            match mood {
                Mood::Fails(status, code) => return error(status, code),
                Mood::FailsWith200 => return error(200, "InternalError"),
                // The page has a name for its version, as an object has.
                Mood::Page => return stored().body("\n<html>sign in</html>"),
                Mood::HangsUp(false) => return Answer::hang_up(),
                Mood::Stores | Mood::StoresAndFails | Mood::HangsUp(true) => {}
                Mood::Cut | Mood::Unconditional | Mood::Silent | Mood::Races { .. } => {}
            }
            if store.under_way.get(&name).is_some_and(|until| Instant::now() < *until) {
                return error(409, "ConditionalRequestConflict");
            }
            let is_there = store.objects.contains_key(&name);
            if is_there {
                store.again += 1;
                // A compressor may write the same lines in another way, if it gets them in other
                // parts: a start may read them in parts that the process before did not have.
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
                Mood::Stores | Mood::Races { .. } if is_there => error(412, "PreconditionFailed"),
                Mood::Stores | Mood::Unconditional => stored(),
                Mood::Races { time, .. } => stored().after(time),
                Mood::StoresAndFails => error(500, "InternalError"),
                Mood::HangsUp(_) => Answer::hang_up(),
                Mood::Silent => Answer::never(),
                Mood::Cut => Answer::raw("HTTP/1.1 200 OK\r\nContent-Len").closing(),
                Mood::Fails(..) | Mood::Page | Mood::FailsWith200 => {
                    unreachable!("answered above")
                }
            }
        });
        Self { sink, kept: store }
    }
}

fn stored() -> Answer {
    Answer::status(200).header("ETag", "\"9b2cf535f27731c974343645a3985328\"")
}

fn error(status: u16, code: &str) -> Answer {
    let body = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Key>x</Key></Error>");
    Answer::status(status).header("Content-Type", "application/xml").body(body)
}

/// Checks a request to store an object. Returns the host, and the name of the object below the
/// prefix. The bucket is in the path, or in the name of the host.
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
        ("x-amz-checksum-sha256", BASE64_STANDARD.encode(sha256)),
    ] {
        assert_eq!(request.header(header), Some(&*wanted), "{header}");
    }
    for header in ["content-encoding", "transfer-encoding", "expect"] {
        assert_eq!(request.header(header), None, "{header}");
    }
    (host.to_owned(), name.to_owned())
}

/// Returns `true` if the signature of a request is that of [`SECRET`] (AWS documentation, "Create
/// a signed AWS API request"). Panics if a header is not signed that must be.
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
    // The only URL with such parts in the tests: `PATH` escapes nothing else.
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
    /// Makes the files of the key that the servers know.
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

    /// Returns the config of an output `archive` at this address, with these further keys.
    pub(crate) fn output(&self, address: SocketAddr, more: &str) -> String {
        format!("[[output]]\nname = \"archive\"\n{}{more}\n", self.keys(address))
    }

    /// Returns the keys of an output at this address.
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

/// A strict fake of the Security Token Service. Each answer has the key that the fake of S3 knows,
/// and a new session, which it says to hold for two seconds.
pub(crate) struct Sts {
    pub(crate) sink: HttpSink,
}

/// The role that the relay must ask for.
pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/audit archive";

impl Sts {
    /// Starts a server that accepts this token of a service account.
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

/// Returns a time as `yyyy-mm-ddThh:mm:ssZ`.
fn rfc3339(time: SystemTime) -> String {
    let months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec";
    let text = httpdate::fmt_http_date(time);
    let parts: Vec<_> = text.split(' ').collect();
    let [_, day, name, year, clock, _] = parts[..] else { panic!("the date {text}") };
    let month = 1 + months.split(' ').position(|it| it == name).expect("a month");
    format!("{year}-{month:02}-{day}T{clock}Z")
}
