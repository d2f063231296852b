//! `[[output]]`: the keys that all outputs have, and the checks that compare outputs.

use std::time::Duration;

use super::delivery::{BatchLimits, Rejected, Retry, Timeouts};
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
const NO_PLACE: &str = "this output cannot carry checkpoints, allowed: type tcp, stdout, \
                        lumberjack, relp, kafka, s3, and http with format ndjson or audit_log";

/// The settings of one `[[output]]` table.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The output's name, unique among the outputs. The metrics carry it in the label `output`.
    pub name: String,
    /// `true` if the queue keeps each event until this output has finished it, unless
    /// `queue.when_full` is `drop_oldest`. `false`: the queue may drop an event earlier whenever it
    /// needs the space. At least one output of a config must be required.
    pub required: bool,
    /// `true` if the newest checkpoint of the evidence also leaves through this output.
    pub checkpoints: bool,
    /// `true` if nothing is sent, and all events wait in the queue.
    pub pause: bool,
    /// The greatest number of bytes of events that are sent in a second; `None` if there is no
    /// limit.
    pub rate_limit: Option<u64>,
    /// The type of the output, with the settings that only outputs of this type have.
    pub kind: OutputKind,
    /// The section `[output.retry]`: the waits between attempts to send.
    pub retry: Retry,
    /// The section `[output.timeouts]`: the time limits of connections and of attempts to send.
    pub timeouts: Timeouts,
    /// The section `[output.batch]`: the limits of one request or write.
    pub batch: BatchLimits,
    /// The section `[output.rejected]`: the treatment of an event that the consumer refuses
    /// permanently.
    pub rejected: Rejected,
    /// The key `rejected.after_server_errors`: an event that the consumer answers with server
    /// errors for this long, while it takes others, counts as refused.
    pub after_server_errors: Duration,
    /// The filter of the output: `[filter]` and `[output.filter]` merged.
    pub filter: Filter,
}

/// The result of reading one `[[output]]`, which may have problems. Some keys are stored
/// separately, so that conflicts with other outputs are found even if another key of this output is
/// wrong.
pub(super) struct Draft {
    /// The path of the output's table in the file: `output[0]`.
    pub path: String,
    /// The name of the output. `None`: the key `name` is missing or wrong.
    pub name: Option<String>,
    /// The value of the key `required`; `true` if the key is absent or wrong.
    pub required: bool,
    /// The value of the key `checkpoints`; `false` if the key is absent or wrong.
    checkpoints: bool,
    /// The type of the output. `None`: the key `type` is missing or names no known type.
    kind: Option<OutputType>,
    /// The name and the value of a config key. The value is the time for which the protocol waits
    /// after it has sent an event; only then does the event count as delivered. `None`: the
    /// protocol does not wait, or its settings could not be read.
    pub final_after: Option<(&'static str, Duration)>,
    /// The name of the output's type if an output of this type collects events for minutes.
    pub collects: Option<&'static str>,
    /// The section `[output.filter]`. `None`: a table in it is wrong.
    filter: Option<Section>,
    /// The complete output, with an empty filter. `None`: the name, the type or the keys of the
    /// type could not be read. A wrong value elsewhere is replaced by its default or left out.
    pub output: Option<Output>,
}

impl Draft {
    /// Returns the path of the output's table (`output[0]`), and the addresses to which the output
    /// sends events. Returns `None` if the draft has no output.
    pub(crate) fn targets(&self) -> Option<(&str, Vec<Target>)> {
        Some((&self.path, self.output.as_ref()?.kind.targets()))
    }

    /// Returns the output for a message about another key: its name and line, such as `output
    /// "siem" (line 5)`. Without a name, only the line is told.
    pub(super) fn shown(&self, cx: &Context<'_>) -> String {
        match (&self.name, cx.line_of(&self.path)) {
            (Some(name), Some(line)) => format!("output {name:?} (line {line})"),
            (None, Some(line)) => format!("the output in line {line}"),
            (_, None) => self.path.clone(),
        }
    }
}

/// Returns the name of the output that has the key `path`, such as `output[1].tls.ca`. Returns
/// `None` if `names` has only one output, if the output has no name, and for the key `name` itself.
pub(super) fn name_of(names: &[(String, Option<String>)], path: &str) -> Option<String> {
    let has = |output: &str| {
        let key = path.strip_prefix(output);
        key.is_some_and(|key| key.is_empty() || (key.starts_with('.') && key != ".name"))
    };
    let (_, name) = names.iter().find(|(output, _)| has(output))?;
    name.clone().filter(|_| names.len() > 1)
}

/// Reads one table `[[output]]` of the config. Its key `type` must name one of `types`. Returns a
/// draft, in which a part is missing if the keys for it have no usable value. `entries` is called
/// only for a key that this type of output does not have: it returns the keys of all types, so that
/// the error message can name the types that have the key.
pub(crate) fn read(
    t: &mut Table<'_, '_>,
    types: &[OutputType],
    entries: &dyn Fn() -> Vec<Entry>,
) -> Draft {
    let name = t.word(
        required("name", "name", "label in metrics and logs; unique, not \"queue\""),
        values::output_name,
    );
    let names: Vec<_> = types.iter().map(|it| it.name).zip(0..).collect();
    let chosen: Option<usize> = t.choice("type", &names, None, "protocol of the consumer");
    let kind = chosen.and_then(|index| types.get(index)).copied();
    let required = t.flag(
        "required",
        true,
        "false: when other events need the room, events are dropped for this output alone, and \
         counted; no 200 waits for it. At least one output must be required",
    );
    let checkpoints = t.flag(
        "checkpoints",
        false,
        "true: the newest checkpoint of the evidence is sent too, on a line of its own; for type \
         tcp, stdout, lumberjack, relp, kafka, s3, and http with format ndjson or audit_log",
    );
    let pause = t.flag(
        "pause",
        false,
        "true: nothing is sent, and events wait in the queue until a reload removes this key; at \
         shutdown nothing is sent either, so a queue in memory loses them",
    );
    let rate_limit = t.word(
        optional(
            "rate_limit",
            "size per second, at least \"1kB/s\"",
            "no limit",
            "limit for the bytes of events that are sent, before compression, with repeated \
             attempts; for a consumer that must catch up with a backlog",
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
    let (rejected, after_server_errors) = t.section("rejected", delivery::rejected);
    let final_after = protocol.as_ref().and_then(|kind| kind.final_after);
    let collects = kind.filter(|kind| kind.collects).map(|kind| kind.name);
    let collected_after = final_after.filter(|_| collects.is_some());
    contradictions_of_max_elapsed(t, retry.max_elapsed, rejected, collected_after);
    let form = kind.map(|kind| kind.form).unwrap_or_default();
    let filter = filter::filter(t, Some(form));
    t.refuse_rest(&|key| of_another_type(key, type_name, &entries()));
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

/// Reports `retry.max_elapsed` in two cases: the output tries rejected events again for ever, so it
/// must not give any up; or the time is not longer than the time for which the output collects
/// events. `collected_after` is that time, with the name of its key.
fn contradictions_of_max_elapsed(
    t: &Table<'_, '_>,
    max_elapsed: Option<Duration>,
    rejected: Option<Rejected>,
    collected_after: Option<(&str, Duration)>,
) {
    let Some(limit) = max_elapsed else { return };
    let path = format!("{}.retry.max_elapsed", t.path);
    if rejected == Some(Rejected::Retry) {
        t.cx.error(&path, "conflicts with rejected.action = \"retry\": remove one of the two");
    }
    if let Some((key, age)) = collected_after.filter(|(_, age)| limit <= *age) {
        let least = values::show_time(age);
        let message = format!("must be longer than {key} ({least})");
        t.cx.error(&path, message);
    }
}

/// Returns the error message for a key that only other types of output have. Returns `None` if no
/// type of output has the key. If the key `type` is missing or wrong, `type_name` is `None`: the
/// message is then empty, and nothing is reported about the key.
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
        |name| format!("type {name} has no key `{key}`, which is for type {}", owners.join(", "));
    Some(type_name.map(message).unwrap_or_default())
}

/// Returns the complete outputs of all drafts. In each output, `[filter]` (`all`) is merged into
/// the output's own filter. Returns `None` if one of the drafts has no output or no filter.
pub(super) fn with_filter(all: &Section, drafts: Vec<Draft>) -> Option<Vec<Output>> {
    let with = |draft: Draft| {
        let (output, own) = (draft.output?, draft.filter?);
        let default = draft.kind?.form;
        let filter = filter::merged(all, own, default, output.kind.index.as_deref());
        Some(Output { filter, ..output })
    };
    drafts.into_iter().map(with).collect()
}

/// Warns of each output whose receiver has a known limit for single events, while no
/// `filter.max_event_bytes` is set that holds for the output.
///
/// There is no default instead of the warning: the relay takes nothing out of an event unless the
/// config says so, and most receivers can be set to take larger events.
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

/// Reports four mistakes: no output is required, two outputs have the same name, there is a second
/// output of a type that allows only one, or an output sends checkpoints and there is no section
/// `[evidence]` (`has_evidence`).
pub(super) fn contradictions(cx: &Context<'_>, outputs: &[Draft], has_evidence: bool) {
    for draft in outputs.iter().filter(|draft| draft.checkpoints && !has_evidence) {
        let message = "needs a section [evidence], which makes the checkpoints";
        cx.error(&format!("{}.checkpoints", draft.path), message);
    }
    if let Some(first) = outputs.first()
        && outputs.iter().all(|draft| !draft.required)
    {
        let message = "is false for every output: at least one output must be required, so that \
                       events are kept for it";
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
                "{} {what} already: only one output of type {name} is allowed",
                first.shown(cx)
            );
            cx.error(&format!("{}.type", draft.path), message);
        }
    }
}
