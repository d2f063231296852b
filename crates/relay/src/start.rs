//! The start of a relay.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::config_file::ConfigFile;
use super::error::Error;
use super::parts::Parts;
use super::plan::{Plan, ReadFiles};
use super::waiting::{blocking_or_warn, in_time};
use super::{evidence, listeners, outputs};
use crate::admin::Manual;
use crate::source::Sources;
use base::named_file;
use client::net;
use config::Config;
use delivery::DeadLetters;
use queue::{Cursor, Queue};
use telemetry::Telemetry;

/// The addresses and the queue of a running relay.
pub struct Opened {
    /// The addresses on which the listeners accept connections.
    pub listeners: Vec<SocketAddr>,
    /// The address of the admin server, which serves `/metrics` and `/status`.
    pub admin: SocketAddr,
    /// The queue of the relay, which holds the events that were accepted and not delivered yet.
    pub queue: Queue,
}

pub(crate) async fn start(
    file: Option<PathBuf>,
    config: Config,
    manual: Manual,
    opened: Option<oneshot::Sender<Opened>>,
) -> Result<Parts, Error> {
    let telemetry = Arc::new(Telemetry::new());
    let dead_letters = DeadLetters::new(&telemetry);
    let mut outputs = outputs::plan_start(&config.outputs, &telemetry, &dead_letters);
    let plan = Plan {
        listeners: listeners::plan_start(&config.listeners),
        sources: Sources::default().plan(&config.sources, config.limits.max_body, &telemetry),
        admin: config.admin.clone(),
        access: Arc::default(),
    };
    let (files, reloads) = (outputs::files_of(&outputs), telemetry.reloads());
    let started = config.clone();
    let (file, read, plan) = in_time(Instant::now() + named_file::WAIT_MAX, move || {
        // The watch begins before the files are read, so that it notices every later change.
        let file = ConfigFile::new(file, &started, reloads);
        (file, plan.read(files), plan)
    })
    .await?;
    let ReadFiles { staged, settings, access } = read?;
    staged.into_iter().for_each(|staged| staged());
    let admin_socket = bind(config.admin.address, "admin.address")?;
    let probe_socket = config.admin.probe_address.map(|it| bind(it, "admin.probe_address"));
    let probe_socket = probe_socket.transpose()?;
    let admin =
        admin_socket.local_addr().map_err(|error| Error::Run(format!("admin.address: {error}")))?;
    let Plan { listeners, sources, .. } = plan;
    let listeners = listeners::bind(listeners, settings, &[])?;
    // All addresses are bound before a directory is touched, and every output has its cursor before
    // the first batch is accepted.
    let (queue, mut cursors) = open_queue(&config, &telemetry, &outputs).await?;
    let named = outputs::files_of(&outputs);
    let evidence = evidence::begin(&config, &named, &queue, &mut cursors, &telemetry).await?;
    for (output, cursor) in outputs.iter_mut().zip(cursors) {
        output.place(cursor, false);
    }
    dead_letters.reconfigure(&config);
    let mut parts = Parts::new(config, file, telemetry, queue, dead_letters, evidence, manual);
    parts.admin.admit(access);
    parts.count_volume();
    tracing::info!(address = %admin, "admin listening");
    if let Some(address) = probe_socket.as_ref().and_then(|socket| socket.local_addr().ok()) {
        tracing::info!(%address, "probes listening");
    }
    parts.start_tasks(admin_socket, probe_socket);
    parts.outputs.commit(outputs);
    parts.listeners.commit(listeners).await;
    parts.sources.commit(sources, &parts.queue);
    parts.show();
    // The file `life` is not touched before this, because the next process must not take a failed
    // start for a run.
    parts.live().await;
    parts.admin.started();
    let history = Arc::clone(&parts.admin).keep_history(parts.tasks.stop.clone());
    parts.tasks.spawn("the task that keeps the history of an hour", history);
    if let Some(opened) = opened {
        let listeners = parts.listeners.show().iter().filter_map(|shown| shown.address).collect();
        // Sending fails only if the receiver is gone, and then nobody needs the value.
        opened.send(Opened { listeners, admin, queue: parts.queue.clone() }).ok();
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
    let named = config.directory.clone().unwrap_or_default();
    let open = move || {
        let directory = config.directory.as_deref();
        joining.extend(evidence::reader(config_of_evidence.as_ref(), directory));
        Queue::open(&config, &telemetry, &joining)
    };
    let opened = blocking_or_warn(open, || {
        tracing::warn!(
            directory = %named.display(),
            "the queue on disk is not open after 5 s: its disk is slow, or it has many files; the \
             relay accepts events as soon as it is open"
        );
    });
    opened.await?.map_err(|error| Error::Run(format!("queue.directory: {error}")))
}

fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, Error> {
    net::bind(address).map_err(|error| Error::Run(listeners::cannot_listen(key, address, &error)))
}
