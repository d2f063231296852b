//! The page about `/status` as JSON. Its tables are generated from the types of `/status`, and list
//! exactly the fields that a relay shows.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::corpus::{lease_update, list_of};
use crate::support::generated::{self, wrapped};
use crate::support::prelude::*;

const PAGE: &str = "docs/reference/status-json.md";

/// The files with the types of `/status`.
const TYPES: [&str; 2] =
    ["crates/telemetry/src/status.rs", "crates/telemetry/src/status/verdict.rs"];

#[test]
fn the_page_lists_each_kind_of_finding() {
    let types = std::fs::read_to_string(repository().join(TYPES[1])).unwrap();
    let (_, kinds) = types.split_once("pub enum Kind {").unwrap();
    let kinds = kinds.split("\n}\n").next().unwrap();
    let named = kinds.lines().filter_map(|line| line.trim().strip_suffix(','));
    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    for kind in named.filter(|it| *it != "Other") {
        let capital = |(at, it): (usize, char)| match it.is_ascii_uppercase() {
            true if at > 0 => format!("_{}", it.to_ascii_lowercase()),
            _ => it.to_ascii_lowercase().to_string(),
        };
        let name: String = kind.char_indices().map(capital).collect();
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}

/// The section of the page that lists the fields of another route.
const HISTORY: &str = "/status/history";

/// Returns the fields that the page lists, by section. For example, `outputs[]` lists the fields of
/// an output, and the section "" those of the process. A heading can name two objects.
fn listed() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    let mut sections = BTreeMap::<String, BTreeSet<String>>::new();
    let mut of_heading = vec![String::new()];
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let names = heading.split(':').next().unwrap_or_default();
            of_heading = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            if of_heading.is_empty() {
                of_heading.push(String::new());
            }
        }
        let cell = line.strip_prefix("| `").and_then(|row| row.split('|').next());
        for field in cell.into_iter().flat_map(|cell| cell.split(", ")) {
            let field = field.trim().trim_matches('`').to_owned();
            for section in &of_heading {
                let fields = sections.entry(section.clone()).or_default();
                assert!(fields.insert(field.clone()), "{line} again");
            }
        }
    }
    sections
}

/// Adds the fields of `value`, which is at `path`, to `found`. If the page lists a field as a
/// whole, the members of the field are not added.
fn collect(
    value: &Value,
    path: &str,
    listed: &BTreeMap<String, BTreeSet<String>>,
    found: &mut BTreeMap<String, BTreeSet<String>>,
) {
    let (section, within) = listed
        .keys()
        .filter_map(|section| Some((section.clone(), path.strip_prefix(section.as_str())?)))
        .max_by_key(|(section, _)| section.len())
        .map(|(section, within)| (section, within.trim_start_matches('.')))
        .unwrap();
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    if !within.is_empty() && listed[&section].contains(within) {
        found.entry(section).or_default().insert(within.to_owned());
        return;
    }
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                collect(member, &join(key), listed, found);
            }
        }
        Value::Array(items) => {
            for item in items {
                collect(item, &format!("{path}[]"), listed, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            found.entry(section).or_default().insert(within.to_owned());
        }
    }
}

/// A field of a type: its name in JSON, its type, and the text of its comment.
struct Field {
    name: String,
    kind: String,
    meaning: String,
}

/// Returns the fields of each struct in [`TYPES`].
fn types() -> BTreeMap<String, Vec<Field>> {
    let mut types = BTreeMap::<String, Vec<Field>>::new();
    for file in TYPES {
        let source = std::fs::read_to_string(repository().join(file)).unwrap();
        let (mut name, mut comment, mut renamed) = (None, Vec::new(), None);
        for line in source.lines() {
            if let Some(rest) = line.strip_prefix("pub struct ") {
                name = rest.split([' ', '(']).next().map(str::to_owned);
            } else if line == "}" {
                name = None;
            } else if let Some(words) = line.strip_prefix("    /// ") {
                comment.push(words.to_owned());
            } else if let Some(rest) = line.strip_prefix("    #[serde(rename = \"") {
                renamed = rest.split('"').next().map(str::to_owned);
            } else if let Some(rest) = line.strip_prefix("    pub ")
                && let (Some(name), Some((field, kind))) = (&name, rest.split_once(": "))
            {
                let meaning = std::mem::take(&mut comment).join(" ").replace("`None`", "`null`");
                let name_in_json = renamed.take().unwrap_or_else(|| field.to_owned());
                let meaning = without_what_the_head_says(&meaning);
                let kind = kind.trim_end_matches(',').to_owned();
                let field = Field { name: name_in_json, kind, meaning };
                types.entry(name.clone()).or_default().push(field);
            } else if !line.starts_with("    #[") {
                comment.clear();
            }
        }
    }
    types
}

/// Leaves out the unit of a span of time, and that `null` means that there is nothing to show. The
/// head of the page says both.
fn without_what_the_head_says(meaning: &str) -> String {
    let mut meaning = meaning.to_owned();
    for said in [
        "; `null` if there was none since the start.",
        "; `null` if there was none.",
        "; `null` if there is none yet.",
        "; `null` if there is none.",
        "; `null` if there are none.",
        "; `null` if none is planned.",
        "; `null` if none did.",
        "; `null` if there is no limit.",
        "; `null` if nothing is wrong.",
        "; `null` if it is not.",
        "; `null` if it can.",
        ", in seconds.",
    ] {
        if let Some(rest) = meaning.strip_suffix(said) {
            meaning = format!("{rest}.");
        }
    }
    meaning
}

/// Returns the page with new tables and lists. A comment on the page names the types of a table,
/// each with the prefix of its fields. A field whose type has its own table gets no row.
fn generated(page: &str) -> String {
    let types = types();
    let marked = |line: &str, start: &str| {
        let inner = line.strip_prefix("<!-- ")?.strip_prefix(start)?.strip_suffix(" -->")?;
        Some(inner.split(", ").map(str::to_owned).collect::<Vec<_>>())
    };
    let of_tables = page.lines().filter_map(|line| marked(line, "fields: ")).flatten();
    let with_tables: BTreeSet<String> =
        of_tables.map(|it| it.split(' ').next().unwrap_or_default().to_owned()).collect();
    let has_row = |field: &&Field| {
        let inner = field.kind.trim_start_matches("Option<").trim_start_matches("Vec<");
        !with_tables.contains(inner.trim_end_matches('>'))
    };
    let (mut text, mut is_old) = (String::new(), false);
    for line in page.lines() {
        is_old &= line != END;
        if is_old {
            continue;
        }
        text.push_str(&format!("{line}\n"));
        let (names, is_table) = match (marked(line, "fields: "), marked(line, "list: ")) {
            (Some(names), _) => (names, true),
            (None, Some(names)) => (names, false),
            (None, None) => continue,
        };
        is_old = true;
        text.push_str(if is_table { "\n| field | meaning |\n|---|---|\n" } else { "\n" });
        for part in names {
            let (name, prefix) = part.split_once(' ').unwrap_or((&part, ""));
            for Field { name, meaning, .. } in types[name].iter().filter(has_row) {
                text.push_str(&match is_table {
                    true => format!("| `{prefix}{name}` | {} |\n", meaning.replace('|', "\\|")),
                    false => wrapped(&format!("- `{name}`: {meaning}"), "  "),
                });
            }
        }
        text.push('\n');
    }
    text
}

/// The line below a generated table or list.
const END: &str = "<!-- end of fields -->";

#[test]
fn the_page_of_the_status_is_generated_from_its_types() {
    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    let generated = generated(&page);
    assert!(generated.matches("\n| `").count() > 100, "{generated}");
    generated::assert_file(PAGE, &generated);
}

/// Starts a relay, sends requests to it, and returns it with its status.
fn started(config: &str, listeners: usize) -> (Relay, Value) {
    let relay = Relay::with(config).listeners(listeners).start();
    let plain = relay.listeners()[0].1;
    assert_eq!(http::post(plain, "/", "application/json", b"no JSON").unwrap().status, 400);
    let update = list_of(&[lease_update("apiserver-wlv32tlttr4jl3gtroqexyxapa")]);
    assert_accepted(&http::post(plain, "/", "application/json", &update).unwrap(), 1);
    // A request without TLS is a failed handshake for a listener with TLS.
    let with_tls = relay.listeners().get(1).map(|(_, address)| *address);
    if let Some(address) = with_tls {
        assert!(http::post(address, "/", "application/json", b"{}").is_err());
    }
    // The listeners open a moment before `/status` shows them.
    let status = wait_for("the end of the start", PATIENCE, || {
        let status = http::get(relay.admin(), "/status").unwrap().json();
        let is_seen = with_tls.is_none() || !status["last_tls_failure"].is_null();
        (status["started"] == true && is_seen).then_some(status)
    });
    (relay, status)
}

/// Method: a relay has one of each: a listener with TLS, and so a certificate; a refused request; a
/// kube-apiserver; and a source, if Kafka is built in. A second relay has evidence with a witness,
/// which a relay with a source cannot have.
#[test]
fn the_page_of_the_status_lists_the_fields_that_a_relay_shows() {
    let certificates = Certificates::new();
    let sink = HttpSink::accepting();
    let output = format!(
        "[[output]]\nname = \"out\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n",
        sink.address()
    );
    let source = if cfg!(feature = "kafka") {
        "[[source]]\nname = \"topic\"\ntype = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]\n\
         topic = \"audit\"\ngroup = \"relays\"\n"
    } else {
        ""
    };
    let config = format!(
        "{BASE}[[listener]]\naddress = \"127.0.0.1:0\"\n\
         {}[queue]\nacknowledge = \"delivered\"\n{output}{source}",
        certificates.server.tls(),
    );
    let (relay, mut status) = started(&config, 2);
    let directory = TempDir::new().unwrap();
    let (_witness, evidence) = Witness::of_a_log(directory.path());
    let (recording, of_recording) = started(&format!("{BASE}{output}{evidence}"), 1);
    assert!(status["evidence"].is_null(), "{status}");
    status["evidence"] = of_recording["evidence"].clone();

    let (mut listed, mut found) = (listed(), BTreeMap::new());
    let of_history = listed.remove(HISTORY).expect("the section of the history");
    collect(&status, "", &listed, &mut found);
    if !cfg!(feature = "kafka") {
        assert!(listed.remove("sources[]").is_some_and(|fields| !fields.is_empty()));
    }
    assert_eq!(found, listed, "left is what the relay shows, right what {PAGE} lists");

    recording.signal(libc::SIGHUP);
    recording.wait_for_log("config reloaded", PATIENCE);
    let history = wait_for("the reload in the history", PATIENCE, || {
        let history = http::get(recording.admin(), HISTORY).unwrap().json();
        (history["reloads"] != serde_json::json!([])).then_some(history)
    });
    assert_eq!(fields_of_history(&history), of_history, "left is {HISTORY}, right {PAGE}");
    recording.finish(Backlog::Empty);
    relay.finish(Backlog::Empty);
}

/// Returns the fields of the history as the page lists them. A line of points is one field. `NAME`
/// replaces the name of each output.
fn fields_of_history(history: &Value) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for (name, value) in history.as_object().unwrap() {
        match (&**name, value) {
            ("reloads", Value::Array(reloads)) => {
                let of = |reload: &Value| reload.as_object().unwrap().clone().into_iter();
                let keys = reloads.iter().flat_map(of).map(|(key, _)| format!("reloads[].{key}"));
                fields.extend(keys);
            }
            ("outputs", Value::Object(outputs)) => {
                fields.insert(name.clone());
                let of = |output: &Value| output.as_object().unwrap().clone().into_iter();
                let lines = outputs.values().flat_map(of);
                fields.extend(lines.map(|(key, _)| format!("outputs.NAME.{key}")));
            }
            _ => {
                fields.insert(name.clone());
            }
        }
    }
    fields
}
