//! A strict fake of Splunk's HTTP Event Collector. It checks the headers, the path and the
//! envelopes of every request. If acknowledgements are on, it indexes events when the relay asks
//! about them and its script says so. It keeps the indexed events while no relay runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use serde_json::value::RawValue;

use super::http_sink::{Answer, HttpSink, Keeper, Request};
use super::server::Options;

/// The token that the relay must send.
pub(crate) const TOKEN: &str = "b0221cd8-c4b4-465a-9a3c-273e3a75aa29";

/// How the collector handles one request.
#[derive(Debug, Clone, PartialEq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Mood {
    /// The collector accepts events, or says which requests are indexed.
    Serves,
    /// The collector responds with this status and code, and accepts nothing.
    Refuses(u16, u16),
    /// The collector sends 413 in HTML if there are more than 50 events. Otherwise like `Serves`.
    Small,
    /// Like `Serves`, but it closes the connection without an answer.
    Mute,
    /// Like `Serves`, but a proxy answers with this status.
    Babbles(u16),
    /// The collector forgets the events that are not indexed, and closes the connection.
    Restarts,
    /// The collector accepts only this many events of a request and is then busy. Its answer names
    /// the first event that it did not accept.
    BusyAfter(usize),
}

/// The collector's events and requests so far.
#[derive(Default)]
pub(crate) struct Store {
    /// The indexed events, in the order of their indexing.
    pub(crate) indexed: Vec<Vec<u8>>,
    /// The accepted requests that are not indexed, by channel and number.
    waiting: BTreeMap<(String, u64), Vec<Vec<u8>>>,
    /// The connection of each channel, and the number of its next request.
    channels: BTreeMap<String, (usize, u64)>,
    /// The number of events in each request with events.
    pub(crate) requests: Vec<usize>,
    /// The number of requests that each question was about.
    pub(crate) questions: Vec<usize>,
    /// The envelopes of the last request, without their events.
    pub(crate) envelopes: Vec<BTreeMap<String, String>>,
}

impl Store {
    /// Forgets the events that are not indexed, and counts from 0 again. A server that restarts
    /// behind a proxy does this, and the proxy keeps the relay's connections.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
        self.channels.values_mut().for_each(|(_, next)| *next = 0);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// Whether acknowledgements are on for the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    On,
    Off,
}

pub(crate) type Splunk = Keeper<Store>;

/// How a collector behaves.
pub(crate) struct Script {
    pub(crate) acks: Acks,
    pub(crate) bytes_max: usize,
    /// Called once for each request.
    pub(crate) mood: Box<dyn FnMut() -> Mood + Send>,
    /// Called each time that the relay asks about a request. Returns whether it is indexed.
    pub(crate) indexes: Box<dyn FnMut() -> bool + Send>,
    /// Whether an event is invalid.
    pub(crate) is_bad: fn(&[u8]) -> bool,
}

impl Default for Script {
    /// A collector that accepts all events, and indexes them when the relay first asks.
    fn default() -> Self {
        Self {
            acks: Acks::On,
            bytes_max: 1_000_000,
            mood: Box::new(|| Mood::Serves),
            indexes: Box::new(|| true),
            is_bad: |_| false,
        }
    }
}

impl Splunk {
    pub(crate) fn start(script: Script) -> Self {
        Self::with(Options::default(), script)
    }

    pub(crate) fn with(options: Options, script: Script) -> Self {
        let store = Arc::<Mutex<Store>>::default();
        let kept = Arc::clone(&store);
        let script = Mutex::new(script);
        let sink = HttpSink::forgetful_with(options, move |request| {
            let mut script = script.lock().expect("not poisoned");
            let mut store = kept.lock().expect("not poisoned");
            store.answers(request, &mut script)
        });
        Self { sink, kept: store }
    }
}

/// A load balancer in front of several collectors. It sends each request to the next one.
pub(crate) struct Balancer {
    pub(crate) sink: HttpSink,
    collectors: Arc<Mutex<Vec<Store>>>,
}

impl Balancer {
    pub(crate) fn start(collectors: usize) -> Self {
        let stores: Vec<_> = (0..collectors).map(|_| Store::default()).collect();
        let collectors = Arc::new(Mutex::new(stores));
        let behind = Arc::clone(&collectors);
        let (mut script, mut turn) = (Script::default(), 0);
        let sink = HttpSink::remembering(Options::default(), move |request| {
            let mut stores = behind.lock().expect("not poisoned");
            let store = turn % stores.len();
            turn += 1;
            stores[store].answers(request, &mut script)
        });
        Self { sink, collectors }
    }

    /// Returns the indexed events of all collectors.
    pub(crate) fn indexed(&self) -> Vec<Vec<u8>> {
        let collectors = self.collectors.lock().expect("not poisoned");
        collectors.iter().flat_map(|store| store.indexed.clone()).collect()
    }
}

fn refusal(status: u16, code: u16) -> Answer {
    Answer::status(status).body(json!({"text": "no", "code": code}).to_string())
}

impl Store {
    /// Handles a request as the script says, and returns the answer.
    fn answers(&mut self, request: &Request, script: &mut Script) -> Answer {
        let mood = (script.mood)();
        assert_eq!(request.method, "POST");
        let token = format!("Splunk {TOKEN}");
        assert_eq!(request.header("authorization"), Some(token.as_str()));
        assert_eq!(request.header("content-type"), Some("application/json"));
        match mood {
            Mood::Refuses(status, code) => return refusal(status, code),
            Mood::Restarts => {
                (self.waiting, self.channels) = Default::default();
                return Answer::hang_up();
            }
            Mood::Serves | Mood::Small | Mood::Mute | Mood::Babbles(_) | Mood::BusyAfter(_) => {}
        }
        let answer = match request.target.as_str() {
            "/services/collector/event" => {
                let envelopes = envelopes(request, script.bytes_max);
                self.requests.push(envelopes.len());
                if mood == Mood::Small && envelopes.len() > 50 {
                    return Answer::status(413).body("<html>too large</html>");
                }
                self.takes(request, envelopes, &mood, script)
            }
            "/services/collector/ack" => self.says(request, &mut script.indexes),
            other => panic!("{other} is no path of the collector"),
        };
        match mood {
            Mood::Mute => Answer::hang_up(),
            Mood::Babbles(status) => Answer::status(status).body("<html>welcome</html>"),
            Mood::Serves
            | Mood::Small
            | Mood::Refuses(..)
            | Mood::Restarts
            | Mood::BusyAfter(_) => answer,
        }
    }

    /// Returns the channel of a request. No other connection may use it.
    fn channel(&mut self, request: &Request) -> String {
        let channel = request.header("x-splunk-request-channel").expect("a channel").to_owned();
        let groups: Vec<_> = channel.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{channel} is no UUID");
        let (connection, _) =
            *self.channels.entry(channel.clone()).or_insert((request.connection, 0));
        assert_eq!(connection, request.connection, "the channel belongs to another connection");
        channel
    }

    fn takes(
        &mut self,
        request: &Request,
        envelopes: Vec<(BTreeMap<String, String>, Vec<u8>)>,
        mood: &Mood,
        script: &Script,
    ) -> Answer {
        let wants_acks = request.header("x-splunk-request-channel").is_some();
        if wants_acks && script.acks == Acks::Off {
            return refusal(400, 14);
        }
        let bad = envelopes.iter().position(|(_, event)| (script.is_bad)(event));
        let busy_after = if let Mood::BusyAfter(taken) = mood { Some(*taken) } else { None };
        let end = match busy_after.filter(|taken| *taken < bad.unwrap_or(envelopes.len())) {
            Some(taken) => Some((taken, 503, 9, "Server is busy")),
            None => bad.map(|bad| (bad, 400, 6, "Invalid data format")),
        };
        self.envelopes = envelopes.iter().map(|(envelope, _)| envelope.clone()).collect();
        let mut events: Vec<_> = envelopes.into_iter().map(|(_, event)| event).collect();
        if let Some((end, status, code, text)) = end {
            // The events before it are indexed, but the relay gets no number to ask about them.
            events.truncate(end);
            self.indexed.append(&mut events);
            let answer = json!({"text": text, "code": code, "invalid-event-number": end});
            return Answer::status(status).body(answer.to_string());
        }
        if !wants_acks {
            self.indexed.append(&mut events);
            return Answer::status(200).body(r#"{"text":"Success","code":0}"#);
        }
        let channel = self.channel(request);
        let (_, next) = self.channels.get_mut(&channel).expect("it was just made");
        let number = *next;
        *next += 1;
        self.waiting.insert((channel, number), events);
        // Every third number is a string, as some servers send it.
        let answer = match number % 3 {
            0 => json!({"text": "Success", "code": 0, "ackId": number.to_string()}),
            1 => json!({"text": "Queue near capacity", "code": 24, "ackId": number}),
            _ => json!({"text": "Success", "code": 0, "ackId": number}),
        };
        Answer::status(200).body(answer.to_string())
    }

    fn says(&mut self, request: &Request, indexes: &mut impl FnMut() -> bool) -> Answer {
        let channel = self.channel(request);
        let asked: BTreeMap<String, Vec<u64>> =
            serde_json::from_slice(&request.decoded()).expect("a question");
        let [numbers] = asked.values().collect::<Vec<_>>()[..] else { panic!("{asked:?}") };
        assert!(asked.contains_key("acks") && !numbers.is_empty(), "{asked:?}");
        self.questions.push(numbers.len());
        let mut acks = serde_json::Map::new();
        for number in numbers {
            let key = (channel.clone(), *number);
            // A number is reported as indexed once and then forgotten.
            let is_indexed = self.waiting.contains_key(&key) && indexes();
            if is_indexed {
                self.indexed.append(&mut self.waiting.remove(&key).expect("it is there"));
            }
            acks.insert(number.to_string(), is_indexed.into());
        }
        Answer::status(200).body(json!({"acks": acks}).to_string())
    }
}

/// Returns the config of an output to this collector. `token` is the file with the token.
pub(crate) fn to_splunk(address: SocketAddr, token: &str, more: &str) -> String {
    format!("[[output]]\nname = \"consumer\"\n{}{more}\n", keys(address, token))
}

/// Returns the keys of an output to this collector. `token` is the file with the token.
pub(crate) fn keys(address: SocketAddr, token: &str) -> String {
    format!(
        "type = \"splunk_hec\"\nurls = [\"http://{address}\"]\ntoken_file = \"{token}\"\n\
         host = \"h\"\n"
    )
}

/// Returns the envelopes of a request with their events. Panics if the collector would refuse it.
fn envelopes(request: &Request, bytes_max: usize) -> Vec<(BTreeMap<String, String>, Vec<u8>)> {
    let body = request.decoded();
    let envelopes = serde_json::Deserializer::from_slice(&body).into_iter();
    let mut found = Vec::new();
    for envelope in envelopes {
        let envelope: BTreeMap<String, &RawValue> = envelope.expect("objects, one after the other");
        let mut texts: BTreeMap<String, String> =
            envelope.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
        let event = texts.remove("event").expect("an event").into_bytes();
        let (seconds, fraction) = texts["time"].split_once('.').expect("a decimal");
        let is_decimal = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        assert!(is_decimal(seconds) && is_decimal(fraction) && seconds.len() >= 9, "{texts:?}");
        found.push((texts, event));
    }
    assert!(body.len() <= bytes_max || found.len() == 1, "{} bytes", body.len());
    found
}
