//! `[log]`: the level and the format of the log.

use tracing::Level;

use config_table::table::Table;

/// The settings of the section `[log]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The lowest level of log lines that are written.
    pub level: Level,
    /// The format of a log line.
    pub format: LogFormat,
}

/// The values of `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people; control characters are escaped.
    Text,
    /// Lines for machines: each line is one JSON object.
    Json,
}

/// Reads the section `[log]`; never `None`.
pub(crate) fn read(t: &mut Table<'_, '_>) -> Option<Log> {
    let level = t.choice(
        "level",
        &[
            ("error", Level::ERROR),
            ("warn", Level::WARN),
            ("info", Level::INFO),
            ("debug", Level::DEBUG),
            ("trace", Level::TRACE),
        ],
        Some(Level::INFO),
        "lowest level to log; `debug` logs each request and delivery",
    );
    let format = t.choice(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        Some(LogFormat::Text),
        "`text`: for people, with control characters escaped; `json`: for machines",
    );
    Some(Log { level: level?, format: format? })
}
