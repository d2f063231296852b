//! Decides for each event whether an output sends it, and with which changes.
//!
//! The decisions are made in this order: does the event match (`match`)? Which level do the
//! policies ask for (`policy`)? Has the same event been sent before (`deduplicate`)? If the event
//! is sent, the changes are made in this order: bodies and managed fields that the policies omit
//! are removed; values that must not leave the relay are redacted (`redact`); annotations are added
//! (`annotate`); bodies and webhooks' patches that make the event too large are removed
//! (`max_event_bytes`). At last the event gets the form in which it leaves (`shape`, `bodies`,
//! `managed_fields`). Duplicates, sizes and the counters of changes are those of the event before
//! its form, and dead letters hold the event before its form ([`Filter::before_form`]), so that
//! they can be replayed.
//!
//! The filter knows events, and no batches, queues or consumers. It is not called for an output
//! without filter settings.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use audit::request::{Reader, Request};
use base::position::Position;
use base::{mutant, named_file};
use config::Rejected;
use transform::policy::{FILE_BYTES_MAX, Level, Located, Matcher, Policy, Problem, Users};
use transform::redact;
use transform::redact::{Annotations, Change, Done, Redaction};
use transform::shape::{Bodies, DataStream, Form, ManagedFields};

mod seen;

pub use seen::Seen;

/// The buffers that hold an event before it gets its form keep at most this much memory, in bytes,
/// for the next event.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// The filter's decision about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The event is sent as it is.
    Untouched,
    /// The event is sent with changes.
    Changed(Changes),
    /// The event is not sent: it does not fit the `match` rules, or an audit policy drops it. This
    /// is no loss, because the event is not meant for this output.
    Dropped,
    /// The event is not sent, because this output has sent, or is about to send, an earlier event
    /// with the same bytes, and both were received within the deduplication window.
    Duplicate,
    /// The event is not sent: even without its bodies it is larger than `max_event_bytes`, and this
    /// output gives up such events, which counts as a loss.
    TooLarge,
}

/// The kinds of changes that the filter made to an event, for counters. Added annotations and the
/// form in which an event leaves are not counted: if an event only got these, all fields are
/// `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// `true`: an audit policy lowered the event's level, or removed its managed fields.
    pub lowered: bool,
    /// `true`: a value that must not leave the relay was removed from the event or replaced.
    pub redacted: bool,
    /// `true`: the event was larger than `max_event_bytes`, and a body, or webhooks' patches of it,
    /// were removed from it.
    pub trimmed: bool,
}

/// The filter settings of one output. The policy files that the settings name can be read again
/// while the rules are in use.
pub struct Rules {
    matches: Vec<Matcher>,
    /// The criteria of `matches` as text, for the fingerprint of the rules.
    criteria: String,
    files: Vec<PathBuf>,
    policies: ArcSwap<Vec<Policy>>,
    redaction: Option<Redaction>,
    annotations: Option<Annotations>,
    /// The form in which events leave, and the data stream that ECS documents name.
    form: Form,
    data_stream: Option<DataStream>,
    bytes_max: Option<usize>,
    /// The time within which a second event with the same bytes is a duplicate; `None`: duplicates
    /// are sent.
    window: Option<Duration>,
    /// `true`: an event that is too large even without its bodies is not sent and counts as lost.
    /// `false`: such an event is sent, and the consumer decides.
    gives_up: bool,
}

impl Rules {
    /// Makes the rules from the filter settings of one output. The policy files are not read here:
    /// call [`Rules::read`] and [`Rules::apply`] before the first event.
    pub fn new(config: &config::Filter, rejected: Rejected) -> Self {
        let annotate = config.annotate.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let bytes_max = config.max_event_bytes.map(usize::try_from);
        Self {
            matches: config.matches.iter().map(Matcher::new).collect(),
            criteria: format!("{:?}", config.matches),
            files: config.policies.clone(),
            policies: ArcSwap::default(),
            // The config's reader has compiled these rules already, to check them.
            redaction: config
                .redact
                .as_ref()
                .map(|rules| Redaction::new(rules).expect("rules that were checked")),
            annotations: (!config.annotate.is_empty()).then(|| Annotations::new(annotate)),
            form: config.form,
            data_stream: config.data_stream.clone(),
            // A limit that does not fit into `usize` is more than the memory, and therefore no
            // limit.
            bytes_max: bytes_max.and_then(Result::ok),
            window: config.deduplicate,
            gives_up: rejected != Rejected::Retry,
        }
    }

    /// Reads the audit policy files that the config names, and returns the policies in the same
    /// order. Blocks the thread.
    ///
    /// # Errors
    ///
    /// One line of text for each mistake in the files.
    pub fn read(&self) -> Result<Vec<Policy>, Vec<String>> {
        let (mut policies, mut wrong) = (Vec::new(), Vec::new());
        for file in &self.files {
            match read_policy(file) {
                Ok(policy) => policies.push(policy),
                Err(mut problems) => wrong.append(&mut problems),
            }
        }
        if wrong.is_empty() { Ok(policies) } else { Err(wrong) }
    }

    /// Replaces the policies in use by policies that [`Rules::read`] has returned. They hold from
    /// the next batch on.
    pub fn apply(&self, policies: Vec<Policy>) {
        self.policies.store(Arc::new(policies));
    }

    /// Returns the policies in use as text. The text is another one if they decide in another way.
    pub fn policies_as_text(&self) -> String {
        as_text(&self.policies.load())
    }
}

fn as_text(policies: &[Policy]) -> String {
    format!("{:?}", policies.iter().map(Policy::rules_as_text).collect::<Vec<_>>())
}

/// Reads an audit policy from a file. Blocks the thread.
///
/// # Errors
///
/// One line of text for each mistake in the file: `FILE:LINE:COLUMN: what`.
pub fn read_policy(file: &Path) -> Result<Policy, Vec<String>> {
    policy_of(file, named_file::read(file, FILE_BYTES_MAX as u64))
}

/// Reads an audit policy from a file that a command line names, as [`read_policy`] does. The file
/// may be a pipe.
///
/// # Errors
///
/// The same as those of [`read_policy`].
pub fn read_policy_of_command(file: &Path) -> Result<Policy, Vec<String>> {
    policy_of(file, named_file::read_of_command(file, FILE_BYTES_MAX as u64))
}

/// Returns the policy in the content of a file.
fn policy_of(file: &Path, content: io::Result<Vec<u8>>) -> Result<Policy, Vec<String>> {
    let name = file.display();
    let unreadable = |error: io::Error| vec![format!("{name}: cannot read it: {error}")];
    let bytes = content.map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = valid.split(|byte| *byte == b'\n').count();
        let last = valid.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let column = String::from_utf8_lossy(last).chars().count() + 1;
        vec![format!("{name}:{line}:{column}: not UTF-8")]
    })?;
    Policy::read(&text).map_err(|problems| {
        let show = |Problem { line, column, what }| format!("{name}:{line}:{column}: {what}");
        problems.into_iter().map(show).collect()
    })
}

/// An iterator over the events of a text. It returns each event together with the request that the
/// event describes, and with the number of bytes that are [known](Reader::known).
pub enum Events<'a> {
    /// The request is read from each event.
    Read(Reader<'a>),
    /// Every event is returned with an empty request, because no rule of the filter needs the
    /// request.
    Split(audit::Events<'a>, Request<'a>),
}

impl<'a> Events<'a> {
    /// Returns the next event, without the byte after it, its request, and how many of its bytes
    /// are [known](Reader::known); `None` after the last event.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator could not lend the request until the next call"
    )]
    pub fn next(&mut self) -> Option<(&'a [u8], &Request<'a>, usize)> {
        match self {
            Self::Read(reader) => {
                let event = reader.advance()?;
                Some((event, reader.request(), reader.known()))
            }
            Self::Split(events, none) => Some((events.next()?, none, 0)),
        }
    }
}

/// An event for [`Filter::judge`] to decide about.
#[derive(Debug, Clone, Copy)]
pub struct EventView<'a> {
    /// The event's bytes as they were received.
    pub event: &'a [u8],
    /// The request that the event describes; empty if no rule of the filter needs it.
    pub request: &'a Request<'a>,
    /// The number of bytes at the beginning of the event that are [known](Reader::known), or 0.
    pub known: usize,
    /// The event's position. If the event is sent again, it is judged again with the same position.
    pub position: Position,
    /// The time since the relay accepted the event.
    pub age: Duration,
}

/// The filter of one output: its rules, and the memory of the events that the output has sent. The
/// output's delivery loop owns it.
pub struct Filter {
    rules: Arc<Rules>,
    policies: Arc<Vec<Policy>>,
    /// The memories of users: one for the `match` rules, and then one for each policy, in order. A
    /// memory that gets other rules than before forgets its users by itself, so nothing has to be
    /// done here when the policies are replaced.
    users: Vec<Users>,
    seen: Option<Seen>,
    /// The last event that [`Filter::judge`] was asked about, with all changes but its form. Empty
    /// if the event had no such change, or if it got no form.
    before_form: Vec<u8>,
    /// The same event without the bodies or managed fields that do not leave; empty if nothing of
    /// it stays behind.
    lean: Vec<u8>,
    /// `true`: the events that the output sent before this filter was made are not yet in `seen`,
    /// the memory of sent events.
    needs_history: bool,
}

impl Filter {
    /// Makes a filter with these rules. `seen` is the memory of sent events that the previous
    /// filter of this output returned from `into_seen`; `None` if there was no previous filter, or
    /// if it had no complete memory.
    pub fn new(rules: Arc<Rules>, seen: Option<Seen>) -> Self {
        let policies = rules.policies.load_full();
        let needs_history = seen.is_none();
        let seen = rules.window.map(|window| match seen {
            Some(mut seen) => {
                seen.set_window(window);
                seen
            }
            None => Seen::new(window),
        });
        let (before_form, lean) = (Vec::new(), Vec::new());
        Self { rules, policies, users: Vec::new(), seen, before_form, lean, needs_history }
    }

    /// Returns the memory of sent events, for the filter that replaces this one. `None` if this
    /// filter does not deduplicate, or if its memory is not complete because `history_loaded` was
    /// not called.
    pub fn into_seen(self) -> Option<Seen> {
        self.seen.filter(|_| !self.needs_history)
    }

    /// Takes the newest policies from the rules; must be called before each batch. Returns `true`
    /// if these are not the policies that the filter had before. Events before the position
    /// `settled` are final (acknowledged, dropped or given up) and will not be judged again.
    pub fn renew(&mut self, settled: Position) -> bool {
        if let Some(seen) = &mut self.seen {
            seen.settled(settled);
        }
        let before = std::mem::replace(&mut self.policies, self.rules.policies.load_full());
        !Arc::ptr_eq(&before, &self.policies)
    }

    /// Returns a fingerprint of the rules that choose the events that are sent (`match` and
    /// `policy`); 0 if every event is sent. Filters that choose other events have other
    /// fingerprints. Filters that choose the same events may have different ones, for example after
    /// a comment in a policy.
    pub fn selection(&self) -> u64 {
        let Self { rules, policies, .. } = self;
        if rules.matches.is_empty() && policies.is_empty() {
            return 0;
        }
        seen::hash(format!("{} {}", rules.criteria, as_text(policies)).as_bytes())[0]
    }

    /// Returns the time within which a second event with the same bytes is a duplicate; `None` if
    /// the filter does not deduplicate.
    pub fn window(&self) -> Option<Duration> {
        self.rules.window
    }

    /// Returns the length of the history that the filter needs; `None` if it needs none. The
    /// history has all events that were accepted at most this long ago, and that were sent before
    /// this filter was made. [`Filter::remember`] must be called for each event of the history.
    pub fn history_window(&self) -> Option<Duration> {
        self.rules.window.filter(|_| self.needs_history)
    }

    /// Tells the filter about one event that was sent before this filter was made, or that the same
    /// rules have kept back. The filter counts the event as sent. `age` is the time since the relay
    /// accepted the event.
    pub fn remember(&mut self, event: &[u8], position: Position, age: Duration) {
        has_left(&mut self.seen, event, position, age);
    }

    /// Tells the filter that its memory is complete: [`Filter::remember`] was called for all events
    /// that the output sent before this filter was made.
    pub fn history_loaded(&mut self) {
        self.needs_history = false;
    }

    /// Tells the filter that the events at these positions were not sent after all. Other events
    /// with the same bytes are then not duplicates of them, and may be sent.
    pub fn forget(&mut self, positions: Range<Position>) {
        if let Some(seen) = &mut self.seen {
            seen.forget(positions);
        }
    }

    /// Returns an iterator over the events of a text, for [`Filter::judge`]. The requests in the
    /// events are read only if a rule of the filter needs them.
    pub fn events<'a>(&self, events: audit::Events<'a>) -> Events<'a> {
        let Self { rules, policies, .. } = self;
        let asks = !rules.matches.is_empty()
            || !policies.is_empty()
            || rules.redaction.is_some()
            || rules.form.managed_fields == ManagedFields::Drop;
        match asks {
            true => Events::Read(Reader::of(events)),
            false => Events::Split(events, Request::default()),
        }
    }

    /// Decides whether an event is sent, and with which changes. For [`Verdict::Changed`], the
    /// changed event is appended to `changed`, which must be empty.
    pub fn judge(&mut self, asked: &EventView<'_>, changed: &mut Vec<u8>) -> Verdict {
        let EventView { event, request, known, position, age } = *asked;
        let Self { rules, policies, users, seen, .. } = self;
        let mut change = Change {
            redaction: rules.redaction.as_ref(),
            annotations: rules.annotations.as_ref(),
            event_bytes_max: rules.bytes_max,
            ..Change::default()
        };
        let located = Located::of_event(event, request);
        let mut matches = rules.matches.iter().enumerate();
        if !matches.all(|(list, matcher)| matcher.first(&located, of(users, list)).is_some()) {
            return self.dropped(position);
        }
        let mut level = Level::RequestResponse;
        for (index, policy) in policies.iter().enumerate() {
            let users = of(users, rules.matches.len() + index);
            let decision = policy.decide_of(&located, users);
            if decision.level == Level::None || decision.omit_stage {
                return self.dropped(position);
            }
            level = level.min(decision.level);
            change.omit_managed_fields |= decision.omit_managed_fields;
        }
        if has_left(seen, event, position, age) {
            return Verdict::Duplicate;
        }
        change.level = lowered(level, request);
        let Done { lowered, redacted, trimmed, is_too_large, .. } =
            redact::apply(event, request, known, &change, changed);
        if is_too_large && rules.gives_up {
            if let Some(seen) = seen {
                seen.forget(position..position.next());
            }
            return Verdict::TooLarge;
        }
        self.give_form(event, request, changed);
        match changed.is_empty() {
            true => Verdict::Untouched,
            false => Verdict::Changed(Changes { lowered, redacted, trimmed }),
        }
    }

    /// Returns the verdict on an event that the rules do not choose, and forgets the event: if
    /// earlier rules have chosen it, nobody knows whether the consumer has it.
    fn dropped(&mut self, position: Position) -> Verdict {
        mutant!("new-rules-leave-it-known", self.forget(position..position.next()));
        Verdict::Dropped
    }

    /// Gives an event that is sent the form in which it leaves. `changed` is the event with its
    /// changes so far, or empty if it has none; the document takes its place.
    fn give_form(&mut self, event: &[u8], request: &Request<'_>, changed: &mut Vec<u8>) {
        let Self { rules, before_form, lean, .. } = self;
        if rules.form == Form::AS_RECEIVED {
            return;
        }
        for buffer in [&mut *before_form, lean] {
            buffer.clear();
            buffer.shrink_to(BUFFER_BYTES_KEPT);
        }
        std::mem::swap(before_form, changed);
        let whole: &[u8] = if before_form.is_empty() { event } else { &*before_form };
        let without_bodies = rules.form.bodies == Bodies::Drop;
        let omit_managed_fields = rules.form.managed_fields == ManagedFields::Drop;
        let omit = Change { without_bodies, omit_managed_fields, ..Change::default() };
        redact::apply(whole, request, 0, &omit, lean);
        let has_changed = !before_form.is_empty() || !lean.is_empty();
        let lean: &[u8] = if lean.is_empty() { whole } else { lean };
        rules.form.write(lean, rules.data_stream.as_ref(), changed);
        if changed.is_empty() && has_changed {
            changed.extend_from_slice(lean);
        }
    }

    /// Returns the event that [`Filter::judge`] was asked about last, with all its changes but the
    /// form in which it leaves. `event` is this event as it was received. The result is right only
    /// if the filter [gives a form](Filter::gives_form) and the verdict was that the event is sent.
    pub fn before_form<'a>(&'a self, event: &'a [u8]) -> &'a [u8] {
        if self.before_form.is_empty() { event } else { &self.before_form }
    }

    /// Returns `true` if events may leave in another form than their own.
    pub fn gives_form(&self) -> bool {
        self.rules.form != Form::AS_RECEIVED
    }
}

/// Returns the level to which an event is lowered if its policies ask for `level`, which is not
/// None. `None` if the event keeps its own level, because that is not higher.
pub fn lowered(level: Level, request: &Request<'_>) -> Option<redact::Level> {
    // An event of an unknown level may have bodies, so it is treated as the highest level.
    let own = Level::of(&request.level).unwrap_or(Level::RequestResponse);
    match level {
        Level::Request if level < own => Some(redact::Level::Request),
        Level::Metadata if level < own => Some(redact::Level::Metadata),
        Level::None | Level::Metadata | Level::Request | Level::RequestResponse => None,
    }
}

/// Returns the memory of users for the list of rules with this index: first the lists of `match`,
/// then those of the policies.
fn of(users: &mut Vec<Users>, list: usize) -> &mut Users {
    if users.len() <= list {
        users.resize_with(list + 1, Users::default);
    }
    &mut users[list]
}

/// Returns `true` if the event is a duplicate of an event that was sent before. If not, the event
/// is remembered as sent. Without deduplication the result is always `false`.
fn has_left(seen: &mut Option<Seen>, event: &[u8], position: Position, age: Duration) -> bool {
    let Some(seen) = seen else { return false };
    let received = seen.received(age);
    seen.check(event, position, received)
}
