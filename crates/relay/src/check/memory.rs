//! The memory that the settings of a config allow, beside the memory limit of the container.

use config::{Checked, Problem, Severity, show_size};

/// 1 MiB in bytes.
const MIB: u64 = 1 << 20;
/// 1 MB in bytes.
const MB: u64 = 1_000_000;

/// The memory of the program itself.
const PROGRAM: u64 = 32 * MIB;
/// The memory of a queue on disk.
const QUEUE_ON_DISK: u64 = 32 * MIB;

/// The memory of the batches that each type of output has under way at its defaults, besides the
/// largest event: `concurrency` × `batch.max_bytes`, and what the page of the guarantees adds for a
/// type.
const OUTPUTS: [(&str, u64); 13] = [
    ("http", 4 * 4 * MIB),
    ("tcp", 0),
    ("syslog", 0),
    ("stdout", 0),
    ("lumberjack", 4 * MIB),
    ("relp", 4 * MIB),
    ("kafka", 8 * 4 * MIB),
    ("splunk_hec", 4 * MB),
    ("elasticsearch", 4 * (4 + 8) * MIB),
    ("ibm_cloud_logs", 4 * 2 * MB),
    ("s3", (2 * 64 + 4) * MIB),
    ("loki", 4 * 4 * 4 * MIB),
    ("otlp", 4 * 4 * 4 * MB),
];

/// Returns a warning if the settings of a config allow more than `limit` bytes of memory, so that a
/// relay that uses what it may use is killed. The sum leaves out what only hostile senders cause:
/// very many connections, and single events as large as `limits.max_body`.
pub fn memory(checked: &Checked, limit: Option<u64>) -> Option<Problem> {
    let (config, limit) = (checked.config.as_ref()?, limit?);
    let (key, queue) = match config.queue.directory {
        Some(_) => ("limits.max_in_flight", QUEUE_ON_DISK),
        None => ("queue.max_bytes", config.queue.max_bytes),
    };
    let of_type = |name| OUTPUTS.iter().filter(move |(it, _)| *it == name).map(|(_, bytes)| bytes);
    let outputs: u64 = config.outputs.iter().flat_map(|it| of_type(it.kind.name())).sum();
    let in_flight = config.limits.max_in_flight;
    let sum = queue.saturating_add(in_flight).saturating_add(PROGRAM + outputs);
    (sum > limit).then(|| {
        let mebibytes = |bytes: u64| bytes.div_ceil(MIB);
        let message = format!(
            "adds up, with the other settings, to {} MiB ({} queue + {} limits.max_in_flight + {} \
             program + {} outputs), and the memory limit is {}: beyond it the kernel kills the \
             relay, better: smaller settings, or a higher limit",
            mebibytes(sum),
            mebibytes(queue),
            mebibytes(in_flight),
            mebibytes(PROGRAM),
            mebibytes(outputs),
            show_size(limit)
        );
        checked.problem(key, message, Severity::Warning)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_of_output_has_a_row() {
        let reference = config::reference(outputs::TYPES);
        let row =
            reference.lines().find(|row| row.contains("\"otlp\"") && row.contains("`output.type`"));
        let row = row.expect("the row of output.type");
        for (name, _) in OUTPUTS {
            assert!(row.contains(&format!("\"{name}\"")), "{name}: {row}");
        }
        assert_eq!(row.matches('"').count(), 2 * OUTPUTS.len(), "{row}");
    }

    /// Any shipped config may run in the pods of the manifests.
    #[test]
    #[cfg(feature = "kafka")]
    fn no_shipped_config_allows_more_memory_than_the_manifests_do() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifests = ["base/deployment.yaml", "overlays/durable/statefulset.yaml"];
        for manifest in manifests.map(|it| root.join("deploy").join(it)) {
            let text = std::fs::read_to_string(manifest).unwrap();
            assert!(text.contains("limits:\n              memory: 512Mi\n"));
        }
        let examples = std::fs::read_dir(root.join("config")).unwrap().map(|it| it.unwrap().path());
        for file in examples.chain([root.join("deploy/base/relay.toml")]) {
            let text = std::fs::read_to_string(&file).unwrap();
            let env = |name: &str| (name != "QUEUE_MAX_BYTES").then(|| "x".to_owned());
            let checked = config::read_with(&text, outputs::TYPES, &env);
            assert!(checked.config.is_some(), "{}: {:?}", file.display(), checked.problems);
            let too_much = memory(&checked, Some(512 * MIB)).map(|it| it.message);
            assert_eq!(too_much, None, "{}", file.display());
            assert!(memory(&checked, Some(64 * MIB)).is_some(), "{}", file.display());
            assert!(memory(&checked, None).is_none());
        }
    }
}
