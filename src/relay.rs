//! Puts the parts together, applies another config to them while they run, and ends them in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::check;
use crate::config;
use crate::config::Acknowledge;
use crate::config::Checked;
use crate::config::Config;
use crate::config::Problem;
use crate::config::Severity;
use crate::delivery::DeadLetters;
use crate::delivery::Staged;
use crate::listener::Gate;
use crate::net;
use crate::process;
use crate::process::Failures;
use crate::queue::Cursor;
use crate::queue::Left;
use crate::queue::Queue;
use crate::source;
use crate::source::Sources;
use crate::telemetry;
use crate::telemetry::ReloadMetrics;
use crate::telemetry::Telemetry;

mod listeners;
mod outputs;
mod watch;

use listeners::Listeners;
use outputs::Outputs;
use watch::Watch;

/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// What outputs get to end their connections, beyond the drain.
const CLOSING: Duration = Duration::from_secs(3);

/// A reload waits so long for a file system.
const READING: Duration = Duration::from_secs(30);

/// Problems of a config that are logged one by one.
const PROBLEMS_MAX: usize = 20;

/// Why the relay does not run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config names what can't be used: the operator mends it.
    #[error("{0}")]
    Config(String),
    /// The machine or a peer refused.
    #[error("{0}")]
    Run(String),
    /// A running relay could not go on, or was not let end in order. The log has it, with the
    /// totals behind it.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// Tells the log what has ended a relay that ran.
    fn ended(error: String) -> Self {
        tracing::error!(error, "failed");
        Self::Ended(error)
    }
}

/// What comes from outside while the relay runs.
pub struct Signals<S, A> {
    /// Ends it in order.
    pub stopped: S,
    /// Ends it at once, while it drains.
    pub aborted: A,
    /// Each message: the config is to be read again.
    pub reload: mpsc::Receiver<()>,
    /// Gets what a caller in this process needs of the relay, once it runs.
    pub opened: Option<oneshot::Sender<Opened>>,
}

/// What a running relay has opened.
pub struct Opened {
    /// Where its listeners listen.
    pub listeners: Vec<SocketAddr>,
    /// Where the admin routes are.
    pub admin: SocketAddr,
    /// The queue.
    pub queue: Queue,
}

/// The parts of a running relay.
struct Parts {
    config: Config,
    /// Where it comes from; `None`: built in.
    file: Option<PathBuf>,
    telemetry: Arc<Telemetry>,
    reloads: ReloadMetrics,
    gate: Arc<Gate>,
    queue: Queue,
    admin: Arc<Admin>,
    listeners: Listeners,
    outputs: Outputs,
    sources: Sources,
    dead_letters: DeadLetters,
    watch: Watch,
    /// Every task and thread that the relay can't go on without reports its failure here, but for
    /// the outputs: `outputs` takes one that has failed out of the queue first.
    failures: Failures,
    /// What is wrong with the config that was read last, until it is logged.
    problems: Vec<Problem>,
    /// Deadlines, upkeep, the admin routes.
    tasks: TaskTracker,
    /// Ends them.
    stop: CancellationToken,
}

/// Runs the relay until it is stopped, and drains. `file` is what `config` was read from, and is read from again.
///
/// # Errors
///
/// [`Error::Config`] before anything is open; [`Error::Run`] where an address can't be bound;
/// [`Error::Ended`] where an output, or a task that the relay needs, can't go on.
pub async fn run(
    file: Option<PathBuf>,
    config: Config,
    signals: Signals<impl Future<Output = ()>, impl Future<Output = ()>>,
) -> Result<(), Error> {
    if let Err(error) = process::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // Some kernels and sandboxes have none.
    if let Err(error) = process::refuse_huge_pages() {
        tracing::debug!(%error, "cannot refuse transparent huge pages");
    }
    let Signals { stopped, aborted, reload, opened } = signals;
    let mut stopped = std::pin::pin!(stopped);
    let parts = tokio::select! {
        started = start(file, config, opened) => started?,
        // A file system that hangs must not keep it from ending.
        () = &mut stopped => return Ok(()),
    };
    serve(parts, reload, stopped, aborted).await
}

/// Reloads until it is told to end, or has to, and drains.
async fn serve(
    mut parts: Parts,
    mut reload: mpsc::Receiver<()>,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
    aborted: impl Future<Output = ()>,
) -> Result<(), Error> {
    let failures = parts.failures.clone();
    let result = loop {
        tokio::select! {
            biased;
            () = &mut stopped => break Ok(()),
            error = failures.wait() => break Err(Error::Ended(error)),
            // One that has ended for good ends the process; the others are drained as at a signal.
            error = parts.outputs.ended() => {
                tracing::error!(error, "an output has ended for good: the relay drains and exits with 1");
                break Err(Error::Ended(error));
            }
            Some(()) = reload.recv() => {}
            () = parts.watch.changed() => {}
        }
        // A file system that hangs, and an output or a source that takes its time to leave, must
        // not keep it from ending: nothing is in force before the last wait is over.
        tokio::select! {
            biased;
            () = &mut stopped => break Ok(()),
            error = failures.wait() => break Err(Error::Ended(error)),
            prepared = parts.prepare() => parts.reload(prepared).await,
        }
    };
    let (queue, telemetry) = (parts.queue.clone(), Arc::clone(&parts.telemetry));
    let result = tokio::select! {
        drained = drain(parts) => result.and(drained),
        () = aborted => {
            abandon(&queue);
            Err(Error::ended("ended at once by a second signal".to_owned()))
        }
    };
    tell_totals(&queue, &telemetry);
    result
}

async fn start(
    file: Option<PathBuf>,
    config: Config,
    opened: Option<oneshot::Sender<Opened>>,
) -> Result<Parts, Error> {
    let telemetry = Arc::new(Telemetry::new());
    let dead_letters = DeadLetters::new(&telemetry);
    let mut outputs = outputs::plan_start(&config.outputs, &telemetry, &dead_letters);
    let plan = Plan {
        listeners: listeners::plan_start(&config.listeners),
        sources: Sources::default().plan(&config.sources, config.limits.max_body, &telemetry),
    };
    let (files, path) = (files_of(&outputs), file.clone());
    let (read, plan, watch) = blocking(move || {
        // Looked at before they are read; what has changed since the config was checked is not missed either.
        let (files_named, seen) = look(path.as_ref());
        let read = plan.read(files);
        (read, plan, Watch::new(files_named, seen))
    })
    .await
    .map_err(Error::Run)?;
    let (staged, settings) = read.map_err(Error::Config)?;
    staged.into_iter().for_each(|staged| staged());
    let admin_socket = bind(config.admin, "admin.address")?;
    let address =
        admin_socket.local_addr().map_err(|error| Error::Run(format!("admin.address: {error}")))?;
    let Plan { listeners, sources } = plan;
    let listeners = listeners::bind(listeners, settings, &[]).map_err(Error::Run)?;
    // Every address is ours before a directory is touched, and every output has its cursor before the first batch is
    // accepted.
    let (queue, cursors) = open_queue(&config, &telemetry, &outputs).await?;
    for (output, cursor) in outputs.iter_mut().zip(cursors) {
        output.opened(cursor);
    }
    dead_letters.reconfigure(&config);
    let gate = Gate::new(&config.limits, &config.queue, queue.clone(), &telemetry);
    let gate = Arc::new(gate);
    let failures = Failures::default();
    let mut parts = Parts {
        config,
        file,
        reloads: telemetry.reloads(),
        queue: queue.clone(),
        admin: Arc::new(Admin::new(Arc::clone(&telemetry), queue.clone())),
        listeners: Listeners::new(Arc::clone(&gate), Arc::clone(&telemetry), failures.clone()),
        outputs: Outputs::new(Arc::clone(&telemetry), queue, dead_letters.clone()),
        sources: Sources::new(failures.clone()),
        dead_letters,
        watch,
        failures,
        problems: Vec::new(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        telemetry,
        gate,
    };
    tracing::info!(%address, "admin listening");
    parts.start_tasks(admin_socket);
    parts.outputs.commit(outputs);
    parts.listeners.commit(listeners).await.map_err(Error::Run)?;
    parts.sources.commit(sources, &parts.queue);
    parts.show();
    parts.admin.started();
    if let Some(opened) = opened {
        let listeners = parts.listeners.show().iter().filter_map(|shown| shown.address).collect();
        // Whoever asked may have gone.
        opened.send(Opened { listeners, admin: address, queue: parts.queue.clone() }).ok();
    }
    Ok(parts)
}

async fn open_queue(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    outputs: &[outputs::Planned],
) -> Result<(Queue, Vec<Cursor>), Error> {
    let (config, telemetry) = (config.queue.clone(), Arc::clone(telemetry));
    let joining: Vec<_> = outputs.iter().filter_map(outputs::Planned::joins).collect();
    let opened = blocking(move || Queue::open(&config, &telemetry, &joining)).await;
    opened.map_err(Error::Run)?.map_err(|error| Error::Run(format!("queue.directory: {error}")))
}

/// What of the outputs is read from files, with their names.
fn files_of(outputs: &[outputs::Planned]) -> Vec<outputs::NamedFiles> {
    outputs.iter().filter_map(outputs::Planned::files).collect()
}

/// Where events come from, in a config that is about to be applied.
struct Plan {
    listeners: Vec<listeners::Planned>,
    sources: Vec<source::Planned>,
}

impl Plan {
    /// Reads what they and these outputs name, and changes nothing. Blocks.
    fn read(
        &self,
        outputs: Vec<outputs::NamedFiles>,
    ) -> Result<(Vec<Staged>, Vec<listeners::Read>), String> {
        let stage = |(name, files): outputs::NamedFiles| {
            files.stage().map_err(|error| format!("{name}: {error}"))
        };
        let of_outputs = outputs.into_iter().map(stage);
        let of_sources = self.sources.iter().map(source::Planned::stage);
        let staged = of_outputs.chain(of_sources).collect::<Result<_, _>>()?;
        let settings = self.listeners.iter().map(listeners::Planned::read);
        Ok((staged, settings.collect::<Result<_, _>>()?))
    }
}

/// Reads a config file; `None` for the one that is built in. Blocks.
fn read_config(file: Option<&PathBuf>) -> Result<Checked, String> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?,
        None => config::EMBEDDED.to_owned(),
    };
    Ok(config::read(&text).strict())
}

/// The config file and all that it names, and what they are now. Blocks.
fn look(file: Option<&PathBuf>) -> (Vec<PathBuf>, watch::Seen) {
    let named = read_config(file).map(|checked| checked.files).unwrap_or_default();
    let files: Vec<_> = file.cloned().into_iter().chain(named).collect();
    let seen = watch::look(&files);
    (files, seen)
}

fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, Error> {
    net::bind(address)
        .map_err(|error| Error::Run(format!("cannot listen on {key} {address}: {error}")))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| format!("a file could not be read: {panic}"))
}

/// Keeps the histograms small.
async fn upkeep(telemetry: Arc<Telemetry>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        telemetry.upkeep();
    }
}

/// What was read and checked for a reload, and has changed nothing yet.
struct Staging {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    plan: Plan,
    settings: Vec<listeners::Read>,
}

impl Parts {
    /// Starts what runs until [`Parts::stop`], beside listeners, sources and outputs.
    fn start_tasks(&self, admin_socket: TcpListener) {
        let stop = || self.stop.clone();
        let deadlines = Arc::clone(&self.gate).enforce_deadlines(stop());
        self.spawn("the task of the connections' deadlines", deadlines);
        let admin = Arc::clone(&self.admin).serve(admin_socket, stop());
        self.spawn("the task of the admin routes", admin);
        self.spawn("the task that folds histograms", upkeep(Arc::clone(&self.telemetry), stop()));
        self.spawn("the task that tells losses", self.telemetry.reports().tell(stop()));
        let (queue, failures, stop) = (self.queue.clone(), self.failures.clone(), stop());
        self.tasks.spawn(async move {
            if let Some(error) = stop.run_until_cancelled(queue.failed()).await {
                failures.report(error);
            }
        });
    }

    /// A task that the relay can't go on without.
    fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.failures.watched(name.to_owned(), task));
    }
}

/// What is ready to be put in force. Dropped instead, nothing has changed, but that sources which
/// were to leave take nothing more.
struct Prepared {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    sources: Vec<source::Planned>,
    listeners: Vec<listeners::Staged>,
}

/// The reload: everything is read, checked, bound and joined first, and put in force where all of that succeeds.
impl Parts {
    /// All that can fail, and all that may take its time: files, outputs of the same name that are
    /// still on their way out, the disk that notes a new one, sources that are to take nothing
    /// more.
    ///
    /// # Cancel safety
    ///
    /// Dropped, outputs that had joined have never been there. What sources had taken is theirs to
    /// finish; those that were to leave take nothing more, so that only the end may follow.
    async fn prepare(&mut self) -> Result<Prepared, String> {
        let Staging { config, mut outputs, files, plan, settings } = self.stage().await?;
        let Plan { listeners, sources } = plan;
        let taken = self.listeners.leaving(&listeners);
        let listeners = listeners::bind(listeners, settings, &taken)?;
        self.outputs.join(&mut outputs).await?;
        self.sources.close_leaving(&sources).await;
        Ok(Prepared { config, outputs, files, sources, listeners })
    }

    /// What does not fit together may be half written: it is an error once it has come to rest.
    async fn stage(&mut self) -> Result<Staging, String> {
        loop {
            let staging = self.try_stage().await;
            if staging.is_ok() || !self.watch.has_moved().await {
                return staging;
            }
        }
    }

    async fn try_stage(&mut self) -> Result<Staging, String> {
        let mut config = self.read().await?;
        self.keep_what_cannot_change(&mut config)?;
        let outputs = self.outputs.plan(&config.outputs);
        let max_body = config.limits.max_body;
        let plan = Plan {
            listeners: self.listeners.plan(&config.listeners),
            sources: self.sources.plan(&config.sources, max_body, &self.telemetry),
        };
        let files = files_of(&outputs);
        let (read, plan) = in_time(move || (plan.read(files), plan)).await?;
        let (files, settings) = read?;
        Ok(Staging { config, outputs, files, plan, settings })
    }

    async fn reload(&mut self, prepared: Result<Prepared, String>) {
        self.tell_problems();
        let reloaded = match prepared {
            Ok(prepared) => Ok(self.put_in_force(prepared).await),
            Err(error) => Err(error),
        };
        self.reloads.reloaded(matches!(reloaded, Ok(Ok(()))));
        match reloaded {
            Ok(Ok(())) => tracing::info!("config reloaded"),
            Ok(Err(error)) => tracing::error!(
                error,
                "config reloaded but for a listener: free its address, then send SIGHUP"
            ),
            Err(error) => {
                tracing::error!(error, "config not reloaded, going on with the one in use");
            }
        }
    }

    /// Returns within moments: nobody hears a signal meanwhile.
    ///
    /// # Errors
    ///
    /// A listener could not be opened. Everything else is in force.
    async fn put_in_force(&mut self, prepared: Prepared) -> Result<(), String> {
        let Prepared { config, outputs, files, sources, listeners } = prepared;
        files.into_iter().for_each(|staged| staged());
        telemetry::change_log(config.log);
        self.queue.apply(&config.queue);
        self.gate.apply(&config.limits, &config.queue);
        self.dead_letters.reconfigure(&config);
        self.outputs.commit(outputs);
        self.sources.commit(sources, &self.queue);
        let committed = self.listeners.commit(listeners).await;
        self.config = config;
        self.show();
        committed
    }

    /// The config as its file has it now; from here on its files are watched, whether or not it can be used.
    async fn read(&mut self) -> Result<Config, String> {
        let file = self.file.clone();
        let now = &self.config;
        let in_use = [now.queue.directory.clone(), now.dead_letter.directory.clone()];
        let in_use: Vec<_> = in_use.into_iter().flatten().collect();
        let (files, seen, checked) = in_time(move || {
            let (files, seen) = look(file.as_ref());
            let checked = read_config(file.as_ref()).map(|checked| {
                let mut problems = check::directories(&checked, &in_use);
                // The ones in use stay in use whatever their disks do; others have to work.
                problems.iter_mut().for_each(|problem| problem.severity = Severity::Error);
                problems.extend(check::files(&checked));
                checked.with(problems)
            });
            (files, seen, checked)
        })
        .await?;
        self.watch.renew(files, seen);
        self.problems.clear();
        let Checked { config, problems, .. } = checked?;
        self.problems = problems;
        config.ok_or_else(|| "the config is wrong; `check` prints every problem of it".to_owned())
    }

    /// Once for each reload, however often a half-written file was read.
    fn tell_problems(&mut self) {
        for problem in self.problems.drain(..).take(PROBLEMS_MAX) {
            let Problem { line, path: key, message, severity, .. } = problem;
            match severity {
                Severity::Error | Severity::Fault => tracing::error!(line, key, "{message}"),
                Severity::Warning | Severity::MissingFile => tracing::warn!(line, key, "{message}"),
            }
        }
    }

    /// The queue's directory and the admin's address stay until the next start. A config whose
    /// sources can't do with the queue that stays is refused.
    fn keep_what_cannot_change(&self, config: &mut Config) -> Result<(), String> {
        let now = &self.config;
        if config.admin != now.admin {
            tracing::warn!(key = "admin.address", "has changed, which needs a restart");
            config.admin = now.admin;
        }
        if config.queue.directory != now.queue.directory {
            tracing::warn!(key = "queue.directory", "has changed, which needs a restart");
            // Nearly every other key of the queue means something else with a directory, and so does what follows from them.
            config.queue = now.queue.clone();
            config.limits.max_body = config.limits.max_body.min(now.limits.max_body);
            if !config.sources.is_empty() && now.queue.acknowledge != Acknowledge::Delivered {
                // The source would commit offsets of events that no output has, as `check` says of
                // such a config.
                return Err("a [[source]] needs a queue in memory with acknowledge = \"delivered\", and \
                            queue.directory can't change without a restart: restart the relay, or leave \
                            the [[source]] out"
                    .to_owned());
            }
        }
        Ok(())
    }

    fn show(&self) {
        self.admin.show(self.outputs.show(), self.listeners.show(), self.sources.show());
    }
}

/// As [`blocking`], for so long as a reload may wait.
async fn in_time<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let done = tokio::time::timeout(READING, blocking(work)).await;
    done.unwrap_or_else(|_| Err("the file system does not answer".to_owned()))
}

/// Ends everything in order, as `[shutdown]` says.
///
/// # Errors
///
/// An output that ends for good meanwhile; the others go on.
async fn drain(mut parts: Parts) -> Result<(), Error> {
    let timeout = parts.config.drain_timeout;
    let deadline = Instant::now() + timeout;
    parts.admin.stopping();
    parts.gate.close();
    parts.listeners.close();
    parts.outputs.hurry();
    parts.sources.close().await;
    tracing::info!(timeout = format!("{timeout:?}"), "draining");
    let half = Instant::now() + timeout / 2;
    let cut = async {
        tokio::time::sleep_until(half).await;
        parts.gate.cut();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = parts.gate.closed(deadline) => {}
        () = cut => {}
    }
    let mut result = Ok(());
    let (queue, failures) = (parts.queue.clone(), parts.failures.clone());
    let empty = tokio::time::timeout_at(deadline, queue.drained());
    let mut empty = std::pin::pin!(empty);
    loop {
        tokio::select! {
            _ = &mut empty => break,
            error = parts.outputs.ended() => result = Err(Error::ended(error)),
        }
    }
    if let Ok(Some(error)) = tokio::time::timeout(CLOSING, parts.outputs.stop()).await {
        result = Err(Error::Ended(error));
    }
    parts.sources.end(CLOSING).await;
    parts.dead_letters.close().await;
    parts.queue.close().await;
    abandon(&parts.queue);
    parts.stop.cancel();
    parts.tasks.close();
    let ended = async {
        parts.listeners.ended().await;
        parts.tasks.wait().await;
    };
    tokio::time::timeout(CLOSING, ended).await.ok();
    result.and_then(|()| failures.first().map_or(Ok(()), |error| Err(Error::Ended(error))))
}

/// Counts what was not delivered and is lost with the process, and tells what is kept.
fn abandon(queue: &Queue) {
    for (output, left) in queue.abandon() {
        if let Left::Kept(events @ 1..) = left {
            tracing::info!(output, events, "events not delivered yet, kept for the next start");
        }
    }
}

/// The last line of a relay that ran: what has become of all events since its start. Summed over
/// the outputs, an event counts for each of them.
fn tell_totals(queue: &Queue, telemetry: &Telemetry) {
    telemetry.reports().flush();
    queue.observe();
    let reading = telemetry.read();
    let (mut delivered, mut lost, mut kept, mut each) = (0, 0, 0, String::new());
    for outcome in reading.outcomes() {
        (delivered, lost) = (delivered + outcome.delivered, lost + outcome.lost);
        kept += outcome.backlog;
        let separator = if each.is_empty() { "" } else { "; " };
        each.push_str(&format!("{separator}{outcome}"));
    }
    let accepted = reading.accepted_events();
    if lost > 0 {
        tracing::error!(accepted, delivered, lost, kept, outputs = each, "ended");
    } else {
        tracing::info!(accepted, delivered, lost, kept, outputs = each, "ended");
    }
}

#[cfg(test)]
mod tests;
