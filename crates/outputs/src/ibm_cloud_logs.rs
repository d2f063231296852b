//! `type = "ibm_cloud_logs"`: the ingestion API of IBM Cloud Logs. The status of an answer is about
//! the whole request.
//!
//! A request is a JSON array with a record for each event. The event itself is the record's `text`,
//! byte for byte. An answer with a status 2xx and a readable body acknowledges the request, unless
//! it is a web page. A request that is sent again, because its answer was lost, is stored again:
//! records have no ID that the API could recognise.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{StatusCode, header};

use super::event_fields::EventFields;
use super::event_time::stage_time;
use super::http::HttpConnector;
use super::http::api::{
    Api, Call, Encoded, Outcome, Reply, RequestHead, Sent, TestRequest, body_for, write_events,
};
use super::http::service::Service;
use super::iam;
use super::iam::{Credentials, Iam, IamSettings};
use super::setup::{IntoConnector, Setup};
use audit::time::nanos;
use config::{BatchBytes, Compression, HttpClient, HttpKeys, OutputSettings, Target};
use config_table::table::{TABLE, Table, optional, required, whole};
use delivery::endpoints::Probed;
use delivery::failure::Failure;
use delivery::prepared::Connector;
use queue::{Batch, Identity, Take};

/// The maximum bytes of a request, from the documentation of the API.
const REQUEST_BYTES_MAX: u64 = 2_000_000;

/// The maximum characters of `application_name`, of `subsystem_name` and of a profile's ID.
const NAME_CHARS_MAX: usize = 256;

const ANSWER_BYTES: usize = 64 * 1024;

const UNAUTHORIZED: &str = "the IAM token is not accepted";

const FORBIDDEN: &str = "the service ID or trusted profile needs the role Sender for this instance";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    client: HttpClient,
    credentials: Credentials,
    iam_url: String,
    application_name: String,
    subsystem_name: String,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "ibm_cloud_logs";
    const SAMPLE: &'static str = "tls = {}\ntrusted_profile = {}";
    const MEMORY: u64 = 4 * 2_000_000;
    const BATCH_BYTES: BatchBytes =
        BatchBytes { default: REQUEST_BYTES_MAX, max: Some(REQUEST_BYTES_MAX) };

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let keys = HttpKeys::of_requests(Compression::None, false);
        let (client, (api_key, iam_url, application_name, subsystem_name)) =
            HttpClient::read(t, &keys, |t| {
                let meaning = "file with the API key of a service ID; use either this or \
                               `trusted_profile`";
                let key = optional("api_key_file", "path", "none", meaning);
                let file = t.file(key, config::Content::Token);
                let meaning = "IAM URL for access tokens; its certificate is verified against \
                               `tls.ca`, or the system's CAs";
                let iam = t.word_or(
                    ("iam_url", "URL", meaning),
                    "https://iam.cloud.ibm.com",
                    None,
                    iam_url,
                );
                let meaning = "applicationName in each record";
                let application = t.word_or(
                    ("application_name", "string", meaning),
                    "kubernetes-audit",
                    None,
                    name,
                );
                let meaning = "subsystemName in each record";
                let subsystem =
                    t.word_or(("subsystem_name", "string", meaning), "kube-apiserver", None, name);
                (file, iam, application, subsystem)
            });
        if iam_url.as_ref().is_some_and(|url| url.starts_with("http:")) {
            t.warn(
                "iam_url",
                "is not https://, so anyone on the network path can read the API key and the \
                 tokens",
            );
        }
        let meaning = "trusted profile that trusts the pod's service account; use either this or \
                       `api_key_file`";
        let profile = t
            .optional_section(optional("trusted_profile", TABLE, "none", meaning), trusted_profile);
        match (t.is_set("api_key_file"), t.is_set("trusted_profile")) {
            (true, true) => {
                t.error("trusted_profile", "conflicts with api_key_file: set only one of the two");
            }
            (false, false) => {
                t.error("api_key_file", "is required: a path; or set trusted_profile instead");
            }
            (true, false) | (false, true) => {}
        }
        let credentials = match whole(profile)? {
            Some(profile) => Some(profile),
            None => api_key.map(|file| Credentials::ApiKey { file }),
        };
        Some(Self {
            client: client?,
            credentials: credentials?,
            iam_url: iam_url?,
            application_name: application_name?,
            subsystem_name: subsystem_name?,
        })
    }

    fn targets(&self) -> Vec<Target> {
        self.client.targets()
    }

    fn event_limit(&self) -> Option<&'static str> {
        Some(
            "IBM Cloud Logs accepts records of up to 32 KB, and does not document what happens to \
             larger ones. Set it to \"30KiB\" or less",
        )
    }
}

/// Reads the section `trusted_profile`. `None` if a key is missing or wrong.
fn trusted_profile(t: &mut Table<'_, '_>) -> Option<Credentials> {
    let key = required("id", "string", "profile ID, such as Profile-…");
    let id = t.word(key, |text| config::printable(text, NAME_CHARS_MAX));
    let meaning = "file with the pod's projected service account token";
    let token_file = t.file(required("token_file", "path", meaning), config::Content::Token);
    Some(Credentials::TrustedProfile { id: id?, token_file: token_file? })
}

fn iam_url(text: &str) -> Result<String, String> {
    match config::url(text)?.query() {
        Some(_) => Err("has a query, allowed: https://HOST[:PORT]".to_owned()),
        None => Ok(text.to_owned()),
    }
}

fn name(text: &str) -> Result<String, String> {
    if text.trim().is_empty()
        || text.chars().count() > NAME_CHARS_MAX
        || text.contains(char::is_control)
    {
        return Err(format!(
            "is not a name, allowed: 1 to {NAME_CHARS_MAX} characters without control characters"
        ));
    }
    Ok(text.to_owned())
}

impl Settings {
    pub(crate) fn api(&self, setup: &Setup<'_>) -> Arc<dyn Api> {
        let iam = iam::shared(IamSettings {
            credentials: self.credentials.clone(),
            service: Service::beside(&self.client, &self.iam_url, setup.output),
        });
        let names = [&self.application_name, &self.subsystem_name]
            .map(|name| serde_json::Value::from(name.as_str()).to_string());
        let [application, subsystem] = names;
        let head = format!(
            "{{\"applicationName\":{application},\"subsystemName\":{subsystem},\"severity\":"
        );
        Arc::new(Singles { head, iam })
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        HttpConnector::boxed(&self.client, self.api(setup), setup)
    }
}

/// The endpoint of the API for an array of records.
struct Singles {
    /// The beginning of each record, up to the value of `severity`.
    head: String,
    iam: Arc<Iam>,
}

/// Returns the severity of an event, by the response's code: 5 (error) from 500 on, 4 (warning)
/// from 400 to 499, otherwise 3 (information).
fn severity(event: &[u8]) -> u8 {
    match EventFields::of(event).code {
        Some(500..) => 5,
        Some(400..) => 4,
        Some(_) | None => 3,
    }
}

impl Api for Singles {
    fn path(&self) -> &str {
        "/logs/v1/singles"
    }

    fn content_type(&self) -> &'static str {
        "application/json"
    }

    /// Checks the file of the credentials. The token changes over time, so its header is one of
    /// [`Api::request_headers`].
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        self.iam.check().map(|()| None)
    }

    fn begin(&self) {
        self.iam.begin();
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.iam.ready().boxed()
    }

    fn request_headers(&self, _: &Call<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
        Ok(vec![(header::AUTHORIZATION, self.iam.newest()?)])
    }

    fn probe(&self) -> BoxFuture<'_, Probed> {
        self.iam.probe().map(|probed| vec![probed]).boxed()
    }

    fn answer_bytes(&self) -> usize {
        ANSWER_BYTES
    }

    /// Returns a request with an array without records. The answer shows whether the token may send
    /// events.
    fn test_requests(&self) -> Vec<TestRequest> {
        let head = RequestHead::post(self.path(), self.content_type());
        vec![TestRequest { head, body: b"[]" }]
    }

    /// The API does not document its answer to an array without records. A refusal of the array in
    /// JSON shows that the token was accepted.
    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        let body = reply.body.unwrap_or_default();
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
        match reply.status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY if is_json => Ok(()),
            StatusCode::UNAUTHORIZED => Err(UNAUTHORIZED.to_owned()),
            StatusCode::FORBIDDEN => Err(FORBIDDEN.to_owned()),
            _ => self.tested_by_status(reply),
        }
    }

    /// Accepts any readable body except a web page, because the API documents no body of its
    /// answers.
    fn acknowledged(&self, reply: &Reply<'_>) -> Result<(), String> {
        match reply.body {
            Some(_) if !reply.is_page() => Ok(()),
            Some(_) | None => Err("this is not a response from IBM Cloud Logs".to_owned()),
        }
    }

    fn encode(&self, batch: Batch, _: Identity, max_bytes: u64) -> Encoded {
        let mut body = body_for(&batch);
        // The closing bracket of the array needs one byte.
        let room = Take { bytes: max_bytes.saturating_sub(1), events: u64::MAX };
        let events = write_events(&batch, room, &mut body, |event, _, received, body| {
            body.push(if body.is_empty() { b'[' } else { b',' });
            // The time of a record is the time of the event's stage. If the event has none, it is
            // the time of acceptance.
            let time = stage_time(event).and_then(nanos);
            let millis = time.map_or(received, |time| time / 1_000_000);
            body.extend_from_slice(self.head.as_bytes());
            let severity = severity(event);
            let middle = format!("{severity},\"timestamp\":{millis},\"text\":");
            body.extend_from_slice(middle.as_bytes());
            body.extend_from_slice(event);
            body.push(b'}');
        });
        body.push(b']');
        Encoded::new(body, events)
    }

    fn judge(&self, reply: Reply<'_>, _sent: &Sent) -> Outcome {
        let status = reply.status;
        if status.is_success() {
            self.iam.accepted();
        }
        let Outcome::Failed(mut failure) = reply.by_status else { return reply.by_status };
        if status == StatusCode::UNAUTHORIZED {
            self.iam.refused();
            failure.message.push_str(&format!(": {UNAUTHORIZED}"));
        } else if status == StatusCode::FORBIDDEN {
            failure.message.push_str(&format!(": {FORBIDDEN}"));
        }
        Outcome::Failed(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_severity_follows_from_the_code_of_the_response() {
        for (event, wanted) in [
            (r#"{"a":1}"#, 3),
            (r#"{"responseStatus":{"metadata":{},"code":200}}"#, 3),
            (r#"{"responseStatus":{"code":399}}"#, 3),
            (r#"{"responseStatus":{"code":400}}"#, 4),
            (r#"{"responseStatus":{"code":499},"stage":"x"}"#, 4),
            (r#"{"responseStatus":{"code":500}}"#, 5),
            (r#"{"responseStatus":{"code":2147483647}}"#, 5),
            (r#"{"responseStatus":{"code":99999999999}}"#, 5),
        ] {
            assert_eq!(severity(event.as_bytes()), wanted, "{event}");
        }
    }
}
