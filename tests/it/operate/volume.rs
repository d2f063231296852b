//! `GET /status/volume`, `volume` and `top --by`: who causes the incoming bytes.

use crate::support::prelude::*;

const PAGE: &str = "docs/operating/volume.md";

/// Returns a list of `events` events of this user, each with a filler of `bytes` bytes.
fn batch(user: &str, events: usize, bytes: usize) -> Vec<u8> {
    let event = |number: usize| {
        format!(
            r#"{{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":"{number:036}","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/prod/pods","verb":"create","user":{{"username":"{user}"}},"userAgent":"curl/8","objectRef":{{"resource":"pods","namespace":"prod","apiVersion":"v1"}},"requestObject":"{:x<bytes$}","stageTimestamp":"2026-01-01T00:00:00Z"}}"#,
            ""
        )
    };
    let events: Vec<_> = (0..events).map(event).collect();
    format!(
        r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{}},"items":[{}]}}"#,
        events.join(",")
    )
    .into_bytes()
}

fn volume(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status/volume").unwrap().json()
}

/// Returns the names of a dimension in the last hour, and their bytes and events.
fn rows(volume: &Value, by: &str) -> Vec<(String, u64, u64)> {
    let rows = volume["1h"]["by"][by]["rows"].as_array().unwrap().iter();
    let row = |row: &Value| {
        let name: Vec<_> =
            row["name"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        (name.join(" "), row["bytes"].as_u64().unwrap(), row["events"].as_u64().unwrap())
    };
    rows.map(row).collect()
}

#[test]
fn at_a_low_rate_every_event_counts_and_the_figures_are_exact() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&format!("{BASE}{}", sink.output("o", "")));
    assert_eq!(volume(&relay)["1h"]["bytes"], 0);
    assert_accepted(&relay.post(&batch("alice", 3, 2000)), 3);
    assert_accepted(&relay.post(&batch("bob\\u001b[31m\\u202e", 20, 10)), 20);
    assert_eq!(relay.post(b"no JSON").status, 400);
    let volume = volume(&relay);
    let hour = &volume["1h"];
    assert_eq!(hour["by"], volume["24h"]["by"]);
    assert_eq!((&hour["events"], &hour["read_events"]), (&json!(23), &json!(23)));
    let users = rows(&volume, "user");
    let bob = r"bob\u{1b}[31m\u{202e}";
    let found: Vec<_> = users.iter().map(|(name, _, events)| (&**name, *events)).collect();
    assert_eq!(found, [(bob, 20), ("alice", 3)]);
    assert_eq!(users.iter().map(|(_, bytes, _)| bytes).sum::<u64>(), hour["bytes"]);
    assert_eq!(rows(&volume, "cause")[1].0, "alice create pods");
    assert_eq!(
        rows(&volume, "namespace"),
        [("prod".to_owned(), hour["bytes"].as_u64().unwrap(), 23)]
    );
    assert_eq!(rows(&volume, "deprecated"), []);
    assert_eq!(rows(&volume, "code")[0].0, "");
    for row in hour["by"]["user"]["rows"].as_array().unwrap() {
        assert_eq!((&row["bytes_error"], &row["events_error"]), (&json!(0), &json!(0)));
    }
    relay.finish(Backlog::Empty);
}

/// Method: the consumer is down, and senders wait for its acknowledgement. They get a 503, and no
/// output has begun to send their batch.
#[test]
fn a_batch_that_is_not_accepted_counts_for_nobody() {
    let mut sink = HttpSink::accepting();
    sink.close();
    let queue = "[queue]\nacknowledge = \"delivered\"\ndelivered_timeout = \"200ms\"\n";
    let more = "batch = { max_events = 1 }\nconcurrency = 1\n";
    let relay = Relay::start(&format!("{BASE}{}{queue}", sink.output("o", more)));
    for _ in 0..3 {
        assert_eq!(relay.post(&batch("alice", 50, 100)).status, 503);
    }
    assert_eq!(volume(&relay)["1h"]["events"], 0);
    sink.reopen();
    wait_until("the consumer", PATIENCE, || relay.post(&batch("alice", 2, 100)).status == 200);
    assert_eq!(volume(&relay)["1h"]["events"], 2);
    relay.finish(Backlog::Empty);
}

/// The command adds up two relays. A relay that does not count is an error, not a smaller sum.
#[test]
fn the_command_adds_relays_up_and_prints_a_table_or_json() {
    let sink = HttpSink::accepting();
    let start = |more: &str| Relay::start(&format!("{BASE}{}{more}", sink.output("o", "")));
    let (first, second, silent) = (start(""), start(""), start("[volume]\nenabled = false\n"));
    for (relay, user, events) in [(&first, "alice", 5), (&second, "alice", 4), (&second, "bob", 1)]
    {
        assert_accepted(&relay.post(&batch(user, events, 100)), events as u64);
    }
    let urls = [&first, &second, &silent].map(|relay| format!("http://{}", relay.admin()));
    let run = |arguments: &[&str]| run_command(&[&["volume"], arguments].concat(), Path::new("/"));
    let text = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let table = text(run(&[&urls[0], &urls[1], "--by", "user"]));
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].contains("10 events, of which 10 were read"), "{table}");
    assert!(lines[1].split_whitespace().eq(["SHARE", "±", "BYTES", "EVENTS", "USER"]), "{table}");
    assert!(lines[2].starts_with("  90.0 %") && lines[2].ends_with("██   alice"), "{table}");
    assert!(lines[3].contains(" 1  ██ ") && lines[3].ends_with(" bob"), "{table}");
    let json = text(run(&[&urls[0], &urls[1], "--json", "--since", "24h"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["events"], &json["by"]["user"]["rows"][1]["name"]),
        (&json!(10), &json!(["bob"]))
    );
    let arguments = ["volume", &urls[0], &urls[2]];
    said(&arguments, Path::new("/")).assert(1, &["volume.enabled = false"]);
    said(&["volume", &urls[0], &urls[1], &urls[0]], Path::new("/")).assert_refused("named twice");
    let screen = ["top", "--once", "--by", "user", &urls[1]];
    let screen = text(run_command(&screen, Path::new("/")));
    assert!(screen.contains("5 events, of which 5 were read"), "{screen}");
    assert!(
        screen.lines().any(|line| line.contains("████") && line.ends_with("alice")),
        "{screen}"
    );
    assert_eq!(volume(&silent), json!({ "enabled": false }));
    for relay in [first, second, silent] {
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_user_whom_a_filter_redacts_is_named_nowhere() {
    let sink = HttpSink::accepting();
    let config = |more: &str| format!("{BASE}{}{more}", sink.output("o", ""));
    let relay = Relay::start(&config("[filter]\nredact = [{ fields = [\"user.username\"] }]\n"));
    assert_accepted(&relay.post(&batch("alice", 2, 100)), 2);
    let body = volume(&relay).to_string();
    assert!(!body.contains("alice") && body.contains("curl/8"), "{body}");
    relay.finish(Backlog::Empty);
}

/// Returns the paths of the fields of a JSON value, with `[]` for the elements of an array.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let key = if path.ends_with(".by") { "DIMENSION" } else { key };
                fields(member, &format!("{path}.{key}"), found);
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| fields(item, &format!("{path}[]"), found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let field = path.trim_start_matches('.').trim_end_matches("[]");
            found.insert(field.replace("1h.", "").replace("24h.", ""));
        }
    }
}

#[test]
fn the_page_lists_each_field_of_the_answer_and_no_other() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&format!("{BASE}{}", sink.output("o", "")));
    assert_accepted(&relay.post(&batch("alice", 1, 0)), 1);
    let (mut found, mut listed) = (BTreeSet::new(), BTreeSet::new());
    fields(&volume(&relay), "", &mut found);
    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    let (_, page) = page.split_once("\n## As JSON\n").unwrap();
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cell = row.split('|').next().unwrap();
        listed.extend(cell.split(", ").map(|field| field.trim().trim_matches('`').to_owned()));
    }
    assert_eq!(found, listed);
    relay.finish(Backlog::Empty);
}
