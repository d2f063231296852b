//! The keys of `type = "http"`.

use config::{Compression, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::Table;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The consumer's URLs, and the settings of requests (headers, TLS, compression, …).
    pub client: HttpClient,
    /// The format of the body of each request.
    pub format: HttpFormat,
    /// `true`: an answer with a status 2xx is an acknowledgement even if it is a web page.
    pub accept_html: bool,
}

/// The values of the key `format` of an `http` output: the format of the body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpFormat {
    /// One JSON object `{"kind":"EventList",…,"items":[…]}` with all events, as kube-apiserver
    /// sends it.
    EventList,
    /// One line for each event: the document, unchanged.
    Ndjson,
    /// One JSON array with all events: `[…]`.
    JsonArray,
    /// One line for each event, as kube-apiserver writes it to its own audit.log, with `kind` and
    /// `apiVersion`.
    AuditLog,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "http";
    const SAMPLE: &'static str = "tls = {}\nbasic_auth = {}";
    const MEMORY: u64 = 4 * (4 << 20);

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys::of_requests(Compression::None, true);
        let (client, (format, accept_html)) = HttpClient::read(t, &keys, |t| {
            let format = t.choice(
                "format",
                &[
                    ("event_list", HttpFormat::EventList),
                    ("ndjson", HttpFormat::Ndjson),
                    ("json_array", HttpFormat::JsonArray),
                    ("audit_log", HttpFormat::AuditLog),
                ],
                Some(HttpFormat::EventList),
                "request body: an EventList, JSON lines, a JSON array, or lines as in audit.log",
            );
            let meaning = "`true`: a 2xx with type text/html is an acknowledgement; `false`: it \
                           counts as a sign-in page and fails";
            (format, t.flag("accept_html", false, meaning))
        });
        Some(Self { client: client?, format: format?, accept_html })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn carries_checkpoints(&self) -> bool {
        matches!(self.format, HttpFormat::Ndjson | HttpFormat::AuditLog)
    }
}
