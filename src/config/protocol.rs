//! The interface between the config and the protocols of outputs.
//!
//! The config knows no protocol. Each protocol implements [`OutputSettings`] in its own file below
//! `src/output`; the table of all protocols, [`crate::output`]'s `TYPES`, is handed to every
//! function that reads a config. What is here keeps settings of different types in one `Vec` of
//! outputs.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::table::Table;
use super::targets::Target;

/// The settings of one type of output: the keys that `[[output]]` has with this `type` and that the
/// outputs of all types do not share.
///
/// The items without a default are all that the config needs of a new type. For the rest of what a
/// new type needs, see the documentation of `src/output.rs`.
///
/// Equality decides what a reload does: an output whose settings are equal to those before goes on
/// undisturbed; any other gets a new delivery. `Debug` must not show secrets, which [`Template`]
/// and paths of files take care of.
///
/// [`Template`]: super::template::Template
pub trait OutputSettings: fmt::Debug + PartialEq + Send + Sync + Sized + 'static {
    /// The value of `type`: `"http"`.
    const TYPE: &'static str;

    /// Lines of TOML for an output of this type, by which [`OutputSettings::read`] reads every key
    /// that it can read. Required keys may be missing. The keys that matter are sections whose
    /// presence has a meaning: `"tls = {}"`. The reference is made from it.
    const SAMPLE: &'static str;

    /// What makes a second output of this type a mistake, in the words of the message that reports
    /// it: `"writes to stdout"` becomes `output[0] writes to stdout already, allowed: one`.
    /// `None`: there may be any number of outputs of this type.
    const ONLY_ONE: Option<&'static str> = None;

    /// Reads the settings from the table of an output, in the order in which the reference lists
    /// the keys; [`Table`] has the methods. `None`: a key that cannot be left out is missing or
    /// wrong, and the problem is on record.
    fn read(t: &mut Table<'_, '_>) -> Option<Self>;

    /// The configured addresses that events are sent to, for the warnings about an address that is
    /// there twice or leads back to the relay. [`Target`] makes them; the readers of shared keys
    /// have them (`Stream::targets`).
    fn targets(&self) -> Vec<Target>;

    /// The key of a time that the protocol waits before an event that was sent is final, and that
    /// time. `None`: an event is final as soon as the consumer acknowledges it.
    ///
    /// The time is added to the lag from which the status page calls an output late, and must be
    /// shorter than `queue.delivered_timeout`.
    fn final_after(&self) -> Option<(&'static str, Duration)>;
}

/// One type of output, as the table of all types holds it.
#[derive(Clone, Copy)]
pub struct OutputType {
    pub(super) name: &'static str,
    pub(super) sample: &'static str,
    pub(super) only_one: Option<&'static str>,
    pub(super) read: fn(&mut Table<'_, '_>) -> Option<OutputKind>,
}

impl OutputType {
    /// Returns the table's entry for the type of output whose settings are `S`.
    #[must_use]
    pub const fn of<S: OutputSettings>() -> Self {
        Self {
            name: S::TYPE,
            sample: S::SAMPLE,
            only_one: S::ONLY_ONE,
            read: |t| S::read(t).map(OutputKind::new),
        }
    }
}

/// The protocol of an output: the settings of any one type. Copies share the settings.
#[derive(Clone)]
pub struct OutputKind {
    name: &'static str,
    settings: Arc<dyn AnySettings>,
}

impl OutputKind {
    /// Wraps the settings of one type of output.
    #[must_use]
    pub fn new<S: OutputSettings>(settings: S) -> Self {
        Self { name: S::TYPE, settings: Arc::new(settings) }
    }

    /// The name of the output's type, as the key `type` has it: `"http"`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The settings; `None` if they are of another type than `S`.
    #[must_use]
    pub fn settings<S: OutputSettings>(&self) -> Option<&S> {
        self.settings.as_any().downcast_ref()
    }

    /// The configured addresses that the output sends events to.
    pub(super) fn targets(&self) -> Vec<Target> {
        self.settings.targets()
    }

    /// The key and the value of the time that the protocol waits before a sent event is final.
    /// `None`: an event is final as soon as the consumer acknowledges it.
    #[must_use]
    pub fn final_after(&self) -> Option<(&'static str, Duration)> {
        self.settings.final_after()
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

/// [`OutputSettings`] of any type. It has the same methods in a form that can be called without
/// knowing the type.
trait AnySettings: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;

    /// Returns `true` if the other settings are of the same type and equal to these.
    fn equals(&self, other: &dyn Any) -> bool;

    fn targets(&self) -> Vec<Target>;

    fn final_after(&self) -> Option<(&'static str, Duration)>;
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

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        OutputSettings::final_after(self)
    }
}
