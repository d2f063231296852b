//! Strict fakes of IBM Cloud's IAM and of IBM Cloud Logs, both with TLS. They check every request:
//! method, path, headers, sizes and fields. They keep the stored events while no relay runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::certificates::Certificates;
use super::http_sink::{Answer, HttpSink, Request};
use super::server::Options;

/// A part of every API key and service account token here. The tests search for it in the relay's
/// output.
pub(crate) const SECRET: &str = "s3cr3t-0f-1bm";

/// A part of every token that IAM issues.
pub(crate) const TOKEN: &str = "eyJ0b2tlbi";

/// The size limit of a request to IBM Cloud Logs, in bytes. A single record may exceed it.
pub(crate) const REQUEST_BYTES_MAX: usize = 2_000_000;

/// A credential that IAM accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Key(String),
    Profile { id: String, token: String },
}

impl Credential {
    /// Returns an API key with this ending.
    pub(crate) fn key(ending: &str) -> Self {
        Self::Key(format!("{SECRET}+/&={ending}"))
    }

    /// Returns the form fields with which the credential is sent to IAM.
    fn form(&self) -> BTreeMap<String, String> {
        let grant = "urn:ibm:params:oauth:grant-type";
        let pairs = match self {
            Self::Key(key) => {
                vec![("grant_type", format!("{grant}:apikey")), ("apikey", key.clone())]
            }
            Self::Profile { id, token } => vec![
                ("grant_type", format!("{grant}:cr-token")),
                ("cr_token", token.clone()),
                ("profile_id", id.clone()),
            ],
        };
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// How IAM handles one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// IAM issues a token if the credential is right. Otherwise it responds with 400.
    Judges,
    /// IAM responds with this status.
    Status(u16),
    /// IAM responds with 200 and a body that is not JSON.
    Babbles,
    /// IAM responds with 200 and an empty token.
    Empty,
    /// IAM answers with bytes that are not HTTP.
    Garbage,
    /// It closes the connection without an answer.
    HangsUp,
}

/// How IBM Cloud Logs handles one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Mood {
    /// The service stores the records. If one is bad, it stores nothing and responds with 400.
    Stores,
    /// The service responds with this status and stores nothing.
    Status(u16),
    /// The service responds with 413 if there are more than 50 records. Otherwise like `Stores`.
    Small,
    /// Like `Stores`, but it closes the connection instead of responding with 200.
    Mute,
    /// The service resets the connection and stores nothing.
    Resets,
    /// The service forgets all tokens, so it responds to this request with 401.
    Revokes,
    /// The service responds with 200 and a web page, and stores nothing.
    Page,
}

/// Whether an event is bad. The response to a request with a bad event is 400.
type IsBad = Box<dyn Fn(&[u8]) -> bool + Send>;

/// How the two services behave.
pub(crate) struct Script {
    pub(crate) credential: Credential,
    /// The lifetime of a token that IAM reports, in seconds.
    pub(crate) expires_in: u64,
    /// For how long IBM Cloud Logs accepts a token.
    pub(crate) life: Duration,
    pub(crate) grant: Box<dyn FnMut() -> Grant + Send>,
    pub(crate) mood: Box<dyn FnMut() -> Mood + Send>,
    pub(crate) is_bad: IsBad,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            credential: Credential::key("1"),
            expires_in: 3600,
            life: Duration::from_secs(3600),
            grant: Box::new(|| Grant::Judges),
            mood: Box::new(|| Mood::Stores),
            is_bad: Box::new(|_| false),
        }
    }
}

/// The state of both services.
pub(crate) struct Memory {
    script: Script,
    /// The valid tokens, and when each of them expires.
    tokens: BTreeMap<String, Instant>,
    /// How many tokens IAM has issued.
    pub(crate) given: usize,
    /// How many requests IAM has received.
    pub(crate) asked: usize,
    /// The stored events. An event that was stored twice is there twice.
    pub(crate) stored: Vec<Vec<u8>>,
    /// The application name and the subsystem name of each stored event.
    pub(crate) names: Vec<(String, String)>,
    /// The size in bytes and the number of records of each request with records.
    pub(crate) sizes: Vec<(usize, usize)>,
    /// How many requests to IBM Cloud Logs had a token that is not valid.
    pub(crate) unauthorized: usize,
    /// When the fakes were started, in milliseconds since 1970.
    started: i64,
}

impl Memory {
    /// Changes the credential that IAM accepts.
    pub(crate) fn accept(&mut self, credential: Credential) {
        self.script.credential = credential;
    }

    /// Forgets all tokens. The response to requests with them is then 401.
    pub(crate) fn revoke(&mut self) {
        self.tokens.clear();
    }

    fn iam(&mut self, request: &Request) -> Answer {
        self.asked += 1;
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/identity/token"));
        assert_headers(
            request,
            &[
                ("accept", "application/json"),
                ("content-type", "application/x-www-form-urlencoded"),
            ],
        );
        let pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(&request.body).into_owned().collect();
        let form: BTreeMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(form.len(), pairs.len(), "a field comes twice");
        match (self.script.grant)() {
            Grant::Status(status) => Answer::status(status).body(SECRET),
            Grant::Babbles => Answer::status(200).body("<html>welcome</html>"),
            Grant::Empty => Answer::status(200).body(r#"{"access_token":"","expires_in":3600}"#),
            Grant::Garbage => Answer::raw("SSH-2.0-OpenSSH_9.2\r\n").closing(),
            Grant::HangsUp => Answer::hang_up(),
            Grant::Judges if form != self.script.credential.form() => {
                let known: Vec<_> = form.keys().map(String::as_str).collect();
                let wanted = self.script.credential.form();
                assert_eq!(known, wanted.keys().map(String::as_str).collect::<Vec<_>>());
                // IAM can repeat in its answer what it was sent.
                let answer =
                    json!({"errorCode": "BXNIM0415E", "errorMessage": format!("{form:?}")});
                Answer::status(400).body(answer.to_string())
            }
            Grant::Judges => {
                self.given += 1;
                let token = format!("{TOKEN}.{}", self.given);
                let until = Instant::now() + self.script.life;
                self.tokens.insert(token.clone(), until);
                let answer = json!({
                    "access_token": token, "refresh_token": "not_supported",
                    "token_type": "Bearer", "expires_in": self.script.expires_in,
                    "expiration": 1_700_000_000, "scope": "ibm openid",
                });
                Answer::status(200)
                    .header("Content-Type", "application/json")
                    .body(answer.to_string())
            }
        }
    }

    fn logs(&mut self, request: &Request) -> Answer {
        assert_eq!(
            (request.method.as_str(), request.target.as_str()),
            ("POST", "/logs/v1/singles")
        );
        let authorization = request.header("authorization").expect("a token").to_owned();
        assert_headers(
            request,
            &[("authorization", &authorization), ("content-type", "application/json")],
        );
        // `check --connect` sends an array without records.
        let is_test = request.body == b"[]";
        let records = if is_test { Vec::new() } else { self.records(&request.body) };
        if !is_test {
            self.sizes.push((request.body.len(), records.len()));
        }
        let token = authorization.strip_prefix("Bearer ").expect("a bearer token");
        assert!(token.starts_with(TOKEN), "no token of IAM");
        let mood = (self.script.mood)();
        if mood == Mood::Revokes {
            self.revoke();
        }
        if self.tokens.get(token).is_none_or(|until| *until < Instant::now()) {
            self.unauthorized += 1;
            return Answer::status(401).body(authorization);
        }
        match mood {
            Mood::Status(status) => return Answer::status(status).body(authorization),
            Mood::Resets => return Answer::reset(),
            Mood::Page => return Answer::status(200).body("<html>sign in</html>"),
            Mood::Small if records.len() > 50 => return Answer::status(413),
            Mood::Stores | Mood::Small | Mood::Mute | Mood::Revokes => {}
        }
        if records.iter().any(|record| (self.script.is_bad)(record.text.get().as_bytes())) {
            return Answer::status(400).body(authorization);
        }
        for record in &records {
            self.stored.push(record.text.get().as_bytes().to_vec());
            let names = (record.application_name.clone(), record.subsystem_name.clone());
            self.names.push(names);
        }
        if mood == Mood::Mute { Answer::hang_up() } else { Answer::status(200).body("{}") }
    }

    /// Returns the records of a request. Panics if the API would refuse the request.
    fn records<'b>(&self, body: &'b [u8]) -> Vec<Record<'b>> {
        let records: Vec<Record<'_>> = serde_json::from_slice(body).expect("an array of records");
        assert!(!records.is_empty(), "a request without records");
        let is_small = body.len() <= REQUEST_BYTES_MAX || records.len() == 1;
        assert!(is_small, "{} bytes in {} records", body.len(), records.len());
        for record in &records {
            assert!(!record.application_name.is_empty() && !record.subsystem_name.is_empty());
            let text = record.text.get();
            let event: Event = serde_json::from_str(text).expect("the text is an event");
            let code = event.response_status.and_then(|status| status.code).unwrap_or(0);
            let severity = if code >= 500 {
                5
            } else if code >= 400 {
                4
            } else {
                3
            };
            assert_eq!(record.severity, severity, "{text}");
            match event.stage_timestamp {
                Some(time) => assert_eq!(record.timestamp, millis(&time), "{time}"),
                None => assert!((self.started..=now()).contains(&record.timestamp), "{text}"),
            }
        }
        records
    }
}

/// One record of a request. A field that the API does not know is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record<'b> {
    application_name: String,
    subsystem_name: String,
    severity: u8,
    timestamp: i64,
    #[serde(borrow)]
    text: &'b RawValue,
}

/// The members of an event on which a record depends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage_timestamp: Option<String>,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    code: Option<i64>,
}

/// Checks that a request has these headers, those that every request has, and no others.
fn assert_headers(request: &Request, wanted: &[(&str, &str)]) {
    let length = request.body.len().to_string();
    let agent = request.header("user-agent").expect("a user agent");
    assert!(agent.starts_with("kube-audit-forwarder/"), "{agent}");
    let host = request.header("host").expect("a host");
    assert!(host.starts_with("localhost:"), "{host}");
    let always = [
        ("accept-encoding", "identity"),
        ("content-length", length.as_str()),
        ("host", host),
        ("user-agent", agent),
    ];
    let mut wanted: Vec<_> = wanted.iter().copied().chain(always).collect();
    wanted.sort_unstable();
    let headers = request.head.headers.iter();
    let mut headers: Vec<_> =
        headers.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    headers.sort_unstable();
    assert_eq!(headers, wanted);
}

/// Returns the current time in milliseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("few")
}

/// Converts a time in kube-apiserver's format to whole milliseconds since 1970. It uses a calendar
/// that the relay does not use.
fn millis(time: &str) -> i64 {
    let (date, rest) = time.split_once('T').expect("a date and a time");
    let mut date = date.split('-');
    let year = date.next().expect("a year").parse().expect("a number");
    let [month, day] =
        [(); 2].map(|()| date.next().expect("three numbers").parse().expect("a number"));
    let midnight = rcgen::date_time_ymd(year, month, day).unix_timestamp();
    let clock = rest.strip_suffix('Z').expect("kube-apiserver writes UTC");
    let mut clock = clock.split(':').map(|number| number.parse::<f64>().expect("a number"));
    let mut next = || clock.next().expect("three numbers");
    let (hours, minutes, seconds) = (next(), next(), next());
    let micros = (seconds * 1e6).round();
    #[allow(clippy::cast_possible_truncation, reason = "whole numbers below 2^53")]
    let of_day = ((hours * 60.0 + minutes) * 60_000.0 + (micros / 1000.0).floor()) as i64;
    midnight * 1000 + of_day
}

/// The two services, and the certificates that both present.
pub(crate) struct Ibm {
    pub(crate) iam: HttpSink,
    pub(crate) logs: HttpSink,
    pub(crate) certificates: Certificates,
    pub(crate) memory: Arc<Mutex<Memory>>,
}

impl Ibm {
    pub(crate) fn start(script: Script) -> Self {
        Self::with(&Options::default(), script)
    }

    pub(crate) fn with(options: &Options, script: Script) -> Self {
        let certificates = Certificates::new();
        let memory = Memory {
            script,
            tokens: BTreeMap::new(),
            given: 0,
            asked: 0,
            stored: Vec::new(),
            names: Vec::new(),
            sizes: Vec::new(),
            unauthorized: 0,
            started: now(),
        };
        let memory = Arc::new(Mutex::new(memory));
        let options = || Options {
            tls: Some(certificates.server_config(&certificates.server, false)),
            ..options.clone()
        };
        let of_iam = Arc::clone(&memory);
        let iam = HttpSink::forgetful_with(options(), move |request| {
            of_iam.lock().expect("not poisoned").iam(request)
        });
        let of_logs = Arc::clone(&memory);
        let logs = HttpSink::forgetful_with(options(), move |request| {
            of_logs.lock().expect("not poisoned").logs(request)
        });
        Self { iam, logs, certificates, memory }
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("not poisoned")
    }

    /// Returns the config of an output with this name. `more` must have its credentials.
    pub(crate) fn output(&self, name: &str, more: &str) -> String {
        let keys = keys(self.logs.address(), self.iam.address());
        format!("[[output]]\nname = \"{name}\"\n{keys}{more}\n")
    }
}

/// Returns the keys of an output, without its credentials. The output uses the ports of these
/// addresses.
pub(crate) fn keys(logs: SocketAddr, iam: SocketAddr) -> String {
    let (logs, iam) = (logs.port(), iam.port());
    format!(
        "type = \"ibm_cloud_logs\"\nurls = [\"https://localhost:{logs}\"]\n\
         iam_url = \"https://localhost:{iam}\"\n"
    )
}

/// Writes the secret of a credential into a file.
pub(crate) fn write_secret(file: &Path, credential: &Credential) {
    let (Credential::Key(secret) | Credential::Profile { token: secret, .. }) = credential;
    std::fs::write(file, format!("{secret}\n")).expect("a writable directory");
}
