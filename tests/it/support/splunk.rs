//! A strict HTTP Event Collector of Splunk. It checks every header, path and envelope. It keeps the
//! events that it has taken in memory, indexes them when it is asked and its script says so, and
//! keeps the indexed ones also while no process of the relay runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use serde_json::value::RawValue;

use super::http_sink::{Answer, HttpSink, Keeper, Request};
use super::server::Options;

/// The token that the relay's config must name.
pub(crate) const TOKEN: &str = "b0221cd8-c4b4-465a-9a3c-273e3a75aa29";

/// What the collector does with one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mood {
    /// It takes events, or says which requests are indexed.
    Serves,
    /// It answers this status and code, and takes nothing.
    Refuses(u16, u16),
    /// It answers 413 in HTML to a request of more than 50 events, and serves any other.
    Small,
    /// It serves, and closes the connection without an answer.
    Mute,
    /// It serves, and answers something that is not the collector's.
    Babbles,
    /// It forgets all that it has not indexed, and closes the connection.
    Restarts,
    /// It takes this many events of a request, and is busy then: its answer names the first event
    /// that it did not take. It serves a request that has no more events.
    BusyAfter(usize),
}

/// The collector's events and requests so far.
#[derive(Default)]
pub(crate) struct Store {
    /// The events that are indexed, in the order in which that happened.
    pub(crate) indexed: Vec<Vec<u8>>,
    /// The requests that were taken and are not indexed: by channel and number.
    waiting: BTreeMap<(String, u64), Vec<Vec<u8>>>,
    /// The connection of each channel, and its next number.
    channels: BTreeMap<String, (usize, u64)>,
    /// How many events each request with events had.
    pub(crate) requests: Vec<usize>,
    /// How many requests each question asked about.
    pub(crate) questions: Vec<usize>,
    /// The envelopes of the last request, without their events.
    pub(crate) envelopes: Vec<BTreeMap<String, String>>,
}

impl Store {
    /// Forgets all that is not indexed, and counts from 0 again, as a server does that starts anew
    /// behind a proxy, which keeps the relay's connections.
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

/// The functions that decide what a collector does.
pub(crate) struct Script {
    pub(crate) acks: Acks,
    pub(crate) bytes_max: usize,
    /// Asked once for each request.
    pub(crate) mood: Box<dyn FnMut() -> Mood + Send>,
    /// Asked whether a request is indexed, each time that the relay asks about it.
    pub(crate) indexes: Box<dyn FnMut() -> bool + Send>,
    /// Whether an event is not valid.
    pub(crate) is_bad: fn(&[u8]) -> bool,
}

impl Default for Script {
    /// A collector that takes and indexes everything at once.
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

/// A balancer of HTTP requests in front of several collectors, which take turns.
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

    /// Returns the events that are indexed, of all collectors.
    pub(crate) fn indexed(&self) -> Vec<Vec<u8>> {
        let collectors = self.collectors.lock().expect("not poisoned");
        collectors.iter().flat_map(|store| store.indexed.clone()).collect()
    }
}

fn refusal(status: u16, code: u16) -> Answer {
    Answer::status(status).body(json!({"text": "no", "code": code}).to_string())
}

impl Store {
    /// Does what the script says with a request, and returns the answer.
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
            Mood::Serves | Mood::Small | Mood::Mute | Mood::Babbles | Mood::BusyAfter(_) => {}
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
            Mood::Babbles => Answer::status(200).body("<html>welcome</html>"),
            Mood::Serves
            | Mood::Small
            | Mood::Refuses(..)
            | Mood::Restarts
            | Mood::BusyAfter(_) => answer,
        }
    }

    /// Returns the channel of a request, which must belong to its connection alone.
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
            // Those before it are indexed, and there is no number to ask for them.
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
        // Each third number is a string, as some servers send it.
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
            // A number is true once, and then forgotten.
            let is_indexed = self.waiting.contains_key(&key) && indexes();
            if is_indexed {
                self.indexed.append(&mut self.waiting.remove(&key).expect("it is there"));
            }
            acks.insert(number.to_string(), is_indexed.into());
        }
        Answer::status(200).body(json!({"acks": acks}).to_string())
    }
}

/// Returns the output's table of the config. `token` is the file with the token.
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

/// Returns the envelopes of a request with their events. Panics if the request is not as the
/// collector wants it.
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
