//! The command `size`: its arguments, and its result as text or JSON.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{failed, healthcheck, input, interval, print, table, wrong};
use crate::ask::Target;
use crate::config;
use crate::doctor::kubeconfig::Kubeconfig;
use crate::doctor::sample::Source;
use crate::doctor::{Plan as Sources, credentials};
use crate::size::load::{EVENT_BYTES_MAX, EVENTS_PER_SECOND_MAX, EVENTS_PER_SECOND_MIN};
use crate::size::metrics::{Kind, Running};
use crate::size::plan::{number, time};
use crate::size::{Load, Place, Plan, measured, metrics};

/// The mean size of an event if only kube-apiserver was asked, which does not count bytes: that of
/// the writes of a verbose policy, the largest mean of the recorded batches.
const EVENT_BYTES: f64 = 1_430.0;

#[derive(Args)]
pub(super) struct Arguments {
    /// The mean rate of audit events of the whole cluster, such as 150 or 0.5
    #[arg(long, value_name = "N", value_parser = rate, allow_negative_numbers = true, required_unless_present_any = ["url", "kubeconfig"])]
    events_per_second: Option<f64>,
    /// The mean size of an event, such as 1430 or 2KiB [default: what a relay of --url counts]
    #[arg(long, value_name = "SIZE", value_parser = event_bytes, required_unless_present_any = ["url", "kubeconfig"])]
    event_bytes: Option<f64>,
    /// How long the consumer may be away without a loss
    #[arg(long, value_name = "TIME", default_value = "4h", value_parser = outage)]
    outage: Duration,
    /// The number of relays behind the Service [default: 2, or the number of relays of --url]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    replicas: Option<u32>,
    /// The number of kube-apiservers
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    apiservers: u32,
    /// The highest rate of events [default: 3 times the mean, but no more than the kube-apiservers
    /// can send; with --url the highest of the last hour, if that is known]
    #[arg(long, value_name = "N", value_parser = rate, allow_negative_numbers = true)]
    peak: Option<f64>,
    /// The types of the outputs, as in the config, separated by commas
    #[arg(long, value_name = "TYPES", default_value = "http", value_delimiter = ',', value_parser = types())]
    outputs: Vec<String>,
    /// Where the queue is
    #[arg(long, value_name = "WHERE", default_value = "disk")]
    queue: Where,
    /// The relays keep evidence
    #[arg(long)]
    evidence: bool,
    /// kube-apiserver has --audit-webhook-mode=blocking, so that each event is a request
    #[arg(long)]
    blocking: bool,
    #[command(flatten)]
    asked: Asked,
    /// Print one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// The processes that are asked for the load.
#[derive(Args)]
struct Asked {
    /// Take the load from the metrics of a running relay (the URL of its admin address) or
    /// kube-apiserver; may be repeated, and the rates are added
    #[arg(long, visible_alias = "relay", value_name = "URL", conflicts_with = "events_per_second")]
    url: Vec<String>,
    /// The credentials for each https URL of --url; without --url, its own server is asked
    #[arg(long, value_name = "FILE", conflicts_with = "events_per_second")]
    kubeconfig: Option<PathBuf>,
    /// The time between the two readings of --url, 0s to 1h; with 0s the mean since the start of
    /// the process is taken
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = interval)]
    interval: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    /// In files, which survive a crash
    Disk,
    /// In memory
    Memory,
}

/// The names of the types of output, as the values that an argument may have.
fn types() -> clap::builder::PossibleValuesParser {
    measured::OUTPUTS.map(|output| output.name).into()
}

fn rate(text: &str) -> Result<f64, String> {
    let allowed = || {
        format!("allowed: events per second, {EVENTS_PER_SECOND_MIN} to {EVENTS_PER_SECOND_MAX}")
    };
    let rate: f64 = text.parse().map_err(|_| allowed())?;
    match (EVENTS_PER_SECOND_MIN..=EVENTS_PER_SECOND_MAX).contains(&rate) {
        true => Ok(rate),
        false => Err(allowed()),
    }
}

fn event_bytes(text: &str) -> Result<f64, String> {
    // `config::size` allows at most 2^50, and whole numbers up to 2^53 are exact as an `f64`.
    let bytes = config::size(text)? as f64;
    match (1.0..=EVENT_BYTES_MAX).contains(&bytes) {
        true => Ok(bytes),
        false => Err("allowed: 1 to 64MiB".to_owned()),
    }
}

fn outage(text: &str) -> Result<Duration, String> {
    let time = config::time(text)?;
    match time >= Duration::from_secs(1) {
        true => Ok(time),
        false => Err("allowed: at least 1s".to_owned()),
    }
}

/// Computes and prints what each relay needs. `Err` is the exit status.
pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let running = match (arguments.events_per_second, arguments.event_bytes) {
        (Some(_), Some(_)) => Vec::new(),
        _ => running(&arguments.asked)?,
    };
    let plan = Plan::of(load(arguments, &running)?).map_err(wrong)?;
    let text = match arguments.json {
        true => format!("{:#}\n", json(&plan, &running)),
        false => text(&plan, &running, arguments),
    };
    print(&text)
}

/// Reads the metrics of the processes that the arguments name. `Err` is the exit status.
fn running(asked: &Asked) -> Result<Vec<Running>, u8> {
    if let Some(file) = &asked.kubeconfig {
        input(file, "the kubeconfig")?;
    }
    let of_kubeconfig = |what| wrong(format!("--kubeconfig: {what}"));
    let kubeconfig = match &asked.kubeconfig {
        Some(file) => Some(Kubeconfig::read(file).map_err(of_kubeconfig)?),
        None => None,
    };
    let mut targets = Vec::new();
    for (index, url) in asked.url.iter().enumerate() {
        // A URL that is refused is not printed: it may have a password.
        let target = Target::new(url);
        let target = target.map_err(|what| wrong(format!("--url: value {} {what}", index + 1)))?;
        let target = match &kubeconfig {
            Some(it) => credentials::with_credentials(target, it).map_err(of_kubeconfig)?,
            None => target,
        };
        targets.push(target);
    }
    if let (Some(kubeconfig), true) = (&kubeconfig, asked.url.is_empty()) {
        targets.push(credentials::server_of(kubeconfig).map_err(of_kubeconfig)?);
    }
    let targets: Vec<_> = targets
        .into_iter()
        .map(Sources::relay)
        .filter_map(|source| match source {
            Source::Url(target, path) => Some((target, path)),
            Source::File(_) => None,
        })
        .collect();
    let interval = asked.interval;
    let waiting = || eprintln!("the second reading follows after {} s", interval.as_secs_f64());
    let running = healthcheck::block_on(metrics::running(targets, interval, waiting))?;
    let running = running.map_err(failed)?;
    let is_relay = |it: &Running| it.kind == Kind::Relay;
    if running.iter().any(is_relay) && !running.iter().all(is_relay) {
        return Err(wrong(
            "--url: name relays or kube-apiservers, not both: they count the same events",
        ));
    }
    Ok(running)
}

/// Returns the load. A value of the arguments wins over the value that was read. `Err` is the exit
/// status.
fn load(arguments: &Arguments, running: &[Running]) -> Result<Load, u8> {
    let sum: f64 = running.iter().map(|it| it.events_per_second).sum();
    // The mean size is weighted by the rates.
    let sized = || running.iter().filter_map(|it| Some((it.events_per_second, it.event_bytes?)));
    let bytes = sized().map(|(rate, bytes)| rate * bytes).sum::<f64>();
    let mean = bytes / sized().map(|(rate, _)| rate).sum::<f64>();
    let event_bytes = arguments.event_bytes.unwrap_or(if mean >= 1.0 { mean } else { EVENT_BYTES });
    let peaks: Option<f64> = running.iter().map(|it| it.peak).sum();
    let events_per_second = arguments.events_per_second.unwrap_or(sum);
    if arguments.peak.is_some_and(|peak| peak < events_per_second) {
        return Err(wrong("--peak is lower than the mean rate"));
    }
    // A peak of the last hour replaces the default of three times the mean, also if the hour was
    // quiet. It is raised to the mean below.
    let peak = arguments.peak.or(peaks.filter(|_| !running.is_empty()));
    let relays = running.iter().filter(|it| it.kind == Kind::Relay).count();
    let replicas = u32::try_from(relays).unwrap_or(u32::MAX).max(2);
    Ok(Load {
        events_per_second,
        peak: peak.map(|peak| peak.max(events_per_second)),
        event_bytes,
        outage: arguments.outage,
        replicas: arguments.replicas.unwrap_or(replicas),
        apiservers: arguments.apiservers,
        outputs: arguments.outputs.clone(),
        place: match arguments.queue {
            Where::Disk => Place::Disk,
            Where::Memory => Place::Memory,
        },
        evidence: arguments.evidence,
        is_blocking: arguments.blocking,
    })
}

fn place(running: &Running) -> Place {
    if running.on_disk { Place::Disk } else { Place::Memory }
}

/// Returns a sentence about each queue that runs: how long it lasts.
fn queues(plan: &Plan, running: &[Running]) -> Vec<String> {
    let outage = plan.load.outage;
    let queue = |it: &Running| {
        let capacity = it.capacity?;
        let (source, size) = (&it.source, config::show_size(capacity));
        let lasts = plan.lasts_with(capacity, place(it));
        let (lasts, wanted, is_enough) = (time(lasts), time(outage), lasts >= outage);
        Some(match is_enough {
            true => format!(
                "the queue of {source} ({size}) lasts {lasts}, longer than the {wanted} that are wanted"
            ),
            false => format!("the queue of {source} ({size}) lasts {lasts} of the {wanted}"),
        })
    };
    running.iter().filter_map(queue).collect()
}

/// Returns a line for each process, with the load that was read from it.
fn readings(running: &[Running]) -> Vec<String> {
    let reading = |it: &Running| {
        let bytes = it.event_bytes.map(|bytes| format!(" of {} bytes", number(bytes)));
        let peak = it.peak.map(|peak| format!("; at most {}/s in the last hour", number(peak)));
        format!(
            "{} {}: {} events/s{} in {}{}",
            it.kind,
            it.source,
            number(it.events_per_second),
            bytes.unwrap_or_default(),
            it.of,
            peak.unwrap_or_default()
        )
    };
    running.iter().map(reading).collect()
}

fn text(plan: &Plan, running: &[Running], arguments: &Arguments) -> String {
    let load = &plan.load;
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line.replace(char::is_control, "\u{fffd}"));
        text.push('\n');
    };
    let readings = readings(running);
    let has_readings = !readings.is_empty();
    readings.into_iter().for_each(&mut line);
    if has_readings
        && arguments.event_bytes.is_none()
        && running.iter().all(|it| it.event_bytes.is_none())
    {
        line(format!(
            "kube-apiserver does not count bytes: {} bytes are the mean of recorded writes with \
             their bodies, --event-bytes names yours",
            number(EVENT_BYTES)
        ));
    }
    let is_part = running.len() == 1 && running[0].kind == Kind::Relay && load.replicas > 1;
    if is_part {
        line(
            "one relay was asked: name each replica with --url, so that their rates are added"
                .to_owned(),
        );
    }
    line(format!(
        "{} events/s of {} bytes, at most {}/s; the consumer may be away for {}",
        number(load.events_per_second),
        number(load.event_bytes),
        number(load.peak()),
        time(load.outage)
    ));
    let plural = if load.replicas == 1 { "" } else { "s" };
    line(format!("{} replica{plural}; each of them needs:", load.replicas));
    line(String::new());
    let rows: Vec<[String; 3]> = plan
        .figures
        .iter()
        .map(|it| [format!("  {}", it.name), it.value.clone(), format!("= {}", it.formula)])
        .collect();
    let mut text = text + &table(&rows);
    let queues = queues(plan, running);
    if !queues.is_empty() {
        text.push('\n');
        queues.iter().for_each(|queue| text.push_str(&format!("{queue}\n")));
    }
    text.push_str(&format!("\n# For relay.toml:\n{}", plan.config()));
    text.push_str(&format!("\n# For the container:\n{}", plan.kubernetes()));
    text
}

fn json(plan: &Plan, running: &[Running]) -> Value {
    let load = &plan.load;
    let formulas: serde_json::Map<String, Value> =
        plan.figures.iter().map(|it| (it.name.to_owned(), it.formula.clone().into())).collect();
    let seconds = |time: Duration| time.as_secs();
    let running: Vec<Value> = running
        .iter()
        .map(|it| {
            json!({
                "source": it.source,
                "kind": it.kind.to_string(),
                "events_per_second": it.events_per_second,
                "event_bytes": it.event_bytes,
                "peak_events_per_second": it.peak,
                "queue_capacity_bytes": it.capacity,
                "queue_lasts_seconds": it.capacity.map(|bytes| seconds(plan.lasts_with(bytes, place(it)))),
            })
        })
        .collect();
    json!({
        "events_per_second": load.events_per_second,
        "peak_events_per_second": load.peak(),
        "event_bytes": load.event_bytes,
        "outage_seconds": load.outage.as_secs_f64(),
        "replicas": load.replicas,
        "share": plan.share,
        "queue_max_bytes": plan.queue_max_bytes,
        "queue_segment_bytes": plan.segment_bytes,
        "max_in_flight_bytes": plan.max_in_flight,
        "disk_bytes": plan.volume_bytes,
        "memory_request_bytes": plan.resources.memory_request,
        "memory_limit_bytes": plan.resources.memory_limit,
        "cpu_request_millicores": plan.resources.cpu_millis,
        "queue_lasts_seconds": seconds(plan.lasts),
        "queue_lasts_at_peak_seconds": seconds(plan.lasts_at_peak),
        "formulas": formulas,
        "config": plan.config(),
        "kubernetes": plan.kubernetes(),
        "running": running,
    })
}
