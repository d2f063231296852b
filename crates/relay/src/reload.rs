//! A reload: another config is read and checked, and only then put in force.
//!
//! First, all files are read and checked, the addresses of new listeners are bound, and each new
//! output gets a cursor. If any of this fails, the old config stays in force. If another
//! program has an address, the reload is tried again after a pause.

use tokio::time::Instant;

use super::error::Refused;
use super::parts::Parts;
use super::plan::{Plan, ReadFiles};
use super::waiting::in_time;
use super::{listeners, open_files, outputs};
use crate::admin::Access;
use crate::source;
use base::named_file;
use base::staged::Staged;
use config::{Acknowledge, Config};

/// The longest wait for the files of tokens after a failed reload, in which no signal is heard.
const TOKENS: std::time::Duration = std::time::Duration::from_secs(2);

/// Everything that was read and checked for a reload. The relay does not use any of it yet.
type Staging = (Config, Vec<outputs::Planned>, Plan, ReadFiles);

/// A reload that is ready to be put in force: its files are read, and its addresses are bound. If
/// this value is dropped, the old config stays in force, but the sources that the reload removes or
/// changes take no more events.
pub(crate) struct Prepared {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    sources: Vec<source::Planned>,
    listeners: Vec<listeners::StagedListener>,
    access: Access,
}

impl Parts {
    /// Does the steps of a reload that can fail or take time: reads the files, binds the addresses
    /// of new listeners, stores a cursor for each new output, and stops the sources that are
    /// removed or changed. A new output waits for the end of a removed output of the same name.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the new outputs are removed from the queue again, and no events
    /// are counted as lost for them. The sources that the reload removes or changes still finish
    /// the events that they have taken, but take no more. Therefore the relay may drop this future
    /// only when the relay itself ends.
    pub(crate) async fn prepare(&mut self) -> Result<Prepared, Refused> {
        let (config, mut outputs, plan, read) = self.stage().await?;
        let ReadFiles { staged: files, settings, access } = read;
        let Plan { listeners, sources, .. } = plan;
        let leaving = self.listeners.leaving(&listeners);
        let listeners = listeners::bind(listeners, settings, &leaving)?;
        self.outputs.join(&mut outputs).await?;
        self.sources.close_leaving(&sources).await;
        Ok(Prepared { config, outputs, files, sources, listeners, access })
    }

    /// Reads and checks a config and the files that it names. If they cannot be used, the program
    /// that writes them may not have finished: the function waits a moment for a change, then reads
    /// the files again. Returns the error if there is no change, or after too many changes. All of
    /// it takes at most [`named_file::WAIT_MAX`]: a file system that hangs is not asked again.
    async fn stage(&mut self) -> Result<Staging, Refused> {
        let deadline = Instant::now() + named_file::WAIT_MAX;
        loop {
            let staging = self.try_stage(deadline).await;
            if staging.is_ok() {
                self.file.watch.was_usable();
                return staging;
            }
            let moved = tokio::time::timeout_at(deadline, self.file.watch.has_moved()).await;
            if !moved.unwrap_or(false) {
                return staging;
            }
        }
    }

    async fn try_stage(&mut self, deadline: Instant) -> Result<Staging, Refused> {
        let mut config = self.file.read(&self.config, deadline).await?;
        self.keep_what_cannot_change(&mut config)?;
        let outputs = self.outputs.plan(&config.outputs);
        let max_body = config.limits.max_body;
        let plan = Plan {
            listeners: self.listeners.plan(&config.listeners),
            sources: self.sources.plan(&config.sources, max_body, &self.telemetry),
            admin: config.admin.clone(),
            access: self.admin.access(),
        };
        let files = outputs::files_of(&outputs);
        let (read, plan) = in_time(deadline, move || (plan.read(files), plan)).await?;
        Ok((config, outputs, plan, read?))
    }

    /// Ends a reload: puts it in force if it could be prepared, and reports the result in the log,
    /// the metrics and `/status`.
    pub(crate) async fn reload(&mut self, prepared: Result<Prepared, Refused>) {
        let mistake = self.file.first_mistake();
        match self.file.again.is_waiting() && matches!(prepared, Err(Refused::Address(_))) {
            // The first attempt has logged these problems already.
            true => self.file.problems.clear(),
            false => self.file.tell_problems(),
        }
        let refused = match prepared {
            Ok(prepared) => {
                self.put_in_force(prepared).await;
                None
            }
            Err(refused) => Some(refused),
        };
        let address = match &refused {
            Some(Refused::Address(error)) => Some(error.clone()),
            Some(_) | None => None,
        };
        self.admin.awaits_address(address.clone());
        match address {
            Some(error) if self.file.again.is_waiting() => return self.file.fails_again(&error),
            Some(_) => drop(self.file.again.failed()),
            None => self.file.again.end(),
        }
        self.file.reloads.reloaded(refused.is_none());
        let mistake = mistake.filter(|_| matches!(refused, Some(Refused::Problems)));
        self.admin.reloaded(mistake.or_else(|| refused.as_ref().map(Refused::to_string)));
        let Some(refused) = refused else {
            tracing::info!("config reloaded");
            return;
        };
        let mut error = refused.to_string();
        if self.file.again.is_waiting() {
            error.push_str("; it is tried again");
        }
        tracing::error!(error, "config not reloaded: the relay continues with the config in use");
        self.forget_old_tokens().await;
    }

    /// Reads the tokens of the admin address again. If the files do not answer in time, the tokens
    /// stay.
    async fn forget_old_tokens(&mut self) {
        let (config, access) = (self.config.admin.clone(), self.admin.access());
        let deadline = Instant::now() + TOKENS;
        if let Ok(access) = in_time(deadline, move || access.after_failure(&config)).await {
            self.admin.admit(access);
        }
    }

    /// Puts a reload in force. The relay notices no signal while this function runs, but the
    /// function returns within moments.
    async fn put_in_force(&mut self, prepared: Prepared) {
        let Prepared { mut config, outputs, files, sources, listeners, access } = prepared;
        open_files::fit(&mut config);
        self.admin.admit(access);
        files.into_iter().for_each(|staged| staged());
        telemetry::change_log(config.log);
        self.queue.apply(&config.queue);
        self.gate.apply(&config.limits, &config.queue);
        self.dead_letters.reconfigure(&config);
        if let Some(evidence) = &mut self.evidence {
            evidence.reloaded(&config, &outputs::files_of(&outputs));
        }
        self.outputs.commit(outputs);
        self.sources.commit(sources, &self.queue);
        self.listeners.commit(listeners).await;
        self.config = config;
        self.count_volume();
        self.show();
    }

    /// Replaces the settings in `config` that cannot change without a restart by the settings in
    /// use: the admin addresses, the section `[evidence]`, `process.restrict` and the state
    /// directory. If `queue.directory` has changed, also replaces all settings of the queue, and
    /// lowers `limits.max_body` to the value in use if it is larger. Returns `Err` if `config` then
    /// has sources that the queue in use cannot serve.
    fn keep_what_cannot_change(&self, config: &mut Config) -> Result<(), Refused> {
        let now = &self.config;
        if config.admin.address != now.admin.address {
            tracing::warn!(
                key = "admin.address",
                "admin.address has changed: restart the relay to apply it"
            );
            config.admin.address = now.admin.address;
        }
        if config.admin.probe_address != now.admin.probe_address {
            tracing::warn!(
                key = "admin.probe_address",
                "admin.probe_address has changed: restart the relay to apply it"
            );
            config.admin.probe_address = now.admin.probe_address;
        }
        if config.evidence != now.evidence {
            tracing::warn!(
                key = "evidence",
                "the section [evidence] has changed: restart the relay to apply it"
            );
            config.evidence.clone_from(&now.evidence);
        }
        if config.restrict != now.restrict {
            tracing::warn!(
                key = "process.restrict",
                "process.restrict has changed: restart the relay to apply it"
            );
            config.restrict = now.restrict;
        }
        config.state_directory.clone_from(&now.state_directory);
        if config.queue.directory != now.queue.directory {
            tracing::warn!(
                key = "queue.directory",
                "queue.directory has changed: restart the relay to apply it"
            );
            // The meaning of nearly every key of the queue depends on the queue's directory, so all
            // of the queue's settings stay as they are.
            config.queue = now.queue.clone();
            config.limits.max_body = config.limits.max_body.min(now.limits.max_body);
            if !config.sources.is_empty() && now.queue.acknowledge != Acknowledge::Delivered {
                // A source would commit offsets of events that no output has yet. `check` reports
                // such a config with the same reason.
                return Err(Refused::NeedsRestart);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
