//! The work of `run` before it starts the relay's threads, unless `process.restrict` is off: it
//! makes the directories that the relay writes to, and restricts the process to the files it needs.

use std::path::{Path, PathBuf};

use super::in_time;
use config::{Config, Restrict};
use process::restrict;
use process::restrict::{Opened, State};
use queue::{OpenError, make_directory};
use relay::Error;

/// Restricts this thread, and the threads that it makes later, as `process.restrict` says. `file`
/// is the config file, and `named` are the files that it names. If a file system hangs, prints
/// that, and the outer `Err` is the exit status. The inner `Err` is for the log, which is not
/// started yet.
pub(super) fn before_threads(
    file: Option<&Path>,
    named: &[PathBuf],
    config: &Config,
) -> Result<Result<&'static State, Error>, u8> {
    let files: Vec<_> = file.into_iter().map(Path::to_owned).chain(named.to_vec()).collect();
    let (setting, of_queue) = (config.restrict, config.queue.directory.clone());
    let others = [&config.dead_letter.directory, &config.state_directory];
    let others: Vec<_> = others.into_iter().flatten().cloned().collect();
    let opened = match setting {
        Restrict::Off => Ok(Vec::new()),
        // The thread that opens the files is not restricted. It ends with its result, and opens
        // nothing afterwards.
        Restrict::Required | Restrict::BestEffort => {
            in_time(move || open(setting, &files, of_queue, others))?
        }
    };
    let opened = opened.map_err(|error| Error::Run(format!("queue.directory: {error}")));
    Ok(opened.and_then(|opened| {
        restrict::enforce(setting, opened).map_err(|missing| {
            let what = format!("process.restrict is \"required\", but there is no {missing}");
            Error::Config(what)
        })
    }))
}

/// Opens everything that the relay may use. First makes the missing directories, as the relay would
/// do later, because only existing directories can be opened.
fn open(
    setting: Restrict,
    files: &[PathBuf],
    of_queue: Option<PathBuf>,
    others: Vec<PathBuf>,
) -> Result<Vec<Opened>, OpenError> {
    of_queue.as_deref().map_or(Ok(()), make_directory)?;
    // A relay runs without these directories. The code that writes to them logs the error.
    others.iter().for_each(|directory| drop(make_directory(directory)));
    let directories: Vec<_> = of_queue.into_iter().chain(others).collect();
    Ok(restrict::open(setting, files, &directories))
}
