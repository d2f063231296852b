//! Declares metrics, and makes their handles from the declarations.
//!
//! [`catalog!`] declares metrics: name, help and the field that holds the metric's *handle*,
//! a reference to a series. From one declaration the macro makes the field, a constant with the
//! metric's name, the code that registers the series, and a [`Metric`] for the help on `/metrics`.
//! The type of the field is the kind: [`Counter`], [`Gauge`] or [`Histogram`], or [`Each`] of these
//! for each value of a label, which an enum chooses.
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
    /// The upper bounds of a histogram's buckets; empty for the other kinds.
    pub buckets: &'static [f64],
    /// `true`: the value is a present state, as with `output_up`. The series leaves `/metrics` when
    /// a reload removes its output or listener.
    pub is_state: bool,
}

pub(super) const DEFAULTS: Metric =
    Metric { name: "", kind: Kind::Counter, help: "", buckets: &[], is_state: false };

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

/// The type of a field in a family: one handle, or a set of handles.
pub(crate) trait Handle: Sized {
    const KIND: Kind;

    /// Registers the series of the metric `name` with these labels. A new counter or gauge is 0. A
    /// second call returns handles of the same series.
    fn register(registry: &Registry, name: &'static str, labels: &[(&'static str, &str)]) -> Self;
}

macro_rules! handles {
    ($( $Single:ident by $function:ident, )+) => {$(
        impl Handle for $Single {
            const KIND: Kind = Kind::$Single;

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
    const LABEL: &'static str;
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

    fn register(registry: &Registry, name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        let handle = |value: &L| {
            let labels = [labels, &[(L::LABEL, value.value())]].concat();
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
            const LABEL: &'static str = $label;
            const ALL: &'static [Self] = &[$( Self::$Variant, )+];

            fn value(self) -> &'static str {
                self.name()
            }
        }
    };
}

/// Declares families of metrics. Each field holds a handle, by which the program changes and reads
/// the metric. The constant of the same name, such as `OutputMetrics::retries`, is the metric's
/// name, by which `doctor` reads the metrics of other relays.
///
/// ```text
/// pub struct OutputMetrics [OUTPUT] {   the labels that `register` takes, with their values
///     pub retries: Counter = "output_retries_total", "the help";
/// } with {
///     pub losses: Losses,               fields that are not metrics, given to `register`
/// }
/// ```
///
/// A declaration may also set `buckets` and `is_state` of [`Metric`]. The constant `FAMILIES` has
/// the [`Metric`]s of each family.
macro_rules! catalog {
    ($(
        $(#[$attribute:meta])+
        $seen:vis struct $Family:ident [$( $label:expr ),*] {
            $(
                $field_seen:vis $field:ident: $Handle:ty = $name:literal, $help:literal
                    $( , $option:ident: $setting:expr )*;
            )+
        } $( with {
            $( $(#[$of_own:meta])* $own_seen:vis $own:ident: $Own:ty, )+
        } )?
    )+) => {
        $(
            $(#[$attribute])+
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
                const METRICS: &'static [Metric] = &[$( Metric {
                    name: Self::$field,
                    kind: <$Handle as Handle>::KIND,
                    help: $help,
                    $( $option: $setting, )*
                    ..DEFAULTS
                }, )+];

                pub(crate) fn register(
                    registry: &Registry,
                    labels: [(&'static str, &str); <[&str]>::len(&[$( $label ),*])],
                    $( $( $own: $Own, )+ )?
                ) -> Self {
                    Self {
                        $( $field: <$Handle as Handle>::register(registry, Self::$field, &labels), )+
                        $( $( $own, )+ )?
                    }
                }
            }
        )+

        /// The metrics of each family, in the order of declaration.
        const FAMILIES: &[&[Metric]] = &[$( $Family::METRICS ),+];
    };
}

pub(super) use catalog;
pub(super) use full_name;
pub(super) use label_values;
