//! Medians with their spread, and a description of the machine.

#![allow(dead_code, reason = "no bench needs everything")]

use std::process::Command;

/// The median, the least and the greatest of some values.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn median(&self) -> f64 {
        self.median
    }

    pub(crate) fn show(&self, digits: usize) -> String {
        let Self { median, least, most } = self;
        format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
    }
}

pub(crate) fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
    Spread {
        median: f64::midpoint(values[low], values[high]),
        least: values[0],
        most: values[values.len() - 1],
    }
}

/// Returns the machine, the commit and the time of a measurement, as Markdown.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "- {cores} cores, {}, Linux {}\n- kube-audit-forwarder {}, commit {}\n- {}\n",
        cpu_model(),
        kernel.trim(),
        env!("CARGO_PKG_VERSION"),
        commit(),
        now(),
    )
}

pub(crate) fn cpu_model() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    model.trim_start_matches([' ', '\t', ':']).to_owned()
}

/// Returns the commit of the repository, with `-dirty` if files differ from it.
pub(crate) fn commit() -> String {
    first_line(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]))
}

pub(crate) fn now() -> String {
    httpdate::fmt_http_date(std::time::SystemTime::now())
}

pub(crate) fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("?").to_owned()
}

/// Returns the load averages of 1, 5 and 15 minutes, which show what else the machine does.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
