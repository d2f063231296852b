//! The computation by hand, its direction, and its limits.

use std::time::Duration;

use super::plan::{Resources, bytes, number};
use super::{Load, Place, Plan, measured as m, memory};
use crate::{config, output};

fn load() -> Load {
    Load {
        events_per_second: 150.0,
        peak: None,
        event_bytes: 1430.0,
        outage: Duration::from_secs(12 * 3600),
        replicas: 2,
        apiservers: 3,
        outputs: vec!["http".to_owned()],
        place: Place::Disk,
        evidence: false,
        is_blocking: false,
    }
}

/// Returns the sizes of a plan: queue, volume, memory limit, memory request, CPU.
fn sizes(plan: &Plan) -> [u64; 5] {
    let Resources { memory_request, memory_limit, cpu_millis } = plan.resources;
    let volume = plan.volume_bytes.unwrap_or(0);
    [plan.queue_max_bytes, volume, memory_limit, memory_request, cpu_millis]
}

#[test]
fn three_loads_have_the_figures_that_are_computed_by_hand() {
    // 150 × 43,200 × (1,430 + 1 + 4,160 / 400) × 1.25 = 11.675 GB = 10.87 GiB; with 192 MiB 11.06.
    // (12 GiB + 64 MiB) × 1.05 = 12.67 GiB. 128 + 32 + 32 + 160 + (128 + 16) = 496 MiB.
    let plan = Plan::of(load()).unwrap();
    let (gib, mib) = (m::GIB, m::MIB);
    assert_eq!(sizes(&plan), [12 * gib, 13 * gib, 512 * mib, 128 * mib, 100]);
    assert_eq!((plan.segment_bytes, plan.max_in_flight), (Some(64 * mib), 128 * mib));
    // (12 GiB - 192 MiB) / (150 × 1,441.4) = 58,662 s.
    assert!((58_660..58_664).contains(&plan.lasts.as_secs()), "{:?}", plan.lasts);
    assert_eq!(plan.lasts.as_secs() / 3, plan.lasts_at_peak.as_secs());

    // 20 × 1,800 × (2,048 + 1 + 256 / 200) × 1.25 = 92 MB, which is less than the smallest queue.
    // 128 + 256 + 32 + 160 + 64 (decoding) + 128 (the largest event) = 768 MiB.
    let small = Load {
        events_per_second: 20.0,
        event_bytes: 2048.0,
        outage: Duration::from_secs(1800),
        replicas: 1,
        outputs: vec!["syslog".to_owned()],
        place: Place::Memory,
        ..load()
    };
    let plan = Plan::of(small).unwrap();
    assert_eq!(sizes(&plan), [256 * mib, 0, 768 * mib, 384 * mib, 100]);

    // share = 0.5 + 3 × √(0.25 / (3 × 16)) = 0.7165.
    // 4,000 × 14,400 × 0.7165 × 1,011.4 × 1.25 = 52.18 GB = 48.59 GiB; with 192 MiB 48.78.
    // Evidence: 2 GiB + 160 × 86,400 × 365 + 0.28877 × 90.38 G events a year = 2 GiB + 31.14 GB.
    // (49 + 0.0625 + 2 + 29.01) × 1.05 = 84.07 GiB.
    // 128 + 32 + 32 + 160 + (128 + 16) + (128 + 32) = 656 MiB.
    // 10 + 1000 × (0.008598 × (4.1 + 1.1 + 1.23 + 4.1 + 1.1) + 21.5 × 0.00034) = 117.3.
    let large = Load {
        events_per_second: 4000.0,
        event_bytes: 1000.0,
        outage: Duration::from_secs(4 * 3600),
        replicas: 3,
        outputs: vec!["http".to_owned(), "kafka".to_owned()],
        evidence: true,
        ..load()
    };
    let plan = Plan::of(large).unwrap();
    assert!((plan.share - 0.7165).abs() < 0.0001, "{}", plan.share);
    assert_eq!(sizes(&plan), [49 * gib, 85 * gib, 768 * mib, 128 * mib, 120]);
}

#[test]
fn more_load_never_needs_less() {
    let rates = [0.01, 0.5, 3.0, 10.0, 40.0, 41.0, 150.0, 999.0, 4000.0, 12_001.0, 90_000.0];
    let event_bytes = [1.0, 300.0, 794.0, 1430.0, 4_000.0];
    let outages = [1, 60, 900, 901, 7200, 14_400, 90_000, 2_000_000];
    let mut count = 0;
    for place in [Place::Disk, Place::Memory] {
        for replicas in [1, 2, 3, 4, 9] {
            for evidence in [false, place == Place::Disk] {
                let of = |rate: usize, bytes: usize, outage: usize| {
                    let load = Load {
                        events_per_second: rates[rate],
                        event_bytes: event_bytes[bytes],
                        outage: Duration::from_secs(outages[outage]),
                        place,
                        replicas,
                        evidence,
                        ..load()
                    };
                    Plan::of(load).unwrap()
                };
                for rate in 0..rates.len() {
                    for bytes in 0..event_bytes.len() {
                        for outage in 0..outages.len() {
                            let plan = of(rate, bytes, outage);
                            let least = plan.load.outage;
                            assert!(plan.lasts >= least, "{plan:?}");
                            let more = [
                                (rate + 1 < rates.len()).then(|| of(rate + 1, bytes, outage)),
                                (bytes + 1 < event_bytes.len())
                                    .then(|| of(rate, bytes + 1, outage)),
                                (outage + 1 < outages.len()).then(|| of(rate, bytes, outage + 1)),
                            ];
                            // A longer outage has more draws, so that the part of one relay is
                            // smaller, and with it its CPU time and its evidence.
                            for (index, more) in more.into_iter().enumerate() {
                                let Some(more) = more else { continue };
                                count += 1;
                                let (less, more) = (sizes(&plan), sizes(&more));
                                assert!(less[0] <= more[0], "{plan:?}");
                                assert!(less[2] <= more[2] && less[3] <= more[3], "{plan:?}");
                                let same_share = index < 2 || replicas <= 2;
                                let is_less = less[1] <= more[1] && less[4] <= more[4];
                                assert!(is_less || !same_share, "{plan:?}");
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(count > 10_000, "{count}");
}

#[test]
fn numbers_that_are_absurd_are_refused() {
    let bad: [fn(&mut Load); 12] = [
        |it| it.events_per_second = 0.0,
        |it| it.events_per_second = -1.0,
        |it| it.events_per_second = f64::NAN,
        |it| it.events_per_second = f64::INFINITY,
        |it| it.peak = Some(1.0),
        |it| it.event_bytes = 0.0,
        |it| it.event_bytes = 1e30,
        |it| it.outage = Duration::ZERO,
        |it| it.replicas = 0,
        |it| it.outputs.clear(),
        |it| (it.place, it.evidence) = (Place::Memory, true),
        // 10 million events of 64 MiB a second for a year.
        |it| {
            it.events_per_second = 1e7;
            it.event_bytes = (64 << 20) as f64;
            it.outage = Duration::from_secs(365 * 86_400);
        },
    ];
    for change in bad {
        let mut load = load();
        change(&mut load);
        assert!(Plan::of(load.clone()).is_err(), "{load:?}");
    }
}

#[test]
fn each_type_of_output_has_a_row() {
    let reference = config::reference(output::TYPES);
    let row =
        reference.lines().find(|row| row.contains("\"otlp\"") && row.contains("`output.type`"));
    let row = row.expect("the row of output.type");
    for output in m::OUTPUTS {
        assert!(row.contains(&format!("\"{}\"", output.name)), "{}: {row}", output.name);
    }
    assert_eq!(row.matches('"').count(), 2 * m::OUTPUTS.len(), "{row}");
}

#[test]
fn sizes_and_numbers_are_written_for_people() {
    let kib = m::KIB as f64;
    for (size, text) in [(12.0, "12 bytes"), (1536.0, "1.5 KiB"), (kib * kib * kib, "1.0 GiB")] {
        assert_eq!(bytes(size), text);
    }
    for (value, text) in [(150.0, "150"), (0.5, "0.5"), (1441.4, "1441"), (10.4, "10.4")] {
        assert_eq!(number(value), text);
    }
}

/// Any shipped config may run in the pods of the manifests.
#[test]
#[cfg(feature = "kafka")]
fn no_shipped_config_allows_more_memory_than_the_manifests_do() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifests = ["base/deployment.yaml", "overlays/durable/statefulset.yaml"];
    for manifest in manifests.map(|it| root.join("deploy").join(it)) {
        let text = std::fs::read_to_string(manifest).unwrap();
        assert!(text.contains("limits:\n              memory: 512Mi\n"));
    }
    let examples = std::fs::read_dir(root.join("config")).unwrap().map(|it| it.unwrap().path());
    for file in examples.chain([root.join("deploy/base/relay.toml")]) {
        let text = std::fs::read_to_string(&file).unwrap();
        let env = |name: &str| (name != "QUEUE_MAX_BYTES").then(|| "x".to_owned());
        let checked = config::read_with(&text, output::TYPES, &env);
        assert!(checked.config.is_some(), "{}: {:?}", file.display(), checked.problems);
        let too_much = memory(&checked, Some(512 * m::MIB)).map(|it| it.message);
        assert_eq!(too_much, None, "{}", file.display());
        assert!(memory(&checked, Some(64 * m::MIB)).is_some(), "{}", file.display());
        assert!(memory(&checked, None).is_none());
    }
}
