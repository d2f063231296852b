//! The macro at the places of the known mistakes, and the record of the places that a process has
//! reached. `mutants/copy.rs` adds this file to its copy of the crate `base`.
#![allow(unsafe_code, reason = "a function that another program calls")]
#![allow(unreachable_pub, reason = "the other crates of the copy use it")]

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

/// A place in the sources where a mistake could be made.
pub struct Place {
    name: &'static str,
    is_reached: OnceLock<()>,
    /// `true` if the mistake is another value, which can be compared with the right one.
    has_value: bool,
    /// Set once the right value was another one than the mistake.
    differs: OnceLock<()>,
    /// The place that was reached next for the first time.
    next: OnceLock<&'static Place>,
}

/// The first place that this process has reached.
static FIRST: OnceLock<&'static Place> = OnceLock::new();

impl Place {
    /// Makes the place of the mistake `name`.
    pub const fn new(name: &'static str, has_value: bool) -> Self {
        Self {
            name,
            is_reached: OnceLock::new(),
            has_value,
            differs: OnceLock::new(),
            next: OnceLock::new(),
        }
    }

    /// Returns the right value. Notes if the mistake would be another value.
    pub fn compare<T: PartialEq>(&self, right: T, wrong: T) -> T {
        if right != wrong {
            self.differs.set(()).ok();
        }
        right
    }

    /// Notes that the place is reached. Returns `true` if this process makes its mistake.
    pub fn is_active(&'static self) -> bool {
        static ACTIVE: OnceLock<Option<String>> = OnceLock::new();
        if self.is_reached.set(()).is_ok() {
            let mut last = &FIRST;
            while last.set(self).is_err() {
                match last.get() {
                    Some(place) => last = &place.next,
                    None => break,
                }
            }
        }
        let read = || std::env::var("KUBE_AUDIT_FORWARDER_MUTANT").ok();
        ACTIVE.get_or_init(read).as_deref() == Some(self.name)
    }
}

/// Returns the places that this process has reached, one in each line: the name, and behind it
/// ` differs` or ` same` if the mistake is a value. The text stays in memory.
#[unsafe(no_mangle)]
pub extern "C" fn reached_places() -> *const c_char {
    let line = |place: &Place| match (place.has_value, place.differs.get()) {
        (true, Some(())) => format!("{} differs", place.name),
        (true, None) => format!("{} same", place.name),
        (false, _) => place.name.to_owned(),
    };
    let places = std::iter::successors(FIRST.get(), |place| place.next.get());
    let lines: Vec<_> = places.map(|place| line(place)).collect();
    CString::new(lines.join("\n")).unwrap_or_default().into_raw()
}

/// Expands to the right code, or to the wrong code if this process makes the mistake `$name`. If
/// the wrong code is a literal, the place also notes whether the right value is another one. Other
/// wrong code never runs beside the right one, since it may change something. Without wrong code,
/// the mistake is that the statement `$right` is missing.
#[macro_export]
macro_rules! mutant {
    ($name:literal, $right:expr $(,)?) => {{
        static PLACE: $crate::place::Place = $crate::place::Place::new($name, false);
        if !PLACE.is_active() {
            $right;
        }
    }};
    ($name:literal, $right:expr, $wrong:literal $(,)?) => {{
        static PLACE: $crate::place::Place = $crate::place::Place::new($name, true);
        if PLACE.is_active() { $wrong } else { PLACE.compare($right, $wrong) }
    }};
    ($name:literal, $right:expr, $wrong:expr $(,)?) => {{
        static PLACE: $crate::place::Place = $crate::place::Place::new($name, false);
        if PLACE.is_active() { $wrong } else { $right }
    }};
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn a_place_runs_the_right_code_and_is_reported() {
        let mut calls = 0;
        for right in [1, 2, 1] {
            assert_eq!(crate::mutant!("another-value", right, 1), right);
            assert_eq!(crate::mutant!("the-same-value", right, right), right);
            crate::mutant!("missing", calls += 1);
        }
        assert_eq!(crate::mutant!("equal", calls, 3), 3);
        // SAFETY: the function returns a text that ends with a zero byte and stays.
        let reached = unsafe { CStr::from_ptr(reached_places()) };
        let lines = ["another-value differs", "the-same-value", "missing", "equal same"];
        assert_eq!(reached.to_str(), Ok(lines.join("\n").as_str()));
    }
}
