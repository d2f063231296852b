//! A delivery without its loop. The test sends what the ledger wants to send, holds the requests,
//! and answers them in any order. Nothing else moves, so each state can be reached and looked at.

use super::*;

mod lanes;
mod recovered;
mod windows;

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

/// An output whose connections the test itself plays. If `COLLECTS`, it is like `s3`: everything on
/// the wire is one request, which an object of the same events may be repeated.
struct Played<const COLLECTS: bool> {
    ordered: bool,
}

impl<const COLLECTS: bool> Connect for Played<COLLECTS> {
    type Link = FakeLink<false>;

    const EAGER: bool = false;
    const COLLECTS: bool = COLLECTS;
    const IS_ONE_REQUEST: bool = COLLECTS;

    fn is_ordered(&self) -> bool {
        self.ordered
    }

    async fn probe(&mut self) -> Probed {
        Vec::new()
    }

    async fn connect(&mut self) -> Result<FakeLink<false>, Failure> {
        std::future::pending().await
    }
}

struct Hand<const COLLECTS: bool> {
    delivery: Delivery<Played<COLLECTS>>,
    queue: Queue,
    telemetry: Arc<Telemetry>,
    status: Arc<Status>,
    letters: DeadLetters,
    config: config::Output,
    ordered: bool,
}

type Lanes = Hand<false>;

impl<const COLLECTS: bool> Hand<COLLECTS> {
    fn new(ordered: bool) -> Self {
        Self::with(ordered, |begin| begin)
    }

    fn with(ordered: bool, change: impl FnOnce(HandOver) -> HandOver) -> Self {
        let mut config =
            config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right");
        let telemetry = Arc::new(Telemetry::new());
        let (queue, cursor) = opened(&config, &telemetry);
        config.outputs[0].rejected = Rejected::Drop;
        // The pauses must not depend on chance.
        config.outputs[0].retry.randomization_factor = 0.0;
        let (letters, _) = Desk::new(&telemetry);
        let (status, config) = (Arc::<Status>::default(), config.outputs.swap_remove(0));
        let begin = change(HandOver::begin(cursor));
        let delivery = Self::deliver(begin, &telemetry, &status, &letters, &config, ordered);
        Self { delivery, queue, telemetry, status, letters, config, ordered }
    }

    fn deliver(
        begin: HandOver,
        telemetry: &Telemetry,
        status: &Arc<Status>,
        letters: &DeadLetters,
        config: &config::Output,
        ordered: bool,
    ) -> Delivery<Played<COLLECTS>> {
        let health = Health::new(config, telemetry.output("o"), Arc::clone(status));
        let start = Start {
            begin,
            health,
            config: config.clone(),
            filter: None,
            dead_letters: letters.clone(),
            orders: Orders::default(),
        };
        Delivery::new(Played { ordered }, start)
    }

    /// A reload replaces the delivery by another one.
    fn hand_over(self) -> Self {
        let Self { delivery, queue, telemetry, status, letters, config, ordered } = self;
        let begin = delivery.hand_over();
        let delivery = Self::deliver(begin, &telemetry, &status, &letters, &config, ordered);
        Self { delivery, queue, telemetry, status, letters, config, ordered }
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.delivery.ledger
    }

    fn append(&self, events: &[&str]) {
        let lines: String = events.iter().flat_map(|event| [*event, "\n"]).collect();
        let (lines, events) = (Bytes::from(lines), events.len() as u64);
        let append = Append { lines, events, levels: Default::default(), list: None };
        self.queue.append(append).map(drop).expect("room");
    }

    /// Does what the loop does before it sends.
    fn settle(&mut self) {
        while self.ledger().bury() {}
        self.ledger().finish_decided();
    }

    /// Returns the next request, of at most this many new events.
    fn try_send(&mut self, events: u64) -> Option<Batch> {
        self.settle();
        self.ledger().next_to_send(Take { events, ..ALL })
    }

    /// Sends the next request, which must have these events.
    fn send(&mut self, wanted: &[&str]) -> Batch {
        let batch = self.try_send(wanted.len() as u64).expect("there is something to send");
        assert_eq!(events_of(&batch), wanted);
        batch
    }

    fn accept(&mut self, batch: &Batch) {
        self.ledger().on_accepted(batch.claim, 0);
        self.settle();
    }

    fn refuse(&mut self, batch: &Batch) {
        self.ledger().on_refused(batch.claim, &failure(AttemptError::Status4xx), 0);
        self.settle();
    }

    fn fail(&mut self, batch: &Batch, reason: AttemptError) {
        self.ledger().on_failed(batch.claim, &failure(reason), 0);
        self.settle();
    }

    fn value(&self, series: &str) -> u64 {
        self.queue.observe();
        let text = self.telemetry.render();
        let prefix = format!("kube_audit_forwarder_{series} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        let value: f64 = line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap();
        value.to_string().parse().unwrap()
    }

    /// Returns the number of events that are delivered, wait in the queue, are set aside, and are
    /// lost.
    fn books(&self) -> [u64; 4] {
        let told = self.status.snapshot().aside.map_or(0, |(aside, _)| aside.events);
        let books = [
            self.value("output_events_total{output=\"o\"}"),
            self.value("output_backlog_events{output=\"o\"}"),
            self.value("output_aside_events{output=\"o\"}"),
            self.value("error_total{plugin=\"o\"}"),
        ];
        assert_eq!(told, books[2], "/status and the metrics tell the same");
        assert_eq!(books.iter().sum::<u64>(), self.value("event_total"), "{books:?}");
        books
    }

    fn is_up(&self) -> bool {
        self.status.snapshot().up
    }
}
