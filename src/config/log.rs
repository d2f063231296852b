//! `[log]`.

use super::table::Table;

/// `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The lowest level that is written.
    pub level: LogLevel,
    /// The shape of a line.
    pub format: LogFormat,
}

/// `log.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something is lost, or somebody must act.
    Error,
    /// Something unexpected happened, and nothing is lost.
    Warn,
    /// Changes of state.
    Info,
    /// One line for each request and delivery.
    Debug,
    /// Everything.
    Trace,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; control characters are escaped.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Reads `[log]`. `None`: there is a problem.
pub(super) fn read(t: &mut Table<'_, '_>) -> Option<Log> {
    let level = t.choice(
        "level",
        &[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ],
        Some(LogLevel::Info),
        "debug: one line per request and delivery",
    );
    let format = t.choice(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        Some(LogFormat::Text),
        "for people (control characters escaped), or for machines",
    );
    Some(Log { level: level?, format: format? })
}
