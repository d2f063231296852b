//! Random numbers that can be repeated with their seed.

use std::hash::BuildHasher as _;

/// The environment variable with the seed of every random test.
const SEED: &str = "KUBE_AUDIT_FORWARDER_SEED";

/// Returns a generator with the seed from the environment, or a random seed if the variable is not
/// set. It prints the seed, so that a failure can be repeated.
pub(crate) fn rng() -> fastrand::Rng {
    let seed = number_from(SEED, std::hash::RandomState::new().hash_one(0));
    eprintln!("random: again with {SEED}={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Reads a number from an environment variable, for runs that are longer than usual. Returns
/// `default` if the variable is not set.
pub(crate) fn number_from(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
}
