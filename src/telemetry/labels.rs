//! The labels of the metrics, and the enums and sets of handles for labels with fixed values.

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusRecorder;

use super::declare::Handle;
use super::declare::Kind;
use super::declare::Label;
use super::declare::Values;
use super::declare::label_set;
use super::declare::label_values;
use crate::audit::LEVELS;
use crate::audit::LevelCounts;

/// The label for the listener or source that received a request.
pub(super) const LISTENER: Label = Label {
    name: "listener",
    values: Values::Described("`listener.address` as the config has it, or the name of a source"),
};

/// The label for the output that the value is about.
pub(super) const OUTPUT: Label =
    Label { name: "output", values: Values::Described("`output.name`") };

/// The label for the output that lost events, with the same name as in
/// `apiserver_audit_error_total`.
pub(super) const PLUGIN: Label = Label {
    name: "plugin",
    values: Values::Described("`output.name`, or `queue` for events that no output can get"),
};

/// The label for the user of a certificate: its name is `listener` or `output`.
pub(super) const PLACE: Label = Label {
    name: "listener or output",
    values: Values::Described("the listener's address, or the output's name"),
};

/// The label for the side of the connection that presented a certificate.
pub(super) const ROLE: Label = Label { name: "role", values: Values::Fixed(&["server", "client"]) };

/// The label for the version of the build.
pub(super) const VERSION: Label =
    Label { name: "version", values: Values::Described("the version in Cargo.toml") };

/// The label for the source revision of the build.
pub(super) const REVISION: Label = Label {
    name: "revision",
    values: Values::Described(
        "`KUBE_AUDIT_FORWARDER_REVISION` at compile time, or `unknown` if it was not set",
    ),
};

label_values! {
    /// The reason why a request was not accepted: the label `reason` of `requests_rejected_total`.
    pub enum Rejection as "reason" {
        /// The body is not audit events, or the request is not well-formed HTTP.
        Invalid = "invalid",
        /// The body is larger than `limits.max_body` allows.
        TooLarge = "too_large",
        /// The queue has no room.
        QueueFull = "queue_full",
        /// `limits.max_in_flight` is used up.
        InFlightFull = "in_flight_full",
        /// The bearer token is missing or wrong.
        Unauthorized = "unauthorized",
        /// The head or the body of the request came too slowly.
        Timeout = "timeout",
        /// The path is outside `listener.path_prefix`.
        NotFound = "not_found",
        /// The method is not POST.
        Method = "method",
        /// The media type or the encoding is not supported.
        MediaType = "media_type",
        /// The relay is about to end.
        ShuttingDown = "shutting_down",
        /// The queue's disk does not store.
        Disk = "disk",
        /// The events were not delivered in time, with `queue.acknowledge = "delivered"`.
        DeliveryTimeout = "delivery_timeout",
    }
}

label_values! {
    /// The reason why an attempt to deliver failed: the label `reason` of `output_errors_total`.
    pub enum AttemptError as "reason" {
        /// The consumer's name has no address.
        Resolve = "resolve",
        /// There is no connection.
        Connect = "connect",
        /// The TLS handshake failed.
        Tls = "tls",
        /// The consumer did nothing for longer than a timeout allows.
        Timeout = "timeout",
        /// The consumer closed the connection.
        Closed = "closed",
        /// The HTTP status is 400 to 499, except for 429.
        Status4xx = "status_4xx",
        /// The HTTP status is 429.
        Status429 = "status_429",
        /// The HTTP status is 500 or above.
        Status5xx = "status_5xx",
        /// The consumer's bytes do not follow the protocol.
        Protocol = "protocol",
    }
}

label_values! {
    /// The HTTP status of a response: the label `code` of `requests_total`. Each status that the
    /// relay documents has a value of its own; all other statuses are counted by their class.
    pub(super) enum Code as "code" {
        /// 200.
        Ok = "200",
        /// 400.
        BadRequest = "400",
        /// 401.
        Unauthorized = "401",
        /// 404.
        NotFound = "404",
        /// 405.
        MethodNotAllowed = "405",
        /// 408.
        RequestTimeout = "408",
        /// 413.
        ContentTooLarge = "413",
        /// 415.
        UnsupportedMediaType = "415",
        /// 429.
        TooManyRequests = "429",
        /// 503.
        ServiceUnavailable = "503",
        /// Another status below 200.
        Informational = "1xx",
        /// Another status from 200 to 299.
        Successful = "2xx",
        /// A status from 300 to 399.
        Redirection = "3xx",
        /// Another status from 400 to 499.
        ClientError = "4xx",
        /// Another status from 500 on.
        ServerError = "5xx",
    }
}

impl Code {
    /// Returns the variant that counts this HTTP status.
    pub(super) fn of(status: u16) -> Self {
        match status {
            200 => Self::Ok,
            400 => Self::BadRequest,
            401 => Self::Unauthorized,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            408 => Self::RequestTimeout,
            413 => Self::ContentTooLarge,
            415 => Self::UnsupportedMediaType,
            429 => Self::TooManyRequests,
            503 => Self::ServiceUnavailable,
            ..=199 => Self::Informational,
            201..=299 => Self::Successful,
            300..=399 => Self::Redirection,
            402..=499 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

label_set! {
    /// The handles for changes that an output's settings make to events. One event may count as
    /// lowered, trimmed and redacted. An event that is dropped or a duplicate does not leave, and
    /// does not count as changed.
    pub struct Filtered as "action" {
        /// The audit policy or the filter keeps the event back.
        dropped,
        /// The consumer had the event before, within the deduplication window.
        duplicate,
        /// The policy asks for a lower audit level, so bodies were removed.
        lowered,
        /// Bodies were removed because the event was larger than `max_event_bytes`.
        trimmed,
        /// At least one value was redacted.
        redacted,
    }
}

label_set! {
    /// The handles for events that a full queue dropped, by the value of `queue.when_full`.
    pub struct Dropped as "reason" {
        /// The number of older events that were dropped to make room for a new batch.
        drop_oldest,
        /// The number of events of new batches that were dropped.
        drop_newest,
    }
}

label_set! {
    /// The handles for the two results that a reload may have.
    pub(super) struct ByResult as "result" {
        /// The new config is in use.
        success,
        /// The new config was refused, and the old one stays in use.
        error,
    }
}

/// The counters of accepted events, one for each audit level, in the order of [`LEVELS`].
#[derive(Clone)]
pub(super) struct Levels([Counter; LEVELS.len()]);

impl Levels {
    /// Counts events by their audit levels.
    pub(super) fn add(&self, counts: &LevelCounts) {
        for (counter, count) in self.0.iter().zip(counts) {
            counter.increment(*count);
        }
    }
}

impl Handle for Levels {
    const KIND: Kind = Kind::Counter;
    const LABEL: Option<Label> = Some(Label { name: "level", values: Values::Fixed(&LEVELS) });

    fn register(
        recorder: &PrometheusRecorder,
        name: &str,
        labels: &[(&'static str, &str)],
    ) -> Self {
        let of = |level| Counter::register(recorder, name, &[labels, &[("level", level)]].concat());
        Self(LEVELS.map(of))
    }
}
