//! Decides for each event whether an output sends it, and with which changes.
//!
//! Decisions, in this order: does the event match (`match`)? Which level do the policies ask for
//! (`policy`)? Was the same event sent before (`deduplicate`)? Changes, in this order: bodies and
//! managed fields that the policies omit are removed; values that must not leave the relay are
//! redacted (`redact`); annotations are added (`annotate`); bodies and webhooks' patches that make
//! the event too large are removed, and then other large parts are cut (`max_event_bytes`).
//! Finally, the event gets the form in which it leaves (`shape`, `bodies`, `managed_fields`). Dead
//! letters can be replayed: they hold the event as received or, if it is too long for the protocol,
//! before its form ([`Filter::before_form`]). Sizes and counters also refer to the event before its
//! form.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use audit::request::{Reader, Request};
use base::named_file;
use base::position::Position;
use config::Rejected;
use transform::policy::{FILE_BYTES_MAX, Level, Located, Matcher, Policy, Problem, Users};
use transform::redact;
use transform::redact::{Annotations, Change, Done, Redaction};
use transform::shape::{Bodies, DataStream, Form, ManagedFields};

mod seen;

pub use seen::Seen;

/// The capacity in bytes that `Filter::before_form` and `Filter::lean` may keep for the next event.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// The filter's decision about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The event is sent as it is.
    Untouched,
    /// The event is sent with changes.
    Changed(Changes),
    /// The event is not meant for this output: `match` or an audit policy excludes it. This is no
    /// loss.
    Dropped,
    /// The output sends, or has sent, an earlier event with the same bytes from within the window.
    Duplicate,
    /// The event is lost: it is larger than `max_event_bytes` even if all of its parts are cut.
    TooLarge,
}

/// Changes of an event, for counters. Annotations and the form of an event do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// An audit policy lowered the event's level, or removed its managed fields.
    pub lowered: bool,
    /// A value that must not leave the relay was removed or replaced.
    pub redacted: bool,
    /// The event was larger than `max_event_bytes`, and parts of it were removed or cut.
    pub trimmed: bool,
}

/// The filter settings of one output. The policy files can be read again.
pub struct Rules {
    matches: Vec<Matcher>,
    files: Vec<PathBuf>,
    policies: ArcSwap<Vec<Policy>>,
    redaction: Option<Redaction>,
    annotations: Option<Annotations>,
    form: Form,
    data_stream: Option<DataStream>,
    bytes_max: Option<usize>,
    /// `None` if duplicates are sent.
    window: Option<Duration>,
    /// `true` if an event that is too large however it is cut is lost, `false` if it is sent.
    gives_up: bool,
}

impl Rules {
    /// Makes the rules, which need [`Rules::read`] and [`Rules::apply`] before the first event.
    pub fn new(config: &config::Filter, rejected: Rejected) -> Self {
        let annotate = config.annotate.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let bytes_max = config.max_event_bytes.map(usize::try_from);
        Self {
            matches: config.matches.iter().map(Matcher::new).collect(),
            files: config.policies.clone(),
            policies: ArcSwap::default(),
            // The reader of the config has compiled these rules already, to check them.
            redaction: config
                .redact
                .as_ref()
                .map(|rules| Redaction::new(rules).expect("rules that were checked")),
            annotations: (!config.annotate.is_empty()).then(|| Annotations::new(annotate)),
            form: config.form,
            data_stream: config.data_stream.clone(),
            // A limit that does not fit into `usize` is more than the memory.
            bytes_max: bytes_max.and_then(Result::ok),
            window: config.deduplicate,
            gives_up: rejected != Rejected::Retry,
        }
    }

    /// Reads the configured audit policies. Blocks the thread.
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

    /// Replaces the policies from the next batch on.
    pub fn apply(&self, policies: Vec<Policy>) {
        self.policies.store(Arc::new(policies));
    }

    /// Returns the policies in use as a text that changes if their decisions change.
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
/// One line for each mistake: `FILE:LINE:COLUMN: MISTAKE`. `FILE: MISTAKE` if the file can't be
/// read.
pub fn read_policy(file: &Path) -> Result<Policy, Vec<String>> {
    policy_of(file, named_file::read(file, FILE_BYTES_MAX as u64))
}

/// Reads an audit policy from a file that a command line names, which may be a pipe.
///
/// # Errors
///
/// The same as those of [`read_policy`].
pub fn read_policy_of_command(file: &Path) -> Result<Policy, Vec<String>> {
    policy_of(file, named_file::read_of_command(file, FILE_BYTES_MAX as u64))
}

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

/// The events of a text, each with its request and the number of its [known](Reader::known) bytes.
pub enum Events<'a> {
    /// The request is read from each event.
    Read(Reader<'a>),
    /// Every request is empty, because no rule of the filter needs it.
    Split(audit::Events<'a>, Request<'a>),
}

impl<'a> Events<'a> {
    /// Returns the next event without the byte after it, its request, and the number of its known
    /// bytes.
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

/// An event, as [`Filter::judge`] needs it.
#[derive(Debug, Clone, Copy)]
pub struct EventView<'a> {
    /// The bytes of the event as they were received.
    pub event: &'a [u8],
    /// The request that the event describes; empty if no rule of the filter needs it.
    pub request: &'a Request<'a>,
    /// The number of [known](Reader::known) bytes at the beginning of the event, or 0.
    pub known: usize,
    /// The position of the event. An event that is sent again is judged again at the same position.
    pub position: Position,
    /// The time since the relay accepted the event.
    pub age: Duration,
}

/// The filter of one output, owned by the delivery loop: its rules, and the memory of sent events.
pub struct Filter {
    rules: Arc<Rules>,
    policies: Arc<Vec<Policy>>,
    /// One memory of users for each list of `match` rules, and then one for each policy.
    users: Vec<Users>,
    seen: Option<Seen>,
    /// The last sent event before it got its form; empty if it had no change until then, or if no
    /// event gets a form.
    before_form: Vec<u8>,
    /// The same event without the parts that do not leave; empty if all of it leaves.
    lean: Vec<u8>,
}

impl Filter {
    /// Makes a filter. `seen` is the memory of the output's previous filter, if it had one.
    pub fn new(rules: Arc<Rules>, seen: Option<Seen>) -> Self {
        let policies = rules.policies.load_full();
        let seen = rules.window.map(|window| match seen {
            Some(mut seen) => {
                seen.set_window(window);
                seen
            }
            None => Seen::new(window),
        });
        let (before_form, lean) = (Vec::new(), Vec::new());
        Self { rules, policies, users: Vec::new(), seen, before_form, lean }
    }

    /// Returns the memory of sent events for the next filter.
    pub fn into_seen(self) -> Option<Seen> {
        self.seen
    }

    /// Takes the newest policies, before each batch. Events before `settled` are final or set
    /// aside.
    pub fn renew(&mut self, settled: Position) {
        if let Some(seen) = &mut self.seen {
            seen.settled(settled);
        }
        self.policies = self.rules.policies.load_full();
    }

    /// Removes the events at these positions from the memory, because they were not sent after all.
    /// Later copies are then not duplicates.
    pub fn forget(&mut self, positions: Range<Position>) {
        if let Some(seen) = &mut self.seen {
            seen.forget(positions);
        }
    }

    /// Returns the events of a text. Their requests are read only if a rule needs them.
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

    /// Decides about an event. `changed` must be empty, and gets the event for
    /// [`Verdict::Changed`].
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

    /// Forgets the event: if earlier rules have chosen it, nobody knows whether the consumer has
    /// it.
    fn dropped(&mut self, position: Position) -> Verdict {
        self.forget(position..position.next());
        Verdict::Dropped
    }

    /// Gives the event its form. `changed` is the event with its changes so far, or empty.
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

    /// Returns the last judged event with all its changes except the form. `event` is this event as
    /// received. Call this only if the filter [gives a form](Filter::gives_form) and the event is
    /// sent. Without a form, this returns `event`, even if the event was redacted.
    pub fn before_form<'a>(&'a self, event: &'a [u8]) -> &'a [u8] {
        if self.before_form.is_empty() { event } else { &self.before_form }
    }

    /// Returns `true` if events may leave in another form than their own.
    pub fn gives_form(&self) -> bool {
        self.rules.form != Form::AS_RECEIVED
    }
}

/// Returns the level to which policies lower an event, if its own level is higher than `level`.
pub fn lowered(level: Level, request: &Request<'_>) -> Option<redact::Level> {
    // An event of an unknown level may have bodies.
    let own = Level::of(&request.level).unwrap_or(Level::RequestResponse);
    match level {
        Level::Request if level < own => Some(redact::Level::Request),
        Level::Metadata if level < own => Some(redact::Level::Metadata),
        Level::None | Level::Metadata | Level::Request | Level::RequestResponse => None,
    }
}

fn of(users: &mut Vec<Users>, list: usize) -> &mut Users {
    if users.len() <= list {
        users.resize_with(list + 1, Users::default);
    }
    &mut users[list]
}

fn has_left(seen: &mut Option<Seen>, event: &[u8], position: Position, age: Duration) -> bool {
    let Some(seen) = seen else { return false };
    let received = seen.received(age);
    seen.check(event, position, received)
}
