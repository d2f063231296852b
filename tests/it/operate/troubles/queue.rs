//! The queue: it fills, its disk refuses writes or is slow, and processes end with events in it.

use super::*;

/// A relay with this queue gets this many events per tick, and its consumer goes down.
fn filled(scene: &mut Scene, events: usize, queue: &str) {
    let mut sink = HttpSink::accepting();
    scene.sends_events(events);
    scene.start(&to_sink(sink.address(), queue));
    scene.calm();
    sink.close();
    scene.trouble();
}

/// Returns a config whose consumer is down, with a short drain.
fn dead_end(more: &str) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    to_sink(address, &format!("{more}[shutdown]\ndrain_timeout = \"200ms\"\n"))
}

/// A relay under strace, which delays its system calls on the disk or lets them fail.
fn traced(scene: &mut Scene, injection: &str) {
    let (sink, spool) = (HttpSink::accepting(), Spool::new());
    let call = injection.split(':').next().expect("a system call");
    let (trace, inject) = (format!("trace={call}"), format!("inject={injection}"));
    let words = ["strace", "-D", "-f", "-qqq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let config = to_sink(sink.address(), &spool.queue(""));
    scene.add(Relay::with(&config).launcher(&words).start());
    scene.trouble();
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "the queue fills slowly",
        run: |scene| {
            let mut sink = HttpSink::accepting();
            scene.sends_events(20);
            let queue = "[queue]\nmax_bytes = \"1500KiB\"\n";
            scene.start_faster(&to_sink(sink.address(), queue));
            scene.calm();
            sink.close();
            scene.trouble();
        },
        says: ("bad", "At the current rate, the queue will be full within an hour"),
        fires: "QueueNearlyFull",
        before: &["OutputDown"],
        logs: "output down",
    },
    Row {
        name: "the queue is full, and refuses",
        run: |scene| filled(scene, 20, "[queue]\nmax_bytes = \"64KiB\"\n"),
        says: ("bad", ": senders get 429"),
        fires: "QueueNearlyFull",
        before: &[],
        logs: "queue full",
    },
    Row {
        name: "the queue is full, and drops the oldest events",
        run: |scene| {
            filled(scene, 20, "[queue]\nmax_bytes = \"64KiB\"\nwhen_full = \"drop_oldest\"\n");
        },
        says: ("bad", "Events are being lost or refused for good now"),
        fires: "EventsLost",
        before: &[],
        logs: "queue full: the oldest events are dropped and counted",
    },
    Row {
        name: "the queue is full, and drops new events",
        run: |scene| {
            filled(scene, 20, "[queue]\nmax_bytes = \"64KiB\"\nwhen_full = \"drop_newest\"\n");
        },
        says: ("bad", "Events are being lost or refused for good now"),
        fires: "EventsLost",
        before: &[],
        logs: "queue full: new events are dropped and counted",
    },
    Row {
        name: "the disk has no room",
        run: |scene| traced(scene, "fdatasync:error=ENOSPC:when=12+"),
        says: ("bad", "The queue cannot store events"),
        fires: "DiskRefused",
        before: &[],
        logs: "No space left on device",
    },
    Row {
        name: "the events of a dead consumer fill a volume that is smaller than the queue",
        run: |scene| {
            let directory = TempDir::new().expect("a directory");
            let at = text(directory.path());
            let script = format!("mount -t tmpfs -o size=3M none {at} && exec \"$0\" \"$@\"");
            let queue = Spool::at(directory.path().join("queue")).queue("segment_bytes = \"1MiB\"");
            let config = to_sink(SocketAddr::from(([127, 0, 0, 1], free_port())), &queue);
            let words = ["unshare", "--mount", "sh", "-c", &script];
            scene.add(Relay::with(&config).launcher(&words).start());
            scene.sends_events(100);
            scene.trouble();
        },
        says: ("bad", "The queue cannot store events"),
        fires: "DiskRefused",
        before: &["OutputDown"],
        logs: "No space left on device",
    },
    Row {
        name: "writes of the disk fail",
        run: |scene| traced(scene, "fdatasync:error=EIO:when=12+"),
        says: ("bad", "The queue cannot store events"),
        fires: "DiskRefused",
        before: &[],
        logs: "Input/output error",
    },
    Row {
        name: "the disk is read-only",
        run: |scene| traced(scene, "fdatasync:error=EROFS:when=12+"),
        says: ("bad", "The queue cannot store events"),
        fires: "DiskRefused",
        before: &[],
        logs: "Read-only file system",
    },
    Row {
        name: "the disk is slow",
        run: |scene| {
            // The delay is real, and so is the lag that it causes.
            scene.lag_is_real = true;
            traced(scene, "fdatasync:delay_enter=1200000");
        },
        says: ("warn", "responds slowly"),
        fires: "DiskSlow",
        before: &[],
        logs: "",
    },
    Row {
        name: "a kill takes a queue in memory",
        run: |scene| {
            let state = TempDir::new().expect("a directory");
            let key = format!("best_effort\", state_directory = {:?}", text(state.path()));
            let sink = HttpSink::accepting();
            let config = to_sink(sink.address(), "").replace("best_effort\"", &key);
            scene.start(&config);
            scene.calm();
            scene.end(0, Relay::kill);
            scene.again(&config);
            scene.go(30);
        },
        says: ("warn", "Accepted events may be lost: the last process was killed"),
        fires: "Killed",
        before: &[],
        logs: "the previous process of the relay was killed",
    },
    Row {
        name: "a kill leaves a queue on disk",
        run: |scene| {
            let (sink, spool) = (HttpSink::accepting(), Spool::new());
            let config = to_sink(sink.address(), &spool.queue(""));
            scene.start(&config);
            scene.calm();
            scene.end(0, Relay::kill);
            scene.again(&config);
            scene.go(30);
        },
        says: ("good", "The last process was killed at"),
        fires: "",
        before: &[],
        logs: "the previous process of the relay was killed",
    },
    Row {
        name: "a relay with a queue on disk is killed again and again",
        run: |scene| {
            let (sink, spool) = (HttpSink::accepting(), Spool::new());
            let config = to_sink(sink.address(), &spool.queue(""));
            scene.start(&config);
            scene.calm();
            for _ in 0..3 {
                scene.end(0, Relay::kill);
                scene.again(&config);
                scene.go(8);
            }
        },
        says: ("good", "The last process was killed at"),
        fires: "Killed",
        before: &[],
        logs: "the previous process of the relay was killed",
    },
    Row {
        name: "a pod ends with what its queue has on an emptyDir",
        run: |scene| {
            let (mut sink, spool) = (HttpSink::accepting(), Spool::new());
            let queue = spool.queue("ephemeral = true\n[shutdown]\ndrain_timeout = \"12s\"");
            scene.start(&to_sink(sink.address(), &queue));
            scene.calm();
            sink.close();
            scene.go(3);
            scene.relay().signal(libc::SIGTERM);
            scene.sends(|_, _| ());
            // While the relay drains, the loss is scraped.
            while scene.targets[0].up.values().last() == Some(&1.0) {
                scene.go(1);
            }
            // Then the target is gone.
            scene.targets[0].listed = false;
            scene.end(0, |relay| _ = relay.wait());
            scene.start(&to_sink(HttpSink::accepting().address(), ""));
            scene.go(5);
        },
        says: ("bad", "Events"),
        fires: "EventsLost",
        before: &["OutputDown"],
        logs: messages::UNDELIVERED,
    },
    Row {
        name: "a segment is damaged at the start",
        run: |scene| {
            let (sink, spool) = (HttpSink::accepting(), Spool::new());
            let mut first = Relay::start(&dead_end(&spool.queue("")));
            post_batches(&first, 1..5, 20, 900);
            first.stop();
            let record = spool.records().remove(1);
            spool.edit(&record.segment, |bytes| bytes[record.bytes.start + 100] ^= 1);
            scene.start(&to_sink(sink.address(), &spool.queue("")));
            scene.trouble();
        },
        says: ("bad", "refused for good now, for the output consumer"),
        fires: "EventsLost",
        before: &[],
        logs: "damaged",
    },
    Row {
        name: "the evidence is removed",
        run: |scene| {
            let directory = TempDir::new().expect("a directory");
            let (_witness, evidence) = Witness::of_a_log(directory.path());
            let sink = HttpSink::accepting();
            scene.start(&to_sink(sink.address(), &evidence));
            scene.calm();
            let evidence = directory.path().join("queue/evidence");
            // The removal fails if the relay writes a file at the same moment.
            let is_removed = || std::fs::remove_dir_all(&evidence).is_ok();
            wait_until("its removal", PATIENCE, is_removed);
            scene.trouble();
        },
        says: ("bad", "Files of the queue or of its evidence were changed or removed"),
        fires: "EvidenceTampered",
        before: &[],
        logs: "evidence",
    },
    Row {
        name: "the evidence can't be written",
        run: |scene| {
            let directory = TempDir::new().expect("a directory");
            let (_witness, evidence) = Witness::of_a_log(directory.path());
            let sink = HttpSink::accepting();
            scene.start(&to_sink(sink.address(), &evidence));
            scene.calm();
            // A directory has the name of the file that the next write of evidence needs, once no
            // write is in progress.
            let obstacle = directory.path().join("queue/evidence-head.new");
            wait_until("the obstacle", PATIENCE, || std::fs::create_dir(&obstacle).is_ok());
            scene.trouble();
        },
        says: ("warn", "Evidence cannot be recorded (write)"),
        fires: "EvidenceNotWritten",
        before: &[],
        logs: messages::EVIDENCE_NOT_WRITTEN,
    },
    Row {
        name: "a volume is restored from a snapshot",
        run: |scene| {
            let directory = TempDir::new().expect("a directory");
            let (_witness, evidence) = Witness::of_a_log(directory.path());
            let queue = Spool::at(directory.path().join("queue"));
            let sink = HttpSink::accepting();
            let config = to_sink(sink.address(), &evidence);
            scene.start(&config);
            scene.go(3);
            scene.end(0, |relay| _ = relay.stop());
            let snapshot = queue.copy();
            scene.again(&config);
            scene.calm();
            scene.end(0, |relay| _ = relay.stop());
            std::fs::remove_dir_all(queue.path()).expect("the queue");
            std::fs::rename(snapshot.path(), queue.path()).expect("a writable directory");
            scene.again(&config);
            scene.trouble();
        },
        says: ("bad", "A witness has seen a newer log"),
        fires: "EvidenceRolledBack",
        before: &[],
        logs: messages::EVIDENCE_ROLLED_BACK,
    },
    Row {
        name: "a witness is away",
        run: |scene| {
            let directory = TempDir::new().expect("a directory");
            let (mut witness, evidence) = Witness::of_a_log(directory.path());
            let sink = HttpSink::accepting();
            scene.start(&to_sink(sink.address(), &evidence));
            scene.calm();
            witness.go_away();
            scene.go(60);
        },
        says: ("warn", "A witness does not cosign (witness)"),
        fires: "WitnessAway",
        before: &[],
        logs: "witness",
    },
    Row {
        name: "the memory is nearly used up",
        run: |scene| {
            let script = "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory && \
                          echo 25165824 | tee /sys/fs/cgroup/memory.max \
                          >/sys/fs/cgroup/memory/memory.limit_in_bytes && exec \"$0\" \"$@\"";
            let sink = HttpSink::accepting();
            let words = ["unshare", "--mount", "sh", "-c", script];
            scene.add(Relay::with(&to_sink(sink.address(), "")).launcher(&words).start());
            scene.trouble();
        },
        says: ("warn", "Memory is nearly used up"),
        fires: "MemoryNearLimit",
        before: &[],
        logs: "the memory limit of 24MiB",
    },
];
