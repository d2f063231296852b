//! One run: a new sink, a new proxy, kept connections, a little to warm up, and what is measured.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use crate::Arguments;
use crate::load::Load;
use crate::load::Outcome;
use crate::load::Until;
use crate::process;
use crate::process::Cpu;
use crate::proxy::Proxy;
use crate::proxy::Through;
use crate::sink::Sink;
use crate::sink::Wire;
use crate::tls;
use crate::tls::Stream;
use crate::tls::Tls;
use crate::work::Work;

/// See [`Load::ahead_max`]. As for a consumer that keeps up: a few batches, and with the queue on disk within what it keeps
/// in memory (16 MiB).
const AHEAD_MAX: u64 = 8 << 20;

/// After its start a proxy is idle for so long before we look at its memory.
const IDLE: Duration = Duration::from_millis(200);

/// How often we ask the relay what it holds; 0.1 ms of its CPU each time.
const LOOK: Duration = Duration::from_millis(100);

/// What saturation showed.
pub(crate) struct Saturation {
    /// Of the proxy's process.
    pub(crate) cpu: Cpu,
    pub(crate) load_cpu: f64,
    pub(crate) sink_cpu: f64,
    pub(crate) requests: u64,
    pub(crate) events: u64,
    /// Of request bodies, 10⁹ bytes each.
    pub(crate) gigabytes: f64,
    /// From the first byte sent to the last at the sink.
    pub(crate) seconds: f64,
    pub(crate) refused: u64,
    /// MiB.
    pub(crate) rss_idle: f64,
    pub(crate) rss_peak: f64,
    /// MiB of memory beyond what is in the relay's queue and in requests, at most of what was seen.
    pub(crate) rss_beyond: f64,
}

/// What a paced load showed.
pub(crate) struct Paced {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    /// From when requests were due to their first bytes: much where all senders wait, or for a core.
    pub(crate) late_p99: Duration,
    pub(crate) refused: u64,
}

/// Everything between the senders and the sink.
struct Run<'a> {
    work: &'a Work,
    through: Through,
    arguments: &'a Arguments,
    /// Events sent so far.
    events: u64,
    // In this order: the proxy's threads and the sink's end when their connections do.
    connections: Vec<Box<dyn Stream>>,
    proxy: Proxy,
    sink: Sink,
}

/// Each sender the next request as soon as its last one is answered.
pub(crate) fn saturate(
    work: &Work,
    through: Through,
    tls: &Tls,
    arguments: &Arguments,
) -> Saturation {
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

/// At each of these rates (requests a second) in turn.
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
        Paced {
            p50: load.permille(500),
            p99: load.permille(990),
            p999: load.permille(999),
            late_p99: load.late(99),
            refused: load.refused,
        }
    });
    let paced = paced.collect();
    run.end();
    paced
}

impl<'a> Run<'a> {
    fn start(work: &'a Work, through: Through, tls: &Tls, arguments: &'a Arguments) -> Self {
        let sink = if through.tls() {
            let server = tls.server();
            let accept = move |stream| tls::accept(Arc::clone(&server), stream);
            Sink::start_on(through.wire(), accept)
        } else {
            Sink::start(through.wire())
        };
        let proxy = Proxy::start(through, sink.address(), tls, arguments);
        Self { work, through, arguments, events: 0, connections: Vec::new(), proxy, sink }
    }

    fn load(&self) -> Load<'_> {
        let arguments = self.arguments;
        Load {
            work: self.work,
            address: self.proxy.address(),
            senders: if self.through.answers_late() {
                arguments.waiting_senders
            } else {
                arguments.senders
            },
            sink: &self.sink,
            ahead_max: AHEAD_MAX,
        }
    }

    /// Connects, too.
    fn warm_up(&mut self, tls: &Tls) {
        let through = self.through;
        let wrap = |stream| -> Box<dyn Stream> {
            if through.tls() { Box::new(tls.connect(stream)) } else { Box::new(stream) }
        };
        self.connections = self.load().connect(wrap);
        let requests = 8 * self.connections.len() as u64;
        self.send(Until::Requests(requests));
        if through.wire() == Wire::Stream {
            // What holds a replay window's worth has its memory then.
            let window = Duration::from_millis(self.arguments.replay_window.into());
            self.send(Until::Over(2 * window));
        }
        self.proxy.wait_until_empty(self.events);
        self.sink.learn_framing();
        self.sink.restart();
    }

    /// Waits until all has arrived. Gives also the most memory beyond what is held, see [`Proxy::rss_beyond`], if
    /// the load saturates the proxy.
    fn send(&mut self, until: Until) -> (Outcome, f64) {
        let mut connections = std::mem::take(&mut self.connections);
        let looks = matches!(until, Until::Over(_));
        let (outcome, beyond) = std::thread::scope(|scope| {
            let (sending, sent) = mpsc::channel::<()>();
            let proxy = &self.proxy;
            let looking = scope.spawn(move || {
                let mut most: f64 = 0.0;
                while looks && sent.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                    most = most.max(proxy.rss_beyond());
                }
                most
            });
            let outcome = self.load().run_on(&mut connections, until);
            self.sink.wait();
            drop(sending);
            (outcome, looking.join().expect("no panic"))
        });
        self.connections = connections;
        self.events += outcome.requests * self.work.events;
        (outcome, beyond)
    }

    /// What has been deleted is not written in the next run's time.
    fn end(self) {
        let on_disk = self.through.on_disk().then_some(&self.arguments.directory);
        drop((self.connections, self.proxy, self.sink));
        if let Some(directory) = on_disk {
            let directory = File::open(directory).expect("it is there");
            rustix::fs::syncfs(directory).expect("a disk that syncs");
        }
    }
}
