//! The interface between the config and the protocols of outputs.
//!
//! The config knows no protocol. Each protocol implements [`OutputSettings`] in its own file below
//! `crates/outputs/src`; the table of all protocols, the outputs' `TYPES`, is an argument of the
//! functions that read a whole config. [`OutputKind`] holds settings of any type, so that all
//! outputs can be in one `Vec`.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::targets::Target;
use config_table::table::Table;
use config_table::values::BatchBytes;
use transform::shape::Form;

/// The settings of one type of output: the keys that only an `[[output]]` of this type has.
///
/// To add a type to the config, implement the items that have no default.
/// `crates/outputs/src/lib.rs` says what else a new type needs.
///
/// A reload compares the old and the new settings of each output. If they differ, the output gets a
/// new delivery; if they are equal, its delivery continues without interruption.
///
/// `Debug` must not show secrets. A `Template` and the path of a file show none.
pub trait OutputSettings: fmt::Debug + PartialEq + Send + Sync + Sized + 'static {
    /// The value of the key `type` that selects this type, such as `"http"`.
    const TYPE: &'static str;

    /// Lines of TOML that [`OutputSettings::read`] gets when the config reference is generated.
    /// Sections such as `tls` are read only if they are present, so the lines must contain them:
    /// `"tls = {}"`. Required keys may be left out.
    const SAMPLE: &'static str;

    /// The maximum memory of one output with the default settings, in bytes, without its largest
    /// event: usually `concurrency` × `batch.max_bytes`. See "Bounded memory" in
    /// `docs/concepts/guarantees.md`. `check` adds up the values of all outputs.
    const MEMORY: u64;

    /// The reason why a config can have only one output of this type, as a part of the error
    /// message. For example, `"writes to stdout"` gives the message `output "a" (line 5) already
    /// writes to stdout: only one output of type stdout is allowed`. `None`: a config can have any
    /// number of outputs of this type.
    const ONLY_ONE: Option<&'static str> = None;

    /// `true` if the output collects events for minutes before it sends them. A required output of
    /// this type contradicts `queue.acknowledge = "delivered"`.
    const COLLECTS: bool = false;

    /// The values that `batch.max_bytes` may have.
    const BATCH_BYTES: BatchBytes = BatchBytes::UNLIMITED;

    /// The defaults of `filter.shape`, `filter.bodies` and `filter.managed_fields`.
    const FORM: Form = Form::AS_RECEIVED;

    /// Reads the settings. The order of the calls is the order of the keys in the config reference.
    /// `None` if a key that the settings need has no usable value.
    fn read(t: &mut Table<'_, '_>) -> Option<Self>;

    /// Returns the configured addresses to which events are sent, and that of a proxy. A warning is
    /// recorded if one is configured twice, or leads back to the relay. Structs that several types
    /// share have a method for this, such as `Stream::targets`.
    fn targets(&self) -> Vec<Target>;

    /// Returns the name and the value of the config key for the time after which a sent event is
    /// final; `None` if the protocol does not wait.
    ///
    /// An output counts as late only above a lag that is longer by this time. With
    /// `queue.acknowledge = "delivered"`, the time of a required output must be shorter than
    /// `queue.delivered_timeout`.
    fn final_after(&self) -> Option<(&'static str, Duration)> {
        None
    }

    /// Returns `true` if the output can carry a checkpoint of the evidence, which is a line of JSON
    /// but not an event. Its link must then implement `Link::send_checkpoint`.
    fn carries_checkpoints(&self) -> bool {
        false
    }

    /// Returns the index into which the output writes, if this type has indices. If the index has
    /// the name of a data stream, ECS documents contain that name.
    fn index(&self) -> Option<&str> {
        None
    }

    /// Returns a text for the warning that `filter.max_event_bytes` is not set: what the receiver
    /// does with large events, and which values of the key suit it. `None` if no warning is needed.
    fn event_limit(&self) -> Option<&'static str> {
        None
    }
}

/// One type of output, such as `http`: an entry of the table of all types.
#[derive(Clone, Copy)]
pub struct OutputType {
    /// See [`OutputSettings::TYPE`].
    pub name: &'static str,
    /// See [`OutputSettings::SAMPLE`].
    pub sample: &'static str,
    /// See [`OutputSettings::MEMORY`].
    pub memory: u64,
    pub(super) only_one: Option<&'static str>,
    /// See [`OutputSettings::COLLECTS`].
    pub collects: bool,
    /// See [`OutputSettings::BATCH_BYTES`].
    pub batch_bytes: BatchBytes,
    /// See [`OutputSettings::FORM`].
    pub form: Form,
    /// See [`OutputSettings::read`].
    pub read: fn(&mut Table<'_, '_>) -> Option<OutputKind>,
}

impl OutputType {
    /// Returns the entry of a type whose outputs have settings of the type `S`.
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
    name: &'static str,
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

    /// Returns the value of the key `type`: `"http"`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the settings as `S`, or `None` if the output is of another type.
    pub fn settings<S: OutputSettings>(&self) -> Option<&S> {
        self.settings.as_any().downcast_ref()
    }

    /// Returns the addresses to which the output sends events, and that of its proxy. A URL that
    /// cannot be read is left out.
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

/// The methods of [`OutputSettings`] that are needed without the concrete type.
trait AnySettings: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;

    /// Returns `true` if `other` holds equal settings of the same type.
    fn equals(&self, other: &dyn Any) -> bool;

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
