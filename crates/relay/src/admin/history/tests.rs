//! Tests of the history without a relay: steps, pauses, outputs that are added and removed, and its
//! bounds.

use serde_json::Value;

use super::*;

/// A history, and the samples that a relay with these outputs would give to it.
struct Bench {
    history: History,
    sample: Sample,
}

fn output(counters: [f64; 4], backlog: f64, lag: f64) -> OutputSample {
    OutputSample { counters, states: [backlog, lag], ..OutputSample::default() }
}

impl Bench {
    fn new(outputs: &[&str]) -> Self {
        let of = |name: &&str| ((*name).to_owned(), OutputSample::default());
        let outputs = outputs.iter().map(of).collect();
        let sample = Sample { outputs, ..Sample::default() };
        Self { history: History::new(Instant::now()), sample }
    }

    fn take(&self) {
        self.history.add(Instant::now(), &self.sample);
    }

    /// Lets a step pass in which each counter grows by this much, and takes the sample at its end.
    async fn step(&mut self, grown: f64) {
        tokio::time::advance(STEP).await;
        self.grow(grown);
        self.take();
    }

    fn grow(&mut self, grown: f64) {
        self.sample.counters.iter_mut().for_each(|it| *it += grown);
        for (_, output) in &mut self.sample.outputs {
            output.counters.iter_mut().for_each(|it| *it += grown);
        }
    }

    fn json(&self) -> Value {
        let text = self.history.json(Instant::now(), 1_700_000_000.25, "host", 1_699_999_000.125);
        serde_json::from_str(&text).unwrap()
    }
}

fn line(json: &Value) -> Vec<Option<f64>> {
    json.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[tokio::test(start_paused = true)]
async fn each_step_has_the_rates_since_the_step_before_and_the_states_of_its_end() {
    let mut bench = Bench::new(&["a"]);
    bench.take();
    let json = bench.json();
    assert_eq!((&json["interval_seconds"], &json["points"]), (&10.into(), &360.into()));
    assert_eq!(
        (&json["host"], &json["start_time_seconds"]),
        (&"host".into(), &1_699_999_000.125.into())
    );
    assert_eq!(json["time_seconds"], Value::Array(Vec::new()), "no step has ended yet");
    bench.sample.states = [512.0, 500.0, 3.0, 4096.0];
    bench.sample.outputs[0].1.states = [3.0, 0.25];
    bench.step(5.0).await;
    bench.sample.states = [0.0, 0.0, 0.0, 8192.0];
    bench.step(1.0 / 3.0).await;
    let json = bench.json();
    assert_eq!(line(&json["time_seconds"]), [Some(1_699_999_990.0), Some(1_700_000_000.0)]);
    for name in ["accepted_events", "received_bytes", "refused_429", "lost_events"] {
        assert_eq!(line(&json[format!("{name}_per_second")]), [Some(0.5), Some(0.033)], "{name}");
    }
    assert_eq!(line(&json["queue_bytes"]), [Some(512.0), Some(0.0)]);
    assert_eq!(line(&json["queue_needed_bytes"]), [Some(500.0), Some(0.0)]);
    assert_eq!(line(&json["queue_events"]), [Some(3.0), Some(0.0)]);
    assert_eq!(line(&json["memory_bytes"]), [Some(4096.0), Some(8192.0)]);
    let a = &json["outputs"]["a"];
    for name in ["delivered_events", "sent_bytes", "errors", "lost_events"] {
        assert_eq!(line(&a[format!("{name}_per_second")]), [Some(0.5), Some(0.033)], "{name}");
    }
    assert_eq!(line(&a["backlog_events"]), [Some(3.0), Some(3.0)]);
    assert_eq!(line(&a["lag_seconds"]), [Some(0.25), Some(0.25)]);
    assert_eq!(a.as_object().unwrap().len(), OUTPUT_LINES.len());
}

/// A late sample does not count as a pause. Its rates are computed over the time that has really
/// passed.
#[tokio::test(start_paused = true)]
async fn a_sample_that_is_late_has_the_rate_of_its_own_time() {
    let mut bench = Bench::new(&[]);
    bench.take();
    bench.step(10.0).await;
    tokio::time::advance(Duration::from_secs(14)).await;
    bench.grow(14.0);
    bench.take();
    tokio::time::advance(Duration::from_secs(6)).await;
    bench.grow(6.0);
    bench.take();
    let json = bench.json();
    assert_eq!(line(&json["accepted_events_per_second"]), [Some(1.0); 3]);
    assert_eq!(line(&json["time_seconds"]).len(), 3);
}

/// On a busy machine the samples are late by different times. If the first one is later than the
/// others, the others seem to come early.
#[tokio::test(start_paused = true)]
async fn a_first_sample_that_is_later_than_the_others_costs_none_of_them() {
    let mut bench = Bench::new(&[]);
    let start = Instant::now();
    for (step, late) in [300, 1, 200, 900, 0, 2].into_iter().enumerate() {
        let at = start + STEP * u32::try_from(step).unwrap() + Duration::from_millis(late);
        tokio::time::advance(at - Instant::now()).await;
        bench.grow((at - start).as_secs_f64() - bench.sample.counters[0]);
        bench.take();
    }
    let json = bench.json();
    assert_eq!(line(&json["time_seconds"]).len(), 5);
    assert_eq!(line(&json["accepted_events_per_second"]), [Some(1.0); 5]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_was_paused_leaves_a_gap_and_no_spike() {
    let mut bench = Bench::new(&["a"]);
    bench.take();
    bench.step(10.0).await;
    tokio::time::advance(STEP * 30 + STEP / 2).await;
    bench.grow(1e6);
    bench.sample.states[0] = 77.0;
    bench.take();
    bench.step(10.0).await;
    let json = bench.json();
    let mut wanted = vec![None; 32];
    (wanted[0], wanted[31]) = (Some(1.0), Some(1.0));
    assert_eq!(line(&json["accepted_events_per_second"]), wanted);
    assert_eq!(line(&json["outputs"]["a"]["delivered_events_per_second"]), wanted);
    let bytes = line(&json["queue_bytes"]);
    assert_eq!(bytes.iter().flatten().collect::<Vec<_>>(), [&0.0, &77.0, &77.0]);
    assert_eq!(bytes[30], Some(77.0), "a state is known again at once");
    let times = line(&json["time_seconds"]);
    assert!(times.windows(2).all(|two| two[1].unwrap() - two[0].unwrap() == 10.0), "{times:?}");
    // After a pause that is longer than the history, no point from before the pause is left.
    tokio::time::advance(STEP * 5000).await;
    bench.take();
    bench.step(20.0).await;
    let json = bench.json();
    let rates = line(&json["accepted_events_per_second"]);
    assert_eq!((rates.len(), rates.iter().flatten().count(), rates[359]), (360, 1, Some(2.0)));
}

#[tokio::test(start_paused = true)]
async fn outputs_come_with_nulls_and_leave_with_all_they_had() {
    let mut bench = Bench::new(&["a"]);
    bench.take();
    bench.step(10.0).await;
    let joining = output([500.0, 0.0, 0.0, 0.0], 9.0, 1.0);
    bench.sample.outputs.push(("b \"x\"".to_owned(), joining));
    bench.step(10.0).await;
    bench.step(10.0).await;
    let json = bench.json();
    let b = &json["outputs"]["b \"x\""];
    // The counters of a name continue when a reload removes the output and adds it again, so the
    // first rate is not known.
    assert_eq!(line(&b["delivered_events_per_second"]), [None, None, Some(1.0)]);
    assert_eq!(line(&b["backlog_events"]), [None, Some(9.0), Some(9.0)]);
    assert_eq!(line(&json["outputs"]["a"]["errors_per_second"]), [Some(1.0); 3]);

    // The output is removed and added again between two samples: none of its earlier points is
    // shown.
    bench.history.keep(|name| name == "a");
    assert!(bench.json()["outputs"].get("b \"x\"").is_none());
    bench.step(1000.0).await;
    bench.step(10.0).await;
    let b = &bench.json()["outputs"]["b \"x\""];
    assert_eq!(line(&b["delivered_events_per_second"]), [None, None, None, None, Some(1.0)]);

    // A counter that begins again has no rate, and no negative one.
    bench.sample.outputs[1].1.counters = [5.0; 4];
    bench.step(0.0).await;
    bench.step(10.0).await;
    let b = &bench.json()["outputs"]["b \"x\""];
    assert_eq!(line(&b["sent_bytes_per_second"])[5..], [None, Some(1.0)]);

    bench.sample.outputs.pop();
    bench.step(10.0).await;
    let outputs = &bench.json()["outputs"];
    assert_eq!(outputs.as_object().unwrap().keys().collect::<Vec<_>>(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn after_two_hours_there_is_an_hour_and_no_more() {
    let names: Vec<String> = (0..20).map(|number| format!("output-{number}")).collect();
    let mut bench = Bench::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    bench.sample.states = [123_456_789_012.0, 123_456_789_012.0, 1_234_567.0, 9_876_543_210.0];
    for (_, output) in &mut bench.sample.outputs {
        output.states = [1_234_567.0, 86_399.123];
    }
    bench.take();
    for step in 0..720 {
        bench.history.reloaded(Instant::now(), step % 2 == 0);
        bench.step(f64::from(step) * 1_234.567_89).await;
    }
    let text = bench.history.json(Instant::now(), 1_700_000_000.0, "host", 1_699_990_000.0);
    assert!(text.len() < 1_000_000, "{} bytes", text.len());
    let json: Value = serde_json::from_str(&text).unwrap();
    let times = line(&json["time_seconds"]);
    assert_eq!((times.len(), times[0], times[359]), (360, Some(1_699_996_410.0), Some(1.7e9)));
    for name in LINES {
        assert_eq!(line(&json[name]).iter().flatten().count(), 360, "{name}");
    }
    assert_eq!(json["outputs"].as_object().unwrap().len(), 20);
    for name in OUTPUT_LINES {
        let points = line(&json["outputs"]["output-19"][name]);
        assert_eq!(points.iter().flatten().count(), 360, "{name}");
    }
    let rates = line(&json["accepted_events_per_second"]);
    let rate = |step: f64| (step * 1_234.567_89 / 10.0 * 1000.0).round() / 1000.0;
    assert_eq!((rates[0], rates[359]), (Some(rate(360.0)), Some(rate(719.0))));
    let reloads = json["reloads"].as_array().unwrap();
    assert_eq!(reloads.len(), RELOADS_MAX);
    assert_eq!(
        reloads[99],
        serde_json::json!({ "time_seconds": 1_699_999_990, "result": "error" })
    );
    tokio::time::advance(STEP * 300).await;
    assert_eq!(bench.json()["reloads"].as_array().unwrap().len(), 60, "those within the hour");
}

/// The documentation names these sizes as the greatest memory that the history takes.
#[test]
fn the_history_takes_the_memory_that_is_documented() {
    let of_relay = size_of::<[[f64; POINTS]; LINES.len()]>();
    let of_output = size_of::<[[f64; POINTS]; OUTPUT_LINES.len()]>();
    assert_eq!((of_relay, of_output), (23_040, 17_280));
    assert_eq!(of_relay + 20 * of_output, 368_640);
    assert_eq!(of_relay + 200 * of_output, 3_479_040);
}

/// An output that exists at the start has counted from 0. The rates of an output that a reload adds
/// are unknown until its first sample, because the counters of its name may have begun earlier.
#[tokio::test(start_paused = true)]
async fn an_output_has_rates_of_the_last_minute_of_its_own() {
    let mut bench = Bench::new(&["old"]);
    let rate = |bench: &Bench, name: &str| {
        let has = bench.sample.outputs.iter().find(|(other, _)| other == name);
        let has = has.map_or([0.0; 4], |(_, output)| output.counters);
        bench.history.last_minute_of(name, Instant::now(), &has)[0]
    };
    tokio::time::advance(Duration::from_secs(5)).await;
    bench.grow(50.0);
    assert!((rate(&bench, "old") - 5.0).abs() < 1e-9, "before the first sample");
    bench.take();
    bench.step(0.0).await;
    bench.step(0.0).await;
    assert!((rate(&bench, "old") - 2.0).abs() < 1e-9, "{}", rate(&bench, "old"));
    assert!(rate(&bench, "new").is_nan());
    bench.sample.outputs.push(("new".to_owned(), output([700.0; 4], 0.0, 0.0)));
    bench.step(0.0).await;
    assert!(rate(&bench, "new").abs() < 1e-9);
    bench.step(20.0).await;
    assert!((rate(&bench, "new") - 2.0).abs() < 1e-9);
    // 300 events come each 30 s.
    for step in 0..60 {
        bench.step(if step % 3 == 0 { 300.0 } else { 0.0 }).await;
        if step > 12 {
            let rate = rate(&bench, "old");
            assert!((8.5..13.0).contains(&rate), "{rate}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rates_of_the_last_minute_are_neither_older_nor_beyond_measure() {
    let mut bench = Bench::new(&[]);
    let rate = |bench: &Bench| {
        let rates = bench.history.last_minute(Instant::now(), &bench.sample.counters);
        assert!(rates.iter().all(|rate| (rate - rates[0]).abs() < 1e-9), "{rates:?}");
        rates[0]
    };
    tokio::time::advance(Duration::from_millis(1)).await;
    bench.grow(50.0);
    assert!((rate(&bench) - 5.0).abs() < 1e-9, "a single moment counts as a step");
    bench.take();
    for _ in 0..5 {
        bench.step(0.0).await;
    }
    assert!((rate(&bench) - 1.0).abs() < 0.01, "{}", rate(&bench));
    bench.step(0.0).await;
    assert_eq!(rate(&bench), 0.0, "a minute later");
    for _ in 0..20 {
        bench.step(60.0).await;
    }
    assert!((rate(&bench) - 6.0).abs() < 0.01, "{}", rate(&bench));
    tokio::time::advance(STEP / 2).await;
    assert!((rate(&bench) - 360.0 / 65.0).abs() < 0.01, "{}", rate(&bench));
}

#[tokio::test(start_paused = true)]
async fn an_output_grows_if_its_backlog_and_its_lag_have_grown_for_two_minutes() {
    let mut bench = Bench::new(&["a"]);
    bench.take();
    let mut run = async |steps: u32, states: &dyn Fn(f64) -> [f64; 2]| {
        let mut grown = Vec::new();
        for step in 0..steps {
            bench.sample.outputs[0].1.states = states(f64::from(step));
            bench.step(0.0).await;
            grown.push(bench.history.is_growing("a", 1, Duration::ZERO));
        }
        assert!(!bench.history.is_growing("nobody", 1, Duration::ZERO));
        grown
    };
    let grown = run(20, &|step| [100.0 * step, step * 10.0]).await;
    assert_eq!(grown.iter().position(|it| *it), Some(12), "after two minutes: {grown:?}");
    assert!(grown[12..].iter().all(|it| *it));
    // The backlog stays while the lag still grows.
    assert_eq!(run(30, &|step| [2000.0, 200.0 + step * 10.0]).await.last(), Some(&false));
    // A backlog that falls does not count as growing, and neither does noise that goes up and down.
    assert_eq!(run(30, &|step| [2000.0 - step, 1.0]).await.last(), Some(&false));
    assert!(!run(60, &|step| [step % 5.0, step % 7.0]).await[13..].contains(&true));
    // Noise does not hide a growth.
    let noisy = |step: f64| [step * 50.0 + (step % 3.0) * 20.0, step * 5.0 + (step % 2.0) * 3.0];
    assert!(run(40, &noisy).await[20..].iter().all(|it| *it));
}

#[tokio::test(start_paused = true)]
async fn an_output_without_events_or_with_those_that_it_holds_does_not_grow() {
    let mut bench = Bench::new(&["a"]);
    bench.take();
    for step in 0..20 {
        bench.sample.outputs[0].1.states = [100.0, 10.0].map(|each| each * f64::from(step));
        bench.step(0.0).await;
    }
    let grows = |events, held| bench.history.is_growing("a", events, Duration::from_secs(held));
    assert!(grows(1, 0) && grows(1, 189));
    // The lag is 190 s.
    assert!(!grows(1, 190));
    // The last point is from before everything was delivered.
    assert!(!grows(0, 0));
}

#[test]
fn numbers_have_at_most_three_decimals() {
    for (value, wanted) in [
        (0.0, "0"),
        (0.000_4, "0"),
        (0.000_6, "0.001"),
        (0.1, "0.1"),
        (12.340_4, "12.34"),
        (1_099_511_627_776.0, "1099511627776"),
        (9.999_9, "10"),
        (f64::NAN, "null"),
        (f64::INFINITY, "null"),
    ] {
        assert_eq!(serde_json::to_string(&Number(value)).unwrap(), wanted, "{value}");
    }
}
