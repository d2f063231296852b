//! The metrics of the process, under the names that Prometheus asks of all programs.
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>

use std::fs;
use std::sync::LazyLock;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Returns each metric's name and value, without those that the kernel does not report.
pub(crate) fn values() -> Vec<(&'static str, f64)> {
    let limit = |resource| getrlimit(resource).current.map_or(0.0, |limit| limit as f64);
    let mut values = vec![
        ("process_max_fds", limit(Resource::Nofile)),
        ("process_virtual_memory_max_bytes", limit(Resource::As)),
    ];
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One of the files is the directory that is read.
        let count = u32::try_from(files.count().saturating_sub(1)).unwrap_or(u32::MAX);
        values.push(("process_open_fds", count.into()));
    }
    if let Some(stat) = Stat::read() {
        values.push(("process_cpu_seconds_total", stat.cpu_seconds));
        values.push(("process_threads", stat.threads));
        values.push(("process_virtual_memory_bytes", stat.virtual_bytes));
        values.push(("process_resident_memory_bytes", stat.resident_bytes));
    }
    values.extend(started().map(|time| ("process_start_time_seconds", time)));
    values
}

/// Returns the resident memory of the process, in bytes; `None` if `/proc` can't be read.
pub(super) fn resident_bytes() -> Option<f64> {
    Stat::read().map(|stat| stat.resident_bytes)
}

/// Returns the start of the process in whole seconds since 1970; `None` if `/proc` can't be read.
/// `/proc/stat` is read once, because with many cores the kernel takes milliseconds to write it.
pub(crate) fn started() -> Option<f64> {
    static STARTED: LazyLock<Option<f64>> = LazyLock::new(|| {
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let booted =
            boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok())?;
        Some((booted + Stat::read()?.started_after_boot).floor())
    });
    *STARTED
}

/// The numbers of `/proc/self/stat` that metrics show; see proc(5).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: f64,
    /// The seconds from the boot of the machine to the start of the process.
    started_after_boot: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::of(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Returns the numbers in this text; `None` if the text has another form.
    fn of(text: &str) -> Option<Self> {
        // The program's name, in parentheses, may itself contain spaces and parentheses.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        // proc(5) counts the fields from 1, and the first one here is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let seconds = |number| Some(field(number)? / clock_ticks_per_second() as f64);
        Some(Self {
            cpu_seconds: seconds(14)? + seconds(15)?,
            threads: field(20)?,
            started_after_boot: seconds(22)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page_size() as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let numbers: Vec<String> = (4..=52).map(|number| (number * 100).to_string()).collect();
        let stat = format!("7 (a) R (b) S {}", numbers.join(" "));
        let ticks = clock_ticks_per_second() as f64;
        let read = Stat::of(&stat).expect("the form of proc(5)");
        assert!((read.cpu_seconds - 2900.0 / ticks).abs() < 1e-9);
        assert!((read.threads - 2000.0).abs() < 1e-9);
        assert!((read.virtual_bytes - 2300.0).abs() < 1e-9);
        assert!((read.started_after_boot - 2200.0 / ticks).abs() < 1e-9);
        assert_eq!(Stat::of("7 (a"), None);
    }

    #[test]
    fn this_process_has_every_metric() {
        let mut names: Vec<&str> = values().into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        let mut declared: Vec<&str> =
            super::super::catalog::process().map(|metric| metric.name).collect();
        declared.sort_unstable();
        assert_eq!(names, declared);
    }
}
