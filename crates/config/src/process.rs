//! `[process]`: restrictions of the process, its threads, and its state directory.

use std::path::PathBuf;

use config_table::table::{Table, optional};

/// The environment variable with the default of `process.state_directory`.
const STATE_DIRECTORY: &str = "KUBE_AUDIT_FORWARDER_STATE_DIRECTORY";

/// The values of `process.restrict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restrict {
    /// The relay does not start if the kernel cannot restrict it.
    Required,
    /// The relay restricts itself as far as the kernel can, and logs which restrictions are
    /// missing.
    BestEffort,
    /// The relay may do everything that its user may do.
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

/// Returns `restrict`, `workers` (0: the number of cores decides), and `state_directory`, whose
/// default is from the environment.
pub(crate) fn read(t: &mut Table<'_, '_>) -> (Restrict, usize, Option<PathBuf>) {
    let restrict = t.choice(
        "restrict",
        &[Restrict::Required, Restrict::BestEffort, Restrict::Off].map(|it| (it.name(), it)),
        Some(Restrict::Off),
        "at startup, the relay gives up access to files not named in the config and to system \
         calls it never makes (`required`: it exits if the kernel cannot do this); changes require \
         a restart",
    );
    let workers = t.count(
        "workers",
        0,
        0..=64,
        "worker threads for connections, decoding and outputs; 0: one for every two cores, from 1 \
         to 4; changes require a restart",
    );
    let directory = t.directory(optional(
        "state_directory",
        "path",
        "the environment variable KUBE_AUDIT_FORWARDER_STATE_DIRECTORY, else queue.directory",
        "directory in which the process records for its successor how it ended and what it lost; \
         each relay needs its own; changes require a restart",
    ));
    let of_environment = || t.env(STATE_DIRECTORY).filter(|it| !it.is_empty()).map(PathBuf::from);
    let directory = directory.or_else(of_environment);
    let workers = usize::try_from(workers).unwrap_or_default();
    (restrict.unwrap_or(Restrict::Off), workers, directory)
}
