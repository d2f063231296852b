//! The numbers by which a state is judged. The verdict, `doctor` and the status page use these
//! constants, and a test compares the shipped alerts with them.

use std::time::Duration;

/// The lag above which an output is late, if its protocol does not hold events. A batch takes
/// milliseconds, and a retry after a single failure less than a second. A longer wait means that a
/// response does not come, or that earlier events are stuck.
const LAG_MAX: Duration = Duration::from_secs(30);

/// Returns the lag above which an output is late. `waits` is the time for which the output's
/// protocol holds an event before it counts as delivered, such as `replay_window` or `object_age`.
pub fn lag_max(waits: Option<Duration>) -> Duration {
    LAG_MAX + waits.unwrap_or_default()
}

/// Returns the time for which the output's protocol holds an event, from its [`lag_max`].
pub fn held(lag_max: Duration) -> Duration {
    lag_max.saturating_sub(LAG_MAX)
}

/// The time without an event, in seconds, after which the silence is a warning. Every cluster makes
/// audit events all the time.
pub const SILENCE: f64 = 900.0;

/// A kube-apiserver is silent if it was last heard more than this many seconds before another one.
/// Each one makes an event with its name every 10 s, and sends a batch after at most 30 s.
pub const APISERVER_SILENT: f64 = 300.0;

/// The part of the queue's capacity above which the queue is nearly full.
pub const QUEUE_NEARLY_FULL: f64 = 0.8;

/// The part of the memory limit above which the memory is nearly used up.
pub const MEMORY_NEARLY_USED: f64 = 0.9;

/// The remaining days below which a certificate causes a warning, and below which it is bad.
pub const CERTIFICATE_DAYS: (f64, f64) = (14.0, 3.0);

/// The fill above which the growth of the queue is extrapolated. After startup, a few events look
/// like fast growth, which is not a sign of trouble.
pub const FORECAST_FILL: f64 = 0.1;

/// A queue is bad if, at its present growth, it becomes full within this time in seconds.
pub const FULL_WITHIN: f64 = 3600.0;

/// The time in seconds for which kube-apiserver repeats a batch after responses 429 or 503 with the
/// relay's `Retry-After`. After this time, kube-apiserver drops the batch.
pub const PATIENCE_WITH_RETRY_AFTER: f64 = 235.0;

/// The time in seconds for which kube-apiserver repeats a batch after any error: five attempts, the
/// last 81 s after the first or later.
pub const PATIENCE: f64 = 80.0;

/// The mean time in seconds for which kube-apiserver repeats a batch if the responses have no
/// `Retry-After`. The pauses vary at random, and [`PATIENCE`] is the shortest time.
pub const PATIENCE_MAX: f64 = 90.0;

/// Everything counts as refused if, over [`PATIENCE`], nothing was accepted and at least this many
/// requests and TLS handshakes were refused for good: the attempts of one batch.
pub const ATTEMPTS: u64 = 5;

/// The time in seconds above which the responses of a listener are slow. kube-apiserver gives up
/// after 30 s; a healthy relay responds within milliseconds.
pub const SLOW_ANSWERS: f64 = 1.0;

/// The time in seconds for which a delivery that has timed out is a warning. A hung consumer seems
/// to work, because its kernel has room for some events from each new connection.
pub const STALLED_LATELY: f64 = 120.0;

/// The time in seconds for which a filter must drop every event before there is a warning.
pub const ALL_DROPPED: f64 = 300.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// The alerts judge by the numbers that the relay judges by.
    #[test]
    fn the_alerts_have_the_thresholds_of_the_relay() {
        let rules = include_str!("../../../../deploy/monitoring/rules.yaml");
        let (warn, bad) = CERTIFICATE_DAYS;
        for (alert, part) in [
            ("NothingReceived", format!("offset {}m)", SILENCE / 60.0)),
            ("ApiserverSilent", format!(") > {APISERVER_SILENT} < 3600")),
            ("QueueNearlyFull", format!("[15m], {}) >", FULL_WITHIN)),
            ("QueueNearlyFull", format!("> {}", FORECAST_FILL)),
            ("QueueNearlyFull", format!("> {}", QUEUE_NEARLY_FULL)),
            ("EverythingRefused", format!(">= {ATTEMPTS}")),
            ("MemoryNearLimit", format!("> {}", MEMORY_NEARLY_USED)),
            ("CertificateExpires", format!("< {warn} * 86400")),
            (
                "OutputLags",
                "output_lag_seconds[5m]) > kube_audit_forwarder_output_lag_max_seconds".to_owned(),
            ),
        ] {
            let (_, rule) = rules.split_once(&format!("KubeAuditForwarder{alert}\n")).unwrap();
            let (expression, _) = rule.split_once("labels:").unwrap();
            let has_it = [" ", "\n"].iter().any(|end| expression.contains(&format!("{part}{end}")));
            assert!(has_it, "{alert}: {part}: {expression}");
        }
        let critical = format!("{{{{ if lt $value {:.1} }}}}critical{{{{", bad * 86_400.0);
        assert!(rules.contains(&critical), "{critical}");
    }
}
