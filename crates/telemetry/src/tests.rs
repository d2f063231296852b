use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::declare::{Kind, Metric, PREFIX};
use super::status::Certificate;
use super::*;
use audit::LevelCounts;
use transform::volume::Seen;

fn declared() -> impl Iterator<Item = &'static Metric> {
    catalog::own().chain(catalog::process())
}

/// The declaration of the metric with this name.
fn find(name: &str) -> Option<&'static Metric> {
    declared().find(|metric| metric.name == name)
}

/// An output that a reload replaces continues with the same times, and one that was removed leaves
/// nothing behind.
#[test]
fn the_times_of_an_output_are_shared_by_its_handles_and_end_with_them() {
    let telemetry = Telemetry::new();
    let (first, second) = (telemetry.output("o"), telemetry.output("o"));
    assert_eq!(telemetry.output("o").quantiles(), None);
    first.delivered(Duration::from_secs(2), Instant::now());
    drop(first);
    let p50 = telemetry.output("o").quantiles().unwrap().p50;
    assert!((1.9..2.1).contains(&p50), "{p50}");
    drop(second);
    assert_eq!(telemetry.output("o").quantiles(), None);
    let _other = telemetry.output("other");
    assert_eq!(telemetry.delivery_times.len(), 1);
    assert!(telemetry.render().contains("output_delivery_seconds_count{output=\"o\"} 1"));
}

#[test]
fn what_is_read_back_is_what_was_counted() {
    let telemetry = Telemetry::new();
    let (output, listener) = (telemetry.output("o"), telemetry.listener("l"));
    output.failed(AttemptError::Status5xx);
    output.failed(AttemptError::Status5xx);
    output.fates.filtered.of(Filtered::Duplicate).increment(7);
    output.existing.increment(3);
    listener.answered(429);
    listener.received.increment(100);
    telemetry.listener("removed").received.increment(11);
    listener.rejected(Rejection::InFlightFull, 429, "full");
    listener.rejected(Rejection::QueueFull, 429, "full");
    listener.rejected(Rejection::Disk, 503, "the disk");
    let (evidence, name) = (telemetry.evidence(), "a \"b\" \\ c");
    evidence.failed(EvidenceError::Witness);
    evidence.grew(12);
    drop(telemetry.witness("z"));
    telemetry.witness(name).cosigned(1_700_000_000);
    let some = |counts: Vec<(&'static str, u64)>| -> Vec<_> {
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    };
    let (output, listener) = (telemetry.output("o"), telemetry.listener("l"));
    assert_eq!(some(output.errors.counts()), [("status_5xx", 2)]);
    assert_eq!(some(output.fates.filtered.counts()), [("duplicate", 7)]);
    assert_eq!((output.fates.filtered.counts().len(), output.existing.get()), (5, 3));
    assert_eq!(some(listener.requests.counts()), [("429", 1)]);
    assert_eq!(telemetry.all_received_bytes(), 111);
    let refused = [("queue_full", 1), ("in_flight_full", 1), ("disk", 1)];
    assert_eq!(some(telemetry.rejections().requests.counts()), refused);
    let evidence = telemetry.evidence();
    assert_eq!((evidence.size.count(), evidence.checkpoint.time()), (12, None));
    assert_eq!(some(evidence.errors.counts()), [("witness", 1)]);
    let witnesses = [(name.to_owned(), Some(1_700_000_000.0)), ("z".to_owned(), None)];
    assert_eq!(telemetry.witnesses(), witnesses);
}

#[test]
fn refusals_have_a_beginning_until_a_batch_is_accepted() {
    let telemetry = Telemetry::new();
    let (listener, queue) = (telemetry.listener("l"), telemetry.queue());
    let name = format!("{PREFIX}requests_rejected_since_timestamp_seconds ");
    let since = || -> f64 {
        let text = telemetry.render();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    let requests = || -> f64 {
        let name = format!("{PREFIX}requests_rejected_since_last_accepted ");
        let text = telemetry.render();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    // Nobody knows whether these requests had a batch.
    for (reason, code) in [
        (Rejection::Method, 405),
        (Rejection::NotFound, 404),
        (Rejection::Unauthorized, 401),
        (Rejection::Invalid, 400),
        (Rejection::Timeout, 408),
    ] {
        listener.rejected(reason, code, "stray");
    }
    assert_eq!((since(), requests()), (0.0, 0.0));
    listener.rejected(Rejection::QueueFull, 429, "full");
    let first = since();
    assert!((now() - first).abs() < 60.0, "{first}");
    listener.rejected(Rejection::TooLarge, 413, "too large");
    assert_eq!((since(), requests()), (first, 2.0));
    queue.accepted(1, 1, &LevelCounts::default());
    assert_eq!((since(), requests()), (0.0, 0.0));
    listener.rejected(Rejection::QueueFull, 429, "full");
    assert!(since() >= first);
}

/// Registers all metrics but those of listeners and certificates. Returns their handles.
fn everything_of(telemetry: &Telemetry) -> impl Sized {
    telemetry.output_settings("o", true, Duration::from_secs(30));
    telemetry.output_addresses("o", ["up"].into_iter());
    let handles = (telemetry.in_flight(), telemetry.queue(), telemetry.output("o"));
    let others = (telemetry.dead_letters_dropped(), telemetry.reloads(), telemetry.taps());
    hear(telemetry);
    (handles, others, telemetry.evidence(), telemetry.witness("w"))
}

/// Accepts the event of a kube-apiserver that updates its own Lease.
fn hear(telemetry: &Telemetry) {
    let event = br#"{"requestURI":"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/apiserver-12345678","verb":"update","user":{"username":"system:apiserver"},"objectRef":{"resource":"leases","apiGroup":"coordination.k8s.io"},"responseStatus":{"code":200}}
"#;
    let mut seen = Seen::default();
    telemetry.volume().look(event, None, 1, &mut seen);
    telemetry.volume().count(seen);
}

#[tokio::test(start_paused = true)]
async fn a_kube_apiserver_has_a_time_for_an_hour() {
    let telemetry = Telemetry::new();
    let age = || {
        let at = telemetry.render();
        let (_, at) = at.split_once("last_heard_timestamp_seconds{apiserver=\"48d74d77\"} ")?;
        Some(now() - at.lines().next()?.parse::<f64>().unwrap())
    };
    assert_eq!(age(), None);
    hear(&telemetry);
    tokio::time::advance(Duration::from_secs(3599)).await;
    let first = age().unwrap();
    // The wall clock is not paused.
    assert!((3598.0..3700.0).contains(&first), "{first}");
    hear(&telemetry);
    assert!(age().is_some_and(|age| (-1.0..100.0).contains(&age)));
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(age(), None);
}

#[test]
fn every_series_exists_at_zero_and_has_help() {
    let telemetry = Telemetry::new();
    let listener = telemetry.listener("127.0.0.1:3000");
    let _handles = everything_of(&telemetry);
    telemetry.certificate_expiry("listener", "127.0.0.1:3000", "server", 4_102_444_800);
    listener.answered(431);
    listener.rejected(Rejection::DeliveryTimeout, 503, "too late");
    let text = telemetry.render();
    for metric in declared() {
        let (name, help, kind) = (metric.name, metric.help, metric.kind.name());
        let lines = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        assert!(text.contains(&lines), "{lines}\n{text}");
    }
    for line in [
        "error_total{plugin=\"queue\"} 0",
        "error_total{plugin=\"o\"} 0",
        "output_errors_total{output=\"o\",reason=\"status_5xx\"} 0",
        "dead_letter_events_total{output=\"o\"} 0",
        "filtered_events_total{output=\"o\",action=\"dropped\"} 0",
        "filtered_events_total{output=\"o\",action=\"duplicate\"} 0",
        "filtered_events_total{output=\"o\",action=\"lowered\"} 0",
        "filtered_events_total{output=\"o\",action=\"trimmed\"} 0",
        "filtered_events_total{output=\"o\",action=\"redacted\"} 0",
        "dead_letter_dropped_events_total 0",
        "log_dropped_lines_total 0",
        "level_total{level=\"other\"} 0",
        "requests_total{listener=\"127.0.0.1:3000\",code=\"200\"} 0",
        "requests_total{listener=\"127.0.0.1:3000\",code=\"4xx\"} 1",
        "requests_rejected_total{reason=\"delivery_timeout\"} 1",
        "output_delivery_seconds_count{output=\"o\"} 0",
        "output_required{output=\"o\"} 1",
        "output_lag_max_seconds{output=\"o\"} 30",
        "tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:3000\",role=\"server\"} 4102444800",
    ] {
        assert!(text.contains(&format!("\n{PREFIX}{line}\n")), "{line}\n{text}");
    }
}

/// The labels of a metric, with the values that exist once everything is registered.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// Registers everything, and returns the labels of each metric that has series.
fn labels_of_all() -> BTreeMap<&'static str, Labels> {
    let telemetry = Telemetry::new();
    let _handles = (telemetry.listener("l"), everything_of(&telemetry));
    for (place, name) in [("listener", "l"), ("output", "o")] {
        for role in ["server", "client"] {
            telemetry.certificate_expiry(place, name, role, 1);
        }
    }
    let mut all = BTreeMap::<_, Labels>::new();
    for line in telemetry.render().lines().filter(|line| !line.starts_with('#')) {
        let Some((series, _)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it));
        let of_part = part.and_then(find).filter(|it| it.kind == Kind::Histogram);
        let metric = of_part.or_else(|| find(name)).expect(line);
        let own = all.entry(metric.name).or_default();
        let pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
        for (label, value) in pairs.filter(|(label, _)| *label != "le") {
            own.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    all
}

fn in_backticks(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the unit that the name of a metric says, if it says one.
fn unit_of(name: &str) -> Option<&'static str> {
    let units = [("timestamp", "seconds since 1970"), ("seconds", "seconds"), ("bytes", "bytes")];
    let found = units.iter().find(|(word, _)| name.split('_').any(|part| part == *word));
    found.filter(|_| name != "process_start_time_seconds").map(|(_, unit)| *unit)
}

/// Method: the page `docs/reference/metrics.md` must have a section for each metric, with its kind,
/// its unit, its labels, its help and its buckets. A label with a list of values has exactly these.
/// The head of the page describes the values of `output` and `listener`.
#[test]
fn the_reference_page_has_the_metrics_that_exist_and_no_others() {
    let page = include_str!("../../../docs/reference/metrics.md");
    let labels = labels_of_all();
    let sections: Vec<_> = page
        .split("\n### `")
        .skip(1)
        .filter_map(|section| section.split("\n## ").next()?.split_once("`\n\n"))
        .collect();
    let mut sections = sections.into_iter();
    for metric in declared() {
        let Metric { name, kind, help, .. } = metric;
        let own = labels.get(name).cloned().unwrap_or_default();
        let (of_section, text) = sections.next().expect(name);
        assert_eq!(of_section, *name, "the order is that of the declarations");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let begin = format!("*{}, ", kind.name());
        let (head, text) = text.strip_prefix(&begin).expect(name).split_once(".* ").expect(name);
        let (unit, by) = head.split_once(", by ").unwrap_or((head, ""));
        assert!(!unit.is_empty() && unit_of(name).is_none_or(|it| it == unit), "{name}: {unit}");
        assert!(in_backticks(by).iter().eq(own.keys()), "{name}: {by}: {own:?}");
        let state = match metric.is_state {
            true => " Removed when a reload removes its output or listener.",
            false => "",
        };
        let rest = text.strip_prefix(&format!("{help}{state} - ")).expect(text);
        let bounds: Vec<_> = metric.buckets.iter().map(ToString::to_string).collect();
        let buckets = format!("Buckets: up to {} {unit}, and above. - ", bounds.join(", "));
        assert_eq!(rest.contains(&buckets), kind == &Kind::Histogram, "{text}");
        assert!(rest.contains("Meaning: "), "{text}");
        let items = rest.split(" - ").filter_map(|item| item.strip_prefix("Label "));
        let mut of_items = BTreeSet::new();
        for (names, values) in items.filter_map(|item| item.split_once(": ")) {
            // "`listener.address` as in the config" describes values and does not list them.
            let has_words = values.split('`').step_by(2).any(|it| it.contains(char::is_alphabetic));
            let listed = in_backticks(values);
            let is_list = !has_words && !listed.iter().any(|value| value.contains('.'));
            for name in in_backticks(names) {
                assert!(!is_list || listed == own[&name], "{names}: {own:?}");
                of_items.insert(name);
            }
        }
        let described = own.keys().filter(|it| !["output", "listener"].contains(&it.as_str()));
        let missing: Vec<_> = described.filter(|it| !of_items.contains(*it)).collect();
        assert!(missing.is_empty(), "{text}: {missing:?}");
        assert!(of_items.iter().all(|it| own.contains_key(it)), "{text}");
    }
    assert_eq!(sections.next(), None, "no other metric");
}

#[test]
fn every_declaration_is_complete_and_named_once() {
    let mut names = BTreeSet::new();
    for metric in declared() {
        let name = metric.name;
        assert!(names.insert(name), "{name} is declared twice");
        assert!(!metric.help.is_empty(), "{name}");
        let is_histogram = metric.kind == Kind::Histogram;
        assert_eq!(is_histogram, !metric.buckets.is_empty(), "{name}");
        assert!(metric.buckets.is_sorted(), "{name}");
        let is_total = name.ends_with("_total");
        assert_eq!(metric.kind == Kind::Counter, is_total, "{name}: counters end in _total");
    }
}

#[test]
fn every_status_has_a_code() {
    for (status, code) in [
        (0, "1xx"),
        (101, "1xx"),
        (200, "200"),
        (204, "2xx"),
        (304, "3xx"),
        (401, "401"),
        (431, "4xx"),
        (500, "5xx"),
        (503, "503"),
        (999, "5xx"),
    ] {
        assert_eq!(labels::Code::of(status).name(), code, "{status}");
    }
}

#[test]
fn a_reading_says_what_is_rendered() {
    let telemetry = Telemetry::new();
    let (queue, output) = (telemetry.queue(), telemetry.output("o"));
    let listener = telemetry.listener("[::]:3000");
    assert_eq!((queue.accepted.events.get(), queue.accepted.last.time()), (0, None));
    assert_eq!((telemetry.all_lost_events(), telemetry.certificates()), (0, vec![]));
    queue.accepted(7, 7000, &LevelCounts::default());
    queue.errors.increment(2);
    output.lost.increment(3);
    telemetry.removed("gone", 4);
    output.events.increment(5);
    output.fates.dead_letters.increment(1);
    listener.connections.set(6.0);
    listener.received.increment(1 << 40);
    listener.rejected(Rejection::QueueFull, 429, &"x".repeat(10_000));
    telemetry.certificate_expiry("output", "o", "server", 4_102_444_800);
    telemetry.certificate_expiry("listener", "[::]:3000", "client", 1_000_000_000);
    telemetry.reloads().reloaded(false);
    let (queue, output) = (telemetry.queue(), telemetry.output("o"));
    let listener = telemetry.listener("[::]:3000");
    assert_eq!(queue.accepted.events.get(), 7);
    assert!(started() > 0.0 && memory() > 0);
    telemetry.render();
    assert!(queue.accepted.last.time().is_some_and(|time| time > started()));
    assert_eq!((queue.errors.get(), output.lost.get()), (2, 3));
    assert_eq!(telemetry.all_lost_events(), 9);
    assert_eq!((output.events.get(), output.fates.dead_letters.get()), (5, 1));
    assert_eq!((listener.connections.count(), listener.received.get()), (6, 1 << 40));
    let rejected = telemetry.rejections().requests.counts();
    assert_eq!(
        rejected.iter().find(|(reason, _)| *reason == "queue_full"),
        Some(&("queue_full", 1))
    );
    let ReloadMetrics { count, last } = telemetry.reloads();
    assert_eq!((count.of(Reloaded::Error).get(), count.of(Reloaded::Success).get()), (1, 0));
    assert!(
        last.of(Reloaded::Error).time().is_some() && last.of(Reloaded::Success).time().is_none()
    );
    let certificate = |place: &str, name: &str, role: &str, not_after_seconds| Certificate {
        place: place.into(),
        name: name.into(),
        role: role.into(),
        not_after_seconds,
    };
    let certificates = [
        certificate("listener", "[::]:3000", "client", 1_000_000_000),
        certificate("output", "o", "server", 4_102_444_800),
    ];
    assert_eq!(telemetry.certificates(), certificates);
    let last = telemetry.refusals().last().unwrap();
    assert_eq!((last.reason.name(), last.code, &*last.listener), ("queue_full", 429, "[::]:3000"));
    assert_eq!(last.message.len(), 300);
}

#[test]
fn a_request_that_may_come_again_does_not_hide_one_that_was_refused_for_good() {
    let telemetry = Telemetry::new();
    let listener = telemetry.listener("l");
    assert!(telemetry.refusals().last_for_good().is_none());
    listener.rejected(Rejection::Invalid, 400, "no JSON");
    for (reason, code) in [(Rejection::Timeout, 408), (Rejection::QueueFull, 429)] {
        listener.rejected(reason, code, "come back");
    }
    let last = |last: Option<LastRejected>| last.map(|last| last.reason.name());
    assert_eq!(last(telemetry.refusals().last()), Some("queue_full"));
    assert_eq!(last(telemetry.refusals().last_for_good()), Some("invalid"));
}

#[test]
fn what_was_removed_has_no_state_any_more_and_keeps_its_counters() {
    let telemetry = Telemetry::new();
    let _handles = ["a", "b"].map(|name| telemetry.output(name));
    for name in ["a", "b"] {
        telemetry.output_settings(name, false, Duration::from_secs(30));
        telemetry.output_addresses(name, ["down"].into_iter());
        telemetry.certificate_expiry("output", name, "server", 1);
    }
    telemetry.certificate_expiry("listener", "a", "server", 1);
    let text = telemetry.render_states_of(|_, place, name| (place, name) == ("output", "a"));
    let of = |labels: &str| {
        text.lines()
            .filter(|line| line.contains(labels))
            .map(|line| line.split_once('{').unwrap().0)
            .collect::<Vec<_>>()
    };
    let [with, without] = [of("output=\"a\""), of("output=\"b\"")];
    let states: Vec<_> = catalog::own().filter(|metric| metric.is_state).collect();
    assert_eq!(states.len(), 6);
    for state in states.iter().map(|metric| metric.name) {
        assert!(with.contains(&state) && !without.contains(&state), "{state}\n{text}");
    }
    assert!(without.contains(&OutputMetrics::events), "{text}");
    assert!(!text.contains("{listener=\"a\""), "{text}");
    // One of the states, `output_addresses`, has a series for each of four states.
    assert_eq!(with.len() - states.len() - 3, without.len());
}
