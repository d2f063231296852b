//! What leaves by an output, event by event: which events, and what of them.
//!
//! An event is looked at in this order: does it match (`match`), what level do the policies ask for (`policy`), has it left
//! before (`deduplicate`), and then what of it leaves: bodies and managed fields that the policies leave out, what is to be
//! redacted (`redact`), what is added (`annotate`), and what has to go because it is too large (`max_event_bytes`).
//!
//! It knows events and no batches, queues or consumers. It is never asked where an output has no filter.

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::audit::request::Reader;
use crate::audit::request::Request;
use crate::config;
use crate::config::Rejected;
use crate::policy::FILE_BYTES_MAX;
use crate::policy::Level;
use crate::policy::Matcher;
use crate::policy::Policy;
use crate::policy::Problem;
use crate::position::Position;
use crate::redact;
use crate::redact::Annotations;
use crate::redact::Change;
use crate::redact::Done;
use crate::redact::Redaction;

mod seen;

pub use seen::Seen;

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves as it is.
    Untouched,
    /// It leaves changed.
    Changed(Changes),
    /// It is not for this output.
    Dropped,
    /// It has left before.
    Duplicate,
    /// Without its bodies it is still too large.
    TooLarge,
}

/// What was changed, as it is counted; an event that only got annotations has none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// A policy asks for less of it.
    pub lowered: bool,
    /// It held what is redacted.
    pub redacted: bool,
    /// It was too large.
    pub trimmed: bool,
}

/// The rules of one output. What they read from files can be read again while they are in use.
pub struct Rules {
    matches: Vec<Matcher>,
    files: Vec<PathBuf>,
    policies: ArcSwap<Vec<Policy>>,
    redaction: Option<Redaction>,
    annotations: Option<Annotations>,
    bytes_max: Option<usize>,
    window: Option<Duration>,
    /// What is too large does not leave.
    gives_up: bool,
}

impl Rules {
    /// As the config says, but for the policies: [`Rules::read`] and [`Rules::apply`] come before any event.
    #[must_use]
    pub fn new(config: &config::Filter, rejected: Rejected) -> Self {
        let annotate = config.annotate.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let bytes_max = config.max_event_bytes.map(usize::try_from);
        Self {
            matches: config.matches.iter().map(Matcher::new).collect(),
            files: config.policies.clone(),
            policies: ArcSwap::default(),
            // The config was read with it.
            redaction: config
                .redact
                .as_ref()
                .map(|rules| Redaction::new(rules).expect("rules that were checked")),
            annotations: (!config.annotate.is_empty()).then(|| Annotations::new(annotate)),
            // Beyond memory is no limit.
            bytes_max: bytes_max.and_then(Result::ok),
            window: config.deduplicate,
            gives_up: rejected != Rejected::Retry,
        }
    }

    /// Reads the policies. Blocks.
    ///
    /// # Errors
    ///
    /// What is wrong with them, one line each.
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

    /// Puts what was read in force, from the next batch on.
    pub fn apply(&self, policies: Vec<Policy>) {
        self.policies.store(Arc::new(policies));
    }
}

/// Reads a file with an audit policy. Blocks.
///
/// # Errors
///
/// Every mistake in it, as `FILE:LINE:COLUMN: what`.
pub fn read_policy(file: &Path) -> Result<Policy, Vec<String>> {
    let name = file.display();
    let unreadable = |error: io::Error| vec![format!("{name}: cannot read it: {error}")];
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(unreadable)?;
    // One byte more tells one that is too large.
    opened.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
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

/// The events of some lines, one after the other.
pub enum Events<'a> {
    /// Each with what it says of its request.
    Read(Reader<'a>),
    /// Where nobody asks for that.
    Split(&'a [u8], Request<'a>),
}

impl<'a> Events<'a> {
    /// The next, without its line's end.
    #[allow(
        clippy::should_implement_trait,
        reason = "what it gives is its own until it is asked again"
    )]
    pub fn next(&mut self) -> Option<(&'a [u8], &Request<'a>)> {
        match self {
            Self::Read(reader) => reader.read(),
            Self::Split(lines, none) => {
                let (event, rest) = lines.split_at_checked(memchr::memchr(b'\n', lines)?)?;
                *lines = rest.get(1..)?;
                Some((event, none))
            }
        }
    }
}

/// An event that [`Filter::judge`] is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// As it was received.
    pub event: &'a [u8],
    /// What it says of its request.
    pub request: &'a Request<'a>,
    /// Its number: what is asked about twice has the same one.
    pub position: Position,
    /// How long ago it was accepted.
    pub age: Duration,
}

/// The rules of an output, with what they remember. Owned by its delivery.
pub struct Filter {
    rules: Arc<Rules>,
    policies: Arc<Vec<Policy>>,
    seen: Option<Seen>,
    /// What has left before is still to be told to `seen`.
    knows_nothing: bool,
}

impl Filter {
    /// With what the one before it remembers.
    #[must_use]
    pub fn new(rules: Arc<Rules>, seen: Option<Seen>) -> Self {
        let policies = rules.policies.load_full();
        let knows_nothing = seen.is_none();
        let seen = rules.window.map(|window| match seen {
            Some(mut seen) => {
                seen.set_window(window);
                seen
            }
            None => Seen::new(window),
        });
        Self { rules, policies, seen, knows_nothing }
    }

    /// What it remembers, for the next; nothing, where it was not told all that it asks for.
    #[must_use]
    pub fn into_seen(self) -> Option<Seen> {
        self.seen.filter(|_| !self.knows_nothing)
    }

    /// Before a batch: takes over policies that were read anew. Nothing before this position is asked for again.
    pub fn renew(&mut self, settled: Position) {
        self.policies = self.rules.policies.load_full();
        if let Some(seen) = &mut self.seen {
            seen.settled(settled);
        }
    }

    /// For how long what has left is remembered; `None`: not at all.
    #[must_use]
    pub fn window(&self) -> Option<Duration> {
        self.rules.window
    }

    /// How far back [`Filter::remember`] is to be told what has left; `None`: not at all.
    #[must_use]
    pub fn asks_for(&self) -> Option<Duration> {
        self.rules.window.filter(|_| self.knows_nothing)
    }

    /// What has left already, before this process.
    pub fn remember(&mut self, event: &[u8], position: Position, age: Duration) {
        has_left(&mut self.seen, event, position, age);
    }

    /// That was all.
    pub fn remembers(&mut self) {
        self.knows_nothing = false;
    }

    /// These have not left after all.
    pub fn forget(&mut self, positions: Range<Position>) {
        if let Some(seen) = &mut self.seen {
            seen.forget(positions);
        }
    }

    /// The events of some lines, as [`Filter::judge`] wants them.
    #[must_use]
    pub fn events<'a>(&self, lines: &'a [u8]) -> Events<'a> {
        let Self { rules, policies, .. } = self;
        let asks = !rules.matches.is_empty() || !policies.is_empty() || rules.redaction.is_some();
        match asks {
            true => Events::Read(Reader::new(lines)),
            false => Events::Split(lines, Request::default()),
        }
    }

    /// What becomes of an event. Where it leaves changed, `changed` gets it.
    pub fn judge(&mut self, asked: &Asked<'_>, changed: &mut Vec<u8>) -> Verdict {
        let Asked { event, request, position, age } = *asked;
        let Self { rules, policies, seen, .. } = self;
        let mut change = Change {
            level: None,
            omit_managed_fields: false,
            redaction: rules.redaction.as_ref(),
            annotations: rules.annotations.as_ref(),
            event_bytes_max: rules.bytes_max,
        };
        if !rules.matches.iter().all(|matcher| matcher.matches(request)) {
            return Verdict::Dropped;
        }
        let mut level = Level::RequestResponse;
        for policy in policies.iter() {
            let decision = policy.decide(request);
            if decision.level == Level::None || decision.omit_stage {
                return Verdict::Dropped;
            }
            level = level.min(decision.level);
            change.omit_managed_fields |= decision.omit_managed_fields;
        }
        if has_left(seen, event, position, age) {
            return Verdict::Duplicate;
        }
        // What has another level than the four may hold anything.
        if level < Level::of(&request.level).unwrap_or(Level::RequestResponse) {
            change.level = match level {
                Level::Request => Some(redact::Level::Request),
                Level::Metadata => Some(redact::Level::Metadata),
                Level::None | Level::RequestResponse => None,
            };
        }
        let Done { lowered, redacted, trimmed, is_too_large, .. } =
            redact::apply(event, request, &change, changed);
        if is_too_large && rules.gives_up {
            if let Some(seen) = seen {
                seen.forget(position..position.next());
            }
            return Verdict::TooLarge;
        }
        match changed.is_empty() {
            true => Verdict::Untouched,
            false => Verdict::Changed(Changes { lowered, redacted, trimmed }),
        }
    }
}

fn has_left(seen: &mut Option<Seen>, event: &[u8], position: Position, age: Duration) -> bool {
    let Some(seen) = seen else { return false };
    let received = seen.received(age);
    seen.check(event, position, received)
}
