//! An HTTP/1.1 consumer whose answers a test decides.

use std::collections::VecDeque;
use std::io::{BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use super::http::{Head, Unannounced, read_body, read_head};
use super::server::{Connection, Options, Server, derefs_to_its_server};
use super::stream::Stream;
use super::wait_until;

/// A request that has been read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The request's number, counted from 0 over all connections in the order in which the requests
    /// became complete.
    pub(crate) number: usize,
    /// The connection that carried the request, counted from 0.
    pub(crate) connection: usize,
    pub(crate) method: String,
    /// The path and the query, as sent.
    pub(crate) target: String,
    pub(crate) head: Head,
    /// The body as sent, which may be compressed.
    pub(crate) body: Vec<u8>,
    /// When the head was complete (`began`) and when the body was complete (`read`).
    pub(crate) began: Instant,
    pub(crate) read: Instant,
    /// The status that was written, and when. `None` while the request waits for its answer, or if
    /// no status is written.
    pub(crate) answered: Option<(u16, Instant)>,
    /// True if the request was answered before its body was read. No other answer is written.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) is_early: bool,
}

impl Request {
    /// Returns the value of the first header of this name, or `None`. The name is given in lower
    /// case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the body with its Content-Encoding undone.
    pub(crate) fn decoded(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self.header("content-encoding") {
            None | Some("identity") => body.clone_from(&self.body),
            Some("gzip") => {
                let mut gzip = flate2::read::MultiGzDecoder::new(self.body.as_slice());
                gzip.read_to_end(&mut body).expect("gzip");
            }
            Some("zstd") => body = zstd::decode_all(self.body.as_slice()).expect("zstd"),
            Some(other) => panic!("a body in {other}"),
        }
        body
    }

    /// True if a 2xx status was written.
    pub(crate) fn is_accepted(&self) -> bool {
        self.answered.is_some_and(|(status, _)| (200..300).contains(&status))
    }
}

/// The reaction of the consumer to one request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    what: What,
    delay: Duration,
    close: bool,
    /// Written before the answer.
    interim: Vec<u8>,
    /// How many bytes are written before the connection is closed.
    cut: Option<usize>,
}

#[derive(Debug, Clone)]
enum What {
    Response { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    Raw(Vec<u8>),
    HangUp,
    Reset,
    Never,
    Interim { bytes: Vec<u8>, pause: Duration, times: u32 },
}

impl Answer {
    /// Answers with this status and no body.
    pub(crate) fn status(status: u16) -> Self {
        Self::of(What::Response { status, headers: Vec::new(), body: Vec::new() })
    }

    /// Writes these bytes instead of an answer. The connection is kept, unless `closing` is called
    /// too.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of(What::Raw(bytes.into()))
    }

    /// Gives no answer: closes the connection once the request is read.
    pub(crate) fn hang_up() -> Self {
        Self::of(What::HangUp)
    }

    /// Gives no answer: resets the connection once the request is read.
    pub(crate) fn reset() -> Self {
        Self::of(What::Reset)
    }

    /// Gives no answer for as long as the connection lives.
    pub(crate) fn never() -> Self {
        Self::of(What::Never)
    }

    /// Writes these bytes so many times, with a pause after each, and closes the connection.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn interim(bytes: &[u8], pause: Duration, times: u32) -> Self {
        Self::of(What::Interim { bytes: bytes.to_vec(), pause, times })
    }

    fn of(what: What) -> Self {
        Self { what, delay: Duration::ZERO, close: false, interim: Vec::new(), cut: None }
    }

    /// Returns the status, if it is an answer that has one.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn code(&self) -> Option<u16> {
        match self.what {
            What::Response { status, .. } => Some(status),
            What::Raw(_) | What::HangUp | What::Reset | What::Never | What::Interim { .. } => None,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if let What::Response { headers, .. } = &mut self.what {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        if let What::Response { body, .. } = &mut self.what {
            *body = bytes.into();
        }
        self
    }

    /// Answers only after this time.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Closes the connection after the answer. An answer with a head announces the close.
    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Closes the connection after this many bytes, or after the answer if it has fewer, and does
    /// not announce that.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Writes these bytes before an answer that has any.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn behind(mut self, interim: &[u8]) -> Self {
        self.interim = interim.to_vec();
        self
    }
}

/// What a consumer does with a request of which it has the head.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Reading {
    AtOnce,
    /// It pauses after each so many bytes of the body.
    Slowly {
        bytes: usize,
        pause: Duration,
    },
    /// It answers, if at least so many bytes of the body have not arrived. It reads the body then,
    /// and [`Request::is_early`] is `true`; or it resets the connection.
    Early {
        answer: Answer,
        missing: usize,
        resets: bool,
    },
}

/// The consumer. It `Deref`s to its [`Server`], for `pause`, `close`, `kill`, `reopen` and others.
pub(crate) struct HttpSink {
    server: Server,
    requests: Arc<Mutex<Vec<Request>>>,
    front: Arc<OnceLock<Box<Front>>>,
    #[allow(dead_code, reason = "the simulator uses it")]
    doorman: Arc<OnceLock<Box<Doorman>>>,
}

/// What stands in front of a consumer, like a balancer: it gets each request, and the function by
/// which the consumer itself answers.
type Front = dyn Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync;

/// Sees the head of each request, and the number of its connection.
type Doorman = dyn Fn(&Head, usize) -> Reading + Send + Sync;

impl HttpSink {
    /// Starts a consumer of plain HTTP. Many threads call `answer`, once for each complete request.
    pub(crate) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(Options::default(), answer)
    }

    /// Starts a consumer that answers 200 to everything.
    pub(crate) fn accepting() -> Self {
        Self::start(|_| Answer::status(200))
    }

    /// Returns the config of an output of this name that sends to the consumer. `more` holds
    /// further keys.
    pub(crate) fn output(&self, name: &str, more: &str) -> String {
        let url = format!("http://{}/", self.address());
        format!("[[output]]\nname = \"{name}\"\ntype = \"http\"\nurls = [\"{url}\"]\n{more}\n")
    }

    /// Starts a consumer that gives these answers, one for each request in the order in which the
    /// requests become complete. One request more panics.
    pub(crate) fn script(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        Self::start(move |request| {
            let next = answers.lock().expect("not poisoned").pop_front();
            next.unwrap_or_else(|| panic!("request {} is not in the script", request.number))
        })
    }

    pub(crate) fn with(
        options: Options,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::that(Bodies::Kept, options, answer)
    }

    /// Starts a consumer that keeps no bodies, for a test whose bodies together are too large for
    /// memory. The test looks at each body in `answer`.
    pub(crate) fn forgetful(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::forgetful_with(Options::default(), answer)
    }

    /// Like `forgetful_with`, with answers that depend on the requests before: they are made one
    /// after the other.
    pub(crate) fn remembering(
        options: Options,
        answer: impl FnMut(&Request) -> Answer + Send + 'static,
    ) -> Self {
        let answer = Mutex::new(answer);
        Self::forgetful_with(options, move |request| {
            let mut answer = answer.lock().expect("not poisoned");
            answer(request)
        })
    }

    pub(crate) fn forgetful_with(
        options: Options,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::that(Bodies::Forgotten, options, answer)
    }

    fn that(
        bodies: Bodies,
        options: Options,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let front = Arc::<OnceLock<Box<Front>>>::default();
        let doorman = Arc::<OnceLock<Box<Doorman>>>::default();
        let (for_handler, in_front) = (Arc::clone(&requests), Arc::clone(&front));
        let at_the_door = Arc::clone(&doorman);
        let server = Server::start(options, move |stream, connection| {
            let answer = |request: &Request| match in_front.get() {
                Some(front) => front(request, &answer),
                None => answer(request),
            };
            let reading = |head: &Head| match at_the_door.get() {
                Some(doorman) => doorman(head, connection.number),
                None => Reading::AtOnce,
            };
            serve(stream, connection, &for_handler, bodies, &reading, &answer);
        });
        Self { server, requests, front, doorman }
    }

    /// From now on, `doorman` decides what is done before the body of a request is read. Called
    /// once.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn stand_at_the_door(
        &self,
        doorman: impl Fn(&Head, usize) -> Reading + Send + Sync + 'static,
    ) {
        assert!(self.doorman.set(Box::new(doorman)).is_ok(), "somebody stands there already");
    }

    /// From now on, `front` answers each request. It may let the consumer answer, by its second
    /// argument. Called once.
    pub(crate) fn stand_in_front(
        &self,
        front: impl Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync + 'static,
    ) {
        assert!(self.front.set(Box::new(front)).is_ok(), "something stands in front already");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().expect("no panic while the requests are held")
    }

    /// Returns every request so far, in the order in which they became complete.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.lock().clone()
    }

    /// Returns how many requests became complete so far.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Returns the decoded bodies that were answered with 2xx, in the order of arrival.
    pub(crate) fn accepted(&self) -> Vec<Vec<u8>> {
        self.lock().iter().filter(|request| request.is_accepted()).map(Request::decoded).collect()
    }

    /// Waits until at least `count` requests are complete.
    pub(crate) fn wait_for_count(&self, count: usize, limit: Duration) {
        wait_until(&format!("{count} requests"), limit, || self.count() >= count);
    }
}

derefs_to_its_server!(HttpSink);

/// A consumer that keeps what has arrived, also while no process of the relay runs.
pub(crate) struct Keeper<Store> {
    pub(crate) sink: HttpSink,
    pub(crate) kept: Arc<Mutex<Store>>,
}

impl<Store> Keeper<Store> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.sink.address()
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.kept.lock().expect("not poisoned")
    }
}

/// Says if the consumer keeps a body once the request is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bodies {
    Kept,
    Forgotten,
}

/// Serves one connection until either side ends it.
fn serve(
    stream: Stream,
    connection: &Connection,
    requests: &Mutex<Vec<Request>>,
    bodies: Bodies,
    reading: &dyn Fn(&Head) -> Reading,
    answer: &dyn Fn(&Request) -> Answer,
) {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    // A client that resets the connection, or leaves in the middle of a request, has been answered
    // nothing.
    while connection.may_go_on() {
        let Ok(Some(head)) = read_head(&mut reader) else { return };
        let began = Instant::now();
        if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
            && reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err()
        {
            return;
        }
        let reading = reading(&head);
        let Some(is_early) = answers_first(&mut reader, connection, &head, &reading) else {
            return;
        };
        let body = match reading {
            Reading::Slowly { bytes, pause } => {
                read_slowly(&mut reader, connection, &head, bytes, pause)
            }
            Reading::AtOnce | Reading::Early { .. } => {
                read_body(&mut reader, &head, Unannounced::Empty).ok()
            }
        };
        let Some(body) = body else { return };
        if !connection.may_go_on() {
            return;
        }
        let asked_to_close = head.header("connection").is_some_and(|value| value == "close");
        let mut line = head.first_line.split(' ').map(str::to_owned);
        let mut request = {
            let mut requests = requests.lock().expect("not poisoned");
            let number = requests.len();
            let mut request = Request {
                number,
                connection: connection.number,
                method: line.next().unwrap_or_default(),
                target: line.next().unwrap_or_default(),
                head,
                body,
                began,
                read: Instant::now(),
                answered: None,
                is_early,
            };
            let forgotten =
                (bodies == Bodies::Forgotten).then(|| std::mem::take(&mut request.body));
            requests.push(request.clone());
            request.body = forgotten.unwrap_or(request.body);
            request
        };
        let answer = answer(&request);
        request.body = Vec::new();
        let last = answer.close || answer.cut.is_some() || asked_to_close;
        if is_early {
            continue;
        }
        // The answer is recorded before it is written, because a test that has read the answer may
        // look for the record at once.
        let record = |status: Option<u16>| {
            let mut requests = requests.lock().expect("not poisoned");
            requests[request.number].answered = status.map(|status| (status, Instant::now()));
        };
        if !connection.rest(answer.delay)
            || write(reader.get_mut(), connection, answer, record).is_none()
            || last
        {
            return;
        }
    }
}

/// Answers before the body is read, if that is wanted. Returns true if the request is answered,
/// and `None` if the connection is over.
fn answers_first(
    reader: &mut BufReader<Stream>,
    connection: &Connection,
    head: &Head,
    reading: &Reading,
) -> Option<bool> {
    let Reading::Early { answer, missing, resets } = reading else { return Some(false) };
    if announced(head) < reader.buffer().len() + missing {
        return Some(false);
    }
    write(reader.get_mut(), connection, answer.clone(), |_| {})?;
    if *resets {
        write(reader.get_mut(), connection, Answer::reset(), |_| {})?;
    }
    Some(true)
}

/// Reads a body in pieces of so many bytes, with pauses. Returns `None` if the connection is over.
fn read_slowly(
    reader: &mut BufReader<Stream>,
    connection: &Connection,
    head: &Head,
    bytes: usize,
    pause: Duration,
) -> Option<Vec<u8>> {
    let mut body = vec![0; announced(head)];
    for piece in body.chunks_mut(bytes) {
        reader.read_exact(piece).ok()?;
        connection.rest(pause).then_some(())?;
    }
    Some(body)
}

/// Returns the length of a request's body, which its head announces.
fn announced(head: &Head) -> usize {
    assert_eq!(head.header("transfer-encoding"), None, "a body of unknown length");
    head.header("content-length").map_or(0, |length| length.parse().expect("a length"))
}

/// Writes the answer, after `record` got its status. Returns `None` if the connection is over.
fn write(
    stream: &mut Stream,
    connection: &Connection,
    answer: Answer,
    record: impl FnOnce(Option<u16>),
) -> Option<()> {
    let (status, bytes) = match answer.what {
        What::Response { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} As-Told\r\n");
            for (name, value) in &headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            if answer.close {
                head.push_str("Connection: close\r\n");
            }
            if status != 204 && status != 304 {
                head.push_str(&format!("Content-Length: {}\r\n", body.len()));
            }
            head.push_str("\r\n");
            (Some(status), [head.into_bytes(), body].concat())
        }
        What::Raw(bytes) => {
            let status = bytes.get(9..12).and_then(|status| std::str::from_utf8(status).ok());
            (status.and_then(|status| status.parse().ok()), bytes)
        }
        What::HangUp => return None,
        What::Reset => {
            let socket = socket2::SockRef::from(stream.socket());
            socket.set_linger(Some(Duration::ZERO)).expect("a socket");
            return None;
        }
        What::Interim { bytes, pause, times } => {
            for _ in 0..times {
                stream.write_all(&bytes).and_then(|()| stream.flush()).ok()?;
                if !connection.rest(pause) {
                    break;
                }
            }
            return None;
        }
        What::Never => {
            while connection.rest(Duration::from_secs(3600)) {}
            return None;
        }
    };
    record(status);
    let bytes = [answer.interim, bytes].concat();
    let end = answer.cut.unwrap_or(bytes.len()).min(bytes.len());
    stream.write_all(&bytes[..end]).and_then(|()| stream.flush()).ok()
}
