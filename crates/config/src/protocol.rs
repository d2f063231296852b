//! The interface between the config and the protocols of outputs.
//!
//! The config knows no protocol. Each protocol implements [`OutputSettings`] in its own file below
//! `crates/outputs/src`; the table of all protocols, the outputs' `TYPES`, is an argument of the
//! functions that read a whole config. The types of this file make it possible to keep settings of
//! different types in one `Vec` of outputs.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::targets::Target;
use config_table::table::Table;
use config_table::values::BatchBytes;
use transform::shape::Form;

/// The settings of one type of output: the keys that an `[[output]]` of this type has in addition
/// to the keys that every `[[output]]` has.
///
/// To add a type to the config, implement the items that have no default. The documentation of
/// `crates/outputs/src/lib.rs` says what a new type needs outside of the config.
///
/// A reload compares the settings of each output. If they are equal, the output continues without
/// interruption. If they differ, the output gets a new delivery.
///
/// `Debug` must not show secrets. A field of the type [`Template`] and a field with the path of a
/// file show no secret.
///
/// [`Template`]: config_table::template::Template
pub trait OutputSettings: fmt::Debug + PartialEq + Send + Sync + Sized + 'static {
    /// The value of the key `type` that selects this type of output, such as `"http"`.
    const TYPE: &'static str;

    /// Lines of TOML for an output of this type, from which the config reference is generated. The
    /// reference describes the keys that [`OutputSettings::read`] asks for when it reads these
    /// lines. Some sections, such as `tls`, are read only if they are present, so the lines must
    /// contain each such section: `"tls = {}"`. Required keys may be left out.
    const SAMPLE: &'static str;

    /// The bytes of memory that unanswered batches take at most with the default settings,
    /// besides the largest event: as a rule `concurrency` × `batch.max_bytes`, and what the page of
    /// the guarantees adds for the type. `check` adds them up.
    const MEMORY: u64;

    /// The reason why a config can have only one output of this type, as a part of the error
    /// message. For example, `"writes to stdout"` gives the message `output "a" (line 5) writes to
    /// stdout already: only one output of type stdout is allowed`. `None`: a config can have any
    /// number of outputs of this type.
    const ONLY_ONE: Option<&'static str> = None;

    /// `true` if the output collects events for minutes before it sends them. A required output of
    /// this type contradicts `queue.acknowledge = "delivered"`.
    const COLLECTS: bool = false;

    /// The values that `batch.max_bytes` may have for this type of output.
    const BATCH_BYTES: BatchBytes = BatchBytes::UNLIMITED;

    /// The defaults of the keys `filter.shape`, `filter.bodies` and `filter.managed_fields` for
    /// this type.
    const FORM: Form = Form::AS_RECEIVED;

    /// Reads the settings from the table of an output, with the methods of [`Table`]. The order in
    /// which this function reads the keys is their order in the config reference. Returns `None` if
    /// a key that the settings need has no usable value. Any other wrong value is replaced by its
    /// default or left out. Each problem is recorded.
    fn read(t: &mut Table<'_, '_>) -> Option<Self>;

    /// Returns the configured addresses that events are sent to. A warning is recorded if an
    /// address is configured twice, or if it leads back to the relay. The structs that several
    /// types of output use have a method for this, such as `Stream::targets`.
    fn targets(&self) -> Vec<Target>;

    /// Returns the name and the value of the config key for the time after which a sent event is
    /// final. Returns `None` if the protocol does not wait.
    ///
    /// The status page adds this time to the lag at which it calls an output late. With
    /// `queue.acknowledge = "delivered"`, the time of a required output must be shorter than
    /// `queue.delivered_timeout`.
    fn final_after(&self) -> Option<(&'static str, Duration)> {
        None
    }

    /// Returns `true` if the output can carry a checkpoint of the evidence, which is a line of JSON
    /// but not an event. The link of such an output must implement `Link::send_checkpoint`.
    fn carries_checkpoints(&self) -> bool {
        false
    }

    /// Returns the index into which the output writes, if this type has indices. If the index has
    /// the name of a data stream, ECS documents name the data stream.
    fn index(&self) -> Option<&str> {
        None
    }

    /// Returns what the receiver does with large events, and which values of
    /// `filter.max_event_bytes` suit it, as a part of a warning. The warning is recorded if the key
    /// is not set. Returns `None` if the receiver has no known limit.
    fn event_limit(&self) -> Option<&'static str> {
        None
    }
}

/// One type of output, such as `http`: its name, and the function that reads its settings. The
/// table of all types has one such entry for each type.
#[derive(Clone, Copy)]
pub struct OutputType {
    /// The value of the key `type` that selects this type: `OutputSettings::TYPE`.
    pub name: &'static str,
    /// The lines of TOML from which the config reference is generated: `OutputSettings::SAMPLE`.
    pub sample: &'static str,
    /// The memory that unanswered batches take at most: `OutputSettings::MEMORY`.
    pub memory: u64,
    /// The reason why a config can have only one output of this type: `OutputSettings::ONLY_ONE`.
    pub(super) only_one: Option<&'static str>,
    /// `true` if the output collects events for minutes: `OutputSettings::COLLECTS`.
    pub collects: bool,
    /// The values that `batch.max_bytes` may have: `OutputSettings::BATCH_BYTES`.
    pub batch_bytes: BatchBytes,
    /// The defaults of the form in which events leave: `OutputSettings::FORM`.
    pub form: Form,
    /// Reads the settings from the table of an output. Returns `None` if they have a problem, which
    /// is recorded.
    pub read: fn(&mut Table<'_, '_>) -> Option<OutputKind>,
}

impl OutputType {
    /// Returns the description of one type of output, for the table of all types. `S` is the type
    /// of the settings of such an output.
    pub const fn of<S: OutputSettings>() -> Self {
        Self {
            name: S::TYPE,
            sample: S::SAMPLE,
            memory: S::MEMORY,
            only_one: S::ONLY_ONE,
            collects: S::COLLECTS,
            batch_bytes: S::BATCH_BYTES,
            form: S::FORM,
            read: |t| S::read(t).map(OutputKind::new),
        }
    }
}

/// The settings of an output of any type. All clones share the same settings.
#[derive(Clone)]
pub struct OutputKind {
    /// The value of the key `type` of the output.
    name: &'static str,
    /// The settings, without their concrete type.
    settings: Arc<dyn AnySettings>,
    /// See [`OutputSettings::final_after`].
    pub final_after: Option<(&'static str, Duration)>,
    /// See [`OutputSettings::carries_checkpoints`].
    pub carries_checkpoints: bool,
    /// See [`OutputSettings::index`].
    pub index: Option<String>,
    /// See [`OutputSettings::event_limit`].
    pub event_limit: Option<&'static str>,
}

impl OutputKind {
    /// Wraps the settings of one type of output.
    pub fn new<S: OutputSettings>(settings: S) -> Self {
        Self {
            name: S::TYPE,
            final_after: settings.final_after(),
            carries_checkpoints: settings.carries_checkpoints(),
            index: settings.index().map(str::to_owned),
            event_limit: settings.event_limit(),
            settings: Arc::new(settings),
        }
    }

    /// Returns the name of the output's type, as the key `type` has it: `"http"`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the settings of the output as `S`. Returns `None` if the output is of another type
    /// than `S`.
    pub fn settings<S: OutputSettings>(&self) -> Option<&S> {
        self.settings.as_any().downcast_ref()
    }

    /// Returns the configured addresses that the output sends events to, and that of its proxy. A
    /// URL that cannot be read is left out.
    pub fn targets(&self) -> Vec<Target> {
        self.settings.targets()
    }
}

impl fmt::Debug for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.settings, f)
    }
}

impl PartialEq for OutputKind {
    fn eq(&self, other: &Self) -> bool {
        self.settings.equals(other.settings.as_any())
    }
}

/// Some methods of [`OutputSettings`], for settings whose concrete type is not known.
trait AnySettings: fmt::Debug + Send + Sync {
    /// Returns the settings in a form that can be converted back to their concrete type.
    fn as_any(&self) -> &dyn Any;

    /// Returns `true` if `other` holds settings of the same type that are equal to these.
    fn equals(&self, other: &dyn Any) -> bool;

    /// Returns the configured addresses that the output sends events to.
    fn targets(&self) -> Vec<Target>;
}

impl<S: OutputSettings> AnySettings for S {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn equals(&self, other: &dyn Any) -> bool {
        other.downcast_ref() == Some(self)
    }

    fn targets(&self) -> Vec<Target> {
        OutputSettings::targets(self)
    }
}
