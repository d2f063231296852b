//! `[[output]]`: the keys that all outputs have, and the checks that compare outputs.

use std::time::Duration;

use super::delivery::{AFTER_SERVER_ERRORS_MAX, BatchLimits, Rejected, Retry, Timeouts};
use super::filter::{Filter, Section};
use super::protocol::{OutputKind, OutputType};
use super::targets::Target;
use super::{delivery, filter};
use config_table::problem::Severity;
use config_table::reader::{Context, Entry};
use config_table::table::{Table, optional, required};
use config_table::values;
use config_table::values::BatchBytes;

/// The message about checkpoints on an output that can't carry them.
const NO_PLACE: &str = "this output cannot send checkpoints, allowed: types tcp, stdout, \
                        lumberjack, relp, kafka, s3, and http with format ndjson or audit_log";

/// The message for `concurrency` of type s3, which earlier versions took.
const S3_CONCURRENCY_ENDED: &str = "this key has ended: remove it. It had no effect: an s3 output \
                                    stores one object at a time";

/// One `[[output]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The name, unique among the outputs. It is the label `output` of metrics.
    pub name: String,
    /// `true` if the queue keeps each event until this output has finished it, unless
    /// `queue.when_full` is `drop_oldest`. If it is `false`, the queue may drop an event earlier to
    /// make room. At least one output of a config must be required.
    pub required: bool,
    /// `true` if the newest checkpoint of the evidence is also sent through this output.
    pub checkpoints: bool,
    /// `true` if nothing is sent, and all events wait in the queue.
    pub pause: bool,
    /// The maximum number of bytes of events that are sent per second, if there is a limit.
    pub rate_limit: Option<u64>,
    /// The type of the output, with the settings that only this type has.
    pub kind: OutputKind,
    /// `[output.retry]`: the waits between attempts to send.
    pub retry: Retry,
    /// `[output.timeouts]`: the time limits of connections and of attempts to send.
    pub timeouts: Timeouts,
    /// `[output.batch]`: the limits of one request or write.
    pub batch: BatchLimits,
    /// `rejected.action`: the treatment of an event that the consumer turns down again and again.
    pub rejected: Rejected,
    /// `rejected.after_server_errors`: an event counts as refused if it is turned down in another
    /// way than by a refusal for this long while the consumer accepts other events.
    pub after_server_errors: Duration,
    /// `[filter]` and `[output.filter]` merged.
    pub filter: Filter,
}

/// One `[[output]]` as it was read. Some keys are stored separately, so that conflicts with other
/// outputs are found even if another key of this output is wrong.
pub(super) struct Draft {
    /// The path of the output's table: `output[0]`.
    pub path: String,
    /// The name of the output. `None`: the key `name` is missing or wrong.
    pub name: Option<String>,
    /// The value of the key `required`; `true` if the key is absent or wrong.
    pub required: bool,
    checkpoints: bool,
    /// The type; `None` if it is missing or unknown.
    kind: Option<OutputType>,
    /// The name and the value of the key for the time after which a sent event counts as delivered.
    /// `None` if the protocol does not wait, or its settings could not be read.
    pub final_after: Option<(&'static str, Duration)>,
    /// The name of the output's type, if this type collects events for minutes.
    pub collects: Option<&'static str>,
    /// `[output.filter]`; `None` if a table in it is wrong.
    filter: Option<Section>,
    /// The complete output, with an empty filter. `None` if the name, the type or the keys of the
    /// type could not be read.
    pub output: Option<Output>,
}

impl Draft {
    /// Returns the path of the output's table and its targets; `None` if the draft has no output.
    pub(crate) fn targets(&self) -> Option<(&str, Vec<Target>)> {
        Some((&self.path, self.output.as_ref()?.kind.targets()))
    }

    /// Returns the name as messages show it, with each `${…}` unexpanded.
    pub(super) fn shown_name(&self, cx: &Context<'_>) -> Option<String> {
        let name = self.name.as_ref()?;
        Some(cx.unexpanded(&format!("{}.name", self.path), name))
    }

    /// Returns a text that names the output in a message about another key, such as `output "siem"
    /// (line 5)`, or `the output on line 5` if it has no name.
    pub(super) fn shown(&self, cx: &Context<'_>) -> String {
        match (self.shown_name(cx), cx.line_of(&self.path)) {
            (Some(name), Some(line)) => format!("output {name:?} (line {line})"),
            (None, Some(line)) => format!("the output on line {line}"),
            (_, None) => self.path.clone(),
        }
    }
}

/// Returns the name of the output that has the key `path`, such as `output[1].tls.ca`. `None` if no
/// output has the key, the output has no name, `names` has only one, or the key is `name`.
pub(super) fn name_of(names: &[(String, Option<String>)], path: &str) -> Option<String> {
    let has = |output: &str| {
        let key = path.strip_prefix(output);
        key.is_some_and(|key| key.is_empty() || (key.starts_with('.') && key != ".name"))
    };
    let (_, name) = names.iter().find(|(output, _)| has(output))?;
    name.clone().filter(|_| names.len() > 1)
}

/// Reads one `[[output]]`, whose type must be one of `types`. `is_awaited`: senders wait for the
/// required outputs. `entries` returns the keys of all types, for the message about a key that only
/// other types have.
pub(crate) fn read(
    t: &mut Table<'_, '_>,
    types: &[OutputType],
    is_awaited: bool,
    entries: &dyn Fn() -> Vec<Entry>,
) -> Draft {
    let name = t.word(
        required("name", "name", "label in metrics and logs; must be unique, and not \"queue\""),
        values::output_name,
    );
    let names: Vec<_> = types.iter().map(|it| it.name).zip(0..).collect();
    let chosen: Option<usize> = t.choice("type", &names, None, "the consumer's protocol");
    let kind = chosen.and_then(|index| types.get(index)).copied();
    let required = t.flag(
        "required",
        true,
        "`false`: if the queue needs the room, events are dropped for this output only, and \
         counted; a 200 never waits for this output. At least one output must be required",
    );
    let checkpoints = t.flag(
        "checkpoints",
        false,
        "`true`: also send the newest checkpoint of the evidence log, on a line of its own; for \
         types `tcp`, `stdout`, `lumberjack`, `relp`, `kafka`, `s3`, and `http` with format \
         `ndjson` or `audit_log`",
    );
    let pause = t.flag(
        "pause",
        false,
        "`true`: send nothing; events stay in the queue until a reload removes this key. Nothing \
         is sent at shutdown either, so events in a memory queue are then lost",
    );
    let rate_limit = t.word(
        optional(
            "rate_limit",
            "size per second, at least \"1kB/s\"",
            "no limit",
            "maximum bytes of events sent, before compression and including retries; protects a \
             consumer that has to work through a backlog",
        ),
        values::rate,
    );
    let type_name = kind.map(|kind| kind.name);
    t.cx.scope.set(type_name);
    let protocol = kind.and_then(|kind| (kind.read)(t));
    if checkpoints && protocol.as_ref().is_some_and(|kind| !kind.carries_checkpoints) {
        let path = format!("{}.checkpoints", t.path);
        t.cx.error(&path, NO_PLACE);
    }
    let retry = t.section("retry", delivery::retry);
    let timeouts = t.section("timeouts", delivery::timeouts);
    let batch_bytes = kind.map_or(BatchBytes::UNLIMITED, |kind| kind.batch_bytes);
    let batch = t.section("batch", |t| delivery::batch(t, batch_bytes));
    let (rejected, after_server_errors) =
        t.section("rejected", |t| delivery::rejected(t, is_awaited && required));
    let final_after = protocol.as_ref().and_then(|kind| kind.final_after);
    let collects = kind.filter(|kind| kind.collects).map(|kind| kind.name);
    let form = kind.map(|kind| kind.form).unwrap_or_default();
    let filter = filter::filter(t, Some(form));
    t.refuse_rest(&|key| match (type_name, key) {
        (Some("s3"), "concurrency") => Some(S3_CONCURRENCY_ENDED.to_owned()),
        _ => of_another_type(key, type_name, &entries()),
    });
    t.cx.scope.set(None);
    let whole = name.clone().zip(protocol).zip(rejected);
    let output = whole.map(|((name, kind), rejected)| Output {
        name,
        required,
        checkpoints,
        pause,
        rate_limit,
        kind,
        retry,
        timeouts,
        batch,
        rejected,
        after_server_errors,
        filter: Filter::default(),
    });
    let path = t.path.clone();
    Draft { path, name, required, checkpoints, kind, final_after, collects, filter, output }
}

/// Returns the message for a key that only other types have, or `None` if no type has it. If the
/// output has no valid type (`type_name`), the message is empty, so that the key is not reported.
fn of_another_type(key: &str, type_name: Option<&str>, entries: &[Entry]) -> Option<String> {
    let owners: Vec<&str> = entries
        .iter()
        .filter(|entry| entry.section == "output" && entry.name == key)
        .flat_map(|entry| entry.scopes.clone())
        .collect();
    if owners.is_empty() {
        return None;
    }
    let message =
        |name| format!("type {name} has no key `{key}`, allowed only for: {}", owners.join(", "));
    Some(type_name.map(message).unwrap_or_default())
}

/// Returns the outputs, with `[filter]` (`all`) merged into the filter of each. `None` if a draft
/// has no output or no filter.
pub(super) fn with_filter(all: &Section, drafts: Vec<Draft>) -> Option<Vec<Output>> {
    let with = |draft: Draft| {
        let (output, own) = (draft.output?, draft.filter?);
        let default = draft.kind?.form;
        let filter = filter::merged(all, own, default, output.kind.index.as_deref());
        Some(Output { filter, ..output })
    };
    drafts.into_iter().map(with).collect()
}

/// Warns of each output whose receiver has a known limit for single events, if no
/// `filter.max_event_bytes` holds for the output.
///
/// The key has no default, because the relay removes nothing from an event unless the config says
/// so, and most receivers can be configured to accept larger events.
pub(super) fn warn_of_large_events(cx: &Context<'_>, outputs: &[Draft]) {
    for draft in outputs {
        let key = format!("{}.filter.max_event_bytes", draft.path);
        let limit = draft.output.as_ref().and_then(|output| output.kind.event_limit);
        if let Some(limit) = limit
            && !cx.is_set("filter.max_event_bytes")
            && !cx.is_set(&key)
        {
            cx.problem_at(&key, &key, format!("is not set. {limit}"), Severity::Warning);
        }
    }
}

/// Warns of each required output whose `rejected.after_server_errors` is longer than kube-apiserver
/// repeats a batch. Call this only if senders wait for the required outputs.
pub(super) fn warn_of_long_waits(cx: &Context<'_>, outputs: &[Draft]) {
    let is_long = |it: &Output| {
        it.rejected != Rejected::Retry && it.after_server_errors > AFTER_SERVER_ERRORS_MAX
    };
    let required = outputs.iter().filter(|draft| draft.required);
    for draft in required.filter(|draft| draft.output.as_ref().is_some_and(is_long)) {
        let key = format!("{}.rejected.after_server_errors", draft.path);
        let message = "is longer than 3m with queue.acknowledge = \"delivered\": if this consumer \
                       turns one event down for so long, kube-apiserver stops repeating the \
                       event's batch, and counts all of it as lost";
        cx.problem_at(&key, &key, message, Severity::Warning);
    }
}

/// Reports two outputs with the same name, a second output of a type that allows only one, and
/// checkpoints without a section `[evidence]`. Also reports if no output is required.
pub(super) fn contradictions(cx: &Context<'_>, outputs: &[Draft], has_evidence: bool) {
    for draft in outputs.iter().filter(|draft| draft.checkpoints && !has_evidence) {
        let message = "needs the section [evidence], which creates the checkpoints";
        cx.error(&format!("{}.checkpoints", draft.path), message);
    }
    if let Some(first) = outputs.first()
        && outputs.iter().all(|draft| !draft.required)
    {
        let message = "is false for every output: at least one output must be required, so that \
                       the queue keeps its events";
        cx.error(&format!("{}.required", first.path), message);
    }
    for (index, draft) in outputs.iter().enumerate() {
        let before = outputs.iter().take(index);
        if let Some(name) = &draft.name
            && let Some(first) = before.clone().find(|other| other.name.as_ref() == Some(name))
        {
            let message = format!("duplicate name, also used by {}", first.shown(cx));
            cx.error(&format!("{}.name", draft.path), message);
        }
        if let Some(OutputType { name, only_one: Some(what), .. }) = draft.kind
            && let Some(first) = before.clone().find(|it| it.kind.is_some_and(|it| it.name == name))
        {
            let message = format!(
                "{} already {what}: only one output of type {name} is allowed",
                first.shown(cx)
            );
            cx.error(&format!("{}.type", draft.path), message);
        }
    }
}
