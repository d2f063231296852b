//! What random unit tests share.

/// So many seeds for a test; more, or one, by environment variable.
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

/// Whether one seed was asked for: then each step may be told.
pub(crate) fn is_alone() -> bool {
    std::env::var_os("KUBE_AUDIT_FORWARDER_SEED").is_some()
}

/// Says how to run a seed that fails alone.
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
