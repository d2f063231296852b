//! The keys of syslog messages, which `syslog` and `relp` share.

use config_table::table::Table;
use config_table::values;

/// The parts of an RFC 5424 message that are the same in every message of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct Messages {
    /// PRI: facility × 8 + severity (RFC 5424 §6.2.1): `local0` (16) and `info` (6) give 134.
    pub priority: u8,
    /// HOSTNAME: 1 to 255 printable ASCII characters. The default is the machine's name.
    pub hostname: String,
    /// APP-NAME: 1 to 48 printable ASCII characters.
    pub app_name: String,
    /// The maximum number of bytes; 0 if there is no limit. A longer message is rejected, never
    /// cut.
    pub max_message_bytes: u64,
}

impl Messages {
    /// Reads keys such as `facility` and `hostname`. `None` if `hostname` or `app_name` is wrong.
    pub fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let facility = t.choice("facility", &numbered(&FACILITIES), Some(16), "syslog facility");
        let severity = t.choice("severity", &numbered(&SEVERITIES), Some(6), "syslog severity");
        let hostname = t.word_or(
            ("hostname", "name", "HOSTNAME in each message"),
            &machine_name(),
            Some("the machine's hostname"),
            |text| values::printable(text, 255),
        );
        let app_name = t.word_or(
            ("app_name", "name", "APP-NAME in each message"),
            "kube-audit",
            None,
            |text| values::printable(text, 48),
        );
        let max_message_bytes = t.size(
            "max_message_bytes",
            0,
            ..,
            "longer messages are rejected, not truncated; 0: no limit",
        );
        Some(Self {
            priority: facility? * 8 + severity?,
            hostname: hostname?,
            app_name: app_name?,
            max_message_bytes,
        })
    }
}

impl Messages {
    /// Returns the text for `OutputSettings::event_limit`: what common receivers do with long
    /// messages. `None` if the config limits the messages.
    pub fn event_limit(&self) -> Option<&'static str> {
        (self.max_message_bytes == 0).then_some(
            "By default, rsyslog truncates messages over 8 KiB, and other receivers truncate or \
             garble long ones. Set it slightly below the receiver's limit, or set \
             max_message_bytes",
        )
    }
}

/// Returns the name of this machine; in a pod, this is the pod's name. Returns `-`, RFC 5424's sign
/// for "no name", if it can't be read or is not 1 to 255 printable ASCII characters.
pub fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    values::printable(name.trim(), 255).unwrap_or_else(|_| "-".to_owned())
}

/// The facilities of RFC 5424 §6.2.1 in the order of their numbers, with the names of
/// syslog.conf(5), or of rsyslog (12 to 15).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

/// The severities of RFC 5424 §6.2.1 in the order of their numbers, with the names of
/// syslog.conf(5).
const SEVERITIES: [&str; 8] =
    ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

fn numbered(names: &[&'static str]) -> Vec<(&'static str, u8)> {
    names.iter().copied().zip(0..).collect()
}
