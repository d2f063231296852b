//! Declares metrics, and makes their handles from the declarations.
//!
//! [`catalog!`] declares metrics: name, help, unit, meaning, action and the field that holds the
//! metric's *handle*, a reference to a series. From one declaration the macro makes the field, a
//! constant with the metric's name, the code that registers the series, and a [`Metric`] for the
//! help on `/metrics` and for the reference page. The type of the field is the kind: [`Counter`],
//! [`Gauge`] or [`Histogram`], or one of these for each value of a label: [`Each`] (the value is
//! chosen by an enum), or a struct made by [`label_set!`] (the value is chosen by a field).
//!
//! A *family* is a struct of metrics that have the same labels and are registered together.

use std::sync::Arc;

use metrics::Histogram;

use super::registry::{Counter, Gauge, Registry};

/// Adds the prefix to a name. Metrics of the process have none, as in all programs.
macro_rules! full_name {
    ($name:literal) => {
        concat!("kube_audit_forwarder_", $name)
    };
}

/// The prefix of every metric's name, except for the metrics of the process.
pub const PREFIX: &str = full_name!("");

/// Everything that is declared about one metric.
pub(super) struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// The text of the line `# HELP` on `/metrics`.
    pub help: &'static str,
    /// The unit of the value, in the plural: `events`, `bytes`.
    pub unit: &'static str,
    pub family_labels: &'static [Label],
    /// The label beyond those of the family, such as `reason`; `None` if there is none.
    pub own_label: Option<Label>,
    /// The text on the reference page that says what the value means.
    pub meaning: &'static str,
    /// The text on the reference page that says what the operator should do when the value changes.
    pub action: &'static str,
    /// The upper bounds of a histogram's buckets; empty for the other kinds.
    pub buckets: &'static [f64],
    /// `true`: the value is a present state, as with `output_up`. The series leaves `/metrics` when
    /// a reload removes its output or listener.
    pub is_state: bool,
}

pub(super) const DEFAULTS: Metric = Metric {
    name: "",
    kind: Kind::Counter,
    help: "",
    unit: "",
    family_labels: &[],
    own_label: None,
    meaning: "",
    action: "",
    buckets: &[],
    is_state: false,
};

impl Metric {
    /// Returns all labels of each series, in their order on `/metrics`.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &Label> {
        self.family_labels.iter().chain(self.own_label.as_ref())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label of a metric.
#[derive(Clone, Copy)]
pub struct Label {
    /// The name. The text `listener or output` means that each series has one of these two names.
    pub name: &'static str,
    /// The values that the label may have.
    pub values: Values,
}

impl Label {
    /// Returns the label's name together with one of its values.
    pub fn with(self, value: &str) -> (&'static str, &str) {
        (self.name, value)
    }
}

/// The values that a label may have. No label holds anything that a client chooses.
#[derive(Clone, Copy)]
pub enum Values {
    /// Exactly these values. In `Metric::own_label`, each of them has a series from the start.
    Fixed(&'static [&'static str]),
    /// Other values, such as those from the config. This text describes them on the reference page.
    Described(&'static str),
}

/// The type of a field in a family: one handle, or a set of handles.
pub(crate) trait Handle: Sized {
    const KIND: Kind;
    /// The label that distinguishes the series behind this handle; `None` if there is one series.
    const LABEL: Option<Label>;

    /// Registers the series of the metric `name` with these labels. A new counter or gauge is 0. A
    /// second call returns handles of the same series.
    fn register(registry: &Registry, name: &'static str, labels: &[(&'static str, &str)]) -> Self;
}

macro_rules! handles {
    ($( $Single:ident by $function:ident, )+) => {$(
        impl Handle for $Single {
            const KIND: Kind = Kind::$Single;
            const LABEL: Option<Label> = None;

            fn register(
                registry: &Registry,
                name: &'static str,
                labels: &[(&'static str, &str)],
            ) -> Self {
                registry.$function(name, labels)
            }
        }
    )+};
}

handles! { Counter by counter, Gauge by gauge, Histogram by histogram, }

/// An enum whose variants are the values of a label. [`label_values!`] makes such enums.
pub trait LabelValue: Copy + PartialEq + 'static {
    /// The label whose values are the names of all variants.
    const LABEL: Label;
    /// All variants of the enum.
    const ALL: &'static [Self];

    /// Returns the label's value for this variant.
    fn value(self) -> &'static str;
}

/// One handle for each value of the label `L`. Clones are cheap and share the handles.
pub struct Each<L, H>(Arc<[(L, H)]>);

impl<L, H> Clone for Each<L, H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: LabelValue, H> Each<L, H> {
    /// Returns the handle of this value. A label has at most 15 values: a search is fast enough.
    pub fn of(&self, value: L) -> &H {
        let found = self.0.iter().find(|(of, _)| *of == value);
        &found.expect("`register` made a handle for every variant").1
    }
}

impl<L: LabelValue> Each<L, Counter> {
    /// Returns each value of the label with its count.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.0.iter().map(|(label, counter)| (label.value(), counter.get())).collect()
    }
}

impl<L: LabelValue, H: Handle> Handle for Each<L, H> {
    const KIND: Kind = H::KIND;
    const LABEL: Option<Label> = Some(L::LABEL);

    fn register(registry: &Registry, name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        let handle = |value: &L| {
            let labels = [labels, &[(L::LABEL.name, value.value())]].concat();
            (*value, H::register(registry, name, &labels))
        };
        Self(L::ALL.iter().map(handle).collect())
    }
}

/// Declares an enum whose variants are the values of a label:
/// `pub enum Rejection as "reason" { Invalid = "invalid", … }`.
macro_rules! label_values {
    ($(#[$attribute:meta])* $seen:vis enum $Enum:ident as $label:literal {
        $( $(#[$of_variant:meta])* $Variant:ident = $value:literal, )+
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $seen enum $Enum { $( $(#[$of_variant])* $Variant, )+ }

        impl $Enum {
            /// Returns the label's value for this variant.
            $seen fn name(self) -> &'static str {
                match self { $( Self::$Variant => $value, )+ }
            }
        }

        impl $crate::declare::LabelValue for $Enum {
            const LABEL: $crate::declare::Label = $crate::declare::Label {
                name: $label,
                values: $crate::declare::Values::Fixed(&[$( $value, )+]),
            };
            const ALL: &'static [Self] = &[$( Self::$Variant, )+];

            fn value(self) -> &'static str {
                self.name()
            }
        }
    };
}

/// Declares a struct with one field for each value of a label, named like the value:
/// `pub struct Filtered as "action" { dropped, duplicate, … }`. A field holds the handle of its
/// series.
macro_rules! label_set {
    ($(#[$attribute:meta])* $seen:vis struct $Set:ident as $label:literal {
        $( $(#[$of_field:meta])* $field:ident, )+
    }) => {
        $(#[$attribute])*
        #[derive(Clone)]
        $seen struct $Set<H> { $( $(#[$of_field])* pub $field: H, )+ }

        impl $Set<$crate::registry::Counter> {
            /// Returns each value of the label with its count.
            #[allow(dead_code, reason = "not every label is read back")]
            $seen fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$( (stringify!($field), self.$field.get()), )+]
            }
        }

        impl<H: $crate::declare::Handle> $crate::declare::Handle for $Set<H> {
            const KIND: $crate::declare::Kind = H::KIND;
            const LABEL: Option<$crate::declare::Label> =
                Some($crate::declare::Label {
                    name: $label,
                    values: $crate::declare::Values::Fixed(&[$( stringify!($field), )+]),
                });

            fn register(
                registry: &$crate::registry::Registry,
                name: &'static str,
                labels: &[(&'static str, &str)],
            ) -> Self {
                let handle = |value| {
                    H::register(registry, name, &[labels, &[($label, value)]].concat())
                };
                Self { $( $field: handle(stringify!($field)), )+ }
            }
        }
    };
}

/// Declares families of metrics. Each field holds a handle, by which the program changes and reads
/// the metric. The constant of the same name, such as `OutputMetrics::retries`, is the metric's
/// name, by which `doctor` reads the metrics of other relays.
///
/// ```text
/// "Outputs"                             heading on the reference page
/// pub struct OutputMetrics [OUTPUT] {   the labels that `register` takes, with their values
///     pub retries: Counter = "output_retries_total" {
///         help: "…", unit: "attempts", meaning: "…", action: "…",
///     }
/// } with {
///     pub losses: Losses,               fields that are not metrics, given to `register`
/// }
/// ```
///
/// A declaration may also set `buckets` and `is_state` of [`Metric`]. The constant `FAMILIES` has
/// every heading with its [`Metric`]s.
macro_rules! catalog {
    ($(
        $heading:literal
        $(#[$attribute:meta])*
        $seen:vis struct $Family:ident [$( $label:expr ),*] {
            $(
                $field_seen:vis $field:ident: $Handle:ty = $name:literal {
                    help: $help:literal,
                    unit: $unit:literal,
                    meaning: $meaning:literal,
                    action: $action:literal,
                    $( $option:ident: $setting:expr, )*
                }
            )+
        } $( with {
            $( $(#[$of_own:meta])* $own_seen:vis $own:ident: $Own:ty, )+
        } )?
    )+) => {
        $(
            $(#[$attribute])*
            #[derive(Clone)]
            $seen struct $Family {
                $( #[doc = concat!("`", $name, "`: ", $help)] $field_seen $field: $Handle, )+
                $( $( $(#[$of_own])* $own_seen $own: $Own, )+ )?
            }

            #[allow(
                non_upper_case_globals,
                unreachable_pub,
                reason = "a constant has the name and the visibility of its field"
            )]
            impl $Family {
                $(
                    #[doc = concat!("The name of the metric `", $name, "`.")]
                    $field_seen const $field: &'static str = full_name!($name);
                )+
            }

            impl $Family {
                const LABELS: &'static [Label] = &[$( $label ),*];

                const METRICS: &'static [Metric] = &[$( Metric {
                    name: Self::$field,
                    kind: <$Handle as Handle>::KIND,
                    help: $help,
                    unit: $unit,
                    family_labels: Self::LABELS,
                    own_label: <$Handle as Handle>::LABEL,
                    meaning: $meaning,
                    action: $action,
                    $( $option: $setting, )*
                    ..DEFAULTS
                }, )+];

                pub(crate) fn register(
                    registry: &Registry,
                    labels: [(&'static str, &str); Self::LABELS.len()],
                    $( $( $own: $Own, )+ )?
                ) -> Self {
                    Self {
                        $( $field: <$Handle as Handle>::register(registry, Self::$field, &labels), )+
                        $( $( $own, )+ )?
                    }
                }
            }
        )+

        /// Every heading of the reference page with its metrics, in the order of declaration.
        const FAMILIES: &[(&str, &[Metric])] = &[$( ($heading, $Family::METRICS) ),+];
    };
}

pub(super) use catalog;
pub(super) use full_name;
pub(super) use label_set;
pub(super) use label_values;
