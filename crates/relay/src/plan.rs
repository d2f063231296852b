//! The plans for a new config, and the files that must be read before it is applied.

use std::sync::Arc;

use super::error::Refused;
use super::listeners;
use super::outputs::NamedFiles;
use crate::admin::Access;
use crate::source;
use base::staged::Staged;

/// The plans for the listeners and the sources of a config that is about to be applied.
pub(crate) struct Plan {
    pub listeners: Vec<listeners::Planned>,
    pub sources: Vec<source::Planned>,
    pub admin: config::Admin,
    /// The access rules of the admin address that are in use now.
    pub access: Arc<Access>,
}

/// The contents of the files that a plan names. They are not in use yet.
pub(super) struct ReadFiles {
    /// The functions that put the files of outputs and sources in use.
    pub staged: Vec<Staged>,
    pub settings: Vec<listeners::Read>,
    /// The new access rules of the admin address.
    pub(super) access: Access,
}

impl Plan {
    /// Reads and checks the files of the planned listeners and sources, the files of `outputs`, and
    /// those of the admin address. Blocks the thread.
    pub(crate) fn read(&self, outputs: Vec<NamedFiles>) -> Result<ReadFiles, Refused> {
        let stage = |(name, files): NamedFiles| {
            files.stage().map_err(|error| Refused::File(format!("output {name}: {error}")))
        };
        let of_outputs = outputs.into_iter().map(stage);
        let of_sources = self.sources.iter().map(|source| source.stage().map_err(Refused::File));
        let staged = of_outputs.chain(of_sources).collect::<Result<_, _>>()?;
        let settings = self.listeners.iter().map(listeners::Planned::read);
        let settings = settings.collect::<Result<_, _>>()?;
        let access = Access::read(&self.admin, Some(&self.access)).map_err(Refused::File)?;
        Ok(ReadFiles { staged, settings, access })
    }
}
