//! The troubles of [`Demand`]. Each asks the relay for one promise.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::Operator;
use super::staged::{SHORT, SOON, join, seconds};
use crate::consumers::Steady;
use crate::events::{Event, Facts, Marks, Serial, identify};
use crate::kernel::disk;
use crate::kernel::net::Fault;
use crate::plan::{Action, Change, Demand, Why};
use crate::setup::{LISTENER, POLICIES};
use crate::truth::{Answer, Filter, Kind as Death};
use crate::{kernel, reach, senders};

/// How many events are set aside at once.
const MANY: usize = 60;

/// How long an event may take while others are set aside, each try of which takes 700 ms: one try
/// at a time is made, in turn with other requests (see refused-events.md).
const BESIDE: Duration = Duration::from_secs(3);

/// The shortest `replay_window` of an output without acknowledgements, less the time for which its
/// consumer does not read before it crashes.
const WINDOW: Duration = Duration::from_millis(1500);

/// `rate_limit` in bytes per second.
const RATE: f64 = 4000.0;

/// The groups and resources whose bodies are tokens (see redaction.md).
const TOKENS: [(&str, &str); 4] = [
    ("", "serviceaccounts/token"),
    ("stores.example.com", "serviceaccounts/token"),
    ("authentication.k8s.io", "tokenreviews"),
    ("oauth.openshift.io", "oauthaccesstokens"),
];

/// A token.
const HUSH: &str = "hush-hush-hush";

/// The start of the simulation, in seconds since 1970.
const NOON: u64 = 1_780_315_200;

/// An empty list of events, which gets 200, and a request with a wrong media type whose body does
/// not come.
const EMPTY: &str = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}"#;
const REFUSED: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\n{";

impl Operator<'_> {
    pub(super) fn demand(&mut self, demand: Demand) {
        match demand {
            Demand::ManyAside => self.many_aside(),
            Demand::DiesUnread => self.dies_unread(),
            Demand::WaitsInDrain => self.waits_in_drain(),
            Demand::WitnessUnheard => self.witness_unheard(),
            Demand::OldBacklog => self.old_backlog(),
            Demand::FullHouse => self.full_house(),
            Demand::LostAtRename => self.lost_at_rename(),
            Demand::InFlight => self.in_flight(),
            Demand::RateLimit => self.rate_limit(),
            Demand::Policies => self.policies(),
        }
        if !self.setup.own.is_empty() {
            self.setup.own.clear();
            self.act(&Action::Reload(Change::Nothing));
        }
    }

    /// Many events are set aside, and all of them are always due. Others arrive soon.
    fn many_aside(&mut self) {
        if !self.rests() {
            return;
        }
        self.consumers[0].answers(Some(Steady::Fails));
        while self.aside() < MANY as f64 {
            let mut maker = self.maker(Marks { refused: 0, failing: 1000 });
            let failing = std::iter::repeat_with(|| maker.event());
            let mut events: Vec<_> =
                failing.filter(|event| event.bytes.len() < SHORT).take(10).collect();
            events.extend(self.good(10));
            let (begun, before) = (kernel::now(), self.aside());
            self.post(&events);
            if !self.comes_true(SOON, |it| it.aside() > before) || kernel::now() > begun + SOON {
                return;
            }
        }
        reach::asks(Demand::ManyAside);
        self.consumers[0].answers(Some(Steady::FailsLate));
        self.wait(seconds(5));
        let mut posted = Vec::new();
        for _ in 0..100 {
            posted.extend(self.posted(1).into_iter().map(|event| (event.serial, kernel::now())));
            self.wait(Duration::from_millis(400));
        }
        self.wait(BESIDE);
        let arrived = self.consumers[0].arrived_since(0);
        let at = |serial: Serial| {
            let mut its = arrived.iter().filter(|it| identify(&it.event) == Some(serial));
            its.next().map(|arrived| arrived.at)
        };
        let late = |(serial, posted): &&(Serial, Duration)| {
            at(*serial).is_none_or(|at| at > *posted + BESIDE)
        };
        if let Some((serial, posted)) = posted.iter().find(late) {
            let what = format!("posted at {posted:?}, has not come within {BESIDE:?}");
            let text = format!("progress: {serial}, {what}, beside {MANY} that are set aside");
            self.faults.push(text);
        }
    }

    pub(super) fn aside(&mut self) -> f64 {
        self.metrics().map_or(0.0, |metrics| metrics.sum("output_aside_events"))
    }

    /// A consumer crashes while its kernel has events that it has not read. Until then, events
    /// arrive steadily.
    fn dies_unread(&mut self) {
        let mut events = Vec::new();
        for round in 0..8 {
            for step in 0..22 {
                events.extend(self.posted(1));
                if step == 12 + round {
                    self.consumers[0].pause(true);
                }
                self.wait(Duration::from_millis(100));
            }
            reach::asks(Demand::DiesUnread);
            self.consumers[0].restart(true);
        }
        if !events.is_empty() {
            let what = "it was unread for less than replay_window when its consumer crashed";
            self.come_soon(&events, what);
        }
        self.wait(WINDOW);
    }

    /// Requests wait until their consumer has the events. The relay begins to drain, and the
    /// consumer works again soon, or never. The rule `drain` judges the answers.
    fn waits_in_drain(&mut self) {
        for works_again in [true, false] {
            if !self.rests() || !self.has_life() {
                return;
            }
            reach::asks(Demand::WaitsInDrain);
            let consumer = &self.consumers[0];
            consumer.pause(true);
            let bodies = (0..4).map(|_| self.good(2)).collect();
            let threads = self.post_at_once(bodies);
            self.wait(seconds(3));
            std::thread::scope(|scope| {
                if works_again {
                    scope.spawn(|| {
                        std::thread::sleep(seconds(4));
                        consumer.pause(false);
                    });
                }
                self.stop(Why::Signal);
            });
            consumer.pause(false);
            let answers: Vec<_> = threads.into_iter().map(join).collect();
            if works_again && answers.iter().any(|answer| *answer != Answer::Status(200)) {
                let what = "a consumer took them in the first half of the drain";
                self.faults.push(format!("drain: {answers:?} for events, and {what}"));
            }
            self.start();
        }
    }

    /// The answers of the witness get lost: while the relay runs, and over a kill, a power loss and
    /// a start at which the witness is silent. After each of them, checkpoints are cosigned soon.
    fn witness_unheard(&mut self) {
        for round in 0..4 {
            if !self.rests() || !self.has_life() {
                return;
            }
            reach::asks(Demand::WitnessUnheard);
            self.hears(false);
            for _ in 0..3 {
                self.posted(2);
                self.wait(Duration::from_millis(1200));
            }
            match round {
                1 => self.die(Death::Kill, Duration::from_millis(100)),
                2 => self.die(Death::PowerLoss, Duration::from_millis(100)),
                3 => self.restart(Why::Signal),
                _ => {}
            }
            // The entries of two more events wait while the relay asks the witness. After these
            // events, nothing comes in for longer than the heartbeat's interval.
            self.posted(2);
            self.wait(seconds(8));
            self.hears(true);
            self.wait(seconds(14));
            let due = NOON + kernel::now().as_secs();
            self.posted(2);
            let is_cosigned = |it: &mut Self| {
                let name = "evidence_witness_timestamp_seconds";
                it.metrics().is_some_and(|metrics| metrics.sum(name) + 1.0 >= due as f64)
            };
            if !self.comes_true(seconds(30), is_cosigned) {
                let what = "its answers got lost for a while, and nothing is cosigned since";
                self.faults.push(format!("evidence: the witness is well, {what}"));
            }
        }
    }

    fn hears(&self, hears: bool) {
        self.witness.iter().for_each(|witness| witness.loses(!hears));
    }

    /// Events that have waited for long leave slowly. Meanwhile the evidence goes on: an entry and
    /// a checkpoint are due each 10 s, as the entries of a relay that lives.
    fn old_backlog(&mut self) {
        if !self.rests() || !self.has_life() {
            return;
        }
        self.setup.own = vec![("rate_limit", "\"4kB/s\"")];
        self.act(&Action::Reload(Change::Nothing));
        self.way(Fault::Refused, seconds(40));
        let bodies: Vec<_> = (0..10).map(|_| self.posted(30)).collect();
        let has_all = |it: &mut Self| bodies.iter().flatten().all(|event| it.has(0, event.serial));
        let until = kernel::now() + seconds(90);
        while kernel::now() < until && !has_all(self) {
            self.wait(seconds(1));
            let name = "evidence_last_checkpoint_timestamp_seconds";
            let Some(signed) = self.metrics().map(|metrics| metrics.sum(name)) else { return };
            let age = (NOON + kernel::now().as_secs()) as f64 - signed;
            if age > 16.0 {
                let what = "an old backlog waits or leaves, and one is due each 10 s";
                self.faults.push(format!("evidence: the checkpoint is {age} s old, {what}"));
                return;
            }
        }
        reach::asks(Demand::OldBacklog);
    }

    /// Four connections are there, and no more are allowed. First the one gives way whose request
    /// is refused, and then the one that has waited longest for a head. A request under way never
    /// does (see config.md).
    fn full_house(&mut self) {
        let (old, front) = (self.setup.front.connections, self.setup.front.clone());
        if front.tls.is_some() || front.has_token || !self.rests() {
            return;
        }
        reach::asks(Demand::FullHouse);
        self.setup.front.connections = Some(4);
        self.act(&Action::Reload(Change::Nothing));
        let length = EMPTY.len();
        let whole =
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{EMPTY}");
        let (begin, rest) = whole.split_at(whole.len() - 1);
        let mut open = Vec::new();
        for bytes in ["", begin, "", REFUSED, "", ""] {
            let Ok(mut stream) = TcpStream::connect(LISTENER) else { return };
            // A connection that is closed at once shows below.
            stream.write_all(bytes.as_bytes()).ok();
            open.push(stream);
            self.wait(Duration::from_millis(200));
            if open.len() == 3 {
                // The first one has waited for less time than the third one after this request.
                open[0].write_all(whole.as_bytes()).ok();
                self.wait(Duration::from_millis(200));
            }
        }
        let closed: Vec<_> = (0..open.len()).filter(|at| is_closed(&open[*at])).collect();
        if closed != [2, 3] {
            let what = "connections 2 (it waits for the longest time) and 3 (it is refused)";
            self.faults.push(format!("listener: {closed:?} gave way, and not {what}"));
        }
        let mut answer = [0; 15];
        let served = open[1].write_all(rest.as_bytes());
        let served = served.and_then(|()| open[1].set_read_timeout(Some(seconds(5))));
        let served = served.and_then(|()| open[1].read_exact(&mut answer));
        if served.is_err() || &answer != b"HTTP/1.1 200 OK" {
            let what = "a request under way was closed at max_connections";
            self.faults.push(format!("listener: {what}"));
        }
        drop(open);
        self.setup.front.connections = old;
        self.act(&Action::Reload(Change::Nothing));
    }

    /// The power fails right after a file got a new name. Nothing that was acknowledged is lost.
    fn lost_at_rename(&mut self) {
        let mut rng = senders::rng(u64::from(self.batches), "renames");
        for _ in 0..6 {
            if !self.rests() || !self.has_life() {
                return;
            }
            // Nothing leaves, so no other change of the directory stores the new name.
            self.way(Fault::Refused, seconds(16));
            let sync_time = Duration::from_millis(100);
            self.disk(disk::Faults { sync_time, ..disk::Faults::default() }, seconds(20));
            let (before, until) = (disk::renamed() + rng.usize(..4), kernel::now() + seconds(15));
            while disk::renamed() <= before && kernel::now() < until {
                let bodies = (0..4).map(|_| self.good(4)).collect();
                let threads = self.post_at_once(bodies);
                while disk::renamed() <= before && !threads.iter().all(|it| it.is_finished()) {
                    self.wait(Duration::from_millis(3));
                }
                if disk::renamed() > before {
                    self.wait(Duration::from_millis(rng.u64(..300)));
                    reach::asks(Demand::LostAtRename);
                    self.die(Death::PowerLoss, Duration::from_millis(100));
                }
                threads.into_iter().map(join).for_each(|answer| {
                    kernel::trace(format_args!("beside a rename: {answer}"));
                });
            }
            let lost = self.lost();
            if lost > 0.0 {
                let what = "and nothing that was acknowledged is missing";
                self.faults.push(format!("counters: after a power loss {lost} are lost, {what}"));
            }
        }
    }

    /// Many bodies arrive at once while the disk is slow. Together they are larger than
    /// `limits.max_in_flight`: some must be refused. After that, a large one is taken.
    fn in_flight(&mut self) {
        if !self.rests() {
            return;
        }
        let old = self.setup.front.in_flight.replace(64);
        self.act(&Action::Reload(Change::Nothing));
        let slow = disk::Faults { sync_time: seconds(1), ..disk::Faults::default() };
        self.disk(slow, seconds(8));
        let bodies = (0..24).map(|_| vec![self.maker(Marks::default()).large(12_000)]).collect();
        let threads = self.post_at_once(bodies);
        let mut most = 0.0_f64;
        while !threads.iter().all(|thread| thread.is_finished()) {
            self.wait(Duration::from_millis(50));
            most = most.max(self.metrics().map_or(0.0, |it| it.sum("in_flight_bytes")));
        }
        if most > 65536.0 {
            self.faults.push(format!("answers: {most} bytes in flight, max_in_flight is 64 KiB"));
        }
        let answers: Vec<_> = threads.into_iter().map(join).collect();
        let count = |status| answers.iter().filter(|it| **it == Answer::Status(status)).count();
        let (taken, refused) = (count(200), count(429));
        kernel::trace(format_args!("of 24 bodies {taken} are taken and {refused} refused"));
        if refused > 0 {
            reach::asks(Demand::InFlight);
        }
        if refused == 0 || taken == 0 || taken + refused < answers.len() {
            let what = "24 bodies of 12 kB at once, and max_in_flight is 64 KiB";
            self.faults.push(format!("answers: {answers:?} for {what}"));
        }
        self.wait(seconds(12));
        let events = [self.maker(Marks::default()).large(50_000)];
        let answer = self.post(&events);
        if answer != Answer::Status(200) {
            let what = "nothing else is in flight, and max_in_flight is 64 KiB";
            self.faults.push(format!("answers: {answer} for a body of 50 kB, {what}"));
        }
        self.setup.front.in_flight = old;
        self.act(&Action::Reload(Change::Nothing));
    }

    /// A backlog leaves an output with `rate_limit`, neither faster nor much slower than it says.
    fn rate_limit(&mut self) {
        if !self.rests() {
            return;
        }
        self.setup.own = vec![("rate_limit", "\"4kB/s\"")];
        self.act(&Action::Reload(Change::Nothing));
        let from = self.consumers[0].arrived_since(0).len();
        let begun = kernel::now();
        let events = self.posted(60);
        if events.is_empty() {
            return;
        }
        let bytes = |events: &[Event]| events.iter().map(|it| it.bytes.len()).sum::<usize>() as f64;
        let limit = Duration::from_secs_f64(bytes(&events) / RATE) + seconds(10);
        let has_all = |it: &mut Self| events.iter().all(|event| it.has(0, event.serial));
        if !self.comes_true(limit, has_all) {
            let what = format!("{} bytes in {limit:?}", bytes(&events));
            self.faults
                .push(format!("progress: rate_limit is 4 kB/s, and it does not send {what}"));
            return;
        }
        let arrived = self.consumers[0].arrived_since(from);
        let last = arrived.last().map_or(begun, |arrived| arrived.at);
        // The last request may be sent as soon as the ones before are within the limit.
        let before = bytes(&events[..events.len() - 5]);
        let least = Duration::from_secs_f64(before * 0.9 / RATE);
        kernel::trace(format_args!("a backlog of {} in {:?}", bytes(&events), last - begun));
        reach::asks(Demand::RateLimit);
        if last < begun + least {
            let what = format!("{} bytes have come within {:?}", bytes(&events), last - begun);
            self.faults.push(format!("progress: rate_limit is 4 kB/s, and {what}"));
        }
    }

    /// Two policies and redaction apply. The lower of the two levels counts for each event, and no
    /// token leaves the relay, whatever its API group is (see filters/README.md and redaction.md).
    fn policies(&mut self) {
        if !self.rests() {
            return;
        }
        for (name, rules) in POLICIES {
            let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n";
            fs::write(name, [head, rules].concat()).expect("a writable directory");
        }
        self.setup.has_policies = true;
        let filter = Filter { omits: Some("delete"), changes: true, ..Filter::default() };
        self.act(&Action::Reload(Change::Filter(0, filter)));
        for round in 0..6 {
            let mut maker = self.maker(Marks::default());
            let whole = |event: &Event| {
                let Facts { level, stage, .. } = event.facts;
                (level, stage) == ("RequestResponse", "ResponseComplete")
            };
            let all = std::iter::repeat_with(|| maker.event());
            let fits = |event: &Event| whole(event) && event.bytes.len() < SHORT;
            let mut events: Vec<Event> = all.filter(fits).take(20).collect();
            let (group, resource) = TOKENS[round % TOKENS.len()];
            events.iter_mut().step_by(4).for_each(|event| ask_for_token(event, group, resource));
            if self.post(&events) != Answer::Status(200) {
                continue;
            }
            let kept: Vec<_> =
                events.iter().filter(|event| event.facts.verb != "delete").cloned().collect();
            if !self.come_soon(&kept, "which both policies keep") {
                break;
            }
            reach::asks(Demand::Policies);
            for arrived in self.consumers[0].arrived_since(0) {
                let its = |event: &&Event| identify(&arrived.event) == Some(event.serial);
                if let Some(event) = events.iter().find(its)
                    && let Some(why) = is_not_lowered(event, &arrived.event)
                {
                    let Event { serial, facts: Facts { verb, .. }, .. } = event;
                    let text = format!("bytes: event {serial} ({verb}, {resource}) {why}");
                    self.faults.push(text);
                }
            }
        }
        self.setup.has_policies = false;
        self.act(&Action::Reload(Change::Filter(0, Filter::default())));
    }
}

/// Makes the event one about a token, which is in its response.
fn ask_for_token(event: &mut Event, group: &str, resource: &str) {
    let text = String::from_utf8_lossy(&event.bytes).into_owned();
    let old = event.facts.resource;
    let (of_group, root) = match group {
        "" => (String::new(), "api/v1".to_owned()),
        _ => (format!(r#""apiGroup":"{group}","#), format!("apis/{group}/v1")),
    };
    let (main, sub) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = if sub.is_empty() { "" } else { r#""subresource":"token","# };
    let reference = format!(r#""objectRef":{{{of_group}{subresource}"resource":"{main}","#);
    let text = text.replacen(&format!(r#""objectRef":{{"resource":"{old}","#), &reference, 1);
    let text = text.replacen(r#","apiGroup":"apps""#, "", 1);
    let roots = ["/api/v1/", "/apis/apps/v1/"].map(|root| format!(r#""requestURI":"{root}"#));
    let uri = format!(r#""requestURI":"/{root}/"#);
    let text = roots.iter().fold(text, |text, old| text.replacen(old.as_str(), &uri, 1));
    let text = text.replacen(&format!("/{old}/"), &format!("/{main}/"), 1);
    let text =
        text.replacen(r#""data":{"#, &format!(r#""status":{{"token":"{HUSH}"}},"data":{{"#), 2);
    event.bytes = text.into_bytes().into();
}

/// Returns the reason why the arrived bytes are not those that the policies and redaction leave.
fn is_not_lowered(event: &Event, arrived: &[u8]) -> Option<String> {
    let has = |text: &str| memchr::memmem::find(arrived, text.as_bytes()).is_some();
    let (level, bodies) = match event.facts.verb {
        "delete" => return Some("came, although a policy drops it".to_owned()),
        "create" | "update" => ("Metadata", (false, false)),
        "patch" => ("Request", (true, false)),
        _ => ("RequestResponse", (true, true)),
    };
    if has(HUSH) {
        return Some("came with its token".to_owned());
    }
    let is_token = memchr::memmem::find(&event.bytes, HUSH.as_bytes()).is_some();
    let found = (has(r#","requestObject":"#), has(r#","responseObject":"#));
    let is_right = has(&format!(r#""level":"{level}""#)) && (is_token || found == bodies);
    (!is_right).then(|| format!("came with the bodies {found:?}, and its level is {level}"))
}

/// Returns `true` if the peer has closed the connection. Reads what it has sent before.
fn is_closed(mut stream: &TcpStream) -> bool {
    let soon = Some(Duration::from_millis(50));
    stream.set_read_timeout(soon).expect("it is open here");
    loop {
        match stream.read(&mut [0; 512]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            }
        }
    }
}
