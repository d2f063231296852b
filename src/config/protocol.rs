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

    /// Lines of TOML for an output of this type, with which [`OutputSettings::read`] reads every
    /// key that it knows; the reference is made from them. Required keys may be missing. The lines
    /// must contain the sections whose presence has a meaning, such as `"tls = {}"`.
    const SAMPLE: &'static str;

    /// The reason why a second output of this type is a mistake, in the words of the message that
    /// reports it: `"writes to stdout"` becomes `output[0] writes to stdout already, allowed: one`.
    /// `None`: there may be any number of outputs of this type.
    const ONLY_ONE: Option<&'static str> = None;

    /// Reads the settings from the table of an output, in the order in which the reference lists
    /// the keys; [`Table`] has the methods. `None`: a required key is missing or a key is wrong,
    /// and the problem is recorded.
    fn read(t: &mut Table<'_, '_>) -> Option<Self>;

    /// Returns the configured addresses that events are sent to. They serve the warnings about an
    /// address that is configured twice or leads back to the relay. The readers of shared keys have
    /// methods for this (`Stream::targets`).
    fn targets(&self) -> Vec<Target>;

    /// Returns the time that a sent event waits before it is final, with the key that sets this
    /// time. `None`: an event is final as soon as the consumer acknowledges it.
    ///
    /// The time is added to the lag at which the status page calls an output late. It must be
    /// shorter than `queue.delivered_timeout`.
    fn final_after(&self) -> Option<(&'static str, Duration)>;
}

/// One type of output: an entry of the table of all types.
#[derive(Clone, Copy)]
pub struct OutputType {
    pub(super) name: &'static str,
    pub(super) sample: &'static str,
    pub(super) only_one: Option<&'static str>,
    pub(super) read: fn(&mut Table<'_, '_>) -> Option<OutputKind>,
}

impl OutputType {
    /// Returns the entry in the table of types for the type of output whose settings are `S`.
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

/// The settings of an output, of whichever type it is. Copies share the settings.
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

    /// Returns the name of the output's type, as the key `type` has it: `"http"`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the settings of the output; `None`: they are of another type than `S`.
    #[must_use]
    pub fn settings<S: OutputSettings>(&self) -> Option<&S> {
        self.settings.as_any().downcast_ref()
    }

    /// Returns the configured addresses that the output sends events to.
    pub(super) fn targets(&self) -> Vec<Target> {
        self.settings.targets()
    }

    /// Returns the time that a sent event waits before it is final, with the key that sets this
    /// time. `None`: an event is final as soon as the consumer acknowledges it.
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

/// The settings of an output of any type: the methods of [`OutputSettings`], in a form that can be
/// called without knowing the type.
trait AnySettings: fmt::Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;

    /// Returns `true` if `other` holds settings of the same type that are equal to these.
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
