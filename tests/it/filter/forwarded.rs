//! `[filter]` and `[output.filter]`: only the chosen events are sent, the rest of each event stays
//! byte for byte the same, and every event is delivered or counted. The recipes of the docs run as
//! printed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;

use super::shapes::{all_events, parsed};
use crate::support::peers::{Rsyslog, Security};
use crate::support::prelude::*;

/// The members of an object in their order, each value as written.
type Members = Vec<(String, String)>;

fn members(object: &[u8]) -> Members {
    struct Pairs(Members);
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    mut map: A,
                ) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                        pairs.push((key, value.get().to_owned()));
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    serde_json::from_slice::<Pairs>(object).expect("an object").0
}

fn post_corpus(relay: &Relay) {
    for body in corpus() {
        assert_eq!(relay.post(&body.bytes).status, 200, "{}", body.name);
    }
    relay.wait_until_delivered(PATIENCE);
}

fn filtered(relay: &Relay, action: &str) -> f64 {
    relay.metrics().value("filtered_events_total", &[("output", "consumer"), ("action", action)])
}

/// Posts the whole corpus to a relay whose output has this filter, and waits until it is delivered.
/// Returns the events that the consumer received, and the relay.
fn filter_corpus(filter: &str) -> (Vec<Vec<u8>>, Relay) {
    let sink = HttpSink::accepting();
    let more = format!("concurrency = 1\n{filter}");
    let relay = Relay::start(&to_sink(sink.address(), &more));
    post_corpus(&relay);
    (accepted_events(&sink), relay)
}

fn policy_file(directory: &Path, policy: &str) -> String {
    let file = directory.join("policy.yaml");
    std::fs::write(&file, policy).unwrap();
    text(&file).to_owned()
}

/// Returns the recipes of the page by their headings: the policy, if there is one, and the config.
fn recipes() -> BTreeMap<String, (Option<String>, String)> {
    let page = std::fs::read_to_string(repository().join("docs/filters/recipes.md")).unwrap();
    let block = |text: &str, language: &str| {
        let (_, rest) = text.split_once(&format!("```{language}\n"))?;
        Some(rest.split_once("```").unwrap().0.to_owned())
    };
    let recipe = |text: &str| {
        let (name, _) = text.split_once('\n').unwrap();
        (name.to_owned(), (block(text, "yaml"), block(text, "toml").expect("a config")))
    };
    page.split("\n## ").skip(1).map(recipe).collect()
}

/// Runs a recipe over the corpus as printed, except for the policy's path. Returns the sent events
/// and the relay.
fn run_recipe(beginning: &str) -> (Vec<Vec<u8>>, Relay) {
    let recipes = recipes();
    let (name, (policy, config)) =
        recipes.iter().find(|(name, _)| name.starts_with(beginning)).unwrap_or_else(|| {
            panic!("no recipe {beginning:?} among {:?}", recipes.keys());
        });
    let directory = TempDir::new().unwrap();
    let mut config = config.clone();
    if let Some(policy) = policy {
        let shown = "/etc/kube-audit-forwarder/policy.yaml";
        assert!(config.contains(shown), "{name}");
        config = config.replace(shown, &policy_file(directory.path(), policy));
    }
    filter_corpus(&config)
}

fn is_write(event: &Value) -> bool {
    let verb = event["verb"].as_str().unwrap();
    ["create", "update", "patch", "delete", "deletecollection"].contains(&verb)
}

#[test]
fn every_recipe_is_tested() {
    let names: Vec<String> = recipes().into_keys().collect();
    let tested = [
        "Drop Leases",
        "Lower the level of Secrets",
        "Name the cluster",
        "Stay below",
        "Feed the security",
        "Send writes",
        "Drop the cluster's own reads",
        "Drop the cluster's own routine writes",
    ];
    assert_eq!(names.len(), tested.len(), "{names:?}");
    assert!(tested.iter().all(|it| names.iter().any(|name| name.starts_with(it))), "{names:?}");
}

#[test]
fn recipe_leases_and_health_probes_stay() {
    let (got, relay) = run_recipe("Drop Leases");
    let is_noise = |event: &Value| {
        let path = event["requestURI"].as_str().unwrap().split('?').next().unwrap();
        event["objectRef"]["resource"] == "leases"
            || ["/healthz", "/livez", "/readyz"].iter().any(|probe| path.starts_with(probe))
            || ["/version", "/metrics"].contains(&path)
    };
    let wanted: Vec<_> =
        all_events().into_iter().filter(|event| !is_noise(&parsed(event))).collect();
    assert!(wanted.len() + 20 < all_events().len(), "there is noise in the corpus");
    assert!(got == wanted, "{} events for {}", got.len(), wanted.len());
    assert_eq!(filtered(&relay, "dropped"), (all_events().len() - wanted.len()) as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_what_the_cluster_itself_reads_stays_unless_it_is_about_secrets() {
    let (got, relay) = run_recipe("Drop the cluster's own reads");
    let is_exempt = |event: &Value| {
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let of = &event["objectRef"];
        let is_secret = of["resource"] == "secrets" && of["apiGroup"].is_null();
        let names = ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"];
        let prefixes = ["system:serviceaccount:kube-system:", "system:node:"];
        let is_own =
            names.contains(&user) || prefixes.iter().any(|prefix| user.starts_with(prefix));
        let reads = ["get", "list", "watch"].contains(&event["verb"].as_str().unwrap());
        is_own && reads && !is_secret
    };
    let wanted: Vec<_> =
        all_events().into_iter().filter(|event| !is_exempt(&parsed(event))).collect();
    assert!(wanted.len() + 200 < all_events().len(), "{}", wanted.len());
    assert!(got == wanted, "{} events for {}", got.len(), wanted.len());
    assert_eq!(filtered(&relay, "dropped"), (all_events().len() - wanted.len()) as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_what_the_cluster_itself_writes_stays_if_it_succeeded() {
    let (got, relay) = run_recipe("Drop the cluster's own routine writes");
    let is_exempt = |event: &Value| {
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        let users = ["system:kube-controller-manager", "system:apiserver"];
        users.iter().any(|user| event["user"]["username"] == *user)
            && event["verb"] == "update"
            && event["objectRef"]["resource"] == "leases"
            && (200..300).contains(&code)
    };
    let wanted: Vec<_> =
        all_events().into_iter().filter(|event| !is_exempt(&parsed(event))).collect();
    assert!(wanted.len() < all_events().len(), "{}", wanted.len());
    assert!(got == wanted, "{} events for {}", got.len(), wanted.len());
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_writes_leave_once_each() {
    let (got, relay) = run_recipe("Send writes");
    let is_wanted = |event: &Value| {
        is_write(event) && ["ResponseComplete", "Panic"].contains(&event["stage"].as_str().unwrap())
    };
    let wanted: Vec<_> =
        all_events().into_iter().filter(|event| is_wanted(&parsed(event))).collect();
    assert!((100..all_events().len() - 100).contains(&wanted.len()), "{}", wanted.len());
    assert!(got == wanted, "{} events for {}", got.len(), wanted.len());
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_of_secrets_only_metadata_leaves() {
    let (got, relay) = run_recipe("Lower the level of Secrets");
    let all = all_events();
    assert_eq!(got.len(), all.len());
    let mut lowered = 0;
    for (before, after) in all.iter().zip(&got) {
        let (old, new) = (parsed(before), parsed(after));
        assert_eq!(old["auditID"], new["auditID"]);
        let of = &old["objectRef"];
        let core = of["apiGroup"].is_null();
        let secret = core
            && ["secrets", "configmaps"].iter().any(|it| of["resource"] == *it)
            && of["subresource"].is_null()
            || of["resource"] == "serviceaccounts" && of["subresource"] == "token"
            || of["resource"] == "tokenreviews";
        if secret {
            assert_eq!(new["level"], "Metadata");
            assert!(new["requestObject"].is_null() && new["responseObject"].is_null());
            lowered += usize::from(old["level"] != "Metadata");
        } else {
            assert_eq!(new["level"], old["level"]);
            assert!(!String::from_utf8_lossy(after).contains("\"managedFields\""));
        }
    }
    assert!(lowered > 10, "{lowered}");
    assert!(filtered(&relay, "lowered") >= lowered as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_the_security_team_gets_writes_to_rbac_and_whatever_happens_to_secrets() {
    let (got, relay) = run_recipe("Feed the security");
    let is_wanted = |event: &Value| {
        let of = &event["objectRef"];
        is_write(event) && of["apiGroup"] == "rbac.authorization.k8s.io"
            || of["resource"] == "secrets" && of["apiGroup"].is_null()
    };
    let wanted: Vec<Value> =
        all_events().iter().map(|event| parsed(event)).filter(is_wanted).collect();
    assert!(wanted.len() > 10, "{}", wanted.len());
    let ids = |events: &[Value]| -> Vec<Value> {
        events.iter().map(|event| event["auditID"].clone()).collect()
    };
    let got: Vec<Value> = got.iter().map(|event| parsed(event)).collect();
    assert_eq!(ids(&got), ids(&wanted));
    for body in got.iter().flat_map(|event| [&event["requestObject"], &event["responseObject"]]) {
        assert!(
            body["kind"] != "Secret" || body["data"].as_object().is_none_or(|it| it.is_empty())
        );
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_every_event_says_which_cluster_it_is_of() {
    let (got, relay) = run_recipe("Name the cluster");
    // The output deduplicates, so each event of the corpus is sent once.
    let all = all_events();
    let distinct: BTreeSet<&Vec<u8>> = all.iter().collect();
    assert_eq!(got.len(), distinct.len());
    assert_eq!(filtered(&relay, "duplicate"), (all.len() - distinct.len()) as f64);
    let relay_name = std::env::var("HOSTNAME").unwrap_or_else(|_| "relay".to_owned());
    let mut seen = BTreeSet::new();
    let before = all.iter().filter(|event| seen.insert((*event).clone()));
    for (before, after) in before.zip(&got) {
        let annotations = parsed(after)["annotations"].clone();
        assert_eq!(annotations["kube-audit-forwarder/cluster"], "prod-eu");
        assert_eq!(annotations["kube-audit-forwarder/forwarder"], relay_name.as_str());
        // All other members are unchanged, in the same order.
        let but = |event: &[u8]| -> Members {
            members(event).into_iter().filter(|(key, _)| key != "annotations").collect()
        };
        assert_eq!(but(before), but(after));
        for (key, value) in parsed(before)["annotations"].as_object().into_iter().flatten() {
            assert_eq!(annotations[key], *value);
        }
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn recipe_no_message_is_larger_than_its_consumer_takes() {
    let (got, relay) = run_recipe("Stay below");
    let all = all_events();
    assert_eq!(got.len(), all.len());
    let mut trimmed = 0;
    for (before, after) in all.iter().zip(&got) {
        assert!(after.len() <= 32 * 1024);
        if before.len() <= 32 * 1024 {
            assert!(before == after);
            continue;
        }
        trimmed += 1;
        assert_eq!(parsed(after)["annotations"]["audit.k8s.io/truncated"], "true");
        let but = |event: &[u8]| -> Members {
            let gone = ["annotations", "requestObject", "responseObject"];
            members(event).into_iter().filter(|(key, _)| !gone.contains(&key.as_str())).collect()
        };
        assert_eq!(but(before), but(after));
        assert!(parsed(after)["responseObject"].is_null());
    }
    assert!(trimmed > 1, "{trimmed}");
    assert_eq!(filtered(&relay, "trimmed"), f64::from(trimmed));
    relay.finish(Backlog::Empty);
}

/// Applies the provider's default policy to events that were recorded under its verbose one.
#[test]
fn a_policy_makes_of_verbose_events_what_kube_apiserver_would_have_recorded_under_it() {
    let policy = repository().join("tests/policies/ibm-default.yaml");
    let (got, relay) = filter_corpus(&format!("filter.policy = \"{}\"\n", text(&policy)));
    let is_kept = |event: &Value| {
        let of_user = event["user"]["groups"].as_array().is_some_and(|groups| !groups.is_empty());
        let path = event["requestURI"].as_str().unwrap().split('?').next().unwrap().to_owned();
        let is_noise = event["objectRef"].is_null()
            && of_user
            && (path.starts_with("/api")
                || ["/version", "/healthz", "/readyz", "/livez"].contains(&path.as_str()));
        event["stage"] != "RequestReceived" && !is_noise
    };
    let all = all_events();
    let wanted: Vec<_> = all.iter().filter(|event| is_kept(&parsed(event))).collect();
    assert_eq!(got.len(), wanted.len());
    for (before, after) in wanted.into_iter().zip(&got) {
        let gone = ["requestObject", "responseObject"];
        let expected: Members = members(before)
            .into_iter()
            .filter(|(key, _)| !gone.contains(&key.as_str()))
            .map(|(key, value)| match key.as_str() {
                "level" => (key, "\"Metadata\"".to_owned()),
                _ => (key, value),
            })
            .collect();
        assert_eq!(members(after), expected);
        if parsed(before)["level"] == "Metadata" {
            assert!(before == after);
        }
    }
    relay.finish(Backlog::Empty);
}

/// Returns the creation of a ClusterRoleBinding to cluster-admin, as kube-apiserver 1.36 recorded
/// it. Its body has a `metadata.namespace`. This has no meaning there, but kube-apiserver copied it
/// into `objectRef`.
fn recorded_binding() -> String {
    let file = repository().join("tests/policies/cluster-role-binding.json");
    std::fs::read_to_string(file).unwrap().trim_end().to_owned()
}

/// Posts these events, one in each request, to a relay whose output has this filter, and waits
/// until they are delivered. Returns the events that the consumer received, and the relay.
fn filter_events(filter: &str, events: &[String]) -> (Vec<String>, Relay) {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), &format!("concurrency = 1\n{filter}")));
    for event in events {
        assert_eq!(relay.post(event.as_bytes()).status, 200, "{event}");
    }
    relay.wait_until_delivered(PATIENCE);
    let got = accepted_events(&sink).into_iter().map(|event| String::from_utf8(event).unwrap());
    (got.collect(), relay)
}

/// Method: the same event has different codes, or none.
#[test]
fn events_leave_by_their_code_and_those_without_one_match_none() {
    const STATUS: &str = r#"{"metadata":{},"code":201}"#;
    let recorded = recorded_binding();
    assert!(recorded.contains(STATUS));
    let of = |status: &str| recorded.replacen(STATUS, status, 1);
    let code = |code: &str| of(&format!(r#"{{"metadata":{{}},"code":{code}}}"#));
    let [created, absent, denied] = ["201", "404", "403"].map(code);
    // None of these has a code, but a search of the text would find one in some of them.
    let none =
        ["null", "{}", r#"{"code":"404"}"#, r#"{"code":4040}"#, r#"{"details":{"code":404}}"#];
    let none = none.map(of);
    let all = [&[created.clone(), absent.clone(), denied.clone()], &none[..]].concat();
    let left = |table: &str| {
        let (got, relay) = filter_events(&format!("filter.match = {{ {table} }}\n"), &all);
        relay.finish(Backlog::Empty);
        got
    };
    assert_eq!(left("code = ['404']"), std::slice::from_ref(&absent));
    assert_eq!(left("code = ['400-499', '500']"), [absent.clone(), denied.clone()]);
    assert_eq!(
        left("code = ['400-499'], unless = { code = ['404'] }"),
        std::slice::from_ref(&denied)
    );
    let others = [&[denied], &none[..]].concat();
    assert_eq!(left("unless = { verbs = ['create'], code = ['200-299', '404'] }"), others);
    assert_eq!(left("unless = { verbs = ['get'], code = ['200-299', '404'] }"), all);
}

#[test]
fn a_namespace_in_the_body_hides_no_cluster_wide_object_from_a_policy() {
    let policy = repository().join("tests/policies/quiet-namespace.yaml");
    let binding = recorded_binding();
    let elsewhere = |uri: &str| {
        let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        let changed = binding.replacen(path, uri, 1);
        assert_ne!(changed, binding);
        changed
    };
    let of_rbac = "/apis/rbac.authorization.k8s.io/v1";
    let stay = [
        binding.clone(),
        elsewhere(&format!("{of_rbac}/clusterrolebindings?x=/namespaces/quiet/rolebindings")),
        elsewhere(&format!("{of_rbac}//namespaces/quiet/rolebindings")),
        elsewhere(&format!("{of_rbac}/clusterrolebindings/namespaces/quiet/x")),
        elsewhere(&format!("{of_rbac}/namespaces/QUIET/rolebindings")),
        elsewhere("/"),
        elsewhere("/oapi/v1/namespaces/quiet/rolebindings"),
    ];
    let go = [
        elsewhere(&format!("{of_rbac}/namespaces/quiet/rolebindings")),
        elsewhere(&format!("{of_rbac}/namespaces/%71uiet/rolebindings?a=b\\u0026c=d")),
        elsewhere(&format!("/{of_rbac}/namespaces%2Fquiet/rolebindings/")),
        elsewhere("/api/v1/watch/namespaces/quiet"),
    ];
    let filter = format!("filter.policy = \"{}\"\n", text(&policy));
    let (got, relay) = filter_events(&filter, &[&stay[..], &go].concat());
    assert_eq!(got, stay);
    assert_eq!(filtered(&relay, "dropped"), go.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_match_by_namespace_or_name_believes_the_url_alone() {
    let criteria = [
        ("namespaces = [\"quiet\"]", false),
        ("namespaces = [\"\"]", true),
        ("namespaces = [\"qui*\"]", false),
        ("unless = { namespaces = [\"qui*\"] }", true),
        (
            "resources = [{ group = \"*\", resources = [\"*\"], resource_names = [\"evil\"] }]",
            false,
        ),
        ("resources = [{ group = \"*\", resources = [\"*\"], resource_names = [\"\"] }]", true),
    ];
    let sinks = criteria.map(|_| HttpSink::accepting());
    let outputs = criteria.iter().zip(&sinks).enumerate().map(|(at, ((criteria, _), sink))| {
        output(&format!("o{at}"), sink, &format!("filter.match = {{ {criteria} }}\n"))
    });
    let relay = Relay::start(&format!("{BASE}{}", outputs.collect::<String>()));
    assert_eq!(relay.post(recorded_binding().as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    for ((criteria, leaves), sink) in criteria.iter().zip(&sinks) {
        assert_eq!(accepted_events(sink).len(), usize::from(*leaves), "{criteria}");
    }
    relay.finish(Backlog::Empty);
}

fn output(name: &str, sink: &HttpSink, filter: &str) -> String {
    sink.output(name, &format!("concurrency = 1\n{QUICK}{filter}"))
}

#[test]
fn an_output_without_a_filter_gets_every_byte_beside_one_that_has_one() {
    let (plain, sifted) = (HttpSink::accepting(), HttpSink::accepting());
    let filter = "filter.match = { verbs = [\"delete\"] }\nfilter.max_event_bytes = \"4KiB\"\n";
    let config =
        format!("{BASE}{}{}", output("plain", &plain, ""), output("sifted", &sifted, filter));
    let relay = Relay::start(&config);
    post_corpus(&relay);
    assert!(accepted_events(&plain) == all_events());
    let deletes = all_events().iter().filter(|event| parsed(event)["verb"] == "delete").count();
    assert!(deletes > 3);
    assert_eq!(accepted_events(&sifted).len(), deletes);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_stands_for_all_outputs_adds_to_what_one_says() {
    let sink = HttpSink::accepting();
    let filter = "filter.match = { userGroups = [\"system:authenticated\"], verbs = [\"create\", \"get\"] }\n\
                  filter.annotate = { cluster = \"own\", zone = \"b\" }\n";
    let all = "[filter]\nmatch = [{ verbs = [\"create\"] }, { verbs = [\"watch\"] }]\n\
               annotate = { cluster = \"all\", region = \"eu\" }\n";
    let config = to_sink(sink.address(), &format!("concurrency = 1\n{filter}{all}"));
    let relay = Relay::start(&config);
    post_corpus(&relay);
    let got: Vec<Value> = accepted_events(&sink).iter().map(|event| parsed(event)).collect();
    assert!(got.len() > 10);
    for event in &got {
        assert_eq!(event["verb"], "create");
        let added =
            |name: &str| event["annotations"][format!("kube-audit-forwarder/{name}")].clone();
        assert_eq!([added("cluster"), added("zone"), added("region")], ["own", "b", "eu"]);
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn what_is_sent_again_by_kube_apiserver_leaves_once() {
    let sink = HttpSink::accepting();
    let relay =
        Relay::start(&to_sink(sink.address(), "concurrency = 1\nfilter.deduplicate = \"5m\"\n"));
    let batches: Vec<Vec<u8>> = (0..5).map(|seed| generated_batch(seed, 200, 1200)).collect();
    // An event with the same auditID and other bytes is a different event.
    let other = String::from_utf8(batches[0].clone()).unwrap().replace("\"update\"", "\"delete\"");
    for batch in batches.iter().chain(&batches).map(Vec::as_slice).chain([other.as_bytes()]) {
        assert_eq!(relay.post(batch).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(filtered(&relay, "duplicate"), 1000.0);
    let mut wanted: Vec<_> = batches.iter().flat_map(|batch| events_of(batch)).collect();
    wanted.extend(events_of(other.as_bytes()));
    assert_same_set(&accepted_events(&sink), &wanted);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_policy_that_changes_holds_from_then_on_and_a_broken_one_changes_nothing() {
    const NONE: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n  verbs: [\"update\"]\n- level: Request\n";
    let directory = TempDir::new().unwrap();
    let file = policy_file(directory.path(), &NONE.replace("update", "list"));
    let sink = HttpSink::accepting();
    let filter = format!("concurrency = 1\nfilter.policy = \"{file}\"\n");
    let relay = Relay::start(&to_sink(sink.address(), &filter));
    let post = |seed| {
        assert_eq!(relay.post(&generated_batch(seed, 10, 900)).status, 200);
        relay.wait_until_delivered(PATIENCE);
        accepted_events(&sink).len()
    };
    assert_eq!(post(1), 10);
    policy_file(directory.path(), "rules: [");
    wait_until("the broken one is refused", PATIENCE, || relay.reloads("error") == 1.0);
    // The log line can come after the counter.
    let mistake = format!("{file}:2:1: not YAML");
    wait_until("the mistake is named", PATIENCE, || relay.log_text().contains(&mistake));
    assert_eq!(post(2), 20);
    policy_file(directory.path(), NONE);
    wait_until("the new one is read", PATIENCE, || relay.reloads("success") == 1.0);
    assert_eq!(post(3), 20);
    assert_eq!(filtered(&relay, "dropped"), 10.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn check_names_the_mistakes_of_a_policy_where_they_stand() {
    let directory = TempDir::new().unwrap();
    let policy =
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadat\n  verb: [get]\n";
    let file = policy_file(directory.path(), policy);
    let output = format!("{BASE}[[output]]\nname = \"a\"\ntype = \"stdout\"\n");
    let config = format!(
        "{output}filter.policy = \"{file}\"\n\
         filter.redact = [{{ resources = [\"a/b/c/d\"], fields = [\"auditID\"] }}]\n\
         filter.match = {{ verb = [\"get\"] }}\n"
    );
    let path = directory.path().join("relay.toml");
    std::fs::write(&path, config).unwrap();
    said(&["check", text(&path)], directory.path())
        .assert(2, &[&format!("output[0].filter.policy: {file}:4:10: \"Metadat\" is unknown")])
        .assert(2, &[&format!("output[0].filter.policy: {file}:5:3: "), "relay.toml:10:17: "])
        .assert(2, &["output[0].filter.redact[0].resources[0]: "])
        .assert(2, &["output[0].filter.redact[0].fields[0]: "])
        .assert(2, &["output[0].filter.match[0].verb: unknown key `verb`, did you mean `verbs`?"]);
    let missing = format!("{output}filter.policy = \"{file}.gone\"\n");
    std::fs::write(&path, missing).unwrap();
    for (words, code) in [(&["check"][..], 2), (&["check", "--elsewhere"], 0), (&["run"], 2)] {
        said(&[words, &[text(&path)]].concat(), directory.path()).assert(code, &[]);
    }
}

#[test]
fn an_event_refused_among_filtered_ones_is_lost_alone_and_kept_as_it_came() {
    let refused = events_of(&generated_batch(1, 40, 900))[21].clone();
    let id = parsed(&refused)["auditID"].as_str().unwrap().to_owned();
    let wanted = id.clone();
    let sink = refusing(422, move |event| parsed(event)["auditID"] == *wanted);
    let directory = TempDir::new().unwrap();
    // Each level has a third of the events, so the policy lowers some of them.
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n";
    let filter = format!(
        "filter.policy = \"{}\"\nfilter.deduplicate = \"1m\"\n[dead_letter]\ndirectory = \"{}\"\n",
        policy_file(directory.path(), policy),
        text(&directory.path().join("letters"))
    );
    let relay = Relay::start(&to_sink(sink.address(), &filter));
    for seed in [1, 1, 2] {
        assert_eq!(relay.post(&generated_batch(seed, 40, 900)).status, 200);
    }
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    let lost = metrics.value("error_total", &[("plugin", "consumer")]);
    assert!((1.0..=2.0).contains(&lost), "{lost}");
    assert_eq!(metrics.value("output_events_total", &[("output", "consumer")]), 79.0);
    // The refused event can come a second time. It was not delivered, so it is not a duplicate, and
    // becomes a letter again.
    assert_eq!(filtered(&relay, "duplicate") + lost, 41.0);
    let files = std::fs::read_dir(directory.path().join("letters")).unwrap();
    let letters: String =
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    assert_eq!(letters.lines().count() as f64, lost, "{letters}");
    assert!(letters.contains(std::str::from_utf8(&refused).unwrap()), "{letters}");
    relay.finish(Backlog::Empty);
}

/// Returns the creation of a Secret at level Request that a webhook has patched. The request body
/// has `the-body`, and the patch has `the-patch`.
fn patched_secret() -> String {
    let of_webhook = |name: &str, what: &str| {
        let value = format!(r#"{{"configuration":"injector","webhook":"a.example.com",{what}}}"#);
        format!(
            "{}:{}",
            json!(format!("{name}.webhook.admission.k8s.io/round_0_index_0")),
            json!(value)
        )
    };
    let patch =
        r#""patch":[{"op":"add","path":"/spec/x","value":"the-patch"}],"patchType":"JSONPatch""#;
    format!(
        r#"{{"level":"Request","auditID":"00000000-0000-4000-8000-000000000003","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/secrets","verb":"create","user":{{"username":"ada"}},"objectRef":{{"resource":"secrets","namespace":"shop","apiVersion":"v1"}},"responseStatus":{{"metadata":{{}},"code":201}},"requestObject":{{"kind":"Secret","data":{{"a":"the-body"}}}},"requestReceivedTimestamp":"2026-11-25T10:00:00.000001Z","stageTimestamp":"2026-11-25T10:00:00.000002Z","annotations":{{"authorization.k8s.io/decision":"allow",{},{}}}}}"#,
        of_webhook("mutation", r#""mutated":true"#),
        of_webhook("patch", patch),
    )
}

/// Method: a webhook's patch repeats the body. With each filter that lowers or changes bodies, the
/// event must have the patch if and only if it has the body, and must keep the webhook's name.
#[test]
fn a_webhooks_patch_leaves_only_where_the_body_leaves() {
    let directory = TempDir::new().unwrap();
    let policy = policy_file(
        directory.path(),
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n",
    );
    let without = ["bodies = \"drop\"", "redact = []", &format!("policy = {policy:?}")]
        .map(|filter| (filter.to_owned(), false));
    let with = ["bodies = \"string\"", "managed_fields = \"drop\"", "max_event_bytes = \"64KiB\""]
        .map(|filter| (filter.to_owned(), true));
    for (filter, leaves) in without.into_iter().chain(with) {
        for shape in ["event", "ecs", "ocsf"] {
            let filter =
                format!("format = \"ndjson\"\nfilter.{filter}\nfilter.shape = \"{shape}\"\n");
            let (got, relay) = filter_events(&filter, &[patched_secret()]);
            let [event] = &got[..] else { panic!("{filter}: {got:?}") };
            assert_eq!(event.contains("the-patch"), leaves, "{filter}: {event}");
            assert_eq!(event.contains("the-body"), leaves, "{filter}: {event}");
            assert!(event.contains("\\\"mutated\\\":true"), "{filter}: {event}");
            relay.finish(Backlog::Empty);
        }
    }
}

/// Method: an anonymous client chooses the URI and the user agent of its events, of which one could
/// not become small before.
#[test]
fn what_is_too_large_without_its_bodies_is_cut_and_delivered() {
    let sink = HttpSink::accepting();
    let more = "concurrency = 1\nfilter.max_event_bytes = \"4KiB\"\n";
    let relay = Relay::start(&to_sink(sink.address(), more));
    let list = String::from_utf8(generated_batch(3, 3, 900)).unwrap();
    let agent = format!("\"userAgent\":\"{}\"", "x".repeat(1_000_000));
    let list = list.replacen("\"userAgent\":\"generated/1.0\"", &agent, 1);
    assert_eq!(relay.post(list.as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let (got, sent) = (accepted_events(&sink), events_of(list.as_bytes()));
    assert!(got[1..] == sent[1..]);
    assert!(got[0].len() <= 4096, "{}", got[0].len());
    let (got, sent) = (parsed(&got[0]), parsed(&sent[0]));
    assert_eq!(got["annotations"]["audit.k8s.io/truncated"], "true");
    let agent = got["userAgent"].as_str().unwrap();
    assert!(agent.starts_with("xxx") && agent.ends_with("…[cut, 1000000 bytes]"), "{agent}");
    for part in
        ["auditID", "user", "verb", "requestURI", "objectRef", "sourceIPs", "stageTimestamp"]
    {
        assert_eq!(got[part], sent[part], "{part}");
    }
    assert_eq!(relay.metrics().value("error_total", &[("plugin", "consumer")]), 0.0);
    assert_eq!(filtered(&relay, "trimmed"), 1.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_stays_too_large_however_it_is_cut_is_kept_as_a_dead_letter() {
    let sink = HttpSink::accepting();
    let directory = TempDir::new().unwrap();
    let more = format!(
        "concurrency = 1\nfilter.max_event_bytes = \"1KiB\"\n[dead_letter]\ndirectory = \"{}\"\n",
        text(directory.path())
    );
    let relay = Relay::start(&to_sink(sink.address(), &more));
    let list = String::from_utf8(generated_batch(3, 3, 900)).unwrap();
    // Each of these members keeps at least 128 bytes.
    let names = ["impersonatedUser", "authenticationMetadata", "responseStatus", "userAgent"];
    let long = |name: &&str| format!("\"{name}\":\"{}\"", "x".repeat(2000));
    let long: Vec<_> = names.iter().map(long).collect();
    let list = list.replacen("\"userAgent\":\"generated/1.0\"", &long.join(","), 1);
    assert_eq!(relay.post(list.as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    assert!(accepted_events(&sink) == events_of(list.as_bytes())[1..]);
    let metrics = relay.metrics();
    assert_eq!(metrics.value("error_total", &[("plugin", "consumer")]), 1.0);
    assert_eq!(metrics.value("dead_letter_events_total", &[("output", "consumer")]), 1.0);
    relay.finish(Backlog::Empty);
}

/// The last of these tests needs rsyslog.
mod peers {
    use super::*;

    /// Method: the event of a cluster-wide binding is changed in every member that its sender can
    /// choose, to a value that a `None` rule of the policy names. The filter also deduplicates. The
    /// policy must not hide any variant, and no variant may count as a duplicate.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn nothing_that_its_sender_writes_into_an_event_hides_it() {
        const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- {level: None, namespaces: [quiet, noise]}
- {level: None, resources: [{group: "*", resources: ["*"], resourceNames: [evil, noise]}]}
- {level: None, users: [noise]}
- {level: None, userGroups: [noise]}
- {level: None, verbs: [noise]}
- {level: None, resources: [{group: "*", resources: [noise, "*/noise"]}]}
- {level: None, nonResourceURLs: ["*"]}
- {level: RequestResponse}
"#;
        let directory = TempDir::new().unwrap();
        let file = policy_file(directory.path(), POLICY.trim_start());
        let binding = recorded_binding();
        let with = |from: &str, to: &str| {
            let changed = binding.replacen(from, to, 1);
            assert_ne!(changed, binding, "{from}");
            changed
        };
        let agent = r#""userAgent":"curl/7.88.1""#;
        // All events have the same auditID, because the sender can choose it.
        let events = [
            binding.clone(),
            with(agent, r#""userAgent":"noise""#),
            with(r#""sourceIPs":["127.0.0.1"]"#, r#""sourceIPs":["192.0.2.1","127.0.0.1"]"#),
            with(
                r#""sourceIPs""#,
                r#""impersonatedUser":{"username":"noise","groups":["noise"],"extra":{"noise":["noise"]}},"sourceIPs""#,
            ),
            with(
                r#""namespace":"quiet","name":"evil""#,
                r#""namespace":"noise","name":"noise","uid":"noise","resourceVersion":"1""#,
            ),
            with(
                "clusterrolebindings\"",
                "clusterrolebindings?labelSelector=noise\\u0026fieldSelector=metadata.namespace%3Dnoise\"",
            ),
            with(
                r#""requestObject":{"kind":"ClusterRoleBinding""#,
                r#""requestObject":{"kind":"noise""#,
            ),
            with(
                r#""authorization.k8s.io/reason":"""#,
                r#""authorization.k8s.io/reason":"","noise/noise":"noise""#,
            ),
            with(
                r#""responseStatus":{"metadata":{},"code":201}"#,
                r#""responseStatus":{"metadata":{},"message":"noise","code":201}"#,
            ),
        ];
        let filter = format!(
            "filter.policy = \"{file}\"\nfilter.deduplicate = \"5m\"\nfilter.redact = []\n"
        );
        let (got, relay) = filter_events(&filter, &events);
        assert_eq!(got, events);
        for action in ["dropped", "duplicate", "redacted", "lowered"] {
            assert_eq!(filtered(&relay, action), 0.0, "{action}");
        }
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn credentials_that_can_be_known_leave_by_no_output_that_redacts() {
        const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl-_";
        const SECRET: &str = "hunter2";
        let binding = recorded_binding();
        let of = |from: &str, to: &str| {
            let changed = binding.replacen(from, to, 1);
            assert_ne!(changed, binding, "{from}");
            changed
        };
        let agent = r#""userAgent":"curl/7.88.1""#;
        let uri = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings\"";
        let exec = "/api/v1/namespaces/a/pods/b/exec?command=login";
        let mut events: Vec<String> = [
            ("b4bd698d-36c8-489d-b8c7-72fb93c6539f", TOKEN.to_owned()),
            (agent, format!(r#""userAgent":"x {TOKEN}""#)),
            (
                agent,
                format!(
                    r#""impersonatedUser":{{"username":"a","extra":{{"b":["{TOKEN}"]}}}},{agent}"#
                ),
            ),
            (r#""uid":"uid-admin""#, format!(r#""uid":"uid-admin","extra":{{"{TOKEN}":["b"]}}"#)),
            (
                r#""metadata":{"name":"evil""#,
                format!(r#""metadata":{{"labels":{{"a":"{TOKEN}"}},"name":"evil""#),
            ),
            (
                r#""authorization.k8s.io/reason":"""#,
                format!(r#""authorization.k8s.io/reason":"","a.b.c/d":"{TOKEN}""#),
            ),
            (uri, format!("/{TOKEN}\"")),
            (uri, format!("/api/v1/pods?labelSelector=token%3D{SECRET}\"")),
            (uri, format!("/api/v1/pods?token[]={SECRET}\"")),
            (uri, format!("/api/v1/pods?a=b;token={SECRET}\"")),
            (uri, format!("/api/v1/pods;token={SECRET}\"")),
            (uri, format!("/access_token={SECRET}/a\"")),
            (uri, format!("{exec}\\u0026command=--token={SECRET}\\u0026container=c\"")),
            (uri, format!("{exec}\\u0026command=--password\\u0026command={SECRET}\"")),
            (
                uri,
                format!("{exec}\\u0026command=-H\\u0026command=Authorization%3A+Bearer+{SECRET}\""),
            ),
            (uri, format!("{exec}\\u0026env=DB={SECRET}\\u0026env=LD_PRELOAD=%2F{SECRET}\"")),
            (uri, format!("{exec}\\u0026%65n%76=A%3D{SECRET}\"")),
            (uri, format!("/api/v1/namespaces/a/pods/b/attach?env={SECRET}\"")),
            (uri, format!("/api/v1/namespaces/a/services/b/proxy/exec?a=b\\u0026env=A={SECRET}\"")),
            (uri, format!("/elsewhere?secret={SECRET}\\u0026X-Amz-Signature={SECRET}\"")),
            (uri, format!("/oauth2callback/a?code={SECRET}\\u0026state=b\"")),
        ]
        .iter()
        .map(|(from, to)| of(from, to))
        .collect();
        // Annotations that admission adds to an event about a Secret are removed together with the
        // Secret's data.
        events.push(
            of(r#""resource":"clusterrolebindings""#, r#""resource":"secrets""#)
                .replacen(r#","apiGroup":"rbac.authorization.k8s.io""#, "", 1)
                .replacen(
                    r#""authorization.k8s.io/reason":"""#,
                    &format!(
                        r#""authorization.k8s.io/reason":"","webhook.example.com/a":"{SECRET}""#
                    ),
                    1,
                ),
        );
        let secrets = events.len();
        events.push(binding.clone());
        let (got, relay) = filter_events("filter.redact = []\n", &events);
        assert_eq!(got.len(), events.len());
        assert_eq!(got[secrets], binding);
        for (before, after) in events[..secrets].iter().zip(&got) {
            assert!(before.contains(TOKEN) || before.contains(SECRET), "{before}");
            assert!(!after.contains("eyJ") && !after.contains(SECRET), "{after}");
            // No other part of the event is lost.
            let is_same =
                |name: &str| parsed(before.as_bytes())[name] == parsed(after.as_bytes())[name];
            assert!(
                ["stage", "verb", "sourceIPs", "stageTimestamp"].iter().all(|name| is_same(name))
            );
            assert_eq!(
                before.contains(r#""resource":"secrets""#),
                !parsed(after.as_bytes())["requestObject"].is_object(),
                "{after}"
            );
        }
        assert_eq!(filtered(&relay, "redacted"), secrets as f64);
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn syslog_says_in_its_structured_data_what_is_added_to_events() {
        let rsyslog = Rsyslog::start(Security::Plain, &Certificates::new());
        let config = format!(
            "{BASE}[[output]]\nname = \"consumer\"\ntype = \"syslog\"\naddresses = [\"{}\"]\nhostname = \"h\"\n\
             filter.annotate = {{ cluster = 'prod \"eu\"] \\' }}\nfilter.match = {{ verbs = [\"update\"] }}\n",
            rsyslog.address()
        );
        let relay = Relay::start(&config);
        let batch = generated_batch(4, 20, 900);
        assert_eq!(relay.post(&batch).status, 200);
        rsyslog.wait_for_count(20, PATIENCE);
        for raw in rsyslog.raw() {
            let raw = String::from_utf8(raw).unwrap();
            let data =
                r#" h kube-audit - - [kube-audit-forwarder@32473 cluster="prod \"eu\"\] \\"] {"#;
            assert!(raw.contains(data), "{raw}");
        }
        let added = r#""kube-audit-forwarder/cluster":"prod \"eu\"] \\""#;
        for message in rsyslog.messages() {
            assert!(String::from_utf8(message).unwrap().contains(added));
        }
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
    }
}
