//! How a config file is read, without the name of any key: tables and their keys, values, `${…}`,
//! problems with their places, the effective config and the reference.
//!
//! One call for a key reads it, checks it and declares it ([`table::Table`]). This crate promises
//! that one run reports every problem, and that no message shows a text that may be a secret. It
//! imports `base`. What must never happen here: a key of the relay, or a connection.
//!
//! | floor | files | content |
//! |---|---|---|
//! | 1 | `literal` `problem` `template` `values` | TOML as text · problems · `${…}` · sizes, times, names |
//! | 2 | `reader` | the state of reading one file: positions and records |
//! | 3 | `print` `table` | printing of the config and the reference · tables and keys |

pub mod literal;
pub mod print;
pub mod problem;
pub mod reader;
pub mod table;
pub mod template;
pub mod values;
