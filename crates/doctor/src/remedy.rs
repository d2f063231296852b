//! The advice about a loss, a refusal, or an unreachable webhook.

use super::counts::{LOG_PLUGIN, WEBHOOK_PLUGIN};
use super::sample::Change;
use client::ask::AskFault;

/// Returns the cause and the remedy if a kube-apiserver has lost events although none of its
/// attempts has failed. `is_certain` is `false` if the address of its webhook is only a guess.
pub fn of_encoding(is_certain: bool) -> String {
    let cause = match is_certain {
        true => {
            "doctor has found a cause: none of its attempts has failed, so kube-apiserver could \
             not encode a batch, and never sent it"
        }
        false => {
            "kube-apiserver gave up after five attempts or, more likely, could not encode a batch, \
             and never sent it: none of its requests to a webhook has failed (--webhook FILE makes \
             this certain)"
        }
    };
    format!(
        "{cause}. One event that it can't marshal, such as that of a PATCH whose body is not JSON, \
         costs the whole batch, and its log names the events (Error in audit plugin 'webhook'). \
         Update kube-apiserver (kubernetes#139419); until then, audit patches at the level \
         Metadata, or set --audit-webhook-truncate-enabled, so that only this event is lost. Its \
         own audit log has the other events: `replay` sends them. See the runbook AuditWebhookError"
    )
}

/// Returns the remedy for a kube-apiserver that can't be read or compared.
pub fn of_apiserver(change: Option<Change>) -> &'static str {
    match change {
        None => {
            "Check the option --apiserver or --kubeconfig, and that the address can be reached \
             from here"
        }
        Some(Change::Restarted) => {
            "Run the command again. No counter shows the events that the old process held when it \
             ended: compare the consumer's events with the audit log of kube-apiserver"
        }
        Some(Change::Left) => {
            "Look at this kube-apiserver first: one that fails or shuts down is removed from the \
             endpoints of the Service kubernetes"
        }
        Some(Change::Joined) => "Run the command again, so that it is read twice",
    }
}

/// Returns the remedy for events that this plugin of kube-apiserver has lost.
pub fn of_plugin(plugin: &str) -> &'static str {
    match plugin {
        "buffered" => {
            "kube-apiserver's buffer was full: raise --audit-webhook-batch-buffer-size (10000 by \
             default) and --audit-webhook-batch-throttle-qps (10 by default), and see the runbook \
             AuditWebhookError"
        }
        WEBHOOK_PLUGIN => {
            "kube-apiserver gave up after five attempts: check that the relays can be reached at \
             the URL in --audit-webhook-config-file and respond in time. If its attempts have not \
             failed, one event that it can't marshal has cost a whole batch. See the runbook \
             AuditWebhookError"
        }
        "truncate" => {
            "The events were too large even without their bodies, or kube-apiserver could not \
             encode them: raise --audit-webhook-truncate-max-event-size, or audit patches at the \
             level Metadata; see the runbook AuditWebhookError"
        }
        LOG_PLUGIN => {
            "The webhook has not lost these: check --audit-log-path and the disk of kube-apiserver"
        }
        _ => {
            "Look for the name of the plugin in kube-apiserver's log, and see the runbook \
             AuditWebhookError"
        }
    }
}

/// Returns the remedy for requests that a relay has rejected for this reason.
pub fn of_reason(reason: &str) -> &'static str {
    match reason {
        "queue_full" => {
            "Raise queue.max_bytes, or fix the output that holds up the queue; see the runbook \
             KubeAuditForwarderSendersWait"
        }
        "in_flight_full" => {
            "Raise limits.max_in_flight; see the runbook KubeAuditForwarderSendersWait"
        }
        "timeout" | "disk" | "delivery_timeout" => "See the runbook KubeAuditForwarderSendersWait",
        "too_large" => {
            "Raise the limit that last_rejected in /status shows (usually limits.max_body) now, \
             because kube-apiserver drops such a batch after five attempts; see the runbook \
             KubeAuditForwarderBatchTooLarge"
        }
        "shutting_down" => "A restart causes this; nothing to do",
        "unauthorized" => {
            "The bearer token is missing or wrong: the user in kube-apiserver's \
             --audit-webhook-config-file needs the token of listener.bearer_token_file; see the \
             runbook KubeAuditForwarderRequestsRejected"
        }
        "not_found" => {
            "The path of the URL is wrong: the server in kube-apiserver's \
             --audit-webhook-config-file needs listener.path_prefix; see the runbook \
             KubeAuditForwarderRequestsRejected"
        }
        _ => "See the runbook KubeAuditForwarderRequestsRejected",
    }
}

/// Returns the remedy for an unreachable webhook.
pub fn of_webhook(fault: AskFault) -> &'static str {
    match fault {
        AskFault::Issuer => {
            "The certificate-authority in the file of --audit-webhook-config-file did not sign the \
             relay's certificate: put the right CA into that file, or set listener.tls.certificate \
             to a certificate from this CA"
        }
        AskFault::Name => {
            "The relay's certificate (listener.tls.certificate) does not contain the URL's host: \
             reissue it with that host in its subjectAltName, or use a name that it contains"
        }
        AskFault::Time => {
            "The relay's certificate (listener.tls.certificate) is not valid now: renew it"
        }
        AskFault::NoTls => {
            "The server does not speak TLS: the URL needs http://, or the relay needs listener.tls"
        }
        AskFault::NoAddress => {
            "The name in the URL of --audit-webhook-config-file cannot be resolved: correct it, or \
             use an address"
        }
        AskFault::NoConnection => {
            "Nothing responds at the address in --audit-webhook-config-file: check that a relay \
             runs there, and that no firewall or NetworkPolicy is in between. kube-apiserver may \
             be in a different network than doctor"
        }
        AskFault::Status(401) => of_reason("unauthorized"),
        AskFault::Status(404) => of_reason("not_found"),
        AskFault::Status(_) | AskFault::Other => {
            "Check server, certificate-authority and the user of the file in \
             --audit-webhook-config-file, and whether the URL can be reached from here at all: \
             kube-apiserver may be in another network"
        }
    }
}
