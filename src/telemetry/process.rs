//! The metrics of the process, under the names that Prometheus asks of all programs.
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>

use std::fs;

use rustix::param::clock_ticks_per_second;
use rustix::param::page_size;
use rustix::process::Resource;
use rustix::process::getrlimit;

/// Returns the value of each metric by its name. A metric that the kernel does not tell is missing.
pub(super) fn values() -> Vec<(&'static str, f64)> {
    #[allow(clippy::cast_precision_loss, reason = "gauges; sizes and limits are below 2^53")]
    let limit = |resource| getrlimit(resource).current.map_or(0.0, |limit| limit as f64);
    let mut values = vec![
        ("process_max_fds", limit(Resource::Nofile)),
        ("process_virtual_memory_max_bytes", limit(Resource::As)),
    ];
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory that is read.
        let count = u32::try_from(files.count().saturating_sub(1)).unwrap_or(u32::MAX);
        values.push(("process_open_fds", count.into()));
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    values.extend(of_stat(&stat, &boot).into_iter().flatten());
    values
}

/// Returns the value of the metric with this name; 0 if the kernel does not tell it.
pub(super) fn value(name: &str) -> f64 {
    values().into_iter().find(|(it, _)| *it == name).map_or(0.0, |(_, value)| value)
}

/// Returns the metrics from the texts of `/proc/self/stat` and `/proc/stat`, as proc(5) describes
/// them. `None` if the first one has another form.
#[allow(clippy::cast_precision_loss, reason = "clock ticks and the size of a page are small")]
fn of_stat(stat: &str, boot: &str) -> Option<Vec<(&'static str, f64)>> {
    // The second field is the program's name in brackets, which may contain spaces and brackets.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    // proc(5) counts the fields from 1, and the first one here is its third.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let seconds = |number| Some(field(number)? / clock_ticks_per_second() as f64);
    let mut values = vec![
        ("process_cpu_seconds_total", seconds(14)? + seconds(15)?),
        ("process_threads", field(20)?),
        ("process_virtual_memory_bytes", field(23)?),
        ("process_resident_memory_bytes", field(24)? * page_size() as f64),
    ];
    let booted = boot.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok());
    if let Some(booted) = booted {
        values.push(("process_start_time_seconds", (booted + seconds(22)?).floor()));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let numbers: Vec<String> = (4..=52).map(|number| (number * 100).to_string()).collect();
        let stat = format!("7 (a) R (b) S {}", numbers.join(" "));
        let ticks = clock_ticks_per_second() as f64;
        let read = of_stat(&stat, "cpu 1 2\nbtime 1000\n").expect("the form of proc(5)");
        let value = |name: &str| read.iter().find(|(it, _)| *it == name).expect("there").1;
        assert!((value("process_cpu_seconds_total") - 2900.0 / ticks).abs() < 1e-9);
        assert!((value("process_threads") - 2000.0).abs() < 1e-9);
        assert!((value("process_virtual_memory_bytes") - 2300.0).abs() < 1e-9);
        assert!((value("process_start_time_seconds") - (1000.0 + 2200.0 / ticks)).abs() < 1e-9);
        assert_eq!(of_stat("7 (a", "btime 1\n"), None);
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
