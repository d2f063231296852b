//! The evidence of a relay: its start, its reloads and its end.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::Error;
use super::outputs::NamedFiles;
use super::waiting::in_time;
use ::recorder::originals::Originals;
use ::recorder::recorder::{Recorder, Setup};
use ::recorder::{off, recorder};
use base::disk::Disk;
use base::named_file;
use base::position::Position;
use config::Config;
use delivery::Published;
use evidence_log::entry::Running;
use evidence_log::reader::{Directory, Log};
use evidence_log::tlog::checkpoint::Signed;
use evidence_log::tlog::key::SigningKey;
use evidence_log::tlog::note::Signed as Check;
use queue::{Cursor, Queue};
use telemetry::Telemetry;

/// The purpose for which the key of the config's digest is derived from the signing key.
const PURPOSE: &str = "evidence config 1";

/// The recorder of a running relay, and the facts about the config that it records.
pub(crate) struct Evidence {
    recorder: Recorder,
    /// The key for the digest of the config. The box keeps the key's 768 bytes out of each future
    /// that holds this value.
    digest: Box<hmac::Key>,
    /// The facts about the relay that the log's entries give, as of the start or the last reload.
    running: Running,
    /// The newest checkpoint. This receiver never marks a checkpoint as seen, so that each clone
    /// begins with the newest one.
    checkpoints: Published,
}

/// Returns the reader of the queue that the recorder needs; `None` if there is no evidence. The
/// queue sees this reader as an output, which must be the last one in the list with which the queue
/// is opened. Blocks the thread.
pub(crate) fn reader(
    settings: Option<&config::Evidence>,
    queue: Option<&Path>,
) -> Option<queue::Output> {
    let settings = settings?;
    let log = queue.map(|queue| Directory::at(&queue.join(evidence_log::DIRECTORY)));
    // If the log can't be read, or is that of another origin, the reader begins with the oldest
    // event. The recorder reports what is wrong.
    let recorded = log.and_then(|log| recorded_until(log, settings));
    Some(queue::Output {
        name: String::new(),
        required: false,
        metrics: Telemetry::of_no_output(),
        recorder: Some(recorded.map_or(Position::START, Position::new)),
    })
}

/// Returns the position after the last event whose entry is covered by the log's newest checkpoint.
/// `None` without such an entry, or if the log or the keys can't be read. Also `None` if the log
/// has another origin, or if none of the keys has signed its checkpoint.
fn recorded_until(directory: Directory, settings: &config::Evidence) -> Option<u64> {
    let log = Log::open(&directory).ok()?;
    let Signed { checkpoint, note } = &log.signed;
    let keys = read_keys(settings).ok()?;
    let is_own = keys.iter().any(|key| matches!(note.check(key.verifier()), Check::Valid(_)));
    if checkpoint.origin != settings.origin || !is_own {
        return None;
    }
    log.end_in_queue().ok()?
}

/// Notes in the queue's directory that evidence is on (`is_on`) or off from the position `end` on.
/// Returns the ranges of events that came in without evidence and may have no entry yet. There are
/// none if `is_on` is `false`, or if the disk refuses, which is logged.
async fn switched(
    disk: Arc<dyn Disk>,
    end: Position,
    is_on: bool,
) -> Result<Vec<Range<u64>>, Error> {
    let deadline = Instant::now() + named_file::WAIT_MAX;
    let noted = in_time(deadline, move || match is_on {
        true => off::turned_on(&*disk, end.get()),
        false => off::turned_off(&*disk, end.get()).map(|()| Vec::new()),
    });
    Ok(noted.await?.unwrap_or_else(|error| {
        tracing::error!(
            %error,
            "cannot save in queue.directory that evidence was turned on or off: the evidence may \
             not show which events arrived while it was off"
        );
        Vec::new()
    }))
}

/// Starts the recorder with the last cursor, which is removed from `cursors`. Returns `None`
/// without a section `[evidence]`. The outputs must already use the files that the config names.
///
/// # Errors
///
/// The queue has no directory, the signing key can't be used, the file system hangs, or the system
/// gives no thread.
pub(crate) async fn begin(
    config: &Config,
    named: &[NamedFiles],
    queue: &Queue,
    cursors: &mut Vec<Cursor>,
    telemetry: &Telemetry,
) -> Result<Option<Evidence>, Error> {
    // The metrics exist without evidence too, so that an alert about them can be checked.
    let metrics = telemetry.evidence();
    let Some(settings) = config.evidence.clone() else {
        if let Some((disk, end)) = queue.disk() {
            switched(disk, end, false).await?;
        }
        return Ok(None);
    };
    let (Some((disk, end)), Some(cursor)) = (queue.disk(), cursors.pop()) else {
        return Err(Error::Run("evidence: needs queue.directory".to_owned()));
    };
    let off = switched(Arc::clone(&disk), end, true).await?;
    // A new log begins with the first event that some output has not finished, because the fates of
    // the events before it are no longer known.
    let begin = queue.places().into_iter().map(|(_, place)| place).min().unwrap_or(end);
    let positions = (begin.max(cursor.position()), end);
    let failed = |error: String| Error::Run(format!("evidence: {error}"));
    let of_key = settings.clone();
    let deadline = Instant::now() + named_file::WAIT_MAX;
    let keys = in_time(deadline, move || read_keys(&of_key)).await?.map_err(failed)?;
    let secret = keys.first().map(|key| key.derive(PURPOSE)).unwrap_or_default();
    let digest = Box::new(hmac::Key::new(hmac::HMAC_SHA256, &secret));
    let running = recorder::running(config_digest(&digest, config, named), &settings);
    let running_kept = running.clone();
    let originals = Arc::new(Originals::new(Arc::clone(&disk), metrics.clone()));
    queue.compare_with(Arc::<Originals>::clone(&originals));
    let queue = queue.clone();
    let witness = |it: &config::Witness| (it.clone(), telemetry.witness(it.key.name()));
    let witnesses = settings.witnesses.iter().map(witness).collect();
    let (publish, published) = watch::channel(Bytes::new());
    let setup = Setup {
        settings,
        keys,
        queue,
        disk,
        cursor,
        positions,
        off,
        running,
        metrics,
        originals,
        witnesses,
        checkpoints: publish,
    };
    let recorder = Recorder::start(setup).map_err(|error| failed(error.to_string()))?;
    Ok(Some(Evidence { recorder, digest, running: running_kept, checkpoints: published }))
}

/// Reads the signing key, and the next key if the config names one. The error text never shows a
/// key. Blocks the thread.
fn read_keys(settings: &config::Evidence) -> Result<Vec<SigningKey>, String> {
    let read = |file: &PathBuf| -> Result<SigningKey, String> {
        let text = config::read_secret(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let key =
            SigningKey::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        match key.verifier().name() == settings.origin {
            true => Ok(key),
            false => Err(format!(
                "{} is the key of {}, and evidence.origin is another name",
                file.display(),
                key.verifier().name()
            )),
        }
    };
    let files = [Some(&settings.key_file), settings.next_key_file.as_ref()];
    let mut keys = files.into_iter().flatten().map(read).collect::<Result<Vec<_>, _>>()?;
    keys.dedup_by(|next, key| next.verifier() == key.verifier());
    Ok(keys)
}

/// Returns a digest of the config in force, as 64 hexadecimal digits. It covers defaults, the
/// values of variables, and the contents of files that decide which events are sent, in which form
/// and to where, such as policies and URLs. Of renewed files (credentials, certificates), only the
/// paths count. The digest is keyed, so that nobody can check a guess at a secret in the config.
fn config_digest(key: &hmac::Key, config: &Config, named: &[NamedFiles]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{config:?}").as_bytes());
    for (output, files) in named {
        context.update(format!("\n{output:?} {:?}", files.effective()).as_bytes());
    }
    context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Evidence {
    /// Returns a receiver of the newest checkpoint and of each later one, for the outputs.
    pub(crate) fn checkpoints(&self) -> Published {
        self.checkpoints.clone()
    }

    /// Records that the relay uses another config, whose files the outputs must already use.
    pub(crate) fn reloaded(&mut self, config: &Config, named: &[NamedFiles]) {
        self.running.config_sha256 = config_digest(&self.digest, config, named);
        self.recorder.reloaded(self.running.clone());
    }

    /// Records the end of the relay, which takes at most the time `within`. The outputs must have
    /// ended.
    pub(crate) async fn stop(self, within: Duration) {
        self.recorder.stop(self.running, within).await;
    }
}
