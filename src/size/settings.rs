//! The memory that the settings of a config allow.

use super::measured as m;
use crate::config::{Checked, Problem, Severity, show_size};

/// Returns a warning if the settings of a config allow more than `limit` bytes of memory, so that a
/// relay that uses what it may use is killed. The sum leaves out what only hostile senders cause:
/// very many connections, and single events as large as `limits.max_body`.
pub fn memory(checked: &Checked, limit: Option<u64>) -> Option<Problem> {
    let (config, limit) = (checked.config.as_ref()?, limit?);
    let (key, queue) = match config.queue.directory {
        Some(_) => ("limits.max_in_flight", m::QUEUE_ON_DISK),
        None => ("queue.max_bytes", config.queue.max_bytes),
    };
    let kinds = config.outputs.iter().filter_map(|it| m::output(it.kind.name()));
    let outputs: u64 = kinds.map(|output| output.memory).sum();
    let in_flight = config.limits.max_in_flight;
    let sum = queue.saturating_add(in_flight).saturating_add(m::PROGRAM + outputs);
    (sum > limit).then(|| {
        let mebibytes = |bytes: u64| bytes.div_ceil(m::MIB);
        let message = format!(
            "adds up, with the other settings, to {} MiB ({} queue + {} limits.max_in_flight + {} \
             program + {} outputs), and the memory limit is {}: beyond it the kernel kills the \
             relay, better: smaller settings, or a higher limit",
            mebibytes(sum),
            mebibytes(queue),
            mebibytes(in_flight),
            mebibytes(m::PROGRAM),
            mebibytes(outputs),
            show_size(limit)
        );
        checked.problem(key, message, Severity::Warning)
    })
}
