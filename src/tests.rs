//! Helpers for the unit tests of several modules.

/// Returns the seeds for a randomised test, by default 0 to `usual` - 1. The environment variable
/// `KUBE_AUDIT_FORWARDER_SEEDS` changes their number; `KUBE_AUDIT_FORWARDER_SEED` selects one seed.
pub(crate) fn seeds(usual: u64) -> Vec<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name}: not a number: {text}")))
    };
    match number("KUBE_AUDIT_FORWARDER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("KUBE_AUDIT_FORWARDER_SEEDS").unwrap_or(usual)).collect(),
    }
}

/// Returns `true` if the environment variable selects one seed. A test may then print each of its
/// steps.
pub(crate) fn is_alone() -> bool {
    std::env::var_os("KUBE_AUDIT_FORWARDER_SEED").is_some()
}

/// A guard for the test of one seed: if the test panics, dropping the guard prints the command that
/// runs this seed alone.
pub(crate) struct Failing(pub(crate) u64);

impl Drop for Failing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            println!(
                "\nseed {seed} fails; alone: KUBE_AUDIT_FORWARDER_SEED={seed} cargo nextest run --lib {test}",
                seed = self.0
            );
        }
    }
}

/// Returns the path and the contents of each recorded request body in `tests/corpus`, sorted by
/// path.
pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut bodies: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
        .collect();
    bodies.sort();
    assert_eq!(bodies.len(), 19);
    bodies
}
