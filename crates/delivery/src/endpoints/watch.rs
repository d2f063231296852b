//! The task that probes the addresses that are down, and looks up host names even while no
//! connection is made.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::address::ResolvedAddress;
use super::set::Endpoints;
use super::table::Job;
use crate::failure::Failure;

/// The pause before the task starts again after a panic.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The background task that watches the addresses of one output. The output's connector owns this
/// handle. It starts the task with the output's first connection, and ends the task by dropping the
/// handle.
///
/// The task does two kinds of work, each when the table of addresses says that the work is due:
///
/// - It *probes* an address that is down: it connects (with TLS, if the output uses TLS), and sends
///   nothing. When the address has answered probes for the time of its *hold*, one delivery at a
///   time may test it. The next probe of an address begins at most 10 seconds after the last one
///   has ended. Probes of several addresses run side by side.
/// - It *looks up* each name again 30 seconds after the resolver's last answer or the task's last
///   lookup (the first one is made by a delivery or a probe), so that new and removed addresses are
///   noticed even if no connection is made.
///
/// A name that has no known address is probed by a lookup. If the output has a single address, it
/// is not probed at all, because every delivery tries it anyway.
///
/// The task never ends by itself. After a panic it starts again: without the task, an address that
/// is down would stay down as long as another address works.
#[derive(Default)]
pub struct Watch {
    task: JoinSet<()>,
}

impl Watch {
    /// Starts the task, unless it is already running. `probe` makes a test connection to an
    /// address, on which it sends nothing.
    pub fn start<F>(
        &mut self,
        set: &Arc<Endpoints>,
        probe: impl Fn(ResolvedAddress) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        if self.task.is_empty() {
            let set = Arc::clone(set);
            self.task.spawn(async move {
                while AssertUnwindSafe(set.watch(&probe)).catch_unwind().await.is_err() {
                    tracing::error!(
                        output = set.output,
                        "the task that checks which addresses of the output are up has panicked: \
                         it is restarted, please report this bug"
                    );
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
            });
        }
    }
}

impl Endpoints {
    /// Runs the loop of the `Watch` task, which never ends.
    async fn watch<F>(&self, probe: &impl Fn(ResolvedAddress) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut jobs = FuturesUnordered::new();
        loop {
            // The future is made before the table is looked at, so that no change is missed.
            let changed = self.changed();
            let (due, wake) = self.lock().due(self.timeouts.connect, Instant::now());
            jobs.extend(due.into_iter().map(|job| self.run(job, probe)));
            tokio::select! {
                Some(()) = jobs.next(), if !jobs.is_empty() => {}
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Does one piece of work: a lookup of a host name, or a probe of an address.
    async fn run<F>(&self, job: Job, probe: &impl Fn(ResolvedAddress) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let (address, result) = match job {
            Job::LookUp(address) => {
                if let Err(failure) = self.look_up(&address).await {
                    tracing::debug!(%failure, "lookup failed, the addresses known before stay in use");
                }
                return;
            }
            // Without an address, a name can only be probed by a lookup.
            Job::Probe(address) if address.socket.is_none() && self.lookups(&address).is_some() => {
                let result = self.look_up(&address).await;
                (address, result)
            }
            Job::Probe(address) => (address.clone(), probe(address).await),
        };
        if let Err(failure) = &result {
            tracing::debug!(output = self.output, %failure, "address still down");
        }
        self.probed(&address, result.is_ok());
    }

    /// Notes the result of a probe, which is a test connection to an address that is down.
    /// `answered` is `true` if the connection was made.
    fn probed(&self, of: &ResolvedAddress, answered: bool) {
        let now = Instant::now();
        let mut table = self.lock();
        let Some(address) = table.address(of) else { return };
        let down_since = address.circuit.open_since();
        if address.circuit.probed(answered, now) {
            let tells = address.is_to_be_told_up(now);
            drop(table);
            if tells {
                self.tell_up(of, down_since, now);
            }
            self.wake();
        }
    }
}
