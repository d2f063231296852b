//! Starts the parts of the relay, applies another config to them while they run, and ends them in
//! order.

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
use crate::listener::Gate;
use crate::net;
use crate::output;
use crate::process;
use crate::process::Failures;
use crate::queue::Cursor;
use crate::queue::Left;
use crate::queue::Queue;
use crate::source;
use crate::source::Sources;
use crate::staged::Staged;
use crate::telemetry;
use crate::telemetry::ReloadMetrics;
use crate::telemetry::Telemetry;

mod error;
mod listeners;
mod outputs;
mod watch;

pub use error::Error;
use error::FileError;
use error::NotListening;
use error::Refused;
use listeners::Listeners;
use outputs::Outputs;
use watch::Watch;

/// The time between two folds of the histograms, which keep them small in memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The time that outputs and sources have to close their connections after the drain.
const CLOSING: Duration = Duration::from_secs(3);

/// The time that a reload waits for the file system before it is refused.
const READING: Duration = Duration::from_secs(30);

/// The greatest number of a config's problems that are logged one by one.
const PROBLEMS_MAX: usize = 20;

/// The orders that the caller of [`run`] can give to a running relay.
pub struct Signals<S, A> {
    /// The relay drains and ends when this future completes.
    pub stopped: S,
    /// The relay ends at once when this future completes during the drain.
    pub aborted: A,
    /// The relay reads its config again for each message.
    pub reload: mpsc::Receiver<()>,
    /// Receives the addresses and the queue once the relay runs; `None`: the caller does not need
    /// them.
    pub opened: Option<oneshot::Sender<Opened>>,
}

/// The addresses and the queue of a running relay.
pub struct Opened {
    /// The addresses on which the listeners accept connections.
    pub listeners: Vec<SocketAddr>,
    /// The address of the admin routes, such as `/metrics` and `/status`.
    pub admin: SocketAddr,
    /// The relay's queue.
    pub queue: Queue,
}

/// The parts of a running relay. [`run`] owns them; the relay's own task runs [`serve`] on them.
///
/// - The *start* binds all addresses first, opens the queue, then starts outputs, listeners and
///   sources in this order. No batch is accepted before every output has a cursor.
/// - While the relay *runs*, [`serve`] waits for a signal, for the failure of a part that the relay
///   needs, and for a changed config. A changed config goes through two steps: [`Parts::prepare`]
///   does everything that can fail or take time and changes nothing, and [`Parts::reload`] puts the
///   result in force. A signal to end drops a prepare that is under way.
/// - The *drain* closes the listeners, lets the outputs go on until the queue is empty or the time
///   is over, and then ends outputs, sources, dead letters and queue in this order.
///
/// A reload that fails leaves the config in use as it was. Only one error can appear later: the
/// address of a listener turns out to be taken. Everything else is then in force. Every task and
/// thread that the relay needs reports its failure, so that the relay never runs on without a part.
struct Parts {
    config: Config,
    /// The config file; `None` for the config that is built into the program.
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
    /// Every task and thread that the relay needs reports its failure here, except the tasks of the
    /// outputs. `outputs` reports these, after it has told the queue not to wait for the output.
    failures: Failures,
    /// The problems of the config that was read last; empty once they are logged.
    problems: Vec<Problem>,
    /// The tasks that keep deadlines, fold histograms, write reports and serve the admin routes.
    tasks: TaskTracker,
    /// Cancelling this token ends the tasks in `tasks`.
    stop: CancellationToken,
}

/// Runs the relay until it is stopped or cannot go on, and drains it. `file` is the file from which
/// `config` was read; a reload reads it again.
///
/// # Errors
///
/// [`Error::Config`] if a file that the config names cannot be used; [`Error::Run`] if an address
/// cannot be bound or the queue cannot be opened; [`Error::Ended`] if an output, or a task that the
/// relay needs, cannot go on.
pub async fn run(
    file: Option<PathBuf>,
    config: Config,
    signals: Signals<impl Future<Output = ()>, impl Future<Output = ()>>,
) -> Result<(), Error> {
    if let Err(error) = process::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // Some kernels and sandboxes do not have this setting of the process.
    if let Err(error) = process::refuse_huge_pages() {
        tracing::debug!(%error, "cannot turn off transparent huge pages");
    }
    let Signals { stopped, aborted, reload, opened } = signals;
    let mut stopped = std::pin::pin!(stopped);
    let parts = tokio::select! {
        started = start(file, config, opened) => started?,
        // The relay must be able to end even while a file system hangs.
        () = &mut stopped => return Ok(()),
    };
    serve(parts, reload, stopped, aborted).await
}

/// Runs the loop of a running relay: reloads until a signal or a failure ends the relay, then
/// drains.
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
            // An output that has ended for good ends the process. The other outputs are drained as
            // after a signal.
            error = parts.outputs.ended() => {
                let error = error.to_string();
                tracing::error!(error, "an output has ended for good: the relay drains and exits with 1");
                break Err(Error::Ended(error));
            }
            Some(()) = reload.recv() => {}
            () = parts.watch.changed() => {}
        }
        // A signal ends the relay even if a file system hangs, or if an output or a source takes
        // long to leave. Dropping `prepare` is safe, because nothing is in force until its last
        // wait is over.
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
            Err(Error::ended(&"ended at once by a second signal"))
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
        // The watch looks at the files before they are read. A change after the config was checked
        // is therefore noticed later.
        let (files_named, seen) = look(path.as_ref());
        let read = plan.read(files);
        (read, plan, Watch::new(files_named, seen))
    })
    .await?;
    let (staged, settings) = read.map_err(Refused::File)?;
    staged.into_iter().for_each(|staged| staged());
    let admin_socket = bind(config.admin, "admin.address")?;
    let address =
        admin_socket.local_addr().map_err(|error| Error::Run(format!("admin.address: {error}")))?;
    let Plan { listeners, sources } = plan;
    let listeners = listeners::bind(listeners, settings, &[]).map_err(Refused::Address)?;
    // All addresses are bound before a directory is touched, and every output has its cursor before
    // the first batch is accepted.
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
    parts.listeners.commit(listeners).await.map_err(|error| Error::Run(error.to_string()))?;
    parts.sources.commit(sources, &parts.queue);
    parts.show();
    parts.admin.started();
    if let Some(opened) = opened {
        let listeners = parts.listeners.show().iter().filter_map(|shown| shown.address).collect();
        // Sending fails only if the receiver is gone, and then nobody needs the value.
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
    opened?.map_err(|error| Error::Run(format!("queue.directory: {error}")))
}

/// Returns the files of every output that reads files, each with the output's name.
fn files_of(outputs: &[outputs::Planned]) -> Vec<outputs::NamedFiles> {
    outputs.iter().filter_map(outputs::Planned::files).collect()
}

/// The planned listeners and sources of a config that is about to be applied.
struct Plan {
    listeners: Vec<listeners::Planned>,
    sources: Vec<source::Planned>,
}

impl Plan {
    /// Reads the files of these listeners, sources and outputs, and changes nothing. Blocks.
    fn read(
        &self,
        outputs: Vec<outputs::NamedFiles>,
    ) -> Result<(Vec<Staged>, Vec<listeners::Read>), FileError> {
        let stage = |(name, files): outputs::NamedFiles| {
            files.stage().map_err(|source| FileError::Output { name, source })
        };
        let of_outputs = outputs.into_iter().map(stage);
        let of_sources = self.sources.iter().map(|source| Ok(source.stage()?));
        let staged = of_outputs.chain(of_sources).collect::<Result<_, _>>()?;
        let settings = self.listeners.iter().map(listeners::Planned::read);
        Ok((staged, settings.collect::<Result<_, _>>()?))
    }
}

/// Reads and checks the config file, or the built-in config if `file` is `None`. `Err` if the file
/// cannot be read. Blocks.
fn read_config(file: Option<&PathBuf>) -> Result<Checked, Refused> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|source| Refused::ConfigFile { file: file.clone(), source })?,
        None => config::EMBEDDED.to_owned(),
    };
    Ok(config::read(&text, output::TYPES).strict())
}

/// Returns the paths of the config file and of all files that it names, and the present state of
/// these files. Blocks.
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
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(Refused::Panicked)
}

/// Folds the histograms every [`UPKEEP`], which keeps them small, until `stop` is cancelled.
async fn upkeep(telemetry: Arc<Telemetry>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        telemetry.upkeep();
    }
}

/// Everything that was read and checked for a reload. Nothing is in force yet.
struct Staging {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    plan: Plan,
    settings: Vec<listeners::Read>,
}

impl Parts {
    /// Starts the tasks that run until [`Parts::stop`] is cancelled. Listeners, sources and outputs
    /// have their own tasks.
    fn start_tasks(&self, admin_socket: TcpListener) {
        let stop = || self.stop.clone();
        let deadlines = Arc::clone(&self.gate).enforce_deadlines(stop());
        self.spawn("the task that keeps the connections' deadlines", deadlines);
        let admin = Arc::clone(&self.admin).serve(admin_socket, stop());
        self.spawn("the task that serves the admin address", admin);
        self.spawn("the task that folds histograms", upkeep(Arc::clone(&self.telemetry), stop()));
        self.spawn("the task that reports losses", self.telemetry.reports().tell(stop()));
        let (queue, failures, stop) = (self.queue.clone(), self.failures.clone(), stop());
        self.tasks.spawn(async move {
            if let Some(error) = stop.run_until_cancelled(queue.failed()).await {
                failures.report(error);
            }
        });
    }

    /// Starts a task that the relay cannot run without. `name` is the task's name in messages.
    fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.failures.watched(name.to_owned(), task));
    }
}

/// A reload that is ready to be put in force. If it is dropped, nothing has changed, except that
/// sources that were to leave accept nothing more.
struct Prepared {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    sources: Vec<source::Planned>,
    listeners: Vec<listeners::StagedListener>,
}

/// The reload. Everything is first read, checked, bound and joined; only if all of that succeeds is
/// it put in force.
impl Parts {
    /// Does everything in a reload that can fail or take time: reads files, waits for outputs that
    /// are still leaving and whose name is used again, notes new outputs on disk, and stops sources
    /// that are to leave.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, outputs that had joined the queue leave it without a trace.
    /// Sources that were to leave finish what they have taken, and take nothing more. Therefore the
    /// relay may drop this future only to end.
    async fn prepare(&mut self) -> Result<Prepared, Refused> {
        let Staging { config, mut outputs, files, plan, settings } = self.stage().await?;
        let Plan { listeners, sources } = plan;
        let taken = self.listeners.leaving(&listeners);
        let listeners = listeners::bind(listeners, settings, &taken)?;
        self.outputs.join(&mut outputs).await?;
        self.sources.close_leaving(&sources).await;
        Ok(Prepared { config, outputs, files, sources, listeners })
    }

    /// Reads a config and the files that it names. If reading fails, the files may be half written,
    /// so they are read again until they no longer change. `Err` only if they still cannot be used
    /// then.
    async fn stage(&mut self) -> Result<Staging, Refused> {
        loop {
            let staging = self.try_stage().await;
            if staging.is_ok() || !self.watch.has_moved().await {
                return staging;
            }
        }
    }

    async fn try_stage(&mut self) -> Result<Staging, Refused> {
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

    async fn reload(&mut self, prepared: Result<Prepared, Refused>) {
        self.tell_problems();
        let reloaded = match prepared {
            Ok(prepared) => Ok(self.put_in_force(prepared).await),
            Err(error) => Err(error),
        };
        self.reloads.reloaded(matches!(reloaded, Ok(Ok(()))));
        match reloaded {
            Ok(Ok(())) => tracing::info!("config reloaded"),
            Ok(Err(error)) => tracing::error!(
                error = error.to_string(),
                "config reloaded except for a listener: free its address, then send SIGHUP"
            ),
            Err(error) => {
                let error = error.to_string();
                tracing::error!(error, "config not reloaded, going on with the one in use");
            }
        }
    }

    /// Puts a reload in force. This returns within moments, which matters because no signal is
    /// noticed meanwhile.
    ///
    /// # Errors
    ///
    /// A listener that could not be opened. Everything else is in force.
    async fn put_in_force(&mut self, prepared: Prepared) -> Result<(), NotListening> {
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

    /// Reads the config file again. From here on the files that this config names are watched,
    /// whether or not the config can be used.
    async fn read(&mut self) -> Result<Config, Refused> {
        let file = self.file.clone();
        let now = &self.config;
        let in_use = [now.queue.directory.clone(), now.dead_letter.directory.clone()];
        let in_use: Vec<_> = in_use.into_iter().flatten().collect();
        let (files, seen, checked) = in_time(move || {
            let (files, seen) = look(file.as_ref());
            let checked = read_config(file.as_ref()).map(|checked| {
                let mut problems = check::directories(&checked, &in_use);
                // A directory that is in use stays in use, whatever its disk does. Any other
                // directory must work.
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
        config.ok_or(Refused::Problems)
    }

    /// Logs the problems of the config. This happens once for each reload, even if a half-written
    /// file was read several times.
    fn tell_problems(&mut self) {
        for problem in self.problems.drain(..).take(PROBLEMS_MAX) {
            let Problem { line, path: key, message, severity, .. } = problem;
            match severity {
                Severity::Error | Severity::Fault => tracing::error!(line, key, "{message}"),
                Severity::Warning | Severity::MissingFile => tracing::warn!(line, key, "{message}"),
            }
        }
    }

    /// Keeps the settings that cannot change without a restart: the queue's directory and the admin
    /// address. `Err` if the new config has sources that the queue in use cannot serve.
    fn keep_what_cannot_change(&self, config: &mut Config) -> Result<(), Refused> {
        let now = &self.config;
        if config.admin != now.admin {
            tracing::warn!(key = "admin.address", "has changed, which needs a restart");
            config.admin = now.admin;
        }
        if config.queue.directory != now.queue.directory {
            tracing::warn!(key = "queue.directory", "has changed, which needs a restart");
            // The queue's directory decides what nearly every other key of the queue means, so all
            // of the queue's settings stay as they are.
            config.queue = now.queue.clone();
            config.limits.max_body = config.limits.max_body.min(now.limits.max_body);
            if !config.sources.is_empty() && now.queue.acknowledge != Acknowledge::Delivered {
                // With this queue, the source would commit offsets of events that no output has
                // yet. `check` reports such a config with the same reason.
                return Err(Refused::NeedsRestart);
            }
        }
        Ok(())
    }

    fn show(&self) {
        self.admin.show(self.outputs.show(), self.listeners.show(), self.sources.show());
    }
}

/// Runs blocking work on another thread, and waits for the result at most [`READING`]; `Err` after
/// that.
async fn in_time<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::time::timeout(READING, blocking(work)).await;
    done.unwrap_or(Err(Refused::Hangs))
}

/// Ends all parts in order, within the times that `[shutdown]` sets.
///
/// # Errors
///
/// An output that ended for good during the drain; the other outputs go on.
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
            error = parts.outputs.ended() => result = Err(Error::ended(&error)),
        }
    }
    if let Ok(Some(error)) = tokio::time::timeout(CLOSING, parts.outputs.stop()).await {
        result = Err(Error::Ended(error.to_string()));
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

/// Counts the events that were not delivered and are lost with the process, and logs those that are
/// kept.
fn abandon(queue: &Queue) {
    for (output, left) in queue.abandon() {
        if let Left::Kept(events @ 1..) = left {
            tracing::info!(output, events, "events not delivered yet, kept for the next start");
        }
    }
}

/// Logs the last line of a relay that ran: what happened to all events since its start. The sums
/// are over all outputs, so an event counts once for each output.
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
