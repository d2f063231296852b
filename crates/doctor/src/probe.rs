//! Makes kube-apiserver generate a few audit events, and waits until it has counted them and the
//! relays have received them.
//!
//! The requests are GETs for an object that does not exist. They show whether the audit policy is
//! active and whether events arrive. Metrics do not identify single events, so other events may be
//! mistaken for those of the probe.

use std::cell::Cell;
use std::time::Duration;

use super::counts::total;
use super::judge::{Cause, Kind};
use super::sample::{Apiservers, Fault, relay, settle};
use client::ask::{AskFault, Target};

const REQUESTS: u64 = 5;

/// The longest time for the events to arrive. kube-apiserver collects a batch for at most 30 s.
const PATIENCE: Duration = Duration::from_secs(45);

const PAUSE: Duration = Duration::from_secs(1);

/// Sends the requests, and returns the fate of their events. `relays` has each relay with the path
/// of its `/status`.
pub async fn check(server: &Target, relays: &[(Target, String)]) -> Cause {
    const PLACE: &str = "the probe";
    let unknown = |what: String, advice: &str| Cause::new(Kind::Unknown, PLACE, what, advice);
    let before = match (generated(server).await, accepted(relays).await) {
        (Ok(generated), Ok(accepted)) => (generated, accepted),
        (Err(fault), _) | (_, Err(fault)) => {
            let advice = "Make sure doctor can read it, then use --probe again";
            return unknown(format!("not sent, because {fault} could not be read"), advice);
        }
    };
    let name = format!("kube-audit-forwarder-doctor-{:016x}", fastrand::u64(..));
    let path = format!("{}/api/v1/namespaces/default/configmaps/{name}", server.base());
    for _ in 0..REQUESTS {
        // A refusal is audited like a success. Without a status, there was no request.
        if let Err(error) = server.get(&path, |_| Ok(())).await
            && !matches!(error.fault, AskFault::Status(_))
        {
            return unknown(format!("not sent: {error}"), "Check the server in --kubeconfig");
        }
    }
    // Each sum is read until it has risen once.
    let is_generated = Cell::new(false);
    let arrived = async || {
        is_generated.set(is_generated.get() || has_risen(generated(server).await, before.0));
        is_generated.get() && has_risen(accepted(relays).await, before.1)
    };
    if settle(PATIENCE, PAUSE, arrived, |arrived| *arrived).await {
        let what = format!("{REQUESTS} requests were audited, and as many events arrived");
        return Cause::new(Kind::Ok, PLACE, what, "");
    }
    let seconds = PATIENCE.as_secs();
    match is_generated.get() {
        false => unknown(
            format!("{REQUESTS} requests, but not an event for each of them within {seconds} s"),
            "Check that kube-apiserver has --audit-policy-file, and that the policy audits a get \
             of configmaps",
        ),
        true => unknown(
            format!("{REQUESTS} events generated, but fewer received within {seconds} s"),
            "Check the URL in --audit-webhook-config-file, and see the runbook AuditWebhookError",
        ),
    }
}

/// Returns `true` if a sum has risen by at least the number of requests.
fn has_risen(sum: Result<u64, String>, before: u64) -> bool {
    sum.is_ok_and(|sum| sum >= before.saturating_add(REQUESTS))
}

/// Returns the number of events that all kube-apiservers have generated. The error names one that
/// can't be read, and the reason.
async fn generated(server: &Target) -> Result<u64, String> {
    let first = Apiservers::first(Vec::new(), Some(server.clone()), None).await;
    let (each, ()) = first.second(async || ()).await;
    let each = each.into_iter().map(|it| {
        let failed = |fault: &str| format!("kube-apiserver {} ({fault})", it.source);
        if let Some(fault) = &it.fault {
            return Err(failed(&fault.what));
        }
        let generated = it.counts.as_ref().and_then(|counts| counts.generated);
        generated.ok_or_else(|| failed("apiserver_audit_event_total is missing"))
    });
    each.collect::<Result<Vec<u64>, String>>().map(total)
}

/// Returns the number of events that all relays have accepted. The error names one that can't be
/// read, and the reason.
async fn accepted(relays: &[(Target, String)]) -> Result<u64, String> {
    let mut sum = 0;
    for (target, path) in relays {
        let failed = |fault: Fault| format!("relay {target} ({})", fault.what);
        sum = total([sum, relay(target, path).await.map_err(failed)?.accepted()]);
    }
    Ok(sum)
}
