//! The screen of `top`: a relay's state in a terminal, for operators who have `kubectl exec` or
//! `kubectl port-forward` and no browser. It shows the same as the status page.
//!
//! [`View`] holds the newest responses of the relay and the choices of the reader; [`draw`] draws
//! them into a frame of any size. This module sends no requests and reads no keys: the command does
//! that. Each text from the relay is escaped ([`escape`](base::words::escape)), so that no name and
//! no error message can send a command to the terminal.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `volume` | the table of `--by` |
//! | 2 | `view` | the newest answers, and the choices of the reader |
//! | 3 | `screen` | the parts of the screen |

mod screen;
mod view;
mod volume;

pub use screen::{draw, height};
pub use view::{Key, View};
pub use volume::table;

#[cfg(test)]
mod tests;
