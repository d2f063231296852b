//! The config file, and the state that the relay needs for the next reload.

use std::path::PathBuf;

use tokio::time::Instant;

use super::again::Again;
use super::error::Refused;
use super::open_files;
use super::waiting::in_time;
use super::watch;
use super::watch::Watch;
use crate::check;
use base::named_file;
use config::{Checked, Config, Problem, Severity};
use telemetry::ReloadMetrics;

const PROBLEMS_MAX: usize = 20;

/// The config file, with the files that it names. [`super::parts::Parts`] owns it.
pub(crate) struct ConfigFile {
    /// The path; `None` if the relay uses the config that is built into the program.
    pub path: Option<PathBuf>,
    pub watch: Watch,
    pub again: Again,
    /// The problems of the config that was read last, until they are logged.
    pub problems: Vec<Problem>,
    pub reloads: ReloadMetrics,
}

impl ConfigFile {
    /// Makes the watch over the config file and the files that it names. `config` is the content of
    /// the file when the process read it: if the file has changed since then, the watch reports
    /// this immediately. Call this before the relay reads the named files, so that the watch
    /// notices every later change. Blocks the thread.
    pub(crate) fn new(path: Option<PathBuf>, config: &Config, reloads: ReloadMetrics) -> Self {
        let (files, seen) = look(path.as_ref());
        let is_config = |written: &Config| open_files::is_fitted(config, written);
        let is_in_use = path.is_none()
            || read_config(path.as_ref()).is_ok_and(|it| it.config.as_ref().is_some_and(is_config));
        let watch = Watch::new(files, if is_in_use { seen } else { watch::Seen::default() });
        Self { path, watch, again: Again::default(), problems: Vec::new(), reloads }
    }

    /// Reads and checks the config file again. `now` is the config in use. `Err` if the new config
    /// cannot be used; even then, the files that it names are watched. If the file system hangs,
    /// the watch keeps the old list of files, and the relay waits for a change after the beginning
    /// of this attempt.
    pub(crate) async fn read(
        &mut self,
        now: &Config,
        deadline: Instant,
    ) -> Result<Config, Refused> {
        let path = self.path.clone();
        let in_use = [now.queue.directory.clone(), now.dead_letter.directory.clone()];
        let in_use: Vec<_> = in_use.into_iter().flatten().collect();
        let before = tokio::time::timeout_at(deadline, self.watch.look()).await;
        let read = in_time(deadline, move || {
            let (files, seen) = look(path.as_ref());
            let checked = read_config(path.as_ref()).map(|checked| {
                let mut problems = check::directories(&checked, &in_use);
                // A directory in use is not checked, because the relay continues to use it, even if
                // its disk fails. Any other directory must work.
                problems.iter_mut().for_each(|problem| problem.severity = Severity::Error);
                problems.extend(check::files(&checked));
                problems.extend(check::room(&checked));
                let outside = check::outside(&checked, &in_use);
                let is_outside = |it: &Problem| outside.iter().any(|other| other.path == it.path);
                let mut checked = checked.with(problems);
                // A file in `outside` also has the problem that it cannot be read, which is only a
                // consequence.
                checked.problems.retain(|problem| !is_outside(problem));
                (checked, outside)
            });
            (files, seen, checked)
        });
        let read = read.await;
        if let (Err(Refused::Hangs { .. }), Ok(before)) = (&read, before) {
            self.watch.pass_over(before);
        }
        let (files, seen, checked) = read?;
        self.watch.renew(files, seen);
        self.problems.clear();
        let (Checked { config, problems, .. }, outside) = checked?;
        self.problems = problems;
        if !outside.is_empty() {
            self.problems.extend(outside);
            return Err(Refused::Outside);
        }
        config.ok_or(Refused::Problems)
    }

    /// Logs the problems of the config that was read last, at most [`PROBLEMS_MAX`]. A reload calls
    /// this function only once, even if it has read a half-written file several times.
    pub(super) fn tell_problems(&mut self) {
        for problem in self.problems.drain(..).take(PROBLEMS_MAX) {
            let Problem { line, path: key, message, severity, .. } = problem;
            match severity {
                Severity::Error | Severity::Fault => tracing::error!(line, key, "{message}"),
                Severity::Warning | Severity::MissingFile => tracing::warn!(line, key, "{message}"),
            }
        }
    }

    /// Returns the first mistake of the config that was read last, with its line and its key.
    pub(super) fn first_mistake(&self) -> Option<String> {
        let is_mistake = |it: &&Problem| it.severity == Severity::Error;
        self.problems.iter().find(is_mistake).map(|it| match &*it.path {
            "" => format!("line {}: {}", it.line, it.message),
            key => format!("line {}, {key}: {}", it.line, it.message),
        })
    }

    /// Notes that a repeated attempt of a reload has failed because of an address, and logs this
    /// from time to time. All attempts count as one reload.
    pub(super) fn fails_again(&mut self, error: &str) {
        if self.again.failed() {
            tracing::warn!(
                error,
                "a listener still cannot open its address, retrying: stop the program that uses \
                 the address, or change it in the config"
            );
        }
    }
}

/// Reads and checks the config file, or the built-in config if `file` is `None`. `Err` only if the
/// file cannot be read. Blocks the thread.
fn read_config(file: Option<&PathBuf>) -> Result<Checked, Refused> {
    let text = match file {
        Some(file) => named_file::read(file, config::FILE_BYTES_MAX)
            .and_then(|content| String::from_utf8(content).map_err(std::io::Error::other))
            .map_err(|error| Refused::File(format!("cannot read {}: {error}", file.display())))?,
        None => config::EMBEDDED.to_owned(),
    };
    Ok(config::read(&text, outputs::TYPES).strict())
}

/// Returns the paths of the config file and of all files that it names, and the present state of
/// these files, by which a later change is noticed. Blocks the thread.
fn look(file: Option<&PathBuf>) -> (Vec<PathBuf>, watch::Seen) {
    let named = read_config(file).map(|checked| checked.files).unwrap_or_default();
    let files: Vec<_> = file.cloned().into_iter().chain(named).collect();
    let seen = watch::look(&files);
    (files, seen)
}
