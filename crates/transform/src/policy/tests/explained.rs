//! The explanations of decisions, compared word for word.

use super::super::Policy;
use super::{asked, object, rules, text, user};
use audit::request::Request;

#[track_caller]
fn assert_explained(rules_text: &str, request: &Request<'_>, expected: &str) {
    let lines = rules(rules_text).explain(request).lines;
    assert_eq!(lines, expected.lines().collect::<Vec<_>>());
}

const CREATED: &str = "/api/v1/namespaces/shop/pods?dryRun=All";

fn create_pod() -> Request<'static> {
    Request {
        user: user("ann", &["dev", "system:authenticated"]),
        object: object("", "shop/pods/web-1"),
        ..asked("create", CREATED)
    }
}

#[test]
fn each_rule_says_what_it_lacks_up_to_the_one_that_matches() {
    let policy = "\
- {level: None, users: [bob, 'carl \"c\"']}
- {level: None, userGroups: [ops, '']}
- level: None
  verbs: [get, patch]
- {level: None, namespaces: ['', kube-system]}
- {level: None, resources: [{resources: [pods/log, 'services/*']}, {group: apps}, {group: '*', resources: ['*/status']}]}
- {level: None, resources: [{resources: [pods], resourceNames: [web-1]}]}
- {level: None, nonResourceURLs: [/healthz]}
- {level: None, users: [u1, u2, u3, u4, u5, u6, u7, u8, u9, u10]}
- {level: Metadata, verbs: [create]}
- {level: None}
";
    let expected = r#"rule 1 (line 4): users [bob carl \"c\"] do not have "ann"
rule 2 (line 5): userGroups [ops ""] have none of [dev system:authenticated]
rule 3 (line 6): verbs [get patch] do not have "create"
rule 4 (line 8): namespaces ["" kube-system] do not have "shop"
rule 5 (line 9): resources [core group: pods/log services/*; apps: all; any group: */status] do not have "pods" of the core group
rule 6 (line 10): resources [core group: pods named [web-1]] do not have "pods" of the core group without a name (rules see none where one is created)
rule 7 (line 11): nonResourceURLs: the request is about an object (pods)
rule 8 (line 12): users [u1 u2 u3 u4 u5 u6 u7 u8 and 2 more] do not have "ann"
rule 9 (line 13) matches: level Metadata
the event is lowered from RequestResponse to Metadata: without requestObject and responseObject
"#;
    assert_explained(policy, &create_pod(), expected);
}

#[test]
fn requests_of_nobody_and_about_paths_are_explained() {
    let policy = "\
- {level: None, users: [a]}
- {level: None, userGroups: [a]}
- {level: None, resources: [{group: apps}]}
- {level: None, namespaces: [a]}
- {level: None, nonResourceURLs: [/healthz*, /b]}
- {level: RequestResponse, nonResourceURLs: ['/a b']}
";
    let expected = "\
rule 1 (line 4): users: nobody was authenticated
rule 2 (line 5): userGroups: nobody was authenticated
rule 3 (line 6): resources: the request is about the path \"/a%20b\", and no object
rule 4 (line 7): namespaces: the request is about the path \"/a%20b\", and no object
rule 5 (line 8): nonResourceURLs [/healthz* /b] do not have \"/a b\"
rule 6 (line 9) matches: level RequestResponse
the event is kept, at its own level RequestResponse
";
    assert_explained(policy, &asked("get", "/a%20b?x=/b"), expected);
    let uri = "/apis/rbac.x/v1/roles/r/status";
    let role = Request { object: object("rbac.x", "/roles/r/status"), ..asked("get", uri) };
    assert_explained(
        "- {level: None, resources: [{group: rbac.x, resources: ['*'], resourceNames: [a]}]}",
        &role,
        "rule 1 (line 4): resources [rbac.x: * named [a]] do not have \"roles/status\" of the group \"rbac.x\" with the name \"r\"\n\
         no rule matches: level None\nthe event is dropped\n",
    );
}

#[test]
fn of_a_patch_the_managed_fields_that_were_sent_are_said_to_stay() {
    let of = |verb, rule: &str| {
        rules(&format!("- {{{rule}}}")).explain(&asked(verb, "/")).lines.pop().unwrap()
    };
    let full = "level: RequestResponse, omitManagedFields: true";
    let lowered = "level: Request, omitManagedFields: true";
    let patch = "requestObject is a patch, and keeps what was sent";
    for (verb, rule, expected) in [
        ("patch", full, format!("managedFields are taken out of responseObject; {patch}")),
        ("patch", lowered, format!("managedFields stay: {patch}")),
        ("apply", full, "managedFields are taken out of requestObject and responseObject".into()),
        ("create", lowered, "managedFields are taken out of requestObject".into()),
    ] {
        assert_eq!(of(verb, rule), expected, "{verb} {rule}");
    }
}

#[test]
fn a_namespace_from_the_body_is_told_from_the_url_and_what_nobody_knows_hides_nothing() {
    let policy = "\
- {level: None, namespaces: [quiet]}
- {level: None, resources: [{group: rbac.x, resources: [roles], resourceNames: [evil]}]}
- {level: Request, namespaces: ['']}
";
    let role =
        |uri| Request { object: object("rbac.x", "quiet/roles/evil"), ..asked("create", uri) };
    assert_explained(
        policy,
        &role("/apis/rbac.x/v1/roles"),
        "\
rule 1 (line 4): namespaces [quiet] do not have \"\", which the URL says (the \"quiet\" in objectRef is from the request's body)
rule 2 (line 5): resources [rbac.x: roles named [evil]] do not have \"roles\" of the group \"rbac.x\" without a name (rules see none where one is created)
rule 3 (line 6) matches: level Request
the event is lowered from RequestResponse to Request: without responseObject
",
    );
    assert_explained(
        policy,
        &role("/apis/rbac.x"),
        "\
rule 1 (line 4): namespaces: the requestURI \"/apis/rbac.x\" is not that of a request about an object, and a rule of level None has to know the object
rule 2 (line 5): resources [rbac.x: roles named [evil]] do not have \"roles\" of the group \"rbac.x\" with a known name: the requestURI \"/apis/rbac.x\" is not that of a request about an object, and a rule of level None has to know the object
rule 3 (line 6) matches: level Request
the event is lowered from RequestResponse to Request: without responseObject
",
    );
}

#[test]
fn a_rule_that_matches_because_nobody_knows_the_object_omits_no_stage() {
    let in_namespace = "namespaces: [quiet]";
    let named = "resources: [{resources: [pods], resourceNames: [web]}]";
    let omits = "omitStages: [ResponseComplete]";
    let kept = "rule 1 (line 4) matches: level Metadata\nthe event is lowered from";
    let dropped = "rule 1 (line 4) matches: level Metadata\nthe event is dropped: the stage";
    let known = "/api/v1/namespaces/quiet/pods/web";
    for (criterion, uri, expected) in [
        (in_namespace, "REDACTED", kept),
        (in_namespace, known, dropped),
        (named, "REDACTED", kept),
        (named, known, dropped),
        // Another resource of the same rule needs no name.
        ("resources: [{resources: [pods], resourceNames: [a]}, {group: ''}]", "REDACTED", dropped),
        ("verbs: [delete]", "REDACTED", dropped),
    ] {
        let policy =
            rules(&format!("- {{level: Metadata, {criterion}, {omits}}}\n- {{level: Metadata}}"));
        let request = Request { object: object("", "quiet/pods/web"), ..asked("delete", uri) };
        let lines = policy.explain(&request).lines.join("\n");
        assert!(lines.starts_with(expected), "{criterion} {uri}: {lines}");
    }
    // The stages of the whole policy are omitted whatever is unknown.
    let rule = "  - {level: Metadata, namespaces: [quiet]}";
    let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{omits}\nrules:\n{rule}");
    let policy = Policy::read(&text).unwrap();
    let request = Request { object: object("", "quiet/pods/web"), ..asked("get", "REDACTED") };
    assert!(policy.decide(&request).omit_stage);
}

#[test]
fn what_becomes_of_the_event_is_said() {
    let omits = ", omitManagedFields: true";
    let kept = "the event is kept, at its own level Metadata";
    for (rule, more, own, expected) in [
        ("None", "", "Metadata", "the event is dropped"),
        ("Metadata", "", "Metadata", kept),
        ("Request", "", "Metadata", &format!("{kept}: what was not recorded stays out")),
        ("Request", omits, "Metadata", &format!("{kept}: what was not recorded stays out")),
        (
            "Metadata",
            "",
            "Request",
            "the event is lowered from Request to Metadata: without requestObject",
        ),
        (
            "Request",
            omits,
            "RequestResponse",
            "the event is lowered from RequestResponse to Request: without responseObject\n\
             managedFields are taken out of requestObject",
        ),
        (
            "RequestResponse",
            omits,
            "RequestResponse",
            "the event is kept, at its own level RequestResponse\n\
             managedFields are taken out of requestObject and responseObject",
        ),
        ("Request", "", "x\n", "the event is kept; its own level \"x\\n\" is unknown"),
        (
            "Request",
            ", omitStages: [ResponseComplete]",
            "Request",
            "the event is dropped: the stage ResponseComplete is omitted",
        ),
    ] {
        let request = Request { level: text(own), ..asked("get", "/") };
        let policy = rules(&format!("- {{level: {rule}{more}}}"));
        let explained = policy.explain(&request).lines;
        assert_eq!(explained[1..].join("\n"), expected, "{rule}{more} of {own}");
    }
}
