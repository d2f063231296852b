//! Random policies and requests over small alphabets, so that rules often match. Each event is
//! written as kube-apiserver writes it, read, and decided three times: by the compiled matcher, by
//! the explanation, and by a slow model here (`is_met`) that follows kube-apiserver's steps on
//! strings. All three must agree. Further tests change the namespace and name in `objectRef`, which
//! must change no decision, and put the matching rules after hundreds of others.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::*;
use super::text;
use audit::request::{Object, Reader, Request, Uri, User};
use testing::list;

const NAMES: [&str; 4] = ["", "a", "b", "c"];
const GROUPS: [&str; 4] = ["", "*", "apps", "x"];
const KINDS: [&str; 14] = [
    "pods", "pods/log", "pods/*", "pods/", "*", "*/log", "*/*", "*/", "jobs", "jobs/x", "/log", "",
    "a/b/c", "*/x",
];
const URLS: [&str; 11] = ["*", "/", "/a", "/a*", "/a/*", "/a b", "/a b*", "/é", "/b**", "a", ""];
static URIS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    list(
        r"
/|/a|/a?x|/a/|/a/b?/a|/a%20b|/a%20b/c?%|/%C3%a9|/b|/a%2|/%61|
",
    )
});

/// Parts of paths of the API, as a URL spells them. Some have several spellings, and some contain a
/// slash.
static PARTS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    list(
        r"
a|b|c||namespaces|%6eamespaces|watch|proxy|status|finalize|pods|jobs|a%2Fb|%61|api|%2|b%252f
",
    )
});

/// Makes a random URI: mostly a path of the API, mostly with a namespace, sometimes with a query
/// that looks like a path.
fn uri() -> impl Strategy<Value = String> {
    let part = || select(&PARTS[..]);
    let root = select(
        &["/api/v1", "/apis/apps/v1", "//api/v1/", "/API/v1", "/oapi/v1", "", "/api", "api/v1"][..],
    );
    let verb = select(&["", "", "", "/watch", "/proxy"][..]);
    let namespace = prop_oneof![
        2 => Just(String::new()),
        3 => part().prop_map(|part| format!("/namespaces/{part}")),
    ];
    let rest = vec(part(), 0..4)
        .prop_map(|parts| parts.iter().map(|part| format!("/{part}")).collect::<String>());
    let end = select(&["", "", "", "/", "?x", "?/namespaces/a/", "/?a=/api/v1/namespaces/b"][..]);
    let of_api =
        (root, verb, namespace, rest, end).prop_map(|(root, verb, namespace, rest, end)| {
            [root, verb, &*namespace, &*rest, end].concat()
        });
    prop_oneof![
        1 => select(&URIS[..]).prop_map(str::to_owned),
        4 => of_api,
    ]
}

fn words(alphabet: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<String>> {
    // At least half of the lists are empty.
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
            code: Vec::new(),
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

/// Users and namespaces of a `match`, some of which are prefixes of others. The namespaces are
/// parts of the paths that [`uri`] makes.
const USERS_OF_MATCH: [&str; 10] = ["a*", "ab*", "abc*", "abcd*", "b*", "b**", "b", "ab", "*", ""];
const NAMESPACES_OF_MATCH: [&str; 10] =
    ["a*", "a/*", "a", "b", "name*", "names*", "namespaces", "p*", "", "*"];

fn criteria_of_match() -> impl Strategy<Value = Criteria> {
    let lists = (words(&USERS_OF_MATCH, 3), words(&NAMESPACES_OF_MATCH, 3));
    (criteria(), lists).prop_map(|(criteria, (users, namespaces))| Criteria {
        users,
        namespaces,
        ..criteria
    })
}

fn table_of_match() -> impl Strategy<Value = Match> {
    (criteria_of_match(), vec(criteria_of_match(), 0..3))
        .prop_map(|(criteria, unless)| Match { criteria, unless })
}

/// Returns `true` if a request matches a table of `match`. Each prefix is replaced by the request's
/// own value, or by a value that no request has, and the rest is the slow model's.
fn is_matched(of: &Match, request: &Request<'_>, uri: &str) -> bool {
    let name = request.user.as_ref().map(|user| String::from_utf8(user.name.to_vec()).unwrap());
    let namespace = requested(uri).map(|(namespace, _)| namespace);
    let whole = |list: &[String], own: &Option<String>| {
        let of = |spec: &String| match (spec.strip_suffix('*'), own) {
            (Some(prefix), Some(own)) if own.starts_with(prefix) => own.clone(),
            (Some(_), _) => "nobody's".to_owned(),
            (None, _) => spec.clone(),
        };
        list.iter().map(of).collect()
    };
    let meets = |criteria: &Criteria, keeps| {
        let users = whole(&criteria.users, &name);
        let namespaces = whole(&criteria.namespaces, &namespace);
        is_met(&Criteria { users, namespaces, ..criteria.clone() }, request, uri, keeps)
    };
    meets(&of.criteria, true) && !of.unless.iter().any(|unless| meets(unless, false))
}

/// Makes a random request, and its URI. The namespace and name in `objectRef` are chosen
/// independently of the URI, as if the sender of the request had written them into its body.
fn asked() -> impl Strategy<Value = (Request<'static>, String)> {
    (request(), uri())
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
    let rest = (select(&["get", "create", "list", "watch", ""][..]), stage);
    (proptest::option::of(user), proptest::option::weighted(0.7, object), rest).prop_map(
        |(user, object, (verb, stage))| Request {
            level: text("Request"),
            stage: text(stage),
            uri: Uri::default(),
            verb: text(verb),
            user,
            object,
        },
    )
}

/// Returns the event of this request, as kube-apiserver writes it.
fn event(request: &Request<'_>, uri: &str) -> String {
    let plain = |text: &[u8]| String::from_utf8(text.to_vec()).unwrap();
    let user = request.user.as_ref().map(|user| {
        let groups: Vec<String> = user.groups.iter().map(|group| plain(group)).collect();
        serde_json::json!({"username": plain(&user.name), "groups": groups})
    });
    let mut event = serde_json::json!({
        "level": plain(&request.level), "auditID": "a", "stage": plain(&request.stage),
        "requestURI": uri, "verb": plain(&request.verb),
        "user": user.unwrap_or_else(|| serde_json::json!({})),
    });
    if let Some(object) = &request.object {
        event["objectRef"] = serde_json::json!({
            "resource": plain(&object.resource), "namespace": plain(&object.namespace),
            "name": plain(&object.name), "apiGroup": plain(&object.group),
            "subresource": plain(&object.subresource),
        });
    }
    event.to_string().replace('&', "\\u0026")
}

/// Returns the namespace and name in a URL of the API, found in the steps of kube-apiserver's
/// `NewRequestInfo`, on strings. `None` for any other URL, and if Go refuses the URL.
fn requested(uri: &str) -> Option<(String, String)> {
    let escaped = uri.split('?').next().unwrap();
    let mut decoded = String::new();
    let mut pieces = escaped.split('%');
    decoded += pieces.next().unwrap();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        decoded.push(char::from(u8::from_str_radix(code, 16).ok()?));
        decoded += rest;
    }
    if !decoded.starts_with('/') {
        return None;
    }
    let all: Vec<&str> = match decoded.trim_matches('/') {
        "" => Vec::new(),
        trimmed => trimmed.split('/').collect(),
    };
    let mut parts = &all[..];
    if parts.len() < 3 || !["api", "apis"].contains(&parts[0]) {
        return None;
    }
    if parts[0] == "apis" {
        if parts.len() < 4 {
            return None;
        }
        parts = &parts[1..];
    }
    parts = &parts[2..];
    if ["proxy", "watch"].contains(&parts[0]) {
        if parts.len() < 2 {
            return None;
        }
        parts = &parts[1..];
    }
    let mut namespace = "";
    if parts[0] == "namespaces" && parts.len() > 1 {
        namespace = parts[1];
        if parts.len() > 2 && !["status", "finalize"].contains(&parts[2]) {
            parts = &parts[2..];
        }
    }
    let name = parts.get(1).copied().unwrap_or_default();
    Some((namespace.to_owned(), name.to_owned()))
}

/// Returns `true` if a request meets the criteria, decided as kube-apiserver decides, one criterion
/// after another, on strings. `keeps` is `true` if events that match are kept.
fn is_met(criteria: &Criteria, request: &Request<'_>, uri: &str, keeps: bool) -> bool {
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
        let of_url = requested(uri);
        let is_one_of = |list: &[String], value: Option<String>| {
            list.is_empty() || value.map_or(keeps, |value| list.contains(&value))
        };
        let namespace = of_url.as_ref().map(|(namespace, _)| namespace.clone());
        if !is_one_of(&criteria.namespaces, namespace) {
            return false;
        }
        let (resource, sub) = (plain(&object.resource), plain(&object.subresource));
        let whole = if sub.is_empty() { resource.clone() } else { format!("{resource}/{sub}") };
        let is_of_many = ["list", "watch"].contains(&&*plain(&request.verb));
        let name = of_url.map(|(_, name)| match name.is_empty() && is_of_many {
            true => plain(&object.name),
            false => name,
        });
        let is_kind = |spec: &String| {
            *spec == whole
                || spec == "*"
                || (!sub.is_empty() && *spec == format!("*/{sub}"))
                || *spec == format!("{resource}/*")
        };
        return criteria.resources.is_empty()
            || criteria.resources.iter().any(|of| {
                let named = is_one_of(&of.resource_names, name.clone());
                let group = of.group == "*" || of.group == plain(&object.group);
                group && (of.resources.is_empty() || (named && of.resources.iter().any(is_kind)))
            });
    }
    if criteria.non_resource_urls.is_empty() {
        return true;
    }
    let path = uri.split('?').next().unwrap();
    let path = if path.starts_with('/') || path == "*" { path } else { "" };
    // All escapes that URIS and PARTS contain, resolved in such an order that each is decoded once.
    let path = path.replace("%252f", "%25_2f");
    let path = path.replace("%20", " ").replace("%C3%a9", "é").replace("%61", "a");
    let path = path.replace("%6e", "n").replace("%2F", "/").replace("%25_", "%");
    request.object.is_none()
        && criteria.non_resource_urls.iter().any(|spec| {
            *spec == path || spec.ends_with('*') && path.starts_with(spec.trim_end_matches('*'))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_decided_of_events_is_what_a_slow_reading_of_the_rules_decides_of_their_requests(
        rules in vec(rule(), 0..9),
        omitted in vec(select(&Stage::ALL[..]), 0..2),
        omit_managed_fields in any::<bool>(),
        asked in vec(asked(), 8),
    ) {
        let policy = Policy::new(&omitted, omit_managed_fields, rules.clone());
        let matcher = Matcher::of_rules(rules.iter().map(|rule| (&rule.criteria, true)), false);
        let lines: String = asked.iter().map(|(request, uri)| event(request, uri) + "\n").collect();
        let mut reader = Reader::new(lines.as_bytes());
        let (mut users, mut of_matcher) = (Users::default(), Users::default());
        for (_, uri) in &asked {
            let (event, request) = reader.read().unwrap();
            prop_assert_eq!(request, &audit::request::request(event));
            let decision = policy.decide(request);
            // A user who was remembered before has the same decision.
            prop_assert_eq!(policy.decide_of(&Located::new(request), &mut users), decision);
            prop_assert_eq!(policy.decide_of(&Located::new(request), &mut users), decision);
            let keeps = |rule: &Rule| rule.level != Level::None;
            let is_met_by = |rule: &Rule| is_met(&rule.criteria, request, uri, keeps(rule));
            let first = rules.iter().position(is_met_by);
            prop_assert_eq!(decision.rule, first);
            prop_assert_eq!(policy.explain(request).decision, decision);
            let rule = first.map(|index| &rules[index]);
            prop_assert_eq!(decision.level, rule.map_or(Level::None, |rule| rule.level));
            // A rule that an unknown value alone meets drops no stage.
            let omits = rule.filter(|rule| is_met(&rule.criteria, request, uri, false));
            let mut stages = omitted.iter().chain(omits.into_iter().flat_map(|rule| &rule.omit_stages));
            prop_assert_eq!(decision.omit_stage, stages.any(|stage| stage.name().as_bytes() == &*request.stage));
            let own = rule.and_then(|rule| rule.omit_managed_fields);
            prop_assert_eq!(decision.omit_managed_fields, own.unwrap_or(omit_managed_fields));
            let first = rules.iter().position(|rule| is_met(&rule.criteria, request, uri, true));
            prop_assert_eq!(matcher.first(&Located::new(request), &mut of_matcher), first);
            // The URL that one list of rules has read is not read again for the next list.
            let located = Located::new(request);
            prop_assert_eq!(policy.decide_of(&located, &mut users), decision);
            prop_assert_eq!(matcher.first(&located, &mut of_matcher), first);
            prop_assert_eq!(policy.decide_of(&located, &mut users), decision);
        }
    }

    #[test]
    fn what_a_match_with_prefixes_and_exemptions_keeps_is_what_a_slow_reading_of_it_keeps(
        matches in vec(table_of_match(), 0..5),
        never in prop_oneof![Just(0_usize), 60..70_usize],
        names in vec(select(&["", "*", "a", "ab", "abc", "abd", "b", "b*", "ba", "c"][..]), 8),
        asked in vec(asked(), 8),
    ) {
        // After so many rules that no request meets, the sets have a second word.
        let none = Criteria { verbs: vec!["never".to_owned()], ..Criteria::default() };
        let mut all = vec![Match { criteria: none, unless: Vec::new() }; never];
        all.extend_from_slice(&matches);
        let matcher = Matcher::new(&all);
        let mut users = Users::default();
        for ((request, uri), name) in asked.iter().zip(names) {
            let user = request.user.clone().map(|user| User { name: text(name), ..user });
            let uri = uri.as_str();
            let asked = Request { user, uri: Uri::written(uri.as_bytes()), ..request.clone() };
            let first = matches.iter().position(|of| is_matched(of, &asked, uri));
            // The second time, the user is remembered.
            for _ in 0..2 {
                let found = matcher.first(&Located::new(&asked), &mut users);
                prop_assert_eq!(found, first.map(|first| never + first));
            }
            // The namespace of a body exempts nothing and keeps nothing.
            let mut other = asked.clone();
            if let Some(object) = &mut other.object {
                object.namespace = text("ab");
            }
            let found = matcher.first(&Located::new(&other), &mut users);
            prop_assert_eq!(found, first.map(|first| never + first));
        }
    }

    /// If the URL can be read, the namespace and name in `objectRef` change no decision. The name
    /// of a list or watch is an exception, because the URL has it too.
    #[test]
    fn the_namespace_and_name_of_a_body_change_no_decision(
        rules in vec(rule(), 0..9),
        (request, uri) in asked(),
        namespace in select(&NAMES[..]),
        name in select(&NAMES[..]),
    ) {
        let policy = Policy::new(&[], false, rules);
        let request = Request { uri: Uri::written(uri.as_bytes()), ..request };
        let mut other = request.clone();
        if let Some(object) = &mut other.object {
            object.namespace = text(namespace);
            if !matches!(&*request.verb, b"list" | b"watch") {
                object.name = text(name);
            }
        }
        prop_assert_eq!(policy.decide(&request), policy.decide(&other));
    }

    #[test]
    fn the_first_of_many_rules_is_found_wherever_it_is(
        few in vec(criteria(), 4),
        index in 0..300_usize,
        asked in vec(asked(), 8),
    ) {
        // A rule that no request meets is repeated, so that the sets have several words.
        let never = Criteria { verbs: vec!["never".to_owned()], ..Criteria::default() };
        let mut all = vec![never; index];
        all.extend_from_slice(&few);
        let matcher = Matcher::of_rules(all.iter().map(|criteria| (criteria, true)), false);
        let mut users = Users::default();
        for (request, uri) in &asked {
            let request = Request { uri: Uri::written(uri.as_bytes()), ..request.clone() };
            let first = few.iter().position(|criteria| is_met(criteria, &request, uri, true));
            let found = matcher.first(&Located::new(&request), &mut users);
            prop_assert_eq!(found, first.map(|first| index + first));
        }
    }
}

#[test]
fn a_matcher_of_nothing_matches_nothing_and_what_is_beyond_the_bound_is_left_out() {
    let request = Request::default();
    assert_eq!(Matcher::new([]).first(&Located::new(&request), &mut Users::default()), None);
    let never = Criteria { verbs: vec!["never".to_owned()], ..Criteria::default() };
    let of = |criteria| Match { criteria, unless: Vec::new() };
    let mut all = vec![of(never.clone()); RULES_MAX];
    all[RULES_MAX - 1] = Match::default();
    assert_eq!(
        Matcher::new(&all).first(&Located::new(&request), &mut Users::default()),
        Some(RULES_MAX - 1)
    );
    all.swap(0, RULES_MAX - 1);
    all[0] = of(never);
    all.push(Match::default());
    all[1].unless = vec![Criteria::default(); 3];
    assert_eq!(Matcher::new(&all).first(&Located::new(&request), &mut Users::default()), None);
}
