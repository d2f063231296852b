//! The troubles of a year, one row each: what happens to a real relay, what its page says, which
//! one alert fires, and what is in the log.
//!
//! Method: each row runs the program for about a minute and scrapes it once a second. promtool then
//! evaluates the shipped rules over these series, where a second counts as 30 s. Most rows begin
//! with a calm time, in which the page is good and no alert fires.

mod consumers;
mod operator;
mod queue;
mod senders;

use std::process::Command;
use std::time::SystemTime;

use crate::support::clock::WallClock;
use crate::support::prelude::*;

/// For the rules, a second of a row is this many seconds.
const FASTER: u32 = 30;

/// The length of the calm time, and of most troubles, in ticks. A tick is a second.
const CALM: usize = 10;
const TROUBLE: usize = 45;

/// For this many ticks, two alerts may fire together: an alert that a worse one has replaced stays
/// for three minutes, as after a restart of the relay.
const CHANGE: usize = 8;

/// A trouble, and what an operator is told about it.
#[derive(Clone, Copy)]
pub(super) struct Row {
    name: &'static str,
    run: fn(&mut Scene),
    /// The state of the page's verdict, and words of a finding.
    says: (&'static str, &'static str),
    /// The one alert, without the prefix of its name; empty if there is none.
    fires: &'static str,
    /// The warning that fires before it, and that it replaces when the trouble gets worse.
    before: &'static [&'static str],
    /// Words in the log.
    logs: &'static str,
}

/// A relay as Prometheus sees it: its series by tick.
#[derive(Default)]
struct Target {
    relay: Option<Relay>,
    /// `true` while Prometheus has the target in its list, even if the target does not answer.
    listed: bool,
    scrapes: BTreeMap<usize, BTreeMap<String, f64>>,
    up: BTreeMap<usize, f64>,
}

/// Sends something to the listener at this address. The number is that of the tick.
type Send = dyn Fn(SocketAddr, u64);

/// The relays of a row, and what was seen of them.
pub(super) struct Scene {
    targets: Vec<Target>,
    ticks: usize,
    calm: usize,
    begun: SystemTime,
    /// The clock of a relay for which time passes as fast as it does for the rules.
    clock: Option<WallClock>,
    /// Lags have a real cause, so they are not multiplied by [`FASTER`].
    lag_is_real: bool,
    trouble: Arc<AtomicBool>,
    send: Box<Send>,
    /// The verdict of the first relay at each tick that had one: its state, and the findings.
    said: Vec<(String, String)>,
    log: String,
}

impl Scene {
    fn new() -> Self {
        Self {
            targets: Vec::new(),
            ticks: 0,
            calm: 0,
            begun: SystemTime::now(),
            clock: None,
            lag_is_real: false,
            trouble: Arc::default(),
            send: Box::new(|address, seed| _ = send(address, seed, 5)),
            said: Vec::new(),
            log: String::new(),
        }
    }

    /// Starts a relay that Prometheus sees as one more pod.
    fn start(&mut self, config: &str) {
        self.add(Relay::start(config));
    }

    fn add(&mut self, relay: Relay) {
        let target = Target { relay: Some(relay), listed: true, ..Target::default() };
        self.targets.push(target);
    }

    /// Starts a relay for which time passes as fast as it does for the rules.
    fn start_faster(&mut self, config: &str) {
        let clock = WallClock::new();
        // Thirty times faster, quick retries would use a core.
        let mut builder = Relay::with(&config.replace(QUICK, ""));
        for (name, value) in clock.times_faster(FASTER) {
            builder = builder.variable(name, &value);
        }
        self.add(builder.start());
        self.clock = Some(clock);
    }

    fn relay(&mut self) -> &mut Relay {
        self.targets[0].relay.as_mut().expect("it runs")
    }

    /// Ends the relay of this pod, and keeps its log.
    fn end(&mut self, pod: usize, end: fn(&mut Relay)) {
        let mut relay = self.targets[pod].relay.take().expect("it runs");
        end(&mut relay);
        self.log.push_str(&relay.log_text());
    }

    /// Replaces the relay of the first pod, as a restart of its container does.
    fn again(&mut self, config: &str) {
        self.targets[0].relay = Some(Relay::start(config));
    }

    /// From now on, calls `send` once per tick for each relay.
    fn sends(&mut self, send: impl Fn(SocketAddr, u64) + 'static) {
        self.send = Box::new(send);
    }

    /// From now on, each relay gets a batch of this many events per tick.
    fn sends_events(&mut self, events: usize) {
        self.sends(move |address, seed| _ = send(address, seed, events));
    }

    /// Returns a consumer that answers with 200 until the trouble begins.
    fn consumer(
        &self,
        answer: impl Fn(&Request) -> Answer + Sync + std::marker::Send + 'static,
    ) -> HttpSink {
        let trouble = Arc::clone(&self.trouble);
        HttpSink::forgetful(move |request| match trouble.load(Ordering::SeqCst) {
            true => answer(request),
            false => Answer::status(200),
        })
    }

    /// Lets a calm time pass, in which the page must be good.
    fn calm(&mut self) {
        self.go(CALM);
        self.calm = self.ticks;
        let other = self.said.iter().find(|said| !is_good(said));
        assert!(other.is_none(), "the calm time: {other:?}");
    }

    /// Begins the trouble, and lets [`TROUBLE`] ticks pass.
    fn trouble(&mut self) {
        self.trouble.store(true, Ordering::SeqCst);
        self.go(TROUBLE);
    }

    /// Lets this many ticks pass, with traffic.
    fn go(&mut self, ticks: usize) {
        for _ in 0..ticks {
            let begun = Instant::now();
            for relay in self.targets.iter().filter_map(|it| it.relay.as_ref()) {
                (self.send)(relay.address(), self.ticks as u64);
            }
            for target in &mut self.targets {
                target.scrape(self.ticks);
            }
            if let Some(relay) = &self.targets[0].relay
                && let Some(status) = ask(relay.admin(), "/status")
                && let Ok(mut status) = serde_json::from_str::<Value>(&status)
            {
                let verdict = status["verdict"].take();
                let state = verdict["state"].as_str().expect("a state").to_owned();
                self.said.push((state, texts(&verdict["findings"]).join(" | ")));
            }
            self.ticks += 1;
            std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
        }
    }

    /// Converts a value of this series to the time of the rules, which begins at 0.
    fn scaled(&self, series: &str, value: f64) -> f64 {
        let begun = self.begun.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let begun = begun.as_secs_f64();
        let times = if self.clock.is_some() { 1.0 } else { f64::from(FASTER) };
        let name = series.split('{').next().unwrap_or_default();
        match name {
            _ if value == 0.0 => value,
            // The days of a certificate are not scaled.
            _ if name.ends_with("expiry_timestamp_seconds") => value - begun,
            _ if name.ends_with("_timestamp_seconds") || name == "process_start_time_seconds" => {
                (value - begun) * times
            }
            _ if name.ends_with("_lag_seconds") && !self.lag_is_real => value * times,
            _ => value,
        }
    }

    /// Returns a promtool test of the exported series, which asks what fires at each tick.
    fn rules_test(&self) -> String {
        let rules = repository().join("deploy/monitoring/rules.yaml");
        let text = std::fs::read_to_string(&rules).expect("the rules");
        let seconds = FASTER;
        let mut test = format!(
            "rule_files: [{rules:?}]\nevaluation_interval: {seconds}s\ntests:\n  \
             - interval: {seconds}s\n    input_series:\n"
        );
        for (pod, target) in self.targets.iter().enumerate() {
            let labels = format!(
                "job=\"relay\",namespace=\"audit\",pod=\"relay-{pod}\",instance=\"10.0.0.{pod}:9090\""
            );
            let mut add = |series: &str, value: &dyn Fn(usize) -> Option<f64>| {
                let (name, more) = series.split_once('{').unwrap_or((series, "}"));
                let comma = if more == "}" { "" } else { "," };
                test.push_str(&format!(
                    "      - series: '{name}{{{labels}{comma}{more}'\n        values: '"
                ));
                let mut was = false;
                for tick in 0..self.ticks {
                    let value = value(tick);
                    match value {
                        Some(value) => test.push_str(&format!("{value} ")),
                        None => test.push_str(if was { "stale " } else { "_ " }),
                    }
                    was = value.is_some();
                }
                test.push_str("'\n");
            };
            add("up", &|tick| target.up.get(&tick).copied());
            let all: BTreeSet<&String> = target.scrapes.values().flat_map(BTreeMap::keys).collect();
            for series in all {
                let name = series.split('{').next().unwrap_or_default();
                // Series that no rule uses are left out.
                if text.contains(name) {
                    add(series, &|tick| {
                        let value = *target.scrapes.get(&tick)?.get(series)?;
                        Some(self.scaled(series, value))
                    });
                }
            }
        }
        test.push_str("    promql_expr_test:\n");
        for tick in 0..self.ticks {
            let at = tick * usize::try_from(FASTER).expect("small");
            test.push_str(&format!(
                "      - expr: label_replace(group by (alertname) (ALERTS{{alertstate=\"firing\"}}), \
                 \"at\", \"{tick}\", \"\", \"\")\n        eval_time: {at}s\n        \
                 exp_samples: []\n"
            ));
        }
        test
    }

    /// Returns the names of the alerts that fire at each tick.
    fn fired(&self) -> BTreeMap<usize, BTreeSet<String>> {
        let directory = TempDir::new().expect("a directory");
        let file = directory.path().join("test.yaml");
        std::fs::write(&file, self.rules_test()).expect("a writable directory");
        let output = Command::new(program("promtool")).args(["test", "rules"]).arg(&file).output();
        let output = output.expect("promtool runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let mut fired = BTreeMap::<usize, BTreeSet<String>>::new();
        // Each sample is like `{alertname="…", at="12"} 1E+00`.
        for sample in said.split("{alertname=\"").skip(1) {
            let mut texts = sample.split('"');
            let (alert, at) = (texts.next().expect("a name"), texts.nth(1).expect("a tick"));
            let short = alert.trim_start_matches("KubeAuditForwarder").to_owned();
            fired.entry(at.parse().expect("a tick")).or_default().insert(short);
        }
        let is_understood = output.status.success() || !fired.is_empty();
        assert!(is_understood, "{}", said.chars().take(3000).collect::<String>());
        fired
    }

    /// Returns the differences from what the row says.
    fn differences(&mut self, row: &Row) -> Vec<String> {
        let mut found = Vec::new();
        let (state, words) = row.says;
        let says = |said: &&(String, String)| said.0 == state && said.1.contains(words);
        let ends_well = state != "good" || self.said.last().is_some_and(is_good);
        if !self.said.iter().any(|it| says(&it)) || !ends_well {
            let mut all: Vec<_> = self.said.clone();
            all.dedup();
            found.push(format!("the page says not {:?}, but {all:#?}", row.says));
        }
        let fired = self.fired();
        let calm = fired.range(..self.calm).next();
        if let Some(calm) = calm {
            found.push(format!("in the calm time: {calm:?}"));
        }
        // Each firing, from its begin to its end, in the order of their begins.
        let mut firings: Vec<&str> = Vec::new();
        let (mut together, mut is_wrong) = (0, false);
        for (tick, alerts) in &fired {
            let before = tick.checked_sub(1).and_then(|tick| fired.get(&tick));
            let is_new = |it: &&String| before.is_none_or(|before| !before.contains(*it));
            firings.extend(alerts.iter().filter(is_new).map(String::as_str));
            together = if alerts.len() > 1 { together + 1 } else { 0 };
            is_wrong |= together > CHANGE;
        }
        let last = [row.fires];
        let wanted = [row.before, if row.fires.is_empty() { &[] } else { &last }].concat();
        is_wrong |= firings != wanted;
        let at_end = fired.get(&(self.ticks - 1)).is_some_and(|it| it.contains(row.fires));
        // A loss of one moment is told for a quarter of an hour.
        is_wrong |= row.fires != "EventsLost" && at_end == row.fires.is_empty();
        if is_wrong {
            let mut changes: Vec<_> = fired.iter().collect();
            changes.dedup_by_key(|(_, alerts)| *alerts);
            found.push(format!("{wanted:?} were to fire once, and from each tick on {changes:?}"));
        }
        for target in &self.targets {
            if let Some(relay) = &target.relay {
                self.log.push_str(&relay.log_text());
            }
        }
        if !self.log.contains(row.logs) {
            let messages: BTreeSet<&str> = (self.log.split("\"message\":\"").skip(1))
                .filter_map(|line| line.split('"').next())
                .collect();
            found.push(format!("the log has not {:?}, but {messages:#?}", row.logs));
        }
        found
    }
}

/// Returns the text of each finding, before those of its consequences.
fn texts(findings: &Value) -> Vec<String> {
    let all = |finding: &Value| {
        let own = finding["text"].as_str().expect("a text").to_owned();
        [vec![own], texts(&finding["consequences"])].concat()
    };
    findings.as_array().expect("findings").iter().flat_map(all).collect()
}

/// Returns `true` if the page was good. Slow responses are allowed: the machine can be busy, or the
/// relay's time faster.
fn is_good((state, texts): &(String, String)) -> bool {
    state == "good" || (state == "warn" && texts.contains("responds slowly"))
}

impl Target {
    fn scrape(&mut self, tick: usize) {
        if !self.listed {
            return;
        }
        let scrape = self.relay.as_ref().and_then(|relay| ask(relay.admin(), "/metrics"));
        self.up.insert(tick, f64::from(u8::from(scrape.is_some())));
        let Some(text) = scrape else { return };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        self.scrapes.insert(tick, values.collect());
    }
}

/// Returns the response of the admin address, or `None` if there is no 200 within 3 s.
fn ask(admin: SocketAddr, path: &str) -> Option<String> {
    let mut client = Client::connect(admin).ok()?;
    client.read_timeout(Duration::from_secs(3));
    let answer = client.request("GET", path, &[("Connection", "close")], b"").ok()?;
    (answer.status == 200).then(|| answer.text())
}

/// Sends a batch as kube-apiserver does, and returns the status of the response.
fn send(address: SocketAddr, seed: u64, events: usize) -> Option<u16> {
    send_body(address, "/audit", &generated_batch(seed, events, 900))
}

fn send_body(address: SocketAddr, path: &str, body: &[u8]) -> Option<u16> {
    let mut client = Client::connect(address).ok()?;
    client.read_timeout(Duration::from_secs(3));
    Some(client.post(path, "application/json", body).ok()?.status)
}

/// Runs all rows at the same time, because they mostly wait, and says what is wrong with each.
fn run(rows: Vec<Row>) {
    let only = std::env::var("KUBE_AUDIT_FORWARDER_TROUBLE").unwrap_or_default();
    let rows = rows.into_iter().filter(|row| row.name.contains(&only));
    let rows: Vec<_> = rows
        .map(|row| {
            let thread = std::thread::spawn(move || {
                let mut scene = Scene::new();
                (row.run)(&mut scene);
                scene.differences(&row)
            });
            (row, thread)
        })
        .collect();
    let mut wrong = Vec::new();
    for (row, thread) in rows {
        match thread.join() {
            Ok(differences) if differences.is_empty() => {}
            Ok(differences) => wrong.push(format!("{}:\n{}", row.name, differences.join("\n"))),
            Err(panic) => {
                let said = crate::support::server::said(&*panic);
                wrong.push(format!("{}: {said}", row.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

/// The alerts that no row can cause: one is about a bug in the relay, one about a metric of
/// kube-apiserver, and one about a process before the relay's, whose losses no scrape has seen
/// (`deploy/monitoring/rules_test.yaml`, `operate::lives`).
const ELSEWHERE: [&str; 3] = ["ConservationBroken", "AuditWebhookError", "EarlierLosses"];

#[test]
fn each_alert_has_a_trouble_in_which_it_is_the_right_one() {
    let rows = [consumers::ROWS, queue::ROWS, senders::ROWS, operator::ROWS].concat();
    let rules = repository().join("deploy/monitoring/rules.yaml");
    let rules = std::fs::read_to_string(rules).expect("the rules");
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let short = alert.trim_start_matches("KubeAuditForwarder");
        let has_row = rows.iter().any(|row| row.fires == short);
        assert_ne!(has_row, ELSEWHERE.contains(&short), "{alert}");
    }
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows.len(), "two rows have one name");
}

/// Returns the first row of each alert.
fn first_rows() -> Vec<Row> {
    let mut alerts = BTreeSet::new();
    let mut rows = [consumers::ROWS, queue::ROWS, senders::ROWS, operator::ROWS].concat();
    rows.retain(|row| !row.fires.is_empty() && alerts.insert(row.fires));
    rows
}

/// These tests need promtool, strace, python3, root and libfaketime.
mod peers {
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn one_trouble_of_each_alert() {
        super::run(super::first_rows());
    }

    /// The other rows.
    mod rest {
        use crate::operate::troubles::{Row, consumers, first_rows, operator, queue, run, senders};

        fn run_rest(rows: &[Row]) {
            let first = first_rows();
            let is_first = |row: &&Row| first.iter().any(|first| first.name == row.name);
            run(rows.iter().filter(|row| !is_first(row)).copied().collect());
        }

        #[test]
        #[ignore = "needs peers or root: ./test"]
        fn consumers() {
            run_rest(consumers::ROWS);
        }

        #[test]
        #[ignore = "needs peers or root: ./test"]
        fn queue() {
            run_rest(queue::ROWS);
        }

        #[test]
        #[ignore = "needs peers or root: ./test"]
        fn senders() {
            run_rest(senders::ROWS);
        }

        #[test]
        #[ignore = "needs peers or root: ./test"]
        fn operator() {
            run_rest(operator::ROWS);
        }
    }
}
