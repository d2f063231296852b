//! The digest of the config in the entries `start`, `reload` and `stop`. It covers everything in
//! the config in force that decides which events are sent and to where.

use std::collections::BTreeSet;

use super::recorded::Recorded;
use crate::support::prelude::*;

/// Returns the digests of the log's entries, without consecutive repetitions.
fn digests(recorded: &Recorded) -> Vec<String> {
    let directory = recorded.spool.path().display().to_string();
    let shown = run_command(&["evidence", "show", "--json", &directory], Path::new("/")).stdout;
    let text = String::from_utf8(shown).unwrap();
    let digest = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        entry["config_sha256"].as_str().map(str::to_owned)
    };
    let mut digests: Vec<_> = text.lines().filter_map(digest).collect();
    digests.dedup();
    digests
}

/// Method: a filter's user, the URL and a policy come from files. Each file changes in turn, while
/// the text of the config stays the same. A new token and a config that cannot be used must change
/// nothing.
#[test]
fn a_filter_or_destination_that_comes_from_a_file_changes_the_digest() {
    let recorded = Recorded::new();
    let file = |name: &str, content: &str| {
        let path = recorded.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let address = recorded.sink.address();
    let user = file("user", "system:serviceaccount:kube-system:one");
    let url = file("url", &format!("http://{address}/ingest"));
    let token = file("token", "first");
    let none = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n";
    let policy = file("policy.yaml", none);
    let more = format!(
        "bearer_token_file = \"{token}\"\nfilter = {{ policy = \"{policy}\", \
         match = [{{ users = [\"${{file:{user}}}\"] }}] }}\n"
    );
    let config = recorded.config_with(&more, "");
    let plain = format!("\"http://{address}/ingest\"");
    assert!(config.contains(&plain));
    let config = config.replace(&plain, &format!("\"${{file:{url}}}\""));
    let relay = Relay::start(&config);
    relay.reload(&config, "success");
    for (name, content) in [
        ("user", "system:serviceaccount:kube-system:two".to_owned()),
        ("url", format!("http://{address}/elsewhere")),
        ("policy.yaml", none.replace("None", "Metadata")),
    ] {
        file(name, &content);
        relay.reload(&config, "success");
    }
    file("token", "second");
    relay.reload(&config, "success");
    // The config in force is not the one that the file has at the stop.
    relay.reload(&config.replace("[evidence]", "[unknown]"), "error");
    relay.finish(Backlog::Empty);
    let found = digests(&recorded);
    assert_eq!(found.len(), 4, "the start and three changes: {found:?}");
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 4, "{found:?}");
    assert!(found.iter().all(|digest| digest.len() == 64), "{found:?}");
}

/// Method: the text and the files stay the same, and a variable changes.
#[test]
fn a_filter_that_comes_from_a_variable_changes_the_digest() {
    let recorded = Recorded::new();
    let filter = "filter = { match = [{ users = [\"${env:WHO:-nobody}\"] }] }\n";
    let config = recorded.config_with(filter, "");
    for who in ["one", "one", "two", "one"] {
        let relay = Relay::with(&config).variable("WHO", who).start();
        relay.finish(Backlog::Empty);
    }
    let found = digests(&recorded);
    assert!(found.len() == 3 && found[0] == found[2] && found[0] != found[1], "{found:?}");
}
