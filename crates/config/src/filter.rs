//! `[filter]` and `[output.filter]`: which events are sent, and in which form.
//!
//! `[filter]` holds for every output, together with the output's own `[output.filter]`: see
//! [`merged`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use config_table::problem::{Content, Problem, Severity};
use config_table::reader::Context;
use config_table::table::{TABLE, Table, Tables, derived, optional, required, whole};
use config_table::values::{MIB, secs};
use transform::policy::{Criteria, GroupResources, Match, Mistake, Names, RULES_MAX, Step};
use transform::redact;
use transform::redact::{Redaction, With};
use transform::shape::{Bodies, DataStream, Form, ManagedFields, Shape};

/// The minimum of `max_event_bytes`. An event can have this many bytes even if all of its parts are
/// cut.
const EVENT_BYTES_MIN: u64 = 1024;

/// The maximum of `deduplicate`. At most a million past events are remembered, so with a longer
/// time many would be forgotten too early.
const WINDOW_MAX: Duration = secs(24 * 3600);

/// The maximum length of an annotation's name: that of a name in structured data (RFC 5424 §6).
const ANNOTATION_CHARS_MAX: usize = 32;

/// The maximum number of bytes of an annotation's value, which is added to every event.
const ANNOTATION_BYTES_MAX: usize = 256;

/// The choice of events that an output sends, and their form; by default all, unchanged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    /// The tables that select events: one list from each of `[filter]` and `[output.filter]` that
    /// has the key `match`. An event is sent only if it matches at least one table of every list.
    pub matches: Vec<Vec<Match>>,
    /// The files with Kubernetes audit policies. A policy may drop an event, or lower its audit
    /// level.
    pub policies: Vec<PathBuf>,
    /// The configured rules of redaction. Kubernetes' own secrets are redacted too, even if the
    /// list is empty. `None` if nothing is redacted.
    pub redact: Option<Vec<redact::Rule>>,
    /// The maximum size of an event in bytes. A larger event loses as little as possible of
    /// webhooks' patches, `responseObject` and `requestObject`. If it is still too large, its other
    /// parts are cut. If even that is not enough, it counts as rejected, but is sent if
    /// `rejected.action` is `retry`. `None` if there is no limit.
    pub max_event_bytes: Option<u64>,
    /// Events with the same bytes as one that was received within this time are not sent, as far as
    /// the relay remembers it. `None` if repeated events are sent too.
    pub deduplicate: Option<Duration>,
    /// The annotations that are added to each event: name (without the prefix
    /// `kube-audit-forwarder/`) and value.
    pub annotate: BTreeMap<String, String>,
    /// The form in which events are sent. It is applied last, so `max_event_bytes` limits the size
    /// that an event has before.
    pub form: Form,
    /// The data stream into which the output writes ECS documents; `None` if it writes none.
    pub data_stream: Option<DataStream>,
}

/// A section `filter` as it was read: the filter, and the keys of the form that the section has.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Section {
    filter: Filter,
    shape: Option<Shape>,
    bodies: Option<Bodies>,
    managed_fields: Option<ManagedFields>,
}

impl Filter {
    /// Returns `true` if this is the default filter, which sends every event unchanged.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Returns the filter of an output, made from `[filter]` (`all`) and `[output.filter]` (`own`).
/// Lists are joined, first those of `all`. The smaller `max_event_bytes` wins. Otherwise, `own`
/// wins: for `deduplicate`, for the same annotation, and for a key of the form. `default` has the
/// values for keys of the form that neither section sets; the output writes into `index`.
pub(crate) fn merged(all: &Section, own: Section, default: Form, index: Option<&str>) -> Filter {
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    let form = Form {
        shape: own.shape.or(all.shape).unwrap_or(default.shape),
        bodies: own.bodies.or(all.bodies).unwrap_or(default.bodies),
        managed_fields: own.managed_fields.or(all.managed_fields).unwrap_or(default.managed_fields),
    };
    let data_stream = index.filter(|_| form.shape == Shape::Ecs).and_then(DataStream::of);
    let (all, own) = (&all.filter, own.filter);
    Filter {
        matches: all.matches.iter().cloned().chain(own.matches).collect(),
        policies: all.policies.iter().cloned().chain(own.policies).collect(),
        redact: match (&all.redact, own.redact) {
            (None, own) => own,
            (Some(all), own) => Some(all.iter().cloned().chain(own.unwrap_or_default()).collect()),
        },
        max_event_bytes: least(all.max_event_bytes, own.max_event_bytes),
        deduplicate: own.deduplicate.or(all.deduplicate),
        annotate: all.annotate.clone().into_iter().chain(own.annotate).collect(),
        form,
        data_stream,
    }
}

/// Reads the section `filter`, or an empty one. `None` if a table of `match` or `redact` is wrong.
/// `of_type` has the output's defaults for the form; it is `None` for `[filter]`.
pub(crate) fn filter(t: &mut Table<'_, '_>, of_type: Option<Form>) -> Option<Section> {
    let key = optional(
        "filter",
        TABLE,
        "all events, unchanged",
        "which events are sent, and in what form",
    );
    match t.optional_section(key, |t| keys(t, of_type)) {
        Some(filter) => filter,
        None => Some(Section::default()),
    }
}

fn keys(t: &mut Table<'_, '_>, of_type: Option<Form>) -> Option<Section> {
    let policy = policy(t);
    let max_event_bytes = t.size_of(
        derived(
            "max_event_bytes",
            "size, at least 1KiB",
            (None, "no limit"),
            "maximum event size. Larger events are trimmed: only as much of the webhook patches, \
             `responseObject` and `requestObject` is removed as necessary; then other large parts \
             are cut",
        ),
        EVENT_BYTES_MIN..=64 * MIB,
    );
    let deduplicate = t.optional_time(
        "deduplicate",
        secs(1)..=WINDOW_MAX,
        "repeats are sent",
        "time during which events with the same bytes are sent only once",
    );
    let annotate = t.word_map(
        (
            "annotate",
            "table of strings",
            "annotations to add to each event, as kube-audit-forwarder/NAME",
        ),
        annotation_name,
        annotation_value,
    );
    let (shape, bodies, managed_fields) = form(t, of_type);
    let matches = found_matches(t);
    let redact = t.found_tables(optional(
        "redact",
        "table, or array of tables",
        "nothing",
        "fields to remove or hash; even an empty list removes what Kubernetes itself treats as \
         secret",
    ));
    let matches = read_matches(t, matches);
    let redact = redact.map(|tables| t.read_tables(tables, redaction));
    let matches = matches?;
    let redact = whole(redact.map(|tables| tables.into_iter().collect()))?;
    let is_matched = |code: &u16| {
        let has = |codes: &[RangeInclusive<u16>]| {
            codes.is_empty() || codes.iter().any(|range| range.contains(code))
        };
        let exempts_all = |of: &Match| of.unless.contains(&Criteria::default());
        matches.iter().flatten().any(|of| has(&of.criteria.code) && !exempts_all(of))
    };
    let unmatched: Vec<_> =
        DENIED.iter().filter(|code| !is_matched(code)).map(u16::to_string).collect();
    if matches.as_ref().is_some_and(|all| !all.is_empty()) && !unmatched.is_empty() {
        let codes = unmatched.join(" or ");
        let message = format!(
            "matches no event with the code {codes}, so these denied requests are not sent: to \
             send them, add a table with code = [\"401\", \"403\"]"
        );
        t.warn("match", message);
    }
    let filter = Filter {
        matches: matches.into_iter().collect(),
        policies: policy.into_iter().collect(),
        redact,
        max_event_bytes,
        deduplicate,
        annotate,
        ..Filter::default()
    };
    Some(Section { filter, shape, bodies, managed_fields })
}

fn policy(t: &mut Table<'_, '_>) -> Option<PathBuf> {
    t.file(
        optional(
            "policy",
            "path",
            "none",
            "file with an audit.k8s.io/v1 Policy, which drops events or lowers their audit level",
        ),
        Content::Policy,
    )
}

/// Reads the keys of the form. Each is `None` if it is absent or wrong.
fn form(
    t: &mut Table<'_, '_>,
    of_type: Option<Form>,
) -> (Option<Shape>, Option<Bodies>, Option<ManagedFields>) {
    let shapes = [Shape::Event, Shape::Ecs, Shape::Ocsf].map(|shape| (shape.name(), shape));
    let shape = t.optional_choice(
        "shape",
        &shapes,
        otherwise(&shapes, of_type.map(|form| form.shape)),
        "schema of the documents, applied last. `event`: the event itself; `ecs`: Elastic Common \
         Schema; `ocsf`: OCSF API Activity",
    );
    let words = [("keep", Bodies::Keep), ("string", Bodies::String), ("drop", Bodies::Drop)];
    let bodies = t.optional_choice(
        "bodies",
        &words,
        otherwise(&words, of_type.map(|form| form.bodies)),
        "`requestObject` and `responseObject` are kept, become JSON strings (as do unknown names in \
         `extra`), or are dropped along with webhook patches",
    );
    let words = [("keep", ManagedFields::Keep), ("drop", ManagedFields::Drop)];
    let managed_fields = t.optional_choice(
        "managed_fields",
        &words,
        otherwise(&words, of_type.map(|form| form.managed_fields)),
        "`drop`: remove `metadata.managedFields` from the bodies, like `omitManagedFields` in a \
         Policy",
    );
    (shape, bodies, managed_fields)
}

/// Returns the config reference's text for the default of a key of the form. `default` is that of
/// the output's type, or `None` in `[filter]`.
fn otherwise<T: PartialEq>(words: &[(&str, T)], default: Option<T>) -> String {
    match words.iter().find(|(_, value)| Some(value) == default.as_ref()) {
        Some((word, _)) => format!("the value in `[filter]`, else `\"{word}\"`"),
        None => "the output's default".to_owned(),
    }
}

fn refuse_empty(t: &Table<'_, '_>, name: &str, found: Option<&Tables<'_>>) {
    if found.is_some_and(|found| found.tables.is_empty()) {
        t.error(name, "is empty: add a table, or remove the key");
    }
}

/// Takes the key `match`, whose tables [`read_matches`] then reads.
fn found_matches<'a>(t: &mut Table<'_, 'a>) -> Option<Tables<'a>> {
    let found = t.found_tables(optional(
        "match",
        "table, or array of tables",
        "every event",
        "an event is sent only if it matches at least one of these tables",
    ));
    refuse_empty(t, "match", found.as_ref());
    found
}

/// Reads the tables of `match`. The inner `None` means that the key is absent, and the outer one
/// that a table is wrong.
fn read_matches<'a>(
    t: &mut Table<'_, 'a>,
    found: Option<Tables<'a>>,
) -> Option<Option<Vec<Match>>> {
    let matches = found.map(|tables| t.read_tables(tables, of_match));
    let matches: Option<Vec<Match>> = whole(matches.map(|tables| tables.into_iter().collect()))?;
    let count = matches.iter().flatten().map(|of| 1 + of.unless.len()).sum::<usize>();
    if count > RULES_MAX {
        t.error(
            "match",
            format!("has {count} tables, including those in unless, allowed: at most {RULES_MAX}"),
        );
    }
    Some(matches)
}

/// Reads the value of a `match` that a person gives to a tap: a table, or an array of tables, in
/// TOML. A `${…}` is an error, because the text may come over the network, and must not make the
/// relay read a file.
///
/// # Errors
///
/// All mistakes in the text, separated by semicolons.
pub fn read_match(text: &str) -> Result<Vec<Match>, String> {
    if !text.trim_start().starts_with(['{', '[']) {
        let what = "is not a table, allowed: what filter.match takes, such as { verbs = \
                    [\"delete\"], namespaces = [\"prod\"] }";
        return Err(what.to_owned());
    }
    let text = format!("match = {text}");
    let (cx, table) = Context::new(&text, &|_| None);
    cx.expands.set(false);
    let mut t = Table::root(&cx, table);
    let found = found_matches(&mut t);
    let matches = read_matches(&mut t, found);
    t.refuse_rest(&|_| None);
    let problems = cx.problems().into_iter().filter(|it| it.severity == Severity::Error);
    let line = |Problem { path, message, .. }| match &*path {
        "" => message,
        path => format!("{path}: {message}"),
    };
    let wrong: Vec<_> = problems.map(line).collect();
    match matches.flatten() {
        Some(matches) if wrong.is_empty() => Ok(matches),
        _ => Err(wrong.join("; ")),
    }
}

/// Reads one table of `match`. `None` if [`criteria`] returns `None` for it, or for one of its
/// `unless`.
fn of_match(t: &mut Table<'_, '_>) -> Option<Match> {
    let unless = t.found_tables(optional(
        "unless",
        "table, or array of tables",
        "none",
        "exemptions: an event that matches one of these does not match this table; same keys, \
         except `unless` and `resource_names`",
    ));
    refuse_empty(t, "unless", unless.as_ref());
    let criteria = criteria(t, unless.is_some(), false);
    let exemption = |t: &mut Table<'_, '_>| self::criteria(t, false, true);
    let unless = unless.map(|tables| t.read_tables(tables, exemption));
    let unless = whole(unless.map(|tables| tables.into_iter().collect()))?;
    Some(Match { criteria: criteria?, unless: unless.unwrap_or_default() })
}

/// Reads the criteria of one table of `match`, or of `unless` (`is_exempt`). Keys may also be
/// spelled as in a Kubernetes audit Policy (`userGroups`), because users copy rules from policies.
/// A table without criteria is an error, except in `match` with `may_be_empty`. In `unless`, this
/// includes a table whose only values are `*`, because it would exempt every event. `None` if
/// [`Criteria::mistakes`] finds a mistake, or if a key of an exemption is unknown or wrong.
fn criteria(t: &mut Table<'_, '_>, may_be_empty: bool, is_exempt: bool) -> Option<Criteria> {
    for (name, in_a_policy) in
        [("user_groups", "userGroups"), ("non_resource_urls", "nonResourceURLs")]
    {
        t.rename(in_a_policy, name);
    }
    let has_no_key = t.is_empty();
    let meaning = "users who sent the request; a trailing `*` matches any suffix, `*` alone \
                   matches every event";
    let users = unless_any(words(t, "users", "anyone", meaning));
    let meaning = "the user's groups, such as \"system:nodes\"; `*` alone matches every event";
    let user_groups = unless_any(words(t, "user_groups", "anyone", meaning));
    let verbs = unless_any(words(
        t,
        "verbs",
        "any",
        "verbs, such as \"create\" or \"list\"; `*` alone matches every verb",
    ));
    let meaning = "namespaces in the request URL; \"\" matches URLs without one; a trailing `*` \
                   matches any suffix, `*` alone matches every object";
    let namespaces = words(t, "namespaces", "any", meaning);
    let non_resource_urls = words(
        t,
        "non_resource_urls",
        "any",
        "paths of non-resource requests; a trailing `*` matches any suffix",
    );
    let resources = t
        .found_tables(optional(
            "resources",
            "table, or array of tables",
            "any",
            "resources that the request targets",
        ))
        .map(|tables| t.read_tables(tables, |t| group_resources(t, is_exempt)));
    let code = t.words(
        optional(
            "code",
            "array of strings",
            "any code, or none",
            "response codes, such as \"404\" or \"500-599\"; 401 and 403 are not allowed in \
             `unless`",
        ),
        |text| codes(text, is_exempt),
    );
    let criteria = Criteria {
        users,
        user_groups,
        verbs,
        resources: resources.unwrap_or_default(),
        namespaces,
        non_resource_urls,
        code: code.unwrap_or_default(),
    };
    // Without the keys that are unknown or wrong, an exemption would seem to cover more events.
    let is_whole = !is_exempt || (t.is_empty() && are_known(t));
    let is_empty = match is_exempt {
        true => is_whole && criteria == Criteria::default(),
        false => has_no_key && !may_be_empty,
    };
    if is_empty {
        t.cx.error(&t.path, "is empty: add a criterion, or remove the table");
    }
    let mistakes = criteria.mistakes(&Names::CONFIG);
    let report = |Mistake { path, what }: &Mistake, severity| {
        let spot = path.iter().fold(t.path.clone(), |spot, step| match step {
            Step::Field(name) => format!("{spot}.{name}"),
            Step::Item(index) => format!("{spot}[{index}]"),
        });
        t.cx.problem_at(&spot, &spot, t.cx.without_secrets(&spot, what), severity);
    };
    mistakes.iter().for_each(|mistake| report(mistake, Severity::Error));
    criteria.doubts(&Names::CONFIG).iter().for_each(|doubt| report(doubt, Severity::Warning));
    (mistakes.is_empty() && is_whole).then_some(criteria)
}

/// Returns `true` if no key of a table of `unless` has a wrong value. Such a value is reported
/// already, and leaves the list of its key empty.
fn are_known(t: &Table<'_, '_>) -> bool {
    let keys =
        ["users", "user_groups", "verbs", "namespaces", "non_resource_urls", "resources", "code"];
    keys.iter().all(|key| t.cx.are_known(&[&t.path_of(key)]))
}

/// The codes of denied requests: an error in `unless`; a `match` without them causes a warning.
const DENIED: [u16; 2] = [401, 403];

/// Parses a code, or a range of codes. `is_exempt` is `true` in `unless`, where [`DENIED`] codes
/// are an error.
fn codes(text: &str, is_exempt: bool) -> Result<RangeInclusive<u16>, String> {
    let number = |text: &str| {
        let is_code = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|code| is_code && *code >= 100)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let codes = number(first).zip(number(last)).filter(|(first, last)| first <= last);
    let (first, last) =
        codes.ok_or("is not a code, allowed: three digits, or a range such as 500-599")?;
    if is_exempt && DENIED.iter().any(|code| (first..=last).contains(code)) {
        return Err(
            "contains 401 or 403: unless must not exempt denied requests by their code, allowed: \
             other codes"
                .to_owned(),
        );
    }
    Ok(first..=last)
}

/// Reads one table of `resources`: an API group, its resources, and names of objects. In `unless`
/// (`is_exempt`), names are not allowed: clients choose them, and could hide events by them.
fn group_resources(t: &mut Table<'_, '_>, is_exempt: bool) -> GroupResources {
    let group = t.word_or(
        ("group", "string", "API group; \"\" is the core group, `*` is any group"),
        "",
        None,
        |text| Ok(text.to_owned()),
    );
    let meaning = "resources, such as `pods`, `pods/log`, `pods/*` (includes `pods`), `*/status`";
    let resources = words(t, "resources", "all in the group", meaning);
    let mut of =
        GroupResources { group: group.unwrap_or_default(), resources, ..Default::default() };
    if is_exempt {
        t.refuse_rest(&|name| {
            let what = "is not allowed in unless, because clients choose object names";
            matches!(name, "resource_names" | "resourceNames").then(|| what.to_owned())
        });
    } else {
        t.rename("resourceNames", "resource_names");
        let meaning = "object names; `*` alone matches any name";
        of.resource_names = unless_any(words(t, "resource_names", "any", meaning));
    }
    of
}

/// Reads one table of `redact`. `None` if its key `fields` is wrong or missing.
fn redaction(t: &mut Table<'_, '_>) -> Option<redact::Rule> {
    let checked = |resources: &[&str], fields: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let (resources, fields) = (owned(resources), owned(fields));
        let rule = redact::Rule { resources, fields, with: With::Drop };
        Redaction::new(&[rule]).map(drop)
    };
    let resources = t.texts(
        optional(
            "resources",
            "array of strings",
            "every event",
            "RESOURCE (core group), GROUP/RESOURCE or GROUP/RESOURCE/SUBRESOURCE; each part can be \
             `*`",
        ),
        |text| checked(&[text], &["requestObject"]),
    );
    let fields = t.texts(
        required(
            "fields",
            "array of strings",
            "paths, such as `requestObject.data.*`, where `*` is any member or element",
        ),
        |text| checked(&[], &[text]),
    );
    let with = t.choice(
        "with",
        &[("drop", With::Drop), ("sha256", With::Sha256)],
        Some(With::Drop),
        "`drop`: remove the value; `sha256`: replace it with its hash. Equal values have equal \
         hashes, and short or known values can be guessed",
    );
    let resources = resources.unwrap_or_default();
    Some(redact::Rule { resources, fields: fields?, with: with? })
}

/// Reads an array of strings of any content. The list is empty if the key is absent or wrong.
fn words(
    t: &mut Table<'_, '_>,
    name: &'static str,
    otherwise: &'static str,
    meaning: &'static str,
) -> Vec<String> {
    let key = optional(name, "array of strings", otherwise, meaning);
    t.words(key, |text| Ok(text.to_owned())).unwrap_or_default()
}

/// Returns the list. If it contains `*`, returns an empty list, which matches any value.
fn unless_any(list: Vec<String>) -> Vec<String> {
    if list.iter().any(|value| value == "*") { Vec::new() } else { list }
}

fn annotation_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_end = |c: char| c.is_ascii_alphanumeric();
    if text.len() > ANNOTATION_CHARS_MAX
        || !text.chars().all(allowed)
        || !text.starts_with(is_end)
        || !text.ends_with(is_end)
    {
        return Err(format!(
            "is not a name, allowed: 1 to {ANNOTATION_CHARS_MAX} letters, digits, -, _ and ., with \
             a letter or digit at both ends"
        ));
    }
    Ok(text.to_owned())
}

fn annotation_value(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > ANNOTATION_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "is not a valid value, allowed: 1 to {ANNOTATION_BYTES_MAX} bytes without control \
             characters"
        ));
    }
    Ok(text.to_owned())
}
