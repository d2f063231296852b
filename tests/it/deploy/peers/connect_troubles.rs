//! Troubles while `deploy/connect.sh` runs. Each must end with the truth: events arrive only if a
//! relay has the event of the script's own request, and pods that do not start are named at once.

use super::connect::Connected;
use crate::support::prelude::*;

/// Runs the script as far as the refresh and beyond. What earlier runs left is forgotten.
fn again(it: &Connected) -> (Option<i32>, String) {
    for left in ["refreshed", "is-refreshed", "replaced"] {
        if it.cluster.path(left).exists() {
            it.remove(left);
        }
    }
    it.ibm_cloud()
}

/// Asserts that the script sets the webhook and then says that it has seen no event.
fn assert_not_seen(it: &Connected, trouble: &str, expected: &str) {
    let (status, said) = again(it);
    assert_eq!(status, Some(1), "{trouble}: {said}");
    let words = [
        "not seen yet: within 3 s no relay has shown the event of this script's request",
        "The webhook is set, and the master is refreshed.",
        "deploy/connect.sh seen",
        expected,
    ];
    for word in words {
        assert!(said.contains(word), "{trouble}: {word}: {said}");
    }
    assert!(!said.contains("events arrive: "), "{trouble}: {said}");
    it.has_set_the_webhook();
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_takes_no_other_news_for_the_arrival_of_events() {
    let mut it = Connected::new();
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    it.cluster.variables.insert("TIMEOUT", "3");
    it.remove("audits");
    assert_not_seen(&it, "no event", "none of them this one");
    it.set("others");
    assert_not_seen(&it, "only events of another client", "none of them this one");
    let wrong = format!("kube-audit-forwarder-probe-{}", "0".repeat(32));
    std::fs::write(it.cluster.path("audits"), wrong).unwrap();
    assert_not_seen(&it, "a request of another run", "none of them this one");
    it.remove("audits");
    it.remove("others");
    // The new relay has accepted fewer events than the old one.
    let new = it.replace_the_pod();
    assert_not_seen(&it, "the pod is replaced", "pod/kube-audit-forwarder-1: 0 events accepted");
    it.remove("admin-2");
    it.finish();
    drop(new);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_takes_what_it_cannot_read_for_no_arrival() {
    let mut it = Connected::new();
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    it.cluster.variables.insert("TIMEOUT", "3");
    it.remove("audits");
    std::fs::write(it.cluster.path("no-pods"), "1").unwrap();
    assert_not_seen(&it, "no list of pods at first", "none of them this one");
    std::fs::write(it.cluster.path("no-pods"), "1000").unwrap();
    assert_not_seen(&it, "no list of pods", "the pods can't be listed: Unable to connect");
    it.remove("no-pods");
    std::fs::write(it.cluster.path("away"), "1000").unwrap();
    assert_not_seen(&it, "no kube-apiserver", "The connection to the server c1.example:30000");
    it.remove("away");
    it.set("forward-fails");
    let pending = "pod/kube-audit-forwarder-0 can't be read: error: unable to forward port";
    assert_not_seen(&it, "no port is forwarded", pending);
    it.remove("forward-fails");
    let admin = it.read("admin");
    std::fs::write(it.cluster.path("admin"), free_port().to_string()).unwrap();
    assert_not_seen(&it, "no status", "pod/kube-audit-forwarder-0 can't be read: curl: (7)");
    std::fs::write(it.cluster.path("admin"), it.relay.address().port().to_string()).unwrap();
    assert_not_seen(&it, "another status", "pod/kube-audit-forwarder-0 can't be read: curl: (22)");
    std::fs::write(it.cluster.path("admin"), admin).unwrap();
    it.finish();
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_waits_out_troubles_that_end() {
    let it = Connected::new();
    it.set("get-fails");
    std::fs::write(it.cluster.path("away"), "4").unwrap();
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(it.read("away"), "0\n");
    assert!(said.contains("events arrive: pod/kube-audit-forwarder-0 has"), "{said}");
    it.remove("away");
    // The pod is replaced, and the event of the first request has gone with the old one.
    let second = it.replace_the_pod();
    it.set("lost");
    let (status, said) = again(&it);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("events arrive: pod/kube-audit-forwarder-1 has"), "{said}");
    it.finish();
    drop(second);
}

/// If the master is not refreshed, the webhook is not in use, whatever arrives.
#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_fails_where_the_refresh_fails() {
    let it = Connected::new();
    it.set("refresh-fails");
    it.set("own");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("refresh has failed (update_failed): Refresh failed."), "{said}");
    it.set("no-refresh");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("the webhook is set, but the master can't be refreshed"), "{said}");
    it.finish();
}

/// Returns a pod of the relays, made at this time, with this state of its container.
fn pod(name: &str, made: &str, version: &str, state: &Value, last: &Value) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "creationTimestamp": made, "labels": {
        "app.kubernetes.io/name": "kube-audit-forwarder", "pod-template-hash": version}},
        "status": {"phase": "Pending", "containerStatuses": [{"image": "registry.example/relay:1",
            "state": state, "lastState": last}]}})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn event(reason: &str, of: &str, message: &str) -> Value {
    json!({"kind": "Event", "reason": reason, "message": message,
        "lastTimestamp": "2026-11-30T00:00:00Z", "involvedObject": {"name": of}})
}

/// Shows the script these objects, and runs it. Returns what it says, and how long it took.
fn look(it: &Connected, objects: &[Value]) -> (String, Duration) {
    let look = json!({"items": objects}).to_string();
    std::fs::write(it.cluster.path("look.json"), look).unwrap();
    let begun = Instant::now();
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(1), "{said}");
    assert_eq!(it.read("webhook"), "Server: the old one\n");
    (said, begun.elapsed())
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_names_what_does_not_start_within_ten_seconds() {
    let it = Connected::new();
    let one =
        |state: &Value, last: &Value| pod("relay-1", "2026-11-30T00:00:00Z", "a", state, last);
    let simple = |state: &Value| one(state, &json!({}));
    let log = "{\"level\":\"info\"}\n/etc/relay.toml:6:1: output[0].url: unknown key `url`\n";
    let ended = json!({"terminated": {"reason": "Error", "exitCode": 2, "message": log}});
    let creating = simple(&waiting("ContainerCreating", ""));
    let missing = "MountVolume.SetUp failed for volume \"tap\" : secret \"relay-tap\" not found";
    let quota = "pods \"relay-2\" is forbidden: exceeded quota: small";
    let deployment = json!({"kind": "Deployment", "metadata": {"name": "kube-audit-forwarder"},
        "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": quota}]}});
    let set = json!({"kind": "StatefulSet", "metadata": {"name": "kube-audit-forwarder"},
        "spec": {"replicas": 2}, "status": {}});
    let security = "create Pod relay-0 failed: violates PodSecurity \"restricted:latest\"";
    let cases: [(Vec<Value>, &str); 9] = [
        (
            vec![simple(&waiting("ErrImagePull", "not found"))],
            "relay-1: ErrImagePull: registry.example/relay:1: not found",
        ),
        (
            vec![simple(&waiting("ImagePullBackOff", "Back-off pulling image"))],
            "relay-1: ImagePullBackOff: registry.example/relay:1: Back-off pulling image",
        ),
        (
            vec![simple(&waiting("InvalidImageName", "couldn't parse image name"))],
            "relay-1: InvalidImageName",
        ),
        (
            vec![simple(&waiting("CreateContainerConfigError", "secret \"proxy\" not found"))],
            "relay-1: CreateContainerConfigError: secret \"proxy\" not found",
        ),
        (vec![creating, event("FailedMount", "relay-1", missing)], missing),
        (
            vec![one(&waiting("CrashLoopBackOff", "back-off 10s"), &ended)],
            "relay-1: Error with exit status 2: {\"level\":\"info\"} /etc/relay.toml:6:1: output[0].url",
        ),
        (vec![simple(&ended)], "/etc/relay.toml:6:1: output[0].url: unknown key `url`"),
        (vec![deployment], "no pod can be made: pods \"relay-2\" is forbidden: exceeded quota"),
        (vec![set, event("FailedCreate", "kube-audit-forwarder", security)], security),
    ];
    for (objects, expected) in cases {
        let (said, took) = look(&it, &objects);
        assert!(said.contains("connect.sh: the relays do not start: "), "{expected}: {said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(took < Duration::from_secs(10), "{expected}: {took:?}");
    }
    // The pods may have failed before somebody mended the cause. They do not try again at once.
    let calls = it.cluster.calls();
    let restarts = calls.lines().filter(|call| call.starts_with("rollout restart")).count();
    assert_eq!(restarts, 9, "{calls}");
    it.finish();
}

/// These states may end by themselves, or are those of pods that a rollout takes away.
#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_waits_for_pods_that_may_start_yet() {
    let mut it = Connected::new();
    it.cluster.variables.insert("TIMEOUT", "3");
    let made = "2026-11-30T00:01:00Z";
    let creating = pod("new", made, "b", &waiting("ContainerCreating", ""), &json!({}));
    let refused = waiting("ImagePullBackOff", "Back-off pulling image");
    let old = pod("old", "2026-11-30T00:00:00Z", "a", &refused, &json!({}));
    let late = event("FailedMount", "new", "failed to sync configmap cache: timed out");
    let mut pending = creating.clone();
    pending["status"] = json!({"conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/3 nodes are available"}]});
    let cases = [
        (vec![creating.clone()], "0 of 2 updated replicas are available"),
        (vec![old, creating.clone()], "0 of 2 updated replicas are available"),
        (vec![creating, late], "later new: failed to sync configmap cache"),
        (vec![pending], "later new: Unschedulable: 0/3 nodes are available"),
    ];
    for (objects, expected) in cases {
        let (said, took) = look(&it, &objects);
        assert!(said.contains("connect.sh: the relays do not run after 3 s: "), "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(took >= Duration::from_secs(2), "{expected}: {took:?}");
    }
    assert!(!it.cluster.calls().contains("rollout restart"), "they are left alone");
    it.finish();
}
