//! Randomness that can be had again.

use std::hash::BuildHasher as _;

/// The seed of every random test.
const SEED: &str = "KUBE_AUDIT_FORWARDER_SEED";

/// A generator whose seed is said, and is taken from the environment where it is there.
pub(crate) fn rng() -> fastrand::Rng {
    let seed = number_from(SEED, std::hash::RandomState::new().hash_one(0));
    eprintln!("random: again with {SEED}={seed}");
    fastrand::Rng::with_seed(seed)
}

/// A number from the environment, for runs that are longer than usual.
pub(crate) fn number_from(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number"))
}
