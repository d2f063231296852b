//! The memory that the settings of a config allow, compared with the memory limit of the container.

use config::{Checked, Problem, Severity, show_size};
use outputs::TYPES;

const MIB: u64 = 1 << 20;
const PROGRAM: u64 = 32 * MIB;
const QUEUE_ON_DISK: u64 = 32 * MIB;

/// Returns a warning if the settings of a config allow more than `limit` bytes of memory: the
/// kernel could then kill the relay. The sum leaves out the sources, and memory that only hostile
/// senders can take, by very many connections or by events as large as `limits.max_body`.
pub fn memory(checked: &Checked, limit: Option<u64>) -> Option<Problem> {
    let (config, limit) = (checked.config.as_ref()?, limit?);
    let (key, queue) = match config.queue.directory {
        Some(_) => ("limits.max_in_flight", QUEUE_ON_DISK),
        None => ("queue.max_bytes", config.queue.max_bytes),
    };
    let of_type = |name| TYPES.iter().find(|it| it.name == name).map_or(0, |it| it.memory);
    let outputs: u64 = config.outputs.iter().map(|it| of_type(it.kind.name())).sum();
    let in_flight = config.limits.max_in_flight;
    let sum = queue.saturating_add(in_flight).saturating_add(PROGRAM + outputs);
    (sum > limit).then(|| {
        let mebibytes = |bytes: u64| bytes.div_ceil(MIB);
        let message = format!(
            "allows, with the other settings, {} MiB of memory ({} queue + {} limits.max_in_flight \
             + {} program + {} outputs), but the kernel kills the relay above the memory limit of \
             {}: lower the settings, or raise the limit",
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

#[cfg(all(test, feature = "kafka"))]
mod tests {
    use super::*;

    /// Any shipped config may run in the pods of the manifests.
    #[test]
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
            let unset = ["QUEUE_MAX_BYTES", "KUBE_AUDIT_FORWARDER_EPHEMERAL"];
            let env = |name: &str| (!unset.contains(&name)).then(|| "x".to_owned());
            let checked = config::read_with(&text, TYPES, &env);
            assert!(checked.config.is_some(), "{}: {:?}", file.display(), checked.problems);
            let too_much = memory(&checked, Some(512 * MIB)).map(|it| it.message);
            assert_eq!(too_much, None, "{}", file.display());
            assert!(memory(&checked, Some(64 * MIB)).is_some(), "{}", file.display());
            assert!(memory(&checked, None).is_none());
        }
    }
}
