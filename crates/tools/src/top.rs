//! The screen of `top`: a relay's state as plain text, for operators who have `kubectl exec` or
//! `kubectl port-forward` and no browser. It shows the same as the status page.
//!
//! [`View`] holds the newest response of the relay, and [`lines`] makes the screen of it, for any
//! width: columns that do not fit are left out as a whole and named, and no cell is cut. Each text
//! from the relay is escaped ([`escape`](base::words::escape)), so that no name and no error
//! message can send a command to the terminal.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `table` `volume` | columns that fit a width · the table of `--by` |
//! | 2 | `view` | the newest answers |
//! | 3 | `screen` | the parts of the screen |

mod screen;
mod table;
mod view;
mod volume;

pub use screen::lines;
pub use view::View;
pub use volume::table;

#[cfg(test)]
mod tests;
