//! A type of output without a protocol, for the unit tests of crates that know no protocol but need
//! a config.
//!
//! Only `[dev-dependencies]` name this crate.

use config::{OutputSettings, OutputType, Target};
use config_table::table::Table;

/// The settings of an output of the type `stdout`, which [`config::EMBEDDED`] uses. The type has no
/// keys of its own.
#[derive(Debug, PartialEq, Eq)]
struct Stdout;

impl OutputSettings for Stdout {
    const TYPE: &'static str = "stdout";

    const SAMPLE: &'static str = "";

    const MEMORY: u64 = 0;

    fn read(_: &mut Table<'_, '_>) -> Option<Self> {
        Some(Self)
    }

    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }
}

/// The types of output of a test: `stdout`.
pub const TYPES: &[OutputType] = &[OutputType::of::<Stdout>()];
