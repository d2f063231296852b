//! Reading policy files: YAML and JSON give the same rules, and every mistake is reported with its
//! position and what is allowed.

use proptest::prelude::*;

use super::super::*;

const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

/// Returns the mistakes in a policy, each as `LINE:COLUMN: what`.
fn problems(text: &str) -> Vec<String> {
    match Policy::read(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// Returns the mistakes in the rules of a policy, with lines counted from the first rule.
fn in_rules(rules: &str) -> Vec<String> {
    let found = Policy::read(&format!("{HEAD}rules:\n{rules}"));
    let below =
        |problem: &Problem| format!("{}:{}: {}", problem.line - 3, problem.column, problem.what);
    found.err().unwrap_or_default().iter().map(below).collect()
}

/// Asserts that the mistakes are the expected ones: each must begin with the expected text.
#[track_caller]
fn assert_are(found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\ninstead of\n{expected}");
    }
}

#[test]
fn yaml_and_json_give_the_same_rules() {
    let yaml = r#"
        # comments, anchors, flow and block
        apiVersion: audit.k8s.io/v1
        kind: Policy
        metadata: {name: x, labels: {a: b}}
        omitStages: [RequestReceived]
        omitManagedFields: yes
        rules:
        - level: RequestResponse
          users: &tim ["tim", '', !!str 1]
          userGroups: [testers, "developers"]
          verbs:
          - patch
          - "create"
          resources:
          - group: ""
          - group: rbac.authorization.k8s.io
            resources: [clusterroles, "*/status"]
            resourceNames: [edit]
          namespaces: ["", kube-system]
          omitStages: ["Panic"]
          omitManagedFields: off
        - level: None
          users: *tim
          verbs: ~
          nonResourceURLs: [/healthz*, "*", /version]
        "#;
    let json = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "metadata": {"name": "x"},
        "omitStages": ["RequestReceived"], "omitManagedFields": true,
        "rules": [
          {"level": "RequestResponse", "users": ["tim", "", "1"], "userGroups": ["testers", "developers"],
           "verbs": ["patch", "cre\u0061te"],
           "resources": [{"group": ""}, {"group": "rbac.authorization.k8s.io",
             "resources": ["clusterroles", "*\/status"], "resourceNames": ["edit"]}],
           "namespaces": ["", "kube-system"], "omitStages": ["Panic"], "omitManagedFields": false},
          {"level": "None", "users": ["tim", "", "1"], "nonResourceURLs": ["/healthz*", "*", "/version"]}]}"#;
    let (yaml, json) = (Policy::read(yaml).unwrap(), Policy::read(json).unwrap());
    let lines = |policy: &Policy| policy.rules().iter().map(|rule| rule.line).collect::<Vec<_>>();
    assert_eq!((lines(&yaml), lines(&json)), (vec![9, 23], vec![4, 9]));
    for (yaml, json) in yaml.rules().iter().zip(json.rules()) {
        assert_eq!(yaml.criteria, json.criteria);
        assert_eq!((yaml.level, &yaml.omit_stages), (json.level, &json.omit_stages));
        assert_eq!(yaml.omit_managed_fields, json.omit_managed_fields);
    }
    let first = &yaml.rules()[0];
    assert_eq!(first.level, Level::RequestResponse);
    assert_eq!(
        (&*first.omit_stages, first.omit_managed_fields),
        (&[Stage::Panic][..], Some(false))
    );
    assert_eq!(first.criteria.users, ["tim", "", "1"]);
    assert_eq!(first.criteria.resources[1].resource_names, ["edit"]);
    assert_eq!(yaml.rules()[1].criteria.verbs, Vec::<String>::new());
    // A file with a byte order mark and Windows line ends.
    let text = format!("\u{feff}{HEAD}rules:\n- level: None\n").replace('\n', "\r\n");
    assert_eq!(Policy::read(&text).unwrap().rules()[0].line, 4);
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_each_where_it_stands() {
    let text = "\
apiVersion: audit.k8s.io/v1beta1
kind: Policy
omitStage: [RequestReceived]
omitStages: [RequestRecieved]
rules:
- level: metadata
  user: [a]
  verbs: get
- verbs: [get, 1, yes]
  resources:
  - group: apps/v1
    resources: [pods/log/x, deployments]
  - resourceNames: [x]
  nonResourceURLs: [healthz, /a*b]
- level: None
  omitManagedFields: \"true\"
  level: Request
";
    assert_are(
        &problems(text),
        &[
            "1:13: audit.k8s.io/v1beta1 was removed in Kubernetes 1.24: write audit.k8s.io/v1",
            "3:1: unknown field \"omitStage\", did you mean omitStages?",
            "4:14: \"RequestRecieved\" is unknown, did you mean RequestReceived?",
            "6:10: \"metadata\" is unknown, did you mean Metadata?",
            "7:3: unknown field \"user\", did you mean users?",
            "8:10: text where a list is expected",
            "9:3: level is missing: one of None, Metadata, Request, RequestResponse",
            "9:16: without quotes this is a number: write \"1\"",
            "9:19: without quotes this is a flag: write \"yes\"",
            "11:12: \"apps/v1\" is a group and a version: write only \"apps\"",
            "13:20: these names need resources",
            "14:20: a request is about a path or an object",
            "14:21: \"healthz\" is not a path",
            "14:30: \"/a*b\" has a * before its end",
            "16:22: omitManagedFields is true or false, without quotes",
            "17:3: level appears twice",
        ],
    );
}

#[test]
fn what_is_no_policy_is_told_in_one_line() {
    for (text, expected) in [
        ("", "1:1: there is nothing in it"),
        ("# only this\n", "1:1: there is nothing in it"),
        ("~", "1:1: there is nothing in it"),
        ("just text", "1:1: text where fields are expected"),
        ("[1]", "1:1: a list where fields are expected"),
        ("a: [1\nb: 2", "2:"),
        ("a: b\n\tc: d", "1:4: not YAML: "),
        ("a: *unknown", "1:4: not YAML: "),
        ("kind: Deployment\nspec: {}\n", "1:7: kind is \"Deployment\": only Policy is allowed"),
        ("kind: [Policy]", "1:7: a list where text is expected"),
        ("a: !mine b", "1:4: the tag !mine has no meaning here"),
        ("a: !!binary b", "1:4: the tag "),
    ] {
        assert_are(&problems(text), &[expected]);
    }
    let document = format!("{HEAD}rules: [{{level: None}}]\n");
    assert_eq!(problems(&document), Vec::<String>::new());
    assert_eq!(problems(&format!("---\n{document}...\n")), Vec::<String>::new());
    let twice = format!("{document}---\n{document}");
    assert_are(&problems(&twice), &["5:1: a second policy, the first is on line 1: put"]);
}

#[test]
fn a_policy_is_taken_out_of_what_it_is_wrapped_in() {
    let document = format!("{HEAD}rules:\n- level: None\n- level: Metadata\n");
    let indented =
        |by: &str| document.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    let config_map = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\ndata:\n{data}");
    let in_block = format!("  other: 'x: ['\n  policy.yaml: |\n{}", indented("    "));
    let of_block = config_map(&in_block);
    let quoted = config_map(&format!("  audit-policy.yaml: {:?}\n", document));
    let object = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    for (text, lines) in [
        (format!("{document}---\n"), [4, 5]),
        (format!("{document}---\n# nothing\n"), [4, 5]),
        (format!("---\n---\n{document}"), [6, 7]),
        (format!("# of a template\n{}", indented("    ")), [5, 6]),
        (format!("{object}---\n{document}"), [8, 9]),
        (of_block.clone(), [9, 10]),
        (format!("{object}---\n{of_block}"), [13, 14]),
        (quoted, [4, 4]),
    ] {
        let policy = Policy::read(&text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        let found: Vec<_> = policy.rules().iter().map(|rule| rule.line).collect();
        assert_eq!(found, lines, "{text}");
    }
    // Mistakes have their own positions. For no policy and for several, the message says what to
    // do.
    let wrong = of_block.replace("level: Metadata", "level: é");
    assert_are(&problems(&wrong), &["10:14: \"é\" is unknown"]);
    let torn = of_block.replace("- level: Metadata", "- [");
    assert_eq!(problems(&torn).len(), 1);
    assert_are(
        &problems(&format!("{of_block}{}", in_block.replace("policy", "second"))),
        &["13:5: a second policy, the first is on line 6: put the one to be used into a"],
    );
    assert_are(
        &problems(&config_map("  a: b\n")),
        &["2:7: kind is \"ConfigMap\": only Policy is allowed, or a ConfigMap with one below data"],
    );
    assert_are(
        &problems("- level: Metadata\n"),
        &["1:1: a list where fields are expected: put the rules under rules in a Policy"],
    );
}

#[test]
fn what_no_request_can_match_is_doubted() {
    let doubts = |rule: &str| {
        let policy = Policy::read(&format!("{HEAD}rules:\n- {{level: None, {rule}}}\n")).unwrap();
        policy.doubts().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    for (rule, expected) in [
        // kube-apiserver takes any text as a resource.
        ("resources: [{resources: ['']}]", Some("\"\" matches no resource")),
        ("resources: [{resources: ['/*']}]", Some("\"/*\" matches no resource")),
        ("resources: [{resources: ['*/']}]", Some("\"*/\" matches no resource")),
        ("resources: [{resources: ['*/*']}]", Some("\"*/*\" matches no resource")),
        ("resources: [{resources: [pods/]}]", Some("\"pods/\" matches no resource")),
        ("resources: [{resources: [pods/a/b]}]", Some("\"pods/a/b\" matches no resource")),
        ("resources: [{resources: [deployments]}]", Some("use the group \"apps\"")),
        ("resources: [{resources: [roles/x]}]", Some("the group \"rbac.authorization.k8s.io\"")),
        ("resources: [{resources: [widgets]}]", Some("it: name its group")),
        ("resources: [{group: apps, resources: [deployments, x]}]", None),
        ("resources: [{group: '*', resources: [deployments]}]", None),
        ("resources: [{resources: [pods/exec, services, nodes/proxy, '*/scale', '*']}]", None),
        ("users: ['system:node']", Some("nodes are system:node:NAME")),
        ("users: ['system:serviceaccounts:a']", Some("it is a group")),
        ("users: ['system:node:a', 'system:serviceaccount:a:b', 'system:anonymous']", None),
        ("userGroups: ['system:node']", Some("nodes are in the group system:nodes")),
        ("userGroups: ['system:serviceaccount:a:b']", Some("it is a user")),
        ("userGroups: ['system:nodes', 'system:serviceaccounts:a', devs]", None),
    ] {
        match (&doubts(rule)[..], expected) {
            ([], None) => {}
            ([doubt], Some(words)) => assert!(doubt.contains(words), "{doubt}"),
            (found, _) => panic!("{rule}: {found:?}"),
        }
    }
}

#[test]
fn what_a_policy_must_have_is_asked_for() {
    let rules = "rules: [{level: None}]";
    assert_are(
        &problems(rules),
        &[
            "1:1: apiVersion is missing: it is audit.k8s.io/v1",
            "1:1: kind is missing: it is Policy",
        ],
    );
    let of = |version: &str| problems(&format!("apiVersion: {version}\nkind: Policy\n{rules}"));
    assert_are(&of("audit.k8s.io/v2"), &["1:13: apiVersion is \"audit.k8s.io/v2\": only"]);
    assert_are(&of("audit.k8s.io/v1alpha1"), &["1:13: audit.k8s.io/v1alpha1 was removed"]);
    assert_are(&of("v1"), &["1:13: apiVersion is \"v1\": only audit.k8s.io/v1 is allowed"]);
    for (rules, expected) in [
        ("", "1:1: rules are missing"),
        ("rules:", "1:1: rules are missing"),
        ("rules: []", "3:8: no rules: at least one is needed"),
        ("rules: {}", "3:8: fields where a list is expected"),
        ("rules: [x]", "3:9: text where fields are expected"),
        ("rules: [~]", "3:9: nothing where fields are expected"),
        ("metadata: x\nrules: [{level: None}]", "3:11: text where fields are expected"),
    ] {
        assert_are(&problems(&format!("{HEAD}{rules}\n")), &[expected]);
    }
}

/// The objects in which platforms keep a policy: Talos, Rancher (RKE and RKE2), OpenShift's
/// ClusterLogForwarder.
#[test]
fn a_policy_inside_another_object_is_found_and_named() {
    for (text, path) in [
        (
            "machine: {}\ncluster:\n  apiServer:\n    auditPolicy:\n      kind: Policy\n      \
             rules: []\n",
            "cluster.apiServer.auditPolicy",
        ),
        (
            "kind: Cluster\nspec:\n  rkeConfig:\n    machineGlobalConfig:\n      \
             audit-policy-file: |\n        \
             apiVersion: audit.k8s.io/v1\n        kind: Policy\n        rules: []\n",
            "spec.rkeConfig.machineGlobalConfig.audit-policy-file",
        ),
        (
            "kind: ClusterLogForwarder\nspec:\n  filters:\n  - name: a\n    kubeAPIAudit:\n      \
             rules: []\n",
            "spec.filters.0.kubeAPIAudit",
        ),
    ] {
        let problems = Policy::read(text).unwrap_err();
        assert!(format!("{problems:?}").contains(path), "{problems:?}");
    }
}

#[test]
fn fields_and_values_of_rules_are_checked() {
    // Each row is a line below `- level: None`, and its mistake.
    for row in [
        r#"groups: [x] => 2:3: unknown field "groups", did you mean userGroups?"#,
        r#"nonresourceurls: [/x] => 2:3: unknown field "nonresourceurls", did you mean nonResourceURLs?"#,
        r#"banana: [/x] => 2:3: unknown field "banana", allowed: level, users, userGroups"#,
        "<<: {users: [a]} => 2:3: merging maps by << is not supported",
        r#"resources: [{apiGroups: [x]}] => 2:16: unknown field "apiGroups", did you mean group?"#,
        "resources: [pods] => 2:15: text where fields are expected",
        "resources: [{group: 1}] => 2:23: without quotes this is a number",
        r#"resources: [{group: Apps}] => 2:23: "Apps" is not an API group"#,
        r#"resources: [{group: a..b}] => 2:23: "a..b" is not an API group"#,
        r#"resources: [{group: -a}] => 2:23: "-a" is not an API group"#,
        r#"users: [~] => 2:11: without quotes this is nothing: write "~""#,
        "users: [0x1F] => 2:11: without quotes this is a number",
        "users: [{a: b}] => 2:11: fields where text is expected",
        r#"omitStages: [Panic, Request] => 2:23: "Request" is unknown, allowed: RequestReceived"#,
        "omitManagedFields: 1 => 2:22: omitManagedFields is true or false",
    ] {
        let (line, expected) = row.split_once(" => ").unwrap();
        assert_are(&in_rules(&format!("- level: None\n  {line}")), &[expected]);
    }
    for (rules, expected) in [
        ("- level: None\n  ? [a]\n  : b", "2:5: a field's name must be text"),
        ("- level: ''", "1:10: \"\" is unknown, allowed: None, Metadata, Request, RequestResponse"),
        (
            "- level: None\n  namespaces: [a]\n  nonResourceURLs: [/x]",
            "3:20: a request is about a path or",
        ),
    ] {
        assert_are(&in_rules(rules), &[expected]);
    }
    for rules in [
        "- {level: None, users: [., a1, 1a, inf, nan, e1, 'yes', \"1\", 1.2.3, 10.0.0.1/8]}",
        "- {level: None, resources: [{group: '*', resources: ['*', '*/x', 'x/*']}, {group: a-1.b}]}",
        "- {level: None, users: [], verbs: , resources: }",
    ] {
        assert_eq!(in_rules(rules), Vec::<String>::new(), "{rules}");
    }
}

#[test]
fn columns_count_characters() {
    let found = in_rules("- {users: ['é𝛼'], level: none}");
    assert_are(&found, &["1:26: \"none\" is unknown, did you mean None?"]);
}

#[test]
fn what_is_too_large_is_refused_before_it_grows() {
    let large = "#".repeat(FILE_BYTES_MAX + 1);
    assert_are(&problems(&large), &["1:1: 1048577 bytes: a policy has 1048576 at most"]);
    let rules = "- level: None\n".repeat(RULES_MAX + 1);
    assert_are(&in_rules(&rules), &["1025:3: 1025 rules: 1024 are allowed"]);
    assert_eq!(in_rules(&"- level: None\n".repeat(RULES_MAX)), Vec::<String>::new());
    // These ten lines expand to a thousand million values.
    let mut laughs = "a0: &a0 [lol]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{}, ", level - 1).repeat(9);
        laughs.push_str(&format!("a{level}: &a{level} [{before}*a{}]\n", level - 1));
    }
    let found = problems(&laughs);
    assert!(found.len() == 1 && found[0].ends_with("too large, with its aliases written out"));
    // A large text, to which a thousand aliases refer.
    let text = format!("a: &a {}\nb: [{}]", "x".repeat(900_000), "*a,".repeat(1000));
    let found = problems(&text);
    assert!(found.len() == 1 && found[0].ends_with("too large, with its aliases written out"));
    assert_are(&problems("a: &a [*a]"), &["1:8: an alias inside the value that it stands for"]);
    for deep in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000)] {
        assert_eq!(problems(&deep).len(), 1);
    }
}

#[test]
fn mistakes_of_plain_criteria_have_their_path_in_the_words_of_the_config() {
    let text = |text: &str| vec![text.to_owned()];
    let resources = GroupResources {
        group: "apps/v1".to_owned(),
        resources: Vec::new(),
        resource_names: text("x"),
    };
    let criteria = Criteria {
        resources: vec![resources],
        non_resource_urls: text("x"),
        ..Criteria::default()
    };
    let found: Vec<_> = criteria.mistakes(&Names::CONFIG).iter().map(ToString::to_string).collect();
    assert_are(
        &found,
        &[
            "non_resource_urls: a request is about",
            "non_resource_urls[0]: \"x\" is not a path",
            "resources[0].group: \"apps/v1\"",
            "resources[0].resource_names: these names need resources",
        ],
    );
    assert_eq!(Criteria::default().mistakes(&Names::CONFIG), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_told_in_order_within_itself(text in "[-a:&*!|>{}\\[\\]\"'#~,?%\n \té]{0,60}") {
        for text in [text.clone(), format!("{HEAD}rules:\n- level: None\n  {text}")] {
            if let Err(problems) = Policy::read(&text) {
                prop_assert!(!problems.is_empty() && problems.is_sorted());
                let lines = text.split('\n').count();
                prop_assert!(problems.iter().all(|p| (1..=lines + 1).contains(&p.line) && p.column > 0));
            }
        }
    }

    #[test]
    fn a_cut_policy_is_read_or_told(cut in 0..700_usize) {
        let text = include_str!("../../../../../tests/policies/ibm-verbose.yaml");
        let text: String = text.chars().take(cut).collect();
        if let Err(problems) = Policy::read(&text) {
            prop_assert!(!problems.is_empty());
        }
    }
}

/// Source of the expectations: `Decode` in apimachinery's `recognizer`, whose JSON serializer takes
/// a text by `IsJSONBuffer`, and Go's `encoding/json`.
#[test]
fn a_policy_that_kube_apiserver_would_not_load_is_told() {
    let flow = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}\n";
    let json = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","rules":[{"level":"Metadata"}]}"#;
    let doubts = |text: &str| {
        let policy = Policy::read(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        policy.doubts().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let refused = "kube-apiserver would not load this policy: it reads a text that begins with { \
                   as JSON";
    for (text, place) in [
        (flow.to_owned(), "1:2: "),
        (format!("  {flow}"), "1:4: "),
        (format!("\n \n{flow}"), "3:2: "),
        (flow.replace(", ", ",\n "), "1:2: "),
        (format!("{json}\n---\n"), "2:1: "),
        (format!("{json} # ours\n"), "1:"),
        (json.replace("\"}]}", "\",}]}"), "1:"),
    ] {
        assert_are(
            &doubts(&text),
            &[&format!("{place}{}", if place == "1:" { "" } else { refused })],
        );
    }
    for text in [
        json.to_owned(),
        format!("\n  {json}\n\n"),
        format!("---\n{flow}"),
        format!("# ours\n{flow}"),
        format!("%YAML 1.2\n---\n{flow}"),
        format!("\u{feff}{flow}"),
        format!("{HEAD}rules: [{{level: Metadata}}]\n"),
    ] {
        assert_are(&doubts(&text), &[]);
    }
    let second = format!("a: b\n---\n{flow}");
    assert_are(&doubts(&second), &["3:1: kube-apiserver reads only the first document of a file"]);
    let config_map = "kind: ConfigMap\ndata:\n  policy.yaml: |\n    ";
    assert_are(&doubts(&format!("{config_map}{flow}")), &[&format!("4:6: {refused}")]);
    assert_are(&doubts(&format!("{config_map}{json}")), &[]);
}
