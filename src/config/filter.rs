//! `[filter]` and `[output.filter]`: which events leave, and in which form.
//!
//! `[filter]` holds for every output, together with the output's own `[output.filter]`; [`merged`]
//! says how.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::Content;
use super::table::TABLE;
use super::table::Table;
use super::table::Tables;
use super::table::derived;
use super::table::optional;
use super::table::required;
use super::values::MIB;
use super::values::secs;
use crate::policy::Criteria;
use crate::policy::GroupResources;
use crate::policy::Mistake;
use crate::policy::Names;
use crate::policy::Step;
use crate::redact;
use crate::redact::Redaction;
use crate::redact::With;

/// The least of `max_event_bytes`: an event without its bodies may still have this many bytes.
const EVENT_BYTES_MIN: u64 = 1024;

/// The longest `deduplicate`. The memory of a window is bounded by a number of events: a longer
/// window would forget events before its time is over.
const WINDOW_MAX: Duration = secs(24 * 3600);

/// The longest name of an annotation: names in RFC 5424's structured data have at most 32
/// characters.
const ANNOTATION_CHARS_MAX: usize = 32;

/// The most bytes of an annotation's value. Each event carries it.
const ANNOTATION_BYTES_MAX: usize = 256;

/// Which events leave by an output, and in which form. The default lets every event leave as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    /// One list for `[filter]` and one for `[output.filter]`, if they are set. An event leaves if
    /// it meets one of the criteria of each list.
    pub matches: Vec<Vec<Criteria>>,
    /// Files with audit policies. Each of them may drop an event, or lower its level.
    pub policies: Vec<PathBuf>,
    /// The rules of redaction. They come on top of the redaction of Kubernetes' own secrets, which
    /// is done even if this list is empty. `None`: nothing is redacted.
    pub redact: Option<Vec<redact::Rule>>,
    /// An event of more bytes loses its bodies; `None`: there is no limit.
    pub max_event_bytes: Option<u64>,
    /// An event of the same bytes does not leave again within this time; `None`: it does.
    pub deduplicate: Option<Duration>,
    /// Annotations that are added to each event, by their names without the prefix
    /// `kube-audit-forwarder/`.
    pub annotate: BTreeMap<String, String>,
}

impl Filter {
    /// Returns `true` if the filter changes nothing: every event leaves as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The filter of an output: `all` is `[filter]`, `own` is `[output.filter]`. Lists are joined, of
/// two sizes the smaller counts, and otherwise the output's own value counts.
pub(super) fn merged(all: &Filter, own: Filter) -> Filter {
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
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
    }
}

/// Reads the section `filter` of the whole file or of an output. `None`: there is a problem.
pub(super) fn filter(t: &mut Table<'_, '_>) -> Option<Filter> {
    let key =
        optional("filter", TABLE, "events leave as they are", "what leaves, and how much of it");
    match t.optional_section(key, keys) {
        Some(filter) => filter,
        None => Some(Filter::default()),
    }
}

/// Reads the keys of the section.
fn keys(t: &mut Table<'_, '_>) -> Option<Filter> {
    let policy = t.file(
        optional(
            "policy",
            "path",
            "none",
            "file with an audit.k8s.io/v1 Policy, applied to recorded events: they are dropped, or \
             lowered to the level that it asks for",
        ),
        Content::Policy,
        true,
    );
    t.cx.policies.borrow_mut().extend(policy.clone());
    let max_event_bytes = t.size_of(
        derived(
            "max_event_bytes",
            "size, at least 1KiB",
            (None, "no limit"),
            "larger events lose responseObject, then requestObject, as kube-apiserver truncates; what is \
             still larger is rejected",
        ),
        EVENT_BYTES_MIN..=64 * MIB,
    );
    let deduplicate = t.optional_time(
        "deduplicate",
        secs(1)..=WINDOW_MAX,
        "everything leaves",
        "events of the same bytes leave once in so long",
    );
    let annotate = t.word_map(
        (
            "annotate",
            "table of strings",
            "added to each event's annotations, as kube-audit-forwarder/NAME",
        ),
        annotation_name,
        annotation_value,
    );
    let matches = t.found_tables(optional(
        "match",
        "table, or array of tables",
        "every event",
        "only events that match one of these leave, by the criteria of a Policy's rule",
    ));
    let redact = t.found_tables(optional(
        "redact",
        "table, or array of tables",
        "nothing",
        "what of bodies does not leave; also if it is empty, what holds secrets of Kubernetes' own is redacted",
    ));
    if matches.as_ref().is_some_and(Tables::is_empty) {
        t.cx.error(&t.path_of("match"), "is empty, allowed: at least one table, or leave it out");
    }
    let matches = matches.map(|tables| t.read_tables(tables, criteria));
    let redact = redact.map(|tables| t.read_tables(tables, redaction));
    let (matches, redact) = (all_of(matches)?, all_of(redact)?);
    Some(Filter {
        matches: matches.into_iter().collect(),
        policies: policy.into_iter().collect(),
        redact,
        max_event_bytes,
        deduplicate,
        annotate,
    })
}

/// The tables, `Some(None)` if the key is absent, and `None` if one of them has a problem.
fn all_of<T>(tables: Option<Vec<Option<T>>>) -> Option<Option<Vec<T>>> {
    match tables {
        Some(tables) => tables.into_iter().collect::<Option<Vec<_>>>().map(Some),
        None => Some(None),
    }
}

/// Reads a table of `match`. The spelling of a Policy (`userGroups`) is accepted too, because rules
/// are copied from there. `None`: there is a problem.
fn criteria(t: &mut Table<'_, '_>) -> Option<Criteria> {
    for (name, in_a_policy) in
        [("user_groups", "userGroups"), ("non_resource_urls", "nonResourceURLs")]
    {
        t.rename(in_a_policy, name);
    }
    let is_empty = t.is_empty();
    let users = words(t, "users", "anybody", "one of these asked");
    let user_groups =
        words(t, "user_groups", "anybody", "who asked is in one of these, like \"system:nodes\"");
    let verbs = words(t, "verbs", "any", "like \"create\" or \"list\"");
    let namespaces =
        words(t, "namespaces", "any", "in the request's URL; \"\" is outside of all namespaces");
    let non_resource_urls = words(
        t,
        "non_resource_urls",
        "any",
        "the path, of requests about no object; a * at its end is any rest",
    );
    let resources = t
        .found_tables(optional(
            "resources",
            "table, or array of tables",
            "any",
            "what the request is about",
        ))
        .map(|tables| t.read_tables(tables, group_resources));
    let criteria = Criteria {
        users,
        user_groups,
        verbs,
        resources: resources.unwrap_or_default(),
        namespaces,
        non_resource_urls,
    };
    if is_empty {
        t.cx.error(&t.path, "is empty, allowed: at least one criterion, or leave it out");
    }
    let mistakes = criteria.mistakes(&Names::CONFIG);
    for Mistake { path, what } in &mistakes {
        let spot = path.iter().fold(t.path.clone(), |spot, step| match step {
            Step::Field(name) => format!("{spot}.{name}"),
            Step::Item(index) => format!("{spot}[{index}]"),
        });
        t.cx.error(&spot, what);
    }
    (mistakes.is_empty() && !is_empty).then_some(criteria)
}

/// Reads a table of `match.resources`.
fn group_resources(t: &mut Table<'_, '_>) -> GroupResources {
    t.rename("resourceNames", "resource_names");
    let group = t.word_or(
        ("group", "string", "API group; \"\" is the core group, \"*\" is any"),
        "",
        None,
        |text| Ok(text.to_owned()),
    );
    let meaning = "like \"pods\", \"pods/log\", \"pods/*\" (also pods), \"*/status\"";
    let resources = words(t, "resources", "all of the group", meaning);
    let resource_names = words(t, "resource_names", "any", "objects of these names only");
    GroupResources { group: group.unwrap_or_default(), resources, resource_names }
}

/// Reads a table of `redact`. `None`: there is a problem.
fn redaction(t: &mut Table<'_, '_>) -> Option<redact::Rule> {
    let checked = |resources: &[&str], fields: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let (resources, fields) = (owned(resources), owned(fields));
        let rule = redact::Rule { resources, fields, with: With::Drop };
        Redaction::new(&[rule]).map(drop).map_err(|mistake| mistake.what)
    };
    let resources = t.texts(
        optional(
            "resources",
            "array of strings",
            "every event",
            "RESOURCE of the core group, GROUP/RESOURCE or GROUP/RESOURCE/SUBRESOURCE; each part may be *",
        ),
        |text| checked(&[text], &["requestObject"]),
    );
    let fields = t.texts(
        required(
            "fields",
            "array of strings",
            "like \"requestObject.data.*\", where * is any member or element",
        ),
        |text| checked(&[], &[text]),
    );
    let with = t.choice(
        "with",
        &[("drop", With::Drop), ("sha256", With::Sha256)],
        Some(With::Drop),
        "removed; or its hash in its place, which tells same from other, and by which short or known values can be guessed",
    );
    let resources = resources.unwrap_or_default();
    Some(redact::Rule { resources, fields: fields?, with: with? })
}

/// Reads an array of any strings; an absent one is empty.
fn words(
    t: &mut Table<'_, '_>,
    name: &'static str,
    otherwise: &'static str,
    meaning: &'static str,
) -> Vec<String> {
    let key = optional(name, "array of strings", otherwise, meaning);
    t.words(key, |text| Ok(text.to_owned())).unwrap_or_default()
}

/// Parses the name of an annotation, without the prefix.
fn annotation_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_end = |c: char| c.is_ascii_alphanumeric();
    if text.len() > ANNOTATION_CHARS_MAX
        || !text.chars().all(allowed)
        || !text.starts_with(is_end)
        || !text.ends_with(is_end)
    {
        return Err(format!(
            "is not a name, allowed: up to {ANNOTATION_CHARS_MAX} letters, digits, - _ and . with a letter or digit at both ends"
        ));
    }
    Ok(text.to_owned())
}

/// Parses the value of an annotation.
fn annotation_value(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > ANNOTATION_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!(
            "is not a value, allowed: 1 to {ANNOTATION_BYTES_MAX} bytes without control characters"
        ));
    }
    Ok(text.to_owned())
}
