//! Old mistakes of the program, written at the places where they can be made again.
//!
//! `mutant!("name", right, wrong)` is `right`, and `mutant!("name", right)` is a statement that the
//! mistake leaves out. Without `--cfg mutants`, which no build sets that is used, the macro is
//! `right` itself, and nothing else of it is compiled. With it, the process does what is wrong at
//! the place whose name is in the variable `KUBE_AUDIT_FORWARDER_MUTANT`, so that a simulation or a
//! unit test can show whether it notices. `tests/sim/mutants.toml` says of each name what the
//! mistake was, and `tests/sim/README.md` how they are run.
//!
//! The right code keeps its form, and the wrong one is as short as it can be: a condition, a
//! constant, a statement that is missing.

/// Returns `true` if the mistake of this name is made by this process.
#[cfg(mutants)]
pub fn is_active(name: &str) -> bool {
    static ACTIVE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let read = || std::env::var("KUBE_AUDIT_FORWARDER_MUTANT").ok();
    ACTIVE.get_or_init(read).as_deref() == Some(name)
}

/// The right expression, and the wrong one if the mistake of this name is made. Without a wrong
/// one, the mistake leaves the statement out.
#[cfg(not(mutants))]
#[macro_export]
macro_rules! mutant {
    ($name:literal, $right:expr $(, $wrong:expr)? $(,)?) => {
        $right
    };
}

/// The right expression, and the wrong one if the mistake of this name is made. Without a wrong
/// one, the mistake leaves the statement out.
#[cfg(mutants)]
#[macro_export]
macro_rules! mutant {
    ($name:literal, $right:expr $(,)?) => {
        if !$crate::mutants::is_active($name) {
            $right;
        }
    };
    ($name:literal, $right:expr, $wrong:expr $(,)?) => {
        if $crate::mutants::is_active($name) { $wrong } else { $right }
    };
}
