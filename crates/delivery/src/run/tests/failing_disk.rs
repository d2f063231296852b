//! A queue in files whose disk fails in the files of the events that are set aside, one call after
//! the other, while the log works. An event that can't be set aside stays in the queue, and no
//! event is lost without a count.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use base::disk::{ASIDE, Access, Disk, File};
use rustix::io::Errno;
use testing::simulated_disk::SimulatedDisk;

use super::*;

/// A call of the disk for a file of an event that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    MakeDirectory,
    Create,
    Write,
    /// Writes half of the bytes, and fails.
    WriteHalf,
    Sync,
    Rename,
    SyncDirectory,
    Remove,
    Open,
    Read,
}

/// A simulated disk. A call that is set fails each time, in the directories of the events that are
/// set aside only.
#[derive(Debug, Clone)]
struct AsideDisk {
    disk: SimulatedDisk,
    fault: Arc<Mutex<Option<(Call, Errno)>>>,
    failed: Arc<AtomicU64>,
}

impl AsideDisk {
    fn new() -> Self {
        Self { disk: SimulatedDisk::new(1), fault: Arc::default(), failed: Arc::default() }
    }

    fn set(&self, fault: Option<(Call, Errno)>) {
        *self.fault.lock().unwrap() = fault;
    }

    fn failures(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn is_set(&self, call: Call) -> bool {
        self.fault.lock().unwrap().is_some_and(|(set, _)| set == call)
    }

    fn begin(&self, call: Call, name: &str) -> io::Result<()> {
        let fault = self.fault.lock().unwrap().filter(|(set, _)| *set == call);
        let Some((_, error)) = fault.filter(|_| name.starts_with(ASIDE)) else { return Ok(()) };
        self.failed.fetch_add(1, Ordering::Relaxed);
        Err(error.into())
    }

    fn file(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(AsideFile { disk: self.clone(), name: name.to_owned(), file })
    }
}

impl Disk for AsideDisk {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.begin(Call::Open, name)?;
        Ok(self.file(name, self.disk.open(name, access)?))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
        self.begin(Call::Create, name)?;
        Ok(self.file(name, self.disk.create(name, bytes)?))
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        self.begin(Call::MakeDirectory, name)?;
        self.disk.make_directory(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.begin(Call::Remove, name)?;
        self.disk.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.begin(Call::Rename, to)?;
        self.disk.rename(from, to)
    }

    fn recycle(&self, from: &str, to: &str) -> io::Result<bool> {
        self.disk.recycle(from, to)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.begin(Call::SyncDirectory, directory)?;
        self.disk.sync_directory(directory)
    }
}

#[derive(Debug)]
struct AsideFile {
    disk: AsideDisk,
    name: String,
    file: Arc<dyn File>,
}

impl File for AsideFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.begin(Call::Read, &self.name)?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.disk.begin(Call::Write, &self.name)?;
        if self.disk.is_set(Call::WriteHalf) && self.name.starts_with(ASIDE) {
            let bytes = pieces.concat();
            self.file.write_at(&[&bytes[..bytes.len() / 2]], offset)?;
        }
        self.disk.begin(Call::WriteHalf, &self.name)?;
        self.file.write_at(pieces, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.begin(Call::Sync, &self.name)?;
        self.file.sync()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.truncate(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
}

/// Opens a queue on this disk, with one output, which is required.
fn opened_on(
    disk: &Arc<dyn Disk>,
    config: &config::Config,
    telemetry: &Arc<Telemetry>,
) -> (Queue, queue::Cursor) {
    let output = queue::Output {
        name: "o".to_owned(),
        required: true,
        metrics: telemetry.output("o"),
        recorder: None,
    };
    let config =
        config::Queue { max_bytes: 4 << 20, segment_bytes: 64 << 10, ..config.queue.clone() };
    let path = Path::new("spool");
    let opened = Queue::open_on(Arc::clone(disk), path, &config, telemetry, &[output]);
    let (queue, mut cursors) = opened.expect("the disk works");
    (queue, cursors.pop().expect("the output's cursor"))
}

/// Opens the queue of a bench: on the disk of the setting, or in memory.
pub(super) fn opened_for(
    setting: &Setting,
    config: &config::Config,
    telemetry: &Arc<Telemetry>,
) -> (Queue, queue::Cursor) {
    match &setting.disk {
        Some(disk) => opened_on(disk, config, telemetry),
        None => opened(config, telemetry),
    }
}

const BAD: &str = "\"bad\"";

fn has_bad(events: &[String]) -> bool {
    events.iter().any(|event| event == BAD)
}

/// The response to a request with the bad event, and the number of these requests.
#[derive(Clone)]
struct ToBad(Arc<Mutex<(Answer, u64)>>);

impl ToBad {
    fn new(answer: Answer) -> Self {
        Self(Arc::new(Mutex::new((answer, 0))))
    }

    fn script(&self) -> impl FnMut(&[String]) -> Answer + Send + 'static {
        let shared = Arc::clone(&self.0);
        move |events| {
            let (answer, requests) = &mut *shared.lock().unwrap();
            *requests += u64::from(has_bad(events));
            if has_bad(events) { answer.clone() } else { Answer::Accept }
        }
    }

    fn becomes(&self, answer: Answer) {
        self.0.lock().unwrap().0 = answer;
    }

    fn requests(&self) -> u64 {
        self.0.lock().unwrap().1
    }
}

/// A bench whose queue is on a disk that fails.
struct Ill {
    bench: Bench,
    to_bad: ToBad,
    disk: AsideDisk,
    /// The number of events that are not bad.
    good: u64,
}

impl Ill {
    fn start(disk: &AsideDisk, ordered: bool, answer: Answer) -> Self {
        let window = if ordered { 1 } else { 4 };
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let setting = Setting { window, ordered, disk: Some(shared), ..Setting::default() };
        let to_bad = ToBad::new(answer);
        let bench = Bench::start::<false>(&setting, to_bad.script());
        Self { bench, to_bad, disk: disk.clone(), good: 0 }
    }

    /// Stores one event, and waits until its sender is told so, and usually until all good events
    /// are delivered. The clock stands still while only the queue's threads work.
    async fn store(&mut self, event: &str) {
        self.bench.appended.push(event.to_owned());
        let lines = Bytes::from(format!("{event}\n"));
        let append = Append { lines, events: 1, levels: Default::default(), list: None };
        // The clock may have jumped while the writer's thread was at work.
        self.waits_while(10_000, |ill| ill.bench.queue.fault().is_some()).await;
        let mut ticket = self.bench.queue.append(append).expect("room");
        let runtime = tokio::runtime::Handle::current();
        let told = move || runtime.block_on(ticket.acknowledged());
        let stored = tokio::task::spawn_blocking(told).await.expect("no panic");
        stored.expect("the log works");
        self.good += u64::from(event != BAD);
        self.waits_while(20, |ill| ill.delivered() < ill.good).await;
    }

    /// Waits in real time while the queue's threads work, and a little in the time of the test: at
    /// most this number of milliseconds in both.
    #[allow(clippy::disallowed_methods, reason = "a thread of its own sleeps")]
    async fn waits_while(&self, most: u64, mut is_at_work: impl FnMut(&Self) -> bool) {
        for _ in 0..most {
            if !is_at_work(self) {
                return;
            }
            let waits = || std::thread::sleep(Duration::from_millis(1));
            tokio::task::spawn_blocking(waits).await.expect("no panic");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn delivered(&self) -> u64 {
        self.bench.telemetry.output("o").events.get()
    }

    /// Lets this many seconds pass, with a good event every two seconds.
    async fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds.div_ceil(2) {
            let event = format!("\"good{}\"", self.good);
            self.store(&event).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Asserts how many events wait in the queue, are set aside, and are lost.
    async fn books(&self, wanted: (u64, u64, u64), at: &str) {
        let (backlog, _, _) = wanted;
        self.waits_while(5000, |ill| ill.bench.queue.backlogs()[0].1.events > backlog).await;
        let told = self.bench.status.snapshot().aside.map_or(0, |(aside, _)| aside.events);
        let books = (self.bench.backlog(), self.bench.aside(), self.bench.lost());
        assert_eq!((books, told), (wanted, wanted.1), "{at}");
    }

    /// Stops the delivery and the queue, which is then on the disk only.
    async fn stop(self) {
        let queue = self.bench.queue.clone();
        self.bench.finish().await;
        queue.close().await;
    }

    /// Does the same after a restart, where the counters do not have all events.
    async fn end(mut self) {
        self.bench.stop.cancel();
        let ended = self.bench.tasks.join_next().await;
        assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        self.bench.queue.close().await;
    }
}

const WRITES: [Call; 7] = [
    Call::MakeDirectory,
    Call::Create,
    Call::Write,
    Call::WriteHalf,
    Call::Sync,
    Call::Rename,
    Call::SyncDirectory,
];

const ERRORS: [Errno; 3] = [Errno::NOSPC, Errno::IO, Errno::ACCESS];

#[tokio::test(start_paused = true)]
async fn an_event_whose_file_can_not_be_written_stays_in_the_queue_until_the_disk_works() {
    for (number, call) in WRITES.into_iter().enumerate() {
        for (other, errno) in ERRORS.into_iter().enumerate() {
            let ordered = (number + other) % 2 == 0;
            let at = format!("{call:?} {errno:?}, ordered: {ordered}");
            let mut ill = Ill::start(&AsideDisk::new(), ordered, Answer::Fail);
            ill.disk.set(Some((call, errno)));
            ill.pass(2).await;
            ill.store(BAD).await;
            ill.pass(30).await;
            ill.books((1, 0, 0), &at).await;
            assert_eq!(ill.bench.delivered(), ill.good, "{at}: others continue");
            let (requests, failures) = (ill.to_bad.requests(), ill.disk.failures());
            assert!((3..20).contains(&failures), "{at}: {failures} tries to write");
            ill.pass(70).await;
            ill.books((1, 0, 0), &at).await;
            assert!(ill.to_bad.requests() > requests, "{at}: it is sent again");
            let more = ill.disk.failures() - failures;
            assert!((2..15).contains(&more), "{at}: {more} tries to write in 70 s");
            ill.disk.set(None);
            ill.pass(40).await;
            ill.books((0, 1, 0), &format!("{at}: the disk works again")).await;
            assert_eq!(ill.bench.delivered(), ill.good, "{at}");
            ill.to_bad.becomes(Answer::Accept);
            ill.pass(40).await;
            ill.books((0, 0, 0), &format!("{at}: the consumer takes it")).await;
            assert_eq!(ill.bench.delivered(), ill.good + 1, "{at}");
            ill.stop().await;
        }
    }
}

/// The consumer takes the event from the queue while the disk fails. A file of the event must not
/// bring it back at the next start.
#[tokio::test(start_paused = true)]
async fn an_event_that_is_taken_while_its_file_can_not_be_written_is_delivered_once() {
    for call in WRITES {
        let disk = AsideDisk::new();
        let mut ill = Ill::start(&disk, false, Answer::Refuse);
        disk.set(Some((call, Errno::NOSPC)));
        ill.pass(2).await;
        ill.store(BAD).await;
        ill.pass(20).await;
        ill.books((1, 0, 0), &format!("{call:?}: a refusal gives nothing up in the queue")).await;
        ill.to_bad.becomes(Answer::Accept);
        ill.pass(40).await;
        ill.books((0, 0, 0), &format!("{call:?}")).await;
        assert_eq!(ill.bench.delivered(), ill.good + 1, "{call:?}");
        disk.set(None);
        ill.stop().await;
        let mut next = Ill::start(&disk, false, Answer::Accept);
        next.pass(3).await;
        next.books((0, 0, 0), &format!("{call:?}")).await;
        assert_eq!(next.to_bad.requests(), 0, "{call:?}");
        next.end().await;
    }
}

/// The file of an event that is delivered, or given up, can't be deleted. The cursors file does not
/// list the event any more, so it is neither sent again nor lost.
#[tokio::test(start_paused = true)]
async fn an_event_whose_file_can_not_be_deleted_is_neither_lost_nor_sent_again() {
    for (answer, lost) in [(Answer::Accept, 0), (Answer::Refuse, 1)] {
        for errno in ERRORS {
            let disk = AsideDisk::new();
            let mut ill = Ill::start(&disk, false, Answer::Fail);
            ill.pass(2).await;
            ill.store(BAD).await;
            ill.pass(10).await;
            ill.books((0, 1, 0), &format!("{answer:?} {errno:?}")).await;
            disk.set(Some((Call::Remove, errno)));
            ill.to_bad.becomes(answer.clone());
            ill.pass(60).await;
            ill.books((0, 0, lost), &format!("{answer:?} {errno:?}")).await;
            let requests = ill.to_bad.requests();
            ill.pass(60).await;
            assert_eq!(ill.to_bad.requests(), requests, "{answer:?}: it is not sent again");
            assert!(disk.failures() > 0, "{answer:?}: nobody has tried to delete the file");
            ill.stop().await;
            disk.set(None);
            let mut next = Ill::start(&disk, false, Answer::Accept);
            next.pass(10).await;
            next.books((0, 0, 0), &format!("{answer:?}")).await;
            assert_eq!(next.to_bad.requests(), 0, "{answer:?}");
            next.end().await;
            assert_eq!(
                disk.list(ASIDE).unwrap().len(),
                0,
                "{answer:?}: the file is deleted at last"
            );
        }
    }
}

/// The file of an event can't be read: it is counted as lost, once, and no other event waits.
#[tokio::test(start_paused = true)]
async fn an_event_whose_file_can_not_be_read_is_counted_once() {
    for call in [Call::Open, Call::Read] {
        for errno in ERRORS {
            let mut ill = Ill::start(&AsideDisk::new(), false, Answer::Fail);
            ill.pass(2).await;
            ill.store(BAD).await;
            ill.disk.set(Some((call, errno)));
            ill.pass(60).await;
            assert!(ill.disk.failures() > 0, "{call:?} {errno:?}");
            ill.books((0, 0, 1), &format!("{call:?} {errno:?}")).await;
            assert_eq!(ill.bench.delivered(), ill.good, "{call:?} {errno:?}: others continue");
            ill.disk.set(None);
            ill.pass(5).await;
            ill.books((0, 0, 1), &format!("{call:?} {errno:?}")).await;
            ill.stop().await;
        }
    }
}
