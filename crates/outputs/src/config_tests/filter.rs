//! Tests of `[filter]` and `[output.filter]`: reading and merging them, and the positions of
//! reported mistakes.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{OUTPUT, assert_problems, checked, config};
use config::*;
use transform::policy::{Criteria, GroupResources, Match};
use transform::redact;
use transform::redact::With;
use transform::shape::{Bodies, DataStream, Form, ManagedFields, Shape};

fn filter(text: &str) -> Filter {
    config(&format!("{OUTPUT}{text}")).outputs.remove(0).filter
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn of(criteria: Criteria) -> Match {
    Match { criteria, unless: Vec::new() }
}

#[test]
fn without_a_filter_nothing_is_looked_at() {
    assert!(filter("").is_empty());
    assert!(filter("[output.filter]\n").is_empty());
    assert!(filter("[filter]\n").is_empty());
    assert!(!filter("[output.filter]\nredact = []\n").is_empty());
}

#[test]
fn criteria_are_read_in_the_spelling_of_a_policy_too_and_a_table_stands_for_an_array_of_one() {
    let criteria = Criteria {
        user_groups: owned(&["g"]),
        verbs: owned(&["get"]),
        resources: vec![GroupResources {
            resources: owned(&["pods"]),
            resource_names: owned(&["a"]),
            ..GroupResources::default()
        }],
        ..Criteria::default()
    };
    for text in [
        "match = { userGroups = ['g'], verbs = ['get'], resources = { resources = ['pods'], resourceNames = ['a'] } }",
        "match = [{ user_groups = ['g'], verbs = ['get'], resources = [{ resources = ['pods'], resource_names = ['a'] }] }]",
    ] {
        let read = filter(&format!("[output.filter]\n{text}\n"));
        assert_eq!(read.matches, [vec![of(criteria.clone())]], "{text}");
    }
    let read = filter("[output.filter]\nmatch = { nonResourceURLs = ['/metrics'] }\n");
    assert_eq!(read.matches[0][0].criteria.non_resource_urls, ["/metrics"]);
}

#[test]
fn exemptions_are_read_with_their_table_and_a_table_may_have_nothing_else() {
    let users = |user: &str| Criteria { users: owned(&[user]), ..Criteria::default() };
    let account = "system:serviceaccount:ci:*";
    let read = filter(&format!("[output.filter.match]\nunless = {{ users = ['{account}'] }}\n"));
    let expected = Match { criteria: Criteria::default(), unless: vec![users(account)] };
    assert_eq!(read.matches, [vec![expected]]);
    let read = filter(
        "[output.filter]\nmatch = [{ users = ['a'], unless = [{ users = ['b'] }, { users = ['c'] }] }, \
         { users = ['d'] }]\n",
    );
    let unless = vec![users("b"), users("c")];
    assert_eq!(read.matches, [vec![Match { criteria: users("a"), unless }, of(users("d"))]]);
}

#[test]
fn what_is_wrong_in_an_exemption_is_told_where_it_stands() {
    assert_problems(
        "[filter]\nmatch = [{ unless = [] },\n\
         { unless = { resources = { resources = ['pods'], resourceNames = ['a'] } } },\n\
         { unless = [{}, { unless = { verbs = ['get'] } }] }]\n",
        r#"2:21: filter.match[0].unless: is empty: add a table
3:50: filter.match[1].unless[0].resources[0].resourceNames: is not allowed in unless, because clients 
4:13: filter.match[2].unless[0]: is empty: add a criterion
4:19: filter.match[2].unless[1].unless: unknown key `unless`"#,
    );
    // A `*` that stands for every value is no criterion, so these would exempt every event. A wrong
    // value is one error.
    let exempts_all = "2:22: filter.match[0].unless[0]: is empty: add a criterion";
    for exemption in [
        "verbs = ['*']",
        "users = ['a', '*']",
        "userGroups = ['*'], verbs = ['*']",
        "resources = []",
    ] {
        assert_problems(
            &format!("[filter]\nmatch = [{{ unless = [{{ {exemption} }}] }}]\n"),
            &format!(
                "2:9: filter.match: warning: matches no event with the code 401 or 403\n{exempts_all}"
            ),
        );
        filter(&format!(
            "[filter]\nmatch = [{{ unless = [{{ {exemption}, code = ['404'] }}] }}]\n"
        ));
    }
    assert_problems(
        "[filter]\nmatch = [{ code = ['404'], unless = { verbs = ['*'] } }]\n",
        "2:9: filter.match: warning: matches no event with the code 401 or 403\n\
         2:37: filter.match[0].unless[0]: is empty: add a criterion",
    );
    for (wrong, expected) in [
        ("verbs = []", "2:32: filter.match[0].unless[0].verbs: is empty, allowed: at least one"),
        ("resources = 1", "2:36: filter.match[0].unless[0].resources: is an integer, allowed: "),
        ("verb = ['*']", "2:24: filter.match[0].unless[0].verb: unknown key `verb`, did you mean"),
    ] {
        assert_problems(&format!("[filter]\nmatch = [{{ unless = [{{ {wrong} }}] }}]\n"), expected);
    }
    let one = "{ users = ['a'], unless = [{ users = ['b'] }, { users = ['c'] }] },";
    let tables = |count: usize| format!("[filter]\nmatch = [{}]\n", one.repeat(count));
    assert_eq!(filter(&tables(341)).matches[0].len(), 341);
    assert_problems(
        &tables(342),
        "2:9: filter.match: has 1026 tables, including those in unless, allowed: ",
    );
}

#[test]
fn codes_are_numbers_and_ranges_and_no_denied_request_is_dropped_by_its_code() {
    let code = |code: &[RangeInclusive<u16>]| Criteria { code: code.into(), ..Criteria::default() };
    let read = filter(
        "[output.filter]\nmatch = { code = ['401', '400-599'], unless = { code = ['404', '200-299'] } }\n",
    );
    let unless = vec![code(&[404..=404, 200..=299])];
    assert_eq!(read.matches, [vec![Match { criteria: code(&[401..=401, 400..=599]), unless }]]);
    for wrong in ["40", "4000", "+40", "099", "4xx", "500-", "-500", "599-500", "400-499-500", ""] {
        assert_problems(
            &format!("[filter]\nmatch = {{ code = ['{wrong}'] }}\n"),
            &format!(
                "2:19: filter.match[0].code[0]: {wrong:?} is not a code, allowed: three digits, or"
            ),
        );
    }
    for denied in ["401", "403", "400-499", "403-599", "100-401"] {
        assert_problems(
            &format!("[filter]\nmatch = {{ unless = {{ users = ['a'], code = ['{denied}'] }} }}\n"),
            &format!(
                "2:45: filter.match[0].unless[0].code[0]: {denied:?} contains 401 or 403: unless"
            ),
        );
    }
    filter("[filter]\nmatch = { unless = { code = ['100-400', '402', '404-999'] } }\n");
}

#[test]
fn a_match_that_keeps_denied_requests_to_itself_is_warned_of() {
    for (drops, codes) in [
        ("{ code = ['500-599'] }", "401 or 403"),
        ("[{ code = ['401'] }, { code = ['404'] }]", "403"),
    ] {
        assert_problems(
            &format!("[filter]\nmatch = {drops}\n"),
            &format!("2:9: filter.match: warning: matches no event with the code {codes}, so"),
        );
    }
    for keeps in
        ["[{ code = ['401'] }, { code = ['403'] }]", "[{ code = ['404'] }, { verbs = ['a'] }]"]
    {
        let checked = checked(&format!("{OUTPUT}[filter]\nmatch = {keeps}\n"));
        assert!(checked.problems.is_empty(), "{keeps}: {:?}", checked.problems);
    }
}

#[test]
fn what_stands_for_all_and_for_one_holds_together() {
    let verbs = |verb: &str| Criteria { verbs: owned(&[verb]), ..Criteria::default() };
    let read = filter(
        "[output.filter]\nmatch = { verbs = ['own'] }\nmax_event_bytes = 3000\nannotate = { a = 'own', b = 'own' }\n\
         redact = [{ fields = ['userAgent'], with = 'sha256' }]\n\
         [filter]\nmatch = { verbs = ['all'] }\nmax_event_bytes = 2000\nannotate = { a = 'all', c = 'all' }\n\
         deduplicate = '1m'\nredact = [{ fields = ['sourceIPs'] }]\n",
    );
    assert_eq!(read.matches, [vec![of(verbs("all"))], vec![of(verbs("own"))]]);
    assert_eq!(read.max_event_bytes, Some(2000));
    assert_eq!(read.deduplicate, Some(Duration::from_secs(60)));
    let annotate: Vec<_> = read.annotate.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(annotate, ["a=own", "b=own", "c=all"]);
    let rule =
        |field: &str, with| redact::Rule { resources: Vec::new(), fields: owned(&[field]), with };
    let rules = [rule("sourceIPs", With::Drop), rule("userAgent", With::Sha256)];
    assert_eq!(read.redact.as_deref(), Some(&rules[..]));
    let own = filter("[filter]\ndeduplicate = '1m'\n");
    assert_eq!(own.deduplicate, Some(Duration::from_secs(60)));
}

#[test]
fn what_is_wrong_in_a_filter_is_told_where_it_stands() {
    assert_problems(
        "[filter]\nmax_event_bytes = 100\ndeduplicate = '2d'\nannotate = { \"a b\" = 'x', c = \"\\n\" }\nmatch = []\nredact = 1\n",
        r#"2:19: filter.max_event_bytes: 100 is out of range, allowed: 
3:15: filter.deduplicate: 
4:14: filter.annotate."a b": "a b" is not a name, allowed: 
4:31: filter.annotate.c: 
5:9: filter.match: is empty: add a table
6:10: filter.redact: is an integer, allowed: table, or array of tables"#,
    );
    assert_problems(
        "[filter]\nmatch = [{}, { verb = ['get'] },\n { namespaces = ['a'], non_resource_urls = ['healthz'] },\n { resources = [{ group = 'apps/v1', resource_names = ['a'] }] }]\n",
        r#"2:10: filter.match[0]: is empty: add a criterion
2:16: filter.match[1].verb: unknown key `verb`, did you mean `verbs`?
3:44: filter.match[2].non_resource_urls: 
3:45: filter.match[2].non_resource_urls[0]: "healthz" 
4:27: filter.match[3].resources[0].group: 
4:55: filter.match[3].resources[0].resource_names: "#,
    );
    assert_problems(
        "[filter]\nredact = [{ resources = ['a/b/c/d'] },\n { fields = ['auditID'], with = 'hash' }]\n",
        r#"2:11: filter.redact[0].fields: is required: an array of strings
2:26: filter.redact[0].resources[0]: "a/b/c/d" 
3:14: filter.redact[1].fields[0]: "auditID" 
3:33: filter.redact[1].with: "hash" is unknown, allowed: "#,
    );
}

#[test]
fn the_form_of_an_output_is_its_own_or_else_that_of_all_or_else_its_types() {
    let elasticsearch = "[[output]]\nname = 'e'\ntype = 'elasticsearch'\nurls = ['https://e/']\n\
                         index = 'logs-kubernetes.audit_logs-prod'\n";
    let form = |shape, bodies, managed_fields| Form { shape, bodies, managed_fields };
    let stream = DataStream::of("logs-kubernetes.audit_logs-prod");
    assert!(stream.is_some());
    let of_type = form(Shape::Ecs, Bodies::String, ManagedFields::Keep);
    for (text, of_http, of_elasticsearch) in [
        ("", Form::AS_RECEIVED, of_type),
        (
            "[filter]\nshape = 'ocsf'\nmanaged_fields = 'drop'\n",
            form(Shape::Ocsf, Bodies::Keep, ManagedFields::Drop),
            form(Shape::Ocsf, Bodies::String, ManagedFields::Drop),
        ),
        (
            "[filter]\nbodies = 'drop'\n",
            form(Shape::Event, Bodies::Drop, ManagedFields::Keep),
            form(Shape::Ecs, Bodies::Drop, ManagedFields::Keep),
        ),
    ] {
        let read = config(&format!("{elasticsearch}{OUTPUT}{text}"));
        let [of_it, http] = &read.outputs[..] else { panic!("{text}") };
        assert_eq!((http.filter.form, of_it.filter.form), (of_http, of_elasticsearch), "{text}");
        assert_eq!(http.filter.data_stream, None);
        let is_ecs = of_elasticsearch.shape == Shape::Ecs;
        assert_eq!(of_it.filter.data_stream, stream.clone().filter(|_| is_ecs));
    }
    let own = "[output.filter]\nshape = 'event'\nbodies = 'keep'\n[filter]\nshape = 'ecs'\n";
    let read = config(&format!("{elasticsearch}{own}"));
    assert!(read.outputs[0].filter.is_empty());
    let own = "[output.filter]\nshape = 'event'\n[filter]\nshape = 'ecs'\nbodies = 'string'\n";
    let own = config(&format!("{OUTPUT}{own}")).outputs.remove(0).filter;
    assert_eq!(own.form, form(Shape::Event, Bodies::String, ManagedFields::Keep));
    assert_problems(
        "[filter]\nshape = 'esc'\nbodies = 1\nmanaged_fields = ''\n",
        r#"2:9: filter.shape: "esc" is unknown, did you mean "ecs"?
3:10: filter.bodies: is an integer, allowed: one of 
4:18: filter.managed_fields: "" is unknown, allowed: "keep", "drop""#,
    );
}
