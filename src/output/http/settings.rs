//! The keys of `type = "http"`.

use std::time::Duration;

use crate::config::Compression;
use crate::config::HttpClient;
use crate::config::HttpKeys;
use crate::config::OutputSettings;
use crate::config::Target;
use crate::config::table::Table;

/// The keys of `type = "http"`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The consumer's URLs, and how requests are made.
    pub(crate) client: HttpClient,
    /// The shape of a request's body.
    pub(crate) format: HttpFormat,
}

/// `format` of http.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpFormat {
    /// `{"kind":"EventList",…,"items":[…]}`, as kube-apiserver sends it.
    EventList,
    /// Each event as a line, as it was received.
    Ndjson,
    /// `[…]`.
    JsonArray,
    /// Each event as a line of kube-apiserver's audit.log.
    AuditLog,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "http";
    const SAMPLE: &'static str = "tls = {}\nbasic_auth = {}";

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys { compression: Compression::None, authorization: true };
        let (client, format) = HttpClient::read(t, &keys, |t| {
            t.choice(
                "format",
                &[
                    ("event_list", HttpFormat::EventList),
                    ("ndjson", HttpFormat::Ndjson),
                    ("json_array", HttpFormat::JsonArray),
                    ("audit_log", HttpFormat::AuditLog),
                ],
                Some(HttpFormat::EventList),
                "body of a request: as kube-apiserver sends it, lines, an array, or the lines of audit.log",
            )
        });
        Some(Self { client: client?, format: format? })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn final_after(&self) -> Option<(&'static str, Duration)> {
        None
    }
}
