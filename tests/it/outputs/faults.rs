//! Consumers that are killed or stopped, and networks that reset, delay or cut connections. No
//! output loses more than its protocol allows, and each fault makes at most one window of events
//! arrive twice.
//!
//! Method: a relay sends a steady load of numbered events to a consumer. If the fault is the
//! network's, a middleman stands between them. A fault strikes, delivery continues, and at the end
//! the numbers that the consumer has stored are compared with the numbers that were sent.
//!
//! A window is the events that are sent and not acknowledged when the fault strikes. Only these
//! events can arrive again, and at most as many as the output's own bound. The meaning of
//! "acknowledged", and so the number of events that can be missing, differs by protocol:
//!
//! - `http`: the consumer has answered with 2xx. Our consumer stores a request before that, so
//!   nothing may be missing.
//! - `tcp`: the consumer's kernel has the bytes, and no reset arrived within `replay_window`. If a
//!   consumer ends with unread bytes, its kernel sends a reset. Our consumer stores bytes before it
//!   takes them out of the kernel's buffer, so nothing may be missing.
//! - `syslog`: the same as `tcp`, but rsyslog stores bytes after it has read them. A kill in
//!   between loses one read, which no sender can detect. The test counts such losses, and limits
//!   them to [`outputs::RSYSLOG_READ_MAX`]. No other fault may lose anything.
//! - `lumberjack` and `relp`: the consumer has acknowledged. Our server, and rsyslog with a direct
//!   queue, store an event before that, so nothing may be missing.
//! - `kafka` (with its feature): the brokers have acknowledged. They are librdkafka's mock, which
//!   can't be killed; [`outputs`] describes the substitute for a kill.
//! - `splunk_hec`, `elasticsearch`, `ibm_cloud_logs`, `s3`, `loki`, `otlp`: the store has confirmed
//!   that it has the event, so nothing may be missing. `elasticsearch`, `s3` and `loki` recognize a
//!   repeated event, and keep it once. `s3` keeps the order in the names of its objects; `loki` and
//!   `otlp` keep it with `concurrency = 1`. The stores are fakes in the test's process; [`stores`]
//!   describes the substitute for a kill.
//! - `stdout`: the pipe has the bytes. If the reader is killed, the bytes in the pipe and the bytes
//!   that it had read but not written are lost.

use std::fs::File;
use std::ops::Range;
use std::process::{Child, Command};

mod outputs;
pub(super) mod stores;

use crate::support::middleman::{Middleman, Strike, Way};
use crate::support::numbered::{Id, event};
use crate::support::peers::{freeze, lines_of};
use crate::support::prelude::*;
use crate::support::relay::{Stdout, signal_process};
use crate::support::tally::accepted_ids;

#[cfg(feature = "kafka")]
use outputs::kafka;
use outputs::{
    Blow, Output, REQUEST_EVENTS, http, https, lumberjack, numbers, parts, relp, syslog, tcp,
};
use stores::{elasticsearch, ibm_cloud_logs, loki, otlp, s3, splunk_hec};

/// A fault that may cause a window to arrive twice.
#[derive(Debug, Clone, Copy)]
struct Fault {
    /// How many events were acknowledged when the fault began. For an ordered output, these are the
    /// events with lower numbers.
    acknowledged: u64,
    /// How many events the consumer had stored when delivery continued after the fault.
    stored: u64,
}

/// A relay under load, with its consumer.
struct Scene {
    output: Output,
    middleman: Option<Middleman>,
    relay: Relay,
    senders: Senders,
    rng: fastrand::Rng,
    faults: Vec<Fault>,
    /// `true` if each request that times out is a fault like the first one.
    times_out: bool,
    kills: usize,
}

/// The network between the relay and the consumer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    Middleman,
    /// A middleman whose kernel buffers few bytes while the middleman passes nothing on.
    NarrowMiddleman,
}

#[derive(Clone, Copy)]
struct Times {
    /// The value of `timeouts.request`.
    request: &'static str,
    /// The value of `replay_window`, for outputs whose consumer sends no acknowledgements.
    replay: &'static str,
}

/// The default values.
const TIMES: Times = Times { request: "60s", replay: "1s" };

impl Scene {
    /// Starts everything, and waits until events arrive.
    fn start(output: Output, between: Between, times: Times) -> Self {
        let consumer = output.peer.address();
        let middleman = match between {
            Between::Nothing => None,
            Between::Middleman => Some(Middleman::start(consumer)),
            Between::NarrowMiddleman => {
                Some(Middleman::with_receive_buffer(consumer, Some(16 * 1024)))
            }
        };
        let address = middleman.as_ref().map_or(consumer, Middleman::address);
        output.peer.is_reached_at(address);
        let keys = (output.keys)(address);
        let Times { request, replay } = times;
        let window =
            if output.answers { String::new() } else { format!("replay_window = \"{replay}\"") };
        let relay = Relay::start(&format!(
            "{BASE}[[output]]\nname = \"consumer\"\n{keys}{window}\n\
             retry = {{ initial_interval = \"20ms\", max_interval = \"100ms\" }}\n\
             timeouts = {{ request = \"{request}\" }}\n"
        ));
        let mut rng = rng();
        let senders = Senders::start(1, Bodies::Steady, &mut rng);
        senders.go_to(relay.address());
        let (faults, times_out, kills) = (Vec::new(), false, 0);
        let scene = Self { output, middleman, relay, senders, rng, faults, times_out, kills };
        scene.wait_for_more();
        scene
    }

    fn of_output(&self, name: &str) -> u64 {
        count(self.relay.metrics().value(name, &[("output", "consumer")]))
    }

    fn rest(&mut self, most: Duration) {
        std::thread::sleep(most.mul_f64(self.rng.f64()));
    }

    /// Waits until more events are stored at the consumer.
    fn wait_for_more(&self) {
        let came =
            || self.output.peer.stored().unwrap_or_else(|| self.of_output("output_events_total"));
        let before = came();
        wait_until("more events at the consumer", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(20));
            came() > before
        });
    }

    /// Lets a fault strike, and waits until events arrive again.
    fn suffer(&mut self, strike: impl FnOnce(&mut Self)) {
        let acknowledged = self.of_output("output_events_total");
        strike(self);
        self.wait_for_more();
        // For an output without a bound, the events stored so far limit how many can arrive again.
        let stored = match self.output.window {
            None => times(&self.output.peer.stretches(0)).len() as u64,
            Some(_) => acknowledged,
        };
        self.faults.push(Fault { acknowledged, stored });
    }

    /// Lets the middleman strike after a random number of bytes.
    fn strike(&mut self, way: Way, strike: Strike) {
        let most = match way {
            Way::ToConsumer => 100_000,
            // Answers are small.
            Way::ToRelay => 200,
        };
        let after = self.rng.u64(..most);
        self.suffer(|scene| {
            let middleman = scene.middleman.as_ref().expect("one is between");
            let strikes = middleman.strikes();
            middleman.arm(way, after, strike);
            middleman.wait_for_strikes(strikes + 1);
        });
    }

    /// Waits until everything has arrived. Then prints and checks the numbers that are missing and
    /// those that arrived again.
    fn finish(self, what: &str) {
        let Self { output, middleman, relay, senders, mut faults, times_out, kills, .. } = self;
        let sent = senders.finish();
        assert!(sent.iter().all(|sent| sent.accepted), "the queue was full");
        let total = sent.last().expect("something was sent").numbers.end;
        if times_out {
            // On a busy machine, requests time out also while the consumer runs.
            relay.settle(Backlog::Empty);
            let labels = [("output", "consumer"), ("reason", "timeout")];
            let timeouts = count(relay.metrics().value("output_errors_total", &labels));
            let fault = faults.remove(0);
            faults.extend((0..timeouts).map(|_| fault));
        }
        relay.finish(Backlog::Empty);
        // A consumer without acknowledgements can still have the last event in its kernel.
        let came =
            |number: u64| output.peer.stretches(total).iter().any(|some| some.contains(&number));
        wait_for_slowly("the last event", || came(total - 1));
        drop(middleman);
        output.peer.is_reached_at(output.peer.address());
        // Wait for events that are being sent for a second time, too.
        let mut stored = output.peer.stored();
        wait_for_slowly("the end of the consumer's rest", || {
            std::mem::replace(&mut stored, output.peer.stored()) == stored
        });
        let stretches = output.peer.stretches(total);
        let times = times(&stretches);
        let (mut repeats, missing) = (repeats(&times), missing_of(&times, total));
        if let Some(again) = output.peer.again() {
            assert_eq!(repeats, 0, "the store keeps each event once");
            repeats = again;
        }
        let size = |number| event(Id { sender: 0, number }).len();
        let lost: Vec<usize> = missing.iter().map(|gap| gap.clone().map(size).sum()).collect();
        let windows: Vec<u64> = faults.iter().map(|fault| output.window_of(fault)).collect();
        eprintln!(
            "{}, {what}: {total} events, {} faults, {repeats} events came again, at most {} may {windows:?}; \
             missing: {missing:?}, in bytes {lost:?}",
            output.name,
            faults.len(),
            windows.iter().sum::<u64>(),
        );
        assert!(lost.len() <= kills, "{} stretches are missing", lost.len());
        assert!(lost.iter().all(|bytes| *bytes <= output.unstored_max), "too much is missing");
        match output.window {
            Some(window) => assert!(repeats <= window * faults.len() as u64),
            // For an ordered output, each event is checked below.
            None => assert!(output.ordered || repeats <= windows.iter().sum()),
        }
        if output.ordered {
            let gaps = gaps_in_order(&stretches);
            // A consumer without acknowledgements can still be reading an old connection when it
            // begins to read the next one. Events that the next one skips can therefore arrive
            // later.
            let within = |gap: &Range<u64>| {
                gaps.iter().any(|skipped| skipped.start <= gap.start && gap.end <= skipped.end)
            };
            let is_read_later = output.unstored_max > 0 && missing.iter().all(within);
            // The relay sends others while events fail alone, and sends those again behind the
            // events that failed (guarantee 2). A few events that a stopped consumer leaves
            // unanswered several times are such.
            let is_sent_again = missing.is_empty() && ascend_at_last(&stretches);
            assert!(
                gaps == missing || is_read_later || is_sent_again,
                "skipped {gaps:?}, missing {missing:?}"
            );
            for (number, times) in times {
                // Each fault repeats at most once the events that were unacknowledged when it
                // struck.
                let faults = faults.iter().filter(|fault| fault.acknowledged <= number).count();
                assert!(times <= 1 + faults as u64, "event {number} came {times} times");
            }
        }
    }
}

impl Output {
    /// Returns how many events this fault may cause to arrive again.
    fn window_of(&self, fault: &Fault) -> u64 {
        let unacknowledged = fault.stored.saturating_sub(fault.acknowledged);
        self.window.unwrap_or(unacknowledged)
    }
}

/// Polls a check that is slow to make.
fn wait_for_slowly(what: &str, mut check: impl FnMut() -> bool) {
    wait_until(what, PATIENCE, || {
        std::thread::sleep(Duration::from_millis(250));
        check()
    });
}

fn count(value: f64) -> u64 {
    assert!(value >= 0.0 && value.fract() == 0.0, "{value} is no count");
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "asserted above")]
    let count = value as u64;
    count
}

/// Returns how often each number arrived.
fn times(stretches: &[Vec<u64>]) -> BTreeMap<u64, u64> {
    let mut times = BTreeMap::new();
    for number in stretches.iter().flatten() {
        *times.entry(*number).or_default() += 1;
    }
    times
}

fn repeats(times: &BTreeMap<u64, u64>) -> u64 {
    times.values().map(|times| times - 1).sum()
}

/// Returns the ranges of numbers below `total` that did not arrive.
fn missing_of(times: &BTreeMap<u64, u64>, total: u64) -> Vec<Range<u64>> {
    let (mut missing, mut next) = (Vec::new(), 0);
    for number in times.keys().copied().chain([total]) {
        if number > next {
            missing.push(next..number);
        }
        next = number + 1;
    }
    missing
}

/// Returns the ranges that are skipped where a stretch begins. Panics if the numbers of a stretch
/// are not consecutive.
fn gaps_in_order(stretches: &[Vec<u64>]) -> Vec<Range<u64>> {
    let (mut front, mut gaps) = (0, Vec::new());
    for stretch in stretches.iter().filter(|stretch| !stretch.is_empty()) {
        let (first, end) = (stretch[0], stretch[0] + stretch.len() as u64);
        assert!(stretch.iter().copied().eq(first..end), "out of order behind {first}");
        if first > front {
            gaps.push(front..first);
        }
        front = front.max(end);
    }
    gaps
}

/// Returns `true` if the last arrivals of all numbers are in their order.
fn ascend_at_last(stretches: &[Vec<u64>]) -> bool {
    let mut last = BTreeMap::new();
    for (at, number) in stretches.iter().flatten().enumerate() {
        last.insert(*number, at);
    }
    last.values().is_sorted()
}

#[test]
fn events_that_went_first_must_come_again() {
    assert!(ascend_at_last(&[vec![0, 1], vec![4, 5], vec![2, 3], vec![4, 5, 6]]));
    assert!(!ascend_at_last(&[vec![0, 1], vec![4, 5], vec![2, 3], vec![5, 6]]));
    assert!(!ascend_at_last(&[vec![1], vec![0]]));
}

#[test]
fn what_is_missing_or_out_of_order_is_found() {
    let stretches = [vec![0, 1, 2], vec![], vec![1, 2, 3], vec![6, 7]];
    let gap = |range: Range<u64>| vec![range];
    assert_eq!(gaps_in_order(&stretches), gap(4..6));
    assert_eq!(missing_of(&times(&stretches), 8), gap(4..6));
    assert_eq!(missing_of(&times(&stretches), 9), [4..6, 8..9]);
    assert_eq!(repeats(&times(&stretches)), 2);
    // Number 1 arrives later, but counts as skipped all the same.
    assert_eq!(gaps_in_order(&[vec![0], vec![2], vec![1]]), gap(1..2));
    for wrong in [vec![0, 2], vec![0, 1, 0]] {
        assert!(std::panic::catch_unwind(|| gaps_in_order(&[wrong])).is_err());
    }
}

/// Method: the consumer is killed and started again several times. In every other round it is
/// frozen for a moment before the kill, so that its kernel has bytes that it has not read.
fn killed(output: Output) {
    // A busy machine does not delay a read for as long as this window.
    let times = Times { replay: "2s", ..TIMES };
    let rounds = output.rounds;
    let mut scene = Scene::start(output, Between::Nothing, times);
    for kill in 0..rounds {
        scene.rest(Duration::from_secs(1));
        scene.suffer(|scene| {
            if kill % 2 == 0 {
                scene.output.peer.suffer(Blow::Freeze);
                scene.rest(Duration::from_millis(500));
            }
            scene.output.peer.suffer(Blow::Kill);
            scene.rest(Duration::from_millis(300));
            scene.output.peer.suffer(Blow::Start);
        });
        scene.kills += 1;
    }
    scene.finish("killed");
}

/// How long events are posted while the consumer is stopped. They fill the buffers of the output
/// and the kernel; any later events would only wait in the queue.
const LOAD: Duration = Duration::from_secs(3);

/// Method: the consumer is stopped for 20 s and continues. No timeout expires in that time, so
/// nothing may arrive twice.
fn stopped_for_20_seconds(output: Output) {
    let mut scene = Scene::start(output, Between::Nothing, TIMES);
    scene.output.peer.suffer(Blow::Freeze);
    std::thread::sleep(LOAD);
    scene.senders.pause();
    std::thread::sleep(Duration::from_secs(20) - LOAD);
    scene.output.peer.suffer(Blow::Thaw);
    scene.senders.go_to(scene.relay.address());
    scene.wait_for_more();
    scene.finish("stopped for 20 s");
}

/// Method: the consumer is stopped for 5 s, which is longer than the request timeout of 1.5 s, and
/// continues. Each timeout that the relay counts is a separate fault, which may repeat a window.
fn stopped_for_longer_than_the_request_timeout(output: Output) {
    let times = Times { request: "1500ms", ..TIMES };
    let mut scene = Scene::start(output, Between::Nothing, times);
    scene.suffer(|scene| {
        scene.output.peer.suffer(Blow::Freeze);
        std::thread::sleep(Duration::from_secs(5));
        scene.output.peer.suffer(Blow::Thaw);
    });
    scene.times_out = true;
    scene.finish("stopped for longer than timeouts.request");
}

/// Method: the middleman repeatedly resets the connection after a random number of bytes. If the
/// consumer sends answers, the bytes are counted in a random direction.
fn reset_at_random_bytes(output: Output) {
    let (rounds, answers) = (output.rounds, output.answers);
    let mut scene = Scene::start(output, Between::Middleman, TIMES);
    for _ in 0..rounds {
        let back = answers && scene.rng.bool();
        scene.strike(if back { Way::ToRelay } else { Way::ToConsumer }, Strike::Reset);
    }
    scene.finish("reset at random bytes");
}

/// Method: the middleman delays the consumer's answers, and twice stalls the bytes to the consumer
/// for 2 s, so that the kernel's acknowledgements are late too. A slow consumer is not a fault, so
/// nothing may arrive twice.
fn answered_late(output: Output) {
    let answers = output.answers;
    let scene = Scene::start(output, Between::NarrowMiddleman, TIMES);
    let middleman = scene.middleman.as_ref().expect("one is between");
    if answers {
        middleman.delay_answers(Duration::from_secs(1));
        std::thread::sleep(Duration::from_secs(2));
        middleman.delay_answers(Duration::ZERO);
        scene.wait_for_more();
    }
    for strikes in 1..=2 {
        let stall = Strike::Stall(Way::ToConsumer, Duration::from_secs(2));
        middleman.arm(Way::ToConsumer, 1000, stall);
        middleman.wait_for_strikes(strikes);
        scene.wait_for_more();
    }
    scene.finish("answered late");
}

/// Method: from a random byte on, the middleman discards the bytes of one direction, or ends the
/// consumer's direction with FIN. For a consumer that sends no answers, only the FIN is tested.
fn answers_cut(output: Output) {
    let answers = output.answers;
    let times = Times { request: "3s", ..TIMES };
    let mut scene = Scene::start(output, Between::Middleman, times);
    if answers {
        scene.strike(Way::ToRelay, Strike::Swallow(Way::ToRelay));
        scene.strike(Way::ToRelay, Strike::Finish(Way::ToRelay));
        scene.strike(Way::ToConsumer, Strike::Swallow(Way::ToConsumer));
        scene.strike(Way::ToRelay, Strike::Finish(Way::ToRelay));
    } else {
        scene.strike(Way::ToConsumer, Strike::Finish(Way::ToRelay));
        scene.strike(Way::ToConsumer, Strike::Finish(Way::ToRelay));
    }
    scene.finish("its answers cut");
}

/// Makes a test for each type of output and each fault. The tests have this attribute.
macro_rules! faults {
    ($($output:ident),*) => { faults! { #[cfg(test)] $($output),* } };
    (#[$attribute:meta] $($output:ident),*) => {
        $(mod $output {
            #[test]
            #[$attribute]
            fn killed() {
                super::killed(super::$output());
            }

            #[test]
            #[$attribute]
            fn stopped_for_longer_than_the_request_timeout() {
                super::stopped_for_longer_than_the_request_timeout(super::$output());
            }

            #[test]
            #[$attribute]
            fn reset_at_random_bytes() {
                super::reset_at_random_bytes(super::$output());
            }

            #[test]
            #[$attribute]
            fn answered_late() {
                super::answered_late(super::$output());
            }

            #[test]
            #[$attribute]
            fn answers_cut() {
                super::answers_cut(super::$output());
            }
        })*
    };
}

faults!(http, https, tcp, lumberjack);
faults!(splunk_hec, elasticsearch, ibm_cloud_logs, s3, loki, otlp);
#[cfg(feature = "kafka")]
faults!(kafka);

/// The reader of a relay's standard output: `cat`, which writes to a file of its own.
struct Reader {
    child: Child,
    file: PathBuf,
}

impl Reader {
    fn start(relay: &mut Relay, file: PathBuf) -> Self {
        let mut cat = Command::new("cat");
        cat.stdin(relay.take_stdout()).stdout(File::create(&file).expect("a writable directory"));
        Self { child: cat.spawn().expect("cat runs"), file }
    }

    fn numbers(&self) -> Vec<u64> {
        numbers(&lines_of(&self.file))
    }

    fn wait_for_more(&self) {
        let bytes = || std::fs::metadata(&self.file).expect("it is there").len();
        let before = bytes();
        wait_until("more events at the reader", PATIENCE, || bytes() > before);
    }

    fn kill(&mut self) {
        // The process may already have ended, because the pipe was closed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the config of a relay that writes to its standard output. The batches are so small that
/// some of them wait while the pipe is full.
fn to_stdout() -> String {
    format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"stdout\"\n\
         batch = {{ max_events = {REQUEST_EVENTS} }}\n"
    )
}

fn stdouts_reader_stopped_for_20_seconds() {
    let directory = TempDir::new().expect("a temporary directory");
    let mut relay = Relay::with(&to_stdout()).stdout(Stdout::Held).start();
    let reader = Reader::start(&mut relay, directory.path().join("0"));
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    reader.wait_for_more();
    freeze(&reader.child);
    std::thread::sleep(LOAD);
    senders.pause();
    std::thread::sleep(Duration::from_secs(20) - LOAD);
    let waiting = of_output(&relay, "output_backlog_events");
    assert!(waiting > 0.0, "the pipe is full");
    signal_process(&reader.child, libc::SIGCONT);
    let sent = senders.finish();
    let total = sent.last().expect("something was sent").numbers.end;
    assert!(sent.iter().all(|sent| sent.accepted), "the queue was full");
    relay.finish(Backlog::Empty);
    wait_for_slowly("the last event", || reader.numbers().last() == Some(&(total - 1)));
    eprintln!("stdout, its reader stopped for 20 s: {total} events");
    assert!(reader.numbers().into_iter().eq(0..total), "something is missing, or came again");
}

/// Method: the reader of the relay's standard output is frozen and killed, three times. Bytes in
/// the pipe count as delivered, so they are lost with the reader, as are the bytes that the reader
/// had read but not written. The relay must end with status 1. The next relay, on the same spool,
/// must continue with the events that were not in the pipe.
#[test]
fn stdouts_reader_killed_costs_what_the_pipe_and_itself_held() {
    /// The sizes of a pipe's buffer and of cat's, in bytes.
    const HELD_MAX: usize = (64 + 128) * 1024;
    /// The most events that the thread for standard output has at one time: two batches.
    const WINDOW: u64 = 2 * REQUEST_EVENTS;
    let (directory, spool) = (TempDir::new().expect("a temporary directory"), Spool::new());
    let config = format!("{}{}", to_stdout(), spool.queue(""));
    let mut rng = rng();
    let senders = Senders::start(1, Bodies::Steady, &mut rng);
    let mut readers = Vec::new();
    let kills = 3;
    for life in 0..=kills {
        let mut relay = Relay::with(&config).stdout(Stdout::Held).start();
        let mut reader = Reader::start(&mut relay, directory.path().join(life.to_string()));
        senders.go_to(relay.address());
        reader.wait_for_more();
        std::thread::sleep(Duration::from_millis(rng.u64(..300)));
        if life < kills {
            freeze(&reader.child);
            std::thread::sleep(Duration::from_millis(rng.u64(..500)));
            reader.kill();
            assert_eq!(relay.wait().code(), Some(1), "its standard output is closed");
            senders.wait();
        } else {
            senders.pause();
            relay.finish(Backlog::Empty);
        }
        readers.push(reader);
    }
    let accepted = accepted_ids(&senders.finish());
    let last = accepted.last().expect("something was accepted").number;
    wait_for_slowly("the last event", || readers[kills].numbers().contains(&last));
    let stretches: Vec<Vec<u64>> = readers.iter().map(Reader::numbers).collect();
    let times = times(&stretches);
    let missing: Vec<&Id> = accepted.iter().filter(|id| !times.contains_key(&id.number)).collect();
    let lost: usize = missing.iter().map(|id| event(**id).len() + 1).sum();
    eprintln!(
        "stdout, its reader killed: {} events, {kills} faults, {} events came again, at most {} may; \
         missing: {}, in bytes {lost}",
        accepted.len(),
        repeats(&times),
        kills as u64 * WINDOW,
        missing.len()
    );
    // An event posted while a relay was ending was not answered with 200, and can be missing in the
    // middle of a life.
    let parts: Vec<Vec<u64>> = stretches.iter().flat_map(|life| parts(life)).collect();
    assert_eq!(gaps_in_order(&parts), missing_of(&times, last + 1));
    assert!(lost <= kills * HELD_MAX);
    assert!(repeats(&times) <= kills as u64 * WINDOW);
}

/// These tests need rsyslog.
mod peers {
    use super::*;

    faults!(
        #[ignore = "needs peers or root: ./test"]
        syslog,
        relp
    );

    /// All outputs run at the same time, because the test takes 20 s.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn all_stopped_for_20_seconds() {
        let outputs: &[fn() -> Output] = &[
            http,
            https,
            tcp,
            syslog,
            lumberjack,
            relp,
            splunk_hec,
            elasticsearch,
            ibm_cloud_logs,
            s3,
            loki,
            otlp,
            #[cfg(feature = "kafka")]
            kafka,
        ];
        std::thread::scope(|scope| {
            for output in outputs {
                scope.spawn(|| stopped_for_20_seconds(output()));
            }
            scope.spawn(stdouts_reader_stopped_for_20_seconds);
        });
    }
}
