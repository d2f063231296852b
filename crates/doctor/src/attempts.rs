//! The attempts of kube-apiserver to reach its audit webhook, among all its requests.
//!
//! kube-apiserver counts its requests by host, and does not say which host is the audit webhook.
//! Other webhooks get POSTs too, and kube-apiserver sends requests to itself.

use super::address;
use super::address::Address;
use super::counts::{ApiserverCounts, ByLabel, WEBHOOK_PLUGIN, sums, total};
use super::sample::Sampled;

/// Returns the host of the audit webhook, as the metrics name it, and the POSTs to it by status.
/// `None` without such POSTs, or if the address is unknown and several hosts get POSTs, such as
/// admission webhooks. kube-apiserver itself counts as one of these hosts only if no other host
/// gets POSTs.
pub fn webhook_posts(
    counts: &ApiserverCounts,
    address: Option<&Address>,
) -> Option<(String, ByLabel)> {
    let hosts: Vec<&String> = match address {
        Some(address) => counts.posts.keys().filter(|label| address.is(label)).collect(),
        None => others(counts),
    };
    let label = *hosts.first()?;
    let is_one = address.is_some() || hosts.iter().all(|other| address::is_same(label, other));
    let posts = sums(hosts.iter().filter_map(|label| counts.posts.get(*label)));
    is_one.then(|| (label.clone(), posts))
}

/// Returns `true` if kube-apiserver has sent POSTs to itself, and to no webhook.
pub fn only_own(counts: &ApiserverCounts) -> bool {
    !counts.posts.is_empty() && others(counts).is_empty()
}

/// Returns the hosts that get POSTs, except kube-apiserver itself. If no other one remains, returns
/// the hosts that may be webhooks on the same machine, which get nothing but POSTs.
fn others(counts: &ApiserverCounts) -> Vec<&String> {
    let mut hosts: Vec<&String> = counts.posts.keys().collect();
    let is_own = |host: &str| address::is_own(host) || counts.changed.contains(host);
    // If kube-apiserver's own address is certain, an address that only may be its own belongs to a
    // webhook.
    let is_known = hosts.iter().any(|host| is_own(host));
    let is_own: &dyn Fn(&str) -> bool = if is_known { &is_own } else { &address::may_be_own };
    let is_one = hosts.iter().all(|host| address::is_same(host, hosts[0]));
    if !is_one && hosts.iter().any(|host| !is_own(host)) {
        hosts.retain(|host| !is_own(host));
    }
    let is_apiserver = |host: &str| counts.read.contains(host) || counts.changed.contains(host);
    hosts.retain(|host| !address::may_be_own(host) || !is_apiserver(host));
    hosts
}

/// Returns the POSTs to the webhook in the first sample, by status. `host` is the webhook's host in
/// the second sample. `None` if the first sample has no POSTs to the webhook.
pub fn earlier_posts(
    apiserver: &Sampled<ApiserverCounts>,
    host: &str,
    address: Option<&Address>,
) -> Option<ByLabel> {
    let (earlier, posts) = webhook_posts(apiserver.before.as_ref()?, address)?;
    (address.is_some() || address::is_same(&earlier, host)).then_some(posts)
}

/// Returns the increase of each count since an earlier sample, or `now` if there is no earlier one.
pub fn increases(now: &ByLabel, before: Option<&ByLabel>) -> ByLabel {
    let increase = |(name, count): (&String, &u64)| {
        let earlier = before.and_then(|before| before.get(name)).copied().unwrap_or_default();
        (name.clone(), count.saturating_sub(earlier))
    };
    now.iter().map(increase).collect()
}

/// Returns the number of failed attempts.
pub fn failed(posts: &ByLabel) -> u64 {
    total(posts.iter().filter(|(code, _)| !code.starts_with('2')).map(|(_, count)| *count))
}

/// Returns how many attempts to reach the webhook failed between the two samples, if that is known.
pub fn failed_in_interval(
    apiserver: &Sampled<ApiserverCounts>,
    webhook: Option<&Address>,
) -> Option<u64> {
    let (host, posts) = webhook_posts(apiserver.counts.as_ref()?, webhook)?;
    let earlier = earlier_posts(apiserver, &host, webhook)?;
    Some(failed(&increases(&posts, Some(&earlier))))
}

/// Returns `true` if no attempt to reach the webhook failed while the plugin `webhook` lost events.
/// kube-apiserver then could not encode a batch: client-go's `rest.Request.Body` fails before there
/// is a request, so no counter of requests changes. A batch that is given up after failed attempts
/// counts as lost at once after the last of them.
///
/// If the loss is older than the interval, no attempt since the start may have failed. If the
/// address of the webhook is unknown, no POST to any other host than kube-apiserver itself may have
/// failed. That is no proof, because the webhook may be behind kube-apiserver's own service proxy.
pub fn none_failed(apiserver: &Sampled<ApiserverCounts>, webhook: Option<&Address>) -> bool {
    let Some(now) = &apiserver.counts else { return false };
    let failed_of = |counts: &ApiserverCounts| match webhook {
        Some(_) => Some(failed(&webhook_posts(counts, webhook)?.1)),
        None => {
            let hosts = others(counts);
            let posts = hosts.iter().filter_map(|host| counts.posts.get(*host));
            (!hosts.is_empty()).then(|| failed(&sums(posts)))
        }
    };
    let lost = |it: &ApiserverCounts| it.errors.get(WEBHOOK_PLUGIN).copied().unwrap_or_default();
    let before = apiserver.before.as_ref().filter(|before| lost(now) > lost(before));
    let earlier = before.map_or(Some(0), failed_of);
    failed_of(now).zip(earlier).is_some_and(|(now, earlier)| now == earlier)
}
