//! Notes when each kube-apiserver was last heard, by the audit events of its own Lease.
//!
//! Since Kubernetes 1.26, each kube-apiserver updates a Lease `apiserver-…` in `kube-system` every
//! 10 s, as the user `system:apiserver`. The client that does this exists only inside the
//! kube-apiserver, and each kube-apiserver has a Lease of its own. Kubernetes deletes the Lease
//! after an hour without an update (`IdentityLeaseDurationSeconds`), and the relay forgets the name
//! after the same time.
//!
//! A tenant cannot make such an event through the API: `user.username` is the authenticated user,
//! even if a request impersonates another. Another client has this name only if the cluster's own
//! authentication gives it, as for a certificate of its CA. But a sender to an open listener can
//! invent any event. It can fill all [`NAMES_MAX`] places with invented names, or hide that a
//! kube-apiserver is silent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use memchr::memmem::Finder;
use tokio::time::Instant;

use super::sample::bounds;
use audit::{request, scan};
use base::lock::lock;

/// The maximum number of kube-apiservers that are known at a time.
const NAMES_MAX: usize = 16;

const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// A part of the path of each update of a kube-apiserver's Lease. Few other events contain it.
static NEEDLE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("/leases/apiserver-"));

/// A kube-apiserver that was heard in the last hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apiserver {
    /// The name of its Lease.
    pub name: String,
    /// The first 8 hexadecimal digits of the SHA-256 of `name`.
    pub id: String,
    /// The time since its first event.
    pub known: Duration,
    /// The time since its last event.
    pub silent: Duration,
}

#[derive(Default)]
pub(super) struct Apiservers {
    /// The names, with the times of the first and the last event.
    heard: Mutex<Vec<(Box<str>, Instant, Instant)>>,
    /// `true` once the log has said that there was no place for a name.
    was_full: AtomicBool,
}

impl Apiservers {
    /// Notes that these kube-apiservers were heard now. Ignores a name for which there is no place.
    pub(super) fn hear(&self, names: Vec<Box<str>>) {
        if names.is_empty() {
            return;
        }
        let (mut beyond, now) = (None, Instant::now());
        let mut heard = lock(&self.heard);
        heard.retain(|(.., last)| now.duration_since(*last) < FORGOTTEN_AFTER);
        for name in names {
            match heard.iter().position(|(known, ..)| *known == name) {
                Some(place) => heard[place].2 = now,
                None if heard.len() < NAMES_MAX => heard.push((name, now, now)),
                None => beyond = Some(name),
            }
        }
        drop(heard);
        if let Some(name) = beyond.filter(|_| !self.was_full.swap(true, Ordering::Relaxed)) {
            tracing::warn!(
                apiserver = &*name,
                "events of more than 16 kube-apiservers arrived in the last hour: only 16 of them \
                 are watched for silence"
            );
        }
    }

    pub(super) fn list(&self) -> Vec<Apiserver> {
        let now = Instant::now();
        let apiserver = |(name, first, last): &(Box<str>, Instant, Instant)| Apiserver {
            name: name.to_string(),
            id: id(name),
            known: now.saturating_duration_since(*first),
            silent: now.saturating_duration_since(*last),
        };
        let mut all: Vec<_> = lock(&self.heard).iter().map(apiserver).collect();
        all.retain(|it| it.silent < FORGOTTEN_AFTER);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

fn id(name: &str) -> String {
    let digest = digest(&SHA256, name.as_bytes());
    digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Adds the names of the kube-apiservers whose events are in `lines` to `found`. If `lines` is a
/// JSON list, `list` has the offset of the byte after each event.
pub(super) fn find(lines: &[u8], list: Option<&[u32]>, found: &mut Vec<Box<str>>) {
    let mut from = 0;
    while let Some(at) = lines.get(from..).and_then(|rest| NEEDLE.find(rest)) {
        let (start, end) = bounds(lines, list, from + at);
        let name = lines.get(start..end - 1).and_then(name);
        // One name more than the limit is taken, so that the log can say that there are more.
        if let Some(name) = name.filter(|it| found.len() <= NAMES_MAX && !found.contains(it)) {
            found.push(name);
        }
        from = end;
    }
}

/// Returns the name of the Lease if the event is the update of a kube-apiserver's own Lease. Every
/// value that another client could choose is compared with what kube-apiserver itself writes.
fn name(event: &[u8]) -> Option<Box<str>> {
    let request = request::request(event);
    let (location, object, user) = (request.uri.location()?, request.object?, request.user?);
    let is_own = *user.name == *b"system:apiserver"
        && matches!(&*request.verb, b"update" | b"patch")
        && *object.resource == *b"leases"
        && *object.group == *b"coordination.k8s.io"
        && object.subresource.is_empty()
        && location.namespace() == b"kube-system";
    let hash = location.name().strip_prefix(b"apiserver-").filter(|_| is_own)?;
    let is_hash = (8..=64).contains(&hash.len())
        && hash.iter().all(|it| matches!(it, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    let [impersonated] = scan::firsts(event, ["impersonatedUser"]);
    let is_success = request::code(event).is_some_and(|code| (200..300).contains(&code));
    let counts = is_hash && impersonated.is_none() && is_success;
    String::from_utf8(location.name().to_vec()).ok().filter(|_| counts).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The update of a Lease as a kube-apiserver has recorded it, without managed fields.
    const EVENT: &str = r#"{"level":"Metadata","auditID":"af659df3-306e-4c95-b8d0-06e1c9d14ae0","stage":"ResponseComplete","requestURI":"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/apiserver-wlv32tlttr4jl3gtroqexyxapa","verb":"update","user":{"username":"system:apiserver","groups":["system:authenticated","system:masters"]},"sourceIPs":["127.0.0.1"],"objectRef":{"resource":"leases","namespace":"kube-system","name":"apiserver-wlv32tlttr4jl3gtroqexyxapa","apiGroup":"coordination.k8s.io","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":200},"stageTimestamp":"2026-11-20T06:17:55.200080Z"}"#;

    const NAME: &str = "apiserver-wlv32tlttr4jl3gtroqexyxapa";

    fn found(lines: &str) -> Vec<Box<str>> {
        let mut found = Vec::new();
        find(lines.as_bytes(), None, &mut found);
        found
    }

    #[test]
    fn an_event_counts_once_in_each_batch_and_in_lines_as_in_a_list() {
        let other = EVENT.replace("wlv32", "other");
        let lines = format!("{{}}\n{EVENT}\n{{\"a\":1}}\n{other}\n{EVENT}\n");
        let names = [NAME.into(), NAME.replace("wlv32", "other").into()];
        assert_eq!(found(&lines), names);
        let list: Vec<_> = memchr::memchr_iter(b'\n', lines.as_bytes())
            .map(|at| u32::try_from(at).unwrap())
            .collect();
        let mut found = Vec::new();
        find(lines.replace('\n', ",").as_bytes(), Some(&list), &mut found);
        assert_eq!(found, names);
    }

    #[test]
    fn only_what_a_kube_apiserver_writes_about_itself_counts() {
        assert_eq!(found(&format!("{}\n", EVENT.replace("update", "patch"))), [NAME.into()]);
        let long = format!("apiserver-{}", "a".repeat(65));
        for (from, to) in [
            ("\"username\":\"system:apiserver\"", "\"username\":\"system:admin\""),
            (
                "\"username\":\"system:apiserver\"",
                "\"username\":\"x\",\"username\":\"system:apiserver\"",
            ),
            (
                "{\"username\":\"system:apiserver\"",
                "{\"extra\":{\"username\":[\"system:apiserver\"]}",
            ),
            ("\"sourceIPs\"", "\"impersonatedUser\":{\"username\":\"a\"},\"sourceIPs\""),
            ("\"update\"", "\"get\""),
            ("\"update\"", "\"delete\""),
            ("namespaces/kube-system", "namespaces/prod"),
            ("\"leases\"", "\"configmaps\""),
            ("coordination.k8s.io\",\"apiVersion", "example.com\",\"apiVersion"),
            ("\"apiVersion\":\"v1\"", "\"apiVersion\":\"v1\",\"subresource\":\"status\""),
            ("\"code\":200", "\"code\":403"),
            ("\"code\":200", "\"code\":2"),
            ("\"code\":200", "\"message\":\"code\""),
            (",\"responseStatus\":{\"metadata\":{},\"code\":200}", ""),
            ("wlv32tlttr4jl3gtroqexyxapa", "short"),
            ("wlv32tlttr4jl3gtroqexyxapa", "wlv32tlttr4jl3gtroqexyxapA"),
            ("wlv32tlttr4jl3gtroqexyxapa", "wlv32tlttr4jl3gtroqexy%0Aa"),
            (
                "leases/apiserver-wlv32tlttr4jl3gtroqexyxapa",
                "leases/x?a=/leases/apiserver-12345678",
            ),
            (NAME, &long),
        ] {
            assert!(EVENT.contains(from), "{from}");
            assert_eq!(found(&format!("{}\n", EVENT.replace(from, to))), [], "{to}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sixteen_are_known_at_a_time_and_an_hour_of_silence_frees_a_place() {
        let name = |number| format!("apiserver-{number:08}").into_boxed_str();
        let (apiservers, minute) = (Apiservers::default(), Duration::from_secs(60));
        apiservers.hear((0..17).map(name).collect());
        let names = || apiservers.list().into_iter().map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names(), (0..16).map(|it| name(it).to_string()).collect::<Vec<_>>());
        assert!(apiservers.was_full.load(Ordering::Relaxed), "the log has said it");
        tokio::time::advance(59 * minute).await;
        apiservers.hear(vec![name(3), name(17)]);
        assert_eq!(apiservers.list()[3].silent, Duration::ZERO);
        assert_eq!(apiservers.list()[3].known, 59 * minute);
        assert_eq!((names().len(), apiservers.list()[0].silent), (16, 59 * minute));
        tokio::time::advance(minute).await;
        assert_eq!(names(), ["apiserver-00000003"]);
        apiservers.hear(vec![name(17)]);
        assert_eq!(names(), ["apiserver-00000003", "apiserver-00000017"]);
        // printf apiserver-00000003 | sha256sum
        assert_eq!(apiservers.list()[0].id, "07c7df0d");
    }
}
