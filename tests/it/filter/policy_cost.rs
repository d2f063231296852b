//! `policy cost` and `policy advise`: the numbers are those of a relay with the policy, for every
//! form of the input, and the commands say what the numbers leave out.

use super::shapes::{all_events, parsed};
use crate::support::corpus::audit_log;
use crate::support::prelude::*;
use crate::support::s3::{Keys, Mood, S3};

/// Drops the routine events of kubelets and controllers, keeps reads at Metadata, and has a rule
/// that matches nothing.
const POLICY: &str = r"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  verbs: [watch]
- level: None
  users: [nobody]
- level: Metadata
  verbs: [get, list]
- level: Request
  verbs: [create]
- level: RequestResponse
";

/// A directory with the policy above, and the file `events` with JSON lines.
struct Place(TempDir);

impl Place {
    fn new(events: &[u8]) -> Self {
        let place = Self(TempDir::new().unwrap());
        place.write("policy.yaml", POLICY.as_bytes());
        place.write("events", events);
        place
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
    }

    fn cost(&self, more: &[&str]) -> Said {
        said(&[&["policy", "cost", "policy.yaml"], more].concat(), self.0.path())
    }

    /// Runs the command with `--json`, checks that it succeeds, and returns its output.
    fn json(&self, more: &[&str]) -> Value {
        let said = self.cost(&[&["--json"], more].concat());
        said.assert(0, &[]);
        serde_json::from_str(&said.stdout).unwrap()
    }
}

/// Returns the share of the bytes that remains with the first policy.
fn share_after(told: &Value) -> f64 {
    let bytes = |sum: &Value| sum["bytes"].as_f64().unwrap();
    bytes(&told["policies"][0]["after"]) / bytes(&told["total"])
}

/// Returns the page about both commands.
fn page() -> String {
    std::fs::read_to_string(repository().join("docs/filters/policy.md")).unwrap()
}

fn lines(events: &[Vec<u8>]) -> Vec<u8> {
    events.iter().flat_map(|event| [event, &b"\n"[..]].concat()).collect()
}

/// Returns the events that a relay with this policy sends if these bodies are posted.
fn left(policy: &Path, bodies: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let sink = HttpSink::accepting();
    let more = format!("concurrency = 1\nfilter.policy = \"{}\"\n", text(policy));
    let relay = Relay::start(&to_sink(sink.address(), &more));
    for body in bodies {
        assert_eq!(relay.post(&body).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    accepted_events(&sink)
}

fn bytes(events: &[Vec<u8>]) -> u64 {
    events.iter().map(|event| event.len() as u64).sum()
}

#[test]
fn the_bytes_after_are_those_that_leave_a_relay_with_the_policy() {
    let all = all_events();
    let place = Place::new(&lines(&all));
    let told = place.json(&["events"]);
    let left = left(&place.0.path().join("policy.yaml"), corpus().into_iter().map(|it| it.bytes));
    assert!((100..all.len() - 100).contains(&left.len()) && bytes(&left) < bytes(&all));
    let sums = |events: usize, bytes: u64| json!({ "events": events, "bytes": bytes });
    assert_eq!(told["total"], sums(all.len(), bytes(&all)));
    let policy = &told["policies"][0];
    assert_eq!(policy["after"], sums(left.len(), bytes(&left)));
    // The rows add up, including the row of the rule that matches nothing and the row "no rule".
    let rows = policy["rules"].as_array().unwrap();
    let sum = |when: &str, of: &str| rows.iter().map(|row| row[when][of].as_u64().unwrap()).sum();
    let all_rows = |when| sums(usize::try_from(sum(when, "events")).unwrap(), sum(when, "bytes"));
    assert_eq!((rows.len(), all_rows("before")), (6, told["total"].clone()));
    assert_eq!(all_rows("after"), policy["after"]);
    for row in rows {
        for (share, when) in [("share", "before"), ("share_after", "after")] {
            let part = row[when]["bytes"].as_f64().unwrap() / bytes(&all) as f64;
            assert!((row[share].as_f64().unwrap() - part).abs() < 1e-9, "{row}");
        }
    }
    // The command counts events that were recorded at a lower level than the policy asks for.
    let below = all.iter().map(|event| parsed(event)).filter(|event| {
        let verb = event["verb"].as_str().unwrap();
        verb == "create" && event["level"] == "Metadata" && event["stage"] != "RequestReceived"
    });
    assert_eq!(rows[3]["recorded_below"], below.count());
}

#[test]
fn the_table_has_a_line_for_each_rule_and_says_which_never_matched() {
    let place = Place::new(&audit_log());
    let said = place.cost(&["events"]);
    said.assert(
        0,
        &[
            "input: 495 events, ",
            "\npolicy.yaml: leaves ",
            "\nRULE         LEVEL            EVENTS",
            "\n1 (line 6)   None ",
            "\nno rule      None ",
            "\nrules that never matched: 2 (line 8)\n",
            "is not in the input.\n",
        ],
    );
}

#[test]
fn two_policies_are_compared() {
    let place = Place::new(&audit_log());
    place.write(
        "all.yaml",
        b"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [level: Metadata]\n",
    );
    let told = place.json(&["events", "--against", "all.yaml"]);
    let [first, other] = [&told["policies"][0], &told["policies"][1]];
    let number = |value: &Value, name: &str| value["after"][name].as_u64().unwrap();
    let page = page();
    for (path, value) in
        [("", &told), ("policies[].", first), ("policies[].rules[].", &first["rules"][0])]
    {
        for field in value.as_object().unwrap().keys().filter(|field| *field != "policies") {
            let is_told = field == "rules" || page.contains(&format!("`{path}{field}`"));
            assert!(is_told, "the page has no field {path}{field}");
        }
    }
    let said = place.cost(&["events", "--against", "all.yaml"]);
    let events = number(other, "events") - number(first, "events");
    let bytes = number(other, "bytes") - number(first, "bytes");
    let difference = format!("\ndifference: +{events} events, +{bytes} bytes\n");
    said.assert(0, &["\nall.yaml: leaves 495 events", &difference]);
}

#[test]
fn every_form_of_input_gives_the_same_figures() {
    let keys = Keys::new();
    let (server, spool) = (S3::start(|| Mood::Stores), Spool::new());
    let events = all_events();
    let place = Place::new(&lines(&events));
    let plain = place.json(&["events"]);
    let figures = |told: &Value| {
        let mut told = told.clone();
        told["policies"][0]["file"].take();
        told
    };
    let said =
        said_to(&lines(&events), &["policy", "cost", "policy.yaml", "-", "--json"], place.0.path());
    assert_eq!(figures(&serde_json::from_str(&said.stdout).unwrap()), figures(&plain));

    // The input is the directory of a running relay, and then the objects that it has stored.
    let config = format!(
        "{BASE}{}{}",
        spool.queue(""),
        keys.output(server.address(), "compression = \"zstd\"\nobject_age = \"100ms\"\n")
    );
    let relay = Relay::start(&config);
    post_corpus(&relay);
    assert_eq!(figures(&place.json(&[text(spool.path())])), figures(&plain));
    relay.wait_until_delivered(PATIENCE * 2);
    let mut words = Vec::new();
    for (index, object) in server.store().objects.values().enumerate() {
        place.write(&format!("{index}.jsonl.zst"), object);
        words.push(format!("{index}.jsonl.zst"));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(figures(&place.json(&words)), figures(&plain));
    relay.finish(Backlog::Empty);
}

#[test]
fn lines_that_cannot_be_read_are_counted_and_fail_the_command() {
    let log = audit_log();
    let place = Place::new(&[&log[..], b"{\"kind\":\"Pod\"}\nnot JSON\n", &log[..]].concat());
    let said = place.cost(&["events"]);
    said.assert(
        1,
        &[
            "input: 990 events, ",
            "events, line 496: skipped: ",
            "not in the figures: 2 lines that are not events",
        ],
    );
    place.write("many", &b"x\n".repeat(5000));
    let said = place.cost(&["many", "--json"]);
    said.assert(1, &["5000 lines that are not events", "\"bad_lines\": 5000"]);
    assert!(said.stderr.lines().count() < 20, "{}", said.stderr);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &log).unwrap();
    let mut gzip = gzip.finish().unwrap();
    gzip.truncate(gzip.len() / 2);
    place.write("cut.gz", &gzip);
    place
        .cost(&["cut.gz"])
        .assert(1, &["1 of the files could not be read to their ends", "zip data are cut off"]);
}

#[test]
fn wrong_usage_is_refused_before_anything_is_read() {
    let place = Place::new(b"");
    place.cost(&[]).assert_refused("<INPUT>");
    place.cost(&["none"]).assert_refused("none: cannot read the events: ");
    place.cost(&["-", "-"]).assert_refused("only once");
    place.cost(&["."]).assert_refused("holds no queue");
    place.cost(&["events", "--relay", "http://127.0.0.1:1"]).assert_refused("--relay");
    place.write("policy.yaml", b"rules: [level: Metdata]\n");
    place.cost(&["events"]).assert_refused("did you mean Metadata?");
    said(&["policy", "advise", "--cut", "0", "events"], place.0.path()).assert_refused("60%");
}

/// Numbers about no events would look as if the aim had been reached.
#[test]
fn an_input_without_events_fails_both_commands() {
    let place = Place::new(b"");
    place.write("bad", b"\0\xff\n");
    let advise = |file: &str| said(&["policy", "advise", "--cut", "9%", file], place.0.path());
    place.cost(&["events"]).assert(1, &["input: 0 events", "there are no events in the input"]);
    place.cost(&["bad"]).assert(1, &["not in the figures: 1 line that is not an event\n"]);
    for (file, words) in [("events", "there are no events in the input"), ("bad", "1 line that")] {
        let said = advise(file);
        said.assert(1, &[words]);
        assert_eq!(said.stdout, "");
    }
}

#[test]
fn a_signal_ends_the_command_with_the_figures_so_far() {
    let place = Place::new(b"");
    let path = place.0.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let mut running =
        spawn_command(&["policy", "cost", "policy.yaml", "pipe"], place.0.path(), &[]);
    // The pipe stays open, so the command waits for more.
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut pipe, &audit_log()).unwrap();
    std::io::Write::write_all(&mut pipe, &audit_log()).unwrap();
    running.signal(libc::SIGINT);
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("not in the figures: 0 lines that are not events; interrupted"),
        "{stderr}"
    );
    drop(pipe);
}

/// The beginning of each event in an audit.log. Of this, the webhook sends only the brace.
const LOGGED: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

#[test]
fn an_audit_log_costs_what_the_webhook_sends_of_it() {
    let log = audit_log();
    let sent = String::from_utf8(log.clone()).unwrap();
    let sent = sent.replace(std::str::from_utf8(LOGGED).unwrap(), "{");
    let place = Place::new(&log);
    place.write("sent", sent.as_bytes());
    let [mut of_log, mut of_sent] = ["events", "sent"].map(|file| place.json(&[file]));
    assert_eq!(of_log["unsent"], json!({ "events": 495, "bytes": 495 * 46 }));
    assert_eq!(of_sent["unsent"], json!({ "events": 0, "bytes": 0 }));
    for told in [&mut of_log, &mut of_sent] {
        told["unsent"].take();
    }
    assert_eq!(of_log, of_sent);
    assert_eq!(of_sent["total"]["bytes"], sent.len() - 495);
    place.cost(&["events"]).assert(0, &["\nnot counted: 22,770 bytes, the `kind` and"]);
    assert!(!place.cost(&["sent"]).stdout.contains("not counted"));
    let advise = |file| said(&["policy", "advise", "--cut", "20%", file], place.0.path()).stdout;
    assert_eq!(advise("events"), advise("sent"));
}

/// Returns batches of random events from the recorded log.
fn hour(random: &mut fastrand::Rng, events: usize) -> Vec<Vec<Vec<u8>>> {
    let log = audit_log();
    let log: Vec<Vec<u8>> = log
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| [b"{", line.strip_prefix(LOGGED).unwrap()].concat())
        .collect();
    let mut batch = || (0..400).map(|_| log[random.usize(..log.len())].clone()).collect();
    (0..events / 400).map(|_| batch()).collect()
}

/// Method: two hours of events are drawn at random from the recorded log. The share that the
/// command gives for the first hour must be right for the second, which goes through a relay with
/// the policy.
#[test]
fn the_cost_of_one_hour_is_that_of_the_next_within_two_percent() {
    let mut random = fastrand::Rng::with_seed(32);
    let [first, next] = [(); 2].map(|()| hour(&mut random, 20_000));
    let place = Place::new(&lines(&first.concat()));
    let told = place.json(&["events"]);
    let share = share_after(&told);
    let before = bytes(&next.concat());
    let body = |events: &Vec<Vec<u8>>| {
        let items = events.iter().map(|event| std::str::from_utf8(event).unwrap());
        let items = items.collect::<Vec<_>>().join(",");
        format!(r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{items}]}}"#)
            .into_bytes()
    };
    let left = left(&place.0.path().join("policy.yaml"), next.iter().map(body));
    let (expected, is) = (share * before as f64, bytes(&left) as f64);
    println!("expected {expected:.0} bytes, left {is:.0}: {:+.2} %", (expected / is - 1.0) * 100.0);
    assert!((expected / is - 1.0).abs() < 0.02, "{expected} for {is}");
}

#[test]
fn the_examples_of_the_page_are_what_the_commands_print() {
    let place = Place::new(b"");
    place.write("audit.log", &audit_log());
    let policy = std::fs::read(repository().join("tests/policies/ibm-default.yaml")).unwrap();
    place.write("policy.yaml", &policy);
    for words in ["policy cost policy.yaml audit.log", "policy advise --cut 35% audit.log"] {
        let said = said(&words.split(' ').collect::<Vec<_>>(), place.0.path());
        let example = format!("$ kube-audit-forwarder {words}\n{}```\n", said.stdout);
        assert!(page().contains(&example), "{example}");
    }
}

/// Returns the recorded update of a Lease, changed to this user, verb and object.
fn written_by(user: &str, verb: &str, path: &str, object: &Value) -> Value {
    let log = audit_log();
    let mut recorded = log.split(|byte| *byte == b'\n').map(parsed).find(|event| {
        event["verb"] == "update"
            && event["objectRef"]["resource"] == "leases"
            && event["stage"] == "ResponseComplete"
    });
    let event = recorded.as_mut().unwrap();
    event["user"] = json!({ "username": user, "groups": ["system:authenticated"] });
    if user.starts_with("system:node:") {
        event["user"]["groups"] = json!(["system:nodes", "system:authenticated"]);
    }
    event["verb"] = json!(verb);
    event["requestURI"] = json!(path);
    event["objectRef"] = object.clone();
    event["responseStatus"] = json!({ "metadata": {}, "code": 200 });
    event.take()
}

/// Method: in an hour of recorded events, components of the cluster, service accounts of tenants
/// and users make the same writes. The advised policy must drop the routine writes of the
/// components and no others.
#[test]
fn an_hour_gives_rules_for_what_the_clusters_own_components_write() {
    const NODE: &str = "system:node:one";
    const SCHEDULER: &str = "system:kube-scheduler";
    const CONTROLLER: &str = "system:serviceaccount:kube-system:namespace-controller";
    let lease = (
        "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
        json!({ "resource": "leases", "namespace": "a", "name": "b", "apiGroup": "coordination.k8s.io" }),
    );
    let events = ("/api/v1/namespaces/a/events", json!({ "resource": "events", "namespace": "a" }));
    let pods = ("/api/v1/namespaces/a/pods", json!({ "resource": "pods", "namespace": "a" }));
    let write = |user: &str, verb: &str, (path, object): &(&str, Value)| {
        written_by(user, verb, path, object)
    };
    let dropped = [
        write(NODE, "update", &lease),
        write("system:apiserver", "update", &lease),
        write(NODE, "create", &events),
        write(SCHEDULER, "create", &events),
        write(SCHEDULER, "patch", &events),
        write(CONTROLLER, "deletecollection", &pods),
    ];
    let mut kept = vec![
        write(CONTROLLER, "deletecollection", &events),
        write(SCHEDULER, "delete", &events),
        write(CONTROLLER, "delete", &pods),
    ];
    for user in
        ["ada", "system:admin", "system:serviceaccount:a:b", "system:serviceaccount:openshift-a:b"]
    {
        kept.push(write(user, "update", &lease));
        kept.push(write(user, "create", &events));
        kept.push(write(user, "deletecollection", &pods));
    }
    let mut hour: Vec<Vec<u8>> =
        audit_log().split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    hour.retain(|line| !line.is_empty());
    let lines_of = |events: &[Value]| {
        events.iter().map(|event| event.to_string().into_bytes()).collect::<Vec<_>>()
    };
    (0..60).for_each(|_| hour.extend(lines_of(&dropped)));
    hour.extend(lines_of(&kept));
    let place = Place::new(&lines(&hour));
    let said = said(&["policy", "advise", "--cut", "100%", "events"], place.0.path());
    for (verbs, user, whom) in [
        ("update", "system:nodes", "the kubelets, as members of the group system:nodes"),
        ("update", "system:apiserver", "a component of the control plane"),
        ("create and patch", "system:nodes", "the kubelets, as members of the group system:nodes"),
        ("create and patch", SCHEDULER, "a component of the control plane"),
        ("deletecollection", CONTROLLER, "a service account of kube-system"),
    ] {
        let words = format!("No longer seen: {verbs} of these by {user}.\n# Concerns {whom}.\n");
        assert!(said.stdout.contains(&words), "{words}\n{}", said.stdout);
    }
    place.write("policy.yaml", said.stdout.as_bytes());
    for (events, after) in [(&dropped[..], 0), (&kept[..], kept.len())] {
        place.write("events", &lines(&lines_of(events)));
        assert_eq!(place.json(&["events"])["policies"][0]["after"]["events"], json!(after));
    }
}

#[test]
fn an_advice_is_a_policy_that_saves_what_it_says() {
    let place = Place::new(&lines(&all_events()));
    let advise = |cut: &str| said(&["policy", "advise", "--cut", cut, "events"], place.0.path());
    for cut in ["10%", "40"] {
        let said = advise(cut);
        said.assert(0, &["# Rules: ", "% is reached.\n"]);
        place.write("policy.yaml", said.stdout.as_bytes());
        let told = place.json(&["events"]);
        let saved = 1.0 - share_after(&told);
        assert!(saved >= cut.trim_end_matches('%').parse::<f64>().unwrap() / 100.0, "{saved}");
        let words = format!("Saved: {:.1} % (", saved * 100.0);
        assert!(said.stdout.contains(&words), "{words}: {}", said.stdout);
    }
    let said = advise("100%");
    said.assert(1, &["% is NOT reached.", "the aim of 100 % is not reached: above the floor, "]);
    place.write("policy.yaml", said.stdout.as_bytes());
    // These events must remain: writes other than updates of Leases, and all events about Secrets,
    // with impersonation, or refused with 401 or 403.
    let kept = left(&place.0.path().join("policy.yaml"), corpus().into_iter().map(|it| it.bytes));
    let count = |events: &[Vec<u8>]| {
        let is_kept = |event: &&Vec<u8>| {
            let event = parsed(event);
            let is_read = ["get", "list", "watch"].contains(&event["verb"].as_str().unwrap());
            let code = event["responseStatus"]["code"].as_u64();
            let is_routine =
                event["verb"] == "update" && event["objectRef"]["resource"] == "leases";
            !is_read && !is_routine
                || event["objectRef"]["resource"] == "secrets"
                || event.get("impersonatedUser").is_some()
                || [Some(401), Some(403)].contains(&code)
        };
        events.iter().filter(is_kept).count()
    };
    assert_eq!(count(&kept), count(&all_events()));
    assert!(count(&kept) > 100);
}
