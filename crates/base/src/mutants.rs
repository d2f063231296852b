//! Known mistakes (mutants), kept in the code at the places where they could be made again.
//! `mutant!("name", right, wrong)` means `right`; without `wrong`, the mistake is that the
//! statement `right` is missing. In a build with `--cfg mutants`, the process makes the mistake
//! that the variable `KUBE_AUDIT_FORWARDER_MUTANT` names. Tests must notice each mistake:
//! `tests/sim/mutants.toml` describes them, and `tests/sim/README.md` says how to run the tests.

#[cfg(mutants)]
use std::sync::OnceLock;

/// A place in the sources where a mistake could be made. `sim reach` asks which places a process
/// has reached.
#[cfg(mutants)]
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
#[cfg(mutants)]
static FIRST: OnceLock<&'static Place> = OnceLock::new();

#[cfg(mutants)]
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

/// Returns the places that this process has reached: their names, and whether the mistake would
/// have been another value there. `None`: it is no value that can be compared.
#[cfg(mutants)]
pub fn reached() -> impl Iterator<Item = (&'static str, Option<bool>)> {
    let places = std::iter::successors(FIRST.get(), |place| place.next.get());
    places.map(|it| (it.name, it.has_value.then(|| it.differs.get().is_some())))
}

/// Expands to the right code.
#[cfg(not(mutants))]
#[macro_export]
macro_rules! mutant {
    ($name:literal, $right:expr $(, $wrong:expr)? $(,)?) => {
        $right
    };
}

/// Expands to the right code, or to the wrong code if this process makes the mistake `$name`. If
/// the wrong code is a literal, the place also notes whether the right value is another one. Other
/// wrong code never runs beside the right one, since it may change something.
#[cfg(mutants)]
#[macro_export]
macro_rules! mutant {
    ($name:literal, $right:expr $(,)?) => {{
        static PLACE: $crate::mutants::Place = $crate::mutants::Place::new($name, false);
        if !PLACE.is_active() {
            $right;
        }
    }};
    ($name:literal, $right:expr, $wrong:literal $(,)?) => {{
        static PLACE: $crate::mutants::Place = $crate::mutants::Place::new($name, true);
        if PLACE.is_active() { $wrong } else { PLACE.compare($right, $wrong) }
    }};
    ($name:literal, $right:expr, $wrong:expr $(,)?) => {{
        static PLACE: $crate::mutants::Place = $crate::mutants::Place::new($name, false);
        if PLACE.is_active() { $wrong } else { $right }
    }};
}
