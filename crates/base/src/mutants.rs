//! Known mistakes (mutants), kept in the code at the places where they could be made again.
//! `mutant!("name", right, wrong)` means `right`; without `wrong`, the mistake is that the
//! statement `right` is missing. In a build with `--cfg mutants`, the process makes the mistake
//! that the variable `KUBE_AUDIT_FORWARDER_MUTANT` names. Tests must notice each mistake:
//! `tests/sim/mutants.toml` describes them, and `tests/sim/README.md` says how to run the tests.

/// Returns `true` if this process makes the mistake `name`.
#[cfg(mutants)]
pub fn is_active(name: &str) -> bool {
    static ACTIVE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let read = || std::env::var("KUBE_AUDIT_FORWARDER_MUTANT").ok();
    ACTIVE.get_or_init(read).as_deref() == Some(name)
}

/// Expands to the right code.
#[cfg(not(mutants))]
#[macro_export]
macro_rules! mutant {
    ($name:literal, $right:expr $(, $wrong:expr)? $(,)?) => {
        $right
    };
}

/// Expands to the right code, or to the wrong code if this process makes the mistake `$name`.
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
