//! Random events, and the advice about them. The floor is decided here a second time, on parsed
//! JSON. The savings of an advice are counted by the policy that it prints.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Advice, Cost, Survey};
use audit::request::request;
use testing::{Failing, corpus_file, seeds};
use transform::policy::{Level, Policy};

const KINDS: [(&str, &str, &str); 22] = [
    ("", "pods", ""),
    ("", "pods", "log"),
    ("", "pods", "exec"),
    ("", "nodes", "proxy"),
    ("", "secrets", ""),
    ("", "configmaps", ""),
    ("", "serviceaccounts", "token"),
    ("coordination.k8s.io", "leases", ""),
    ("rbac.authorization.k8s.io", "roles", ""),
    ("authentication.k8s.io", "tokenreviews", ""),
    ("x_y", "odd", ""),
    ("", "*", ""),
    ("", "secrets", "status"),
    ("", "imagestreams", "secrets"),
    ("image.openshift.io", "imagestreams", "secrets"),
    ("oauth.openshift.io", "oauthaccesstokens", ""),
    ("oauth.openshift.io", "oauthclients", ""),
    ("oauth.openshift.io", "useroauthaccesstokens", ""),
    ("authorization.openshift.io", "rolebindings", ""),
    ("", "events", ""),
    ("events.k8s.io", "events", ""),
    ("config.openshift.io", "clusterversions", ""),
];
/// Resources whose bodies hold secrets, with any subresource.
const SECRET: [&str; 5] =
    ["secrets", "configmaps", "oauthaccesstokens", "oauthclients", "useroauthaccesstokens"];
const USERS: [&str; 15] = [
    "system:serviceaccount:a:poller",
    "alice",
    "bob \"the\" \\ builder",
    "*",
    "\u{1b}[2J",
    "system:node:one",
    "system:node:two",
    "system:nodes",
    "system:anonymous",
    "system:kube-controller-manager",
    "system:serviceaccount:kube-system:namespace-controller",
    "system:serviceaccount:openshift-monitoring:m",
    "system:serviceaccount:kube-system2:m",
    "system:admin",
    "system:bootstrap:abcdef",
];
const VERBS: [&str; 12] = [
    "get",
    "get",
    "list",
    "list",
    "watch",
    "create",
    "patch",
    "update",
    "delete",
    "deletecollection",
    "deletecollection",
    "impersonate",
];
/// Writes that components make all day, and one that they never make.
const WRITES: [(&str, &str, &str, &str); 4] = [
    ("coordination.k8s.io", "leases", "", "update"),
    ("", "events", "", "patch"),
    ("", "pods", "", "deletecollection"),
    ("", "events", "", "deletecollection"),
];
const PATHS: [&str; 7] =
    ["/healthz", "/readyz?verbose", "/a%20b", "/x*", "/%1b", "odd", "/api/v1/namespaces/a/pods/n"];

/// Makes a random event. Unusual facts, such as an impersonated user, have a chance of 1 in `rare`.
fn event(random: &mut fastrand::Rng, kinds: usize, users: usize, rare: u32) -> Value {
    let (mut group, mut resource, mut sub) = KINDS[random.usize(..kinds)];
    let name = USERS[random.usize(..users)];
    let namespace = ["a", "b", "c", ""][random.usize(..4)];
    let is_rare = |random: &mut fastrand::Rng| random.u32(..rare) == 0;
    let mut groups = vec!["system:authenticated"];
    if name.contains("node") && !is_rare(random) {
        groups.push("system:nodes");
    }
    let is_path = random.u32(..6) == 0;
    let mut verb = VERBS[random.usize(..VERBS.len())];
    if kinds == KINDS.len() && random.bool() {
        (group, resource, sub, verb) = WRITES[random.usize(..WRITES.len())];
    }
    let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
    let inside = if namespace.is_empty() { "" } else { "/namespaces/" };
    let uri = match is_path {
        true => PATHS[random.usize(..PATHS.len())].to_owned(),
        false if is_rare(random) => "/elsewhere".to_owned(),
        false => format!("{root}{inside}{namespace}/{resource}/n/{sub}"),
    };
    let stage = ["RequestReceived", "ResponseComplete"][random.usize(..2)];
    let level = ["Metadata", "Request", "RequestResponse"][random.usize(..3)];
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level, "auditID": "a",
        "stage": stage,
        "requestURI": uri, "verb": verb, "user": { "username": name, "groups": groups },
    });
    if !is_path {
        event["objectRef"] = json!({
            "apiGroup": group, "resource": resource, "subresource": sub, "namespace": namespace,
        });
    }
    if level != "Metadata" {
        event["requestObject"] = json!("x".repeat(random.usize(..300)));
    }
    if level == "RequestResponse" {
        event["responseObject"] = json!("y".repeat(random.usize(..900)));
    }
    if event["stage"] == "ResponseComplete" {
        let code = if is_rare(random) { [401, 403][random.usize(..2)] } else { 200 };
        event["responseStatus"] = json!({ "metadata": {}, "code": code });
    }
    if is_rare(random) {
        event["impersonatedUser"] = json!({ "username": "root" });
    }
    if is_rare(random) {
        event["user"]["groups"] = json!(["system:unauthenticated"]);
    }
    event
}

/// Returns `true` if the body of a request about this object may hold a secret.
fn is_secret(of: &Value) -> bool {
    let is = |value: &Value, list: &[&str]| list.contains(&value.as_str().unwrap_or_default());
    is(&of["resource"], &SECRET)
        || is(&of["resource"], &["tokenreviews"])
        || is(&of["subresource"], &["token", "secrets"])
}

/// Returns `true` for a write of a component of the cluster that does not show what somebody did.
fn is_routine(event: &Value, is_openshift: bool) -> bool {
    let (of, name) = (&event["objectRef"], event["user"]["username"].as_str().unwrap());
    let is_whole = of["subresource"] == "";
    let is_delete = event["verb"] == "deletecollection";
    let is_kind = match event["verb"].as_str().unwrap() {
        "update" => of["apiGroup"] == "coordination.k8s.io" && of["resource"] == "leases",
        "create" | "patch" => of["apiGroup"] == "" && of["resource"] == "events",
        _ => is_delete && of.is_object() && of["resource"] != "events",
    };
    let is_node = event["user"]["groups"].as_array().unwrap().contains(&json!("system:nodes"));
    let is_who = match name {
        "system:kube-controller-manager" => true,
        "system:serviceaccount:kube-system:namespace-controller" => true,
        "system:serviceaccount:openshift-monitoring:m" => is_openshift,
        "system:node:one" | "system:node:two" => is_node && !is_delete,
        _ => false,
    };
    is_whole && is_kind && is_who
}

fn shows_openshift(events: &[Value]) -> bool {
    events.iter().any(|event| {
        event["objectRef"]["apiGroup"] == "config.openshift.io"
            && event["responseStatus"]["code"] == 200
    })
}

/// Returns `true` if the event is above the floor.
fn is_kept(event: &Value, is_openshift: bool) -> bool {
    let of = &event["objectRef"];
    let is = |value: &Value, list: &[&str]| list.contains(&value.as_str().unwrap_or_default());
    let groups = event["user"]["groups"].as_array().unwrap();
    !is(&event["verb"], &["get", "list", "watch"]) && !is_routine(event, is_openshift)
        || is_secret(of)
        || is(&of["apiGroup"], &["rbac.authorization.k8s.io", "authorization.openshift.io"])
        || is(&of["subresource"], &["exec", "attach", "portforward", "proxy"])
        || event.get("impersonatedUser").is_some()
        || [401, 403].contains(&event["responseStatus"]["code"].as_u64().unwrap_or(0))
        || event["user"]["username"] == "system:anonymous"
        || groups.contains(&json!("system:unauthenticated"))
        || of.is_object() && event["requestURI"] == "/elsewhere"
        || !of.is_object() && event["requestURI"] == PATHS[6]
}

fn lines(events: &[Value]) -> Vec<u8> {
    events.iter().flat_map(|event| format!("{event}\n").into_bytes()).collect()
}

fn advise(events: &[Value], aim: f64) -> Advice {
    let mut survey = Survey::default();
    survey.add(&lines(events));
    Advice::new(&survey, aim)
}

fn policy(text: &str) -> Policy {
    let policy = Policy::read(text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
    assert!(policy.doubts().is_empty(), "{:?}\n{text}", policy.doubts());
    policy
}

fn bytes_after(text: &str, events: &[Value]) -> u64 {
    let mut cost = Cost::new(policy(text));
    cost.add(&lines(events));
    cost.after().bytes
}

#[test]
fn no_advice_drops_what_the_floor_keeps_and_each_saves_what_it_says() {
    let (mut writes, mut of_openshift) = (0, 0);
    for seed in seeds(100) {
        let _failing = Failing(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let (kinds, users) = match random.bool() {
            true => (KINDS.len(), USERS.len()),
            false => (random.usize(1..=KINDS.len()), random.usize(1..=USERS.len())),
        };
        let rare = [3, 30, 1000][random.usize(..3)];
        let events: Vec<_> =
            (0..random.usize(1..300)).map(|_| event(&mut random, kinds, users, rare)).collect();
        let aim = f64::from(random.u32(1..=100));
        let advice = advise(&events, aim);
        let page = &advice.page;
        let policy = policy(page);
        let is_openshift = shows_openshift(&events);
        for event in events.iter().filter(|event| is_kept(event, is_openshift)) {
            let text = event.to_string();
            let decision = policy.decide(&request(text.as_bytes()));
            let is_dropped = decision.level == Level::None || decision.omit_stage;
            assert!(!is_dropped, "{event}\n{page}");
            let may_show = is_secret(&event["objectRef"]) && decision.level != Level::Metadata;
            assert!(!may_show, "{event}\n{page}");
        }
        let mut cost = Cost::new(policy);
        cost.add(&lines(&events));
        let (before, after) = (cost.before(), cost.after());
        assert_eq!(before.bytes - after.bytes, advice.saves.bytes, "{page}");
        assert_eq!(before.events - after.events, advice.saves.events, "{page}");
        let is_reached = advice.saves.bytes as f64 >= before.bytes as f64 * aim / 100.0;
        assert_eq!(is_reached, advice.is_reached, "{page}");
        assert!(!page.chars().any(|char| char.is_control() && char != '\n'), "{page:?}");
        writes += page.matches("# Concerns ").count();
        of_openshift += page.matches("namespace openshift-").count();
    }
    println!("{writes} rules about writes, {of_openshift} of them about OpenShift");
    assert!(seeds(100).len() < 100 || writes > 20 && of_openshift > 0);
}

/// A rule for the name of a kubelet would also match its requests as a member of `system:nodes`,
/// which count for the group.
#[test]
fn a_member_of_the_nodes_gets_no_rule_by_its_name() {
    let event = |name: &str, groups: &[&str], code: u16| {
        json!({
            "kind": "Event", "level": "Metadata", "auditID": "a", "stage": "ResponseComplete",
            "requestURI": "/api/v1/namespaces/a/pods/n/log", "verb": "get",
            "user": { "username": name, "groups": groups },
            "objectRef": { "resource": "pods", "subresource": "log", "namespace": "a" },
            "responseStatus": { "metadata": {}, "code": code },
        })
    };
    let nodes = ["system:nodes"];
    let events = [
        event("system:node:one", &nodes, 200),
        event("system:node:one", &[], 200),
        event("system:node:two", &nodes, 403),
        event("alice", &[], 200),
    ];
    let advice = advise(&events, 90.0);
    let mut cost = Cost::new(policy(&advice.page));
    cost.add(&lines(&events));
    assert_eq!(cost.before().events - cost.after().events, 1, "{}", advice.page);
    assert_eq!(advice.saves.events, 1, "{}", advice.page);
}

/// A user who may make namespaces can make one with this name, but serves no OpenShift resources.
#[test]
fn accounts_of_openshift_get_a_rule_only_where_the_cluster_is_openshift() {
    let event = |user: &str, verb: &str, group: &str, resource: &str, code: u16| {
        let version = if group.is_empty() { "api/v1".into() } else { format!("apis/{group}/v1") };
        json!({
            "kind": "Event", "level": "Metadata", "auditID": "a", "stage": "ResponseComplete",
            "requestURI": format!("/{version}/namespaces/a/{resource}/n"), "verb": verb,
            "user": { "username": user, "groups": ["system:authenticated"] },
            "objectRef": { "apiGroup": group, "resource": resource, "namespace": "a" },
            "responseStatus": { "metadata": {}, "code": code },
        })
    };
    let account = "system:serviceaccount:openshift-etcd:operator";
    let asks = |code| event("tenant", "get", "config.openshift.io", "clusterversions", code);
    let mut events = vec![event(account, "update", "coordination.k8s.io", "leases", 200); 9];
    events.push(asks(404));
    let plain = advise(&events, 100.0).page;
    assert!(!plain.contains("openshift-etcd"), "{plain}");
    // The order of the events does not matter.
    events.push(asks(200));
    let page = advise(&events, 90.0).page;
    let rule = format!(
        "No longer seen: update of these by {account}.\n# Concerns a service account of a namespace \
         openshift-…; delete\n# this rule where others than the administrators may make such \
         namespaces.\n- level: None\n  users: [\"{account}\"]\n  verbs: [\"update\"]\n"
    );
    assert!(page.contains(&rule), "{page}");
    // One refusal of the same kind of request keeps all of them.
    events.push(event(account, "update", "coordination.k8s.io", "leases", 403));
    assert!(!advise(&events, 100.0).page.contains("openshift-etcd"));
}

/// The beginning of a policy, with the rule that all advices about events with bodies have.
const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
    - level: Metadata\n  resources:\n  - group: ''\n    resources: [secrets, configmaps, serviceaccounts/token]\n\
    \x20 - group: authentication.k8s.io\n    resources: [tokenreviews]\n";

/// Returns the bytes of each event after each rule: none, one that lowers reads or everything, and
/// those that drop one user's reads of any set of resources, but no event above the floor.
fn every_rule(events: &[Value], kinds: usize, users: usize) -> Vec<Vec<u64>> {
    let each = |rule: &str| -> Vec<u64> {
        let text = format!("{HEAD}{rule}- level: RequestResponse\n");
        let after = |event: &Value| bytes_after(&text, std::slice::from_ref(event));
        events.iter().map(after).collect()
    };
    let mut rules = vec![
        each(""),
        each("- level: Metadata\n  verbs: [get, list, watch]\n"),
        each("- level: Metadata\n"),
    ];
    for user in USERS.iter().take(users) {
        for set in 1..1_u32 << kinds {
            let mut rule = format!(
                "- level: None\n  users: [{}]\n  verbs: [get, list, watch]\n  resources:\n",
                json!(user)
            );
            for (_, (group, resource, sub)) in
                KINDS.iter().take(kinds).enumerate().filter(|(kind, _)| set >> kind & 1 == 1)
            {
                let sub = if sub.is_empty() { String::new() } else { format!("/{sub}") };
                rule += &format!("  - group: '{group}'\n    resources: ['{resource}{sub}']\n");
            }
            let after = each(&rule);
            if !events.iter().zip(&after).any(|(event, after)| *after == 0 && is_kept(event, false))
            {
                rules.push(after);
            }
        }
    }
    rules
}

#[test]
fn an_advice_has_at_most_one_rule_more_than_the_best_of_all_sets_of_rules() {
    const RULES_MAX: usize = 3;
    let mut compared = BTreeSet::new();
    for seed in seeds(30) {
        let _failing = Failing(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let (kinds, users) = (3, random.usize(1..=3));
        let mut events: Vec<_> =
            (0..random.usize(4..30)).map(|_| event(&mut random, kinds, users, 12)).collect();
        // The rules that are tried name no path.
        events.retain(|event| event.get("objectRef").is_some());
        if events.is_empty() {
            continue;
        }
        let rules = every_rule(&events, kinds, users);
        // The webhook sends less than the lines, which have `kind` and `apiVersion`.
        let mut all = Cost::new(policy(&format!("{HEAD}- level: RequestResponse\n")));
        all.add(&lines(&events));
        let total = all.before().bytes;
        let aim = f64::from(random.u32(1..=100));
        let wanted = total as f64 * aim / 100.0;
        // The smallest sum for each number of rules, in addition to the rule that all have.
        let mut sets = vec![(1, rules[0].clone())];
        let mut best = None;
        for number in 0..=RULES_MAX {
            let saved = sets.iter().map(|(_, after)| total - after.iter().sum::<u64>()).max();
            if saved.is_some_and(|saved| saved as f64 >= wanted) {
                best = Some(number);
                break;
            }
            let mut more = Vec::new();
            for (next, after) in &sets {
                for (index, rule) in rules.iter().enumerate().skip(*next) {
                    let least = after.iter().zip(rule).map(|(a, b)| *a.min(b)).collect();
                    more.push((index + 1, least));
                }
            }
            sets = more;
        }
        let advice = advise(&events, aim);
        if let Some(best) = best {
            assert!(advice.is_reached, "best {best}\n{}", advice.page);
            assert!(advice.rules <= best + 1, "best {best}\n{}", advice.page);
        }
        compared.insert(best);
    }
    println!("the best had {compared:?} rules");
}

#[test]
fn every_event_is_in_one_row_and_what_was_not_recorded_is_counted() {
    let log = corpus_file("audit.log");
    let ask = policy(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Request\n  verbs: [get]\n",
    );
    let mut cost = Cost::new(ask);
    cost.add(&log);
    // The webhook sends neither the line break nor the 46 bytes of `kind` and `apiVersion`.
    assert_eq!((cost.before().events, cost.before().bytes), (495, log.len() as u64 - 495 * 47));
    let [get, rest] = cost.rows[..] else { panic!("two rows") };
    assert_eq!(get.before.bytes + rest.before.bytes, cost.before().bytes);
    assert!(get.after.events > 0 && rest.before.events > 0 && rest.after.events == 0);
    let events = String::from_utf8(log).unwrap();
    let events = events.lines().map(|event| serde_json::from_str::<Value>(event).unwrap());
    let below = events.filter(|event| event["verb"] == "get" && event["level"] == "Metadata");
    assert_eq!(get.recorded_below, below.count() as u64);
}

#[test]
fn the_largest_poller_is_found_and_the_fewest_of_its_reads_are_dropped() {
    let of = |user: &str, resource: &str, code: u16| {
        json!({
            "level": "Metadata", "auditID": "a", "stage": "ResponseComplete", "verb": "list",
            "requestURI": format!("/api/v1/namespaces/a/{resource}"),
            "user": { "username": user, "groups": ["system:authenticated"] },
            "objectRef": { "resource": resource, "namespace": "a" },
            "responseStatus": { "code": code },
        })
    };
    let mut events = vec![of("poller", "pods", 200); 70];
    events.extend(vec![of("poller", "services", 200); 10]);
    events.extend(vec![of("other", "pods", 200); 19]);
    events.push(of("poller", "endpoints", 403));
    let page = advise(&events, 60.0).page;
    assert!(page.contains("  users: [\"poller\"]\n"), "{page}");
    assert!(page.contains("\"resources\":[\"pods\"]}]\n"), "services are not needed: {page}");
    let most = advise(&events, 100.0);
    assert!(!most.is_reached && !most.page.contains("endpoints"), "{}", most.page);
    assert_eq!((most.rules, most.saves.events), (2, 99));
}
