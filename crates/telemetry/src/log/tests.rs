//! Tests of the queue of log lines, with a writer that hangs, fails and works again.

use std::sync::mpsc;

use super::*;

/// The file to which the log's thread writes. Each write waits until the test allows it, and fails
/// after the test has dropped the sender of `allowed`.
struct Gate {
    /// The number of bytes that the next write may take.
    allowed: mpsc::Receiver<usize>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let allowed = self.allowed.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        let taken = bytes.len().min(allowed);
        self.written.lock().unwrap().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue whose thread writes to a gate.
struct Log {
    lines: Arc<Lines>,
    allow: mpsc::Sender<usize>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Log {
    /// Starts the thread. It logs its own lines into the same queue, as the log's thread of the
    /// process does.
    fn start(format: LogFormat) -> Self {
        let (allow, allowed) = mpsc::channel();
        let (lines, written) = (Arc::<Lines>::default(), Arc::<Mutex<Vec<u8>>>::default());
        let mut gate = Gate { allowed, written: Arc::clone(&written) };
        let for_thread = Arc::clone(&lines);
        // The thread ends with the test's process.
        std::thread::spawn(move || {
            let layer = super::lines(format, &for_thread);
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(subscriber, || for_thread.write_all(&mut gate));
        });
        Self { lines, allow, written }
    }

    fn push(&self, text: &str, rank: Rank) {
        self.lines.push(format!("{text}\n").into_bytes(), rank);
    }

    /// Waits until the thread hangs in its first write.
    fn wait_until_it_hangs(&self) {
        while self.lines.lock().writing.is_none() {
            std::thread::yield_now();
        }
    }

    /// Lets the thread write all there is.
    fn let_go(&self) -> Vec<String> {
        for _ in 0..2 * LINES_MAX {
            self.allow.send(usize::MAX).expect("the thread lives");
        }
        self.lines.flush(Duration::from_secs(60));
        self.text()
    }

    fn text(&self) -> Vec<String> {
        let written = self.written.lock().unwrap();
        let text = String::from_utf8(written.clone()).expect("whole characters");
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        text.lines().map(str::to_owned).collect()
    }

    fn dropped(&self) -> u64 {
        self.lines.dropped.load(Ordering::Relaxed)
    }
}

#[test]
fn lines_come_in_their_order_and_those_that_found_no_room_are_counted_and_told_of() {
    let log = Log::start(LogFormat::Text);
    log.push("first", Rank::Ordinary);
    log.wait_until_it_hangs();
    let room = LINES_MAX / 4 * 3;
    // `push` returns, although nobody reads.
    for number in 0..room + 10 {
        log.push(&number.to_string(), Rank::Ordinary);
    }
    assert_eq!(log.dropped(), 10);
    // There is still room for warnings.
    for number in 0..LINES_MAX - room + 5 {
        log.push(&format!("warning {number}"), Rank::Urgent);
    }
    assert_eq!(log.dropped(), 15);
    let text = log.let_go();
    let expected: Vec<String> = ["first".to_owned()]
        .into_iter()
        .chain((0..room).map(|number| number.to_string()))
        .chain((0..LINES_MAX - room).map(|number| format!("warning {number}")))
        .collect();
    let (lines, notice) = text.split_at(expected.len());
    assert!(lines == expected, "{:?}", lines.iter().zip(&expected).find(|(a, b)| a != b));
    assert!(notice[0].contains("ERROR log lines were dropped"), "{notice:?}");
    assert!(notice[0].ends_with("lines=15") && notice.len() == 1, "{notice:?}");
    // There is room again, and no dropped line is left to report.
    log.push("last", Rank::Ordinary);
    assert_eq!(log.let_go().last().unwrap(), "last");
    assert_eq!((log.dropped(), log.text().len()), (15, expected.len() + 2));
}

#[test]
fn bytes_bound_the_queue_as_lines_do_and_a_line_that_never_fits_is_dropped() {
    let log = Log::start(LogFormat::Json);
    log.push("first", Rank::Ordinary);
    log.wait_until_it_hangs();
    log.push(&"x".repeat(BYTES_MAX), Rank::Urgent);
    assert_eq!(log.dropped(), 1);
    let long = "y".repeat(BYTES_MAX / 8 - 1);
    for _ in 0..8 {
        log.push(&long, Rank::Ordinary);
    }
    // Six lines of 128 KiB fill three quarters of the queue.
    assert_eq!(log.dropped(), 3);
    assert_eq!(log.lines.lock().bytes, BYTES_MAX / 4 * 3);
    let text = log.let_go();
    assert_eq!(text.iter().filter(|line| **line == long).count(), 6);
    let notice: serde_json::Value = serde_json::from_str(text.last().unwrap()).expect("JSON");
    assert_eq!((&notice["level"], &notice["fields"]["lines"]), (&"ERROR".into(), &3.into()));
}

#[test]
fn the_end_waits_for_a_writer_that_works_and_not_for_one_that_hangs() {
    let log = Log::start(LogFormat::Text);
    log.push("first", Rank::Ordinary);
    log.wait_until_it_hangs();
    log.lines.flush(Duration::from_millis(10));
    // If the thread has hung for an hour already, `flush` does not wait for an hour. If it did,
    // this test would take an hour.
    let hour = Duration::from_secs(3600);
    log.lines.lock().writing = Some(Instant::now() - hour);
    log.lines.flush(hour);
    assert_eq!(log.text(), [""; 0]);
    log.lines.lock().writing = Some(Instant::now());
    log.push("last", Rank::Urgent);
    assert_eq!(log.let_go(), ["first", "last"]);
}

#[test]
fn lines_whose_write_fails_are_counted_and_a_torn_one_spoils_no_other() {
    let log = Log::start(LogFormat::Text);
    log.push("torn in the middle", Rank::Ordinary);
    log.wait_until_it_hangs();
    log.allow.send(4).unwrap();
    // A write of 0 bytes counts as failed.
    log.allow.send(0).unwrap();
    while log.dropped() == 0 {
        std::thread::yield_now();
    }
    log.push("whole", Rank::Ordinary);
    let text = log.let_go();
    assert_eq!(text[..2], ["torn", "whole"]);
    assert!(text[2].ends_with("lines=1") && text.len() == 3, "{text:?}");
    assert_eq!(log.dropped(), 1);
}

#[test]
fn a_reader_that_has_gone_makes_no_line_wait_and_no_thread_busy() {
    let Log { lines, allow, written } = Log::start(LogFormat::Text);
    drop(allow);
    for number in 1..=3_u64 {
        lines.push(b"nobody hears it\n".to_vec(), Rank::Urgent);
        lines.flush(Duration::from_secs(60));
        // The line about dropped lines is not tried again and again.
        assert_eq!(lines.dropped.load(Ordering::Relaxed), number);
        assert_eq!(lines.lock().error.as_deref(), Some("broken pipe"));
    }
    assert!(written.lock().unwrap().is_empty());
}

#[test]
fn control_characters_of_a_log_line_are_escaped() {
    assert_eq!(escaped(b"a\n\x1b[31mb\xff\n"), "a\\n\\u{1b}[31mb\u{fffd}\n".as_bytes());
}
