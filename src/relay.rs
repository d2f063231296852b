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
use crate::delivery::Orders;
use crate::listener::Gate;
use crate::listener::Token;
use crate::named_file;
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
use crate::tap::Taps;
use crate::telemetry;
use crate::telemetry::ReloadMetrics;
use crate::telemetry::Telemetry;

mod again;
mod error;
mod evidence;
mod listeners;
mod outputs;
mod watch;

use again::Again;
pub use error::Error;
use error::FileError;
use error::NotListening;
use error::Refused;
use listeners::Listeners;
use outputs::Outputs;
use watch::Watch;

/// The time between two runs of `upkeep`. Each run counts the newly collected values of a histogram
/// in the histogram's buckets. Without these runs, the values would pile up in memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// The longest wait for the outputs to end, after the drain (the time in which the relay delivers
/// its last events). The sources have the same limit, and so have all other tasks. A part that
/// hangs delays the end of the relay for no longer than this.
const CLOSING: Duration = Duration::from_secs(3);

/// When the files of a config have been read for this long, the log says so. The wait ends after
/// [`named_file::WAIT_MAX`].
const SLOW: Duration = Duration::from_secs(5);

/// The greatest number of problems of one config that are logged. Further problems are not logged.
const PROBLEMS_MAX: usize = 20;

/// The signals that the caller of [`run`] gives to the relay, and the channel on which the caller
/// learns that the relay runs.
pub struct Signals<S, A> {
    /// When this future completes, the relay drains (accepts nothing more, and delivers the events
    /// that it still holds) and ends.
    pub stopped: S,
    /// When this future completes during the drain (the orderly end of the relay), the relay ends
    /// at once.
    pub aborted: A,
    /// The relay reads its config again for each message in this channel.
    pub reload: mpsc::Receiver<()>,
    /// Receives the addresses and the queue once the relay runs; `None`: the caller does not need
    /// them.
    pub opened: Option<oneshot::Sender<Opened>>,
}

/// The addresses and the queue of a running relay.
pub struct Opened {
    /// The addresses on which the listeners accept connections.
    pub listeners: Vec<SocketAddr>,
    /// The address of the admin server, which serves `/metrics` and `/status`.
    pub admin: SocketAddr,
    /// The queue of the relay, which holds the events that were accepted and not delivered yet.
    pub queue: Queue,
}

/// The parts of a running relay. [`run`] makes them and passes them to [`serve`], in the same task.
///
/// - The *start* binds all addresses first, opens the queue, then starts outputs, listeners and
///   sources in this order. No batch is accepted before every output has a cursor (its place in the
///   queue).
/// - While the relay *runs*, [`serve`] waits for a signal, for the failure of a part that the relay
///   needs, and for a changed config. A changed config goes through two steps. [`Parts::prepare`]
///   does everything that can fail or take time; it changes nothing, except that new outputs join
///   the queue, and that the sources that are removed or changed stop. [`Parts::reload`] puts the
///   result in force. If a signal to end the relay comes during the first step, this step is given
///   up.
/// - The *drain* closes the listeners. The outputs go on until the queue is drained or the time
///   limit is over. A queue in memory is drained when it is empty; a queue on disk is drained when
///   no output waits for an answer of its consumer. Then outputs, sources, dead letters and queue
///   end in this order.
///
/// If a reload fails, the relay goes on with the config that it has. Only one error can appear
/// after the first step: the address of a listener is in use. The rest of the new config is then in
/// force. A reload that could not bind an address is tried again after a pause. Every task and
/// thread that the relay needs reports its failure, so that the relay never runs on without a part.
struct Parts {
    config: Config,
    /// The path of the config file; `None`: the relay uses the config that is built into the
    /// program.
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
    /// Records the evidence. `None` if the config has no section `[evidence]`.
    evidence: Option<evidence::Evidence>,
    watch: Watch,
    /// When a reload that could not bind an address is tried again.
    again: Again,
    /// The failures of the tasks and threads that the relay needs. A failure that is reported here
    /// ends the relay. The tasks of the outputs do not report here: they report to `outputs`.
    /// There, the queue is first told not to wait for the failed output.
    failures: Failures,
    /// The problems of the config that was read last. The list is empty after the problems were
    /// logged.
    problems: Vec<Problem>,
    /// The relay's own tasks. They close connections that exceed a deadline, call `upkeep`, write
    /// the log lines about losses, serve the admin address, keep the history of the last hour, and
    /// wait for a failure of the queue.
    tasks: TaskTracker,
    /// Cancelling this token ends the tasks in `tasks`.
    stop: CancellationToken,
}

/// Runs the relay until `signals` stops it or a part of it fails. The relay then drains: within a
/// time limit, a queue in memory delivers the events that it still holds, and a queue on disk waits
/// only for answers and keeps its other events. `file` is the path from which `config` was read; a
/// reload reads the file again.
///
/// # Errors
///
/// - [`Error::Config`]: a file that the config names cannot be used.
/// - [`Error::Run`]: an address cannot be bound, or the queue cannot be opened.
/// - [`Error::Ended`]: an output, or a task that the relay needs, cannot go on; or a second signal
///   has cut the drain short.
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

/// Runs a relay that was started. Reloads the config for each message in `reload`, for each change
/// of a file, and again after a reload that could not bind an address, until `stopped` completes or
/// a part fails. Then drains the relay, or ends it at once when `aborted` completes. Returns the
/// error that ended the relay.
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
            Some(()) = reload.recv() => parts.again.end(),
            () = parts.watch.changed() => parts.again.end(),
            () = parts.again.due() => {
                if parts.listeners.would_fail_again() {
                    parts.fails_again(None);
                    continue;
                }
            }
        }
        // A signal ends the relay even if a file system hangs, or if an output or a source that is
        // removed takes long to end. Dropping `prepare` is safe, because nothing is in force until
        // its last wait is over.
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
        tap_token_file: config.tap_token_file.clone(),
    };
    let (files, path) = (files_of(&outputs), file.clone());
    let (read, plan, watch) = in_time(Instant::now() + named_file::WAIT_MAX, move || {
        // The watch reads the state of the files before the relay reads them. The watch therefore
        // notices every later change, also one between the check of the config and this start.
        let (files_named, seen) = look(path.as_ref());
        let read = plan.read(files);
        (read, plan, Watch::new(files_named, seen))
    })
    .await?;
    let (staged, settings, tap_token) = read.map_err(Refused::File)?;
    staged.into_iter().for_each(|staged| staged());
    let admin_socket = bind(config.admin, "admin.address")?;
    let address =
        admin_socket.local_addr().map_err(|error| Error::Run(format!("admin.address: {error}")))?;
    let Plan { listeners, sources, .. } = plan;
    let listeners = listeners::bind(listeners, settings, &[]).map_err(Refused::Address)?;
    // All addresses are bound before a directory is touched, and every output has its cursor before
    // the first batch is accepted.
    let (queue, mut cursors) = open_queue(&config, &telemetry, &outputs).await?;
    let evidence = evidence::begin(&config, file.clone(), &queue, &mut cursors, &telemetry).await?;
    for (output, cursor) in outputs.iter_mut().zip(cursors) {
        output.opened(cursor);
    }
    dead_letters.reconfigure(&config);
    let directory = config.queue.directory.as_ref().filter(|_| config.evidence.is_some());
    let log_of_evidence = directory.map(|queue| queue.join(crate::evidence::DIRECTORY));
    let checkpoints = evidence.as_ref().map(evidence::Evidence::checkpoints);
    let gate = Gate::new(&config.limits, &config.queue, queue.clone(), &telemetry);
    let gate = Arc::new(gate);
    let failures = Failures::default();
    let taps = Arc::new(Taps::new(telemetry.taps()));
    let orders = Orders { checkpoints, taps: Some(Arc::clone(&taps)), ..Orders::default() };
    let admin = Admin::new(Arc::clone(&telemetry), queue.clone(), log_of_evidence, taps);
    admin.tap_token(tap_token);
    let mut parts = Parts {
        config,
        file,
        reloads: telemetry.reloads(),
        queue: queue.clone(),
        admin: Arc::new(admin),
        listeners: Listeners::new(Arc::clone(&gate), Arc::clone(&telemetry), failures.clone()),
        outputs: Outputs::new(Arc::clone(&telemetry), queue, dead_letters.clone(), orders),
        sources: Sources::new(failures.clone()),
        dead_letters,
        evidence,
        watch,
        again: Again::default(),
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
    let history = Arc::clone(&parts.admin).keep_history(parts.stop.clone());
    parts.spawn("the task that keeps the history of an hour", history);
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
    let config_of_evidence = config.evidence.clone();
    let (config, telemetry) = (config.queue.clone(), Arc::clone(telemetry));
    let mut joining: Vec<_> = outputs.iter().filter_map(outputs::Planned::joins).collect();
    let opened = blocking(move || {
        let directory = config.directory.as_deref();
        joining.extend(evidence::reader(config_of_evidence.as_ref(), directory));
        Queue::open(&config, &telemetry, &joining)
    });
    let opened = opened.await;
    opened?.map_err(|error| Error::Run(format!("queue.directory: {error}")))
}

/// Returns the files of each output that reads files, together with the name of the output.
fn files_of(outputs: &[outputs::Planned]) -> Vec<outputs::NamedFiles> {
    outputs.iter().filter_map(outputs::Planned::files).collect()
}

/// The plans for the listeners and the sources of a config that is about to be applied.
struct Plan {
    listeners: Vec<listeners::Planned>,
    sources: Vec<source::Planned>,
    tap_token_file: Option<PathBuf>,
}

/// The results of reading the files that a plan names: functions that put the files of outputs and
/// sources in use, the settings of each listener, and the token that opens taps.
type ReadFiles = (Vec<Staged>, Vec<listeners::Read>, Option<Token>);

impl Plan {
    /// Reads and checks the files of the planned listeners and sources, the files of `outputs`, and
    /// the token that opens taps. Puts nothing in use yet. Blocks the thread.
    fn read(&self, outputs: Vec<outputs::NamedFiles>) -> Result<ReadFiles, FileError> {
        let stage = |(name, files): outputs::NamedFiles| {
            files.stage().map_err(|source| FileError::Output { name, source })
        };
        let of_outputs = outputs.into_iter().map(stage);
        let of_sources = self.sources.iter().map(|source| Ok(source.stage()?));
        let staged = of_outputs.chain(of_sources).collect::<Result<_, _>>()?;
        let settings = self.listeners.iter().map(listeners::Planned::read);
        let settings = settings.collect::<Result<_, _>>()?;
        let token = self.tap_token_file.as_deref().map(Token::read).transpose();
        Ok((staged, settings, token.map_err(FileError::Tap)?))
    }
}

/// Reads and checks the config file, or the built-in config if `file` is `None`. Returns the config
/// and its problems; `Err` only if the file cannot be read. Blocks the thread.
fn read_config(file: Option<&PathBuf>) -> Result<Checked, Refused> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|source| Refused::ConfigFile { file: file.clone(), source })?,
        None => config::EMBEDDED.to_owned(),
    };
    Ok(config::read(&text, output::TYPES).strict())
}

/// Returns the paths of the config file and of all files that the config names, and the present
/// state of these files. A later comparison with this state shows whether a file has changed.
/// Blocks the thread.
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

/// Calls `Telemetry::upkeep` every [`UPKEEP`] until `stop` is cancelled. Without these calls, the
/// collected values of histograms would pile up in memory.
async fn upkeep(telemetry: Arc<Telemetry>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        telemetry.upkeep();
    }
}

/// Everything that was read and checked for a reload. The relay does not use any of it yet.
struct Staging {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    plan: Plan,
    settings: Vec<listeners::Read>,
    tap_token: Option<Token>,
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

    /// Starts a task that the relay cannot run without: if the task panics, the relay ends. `name`
    /// is the name of the task in the log.
    fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.failures.watched(name.to_owned(), task));
    }
}

/// A reload that is ready to be put in force: its files are read, and its addresses are bound,
/// except for those that an old listener may still hold. If this value is dropped instead, the old
/// config stays in force. Only the sources that the reload removes or changes accept nothing more.
struct Prepared {
    config: Config,
    outputs: Vec<outputs::Planned>,
    files: Vec<Staged>,
    sources: Vec<source::Planned>,
    listeners: Vec<listeners::StagedListener>,
    tap_token: Option<Token>,
}

/// The steps of a reload. First, all files are read and checked, the addresses of new listeners are
/// bound (later if an old listener that closes holds the port), and each new output gets a cursor
/// (its place in the queue). Only if all of this succeeds, the new config is put in force.
impl Parts {
    /// Does everything in a reload that can fail or take time, and returns the reload, ready to be
    /// put in force. The steps are: read the files, bind the addresses of new listeners (except for
    /// those that an old listener may still hold), store a cursor (place in the queue) for each new
    /// output, and stop the sources that are removed or changed. If a new output has the same name
    /// as a removed output that has not ended yet, this function waits for the end of the removed
    /// output.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the new outputs are removed from the queue again, and no events
    /// are counted as lost for them. The sources that the reload removes or changes still finish
    /// the events that they have taken, but take no more. Therefore the relay may drop this future
    /// only when the relay itself ends.
    async fn prepare(&mut self) -> Result<Prepared, Refused> {
        let Staging { config, mut outputs, files, plan, settings, tap_token } =
            self.stage().await?;
        let Plan { listeners, sources, .. } = plan;
        let taken = self.listeners.leaving(&listeners);
        let listeners = listeners::bind(listeners, settings, &taken)?;
        self.outputs.join(&mut outputs).await?;
        self.sources.close_leaving(&sources).await;
        Ok(Prepared { config, outputs, files, sources, listeners, tap_token })
    }

    /// Reads and checks a config and the files that it names. If the config or a file cannot be
    /// used, the program that writes it may not have finished. This function then waits a moment
    /// for a change, and reads everything again after a change. `Err` if no change follows, or if
    /// too many changes were in vain. All of it takes at most [`named_file::WAIT_MAX`]: a file
    /// system that hangs is not asked again.
    async fn stage(&mut self) -> Result<Staging, Refused> {
        let deadline = Instant::now() + named_file::WAIT_MAX;
        loop {
            let staging = self.try_stage(deadline).await;
            if staging.is_ok() {
                self.watch.was_usable();
                return staging;
            }
            let moved = tokio::time::timeout_at(deadline, self.watch.has_moved()).await;
            if !moved.unwrap_or(false) {
                return staging;
            }
        }
    }

    async fn try_stage(&mut self, deadline: Instant) -> Result<Staging, Refused> {
        let mut config = self.read(deadline).await?;
        self.keep_what_cannot_change(&mut config)?;
        let outputs = self.outputs.plan(&config.outputs);
        let max_body = config.limits.max_body;
        let plan = Plan {
            listeners: self.listeners.plan(&config.listeners),
            sources: self.sources.plan(&config.sources, max_body, &self.telemetry),
            tap_token_file: config.tap_token_file.clone(),
        };
        let files = files_of(&outputs);
        let (read, plan) = in_time(deadline, move || (plan.read(files), plan)).await?;
        let (files, settings, tap_token) = read?;
        Ok(Staging { config, outputs, files, plan, settings, tap_token })
    }

    async fn reload(&mut self, prepared: Result<Prepared, Refused>) {
        match self.again.is_waiting() && matches!(prepared, Err(Refused::Address(_))) {
            // The log has them from the first attempt.
            true => self.problems.clear(),
            false => self.tell_problems(),
        }
        let reloaded = match prepared {
            Ok(prepared) => Ok(self.put_in_force(prepared).await),
            Err(error) => Err(error),
        };
        let address = match &reloaded {
            Ok(Err(error)) => Some(error.to_string()),
            Err(Refused::Address(error)) => Some(error.to_string()),
            Ok(Ok(())) | Err(_) => None,
        };
        self.admin.awaits_address(address.clone());
        match address {
            Some(_) if self.again.is_waiting() => return self.fails_again(address),
            Some(_) => drop(self.again.failed()),
            None => self.again.end(),
        }
        let is_success = matches!(reloaded, Ok(Ok(())));
        self.reloads.reloaded(is_success);
        self.admin.reloaded(is_success);
        match reloaded {
            Ok(Ok(())) => tracing::info!("config reloaded"),
            Ok(Err(error)) => tracing::error!(
                error = error.to_string(),
                "config reloaded except for a listener, which is tried again: free its address"
            ),
            Err(error) => {
                let mut error = error.to_string();
                if self.again.is_waiting() {
                    error.push_str("; it is tried again");
                }
                tracing::error!(error, "config not reloaded, going on with the one in use");
            }
        }
    }

    /// Notes that a reload that is tried again would fail, or has failed, because of an address as
    /// the one before. The attempts count as one reload.
    fn fails_again(&mut self, error: Option<String>) {
        if self.again.failed() {
            let error = error.unwrap_or_else(|| "its address is still in use".to_owned());
            tracing::warn!(error, "a listener still can't be opened, trying again");
        }
    }

    /// Puts a reload in force. The relay notices no signal while this function runs, but the
    /// function returns within moments.
    ///
    /// # Errors
    ///
    /// `NotListening`: a listener could not be opened. The rest of the new config is in force.
    async fn put_in_force(&mut self, prepared: Prepared) -> Result<(), NotListening> {
        let Prepared { config, outputs, files, sources, listeners, tap_token } = prepared;
        self.admin.tap_token(tap_token);
        files.into_iter().for_each(|staged| staged());
        telemetry::change_log(config.log);
        self.queue.apply(&config.queue);
        self.gate.apply(&config.limits, &config.queue);
        self.dead_letters.reconfigure(&config);
        self.outputs.commit(outputs);
        self.sources.commit(sources, &self.queue);
        let committed = self.listeners.commit(listeners).await;
        self.config = config;
        if let Some(evidence) = &self.evidence {
            self.tasks.spawn(evidence.reloaded(self.file.clone(), &self.config));
        }
        self.show();
        committed
    }

    /// Reads the config file again, checks it, and returns the new config. `Err` if the config
    /// cannot be used. From now on, the relay watches the files that this config names, even if the
    /// config cannot be used. If the file system hangs, the relay goes on watching the old files,
    /// and waits for a change that comes after this attempt.
    async fn read(&mut self, deadline: Instant) -> Result<Config, Refused> {
        let file = self.file.clone();
        let now = &self.config;
        let in_use = [now.queue.directory.clone(), now.dead_letter.directory.clone()];
        let in_use: Vec<_> = in_use.into_iter().flatten().collect();
        let before = tokio::time::timeout_at(deadline, self.watch.look()).await;
        let read = in_time(deadline, move || {
            let (files, seen) = look(file.as_ref());
            let checked = read_config(file.as_ref()).map(|checked| {
                let mut problems = check::directories(&checked, &in_use);
                // A directory that is in use stays in use, whatever its disk does. Any other
                // directory must work.
                problems.iter_mut().for_each(|problem| problem.severity = Severity::Error);
                problems.extend(check::files(&checked));
                problems.extend(check::room(&checked));
                checked.with(problems)
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
        let Checked { config, problems, .. } = checked?;
        self.problems = problems;
        config.ok_or(Refused::Problems)
    }

    /// Logs the problems of the config that was read last. A reload calls this function only once,
    /// even if it has read a half-written file several times.
    fn tell_problems(&mut self) {
        for problem in self.problems.drain(..).take(PROBLEMS_MAX) {
            let Problem { line, path: key, message, severity, .. } = problem;
            match severity {
                Severity::Error | Severity::Fault => tracing::error!(line, key, "{message}"),
                Severity::Warning | Severity::MissingFile => tracing::warn!(line, key, "{message}"),
            }
        }
    }

    /// Replaces the settings in `config` that cannot change without a restart by the settings in
    /// use: the admin address and, if `queue.directory` has changed, all settings of the queue. In
    /// the second case, also lowers `limits.max_body` to the value in use if it is larger. `Err`
    /// if, in this case, `config` has sources that the queue in use cannot serve.
    fn keep_what_cannot_change(&self, config: &mut Config) -> Result<(), Refused> {
        let now = &self.config;
        if config.admin != now.admin {
            tracing::warn!(key = "admin.address", "has changed, which needs a restart");
            config.admin = now.admin;
        }
        if config.evidence != now.evidence {
            tracing::warn!(key = "evidence", "has changed, which needs a restart");
            config.evidence.clone_from(&now.evidence);
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
        let (outputs, listeners) = (self.outputs.show(), self.listeners.show());
        self.admin.show(outputs, listeners, self.sources.show(), &self.config.queue);
    }
}

/// Runs work that reads files on another thread, and returns its result. `Err` if the work is not
/// done at the `deadline`, or if it panics.
async fn in_time<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let mut done = std::pin::pin!(blocking(work));
    let soon = deadline.min(Instant::now() + SLOW);
    if let Ok(done) = tokio::time::timeout_at(soon, &mut done).await {
        return done;
    }
    let files = named_file::names_under_way();
    tracing::warn!(files, "the file system does not answer: waiting for the config's files");
    let hangs = |_| Err(Refused::Hangs { files: named_file::names_under_way() });
    tokio::time::timeout_at(deadline, done).await.unwrap_or_else(hangs)
}

/// Ends all parts of the relay in order. First the listeners and sources stop accepting events.
/// Then waits until the queue is drained, for at most `shutdown.drain_timeout`: the outputs deliver
/// the events of a queue in memory; with a queue on disk, they only wait for the answers to events
/// that were sent.
///
/// # Errors
///
/// `Error::Ended` if an output, or a task that the relay needs, has failed before the end of the
/// drain. The other outputs are drained nevertheless.
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
        result = Err(Error::ended(&error));
    }
    parts.sources.end(CLOSING).await;
    parts.dead_letters.close().await;
    if let Some(evidence) = parts.evidence.take() {
        evidence.stop(parts.file.clone(), &parts.config, CLOSING).await;
    }
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

/// Gives up the events that the outputs have not delivered when the process ends. Events in memory
/// are lost and counted as lost. Events on disk are kept for the next start; the log says how many.
fn abandon(queue: &Queue) {
    for (output, left) in queue.abandon() {
        if let Left::Kept(events @ 1..) = left {
            tracing::info!(output, events, "events not delivered yet, kept for the next start");
        }
    }
}

/// Writes the last log line of a relay: the numbers of events that were accepted, delivered, lost
/// and kept since the start. An accepted event counts once. Each of the other three numbers is a
/// sum over all outputs. Therefore, an event that two outputs have delivered counts twice as
/// delivered.
fn tell_totals(queue: &Queue, telemetry: &Telemetry) {
    telemetry.reports().flush();
    queue.observe();
    let (mut delivered, mut lost, mut kept, mut each) = (0, 0, 0, String::new());
    for outcome in telemetry.outcomes() {
        (delivered, lost) = (delivered + outcome.delivered, lost + outcome.lost);
        kept += outcome.backlog;
        let separator = if each.is_empty() { "" } else { "; " };
        each.push_str(&format!("{separator}{outcome}"));
    }
    let accepted = telemetry.queue().events.get();
    if lost > 0 {
        tracing::error!(accepted, delivered, lost, kept, outputs = each, "ended");
    } else {
        tracing::info!(accepted, delivered, lost, kept, outputs = each, "ended");
    }
}

#[cfg(test)]
mod tests;
