//! kube-apiserver's own test cases (`pkg/audit/policy/checker_test.go` of Kubernetes 1.28 to 1.36,
//! and the validation of its policies). A table has lists of rules, each with the level that it
//! gives to each of six requests.

use super::super::{Level, Policy};
use super::{asked, object, rules, user};
use audit::request::Request;

const REQUESTS: [&str; 6] =
    ["namespaced", "cluster", "path", "subresource", "unauthorized", "status of a role"];

fn request(name: &str) -> Request<'static> {
    let (uri, about) = match name {
        "namespaced" | "unauthorized" => {
            ("/api/v1/namespaces/default/pods/busybox", object("", "default/pods/busybox"))
        }
        "cluster" => (
            "/apis/rbac.authorization.k8s.io/v1beta1/clusterroles/edit",
            object("rbac.authorization.k8s.io", "/clusterroles/edit"),
        ),
        "path" => ("/logs/kubelet.log", None),
        "subresource" => {
            ("/api/v1/namespaces/default/pods/busybox", object("", "default/pods/busybox/log"))
        }
        "status of a role" => (
            "/apis/rbac.authorization.k8s.io/v1beta1/clusterroles/edit/status",
            object("rbac.authorization.k8s.io", "/clusterroles/edit/status"),
        ),
        other => panic!("no request {other:?}"),
    };
    let who = (name != "unauthorized").then(|| user("tim@k8s.io", &["humans", "developers"]));
    Request { user: who.flatten(), object: about, ..asked("get", uri) }
}

fn rule(name: &str) -> &'static str {
    match name {
        "default" => "level: Metadata",
        "create" => "level: Request, verbs: [create]",
        "tims" => "level: Metadata, users: ['tim@k8s.io']",
        "humans" => "level: Metadata, userGroups: [humans]",
        "service accounts" => "level: Request, userGroups: ['system:serviceaccounts']",
        "get pods" => "level: RequestResponse, verbs: [get], resources: [{resources: [pods]}]",
        "get logs of pods" => "level: Request, verbs: [get], resources: [{resources: [pods/log]}]",
        "get *" => "level: Request, verbs: [get], resources: [{resources: ['*']}]",
        "get */log" => "level: Request, verbs: [get], resources: [{resources: ['*/log']}]",
        "get pods/*" => "level: Request, verbs: [get], resources: [{resources: ['pods/*']}]",
        "get */status of any group" => {
            "level: Request, verbs: [get], resources: [{group: '*', resources: ['*/status']}]"
        }
        // These match no request, but kube-apiserver takes them.
        "get nothing" => {
            "level: Request, verbs: [get], \
             resources: [{resources: ['', '/*', '*/', 'pods/', '*/*', 'pods/log/x', '/', '/log']}]"
        }
        "any group" => "level: Request, resources: [{group: '*'}]",
        "get cluster roles" => {
            "level: RequestResponse, verbs: [get], namespaces: [''], \
             resources: [{group: rbac.authorization.k8s.io, resources: [clusterroles]}]"
        }
        "get /logs" => "level: RequestResponse, verbs: [get], nonResourceURLs: [/logs*]",
        "get /metrics" => "level: Request, verbs: [get], nonResourceURLs: [/metrics]",
        "edit" => {
            "level: Request, resources: [{group: rbac.authorization.k8s.io, resources: [clusterroles], \
             resourceNames: [edit]}]"
        }
        other => panic!("no rule {other:?}"),
    }
}

#[test]
fn every_case_of_kube_apiserver_has_its_level() {
    use Level::{Metadata, None, Request, RequestResponse};
    let cases: &[(&[&str], [Level; 6])] = &[
        (&["default"], [Metadata; 6]),
        (&["create"], [None; 6]),
        (&["tims"], [Metadata, Metadata, Metadata, Metadata, None, Metadata]),
        (&["tims", "default"], [Metadata; 6]),
        (&["humans"], [Metadata, Metadata, Metadata, Metadata, None, Metadata]),
        (&["humans", "default"], [Metadata; 6]),
        (&["service accounts"], [None; 6]),
        (&["get pods"], [RequestResponse, None, None, None, RequestResponse, None]),
        (&["get cluster roles"], [None, RequestResponse, None, None, None, None]),
        (&["get /logs"], [None, None, RequestResponse, None, None, None]),
        (&["get /metrics"], [None; 6]),
        (&["get /metrics", "service accounts", "default"], [Metadata; 6]),
        (
            &["get /metrics", "get pods", "default"],
            [RequestResponse, Metadata, Metadata, Metadata, RequestResponse, Metadata],
        ),
        (
            &["get /metrics", "get cluster roles", "default"],
            [Metadata, RequestResponse, Metadata, Metadata, Metadata, Metadata],
        ),
        (
            &["get /logs", "get cluster roles", "default"],
            [Metadata, RequestResponse, RequestResponse, Metadata, Metadata, Metadata],
        ),
        (
            &["get logs of pods", "get pods"],
            [RequestResponse, None, None, Request, RequestResponse, None],
        ),
        (&["edit", "get cluster roles"], [None, Request, None, None, None, None]),
        (&["get *"], [Request, None, None, Request, Request, None]),
        (&["get */log"], [None, None, None, Request, None, None]),
        (&["get pods/*"], [Request, None, None, Request, Request, None]),
        (&["get */status of any group"], [None, None, None, None, None, Request]),
        (&["get nothing"], [None; 6]),
        (&["get nothing", "default"], [Metadata; 6]),
        (&["any group"], [Request, Request, None, Request, Request, Request]),
    ];
    for (names, levels) in cases {
        let lines: String = names.iter().map(|name| format!("- {{{}}}\n", rule(name))).collect();
        let policy = rules(&lines);
        for (name, level) in REQUESTS.iter().zip(levels) {
            let decision = policy.decide(&request(name));
            assert_eq!(decision.level, *level, "{name} under {names:?}");
            assert_eq!(decision.rule.is_none(), decision.level == None);
        }
    }
}

#[test]
fn rules_that_kube_apiserver_takes_are_taken() {
    for rule in [
        "level: Metadata",
        "level: None, userGroups: ['system:serviceaccounts', 'system:nodes']",
        "level: RequestResponse, verbs: [get], namespaces: [kube-system], \
         resources: [{group: rbac.authorization.k8s.io, resources: [roles, rolebindings]}]",
        "level: Metadata, userGroups: [developers], nonResourceURLs: [/logs*, /healthz*, /metrics, '*']",
    ] {
        rules(&format!("- {{{rule}}}"));
    }
}

#[test]
fn rules_that_kube_apiserver_refuses_are_refused() {
    for rule in [
        "",
        "verbs: [get], resources: [{resources: [secrets]}], namespaces: [kube-system]",
        "level: FooBar",
        "level: Metadata, namespaces: [default], nonResourceURLs: [/logs*]",
        "level: Metadata, resources: [{resources: [secrets]}], nonResourceURLs: [/logs*]",
        "level: Metadata, resources: [{group: rbac.authorization.k8s.io/v1beta1, resources: [roles]}]",
        "level: Metadata, resources: [{group: Apps}]",
        "level: Metadata, resources: [{resourceNames: [x]}]",
        "level: Metadata, nonResourceURLs: [logs, /healthz*]",
        "level: Metadata, nonResourceURLs: ['', /healthz*]",
        "level: Metadata, nonResourceURLs: [/logs/*/*, /metrics]",
        "level: Metadata, nonResourceURLs: [/logs/*.log, /metrics]",
        "level: Metadata, omitStages: [Request]",
    ] {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- {level: Metadata}\n";
        let problems = Policy::read(&format!("{head}- {{{rule}}}\n")).expect_err(rule);
        assert_eq!(problems.len(), 1, "{rule}: {problems:?}");
        assert_eq!(problems[0].line, 5, "{rule}: {problems:?}");
    }
}
