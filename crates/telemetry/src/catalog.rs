//! Every metric of the relay, declared once. A new counter needs one declaration here, and one call
//! where the program counts. Families with the same heading that follow each other share a section
//! of the reference page.
//!
//! `help` is the text on `/metrics`. A change of a `help`, or of a name, needs a line in
//! CHANGELOG.md. `meaning` and `action` are for the operator. A test compares the reference page
//! (`docs/reference/metrics.md`) with the declarations.
//!
//! No client chooses the value of a label, so the number of series is bounded. The values are from
//! the config, from the build, from a fixed set, or hashes of at most 16 names. Most series exist
//! from the start, with 0; the head of the reference page has the exceptions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::Histogram;
use tokio::time::Instant;

use super::declare::{DEFAULTS, Each, Handle, Kind, Label, Metric, catalog, full_name};
use super::labels::{
    APISERVER, AddressStates, AttemptError, ByResult, Code, Dropped, EvidenceError, Filtered,
    LISTENER, Levels, OUTPUT, PLACE, PLUGIN, REVISION, ROLE, RefusedConnection, Rejection,
    TlsFailure, VERSION, WITNESS,
};
use super::recent::RecentTimes;
use super::refusals::Refusals;
use super::registry::{Counter, Gauge, Registry};
use super::reports::Losses;

/// Bucket bounds in seconds: from a small batch (below 100 µs) to a wait for delivery (30 s).
const REQUEST_SECONDS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 15.0, 30.0,
];

/// Bucket bounds in seconds: from a single event (1 ms) to an outage of a day.
const DELIVERY_SECONDS: [f64; 13] =
    [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];

/// Bucket bounds in seconds: from a write to a cache (100 µs) to a disk about to fail (10 s).
const SYNC_SECONDS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

catalog! {
    "Losses"
    /// The metric of the lost events of one output, or of the queue.
    pub struct LostMetrics [PLUGIN] {
        pub events: Counter = "error_total" {
            help: "Accepted events that were then lost or refused for good, by output; plugin \
                \"queue\": lost before any output could get them.",
            unit: "events",
            meaning: "The sender got 200 for these events, but the output's consumer does not have \
                them. Dead letters count too. An optional output (`required = false`) may lose \
                events in normal operation.",
            action: "Look for the log lines at level `error`: they say how many events, for which \
                output, and why. The `KubeAuditForwarderEventsLost` alert fires on any increase.",
        }
    }

    "The queue"
    /// The metrics of the batches that the queue accepts.
    pub struct AcceptedMetrics [] {
        pub events: Counter = "event_total" {
            help: "Events accepted.",
            unit: "events",
            meaning: "Each accepted event counts once, regardless of the number of outputs. Events \
                in a batch that `queue.when_full = \"drop_newest\"` drops count too. When nothing \
                is in progress, for every output: `event_total` + `output_start_events` = \
                `output_events_total` + `output_backlog_events` + `output_aside_events` + \
                `error_total` of the output and of `queue` + `filtered_events_total` with the \
                actions `dropped` and `duplicate`.",
            action: "If it stops rising, no sender reaches the relay, or all requests are refused: \
                look at `requests_total` by `code`. The `KubeAuditForwarderNothingReceived` alert \
                fires after 15 minutes. The `KubeAuditForwarderConservationBroken` alert compares \
                the two sides of this equation.",
        }
        pub bytes: Counter = "accepted_bytes_total" {
            help: "Bytes of accepted events, as stored in the queue.",
            unit: "bytes",
            meaning: "The rate shows how fast the queue fills while a consumer is down. A batch \
                that is sent twice and accepted once counts once.",
            action: "Use it to size the queue: `queue_capacity_bytes` divided by the rate on a \
                busy day is how many seconds the queue lasts.",
        }
        pub levels: Levels = "level_total" {
            help: "Events accepted, by audit level.",
            unit: "events",
            meaning: "`other`: the event's level is unknown or missing.",
            action: "A rise in `RequestResponse` makes batches larger: look at the audit policy.",
        }
        pub last: Gauge = "last_event_timestamp_seconds" {
            help: "When the last batch was accepted; 0: none since the start.",
            unit: "seconds since 1970",
            meaning: "Every cluster constantly generates audit events, so a value that is several \
                minutes old means that no events arrive.",
            action: "Send a batch by hand to see if the relay is reachable, then look at the audit \
                webhook's URL in kube-apiserver's configuration. The \
                `KubeAuditForwarderNothingReceived` alert fires after 15 minutes, unless another \
                replica gets events.",
        }
    } with {
        /// The state of refused requests, which changes when a batch is accepted.
        pub refusals: Refusals,
    }

    "The queue"
    /// The metrics of the queue.
    pub struct QueueMetrics [] {
        pub bytes: Gauge = "queue_bytes" {
            help: "Bytes held by the queue, as queue.max_bytes counts them.",
            unit: "bytes",
            meaning: "In memory: the waiting events, and 256 bytes for each batch. With \
                `queue.directory`: whole files, reserved space included, so room is freed one \
                segment at a time. Spare files, which become the next segments, do not count. \
                Events that only an optional output needs, or that a deduplication window \
                remembers, stay until the space is needed: `queue_needed_bytes` does not include \
                them.",
            action: "Nothing. `queue_needed_bytes` says how full the queue is.",
        }
        pub needed: Gauge = "queue_needed_bytes" {
            help: "Queue bytes that required outputs still need, or that cannot be dropped.",
            unit: "bytes",
            meaning: "The part of `queue_bytes` that new events cannot use. Its share of \
                `queue_capacity_bytes` is how full the queue is. With `queue.directory`, a file \
                counts until every required output has finished all its events; in the file being \
                written, only waiting events count. Temporary files for large request bodies that \
                are still arriving, and files in `quarantine/`, count too.",
            action: "Look for the required output with the largest `output_backlog_bytes`. The \
                alerts `KubeAuditForwarderQueueFullWithinAnHour` and \
                `KubeAuditForwarderQueueNearlyFull` use it.",
        }
        pub capacity: Gauge = "queue_capacity_bytes" {
            help: "Size limit of the queue (queue.max_bytes).",
            unit: "bytes",
            meaning: "The limit of `queue_bytes`. A reload may change it.",
            action: "Nothing: it changes only with the config.",
        }
        pub durable: Gauge = "queue_durable" {
            help: "1 if the queue is on disk, 0 if it is in memory.",
            unit: "1 or 0",
            meaning: "A queue on disk (`queue.directory`) keeps its events when the process ends.",
            action: "If 0, set `queue.directory`: a crash loses the events in memory, and no \
                counter shows it.",
        }
        pub earlier: Gauge = "queue_earlier_events" {
            help: "Events that earlier processes had accepted into the queue's directory.",
            unit: "events",
            meaning: "0 for a queue in memory, and in a new directory. The counters of those \
                processes, such as `error_total`, are lost: counters start at 0 when a process \
                starts.",
            action: "Nothing: `doctor` uses it to say that earlier losses are unknown. Prometheus \
                still has the earlier counters.",
        }
        pub held: Gauge = "queue_events" {
            help: "Events held by the queue.",
            unit: "events",
            meaning: "Events that at least one output still needs, and events that are kept only \
                until their space is needed.",
            action: "See `queue_needed_bytes`.",
        }
        pub writable: Gauge = "queue_writable" {
            help: "1 if the queue can write events, 0 if not, regardless of how full it is.",
            unit: "1 or 0",
            meaning: "0: the disk refuses writes or syncs, or has not responded for five seconds. \
                Senders get 503. Stored events are still delivered. For a queue in memory, it is \
                always 1.",
            action: "`/readyz?verbose` and the log name the operation and the error. The \
                `KubeAuditForwarderDiskRefused` alert fires at once.",
        }
        pub dropped: Dropped<Counter> = "queue_dropped_events_total" {
            help: "Events dropped because of queue.when_full, each counted once.",
            unit: "events",
            meaning: "The queue was full, and `queue.when_full` is not `reject`. `error_total` \
                counts the same loss for each required output that had not yet received the event.",
            action: "Enlarge the queue, fix the consumer that holds it up, or set `queue.when_full \
                = \"reject\"`, so that kube-apiserver sends the events again.",
        }
    } with {
        /// The metrics of the batches that the queue accepts.
        pub accepted: AcceptedMetrics,
        /// The metrics of the files of a queue on disk.
        pub spool: SpoolMetrics,
        /// The counter `error_total` for events that no output can get, such as a dropped batch.
        pub errors: Counter,
        /// The log's notes about the events that no output can get.
        pub losses: Losses,
    }

    "The queue"
    /// The metrics of the files of a queue on disk.
    pub struct SpoolMetrics [] {
        pub sync: Histogram = "spool_sync_duration_seconds" {
            help: "Time to write and sync a group of batches to the queue's directory.",
            unit: "seconds",
            meaning: "Only with `queue.directory`. A sender waits at least this long for its 200. \
                Batches that arrive during a sync are synced together by the next one.",
            action: "Above 100 ms the disk is overloaded or about to fail: look at its latency, \
                and at what else uses it. Above half a second on average the \
                `KubeAuditForwarderDiskSlow` alert fires.",
            buckets: &SYNC_SECONDS,
        }
        pub segments: Gauge = "spool_segments" {
            help: "Files in the durable queue.",
            unit: "files",
            meaning: "Files that hold events, and files that wait to be deleted. 0 for a queue in \
                memory.",
            action: "See `queue_needed_bytes`. If it stays high while `queue_events` is low, files \
                can't be deleted: look at `spool_write_errors_total`.",
        }
        pub corrupt: Counter = "spool_corrupt_records_total" {
            help: "Damaged places found in the queue's files, each counted once.",
            unit: "places",
            meaning: "A checksum did not match, or a file or a part of one is missing or can't be \
                read. The relay skips the damaged place; the events in it count in `error_total` \
                of each output that had not yet received them.",
            action: "Look at the disk. `queue verify DIR` lists the damaged places, and \
                `quarantine/` in the queue's directory holds copies of them.",
        }
        pub write_errors: Counter = "spool_write_errors_total" {
            help: "Failed writes, syncs and deletes in the queue's directory.",
            unit: "operations",
            meaning: "The relay retries each of them. While nothing can be stored, \
                `queue_writable` is 0.",
            action: "The log names the operation and the error: a full or read-only file system, a \
                quota, an I/O error. The `KubeAuditForwarderDiskRefused` alert fires on any \
                increase.",
        }
    }

    "Listeners and sources"
    /// The metrics of one listener or source.
    pub struct ListenerMetrics [LISTENER] {
        pub requests: Each<Code, Counter> = "requests_total" {
            help: "Requests that got a response, by listener and status code.",
            unit: "requests",
            meaning: "Documented status codes are counted individually, all others by class. A \
                repeated request counts again. Messages from a source count too.",
            action: "429 and 503: the relay tells senders to try again later, see \
                `requests_rejected_total`. Any other 4xx: the sender is misconfigured, or is not a \
                kube-apiserver.",
        }
        pub duration: Histogram = "request_duration_seconds" {
            help: "Time from the end of a request's head to its response.",
            unit: "seconds",
            meaning: "It includes the time that the body takes to arrive, the sync (if \
                `queue.directory` is set) and the delivery (if `queue.acknowledge` is \
                `delivered`).",
            action: "kube-apiserver gives up after 30 s. Compare `spool_sync_duration_seconds` and \
                `output_delivery_seconds` to find the slow part.",
            buckets: &REQUEST_SECONDS,
        }
        pub received: Counter = "received_bytes_total" {
            help: "Body bytes received, before decompression, including refused and repeated \
                requests.",
            unit: "bytes",
            meaning: "The network load caused by request bodies.",
            action: "If it grows and `accepted_bytes_total` does not, batches are refused and sent \
                again: look at `requests_rejected_total`.",
        }
        pub connections: Gauge = "connections" {
            help: "Open connections.",
            unit: "connections",
            meaning: "`limits.max_connections` bounds the sum over all listeners. At the limit, \
                the connection that has gone longest without a complete request head is closed.",
            action: "If it stays at the limit, find the clients that open many connections, or \
                raise the limit.",
        }
        pub refused: Each<RefusedConnection, Counter> = "connections_refused_total" {
            help: "Connections that were closed because of limits.max_connections, or could not be \
                accepted, by reason.",
            unit: "connections",
            meaning: "`all_busy`: a new connection was closed at once, because all others were in \
                the middle of a request; no other metric counts its request. `evicted`: a \
                connection without a complete request head, or whose requests were all refused, \
                made room for a new one. `accept_failed`: an attempt to accept failed, and is \
                repeated every 100 ms. For sources it stays 0.",
            action: "`all_busy` and `evicted`: find the clients that hold connections, such as \
                those whose bodies arrive slowly, or raise `limits.max_connections`. \
                `accept_failed`: the log contains the error; compare `process_open_fds` with \
                `process_max_fds`. At startup and at a reload, the log says if the limit on open \
                files has lowered `limits.max_connections`. The \
                `KubeAuditForwarderConnectionsRefused` alert fires after a minute.",
        }
        pub tls_failures: Each<TlsFailure, Counter> = "listener_tls_failures_total" {
            help: "Failed TLS handshakes with senders, by reason.",
            unit: "handshakes",
            meaning: "A sender whose handshake fails sends no events, and no other metric counts \
                it. A connection that sends no bytes, such as a health check, does not count. \
                Without `listener.tls`, and for sources, it stays 0.",
            action: "The log contains the sender's address at level `warn`. `no_certificate`, \
                `unknown_ca`, `expired`, `bad_certificate`: renew the sender's certificate, or \
                `client_ca`. `refused`: the sender does not trust the listener's certificate. \
                `plain_http`: its URL must begin with `https://`. The \
                `KubeAuditForwarderTlsHandshakesFail` alert fires after a few minutes, or \
                `KubeAuditForwarderEverythingRefused` while nothing is accepted.",
        }
    } with {
        /// The counters of refused requests, which all listeners and sources share.
        pub rejections: RejectionMetrics,
        /// The label of the listener or source: its address in the config, or its name.
        pub label: Arc<str>,
        /// The state of refused requests, over all listeners and sources.
        pub refusals: Refusals,
        /// The times from the end of a body to the response that accepts it.
        pub times: Arc<Mutex<RecentTimes>>,
    }

    "Listeners and sources"
    /// The counters of refused requests, over all listeners and sources.
    pub struct RejectionMetrics [] {
        pub requests: Each<Rejection, Counter> = "requests_rejected_total" {
            help: "Rejected requests, by reason.",
            unit: "requests",
            meaning: "Each attempt counts. kube-apiserver tries a batch five times; only then are \
                its events lost, and only kube-apiserver counts them \
                (`apiserver_audit_error_total`).",
            action: "`queue_full`, `in_flight_full`, `timeout`, `disk`, `delivery_timeout`: the \
                relay or a consumer is too slow (alert `KubeAuditForwarderSendersWait`). \
                `too_large`: raise the limit that `last_rejected` in `/status` shows, usually \
                `limits.max_body` (`KubeAuditForwarderBatchTooLarge`). `invalid`, `unauthorized`, \
                `not_found`, `method`, `media_type`: correct the sender \
                (`KubeAuditForwarderRequestsRejected`, or `KubeAuditForwarderEverythingRefused` \
                while nothing is accepted). `shutting_down`: a restart.",
        }
    }

    "Listeners and sources"
    /// The metrics of the time since which every batch has been refused.
    pub(super) struct RefusingMetrics [] {
        pub(super) since: Gauge = "requests_rejected_since_timestamp_seconds" {
            help: "When the first request was refused after the last accepted batch; 0: none.",
            unit: "seconds since 1970",
            meaning: "Only the reasons `queue_full`, `in_flight_full`, `too_large`, `disk` and \
                `delivery_timeout` count. For any other reason, the request may not have contained \
                a batch: for example, a health check with a wrong path is `not_found`.",
            action: "kube-apiserver drops a batch about 90 s after its first refusal, or after \
                about four minutes if the refusals are 429 or 503 with `Retry-After`. \
                `requests_rejected_total` shows the reason.",
        }
        pub(super) requests: Gauge = "requests_rejected_since_last_accepted" {
            help: "Requests refused after the last accepted batch.",
            unit: "requests",
            meaning: "Counts the refusals since `requests_rejected_since_timestamp_seconds`, for \
                the same reasons. An accepted batch sets it to 0.",
            action: "See `requests_rejected_since_timestamp_seconds`. A rising number means that \
                senders keep retrying.",
        }
    }

    "Listeners and sources"
    /// The metric of the request bodies that count for `limits.max_in_flight`.
    pub(super) struct InFlightMetrics [] {
        pub bytes: Gauge = "in_flight_bytes" {
            help: "Body bytes that are not in the queue yet, or that wait to be acknowledged.",
            unit: "bytes",
            meaning: "`limits.max_in_flight` is its limit. At the limit, requests get 429 with the \
                reason `in_flight_full`.",
            action: "Near the limit: raise `limits.max_in_flight`, and the memory limit with it, \
                or add replicas. Slow senders and a slow disk keep it high too.",
        }
    }

    "Listeners and sources"
    /// The metric of one kube-apiserver.
    pub(super) struct ApiserverMetrics [APISERVER] {
        pub(super) last_heard: Gauge = "apiserver_last_heard_timestamp_seconds" {
            help: "When this kube-apiserver's own events were last accepted here.",
            unit: "seconds since 1970",
            meaning: "Each kube-apiserver from Kubernetes 1.26 on updates its Lease `apiserver-…` \
                in `kube-system` every 10 s; the value is the time of the last such event. A \
                series ends after an hour without one. The series is missing if the audit policy \
                omits Lease updates; then nothing shows whether a kube-apiserver is silent.",
            action: "Compare each kube-apiserver's newest value across all relays, because it may \
                send to any of them. The `KubeAuditForwarderApiserverSilent` alert does this.",
        }
    }

    "Outputs"
    /// The metrics of one output.
    pub struct OutputMetrics [OUTPUT] {
        pub events: Counter = "output_events_total" {
            help: "Events acknowledged by the consumer, each counted once.",
            unit: "events",
            meaning: "An event that was sent twice counts once.",
            action: "If it does not rise while `output_backlog_events` grows, the consumer accepts \
                nothing: look at `output_errors_total`. If it rises but the consumer shows no \
                events, check the consumer's own filters and indexes.",
        }
        pub bytes: Counter = "output_bytes_total" {
            help: "Bytes sent to the consumer, including retries.",
            unit: "bytes",
            meaning: "Counted before TLS; for http after compression, for kafka before.",
            action: "If it grows much faster than `output_events_total`, the same events are sent \
                repeatedly: look at `output_errors_total`.",
        }
        pub errors: Each<AttemptError, Counter> = "output_errors_total" {
            help: "Failed attempts, by reason.",
            unit: "attempts",
            meaning: "A failed attempt loses nothing: the events stay in the queue and are sent \
                again.",
            action: "`resolve`: check the hostname and DNS. `connect`, `timeout`: the consumer is \
                down, or something on the network drops packets. If other events are delivered, \
                one event may be the reason: see `aside` in `/status`. `tls`: check the \
                certificate, name and CA. `closed`, `protocol`: check the protocol and port. \
                `status_4xx`: check the token, path and format. `status_429`, `status_5xx`: the \
                consumer is overloaded or broken. `item`: the consumer rejects individual events; `last_error` \
                in `/status` says why. `acknowledgement`: the consumer did not confirm accepted \
                events in time, or is behind a load balancer without sticky sessions. `check \
                --config FILE --connect` tries the connection by hand.",
        }
        pub aside: Gauge = "output_aside_events" {
            help: "Events set aside: the consumer accepts others, but not these.",
            unit: "events",
            meaning: "Such an event is no longer in the queue, does not delay others, and is \
                retried. The relay gives up on it after at least 8 refusals over a few seconds or, \
                if the consumer turns it down in another way, after \
                `rejected.after_server_errors`. It is not in `output_backlog_events`.",
            action: "`aside` in `/status` shows the position, `auditID` and size of the first one \
                at fault, and what the consumer did. The `KubeAuditForwarderEventsSetAside` alert \
                fires after 15 minutes.",
        }
        pub existing: Counter = "output_existing_events_total" {
            help: "Events that the consumer reported as already stored by an earlier attempt.",
            unit: "events",
            meaning: "They count in `output_events_total` too: the consumer has them. Only \
                consumers that recognise repeated events report them.",
            action: "A few after a restart or a broken connection are normal. If it keeps rising, \
                responses are lost or arrive too late: look at `output_errors_total`.",
        }
        pub retries: Counter = "output_retries_total" {
            help: "Delivery attempts after the first.",
            unit: "attempts",
            meaning: "A request that is sent to another address because the first failed or did \
                not respond counts too.",
            action: "If it rises steadily, look at `output_errors_total`. `timeout` means that the \
                consumer takes longer to respond than `timeouts.request`, or than 10 s if another \
                address may respond.",
        }
        pub up: Gauge = "output_up" {
            help: "1 if the consumer accepts events, 0 if it has accepted none that were tried.",
            unit: "1 or 0",
            meaning: "Absent before the first attempt, so an output that has had nothing to send \
                yet, or still collects its first events, is neither up nor down.",
            action: "`last_error` in `/status` says why it is down. The \
                `KubeAuditForwarderOutputDown` alert fires after five minutes.",
            is_state: true,
        }
        pub paused: Gauge = "output_paused" {
            help: "1 if the output is paused by the config, 0 if not.",
            unit: "1 or 0",
            meaning: "Nothing is sent, and its events wait in the queue (`pause = true`).",
            action: "Remove `pause` from the config before the queue is full. A paused output is \
                neither down nor late, so `KubeAuditForwarderOutputDown` and \
                `KubeAuditForwarderOutputLags` do not fire for it.",
            is_state: true,
        }
    } with {
        /// The metrics of the events that the consumer has not acknowledged yet.
        pub backlog: BacklogMetrics,
        /// The metrics of the fates of the output's events.
        pub fates: FateMetrics,
        /// The counter `error_total` of this output, which counts its lost events.
        pub lost: Counter,
        /// The log's notes about the events that this output has lost.
        pub losses: Losses,
    }

    "Outputs"
    /// The metrics of the events that the consumer of one output has not acknowledged yet.
    pub struct BacklogMetrics [OUTPUT] {
        pub bytes: Gauge = "output_backlog_bytes" {
            help: "Bytes of events not yet acknowledged by the consumer.",
            unit: "bytes",
            meaning: "The part of the queue that waits for this output.",
            action: "See `output_backlog_events`.",
        }
        pub events: Gauge = "output_backlog_events" {
            help: "Events not yet acknowledged by the consumer.",
            unit: "events",
            meaning: "A few are normal. It grows while the consumer is down or cannot keep up.",
            action: "If it grows, compare the rates of `event_total` and `output_events_total`. \
                Before you remove an output from the config, wait until this is 0: remaining \
                events count as lost.",
        }
        pub lag: Gauge = "output_lag_seconds" {
            help: "Age of the oldest event not yet acknowledged by the consumer.",
            unit: "seconds",
            meaning: "0 if nothing waits. A healthy output stays below a second, plus \
                `replay_window` where there is one.",
            action: "The consumer is down or too slow, or one of its addresses does not respond: \
                look at the status page. The `KubeAuditForwarderOutputLags` alert fires after five \
                minutes above `output_lag_max_seconds`.",
        }
        pub start: Gauge = "output_start_events" {
            help: "Backlog at startup. For an output that a reload added: the number of events \
                accepted before the reload, as a negative number.",
            unit: "events",
            meaning: "Makes the equation given for `event_total` balance for this output. It is \
                negative for an output that a reload has added.",
            action: "Nothing: it changes only when the output is added.",
        }
    }

    "Outputs"
    /// The metrics of the fates of one output's events.
    pub struct FateMetrics [OUTPUT] {
        pub delivery: Histogram = "output_delivery_seconds" {
            help: "Time from accepting a batch to its acknowledgement by the consumer.",
            unit: "seconds",
            meaning: "After an outage it shows how late the kept events are.",
            action: "Compare the outputs: if only one is slow, its consumer is slow. See also \
                `output_lag_seconds`.",
            buckets: &DELIVERY_SECONDS,
        }
        pub dead_letters: Counter = "dead_letter_events_total" {
            help: "Events written to the dead-letter files, by output.",
            unit: "events",
            meaning: "The consumer turned the events down while it accepted others, or they are \
                too long, or `retry.max_elapsed` has passed. They also count in `error_total`, \
                except events that an otlp receiver accepted in a request of which it rejected \
                others without saying which.",
            action: "Fix the consumer, then send the dead letters again with `replay`. `jq -r \
                .reason FILE` lists the reasons.",
        }
        pub filtered: Filtered<Counter> = "filtered_events_total" {
            help: "Events filtered out (dropped, duplicate) or changed (lowered, trimmed, redacted) by \
                an output's settings, by output and action.",
            unit: "events",
            meaning: "This is not an error. `dropped` and `duplicate` events were not sent. Events \
                with the other three actions were sent in modified form; one event may count under \
                several of them.",
            action: "If `dropped` is higher than expected, `policy explain` shows which rule \
                applies to an event. The `KubeAuditForwarderAllFiltered` alert fires if a filter \
                drops every event.",
        }
    } with {
        /// The delivery latencies of the last minutes, for `/status`.
        pub times: Arc<Mutex<RecentTimes>>,
    }

    "Outputs"
    /// The metrics of the settings of one output.
    pub struct SettingMetrics [OUTPUT] {
        pub required: Gauge = "output_required" {
            help: "1 if the output is required, 0 if its events may be dropped to make room.",
            unit: "1 or 0",
            meaning: "`output.required` in the config.",
            action: "Nothing: it changes only with the config. Alerts use it to ignore optional \
                outputs.",
            is_state: true,
        }
        pub lag_max: Gauge = "output_lag_max_seconds" {
            help: "Lag above which the output counts as late.",
            unit: "seconds",
            meaning: "30 s, plus the time for which the output normally holds or collects events: \
                `replay_window`, or `object_age` of `s3`. The relay and the alerts compare \
                `output_lag_seconds` with it.",
            action: "Nothing: it changes only with the config.",
            is_state: true,
        }
    }

    "Outputs"
    /// The metric of the addresses of one output.
    pub(super) struct AddressMetrics [OUTPUT] {
        pub addresses: AddressStates<Gauge> = "output_addresses" {
            help: "Addresses of the output, by state.",
            unit: "addresses",
            meaning: "`down` addresses are skipped while another one works. An `on_trial` address \
                accepts connections again, but has taken no events since it failed. An `unknown` \
                address has not been tried yet. All are 0 for outputs without addresses of their \
                own (`kafka`, `stdout`).",
            action: "`addresses` in `/status` names the address and its last error. The \
                `KubeAuditForwarderOutputAddressDown` alert fires after 10 minutes.",
            is_state: true,
        }
    }

    "Dead letters"
    /// The metric of the dead letters that were deleted to keep within `dead_letter.max_bytes`.
    pub struct DroppedLetters [] {
        pub events: Counter = "dead_letter_dropped_events_total" {
            help: "Events in the oldest dead-letter files, deleted to keep within dead_letter.max_bytes.",
            unit: "events",
            meaning: "These events can no longer be sent again.",
            action: "Replay dead letters sooner, find out why the consumer refuses so many, or \
                raise `dead_letter.max_bytes`.",
        }
    } with {
        /// The log's notes about deleted dead letters.
        pub losses: Losses,
    }

    "Certificates"
    /// The metrics of one certificate.
    pub(super) struct CertificateMetrics [PLACE, ROLE] {
        pub not_after: Gauge = "tls_certificate_expiry_timestamp_seconds" {
            help: "Expiry (notAfter) of the relay's own certificate, or of the one that the peer \
                presented last.",
            unit: "seconds since 1970",
            meaning: "`listener` with `server` and `output` with `client` are the relay's own \
                certificates. `output` with `server` and `listener` with `client` are the peer's, \
                from the last handshake. A series appears once a certificate is loaded or seen.",
            action: "Renew the certificate. The relay's own are read again when their files \
                change. The alerts `KubeAuditForwarderCertificateExpiresIn14Days` and \
                `KubeAuditForwarderCertificateExpiresIn3Days` fire before it expires.",
            is_state: true,
        }
    }

    "Config"
    /// The metrics of config reloads, by result.
    pub struct ReloadMetrics [] {
        pub count: ByResult<Counter> = "config_reload_total" {
            help: "Reloads of the config and of the files that it names, by result.",
            unit: "reloads",
            meaning: "A reload without changes counts too. After an `error`, the relay keeps its \
                previous config. A reload that could not bind an address is tried again, and \
                counts as one `error` until it succeeds.",
            action: "After an `error`, the log contains `config not reloaded` and lists each \
                problem with its line and key. Correct the file before the next restart: the relay \
                would not start with it.",
        }
        pub last: ByResult<Gauge> = "config_last_reload_timestamp_seconds" {
            help: "When the config was last reloaded, by result; 0: not since the start.",
            unit: "seconds since 1970",
            meaning: "If `error` is later than `success`, the file on disk is not what the relay \
                runs with.",
            action: "See `config_reload_total`. The `KubeAuditForwarderReloadFailed` alert fires \
                after two minutes.",
        }
    }

    "Evidence"
    /// The metrics of the evidence log. Without the section `[evidence]` all values stay 0.
    pub struct EvidenceMetrics [] {
        pub size: Gauge = "evidence_size" {
            help: "Entries of the evidence log.",
            unit: "entries",
            meaning: "Entries are ranges of events, starts, stops, reloads, losses and heartbeats. \
                The log is never truncated.",
            action: "If it stands still for longer than `evidence.heartbeat_interval`, look at \
                `evidence_errors_total` and at the log.",
        }
        pub checkpoint: Gauge = "evidence_last_checkpoint_timestamp_seconds" {
            help: "When the last checkpoint of the evidence was signed; 0: not since the start.",
            unit: "seconds since 1970",
            meaning: "Events that were accepted later are not proven yet.",
            action: "If it is older than `evidence.heartbeat_interval`, the log says why.",
        }
        pub errors: Each<EvidenceError, Counter> = "evidence_errors_total" {
            help: "Failed attempts to record evidence, by reason.",
            unit: "attempts",
            meaning: "Events are still forwarded. The queue keeps events without evidence until it \
                is full.",
            action: "`write` and `sign`: repair or free space on the queue's disk \
                (`queue.directory`), or fix what the log names. The \
                `KubeAuditForwarderEvidenceNotWritten` alert fires at once. `witness`: see \
                `evidence_witness_timestamp_seconds`. `rolled_back`: nothing more is signed; the \
                `KubeAuditForwarderEvidenceRolledBack` alert fires at once. `tampered`: somebody \
                has changed or removed files of the queue or of its evidence; the \
                `KubeAuditForwarderEvidenceTampered` alert fires at once.",
        }
    } with {
        pub(super) last_errors: Arc<Mutex<BTreeMap<&'static str, Instant>>>,
    }

    "Evidence"
    /// The metrics of one witness.
    pub struct WitnessMetrics [WITNESS] {
        pub last: Gauge = "evidence_witness_timestamp_seconds" {
            help: "When the witness last cosigned a checkpoint; 0: not since the start.",
            unit: "seconds since 1970",
            meaning: "The time comes from the witness's clock. The witness would notice if the log \
                were set back to before this time.",
            action: "If it stays behind `evidence_last_checkpoint_timestamp_seconds`, the log says \
                why. The `KubeAuditForwarderWitnessAway` alert fires about 25 minutes after the \
                last cosignature, or later if no events arrive.",
        }
    }

    "Taps"
    /// The metrics of taps, which show events to people.
    pub struct TapMetrics [] {
        pub taps: Gauge = "taps" {
            help: "Open taps: people who are watching the events sent.",
            unit: "taps",
            meaning: "At most 4. Always 0 without `admin.tap_token_file`. The log says who opens \
                and closes each.",
            action: "If nobody on your team is watching, change the token: this ends the open \
                taps.",
        }
        pub shown: Counter = "tap_shown_events_total" {
            help: "Events that were written to taps.",
            unit: "events",
            meaning: "An event that two taps show counts twice.",
            action: "Nothing: taps take nothing from the outputs.",
        }
        pub skipped: Counter = "tap_skipped_events_total" {
            help: "Events that taps did not show: over the sample or a tap's limits, or \
                unreadable.",
            unit: "events",
            meaning: "The outputs have delivered these events. The tap reports how many, and why.",
            action: "Nothing. For fewer events, use `--match` or `--output`; to see more of them, \
                raise `--sample`.",
        }
    }

    "The program"
    /// The metrics of the log, of the memory limit and of the last kill.
    pub(super) struct ProgramMetrics [] {
        pub(super) log_dropped: Counter = "log_dropped_lines_total" {
            help: "Log lines dropped because stderr is read too slowly or not at all.",
            unit: "lines",
            meaning: "A slow log never holds up events: its lines are dropped instead. The log \
                says how many are missing once it is read again.",
            action: "Fix the program that reads stderr, or set a higher `log.level` to write fewer \
                lines.",
        }
        pub memory_limit: Gauge = "memory_limit_bytes" {
            help: "Memory limit of the process, set by its cgroup or container; 0: no limit.",
            unit: "bytes",
            meaning: "Above it the kernel kills the process.",
            action: "Nothing: it changes only with the container's settings. The \
                `KubeAuditForwarderMemoryNearLimit` alert compares it with \
                `process_resident_memory_bytes`.",
        }
        pub last_killed: Gauge = "last_killed_timestamp_seconds" {
            help: "When a process was last killed before it could shut down, within 24 hours; 0: \
                none known.",
            unit: "seconds since 1970",
            meaning: "Known to a few seconds, from a file in `process.state_directory`, by default \
                `queue.directory`; 0 without either. It is unknown what a killed process had in \
                memory, and how much of that was accepted.",
            action: "`kubectl describe pod` shows the reason: usually the memory limit \
                (`OOMKilled`) or a probe. The `KubeAuditForwarderKilled` alert fires at once.",
        }
    }

    "The program"
    /// The metric of the build that runs.
    pub struct BuildMetrics [VERSION, REVISION] {
        pub info: Gauge = "build_info" {
            help: "Always 1; the labels contain the version and revision of this build.",
            unit: "always 1",
            meaning: "One series for each relay that Prometheus reaches.",
            action: "If there are fewer series than replicas, a relay is gone, or Prometheus can't \
                reach it. See the alerts `KubeAuditForwarderReplicaGone`, \
                `KubeAuditForwarderRelayDown` and `KubeAuditForwarderAbsent`.",
        }
    }
}

const PROCESS: &[Metric] = &[
    Metric {
        name: "process_cpu_seconds_total",
        kind: Kind::Counter,
        help: "Total user and system CPU time spent in seconds.",
        unit: "seconds",
        meaning: "The rate is the number of cores in use.",
        action: "Near the container's CPU limit, the relay is throttled: raise the limit.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_open_fds",
        help: "Number of open file descriptors.",
        unit: "descriptors",
        meaning: "Connections, queue files, and a few for the runtime.",
        action: "Near `process_max_fds` new connections fail: lower `limits.max_connections`, or \
            raise the limit of the process.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_max_fds",
        help: "Maximum number of open file descriptors.",
        unit: "descriptors",
        meaning: "The limit of `process_open_fds`.",
        action: "Nothing: it changes only with the container's settings.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_virtual_memory_bytes",
        help: "Virtual memory size in bytes.",
        unit: "bytes",
        meaning: "Address space, most of which is not backed by memory.",
        action: "Nothing: `process_resident_memory_bytes` is the one that counts.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_virtual_memory_max_bytes",
        help: "Maximum amount of virtual memory available in bytes.",
        unit: "bytes",
        meaning: "The `RLIMIT_AS` limit of the process.",
        action: "Nothing: it changes only with the settings of the process.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_resident_memory_bytes",
        help: "Resident memory size in bytes.",
        unit: "bytes",
        meaning: "Memory that the process uses. Compare with `memory_limit_bytes`.",
        action: "Look at `in_flight_bytes`, `connections` and, with a queue in memory, at \
            `queue_bytes`. The `KubeAuditForwarderMemoryNearLimit` alert fires above 90% of the \
            limit.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_start_time_seconds",
        help: "Start time of the process since unix epoch in seconds.",
        unit: "seconds since 1970",
        meaning: "Counters start at 0 when the process starts.",
        action: "If it changes, the relay was restarted: look at the previous log for the reason.",
        ..OF_PROCESS
    },
    Metric {
        name: "process_threads",
        help: "Number of OS threads in the process.",
        unit: "threads",
        meaning: "Workers of the runtime, threads for blocking work, and a few of the relay.",
        action: "A number that grows without end is a bug in the relay: report it.",
        ..OF_PROCESS
    },
];

const OF_PROCESS: Metric = Metric { kind: Kind::Gauge, ..DEFAULTS };

pub(crate) fn families() -> impl Iterator<Item = (&'static str, &'static [Metric])> {
    FAMILIES.iter().copied().chain([("The process", PROCESS)])
}

/// Returns every metric that this crate registers: all but those of the process.
pub(crate) fn own() -> impl Iterator<Item = &'static Metric> {
    FAMILIES.iter().flat_map(|(_, metrics)| metrics.iter())
}

pub(crate) fn process() -> impl Iterator<Item = &'static Metric> {
    PROCESS.iter()
}
