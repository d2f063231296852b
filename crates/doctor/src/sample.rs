//! Reads the metrics of kube-apiservers, and the `/status` of relays: once from files, twice from
//! URLs.
//!
//! Several kube-apiservers may be behind one address. The start times of their processes
//! distinguish them. The address is asked on a new connection each time, until all expected
//! instances have answered, or until several answers in a row have shown no new one. With a
//! kubeconfig, the instances are the endpoints of the Service `kubernetes`, and each is asked
//! directly.
//!
//! Two sources whose processes have the same start time, such as a file and a URL, count as two
//! processes, because two kube-apiservers may start in the same second. With a kubeconfig, however,
//! the URLs are further addresses of the processes at the endpoints; start times tell which process
//! a URL shows.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use futures_util::StreamExt as _;
use futures_util::future::{join, join_all};
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use super::counts::{ApiserverCounts, Clock, Relay, Start};
use super::exposition::{self, Reader};
use base::named_file;
use client::ask::{AskError, AskFault, BODY_MAX, Target, remedy_at_admin};
use telemetry::status::Status;

/// The number of responses in a row without a new instance after which doctor assumes that it has
/// seen all instances behind an address. If three instances respond at random, doctor misses one in
/// 4 % of all cases.
const NOTHING_NEW: usize = 8;

/// The maximum number of requests to one address for one sample.
const REQUESTS_MAX: usize = 64;

/// The time limit for one sample of an address, with all its requests. The two samples of an
/// address take at most 40 s, unless the second is repeated.
const SAMPLE: Duration = Duration::from_secs(20);

const LIST: Duration = Duration::from_secs(10);

const ENDPOINTS_MAX: usize = 100;

/// The maximum number of bytes of a saved `/status`, as [`Target::get_text`] has it for a URL.
const STATUS_MAX: u64 = 1 << 20;

/// The size in bytes of the parts in which a file is read.
const PART: usize = 64 << 10;

/// The first byte of gzip. No text of metrics begins like it.
const GZIP: u8 = 0x1f;

/// The Endpoints of the Service that leads to all kube-apiservers.
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

/// The EndpointSlices of the same Service, for clusters without Endpoints.
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
                      ?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes&limit=100";

/// A name in the certificate of every kube-apiserver.
const CLUSTER_NAME: &str = "kubernetes.default.svc";

/// The source of the numbers of one or more processes.
pub enum Source {
    /// A file with what a server has answered, or standard input if the path is `-`.
    File(PathBuf),
    /// A server, and the path of its metrics or, for a relay, of its `/status`.
    Url(Target, String),
}

impl Source {
    /// Returns the server and the path. `None` for a file.
    pub fn url(&self) -> Option<(Target, String)> {
        match self {
            Self::File(_) => None,
            Self::Url(target, path) => Some((target.clone(), path.clone())),
        }
    }
}

/// The reason why a process could not be read or compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The reason.
    pub what: String,
    /// The change that explains the fault, if one is known.
    pub change: Option<Change>,
    /// The action for the operator, if one is known.
    pub advice: Option<&'static str>,
}

/// A change between the two samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Another process has answered at the address of this one.
    Restarted,
    /// The endpoint was removed from the Service `kubernetes`.
    Left,
    /// The endpoint was added to the Service.
    Joined,
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self { what, change: None, advice: None }
    }
}

impl From<Change> for Fault {
    fn from(change: Change) -> Self {
        let what = match change {
            Change::Restarted => "it was restarted between the two samples",
            Change::Left => "it has left the endpoints since the first sample",
            Change::Joined => "it has joined the endpoints since the first sample",
        };
        Self { what: what.to_owned(), change: Some(change), advice: None }
    }
}

/// The numbers of one process.
#[derive(Debug, Clone)]
pub struct Sampled<C> {
    /// The file or the URL.
    pub source: String,
    /// The numbers of the first sample. `None` for a file, and for a process that answered in only
    /// one sample.
    pub before: Option<C>,
    /// The newest numbers, if there are any.
    pub counts: Option<C>,
    /// The seconds between the two samples. `None` with only one sample.
    pub elapsed: Option<f64>,
    /// The reason why the process could not be read at the last attempt, or can't be compared.
    pub fault: Option<Fault>,
}

impl<C> Sampled<C> {
    /// Returns the increase of a count between the two samples, if it is known.
    pub fn increase(&self, of: impl Fn(&C) -> Option<u64>) -> Option<u64> {
        let (before, now) = self.before.as_ref().zip(self.counts.as_ref())?;
        Some(of(now)?.saturating_sub(of(before)?))
    }

    /// Makes an entry of a file. `read` is what was read from it, or the reason why it was not.
    fn of_file(file: &Path, read: Result<C, String>) -> Self {
        let fault = read.as_ref().err().cloned().map(Fault::from);
        let source = file.display().to_string();
        Self { source, before: None, counts: read.ok(), elapsed: None, fault }
    }

    fn failed(source: String, fault: impl Into<Fault>) -> Self {
        Self { source, before: None, counts: None, elapsed: None, fault: Some(fault.into()) }
    }
}

/// The numbers of one process, and the time at which they were read.
#[derive(Clone)]
struct Seen<C> {
    at: Instant,
    counts: C,
}

/// The instances behind one address that have answered.
struct Shown {
    source: String,
    seen: BTreeMap<Start, Seen<ApiserverCounts>>,
    /// The fault of the first failed request. `None` if no request failed, or if all expected
    /// instances have responded nevertheless.
    fault: Option<String>,
    /// `true`: the last request had no response within the time limit.
    is_silent: bool,
}

/// Reads the files among the sources with `read`. Also returns the other sources.
fn split<C>(
    sources: Vec<Source>,
    read: impl Fn(&Path) -> Result<C, String>,
) -> (Vec<Sampled<C>>, Vec<(Target, String)>) {
    let (mut files, mut urls) = (Vec::new(), Vec::new());
    for source in sources {
        match source {
            Source::File(file) => files.push(Sampled::of_file(&file, read(&file))),
            Source::Url(target, path) => urls.push((target, path)),
        }
    }
    (files, urls)
}

/// Reads a kube-apiserver's metrics from a file. Blocks.
///
/// # Errors
///
/// The file can't be read, or does not contain metrics. The text is the reason.
fn read_file(file: &Path) -> Result<ApiserverCounts, String> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
    let failed = |error: std::io::Error| format!("cannot read {name}: {error}");
    let read = match is_stdin {
        true => read_all(std::io::stdin().lock()),
        false => read_all(named_file::open_of_command(file).map_err(failed)?),
    };
    read.map_err(|error| format!("{name}: {error}"))
}

/// Reads metrics, which may be packed with gzip.
fn read_all(from: impl Read) -> Result<ApiserverCounts, String> {
    let mut raw = BufReader::with_capacity(PART, from);
    let is_gzip = raw.fill_buf().map_err(|error| error.to_string())?.first() == Some(&GZIP);
    let mut text: Box<dyn Read> = match is_gzip {
        true => Box::new(MultiGzDecoder::new(raw)),
        false => Box::new(raw),
    };
    let mut reader = Reader::new(ApiserverCounts::wanted());
    let (mut part, mut bytes) = (vec![0; PART], 0);
    loop {
        let read = text.read(&mut part).map_err(|error| match is_gzip {
            true => format!("not valid gzip: {error}"),
            false => error.to_string(),
        })?;
        bytes += read as u64;
        if bytes > BODY_MAX {
            return Err("has more than 64 MiB".to_owned());
        }
        let told = |fault: exposition::Fault| fault.to_string();
        if read == 0 {
            return Ok(ApiserverCounts::of(&reader.finish().map_err(told)?));
        }
        reader.feed(part.get(..read).unwrap_or_default()).map_err(told)?;
    }
}

/// Reads a relay's saved `/status` from a file. Blocks.
///
/// # Errors
///
/// The file can't be read, or is not the `/status` of a relay. The text is the reason.
fn read_status(file: &Path) -> Result<Relay, String> {
    let name = file.display();
    let failed = |error: std::io::Error| format!("cannot read {name}: {error}");
    let body = named_file::read_of_command(file, STATUS_MAX).map_err(failed)?;
    let status = parse_status(&body).map_err(|what| format!("{name}: {what}"))?;
    Ok(Relay { clock: Clock::default(), status })
}

fn parse_status(body: &[u8]) -> Result<Status, String> {
    let status: Status = serde_json::from_slice(body).map_err(|error| {
        format!(
            "not the JSON of a relay's /status, which doctor reads in place of /metrics: {error}"
        )
    })?;
    match status.verdict {
        Some(_) => Ok(status),
        None => Err("no verdict in /status, because the relay is too old".to_owned()),
    }
}

/// Asks a relay once for its `/status`, within the time limit of a sample.
///
/// # Errors
///
/// The relay did not send its state, or the state has no verdict.
pub async fn relay(target: &Target, path: &str) -> Result<Relay, Fault> {
    let late = || format!("{target}: no complete response within {} s", SAMPLE.as_secs());
    let body = timeout(SAMPLE, target.get_text(path)).await.map_err(|_| late())?;
    let body = body.map_err(|error| Fault {
        advice: remedy_at_admin(error.fault, &error.reason),
        ..Fault::from(error.to_string())
    })?;
    let here = telemetry::now();
    let status = parse_status(&body).map_err(|what| format!("{target}{path}: {what}"))?;
    Ok(Relay { clock: Clock::new(Some(status.process.time_seconds), here), status })
}

/// Asks a kube-apiserver once for its metrics, within the time limit of a sample.
///
/// # Errors
///
/// The server did not send metrics. The text is the reason.
pub async fn ask(target: &Target, path: &str) -> Result<ApiserverCounts, String> {
    ask_until(target, path, Instant::now() + SAMPLE).await
}

async fn ask_until(
    target: &Target,
    path: &str,
    deadline: Instant,
) -> Result<ApiserverCounts, String> {
    let mut reader = Reader::new(ApiserverCounts::wanted());
    let late = || format!("{target}: no complete response within {} s", SAMPLE.as_secs());
    let asked = target.get(path, |part| reader.feed(part).map_err(|fault| fault.to_string()));
    let asked = timeout_at(deadline, asked).await.map_err(|_| late())?;
    let date = asked.map_err(refused)?;
    let exposition = reader.finish().map_err(|fault| format!("{target}: {fault}"))?;
    let clock = Clock::new(date, telemetry::now());
    Ok(ApiserverCounts { clock, ..ApiserverCounts::of(&exposition) })
}

/// Returns the text of an error of a kube-apiserver, with what to do about a refusal.
fn refused(error: AskError) -> String {
    let todo = [
        (AskFault::Status(401), "the credentials of --kubeconfig are missing or have expired"),
        (
            AskFault::Status(403),
            "the user needs the verb get for the nonResourceURL /metrics, and for endpoints in the \
             namespace default",
        ),
        (AskFault::Status(404), "check the path of the URL"),
        (AskFault::Issuer, "check certificate-authority in --kubeconfig"),
    ];
    let todo = todo.iter().find(|(fault, _)| *fault == error.fault);
    todo.map_or(error.to_string(), |(_, todo)| format!("{error}; {todo}"))
}

/// An address of one or more kube-apiservers.
struct Address {
    target: Target,
    path: String,
    /// `true` for an endpoint of the Service: one process is behind the address.
    is_single: bool,
    /// The instances of the first sample.
    before: Shown,
}

impl Address {
    /// Takes the first sample. `expected` is the number of instances, if it is known.
    async fn first(target: Target, path: String, is_single: bool, expected: Option<usize>) -> Self {
        let expected = if is_single { Some(1) } else { expected };
        let before = survey(&target, &path, &[], expected).await;
        Self { target, path, is_single, before }
    }

    fn has_answered(&self) -> bool {
        !self.before.seen.is_empty()
    }

    /// Takes the second sample, except at an address that gave no response in time in the first.
    async fn second(&self) -> Second {
        let Self { target, path, before, .. } = self;
        if before.is_silent && before.seen.is_empty() {
            return Second { found: Vec::new(), fault: before.fault.clone() };
        }
        let known: Vec<Start> = before.seen.keys().copied().collect();
        let expected = Some(known.len()).filter(|count| *count > 0);
        let after = survey(target, path, &known, expected).await;
        // If the first sample has instances, `matched` reports a fault of the second sample for
        // those that have not answered again.
        let fault = if known.is_empty() { &after.fault } else { &before.fault };
        Second { found: matched(before, &after), fault: fault.clone() }
    }

    /// Returns the address as a process that could not be read.
    fn unread(&self, fault: Option<String>) -> Sampled<ApiserverCounts> {
        let fault = fault.unwrap_or_else(|| "no answer".to_owned());
        Sampled::failed(self.before.source.clone(), fault)
    }
}

struct Second {
    found: Vec<Sampled<ApiserverCounts>>,
    fault: Option<String>,
}

/// The relays: files are read once, and each URL in both samples. One relay is behind an address.
/// After a restart, the new process is compared with the old one.
pub struct Relays {
    files: Vec<Sampled<Relay>>,
    /// The addresses, with the first sample of each that has answered.
    addresses: Vec<(Target, String, Option<Seen<Relay>>)>,
}

impl Relays {
    /// Takes the first sample.
    pub async fn first(sources: Vec<Source>) -> Self {
        let (files, urls) = split(sources, read_status);
        let asked = urls.into_iter().map(|(target, path)| async move {
            let at = Instant::now();
            let seen = relay(&target, &path).await.ok().map(|counts| Seen { at, counts });
            (target, path, seen)
        });
        Self { files, addresses: join_all(asked).await }
    }

    /// Returns `true` if a URL answered in the first sample.
    pub fn has_answers(&self) -> bool {
        self.addresses.iter().any(|(.., seen)| seen.is_some())
    }

    /// Takes or repeats the second sample.
    pub async fn second(&self) -> Vec<Sampled<Relay>> {
        let asked = self.addresses.iter().map(|(target, path, seen)| async move {
            let (source, at) = (target.to_string(), Instant::now());
            let before = seen.as_ref().map(|seen| seen.counts.clone());
            match relay(target, path).await {
                Ok(now) => {
                    let elapsed = seen.as_ref().map(|seen| (at - seen.at).as_secs_f64());
                    Sampled { source, before, counts: Some(now), elapsed, fault: None }
                }
                Err(fault) => {
                    let failed = Sampled::failed(source, fault);
                    Sampled { counts: before, ..failed }
                }
            }
        });
        let asked = join_all(asked).await;
        self.files.iter().cloned().chain(asked).collect()
    }
}

/// The kube-apiservers: files are read once, and each URL in both samples.
pub struct Apiservers {
    files: Vec<Sampled<ApiserverCounts>>,
    /// The addresses, with the endpoints of the Service first.
    addresses: Vec<Address>,
    /// The number of instances behind each URL, or in the cluster of the kubeconfig, if the
    /// operator named it.
    expected: Option<usize>,
    /// The server of the kubeconfig. With a kubeconfig, all addresses lead to the same processes.
    server: Option<Target>,
    /// The endpoints of the Service, or the reason why they could not be listed.
    endpoints: Result<Vec<Endpoint>, String>,
}

type Endpoint = (String, u16);

/// Returns an endpoint as a server. The certificate there may have a name of the kubeconfig's
/// server, the address of the endpoint, or [`CLUSTER_NAME`].
fn at(server: &Target, (host, port): &Endpoint) -> Target {
    server.at(host, *port, &[CLUSTER_NAME])
}

impl Apiservers {
    /// Takes the first sample. `server` is that of the kubeconfig, and `expected` the number of
    /// instances behind each address, if it is known.
    pub async fn first(
        sources: Vec<Source>,
        server: Option<Target>,
        expected: Option<usize>,
    ) -> Self {
        let (files, mut urls) = split(sources, read_file);
        let endpoints = match &server {
            Some(server) => endpoints_of(server).await,
            None => Ok(Vec::new()),
        };
        let mut singles = Vec::new();
        match (&server, &endpoints) {
            (Some(server), Ok(found)) => singles.extend(found.iter().map(|it| at(server, it))),
            (Some(server), Err(_)) => {
                urls.push((server.clone(), format!("{}/metrics", server.base())));
            }
            (None, _) => {}
        }
        let behind = expected.or(Some(singles.len()).filter(|count| *count > 0));
        let singles = singles.into_iter().map(|target| (target, "/metrics".to_owned(), true));
        let asked = singles.chain(urls.into_iter().map(|(target, path)| (target, path, false)));
        let asked =
            asked.map(|(target, path, is_single)| Address::first(target, path, is_single, behind));
        Self { files, addresses: join_all(asked).await, expected, server, endpoints }
    }

    /// Returns `true` if an address answered in the first sample.
    pub fn has_answers(&self) -> bool {
        self.addresses.iter().any(Address::has_answered)
    }

    /// Returns an entry for an instance that must exist, but has not answered at the URL `source`.
    /// `None` if nothing proves that there is one. `known` has the names of the known processes,
    /// `found` the number of processes at this URL, and `fault` the fault of the requests to it.
    fn unseen(
        &self,
        source: &str,
        known: &[String],
        found: usize,
        fault: Option<&str>,
    ) -> Option<Sampled<ApiserverCounts>> {
        let why = fault.map_or_else(String::new, |fault| format!(": {fault}"));
        let read = known.len();
        let fault = match self.expected {
            Some(expected) if read < expected => format!(
                "only {read} of {expected} instances have responded ({}), and {} not{why}",
                known.join(", "),
                expected - read
            ),
            None if fault.is_some() => {
                format!("read {found} of its instances, and a request failed{why}")
            }
            _ => return None,
        };
        // The name of a process that was read is not that of an unknown one.
        let is_read = self.expected.is_none() || known.iter().any(|name| name == source);
        let another = if is_read { ", another instance" } else { "" };
        Some(Sampled::failed(format!("{source}{another}"), fault))
    }

    /// Takes the second sample, and calls `after` when the last process with two samples has
    /// answered. Therefore the result of `after` does not contain events that arrive while an
    /// address hangs.
    pub async fn second<R>(
        &self,
        after: impl AsyncFn() -> R,
    ) -> (Vec<Sampled<ApiserverCounts>>, R) {
        let numbered = self.addresses.iter().enumerate();
        let asked = numbered.map(|(index, address)| async move { (index, address.second().await) });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let has_two = |it: &Second| it.found.iter().any(|sampled| sampled.before.is_some());
        let (mut answers, mut is_due, mut read) = (BTreeMap::new(), false, None);
        let asking = async {
            loop {
                tokio::select! {
                    answer = asked.next() => {
                        let Some((index, second)) = answer else { break };
                        if has_two(&second) {
                            (is_due, read) = (true, None);
                        }
                        answers.insert(index, second);
                    }
                    result = after(), if is_due => (is_due, read) = (false, Some(result)),
                }
            }
        };
        let ((), changes) = join(asking, self.changes()).await;
        let read = match read {
            Some(read) => read,
            None => after().await,
        };
        (self.whole(answers.into_values(), changes), read)
    }

    /// Combines the second samples of all addresses. Each file is a process of its own. A process
    /// that both an endpoint and a URL show is in the result once. A named address that was not
    /// read is always in the result.
    fn whole(
        &self,
        asked: impl Iterator<Item = Second>,
        changes: Vec<Sampled<ApiserverCounts>>,
    ) -> Vec<Sampled<ApiserverCounts>> {
        let mut processes: Vec<Sampled<ApiserverCounts>> = Vec::new();
        let (mut partly, mut unread, mut endpoints) = (Vec::new(), Vec::new(), Vec::new());
        for (address, Second { found, fault, .. }) in self.addresses.iter().zip(asked) {
            match (found.is_empty(), address.is_single) {
                (true, true) => endpoints.push(address.unread(fault)),
                (true, false) => unread.push(address.unread(fault)),
                (false, true) => {}
                (false, false) => partly.push((&address.before.source, found.len(), fault)),
            }
            for sampled in found {
                let is_other_address = self.server.is_some() && !address.is_single;
                let start = |it: &Sampled<_>| it.counts.as_ref().and_then(ApiserverCounts::process);
                let is_same = |kept: &&mut Sampled<_>| {
                    start(&sampled).is_some() && start(kept) == start(&sampled)
                };
                match processes.iter_mut().find(is_same).filter(|_| is_other_address) {
                    Some(kept) => keep(kept, sampled),
                    None => processes.push(sampled),
                }
            }
        }
        let named = processes.iter().map(|it| it.source.clone());
        let known: Vec<_> = named.chain(endpoints.iter().map(|it| it.source.clone())).collect();
        for (source, found, fault) in partly {
            let is_here = |name: &&String| self.server.is_some() || is_at(name, source);
            let known: Vec<_> = known.iter().filter(is_here).cloned().collect();
            unread.extend(self.unseen(source, &known, found, fault.as_deref()));
        }
        if let Some(server) = self.server.as_ref().filter(|_| unread.is_empty()) {
            unread.extend(self.unseen(&server.to_string(), &known, known.len(), None));
        }
        // An endpoint that can't be reached directly was not named by the operator. If the URLs
        // show as many processes as there are endpoints, nothing is missing.
        let read = processes.iter().filter(|it| it.fault.is_none()).count();
        let are_listed = |listed: &Vec<Endpoint>| !listed.is_empty() && read >= listed.len();
        if !self.endpoints.as_ref().is_ok_and(are_listed) {
            processes.extend(endpoints);
        }
        processes.extend(unread);
        for change in changes {
            match processes.iter_mut().find(|it| it.source == change.source) {
                Some(known) => known.fault = known.fault.take().or(change.fault),
                None => processes.push(change),
            }
        }
        processes.extend(self.files.iter().cloned());
        processes
    }

    /// Lists the endpoints again, because a kube-apiserver in trouble is removed from them. Returns
    /// the endpoints that were removed or added, or an entry about a missing list.
    async fn changes(&self) -> Vec<Sampled<ApiserverCounts>> {
        let Some(server) = &self.server else { return Vec::new() };
        let lists = match &self.endpoints {
            Ok(before) => endpoints_of(server).await.map(|now| (before, now)),
            Err(fault) => Err(fault.clone()),
        };
        let (before, now) = match lists {
            Ok(lists) => lists,
            Err(fault) => {
                let fault = format!("the other instances are unknown: {fault}");
                return vec![Sampled::failed(server.to_string(), fault)];
            }
        };
        let entry = |change| move |it| Sampled::failed(at(server, it).to_string(), change);
        let left = before.iter().filter(|it| !now.contains(it)).map(entry(Change::Left));
        let joined = now.iter().filter(|it| !before.contains(it)).map(entry(Change::Joined));
        left.chain(joined).collect()
    }
}

/// Returns `true` if this is the name of a process at this URL, as [`matched`] makes it.
fn is_at(name: &str, url: &str) -> bool {
    name.strip_prefix(url).is_some_and(|rest| rest.is_empty() || rest.starts_with(" instance "))
}

/// Replaces `kept` by `sampled`, another description of the same process, if `sampled` is newer. If
/// both are equally new, replaces it only if `kept` has a fault, or if only `sampled` has two
/// samples.
fn keep(kept: &mut Sampled<ApiserverCounts>, sampled: Sampled<ApiserverCounts>) {
    let progress = |it: &Sampled<_>| it.counts.as_ref().map(ApiserverCounts::progress);
    let has_more = kept.before.is_none() && sampled.before.is_some();
    if (progress(&sampled), kept.fault.is_some() || has_more) > (progress(kept), false) {
        *kept = sampled;
    }
}

/// Combines the instances of the two samples by their start times. A restarted kube-apiserver is in
/// the result twice: before and after the restart.
fn matched(before: &Shown, after: &Shown) -> Vec<Sampled<ApiserverCounts>> {
    let several = before.seen.len().max(after.seen.len()) > 1;
    let name = |index: usize| match several {
        true => format!("{} instance {}", before.source, index + 1),
        false => before.source.clone(),
    };
    let mut new = after.seen.keys().filter(|start| !before.seen.contains_key(start)).count();
    let mut starts: Vec<Start> = before.seen.keys().chain(after.seen.keys()).copied().collect();
    starts.sort_unstable();
    starts.dedup();
    let mut found = Vec::new();
    for (index, start) in starts.into_iter().enumerate() {
        let (first, last) = (before.seen.get(&start), after.seen.get(&start));
        let went_back =
            |first: &&Seen<_>| last.is_some_and(|last| last.counts.has_begun_again(&first.counts));
        if let Some(old) = first.filter(went_back) {
            let fault = Some(Change::Restarted.into());
            let (before, counts) = (None, Some(old.counts.clone()));
            found.push(Sampled { source: name(index), before, counts, elapsed: None, fault });
        }
        let first = first.filter(|first| !went_back(first));
        let why = after.fault.as_deref();
        let why = why.unwrap_or("it did not respond a second time, so it may have ended");
        let fault = match last {
            Some(_) => None,
            None if new > 0 => Some(Change::Restarted.into()),
            None => Some(why.to_owned().into()),
        };
        new -= usize::from(last.is_none() && new > 0);
        found.push(Sampled {
            source: name(index),
            before: first.filter(|_| last.is_some()).map(|it| it.counts.clone()),
            counts: last.or(first).map(|it| it.counts.clone()),
            elapsed: first.zip(last).map(|(first, last)| (last.at - first.at).as_secs_f64()),
            fault,
        });
    }
    found
}

/// Sends requests to an address on new connections, until `expected` instances have responded, and
/// with them all `known` ones, which are those of an earlier sample. Ends before that:
///
/// - if [`NOTHING_NEW`] requests in a row have found no new instance;
/// - if the first request fails, and no more than one instance is expected;
/// - if a response does not say when its process started;
/// - after [`REQUESTS_MAX`] requests, or at the end of [`SAMPLE`].
///
/// If there are `known` instances, the last response of each instance counts, otherwise the first.
async fn survey(target: &Target, path: &str, known: &[Start], expected: Option<usize>) -> Shown {
    let deadline = Instant::now() + SAMPLE;
    let source = target.to_string();
    let mut shown = Shown { source, seen: BTreeMap::new(), fault: None, is_silent: false };
    let mut nothing_new = 0;
    for _ in 0..REQUESTS_MAX {
        let at = Instant::now();
        let counts = match ask_until(target, path, deadline).await {
            Ok(counts) => counts,
            Err(fault) => {
                shown.fault.get_or_insert(fault);
                shown.is_silent = Instant::now() >= deadline;
                // An address that never answered is not asked again. If it answered before, or has
                // several instances, one of them may be temporarily unreachable.
                let is_away = shown.seen.is_empty() && expected.is_none_or(|count| count <= 1);
                nothing_new += 1;
                match is_away || shown.is_silent || nothing_new >= NOTHING_NEW {
                    true => break,
                    false => continue,
                }
            }
        };
        let start = counts.process();
        let is_new = !shown.seen.contains_key(&start);
        if is_new || !known.is_empty() {
            shown.seen.insert(start, Seen { at, counts });
        }
        nothing_new = if is_new { 0 } else { nothing_new + 1 };
        let has_all_known = known.iter().all(|start| shown.seen.contains_key(start));
        let has_all = expected.is_some_and(|expected| shown.seen.len() >= expected);
        if has_all && has_all_known {
            shown.fault = None;
            break;
        }
        if start.is_none() || nothing_new >= NOTHING_NEW {
            break;
        }
    }
    shown
}

async fn endpoints_of(server: &Target) -> Result<Vec<Endpoint>, String> {
    let late = || format!("{server}: no list of its endpoints within {} s", LIST.as_secs());
    timeout(LIST, listed_by(server)).await.unwrap_or_else(|_| Err(late()))
}

async fn listed_by(server: &Target) -> Result<Vec<Endpoint>, String> {
    let ask = |path: &str| {
        let path = format!("{}{path}", server.base());
        async move { server.get_text(&path).await }
    };
    let body = match ask(ENDPOINTS).await {
        Err(AskError { fault: AskFault::Status(404 | 405 | 410), .. }) => ask(SLICES).await,
        asked => asked,
    };
    let body = body.map_err(refused)?;
    let endpoints = parse_endpoints(&body);
    match endpoints.is_empty() {
        true => Err(format!("{server}: the Service kubernetes has no endpoints")),
        false => Ok(endpoints),
    }
}

/// Returns the distinct addresses and ports in Endpoints, or in a list of EndpointSlices, at most
/// [`ENDPOINTS_MAX`]; empty if the body is neither.
fn parse_endpoints(body: &[u8]) -> Vec<Endpoint> {
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

/// Returns the port with the name `https`, or otherwise the first one.
fn https_port(ports: &Value) -> Option<u16> {
    let ports = ports.as_array()?;
    let named = ports.iter().find(|port| port["name"] == "https").or_else(|| ports.first())?;
    u16::try_from(named["port"].as_u64()?).ok()
}

/// Repeats a sample, with pauses, until `is_settled` returns `true` for it, but begins none after
/// `limit`. Returns the last sample.
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
    use std::io::Write as _;

    use flate2::write::GzEncoder;

    use super::*;

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

    fn shown(instances: &[(f64, u64)], fault: Option<&str>) -> Shown {
        let seen = instances.iter().map(|&(start, generated)| {
            let counts = ApiserverCounts {
                started: Some(start),
                generated: Some(generated),
                ..ApiserverCounts::default()
            };
            (counts.process(), Seen { at: Instant::now(), counts })
        });
        let fault = fault.map(str::to_owned);
        let seen = seen.collect();
        Shown { source: "http://a".to_owned(), seen, fault, is_silent: false }
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
        assert_eq!(sampled[0].fault, Some(Change::Restarted.into()));
        assert_eq!(sampled[1].source, "http://a instance 2");
        let gone = matched(&before, &shown(&[], Some("cannot connect")));
        let wanted = Some("cannot connect".to_owned().into());
        assert!(gone.iter().all(|it| it.fault == wanted));
        // A counter that went back shows a restart too.
        let back = matched(&before, &shown(&[(1.0, 9), (2.0, 25)], None));
        let faults: Vec<_> = back.iter().map(|it| it.fault.clone()).collect();
        assert_eq!(faults, [Some(Change::Restarted.into()), None, None]);
    }

    fn address(is_single: bool, url: &str, instances: &[(f64, u64)]) -> Address {
        // Nothing listens at port 1, so the second sample has no answers.
        let target = Target::new(url).unwrap();
        let before = Shown { source: url.to_owned(), ..shown(instances, None) };
        Address { target, path: "/metrics".to_owned(), is_single, before }
    }

    #[tokio::test]
    async fn only_the_urls_beside_a_kubeconfig_show_the_processes_of_others() {
        let [first, second, url] =
            ["http://127.0.0.1:1", "http://127.0.0.2:1", "http://127.0.0.3:1"];
        for (has_cluster, processes) in [(true, 3), (false, 4)] {
            let apiservers = Apiservers {
                files: Vec::new(),
                addresses: vec![
                    address(has_cluster, first, &[(1.0, 5)]),
                    address(has_cluster, second, &[(1.0, 6)]),
                    address(false, url, &[(1.0, 5), (2.0, 7)]),
                ],
                expected: None,
                server: has_cluster.then(|| Target::new(first).unwrap()),
                endpoints: Err("no list".to_owned()),
            };
            let (found, ()) = apiservers.second(async || ()).await;
            let found: Vec<_> = found.into_iter().filter(|it| it.counts.is_some()).collect();
            let sources: Vec<_> = found.iter().map(|it| it.source.as_str()).collect();
            assert_eq!(found.len(), processes, "{sources:?}");
        }
    }

    /// Returns the URL of a server that takes connections and never answers, and the server.
    fn silent() -> (Target, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (Target::new(&url).unwrap(), listener)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_named_after_a_bounded_time() {
        let (target, _listener) = silent();
        let source = || Source::Url(target.clone(), "/metrics".to_owned());
        let bound = SAMPLE * 2 + Duration::from_secs(1);
        let begin = Instant::now();
        let relays = Relays::first(vec![source()]).await;
        let of_relays = relays.second().await;
        assert!(begin.elapsed() <= bound, "{:?}", begin.elapsed());
        let begin = Instant::now();
        let apiservers = Apiservers::first(vec![source()], None, Some(3)).await;
        let (of_apiservers, ()) = apiservers.second(async || ()).await;
        assert!(begin.elapsed() <= bound, "{:?}", begin.elapsed());
        for fault in [&of_relays[0].fault, &of_apiservers[0].fault] {
            let fault = &fault.as_ref().unwrap().what;
            assert!(fault.contains(&target.to_string()), "{fault}");
            assert!(fault.contains("no complete response within 20 s"), "{fault}");
        }
        assert_eq!((of_relays.len(), of_apiservers.len()), (1, 1));
        let begin = Instant::now();
        let fault = endpoints_of(&target).await.unwrap_err();
        assert!(begin.elapsed() <= LIST + Duration::from_secs(1), "{:?}", begin.elapsed());
        assert!(fault.contains(&target.to_string()), "{fault}");
    }

    #[test]
    fn a_file_is_read_in_parts_and_its_faults_name_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("metrics");
        let filler = "etcd_request_duration_seconds_bucket{le=\"1\"} 1\n".repeat(5000);
        std::fs::write(&file, format!("{filler}apiserver_audit_event_total 7\n")).unwrap();
        assert_eq!(read_file(&file).unwrap().generated, Some(7));
        let text = std::fs::read(&file).unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&text).unwrap();
        let packed = gzip.finish().unwrap();
        std::fs::write(&file, &packed).unwrap();
        assert_eq!(read_file(&file).unwrap().generated, Some(7));
        for end in [1, 5, packed.len() / 2, packed.len() - 1] {
            std::fs::write(&file, &packed[..end]).unwrap();
            let fault = read_file(&file).unwrap_err();
            assert!(fault.contains("metrics: not valid gzip: "), "{fault}");
        }
        std::fs::write(&file, "no metrics").unwrap();
        let fault = read_file(&file).unwrap_err();
        assert!(fault.contains("metrics: not Prometheus metrics: line 1"), "{fault}");
        let fault = read_file(Path::new("/no/such")).unwrap_err();
        assert!(fault.starts_with("cannot read /no/such: "), "{fault}");
    }
}
