//! Random policies and requests over small alphabets, so that things match: what the compiled matcher decides is what a
//! slow reading of the rules decides, and what the explanation says.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::Criteria;
use super::super::GroupResources;
use super::super::Level;
use super::super::Matcher;
use super::super::Policy;
use super::super::RULES_MAX;
use super::super::Rule;
use super::super::Stage;
use super::text;
use crate::audit::request::Object;
use crate::audit::request::Request;
use crate::audit::request::Uri;
use crate::audit::request::User;

const NAMES: [&str; 4] = ["", "a", "b", "c"];
const GROUPS: [&str; 4] = ["", "*", "apps", "x"];
const KINDS: [&str; 14] = [
    "pods", "pods/log", "pods/*", "pods/", "*", "*/log", "*/*", "*/", "jobs", "jobs/x", "/log", "",
    "a/b/c", "*/x",
];
const URLS: [&str; 11] = ["*", "/", "/a", "/a*", "/a/*", "/a b", "/a b*", "/é", "/b**", "a", ""];
const URIS: [&str; 12] = [
    "/",
    "/a",
    "/a?x",
    "/a/",
    "/a/b?/a",
    "/a%20b",
    "/a%20b/c?%",
    "/%C3%a9",
    "/b",
    "/a%2",
    "/%61",
    "",
];

fn words(alphabet: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<String>> {
    // Half of all criteria are absent.
    prop_oneof![Just(Vec::new()), vec(select(alphabet).prop_map(str::to_owned), 0..=most)]
}

fn criteria() -> impl Strategy<Value = Criteria> {
    let of_group = (select(&GROUPS[..]), words(&KINDS, 3), words(&NAMES, 2)).prop_map(
        |(group, resources, resource_names)| GroupResources {
            group: group.to_owned(),
            resources,
            resource_names,
        },
    );
    let resources = prop_oneof![Just(Vec::new()), vec(of_group, 0..3)];
    let urls = prop_oneof![3 => Just(Vec::new()), 1 => words(&URLS, 3)];
    let who = (words(&NAMES, 3), words(&NAMES, 3), words(&["create", "get", ""], 2));
    (who, resources, words(&NAMES, 2), urls).prop_map(
        |((users, user_groups, verbs), resources, namespaces, non_resource_urls)| Criteria {
            users,
            user_groups,
            verbs,
            resources,
            namespaces,
            non_resource_urls,
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let outcome =
        (select(&Level::ALL[..]), vec(select(&Stage::ALL[..]), 0..2), any::<Option<bool>>());
    (criteria(), outcome).prop_map(|(criteria, (level, omit_stages, omit_managed_fields))| Rule {
        line: 1,
        level,
        criteria,
        omit_stages,
        omit_managed_fields,
    })
}

fn request() -> impl Strategy<Value = Request<'static>> {
    let word = || select(&NAMES[..]);
    let user = (word(), vec(word(), 0..3)).prop_map(|(name, groups)| User {
        name: text(name),
        groups: groups.into_iter().map(text).collect(),
    });
    let kind = (
        select(&["", "apps", "x", "y"][..]),
        select(&["pods", "jobs", "a", "*", ""][..]),
        select(&["", "log", "x", "*"][..]),
    );
    let object =
        (kind, word(), word()).prop_map(|((group, resource, sub), namespace, name)| Object {
            group: text(group),
            resource: text(resource),
            subresource: text(sub),
            namespace: text(namespace),
            name: text(name),
        });
    let stage = select(&["RequestReceived", "ResponseComplete", "Panic", "other"][..]);
    let rest = (select(&["get", "create", "list", ""][..]), select(&URIS[..]), stage);
    (proptest::option::of(user), proptest::option::weighted(0.7, object), rest).prop_map(
        |(user, object, (verb, uri, stage))| Request {
            level: text("Request"),
            stage: text(stage),
            uri: Uri::written(uri.as_bytes()),
            verb: text(verb),
            user,
            object,
        },
    )
}

/// What kube-apiserver does, one criterion after another, on strings.
fn is_met(criteria: &Criteria, request: &Request<'_>) -> bool {
    let plain = |text: &[u8]| String::from_utf8(text.to_vec()).unwrap();
    if !criteria.users.is_empty() || !criteria.user_groups.is_empty() {
        let Some(user) = &request.user else { return false };
        if !criteria.users.is_empty() && !criteria.users.contains(&plain(&user.name)) {
            return false;
        }
        let groups: Vec<String> = user.groups.iter().map(|group| plain(group)).collect();
        if !criteria.user_groups.is_empty()
            && !criteria.user_groups.iter().any(|group| groups.contains(group))
        {
            return false;
        }
    }
    if !criteria.verbs.is_empty() && !criteria.verbs.contains(&plain(&request.verb)) {
        return false;
    }
    if !criteria.namespaces.is_empty() || !criteria.resources.is_empty() {
        let Some(object) = &request.object else { return false };
        if !criteria.namespaces.is_empty()
            && !criteria.namespaces.contains(&plain(&object.namespace))
        {
            return false;
        }
        let (resource, sub) = (plain(&object.resource), plain(&object.subresource));
        let whole = if sub.is_empty() { resource.clone() } else { format!("{resource}/{sub}") };
        let is_made = &*request.verb == b"create" && sub.is_empty();
        let name = if is_made { String::new() } else { plain(&object.name) };
        let is_kind = |spec: &String| {
            *spec == whole
                || spec == "*"
                || (!sub.is_empty() && *spec == format!("*/{sub}"))
                || *spec == format!("{resource}/*")
        };
        return criteria.resources.is_empty()
            || criteria.resources.iter().any(|of| {
                let named = of.resource_names.is_empty() || of.resource_names.contains(&name);
                let group = of.group == "*" || of.group == plain(&object.group);
                group && (of.resources.is_empty() || (named && of.resources.iter().any(is_kind)))
            });
    }
    if criteria.non_resource_urls.is_empty() {
        return true;
    }
    let uri = plain(&request.uri.text());
    let path = uri.split('?').next().unwrap().to_owned();
    // All the escapes that URIS has.
    let path = path.replace("%20", " ").replace("%C3%a9", "é").replace("%61", "a");
    request.object.is_none()
        && criteria.non_resource_urls.iter().any(|spec| {
            *spec == path || spec.ends_with('*') && path.starts_with(spec.trim_end_matches('*'))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_matcher_decides_as_a_slow_reading_of_the_rules(
        rules in vec(rule(), 0..9),
        omitted in vec(select(&Stage::ALL[..]), 0..2),
        omit_managed_fields in any::<bool>(),
        requests in vec(request(), 8),
    ) {
        let policy = Policy::new(&omitted, omit_managed_fields, rules.clone());
        for request in &requests {
            let decision = policy.decide(request);
            let first = rules.iter().position(|rule| is_met(&rule.criteria, request));
            prop_assert_eq!(decision.rule, first);
            prop_assert_eq!(policy.explain(request).decision(), decision);
            let rule = first.map(|index| &rules[index]);
            prop_assert_eq!(decision.level, rule.map_or(Level::None, |rule| rule.level));
            let mut stages = omitted.iter().chain(rule.into_iter().flat_map(|rule| &rule.omit_stages));
            prop_assert_eq!(decision.omit_stage, stages.any(|stage| stage.name().as_bytes() == &*request.stage));
            let own = rule.and_then(|rule| rule.omit_managed_fields);
            prop_assert_eq!(decision.omit_managed_fields, own.unwrap_or(omit_managed_fields));
        }
    }

    #[test]
    fn the_first_of_many_rules_is_found_wherever_it_is(
        few in vec(criteria(), 4),
        index in 0..300_usize,
        requests in vec(request(), 8),
    ) {
        // A rule that no request meets, so often that the sets have several words.
        let never = Criteria { verbs: vec!["never".to_owned()], ..Criteria::default() };
        let mut all = vec![never; index];
        all.extend_from_slice(&few);
        let matcher = Matcher::new(&all);
        for request in &requests {
            let first = few.iter().position(|criteria| is_met(criteria, request));
            prop_assert_eq!(matcher.first(request), first.map(|first| index + first));
            prop_assert_eq!(matcher.matches(request), first.is_some());
        }
    }
}

#[test]
fn a_matcher_of_nothing_matches_nothing_and_what_is_beyond_the_bound_is_left_out() {
    let request = Request::default();
    assert_eq!(Matcher::new([]).first(&request), None);
    let never = Criteria { verbs: vec!["never".to_owned()], ..Criteria::default() };
    let mut all = vec![never; RULES_MAX];
    all[RULES_MAX - 1] = Criteria::default();
    assert_eq!(Matcher::new(&all).first(&request), Some(RULES_MAX - 1));
    all.swap(0, RULES_MAX - 1);
    all[0].verbs = vec!["never".to_owned()];
    all.push(Criteria::default());
    assert_eq!(Matcher::new(&all).first(&request), None);
}
