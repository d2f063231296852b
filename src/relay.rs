//! Puts the parts together, keeps what they read from files fresh, and ends them in order. Decides nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::admin::Admin;
use crate::config;
use crate::config::Config;
use crate::config::OutputKind;
use crate::listener::Gate;
use crate::listener::Listener;
use crate::listener::Token;
use crate::net;
use crate::output;
use crate::output::Prepared;
use crate::process;
use crate::queue::Cursor;
use crate::queue::Left;
use crate::queue::Queue;
use crate::telemetry::Telemetry;
use crate::tls::Reload;
use crate::tls::Server;

/// How often files are read again. A handshake 3 s after a change has the new certificate. Polling also sees the
/// symlink swaps of Kubernetes, and works on network file systems.
const POLL: Duration = Duration::from_secs(1);

/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// What outputs get to end their connections, beyond the drain.
const CLOSING: Duration = Duration::from_secs(3);

/// Why the relay does not run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config names what can't be used: the operator mends it.
    #[error("{0}")]
    Config(String),
    /// The machine or a peer refused.
    #[error("{0}")]
    Run(String),
}

/// The parts of a running relay.
struct Parts {
    gate: Arc<Gate>,
    queue: Queue,
    admin: Arc<Admin>,
    /// Listeners, the watch, the admin routes.
    tasks: TaskTracker,
    outputs: JoinSet<Result<(), String>>,
    /// Whose task is whose.
    names: HashMap<tokio::task::Id, String>,
    /// The drain has begun: outputs do not wait long between attempts.
    draining: CancellationToken,
    /// Ends the outputs.
    stop_outputs: CancellationToken,
    /// Ends everything else.
    stop: CancellationToken,
}

/// Runs until `stopped` returns, and drains; `aborted` ends the drain at once.
///
/// # Errors
///
/// [`Error::Config`] before anything is open; [`Error::Run`] where an address can't be bound, or an output can't go on.
pub async fn run(
    config: Config,
    stopped: impl Future<Output = ()>,
    aborted: impl Future<Output = ()>,
) -> Result<(), Error> {
    if let Err(error) = process::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // Some kernels and sandboxes have none.
    if let Err(error) = process::refuse_huge_pages() {
        tracing::debug!(%error, "cannot refuse transparent huge pages");
    }
    let mut stopped = std::pin::pin!(stopped);
    let mut parts = tokio::select! {
        started = start(&config) => started?,
        // A file system that hangs must not keep it from ending.
        () = &mut stopped => return Ok(()),
    };
    // One that has ended for good ends the process; the others are drained as at a signal.
    let result = tokio::select! {
        () = &mut stopped => Ok(()),
        error = parts.output_ended() => Err(error),
    };
    let queue = parts.queue.clone();
    tokio::select! {
        drained = drain(parts, config.drain_timeout) => result.and(drained),
        () = aborted => {
            abandon(&queue);
            Err(Error::Run("ended at once by a second signal".to_owned()))
        }
    }
}

async fn start(config: &Config) -> Result<Parts, Error> {
    let telemetry = Arc::new(Telemetry::new());
    let outputs: Vec<_> =
        config.outputs.iter().map(|output| output::prepare(output, &telemetry)).collect();
    let mut watched = Vec::new();
    for output in &outputs {
        if let Some(files) = output.files() {
            watched.push(Watched::new(format!("output {}", output.name()), move || files.reload()));
        }
    }
    let openings: Vec<Opening> = config
        .listeners
        .iter()
        .map(|listener| Opening::new(listener, &telemetry, &mut watched))
        .collect();
    let watched = blocking(move || {
        let read = watched.iter_mut().try_for_each(Watched::start);
        read.map(|()| watched)
    })
    .await?
    .map_err(Error::Config)?;

    let admin_socket = bind(config.admin, "admin.address")?;
    let address =
        admin_socket.local_addr().map_err(|error| Error::Run(format!("admin.address: {error}")))?;
    let (mut open, mut late) = (Vec::new(), Vec::new());
    for opening in openings {
        match opening.try_open()? {
            Some(listener) => open.push((listener, opening.config.label)),
            None => late.push(opening),
        }
    }
    // Every address is ours before a directory is touched, and every output has its cursor before the first batch is
    // accepted.
    let (queue, cursors) = open_queue(config, &telemetry, &outputs).await?;
    let mut parts = Parts::new(config, &telemetry, queue, &outputs);
    tracing::info!(%address, "admin listening");
    parts.tasks.spawn(Arc::clone(&parts.gate).enforce_deadlines(parts.stop.clone()));
    parts.tasks.spawn(Arc::clone(&parts.admin).serve(admin_socket, parts.stop.clone()));
    for (output, cursor) in outputs.into_iter().zip(cursors) {
        let name = output.name().to_owned();
        let delivery = output.run(cursor, parts.draining.clone(), parts.stop_outputs.clone());
        parts.names.insert(parts.outputs.spawn(delivery).id(), name);
    }
    for (listener, label) in open {
        parts.serve(listener, &label)?;
    }
    for opening in late {
        let (gate, admin, stop) =
            (Arc::clone(&parts.gate), Arc::clone(&parts.admin), parts.stop.clone());
        parts.tasks.spawn(async move {
            stop.run_until_cancelled(open_later(opening, gate, admin)).await;
        });
    }
    parts.tasks.spawn(watch(watched, parts.stop.clone()));
    parts.tasks.spawn(upkeep(telemetry, parts.stop.clone()));
    parts.admin.started();
    Ok(parts)
}

async fn open_queue(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    outputs: &[Prepared],
) -> Result<(Queue, Vec<Cursor>), Error> {
    let (config, telemetry) = (config.queue.clone(), Arc::clone(telemetry));
    let outputs: Vec<_> =
        outputs.iter().map(|output| (output.name().to_owned(), output.metrics())).collect();
    let opened = blocking(move || Queue::open(&config, &telemetry, &outputs)).await?;
    opened.map_err(|error| Error::Run(format!("queue.directory: {error}")))
}

impl Parts {
    fn new(
        config: &Config,
        telemetry: &Arc<Telemetry>,
        queue: Queue,
        outputs: &[Prepared],
    ) -> Self {
        let outputs = config.outputs.iter().zip(outputs).map(|(config, prepared)| admin::Output {
            name: config.name.clone(),
            kind: kind_name(&config.kind),
            status: prepared.status(),
        });
        let admin = Arc::new(Admin::new(Arc::clone(telemetry), queue.clone(), outputs.collect()));
        for listener in &config.listeners {
            admin.listener(&listener.label, listener.tls.is_some());
        }
        Self {
            gate: Arc::new(Gate::new(&config.limits, &config.queue, queue.clone(), telemetry)),
            queue,
            admin,
            tasks: TaskTracker::new(),
            outputs: JoinSet::new(),
            names: HashMap::new(),
            draining: CancellationToken::new(),
            stop_outputs: CancellationToken::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Waits until an output ends that was not told to, and takes it out of the queue. For ever where none is left.
    async fn output_ended(&mut self) -> Error {
        let Some(ended) = self.outputs.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, message) = match ended {
            Ok((id, Ok(()))) => (id, "has ended".to_owned()),
            Ok((id, Err(message))) => (id, message),
            Err(panic) => (panic.id(), format!("its task has panicked: {panic}")),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        self.queue.give_up(&name);
        Error::Run(format!("output {name}: {message}"))
    }

    fn serve(&self, listener: Listener, label: &str) -> Result<(), Error> {
        announce(&listener, label, &self.admin)
            .map_err(|error| Error::Run(format!("listener {label}: {error}")))?;
        self.tasks.spawn(listener.serve(Arc::clone(&self.gate)));
        Ok(())
    }
}

fn announce(listener: &Listener, label: &str, admin: &Admin) -> std::io::Result<()> {
    let address = listener.address()?;
    admin.listening(label, address);
    tracing::info!(listener = label, %address, "listening");
    Ok(())
}

fn bind(address: std::net::SocketAddr, key: &str) -> Result<TcpListener, Error> {
    net::bind(address)
        .map_err(|error| Error::Run(format!("cannot listen on {key} {address}: {error}")))
}

fn kind_name(kind: &OutputKind) -> &'static str {
    match kind {
        OutputKind::Http(_) => "http",
        OutputKind::Tcp(_) => "tcp",
        OutputKind::Syslog(_) => "syslog",
        OutputKind::Stdout(_) => "stdout",
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| Error::Run(format!("a file could not be read: {panic}")))
}

/// A listener before it is open.
struct Opening {
    config: config::Listener,
    token: Option<Arc<Token>>,
    tls: Option<Arc<Server>>,
    telemetry: Arc<Telemetry>,
}

impl Opening {
    fn new(
        config: &config::Listener,
        telemetry: &Arc<Telemetry>,
        watched: &mut Vec<Watched>,
    ) -> Self {
        let name = format!("listener {}", config.label);
        // Its series exist from the start, also where it opens later.
        drop(telemetry.listener(&config.label));
        let token = config.bearer_token_file.clone().map(|file| Arc::new(Token::new(file)));
        if let Some(token) = token.clone() {
            watched.push(Watched::new(name.clone(), move || token.reload()));
        }
        let tls = config.tls.clone().map(|tls| Arc::new(Server::new(tls)));
        if let (Some(server), Some(tls)) = (&tls, &config.tls) {
            let (server, telemetry, label) =
                (Arc::clone(server), Arc::clone(telemetry), config.label.clone());
            let may_be_absent = tls.optional;
            watched.push(Watched::new(name, move || {
                let reload = match server.reload() {
                    Err(error) if may_be_absent && error.is_missing() => return Ok(false),
                    reload => reload.map_err(|error| error.to_string())?,
                };
                if let Some(not_after) = server.not_after() {
                    telemetry.certificate_expiry("listener", &label, "server", not_after);
                }
                Ok(reload == Reload::Replaced)
            }));
        }
        Self { config: config.clone(), token, tls, telemetry: Arc::clone(telemetry) }
    }

    /// `None`: its certificate is not there yet.
    fn try_open(&self) -> Result<Option<Listener>, Error> {
        if self.tls.as_ref().is_some_and(|tls| tls.settings().is_none()) {
            return Ok(None);
        }
        let telemetry = Arc::clone(&self.telemetry);
        let listener =
            Listener::bind(&self.config, self.token.clone(), self.tls.clone(), telemetry);
        let error =
            |error| Error::Run(format!("cannot listen on {}: {error}", self.config.address));
        listener.map(Some).map_err(error)
    }
}

/// Opens a listener when its certificate appears.
async fn open_later(opening: Opening, gate: Arc<Gate>, admin: Arc<Admin>) {
    let label = opening.config.label.clone();
    tracing::info!(listener = label, "waiting for its certificate");
    let mut told = false;
    loop {
        tokio::time::sleep(POLL / 4).await;
        match opening.try_open() {
            Ok(None) => {}
            Ok(Some(listener)) => {
                if let Err(error) = announce(&listener, &label, &admin) {
                    tracing::error!(listener = label, %error, "cannot tell its address");
                }
                return listener.serve(gate).await;
            }
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::error!(%error, "trying on")
            }
            Err(_) => {}
        }
    }
}

/// Something that is read from files again and again.
struct Watched {
    name: String,
    reload: Box<dyn FnMut() -> Result<bool, String> + Send>,
    /// What is wrong with the files now, so that it is told once.
    failing: Option<String>,
}

impl Watched {
    fn new(name: String, reload: impl FnMut() -> Result<bool, String> + Send + 'static) -> Self {
        Self { name, reload: Box::new(reload), failing: None }
    }

    fn start(&mut self) -> Result<(), String> {
        (self.reload)().map(drop).map_err(|error| format!("{}: {error}", self.name))
    }

    fn again(&mut self) {
        match (self.reload)() {
            Ok(replaced) => {
                if replaced || self.failing.take().is_some() {
                    tracing::info!(of = self.name, "files reloaded");
                }
                self.failing = None;
            }
            Err(error) => {
                if self.failing.as_ref() != Some(&error) {
                    tracing::warn!(
                        of = self.name,
                        error,
                        "files can't be reloaded, going on with what is in use"
                    );
                    self.failing = Some(error);
                }
            }
        }
    }
}

/// Keeps the histograms small.
async fn upkeep(telemetry: Arc<Telemetry>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        telemetry.upkeep();
    }
}

/// Reads files again, off the runtime's threads.
async fn watch(mut watched: Vec<Watched>, stop: CancellationToken) {
    loop {
        if stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_none() {
            return;
        }
        let reading = tokio::task::spawn_blocking(move || {
            watched.iter_mut().for_each(Watched::again);
            watched
        });
        // A file system that hangs must not hold up the end.
        watched = match stop.run_until_cancelled(reading).await {
            Some(Ok(watched)) => watched,
            Some(Err(panic)) => {
                tracing::error!(%panic, "files are not read again any more, restart the relay");
                return;
            }
            None => return,
        };
    }
}

/// Ends everything in order; see CONTRACT's `[shutdown]`.
///
/// # Errors
///
/// An output that ends for good meanwhile; the others go on.
async fn drain(mut parts: Parts, timeout: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    parts.admin.stopping();
    parts.gate.close();
    parts.draining.cancel();
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
    let queue = parts.queue.clone();
    let empty = tokio::time::timeout_at(deadline, queue.drained());
    let mut empty = std::pin::pin!(empty);
    loop {
        tokio::select! {
            _ = &mut empty => break,
            error = parts.output_ended() => result = Err(error),
        }
    }
    parts.stop_outputs.cancel();
    let outputs = async { while parts.outputs.join_next().await.is_some() {} };
    tokio::time::timeout(CLOSING, outputs).await.ok();
    parts.queue.close().await;
    let lost = abandon(&parts.queue);
    parts.stop.cancel();
    parts.tasks.close();
    tokio::time::timeout(CLOSING, parts.tasks.wait()).await.ok();
    tracing::info!(lost, "ended");
    result
}

/// Counts and tells what was not delivered, and returns how many events are lost.
fn abandon(queue: &Queue) -> u64 {
    let mut lost = 0;
    for (output, left) in queue.abandon() {
        match left {
            Left::Lost(0) | Left::Kept(0) => {}
            Left::Lost(events) => {
                lost += events;
                tracing::error!(output, events, "events not delivered in time, lost and counted");
            }
            Left::Kept(events) => {
                tracing::info!(output, events, "events not delivered yet, kept for the next start");
            }
        }
    }
    lost
}
