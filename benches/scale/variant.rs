//! Relays that differ in one number, and the table that compares them.

use std::io;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::figures::spread;
use crate::load::{Load, Outcome, Until};
use crate::process::Cpu;
use crate::relay::Relay;
use crate::sink::{Sink, Wire};
use crate::work::Work;
use crate::{Arguments, interrupt};

/// The most bytes by which the senders may be ahead of the sink, for each output. A queue on disk
/// keeps more than that in memory (16 MiB).
const AHEAD_MAX: u64 = 8 << 20;

/// The average number of requests on each connection before the first round.
const WARM_UP: usize = 4;

/// How long to wait until a relay has no backlog.
const PATIENCE: Duration = Duration::from_secs(60);

/// The settings of one relay of a table.
pub(crate) struct Setting<'a> {
    /// The number in which the relays of a table differ.
    pub(crate) number: usize,
    pub(crate) work: &'a Work,
    pub(crate) outputs: usize,
    pub(crate) connections: usize,
    /// The number of requests in progress.
    pub(crate) senders: usize,
    /// The disk of the queue, or `None` for a queue in memory.
    pub(crate) on_disk: Option<&'a Disk>,
    /// More config keys for each output.
    pub(crate) output: String,
}

/// A relay, and the results of its rounds.
struct Variant<'a> {
    setting: Setting<'a>,
    rounds: Vec<Round>,
    // The order of these fields matters: the threads of the relay and of the sink end when their
    // connections do.
    senders: Vec<Turns>,
    relay: Relay,
    sink: Sink,
}

struct Round {
    cpu: Cpu,
    /// How often the relay's threads have begun to wait.
    waits: u64,
    load: Outcome,
}

/// The connections of a sender, used in turn.
struct Turns {
    streams: Vec<TcpStream>,
    current: usize,
    /// `true` once an answer has been read: the next bytes to be written begin another request.
    answered: bool,
}

/// Runs all relays of a table, and prints the table.
pub(crate) fn table(title: &str, what: &str, settings: Vec<Setting<'_>>, arguments: &Arguments) {
    let mut variants: Vec<Variant<'_>> =
        settings.into_iter().map(|setting| Variant::start(setting, arguments)).collect();
    let over = Until::Over(Duration::from_secs_f64(arguments.seconds));
    for round in 1..=arguments.rounds {
        for variant in &mut variants {
            eprintln!("{title}: {} {what}, {round}/{}", variant.setting.number, arguments.rounds);
            let round = variant.run(over);
            variant.rounds.push(round);
        }
    }
    println!("\n### {title}\n");
    println!(
        "| {what} | CPU µs/batch | ÷ first | of it user | for each more µs | CPU s/GB | waits/batch | batches/s | p50 ms \
         | p99 ms | RSS MiB | refused |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for variant in &variants {
        println!("{}", variant.row(&variants[0]));
    }
}

impl<'a> Variant<'a> {
    /// Starts the relay, makes its connections, and sends the first requests on them.
    fn start(setting: Setting<'a>, arguments: &Arguments) -> Self {
        let sink = Sink::start(Wire::Http);
        sink.expect_more(setting.outputs as u64 - 1);
        let directory = setting.on_disk.map_or_else(String::new, |disk| {
            let name = format!("queue-{}", sink.address().port());
            format!("\nqueue.directory = '{}'", disk.path().join(name).display())
        });
        let more = &setting.output;
        let output = format!("type = 'http'\nurls = ['http://{}/']\n{more}", sink.address());
        let outputs = names(setting.outputs).skip(1);
        let outputs = outputs.map(|name| format!("\n[[output]]\nname = '{name}'\n{output}"));
        let outputs = output.clone() + &outputs.collect::<String>();
        let queue = format!("queue.max_bytes = '2GiB'{directory}");
        let relay = Relay::start(&arguments.relay, &queue, &outputs);
        let connect = |_| {
            let stream = TcpStream::connect(relay.address).expect("the relay listens");
            stream.set_nodelay(true).expect("a TCP socket");
            stream
        };
        let mut senders: Vec<Turns> = (0..setting.senders).map(|_| Turns::new()).collect();
        for index in 0..setting.connections {
            senders[index % setting.senders].streams.push(connect(index));
        }
        let mut variant = Self { setting, rounds: Vec::new(), senders, relay, sink };
        variant.run(Until::Requests((WARM_UP * variant.setting.connections) as u64));
        variant
    }

    fn run(&mut self, until: Until) -> Round {
        let load = Load {
            work: self.setting.work,
            address: self.relay.address,
            senders: self.setting.senders,
            sink: &self.sink,
            ahead_max: AHEAD_MAX * self.setting.outputs as u64,
        };
        let process = &self.relay.process;
        let (cpu, waits) = (process.cpu(), process.waits());
        let load = load.run_on(&mut self.senders, until);
        self.sink.wait();
        self.wait_until_empty();
        let process = &self.relay.process;
        Round { cpu: process.cpu() - cpu, waits: process.waits().saturating_sub(waits), load }
    }

    /// Waits until no output has a backlog. The sink may have received bytes whose acknowledgement
    /// the relay has not seen yet.
    fn wait_until_empty(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            interrupt::check();
            let metrics = self.relay.metrics();
            let backlog = names(self.setting.outputs)
                .map(|name| metrics.series(&format!("output_backlog_events{{output=\"{name}\"}}")));
            match backlog.sum() {
                0_u64 => return,
                events => assert!(Instant::now() < end, "{events} events are left"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn row(&self, first: &Self) -> String {
        let over = |value: &dyn Fn(&Round) -> f64, digits| {
            spread(self.rounds.iter().map(value).collect()).show(digits)
        };
        let bytes = self.setting.work.body.len() as f64;
        let cost = |round: &Round| round.cpu.total() * 1e6 / round.load.requests as f64;
        let against_first = |value: &dyn Fn(f64, f64) -> f64, digits| {
            let pairs = self.rounds.iter().zip(&first.rounds);
            let values = pairs.map(|(it, first)| value(cost(it), cost(first)));
            spread(values.collect()).show(digits)
        };
        let more = (self.setting.number - first.setting.number) as f64;
        let milliseconds = |percent| over(&|it| it.load.percentile(percent).as_secs_f64() * 1e3, 2);
        let cells = [
            self.setting.number.to_string(),
            over(&cost, 1),
            against_first(&|cost, first| cost / first, 2),
            over(&|it| it.cpu.user * 1e6 / it.load.requests as f64, 1),
            if more > 0.0 {
                against_first(&|cost, first| (cost - first) / more, 3)
            } else {
                "–".to_owned()
            },
            over(&|it| cost(it) * 1e3 / bytes, 2),
            over(&|it| it.waits as f64 / it.load.requests as f64, 2),
            over(&|it| it.load.requests as f64 / it.load.took.as_secs_f64(), 0),
            milliseconds(50),
            milliseconds(99),
            format!("{:.1}", self.relay.process.memory("VmRSS:")),
            self.rounds.iter().map(|it| it.load.refused).sum::<u64>().to_string(),
        ];
        format!("| {} |", cells.join(" | "))
    }
}

fn names(outputs: usize) -> impl Iterator<Item = String> {
    (0..outputs).map(|index| if index == 0 { "sink".to_owned() } else { format!("sink-{index}") })
}

impl Turns {
    fn new() -> Self {
        Self { streams: Vec::new(), current: 0, answered: false }
    }
}

impl Write for Turns {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.answered) {
            self.current = (self.current + 1) % self.streams.len();
        }
        self.streams[self.current].write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.streams[self.current].flush()
    }
}

impl Read for Turns {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.answered = true;
        self.streams[self.current].read(buffer)
    }
}
