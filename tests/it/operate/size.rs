//! `size`: its figures, the load that it takes from metrics, and that a relay with the proposed
//! config bears the load.

use crate::support::apiserver::{Apiserver, Counted, kubeconfig, now};
use crate::support::prelude::*;
use crate::support::setup::{start, start_with_dead_consumer};

fn size(arguments: &[&str]) -> Said {
    said(&[&["size"], arguments].concat(), Path::new("/"))
}

#[track_caller]
fn ok(arguments: &[&str]) -> String {
    let said = size(arguments);
    said.assert(0, &[]);
    said.stdout
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(&[arguments, &["--json"]].concat())).unwrap()
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

#[test]
fn the_figures_are_those_of_the_formulas() {
    // 150 × 43,200 × (1,430 + 1 + 4,160 / 400) × 1.25 = 11.675 GB = 10.87 GiB, and 192 MiB.
    let found = json(&["--events-per-second", "150", "--event-bytes", "1430", "--outage", "12h"]);
    for (name, value) in [
        ("queue_max_bytes", 12 * GIB),
        ("queue_segment_bytes", 64 * MIB),
        ("disk_bytes", 13 * GIB),
        ("memory_limit_bytes", 512 * MIB),
        ("memory_request_bytes", 128 * MIB),
        ("cpu_request_millicores", 100),
        ("replicas", 2),
        ("queue_lasts_seconds", 58_663),
    ] {
        assert_eq!(found[name], value, "{name}: {found:#}");
    }
    // The text has the same figures, each with its formula in numbers.
    let text = ok(&["--events-per-second", "150", "--event-bytes", "1430", "--outage", "12h"]);
    for (name, value, formula) in [
        (
            "queue.max_bytes",
            "12GiB",
            "that, and 192.0 MiB for 2 open files and for damaged records",
        ),
        ("events of the outage", "10.9 GiB", "150 events/s × 43200 s × 1.00 × 1441 bytes × 1.25"),
        ("disk", "13GiB", "(12GiB queue + 64MiB dead letters) × 1.05"),
        ("memory limit", "512MiB", "128 max_in_flight + 32 queue on disk + 32 program + 160"),
        ("CPU request", "100m", "10 + 1000 × (0.00064"),
        ("the queue lasts", "16 h 17 min", "11.8 GiB for events / (150 events/s × 1.00 × 1441"),
    ] {
        let row = text.lines().find(|line| line.trim_start().starts_with(name)).expect(name);
        let words = format!("{value}  ");
        assert!(row.contains(&words) && row.contains(&format!("= {formula}")), "{row}");
    }
    let more = json(&["--events-per-second", "150", "--event-bytes", "1430", "--outage", "13h"]);
    assert!(more["queue_max_bytes"].as_u64() >= found["queue_max_bytes"].as_u64());
}

#[test]
fn the_printed_config_passes_check() {
    let directory = TempDir::new().unwrap();
    for more in [
        &["--outage", "12h"][..],
        &["--outage", "1s", "--queue", "memory", "--replicas", "1"],
        &["--outage", "30m", "--outputs", "http,kafka,s3", "--evidence", "--replicas", "5"],
        &["--outage", "720h", "--blocking", "--peak", "9000"],
    ] {
        let arguments = [&["--events-per-second", "150", "--event-bytes", "2KiB"], more].concat();
        let found = json(&arguments);
        let lines = found["config"].as_str().unwrap();
        assert!(ok(&arguments).contains(&format!("# For relay.toml:\n{lines}")));
        let config = format!(
            "{lines}\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[output]]\nname = \"o\"\n\
             type = \"stdout\"\n"
        );
        let spool = text(directory.path()).to_owned() + "/spool";
        let config = config.replace("/var/lib/kube-audit-forwarder", &spool);
        std::fs::write(directory.path().join("relay.toml"), &config).unwrap();
        // The volume for the printed queue is not here.
        let checked = said(&["check", "--elsewhere", "relay.toml"], directory.path());
        checked.assert(0, &["\n  warnings   0"]);
    }
}

#[test]
fn wrong_numbers_are_wrong_usage() {
    let given = ["--events-per-second", "150", "--event-bytes", "1430"];
    for (arguments, said) in [
        (&["--outage", "4h"][..], "--events-per-second"),
        (&["--events-per-second", "150"], "--event-bytes"),
        (&["--events-per-second", "0", "--event-bytes", "1"], "events per second"),
        (&["--events-per-second", "-1", "--event-bytes", "1"], "events per second"),
        (&["--events-per-second", "NaN", "--event-bytes", "1"], "events per second"),
        (&["--events-per-second", "inf", "--event-bytes", "1"], "events per second"),
        (&["--events-per-second", "1e300", "--event-bytes", "1"], "events per second"),
        (&["--events-per-second", "1", "--event-bytes", "0"], "1 to 64MiB"),
        (&["--events-per-second", "1", "--event-bytes", "99999999999GiB"], "--event-bytes"),
        (
            &["--events-per-second", "10000000", "--event-bytes", "64MiB", "--outage", "8000h"],
            "is computed",
        ),
        (&[given.as_slice(), &["--outage", "0s"]].concat(), "at least 1s"),
        (&[given.as_slice(), &["--outage", "4"]].concat(), "--outage"),
        (&[given.as_slice(), &["--outage", "99999999h"]].concat(), "--outage"),
        (&[given.as_slice(), &["--replicas", "0"]].concat(), "--replicas"),
        (&[given.as_slice(), &["--outputs", "htpp"]].concat(), "'http'"),
        (&[given.as_slice(), &["--peak", "10"]].concat(), "--peak"),
        (&[given.as_slice(), &["--evidence", "--queue", "memory"]].concat(), "queue on disk"),
        (&[given.as_slice(), &["--url", "http://127.0.0.1:1"]].concat(), "--url"),
        (&["--url", "ftp://user:s3cret@h"], "--url: value 1"),
        (&["--url", "http://127.0.0.1:1", "--interval", "2h"], "0s to 1h"),
        (&["--kubeconfig", "/absent"], "/absent: cannot read"),
    ] {
        let refused = size(arguments);
        refused.assert_refused(said);
        assert!(!refused.stderr.contains("s3cret"), "{refused:?}");
    }
    let away = format!("http://127.0.0.1:{}", free_port());
    size(&["--url", &away, "--interval", "0s"]).assert(1, &["cannot connect", &away]);
}

#[test]
fn the_load_of_a_running_relay_is_taken_from_its_metrics() {
    let (relay, _sink) = start("", "[queue]\nmax_bytes = \"64MiB\"\n");
    let admin = format!("http://{}", relay.admin());
    size(&["--url", &admin, "--interval", "0s"]).assert(1, &["has counted no event yet"]);

    // The load goes on until the second reading is over.
    let body = generated_batch(1, 40, 1500);
    let lines = events_of(&body).iter().map(Vec::len).sum::<usize>() as f64 / 40.0;
    let (mut sent, begun) = (0, Instant::now());
    let found = std::thread::scope(|scope| {
        let arguments = ["--url", &admin, "--interval", "2s", "--outage", "4h"];
        let asked = scope.spawn(move || json(&arguments));
        while !asked.is_finished() {
            assert_eq!(relay.post(&body).status, 200);
            sent += 40;
            std::thread::sleep(Duration::from_millis(20));
        }
        asked.join().unwrap()
    });
    let most = f64::from(sent) / 2.0;
    let rate = found["events_per_second"].as_f64().unwrap();
    let least = f64::from(sent) / begun.elapsed().as_secs_f64() / 4.0;
    assert!((least..=most).contains(&rate), "{rate} is not from {least} to {most}");
    let event_bytes = found["event_bytes"].as_f64().unwrap();
    assert!((event_bytes - lines).abs() <= 1.5, "{event_bytes} {lines}");
    let running = &found["running"][0];
    assert_eq!(running["kind"], "relay");
    assert_eq!(running["queue_capacity_bytes"], 64 * MIB);
    let lasts = running["queue_lasts_seconds"].as_f64().unwrap();
    let expected = (64 * MIB) as f64 / (rate * (event_bytes + 1.0));
    assert!((expected * 0.6..=expected).contains(&lasts), "{lasts} {expected}");

    // Without an interval it is the mean since the start, and the text compares the queues.
    let text = ok(&["--url", &admin, "--interval", "0s", "--outage", "4h"]);
    assert!(
        text.contains(&format!("relay {admin}: ")) && text.contains("since its start"),
        "{text}"
    );
    let compared = format!("the queue of {admin} (64MiB) lasts ");
    assert!(text.contains(&compared) && text.contains(" of the 4 h\n"), "{text}");
    assert!(text.contains("name each replica with --url"), "{text}");
    relay.finish(Backlog::Empty);
}

/// The metrics of a relay, as saved from a running one and shortened.
fn metrics(started: f64, events: u64, bytes: u64) -> String {
    format!(
        "# TYPE kube_audit_forwarder_event_total counter\n\
         kube_audit_forwarder_event_total {events}\n\
         kube_audit_forwarder_accepted_bytes_total {bytes}\n\
         kube_audit_forwarder_queue_capacity_bytes 2415919104\nprocess_start_time_seconds {started}\n"
    )
}

#[test]
fn the_peak_is_that_of_the_last_hour_if_the_relay_tells_it() {
    let fake = |history: Answer| {
        let started = now() - 1000.0;
        HttpSink::start(move |request| match request.target.as_str() {
            "/metrics" => Answer::status(200).body(metrics(started, 100_000, 150_000_000)),
            "/status/history" => history.clone(),
            _ => Answer::status(404),
        })
    };
    let history = "{\"interval_seconds\":10,\"accepted_events_per_second\":[12.5,null,700.0,90]}";
    let (one, other) = (fake(Answer::status(200).body(history)), fake(Answer::status(404)));
    let url = |sink: &HttpSink| format!("http://{}", sink.address());
    let (one, other) = (url(&one), url(&other));
    let found = json(&["--url", &one, "--interval", "0s"]);
    assert_eq!(found["peak_events_per_second"], 700.0, "{found:#}");
    assert_eq!(found["running"][0]["peak_events_per_second"], 700.0);
    // A relay that does not tell it: three times the mean. The rates of two relays are added.
    let found = json(&["--url", &one, "--url", &other, "--interval", "0s"]);
    let rate = found["events_per_second"].as_f64().unwrap();
    assert!((190.0..=200.1).contains(&rate), "{rate}");
    assert!((found["peak_events_per_second"].as_f64().unwrap() - rate * 3.0).abs() < 0.1);
    assert!((found["event_bytes"].as_f64().unwrap() - 1500.0).abs() < 0.001, "{found:#}");
    // What comes later than the interval is a restart: another process.
    let sink = HttpSink::start(|_| Answer::status(200).body(metrics(now(), 100, 150_000)));
    let arguments = ["--url", &url(&sink), "--interval", "1s"];
    size(&arguments).assert(1, &["two processes have answered"]);
    // A page without such metrics.
    let sink = HttpSink::start(|_| Answer::status(200).body("up 1\n"));
    let arguments = ["--url", &url(&sink), "--interval", "0s"];
    size(&arguments).assert(1, &["has neither kube_audit_forwarder_event_total nor"]);
}

#[test]
fn kube_apiserver_is_asked_with_the_credentials_of_a_kubeconfig() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server.server_config());
    let started = now() - 500.0;
    let counted = Counted { started, generated: Some(50_000), ..Counted::starting() };
    let options = Options { tls, ..Options::default() };
    let apiserver = Apiserver::start(vec![counted], options, Some("s3cret"));
    let directory = TempDir::new().unwrap();
    let file = kubeconfig(directory.path(), apiserver.address(), &certificates);
    let url = format!("https://{}", apiserver.address());
    for arguments in [
        &["--kubeconfig", &file, "--interval", "0s"][..],
        &["--kubeconfig", &file, "--url", &url, "--interval", "0s"],
    ] {
        let found = json(arguments);
        let rate = found["events_per_second"].as_f64().unwrap();
        assert!((90.0..=100.1).contains(&rate), "{rate}");
        assert_eq!(found["running"][0]["kind"], "kube-apiserver");
        let text = ok(arguments);
        assert!(text.contains("kube-apiserver does not count bytes: 1430 bytes are"), "{text}");
    }
    let found = json(&["--kubeconfig", &file, "--interval", "0s", "--event-bytes", "800"]);
    assert_eq!(found["event_bytes"], 800.0);
    size(&["--url", &url, "--interval", "0s"]).assert(1, &[]);
}

/// Method: the consumer is away. A relay with the printed config gets what the rate of the
/// arguments brings during the outage, and then more until it refuses. Everything of the outage is
/// accepted, and the directory never has more than the printed sizes.
#[test]
fn a_relay_with_the_printed_config_bears_the_outage() {
    let body = generated_batch(7, 400, 1500);
    let event_bytes = events_of(&body).iter().map(Vec::len).sum::<usize>() / 400;
    // 20 s of 10,000 events/s: 500 batches, some 300 MB.
    let (rate, seconds): (u64, u64) = (10_000, 20);
    let found = json(&[
        "--events-per-second",
        &rate.to_string(),
        "--event-bytes",
        &event_bytes.to_string(),
        "--outage",
        &format!("{seconds}s"),
    ]);
    let spool = Spool::new();
    let lines = found["config"].as_str().unwrap();
    let lines = lines.replace("/var/lib/kube-audit-forwarder", text(spool.path()));
    let (relay, _sink) = start_with_dead_consumer("", &lines);
    let batches = rate * seconds / 400;
    for batch in 0..batches {
        assert_eq!(relay.post(&body).status, 200, "batch {batch} of {batches}");
    }
    let number = |name: &str| found[name].as_u64().unwrap();
    let held = relay.metrics().value("queue_bytes", &[]);
    assert!(held <= number("queue_max_bytes") as f64, "{held} {found:#}");
    assert!(spool.usage().allocated <= number("disk_bytes"), "{found:#}");
    // The queue lasts as long as it is said to, and not much longer.
    let mut more = 0;
    while relay.post(&body).status == 200 {
        more += 1;
        assert!(more < batches * 2, "the queue does not become full");
    }
    let lasts = (batches + more) * 400 / rate;
    let said = number("queue_lasts_seconds");
    assert!((said..=said + said / 4 + 2).contains(&lasts), "lasts {lasts} s, said {said} s");
    assert!(spool.usage().allocated <= number("disk_bytes"), "{found:#}");
    relay.finish(Backlog::Stable);
}

#[test]
fn the_page_of_sizing_has_what_the_command_prints() {
    let page = std::fs::read_to_string(repository().join("docs/operating/sizing.md")).unwrap();
    let mut count = 0;
    for part in page.split("\n```console\n$ kube-audit-forwarder size ").skip(1) {
        let (block, _) = part.split_once("\n```").unwrap();
        let (arguments, printed) = block.split_once('\n').unwrap();
        let words: Vec<&str> = arguments.split_whitespace().collect();
        assert_eq!(format!("{printed}\n"), ok(&words), "{arguments}");
        count += 1;
    }
    assert_eq!(count, 1);
}
