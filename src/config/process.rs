//! `[process]`: what the process may do.

use super::table::Table;

/// The values of `process.restrict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restrict {
    /// The relay does not start if the kernel cannot restrict it.
    Required,
    /// The relay restricts itself as far as the kernel can, and says what is not in force.
    BestEffort,
    /// The relay may do what its user may do.
    Off,
}

impl Restrict {
    /// Returns the value as the config has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best_effort",
            Self::Off => "off",
        }
    }
}

/// Reads the section `[process]`. A wrong value is recorded as a problem and replaced by the
/// default.
pub(super) fn restrict(t: &mut Table<'_, '_>) -> Restrict {
    let restrict = t.choice(
        "restrict",
        &[Restrict::Required, Restrict::BestEffort, Restrict::Off].map(|it| (it.name(), it)),
        Some(Restrict::Off),
        "the process gives up, at its start, files that the config does not name and system calls \
         that it never makes; a change needs a restart",
    );
    restrict.unwrap_or(Restrict::Off)
}
