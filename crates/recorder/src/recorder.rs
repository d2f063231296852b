//! The thread that records evidence.
//!
//! The thread reads the queue as an output does, with a cursor of its own, and no batch waits for
//! the thread. It hashes the lines, writes the line hashes, then the entries, and only then
//! finishes its claims. The queue thus keeps an event until its evidence is durable, unless it
//! needs the room before, or a witness has ended the log. Forwarding goes on without evidence, too.

use std::io;
use std::ops::Range as Positions;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::hashes::Hashes;
use super::originals::Originals;
use super::outcome::Made;
use super::store::Store;
use super::witness::{ANSWERS_WITHIN, Answered, Heard, Witnesses};
use super::{hashes, off, outcome, store};
use base::disk::Disk;
use base::position::Position;
use base::{random, release};
use evidence_log::entry::{Alarm, Entry, QUEUE, RANGE_MAX, Running, Started, now};
use evidence_log::layout::{DIRECTORY, Tampered};
use evidence_log::lines::{Range, Record, SALT_BYTES, Salt};
use evidence_log::tlog::key::SigningKey;
use evidence_log::tlog::merkle::Hash;
use evidence_log::{COMMIT_BYTES, COMMIT_EVERY};
use queue::{Batch, Claim, Cursor, Disposition, Finished, Queue, Take, lines};
use telemetry::{EvidenceError, EvidenceMetrics, WitnessMetrics};

/// The limits for the bytes and events of one claim.
const TAKE: Take = Take { bytes: 1 << 20, events: RANGE_MAX };

/// The pause after a failure, and between two requests to a witness at startup.
const PAUSE: Duration = Duration::from_secs(1);

/// The age in milliseconds below which an entry shows that the relay lives.
const FRESH_MS: u64 = 1000;

const ORDERS: usize = 16;

/// The parts and settings of a recorder.
pub struct Setup {
    /// The section `[evidence]`.
    pub settings: config::Evidence,
    /// The signing key, and the key that is to replace it, if there is one.
    pub keys: Vec<SigningKey>,
    /// The queue, whose directory is `disk`.
    pub queue: Queue,
    /// The directory of the queue.
    pub disk: Arc<dyn Disk>,
    /// The recorder's own cursor in the queue.
    pub cursor: Cursor,
    /// The position at which the cursor begins, and the position after the last event of the queue.
    pub positions: (Position, Position),
    /// The ranges of events, in order, that came in while evidence was off and may have no entry
    /// yet. When the log is opened, a range whose entries may be gone is added in front.
    pub off: Vec<Positions<u64>>,
    /// The facts about the relay in an entry. The recorder adds the positions of the outputs.
    pub running: Running,
    /// The metrics of the evidence.
    pub metrics: EvidenceMetrics,
    /// Compares the lines that outputs read from files.
    pub originals: Arc<Originals>,
    /// The witnesses, and the metric of each.
    pub witnesses: Vec<(config::Witness, WitnessMetrics)>,
    /// Gets new checkpoints, for the outputs that send checkpoints.
    pub checkpoints: watch::Sender<Bytes>,
}

#[derive(Debug)]
enum Order {
    Reload(Running),
    Stop(Running, Times),
}

/// The deadlines for the work after the order to stop.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// The thread waits until this time for witnesses without a response since startup.
    asks: Instant,
    /// Events are recorded until this time.
    records: Instant,
    /// Witnesses may cosign the last checkpoint until this time.
    cosigns: Instant,
}

/// The recorder, which has a thread of its own.
pub struct Recorder {
    orders: mpsc::Sender<Order>,
    thread: std::thread::JoinHandle<()>,
}

impl Recorder {
    /// Starts the thread, which must be joined by [`Recorder::stop`].
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let (orders, received) = mpsc::channel(ORDERS);
        let runtime = Handle::current();
        let work = Work::new(setup);
        let thread = std::thread::Builder::new().name("evidence".to_owned()).spawn(move || {
            let _panic = NoticePanic(work.setup.metrics.clone());
            runtime.block_on(work.run(received));
        })?;
        Ok(Self { orders, thread })
    }

    /// Notes that the config was read again. The note is dropped if the thread has ended, or if 16
    /// orders already wait because the disk hangs.
    pub fn reloaded(&self, running: Running) {
        if self.orders.try_send(Order::Reload(running)).is_err() {
            tracing::warn!(
                "this reload of the config is missing in the evidence, because the disk of \
                 queue.directory does not respond"
            );
        }
    }

    /// Records the events that are left in the queue, if there is time, signs the last checkpoint,
    /// and ends the thread. The outputs must have ended, and the queue must accept no more batches.
    /// Waits for at most `within`.
    pub async fn stop(self, running: Running, within: Duration) {
        let Self { orders, thread } = self;
        // The last third of the time is for the last checkpoint and its cosignatures.
        let now = Instant::now();
        let asks = now + within / 3;
        let times = Times { asks, records: now + within / 3 * 2, cosigns: now + within / 6 * 5 };
        let ended = async move {
            orders.send(Order::Stop(running, times)).await.ok();
            tokio::task::spawn_blocking(|| thread.join()).await
        };
        // If the thread has panicked, [`NoticePanic`] has reported it.
        if tokio::time::timeout(within, ended).await.is_err() {
            tracing::error!(
                "the relay ends before the evidence of the last events is written: the next start \
                 continues with it"
            );
        }
    }
}

/// Reports the panic of the thread, after which no evidence is recorded until the next start.
struct NoticePanic(EvidenceMetrics);

impl Drop for NoticePanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed(EvidenceError::Write);
            tracing::error!(
                "the thread that records the evidence has panicked: there is no evidence of later \
                 events until you restart the relay"
            );
        }
    }
}

/// The range of events that is being hashed.
struct Open {
    range: Range,
    /// The time at which the last event of the range was accepted.
    received: u64,
}

/// The claims whose evidence is not durable yet.
#[derive(Default)]
struct Taken {
    claims: Vec<Claim>,
    /// The number of bytes of the claimed lines.
    bytes: u64,
}

#[derive(Default)]
struct Fates {
    /// The ranges that outputs have finished and that wait for their entries.
    open: Vec<Finished>,
    /// The finished ranges whose entries are not durable yet.
    entered: Vec<Finished>,
}

struct Work {
    setup: Setup,
    state: State,
    trouble: Trouble,
    open: Option<Open>,
    taken: Taken,
    /// The time at which a write is due. `None` if there is nothing new to write.
    commit_at: Option<Instant>,
    checkpoint_at: Instant,
    heartbeat_at: Instant,
    fates: Fates,
    /// The positions whose events count as unproven instead of lost, if they have no entry and are
    /// no longer in the queue. The queue has given these events up, or files of the log were
    /// changed or removed.
    unproven: Vec<Positions<u64>>,
}

enum State {
    /// No file is open: an attempt to open them has failed, or is still to come. The alarms that
    /// failed attempts have raised get their entries when the files are open.
    Closed(Vec<Alarm>),
    Open(Box<Log>),
    /// A witness has contradicted the log. Nothing is recorded any more.
    RolledBack,
}

impl State {
    fn log(&self) -> Option<&Log> {
        match self {
            Self::Open(log) => Some(log),
            Self::Closed(_) | Self::RolledBack => None,
        }
    }

    fn log_mut(&mut self) -> Option<&mut Log> {
        match self {
            Self::Open(log) => Some(log),
            Self::Closed(_) | Self::RolledBack => None,
        }
    }
}

/// The result of the last attempts to open and to write the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// No failure is known.
    None,
    /// An attempt has failed. The next one is due at this time.
    Waits(Instant),
    /// An attempt has failed, and the pause is over. Or only a signature has failed.
    Told,
}

struct Log {
    store: Store,
    hashes: Hashes,
    /// The events from this position on still get entries.
    next: u64,
    witnesses: Witnesses,
    /// [`Work::write`] does nothing until all witnesses have responded, this time has come, or the
    /// relay ends. `None` if the wait is over.
    asks_until: Option<Instant>,
}

impl Work {
    fn new(setup: Setup) -> Self {
        let now = Instant::now();
        let (checkpoint, heartbeat) =
            (setup.settings.checkpoint_interval, setup.settings.heartbeat_interval);
        Self {
            setup,
            state: State::Closed(Vec::new()),
            trouble: Trouble::None,
            open: None,
            taken: Taken::default(),
            commit_at: None,
            checkpoint_at: now + checkpoint,
            heartbeat_at: now + heartbeat,
            fates: Fates::default(),
            unproven: Vec::new(),
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        self.setup.cursor.tell_acceptances(true);
        self.begin();
        let last = loop {
            self.turn();
            let (takes, wakes_at) = (self.may_take(), self.wakes_at());
            let finished = self.setup.cursor.finished();
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Reload(running)) => {
                        // If the files are not open yet, the entry `Start` will have these facts.
                        self.setup.running = running.clone();
                        self.add(Entry::Reload(self.now(running)));
                        // The fates of all later events can only be understood with the list of
                        // the outputs.
                        self.commit_at = Some(Instant::now());
                    }
                    Some(Order::Stop(running, times)) => break Some((running, times)),
                    None => break None,
                },
                answered = answered(&mut self.state) => self.hear(answered),
                () = self.setup.cursor.readable(), if takes => {}
                () = finished, if self.commit_at.is_none() => {
                    self.commit_at = Some(Instant::now() + COMMIT_EVERY);
                }
                () = tokio::time::sleep_until(wakes_at) => {}
            }
        };
        self.end(last).await;
    }

    /// Records the events that are left in the queue, if there is time, and signs a last
    /// checkpoint. The next start records the rest.
    async fn end(mut self, last: Option<(Running, Times)>) {
        let times = last.as_ref().map(|(_, times)| *times);
        if let Some(times) = times {
            if self.is_asking() {
                self.hear_until(times.asks).await;
            }
            // There is no more time for a witness that has not responded.
            self.state.log_mut().into_iter().for_each(|log| log.asks_until = None);
            self.record_until(times.records).await;
        }
        // The entry about the last events must precede the entry `Stop`.
        self.close();
        if self.state.log().is_some() {
            self.record_unplaced();
        }
        // This write records the events that the outputs have finished, so that the positions in
        // the last entry agree with the entries before it.
        self.write(false);
        if let Some((running, _)) = last {
            let directory = self.setup.disk.identity(DIRECTORY);
            self.add(Entry::Stop(Running { directory, ..self.now(running) }));
        }
        self.write(true);
        if let Some(times) = times {
            self.hear_until(times.cosigns).await;
        }
        if matches!(self.state, State::RolledBack) {
            self.pass_over();
        }
    }

    /// Asks the witnesses about the newest checkpoint, and waits for responses until `until`.
    async fn hear_until(&mut self, until: Instant) {
        if let Some(log) = self.state.log_mut() {
            log.witnesses.hurry();
        }
        self.ask_witnesses();
        while self.state.log().is_some_and(|log| log.witnesses.are_asked()) {
            match tokio::time::timeout_at(until, answered(&mut self.state)).await {
                Ok(answered) => self.hear(answered),
                Err(_) => return,
            }
            self.end_of_questions();
            // This response may have been about an earlier checkpoint.
            self.ask_witnesses();
        }
    }

    /// Returns `running` with the present time, the present places of the outputs, and the outputs
    /// that have left.
    fn now(&self, running: Running) -> Running {
        let places = self.setup.queue.places().into_iter();
        let outputs = places.map(|(name, place)| (name, place.get())).collect();
        let left = self.setup.cursor.take_left().into_iter();
        let left = left.map(|(name, until)| (name, until.get())).collect();
        Running { at: now(), outputs, left, ..running }
    }

    /// Takes events until none is left or `until` has come, as long as the log can be written.
    async fn record_until(&mut self, until: Instant) {
        let may_write = |it: &Self| it.state.log().is_some() && it.waits_until().is_none();
        while may_write(self) && Instant::now() < until {
            if self.taken.bytes >= COMMIT_BYTES {
                self.write(false);
            }
            if self.take() {
                continue;
            }
            if self.setup.cursor.is_at_end() {
                return;
            }
            tokio::time::timeout_at(until, self.setup.cursor.readable()).await.ok();
        }
    }

    fn may_take(&self) -> bool {
        let has_room = match &self.state {
            State::RolledBack => return true,
            State::Open(log) => !log.store.is_full(),
            State::Closed(_) => false,
        };
        has_room && self.waits_until().is_none() && self.taken.bytes < COMMIT_BYTES
    }

    /// Returns the time at which there is something to do, even if no event comes.
    fn wakes_at(&self) -> Instant {
        if let Some(at) = self.waits_until() {
            return at;
        }
        let Some(log) = self.state.log() else { return Instant::now() + PAUSE };
        let (signs_at, commits_at) = match log.asks_until {
            Some(until) => (until, None),
            None => (self.checkpoint_at, self.commit_at),
        };
        let witness = log.witnesses.again_at(log.store.signed());
        let others = [commits_at, witness].into_iter().flatten();
        others.fold(signs_at.min(self.heartbeat_at), Instant::min)
    }

    fn turn(&mut self) {
        if matches!(self.state, State::RolledBack) {
            return self.pass_over();
        }
        let begun = Instant::now();
        match self.waits_until() {
            Some(at) if begun < at => return,
            Some(_) => self.trouble = Trouble::Told,
            None => {}
        }
        if matches!(self.state, State::Closed(_)) {
            self.begin();
        }
        if self.may_take() {
            self.take();
        }
        if self.state.log().is_some() && begun >= self.heartbeat_at {
            self.add(Entry::Heartbeat { at: now() });
        }
        self.end_of_questions();
        let signs = begun >= self.checkpoint_at;
        let is_full = self.taken.bytes >= COMMIT_BYTES
            || self.state.log().is_some_and(|log| log.store.is_full());
        if signs || is_full || self.commit_at.is_some_and(|at| begun >= at) {
            self.write(signs);
        }
        self.ask_witnesses();
    }

    /// Returns `true` while the witnesses are asked about the log at startup.
    fn is_asking(&self) -> bool {
        self.state.log().is_some_and(|log| log.asks_until.is_some())
    }

    /// Returns the time at which the next attempt after a failure is due.
    fn waits_until(&self) -> Option<Instant> {
        match self.trouble {
            Trouble::Waits(until) => Some(until),
            Trouble::None | Trouble::Told => None,
        }
    }

    /// Opens the files and records the start, unless a witness has contradicted the log.
    fn begin(&mut self) {
        let Setup { disk, settings, .. } = &self.setup;
        let marked = store::rolled_back(&**disk, &settings.origin);
        if let Ok(Some(why)) = &marked {
            return self.roll_back(why);
        }
        // If nobody can read whether the log was rolled back, nothing may be recorded.
        let opened = marked.and_then(|_| self.open_files());
        self.setup.originals.decide(opened.is_ok());
        match opened {
            Ok(log) => {
                let previous = log.store.head();
                let opened = std::mem::replace(&mut self.state, State::Open(Box::new(log)));
                let running = self.now(self.setup.running.clone());
                self.add(Entry::Start(Started { running, previous }));
                let next = self.setup.keys.get(1).map(|key| key.verifier().to_string());
                if let Some(verifier_key) = next {
                    self.add(Entry::Key { at: now(), verifier_key });
                }
                if let State::Closed(late) = opened {
                    late.into_iter().for_each(|what| self.add(Entry::Alarm { at: now(), what }));
                }
                // The first commit ends the alarm for the next start, so it must also say for which
                // events nothing is proven.
                if let Some(next) = self.next() {
                    self.pass_to(next);
                }
                self.write(true);
            }
            Err(error) => self.failed(EvidenceError::Write, &error),
        }
    }

    fn open_files(&mut self) -> io::Result<Log> {
        let Setup { settings, keys, disk, positions: (begin, end), .. } = &self.setup;
        let (witnesses, metrics) = (&self.setup.witnesses, &self.setup.metrics);
        let mut off = None;
        let mut store = Store::open(Arc::clone(disk), &settings.origin, keys)?;
        note(&store.alarms, &mut self.state, metrics);
        let last = store.last_accepted()?;
        let is_set_back = last.is_some_and(|last| last > end.get());
        let (mut known, has_ended) = store.lines()?;
        if is_set_back {
            // The hashes are those of other events at the same positions.
            hashes::keep_aside(&**disk)?;
            known = None;
        }
        let (hashes, is_foreign) =
            Hashes::open(Arc::clone(disk), settings.max_bytes, known, has_ended)?;
        if is_foreign {
            tracing::error!(
                "files in evidence/lines were removed or have the wrong size: data in them that \
                 the relay did not write is cut off; find out who can write to queue.directory"
            );
            store.is_tampered();
        }
        note(&store.alarms, &mut self.state, metrics);
        let mut next = last.unwrap_or(begin.get());
        if store.alarms.contains(&Alarm::Removed) && last.is_none() && begin.get() > 0 {
            // Nothing that is left says which of these events had an entry.
            (next, off) = (0, Some(0..begin.get()));
        }
        if store.is_cut && next < end.get() {
            // These events may have had entries, and their lines in the queue may have changed
            // since.
            off = Some(next..end.get());
        }
        if is_set_back {
            tracing::error!(
                evidence = next,
                queue = end.get(),
                "the evidence has more events than the queue, because queue.directory was restored \
                 from an older copy: position numbers are used twice; stop the relay and set a new \
                 evidence.origin and key"
            );
            next = end.get();
        }
        let size = store.signed().size;
        let witnesses = Witnesses::new(witnesses, metrics, size).map_err(io::Error::other)?;
        let asks_until = (!witnesses.have_answered()).then(|| Instant::now() + ANSWERS_WITHIN);
        if !store.alarms.is_empty() {
            self.unproven.push(0..end.get());
        }
        self.setup.off.splice(..0, off);
        Ok(Log { store, hashes, next, witnesses, asks_until })
    }

    /// Checks whether the checkpoint, `evidence-head` and the newest file of line hashes are still
    /// there. Restores the first two if the tiles are there. Otherwise opens the log again and
    /// continues with the entries that are left.
    fn check_files(&mut self) -> io::Result<()> {
        let Some(Log { store, hashes, .. }) = self.state.log_mut() else { return Ok(()) };
        if !hashes.is_there()? {
            hashes.reopen()?;
            tracing::error!(
                "the newest file in evidence/lines was removed or replaced while the relay was \
                 running: the events in it can no longer be verified; find out who can write to \
                 queue.directory"
            );
            self.setup.metrics.failed(EvidenceError::Tampered);
        }
        if store.is_there()? {
            return Ok(());
        }
        let is_restored = store.restore()?;
        tracing::error!(
            is_restored,
            "the evidence checkpoint or the file evidence-head was removed or replaced while the \
             relay was running: find out who can write to queue.directory"
        );
        if is_restored {
            self.setup.metrics.failed(EvidenceError::Tampered);
            self.add(Entry::Alarm { at: now(), what: Alarm::Removed });
            return Ok(());
        }
        // The events without durable evidence are read again.
        (self.open, self.commit_at) = (None, None);
        self.state = State::Closed(Vec::new());
        self.taken = Taken::default();
        self.setup.cursor.rewind();
        let begin = self.setup.cursor.position();
        self.setup.positions = (begin, begin.max(self.setup.positions.1));
        self.fates.open.append(&mut self.fates.entered);
        self.begin();
        Ok(())
    }

    fn ask_witnesses(&mut self) {
        let Some(Log { store, witnesses, asks_until, .. }) = self.state.log_mut() else { return };
        let pause = match asks_until {
            Some(_) => PAUSE,
            None => self.setup.settings.checkpoint_interval,
        };
        witnesses.ask(store, pause);
    }

    fn hear(&mut self, answered: Answered) {
        let Some(Log { store, witnesses, .. }) = self.state.log_mut() else { return };
        let (written, contradiction) = match witnesses.hear(answered, store) {
            Heard::Cosigned(note) => {
                (store.cosign(note).inspect_err(|_| witnesses.ask_again()), None)
            }
            // If this fails, the next start asks the witness again.
            Heard::Contradiction(why) => (store.roll_back(&why), Some(why)),
            Heard::Nothing => return,
        };
        if let Err(error) = written {
            self.failed(EvidenceError::Write, &error);
        }
        if let Some(why) = contradiction {
            self.roll_back(&why);
        }
    }

    /// At startup, makes the first checkpoint due when all witnesses have responded or `asks_until`
    /// has passed.
    fn end_of_questions(&mut self) {
        let Some(Log { witnesses, asks_until, .. }) = self.state.log_mut() else { return };
        let is_over = |until: &mut Instant| witnesses.have_answered() || Instant::now() >= *until;
        if asks_until.take_if(is_over).is_some() {
            self.checkpoint_at = Instant::now();
        }
    }

    /// Ends the log because a witness contradicts it. A log that continued would be a second log
    /// with the same origin.
    fn roll_back(&mut self, why: &str) {
        self.setup.metrics.failed(EvidenceError::RolledBack);
        tracing::error!(
            origin = self.setup.settings.origin,
            reason = why,
            "the evidence was restored from an older copy, or another relay uses the same \
             evidence.origin: events are forwarded, but without evidence until you set a new \
             evidence.origin and key"
        );
        self.setup.originals.decide(false);
        self.state = State::RolledBack;
        self.trouble = Trouble::None;
        (self.open, self.commit_at) = (None, None);
    }

    /// Takes events from the queue without recording them, so that the queue can free their room.
    fn pass_over(&mut self) {
        let cursor = &mut self.setup.cursor;
        self.taken.claims.extend(cursor.next(TAKE).map(|batch| batch.claim));
        self.taken.claims.drain(..).for_each(|it| cursor.acknowledge(it, Disposition::default()));
        let mut finished = cursor.take_finished();
        finished.append(&mut self.fates.open);
        finished.append(&mut self.fates.entered);
        cursor.recorded(&finished);
        // These events get no entry any more.
        let _unplaced = cursor.take_unplaced();
        let _unproven = cursor.take_given_up();
        self.commit_at = None;
    }

    /// Adds an entry, unless it is too long or no file is open. [`Work::write`] makes it durable.
    fn add(&mut self, entry: Entry) {
        let Some(log) = self.state.log_mut() else { return };
        let at = entry.at();
        if let Err(error) = log.store.push(entry.bytes()) {
            tracing::error!(
                %error,
                "an entry of the evidence log is too long and is left out: please report this bug"
            );
        }
        let instant = Instant::now();
        // The entry about an event that has waited in the queue has an old time, and does not show
        // that the relay lives.
        if now().saturating_sub(at) < FRESH_MS {
            self.heartbeat_at = instant + self.setup.settings.heartbeat_interval;
        }
        self.commit_at.get_or_insert(instant + COMMIT_EVERY);
    }

    /// Takes events from the queue and hashes them. Returns `false` if [`Cursor::next`] gives none.
    fn take(&mut self) -> bool {
        let batch = self.setup.cursor.next(TAKE);
        if let Some(batch) = &batch {
            self.taken.bytes += batch.bytes;
            self.taken.claims.push(batch.claim);
            self.commit_at.get_or_insert(Instant::now() + COMMIT_EVERY);
        }
        // The queue notes the events that it gives up before the cursor passes them.
        let given_up = self.setup.cursor.take_given_up().into_iter();
        self.unproven.extend(given_up.map(|range| range.start.get()..range.end.get()));
        if let Some(batch) = &batch {
            self.hash(batch);
        }
        // Events that the cursor passed without lines are no longer in the queue.
        self.pass_to(self.setup.cursor.position().get());
        self.record_unplaced();
        batch.is_some()
    }

    /// Records the loss of the events that were acknowledged and never stored.
    fn record_unplaced(&mut self) {
        let unplaced = self.setup.cursor.take_unplaced();
        if unplaced > 0 {
            self.lost(None, unplaced, "when_full");
        }
    }

    fn hash(&mut self, batch: &Batch) {
        if self.next().is_none_or(|next| batch.claim.end.get() <= next) {
            return;
        }
        for (line, (position, received)) in lines(&batch.pieces).zip(batch.places()) {
            let position = position.get();
            if self.next() != Some(position) || !self.setup.off.is_empty() {
                self.pass_to(position);
                // After a restart, events that already have an entry are read once more.
                if self.next() != Some(position) {
                    continue;
                }
            }
            let open = self.open.get_or_insert_with(|| Open {
                range: Range { first: position, salt: salt(), lines: Vec::new() },
                received,
            });
            open.range.lines.push(Hash::of(&[line]));
            open.received = received;
            if open.range.lines.len() as u64 >= RANGE_MAX {
                self.close();
            }
        }
    }

    /// Returns the position of the next event that gets evidence; `None` if the files are not open.
    fn next(&self) -> Option<u64> {
        let open = self.open.as_ref().map(|open| open.range.end());
        open.or(self.state.log().map(|log| log.next))
    }

    /// Adds entries about the events before `position` that get no evidence: those in
    /// [`Setup::off`], and those that the queue does not have any more. The entry about a range of
    /// [`Setup::off`] goes to the end of the range, even if it ends after `position`.
    fn pass_to(&mut self, position: u64) {
        while let Some((range, is_off)) = self.next().and_then(|next| self.gap(next, position)) {
            self.close();
            let (first, count) = (range.start, range.end - range.start);
            tracing::error!(
                position = first,
                events = count,
                "some events have no evidence: it was off, or could not be written before the \
                 queue needed their room, or files of the queue are damaged"
            );
            match is_off {
                true => self.add(Entry::Alarm { at: now(), what: Alarm::Off { first, count } }),
                false => self.lost(Some(first), count, "missing"),
            }
            if let Some(log) = self.state.log_mut() {
                log.next = range.end;
            }
        }
        if let Some(next) = self.state.log().map(|log| log.next) {
            self.unproven.retain(|range| range.end > next);
        }
    }

    /// Returns the next events that get no evidence, from `next` on: a range of [`Setup::off`], or
    /// events before `position` without a line. The second value is `true` if the events are
    /// unproven, and `false` if they are lost. `None` if there are no such events.
    fn gap(&self, next: u64, position: u64) -> Option<(Positions<u64>, bool)> {
        let off = self.setup.off.iter().find(|off| off.end > next);
        let (end, is_off) = match off {
            Some(off) if off.start <= next => (off.end, true),
            off => {
                let end = off.map_or(position, |off| position.min(off.start));
                let around = self.unproven.iter().filter(|range| range.contains(&next));
                let behind = self.unproven.iter().map(|range| range.start);
                let behind = behind.filter(|start| *start > next).min().unwrap_or(end);
                match around.map(|range| range.end).max() {
                    Some(unproven) => (end.min(unproven), true),
                    None => (end.min(behind), false),
                }
            }
        };
        (next < end).then_some((next..end, is_off))
    }

    /// Records that the queue has lost events. `first` is the position of the first one; `None` if
    /// they never got positions.
    fn lost(&mut self, first: Option<u64>, count: u64, reason: &str) {
        let (output, reason) = (QUEUE.to_owned(), reason.to_owned());
        self.add(Entry::Lost { output, first, count, at: now(), reason });
    }

    /// Adds entries about the events that outputs have finished. The entry about the arrival of an
    /// event precedes the entry about its delivery.
    fn record_finished(&mut self) {
        let Some(log) = self.state.log_mut().filter(|log| !log.store.is_full()) else { return };
        self.fates.open.append(&mut self.setup.cursor.take_finished());
        let next = log.next;
        let ready = |finished: &mut Finished| finished.claim.end.get() <= next;
        let ready: Vec<_> = self.fates.open.extract_if(.., ready).collect();
        for Made { entry, sent } in outcome::entries(&ready, salt) {
            if let (Some(sent), Some(log)) = (sent, self.state.log_mut()) {
                log.hashes.push(&sent, next);
            }
            self.add(entry);
        }
        self.fates.entered.extend(ready);
    }

    /// Ends the range that is being hashed, and adds its entry.
    fn close(&mut self) {
        let Some(Open { range, received }) = self.open.take() else { return };
        let (first, root, end) = (range.first, range.root(), range.end());
        if let Some(log) = self.state.log_mut() {
            log.hashes.push(&Record::accepted(range), first);
            log.next = end;
        }
        self.add(Entry::Accepted { first, count: end - first, at: received, root });
    }

    /// Makes hashes and entries durable, and finishes their claims. If `signs` is set and the log
    /// has grown, also signs a checkpoint. Does nothing while the witnesses are asked at startup.
    fn write(&mut self, signs: bool) {
        if self.is_asking() {
            return;
        }
        if signs && let Err(error) = self.check_files() {
            return self.failed(EvidenceError::Write, &error);
        }
        self.close();
        self.record_finished();
        let Some(log) = self.state.log_mut() else { return };
        let keys = &self.setup.keys;
        if let Err(error) = log.commit(keys) {
            return self.failed(EvidenceError::Write, &error);
        }
        let size = log.store.head().size;
        self.commit_at = None;
        for claim in std::mem::take(&mut self.taken).claims {
            self.setup.cursor.acknowledge(claim, Disposition::default());
        }
        self.setup.cursor.recorded(&std::mem::take(&mut self.fates.entered));
        self.setup.metrics.grew(size);
        if !signs {
            return;
        }
        match log.store.sign(keys) {
            Ok(signed) => {
                if let Some(note) = signed {
                    self.setup.metrics.signed();
                    self.setup.checkpoints.send_replace(note.to_string().into());
                }
                if let Err(error) = log.remember(&*self.setup.disk, &mut self.setup.off) {
                    return self.failed(EvidenceError::Write, &error);
                }
                self.checkpoint_at = Instant::now() + self.setup.settings.checkpoint_interval;
                if std::mem::replace(&mut self.trouble, Trouble::None) != Trouble::None {
                    tracing::info!(size, "the evidence can be written again");
                }
            }
            Err(error) => {
                // Entries are still taken, as long as there is room for them.
                let is_full = log.store.is_full();
                self.failed(EvidenceError::Sign, &error);
                self.checkpoint_at = Instant::now() + PAUSE;
                if !is_full {
                    self.trouble = Trouble::Told;
                }
            }
        }
    }

    /// Notes a failure, and sets the pause before the next attempt.
    fn failed(&mut self, reason: EvidenceError, error: &io::Error) {
        let reason = if Tampered::is(error) { EvidenceError::Tampered } else { reason };
        self.setup.metrics.failed(reason);
        let waits = Trouble::Waits(Instant::now() + PAUSE);
        if std::mem::replace(&mut self.trouble, waits) == Trouble::None {
            match matches!(reason, EvidenceError::Tampered) {
                true => tracing::error!(
                    %error,
                    "files of the evidence were removed or replaced: nothing is recorded until you \
                     put them back, or set a new evidence.origin and key; find out who can write \
                     to queue.directory"
                ),
                false => tracing::error!(
                    %error,
                    "the evidence can't be written, retrying each second: events are still \
                     forwarded, but without evidence until this is fixed"
                ),
            }
        }
    }
}

/// Stores the alarms that an attempt to open the files has raised, until they get their entries. If
/// this attempt fails, the next one may raise the same alarms again, or none.
fn note(alarms: &[Alarm], state: &mut State, metrics: &EvidenceMetrics) {
    let State::Closed(late) = state else { return };
    for alarm in alarms {
        if !late.contains(alarm) {
            metrics.failed(EvidenceError::Tampered);
            late.push(alarm.clone());
        }
    }
}

/// Waits for a response of a witness. Never returns if no request is in progress.
async fn answered(state: &mut State) -> Answered {
    match state.log_mut() {
        Some(log) => log.witnesses.answered().await,
        None => std::future::pending().await,
    }
}

impl Log {
    /// Writes a copy of the newest checkpoint next to the log. Also forgets the ranges in `off` if
    /// the checkpoint covers the entries about them.
    fn remember(&mut self, disk: &dyn Disk, off: &mut Vec<Positions<u64>>) -> io::Result<()> {
        self.store.remember()?;
        if off.last().is_some_and(|last| last.end <= self.next) {
            off::entered(disk)?;
            off.clear();
        }
        Ok(())
    }

    /// Makes hashes and entries durable. Then deletes the oldest line hashes if they take too much
    /// room. The entry about the deletion is made durable first.
    fn commit(&mut self, keys: &[SigningKey]) -> io::Result<()> {
        self.hashes.commit()?;
        let oldest = self.hashes.give_up_oldest();
        if !oldest.is_empty() {
            let below = self.hashes.begins_at();
            self.store.push(Entry::Pruned { at: now(), below }.bytes())?;
        }
        self.store.commit(self.hashes.sizes(), keys)?;
        self.hashes.remove(&oldest);
        Ok(())
    }
}

/// Returns a random salt.
///
/// # Panics
///
/// If the operating system gives no random numbers.
fn salt() -> Salt {
    let mut salt = [0; SALT_BYTES];
    random::fill(&mut salt).expect("the start has got random numbers");
    Salt(salt)
}

/// Returns the facts about the relay for an entry. The recorder adds those about the outputs and
/// the directory.
pub fn running(config_sha256: String, settings: &config::Evidence) -> Running {
    // Nobody sees a heartbeat before a checkpoint covers it.
    let heartbeat = settings.heartbeat_interval.max(settings.checkpoint_interval);
    Running {
        at: now(),
        version: release::VERSION.to_owned(),
        config_sha256,
        heartbeat_ms: u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX),
        ..Running::default()
    }
}

#[cfg(test)]
mod tests;
