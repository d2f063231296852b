//! The parts of a running relay, and the tasks that are the relay's own.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config_file::ConfigFile;
use super::evidence::Evidence;
use super::listeners::Listeners;
use super::lives::Lives;
use super::outputs::Outputs;
use crate::admin::{Admin, Manual};
use crate::listener::Gate;
use crate::source::Sources;
use config::Config;
use delivery::tap::Taps;
use delivery::{DeadLetters, Orders};
use process::Failures;
use queue::Queue;
use telemetry::Telemetry;
use transform::redact::Redaction;

/// The time between two runs of [`upkeep`].
const UPKEEP: Duration = Duration::from_secs(5);

/// The parts of a running relay. [`start`](super::start::start) makes them, and the relay's task
/// owns them from then on.
pub(crate) struct Parts {
    pub config: Config,
    pub file: ConfigFile,
    pub telemetry: Arc<Telemetry>,
    pub gate: Arc<Gate>,
    pub queue: Queue,
    pub admin: Arc<Admin>,
    pub listeners: Listeners,
    pub outputs: Outputs,
    pub sources: Sources,
    pub dead_letters: DeadLetters,
    /// `None` if the config has no section `[evidence]`.
    pub evidence: Option<Evidence>,
    /// `None` before the start is over, and if the file has no directory or can't be written.
    pub lives: Option<Arc<Lives>>,
    pub tasks: Tasks,
}

/// The relay's own tasks. One serves the admin address, for example, and another writes the log
/// lines about losses. Listeners, sources and outputs have their own tasks.
pub(super) struct Tasks {
    /// The failures of the tasks and threads that the relay needs; each of them ends the relay. A
    /// failed output is reported to [`Outputs`] instead, because the queue must then stop waiting
    /// for the output.
    pub failures: Failures,
    pub running: TaskTracker,
    /// Cancelling this token ends the tasks.
    pub stop: CancellationToken,
}

impl Tasks {
    /// Starts a task whose panic ends the relay. `name` is its name in the log.
    pub(crate) fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(self.failures.watched(name.to_owned(), task));
    }
}

impl Parts {
    pub(crate) fn new(
        config: Config,
        file: ConfigFile,
        telemetry: Arc<Telemetry>,
        queue: Queue,
        dead_letters: DeadLetters,
        evidence: Option<Evidence>,
        manual: Manual,
    ) -> Self {
        let directory = config.queue.directory.as_ref().filter(|_| config.evidence.is_some());
        let log_of_evidence = directory.map(|queue| queue.join(evidence_log::DIRECTORY));
        let checkpoints = evidence.as_ref().map(Evidence::checkpoints);
        let letters = dead_letters.clone();
        let gate =
            Gate::new(&config.limits, &config.queue, queue.clone(), letters.clone(), &telemetry);
        let gate = Arc::new(gate);
        let failures = Failures::default();
        let taps = Arc::new(Taps::new(telemetry.taps()));
        let outlives = queue.is_durable() && !config.queue.ephemeral;
        let taps_of_outputs = Some(Arc::clone(&taps));
        let orders = Orders { checkpoints, outlives, taps: taps_of_outputs, ..Orders::default() };
        let admin =
            Admin::new(Arc::clone(&telemetry), queue.clone(), log_of_evidence, taps, manual);
        Self {
            config,
            file,
            listeners: Listeners::new(Arc::clone(&gate), Arc::clone(&telemetry), failures.clone()),
            outputs: Outputs::new(Arc::clone(&telemetry), queue.clone(), letters, orders),
            sources: Sources::new(failures.clone()),
            admin: Arc::new(admin),
            dead_letters,
            evidence,
            lives: None,
            tasks: Tasks { failures, running: TaskTracker::new(), stop: CancellationToken::new() },
            telemetry,
            gate,
            queue,
        }
    }

    pub(super) fn start_tasks(&self, admin: TcpListener, probes: Option<TcpListener>) {
        let Tasks { failures, running, stop } = &self.tasks;
        let deadlines = Arc::clone(&self.gate).enforce_deadlines(stop.clone());
        self.tasks.spawn("the task that keeps the connections' deadlines", deadlines);
        let admin = Arc::clone(&self.admin).serve(admin, false, stop.clone());
        self.tasks.spawn("the task that serves the admin address", admin);
        if let Some(probes) = probes {
            let probes = Arc::clone(&self.admin).serve(probes, true, stop.clone());
            self.tasks.spawn("the task that serves the probe address", probes);
        }
        let upkeep = upkeep(Arc::clone(&self.telemetry), self.queue.clone(), stop.clone());
        self.tasks.spawn("the task that folds histograms and watches the disk", upkeep);
        let reports = self.telemetry.reports().tell(stop.clone());
        self.tasks.spawn("the task that reports losses", reports);
        let (queue, failures, stop) = (self.queue.clone(), failures.clone(), stop.clone());
        running.spawn(async move {
            if let Some(error) = stop.run_until_cancelled(queue.failed()).await {
                failures.report(error);
            }
        });
    }

    /// Notes how the previous process ended, and starts the task that notes every few seconds that
    /// this process lives.
    pub(crate) async fn live(&mut self) {
        self.lives = Lives::begin(&self.config, &self.telemetry).await;
        if let Some(lives) = &self.lives {
            let keep = Arc::clone(lives).keep(self.tasks.stop.clone());
            self.tasks.spawn("the task that notes that the process lives", keep);
        }
    }

    /// Turns the volume by cause on or off, as the config in force says. The names in the volume
    /// are redacted by the rules of all outputs.
    pub(super) fn count_volume(&self) {
        let rules = self.config.outputs.iter().filter_map(|output| output.filter.redact.as_ref());
        let rules: Vec<_> = rules.flatten().cloned().collect();
        // The rules were checked with the config, so making the redaction cannot fail. If it
        // failed, nothing would be counted, because no name may be shown without redaction.
        let redaction = self.config.volume.then(|| Redaction::new(&rules).ok());
        self.telemetry.volume().turn(redaction.flatten());
    }

    pub(crate) fn show(&self) {
        let (outputs, listeners) = (self.outputs.show(), self.listeners.show());
        self.admin.show(outputs, listeners, self.sources.show(), &self.config.queue);
    }
}

/// Every [`UPKEEP`], moves the values of the histograms into their buckets, so that the values do
/// not pile up in memory, and checks whether the queue's disk responds. Ends when `stop` is
/// cancelled.
async fn upkeep(telemetry: Arc<Telemetry>, queue: Queue, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
        telemetry.upkeep();
        queue.watch_disk();
    }
}
