//! A strict receiver of OTLP log records over HTTP. It has its own Protobuf decoder, checks the
//! headers and every field, and keeps the records while no relay runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::http_sink::{Answer, HttpSink, Keeper, Request};
use super::server::Options;

/// How the receiver handles one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Mood {
    /// The receiver stores the valid records, and sends 200 with the number of rejected records.
    Counts,
    /// If all records are valid, it stores them and responds with this status. Otherwise it stores
    /// nothing and responds with 400.
    Stores(u16),
    /// The receiver sends 413 if there are more than 50 records. Otherwise like `Stores(200)`.
    Small,
    /// The receiver closes the connection. If `true`, it has stored the valid records.
    HangsUp(bool),
    /// The receiver stores the valid records, but its answer breaks off.
    Cut,
    /// The receiver stores nothing, and responds with 200 and an empty web page.
    EmptyPage,
    /// Like [`Mood::Counts`], but it answers in JSON.
    CountsInJson,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attribute {
    Text(String),
    Int(i64),
    Texts(Vec<String>),
}

pub(crate) type Attributes = BTreeMap<String, Attribute>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Nanoseconds since 1970, or 0 if the time is not known.
    pub(crate) time: u64,
    pub(crate) observed: u64,
    pub(crate) severity: u64,
    pub(crate) severity_text: String,
    pub(crate) body: String,
    pub(crate) attributes: Attributes,
    pub(crate) resource: Attributes,
    /// The scope's name and version.
    pub(crate) scope: (String, String),
}

/// The records and the requests so far.
#[derive(Default)]
pub(crate) struct Store {
    /// The stored records. A record that was stored twice is there twice.
    pub(crate) records: Vec<Record>,
    /// How many records each request had.
    pub(crate) requests: Vec<usize>,
}

impl Store {
    pub(crate) fn bodies(&self) -> Vec<Vec<u8>> {
        self.records.iter().map(|record| record.body.clone().into_bytes()).collect()
    }
}

pub(crate) type Otlp = Keeper<Store>;

impl Otlp {
    /// Starts a receiver for requests of at most `bytes_max` bytes before compression. It calls
    /// `mood` once for each request, and `is_valid` once for each record's body.
    pub(crate) fn start(
        bytes_max: usize,
        mood: impl FnMut() -> Mood + Send + 'static,
        is_valid: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        Self::with(Options::default(), bytes_max, mood, is_valid)
    }

    pub(crate) fn with(
        options: Options,
        bytes_max: usize,
        mut mood: impl FnMut() -> Mood + Send + 'static,
        is_valid: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let sink = HttpSink::remembering(options, move |request| {
            let records = records(request, bytes_max);
            let mut store = kept.lock().expect("not poisoned");
            let count = records.len();
            store.requests.push(count);
            let (valid, refused): (Vec<_>, Vec<_>) =
                records.into_iter().partition(|record| is_valid(record.body.as_bytes()));
            let mood = mood();
            let stores = match mood {
                Mood::Counts | Mood::CountsInJson | Mood::HangsUp(true) | Mood::Cut => true,
                Mood::Stores(_) => refused.is_empty(),
                Mood::Small => count <= 50 && refused.is_empty(),
                Mood::HangsUp(false) | Mood::EmptyPage => false,
            };
            if stores {
                store.records.extend(valid);
            }
            match mood {
                Mood::Counts => Answer::status(200)
                    .header("Content-Type", "application/x-protobuf")
                    .body(partial_success(refused.len())),
                Mood::CountsInJson => {
                    let partial = match refused.len() {
                        0 => json!({}),
                        // In JSON, 64-bit numbers are strings, but not from every receiver.
                        1 => json!({"rejectedLogRecords": 1, "errorMessage": "s3cr3t"}),
                        many => json!({"rejectedLogRecords": many.to_string()}),
                    };
                    Answer::status(200)
                        .header("Content-Type", "application/json; charset=utf-8")
                        .body(json!({"partialSuccess": partial}).to_string())
                }
                Mood::Stores(status) if stores => Answer::status(status),
                Mood::Small if count > 50 => Answer::status(413),
                Mood::Small if stores => Answer::status(200),
                Mood::Stores(_) | Mood::Small => Answer::status(400).body("s3cr3t"),
                Mood::HangsUp(_) => Answer::hang_up(),
                Mood::Cut => {
                    Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\x0a\x07").closing()
                }
                Mood::EmptyPage => Answer::status(200).header("Content-Type", "text/html"),
            }
        });
        Self { sink, kept: store }
    }
}

/// Returns the config of an output to this receiver. `more` adds keys.
pub(crate) fn to_otlp(address: SocketAddr, more: &str) -> String {
    format!("[[output]]\nname = \"consumer\"\n{}{more}\n", keys(address))
}

/// Returns the keys of an output to this receiver.
pub(crate) fn keys(address: SocketAddr) -> String {
    format!("type = \"otlp\"\nurls = [\"http://{address}\"]\n")
}

/// Returns an `ExportLogsServiceResponse` with the number of rejected records and a message.
fn partial_success(refused: usize) -> Vec<u8> {
    let mut number = Vec::new();
    let mut rest = refused;
    while rest >= 128 {
        number.push(u8::try_from(rest % 128 + 128).expect("a byte"));
        rest /= 128;
    }
    number.push(u8::try_from(rest).expect("a byte"));
    let partial = [&[0x08], number.as_slice(), &[0x12, 6], b"s3cr3t"].concat();
    let length = u8::try_from(partial.len()).expect("short");
    [&[0x0a, length], partial.as_slice()].concat()
}

/// Returns the records of a request. Panics if the request does not conform to OTLP.
fn records(request: &Request, bytes_max: usize) -> Vec<Record> {
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/v1/logs"));
    assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
    assert!(matches!(request.header("content-encoding"), None | Some("gzip")));
    let body = request.decoded();
    let mut found = Vec::new();
    for (number, field) in fields(&body) {
        assert_eq!(number, 1, "resource_logs");
        let (mut resource, mut scopes) = (Attributes::new(), Vec::new());
        for (number, field) in fields(field.bytes()) {
            match number {
                1 => resource = attributes_of(field.bytes(), 1),
                2 => scopes.push(field.bytes()),
                other => panic!("field {other} of ResourceLogs"),
            }
        }
        for scope in scopes {
            found.extend(records_of(scope, &resource));
        }
    }
    assert!(!found.is_empty(), "a request without records");
    assert!(body.len() <= bytes_max || found.len() == 1, "{} bytes", body.len());
    found
}

/// Returns the records of a `ScopeLogs`.
fn records_of(scope_logs: &[u8], resource: &Attributes) -> Vec<Record> {
    let (mut scope, mut found) = (Default::default(), Vec::new());
    for (number, field) in fields(scope_logs) {
        match number {
            1 => {
                let of_scope = fields(field.bytes());
                let names: Vec<_> =
                    of_scope.iter().map(|(number, it)| (*number, it.text())).collect();
                let [(1, name), (2, version)] = names.as_slice() else { panic!("{names:?}") };
                scope = (name.clone(), version.clone());
            }
            2 => found.push(record(field.bytes())),
            other => panic!("field {other} of ScopeLogs"),
        }
    }
    for record in &mut found {
        record.scope = scope.clone();
        record.resource = resource.clone();
    }
    found
}

fn record(message: &[u8]) -> Record {
    let mut found = Record {
        time: 0,
        observed: 0,
        severity: 0,
        severity_text: String::new(),
        body: String::new(),
        attributes: attributes_of(message, 6),
        resource: Attributes::new(),
        scope: Default::default(),
    };
    for (number, field) in fields(message) {
        match (number, field) {
            (1, Field::Fixed64(time)) => found.time = time,
            (2, Field::Number(severity)) => found.severity = severity,
            (3, field) => found.severity_text = field.text(),
            (5, field) => {
                let Attribute::Text(body) = value(field.bytes()) else { panic!("a body") };
                found.body = body;
            }
            (6, _) => {}
            (11, Field::Fixed64(time)) => found.observed = time,
            (other, field) => panic!("field {other} of LogRecord: {field:?}"),
        }
    }
    found
}

/// Returns the attributes in the field `number` of a message. Panics if a key occurs twice.
fn attributes_of(message: &[u8], number: u64) -> Attributes {
    let mut attributes = Attributes::new();
    for (_, field) in fields(message).into_iter().filter(|(it, _)| *it == number) {
        let pair = fields(field.bytes());
        let [(1, key), (2, any)] = pair.as_slice() else { panic!("{pair:?}") };
        let before = attributes.insert(key.text(), value(any.bytes()));
        assert_eq!(before, None, "{} is there twice", key.text());
    }
    attributes
}

/// Reads an `AnyValue`.
fn value(message: &[u8]) -> Attribute {
    let found = fields(message);
    match found.as_slice() {
        [(1, text)] => Attribute::Text(text.text()),
        [(3, Field::Number(number))] => Attribute::Int(number.cast_signed()),
        [(5, array)] => {
            let elements = fields(array.bytes()).into_iter().map(|(number, element)| {
                let Attribute::Text(text) = value(element.bytes()) else { panic!("a text") };
                assert_eq!(number, 1, "values");
                text
            });
            Attribute::Texts(elements.collect())
        }
        other => panic!("a value {other:?}"),
    }
}

/// The value of a Protobuf field.
#[derive(Debug, Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn bytes(self) -> &'a [u8] {
        let Self::Bytes(bytes) = self else { panic!("{self:?} is not bytes") };
        bytes
    }

    fn text(self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("UTF-8")
    }
}

/// Returns the number and the value of each field of a message.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let field = match key % 8 {
            0 => Field::Number(varint(&mut message)),
            1 => {
                let (bytes, rest) = message.split_first_chunk().expect("8 bytes");
                message = rest;
                Field::Fixed64(u64::from_le_bytes(*bytes))
            }
            2 => {
                let length = usize::try_from(varint(&mut message)).expect("a length");
                let (bytes, rest) = message.split_at(length);
                message = rest;
                Field::Bytes(bytes)
            }
            other => panic!("the wire type {other}"),
        };
        found.push((key / 8, field));
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let length = message.iter().position(|byte| *byte < 0x80).expect("the end of a number") + 1;
    let (bytes, rest) = message.split_at(length);
    *message = rest;
    let number = bytes.iter().rev().fold(0_u128, |n, byte| n * 128 + u128::from(byte % 128));
    u64::try_from(number).expect("64 bits")
}
