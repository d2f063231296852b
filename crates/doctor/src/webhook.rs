//! Tries the audit webhook from this machine: its URL, its certificate, and whether it leads to one
//! of the relays.
//!
//! The request is an EventList without events. A relay answers it with 200, counts the request, and
//! counts no event.

use std::time::Duration;

use futures_util::future::join_all;

use super::counts::total;
use super::judge::{Cause, Kind, Part, time};
use super::remedy;
use super::sample::{relay, settle};
use client::ask::Target;
use telemetry::status::thresholds;

const EMPTY: &str = "{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"items\":[]}";

/// The longest time until a relay counts a request that it has answered.
const COUNTED: Duration = Duration::from_secs(3);

const PAUSE: Duration = Duration::from_millis(200);

/// Sends the request to the webhook, and returns the findings. `is_insecure`: its certificate is
/// not verified. `relays` has each relay with the path of its `/status`; `now` is the time in
/// seconds since 1970.
pub async fn check(
    webhook: &Target,
    is_insecure: bool,
    relays: &[(Target, String)],
    now: f64,
) -> Vec<Cause> {
    let found = tried(webhook, is_insecure, relays, now).await;
    found.into_iter().map(|cause| cause.about(Part::Webhook)).collect()
}

async fn tried(
    webhook: &Target,
    is_insecure: bool,
    relays: &[(Target, String)],
    now: f64,
) -> Vec<Cause> {
    let place = format!("the webhook {webhook}");
    let before = requests(relays).await;
    let mut found = Vec::new();
    if webhook.has_query() {
        found.push(Cause::new(
            Kind::Warning,
            &place,
            "kube-apiserver drops the query of this URL, and so does doctor",
            "Remove the query from the server in --audit-webhook-config-file: its contents, such \
             as a token, never reach the relay",
        ));
    }
    // client-go removes the query and empty segments (`rest.NewRESTClient`, `rest.NewRequest`).
    let segments: Vec<&str> = webhook.base().split('/').filter(|it| !it.is_empty()).collect();
    let path = format!("/{}?timeout=30s", segments.join("/"));
    let not_after = match webhook.post(&path, EMPTY).await {
        Ok(not_after) => not_after,
        Err(error) => {
            let advice = remedy::of_webhook(error.fault);
            found.push(Cause::new(Kind::Unknown, place, error.to_string(), advice));
            return found;
        }
    };
    if is_insecure && webhook.is_https() {
        found.push(Cause::new(
            Kind::Warning,
            &place,
            "nobody checks its certificate: insecure-skip-tls-verify",
            "Give kube-apiserver the CA of the relay's certificate instead, as \
             certificate-authority-data",
        ));
    } else if let Some(at) = not_after {
        found.push(certificate(&place, at, now));
    }
    let reached_by = |after: &Vec<Option<u64>>| {
        let mut counts = relays.iter().zip(before.iter().zip(after));
        let reached = counts.find(|(_, (before, after))| before.is_some() && after > before);
        reached.map(|((relay, _), _)| relay)
    };
    // A relay may count a request a moment after its response.
    let after =
        settle(COUNTED, PAUSE, async || requests(relays).await, |it| reached_by(it).is_some());
    let after = after.await;
    let reached = reached_by(&after);
    found.push(match reached {
        Some(relay) => Cause::new(Kind::Ok, place, format!("leads to the relay {relay}"), ""),
        None => Cause::new(
            Kind::Unknown,
            place,
            "responds, but none of the relays has counted the request",
            "Name every relay with --relay, or correct the URL in --audit-webhook-config-file",
        ),
    });
    found
}

/// Returns a cause about a certificate that expires at `not_after`, in seconds since 1970.
#[allow(clippy::cast_precision_loss, reason = "a time in seconds is far below 2^52")]
fn certificate(place: &str, not_after: i64, now: f64) -> Cause {
    let at = not_after as f64;
    let what = format!("its certificate and CA are valid until {}", time(at));
    let (warning_days, _) = thresholds::CERTIFICATE_DAYS;
    match at - now < warning_days * 24.0 * 3600.0 {
        true => Cause::new(
            Kind::Warning,
            place,
            what,
            "Renew the certificate: see the runbook KubeAuditForwarderCertificateExpires",
        ),
        false => Cause::new(Kind::Ok, place, what, ""),
    }
}

/// Returns the number of requests that each relay has answered. `None` for a relay that can't be
/// read.
async fn requests(relays: &[(Target, String)]) -> Vec<Option<u64>> {
    let asked = relays.iter().map(|(target, path)| async move {
        Some(total(relay(target, path).await.ok()?.requests().into_values()))
    });
    join_all(asked).await
}
