//! One run: a new sink, a new proxy, kept connections, some requests to warm up, and the
//! measurement.

use std::fs::File;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::floor::Writer;
use crate::load::{Load, Outcome, Until};
use crate::process::Cpu;
use crate::proxy::{Proxy, Through};
use crate::sink::{Sink, Wire};
use crate::tls::{Stream, Tls};
use crate::work::Work;
use crate::{Arguments, process, tls};

/// The value of [`Load::ahead_max`]. It is enough for a consumer that keeps up, and less than the
/// 16 MiB that a queue on disk keeps in memory.
const AHEAD_MAX: u64 = 8 << 20;

/// How long a proxy is idle after its start before its memory is measured.
const IDLE: Duration = Duration::from_millis(200);

/// The least number of requests at a fixed rate. A run at a low rate takes longer to send them.
const FIXED_REQUESTS_MIN: u64 = 40;

/// The time between two looks at the relay's memory. Each look costs the relay 0.1 ms of CPU time.
const LOOK: Duration = Duration::from_millis(100);

/// How often the relay is asked how many events it has delivered, for a sink that cannot see it.
/// This costs a hundredth of a core. The senders have to wait for the next answer only if the relay
/// delivers [`AHEAD_MAX`] within this time, which is 0.8 GB/s.
const TELL: Duration = Duration::from_millis(10);

/// The number of connections in a run with idle connections.
pub(crate) const KEPT: usize = 1000;
/// How long these connections are idle before the memory is measured. A relay frees an idle
/// connection's buffers after 2 s, and HAProxy closes the connection after 10 s.
const KEPT_IDLE: Duration = Duration::from_secs(4);

/// The results of a run at saturation.
pub(crate) struct Saturation {
    /// The CPU time of the proxy's process.
    pub(crate) cpu: Cpu,
    pub(crate) load_cpu: f64,
    pub(crate) sink_cpu: f64,
    pub(crate) requests: u64,
    pub(crate) events: u64,
    /// The size of the request bodies, in units of 10⁹ bytes.
    pub(crate) gigabytes: f64,
    /// The time from the start of the load to the last byte at the sink, in seconds.
    pub(crate) seconds: f64,
    pub(crate) refused: u64,
    /// The resident memory after the start, in MiB.
    pub(crate) rss_idle: f64,
    pub(crate) rss_peak: f64,
    /// The greatest [`Proxy::rss_beyond`] during the run, in MiB.
    pub(crate) rss_beyond: f64,
}

/// The results of a paced load.
pub(crate) struct Paced {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    /// 99 % of the requests were sent within this time after they were due. It is long if all
    /// senders are busy, or if they wait for a core.
    pub(crate) late_p99: Duration,
    pub(crate) refused: u64,
}

/// The results of a load at a fixed rate.
pub(crate) struct Fixed {
    /// The CPU time of the proxy's threads, in seconds.
    pub(crate) cpu: f64,
    /// The size of the request bodies, in units of 10⁹ bytes.
    pub(crate) gigabytes: f64,
    /// The time from the start of the load to the last answer, in seconds.
    pub(crate) seconds: f64,
    /// How often the proxy's threads began to wait, per request.
    pub(crate) waits: f64,
    pub(crate) answers: Paced,
}

/// The results of a run with idle connections.
pub(crate) struct Kept {
    /// The resident memory after the start, in MiB.
    pub(crate) rss_idle: f64,
    /// The resident memory that an idle connection takes after it has carried one request, in KiB.
    pub(crate) each: f64,
}

/// A run: its connections, its proxy and its sink.
struct Run<'a> {
    work: &'a Work,
    through: Through,
    arguments: &'a Arguments,
    /// The number of events sent so far, and how many of them were sent before [`Sink::restart`].
    events: u64,
    before: u64,
    // The order of these fields matters: the threads of the proxy and of the sink end when their
    // connections do.
    connections: Vec<Box<dyn Stream>>,
    proxy: Proxy,
    sink: Sink,
}

/// Makes a run in which each sender sends its next request as soon as its last one is answered. For
/// [`Through::Floor`], the result is the writer's alone.
pub(crate) fn saturate(
    work: &Work,
    through: Through,
    tls: &Tls,
    arguments: &Arguments,
) -> Saturation {
    if through == Through::Floor {
        return Writer::start(work, arguments).saturate(arguments);
    }
    let mut run = Run::start(work, through, tls, arguments);
    std::thread::sleep(IDLE);
    let rss_idle = run.proxy.process().memory("VmRSS:");
    run.warm_up(tls);

    let (cpu_before, own_before) = (run.proxy.process().cpu(), process::own_cpu());
    let begun = Instant::now();
    let (load, rss_beyond) = run.send(Until::Over(Duration::from_secs_f64(arguments.seconds)));
    let seconds = begun.elapsed().as_secs_f64();
    run.proxy.wait_until_empty(run.events);
    let cpu = run.proxy.process().cpu() - cpu_before;
    let own = (process::own_cpu() - own_before).total();
    let rss_peak = run.proxy.process().memory("VmHWM:");
    run.end();
    Saturation {
        cpu,
        load_cpu: load.cpu,
        sink_cpu: (own - load.cpu).max(0.0),
        requests: load.requests,
        events: load.requests * work.events,
        gigabytes: (load.requests * work.body.len() as u64) as f64 / 1e9,
        seconds,
        refused: load.refused,
        rss_idle,
        rss_peak,
        rss_beyond,
    }
}

/// Makes a run at each of these rates in turn. The rates are in requests per second.
pub(crate) fn pace(
    work: &Work,
    through: Through,
    rates: &[f64],
    tls: &Tls,
    arguments: &Arguments,
) -> Vec<Paced> {
    let mut run = Run::start(work, through, tls, arguments);
    run.warm_up(tls);
    let paced = rates.iter().map(|&per_second| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let requests = (per_second * arguments.seconds).ceil() as u64;
        let (load, _) = run.send(Until::Paced { requests, per_second });
        run.proxy.wait_until_empty(run.events);
        Paced::of(&load)
    });
    let paced = paced.collect();
    run.end();
    paced
}

/// Makes a run at each of these fixed rates in turn. The rates are in requests per second. For
/// [`Through::Floor`], the results are the writer's alone.
pub(crate) fn hold(
    work: &Work,
    through: Through,
    rates: &[f64],
    tls: &Tls,
    arguments: &Arguments,
) -> Vec<Fixed> {
    let requests = |per_second: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let requests = (per_second * arguments.fixed_seconds).ceil() as u64;
        requests.max(FIXED_REQUESTS_MIN)
    };
    if through == Through::Floor {
        let mut writer = Writer::start(work, arguments);
        return rates.iter().map(|&rate| writer.hold(requests(rate), rate)).collect();
    }
    // A relay finishes the events of a stream when the replay window has passed. The CPU time is
    // read only after that. All proxies get the same wait.
    let settle = Duration::from_millis(2 * u64::from(arguments.replay_window));
    let mut run = Run::start(work, through, tls, arguments);
    run.warm_up(tls);
    let held = rates.iter().map(|&per_second| {
        let requests = requests(per_second);
        let before = run.proxy.process().threads();
        let (load, _) = run.send(Until::Paced { requests, per_second });
        std::thread::sleep(settle);
        // Asking the relay whether it is empty costs CPU time, so the figures are read first.
        let done = run.proxy.process().threads().since(&before);
        run.proxy.wait_until_empty(run.events);
        Fixed {
            cpu: done.cpu,
            gigabytes: (load.requests * work.body.len() as u64) as f64 / 1e9,
            seconds: load.took.as_secs_f64(),
            waits: done.waits as f64 / load.requests as f64,
            answers: Paced::of(&load),
        }
    });
    let held = held.collect();
    run.end();
    held
}

/// Makes a run in which [`KEPT`] connections carry one request each and are then idle.
pub(crate) fn keep(work: &Work, through: Through, tls: &Tls, arguments: &Arguments) -> Kept {
    let mut run = Run::start(work, through, tls, arguments);
    std::thread::sleep(IDLE);
    let rss_idle = run.proxy.process().memory("VmRSS:");
    run.warm_up(tls);
    std::thread::sleep(KEPT_IDLE);
    let before = run.proxy.process().memory("VmRSS:");
    let mut kept = Vec::new();
    for _ in 0..KEPT {
        // Connects one at a time: HAProxy closes a connection whose first request comes too late.
        let mut connection = run.connect(1, tls);
        let load = run.load().run_on(&mut connection, Until::Requests(1));
        run.events += load.requests * work.events;
        kept.append(&mut connection);
    }
    run.proxy.wait_until_empty(run.events);
    std::thread::sleep(KEPT_IDLE);
    let more = run.proxy.process().memory("VmRSS:") - before;
    run.connections.append(&mut kept);
    run.end();
    Kept { rss_idle, each: more * 1024.0 / KEPT as f64 }
}

impl Paced {
    fn of(load: &Outcome) -> Self {
        Self {
            p50: load.permille(500),
            p99: load.permille(990),
            p999: load.permille(999),
            late_p99: load.late(99),
            refused: load.refused,
        }
    }
}

impl<'a> Run<'a> {
    fn start(work: &'a Work, through: Through, tls: &Tls, arguments: &'a Arguments) -> Self {
        let mut sink = if through.tls() {
            let server = tls.server();
            let accept = move |stream| tls::accept(Arc::clone(&server), stream);
            Sink::start_on(through.wire(), accept)
        } else {
            Sink::start(through.wire())
        };
        if through.wire().counts_events() {
            sink.count_events_of(work);
        }
        let proxy = Proxy::start(through, sink.address(), tls, arguments);
        let connections = Vec::new();
        Self { work, through, arguments, events: 0, before: 0, connections, proxy, sink }
    }

    fn senders(&self) -> usize {
        let arguments = self.arguments;
        if self.through.answers_late() { arguments.waiting_senders } else { arguments.senders }
    }

    fn load(&self) -> Load<'_> {
        Load {
            work: self.work,
            address: self.proxy.address(),
            senders: self.senders(),
            sink: &self.sink,
            ahead_max: AHEAD_MAX,
        }
    }

    fn connect(&self, connections: usize, tls: &Tls) -> Vec<Box<dyn Stream>> {
        let through = self.through;
        let wrap = |stream| -> Box<dyn Stream> {
            if through.tls() { Box::new(tls.connect(stream)) } else { Box::new(stream) }
        };
        Load { senders: connections, ..self.load() }.connect(wrap)
    }

    /// Connects the senders, sends some requests, and then sets the sink's counts to 0.
    fn warm_up(&mut self, tls: &Tls) {
        let through = self.through;
        let mut connections = self.connect(self.senders(), tls);
        if through.changes_bytes() {
            let one = self.load().run_on(&mut connections[..1], Until::Requests(1));
            self.events += one.requests * self.work.events;
            self.proxy.wait_until_empty(self.events);
            self.sink.learn_filter(self.work);
        }
        self.connections = connections;
        let requests = 8 * self.connections.len() as u64;
        self.send(Until::Requests(requests));
        if through.wire() == Wire::Stream {
            // After this, a relay has allocated the memory that it needs for a replay window.
            let window = Duration::from_millis(self.arguments.replay_window.into());
            self.send(Until::Over(2 * window));
        }
        self.proxy.wait_until_empty(self.events);
        self.sink.learn_framing();
        self.sink.restart();
        self.before = self.events;
    }

    /// Sends a load, and waits until everything has arrived. Returns its outcome. With
    /// [`Until::Over`], also returns the greatest [`Proxy::rss_beyond`], otherwise 0.
    fn send(&mut self, until: Until) -> (Outcome, f64) {
        let mut connections = std::mem::take(&mut self.connections);
        let looks = matches!(until, Until::Over(_));
        let (outcome, beyond) = std::thread::scope(|scope| {
            let (sending, sent) = mpsc::channel::<()>();
            let (proxy, sink, before) = (&self.proxy, &self.sink, self.before);
            let (telling, told) = mpsc::channel::<()>();
            if self.through.wire().is_told() {
                scope.spawn(move || {
                    while told.recv_timeout(TELL) == Err(mpsc::RecvTimeoutError::Timeout) {
                        sink.tell(proxy.delivered() - before);
                    }
                });
            }
            let looking = scope.spawn(move || {
                let mut most: f64 = 0.0;
                while looks && sent.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                    most = most.max(proxy.rss_beyond());
                }
                most
            });
            let outcome = self.load().run_on(&mut connections, until);
            sink.wait();
            drop((sending, telling));
            (outcome, looking.join().expect("no panic"))
        });
        self.connections = connections;
        self.events += outcome.requests * self.work.events;
        (outcome, beyond)
    }

    /// Ends the run, and syncs the disk, so that the next run does not wait for the writes of this
    /// one.
    fn end(self) {
        let on_disk = self.through.on_disk().then_some(&self.arguments.directory);
        drop((self.connections, self.proxy, self.sink));
        if let Some(directory) = on_disk {
            let directory = File::open(directory).expect("it is there");
            rustix::fs::syncfs(directory).expect("a disk that syncs");
        }
    }
}
