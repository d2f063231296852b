//! kube-apiserver's own test cases as a table (`pkg/audit/policy/checker_test.go` of Kubernetes
//! 1.28 to 1.36, and the validation of its policies): which of these rules, in this order, give
//! which level for which request.

use super::super::Level;
use super::super::Policy;
use super::super::Stage;
use super::asked;
use super::object;
use super::text;
use super::user;
use crate::audit::request::Request;

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
        "omit received" => "level: Request, omitStages: [RequestReceived]",
        "only panics" => {
            "level: Request, omitStages: [RequestReceived, ResponseStarted, ResponseComplete]"
        }
        other => panic!("no rule {other:?}"),
    }
}

fn policy(head: &str, names: &[&str]) -> Policy {
    let rules: Vec<_> = names.iter().map(|name| format!("- {{{}}}\n", rule(name))).collect();
    let text =
        format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{head}\nrules:\n{}", rules.join(""));
    Policy::read(&text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

#[test]
fn every_case_of_kube_apiserver_has_its_level() {
    use Level::Metadata;
    use Level::None;
    use Level::Request;
    use Level::RequestResponse;
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
        (&["any group"], [Request, Request, None, Request, Request, Request]),
    ];
    for head in ["", "omitStages: [RequestReceived, ResponseStarted]"] {
        for (names, levels) in cases {
            let policy = policy(head, names);
            for (name, level) in REQUESTS.iter().zip(levels) {
                let decision = policy.decide(&request(name));
                assert_eq!(decision.level, *level, "{name} under {names:?}");
                assert_eq!(decision.rule.is_none(), decision.level == None);
            }
        }
    }
}

#[test]
fn stages_are_omitted_by_the_policy_and_by_the_rule_that_decides() {
    use Stage::RequestReceived;
    use Stage::ResponseComplete;
    use Stage::ResponseStarted;
    let both = "omitStages: [RequestReceived, ResponseStarted]";
    let cases: &[(&str, &[&str], &[Stage])] = &[
        ("", &["default"], &[]),
        ("", &["omit received", "get pods", "default"], &[RequestReceived]),
        ("", &["default", "omit received"], &[]),
        (
            "",
            &["only panics", "get pods", "default"],
            &[RequestReceived, ResponseStarted, ResponseComplete],
        ),
        (both, &["default"], &[RequestReceived, ResponseStarted]),
        (both, &["create"], &[RequestReceived, ResponseStarted]),
        (both, &["omit received", "get pods"], &[RequestReceived, ResponseStarted]),
        (both, &["only panics"], &[RequestReceived, ResponseStarted, ResponseComplete]),
        ("omitStages: [Panic, Panic]", &["omit received"], &[RequestReceived, Stage::Panic]),
    ];
    for (head, names, omitted) in cases {
        let policy = policy(head, names);
        for name in REQUESTS {
            for stage in Stage::ALL {
                let request = Request { stage: text(stage.name()), ..request(name) };
                let expected = omitted.contains(&stage);
                let case = format!("{head:?} {names:?} {stage:?} {name}");
                assert_eq!(policy.decide(&request).omit_stage, expected, "{case}");
            }
            let request = Request { stage: text("Later"), ..request(name) };
            assert!(!policy.decide(&request).omit_stage);
        }
    }
}

#[test]
fn managed_fields_are_omitted_as_the_rule_says_and_else_as_the_policy_says() {
    for (head, rule, omitted) in [
        ("", "", false),
        ("omitManagedFields: true", "", true),
        ("omitManagedFields: true", ", omitManagedFields: false", false),
        ("omitManagedFields: false", ", omitManagedFields: true", true),
    ] {
        let text = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\n{head}\nrules: [{{level: RequestResponse, verbs: [get]{rule}}}]"
        );
        let policy = Policy::read(&text).unwrap();
        assert_eq!(policy.decide(&asked("get", "/")).omit_managed_fields, omitted, "{text}");
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
        super::rules(&format!("- {{{rule}}}"));
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
