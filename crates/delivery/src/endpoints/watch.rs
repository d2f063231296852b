//! The task that probes addresses, and looks up host names even while no connection is made.

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
use client::names;

const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The background task that watches the addresses of one output. The output's connector starts it
/// with the first connection, and ends it by dropping this handle. When work is due in the table of
/// addresses, the task does it:
///
/// - It *probes* an address that is down: it connects (with TLS, if the output uses TLS), and sends
///   nothing. When the address has answered probes for its *hold*, one delivery at a time may test
///   it. The next probe begins at most 10 seconds after the end of the last one. Several addresses
///   are probed concurrently.
/// - It *looks up* each name again 30 seconds after the last lookup, so that new and removed
///   addresses are noticed even if no connection is made. The first lookup is made by a delivery or
///   a probe.
///
/// A name without a known address is probed by a lookup. A single address is not probed, because
/// every delivery tries it anyway.
///
/// The task never ends by itself. After a panic it starts again: otherwise an address that is down
/// would stay down as long as another address works.
#[derive(Default)]
pub struct Watch {
    task: JoinSet<()>,
}

impl Watch {
    /// Starts the task, unless it runs. `probe` makes a test connection and sends nothing.
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
    async fn watch<F>(&self, probe: &impl Fn(ResolvedAddress) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut jobs = FuturesUnordered::new();
        loop {
            // The future is made before the table is read, so that no change is missed.
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

    async fn run<F>(&self, job: Job, probe: &impl Fn(ResolvedAddress) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let (address, result) = match job {
            Job::LookUp(address) => {
                if let Err(failure) = self.look_up(&address, names::LONGEST).await {
                    tracing::debug!(%failure, "lookup failed, the addresses known before stay in use");
                }
                return;
            }
            // A name without an address can only be probed by a lookup.
            Job::Probe(address) if address.socket.is_none() && self.needs_lookup(&address) => {
                let result = self.look_up(&address, self.timeouts.connect).await;
                (address, result)
            }
            Job::Probe(address) => (address.clone(), probe(address).await),
        };
        if let Err(failure) = &result {
            tracing::debug!(output = self.output, %failure, "address still down");
        }
        self.probed(&address, result.is_ok());
    }

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
