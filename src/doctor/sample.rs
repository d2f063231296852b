//! Reads what kube-apiservers and relays count: once from files, twice from URLs.
//!
//! Several kube-apiservers may be behind one address. They are told apart by the start times of
//! their processes: the address is asked on a new connection each time, until all instances that
//! are expected have answered, or until some answers in a row have shown no new one. With a
//! kubeconfig, the endpoints of the Service `kubernetes` say which instances there are, and each is
//! asked directly.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

use super::counts::Counts;
use super::exposition::Exposition;
use super::exposition::Reader;
use crate::ask::AskError;
use crate::ask::BODY_MAX;
use crate::ask::Target;

/// The number of answers in a row without a new instance, after which an address has shown all of
/// its instances. Of three instances that answer at random, one stays unseen in 4 % of all cases.
const NOTHING_NEW: usize = 8;

/// The greatest number of requests to one address for one sample.
const REQUESTS_MAX: usize = 64;

/// The greatest number of endpoints that are asked.
const ENDPOINTS_MAX: usize = 100;

/// The size in bytes of the parts in which a file is read.
const PART: usize = 64 << 10;

/// The Endpoints of the Service that leads to all kube-apiservers.
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

/// The EndpointSlices of the same Service, for clusters that have no Endpoints any more.
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                      ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes&limit=100";

/// A name that the certificate of every kube-apiserver has.
const CLUSTER_NAME: &str = "kubernetes.default.svc";

/// The source of the numbers of one or more processes.
pub enum Source {
    /// A file with saved metrics, or standard input if the path is `-`.
    File(PathBuf),
    /// A server. The text is the path of its metrics.
    Url(Target, String),
}

impl Source {
    /// Returns the server and the path of its metrics; `None` for a file.
    #[must_use]
    pub fn url(&self) -> Option<(Target, String)> {
        match self {
            Self::File(_) => None,
            Self::Url(target, path) => Some((target.clone(), path.clone())),
        }
    }
}

/// The kube-apiservers of a kubeconfig.
#[derive(Clone)]
pub struct Cluster {
    /// The server of the kubeconfig.
    pub server: Target,
    /// The URLs of the option `--apiserver` are addresses of the same kube-apiservers. If all of
    /// them answer there, an endpoint that cannot be reached directly is no fault.
    pub has_other_addresses: bool,
}

/// The numbers of one process.
#[derive(Debug, Clone)]
pub struct Sampled<C> {
    /// The file or the URL.
    pub source: String,
    /// The numbers of the first sample; `None` for a file, and for a process that did not answer
    /// then.
    pub before: Option<C>,
    /// The newest numbers; `None` if there are none at all.
    pub counts: Option<C>,
    /// The seconds between the two samples; `None` if there are no two.
    pub elapsed: Option<f64>,
    /// The reason why the process could not be read, the last time.
    pub fault: Option<String>,
}

impl<C> Sampled<C> {
    fn failed(source: String, fault: String) -> Self {
        Self { source, before: None, counts: None, elapsed: None, fault: Some(fault) }
    }

    fn of_file(source: String, counts: C) -> Self {
        Self { source, before: None, counts: Some(counts), elapsed: None, fault: None }
    }
}

/// The numbers of one process, and when they were read.
#[derive(Clone)]
struct Seen<C> {
    at: Instant,
    counts: C,
}

/// Distinguishes processes by their start time. `None`: the process does not tell it.
type Start = Option<u64>;

fn start_of(counts: &impl Counts) -> Start {
    counts.started().map(f64::to_bits)
}

/// The instances that one address has shown, and the fault of the last request.
struct Shown<C> {
    source: String,
    seen: BTreeMap<Start, Seen<C>>,
    fault: Option<String>,
}

/// Reads the file of a source. The call blocks.
///
/// # Errors
///
/// A text that says why the file cannot be read.
pub fn read_file<C: Counts>(file: &Path) -> Result<C, String> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
    let failed = |error: std::io::Error| format!("cannot read {name}: {error}");
    let read = match is_stdin {
        true => read_all::<C>(std::io::stdin().lock()),
        false => read_all::<C>(std::fs::File::open(file).map_err(failed)?),
    };
    read.map_err(|error| format!("{name}: {error}"))
}

fn read_all<C: Counts>(mut from: impl Read) -> Result<C, String> {
    let mut reader = Reader::new(C::wanted());
    let (mut part, mut total) = (vec![0; PART], 0);
    loop {
        let read = from.read(&mut part).map_err(|error| error.to_string())?;
        if read == 0 {
            break;
        }
        total += read as u64;
        if total > BODY_MAX {
            return Err("has more than 64 MiB".to_owned());
        }
        let part = part.get(..read).unwrap_or_default();
        reader.feed(part).map_err(|fault| fault.to_string())?;
    }
    Ok(C::of(&reader.finish().map_err(|fault| fault.to_string())?))
}

/// Asks a server for its metrics once.
///
/// # Errors
///
/// A text that says why there are no metrics.
pub async fn ask<C: Counts>(target: &Target, path: &str) -> Result<C, String> {
    let mut reader = Reader::new(C::wanted());
    let sink = |part: &[u8]| reader.feed(part).map_err(|fault| fault.to_string());
    target.get(path, sink).await.map_err(|error| error.to_string())?;
    let exposition: Result<Exposition, _> = reader.finish();
    Ok(C::of(&exposition.map_err(|fault| format!("{target}: {fault}"))?))
}

/// Reads the relays: files once, and each URL in both samples. `between` waits from the first
/// sample to the second one.
pub struct Relays<C> {
    files: Vec<Sampled<C>>,
    urls: Vec<(Target, String, Result<Seen<C>, String>)>,
}

impl<C: Counts> Relays<C> {
    /// Takes the first sample.
    pub async fn first(sources: Vec<Source>) -> Self {
        let (mut files, mut urls) = (Vec::new(), Vec::new());
        for source in sources {
            match source {
                Source::File(file) => files.push(of_file(&file)),
                Source::Url(target, path) => urls.push((target, path)),
            }
        }
        let asked = join_all(urls.into_iter().map(|(target, path)| async {
            let at = Instant::now();
            let counts = ask(&target, &path).await.map(|counts| Seen { at, counts });
            (target, path, counts)
        }));
        Self { files, urls: asked.await }
    }

    /// Returns `true` if a URL has answered in the first sample.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        self.urls.iter().any(|(_, _, before)| before.is_ok())
    }

    /// Takes the second sample, or repeats it.
    pub async fn second(&self) -> Vec<Sampled<C>> {
        let asked = self.urls.iter().map(|(target, path, before)| async move {
            let at = Instant::now();
            let before = before.as_ref().ok();
            let source = target.to_string();
            match ask::<C>(target, path).await {
                Ok(counts) => Sampled {
                    source,
                    elapsed: before.map(|before| (at - before.at).as_secs_f64()),
                    before: before.map(|before| before.counts.clone()),
                    counts: Some(counts),
                    fault: None,
                },
                Err(fault) => Sampled {
                    counts: before.map(|before| before.counts.clone()),
                    ..Sampled::failed(source, fault)
                },
            }
        });
        let asked = join_all(asked).await;
        self.files.iter().cloned().chain(asked).collect()
    }
}

fn of_file<C: Counts>(file: &Path) -> Sampled<C> {
    let source = file.display().to_string();
    match read_file(file) {
        Ok(counts) => Sampled::of_file(source, counts),
        Err(fault) => Sampled::failed(source, fault),
    }
}

/// Reads the kube-apiservers, as [`Relays`] reads relays.
pub struct Apiservers<C> {
    files: Vec<Sampled<C>>,
    /// The addresses, each with its path and the instances that it has shown in the first sample.
    addresses: Vec<(Target, String, Shown<C>)>,
    /// The number of instances that the operator expects; `None` if it was not given.
    expected: Option<usize>,
    /// The number of endpoints of the Service; `None` if they were not asked for.
    endpoints: Option<usize>,
    /// The reason why the endpoints could not be listed.
    unlisted: Option<(String, String)>,
    has_other_addresses: bool,
}

impl<C: Counts> Apiservers<C> {
    /// Takes the first sample. `expected` is the number of instances behind each address; `None`
    /// if it is not known.
    pub async fn first(
        sources: Vec<Source>,
        cluster: Option<&Cluster>,
        expected: Option<usize>,
    ) -> Self {
        let (mut files, mut addresses) = (Vec::new(), Vec::new());
        for source in sources {
            match source {
                Source::File(file) => files.push(of_file(&file)),
                Source::Url(target, path) => addresses.push((target, path)),
            }
        }
        let mut unlisted = None;
        let mut endpoints = Vec::new();
        if let Some(Cluster { server, .. }) = cluster {
            match endpoints_of(server).await {
                Ok(found) => {
                    let of = |(host, port): (String, u16)| server.at(&host, port, &[CLUSTER_NAME]);
                    endpoints = found.into_iter().map(of).collect();
                }
                Err(fault) => {
                    unlisted = Some((server.to_string(), fault));
                    addresses.push((server.clone(), format!("{}/metrics", server.base())));
                }
            }
        }
        let direct =
            endpoints.iter().cloned().map(|target| (target, "/metrics".to_owned(), Some(1)));
        let count = Some(endpoints.len()).filter(|count| *count > 0);
        let behind = expected.or(count);
        let addresses = addresses.into_iter().map(|(target, path)| (target, path, behind));
        let asked = addresses.chain(direct).map(|(target, path, expected)| async move {
            let shown = survey(&target, &path, &[], expected).await;
            (target, path, shown)
        });
        let addresses = join_all(asked).await;
        let has_other_addresses = cluster.is_some_and(|cluster| cluster.has_other_addresses);
        Self { files, addresses, expected, endpoints: count, unlisted, has_other_addresses }
    }

    /// Returns `true` if an address has answered in the first sample.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        self.addresses.iter().any(|(_, _, shown)| !shown.seen.is_empty())
    }

    /// Takes the second sample. Each process is in the result once, also if several files or
    /// addresses show it.
    pub async fn second(&self) -> Vec<Sampled<C>> {
        let asked = self.addresses.iter().map(|(target, path, before)| async move {
            let known: Vec<Start> = before.seen.keys().copied().collect();
            let expected = Some(known.len()).filter(|count| *count > 0);
            (before, survey::<C>(target, path, &known, expected).await)
        });
        let mut found: BTreeMap<Start, Sampled<C>> = BTreeMap::new();
        let mut others = Vec::new();
        for (before, after) in join_all(asked).await {
            if before.seen.is_empty() && after.seen.is_empty() {
                let fault = after.fault.clone().unwrap_or_else(|| "no answer".to_owned());
                others.push(Sampled::failed(after.source.clone(), fault));
            }
            for sampled in matched(before, &after) {
                let start = sampled.counts.as_ref().map(start_of);
                match start.flatten() {
                    // Two instances that do not tell their start cannot be told apart.
                    None => others.push(sampled),
                    start => keep(found.entry(start), sampled),
                }
            }
        }
        for file in &self.files {
            match file.counts.as_ref().and_then(start_of) {
                None => others.push(file.clone()),
                start => keep(found.entry(start), file.clone()),
            }
        }
        let read = found.len();
        let all_seen = self.endpoints.is_some_and(|expected| read >= expected);
        if self.has_other_addresses && all_seen {
            others.retain(|sampled| sampled.counts.is_some());
        }
        let mut all: Vec<_> = found.into_values().chain(others).collect();
        if let Some((source, fault)) = &self.unlisted {
            let fault = format!("the other instances are unknown: {fault}");
            all.push(Sampled::failed(source.clone(), fault));
        }
        let too_few = self.expected.filter(|expected| read < *expected);
        if let Some((expected, (target, ..))) = too_few.zip(self.addresses.first()) {
            let fault = format!("only {read} of {expected} instances have answered");
            all.push(Sampled::failed(target.to_string(), fault));
        }
        all
    }
}

/// Keeps one of two descriptions of the same process: the newer one, or else the one with two
/// samples.
fn keep<C: Counts>(entry: Entry<'_, Start, Sampled<C>>, sampled: Sampled<C>) {
    let progress = |it: &Sampled<C>| it.counts.as_ref().map(C::progress);
    match entry {
        Entry::Vacant(vacant) => {
            vacant.insert(sampled);
        }
        Entry::Occupied(mut kept) => {
            let kept = kept.get_mut();
            let has_more = kept.before.is_none() && sampled.before.is_some();
            let is_better = match progress(&sampled).cmp(&progress(kept)) {
                Ordering::Greater => true,
                Ordering::Equal => kept.fault.is_some() || has_more,
                Ordering::Less => false,
            };
            if is_better {
                *kept = sampled;
            }
        }
    }
}

/// Puts the instances of the two samples together by their start times.
fn matched<C: Counts>(before: &Shown<C>, after: &Shown<C>) -> Vec<Sampled<C>> {
    let several = before.seen.len().max(after.seen.len()) > 1;
    let name = |index: usize| match several {
        true => format!("{} instance {}", before.source, index + 1),
        false => before.source.clone(),
    };
    let mut starts: Vec<Start> = before.seen.keys().chain(after.seen.keys()).copied().collect();
    starts.sort_unstable();
    starts.dedup();
    let sampled = |(index, start): (usize, Start)| {
        let (first, last) = (before.seen.get(&start), after.seen.get(&start));
        let fault = last.is_none().then(|| {
            let why = after.fault.as_deref();
            why.unwrap_or("it did not answer a second time: it was restarted, or has ended")
        });
        Sampled {
            source: name(index),
            before: first.filter(|_| last.is_some()).map(|it| it.counts.clone()),
            counts: last.or(first).map(|it| it.counts.clone()),
            elapsed: first.zip(last).map(|(first, last)| (last.at - first.at).as_secs_f64()),
            fault: fault.map(str::to_owned),
        }
    };
    starts.into_iter().enumerate().map(sampled).collect()
}

/// Asks an address on new connections until it has shown `expected` instances, or nothing new for
/// some time. With `known` instances from an earlier sample, the last answer of each counts, and
/// the address is asked until all of them have answered; otherwise the first answer counts.
async fn survey<C: Counts>(
    target: &Target,
    path: &str,
    known: &[Start],
    expected: Option<usize>,
) -> Shown<C> {
    let mut shown = Shown { source: target.to_string(), seen: BTreeMap::new(), fault: None };
    let mut nothing_new = 0;
    for _ in 0..REQUESTS_MAX {
        let at = Instant::now();
        let counts = match ask::<C>(target, path).await {
            Ok(counts) => counts,
            Err(fault) => {
                shown.fault = Some(fault);
                // An address that has not answered at all is not asked again. Behind an address
                // that has, one of several instances may be away.
                nothing_new += 1;
                match shown.seen.is_empty() || nothing_new >= NOTHING_NEW {
                    true => break,
                    false => continue,
                }
            }
        };
        let start = start_of(&counts);
        let is_new = !shown.seen.contains_key(&start);
        if is_new || !known.is_empty() {
            shown.seen.insert(start, Seen { at, counts });
        }
        nothing_new = if is_new { 0 } else { nothing_new + 1 };
        let has_all_known = known.iter().all(|start| shown.seen.contains_key(start));
        let has_all = expected.is_some_and(|expected| shown.seen.len() >= expected);
        if start.is_none() || has_all && has_all_known || nothing_new >= NOTHING_NEW {
            break;
        }
    }
    shown
}

/// Lists the addresses of the endpoints of the Service `kubernetes`.
async fn endpoints_of(server: &Target) -> Result<Vec<(String, u16)>, String> {
    let ask = |path: &str| {
        let path = format!("{}{path}", server.base());
        async move { server.get_text(&path).await }
    };
    let body = match ask(ENDPOINTS).await {
        Err(AskError { status: Some(404 | 405 | 410), .. }) => ask(SLICES).await,
        asked => asked,
    };
    let body = body.map_err(|error| error.to_string())?;
    let endpoints = parse_endpoints(&body);
    match endpoints.is_empty() {
        true => Err(format!("{server}: the Service kubernetes has no endpoints")),
        false => Ok(endpoints),
    }
}

/// Returns the addresses and ports in Endpoints, or in a list of EndpointSlices, each once. A body
/// that is neither has none.
fn parse_endpoints(body: &[u8]) -> Vec<(String, u16)> {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for subset in list(&json["subsets"]) {
        let not_ready = list(&subset["notReadyAddresses"]);
        let addresses = list(&subset["addresses"]).into_iter().chain(not_ready);
        let ips = addresses.filter_map(|address| address["ip"].as_str().map(str::to_owned));
        found.extend(ips.filter_map(|ip| Some((ip, https_port(&subset["ports"])?))));
    }
    for slice in list(&json["items"]) {
        for endpoint in list(&slice["endpoints"]) {
            let ips = list(&endpoint["addresses"]).into_iter();
            let ips = ips.filter_map(|ip| ip.as_str().map(str::to_owned));
            found.extend(ips.filter_map(|ip| Some((ip, https_port(&slice["ports"])?))));
        }
    }
    found.sort();
    found.dedup();
    found.truncate(ENDPOINTS_MAX);
    found
}

/// Returns the port with the name `https`, or else the first one.
fn https_port(ports: &Value) -> Option<u16> {
    let ports = ports.as_array()?;
    let named = ports.iter().find(|port| port["name"] == "https").or_else(|| ports.first())?;
    u16::try_from(named["port"].as_u64()?).ok()
}

/// Repeats a sample, with pauses between, until `is_settled` says that nothing is on its way any
/// more, at most for `limit`. Returns the last sample.
pub async fn settle<T>(
    limit: Duration,
    pause: Duration,
    sample: impl AsyncFn() -> T,
    is_settled: impl Fn(&T) -> bool,
) -> T {
    let end = Instant::now() + limit;
    loop {
        let taken = sample().await;
        if is_settled(&taken) || Instant::now() >= end {
            return taken;
        }
        tokio::time::sleep_until(end.min(Instant::now() + pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::counts::ApiserverCounts;

    #[test]
    fn endpoints_are_read_in_both_forms() {
        let endpoints = br#"{"kind":"Endpoints","subsets":[{"addresses":[{"ip":"10.0.0.2"},{"ip":"10.0.0.1"}],
            "notReadyAddresses":[{"ip":"fd00::1"}],"ports":[{"name":"x","port":1},{"name":"https","port":6443}]}]}"#;
        let of = |ip: &str| (ip.to_owned(), 6443);
        assert_eq!(parse_endpoints(endpoints), ["10.0.0.1", "10.0.0.2", "fd00::1"].map(of));
        let slices =
            br#"{"items":[{"endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":6443}]},
            {"endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":6443}]}]}"#;
        assert_eq!(parse_endpoints(slices), [of("10.0.0.1")]);
        for other in
            ["", "[]", "{}", "{\"subsets\":[{\"addresses\":[{\"ip\":\"a\"}],\"ports\":[]}]}"]
        {
            assert_eq!(parse_endpoints(other.as_bytes()), []);
        }
    }

    fn shown(instances: &[(f64, u64)], fault: Option<&str>) -> Shown<ApiserverCounts> {
        let seen = instances.iter().map(|&(start, generated)| {
            let counts = ApiserverCounts {
                started: Some(start),
                generated: Some(generated),
                ..ApiserverCounts::default()
            };
            (start_of(&counts), Seen { at: Instant::now(), counts })
        });
        let fault = fault.map(str::to_owned);
        Shown { source: "http://a".to_owned(), seen: seen.collect(), fault }
    }

    #[test]
    fn instances_are_put_together_by_their_start() {
        let before = shown(&[(1.0, 10), (2.0, 20)], None);
        let after = shown(&[(2.0, 25), (3.0, 1)], None);
        let sampled = matched(&before, &after);
        let told: Vec<_> = sampled
            .iter()
            .map(|it| {
                let generated = |counts: &Option<ApiserverCounts>| {
                    counts.as_ref().and_then(|counts| counts.generated)
                };
                (generated(&it.before), generated(&it.counts), it.fault.is_some())
            })
            .collect();
        let wanted = [(None, Some(10), true), (Some(20), Some(25), false), (None, Some(1), false)];
        assert_eq!(told, wanted);
        assert_eq!(sampled[1].source, "http://a instance 2");
        let gone = matched(&before, &shown(&[], Some("cannot connect")));
        assert!(gone.iter().all(|it| it.fault.as_deref() == Some("cannot connect")));
    }

    #[tokio::test]
    async fn two_files_of_one_process_are_one_and_the_newer_one_counts() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = |name: &str, lost: u64| {
            let file = directory.path().join(name);
            let text = format!(
                "process_start_time_seconds 7\napiserver_audit_event_total 9\n\
                 apiserver_audit_error_total{{plugin=\"webhook\"}} {lost}\n"
            );
            std::fs::write(&file, text).unwrap();
            Source::File(file)
        };
        for order in [[0, 3], [3, 0]] {
            let files = order.map(|lost| file(&format!("lost-{lost}"), lost));
            let first = Apiservers::<ApiserverCounts>::first(files.into(), None, None).await;
            let sampled = first.second().await;
            let lost: Vec<_> =
                sampled.iter().map(|it| it.counts.as_ref().unwrap().lost()).collect();
            assert_eq!(lost, [3], "{order:?}");
        }
    }

    #[test]
    fn a_file_is_read_in_parts_and_its_faults_name_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("metrics");
        let filler = "etcd_request_duration_seconds_bucket{le=\"1\"} 1\n".repeat(5000);
        std::fs::write(&file, format!("{filler}apiserver_audit_event_total 7\n")).unwrap();
        assert_eq!(read_file::<ApiserverCounts>(&file).unwrap().generated, Some(7));
        std::fs::write(&file, "no metrics").unwrap();
        let fault = read_file::<ApiserverCounts>(&file).unwrap_err();
        assert!(fault.contains("metrics: not metrics of Prometheus: line 1"), "{fault}");
        let fault = read_file::<ApiserverCounts>(Path::new("/no/such")).unwrap_err();
        assert!(fault.starts_with("cannot read /no/such: "), "{fault}");
    }
}
