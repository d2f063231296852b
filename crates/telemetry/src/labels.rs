//! The labels of the metrics. A label with fixed values has an enum of these values.

use super::declare::{Handle, Kind, LabelValue, label_values};
use super::registry::{Counter, Registry};
use audit::{LEVELS, LevelCounts};

/// The address of a listener as in the config, or the name of a source.
pub(crate) const LISTENER: &str = "listener";

/// The name of an output.
pub(crate) const OUTPUT: &str = "output";

/// The name of an output, or `queue` for events that were lost before any output could get them.
/// kube-apiserver's metric `apiserver_audit_error_total` has a label of the same name.
pub(super) const PLUGIN: &str = "plugin";

/// `server` or `client`.
pub(super) const ROLE: &str = "role";

/// The beginning of a hash, because a client chooses the name of its Lease.
pub(super) const APISERVER: &str = "apiserver";

pub(super) const WITNESS: &str = "witness";

pub(crate) const VERSION: &str = "version";

pub(crate) const REVISION: &str = "revision";

label_values! {
    /// The reason why a request was not accepted: the label `reason` of `requests_rejected_total`.
    pub enum Rejection as "reason" {
        /// The body does not consist of audit events, or the request has a fault not listed below.
        Invalid = "invalid",
        /// The body exceeds `limits.max_body`, or an event exceeds `limits.max_in_flight`.
        TooLarge = "too_large",
        /// The queue has no room for the events of the request.
        QueueFull = "queue_full",
        /// The request bodies in progress have reached `limits.max_in_flight`.
        InFlightFull = "in_flight_full",
        /// The bearer token is missing or wrong.
        Unauthorized = "unauthorized",
        /// The head or the body of the request came too slowly.
        Timeout = "timeout",
        /// The path of the request is not below `listener.path_prefix`.
        NotFound = "not_found",
        /// The method of the request is not POST.
        Method = "method",
        /// The media type or the encoding of the request body is not supported.
        MediaType = "media_type",
        /// A load balancer has asked for `/` by GET, HEAD or OPTIONS, which is no batch.
        Probe = "probe",
        /// The relay is ending, or a reload has changed which clients may connect.
        ShuttingDown = "shutting_down",
        /// The disk with the queue's files does not store the events.
        Disk = "disk",
        /// The events were not delivered in time (with `queue.acknowledge = "queued"`: the body was
        /// not decoded in time), or a required output that should get them has ended.
        DeliveryTimeout = "delivery_timeout",
    }
}

impl Rejection {
    /// The reasons for which a batch gets 429: there is no room for the batch now.
    pub const WITH_429: [Self; 2] = [Self::QueueFull, Self::InFlightFull];

    /// The reasons for which a batch gets 503: the disk or a delivery is too slow or has failed.
    /// [`Self::ShuttingDown`] also gives 503, but is no sign of a problem.
    pub const WITH_503: [Self; 2] = [Self::Disk, Self::DeliveryTimeout];

    /// Returns `true` if the relay would refuse the same request again. kube-apiserver repeats such
    /// a request for about 90 s, and then drops its events.
    pub fn is_for_good(self) -> bool {
        match self {
            Self::Invalid
            | Self::TooLarge
            | Self::Unauthorized
            | Self::NotFound
            | Self::Method
            | Self::MediaType => true,
            Self::QueueFull
            | Self::InFlightFull
            | Self::Timeout
            | Self::Probe
            | Self::ShuttingDown
            | Self::Disk
            | Self::DeliveryTimeout => false,
        }
    }

    /// Returns `true` if only requests with the head of a batch are refused for this reason. A
    /// request that is refused for another reason may be a health check or a scan, or the process
    /// was ending.
    pub fn is_of_batch(self) -> bool {
        match self {
            Self::QueueFull
            | Self::InFlightFull
            | Self::TooLarge
            | Self::Disk
            | Self::DeliveryTimeout => true,
            Self::Invalid
            | Self::Unauthorized
            | Self::Timeout
            | Self::NotFound
            | Self::Method
            | Self::MediaType
            | Self::Probe
            | Self::ShuttingDown => false,
        }
    }

    /// Returns the reason with this name; `None` if this version has no such reason.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

label_values! {
    /// The reason for a failed TLS handshake: label `reason` of `listener_tls_failures_total`.
    pub enum TlsFailure as "reason" {
        /// The sender presents no client certificate, and `tls.client_ca` asks for one.
        NoCertificate = "no_certificate",
        /// The client certificate is from a CA that is not in `tls.client_ca`.
        UnknownCa = "unknown_ca",
        /// The client certificate has expired, or is not valid yet.
        Expired = "expired",
        /// The client certificate has another fault.
        BadCertificate = "bad_certificate",
        /// The sender does not accept the certificate of the listener.
        Refused = "refused",
        /// The sender speaks HTTP without TLS.
        PlainHttp = "plain_http",
        /// The sender and the listener have no version of TLS in common.
        ProtocolVersion = "protocol_version",
        /// The handshake has begun, and was not complete within `limits.header_timeout`.
        Timeout = "timeout",
        /// The sender has closed the connection during the handshake.
        Closed = "closed",
        /// Any other reason, such as bytes that are not TLS.
        Other = "other",
    }
}

label_values! {
    /// The reason for a refused connection: label `reason` of `connections_refused_total`.
    pub enum RefusedConnection as "reason" {
        /// At `limits.max_connections`, no connection could give way to a new one.
        AllBusy = "all_busy",
        /// A connection without a request that may be accepted was closed for a new one.
        Evicted = "evicted",
        /// The kernel refused a new connection, for example because of too many open files.
        AcceptFailed = "accept_failed",
    }
}

label_values! {
    /// The way in which a listener changed an event before it accepted it: label `change` of
    /// `changed_events_total`.
    pub enum ChangedEvent as "change" {
        /// Bytes that were not UTF-8 became U+FFFD.
        InvalidUtf8 = "invalid_utf8",
        /// The list did not fit into memory, and the event was one of its largest.
        Trimmed = "trimmed",
    }
}

label_values! {
    /// The reason for an error of the evidence: label `reason` of `evidence_errors_total`.
    pub enum EvidenceError as "reason" {
        /// A file of the evidence can't be read or written, or the recording thread has panicked.
        Write = "write",
        /// A checkpoint can't be made.
        Sign = "sign",
        /// A witness gives no cosignature.
        Witness = "witness",
        /// A witness knows another log of the same origin, or a longer one.
        RolledBack = "rolled_back",
        /// Files of the queue or of its evidence were changed or removed.
        Tampered = "tampered",
    }
}

label_values! {
    /// The reason why an attempt to deliver failed: the label `reason` of `output_errors_total`.
    pub enum AttemptError as "reason" {
        /// The consumer's host name cannot be resolved to an address.
        Resolve = "resolve",
        /// The connection to the consumer could not be opened.
        Connect = "connect",
        /// The TLS handshake with the consumer failed.
        Tls = "tls",
        /// The consumer did nothing for longer than a timeout allows.
        Timeout = "timeout",
        /// The connection to the consumer was closed or broke.
        Closed = "closed",
        /// The HTTP status of the response is 400 to 499, except for 429.
        Status4xx = "status_4xx",
        /// The HTTP status of the response is 429.
        Status429 = "status_429",
        /// The HTTP status of the response is 500 or above.
        Status5xx = "status_5xx",
        /// The consumer's response does not follow the protocol, or no valid request could be made.
        /// Also any error of librdkafka that fits none of the other reasons.
        Protocol = "protocol",
        /// The consumer has accepted the request, but has refused some of its events.
        Item = "item",
        /// The consumer has accepted the request, but has not confirmed its events in time.
        Acknowledgement = "acknowledgement",
    }
}

label_values! {
    /// The HTTP status of a response: the label `code` of `requests_total`. Each status that the
    /// relay documents has a value of its own; all other statuses are counted by their class.
    pub enum Code as "code" {
        /// The HTTP status 200.
        Ok = "200",
        /// The HTTP status 400.
        BadRequest = "400",
        /// The HTTP status 401.
        Unauthorized = "401",
        /// The HTTP status 404.
        NotFound = "404",
        /// The HTTP status 405.
        MethodNotAllowed = "405",
        /// The HTTP status 408.
        RequestTimeout = "408",
        /// The HTTP status 413.
        ContentTooLarge = "413",
        /// The HTTP status 415.
        UnsupportedMediaType = "415",
        /// The HTTP status 429.
        TooManyRequests = "429",
        /// The HTTP status 503.
        ServiceUnavailable = "503",
        /// Any HTTP status below 200.
        Informational = "1xx",
        /// Any HTTP status from 201 to 299.
        Successful = "2xx",
        /// Any HTTP status from 300 to 399.
        Redirection = "3xx",
        /// Any HTTP status from 400 to 499 that has no variant of its own.
        ClientError = "4xx",
        /// Any HTTP status of 500 or above, except for 503.
        ServerError = "5xx",
    }
}

impl Code {
    /// Returns the variant that counts this HTTP status.
    pub fn of(status: u16) -> Self {
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

label_values! {
    /// The effects of an output's settings on events. An event that counts as dropped or duplicate
    /// is not sent. Any other event may count as several of lowered, trimmed and redacted.
    pub enum Filtered as "action" {
        /// Events that are not sent, because the audit policy or the filter excludes them.
        Dropped = "dropped",
        /// Events not sent, because the same event was sent within the deduplication window.
        Duplicate = "duplicate",
        /// Events sent without bodies or managed fields that the audit policy does not ask for.
        Lowered = "lowered",
        /// Events sent without a part, or with a part cut, because they were larger than
        /// `max_event_bytes`.
        Trimmed = "trimmed",
        /// Events that are sent with at least one value removed or replaced.
        Redacted = "redacted",
    }
}

label_values! {
    /// The events that a full queue has dropped, by the setting of `queue.when_full`.
    pub enum Dropped as "reason" {
        /// Older events that were dropped to make room for a new batch.
        Oldest = "drop_oldest",
        /// Events of new batches.
        Newest = "drop_newest",
    }
}

label_values! {
    /// The state of an output's address.
    pub(super) enum AddressState as "state" {
        Up = "up",
        Down = "down",
        /// One delivery at a time tests the address, which was down.
        OnTrial = "on_trial",
        Unknown = "unknown",
    }
}

label_values! {
    /// The result of a reload.
    pub enum Reloaded as "result" {
        /// The new config is in use, and none of its listeners has failed to open.
        Success = "success",
        /// The new config was refused, or it is in use without one of its listeners.
        Error = "error",
    }
}

/// The counters of accepted events, one for each audit level, in the order of [`LEVELS`].
#[derive(Clone)]
pub struct Levels([Counter; LEVELS.len()]);

impl Levels {
    /// Adds the number of events of each audit level to its counter.
    pub fn add(&self, counts: &LevelCounts) {
        for (counter, count) in self.0.iter().zip(counts) {
            counter.increment(*count);
        }
    }
}

impl Handle for Levels {
    const KIND: Kind = Kind::Counter;

    fn register(registry: &Registry, name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        let of = |level| Counter::register(registry, name, &[labels, &[("level", level)]].concat());
        Self(LEVELS.map(of))
    }
}
