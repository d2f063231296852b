//! `[process]`: what the process may do, and its threads.

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

/// Reads the section `[process]`. Returns `restrict` and `workers`, the number of worker threads; 0
/// means that the number of cores decides. A wrong value is recorded as a problem and replaced by
/// the default.
pub(super) fn read(t: &mut Table<'_, '_>) -> (Restrict, usize) {
    let restrict = t.choice(
        "restrict",
        &[Restrict::Required, Restrict::BestEffort, Restrict::Off].map(|it| (it.name(), it)),
        Some(Restrict::Off),
        "the process gives up, at its start, files that the config does not name and system calls \
         that it never makes; a change needs a restart",
    );
    let workers = t.count(
        "workers",
        0,
        0..=64,
        "threads for connections, decoding and outputs; 0 is one for each two cores, at least one \
         and at most four; a change needs a restart",
    );
    (restrict.unwrap_or(Restrict::Off), usize::try_from(workers).unwrap_or_default())
}
