//! The computation: from a load to the settings and resources of each relay.

use std::fmt::Write as _;
use std::time::Duration;

use super::load::{EVENT_BYTES_MAX, EVENTS_PER_SECOND_MAX, EVENTS_PER_SECOND_MIN, Load, Place};
use super::measured as m;
use crate::config::show_size;
use crate::words::span;

/// One figure of a plan: its name, its value as it is printed, and how it is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// The name, such as `queue.max_bytes`.
    pub name: &'static str,
    /// The value with its unit, such as `9GiB`.
    pub value: String,
    /// The formula with the numbers in it.
    pub formula: String,
}

/// The settings and resources that each relay needs for a load. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The load for which this is enough.
    pub load: Load,
    /// The maximum share of all events that one relay gets while another one is away.
    pub share: f64,
    /// The bytes that an event takes in the queue, with its share of the bytes for its batch.
    pub stored_event_bytes: f64,
    /// `queue.max_bytes`.
    pub queue_max_bytes: u64,
    /// `queue.segment_bytes`; `None` without a directory.
    pub segment_bytes: Option<u64>,
    /// `limits.max_in_flight`.
    pub max_in_flight: u64,
    /// The size of the volume; `None` without a directory.
    pub volume_bytes: Option<u64>,
    /// The resources of the container.
    pub resources: Resources,
    /// The time until a full outage fills the queue, at the mean rate.
    pub lasts: Duration,
    /// The same time at the highest rate.
    pub lasts_at_peak: Duration,
    /// The figures as they are printed.
    pub figures: Vec<Figure>,
}

/// The resources of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// The memory request in bytes.
    pub memory_request: u64,
    /// The memory limit in bytes.
    pub memory_limit: u64,
    /// The CPU request in thousandths of a core.
    pub cpu_millis: u64,
}

/// Rounds up to a multiple of `step`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers are from 0 to 2^53"
)]
fn up(bytes: f64, step: u64) -> u64 {
    (bytes / step as f64).ceil() as u64 * step
}

/// Rounds the size of a queue up to what people write: multiples of 64 MiB up to 2 GiB, and whole
/// GiB above.
fn round(bytes: f64) -> u64 {
    if bytes <= (2 * m::GIB) as f64 { up(bytes, 64 * m::MIB) } else { up(bytes, m::GIB) }
}

/// Returns the bytes of a queue on disk that hold events when it is full.
fn usable(max_bytes: u64, segment_bytes: u64) -> u64 {
    let kept = (max_bytes / m::QUARANTINE_PART).min(m::QUARANTINE_MAX);
    max_bytes.saturating_sub(kept).saturating_sub(m::SEGMENTS_OPEN * segment_bytes)
}

fn segment(max_bytes: u64) -> u64 {
    (max_bytes / m::SEGMENT_PART).min(m::SEGMENT_MAX)
}

/// Returns a size with one decimal, whatever its magnitude, so that a reader can compute with it:
/// `9.3 GiB`.
pub fn bytes(bytes: f64) -> String {
    let units = [("TiB", 1024.0 * m::GIB as f64), ("GiB", m::GIB as f64), ("MiB", m::MIB as f64)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes / unit),
        None if bytes >= m::KIB as f64 => format!("{:.1} KiB", bytes / m::KIB as f64),
        None => format!("{bytes:.0} bytes"),
    }
}

/// Returns a time in two units: `3 d 4 h`, `1 h 10 min`, `50 s`.
pub fn time(time: Duration) -> String {
    span(time.as_secs_f64())
}

/// Returns a number without needless digits: `150`, `0.5`.
pub fn number(number: f64) -> String {
    let digits = if number >= 100.0 {
        0
    } else if number >= 1.0 {
        1
    } else {
        3
    };
    let text = format!("{number:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Returns how long these bytes last at a rate in bytes per second.
fn lasts(bytes: u64, rate: f64) -> Duration {
    // The longest time, that of a queue of 1 PiB at the lowest rate, does not overflow.
    Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX)
}

/// Returns the maximum number of bytes of bodies in memory at the same time, and its figure.
fn in_flight(load: &Load) -> (u64, Figure) {
    let peak = load.peak();
    let needed = up(peak * load.event_bytes * m::IN_FLIGHT_SECONDS, 64 * m::MIB);
    let max_in_flight = needed.max(m::IN_FLIGHT_MIN);
    let formula = format!(
        "{} events/s at the peak × {} bytes × {} s, at least {}",
        number(peak),
        number(load.event_bytes),
        m::IN_FLIGHT_SECONDS,
        show_size(m::IN_FLIGHT_MIN)
    );
    let value = show_size(max_in_flight);
    (max_in_flight, Figure { name: "limits.max_in_flight", value, formula })
}

/// Checks the numbers of a load.
fn check(load: &Load) -> Result<(), String> {
    let rates = [Some(load.events_per_second), load.peak];
    let range = EVENTS_PER_SECOND_MIN..=EVENTS_PER_SECOND_MAX;
    if rates.iter().flatten().any(|rate| !range.contains(rate)) {
        return Err(format!(
            "a rate of events must be from {EVENTS_PER_SECOND_MIN} to {EVENTS_PER_SECOND_MAX} a second"
        ));
    }
    if load.peak.is_some_and(|peak| peak < load.events_per_second) {
        return Err("the peak is lower than the mean".to_owned());
    }
    if !(1.0..=EVENT_BYTES_MAX).contains(&load.event_bytes) {
        return Err("the mean size of an event must be from 1 byte to 64MiB".to_owned());
    }
    if load.outage < Duration::from_secs(1) {
        return Err("the outage must be at least 1s".to_owned());
    }
    if load.replicas == 0 || load.apiservers == 0 || load.outputs.is_empty() {
        return Err("there must be a replica, a kube-apiserver and an output".to_owned());
    }
    if load.evidence && load.place == Place::Memory {
        return Err("evidence needs a queue on disk".to_owned());
    }
    Ok(())
}

/// Returns the maximum share of all events that one relay gets while another one is away, and the
/// formula.
///
/// A kube-apiserver has one connection, and all its events go to the relay at its other end. Every
/// 15 minutes it makes a new connection, so an outage has a number of draws. With p = 1 / (replicas
/// - 1), the share is p plus three standard deviations of the mean over the draws.
fn share(load: &Load) -> (f64, String) {
    if load.replicas <= 2 {
        let why = match load.replicas {
            1 => "1: there is one replica",
            _ => "1: the only other replica may be away",
        };
        return (1.0, why.to_owned());
    }
    let p = 1.0 / f64::from(load.replicas - 1);
    let ages = (load.outage.as_secs_f64() / m::CONNECTION_AGE.as_secs_f64()).max(1.0);
    let draws = f64::from(load.apiservers) * ages;
    let share = (p + 3.0 * (p * (1.0 - p) / draws).sqrt()).min(1.0);
    let formula = format!(
        "p + 3 × √(p × (1 - p) / draws) = {share:.2}, at most 1: p = 1 / ({} - 1) while one replica is \
         away; draws = {} kube-apiservers × {ages:.1} connections of 15 min each",
        load.replicas, load.apiservers
    );
    (share, formula)
}

/// Returns the mean number of events in a batch of kube-apiserver.
fn batch(load: &Load) -> f64 {
    let collected = load.events_per_second / f64::from(load.apiservers) * m::BATCH_WAIT_SECONDS;
    if load.is_blocking { 1.0 } else { collected.clamp(1.0, m::BATCH_EVENTS_MAX) }
}

impl Plan {
    /// Computes what each relay needs.
    ///
    /// # Errors
    ///
    /// A text that says which number of the load is out of range, or that the result is.
    pub fn of(load: Load) -> Result<Self, String> {
        check(&load)?;
        let mut figures = Vec::new();
        let (rate, peak) = (load.events_per_second, load.peak());
        let (share, formula) = share(&load);
        figures.push(Figure { name: "share of a replica", value: format!("{share:.2}"), formula });

        let batch = batch(&load);
        let overhead = match load.place {
            Place::Disk => m::BATCH_OVERHEAD_DISK,
            Place::Memory => m::BATCH_OVERHEAD_MEMORY,
        };
        let stored = load.event_bytes + 1.0 + overhead / batch;
        let queue = Queue::of(&load, share, stored, batch, overhead)?;
        figures.extend(queue.figures(&load));

        let (max_in_flight, figure) = in_flight(&load);
        figures.push(figure);
        let volume = (load.place == Place::Disk).then(|| volume(&load, share, queue.max_bytes));
        figures.extend(volume.iter().map(|(_, figure)| figure.clone()));
        let (memory_limit, figure) = memory_limit(&load, queue.max_bytes, max_in_flight);
        figures.push(figure);
        let (memory_request, figure) = memory_request(&load, queue.max_bytes, memory_limit);
        figures.push(figure);
        let (cpu_millis, figure) = cpu(&load, share, batch);
        figures.push(figure);

        let per_event = share * stored;
        let mean = lasts(queue.usable, rate * per_event);
        let at_peak = lasts(queue.usable, peak * per_event);
        figures.push(Figure {
            name: "the queue lasts",
            value: time(mean),
            formula: format!(
                "{} for events / ({} events/s × {share:.2} × {} bytes); {} at the peak of {} events/s",
                bytes(queue.usable as f64),
                number(rate),
                number(stored),
                time(at_peak),
                number(peak)
            ),
        });
        Ok(Self {
            share,
            stored_event_bytes: stored,
            queue_max_bytes: queue.max_bytes,
            segment_bytes: queue.segment_bytes,
            max_in_flight,
            volume_bytes: volume.map(|(bytes, _)| bytes),
            resources: Resources { memory_request, memory_limit, cpu_millis },
            lasts: mean,
            lasts_at_peak: at_peak,
            figures,
            load,
        })
    }

    /// Returns how long a queue of this size and at this place lasts, in a relay that gets its
    /// share of the load.
    pub fn lasts_with(&self, max_bytes: u64, place: Place) -> Duration {
        let usable = match place {
            Place::Disk => usable(max_bytes, (max_bytes / 4).min(m::SEGMENT_MAX)),
            Place::Memory => max_bytes,
        };
        lasts(usable, self.load.events_per_second * self.share * self.stored_event_bytes)
    }

    /// Returns the lines for the config of each relay.
    pub fn config(&self) -> String {
        let mut text = format!(
            "[limits]\nmax_in_flight = \"{}\"\nmax_connections = {}\n\n[queue]\n",
            show_size(self.max_in_flight),
            m::CONNECTIONS
        );
        if self.load.place == Place::Disk {
            text.push_str("directory = \"/var/lib/kube-audit-forwarder\"\n");
        }
        // A write into memory cannot fail.
        writeln!(text, "max_bytes = \"{}\"", show_size(self.queue_max_bytes)).ok();
        if let Some(segment_bytes) = self.segment_bytes {
            writeln!(text, "segment_bytes = \"{}\"", show_size(segment_bytes)).ok();
            let letters = show_size(m::DEAD_LETTERS);
            write!(text, "\n[dead_letter]\nmax_bytes = \"{letters}\"\n").ok();
        }
        text
    }

    /// Returns the lines for the container of each relay, and for its volume.
    pub fn kubernetes(&self) -> String {
        let mebibytes = |bytes: u64| format!("{}Mi", bytes.div_ceil(m::MIB));
        let mut text = format!(
            "resources:\n  requests:\n    cpu: {}m\n    memory: {}\n  limits:\n    memory: {}\n",
            self.resources.cpu_millis,
            mebibytes(self.resources.memory_request),
            mebibytes(self.resources.memory_limit)
        );
        if let Some(volume) = self.volume_bytes {
            let gibibytes = volume.div_ceil(m::GIB);
            // A write into memory cannot fail.
            write!(
                text,
                "# The claim of each replica, or sizeLimit of its emptyDir:\n# storage: {gibibytes}Gi\n"
            )
            .ok();
        }
        text
    }
}

/// The size of the queue.
struct Queue {
    max_bytes: u64,
    segment_bytes: Option<u64>,
    /// The bytes that hold events when the queue is full.
    usable: u64,
    need: f64,
    formula: String,
}

impl Queue {
    fn of(load: &Load, share: f64, stored: f64, batch: f64, over: f64) -> Result<Self, String> {
        let seconds = load.outage.as_secs_f64();
        let need = load.events_per_second * seconds * share * stored * m::HEADROOM;
        if need > m::QUEUE_MAX as f64 {
            return Err(format!(
                "the queue would need {}, and at most {} is computed",
                bytes(need),
                bytes(m::QUEUE_MAX as f64)
            ));
        }
        let formula = format!(
            "{} events/s × {} s × {share:.2} × {} bytes × {} = {}: an event of {} bytes, a line break \
             and {} bytes a batch of {}",
            number(load.events_per_second),
            number(seconds),
            number(stored),
            m::HEADROOM,
            bytes(need),
            number(load.event_bytes),
            number(over),
            number(batch)
        );
        if load.place == Place::Memory {
            let max_bytes = round(need).max(m::QUEUE_MIN);
            return Ok(Self { max_bytes, segment_bytes: None, usable: max_bytes, need, formula });
        }
        // Of a small queue, 2/16 are open files and 1/16 is kept free; of a large one, 128 MiB and
        // 64 MiB.
        let part =
            m::SEGMENTS_OPEN as f64 / m::SEGMENT_PART as f64 + 1.0 / m::QUARANTINE_PART as f64;
        let fixed = m::SEGMENTS_OPEN * m::SEGMENT_MAX + m::QUARANTINE_MAX;
        let max_bytes = round((need / (1.0 - part)).min(need + fixed as f64)).max(m::QUEUE_MIN);
        let segment_bytes = segment(max_bytes);
        let usable = usable(max_bytes, segment_bytes);
        Ok(Self { max_bytes, segment_bytes: Some(segment_bytes), usable, need, formula })
    }

    fn figures(&self, load: &Load) -> Vec<Figure> {
        let mut figures = vec![Figure {
            name: "events of the outage",
            value: bytes(self.need),
            formula: self.formula.clone(),
        }];
        let least = show_size(m::QUEUE_MIN);
        let formula = match self.segment_bytes {
            None => format!("that, rounded up, at least {least}"),
            Some(_) => format!(
                "that, and {} for {} open files and for damaged records; rounded up, at least {least}",
                bytes((self.max_bytes - self.usable) as f64),
                m::SEGMENTS_OPEN
            ),
        };
        let value = show_size(self.max_bytes);
        figures.push(Figure { name: "queue.max_bytes", value, formula });
        if let (Some(segment_bytes), Place::Disk) = (self.segment_bytes, load.place) {
            figures.push(Figure {
                name: "queue.segment_bytes",
                value: show_size(segment_bytes),
                formula: format!(
                    "queue.max_bytes / {}, at most {}",
                    m::SEGMENT_PART,
                    show_size(m::SEGMENT_MAX)
                ),
            });
        }
        figures
    }
}

/// Returns the size of the volume, and its figure.
fn volume(load: &Load, share: f64, max_bytes: u64) -> (u64, Figure) {
    let mut sum = (max_bytes + m::DEAD_LETTERS) as f64;
    let mut formula =
        format!("({} queue + {} dead letters", show_size(max_bytes), show_size(m::DEAD_LETTERS));
    if load.evidence {
        let lines = 2 * m::EVIDENCE_LINES;
        let events = load.events_per_second * share * 86_400.0 * m::EVIDENCE_LOG_DAYS;
        let log = m::EVIDENCE_LOG_DAY * m::EVIDENCE_LOG_DAYS + events * m::EVIDENCE_LOG_EVENT;
        sum += lines as f64 + log;
        let days = m::EVIDENCE_LINES as f64
            / (load.events_per_second * share * 86_400.0 * m::EVIDENCE_LINE);
        formula.push_str(&format!(
            " + {} line hashes of {} days + {} evidence log of {} days",
            show_size(lines),
            number(days),
            bytes(log),
            m::EVIDENCE_LOG_DAYS
        ));
    }
    formula.push_str(&format!(") × {}, which the file system keeps; rounded up", m::FILE_SYSTEM));
    let volume = up(sum * m::FILE_SYSTEM, m::GIB);
    (volume, Figure { name: "disk", value: show_size(volume), formula })
}

/// Returns the memory limit, and its figure: the sum in the guarantee of bounded memory, for the
/// case that all connections are busy.
fn memory_limit(load: &Load, max_bytes: u64, max_in_flight: u64) -> (u64, Figure) {
    let (queue, of_queue) = match load.place {
        Place::Disk => (m::QUEUE_ON_DISK, "queue on disk"),
        Place::Memory => (max_bytes, "queue"),
    };
    let mut parts = vec![
        (max_in_flight, "max_in_flight".to_owned()),
        (queue, of_queue.to_owned()),
        (m::PROGRAM, "program".to_owned()),
        (m::CONNECTIONS * m::CONNECTION, format!("connections ({} × 160 KiB)", m::CONNECTIONS)),
    ];
    // With a directory a body is decoded in pieces.
    if load.place == Place::Memory {
        parts.push((max_in_flight / 2, "decoding".to_owned()));
    }
    for name in &load.outputs {
        // An event is at most as large as max_in_flight.
        let memory = m::output(name).map_or(0, |output| output.memory);
        parts.push((max_in_flight + memory, name.clone()));
    }
    let sum: u64 = parts.iter().map(|(bytes, _)| bytes).sum();
    let limit = sum.next_multiple_of(m::MEMORY_STEP);
    let parts: Vec<String> =
        parts.iter().map(|(bytes, name)| format!("{} {name}", bytes.div_ceil(m::MIB))).collect();
    let formula = format!(
        "{} = {} MiB, rounded up to a multiple of {}",
        parts.join(" + "),
        sum.div_ceil(m::MIB),
        show_size(m::MEMORY_STEP)
    );
    (limit, Figure { name: "memory limit", value: show_size(limit), formula })
}

fn memory_request(load: &Load, max_bytes: u64, limit: u64) -> (u64, Figure) {
    let usual = show_size(m::MEMORY_USUAL);
    let (request, formula) = match load.place {
        Place::Disk => {
            (m::MEMORY_USUAL, format!("{usual}, which a relay that nobody attacks needs"))
        }
        Place::Memory => {
            let request = (m::MEMORY_USUAL + max_bytes).min(limit);
            (request, format!("{usual} and the queue"))
        }
    };
    (request, Figure { name: "memory request", value: show_size(request), formula })
}

/// Returns the CPU request in thousandths of a core, and its figure.
fn cpu(load: &Load, share: f64, batch: f64) -> (u64, Figure) {
    let peak = load.peak();
    let (base, request) = match load.place {
        Place::Disk => (m::CPU_DISK, m::CPU_REQUEST_DISK),
        Place::Memory => (m::CPU_MEMORY, m::CPU_REQUEST_MEMORY),
    };
    // The number of outputs is limited by the caller, so the conversion loses nothing.
    let further = (load.outputs.len() - 1) as f64 * base * m::CPU_FURTHER;
    let types: f64 =
        load.outputs.iter().filter_map(|name| m::output(name)).map(|output| output.cpu).sum();
    let evidence = if load.evidence { m::CPU_EVIDENCE } else { 0.0 };
    let per_gb = base + m::CPU_TLS + further + types + evidence;
    let gb = peak * share * load.event_bytes / 1e9;
    let requests = peak * share / batch;
    let millis = m::CPU_IDLE + (gb * per_gb + requests * request) * 1_000.0;
    let needed = up(millis, 10).max(m::CPU_MIN);
    let formula = format!(
        "{} + 1000 × ({} GB/s × {} s/GB + {} requests/s × {} ms) = {}, at the peak of {} events/s; at \
         least {}. No limit: a relay that is throttled answers late",
        m::CPU_IDLE,
        short(gb),
        number(per_gb),
        number(requests),
        number(request * 1_000.0),
        number(millis),
        number(peak),
        m::CPU_MIN
    );
    (needed, Figure { name: "CPU request", value: format!("{needed}m"), formula })
}

/// Returns a small number with three significant digits.
fn short(number: f64) -> String {
    if number >= 0.1 { format!("{number:.3}") } else { format!("{number:.6}") }
}
